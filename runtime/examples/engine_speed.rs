//! How fast the native engine trains a small GPT, beside what its matrix products alone take.
//!
//! `engine_speed THREADS STEPS` runs `STEPS` optimiser steps after three to warm up (4 layers, width 256, 4 heads, 8
//! sequences of 128 tokens, vocabulary of 256, AdamW) and prints one line: milliseconds of each part, medians over the
//! steps, and the floor: the products of the linear layers and the head, alone, as often as a step makes them, their
//! rows divided among the same number of threads. `benches/engine_vs_torch` sets it beside PyTorch.
#![allow(clippy::print_stdout, unsafe_code)]

use std::num::NonZero;
use std::time::Instant;

use narrows_runtime::engine::{AdamW, Goal, GptConfig, GptStage, Input, Output, Upstream};

const MODEL: GptConfig = GptConfig { layers: 4, hidden: 256, heads: 4, vocab: 256, sequence: 128 };
const SEQUENCES: usize = 8;
const WARM_UP: usize = 3;

fn main() {
    let mut arguments =
        std::env::args().skip(1).map(|a| a.parse::<usize>().expect("engine_speed THREADS STEPS"));
    let (threads, steps) = (arguments.next().unwrap_or(1), arguments.next().unwrap_or(10));
    let mut times: [Vec<f64>; 6] = Default::default();
    let mut trainer = Trainer::new(threads);
    for step in 0..WARM_UP + steps {
        let parts = trainer.step(step);
        if step >= WARM_UP {
            times.iter_mut().zip(parts).for_each(|(all, part)| all.push(part));
        }
    }
    let floor = floor_ms(threads, steps);
    let [step, forward, input, weight, optimiser, loss] = times.map(|mut all| median(&mut all));
    println!(
        "{{\"threads\": {threads}, \"step_ms\": {step:.1}, \"forward_ms\": {forward:.1}, \"input_ms\": {input:.1}, \
         \"weight_ms\": {weight:.1}, \"adamw_ms\": {optimiser:.1}, \"floor_ms\": {floor:.1}, \"loss\": {loss:.4}}}"
    );
}

struct Trainer {
    stage: GptStage,
    adamw: AdamW,
}

impl Trainer {
    fn new(threads: usize) -> Self {
        let threads = NonZero::new(threads).expect("at least one thread");
        let stage = GptStage::new(MODEL, 0..MODEL.layers, SEQUENCES, 1, threads).expect("a sound model");
        let adamw = AdamW::new(stage.tensors());
        Self { stage, adamw }
    }

    /// Milliseconds of the whole, forward, input half, weight half, optimiser; and the loss.
    fn step(&mut self, step: usize) -> [f64; 6] {
        let tokens: Vec<u32> =
            (0..SEQUENCES * MODEL.sequence).map(|i| ((i * 31 + step * 7) % 251) as u32).collect();
        let targets: Vec<u32> = tokens.iter().map(|t| (t + 31) % 251).collect();
        let mut marks = vec![Instant::now()];
        let output = self.stage.forward(0, Input::Tokens(&tokens), Goal::Loss { targets: &targets });
        let Output::Loss(loss) = output.expect("a sound batch") else {
            panic!("the whole model gives a loss")
        };
        marks.push(Instant::now());
        self.stage.backward_input(0, Upstream::Loss { scale: 1.0 }).expect("after forward");
        marks.push(Instant::now());
        self.stage.backward_weight(0).expect("after the input half");
        marks.push(Instant::now());
        self.stage.optimise(&mut self.adamw, 3e-4, 1.0);
        self.stage.zero_gradients();
        marks.push(Instant::now());
        let ms = |a: usize, b: usize| (marks[b] - marks[a]).as_secs_f64() * 1e3;
        [ms(0, 4), ms(0, 1), ms(1, 2), ms(2, 3), ms(3, 4), loss]
    }
}

/// Forward, input and weight product of each linear map, as [m, k] x [k, n]: their orientations are the engine's.
fn floor_ms(threads: usize, repeats: usize) -> f64 {
    let (t, c) = (SEQUENCES * MODEL.sequence, MODEL.hidden);
    let maps = [(c, 3 * c, 4), (c, c, 4), (c, 4 * c, 4), (4 * c, c, 4), (c, MODEL.vocab, 1)];
    let pool =
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("as many threads as asked for");
    let mut all = vec![];
    for repeat in 0..repeats + 1 {
        let mut total = 0.0;
        for (inputs, outputs, times) in maps {
            let (x, w, y) = (vec![0.5; t * inputs], vec![0.5; inputs * outputs], vec![0.5; t * outputs]);
            let (mut dx, mut dw, mut dy) = (x.clone(), w.clone(), y.clone());
            let began = Instant::now();
            for _ in 0..times {
                divided(&pool, &mut dy, t, outputs, inputs, (&x, inputs, 1), (&w, outputs, 1));
                divided(&pool, &mut dx, t, inputs, outputs, (&y, outputs, 1), (&w, 1, outputs));
                divided(&pool, &mut dw, inputs, outputs, t, (&x, 1, inputs), (&y, outputs, 1));
            }
            total += began.elapsed().as_secs_f64() * 1e3;
        }
        if repeat > 0 {
            all.push(total);
        }
    }
    median(&mut all)
}

/// dst[m, n] = lhs[m, k] · rhs[k, n], operands with row and column stride, the rows of dst divided among threads.
fn divided(
    pool: &rayon::ThreadPool,
    dst: &mut [f32],
    m: usize,
    n: usize,
    k: usize,
    lhs: (&[f32], usize, usize),
    rhs: (&[f32], usize, usize),
) {
    let rows = m / pool.current_num_threads();
    pool.scope(|scope| {
        for (i, dst) in dst.chunks_mut(rows * n).enumerate() {
            let lhs = (&lhs.0[i * rows * lhs.1..], lhs.1, lhs.2);
            scope.spawn(move |_| multiply(dst, n, k, lhs, rhs));
        }
    });
}

fn multiply(dst: &mut [f32], n: usize, k: usize, lhs: (&[f32], usize, usize), rhs: (&[f32], usize, usize)) {
    let m = dst.len() / n;
    assert!(
        lhs.0.len() > (m - 1) * lhs.1 + (k - 1) * lhs.2 && rhs.0.len() > (k - 1) * rhs.1 + (n - 1) * rhs.2
    );
    // SAFETY: the last element of each operand lies inside its slice (above), and so do all others.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.as_mut_ptr(),
            1,
            n as isize,
            false,
            lhs.0.as_ptr(),
            lhs.2 as isize,
            lhs.1 as isize,
            rhs.0.as_ptr(),
            rhs.2 as isize,
            rhs.1 as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

fn median(all: &mut [f64]) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

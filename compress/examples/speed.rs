//! Speed and size of the codecs on this machine, one core: `cargo run --release -p narrows-compress --example speed`.
//!
//! Pseudo-gradients: 64 Mi nearly Gaussian f32. MB/s count the dense tensor (4 bytes a value), best of three. The bound
//! is log2 C(4096, k) + 2 k bits a chunk: indices of equally likely sets and 2-bit values, no levels.
#![allow(clippy::print_stdout)]

use std::time::Instant;

use narrows_compress::{BoundaryCodec, ErrorFeedback, Subspace, TopK, cost, decode_add};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

const ELEMENTS: usize = 64 << 20;
const CHUNK: usize = narrows_compress::CHUNK;

fn main() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads()).build().expect("a pool of threads");
    pool.install(|| {
        println!("{} threads", rayon::current_num_threads());
        pseudo_gradients();
        boundaries();
    });
}

fn threads() -> usize {
    std::env::args().nth(1).map_or(1, |n| n.parse().expect("usage: speed [THREADS]"))
}

fn pseudo_gradients() {
    let delta = gaussian(ELEMENTS);
    let bytes = 4 * ELEMENTS;
    println!(
        "{:>4} {:>9} {:>9} {:>10} {:>8} {:>8} {:>8}",
        "k", "compress", "add", "bits/param", "bound", "above", "expected"
    );
    for kept in [32, 64, 128, 256] {
        let top_k = TopK::new(kept).expect("in range");
        let mut feedback = ErrorFeedback::new(ELEMENTS, 0.95).expect("in range");
        let mut frame = feedback.compress(&delta, top_k).expect("finite");
        let compress = best(|| frame = feedback.compress(&delta, top_k).expect("finite"));
        let mut sum = vec![0.0; ELEMENTS];
        let add = best(|| decode_add(&frame, 0.5, &mut sum).expect("sound"));
        let bits = 8.0 * frame.len() as f64 / ELEMENTS as f64;
        let bound = (log2_binomial(CHUNK, kept) + 2.0 * kept as f64) / CHUNK as f64;
        let expected = 8.0 * cost::frame_bytes_expected(ELEMENTS as u64, top_k) / ELEMENTS as f64;
        println!(
            "{kept:>4} {:>9.0} {:>9.0} {bits:>10.5} {bound:>8.5} {:>7.2}% {expected:>8.5}",
            rate(bytes, compress),
            rate(bytes, add),
            100.0 * (bits / bound - 1.0)
        );
    }
    let mut copy = vec![0.0_f32; ELEMENTS];
    let seconds = best(|| std::hint::black_box(&mut copy).copy_from_slice(&delta));
    println!("memory copy {:.0} MB/s of the same tensor", rate(bytes, seconds));
}

fn boundaries() {
    let (rows, width) = (2048, 4096);
    let (x, anchor) = (gaussian(rows * width), vec![0.5; rows * width]);
    let mut back = vec![0.0; x.len()];
    println!("{:>22} {:>9} {:>9} {:>10}", "boundary [2048, 4096]", "encode", "decode", "bytes");
    let subspace = |rank| BoundaryCodec::Subspace(Subspace::from_seed(1, width, rank).expect("in range"));
    for codec in [BoundaryCodec::None, BoundaryCodec::Bf16, BoundaryCodec::Int8, subspace(40), subspace(256)]
    {
        let mut bytes = Vec::with_capacity(codec.encoded_len(rows, width));
        let encode = best(|| {
            bytes.clear();
            codec.encode(&x, width, Some(&anchor), &mut bytes);
        });
        let decode =
            best(|| codec.decode(&bytes, rows, width, Some(&anchor), &mut back).expect("same shape"));
        let [encode, decode] = [encode, decode].map(|seconds| rate(4 * x.len(), seconds));
        println!("{:>22} {encode:>9.0} {decode:>9.0} {:>10}", format!("{:?}", codec.kind()), bytes.len());
    }
}

fn rate(bytes: usize, seconds: f64) -> f64 {
    bytes as f64 / seconds / 1e6
}

fn best(mut run: impl FnMut()) -> f64 {
    let time = |_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    };
    (0..3).map(time).fold(f64::INFINITY, f64::min)
}

fn log2_binomial(n: usize, k: usize) -> f64 {
    (0..k).map(|i| ((n - i) as f64 / (k - i) as f64).log2()).sum()
}

fn gaussian(len: usize) -> Vec<f32> {
    let mut stream = ChaCha8Rng::seed_from_u64(1);
    let mut normal = || (0..12).map(|_| stream.next_u32() as f32 / u32::MAX as f32).sum::<f32>() - 6.0;
    (0..len).map(|_| normal()).collect()
}

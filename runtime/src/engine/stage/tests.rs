//! The stage as a whole: right gradients, the same bits however it is cut, exact bytes, refusals.

use super::*;

const TINY: GptConfig = GptConfig { layers: 2, hidden: 16, heads: 2, vocab: 24, sequence: 40 };
/// Large enough that three threads all get bands, in every phase.
const WIDE: GptConfig = GptConfig { layers: 3, hidden: 192, heads: 3, vocab: 200, sequence: 100 };

fn stage(config: GptConfig, layers: Range<usize>, micro_batch: usize, threads: usize) -> GptStage {
    GptStage::new(config, layers, micro_batch, 7, NonZero::new(threads).unwrap()).unwrap()
}

fn tokens(config: GptConfig, micro_batch: usize, salt: usize) -> Vec<u32> {
    let next = |i: usize| ((i * i * 31 + i * 7 + salt * 13) % 251 * 3 % config.vocab) as u32;
    (0..micro_batch * config.sequence).map(next).collect()
}

fn loss(output: Output<'_>) -> f64 {
    match output {
        Output::Loss(loss) => loss,
        Output::Activation(_) => panic!("the last stage gives a loss"),
    }
}

fn activation(output: Output<'_>) -> Vec<f32> {
    match output {
        Output::Activation(x) => x.to_vec(),
        Output::Loss(_) => panic!("only the last stage gives a loss"),
    }
}

/// One microbatch through a pipeline of stages, forward and backward; the loss.
fn pass(stages: &mut [GptStage], microbatch: usize, tokens: &[u32], targets: &[u32]) -> f64 {
    let last = stages.len() - 1;
    let (mut x, mut mean) = (vec![], 0.0);
    for (i, stage) in stages.iter_mut().enumerate() {
        let input = if i == 0 { Input::Tokens(tokens) } else { Input::Activation(&x) };
        let goal = if i == last { Goal::Loss { targets } } else { Goal::Activation };
        match stage.forward(microbatch, input, goal).unwrap() {
            Output::Activation(out) => x = out.to_vec(),
            Output::Loss(loss) => mean = loss,
        }
    }
    let mut gradient = vec![];
    for (i, stage) in stages.iter_mut().enumerate().rev() {
        let upstream =
            if i == last { Upstream::Loss { scale: 0.5 } } else { Upstream::Activation(&gradient) };
        let given = stage.backward_input(microbatch, upstream).unwrap().map(<[f32]>::to_vec);
        stage.backward_weight(microbatch).unwrap();
        assert_eq!(given.is_none(), i == 0, "the first stage alone has no stage before it");
        gradient = given.unwrap_or_default();
    }
    mean
}

#[test]
fn gradients_agree_with_finite_differences_for_every_tensor() {
    let (tokens, targets) = (tokens(TINY, 2, 1), tokens(TINY, 2, 2));
    let mut whole = stage(TINY, 0..2, 2, 1);
    // Larger weights than a fresh model's, and biases and gains off their initial values, so that every term counts.
    for tensor in stage(TINY, 0..2, 2, 1).tensors() {
        let factor = if tensor.shape.len() > 1 { 6.0 } else { 1.0 };
        for (i, p) in whole.parameters_mut()[tensor.range.clone()].iter_mut().enumerate() {
            *p = *p * factor + ((i * i * 37 % 101) as f32 / 101.0 - 0.5) * 0.4;
        }
    }
    pass(std::slice::from_mut(&mut whole), 0, &tokens, &targets);
    let gradients = whole.gradients().to_vec();
    let mut at = |i: usize, shift: f32| {
        let before = whole.parameters()[i];
        whole.parameters_mut()[i] = before + shift;
        let value = loss(whole.evaluate(Input::Tokens(&tokens), Goal::Loss { targets: &targets }).unwrap());
        whole.parameters_mut()[i] = before;
        0.5 * value
    };
    for tensor in stage(TINY, 0..2, 2, 1).tensors() {
        // Along the gradient itself, where the difference is largest beside the rounding of the loss.
        let part = &gradients[tensor.range.clone()];
        let steepest = (0..part.len()).max_by(|&a, &b| part[a].abs().total_cmp(&part[b].abs())).unwrap();
        for i in [steepest, part.len() / 3, part.len() - 1].map(|i| tensor.range.start + i) {
            let h = 4e-3;
            let slope =
                (8.0 * (at(i, h) - at(i, -h)) - (at(i, 2.0 * h) - at(i, -2.0 * h))) / (12.0 * h as f64);
            let error = (slope - gradients[i] as f64).abs();
            assert!(
                error < 2e-3 * part[steepest].abs() as f64 + 3e-5,
                "{}: {slope} {}",
                tensor.name,
                gradients[i]
            );
        }
    }
}

#[test]
fn any_cut_into_stages_gives_the_bits_of_the_whole_model() {
    for config in [TINY, WIDE] {
        let (tokens, targets) = (tokens(config, 3, 1), tokens(config, 3, 2));
        let mut whole = [stage(config, 0..config.layers, 3, 1)];
        let expected = pass(&mut whole, 0, &tokens, &targets);
        for cuts in [vec![0, 1, config.layers], (0..=config.layers).collect()] {
            let mut stages: Vec<_> = cuts.windows(2).map(|cut| stage(config, cut[0]..cut[1], 3, 1)).collect();
            assert_eq!(
                stages.iter().flat_map(|s| s.parameters()).collect::<Vec<_>>(),
                whole[0].parameters().iter().collect::<Vec<_>>()
            );
            assert_eq!(
                pass(&mut stages, 0, &tokens, &targets).to_bits(),
                expected.to_bits(),
                "cut at {cuts:?}"
            );
            assert!(stages.iter().flat_map(|s| s.gradients()).eq(whole[0].gradients()), "cut at {cuts:?}");
        }
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    for micro_batch in [1, 3] {
        let run = |threads| {
            let mut whole = stage(WIDE, 0..WIDE.layers, micro_batch, threads);
            let mut adamw = AdamW::new(whole.tensors());
            let mut losses = vec![];
            for step in 0..2 {
                whole.zero_gradients();
                let (tokens, targets) =
                    (tokens(WIDE, micro_batch, step), tokens(WIDE, micro_batch, step + 1));
                losses.push(pass(std::slice::from_mut(&mut whole), step, &tokens, &targets));
                whole.optimise(&mut adamw, 1e-2, 1.0);
            }
            (losses, whole.gradients().to_vec(), whole.parameters().to_vec())
        };
        let one = run(1);
        assert!(run(2) == one, "two threads, {micro_batch} sequences");
        assert!(run(3) == one, "three threads, {micro_batch} sequences");
        assert!(run(5) == one, "five threads, {micro_batch} sequences");
    }
}

#[test]
fn loss_falls_when_a_tiny_model_memorises() {
    let (tokens, targets) = (tokens(TINY, 2, 1), tokens(TINY, 2, 2));
    let mut whole = stage(TINY, 0..2, 2, 1);
    let mut adamw = AdamW::new(whole.tensors());
    let mut losses = vec![];
    for _ in 0..150 {
        whole.zero_gradients();
        losses.push(pass(std::slice::from_mut(&mut whole), 0, &tokens, &targets));
        whole.optimise(&mut adamw, 1e-2, 2.0);
    }
    assert!((losses[0] - (TINY.vocab as f64).ln()).abs() < 0.05, "a fresh model is undecided: {}", losses[0]);
    assert!(losses[149] < 0.1, "memorised: {}", losses[149]);
}

#[test]
fn a_later_token_changes_no_earlier_position() {
    let config = GptConfig { layers: 3, ..TINY };
    let mut first = stage(config, 0..2, 1, 1);
    let mut run =
        |tokens: &[u32]| activation(first.evaluate(Input::Tokens(tokens), Goal::Activation).unwrap());
    let mut tokens = tokens(config, 1, 1);
    let before = run(&tokens);
    for changed in [39, 33, 32, 31, 1] {
        tokens[changed] = (tokens[changed] + 1) % config.vocab as u32;
        let after = run(&tokens);
        let edge = changed * config.hidden;
        assert_eq!(after[..edge], before[..edge], "token {changed}");
        tokens[changed] = (tokens[changed] + config.vocab as u32 - 1) % config.vocab as u32;
        assert_ne!(after[edge..edge + config.hidden], before[edge..edge + config.hidden], "token {changed}");
    }
}

#[test]
fn microbatches_in_flight_do_not_touch_each_other_and_buffers_are_reused() {
    let batch = |i: usize| (tokens(TINY, 1, i), tokens(TINY, 1, i + 9));
    let mut one_by_one = stage(TINY, 0..2, 1, 1);
    let mut together = stage(TINY, 0..2, 1, 1);
    let mut made = 0;
    for step in 0..3 {
        let forward = |stage: &mut GptStage, i: usize| {
            let (tokens, targets) = batch(i);
            loss(stage.forward(i, Input::Tokens(&tokens), Goal::Loss { targets: &targets }).unwrap())
        };
        let mut losses = vec![];
        for i in 0..3 {
            losses.push(forward(&mut one_by_one, i));
            one_by_one.backward_input(i, Upstream::Loss { scale: 1.0 }).unwrap();
            one_by_one.backward_weight(i).unwrap();
        }
        // Forward of all, then the input halves crosswise; weight halves in the order above, since f32 sums have one.
        assert_eq!(losses, (0..3).map(|i| forward(&mut together, i)).collect::<Vec<_>>());
        for i in [2, 0, 1] {
            together.backward_input(i, Upstream::Loss { scale: 1.0 }).unwrap();
        }
        (0..3).for_each(|i| together.backward_weight(i).unwrap());
        assert_eq!(one_by_one.gradients(), together.gradients());
        let buffers = together.pool.buffers();
        assert!(step == 0 || buffers == made, "step {step} made buffers: {buffers}, before {made}");
        made = buffers;
    }
    assert_eq!((one_by_one.pool.buffers(), made), (2, 6));
}

#[test]
fn bytes_kept_are_those_of_the_table() {
    let (t, c, h, v) = (2 * 40_usize, 16, 2, 24);
    let layer = t * (10 * c + 2 * h + 2);
    let layer_pending = t * 6 * c + t.div_ceil(32) * 4 * c;
    let bytes = |s: GptStage| (s.activation_bytes_per_microbatch(), s.pending_bytes_per_microbatch());
    let config = GptConfig { layers: 4, ..TINY };
    assert_eq!(bytes(stage(config, 0..1, 2, 1)), (4 * (layer + t), 4 * (layer_pending + t * c)));
    assert_eq!(bytes(stage(config, 1..3, 2, 1)), (4 * 2 * layer, 4 * 2 * layer_pending));
    let head = t * (c + 1 + v);
    assert_eq!(
        bytes(stage(config, 3..4, 2, 1)),
        (4 * (layer + head), 4 * (layer_pending + t.div_ceil(32) * 2 * c))
    );
}

#[test]
fn abandoned_microbatches_may_come_again() {
    let mut whole = stage(TINY, 0..2, 1, 1);
    let (tokens, targets) = (tokens(TINY, 1, 1), tokens(TINY, 1, 2));
    for microbatch in 0..2 {
        whole.forward(microbatch, Input::Tokens(&tokens), Goal::Loss { targets: &targets }).unwrap();
    }
    whole.backward_input(1, Upstream::Loss { scale: 1.0 }).unwrap();
    whole.abandon();
    assert!(whole.gradients().iter().all(|g| *g == 0.0));
    pass(std::slice::from_mut(&mut whole), 1, &tokens, &targets);
}

#[test]
fn refusals_say_what_was_asked_of_whom() {
    let config = GptConfig { layers: 3, ..TINY };
    let (tokens, x) = (tokens(config, 1, 1), vec![0.0; 40 * 16]);
    let (mut first, mut last) = (stage(config, 0..1, 1, 1), stage(config, 2..3, 1, 1));
    let mut bad = tokens.clone();
    bad[5] = 24;
    let whole = Goal::Loss { targets: &tokens };
    let errors = [
        first.forward(3, Input::Activation(&x), Goal::Activation).unwrap_err().to_string(),
        first.forward(3, Input::Tokens(&tokens[1..]), Goal::Activation).unwrap_err().to_string(),
        first.forward(3, Input::Tokens(&bad), Goal::Activation).unwrap_err().to_string(),
        first.evaluate(Input::Tokens(&tokens), whole).unwrap_err().to_string(),
        last.evaluate(Input::Activation(&x), Goal::Activation).unwrap_err().to_string(),
        last.backward_input(4, Upstream::Activation(&x)).unwrap_err().to_string(),
        last.backward_input(4, Upstream::Loss { scale: 1.0 }).unwrap_err().to_string(),
    ];
    assert_eq!(
        errors,
        [
            "forward of microbatch 3: the first stage takes tokens, got an activation",
            "forward of microbatch 3: tokens has 39 elements; a microbatch of this stage has 40",
            "forward of microbatch 3: tokens[5] is 24, but the vocabulary is 0..24",
            "evaluate: a stage before the last takes no targets, got targets",
            "evaluate: the last stage takes targets for its loss, got none",
            "backward_input of microbatch 4: the last stage takes the weight of its loss, got a gradient",
            "backward_input of microbatch 4: the microbatch is not in flight; the order is forward, backward_input, \
             backward_weight",
        ]
    );
    last.forward(4, Input::Activation(&x), whole).unwrap();
    let order = |state| EngineError::Order { call: Call::Forward(4), state };
    assert_eq!(last.forward(4, Input::Activation(&x), whole).unwrap_err(), order("is in flight already"));
    let order = |state| EngineError::Order { call: Call::BackwardWeight(4), state };
    assert_eq!(last.backward_weight(4).unwrap_err(), order("had no input half yet"));
    let made = |config, layers| {
        GptStage::new(config, layers, 1, 0, NonZero::<usize>::MIN).err().unwrap().to_string()
    };
    assert!(
        made(GptConfig { heads: 3, ..TINY }, 0..1)
            .ends_with("hidden must be a multiple of heads; 16 is not one of 3")
    );
    assert!(made(TINY, 1..3).ends_with("a stage needs at least one of the layers 0..2; got 1..3"));
}

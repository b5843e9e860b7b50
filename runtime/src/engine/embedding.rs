//! The embedding: a token's row plus its position's.

use super::layout::Embedding;

/// `x[i] = token[tokens[i]] + position[i mod sequence]`, `[tokens, hidden]`.
pub(super) fn forward(p: &Embedding<&[f32]>, tokens: &[u32], hidden: usize, x: &mut [f32]) {
    let positions = p.position.chunks_exact(hidden).cycle();
    for ((x, &token), position) in x.chunks_exact_mut(hidden).zip(tokens).zip(positions) {
        let row = &p.token[token as usize * hidden..][..hidden];
        for ((x, token), position) in x.iter_mut().zip(row).zip(position) {
            *x = token + position;
        }
    }
}

/// Adds each row of `dx` to the gradients of its token and of its position, in the order of the tokens.
pub(super) fn backward_weight(grad: Embedding<&mut [f32]>, tokens: &[u32], hidden: usize, dx: &[f32]) {
    let length = grad.position.len() / hidden;
    for (i, (dx, &token)) in dx.chunks_exact(hidden).zip(tokens).enumerate() {
        add(&mut grad.token[token as usize * hidden..][..hidden], dx);
        add(&mut grad.position[i % length * hidden..][..hidden], dx);
    }
}

fn add(to: &mut [f32], from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}

//! What a model must hold whoever wrote it: `model.toml`, a published configuration, or a plan with the model inside.

use super::{Model, ModelKind};
use crate::input::Fault;

/// Far above any model, far below where a count of parameters or FLOPs would overflow.
const SIZE_MAX: u32 = 1 << 24;
const WIDTH_MAX: u32 = 1 << 20;
const MLP_MAX: u32 = 1 << 22;
const LAYERS_MAX: u32 = 1 << 16;

/// A fault and the key that it is of.
pub(super) type KeyFault = (&'static str, Fault);

/// Sizes within their bounds, heads that fit the width and each other, a microbatch that divides the batch.
pub(crate) fn check(model: &Model) -> Result<(), KeyFault> {
    check_sizes(model)?;
    check_heads(model)?;
    check_positions(model)?;
    let Some(micro_batch) = model.micro_batch else { return Ok(()) };
    within("micro_batch", micro_batch, SIZE_MAX)?;
    if !model.global_batch.is_multiple_of(micro_batch) {
        let what = format!(
            "a micro_batch of {micro_batch} does not divide the global_batch of {}",
            model.global_batch
        );
        let hint = nearest_divisor(micro_batch, model.global_batch);
        return Err(("micro_batch", Fault::at(["micro_batch"], what).hint(hint)));
    }
    Ok(())
}

fn check_sizes(model: &Model) -> Result<(), KeyFault> {
    within("layers", model.layers, LAYERS_MAX)?;
    within("hidden", model.hidden, WIDTH_MAX)?;
    within("heads", model.heads, WIDTH_MAX)?;
    within("kv_heads", model.kv_heads.unwrap_or(1), WIDTH_MAX)?;
    within("head_dim", model.head_dim.unwrap_or(1), WIDTH_MAX)?;
    within("mlp_width", model.mlp_width.unwrap_or(1), MLP_MAX)?;
    within("vocab", model.vocab, SIZE_MAX)?;
    within("sequence", model.sequence, SIZE_MAX)?;
    within("positions", model.positions.unwrap_or(1), SIZE_MAX)?;
    within("global_batch", model.global_batch, SIZE_MAX)
}

fn check_heads(model: &Model) -> Result<(), KeyFault> {
    if model.head_dim.is_none() && !model.hidden.is_multiple_of(model.heads) {
        let what = format!("{} heads do not divide the hidden width {}", model.heads, model.hidden);
        return Err(("heads", Fault::at(["heads"], what).hint(nearest_divisor(model.heads, model.hidden))));
    }
    if model.attention_width() > u64::from(WIDTH_MAX) {
        let what =
            format!("{} heads of width {} are wider than {WIDTH_MAX} in all", model.heads, model.head_dim());
        return Err(("head_dim", Fault::at(["head_dim"], what)));
    }
    if !model.heads.is_multiple_of(model.kv_heads()) {
        let what = format!(
            "{} heads of keys and values do not divide the {} heads of queries",
            model.kv_heads(),
            model.heads
        );
        let hint = nearest_divisor(model.kv_heads(), model.heads);
        return Err(("kv_heads", Fault::at(["kv_heads"], what).hint(hint)));
    }
    Ok(())
}

fn check_positions(model: &Model) -> Result<(), KeyFault> {
    let Some(positions) = model.positions else { return Ok(()) };
    if model.kind == ModelKind::Llama {
        let what = "a llama has no table of positions: it turns queries and keys instead";
        return Err(("positions", Fault::at(["positions"], what).hint("leave `positions` out")));
    }
    if positions < model.sequence {
        let what = format!(
            "a sequence of {} tokens is longer than the {positions} positions of the model",
            model.sequence
        );
        return Err(("sequence", Fault::at(["sequence"], what)));
    }
    Ok(())
}

fn within(key: &'static str, value: u32, max: u32) -> Result<(), KeyFault> {
    if (1..=max).contains(&value) {
        return Ok(());
    }
    Err((key, Fault::at([key], format!("`{key}` is {value}, expected 1 to {max}"))))
}

fn nearest_divisor(wrong: u32, whole: u32) -> String {
    let near =
        (1..=whole).filter(|d| whole.is_multiple_of(*d)).min_by_key(|d| d.abs_diff(wrong)).unwrap_or(1);
    format!("{near} would divide {whole}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::fixture::gpt;

    #[test]
    fn the_largest_model_allowed_can_be_counted() {
        for kind in [ModelKind::Gpt, ModelKind::Llama] {
            let largest = Model {
                kind,
                vocab: SIZE_MAX,
                sequence: SIZE_MAX,
                mlp_width: Some(MLP_MAX),
                ..gpt(LAYERS_MAX, WIDTH_MAX)
            };
            assert!(check(&largest).is_ok());
            assert!(largest.parameters() > 1 << 56);
        }
    }

    #[test]
    fn heads_wider_than_the_hidden_width_are_allowed_with_their_own_width() {
        let model = Model { heads: 3, head_dim: Some(128), ..gpt(1, 256) };
        assert!(check(&model).is_ok());
        assert_eq!(model.attention_width(), 384);
        assert!(check(&Model { head_dim: None, ..model.clone() }).is_err());
        assert!(check(&Model { head_dim: Some(WIDTH_MAX), ..model }).is_err());
    }
}

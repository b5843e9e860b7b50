//! What joins the GPUs of one host, by name. Rates are per GPU and direction, as the specifications say (NVLink: half
//! of the advertised sum of both directions; PCIe: 16 lanes after line coding); latencies are usual figures.

use super::{Hop, gpus};

#[rustfmt::skip]
const TABLE: &[(&str, Hop)] = &[
    ("nvlink2", Hop { rate_bytes_per_s: 150e9,   latency_s: 2e-6 }),
    ("nvlink3", Hop { rate_bytes_per_s: 300e9,   latency_s: 2e-6 }),
    ("nvlink4", Hop { rate_bytes_per_s: 450e9,   latency_s: 2e-6 }),
    ("nvlink5", Hop { rate_bytes_per_s: 900e9,   latency_s: 2e-6 }),
    ("pcie3",   Hop { rate_bytes_per_s: 15.75e9, latency_s: 5e-6 }),
    ("pcie4",   Hop { rate_bytes_per_s: 31.5e9,  latency_s: 5e-6 }),
    ("pcie5",   Hop { rate_bytes_per_s: 63e9,    latency_s: 5e-6 }),
];

/// The built-in connection of that name; `nvlink` is the generation of the GPU (`None` where it has none or is not
/// built in).
pub(super) fn built_in(name: &str, gpu: &str) -> Option<Hop> {
    let name = if name == "nvlink" { gpus::nvlink(gpu)? } else { name };
    TABLE.iter().find(|(known, _)| *known == name).map(|(_, hop)| *hop)
}

/// All that [`built_in`] may know.
pub(super) fn names() -> Vec<&'static str> {
    std::iter::once("nvlink").chain(TABLE.iter().map(|(name, _)| *name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nvlink_is_the_generation_of_the_gpu() {
        assert_eq!(built_in("nvlink", "H100"), built_in("nvlink4", "anything"));
        assert_eq!(built_in("nvlink", "T4"), None);
        for gpu in gpus::names() {
            assert!(gpus::nvlink(gpu).is_none_or(|generation| built_in(generation, gpu).is_some()), "{gpu}");
        }
    }
}

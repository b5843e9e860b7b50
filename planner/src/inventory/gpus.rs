//! The GPUs known by name: memory and dense peak rates as on the vendors' data sheets.
//!
//! Rates are of matrix units without sparsity, 16-bit products added up in 32 bits; `fp32` is true fp32 (no TF32).
//! What the silicon lacks runs at the rate of fp32: bf16 before Ampere. Memory is in decimal gigabytes, a little below
//! what is built in, which leaves room for driver and context. `MI250` is the package of two dies. Peaks are not reached:
//! `efficiency` is the share of them that large matrix products get, fitted to published runs (`truth`) where there are
//! any; what goes through memory comes on top, at its rate (`cost::compute`).
//!
//! Not here: prices (they change; give them in the inventory).

use super::Gpu;

/// Share of the peak that training achieves on a GPU that an inventory describes without saying so.
pub(super) const EFFICIENCY: f64 = 0.5;
/// Share that matrix products reach on a built-in GPU of which no runs are at hand: between those of A100 and H100 and
/// those of V100 and T4.
const UNMEASURED: f64 = 0.65;

/// A row of the table.
struct Row {
    name: &'static str,
    memory_gb: u64,
    bf16_tflops_per_s: f64,
    fp16_tflops_per_s: f64,
    fp32_tflops_per_s: f64,
    memory_gb_per_s: f64,
    /// Share of the peak that large 16-bit matrix products reach.
    efficiency: f64,
    /// What `intra = "nvlink"` means on this GPU.
    nvlink: Option<&'static str>,
}

#[rustfmt::skip]
const TABLE: &[Row] = &[
    row("A100-40G",     40, [ 312.0,  312.0,  19.5], 1555.0, 0.83, Some("nvlink3")),
    row("A100-80G",     80, [ 312.0,  312.0,  19.5], 2039.0, 0.83, Some("nvlink3")),
    row("H100",         80, [ 989.4,  989.4,  66.9], 3352.0, 0.66, Some("nvlink4")),
    row("H100-PCIe",    80, [ 756.0,  756.0,  51.0], 2000.0, UNMEASURED, None),
    row("H200",        141, [ 989.4,  989.4,  66.9], 4800.0, 0.66, Some("nvlink4")),
    row("B200",        180, [2250.0, 2250.0,  75.0], 8000.0, UNMEASURED, Some("nvlink5")),
    row("GH200",        96, [ 989.4,  989.4,  66.9], 4000.0, 0.66, Some("nvlink4")),
    row("A10",          24, [ 125.0,  125.0,  31.2],  600.0, UNMEASURED, None),
    row("A10G",         24, [  70.0,   70.0,  35.0],  600.0, UNMEASURED, None),
    row("L4",           24, [ 121.0,  121.0,  30.3],  300.0, UNMEASURED, None),
    row("L40S",         48, [ 362.0,  362.0,  91.6],  864.0, UNMEASURED, None),
    row("A40",          48, [ 149.7,  149.7,  37.4],  696.0, UNMEASURED, None),
    row("V100-16G",     16, [  15.7,  125.0,  15.7],  900.0, 0.62, Some("nvlink2")),
    row("V100-32G",     32, [  15.7,  125.0,  15.7],  900.0, 0.62, Some("nvlink2")),
    row("T4",           16, [   8.1,   65.0,   8.1],  320.0, 0.24, None),
    row("RTX-3090",     24, [  71.0,   71.0,  35.6],  936.0, UNMEASURED, None),
    row("RTX-4090",     24, [ 165.2,  165.2,  82.6], 1008.0, UNMEASURED, None),
    row("RTX-2080Ti",   11, [  13.4,   53.8,  13.4],  616.0, UNMEASURED, None),
    row("Titan-RTX",    24, [  16.3,  130.5,  16.3],  672.0, UNMEASURED, None),
    row("MI250",       128, [ 362.1,  362.1,  45.3], 3277.0, UNMEASURED, None),
    row("MI250X",      128, [ 383.0,  383.0,  47.9], 3277.0, UNMEASURED, None),
    row("MI300X",      192, [1307.4, 1307.4, 163.4], 5300.0, UNMEASURED, None),
    row("MI325X",      256, [1307.4, 1307.4, 163.4], 6000.0, UNMEASURED, None),
];

const fn row(
    name: &'static str,
    memory_gb: u64,
    [bf16_tflops_per_s, fp16_tflops_per_s, fp32_tflops_per_s]: [f64; 3],
    memory_gb_per_s: f64,
    efficiency: f64,
    nvlink: Option<&'static str>,
) -> Row {
    Row {
        name,
        memory_gb,
        bf16_tflops_per_s,
        fp16_tflops_per_s,
        fp32_tflops_per_s,
        memory_gb_per_s,
        efficiency,
        nvlink,
    }
}

/// The built-in GPU of that name.
pub(crate) fn built_in(name: &str) -> Option<Gpu> {
    let row = TABLE.iter().find(|row| row.name == name)?;
    Some(Gpu {
        name: row.name.into(),
        memory_bytes: row.memory_gb * 1_000_000_000,
        bf16_flops_per_s: row.bf16_tflops_per_s * 1e12,
        fp16_flops_per_s: row.fp16_tflops_per_s * 1e12,
        fp32_flops_per_s: row.fp32_tflops_per_s * 1e12,
        efficiency: row.efficiency,
        memory_bytes_per_s: Some(row.memory_gb_per_s * 1e9),
        price_usd_per_hour: None,
        profile: None,
    })
}

/// The generation of NVLink that a built-in GPU has between all GPUs of a host.
pub(super) fn nvlink(name: &str) -> Option<&'static str> {
    TABLE.iter().find(|row| row.name == name)?.nvlink
}

pub(crate) fn names() -> Vec<&'static str> {
    TABLE.iter().map(|row| row.name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_units_it_says() {
        let a100 = built_in("A100-80G").unwrap();
        assert_eq!((a100.memory_bytes, a100.bf16_flops_per_s), (80_000_000_000, 312e12));
        assert_eq!(nvlink("A100-80G"), Some("nvlink3"));
        for name in names() {
            let gpu = built_in(name).unwrap();
            assert!(
                gpu.fp32_flops_per_s <= gpu.bf16_flops_per_s && gpu.bf16_flops_per_s <= gpu.fp16_flops_per_s,
                "{name}"
            );
        }
    }

    #[test]
    fn names_are_unique() {
        let mut names = names();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), TABLE.len());
    }
}

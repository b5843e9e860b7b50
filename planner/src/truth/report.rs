//! Predicted beside measured: a table of runs, and per source how far off and in what order.

use std::fmt::Write as _;

use serde::Serialize;

use super::Judged;

/// How well a source's runs are predicted.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Whose measurements.
    pub source: String,
    /// Runs.
    pub runs: usize,
    /// Mean of |predicted / measured - 1|.
    pub mean_error: f64,
    /// The largest of them.
    pub worst_error: f64,
    /// Mean of predicted / measured - 1.
    pub bias: f64,
    /// Spearman's, of seconds per step; 1 for a single run.
    pub rank_correlation: f64,
    /// As `mean_error`, of peak memory, where it was measured.
    pub mean_memory_error: Option<f64>,
}

/// One summary a source, in the order in which they first appear.
pub fn summaries(judged: &[Judged]) -> Vec<Summary> {
    let mut sources: Vec<&str> = Vec::new();
    for run in judged {
        if !sources.contains(&run.run.source.as_str()) {
            sources.push(&run.run.source);
        }
    }
    sources.into_iter().map(|source| summary(source, judged)).collect()
}

fn summary(source: &str, judged: &[Judged]) -> Summary {
    let runs: Vec<&Judged> = judged.iter().filter(|j| j.run.source == source).collect();
    let errors: Vec<f64> = runs.iter().map(|j| error(j)).collect();
    let memory: Vec<f64> = runs.iter().filter_map(|j| memory_error(j)).map(f64::abs).collect();
    let (predicted, measured) = (
        runs.iter().map(|j| j.predicted_s).collect::<Vec<_>>(),
        runs.iter().map(|j| j.run.seconds).collect::<Vec<_>>(),
    );
    Summary {
        source: source.into(),
        runs: runs.len(),
        mean_error: mean(&errors.iter().map(|e| e.abs()).collect::<Vec<_>>()),
        worst_error: errors.iter().map(|e| e.abs()).fold(0.0, f64::max),
        bias: mean(&errors),
        rank_correlation: spearman(&predicted, &measured),
        mean_memory_error: (!memory.is_empty()).then(|| mean(&memory)),
    }
}

/// Share by which the prediction is above what was measured.
fn error(judged: &Judged) -> f64 {
    judged.predicted_s / judged.run.seconds - 1.0
}

fn memory_error(judged: &Judged) -> Option<f64> {
    let predicted = judged.predicted_memory_bytes?;
    judged.run.memory_gb.map(|gb| predicted / (gb * 1e9) - 1.0)
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Pearson's correlation of ranks, equal values sharing the mean of theirs.
fn spearman(a: &[f64], b: &[f64]) -> f64 {
    if a.len() < 2 {
        return 1.0;
    }
    let (a, b) = (ranks(a), ranks(b));
    let (mean_a, mean_b) = (mean(&a), mean(&b));
    let product: f64 = a.iter().zip(&b).map(|(x, y)| (x - mean_a) * (y - mean_b)).sum();
    let square = |v: &[f64], mean: f64| v.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
    product / (square(&a, mean_a) * square(&b, mean_b)).sqrt()
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let below = |v: f64| values.iter().filter(|&&w| w < v).count() as f64;
    let equal = |v: f64| values.iter().filter(|&&w| w == v).count() as f64;
    values.iter().map(|&v| below(v) + (equal(v) - 1.0) / 2.0).collect()
}

/// The summaries, and above them every run of sources with at most `most_rows` runs.
pub fn render(judged: &[Judged], most_rows: usize) -> String {
    let mut text = String::new();
    let summaries = summaries(judged);
    for summary in summaries.iter().filter(|s| s.runs <= most_rows) {
        let _ = writeln!(text, "{}", summary.source);
        let _ = writeln!(
            text,
            "  {:<28} {:>6} {:>6} {:>11} {:>6}  {:>9} {:>9} {:>7}   {:>9} {:>9} {:>7}",
            "hosts",
            "hidden",
            "batch",
            "TP/DP/PP",
            "micro",
            "measured",
            "predicted",
            "error",
            "GB",
            "predicted",
            "error"
        );
        judged.iter().filter(|j| j.run.source == summary.source).for_each(|j| text.push_str(&row(j)));
    }
    let _ = writeln!(
        text,
        "{:<16} {:>5} {:>11} {:>7} {:>7} {:>17} {:>13}",
        "source", "runs", "mean error", "worst", "bias", "rank correlation", "memory error"
    );
    summaries.iter().for_each(|s| text.push_str(&summary_row(s)));
    text.push_str(
        "\nPipelines are simulated as discrete events, equal replicas once and a tensor-parallel group as one lane;\n\
         gradients, the optimiser's step and interleaved chunks are closed forms on top (docs/cost-model.md).\n",
    );
    text
}

fn row(judged: &Judged) -> String {
    let run = &judged.run;
    let degrees = format!("{}/{}/{}", run.tensor, run.data, run.pipeline);
    let memory = match (run.memory_gb, judged.predicted_memory_bytes, memory_error(judged)) {
        (Some(gb), Some(bytes), Some(error)) => {
            format!("   {gb:>9.1} {:>9.1} {:>+6.1}%", bytes / 1e9, 100.0 * error)
        }
        _ => String::new(),
    };
    format!(
        "  {:<28} {:>6} {:>6} {degrees:>11} {:>6}  {:>8.3}s {:>8.3}s {:>+6.1}%{memory}\n",
        brief(&run.hosts),
        run.hidden,
        run.batch,
        run.micro_batch,
        run.seconds,
        judged.predicted_s,
        100.0 * error(judged),
    )
}

fn brief(hosts: &str) -> String {
    if hosts.len() <= 28 { hosts.to_owned() } else { format!("{}..", &hosts[..26]) }
}

fn summary_row(s: &Summary) -> String {
    let memory = s.mean_memory_error.map_or(String::new(), |e| format!("{:.1}%", 100.0 * e));
    format!(
        "{:<16} {:>5} {:>10.1}% {:>6.1}% {:>+6.1}% {:>17.3} {memory:>13}\n",
        s.source,
        s.runs,
        100.0 * s.mean_error,
        100.0 * s.worst_error,
        100.0 * s.bias,
        s.rank_correlation
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rank_correlation_is_spearmans() {
        assert_eq!(spearman(&[1.0, 2.0, 3.0], &[10.0, 20.0, 90.0]), 1.0);
        assert_eq!(spearman(&[1.0, 2.0, 3.0], &[3.0, 2.0, 1.0]), -1.0);
        // Ranks 0, 1.5, 1.5, 3 against 0, 2, 1, 3: 4.5 / sqrt(4.5 x 5).
        let tied = spearman(&[1.0, 2.0, 2.0, 4.0], &[1.0, 5.0, 3.0, 9.0]);
        assert!((tied - 4.5 / 22.5f64.sqrt()).abs() < 1e-12, "{tied}");
    }
}

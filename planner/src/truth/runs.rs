//! Tables of measured runs: lines of comma-separated values under a line that names the columns, `#` begins a comment.
//!
//! ```text
//!   source      whose measurement                         hosts       in rank order: `dgx*4 other:2` (2 GPUs of it)
//!   framework   of `cost::framework`                      profile     of `measured/profiles.csv`, or empty
//!   kind .. sequence   as in model.toml                   mlp_width, chunks, split, memory_gb   may be empty
//!   split       layers of each stage, by spaces           seconds     of a step
//! ```
//! vTrain's own file of single-node runs is taken too, known by its first line.

use serde::Serialize;

use super::TruthError;
use crate::uniform::even_layers;

/// One measured run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Run {
    /// Whose measurement.
    pub source: String,
    /// Hosts in rank order, kinds of `measured/testbeds.toml`.
    pub hosts: String,
    /// Name of a [`crate::cost::framework::Framework`].
    pub framework: String,
    /// Name of a measured profile, or empty.
    pub profile: String,
    /// `gpt` or `llama`.
    pub kind: String,
    /// As in model.toml.
    pub precision: String,
    /// As in model.toml.
    pub recompute: String,
    /// Hidden width.
    pub hidden: u32,
    /// Transformer layers.
    pub layers: u32,
    /// Attention heads.
    pub heads: u32,
    /// Inner width of the MLP where it is not the kind's usual.
    pub mlp_width: Option<u32>,
    /// Vocabulary.
    pub vocab: u32,
    /// Tokens per sequence.
    pub sequence: u32,
    /// Sequences per step.
    pub batch: u32,
    /// Tensor-parallel degree.
    pub tensor: u32,
    /// Data-parallel degree.
    pub data: u32,
    /// Pipeline-parallel degree.
    pub pipeline: u32,
    /// Model chunks a rank (virtual stages).
    pub chunks: u32,
    /// Sequences per microbatch.
    pub micro_batch: u32,
    /// Layers of each stage.
    pub split: Vec<u32>,
    /// Measured seconds per step.
    pub seconds: f64,
    /// Measured peak, decimal gigabytes.
    pub memory_gb: Option<f64>,
}

impl Run {
    /// `source, tensor/data/pipeline microbatch`.
    pub fn name(&self) -> String {
        let Run { source, tensor, data, pipeline, micro_batch, hidden, .. } = self;
        format!("{source}, width {hidden}, {tensor}/{data}/{pipeline} microbatches of {micro_batch}")
    }
}

/// The runs of a table; `path` is for errors.
pub(super) fn parse(path: &str, text: &str) -> Result<Vec<Run>, TruthError> {
    let lines = || (1..).zip(text.lines().map(str::trim)).filter(|(_, line)| !line.is_empty());
    if text.starts_with(VTRAIN) {
        let rows = lines().filter(|(_, line)| !line.starts_with('#'));
        return rows.map(|(number, line)| vtrain(&Fields::new(path, number, VTRAIN, line)?)).collect();
    }
    let mut rows = lines().filter(|(_, line)| !line.starts_with('#'));
    let Some((_, columns)) = rows.next() else { return Ok(vec![]) };
    rows.map(|(number, line)| run(&Fields::new(path, number, columns, line)?)).collect()
}

fn run(fields: &Fields) -> Result<Run, TruthError> {
    let (layers, pipeline) = (fields.number("layers")?, fields.number("pipeline")?);
    Ok(Run {
        source: fields.text("source")?,
        hosts: fields.text("hosts")?,
        framework: fields.text("framework")?,
        profile: fields.text("profile")?,
        kind: fields.text("kind")?,
        precision: fields.text("precision")?,
        recompute: fields.text("recompute")?,
        hidden: fields.number("hidden")?,
        layers,
        heads: fields.number("heads")?,
        mlp_width: fields.optional("mlp_width")?,
        vocab: fields.number("vocab")?,
        sequence: fields.number("sequence")?,
        batch: fields.number("batch")?,
        tensor: fields.number("tensor")?,
        data: fields.number("data")?,
        pipeline,
        chunks: fields.optional("chunks")?.unwrap_or(1),
        micro_batch: fields.number("micro_batch")?,
        split: fields.split(layers, pipeline)?,
        seconds: fields.number("seconds")?,
        memory_gb: fields.optional("memory_gb")?,
    })
}

/// First line of vTrain's table, whose sizes are printed as integers or as floats.
const VTRAIN: &str = "# GPUs,global batch,micro batch,hidden size,attention heads,# layers,sequence length,tensor parallelism,data parallelism,pipeline parallelism,iteration time (ms)";

fn vtrain(fields: &Fields) -> Result<Run, TruthError> {
    let (layers, pipeline) = (fields.size("# layers")?, fields.size("pipeline parallelism")?);
    Ok(Run {
        source: "vtrain-single".into(),
        hosts: "vtrain".into(),
        framework: "megatron".into(),
        profile: String::new(),
        kind: "gpt".into(),
        precision: "fp16".into(),
        recompute: "full".into(),
        hidden: fields.size("hidden size")?,
        layers,
        heads: fields.size("attention heads")?,
        mlp_width: None,
        vocab: 51_200,
        sequence: fields.size("sequence length")?,
        batch: fields.size("global batch")?,
        tensor: fields.size("tensor parallelism")?,
        data: fields.size("data parallelism")?,
        pipeline,
        chunks: 1,
        micro_batch: fields.size("micro batch")?,
        split: even_layers(layers, pipeline.max(1)),
        seconds: fields.number::<f64>("iteration time (ms)")? / 1e3,
        memory_gb: None,
    })
}

/// One line under its columns.
struct Fields<'a> {
    path: &'a str,
    line: usize,
    columns: Vec<&'a str>,
    values: Vec<&'a str>,
}

impl<'a> Fields<'a> {
    fn new(path: &'a str, line: usize, columns: &'a str, values: &'a str) -> Result<Self, TruthError> {
        // Only the first column's mark of a comment goes: vTrain names another `# layers`.
        let columns = columns.strip_prefix("# ").unwrap_or(columns).split(',').map(str::trim).collect();
        let fields = Fields { path, line, columns, values: values.split(',').map(str::trim).collect() };
        let (expected, found) = (fields.columns.len(), fields.values.len());
        match expected == found {
            true => Ok(fields),
            false => {
                Err(fields.wrong(format!("{found} values, expected the {expected} of the columns' line")))
            }
        }
    }

    fn value(&self, column: &str) -> Result<&'a str, TruthError> {
        let position = self.columns.iter().position(|c| *c == column);
        position
            .map(|i| self.values[i])
            .ok_or_else(|| self.wrong(format!("the table has no column `{column}`")))
    }

    fn text(&self, column: &str) -> Result<String, TruthError> {
        self.value(column).map(str::to_owned)
    }

    fn number<T: std::str::FromStr + PartialOrd + Default>(&self, column: &str) -> Result<T, TruthError> {
        let value = self.value(column)?;
        let above_zero = value.parse().ok().filter(|n: &T| *n > T::default());
        above_zero.ok_or_else(|| self.wrong(format!("`{column}` is `{value}`, expected a number above 0")))
    }

    fn size(&self, column: &str) -> Result<u32, TruthError> {
        let value = self.number::<f64>(column)?;
        let whole = value.fract() == 0.0 && value <= f64::from(u32::MAX);
        if whole {
            Ok(value as u32)
        } else {
            Err(self.wrong(format!("`{column}` is {value}, expected a whole number")))
        }
    }

    fn optional<T: std::str::FromStr + PartialOrd + Default>(
        &self,
        column: &str,
    ) -> Result<Option<T>, TruthError> {
        if self.value(column)?.is_empty() { Ok(None) } else { self.number(column).map(Some) }
    }

    fn split(&self, layers: u32, pipeline: u32) -> Result<Vec<u32>, TruthError> {
        let value = self.value("split")?;
        if value.is_empty() {
            return Ok(even_layers(layers, pipeline));
        }
        let split: Option<Vec<u32>> = value.split_whitespace().map(|n| n.parse().ok()).collect();
        let split = split.filter(|s| s.len() as u32 == pipeline && s.iter().sum::<u32>() == layers);
        split.ok_or_else(|| {
            self.wrong(format!("`split` is `{value}`, expected {pipeline} numbers that make {layers} layers"))
        })
    }

    fn wrong(&self, what: String) -> TruthError {
        TruthError::Line { path: self.path.into(), line: self.line, what }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: &str = "source,hosts,framework,profile,kind,precision,recompute,hidden,layers,heads,mlp_width,vocab,sequence,batch,tensor,data,pipeline,chunks,micro_batch,split,seconds,memory_gb";

    fn table(line: &str) -> Result<Vec<Run>, String> {
        parse("t.csv", &format!("# a comment\n{COLUMNS}\n{line}\n")).map_err(|e| e.to_string())
    }

    #[test]
    fn a_line_is_a_run_and_what_is_empty_is_as_usual() {
        let runs = table("x,vtrain*2,megatron,,gpt,fp16,full,64,5,4,,256,128,16,1,8,2,,1,,1.5,").unwrap();
        assert_eq!(
            (runs[0].split.as_slice(), runs[0].chunks, runs[0].memory_gb),
            ([2, 3].as_slice(), 1, None)
        );
        let runs =
            table("x,vtrain*2,megatron,,gpt,fp16,full,64,5,4,,256,128,16,1,8,2,,1,4 1,1.5,9.6").unwrap();
        assert_eq!((runs[0].split.as_slice(), runs[0].memory_gb), ([4, 1].as_slice(), Some(9.6)));
    }

    #[test]
    fn a_line_that_is_no_run_is_shown() {
        let error = |line: &str| table(line).unwrap_err();
        assert_eq!(error("x,y"), "t.csv, line 3: 2 values, expected the 22 of the columns' line");
        let split = error("x,vtrain*2,megatron,,gpt,fp16,full,64,5,4,,256,128,16,1,8,2,,1,4 2,1.5,");
        assert_eq!(split, "t.csv, line 3: `split` is `4 2`, expected 2 numbers that make 5 layers");
        let zero = error("x,vtrain*2,megatron,,gpt,fp16,full,0,5,4,,256,128,16,1,8,2,,1,,1.5,");
        assert_eq!(zero, "t.csv, line 3: `hidden` is `0`, expected a number above 0");
    }

    #[test]
    fn vtrains_own_table_is_taken() {
        let runs = parse("v.csv", &format!("{VTRAIN}\n8,4.0,1,1024,16,16,1024,1,2,4,77.2\n")).unwrap();
        assert_eq!((runs[0].data, runs[0].pipeline, runs[0].batch), (2, 4, 4));
        assert!((runs[0].seconds - 0.0772).abs() < 1e-12);
    }
}

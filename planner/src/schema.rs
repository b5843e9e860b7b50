//! The format of `plan.json` as a JSON Schema (draft 2020-12), for editors and for programs that write plans.
//!
//! It is derived from the types that read the file, so that it cannot drift from what is accepted: every key, its type,
//! whether it may be left out; unknown keys are refused. Source: json-schema.org/draft/2020-12.
//!
//! Limits: it says what a plan looks like, not whether it holds together: that every rank stands once, that layers
//! follow each other, that hosts exist. `plan::read` checks that.
//!
//! Not here: schemas of the TOML files, whose reader names the nearest key itself.

use schemars::generate::SchemaSettings;

use crate::plan::PlanFile;

/// The schema of `plan.json`.
pub fn plan() -> serde_json::Value {
    SchemaSettings::draft2020_12()
        .for_deserialize()
        .into_generator()
        .into_root_schema_for::<PlanFile>()
        .to_value()
}

//! Executes a plan: launch, rendezvous, worker, schedule, engine, exchange, checkpoint, report.

pub mod checkpoint;
pub mod data;
pub mod emulate;
pub mod engine;
pub mod exchange;
pub mod launch;
pub mod ledger;
pub mod pace;
pub mod predict;
pub mod rendezvous;
pub mod report;
pub mod run_clock;
pub mod settings;
pub mod train;
pub mod worker;

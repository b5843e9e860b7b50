//! Executes a plan: launch, rendezvous, worker, schedule, engine, exchange, checkpoint, report.

pub mod engine;
pub mod launch;
pub mod report;

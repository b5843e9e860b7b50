//! Pure planning: inventory and model in, plan out. No sockets, no clocks but the solver's, no I/O but reading and
//! writing its files. Data flows one way: inventory -> topology -> cost -> search -> plan -> schedule -> simulate, export.

pub mod challenge;
pub mod cost;
pub mod durable;
pub mod explain;
pub mod export;
pub mod input;
pub mod inventory;
pub mod model;
pub mod plan;
pub mod profile;
pub mod schedule;
pub mod schema;
pub mod search;
pub mod simulate;
pub mod topology;
pub mod trace;
pub mod truth;
pub mod uniform;
pub mod units;

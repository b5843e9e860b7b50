//! Codecs for what crosses narrow links. No I/O, no clocks, never waits.

//! Moves bytes between ranks. Knows no tensor, no codec, no plan.

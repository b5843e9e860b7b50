//! search.

#[cfg(test)]
pub(crate) mod fixture;

//! The `fruixd` program.
fn main() {}

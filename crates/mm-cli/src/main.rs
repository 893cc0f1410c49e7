//! mm
fn main() {}

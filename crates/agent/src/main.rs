//! PID 1 of container machines.

fn main() {}

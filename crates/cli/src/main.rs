//! Run Zmachines: machines started from flists.

fn main() {}

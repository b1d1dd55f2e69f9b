//! The real program: hostile files, independent readers, limits, servers.

mod hostile;
mod independent;
mod limits;
mod servers;

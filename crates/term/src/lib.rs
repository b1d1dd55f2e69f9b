//! What commands show on a terminal, and what they read from one: tables and JSON, progress, a guest's terminal.
//!
//! | module | owns |
//! |---|---|
//! | [`foreign`] | words of other tools, and what does the same here |
//! | [`output`] | lines, tables and JSON on standard output, in widths that fit |
//! | [`progress`] | how far downloads and copies are |
//! | [`terminal`] | the user's terminal while a process of a guest has it |
//!
//! It knows no command and no option.

pub mod foreign;
pub mod output;
pub mod progress;
pub mod terminal;

//! What a child does that copies files: between its standard streams and the guest's tree.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::Path;

use zmachine_agent_protocol::Transfer;
use zmachine_transfer::{Keep, TransferError, receive, send};

/// The status for a path that is not there.
const NOT_THERE: i32 = 3;

/// Copies; the exit status. Standard error tells the rest, one line each.
pub(super) fn run(transfer: &Transfer) -> i32 {
    let warn = |text: String| drop(writeln!(io::stderr(), "warning: {text}"));
    let result = match transfer {
        Transfer::Send { path } => send(
            Path::new(path),
            io::BufWriter::with_capacity(64 * 1024, io::stdout()),
            warn,
        ),
        Transfer::Receive {
            target,
            name,
            contents,
            keep_owner,
        } => {
            let keep = Keep {
                owner: *keep_owner,
                special_bits: true,
                devices: true,
            };
            let input = io::BufReader::with_capacity(64 * 1024, io::stdin());
            receive(input, Path::new(target), OsStr::new(name), *contents, keep, warn)
        }
    };
    match result {
        Ok(()) => 0,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            match error {
                TransferError::NotFound { .. } | TransferError::NoDirectory { .. } => NOT_THERE,
                _ => 1,
            }
        }
    }
}

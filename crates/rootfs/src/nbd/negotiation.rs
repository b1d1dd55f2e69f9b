//! The fixed newstyle negotiation: the client asks for options until it takes the one export there is.

use std::io;
use std::os::fd::OwnedFd;

use super::wire::{read_exactly, skip, write_all};
use super::{LONGEST, take};

const MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// `NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES`, the server's and the client's.
const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;

const OPTION_EXPORT_NAME: u32 = 1;
const OPTION_ABORT: u32 = 2;
const OPTION_INFO: u32 = 6;
const OPTION_GO: u32 = 7;

const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_UNSUPPORTED: u32 = 1 << 31 | 1;
const REPLY_INVALID: u32 = 1 << 31 | 3;

const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

/// `NBD_FLAG_HAS_FLAGS | NBD_FLAG_READ_ONLY | NBD_FLAG_SEND_FLUSH | NBD_FLAG_CAN_MULTI_CONN`
const TRANSMISSION: u16 = 1 | 2 | 4 | 1 << 8;

/// The longest option in bytes: a name has 4096 at the most.
const OPTION_LIMIT: u32 = 8192;
/// Options of one client; an honest one needs a handful.
const OPTIONS: usize = 64;

/// Answers options until the client takes the export, whose size is `bytes`. `false` when it went instead.
///
/// # Errors
/// When it breaks the protocol, or the connection breaks.
pub(super) fn negotiate(socket: &OwnedFd, bytes: u64) -> io::Result<bool> {
    let mut greeting = MAGIC.to_be_bytes().to_vec();
    greeting.extend(OPTION_MAGIC.to_be_bytes());
    greeting.extend((FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
    write_all(socket, &greeting, &[])?;
    let mut flags = [0; 4];
    read_exactly(socket, &mut flags)?;
    let flags = u32::from_be_bytes(flags);
    if flags & !u32::from(FIXED_NEWSTYLE | NO_ZEROES) != 0 || flags & u32::from(FIXED_NEWSTYLE) == 0 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the client cannot negotiate",
        ));
    }
    for _ in 0..OPTIONS {
        let mut head = [0; 16];
        read_exactly(socket, &mut head)?;
        let (option, length) = parse_option(&head)?;
        if length > OPTION_LIMIT {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "an option is too long"));
        }
        match option {
            OPTION_EXPORT_NAME => {
                skip(socket, length)?;
                let mut export = bytes.to_be_bytes().to_vec();
                export.extend(TRANSMISSION.to_be_bytes());
                if flags & u32::from(NO_ZEROES) == 0 {
                    export.extend([0; 124]);
                }
                write_all(socket, &export, &[])?;
                return Ok(true);
            }
            OPTION_ABORT => {
                skip(socket, length)?;
                // It may be gone by now.
                let _ = reply(socket, option, REPLY_ACK, &[]);
                return Ok(false);
            }
            OPTION_INFO | OPTION_GO => {
                if !is_export(&take(socket, length)?) {
                    reply(socket, option, REPLY_INVALID, b"malformed request")?;
                    continue;
                }
                reply(socket, option, REPLY_INFO, &export_info(bytes))?;
                reply(socket, option, REPLY_INFO, &block_sizes())?;
                reply(socket, option, REPLY_ACK, &[])?;
                if option == OPTION_GO {
                    return Ok(true);
                }
            }
            // Structured replies, contexts, encryption: not needed by whoever reads.
            _ => {
                skip(socket, length)?;
                reply(socket, option, REPLY_UNSUPPORTED, &[])?;
            }
        }
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidData,
        "the client negotiates without end",
    ))
}

/// `{magic u64, option u32, length u32}`
fn parse_option(head: &[u8; 16]) -> io::Result<(u32, u32)> {
    let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    if head[..8] != OPTION_MAGIC.to_be_bytes() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "what came is no NBD option"));
    }
    Ok((word(8), word(12)))
}

/// `{length of the name u32, name, number of information requests u16, those u16}`. There is one export, whatever its name.
fn is_export(data: &[u8]) -> bool {
    let parsed = || {
        let (length, rest) = data.split_first_chunk()?;
        let rest = rest.get(u32::from_be_bytes(*length) as usize..)?;
        let (count, rest) = rest.split_first_chunk()?;
        Some(rest.len() == 2 * usize::from(u16::from_be_bytes(*count)))
    };
    parsed().unwrap_or(false)
}

fn export_info(bytes: u64) -> Vec<u8> {
    let mut info = INFO_EXPORT.to_be_bytes().to_vec();
    info.extend(bytes.to_be_bytes());
    info.extend(TRANSMISSION.to_be_bytes());
    info
}

/// The least, the best and the largest length of a request.
fn block_sizes() -> Vec<u8> {
    let mut info = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
    for size in [1, 4096, LONGEST] {
        info.extend(size.to_be_bytes());
    }
    info
}

/// `{magic u64, option u32, kind u32, length u32, data}`
fn reply(socket: &OwnedFd, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
    let mut head = REPLY_MAGIC.to_be_bytes().to_vec();
    head.extend(option.to_be_bytes());
    head.extend(kind.to_be_bytes());
    head.extend((data.len() as u32).to_be_bytes());
    write_all(socket, &head, data)
}

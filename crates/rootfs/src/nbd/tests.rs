//! A client by hand against the server, and one that does what it may not.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use super::serve;
use crate::report::Reporter;
use crate::test_device::TestDevice;

struct Server {
    dir: tempfile::TempDir,
    bytes: u64,
    data_at: u64,
    content: Vec<u8>,
    stored: std::path::PathBuf,
    /// Where events are read, so that they have a reader.
    _events: UnixStream,
    /// What its disk is made of.
    _rig: tempfile::TempDir,
}

fn server() -> Server {
    let TestDevice {
        device,
        content,
        stored,
        data_sector,
        dir,
    } = TestDevice::new();
    let bytes = device.disk.capacity_sectors() * 512;
    let (events, theirs) = UnixStream::pair().unwrap();
    let reporter = Arc::new(Reporter::new(OwnedFd::from(theirs)).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("s")).unwrap();
    std::thread::spawn(move || serve(&listener, &Arc::new(device), &reporter));
    Server {
        dir: folder,
        bytes,
        data_at: data_sector * 512,
        content,
        stored,
        _events: events,
        _rig: dir,
    }
}

impl Server {
    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.dir.path().join("s")).unwrap();
        let limit = std::time::Duration::from_secs(20);
        stream.set_read_timeout(Some(limit)).unwrap();
        stream
    }

    /// A client that has the export.
    fn client(&self) -> UnixStream {
        let mut stream = self.connect();
        assert_eq!(take::<16>(&mut stream), *b"NBDMAGICIHAVEOPT");
        assert_eq!(take::<2>(&mut stream), [0, 3]);
        stream.write_all(&3u32.to_be_bytes()).unwrap();
        // One that the server has not: it says so, and goes on.
        option(&mut stream, 8, &[]);
        assert_eq!(reply(&mut stream), (8, 1 << 31 | 1, vec![]));
        option(&mut stream, 7, &[0, 0, 0, 0, 0, 0]);
        let (_, kind, info) = reply(&mut stream);
        assert_eq!((kind, &info[..2]), (3, &[0u8, 0][..]));
        assert_eq!(u64::from_be_bytes(info[2..10].try_into().unwrap()), self.bytes);
        assert_eq!(info[11] & 2, 2, "it is read-only");
        assert_eq!(reply(&mut stream).1, 3);
        assert_eq!(reply(&mut stream), (7, 1, vec![]));
        stream
    }
}

fn take<const N: usize>(stream: &mut UnixStream) -> [u8; N] {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

fn option(stream: &mut UnixStream, option: u32, data: &[u8]) {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    stream.write_all(&bytes).unwrap();
}

/// Option, kind and data of a reply to an option.
fn reply(stream: &mut UnixStream) -> (u32, u32, Vec<u8>) {
    assert_eq!(u64::from_be_bytes(take(stream)), 0x0003_e889_0455_65a9);
    let (option, kind) = (u32::from_be_bytes(take(stream)), u32::from_be_bytes(take(stream)));
    let mut data = vec![0; u32::from_be_bytes(take(stream)) as usize];
    stream.read_exact(&mut data).unwrap();
    (option, kind, data)
}

fn request(stream: &mut UnixStream, kind: u16, cookie: u64, offset: u64, length: u32) {
    let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
    bytes.extend(0u16.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    stream.write_all(&bytes).unwrap();
}

/// The errno of the next answer, and its cookie.
fn answer(stream: &mut UnixStream) -> (u32, u64) {
    assert_eq!(u32::from_be_bytes(take(stream)), 0x6744_6698);
    (u32::from_be_bytes(take(stream)), u64::from_be_bytes(take(stream)))
}

#[test]
fn a_client_reads_metadata_a_block_that_must_be_fetched_and_the_zeros_behind_it() {
    let server = server();
    let mut client = server.client();
    let from = server.data_at - 512;
    request(&mut client, 0, 7, from, 512 + 8192);
    assert_eq!(answer(&mut client), (0, 7));
    let mut bytes = vec![0; 512 + 8192];
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes[512..6512], server.content);
    assert!(bytes[6512..].iter().all(|byte| *byte == 0));
    // A second client of the same server, as a copy of the machine is.
    let mut other = server.client();
    request(&mut other, 0, 8, server.data_at + 1, 5);
    assert_eq!(answer(&mut other), (0, 8));
    assert_eq!(take::<5>(&mut other), server.content[1..6]);
}

#[test]
fn what_cannot_be_had_is_an_error_of_that_request_alone() {
    let server = server();
    fs::remove_file(&server.stored).unwrap();
    let mut client = server.client();
    request(&mut client, 0, 1, server.data_at, 4096);
    assert_eq!(answer(&mut client), (5, 1), "no store has the block");
    for (offset, length) in [
        (server.bytes, 512),
        (server.bytes - 1, 2),
        (u64::MAX, 4096),
        (0, 0),
        (0, u32::MAX),
    ] {
        request(&mut client, 0, 2, offset, length);
        assert_eq!(answer(&mut client), (22, 2), "{offset} {length}");
    }
    request(&mut client, 6, 3, 0, 4096);
    assert_eq!(answer(&mut client), (22, 3), "not offered");
    request(&mut client, 3, 4, 0, 0);
    assert_eq!(answer(&mut client), (0, 4), "nothing is ever dirty");
    request(&mut client, 0, 5, 0, 512);
    assert_eq!(answer(&mut client), (0, 5));
}

#[test]
fn a_write_is_refused_and_its_data_are_not_taken_for_requests() {
    let server = server();
    let mut client = server.client();
    request(&mut client, 1, 1, 0, 100_000);
    client.write_all(&vec![0x25; 100_000]).unwrap();
    assert_eq!(answer(&mut client), (1, 1));
    request(&mut client, 3, 2, 0, 0);
    assert_eq!(answer(&mut client), (0, 2));
}

#[test]
fn who_breaks_the_protocol_loses_his_connection_and_nobody_else_does() {
    let server = server();
    let mut good = server.client();
    let mut endless = server.connect();
    take::<18>(&mut endless);
    endless.write_all(&1u32.to_be_bytes()).unwrap();
    for _ in 0..64 {
        // The server may be gone by now.
        let mut bytes = b"IHAVEOPT".to_vec();
        bytes.extend([0, 0, 0, 99, 0, 0, 0, 0]);
        let _ = endless.write_all(&bytes);
    }
    let mut long = server.connect();
    take::<18>(&mut long);
    long.write_all(&1u32.to_be_bytes()).unwrap();
    long.write_all(b"IHAVEOPT\0\0\0\x07\xff\xff\xff\xff").unwrap();
    let mut rubbish = server.client();
    rubbish.write_all(&[0xff; 28]).unwrap();
    for stream in [&mut endless, &mut long, &mut rubbish] {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(!rest.ends_with(b"NBDMAGIC"));
    }
    request(&mut good, 3, 9, 0, 0);
    assert_eq!(answer(&mut good), (0, 9));
}

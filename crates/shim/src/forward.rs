//! Port forwarding: a container runtime dials the loopback of the pod's network namespace, and programs listen on that of the guest.
//!
//! Whatever is dialled there is redirected to one listener of ours, which asks the kernel for the port that was meant and has the guest's
//! agent connect to it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;

use rustix::net::sockopt;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use zmachine_agent_protocol::{Frame, Reply};

use crate::error::ShimError;
use crate::log::Log;
use crate::pod::Pod;

/// What is read at once, in bytes.
const PIECE: usize = 32 * 1024;

/// Forwards what is dialled on the loopback of `namespace` to that of the pod's guest, in threads that end with this process.
///
/// # Errors
/// When this host cannot do it; the pod is as good without it otherwise.
pub(crate) fn start(namespace: &Path, pod: &Arc<Pod>, log: &Log) -> Result<(), ShimError> {
    let failed = |error: io::Error| ShimError::failed("ports of the pod cannot be forwarded", error);
    // In a thread of its own: what it makes there belongs to the namespace, and this process does not.
    let listeners = thread::scope(|scope| {
        let thread = scope.spawn(|| listen(namespace));
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("a thread ended early")))
    });
    for listener in listeners.map_err(failed)? {
        let (pod, log) = (Arc::clone(pod), log.clone());
        let accepting = thread::Builder::new().name("forward".to_owned());
        accepting.spawn(move || accept(&listener, &pod, &log)).map_err(failed)?;
    }
    Ok(())
}

fn listen(namespace: &Path) -> io::Result<Vec<TcpListener>> {
    let file = File::open(namespace)?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
    let ipv4 = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut rules = rule("ip", "127.0.0.1", ipv4.local_addr()?.port());
    let mut listeners = vec![ipv4];
    // A namespace without IPv6 has no such address.
    if let Ok(ipv6) = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) {
        rules.push_str(&rule("ip6", "::1", ipv6.local_addr()?.port()));
        listeners.push(ipv6);
    }
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut input) = nft.stdin.take() {
        input.write_all(rules.as_bytes())?;
    }
    let done = nft.wait_with_output()?;
    match done.status.success() {
        true => Ok(listeners),
        false => Err(io::Error::other(
            String::from_utf8_lossy(&done.stderr).trim().to_owned(),
        )),
    }
}

/// The table goes with the namespace.
fn rule(family: &str, loopback: &str, port: u16) -> String {
    format!(
        "table {family} zmachine-forward {{\n chain out {{\n  type nat hook output priority -100;\n  {family} daddr {loopback} tcp dport != {port} redirect to :{port}\n }}\n}}\n"
    )
}

fn accept(listener: &TcpListener, pod: &Arc<Pod>, log: &Log) {
    loop {
        let Ok((connection, _)) = listener.accept() else {
            // Out of descriptors, most likely: give those that are in use time to end.
            thread::sleep(std::time::Duration::from_millis(100));
            continue;
        };
        let (pod, log) = (Arc::clone(pod), log.clone());
        let carried = thread::Builder::new().name("forwarded".to_owned()).spawn(move || {
            if let Err(error) = forward(connection, &pod) {
                log.line(&format!("forward: {error}"));
            }
        });
        drop(carried);
    }
}

/// The port that was dialled before the redirection.
fn dialled(connection: &TcpStream) -> io::Result<u16> {
    Ok(match connection.local_addr()? {
        SocketAddr::V4(_) => sockopt::ip_original_dst(connection)?.port(),
        SocketAddr::V6(_) => sockopt::ipv6_original_dst(connection)?.port(),
    })
}

fn forward(mut connection: TcpStream, pod: &Pod) -> Result<(), ShimError> {
    let failed = |error: io::Error| ShimError::failed("a connection broke", error);
    let port = dialled(&connection).map_err(failed)?;
    let (mut input, mut output) = pod.engine.dial(&pod.machine, port)?;
    let first = output.next_frame()?.and_then(|frame| frame.parse::<Reply>().ok());
    match first {
        Some(Reply::Done) => {}
        Some(Reply::Error(error)) => return Err(ShimError::NotFound(error.message)),
        _ => return Err(ShimError::Failed("the machine has ended".to_owned())),
    }
    let mut from = connection.try_clone().map_err(failed)?;
    let sending = thread::Builder::new().name("forwarded".to_owned()).spawn(move || {
        let mut buffer = vec![0; PIECE];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            if input.send(&Frame::Stdin(buffer[..length].to_vec())).is_err() {
                return;
            }
        }
        let _ = input.send(&Frame::StdinEof);
    });
    sending.map(drop).map_err(failed)?;
    while let Some(frame) = output.next_frame()? {
        if let Frame::Stdout(bytes) = frame
            && connection.write_all(&bytes).is_err()
        {
            break;
        }
    }
    // The other thread reads no more, and with it the stream ends.
    let _ = connection.shutdown(Shutdown::Both);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_but_the_listener_itself_is_redirected() {
        let rule = rule("ip", "127.0.0.1", 4000);
        assert!(rule.contains("tcp dport != 4000 redirect to :4000"), "{rule}");
    }
}

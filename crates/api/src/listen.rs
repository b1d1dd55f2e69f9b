//! The sockets of the server: made here, or taken over from systemd (`LISTEN_FDS`, sd_listen_fds(3)).

use std::io;
use std::net::TcpListener;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketType};
use zmachine_spec::{Class, Failure};
use zmachine_sys::fd;

/// The first descriptor that systemd hands over.
const FIRST: RawFd = 3;

/// The members of the group, and no others, may do what the owner may.
const MODE: u32 = 0o660;

/// A socket that systemd hands over.
#[derive(Debug)]
pub enum Given {
    /// A Unix socket, with the name that its unit gives it (`FileDescriptorName=`).
    Local(String, UnixListener),
    /// TCP, whatever its name: both APIs, with TLS and tokens.
    Network(TcpListener),
}

/// The sockets that systemd hands over; none when it started us without any. `variable` gives `LISTEN_PID`, `LISTEN_FDS` and
/// `LISTEN_FDNAMES`.
///
/// # Errors
/// When one of them is no descriptor, or no socket that listens for streams.
pub fn inherited(variable: impl Fn(&str) -> Option<String>) -> Result<Vec<Given>, Failure> {
    let is_ours = variable("LISTEN_PID").and_then(|pid| pid.parse().ok()) == Some(std::process::id());
    let count: RawFd = variable("LISTEN_FDS").and_then(|count| count.parse().ok()).unwrap_or(0);
    if !is_ours {
        return Ok(Vec::new());
    }
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':').map(str::to_owned);
    let mut taken = |number| {
        let descriptor = fd::take_inherited(number).map_err(|e| Failure::from_error(Class::Usage, &e));
        let given = descriptor.and_then(|descriptor| given(descriptor, names.next().unwrap_or_default()));
        given.map_err(|failure| {
            failure
                .context(format!("the descriptor {number} of LISTEN_FDS cannot be used"))
                .hint("the unit needs ListenStream= with the path of a socket, or with a port")
        })
    };
    (FIRST..FIRST.saturating_add(count)).map(&mut taken).collect()
}

fn given(descriptor: OwnedFd, name: String) -> Result<Given, Failure> {
    let listens = rustix::net::sockopt::socket_acceptconn(&descriptor).map_err(io::Error::from)?;
    let is_stream = rustix::net::sockopt::socket_type(&descriptor).map_err(io::Error::from)? == SocketType::STREAM;
    if !listens || !is_stream {
        return Err(Failure::new(Class::Usage, "nobody can connect to it"));
    }
    match rustix::net::sockopt::socket_domain(&descriptor).map_err(io::Error::from)? {
        AddressFamily::UNIX => {
            let listener = UnixListener::from(descriptor);
            listener.set_nonblocking(true)?;
            Ok(Given::Local(name, listener))
        }
        AddressFamily::INET | AddressFamily::INET6 => Ok(Given::Network(TcpListener::from(descriptor))),
        other => Err(Failure::new(
            Class::Usage,
            format!("it is of the address family {}", other.as_raw()),
        )),
    }
}

/// Makes the socket at `path`, in the place of one that nobody listens on any more.
///
/// # Errors
/// [`Class::Conflict`] when somebody listens there, or something else is there; [`Class::Usage`] for an unknown group.
pub fn bind(path: &Path, group: Option<&str>) -> Result<UnixListener, Failure> {
    let named = |e: io::Error| Failure::from(e).context(format!("no socket can be made at {}", path.display()));
    let group = group.map(group_id).transpose()?;
    match path.symlink_metadata() {
        Ok(file) if !file.file_type().is_socket() => {
            let message = format!("{} is there, and no socket", path.display());
            return Err(Failure::new(Class::Conflict, message).hint("choose another path"));
        }
        Ok(_) if UnixStream::connect(path).is_ok() => {
            let message = format!("a server listens on {} already", path.display());
            return Err(Failure::new(Class::Conflict, message).hint("stop it first, or choose another path"));
        }
        // Left by one that was killed.
        Ok(_) => std::fs::remove_file(path).map_err(named)?,
        Err(_) => {
            if let Some(folder) = path.parent() {
                zmachine_sys::file::make_dirs(folder)?;
            }
        }
    }
    if group.is_some() {
        require_way(path)?;
    }
    // Bound under another name, and there only with its mode and group: nobody gets in before.
    let new = hidden(path);
    let _ = std::fs::remove_file(&new);
    let listener = UnixListener::bind(&new).map_err(named)?;
    let placed = std::fs::set_permissions(&new, std::fs::Permissions::from_mode(MODE))
        .and_then(|()| match group {
            Some(group) => std::os::unix::fs::chown(&new, None, Some(group)),
            None => Ok(()),
        })
        .and_then(|()| std::fs::rename(&new, path));
    if let Err(error) = placed {
        let _ = std::fs::remove_file(&new);
        return Err(named(error));
    }
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// That others than the owner can get to a socket at all.
fn require_way(path: &Path) -> Result<(), Failure> {
    let folders = path.ancestors().skip(1).filter(|folder| !folder.as_os_str().is_empty());
    for folder in folders {
        let mode = folder.metadata().map_or(0, |folder| folder.permissions().mode());
        if mode & 0o011 == 0 {
            let message = format!(
                "the members of a group cannot get to {}: {} is for its owner alone",
                path.display(),
                folder.display()
            );
            return Err(Failure::new(Class::Usage, message)
                .hint("choose a path in another folder, as /run/zmachine-docker.sock"));
        }
    }
    Ok(())
}

fn hidden(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    path.with_file_name(name)
}

/// The number of a group of this host, by its name or as it is.
fn group_id(name: &str) -> Result<u32, Failure> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
    let found = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    });
    found.ok_or_else(|| {
        let message = format!("there is no group '{name}' on this host");
        Failure::new(Class::Usage, message).hint(format!("make it with 'groupadd {name}', or name another"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_has_its_mode_and_takes_the_place_of_one_that_nobody_listens_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/api.sock");
        let listener = bind(&path, None).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, MODE);
        let failure = bind(&path, None).unwrap_err();
        assert!(failure.to_string().contains("listens"), "{failure}");
        drop(listener);
        let _next = bind(&path, None).unwrap();
        assert!(UnixStream::connect(&path).is_ok());
    }

    #[test]
    fn what_is_no_socket_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "mine").unwrap();
        assert_eq!(bind(&path, None).unwrap_err().class, Class::Conflict);
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
        let failure = bind(&folder.path().join("s"), Some("no-such-group")).unwrap_err();
        assert!(failure.to_string().contains("no-such-group"), "{failure}");
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let own = rustix::process::getgid().as_raw().to_string();
        let failure = bind(&folder.path().join("s"), Some(&own)).unwrap_err();
        assert!(failure.to_string().contains("cannot get to"), "{failure}");
    }

    #[test]
    fn a_socket_is_known_by_what_it_is_and_one_that_does_not_listen_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let unix = UnixListener::bind(folder.path().join("s")).unwrap();
        assert!(matches!(given(unix.into(), "api".into()), Ok(Given::Local(name, _)) if name == "api"));
        for address in ["127.0.0.1:0", "[::1]:0"] {
            // Not every host has IPv6.
            let Ok(tcp) = TcpListener::bind(address) else { continue };
            assert!(
                matches!(given(tcp.into(), String::new()), Ok(Given::Network(_))),
                "{address}"
            );
        }
        let (one, _other) = UnixStream::pair().unwrap();
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for descriptor in [
            OwnedFd::from(one),
            udp.into(),
            std::fs::File::open("/dev/null").unwrap().into(),
        ] {
            assert!(given(descriptor, String::new()).is_err());
        }
    }

    #[test]
    fn sockets_of_another_process_are_not_taken() {
        let variable = |pid: Option<&'static str>| {
            move |name: &str| match name {
                "LISTEN_PID" => pid.map(str::to_owned),
                _ => Some("3".to_owned()),
            }
        };
        assert!(inherited(variable(Some("1"))).unwrap().is_empty());
        assert!(inherited(variable(None)).unwrap().is_empty());
    }
}

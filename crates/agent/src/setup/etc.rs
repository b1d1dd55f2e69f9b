//! Files written into the root: names under `/etc`, and root's authorised keys.
//!
//! # Invariants
//! A file is written beside its place and renamed over it, so a link there (a dangling one to `/run`, or one to a
//! device) is replaced and never followed. A file that has the right content already is left alone: it then costs no
//! copy in the writable layer.
//!
//! A copy of a machine writes over the content of files instead, where they are files with one name: nothing runs that could read half
//! of one, and a new file of a journalled file system is a good part of all that a copy has to do before it runs. To find a file by its
//! name is another part, so those that a copy will write are open already when it begins.

use std::fmt::Write as _;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use zmachine_agent_protocol::HostEntry;

use super::error::SetupError;

/// The most the agent reads of a file that the guest may have written.
const LIMIT: u64 = 1024 * 1024;

/// The id of a machine, where it has one: an empty file says that the first boot makes it.
const MACHINE_ID: &str = "/etc/machine-id";

/// Sets the host name and writes `/etc/hostname`, `/etc/hosts` and, with name servers, `/etc/resolv.conf`.
///
/// # Errors
/// [`SetupError`] naming the file.
pub(super) fn write_names(
    hostname: &str,
    entries: &[HostEntry],
    (nameservers, search): (&[IpAddr], &[String]),
    how: Writing<'_>,
) -> Result<(), SetupError> {
    rustix::system::sethostname(hostname.as_bytes()).map_err(|source| SetupError::Hostname {
        name: hostname.to_owned(),
        source,
    })?;
    if matches!(how, Writing::Beside) {
        fs::create_dir_all("/etc").map_err(|source| SetupError::File {
            path: "/etc".into(),
            source,
        })?;
    }
    write("/etc/hostname", format!("{hostname}\n"), 0o644, how)?;
    write("/etc/hosts", hosts(hostname, entries), 0o644, how)?;
    write_resolvers(nameservers, search, how)
}

/// Gives the machine another id.
///
/// # Errors
/// [`SetupError`] naming the file.
pub(super) fn write_machine_id(id: &str, how: Writing<'_>) -> Result<(), SetupError> {
    write(MACHINE_ID, format!("{id}\n"), 0o444, how)
}

/// Whether the guest has an id.
pub(super) fn has_machine_id() -> bool {
    fs::symlink_metadata(MACHINE_ID).is_ok_and(|there| there.is_file() && there.len() > 0)
}

/// Writes `/etc/resolv.conf`, when there are name servers.
///
/// # Errors
/// [`SetupError`] naming the file.
pub(super) fn write_resolvers(nameservers: &[IpAddr], search: &[String], how: Writing<'_>) -> Result<(), SetupError> {
    match nameservers.is_empty() {
        true => Ok(()),
        false => write("/etc/resolv.conf", resolv_conf(nameservers, search), 0o644, how),
    }
}

/// The text of `/etc/hosts`. The machine's own name always resolves.
fn hosts(hostname: &str, entries: &[HostEntry]) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\n\
         ff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    );
    for entry in entries {
        let _ = writeln!(text, "{}\t{}", entry.address, entry.names.join(" "));
    }
    if !entries
        .iter()
        .any(|entry| entry.names.iter().any(|name| name == hostname))
    {
        let short = hostname.split('.').next().filter(|short| *short != hostname);
        let _ = writeln!(
            text,
            "127.0.1.1\t{hostname}{}",
            short.map(|short| format!(" {short}")).unwrap_or_default()
        );
    }
    text
}

/// The text of `/etc/resolv.conf`.
fn resolv_conf(nameservers: &[IpAddr], search: &[String]) -> String {
    let mut text = String::new();
    if !search.is_empty() {
        let _ = writeln!(text, "search {}", search.join(" "));
    }
    for server in nameservers {
        let _ = writeln!(text, "nameserver {server}");
    }
    text
}

/// Removes the image's ssh host keys: they are a machine's, not an image's.
pub(super) fn remove_host_keys(warnings: &mut Vec<String>) {
    let entries = match fs::read_dir("/etc/ssh") {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => {
            return warnings.push(format!(
                "the image's host keys may be this machine's too: /etc/ssh: {error}"
            ));
        }
    };
    for entry in entries {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                return warnings.push(format!(
                    "the image's host keys may be this machine's too: /etc/ssh: {error}"
                ));
            }
        };
        if entry.file_name().as_encoded_bytes().starts_with(b"ssh_host_")
            && let Err(error) = fs::remove_file(entry.path())
        {
            warnings.push(format!("remove {}: {error}", entry.path().display()));
        }
    }
}

/// Adds those of `keys` that root's `authorized_keys` lacks.
///
/// # Errors
/// [`SetupError`] naming the file.
pub(super) fn authorize(keys: &[String]) -> Result<(), SetupError> {
    const DIRECTORY: &str = "/root/.ssh";
    const FILE: &str = "/root/.ssh/authorized_keys";
    if keys.is_empty() {
        return Ok(());
    }
    let at = |path: &str| {
        let path = path.to_owned();
        move |source| SetupError::File { path, source }
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(DIRECTORY)
        .map_err(at(DIRECTORY))?;
    fs::set_permissions(DIRECTORY, Permissions::from_mode(0o700)).map_err(at(DIRECTORY))?;
    let present = read_whole(Path::new(FILE)).map_err(at(FILE))?.unwrap_or_default();
    write(FILE, with_keys(&present, keys), 0o600, Writing::Beside)?;
    fs::set_permissions(FILE, Permissions::from_mode(0o600)).map_err(at(FILE))
}

/// `present` with every one of `keys` in it, each once.
fn with_keys(present: &[u8], keys: &[String]) -> Vec<u8> {
    let mut text = present.to_owned();
    for key in keys.iter().map(|key| key.trim()).filter(|key| !key.is_empty()) {
        let is_it = |line: &[u8]| line.trim_ascii() == key.as_bytes();
        if text.split(|byte| *byte == b'\n').any(is_it) {
            continue;
        }
        if !text.is_empty() && !text.ends_with(b"\n") {
            text.push(b'\n');
        }
        text.extend_from_slice(key.as_bytes());
        text.push(b'\n');
    }
    text
}

/// How a file gets its content.
#[derive(Debug, Clone, Copy)]
pub(super) enum Writing<'a> {
    /// Written beside its place, and renamed over what is there.
    Beside,
    /// Over the content of what is there, if that can be; some of it is open already.
    Over(&'a Opened),
}

/// Files that a copy will write over, opened while nobody runs who could put others in their places.
#[derive(Debug, Default)]
pub(crate) struct Opened(Vec<Known>);

/// One of them.
#[derive(Debug)]
struct Known {
    path: PathBuf,
    file: File,
    content: Vec<u8>,
}

impl Opened {
    /// Opens those of `paths` that can be written over.
    pub(super) fn of<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Opened {
        Opened(paths.into_iter().filter_map(Known::open).collect())
    }

    /// Writes over all of them, and leaves in them what was there.
    pub(super) fn rehearse(&self) {
        for known in &self.0 {
            let longer = [known.content.as_slice(), b"\n"].concat();
            let written = known.write(&longer).and_then(|()| known.write(&known.content));
            let _ = written.and_then(|()| known.file.set_len(known.content.len() as u64));
        }
    }

    /// Writes over one of them; whether it is.
    fn write(&self, path: &Path, text: &[u8]) -> bool {
        self.0
            .iter()
            .find(|known| known.path == path)
            .is_some_and(|known| known.content == text || known.write(text).is_ok())
    }
}

impl Known {
    fn open(path: &Path) -> Option<Known> {
        let there = fs::symlink_metadata(path).ok()?;
        if !there.is_file() || there.nlink() != 1 || there.len() > LIMIT {
            return None;
        }
        let flags = OFlags::NOFOLLOW.bits() as i32;
        let options = OpenOptions::new().read(true).write(true).custom_flags(flags).clone();
        let file = options.open(path).ok()?;
        let mut content = Vec::new();
        (&file).take(LIMIT).read_to_end(&mut content).ok()?;
        // As long as it is: what the kernel has to say when it does this for the first time, it does not say in every copy.
        file.set_len(content.len() as u64).ok()?;
        Some(Known {
            path: path.to_owned(),
            file,
            content,
        })
    }

    fn write(&self, text: &[u8]) -> io::Result<()> {
        self.file.write_all_at(text, 0)?;
        match self.content.len() > text.len() {
            true => self.file.set_len(text.len() as u64),
            false => Ok(()),
        }
    }
}

fn write(path: &str, text: impl AsRef<[u8]>, mode: u32, how: Writing<'_>) -> Result<(), SetupError> {
    put(Path::new(path), text.as_ref(), mode, how).map_err(|source| SetupError::File {
        path: path.into(),
        source,
    })
}

fn put(path: &Path, text: &[u8], mode: u32, how: Writing<'_>) -> io::Result<()> {
    if let Writing::Over(opened) = how
        && opened.write(path, text)
    {
        return Ok(());
    }
    let there = fs::symlink_metadata(path).ok().filter(fs::Metadata::is_file);
    if let Some(there) = there {
        // Only a file that may be the same is read, so its length is a limit.
        if there.len() == text.len() as u64 && fs::read(path)? == text {
            return Ok(());
        }
        // One with other names is the content of those as well.
        if matches!(how, Writing::Over(_)) && there.nlink() == 1 && overwrite(path, text, there.len()).is_ok() {
            return Ok(());
        }
    }
    let beside = path.with_extension("zmachine-new");
    let _ = fs::remove_file(&beside);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&beside)?;
    file.write_all(text)?;
    fs::rename(&beside, path)
}

/// Gives a file that has `length` bytes other content.
fn overwrite(path: &Path, text: &[u8], length: u64) -> io::Result<()> {
    let flags = OFlags::NOFOLLOW.bits() as i32;
    let mut file = OpenOptions::new().write(true).custom_flags(flags).open(path)?;
    file.write_all(text)?;
    match length > text.len() as u64 {
        true => file.set_len(text.len() as u64),
        false => Ok(()),
    }
}

/// What is in the file `path`, or in what a link there leads to; `None` when there is none. A file that is there and cannot be
/// read whole is an error: its content is not to be taken for nothing.
pub(crate) fn read_whole(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let unfit = |what: &str| Err(io::Error::new(io::ErrorKind::InvalidData, what.to_owned()));
    match fs::metadata(path) {
        // Nothing that could keep a reader waiting.
        Ok(metadata) if !metadata.is_file() => return unfit("not a regular file"),
        Ok(metadata) if metadata.len() > LIMIT => return unfit("longer than 1 MiB"),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(LIMIT).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_has_the_entries_given_and_always_the_own_name() {
        let entry = HostEntry {
            address: "10.1.1.3".parse().unwrap(),
            names: vec!["web.lan".into(), "web".into()],
        };
        let text = hosts("web.lan", std::slice::from_ref(&entry));
        assert!(text.starts_with("127.0.0.1\tlocalhost\n::1\tlocalhost"));
        assert!(text.ends_with("10.1.1.3\tweb.lan web\n"));
        assert!(hosts("box.example.org", &[entry]).ends_with("127.0.1.1\tbox.example.org box\n"));
        assert!(hosts("box", &[]).ends_with("127.0.1.1\tbox\n"));
    }

    #[test]
    fn resolv_conf_has_search_and_servers_in_order() {
        let servers = ["10.1.1.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        let text = resolv_conf(&servers, &["lan".into(), "example.org".into()]);
        assert_eq!(
            text,
            "search lan example.org\nnameserver 10.1.1.1\nnameserver fd00::1\n"
        );
        assert_eq!(resolv_conf(&servers[..1], &[]), "nameserver 10.1.1.1\n");
    }

    #[test]
    fn a_key_is_added_once_however_often_it_is_given() {
        let keys = ["ssh-ed25519 AAA a".to_owned(), "ssh-ed25519 BBB b\n".into(), " ".into()];
        let once = with_keys(b"# mine \xff\nssh-ed25519 BBB b", &keys);
        assert_eq!(once, b"# mine \xff\nssh-ed25519 BBB b\nssh-ed25519 AAA a\n");
        assert_eq!(with_keys(&once, &keys), once);
    }

    #[test]
    fn a_file_that_can_not_be_read_is_not_taken_for_an_empty_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("authorized_keys");
        assert_eq!(read_whole(&path).unwrap(), None);
        fs::write(&path, b"Andr\xe9").unwrap();
        std::os::unix::fs::symlink("authorized_keys", directory.path().join("link")).unwrap();
        assert_eq!(
            read_whole(&directory.path().join("link")).unwrap().unwrap(),
            b"Andr\xe9"
        );
        File::create(&path).unwrap().set_len(LIMIT + 1).unwrap();
        read_whole(&path).unwrap_err();
        read_whole(directory.path()).unwrap_err();
    }

    #[test]
    fn a_link_in_the_place_of_a_file_is_replaced_and_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let (victim, path) = (directory.path().join("victim"), directory.path().join("resolv.conf"));
        fs::write(&victim, "untouched").unwrap();
        let targets = [victim.as_path(), Path::new("/nowhere/stub")].into_iter();
        for (target, over) in targets.flat_map(|target| [(target, false), (target, true)]) {
            let _ = fs::remove_file(&path);
            std::os::unix::fs::symlink(target, &path).unwrap();
            let opened = Opened::of([path.as_path()]);
            let how = if over { Writing::Over(&opened) } else { Writing::Beside };
            put(&path, b"nameserver ::1\n", 0o644, how).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), "nameserver ::1\n");
            assert!(fs::symlink_metadata(&path).unwrap().is_file());
        }
        assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
    }

    #[test]
    fn a_file_that_is_right_already_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hosts");
        put(&path, b"a\n", 0o644, Writing::Beside).unwrap();
        let inode = fs::metadata(&path).unwrap().ino();
        put(&path, b"a\n", 0o644, Writing::Beside).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
    }

    #[test]
    fn a_copy_writes_over_what_is_there_unless_it_has_other_names() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hostname");
        fs::write(&path, "a-long-name\n").unwrap();
        let inode = fs::metadata(&path).unwrap().ino();
        for text in ["short\n", "a-longer-name-than-before\n"] {
            for opened in [Opened::default(), Opened::of([path.as_path()])] {
                fs::write(&path, "a-long-name\n").unwrap();
                put(&path, text.as_bytes(), 0o644, Writing::Over(&opened)).unwrap();
                assert_eq!(fs::read_to_string(&path).unwrap(), text);
            }
        }
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
        let other = directory.path().join("other");
        fs::hard_link(&path, &other).unwrap();
        let opened = Opened::of([path.as_path()]);
        assert!(opened.0.is_empty());
        put(&path, b"new\n", 0o644, Writing::Over(&opened)).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new\n");
        assert_eq!(fs::read_to_string(&other).unwrap(), "a-longer-name-than-before\n");
    }
}

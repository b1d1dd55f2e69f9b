//! File trees for images.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use crate::artifacts::is_static;
use crate::command::Invocation;
use crate::home::TestHome;
use crate::needs::command_path;

/// The ordinary user in the trees made here, and its group.
const WEB: u32 = 1000;

/// A file tree under construction; every step gives it back, so a test reads as one sentence.
#[derive(Debug)]
pub struct Tree {
    root: PathBuf,
}

impl Tree {
    /// An empty tree in the folder `name` of `home`.
    ///
    /// # Panics
    /// Here and below: when a file cannot be made, or exists where a folder is wanted.
    pub fn empty(home: &TestHome, name: &str) -> Tree {
        Tree::at(home.file(name))
    }

    /// A tree with busybox and a link for each of its applets, the usual folders, the users `root` and `web` (1000), and
    /// `/work`, which belongs to `web`.
    pub fn busybox(home: &TestHome) -> Tree {
        Tree::at(home.file("busybox-tree")).with_busybox()
    }

    fn at(root: PathBuf) -> Tree {
        must(&root, fs::create_dir(&root));
        Tree { root }
    }

    /// With what [`Tree::busybox`] has.
    ///
    /// # Panics
    /// When this host has no static busybox.
    #[must_use]
    pub fn with_busybox(self) -> Tree {
        let busybox = command_path("busybox").filter(|file| is_static(file));
        let busybox = busybox.expect("needs a static busybox: run scripts/setup");
        let folders = [
            "bin", "dev", "etc", "home", "proc", "run", "sys", "usr", "var", "var/log",
        ];
        let tree = folders.iter().fold(self, |tree, folder| tree.folder(folder, 0o755));
        let tree = tree
            .folder("root", 0o700)
            .folder("tmp", 0o1777)
            .folder("home/web", 0o755)
            .folder("work", 0o755);
        tree.own("home/web", WEB);
        tree.own("work", WEB);
        let program = tree.path("bin/busybox");
        must(&program, fs::copy(&busybox, &program));
        let applets = Invocation::new(&busybox, ["--list"]).finish().expect_success().stdout();
        for applet in applets.lines().filter(|applet| *applet != "busybox") {
            let link = tree.path("bin").join(applet);
            must(&link, symlink("busybox", &link));
        }
        tree.file(
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000:web:/home/web:/bin/sh\n",
        )
        .file("etc/group", "root:x:0:\nweb:x:1000:\n")
    }

    /// With the folder `path`, of the mode `mode`, umask or not.
    #[must_use]
    pub fn folder(self, path: &str, mode: u32) -> Tree {
        let folder = self.path(path);
        must(&folder, fs::create_dir_all(&folder));
        must(&folder, fs::set_permissions(&folder, fs::Permissions::from_mode(mode)));
        self
    }

    /// With the file `path`, mode 0644; its folder is made when missing.
    #[must_use]
    pub fn file(self, path: &str, content: impl AsRef<[u8]>) -> Tree {
        self.write(path, content.as_ref(), 0o644)
    }

    /// With the shell script `path`, mode 0755; `body` without the first line.
    #[must_use]
    pub fn script(self, path: &str, body: &str) -> Tree {
        self.write(path, format!("#!/bin/sh\n{body}\n").as_bytes(), 0o755)
    }

    /// With the executable file `path`, mode 0755.
    #[must_use]
    pub fn program(self, path: &str, content: impl AsRef<[u8]>) -> Tree {
        self.write(path, content.as_ref(), 0o755)
    }

    /// With an entrypoint: a `.startup.toml` that starts `program` with `args`.
    #[must_use]
    pub fn entrypoint(self, program: &str, args: &[&str]) -> Tree {
        // JSON's strings and arrays are TOML's too, for the characters tests use.
        let text = format!(
            "[startup.entry]\nname = \"core.system\"\n[startup.entry.args]\nname = {program:?}\nargs = {args:?}\n"
        );
        self.file(".startup.toml", text)
    }

    /// With a symbolic link at `path`.
    #[must_use]
    pub fn link(self, path: &str, to: &str) -> Tree {
        let link = self.path(path);
        must(&link, symlink(to, &link));
        self
    }

    /// Its root folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Packs it into `home`'s store; the flist's path.
    pub fn pack(&self, home: &TestHome, name: &str) -> String {
        home.pack(&self.root, name)
    }

    /// A path in it; the tree itself for an empty one.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    fn write(self, path: &str, content: &[u8], mode: u32) -> Tree {
        let file = self.path(path);
        if let Some(folder) = file.parent() {
            must(folder, fs::create_dir_all(folder));
        }
        must(&file, fs::write(&file, content));
        must(&file, fs::set_permissions(&file, fs::Permissions::from_mode(mode)));
        self
    }

    /// Gives `path` to a user. Without root the tree stays its maker's: such a host has no guests with other users either.
    fn own(&self, path: &str, id: u32) {
        if rustix::process::geteuid().is_root() {
            let path = self.path(path);
            must(&path, chown(&path, Some(id), Some(id)));
        }
    }
}

fn must<T>(path: &Path, outcome: std::io::Result<T>) -> T {
    outcome.unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::needs::{Need, lacking, skip};

    #[test]
    fn the_busybox_tree_runs_and_has_its_users() {
        if let Some(reason) = lacking(&[Need::Root, Need::Command("busybox"), Need::Command("chroot")]) {
            return skip(&reason);
        }
        let folder = tempfile::tempdir().unwrap();
        let tree = Tree::at(folder.path().join("t"))
            .with_busybox()
            .script("bin/hi", "echo web is $(id -u web)");
        let chroot = Invocation::new(
            &command_path("chroot").unwrap(),
            [tree.root().as_os_str(), "/bin/hi".as_ref()],
        );
        assert_eq!(chroot.finish().expect_success().stdout(), "web is 1000\n");
        let owner = std::os::unix::fs::MetadataExt::uid(&tree.path("work").metadata().unwrap());
        assert_eq!(owner, WEB);
    }
}

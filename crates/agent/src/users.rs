//! Users and groups of the image: passwd and group text, and the lookup that container runtimes do.
//!
//! A number works without an entry. A name without an entry is an error. The first entry that matches wins, as in libc.

use std::io;
use std::path::Path;

use thiserror::Error;

use crate::setup::read_whole;

/// Who a process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// User id.
    pub(crate) uid: u32,
    /// Primary group id.
    pub(crate) gid: u32,
    /// Supplementary groups.
    pub(crate) groups: Vec<u32>,
    /// Home directory.
    pub(crate) home: String,
}

/// The superuser, whatever the image's passwd says.
pub(crate) fn root() -> Identity {
    Identity {
        uid: 0,
        gid: 0,
        groups: Vec::new(),
        home: "/root".to_owned(),
    }
}

/// Why there is nobody to run as.
#[derive(Debug, Error)]
pub(crate) enum UserError {
    /// No such entry in passwd.
    #[error("unknown user {user:?}")]
    User { user: String },
    /// No such entry in group.
    #[error("unknown group {group:?}")]
    Group { group: String },
    /// A file of the image cannot be read.
    #[error("read {path}: {source}")]
    Read { path: &'static str, source: io::Error },
}

/// Looks `user` up in the image: `name`, `uid`, `name:group`, `uid:gid`; `None` is root.
///
/// # Errors
/// [`UserError`].
pub(crate) fn identify(user: Option<&str>) -> Result<Identity, UserError> {
    // The root is what the agent is chrooted into, so a link of the image stays inside it. What people are called may be in
    // any encoding; users, groups and homes of such lines are read all the same.
    let read = |path: &'static str| {
        let bytes = read_whole(Path::new(path)).map_err(|source| UserError::Read { path, source })?;
        Ok(String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned())
    };
    lookup(user.unwrap_or("0"), &read("/etc/passwd")?, &read("/etc/group")?)
}

/// Adds further groups, by name or number.
///
/// # Errors
/// [`UserError::Group`] for a name that the image does not know.
pub(crate) fn add_groups(identity: &mut Identity, groups: &[String]) -> Result<(), UserError> {
    if groups.is_empty() {
        return Ok(());
    }
    let bytes = read_whole(Path::new("/etc/group")).map_err(|source| UserError::Read {
        path: "/etc/group",
        source,
    })?;
    let text = String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned();
    for group in groups {
        let number = group.parse().ok();
        let known = || {
            group_entries(&text)
                .find(|entry| entry.name == group)
                .map(|entry| entry.gid)
        };
        let gid = number
            .or_else(known)
            .ok_or_else(|| UserError::Group { group: group.clone() })?;
        if !identity.groups.contains(&gid) {
            identity.groups.push(gid);
        }
    }
    Ok(())
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn passwd_entries(text: &str) -> impl Iterator<Item = PasswdEntry<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(PasswdEntry {
            name,
            uid,
            gid,
            home: fields.nth(1).unwrap_or(""),
        })
    })
}

fn group_entries(text: &str) -> impl Iterator<Item = GroupEntry<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some(GroupEntry {
            name,
            gid,
            members: fields.next().unwrap_or(""),
        })
    })
}

/// The lookup itself, on the text of both files.
fn lookup(spec: &str, passwd: &str, group: &str) -> Result<Identity, UserError> {
    let (user, explicit_group) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (spec, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number: Option<u32> = user.parse().ok();
    let entry = passwd_entries(passwd).find(|entry| entry.name == user || number == Some(entry.uid));
    let uid = match (&entry, number) {
        (Some(entry), _) => entry.uid,
        (None, Some(uid)) => uid,
        (None, None) => return Err(UserError::User { user: user.into() }),
    };
    let home = match entry
        .as_ref()
        .map(|entry| entry.home)
        .filter(|home| home.starts_with('/'))
    {
        Some(home) => home,
        None if uid == 0 => "/root",
        None => "/",
    };
    let (gid, groups) = match explicit_group {
        // A group given is the only one, as in docker.
        Some(wanted) => (group_id(wanted, group)?, Vec::new()),
        None => (
            entry.as_ref().map_or(0, |entry| entry.gid),
            memberships(entry.as_ref(), group),
        ),
    };
    Ok(Identity {
        uid,
        gid,
        groups,
        home: home.into(),
    })
}

fn group_id(wanted: &str, text: &str) -> Result<u32, UserError> {
    let number: Option<u32> = wanted.parse().ok();
    let entry = group_entries(text).find(|entry| entry.name == wanted || number == Some(entry.gid));
    entry
        .map(|entry| entry.gid)
        .or(number)
        .ok_or_else(|| UserError::Group { group: wanted.into() })
}

fn memberships(user: Option<&PasswdEntry<'_>>, text: &str) -> Vec<u32> {
    let Some(user) = user else { return Vec::new() };
    let mine = group_entries(text).filter(|entry| entry.members.split(',').any(|member| member.trim() == user.name));
    let mut groups: Vec<u32> = mine.map(|entry| entry.gid).collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# comment\nweb:x:33:34:www:/srv/web:/bin/false\n\
                          broken:x:no\nnohome:x:70:70\nweb:x:99:99::/other:\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\naudio:x:29:root,web\nvideo:x:44:web , root\nbad:x\n";

    fn identity(spec: &str) -> Identity {
        lookup(spec, PASSWD, GROUP).unwrap()
    }

    #[test]
    fn a_name_gives_ids_home_and_supplementary_groups() {
        let web = Identity {
            uid: 33,
            gid: 34,
            groups: vec![29, 44],
            home: "/srv/web".into(),
        };
        assert_eq!(identity("web"), web);
        assert_eq!(identity("33"), web, "a number with an entry is that user");
    }

    #[test]
    fn a_number_without_an_entry_works() {
        assert_eq!(
            identity("4711"),
            Identity {
                uid: 4711,
                gid: 0,
                groups: vec![],
                home: "/".into()
            }
        );
        assert_eq!(identity("4711:4712").gid, 4712);
        let empty = lookup("0", "", "").unwrap();
        assert_eq!(
            empty,
            Identity {
                uid: 0,
                gid: 0,
                groups: vec![],
                home: "/root".into()
            }
        );
    }

    #[test]
    fn a_group_given_is_the_only_one() {
        assert_eq!(
            identity("web:audio"),
            Identity {
                uid: 33,
                gid: 29,
                groups: vec![],
                home: "/srv/web".into()
            }
        );
        assert_eq!(identity("web:7").gid, 7);
        assert_eq!(identity("web:").groups, [29, 44]);
    }

    #[test]
    fn a_name_without_an_entry_is_an_error_that_names_it() {
        assert_eq!(
            lookup("nobody", PASSWD, GROUP).unwrap_err().to_string(),
            r#"unknown user "nobody""#
        );
        assert_eq!(
            lookup("web:wheel", PASSWD, GROUP).unwrap_err().to_string(),
            r#"unknown group "wheel""#
        );
        assert!(lookup("broken", PASSWD, GROUP).is_err());
    }

    #[test]
    fn an_entry_without_a_home_gets_the_root_directory() {
        assert_eq!(identity("nohome").home, "/");
    }
}

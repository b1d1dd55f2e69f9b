//! Access control lists as text, the form in which `tar --acls` and star keep them (`SCHILY.acl.access` and `.default`), as the attributes
//! that Linux has.
//!
//! ```text
//! text        user::rwx,user:lisa:r-x:502,group::r-x,mask::rwx,other::r--      also one entry a line, and short words (u, g, m, o)
//! attribute   version u32 (2) | for each entry: tag u16, permissions u16, id u32          little endian, sorted by tag and id
//! ```
//! Source: `fs/posix_acl.c` and `include/uapi/linux/posix_acl_xattr.h` of Linux, `acl(5)`.

use std::collections::HashMap;

const VERSION: u32 = 2;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
/// Of entries that are about nobody in particular.
const NO_ID: u32 = u32::MAX;

/// Numbers of users and groups by the names that an archive has for them.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) users: HashMap<Vec<u8>, u32>,
    pub(super) groups: HashMap<Vec<u8>, u32>,
}

/// The value of the attribute; empty when the text says no more than permission bits do. `None` when it is no list, or has a name that
/// `names` does not know: part of a list would let in whom the rest keeps out.
pub(super) fn attribute(text: &[u8], names: &Names) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(text).ok()?;
    let mut entries: Vec<(u16, u32, u16)> = Vec::new();
    for line in text.split(['\n', ',']) {
        let line = line.split('#').next().unwrap_or_default().trim();
        if !line.is_empty() {
            entries.push(entry(line, names)?);
        }
    }
    entries.sort_unstable();
    let count = |tag: u16| entries.iter().filter(|(other, ..)| *other == tag).count();
    let is_whole = [USER_OBJ, GROUP_OBJ, OTHER].iter().all(|tag| count(*tag) == 1) && count(MASK) <= 1;
    let is_unique = entries
        .windows(2)
        .all(|pair| (pair[0].0, pair[0].1) != (pair[1].0, pair[1].1));
    if !is_whole || !is_unique {
        return None;
    }
    if entries.len() == 3 {
        return Some(Vec::new());
    }
    if count(MASK) == 0 {
        // As setfacl computes it: all that the group and those that are named have.
        let named = entries
            .iter()
            .filter(|(tag, ..)| [USER, GROUP_OBJ, GROUP].contains(tag));
        let mask = named.fold(0, |mask, (_, _, permissions)| mask | permissions);
        entries.push((MASK, NO_ID, mask));
        entries.sort_unstable();
    }
    let mut value = VERSION.to_le_bytes().to_vec();
    for (tag, id, permissions) in entries {
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    Some(value)
}

fn entry(line: &str, names: &Names) -> Option<(u16, u32, u16)> {
    let mut fields = line.split(':').map(str::trim);
    let mut word = fields.next()?;
    if matches!(word, "default" | "d") {
        word = fields.next()?;
    }
    let rest: Vec<&str> = fields.collect();
    // `mask::rwx` and `mask:rwx` are the same.
    let (name, rest) = match (word, rest.as_slice()) {
        ("mask" | "m" | "other" | "o", [permissions]) => ("", vec![*permissions]),
        (_, [name, rest @ ..]) => (*name, rest.to_vec()),
        _ => return None,
    };
    let (permissions, number) = match rest.as_slice() {
        [permissions] => (*permissions, None),
        [permissions, number] => (*permissions, number.parse().ok()),
        _ => return None,
    };
    let id = |known: &HashMap<Vec<u8>, u32>| {
        let named = || name.parse().ok().or_else(|| known.get(name.as_bytes()).copied());
        number.or_else(named).or((name == "root").then_some(0))
    };
    let (tag, id) = match (word, name.is_empty()) {
        ("user" | "u", true) => (USER_OBJ, NO_ID),
        ("user" | "u", false) => (USER, id(&names.users)?),
        ("group" | "g", true) => (GROUP_OBJ, NO_ID),
        ("group" | "g", false) => (GROUP, id(&names.groups)?),
        ("mask" | "m", true) => (MASK, NO_ID),
        ("other" | "o", true) => (OTHER, NO_ID),
        _ => return None,
    };
    let mut bits = 0;
    for letter in permissions.chars() {
        bits |= match letter {
            'r' => 4,
            'w' => 2,
            'x' => 1,
            '-' => 0,
            _ => return None,
        };
    }
    Some((tag, id, bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Option<Vec<u8>> {
        let mut names = Names::default();
        names.users.insert(b"lisa".to_vec(), 502);
        attribute(text.as_bytes(), &names)
    }

    #[test]
    fn texts_of_tar_and_star_become_what_setfacl_makes() {
        // What `setfacl -m u:502:r-x` leaves on a file of mode 0644, read with getfattr.
        let expected = [
            &[2, 0, 0, 0][..],
            &[1, 0, 6, 0, 255, 255, 255, 255],
            &[2, 0, 5, 0, 246, 1, 0, 0],
            &[4, 0, 4, 0, 255, 255, 255, 255],
            &[16, 0, 5, 0, 255, 255, 255, 255],
            &[32, 0, 4, 0, 255, 255, 255, 255],
        ]
        .concat();
        for text in [
            "user::rw-,user:lisa:r-x,group::r--,mask::r-x,other::r--",
            "user::rw-\nuser:unknown:r-x:502\ngroup::r--\nmask::r-x\nother::r--\n",
            "o:r--,u::rw-,g::r--,u:502:r-x #effective:r-x",
            "default:user::rw-,d:u:lisa:r-x,d:g::r--,d:o::r--",
        ] {
            assert_eq!(of(text).as_ref(), Some(&expected), "{text}");
        }
        assert_eq!(of("user::rw-,group::r--,other::---"), Some(Vec::new()));
    }

    #[test]
    fn what_is_no_list_or_names_somebody_unknown_is_nothing() {
        for text in [
            "",
            "user::rw-",
            "user::rw-,group::r--,other::---,other::r--",
            "user::rw-,user:nobody-knows:r--,group::r--,other::---",
            "user::rwz,group::r--,other::---",
            "user::rw-,user:1:r--,user:1:rw-,group::r--,other::---",
            "everyone::rw-,group::r--,other::---",
            ":::,,",
        ] {
            assert_eq!(of(text), None, "{text}");
        }
    }
}

//! The volumes of a machine file: texts as the flag has them, or tables, which can say what no such text can (a `:` in a path).
//!
//! ```toml
//! volume = ["data:/srv:size=10G", { directory = "./a:b", target = "/src", read-only = true }]
//! ```
//! Keys of a table: `name` or `directory` (neither: a volume of the machine's own), `target`, `size`, `fs`, `read-only`, `nocopy`.

use std::path::Path;

use toml::{Table, Value};
use zmachine_spec::{Origin, VolumeRequest, bytes};

const KEYS: &str = "the keys of a volume are name or directory, target, size, fs, read-only and nocopy";

/// What is wrong, and what to do.
pub(super) type Wrong = (String, String);

/// The volume that `value` of a file in `folder` stands for.
pub(super) fn request(value: &Value, folder: &Path) -> Result<VolumeRequest, Wrong> {
    match value {
        Value::String(text) => {
            VolumeRequest::parse(text, folder).map_err(|failure| (failure.message, failure.hint.unwrap_or_default()))
        }
        Value::Table(table) => of_table(table, folder).map_err(|why| (why, KEYS.to_owned())),
        other => Err((format!("a {} cannot stand here", other.type_str()), KEYS.to_owned())),
    }
}

fn of_table(table: &Table, folder: &Path) -> Result<VolumeRequest, String> {
    let (mut name, mut directory, mut target, mut size, mut fs) = (None, None, None, None, None);
    let (mut read_only, mut no_copy) = (false, false);
    for (key, value) in table {
        match key.as_str() {
            "name" => name = Some(text(key, value)?),
            "directory" => directory = Some(text(key, value)?),
            "target" => target = Some(text(key, value)?),
            "size" => size = Some(size_bytes(value)?),
            "fs" => fs = Some(text(key, value)?.parse()?),
            "read-only" => read_only = truth(key, value)?,
            "nocopy" => no_copy = truth(key, value)?,
            other => return Err(format!("a volume has no key '{other}'")),
        }
    }
    let origin = match (name, directory) {
        (Some(_), Some(_)) => return Err("it has a name and a directory".to_owned()),
        (Some(name), None) => Origin::Named(name.to_owned()),
        (None, Some(directory)) => Origin::Directory(folder.join(directory)),
        (None, None) => Origin::Anonymous,
    };
    let target = target.ok_or("it does not say where it goes in the guest: target is missing")?;
    let request = VolumeRequest {
        size_bytes: size,
        fs,
        read_only,
        no_copy,
        ..VolumeRequest::new(origin, target)?
    };
    request.check()?;
    Ok(request)
}

fn text<'a>(key: &str, value: &'a Value) -> Result<&'a str, String> {
    value.as_str().ok_or_else(|| format!("{key} must be a text"))
}

fn truth(key: &str, value: &Value) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| format!("{key} is either true or false"))
}

fn size_bytes(value: &Value) -> Result<u64, String> {
    let number = value.as_integer().map(|number| number.to_string());
    let text = value.as_str().map(str::to_owned).or(number);
    let text = text.ok_or("size must be a text or a number")?;
    bytes::parse(&text).map_err(|e| format!("{e}; {}", e.hint()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<VolumeRequest, Wrong> {
        let table: Table = text.parse().unwrap();
        request(&table["volume"], Path::new("/folder"))
    }

    #[test]
    fn a_table_says_what_a_text_says_and_more() {
        for (table, text) in [
            (
                r#"{ name = "data", target = "/d//", size = "1G", fs = "xfs" }"#,
                "data:/d:size=1G,fs=xfs",
            ),
            (r#"{ target = "/d", nocopy = true }"#, "/d:nocopy"),
            (
                r#"{ directory = "./src", target = "/src", read-only = true }"#,
                "./src:/src:ro",
            ),
        ] {
            let [table, text] =
                [table.to_owned(), format!("\"{text}\"")].map(|value| read(&format!("volume = {value}")));
            assert_eq!(table.unwrap(), text.unwrap());
        }
        let shared = read(r#"volume = { directory = "a:b", target = "/c:d" }"#).unwrap();
        assert_eq!(shared.origin, Origin::Directory("/folder/a:b".into()));
        assert_eq!(shared.target, "/c:d");
    }

    #[test]
    fn what_is_wrong_in_a_table_is_named() {
        for (table, part) in [
            ("{}", "target"),
            (r#"{ target = "d" }"#, "'d' is not an absolute path"),
            (r#"{ target = "/d", colour = 1 }"#, "'colour'"),
            (r#"{ target = "/d", size = true }"#, "size"),
            (r#"{ target = "/d", size = "x" }"#, "'x'"),
            (r#"{ target = "/d", read-only = "yes" }"#, "read-only"),
            (
                r#"{ target = "/d", name = "a", directory = "b" }"#,
                "a name and a directory",
            ),
            (
                r#"{ target = "/d", directory = "b", size = 1 }"#,
                "a directory is what it is",
            ),
            (r#"{ target = "/d", name = "a/b" }"#, "'a/b'"),
            ("3", "integer"),
        ] {
            let (why, hint) = read(&format!("volume = {table}")).unwrap_err();
            assert!(why.contains(part) && !hint.is_empty(), "{table}: {why}");
        }
    }
}

//! What may stand in a tracked file.
//!
//! Pure: a function of a file's name, its content and the texts that must not occur. The words looked for are put
//! together from halves, so this file passes its own check.

use std::path::Path;

/// Lines a Rust source file may have; past it a split by meaning is due.
const LONGEST_FILE_LINES: usize = 800;

/// Macros of unfinished code. The compiler's lints see them too, but not in code that is configured out.
const UNFINISHED: &[(&str, &str)] = &[("todo", "!("), ("unimplemented", "!(")];

/// What no tracked file may hold on this machine: the paths of the checkout and of what stands beside it (`beside`, the
/// names in its parent folder). Nothing for a checkout in `/`, where every name is an honest one; only the checkout
/// itself in `/tmp`, where anybody's names come and go.
pub(crate) fn paths_of_this_machine(root: &Path, beside: &[String]) -> Vec<String> {
    let (Some(parent), Some(own)) = (
        root.parent().and_then(Path::to_str),
        root.file_name().and_then(|n| n.to_str()),
    ) else {
        return Vec::new();
    };
    let path = |name: &str| format!("{parent}/{name}");
    match parent {
        "/" => Vec::new(),
        "/tmp" => vec![path(own)],
        _ => beside
            .iter()
            .map(String::as_str)
            .filter(|name| *name != own)
            .chain([own])
            .map(path)
            .collect(),
    }
}

/// What is wrong with the file `name`, each with its line number; nothing for files that are no text.
pub(crate) fn findings(name: &str, content: &[u8], forbidden: &[String]) -> Vec<String> {
    let Ok(content) = std::str::from_utf8(content) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for (index, line) in content.lines().enumerate() {
        let number = index + 1;
        for text in forbidden.iter().filter(|text| line.contains(text.as_str())) {
            found.push(format!("{name}:{number}: names {text}, which is only of one machine"));
        }
        if name.ends_with(".rs") {
            for (word, call) in UNFINISHED
                .iter()
                .filter(|(word, call)| line.contains(&format!("{word}{call}")))
            {
                found.push(format!("{name}:{number}: unfinished: {word}{call}..)"));
            }
        }
    }
    let lines = content.lines().count();
    if name.ends_with(".rs") && lines > LONGEST_FILE_LINES {
        found.push(format!(
            "{name}: {lines} lines, of {LONGEST_FILE_LINES} at most: split it by meaning"
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfinished_code_is_found_with_its_line() {
        let code = format!("fn a() {{}}\nfn b() {{ {}!() }}\n", "todo");
        assert_eq!(
            findings("src/b.rs", code.as_bytes(), &[]),
            [format!("src/b.rs:2: unfinished: {}!(..)", "todo")]
        );
        assert!(findings("notes.md", code.as_bytes(), &[]).is_empty());
    }

    #[test]
    fn a_forbidden_text_is_found_in_any_text_file() {
        let found = findings(
            "Makefile",
            b"all:\n\tcc /here/it/is/main.c\n",
            &["/here/it/is".to_owned()],
        );
        assert_eq!(found, ["Makefile:2: names /here/it/is, which is only of one machine"]);
    }

    #[test]
    fn a_source_file_of_801_lines_is_too_long_and_one_of_800_is_not() {
        assert!(findings("a.rs", "\n".repeat(800).as_bytes(), &[]).is_empty());
        assert_eq!(findings("a.rs", "\n".repeat(801).as_bytes(), &[]).len(), 1);
    }

    #[test]
    fn bytes_that_are_no_text_are_left_alone() {
        assert!(findings("image.rs", &[0xff, 0xfe, b'\n'], &["\n".to_owned()]).is_empty());
    }

    #[test]
    fn the_checkout_and_its_neighbours_are_looked_for_by_their_full_paths() {
        let beside = ["zmachine".to_owned(), "notes".to_owned()];
        let paths = |root: &str| paths_of_this_machine(Path::new(root), &beside);
        assert_eq!(
            paths("/build/farm/zmachine"),
            ["/build/farm/notes", "/build/farm/zmachine"]
        );
        assert_eq!(paths("/tmp/zmachine"), ["/tmp/zmachine"]);
        assert!(paths("/zmachine").is_empty());
    }
}

//! Which files of a crate import each other in a circle.
//!
//! An import is a path that begins with `crate`, `self`, `super` or a child module, in a `use` or anywhere else, outside of
//! tests. A name that a module only hands on (`pub use`) leads to where it comes from, so a `mod.rs` that shows what its children
//! have depends on none of them by that.
//!
//! Invariant: there is no circle in [`WATCHED`] but those of [`EXPLAINED`], and each of those is there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The folders without circles.
const WATCHED: &[&str] = &[
    "crates/agent/src",
    "crates/monitor/src",
    "crates/network/src",
    "crates/plan/src",
];

/// Circles that stay: the folder, its modules, and why.
const EXPLAINED: &[(&str, &[&str], &str)] = &[];

/// A module as the names of its path; the root of a crate is empty.
type Module = Vec<String>;

/// What is wrong below `root`, a sentence each.
///
/// # Errors
/// When a file cannot be read.
pub(crate) fn violations(root: &Path) -> Result<Vec<String>, String> {
    let mut found = Vec::new();
    for folder in WATCHED {
        let circles = circles(&imports(&sources(&root.join(folder))?));
        let explained = EXPLAINED.iter().filter(|(of, ..)| of == folder);
        let explained: Vec<Vec<String>> = explained
            .map(|(_, modules, _)| modules.iter().map(|name| (*name).to_owned()).collect())
            .collect();
        for circle in circles.iter().filter(|circle| !explained.contains(circle)) {
            found.push(format!(
                "{folder}: these modules import each other in a circle: {}; move what they share below them",
                circle.join(", ")
            ));
        }
        for gone in explained.iter().filter(|circle| !circles.contains(circle)) {
            found.push(format!(
                "{folder}: there is no circle of {} any more; remove it from EXPLAINED in crates/xtask/src/circles.rs",
                gone.join(", ")
            ));
        }
    }
    Ok(found)
}

/// The files below `folder`, by module.
fn sources(folder: &Path) -> Result<BTreeMap<Module, String>, String> {
    let mut found = BTreeMap::new();
    collect(folder, &mut Vec::new(), &mut found).map_err(|e| format!("{}: {e}", folder.display()))?;
    Ok(found)
}

fn collect(folder: &Path, path: &mut Module, found: &mut BTreeMap<Module, String>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let file = entry?.path();
        let Some(stem) = file.file_stem().and_then(|stem| stem.to_str()) else {
            continue;
        };
        if file.is_dir() {
            path.push(stem.to_owned());
            collect(&file, path, found)?;
            path.pop();
        } else if file.extension().is_some_and(|extension| extension == "rs") {
            let mut module = path.clone();
            if !matches!(stem, "mod" | "lib" | "main") {
                module.push(stem.to_owned());
            }
            found.insert(module, std::fs::read_to_string(&file)?);
        }
    }
    Ok(())
}

/// What one file says of others.
#[derive(Default)]
struct Declared {
    /// Paths from the root of the crate that its code uses.
    uses: Vec<Module>,
    /// What it hands on, by name.
    exports: BTreeMap<String, Module>,
}

/// The modules that each module imports.
fn imports(sources: &BTreeMap<Module, String>) -> BTreeMap<Module, BTreeSet<Module>> {
    let mut tests = Vec::new();
    let mut tokens = BTreeMap::new();
    for (module, source) in sources {
        let all = tokens_of(source);
        let code = without_tests(&all, |name| {
            tests.push([module.as_slice(), &[name.to_owned()]].concat())
        });
        tokens.insert(module, code);
    }
    tokens.retain(|module, _| !tests.iter().any(|test| module.starts_with(test)));
    let modules: BTreeSet<Module> = tokens.keys().map(|module| (*module).clone()).collect();
    let declared: BTreeMap<Module, Declared> = tokens
        .into_iter()
        .map(|(module, tokens)| (module.clone(), read(module, &tokens, &modules)))
        .collect();
    let mut imports: BTreeMap<Module, BTreeSet<Module>> = BTreeMap::new();
    for (module, Declared { uses, .. }) in &declared {
        let used = uses.iter().map(|path| origin(path, &declared, 0));
        let others = used.filter(|other| other != module).collect();
        imports.insert(module.clone(), others);
    }
    imports
}

/// The words and signs of a source: names, `::`, and single characters. Comments and literals are left out.
fn tokens_of(source: &str) -> Vec<String> {
    let bytes = source.as_bytes();
    let (mut tokens, mut at) = (Vec::new(), 0);
    let is_word = |byte: u8| byte == b'_' || byte.is_ascii_alphanumeric() || !byte.is_ascii();
    while let Some(&byte) = bytes.get(at) {
        let rest = &bytes[at..];
        let length = match byte {
            _ if rest.starts_with(b"//") => rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len()),
            b'"' => quoted(rest),
            b'r' | b'b' if raw(rest).is_some() => raw(rest).unwrap_or(1),
            b'\'' if rest.get(1) == Some(&b'\\') => 2 + rest[2..].iter().position(|b| *b == b'\'').unwrap_or(0),
            b'\'' if rest.get(2) == Some(&b'\'') => 3,
            _ if is_word(byte) => {
                let length = rest.iter().position(|b| !is_word(*b)).unwrap_or(rest.len());
                tokens.push(source[at..at + length].to_owned());
                length
            }
            b':' if rest.starts_with(b"::") => {
                tokens.push("::".to_owned());
                2
            }
            _ if byte.is_ascii_whitespace() => 1,
            _ => {
                tokens.push(char::from(byte).to_string());
                1
            }
        };
        at += length.max(1);
    }
    tokens
}

/// Length of the string that `rest` begins with.
fn quoted(rest: &[u8]) -> usize {
    let mut at = 1;
    while let Some(byte) = rest.get(at) {
        match byte {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// Length of the raw string that `rest` begins with.
fn raw(rest: &[u8]) -> Option<usize> {
    let start = rest.iter().position(|b| *b == b'r').filter(|at| *at < 2)? + 1;
    let hashes = rest[start..].iter().take_while(|b| **b == b'#').count();
    (rest.get(start + hashes) == Some(&b'"')).then_some(())?;
    let end: Vec<u8> = [b"\"".as_slice(), &vec![b'#'; hashes]].concat();
    let body = start + hashes + 1;
    let length = rest[body..].windows(end.len()).position(|window| window == end)?;
    Some(body + length + end.len())
}

/// The tokens that are no test's. `is_test` is told of modules in other files that are.
fn without_tests(tokens: &[String], mut is_test: impl FnMut(&str)) -> Vec<String> {
    const MARK: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let mut code = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if !tokens[at..].iter().map(String::as_str).take(7).eq(MARK) {
            code.push(tokens[at].clone());
            at += 1;
            continue;
        }
        // What follows is one item: to its `;`, or to the end of its braces.
        let item = &tokens[at + 7..];
        let (mut depth, mut end) = (0usize, item.len());
        for (index, token) in item.iter().enumerate() {
            match token.as_str() {
                "{" => depth += 1,
                "}" => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth == 0 && matches!(token.as_str(), ";" | "}") {
                end = index + 1;
                break;
            }
        }
        if let Some(name) = item[..end]
            .iter()
            .position(|token| token == "mod")
            .and_then(|at| item.get(at + 1))
        {
            is_test(name);
        }
        at += 7 + end;
    }
    code
}

/// What the tokens of `module` say.
fn read(module: &Module, tokens: &[String], modules: &BTreeSet<Module>) -> Declared {
    let mut declared = Declared::default();
    let mut at = 0;
    while at < tokens.len() {
        if tokens[at] != "use" {
            let length = path_at(&tokens[at..]);
            let is_start = at == 0 || tokens[at - 1] != "::";
            if length > 1 && is_start {
                let path: Vec<String> = tokens[at..at + 2 * length - 1].iter().step_by(2).cloned().collect();
                declared.uses.extend(absolute(module, &path, modules));
            }
            at += (2 * length).saturating_sub(1).max(1);
            continue;
        }
        let end = at
            + tokens[at..]
                .iter()
                .position(|token| token == ";")
                .unwrap_or(tokens.len() - at);
        // `pub use`, `pub(crate) use`.
        let is_handed_on = at > 0 && (tokens[at - 1] == "pub" || tokens[at - 1] == ")");
        let mut leaves = Vec::new();
        tree(&tokens[at + 1..end], &[], &mut leaves);
        for (path, name) in leaves {
            let Some(path) = absolute(module, &path, modules) else {
                continue;
            };
            match is_handed_on {
                true => drop(declared.exports.insert(name, path)),
                false => declared.uses.push(path),
            }
        }
        at = end + 1;
    }
    declared
}

/// Number of names in the path that `tokens` begin with.
fn path_at(tokens: &[String]) -> usize {
    let is_name = |token: &String| token.bytes().all(|b| b == b'_' || b.is_ascii_alphanumeric());
    let mut count = 0;
    while tokens.get(2 * count).is_some_and(is_name) {
        count += 1;
        if tokens.get(2 * count - 1).map(String::as_str) != Some("::") {
            break;
        }
    }
    count
}

/// The paths of a `use`, each with the name it has here; the rest of `tokens` after one branch.
fn tree<'a>(tokens: &'a [String], before: &[String], leaves: &mut Vec<(Vec<String>, String)>) -> &'a [String] {
    let mut path = before.to_vec();
    let mut rest = tokens;
    while let Some((token, after)) = rest.split_first() {
        match token.as_str() {
            "{" => {
                rest = after;
                while let Some(first) = rest.first() {
                    match first.as_str() {
                        "}" => return &rest[1..],
                        "," => rest = &rest[1..],
                        _ => rest = tree(rest, &path, leaves),
                    }
                }
                return rest;
            }
            "," | "}" => break,
            "::" => rest = after,
            "as" => {
                let name = after.first().cloned().unwrap_or_default();
                leaves.push((path, name));
                return after.get(1..).unwrap_or_default();
            }
            name => {
                path.push(name.to_owned());
                rest = after;
            }
        }
    }
    if path.last().is_some_and(|last| last == "self") && path.len() > 1 {
        path.pop();
    }
    let name = path.last().cloned().unwrap_or_default();
    leaves.push((path, name));
    rest
}

/// A path of `module` from the root of the crate; `None` when it leads out of it.
fn absolute(module: &Module, path: &[String], modules: &BTreeSet<Module>) -> Option<Module> {
    let child = |name: &String| [module.as_slice(), std::slice::from_ref(name)].concat();
    match path.first()?.as_str() {
        "crate" => Some(path[1..].to_vec()),
        "self" => Some([module.as_slice(), &path[1..]].concat()),
        "super" => {
            let up = path.iter().take_while(|name| *name == "super").count();
            let base = module.get(..module.len().checked_sub(up)?)?;
            Some([base, &path[up..]].concat())
        }
        _ if modules.contains(&child(path.first()?)) => Some([module.as_slice(), path].concat()),
        _ => None,
    }
}

/// The module in which what `path` names is.
fn origin(path: &[String], declared: &BTreeMap<Module, Declared>, depth: usize) -> Module {
    let longest = (0..=path.len())
        .rev()
        .find(|length| declared.contains_key(&path[..*length]));
    let (module, rest) = path.split_at(longest.unwrap_or(0));
    let handed_on = rest.first().and_then(|name| declared.get(module)?.exports.get(name));
    match handed_on {
        Some(from) if depth < 8 => origin(&[from.as_slice(), &rest[1..]].concat(), declared, depth + 1),
        _ => module.to_vec(),
    }
}

/// The circles, each with the names of its modules in order.
fn circles(imports: &BTreeMap<Module, BTreeSet<Module>>) -> Vec<Vec<String>> {
    let reach = |from: &Module| {
        let (mut seen, mut left) = (BTreeSet::new(), vec![from]);
        while let Some(module) = left.pop() {
            let next = imports.get(module).into_iter().flatten();
            left.extend(next.filter(|other| seen.insert((*other).clone())));
        }
        seen
    };
    let reached: BTreeMap<&Module, BTreeSet<Module>> = imports.keys().map(|module| (module, reach(module))).collect();
    let mut found: BTreeSet<Vec<String>> = BTreeSet::new();
    for (module, there) in &reached {
        let back = |other: &&Module| reached.get(*other).is_some_and(|reached| reached.contains(*module));
        if there.contains(*module) {
            let names = there.iter().filter(back).map(|module| match module.as_slice() {
                [] => "the root".to_owned(),
                names => names.join("::"),
            });
            found.insert(names.collect());
        }
    }
    found.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<Vec<String>> {
        let module = |name: &str| {
            name.split("::")
                .filter(|part| !part.is_empty())
                .map(str::to_owned)
                .collect()
        };
        let sources = files.iter().map(|(name, source)| (module(name), (*source).to_owned()));
        circles(&imports(&sources.collect()))
    }

    #[test]
    fn modules_that_import_each_other_are_a_circle() {
        let circle = [
            ("", "mod a;\nmod b;\nmod c;"),
            ("a", "use crate::b::{self, B};\npub struct A;"),
            ("b", "pub struct B;\nfn f() -> super::c::C { todo() }"),
            ("c", "use std::io;\nuse super::{a::A, io as other};\npub struct C;"),
        ];
        assert_eq!(found(&circle), [["a", "b", "c"]]);
        assert!(found(&circle[..3]).is_empty());
    }

    #[test]
    fn what_is_only_handed_on_is_no_import() {
        let facade = [
            ("", "mod a;\nmod b;\npub use self::a::A;\npub(crate) use b::B as Bee;"),
            ("a", "use crate::Bee;\npub struct A;"),
            ("b", "pub struct B;"),
        ];
        assert!(found(&facade).is_empty());
        let both = [facade[0], facade[1], ("b", "use super::A;\npub struct B;")];
        assert_eq!(found(&both), [["a", "b"]]);
        let used = [("", "mod a;\nfn f() { a::g() }"), ("a", "use super::f;"), ("b", "")];
        assert_eq!(found(&used), [["the root", "a"]]);
    }

    #[test]
    fn tests_comments_and_literals_import_nothing() {
        let files = [
            ("", "mod a;\nmod b;\n#[cfg(test)]\nmod far;"),
            (
                "a",
                "// crate::b::B\nconst T: &str = \"crate::b\"; const R: &str = r#\"\"crate::b::B\"#; const C: char = '\"';\n\
                 #[cfg(test)]\nmod tests { use crate::b::B; fn f() { if true {} } }",
            ),
            ("b", "use crate::a::A;"),
            ("far", "use crate::b::B;"),
        ];
        assert!(found(&files).is_empty());
        let after = [
            files[0],
            ("a", "#[cfg(test)]\nuse crate::c;\nuse crate::b::B;"),
            files[2],
        ];
        assert_eq!(found(&after), [["a", "b"]]);
    }

    #[test]
    fn the_watched_folders_have_the_circles_that_are_explained() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        assert_eq!(violations(&root).unwrap(), Vec::<String>::new());
    }
}

//! Which crate of the workspace may import which.
//!
//! [`LEVELS`] says where a crate stands and [`EDGES`] lists every import there is, so a new one is a line in a diff of
//! this file. Invariants: an edge goes strictly down; what is listed exists and what exists is listed; crates that a
//! machine runs never depend on the development crates, except on the test kit in their tests. A test may also import
//! sideways, when [`TEST_EDGES`] lists it: it wants a real neighbour, and no program grows an edge by that.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

/// Level of each crate: an import goes to a strictly lower one. Tools of development stand beside the house.
const LEVELS: &[(&str, u8)] = &[
    ("zmachine-agent-protocol", 0),
    ("zmachine-compose", 0),
    ("zmachine-flist", 0),
    ("zmachine-sys", 0),
    ("zmachine-transfer", 0),
    ("zmachine-disk", 1),
    ("zmachine-hypervisor", 1),
    ("zmachine-image", 1),
    ("zmachine-kernel", 1),
    ("zmachine-network", 1),
    ("zmachine-share", 1),
    ("zmachine-mount", 2),
    ("zmachine-pack", 2),
    ("zmachine-rootfs", 2),
    ("zmachine-spec", 3),
    ("zmachine-access", 4),
    ("zmachine-agent-client", 4),
    ("zmachine-remote", 4),
    ("zmachine-plan", 4),
    ("zmachine-template", 4),
    ("zmachine-term", 8),
    ("zmachine-store", 5),
    ("zmachine-monitor", 6),
    ("zmachine-engine", 7),
    ("zmachine-zos", 7),
    ("zmachine-docker", 8),
    ("zmachine-project", 8),
    ("zmachine", 9),
    ("zmachine-shim", 9),
    ("zmachine-snapshotter", 9),
    ("zmachine-api", 9),
    // The guest: PID 1 of container machines. It shares nothing with the host but the protocol.
    ("zmachine-agent", 1),
    // Development: nothing is above them, so nothing can import them but a test.
    ("zmachine-testkit", DEVELOPMENT),
    ("zmachine-guest-tests", DEVELOPMENT + 1),
    ("zmachine-fuzz", DEVELOPMENT + 1),
    ("xtask", DEVELOPMENT + 1),
];

const DEVELOPMENT: u8 = 100;

/// This file, for the remedies.
const FILE: &str = "crates/xtask/src/layering.rs";

/// What a test of any crate may import without being listed.
const TEST_KIT: &str = "zmachine-testkit";

/// Every import a program or a build script has between two crates of the workspace: (importer, imported).
#[rustfmt::skip]
const EDGES: &[(&str, &str)] = &[
    ("zmachine", "zmachine-agent-protocol"),
    ("zmachine", "zmachine-compose"),
    ("zmachine", "zmachine-engine"),
    ("zmachine", "zmachine-flist"),
    ("zmachine", "zmachine-hypervisor"),
    ("zmachine", "zmachine-image"),
    ("zmachine", "zmachine-kernel"),
    ("zmachine", "zmachine-monitor"),
    ("zmachine", "zmachine-mount"),
    ("zmachine", "zmachine-network"),
    ("zmachine", "zmachine-pack"),
    ("zmachine", "zmachine-plan"),
    ("zmachine", "zmachine-project"),
    ("zmachine", "zmachine-rootfs"),
    ("zmachine", "zmachine-share"),
    ("zmachine", "zmachine-spec"),
    ("zmachine", "zmachine-store"),
    ("zmachine", "zmachine-sys"),
    ("zmachine", "zmachine-template"),
    ("zmachine", "zmachine-term"),
    ("zmachine", "zmachine-transfer"),
    ("zmachine", "zmachine-zos"),
    ("zmachine-access", "zmachine-spec"),
    ("zmachine-access", "zmachine-sys"),
    ("zmachine-agent", "zmachine-agent-protocol"),
    ("zmachine-agent", "zmachine-transfer"),
    ("zmachine-agent-client", "zmachine-agent-protocol"),
    ("zmachine-agent-client", "zmachine-spec"),
    ("zmachine-agent-client", "zmachine-sys"),
    ("zmachine-api", "zmachine-access"),
    ("zmachine-api", "zmachine-agent-protocol"),
    ("zmachine-api", "zmachine-docker"),
    ("zmachine-api", "zmachine-engine"),
    ("zmachine-api", "zmachine-flist"),
    ("zmachine-api", "zmachine-image"),
    ("zmachine-api", "zmachine-kernel"),
    ("zmachine-api", "zmachine-network"),
    ("zmachine-api", "zmachine-pack"),
    ("zmachine-api", "zmachine-plan"),
    ("zmachine-api", "zmachine-remote"),
    ("zmachine-api", "zmachine-spec"),
    ("zmachine-api", "zmachine-store"),
    ("zmachine-api", "zmachine-sys"),
    ("zmachine-api", "zmachine-transfer"),
    ("zmachine-api", "zmachine-zos"),
    ("zmachine-docker", "zmachine-access"),
    ("zmachine-docker", "zmachine-agent-protocol"),
    ("zmachine-docker", "zmachine-engine"),
    ("zmachine-docker", "zmachine-flist"),
    ("zmachine-docker", "zmachine-image"),
    ("zmachine-docker", "zmachine-network"),
    ("zmachine-docker", "zmachine-pack"),
    ("zmachine-docker", "zmachine-plan"),
    ("zmachine-docker", "zmachine-spec"),
    ("zmachine-docker", "zmachine-store"),
    ("zmachine-docker", "zmachine-sys"),
    ("zmachine-docker", "zmachine-transfer"),
    ("zmachine-engine", "zmachine-agent-protocol"),
    ("zmachine-engine", "zmachine-disk"),
    ("zmachine-engine", "zmachine-flist"),
    ("zmachine-engine", "zmachine-hypervisor"),
    ("zmachine-engine", "zmachine-image"),
    ("zmachine-engine", "zmachine-kernel"),
    ("zmachine-engine", "zmachine-network"),
    ("zmachine-engine", "zmachine-pack"),
    ("zmachine-engine", "zmachine-plan"),
    ("zmachine-engine", "zmachine-rootfs"),
    ("zmachine-engine", "zmachine-share"),
    ("zmachine-engine", "zmachine-spec"),
    ("zmachine-engine", "zmachine-store"),
    ("zmachine-engine", "zmachine-sys"),
    ("zmachine-engine", "zmachine-transfer"),
    ("zmachine-fuzz", "zmachine-api"),
    ("zmachine-fuzz", "zmachine-engine"),
    ("zmachine-fuzz", "zmachine-flist"),
    ("zmachine-fuzz", "zmachine-image"),
    ("zmachine-fuzz", "zmachine-pack"),
    ("zmachine-fuzz", "zmachine-rootfs"),
    ("zmachine-fuzz", "zmachine-spec"),
    // Its program: an example of the engine in another program.
    ("zmachine-guest-tests", "zmachine-agent-protocol"),
    ("zmachine-guest-tests", "zmachine-engine"),
    ("zmachine-guest-tests", "zmachine-image"),
    ("zmachine-guest-tests", "zmachine-spec"),
    ("zmachine-hypervisor", "zmachine-sys"),
    ("zmachine-image", "zmachine-flist"),
    ("zmachine-image", "zmachine-sys"),
    ("zmachine-kernel", "zmachine-sys"),
    ("zmachine-monitor", "zmachine-agent-client"),
    ("zmachine-monitor", "zmachine-agent-protocol"),
    ("zmachine-monitor", "zmachine-disk"),
    ("zmachine-monitor", "zmachine-flist"),
    ("zmachine-monitor", "zmachine-hypervisor"),
    ("zmachine-monitor", "zmachine-image"),
    ("zmachine-monitor", "zmachine-network"),
    ("zmachine-monitor", "zmachine-plan"),
    ("zmachine-monitor", "zmachine-rootfs"),
    ("zmachine-monitor", "zmachine-spec"),
    ("zmachine-monitor", "zmachine-store"),
    ("zmachine-monitor", "zmachine-sys"),
    ("zmachine-mount", "zmachine-flist"),
    ("zmachine-mount", "zmachine-image"),
    ("zmachine-network", "zmachine-sys"),
    ("zmachine-pack", "zmachine-flist"),
    ("zmachine-pack", "zmachine-image"),
    ("zmachine-pack", "zmachine-sys"),
    ("zmachine-pack", "zmachine-transfer"),
    ("zmachine-plan", "zmachine-agent-protocol"),
    ("zmachine-plan", "zmachine-hypervisor"),
    ("zmachine-plan", "zmachine-kernel"),
    ("zmachine-plan", "zmachine-network"),
    ("zmachine-plan", "zmachine-rootfs"),
    ("zmachine-plan", "zmachine-share"),
    ("zmachine-plan", "zmachine-spec"),
    ("zmachine-plan", "zmachine-sys"),
    ("zmachine-project", "zmachine-compose"),
    ("zmachine-project", "zmachine-engine"),
    ("zmachine-project", "zmachine-image"),
    ("zmachine-project", "zmachine-network"),
    ("zmachine-project", "zmachine-plan"),
    ("zmachine-project", "zmachine-spec"),
    ("zmachine-project", "zmachine-store"),
    ("zmachine-remote", "zmachine-compose"),
    ("zmachine-remote", "zmachine-spec"),
    ("zmachine-remote", "zmachine-sys"),
    ("zmachine-remote", "zmachine-transfer"),
    ("zmachine-rootfs", "zmachine-flist"),
    ("zmachine-rootfs", "zmachine-image"),
    ("zmachine-rootfs", "zmachine-sys"),
    ("zmachine-share", "zmachine-sys"),
    ("zmachine-shim", "zmachine-agent-protocol"),
    ("zmachine-shim", "zmachine-engine"),
    ("zmachine-shim", "zmachine-flist"),
    ("zmachine-shim", "zmachine-image"),
    ("zmachine-shim", "zmachine-network"),
    ("zmachine-shim", "zmachine-spec"),
    ("zmachine-shim", "zmachine-sys"),
    ("zmachine-snapshotter", "zmachine-engine"),
    ("zmachine-snapshotter", "zmachine-flist"),
    ("zmachine-snapshotter", "zmachine-image"),
    ("zmachine-snapshotter", "zmachine-mount"),
    ("zmachine-snapshotter", "zmachine-pack"),
    ("zmachine-snapshotter", "zmachine-spec"),
    ("zmachine-snapshotter", "zmachine-sys"),
    ("zmachine-spec", "zmachine-agent-protocol"),
    ("zmachine-spec", "zmachine-disk"),
    ("zmachine-spec", "zmachine-hypervisor"),
    ("zmachine-spec", "zmachine-image"),
    ("zmachine-spec", "zmachine-kernel"),
    ("zmachine-spec", "zmachine-network"),
    ("zmachine-spec", "zmachine-rootfs"),
    ("zmachine-spec", "zmachine-sys"),
    ("zmachine-store", "zmachine-agent-protocol"),
    ("zmachine-store", "zmachine-disk"),
    ("zmachine-store", "zmachine-flist"),
    ("zmachine-store", "zmachine-hypervisor"),
    ("zmachine-store", "zmachine-image"),
    ("zmachine-store", "zmachine-network"),
    ("zmachine-store", "zmachine-plan"),
    ("zmachine-store", "zmachine-rootfs"),
    ("zmachine-store", "zmachine-spec"),
    ("zmachine-store", "zmachine-sys"),
    ("zmachine-template", "zmachine-spec"),
    ("zmachine-term", "zmachine-agent-protocol"),
    ("zmachine-term", "zmachine-engine"),
    ("zmachine-term", "zmachine-image"),
    ("zmachine-term", "zmachine-spec"),
    ("zmachine-term", "zmachine-sys"),
    ("zmachine-zos", "zmachine-plan"),
    ("zmachine-zos", "zmachine-spec"),
    ("zmachine-zos", "zmachine-store"),
];

/// Every import that only tests, examples and benches of a crate have, in the same order; the test kit and the crate
/// itself need no line.
const TEST_EDGES: &[(&str, &str)] = &[
    ("zmachine-guest-tests", "zmachine-hypervisor"),
    ("zmachine-hypervisor", "zmachine-kernel"),
    ("zmachine-mount", "zmachine-pack"),
];

/// Lines of Rust that a crate may have: more take minutes to check after a change of one line.
const LARGEST_CRATE_LINES: usize = 12_000;

/// Crates that are larger, with why.
const LARGER: &[(&str, &str)] = &[];

/// What is too large below `root`, a sentence each.
///
/// # Errors
/// When a file cannot be read.
pub(crate) fn too_large(root: &Path) -> Result<Vec<String>, String> {
    let mut found = Vec::new();
    let crates = root.join("crates");
    let entries = std::fs::read_dir(&crates).map_err(|e| format!("{}: {e}", crates.display()))?;
    for entry in entries {
        let path = entry.map_err(|e| format!("{}: {e}", crates.display()))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let lines = lines_below(&path.join("src")).map_err(|e| format!("{}: {e}", path.display()))?;
        let is_explained = LARGER.iter().any(|(larger, _)| *larger == name);
        match (lines > LARGEST_CRATE_LINES, is_explained) {
            (true, false) => found.push(format!(
                "crates/{name} has {lines} lines, more than {LARGEST_CRATE_LINES}: split it by meaning"
            )),
            (false, true) => found.push(format!(
                "crates/{name} is not too large any more; remove it from LARGER in {FILE}"
            )),
            _ => {}
        }
    }
    Ok(found)
}

fn lines_below(folder: &Path) -> std::io::Result<usize> {
    let mut lines = 0;
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            lines += lines_below(&path)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            lines += std::fs::read_to_string(&path)?.lines().count();
        }
    }
    Ok(lines)
}

/// One import between two crates of the workspace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Edge {
    /// The importing package.
    pub(crate) from: String,
    /// The imported package.
    pub(crate) to: String,
    /// Whether only tests, examples and benches import it.
    pub(crate) dev: bool,
}

/// The imports between members in the answer of `cargo metadata --no-deps` (all dependency kinds).
///
/// # Errors
/// A text that names the missing field when `metadata` is not such an answer.
pub(crate) fn edges_of(metadata: &Value) -> Result<BTreeSet<Edge>, String> {
    let packages = array(metadata, "packages")?;
    let members: BTreeSet<&str> = packages
        .iter()
        .map(|package| text(package, "name"))
        .collect::<Result<_, _>>()?;
    let mut edges = BTreeSet::new();
    for package in packages {
        let from = text(package, "name")?;
        for dependency in array(package, "dependencies")? {
            let to = text(dependency, "name")?;
            if members.contains(to) {
                let dev = dependency["kind"] == "dev";
                edges.insert(Edge {
                    from: from.to_owned(),
                    to: to.to_owned(),
                    dev,
                });
            }
        }
    }
    Ok(edges)
}

/// What is wrong with `edges`, one sentence with its remedy each; empty when the house stands.
pub(crate) fn violations(edges: &BTreeSet<Edge>) -> Vec<String> {
    let mut found: Vec<String> = edges.iter().filter_map(violation).collect();
    for (table, name, dev) in [(EDGES, "EDGES", false), (TEST_EDGES, "TEST_EDGES", true)] {
        let gone = |(from, to): &&(&str, &str)| {
            !edges
                .iter()
                .any(|edge| edge.from == *from && edge.to == *to && edge.dev == dev)
        };
        found.extend(table.iter().filter(gone).map(|(from, to)| {
            format!(
                "{from} does not import {to} any more; remove from {name} in {FILE}: {}",
                line(from, to)
            )
        }));
    }
    found.sort();
    found
}

fn violation(edge: &Edge) -> Option<String> {
    let Edge { from, to, dev } = edge;
    if *dev && (to == TEST_KIT || to == from) {
        return None;
    }
    let (Some(above), Some(below)) = (level(from), level(to)) else {
        let unknown = if level(from).is_none() { from } else { to };
        return Some(format!(
            "{unknown} has no level; add to LEVELS in {FILE}: (\"{unknown}\", N),"
        ));
    };
    if below > above || (below == above && !dev) {
        return Some(format!(
            "{from} (level {above}) may not import {to} (level {below}): imports only go down"
        ));
    }
    let (table, name) = if *dev {
        (TEST_EDGES, "TEST_EDGES")
    } else {
        (EDGES, "EDGES")
    };
    let listed = table.contains(&(from.as_str(), to.as_str()));
    (!listed).then(|| {
        format!(
            "{from} imports {to}, which is not listed; add to {name} in {FILE}: {}",
            line(from, to)
        )
    })
}

fn level(package: &str) -> Option<u8> {
    LEVELS
        .iter()
        .find(|(name, _)| *name == package)
        .map(|(_, level)| *level)
}

fn line(from: &str, to: &str) -> String {
    format!("(\"{from}\", \"{to}\"),")
}

fn array<'a>(value: &'a Value, field: &str) -> Result<&'a Vec<Value>, String> {
    value[field]
        .as_array()
        .ok_or_else(|| format!("cargo metadata: no array {field}"))
}

fn text<'a>(value: &'a Value, field: &str) -> Result<&'a str, String> {
    value[field]
        .as_str()
        .ok_or_else(|| format!("cargo metadata: no text {field}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The house as it is listed, plus `more` imports, as cargo would describe it.
    fn house_with(more: &[(&str, &str, Option<&str>)]) -> BTreeSet<Edge> {
        let listed = EDGES.iter().map(|(from, to)| (*from, *to, None));
        let in_tests = TEST_EDGES.iter().map(|(from, to)| (*from, *to, Some("dev")));
        let edges: Vec<_> = listed.chain(in_tests).chain(more.iter().copied()).collect();
        let names: BTreeSet<&str> = edges.iter().flat_map(|(from, to, _)| [*from, *to]).collect();
        let packages: Vec<Value> = names
            .iter()
            .map(|name| {
                let own = edges.iter().filter(|(from, _, _)| from == name);
                let mut dependencies: Vec<Value> = own
                    .map(|(_, to, kind)| serde_json::json!({"name": to, "kind": kind}))
                    .collect();
                dependencies.push(serde_json::json!({"name": "serde", "kind": null}));
                serde_json::json!({"name": name, "dependencies": dependencies})
            })
            .collect();
        edges_of(&serde_json::json!({ "packages": packages })).unwrap()
    }

    #[test]
    fn the_listed_house_stands() {
        assert_eq!(violations(&house_with(&[])), Vec::<String>::new());
    }

    #[test]
    fn a_new_edge_is_answered_with_the_line_to_add() {
        let found = violations(&house_with(&[("zmachine-rootfs", "zmachine-kernel", None)]));
        assert_eq!(found.len(), 1);
        assert!(
            found[0]
                .ends_with(r#"add to EDGES in crates/xtask/src/layering.rs: ("zmachine-rootfs", "zmachine-kernel"),"#)
        );
    }

    #[test]
    fn an_edge_between_crates_of_one_level_or_upwards_is_refused() {
        let sideways = violations(&house_with(&[("zmachine-image", "zmachine-network", None)]));
        let upwards = violations(&house_with(&[("zmachine-sys", "zmachine-engine", Some("build"))]));
        assert!(sideways[0].contains("imports only go down"), "{sideways:?}");
        assert!(upwards[0].contains("imports only go down"), "{upwards:?}");
    }

    #[test]
    fn a_vanished_edge_is_answered_with_the_line_to_remove() {
        let mut edges = house_with(&[]);
        edges.retain(|edge| edge.from != "zmachine-kernel");
        let found = violations(&edges);
        assert_eq!(found.len(), 1);
        assert!(
            found[0].ends_with(r#"layering.rs: ("zmachine-kernel", "zmachine-sys"),"#),
            "{found:?}"
        );
    }

    #[test]
    fn tests_may_import_the_test_kit_and_programs_may_not() {
        assert!(violations(&house_with(&[("zmachine-flist", TEST_KIT, Some("dev"))])).is_empty());
        assert_eq!(violations(&house_with(&[("zmachine-flist", TEST_KIT, None)])).len(), 1);
    }

    #[test]
    fn a_test_may_import_itself_freely_and_a_neighbour_when_listed() {
        let found = violations(&house_with(&[
            ("zmachine-image", "zmachine-image", Some("dev")),
            ("zmachine-image", "zmachine-kernel", Some("dev")),
            ("zmachine-image", "zmachine-engine", Some("dev")),
        ]));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("imports only go down"), "{found:?}");
        assert!(found[1].contains("add to TEST_EDGES in"), "{found:?}");
    }

    #[test]
    fn a_crate_of_too_many_lines_is_reported() {
        let root = std::env::temp_dir().join(format!("xtask-layering-{}", std::process::id()));
        let source = |name: &str, lines: usize| {
            let folder = root.join("crates").join(name).join("src/deep");
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("x.rs"), "\n".repeat(lines)).unwrap();
        };
        source("small", LARGEST_CRATE_LINES);
        assert_eq!(too_large(&root).unwrap(), Vec::<String>::new());
        source("large", LARGEST_CRATE_LINES + 1);
        let found = too_large(&root).unwrap();
        std::fs::remove_dir_all(&root).unwrap();
        assert!(found.len() == 1 && found[0].contains("crates/large has"), "{found:?}");
    }

    #[test]
    fn a_crate_without_a_level_is_reported() {
        let found = violations(&house_with(&[("zmachine-other", "zmachine-sys", None)]));
        assert!(found[0].contains("zmachine-other has no level"), "{found:?}");
    }
}

//! Looking up paths, and what a tree refuses to be.

use zmachine_flist::{Metadata, Node, NodeId, NodeKind, ResolveError, Tree, TreeBuilder, TreeError};

fn node(kind: NodeKind) -> Node {
    Node {
        metadata: Metadata::default(),
        kind,
    }
}

fn file() -> Node {
    node(NodeKind::Regular {
        size: 0,
        blocks: Vec::new(),
    })
}

fn directory() -> Node {
    node(NodeKind::Directory(Vec::new()))
}

/// `/usr/bin/sh`, links in every direction.
fn tree() -> Tree {
    let mut builder = TreeBuilder::new(Metadata::default());
    let usr = builder.add(NodeId::ROOT, b"usr".to_vec(), directory()).unwrap();
    let bin = builder.add(usr, b"bin".to_vec(), directory()).unwrap();
    builder.add(bin, b"sh".to_vec(), file()).unwrap();
    for (name, target) in [
        ("bin", "usr/bin"),
        ("abs", "/bin/sh"),
        ("up", "../../../usr/../bin/./sh"),
        ("loop", "loop"),
        ("ping", "/pong"),
        ("pong", "ping"),
        ("gone", "not/there"),
        ("slash", "bin/sh/"),
    ] {
        builder
            .add(NodeId::ROOT, name.into(), node(NodeKind::Symlink(target.into())))
            .unwrap();
    }
    builder.finish().unwrap()
}

#[test]
fn links_are_followed_inside_of_the_tree() {
    let tree = tree();
    let shell = tree.lookup(b"usr/bin/sh").unwrap();
    for path in [
        "/bin/sh",
        "bin//sh",
        "abs",
        "up",
        "/../../abs",
        "usr/bin/../../bin/./sh",
    ] {
        assert_eq!(tree.resolve(path.as_bytes()), Ok(shell), "{path}");
    }
    assert_eq!(tree.resolve(b"bin/"), Ok(tree.lookup(b"usr/bin").unwrap()));
    assert_eq!(tree.resolve(b""), Ok(NodeId::ROOT));
    assert_eq!(tree.resolve(b"/.."), Ok(NodeId::ROOT));
}

#[test]
fn a_link_itself_is_found_without_following_it() {
    let tree = tree();
    assert_eq!(tree.resolve_no_follow(b"/usr/../bin"), Ok(tree.lookup(b"bin").unwrap()));
    assert_eq!(tree.resolve_no_follow(b"bin/"), Ok(tree.lookup(b"usr/bin").unwrap()));
    assert_eq!(tree.lookup(b"bin/sh"), None);
    assert_eq!(tree.lookup(b"usr/.."), None);
}

#[test]
fn paths_that_lead_nowhere_say_why() {
    let tree = tree();
    for path in ["nothing", "gone", "usr/bin/sh2"] {
        assert_eq!(
            tree.resolve(path.as_bytes()),
            Err(ResolveError::NotFound { path: path.into() })
        );
    }
    for path in ["usr/bin/sh/x", "usr/bin/sh/", "usr/bin/sh/..", "slash"] {
        assert_eq!(
            tree.resolve(path.as_bytes()),
            Err(ResolveError::NotADirectory { path: path.into() })
        );
    }
    for path in ["loop", "ping", "pong/x"] {
        assert_eq!(
            tree.resolve(path.as_bytes()),
            Err(ResolveError::Loop { path: path.into() })
        );
    }
}

#[test]
fn a_walk_goes_through_directories_before_their_entries_in_the_order_of_names() {
    let tree = tree();
    let paths: Vec<String> = tree.walk().map(|(path, _)| String::from_utf8(path).unwrap()).collect();
    assert_eq!(
        paths,
        [
            "",
            "abs",
            "bin",
            "gone",
            "loop",
            "ping",
            "pong",
            "slash",
            "up",
            "usr",
            "usr/bin",
            "usr/bin/sh"
        ]
    );
    for (path, id) in tree.walk() {
        assert_eq!(tree.path_of(id).unwrap(), path);
        assert_eq!(tree.lookup(&path), Some(id));
    }
    let counts = tree.counts();
    assert_eq!(
        (counts.directories, counts.files, counts.symlinks, counts.specials),
        (3, 1, 8, 0)
    );
}

#[test]
fn a_hard_link_is_one_node_with_two_names() {
    let mut builder = TreeBuilder::new(Metadata::default());
    let one = builder.add(NodeId::ROOT, b"one".to_vec(), file()).unwrap();
    builder.link(NodeId::ROOT, b"two".to_vec(), one).unwrap();
    let tree = builder.finish().unwrap();
    assert_eq!(tree.lookup(b"two"), tree.lookup(b"one"));
    assert_eq!((tree.walk().count(), tree.len(), tree.counts().files), (3, 2, 1));
}

#[test]
fn what_is_no_tree_is_refused() {
    type Make<'a> = dyn Fn(&mut TreeBuilder) -> Result<(), TreeError> + 'a;
    let build = |make: &Make<'_>| {
        let mut builder = TreeBuilder::new(Metadata::default());
        make(&mut builder)?;
        builder.finish().map(|_| ())
    };
    let add = |builder: &mut TreeBuilder, name: &[u8], node| builder.add(NodeId::ROOT, name.to_vec(), node);
    let cases: [(&str, &Make<'_>); 7] = [
        ("exists twice", &|b| {
            add(b, b"a", file()).and_then(|_| add(b, b"a", file())).map(|_| ())
        }),
        ("is not a file name", &|b| add(b, b"a/b", file()).map(|_| ())),
        ("has 256 bytes", &|b| add(b, &[b'n'; 256], file()).map(|_| ())),
        ("reached in two ways", &|b| {
            let id = add(b, b"a", directory())?;
            b.link(id, b"self".to_vec(), id)
        }),
        ("does not exist", &|b| b.link(NodeId::ROOT, b"a".to_vec(), NodeId(7))),
        ("is not a directory", &|b| {
            let id = add(b, b"a", file())?;
            b.link(id, b"b".to_vec(), id)
        }),
        ("its 0 blocks have 0 bytes", &|b| {
            add(
                b,
                b"a",
                node(NodeKind::Regular {
                    size: 1,
                    blocks: Vec::new(),
                }),
            )
            .map(|_| ())
        }),
    ];
    for (expected, make) in cases {
        let found = build(make).unwrap_err().to_string();
        assert!(found.contains(expected), "{found:?} instead of {expected:?}");
    }
}

#[test]
fn trees_are_equal_by_what_is_in_them_and_not_by_their_numbering() {
    let build = |names: [&str; 2], link_of_first: bool| {
        let mut builder = TreeBuilder::new(Metadata::default());
        let ids = names.map(|name| builder.add(NodeId::ROOT, name.into(), file()).unwrap());
        let target = ids[usize::from(!link_of_first)];
        builder.link(NodeId::ROOT, b"link".to_vec(), target).unwrap();
        builder.finish().unwrap()
    };
    assert!(build(["a", "b"], true) == build(["b", "a"], false));
    assert!(build(["a", "b"], true) != build(["a", "b"], false));
    assert!(build(["a", "b"], true) != build(["a", "c"], true));
    let mut longer = TreeBuilder::new(Metadata::default());
    longer.add(NodeId::ROOT, b"a".to_vec(), file()).unwrap();
    assert!(TreeBuilder::new(Metadata::default()).finish().unwrap() != longer.finish().unwrap());
}

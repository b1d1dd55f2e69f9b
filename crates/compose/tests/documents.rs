//! `docs/compose.md`: which keys there are and what comes of them, made of the schema.

use std::fmt::Write;
use std::path::Path;

use zmachine_compose::schema::{self, Here, Key};

const BEGIN: &str = "<!-- keys -->\n";
const END: &str = "<!-- end of keys -->\n";

fn table(title: &str, keys: &[Key]) -> String {
    let mut text = format!("\n### {title}\n| key | here |\n|---|---|\n");
    for key in keys {
        let here = match key.here {
            Here::Works("") => "yes".to_owned(),
            Here::Works(remark) => format!("yes: {remark}"),
            Here::Nothing(why) => format!("changes nothing: {why}"),
            Here::Refused(why, hint) => format!("refused: {why}; {hint}"),
        };
        let _ = writeln!(text, "| `{}` | {} |", key.name, here.replace('|', "\\|"));
    }
    text
}

#[test]
fn the_page_has_every_key() {
    let tables = [
        ("Top of a file", schema::TOP),
        ("Services", schema::SERVICE),
        ("`depends_on` of a service", schema::DEPENDENCY),
        ("`networks` of a service", schema::ATTACHMENT),
        ("`ports` of a service", schema::PORT),
        ("`volumes` of a service", schema::MOUNT),
        ("`healthcheck` of a service", schema::HEALTHCHECK),
        ("`deploy` of a service", schema::DEPLOY),
        ("Networks", schema::NETWORK),
        ("Volumes", schema::VOLUME),
        ("Secrets", schema::SECRET),
        ("Configs", schema::CONFIG),
    ];
    let tables: String = tables.iter().map(|(title, keys)| table(title, keys)).collect();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/compose.md");
    let page = std::fs::read_to_string(&file).unwrap();
    let (before, rest) = page.split_once(BEGIN).expect("the begin of the keys");
    let (_, after) = rest.split_once(END).expect("the end of the keys");
    let wanted = format!("{before}{BEGIN}{tables}\n{END}{after}");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&file, &wanted).unwrap();
    }
    let found = std::fs::read_to_string(&file).unwrap();
    assert!(
        found == wanted,
        "docs/compose.md is out of date: run UPDATE_DOCS=1 cargo test --test compose documents"
    );
}

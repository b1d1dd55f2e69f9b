//! Names of images as docker's listings have them and ask for them.

use super::{DOCKER_HUB, ImageName};

/// Repository and tag of a name, in docker's words.
pub fn parts(name: Option<&str>) -> (String, String) {
    let none = || "<none>".to_owned();
    let Some(name) = name else { return (none(), none()) };
    let name = name.split('@').next().unwrap_or(name);
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository.to_owned(), tag.to_owned()),
        _ => (name.to_owned(), none()),
    }
}

/// Whether a name is what is asked for: itself, itself without its tag, or a pattern of either.
pub fn is_named(name: &str, wanted: &str) -> bool {
    let completed = ImageName::new(wanted)
        .ok()
        .and_then(|wanted| wanted.in_registry(DOCKER_HUB)?.local_name())
        .map(|wanted| wanted.to_string());
    let (repository, _) = parts(Some(name));
    completed.as_deref() == Some(name)
        || [name, &repository]
            .iter()
            .any(|text| matches(text.as_bytes(), wanted.as_bytes()))
}

/// Whether `pattern` matches all of `text`; `*` and `?` match no `/`.
fn matches(text: &[u8], pattern: &[u8]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), None) => matches(text, rest),
        (Some((b'*', rest)), Some((first, behind))) => {
            matches(text, rest) || *first != b'/' && matches(behind, pattern)
        }
        (Some((b'?', rest)), Some((first, behind))) => *first != b'/' && matches(behind, rest),
        (Some((wanted, rest)), Some((first, behind))) => wanted == first && matches(behind, rest),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_matched_as_docker_matches_them() {
        for (name, wanted) in [
            ("nginx:latest", "nginx"),
            ("nginx:latest", "nginx:latest"),
            ("nginx:1.2", "ngin?"),
            ("ghcr.io/org/app:1", "ghcr.io/*/app"),
            ("ghcr.io/org/app:1", "ghcr.io/org/*:1"),
            ("mine", "m*"),
        ] {
            assert!(is_named(name, wanted), "{name} {wanted}");
        }
        for (name, wanted) in [
            ("nginx:1.2", "nginx:1"),
            ("ghcr.io/org/app:1", "ghcr.io/*"),
            ("nginx:1", "ngin"),
        ] {
            assert!(!is_named(name, wanted), "{name} {wanted}");
        }
        // A pattern of many stars is no work for long.
        assert!(!matches(&[b'a'; 60], b"*a*a*a*b"));
    }

    #[test]
    fn names_have_a_repository_and_a_tag() {
        let told = |name| parts(Some(name));
        assert_eq!(told("host:5000/app"), ("host:5000/app".into(), "<none>".into()));
        assert_eq!(told("host:5000/app:1"), ("host:5000/app".into(), "1".into()));
        assert_eq!(parts(None).0, "<none>");
    }
}

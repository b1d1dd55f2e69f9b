//! The filters of `List`: `field==value,field!=value`, all of which have to hold; a field alone has to be there.

use std::collections::BTreeMap;

use crate::table::{Kind, Snapshot};

/// One condition.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Condition {
    field: String,
    /// Whether it is to be this, or not to be; `None`: it is to be there.
    wanted: Option<(bool, String)>,
}

/// Conditions that have to hold together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Filter(Vec<Condition>);

impl Filter {
    /// Reads one.
    ///
    /// # Errors
    /// Why nobody understands it.
    pub(crate) fn parse(text: &str) -> Result<Filter, String> {
        let conditions = pieces(text, ',')?;
        conditions
            .iter()
            .map(|text| Condition::parse(text))
            .collect::<Result<_, _>>()
            .map(Filter)
    }

    /// Whether all conditions hold.
    pub(crate) fn holds(&self, name: &str, snapshot: &Snapshot) -> bool {
        self.0.iter().all(|condition| condition.holds(name, snapshot))
    }
}

impl Condition {
    fn parse(text: &str) -> Result<Condition, String> {
        let at = |operator: &str| {
            outside_quotes(text)
                .find(|(at, _)| text[*at..].starts_with(operator))
                .map(|(at, _)| at)
        };
        let condition = |at: usize, is_equal: bool| Condition {
            field: unquoted(&text[..at]),
            wanted: Some((is_equal, unquoted(&text[at + 2..]))),
        };
        match (at("=="), at("!="), at("~=")) {
            (_, _, Some(_)) => Err(format!("{text}: patterns are not understood")),
            (Some(at), _, _) => Ok(condition(at, true)),
            (None, Some(at), _) => Ok(condition(at, false)),
            (None, None, None) => Ok(Condition {
                field: unquoted(text),
                wanted: None,
            }),
        }
    }

    fn holds(&self, name: &str, snapshot: &Snapshot) -> bool {
        let value = value(&self.field, name, snapshot);
        match &self.wanted {
            None => value.is_some_and(|value| !value.is_empty()),
            Some((is_equal, wanted)) => (value.unwrap_or_default() == wanted) == *is_equal,
        }
    }
}

fn value<'a>(field: &str, name: &'a str, snapshot: &'a Snapshot) -> Option<&'a str> {
    let labels: &BTreeMap<String, String> = &snapshot.labels;
    match field {
        "name" => Some(name),
        "parent" => Some(&snapshot.parent),
        "kind" => Some(match snapshot.kind {
            Kind::View => "view",
            Kind::Active => "active",
            Kind::Committed => "committed",
        }),
        label => labels.get(label.strip_prefix("labels.")?).map(String::as_str),
    }
}

/// Every character that is not in quotes, and where it is.
fn outside_quotes(text: &str) -> impl Iterator<Item = (usize, char)> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    text.char_indices().filter(move |(_, c)| {
        let was_quoted = is_quoted;
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' if is_quoted => is_escaped = true,
            '"' => is_quoted = !is_quoted,
            _ => {}
        }
        !was_quoted && !is_quoted
    })
}

/// The text between separators that are not in quotes.
fn pieces(text: &str, separator: char) -> Result<Vec<&str>, String> {
    if !text.matches('"').count().is_multiple_of(2) && !text.contains('\\') {
        return Err(format!("{text}: a quote is not closed"));
    }
    let (mut all, mut begin) = (Vec::new(), 0);
    for (at, _) in outside_quotes(text).filter(|(_, c)| *c == separator) {
        all.push(&text[begin..at]);
        begin = at + separator.len_utf8();
    }
    all.push(&text[begin..]);
    Ok(all)
}

/// A word, or the parts of a field's path, without quotes.
fn unquoted(text: &str) -> String {
    let (mut out, mut is_escaped) = (String::new(), false);
    for c in text.trim().chars() {
        match c {
            _ if is_escaped => {
                out.push(c);
                is_escaped = false;
            }
            '\\' => is_escaped = true,
            '"' => {}
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot() -> Snapshot {
        Snapshot {
            labels: BTreeMap::from([("containerd.io/snapshot.ref".to_owned(), "sha256:ab".to_owned())]),
            ..Snapshot::new(Kind::Committed, "k8s.io/1/sha256:p", None)
        }
    }

    #[test]
    fn the_filter_by_which_containerd_finds_a_layer_that_need_not_come() {
        let holds = |text: &str| Filter::parse(text).unwrap().holds("n", &snapshot());
        assert!(holds(
            r#"labels."containerd.io/snapshot.ref"==sha256:ab,parent=="k8s.io/1/sha256:p""#
        ));
        assert!(!holds(r#"labels."containerd.io/snapshot.ref"==sha256:ab,parent=="""#));
        assert!(!holds(r#"labels."containerd.io/snapshot.ref"==sha256:cd"#));
        assert!(holds(r#"labels."containerd.io/snapshot.ref""#) && !holds(r#"labels."other""#));
        assert!(holds("kind==committed") && holds("kind!=active") && holds("name==n"));
    }

    #[test]
    fn what_is_not_understood_is_said() {
        assert!(Filter::parse("name~=x").unwrap_err().contains("patterns"));
        assert!(Filter::parse("name==\"x").is_err());
    }
}

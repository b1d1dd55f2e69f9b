//! From the text of a file to [`Node`]s: anchors, aliases, merge keys (`<<`), and the tags `!reset` and `!override`.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use yaml_rust2::parser::{Event, MarkedEventReceiver, Parser, Tag};
use yaml_rust2::scanner::{Marker, TScalarStyle};

use crate::error::{ComposeError, Place, Result};
use crate::node::{Entries, Mark, Node, Value};

/// So many values may a file have once its aliases are resolved: a few aliases of aliases could stand for any number.
const MOST_NODES: usize = 200_000;

/// So deep may a file be: what reads it goes down as deep.
const MOST_DEPTH: usize = 64;

/// The documents of a file.
///
/// # Errors
/// Where it is no YAML, has a key twice, or refers to what is not there.
pub(crate) fn documents(text: &str, file: &Arc<Path>) -> Result<Vec<Node>> {
    let mut builder = Builder {
        file: file.clone(),
        open: Vec::new(),
        anchors: HashMap::new(),
        documents: Vec::new(),
        nodes: 0,
        error: None,
    };
    let parsed = Parser::new_from_str(text).load(&mut builder, true);
    if let Some(error) = builder.error {
        return Err(error);
    }
    parsed.map_err(|error| {
        let place = Place {
            file: file.clone(),
            line: error.marker().line(),
        };
        ComposeError::at(&place, error.info()).hint("it must be YAML")
    })?;
    Ok(builder.documents)
}

/// A list or mapping that has begun.
enum Open {
    List(Vec<Node>),
    Map(Entries, Option<String>),
}

struct Begun {
    what: Open,
    anchor: usize,
    mark: Option<Mark>,
    at: Place,
}

struct Builder {
    file: Arc<Path>,
    open: Vec<Begun>,
    /// By the number of its anchor: the value, and how many nodes it has.
    anchors: HashMap<usize, (Node, usize)>,
    documents: Vec<Node>,
    nodes: usize,
    error: Option<ComposeError>,
}

impl MarkedEventReceiver for Builder {
    fn on_event(&mut self, event: Event, marker: Marker) {
        if self.error.is_some() {
            return;
        }
        let at = Place {
            file: self.file.clone(),
            line: marker.line(),
        };
        if let Err(error) = self.take(event, at) {
            self.error = Some(error);
        }
    }
}

impl Builder {
    fn take(&mut self, event: Event, at: Place) -> Result<()> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                if let Some(Begun {
                    what: Open::Map(_, key @ None),
                    ..
                }) = self.open.last_mut()
                {
                    *key = Some(text);
                    return Ok(());
                }
                let is_text = tag.as_ref().is_some_and(|tag| tag.suffix == "str");
                let value = match style == TScalarStyle::Plain && !is_text {
                    true => plain(&text),
                    false => Value::Text(text),
                };
                let mark = mark(tag.as_ref(), &at)?;
                self.finished(Node { value, at, mark }, anchor)
            }
            Event::SequenceStart(anchor, tag) => self.begin(Open::List(Vec::new()), anchor, tag, at),
            Event::MappingStart(anchor, tag) => self.begin(Open::Map(Vec::new(), None), anchor, tag, at),
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(Begun { what, anchor, mark, at }) = self.open.pop() else {
                    return Ok(());
                };
                let value = match what {
                    Open::List(items) => Value::List(items),
                    Open::Map(entries, _) => Value::Map(with_merged(entries)?),
                };
                self.finished(Node { value, at, mark }, anchor)
            }
            Event::Alias(anchor) => {
                let Some((node, size)) = self.anchors.get(&anchor).cloned() else {
                    return Err(ComposeError::at(&at, "this alias is inside of what it stands for"));
                };
                self.nodes += size;
                self.finished(node, 0)
            }
            _ => Ok(()),
        }
    }

    fn begin(&mut self, what: Open, anchor: usize, tag: Option<Tag>, at: Place) -> Result<()> {
        if let Some(Begun {
            what: Open::Map(_, None),
            ..
        }) = self.open.last()
        {
            return Err(ComposeError::at(&at, "a key must be a text"));
        }
        if self.open.len() >= MOST_DEPTH {
            return Err(ComposeError::at(
                &at,
                format!("it is more than {MOST_DEPTH} levels deep"),
            ));
        }
        let mark = mark(tag.as_ref(), &at)?;
        self.open.push(Begun { what, anchor, mark, at });
        Ok(())
    }

    fn finished(&mut self, node: Node, anchor: usize) -> Result<()> {
        self.nodes += 1;
        if self.nodes > MOST_NODES {
            let message = format!("it has more than {MOST_NODES} values once its aliases are resolved");
            return Err(ComposeError::at(&node.at, message));
        }
        if anchor != 0 {
            let size = size(&node);
            self.anchors.insert(anchor, (node.clone(), size));
        }
        match self.open.last_mut().map(|begun| &mut begun.what) {
            None => self.documents.push(node),
            Some(Open::List(items)) => items.push(node),
            Some(Open::Map(entries, key)) => {
                let key = key.take().unwrap_or_default();
                // Several merge keys are a list of them.
                if key != "<<"
                    && let Some((_, other)) = entries.iter().find(|(name, _)| *name == key)
                {
                    let message = format!("the key '{key}' is there already, in line {}", other.at.line);
                    return Err(ComposeError::at(&node.at, message).hint("remove one of them"));
                }
                entries.push((key, node));
            }
        }
        Ok(())
    }
}

fn size(node: &Node) -> usize {
    1 + match &node.value {
        Value::List(items) => items.iter().map(size).sum(),
        Value::Map(entries) => entries.iter().map(|(_, node)| size(node)).sum(),
        _ => 0,
    }
}

fn mark(tag: Option<&Tag>, at: &Place) -> Result<Option<Mark>> {
    match tag.map(|tag| (tag.handle.as_str(), tag.suffix.as_str())) {
        Some(("!", "reset")) => Ok(Some(Mark::Reset)),
        Some(("!", "override")) => Ok(Some(Mark::Override)),
        Some(("!", other)) => {
            Err(ComposeError::at(at, format!("there is no tag '!{other}'")).hint("the tags are !reset and !override"))
        }
        _ => Ok(None),
    }
}

/// The entries, and those of what `<<` names that are not there themselves; of several the first one counts.
fn with_merged(entries: Entries) -> Result<Entries> {
    let (merges, mut own): (Entries, Entries) = entries.into_iter().partition(|(key, _)| key == "<<");
    let mut add = |node: &Node| match &node.value {
        Value::Map(entries) => {
            for (key, node) in entries {
                if !own.iter().any(|(name, _)| name == key) {
                    own.push((key.clone(), node.clone()));
                }
            }
            Ok(())
        }
        _ => Err(node.expected("<<", "a mapping, or a list of them,")),
    };
    for (_, merge) in &merges {
        match &merge.value {
            Value::List(items) => items.iter().try_for_each(&mut add)?,
            _ => add(merge)?,
        }
    }
    Ok(own)
}

/// A scalar without quotes, by the rules that the reference implementation's parser has: those of YAML 1.2, and numbers with a leading 0
/// are octal.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    if let Some(number) = integer(text) {
        return Value::Int(number);
    }
    let is_number = text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.'))
        && text.contains(|c: char| c.is_ascii_digit())
        && text
            .chars()
            .all(|c| c.is_ascii_digit() || matches!(c, '-' | '+' | '.' | 'e' | 'E'));
    match text.parse::<f64>() {
        Ok(number) if is_number && number.is_finite() => Value::Float(number),
        _ => Value::Text(text.to_owned()),
    }
}

fn integer(text: &str) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix(['-', '+']) {
        Some(rest) => (text.starts_with('-'), rest),
        None => (false, text),
    };
    let radix = |prefix: &str, radix| {
        let digits = digits.strip_prefix(prefix)?;
        let legal = digits.chars().all(|c| c.is_digit(radix));
        legal.then(|| i64::from_str_radix(digits, radix).ok()).flatten()
    };
    let number = match digits {
        _ if digits.starts_with("0x") => radix("0x", 16),
        _ if digits.starts_with("0o") => radix("0o", 8),
        _ if digits.starts_with("0b") => radix("0b", 2),
        _ if digits.len() > 1 && digits.starts_with('0') => radix("0", 8),
        _ => radix("", 10),
    };
    number.map(|number| if negative { -number } else { number })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<serde_json::Value> {
        let documents = documents(text, &Arc::from(Path::new("c.yaml")))?;
        Ok(documents.first().map(Node::json).unwrap_or_default())
    }

    #[test]
    fn scalars_are_what_yaml_1_2_says() {
        let parsed =
            parse("[1, 0123, 0x1f, 1.10, 22:22, yes, \"1\", 'x', ~, true, 1.2.3, -5, 1e3, !!str 7, 08, .]").unwrap();
        assert_eq!(
            parsed.to_string(),
            r#"[1,83,31,1.1,"22:22","yes","1","x",null,true,"1.2.3",-5,1000.0,"7",8.0,"."]"#
        );
    }

    #[test]
    fn anchors_and_merge_keys_are_resolved() {
        let text = "x-a: &a {p: 1, q: 2}\nx-b: &b {q: 3, r: 4}\ns:\n  <<: [*a, *b]\n  r: 5\nt:\n  <<: *b\nl: [*a]\n";
        let parsed = parse(text).unwrap();
        assert_eq!(parsed["s"].to_string(), r#"{"p":1,"q":2,"r":5}"#);
        assert_eq!(parsed["t"].to_string(), r#"{"q":3,"r":4}"#);
        assert_eq!(parsed["l"][0]["p"], 1);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (text, part) in [
            (
                "a:\n  b: 1\n  b: 2\n",
                "line 3: the key 'b' is there already, in line 2",
            ),
            ("a: 1\nb: *none\n", "line 2"),
            ("a: [1\nb: 2\n", "line 2"),
            ("a: &x [1, *x]\n", "line 1"),
            ("a:\n  <<: 3\n", "line 2: <<: a mapping"),
            ("a: !include x\n", "no tag '!include'"),
            ("? [1]\n: 2\n", "a key must be a text"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        let bomb = (0..9).fold("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned(), |text, n| {
            let alias = vec![format!("*a{n}"); 10].join(",");
            format!("{text}a{}: &a{} [{alias}]\n", n + 1, n + 1)
        });
        assert!(parse(&bomb).unwrap_err().to_string().contains("values"));
        assert!(parse(&"[".repeat(100)).unwrap_err().to_string().contains("levels"));
    }
}

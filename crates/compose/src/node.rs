//! A YAML document as a tree that knows where each part of it was written.

use serde_json::{Map, Number, Value as Json};

use crate::error::{ComposeError, Place, Result};

/// One value and where it is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) at: Place,
    pub(crate) mark: Option<Mark>,
}

/// What a tag says about merging.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    /// `!reset`: what earlier files have here is removed.
    Reset,
    /// `!override`: this takes the place of what earlier files have here.
    Override,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Entries),
}

/// The entries of a mapping, in the order of the file.
pub(crate) type Entries = Vec<(String, Node)>;

impl Node {
    pub(crate) fn new(value: Value, at: &Place) -> Node {
        Node {
            value,
            at: at.clone(),
            mark: None,
        }
    }

    pub(crate) fn text_of(text: impl Into<String>, at: &Place) -> Node {
        Node::new(Value::Text(text.into()), at)
    }

    pub(crate) fn is_null(&self) -> bool {
        self.value == Value::Null
    }

    /// What kind of value it is, in words.
    pub(crate) fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "nothing",
            Value::Bool(_) => "a truth value",
            Value::Int(_) | Value::Float(_) => "a number",
            Value::Text(_) => "a text",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }

    pub(crate) fn error(&self, path: &str, what: impl AsRef<str>) -> ComposeError {
        ComposeError::at(&self.at, format!("{path}: {}", what.as_ref()))
    }

    pub(crate) fn expected(&self, path: &str, wanted: &str) -> ComposeError {
        self.error(path, format!("{wanted} is wanted here, and this is {}", self.kind()))
    }

    /// A scalar as a text, as the reference implementation prints it; `None` for anything else.
    pub(crate) fn scalar(&self) -> Option<String> {
        match &self.value {
            Value::Text(text) => Some(text.clone()),
            Value::Int(number) => Some(number.to_string()),
            Value::Float(number) => Some(number.to_string()),
            Value::Bool(truth) => Some(truth.to_string()),
            Value::Null | Value::List(_) | Value::Map(_) => None,
        }
    }

    pub(crate) fn text(&self, path: &str) -> Result<String> {
        self.scalar().ok_or_else(|| self.expected(path, "a text"))
    }

    pub(crate) fn list(&self, path: &str) -> Result<&[Node]> {
        match &self.value {
            Value::List(items) => Ok(items),
            _ => Err(self.expected(path, "a list")),
        }
    }

    pub(crate) fn map(&self, path: &str) -> Result<&Entries> {
        match &self.value {
            Value::Map(entries) => Ok(entries),
            _ => Err(self.expected(path, "a mapping")),
        }
    }

    pub(crate) fn truth(&self, path: &str) -> Result<bool> {
        match &self.value {
            Value::Bool(truth) => Ok(*truth),
            Value::Text(text) => match text.to_ascii_lowercase().as_str() {
                "true" | "yes" | "y" | "on" => Ok(true),
                "false" | "no" | "n" | "off" => Ok(false),
                _ => Err(self.error(path, format!("'{text}' is neither true nor false"))),
            },
            _ => Err(self.expected(path, "true or false")),
        }
    }

    pub(crate) fn integer(&self, path: &str) -> Result<i64> {
        match &self.value {
            Value::Int(number) => Ok(*number),
            Value::Float(number) if number.fract() == 0.0 => Ok(*number as i64),
            Value::Text(text) => text
                .trim()
                .parse()
                .map_err(|_| self.error(path, format!("'{text}' is no whole number"))),
            _ => Err(self.expected(path, "a whole number")),
        }
    }

    pub(crate) fn number(&self, path: &str) -> Result<f64> {
        match &self.value {
            Value::Int(number) => Ok(*number as f64),
            Value::Float(number) => Ok(*number),
            Value::Text(text) => text
                .trim()
                .parse()
                .map_err(|_| self.error(path, format!("'{text}' is no number"))),
            _ => Err(self.expected(path, "a number")),
        }
    }

    /// The value of a key of a mapping.
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|(name, _)| name == key).map(|(_, node)| node),
            _ => None,
        }
    }

    pub(crate) fn get_mut(&mut self, key: &str) -> Option<&mut Node> {
        match &mut self.value {
            Value::Map(entries) => entries.iter_mut().find(|(name, _)| name == key).map(|(_, node)| node),
            _ => None,
        }
    }

    /// Sets the value of a key of a mapping; nothing happens to what is none.
    pub(crate) fn set(&mut self, key: &str, node: Node) {
        if let Value::Map(entries) = &mut self.value {
            match entries.iter_mut().find(|(name, _)| name == key) {
                Some((_, old)) => *old = node,
                None => entries.push((key.to_owned(), node)),
            }
        }
    }

    pub(crate) fn remove(&mut self, key: &str) -> Option<Node> {
        match &mut self.value {
            Value::Map(entries) => {
                let index = entries.iter().position(|(name, _)| name == key)?;
                Some(entries.remove(index).1)
            }
            _ => None,
        }
    }

    /// As JSON, with the keys of each mapping in order of the alphabet.
    pub(crate) fn json(&self) -> Json {
        match &self.value {
            Value::Null => Json::Null,
            Value::Bool(truth) => Json::Bool(*truth),
            Value::Int(number) => Json::Number((*number).into()),
            Value::Float(number) => Number::from_f64(*number).map_or(Json::Null, Json::Number),
            Value::Text(text) => Json::String(text.clone()),
            Value::List(items) => Json::Array(items.iter().map(Node::json).collect()),
            Value::Map(entries) => {
                let mut map: Vec<_> = entries.iter().map(|(key, node)| (key.clone(), node.json())).collect();
                map.sort_by(|a, b| a.0.cmp(&b.0));
                Json::Object(Map::from_iter(map))
            }
        }
    }
}

/// The path of a part.
pub(crate) fn join(path: &str, key: &str) -> String {
    match path.is_empty() {
        true => key.to_owned(),
        false => format!("{path}.{key}"),
    }
}

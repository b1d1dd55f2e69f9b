//! JSON objects whose keys are all accounted for.

use std::collections::BTreeMap;

use serde_json::Value;
use zmachine_spec::{Class, Failure};

/// An object and its place in the document. Whoever reads it takes its keys one by one and calls [`Object::finish`].
pub(super) struct Object<'a> {
    path: String,
    /// By key in lower case; with the key as written.
    left: BTreeMap<String, (&'a str, &'a Value)>,
    known: Vec<&'static str>,
}

impl<'a> Object<'a> {
    /// The object `value` at `path`, which is empty for the document.
    pub(super) fn new(path: &str, value: &'a Value) -> Result<Object<'a>, Failure> {
        let Value::Object(map) = value else {
            return Err(mismatch(path, value, "an object"));
        };
        let mut left = BTreeMap::new();
        for (key, value) in map {
            if let Some((twin, _)) = left.insert(key.to_lowercase(), (key.as_str(), value)) {
                let message = format!("{}: '{twin}' and '{key}' are the same key", place(path));
                return Err(Failure::new(Class::Usage, message).hint("key names are read in any case; keep one"));
            }
        }
        Ok(Object {
            path: path.to_owned(),
            left,
            known: Vec::new(),
        })
    }

    /// Whether a key is there.
    pub(super) fn has(&self, key: &str) -> bool {
        self.left.contains_key(key)
    }

    fn take(&mut self, key: &'static str) -> Option<&'a Value> {
        self.known.push(key);
        let (_, value) = self.left.remove(key)?;
        (!value.is_null()).then_some(value)
    }

    fn at(&self, key: &str) -> String {
        match self.path.is_empty() {
            true => key.to_owned(),
            false => format!("{}.{key}", self.path),
        }
    }

    pub(super) fn text(&mut self, key: &'static str) -> Result<Option<String>, Failure> {
        let value = self.take(key);
        value.map(|value| text(&self.at(key), value)).transpose()
    }

    pub(super) fn number(&mut self, key: &'static str) -> Result<Option<u64>, Failure> {
        let value = self.take(key);
        let number = |value: &Value| {
            value
                .as_u64()
                .ok_or_else(|| mismatch(&self.at(key), value, "a whole number, not negative"))
        };
        value.map(number).transpose()
    }

    pub(super) fn boolean(&mut self, key: &'static str) -> Result<bool, Failure> {
        match self.take(key) {
            None => Ok(false),
            Some(Value::Bool(truth)) => Ok(*truth),
            Some(value) => Err(mismatch(&self.at(key), value, "true or false")),
        }
    }

    pub(super) fn object(&mut self, key: &'static str) -> Result<Option<Object<'a>>, Failure> {
        let value = self.take(key);
        value.map(|value| Object::new(&self.at(key), value)).transpose()
    }

    pub(super) fn required_object(&mut self, key: &'static str) -> Result<Object<'a>, Failure> {
        let at = self.at(key);
        self.object(key)?.ok_or_else(|| {
            Failure::new(Class::Usage, format!("{at}: it is missing")).hint("docs/reservations.md shows a reservation")
        })
    }

    /// A list of objects; empty when absent.
    pub(super) fn list(&mut self, key: &'static str) -> Result<Vec<Object<'a>>, Failure> {
        let object = |(at, value): (String, &'a Value)| Object::new(&at, value);
        self.values(key)?.into_iter().map(object).collect()
    }

    /// A list of texts; empty when absent.
    pub(super) fn text_list(&mut self, key: &'static str) -> Result<Vec<String>, Failure> {
        self.values(key)?
            .into_iter()
            .map(|(at, value)| text(&at, value))
            .collect()
    }

    fn values(&mut self, key: &'static str) -> Result<Vec<(String, &'a Value)>, Failure> {
        let at = self.at(key);
        match self.take(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(values)) => {
                let values = values.iter().enumerate();
                Ok(values.map(|(index, value)| (format!("{at}[{index}]"), value)).collect())
            }
            Some(value) => Err(mismatch(&at, value, "a list")),
        }
    }

    /// An object of texts, its keys as written; empty when absent.
    pub(super) fn texts(&mut self, key: &'static str) -> Result<BTreeMap<String, String>, Failure> {
        let at = self.at(key);
        match self.take(key) {
            None => Ok(BTreeMap::new()),
            Some(Value::Object(map)) => map
                .iter()
                .map(|(name, value)| Ok((name.clone(), text(&format!("{at}.{name}"), value)?)))
                .collect(),
            Some(value) => Err(mismatch(&at, value, "an object of texts")),
        }
    }

    /// Refuses the keys that nobody took.
    pub(super) fn finish(self) -> Result<(), Failure> {
        let Some((written, _)) = self.left.values().next() else {
            return Ok(());
        };
        let message = format!("{}: a reservation has no such field", self.at(written));
        let hint = format!("fields of {} are {}", place(&self.path), self.known.join(", "));
        Err(Failure::new(Class::Usage, message).hint(hint))
    }
}

fn place(path: &str) -> &str {
    match path {
        "" => "the reservation",
        path => path,
    }
}

fn text(at: &str, value: &Value) -> Result<String, Failure> {
    match value {
        Value::String(text) => Ok(text.clone()),
        value => Err(mismatch(at, value, "a text")),
    }
}

fn mismatch(at: &str, value: &Value, wanted: &str) -> Failure {
    let found = match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    let message = format!("{}: {found} is there, and it must be {wanted}", place(at));
    Failure::new(Class::Usage, message).hint("docs/reservations.md lists every field with its type")
}

//! Every key there may be, what its value is, and what comes of it here. The table in `docs/compose.md` is made of this.

mod keys;

use crate::error::{ComposeError, Result};
use crate::node::{Node, Value, join};

pub use keys::{
    ATTACHMENT, CONFIG, DEPENDENCY, DEPLOY, HEALTHCHECK, MOUNT, NETWORK, PORT, SECRET, SERVICE, TOP, VOLUME,
};

/// What comes of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Here {
    /// What the specification says; a remark where there is one.
    Works(&'static str),
    /// Nothing, because of this.
    Nothing(&'static str),
    /// It is refused: why, and what to do.
    Refused(&'static str, &'static str),
}

/// What the value of a key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A text; numbers are texts as well.
    Text,
    /// True or false.
    Truth,
    /// A whole number.
    Integer,
    /// A number.
    Number,
    /// A size in bytes: `512m`.
    Size,
    /// Checked where it is read.
    Own,
    /// Whatever it is.
    Any,
    /// A mapping with these keys.
    Keys(&'static [Key]),
    /// A mapping with keys of the user's, whose values are mappings with these, or nothing.
    Named(&'static [Key]),
    /// A list of mappings with these keys.
    Each(&'static [Key]),
}

/// A key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// Its value.
    pub kind: Kind,
    /// What comes of it.
    pub here: Here,
}

use Kind::{Any, Each, Integer, Keys, Named, Number, Own, Size, Text, Truth};

/// A line for the user: what changes nothing, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// The service it is about; `None` for other parts of a file.
    pub service: Option<String>,
    /// The line.
    pub text: String,
}

/// Checks that all keys of a document are known and have values of their kind, which are made what they are wanted as. What changes
/// nothing is noted; what cannot be is an error only when it is `used`.
pub(crate) fn check(document: &mut Node) -> Result<()> {
    keys(document, "", TOP)
}

fn keys(node: &mut Node, path: &str, known: &[Key]) -> Result<()> {
    if node.is_null() {
        return Ok(());
    }
    node.map(path)?;
    let Value::Map(entries) = &mut node.value else {
        return Ok(());
    };
    for (name, value) in entries {
        if name.starts_with("x-") {
            continue;
        }
        let path = join(path, name);
        let Some(key) = known.iter().find(|key| key.name == name) else {
            return Err(unknown(value, &path, name, known));
        };
        one(value, &path, key.kind)?;
    }
    Ok(())
}

fn unknown(value: &Node, path: &str, name: &str, known: &[Key]) -> ComposeError {
    let near = known
        .iter()
        .map(|key| {
            (
                strsim::damerau_levenshtein(&name.to_lowercase().replace('-', "_"), key.name),
                key.name,
            )
        })
        .min()
        .filter(|(distance, near)| *distance <= 2.max(near.len() / 3));
    let hint = match near {
        Some((_, near)) => format!("did you mean '{near}'?"),
        None => "keys of your own begin with 'x-'".to_owned(),
    };
    value.error(path, format!("there is no key '{name}'")).hint(hint)
}

fn one(value: &mut Node, path: &str, kind: Kind) -> Result<()> {
    // A key without a value is not there, or is reset.
    if value.is_null() {
        return Ok(());
    }
    match kind {
        Text => value.value = Value::Text(value.text(path)?),
        Truth => value.value = Value::Bool(value.truth(path)?),
        Integer => value.value = Value::Int(value.integer(path)?),
        Number => value.value = number(value.number(path)?),
        Size => value.value = Value::Text(size(value, path)?.to_string()),
        Keys(known) => keys(value, path, known)?,
        Named(known) => {
            value.map(path)?;
            if let Value::Map(entries) = &mut value.value {
                for (name, value) in entries {
                    keys(value, &join(path, name), known)?;
                }
            }
        }
        Each(known) => {
            value.list(path)?;
            if let Value::List(items) = &mut value.value {
                for (index, item) in items.iter_mut().enumerate() {
                    keys(item, &format!("{path}[{index}]"), known)?;
                }
            }
        }
        Own | Any => {}
    }
    Ok(())
}

fn number(number: f64) -> Value {
    match number.fract() == 0.0 && number.abs() < 1e15 {
        true => Value::Int(number as i64),
        false => Value::Float(number),
    }
}

/// Bytes, of a number with a unit: b, k, kb, m, mb, g, gb; in powers of 1024.
fn size(value: &Node, path: &str) -> Result<u64> {
    let text = value.text(path)?;
    let lower = text.trim().to_ascii_lowercase();
    let end = lower
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(lower.len());
    let (digits, unit) = lower.split_at(end);
    let unit = unit.trim().trim_end_matches("ib").trim_end_matches('b');
    let shift = match unit {
        "" => Some(0),
        "k" => Some(10),
        "m" => Some(20),
        "g" => Some(30),
        "t" => Some(40),
        _ => None,
    };
    match (digits.parse::<f64>(), shift) {
        (Ok(number), Some(shift)) => Ok((number * (1u64 << shift) as f64) as u64),
        _ => Err(value
            .error(path, format!("'{text}' is no size"))
            .hint("write it as 512m or 2g")),
    }
}

/// Notes of all that changes nothing below `node`, and an error for what is refused.
pub(crate) fn effects(node: &Node, path: &str, known: &[Key], notes: &mut Vec<String>) -> Result<()> {
    let Value::Map(entries) = &node.value else {
        return Ok(());
    };
    for (name, value) in entries {
        let Some(key) = known.iter().find(|key| key.name == name) else {
            continue;
        };
        let path = join(path, name);
        let is_off = matches!(value.value, Value::Null | Value::Bool(false))
            || matches!(&value.value, Value::List(items) if items.is_empty())
            || matches!(&value.value, Value::Map(entries) if entries.is_empty());
        if is_off {
            continue;
        }
        match key.here {
            Here::Nothing(why) => {
                let line = format!("{path} changes nothing: {why}");
                if !notes.contains(&line) {
                    notes.push(line);
                }
                continue;
            }
            Here::Refused(why, hint) => return Err(value.error(&path, why).hint(hint)),
            Here::Works(_) => {}
        }
        match (key.kind, &value.value) {
            (Keys(known), _) => effects(value, &path, known, notes)?,
            (Named(known), Value::Map(entries)) => {
                for (name, value) in entries {
                    effects(value, &join(&path, name), known, notes)?;
                }
            }
            (Each(known), Value::List(items)) => {
                for item in items {
                    effects(item, &path, known, notes)?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

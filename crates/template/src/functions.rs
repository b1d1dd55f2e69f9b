//! The functions of templates: Go's and docker's.

use std::cmp::Ordering;

use serde_json::Value;

/// Calls a function.
pub(super) fn call(name: &str, arguments: &[Value]) -> Result<Value, String> {
    let text = |index: usize| {
        arguments
            .get(index)
            .map(show)
            .ok_or_else(|| format!("{name} lacks an argument"))
    };
    let number = |index: usize| {
        let value = arguments.get(index).and_then(Value::as_u64);
        value
            .map(|number| number as usize)
            .ok_or_else(|| format!("{name} takes a number there"))
    };
    Ok(match name {
        "json" => {
            let value = arguments.first().ok_or("json lacks an argument")?;
            Value::String(serde_json::to_string(value).map_err(|error| error.to_string())?)
        }
        "len" => match arguments.first() {
            Some(Value::Array(list)) => list.len().into(),
            Some(Value::Object(fields)) => fields.len().into(),
            Some(Value::String(text)) => text.len().into(),
            Some(Value::Null) => 0.into(),
            Some(Value::Number(_)) => return Err("len: a number has no length".to_owned()),
            _ => return Err("len takes a list, an object or a string".to_owned()),
        },
        "index" => {
            let (first, keys) = arguments.split_first().ok_or("index lacks an argument")?;
            let mut value = first.clone();
            for key in keys {
                value = element(&value, key)?;
            }
            value
        }
        "slice" => {
            let text = text(0)?;
            let (from, to) = (number(1)?, number(2).unwrap_or(text.len()));
            let part = text
                .get(from..to)
                .ok_or_else(|| format!("slice: '{text}' has no part from {from} to {to}"))?;
            part.into()
        }
        "join" => match arguments.first() {
            Some(Value::Array(list)) => list.iter().map(show).collect::<Vec<_>>().join(&text(1)?).into(),
            Some(Value::Null) => "".into(),
            _ => return Err("join takes a list and what comes between its elements".to_owned()),
        },
        "split" => text(0)?.split(&text(1)?).map(str::to_owned).collect::<Vec<_>>().into(),
        "upper" => text(0)?.to_uppercase().into(),
        "lower" => text(0)?.to_lowercase().into(),
        "title" => {
            let text = text(0)?;
            let mut chars = text.chars();
            chars
                .next()
                .map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
                .into()
        }
        "truncate" => text(0)?.chars().take(number(1)?).collect::<String>().into(),
        "pad" => format!(
            "{}{}{}",
            " ".repeat(number(1)?.min(1000)),
            text(0)?,
            " ".repeat(number(2)?.min(1000))
        )
        .into(),
        "print" => arguments.iter().map(show).collect::<String>().into(),
        "println" => (arguments.iter().map(show).collect::<Vec<_>>().join(" ") + "\n").into(),
        "printf" => formatted(&text(0)?, &arguments[1..])?.into(),
        "not" => (!arguments.first().is_some_and(is_true)).into(),
        "and" => arguments
            .iter()
            .find(|value| !is_true(value))
            .or(arguments.last())
            .cloned()
            .unwrap_or_default(),
        "or" => arguments
            .iter()
            .find(|value| is_true(value))
            .or(arguments.last())
            .cloned()
            .unwrap_or_default(),
        "eq" => match arguments {
            [first, others @ ..] if !others.is_empty() => others.iter().any(|other| same(first, other)).into(),
            _ => return Err("eq compares two values".to_owned()),
        },
        "ne" | "lt" | "le" | "gt" | "ge" => {
            let [a, b] = arguments else {
                return Err(format!("{name} compares two values"));
            };
            let order = || match (a.as_f64(), b.as_f64()) {
                (Some(a), Some(b)) => a.partial_cmp(&b).ok_or("these numbers cannot be compared"),
                _ => Ok(show(a).cmp(&show(b))),
            };
            match name {
                "ne" => !same(a, b),
                "lt" => order()? == Ordering::Less,
                "le" => order()? != Ordering::Greater,
                "gt" => order()? == Ordering::Greater,
                _ => order()? != Ordering::Less,
            }
            .into()
        }
        _ => return Err(format!("there is no function '{name}'")),
    })
}

fn element(value: &Value, key: &Value) -> Result<Value, String> {
    match (value, key) {
        (Value::Array(list), Value::Number(_)) => {
            let index = key.as_u64().and_then(|index| usize::try_from(index).ok());
            let found = index.and_then(|index| list.get(index));
            found
                .cloned()
                .ok_or_else(|| format!("index: the list has no element {key}"))
        }
        // As in Go, what a map lacks is its empty value.
        (Value::Object(fields), key) => Ok(fields.get(&show(key)).cloned().unwrap_or_else(|| "".into())),
        (Value::Null, _) => Ok(Value::Null),
        _ => Err(format!("index: {} has no element {}", show(value), show(key))),
    }
}

fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a.total_cmp(&b).is_eq(),
        _ => a == b,
    }
}

/// What `if` takes for true.
pub(super) fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(is_true) => *is_true,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

/// A value as Go prints it.
pub(super) fn show(value: &Value) -> String {
    match value {
        Value::Null => "<no value>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(list) => format!("[{}]", list.iter().map(show).collect::<Vec<_>>().join(" ")),
        Value::Object(fields) => {
            let mut pairs: Vec<String> = fields
                .iter()
                .map(|(key, value)| format!("{key}:{}", show(value)))
                .collect();
            pairs.sort();
            format!("map[{}]", pairs.join(" "))
        }
        other => other.to_string(),
    }
}

/// `%s %v %d %q %%`, with a width and `-`.
fn formatted(format: &str, arguments: &[Value]) -> Result<String, String> {
    let mut out = String::new();
    let mut arguments = arguments.iter();
    let mut rest = format;
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        let verb = after
            .find(|c: char| !c.is_ascii_digit() && c != '-')
            .ok_or("printf: a '%' ends nowhere")?;
        let (flags, tail) = after.split_at(verb);
        let kind = tail.chars().next().unwrap_or('%');
        rest = &tail[kind.len_utf8()..];
        let mut next = || {
            arguments
                .next()
                .ok_or_else(|| format!("printf: there is no value for %{kind}"))
        };
        let text = match kind {
            '%' => "%".to_owned(),
            's' | 'v' | 'd' => show(next()?),
            'q' => format!("{:?}", show(next()?)),
            other => return Err(format!("printf: %{flags}{other} is not known; %s, %v, %d and %q are")),
        };
        let width = flags.trim_start_matches('-').parse().unwrap_or(0usize).min(1000);
        let padding = " ".repeat(width.saturating_sub(text.chars().count()));
        match flags.starts_with('-') {
            true => out.extend([text, padding]),
            false => out.extend([padding, text]),
        }
    }
    out.push_str(rest);
    Ok(out)
}

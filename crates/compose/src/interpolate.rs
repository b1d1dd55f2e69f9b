//! Variables in values: `$NAME`, `${NAME}`, and with what a shell would do when it is not set: `:-`, `-`, `:?`, `?`, `:+`, `+`.

use crate::error::Result;
use crate::node::{Node, Value, join};

/// The value of a variable; `None` when it is not set.
pub(crate) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// What is wrong with a text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// It is no template.
    Template(String),
    /// A variable that must be set is not.
    Missing(String),
}

/// What names of variables in a text were not set, and stood for nothing.
pub(crate) type Unset = Vec<String>;

/// Puts values in the place of variables, in all texts below `node`.
pub(crate) fn all(node: &mut Node, path: &str, lookup: Lookup<'_>, unset: &mut Unset) -> Result<()> {
    match &mut node.value {
        Value::Text(text) if text.contains('$') => match substitute(text, lookup, unset) {
            Ok(new) => *text = new,
            Err(Wrong::Template(part)) => {
                let text = text.clone();
                let message = format!("'{text}': '{part}' is no variable");
                return Err(node
                    .error(path, message)
                    .hint("write ${NAME}, ${NAME:-DEFAULT} or ${NAME:?MESSAGE}; a dollar sign itself is $$"));
            }
            Err(Wrong::Missing(message)) => {
                return Err(node.error(path, message).hint("set it in the environment or in .env"));
            }
        },
        Value::List(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                all(item, &format!("{path}[{index}]"), lookup, unset)?;
            }
        }
        Value::Map(entries) => {
            for (key, item) in entries {
                all(item, &join(path, key), lookup, unset)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// The text with values in the place of variables.
pub(crate) fn substitute(text: &str, lookup: Lookup<'_>, unset: &mut Unset) -> std::result::Result<String, Wrong> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(after) = rest.strip_prefix('{') {
            let end = closing(after).ok_or_else(|| Wrong::Template(format!("${rest}")))?;
            out.push_str(&braced(&after[..end], lookup, unset)?);
            rest = &after[end + 1..];
        } else {
            let length = name_length(rest);
            match length {
                // As in a regular expression: nobody means a variable.
                0 => out.push('$'),
                _ => out.push_str(&value(&rest[..length], lookup, unset)),
            }
            rest = &rest[length..];
        }
    }
    out.push_str(rest);
    Ok(out)
}

fn value(name: &str, lookup: Lookup<'_>, unset: &mut Unset) -> String {
    lookup(name).unwrap_or_else(|| {
        if !unset.iter().any(|known| known == name) {
            unset.push(name.to_owned());
        }
        String::new()
    })
}

fn name_length(text: &str) -> usize {
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        return 0;
    }
    text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .unwrap_or(text.len())
}

/// Where the brace is that closes the one before `text`.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0;
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'$' if bytes.get(at + 1) == Some(&b'{') => {
                depth += 1;
                at += 1;
            }
            b'}' if depth == 0 => return Some(at),
            b'}' => depth -= 1,
            _ => {}
        }
        at += 1;
    }
    None
}

fn braced(inside: &str, lookup: Lookup<'_>, unset: &mut Unset) -> std::result::Result<String, Wrong> {
    let (name, operator) = inside.split_at(name_length(inside));
    let wrong = || Wrong::Template(format!("${{{inside}}}"));
    if name.is_empty() {
        return Err(wrong());
    }
    if operator.is_empty() {
        return Ok(value(name, lookup, unset));
    }
    let (needs_content, operator) = match operator.strip_prefix(':') {
        Some(rest) => (true, rest),
        None => (false, operator),
    };
    let found = lookup(name);
    let usable = found.clone().filter(|value| !needs_content || !value.is_empty());
    let argument = operator.get(1..).unwrap_or_default();
    match (operator.as_bytes().first(), usable) {
        (Some(b'-' | b'?'), Some(value)) => Ok(value),
        (Some(b'-'), None) => substitute(argument, lookup, unset),
        (Some(b'?'), None) => {
            let why = substitute(argument, lookup, unset)?;
            let why = if why.is_empty() { "it is not set" } else { &why };
            Err(Wrong::Missing(format!("the variable {name} is needed: {why}")))
        }
        (Some(b'+'), Some(_)) => substitute(argument, lookup, unset),
        (Some(b'+'), None) => Ok(found.unwrap_or_default()),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(name: &str) -> Option<String> {
        match name {
            "FOO" => Some("foo".into()),
            "EMPTY" => Some(String::new()),
            _ => None,
        }
    }

    #[test]
    fn every_form_of_a_variable_is_replaced() {
        for (text, wanted) in [
            ("a $FOO b", "a foo b"),
            ("${FOO}bar$FOO", "foobarfoo"),
            ("$$FOO $${FOO}", "$FOO ${FOO}"),
            ("${NONE:-x}${EMPTY:-y}${FOO:-z}", "xyfoo"),
            ("${NONE-x}${EMPTY-y}${FOO-z}", "xfoo"),
            ("${FOO:?no}${FOO?no}${EMPTY?no}", "foofoo"),
            ("${FOO:+r}${EMPTY:+r}${NONE:+r}|", "r|"),
            ("${FOO+r}${EMPTY+r}${NONE+r}|", "rr|"),
            ("${NONE:-${OTHER:-${FOO}}}/x", "foo/x"),
            ("${NONE:-a:b-c}", "a:b-c"),
            ("${NONE:-}", ""),
            ("^a$ $1 $(x) $", "^a$ $1 $(x) $"),
            ("${FOO:-{}}", "foo}"),
        ] {
            assert_eq!(substitute(text, &lookup, &mut Vec::new()).unwrap(), wanted, "{text}");
        }
    }

    #[test]
    fn what_is_not_set_is_told_and_what_must_be_is_an_error() {
        let mut unset = Vec::new();
        assert_eq!(substitute("$NONE${NONE}$OTHER", &lookup, &mut unset).unwrap(), "");
        assert_eq!(unset, ["NONE", "OTHER"]);
        for (text, wanted) in [
            (
                "${NONE:?set me, $FOO}",
                Wrong::Missing("the variable NONE is needed: set me, foo".into()),
            ),
            (
                "${EMPTY:?}",
                Wrong::Missing("the variable EMPTY is needed: it is not set".into()),
            ),
            ("${NONE?x}", Wrong::Missing("the variable NONE is needed: x".into())),
            ("a ${FOO", Wrong::Template("${FOO".into())),
            ("${}", Wrong::Template("${}".into())),
            ("${FOO!x}", Wrong::Template("${FOO!x}".into())),
        ] {
            assert_eq!(
                substitute(text, &lookup, &mut Vec::new()).unwrap_err(),
                wanted,
                "{text}"
            );
        }
    }
}

//! Secrets in what is shown: environment variables whose names say so, and credentials in URLs.
//!
//! What is on disk is whole (mode 0600), or a machine could not start again. What leaves it by `inspect` and the records of
//! attempts goes through here.

use serde::Serialize;
use serde_json::Value;

use crate::shown::redact_document;

/// What stands in the place of a secret.
pub const HIDDEN: &str = "<redacted>";

/// Shorter values are only hidden where their name is beside them: they would be found in everything.
const TELLING: usize = 6;

/// Whether an environment variable of this name has a secret: `*_TOKEN`, `*_KEY`, `*_PASSWORD`, `*SECRET*`.
pub fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    let ends = |word: &str| name == word || name.ends_with(&format!("_{word}"));
    ends("TOKEN") || ends("PASSWORD") || name.ends_with("_KEY") || name.contains("SECRET")
}

/// `value` as JSON without its secrets. Pairs `[NAME, VALUE]` with a secret's name lose the value, wherever else it stands it is
/// hidden too; URLs lose their credentials.
pub fn shown(value: &impl Serialize) -> Value {
    let mut json = serde_json::to_value(value).unwrap_or_default();
    let mut secrets = Vec::new();
    collect(&json, &mut secrets);
    hide(&mut json, &secrets);
    redact_document(&mut json);
    json
}

fn pair(items: &[Value]) -> Option<(&str, &str)> {
    match items {
        [Value::String(name), Value::String(value)] => Some((name, value)),
        _ => None,
    }
}

fn collect(json: &Value, secrets: &mut Vec<(String, String)>) {
    match json {
        Value::Array(items) => match pair(items) {
            Some((name, value)) if is_secret(name) => secrets.push((name.to_owned(), value.to_owned())),
            _ => items.iter().for_each(|item| collect(item, secrets)),
        },
        Value::Object(fields) => fields.values().for_each(|field| collect(field, secrets)),
        _ => {}
    }
}

fn hide(json: &mut Value, secrets: &[(String, String)]) {
    match json {
        Value::Array(items) => {
            if pair(items).is_some_and(|(name, _)| is_secret(name)) {
                items[1] = Value::from(HIDDEN);
            }
            items.iter_mut().for_each(|item| hide(item, secrets));
        }
        Value::Object(fields) => fields.values_mut().for_each(|field| hide(field, secrets)),
        Value::String(text) => *text = hide_in(text, secrets),
        _ => {}
    }
}

fn hide_in(text: &str, secrets: &[(String, String)]) -> String {
    let mut text = text.to_owned();
    for (name, value) in secrets {
        if value.len() >= TELLING {
            text = text.replace(value, HIDDEN);
        } else {
            // As on a kernel command line.
            text = text.replace(&format!("{name}={value}"), &format!("{name}={HIDDEN}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_say_so_are_secrets() {
        for name in [
            "API_TOKEN",
            "ssh_key",
            "DB_PASSWORD",
            "PASSWORD",
            "MY_SECRET_THING",
            "clientsecret",
        ] {
            assert!(is_secret(name), "{name}");
        }
        for name in ["PATH", "KEY", "TOKENS", "MONKEY", "KEYMAP"] {
            assert!(!is_secret(name), "{name}");
        }
    }

    #[test]
    fn a_secret_is_hidden_wherever_it_stands() {
        let value = serde_json::json!({
            "env": [["API_TOKEN", "sesame-open"], ["A", "b"], ["X_KEY", "1"]],
            "cmdline": "console=ttyS0 API_TOKEN=sesame-open X_KEY=1 n=1",
            "args": ["login", "--with=sesame-open"],
            "stores": ["s3://me:hunter2@objects:9000/blocks"],
        });
        let text = shown(&value).to_string();
        assert!(!text.contains("sesame") && !text.contains("hunter2"), "{text}");
        assert!(
            text.contains("[\"A\",\"b\"]") && text.contains("X_KEY=<redacted> n=1"),
            "{text}"
        );
        assert!(text.contains("objects:9000/blocks"), "{text}");
    }
}

//! Parameters of requests, and filters, in all the forms that clients write them.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::http::Refusal;

/// The parameters of a request. Unknown and repeated ones are nobody's mistake: some clients send the whole body that way, too.
#[derive(Debug, Clone, Default)]
pub struct Query(Vec<(String, String)>);

/// A part of a path with its `%XX` replaced.
pub fn decoded(text: &str) -> String {
    // As in a form, but that `+` is itself.
    let text = text.replace('+', "%2B");
    form_urlencoded::parse(text.as_bytes())
        .next()
        .map_or_else(String::new, |(name, value)| match value.is_empty() {
            true => name.into_owned(),
            false => format!("{name}={value}"),
        })
}

impl Query {
    /// Reads what follows the question mark.
    pub fn parse(text: &str) -> Query {
        let pairs = form_urlencoded::parse(text.as_bytes());
        Query(
            pairs
                .map(|(name, value)| (name.into_owned(), value.into_owned()))
                .collect(),
        )
    }

    /// A parameter that is not empty; the first of several.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.all(name).next().filter(|value| !value.is_empty())
    }

    /// All values of a parameter.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0
            .iter()
            .filter(move |(other, _)| other == name)
            .map(|(_, value)| value.as_str())
    }

    /// A yes or no; no when it is not there. Clients write `1`, `true` and `True`.
    pub fn flag(&self, name: &str) -> bool {
        self.flag_or(name, false)
    }

    /// The same, and `absent` when it is not there.
    pub fn flag_or(&self, name: &str, absent: bool) -> bool {
        self.get(name).map_or(absent, is_true)
    }

    /// A number.
    ///
    /// # Errors
    /// 400 for what is none.
    pub fn number(&self, name: &str) -> Result<Option<i64>, Refusal> {
        let parse = |text: &str| {
            text.parse()
                .map_err(|_| Refusal::bad(format!("{name}: '{text}' is no number")))
        };
        self.get(name).map(parse).transpose()
    }

    /// The filters.
    ///
    /// # Errors
    /// 400 for filters that cannot be read, and for one that is not in `known`: a filter that is passed over would mean more
    /// than was asked for.
    pub fn filters(&self, known: &[&str]) -> Result<Filters, Refusal> {
        let Some(text) = self.get("filters") else {
            return Ok(Filters::default());
        };
        let read: BTreeMap<String, Values> =
            serde_json::from_str(text).map_err(|error| Refusal::bad(format!("invalid filter: {error}")))?;
        let mut filters = BTreeMap::new();
        for (name, values) in read {
            if !known.contains(&name.as_str()) {
                return Err(Refusal::bad(format!("invalid filter '{name}'")));
            }
            let values: Vec<String> = match values {
                Values::List(values) => values,
                Values::Set(values) => values.into_keys().collect(),
            };
            filters.insert(name, values);
        }
        Ok(Filters(filters))
    }
}

fn is_true(text: &str) -> bool {
    !matches!(text.to_ascii_lowercase().as_str(), "" | "0" | "false" | "no" | "none")
}

/// The values of a filter: a list, or a set in Go's manner.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Values {
    List(Vec<String>),
    Set(BTreeMap<String, bool>),
}

/// What a listing is limited to.
#[derive(Debug, Clone, Default)]
pub struct Filters(BTreeMap<String, Vec<String>>);

impl Filters {
    /// The values of one.
    pub fn values(&self, name: &str) -> &[String] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    /// Whether there is such a filter.
    pub fn has(&self, name: &str) -> bool {
        !self.values(name).is_empty()
    }

    /// Whether a filter lets something through: it is not there, or `fits` one of its values.
    pub fn allow(&self, name: &str, fits: impl Fn(&str) -> bool) -> bool {
        let values = self.values(name);
        values.is_empty() || values.iter().any(|value| fits(value))
    }

    /// The same for labels, all of which have to be there; and none of those of `label!`.
    pub fn allow_labels(&self, labels: &BTreeMap<String, String>) -> bool {
        let has = |wanted: &String| match wanted.split_once('=') {
            Some((key, value)) => labels.get(key).is_some_and(|found| found == value),
            None => labels.contains_key(wanted),
        };
        self.values("label").iter().all(has) && !self.values("label!").iter().any(has)
    }

    /// A filter that says yes or no.
    ///
    /// # Errors
    /// 400 for anything else.
    pub fn flag(&self, name: &str) -> Result<Option<bool>, Refusal> {
        match self.values(name) {
            [] => Ok(None),
            [value] => match value.as_str() {
                "1" | "true" | "True" => Ok(Some(true)),
                "0" | "false" | "False" => Ok(Some(false)),
                other => Err(Refusal::bad(format!("invalid filter '{name}={other}'"))),
            },
            _ => Err(Refusal::bad(format!("invalid filter '{name}': it has two values"))),
        }
    }
}

/// Whether a name fits what a filter says of it: a part of it, or with `^` and `$` its beginning and its end.
pub fn name_fits(name: &str, wanted: &str) -> bool {
    let (from_start, wanted) = match wanted.strip_prefix('^') {
        Some(rest) => (true, rest),
        None => (false, wanted),
    };
    let (to_end, wanted) = match wanted.strip_suffix('$') {
        Some(rest) => (true, rest),
        None => (false, wanted),
    };
    let wanted = wanted.strip_prefix('/').unwrap_or(wanted).replace('\\', "");
    match (from_start, to_end) {
        (true, true) => name == wanted,
        (true, false) => name.starts_with(&wanted),
        (false, true) => name.ends_with(&wanted),
        (false, false) => name.contains(&wanted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(filters: &str) -> Query {
        let encoded: String = form_urlencoded::byte_serialize(filters.as_bytes()).collect();
        Query::parse(&format!("filters={encoded}"))
    }

    #[test]
    fn yes_and_no_are_read_as_clients_write_them() {
        let query = Query::parse("a=1&b=True&c=0&d=False&e=&f=true&g");
        assert_eq!(
            ["a", "b", "c", "d", "e", "f", "g", "h"].map(|name| query.flag(name)),
            [true, true, false, false, false, true, false, false]
        );
    }

    #[test]
    fn filters_come_in_two_forms_and_unknown_ones_are_refused() {
        let labels = BTreeMap::from([("a".to_owned(), "b".to_owned()), ("c".to_owned(), String::new())]);
        for (text, fits) in [
            (r#"{"label":{"a=b":true,"c":true}}"#, true),
            (r#"{"label":["a=b"]}"#, true),
            (r#"{"label":["a=c"]}"#, false),
            (r#"{"label":["a","d"]}"#, false),
            (r#"{"label!":["c"]}"#, false),
            ("", true),
        ] {
            let filters = query(text).filters(&["label", "label!"]).unwrap();
            assert_eq!(filters.allow_labels(&labels), fits, "{text}");
        }
        assert_eq!(
            query(r#"{"bogus":["x"]}"#).filters(&["label"]).unwrap_err().message,
            "invalid filter 'bogus'"
        );
        for text in ["{", "[]", r#"{"label":1}"#, r#"{"label":[1]}"#] {
            assert!(query(text).filters(&["label"]).is_err(), "{text}");
        }
    }

    #[test]
    fn names_fit_in_parts_or_between_anchors() {
        for (name, wanted, fits) in [
            ("demo_back", "back", true),
            ("demo_back", "^demo_back$", true),
            ("demo_back2", "^demo_back$", false),
            ("web", "^/web$", true),
            ("web", "^we", true),
            ("web", "xweb", false),
        ] {
            assert_eq!(name_fits(name, wanted), fits, "{name} {wanted}");
        }
    }

    #[test]
    fn a_part_of_a_path_is_decoded_once() {
        assert_eq!(decoded("a%2Fb%253A+c"), "a/b%3A+c");
        assert_eq!(decoded("a=b"), "a=b");
    }
}

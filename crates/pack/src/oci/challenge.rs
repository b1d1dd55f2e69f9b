//! What a registry asks for with its status 401: the header `WWW-Authenticate`, as RFC 9110 (11.6.1) has it.
//!
//! There may be several headers, and several challenges in one. Values may be quoted or not; those that are empty say nothing.

use std::collections::BTreeMap;

/// One way to prove who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User and password with every request.
    Basic,
    /// A token of another server, named among these parameters (in lower case; none is empty).
    Bearer(BTreeMap<String, String>),
}

/// The challenges of all headers that are known here, in their order.
pub(super) fn challenges<'a>(headers: impl IntoIterator<Item = &'a str>) -> Vec<Challenge> {
    headers.into_iter().flat_map(of_header).collect()
}

fn of_header(header: &str) -> Vec<Challenge> {
    let mut found: Vec<(String, BTreeMap<String, String>)> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        let (word, behind) = rest.split_at(end);
        if word.is_empty() {
            // A sign that stands for nothing, or the end.
            match rest.char_indices().nth(1) {
                Some((next, _)) => rest = &rest[next..],
                None => break,
            }
            continue;
        }
        let after_space = behind.trim_start_matches([' ', '\t']);
        let Some(value) = after_space.strip_prefix('=') else {
            found.push((word.to_ascii_lowercase(), BTreeMap::new()));
            rest = behind;
            continue;
        };
        let (value, behind) = value_of(value.trim_start_matches([' ', '\t']));
        if let Some((_, parameters)) = found.last_mut().filter(|_| !value.is_empty()) {
            parameters.insert(word.to_ascii_lowercase(), value);
        }
        rest = behind;
    }
    let known = found
        .into_iter()
        .filter_map(|(scheme, parameters)| match scheme.as_str() {
            "basic" => Some(Challenge::Basic),
            "bearer" => Some(Challenge::Bearer(parameters)),
            _ => None,
        });
    known.collect()
}

/// A value, and what is behind it.
fn value_of(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut letters = quoted.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(letters.next().map(|(_, letter)| letter)),
            letter => value.push(letter),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(parameters: &[(&str, &str)]) -> Challenge {
        let owned = parameters
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Challenge::Bearer(owned.collect())
    }

    #[test]
    fn a_challenge_is_taken_apart() {
        let header =
            r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a,b:pull""#;
        let expected = bearer(&[
            ("realm", "https://auth.docker.io/token"),
            ("service", "registry.docker.io"),
            ("scope", "repository:a,b:pull"),
        ]);
        assert_eq!(challenges([header]), [expected]);
        assert_eq!(challenges(["basic realm=\"x\""]), [Challenge::Basic]);
    }

    #[test]
    fn several_challenges_and_headers_are_all_found_and_empty_values_say_nothing() {
        let token = || bearer(&[("realm", "https://t/")]);
        for headers in [
            vec![r#"Basic realm="a", Bearer realm="https://t/",service="",scope="""#],
            vec!["Basic", "Bearer realm=https://t/"],
            vec![r#"Negotiate, NTLM abc==, Basic realm="a, b", bearer  realm = "https://t/" , error="""#],
            vec![r#"Digest realm="x",qop="auth", Basic realm="\"", Bearer realm="https:\/\/t/""#],
        ] {
            assert_eq!(challenges(headers.clone()), [Challenge::Basic, token()], "{headers:?}");
        }
    }

    #[test]
    fn no_header_does_harm() {
        for header in [
            "",
            " ",
            ",,,",
            "=",
            "\"",
            "Bearer",
            "Bearer realm",
            "Bearer realm=\"",
            "Bearer =x",
            "Bearer \\\"é,ü=\"\\",
        ] {
            for challenge in challenges([header]) {
                assert_eq!(challenge, bearer(&[]), "{header}");
            }
        }
    }
}

//! Files of variables: `.env` and `env_file`.

use crate::interpolate::{Lookup, Unset, Wrong, substitute};

/// The variables of a file in order, later ones over earlier ones. A name alone takes its value from `lookup`, and is left out without one.
/// Values that are not in single quotes may name variables: of `lookup` first, then of the file.
///
/// # Errors
/// What is wrong, with the line.
pub(crate) fn parse(
    text: &str,
    lookup: Lookup<'_>,
    unset: &mut Unset,
) -> Result<Vec<(String, String)>, (usize, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    let mut rest = text.strip_prefix('\u{feff}').unwrap_or(text);
    loop {
        rest = rest.trim_start();
        if rest.is_empty() {
            return Ok(found);
        }
        let line = text[..text.len() - rest.len()].matches('\n').count() + 1;
        let wrong = |why: String| (line, why);
        let (statement, after) = rest.split_once('\n').unwrap_or((rest, ""));
        if statement.starts_with('#') {
            rest = after;
            continue;
        }
        let body = match statement.strip_prefix("export") {
            Some(body) if body.starts_with([' ', '\t']) => body.trim_start(),
            _ => statement,
        };
        let Some(end) = body.find(['=', ':']) else {
            let name = check(body.trim_end()).map_err(wrong)?;
            if let Some(value) = lookup(name) {
                set(&mut found, name, value);
            }
            rest = after;
            continue;
        };
        let name = check(body[..end].trim_end()).map_err(wrong)?.to_owned();
        let value_at =
            rest.len() - (statement.len() - (statement.len() - body.len()) - end - 1) - (rest.len() - statement.len());
        let value = rest[value_at..].trim_start_matches([' ', '\t', '\r']);
        let both = |name: &str| {
            let earlier = found.iter().find(|(known, _)| known == name);
            lookup(name).or_else(|| earlier.map(|(_, value)| value.clone()))
        };
        let mut expand = |text: &str| {
            substitute(text, &both, unset).map_err(|why| {
                wrong(match why {
                    Wrong::Template(part) => format!("'{part}' is no variable"),
                    Wrong::Missing(why) => why,
                })
            })
        };
        let (value, after) = match value.as_bytes().first() {
            Some(quote @ (b'"' | b'\'')) => {
                let quote = char::from(*quote);
                let (inside, after) =
                    quoted(&value[1..], quote).ok_or_else(|| wrong("a quote is not closed".to_owned()))?;
                match quote {
                    '"' => (expand(&inside)?, after),
                    _ => (inside, after),
                }
            }
            _ => {
                let (value, after) = value.split_once('\n').unwrap_or((value, ""));
                let value = value.split_once(" #").map_or(value, |(value, _)| value);
                let value = if value.starts_with('#') { "" } else { value };
                (expand(value.trim_end())?, after)
            }
        };
        set(&mut found, &name, value);
        rest = after;
    }
}

fn set(found: &mut Vec<(String, String)>, name: &str, value: String) {
    match found.iter_mut().find(|(known, _)| known == name) {
        Some((_, old)) => *old = value,
        None => found.push((name.to_owned(), value)),
    }
}

fn check(name: &str) -> Result<&str, String> {
    let legal = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '-' | '[' | ']');
    match !name.is_empty() && name.chars().all(legal) {
        true => Ok(name),
        false => Err(format!("'{name}' is no name of a variable; a line is NAME=VALUE")),
    }
}

/// What is between quotes, of which the first one is before `text`, and what follows. In double quotes the escapes of a shell count, and an
/// escaped dollar sign stays one when variables are replaced.
fn quoted(text: &str, quote: char) -> Option<(String, &str)> {
    let mut inside = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            _ if c == quote => return Some((inside, &text[at + 1..])),
            '\\' => {
                let (_, next) = chars.next()?;
                match next {
                    _ if next == quote => inside.push(next),
                    'n' if quote == '"' => inside.push('\n'),
                    'r' if quote == '"' => inside.push('\r'),
                    't' if quote == '"' => inside.push('\t'),
                    '$' if quote == '"' => inside.push_str("$$"),
                    '\\' if quote == '"' => inside.push('\\'),
                    _ => inside.extend(['\\', next]),
                }
            }
            _ => inside.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<(String, String)> {
        let lookup = |name: &str| (name == "HAVE").then(|| "it".to_owned());
        parse(text, &lookup, &mut Vec::new()).unwrap()
    }

    #[test]
    fn lines_are_read_as_a_shell_would() {
        for (line, wanted) in [
            ("A=b", "b"),
            ("export A=b c ", "b c"),
            ("A = b", "b"),
            ("A: b", "b"),
            ("A=b # not this", "b"),
            ("A=b#this", "b#this"),
            ("A=", ""),
            ("A=# nothing", ""),
            ("A='b $HAVE \\n'", "b $HAVE \\n"),
            ("A=\"b $HAVE\\nc\\$HAVE\" # x", "b it\nc$HAVE"),
            ("A=\"two\nlines\"", "two\nlines"),
            ("A=${HAVE}/${NONE:-x}", "it/x"),
            ("A=b=c", "b=c"),
            ("A=\"say \\\"hi\\\"\"", "say \"hi\""),
            ("A=http://x:80/", "http://x:80/"),
            ("A=b\r", "b"),
        ] {
            assert_eq!(read(line), [("A".to_owned(), wanted.to_owned())], "{line}");
        }
        let several = read("# a comment\n\nB=1\nB=2\nC=$B\nHAVE\nNONE\n  D=4\n");
        let wanted = [("B", "2"), ("C", "2"), ("HAVE", "it"), ("D", "4")];
        assert_eq!(several, wanted.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn what_is_wrong_has_its_line() {
        let parse = |text: &str| parse(text, &|_| None, &mut Vec::new()).unwrap_err();
        assert_eq!(parse("A=1\nB C=2\n").0, 2);
        assert_eq!(parse("A=1\n\nB='x\n"), (3, "a quote is not closed".to_owned()));
        assert!(parse("A=${B:?why}").1.contains("why"));
        assert!(parse("A=${").1.contains("no variable"));
    }
}

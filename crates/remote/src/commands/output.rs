//! What is printed.

use std::io::{BufRead, Write};

use serde_json::Value;
use zmachine_spec::Failure;

/// Text on standard output. Whoever reads it may have enough before its end.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        written => Ok(written?),
    }
}

/// A line on standard output.
pub(super) fn line(text: &str) -> Result<(), Failure> {
    print(&format!("{text}\n"))
}

/// A document on standard output.
pub(super) fn json(document: &Value) -> Result<(), Failure> {
    line(&serde_json::to_string_pretty(document).map_err(std::io::Error::from)?)
}

/// Rows in columns as wide as they need, without what a terminal would obey.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> Result<(), Failure> {
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            row.iter()
                .map(|cell| cell.chars().filter(|c| !c.is_control()).collect())
                .collect()
        })
        .collect();
    let width = |index: usize| {
        let cells = rows
            .iter()
            .filter_map(|row| row.get(index))
            .map(|cell| cell.chars().count());
        cells.chain([head[index].len()]).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let shown = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        padded.join("  ").trim_end().to_owned()
    };
    let mut text = shown(&mut head.iter().copied()) + "\n";
    for row in &rows {
        text.push_str(&shown(&mut row.iter().map(String::as_str)));
        text.push('\n');
    }
    print(&text)
}

/// A value in a cell.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

/// A number of bytes for people.
pub(super) fn bytes(value: &Value) -> String {
    let Some(count) = value.as_u64() else {
        return text(value);
    };
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut size = count as f64;
    let mut unit = 0;
    while size >= 1024.0 && unit + 1 < units.len() {
        size /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{count} B"),
        _ => format!("{size:.1} {}", units[unit]),
    }
}

/// Asks whether something is meant, unless that has been said.
pub(super) fn confirm(what: &str, force: bool) -> Result<bool, Failure> {
    if force {
        return Ok(true);
    }
    eprint!("{what}\nAre you sure? [y/N] ");
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

/// Documents of a list.
pub(super) fn items<'a>(document: &'a Value, name: &str) -> &'a [Value] {
    document[name].as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_are_shown_for_people() {
        assert_eq!(bytes(&json!(512)), "512 B");
        assert_eq!(bytes(&json!(536_870_912)), "512.0 MiB");
        assert_eq!(text(&json!(["a", "b"])), "a,b");
        assert_eq!(text(&Value::Null), "-");
    }
}

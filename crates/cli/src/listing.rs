//! What all listings have in common: `--filter`, `--format`, `--no-trunc`, tables and JSON.

use clap::Args;
use serde::Serialize;
use serde_json::Value;
use zmachine_spec::{Class, Failure};
use zmachine_template::Template;

use crate::args::Format;
use crate::output;

/// How a listing is shown.
#[derive(Debug, Args)]
pub(crate) struct ListingArgs {
    /// Names alone
    #[arg(short, long)]
    pub(crate) quiet: bool,
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: Format,
    /// Show each by a template as docker's: '{{.Names}}', 'table {{.Names}}\t{{.Status}}', or 'json' for a line of JSON each
    #[arg(long, value_name = "TEMPLATE", conflicts_with = "output")]
    pub(crate) format: Option<String>,
    /// Only those for which this holds: label=KEY[=VALUE], name=PART ...
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub(crate) filter: Vec<String>,
    /// Cut nothing to fit the terminal
    #[arg(long)]
    pub(crate) no_trunc: bool,
}

/// One thing of a listing.
pub(crate) struct Row {
    /// For `--quiet`.
    pub(crate) name: String,
    /// For the table.
    pub(crate) cells: Vec<String>,
    /// For templates, with docker's names beside ours.
    pub(crate) fields: Value,
}

impl ListingArgs {
    /// Shows the rows; `json` is what `--output json` has.
    pub(crate) fn show<T: Serialize>(&self, header: &[&str], rows: &[Row], json: &[T]) -> Result<(), Failure> {
        if self.quiet {
            return rows
                .iter()
                .try_for_each(|row| output::print(&format!("{}\n", row.name)));
        }
        if let Some(format) = &self.format {
            return templated(format, rows, json);
        }
        if self.output == Format::Json {
            return output::json(&json);
        }
        let cells: Vec<Vec<String>> = rows.iter().map(|row| row.cells.clone()).collect();
        match self.no_trunc {
            true => output::whole_table(header, &cells),
            false => output::table(header, &cells),
        }
    }

    /// The filters by their keys, of which these are known.
    ///
    /// # Errors
    /// [`Class::Usage`] for another one.
    pub(crate) fn filters(&self, known: &[&str]) -> Result<Filters, Failure> {
        let mut filters = Filters(Vec::new());
        for text in &self.filter {
            let (key, value) = text.split_once('=').unwrap_or((text, ""));
            if !known.contains(&key) || value.is_empty() {
                let message = format!("--filter '{text}': there is no such filter");
                let hint = format!("filters are written KEY=VALUE; the keys are {}", known.join(", "));
                return Err(Failure::new(Class::Usage, message).hint(hint));
            }
            filters.0.push((key.to_owned(), value.to_owned()));
        }
        Ok(filters)
    }
}

/// What is asked of the things of a listing.
#[derive(Debug)]
pub(crate) struct Filters(Vec<(String, String)>);

impl Filters {
    /// Whether `is_so` holds for one of the values of `key`, where there are any: as with docker, values of one key are
    /// alternatives, and all keys must hold.
    pub(crate) fn allow(&self, key: &str, is_so: impl Fn(&str) -> bool) -> bool {
        let mut values = self
            .0
            .iter()
            .filter(|(known, _)| known == key)
            .map(|(_, value)| value.as_str())
            .peekable();
        values.peek().is_none() || values.any(is_so)
    }

    /// The values of `key`.
    pub(crate) fn values(&self, key: &str) -> impl Iterator<Item = &str> {
        let of_key = self.0.iter().filter(move |(known, _)| known == key);
        of_key.map(|(_, value)| value.as_str())
    }

    /// The labels: all of them must be there.
    pub(crate) fn allow_labels<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.0
            .iter()
            .filter(|(known, _)| known == "label")
            .all(|(_, wanted)| match wanted.split_once('=') {
                Some((key, value)) => label(key) == Some(value),
                None => label(wanted).is_some(),
            })
    }
}

fn templated<T: Serialize>(format: &str, rows: &[Row], json: &[T]) -> Result<(), Failure> {
    if format == "json" {
        for value in json {
            let line = serde_json::to_string(value).map_err(std::io::Error::from)?;
            output::print(&format!("{line}\n"))?;
        }
        return Ok(());
    }
    let (is_table, text) = match format.strip_prefix("table") {
        Some(rest) if rest.starts_with([' ', '\t', '\\']) => (true, rest.trim_start_matches("\\t").trim_start()),
        _ => (false, format),
    };
    let template = Template::parse(text)?;
    let lines = rows
        .iter()
        .map(|row| template.render(&row.fields))
        .collect::<Result<Vec<_>, _>>()?;
    if !is_table {
        return lines.iter().try_for_each(|line| output::print(&format!("{line}\n")));
    }
    let header: Vec<String> = template.columns().iter().map(|column| column.to_uppercase()).collect();
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let cells: Vec<Vec<String>> = lines
        .iter()
        .map(|line| line.split('\t').map(str::to_owned).collect())
        .collect();
    output::table(&header, &cells)
}

/// Shows documents by a template, one after the other, as `inspect --format` does.
pub(crate) fn by_template<T: Serialize>(format: &str, documents: &[T]) -> Result<(), Failure> {
    let template = match format {
        "json" => None,
        text => Some(Template::parse(text)?),
    };
    for document in documents {
        let value = serde_json::to_value(document).map_err(std::io::Error::from)?;
        let text = match &template {
            Some(template) => template.render(&value)?,
            None => value.to_string(),
        };
        output::print(&format!("{text}\n"))?;
    }
    Ok(())
}

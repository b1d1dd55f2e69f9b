//! `image inspect` and `history`, in the form that docker has them.

use serde_json::{Value, json};
use zmachine_engine::image_view::{document, image_view_with_templates};
use zmachine_image::Library;
use zmachine_pack::oci::pull::CONFIGURATION;
use zmachine_spec::bytes::Human;
use zmachine_spec::{Class, Failure};

use super::names::found;
use crate::args::Format;
use crate::args::image::{HistoryArgs, InspectImageArgs};
use crate::{context, listing, output};

/// The longest command of a step that is shown, in characters.
const SHOWN: usize = 60;

pub(super) fn inspect(library: &Library, args: &InspectImageArgs) -> Result<u8, Failure> {
    let home = context::home()?;
    let all: Vec<Value> = args
        .images
        .iter()
        .map(|text| image_view_with_templates(&home, library, &found(library, text)?, text))
        .collect::<Result<_, _>>()?;
    match &args.format {
        Some(format) => listing::by_template(format, &all)?,
        None => output::json(&all)?,
    }
    Ok(0)
}

pub(super) fn history(library: &Library, args: &HistoryArgs) -> Result<u8, Failure> {
    let digest = found(library, &args.image)?;
    let configuration = document(library, &digest, CONFIGURATION)?;
    let steps = configuration
        .get("history")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    if configuration.is_null() || steps.is_empty() {
        let message = format!("nothing is known of how '{}' was made", args.image);
        return Err(Failure::new(Class::NotFound, message)
            .hint("images of flists have no history; 'zmachine image inspect' shows what they are"));
    }
    let mut sizes = Vec::new();
    for layer in library.layers_of(&digest)? {
        let layer = library.layer(&layer)?;
        sizes.push(layer.map(|layer| layer.blocks.iter().map(|block| u64::from(block.len)).sum::<u64>()));
    }
    let mut sizes = sizes.into_iter();
    let mut rows = Vec::new();
    for step in &steps {
        let text = |name: &str| step.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let is_empty = step.get("empty_layer").and_then(Value::as_bool).unwrap_or_default();
        let size = if is_empty { Some(0) } else { sizes.next().flatten() };
        rows.push((text("created"), text("created_by"), size, text("comment")));
    }
    // The newest first, as docker has it.
    rows.reverse();
    if args.output == Format::Json {
        let row = |(created, by, size, comment): &(String, String, Option<u64>, String)| json!({"created": created, "created_by": by, "size": size, "comment": comment});
        output::json(&rows.iter().map(row).collect::<Vec<_>>())?;
        return Ok(0);
    }
    let cells = |(created, by, size, comment): &(String, String, Option<u64>, String)| {
        let by = by.replace(['\n', '\t'], " ");
        let by = match !args.no_trunc && by.chars().count() > SHOWN {
            true => format!("{}…", by.chars().take(SHOWN - 1).collect::<String>()),
            false => by,
        };
        let size = size.map_or_else(|| "-".to_owned(), |size| Human(size).to_string());
        vec![created.clone(), by, size, comment.clone()]
    };
    let rows: Vec<Vec<String>> = rows.iter().map(cells).collect();
    output::table(&["CREATED", "CREATED BY", "SIZE", "COMMENT"], &rows)?;
    Ok(0)
}

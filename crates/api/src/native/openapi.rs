//! The description of the API (OpenAPI 3.1), made of [`ROUTES`] and [`schemas`].

use serde_json::{Map, Value, json};

use super::files::ARCHIVE;
use super::problem;
use super::routes::{Gives, Kind, ROUTES, Route, Takes};
use super::schemas::schemas;

/// The description.
pub fn document() -> Value {
    let mut paths: Map<String, Value> = Map::new();
    for route in ROUTES {
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method.to_lowercase()] = operation(route);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "zmachine",
            "version": "1",
            "description": "Containers and operating systems as virtual machines of one host. Every failure is a problem document with the class, causes and hint that the command line tells.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": schemas(),
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "A token of 'zmachine token create'; over a Unix socket none is needed"},
            },
        },
        "security": [{"token": []}, {}],
    })
}

fn operation(route: &Route) -> Value {
    let places = route
        .path
        .split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let mut parameters: Vec<Value> = places
        .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}))
        .collect();
    parameters.extend(route.query.iter().map(|parameter| {
        let schema = match parameter.kind {
            Kind::Text => json!({"type": "string"}),
            Kind::Number => json!({"type": "integer"}),
            Kind::Flag => json!({"type": "boolean"}),
            Kind::List => json!({"type": "array", "items": {"type": "string"}}),
        };
        json!({"name": parameter.name, "in": "query", "description": parameter.about, "schema": schema})
    }));
    let schema = |name: &str| json!({"schema": {"$ref": format!("#/components/schemas/{name}")}});
    let content = |kind: &str, of: Value| json!({"description": "Done", "content": {kind: of}});
    let answer = match route.gives {
        Gives::Nothing => json!({"description": "Done"}),
        Gives::Document(name) => content("application/json", schema(name)),
        Gives::Socket => json!({"description": "A WebSocket; its messages are in docs/api.md"}),
        Gives::Stream(kind @ ARCHIVE) => content(kind, json!({"schema": {"type": "string", "format": "binary"}})),
        Gives::Stream(kind) => content(kind, json!({"schema": {"type": "string"}})),
    };
    let failed = json!({
        "description": "It failed",
        "content": {problem::CONTENT_TYPE: schema("Problem")},
    });
    let name = format!("{:?}", route.operation);
    let mut operation = json!({
        "operationId": name[..1].to_lowercase() + &name[1..],
        "summary": route.about,
        "x-role": route.role,
        "parameters": parameters,
        "responses": {route.status.to_string(): answer, "default": failed},
    });
    if let Some(takes) = route.takes {
        let (kind, of) = match takes {
            Takes::Document(name) => ("application/json", schema(name)),
            // As OpenAPI 3.1 has bytes: without a schema's own idea of them.
            Takes::Stream(kind) => (kind, json!({"schema": {"type": "string", "format": "binary"}})),
        };
        operation["requestBody"] = json!({"required": true, "content": {kind: of}});
    }
    operation
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `UPDATE_DOCS=1` writes it anew.
    #[test]
    fn the_committed_description_is_that_of_the_code() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
        let text = serde_json::to_string_pretty(&document()).unwrap() + "\n";
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            committed == text,
            "docs/openapi.json is out of date: run UPDATE_DOCS=1 cargo test --package zmachine-api openapi"
        );
    }

    #[test]
    fn every_schema_that_is_named_is_there() {
        let document = document();
        let text = document.to_string();
        let known = document["components"]["schemas"].as_object().unwrap();
        for part in text.split("#/components/schemas/").skip(1) {
            let name = part.split('"').next().unwrap();
            assert!(known.contains_key(name), "{name}");
        }
        for name in known.keys() {
            assert!(
                text.contains(&format!("#/components/schemas/{name}\"")),
                "{name} is used by nothing"
            );
        }
    }
}

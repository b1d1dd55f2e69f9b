//! JSON as YAML, for people.

use serde_json::Value as Json;
use yaml_rust2::yaml::Hash;
use yaml_rust2::{Yaml, YamlEmitter};

/// The text of a document.
pub fn text(json: &Json) -> String {
    let mut text = String::new();
    // Writing into a text cannot fail.
    let _ = YamlEmitter::new(&mut text).dump(&value(json));
    let text = text.strip_prefix("---").unwrap_or(&text);
    format!("{}\n", text.trim_start_matches('\n'))
}

fn value(json: &Json) -> Yaml {
    match json {
        // As a number, which is written as it is: the emitter has no other word for it than `~`.
        Json::Null => Yaml::Real("null".to_owned()),
        Json::Bool(truth) => Yaml::Boolean(*truth),
        Json::Number(number) => match number.as_i64() {
            Some(number) => Yaml::Integer(number),
            None => Yaml::Real(number.to_string()),
        },
        Json::String(text) => Yaml::String(text.clone()),
        Json::Array(items) => Yaml::Array(items.iter().map(value).collect()),
        Json::Object(map) => {
            let mut hash = Hash::new();
            for (key, item) in map {
                hash.insert(Yaml::String(key.clone()), value(item));
            }
            Yaml::Hash(hash)
        }
    }
}

//! What is shown of specifications and plans: URLs may have credentials in them, and what a command prints ends up in tickets
//! and logs.

use serde_json::Value;
use zmachine_image::store::redact;

/// The fields that have URLs.
const FIELDS: [&str; 2] = ["flist", "stores"];

/// A flist or store as the user named it, without the credentials of a URL. Paths and names stay as they are.
pub fn without_credentials(text: &str) -> String {
    match text.contains("://") {
        true => redact(text),
        false => text.to_owned(),
    }
}

/// The same in every field of a document that has such names.
pub fn redact_document(value: &mut Value) {
    match value {
        Value::Object(fields) => fields
            .iter_mut()
            .for_each(|(name, value)| match FIELDS.contains(&name.as_str()) {
                true => redact_names(value),
                false => redact_document(value),
            }),
        Value::Array(items) => items.iter_mut().for_each(redact_document),
        _ => {}
    }
}

fn redact_names(value: &mut Value) {
    match value {
        Value::String(text) => *text = without_credentials(text),
        Value::Array(items) => items.iter_mut().for_each(redact_names),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_of_flists_and_stores_lose_their_credentials_wherever_they_are() {
        let mut value = json!({"spec": {"flist": "https://u:pw@h/x.fl", "stores": ["s3://k:pw@h/b", "dir:///a@b"]},
            "plan": [{"install": {"stores": ["zdb://:pw@h/n"]}}], "other": "https://u:pw@h"});
        redact_document(&mut value);
        let expected = json!({"spec": {"flist": "https://h/x.fl", "stores": ["s3://h/b", "dir:///a@b"]},
            "plan": [{"install": {"stores": ["zdb://h/n"]}}], "other": "https://u:pw@h"});
        assert_eq!(value, expected);
        assert_eq!(without_credentials("/srv/a?b@c.fl"), "/srv/a?b@c.fl");
    }
}

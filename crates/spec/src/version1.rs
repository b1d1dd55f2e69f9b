//! Specs of version 1: the same, but for values that were written as flags take them. They are read by the parsers that read
//! flags, so nothing here has a syntax of its own.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use crate::failure::{Class, Failure};
use crate::log_target::LogTarget;
use crate::network_request::NetworkRequest;
use crate::restart::RestartPolicy;
use crate::signal::Signal;
use crate::user::User;
use crate::volume_request::VolumeRequest;

/// Brings the JSON of a spec of version 1 up to `version`, which is 2.
///
/// # Errors
/// When a value is none that version 1 wrote.
pub(super) fn upgrade(spec: &mut Value, version: u32) -> Result<(), Failure> {
    // Directories were absolute.
    let volume = |text: &str| VolumeRequest::parse(text, Path::new("/"));
    let publish = |text: &str| {
        let parsed = zmachine_network::PublishRequest::parse(text);
        parsed.map_err(|e| Failure::from_error(Class::Usage, &e))
    };
    each(spec, "networks", NetworkRequest::parse)?;
    each(spec, "publish", publish)?;
    each(spec, "volumes", volume)?;
    one(spec, "user", |text| Ok(User::parse(text)))?;
    one(spec, "stop_signal", signal)?;
    one(spec, "log_to", str::parse::<LogTarget>)?;
    one(spec, "restart", str::parse::<RestartPolicy>)?;
    if let Some(found) = spec.get_mut("version") {
        *found = Value::from(version);
    }
    Ok(())
}

/// A signal. Early programs took numbers with a sign, or `SIG` before them.
fn signal(text: &str) -> Result<Signal, Failure> {
    text.parse().or_else(|failure| {
        let upper = text.to_ascii_uppercase();
        let number = upper.strip_prefix("SIG").unwrap_or(&upper);
        let number = number.strip_prefix('+').unwrap_or(number);
        number.parse().map_err(|_: Failure| failure)
    })
}

fn one<T: Serialize>(spec: &mut Value, field: &str, read: impl Fn(&str) -> Result<T, Failure>) -> Result<(), Failure> {
    match spec.get_mut(field) {
        Some(value) => typed(value, field, &read),
        None => Ok(()),
    }
}

fn each<T: Serialize>(spec: &mut Value, field: &str, read: impl Fn(&str) -> Result<T, Failure>) -> Result<(), Failure> {
    match spec.get_mut(field) {
        Some(Value::Array(values)) => values.iter_mut().try_for_each(|value| typed(value, field, &read)),
        _ => Ok(()),
    }
}

/// The value of a text in its place; what is no text is told by whoever reads the spec of this version.
fn typed<T: Serialize>(
    value: &mut Value,
    field: &str,
    read: &impl Fn(&str) -> Result<T, Failure>,
) -> Result<(), Failure> {
    if let Value::String(text) = value {
        let read = read(text).map_err(|failure| failure.context(format!("'{field}' cannot be understood")))?;
        *value = serde_json::to_value(read).map_err(|e| Failure::from_error(Class::Failed, &e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_text_of_version_1_becomes_the_value_it_stood_for() {
        let mut spec = json!({
            "version": 1,
            "networks": ["default", "inner:ip=10.0.0.7,alias=db"],
            "publish": ["8080:80", "53/udp"],
            "volumes": ["data:/d:size=1G", "/cache", "/srv:/srv:ro"],
            "user": "web:www",
            "stop_signal": "SIG+9",
            "log_to": "syslog",
            "restart": "on-failure:3",
            "dns": ["9.9.9.9"],
            "accel": "tcg",
        });
        upgrade(&mut spec, 2).unwrap();
        let upgraded = json!({
            "version": 2,
            "networks": [{"name": "default"}, {"name": "inner", "ipv4": "10.0.0.7", "aliases": ["db"]}],
            "publish": [
                {"host": {"first": 8080, "last": 8080}, "guest": {"first": 80, "last": 80}, "protocol": "tcp"},
                {"guest": {"first": 53, "last": 53}, "protocol": "udp"},
            ],
            "volumes": [
                {"origin": {"volume": "data"}, "target": "/d", "size_bytes": 1 << 30},
                {"origin": "anonymous", "target": "/cache"},
                {"origin": {"directory": "/srv"}, "target": "/srv", "read_only": true},
            ],
            "user": {"name": "web", "group": "www"},
            "stop_signal": "SIGKILL",
            "log_to": {"syslog_local": "/dev/log"},
            "restart": {"on_failure": {"most": 3}},
            "dns": ["9.9.9.9"],
            "accel": "tcg",
        });
        assert_eq!(spec, upgraded);
    }

    #[test]
    fn what_no_version_1_wrote_is_told_with_its_field() {
        let mut spec = json!({"version": 1, "volumes": ["a:b:c:d"]});
        assert!(upgrade(&mut spec, 2).unwrap_err().message.contains("'volumes'"));
    }
}

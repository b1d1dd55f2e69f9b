//! The conversation of a start: what containerd says on standard input, and the answer in the form that it understands.
//!
//! | containerd | says | understands |
//! |---|---|---|
//! | 1.6 | flags | an address |
//! | 1.7 | flags, `MAX_SHIM_VERSION=2` | an address, or JSON of version 2 |
//! | 2.0 to 2.2 | flags, `MAX_SHIM_VERSION=3` | an address, or JSON up to version 3 |
//! | 2.3 and later | a `BootstrapParams` message on standard input; flags for now as well | a `BootstrapResult` message, or JSON |
//!
//! Before 2.3, what is on standard input are options of the runtime, in a message of another form.

use containerd_shim_protos::protobuf::rt::WireType;
use containerd_shim_protos::protobuf::{CodedInputStream, CodedOutputStream};

use crate::arguments::Arguments;

/// The longest message that is read, in bytes.
pub(crate) const MESSAGE_LIMIT: u64 = 4 << 20;

/// What of containerd's message is used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Params {
    /// Field 1.
    pub(crate) id: String,
    /// Field 2.
    pub(crate) namespace: String,
    /// Field 5.
    pub(crate) events_address: String,
    /// Field 6.
    pub(crate) address: String,
}

/// Reads `BootstrapParams`; `None` when the bytes are something else.
pub(crate) fn params(bytes: &[u8]) -> Option<Params> {
    let mut input = CodedInputStream::from_bytes(bytes);
    let mut params = Params::default();
    while let Some(tag) = input.read_raw_tag_or_eof().ok()? {
        let (field, kind) = (tag >> 3, tag & 7);
        let text = |input: &mut CodedInputStream<'_>| input.read_string().ok();
        match (field, kind) {
            (1, 2) => params.id = text(&mut input)?,
            (2, 2) => params.namespace = text(&mut input)?,
            (5, 2) => params.events_address = text(&mut input)?,
            (6, 2) => params.address = text(&mut input)?,
            (_, kind) => {
                let kind = [
                    WireType::Varint,
                    WireType::Fixed64,
                    WireType::LengthDelimited,
                    WireType::StartGroup,
                    WireType::EndGroup,
                    WireType::Fixed32,
                ]
                .into_iter()
                .find(|known| *known as u32 == kind)?;
                input.skip_field(kind).ok()?;
            }
        }
    }
    // Options are in an `Any`, whose first field is the name of a type, and which has no third.
    let is_one = !params.id.is_empty() && !params.namespace.is_empty() && !params.address.is_empty();
    is_one.then_some(params)
}

/// How the answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Task API 2 on this address.
    Address,
    /// Task API 3.
    Json,
    /// The same, as a `BootstrapResult`.
    Message,
}

/// The form for a caller that said `params`, and allows `max_version` in its environment.
pub(crate) fn form(params: Option<&Params>, max_version: Option<&str>) -> Form {
    let version: u32 = max_version.and_then(|text| text.parse().ok()).unwrap_or(2);
    match (params, version) {
        (Some(_), _) => Form::Message,
        (None, 3..) => Form::Json,
        (None, _) => Form::Address,
    }
}

/// The answer that the shim listens on `address`.
pub(crate) fn answer(form: Form, address: &str) -> Vec<u8> {
    match form {
        Form::Address => address.as_bytes().to_vec(),
        Form::Json => serde_json::json!({"version": 3, "address": address, "protocol": "ttrpc"})
            .to_string()
            .into_bytes(),
        Form::Message => {
            let mut bytes = Vec::new();
            let mut output = CodedOutputStream::vec(&mut bytes);
            // Writing to memory does not fail.
            let _ = output.write_int32(1, 3);
            let _ = output.write_string(2, address);
            let _ = output.write_string(3, "ttrpc");
            let _ = output.flush();
            drop(output);
            bytes
        }
    }
}

/// Fills in what the command line does not say.
pub(crate) fn complete(arguments: &mut Arguments, params: &Params) {
    let fill = |target: &mut String, value: &str| {
        if target.is_empty() {
            value.clone_into(target);
        }
    };
    fill(&mut arguments.id, &params.id);
    fill(&mut arguments.namespace, &params.namespace);
    fill(&mut arguments.address, &params.address);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(fields: &[(u32, &str)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut output = CodedOutputStream::vec(&mut bytes);
        for (number, text) in fields {
            output.write_string(*number, text).unwrap();
        }
        // The log level, a negative number.
        output.write_int32(3, -4).unwrap();
        output.flush().unwrap();
        drop(output);
        bytes
    }

    #[test]
    fn each_containerd_gets_the_form_that_it_knows() {
        assert_eq!(form(None, None), Form::Address);
        assert_eq!(form(None, Some("2")), Form::Address);
        assert_eq!(form(None, Some("3")), Form::Json);
        assert_eq!(form(Some(&Params::default()), Some("3")), Form::Message);
        assert_eq!(answer(Form::Address, "unix:///a"), b"unix:///a");
        let json: serde_json::Value = serde_json::from_slice(&answer(Form::Json, "unix:///a")).unwrap();
        assert_eq!((&json["version"], &json["protocol"]), (&3.into(), &"ttrpc".into()));
        assert_eq!(
            answer(Form::Message, "unix:///a"),
            b"\x08\x03\x12\x09unix:///a\x1a\x05ttrpc"
        );
    }

    #[test]
    fn a_message_is_told_from_options_of_a_runtime() {
        let all = message(&[
            (1, "abc"),
            (2, "k8s.io"),
            (4, "v2.3.0"),
            (5, "/t"),
            (6, "/g"),
            (8, "ext"),
        ]);
        let read = params(&all).unwrap();
        assert_eq!((read.id.as_str(), read.events_address.as_str()), ("abc", "/t"));
        let mut arguments = Arguments {
            id: "own".into(),
            ..Arguments::default()
        };
        complete(&mut arguments, &read);
        assert_eq!((arguments.id.as_str(), arguments.address.as_str()), ("own", "/g"));
        // An `Any`, and no message at all.
        assert_eq!(params(&message(&[(1, "containerd.runc.v1.Options"), (2, "x")])), None);
        assert_eq!(params(b""), None);
        assert_eq!(params(b"\xff\xff\xff"), None);
    }
}

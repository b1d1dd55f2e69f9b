//! `-info`: what this runtime is able to do, as containerd 2.x asks once for each runtime (`containerd.types.RuntimeInfo`, with the
//! features of the OCI runtime specification in it).

use std::io::{self, Read, Write};

use containerd_shim_protos::protobuf::CodedOutputStream;
use zmachine_spec::guest::CAPABILITIES;

use crate::bootstrap::MESSAGE_LIMIT;
use crate::error::ShimError;
use crate::layers::HANDLED;
use crate::names;

/// The name under which containerd's programs know the type, whose values are JSON.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// Answers containerd.
///
/// # Errors
/// When it does not listen.
pub(crate) fn tell() -> Result<(), ShimError> {
    // Options of the runtime, of which there are none.
    let _ = io::stdin().take(MESSAGE_LIMIT).read_to_end(&mut Vec::new());
    let told = io::stdout().write_all(&message()).and_then(|()| io::stdout().flush());
    told.map_err(|e| ShimError::failed("cannot answer", e))
}

fn message() -> Vec<u8> {
    let version = encoded(&[(1, env!("CARGO_PKG_VERSION").as_bytes())]);
    let features = encoded(&[(1, FEATURES.as_bytes()), (2, features().to_string().as_bytes())]);
    let annotation = encoded(&[(1, HANDLED.0.as_bytes()), (2, HANDLED.1.as_bytes())]);
    encoded(&[
        (1, b"io.containerd.zmachine.v2"),
        (2, &version),
        (4, &features),
        (5, &annotation),
    ])
}

fn encoded(fields: &[(u32, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut output = CodedOutputStream::vec(&mut bytes);
    for (number, value) in fields {
        // Writing to memory does not fail.
        let _ = output.write_bytes(*number, value);
    }
    let _ = output.flush();
    drop(output);
    bytes
}

/// What is not named here is not there: containerd refuses pods that need it, instead of starting them without it.
fn features() -> serde_json::Value {
    let capabilities: Vec<String> = CAPABILITIES.iter().map(|name| format!("CAP_{name}")).collect();
    serde_json::json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.2.1",
        "mountOptions": names::known_mount_options(),
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "uts"],
            "capabilities": capabilities,
            "cgroup": {"v1": false, "v2": true, "systemd": false, "systemdUser": false, "rdma": false},
            "seccomp": {
                "enabled": true,
                "actions": [
                    "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD",
                    "SCMP_ACT_LOG", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP",
                ],
                "operators": [
                    "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT", "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE",
                ],
                "archs": ["SCMP_ARCH_X86", "SCMP_ARCH_X86_64"],
            },
            "apparmor": {"enabled": false},
            "selinux": {"enabled": false},
            "mountExtensions": {"idmap": {"enabled": false}},
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::protobuf::Message;
    use containerd_shim_protos::protobuf::well_known_types::any::Any;

    #[test]
    fn containerd_can_read_what_is_able_to_be_done() {
        let bytes = message();
        // The last field but one, of a length in two bytes.
        let text = FEATURES.as_bytes();
        let at = bytes.windows(text.len()).position(|part| part == text).unwrap();
        let end = bytes
            .windows(HANDLED.0.len())
            .position(|part| part == HANDLED.0.as_bytes())
            .unwrap();
        // Behind tag and length of the annotation and of its key.
        let any = Any::parse_from_bytes(&bytes[at - 2..end - 4]).unwrap();
        let features: serde_json::Value = serde_json::from_slice(&any.value).unwrap();
        assert_eq!(features["linux"]["seccomp"]["enabled"], true);
        let options = features["mountOptions"].as_array().unwrap();
        assert!(
            options.contains(&"rro".into()) && options.contains(&"rslave".into()),
            "{options:?}"
        );
        assert!(bytes.starts_with(b"\x0a\x19io.containerd.zmachine.v2\x12"));
    }
}

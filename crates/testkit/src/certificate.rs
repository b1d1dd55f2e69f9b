//! Certificates for servers of tests.

use std::path::Path;
use std::process::Command;

/// Makes `cert.pem`, for `localhost` and 127.0.0.1, and its key `key.pem` in `folder`. It needs `openssl`.
///
/// # Panics
/// When it cannot be made.
pub fn certificate(folder: &Path) {
    let key = [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ];
    let names = [
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost,IP:127.0.0.1",
    ];
    // What signs itself as an authority is no server's to some clients.
    let leaf = [
        "-addext",
        "basicConstraints=critical,CA:FALSE",
        "-keyout",
        "key.pem",
        "-out",
        "cert.pem",
    ];
    let mut command = Command::new("openssl");
    command.args(key).args(names).args(leaf).current_dir(folder);
    let made = command.output().unwrap_or_else(|e| panic!("openssl: {e}"));
    assert!(made.status.success(), "{made:?}");
}

//! TLS of the server: its certificate and key, read again when they have been renewed.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;
use zmachine_spec::{Class, Failure};

use crate::locked;

/// How often is looked whether the certificate has been renewed.
const LOOK: Duration = Duration::from_secs(5);

/// A certificate with its key, from two files in PEM.
#[derive(Debug)]
pub struct Identity {
    certificate: PathBuf,
    key: PathBuf,
    now: Mutex<Loaded>,
}

struct Loaded {
    acceptor: TlsAcceptor,
    mark: Mark,
    looked_at: Instant,
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loaded")
            .field("mark", &self.mark)
            .finish_non_exhaustive()
    }
}

/// By what a file is known to be another one.
type Mark = [(u64, i64, i64); 2];

impl Identity {
    /// Reads both.
    ///
    /// # Errors
    /// [`Class::Usage`] for files that cannot be read, are not what they should be, do not belong together, or a key that everybody may read.
    pub fn load(certificate: &Path, key: &Path) -> Result<Identity, Failure> {
        let loaded = load(certificate, key)?;
        Ok(Identity {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            now: Mutex::new(loaded),
        })
    }

    /// What does the handshake of the next connection.
    pub fn acceptor(&self) -> TlsAcceptor {
        let mut now = locked(&self.now);
        if now.looked_at.elapsed() >= LOOK {
            now.looked_at = Instant::now();
            let is_other = mark(&self.certificate, &self.key).is_ok_and(|mark| mark != now.mark);
            if is_other {
                match load(&self.certificate, &self.key) {
                    Ok(loaded) => *now = loaded,
                    // In the middle of a renewal, perhaps: the next look will tell.
                    Err(failure) => eprintln!("warning: the certificate stays the one that it was: {failure}"),
                }
            }
        }
        now.acceptor.clone()
    }
}

fn mark(certificate: &Path, key: &Path) -> std::io::Result<Mark> {
    let one = |path: &Path| {
        let file = path.metadata()?;
        Ok::<_, std::io::Error>((file.ino(), file.mtime(), file.mtime_nsec()))
    };
    Ok([one(certificate)?, one(key)?])
}

fn load(certificate: &Path, key: &Path) -> Result<Loaded, Failure> {
    let wrong = |path: &Path, error: &(dyn std::error::Error + 'static), hint: &str| {
        Failure::from_error(Class::Usage, error)
            .context(format!("{} cannot be used", path.display()))
            .hint(hint)
    };
    // Before reading: what is renewed in between is seen by the next look.
    let mark =
        mark(certificate, key).map_err(|e| wrong(certificate, &e, "--tls-cert and --tls-key name files in PEM"))?;
    let mode = key.metadata()?.mode();
    if mode & 0o007 != 0 {
        let message = format!("the key {} may be read by everybody on this host", key.display());
        return Err(Failure::new(Class::Usage, message).hint(format!("chmod o= {}", key.display())));
    }
    let in_pem = "it has to have certificates in PEM, the server's own first";
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(|e| wrong(certificate, &e, in_pem))?;
    if chain.is_empty() {
        let message = format!("there is no certificate in {}", certificate.display());
        return Err(Failure::new(Class::Usage, message).hint(in_pem));
    }
    let private =
        PrivateKeyDer::from_pem_file(key).map_err(|e| wrong(key, &e, "it has to have a private key in PEM"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Failure::from_error(Class::Failed, &e))?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(|e| wrong(certificate, &e, "the certificate and the key have to belong together"))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Loaded {
        acceptor: TlsAcceptor::from(Arc::new(config)),
        mark,
        looked_at: Instant::now(),
    })
}

//! `import`.

use std::path::{Path, PathBuf};

use zmachine_image::Timeouts;
use zmachine_image::oci::{ImageSource, ImportError, ImportOptions, import};
use zmachine_image::pack::PackOptions;
use zmachine_machine::{Class, Failure};

use super::write::{pack_failure, report, stores, write};
use crate::args::flist::WriteArgs;
use crate::progress::Bars;

pub(super) fn import_image(
    image: &str,
    file: &Path,
    to: &WriteArgs,
    auth_file: Option<PathBuf>,
    plain_http: bool,
    threads: usize,
) -> Result<u8, Failure> {
    let image = ImageSource::parse(image).map_err(|e| {
        Failure::from_error(Class::Usage, &e).hint("for example docker://debian:12, oci:DIR:TAG or docker-archive:FILE")
    })?;
    let store = stores(to)?;
    let import_options = ImportOptions {
        auth_files: match auth_file {
            Some(file) => vec![readable(file)?],
            None => auth_files(),
        },
        plain_http,
        timeouts: Timeouts::default(),
    };
    let options = PackOptions {
        threads,
        routes: store.routes(to.publishes_credentials()),
        ..PackOptions::default()
    };
    let imported = import(&image, &import_options, &store, &options, &Bars::bytes());
    let (flist, packed) = imported.map_err(|e| import_failure(&e))?;
    write(&flist, file)?;
    report(file, &packed);
    Ok(0)
}

fn import_failure(error: &ImportError) -> Failure {
    if let ImportError::Pack { image, source } = error {
        return pack_failure(source).context(format!("{image} can not be packed"));
    }
    let class = if error.is_fetch_failure() {
        Class::Fetch
    } else {
        Class::Unsupported
    };
    Failure::from_error(class, error).hint(error.hint().unwrap_or_default())
}

fn readable(file: PathBuf) -> Result<PathBuf, Failure> {
    match std::fs::File::open(&file) {
        Ok(_) => Ok(file),
        Err(e) => Err(Failure::from_error(Class::NotFound, &e)
            .context(format!("can not read --authfile {}", file.display()))
            .hint("give a file that docker login or podman login wrote")),
    }
}

/// Where podman, skopeo and docker keep credentials, in the order in which the first two look.
fn auth_files() -> Vec<PathBuf> {
    let variable = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let home = variable("HOME");
    let config = variable("XDG_CONFIG_HOME").or_else(|| home.as_ref().map(|home| home.join(".config")));
    let docker = variable("DOCKER_CONFIG").or_else(|| home.as_ref().map(|home| home.join(".docker")));
    [
        variable("REGISTRY_AUTH_FILE"),
        variable("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json")),
        Some(PathBuf::from(format!(
            "/run/containers/{}/auth.json",
            rustix::process::getuid()
        ))),
        config.map(|dir| dir.join("containers/auth.json")),
        docker.map(|dir| dir.join("config.json")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

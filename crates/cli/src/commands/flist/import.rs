//! `import`.

use std::path::{Path, PathBuf};

use zmachine_engine::guest_level;
use zmachine_pack::oci::{ImageSource, ImportError, ImportOptions, Imported, import};
use zmachine_pack::pack::PackOptions;
use zmachine_spec::{Class, Failure};
use zmachine_sys::file::open_regular;

use super::write::{pack_failure, report, stores, write};
use crate::args::flist::WriteArgs;
use crate::context;
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
        Failure::from_error(Class::Usage, &e)
            .hint("for example docker://debian:12, oci:DIR:TAG, oci-archive:FILE or docker-archive:FILE")
    })?;
    let store = stores(to)?;
    let import_options = ImportOptions {
        auth_files: match auth_file {
            Some(file) => vec![readable(file)?],
            None => context::auth_files(),
        },
        plain_http,
        registries: context::quiet_engine()?.registries()?,
        amd64_level: guest_level(),
        temporary: context::temporary(),
        ..ImportOptions::default()
    };
    let options = PackOptions {
        threads,
        routes: store.routes(to.publishes_credentials()),
        ..PackOptions::default()
    };
    let imported = import(&image, &import_options, &store, &options, &Bars::bytes());
    let Imported {
        flist,
        report: packed,
        other_platform,
    } = imported.map_err(import_failure)?;
    write(&flist, file)?;
    report(file, &packed);
    if let Some(platform) = other_platform {
        eprintln!("warning: the image is for {platform}: a machine of this host cannot run its programs");
    }
    Ok(0)
}

fn import_failure(error: ImportError) -> Failure {
    match error {
        ImportError::Pack { image, source } => pack_failure(&source).context(format!("{image} cannot be packed")),
        error => zmachine_engine::import_failure(error),
    }
}

fn readable(file: PathBuf) -> Result<PathBuf, Failure> {
    match open_regular(&file) {
        Ok(_) => Ok(file),
        Err(e) => Err(Failure::from_error(Class::NotFound, &e)
            .context(format!("cannot read --authfile {}", file.display()))
            .hint("give a file that docker login or podman login wrote")),
    }
}

//! `import`.

use std::path::{Path, PathBuf};

use zmachine_hypervisor::Accel;
use zmachine_hypervisor::accel::{self, AccelFacts, Requested};
use zmachine_pack::oci::{ImageSource, ImportError, ImportOptions, Imported, import};
use zmachine_pack::pack::PackOptions;
use zmachine_spec::{Class, Failure};
use zmachine_sys::file::open_regular;

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
        Failure::from_error(Class::Usage, &e)
            .hint("for example docker://debian:12, oci:DIR:TAG, oci-archive:FILE or docker-archive:FILE")
    })?;
    let store = stores(to)?;
    let import_options = ImportOptions {
        auth_files: match auth_file {
            Some(file) => vec![readable(file)?],
            None => auth_files(),
        },
        plain_http,
        amd64_level: guest_level(),
        temporary: std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from),
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
    } = imported.map_err(|e| import_failure(&e))?;
    write(&flist, file)?;
    report(file, &packed);
    if let Some(platform) = other_platform {
        eprintln!("warning: the image is for {platform}: a machine of this host cannot run its programs");
    }
    Ok(0)
}

/// The level of the processor that guests of this host have: its own with KVM, and what QEMU emulates without.
fn guest_level() -> u8 {
    match accel::choose(Requested::Auto, &AccelFacts::gather()) {
        Ok(choice) if choice.accel == Accel::Kvm => host_level(),
        // QEMU has emulated AVX2 since 7.2, which is older than what is supported here; AVX-512 it does not.
        _ => 3,
    }
}

/// The level of this processor, as the ABI of x86-64 has them.
fn host_level() -> u8 {
    use std::arch::is_x86_feature_detected as has;
    let is_v2 =
        has!("cmpxchg16b") && has!("popcnt") && has!("sse3") && has!("ssse3") && has!("sse4.1") && has!("sse4.2");
    let is_v3 = has!("avx") && has!("avx2") && has!("bmi1") && has!("bmi2") && has!("f16c") && has!("fma");
    let is_v3 = is_v2 && is_v3 && has!("lzcnt") && has!("movbe");
    let is_v4 = has!("avx512f") && has!("avx512bw") && has!("avx512cd") && has!("avx512dq") && has!("avx512vl");
    match (is_v2, is_v3, is_v3 && is_v4) {
        (_, _, true) => 4,
        (_, true, _) => 3,
        (true, ..) => 2,
        _ => 1,
    }
}

fn import_failure(error: &ImportError) -> Failure {
    if let ImportError::Pack { image, source } = error {
        return pack_failure(source).context(format!("{image} cannot be packed"));
    }
    let class = if error.is_fetch_failure() {
        Class::Fetch
    } else {
        Class::Unsupported
    };
    Failure::from_error(class, error).hint(error.hint().unwrap_or_default())
}

fn readable(file: PathBuf) -> Result<PathBuf, Failure> {
    match open_regular(&file) {
        Ok(_) => Ok(file),
        Err(e) => Err(Failure::from_error(Class::NotFound, &e)
            .context(format!("cannot read --authfile {}", file.display()))
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

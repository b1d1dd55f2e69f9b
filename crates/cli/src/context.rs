//! What the environment says, read in one place: where the state is, where the agent is.

use std::env;
use std::path::{Path, PathBuf};

use zmachine_engine::{AbortAt, Engine, Programs, RegistryFiles};
use zmachine_spec::{Class, Failure, Home};

/// Names the folder of all state, in place of the usual ones.
pub(crate) const HOME_VARIABLE: &str = "ZMACHINE_HOME";

/// For tests of crashes: `engine:N` or `monitor:N` ends that process at its N-th step, as `kill -9` would.
const ABORT_VARIABLE: &str = "ZMACHINE_ABORT_AT";

/// The folders of the state: kept, and lost at reboot.
pub(crate) fn state_dirs() -> Result<(PathBuf, PathBuf), Failure> {
    if let Some(home) = env::var_os(HOME_VARIABLE).filter(|home| !home.is_empty()) {
        let home = std::path::absolute(home)?;
        let run = home.join("run");
        return Ok((home, run));
    }
    if rustix::process::geteuid().is_root() {
        return Ok(("/var/lib/zmachine".into(), "/run/zmachine".into()));
    }
    let missing = |name: &str| {
        Failure::new(
            Class::Usage,
            format!("there is no place for the state: {name} is not set"),
        )
        .hint(format!("set {HOME_VARIABLE} to a folder that you may write"))
    };
    let data = env::var_os("XDG_DATA_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(Path::new(&env::var_os("HOME")?).join(".local/share")))
        .ok_or_else(|| missing("HOME"))?;
    let run = env::var_os("XDG_RUNTIME_DIR")
        .map(PathBuf::from)
        .or_else(runtime_dir_of_a_login)
        .ok_or_else(|| missing("XDG_RUNTIME_DIR"))?;
    Ok((data.join("zmachine"), run.join("zmachine")))
}

/// Where a login has put the user's folder, for who came by `su` or a job, which do not say so.
fn runtime_dir_of_a_login() -> Option<PathBuf> {
    use std::os::unix::fs::MetadataExt;
    let uid = rustix::process::geteuid().as_raw();
    let folder = PathBuf::from(format!("/run/user/{uid}"));
    let there = std::fs::symlink_metadata(&folder).ok()?;
    (there.is_dir() && there.uid() == uid).then_some(folder)
}

/// Opens the state.
pub(crate) fn home() -> Result<Home, Failure> {
    let (data, run) = state_dirs()?;
    Home::open(&data, &run)
}

/// The engine over the state as it is, for who looks at what is wrong with it.
pub(crate) fn quiet_engine() -> Result<Engine, Failure> {
    Ok(with_own_files(Engine::new(home()?, Programs::own())))
}

/// Credentials are where the user's other tools have them.
fn with_own_files(engine: Engine) -> Engine {
    let files = RegistryFiles {
        auth: auth_files(),
        temporary: temporary(),
        ..engine.registry_files().clone()
    };
    engine.with_registry_files(files)
}

/// Where large files are for as long as a command needs them.
pub(crate) fn temporary() -> PathBuf {
    let folder = env::var_os("TMPDIR").filter(|folder| !folder.is_empty());
    folder.map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from)
}

/// Where podman, skopeo and docker keep credentials, in the order in which the first two look.
pub(crate) fn auth_files() -> Vec<PathBuf> {
    let variable = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
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

/// The engine over the state, after it reconciled what crashed since the last command.
pub(crate) fn engine() -> Result<Engine, Failure> {
    let engine = Engine::open(home()?, Programs::own(), abort_at(), |line| {
        eprintln!("warning: {line}")
    })?;
    Ok(with_own_files(engine))
}

fn abort_at() -> AbortAt {
    let Ok(text) = env::var(ABORT_VARIABLE) else {
        return AbortAt::default();
    };
    let number = |role: &str| {
        text.split(',')
            .find_map(|part| part.strip_prefix(role)?.strip_prefix(':')?.parse().ok())
    };
    AbortAt {
        engine: number("engine"),
        monitor: number("monitor"),
    }
}

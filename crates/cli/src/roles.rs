//! The hidden roles of this program: processes that a machine is made of.

use std::time::Duration;

use zmachine_engine::{Engine, Programs, RegistryFiles};
use zmachine_image::store::Credentials;
use zmachine_monitor as monitor;
use zmachine_monitor::{MonitorArgs, Restore};
use zmachine_pack::oci::lazy::chunk_source;
use zmachine_rootfs::RootfsArgs;
use zmachine_share::{ShareArgs, Tree};
use zmachine_spec::{Class, Failure};
use zmachine_store::volume::handed;
use zmachine_sys::fd;
use zmachine_sys::jail::{self, Jail};

use crate::args::{CompleteRole, JailRole, MemoryRole, MonitorRole, RootfsRole, ShareRole, StandbyRole};

/// The longest a guest waits for one block, over all routes and retries, before its read fails.
const BLOCK_DEADLINE: Duration = Duration::from_secs(60);

/// The name that `ps` and `top` show for this process; the path it was started by is `/proc/self/exe`.
fn show_as(name: &std::ffi::CStr) {
    // Only cosmetic: nothing depends on it.
    let _ = rustix::thread::set_name(name);
}

/// `zmachine monitor`: one machine's own process.
pub(crate) fn monitor(role: MonitorRole) -> Result<u8, Failure> {
    show_as(c"zm-monitor");
    let report = fd::take_inherited(role.report_fd)
        .map_err(|e| Failure::from_error(Class::Usage, &e).context("this role is started by 'zmachine start' alone"))?;
    let home = role.home.open()?;
    let restore = match (role.restore, role.memory_fd) {
        (Some(folder), Some(memory)) => Some(Restore {
            folder,
            memory: fd::take_inherited(memory).map_err(|e| Failure::from_error(Class::Usage, &e))?,
            is_shared: role.shared_memory,
            is_fork: role.fork,
        }),
        _ => None,
    };
    monitor::run(MonitorArgs {
        held_volumes: handed::take_all(&role.held_volumes).map_err(|e| Failure::from_error(Class::Usage, &e))?,
        home,
        id: role.id,
        report,
        wait_for_owner: role.wait_for_owner,
        ends_with_client: role.ends_with_client,
        restore,
        template: role.template,
        stands_by: role.stands_by,
        abort_at: role.abort_at,
    })?;
    Ok(0)
}

/// `zmachine rootfs`: the server of one machine's root disk.
pub(crate) fn rootfs(role: RootfsRole) -> Result<u8, Failure> {
    show_as(c"zm-rootfs");
    let inherited = |number| {
        fd::take_inherited(number).map_err(|e| {
            Failure::from_error(Class::Usage, &e).context("this role is started by a machine's monitor alone")
        })
    };
    // On standard input, as arguments are for everybody on this host to see.
    let stores = serde_json::from_reader(std::io::stdin().lock());
    let stores = stores.map_err(|e| {
        Failure::from_error(Class::Usage, &e).context("this role is told its stores by a machine's monitor alone")
    })?;
    let credentials = Credentials::load(&role.credentials);
    let args = RootfsArgs {
        image_dir: role.image_dir.clone(),
        blocks_dir: role.blocks_dir,
        listener: inherited(role.listener_fd)?,
        serial: role.serial,
        queues: role.queues,
        is_nbd: role.nbd,
        stores,
        chunks: chunk_source(&role.image_dir).map_err(zmachine_engine::import_failure)?,
        credentials: credentials.map_err(|e| Failure::from_error(Class::Usage, &e).hint(e.hint()))?,
        block_deadline: BLOCK_DEADLINE,
        prefetch: role.prefetch,
        record: role.record,
        events: inherited(role.events_fd)?,
        jail: role.jail.as_deref().map(told_jail).transpose()?,
    };
    zmachine_rootfs::serve(args).map_err(|e| Failure::from_error(Class::Failed, &e))?;
    Ok(0)
}

/// `zmachine complete`: brings the layers of an image that machines run of already.
pub(crate) fn complete(role: CompleteRole) -> Result<u8, Failure> {
    show_as(c"zm-complete");
    // What machines do goes first.
    let _ = rustix::process::nice(19);
    let engine = Engine::new(role.home.open()?, Programs::own());
    let files = RegistryFiles {
        auth: role.authfile,
        ..engine.registry_files().clone()
    };
    let engine = engine.with_registry_files(files);
    let digest = role.image.parse();
    let digest = digest.map_err(|e: zmachine_flist::DigestError| Failure::from_error(Class::Usage, &e))?;
    engine.complete_in_background(&digest)?;
    Ok(0)
}

/// `zmachine standby`: makes machines that stand by for others like them.
pub(crate) fn standby(role: StandbyRole) -> Result<u8, Failure> {
    show_as(c"zm-standby");
    let spec = serde_json::from_reader(std::io::stdin().lock()).map_err(std::io::Error::from)?;
    let engine = Engine::new(role.home.open()?, Programs::own());
    engine.make_standbys(&spec, &role.image, &role.template)?;
    Ok(0)
}

/// `zmachine share`: the server of one directory for one machine.
pub(crate) fn share(role: ShareRole) -> Result<u8, Failure> {
    show_as(c"zm-share");
    let listener = fd::take_inherited(role.listener_fd).map_err(|e| {
        Failure::from_error(Class::Usage, &e).context("this role is started by a machine's monitor alone")
    })?;
    let tree = match (role.directory, role.image) {
        (_, Some(image)) => Tree::Image {
            image,
            layer: role.layer,
        },
        (Some(path), None) if role.following => Tree::Following { path },
        (path, None) => Tree::Directory {
            path: path.unwrap_or_default(),
            read_only: role.read_only,
        },
    };
    let error = zmachine_share::become_server(&ShareArgs {
        listener,
        mount_point: role.mount_point,
        tree,
        jail: role.jail.as_deref().map(told_jail).transpose()?,
    });
    Err(Failure::from_error(Class::Failed, &error))
}

fn told_jail(text: &str) -> Result<Jail, Failure> {
    Jail::from_argument(text).map_err(|e| Failure::from_error(Class::Usage, &e).context("--jail is not a jail"))
}

/// `zmachine jail`: locks itself in and becomes another program, or tells which walls stand.
pub(crate) fn jail(role: &JailRole) -> Result<u8, Failure> {
    use std::os::unix::process::CommandExt;
    let jail = told_jail(&role.jail)?;
    jail::enter(&jail).map_err(|e| Failure::from_error(Class::Unsupported, &e))?;
    let Some((program, arguments)) = role.program.split_first() else {
        use std::io::{Read, Write};
        std::io::stdout().write_all(b".")?;
        std::io::stdout().flush()?;
        std::io::stdin().read_to_end(&mut Vec::new())?;
        return Ok(0);
    };
    let error = std::process::Command::new(program).args(arguments).exec();
    let text = format!("cannot become {}", program.display());
    Err(Failure::from_error(Class::Failed, &error).context(text))
}

/// `zmachine memory`: keeps the memory of a snapshot open for those who begin with it next.
pub(crate) fn memory(role: MemoryRole) -> Result<u8, Failure> {
    show_as(c"zm-memory");
    let memory = fd::take_inherited(role.memory_fd).map_err(|e| Failure::from_error(Class::Usage, &e))?;
    Engine::new(role.home.open()?, Programs::own()).keep_memory(&role.folder, memory)?;
    Ok(0)
}

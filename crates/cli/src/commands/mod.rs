//! The commands: each calls the engine or a library and says what came of it.

mod completion;
mod compose;
mod cp;
mod deploy;
mod doctor;
mod events;
mod exec;
mod firmware;
mod flist;
mod image;
mod info;
mod kernel;
mod list;
mod machines;
#[cfg(test)]
mod manual;
mod metrics;
mod network;
mod root;
mod run;
mod serve;
mod snapshot;
mod ssh;
mod stats;
mod system;
mod top;
mod units;
mod update;
mod volume;
mod why;

use zmachine_spec::Failure;

pub(crate) use serve::elsewhere;

use crate::args::{Cli, Command, ImageCommand};
use crate::{context, logs, roles};

/// Carries a command out; its exit code.
pub(crate) fn dispatch(cli: Cli) -> Result<u8, Failure> {
    match cli.command {
        Command::Run(args) => run::run(&context::engine()?, &args),
        Command::Create(args) => run::create(&context::engine()?, &args),
        Command::Start(args) => machines::start(&context::engine()?, &args),
        Command::Stop(args) => machines::stop(&context::engine()?, &args),
        Command::Restart(args) => machines::restart(&context::engine()?, &args),
        Command::Kill(args) => machines::kill(&context::engine()?, &args),
        Command::Pause(args) => machines::each(&args.names, |name| context::engine()?.pause(name)),
        Command::Resume(args) => machines::each(&args.names, |name| context::engine()?.resume(name)),
        Command::Top(args) => top::top(&context::engine()?, &args),
        Command::System(command) => system::system(&context::engine()?, command),
        Command::Update(args) => update::update(&context::engine()?, &args),
        Command::Clone(args) => update::clone(&context::engine()?, &args),
        Command::Rename(args) => update::rename(&context::engine()?, &args),
        Command::Snapshot(command) => snapshot::snapshot(&context::engine()?, command),
        Command::Restore(args) => snapshot::restore(&context::engine()?, &args.name),
        Command::Fork(args) => snapshot::fork(&context::engine()?, &args),
        Command::Wait(args) => machines::wait(&context::engine()?, &args),
        Command::Rm(args) => machines::rm(&context::engine()?, &args),
        Command::Ps(args) => list::ps(&context::engine()?, &args),
        Command::Port(args) => list::port(&context::engine()?, &args),
        Command::Inspect(args) => list::inspect(&context::engine()?, &args),
        Command::Why(args) => why::why(&context::engine()?, &args),
        Command::Events(args) => events::events(&context::engine()?, &args),
        Command::InstallUnits(args) => units::install(&args),
        Command::Stats(args) => stats::stats(&context::engine()?, &args),
        Command::Metrics(args) => metrics::metrics(&context::engine()?, &args),
        Command::Logs(args) => logs::logs(&context::engine()?, &args),
        Command::Exec(args) => exec::exec(&context::engine()?, &args),
        Command::Ssh(args) => ssh::ssh(&context::engine()?, &args),
        Command::Diff(args) => root::diff(&context::engine()?, &args),
        Command::Commit(args) => root::commit(&context::engine()?, &args),
        Command::Export(args) => root::export(&context::engine()?, &args),
        Command::Cp(args) => cp::cp(&context::engine()?, &args),
        Command::Compose(args) => compose::compose(args),
        Command::Deploy(args) => deploy::deploy(&args),
        Command::Attach(args) => exec::attach(&context::engine()?, &args),
        Command::Console(args) => exec::console(&context::engine()?, &args),
        Command::Flist(command) => flist::flist(command),
        Command::Image(command) => image::image(command),
        Command::Pull(args) => image::image(ImageCommand::Pull(args)),
        Command::Images(args) => image::image(ImageCommand::Ls(args)),
        Command::Rmi(args) => image::image(ImageCommand::Rm(args)),
        Command::Tag(args) => image::image(ImageCommand::Tag(args)),
        Command::History(args) => image::image(ImageCommand::History(args)),
        Command::Save(args) => image::image(ImageCommand::Save(args)),
        Command::Push(args) => image::image(ImageCommand::Push(args)),
        Command::Login(args) => image::login(&args),
        Command::Logout(args) => image::logout(&args),
        Command::Load(args) => image::image(ImageCommand::Load(args)),
        Command::Firmware(command) => firmware::firmware(&command),
        Command::Kernel(command) => kernel::kernel(command),
        Command::Volume(command) => volume::volume(command),
        Command::Network(command) => network::network(command),
        Command::Version => info::version(),
        Command::Info(args) => info::info(&context::engine()?, &args),
        Command::Serve(_) | Command::Token(_) | Command::Context(_) => serve::become_server(),
        Command::Snapshotter(_) => serve::become_snapshotter(),
        Command::Doctor(args) => doctor::doctor(&args),
        Command::Completion(args) => completion::completion(args.shell),
        Command::Monitor(role) => roles::monitor(role),
        Command::Complete(role) => roles::complete(role),
        Command::Standby(role) => roles::standby(role),
        Command::Memory(role) => roles::memory(role),
        Command::Rootfs(role) => roles::rootfs(role),
        Command::Share(role) => roles::share(role),
        Command::Jail(role) => roles::jail(&role),
    }
}

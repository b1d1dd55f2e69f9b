//! `update` and `rename`.

use zmachine_engine::Engine;
use zmachine_spec::{Change, Class, Failure, Setting};

use super::machines::each;
use crate::args::{RenameArgs, UpdateArgs, size};
use crate::output;
use crate::progress::Bars;

/// Changes machines.
pub(crate) fn update(engine: &Engine, args: &UpdateArgs) -> Result<u8, Failure> {
    let memory = |text: &String| size("--memory", text);
    let idle = |text: &str| Ok::<_, Failure>(zmachine_spec::health::parse_time(text)?.unwrap_or(0));
    let restart = args.restart.as_ref().map(|text| text.parse());
    let change = Change {
        name: None,
        restart: restart
            .transpose()
            .map_err(|failure: Failure| failure.about(Setting::Restart))?,
        labels: zmachine_spec::labels(&args.label),
        labels_removed: args.label_rm.clone(),
        cpus: args.cpus.as_deref().map(str::parse).transpose()?,
        cpuset: args.cpuset_cpus.as_deref().map(str::parse).transpose()?,
        memory_bytes: args.memory.as_ref().map(memory).transpose()?,
        idle_timeout_ms: args.idle_timeout.as_deref().map(idle).transpose()?,
    };
    if change == Change::default() {
        return Err(Failure::new(Class::Usage, "nothing is to be changed")
            .hint("say what: --restart, --label, --label-rm, --cpus, --cpuset-cpus, --memory or --idle-timeout"));
    }
    each(&args.names.names, |name| engine.update(name, &change))
}

/// Copies a machine, and prints the name of the copy.
pub(crate) fn clone(engine: &Engine, args: &RenameArgs) -> Result<u8, Failure> {
    let made = engine.clone_machine(&args.name, &args.new, &Bars::bytes())?;
    output::print(&format!("{}\n", made.spec.name))?;
    Ok(0)
}

/// Gives a machine another name.
pub(crate) fn rename(engine: &Engine, args: &RenameArgs) -> Result<u8, Failure> {
    engine.rename(&args.name, &args.new)?;
    Ok(0)
}

//! The machines of a project, known by docker's labels.

use std::collections::BTreeMap;

use zmachine_compose::{Condition, Project, Service};
use zmachine_engine::Engine;
use zmachine_spec::Failure;
use zmachine_store::catalog::Machine;

/// Label: the project's name.
pub const PROJECT: &str = "com.docker.compose.project";
/// Label: the service's name.
pub const SERVICE: &str = "com.docker.compose.service";
/// Label: which of the service's machines.
pub const NUMBER: &str = "com.docker.compose.container-number";
/// Label: whether it is a command of the user's.
pub const ONE_OFF: &str = "com.docker.compose.oneoff";
/// Label: the files it was made from.
pub const CONFIG_FILES: &str = "com.docker.compose.project.config_files";
pub(crate) const HASH: &str = "com.docker.compose.config-hash";
const WORKING_DIR: &str = "com.docker.compose.project.working_dir";
const DEPENDS_ON: &str = "com.docker.compose.depends_on";

/// A machine of a project.
#[derive(Debug, Clone)]
pub struct Owned {
    /// The machine.
    pub machine: Machine,
    /// Its service.
    pub service: String,
    /// Which of the service's machines.
    pub number: u32,
    /// It runs a command of the user's.
    pub is_once: bool,
}

impl Owned {
    /// Its name on this host.
    pub fn name(&self) -> &str {
        &self.machine.spec.name
    }

    /// Whether it runs, or is about to.
    pub fn is_active(&self) -> bool {
        self.machine.state.phase.is_active()
    }

    pub(crate) fn label(&self, key: &str) -> Option<&str> {
        self.machine.spec.labels.get(key).map(String::as_str)
    }

    /// As lines of a log begin: without the project, as docker has it.
    pub fn short_name(&self, project: &str) -> &str {
        let name = self.name();
        let short = name.strip_prefix(project).and_then(|rest| rest.strip_prefix('-'));
        short.unwrap_or(name)
    }
}

/// The machines of a project, by service and number. Those that cannot be read are nobody's.
///
/// # Errors
/// When machines cannot be listed.
pub fn owned(engine: &Engine, project: &str) -> Result<Vec<Owned>, Failure> {
    let mut all: Vec<Owned> = engine
        .machines()?
        .into_iter()
        .flatten()
        .filter(|machine| machine.spec.labels.get(PROJECT).is_some_and(|name| name == project))
        .map(|machine| {
            let label = |key: &str| machine.spec.labels.get(key).cloned().unwrap_or_default();
            Owned {
                service: label(SERVICE),
                number: label(NUMBER).parse().unwrap_or(1),
                is_once: label(ONE_OFF) == "True",
                machine,
            }
        })
        .collect();
    all.sort_by(|a, b| (&a.service, a.number).cmp(&(&b.service, b.number)));
    Ok(all)
}

/// Services by how many others are below them: what is higher is stopped first.
pub fn levels(project: &Project) -> BTreeMap<String, usize> {
    let mut levels: BTreeMap<String, usize> = BTreeMap::new();
    for name in zmachine_compose::order::sorted(&project.services) {
        let needs = project.services.get(&name).map(|service| &service.depends_on);
        let below = needs.into_iter().flatten().filter_map(|(needed, _)| levels.get(needed));
        let level = below.max().map_or(0, |level| level + 1);
        levels.insert(name, level);
    }
    levels
}

/// The labels by which a machine is known, and the service's own.
pub fn labels(
    project: &Project,
    service: &Service,
    number: u32,
    hash: &str,
    is_once: bool,
) -> BTreeMap<String, String> {
    let condition = |condition| match condition {
        Condition::Started => "service_started",
        Condition::Healthy => "service_healthy",
        Condition::Completed => "service_completed_successfully",
    };
    let needs: Vec<String> = service
        .depends_on
        .iter()
        .map(|(name, needed)| format!("{name}:{}:{}", condition(needed.condition), needed.restart))
        .collect();
    let files: Vec<String> = project.files.iter().map(|file| file.display().to_string()).collect();
    let mut labels = service.labels.clone();
    labels.extend(
        [
            (PROJECT, project.name.clone()),
            (SERVICE, service.name.clone()),
            (NUMBER, number.to_string()),
            (HASH, hash.to_owned()),
            (ONE_OFF, if is_once { "True" } else { "False" }.to_owned()),
            (WORKING_DIR, project.folder.display().to_string()),
            (CONFIG_FILES, files.join(",")),
            (DEPENDS_ON, needs.join(",")),
        ]
        .map(|(key, value)| (key.to_owned(), value)),
    );
    labels
}

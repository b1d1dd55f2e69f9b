//! `commit`: what a container changed, as a new image.

mod instruction;

use std::io::{self, Read, Write};

use jiff::Timestamp;
use zmachine_flist::{Digest, ImageConfig};
use zmachine_image::library::hold_images;
use zmachine_image::{Image, ImageName, Library, Mode, Progress};
use zmachine_pack::oci::commit::{Commit, commit};
use zmachine_plan::Plan;
use zmachine_spec::{Class, Failure, MachineSpec};
use zmachine_sys::file::NewFile;

use crate::image_facts::health_over;
use crate::root::RootPart;
use crate::{Engine, import_failure};

/// How often an image is made again that is pruned before it has its name.
const ROUNDS: usize = 3;

/// A wanted image.
#[derive(Debug)]
pub struct CommitRequest<'a> {
    /// The machine.
    pub machine: &'a str,
    /// What the image is called.
    pub name: Option<&'a ImageName>,
    /// Who made it.
    pub author: Option<String>,
    /// What for.
    pub message: Option<String>,
    /// What it says about running it, as instructions of a Dockerfile.
    pub changes: &'a [String],
    /// Its processes stand still while what they wrote is read, so that the image is of one instant.
    pub paused: bool,
}

impl Engine {
    /// Makes an image of a container: its image, what it changed, and how it was run. `warn` hears of what
    /// is left out.
    ///
    /// # Errors
    /// [`Class::Usage`] for an instruction that is none; as [`Engine::open_root`].
    pub fn commit(
        &self,
        request: &CommitRequest<'_>,
        progress: &dyn Progress,
        mut warn: impl FnMut(String),
    ) -> Result<Image, Failure> {
        let edits: Vec<instruction::Edit> = request
            .changes
            .iter()
            .map(|text| instruction::parse(text))
            .collect::<Result<_, _>>()?;
        let machine = self.machine(request.machine)?;
        let root = self.open_root(request.machine, progress)?;
        let Plan::Container(plan) = machine.plan()? else {
            return Err(Failure::new(Class::Unsupported, "a VM has no image below its root"));
        };
        let base: Digest = plan
            .image
            .parse()
            .map_err(|_| Failure::new(Class::Failed, "the machine's plan names no image"))?;
        let library = Library::open(self.home.data())?;
        if library.is_lazy(&base) {
            let image = library.by_its_digest(&base, Mode::Container, request.machine)?;
            self.complete_image(&library, &image, progress)?;
        }
        let mut spooled = NewFile::create(self.home.data(), 0o600)?;
        let mut stream = root.stream(RootPart::Layer { paused: request.paused })?;
        spool(&mut stream, &mut spooled)?;
        stream.end(&mut warn)?;
        drop(root);
        let edit = |config: &mut ImageConfig| {
            as_it_was_run(&machine.spec, config);
            edits.iter().for_each(|edit| edit.apply(config));
        };
        for _ in 0..ROUNDS {
            let wanted = Commit {
                base: &base,
                layer: spooled.file().try_clone()?,
                edit: &edit,
                created: Timestamp::now().to_string(),
                author: request.author.clone(),
                message: request.message.clone(),
                name: request.machine,
            };
            let image = commit(wanted, &library, Mode::Container).map_err(import_failure)?;
            let Some(name) = request.name else { return Ok(image) };
            // What was pruned in between is made again.
            let _kept = hold_images(self.home.data())?;
            if image.directory.is_dir() {
                library.set_name(name, &image.digest)?;
                return Ok(image);
            }
        }
        let message = "the new image is pruned again and again before it has its name";
        Err(Failure::new(Class::Conflict, message).hint("try again when 'zmachine image prune' has ended"))
    }
}

fn spool(stream: &mut crate::transfer::FromGuest, to: &mut NewFile) -> Result<(), Failure> {
    let mut chunk = vec![0; 256 << 10];
    loop {
        let read = (&mut *stream).read(&mut chunk)?;
        if read == 0 {
            return Ok(());
        }
        let written = to.file().write_all(&chunk[..read]);
        written.map_err(|error: io::Error| Failure::from(error).context("the layer cannot be kept"))?;
    }
}

/// Over what the image says, what was said when the machine was made: docker keeps that as well.
fn as_it_was_run(spec: &MachineSpec, config: &mut ImageConfig) {
    for (name, value) in &spec.env {
        set_variable(config, name, value);
    }
    if let Some(entrypoint) = &spec.entrypoint {
        config.entrypoint.clone_from(entrypoint);
        config.cmd.clone_from(&spec.command);
    } else if !spec.command.is_empty() {
        config.cmd.clone_from(&spec.command);
    }
    if let Some(dir) = &spec.workdir {
        config.workdir = Some(dir.clone());
    }
    if let Some(user) = &spec.user {
        config.user = Some(user.to_string());
    }
    if let Some(signal) = spec.stop_signal {
        config.stop_signal = Some(signal.to_string());
    }
    config.healthcheck = health_over(&spec.health, config.healthcheck.take());
    let labels = spec.labels.iter().map(|(name, value)| (name.clone(), value.clone()));
    config.labels.extend(labels);
}

fn set_variable(config: &mut ImageConfig, name: &str, value: &str) {
    let text = format!("{name}={value}");
    let is_it = |entry: &&mut String| entry.split_once('=').map_or(entry.as_str(), |(known, _)| known) == name;
    match config.env.iter_mut().find(is_it) {
        Some(entry) => *entry = text,
        None => config.env.push(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_says_how_its_machine_was_run() {
        let mut config = ImageConfig {
            entrypoint: vec!["/entry".into()],
            cmd: vec!["old".into()],
            env: vec!["PATH=/bin".into(), "A=1".into()],
            ..ImageConfig::default()
        };
        let mut spec = MachineSpec::new("web", "app");
        as_it_was_run(&spec, &mut config);
        assert_eq!((config.cmd.as_slice(), config.env.len()), (&["old".to_owned()][..], 2));
        spec.env = vec![("A".into(), "2".into()), ("B".into(), "3".into())];
        spec.command = vec!["new".into()];
        spec.labels.insert("tier".into(), "web".into());
        as_it_was_run(&spec, &mut config);
        assert_eq!(config.env, ["PATH=/bin", "A=2", "B=3"]);
        assert_eq!(
            (config.entrypoint.as_slice(), config.cmd.as_slice()),
            (&["/entry".to_owned()][..], &["new".to_owned()][..])
        );
        assert_eq!(config.labels["tier"], "web");
        spec.health.retries = Some(2);
        config.healthcheck = Some(zmachine_flist::Healthcheck {
            test: vec!["CMD".into(), "/check".into()],
            retries: 5,
            ..Default::default()
        });
        as_it_was_run(&spec, &mut config);
        let check = config.healthcheck.clone().unwrap();
        assert_eq!((check.test.len(), check.retries), (2, 2));
        // Another entrypoint does not have the arguments of the first.
        spec.entrypoint = Some(vec!["/other".into()]);
        spec.command.clear();
        as_it_was_run(&spec, &mut config);
        assert!(config.cmd.is_empty());
    }
}

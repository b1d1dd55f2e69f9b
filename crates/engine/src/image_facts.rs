//! What an image says about running it: its configuration, as OCI images have one, and its `.startup.toml`.

use zmachine_flist::ImageConfig;
use zmachine_image::Image;
use zmachine_plan::ImageFacts;
use zmachine_spec::{Class, Failure};

/// What `image`, which the user calls `flist`, says.
///
/// # Errors
/// When its configuration cannot be read.
pub(super) fn image_facts(image: &Image, flist: &str) -> Result<ImageFacts, Failure> {
    let config = ImageConfig::from_tags(&image.facts.tags).map_err(|e| {
        Failure::from_error(Class::Fetch, &e)
            .context(format!("{flist} does not say how to run it"))
            .hint("get the flist again, or import the image again")
    })?;
    let variable = |text: &String| {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        (name.to_owned(), value.to_owned())
    };
    let facts = ImageFacts {
        digest: image.digest.to_string(),
        entrypoint: config.entrypoint,
        command: config.cmd,
        env: config.env.iter().map(variable).collect(),
        workdir: config.workdir,
        user: config.user.filter(|user| !user.is_empty()),
        stop_signal: config.stop_signal.filter(|signal| !signal.is_empty()),
        exposed_ports: config.ports,
        volumes: config.volumes,
        labels: config.labels,
        tree: None,
    };
    // A file of the tree is for every reader and comes first.
    let Some(startup) = image.facts.startup.clone() else {
        return Ok(facts);
    };
    let program = startup.program.map(|program| [vec![program], startup.args].concat());
    let (entrypoint, command) = match program {
        Some(program) => (Vec::new(), program),
        None => (facts.entrypoint, facts.command),
    };
    Ok(ImageFacts {
        entrypoint,
        command,
        env: facts.env.into_iter().chain(startup.env).collect(),
        workdir: startup.dir.or(facts.workdir),
        ..facts
    })
}

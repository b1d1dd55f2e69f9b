//! What an image says about running it: its configuration, as OCI images have one, and its `.startup.toml`.

use zmachine_flist::{Healthcheck, ImageConfig};
use zmachine_image::Image;
use zmachine_plan::ImageFacts;
use zmachine_spec::{Class, Failure, HealthRequest, HealthTest};

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
        health: config.healthcheck.map(health).unwrap_or_default(),
        shell: config.shell,
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

/// What an image says, changed by what a user asked for; `None` when neither says anything.
pub(super) fn health_over(request: &HealthRequest, image: Option<Healthcheck>) -> Option<Healthcheck> {
    if request.is_default() {
        return image;
    }
    let merged = request.over(&image.map(health).unwrap_or_default());
    let nanoseconds = |ms: Option<u64>| ms.unwrap_or_default().saturating_mul(1_000_000);
    Some(Healthcheck {
        test: merged.test.map(Vec::from).unwrap_or_default(),
        interval_ns: nanoseconds(merged.interval_ms),
        timeout_ns: nanoseconds(merged.timeout_ms),
        start_period_ns: nanoseconds(merged.start_period_ms),
        start_interval_ns: nanoseconds(merged.start_interval_ms),
        retries: u64::from(merged.retries.unwrap_or_default()),
    })
}

/// A check of a kind that nobody knows is none, as with docker.
fn health(check: Healthcheck) -> HealthRequest {
    let milliseconds = |ns: u64| Some(ns.div_ceil(1_000_000)).filter(|ms| *ms > 0);
    HealthRequest {
        test: HealthTest::try_from(check.test).ok(),
        interval_ms: milliseconds(check.interval_ns),
        timeout_ms: milliseconds(check.timeout_ns),
        start_period_ms: milliseconds(check.start_period_ns),
        start_interval_ms: milliseconds(check.start_interval_ns),
        retries: u32::try_from(check.retries).ok().filter(|n| *n > 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_an_image_are_rounded_up_and_unknown_checks_are_none() {
        let check = |test: &[&str]| Healthcheck {
            test: test.iter().map(|word| (*word).to_owned()).collect(),
            interval_ns: 1,
            timeout_ns: 2_000_000,
            ..Healthcheck::default()
        };
        let known = health(check(&["CMD", "true"]));
        assert_eq!(known.test, Some(HealthTest::Program(vec!["true".into()])));
        assert_eq!(
            (
                known.interval_ms,
                known.timeout_ms,
                known.start_period_ms,
                known.retries
            ),
            (Some(1), Some(2), None, None)
        );
        assert_eq!(health(check(&["HTTP", "localhost"])).test, None);
        assert_eq!(health(check(&[])).test, None);
    }
}

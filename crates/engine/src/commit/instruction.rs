//! Instructions of a Dockerfile that say how an image is run: `CMD ["/server", "-v"]`, `ENV A=1 B=2`, `EXPOSE 80`.

use zmachine_flist::{Healthcheck, ImageConfig};
use zmachine_spec::{Class, Failure};

/// One change of a configuration.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Edit {
    Cmd(Vec<String>),
    Entrypoint(Vec<String>),
    Env(Vec<(String, String)>),
    Expose(Vec<String>),
    Healthcheck(Healthcheck),
    Label(Vec<(String, String)>),
    StopSignal(String),
    User(String),
    Volume(Vec<String>),
    Workdir(String),
}

impl Edit {
    pub(super) fn apply(&self, config: &mut ImageConfig) {
        let add = |list: &mut Vec<String>, new: &[String]| {
            for text in new
                .iter()
                .filter(|text| !list.contains(text))
                .cloned()
                .collect::<Vec<_>>()
            {
                list.push(text);
            }
        };
        match self {
            Edit::Cmd(words) => config.cmd.clone_from(words),
            Edit::Entrypoint(words) => {
                config.entrypoint.clone_from(words);
                // As in a Dockerfile: the arguments belonged to the one before.
                config.cmd.clear();
            }
            Edit::Env(pairs) => pairs
                .iter()
                .for_each(|(name, value)| super::set_variable(config, name, value)),
            Edit::Expose(ports) => add(&mut config.ports, ports),
            Edit::Healthcheck(check) => config.healthcheck = Some(check.clone()),
            Edit::Label(pairs) => config.labels.extend(pairs.iter().cloned()),
            Edit::StopSignal(signal) => config.stop_signal = Some(signal.clone()),
            Edit::User(user) => config.user = Some(user.clone()),
            Edit::Volume(paths) => add(&mut config.volumes, paths),
            Edit::Workdir(dir) if dir.starts_with('/') => config.workdir = Some(dir.clone()),
            Edit::Workdir(dir) => {
                let below = config.workdir.as_deref().unwrap_or("/").trim_end_matches('/');
                config.workdir = Some(format!("{below}/{dir}"));
            }
        }
    }
}

/// Reads one.
///
/// # Errors
/// [`Class::Usage`] with the instruction.
pub(super) fn parse(text: &str) -> Result<Edit, Failure> {
    let refused = |why: &str| {
        Failure::new(Class::Usage, format!("'--change {text}': {why}")).hint(
            "one of CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, STOPSIGNAL, USER, VOLUME and WORKDIR, as in \
             --change 'CMD [\"/server\", \"-v\"]'",
        )
    };
    let text = text.trim();
    let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let rest = rest.trim();
    if rest.is_empty() {
        return Err(refused("it says nothing"));
    }
    let words = || shlex::split(rest).ok_or_else(|| refused("a quote is not closed"));
    let pairs = || -> Result<Vec<(String, String)>, Failure> {
        let words = words()?;
        // The old form: NAME VALUE, with spaces in the value.
        if let Some((name, value)) = rest.split_once(char::is_whitespace)
            && !name.contains('=')
        {
            return Ok(vec![(name.to_owned(), value.trim().to_owned())]);
        }
        let pair = |word: String| match word.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
            _ => Err(refused("it has no NAME=VALUE")),
        };
        words.into_iter().map(pair).collect()
    };
    let list = || match rest.starts_with('[') {
        true => serde_json::from_str(rest).map_err(|_| refused("it is no list of texts as JSON has them")),
        false => words(),
    };
    // A text is for a shell.
    let command = || match rest.starts_with('[') {
        true => list(),
        false => Ok(vec!["/bin/sh".to_owned(), "-c".to_owned(), rest.to_owned()]),
    };
    Ok(match word.to_ascii_uppercase().as_str() {
        "CMD" => Edit::Cmd(command()?),
        "ENTRYPOINT" => Edit::Entrypoint(command()?),
        "ENV" => Edit::Env(pairs()?),
        "LABEL" => Edit::Label(pairs()?),
        "STOPSIGNAL" => Edit::StopSignal(rest.to_owned()),
        "USER" => Edit::User(rest.to_owned()),
        "WORKDIR" => Edit::Workdir(rest.to_owned()),
        "VOLUME" => Edit::Volume(list()?),
        "HEALTHCHECK" => Edit::Healthcheck(healthcheck(rest).map_err(|why| refused(&why))?),
        "EXPOSE" => {
            let port = |word: String| {
                let (number, protocol) = word.split_once('/').unwrap_or((word.as_str(), "tcp"));
                let is_port = number.parse::<u16>().is_ok_and(|number| number > 0);
                match is_port && ["tcp", "udp"].contains(&protocol) {
                    true => Ok(format!("{number}/{protocol}")),
                    false => Err(refused("a port is a number, with /tcp or /udp behind it")),
                }
            };
            Edit::Expose(words()?.into_iter().map(port).collect::<Result<_, _>>()?)
        }
        _ => return Err(refused(&format!("{word} does not say how an image is run"))),
    })
}

/// `NONE`, or options and `CMD` with a command.
fn healthcheck(text: &str) -> Result<Healthcheck, String> {
    let mut check = Healthcheck::default();
    let mut rest = text;
    while let Some((option, after)) = rest
        .strip_prefix("--")
        .and_then(|rest| rest.split_once(char::is_whitespace))
    {
        let (name, value) = option.split_once('=').ok_or(format!("--{option} has no value"))?;
        let time = || match zmachine_spec::health::parse_time(value) {
            Ok(ms) => Ok(ms.unwrap_or_default() * 1_000_000),
            Err(failure) => Err(failure.message),
        };
        match name {
            "interval" => check.interval_ns = time()?,
            "timeout" => check.timeout_ns = time()?,
            "start-period" => check.start_period_ns = time()?,
            "start-interval" => check.start_interval_ns = time()?,
            "retries" => check.retries = value.parse().map_err(|_| format!("{value} is no number"))?,
            _ => return Err(format!("a health check has no --{name}")),
        }
        rest = after.trim_start();
    }
    let (word, command) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let command = command.trim();
    check.test = match (word.to_ascii_uppercase().as_str(), command.starts_with('[')) {
        ("NONE", _) if command.is_empty() => vec!["NONE".to_owned()],
        ("CMD", true) => {
            let words: Vec<String> =
                serde_json::from_str(command).map_err(|_| "it is no list of texts as JSON has them")?;
            [vec!["CMD".to_owned()], words].concat()
        }
        ("CMD", false) if !command.is_empty() => vec!["CMD-SHELL".to_owned(), command.to_owned()],
        _ => return Err("it is NONE, or CMD and a command behind its options".to_owned()),
    };
    Ok(check)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn instructions_are_read_as_docker_reads_them() {
        let read = |text: &str| parse(text).unwrap();
        assert_eq!(read(r#"CMD ["/server", "-v"]"#), Edit::Cmd(list(&["/server", "-v"])));
        assert_eq!(read("cmd echo hi"), Edit::Cmd(list(&["/bin/sh", "-c", "echo hi"])));
        let pairs = |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        assert_eq!(
            read("ENV A=1 B=\"two words\""),
            Edit::Env(pairs(&[("A", "1"), ("B", "two words")]))
        );
        assert_eq!(read("ENV A one two"), Edit::Env(pairs(&[("A", "one two")])));
        assert_eq!(read("EXPOSE 80 53/udp"), Edit::Expose(list(&["80/tcp", "53/udp"])));
        assert_eq!(read(r#"VOLUME ["/data"]"#), Edit::Volume(list(&["/data"])));
        let check = Healthcheck {
            test: list(&["CMD-SHELL", "curl -f http://localhost || exit 1"]),
            interval_ns: 5_000_000_000,
            retries: 2,
            ..Healthcheck::default()
        };
        let text = "HEALTHCHECK --interval=5s --retries=2 CMD curl -f http://localhost || exit 1";
        assert_eq!(read(text), Edit::Healthcheck(check));
        let none = Healthcheck {
            test: list(&["NONE"]),
            ..Healthcheck::default()
        };
        assert_eq!(read("HEALTHCHECK none"), Edit::Healthcheck(none));
        for wrong in [
            "HEALTHCHECK CMD",
            "HEALTHCHECK --interval=soon CMD true",
            "HEALTHCHECK --colour=1 CMD true",
            "CMD",
            "ONBUILD RUN x",
            "EXPOSE web",
            "EXPOSE 0",
            "ENV A",
            "CMD [1",
            "LABEL a=\"b",
            "",
        ] {
            let failure = parse(wrong).unwrap_err();
            assert!(failure.to_string().contains(wrong), "{failure}");
        }
    }

    #[test]
    fn a_change_is_over_what_the_image_says() {
        let mut config = ImageConfig {
            cmd: list(&["-v"]),
            ports: list(&["80/tcp"]),
            workdir: Some("/srv/".into()),
            ..ImageConfig::default()
        };
        for text in ["ENTRYPOINT [\"/new\"]", "EXPOSE 80 81", "WORKDIR sub", "USER web"] {
            parse(text).unwrap().apply(&mut config);
        }
        assert_eq!(config.entrypoint, ["/new"]);
        assert!(config.cmd.is_empty());
        assert_eq!(config.ports, ["80/tcp", "81/tcp"]);
        assert_eq!(
            (config.workdir.as_deref(), config.user.as_deref()),
            (Some("/srv/sub"), Some("web"))
        );
    }
}

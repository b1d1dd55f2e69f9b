//! The command line that containerd calls a shim with: flags in the notation of Go's `flag` package, then an action.

use std::path::PathBuf;

/// What the program is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Find or start the shim of a container, and print its address.
    Start,
    /// Clean up after a container whose shim is gone.
    Delete,
    /// Be the shim of a pod.
    Serve,
    /// Be a process in the pod's network namespace.
    Hold {
        /// The namespace; none: this process's own.
        namespace: Option<PathBuf>,
    },
    /// Tell containerd what this runtime is able to do.
    Info,
    /// Print the version.
    Version,
}

/// The command line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Arguments {
    /// containerd's namespace.
    pub(crate) namespace: String,
    /// The container.
    pub(crate) id: String,
    /// containerd's socket.
    pub(crate) address: String,
    /// The container's bundle.
    pub(crate) bundle: Option<PathBuf>,
    /// Say more in the log.
    pub(crate) debug: bool,
    /// The socket that is served, as a descriptor that this process has inherited.
    pub(crate) listener: Option<i32>,
}

/// Flags that have no value.
const SWITCHES: [&str; 3] = ["debug", "v", "info"];

/// Reads the command line, without the program's name.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn parse(words: impl IntoIterator<Item = String>) -> Result<(Action, Arguments), String> {
    let mut arguments = Arguments::default();
    let mut words = words.into_iter();
    let (mut info, mut version) = (false, false);
    let mut actions = Vec::new();
    while let Some(word) = words.next() {
        let Some(flag) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
            actions.push(word);
            continue;
        };
        let (name, given) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        if SWITCHES.contains(&name) {
            let is_on = given.as_deref() != Some("false");
            match name {
                "debug" => arguments.debug = is_on,
                "info" => info = is_on,
                _ => version = is_on,
            }
            continue;
        }
        let value = given
            .or_else(|| words.next())
            .ok_or_else(|| format!("the flag -{name} needs a value"))?;
        match name {
            "namespace" => arguments.namespace = value,
            "id" => arguments.id = value,
            "address" => arguments.address = value,
            "listener-fd" => {
                let number = value.parse();
                arguments.listener = Some(number.map_err(|_| format!("'{value}' is no descriptor"))?);
            }
            "bundle" => arguments.bundle = Some(value.into()),
            // A later containerd may have more; what matters is in those above.
            _ => {}
        }
    }
    let mut actions = actions.into_iter();
    let action = match (info || version, actions.next().as_deref()) {
        (true, _) if info => Action::Info,
        (true, _) => Action::Version,
        (_, Some("start")) => Action::Start,
        (_, Some("delete")) => Action::Delete,
        (_, Some("serve")) => Action::Serve,
        (_, Some("hold")) => Action::Hold {
            namespace: actions.next().map(PathBuf::from),
        },
        (_, Some(other)) => return Err(format!("'{other}' is no action: containerd says start or delete")),
        (_, None) => return Err("this program is started by containerd: see docs/kubernetes.md".to_owned()),
    };
    Ok((action, arguments))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn what_every_containerd_says_is_understood() {
        let line = "-namespace k8s.io -address /run/containerd/containerd.sock -publish-binary /usr/bin/containerd -id abc -debug start";
        let (action, arguments) = parse(words(line)).unwrap();
        assert_eq!(action, Action::Start);
        assert_eq!((arguments.id.as_str(), arguments.namespace.as_str()), ("abc", "k8s.io"));
        assert!(arguments.debug);
        let (action, arguments) = parse(words("--id=x -bundle /run/b --new-flag 1 delete")).unwrap();
        assert_eq!((action, arguments.bundle), (Action::Delete, Some("/run/b".into())));
        assert_eq!(parse(words("-v")).unwrap().0, Action::Version);
        assert_eq!(parse(words("-info")).unwrap().0, Action::Info);
    }

    #[test]
    fn what_is_no_call_of_containerd_is_told() {
        assert!(parse(Vec::new()).unwrap_err().contains("containerd"));
        assert!(parse(words("run")).unwrap_err().contains("'run'"));
        assert!(parse(words("start -id")).unwrap_err().contains("-id"));
    }
}

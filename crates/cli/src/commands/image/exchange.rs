//! `image save`, `push`, `login` and `logout`: what goes to others, and who we are there.

use std::fs::File;
use std::io::{self, BufRead, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};

use zmachine_image::{ImageSource, Library, Progress, Silent};
use zmachine_pack::oci::login::{LoginError, login as log_in, logout as log_out};
use zmachine_pack::oci::push::{PushError, push as push_image};
use zmachine_pack::oci::save::{Form, SaveError, save as save_images};
use zmachine_spec::{Class, Failure};

use super::names::found;
use crate::args::image::{ArchiveForm, LoginArgs, LogoutArgs, PushArgs, SaveArgs};
use crate::progress::Bars;
use crate::{context, output};

fn save_failure(error: &SaveError) -> Failure {
    let class = match error {
        SaveError::NoLayers { .. } => Class::Unsupported,
        SaveError::Incomplete { .. } => Class::Fetch,
        _ => Class::Failed,
    };
    let failure = Failure::from_error(class, error);
    match error.hint() {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

pub(super) fn save(library: &Library, args: &SaveArgs) -> Result<u8, Failure> {
    let mut images: Vec<(zmachine_flist::Digest, Vec<String>)> = Vec::new();
    let all = library.list_readable()?.0;
    for text in &args.images {
        let digest = found(library, text)?;
        // As docker has it: what was named keeps its name, what was meant by its digest has none.
        let names = all
            .iter()
            .filter(|image| image.digest == digest)
            .flat_map(|image| &image.names);
        let completed = super::image_name(text)?.in_registry(zmachine_image::reference::DOCKER_HUB);
        let completed = completed.and_then(|source| source.local_name());
        let name = names
            .filter(|name| name.as_str() == text || Some(*name) == completed.as_ref())
            .map(ToString::to_string)
            .next();
        match images.iter_mut().find(|(other, _)| *other == digest) {
            Some((_, names)) => names.extend(name),
            None => images.push((digest, name.into_iter().collect())),
        }
    }
    let form = match args.format {
        ArchiveForm::DockerArchive => Form::Docker,
        ArchiveForm::OciArchive => Form::Oci,
    };
    match args.output.as_deref().filter(|path| *path != Path::new("-")) {
        None if io::stdout().is_terminal() => {
            return Err(Failure::new(Class::Usage, "an archive is nothing for a terminal")
                .hint("name a file with --output FILE, or pass it on with a pipe"));
        }
        None => {
            let mut out = BufWriter::with_capacity(256 << 10, io::stdout().lock());
            save_images(library, &images, form, &mut out).map_err(|e| save_failure(&e))?;
            out.flush()?;
        }
        Some(path) => {
            // Whole or not at all.
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            let new = zmachine_sys::file::NewFile::create(folder.unwrap_or(Path::new(".")), 0o644)?;
            let mut out = BufWriter::with_capacity(256 << 10, new.file());
            save_images(library, &images, form, &mut out).map_err(|e| save_failure(&e))?;
            out.flush()?;
            drop(out);
            new.publish_over(path)?;
        }
    }
    Ok(0)
}

pub(super) fn push(library: &Library, args: &PushArgs) -> Result<u8, Failure> {
    let engine = context::engine()?;
    let digest = found(library, &args.image)?;
    let target = args.target.as_deref().unwrap_or(&args.image);
    let name = target.strip_prefix("docker://").unwrap_or(target);
    let target = ImageSource::named(name, engine.registries()?.default_host()).ok_or_else(|| {
        Failure::new(
            Class::Usage,
            format!("'{target}' is not the name of an image in a registry"),
        )
        .hint("name it as HOST[:PORT]/NAME[:TAG]")
    })?;
    let bars = Bars::bytes();
    let progress: &dyn Progress = if args.quiet { &Silent } else { &bars };
    let pushed = push_image(library, &digest, &target, &engine.import_options()?, progress);
    drop(bars);
    let pushed = pushed.map_err(|error| {
        let hint = error.hint();
        let failure = match error {
            PushError::Save(error) => save_failure(&error),
            PushError::Registry(error) => zmachine_engine::import_failure(error),
            error @ PushError::NoRegistry { .. } => Failure::from_error(Class::Usage, &error),
        };
        match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    })?;
    output::print(&format!("{target} {pushed}\n"))?;
    Ok(0)
}

fn login_failure(error: &LoginError) -> Failure {
    let class = match error {
        LoginError::Unknown { .. } => Class::NotFound,
        LoginError::Refused { .. } | LoginError::Registry { .. } => Class::Fetch,
        LoginError::Helper { .. } | LoginError::File(_) => Class::Failed,
    };
    let failure = Failure::from_error(class, error);
    match error.hint() {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// Where credentials are written: the file that is there, docker's when there is none.
fn file_to_write() -> Result<PathBuf, Failure> {
    let files = context::auth_files();
    let named = std::env::var_os("REGISTRY_AUTH_FILE").filter(|file| !file.is_empty());
    let there = files.iter().rev().find(|file| file.is_file());
    let file = named
        .map(PathBuf::from)
        .or_else(|| there.cloned())
        .or_else(|| files.last().cloned());
    file.ok_or_else(|| {
        Failure::new(Class::Usage, "there is no place for credentials: HOME is not set")
            .hint("name a file with --authfile")
    })
}

fn host(named: Option<&String>) -> Result<String, Failure> {
    let named = match named {
        Some(named) => named.clone(),
        None => context::quiet_engine()?.registries()?.default_host().to_owned(),
    };
    let host = named.trim_start_matches("https://").trim_start_matches("http://");
    let host = host.split('/').next().unwrap_or_default();
    match host {
        "" => Err(Failure::new(Class::Usage, format!("'{named}' is no registry")).hint("name it as HOST or HOST:PORT")),
        "index.docker.io" | "registry-1.docker.io" => Ok("docker.io".to_owned()),
        host => Ok(host.to_owned()),
    }
}

pub(crate) fn login(args: &LoginArgs) -> Result<u8, Failure> {
    let host = host(args.registry.as_ref())?;
    let user = match &args.username {
        Some(user) => user.clone(),
        None => asked("Username: ", true)?,
    };
    let password = match (&args.password, args.password_stdin) {
        (Some(password), _) => password.clone(),
        (None, true) => line()?,
        (None, false) => asked("Password: ", false)?,
    };
    let path = match &args.authfile {
        Some(path) => path.clone(),
        None => file_to_write()?,
    };
    let options = context::quiet_engine()?.import_options()?;
    log_in(&host, &user, &password, &path, &options).map_err(|e| login_failure(&e))?;
    output::print(&format!("logged in to {host}, by {}\n", path.display()))?;
    Ok(0)
}

pub(crate) fn logout(args: &LogoutArgs) -> Result<u8, Failure> {
    let host = host(args.registry.as_ref())?;
    let files = match &args.authfile {
        Some(path) => vec![path.clone()],
        None => context::auth_files(),
    };
    log_out(&host, &files).map_err(|e| login_failure(&e))?;
    output::print(&format!("logged out of {host}\n"))?;
    Ok(0)
}

/// A line of standard input.
fn line() -> Result<String, Failure> {
    let mut text = String::new();
    io::stdin().lock().read_line(&mut text)?;
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}

/// Asks on the terminal; what is typed is seen when it may be.
fn asked(prompt: &str, is_seen: bool) -> Result<String, Failure> {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    if !io::stdin().is_terminal() {
        return Err(Failure::new(
            Class::Usage,
            "user and password are asked for on a terminal, and there is none",
        )
        .hint("give --username, and the password with --password-stdin"));
    }
    let terminal = File::options().read(true).write(true).open("/dev/tty")?;
    (&terminal).write_all(prompt.as_bytes())?;
    let before = tcgetattr(&terminal).map_err(io::Error::from)?;
    if !is_seen {
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        tcsetattr(&terminal, OptionalActions::Now, &hidden).map_err(io::Error::from)?;
    }
    let text = line();
    if !is_seen {
        tcsetattr(&terminal, OptionalActions::Now, &before).map_err(io::Error::from)?;
        (&terminal).write_all(b"\n")?;
    }
    text
}

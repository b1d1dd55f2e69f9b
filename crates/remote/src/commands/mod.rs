//! What the commands do.

mod compose;
pub mod context;
mod files;
mod images;
mod machines;
mod output;
mod resources;
mod run;
mod snapshots;
mod space;
mod stats;
mod watch;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Parser;
use serde_json::Value;
use zmachine_spec::{Class, Failure};

use crate::connection::{Ask, Server};
use crate::contexts::{self, Contexts};
use crate::target::Host;
use crate::words::{Command, Words};

/// The host that is meant: that of `ZMACHINE_HOST`, the context of `ZMACHINE_CONTEXT`, or the one in use.
///
/// # Errors
/// [`Class::Usage`] when none is; [`Class::NotFound`] for an unknown context.
pub fn chosen(variable: impl Fn(&str) -> Option<String>) -> Result<Host, Failure> {
    let given = |name: &str| variable(name).filter(|value| !value.is_empty());
    let files = (
        given("ZMACHINE_TOKEN_FILE").map(PathBuf::from),
        given("ZMACHINE_CA_FILE").map(PathBuf::from),
    );
    let mut host = match given("ZMACHINE_HOST") {
        Some(host) => Host {
            host,
            ..Host::default()
        },
        None => {
            let contexts = Contexts::read(&contexts::path(&variable)?)?;
            let name = given("ZMACHINE_CONTEXT").or_else(|| contexts.current.clone());
            let found = name
                .map(|name| contexts.get(&name).map(Option::<&Host>::cloned))
                .transpose()?;
            found.flatten().ok_or_else(|| {
                Failure::new(Class::Usage, "no other host is named")
                    .hint("use --host URL, or 'zmachine context use NAME'")
            })?
        }
    };
    host.token_file = files.0.or(host.token_file);
    host.ca_file = files.1.or(host.ca_file);
    Ok(host)
}

/// Carries a command line out on another host, and gives the exit code.
///
/// # Errors
/// Those of the host, and of the way to it.
pub fn run(words: Vec<OsString>, variable: impl Fn(&str) -> Option<String>) -> Result<u8, Failure> {
    let words = Words::parse_from([OsString::from("zmachine --host URL")].into_iter().chain(words));
    let server = Server::of(&chosen(variable)?)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(command(&server, words.command));
    // A thread may wait for standard input.
    runtime.shutdown_background();
    done
}

async fn command(server: &Server, command: Command) -> Result<u8, Failure> {
    match command {
        Command::Run(args) => return run::run(server, &args).await,
        Command::Create(args) => return run::create(server, &args).await,
        Command::Exec(args) => return run::exec(server, &args).await,
        Command::Attach(args) => return run::follow(server, &args, "attach").await,
        Command::Console(args) => return run::follow(server, &args, "console").await,
        Command::Start(args) => machines::each(server, &args, "start", &[]).await?,
        Command::Stop(args) => machines::stop(server, &args, "stop").await?,
        Command::Restart(args) => machines::stop(server, &args, "restart").await?,
        Command::Kill(args) => machines::kill(server, &args).await?,
        Command::Pause(args) => machines::each(server, &args, "pause", &[]).await?,
        Command::Resume(args) => machines::each(server, &args, "resume", &[]).await?,
        Command::Top { name } => machines::top(server, &name).await?,
        Command::Wait(args) => machines::wait(server, &args).await?,
        Command::Rename { name, new } => machines::rename(server, &name, &new).await?,
        Command::Rm(args) => machines::remove(server, &args).await?,
        Command::Ps(args) => machines::list(server, &args).await?,
        Command::Inspect(args) => machines::inspect(server, &args).await?,
        Command::Why(args) => machines::why(server, &args).await?,
        Command::Stats(args) => stats::stats(server, &args).await?,
        Command::Events(args) => watch::events(server, &args).await?,
        Command::Logs(args) => watch::logs(server, &args).await?,
        Command::Metrics => watch::metrics(server).await?,
        Command::Images(listing) => images::list(server, &listing).await?,
        Command::Pull(args) => images::pull(server, &args).await?,
        Command::Rmi(args) => images::remove(server, &args.names).await?,
        Command::Tag(args) => images::tag(server, &args).await?,
        Command::Push(args) => images::push(server, &args).await?,
        Command::Save(args) => images::save(server, &args).await?,
        Command::Load(args) => images::load(server, &args).await?,
        Command::History(args) => images::history(server, &args).await?,
        Command::Image(command) => images::image(server, command).await?,
        Command::Volume(command) => resources::volume(server, command).await?,
        Command::Network(command) => resources::network(server, command).await?,
        Command::Kernel(command) => resources::kernel(server, command).await?,
        Command::Deploy(args) => resources::deploy(server, &args).await?,
        Command::Cp(args) => files::cp(server, &args).await?,
        Command::Diff(args) => files::diff(server, &args).await?,
        Command::Commit(args) => files::commit(server, &args).await?,
        Command::Export(args) => files::export(server, &args).await?,
        Command::Clone { name, new } => files::copy(server, &name, &new).await?,
        Command::Update(args) => machines::update(server, &args).await?,
        Command::Port { name } => machines::ports(server, &name).await?,
        Command::Snapshot(command) => snapshots::snapshot(server, command).await?,
        Command::Restore { name } => snapshots::restore(server, &name).await?,
        Command::Fork(args) => snapshots::fork(server, &args).await?,
        Command::System(command) => space::system(server, command).await?,
        Command::Compose(args) => return compose::compose(server, args).await,
        Command::Doctor(listing) => return resources::doctor(server, &listing).await,
        Command::Version => {
            let version = server.ask(&Ask::new("GET", "/v1/version")).await?;
            output::line(&format!("zmachine {} (server)", output::text(&version["version"])))?;
        }
    }
    Ok(0)
}

/// Does something to each of several, and fails with the first failure after all have been tried.
async fn all<'a, F>(names: &'a [String], mut act: impl FnMut(&'a String) -> F) -> Result<(), Failure>
where
    F: Future<Output = Result<(), Failure>>,
{
    let mut first = None;
    for name in names {
        if let Err(failure) = act(name).await {
            match first.is_none() {
                true => first = Some(failure),
                false => eprintln!("error: {failure}"),
            }
        }
    }
    first.map_or(Ok(()), Err)
}

/// `KEY=VALUE`s as an object.
fn labels(texts: &[String]) -> Value {
    let pairs = texts.iter().map(|text| {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        (key.to_owned(), Value::from(value))
    });
    Value::Object(pairs.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_that_of_the_environment_or_the_context_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let configuration = folder.path().display().to_string();
        let chosen = |pairs: &[(&str, &str)]| {
            chosen(|name: &str| {
                let own = ("XDG_CONFIG_HOME", configuration.as_str());
                let mut all = pairs.iter().chain(std::iter::once(&own));
                all.find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
            })
        };
        assert_eq!(chosen(&[]).unwrap_err().class, Class::Usage);
        let path = folder.path().join("zmachine/contexts.json");
        let mut contexts = Contexts::read(&path).unwrap();
        let far = Host {
            host: "https://far".to_owned(),
            token_file: Some("/far".into()),
            ca_file: None,
        };
        contexts.add("far", far.clone()).unwrap();
        contexts.choose("far").unwrap();
        contexts.write(&path).unwrap();
        assert_eq!(chosen(&[]).unwrap(), far);
        assert_eq!(chosen(&[("ZMACHINE_HOST", "unix:///s")]).unwrap().host, "unix:///s");
        assert_eq!(
            chosen(&[("ZMACHINE_TOKEN_FILE", "/own")]).unwrap().token_file,
            Some("/own".into())
        );
        assert_eq!(
            chosen(&[("ZMACHINE_CONTEXT", "none")]).unwrap_err().class,
            Class::NotFound
        );
        assert_eq!(
            chosen(&[("ZMACHINE_CONTEXT", "local")]).unwrap_err().class,
            Class::Usage
        );
    }
}

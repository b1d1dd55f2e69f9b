//! The files of a project as one document that can be read on another host: variables have their values, and secrets and configs their
//! contents. What is a folder of this host cannot go there, and is refused by name.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use zmachine_compose::{ComposeError, FileSource, MountSource, Project, Service};
use zmachine_spec::{Class, Failure};

use crate::words::Compose;

fn options(args: &Compose, services: &[String]) -> Result<zmachine_compose::Options, Failure> {
    Ok(zmachine_compose::Options {
        files: args.file.clone(),
        name: args.project_name.clone(),
        profiles: args.profile.clone(),
        env_files: args.env_file.clone(),
        folder: args.project_directory.clone(),
        cwd: std::env::current_dir()?,
        // Variables that are not UTF-8 cannot be a part of a file that is.
        environment: std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect(),
        services: services.to_vec(),
    })
}

/// The project with these services.
///
/// # Errors
/// What is wrong with a file; [`Class::NotFound`] for a service that it does not have.
pub(super) fn load(args: &Compose, services: &[String]) -> Result<Project, Failure> {
    let project = zmachine_compose::project(&options(args, services)?).map_err(failure)?;
    for note in &project.notes {
        eprintln!("warning: {}", note.text);
    }
    match services.iter().find(|name| !project.services.contains_key(*name)) {
        None => Ok(project),
        Some(name) => {
            let known: Vec<&str> = project.services.keys().map(String::as_str).collect();
            let message = format!("there is no service '{name}' in the project");
            Err(Failure::new(Class::NotFound, message).hint(format!("its services are {}", known.join(", "))))
        }
    }
}

/// The project with the services of all profiles.
pub(super) fn load_all(args: &Compose) -> Result<Project, ComposeError> {
    let options = options(args, &[]).map_err(|failure| ComposeError::new(failure.to_string()))?;
    let all = zmachine_compose::Options {
        profiles: vec!["*".to_owned()],
        ..options.clone()
    };
    zmachine_compose::project(&all).or_else(|_| zmachine_compose::project(&options))
}

/// What is wrong with the files, as a failure.
pub(super) fn failure(error: ComposeError) -> Failure {
    let class = if error.is_not_found {
        Class::NotFound
    } else {
        Class::Usage
    };
    Failure::new(class, error.to_string()).hint(error.hint.unwrap_or_default())
}

/// A wish for an action with the document of the project, as it can be read elsewhere.
pub(super) fn with_document(project: &Project, action: &str) -> Result<Value, Failure> {
    project
        .services
        .values()
        .try_for_each(|service| require_nothing_here(project, service))?;
    let mut config = project.config.clone();
    let secrets = contents(project, "secret", &project.secrets, |service| &service.secrets)?;
    for (name, content) in contents(project, "config", &project.configs, |service| &service.configs)? {
        config["configs"][name] = json!({"content": content});
    }
    // What no service has is not looked for there, where its file is not.
    if let Some(defined) = config.get_mut("secrets").and_then(Value::as_object_mut) {
        defined.retain(|name, _| secrets.contains_key(name));
    }
    Ok(json!({"action": action, "config": config, "secrets": secrets}))
}

/// That a service has no folder or file of this host.
fn require_nothing_here(project: &Project, service: &Service) -> Result<(), Failure> {
    let refused = |path: &std::path::Path, target: &str| {
        let message = format!(
            "service '{}': {} of this host cannot be at {target} of a machine on another one",
            service.name,
            path.display()
        );
        Failure::new(Class::Unsupported, message)
            .hint("use a volume, and 'zmachine --host URL cp'; a config or a secret for a small file")
    };
    for mount in &service.mounts {
        match &mount.source {
            MountSource::Host { path, .. } => return Err(refused(path, &mount.target)),
            MountSource::Volume { key, .. } => {
                if let Some(path) = project.volumes.get(key).and_then(|volume| volume.bind.as_ref()) {
                    return Err(refused(path, &mount.target));
                }
            }
            MountSource::Anonymous | MountSource::Memory { .. } => {}
        }
    }
    Ok(())
}

/// The contents of the secrets or configs that services have, by their names.
fn contents(
    project: &Project,
    word: &str,
    defined: &BTreeMap<String, FileSource>,
    granted: impl Fn(&Service) -> &Vec<zmachine_compose::Grant>,
) -> Result<BTreeMap<String, String>, Failure> {
    let mut all = BTreeMap::new();
    for name in project.services.values().flat_map(&granted).map(|grant| &grant.source) {
        let content = match defined.get(name) {
            Some(FileSource::File(path)) => std::fs::read_to_string(path).map_err(|e| {
                Failure::from_error(Class::NotFound, &e).context(format!(
                    "the {word} '{name}': {} cannot be read as text",
                    path.display()
                ))
            })?,
            Some(FileSource::Content(content)) => content.clone(),
            Some(FileSource::Environment { value: Some(value), .. }) => value.clone(),
            Some(FileSource::Environment {
                name: variable,
                value: None,
            }) => {
                let message = format!("the {word} '{name}': the variable {variable} is not set");
                return Err(Failure::new(Class::Usage, message).hint("set it in the environment or in .env"));
            }
            Some(FileSource::External) | None => continue,
        };
        all.insert(name.clone(), content);
    }
    Ok(all)
}

/// A document that needs no files: what is removed does not need its secrets and configs.
pub(super) fn without_files(mut config: Value) -> Value {
    if let Some(members) = config.as_object_mut() {
        members.remove("secrets");
        members.remove("configs");
        for service in members
            .get_mut("services")
            .and_then(Value::as_object_mut)
            .into_iter()
            .flatten()
        {
            if let Some(service) = service.1.as_object_mut() {
                service.remove("secrets");
                service.remove("configs");
            }
        }
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project(folder: &std::path::Path, text: &str) -> Project {
        std::fs::write(folder.join("compose.yaml"), text).unwrap();
        zmachine_compose::project(&zmachine_compose::Options {
            files: vec![folder.join("compose.yaml")],
            cwd: folder.to_owned(),
            ..zmachine_compose::Options::default()
        })
        .unwrap()
    }

    #[test]
    fn a_document_has_contents_in_place_of_files_and_a_folder_of_this_host_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("key"), "hidden").unwrap();
        std::fs::write(folder.path().join("motd"), "hello $HOME").unwrap();
        let whole = project(
            folder.path(),
            "name: p\nservices:\n  web:\n    image: bb\n    secrets: [key]\n    configs: [motd]\n    volumes: ['data:/data']\n\
             secrets:\n  key: {file: ./key}\n  other: {file: ./none}\nconfigs:\n  motd: {file: ./motd}\nvolumes:\n  data: {}\n",
        );
        let wish = with_document(&whole, "up").unwrap();
        assert_eq!(wish["secrets"], json!({"key": "hidden"}));
        assert_eq!(wish["config"]["configs"]["motd"], json!({"content": "hello $HOME"}));
        assert_eq!(wish["config"]["secrets"].as_object().unwrap().len(), 1);
        let bound = project(
            folder.path(),
            "name: p\nservices:\n  web:\n    image: bb\n    volumes: ['./src:/app']\n",
        );
        let refused = with_document(&bound, "up").unwrap_err();
        assert_eq!(refused.class, Class::Unsupported);
        assert!(refused.to_string().contains("/src of this host"), "{refused}");
        assert!(without_files(whole.config)["services"]["web"].get("secrets").is_none());
    }
}

//! From what the command line says to the one document that all files make together.

mod environment;
mod files;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::canonical;
use crate::error::{ComposeError, Result};
use crate::interpolate;
use crate::merge;
use crate::node::{Node, Value, join};
use crate::parse;
use crate::schema;

pub(crate) use environment::env_file;

/// What a project is to be read from.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Its files, later ones over earlier ones; without any, they are looked for.
    pub files: Vec<PathBuf>,
    /// Its name, in place of all others.
    pub name: Option<String>,
    /// Profiles that are wanted; `*` is all.
    pub profiles: Vec<String>,
    /// Files of variables, in place of `.env`.
    pub env_files: Vec<PathBuf>,
    /// What relative paths are relative to, in place of the first file's folder.
    pub folder: Option<PathBuf>,
    /// Where it is asked for.
    pub cwd: PathBuf,
    /// The variables of the process.
    pub environment: BTreeMap<String, String>,
    /// Services that are asked for by name: they count whatever their profiles.
    pub services: Vec<String>,
}

/// The variables that a project's values may name.
#[derive(Debug, Clone, Default)]
pub(crate) struct Environment(pub(crate) BTreeMap<String, String>);

impl Environment {
    pub(crate) fn get(&self, name: &str) -> Option<String> {
        self.0.get(name).cloned()
    }
}

/// All files of a project as one document.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) name: String,
    pub(crate) folder: PathBuf,
    pub(crate) files: Vec<PathBuf>,
    pub(crate) document: Node,
    pub(crate) environment: Environment,
    pub(crate) profiles: Vec<String>,
    pub(crate) unset: Vec<String>,
}

/// Reads the files and lays them over each other.
pub(crate) fn load(options: &Options) -> Result<Loaded> {
    let found = files::find(options)?;
    let mut environment = environment::of_project(options, &found.folder)?;
    let name = project_name(options, &found, &environment)?;
    environment.0.insert("COMPOSE_PROJECT_NAME".to_owned(), name.clone());
    let mut reader = Reader { unset: Vec::new() };
    let mut document: Option<Node> = None;
    for file in &found.files {
        document = Some(reader.file(file, &found.folder, &environment, document, &mut Vec::new())?);
    }
    let mut document = document.ok_or_else(|| ComposeError::new("there is no compose file"))?;
    document.remove("version");
    document.remove("include");
    let mut profiles = options.profiles.clone();
    if profiles.is_empty()
        && let Some(named) = environment.get("COMPOSE_PROFILES")
    {
        profiles = named.split(',').map(|name| name.trim().to_owned()).collect();
    }
    Ok(Loaded {
        name,
        folder: found.folder,
        files: found.files,
        document: merge::stripped(document),
        environment,
        profiles,
        unset: reader.unset,
    })
}

/// A name as it can be part of others: lower case, digits, `-` and `_`.
fn normalized(name: &str) -> String {
    let legal = |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
    let text: String = name.to_lowercase().chars().filter(legal).collect();
    text.trim_start_matches(['-', '_']).to_owned()
}

fn project_name(options: &Options, found: &files::Found, environment: &Environment) -> Result<String> {
    let hint = "names have lower-case letters, digits, '-' and '_', and begin with a letter or digit";
    let given = options.name.clone().or_else(|| {
        let variable = environment.get("COMPOSE_PROJECT_NAME");
        variable.filter(|name| !name.is_empty())
    });
    if let Some(name) = given {
        return match normalized(&name) == name && !name.is_empty() {
            true => Ok(name),
            false => Err(ComposeError::new(format!("'{name}' cannot be the name of a project")).hint(hint)),
        };
    }
    // The last file that has one; what is wrong with a file is told when all of it is read.
    let mut named = None;
    for file in &found.files {
        let text = files::read(file)?;
        for document in parse::documents(&text, &Arc::from(file.as_path()))? {
            named = document.get("name").and_then(Node::scalar).or(named);
        }
    }
    if let Some(template) = named {
        let lookup = |name: &str| environment.get(name);
        if let Ok(name) = interpolate::substitute(&template, &lookup, &mut Vec::new())
            && !normalized(&name).is_empty()
        {
            return Ok(normalized(&name));
        }
    }
    let folder = found.folder.file_name().unwrap_or_default().to_string_lossy();
    match normalized(&folder) {
        name if name.is_empty() => Err(ComposeError::new(format!(
            "the folder {} gives the project no name",
            found.folder.display()
        ))
        .hint("name it with -p NAME, or with name: in the file")),
        name => Ok(name),
    }
}

struct Reader {
    unset: Vec<String>,
}

/// How deep files may include others.
const MOST_DEPTH: usize = 32;

impl Reader {
    /// A file over what others say; `chain` has the files that led to it.
    fn file(
        &mut self,
        path: &Path,
        folder: &Path,
        environment: &Environment,
        base: Option<Node>,
        chain: &mut Vec<PathBuf>,
    ) -> Result<Node> {
        if chain.contains(&path.to_owned()) || chain.len() > MOST_DEPTH {
            return Err(ComposeError::new(format!("{} includes itself", path.display())));
        }
        chain.push(path.to_owned());
        let mut all = base;
        for mut document in self.documents(path, environment)? {
            if let Some(include) = document.remove("include") {
                let included = self.include(&include, folder, environment, chain)?;
                canonical::document(&mut document, folder)?;
                schema::check(&mut document)?;
                // What is included comes first, and only resources of it.
                if let Some(included) = included {
                    document = merge::merge(included, document, "")?;
                }
            } else {
                canonical::document(&mut document, folder)?;
                schema::check(&mut document)?;
            }
            self.extends(&mut document, path, environment)?;
            all = Some(match all {
                None => document,
                Some(before) => merge::merge(before, document, "")?,
            });
        }
        chain.pop();
        all.ok_or_else(|| ComposeError::new(format!("{} is empty", path.display())).hint("it needs services: at least"))
    }

    /// The documents of a file with their variables replaced.
    fn documents(&mut self, path: &Path, environment: &Environment) -> Result<Vec<Node>> {
        let text = files::read(path)?;
        let file: Arc<Path> = Arc::from(path);
        let mut documents = parse::documents(&text, &file)?;
        documents.retain(|document| !document.is_null());
        for document in &mut documents {
            document.map("the file")?;
            interpolate::all(document, "", &|name| environment.get(name), &mut self.unset)?;
        }
        Ok(documents)
    }

    fn include(
        &mut self,
        include: &Node,
        folder: &Path,
        environment: &Environment,
        chain: &mut Vec<PathBuf>,
    ) -> Result<Option<Node>> {
        let mut all: Option<Node> = None;
        for (index, item) in include.list("include")?.iter().enumerate() {
            let at = format!("include[{index}]");
            let texts = |node: Option<&Node>, key: &str| -> Result<Vec<String>> {
                match node {
                    None => Ok(Vec::new()),
                    Some(node) if node.scalar().is_some() => Ok(vec![node.text(key)?]),
                    Some(node) => node.list(key)?.iter().map(|item| item.text(key)).collect(),
                }
            };
            let paths = match item.scalar() {
                Some(path) => vec![path],
                None => {
                    for (key, value) in item.map(&at)? {
                        if !["path", "project_directory", "env_file"].contains(&key.as_str()) {
                            return Err(value
                                .error(&at, format!("there is no key '{key}'"))
                                .hint("the keys are path, project_directory and env_file"));
                        }
                    }
                    texts(item.get("path"), &join(&at, "path"))?
                }
            };
            let paths: Vec<PathBuf> = paths
                .iter()
                .map(|path| canonical::absolute(path, folder).into())
                .collect();
            let first = paths.first().ok_or_else(|| item.error(&at, "it has no path"))?;
            let own = match item.get("project_directory") {
                Some(directory) => canonical::absolute(&directory.text(&at)?, folder).into(),
                None => first.parent().map(Path::to_owned).unwrap_or_default(),
            };
            let env_files = texts(item.get("env_file"), &join(&at, "env_file"))?;
            let env_files: Vec<PathBuf> = env_files
                .iter()
                .map(|path| canonical::absolute(path, folder).into())
                .collect();
            let environment = environment::of_include(environment, &env_files, &own)?;
            let mut document: Option<Node> = None;
            for path in &paths {
                document = Some(self.file(path, &own, &environment, document, chain)?);
            }
            let Some(mut document) = document.map(merge::stripped) else {
                continue;
            };
            if let Value::Map(entries) = &mut document.value {
                let resources = ["services", "volumes", "networks", "secrets", "configs"];
                entries.retain(|(key, _)| resources.contains(&key.as_str()));
            }
            all = Some(match all {
                None => document,
                Some(before) => merge::merge(before, document, "")?,
            });
        }
        Ok(all)
    }

    /// Lays each service of a document over the one that it extends.
    fn extends(&mut self, document: &mut Node, file: &Path, environment: &Environment) -> Result<()> {
        let Some(services) = document.get("services") else {
            return Ok(());
        };
        if services.is_null() {
            return Ok(());
        }
        let names: Vec<String> = services.map("services")?.iter().map(|(name, _)| name.clone()).collect();
        for name in names {
            let whole = document.clone();
            let extended = self.extended(&name, &whole, file, environment, &mut Vec::new())?;
            if let Some(services) = document.get_mut("services") {
                services.set(&name, extended);
            }
        }
        Ok(())
    }

    fn extended(
        &mut self,
        name: &str,
        document: &Node,
        file: &Path,
        environment: &Environment,
        chain: &mut Vec<(PathBuf, String)>,
    ) -> Result<Node> {
        let path = join("services", name);
        let services = document.get("services");
        let Some(service) = services.and_then(|services| services.get(name)) else {
            let message = format!("there is no service '{name}' in {}", file.display());
            return Err(ComposeError::new(message));
        };
        let mut service = service.clone();
        let Some(extends) = service.remove("extends") else {
            return Ok(service);
        };
        let here = (file.to_owned(), name.to_owned());
        if chain.contains(&here) {
            return Err(extends.error(&join(&path, "extends"), format!("the service '{name}' extends itself")));
        }
        chain.push(here);
        let field = |key: &str| extends.get(key).and_then(Node::scalar);
        let base = field("service").ok_or_else(|| extends.error(&path, "extends does not say which service"))?;
        let found = match field("file") {
            Some(other) => {
                let other = PathBuf::from(other);
                let folder = other.parent().map(Path::to_owned).unwrap_or_default();
                let mut documents = self.documents(&other, environment)?;
                for document in &mut documents {
                    canonical::document(document, &folder)?;
                    schema::check(document)?;
                }
                let mut documents = documents.into_iter();
                let first = documents
                    .next()
                    .ok_or_else(|| ComposeError::new(format!("{} is empty", other.display())))?;
                let whole = documents.try_fold(first, |all, one| merge::merge(all, one, ""))?;
                self.extended(&base, &whole, &other, environment, chain)
            }
            None => self.extended(&base, document, file, environment, chain),
        };
        let base = found.map_err(|mut error| {
            if error.place.is_none() && !error.is_not_found {
                error.place = Some(extends.at.clone());
            }
            error
        })?;
        chain.pop();
        merge::merge(base, service, &path)
    }
}

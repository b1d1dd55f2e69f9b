//! Each folder of `projects` is a project; `config` has what comes of it. `UPDATE_SNAPSHOTS=1` writes that anew.

use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use zmachine_compose::{Options, Project};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

fn project(folder: &Path) -> Project {
    let files: &[&str] = match folder.ends_with("django") {
        // As with -f twice.
        true => &["docker-compose.yml", "docker-compose.prod.yml"],
        false => &[],
    };
    let options = Options {
        files: files.iter().map(PathBuf::from).collect(),
        ..super::options(folder)
    };
    zmachine_compose::project(&options).unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
}

fn folders() -> Vec<PathBuf> {
    let all = std::fs::read_dir(root().join("projects")).unwrap();
    let mut all: Vec<PathBuf> = all.map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all
}

#[test]
fn what_projects_say_is_what_it_was() {
    let folders = folders();
    assert_eq!(folders.len(), 20);
    let mut wrong = Vec::new();
    for folder in folders {
        let project = project(&folder);
        let here = folder.display().to_string();
        let mut text = String::new();
        for note in &project.notes {
            text += &format!("# {}\n", note.text);
        }
        text += &zmachine_compose::yaml(&project.config).replace(&here, "/project");
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let snapshot = root().join("config").join(format!("{name}.yaml"));
        if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
            std::fs::write(&snapshot, &text).unwrap();
        }
        let known = std::fs::read_to_string(&snapshot).unwrap_or_default();
        if known != text {
            wrong.push(name);
        }
    }
    assert!(
        wrong.is_empty(),
        "not as in tests/config: {wrong:?}; UPDATE_SNAPSHOTS=1 writes them anew"
    );
}

/// What `config` prints is a compose file that says the same.
#[test]
fn the_long_form_of_a_project_is_its_own_long_form() {
    for folder in folders() {
        let project = project(&folder);
        // Values are not to be replaced a second time.
        let text = zmachine_compose::yaml(&project.config).replace('$', "$$");
        let again = super::folder(&[("compose.yaml", &text)]);
        let same = zmachine_compose::project(&super::options(again.path())).unwrap_or_else(|e| panic!("{e}\n{text}"));
        assert_eq!(same.config, project.config, "{}", folder.display());
        std::fs::remove_dir_all(again.path().parent().unwrap()).unwrap();
    }
}

#[test]
fn services_are_typed_as_they_are_meant() {
    let all = root().join("projects");
    let shop = project(&all.join("nginx-redis"));
    assert_eq!(shop.name, "nginx-redis");
    let app = &shop.services["app"];
    assert_eq!((app.scale, app.cpus, app.memory_bytes), (2, Some(0.5), Some(256 << 20)));
    assert_eq!(app.image.as_deref(), Some("registry.example.com/team/app:latest"));
    let cache = &shop.services["cache"];
    let command = ["redis-server", "--appendonly", "yes", "--requirepass", "a b"];
    assert_eq!(cache.command.as_deref().unwrap(), command);
    assert_eq!(cache.networks[0].aliases, ["redis", "kv"]);
    let jenkins = project(&all.join("jenkins"));
    assert_eq!(jenkins.services["jenkins"].ports[0].published.as_deref(), Some("9090"));
    assert_eq!(jenkins.services["jenkins"].user, None);
    let matrix = project(&all.join("matrix"));
    let postgres = &matrix.services["postgres"];
    assert_eq!((postgres.stop_grace_s, postgres.dns.len()), (Some(60), 2));
    assert_eq!(postgres.environment["TZ"], "UTC");
    let celery = project(&all.join("celery"));
    assert!(celery.disabled.contains_key("flower") && !celery.services.contains_key("flower"));
    assert_eq!(celery.services["worker"].environment["NAME"], "two words");
    let registry = project(&all.join("registry-ui"));
    assert!(registry.volumes["data"].external && registry.volumes["data"].name == "registry-data");
    let config: &Json = &registry.config["networks"]["outside"];
    assert_eq!(config["external"], true);
}

//! Images: from an archive, to a registry, and back.

use std::fs;
use std::process::Child;

use serde_json::json;
use zmachine_testkit::debian_program;

use crate::support::{Served, until};

/// An archive, as `docker save` writes it, of an image of busybox.
fn archive(served: &Served) -> String {
    let config = json!({"Env": ["PATH=/bin"], "Cmd": ["echo", "from the image"], "Labels": {"made": "here"}});
    served.archive("app:1", &served.home.file("busybox-tree"), &config)
}

struct Registry(Child);

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_image_goes_from_an_archive_to_a_registry_and_back() {
    let Some(served) = Served::new() else { return };
    let archive = archive(&served);
    assert_eq!(served.output(&["load", "-i", &archive]), "Loaded image: app:1");
    let id = served.output(&["images", "-q", "--no-trunc", "app:1"]);
    assert!(id.starts_with("sha256:") && id.len() == 71, "{id}");
    assert_eq!(
        served.output(&["inspect", "-f", "{{.Config.Labels.made}} {{.Id}}", "app:1"]),
        format!("here {id}")
    );
    assert!(served.output(&["history", "app:1"]).contains("by hand"));
    fs::create_dir_all(served.home.cache()).expect("a folder");
    let program = debian_program("docker-registry", "usr/bin/docker-registry", &served.home.cache());
    let config = served.home.file("registry.yml");
    let text = format!(
        "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: 127.0.0.1:5000}}\n",
        served.home.file("registry").display()
    );
    fs::write(&config, text).expect("a file");
    let serving = served.home.command(&program, ["serve", &config.display().to_string()]);
    let _registry = Registry(serving.start());
    let name = "127.0.0.1:5000/app:2";
    served.output(&["tag", "app:1", name]);
    let pushed = until("the registry", || {
        let pushed = served.docker(&["push", name]);
        (pushed.code == 0).then(|| pushed.stdout())
    });
    assert!(pushed.contains("2: digest: sha256:"), "{pushed}");
    served.output(&["rmi", name, "app:1"]);
    assert_eq!(served.docker(&["inspect", "app:1"]).code, 1);
    let missing = served.docker(&["pull", "127.0.0.1:5000/app:none"]);
    assert!(missing.code != 0 && missing.stderr().contains("not found"), "{missing}");
    // Pulled because it is not here.
    let run = served.docker(&["run", "--rm", name]);
    assert_eq!((run.code, run.stdout()), (0, "from the image\n".into()), "{run}");
    assert!(run.stderr().contains("Downloaded newer image"), "{run}");
    assert_eq!(served.output(&["images", "-q", "--no-trunc", name]), id);
    assert!(served.output(&["pull", name]).contains("Image is up to date"));
    let saved = served.home.file("saved.tar").display().to_string();
    served.output(&["save", "-o", &saved, name]);
    served.output(&["rmi", name]);
    assert!(served.output(&["load", "-i", &saved]).contains(name));
    let made = served.output(&["create", "--name", "made", name, "sh", "-c", "echo more > /more"]);
    served.output(&["start", "-a", "made"]);
    served.output(&["commit", "--change", "CMD [\"cat\", \"/more\"]", &made, "more:1"]);
    assert_eq!(served.output(&["run", "--rm", "more:1"]), "more");
    let used = served.docker(&["rmi", name]);
    assert!(
        used.code != 0 && used.stderr().contains("is using its referenced image"),
        "{used}"
    );
    served.output(&["rm", "made"]);
    served.output(&["rmi", "more:1", name]);
}

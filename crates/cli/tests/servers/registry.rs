//! Images by name, from a registry and back to it, with the words that users of docker have.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::Value;
use zmachine_testkit::{Server, debian_program};

use super::{REGISTRY_USERS, Room, finish};

/// A registry that wants the password `secret` of `user`.
fn registry(room: &Room) -> Server {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let program = debian_program("docker-registry", "usr/bin/docker-registry", cache);
    fs::write(room.path("users"), REGISTRY_USERS).unwrap();
    let config = "version: 0.1\nlog: {level: error}\nstorage: {filesystem: {}}\nhttp: {}\n";
    fs::write(room.path("registry.yml"), config).unwrap();
    Server::start(|port| {
        let mut command = room.command(program.to_str().unwrap());
        let root = room.path("registry").display().to_string();
        command.args(["serve", "registry.yml"]).envs([
            ("REGISTRY_HTTP_ADDR", format!("127.0.0.1:{port}")),
            ("REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY", root),
            ("REGISTRY_AUTH", "htpasswd".into()),
            ("REGISTRY_AUTH_HTPASSWD_REALM", "test".into()),
            ("REGISTRY_AUTH_HTPASSWD_PATH", room.path("users").display().to_string()),
        ]);
        command
    })
}

/// `zmachine args...` of a user who has no credentials, and no credential helpers, but those of this test.
fn zmachine(room: &Room, home: &str, args: &[&str]) -> (Option<i32>, String) {
    let mut command = room.command(env!("CARGO_BIN_EXE_zmachine"));
    command
        .env("ZMACHINE_HOME", room.path(home))
        .env("HOME", room.path("user"))
        .env(
            "PATH",
            format!("{}:{}", room.path("bin").display(), std::env::var("PATH").unwrap()),
        )
        .env("DOCKER_CONFIG", room.path("user/.docker"))
        .env("XDG_CONFIG_HOME", room.path("user/.config"))
        .env("XDG_RUNTIME_DIR", room.path("user/run"))
        .env_remove("REGISTRY_AUTH_FILE");
    finish(command.args(args))
}

#[track_caller]
fn expect(room: &Room, home: &str, code: i32, args: &[&str]) -> String {
    let (found, output) = zmachine(room, home, args);
    assert_eq!(found, Some(code), "{args:?}: {output}");
    output
}

#[test]
fn an_image_goes_to_a_registry_and_comes_back_under_its_name() {
    let room = Room::new();
    for (program, args) in [
        ("umoci", &["init", "--layout", "oci"][..]),
        ("umoci", &["new", "--image", "oci:1"]),
        ("umoci", &["insert", "--image", "oci:1", "tree", "/tree"]),
        (
            "umoci",
            &[
                "config",
                "--image",
                "oci:1",
                "--config.cmd=/bin/sh",
                "--config.label=a=b",
            ],
        ),
    ] {
        let (code, output) = finish(room.command(program).args(args));
        assert_eq!(code, Some(0), "{program} {args:?}: {output}");
    }
    let server = registry(&room);
    let name = format!("{}/team/web:1", server.host());
    expect(&room, "home", 0, &["image", "pull", "oci:oci:1", &name]);
    let refused = expect(&room, "home", 5, &["push", &name]);
    assert!(
        refused.contains("status 401") && refused.contains("zmachine login"),
        "{refused}"
    );
    let wrong = expect(
        &room,
        "home",
        5,
        &["login", "-u", "user", "-p", "wrong", &server.host()],
    );
    assert!(wrong.contains("does not take this user and password"), "{wrong}");
    expect(
        &room,
        "home",
        0,
        &["login", "-u", "user", "-p", "secret", &server.host()],
    );
    let pushed = expect(&room, "home", 0, &["push", &name]);
    let digest = pushed
        .split_whitespace()
        .find(|word| word.starts_with("sha256:"))
        .unwrap()
        .to_owned();

    // In another home: by name, by digest, by a mirror, and by the default registry.
    let pinned = format!("{}/team/web@{digest}", server.host());
    let pulled = expect(&room, "other", 0, &["pull", &pinned]);
    assert!(pulled.contains(&pinned), "{pulled}");
    let config = format!(
        "default = \"{0}\"\n[registry.\"gone.invalid\"]\nmirrors = [\"{0}\"]\n",
        server.host()
    );
    fs::write(room.path("other/registries.toml"), config).unwrap();
    expect(&room, "other", 0, &["pull", "-q", "team/web:1"]);
    expect(&room, "other", 0, &["pull", "gone.invalid/team/web:1"]);
    let listed = expect(&room, "other", 0, &["images"]);
    assert!(
        listed.contains(&name) && listed.contains("gone.invalid/team/web:1"),
        "{listed}"
    );
    let inspected: Value = serde_json::from_str(&expect(&room, "other", 0, &["image", "inspect", &name])).unwrap();
    let image = &inspected[0];
    assert_eq!(image["RepoDigests"][0], pinned);
    assert_eq!(
        (&image["Config"]["Cmd"][0], &image["Config"]["Labels"]["a"]),
        (&"/bin/sh".into(), &"b".into())
    );
    assert_eq!(image["RootFS"]["Layers"].as_array().unwrap().len(), 1);
    let format = "{{index .Config.Cmd 0}} {{.Config.Labels.a}}";
    let formatted = expect(&room, "other", 0, &["image", "inspect", "-f", format, &name]);
    assert_eq!(formatted, "/bin/sh b\n");
    assert!(expect(&room, "other", 0, &["history", &name]).contains("CREATED BY"));

    // A tag, an archive of both names, and back.
    expect(&room, "other", 0, &["tag", &name, "mine"]);
    let id = image["Digest"].as_str().unwrap()[..12].to_owned();
    expect(&room, "other", 0, &["save", "-o", "saved.tar", "mine", &name]);
    let archive = "docker-archive:saved.tar:mine:latest";
    let (code, output) = finish(room.command("skopeo").args(["inspect", archive]));
    assert!(code == Some(0) && output.contains("linux"), "{output}");
    let loaded = expect(&room, "third", 0, &["load", "-q", "-i", "saved.tar"]);
    assert!(loaded.contains("mine:latest") && loaded.contains(&name), "{loaded}");

    // The last name takes the image along; a beginning of its digest stands for all of them.
    expect(&room, "third", 0, &["rmi", "mine"]);
    assert!(expect(&room, "third", 0, &["images"]).contains(&name));
    expect(&room, "third", 0, &["rmi", &name]);
    let gone = expect(&room, "other", 0, &["image", "rm", &id]);
    assert!(gone.contains("the image is removed"), "{gone}");
    for home in ["other", "third"] {
        let usage: Value = serde_json::from_str(&expect(&room, home, 0, &["image", "cache", "-o", "json"])).unwrap();
        assert_eq!(usage["blocks"], 0, "{home}: {usage}");
        assert!(!expect(&room, home, 0, &["images"]).contains("web"));
    }
    expect(&room, "home", 0, &["logout", &server.host()]);
    let out = expect(&room, "home", 3, &["logout", &server.host()]);
    assert!(out.contains("nobody is logged in"), "{out}");
    expect(&room, "other", 5, &["pull", &name]);
}

#[test]
fn what_is_no_image_of_a_registry_is_told_so() {
    let room = Room::new();
    let offline = expect(&room, "home", 125, &["run", "--pull", "never", "nginx"]);
    assert!(offline.contains("nginx has not been pulled"), "{offline}");
    let slash = expect(&room, "home", 125, &["run", "./docker.io/library/alpine"]);
    assert!(slash.contains("leave './' out: docker.io/library/alpine"), "{slash}");
    let flist = expect(&room, "home", 3, &["save", "nothing"]);
    assert!(flist.contains("there is no image 'nothing' here"), "{flist}");
    fs::create_dir_all(room.path("home")).unwrap();
    fs::write(room.path("home/registries.toml"), "mirror = 1\n").unwrap();
    let broken = expect(&room, "home", 125, &["run", "nginx"]);
    assert!(
        broken.contains("registries.toml is not usable") && broken.contains("docs/images.md"),
        "{broken}"
    );
}

#[test]
fn a_flist_goes_to_a_registry_and_its_blocks_stay_where_they_are() {
    let room = Room::new();
    let server = registry(&room);
    let name = format!("{}/team/tree:1", server.host());
    let store = format!("dir://{}", room.path("store").display());
    expect(
        &room,
        "home",
        0,
        &["login", "-u", "user", "-p", "secret", &server.host()],
    );
    expect(
        &room,
        "home",
        0,
        &["flist", "pack", "tree", "-o", "x.fl", "--store", &store],
    );
    expect(&room, "home", 0, &["image", "pull", "./x.fl", &name]);
    expect(&room, "home", 0, &["push", &name]);
    // What another tool sees of it.
    let raw = ["inspect", "--raw", "--tls-verify=false", "--creds", "user:secret"];
    let (code, manifest) = finish(room.command("skopeo").args(raw).arg(format!("docker://{name}")));
    assert_eq!(code, Some(0), "{manifest}");
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    assert_eq!(manifest["artifactType"], "application/vnd.zmachine.flist.v2");
    assert_eq!(
        manifest["layers"][0]["size"],
        fs::metadata(room.path("x.fl")).unwrap().len()
    );

    // In another home it is the same image, and its blocks come from its store.
    expect(&room, "other", 0, &["pull", "--blocks", &name]);
    let digests = |home| expect(&room, home, 0, &["images", "-q", "--no-trunc"]);
    assert_eq!(digests("other"), digests("home"));
    fs::rename(room.path("store"), room.path("away")).unwrap();
    expect(&room, "third", 0, &["pull", &name]);
    expect(&room, "third", 5, &["pull", "--blocks", &name]);
    // One that was altered is refused.
    let blob = manifest["layers"][0]["digest"]
        .as_str()
        .unwrap()
        .trim_start_matches("sha256:")
        .to_owned();
    let path = room.path(&format!(
        "registry/docker/registry/v2/blobs/sha256/{}/{blob}/data",
        &blob[..2]
    ));
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&path, bytes).unwrap();
    let altered = expect(&room, "fourth", 5, &["pull", &name]);
    assert!(altered.contains("is broken"), "{altered}");
}

#[test]
fn a_credential_helper_keeps_a_login_and_forgets_it() {
    let room = Room::new();
    let server = registry(&room);
    let host = server.host();
    let helper = room.path("bin/docker-credential-file");
    let script = r#"#!/bin/sh
case $1 in
    store) cat >kept ;;
    get) cat >/dev/null; cat kept 2>/dev/null || { echo credentials not found in this file; exit 1; } ;;
    erase) [ "$(cat)" = "$(sed 's/.*"ServerURL":"\([^"]*\)".*/\1/' kept)" ] && rm kept ;;
esac
"#;
    fs::create_dir_all(room.path("bin")).unwrap();
    fs::write(&helper, script).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    let config = room.path("user/.docker/config.json");
    fs::create_dir_all(config.parent().unwrap()).unwrap();
    fs::write(&config, format!(r#"{{"credHelpers":{{"{host}":"file"}}}}"#)).unwrap();
    let login = |password| ["login", "-u", "user", "-p", password, &host].map(str::to_owned);
    let login = |code, password| {
        let words = login(password);
        expect(&room, "home", code, &words.each_ref().map(String::as_str))
    };
    login(5, "wrong");
    assert!(!room.path("kept").exists());
    login(0, "secret");
    let kept: Value = serde_json::from_slice(&fs::read(room.path("kept")).unwrap()).unwrap();
    assert_eq!(
        kept,
        serde_json::json!({"ServerURL": host, "Username": "user", "Secret": "secret"})
    );
    let written: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    assert_eq!(written["auths"], serde_json::json!({&host: {}}), "no secret of it");
    // It is used from there.
    let missing = expect(&room, "home", 5, &["pull", &format!("{host}/no/such")]);
    assert!(missing.contains("404") && !missing.contains("401"), "{missing}");
    expect(&room, "home", 0, &["logout", &host]);
    assert!(!room.path("kept").exists());
    let again = expect(&room, "home", 3, &["logout", &host]);
    assert!(again.contains("nobody is logged in"), "{again}");
    fs::write(&config, r#"{"credsStore":"missing"}"#).unwrap();
    let missing = login(1, "secret");
    assert!(missing.contains("docker-credential-missing"), "{missing}");
}

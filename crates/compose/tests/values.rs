//! How files, variables and names come together.

use zmachine_compose::{Condition, FileSource, MountSource, Options};

use crate::{folder, one, options, read};

#[test]
fn variables_come_from_the_process_then_from_the_file() {
    let file = "services: {web: {image: \"x:${TAG}-${OTHER:-none}\", environment: [TAG, NONE, \"A=${COMPOSE_PROJECT_NAME}\"]}}\n";
    let project = read(
        &[("compose.yaml", file), (".env", "TAG=file\nOTHER=o\n")],
        &[("TAG", "process")],
    )
    .unwrap();
    let web = &project.services["web"];
    assert_eq!(web.image.as_deref(), Some("x:process-o"));
    assert_eq!(web.environment["TAG"], "process");
    assert_eq!(web.environment["A"], "shop");
    assert!(!web.environment.contains_key("NONE"));
}

#[test]
fn what_is_not_set_is_noted() {
    let project = one("services: {web: {image: \"x:${NONE}y\"}}\n").unwrap();
    assert!(project.notes.iter().any(|note| note.text.contains("NONE is not set")));
}

#[test]
fn a_project_has_the_name_that_counts_most() {
    let name =
        |files: &[(&str, &str)], environment: &[(&str, &str)]| read(files, environment).map(|project| project.name);
    let plain = ("compose.yaml", "services: {a: {image: x}}\n");
    let named = ("compose.yaml", "name: Big ${X:-Shop}\nservices: {a: {image: x}}\n");
    assert_eq!(name(&[plain], &[]).unwrap(), "shop");
    assert_eq!(name(&[named], &[]).unwrap(), "bigshop");
    assert_eq!(
        name(&[named, (".env", "COMPOSE_PROJECT_NAME=of-env\n")], &[]).unwrap(),
        "of-env"
    );
    assert_eq!(
        name(&[named], &[("COMPOSE_PROJECT_NAME", "process")]).unwrap(),
        "process"
    );
    assert!(name(&[named], &[("COMPOSE_PROJECT_NAME", "Upper")]).is_err());
    let folder = folder(&[plain]);
    let given = Options {
        name: Some("given".into()),
        ..options(folder.path())
    };
    let project = zmachine_compose::project(&given).unwrap();
    assert_eq!(
        (project.name.as_str(), project.networks["default"].name.as_str()),
        ("given", "given_default")
    );
}

#[test]
fn files_are_found_above_and_by_the_environment() {
    let folder = folder(&[
        ("compose.yaml", "services: {a: {image: x, volumes: [\"./d:/d\"]}}\n"),
        ("other/b.yaml", "services: {b: {image: y, volumes: [\"./d:/d\"]}}\n"),
        ("below/deep/x", ""),
    ]);
    let below = options(&folder.path().join("below/deep"));
    assert_eq!(zmachine_compose::project(&below).unwrap().folder, folder.path());
    let mut both = options(folder.path());
    both.environment
        .insert("COMPOSE_FILE".into(), "compose.yaml:other/b.yaml".into());
    let both = zmachine_compose::project(&both).unwrap();
    assert_eq!(both.services.len(), 2);
    // Both relative to the folder of the first one.
    let MountSource::Host { path, create: true } = &both.services["b"].mounts[0].source else {
        panic!("{:?}", both.services["b"].mounts)
    };
    assert_eq!(*path, folder.path().join("d"));
}

#[test]
fn later_files_are_laid_over_earlier_ones() {
    let base = "services:\n  web:\n    image: x\n    command: a b\n    ports: [\"80:80\", \"443:443\"]\n    volumes: [\"./a:/data\", \"./b:/more\"]\n    \
                environment: [A=1, B=2]\n    dns: 1.1.1.1\n    logging: {driver: json-file, options: {max-size: 1m}}\n    ulimits: {nofile: {soft: 1, hard: 2}}\n    \
                extra_hosts: [\"a:1.1.1.1\"]\n    healthcheck: {test: [CMD, a], retries: 2}\n";
    let over = "services:\n  web:\n    command: [c]\n    ports: [\"80:80\", \"81:81\"]\n    volumes: [\"./c:/data\"]\n    environment: {B: 3, C: 4}\n    \
                dns: [2.2.2.2]\n    logging: {driver: local}\n    ulimits: {nofile: 5}\n    extra_hosts: {b: 2.2.2.2}\n    healthcheck: {test: d}\n";
    let project = read(&[("compose.yaml", base), ("compose.override.yaml", over)], &[]).unwrap();
    let web = &project.services["web"];
    assert_eq!(web.command.as_deref().unwrap(), ["c"]);
    let ports: Vec<u16> = web.ports.iter().map(|port| port.target).collect();
    assert_eq!(ports, [80, 443, 81]);
    let targets: Vec<&str> = web.mounts.iter().map(|mount| mount.target.as_str()).collect();
    assert_eq!(targets, ["/data", "/more"]);
    assert!(matches!(&web.mounts[0].source, MountSource::Host { path, .. } if path.ends_with("c")));
    let variables: Vec<String> = web
        .environment
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    assert_eq!(variables, ["A=1", "B=3", "C=4"]);
    assert_eq!(web.dns, ["1.1.1.1", "2.2.2.2"]);
    assert!(web.logging.as_ref().unwrap().options.is_empty());
    assert_eq!(web.ulimits["nofile"], (5, 5));
    assert_eq!(web.extra_hosts, ["a=1.1.1.1", "b=2.2.2.2"]);
    assert_eq!(web.healthcheck.as_ref().unwrap().retries, Some(2));
}

#[test]
fn profiles_are_asked_for_by_name_or_by_service() {
    let file = "services:\n  a: {image: x}\n  b: {image: x, profiles: [debug, test]}\n  c: {image: x, profiles: [other], depends_on: [a]}\n";
    let folder = folder(&[("compose.yaml", file)]);
    let names = |options: Options| {
        let project = zmachine_compose::project(&options).unwrap();
        project.services.into_keys().collect::<Vec<_>>().concat()
    };
    let with = |profiles: &[&str], services: &[&str]| Options {
        profiles: profiles.iter().map(ToString::to_string).collect(),
        services: services.iter().map(ToString::to_string).collect(),
        ..options(folder.path())
    };
    assert_eq!(names(with(&[], &[])), "a");
    assert_eq!(names(with(&["test"], &[])), "ab");
    assert_eq!(names(with(&["*"], &[])), "abc");
    assert_eq!(names(with(&[], &["c"])), "ac");
    let mut by_variable = options(folder.path());
    by_variable
        .environment
        .insert("COMPOSE_PROFILES".into(), "debug,other".into());
    assert_eq!(names(by_variable), "abc");
}

#[test]
fn short_and_long_forms_say_the_same() {
    let file = "services:\n  web:\n    image: x\n    depends_on: {db: {condition: service_completed_successfully, required: false}, none: {condition: service_started, required: false}}\n    \
                volumes: [\"~/x:/x\", \"/y\", {type: tmpfs, target: /t, tmpfs: {size: 1m, mode: 0700}}]\n    links: [\"db:store\"]\n    \
                secrets: [token, {source: token, target: /etc/token}]\n    configs: [inline]\n    stop_grace_period: 1m500ms\n    \
                x-zmachine: {hypervisor: qemu, size: 4G}\n  db: {image: y}\n\
                secrets: {token: {environment: TOKEN}}\nconfigs: {inline: {content: \"a $$b ${TOKEN}\"}}\n";
    let file = &format!("{file}volumes: {{d: {{driver_opts: {{type: none, o: bind, device: /srv/d}}}}}}\n");
    let project = read(&[("compose.yaml", file)], &[("TOKEN", "t")]).unwrap();
    assert_eq!(
        project.volumes["d"].bind.as_deref(),
        Some(std::path::Path::new("/srv/d"))
    );
    let web = &project.services["web"];
    assert_eq!(web.depends_on.len(), 1);
    assert_eq!(web.depends_on["db"].condition, Condition::Completed);
    assert!(matches!(web.mounts[1].source, MountSource::Anonymous));
    let memory = MountSource::Memory {
        size_bytes: Some(1 << 20),
        mode: Some(0o700),
    };
    assert_eq!(web.mounts[2].source, memory);
    assert_eq!(web.links, [("db".to_owned(), "store".to_owned())]);
    let targets: Vec<&str> = web.secrets.iter().map(|grant| grant.target.as_str()).collect();
    assert_eq!(targets, ["/run/secrets/token", "/etc/token"]);
    assert_eq!(web.configs[0].target, "/inline");
    assert_eq!(project.configs["inline"], FileSource::Content("a $b t".into()));
    assert_eq!(web.stop_grace_s, Some(61));
    assert_eq!(web.machine["hypervisor"], "qemu");
}

//! What services of compose files ask for, as specs of machines.

use std::path::{Path, PathBuf};

use zmachine_compose::{Options, Project};
use zmachine_hypervisor::choice::Requested;
use zmachine_project::words::{Granted, Instance};
use zmachine_project::{Front, SERVICE, converge, labels};
use zmachine_spec::{Failure, HealthTest as Test, MachineSpec, ModeChoice, Origin};

use super::front::Terminal;

fn spec(project: &Project, service: &str) -> Result<MachineSpec, Failure> {
    let service = &project.services[service];
    let granted = |kind: Granted, grants: &[zmachine_compose::Grant]| -> Vec<((Granted, String), PathBuf)> {
        let one = |grant: &zmachine_compose::Grant| ((kind, grant.source.clone()), PathBuf::from("/contents"));
        grants.iter().map(one).collect()
    };
    let secrets = granted(Granted::Secret, &service.secrets).into_iter();
    let files = secrets.chain(granted(Granted::Config, &service.configs)).collect();
    let instance = Instance {
        project,
        service,
        name: converge::name(project, service, 1),
        labels: labels(project, service, 1, "hash", false),
        files: &files,
        joins: true,
        publishes: true,
        once: false,
    };
    Terminal.spec(instance.create_words(&Terminal)?, &project.folder)
}

fn read(folder: &Path, files: &[&str]) -> Project {
    zmachine_compose::project(&Options {
        files: files.iter().map(PathBuf::from).collect(),
        cwd: folder.to_owned(),
        profiles: vec!["*".to_owned()],
        ..Options::default()
    })
    .unwrap()
}

fn of(text: &str) -> (tempfile::TempDir, Project) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("compose.yaml"), format!("name: shop\n{text}")).unwrap();
    let project = read(folder.path(), &[]);
    (folder, project)
}

#[test]
fn every_service_of_the_sample_projects_is_a_machine() {
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../compose/tests/projects");
    let mut services = 0;
    for sample in std::fs::read_dir(samples).unwrap() {
        // A copy: directories that are shared are made.
        let copy = tempfile::tempdir().unwrap();
        let from = sample.unwrap().path();
        let copied = std::process::Command::new("cp")
            .arg("-r")
            .arg(from.join("."))
            .arg(copy.path())
            .status();
        assert!(copied.unwrap().success());
        let project = read(copy.path(), &[]);
        for name in project.services.keys() {
            spec(&project, name).unwrap_or_else(|e| panic!("{}: {name}: {e}", from.display()));
            services += 1;
        }
    }
    assert!(services > 40, "{services}");
}

#[test]
fn keys_become_settings_of_a_machine() {
    let (folder, project) = of(
        "services:\n  web:\n    image: ./web.fl\n    command: serve -v\n    entrypoint: [\"/bin/a b\", -x]\n    environment: {A: \"--b=c\", B: }\n    cpus: 1.5\n    \
         mem_limit: 64m\n    user: \"7:8\"\n    restart: on-failure:3\n    stop_grace_period: 1m\n    ports: [\"127.0.0.1:80:8080/udp\", \"[fd00::5]:81:81\", 99]\n    \
         volumes: [\"./a:/ab\", \"data:/d:ro\", /own]\n    healthcheck: {test: [CMD, ok, \"a b\"], interval: 2s}\n    networks: {back: {aliases: [kv], ipv4_address: 10.1.1.9}}\n    \
         logging: {options: {max-size: 2m, max-file: 4}}\n    ulimits: {nofile: {soft: 5, hard: -1}}\n    secrets: [s, {source: s, target: /etc/s}]\n    \
         extra_hosts: [\"six=fd00::1\"]\n    x-zmachine: {hypervisor: qemu, size: 4G}\n  other: {image: x, links: [\"web:www\"]}\n\
         networks: {back: {}}\nvolumes: {data: {x-zmachine: {size: 2G, fs: xfs}}}\nsecrets: {s: {file: ./s}}\n",
    );
    let found = spec(&project, "web").unwrap();
    assert_eq!(found.flist, folder.path().join("./web.fl").display().to_string());
    assert_eq!(found.name, "shop-web-1");
    assert_eq!(found.command, ["serve", "-v"]);
    assert_eq!(found.entrypoint.unwrap(), ["/bin/a b", "-x"]);
    assert_eq!(found.env, [("A".to_owned(), "--b=c".to_owned())]);
    assert_eq!((found.cpus, found.memory_bytes), (2, zmachine_plan::MIN_MEMORY));
    assert_eq!(found.stop_timeout_s, Some(60));
    let ports: Vec<String> = found.publish.iter().map(ToString::to_string).collect();
    assert_eq!(ports, ["127.0.0.1:80:8080/udp", "[fd00::5]:81:81/tcp", "99/tcp"]);
    assert_eq!(found.networks[0].name, "shop_back");
    assert_eq!(found.networks[0].aliases, ["web", "kv", "www"]);
    assert_eq!(found.networks[0].ipv4, Some("10.1.1.9".parse().unwrap()));
    assert!(folder.path().join("a").is_dir(), "it is made");
    assert_eq!(found.volumes[1].size_bytes, Some(2 << 30));
    assert!(found.volumes[1].read_only && found.volumes[2].origin == Origin::Anonymous);
    assert_eq!(found.health.test, Some(Test::Program(vec!["ok".into(), "a b".into()])));
    assert_eq!(found.log_limits.files, 4);
    let secrets: Vec<&str> = found.secrets.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(secrets, ["s", "/etc/s"]);
    assert_eq!(found.guest.hosts[0].to_string(), "six:fd00::1");
    assert_eq!((found.hypervisor, found.size_bytes), (Requested::Qemu, 4 << 30));
    assert_eq!(found.labels[SERVICE], "web");
}

#[test]
fn a_vm_has_a_disk_of_its_own() {
    let (_folder, project) = of("services: {vm: {image: ./d.qcow2, x-zmachine: {kind: vm, disk-size: 3G}}}\n");
    let found = spec(&project, "vm").unwrap();
    assert_eq!(found.mode, ModeChoice::Vm);
    assert_eq!(
        (found.volumes[0].target.as_str(), found.volumes[0].size_bytes),
        ("/", Some(3 << 30))
    );
    assert_eq!(found.volumes[0].origin, Origin::Named("shop-vm-1_disk".into()));
}

#[test]
fn what_a_machine_cannot_be_is_told() {
    for (service, part) in [
        ("{image: x, x-zmachine: {hypervisr: qemu}}", "hypervisr"),
        ("{image: x, x-zmachine: {kind: pod}}", "pod"),
        ("{image: x, platform: linux/arm64}", "linux/arm64"),
        ("{image: x, ulimits: {files: 3}}", "files"),
        ("{image: x, logging: {driver: gelf}}", "gelf"),
        ("{image: x, restart: sometimes}", "sometimes"),
        ("{image: x, healthcheck: {test: a, interval: often}}", "often"),
        ("{image: x, cap_drop: [FLY]}", "FLY"),
    ] {
        let (_folder, project) = of(&format!("services: {{web: {service}}}\n"));
        let failure = spec(&project, "web").unwrap_err();
        assert!(failure.to_string().contains(part), "{service}: {failure}");
    }
}

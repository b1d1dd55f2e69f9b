//! What cloud-init itself makes of a seed: `cloud_init.py` asks its code (Debian's package `cloud-init`; an unpacked one is
//! found through `PYTHONPATH`).

use std::io::{Cursor, Read, Write};
use std::path::Path;
use std::process::Command;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use zmachine_disk::seed::{self, Seed, SeedInterface, SeedMount, user_data_text};
use zmachine_testkit::skip;

/// Whether cloud-init's code can be asked; says that the test is skipped if not.
fn has_cloud_init() -> bool {
    let asked = Command::new("python3")
        .args(["-c", "import cloudinit.user_data"])
        .output();
    let is_there = asked.is_ok_and(|output| output.status.success());
    if !is_there {
        skip("needs cloud-init");
    }
    is_there
}

fn ask(what: &str, contents: &[Vec<u8>]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cloud_init.py");
    let mut command = Command::new("python3");
    command.arg(script).arg(what);
    for (nth, content) in contents.iter().enumerate() {
        let file = dir.path().join(nth.to_string());
        std::fs::write(&file, content).unwrap();
        command.arg(file);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What cloud-init makes of each. All at once, as it takes a while to be loaded.
fn reported(user_data: &[Vec<u8>]) -> Vec<Value> {
    serde_json::from_str(&ask("user-data", user_data)).unwrap()
}

fn file(seed: &Seed, name: &str) -> Vec<u8> {
    let disk = Cursor::new(seed::image(seed).unwrap());
    let fs = fatfs::FileSystem::new(disk, fatfs::FsOptions::new()).unwrap();
    let mut content = Vec::new();
    let mut file = fs.root_dir().open_file(name).unwrap();
    file.read_to_end(&mut content).unwrap();
    content
}

fn seed() -> Seed {
    Seed {
        instance_id: "i".into(),
        hostname: "box".into(),
        ssh_keys: vec!["ssh-ed25519 AAAA mé".into()],
        mounts: vec![SeedMount {
            source: "share0".into(),
            fstype: "virtiofs".into(),
            target: "/bücher".into(),
            read_only: false,
        }],
        ..Seed::default()
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = GzEncoder::new(Vec::new(), Compression::default());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

const MESSAGE: &str = "Content-Type: multipart/mixed; boundary=\"BB\"\nMIME-Version: 1.0\n\n--BB\nContent-Type: text/cloud-config\n\n\
    #cloud-config\nruncmd: [echo one]\n--BB\nContent-Type: text/x-shellscript\n\n#!/bin/sh\necho two\n--BB--\n";

/// Every form that cloud-init takes, and what it does not take.
fn forms() -> Vec<(&'static str, Vec<u8>)> {
    let text = |what, text: &str| (what, text.as_bytes().to_vec());
    vec![
        text(
            "config",
            "#cloud-config\nwrite_files:\n- path: /etc/motd\n  content: \"Grüße € ok\"\n",
        ),
        text("line ends", "#cloud-config\r\nruncmd:\r\n- echo a\r\n"),
        text(
            "users",
            "#cloud-config\nusers:\n- name: me\nbootcmd:\n- echo mine\ndisable_root: true\n",
        ),
        text(
            "template",
            "## template: jinja\n#cloud-config\nruncmd:\n- echo {{ v1.local_hostname }} ü\n",
        ),
        text("script", "#!/bin/sh\necho hi ü\n"),
        text(
            "script that speaks of messages",
            "#!/bin/sh\n# MIME-Version: 1.0\necho hi\n",
        ),
        text(
            "archive",
            "#cloud-config-archive\n- type: text/cloud-config\n  content: |\n    #cloud-config\n    hostname: a\n- \"#!/bin/sh\\necho b\"\n",
        ),
        text("boot hook", "#cloud-boothook\n#!/bin/sh\necho ü\n"),
        text("part handler", "#part-handler\ndef list_types():\n  return []\n"),
        text("message", MESSAGE),
        text("message with other line ends", &MESSAGE.replace('\n', "\r\n")),
        text(
            "message with a folded header",
            &MESSAGE.replace(" boundary", "\n boundary"),
        ),
        text("message without its end", MESSAGE.trim_end_matches("--\n")),
        text(
            "message of one part",
            "MIME-Version: 1.0\nContent-Type: text/x-shellscript\n\n#!/bin/sh\necho x\n",
        ),
        text(
            "our own boundary",
            "#cloud-config\n# --==zmachine==\nruncmd:\n- echo dots\n",
        ),
        text("our own boundary in a message", &MESSAGE.replace("BB", "==zmachine==")),
        text(
            "patch",
            "#cloud-config-jsonp\n[{\"op\": \"add\", \"path\": \"/hostname\", \"value\": \"a\"}]\n",
        ),
        text("no kind", "hello\n"),
        ("compressed", gzip("#!/bin/sh\necho ü\n".as_bytes())),
        ("compressed message", gzip(MESSAGE.as_bytes())),
        ("bytes", b"#!/bin/sh\necho Gr\xfc\xdfe\n".to_vec()),
    ]
}

#[test]
fn user_data_of_every_form_arrives_whole_beside_ours() {
    if !has_cloud_init() {
        return;
    }
    let forms = forms();
    let ours = file(&seed(), "user-data");
    let alone = forms.iter().map(|(_, given)| given.clone());
    let together = forms.iter().map(|(_, given)| {
        let user_data = Some(user_data_text(given.clone()));
        file(&Seed { user_data, ..seed() }, "user-data")
    });
    let all = reported(&std::iter::once(ours).chain(alone).chain(together).collect::<Vec<_>>());
    let (ours, rest) = all.split_first().unwrap();
    let (alone, together) = rest.split_at(forms.len());
    for ((what, _), (alone, together)) in forms.iter().zip(alone.iter().zip(together)) {
        let (parts, own) = (
            together["parts"].as_array().unwrap(),
            alone["parts"].as_array().unwrap(),
        );
        assert_eq!(parts[..own.len()], own[..], "{what}");
        assert_eq!(parts[own.len()..], ours["parts"].as_array().unwrap()[..], "{what}");
        let mut wanted = ours["config"].clone();
        for (key, value) in alone["config"].as_object().into_iter().flatten() {
            match (wanted.get_mut(key).and_then(Value::as_array_mut), value) {
                (Some(list), Value::Array(more)) => list.extend(more.clone()),
                _ => wanted[key] = value.clone(),
            }
        }
        assert_eq!(together["config"], wanted, "{what}");
    }
}

#[test]
fn the_mark_before_utf8_is_not_in_the_way() {
    if !has_cloud_init() {
        return;
    }
    let text = user_data_text("\u{feff}#cloud-config\nhostname: a\n".into());
    assert_eq!(reported(&[text.into()])[0]["config"], json!({"hostname": "a"}));
}

#[test]
fn ifupdown_needs_no_other_program_for_the_default_route() {
    if !has_cloud_init() {
        return;
    }
    let seed = Seed {
        interfaces: vec![SeedInterface {
            name: "eth0".into(),
            mac: "02:00:00:00:00:01".into(),
            mtu: Some(1400),
            addresses: vec!["10.1.1.3/24".into(), "fd00::3/64".into()],
            routes: vec![
                ("0.0.0.0/0".into(), "10.1.1.1".parse().unwrap()),
                ("::/0".into(), "fd00::1".parse().unwrap()),
            ],
            nameservers: vec![],
            search: vec![],
        }],
        ..seed()
    };
    let text = ask("network-config", &[file(&seed, "network-config")]);
    let has = |wanted: &str| text.lines().any(|line| line.trim() == wanted);
    assert!(has("gateway 10.1.1.1") && has("gateway fd00::1"), "{text}");
    assert!(!text.contains("route add"), "{text}");
}

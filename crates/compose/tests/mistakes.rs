//! Whoever made a mistake is told where it is and what to do.

use crate::{one, read};

/// The error of a file, as the user sees it.
fn told(text: &str) -> String {
    let error = one(text).expect_err(text);
    format!("{error}; {}", error.hint.as_deref().unwrap_or_default())
}

#[test]
fn mistakes_are_told_with_their_line_and_key() {
    for (text, parts) in [
        (
            "services:\n  web:\n    image: x\n    port: [80]\n",
            &["compose.yaml, line 4", "services.web.port", "did you mean 'ports'?"][..],
        ),
        (
            "services:\n  web:\n    image: x\n    enviroment: {}\n",
            &["'environment'"],
        ),
        (
            "services:\n  web:\n    image: x\n    memory: 1g\n",
            &["there is no key 'memory'"],
        ),
        ("service:\n  web: {image: x}\n", &["line 2", "'services'"]),
        (
            "services:\n  web: {image: x, ports: [\"80:x\"]}\n",
            &["services.web.ports[0]", "'x' is no port"],
        ),
        (
            "services:\n  web: {image: x, ports: 80}\n",
            &["a list is wanted here, and this is a number"],
        ),
        (
            "services:\n  web: {image: x, volumes: [\"data:/x\"]}\n",
            &["there is no volume 'data'", "volumes:"],
        ),
        (
            "services:\n  web: {image: x, volumes: [\"./a:/x:rx\"]}\n",
            &["no option 'rx'"],
        ),
        (
            "services:\n  web: {image: x, networks: [back]}\n",
            &["there is no network 'back'"],
        ),
        (
            "services:\n  web: {image: x, depends_on: [db]}\n",
            &["there is no service 'db'"],
        ),
        (
            "services:\n  web: {image: x, secrets: [s]}\n",
            &["there is no secret 's'"],
        ),
        (
            "services:\n  web: {image: x, restart: \"no\", depends_on: {web: {condition: x}}}\n",
            &["no condition 'x'", "service_healthy"],
        ),
        (
            "services:\n  a: {image: x, depends_on: [b]}\n  b: {image: x, depends_on: [a]}\n",
            &["a -> b -> a"],
        ),
        (
            "services:\n  web: {build: .}\n",
            &["line 2", "services.web.build", "not built here", "image:"],
        ),
        ("services:\n  web: {command: x}\n", &["it has no image"]),
        (
            "services:\n  web: {image: x, devices: [/dev/kvm]}\n",
            &["devices of this host are not passed"],
        ),
        (
            "services:\n  web: {image: x, deploy: {resources: {reservations: {devices: [{driver: nvidia}]}}}}\n",
            &["devices of this host are not passed"],
        ),
        (
            "services:\n  web: {image: x}\nvolumes: {d: {driver_opts: {type: nfs, device: \":/x\"}}}\n",
            &["volumes.d.driver_opts", "./DIR:/PATH"],
        ),
        (
            "services:\n  web: {image: x, network_mode: host}\n",
            &["'host'", "ports:"],
        ),
        (
            "services:\n  web: {image: x, tty: perhaps}\n",
            &["'perhaps' is neither true nor false"],
        ),
        (
            "services:\n  web: {image: x, scale: many}\n",
            &["'many' is no whole number"],
        ),
        (
            "services:\n  web: {image: x, mem_limit: lots}\n",
            &["'lots' is no size", "512m"],
        ),
        (
            "services:\n  web: {image: x, command: \"a 'b\"}\n",
            &["a quote is not closed"],
        ),
        (
            "services:\n  web: {image: \"x:${TAG\"}\n",
            &["services.web.image", "is no variable", "$$"],
        ),
        (
            "services:\n  web: {image: \"x:${TAG:?name a version}\"}\n",
            &["TAG is needed: name a version"],
        ),
        (
            "services:\n  web: {image: x, env_file: none.env}\n",
            &["services.web.env_file", "required: false"],
        ),
        (
            "services:\n  web: {extends: {service: base}, image: x}\n",
            &["there is no service 'base'", "line 2"],
        ),
        ("services:\n  a: {extends: b}\n  b: {extends: a}\n", &["extends itself"]),
        (
            "services:\n  web: {image: x, volumes_from: [web]}\n",
            &["do not share volumes", "share a directory"],
        ),
        (
            "services:\n  web: {image: x}\nvolumes:\n  d: {driver: nfs}\n",
            &["volumes.d.driver", "'nfs'"],
        ),
        (
            "services:\n  web: {image: x}\nnetworks:\n  n: {driver: overlay}\n",
            &["networks of the kind 'overlay'"],
        ),
        (
            "services:\n  \"a b\": {image: x}\n",
            &["'a b' cannot be the name of a service"],
        ),
        ("services: [web]\n", &["services: a mapping is wanted"]),
        ("- a\n", &["a mapping is wanted"]),
        ("", &["is empty"]),
        ("services:\n\tweb: x\n", &["line 2"]),
    ] {
        let output = told(text);
        for part in parts {
            assert!(output.contains(part), "{text}: {output}");
        }
    }
}

#[test]
fn files_that_are_not_there_are_told_as_such() {
    let error = read(&[("other.yaml", "x")], &[]).unwrap_err();
    assert!(error.is_not_found && error.hint.unwrap().contains("compose.yaml"));
    let files = [("compose.yaml", "include: [none.yaml]\nservices: {}\n")];
    let error = read(&files, &[]).unwrap_err();
    assert!(error.is_not_found && error.to_string().contains("none.yaml"), "{error}");
    let circle = [
        ("compose.yaml", "include: [b.yaml]\n"),
        ("b.yaml", "include: [compose.yaml]\n"),
    ];
    assert!(read(&circle, &[]).unwrap_err().to_string().contains("includes itself"));
}

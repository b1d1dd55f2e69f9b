//! The shapes of what goes to and fro. Tests hold them against what is really sent.

use serde_json::{Map, Value, json};

fn text() -> Value {
    json!({"type": "string"})
}

fn number() -> Value {
    json!({"type": "integer"})
}

fn flag() -> Value {
    json!({"type": "boolean"})
}

fn or_null(kind: &str) -> Value {
    json!({"type": [kind, "null"]})
}

fn list(of: &Value) -> Value {
    json!({"type": "array", "items": of})
}

fn refer(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

fn map() -> Value {
    json!({"type": "object", "additionalProperties": {"type": "string"}})
}

fn any() -> Value {
    json!({"type": "object", "additionalProperties": true})
}

/// An object of which all members are there, but for those in `optional`.
fn object(about: &str, members: Value, optional: &[&str]) -> Value {
    let required: Vec<&String> = members
        .as_object()
        .into_iter()
        .flat_map(Map::keys)
        .filter(|name| !optional.contains(&name.as_str()))
        .collect();
    json!({"type": "object", "description": about, "properties": members, "required": required})
}

/// An object that is sent to the server: what is not named is refused, what is not there is the default.
fn request(about: &str, members: Value, required: &[&str]) -> Value {
    json!({
        "type": "object", "description": about, "properties": members, "required": required, "additionalProperties": false,
    })
}

/// All of them, by name.
pub fn schemas() -> Value {
    let machine_summary = object(
        "A machine in a listing",
        json!({
            "id": text(), "name": text(), "kind": text(), "state": text(), "booting": flag(), "health": or_null("string"),
            "exit_code": or_null("integer"), "restarts": number(), "restart_at": or_null("string"), "flist": text(),
            "cpus": number(), "cpu_limit": or_null("number"), "memory_bytes": number(), "addresses": list(&text()),
            "ports": list(&text()), "command": list(&text()), "labels": map(), "networks": list(&text()),
            "volumes": list(&text()), "created_at": text(), "started_at": or_null("string"), "finished_at": or_null("string"),
        }),
        &[],
    );
    let volume = object(
        "A volume",
        json!({
            "name": text(), "state": text(), "fs": text(), "size_bytes": number(), "used_bytes": number(),
            "image": or_null("string"), "created_at": text(), "machines": {"type": ["array", "null"], "items": text()},
            "anonymous": flag(), "labels": map(), "path": text(),
        }),
        &["labels"],
    );
    let member = object(
        "A machine in a network",
        json!({
            "id": text(), "name": text(), "addresses": list(&text()), "mac": text(), "tap": text(), "attached": flag(),
            "names": list(&text()), "published": list(&text()),
        }),
        &[],
    );
    let network = object(
        "A network",
        json!({
            "name": text(), "subnet": text(), "gateway": text(), "ipv6_subnet": or_null("string"),
            "ipv6_gateway": or_null("string"), "internal": flag(), "mtu": number(), "dns": list(&text()), "bridge": text(),
            "id": text(), "created_at": text(), "labels": map(), "machines": list(&refer("NetworkMember")),
        }),
        &["created_at", "labels"],
    );
    json!({
        "OpenApi": any(),
        "Version": object("Versions", json!({"version": text(), "api": text()}), &[]),
        "Problem": object(
            "Why something failed",
            json!({
                "type": text(), "title": text(), "status": number(), "detail": text(),
                "class": {"type": "string", "enum": ["failed", "usage", "not_found", "conflict", "fetch", "unsupported", "command_not_executable", "command_not_found"]},
                "causes": list(&text()), "hint": text(), "settings": list(&text()),
                "text": {"type": "string", "description": "as the command line prints it"},
            }),
            &["hint", "settings"],
        ),
        "MachineSummary": machine_summary,
        "MachinePage": object(
            "Some machines",
            json!({
                "machines": list(&refer("MachineSummary")),
                "next": {"type": ["string", "null"], "description": "the 'after' of the next page"},
                "unreadable": list(&json!({"type": "object", "properties": {"id": text(), "detail": text()}})),
            }),
            &[],
        ),
        "Machine": {
            "type": "object",
            "description": "Everything about a machine, as 'zmachine inspect' shows it",
            "properties": {
                "id": text(), "name": text(), "kind": text(), "directory": text(), "log": text(), "block_cache": or_null("string"),
                "sandbox": map(), "state": any(), "spec": refer("MachineSpec"), "plan": refer("Plan"),
            },
            "required": ["id", "name", "kind", "state", "spec", "plan"],
        },
        "MachineSpec": {
            "type": "object",
            "description": "A machine as it is wanted: the members of 'spec' that 'zmachine inspect' shows; what is not there is the default",
            "properties": {
                "flist": {"type": "string", "description": "the image: a name, or the path or URL of a flist"},
                "name": text(), "cpus": number(), "memory_bytes": number(), "command": list(&text()), "entrypoint": list(&text()),
                "env": list(&list(&text())), "workdir": text(), "labels": map(), "auto_remove": flag(), "restart": {},
                "networks": list(&any()), "publish": list(&any()), "volumes": list(&any()),
            },
            "required": ["flist"],
            "additionalProperties": true,
        },
        "Plan": any(),
        "Change": request(
            "What of a machine is to be something else",
            json!({
                "name": text(), "restart": {}, "labels": map(), "labels_removed": list(&text()), "cpus": any(), "cpuset": text(),
                "memory_bytes": number(), "idle_timeout_ms": number(),
            }),
            &[],
        ),
        "Exit": object("How a machine ended", json!({"exit": {}, "code": or_null("integer")}), &[]),
        "Why": object(
            "What is known of the starts of a machine",
            json!({
                "id": text(), "name": text(), "removed_at": or_null("string"), "state": {},
                "attempts": list(&any()),
            }),
            &[],
        ),
        "Sample": any(),
        "Samples": object(
            "What machines use that run",
            json!({"machines": list(&object("A machine", json!({"id": text(), "name": text(), "sample": refer("Sample")}), &[]))}),
            &[],
        ),
        "Processes": object("Processes of a machine", json!({"processes": list(&any())}), &[]),
        "Changes": object(
            "What a machine has other than its image",
            json!({"changes": list(&object(
                "A path",
                json!({"path": text(), "change": {"type": "string", "enum": ["added", "changed", "deleted"]}}),
                &[],
            ))}),
            &[],
        ),
        "NewImage": request(
            "What an image is made with",
            json!({
                "name": {"type": "string", "description": "it has a digest alone when it is not given"}, "author": text(), "message": text(),
                "changes": {"type": "array", "items": text(), "description": "instructions of a Dockerfile that say how it is run: 'CMD [\"/server\"]', 'ENV A=1'"},
                "pause": {"type": "boolean", "description": "its processes stand still while what they wrote is read; they do when it is not given"},
            }),
            &[],
        ),
        "CommittedImage": object(
            "An image that was made",
            json!({"name": or_null("string"), "digest": text(), "warnings": list(&text())}),
            &[],
        ),
        "NewName": request("The name of something new", json!({"name": text()}), &["name"]),
        "NewSnapshot": request(
            "A wanted snapshot",
            json!({
                "name": {"type": "string", "description": "NAME or NAME@TAG"},
                "keep": {"type": "string", "description": "older ones without a tag of the caller's go, but the newest of each of so many hours, days, weeks, months, years: 24h,7d,4w"},
            }),
            &["name"],
        ),
        "NewMachineSnapshot": request(
            "A wanted snapshot of a machine",
            json!({
                "name": {"type": "string", "description": "NAME or NAME@TAG"},
                "disk_only": {"type": "boolean", "description": "its disk and its volumes without its memory, whether it runs or not"},
                "keep": {"type": "string", "description": "older ones of the same kind without a tag of the caller's go, but the newest of each of so many hours, days, weeks, months, years: 24h,7d,4w"},
            }),
            &["name"],
        ),
        "NewSize": request("A wanted size", json!({"size_bytes": number()}), &["size_bytes"]),
        "Pruned": object(
            "What is gone",
            json!({"removed": list(&text()), "bytes": number(), "failures": list(&text())}),
            &[],
        ),
        "PrunedImages": object("What is gone", json!({"images": number(), "blocks": number(), "bytes": number()}), &[]),
        "Snapshot": object(
            "A machine as it was",
            json!({
                "name": text(), "machine": text(), "machine_id": text(), "tag": text(), "created_at": text(), "image": text(),
                "kind": {"type": "string", "enum": ["machine", "disks"]}, "volumes": list(&text()),
                "memory_bytes": number(), "used_bytes": number(), "paused_us": number(), "hypervisor": or_null("string"), "path": text(),
            }),
            &[],
        ),
        "Snapshots": object("Snapshots", json!({"snapshots": list(&refer("Snapshot")), "unreadable": list(&text())}), &[]),
        "VolumeSnapshot": object(
            "A volume as it was",
            json!({
                "name": text(), "volume": text(), "tag": text(), "created_at": text(), "size_bytes": number(), "used_bytes": number(),
                "state": text(), "path": text(),
            }),
            &[],
        ),
        "VolumeSnapshots": object("Snapshots of volumes", json!({"snapshots": list(&refer("VolumeSnapshot")), "unreadable": list(&text())}), &[]),
        "NewFork": request(
            "Wanted machines",
            json!({
                "source": {"type": "string", "description": "MACHINE@TAG; without a tag, the machine as it is now"},
                "name": {"type": "string", "description": "of several, what is before '-1', '-2' ..."},
                "number": {"type": "integer", "minimum": 1, "maximum": 1000, "description": "how many; 1 when it is not given"},
                "env": {"type": "array", "items": text(), "description": "NAME=VALUE, for what is started in them from now on"},
            }),
            &["source"],
        ),
        "Forked": object(
            "Machines that were made",
            json!({"machines": list(&text()), "failed": {"type": ["string", "null"], "description": "why there are not as many as were wanted"}}),
            &[],
        ),
        "Exec": object(
            "A command in a machine",
            json!({
                "id": text(), "command": list(&text()), "pid": number(), "started_at": text(), "ended_at": or_null("string"),
                "code": or_null("integer"),
            }),
            &[],
        ),
        "Execs": object("Commands in a machine", json!({"execs": list(&refer("Exec"))}), &[]),
        "Image": any(),
        "History": object(
            "How an image was made",
            json!({"steps": list(&object(
                "A step",
                json!({"created": text(), "created_by": text(), "size_bytes": or_null("integer"), "comment": text()}),
                &[],
            ))}),
            &[],
        ),
        "Push": request(
            "Where an image goes",
            json!({"target": {"type": "string", "description": "HOST[:PORT]/NAME[:TAG]; its own name when it is not given"}}),
            &[],
        ),
        "LoadedImages": object(
            "Images of an archive",
            json!({"images": list(&object("An image", json!({"name": or_null("string"), "digest": text()}), &[]))}),
            &[],
        ),
        "Projects": object(
            "Compose projects",
            json!({"projects": list(&object(
                "A project",
                json!({
                    "name": text(), "files": text(),
                    "states": {"type": "object", "additionalProperties": number(), "description": "how many of its machines are in which state"},
                }),
                &[],
            ))}),
            &[],
        ),
        "ProjectAction": request(
            "What is to be done with a project",
            json!({
                "action": {"type": "string", "enum": ["up", "down", "start", "stop", "restart", "kill", "pause", "unpause", "rm", "pull"]},
                "config": {"type": "object", "additionalProperties": true, "description": "the compose file, whole: 'up' and 'pull' need it. Variables in it are not replaced, and paths are those of the server's host"},
                "secrets": {"type": "object", "additionalProperties": {"type": "string"}, "description": "the contents of secrets that the document names, up to 64 KiB each"},
                "services": {"type": "array", "items": text(), "description": "these alone, for all actions but 'down'"},
                "timeout": {"type": "integer", "minimum": 0, "description": "seconds between the stop signal and SIGKILL: up, down, stop, restart"},
                "signal": {"type": "string", "description": "kill"},
                "scale": {"type": "object", "additionalProperties": {"type": "integer", "minimum": 0, "maximum": 4_294_967_295_u32}, "description": "how many machines a service has: up"},
                "pull": {"type": "string", "enum": ["missing", "always", "never", "newer"], "description": "up"},
                "wait": {"type": "boolean", "description": "until all run and are healthy: up"},
                "wait_timeout": {"type": "integer", "minimum": 0, "description": "seconds, with wait: up"},
                "force_recreate": {"type": "boolean", "description": "up"}, "no_recreate": {"type": "boolean", "description": "up"},
                "no_deps": {"type": "boolean", "description": "up"}, "no_start": {"type": "boolean", "description": "up"},
                "remove_orphans": {"type": "boolean", "description": "up, down"},
                "volumes": {"type": "boolean", "description": "with the project's volumes and all their data: down"},
                "stop": {"type": "boolean", "description": "also those that run: rm"},
            }),
            &["action"],
        ),
        "Usage": object(
            "What everything takes on this host",
            json!({
                "usage": list(&object(
                    "Things of a kind",
                    json!({"kind": text(), "total": number(), "active": number(), "bytes": number(), "reclaimable_bytes": number()}),
                    &[],
                )),
                "unreadable": list(&text()),
            }),
            &[],
        ),
        "NewKernel": request("A wanted kernel", json!({"name": {"type": "string", "description": "its own when it is not given"}}), &[]),
        "Joining": request(
            "A machine that joins a network",
            json!({"machine": text(), "ipv4": text(), "ipv6": text(), "aliases": list(&text())}),
            &["machine"],
        ),
        "Leaving": request("A machine that leaves a network", json!({"machine": text()}), &["machine"]),
        "Images": object("Images", json!({"images": list(&any()), "unreadable": list(&text())}), &[]),
        "RemovedImage": object(
            "What became of an image",
            json!({"names": list(&text()), "removed": flag(), "machines": list(&text())}),
            &[],
        ),
        "PulledImage": object("An image that is here", json!({"name": text(), "digest": text()}), &[]),
        "ImagePull": request(
            "A wanted image",
            json!({
                "image": {"type": "string", "description": "as for 'zmachine image pull': a name in a registry, docker://..., or the path or URL of a flist"},
                "name": {"type": "string", "description": "what it is called here; its own name when it is not given"},
                "pull": {"type": "string", "enum": ["missing", "always", "newer"], "description": "'always' when it is not given"},
            }),
            &["image"],
        ),
        "Command": request(
            "A command",
            json!({
                "command": list(&text()), "env": map(), "workdir": text(), "user": text(),
                "stdin": {"type": "string", "description": "its whole input"},
            }),
            &["command"],
        ),
        "Output": object(
            "How a command ended",
            json!({"code": number(), "stdout": text(), "stderr": text(), "truncated": flag()}),
            &[],
        ),
        "Kernels": object("Guest kernels", json!({"kernels": list(&refer("Kernel")), "unreadable": list(&text())}), &[]),
        "Kernel": object("A guest kernel", json!({"name": text(), "release": text(), "source": text(), "default": flag()}), &[]),
        "Reservation": any(),
        "Deployed": any(),
        "Explanation": object(
            "A reservation, field by field",
            json!({
                "fields": list(&object("A field", json!({"field": text(), "value": text(), "effect": text()}), &[])),
                "refused": {"type": ["string", "null"], "description": "why this host cannot do it"},
            }),
            &[],
        ),
        "Checks": object(
            "What this host offers",
            json!({"works": {"type": "boolean", "description": "nothing is missing that every machine needs"}, "checks": list(&refer("Check"))}),
            &[],
        ),
        "Check": object(
            "One requirement",
            json!({"requirement": text(), "met": flag(), "required": flag(), "found": text(), "lost": text(), "mend": text()}),
            &[],
        ),
        "Volume": volume,
        "Volumes": object("Volumes", json!({"volumes": list(&refer("Volume")), "unreadable": list(&text())}), &[]),
        "NewVolume": request(
            "A wanted volume",
            json!({"name": text(), "size_bytes": number(), "fs": {"type": "string", "enum": ["ext4", "btrfs", "xfs", "none"]}, "labels": map()}),
            &["name"],
        ),
        "NetworkMember": member,
        "Network": network,
        "Networks": object("Networks", json!({"networks": list(&refer("Network"))}), &[]),
        "NewNetwork": request(
            "A wanted network",
            json!({
                "name": text(), "subnet": text(), "ipv6_subnet": {"type": "string", "description": "a subnet, or 'none'"},
                "internal": flag(), "mtu": number(), "dns": list(&text()), "labels": map(),
            }),
            &["name"],
        ),
    })
}

/// Members that a document has and its schema does not, and those it must have and has not.
///
/// # Errors
/// Their names.
pub fn check(name: &str, document: &Value) -> Result<(), String> {
    let schemas = schemas();
    let schema = schemas.get(name).ok_or_else(|| format!("there is no schema {name}"))?;
    let known = schema["properties"].as_object().cloned().unwrap_or_default();
    let found = document.as_object().ok_or_else(|| format!("{name}: no object"))?;
    if let Some(unknown) = found.keys().find(|member| !known.contains_key(*member)) {
        return Err(format!("{name} has '{unknown}', which its schema does not name"));
    }
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    let missing = required
        .iter()
        .filter_map(Value::as_str)
        .find(|member| !found.contains_key(*member));
    missing.map_or(Ok(()), |missing| Err(format!("{name} lacks '{missing}'")))
}

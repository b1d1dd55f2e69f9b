//! `snapshot`, `restore` and `fork`.

use serde_json::json;
use zmachine_spec::{Class, Failure};

use super::files::{from_file, to_file};
use super::{output, resources};
use crate::connection::{Ask, Server, part};
use crate::words::{Fork, Snapshot, VolumeSnapshot};

fn path(name: &str) -> String {
    format!("/v1/snapshots/{}", part(name))
}

pub(super) async fn snapshot(server: &Server, command: Snapshot) -> Result<(), Failure> {
    match command {
        Snapshot::Create { name, disk_only, keep } => {
            let mut body = json!({"name": name, "disk_only": disk_only});
            if let Some(keep) = keep {
                body["keep"] = json!(keep);
            }
            let ask = Ask::new("POST", "/v1/snapshots").sending(body);
            output::line(&output::text(&server.ask(&ask).await?["name"]))
        }
        Snapshot::Ls(listing) => {
            let snapshots = resources::listed(server, "snapshots").await?;
            resources::print(
                &listing,
                &snapshots,
                resources::named,
                &["NAME", "CREATED", "KIND", "MEMORY", "VOLUMES", "USED", "IMAGE"],
                |snapshot| {
                    vec![
                        resources::named(snapshot),
                        output::text(&snapshot["created_at"]),
                        output::text(&snapshot["kind"]),
                        output::bytes(&snapshot["memory_bytes"]),
                        snapshot["volumes"].as_array().map_or(0, Vec::len).to_string(),
                        output::bytes(&snapshot["used_bytes"]),
                        output::text(&snapshot["image"]).chars().take(12).collect(),
                    ]
                },
            )
        }
        Snapshot::Inspect(args) => resources::inspect(server, "snapshots", &args.names).await,
        Snapshot::Export(args) => {
            let ask = Ask::new("GET", format!("{}/archive", path(&args.name)));
            to_file(server, &ask, args.file.as_deref()).await
        }
        Snapshot::Import { file, name } => {
            let mut ask = Ask::new("POST", "/v1/snapshot-archive");
            ask.query.extend(name.map(|name| ("name", name)));
            output::line(&output::text(&from_file(server, &ask, file.as_deref()).await?["name"]))
        }
        Snapshot::Rm(args) => resources::remove(server, "snapshots", &args.names).await,
    }
}

pub(super) async fn restore(server: &Server, name: &str) -> Result<(), Failure> {
    server
        .ask(&Ask::new("POST", format!("{}/restore", path(name))))
        .await
        .map(drop)
}

pub(super) async fn fork(server: &Server, args: &Fork) -> Result<(), Failure> {
    let mut body = json!({"source": args.source, "number": args.number, "env": args.env});
    if let Some(name) = &args.name {
        body["name"] = json!(name);
    }
    let made = server.ask(&Ask::new("POST", "/v1/forks").sending(body)).await?;
    for name in output::items(&made, "machines") {
        output::line(&output::text(name))?;
    }
    match made["failed"].as_str() {
        Some(why) => Err(Failure::new(Class::Failed, why)),
        None => Ok(()),
    }
}

pub(super) async fn of_volumes(server: &Server, command: VolumeSnapshot) -> Result<(), Failure> {
    match command {
        VolumeSnapshot::Create { name, keep } => {
            let mut body = json!({"name": name});
            if let Some(keep) = keep {
                body["keep"] = json!(keep);
            }
            let ask = Ask::new("POST", "/v1/volume-snapshots").sending(body);
            output::line(&output::text(&server.ask(&ask).await?["name"]))
        }
        VolumeSnapshot::Ls(listing) => {
            let listed = server.ask(&Ask::new("GET", "/v1/volume-snapshots")).await?;
            resources::print(
                &listing,
                output::items(&listed, "snapshots"),
                resources::named,
                &["NAME", "CREATED", "STATE", "SIZE", "USED"],
                |snapshot| {
                    vec![
                        resources::named(snapshot),
                        output::text(&snapshot["created_at"]),
                        output::text(&snapshot["state"]),
                        output::bytes(&snapshot["size_bytes"]),
                        output::bytes(&snapshot["used_bytes"]),
                    ]
                },
            )
        }
        VolumeSnapshot::Rm(args) => resources::remove(server, "volume-snapshots", &args.names).await,
    }
}

//! Images, volumes, networks, kernels, and the host's fitness.

use serde_json::{Value, json};
use zmachine_spec::Failure;

use super::{all, labels, output};
use crate::connection::{Ask, Server, part};
use crate::words::{Format, Listing, Pull};

/// Prints a listing: names alone, a document, or a table.
fn print(
    listing: &Listing,
    items: &[Value],
    name: impl Fn(&Value) -> String,
    head: &[&str],
    cells: impl Fn(&Value) -> Vec<String>,
) -> Result<(), Failure> {
    if listing.quiet {
        return items.iter().try_for_each(|item| output::line(&name(item)));
    }
    match listing.output {
        Format::Json => output::json(&Value::from(items.to_vec())),
        Format::Table => output::table(head, &items.iter().map(cells).collect::<Vec<_>>()),
    }
}

async fn listed(server: &Server, what: &str) -> Result<Vec<Value>, Failure> {
    let document = server.ask(&Ask::new("GET", format!("/v1/{what}"))).await?;
    for unreadable in output::items(&document, "unreadable") {
        eprintln!("warning: {}", output::text(unreadable));
    }
    Ok(output::items(&document, what).to_vec())
}

fn named(item: &Value) -> String {
    output::text(&item["name"])
}

pub(super) async fn images(server: &Server, listing: &Listing) -> Result<(), Failure> {
    let images = listed(server, "images").await?;
    let first = |image: &Value| match output::items(image, "names").first() {
        Some(name) => output::text(name),
        None => output::text(&image["digest"]),
    };
    print(
        listing,
        &images,
        first,
        &["NAMES", "KIND", "FILES", "DIGEST"],
        |image| {
            let digest: String = output::text(&image["digest"]).chars().take(19).collect();
            vec![
                output::text(&image["names"]),
                output::text(&image["kind"]),
                output::bytes(&image["files_bytes"]),
                digest,
            ]
        },
    )
}

pub(super) async fn pull(server: &Server, args: &Pull) -> Result<(), Failure> {
    let mut body = json!({"image": args.image});
    if let Some(name) = &args.name {
        body["name"] = json!(name);
    }
    let pulled = server.ask(&Ask::new("POST", "/v1/images").sending(body)).await?;
    output::line(&named(&pulled))
}

pub(super) async fn volumes(server: &Server, listing: &Listing) -> Result<(), Failure> {
    let volumes = listed(server, "volumes").await?;
    print(
        listing,
        &volumes,
        named,
        &["NAME", "STATE", "FS", "SIZE", "USED", "MACHINES"],
        |volume| {
            vec![
                named(volume),
                output::text(&volume["state"]),
                output::text(&volume["fs"]),
                output::bytes(&volume["size_bytes"]),
                output::bytes(&volume["used_bytes"]),
                output::text(&volume["machines"]),
            ]
        },
    )
}

pub(super) async fn create_volume(
    server: &Server,
    name: &str,
    size: Option<u64>,
    fs: Option<String>,
    wanted: &[String],
) -> Result<(), Failure> {
    let mut body = json!({"name": name, "labels": labels(wanted)});
    if let Some(size) = size {
        body["size_bytes"] = json!(size);
    }
    if let Some(fs) = fs {
        body["fs"] = json!(fs);
    }
    let made = server.ask(&Ask::new("POST", "/v1/volumes").sending(body)).await?;
    output::line(&named(&made))
}

pub(super) async fn networks(server: &Server, listing: &Listing) -> Result<(), Failure> {
    let networks = listed(server, "networks").await?;
    print(
        listing,
        &networks,
        named,
        &["NAME", "SUBNET", "IPV6", "INTERNAL", "MACHINES"],
        |network| {
            vec![
                named(network),
                output::text(&network["subnet"]),
                output::text(&network["ipv6_subnet"]),
                output::text(&network["internal"]),
                output::items(network, "machines")
                    .iter()
                    .map(named)
                    .collect::<Vec<_>>()
                    .join(","),
            ]
        },
    )
}

pub(super) async fn create_network(
    server: &Server,
    name: &str,
    subnet: Option<String>,
    internal: bool,
    wanted: &[String],
) -> Result<(), Failure> {
    let mut body = json!({"name": name, "internal": internal, "labels": labels(wanted)});
    if let Some(subnet) = subnet {
        body["subnet"] = json!(subnet);
    }
    let made = server.ask(&Ask::new("POST", "/v1/networks").sending(body)).await?;
    output::line(&named(&made))
}

pub(super) async fn inspect(server: &Server, what: &str, names: &[String]) -> Result<(), Failure> {
    let mut found = Vec::new();
    for name in names {
        found.push(
            server
                .ask(&Ask::new("GET", format!("/v1/{what}/{}", part(name))))
                .await?,
        );
    }
    output::json(&found.into())
}

pub(super) async fn remove(server: &Server, what: &str, names: &[String]) -> Result<(), Failure> {
    all(names, async |name| {
        server
            .ask(&Ask::new("DELETE", format!("/v1/{what}/{}", part(name))))
            .await?;
        output::line(name)
    })
    .await
}

pub(super) async fn kernels(server: &Server, listing: &Listing) -> Result<(), Failure> {
    let kernels = listed(server, "kernels").await?;
    print(
        listing,
        &kernels,
        named,
        &["NAME", "RELEASE", "DEFAULT", "SOURCE"],
        |kernel| {
            let default = if kernel["default"] == true { "yes" } else { "" };
            vec![
                named(kernel),
                output::text(&kernel["release"]),
                default.to_owned(),
                output::text(&kernel["source"]),
            ]
        },
    )
}

pub(super) async fn doctor(server: &Server, listing: &Listing) -> Result<u8, Failure> {
    let told = server.ask(&Ask::new("GET", "/v1/doctor")).await?;
    let head = ["REQUIREMENT", "STATE", "FOUND, OR WHAT IS LOST -- HOW TO MEND IT"];
    print(
        listing,
        output::items(&told, "checks"),
        |check| output::text(&check["requirement"]),
        &head,
        |check| {
            let is_met = check["met"] == true;
            let mark = match (is_met, check["required"] == true) {
                (true, _) => "ok",
                (false, true) => "MISSING",
                (false, false) => "without",
            };
            let detail = match is_met {
                true => output::text(&check["found"]),
                false => format!("{} -- {}", output::text(&check["lost"]), output::text(&check["mend"])),
            };
            vec![output::text(&check["requirement"]), mark.to_owned(), detail]
        },
    )?;
    Ok(if told["works"] == true { 0 } else { 6 })
}

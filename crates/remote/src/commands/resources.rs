//! Volumes, networks, kernels, and the host's fitness.

use serde_json::{Value, json};
use zmachine_spec::{Class, Failure};

use super::{all, labels, output, snapshots, space};
use crate::connection::{Ask, Server, part};
use crate::words::{Deploy, Format, Kernel, Listing, Network, Volume};

/// Prints a listing: names alone, a document, or a table.
pub(super) fn print(
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

pub(super) async fn listed(server: &Server, what: &str) -> Result<Vec<Value>, Failure> {
    let document = server.ask(&Ask::new("GET", format!("/v1/{what}"))).await?;
    for unreadable in output::items(&document, "unreadable") {
        eprintln!("warning: {}", output::text(unreadable));
    }
    Ok(output::items(&document, what).to_vec())
}

pub(super) fn named(item: &Value) -> String {
    output::text(&item["name"])
}

pub(super) async fn volume(server: &Server, command: Volume) -> Result<(), Failure> {
    match command {
        Volume::Ls(listing) => volumes(server, &listing).await,
        Volume::Create { name, size, fs, label } => create_volume(server, &name, size, fs, &label).await,
        Volume::Inspect(args) => inspect(server, "volumes", &args.names).await,
        Volume::Grow { name, size } => {
            let ask =
                Ask::new("POST", format!("/v1/volumes/{}/grow", part(&name))).sending(json!({"size_bytes": size}));
            let grown = server.ask(&ask).await?;
            output::line(&format!("{name} {}", output::bytes(&grown["size_bytes"])))
        }
        Volume::Prune { all, force } => {
            let which = if all {
                "all volumes"
            } else {
                "all volumes without a name"
            };
            let question = format!("This removes {which} that no machine uses, with their data, on the other host.");
            match output::confirm(&question, force)? {
                true => space::prune(server, "volumes", all).await,
                false => Ok(()),
            }
        }
        Volume::Snapshot(command) => snapshots::of_volumes(server, command).await,
        Volume::Restore { name } => {
            let path = format!("/v1/volume-snapshots/{}/restore", part(&name));
            let restored = server.ask(&Ask::new("POST", path)).await?;
            output::line(&named(&restored))
        }
        Volume::Clone { source, new } => {
            let path = format!("/v1/volumes/{}/copy", part(&source));
            let made = server
                .ask(&Ask::new("POST", path).sending(json!({"name": new})))
                .await?;
            output::line(&named(&made))
        }
        Volume::Rm(args) => remove(server, "volumes", &args.names).await,
    }
}

async fn volumes(server: &Server, listing: &Listing) -> Result<(), Failure> {
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

async fn create_volume(
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

pub(super) async fn network(server: &Server, command: Network) -> Result<(), Failure> {
    let path = |network: &str, action: &str| format!("/v1/networks/{}/{action}", part(network));
    match command {
        Network::Ls(listing) => networks(server, &listing).await,
        Network::Create {
            name,
            subnet,
            internal,
            label,
        } => create_network(server, &name, subnet, internal, &label).await,
        Network::Inspect(args) => inspect(server, "networks", &args.names).await,
        Network::Connect {
            ip,
            alias,
            network,
            machine,
        } => {
            let mut body = json!({"machine": machine, "aliases": alias});
            for ip in ip {
                let family = if ip.is_ipv4() { "ipv4" } else { "ipv6" };
                if body.get(family).is_some() {
                    let message = format!("--ip {ip}: it is the second address of its family");
                    return Err(Failure::new(Class::Usage, message).hint("give one for IPv4 and one for IPv6"));
                }
                body[family] = json!(ip);
            }
            server
                .ask(&Ask::new("POST", path(&network, "connect")).sending(body))
                .await
                .map(drop)
        }
        Network::Disconnect { network, machine } => {
            let ask = Ask::new("POST", path(&network, "disconnect")).sending(json!({"machine": machine}));
            server.ask(&ask).await.map(drop)
        }
        Network::Prune { force } => {
            match output::confirm(
                "This removes all networks of the other host that no machine is in.",
                force,
            )? {
                true => space::prune(server, "networks", false).await,
                false => Ok(()),
            }
        }
        Network::Rm(args) => remove(server, "networks", &args.names).await,
    }
}

async fn networks(server: &Server, listing: &Listing) -> Result<(), Failure> {
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

async fn create_network(
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

pub(super) async fn kernel(server: &Server, command: Kernel) -> Result<(), Failure> {
    match command {
        Kernel::Ls(listing) => kernels(server, &listing).await,
        Kernel::Install { name } => {
            let body = name.map_or_else(|| json!({}), |name| json!({"name": name}));
            let made = server.ask(&Ask::new("POST", "/v1/kernels").sending(body)).await?;
            output::line(&named(&made))
        }
        Kernel::Default { name } => {
            let ask = Ask::new("POST", format!("/v1/kernels/{}/default", part(&name)));
            server.ask(&ask).await.map(drop)
        }
        Kernel::Rm { force, names } => {
            all(&names.names, async |name| {
                let mut ask = Ask::new("DELETE", format!("/v1/kernels/{}", part(name)));
                if force {
                    ask = ask.with("force", "1");
                }
                server.ask(&ask).await?;
                output::line(name)
            })
            .await
        }
    }
}

/// Explains a reservation, or has its machine created and started.
pub(super) async fn deploy(server: &Server, args: &Deploy) -> Result<(), Failure> {
    let text = match args.file.as_os_str() == "-" {
        true => std::io::read_to_string(std::io::stdin())?,
        false => std::fs::read_to_string(&args.file).map_err(|e| {
            Failure::from_error(Class::NotFound, &e).context(format!("cannot read {}", args.file.display()))
        })?,
    };
    let reservation: Value = serde_json::from_str(&text)
        .map_err(|e| Failure::from_error(Class::Usage, &e).context("the reservation is no JSON"))?;
    if !args.explain {
        let mut ask = Ask::new("POST", "/v1/reservations").sending(reservation);
        ask.query.extend(args.name.clone().map(|name| ("name", name)));
        return output::json(&server.ask(&ask).await?);
    }
    let told = server
        .ask(&Ask::new("POST", "/v1/reservations/explain").sending(reservation))
        .await?;
    let cells = |field: &Value| {
        ["field", "value", "effect"]
            .map(|name| output::text(&field[name]))
            .to_vec()
    };
    let rows: Vec<_> = output::items(&told, "fields").iter().map(cells).collect();
    output::table(&["FIELD", "VALUE", "EFFECT"], &rows)?;
    match told["refused"].as_str() {
        Some(why) => Err(Failure::new(Class::Unsupported, why)),
        None => Ok(()),
    }
}

async fn kernels(server: &Server, listing: &Listing) -> Result<(), Failure> {
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

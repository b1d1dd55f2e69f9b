//! `zmachine network`.

use std::net::IpAddr;

use ipnet::{Ipv4Net, Ipv6Net};
use serde::Serialize;
use zmachine_engine::Engine;
use zmachine_network::{Ipv6Choice, Network, NetworkError, NetworkSpec, Networks, can_make_networks};
use zmachine_spec::{Class, Failure, NetworkRequest, check_alias};

use crate::args::{Format, NetworkCommand};
use crate::commands::machines::each;
use crate::{context, output};

#[derive(Serialize)]
struct Row {
    name: String,
    subnet: String,
    gateway: String,
    ipv6_subnet: Option<String>,
    ipv6_gateway: Option<String>,
    internal: bool,
    mtu: u32,
    /// Name servers of its own; empty means this host's.
    dns: Vec<IpAddr>,
    /// Its bridge, and its tables of nftables.
    bridge: String,
    machines: Vec<Member>,
}

/// A machine that has an address in the network.
#[derive(Serialize)]
struct Member {
    id: String,
    name: String,
    addresses: Vec<IpAddr>,
    mac: String,
    tap: String,
    /// It runs, and is attached now.
    attached: bool,
    /// Names under which the others find it now.
    names: Vec<String>,
    published: Vec<String>,
}

/// Makes, lists, shows and removes networks.
pub(crate) fn network(command: NetworkCommand) -> Result<u8, Failure> {
    let engine = context::engine()?;
    let networks = Networks::open(context::home()?.data())?.with_jail();
    match command {
        NetworkCommand::Create {
            name,
            subnet,
            ipv6,
            internal,
            mtu,
            dns,
        } => {
            // It would be made, and no machine could ever join it.
            if !can_make_networks() {
                let action = format!("the network '{name}'");
                return Err(NetworkError::NeedsRoot { action }.into());
            }
            let spec = NetworkSpec {
                name,
                ipv4: subnet.as_deref().map(ipv4_subnet).transpose()?,
                ipv6: ipv6.as_deref().map_or(Ok(Ipv6Choice::Derived), ipv6_subnet)?,
                internal,
                mtu,
                dns,
            };
            let made = block_on(networks.create(&spec))??;
            output::print(&format!("{}\n", made.name()))?;
            Ok(0)
        }
        NetworkCommand::Ls { quiet, output } => list(&engine, &networks, quiet, output),
        NetworkCommand::Inspect { names } => {
            let rows = names.iter().map(|name| row(&engine, &networks, &networks.get(name)?));
            output::json(&rows.collect::<Result<Vec<_>, Failure>>()?)?;
            Ok(0)
        }
        NetworkCommand::Connect {
            ip,
            alias,
            network,
            machine,
        } => {
            engine.connect_network(&machine, &request(network, &ip, &alias)?)?;
            Ok(0)
        }
        NetworkCommand::Disconnect { network, machine } => {
            engine.disconnect_network(&machine, &network)?;
            Ok(0)
        }
        NetworkCommand::Rm { names } => each(&names, |name| {
            // Sweeps addresses of machines that are gone.
            engine.reconcile()?;
            block_on(networks.remove(name))?.map_err(|error| engine.with_names(error.into()))
        }),
    }
}

/// What `connect` asks for.
fn request(network: String, ip: &[IpAddr], aliases: &[String]) -> Result<NetworkRequest, Failure> {
    let mut request = NetworkRequest::new(network);
    for ip in ip {
        let twice = match *ip {
            IpAddr::V4(address) => request.ipv4.replace(address).is_some(),
            IpAddr::V6(address) => request.ipv6.replace(address).is_some(),
        };
        if twice {
            let message = format!("--ip {ip}: it is the second address of its family");
            return Err(Failure::new(Class::Usage, message).hint("give one for IPv4 and one for IPv6"));
        }
    }
    let alias = |alias: &String| {
        check_alias(alias).map_err(|what| {
            Failure::new(Class::Usage, format!("--alias: {what}"))
                .hint("use letters, digits, '-', '_' and '.', at most 63 characters")
        })
    };
    request.aliases = aliases.iter().map(alias).collect::<Result<_, _>>()?;
    Ok(request)
}

fn block_on<T>(future: impl Future<Output = T>) -> Result<T, Failure> {
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(future))
}

fn ipv4_subnet(text: &str) -> Result<Ipv4Net, Failure> {
    text.parse().map_err(|_| {
        Failure::new(Class::Usage, format!("--subnet {text}: not an IPv4 subnet"))
            .hint("write it as 10.20.30.0/24; an IPv6 subnet is given with --ipv6")
    })
}

fn ipv6_subnet(text: &str) -> Result<Ipv6Choice, Failure> {
    if text == "none" {
        return Ok(Ipv6Choice::Without);
    }
    text.parse::<Ipv6Net>().map(Ipv6Choice::Subnet).map_err(|_| {
        Failure::new(Class::Usage, format!("--ipv6 {text}: not an IPv6 subnet"))
            .hint("write it as fd12:3456:789a:1::/64, or 'none'")
    })
}

fn list(engine: &Engine, networks: &Networks, quiet: bool, format: Format) -> Result<u8, Failure> {
    let mut rows = Vec::new();
    for network in networks.list()? {
        rows.push(row(engine, networks, &network)?);
    }
    if quiet {
        rows.iter()
            .try_for_each(|row| output::print(&format!("{}\n", row.name)))?;
    } else if format == Format::Json {
        output::json(&rows)?;
    } else {
        let cells = |row: &Row| {
            let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
            let attached = row.machines.iter().filter(|m| m.attached).count();
            vec![
                row.name.clone(),
                row.subnet.clone(),
                or_dash(&row.ipv6_subnet),
                if row.internal { "yes" } else { "no" }.to_owned(),
                row.mtu.to_string(),
                format!("{attached} of {}", row.machines.len()),
            ]
        };
        output::table(
            &["NAME", "SUBNET", "IPV6", "INTERNAL", "MTU", "ATTACHED"],
            &rows.iter().map(cells).collect::<Vec<_>>(),
        )?;
    }
    Ok(0)
}

fn row(engine: &Engine, networks: &Networks, network: &Network) -> Result<Row, Failure> {
    let endpoints = networks.endpoints(network.name())?;
    let known: Vec<_> = engine.machines()?.into_iter().flatten().collect();
    let mut machines: Vec<Member> = Vec::new();
    for (address, id) in networks.leases(network.name())? {
        if let Some(member) = machines.iter_mut().find(|m| m.id == id) {
            member.addresses.push(address);
            continue;
        }
        let endpoint = endpoints.iter().find(|s| s.machine == id);
        let name = known.iter().find(|m| m.id == id).map_or(&id, |m| &m.spec.name);
        machines.push(Member {
            name: name.clone(),
            addresses: vec![address],
            mac: network.mac(&id).to_string(),
            tap: network.tap(&id),
            attached: endpoint.is_some(),
            names: endpoint.map(|s| s.membership.names.clone()).unwrap_or_default(),
            published: endpoint.map_or_else(Vec::new, |s| s.ports.iter().map(ToString::to_string).collect()),
            id,
        });
    }
    Ok(Row {
        name: network.name().to_owned(),
        subnet: network.ipv4().to_string(),
        gateway: network.gateway4().to_string(),
        ipv6_subnet: network.ipv6().map(|net| net.to_string()),
        ipv6_gateway: network.gateway6().map(|gateway| gateway.to_string()),
        internal: network.is_internal(),
        mtu: network.mtu(),
        dns: network.dns().to_vec(),
        bridge: network.bridge().to_owned(),
        machines,
    })
}

//! `zmachine network`.

use std::net::IpAddr;

use ipnet::{Ipv4Net, Ipv6Net};
use zmachine_engine::Engine;
use zmachine_engine::views::NetworkView;
use zmachine_network::{DEFAULT_NETWORK, Ipv6Choice, NetworkSpec};
use zmachine_spec::{Class, Failure, NetworkRequest, check_alias};

use crate::args::NetworkCommand;
use crate::commands::machines::each;
use crate::listing::{self, ListingArgs, Row};
use crate::{context, output};

/// Makes, lists, shows and removes networks.
pub(crate) fn network(command: NetworkCommand) -> Result<u8, Failure> {
    let engine = context::engine()?;
    match command {
        NetworkCommand::Create {
            name,
            driver: _,
            subnet,
            ipv6,
            internal,
            mtu,
            dns,
        } => {
            let spec = NetworkSpec {
                name,
                ipv4: subnet.as_deref().map(ipv4_subnet).transpose()?,
                ipv6: ipv6.as_deref().map_or(Ok(Ipv6Choice::Derived), ipv6_subnet)?,
                internal,
                mtu,
                dns,
                labels: Default::default(),
            };
            let made = engine.create_network(&spec)?;
            output::print(&format!("{}\n", made.name()))?;
            Ok(0)
        }
        NetworkCommand::Ls(args) => list(&engine, &args),
        NetworkCommand::Inspect { names, format } => {
            let views = names
                .iter()
                .map(|name| engine.network(name))
                .collect::<Result<Vec<_>, Failure>>()?;
            match format {
                Some(format) => listing::by_template(&format, &views)?,
                None => output::json(&views)?,
            }
            Ok(0)
        }
        NetworkCommand::Prune { force } => {
            if !output::confirm("This removes all networks that no machine is in.", force)? {
                return Ok(0);
            }
            prune(&engine)
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
        NetworkCommand::Rm { names } => each(&names, |name| engine.remove_network(name)),
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

/// Removes the networks that nobody is in, but not the default one: as with docker, what is told of its addresses stays true.
pub(super) fn prune(engine: &Engine) -> Result<u8, Failure> {
    engine.reconcile()?;
    let empty = engine
        .network_list()?
        .into_iter()
        .filter(|network| network.machines.is_empty() && network.name != DEFAULT_NETWORK);
    let names: Vec<String> = empty.map(|network| network.name).collect();
    each(&names, |name| engine.remove_network(name))
}

fn list(engine: &Engine, args: &ListingArgs) -> Result<u8, Failure> {
    let filters = args.filters(&["dangling", "name"])?;
    let mut views = engine.network_list()?;
    views.retain(|view| {
        filters.allow("name", |name| view.name.contains(name))
            && filters.allow("dangling", |dangling| {
                (dangling == "true" || dangling == "1") == view.machines.is_empty()
            })
    });
    let row = |view: &NetworkView| {
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        let attached = view.machines.iter().filter(|m| m.attached).count();
        let cells = vec![
            view.name.clone(),
            view.subnet.clone(),
            or_dash(&view.ipv6_subnet),
            if view.internal { "yes" } else { "no" }.to_owned(),
            view.mtu.to_string(),
            format!("{attached} of {}", view.machines.len()),
        ];
        let mut fields = serde_json::to_value(view).unwrap_or_default();
        if let serde_json::Value::Object(fields) = &mut fields {
            fields.insert("Driver".to_owned(), "bridge".into());
            fields.insert("Scope".to_owned(), "local".into());
            fields.insert("ID".to_owned(), view.name.as_str().into());
        }
        Row {
            name: view.name.clone(),
            cells,
            fields,
        }
    };
    let rows: Vec<Row> = views.iter().map(row).collect();
    args.show(
        &["NAME", "SUBNET", "IPV6", "INTERNAL", "MTU", "ATTACHED"],
        &rows,
        &views,
    )?;
    Ok(0)
}

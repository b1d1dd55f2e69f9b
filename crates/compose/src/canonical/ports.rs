//! Published ports: `[[IP:]HOST:]PORT[/PROTOCOL]`, with ranges.

use crate::error::{Place, Result};
use crate::node::{Entries, Node, Value, join};

/// The ports of a service, each in its long form; a range of the guest's becomes one each.
pub(super) fn ports(value: &mut Node, path: &str) -> Result<()> {
    let mut all = Vec::new();
    for (index, item) in value.list(path)?.iter().enumerate() {
        let path = format!("{path}[{index}]");
        match &item.value {
            Value::Map(_) => all.push(long(item, &path)?),
            _ => {
                let text = item.text(&path)?;
                let ports = short(&text).map_err(|why| {
                    item.error(&path, format!("the port '{text}': {why}"))
                        .hint("write [[IP:]HOST:]PORT[/tcp|udp], as \"8080:80\"")
                })?;
                all.extend(ports.into_iter().map(|port| port.node(&item.at)));
            }
        }
    }
    value.value = Value::List(all);
    Ok(())
}

fn long(item: &Node, path: &str) -> Result<Node> {
    let mut port = item.clone();
    let target = match port.get("target") {
        Some(target) => target.integer(&join(path, "target"))?,
        None => {
            return Err(item
                .error(path, "it has no target")
                .hint("target is the port in the container"));
        }
    };
    if !(1..=65535).contains(&target) {
        return Err(item.error(path, format!("{target} is no port")));
    }
    port.set("target", Node::new(Value::Int(target), &item.at));
    if let Some(published) = port.get("published") {
        let text = published.text(&join(path, "published"))?;
        port.set("published", Node::text_of(text, &item.at));
    }
    for (key, default) in [("protocol", "tcp"), ("mode", "ingress")] {
        if port.get(key).is_none() {
            port.set(key, Node::text_of(default, &item.at));
        }
    }
    Ok(port)
}

#[derive(Debug, PartialEq, Eq)]
struct Port {
    ip: Option<String>,
    published: Option<String>,
    target: u16,
    protocol: String,
}

impl Port {
    fn node(self, at: &Place) -> Node {
        let mut entries: Entries = Vec::new();
        let mut put = |key: &str, value: Value| entries.push((key.to_owned(), Node::new(value, at)));
        put("mode", Value::Text("ingress".to_owned()));
        if let Some(ip) = self.ip {
            put("host_ip", Value::Text(ip));
        }
        put("target", Value::Int(self.target.into()));
        if let Some(published) = self.published {
            put("published", Value::Text(published));
        }
        put("protocol", Value::Text(self.protocol));
        Node::new(Value::Map(entries), at)
    }
}

fn range(text: &str) -> std::result::Result<(u16, u16), String> {
    let wrong = || format!("'{text}' is no port");
    let number = |text: &str| text.parse::<u16>().ok().filter(|n| *n > 0).ok_or_else(wrong);
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (number(first)?, number(last)?) {
        (first, last) if first <= last => Ok((first, last)),
        _ => Err(format!("the range '{text}' is empty")),
    }
}

fn short(text: &str) -> std::result::Result<Vec<Port>, String> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    if !["tcp", "udp", "sctp"].contains(&protocol.as_str()) {
        return Err(format!("there is no protocol '{protocol}'"));
    }
    let (host, target) = match ports.rsplit_once(':') {
        Some((host, target)) => (Some(host), target),
        None => (None, ports),
    };
    let (ip, published) = match host {
        None => (None, None),
        Some(host) => match host.rsplit_once(':') {
            Some((ip, published)) => (Some(ip), Some(published)),
            None => (None, Some(host)),
        },
    };
    let ip = ip.map(|ip| ip.trim_start_matches('[').trim_end_matches(']'));
    if let Some(ip) = ip.filter(|ip| ip.parse::<std::net::IpAddr>().is_err()) {
        return Err(format!("'{ip}' is no address"));
    }
    let (first, last) = range(target)?;
    let published = published.filter(|text| !text.is_empty());
    let hosts = published.map(range).transpose()?;
    let of_each = match hosts {
        Some((start, end)) if end - start == last - first => Some(start),
        // One of the host's for the one of the guest.
        Some(_) if first == last => None,
        Some(_) => return Err("the two ranges are of different lengths".to_owned()),
        None => None,
    };
    Ok((first..=last)
        .map(|target| Port {
            ip: ip.map(str::to_owned),
            published: match of_each {
                Some(start) => Some((start + (target - first)).to_string()),
                None => published.map(str::to_owned),
            },
            target,
            protocol: protocol.clone(),
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_short_form_is_read() {
        let shown = |text: &str| {
            let ports = short(text).unwrap();
            let one = |port: &Port| {
                let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
                format!(
                    "{} {} {}/{}",
                    text(&port.ip),
                    text(&port.published),
                    port.target,
                    port.protocol
                )
            };
            ports.iter().map(one).collect::<Vec<_>>().join(", ")
        };
        for (text, wanted) in [
            ("80", "- - 80/tcp"),
            ("8080:80", "- 8080 80/tcp"),
            ("127.0.0.1:8080:80/udp", "127.0.0.1 8080 80/udp"),
            ("127.0.0.1::80", "127.0.0.1 - 80/tcp"),
            ("[::1]:8080:80", "::1 8080 80/tcp"),
            ("3000-3001", "- - 3000/tcp, - - 3001/tcp"),
            ("9090-9091:8080-8081", "- 9090 8080/tcp, - 9091 8081/tcp"),
            ("9000-9005:80", "- 9000-9005 80/tcp"),
        ] {
            assert_eq!(shown(text), wanted, "{text}");
        }
        for bad in [
            "", "x", "80:", "0:80", "80/x", "a:80:80", "1-2:3-5", "5-4:5-4", "70000:80",
        ] {
            assert!(short(bad).is_err(), "{bad}");
        }
    }
}

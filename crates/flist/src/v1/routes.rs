//! Where the blocks of a format 1 flist are.
//!
//! `router.yaml` has pools of ranges of block ids and the order in which pools are asked:
//! ```yaml
//! pools:
//!   private: {"00:7f": "zdb://host:9900", "80:ff": "zdb://other:9900"}
//! lookup: [private]
//! ```
//! A range may have any number of digits; routes know the first byte only, so such a range becomes one that has it
//! inside, and the store says that it has no such block. Without a router the `backend` of the metadata counts, and
//! without that the public hub, as with the original reader.

use std::collections::BTreeMap;

use serde_json::Value;
use yaml_rust2::parser::{Event, EventReceiver, Parser};
use yaml_rust2::{Yaml, YamlLoader};

use crate::route::{Route, RouteTable};

/// The store of flists that name none.
const HUB: &str = "zdb://hub.grid.tf:9900";

/// Routes in the order in which they are to be asked.
pub(super) fn table(router: Option<&str>, backend: Option<&str>) -> Result<RouteTable, String> {
    let mut routes = match router {
        Some(text) => router_routes(text)?,
        None => Vec::new(),
    };
    if let Some(url) = backend.and_then(backend_url) {
        routes.push(Route::all(url));
    }
    if routes.is_empty() {
        routes.push(Route::all(HUB));
    }
    Ok(RouteTable(routes))
}

/// Refuses references inside of the document: a few of them could expand to any size.
#[derive(Default)]
struct References(bool);

impl EventReceiver for References {
    fn on_event(&mut self, event: Event) {
        self.0 |= matches!(event, Event::Alias(_));
    }
}

fn router_routes(text: &str) -> Result<Vec<Route>, String> {
    let mut references = References::default();
    let parsed = Parser::new_from_str(text).load(&mut references, true);
    parsed.map_err(|error| format!("router.yaml is broken: {error}"))?;
    if references.0 {
        return Err("router.yaml refers to parts of itself".into());
    }
    let documents = YamlLoader::load_from_str(text).map_err(|error| format!("router.yaml is broken: {error}"))?;
    let document = documents.first().unwrap_or(&Yaml::BadValue);
    let mut pools = BTreeMap::new();
    for (name, pool) in document["pools"].as_hash().into_iter().flatten() {
        let name = name.as_str().ok_or("router.yaml has a pool without a name")?;
        let mut routes = Vec::new();
        for (range, url) in pool.as_hash().into_iter().flatten() {
            routes.push(route(range, url).ok_or_else(|| format!("router.yaml has a broken rule in pool {name:?}"))?);
        }
        pools.insert(name, routes);
    }
    let mut routes = Vec::new();
    for name in document["lookup"].as_vec().into_iter().flatten() {
        let pool = name.as_str().and_then(|name| pools.remove(name));
        routes.extend(pool.ok_or("router.yaml looks up a pool that it does not have")?);
    }
    Ok(routes)
}

fn route(range: &Yaml, url: &Yaml) -> Option<Route> {
    let text = match range {
        // A range of digits alone is a number to YAML.
        Yaml::Integer(number) => number.to_string(),
        other => other.as_str()?.to_owned(),
    };
    let (first, last) = text.split_once(':').unwrap_or((&text, &text));
    let route = Route {
        first: first_byte(first)?,
        last: first_byte(last)?,
        url: zdb_url(url.as_str()?),
    };
    (route.first <= route.last).then_some(route)
}

/// The first byte of hexadecimal digits; a lone digit gets a zero.
fn first_byte(digits: &str) -> Option<u8> {
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let two: String = digits.chars().chain(['0']).take(2).collect();
    u8::from_str_radix(&two, 16).ok()
}

/// The original reader's URLs in the form of format 2: one scheme, and what stands alone before `@` is the password.
fn zdb_url(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    if !matches!(scheme, "zdb" | "redis" | "ardb") {
        return url.to_owned();
    }
    match rest.split_once('@') {
        Some((user, host)) if !user.contains(':') => format!("zdb://:{user}@{host}"),
        _ => format!("zdb://{rest}"),
    }
}

/// The URL of a `backend`; `None` when it says nothing usable.
fn backend_url(text: &str) -> Option<String> {
    let backend: Value = serde_json::from_str(text).ok()?;
    let field = |name: &str| {
        backend
            .get(name)
            .and_then(Value::as_str)
            .filter(|text| !text.is_empty())
    };
    if let Some(socket) = field("socket") {
        return Some(format!("zdb://{socket}"));
    }
    let host = field("host").unwrap_or("hub.grid.tf");
    let host = if host.contains(':') {
        format!("[{host}]")
    } else {
        host.to_owned()
    };
    let port = backend.get("port").and_then(Value::as_u64).unwrap_or(9900);
    let password = field("password").map_or_else(String::new, |password| format!(":{}@", percent(password)));
    let namespace = field("namespace").filter(|name| *name != "default");
    let namespace = namespace.map_or_else(String::new, |name| format!("/{}", percent(name)));
    Some(format!("zdb://{password}{host}:{port}{namespace}"))
}

fn percent(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(router: Option<&str>, backend: Option<&str>) -> Vec<(u8, u8, String)> {
        let table = table(router, backend).unwrap();
        table
            .0
            .into_iter()
            .map(|route| (route.first, route.last, route.url))
            .collect()
    }

    #[test]
    fn a_flist_that_names_no_store_is_at_the_public_hub() {
        assert_eq!(urls(None, None), [(0, 255, HUB.to_owned())]);
    }

    #[test]
    fn the_backend_becomes_a_url() {
        let url = |backend| urls(None, Some(backend)).remove(0).2;
        assert_eq!(url(r#"{"namespace":"default","host":"h","port":1}"#), "zdb://h:1");
        assert_eq!(
            url(r#"{"namespace":"n s","host":"::1","password":"p@"}"#),
            "zdb://:p%40@[::1]:9900/n%20s"
        );
        assert_eq!(url(r#"{"socket":"/run/zdb.sock"}"#), "zdb:///run/zdb.sock");
    }

    #[test]
    fn pools_are_asked_in_the_order_of_lookup_and_ranges_are_widened_to_bytes() {
        let text = "pools:\n  a: {'00:7fff': 'ardb://pw@h:1'}\n  b:\n    '8:ff': http://w/\n    80: redis://r:2\nlookup: [b, a]\n";
        assert_eq!(
            urls(Some(text), None),
            [
                (0x80, 0xff, "http://w/".to_owned()),
                (0x80, 0x80, "zdb://r:2".to_owned()),
                (0x00, 0x7f, "zdb://:pw@h:1".to_owned())
            ]
        );
    }

    #[test]
    fn a_router_that_can_not_be_is_refused() {
        for text in [
            "pools: {a: {'zz': 'zdb://h'}}\nlookup: [a]",
            "lookup: [a]",
            "pools: [",
            "a: &x [1]\nb: [*x, *x]",
            "pools: {a: {'ff:00': 'zdb://h'}}\nlookup: [a]",
        ] {
            assert!(table(Some(text), None).is_err(), "{text}");
        }
    }
}

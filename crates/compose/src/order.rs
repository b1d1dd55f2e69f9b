//! What is started before what.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{ComposeError, Result};
use crate::model::Service;

/// The services that `wanted` need, with them; all when nothing is wanted.
pub fn with_dependencies(services: &BTreeMap<String, Service>, wanted: &[String]) -> BTreeSet<String> {
    if wanted.is_empty() {
        return services.keys().cloned().collect();
    }
    let mut all = BTreeSet::new();
    let mut open: Vec<String> = wanted.to_vec();
    while let Some(name) = open.pop() {
        if let Some(service) = services.get(&name)
            && all.insert(name)
        {
            open.extend(service.depends_on.keys().cloned());
        }
    }
    all
}

/// Refuses services that wait for each other.
///
/// # Errors
/// With the names of those in the circle.
pub fn check(services: &BTreeMap<String, Service>) -> Result<()> {
    let mut done: BTreeSet<&str> = BTreeSet::new();
    for name in services.keys() {
        let mut path: Vec<&str> = Vec::new();
        visit(services, name, &mut path, &mut done)?;
    }
    Ok(())
}

fn visit<'a>(
    services: &'a BTreeMap<String, Service>,
    name: &'a str,
    path: &mut Vec<&'a str>,
    done: &mut BTreeSet<&'a str>,
) -> Result<()> {
    if done.contains(name) {
        return Ok(());
    }
    if let Some(at) = path.iter().position(|known| *known == name) {
        let circle = [&path[at..], &[name]].concat().join(" -> ");
        return Err(ComposeError::new(format!("services wait for each other: {circle}"))
            .hint("remove one of these from depends_on or links"));
    }
    let Some(service) = services.get(name) else {
        return Ok(());
    };
    path.push(name);
    for needed in service.depends_on.keys() {
        visit(services, needed, path, done)?;
    }
    path.pop();
    done.insert(name);
    Ok(())
}

/// The names in an order in which each comes after what it needs.
pub fn sorted(services: &BTreeMap<String, Service>) -> Vec<String> {
    fn add(services: &BTreeMap<String, Service>, name: &str, all: &mut Vec<String>, depth: usize) {
        let Some(service) = services.get(name) else { return };
        if all.iter().any(|known| known == name) || depth > services.len() {
            return;
        }
        for needed in service.depends_on.keys() {
            add(services, needed, all, depth + 1);
        }
        all.push(name.to_owned());
    }
    let mut all = Vec::new();
    for name in services.keys() {
        add(services, name, &mut all, 0);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Condition, Dependency};

    fn services(edges: &[(&str, &[&str])]) -> BTreeMap<String, Service> {
        let dependency = Dependency {
            condition: Condition::Started,
            required: true,
            restart: false,
        };
        let one = |(name, needs): &(&str, &[&str])| {
            let service = Service {
                depends_on: needs
                    .iter()
                    .map(|need| ((*need).to_owned(), dependency.clone()))
                    .collect(),
                ..Service::default()
            };
            ((*name).to_owned(), service)
        };
        edges.iter().map(one).collect()
    }

    #[test]
    fn what_is_needed_comes_first() {
        let all = services(&[("a", &["c", "b"]), ("b", &["d"]), ("c", &["d"]), ("d", &[]), ("e", &[])]);
        check(&all).unwrap();
        assert_eq!(sorted(&all), ["d", "b", "c", "a", "e"]);
        let some = with_dependencies(&all, &["c".to_owned()]);
        assert_eq!(some.into_iter().collect::<Vec<_>>(), ["c", "d"]);
    }

    #[test]
    fn a_circle_is_told() {
        let all = services(&[("a", &["b"]), ("b", &["c"]), ("c", &["b"])]);
        assert!(check(&all).unwrap_err().to_string().contains("b -> c -> b"));
    }
}

//! `events`: what happened to containers, and what happens.
//!
//! The events of the home in docker's words: of containers, their commands, images, volumes and networks. What docker tells of volumes and
//! networks at each start and end of a container is not written down; it follows from what the container was made with.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use jiff::Timestamp;
use serde_json::{Value, json};
use zmachine_engine::Engine;
use zmachine_spec::{Kind, MachineSpec, Origin};
use zmachine_store::events::{Event, EventReader, Object};

use super::query::{Filters, name_fits};
use super::{Call, exec_events, ids, logs, networks};
use crate::app::{App, blocking};
use crate::http::{Answer, Body, Refusal, typed};

/// Events that are read at once.
const BATCH: usize = 256;

/// How long nothing may be heard before it is looked all the same.
const LOOK: Duration = Duration::from_secs(2);

const FILTERS: [&str; 8] = [
    "type",
    "label",
    "event",
    "container",
    "image",
    "scope",
    "network",
    "volume",
];

/// What is known of a machine that something happened to.
#[derive(Debug, Clone)]
struct About {
    kind: Kind,
    image: String,
    labels: BTreeMap<String, String>,
    /// Names and ids of the networks that it is in.
    networks: Vec<(String, String)>,
    /// Its volumes: name, path, whether it may write.
    volumes: Vec<(String, String, bool)>,
    /// The phase that it went to last.
    last: String,
}

struct Reading {
    reader: EventReader,
    known: BTreeMap<String, About>,
    filters: Filters,
    since: Timestamp,
    until: Option<Timestamp>,
}

/// Shows events, from now or from some time on, until some time or for ever.
///
/// # Errors
/// 400 for filters and times that make no sense.
pub async fn events(app: &Arc<App>, call: &Call) -> Result<Answer, Refusal> {
    let mut notices = app.hub.subscribe();
    let until = logs::time(&call.query, "until")?;
    let mut reading = Reading {
        reader: EventReader::open(app.engine.home()),
        known: BTreeMap::new(),
        filters: call.query.filters(&FILTERS)?,
        since: logs::time(&call.query, "since")?.unwrap_or_else(Timestamp::now),
        until,
    };
    let (sender, body) = Body::stream();
    let app = Arc::clone(app);
    tokio::spawn(async move {
        loop {
            let stepped = blocking(&app, move |app| {
                let stepped = reading.step(&app.engine);
                stepped.map(|(lines, more)| (reading, lines, more))
            })
            .await;
            let Ok((read, lines, more)) = stepped else { return };
            reading = read;
            if !lines.is_empty() && sender.send(lines.into()).await.is_err() {
                return;
            }
            if more {
                continue;
            }
            if reading.until.is_some_and(|until| Timestamp::now() > until) {
                return;
            }
            // Not to miss the end.
            let most = match reading.until {
                Some(_) => Duration::from_millis(200),
                None => LOOK,
            };
            tokio::select! {
                () = notices.next(most) => {}
                () = sender.closed() => return,
            }
        }
    });
    Ok(typed(StatusCode::OK, "application/json", body))
}

impl Reading {
    /// The lines of the next events, and whether there are more.
    fn step(&mut self, engine: &Engine) -> std::io::Result<(Vec<u8>, bool)> {
        let mut lines = Vec::new();
        for _ in 0..BATCH {
            let Some(event) = self.reader.next_event()? else {
                return Ok((lines, false));
            };
            let shown = self.shown(engine, &event);
            for document in shown {
                serde_json::to_writer(&mut lines, &document)?;
                lines.push(b'\n');
            }
        }
        Ok((lines, true))
    }

    fn shown(&mut self, engine: &Engine, event: &Event) -> Vec<Value> {
        let is_wanted = event.time >= self.since && self.until.is_none_or(|until| event.time <= until);
        if !is_wanted {
            return Vec::new();
        }
        if let Some(object) = event.object {
            return self.of_object(object, event);
        }
        let before = self.known.get(&event.id).map(|about| about.last.clone());
        if event.event == "starting" {
            // It may be in other networks than at its start before.
            self.known.remove(&event.id);
        }
        let about = self
            .known
            .entry(event.id.clone())
            .or_insert_with(|| about(engine, &event.id));
        if !is_no_phase(&event.event) {
            about.last.clone_from(&event.event);
        }
        let about = about.clone();
        if event.event == "removed" {
            self.known.remove(&event.id);
        }
        if about.kind != Kind::Container {
            return Vec::new();
        }
        let asked = event.event == "stopped" && was_stopped_by_user(engine, &event.id);
        let own = actions(event, before.as_deref(), asked)
            .into_iter()
            .filter(|action| self.has(event, &about, action))
            .map(|action| document(event, &about, &action));
        self.attachments(event, before.as_deref(), &about)
            .into_iter()
            .chain(own)
            .collect()
    }

    /// What happens to networks and volumes by the start and the end of a container; it is told before these.
    fn attachments(&self, event: &Event, before: Option<&str>, about: &About) -> Vec<Value> {
        let is_start = match (event.event.as_str(), before) {
            ("running", Some("paused")) => return Vec::new(),
            ("running", _) => true,
            // One that did not come so far had none.
            ("stopped" | "failed" | "restarting", Some("created" | "starting")) => return Vec::new(),
            ("stopped" | "failed" | "restarting", _) => false,
            _ => return Vec::new(),
        };
        let container = ids::container(&event.id);
        let networks = about.networks.iter().map(|(name, id)| {
            let attributes = BTreeMap::from([
                ("container", container.clone()),
                ("name", networks::shown_name(name)),
                ("type", "bridge".to_owned()),
            ]);
            let action = if is_start { "connect" } else { "disconnect" };
            (Object::Network, id, name, action, attributes)
        });
        let volumes = about.volumes.iter().map(|(name, path, writes)| {
            let mut attributes = BTreeMap::from([("container", container.clone()), ("driver", "local".to_owned())]);
            if is_start {
                attributes.insert("destination", path.clone());
                attributes.insert("propagation", String::new());
                attributes.insert("read/write", writes.to_string());
            }
            let action = if is_start { "mount" } else { "unmount" };
            (Object::Volume, name, name, action, attributes)
        });
        networks
            .chain(volumes)
            .filter_map(|(object, id, name, action, attributes)| {
                self.object_document(object, (id, name), action, &attributes, event.time)
            })
            .collect()
    }

    /// What happened to something else than a container.
    fn of_object(&self, object: Object, event: &Event) -> Vec<Value> {
        let action = match (object, event.event.as_str()) {
            (Object::Image, "pulled") => "pull",
            (Object::Image, "loaded") => "load",
            (Object::Image, "tagged") => "tag",
            (Object::Image, "untagged") => "untag",
            (_, "created") => "create",
            (_, "removed") => "destroy",
            (Object::Network, "connected") => "connect",
            (Object::Network, "disconnected") => "disconnect",
            _ => return Vec::new(),
        };
        let mut attributes = BTreeMap::from([("name", event.name.clone())]);
        match object {
            Object::Image => {}
            Object::Volume => {
                attributes = BTreeMap::from([("driver", "local".to_owned())]);
            }
            Object::Network => {
                attributes.insert("type", "bridge".to_owned());
                if let Some(machine) = &event.detail {
                    attributes.insert("container", ids::container(machine));
                }
            }
        }
        let id = match object {
            Object::Image => event.name.as_str(),
            _ => event.id.as_str(),
        };
        let document = self.object_document(object, (id, &event.name), action, &attributes, event.time);
        document.into_iter().collect()
    }

    /// What happened to something by its id and name, when that is wanted.
    fn object_document(
        &self,
        object: Object,
        (id, own_name): (&str, &str),
        action: &str,
        attributes: &BTreeMap<&str, String>,
        at: Timestamp,
    ) -> Option<Value> {
        let filters = &self.filters;
        let is_it = |wanted: &str| own_name == wanted || (!wanted.is_empty() && id.starts_with(wanted));
        let only = |name: &str, own: Object| match object == own {
            true => filters.allow(name, is_it),
            false => !filters.has(name),
        };
        let is_wanted = filters.allow("type", |kind| kind == object.word())
            && filters.allow("scope", |scope| scope == "local")
            && filters.allow("event", |wanted| wanted == action)
            && only("image", Object::Image)
            && only("volume", Object::Volume)
            && only("network", Object::Network)
            && !filters.has("container")
            && filters.allow_labels(&BTreeMap::new());
        is_wanted.then(|| {
            json!({
                "Type": object.word(),
                "Action": action,
                "Actor": {"ID": id, "Attributes": attributes},
                "scope": "local",
                "time": at.as_second(),
                "timeNano": i64::try_from(at.as_nanosecond()).unwrap_or_default(),
            })
        })
    }

    fn has(&self, event: &Event, about: &About, action: &str) -> bool {
        let filters = &self.filters;
        let id = ids::container(&event.id);
        let word = action.split(':').next().unwrap_or(action);
        !filters.has("network")
            && !filters.has("volume")
            && filters.allow("type", |kind| kind == "container")
            && filters.allow("scope", |scope| scope == "local")
            && filters.allow("event", |wanted| wanted == word || wanted == action)
            && filters.allow("container", |wanted| {
                event.name == wanted.trim_start_matches('/') || (!wanted.is_empty() && id.starts_with(wanted))
            })
            && filters.allow("image", |wanted| name_fits(&about.image, wanted))
            && filters.allow_labels(&about.labels)
    }
}

fn about(engine: &Engine, id: &str) -> About {
    let history = engine.history(id).ok();
    let (kind, spec) = match history {
        Some(history) => (history.state.map(|state| state.kind), Some(history.spec)),
        None => (None, None),
    };
    let networks = spec.iter().flat_map(|spec| &spec.networks);
    let networks = networks.map(|network| {
        let id = networks::id(engine, &network.name);
        (network.name.clone(), id)
    });
    About {
        networks: networks.collect(),
        volumes: spec
            .as_ref()
            .map(|spec| volumes_of(engine, id, spec))
            .unwrap_or_default(),
        kind: kind.unwrap_or_default(),
        image: spec.as_ref().map_or_else(String::new, |spec| spec.flist.clone()),
        labels: spec.map_or_else(BTreeMap::new, |spec| spec.labels),
        last: String::new(),
    }
}

/// The volumes of a machine, those among them that were made for it without a name.
fn volumes_of(engine: &Engine, id: &str, spec: &MachineSpec) -> Vec<(String, String, bool)> {
    let own = engine
        .machine(id)
        .and_then(|machine| engine.own_volumes(&machine))
        .unwrap_or_default();
    let named = |request: &zmachine_spec::VolumeRequest| {
        let name = match &request.origin {
            Origin::Named(name) => name.clone(),
            Origin::Anonymous => own.get(&request.target)?.clone(),
            Origin::Directory(_) => return None,
        };
        Some((name, request.target.clone(), !request.read_only))
    };
    spec.volumes.iter().filter_map(named).collect()
}

/// Whether an event is of something else than the phase of a machine.
fn is_no_phase(event: &str) -> bool {
    matches!(event, "health_status" | "renamed") || event.starts_with("exec_")
}

/// Whether the last run of a machine ended because somebody wanted that.
fn was_stopped_by_user(engine: &Engine, id: &str) -> bool {
    let state = engine.history(id).ok().and_then(|history| history.state);
    state.is_some_and(|state| state.stopped_by_user)
}

/// What docker calls an event; some are nothing to it, and some two. `asked`: a user wanted the end of the run.
fn actions(event: &Event, before: Option<&str>, asked: bool) -> Vec<String> {
    let words: &[&str] = match event.event.as_str() {
        "created" => &["create"],
        "running" if before == Some("paused") => &["unpause"],
        "running" => &["start"],
        "paused" => &["pause"],
        "stopping" => &[],
        "stopped" if asked => &["die", "stop"],
        "stopped" | "failed" | "restarting" => &["die"],
        "removed" => &["destroy"],
        "renamed" => &["rename"],
        "exec_created" | "exec_started" => {
            let (_, command) = exec_events::parts(event);
            let word = if event.event == "exec_created" {
                "exec_create"
            } else {
                "exec_start"
            };
            return vec![format!("{word}: {command}")];
        }
        "exec_ended" => &["exec_die"],
        "health_status" => {
            let status = event.detail.clone().unwrap_or_default();
            return vec![format!("health_status: {status}")];
        }
        _ => &[],
    };
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn document(event: &Event, about: &About, action: &str) -> Value {
    let id = ids::container(&event.id);
    let mut attributes: BTreeMap<String, String> = about.labels.clone();
    attributes.insert("image".to_owned(), about.image.clone());
    attributes.insert("name".to_owned(), event.name.clone());
    if action == "die" {
        let code = event
            .exit_code
            .map_or_else(|| "128".to_owned(), |code| code.to_string());
        attributes.insert("exitCode".to_owned(), code);
    }
    if action.starts_with("exec_") {
        attributes.insert("execID".to_owned(), exec_events::parts(event).0.to_owned());
    }
    if action == "exec_die" {
        let code = event.exit_code.map_or_else(String::new, |code| code.to_string());
        attributes.insert("exitCode".to_owned(), code);
    }
    if action == "rename"
        && let Some(old) = event.detail.as_deref().and_then(|detail| detail.split('\'').nth(1))
    {
        attributes.insert("oldName".to_owned(), format!("/{old}"));
    }
    json!({
        "status": action,
        "id": id,
        "from": about.image,
        "Type": "container",
        "Action": action,
        "Actor": {"ID": id, "Attributes": attributes},
        "scope": "local",
        "time": event.time.as_second(),
        "timeNano": i64::try_from(event.time.as_nanosecond()).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_told_in_dockers_words() {
        let event = |word: &str| Event::new("0123456789ab", "web", word);
        for (word, before, asked, told) in [
            ("created", None, false, &["create"][..]),
            ("starting", Some("created"), false, &[]),
            ("running", Some("starting"), false, &["start"]),
            ("running", Some("paused"), false, &["unpause"]),
            ("stopped", Some("running"), false, &["die"]),
            ("stopped", Some("stopping"), true, &["die", "stop"]),
            ("removed", Some("stopped"), false, &["destroy"]),
        ] {
            assert_eq!(actions(&event(word), before, asked), told, "{word}");
        }
        let mut exec = exec_events::event(
            ("0123456789ab", "web"),
            "exec_created",
            "e1",
            &["sh".into(), "-c".into(), "a\nb".into()],
        );
        assert_eq!(actions(&exec, None, false), ["exec_create: sh -c a b"]);
        exec.event = "exec_ended".into();
        assert_eq!(actions(&exec, None, false), ["exec_die"]);
        let mut healthy = event("health_status");
        healthy.detail = Some("healthy".into());
        assert_eq!(actions(&healthy, None, false), ["health_status: healthy"]);
    }
}

//! Bodies and filters of Docker's API, as a client may send them.

use std::sync::OnceLock;

use serde::de::DeserializeOwned;
use zmachine_api::app::App;
use zmachine_api::docker::body::{
    Create, Exec, ExecStart, NetworkConnect, NetworkCreate, NetworkDisconnect, VolumeCreate,
};
use zmachine_api::docker::create::spec_of;
use zmachine_api::docker::query::Query;
use zmachine_engine::{Engine, Programs};
use zmachine_spec::{Home, MachineSpec};

/// A server's state over a home with nothing in it, for as long as the process.
fn app() -> &'static App {
    static APP: OnceLock<(App, tempfile::TempDir)> = OnceLock::new();
    let (app, _folder) = APP.get_or_init(|| {
        let folder = crate::scratch::folder();
        let home = Home::open(&folder.path().join("home"), &folder.path().join("run")).expect("a home");
        let engine = Engine::new(home, Programs::at("/bin/true".as_ref()));
        (App::new(engine, None).expect("a thread"), folder)
    });
    app
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    serde_json::from_slice(bytes).ok()
}

/// The first byte chooses the request, the rest is its body. What is asked for becomes a machine that is the same after it was kept, or is
/// refused with a reason.
pub fn docker_bodies(input: &[u8]) {
    let Some((kind, bytes)) = input.split_first() else {
        return;
    };
    match kind % 4 {
        0 => {
            let Some(mut wanted) = read::<Create>(bytes) else {
                return;
            };
            // What is of this host is looked at there, and made: nothing for a fuzzer.
            wanted.host_config.binds.retain(|bind| !bind.starts_with('/'));
            wanted.host_config.mounts.retain(|mount| mount.r#type != "bind");
            match spec_of(app(), MachineSpec::new("fuzz", "image"), &wanted) {
                Ok((spec, _warnings)) => {
                    let kept = serde_json::to_vec(&spec).expect("a spec can be kept");
                    let again: MachineSpec = serde_json::from_slice(&kept).expect("what was kept can be read");
                    assert!(again == spec, "what was kept is another machine");
                }
                Err(refusal) => assert!(!refusal.message.is_empty() && refusal.status.as_u16() >= 400),
            }
        }
        1 => drop((read::<Exec>(bytes), read::<ExecStart>(bytes))),
        2 => drop((
            read::<NetworkCreate>(bytes),
            read::<NetworkConnect>(bytes),
            read::<NetworkDisconnect>(bytes),
            read::<VolumeCreate>(bytes),
        )),
        _ => {
            let text = String::from_utf8_lossy(bytes);
            for text in [text.clone().into_owned(), format!("filters={text}")] {
                let query = Query::parse(&text);
                if let Ok(filters) = query.filters(&["label", "name", "status", "id"]) {
                    let _ = filters.allow("name", |wanted| zmachine_api::docker::query::name_fits("web", wanted));
                    let _ = filters.flag("status");
                }
            }
        }
    }
}

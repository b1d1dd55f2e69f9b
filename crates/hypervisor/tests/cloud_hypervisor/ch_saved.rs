//! A machine that is saved while it runs, and goes on from there.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

use zmachine_hypervisor::{ExitReason, LaunchError, Nic, NicKind, Resources, Saved, VmSpec};

use super::{Bench, recorded_vmm};

pub(super) async fn a_saved_machine_goes_on_where_it_was_and_can_be_saved_again(bench: Bench) {
    let is_recorded = bench.driver.binary == recorded_vmm();
    let nic = Nic {
        id: "net0".into(),
        mac: "02:00:00:00:00:01".into(),
        mtu: None,
        kind: NicKind::Tap,
    };
    let spec = VmSpec {
        is_saveable: true,
        agent: false,
        // The real one would want a tap.
        nics: is_recorded.then_some(nic).into_iter().collect(),
        ..bench.spec()
    };
    let tap = || ("net0".to_owned(), File::open("/dev/null").unwrap().into());
    let resources = |saved| Resources {
        taps: is_recorded.then(tap).into_iter().collect(),
        saves: Some(bench.path("saving")),
        saved,
        ..Resources::default()
    };
    let mut running = bench.launch(&spec, resources(None)).await.unwrap();
    let version = running.vm.version();
    let mut last = 0;
    for round in 0..2 {
        let before = running.tick().await;
        assert!(before >= last, "{before} after {last}");
        let file = tempfile::tempfile().unwrap();
        running.vm.save(file.try_clone().unwrap().into()).await.unwrap();
        // What it had said by then is read first.
        while running.ticks().await {}
        running.vm.go_on().await.unwrap();
        assert!(running.vm.went_on_at().is_some());
        last = running.tick().await;
        assert!(last > before, "{last} after {before}");
        // Its zeros take no room.
        assert!(file.metadata().unwrap().len() >= spec.memory_bytes);
        assert!(file.metadata().unwrap().blocks() * 512 < spec.memory_bytes / 4);
        let left: Vec<_> = fs::read_dir(bench.path("saving")).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
        // Long after it.
        for _ in 0..20 {
            running.tick().await;
        }
        let later = running.tick().await;
        running.vm.kill();
        assert_eq!(running.exit().await, ExitReason::HostSignal(9));
        drop(running);
        assert!(!bench.path("saving").exists());

        let saved = |version: &str| Saved {
            state: file.try_clone().unwrap().into(),
            memory: File::open("/dev/null").unwrap().into(),
            version: version.to_owned(),
            is_private: true,
        };
        let refused = bench.launch(&spec, resources(Some(saved("qemu 1")))).await;
        let Err(LaunchError::Control(refused)) = refused.map(drop) else {
            panic!("another program saved it")
        };
        assert!(refused.to_string().contains("was saved by qemu 1"), "{refused}");
        running = bench.launch(&spec, resources(Some(saved(&version)))).await.unwrap();
        assert!(!running.ticks().await, "it goes on by itself");
        running.vm.go_on().await.unwrap();
        let first = running.tick().await;
        assert!(
            first >= before && first < later,
            "round {round}: {before}, {first}, {later}"
        );
        last = first;
    }
    running.tell(b'q').await;
    assert_eq!(running.exit().await, ExitReason::GuestShutdown);
}

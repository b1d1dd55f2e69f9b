//! Fetching blocks from stores that are well, sick, lying or gone.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use crate::support::*;
use zmachine_image::fetch::FetchError;
use zmachine_image::{BlockCache, FetchOptions, Fetched, Fetcher, Silent};

fn failure(bench: &Bench) -> FetchError {
    match bench.fetcher.fetch(&a_block()) {
        Ok(_) => panic!("the block was fetched"),
        Err(e) => e,
    }
}

/// Fetches the block and holds it against its digest.
fn fetches(bench: &Bench) {
    let block = a_block();
    let plain = bench.fetcher.fetch(&block).unwrap().into_bytes(block.len).unwrap();
    block.verify_plain(&plain).unwrap();
}

#[test]
fn every_block_of_a_recorded_flist_comes_from_its_directory() {
    let bench = Bench::new(&[dir_url("store")]);
    let blocks = flist("sizes.fl").tree.unique_blocks();
    bench.fetcher.fetch_all(&blocks, 4, &Silent).unwrap();
    let stats = bench.fetcher.stats();
    assert_eq!(stats.blocks, blocks.len() as u64);
    assert_eq!(stats.plain_bytes, blocks.iter().map(|b| u64::from(b.len)).sum::<u64>());
    assert!(stats.stored_bytes > 0 && stats.errors == 0 && stats.cache_hits == 0);
}

#[test]
fn a_web_server_delivers_over_one_connection_and_the_cache_afterwards() {
    let server = Server::of_store(Behaviour::Good);
    let bench = Bench::new(&[server.url()]);
    for _ in 0..2 {
        for block in blocks() {
            bench.fetcher.fetch(&block).unwrap();
        }
    }
    assert_eq!(server.requests().len(), blocks().len());
    assert_eq!(server.connections(), 1);
    assert_eq!(bench.fetcher.stats().cache_hits, blocks().len() as u64);
}

#[test]
fn fifty_machines_of_one_cache_ask_the_store_for_each_block_once() {
    let server = Server::of_store(Behaviour::Slow);
    let dir = tempfile::tempdir().unwrap();
    let blocks = blocks();
    let together = Barrier::new(50);
    std::thread::scope(|scope| {
        for machine in 0..50 {
            let (blocks, together, server) = (&blocks, &together, &server);
            let cache = dir.path().join("blocks");
            scope.spawn(move || {
                // Nothing is shared but the directory, as between processes.
                let cache = BlockCache::open(&cache).unwrap();
                let fetcher = Fetcher::new(cache, routes(&[server.url()]), quick());
                together.wait();
                for at in 0..blocks.len() {
                    let block = blocks[(at + machine) % blocks.len()];
                    let plain = fetcher.fetch(&block).unwrap().into_bytes(block.len).unwrap();
                    block.verify_plain(&plain).unwrap();
                }
            });
        }
    });
    assert_eq!(server.requests().len(), blocks.len());
}

#[test]
fn a_flat_store_is_found_after_a_404() {
    let dir = tempfile::tempdir().unwrap();
    let block = a_block();
    std::fs::copy(stored(&block), dir.path().join(block.id.to_string())).unwrap();
    let server = Server::of(dir.path());
    fetches(&Bench::new(&[server.url()]));
    assert_eq!(server.requests().len(), 2);
    fetches(&Bench::new(&[format!("dir://{}", dir.path().display())]));
}

#[test]
fn what_is_not_the_block_is_told_apart_and_never_cached() {
    let corrupt = "stored bytes have digest";
    for (behaviour, text) in [
        (Behaviour::Corrupt, corrupt),
        (Behaviour::Half, corrupt),
        (Behaviour::Endless, "sent more than 716800 bytes"),
        (Behaviour::CutShort, "is not available"),
        (Behaviour::Close, "is not available"),
        (Behaviour::Status(500), "answered with status 500"),
        (Behaviour::Status(403), "answered with status 403"),
        (Behaviour::Status(404), "has no block"),
        (Behaviour::Stall, "no answer in time"),
    ] {
        let server = Server::of_store(behaviour);
        let bench = Bench::new(&[server.url()]);
        let error = failure(&bench);
        assert_eq!(error.block_id(), a_block().id.to_string());
        assert!(error.to_string().contains(text), "{behaviour:?}: {error}");
        assert!(error.to_string().contains(&server.url()), "{behaviour:?}: {error}");
        assert!(bench.cache.get(&a_block()).unwrap().is_none());
        assert_eq!(bench.fetcher.stats().errors, 1);
    }
}

#[test]
fn a_failing_replica_is_replaced_by_the_next_one() {
    let good = Server::of_store(Behaviour::Good);
    for behaviour in [
        Behaviour::Corrupt,
        Behaviour::Half,
        Behaviour::CutShort,
        Behaviour::Status(500),
        Behaviour::Status(404),
        Behaviour::Close,
        Behaviour::Stall,
    ] {
        let bad = Server::of_store(behaviour);
        let bench = Bench::new(&[bad.url(), good.url()]);
        fetches(&bench);
        assert!(
            !bad.requests().is_empty(),
            "{behaviour:?}: the first route was asked first"
        );
        assert_eq!(bench.fetcher.stats().errors, 0);
    }
}

#[test]
fn the_recorded_replicated_flist_survives_a_corrupt_first_replica() {
    let dir = tempfile::tempdir().unwrap();
    let flist = flist("kinds-replicated.fl");
    let mut routes = flist.routes.clone();
    let block = *flist
        .tree
        .unique_blocks()
        .iter()
        .find(|b| b.id.0.as_bytes()[0] < 0x10)
        .unwrap();
    let hex = block.id.to_string();
    std::fs::create_dir(dir.path().join(&hex[..2])).unwrap();
    std::fs::write(dir.path().join(&hex[..2]).join(&hex), "not the block").unwrap();
    routes.0[0].url = format!("dir://{}", dir.path().display());
    routes.0[1].url = dir_url("store-shard0");
    let cache = BlockCache::open(&dir.path().join("cache")).unwrap();
    let fetcher = Fetcher::new(cache, routes, quick());
    let plain = fetcher.fetch(&block).unwrap().into_bytes(block.len).unwrap();
    block.verify_plain(&plain).unwrap();
    assert_eq!(fetcher.stats().corrupt_answers, 1);
}

#[test]
fn a_passing_failure_of_the_only_store_is_survived() {
    for behaviour in [Behaviour::Close, Behaviour::CutShort, Behaviour::Status(503)] {
        let server = Server::of_store(Behaviour::Good);
        server.set_for(behaviour, 1);
        fetches(&Bench::new(&[server.url()]));
        assert!(server.requests().len() >= 2, "{behaviour:?}");
    }
}

#[test]
fn a_dead_replica_is_not_asked_again_for_a_while() {
    let dead = Server::of_store(Behaviour::Status(500));
    let good = Server::of_store(Behaviour::Good);
    let bench = Bench::new(&[dead.url(), good.url()]);
    for block in blocks() {
        bench.fetcher.fetch(&block).unwrap();
    }
    assert_eq!(dead.requests().len(), 1);
    assert_eq!(good.requests().len(), blocks().len());
}

#[test]
fn routes_that_can_not_be_used_are_named_and_the_others_still_asked() {
    let bad = [
        "server://user:secret@host/ns",
        "dir://relative",
        "nonsense",
        "dir:///nonexistent/store",
    ];
    let error = failure(&Bench::new(&bad)).to_string();
    for text in [
        "kind 'server'",
        "must be absolute",
        "'nonsense'",
        "/nonexistent/store does not exist",
    ] {
        assert!(error.contains(text), "{error}");
    }
    assert!(!error.contains("secret"));
    let mut urls = bad.map(str::to_owned).to_vec();
    urls.extend([refused_url(), dir_url("store")]);
    fetches(&Bench::new(&urls));
}

#[test]
fn a_block_without_a_route_says_so() {
    let bench = Bench::new::<&str>(&[]);
    let error = failure(&bench);
    assert!(matches!(error, FetchError::NoRoute { .. }));
    assert!(error.hint().unwrap().contains("name a store"));
}

#[test]
fn an_override_replaces_the_routes_of_the_flist() {
    let routes = Server::of_store(Behaviour::Good);
    let options = FetchOptions {
        stores: vec![dir_url("store")],
        ..quick()
    };
    let bench = Bench::with(&[routes.url()], options);
    fetches(&bench);
    assert!(routes.requests().is_empty());
    assert_eq!(bench.fetcher.local_directories().len(), 1);
}

#[test]
fn the_deadline_holds_even_when_every_store_stalls() {
    let servers = [Server::of_store(Behaviour::Stall), Server::of_store(Behaviour::Stall)];
    let options = FetchOptions {
        deadline: Duration::from_millis(800),
        ..quick()
    };
    let bench = Bench::with(&servers.each_ref().map(Server::url), options);
    let begin = Instant::now();
    let error = failure(&bench);
    assert!(matches!(error, FetchError::Expired { .. }), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    assert!(
        servers.iter().all(|server| server.requests().len() == 1),
        "each got its share of the time"
    );
}

#[test]
fn sixty_four_threads_make_one_request() {
    let server = Server::of_store(Behaviour::Slow);
    let bench = Bench::new(&[server.url()]);
    let start = Barrier::new(64);
    std::thread::scope(|scope| {
        for _ in 0..64 {
            scope.spawn(|| {
                start.wait();
                fetches(&bench);
            });
        }
    });
    assert_eq!(server.requests().len(), 1);
    assert_eq!(bench.fetcher.stats().blocks, 1);
}

#[test]
fn threads_that_wait_for_a_failing_download_get_its_error() {
    let server = Server::of_store(Behaviour::Corrupt);
    let bench = Bench::new(&[server.url()]);
    let start = Barrier::new(8);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                start.wait();
                assert!(failure(&bench).attempts()[0].is_corrupt);
            });
        }
    });
    assert_eq!(bench.fetcher.stats().errors, 8);
}

#[test]
fn cached_blocks_outlive_their_store() {
    let dir = tempfile::tempdir().unwrap();
    let block = a_block();
    let hex = block.id.to_string();
    let store = dir.path().join("store");
    std::fs::create_dir_all(store.join(&hex[..2])).unwrap();
    std::fs::copy(stored(&block), store.join(&hex[..2]).join(&hex)).unwrap();
    let bench = Bench::new(&[format!("dir://{}", store.display())]);
    fetches(&bench);
    std::fs::remove_dir_all(&store).unwrap();
    fetches(&bench);
    bench.cache.evict(&block).unwrap();
    let error = failure(&bench);
    assert!(error.to_string().contains("does not exist"), "{error}");
    assert!(error.hint().unwrap().contains("mount the directory"));
}

#[test]
fn a_cached_block_that_was_cut_or_changed_is_fetched_again() {
    let bench = Bench::new(&[dir_url("store")]);
    let block = a_block();
    fetches(&bench);
    let path = bench.cache.path_of(&block);
    for damage in [&b""[..], b"abc"] {
        std::fs::write(&path, damage).unwrap();
        fetches(&bench);
    }
    // Of the right length, also for whoever opens it without asking a store.
    std::fs::write(&path, vec![0; block.len as usize]).unwrap();
    assert!(bench.fetcher.cached(&block).is_none());
    let reported = bench.fetcher.take_cache_error().unwrap().to_string();
    assert!(reported.contains("was damaged"), "{reported}");
    std::fs::write(&path, vec![0; block.len as usize]).unwrap();
    fetches(&bench);
    let plain = bench.fetcher.refetch(&block).unwrap().into_bytes(block.len).unwrap();
    block.verify_plain(&plain).unwrap();
    assert_eq!(bench.fetcher.stats().blocks, 5);
}

#[test]
fn a_cache_that_takes_nothing_costs_speed_and_no_blocks() {
    let bench = Bench::new(&[dir_url("store")]);
    let block = a_block();
    // A file where the block's directory should be: also root cannot write there.
    let shard = bench.cache.path_of(&block).parent().unwrap().to_owned();
    std::fs::write(&shard, "in the way").unwrap();
    let fetched = bench.fetcher.fetch(&block).unwrap();
    assert!(matches!(fetched, Fetched::Bytes(_)));
    block.verify_plain(&fetched.into_bytes(block.len).unwrap()).unwrap();
    assert!(bench.fetcher.stats().cache_failures > 0);
}

#[test]
fn reading_past_the_end_of_a_block_is_an_error_in_both_forms() {
    let bench = Bench::new(&[dir_url("store")]);
    let block = a_block();
    let file = bench.fetcher.fetch(&block).unwrap();
    let bytes =
        Fetched::Bytes(crate::support::read_all(std::fs::File::open(bench.cache.path_of(&block)).unwrap()).into());
    for fetched in [file, bytes] {
        let mut buf = [0; 8];
        fetched.read_exact_at(&mut buf, u64::from(block.len) - 8).unwrap();
        assert!(fetched.read_exact_at(&mut buf, u64::from(block.len) - 7).is_err());
        assert!(fetched.read_exact_at(&mut buf, u64::MAX).is_err());
    }
}

//! Removing images and blocks that no machine needs.

use std::path::Path;

use zmachine_image::Library;
use zmachine_image::cache::Adopted;
use zmachine_image::library::{PruneReport, ShareChange, TrimReport};
use zmachine_spec::{Class, Failure};
use zmachine_store::cache::{images_of_home, trim_cache};
use zmachine_store::catalog::{self, Machine};
use zmachine_store::template::Templates;

use super::Engine;

impl Engine {
    /// Removes images without a name that no machine uses, and the blocks that no image has, of this home or another one with
    /// the same cache.
    ///
    /// # Errors
    /// When a machine is being created all the time, or the state of one cannot be read: what it needs is not known then.
    pub fn prune_images(&self) -> Result<PruneReport, Failure> {
        let library = Library::open(self.home.data())?;
        let Some(prune) = library.begin_prune()? else {
            let busy = "a machine is being created, an image pulled, or another command removes blocks";
            return Err(Failure::new(Class::Conflict, busy).hint("try again when that is done"));
        };
        let report = prune.run(|home| images_of_home(&self.home, home, |_| true))?;
        // A start from a template reads the image, too.
        let images = self.home.data().join("images");
        Templates::of(&self.home)
            .prune(|template| template.plan.image().is_some_and(|image| images.join(image).is_dir()))?;
        Ok(report)
    }

    /// Removes the least recently used blocks when the cache is over its limit, but none that an active machine may read,
    /// of any home with this cache. `None` when there is no limit, or another process is at it.
    ///
    /// # Errors
    /// When the state of a machine cannot be read, or the cache not be listed; nothing is removed then.
    pub fn trim_cache(&self) -> Result<Option<TrimReport>, Failure> {
        trim_cache(&self.home)
    }

    /// Lets this home share the block cache in `folder` with others, or have its own (`None`). The blocks of its own come along.
    ///
    /// # Errors
    /// When a machine runs, the folder cannot be used, or a block not be moved.
    pub fn share_cache(&self, folder: Option<&Path>) -> Result<Shared, Failure> {
        let change = ShareChange::begin(self.home.data(), folder)?;
        if change.is_change() {
            for id in catalog::ids(&self.home)? {
                let machine = Machine::load(&self.home, &id)?;
                if machine.state.phase.is_active() {
                    let message = format!("machine '{}' runs with the block cache as it is", machine.spec.name);
                    return Err(Failure::new(Class::Conflict, message).hint("stop all machines of this home first"));
                }
            }
        }
        Ok(Shared {
            lost_limit: change.lost_limit(),
            adopted: change.make()?,
        })
    }
}

/// What [`Engine::share_cache`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shared {
    /// The limit of the home's own cache, which does not count any more.
    pub lost_limit: Option<u64>,
    /// The blocks that the home brought along.
    pub adopted: Adopted,
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use zmachine_spec::Home;
    use zmachine_store::cache::describe_cache;

    use super::*;
    use crate::Programs;

    const ID: &str = "5c28ffaff6fe";

    /// Homes `a` and `b` with one cache.
    struct House(tempfile::TempDir);

    impl House {
        fn new() -> House {
            let house = House(tempfile::tempdir().unwrap());
            for home in ["a", "b"] {
                house.engine(home).share_cache(Some(&house.path("cache"))).unwrap();
            }
            house
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().canonicalize().unwrap().join(name)
        }

        fn engine(&self, home: &str) -> Engine {
            let home = Home::open(&self.path(home), &self.path(home).join("run")).unwrap();
            Engine::new(home, Programs::own())
        }

        /// A machine of the home as it was written yesterday, in a phase.
        fn machine(&self, home: &str, phase: &str) {
            let dir = self.path(home).join("machines").join(ID);
            fs::create_dir_all(&dir).unwrap();
            let state = include_str!("../../spec/tests/golden/state-v1.json");
            let state = state.replace(
                r#""phase":"stopped","exit":{"code":3}"#,
                &format!(r#""phase":"{phase}""#),
            );
            fs::write(dir.join("state.json"), state).unwrap();
            fs::write(
                dir.join("spec.json"),
                include_str!("../../spec/tests/golden/spec-v1.json"),
            )
            .unwrap();
            fs::write(
                dir.join("plan.json"),
                include_str!("../../plan/tests/golden/plan-v1.json"),
            )
            .unwrap();
        }

        /// A block that no image has, in a cache that has to shrink.
        fn with_a_block_too_many(&self) -> PathBuf {
            let library = Library::open(&self.path("a")).unwrap();
            let bytes = b"of nobody";
            let (block, _) = zmachine_flist::BlockRef::seal(bytes);
            library.cache().insert(&block, bytes).unwrap();
            library.set_cache_limit(Some(1)).unwrap();
            library.cache().path_of(&block)
        }
    }

    #[test]
    fn a_machine_of_another_home_that_can_not_be_read_stops_the_removal_of_blocks() {
        let house = House::new();
        let block = house.with_a_block_too_many();
        house.machine("b", "running");
        let spec = house.path("b/machines").join(ID).join("spec.json");
        fs::write(&spec, "{").unwrap();
        let engine = house.engine("a");
        let failures = [engine.prune_images().unwrap_err(), engine.trim_cache().unwrap_err()];
        let doctor = describe_cache(engine.home()).unwrap_err();
        for failure in failures.into_iter().chain([doctor]) {
            let text = failure.to_string();
            let home = house.path("b").display().to_string();
            assert!(text.contains(&home) && text.contains(ID), "{text}");
            assert!(failure.hint.is_some_and(|hint| hint.contains(&home)), "{text}");
            assert!(block.exists());
        }
        // A home of a newer program might need any block.
        fs::remove_dir_all(spec.parent().unwrap()).unwrap();
        fs::write(house.path("b/format"), r#"{"version":9}"#).unwrap();
        let failure = engine.prune_images().unwrap_err();
        assert!(
            failure.to_string().contains("format version 9") && block.exists(),
            "{failure}"
        );
        fs::remove_dir_all(house.path("b")).unwrap();
        let report = engine.prune_images().unwrap();
        assert_eq!((report.forgotten, report.blocks), (vec![house.path("b")], 1));
        assert!(!block.exists());
    }

    #[test]
    fn what_an_active_machine_of_any_home_uses_is_asked_for_before_blocks_go() {
        let house = House::new();
        let block = house.with_a_block_too_many();
        house.machine("b", "running");
        // Its image is not there, so nobody can say which blocks it needs.
        let failure = house.engine("a").trim_cache().unwrap_err();
        assert!(
            failure.to_string().contains(&house.path("b").display().to_string()),
            "{failure}"
        );
        assert!(block.exists());
        house.machine("b", "created");
        let report = house.engine("a").trim_cache().unwrap().unwrap();
        assert_eq!((report.blocks, report.over), (1, 0));
    }

    #[test]
    fn the_cache_of_a_home_with_an_active_machine_stays_where_it_is() {
        let house = House::new();
        house.machine("a", "running");
        let engine = house.engine("a");
        for folder in [None, Some(house.path("other"))] {
            let failure = engine.share_cache(folder.as_deref()).unwrap_err();
            assert_eq!(failure.class, Class::Conflict, "{failure}");
        }
        engine.share_cache(Some(&house.path("cache"))).unwrap();
        house.machine("a", "created");
        engine.share_cache(None).unwrap();
        assert_eq!(
            describe_cache(engine.home()).unwrap(),
            house.path("a/blocks").display().to_string()
        );
    }
}

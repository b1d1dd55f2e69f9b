//! Images of registries in the library of this host, and as directories, for who looks into them from the host.
//!
//! ```text
//! <root>/images/<digest>/     the image, read-only, through FUSE; for as long as this program runs
//! containerd/<reference>      its name in the library, so that nobody prunes it
//! containerd/<digest>         the same for one that is used before its layers are here, with the first digits of the digest that it has
//!                             until then; it leads to the whole image afterwards
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::mount::{UnmountFlags, unmount};
use zmachine_engine::{Engine, import_failure};
use zmachine_flist::Digest;
use zmachine_image::lazy::is_lazy;
use zmachine_image::library::hold_images;
use zmachine_image::{Image, ImageName, ImageSource, Library, Mode, Silent};
use zmachine_mount::{Mount, Unmounter};
use zmachine_pack::oci::prefix::first_layers;
use zmachine_pack::oci::pull::pull;
use zmachine_pack::oci::{ImportOptions, lazy};
use zmachine_spec::pod::begun_image_name;
use zmachine_spec::{Class, Failure};

/// The first part of the names that images have by us.
const NAMESPACE: &str = "containerd";

/// The images.
pub(crate) struct Images {
    engine: Engine,
    root: PathBuf,
    mounted: Mutex<BTreeMap<String, Unmounter>>,
    /// One image comes at a time: layers of one image are asked for together.
    coming: Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Images {
    /// Images of the engine's home, shown below `root`.
    pub(crate) fn new(engine: Engine, root: &Path) -> Images {
        Images {
            engine,
            root: root.join("images"),
            mounted: Mutex::default(),
            coming: Mutex::default(),
        }
    }

    fn library(&self) -> Result<Library, Failure> {
        Ok(Library::open(self.engine.home().data())?)
    }

    /// Brings the image here that containerd knows by `reference`, and by the digest of its manifest where it says that; its digest in hex. One
    /// whose layers allow that is only begun: its files come as they are read.
    ///
    /// # Errors
    /// When it cannot be had.
    pub(crate) fn bring(&self, reference: &str, manifest: Option<&str>) -> Result<String, Failure> {
        let _one = lock(&self.coming);
        let text = format!("docker://{}", exact(reference, manifest));
        let source = ImageSource::parse(&text).map_err(|error| Failure::from_error(Class::Usage, &error))?;
        let library = self.library()?;
        let options = ImportOptions {
            is_lazy: true,
            ..self.engine.import_options()?
        };
        // Without the names that an image gets which a user pulls: this one is containerd's.
        let image = pull(&source, &options, &library, Mode::Container, &Silent)
            .map_err(import_failure)?
            .image;
        let digest = image.digest.to_string();
        let begun = is_lazy(&image.directory).then(|| begun_image_name(&digest));
        let names = [Some(format!("{NAMESPACE}/{reference}")), begun];
        for name in names.into_iter().flatten() {
            self.hold(&library, &parsed_name(&name)?, image.digest)?;
        }
        Ok(digest)
    }

    /// Gives an image a name, so that nobody prunes it.
    fn hold(&self, library: &Library, name: &ImageName, digest: Digest) -> Result<(), Failure> {
        let _kept = hold_images(self.engine.home().data())?;
        // One that was pruned this very moment is brought when containerd asks again.
        library.by_its_digest(&digest, Mode::Container, name.as_str())?;
        Ok(library.set_name(name, &digest)?)
    }

    /// The image that the first `depth` layers of another one are; its digest in hex.
    ///
    /// # Errors
    /// When it cannot be had.
    pub(crate) fn first_layers(&self, digest: &str, depth: usize) -> Result<String, Failure> {
        let _one = lock(&self.coming);
        let library = self.library()?;
        // It is made of layers, so they have to be here.
        let image = self.engine.complete_image(&library, &self.image(digest)?, &Silent)?;
        let shorter = first_layers(&image.digest, depth, &library).map_err(import_failure)?;
        let name = format!("{NAMESPACE}/{digest:.24}-{depth}");
        self.hold(&library, &parsed_name(&name)?, shorter.digest)?;
        Ok(shorter.digest.to_string())
    }

    /// What an image is by now: the whole one, when it was begun and all of it has come.
    pub(crate) fn current(&self, digest: &str) -> String {
        let name = parsed_name(&begun_image_name(digest)).ok();
        let whole = name.and_then(|name| self.library().ok()?.find(&name).ok().flatten());
        whole.map_or_else(|| digest.to_owned(), |whole| whole.to_string())
    }

    /// Has the rest of an image that was begun come, beside all else.
    pub(crate) fn complete_later(&self, digest: &str) {
        let begun = self.image(digest);
        if let Err(failure) = begun.and_then(|image| self.engine.complete_later(&image.directory)) {
            eprintln!("warning: {failure}");
        }
    }

    /// Unmounts an image.
    fn hide(&self, digest: &str) {
        if let Some(mut mounted) = lock(&self.mounted).remove(digest) {
            let _ = mounted.end();
        }
        let _ = unmount(self.root.join(digest), UnmountFlags::DETACH);
        let _ = fs::remove_dir(self.root.join(digest));
    }

    /// Takes the names of an image away that it has by us, those of its beginning as well.
    pub(crate) fn give_up(&self, digest: &str) {
        self.hide(digest);
        let Ok(library) = self.library() else { return };
        let Ok(all) = library.list() else { return };
        let names = all
            .iter()
            .filter(|image| image.digest.to_string() == digest)
            .flat_map(|image| &image.names);
        let shown: Vec<String> = lock(&self.mounted).keys().cloned().collect();
        for name in names.filter(|name| name.as_str().starts_with(&format!("{NAMESPACE}/"))) {
            let _ = library.remove_name(name);
            for begun in shown.iter().filter(|shown| begun_image_name(shown) == name.as_str()) {
                self.hide(begun);
            }
        }
    }

    /// A directory of this host that shows the image.
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub(crate) fn directory(&self, digest: &str) -> Result<PathBuf, Failure> {
        let place = self.root.join(digest);
        let mut mounted = lock(&self.mounted);
        if mounted.contains_key(digest) {
            return Ok(place);
        }
        // Of one of us that was killed.
        let _ = unmount(&place, UnmountFlags::DETACH);
        fs::create_dir_all(&place)?;
        let image = self.image(digest)?;
        let flist = image.open_flist()?;
        let fetcher = lazy::fetcher(&image, flist.routes, &self.library()?).map_err(import_failure)?;
        let mount = Mount::new(flist.tree, fetcher, &place, digest, |problem| {
            eprintln!("warning: {problem}")
        });
        let mut mount = mount.map_err(|error| Failure::from_error(Class::Failed, &error).hint(error.hint()))?;
        mounted.insert(digest.to_owned(), mount.unmounter());
        let thread = std::thread::Builder::new().name("image".to_owned());
        thread.spawn(move || {
            if let Err(error) = mount.serve() {
                eprintln!("warning: {error}");
            }
        })?;
        Ok(place)
    }

    fn image(&self, digest: &str) -> Result<Image, Failure> {
        Ok(self
            .library()?
            .by_its_digest(&parsed(digest)?, Mode::Container, digest)?)
    }

    /// Unmounts everything.
    pub(crate) fn end(&self) {
        for digest in std::mem::take(&mut *lock(&self.mounted)).into_keys() {
            let _ = unmount(self.root.join(digest), UnmountFlags::DETACH);
        }
    }
}

fn parsed(digest: &str) -> Result<Digest, Failure> {
    digest
        .parse()
        .map_err(|error| Failure::from_error(Class::Failed, &error))
}

fn parsed_name(name: &str) -> Result<ImageName, Failure> {
    ImageName::new(name).map_err(|error| Failure::from_error(Class::Usage, &error))
}

/// A reference with a digest means that, whatever tag it also has: by a tag, every layer could be asked for of another image.
fn exact(reference: &str, manifest: Option<&str>) -> String {
    let (name, digest) = match (reference.split_once('@'), manifest) {
        (Some((name, digest)), _) => (name, digest),
        (None, Some(digest)) => (reference, digest),
        (None, None) => return reference.to_owned(),
    };
    let path = name.rfind('/').map_or(0, |at| at + 1);
    let end = name[path..].find(':').map_or(name.len(), |at| path + at);
    format!("{}@{digest}", &name[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_wins_over_a_tag() {
        let cases = [
            ("r:5000/a/b:1", "r:5000/a/b:1"),
            ("r:5000/a/b:1@sha256:0", "r:5000/a/b@sha256:0"),
            ("r:5000/a/b@sha256:0", "r:5000/a/b@sha256:0"),
        ];
        for (reference, expected) in cases {
            assert_eq!(exact(reference, None), expected);
        }
        assert_eq!(exact("r:5000/a/b:1", Some("sha256:1")), "r:5000/a/b@sha256:1");
    }
}

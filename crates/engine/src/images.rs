//! From what a user writes to an image on this host: the one place that knows all kinds of references.
//!
//! A name here wins. Otherwise a name leads to a registry, `docker://`, `oci:` and archives to images of other engines, whose layers are
//! kept here; paths and URLs to flists.

mod kernel;
mod lazy;
mod level;
mod remove;

use std::path::{Path, PathBuf};

use zmachine_flist::Digest;
use zmachine_image::library::hold_images;
use zmachine_image::reference::Pick;
use zmachine_image::{FetchOptions, Image, ImageName, ImageSource, Library, Mode, Progress, PullPolicy, Reference};
use zmachine_pack::oci::pull::{Pulled, pull};
use zmachine_pack::oci::registries::{self, Registries, RegistriesError};
use zmachine_pack::oci::{ImportError, ImportOptions, images_of, recognize};
use zmachine_spec::{Class, Failure, Home};
use zmachine_store::events::{self, Event, Object};

pub use self::level::guest_level;
pub use self::remove::Removed;
use super::Engine;

/// Where administrators say what is true for all homes.
const SYSTEM: &str = "/etc/zmachine";

/// How often an image is brought here again that is pruned before anything needs it.
const ROUNDS: usize = 3;

/// What a request for an image may need of this host.
#[derive(Debug, Clone)]
pub struct RegistryFiles {
    /// Files with credentials of registries, as docker and podman write them.
    pub auth: Vec<PathBuf>,
    /// What is said about registries; a later file counts.
    pub registries: Vec<PathBuf>,
    /// Where archives are unpacked meanwhile.
    pub temporary: PathBuf,
}

impl RegistryFiles {
    /// Without any credentials.
    pub(super) fn of(home: &Home) -> RegistryFiles {
        RegistryFiles {
            auth: Vec::new(),
            registries: vec![
                Path::new(SYSTEM).join(registries::FILE),
                home.data().join(registries::FILE),
            ],
            temporary: "/var/tmp".into(),
        }
    }
}

/// A request for an image.
pub struct ImageRequest<'a> {
    /// As the user wrote it.
    pub text: &'a str,
    /// Relative paths are relative to this.
    pub cwd: &'a Path,
    /// Whether what is here is enough.
    pub pull: PullPolicy,
    /// What it is taken for.
    pub mode: Mode,
    /// Whether it may be used before its layers are here, where its registry and its format allow that.
    pub is_lazy: bool,
    /// Block stores in place of those of a flist.
    pub stores: &'a [String],
    /// Told about downloads.
    pub progress: &'a dyn Progress,
}

/// An image that is here.
#[derive(Debug, Clone)]
pub struct FoundImage {
    /// The image.
    pub image: Image,
    /// The names that it has or should have here, the best first.
    pub names: Vec<ImageName>,
    /// `HOST/REPOSITORY@DIGEST`, when it comes from a registry.
    pub pinned: Option<String>,
}

impl FoundImage {
    pub(super) fn plain(image: Image) -> FoundImage {
        FoundImage {
            image,
            names: Vec::new(),
            pinned: None,
        }
    }
}

impl Engine {
    /// The same engine with other files about registries.
    #[must_use]
    pub fn with_registry_files(self, files: RegistryFiles) -> Engine {
        Engine {
            registry_files: files,
            ..self
        }
    }

    /// The files about registries that it uses.
    pub fn registry_files(&self) -> &RegistryFiles {
        &self.registry_files
    }

    /// What is said about registries on this host.
    ///
    /// # Errors
    /// When a file is there and cannot be used.
    pub fn registries(&self) -> Result<Registries, Failure> {
        Registries::load(&self.registry_files.registries).map_err(|e| {
            let hint = match &e {
                RegistriesError::File(_) => "make it readable, or remove it",
                RegistriesError::Content { .. } => "docs/images.md says what may be in it",
            };
            Failure::from_error(Class::Usage, &e).hint(hint)
        })
    }

    /// How registries are spoken to.
    ///
    /// # Errors
    /// As [`Engine::registries`].
    pub fn import_options(&self) -> Result<ImportOptions, Failure> {
        Ok(ImportOptions {
            auth_files: self.registry_files.auth.clone(),
            registries: self.registries()?,
            registry_files: self.registry_files.registries.clone(),
            amd64_level: guest_level(),
            temporary: self.registry_files.temporary.clone(),
            ..ImportOptions::default()
        })
    }

    /// Brings the image here that the user means. Images of registries get their names; others have none by this.
    ///
    /// # Errors
    /// When it is nowhere, or cannot be had.
    pub fn image(&self, request: &ImageRequest<'_>) -> Result<FoundImage, Failure> {
        let reference = reference(request)?;
        let options = FetchOptions {
            stores: request.stores.to_vec(),
            ..FetchOptions::default()
        };
        let library = Library::open(self.home.data())?.with_fetch_options(options);
        let asked = Asked {
            engine: self,
            library: &library,
            request,
        };
        match &reference {
            Reference::Name(name) => asked.name(name),
            Reference::Image(source) => asked.source(source, source.local_name().as_ref()),
            Reference::Path(path) => match recognize(path, &self.registry_files.temporary) {
                Some(source) => asked.source(&source, None),
                None => asked.flist(&reference),
            },
            Reference::Url(_) => asked.flist(&reference),
        }
    }

    /// [`Engine::image`] that always asks where it comes from, and gives the image the name `name`; without one, the name that it has
    /// there.
    ///
    /// # Errors
    /// As [`Engine::image`], and when there is no name.
    pub fn pull(&self, request: &ImageRequest<'_>, name: Option<&ImageName>) -> Result<(ImageName, Image), Failure> {
        let library = Library::open(self.home.data())?;
        for _ in 0..ROUNDS {
            let found = self.image(request)?;
            let name = match name.or(found.names.first()) {
                Some(name) => name.clone(),
                None => name_of_file(request.text)?,
            };
            // What was pruned in between is brought again.
            let _kept = hold_images(self.home.data())?;
            if found.image.directory.is_dir() {
                library.set_name(&name, &found.image.digest)?;
                self.tell_of_image(&name.to_string(), &found.image.digest, "pulled");
                return Ok((name, found.image));
            }
        }
        Err(pruned(request.text))
    }
}

impl Engine {
    /// Writes down that something happened to an image.
    pub fn tell_of_image(&self, name: &str, digest: &Digest, what: &str) {
        events::record(&self.home, &Event::of(Object::Image, &digest.to_string(), name, what));
    }

    /// Brings every image of an archive here, under the names that it has there; names and digests.
    ///
    /// # Errors
    /// When it is no archive of images, or one cannot be had.
    pub fn load(&self, archive: &Path, progress: &dyn Progress) -> Result<Vec<(String, Digest)>, Failure> {
        let temporary = &self.registry_files.temporary;
        let images = images_of(archive, temporary).map_err(import_failure)?;
        let library = Library::open(self.home.data())?;
        let request = ImageRequest {
            text: &archive.to_string_lossy(),
            cwd: Path::new("/"),
            pull: PullPolicy::Always,
            mode: Mode::Auto,
            is_lazy: false,
            stores: &[],
            progress,
        };
        let asked = Asked {
            engine: self,
            library: &library,
            request: &request,
        };
        let mut loaded = Vec::new();
        for source in images {
            let found = asked.source(&source, None)?;
            let _kept = hold_images(self.home.data())?;
            for name in &found.names {
                library.set_name(name, &found.image.digest)?;
                loaded.push((name.to_string(), found.image.digest));
            }
            if found.names.is_empty() {
                loaded.push(("-".to_owned(), found.image.digest));
            }
        }
        Ok(loaded)
    }
}

fn reference(request: &ImageRequest<'_>) -> Result<Reference, Failure> {
    Reference::parse(request.text, request.cwd)
        .map_err(|e| Failure::from_error(Class::Usage, &e).hint(e.hint().unwrap_or_default()))
}

fn pruned(text: &str) -> Failure {
    Failure::new(
        Class::Conflict,
        format!("{text} is pruned again and again while it is pulled"),
    )
    .hint("try again when 'zmachine image prune' has ended")
}

/// The name of an image after its file: `app` for `./app.fl`.
fn name_of_file(text: &str) -> Result<ImageName, Failure> {
    let last = text
        .split(['?', '#'])
        .next()
        .unwrap_or_default()
        .rsplit('/')
        .next()
        .unwrap_or_default();
    let ends = [".flist", ".fl", ".tar.gz", ".tgz", ".tar"];
    let stem = ends.iter().find_map(|end| last.strip_suffix(end)).unwrap_or(last);
    ImageName::new(stem).map_err(|_| {
        Failure::new(Class::Usage, format!("'{text}' has no name for the image"))
            .hint("say which name it gets: zmachine image pull IMAGE NAME")
    })
}

/// One request under way.
struct Asked<'a> {
    engine: &'a Engine,
    library: &'a Library,
    request: &'a ImageRequest<'a>,
}

impl Asked<'_> {
    fn flist(&self, reference: &Reference) -> Result<FoundImage, Failure> {
        let ImageRequest {
            pull, mode, progress, ..
        } = *self.request;
        Ok(FoundImage::plain(
            self.library.resolve_as(reference, pull, mode, progress)?,
        ))
    }

    /// An image that is here.
    fn here(&self, digest: &Digest) -> Result<Image, Failure> {
        let ImageRequest {
            mode, text, progress, ..
        } = *self.request;
        let image = self.library.by_its_digest(digest, mode, text)?;
        match self.request.is_lazy {
            true => Ok(image),
            false => self.engine.complete_image(self.library, &image, progress),
        }
    }

    fn name(&self, name: &ImageName) -> Result<FoundImage, Failure> {
        let registries = self.engine.registries()?;
        let source = name.in_registry(registries.default_host());
        let local = self.library.find(name)?;
        let Some(source) = source else {
            return match local {
                Some(digest) => Ok(FoundImage::plain(self.here(&digest)?)),
                None => Err(zmachine_image::ResolveError::UnknownName { name: name.to_string() }.into()),
            };
        };
        let kept_as = source.local_name();
        // Names that somebody gave to something else are nobody's in a registry.
        let is_own = match &local {
            Some(_) => self.library.remembered(&source.to_string())?.is_none(),
            None => false,
        };
        if let (Some(digest), true) = (local, is_own) {
            return Ok(FoundImage::plain(self.here(&digest)?));
        }
        if local.is_none() && self.request.pull == PullPolicy::Never {
            return Err(zmachine_image::ResolveError::NotPulled {
                reference: name.to_string(),
            }
            .into());
        }
        let is_here = local.is_some();
        let place = source.to_string();
        let place = place.trim_start_matches("docker://");
        self.source(&source, kept_as.as_ref())
            .map_err(|failure| match failure.class {
                Class::Fetch if !is_here => failure.context(format!(
                    "there is no image '{name}' here, and {place} could not be pulled"
                )),
                _ => failure,
            })
    }

    /// An image of another engine, kept under `name`.
    fn source(&self, source: &ImageSource, name: Option<&ImageName>) -> Result<FoundImage, Failure> {
        let shown = source.to_string();
        let known = match name {
            Some(_) => self.library.remembered(&shown)?,
            None => None,
        };
        // By its name, which may have been taken away from the one that is remembered.
        let local = name.map(|name| self.library.find(name)).transpose()?.flatten();
        let known = known.filter(|(digest, _)| Some(*digest) == local);
        let is_enough = match self.request.pull {
            PullPolicy::Missing => true,
            PullPolicy::Never => true,
            PullPolicy::Always | PullPolicy::Newer => source.is_pinned(),
        };
        if let (Some((digest, manifest)), true) = (&known, is_enough) {
            return self.found(self.here(digest)?, source, Vec::new(), manifest);
        }
        if let (Some(digest), None, true) = (local, &known, is_enough) {
            return Ok(FoundImage::plain(self.here(&digest)?));
        }
        if self.request.pull == PullPolicy::Never && matches!(source, ImageSource::Registry { .. }) {
            return Err(zmachine_image::ResolveError::NotPulled { reference: shown }.into());
        }
        match self.bring(source, name) {
            Err(failure) if self.request.pull == PullPolicy::Newer && failure.class == Class::Fetch => match known {
                Some((digest, manifest)) => {
                    self.request
                        .progress
                        .message(&format!("{}: the image that is here is used", failure.message));
                    self.found(self.here(&digest)?, source, Vec::new(), &manifest)
                }
                None => Err(failure),
            },
            brought => brought,
        }
    }

    /// Brings it here, and gives it its name.
    fn bring(&self, source: &ImageSource, name: Option<&ImageName>) -> Result<FoundImage, Failure> {
        let options = ImportOptions {
            is_lazy: self.request.is_lazy,
            ..self.engine.import_options()?
        };
        let ImageRequest { mode, progress, .. } = *self.request;
        for _ in 0..ROUNDS {
            let pulled = pull(source, &options, self.library, mode, progress);
            let Pulled {
                image,
                digest,
                names,
                other_platform,
                ..
            } = pulled.map_err(import_failure)?;
            if let Some(platform) = other_platform {
                progress.message(&format!(
                    "warning: the image is for {platform}: a machine of this host cannot run its programs"
                ));
            }
            let Some(name) = name else {
                return self.found(image, source, names, &digest);
            };
            let _kept = hold_images(self.engine.home.data())?;
            if image.directory.is_dir() {
                self.library.set_name(name, &image.digest)?;
                self.library.remember(&source.to_string(), &digest, &image.digest)?;
                return self.found(image, source, names, &digest);
            }
        }
        Err(pruned(self.request.text))
    }

    fn found(
        &self,
        image: Image,
        source: &ImageSource,
        names: Vec<String>,
        manifest: &str,
    ) -> Result<FoundImage, Failure> {
        let picked = match source {
            ImageSource::DockerArchive {
                pick: Pick::Name(name), ..
            } if names.contains(name) => Some(name.clone()),
            _ => None,
        };
        let there = picked.into_iter().chain(names);
        let named = |name: String| {
            let source = ImageSource::named(&name, zmachine_image::reference::DOCKER_HUB);
            source.and_then(|source| source.local_name())
        };
        Ok(FoundImage {
            image,
            names: source.local_name().into_iter().chain(there.filter_map(named)).collect(),
            pinned: source.pinned(manifest),
        })
    }
}

/// A failed import in the words of a command.
pub fn import_failure(error: ImportError) -> Failure {
    match error {
        ImportError::Here { image, source } => Failure::from(*source).context(format!("{image} cannot be kept")),
        error => {
            let class = match error.is_fetch_failure() {
                true => Class::Fetch,
                false => Class::Unsupported,
            };
            let hint = error.hint();
            let failure = Failure::from_error(class, &error);
            match hint {
                Some(hint) => failure.hint(hint),
                None => failure,
            }
        }
    }
}

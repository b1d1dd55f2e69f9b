//! The images of a home: from a reference to a verified local image, under a digest and any number of names.
//!
//! ```text
//! images/<digest>/image.fl        the flist; <digest> = 64 hex digits of BLAKE2b-256 of its bytes
//! images/<digest>/image.json      what was found out about it (module `record`)
//! images/<digest>/layers.json     which layers it has, when it is a container image (module `layers`), beside manifest.json and config.json
//! images/<digest>/files/<name>    files of the image that the host uses: a VM's kernel and initrd
//! images/<digest>/...             what `rootfs` derives from it
//! images/refs/<name>              symbolic link to ../<digest>
//! images/urls/<hex>.json          which image a URL, or a name in a registry, led to (module `origin`)
//! images/layers/<hex>/            layers of container images (module `layers`)
//! images/.new-*                   under construction (module `staging`)
//! images/.lock, images/.use, images/.trim, images/.place
//! cache.json                      where the block cache is, and its limit (module `cache_location`)
//! ```
//!
//! Invariants: `images/<digest>` appears by a rename, when flist and record are complete, synced and checked; it is never
//! changed afterwards. Several processes may resolve the same image at once. A failed resolve leaves nothing. An image
//! that was resolved once needs no network to be resolved again; its blocks come through [`Fetcher`], from the cache first.

mod cache_location;
mod cache_users;
mod check;
mod error;
mod layers;
mod local;
mod names;
mod origin;
mod prune;
mod record;
mod share;
mod sniff;
mod staging;
mod trim;

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use zmachine_flist::{Digest, Flist, RouteTable, Startup, startup};
use zmachine_sys::file::{self, FileError, open_regular};
use zmachine_sys::lock::FileLock;

use crate::cache::BlockCache;
use crate::facts::{ImageFacts, KindError, Mode};
use crate::fetch::{FetchError, FetchOptions, Fetcher};
use crate::pace::Paced;
use crate::progress::Progress;
use crate::reader::FileReader;
use crate::reference::{ImageName, Reference};
use crate::store::{CREDENTIALS_FILE, Credentials, StoreError, agent, classify, redact};
use cache_location::CacheLocation;
pub use check::{CacheReport, DamagedBlock, Mended};
pub use error::ResolveError;
pub use layers::{Layer, NewLayer};
pub use local::NewImage;
use names::{Names, unknown_name};
use origin::Origin;
pub use prune::{Prune, PruneReport, hold_images};
use record::{Record, StartupRecord};
pub use share::{ShareChange, ShareError, blocks_directory};
use sniff::{SNIFF_LEN, sniff};
use staging::{Received, Staging, clear_leftovers, hasher, stream};
pub use trim::{CacheUsage, TrimReport};

/// The longest `.startup.toml` that is read, in bytes. Real ones have a few hundred.
const STARTUP_LIMIT: u64 = 1 << 20;

/// A download whose server says nothing for this long is given up.
const SILENCE: Duration = Duration::from_secs(30);

/// Threads that [`Library::fetch_blocks`] uses; a store's answer time is what they hide.
const FETCH_THREADS: usize = 8;

/// When a URL or a registry is asked again. Local files are always read as they are now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PullPolicy {
    /// Only when nothing is known of the URL.
    #[default]
    Missing,
    /// Always; an unchanged flist is not sent again when the server can tell (ETag, Last-Modified).
    Always,
    /// Never: what is not here is an error.
    Never,
    /// Always; what is here is used when the server does not answer, or has nothing else.
    Newer,
}

/// A verified local image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// BLAKE2b-256 of the flist's bytes: the image's identity.
    pub digest: Digest,
    /// `images/<digest>`, where derived files belong as well.
    pub directory: PathBuf,
    /// What it is.
    pub facts: ImageFacts,
}

impl Image {
    /// The flist's file.
    pub fn flist_path(&self) -> PathBuf {
        self.directory.join("image.fl")
    }

    /// Reads the flist, after checking that it is the one that was pulled.
    ///
    /// # Errors
    /// [`ResolveError::Altered`] when its digest has changed, or why it could not be read.
    pub fn open_flist(&self) -> Result<Flist, ResolveError> {
        let path = self.flist_path();
        let name = path.display().to_string();
        let found = digest_of_file(&path, &name)?;
        if found != self.digest {
            return Err(ResolveError::Altered {
                path,
                found: found.to_string(),
            });
        }
        open_flist(&path, &name)
    }
}

/// One image of [`Library::list`].
#[derive(Debug)]
pub struct ListedImage {
    /// The image's identity.
    pub digest: Digest,
    /// Its names, sorted.
    pub names: Vec<ImageName>,
    /// Length of the flist in bytes.
    pub flist_bytes: u64,
    /// What it is, or why that cannot be told.
    pub facts: Result<ImageFacts, ResolveError>,
    /// It was begun lazily, and another image has come in its place; only machines that run of it keep it. Listings leave it out.
    pub is_superseded: bool,
}

/// The images of one home.
#[derive(Debug, Clone)]
pub struct Library {
    images: PathBuf,
    place: CacheLocation,
    cache: BlockCache,
    options: FetchOptions,
}

impl Library {
    /// Opens the library of `home`, making what is missing and clearing what crashed processes left under construction. A home
    /// whose shared cache does not know it (it was moved) comes to it again.
    ///
    /// # Errors
    /// When the directories cannot be made or read, or a shared cache not be used.
    pub fn open(home: &Path) -> Result<Library, ResolveError> {
        let images = home.join("images");
        file::make_dirs(&images.join("refs"))?;
        clear_leftovers(&images)?;
        let place = CacheLocation::of(home)?;
        place.check()?;
        if !cache_users::is_in(&place) {
            let _alone = FileLock::exclusive(&place.lock())?;
            cache_users::add(&place)?;
        }
        Ok(Library {
            images,
            cache: BlockCache::open(&place.blocks())?,
            place,
            options: FetchOptions::default(),
        })
    }

    /// The same library with other ways to the stores (`--store URL`). Credentials stay those of the home.
    #[must_use]
    pub fn with_fetch_options(self, options: FetchOptions) -> Library {
        Library { options, ..self }
    }

    /// The homes that share the block cache with this one, itself included; none when it has its own.
    ///
    /// # Errors
    /// When the list of them cannot be read.
    pub fn homes(&self) -> Result<Vec<PathBuf>, ResolveError> {
        cache_users::list(&self.place)
    }

    /// The images of another home of the cache, which must be there.
    fn of_other(&self, home: &Path) -> Library {
        Library {
            images: home.join("images"),
            ..self.clone()
        }
    }

    /// The block cache of the home.
    pub fn cache(&self) -> &BlockCache {
        &self.cache
    }

    /// A fetcher for the blocks of a flist with these routes, with the credentials that the home has for their stores.
    ///
    /// # Errors
    /// [`ResolveError::Credentials`] when these cannot be read.
    pub fn fetcher(&self, routes: RouteTable) -> Result<Fetcher, ResolveError> {
        let options = FetchOptions {
            credentials: Credentials::load(&self.images.with_file_name(CREDENTIALS_FILE))?,
            ..self.options.clone()
        };
        Ok(Fetcher::new(self.cache.clone(), routes, options))
    }

    /// The image behind `reference`, as a machine of the kind that its content says.
    ///
    /// # Errors
    /// Everything in [`ResolveError`]; nothing is left behind then.
    pub fn resolve(
        &self,
        reference: &Reference,
        policy: PullPolicy,
        progress: &dyn Progress,
    ) -> Result<Image, ResolveError> {
        self.resolve_as(reference, policy, Mode::Auto, progress)
    }

    /// [`Library::resolve`] for a user who says which kind of machine it is.
    ///
    /// # Errors
    /// As [`Library::resolve`].
    pub fn resolve_as(
        &self,
        reference: &Reference,
        policy: PullPolicy,
        mode: Mode,
        progress: &dyn Progress,
    ) -> Result<Image, ResolveError> {
        let asked = Asked {
            library: self,
            shown: reference.to_string(),
            mode,
            progress,
        };
        match reference {
            Reference::Path(path) => asked.path(path),
            Reference::Url(url) => asked.url(url, policy),
            Reference::Name(name) => {
                let found = self.find(name)?;
                let digest = found.ok_or_else(|| unknown_name(name))?;
                self.image(&digest, mode, &asked.shown)
            }
            Reference::Image(image) => {
                let name = image.local_name();
                let found = name.map(|name| self.find(&name)).transpose()?.flatten();
                let digest = found.ok_or_else(|| ResolveError::NotPulled {
                    reference: asked.shown.clone(),
                })?;
                self.image(&digest, mode, &asked.shown)
            }
        }
    }

    /// Resolves `reference` anew and names it.
    ///
    /// # Errors
    /// As [`Library::resolve`], and when the name cannot be written.
    pub fn pull(
        &self,
        reference: &Reference,
        name: &ImageName,
        progress: &dyn Progress,
    ) -> Result<Image, ResolveError> {
        // Not while something is on its way, which may take as long as a server likes: who prunes waits for this lock.
        let mut image = self.resolve(reference, PullPolicy::Always, progress)?;
        let _kept = FileLock::shared(&self.images.join(".use"))?;
        if !self.place_of(&image.digest).is_dir() {
            // It was pruned in between, having no name yet.
            image = self.resolve(reference, PullPolicy::Always, progress)?;
        }
        self.set_name(name, &image.digest)?;
        Ok(image)
    }

    /// Brings what has to be downloaded for `reference` here: for whoever resolves it while holding [`hold_images`] and must not hold up
    /// others for as long as a server likes. The policy that finds it without asking the server again.
    ///
    /// # Errors
    /// As [`Library::resolve_as`].
    pub fn download(
        &self,
        reference: &Reference,
        policy: PullPolicy,
        mode: Mode,
        progress: &dyn Progress,
    ) -> Result<PullPolicy, ResolveError> {
        match (reference, policy) {
            (Reference::Url(_), PullPolicy::Missing | PullPolicy::Always | PullPolicy::Newer) => {
                self.resolve_as(reference, policy, mode, progress)?;
                Ok(PullPolicy::Missing)
            }
            (_, policy) => Ok(policy),
        }
    }

    /// Fetches every block of the image into the cache; `progress` counts blocks.
    ///
    /// # Errors
    /// [`ResolveError::Fetch`] with the first file whose block could not be fetched.
    pub fn fetch_blocks(&self, image: &Image, progress: &dyn Progress) -> Result<(), ResolveError> {
        let flist = image.open_flist()?;
        let blocks = flist.tree.unique_blocks();
        progress.begin(Some(blocks.len() as u64), "fetching blocks");
        let fetcher = self.fetcher(flist.routes.clone())?;
        fetcher
            .fetch_all(&blocks, FETCH_THREADS, progress)
            .map_err(|source| ResolveError::Fetch {
                reference: image.digest.to_string(),
                file: file_with_block(&flist, &source),
                source,
            })
    }

    /// A file of the image as a file of this host, `images/<digest>/files/<name>`, made when it is not there. `check` is shown
    /// its bytes first.
    ///
    /// # Errors
    /// When the file is not one, a block cannot be fetched, or `check` refuses it; nothing is left then.
    pub fn host_file<E: From<ResolveError>>(
        &self,
        image: &Image,
        path: &str,
        name: &str,
        check: impl FnOnce(&[u8]) -> Result<(), E>,
    ) -> Result<PathBuf, E> {
        let folder = image.directory.join("files");
        let place = folder.join(name);
        if place.is_file() {
            return Ok(place);
        }
        let bytes = self.file_bytes(image, path)?;
        check(&bytes)?;
        let write = || -> Result<(), FileError> {
            file::make_dirs(&folder)?;
            file::replace(&place, &bytes)
        };
        write().map_err(ResolveError::from)?;
        Ok(place)
    }

    /// A file of the image `digest`, read at any place.
    ///
    /// # Errors
    /// When there is no such image, or no regular file at `path`.
    pub fn read_file(&self, digest: &Digest, path: &str) -> Result<FileReader, ResolveError> {
        let reference = digest.to_string();
        let image = self.image(digest, Mode::Auto, &reference)?;
        let flist = image.open_flist()?;
        let fetcher = self.fetcher(flist.routes.clone())?;
        FileReader::new(&flist, path, fetcher).ok_or_else(|| ResolveError::Kind {
            reference,
            source: KindError::Unusable {
                path: path.to_owned(),
                found: "no regular file".to_owned(),
            },
        })
    }

    /// The content of a file of the image; links are followed inside of it.
    fn file_bytes(&self, image: &Image, path: &str) -> Result<Vec<u8>, ResolveError> {
        let reference = image.digest.to_string();
        let flist = image.open_flist()?;
        let content = flist.tree.resolve(path.as_bytes()).ok();
        let Some((size, blocks)) = content.and_then(|node| flist.tree.get(node).content()) else {
            return Err(ResolveError::Kind {
                reference,
                source: KindError::Unusable {
                    path: path.to_owned(),
                    found: "no regular file".to_owned(),
                },
            });
        };
        let fetcher = self.fetcher(flist.routes.clone())?;
        let mut bytes = Vec::with_capacity(size as usize);
        for block in blocks {
            let fetched = fetcher.fetch(block).map_err(|source| ResolveError::Fetch {
                reference: reference.clone(),
                file: path.to_owned(),
                source,
            })?;
            let cached = self.cache.path_of(block);
            let plain = fetched.into_bytes(block.len);
            bytes.extend(plain.map_err(|e| FileError::io("read", &cached, e))?);
        }
        Ok(bytes)
    }

    /// Removes an image with its names and derived files; its blocks stay in the cache. Whether a machine still needs it
    /// is the caller's question.
    ///
    /// # Errors
    /// [`ResolveError::UnknownDigest`], or when it cannot be removed.
    pub fn remove(&self, digest: &Digest) -> Result<(), ResolveError> {
        let place = self.place_of(digest);
        if !place.is_dir() {
            return Err(unknown(digest));
        }
        for name in self.names()?.all()?.of(digest) {
            self.remove_name(&name)?;
        }
        Ok(file::remove_dir_all(&place)?)
    }

    /// All images, sorted by digest. One whose record cannot be read is listed with the reason.
    ///
    /// # Errors
    /// When the directory cannot be listed, or it cannot be told which image a name leads to.
    pub fn list(&self) -> Result<Vec<ListedImage>, ResolveError> {
        self.list_with(&self.names()?.all()?)
    }

    /// [`Library::list`] for who shows it: names that cannot be read are beside it, and decide nothing.
    ///
    /// # Errors
    /// When a directory cannot be listed.
    pub fn list_readable(&self) -> Result<(Vec<ListedImage>, Vec<ResolveError>), ResolveError> {
        let names = self.names()?;
        Ok((self.list_with(&names)?, names.unreadable))
    }

    fn list_with(&self, refs: &Names) -> Result<Vec<ListedImage>, ResolveError> {
        let mut listed = Vec::new();
        for name in names_in(&self.images)? {
            let Ok(digest) = name.parse::<Digest>() else { continue };
            let place = self.place_of(&digest);
            let record = Record::read(&place.join("image.json"));
            let names = refs.of(&digest);
            listed.push(ListedImage {
                digest,
                is_superseded: names.is_empty() && crate::lazy::is_complete(&place),
                names,
                flist_bytes: record.as_ref().map_or(0, |record| record.flist_bytes),
                facts: record.and_then(|record| record.facts(Mode::Auto, &name)),
            });
        }
        listed.sort_by_key(|image| image.digest);
        Ok(listed)
    }

    fn place_of(&self, digest: &Digest) -> PathBuf {
        self.images.join(digest.to_string())
    }

    /// An image that is here; `reference` names it in errors.
    fn image(&self, digest: &Digest, mode: Mode, reference: &str) -> Result<Image, ResolveError> {
        let directory = self.place_of(digest);
        if !directory.is_dir() {
            return Err(unknown(digest));
        }
        let record = Record::read(&directory.join("image.json"))?;
        Ok(Image {
            digest: *digest,
            facts: record.facts(mode, reference)?,
            directory,
        })
    }
}

/// One resolve under way.
struct Asked<'a> {
    library: &'a Library,
    /// The reference without credentials, for errors.
    shown: String,
    mode: Mode,
    progress: &'a dyn Progress,
}

impl Asked<'_> {
    fn path(&self, path: &Path) -> Result<Image, ResolveError> {
        let read_failed = |e| ResolveError::File(FileError::io("read", path, e));
        let mut source = match open_regular(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(ResolveError::MissingFile { path: path.to_owned() });
            }
            Err(e) => return Err(self.special(&e).unwrap_or_else(|| read_failed(e))),
        };
        let length = source.metadata().map_err(read_failed)?.len();
        let head = head_of(path)?;
        self.refuse_foreign(&head)?;
        let digest = digest_of_file(path, &self.shown)?;
        if self.library.place_of(&digest).is_dir() {
            return self.library.image(&digest, self.mode, &self.shown);
        }
        let staging = Staging::new(&self.library.images)?;
        self.progress.begin(Some(length), "copying the flist");
        let received = staging.receive(&mut source, self.progress, read_failed, &self.shown)?;
        self.admit(staging, &received, Some(path))
    }

    /// What is said of something that is no regular file.
    fn special(&self, error: &io::Error) -> Option<ResolveError> {
        let (found, advice) = match error.kind() {
            io::ErrorKind::IsADirectory => (
                "a directory",
                "make a flist of it: 'zmachine flist pack DIR -o FILE.fl --store URL'",
            ),
            io::ErrorKind::InvalidInput => ("a device, pipe or socket", "name the .fl file"),
            _ => return None,
        };
        Some(ResolveError::NotAFlist {
            reference: self.shown.clone(),
            found,
            advice,
        })
    }

    fn refuse_foreign(&self, head: &[u8]) -> Result<(), ResolveError> {
        match sniff(&self.shown, head) {
            None => Ok(()),
            Some(foreign) => Err(ResolveError::NotAFlist {
                reference: self.shown.clone(),
                found: foreign.found,
                advice: foreign.advice,
            }),
        }
    }

    fn url(&self, url: &str, policy: PullPolicy) -> Result<Image, ResolveError> {
        let origin = Origin::read(&self.library.images, url)?;
        let known = origin.and_then(|origin| Some((origin.digest.parse::<Digest>().ok()?, origin)));
        let known = known.filter(|(digest, _)| self.library.place_of(digest).is_dir());
        match (&known, policy) {
            (Some((digest, _)), PullPolicy::Missing | PullPolicy::Never) => {
                self.library.image(digest, self.mode, &self.shown)
            }
            (None, PullPolicy::Never) => Err(ResolveError::NotPulled {
                reference: self.shown.clone(),
            }),
            (Some((digest, _)), PullPolicy::Newer) => match self.download(url, known.as_ref()) {
                Err(error @ ResolveError::Download { .. }) => {
                    self.progress.message(&format!("{error}: what is here is used"));
                    self.library.image(digest, self.mode, &self.shown)
                }
                downloaded => downloaded,
            },
            _ => self.download(url, known.as_ref()),
        }
    }

    /// Asks the server; what is known already is not sent again when the server can tell.
    fn download(&self, url: &str, known: Option<&(Digest, Origin)>) -> Result<Image, ResolveError> {
        let timeouts = self.library.options.timeouts;
        let mut request = agent(timeouts)
            .get(url)
            .config()
            .timeout_recv_response(Some(timeouts.request))
            .timeout_per_read(Some(SILENCE.min(timeouts.request)))
            .build();
        if let Some((_, origin)) = known {
            if let Some(etag) = &origin.etag {
                request = request.header("if-none-match", etag);
            }
            if let Some(date) = &origin.last_modified {
                request = request.header("if-modified-since", date);
            }
        }
        let mut response = request.call().map_err(|e| self.failed(classify(&redact(url), e)))?;
        match (response.status().as_u16(), known) {
            (200, _) => {}
            (304, Some((digest, _))) => return self.library.image(digest, self.mode, &self.shown),
            (status, _) => {
                return Err(self.failed(StoreError::Status {
                    store: redact(url),
                    status,
                }));
            }
        }
        let header = |name| response.headers().get(name)?.to_str().ok().map(str::to_owned);
        let (etag, last_modified) = (header("etag"), header("last-modified"));
        self.progress
            .begin(response.body().content_length(), "downloading the flist");
        let staging = Staging::new(&self.library.images)?;
        let broke = |e| self.failed(classify(&redact(url), ureq::Error::Io(e)));
        let mut body = Paced::new(response.body_mut().as_reader(), timeouts);
        let received = staging.receive(&mut body, self.progress, broke, &self.shown)?;
        self.refuse_foreign(&head_of(&staging.flist())?)?;
        let image = self.admit(staging, &received, None)?;
        Origin::new(url, &image.digest.to_string(), etag, last_modified).write(&self.library.images, url)?;
        Ok(image)
    }

    fn failed(&self, source: StoreError) -> ResolveError {
        ResolveError::Download {
            reference: self.shown.clone(),
            source,
        }
    }

    /// Checks the staged flist, finds out what it is, and gives it its place. `original` is where it was copied from.
    fn admit(&self, staging: Staging, received: &Received, original: Option<&Path>) -> Result<Image, ResolveError> {
        let digest = to_digest(&received.digest);
        let place = self.library.place_of(&digest);
        if place.is_dir() {
            return self.library.image(&digest, self.mode, &self.shown);
        }
        let flist = open_flist(&staging.flist(), &self.shown).map_err(|e| {
            // The error should name the file that the user knows, not our copy of it.
            original
                .and_then(|path| open_flist(path, &self.shown).err())
                .unwrap_or(e)
        })?;
        let startup = self.read_startup(&flist)?;
        let record = Record::new(digest.to_string(), received.bytes, &flist, startup);
        // What makes no machine is refused before it has a place.
        record.facts(self.mode, &self.shown)?;
        file::replace_json(&staging.flist().with_file_name("image.json"), &record)?;
        staging.publish(&place)?;
        self.library.image(&digest, self.mode, &self.shown)
    }

    fn read_startup(&self, flist: &Flist) -> Result<StartupRecord, ResolveError> {
        let Ok(node) = flist.tree.resolve(startup::PATH) else {
            return Ok(StartupRecord::Absent);
        };
        let broken = |problem: &str| {
            Ok(StartupRecord::Broken {
                problem: problem.into(),
            })
        };
        let (size, blocks) = match flist.tree.get(node).content() {
            Some((size, _)) if size > STARTUP_LIMIT => return broken("it is longer than 1 MiB"),
            Some(content) => content,
            None => return broken("it is not a regular file"),
        };
        let fetcher = self.library.fetcher(flist.routes.clone())?;
        let mut bytes = Vec::with_capacity(size as usize);
        for block in blocks {
            let fetched = fetcher.fetch(block).map_err(|source| self.unread(source))?;
            let path = self.library.cache.path_of(block);
            let plain = fetched.into_bytes(block.len);
            bytes.extend(plain.map_err(|e| FileError::io("read", &path, e))?);
        }
        match Startup::parse("/.startup.toml", &bytes) {
            Ok(startup) => Ok(startup.into()),
            Err(e) => broken(&error::startup_problem(&e)),
        }
    }

    fn unread(&self, source: FetchError) -> ResolveError {
        ResolveError::Fetch {
            reference: self.shown.clone(),
            file: "/.startup.toml".into(),
            source,
        }
    }
}

fn unknown(digest: &Digest) -> ResolveError {
    ResolveError::UnknownDigest {
        digest: digest.to_string(),
    }
}

fn open_flist(path: &Path, reference: &str) -> Result<Flist, ResolveError> {
    Flist::open(path).map_err(|source| ResolveError::BrokenFlist {
        reference: reference.to_owned(),
        source,
    })
}

fn to_digest(hash: &blake2b_simd::Hash) -> Digest {
    // The hasher makes 32 bytes, which is a digest.
    Digest::from_bytes(hash.as_bytes()).unwrap_or_else(|_| Digest::blake2b_32(&[]))
}

fn digest_of_file(path: &Path, reference: &str) -> Result<Digest, ResolveError> {
    let failed = |e| ResolveError::File(FileError::io("read", path, e));
    let mut file = open_regular(path).map_err(failed)?;
    let mut state = hasher();
    let each = |chunk: &[u8]| {
        state.update(chunk);
        Ok(())
    };
    stream(&mut file, &crate::Silent, each, failed, reference)?;
    Ok(to_digest(&state.finalize()))
}

fn head_of(path: &Path) -> Result<Vec<u8>, ResolveError> {
    let mut head = Vec::new();
    let read = open_regular(path).and_then(|f| f.take(SNIFF_LEN as u64).read_to_end(&mut head));
    read.map_err(|e| FileError::io("read", path, e))?;
    Ok(head)
}

fn names_in(dir: &Path) -> Result<Vec<String>, ResolveError> {
    let entries = fs::read_dir(dir).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
    let entries = entries.map_err(|e| FileError::io("list", dir, e))?;
    Ok(entries
        .iter()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect())
}

/// A path of the image that has the block of `error`, for messages.
fn file_with_block(flist: &Flist, error: &FetchError) -> String {
    let has_it = |node| {
        let blocks = flist.tree.get(node).content().map_or(&[][..], |(_, blocks)| blocks);
        blocks.iter().any(|block| block.id.to_string() == error.block_id())
    };
    let found = flist.tree.walk().find(|(_, node)| has_it(*node));
    found.map_or_else(
        || "a file".into(),
        |(path, _)| format!("/{}", String::from_utf8_lossy(&path)),
    )
}

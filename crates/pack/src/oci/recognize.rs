//! Telling whether a path is an image of another engine, by what is in it.

use std::io::Read;
use std::path::Path;

use zmachine_image::reference::{ImageSource, Pick};
use zmachine_sys::file::open_regular;

use super::files::Files;
use super::manifest::{self, Index};
use super::{ImportError, Problem};

/// The image source that `path` is: a directory with an OCI layout, or an archive of an image. `None` for everything else, also for what
/// cannot be read: whoever opens it says why. `temporary` is where a compressed archive is unpacked.
pub fn recognize(path: &Path, temporary: &Path) -> Option<ImageSource> {
    let (path, pick) = (path.to_owned(), Pick::Only);
    if path.is_dir() {
        let is_layout = path.join("oci-layout").is_file() && path.join("index.json").is_file();
        return is_layout.then_some(ImageSource::Layout { path, pick });
    }
    if !may_be_archive(&path) {
        return None;
    }
    let files = Files::of_archive(&path, temporary).ok()?;
    // What docker saves today is both, and only its own index has all names.
    match (
        files.has("manifest.json"),
        files.has("index.json") && files.has("oci-layout"),
    ) {
        (true, _) => Some(ImageSource::DockerArchive { path, pick }),
        (false, true) => Some(ImageSource::LayoutArchive { path, pick }),
        (false, false) => None,
    }
}

/// All images of an archive.
///
/// # Errors
/// When it is no archive of images, or cannot be read.
pub fn images_of(path: &Path, temporary: &Path) -> Result<Vec<ImageSource>, ImportError> {
    let whole = ImageSource::DockerArchive {
        path: path.to_owned(),
        pick: Pick::Only,
    };
    let named = |problem: Problem| problem.of(&whole);
    let files = Files::of_archive(path, temporary).map_err(named)?;
    let (document, is_docker) = match (files.has("manifest.json"), files.has("index.json")) {
        (true, _) => ("manifest.json", true),
        (false, true) => ("index.json", false),
        (false, false) => return Err(named(Problem::Broken("it is no archive of container images".into()))),
    };
    let bytes = files.document(document).map_err(named)?;
    let count = match is_docker {
        true => manifest::json::<Vec<serde_json::Value>>(&bytes, document).map(|all| all.len()),
        false => manifest::json::<Index>(&bytes, document).map(|index| index.manifests.len()),
    };
    let source = |at| {
        let (path, pick) = (path.to_owned(), Pick::Index(at));
        match is_docker {
            true => ImageSource::DockerArchive { path, pick },
            false => ImageSource::LayoutArchive { path, pick },
        }
    };
    Ok((0..count.map_err(named)?).map(source).collect())
}

/// By its first bytes. What is compressed may be a flist of the old format, so its name counts.
fn may_be_archive(path: &Path) -> bool {
    let mut head = Vec::new();
    let read = open_regular(path).and_then(|file| file.take(512).read_to_end(&mut head));
    if read.is_err() {
        return false;
    }
    let name = path.to_string_lossy();
    let is_compressed = [&b"\x1f\x8b"[..], b"\x28\xb5\x2f\xfd", b"\xfd7zXZ"]
        .iter()
        .any(|magic| head.starts_with(magic));
    let is_named = [".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar"]
        .iter()
        .any(|end| name.ends_with(end));
    head.get(257..262) == Some(b"ustar") || is_compressed && is_named
}

//! Flists in registries: an artifact as OCI has them, whose one layer is the file. Its blocks stay in the stores that the flist names.
//!
//! ```json
//! {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "artifactType": "application/vnd.zmachine.flist.v2",
//!  "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": "sha256:44136f...", "size": 2},
//!  "layers": [{"mediaType": "application/vnd.zmachine.flist.v2", "digest": "sha256:...", "size": 1}]}
//! ```
//! A flist of format 1 has `v1` in place of `v2`. A manifest with such a layer is one, whatever it says of its artifact type, which registries
//! may leave out.

use std::fs::File;
use std::io::{self, Read, Seek, Write};

use serde_json::json;
use sha2::{Digest as _, Sha256};
use zmachine_image::library::ResolveError;
use zmachine_image::progress::Progress;
use zmachine_image::{Image, Library, Mode, PullPolicy, Reference};
use zmachine_sys::file::NewFile;

use super::keep::Unkept;
use super::layer::digest_of;
use super::manifest::{self, Descriptor, Manifest};
use super::registry::Registry;
use super::source::Source;
use super::{Problem, layer};

const KIND: &str = "application/vnd.zmachine.flist.v2";
const KIND_1: &str = "application/vnd.zmachine.flist.v1";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// The longest flist that is fetched, in bytes.
const LONGEST: u64 = 4 << 30;

/// The layer of a manifest that is a flist.
pub(super) fn flist_layer(manifest: &[u8]) -> Option<Descriptor> {
    // What else it may be is for others to say.
    let manifest: Manifest = manifest::json(manifest, "manifest").ok()?;
    match &manifest.layers[..] {
        [layer] if layer.media_type == KIND || layer.media_type == KIND_1 => Some(layer.clone()),
        _ => None,
    }
}

/// Brings a flist here.
pub(super) fn fetch(
    source: &dyn Source,
    layer: &Descriptor,
    temporary: &std::path::Path,
    (library, mode): (&Library, Mode),
    progress: &dyn Progress,
) -> Result<Image, Unkept> {
    layer::hex_of(&layer.digest)?;
    if layer.size > LONGEST {
        return Err(Problem::Broken(format!("its flist has {} bytes", layer.size)).into());
    }
    progress.begin(Some(layer.size), "pulling");
    let new = NewFile::create(temporary, 0o600).map_err(|e| Unkept::Here(e.into()))?;
    let mut file = new.file().try_clone()?;
    let mut blob = source.blob(layer)?.take(layer.size + 1);
    let (digest, length) = copy(&mut blob, |bytes| {
        progress.advance(bytes.len() as u64);
        file.write_all(bytes)
    })?;
    if length != layer.size || layer.digest != digest {
        return Err(Problem::Broken(format!("its flist is not {}", layer.digest)).into());
    }
    Ok(admit(&file, library, mode, progress)?)
}

/// Gives what is read to `each`; its digest and length.
fn copy(from: &mut dyn Read, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<(String, u64)> {
    let (mut hash, mut length, mut chunk) = (Sha256::new(), 0, vec![0; 256 << 10]);
    loop {
        let read = match from.read(&mut chunk) {
            Ok(0) => break,
            Ok(read) => read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        hash.update(&chunk[..read]);
        length += read as u64;
        each(&chunk[..read])?;
    }
    let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((format!("sha256:{hex}"), length))
}

fn admit(file: &File, library: &Library, mode: Mode, progress: &dyn Progress) -> Result<Image, ResolveError> {
    use std::os::fd::AsRawFd;
    // It has no name that another process could use.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    library.resolve_as(&Reference::Path(path.into()), PullPolicy::Always, mode, progress)
}

/// Sends the flist of an image; the digest of the manifest that leads to it.
pub(super) fn push(flist: &mut File, registry: &Registry, progress: &dyn Progress) -> Result<String, Problem> {
    let mut head = [0; 16];
    let filled = flist.read(&mut head)?;
    let kind = match head[..filled].starts_with(b"SQLite format 3\0") {
        true => KIND,
        false => KIND_1,
    };
    flist.rewind()?;
    let (digest, size) = copy(flist, |_| Ok(()))?;
    progress.begin_part(0, size, &digest[7..19]);
    let is_there = registry.has_blob(&digest)?;
    if !is_there {
        flist.rewind()?;
        registry.upload(&digest, size, flist)?;
    }
    progress.end_part(0, if is_there { "is there" } else { "pushed" });
    let empty = digest_of(b"{}");
    if !registry.has_blob(&empty)? {
        registry.upload(&empty, 2, &mut &b"{}"[..])?;
    }
    let oci = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": oci,
        "artifactType": kind,
        "config": {"mediaType": EMPTY, "digest": empty, "size": 2},
        "layers": [{"mediaType": kind, "digest": digest, "size": size}],
    });
    let bytes = manifest.to_string().into_bytes();
    registry.put_manifest(&bytes, oci)?;
    Ok(digest_of(&bytes))
}

//! The image that a VM's disk is made of, wherever it is.

use std::io;

use zmachine_disk::{self as disk, Source as DiskBytes};
use zmachine_image::{FetchOptions, FileReader, Library};
use zmachine_plan::vm::DiskSource;
use zmachine_spec::{Class, Failure, Home};

/// The bytes of a disk image.
///
/// # Errors
/// When it is not there or cannot be read.
pub fn open_source(home: &Home, source: &DiskSource) -> Result<Box<dyn DiskBytes + Send>, Failure> {
    match source {
        DiskSource::Host { path } => {
            let (_, bytes) = disk::open(path).map_err(|e| Failure::from_error(Class::NotFound, &e))?;
            Ok(bytes)
        }
        DiskSource::Flist { image, file, stores } => {
            let options = FetchOptions {
                stores: stores.clone(),
                ..FetchOptions::default()
            };
            let library = Library::open(home.data())?.with_fetch_options(options);
            let digest = image
                .parse()
                .map_err(|_| Failure::new(Class::Failed, format!("'{image}' is no digest of an image")))?;
            Ok(Box::new(FlistFile(library.read_file(&digest, file)?)))
        }
    }
}

struct FlistFile(FileReader);

impl DiskBytes for FlistFile {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_at(buffer, offset)
    }
}

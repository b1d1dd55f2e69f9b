//! Directories of the host that a machine uses.

use std::io;
use std::path::Path;

use zmachine_spec::volume::SharedDirectory;
use zmachine_spec::{Class, Failure, Home, Origin, Setting, VolumeRequest};

use super::wanted::check_target;

/// The directories among `requests`, in their order.
///
/// # Errors
/// [`Class::Usage`] for one that is not there, is no directory, holds the state of `home`, or has an impossible place.
pub fn shared(requests: &[VolumeRequest], home: &Home) -> Result<Vec<SharedDirectory>, Failure> {
    let directory = |request: &VolumeRequest| match &request.origin {
        Origin::Directory(path) => {
            let shared = one(path, request, home).map_err(|failure| failure.about(Setting::Volumes));
            Some(shared)
        }
        Origin::Named(_) | Origin::Anonymous => None,
    };
    requests.iter().filter_map(directory).collect()
}

fn one(path: &Path, request: &VolumeRequest, home: &Home) -> Result<SharedDirectory, Failure> {
    let wrong = |why: String, hint: &str| Failure::new(Class::Usage, why).hint(hint);
    let real = path.canonicalize().map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => wrong(
            format!("there is no directory {}", path.display()),
            "make it first, or use a volume",
        ),
        _ => Failure::from_error(Class::Usage, &e).context(format!("cannot share {}", path.display())),
    })?;
    if !real.is_dir() {
        return Err(wrong(
            format!("{} is not a directory", real.display()),
            "share the directory that it is in",
        ));
    }
    if real.to_str().is_none() {
        return Err(wrong(
            format!("the path of the directory {} is not UTF-8", real.display()),
            "rename it",
        ));
    }
    check_target(&format!("the directory {}", real.display()), &request.target)?;
    if !request.read_only && overlaps(&real, home.data()) {
        return Err(wrong(
            format!("{} and the state of zmachine are in each other", real.display()),
            "share it read-only: who can write there decides what every machine is",
        ));
    }
    Ok(SharedDirectory {
        path: real,
        target: request.target.clone(),
        read_only: request.read_only,
    })
}

fn overlaps(one: &Path, other: &Path) -> bool {
    let other = other.canonicalize().unwrap_or_else(|_| other.to_owned());
    one.starts_with(&other) || other.starts_with(one)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_not_be_shared_is_told_before_anything_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let home = Home::open(&root.join("home"), &root.join("run")).unwrap();
        std::fs::create_dir(root.join("src")).unwrap();
        std::fs::write(root.join("file"), "").unwrap();
        std::os::unix::fs::symlink("src", root.join("link")).unwrap();
        let wanted = |text: &str| {
            let text = text.replace('@', root.to_str().unwrap());
            super::shared(&[VolumeRequest::parse(&text, Path::new("/"))?], &home)
        };
        let shared = wanted("@/link/../src:/srv/src:ro").unwrap();
        assert_eq!(
            shared,
            [SharedDirectory {
                path: root.join("src"),
                target: "/srv/src".into(),
                read_only: true,
            }]
        );
        assert!(wanted("data:/data").unwrap().is_empty());
        wanted("@/home:/state:ro").unwrap();
        for bad in [
            "@/none:/x",
            "@/file:/x",
            "@/src:/",
            "@/src:/proc/x",
            "@/src:/a/../b",
            "@/home:/x",
            "@/home/machines:/x",
            "@:/x",
        ] {
            let failure = wanted(bad).expect_err(bad);
            assert_eq!(failure.class, Class::Usage, "{bad}");
            assert!(failure.hint.is_some(), "{bad}");
        }
    }
}

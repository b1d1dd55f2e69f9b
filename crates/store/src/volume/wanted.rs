//! What the volumes in the spec of a machine stand for, found out before anything is made.

use zmachine_spec::bytes::Human;
use zmachine_spec::volume::{Content, DEFAULT_SIZE, Fs, NewVolume, ResolvedVolume, anonymous, serial};
use zmachine_spec::{Class, Failure, Origin, Setting, VolumeRequest};

use super::format;
use super::store::{Volumes, check_new};

impl Volumes {
    /// The volumes that `requests` of the machine `id` stand for; for the directories among them see [`super::shared()`].
    /// Makes nothing.
    ///
    /// # Errors
    /// [`Class::Usage`] for a request that makes no sense or contradicts the volume that is there, [`Class::Unsupported`] for
    /// what this host cannot do.
    pub fn wanted(&self, requests: &[VolumeRequest], id: &str) -> Result<Vec<ResolvedVolume>, Failure> {
        self.all(requests, id)
            .map_err(|failure| failure.about(Setting::Volumes))
    }

    fn all(&self, requests: &[VolumeRequest], id: &str) -> Result<Vec<ResolvedVolume>, Failure> {
        let mut all: Vec<ResolvedVolume> = Vec::new();
        for (index, request) in requests.iter().enumerate() {
            let target = &request.target;
            if let Some(other) = requests[..index].iter().find(|other| other.target == *target) {
                let message = format!("{} cannot be at '{target}' too: {} is", request.what(), other.what());
                return Err(Failure::new(Class::Usage, message).hint("give each volume a path of its own"));
            }
            let Some(wanted) = self.one(request, id, index)? else {
                continue;
            };
            if all.iter().any(|other| other.name == wanted.name) {
                let message = format!("the volume '{}' is attached twice", wanted.name);
                return Err(Failure::new(Class::Usage, message).hint("name each volume once"));
            }
            all.push(wanted);
        }
        Ok(all)
    }

    fn one(&self, request: &VolumeRequest, id: &str, index: usize) -> Result<Option<ResolvedVolume>, Failure> {
        let (name, anonymous_of) = match &request.origin {
            Origin::Named(name) => (name.clone(), None),
            Origin::Anonymous => (anonymous(id, index), Some(id.to_owned())),
            Origin::Directory(_) => return Ok(None),
        };
        let known = self.find(&name)?;
        let new = match &known {
            Some(_) => None,
            None if request.read_only => {
                let message = format!("there is no volume '{name}' to read at '{}'", request.target);
                return Err(Failure::new(Class::NotFound, message).hint("let the machine write to it, and it is made"));
            }
            None => Some(NewVolume {
                name: name.clone(),
                size_bytes: request.size_bytes.unwrap_or(DEFAULT_SIZE),
                fs: request.fs.unwrap_or_default(),
                anonymous_of,
                labels: std::collections::BTreeMap::new(),
            }),
        };
        if let Some(new) = &new {
            check_new(new)?;
        }
        if let Some(volume) = &known {
            let size = request.size_bytes.filter(|size| *size > volume.size_bytes);
            if let Some(size) = size {
                let (has, wanted) = (Human(volume.size_bytes), Human(size));
                let message = format!("the volume '{name}' has {has}, not {wanted}");
                return Err(Failure::new(Class::Usage, message)
                    .hint(format!("make it larger first: zmachine volume grow {name} {wanted}")));
            }
            if let Some(fs) = request.fs.filter(|fs| *fs != volume.record.fs) {
                let message = format!("the volume '{name}' is one for {}, not {fs}", volume.record.fs);
                return Err(
                    Failure::new(Class::Usage, message).hint("do not ask for a file system, or use another volume")
                );
            }
        }
        let size_bytes = known.as_ref().map(|volume| volume.size_bytes);
        Ok(Some(ResolvedVolume {
            target: request.target.clone(),
            path: self.data(&name),
            serial: serial(&name),
            size_bytes: size_bytes
                .or(new.as_ref().map(|new| new.size_bytes))
                .unwrap_or_default(),
            fs: known
                .as_ref()
                .map_or(request.fs.unwrap_or_default(), |volume| volume.record.fs),
            content: known.map_or(Content::Empty, |volume| volume.record.content),
            read_only: request.read_only,
            no_copy: request.no_copy,
            new,
            name,
        }))
    }

    /// Makes those that are not there; none is left when one cannot be made. The names of those made. The caller holds the
    /// catalog's lock.
    ///
    /// # Errors
    /// As [`Volumes::create`]; [`Class::NotFound`] for one that was removed meanwhile.
    pub fn make(&self, wanted: &[ResolvedVolume]) -> Result<Vec<String>, Failure> {
        // Those that were there when they were asked for may be gone by now; from here on nobody removes one.
        for known in wanted.iter().filter(|wanted| wanted.new.is_none()) {
            self.get(&known.name)?;
        }
        let mut made = Vec::new();
        for new in wanted.iter().filter_map(|wanted| wanted.new.as_ref()) {
            if let Err(failure) = self.create(new) {
                self.unmake(&made);
                return Err(failure);
            }
            made.push(new.name.clone());
        }
        Ok(made)
    }

    /// Takes back what [`Volumes::make`] made for a machine that did not come to be. The caller holds the catalog's lock.
    pub fn unmake(&self, made: &[String]) {
        for name in made {
            // One that cannot be removed is listed, and empty.
            let _ = self.remove_unclaimed(name);
        }
    }
}

/// Whether a container can mount it.
///
/// # Errors
/// [`Class::Usage`] for its path or a volume without file system, [`Class::Conflict`] for one that holds something else,
/// [`Class::Unsupported`] when its file system has to be made and the host has no tool for it.
pub fn check_mountable(volume: &ResolvedVolume) -> Result<(), Failure> {
    mountable(volume).map_err(|failure| failure.about(Setting::Volumes))
}

fn mountable(volume: &ResolvedVolume) -> Result<(), Failure> {
    check_target(&format!("the volume '{}'", volume.name), &volume.target)?;
    match (&volume.content, volume.fs) {
        (Content::Installing { .. } | Content::Installed { .. } | Content::Raw, _) => {
            let message = format!(
                "the volume '{}' is the disk of a VM and cannot be mounted in a container",
                volume.name
            );
            Err(Failure::new(Class::Conflict, message).hint("use another volume"))
        }
        (_, Fs::None) => {
            let message = format!(
                "the volume '{}' has no file system and cannot be mounted in a container",
                volume.name
            );
            Err(Failure::new(Class::Usage, message).hint("use one made for ext4, btrfs or xfs"))
        }
        (Content::Formatted, _) => Ok(()),
        (Content::Empty | Content::Formatting, _) if volume.read_only => {
            let message = format!("the volume '{}' has nothing on it to read yet", volume.name);
            Err(Failure::new(Class::Conflict, message).hint("let the machine of its first use write to it"))
        }
        (Content::Empty | Content::Formatting, fs) => format::check(fs),
    }
}

/// Whether something can be mounted at `target`; `what` it is, for people.
///
/// # Errors
/// [`Class::Usage`] for the root and what is below the kernel's own file systems.
pub(super) fn check_target(what: &str, target: &str) -> Result<(), Failure> {
    const OF_KERNEL: [&str; 3] = ["/proc", "/sys", "/dev"];
    if target == "/" {
        let message = format!("{what} cannot be the root of a container");
        return Err(Failure::new(Class::Usage, message)
            .hint("give it a path of its own, or the container a larger root")
            .about(Setting::Size));
    }
    let is_below = |of: &&str| target == *of || target.starts_with(&format!("{of}/"));
    if let Some(of) = OF_KERNEL.into_iter().find(is_below) {
        let message = format!("{what} cannot be at '{target}': {of} is the kernel's");
        return Err(Failure::new(Class::Usage, message).hint("choose another path"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use zmachine_spec::Home;

    #[test]
    fn what_is_wrong_is_told_before_anything_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = Volumes::new(&Home::open(dir.path(), &dir.path().join("run")).unwrap());
        let wanted = |texts: &[&str]| {
            let parse = |text: &&str| VolumeRequest::parse(text, std::path::Path::new("/"));
            let requests: Vec<VolumeRequest> = texts.iter().map(parse).collect::<Result<_, _>>()?;
            let wanted = volumes.wanted(&requests, "0123456789ab")?;
            wanted.iter().try_for_each(check_mountable)?;
            Ok::<_, Failure>(wanted)
        };
        let both = wanted(&["data:/data:size=64M", "/cache"]).unwrap();
        assert_eq!(both[1].name, "0123456789ab-1");
        assert!(volumes.list().unwrap().is_empty());
        assert_eq!(volumes.make(&both).unwrap().len(), 2);
        for (texts, class) in [
            (&["data:/a", "data:/b"][..], Class::Usage),
            (&["data:/a", "other:/a"], Class::Usage),
            (&["data:/"], Class::Usage),
            (&["data:/proc/x"], Class::Usage),
            (&["data:/a:size=1G"], Class::Usage),
            (&["data:/a:fs=xfs"], Class::Usage),
            (&["data:/a:ro"], Class::Conflict),
            (&["gone:/a:ro"], Class::NotFound),
            (&["tiny:/a:size=1M"], Class::Usage),
            (&["bare:/a:fs=none"], Class::Usage),
            (&["./x:/a", "data:/a"], Class::Usage),
        ] {
            assert_eq!(wanted(texts).expect_err(texts[0]).class, class, "{texts:?}");
        }
        let mut held = volumes.hold("data", false, "0123456789ab").unwrap();
        held.set_content(Content::Installed { digest: "d".into() }).unwrap();
        assert_eq!(wanted(&["data:/a"]).unwrap_err().class, Class::Conflict);
        drop(held);
        volumes.remove_anonymous("0123456789ab").unwrap();
        assert_eq!(volumes.list().unwrap().len(), 1);
    }
}

//! Images that are kept on this host: what comes, what does not come again, and what goes to others.

use std::fs;
use std::path::Path;
use std::process::Command;

use zmachine_image::library::Prune;
use zmachine_image::{Image, Library, Mode, ResolveError, Silent};
use zmachine_pack::diff::diff;
use zmachine_pack::oci::pull::{Pulled, pull};
use zmachine_pack::oci::push::push;
use zmachine_pack::oci::save::{Form, save};
use zmachine_pack::oci::{ImageSource, ImportError, ImportOptions, images_of, recognize};
use zmachine_pack::unpack::{UnpackOptions, unpack};

use crate::oci::{Counted, Room, registry};

struct Kept {
    room: Room,
}

impl Kept {
    fn library(&self, home: &str) -> Library {
        Library::open(&self.room.path(home)).unwrap()
    }

    /// What was pulled, and how many bytes of layers came.
    fn pull(&self, home: &str, image: &str) -> Result<(Pulled, u64), ImportError> {
        let source = ImageSource::parse(image).unwrap().below(self.room.path("").as_path());
        let counted = Counted::default();
        let options = self.options();
        let pulled = pull(&source, &options, &self.library(home), Mode::Auto, &counted)?;
        Ok((pulled, counted.done.into_inner()))
    }

    fn options(&self) -> ImportOptions {
        ImportOptions {
            auth_files: vec![self.room.path("auth.json")],
            ..ImportOptions::default()
        }
    }

    fn image(&self, home: &str, image: &str) -> Image {
        self.pull(home, image).unwrap().0.image
    }
}

fn same_tree(a: &Image, b: &Image) -> bool {
    diff(&a.open_flist().unwrap().tree, &b.open_flist().unwrap().tree).is_empty()
}

/// A file with holes in both forms that tar has for them, and what is no file.
fn odd_layer(room: &Room, form: &str) {
    let script = format!(
        "mkdir -p odd && cd odd && truncate -s 3M holes && printf x | dd of=holes bs=1 seek=1500000 conv=notrunc 2>/dev/null && \
         printf y | dd of=holes bs=1 seek=524287 conv=notrunc 2>/dev/null && ln -sf holes link && rm -f pipe && mkfifo pipe && \
         mkdir -p {long} && echo long > {long}/file && cd .. && tar --sparse --format={form} -cf odd.tar odd",
        long = "d/".repeat(70)
    );
    room.tool("sh", &["-c", &script]);
    room.tool("umoci", &["raw", "add-layer", "--image", "oci:v1", "odd.tar"]);
}

#[test]
fn an_image_is_put_together_of_its_layers_and_given_away_as_it_came() {
    let kept = Kept { room: Room::new() };
    let room = &kept.room;
    // umoci cannot unpack files with holes.
    room.tool("umoci", &["tag", "--image", "oci:v1", "plain"]);
    odd_layer(room, "gnu");
    odd_layer(room, "posix");
    let (pulled, came) = kept.pull("home", "oci:oci:v1").unwrap();
    assert!(pulled.is_new && came > 0 && pulled.names == ["v1"]);
    let image = pulled.image;
    let imported = room.import(&room.layout(), &ImportOptions::default()).unwrap();
    assert_eq!(diff(&image.open_flist().unwrap().tree, &imported.tree), []);
    let library = kept.library("home");
    let flist = image.open_flist().unwrap();
    assert!(flist.routes.0.is_empty() && flist.tree.unique_blocks().iter().all(|block| block.is_unsealed()));
    let fetcher = library.fetcher(flist.routes.clone()).unwrap();
    unpack(&flist, &room.path("out"), &fetcher, UnpackOptions::default(), &Silent).unwrap();
    let holes = fs::read(room.path("out/odd/holes")).unwrap();
    assert_eq!((holes.len(), holes[1_500_000], holes[524_287]), (3 << 20, b'x', b'y'));

    // Every layer's digest is held against what is written, so it is the same to the byte.
    let images = [(image.digest, vec!["team/web:1".to_owned()])];
    for (form, file, scheme) in [
        (Form::Docker, "d.tar", "docker-archive"),
        (Form::Oci, "o.tar", "oci-archive"),
    ] {
        save(&library, &images, form, &mut fs::File::create(room.path(file)).unwrap()).unwrap();
        let source = recognize(&room.path(file), &room.path("")).unwrap();
        assert!(source.to_string().starts_with(scheme), "{source}");
        assert_eq!(images_of(&room.path(file), &room.path("")).unwrap().len(), 1);
        let again = kept.image("other", &source.to_string());
        assert!(same_tree(&again, &image), "{scheme}");
        room.tool("skopeo", &["inspect", &format!("{scheme}:{file}")]);
    }
    let plain = kept.image("home", "oci:oci:plain");
    let archive = &mut fs::File::create(room.path("p.tar")).unwrap();
    save(&library, &[(plain.digest, Vec::new())], Form::Oci, archive).unwrap();
    room.tool("skopeo", &["copy", "-q", "oci-archive:p.tar", "oci:saved:v1"]);
    room.tool("umoci", &["unpack", "--image", "saved:v1", "unpacked"]);
    let same = Command::new("diff")
        .args(["-r", "--no-dereference"])
        .args([room.path("unpacked/rootfs/srv"), room.path("out/srv")])
        .status();
    assert!(same.unwrap().success(), "umoci unpacks something else");

    let registry = registry(room);
    let auth = room.path("auth.json").display().to_string();
    let login = [
        "login",
        "--tls-verify=false",
        "-u",
        "user",
        "-p",
        "secret",
        "--authfile",
    ];
    room.tool("skopeo", &[&login[..], &[&auth, &registry.host()]].concat());
    let name = format!("docker://{}/team/web:1", registry.host());
    let target = ImageSource::parse(&name).unwrap();
    let digest = push(&library, &image.digest, &target, &kept.options(), &Silent).unwrap();
    let pushed = kept.pull("third", &name).unwrap().0;
    assert!(pushed.digest == digest && same_tree(&pushed.image, &image));
    // Pushed again from there, it is what it was.
    let again = push(
        &kept.library("third"),
        &pushed.image.digest,
        &target,
        &kept.options(),
        &Silent,
    );
    assert_eq!(again.unwrap(), digest);
    let inspected = ["inspect", "--tls-verify=false", "--authfile", &auth, &name];
    room.tool("skopeo", &inspected);
}

#[test]
fn only_layers_that_are_not_here_come_and_those_that_came_before_a_failure_stay() {
    let kept = Kept { room: Room::new() };
    let room = &kept.room;
    let whole = kept.pull("home", "oci:oci:v1").unwrap();
    room.tool("umoci", &["tag", "--image", "oci:v1", "v2"]);
    fs::create_dir(room.path("more")).unwrap();
    fs::write(room.path("more/file"), vec![7; 100_000]).unwrap();
    room.tool("umoci", &["insert", "--image", "oci:v2", "more", "/more"]);
    let (second, came) = kept.pull("home", "oci:oci:v2").unwrap();
    assert!(
        second.is_new && came > 0 && came < whole.1 / 10,
        "{came} of {}",
        whole.1
    );
    assert!(second.image.open_flist().unwrap().tree.resolve(b"/more/file").is_ok());
    let (again, came) = kept.pull("home", "oci:oci:v2").unwrap();
    assert_eq!((again.is_new, came, again.image), (false, 0, second.image));

    // The smallest layer comes last.
    let blobs = room.blobs();
    let smallest = blobs
        .iter()
        .rev()
        .find(|blob| fs::read(blob).unwrap().starts_with(&[0x1f, 0x8b]))
        .unwrap();
    let content = fs::read(smallest).unwrap();
    fs::write(smallest, &content[..content.len() / 2]).unwrap();
    assert!(matches!(
        kept.pull("new", "oci:oci:v2"),
        Err(ImportError::Broken { .. })
    ));
    fs::write(smallest, &content).unwrap();
    let (mended, came) = kept.pull("new", "oci:oci:v2").unwrap();
    assert!(came <= 2 * content.len() as u64, "{came} bytes came again");
    assert!(same_tree(&mended.image, &second_of(&kept)));
}

fn second_of(kept: &Kept) -> Image {
    kept.image("home", "oci:oci:v2")
}

#[test]
fn the_last_image_that_has_a_layer_takes_its_blocks_along() {
    let kept = Kept { room: Room::new() };
    let room = &kept.room;
    let first = kept.image("home", "oci:oci:v1");
    room.tool("umoci", &["tag", "--image", "oci:v1", "v2"]);
    fs::create_dir(room.path("more")).unwrap();
    fs::write(room.path("more/file"), vec![7; 100_000]).unwrap();
    room.tool("umoci", &["insert", "--image", "oci:v2", "more", "/more"]);
    let second = kept.image("home", "oci:oci:v2");
    let library = kept.library("home");
    let nobody = |_: &Path| Ok::<_, ResolveError>(std::collections::HashSet::new());
    let begin = || -> Prune<'_> { library.begin_prune().unwrap().unwrap() };
    // A limit takes nothing that no store has.
    library.set_cache_limit(Some(1)).unwrap();
    let trimmed = library.trim_cache(nobody).unwrap().unwrap();
    assert!(trimmed.blocks == 0 && trimmed.over > 0, "{trimmed:?}");
    let shared = library.cache_usage().unwrap().blocks;
    let report = begin().remove_images(&[second.digest].into(), nobody).unwrap();
    assert_eq!(
        (report.images, report.blocks),
        (1, 1),
        "the block of the one file that the other has not"
    );
    assert_eq!(library.cache_usage().unwrap().blocks, shared - 1);
    assert_eq!(library.layers_of(&first.digest).unwrap().len(), 2);
    let fetcher = library.fetcher(first.open_flist().unwrap().routes).unwrap();
    for block in first.open_flist().unwrap().tree.unique_blocks() {
        fetcher.fetch(&block).unwrap();
    }
    // A block that is gone can be had again by pulling, and says so until then.
    let block = first.open_flist().unwrap().tree.unique_blocks()[0];
    library.cache().evict(&block).unwrap();
    let error = fetcher.fetch(&block).unwrap_err();
    assert!(error.hint().unwrap().contains("pull"), "{error}");
    assert!(kept.pull("home", "oci:oci:v1").unwrap().0.is_new);
    fetcher.fetch(&block).unwrap();
    let report = begin().run(nobody).unwrap();
    assert_eq!((report.images, library.cache_usage().unwrap().blocks), (1, 0));
    let left = fs::read_dir(room.path("home/images/layers")).unwrap().count();
    assert_eq!(left, 0, "layers that no image has");
}

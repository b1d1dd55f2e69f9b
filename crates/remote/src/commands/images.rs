//! Images of the host.

use serde_json::json;
use zmachine_spec::Failure;

use super::files::{from_file, to_file};
use super::{all, output, resources};
use crate::connection::{Ask, Server, part};
use crate::words::{Format, History, Image, Listing, Load, Pull, Push, Save, Tag};

/// The longest command of a step that is shown, in characters.
const SHOWN: usize = 60;

pub(super) async fn image(server: &Server, command: Image) -> Result<(), Failure> {
    match command {
        Image::Ls(listing) => list(server, &listing).await,
        Image::Pull(args) => pull(server, &args).await,
        Image::Rm(args) => remove(server, &args.names).await,
        Image::Tag(args) => tag(server, &args).await,
        Image::Push(args) => push(server, &args).await,
        Image::Save(args) => save(server, &args).await,
        Image::Load(args) => load(server, &args).await,
        Image::Inspect(args) => resources::inspect(server, "images", &args.names).await,
        Image::History(args) => history(server, &args).await,
        Image::Prune => prune(server).await,
    }
}

fn path(name: &str) -> String {
    format!("/v1/images/{}", part(name))
}

pub(super) async fn list(server: &Server, listing: &Listing) -> Result<(), Failure> {
    let images = resources::listed(server, "images").await?;
    let first = |image: &serde_json::Value| match output::items(image, "names").first() {
        Some(name) => output::text(name),
        None => output::text(&image["digest"]),
    };
    resources::print(
        listing,
        &images,
        first,
        &["NAMES", "KIND", "FILES", "DIGEST"],
        |image| {
            let digest: String = output::text(&image["digest"]).chars().take(19).collect();
            vec![
                output::text(&image["names"]),
                output::text(&image["kind"]),
                output::bytes(&image["files_bytes"]),
                digest,
            ]
        },
    )
}

pub(super) async fn pull(server: &Server, args: &Pull) -> Result<(), Failure> {
    let mut body = json!({"image": args.image});
    if let Some(name) = &args.name {
        body["name"] = json!(name);
    }
    let pulled = server.ask(&Ask::new("POST", "/v1/images").sending(body)).await?;
    output::line(&output::text(&pulled["name"]))
}

/// Takes names away, and says what became of the images.
pub(super) async fn remove(server: &Server, names: &[String]) -> Result<(), Failure> {
    all(names, async |name| {
        let removed = server.ask(&Ask::new("DELETE", path(name))).await?;
        if !output::items(&removed, "machines").is_empty() {
            let machines = output::text(&removed["machines"]);
            eprintln!("{name}: the image stays as long as {machines} uses it");
        }
        output::line(name)
    })
    .await
}

pub(super) async fn tag(server: &Server, args: &Tag) -> Result<(), Failure> {
    let ask = Ask::new("POST", format!("{}/tag", path(&args.image))).sending(json!({"name": args.name}));
    server.ask(&ask).await.map(drop)
}

pub(super) async fn push(server: &Server, args: &Push) -> Result<(), Failure> {
    let body = match &args.target {
        Some(target) => json!({"target": target}),
        None => json!({}),
    };
    let ask = Ask::new("POST", format!("{}/push", path(&args.image))).sending(body);
    let pushed = server.ask(&ask).await?;
    let (name, digest) = (output::text(&pushed["name"]), output::text(&pushed["digest"]));
    output::line(&format!("{name} {digest}"))
}

pub(super) async fn save(server: &Server, args: &Save) -> Result<(), Failure> {
    let mut ask = Ask::new("GET", "/v1/image-archive").with("format", &args.format);
    ask.query
        .extend(args.images.iter().map(|image| ("image", image.clone())));
    to_file(server, &ask, args.output.as_deref()).await
}

pub(super) async fn load(server: &Server, args: &Load) -> Result<(), Failure> {
    let loaded = from_file(server, &Ask::new("POST", "/v1/image-archive"), args.input.as_deref()).await?;
    output::items(&loaded, "images").iter().try_for_each(|image| {
        let (name, digest) = (output::text(&image["name"]), output::text(&image["digest"]));
        output::line(&format!("{name} {digest}"))
    })
}

pub(super) async fn history(server: &Server, args: &History) -> Result<(), Failure> {
    let told = server
        .ask(&Ask::new("GET", format!("{}/history", path(&args.image))))
        .await?;
    if args.output == Format::Json {
        return output::json(&told["steps"]);
    }
    let cells = |step: &serde_json::Value| {
        let by = output::text(&step["created_by"]).replace(['\n', '\t'], " ");
        let by = match !args.no_trunc && by.chars().count() > SHOWN {
            true => format!("{}…", by.chars().take(SHOWN - 1).collect::<String>()),
            false => by,
        };
        vec![
            output::text(&step["created"]),
            by,
            output::bytes(&step["size_bytes"]),
            output::text(&step["comment"]),
        ]
    };
    let rows: Vec<_> = output::items(&told, "steps").iter().map(cells).collect();
    output::table(&["CREATED", "CREATED BY", "SIZE", "COMMENT"], &rows)
}

pub(super) async fn prune(server: &Server) -> Result<(), Failure> {
    let report = server.ask(&Ask::new("POST", "/v1/images/prune")).await?;
    output::line(&format!(
        "{} images and {} blocks removed, {} reclaimed",
        output::text(&report["images"]),
        output::text(&report["blocks"]),
        output::bytes(&report["bytes"])
    ))
}

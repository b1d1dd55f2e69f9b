//! `diff`, `commit` and `export`: what a container has in its root.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Read, Write};
use std::os::unix::ffi::OsStrExt;

use serde_json::json;
use zmachine_engine::{CommitRequest, Engine, RootPart};
use zmachine_image::{Progress, Silent};
use zmachine_spec::{Class, Failure};

use super::image::{completed_name, image_name};
use crate::args::{CommitArgs, DiffArgs, ExportArgs, Format};
use crate::output;
use crate::progress::Bars;

/// Lists what changed, in docker's form.
pub(crate) fn diff(engine: &Engine, args: &DiffArgs) -> Result<u8, Failure> {
    let changes = engine.open_root(&args.name, &Silent)?.changes()?;
    if args.output == Format::Json {
        // As docker's API numbers them.
        let kind = |letter| match letter {
            'C' => 0,
            'A' => 1,
            _ => 2,
        };
        let rows = changes
            .iter()
            .map(|(change, path)| json!({"Path": path.to_string_lossy(), "Kind": kind(change.letter())}));
        output::json(&rows.collect::<Vec<_>>())?;
        return Ok(0);
    }
    let mut text = Vec::new();
    for (change, path) in &changes {
        text.extend([change.letter() as u8, b' ']);
        // Names are the guest's: one must not be two lines, nor speak to the terminal.
        text.extend(
            path.as_os_str()
                .as_bytes()
                .iter()
                .map(|byte| match byte.is_ascii_control() {
                    true => b'?',
                    false => *byte,
                }),
        );
        text.push(b'\n');
    }
    output::write_bytes(&text)?;
    Ok(0)
}

/// Makes an image of a machine, and prints its digest.
pub(crate) fn commit(engine: &Engine, args: &CommitArgs) -> Result<u8, Failure> {
    let name = args.image.as_deref().map(image_name).transpose()?.map(completed_name);
    let bars = Bars::bytes();
    let progress: &dyn Progress = if args.quiet { &Silent } else { &bars };
    let request = CommitRequest {
        machine: &args.name,
        name: name.as_ref(),
        author: args.author.clone(),
        message: args.message.clone(),
        changes: &args.changes,
        paused: args.pause && !args.no_pause,
    };
    let image = engine.commit(&request, progress, |text| progress.message(&format!("warning: {text}")))?;
    drop(bars);
    let digest = &image.digest;
    output::print(&match &name {
        Some(name) => format!("{name} {digest}\n"),
        None => format!("{digest}\n"),
    })?;
    Ok(0)
}

/// Writes the whole root as an archive.
pub(crate) fn export(engine: &Engine, args: &ExportArgs) -> Result<u8, Failure> {
    let mut out: Box<dyn Write> = match &args.file {
        Some(path) => {
            let file = File::create(path).map_err(|e| {
                Failure::from_error(Class::Usage, &e).context(format!("cannot write {}", path.display()))
            })?;
            Box::new(file)
        }
        None if io::stdout().is_terminal() => {
            let message = "standard output is a terminal, and this is a tar archive";
            let hint = format!("zmachine export {} -o FILE.tar, or pipe it into a program", args.name);
            return Err(Failure::new(Class::Usage, message).hint(hint));
        }
        None => Box::new(BufWriter::with_capacity(256 << 10, io::stdout().lock())),
    };
    let root = engine.open_root(&args.name, &Silent)?;
    let mut stream = root.stream(RootPart::All)?;
    let mut chunk = vec![0; 256 << 10];
    loop {
        let read = (&mut stream).read(&mut chunk)?;
        if read == 0 {
            break;
        }
        match out.write_all(&chunk[..read]) {
            // Whoever reads the archive has enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(0),
            written => written?,
        }
    }
    out.flush()?;
    stream.end(|text| eprintln!("warning: {text}"))?;
    Ok(0)
}

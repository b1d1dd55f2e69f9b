//! The `rootfs` role as a program of its own, for the tests: `serve IMAGE BLOCKS LISTENER-FD SERIAL QUEUES DEADLINE-MS
//! none|hints|all`.
//! Events go to standard error, what is read first among them.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use zmachine_rootfs::{RootfsArgs, serve};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [image, blocks, listener, serial, queues, deadline, prefetch] = arguments.as_slice() else {
        return Err("seven arguments are needed".into());
    };
    serve(RootfsArgs {
        image_dir: PathBuf::from(image),
        blocks_dir: PathBuf::from(blocks),
        listener: zmachine_sys::fd::take_inherited(listener.parse()?)?,
        serial: serial.clone(),
        queues: queues.parse()?,
        is_nbd: false,
        stores: Vec::new(),
        chunks: None,
        credentials: Default::default(),
        block_deadline: Duration::from_millis(deadline.parse()?),
        prefetch: prefetch.parse()?,
        record: true,
        events: std::io::stderr().as_fd().try_clone_to_owned()?,
        jail: None,
    })?;
    Ok(())
}

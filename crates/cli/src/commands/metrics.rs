//! `metrics`: the figures of all machines in the text format of Prometheus (exposition format 0.0.4), printed or served.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use zmachine_engine::Engine;
use zmachine_spec::{Class, Failure};

use crate::args::MetricsArgs;
use crate::output;

/// How long a client may take for its request or our answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Longest request that is read, in bytes.
const REQUEST_MAX: u64 = 8 * 1024;

/// Prints the figures, or serves them until it is ended.
pub(crate) fn metrics(engine: &Engine, args: &MetricsArgs) -> Result<u8, Failure> {
    let Some(address) = args.listen else {
        output::print(&engine.metrics()?)?;
        return Ok(0);
    };
    let listener = TcpListener::bind(address).map_err(|e| {
        Failure::from_error(Class::Conflict, &e)
            .context(format!("cannot listen on {address}"))
            .hint("choose another --listen address")
    })?;
    eprintln!("http://{}/metrics", listener.local_addr()?);
    // One at a time: gathering is quick, and a slow client is let go.
    for stream in listener.incoming().flatten() {
        let _ = serve(engine, stream);
    }
    Ok(0)
}

fn serve(engine: &Engine, mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut reader = BufReader::new(stream.try_clone()?.take(REQUEST_MAX));
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    let mut words = request.split_whitespace();
    let (status, body) = match (words.next(), words.next()) {
        (Some("GET"), Some("/metrics" | "/")) => {
            // Machines whose monitor died since are put right first, as with any command.
            let gathered = engine.reconcile().and_then(|_| engine.metrics());
            gathered.map_or_else(
                |f| ("500 Internal Server Error", format!("{f}\n")),
                |text| ("200 OK", text),
            )
        }
        (Some("GET"), _) => ("404 Not Found", "the figures are at /metrics\n".to_owned()),
        _ => ("405 Method Not Allowed", "only GET is known here\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())
}

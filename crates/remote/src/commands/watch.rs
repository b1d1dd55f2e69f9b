//! What is told as time goes by: logs and events.

use std::io::Write;

use http_body_util::BodyExt;
use hyper::Response;
use hyper::body::Incoming;
use serde_json::Value;
use zmachine_spec::{Class, Failure};

use super::output;
use crate::connection::{Ask, Server, part};
use crate::words::{Events, Format, Logs};

/// The longest line that is read, in bytes.
const LONGEST: usize = 16 << 20;

/// Reads a stream line by line.
pub(super) async fn lines(
    answer: Response<Incoming>,
    mut each: impl FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut body = answer.into_body();
    let mut rest: Vec<u8> = Vec::new();
    while let Some(frame) = body.frame().await {
        let broken =
            |e: hyper::Error| Failure::from_error(Class::Fetch, &e).context("the stream of the host broke off");
        let Ok(bytes) = frame.map_err(broken)?.into_data() else {
            continue;
        };
        rest.extend_from_slice(&bytes);
        let mut begin = 0;
        while let Some(length) = rest[begin..].iter().position(|byte| *byte == b'\n') {
            each(&rest[begin..begin + length])?;
            begin += length + 1;
        }
        rest.drain(..begin);
        if rest.len() > LONGEST {
            return Err(Failure::new(Class::Fetch, "the host sends a line that does not end"));
        }
    }
    if rest.is_empty() { Ok(()) } else { each(&rest) }
}

pub(super) async fn logs(server: &Server, args: &Logs) -> Result<(), Failure> {
    let mut ask = Ask::new("GET", format!("/v1/machines/{}/logs", part(&args.name)));
    if args.follow {
        ask = ask.with("follow", "1");
    }
    ask.query.extend(args.tail.map(|lines| ("tail", lines.to_string())));
    ask.query.extend(args.since.clone().map(|time| ("since", time)));
    ask.query.extend(args.until.clone().map(|time| ("until", time)));
    ask.query
        .extend(args.source.iter().map(|source| ("source", source.clone())));
    let answer = server.open(&ask).await?;
    let mut begins = true;
    lines(answer, |line| {
        let entry: Value = serde_json::from_slice(line).unwrap_or_default();
        let mut text = output::text(&entry["text"]);
        if args.timestamps && begins {
            text.insert_str(0, &format!("{} ", output::text(&entry["time"])));
        }
        begins = entry["partial"] != true;
        if begins {
            text.push('\n');
        }
        match entry["source"] == "stderr" {
            true => std::io::stderr().lock().write_all(text.as_bytes())?,
            false => output::print(&text)?,
        }
        Ok(())
    })
    .await
}

pub(super) async fn events(server: &Server, args: &Events) -> Result<(), Failure> {
    let since = match (&args.since, args.follow) {
        (Some(since), _) => Some(since.clone()),
        // All that are kept; who follows wants what comes.
        (None, false) => Some("0".to_owned()),
        (None, true) => None,
    };
    let mut ask = Ask::new("GET", "/v1/events").with("follow", if args.follow { "1" } else { "0" });
    ask.query.extend(since.map(|since| ("since", since)));
    let answer = server.open(&ask).await?;
    lines(answer, |line| {
        let Some(data) = line.strip_prefix(b"data: ") else {
            return Ok(());
        };
        if args.output == Format::Json {
            return output::line(&String::from_utf8_lossy(data));
        }
        let event: Value = serde_json::from_slice(data).unwrap_or_default();
        let known = ["time", "event", "name", "machine", "id"];
        let more = event.as_object().into_iter().flatten();
        let more: Vec<String> = more
            .filter(|(key, value)| !known.contains(&key.as_str()) && !value.is_null())
            .map(|(key, value)| format!("{key}={}", output::text(value)))
            .collect();
        let name = if event["name"].is_null() {
            &event["machine"]
        } else {
            &event["name"]
        };
        let words = [
            output::text(&event["time"]),
            output::text(&event["event"]),
            output::text(name),
            more.join(" "),
        ];
        output::line(words.join(" ").trim_end())
    })
    .await
}

pub(super) async fn metrics(server: &Server) -> Result<(), Failure> {
    let answer = server.open(&Ask::new("GET", "/v1/metrics")).await?;
    lines(answer, |line| output::line(&String::from_utf8_lossy(line))).await
}

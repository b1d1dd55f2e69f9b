//! User data for cloud-init, in every form that it takes: a `#cloud-config`, a script, a list of addresses, an archive, a
//! template, a MIME message of several, and any of them compressed.
//!
//! What a user gives is never rewritten: with something of ours to say as well, both become parts of one MIME message, and
//! cloud-init finds the user's part as it would have found the whole. (`user_data.py` of cloud-init 22.4: it parses MIME as
//! text, which spoils what is not ASCII unless it is in base64; it walks through messages in messages; the kind of a part
//! that says it is no message is told by its first line.)

use std::io::Read;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::read::MultiGzDecoder;

/// The most that a compressed file may hold in bytes; cloud-init keeps all of it in memory.
const GZIP_MAX: u64 = 64 << 20;

/// cloud-init takes for MIME what has this word that early.
const MIME: &str = "mime-version:";
const MIME_WITHIN: usize = 4096;

/// Bytes of base64 on a line (RFC 2045).
const LINE: usize = 76;

/// The user's part comes first, so that it means what it means alone; ours is merged into what that made of the
/// configuration: lists of ours go before the user's (mounts come before commands that use them), and what the user has set
/// stays.
const OURS: &str =
    "Content-Type: text/cloud-config; charset=\"utf-8\"\nMerge-Type: list(prepend)+dict(recurse_array)+str()\n";

/// What cloud-init calls data that says nothing of its kind.
const THEIRS: &str = "Content-Type: text/x-not-multipart\n";

/// A file of user data as a text that means the same to cloud-init: unpacked if it is a gzip archive, without the mark that
/// editors put before UTF-8, and wrapped where it is no text.
pub fn text(file: Vec<u8>) -> String {
    let file = unpacked(&file).unwrap_or(file);
    let file = match file.strip_prefix(b"\xef\xbb\xbf") {
        Some(rest) => rest.to_vec(),
        None => file,
    };
    String::from_utf8(file).unwrap_or_else(|e| format!("MIME-Version: 1.0\n{}", part(THEIRS, e.as_bytes())))
}

/// What a gzip archive holds; none when it is not one, not whole or too large: cloud-init says so to the guest's owner then.
fn unpacked(file: &[u8]) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    let read = MultiGzDecoder::new(file).take(GZIP_MAX + 1).read_to_end(&mut content);
    (read.is_ok() && content.len() as u64 <= GZIP_MAX).then_some(content)
}

/// A user's data and our configuration as one.
pub(super) fn merged(theirs: &str, ours: &str) -> String {
    let theirs = match is_message(theirs) {
        true => theirs.to_owned(),
        false => part(THEIRS, theirs.as_bytes()),
    };
    let ours = part(OURS, ours.as_bytes());
    let mut boundary = "==zmachine==".to_owned();
    while theirs.contains(&boundary) {
        boundary.push('=');
    }
    format!(
        "Content-Type: multipart/mixed; boundary=\"{boundary}\"\nMIME-Version: 1.0\n\n\
         --{boundary}\n{theirs}\n--{boundary}\n{ours}\n--{boundary}--\n"
    )
}

fn part(headers: &str, content: &[u8]) -> String {
    let encoded = STANDARD.encode(content);
    let mut text = format!("{headers}Content-Transfer-Encoding: base64\n\n");
    let mut rest = encoded.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(LINE.min(rest.len()));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text
}

/// Whether it is a MIME message with headers of its own (RFC 5322). Else the word is something that a script says.
fn is_message(text: &str) -> bool {
    let mut read = 0;
    for (nth, line) in text.split_inclusive('\n').enumerate() {
        let content = line.trim_end_matches(['\r', '\n']);
        let is_name = |name: &str| name.bytes().all(|b| b.is_ascii_graphic());
        let is_header = content.split_once(':').is_some_and(|(name, _)| is_name(name))
            || (nth == 0 && content.starts_with("From "))
            || (nth > 0 && content.starts_with([' ', '\t']));
        let is_mime = content
            .get(..MIME.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(MIME));
        if is_mime && read + MIME.len() <= MIME_WITHIN {
            return true;
        }
        if !is_header {
            return false;
        }
        read += line.len();
    }
    false
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn decoded(text: &str) -> Vec<u8> {
        STANDARD.decode(text.replace('\n', "")).unwrap()
    }

    #[test]
    fn both_are_whole_parts_of_a_message_the_users_first() {
        let (theirs, ours) = ("#cloud-config\n# Grüße €\n--==zmachine==\n", "#cloud-config\n{}\n");
        let text = merged(theirs, ours);
        assert!(text.is_ascii(), "{text}");
        let parts: Vec<&str> = text.split("--==zmachine==").collect();
        assert!(parts[0].starts_with("Content-Type: multipart/mixed; boundary=\"==zmachine==\"\nMIME-Version: 1.0\n"));
        let content = |nth: usize| decoded(parts[nth].split_once("\n\n").unwrap().1);
        assert_eq!((content(1), content(2)), (theirs.into(), ours.into()));
        assert!(parts[1].contains("text/x-not-multipart") && parts[2].contains("Merge-Type: list(prepend)"));
        assert_eq!((parts.len(), parts[3]), (4, "--\n"));
    }

    #[test]
    fn a_message_keeps_its_own_headers_and_parts() {
        let message = "Content-Type: multipart/mixed;\n boundary=\"==zmachine==\"\nMIME-Version: 1.0\n\n--==zmachine==\n\n#!/bin/sh\n--==zmachine==--\n";
        let text = merged(message, "#cloud-config\n");
        assert!(
            text.starts_with("Content-Type: multipart/mixed; boundary=\"==zmachine===\""),
            "{text}"
        );
        assert!(
            text.contains(&format!("--==zmachine===\n{message}\n--==zmachine===\n")),
            "{text}"
        );
    }

    #[test]
    fn a_message_is_told_from_a_script_that_speaks_of_one() {
        for message in [
            "MIME-Version: 1.0\n\nx",
            "From me\nmime-version: 1.0\r\nX: y\r\n\r\nx",
            "Content-Type: text/plain\nMime-Version: 1.0\n",
        ] {
            assert!(is_message(message), "{message}");
        }
        for other in [
            "#!/bin/sh\nMIME-Version: 1.0\n",
            "\nMIME-Version: 1.0\n",
            "Content-Type: text/plain\n\nx",
            "",
        ] {
            assert!(!is_message(other), "{other}");
        }
    }

    #[test]
    fn compressed_files_marks_and_bytes_that_are_no_text_are_taken() {
        let gzip = |bytes: &[u8]| {
            let mut out = GzEncoder::new(Vec::new(), Compression::default());
            out.write_all(bytes).unwrap();
            out.finish().unwrap()
        };
        assert_eq!(text(gzip(b"#!/bin/sh\n")), "#!/bin/sh\n");
        assert_eq!(text(b"\xef\xbb\xbf#cloud-config\n".into()), "#cloud-config\n");
        let latin = b"#!/bin/sh\necho Gr\xfc\xdfe\n";
        let wrapped = text(gzip(latin));
        assert!(is_message(&wrapped), "{wrapped}");
        assert_eq!(decoded(wrapped.split_once("\n\n").unwrap().1), latin);
        let cut = &gzip(b"#!/bin/sh\n")[..12];
        assert!(is_message(&text(cut.into())));
    }
}

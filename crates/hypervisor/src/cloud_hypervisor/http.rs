//! HTTP/1.1 as far as the API speaks it: one request, one answer with a `Content-Length`. Pure.
//!
//! The peer has a guest's devices in its process, so it is not trusted: head and body are bounded before anything is
//! kept of them, and whatever is no answer is an error.

/// Bytes of status line and headers; Cloud Hypervisor sends about 150.
const MAX_HEAD: usize = 16 * 1024;
/// Bytes of a body; the description of a machine with everything in it has 20 KB.
pub(crate) const MAX_BODY: usize = 4 << 20;
/// Headers of an answer; Cloud Hypervisor sends four.
const MAX_HEADERS: usize = 32;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its status: 200 to 599.
    pub status: u16,
    /// Its body, empty when there is none.
    pub body: Vec<u8>,
}

/// Why something is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HttpError {
    /// It is no HTTP.
    #[error("it is no HTTP answer: {0}")]
    Syntax(String),
    /// It is longer than any answer.
    #[error("its {what} is longer than {limit} bytes")]
    TooLong {
        /// The part.
        what: &'static str,
        /// How long it may be.
        limit: usize,
    },
}

/// The bytes of a request for `route` of the API.
pub(crate) fn request(method: &str, route: &str, body: Option<&[u8]>) -> Vec<u8> {
    let mut head = format!("{method} /api/v1/{route} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n");
    if let Some(body) = body {
        head.push_str(&format!(
            "Content-Type: application/json\r\nContent-Length: {}\r\n",
            body.len()
        ));
    }
    head.push_str("\r\n");
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(body.unwrap_or_default());
    bytes
}

/// Collects the bytes of one answer.
#[derive(Debug, Default)]
pub struct AnswerDecoder {
    buffer: Vec<u8>,
}

impl AnswerDecoder {
    /// Takes what came, and gives the answer once it is whole. What follows an answer is not looked at.
    ///
    /// # Errors
    /// When it cannot become an answer any more.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Option<Answer>, HttpError> {
        self.buffer.extend_from_slice(bytes);
        loop {
            let Some((status, head, length)) = self.head()? else {
                return match self.buffer.len() > MAX_HEAD {
                    true => Err(HttpError::TooLong {
                        what: "head",
                        limit: MAX_HEAD,
                    }),
                    false => Ok(None),
                };
            };
            if status < 200 {
                // An interim answer, such as `100 Continue`, has no body.
                self.buffer.drain(..head);
                continue;
            }
            let end = head + length;
            if self.buffer.len() < end {
                return Ok(None);
            }
            let body = self.buffer[head..end].to_vec();
            return Ok(Some(Answer { status, body }));
        }
    }

    /// Status, length of the head, and length of the body, once the head is whole.
    fn head(&self) -> Result<Option<(u16, usize, usize)>, HttpError> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        let seen = &self.buffer[..self.buffer.len().min(MAX_HEAD)];
        let head = match response.parse(seen) {
            Ok(httparse::Status::Complete(head)) => head,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(error) => return Err(HttpError::Syntax(error.to_string())),
        };
        let status = response.code.unwrap_or_default();
        if !(100..600).contains(&status) {
            return Err(HttpError::Syntax(format!("the status {status} does not exist")));
        }
        let mut length = 0;
        for header in response.headers.iter() {
            if header.name.eq_ignore_ascii_case("transfer-encoding") {
                return Err(HttpError::Syntax("its body has no length".into()));
            }
            if header.name.eq_ignore_ascii_case("content-length") {
                let text = std::str::from_utf8(header.value).unwrap_or_default().trim();
                length = text
                    .parse()
                    .map_err(|_| HttpError::Syntax(format!("'{text}' is no length")))?;
            }
        }
        // No body whatever the headers say (RFC 9110, 15.3.5).
        if status == 204 {
            length = 0;
        }
        if length > MAX_BODY {
            return Err(HttpError::TooLong {
                what: "body",
                limit: MAX_BODY,
            });
        }
        Ok(Some((status, head, length)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8]) -> Result<Option<Answer>, HttpError> {
        let mut decoder = AnswerDecoder::default();
        let mut last = Ok(None);
        // Byte by byte: the socket may cut anywhere.
        for byte in bytes {
            last = decoder.push(&[*byte]);
            if !matches!(last, Ok(None)) {
                break;
            }
        }
        last
    }

    #[test]
    fn an_answer_is_whole_when_its_last_byte_is_there() {
        let bytes = b"HTTP/1.1 200 \r\nServer: Cloud Hypervisor API\r\nContent-Length: 2\r\n\r\n{}";
        let answer = decode(bytes).unwrap().unwrap();
        assert_eq!((answer.status, answer.body.as_slice()), (200, &b"{}"[..]));
        assert_eq!(decode(&bytes[..bytes.len() - 1]), Ok(None));
    }

    #[test]
    fn an_answer_without_content_has_no_body_and_an_interim_one_is_skipped() {
        let bytes = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\nContent-Length: 7\r\n\r\n";
        assert_eq!(
            decode(bytes).unwrap().unwrap(),
            Answer {
                status: 204,
                body: vec![]
            }
        );
    }

    #[test]
    fn what_is_no_answer_or_too_much_of_one_is_refused() {
        for bytes in [
            &b"QMP {}\r\n\r\n"[..],
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551615\r\n\r\n",
            b"HTTP/1.1 999 OK\r\n\r\n",
        ] {
            assert!(decode(bytes).is_err(), "{}", String::from_utf8_lossy(bytes));
        }
        let mut long = b"HTTP/1.1 200 OK\r\nX: ".to_vec();
        long.resize(MAX_HEAD + 1, b'x');
        assert!(AnswerDecoder::default().push(&long).is_err());
    }

    #[test]
    fn a_request_says_how_long_its_body_is() {
        let bytes = request("PUT", "vm.create", Some(b"{}"));
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.starts_with("PUT /api/v1/vm.create HTTP/1.1\r\n"), "{text}");
        assert!(text.ends_with("Content-Length: 2\r\n\r\n{}"), "{text}");
        assert!(
            !String::from_utf8(request("GET", "vm.info", None))
                .unwrap()
                .contains("Content")
        );
    }
}

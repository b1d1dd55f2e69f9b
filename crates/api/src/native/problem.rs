//! Failures, as RFC 9457 (problem details) has them: with class, causes, hint and settings as the engine tells them, and in the words of
//! the command line.

use hyper::StatusCode;
use serde::Serialize;
use zmachine_spec::{Class, Failure, Setting};

use crate::http::{Answer, Body, Refusal, typed};

/// The type of such a body.
pub const CONTENT_TYPE: &str = "application/problem+json";

/// A failure with the status of its answer.
#[derive(Debug, Clone)]
pub struct Problem {
    failure: Failure,
    status: StatusCode,
}

/// Its body.
#[derive(Debug, Serialize)]
struct Document<'a> {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    detail: &'a str,
    class: Class,
    causes: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    settings: &'a [Setting],
    /// As the command line prints it.
    text: String,
}

fn title(class: Class) -> &'static str {
    match class {
        Class::Failed => "it failed",
        Class::Usage => "the request makes no sense",
        Class::NotFound => "there is no such thing",
        Class::Conflict => "its state does not allow it",
        Class::Fetch => "something could not be fetched",
        Class::Unsupported => "this host cannot do it",
        Class::CommandNotExecutable => "the command cannot be run",
        Class::CommandNotFound => "the command is not there",
    }
}

impl Problem {
    /// With a status of its own.
    pub fn with_status(failure: Failure, status: StatusCode) -> Problem {
        Problem { failure, status }
    }

    /// The answer.
    pub fn answer(&self) -> Answer {
        let failure = &self.failure;
        let mut text = format!("error: {}\n", failure.message);
        for cause in &failure.causes {
            text.push_str(&format!("caused by: {cause}\n"));
        }
        if let Some(hint) = &failure.hint {
            text.push_str(&format!("hint: {hint}\n"));
        }
        let document = Document {
            r#type: "about:blank",
            title: title(failure.class),
            status: self.status.as_u16(),
            detail: &failure.message,
            class: failure.class,
            causes: &failure.causes,
            hint: failure.hint.as_deref(),
            settings: &failure.settings,
            text,
        };
        let bytes = serde_json::to_vec(&document).unwrap_or_default();
        typed(self.status, CONTENT_TYPE, Body::Whole(Some(bytes.into())))
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Problem {
        let status = match failure.class {
            Class::Usage | Class::CommandNotFound | Class::CommandNotExecutable => StatusCode::BAD_REQUEST,
            Class::NotFound => StatusCode::NOT_FOUND,
            Class::Conflict => StatusCode::CONFLICT,
            Class::Fetch => StatusCode::BAD_GATEWAY,
            Class::Unsupported => StatusCode::UNPROCESSABLE_ENTITY,
            Class::Failed => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Problem { failure, status }
    }
}

/// What went wrong with the request itself.
impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Problem {
        let class = match refusal.status {
            StatusCode::NOT_FOUND => Class::NotFound,
            StatusCode::CONFLICT => Class::Conflict,
            status if status.is_client_error() => Class::Usage,
            _ => Class::Failed,
        };
        Problem {
            failure: Failure::new(class, refusal.message),
            status: refusal.status,
        }
    }
}

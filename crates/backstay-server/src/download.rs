//! Parts of backups that members take away, as streams (T40, V42, ADR 21).

use std::io;
use std::time::Duration;

use axum::body::Body;
use axum::http::HeaderName;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use backstay_format::{Hasher, Sha256};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;

use crate::client::CallError;

/// Says which digest all bytes together have.
const DIGEST: &str = "backstay-sha256";
/// How long the next bytes may take to arrive: the server may have to ask its storage several times.
const STALLED: Duration = Duration::from_mins(5);
/// The exit code of a command that found damaged data.
const DAMAGED: u8 = 13;

/// Which part of a backup is wanted, and how.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PartQuery {
    /// Its name; the only one with data if left out.
    pub part: Option<String>,
    /// As it lies on the storage.
    #[serde(default)]
    pub sealed: bool,
}

/// A part on its way to a member.
pub struct Outgoing {
    /// How many bytes it has.
    pub bytes: u64,
    /// Their digest.
    pub sha256: Sha256,
    /// The bytes. An error ends the connection, as does an end before all are there: nobody takes what came for the whole.
    pub data: Receiver<io::Result<Bytes>>,
}

impl IntoResponse for Outgoing {
    fn into_response(self) -> Response {
        let headers = [
            (CONTENT_TYPE, "application/octet-stream".to_owned()),
            (CONTENT_LENGTH, self.bytes.to_string()),
            (HeaderName::from_static(DIGEST), self.sha256.to_string()),
        ];
        let next = |mut data: Receiver<_>| async move { Some((data.recv().await?, data)) };
        let stream = futures_util::stream::unfold(self.data, next);
        (headers, Body::from_stream(stream)).into_response()
    }
}

/// A part that arrives from a server.
#[derive(Debug)]
pub struct Incoming {
    response: reqwest::Response,
    /// How many bytes it has.
    pub bytes: u64,
    sha256: Sha256,
    hasher: Hasher,
}

impl Incoming {
    pub(crate) fn of(response: reqwest::Response) -> Result<Self, CallError> {
        let headers = response.headers();
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let bytes = text("content-length").and_then(|text| text.parse().ok());
        let sha256 = text(DIGEST).and_then(|text| text.parse().ok());
        let (Some(bytes), Some(sha256)) = (bytes, sha256) else {
            let text = "found an answer without length and digest, and so not by a backstay";
            return Err(CallError::Away(text.to_owned()));
        };
        Ok(Self { response, bytes, sha256, hasher: Hasher::new() })
    }

    /// Returns the next bytes; `None` when all are there and are those that the server meant.
    pub async fn next(&mut self) -> Result<Option<Bytes>, CallError> {
        let next = timeout(STALLED, self.response.chunk()).await;
        let next = next.map_err(|_| {
            CallError::Unreachable(format!("nothing came for {} s", STALLED.as_secs()))
        })?;
        if let Some(bytes) = next.map_err(|error| crate::client::unreachable(&error))? {
            self.hasher.update(&bytes);
            return Ok(Some(bytes));
        }
        let found = std::mem::take(&mut self.hasher).finish();
        if found != self.sha256 {
            let text = format!("what arrived has the SHA-256 {found}, expected {}", self.sha256);
            return Err(CallError::Failed { text, exit_code: Some(DAMAGED) });
        }
        Ok(None)
    }
}

//! What a receiver said, sorted by what to do about it:
//! <https://opentelemetry.io/docs/specs/otlp/#failures>.

use std::time::{Duration, SystemTime};

use prost::Message;
use reqwest::header::HeaderMap;
use tonic::Code;

use crate::export::text::plain;

/// Characters of a receiver's text that are repeated.
const TEXT_LIMIT: usize = 500;

/// The receiver has taken the request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Accepted {
    /// Profiles that it has refused. Not to be sent again.
    pub rejected: u64,
    /// Why, or a warning although all were taken; empty if there is none.
    pub message: String,
}

/// A request was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// Nobody is there, or the connection broke. May be sent again.
    #[error("cannot reach {endpoint}: {reason}; is a Collector listening there?")]
    Unreachable {
        /// Where.
        endpoint: String,
        /// What the system said.
        reason: String,
    },
    /// TLS has failed: a certificate is not trusted, has expired, or is of another name. May be sent again, since certificates are renewed.
    #[error(
        "no trusted connection to {endpoint}: {reason}; see --otlp-ca for whom to trust, --otlp-cert and --otlp-key for who we are"
    )]
    Untrusted {
        /// Where.
        endpoint: String,
        /// What TLS said.
        reason: String,
    },
    /// Nothing came back. May be sent again.
    #[error("no answer from {endpoint} within {timeout:?}")]
    Timeout {
        /// Who.
        endpoint: String,
        /// How long it was waited for.
        timeout: Duration,
    },
    /// The receiver cannot take it now. May be sent again, if it said so not before `after`.
    #[error("{endpoint} cannot take profiles now: {reason}")]
    Busy {
        /// Who.
        endpoint: String,
        /// Its words.
        reason: String,
        /// How long it wants to be left alone.
        after: Option<Duration>,
    },
    /// The receiver takes no profiles at all. Never to be sent again.
    #[error(
        "{endpoint} takes no profiles ({reason}): start the Collector with \
         --feature-gates=+service.profilesSupport and give its configuration a pipeline service.pipelines.profiles"
    )]
    NoProfiles {
        /// Who.
        endpoint: String,
        /// Its words.
        reason: String,
    },
    /// The receiver does not know this compression. Never to be sent again.
    #[error(
        "{endpoint} does not take zstd ({reason}); use --otlp-compression gzip, which every receiver takes"
    )]
    NoZstd {
        /// Who.
        endpoint: String,
        /// Its words.
        reason: String,
    },
    /// The receiver does not know us. Never to be sent again.
    #[error("{endpoint} does not let us in: {reason}; is the token in --otlp-header right?")]
    Forbidden {
        /// Who.
        endpoint: String,
        /// Its words.
        reason: String,
    },
    /// The receiver does not want this request. Never to be sent again.
    #[error("{endpoint} has refused the profiles: {reason}")]
    Refused {
        /// Who.
        endpoint: String,
        /// Its words.
        reason: String,
    },
    /// Larger than any receiver has to take. Was not sent.
    #[error("a request of {0} bytes is larger than OTLP's limit of 64 MiB")]
    TooLarge(usize),
}

impl ExportError {
    /// Whether sending the same request again may help.
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Untrusted { .. } | Self::Timeout { .. } | Self::Busy { .. } => {
                true
            }
            Self::NoProfiles { .. }
            | Self::NoZstd { .. }
            | Self::Forbidden { .. }
            | Self::Refused { .. }
            | Self::TooLarge(_) => false,
        }
    }

    /// How long the receiver wants to be left alone, if it said so.
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Busy { after, .. } => *after,
            Self::Unreachable { .. }
            | Self::Untrusted { .. }
            | Self::Timeout { .. }
            | Self::NoProfiles { .. }
            | Self::NoZstd { .. }
            | Self::Forbidden { .. }
            | Self::Refused { .. }
            | Self::TooLarge(_) => None,
        }
    }
}

/// `google.rpc.Status`, with which errors are explained: in gRPC's trailers, and in bodies over HTTP.
#[derive(Clone, PartialEq, Message)]
pub(super) struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Detail>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Message)]
struct Detail {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `google.rpc.RetryInfo`, with its `google.protobuf.Duration`.
#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<Delay>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Delay {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

impl RpcStatus {
    fn retry_after(&self) -> Option<Duration> {
        let info = self
            .details
            .iter()
            .find(|detail| detail.type_url.ends_with("google.rpc.RetryInfo"))?;
        let delay = RetryInfo::decode(info.value.as_slice()).ok()?.retry_delay?;
        Some(Duration::new(
            delay.seconds.try_into().ok()?,
            delay.nanos.try_into().ok()?,
        ))
    }
}

/// Sorts an error of gRPC.
pub(super) fn of_grpc(endpoint: String, status: &tonic::Status) -> ExportError {
    // A status with a cause was made on this side, of an error of the connection.
    if let Some(cause) = std::error::Error::source(status) {
        return of_connection(endpoint, cause);
    }
    let reason = format!("{:?}: {}", status.code(), plain(status.message(), TEXT_LIMIT));
    let after = RpcStatus::decode(status.details())
        .ok()
        .and_then(|status| status.retry_after());
    match status.code() {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => ExportError::Busy {
            endpoint,
            reason,
            after,
        },
        // Only with a delay does it mean "later"; without one it means "too large".
        Code::ResourceExhausted if after.is_some() => ExportError::Busy {
            endpoint,
            reason,
            after,
        },
        Code::Unimplemented => ExportError::NoProfiles { endpoint, reason },
        Code::PermissionDenied | Code::Unauthenticated => ExportError::Forbidden { endpoint, reason },
        Code::Ok
        | Code::Unknown
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Internal => ExportError::Refused { endpoint, reason },
    }
}

/// Sorts an answer over HTTP that is no success.
pub(super) fn of_http(endpoint: String, status: u16, headers: &HeaderMap, body: &[u8]) -> ExportError {
    // A `google.rpc.Status` from OTLP receivers; text from whatever else listens there.
    let text = match RpcStatus::decode(body) {
        Ok(status) if !status.message.is_empty() => status.message,
        Ok(_) | Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    let text = plain(text.trim(), TEXT_LIMIT);
    let reason = if text.is_empty() {
        format!("HTTP {status}")
    } else {
        format!("HTTP {status}: {text}")
    };
    match status {
        429 | 502..=504 => ExportError::Busy {
            endpoint,
            reason,
            after: headers
                .get("retry-after")
                .and_then(|value| retry_after(value.to_str().ok()?.trim())),
        },
        401 | 403 => ExportError::Forbidden { endpoint, reason },
        404 => ExportError::NoProfiles { endpoint, reason },
        _ => ExportError::Refused { endpoint, reason },
    }
}

/// Reads `Retry-After`: seconds, or a date.
fn retry_after(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

/// Sorts an error of the connection.
pub(super) fn of_connection(endpoint: String, error: &(dyn std::error::Error + 'static)) -> ExportError {
    let reason = chain(error);
    let mut next = Some(error);
    while let Some(error) = next {
        if is_of_tls(error) {
            return ExportError::Untrusted { endpoint, reason };
        }
        next = error.source();
    }
    ExportError::Unreachable { endpoint, reason }
}

/// Whether TLS said this, itself or in an error of input and output, which has no source but what it holds.
fn is_of_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    let inner = error
        .downcast_ref::<std::io::Error>()
        .and_then(std::io::Error::get_ref);
    error.is::<rustls::Error>() || inner.is_some_and(|inner| is_of_tls(inner))
}

/// An error of the connection with its causes, each once.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        if parts.last().is_none_or(|last| !last.contains(&text)) {
            parts.push(text);
        }
        next = error.source();
    }
    plain(&parts.join(": "), TEXT_LIMIT)
}

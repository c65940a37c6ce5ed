//! Sends packed requests: one at a time, once. What to do about a failure is for the caller to decide; the error
//! says whether sending again may help.
//!
//! A request is compressed when it is packed, not when it is sent: what was written to a disk yesterday is sent as it is. So gRPC's frame
//! of flag and length is made here, and tonic is the connection below it and the reader of the answer.

use std::{future::poll_fn, time::Duration};

use http_body_util::{BodyExt as _, Full};
use opentelemetry_proto::tonic::collector::profiles::v1development::ExportProfilesServiceResponse;
use prost::{
    Message,
    bytes::{Buf, BufMut as _, Bytes, BytesMut},
};
use tonic::{
    Status, Streaming,
    body::Body,
    client::GrpcService,
    codec::{CompressionEncoding, DecodeBuf, Decoder},
    codegen::http::{self, HeaderMap, HeaderName, HeaderValue},
    transport::Channel,
};

pub use super::answer::{Accepted, ExportError};
use super::{
    answer::{of_connection, of_grpc, of_http},
    connections::{self, Connections},
    endpoint::{Endpoint, Protocol},
    headers::Header,
    parcel::{Compression, Parcel},
    tls::{self, TlsError},
};

/// Says which layout the bytes have. Receivers refuse a request that says it twice.
pub(super) const VERSION_HEADER: &str = "otlp-profiles-development-version";
const VERSION: &str = "1";

pub(super) const USER_AGENT: &str = concat!(
    "OTel-OTLP-Exporter-Rust/",
    env!("CARGO_PKG_VERSION"),
    " profiler-agent"
);
const GRPC_PATH: &str = "/opentelemetry.proto.collector.profiles.v1development.ProfilesService/Export";

/// A client must not send more: <https://opentelemetry.io/docs/specs/otlp/>.
const REQUEST_LIMIT: usize = 64 << 20;
/// An answer must not be larger.
const ANSWER_LIMIT: usize = 4 << 20;

/// How to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Longest time for one request, the connection included.
    pub timeout: Duration,
    /// Headers that go out with every request.
    pub headers: Vec<Header>,
    /// For endpoints of https.
    pub tls: tls::Files,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(10),
            headers: Vec::new(),
            tls: tls::Files::default(),
        }
    }
}

/// A connection to a receiver, made at the first request, kept and made anew when it breaks.
#[derive(Debug)]
pub struct Client {
    endpoint: Endpoint,
    timeout: Duration,
    headers: HeaderMap,
    transport: Transport,
}

#[derive(Debug, Clone)]
enum Transport {
    Grpc(Channel),
    Http(reqwest::Client),
}

/// The client could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The transport does not take the endpoint.
    #[error("cannot prepare the connection to {endpoint}: {reason}")]
    Transport {
        /// Where to.
        endpoint: String,
        /// What is wrong.
        reason: String,
    },
    /// Certificates are missing or wrong.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl Client {
    /// Prepares a client; connects to nothing yet, so it starts without a receiver. Call it in a tokio runtime.
    ///
    /// # Errors
    /// [`ClientError`] if the endpoint cannot be used by the transport, or a certificate not at all.
    pub fn new(endpoint: Endpoint, options: &Options) -> Result<Self, ClientError> {
        Self::counting(endpoint, options, &Connections::default())
    }

    /// The same, counting its connections.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn counting(
        endpoint: Endpoint,
        options: &Options,
        connections: &Connections,
    ) -> Result<Self, ClientError> {
        let transport = match endpoint.protocol() {
            Protocol::Grpc => Transport::Grpc(connections::grpc(&endpoint, options, connections, None)?),
            Protocol::Http => Transport::Http(connections::http(&endpoint, options, connections)?),
        };
        let mut all: HeaderMap = options.headers.iter().map(Header::parts).collect();
        all.insert(
            HeaderName::from_static(VERSION_HEADER),
            HeaderValue::from_static(VERSION),
        );
        Ok(Self {
            endpoint,
            timeout: options.timeout,
            headers: all,
            transport,
        })
    }

    /// Where it sends to.
    pub const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Sends one request, once.
    ///
    /// # Errors
    /// [`ExportError`], sorted by what to do about it.
    pub fn export(
        &self,
        parcel: Parcel,
    ) -> impl Future<Output = Result<Accepted, ExportError>> + Send + use<> {
        let (endpoint, url) = (self.endpoint.to_string(), self.endpoint.url());
        let (transport, headers, timeout) = (self.transport.clone(), self.headers.clone(), self.timeout);
        async move {
            if parcel.length > REQUEST_LIMIT {
                return Err(ExportError::TooLarge(parcel.length));
            }
            let compression = parcel.compression;
            let sent = async {
                match transport {
                    Transport::Grpc(channel) => export_grpc(channel, endpoint.clone(), headers, parcel).await,
                    Transport::Http(http) => export_http(http, endpoint.clone(), url, headers, parcel).await,
                }
            };
            match tokio::time::timeout(timeout, sent).await {
                Ok(Err(ExportError::NoProfiles { endpoint, reason }))
                    if compression == Compression::Zstd && reason.to_lowercase().contains("compress") =>
                {
                    Err(ExportError::NoZstd { endpoint, reason })
                }
                Ok(result) => result,
                Err(_) => Err(ExportError::Timeout { endpoint, timeout }),
            }
        }
    }
}

async fn export_grpc(
    mut channel: Channel,
    endpoint: String,
    headers: HeaderMap,
    parcel: Parcel,
) -> Result<Accepted, ExportError> {
    let ready = poll_fn(|context| GrpcService::<Body>::poll_ready(&mut channel, context));
    if let Err(error) = ready.await {
        return Err(of_connection(endpoint, &error));
    }
    let Parcel {
        body, compression, ..
    } = parcel;
    let length = u32::try_from(body.len()).map_err(|_| ExportError::TooLarge(body.len()))?;
    // One flag, whether it is compressed; four bytes of length: gRPC's frame of a message.
    let mut frame = BytesMut::with_capacity(5 + body.len());
    frame.put_u8(u8::from(compression != Compression::None));
    frame.put_u32(length);
    frame.put(body);

    let mut request = http::Request::new(Body::new(
        Full::new(frame.freeze()).map_err(|never| match never {}),
    ));
    *request.method_mut() = http::Method::POST;
    *request.version_mut() = http::Version::HTTP_2;
    *request.uri_mut() = http::Uri::from_static(GRPC_PATH);
    let map = request.headers_mut();
    *map = headers;
    map.insert("content-type", HeaderValue::from_static("application/grpc"));
    map.insert("te", HeaderValue::from_static("trailers"));
    map.insert(
        "grpc-accept-encoding",
        HeaderValue::from_static("identity,gzip,zstd"),
    );
    if compression != Compression::None {
        map.insert("grpc-encoding", HeaderValue::from_static(compression.name()));
    }
    let answer = match GrpcService::call(&mut channel, request).await {
        Ok(answer) => answer,
        Err(error) => return Err(of_connection(endpoint, &error)),
    };
    let failed = |status: &Status| of_grpc(endpoint.clone(), status);
    let code = answer.status();
    if let Some(status) = Status::from_header_map(answer.headers())
        && status.code() != tonic::Code::Ok
    {
        return Err(failed(&status));
    }
    if code != http::StatusCode::OK && answer.headers().get("grpc-status").is_none() {
        // No gRPC server, or a proxy before it.
        return Err(of_http(endpoint, code.as_u16(), answer.headers(), &[]));
    }
    let encoding = match answer.headers().get("grpc-encoding").map(HeaderValue::as_bytes) {
        Some(b"gzip") => Some(CompressionEncoding::Gzip),
        // Go's servers answer as they were asked, whatever they are told of what is understood.
        Some(b"zstd") => Some(CompressionEncoding::Zstd),
        _ => None,
    };
    let mut messages =
        Streaming::new_response(Answer, answer.into_body(), code, encoding, Some(ANSWER_LIMIT));
    let message = messages.message().await.map_err(|status| failed(&status))?;
    // The status comes last, whatever came before it.
    messages.trailers().await.map_err(|status| failed(&status))?;
    message
        .map(accepted)
        .ok_or_else(|| failed(&Status::unknown("an answer without a message")))
}

async fn export_http(
    http: reqwest::Client,
    endpoint: String,
    url: reqwest::Url,
    headers: HeaderMap,
    parcel: Parcel,
) -> Result<Accepted, ExportError> {
    let Parcel {
        body, compression, ..
    } = parcel;
    let mut request = http
        .post(url)
        .headers(headers)
        .header("content-type", "application/x-protobuf");
    if compression != Compression::None {
        request = request.header("content-encoding", compression.name());
    }
    // The URL is in the message already.
    let failed = |error: reqwest::Error| of_connection(endpoint.clone(), &error.without_url());
    let mut answer = request.body(body).send().await.map_err(failed)?;
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(failed)? {
        body.extend_from_slice(&chunk);
        if body.len() > ANSWER_LIMIT {
            let reason = format!("its answer is larger than {ANSWER_LIMIT} bytes");
            return Err(ExportError::Refused { endpoint, reason });
        }
    }
    let status = answer.status();
    if !status.is_success() {
        return Err(of_http(endpoint, status.as_u16(), answer.headers(), &body));
    }
    // A success is one, whatever its body is.
    Ok(ExportProfilesServiceResponse::decode(body.as_slice())
        .map(accepted)
        .unwrap_or_default())
}

fn accepted(answer: ExportProfilesServiceResponse) -> Accepted {
    // Collectors answer with a part that is there and empty: a full success.
    let part = answer.partial_success.unwrap_or_default();
    Accepted {
        rejected: part.rejected_profiles.try_into().unwrap_or(0),
        message: crate::export::text::plain(&part.error_message, 500),
    }
}

/// Reads the message of an answer.
#[derive(Debug, Clone, Copy)]
struct Answer;

impl Decoder for Answer {
    type Item = ExportProfilesServiceResponse;
    type Error = Status;

    fn decode(&mut self, answer: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        let answer: Bytes = answer.copy_to_bytes(answer.remaining());
        ExportProfilesServiceResponse::decode(answer)
            .map(Some)
            .map_err(|error| Status::internal(format!("cannot read the answer: {error}")))
    }
}

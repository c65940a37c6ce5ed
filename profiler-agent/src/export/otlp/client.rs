//! Sends encoded requests: one at a time, once. What to do about a failure is for the caller to decide; the error
//! says whether sending again may help.
//!
//! Requests stay bytes on their way: they are not decoded to be encoded again, so what was written to a disk
//! yesterday is sent as it is.

use std::{
    io::{self, Write},
    time::Duration,
};

use flate2::{Compression, write::GzEncoder};
use opentelemetry_proto::tonic::collector::profiles::v1development::ExportProfilesServiceResponse;
use prost::{
    Message,
    bytes::{Buf, BufMut, Bytes},
};
use tonic::{
    Status,
    client::Grpc,
    codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    metadata::MetadataValue,
    transport::Channel,
};

pub use super::answer::{Accepted, ExportError};
use super::{
    answer::{chain, of_grpc, of_http},
    endpoint::{Endpoint, Protocol},
};

/// Says which layout the bytes have. Receivers refuse a request that says it twice.
const VERSION_HEADER: &str = "otlp-profiles-development-version";
const VERSION: &str = "1";

const USER_AGENT: &str = concat!(
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Longest time for one request, the connection included.
    pub timeout: Duration,
    /// Whether requests are compressed with gzip, which every receiver takes.
    pub gzip: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(10),
            gzip: true,
        }
    }
}

/// A connection to a receiver, made at the first request, kept and made anew when it breaks.
#[derive(Debug)]
pub struct Client {
    endpoint: Endpoint,
    options: Options,
    transport: Transport,
}

#[derive(Debug)]
enum Transport {
    Grpc(Grpc<Channel>),
    Http(reqwest::Client),
}

/// The client could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot prepare the connection to {endpoint}: {reason}")]
pub struct ClientError {
    endpoint: String,
    reason: String,
}

impl Client {
    /// Prepares a client; connects to nothing yet, so it starts without a receiver. Call it in a tokio runtime.
    ///
    /// # Errors
    /// [`ClientError`] if the endpoint cannot be used by the transport.
    pub fn new(endpoint: Endpoint, options: Options) -> Result<Self, ClientError> {
        let failed = |error: &dyn std::error::Error| ClientError {
            endpoint: endpoint.to_string(),
            reason: chain(error),
        };
        let transport = match endpoint.protocol() {
            Protocol::Grpc => {
                let channel = tonic::transport::Endpoint::from_shared(String::from(endpoint.url()))
                    .and_then(|endpoint| endpoint.user_agent(USER_AGENT))
                    .map_err(|error| failed(&error))?
                    .connect_timeout(options.timeout)
                    .connect_lazy();
                let grpc = Grpc::new(channel)
                    .accept_compressed(CompressionEncoding::Gzip)
                    .max_encoding_message_size(REQUEST_LIMIT)
                    .max_decoding_message_size(ANSWER_LIMIT);
                Transport::Grpc(if options.gzip {
                    grpc.send_compressed(CompressionEncoding::Gzip)
                } else {
                    grpc
                })
            }
            Protocol::Http => Transport::Http(
                reqwest::Client::builder()
                    .user_agent(USER_AGENT)
                    .connect_timeout(options.timeout)
                    // Where profiles go is decided here, not by whoever answers.
                    .redirect(reqwest::redirect::Policy::none())
                    .build()
                    .map_err(|error| failed(&error))?,
            ),
        };
        Ok(Self {
            endpoint,
            options,
            transport,
        })
    }

    /// Where it sends to.
    pub const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Sends one [`Request`](super::encode::Request)'s bytes, once.
    ///
    /// # Errors
    /// [`ExportError`], sorted by what to do about it.
    pub async fn export(&mut self, request: Bytes) -> Result<Accepted, ExportError> {
        if request.len() > REQUEST_LIMIT {
            return Err(ExportError::TooLarge(request.len()));
        }
        let endpoint = self.endpoint.to_string();
        let Options { timeout, gzip } = self.options;
        let sent = async {
            match &mut self.transport {
                Transport::Grpc(grpc) => export_grpc(grpc, endpoint.clone(), request).await,
                Transport::Http(http) => {
                    export_http(http, endpoint.clone(), self.endpoint.url(), request, gzip).await
                }
            }
        };
        match tokio::time::timeout(timeout, sent).await {
            Ok(result) => result,
            Err(_) => Err(ExportError::Timeout { endpoint, timeout }),
        }
    }
}

async fn export_grpc(
    grpc: &mut Grpc<Channel>,
    endpoint: String,
    request: Bytes,
) -> Result<Accepted, ExportError> {
    if let Err(error) = grpc.ready().await {
        let reason = chain(&error);
        return Err(ExportError::Unreachable { endpoint, reason });
    }
    let mut request = tonic::Request::new(request);
    request
        .metadata_mut()
        .insert(VERSION_HEADER, MetadataValue::from_static(VERSION));
    let answer = grpc
        .unary(request, PathAndQuery::from_static(GRPC_PATH), Bare)
        .await;
    match answer {
        Ok(answer) => Ok(accepted(answer.into_inner())),
        Err(status) => Err(of_grpc(endpoint, &status)),
    }
}

async fn export_http(
    http: &reqwest::Client,
    endpoint: String,
    url: reqwest::Url,
    body: Bytes,
    gzip: bool,
) -> Result<Accepted, ExportError> {
    let mut request = http
        .post(url)
        .header("content-type", "application/x-protobuf")
        .header(VERSION_HEADER, VERSION);
    request = match gzip.then(|| compress(&body)) {
        Some(Ok(compressed)) => request.header("content-encoding", "gzip").body(compressed),
        // Compression in memory does not fail; if it did, the profile would still go out.
        Some(Err(_)) | None => request.body(body),
    };
    let unreachable = |error: reqwest::Error| {
        // The URL is in the message already.
        let reason = chain(&error.without_url());
        ExportError::Unreachable {
            endpoint: endpoint.clone(),
            reason,
        }
    };
    let mut answer = request.send().await.map_err(unreachable)?;
    let status = answer.status();
    let retry_after = answer
        .headers()
        .get("retry-after")
        .and_then(|value| value.to_str().ok());
    let retry_after = retry_after.map(str::to_owned);
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(unreachable)? {
        body.extend_from_slice(&chunk);
        if body.len() > ANSWER_LIMIT {
            let reason = format!("its answer is larger than {ANSWER_LIMIT} bytes");
            return Err(ExportError::Refused { endpoint, reason });
        }
    }
    if !status.is_success() {
        return Err(of_http(endpoint, status.as_u16(), retry_after.as_deref(), &body));
    }
    // A success is one, whatever its body is.
    Ok(ExportProfilesServiceResponse::decode(body.as_slice())
        .map(accepted)
        .unwrap_or_default())
}

fn compress(body: &[u8]) -> io::Result<Vec<u8>> {
    let mut gzip = GzEncoder::new(Vec::with_capacity(body.len() / 4), Compression::fast());
    gzip.write_all(body)?;
    gzip.finish()
}

fn accepted(answer: ExportProfilesServiceResponse) -> Accepted {
    // Collectors answer with a part that is there and empty: a full success.
    let part = answer.partial_success.unwrap_or_default();
    Accepted {
        rejected: part.rejected_profiles.try_into().unwrap_or(0),
        message: crate::export::text::plain(&part.error_message, 500),
    }
}

/// A codec for requests that are bytes already.
#[derive(Debug, Clone, Copy)]
struct Bare;

impl Codec for Bare {
    type Encode = Bytes;
    type Decode = ExportProfilesServiceResponse;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Bare {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, request: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.reserve(request.len());
        out.put(request);
        Ok(())
    }
}

impl Decoder for Bare {
    type Item = ExportProfilesServiceResponse;
    type Error = Status;

    fn decode(&mut self, answer: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        let answer = answer.copy_to_bytes(answer.remaining());
        ExportProfilesServiceResponse::decode(answer)
            .map(Some)
            .map_err(|error| Status::internal(format!("cannot read the answer: {error}")))
    }
}

//! The client against receivers that answer as told.

use std::{io::Read, net::SocketAddr, time::Duration};

use flate2::read::GzDecoder;
use opentelemetry_proto::tonic::collector::profiles::v1development::{
    ExportProfilesPartialSuccess, ExportProfilesServiceResponse,
};
use profiler_agent::export::otlp::{
    client::{Accepted, Client, ExportError, Options},
    encode::{self, Request, encode},
    endpoint::{Endpoint, Protocol},
    parcel::{Compression, Parcel},
};
use prost::Message;
use tonic::{Code, Status};

use crate::support::{
    conformance::assert_conforms,
    profiles,
    receivers::{GrpcReceiver, HttpReceiver, grpc_without_profiles},
};

fn request() -> Request {
    encode(&profiles::server(), &encode::Options::default()).remove(0)
}

fn parcel(compression: Compression) -> Parcel {
    Parcel::pack(&request(), compression)
}

async fn send(protocol: Protocol, address: SocketAddr, options: Options) -> Result<Accepted, ExportError> {
    let endpoint = Endpoint::parse(&format!("http://{address}"), Some(protocol)).unwrap();
    let client = Client::new(endpoint, &options).unwrap();
    client.export(parcel(Compression::Gzip)).await
}

fn partial(rejected_profiles: i64, error_message: &str) -> ExportProfilesServiceResponse {
    ExportProfilesServiceResponse {
        partial_success: Some(ExportProfilesPartialSuccess {
            rejected_profiles,
            error_message: error_message.to_owned(),
        }),
    }
}

#[tokio::test]
async fn grpc_delivers() {
    for compression in Compression::ALL {
        let (address, receiver) = GrpcReceiver::start(Duration::ZERO, || Ok(partial(0, "")));
        let options = Options {
            headers: vec!["authorization=Bearer a=b".parse().unwrap()],
            ..Options::default()
        };
        let endpoint = Endpoint::parse(&format!("http://{address}"), None).unwrap();
        let client = Client::new(endpoint, &options).unwrap();
        for _ in 0..2 {
            assert_eq!(client.export(parcel(compression)).await, Ok(Accepted::default()));
        }
        let requests = receiver.requests.lock().unwrap();
        assert_eq!(requests.len(), 2);
        for (metadata, message) in &*requests {
            let bytes = message.encode_to_vec();
            assert_conforms(&bytes, &[]);
            assert_eq!(bytes.len(), request().bytes.len());
            let versions: Vec<_> = metadata
                .get_all("otlp-profiles-development-version")
                .iter()
                .collect();
            assert_eq!(versions, ["1"]);
            assert!(
                metadata
                    .get("user-agent")
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .starts_with("OTel-OTLP-Exporter-Rust/")
            );
            let encoding = metadata.get("grpc-encoding").map(|value| value.to_str().unwrap());
            assert_eq!(encoding.unwrap_or("none"), compression.name());
            assert_eq!(metadata.get("authorization").unwrap(), "Bearer a=b");
        }
    }
}

#[tokio::test]
async fn http_delivers() {
    for compression in Compression::ALL {
        let receiver = HttpReceiver::start("200 OK", partial(0, "").encode_to_vec());
        let options = Options {
            headers: vec!["x-token=secret".parse().unwrap()],
            ..Options::default()
        };
        let endpoint =
            Endpoint::parse(&format!("http://{}", receiver.address), Some(Protocol::Http)).unwrap();
        let client = Client::new(endpoint, &options).unwrap();
        assert_eq!(client.export(parcel(compression)).await, Ok(Accepted::default()));
        let requests = receiver.requests.lock().unwrap();
        let got = &requests[0];
        assert_eq!(got.line, "POST /v1development/profiles HTTP/1.1");
        let header = |name: &str| -> Vec<&str> {
            let all = got.headers.iter().filter(|(other, _)| other == name);
            all.map(|(_, value)| value.as_str()).collect()
        };
        assert_eq!(header("otlp-profiles-development-version"), ["1"]);
        assert_eq!(header("content-type"), ["application/x-protobuf"]);
        assert!(header("user-agent")[0].starts_with("OTel-OTLP-Exporter-Rust/"));
        assert_eq!(header("x-token"), ["secret"]);
        let encoding = header("content-encoding").first().copied().unwrap_or("none");
        assert_eq!(encoding, compression.name());
        let mut body = Vec::new();
        match compression {
            Compression::None => body.clone_from(&got.body),
            Compression::Gzip => {
                GzDecoder::new(got.body.as_slice())
                    .read_to_end(&mut body)
                    .unwrap();
            }
            Compression::Zstd => body = zstd::decode_all(got.body.as_slice()).unwrap(),
        }
        assert_conforms(&body, &[]);
        assert!(body == request().bytes);
    }
}

#[tokio::test]
async fn partial_success_is_told() {
    let told = Accepted {
        rejected: 3,
        message: "too old?".to_owned(),
    };
    let (address, _) = GrpcReceiver::start(Duration::ZERO, || Ok(partial(3, "too old\u{7}")));
    assert_eq!(
        send(Protocol::Grpc, address, Options::default()).await.as_ref(),
        Ok(&told)
    );
    let receiver = HttpReceiver::start("200 OK", partial(3, "too old\u{7}").encode_to_vec());
    assert_eq!(
        send(Protocol::Http, receiver.address, Options::default()).await,
        Ok(told)
    );
}

#[tokio::test]
async fn grpc_codes_are_sorted() {
    let retryable = [
        Code::Cancelled,
        Code::DeadlineExceeded,
        Code::Aborted,
        Code::OutOfRange,
        Code::Unavailable,
        Code::DataLoss,
    ];
    for number in 1..=16 {
        let code = Code::from(number);
        let (address, _) = GrpcReceiver::start(Duration::ZERO, move || Err(Status::new(code, "no luck")));
        let error = send(Protocol::Grpc, address, Options::default())
            .await
            .unwrap_err();
        assert_eq!(
            error.is_retryable(),
            retryable.contains(&code),
            "{code:?}: {error:?}"
        );
        assert!(error.to_string().contains("no luck"), "{error}");
        assert_eq!(
            matches!(error, ExportError::NoProfiles { .. }),
            code == Code::Unimplemented
        );
        assert_eq!(
            matches!(error, ExportError::Forbidden { .. }),
            [Code::Unauthenticated, Code::PermissionDenied].contains(&code)
        );
        assert!(!matches!(error, ExportError::Unreachable { .. }), "{error:?}");
    }
}

/// `google.rpc.Status { code: 8, details: [Any { RetryInfo { retry_delay: 3.5 s } }] }`.
const RETRY_INFO: &[u8] = b"\x08\x08\x1a\x36\x0a\x28type.googleapis.com/google.rpc.RetryInfo\
    \x12\x0a\x0a\x08\x08\x03\x10\x80\xca\xb5\xee\x01";

#[tokio::test]
async fn exhausted_is_retryable_with_a_delay() {
    let (address, _) = GrpcReceiver::start(Duration::ZERO, || {
        Err(Status::with_details(
            Code::ResourceExhausted,
            "later",
            RETRY_INFO.into(),
        ))
    });
    let error = send(Protocol::Grpc, address, Options::default())
        .await
        .unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    assert_eq!(error.retry_after(), Some(Duration::from_millis(3500)));
}

#[tokio::test]
async fn http_codes_are_sorted() {
    for (head, retryable, after) in [
        ("400 Bad Request", false, None),
        ("401 Unauthorized", false, None),
        ("404 Not Found", false, None),
        ("413 Payload Too Large", false, None),
        ("429 Too Many Requests\r\nRetry-After: 7", true, Some(7)),
        ("500 Internal Server Error", false, None),
        ("502 Bad Gateway", true, None),
        ("503 Service Unavailable\r\nRetry-After: 1", true, Some(1)),
        ("504 Gateway Timeout", true, None),
        ("302 Found\r\nLocation: http://127.0.0.1:1/", false, None),
    ] {
        let receiver = HttpReceiver::start(head, b"no luck".to_vec());
        let error = send(Protocol::Http, receiver.address, Options::default())
            .await
            .unwrap_err();
        assert_eq!(error.is_retryable(), retryable, "{head}: {error:?}");
        assert_eq!(error.retry_after(), after.map(Duration::from_secs));
        assert!(error.to_string().contains(head.get(..3).unwrap()), "{error}");
        assert!(error.to_string().contains("no luck"), "{error}");
        assert_eq!(
            matches!(error, ExportError::NoProfiles { .. }),
            head.starts_with("404")
        );
    }
}

#[tokio::test]
async fn a_collector_without_profiles_is_told_how_to_take_them() {
    let grpc = send(Protocol::Grpc, grpc_without_profiles(), Options::default())
        .await
        .unwrap_err();
    let receiver = HttpReceiver::start("404 Not Found", Vec::new());
    let http = send(Protocol::Http, receiver.address, Options::default())
        .await
        .unwrap_err();
    for error in [grpc, http] {
        assert!(matches!(error, ExportError::NoProfiles { .. }), "{error:?}");
        let text = error.to_string();
        assert!(
            text.contains("--feature-gates=+service.profilesSupport"),
            "{text}"
        );
        assert!(text.contains("pipelines.profiles"), "{text}");
    }
}

#[tokio::test]
async fn nobody_there() {
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let error = send(protocol, port, Options::default()).await.unwrap_err();
        assert!(matches!(error, ExportError::Unreachable { .. }), "{error:?}");
        assert!(error.is_retryable());
        assert!(error.to_string().contains("refused"), "{error}");
        assert!(error.to_string().contains(&port.to_string()), "{error}");
    }
}

#[tokio::test]
async fn no_answer_in_time() {
    let options = Options {
        timeout: Duration::from_millis(200),
        ..Options::default()
    };
    let (address, _) = GrpcReceiver::start(Duration::from_secs(60), || Ok(partial(0, "")));
    let grpc = send(Protocol::Grpc, address, options.clone()).await.unwrap_err();
    let receiver = HttpReceiver::start("", Vec::new());
    let http = send(Protocol::Http, receiver.address, options).await.unwrap_err();
    for error in [grpc, http] {
        assert!(matches!(error, ExportError::Timeout { .. }), "{error:?}");
        assert!(error.is_retryable());
        assert!(error.to_string().contains("within 200ms"), "{error}");
    }
}

#[tokio::test]
async fn the_wrong_protocol() {
    let (address, _) = GrpcReceiver::start(Duration::ZERO, || Ok(partial(0, "")));
    let error = send(Protocol::Http, address, Options::default())
        .await
        .unwrap_err();
    assert!(matches!(error, ExportError::Unreachable { .. }), "{error:?}");
    let receiver = HttpReceiver::start("200 OK", Vec::new());
    let options = Options {
        timeout: Duration::from_secs(2),
        ..Options::default()
    };
    let error = send(Protocol::Grpc, receiver.address, options).await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
}

#[tokio::test]
async fn larger_than_any_receiver_takes() {
    let endpoint = Endpoint::parse("http://127.0.0.1:1", None).unwrap();
    let client = Client::new(endpoint, &Options::default()).unwrap();
    let large = Request {
        bytes: vec![0; (64 << 20) + 1].into(),
        events: 1,
        profiles: 1,
    };
    // However small it is when it is packed.
    let parcel = Parcel::pack(&large, Compression::Gzip);
    let error = client.export(parcel).await.unwrap_err();
    assert_eq!(error, ExportError::TooLarge((64 << 20) + 1));
}

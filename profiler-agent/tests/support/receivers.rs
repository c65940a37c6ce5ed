//! Receivers of our own, which answer as told and keep what they got.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use opentelemetry_proto::tonic::collector::profiles::v1development::{
    ExportProfilesServiceRequest, ExportProfilesServiceResponse,
    profiles_service_server::{ProfilesService, ProfilesServiceServer},
};
use tonic::{Request, Response, Status, codec::CompressionEncoding, transport::server::TcpIncoming};

type Answer = dyn Fn() -> Result<ExportProfilesServiceResponse, Status> + Send + Sync;

/// A gRPC receiver: opentelemetry-proto's own server.
#[derive(Clone)]
pub struct GrpcReceiver {
    /// What came, with its metadata.
    pub requests: Arc<Mutex<Vec<(tonic::metadata::MetadataMap, ExportProfilesServiceRequest)>>>,
    answer: Arc<Answer>,
    delay: Duration,
}

#[tonic::async_trait]
impl ProfilesService for GrpcReceiver {
    async fn export(
        &self,
        request: Request<ExportProfilesServiceRequest>,
    ) -> Result<Response<ExportProfilesServiceResponse>, Status> {
        tokio::time::sleep(self.delay).await;
        let (metadata, _, message) = request.into_parts();
        self.requests.lock().unwrap().push((metadata, message));
        (self.answer)().map(Response::new)
    }
}

impl GrpcReceiver {
    /// Starts one on a port of its own; it lives as long as the runtime.
    pub fn start(
        delay: Duration,
        answer: impl Fn() -> Result<ExportProfilesServiceResponse, Status> + Send + Sync + 'static,
    ) -> (SocketAddr, Self) {
        let receiver = Self {
            requests: Arc::default(),
            answer: Arc::new(answer),
            delay,
        };
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = incoming.local_addr().unwrap();
        let service = ProfilesServiceServer::new(receiver.clone())
            .accept_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Zstd)
            .send_compressed(CompressionEncoding::Gzip);
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming),
        );
        (address, receiver)
    }
}

/// A gRPC server without the profiles service, as a Collector without its pipeline.
pub fn grpc_without_profiles() -> SocketAddr {
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = incoming.local_addr().unwrap();
    let routes = tonic::service::Routes::default();
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_routes(routes)
            .serve_with_incoming(incoming),
    );
    address
}

/// One request over HTTP: its first line, its headers in lower case, its body.
pub struct HttpRequest {
    pub line: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

/// An HTTP receiver that gives every request the same answer.
pub struct HttpReceiver {
    pub address: SocketAddr,
    pub requests: Arc<Mutex<Vec<HttpRequest>>>,
}

impl HttpReceiver {
    /// Starts one; `head` is the status line with further headers, e.g. `200 OK\r\nX: y`. An empty one never answers.
    pub fn start(head: &'static str, body: Vec<u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests: Arc<Mutex<Vec<HttpRequest>>> = Arc::default();
        let kept = Arc::clone(&requests);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut reader = BufReader::new(stream.unwrap());
                while let Some(request) = read(&mut reader) {
                    kept.lock().unwrap().push(request);
                    if head.is_empty() {
                        thread::sleep(Duration::from_secs(60));
                    }
                    let stream = reader.get_mut();
                    let length = body.len();
                    write!(stream, "HTTP/1.1 {head}\r\ncontent-length: {length}\r\n\r\n").unwrap();
                    stream.write_all(&body).unwrap();
                }
            }
        });
        Self { address, requests }
    }
}

fn read(reader: &mut BufReader<TcpStream>) -> Option<HttpRequest> {
    let mut line = String::new();
    if reader.read_line(&mut line).ok()? == 0 {
        return None;
    }
    let mut headers = Vec::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let Some((name, value)) = header.trim().split_once(':') else {
            break;
        };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let mut body = vec![0; length.map_or(0, |(_, value)| value.parse().unwrap())];
    reader.read_exact(&mut body).ok()?;
    let line = line.trim().to_owned();
    Some(HttpRequest { line, headers, body })
}

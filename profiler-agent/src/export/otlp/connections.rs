//! Connections to a receiver: how they are made, for profiles and metrics alike, and how many were.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use hyper_util::client::legacy::connect::HttpConnector;
use tonic::{codegen::Service, transport::Channel};
use tower_layer::Layer;

use super::{
    answer::chain,
    client::{ClientError, Options, USER_AGENT},
    endpoint::Endpoint,
    tls::{self, Tls},
};

/// How often an idle connection is tried.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// How many connections were opened. A copy counts for the same.
#[derive(Debug, Clone, Default)]
pub struct Connections(Arc<AtomicU64>);

impl Connections {
    /// So many.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A channel of gRPC that connects when it is used first, and again when it has broken, whose requests end after `timeout`. To be called in a tokio runtime, which carries it.
pub(super) fn grpc(
    endpoint: &Endpoint,
    options: &Options,
    connections: &Connections,
    timeout: Option<Duration>,
) -> Result<Channel, ClientError> {
    tls::choose_cryptography();
    let failed = |error: &dyn std::error::Error| ClientError::Transport {
        endpoint: endpoint.to_string(),
        reason: chain(error),
    };
    let mut channel = tonic::transport::Endpoint::from_shared(String::from(endpoint.url()))
        .and_then(|endpoint| endpoint.user_agent(USER_AGENT))
        .map_err(|error| failed(&error))?
        .connect_timeout(options.timeout)
        // A receiver that is gone without a word is noticed between two requests.
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(options.timeout);
    if let Some(timeout) = timeout {
        channel = channel.timeout(timeout);
    }
    if endpoint.is_secure() {
        let tls = Tls::load(&options.tls)?;
        channel = channel
            .tls_config(tls.for_grpc())
            .map_err(|error| failed(&error))?;
    }
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    Ok(channel.connect_with_connector_lazy(connections.layer(connector)))
}

/// The same for HTTP.
pub(super) fn http(
    endpoint: &Endpoint,
    options: &Options,
    connections: &Connections,
) -> Result<reqwest::Client, ClientError> {
    tls::choose_cryptography();
    let config = if endpoint.is_secure() {
        Tls::load(&options.tls)?.for_http()?
    } else {
        tls::trusting_nobody()
    };
    let client = reqwest::Client::builder()
        .user_agent(USER_AGENT)
        .connect_timeout(options.timeout)
        // Where profiles go is decided here, not by whoever answers.
        .redirect(reqwest::redirect::Policy::none())
        .pool_max_idle_per_host(1)
        .connector_layer(connections.clone())
        .tls_backend_preconfigured(config);
    client.build().map_err(|error| ClientError::Transport {
        endpoint: endpoint.to_string(),
        reason: chain(&error),
    })
}

impl<S> Layer<S> for Connections {
    type Service = Counted<S>;

    fn layer(&self, connector: S) -> Counted<S> {
        Counted {
            connector,
            connections: self.clone(),
        }
    }
}

/// A connector whose successes are counted.
#[derive(Debug, Clone)]
pub struct Counted<S> {
    connector: S,
    connections: Connections,
}

impl<S, R> Service<R> for Counted<S>
where
    S: Service<R>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.connector.poll_ready(context)
    }

    fn call(&mut self, target: R) -> Self::Future {
        let connection = self.connector.call(target);
        let Connections(count) = self.connections.clone();
        Box::pin(async move {
            let connection = connection.await;
            if connection.is_ok() {
                count.fetch_add(1, Ordering::Relaxed);
            }
            connection
        })
    }
}

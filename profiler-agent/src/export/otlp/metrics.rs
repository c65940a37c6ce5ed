//! The agent's own metrics on their way to a receiver, by the exporter of OpenTelemetry: every metric of the
//! [table](crate::telemetry::METRICS), read when it is exported.
//!
//! The SDK's reader has a thread of its own, which sleeps between exports. The connection is carried by the runtime that [`Metrics::start`] is
//! called in. What nobody takes is not kept: sums go on, and the next export has them.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use opentelemetry::{
    KeyValue,
    metrics::{AsyncInstrument, Meter, MeterProvider as _},
};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{
    MetricExporter, Protocol as OtlpProtocol, WithExportConfig as _, WithHttpConfig as _,
    WithTonicConfig as _,
};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    metrics::{
        PeriodicReader, SdkMeterProvider, Temporality, data::ResourceMetrics, exporter::PushMetricExporter,
    },
};
use tokio::runtime::Handle;
use tonic::metadata::MetadataMap;

use super::{
    answer::chain,
    client::{ClientError, Options as ClientOptions},
    connections::{self, Connections},
    delivery::Listener,
    encode::SCHEMA_URL,
    endpoint::{Endpoint, METRICS_PATH, Protocol},
    headers::Header,
    parcel::Compression,
};
use crate::telemetry::{Figures, Histogram, Kind, METRICS, Metric, Points, Telemetry};

/// Most bytes of an answer.
const ANSWER_LIMIT: usize = 4 << 20;

/// The usual time between two exports, as the specification has it.
pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(60);

/// Where metrics go, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The receiver.
    pub endpoint: Endpoint,
    /// How requests are sent.
    pub client: ClientOptions,
    /// How they are compressed.
    pub compression: Compression,
    /// How often.
    pub interval: Duration,
    /// Attributes of the agent.
    pub resource: Vec<(String, String)>,
}

/// Why no metrics can be sent.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// There is no connection to this endpoint.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The exporter does not take a setting.
    #[error("cannot prepare the export of metrics: {0}")]
    Exporter(String),
}

/// Metrics that are exported until this is [stopped](Self::stop). Of a run that failed, which drops it, there is no last export: the runtime may be
/// gone, and that would be told of the receiver.
#[derive(Debug)]
pub struct Metrics {
    provider: SdkMeterProvider,
    is_over: Arc<AtomicBool>,
}

impl Metrics {
    /// Begins to export, with or without a receiver there. Call it in a tokio runtime that goes on.
    ///
    /// # Errors
    /// [`MetricsError`] for what can be known to be wrong.
    pub fn start(telemetry: &Arc<Telemetry>, options: &Options) -> Result<Self, MetricsError> {
        let is_over = Arc::new(AtomicBool::new(false));
        let exporter = Exporter {
            is_over: Arc::clone(&is_over),
            inner: exporter(options)?,
            endpoint: options.endpoint.to_string(),
            told: Mutex::default(),
        };
        let reader = PeriodicReader::builder(exporter)
            .with_interval(options.interval)
            .build();
        let attributes = options.resource.iter();
        let resource = Resource::builder()
            .with_schema_url(
                attributes.map(|(key, value)| KeyValue::new(key.clone(), value.clone())),
                SCHEMA_URL,
            )
            .build();
        let provider = SdkMeterProvider::builder()
            .with_resource(resource)
            .with_reader(reader)
            .build();
        let meter = provider.meter(env!("CARGO_PKG_NAME"));
        let mut look = Look {
            telemetry: Arc::clone(telemetry),
            last: Arc::default(),
            is_first: true,
        };
        for metric in METRICS {
            add(&meter, metric, &look);
            look.is_first = false;
        }
        Ok(Self { provider, is_over })
    }

    /// Exports once more and ends; blocks for `timeout` at most, while the runtime must go on.
    pub fn stop(self, timeout: Duration) {
        if let Err(error) = self.provider.shutdown_with_timeout(timeout) {
            tracing::debug!(%error, "the last metrics were not exported");
        }
    }
}

impl Drop for Metrics {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

/// A look at all stages, shared by all instruments, so that the points of one export are of one moment.
#[derive(Debug, Clone)]
struct Look {
    telemetry: Arc<Telemetry>,
    last: Arc<Mutex<Arc<Figures>>>,
    /// Whether it is that of the first instrument, which is read before all others.
    is_first: bool,
}

impl Look {
    fn figures(&self) -> Arc<Figures> {
        let mut last = lock(&self.last);
        if self.is_first {
            *last = Arc::new(self.telemetry.figures());
        }
        Arc::clone(&last)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes the instrument of a metric.
fn add(meter: &Meter, metric: &Metric, look: &Look) {
    let Metric {
        name,
        unit,
        kind,
        description,
        attributes: _,
        points,
    } = *metric;
    let look = look.clone();
    // The meter keeps the instruments.
    match (points, kind) {
        (Points::Histogram(_), _) => {
            let histogram = meter
                .f64_histogram(name)
                .with_unit(unit)
                .with_description(description)
                .with_boundaries(Histogram::LIMITS.to_vec())
                .build();
            if let Some(delivery) = look.telemetry.delivery() {
                delivery.listen(Listener(Box::new(move |seconds| histogram.record(seconds, &[]))));
            }
        }
        (Points::Numbers(read), Kind::UpDownCounter) => {
            let builder = meter.i64_observable_up_down_counter(name);
            let observe = move |observer: &dyn AsyncInstrument<i64>| {
                read(&look.figures(), &mut |attributes, value| {
                    observer.observe(i64::try_from(value).unwrap_or(i64::MAX), &key_values(attributes));
                });
            };
            let builder = builder.with_unit(unit).with_description(description);
            builder.with_callback(observe).build();
        }
        (Points::Numbers(read), Kind::Counter | Kind::Gauge | Kind::Histogram) => {
            let observe = move |observer: &dyn AsyncInstrument<u64>| {
                read(&look.figures(), &mut |attributes, value| {
                    observer.observe(value, &key_values(attributes));
                });
            };
            if kind == Kind::Counter {
                let builder = meter.u64_observable_counter(name);
                let builder = builder.with_unit(unit).with_description(description);
                builder.with_callback(observe).build();
            } else {
                let builder = meter.u64_observable_gauge(name);
                let builder = builder.with_unit(unit).with_description(description);
                builder.with_callback(observe).build();
            }
        }
        (Points::Seconds(read), _) => {
            let observe = move |observer: &dyn AsyncInstrument<f64>| {
                read(&look.figures(), &mut |attributes, value| {
                    observer.observe(value, &key_values(attributes));
                });
            };
            if kind == Kind::Counter {
                let builder = meter.f64_observable_counter(name);
                let builder = builder.with_unit(unit).with_description(description);
                builder.with_callback(observe).build();
            } else {
                let builder = meter.f64_observable_gauge(name);
                let builder = builder.with_unit(unit).with_description(description);
                builder.with_callback(observe).build();
            }
        }
    }
}

fn key_values(attributes: &[(&'static str, &'static str)]) -> Vec<KeyValue> {
    attributes
        .iter()
        .map(|(key, value)| KeyValue::new(*key, *value))
        .collect()
}

fn exporter(options: &Options) -> Result<MetricExporter, MetricsError> {
    let Options {
        endpoint,
        client,
        compression,
        interval: _,
        resource: _,
    } = options;
    // How many there are of those for metrics is nobody's question.
    let connections = Connections::default();
    let builder = MetricExporter::builder().with_temporality(Temporality::Cumulative);
    let exporter = match endpoint.protocol() {
        Protocol::Grpc => {
            let channel = connections::grpc(endpoint, client, &connections, Some(client.timeout))?;
            let headers = client.headers.iter().map(Header::parts).collect();
            let mut builder = builder
                .with_tonic()
                .with_channel(channel)
                .with_timeout(client.timeout)
                .with_metadata(MetadataMap::from_headers(headers));
            builder = match compression {
                Compression::None => builder,
                Compression::Gzip => builder.with_compression(opentelemetry_otlp::Compression::Gzip),
                Compression::Zstd => builder.with_compression(opentelemetry_otlp::Compression::Zstd),
            };
            builder.build()
        }
        Protocol::Http => {
            let http = Http {
                client: connections::http(endpoint, client, &connections)?,
                timeout: client.timeout,
                runtime: Handle::current(),
            };
            let headers: HashMap<String, String> = client
                .headers
                .iter()
                .map(Header::parts)
                .filter_map(|(name, value)| Some((name.to_string(), value.to_str().ok()?.to_owned())))
                .collect();
            let mut builder = builder
                .with_http()
                .with_http_client(http)
                .with_protocol(OtlpProtocol::HttpBinary)
                .with_endpoint(String::from(endpoint.url_of(METRICS_PATH)))
                .with_timeout(client.timeout)
                .with_headers(headers);
            // Its zstd would be a second copy of the library, for 2 kB a minute.
            builder = match compression {
                Compression::None => builder,
                Compression::Gzip | Compression::Zstd => {
                    builder.with_compression(opentelemetry_otlp::Compression::Gzip)
                }
            };
            builder.build()
        }
    };
    exporter.map_err(|error| MetricsError::Exporter(error.to_string()))
}

/// The exporter, which tells a failure once, until it changes.
struct Exporter {
    /// Whether nothing is exported any more.
    is_over: Arc<AtomicBool>,
    inner: MetricExporter,
    endpoint: String,
    told: Mutex<String>,
}

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exporter")
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

impl PushMetricExporter for Exporter {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        if self.is_over.load(Ordering::Relaxed) {
            return Ok(());
        }
        let result = self.inner.export(metrics).await;
        let mut told = lock(&self.told);
        match &result {
            Ok(()) if !told.is_empty() => {
                tracing::warn!("{} takes metrics again", self.endpoint);
                told.clear();
            }
            Ok(()) => {}
            Err(error) => {
                let text = error.to_string();
                if *told != text {
                    tracing::warn!(
                        "{} takes no metrics: {text}; --metrics-interval off sends none",
                        self.endpoint
                    );
                    *told = text;
                }
            }
        }
        result
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn temporality(&self) -> Temporality {
        self.inner.temporality()
    }
}

/// Sends what the exporter has made with the client that profiles are sent with, on a runtime that the reader's thread is not part of.
#[derive(Debug)]
struct Http {
    client: reqwest::Client,
    timeout: Duration,
    runtime: Handle,
}

#[async_trait::async_trait]
impl HttpClient for Http {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let request = reqwest::Request::try_from(request)?;
        let (client, timeout) = (self.client.clone(), self.timeout);
        let answer = async move {
            // The URL is in the message already.
            let failed = |error: reqwest::Error| HttpError::from(chain(&error.without_url()));
            let mut answer = client.execute(request).await.map_err(failed)?;
            let mut body = Vec::new();
            while let Some(chunk) = answer.chunk().await.map_err(failed)? {
                body.extend_from_slice(&chunk);
                if body.len() > ANSWER_LIMIT {
                    return Err(format!("its answer is larger than {ANSWER_LIMIT} bytes").into());
                }
            }
            let mut response = Response::builder().status(answer.status());
            if let Some(headers) = response.headers_mut() {
                *headers = std::mem::take(answer.headers_mut());
            }
            Ok(response.body(Bytes::from(body))?)
        };
        // Its timer too is of that runtime.
        let answer = async move { tokio::time::timeout(timeout, answer).await? };
        self.runtime.spawn(answer).await?
    }
}

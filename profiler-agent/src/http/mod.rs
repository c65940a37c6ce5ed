//! Answers about a running agent: flamegraphs and profiles of the time that its [history](crate::history) covers.
//!
//! ```text
//! capture ─▶ slices ─▶ [4 slices] ─▶ thread `history` ─▶ History ◀── thread `http`: question ─▶ answer
//! ```
//! Neither waits for the other: a slice that finds the queue full is not kept and counted, an answer is made by one of a few threads.
//!
//! # Who may ask
//!
//! Whoever can reach the socket: by default the users of this host. Another address takes a token, or the explicit wish to do without. A
//! page of a foreign site in a browser on this host cannot ask: its requests carry that site's name as `Host` (DNS rebinding), and no
//! answer allows it to read what it did not come from. Everything is read only.

mod answer;
mod question;

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderValue, Method, StatusCode, header},
    middleware::{self, Next},
    response::Response,
};
use sha2::{Digest as _, Sha256};
use tokio::sync::{Semaphore, watch};

pub use self::question::{By, PARAMETERS, Question, Wrong};
use self::{answer::Answer, question::nanos};
use crate::{
    export::{file::Format, text::Rfc3339},
    history::{History, Limits},
    profile::Profile,
    telemetry::{self, HistoryFigures, Telemetry},
};

/// Slices that wait to be taken in.
const QUEUE: usize = 4;
/// Answers that are made at one time, each of which may take a CPU and some hundred megabytes.
const AT_ONCE: usize = 2;
/// Requests that wait for their turn or for their time.
const MOST_WAITING: usize = 256;
/// How long a request waits for its turn.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long after its time a slice may come.
const LATE: Duration = Duration::from_secs(40);
/// Without a slice for so long something is wrong.
const SILENCE: Duration = Duration::from_secs(60);

/// The description of all of this for programs.
const OPENAPI: &str = include_str!("openapi.json");
/// Where people begin.
const INDEX: &str = include_str!("index.html");

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// TCP.
    Tcp(SocketAddr),
    /// A socket in the file system, for root alone.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            if !path.starts_with('/') {
                return Err("give the whole path of the socket: unix:/run/profiler-agent.sock".into());
            }
            return Ok(Self::Unix(path.into()));
        }
        text.parse()
            .map(Self::Tcp)
            .map_err(|_| "give an address and a port, like 127.0.0.1:7979, or unix:/PATH".into())
    }
}

impl Address {
    /// Whether only this host can reach it.
    pub const fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().is_loopback(),
            Self::Unix(_) => true,
        }
    }
}

/// How to serve.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where.
    pub address: Address,
    /// What a request has to show.
    pub token: Option<String>,
    /// How much is kept.
    pub limits: Limits,
}

/// Why it does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address.
    #[error("cannot listen on {address}; choose another one with --serve, or --serve off")]
    Listen {
        /// Which.
        address: Address,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A thread or a descriptor.
    #[error("cannot start to serve")]
    Start(#[source] io::Error),
}

/// What the threads share.
#[derive(Debug)]
struct Shared {
    history: RwLock<History>,
    telemetry: Arc<Telemetry>,
    skipped: AtomicU64,
    /// When the last slice came, by number.
    news: watch::Sender<Instant>,
    token: Option<[u8; 32]>,
    local: bool,
    turns: Semaphore,
    waiting: Semaphore,
}

impl Shared {
    fn history(&self) -> RwLockReadGuard<'_, History> {
        self.history.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the history counts.
    fn figures(&self) -> HistoryFigures {
        let history = self.history();
        HistoryFigures {
            samples: history.samples(),
            forgotten: history.forgotten(),
            skipped: self.skipped.load(Ordering::Relaxed),
            bytes: history.bytes() as u64,
            span: history.span().map_or(0, |span| span.end - span.start),
        }
    }
}

/// A running server; it ends when this is dropped.
#[derive(Debug)]
pub struct Server {
    address: Address,
    entrance: Entrance,
    /// Ends the thread that answers.
    _end: watch::Sender<()>,
}

/// Where slices go in.
#[derive(Debug, Clone)]
pub struct Entrance {
    queue: SyncSender<Profile>,
    shared: Arc<Shared>,
}

impl Entrance {
    /// Hands a slice to the history; one that finds no room in the queue is counted and not kept.
    pub fn hand_over(&self, slice: Profile) {
        if self.queue.try_send(slice).is_err() {
            self.shared.skipped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Server {
    /// Listens, and answers from then on.
    ///
    /// # Errors
    /// [`ServeError`]: the address is taken, or not of this host.
    pub fn start(options: Options, telemetry: &Arc<Telemetry>) -> Result<Self, ServeError> {
        let Options {
            address,
            token,
            limits,
        } = options;
        let listen = |source| ServeError::Listen {
            address: address.clone(),
            source,
        };
        let listener = Listener::bind(&address).map_err(listen)?;
        let address = listener.address(&address);
        let shared = Arc::new(Shared {
            history: RwLock::new(History::new(limits)),
            telemetry: Arc::clone(telemetry),
            skipped: AtomicU64::new(0),
            news: watch::channel(Instant::now()).0,
            token: token.map(|token| Sha256::digest(token).into()),
            local: address.is_local(),
            turns: Semaphore::new(AT_ONCE),
            waiting: Semaphore::new(MOST_WAITING),
        });
        // Weak, or the two would keep each other.
        let weak = Arc::downgrade(&shared);
        telemetry.watch_history(move || {
            weak.upgrade()
                .map_or_else(HistoryFigures::default, |shared| shared.figures())
        });
        let (queue, slices) = sync_channel(QUEUE);
        thread::Builder::new()
            .name("history".into())
            .spawn({
                let shared = Arc::clone(&shared);
                move || keep(&shared, &slices)
            })
            .map_err(ServeError::Start)?;
        let (end, ended) = watch::channel(());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(AT_ONCE)
            .thread_name("answer")
            .build()
            .map_err(ServeError::Start)?;
        thread::Builder::new()
            .name("http".into())
            .spawn({
                let shared = Arc::clone(&shared);
                move || {
                    if let Err(error) = runtime.block_on(serve(listener, shared, ended)) {
                        tracing::error!(%error, "no more answers over HTTP");
                    }
                    runtime.shutdown_background();
                }
            })
            .map_err(ServeError::Start)?;
        Ok(Self {
            address,
            entrance: Entrance { queue, shared },
            _end: end,
        })
    }

    /// Where it listens; with the port that the system chose, if it was asked for 0.
    pub const fn address(&self) -> &Address {
        &self.address
    }

    /// Where slices go in.
    pub fn entrance(&self) -> Entrance {
        self.entrance.clone()
    }
}

/// Bound before the capture begins, so that a taken port is told at once.
enum Listener {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

impl Listener {
    fn bind(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp(address) => {
                let listener = std::net::TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                Ok(Self::Tcp(listener))
            }
            Address::Unix(path) => {
                // Left behind by one that was killed: nobody listens there.
                if std::os::unix::net::UnixStream::connect(path)
                    .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
                {
                    std::fs::remove_file(path)?;
                }
                let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
                let listener = std::os::unix::net::UnixListener::bind(path);
                rustix::process::umask(before);
                let listener = listener?;
                listener.set_nonblocking(true)?;
                Ok(Self::Unix(listener))
            }
        }
    }

    fn address(&self, asked: &Address) -> Address {
        match self {
            Self::Tcp(listener) => listener.local_addr().map_or_else(|_| asked.clone(), Address::Tcp),
            Self::Unix(_) => asked.clone(),
        }
    }
}

/// Takes slices in until nobody can send any.
fn keep(shared: &Shared, slices: &Receiver<Profile>) {
    while let Ok(slice) = slices.recv() {
        shared
            .history
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .push(&slice);
        shared.news.send_replace(Instant::now());
    }
}

async fn serve(listener: Listener, shared: Arc<Shared>, mut ended: watch::Receiver<()>) -> io::Result<()> {
    let router = Router::new()
        .fallback(respond)
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), guard))
        .with_state(shared);
    let end = async move {
        // Fails when the server is dropped, which is the sign.
        let _ = ended.changed().await;
    };
    match listener {
        Listener::Tcp(listener) => {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            tokio::select! { served = async { axum::serve(listener, router).await } => served, () = end => Ok(()) }
        }
        Listener::Unix(listener) => {
            let listener = tokio::net::UnixListener::from_std(listener)?;
            tokio::select! { served = async { axum::serve(listener, router).await } => served, () = end => Ok(()) }
        }
    }
}

/// Lets through who may ask, and says to browsers what pages may do with the answers: nothing but show them.
async fn guard(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let mut response = match refusal(&shared, &request) {
        Some((status, text)) => plain(status, text.into()),
        None => next.run(request).await,
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; \
             form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert(
        "cross-origin-resource-policy",
        HeaderValue::from_static("same-origin"),
    );
    response
}

/// Why a request is not answered.
fn refusal(shared: &Shared, request: &Request) -> Option<(StatusCode, &'static str)> {
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        return Some((StatusCode::METHOD_NOT_ALLOWED, "everything is read only: GET\n"));
    }
    let text = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    if shared.local && !text(header::HOST).is_none_or(is_this_host) {
        return Some((
            StatusCode::FORBIDDEN,
            "the name in Host is not of this host; ask localhost or its address\n",
        ));
    }
    let digest = shared.token.as_ref()?;
    let shown = text(header::AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer "));
    // Of digests nothing can be learned from how long the comparison took.
    if shown.is_some_and(|shown| Sha256::digest(shown).as_slice() == digest) {
        return None;
    }
    Some((
        StatusCode::UNAUTHORIZED,
        "show the token: -H 'Authorization: Bearer TOKEN'\n",
    ))
}

/// Whether a `Host` header is an address or this host's own name for itself, and not a name that a stranger's server gave it.
fn is_this_host(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !name.ends_with(':') && port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.is_empty() || address.parse::<IpAddr>().is_ok()
}

/// What is made of profiles.
#[derive(Clone, Copy)]
enum Drawn {
    Profile(Format),
    Difference,
}

/// What is at a path.
#[derive(Clone, Copy)]
enum Place {
    /// Made of the history; `None` is the list of processes.
    Past(Option<Drawn>),
    Metrics,
    Health,
    Ready,
    Description,
    Index,
}

/// Paths of all there is, as the answer to a wrong one lists them.
pub const PATHS: [&str; 14] = [
    "/",
    "/flamegraph.svg",
    "/flamegraph.html",
    "/profile.folded",
    "/profile.pb.gz",
    "/profile.otlp",
    "/profile.json",
    "/diff.svg",
    "/debug/pprof/profile",
    "/processes.json",
    "/metrics",
    "/healthz",
    "/readyz",
    "/openapi.json",
];

fn place(path: &str) -> Option<Place> {
    let profile = |format| Place::Past(Some(Drawn::Profile(format)));
    Some(match path {
        "/" => Place::Index,
        "/processes.json" => Place::Past(None),
        "/metrics" => Place::Metrics,
        "/healthz" => Place::Health,
        "/readyz" => Place::Ready,
        "/openapi.json" => Place::Description,
        "/flamegraph.svg" => profile(Format::Svg),
        "/flamegraph.html" => profile(Format::Html),
        "/profile.folded" => profile(Format::Folded),
        "/profile.pb.gz" | "/debug/pprof/profile" => profile(Format::Pprof),
        "/profile.otlp" => profile(Format::Otlp),
        "/profile.json" => profile(Format::Speedscope),
        "/diff.svg" => Place::Past(Some(Drawn::Difference)),
        _ => return None,
    })
}

async fn respond(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let uri = request.uri();
    let Some(place) = place(uri.path()) else {
        let known = PATHS.join(" ");
        return plain(StatusCode::NOT_FOUND, format!("there is {known}\n"));
    };
    let now = SystemTime::now();
    match place {
        Place::Index => text("text/html; charset=utf-8", INDEX),
        Place::Description => text("application/json", OPENAPI),
        Place::Health => match shared.news.borrow().elapsed() {
            silent if silent > SILENCE => plain(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("no slice for {} s\n", silent.as_secs()),
            ),
            _ => plain(StatusCode::OK, "sampling\n".into()),
        },
        Place::Ready => match shared.history().span() {
            Some(_) => plain(StatusCode::OK, "ready\n".into()),
            None => plain(StatusCode::SERVICE_UNAVAILABLE, "no slice yet\n".into()),
        },
        Place::Metrics => into_response(Answer::Text {
            content_type: "text/plain; version=0.0.4; charset=utf-8",
            body: telemetry::prometheus(&shared.telemetry.figures()),
        }),
        Place::Past(drawn) => {
            let mut question = match Question::parse(uri.query().unwrap_or_default(), now) {
                Ok(question) => question,
                Err(wrong) => return plain(StatusCode::BAD_REQUEST, format!("{wrong}\n")),
            };
            let Ok(_waiting) = shared.waiting.try_acquire() else {
                return plain(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "too many requests are waiting\n".into(),
                );
            };
            if let Some(seconds) = question.seconds {
                let end = now + seconds;
                question.query.range = Some(nanos(now)..nanos(end));
                wait_until(&shared, end, seconds + LATE).await;
            }
            let Ok(Ok(_turn)) = tokio::time::timeout(PATIENCE, shared.turns.acquire()).await else {
                return plain(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "busy with other answers; ask again\n".into(),
                );
            };
            let worker = tokio::task::spawn_blocking({
                let shared = Arc::clone(&shared);
                move || {
                    let history = shared.history();
                    match drawn {
                        Some(Drawn::Profile(format)) => answer::profile(&history, &question, format),
                        Some(Drawn::Difference) => answer::difference(&history, &question),
                        None => answer::processes(&history, &question),
                    }
                }
            });
            into_response(
                worker
                    .await
                    .unwrap_or_else(|error| Answer::Failed(error.to_string())),
            )
        }
    }
}

/// Waits until what is sampled up to `end` is in the history; no longer than `patience`.
async fn wait_until(shared: &Shared, end: SystemTime, patience: Duration) {
    let mut news = shared.news.subscribe();
    let covered = async { while !answer::covers(&shared.history(), end) && news.changed().await.is_ok() {} };
    // An answer that is cut short says so by its range.
    let _ = tokio::time::timeout(patience, covered).await;
}

fn into_response(answer: Answer) -> Response {
    match answer {
        Answer::Text { content_type, body } => {
            let mut response = Response::new(Body::from(body));
            set(&mut response, header::CONTENT_TYPE, content_type);
            response
        }
        Answer::Nothing(body) => plain(StatusCode::NOT_FOUND, body),
        Answer::Failed(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        Answer::Profile {
            content_type,
            body,
            about,
        } => {
            let mut response = Response::new(Body::from(body));
            set(&mut response, header::CONTENT_TYPE, content_type);
            for (name, value) in [
                ("profile-from", Rfc3339(about.start).to_string()),
                ("profile-until", Rfc3339(about.end).to_string()),
                ("profile-samples", about.samples.to_string()),
                ("profile-lost", about.lost.to_string()),
            ] {
                if let Ok(value) = HeaderValue::from_str(&value) {
                    response.headers_mut().insert(name, value);
                }
            }
            response
        }
    }
}

fn text(content_type: &'static str, body: &'static str) -> Response {
    let mut response = Response::new(Body::from(body));
    set(&mut response, header::CONTENT_TYPE, content_type);
    response
}

fn plain(status: StatusCode, body: String) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    set(&mut response, header::CONTENT_TYPE, "text/plain; charset=utf-8");
    response
}

fn set(response: &mut Response, name: header::HeaderName, value: &'static str) {
    response
        .headers_mut()
        .insert(name, HeaderValue::from_static(value));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_a_stranger_gave_this_host_is_not_its_own() {
        for host in [
            "localhost",
            "LOCALHOST:7979",
            "127.0.0.1:7979",
            "[::1]:7979",
            "::1",
            "10.1.2.3",
        ] {
            assert!(is_this_host(host), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:7979",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
        ] {
            assert!(!is_this_host(host), "{host}");
        }
    }

    #[test]
    fn addresses_are_read() {
        assert!("127.0.0.1:7979".parse::<Address>().unwrap().is_local());
        assert!("[::1]:0".parse::<Address>().unwrap().is_local());
        assert!("unix:/run/x".parse::<Address>().unwrap().is_local());
        assert!(!"0.0.0.0:7979".parse::<Address>().unwrap().is_local());
        for wrong in ["localhost", "7979", "unix:x", ""] {
            wrong.parse::<Address>().unwrap_err();
        }
    }

    #[test]
    fn every_path_leads_somewhere() {
        for path in PATHS {
            assert!(place(path).is_some(), "{path}");
        }
    }
}

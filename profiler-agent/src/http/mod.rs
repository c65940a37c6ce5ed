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
pub mod ask;
mod bounds;
mod cache;
mod listener;
mod question;

use std::{
    convert::Infallible,
    fmt, io,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
    pin::Pin,
    str::FromStr,
    sync::{
        Arc, LazyLock, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderValue, Method, StatusCode, Uri, header},
    middleware::{self, Next},
    response::Response,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use sha2::{Digest as _, Sha256};
use tokio::sync::{Semaphore, watch};

pub use self::question::{By, PARAMETERS, Question, Wrong};
use self::{
    answer::{Answer, Drawn},
    bounds::{Bounds, Busy, Room},
    cache::{Cache, Made},
    listener::{Bound, Listener},
    question::nanos,
};
use crate::{
    export::{file::Format, text::Rfc3339},
    history::{History, Limits, Past, folder::Folder},
    profile::Profile,
    render::html,
    spool::FolderError,
    telemetry::{self, HistoryFigures, Telemetry},
};

/// Slices that wait to be taken in.
const QUEUE: usize = 4;
/// Answers that are made at one time, each of which may take a CPU and some hundred megabytes.
const AT_ONCE: usize = 2;
/// How long a request waits for its turn.
const PATIENCE: Duration = Duration::from_secs(20);
/// When who was told that too much is under way may ask again, in seconds.
const AGAIN: HeaderValue = HeaderValue::from_static("10");
/// How long after its interval a slice may come: its names are waited for, and a host is busy.
const LATE: Duration = Duration::from_secs(50);
/// How long is waited for a slice in any case, and at most.
const SILENCE: RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_hours(24);
/// What the longest answer takes beside its slice: ten minutes of `seconds`, its turn, its making.
const LONGEST: Duration = Duration::from_secs(640);

/// The description of all of this for programs.
const OPENAPI: &str = include_str!("openapi.json");
/// The header that says what was lost by reason, which OTLP has no word for: `ring_full=3, torn_record=1`.
const LOST: &str = "profile-lost-by-reason";
const HTML: &str = "text/html; charset=utf-8";
/// The page, and what it may do.
static PAGE: LazyLock<(Bytes, HeaderValue)> = LazyLock::new(|| {
    let mut page = Vec::new();
    // Memory takes everything, and hashes are ASCII.
    let _ = html::write_served(&mut page);
    (page.into(), policy(&html::served_policy()))
});
/// What a page may do that holds its profile.
static EMBEDDED: LazyLock<HeaderValue> = LazyLock::new(|| policy(&html::embedded_policy()));
/// What a picture may do: its script and its handlers stand in it.
const DRAWN: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);
/// What everything else may do.
const NOTHING: HeaderValue = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");

fn policy(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(NOTHING)
}

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
        // As it is shown, and as it stands in a browser.
        let address = text.strip_prefix("http://").unwrap_or(text);
        let address = address.strip_suffix('/').unwrap_or(address);
        address
            .parse()
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
    /// Where it is kept too, to be there after a restart.
    pub folder: Option<PathBuf>,
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
    /// The history on the disk.
    #[error(transparent)]
    Folder(#[from] FolderError),
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
    /// Whether all there is of the runs before is in the history.
    is_past_read: AtomicBool,
    /// When the last slice came, by number.
    news: watch::Sender<Instant>,
    /// Without a slice for so long something is wrong.
    silence: Duration,
    token: Option<[u8; 32]>,
    local: bool,
    turns: Semaphore,
    waiting: Arc<Semaphore>,
    ahead: Semaphore,
    room: Room,
    cache: Cache,
}

impl Shared {
    fn history(&self) -> RwLockReadGuard<'_, History> {
        self.history.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The end of the newest slice, which is some seconds ago. Long ago it is another run's, and what is new is yet to come.
    fn newest(&self, now: SystemTime) -> SystemTime {
        let end = self.history().span().map_or(0, |span| span.end);
        let end = UNIX_EPOCH + Duration::from_nanos(end);
        match now.duration_since(end) {
            Ok(age) if age < self.silence => end,
            _ => now,
        }
    }

    /// Gives an answer room until nobody has it any more; what nobody asks for at the moment makes way.
    fn hold(&self, answer: Answer) -> Made {
        let take = || self.room.take(answer.len());
        let room = take().or_else(|| {
            self.cache.forget();
            take()
        });
        let room = room.ok_or(Busy::Bytes)?;
        Ok(Arc::new(answer.within(room)))
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

/// How long no slice may come where one comes every `interval`.
fn silence(interval: Duration) -> Duration {
    interval
        .saturating_add(LATE)
        .clamp(*SILENCE.start(), *SILENCE.end())
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
    /// Listens, and answers from then on, where a slice comes every `interval`.
    ///
    /// # Errors
    /// [`ServeError`]: the address is taken, or not of this host.
    pub fn start(
        options: Options,
        interval: Duration,
        telemetry: &Arc<Telemetry>,
    ) -> Result<Self, ServeError> {
        Self::within(Bounds::default(), options, interval, telemetry)
    }

    fn within(
        bounds: Bounds,
        options: Options,
        interval: Duration,
        telemetry: &Arc<Telemetry>,
    ) -> Result<Self, ServeError> {
        let Options {
            address,
            token,
            limits,
            folder,
        } = options;
        let listen = |source| ServeError::Listen {
            address: address.clone(),
            source,
        };
        let folder = folder
            .map(|path| Folder::open(path, limits, nanos(SystemTime::now())))
            .transpose()?;
        let listener = Bound::new(&address).map_err(listen)?;
        let address = listener.address(&address);
        let shared = Arc::new(Shared {
            history: RwLock::new(History::new(limits)),
            telemetry: Arc::clone(telemetry),
            skipped: AtomicU64::new(0),
            is_past_read: AtomicBool::new(folder.is_none()),
            news: watch::channel(Instant::now()).0,
            silence: silence(interval),
            token: token.map(|token| Sha256::digest(token).into()),
            local: address.is_local(),
            turns: Semaphore::new(AT_ONCE),
            waiting: Arc::new(Semaphore::new(bounds.waiting)),
            ahead: Semaphore::new(bounds.ahead),
            room: Room::new(bounds.bytes),
            cache: Cache::default(),
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
                move || keep(&shared, &slices, folder)
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
                    if let Err(error) = runtime.block_on(serve(listener, shared, bounds.taking, ended)) {
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

/// Takes slices in until nobody can send any; while none waits, reads those of the runs before, the youngest first.
fn keep(shared: &Shared, slices: &Receiver<Profile>, mut folder: Option<Folder>) {
    let history = || shared.history.write().unwrap_or_else(PoisonError::into_inner);
    let mut past = folder.is_some().then(|| Past::new(shared.history().limits()));
    let mut is_told = false;
    loop {
        let slice = match (&past, slices.try_recv()) {
            (_, Ok(slice)) => slice,
            (Some(_), Err(TryRecvError::Empty)) => {
                if let Some(folder) = &mut folder {
                    read_past(shared, folder, &mut past);
                }
                continue;
            }
            _ => match slices.recv() {
                Ok(slice) => slice,
                Err(_) => return,
            },
        };
        history().push(&slice);
        shared.news.send_replace(Instant::now());
        let prepare = shared.history().preparation();
        prepare();
        let kept = folder.as_mut().map_or(Ok(()), |folder| folder.keep(&slice));
        match kept {
            Ok(()) => is_told = false,
            Err(error) => {
                if !is_told {
                    tracing::warn!("the history is in memory alone: {error}");
                }
                is_told = true;
            }
        }
    }
}

/// Reads one slice of the past; there is no past to read any more when all of it is there, or the history is full.
fn read_past(shared: &Shared, folder: &mut Folder, past: &mut Option<Past>) {
    let history = || shared.history.write().unwrap_or_else(PoisonError::into_inner);
    let (block, is_last) = match folder.earlier() {
        Some(slice) => (past.as_mut().and_then(|past| past.push(&slice)), false),
        None => (past.take().and_then(Past::finish), true),
    };
    let mut is_full = false;
    if let Some(block) = block {
        is_full = !history().put_before(block);
        shared.news.send_replace(Instant::now());
    }
    if is_last || is_full {
        *past = None;
        shared.is_past_read.store(true, Ordering::Relaxed);
        let (unreadable, ahead) = (folder.unreadable(), folder.ahead());
        if unreadable > 0 {
            tracing::warn!(
                unreadable,
                "slices of the history on the disk are damaged; they are left out"
            );
        }
        if ahead > 0 {
            tracing::warn!(
                ahead,
                "slices of the history on the disk lie in the future, so the clock was set back since; they are left out"
            );
        }
    }
}

async fn serve(
    listener: Bound,
    shared: Arc<Shared>,
    taking: Duration,
    mut ended: watch::Receiver<()>,
) -> io::Result<()> {
    let limits = listener::Limits {
        silence: LONGEST + shared.silence,
        taking,
    };
    let router = Router::new()
        .fallback(respond)
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), guard))
        .with_state(shared);
    let accepting: Pin<Box<dyn Future<Output = Infallible> + Send>> = match listener {
        Bound::Tcp(listener) => {
            let listener = Listener::new(tokio::net::TcpListener::from_std(listener)?, limits);
            Box::pin(accept(listener, router))
        }
        Bound::Unix(listener) => {
            let listener = Listener::new(tokio::net::UnixListener::from_std(listener)?, limits);
            Box::pin(accept(listener, router))
        }
    };
    tokio::select! {
        never = accepting => match never {},
        // Fails when the server is dropped, which is the sign.
        _ = ended.changed() => Ok(()),
    }
}

/// Answers whoever connects, one request after the other.
async fn accept<L>(mut listener: L, router: Router) -> Infallible
where
    L: axum::serve::Listener,
{
    // A connection of HTTP/2 may leave a hundred answers unread and still be busy.
    let mut protocol = auto::Builder::new(TokioExecutor::new()).http1_only();
    // Else an answer is copied whole before it is sent, and the room that it takes is given back too early.
    protocol.http1().writev(true);
    loop {
        let (stream, _) = listener.accept().await;
        let stream = TokioIo::new(stream);
        let service = TowerToHyperService::new(router.clone());
        let connection = protocol.serve_connection(stream, service).into_owned();
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error, "a connection ended early");
            }
        });
    }
}

/// Lets through who may ask, and says to browsers what pages may do with the answers: nothing but show them.
async fn guard(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let mut response = match refusal(&shared, &request) {
        Some((status, text)) => plain(status, text.into()),
        None => next.run(request).await,
    };
    let is_unauthorized = response.status() == StatusCode::UNAUTHORIZED;
    let headers = response.headers_mut();
    if is_unauthorized {
        // A browser asks the person for it.
        let how = HeaderValue::from_static("Basic realm=\"profiler-agent\", charset=\"UTF-8\"");
        headers.insert(header::WWW_AUTHENTICATE, how);
    }
    headers.entry(header::CONTENT_SECURITY_POLICY).or_insert(NOTHING);
    for (name, value) in [
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
    // Of digests nothing can be learned from how long the comparison took.
    let shown = text(header::AUTHORIZATION).and_then(shown_token);
    if shown.is_some_and(|shown| Sha256::digest(shown).as_slice() == digest) {
        return None;
    }
    Some((
        StatusCode::UNAUTHORIZED,
        "show the token: -H 'Authorization: Bearer TOKEN'; in a browser it is the password, of any user\n",
    ))
}

/// The token of an `Authorization`: as programs show it, or as browsers show what a person typed.
fn shown_token(value: &str) -> Option<Vec<u8>> {
    if let Some(token) = value.strip_prefix("Bearer ") {
        return Some(token.as_bytes().to_vec());
    }
    let pair = STANDARD.decode(value.strip_prefix("Basic ")?).ok()?;
    let end = pair.iter().position(|&byte| byte == b':')?;
    pair.get(end + 1..).map(<[u8]>::to_vec)
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

/// What is at a path.
#[derive(Clone, Copy)]
enum Place {
    /// Made of the history.
    Past(Drawn),
    Metrics,
    Health,
    Ready,
    Description,
    Page,
}

/// Paths of all there is, as the answer to a wrong one lists them.
pub const PATHS: [&str; 16] = [
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
    "/timeline.json",
    "/page.json",
    "/metrics",
    "/healthz",
    "/readyz",
    "/openapi.json",
];

fn place(path: &str) -> Option<Place> {
    let profile = |format| Place::Past(Drawn::Profile(format));
    Some(match path {
        "/" => Place::Page,
        "/processes.json" => Place::Past(Drawn::Processes),
        "/timeline.json" => Place::Past(Drawn::Timeline),
        "/page.json" => Place::Past(Drawn::Columns),
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
        "/diff.svg" => Place::Past(Drawn::Difference),
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
        Place::Page => {
            let (page, policy) = &*PAGE;
            let mut response = Response::new(Body::from(page.clone()));
            set(&mut response, header::CONTENT_TYPE, HTML);
            response
                .headers_mut()
                .insert(header::CONTENT_SECURITY_POLICY, policy.clone());
            response
        }
        Place::Description => text("application/json", OPENAPI),
        Place::Health => match shared.news.borrow().elapsed() {
            silent if silent > shared.silence => plain(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("no slice for {} s\n", silent.as_secs()),
            ),
            _ => plain(StatusCode::OK, "sampling\n".into()),
        },
        Place::Ready => match shared.history().span() {
            Some(_) if !shared.is_past_read.load(Ordering::Relaxed) => plain(
                StatusCode::SERVICE_UNAVAILABLE,
                "the time before the start is still being read from the disk\n".into(),
            ),
            Some(_) => plain(StatusCode::OK, "ready\n".into()),
            None => plain(StatusCode::SERVICE_UNAVAILABLE, "no slice yet\n".into()),
        },
        Place::Metrics => into_response(&Answer::Text {
            content_type: "text/plain; version=0.0.4; charset=utf-8",
            body: telemetry::prometheus(&shared.telemetry.figures()).into(),
        }),
        Place::Past(drawn) => past(&shared, uri, drawn, now)
            .await
            .map_or_else(|refusal| *refusal, |answer| into_response(&answer)),
    }
}

/// What is made of the history, or why it is not.
async fn past(
    shared: &Arc<Shared>,
    uri: &Uri,
    drawn: Drawn,
    now: SystemTime,
) -> Result<Arc<Answer>, Box<Response>> {
    let parsed = Question::parse(uri.query().unwrap_or_default(), now, shared.newest(now));
    let mut question =
        parsed.map_err(|wrong| Box::new(plain(StatusCode::BAD_REQUEST, format!("{wrong}\n"))))?;
    let busy = |busy| Box::new(too_busy(busy));
    let make = |question: Question| {
        let shared = Arc::clone(shared);
        let waiting = Arc::clone(&shared.waiting).try_acquire_owned();
        async move {
            // As long as it is being made: who asked may be gone.
            let _waiting = waiting.map_err(|_| Busy::Waiting)?;
            let turn = tokio::time::timeout(PATIENCE, shared.turns.acquire()).await;
            let Ok(Ok(_turn)) = turn else {
                return Err(Busy::Turn);
            };
            let worker = tokio::task::spawn_blocking({
                let shared = Arc::clone(&shared);
                move || answer::make(&shared, &question, drawn)
            });
            let made = worker.await;
            shared.hold(made.unwrap_or_else(|error| Answer::Failed(error.to_string())))
        }
    };
    let made = if let Some(seconds) = question.seconds {
        let end = now + seconds;
        question.query.range = Some(nanos(now)..nanos(end));
        {
            let ahead = shared.ahead.try_acquire();
            let _ahead = ahead.map_err(|_| busy(Busy::Ahead))?;
            wait_until(shared, end, seconds + shared.silence).await;
        }
        // Nobody else asks for the same time. A task of its own, whose turn is not given back before its end.
        let task = tokio::spawn(make(question)).await;
        task.unwrap_or(Err(Busy::Turn))
    } else {
        let news = *shared.news.borrow();
        let key = uri.to_string();
        shared.cache.answer(&key, news, || make(question)).await
    };
    made.map_err(busy)
}

/// The answer to who asks while too much is under way.
fn too_busy(busy: Busy) -> Response {
    let mut response = plain(StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", busy.sentence()));
    response.headers_mut().insert(header::RETRY_AFTER, AGAIN);
    response
}

/// Waits until what is sampled up to `end` is in the history; no longer than `patience`.
async fn wait_until(shared: &Shared, end: SystemTime, patience: Duration) {
    let mut news = shared.news.subscribe();
    let covered = async { while !answer::covers(&shared.history(), end) && news.changed().await.is_ok() {} };
    // An answer that is cut short says so by its range.
    let _ = tokio::time::timeout(patience, covered).await;
}

fn into_response(answer: &Answer) -> Response {
    match answer {
        Answer::Text { content_type, body } => {
            let mut response = Response::new(Body::from(body.clone()));
            set(&mut response, header::CONTENT_TYPE, content_type);
            response
        }
        Answer::Nothing(body) => plain(StatusCode::NOT_FOUND, body.clone()),
        Answer::TooLong => plain(
            StatusCode::PAYLOAD_TOO_LARGE,
            "the answer is too long; ask for less time, or for one process\n".into(),
        ),
        Answer::Failed(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        Answer::Profile {
            content_type,
            body,
            about,
        } => {
            let mut response = Response::new(Body::from(body.clone()));
            set(&mut response, header::CONTENT_TYPE, content_type);
            let headers = response.headers_mut();
            let lost = about.lost.values().copied().fold(0, u64::saturating_add);
            let reasons = about.lost.iter();
            let reasons: Vec<String> = reasons
                .map(|(reason, count)| format!("{}={count}", reason.name()))
                .collect();
            for (name, value) in [
                ("profile-from", Rfc3339(about.start).to_string()),
                ("profile-until", Rfc3339(about.end).to_string()),
                ("profile-samples", about.samples.to_string()),
                ("profile-lost", lost.to_string()),
                (LOST, reasons.join(", ")),
            ] {
                if let Ok(value) = HeaderValue::from_str(&value) {
                    headers.insert(name, value);
                }
            }
            let policy = match *content_type {
                HTML => EMBEDDED.clone(),
                "image/svg+xml" => DRAWN,
                _ => NOTHING,
            };
            headers.insert(header::CONTENT_SECURITY_POLICY, policy);
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
    use crate::{history::Limits, profile::Capture, read};

    /// A server with a slice of one second that ended and came so long ago.
    fn server(interval: Duration, ago: Duration) -> Server {
        let options = Options {
            address: "127.0.0.1:0".parse().unwrap(),
            token: None,
            limits: Limits::default(),
            folder: None,
        };
        let server = Server::start(options, interval, &Arc::default()).unwrap();
        let mut slice = read::bytes(b"program;main 7\n", &read::Options::default()).unwrap();
        slice.capture = Capture {
            start: nanos(SystemTime::now() - ago) - 1_000_000_000,
            duration: 1_000_000_000,
            frequency: 99,
            ..Capture::default()
        };
        let shared = &server.entrance.shared;
        let before = *shared.news.borrow();
        server.entrance().hand_over(slice);
        while *shared.news.borrow() == before {
            thread::sleep(Duration::from_millis(5));
        }
        shared.news.send_replace(Instant::now().checked_sub(ago).unwrap());
        server
    }

    async fn status(server: &Server, path: &str) -> StatusCode {
        let request = Request::builder().uri(path).body(Body::empty()).unwrap();
        respond(State(Arc::clone(&server.entrance.shared)), request)
            .await
            .status()
    }

    #[tokio::test(start_paused = true)]
    async fn a_slice_may_be_as_late_as_its_interval_is_long() {
        let ago = Duration::from_secs(90);
        for (interval, health, last) in [(60, 200, 200), (300, 200, 200), (2, 503, 404)] {
            let server = server(Duration::from_secs(interval), ago);
            assert_eq!(status(&server, "/healthz").await, health, "{interval}");
            assert_eq!(
                status(&server, "/profile.folded?last=1m").await,
                last,
                "{interval}"
            );
            // What is sampled from now on is waited for until its slice must be there.
            let asked = tokio::time::Instant::now();
            assert_eq!(status(&server, "/profile.folded?seconds=30").await, 404);
            let waited = asked.elapsed();
            let least = Duration::from_secs(30 + interval.max(10) + 30);
            assert!(waited >= least && waited < LONGEST, "{waited:?} at {interval} s");
        }
    }

    #[test]
    fn no_interval_is_too_long_to_add() {
        for (interval, expected) in [
            (Duration::ZERO, 60),
            (Duration::from_secs(10), 60),
            (Duration::from_secs(300), 350),
            (Duration::MAX, 86_400),
        ] {
            assert_eq!(silence(interval), Duration::from_secs(expected));
        }
    }

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
        for address in ["http://127.0.0.1:7979", "unix:/run/x"] {
            assert_eq!(address.parse::<Address>().unwrap().to_string(), address);
        }
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

//! `profiler-agent top`: a terminal that shows what the host is doing, from the agent that runs here or from samples of its own.

use std::{
    io::{self, IsTerminal as _, Write as _, stdout},
    panic,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, bail};
use crossterm::{
    cursor,
    event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
    queue,
    style::{Attribute, Color, Print, SetAttribute, SetBackgroundColor, SetForegroundColor},
    terminal::{self, ClearType},
};
use profiler_agent::{
    agent::{self, Options, Stop},
    export::folded::LabelKind,
    history::{History, Limits, Query},
    http::ask::{AskError, Asked},
    kernel::capabilities,
    profile::Profile,
    top::{HEAD, Line, Screen, Style, View, text_of},
};
use regex::Regex;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{TopSource, TopTask};

/// How often the terminal looks whether something has come.
const LOOK: Duration = Duration::from_millis(100);
/// What is kept of samples of its own.
const KEPT: Limits = Limits {
    age: Duration::from_secs(600),
    bytes: 32 << 20,
};
/// How long one waits for the first samples where one table is all that is wanted.
const FIRST: Duration = Duration::from_secs(30);

/// Where profiles come from.
enum Source {
    Agent(Asked),
    Own {
        history: Arc<Mutex<History>>,
        /// Why there is nothing more to come.
        end: Arc<OnceLock<String>>,
    },
}

impl Source {
    /// The last seconds; nothing where there were no samples.
    fn profile(&self, last: Duration) -> News {
        match self {
            Self::Agent(agent) => {
                let last = format!("{}ms", last.as_millis());
                match agent.profile(&[("last", &last)]) {
                    Ok(profile) => Ok(Some(profile)),
                    Err(AskError::Refused { is_nothing: true, .. }) => Ok(None),
                    Err(error) => Err(error.to_string()),
                }
            }
            Self::Own { history, end } => {
                if let Some(end) = end.get() {
                    return Err(end.clone());
                }
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                let begin = now.saturating_sub(last).as_nanos();
                let history = history.lock().unwrap_or_else(PoisonError::into_inner);
                let profile = history.profile(&Query {
                    range: Some(u64::try_from(begin).unwrap_or(u64::MAX)..u64::MAX),
                    ..Query::default()
                });
                Ok((!profile.samples.is_empty()).then_some(profile))
            }
        }
    }
}

/// Samples that are taken while the terminal is looked at; they end with this.
struct Capture {
    stop: Arc<Stop>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.request();
        if let Some(thread) = self.thread.take() {
            // It has told its errors.
            let _ = thread.join();
        }
    }
}

/// What the thread says that asks.
type News = Result<Option<Profile>, String>;

/// Shows what there is until the person has seen enough.
pub(crate) fn run(task: &TopTask) -> anyhow::Result<()> {
    let (sender, news) = sync_channel(1);
    let (source, _capture) = open(task)?;
    let last = Arc::new(Mutex::new(task.last));
    thread::Builder::new()
        .name("ask".into())
        .spawn({
            let (last, every) = (Arc::clone(&last), task.every);
            move || ask(&source, &sender, &last, every)
        })
        .context("cannot start to ask")?;
    if task.once || !stdout().is_terminal() || !io::stdin().is_terminal() {
        return once(task, &news);
    }
    live(task, &news, &last)
}

/// The agent that runs here, or a capture.
fn open(task: &TopTask) -> anyhow::Result<(Source, Option<Capture>)> {
    if let TopSource::Agent {
        address,
        is_asked_for,
    } = &task.source
    {
        let agent = Asked::new(address.clone(), task.token.clone())?;
        match agent.get("/healthz", &[]) {
            Err(AskError::Nobody(_)) if !is_asked_for => {}
            Err(error @ (AskError::Nobody(_) | AskError::Transport { .. })) => return Err(error.into()),
            // What it has to say it says again.
            Ok(_) | Err(_) => return Ok((Source::Agent(agent), None)),
        }
    }
    capabilities::check().context("no agent runs here, and this cannot sample by itself")?;
    let history = Arc::new(Mutex::new(History::new(KEPT)));
    let stop = Arc::new(Stop::new().context("cannot start")?);
    let end = Arc::new(OnceLock::new());
    let options = Options {
        scope: task.scope.clone(),
        frequency: task.frequency,
        unwind_memory: task.unwind_memory,
        inlines: true,
        kernel_stats: false,
        duration: None,
        interval: Some(task.every.max(agent::MIN_INTERVAL)),
    };
    let thread = thread::Builder::new().name("capture".into()).spawn({
        let (history, stop, end) = (Arc::clone(&history), Arc::clone(&stop), Arc::clone(&end));
        move || {
            let keep = |slice: Profile| {
                history
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(&slice);
            };
            let reason = match agent::capture(&options, &stop, |_, _| {}, keep) {
                Ok(_) => "what was sampled has ended".to_owned(),
                Err(error) => format!("{:#}", anyhow::Error::new(error)),
            };
            // It is the only one.
            let _ = end.set(reason);
        }
    });
    let capture = Capture {
        stop,
        thread: Some(thread.context("cannot start to sample")?),
    };
    Ok((Source::Own { history, end }, Some(capture)))
}

/// Asks again and again, until nobody listens.
fn ask(source: &Source, sender: &SyncSender<News>, last: &Mutex<Duration>, every: Duration) {
    loop {
        let begin = Instant::now();
        let last = *last.lock().unwrap_or_else(PoisonError::into_inner);
        if sender.send(source.profile(last)).is_err() {
            return;
        }
        thread::sleep(every.saturating_sub(begin.elapsed()));
    }
}

fn view(task: &TopTask, screen: Screen) -> View {
    View {
        screen,
        sort: task.sort,
        pid: task.pid,
        filter: task.filter.clone(),
        ..View::default()
    }
}

/// One table, or one of each kind, as text.
fn once(task: &TopTask, news: &Receiver<News>) -> anyhow::Result<()> {
    let deadline = Instant::now() + FIRST;
    let profile = loop {
        match news.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            // An agent that has just begun has none yet; what this samples by itself is to be worth its while.
            Ok(Ok(Some(profile))) => break profile,
            Ok(Ok(None)) => {}
            Ok(Err(reason)) => bail!(reason),
            Err(_) => bail!("no samples came within {} s", FIRST.as_secs()),
        }
    };
    let columns = crate::verbs::columns();
    let screens = match (task.screen, task.pid) {
        (Some(screen), _) => vec![screen],
        (None, Some(_)) => vec![Screen::Functions],
        (None, None) => vec![Screen::Processes, Screen::Functions],
    };
    let mut text = String::new();
    for (nth, screen) in screens.into_iter().enumerate() {
        // Where nobody says how wide, a picture is as wide as most terminals.
        let columns = if screen == Screen::Flamegraph {
            columns.min(120)
        } else {
            columns
        };
        let lines = view(task, screen).lines(&profile, columns, HEAD.saturating_add(task.rows));
        // The first line is that of all.
        for line in lines.iter().skip(usize::from(nth > 0)) {
            text += &text_of(line);
            text.push('\n');
        }
        text.push('\n');
    }
    crate::verbs::print(text.trim_end().as_bytes())?;
    crate::verbs::print(b"\n")
}

/// The terminal while it is ours. It is given back on every way out: at the end, by an error, by a panic.
struct Held;

impl Held {
    fn take() -> anyhow::Result<Self> {
        // Else the words of a panic would be lost with the screen that they are on.
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            give_back();
            before(info);
        }));
        terminal::enable_raw_mode().context("this terminal cannot be used; try --once")?;
        let held = Self;
        queue!(stdout(), terminal::EnterAlternateScreen, cursor::Hide)?;
        stdout().flush()?;
        Ok(held)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        give_back();
    }
}

fn give_back() {
    // A terminal that is gone needs nothing.
    let _ = queue!(
        stdout(),
        SetAttribute(Attribute::Reset),
        cursor::Show,
        terminal::LeaveAlternateScreen
    );
    let _ = stdout().flush();
    let _ = terminal::disable_raw_mode();
}

/// A flag that signals set which ask a program to end.
fn end() -> anyhow::Result<Arc<AtomicBool>> {
    let ended = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot wait for signals")?;
    let (mut interrupt, mut terminate, mut hangup) = {
        let _inside = runtime.enter();
        let signal = |kind| signal(kind).context("cannot wait for signals");
        (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        )
    };
    thread::Builder::new()
        .name("signals".into())
        .spawn({
            let ended = Arc::clone(&ended);
            move || {
                runtime.block_on(async {
                    tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {}, _ = hangup.recv() => {} }
                });
                ended.store(true, Ordering::Relaxed);
            }
        })
        .context("cannot wait for signals")?;
    Ok(ended)
}

/// What is typed while a filter is.
#[derive(Default)]
struct State {
    view: View,
    profile: Option<Profile>,
    /// What is wrong with what came last.
    trouble: String,
    typed: Option<String>,
    is_paused: bool,
    shows_keys: bool,
}

const KEYS: &[&str] = &[
    "  Tab, 1 2 3    processes, functions, flamegraph",
    "  Up, Down      choose a row; Page Up, Page Down, Home, End",
    "  Enter         functions of the chosen process",
    "  g             its flamegraph",
    "  Esc           back to all processes",
    "  s             sort by something else",
    "  /             show names that a regular expression finds",
    "  + -           of a longer, of a shorter time",
    "  Space         hold what is shown, or go on",
    "  q             end",
];

fn live(task: &TopTask, news: &Receiver<News>, last: &Mutex<Duration>) -> anyhow::Result<()> {
    let ended = end()?;
    let mut state = State {
        view: view(task, task.screen.unwrap_or_default()),
        ..State::default()
    };
    let held = Held::take()?;
    let mut is_new = true;
    let result = loop {
        if ended.load(Ordering::Relaxed) {
            break Ok(());
        }
        match news.try_recv() {
            Ok(_) if state.is_paused => {}
            Ok(Ok(profile)) => {
                (state.profile, state.trouble, is_new) = (profile, String::new(), true);
            }
            Ok(Err(reason)) => (state.trouble, is_new) = (reason, true),
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => break Ok(()),
        }
        if is_new {
            let length = *last.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(error) = draw(&mut state, length) {
                break Err(error.into());
            }
            is_new = false;
        }
        match event::poll(LOOK) {
            Ok(false) => {}
            Ok(true) => {
                is_new = true;
                match event::read() {
                    Ok(Event::Key(key)) if key.kind != KeyEventKind::Release => {
                        if !state.press(key, last) {
                            break Ok(());
                        }
                    }
                    Ok(_) => {}
                    Err(error) => break Err(error.into()),
                }
            }
            Err(error) => break Err(error.into()),
        }
    };
    drop(held);
    result
}

impl State {
    /// Does what a key says; says whether it goes on.
    #[expect(clippy::wildcard_enum_match_arm, reason = "most keys say nothing here")]
    fn press(&mut self, key: KeyEvent, last: &Mutex<Duration>) -> bool {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return !matches!(key.code, KeyCode::Char('c' | 'd'));
        }
        if let Some(typed) = &mut self.typed {
            match key.code {
                KeyCode::Char(c) => typed.push(c),
                KeyCode::Backspace => {
                    typed.pop();
                }
                KeyCode::Esc => self.typed = None,
                KeyCode::Enter => match Regex::new(typed) {
                    Ok(filter) => {
                        self.view.filter = (!typed.is_empty()).then_some(filter);
                        self.typed = None;
                    }
                    Err(_) => self.trouble = "this is no regular expression".into(),
                },
                _ => {}
            }
            return true;
        }
        let nothing = Profile::default();
        let profile = self.profile.as_ref().unwrap_or(&nothing);
        let view = &mut self.view;
        match key.code {
            KeyCode::Char('q') => return false,
            KeyCode::Char('1') => view.show(Screen::Processes),
            KeyCode::Char('2') => view.show(Screen::Functions),
            KeyCode::Char('3') => view.show(Screen::Flamegraph),
            KeyCode::Tab => view.show(match view.screen {
                Screen::Processes => Screen::Functions,
                Screen::Functions => Screen::Flamegraph,
                Screen::Flamegraph => Screen::Processes,
            }),
            KeyCode::Enter | KeyCode::Char('g') => {
                view.pid = view.chosen(profile);
                view.show(match key.code {
                    KeyCode::Enter => Screen::Functions,
                    _ => Screen::Flamegraph,
                });
            }
            KeyCode::Esc => {
                view.pid = None;
                view.show(Screen::Processes);
            }
            KeyCode::Up => view.go(-1, profile),
            KeyCode::Down => view.go(1, profile),
            KeyCode::PageUp => view.go(-20, profile),
            KeyCode::PageDown => view.go(20, profile),
            KeyCode::Home => view.go(isize::MIN, profile),
            KeyCode::End => view.go(isize::MAX, profile),
            KeyCode::Char('s') => view.sort_on(),
            KeyCode::Char('/') => self.typed = Some(String::new()),
            KeyCode::Char(' ') => self.is_paused = !self.is_paused,
            KeyCode::Char('?' | 'h') => self.shows_keys = !self.shows_keys,
            KeyCode::Char('+') => change(last, |last| last * 2),
            KeyCode::Char('-') => change(last, |last| last / 2),
            _ => {}
        }
        true
    }
}

fn change(last: &Mutex<Duration>, how: impl Fn(Duration) -> Duration) {
    let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
    *last = how(*last).clamp(Duration::from_secs(1), KEPT.age);
}

fn draw(state: &mut State, last: Duration) -> io::Result<()> {
    let (columns, rows) = terminal::size()?;
    let (columns, rows) = (usize::from(columns), usize::from(rows));
    let plain =
        |text: &str| -> Line { vec![(profiler_agent::export::text::fit(text, columns), Style::Plain)] };
    let mut lines = match &state.profile {
        _ if state.shows_keys => KEYS.iter().map(|key| plain(key)).collect(),
        Some(profile) => state.view.lines(profile, columns, rows.saturating_sub(1)),
        None => vec![plain(
            "no samples yet; the first ones are there after a few seconds",
        )],
    };
    lines.resize(rows.saturating_sub(1), Line::new());
    let foot = match &state.typed {
        Some(typed) => format!("names with: {typed}_  {}", state.trouble),
        None if !state.trouble.is_empty() => state.trouble.clone(),
        None => format!(
            "the last {}{}  q end  ? keys  Tab next  Enter functions  g flamegraph  s sort  / filter",
            humantime::format_duration(last),
            if state.is_paused { ", held" } else { "" },
        ),
    };
    lines.push(vec![(
        profiler_agent::export::text::fit(&foot, columns),
        Style::Heading,
    )]);
    // In one piece, so that nothing flickers.
    let mut out = Vec::new();
    for (row, line) in (0_u16..).zip(&lines) {
        queue!(out, cursor::MoveTo(0, row))?;
        for (text, style) in line {
            match style {
                Style::Plain => {}
                Style::Heading => queue!(out, SetAttribute(Attribute::Bold))?,
                Style::Chosen => queue!(out, SetAttribute(Attribute::Reverse))?,
                Style::Frame(kind) => queue!(
                    out,
                    SetBackgroundColor(colour(*kind)),
                    SetForegroundColor(Color::AnsiValue(16))
                )?,
            }
            queue!(out, Print(text), SetAttribute(Attribute::Reset))?;
        }
        queue!(out, terminal::Clear(ClearType::UntilNewLine))?;
    }
    stdout().write_all(&out)?;
    stdout().flush()
}

/// Of the 256 colours of terminals, those next to the pictures'.
const fn colour(kind: LabelKind) -> Color {
    Color::AnsiValue(match kind {
        LabelKind::Process => 252,
        LabelKind::Native => 221,
        LabelKind::Inlined => 116,
        LabelKind::Unnamed => 181,
        LabelKind::Kernel => 209,
        LabelKind::Jit => 150,
        LabelKind::Marker => 183,
    })
}

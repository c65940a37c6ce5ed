//! The child as the agent has it: started, asked one question at a time, given up when it fails.

use std::{
    cell::Cell,
    fmt, io,
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
    time::{Duration, Instant},
};

use hashbrown::HashMap;

use super::{
    Response, Source,
    confine::Confinement,
    handover::Handover,
    message::{Answer, Malformed, Question},
    socket::Socket,
    spawn::{Ended, Process},
    trial::Trial,
};

/// CPU time that a question may take; 100 times what 500 addresses of the largest debug information in the benchmarks take.
const MOST_CPU: Duration = Duration::from_secs(5);
/// Time on the clock, however busy the host is.
const MOST_TIME: Duration = Duration::from_secs(30);

/// A child that answers.
#[derive(Debug)]
pub struct Client {
    line: Socket,
    process: Process,
    confinement: Confinement,
    /// Objects whose files it holds.
    held: HashMap<u32, Held>,
    /// The object that is the kernel, whose symbols it keeps.
    kernel: Option<u32>,
}

/// An object that it holds.
#[derive(Debug)]
struct Held {
    /// Bytes that were copied for it.
    copied: u64,
    /// As in its [`Handover`].
    worth: usize,
    is_bare: bool,
    /// When it was last asked for as much as makes it worth holding.
    asked: Instant,
}

/// What is held has been worth reading: a fraction of that makes it worth holding.
const HOLDING: usize = 8;

/// Why no child could be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No process could be made.
    #[error("the symbolizer cannot be started")]
    Create(#[source] io::Error),
    /// It did not say that it is ready.
    #[error("the symbolizer did not start: {0}")]
    NotReady(String),
}

/// Why a question has no answer. The child is gone after it.
#[derive(Debug, Clone, Copy)]
pub enum Failure {
    /// It ended.
    Ended(Ended),
    /// It took too long.
    Slow(Duration, Ended),
    /// It answered what cannot be.
    Malformed(Malformed, Ended),
}

impl Failure {
    /// How it ended, and what it had used.
    pub(super) const fn ended(&self) -> Ended {
        match self {
            Self::Ended(ended) | Self::Slow(_, ended) | Self::Malformed(_, ended) => *ended,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended(ended) => write!(f, "the symbolizer ended: {}", ended.describe()),
            Self::Slow(time, _) => write!(f, "the symbolizer had no answer after {time:?}"),
            Self::Malformed(error, _) => write!(f, "the symbolizer sent a {error}"),
        }
    }
}

impl std::error::Error for Failure {}

impl Client {
    /// Starts a child and waits until it has given up its privileges: some 20 ms. It ends with this value, or with the thread that started
    /// it.
    ///
    /// # Errors
    /// When the system has no process to give, or `program` is none that serves.
    pub fn start(program: &Path) -> Result<Self, StartError> {
        let (process, line) = Process::start(program).map_err(StartError::Create)?;
        let mut client = Self {
            line,
            process,
            confinement: Confinement::default(),
            held: HashMap::new(),
            kernel: None,
        };
        let not_ready = |failure: Failure| StartError::NotReady(failure.to_string());
        let answer = client.receive().map_err(not_ready)?;
        match Answer::decode(&answer) {
            Ok(Answer::Ready(confinement)) => client.confinement = confinement,
            Ok(Answer::Names(_) | Answer::Tried(_)) => {
                return Err(StartError::NotReady("it answered before it was asked".into()));
            }
            Err(error) => return Err(not_ready(client.malformed(error))),
        }
        Ok(client)
    }

    /// What it has given up.
    pub fn confinement(&self) -> &Confinement {
        &self.confinement
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Whether it still holds the files of an object, as far as so many addresses are worth them.
    pub(super) fn holds(&self, id: u32, addresses: usize) -> bool {
        let held = self.held.get(&id);
        held.is_some_and(|held| !held.is_bare || addresses < held.worth)
    }

    /// Bytes that were copied of what it holds.
    pub(super) fn copied(&self) -> u64 {
        self.held.values().map(|held| held.copied).sum()
    }

    /// Whether it has ended since it was asked last, or says what nobody asked for.
    pub(super) fn has_ended(&self) -> bool {
        self.line.has_news()
    }

    /// Asks for names. With the files of the object, unless they are held. The answer is for the first addresses, at least for one.
    pub(super) fn ask(
        &mut self,
        id: u32,
        handover: Option<Handover>,
        addresses: &[u64],
    ) -> Result<Response, Failure> {
        let now = Instant::now();
        if let Some(held) = self.held.get_mut(&id)
            && (held.is_bare || addresses.len() >= held.worth / HOLDING)
        {
            held.asked = now;
        }
        let mut files = Vec::new();
        let source = handover.map(|handover| {
            let Handover {
                source,
                copied,
                worth,
                is_bare,
                remark: _,
            } = handover;
            let held = Held {
                copied,
                worth,
                is_bare,
                asked: now,
            };
            self.held.insert(id, held);
            if matches!(source, Source::Kernel { .. }) {
                self.kernel = Some(id);
            }
            let numbered = source.try_map(|file| {
                files.push(file);
                u8::try_from(files.len() - 1)
            });
            // There are three at most.
            numbered.ok()
        });
        let question = Question::Name {
            id,
            source: source.flatten(),
            addresses: addresses.to_vec(),
        };
        let files: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
        self.send(&question, &files)?;
        let answer = self.receive()?;
        match Answer::decode(&answer) {
            Ok(Answer::Names(mut names)) => {
                let let_go = std::mem::take(&mut names.let_go);
                let response = names.take(id, addresses).map_err(|error| self.malformed(error))?;
                for id in let_go {
                    self.held.remove(&id);
                }
                Ok(response)
            }
            Ok(Answer::Ready(_) | Answer::Tried(_)) => Err(self.malformed(Malformed::UNASKED)),
            Err(error) => Err(self.malformed(error)),
        }
    }

    /// Has it try what it must not be able to do.
    ///
    /// # Errors
    /// When it did not live to tell.
    pub fn try_all(&mut self) -> Result<Vec<Trial>, Failure> {
        self.send(&Question::Try, &[])?;
        let answer = self.receive()?;
        match Answer::decode(&answer) {
            Ok(Answer::Tried(trials)) => Ok(trials),
            Ok(Answer::Ready(_) | Answer::Names(_)) => Err(self.malformed(Malformed::UNASKED)),
            Err(error) => Err(self.malformed(error)),
        }
    }

    /// Has it let the files go that it was not asked for as long as `unused`, and return their memory.
    pub(super) fn release(&mut self, unused: Duration) -> Result<(), Failure> {
        let kernel = self.kernel;
        let gone = self
            .held
            .extract_if(|id, held| kernel != Some(*id) && held.asked.elapsed() >= unused);
        let gone: Vec<u32> = gone.map(|(id, _)| id).collect();
        if gone.is_empty() {
            return Ok(());
        }
        self.send(&Question::Release(gone), &[])
    }

    /// Ends it.
    pub(super) fn end(mut self) -> Option<Ended> {
        self.process.end().ok()
    }

    fn send(&mut self, question: &Question, files: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        let sent = question
            .encode()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
            .and_then(|question| {
                let patience = Patience::new(&self.process);
                self.line.send(&question, files, || patience.check())
            });
        sent.map_err(|error| self.failed(&error))
    }

    fn receive(&mut self) -> Result<Vec<u8>, Failure> {
        let patience = Patience::new(&self.process);
        match self.line.receive(None, || patience.check()) {
            Ok(Some(bytes)) => Ok(bytes),
            Ok(None) => Err(self.failed(&io::ErrorKind::UnexpectedEof.into())),
            Err(error) => Err(self.failed(&error)),
        }
    }

    fn failed(&mut self, error: &io::Error) -> Failure {
        let kind = error.kind();
        let closed = [
            io::ErrorKind::UnexpectedEof,
            io::ErrorKind::BrokenPipe,
            io::ErrorKind::ConnectionReset,
        ];
        if closed.contains(&kind) {
            return Failure::Ended(self.process.wait().unwrap_or_default());
        }
        let ended = self.process.end().unwrap_or_default();
        if kind == io::ErrorKind::TimedOut {
            let limit = if ended.cpu < MOST_CPU { MOST_TIME } else { MOST_CPU };
            return Failure::Slow(limit, ended);
        }
        Failure::Malformed(Malformed::UNASKED, ended)
    }

    fn malformed(&mut self, error: Malformed) -> Failure {
        Failure::Malformed(error, self.process.end().unwrap_or_default())
    }
}

/// How long the child may take for what it does now.
struct Patience<'a> {
    process: &'a Process,
    since: Instant,
    /// CPU time that it had used before; asked for when it takes long.
    before: Cell<Option<u64>>,
}

impl<'a> Patience<'a> {
    fn new(process: &'a Process) -> Self {
        Self {
            process,
            since: Instant::now(),
            before: Cell::new(None),
        }
    }

    /// Fails when it has taken too long.
    fn check(&self) -> io::Result<()> {
        let ticks = self.process.ticks();
        let before = self.before.get().unwrap_or(ticks);
        self.before.set(Some(before));
        let cpu = Duration::from_millis(
            (ticks - before.min(ticks)).saturating_mul(1000) / rustix::param::clock_ticks_per_second().max(1),
        );
        if cpu > MOST_CPU || self.since.elapsed() > MOST_TIME {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }
}

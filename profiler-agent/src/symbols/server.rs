//! The child's side: gives everything up, then answers questions until the agent closes the line.

use std::{
    ffi::{CStr, OsStr},
    fs::File,
    io::{self, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    process::ExitCode,
    sync::Arc,
};

use rustix::net::SocketType;

use super::{
    confine::confine,
    message::{Answer, Malformed, Names, Question},
    resolver::Resolver,
    socket::Socket,
    trial::try_all,
};

/// The first argument of a child. None that a person would give.
pub const ARGUMENT: &CStr = c"--symbolizer-of-the-agent";

/// If this process was started as a child, serves its agent. To be called first of all in `main`: a child has one thread and has done
/// nothing yet.
pub fn serve() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let is_child = arguments
        .next()
        .is_some_and(|argument| argument == OsStr::from_bytes(ARGUMENT.to_bytes()));
    is_child.then(|| match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Of use to one who starts it by hand; the agent has closed this.
            let _ = writeln!(io::stderr(), "profiler-agent: symbolizer: {error}");
            ExitCode::FAILURE
        }
    })
}

fn run() -> io::Result<()> {
    let line = io::stdin().as_fd().try_clone_to_owned()?;
    if rustix::net::sockopt::socket_type(&line)? != SocketType::STREAM {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let line = Socket::of_child(line);
    // For `ps` and `top`, which know it as `exe` otherwise.
    let _ = rustix::thread::set_name(c"symbolizer");
    // A panic is answered; its text could come from a file.
    std::panic::set_hook(Box::new(|_| {}));
    let confinement = confine()?;
    send(&line, &Answer::Ready(confinement))?;
    let mut resolver = Resolver::new();
    loop {
        let mut files: Vec<OwnedFd> = Vec::new();
        let Some(question) = line.receive(Some(&mut files), || Ok(()))? else {
            return Ok(());
        };
        let files: Vec<Arc<File>> = files.into_iter().map(|fd| Arc::new(File::from(fd))).collect();
        match Question::decode(&question, files.len()).map_err(invalid)? {
            Question::Name {
                id,
                source,
                addresses,
            } => {
                let source = source.map(|source| {
                    source.try_map(|place| {
                        files
                            .get(usize::from(place))
                            .cloned()
                            .ok_or(io::ErrorKind::InvalidData)
                    })
                });
                let response = resolver.resolve(id, source.transpose()?, &addresses);
                let let_go = resolver.take_let_go();
                send(&line, &Answer::Names(Names::new(&response, let_go)))?;
            }
            Question::Release(ids) => resolver.release(&ids),
            Question::Try => send(&line, &Answer::Tried(try_all()))?,
        }
    }
}

fn send(line: &Socket, answer: &Answer<'_>) -> io::Result<()> {
    line.send(&answer.encode().map_err(invalid)?, &[], || Ok(()))
}

fn invalid(error: Malformed) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

//! Where requests come from: TCP or a socket in the file system, so many connections at one time.

use std::{
    io,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, UnixListener},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep_until},
};

use super::Address;

/// Connections at one time: each takes a descriptor, of which the agent needs its own.
const MOST_CONNECTIONS: usize = 512;

/// Bound before the capture begins, so that a taken port is told at once.
pub(super) enum Bound {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

impl Bound {
    pub(super) fn new(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp(address) => {
                let listener = std::net::TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                Ok(Self::Tcp(listener))
            }
            Address::Unix(path) => {
                remove_left_behind(path)?;
                let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
                let listener = std::os::unix::net::UnixListener::bind(path);
                rustix::process::umask(before);
                let listener = listener?;
                listener.set_nonblocking(true)?;
                Ok(Self::Unix(listener))
            }
        }
    }

    pub(super) fn address(&self, asked: &Address) -> Address {
        match self {
            Self::Tcp(listener) => listener.local_addr().map_or_else(|_| asked.clone(), Address::Tcp),
            Self::Unix(_) => asked.clone(),
        }
    }
}

/// Somebody's file is where the socket was to be.
#[derive(Debug, thiserror::Error)]
#[error("{0} is there already and is no socket: move it away if it may go")]
struct NoSocket(PathBuf);

/// Removes a socket at which nobody listens: one that was killed has left it behind.
fn remove_left_behind(path: &Path) -> io::Result<()> {
    let is_refused = std::os::unix::net::UnixStream::connect(path)
        .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    if !is_refused {
        return Ok(());
    }
    // The kernel refuses in the same words what is no socket at all.
    if !path.symlink_metadata()?.file_type().is_socket() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            NoSocket(path.to_owned()),
        ));
    }
    std::fs::remove_file(path)
}

/// A listener that accepts no more connections than it may.
pub(super) struct Listener<L> {
    inner: L,
    free: Arc<Semaphore>,
    limits: Limits,
}

/// How long a connection may last without a sign of life.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Nothing is said by either side: longer than the longest answer takes to begin.
    pub(super) silence: Duration,
    /// The peer takes nothing of what it is sent.
    pub(super) taking: Duration,
}

impl<L> Listener<L> {
    pub(super) fn new(inner: L, limits: Limits) -> Self {
        Self {
            inner,
            free: Arc::new(Semaphore::new(MOST_CONNECTIONS)),
            limits,
        }
    }

    /// Waits until there is room for one more.
    async fn room(&self) -> Option<OwnedSemaphorePermit> {
        // It is never closed.
        Arc::clone(&self.free).acquire_owned().await.ok()
    }
}

macro_rules! listener {
    ($listener:ty) => {
        impl axum::serve::Listener for Listener<$listener> {
            type Io = Connection<<$listener as axum::serve::Listener>::Io>;
            type Addr = <$listener as axum::serve::Listener>::Addr;

            async fn accept(&mut self) -> (Self::Io, Self::Addr) {
                let room = self.room().await;
                let (stream, address) = axum::serve::Listener::accept(&mut self.inner).await;
                (Connection::new(stream, self.limits, room), address)
            }

            fn local_addr(&self) -> io::Result<Self::Addr> {
                axum::serve::Listener::local_addr(&self.inner)
            }
        }
    };
}

listener!(TcpListener);
listener!(UnixListener);

/// A connection, which ends when it is beyond its [`Limits`].
pub(super) struct Connection<S> {
    stream: S,
    limits: Limits,
    silence: Pin<Box<Sleep>>,
    /// Runs while something waits to be taken.
    taking: Option<Pin<Box<Sleep>>>,
    _room: Option<OwnedSemaphorePermit>,
}

impl<S> Connection<S> {
    fn new(stream: S, limits: Limits, room: Option<OwnedSemaphorePermit>) -> Self {
        Self {
            stream,
            limits,
            silence: Box::pin(sleep_until(Instant::now() + limits.silence)),
            taking: None,
            _room: room,
        }
    }

    /// What came of reading or writing; an error instead of another turn of silence.
    fn heard<T>(&mut self, context: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            let silence = self.limits.silence;
            self.silence.as_mut().reset(Instant::now() + silence);
            return polled;
        }
        end_of(&mut self.silence, context)
    }

    /// What came of writing; an error when nothing could be written for too long.
    fn taken<T>(&mut self, context: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.taking = None;
        } else {
            let taking = self.limits.taking;
            let end = self
                .taking
                .get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + taking)));
            if let Poll::Ready(error) = end_of(end, context) {
                return Poll::Ready(error);
            }
        }
        self.heard(context, polled)
    }
}

/// An error when this time is over.
fn end_of<T>(time: &mut Pin<Box<Sleep>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
    let end = time.as_mut().poll(context);
    end.map(|()| Err(io::ErrorKind::TimedOut.into()))
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.heard(context, polled)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.taken(context, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.taken(context, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(context);
        self.heard(context, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(path: &Path) -> io::Result<Bound> {
        Bound::new(&Address::Unix(path.to_owned()))
    }

    #[test]
    fn what_is_no_socket_stays_where_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        std::fs::write(&file, "somebody's").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        for path in [file.as_path(), &link, folder.path()] {
            let Err(error) = bind(path) else {
                panic!("listens at {path:?}")
            };
            let text = error.to_string();
            assert!(text.contains(path.to_str().unwrap()), "{text}");
            assert!(text.contains("is no socket: move it away"), "{text}");
            assert!(path.symlink_metadata().is_ok(), "{path:?} is gone");
        }
        assert_eq!(std::fs::metadata(&file).unwrap().len(), 10);
    }

    #[test]
    fn a_socket_that_is_left_behind_makes_way_and_one_in_use_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        drop(bind(&path).unwrap());
        let _first = bind(&path).unwrap();
        let Err(error) = bind(&path) else {
            panic!("two listen at {path:?}")
        };
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}

//! One end of the line between the agent and its child: messages with a length before them, descriptors beside them.
//!
//! ```text
//! length: u32 │ body        descriptors come with the first byte
//! ```

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::{
    cmsg_space,
    event::{PollFd, PollFlags, Timespec},
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    },
};

use super::message::{MOST_BYTES, MOST_FILES};

/// A connected stream socket.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    /// How long a wait goes on before the one who waits is asked again; `None` is for ever.
    turn: Option<Duration>,
}

/// See [`Socket::turn`]; of the agent's end.
const TURN: Duration = Duration::from_millis(100);

impl Socket {
    /// The agent's end, and the one for the child.
    pub(super) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let turn = Some(TURN);
        Ok((Self { fd: ours, turn }, theirs))
    }

    /// The child's end, which waits for ever.
    pub(super) const fn of_child(fd: OwnedFd) -> Self {
        Self { fd, turn: None }
    }

    /// Sends a message. While the other side does not read, `patience` is asked about ten times a second whether to go on.
    pub(super) fn send(
        &self,
        body: &[u8],
        files: &[BorrowedFd<'_>],
        mut patience: impl FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        if body.len() > MOST_BYTES || files.len() > MOST_FILES {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let length = u32::try_from(body.len())
            .map_err(|_| io::ErrorKind::InvalidInput)?
            .to_le_bytes();
        let mut files = files;
        let (mut head, mut body) = (&length[..], body);
        while !(head.is_empty() && body.is_empty()) {
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MOST_FILES))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if !files.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(files)) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let slices = [IoSlice::new(head), IoSlice::new(body)];
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match rustix::net::sendmsg(&self.fd, &slices, &mut ancillary, flags) {
                Ok(sent) => {
                    files = &[];
                    let of_head = sent.min(head.len());
                    head = head.get(of_head..).unwrap_or_default();
                    body = body.get(sent - of_head..).unwrap_or_default();
                }
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT, &mut patience)?,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Whether there is something to receive, or the other side has closed.
    pub(super) fn has_news(&self) -> bool {
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let mut line = [PollFd::from_borrowed_fd(self.fd.as_fd(), PollFlags::IN)];
        rustix::event::poll(&mut line, Some(&now)).is_ok_and(|ready| ready > 0)
    }

    /// Receives a message; `None` when the other side has closed its end between two. Descriptors are taken only where `files` has
    /// room for them; the kernel closes others.
    pub(super) fn receive(
        &self,
        files: Option<&mut Vec<OwnedFd>>,
        mut patience: impl FnMut() -> io::Result<()>,
    ) -> io::Result<Option<Vec<u8>>> {
        let mut length = [0; 4];
        if !self.fill(&mut length, files, &mut patience)? {
            return Ok(None);
        }
        let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
        if length > MOST_BYTES {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the message is too long",
            ));
        }
        let mut body = vec![0; length];
        if !self.fill(&mut body, None, &mut patience)? && length > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Some(body))
    }

    /// Fills `buffer`; false when the other side has closed before its first byte.
    fn fill(
        &self,
        buffer: &mut [u8],
        mut files: Option<&mut Vec<OwnedFd>>,
        patience: &mut impl FnMut() -> io::Result<()>,
    ) -> io::Result<bool> {
        let mut filled = 0;
        while let Some(rest @ [_, ..]) = buffer.get_mut(filled..) {
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MOST_FILES))];
            let mut ancillary = match files {
                Some(_) => RecvAncillaryBuffer::new(&mut space),
                None => RecvAncillaryBuffer::default(),
            };
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            match rustix::net::recvmsg(&self.fd, &mut [IoSliceMut::new(rest)], &mut ancillary, flags) {
                Ok(received) => {
                    if let Some(files) = &mut files {
                        for message in ancillary.drain() {
                            if let RecvAncillaryMessage::ScmRights(came) = message {
                                files.extend(came);
                            }
                        }
                    }
                    match received.bytes {
                        0 if filled == 0 => return Ok(false),
                        0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                        bytes => filled += bytes,
                    }
                }
                Err(Errno::AGAIN) => self.wait(PollFlags::IN, patience)?,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(filled > 0)
    }

    fn wait(&self, flags: PollFlags, patience: &mut impl FnMut() -> io::Result<()>) -> io::Result<()> {
        let turn = self.turn.map(|turn| Timespec {
            tv_sec: 0,
            tv_nsec: turn.subsec_nanos().into(),
        });
        match rustix::event::poll(
            &mut [PollFd::from_borrowed_fd(self.fd.as_fd(), flags)],
            turn.as_ref(),
        ) {
            Ok(0) => patience(),
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read as _};

    use super::*;

    fn pair() -> (Socket, Socket) {
        let (ours, theirs) = Socket::pair().unwrap();
        let turn = ours.turn;
        (ours, Socket { fd: theirs, turn })
    }

    #[test]
    fn messages_keep_their_borders_and_files() {
        let (one, other) = pair();
        let file = File::open("/proc/self/comm").unwrap();
        one.send(b"first", &[file.as_fd()], || Ok(())).unwrap();
        one.send(b"", &[], || Ok(())).unwrap();
        drop(one);
        let mut files = Vec::new();
        let body = other.receive(Some(&mut files), || Ok(())).unwrap().unwrap();
        assert_eq!(body, b"first");
        let mut text = String::new();
        File::from(files.remove(0)).read_to_string(&mut text).unwrap();
        assert!(!text.is_empty() && files.is_empty());
        assert_eq!(other.receive(None, || Ok(())).unwrap(), Some(Vec::new()));
        assert_eq!(other.receive(None, || Ok(())).unwrap(), None);
    }

    #[test]
    fn long_messages_pass_in_parts() {
        let (one, other) = pair();
        let body = vec![7; MOST_BYTES];
        let sender = std::thread::spawn(move || one.send(&body, &[], || Ok(())));
        let received = other.receive(None, || Ok(())).unwrap().unwrap();
        assert!(received.len() == MOST_BYTES && received.iter().all(|&byte| byte == 7));
        sender.join().unwrap().unwrap();
    }

    #[test]
    fn lies_and_silence_are_errors() {
        let (one, other) = pair();
        rustix::io::write(&one.fd, &u32::MAX.to_le_bytes()).unwrap();
        assert_eq!(
            other.receive(None, || Ok(())).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
        let (one, other) = pair();
        rustix::io::write(&one.fd, &[9, 0, 0, 0, 1]).unwrap();
        let give_up = || Err(io::ErrorKind::TimedOut.into());
        assert_eq!(
            other.receive(None, give_up).unwrap_err().kind(),
            io::ErrorKind::TimedOut
        );
        drop(one);
        // What came before is gone.
        assert!(other.receive(None, || Ok(())).unwrap().is_none());
    }

    #[test]
    fn files_that_nobody_asked_for_are_closed() {
        let (one, other) = pair();
        let (reader, writer) = io::pipe().unwrap();
        one.send(b"x", &[writer.as_fd()], || Ok(())).unwrap();
        drop(writer);
        other.receive(None, || Ok(())).unwrap();
        // Nobody holds the writer's end.
        assert_eq!({ reader }.read(&mut [0]).unwrap(), 0);
    }
}

//! What who asks may use up: questions at one time, bytes of answers that nobody has read yet, time to read them in.
//!
//! Whoever reaches the socket may ask as much as they like, and go away, or not read what comes. A question counts until its answer is
//! made, whether somebody still waits for it or not; an answer counts until its last byte is with the peer and no cache has it.

use std::{sync::Arc, time::Duration};

use axum::body::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{answer, cache};

/// How much of everything at one time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Questions that wait for their turn, or are being answered.
    pub(super) waiting: usize,
    /// Questions that wait for what is yet to be sampled: up to ten minutes each, so that they have a bound of their own.
    pub(super) ahead: usize,
    /// Bytes of answers.
    pub(super) bytes: usize,
    /// How long a peer may take nothing of what is sent.
    pub(super) taking: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            waiting: 256,
            ahead: 64,
            // The largest answer finds room beside a full cache.
            bytes: answer::MOST_BYTES + cache::MOST_BYTES,
            taking: Duration::from_secs(30),
        }
    }
}

/// Too much is under way already.
#[derive(Debug, Clone, Copy)]
pub(super) enum Busy {
    /// Questions wait.
    Waiting,
    /// Questions wait for what is yet to be sampled.
    Ahead,
    /// There was no turn in time.
    Turn,
    /// Answers are not read.
    Bytes,
}

impl Busy {
    /// What who asked is told.
    pub(super) const fn sentence(self) -> &'static str {
        match self {
            Self::Waiting => "too many requests are waiting; ask again",
            Self::Ahead => {
                "too many requests wait for what is yet to be sampled; ask again, or for what there is already: last=30s"
            }
            Self::Turn => "busy with other answers; ask again",
            Self::Bytes => {
                "answers that others have yet to read take all the memory there is for answers; ask again, or for less time, or for one process"
            }
        }
    }
}

/// Room for the bytes of answers.
#[derive(Debug)]
pub(super) struct Room(Arc<Semaphore>);

/// What a permit of [`Room`] is for: few enough for a semaphore to count.
const UNIT: usize = 1024;

impl Room {
    pub(super) fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes / UNIT)))
    }

    /// Room for so many bytes, if there is that much.
    pub(super) fn take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).ok()?;
        Arc::clone(&self.0).try_acquire_many_owned(units).ok()
    }
}

/// Bytes that have their room until the last who has them lets them go.
pub(super) fn held(bytes: Bytes, room: OwnedSemaphorePermit) -> Bytes {
    struct Held(
        Bytes,
        #[expect(dead_code, reason = "given back when it is dropped")] OwnedSemaphorePermit,
    );
    impl AsRef<[u8]> for Held {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    Bytes::from_owner(Held(bytes, room))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::TcpStream,
        thread,
        time::Instant,
    };

    use super::super::{Options, Server};
    use super::*;
    use crate::{history::Limits, profile::Capture, read, telemetry::Telemetry};

    /// A server with one slice, whose folded stacks are so many times 2 KiB.
    fn server(bounds: Bounds, stacks: usize) -> Server {
        let options = Options {
            address: "127.0.0.1:0".parse().unwrap(),
            token: None,
            limits: Limits::default(),
            folder: None,
        };
        let server = Server::within(
            bounds,
            options,
            Duration::from_secs(2),
            &Telemetry::default().into(),
        )
        .unwrap();
        let folded: String = (0..stacks)
            .map(|number| format!("program;{number:0>2048} 7\n"))
            .collect();
        let mut slice = read::bytes(folded.as_bytes(), &read::Options::default()).unwrap();
        slice.capture = Capture {
            start: 1_000_000_000,
            duration: 1_000_000_000,
            frequency: 99,
            ..Capture::default()
        };
        server.entrance().hand_over(slice);
        wait_for("the slice", || ask(&server, "/readyz").0 == 200);
        server
    }

    fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
        let since = Instant::now();
        while !is_so() {
            assert!(since.elapsed() < Duration::from_secs(20), "{what}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Asks, and reads nothing.
    fn client(server: &Server, path: &str) -> TcpStream {
        let address = server.address().to_string().replace("http://", "");
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
        stream
    }

    /// Status and text of an answer.
    fn read(mut stream: TcpStream) -> (u16, String) {
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut text = String::new();
        // It may be cut off.
        let _ = stream.read_to_string(&mut text);
        let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.unwrap_or_default(), text)
    }

    fn ask(server: &Server, path: &str) -> (u16, String) {
        read(client(server, path))
    }

    #[test]
    fn answers_that_nobody_reads_have_a_bound_and_an_end() {
        const STACKS: usize = 10_000;
        let bounds = Bounds {
            // Two of them, and no third.
            bytes: STACKS * 2048 * 5 / 2,
            taking: Duration::from_secs(6),
            ..Bounds::default()
        };
        let server = server(bounds, STACKS);
        let unread: Vec<TcpStream> = (0..2)
            .map(|number| {
                let stream = client(&server, &format!("/profile.folded?since=0.{number}"));
                // It begins to come.
                assert_eq!(stream.peek(&mut [0]).unwrap(), 1);
                stream
            })
            .collect();
        let (status, text) = ask(&server, "/profile.folded?since=0.2");
        assert!(status == 503 && text.contains("retry-after: 10"), "{status}");
        assert!(text.contains("have yet to read"), "{text}");
        // What takes no room is answered, and so is the third when the others were let go.
        assert_eq!(ask(&server, "/healthz").0, 200);
        wait_for("room", || ask(&server, "/profile.folded?since=0.2").0 == 200);
        let room = &server.entrance.shared.room;
        wait_for("both to be let go", || room.take(STACKS * 2048 * 5 / 4).is_some());
        for stream in unread {
            let (status, text) = read(stream);
            assert_eq!(status, 200);
            assert!(text.len() < STACKS * 2048, "all of it came");
        }
        // All of it, to who reads slowly.
        let mut slow = client(&server, "/profile.folded?since=0.3");
        let mut bytes = Vec::new();
        let mut piece = vec![0; 3 << 20];
        while let Ok(length @ 1..) = slow.read(&mut piece) {
            bytes.extend_from_slice(&piece[..length]);
            thread::sleep(Duration::from_millis(20));
        }
        assert!(bytes.len() > STACKS * 2048, "{}", bytes.len());
    }

    #[test]
    fn questions_that_nobody_waits_for_have_a_bound() {
        let bounds = Bounds {
            waiting: 4,
            ..Bounds::default()
        };
        let server = server(bounds, 1);
        let shared = &server.entrance.shared;
        assert_eq!(ask(&server, "/profile.folded").0, 200);
        // Nobody gets a turn.
        let turns = shared.turns.try_acquire_many(2).unwrap();
        for number in 0..8 {
            drop(client(
                &server,
                &format!("/profile.folded?since=0.{number}&filter=x"),
            ));
        }
        wait_for("the questions", || shared.waiting.available_permits() == 0);
        // Time for it to see that they are gone.
        thread::sleep(Duration::from_millis(300));
        let (status, text) = ask(&server, "/profile.folded?since=0.9");
        assert!(
            status == 503 && text.contains("too many requests are waiting"),
            "{text}"
        );
        // What is there already is still handed out.
        assert_eq!(ask(&server, "/profile.folded").0, 200);
        drop(turns);
        wait_for("a place", || ask(&server, "/profile.folded?since=0.9").0 == 200);
    }

    #[test]
    fn who_waits_for_what_is_yet_to_be_sampled_is_in_nobodys_way() {
        let bounds = Bounds {
            ahead: 2,
            ..Bounds::default()
        };
        let server = server(bounds, 1);
        let shared = &server.entrance.shared;
        let waiting: Vec<TcpStream> = (0..2)
            .map(|_| client(&server, "/profile.folded?seconds=600"))
            .collect();
        wait_for("the questions", || shared.ahead.available_permits() == 0);
        let (status, text) = ask(&server, "/profile.folded?seconds=600");
        assert!(status == 503 && text.contains("last=30s"), "{text}");
        assert_eq!(ask(&server, "/profile.folded?since=0.1").0, 200);
        // Who leaves makes room.
        drop(waiting);
        wait_for("room", || shared.ahead.available_permits() == 2);
    }

    /// By HTTP/2 one connection asks for many answers and can leave each of them unread.
    #[test]
    fn one_connection_has_one_answer_under_way() {
        let server = server(Bounds::default(), 1);
        let address = server.address().to_string().replace("http://", "");
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).unwrap();
        let mut answer = [0; 9];
        let length = stream.read(&mut answer).unwrap_or_default();
        let is_settings = length == 9 && answer[3] == 4;
        assert!(!is_settings, "{answer:?}");
    }

    #[test]
    fn the_largest_answer_finds_room() {
        let room = Room::new(Bounds::default().bytes);
        let largest = room.take(answer::MOST_BYTES).unwrap();
        assert!(room.take(answer::MOST_BYTES).is_none());
        let bytes = held(Bytes::from_static(b"bytes"), largest);
        let copy = bytes.clone();
        drop(bytes);
        assert!(room.take(answer::MOST_BYTES).is_none());
        drop(copy);
        assert!(room.take(answer::MOST_BYTES).is_some());
    }
}

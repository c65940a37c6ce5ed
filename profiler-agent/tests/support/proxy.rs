//! A proxy before a receiver, which delays and cuts connections as told.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

/// What becomes of a connection.
#[derive(Debug, Clone, Copy)]
pub enum Fate {
    /// It passes, each piece this much later.
    Delayed(Duration),
    /// It is cut after so many bytes to the receiver.
    CutRequest(usize),
    /// It is cut when the receiver begins to answer with data of this length or more; what it was sent, it has.
    CutAnswer(usize),
}

/// One that runs until the test ends.
#[derive(Debug)]
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    /// Connections so far.
    pub connections: Arc<AtomicUsize>,
}

impl Proxy {
    /// Connections get `fates` in their order, again and again.
    pub fn start(receiver: SocketAddr, fates: &'static [Fate]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                let fate = fates[count.fetch_add(1, Ordering::Relaxed) % fates.len()];
                let Ok(server) = TcpStream::connect(receiver) else {
                    continue;
                };
                pass(&client, &server, fate);
            }
        });
        Self { address, connections }
    }
}

fn pass(client: &TcpStream, server: &TcpStream, fate: Fate) {
    let (there, back) = match fate {
        Fate::Delayed(delay) => ((delay, usize::MAX, usize::MAX), (delay, usize::MAX, usize::MAX)),
        Fate::CutRequest(bytes) => (
            (Duration::ZERO, bytes, usize::MAX),
            (Duration::ZERO, usize::MAX, usize::MAX),
        ),
        Fate::CutAnswer(piece) => (
            (Duration::ZERO, usize::MAX, usize::MAX),
            (Duration::ZERO, usize::MAX, piece),
        ),
    };
    for (from, to, (delay, most, piece)) in [(client, server, there), (server, client, back)] {
        let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
        thread::spawn(move || {
            let mut buffer = [0; 16 << 10];
            let mut left = most;
            while let Ok(length @ 1..) = from.read(&mut buffer) {
                if length >= piece {
                    break;
                }
                let length = length.min(left);
                thread::sleep(delay);
                if to.write_all(&buffer[..length]).is_err() {
                    break;
                }
                left -= length;
                if left == 0 {
                    break;
                }
            }
            let _ = from.shutdown(Shutdown::Both);
            let _ = to.shutdown(Shutdown::Both);
        });
    }
}

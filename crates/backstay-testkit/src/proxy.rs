//! A network on loopback that breaks when it is told to.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use socket2::{SockFilter, SockRef};

use crate::daemon::wait_until;

/// The word of the kernel's packet filters for "so many bytes pass".
const RETURN: u16 = 0x06;

/// How a network is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// What is sent arrives.
    Whole,
    /// Connections are ended, and new ones too.
    Cut,
    /// Nothing arrives any more, and nobody is told so.
    Silent,
}

/// A network between us and a server on this machine; ends when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    /// Where the server is reached through it, on 127.0.0.1.
    pub port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    server: u16,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    network: Network,
    /// After so many more bytes in both directions it becomes another.
    then: Option<(u64, Network)>,
    /// Both ends of every connection.
    streams: Vec<TcpStream>,
    accepted: usize,
    ended: bool,
}

impl Proxy {
    /// Lays a network to the server of a port.
    pub fn start(server: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        let state = State {
            network: Network::Whole,
            then: None,
            streams: Vec::new(),
            accepted: 0,
            ended: false,
        };
        let shared = Arc::new(Shared { server, state: Mutex::new(state) });
        let accepting = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                match client {
                    Ok(client) if !accepting.lock().ended => accepting.connect(client),
                    _ => return,
                }
            }
        });
        Self { port, shared }
    }

    /// Makes the network another, at once.
    pub fn set(&self, network: Network) {
        self.shared.lock().set(network);
    }

    /// Makes the network another after so many more bytes.
    pub fn set_after(&self, bytes: u64, network: Network) {
        self.shared.lock().then = Some((bytes, network));
    }

    /// Lets the machine at the other end of all connections vanish: it answers nothing any more, not even what systems ask each
    /// other to see whether somebody is there.
    pub fn vanish(&self) {
        self.set(Network::Silent);
        // What is under way would be sent again and again, which is a sign of life.
        wait_until("all is sent", || !self.is_sending());
        // A filter that lets no byte of any packet through: the kernel drops each as if it had never come.
        let nothing = [SockFilter::new(RETURN, 0, 0, 0)];
        for stream in &self.shared.lock().streams {
            SockRef::from(stream).attach_filter(&nothing).expect("a filter");
        }
    }

    /// Says whether anything was sent to clients that did not arrive yet.
    fn is_sending(&self) -> bool {
        let table = std::fs::read_to_string("/proc/net/tcp").expect("the system's connections");
        let ours = format!("0100007F:{:04X}", self.port);
        let mut connections = table.lines().filter_map(|line| {
            let mut fields = line.split_whitespace().skip(1);
            (fields.next() == Some(ours.as_str())).then(|| fields.nth(2).unwrap_or_default())
        });
        connections.any(|queues| !queues.starts_with("00000000:"))
    }

    /// Says how it is now.
    pub fn network(&self) -> Network {
        self.shared.lock().network
    }

    /// Returns how many connections were begun.
    pub fn accepted(&self) -> usize {
        self.shared.lock().accepted
    }

    /// Makes it whole again. Connections that fell silent are ended.
    pub fn mend(&self) {
        let mut state = self.shared.lock();
        state.then = None;
        state.set(Network::Cut);
        state.set(Network::Whole);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.ended = true;
        state.set(Network::Cut);
        drop(state);
        // Wakes the thread that accepts; it may be gone already.
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)));
    }
}

impl State {
    fn set(&mut self, network: Network) {
        self.network = network;
        if network == Network::Cut {
            for stream in self.streams.drain(..) {
                // One that its peer has ended is no stream to end.
                drop(stream.shutdown(Shutdown::Both));
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connect(self: &Arc<Self>, client: TcpStream) {
        let mut state = self.lock();
        state.accepted += 1;
        if state.network == Network::Cut {
            return;
        }
        if state.network == Network::Silent {
            state.streams.push(client);
            return;
        }
        let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, self.server)) else { return };
        for (from, to) in [(&client, &server), (&server, &client)] {
            let (from, to) = (from.try_clone().expect("clone"), to.try_clone().expect("clone"));
            let shared = self.clone();
            std::thread::spawn(move || shared.forward(from, to));
        }
        state.streams.extend([client, server]);
    }

    fn forward(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = vec![0; 16 << 10];
        loop {
            let read = from.read(&mut buffer).unwrap_or(0);
            match self.after(read as u64) {
                Network::Cut => return,
                Network::Silent if read == 0 => return,
                Network::Silent => {}
                Network::Whole if read == 0 => {
                    drop(to.shutdown(Shutdown::Write));
                    return;
                }
                Network::Whole if to.write_all(&buffer[..read]).is_err() => return,
                Network::Whole => {}
            }
        }
    }

    /// Counts bytes that came in, and says whether they may go out.
    fn after(&self, bytes: u64) -> Network {
        let mut state = self.lock();
        if let Some((left, then)) = state.then {
            state.then = left.checked_sub(bytes).filter(|left| *left > 0).map(|left| (left, then));
            if state.then.is_none() {
                state.set(then);
            }
        }
        state.network
    }
}

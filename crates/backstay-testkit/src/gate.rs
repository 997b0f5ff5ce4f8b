//! A way to a MySQL or MariaDB server on which a process is killed just before its n-th statement that changes something.

use std::io::{self, Read, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};

/// A packet that holds a statement begins so.
const COM_QUERY: u8 = 3;
/// How statements begin that change what a database is made of.
const CHANGES: [&[u8]; 4] = [b"RENAME ", b"DROP ", b"CREATE ", b"ALTER "];

/// Whom to kill, and when.
struct Order {
    pid: u32,
    /// Statements that still pass.
    left: usize,
}

/// Passes on all that is said.
pub struct Gate {
    /// Where it listens, on 127.0.0.1.
    pub port: u16,
    order: Arc<Mutex<Option<Order>>>,
}

impl Gate {
    /// Opens a way to the server at a port.
    pub fn open(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        let order: Arc<Mutex<Option<Order>>> = Arc::default();
        let orders = order.clone();
        // Ends with the test's process.
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let server = TcpStream::connect(("127.0.0.1", server)).expect("the server");
                let (mut answers, mut back) =
                    (server.try_clone().expect("a socket"), client.try_clone().expect("a socket"));
                thread::spawn(move || {
                    drop(io::copy(&mut answers, &mut back));
                    drop(back.shutdown(Shutdown::Both));
                });
                let orders = orders.clone();
                thread::spawn(move || {
                    drop(pass(client, &server, &orders));
                    drop(server.shutdown(Shutdown::Both));
                });
            }
        });
        Self { port, order }
    }

    /// Kills a process before its n-th change from now on, counted from nothing.
    pub fn kill_before(&self, n: usize, pid: u32) {
        let mut order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        *order = Some(Order { pid, left: n });
    }

    /// Forgets whom to kill.
    pub fn disarm(&self) {
        *self.order.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Passes on packet by packet: three bytes of length, one of number, and what is said.
fn pass(mut from: TcpStream, mut to: &TcpStream, orders: &Mutex<Option<Order>>) -> io::Result<()> {
    loop {
        let mut packet = vec![0; 4];
        from.read_exact(&mut packet)?;
        let length = u32::from_le_bytes([packet[0], packet[1], packet[2], 0]) as usize;
        packet.resize(4 + length, 0);
        from.read_exact(&mut packet[4..])?;
        if let Some((COM_QUERY, statement)) = packet[4..].split_first().map(|(c, s)| (*c, s))
            && CHANGES.iter().any(|word| statement.starts_with(word))
        {
            let mut order = orders.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(found) = order.as_mut() {
                if found.left == 0 {
                    let pid = Pid::from_raw(found.pid.cast_signed()).expect("a process");
                    kill_process(pid, Signal::KILL).expect("it lives");
                    *order = None;
                    return Ok(());
                }
                found.left -= 1;
            }
        }
        to.write_all(&packet)?;
    }
}

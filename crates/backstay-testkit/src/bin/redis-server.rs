//! Runs a private Redis server until standard input ends, and says how it is reached: for benchmarks and trials by hand.

use std::io::{Read as _, Write as _};

use backstay_testkit::redis::{PASSWORD, RedisServer};

fn main() -> std::io::Result<()> {
    let server = RedisServer::start();
    let mut out = std::io::stdout();
    writeln!(out, "{}\t/usr/bin\tdefault\t{PASSWORD}", server.port)?;
    out.flush()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

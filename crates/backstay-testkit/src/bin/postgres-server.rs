//! Runs a private PostgreSQL server until standard input ends, and says how it is reached: for benchmarks and trials by hand.

use std::io::{Read as _, Write as _};

use backstay_testkit::postgres::{PASSWORD, PostgresServer, USER};

fn main() -> std::io::Result<()> {
    let server = PostgresServer::start();
    let mut out = std::io::stdout();
    writeln!(out, "{}\t{}\t{USER}\t{PASSWORD}", server.port, server.programs().display())?;
    out.flush()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

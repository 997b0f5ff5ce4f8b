//! Runs a private MariaDB server until standard input ends, and says how it is reached: for benchmarks and trials by hand.

use std::io::{Read as _, Write as _};

use backstay_testkit::mysql::{MysqlServer, PASSWORD, USER};

fn main() -> std::io::Result<()> {
    let server = MysqlServer::start();
    let mut out = std::io::stdout();
    writeln!(out, "{}\t{}\t{USER}\t{PASSWORD}", server.port, server.programs().display())?;
    out.flush()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

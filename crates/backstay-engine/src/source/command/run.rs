//! Running the user's programs.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use backstay_format::PartName;
use secrecy::ExposeSecret as _;
use tokio::process::Command;

use super::{Argv, CommandError, CommandSource};
use crate::cx::Cx;
use crate::source::SourceError;
use crate::source::program::Program;

/// What every program needs to find its way; nothing else of our own environment is theirs, where secrets may stand.
const PASSED_ON: [&str; 8] = ["HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TZ", "TMPDIR"];
/// Where programs are looked for if nothing else is said, as system services do.
const USUAL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Prepares a program.
pub(super) fn command(source: &CommandSource, argv: &Argv) -> Command {
    let mut command = Command::new(&argv.program);
    command.args(&argv.arguments).env_clear().env("PATH", search_path()).kill_on_drop(true);
    for name in PASSED_ON {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    for (name, value) in &source.variables {
        command.env(name, value.expose_secret());
    }
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

fn search_path() -> OsString {
    std::env::var_os("PATH").unwrap_or_else(|| USUAL_PATH.into())
}

/// Fails if there is no such program.
pub(super) fn find(argv: &Argv, output: &PartName) -> Result<(), CommandError> {
    let is_program = |path: &Path| {
        path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    let found = if argv.program.contains('/') {
        is_program(Path::new(&argv.program))
    } else {
        std::env::split_paths(&search_path()).any(|path| is_program(&path.join(&argv.program)))
    };
    if found {
        return Ok(());
    }
    Err(CommandError::NoProgram { program: argv.program.clone(), of: output.to_string() })
}

/// Runs a program that takes a file as its input, to its end.
pub(super) async fn take(
    cx: &Cx,
    source: &CommandSource,
    (argv, timeout): (&Argv, Duration),
    file: &Path,
) -> Result<(), SourceError> {
    let input = File::open(file).map_err(|cause| SourceError::io("open", file, cause))?;
    let mut command = command(source, argv);
    command.stdin(input);
    // Should we be killed, it goes on: its input is a file, and so is where it complains to.
    let mut program = Program::start_writing(&argv.program, command, file.with_extension("said"))?;
    let status = limited(cx, (argv, timeout), async { Ok(program.wait().await?) }).await?;
    Ok(program.judge(status).await?)
}

/// Waits for what a program does, as long as it may take.
pub(super) async fn limited<T>(
    cx: &Cx,
    (argv, limit): (&Argv, Duration),
    work: impl Future<Output = Result<T, SourceError>>,
) -> Result<T, SourceError> {
    match cx.run(tokio::time::timeout(limit, work)).await? {
        Ok(done) => done,
        Err(_elapsed) => Err(CommandError::Timeout { program: argv.program.clone(), limit }.into()),
    }
}

//! Commands of the user's around a backup or restore: stop the app, start it again.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

use crate::cx::Cx;
use crate::error::EngineError;
use crate::event::Event;

/// Of a hook's complaints this much is shown.
const MAX_OUTPUT_BYTES: u64 = 4096;

/// A command with its arguments; no shell in between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// The program and its arguments. Not empty.
    pub argv: Vec<String>,
    /// How long it may take; then it is killed.
    pub timeout: Duration,
}

/// Runs a hook to its end. `name` is the hook's name in the configuration.
pub async fn run_hook(cx: &Cx, name: &'static str, hook: &Hook) -> Result<(), EngineError> {
    cx.event(Event::Step { what: format!("running hook {name}") });
    let failed = |finding: String| EngineError::Hook { hook: name, finding };
    let Some((program, arguments)) = hook.argv.split_first() else {
        return Err(failed("it is empty".to_owned()));
    };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(format!("cannot start {program}: {error}")))?;
    let mut complaints = Vec::new();
    let stderr = child.stderr.take();
    let run = async {
        if let Some(mut stderr) = stderr {
            // What it says is for people; that it says it must not stop it, so the pipe is read to its end.
            drop((&mut stderr).take(MAX_OUTPUT_BYTES).read_to_end(&mut complaints).await);
            drop(tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await);
        }
        child.wait().await
    };
    let limited = tokio::time::timeout(hook.timeout, run);
    let status = match cx.run(limited).await? {
        Ok(status) => status.map_err(|error| failed(error.to_string()))?,
        Err(_elapsed) => {
            return Err(failed(format!("it took longer than {} s", hook.timeout.as_secs())));
        }
    };
    if status.success() {
        return Ok(());
    }
    Err(failed(format!("{status}: {}", String::from_utf8_lossy(&complaints).trim())))
}

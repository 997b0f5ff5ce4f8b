//! Commands of the user's around a backup or restore: stop the app, start it again.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use crate::cx::Cx;
use crate::error::EngineError;
use crate::event::Event;
use crate::source::program::Program;

/// A command with its arguments; no shell in between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// The program and its arguments. Not empty.
    pub argv: Vec<String>,
    /// How long it may take; then it is killed.
    pub timeout: Duration,
}

/// Runs a hook to its end. `name` is the hook's name in the configuration. One that is stopped ends with all that it started;
/// what one that ended by itself left running, such as an app, goes on.
pub async fn run_hook(cx: &Cx, name: &'static str, hook: &Hook) -> Result<(), EngineError> {
    cx.event(Event::Step { what: format!("running hook {name}") });
    let failed = |finding: String| EngineError::Hook { hook: name, finding };
    let Some((program, arguments)) = hook.argv.split_first() else {
        return Err(failed("it is empty".to_owned()));
    };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
    let run = async {
        let mut running = Program::start(program, command)?;
        let status = running.wait().await?;
        running.judge(status).await
    };
    match cx.run(tokio::time::timeout(hook.timeout, run)).await? {
        Ok(done) => done.map_err(|error| failed(error.to_string())),
        Err(_elapsed) => Err(failed(format!("it took longer than {} s", hook.timeout.as_secs()))),
    }
}

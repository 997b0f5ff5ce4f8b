//! Running a program, of a database engine or of the user's, to its end, with what it complains of.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use crate::error::Passing;

/// Of a program's complaints this much is kept.
const MAX_COMPLAINT_BYTES: u64 = 16 * 1024;
/// And this many lines of them are shown.
const SHOWN_LINES: usize = 12;

/// How errors are told from warnings and notices.
const ERRORS: [&str; 4] = ["ERROR:", "error:", "FATAL:", "fatal:"];

/// Of the pipes that dumps flow through.
const PIPE_BYTES: usize = 1 << 20;

/// Makes room in a pipe: more room means fewer turns of both ends. Where the system grants none, the usual room does.
pub(super) fn widen(pipe: impl AsFd) {
    if let Err(error) = rustix::pipe::fcntl_setpipe_size(pipe, PIPE_BYTES) {
        tracing::debug!(%error, "a pipe keeps its size");
    }
}

/// A program failed.
#[derive(Debug, thiserror::Error)]
#[error("{program} failed ({status}): {finding}")]
pub struct ProgramError {
    /// Which one.
    pub program: String,
    /// How it ended.
    pub status: String,
    /// What it said; its first complaints.
    pub finding: String,
}

impl ProgramError {
    /// Says why the same may work later, with nothing changed, if it may.
    pub(crate) fn passing(&self) -> Option<Passing> {
        // No code comes with it: where the server speaks another language, this is not tried again. Only while it waits for
        // its locks does a dump have a limit, and pg_dump sets it as one for statements.
        ["due to statement timeout", "due to lock timeout"]
            .iter()
            .any(|why| self.finding.contains(why))
            .then_some(Passing::GaveWay)
    }
}

/// A running program. It is killed when this is dropped, with what it started.
pub(crate) struct Program {
    name: String,
    pub(super) child: Child,
    complaints: Complaints,
}

/// Where a program's complaints go.
enum Complaints {
    /// To us.
    Heard(JoinHandle<String>),
    /// Into a file: a program that outlives us can go on complaining.
    Written(PathBuf),
    /// Between its answers, to whoever reads those.
    Answered,
}

impl Complaints {
    /// Returns the first of them, after the program's end.
    async fn text(&mut self) -> String {
        match self {
            // It was only cut off if the program is gone in a way that nobody foresaw.
            Self::Heard(listening) => listening.await.unwrap_or_default(),
            Self::Answered => String::new(),
            Self::Written(file) => {
                let mut kept = Vec::new();
                if let Ok(file) = tokio::fs::File::open(file).await {
                    // What it says is for people; without it they still learn how it ended.
                    drop(file.take(MAX_COMPLAINT_BYTES).read_to_end(&mut kept).await);
                }
                String::from_utf8_lossy(&kept).into_owned()
            }
        }
    }
}

fn not_started(program: &str, error: &std::io::Error) -> ProgramError {
    let (program, finding) = (program.to_owned(), error.to_string());
    ProgramError { program, status: "could not be started".to_owned(), finding }
}

fn spawn(name: &str, mut command: Command) -> Result<Child, ProgramError> {
    // A group of its own: what it starts in turn ends with it.
    command.process_group(0);
    command.spawn().map_err(|error| not_started(name, &error))
}

impl Drop for Program {
    fn drop(&mut self) {
        // Nothing has this number any more once its end was seen.
        let running = self.child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        if let Some(group) = running {
            match kill_process_group(group, Signal::KILL) {
                // One that ended meanwhile needs no signal.
                Ok(()) | Err(_) => {}
            }
        }
    }
}

impl Program {
    /// Starts a program whose complaints go into a new file.
    pub(super) fn start_writing(
        name: &str,
        mut command: Command,
        complaints: PathBuf,
    ) -> Result<Self, ProgramError> {
        let file = std::fs::File::create(&complaints).map_err(|error| not_started(name, &error))?;
        command.stderr(file);
        let child = spawn(name, command)?;
        Ok(Self { name: name.to_owned(), child, complaints: Complaints::Written(complaints) })
    }

    /// Starts a program whose output and complaints come one after the other, as it writes them.
    pub(super) fn start_talking(
        name: &str,
        mut command: Command,
    ) -> Result<(Self, Receiver), ProgramError> {
        let wired = std::io::pipe().and_then(|(reader, writer)| {
            command.stdout(writer.try_clone()?).stderr(writer);
            Receiver::from_owned_fd(reader.into())
        });
        let answers = wired.map_err(|error| not_started(name, &error))?;
        let child = spawn(name, command)?;
        Ok((Self { name: name.to_owned(), child, complaints: Complaints::Answered }, answers))
    }

    /// Starts a program whose standard error is listened to.
    pub(crate) fn start(name: &str, mut command: Command) -> Result<Self, ProgramError> {
        command.stderr(Stdio::piped());
        let mut child = spawn(name, command)?;
        let stderr = child.stderr.take();
        let complaints = tokio::spawn(async move {
            let mut kept = Vec::new();
            if let Some(mut stderr) = stderr {
                // What it says is for people; that it says it must not stop it, so the pipe is read to its end.
                drop((&mut stderr).take(MAX_COMPLAINT_BYTES).read_to_end(&mut kept).await);
                drop(tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await);
            }
            String::from_utf8_lossy(&kept).into_owned()
        });
        Ok(Self { name: name.to_owned(), child, complaints: Complaints::Heard(complaints) })
    }

    /// Waits for its end.
    pub(crate) async fn wait(&mut self) -> Result<ExitStatus, ProgramError> {
        self.child.wait().await.map_err(|error| ProgramError {
            program: self.name.clone(),
            status: "cannot be waited for".to_owned(),
            finding: error.to_string(),
        })
    }

    /// Says what a status means, after the program's end.
    pub(crate) async fn judge(mut self, status: ExitStatus) -> Result<(), ProgramError> {
        if status.success() {
            return Ok(());
        }
        let said = self.complaints.text().await;
        let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
        // Remarks before the first error are of no interest once there is one.
        let is_error = |line: &&str| ERRORS.iter().any(|word| line.contains(word));
        let lines = &lines[lines.iter().position(is_error).unwrap_or(0)..];
        let more = lines.len().saturating_sub(SHOWN_LINES);
        let mut shown: Vec<String> =
            lines.iter().take(SHOWN_LINES).map(|line| (*line).to_owned()).collect();
        match (shown.is_empty(), more) {
            (true, _) => shown.push("it said nothing".to_owned()),
            (false, 0) => {}
            (false, more) => shown.push(format!("and {more} more lines")),
        }
        let finding = shown.join("; ");
        Err(ProgramError { program: self.name.clone(), status: status.to_string(), finding })
    }
}

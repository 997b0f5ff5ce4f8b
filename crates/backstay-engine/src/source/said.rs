//! What a program says on its standard error while it runs.

use std::collections::VecDeque;
use std::process::ChildStderr;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::sync::watch;

/// So many lines are kept, the last ones.
const KEPT_LINES: usize = 24;
/// And of each so many bytes.
const LINE_BYTES: u64 = 1000;

/// The last lines of what was said.
#[derive(Debug, Default)]
pub(super) struct Said {
    last: VecDeque<String>,
    count: u64,
}

impl Said {
    fn add(&mut self, line: &str) {
        self.count += 1;
        if self.last.len() == KEPT_LINES {
            drop(self.last.pop_front());
        }
        self.last.push_back(line.to_owned());
    }

    /// Returns how many lines were said.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn lines(&self) -> impl Iterator<Item = &str> {
        self.last.iter().map(String::as_str)
    }

    /// Returns the lines that came when `mark` had been said.
    pub(super) fn since(&self, mark: u64) -> impl Iterator<Item = &str> {
        let newer = usize::try_from(self.count - mark).unwrap_or(usize::MAX);
        self.lines().skip(self.last.len().saturating_sub(newer))
    }

    /// Returns all of it in one line, for a person.
    pub(super) fn text(&self) -> String {
        self.with(&[""])
    }

    /// The same of those lines that begin with one of these words.
    pub(super) fn with(&self, beginnings: &[&str]) -> String {
        let is_wanted = |line: &&str| beginnings.iter().any(|begin| line.starts_with(begin));
        let lines: Vec<&str> = self.lines().filter(is_wanted).collect();
        if lines.is_empty() { "it said nothing".to_owned() } else { lines.join("; ") }
    }
}

/// Listens to a program until it ends; then nothing is sent any more.
pub(super) fn listen(stderr: Option<ChildStderr>) -> watch::Receiver<Said> {
    let (sender, receiver) = watch::channel(Said::default());
    let stderr = stderr.and_then(|stderr| tokio::process::ChildStderr::from_std(stderr).ok());
    let Some(stderr) = stderr else { return receiver };
    drop(tokio::spawn(async move {
        let mut lines = BufReader::new(stderr);
        let mut line = Vec::new();
        // A program that must wait for its listener would stand still, so all of it is read.
        while (&mut lines).take(LINE_BYTES).read_until(b'\n', &mut line).await.unwrap_or(0) > 0 {
            let text = String::from_utf8_lossy(&line).replace(char::is_control, "");
            if !text.trim_matches(['@', ' ']).is_empty() {
                sender.send_modify(|said| said.add(text.trim_matches(['@', ' '])));
            }
            line.clear();
        }
    }));
    receiver
}

//! Hearing what is said while a job is done, for its log and for how far it is.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use backstay_control::Progress;
use backstay_engine::event::{Event, Monitor};

use crate::render;

/// Lines of a job's log that are kept, the newest.
const LOG_LINES: usize = 200;
/// A line that is longer is cut.
const LINE_CHARS: usize = 2000;

/// What was heard while a job was done.
#[derive(Default)]
pub(crate) struct Watched(Mutex<Heard>);

#[derive(Default)]
struct Heard {
    /// What was said, line by line.
    lines: VecDeque<String>,
    progress: Progress,
}

impl Watched {
    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, event: &Event) {
        let mut heard = self.heard();
        match event {
            Event::PartStarted { part, estimate_bytes } => {
                let estimate_bytes = *estimate_bytes;
                heard.progress = Progress { part: part.clone(), plain_bytes: 0, estimate_bytes };
            }
            Event::Progress { plain_bytes } => heard.progress.plain_bytes += plain_bytes,
            _ => {}
        }
        let Some(line) = render::event_line(event) else { return };
        if heard.lines.len() == LOG_LINES {
            heard.lines.pop_front();
        }
        heard.lines.push_back(line.chars().take(LINE_CHARS).collect());
    }

    pub(crate) fn progress(&self) -> Progress {
        self.heard().progress.clone()
    }

    pub(crate) fn log(&self) -> String {
        Vec::from(self.heard().lines.clone()).join("\n")
    }
}

/// Keeps what is said of a job, and passes it on under the name of its source.
struct JobMonitor {
    source: String,
    watched: Arc<Watched>,
    screen: Arc<dyn Monitor>,
}

/// Makes a listener of a job, between it and the screen.
pub(crate) fn hear_job(
    source: &str,
    watched: &Arc<Watched>,
    screen: Arc<dyn Monitor>,
) -> Arc<dyn Monitor> {
    Arc::new(JobMonitor { source: source.to_owned(), watched: watched.clone(), screen })
}

impl Monitor for JobMonitor {
    fn event(&self, event: Event) {
        self.watched.hear(&event);
        let Some(line) = render::event_line(&event) else { return };
        let source = &self.source;
        self.screen.event(match event {
            Event::Warning { text } => Event::Warning { text: format!("{source}: {text}") },
            _ => Event::Step { what: format!("{source}: {line}") },
        });
    }
}

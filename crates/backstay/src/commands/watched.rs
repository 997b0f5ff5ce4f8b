//! Hearing what is said while a job is done, for its log and for how far it is.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backstay_control::{JobId, Progress};
use backstay_engine::cx::CancelReason;
use backstay_engine::event::{Event, Monitor};

use crate::installation::Installation;
use crate::render;

/// The pause between two looks at whether somebody cancelled a job, and at how far it is.
pub(crate) const LOOK: Duration = Duration::from_secs(2);

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

/// Writes down how far a job is, and stops it if somebody cancels it. Never ends.
pub(crate) async fn watch(app: &Installation, job: &JobId, watched: &Watched) -> Infallible {
    let mut written = Progress::default();
    loop {
        tokio::time::sleep(LOOK).await;
        // A catalog that does not answer is the business of the lease.
        if let Ok(Some(reason)) = app.catalog.wish_to_cancel(job).await {
            app.cx.event(Event::Step { what: format!("cancelled: {reason}") });
            app.cx.cancel_handle().cancel(CancelReason::User);
            return pending().await;
        }
        let progress = watched.progress();
        if progress != written && app.catalog.keep_progress(job, &progress).await.is_ok() {
            written = progress;
        }
    }
}

/// Keeps what is said of a job, and passes it on, under the name of its source where several are heard.
struct JobMonitor {
    source: Option<String>,
    watched: Arc<Watched>,
    screen: Arc<dyn Monitor>,
}

/// Makes a listener of a job, between it and the screen.
pub(crate) fn hear_job(
    source: &str,
    watched: &Arc<Watched>,
    screen: Arc<dyn Monitor>,
) -> Arc<dyn Monitor> {
    Arc::new(JobMonitor { source: Some(source.to_owned()), watched: watched.clone(), screen })
}

/// Makes a listener of a job that a command does.
pub(crate) fn hear_own(watched: &Arc<Watched>, screen: Arc<dyn Monitor>) -> Arc<dyn Monitor> {
    Arc::new(JobMonitor { source: None, watched: watched.clone(), screen })
}

impl Monitor for JobMonitor {
    fn event(&self, event: Event) {
        self.watched.hear(&event);
        let Some(source) = &self.source else { return self.screen.event(event) };
        let Some(line) = render::event_line(&event) else { return };
        self.screen.event(match event {
            Event::Warning { text } => Event::Warning { text: format!("{source}: {text}") },
            _ => Event::Step { what: format!("{source}: {line}") },
        });
    }
}

//! What every step of the work is given: the clock, the wish to stop, and who listens.

use std::fmt;
use std::sync::{Arc, OnceLock};

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::event::{Event, Monitor};

/// Says what time it is; an argument, so that tests and skewed machines can be played.
pub trait Clock: Send + Sync {
    /// Returns the present time.
    fn now(&self) -> Timestamp;
}

/// The clock of the machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the clock")]
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// Why work was told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelReason {
    /// A person pressed Ctrl-C or asked for it.
    User,
    /// The process was told to end.
    Terminated,
    /// The lease on the source went to somebody else.
    LeaseLost,
    /// The time allowed for the job is over.
    Deadline,
}

impl fmt::Display for CancelReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::User => "interrupted by the user",
            Self::Terminated => "told to terminate",
            Self::LeaseLost => "lost the lease on the source",
            Self::Deadline => "ran out of time",
        })
    }
}

/// The work was told to stop, and did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("stopped: {0}")]
pub struct Cancelled(pub CancelReason);

/// Clock, cancellation and listener, handed down as the first argument.
///
/// Cheap to clone; clones share one cancellation.
#[derive(Clone)]
pub struct Cx {
    clock: Arc<dyn Clock>,
    monitor: Arc<dyn Monitor>,
    cancel: Cancel,
}

/// The handle that stops the work of one [`Cx`].
#[derive(Clone, Default)]
pub struct Cancel {
    token: CancellationToken,
    // The first reason wins: what comes later did not stop the work.
    reason: Arc<OnceLock<CancelReason>>,
    /// That of whatever this is a piece of.
    whole: Option<Arc<Cancel>>,
}

impl Cancel {
    /// Asks the work to stop. Later calls change nothing.
    pub fn cancel(&self, reason: CancelReason) {
        self.reason.get_or_init(|| reason);
        self.token.cancel();
    }

    /// Its own, or that of the whole.
    fn reason(&self) -> Option<CancelReason> {
        self.reason.get().copied().or_else(|| self.whole.as_ref()?.reason())
    }
}

impl Cx {
    /// Makes a context with the machine's clock.
    pub fn new(monitor: Arc<dyn Monitor>) -> Self {
        Self::with_clock(monitor, Arc::new(SystemClock))
    }

    /// Makes a context with a clock of the caller's.
    pub fn with_clock(monitor: Arc<dyn Monitor>, clock: Arc<dyn Clock>) -> Self {
        Self { clock, monitor, cancel: Cancel::default() }
    }

    /// Returns a context with the same clock and listener that this one's cancellation does not stop:
    /// for cleaning up after a cancelled piece of work.
    #[must_use]
    pub fn for_cleanup(&self) -> Self {
        Self { cancel: Cancel::default(), ..self.clone() }
    }

    /// Returns a context for a piece of the work, which can be stopped by itself, and is stopped with the whole.
    #[must_use]
    pub fn piece(&self) -> Self {
        let cancel = Cancel {
            token: self.cancel.token.child_token(),
            reason: Arc::default(),
            whole: Some(Arc::new(self.cancel.clone())),
        };
        Self { cancel, ..self.clone() }
    }

    /// Returns a context that somebody else hears, who may pass on what this one's listener is to hear.
    #[must_use]
    pub fn heard_by(&self, listener: impl FnOnce(Arc<dyn Monitor>) -> Arc<dyn Monitor>) -> Self {
        Self { monitor: listener(self.monitor.clone()), ..self.clone() }
    }

    /// Returns the handle that stops this context's work.
    pub fn cancel_handle(&self) -> Cancel {
        self.cancel.clone()
    }

    /// Returns the present time.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Tells the listener; it cannot answer.
    pub fn event(&self, event: Event) {
        self.monitor.event(event);
    }

    /// Returns why the work should stop, if it should.
    pub fn cancelled(&self) -> Option<CancelReason> {
        // The reason is set before the token; a cancelled token always has one.
        if self.cancel.token.is_cancelled() { self.cancel.reason() } else { None }
    }

    /// Fails if the work should stop. Loops call it at each turn.
    pub fn check(&self) -> Result<(), Cancelled> {
        self.cancelled().map_or(Ok(()), |reason| Err(Cancelled(reason)))
    }

    /// Waits until the work should stop.
    pub async fn until_cancelled(&self) -> Cancelled {
        self.cancel.token.cancelled().await;
        Cancelled(self.cancelled().unwrap_or(CancelReason::User))
    }

    /// Runs `work` unless the context is cancelled first; then `work` is dropped.
    pub async fn run<T>(&self, work: impl Future<Output = T>) -> Result<T, Cancelled> {
        tokio::select! {
            biased;
            cancelled = self.until_cancelled() => Err(cancelled),
            done = work => Ok(done),
        }
    }
}

impl fmt::Debug for Cx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cx").field("cancelled", &self.cancelled()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Silent;

    #[test]
    fn piece_is_stopped_by_itself_or_with_the_whole() {
        let whole = Cx::new(Arc::new(Silent));
        let (one, other) = (whole.piece(), whole.piece());
        one.cancel_handle().cancel(CancelReason::LeaseLost);
        assert_eq!(one.cancelled(), Some(CancelReason::LeaseLost));
        assert_eq!((whole.cancelled(), other.cancelled()), (None, None));
        whole.cancel_handle().cancel(CancelReason::Terminated);
        assert_eq!(other.cancelled(), Some(CancelReason::Terminated));
        assert_eq!(one.cancelled(), Some(CancelReason::LeaseLost), "the first reason wins");
        assert_eq!(one.for_cleanup().cancelled(), None);
    }
}

//! Keeping a lease while work goes on.

use std::sync::Arc;
use std::time::Duration;

use backstay_control::{Catalog, Lease, LeaseError};
use backstay_engine::cx::{CancelReason, Cx};
use backstay_engine::event::Event;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

/// The pause between two renewals.
const EVERY: Duration = Duration::from_secs(20);
/// The pause between two tries where the catalog does not answer.
const AGAIN: Duration = Duration::from_secs(2);
/// How long a lease may go without being renewed: others take it ten seconds later.
const PATIENCE: Duration = Duration::from_secs(50);

/// Renews a lease while work goes on; a lost one stops the work. Dropped without a release, it runs out by itself.
pub(crate) struct LeaseGuard {
    catalog: Catalog,
    renewing: JoinSet<()>,
    lease: Arc<Lease>,
    cx: Cx,
}

impl LeaseGuard {
    pub(crate) fn keep(catalog: Catalog, lease: Lease, cx: Cx) -> Self {
        let lease = Arc::new(lease);
        let mut renewing = JoinSet::new();
        renewing.spawn(renew(catalog.clone(), lease.clone(), cx.clone()));
        Self { catalog, renewing, lease, cx }
    }

    /// Returns the lease that is kept.
    pub(crate) fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Gives the lease back. If that fails it runs out by itself, and what was done under it is done.
    pub(crate) async fn release(mut self) {
        self.renewing.shutdown().await;
        if let Some(lease) = Arc::into_inner(self.lease)
            && let Err(error) = self.catalog.release(lease).await
        {
            let text = format!("the lease could not be given back and runs out by itself: {error}");
            self.cx.event(Event::Warning { text });
        }
    }
}

/// Renews a lease until it is lost. A catalog that is away for a moment loses none.
async fn renew(catalog: Catalog, lease: Arc<Lease>, cx: Cx) {
    let mut renewed = Instant::now();
    let mut pause = EVERY;
    loop {
        sleep(pause).await;
        let asked = Instant::now();
        let answer = timeout_at(renewed + PATIENCE, catalog.renew(&lease, cx.now()));
        pause = match answer.await {
            Ok(Ok(())) => {
                renewed = asked;
                EVERY
            }
            Ok(Err(LeaseError::Catalog(_))) if renewed.elapsed() < PATIENCE => AGAIN,
            _ => return cx.cancel_handle().cancel(CancelReason::LeaseLost),
        };
    }
}

//! Keeping a lease while work goes on.

use std::sync::Arc;

use backstay_control::{Catalog, Lease};
use backstay_engine::cx::{CancelReason, Cx};
use backstay_engine::event::Event;

/// Renews a lease while work goes on; a lost one stops the work.
pub(crate) struct LeaseGuard {
    catalog: Catalog,
    renewing: tokio::task::JoinHandle<()>,
    lease: Arc<Lease>,
    cx: Cx,
}

impl LeaseGuard {
    pub(crate) fn keep(catalog: Catalog, lease: Lease, cx: Cx) -> Self {
        let lease = Arc::new(lease);
        let (renewed, with, at) = (lease.clone(), catalog.clone(), cx.clone());
        let renewing = tokio::spawn(async move {
            loop {
                tokio::time::sleep(std::time::Duration::from_secs(20)).await;
                if with.renew(&renewed, at.now()).await.is_err() {
                    return at.cancel_handle().cancel(CancelReason::LeaseLost);
                }
            }
        });
        Self { catalog, renewing, lease, cx }
    }

    /// Returns the lease that is kept.
    pub(crate) fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Gives the lease back. If that fails it runs out by itself, and what was done under it is done.
    pub(crate) async fn release(self) {
        self.renewing.abort();
        // The task is gone or going; what it holds is only a number to renew by.
        drop(self.renewing.await);
        if let Some(lease) = Arc::into_inner(self.lease)
            && let Err(error) = self.catalog.release(lease).await
        {
            let text = format!("the lease could not be given back and runs out by itself: {error}");
            self.cx.event(Event::Warning { text });
        }
    }
}

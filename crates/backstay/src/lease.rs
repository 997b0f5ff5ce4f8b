//! Keeping a lease while work goes on.

use std::sync::Arc;

use backstay_control::{Catalog, Lease};
use backstay_engine::cx::{CancelReason, Cx};

/// Renews a lease while work goes on; a lost one stops the work.
pub(crate) struct LeaseGuard {
    catalog: Catalog,
    renewing: tokio::task::JoinHandle<()>,
    lease: Arc<Lease>,
}

impl LeaseGuard {
    pub(crate) fn keep(catalog: Catalog, lease: Lease, cx: Cx) -> Self {
        let lease = Arc::new(lease);
        let (renewed, with) = (lease.clone(), catalog.clone());
        let renewing = tokio::spawn(async move {
            loop {
                tokio::time::sleep(std::time::Duration::from_secs(20)).await;
                if with.renew(&renewed, cx.now()).await.is_err() {
                    return cx.cancel_handle().cancel(CancelReason::LeaseLost);
                }
            }
        });
        Self { catalog, renewing, lease }
    }

    /// Gives the lease back.
    pub(crate) async fn release(self) -> anyhow::Result<()> {
        self.renewing.abort();
        // The task is gone or going; what it holds is only a number to renew by.
        drop(self.renewing.await);
        if let Some(lease) = Arc::into_inner(self.lease) {
            self.catalog.release(lease).await?;
        }
        Ok(())
    }
}

//! Keeping a lease while work goes on.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backstay_control::{Catalog, Lease, LeaseError};
use backstay_engine::cx::{CancelReason, Cx};
use backstay_engine::event::Event;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

/// The pause between two renewals.
const EVERY: Duration = Duration::from_secs(20);
/// The pause between two tries where the catalog does not answer.
const AGAIN: Duration = Duration::from_secs(2);
/// How long a lease may go without being renewed: others take it ten seconds later.
const PATIENCE: Duration = Duration::from_secs(50);

/// Renews a lease while work goes on; a lost one stops the work. Dropped, as by work that panics, it is given back, too: as
/// long as this process lives nobody else would take it.
pub(crate) struct LeaseGuard {
    catalog: Catalog,
    renewing: JoinSet<()>,
    lease: Arc<Lease>,
    is_released: bool,
    cx: Cx,
}

impl LeaseGuard {
    pub(crate) fn keep(catalog: Catalog, lease: Lease, cx: Cx) -> Self {
        let lease = Arc::new(lease);
        let mut renewing = JoinSet::new();
        renewing.spawn(renew(catalog.clone(), lease.clone(), cx.clone()));
        Self { catalog, renewing, lease, is_released: false, cx }
    }

    /// Returns the lease that is kept.
    pub(crate) fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Gives the lease back. Where that fails it is tried again and again beside all else: nobody takes a lease from a process
    /// that lives.
    pub(crate) async fn release(mut self) {
        self.renewing.shutdown().await;
        self.is_released = true;
        if let Err(error) = self.catalog.release(&self.lease).await {
            let text = format!("the lease could not be given back; it is tried again: {error}");
            self.cx.event(Event::Warning { text });
            drop(tokio::spawn(give_back(self.catalog.clone(), self.lease.clone())));
        }
    }
}

impl Drop for LeaseGuard {
    fn drop(&mut self) {
        self.renewing.abort_all();
        if self.is_released {
            return;
        }
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(give_back(self.catalog.clone(), self.lease.clone()));
        }
    }
}

/// Says whether something could not be done since somebody else works on its source.
pub(crate) fn is_held(error: &anyhow::Error) -> bool {
    error.downcast_ref::<LeaseError>().is_some_and(LeaseError::is_held)
}

async fn give_back(catalog: Catalog, lease: Arc<Lease>) {
    while catalog.release(&lease).await.is_err() {
        sleep(AGAIN).await;
    }
}

/// Asks for a lease to be renewed.
#[async_trait]
pub(crate) trait Renew: Send {
    async fn renew(&mut self) -> Renewal;
}

/// What came of it.
pub(crate) enum Renewal {
    Renewed,
    /// Nobody answered who would know.
    Unknown,
    Lost,
}

/// Renews a lease until it is lost, which stops the work. That nobody answers for a moment loses none.
pub(crate) async fn renew_until_lost(cx: &Cx, every: Duration, asked: &mut dyn Renew) {
    let mut renewed = Instant::now();
    let mut pause = every;
    loop {
        sleep(pause).await;
        let now = Instant::now();
        pause = match timeout_at(renewed + PATIENCE, asked.renew()).await {
            Ok(Renewal::Renewed) => {
                renewed = now;
                every
            }
            Ok(Renewal::Unknown) if renewed.elapsed() < PATIENCE => AGAIN,
            _ => return cx.cancel_handle().cancel(CancelReason::LeaseLost),
        };
    }
}

/// A lease, in its catalog.
struct InCatalog(Catalog, Arc<Lease>, Cx);

#[async_trait]
impl Renew for InCatalog {
    async fn renew(&mut self) -> Renewal {
        let Self(catalog, lease, cx) = self;
        match catalog.renew(lease, cx.now()).await {
            Ok(()) => Renewal::Renewed,
            Err(LeaseError::Catalog(_)) => Renewal::Unknown,
            Err(LeaseError::Held { .. } | LeaseError::Lost { .. }) => Renewal::Lost,
        }
    }
}

async fn renew(catalog: Catalog, lease: Arc<Lease>, cx: Cx) {
    renew_until_lost(&cx.clone(), EVERY, &mut InCatalog(catalog, lease, cx)).await;
}

#[cfg(test)]
mod tests {
    use backstay_control::{Holder, Home, MasterKey};
    use backstay_engine::event::Silent;
    use tokio::time::timeout;

    use super::*;

    /// A catalog, and the lease on a source in it that this process keeps.
    async fn kept(dir: &tempfile::TempDir) -> (Home, Catalog, LeaseGuard) {
        let home = Home::open(&dir.path().join("home")).unwrap();
        let key = MasterKey::load(&home, None, None).unwrap();
        let catalog = Catalog::open(&home, key).await.unwrap();
        let cx = Cx::new(Arc::new(Silent));
        let me = Holder::this_process("here");
        let lease = catalog.lease("shop", &me, cx.now()).await.unwrap();
        (home, catalog.clone(), LeaseGuard::keep(catalog, lease, cx))
    }

    async fn take(catalog: &Catalog) -> Result<Lease, LeaseError> {
        let now = Cx::new(Arc::new(Silent)).now();
        catalog.lease("shop", &Holder::this_process("here"), now).await
    }

    async fn wait_until_free(catalog: &Catalog) {
        let freed = async {
            while take(catalog).await.is_err() {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(60), freed).await.expect("nobody works on it any more");
    }

    #[tokio::test]
    async fn lease_of_work_that_panics_is_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let (_, catalog, guard) = kept(&dir).await;
        let work = tokio::spawn(async move {
            let _kept = guard;
            panic!("the work panics");
        });
        assert!(work.await.unwrap_err().is_panic());
        wait_until_free(&catalog).await;
    }

    #[tokio::test]
    async fn lease_that_could_not_be_given_back_is_given_back_when_the_catalog_answers() {
        let dir = tempfile::tempdir().unwrap();
        let (home, catalog, guard) = kept(&dir).await;
        let writer = rusqlite::Connection::open(home.catalog()).unwrap();
        writer.execute_batch("BEGIN IMMEDIATE").unwrap();
        guard.release().await;
        assert!(take(&catalog).await.unwrap_err().is_held());
        writer.execute_batch("ROLLBACK").unwrap();
        wait_until_free(&catalog).await;
    }
}

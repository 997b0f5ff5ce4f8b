//! What is done through a tunnel says so when it fails because the tunnel ended: that a connection was closed helps nobody.

use async_trait::async_trait;
use backstay_format::{Details, MediaType, PartName};

use super::connection::Connection;
use super::tunnel::Tunnel;
use super::{Applied, Capture, Loaded, Outlook, SourceError, Target};
use crate::cx::Cx;
use crate::error::EngineError;
use crate::part::{CaptureReport, PartReader};
use crate::swap::{Direction, Replacement, Swap, Swapper};

/// Work that goes through a tunnel.
struct Tunnelled<T> {
    tunnel: Tunnel,
    inner: Box<T>,
}

/// Reads over a connection.
pub(super) fn capture(connection: &Connection, inner: impl Capture + 'static) -> Box<dyn Capture> {
    let inner = Box::new(inner);
    match connection.tunnel.clone() {
        None => inner,
        Some(tunnel) => Box::new(Tunnelled { tunnel, inner }),
    }
}

/// Loads over a connection.
pub(super) fn target(connection: &Connection, inner: impl Target + 'static) -> Box<dyn Target> {
    let inner = Box::new(inner);
    match connection.tunnel.clone() {
        None => inner,
        Some(tunnel) => Box::new(Tunnelled { tunnel, inner }),
    }
}

/// Swaps over a connection.
pub(super) fn swapper(connection: &Connection, inner: impl Swapper + 'static) -> Box<dyn Swapper> {
    let inner = Box::new(inner);
    match connection.tunnel.clone() {
        None => inner,
        Some(tunnel) => Box::new(Tunnelled { tunnel, inner }),
    }
}

async fn explained<T>(tunnel: &Tunnel, done: Result<T, SourceError>) -> Result<T, SourceError> {
    match done {
        Ok(done) => Ok(done),
        Err(error @ SourceError::Cancelled(_)) => Err(error),
        Err(error) => Err(match tunnel.end().await {
            Some(end) => SourceError::TunnelEnded { end, cause: Box::new(error) },
            None => error,
        }),
    }
}

async fn swapped<T>(tunnel: &Tunnel, done: Result<T, EngineError>) -> Result<T, EngineError> {
    match done {
        Err(EngineError::Source(error)) => Ok(explained(tunnel, Err(error)).await?),
        done => done,
    }
}

#[async_trait]
impl<T: Capture> Capture for Tunnelled<T> {
    async fn next_part(&mut self, cx: &Cx) -> Result<Option<PartReader>, SourceError> {
        let next = self.inner.next_part(cx).await;
        explained(&self.tunnel, next).await
    }

    fn goes_on(&self) -> bool {
        self.inner.goes_on()
    }

    async fn finish(self: Box<Self>, cx: &Cx) -> Result<CaptureReport, SourceError> {
        let finished = self.inner.finish(cx).await;
        explained(&self.tunnel, finished).await
    }
}

#[async_trait]
impl<T: Target> Target for Tunnelled<T> {
    async fn outlook(&self, cx: &Cx, details: &Details) -> Result<Outlook, SourceError> {
        let outlook = self.inner.outlook(cx, details).await;
        explained(&self.tunnel, outlook).await
    }

    async fn prepare(&mut self, cx: &Cx, details: &Details) -> Result<(), SourceError> {
        let prepared = self.inner.prepare(cx, details).await;
        explained(&self.tunnel, prepared).await
    }

    fn wants(&self, part: &PartName, media_type: MediaType) -> bool {
        self.inner.wants(part, media_type)
    }

    async fn apply(&mut self, cx: &Cx, data: PartReader) -> Result<Applied, SourceError> {
        let applied = self.inner.apply(cx, data).await;
        explained(&self.tunnel, applied).await
    }

    async fn finish(self: Box<Self>, cx: &Cx) -> Result<Loaded, SourceError> {
        let finished = self.inner.finish(cx).await;
        explained(&self.tunnel, finished).await
    }

    async fn discard(self: Box<Self>, cx: &Cx) -> Result<(), SourceError> {
        let discarded = self.inner.discard(cx).await;
        explained(&self.tunnel, discarded).await
    }
}

#[async_trait]
impl<T: Swapper> Swapper for Tunnelled<T> {
    async fn plan(
        &self,
        cx: &Cx,
        replacement: &Replacement,
        direction: Direction,
    ) -> Result<Swap, EngineError> {
        let planned = self.inner.plan(cx, replacement, direction).await;
        swapped(&self.tunnel, planned).await
    }

    async fn run(&self, cx: &Cx, swap: &Swap) -> Result<(), EngineError> {
        let run = self.inner.run(cx, swap).await;
        swapped(&self.tunnel, run).await
    }

    async fn roll_back(&self, cx: &Cx, swap: &Swap) -> Result<(), EngineError> {
        let rolled_back = self.inner.roll_back(cx, swap).await;
        swapped(&self.tunnel, rolled_back).await
    }

    async fn replaced_nothing(
        &self,
        cx: &Cx,
        replacement: &Replacement,
    ) -> Result<bool, EngineError> {
        let answer = self.inner.replaced_nothing(cx, replacement).await;
        swapped(&self.tunnel, answer).await
    }

    async fn can_go_back(&self, cx: &Cx, replacement: &Replacement) -> Result<bool, EngineError> {
        let answer = self.inner.can_go_back(cx, replacement).await;
        swapped(&self.tunnel, answer).await
    }

    async fn discard(&self, cx: &Cx, replacement: &Replacement) -> Result<(), EngineError> {
        let discarded = self.inner.discard(cx, replacement).await;
        swapped(&self.tunnel, discarded).await
    }

    async fn sweep(&self, cx: &Cx, known: &[Replacement]) -> Result<Vec<String>, EngineError> {
        let swept = self.inner.sweep(cx, known).await;
        swapped(&self.tunnel, swept).await
    }
}

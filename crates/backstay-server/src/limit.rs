//! So many connections at a time, and no more: each is an open file, and backups need some, too.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum_server::accept::Accept;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections at a time: a worker has one for its wait and one for each job, and processes usually may open 1024 files.
const CONNECTIONS: usize = 200;

/// Accepts connections as another does, until there are too many: those are ended at once.
#[derive(Debug, Clone)]
pub(crate) struct Limited<A> {
    inner: A,
    places: Arc<Semaphore>,
}

/// A connection, and its place.
pub(crate) struct Placed<S> {
    inner: S,
    _place: OwnedSemaphorePermit,
}

impl<A> Limited<A> {
    pub(crate) fn new(inner: A) -> Self {
        Self { inner, places: Arc::new(Semaphore::new(CONNECTIONS)) }
    }
}

impl<I, S, A> Accept<I, S> for Limited<A>
where
    A: Accept<I, S>,
    A::Future: Send + 'static,
    A::Stream: Send,
    A::Service: Send,
{
    type Stream = Placed<A::Stream>;
    type Service = A::Service;
    type Future = Pin<Box<dyn Future<Output = io::Result<(Self::Stream, Self::Service)>> + Send>>;

    fn accept(&self, stream: I, service: S) -> Self::Future {
        match self.places.clone().try_acquire_owned() {
            Ok(place) => {
                let accepted = self.inner.accept(stream, service);
                Box::pin(async move {
                    let (inner, service) = accepted.await?;
                    Ok((Placed { inner, _place: place }, service))
                })
            }
            Err(_) => Box::pin(async { Err(io::Error::other("too many connections")) }),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Placed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Placed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

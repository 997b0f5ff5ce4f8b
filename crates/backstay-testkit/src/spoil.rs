//! Bodies that are damaged on their way.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Lets half of the first bytes through, then breaks off. The announced length stays.
pub(crate) fn cut<B>(inner: B) -> s3s::Body
where
    B: Body<Data = Bytes, Error: Into<Error>> + Send + Sync + Unpin + 'static,
{
    s3s::Body::http_body(Spoilt { inner, damage: Damage::Cut })
}

/// Turns one bit of the first bytes.
pub(crate) fn flip<B>(inner: B) -> s3s::Body
where
    B: Body<Data = Bytes, Error: Into<Error>> + Send + Sync + Unpin + 'static,
{
    s3s::Body::http_body(Spoilt { inner, damage: Damage::Flip })
}

struct Spoilt<B> {
    inner: B,
    damage: Damage,
}

/// What is still to be done to the body.
enum Damage {
    Cut,
    BreakOff,
    Flip,
    Nothing,
}

impl<B> Body for Spoilt<B>
where
    B: Body<Data = Bytes, Error: Into<Error>> + Unpin,
{
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if let Damage::BreakOff = self.damage {
            return Poll::Ready(Some(Err("cut by the test's script".into())));
        }
        let frame = match ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
            None => return Poll::Ready(None),
        };
        let data = match frame.into_data() {
            Ok(data) if !data.is_empty() => data,
            Ok(data) => return Poll::Ready(Some(Ok(Frame::data(data)))),
            Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
        };
        let middle = data.len() / 2;
        let data = match std::mem::replace(&mut self.damage, Damage::Nothing) {
            Damage::Cut => {
                self.damage = Damage::BreakOff;
                data.slice(..middle)
            }
            Damage::Flip => {
                let mut data = data.to_vec();
                data[middle] ^= 1;
                data.into()
            }
            Damage::BreakOff | Damage::Nothing => data,
        };
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream() && !matches!(self.damage, Damage::BreakOff)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

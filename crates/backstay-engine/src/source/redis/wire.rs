//! Speaking with a server of Redis' kind (RESP, its second version).

use std::io;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
    ReadHalf, WriteHalf,
};

use super::error::{RedisError, statement};

/// How long a server may take for what it was sent before a session ended.
const END_TIMEOUT: Duration = Duration::from_secs(30);
/// Of a line that announces something, and of an error's text.
const MAX_LINE_BYTES: u64 = 64 * 1024;
/// No string of these servers is longer.
const MAX_STRING_BYTES: usize = 512 << 20;
/// Of what stands in each other.
const MAX_DEPTH: u32 = 8;

/// What a server and we send each other through.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A session with a server.
pub(super) struct Session {
    pub(super) reading: Replies,
    pub(super) writing: WriteHalf<Box<dyn Stream>>,
}

/// What a server answers.
pub(super) struct Replies(BufReader<ReadHalf<Box<dyn Stream>>>);

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    Status(String),
    Error(String),
    Number(i64),
    Text(Vec<u8>),
    List(Vec<Reply>),
    Nothing,
}

impl Reply {
    /// Returns it as text, for a person or a comparison.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Status(text) | Self::Error(text) => text.clone(),
            Self::Number(number) => number.to_string(),
            Self::Text(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Self::List(list) => list.iter().map(Self::text).collect::<Vec<_>>().join("|"),
            Self::Nothing => String::new(),
        }
    }

    /// Returns what it is a list of.
    pub(super) fn list(self) -> Vec<Self> {
        if let Self::List(list) = self { list } else { Vec::new() }
    }

    pub(super) fn number(&self) -> Option<i64> {
        if let Self::Number(number) = self { Some(*number) } else { None }
    }
}

/// Writes a command.
pub(super) fn encode(words: &[&[u8]]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
    out
}

impl Session {
    pub(super) fn new(stream: Box<dyn Stream>) -> Self {
        let (reading, writing) = tokio::io::split(stream);
        Self { reading: Replies(BufReader::new(reading)), writing }
    }

    /// Ends the session, and waits until the server has done all that it was sent before: it closes its side only then.
    pub(super) async fn end(mut self) {
        let ended = async {
            self.writing.shutdown().await?;
            tokio::io::copy(&mut self.reading.0, &mut tokio::io::sink()).await
        };
        let ended: io::Result<io::Result<u64>> =
            tokio::time::timeout(END_TIMEOUT, ended).await.map_err(Into::into);
        if let Err(error) = ended.flatten() {
            // Where the way is broken, there is nothing to wait for.
            tracing::debug!(%error, "a session did not end as it should");
        }
    }

    /// Sends a command and waits for its answer, which may be an error.
    pub(super) async fn exchange(&mut self, words: &[&[u8]]) -> io::Result<Reply> {
        self.send(words).await?;
        self.reading.next().await
    }

    /// Sends a command.
    pub(super) async fn send(&mut self, words: &[&[u8]]) -> io::Result<()> {
        self.writing.write_all(&encode(words)).await?;
        self.writing.flush().await
    }

    /// Sends a command. An error as its answer is a failure to `action`.
    pub(super) async fn ask(
        &mut self,
        action: &'static str,
        words: &[&[u8]],
    ) -> Result<Reply, RedisError> {
        match self.exchange(words).await {
            Ok(Reply::Error(finding)) => Err(statement(action, &finding)),
            Ok(reply) => Ok(reply),
            Err(error) => Err(RedisError::Broken { action, cause: error }),
        }
    }

    /// Sends several commands at once. An error among the answers is a failure to `action`.
    pub(super) async fn ask_all(
        &mut self,
        action: &'static str,
        commands: &[Vec<Vec<u8>>],
    ) -> Result<Vec<Reply>, RedisError> {
        let broken = |cause| RedisError::Broken { action, cause };
        let mut out = Vec::new();
        for command in commands {
            let words: Vec<&[u8]> = command.iter().map(Vec::as_slice).collect();
            out.extend_from_slice(&encode(&words));
        }
        self.writing.write_all(&out).await.map_err(broken)?;
        self.writing.flush().await.map_err(broken)?;
        let mut replies = Vec::with_capacity(commands.len());
        let mut refused = None;
        for _ in commands {
            match self.reading.next().await.map_err(broken)? {
                Reply::Error(finding) => refused = refused.or(Some(finding)),
                reply => replies.push(reply),
            }
        }
        match refused {
            Some(finding) => Err(statement(action, &finding)),
            None => Ok(replies),
        }
    }
}

impl Replies {
    /// Returns the next answer.
    pub(super) async fn next(&mut self) -> io::Result<Reply> {
        self.nested(0).await
    }

    fn nested(&mut self, depth: u32) -> BoxFuture<'_, io::Result<Reply>> {
        Box::pin(async move {
            let line = self.line().await?;
            let (kind, rest) = line.split_at_checked(1).ok_or_else(strange)?;
            let count = || rest.parse::<i64>().map_err(|_| strange());
            Ok(match kind {
                "+" => Reply::Status(rest.to_owned()),
                "-" => Reply::Error(rest.to_owned()),
                ":" => Reply::Number(count()?),
                "$" => match usize::try_from(count()?) {
                    Err(_) => Reply::Nothing,
                    Ok(bytes) if bytes > MAX_STRING_BYTES => return Err(strange()),
                    Ok(bytes) => Reply::Text(self.text(bytes).await?),
                },
                "*" => match u64::try_from(count()?) {
                    Err(_) => Reply::Nothing,
                    Ok(_) if depth == MAX_DEPTH => return Err(strange()),
                    Ok(items) => {
                        let mut list = Vec::new();
                        for _ in 0..items {
                            list.push(self.nested(depth + 1).await?);
                        }
                        Reply::List(list)
                    }
                },
                _ => return Err(strange()),
            })
        })
    }

    /// Reads a line, without what ends it.
    pub(super) async fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        (&mut self.0).take(MAX_LINE_BYTES).read_until(b'\n', &mut line).await?;
        match line.strip_suffix(b"\n") {
            None if line.is_empty() => Err(io::ErrorKind::UnexpectedEof.into()),
            None => Err(strange()),
            Some(line) => {
                let line = line.strip_suffix(b"\r").unwrap_or(line);
                Ok(String::from_utf8_lossy(line).into_owned())
            }
        }
    }

    /// Reads a text of known length and what ends it.
    async fn text(&mut self, bytes: usize) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        (&mut self.0).take(bytes as u64 + 2).read_to_end(&mut text).await?;
        if text.len() != bytes + 2 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        text.truncate(bytes);
        Ok(text)
    }

    /// Reads some of the bytes that come; none at the end.
    pub(super) async fn some(&mut self, into: &mut bytes::BytesMut) -> io::Result<usize> {
        self.0.read_buf(into).await
    }
}

fn strange() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the answer is none of a Redis server")
}

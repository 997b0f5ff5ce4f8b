//! Reading what programs write.

use std::collections::VecDeque;
use std::process::Stdio;

use async_trait::async_trait;
use backstay_format::{CommandContent, Content, MediaType};
use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{ChildStdin, ChildStdout};
use tokio::task::JoinSet;

use super::run::{command, limited};
use super::{CommandError, CommandSource, Output, refused};
use crate::cx::Cx;
use crate::part::{CHUNK_BYTES, CaptureReport, PartReader, PartSpec, PartWriter, part_pipe};
use crate::source::program::{Program, widen};
use crate::source::{Capture, SourceError};

/// Outputs that are read, one after the other.
pub(super) struct OutputCapture {
    cx: Cx,
    source: CommandSource,
    waiting: VecDeque<Output>,
    /// The one that runs; it ends with this.
    running: JoinSet<Result<(), SourceError>>,
}

impl OutputCapture {
    pub(super) fn new(cx: &Cx, source: &CommandSource) -> Self {
        let waiting = source.outputs.iter().cloned().collect();
        Self { cx: cx.clone(), source: source.clone(), waiting, running: JoinSet::new() }
    }

    /// Waits for the output that was read last.
    async fn settle(&mut self) -> Result<(), SourceError> {
        match self.running.join_next().await {
            None => Ok(()),
            Some(Ok(done)) => done,
            Some(Err(_died)) => Err(refused("the task that reads an output died")),
        }
    }
}

/// Programs that write an output, and look at it.
struct Dumping {
    output: Output,
    dump: Program,
    stdout: ChildStdout,
    check: Option<(Program, Option<ChildStdin>)>,
}

impl Dumping {
    fn start(source: &CommandSource, output: Output) -> Result<Self, SourceError> {
        let mut dumping = command(source, &output.dump);
        dumping.stdout(Stdio::piped());
        let mut dump = Program::start(&output.dump.program, dumping)?;
        let stdout = dump.child.stdout.take();
        let stdout = stdout.ok_or_else(|| refused("the output cannot be read"))?;
        widen(&stdout);
        let check = match &output.check {
            None => None,
            Some(argv) => {
                let mut checking = command(source, argv);
                checking.stdin(Stdio::piped());
                let mut check = Program::start(&argv.program, checking)?;
                let stdin = check.child.stdin.take();
                Some((check, stdin))
            }
        };
        Ok(Self { output, dump, stdout, check })
    }

    /// Reads to the end. The part ends well only if both programs did, and if there is enough of it.
    async fn finish(mut self, mut part: PartWriter) -> Result<(), SourceError> {
        let bytes = self.read(&mut part).await?;
        let status = self.dump.wait().await?;
        self.dump.judge(status).await?;
        if let Some((mut check, stdin)) = self.check {
            // The end of what it reads.
            drop(stdin);
            let status = check.wait().await?;
            check.judge(status).await?;
        }
        let Output { name, min_bytes, .. } = self.output;
        if bytes < min_bytes {
            return Err(CommandError::TooSmall { name, bytes, min_bytes }.into());
        }
        part.finish_async().await;
        Ok(())
    }

    async fn read(&mut self, part: &mut PartWriter) -> Result<u64, SourceError> {
        let mut bytes = 0;
        loop {
            let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
            let failed =
                |cause| SourceError::io("read the output of", &self.output.dump.program, cause);
            if self.stdout.read_buf(&mut chunk).await.map_err(failed)? == 0 {
                return Ok(bytes);
            }
            let chunk = chunk.freeze();
            bytes += chunk.len() as u64;
            if let Some((_, stdin)) = &mut self.check
                && let Some(open) = stdin
                && open.write_all(&chunk).await.is_err()
            {
                // It has seen enough; how it ends counts.
                *stdin = None;
            }
            // Whoever read it has an error of its own; the programs end with this one.
            part.send(chunk).await.map_err(|gone| failed(gone.into()))?;
        }
    }
}

#[async_trait]
impl Capture for OutputCapture {
    async fn next_part(&mut self, _cx: &Cx) -> Result<Option<PartReader>, SourceError> {
        self.settle().await?;
        let Some(output) = self.waiting.pop_front() else { return Ok(None) };
        let media_type = MediaType::Output;
        let spec = PartSpec { name: output.name.clone(), media_type, estimate_bytes: None };
        let (writer, reader) = part_pipe(spec);
        let limit = (output.dump.clone(), output.timeout);
        let dumping = Dumping::start(&self.source, output)?;
        let cx = self.cx.clone();
        let running =
            async move { limited(&cx, (&limit.0, limit.1), dumping.finish(writer)).await };
        drop(self.running.spawn(running));
        Ok(Some(reader))
    }

    async fn finish(mut self: Box<Self>, _cx: &Cx) -> Result<CaptureReport, SourceError> {
        self.settle().await?;
        let outputs = self.source.outputs.iter().map(|output| output.name.clone()).collect();
        let content = Some(Content::Command(CommandContent { outputs }));
        Ok(CaptureReport { content, ..CaptureReport::default() })
    }
}

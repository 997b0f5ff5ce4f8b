//! Keeping what a restore will give to programs, until all of it is proven.

use std::path::Path;

use async_trait::async_trait;
use backstay_format::{Content, Details, MediaType, PartName};

use super::exchange::{Kept, KeptOutput};
use super::{CommandSource, Output, refused, run};
use crate::cx::Cx;
use crate::part::PartReader;
use crate::source::{
    Applied, ApplyReport, How, Loaded, Outlook, SourceError, Target, TargetOptions,
};
use crate::spool::{Spool, write_part};
use crate::swap;

/// Files with the outputs of a backup.
pub(super) struct CommandTarget {
    source: CommandSource,
    options: TargetOptions,
    spool: Option<Spool>,
    kept: Vec<KeptOutput>,
    report: ApplyReport,
}

impl CommandTarget {
    pub(super) fn new(source: &CommandSource, options: TargetOptions) -> Self {
        let report = ApplyReport::default();
        Self { source: source.clone(), options, spool: None, kept: Vec::new(), report }
    }

    /// A drill proves and checks, and gives nothing to a program that replaces.
    fn is_drill(&self) -> bool {
        self.options.is_drill
    }

    fn is_chosen(&self, name: &PartName) -> bool {
        let only = &self.options.only;
        only.is_empty() || only.iter().any(|path| path == Path::new(name.as_str()))
    }

    /// Returns the outputs that are to be restored, in the order of the backup.
    fn wanted(&self, details: &Details) -> Result<Vec<&Output>, SourceError> {
        if self.options.to.is_some() {
            return Err(refused(
                "only the restore command knows where it writes to; --to-file gives the output itself",
            ));
        }
        let Some(Content::Command(content)) = &details.content else {
            return Err(refused("the backup is not of programs' outputs"));
        };
        if let Some(path) = self
            .options
            .only
            .iter()
            .find(|path| !content.outputs.iter().any(|name| Path::new(name.as_str()) == *path))
        {
            return Err(SourceError::NothingMatches { path: path.clone() });
        }
        let chosen = content.outputs.iter().filter(|name| self.is_chosen(name));
        let wanted = chosen.map(|name| match self.source.output(name) {
            Some(output) if output.restore.is_some() || self.is_drill() => Ok(output),
            _ => Err(refused(format!(
                "there is no restore command for {name}; set it at the output of this name, or take the output with --to-file"
            ))),
        });
        wanted.collect()
    }
}

#[async_trait]
impl Target for CommandTarget {
    async fn outlook(&self, _cx: &Cx, details: &Details) -> Result<Outlook, SourceError> {
        let mut programs = Vec::new();
        let mut warnings = Vec::new();
        for output in self.wanted(details)? {
            for argv in [&output.restore, &output.check].into_iter().flatten() {
                run::find(argv, &output.name)?;
            }
            programs.extend(output.restore.as_ref().map(ToString::to_string));
            if self.is_drill() && output.check.is_none() {
                warnings
                    .push(format!("{} has no check, so only its bytes are proven", output.name));
            }
        }
        Ok(Outlook {
            target: format!("what these replace: {}", programs.join("; ")),
            replaces: !self.is_drill(),
            how: How::Programs,
            engine: None,
            present: None,
            warnings,
        })
    }

    async fn prepare(&mut self, _cx: &Cx, details: &Details) -> Result<(), SourceError> {
        self.wanted(details)?;
        self.spool = Some(Spool::create(&self.source.spool)?);
        Ok(())
    }

    fn wants(&self, part: &PartName, _media_type: MediaType) -> bool {
        self.is_chosen(part)
    }

    async fn apply(&mut self, _cx: &Cx, data: PartReader) -> Result<Applied, SourceError> {
        let spool = self.spool.as_ref().ok_or_else(|| refused("nothing was prepared"))?;
        let name = data.spec.name.clone();
        if data.spec.media_type != MediaType::Output {
            return Err(SourceError::UnknownPart { part: name });
        }
        // Its own name may lead out of the folder.
        let file = format!("output-{}", self.kept.len());
        let path = spool.file(&file, data.spec.estimate_bytes.unwrap_or(0))?;
        let written = path.clone();
        let writing = tokio::task::spawn_blocking(move || write_part(data, &written));
        let (_, bytes) =
            writing.await.map_err(|_died| refused("the thread that keeps the output died"))??;
        self.report.bytes += bytes;
        self.report.items += 1;
        self.kept.push(KeptOutput { name, file: path });
        Ok(Applied::Done)
    }

    async fn finish(mut self: Box<Self>, cx: &Cx) -> Result<Loaded, SourceError> {
        let spool = self.spool.take().ok_or_else(|| refused("nothing was prepared"))?;
        for kept in &self.kept {
            if let Some(output) = self.source.output(&kept.name)
                && let Some(check) = &output.check
            {
                run::take(cx, &self.source, (check, output.timeout), &kept.file).await?;
            }
        }
        let replacement = Kept { folder: spool.keep(), outputs: self.kept };
        Ok(Loaded { report: self.report, replacement: swap::Replacement::Command(replacement) })
    }

    async fn discard(self: Box<Self>, _cx: &Cx) -> Result<(), SourceError> {
        // The spool folder goes with it.
        Ok(())
    }
}

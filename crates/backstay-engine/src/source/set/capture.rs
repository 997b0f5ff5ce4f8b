//! Reading the members of a set, one after the other.

use async_trait::async_trait;
use backstay_format::{Content, SetContent, SetMember};

use super::SetSource;
use crate::cx::Cx;
use crate::part::{CaptureReport, PartReader};
use crate::source::several::{Read, Server, ServerCapture, Wanted};
use crate::source::{Capture, SourceError, databases};

/// Begins to read.
pub(super) fn begin(source: &SetSource) -> Result<Box<dyn Capture>, SourceError> {
    let found = source.members.find(&source.root);
    if found.members.is_empty() && found.errors.is_empty() {
        let expected = format!("a set of databases: nothing below it is like {}", source.members);
        return Err(SourceError::NoMember { name: source.root.display().to_string(), expected });
    }
    let warnings = found.warnings();
    let names = found.members.into_iter().map(|member| member.name).collect();
    let wanted = Wanted { databases: names, missing: found.errors };
    let mut capture =
        ServerCapture::new(Reader { source: source.clone() }, None, Vec::new(), wanted);
    warnings.into_iter().for_each(|warning| capture.warn(warning));
    Ok(Box::new(capture))
}

/// Reads members.
struct Reader {
    source: SetSource,
}

/// Returns the folder of a member's parts.
pub(super) fn folder(name: &str) -> String {
    match name.split_once('/') {
        Some((group, id)) => format!("{group}/{}", databases::safe_name(id)),
        None => name.to_owned(),
    }
}

#[async_trait]
impl Server for Reader {
    fn folder(&self, name: &str) -> String {
        folder(name)
    }

    async fn open(
        &self,
        cx: &Cx,
        name: &str,
        folder: &str,
    ) -> Result<Box<dyn Capture>, SourceError> {
        let Some(path) = self.source.members.path_of(&self.source.root, name) else {
            let expected = "the name of a member".to_owned();
            return Err(SourceError::NoMember { name: name.to_owned(), expected });
        };
        let inner = self.source.member(path).capture(cx).await?;
        Ok(Box::new(InFolder { inner, folder: folder.to_owned() }))
    }

    fn content(self, members: Vec<Read>) -> Content {
        let member = |Read { name, folder, taken_at, report }: Read| {
            Some(SetMember { name, folder, taken_at, content: Box::new(report.content?) })
        };
        Content::Set(SetContent { members: members.into_iter().filter_map(member).collect() })
    }
}

/// A capture whose parts lie in a folder.
struct InFolder {
    inner: Box<dyn Capture>,
    folder: String,
}

#[async_trait]
impl Capture for InFolder {
    async fn next_part(&mut self, cx: &Cx) -> Result<Option<PartReader>, SourceError> {
        let Some(mut part) = self.inner.next_part(cx).await? else { return Ok(None) };
        let name = format!("{}/{}", self.folder, part.spec.name);
        part.spec.name = name.parse().map_err(|error| SourceError::NoMember {
            name: name.clone(),
            expected: format!("the name of a part: {error}"),
        })?;
        Ok(Some(part))
    }

    async fn finish(self: Box<Self>, cx: &Cx) -> Result<CaptureReport, SourceError> {
        self.inner.finish(cx).await
    }
}

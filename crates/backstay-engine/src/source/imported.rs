//! What was loaded of dumps: how it goes away, and what lies in a folder of the spool directory.

use async_trait::async_trait;

use super::{Capture, Imported, Source, SourceError};
use crate::cx::Cx;
use crate::event::Event;
use crate::part::CaptureReport;
use crate::spool::Spool;

/// Removes what was loaded. That this fails makes neither what was made of it worse nor its error better.
pub(crate) async fn discard(cx: &Cx, imported: Box<dyn Imported>) {
    if let Err(error) = imported.discard(&cx.for_cleanup()).await {
        let text = format!(
            "what was loaded could not be removed, the next import or restore does: {error}"
        );
        cx.event(Event::Warning { text });
    }
}

/// Something in a folder of the spool directory, as a source of its own.
pub(super) struct Unpacked {
    source: Box<dyn Source>,
    warnings: Vec<String>,
    /// It goes away with this.
    _spool: Spool,
}

impl Unpacked {
    pub(super) fn new(spool: Spool, source: impl Source + 'static, warnings: Vec<String>) -> Self {
        Self { source: Box::new(source), warnings, _spool: spool }
    }
}

#[async_trait]
impl Imported for Unpacked {
    async fn capture(&self, cx: &Cx) -> Result<Box<dyn Capture>, SourceError> {
        self.source.capture(cx).await
    }

    fn prove(&self, mut captured: CaptureReport) -> Result<CaptureReport, SourceError> {
        captured.warnings.extend(self.warnings.iter().cloned());
        Ok(captured)
    }

    async fn discard(self: Box<Self>, _cx: &Cx) -> Result<(), SourceError> {
        Ok(())
    }
}

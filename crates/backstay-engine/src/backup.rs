//! Backing up, from top to bottom: capture, write each part, finish, commit.

use backstay_format::IndexEntry;

use crate::cx::Cx;
use crate::error::EngineError;
use crate::event::Event;
use crate::part::{CaptureReport, PartError};
use crate::source::{Capture, Source, SourceError};
use crate::vault::{BackupWriter, Draft, Vault};

/// Makes a backup of a source. When this returns, the backup is durable and proven to be readable.
///
/// A failure leaves no backup: what was written is removed again, as far as the storage lets us.
pub async fn backup(
    cx: &Cx,
    source: &dyn Source,
    vault: &Vault,
    draft: Draft,
) -> Result<IndexEntry, EngineError> {
    cx.event(Event::Step { what: "reading the source".to_owned() });
    Box::pin(store(cx, (vault, draft), source.capture(cx), Ok)).await
}

/// Writes what is read into a vault, if what is said of it in the end stands up to judgement.
pub(crate) async fn store(
    cx: &Cx,
    (vault, draft): (&Vault, Draft),
    reading: impl Future<Output = Result<Box<dyn Capture>, SourceError>>,
    judge: impl FnOnce(CaptureReport) -> Result<CaptureReport, SourceError>,
) -> Result<IndexEntry, EngineError> {
    // The source is looked at while the vault is asked; until both are well, nothing is written.
    let reading = async { Ok(reading.await?) };
    let (mut writer, capture) = tokio::try_join!(vault.begin(cx, draft), reading)?;
    let written = write_parts(cx, capture, &mut writer).await;
    let captured = match written.and_then(|captured| Ok(judge(captured)?)) {
        Ok(captured) => captured,
        Err(error) => {
            writer.discard(&cx.for_cleanup()).await;
            return Err(error);
        }
    };
    // From here on a stop would come too late to matter: what is read is stored, only the manifest is missing.
    writer.commit(cx, captured).await
}

async fn write_parts(
    cx: &Cx,
    mut capture: Box<dyn Capture>,
    writer: &mut BackupWriter,
) -> Result<CaptureReport, EngineError> {
    while let Some(part) = capture.next_part(cx).await? {
        if let Err(error) = writer.write_part(cx, part).await {
            if is_cut_short(&error) && capture.goes_on() {
                continue;
            }
            // A part that was cut short is a symptom; the capture knows the cause.
            return Err(match capture.finish(cx).await {
                Err(cause) if is_cut_short(&error) => cause.into(),
                _ => error,
            });
        }
    }
    let captured = capture.finish(cx).await?;
    cx.check()?;
    Ok(captured)
}

fn is_cut_short(error: &EngineError) -> bool {
    matches!(error, EngineError::Part(PartError::CutShort { .. }))
}

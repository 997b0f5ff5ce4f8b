//! Importing: what another program dumped is loaded into a scratch place, and backed up from there.

use backstay_format::IndexEntry;

use crate::backup::store;
use crate::cx::Cx;
use crate::error::EngineError;
use crate::event::Event;
use crate::source::Source;
use crate::source::dump::Dump;
use crate::source::imported::discard;
use crate::vault::{Draft, Vault};

/// Makes a backup of a dump. When this returns, the dump was loaded whole, and the backup of what was loaded is durable and proven
/// to be readable. Only while nobody else works on the source.
///
/// A failure leaves no backup, and removes what was loaded, as far as the source lets us.
pub async fn import(
    cx: &Cx,
    source: &dyn Source,
    (dump, tag): (&Dump, &str),
    (vault, draft): (&Vault, Draft),
) -> Result<IndexEntry, EngineError> {
    let what = format!("loading {} into a scratch place", dump.path.display());
    cx.event(Event::Step { what });
    let imported = source.import(cx, dump, tag).await?;
    cx.event(Event::Step { what: "reading what was loaded".to_owned() });
    let judge = |captured| {
        dump.check_unchanged()?;
        let mut proven = imported.prove(captured)?;
        proven.warnings.extend(dump.warnings());
        Ok(proven)
    };
    let made = Box::pin(store(cx, (vault, draft), imported.capture(cx), judge)).await;
    discard(cx, imported).await;
    made
}

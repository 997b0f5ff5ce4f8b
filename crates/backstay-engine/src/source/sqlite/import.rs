//! Databases of others: copied, with what belongs to them, and read from there.

use super::{SqliteSource, blocking};
use crate::cx::Cx;
use crate::source::dump::{Dump, Form};
use crate::source::imported::Unpacked;
use crate::source::{Imported, SourceError};
use crate::spool::Spool;

/// Copies a database into the spool directory.
pub(super) async fn import(
    cx: &Cx,
    source: &SqliteSource,
    dump: &Dump,
) -> Result<Box<dyn Imported>, SourceError> {
    match dump.form {
        Form::Sqlite => {}
        Form::Script => {
            return Err(dump.refused(
                "it is a script; make a database of it with `sqlite3 new.db < SCRIPT`, and import that",
            ));
        }
        _ => return Err(dump.is_not_for("sqlite", "SQLite databases")),
    }
    let spool = Spool::create(&source.spool)?;
    let path = spool.file("data.db", dump.bytes)?;
    let (cx, dump, copy) = (cx.clone(), dump.clone(), path.clone());
    blocking(move || dump.copy_with_companions(&cx, &copy)).await?;
    let source = SqliteSource { path, spool: source.spool.clone() };
    Ok(Box::new(Unpacked::new(spool, source, Vec::new())))
}

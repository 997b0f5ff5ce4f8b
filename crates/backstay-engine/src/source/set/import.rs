//! Exports of several databases of one moment, as HitKeep makes them: each made into a file where the set has it.

use std::fs;

use super::{MemberKind, SetSource};
use crate::cx::Cx;
use crate::source::dump::{Dump, Form};
use crate::source::imported::Unpacked;
use crate::source::{Imported, SourceError, duckdb};
use crate::spool::Spool;

/// Makes a set of databases in the spool directory.
pub(super) async fn import(
    cx: &Cx,
    source: &SetSource,
    dump: &Dump,
) -> Result<Box<dyn Imported>, SourceError> {
    let (Form::DuckdbExports(exports), MemberKind::Duckdb { programs }) =
        (&dump.form, &source.kind)
    else {
        let expected =
            "a directory with shared/TIME/ and tenants/ID/TIME/ of exports, for members of DuckDB";
        return Err(dump.is_not_for("set", expected));
    };
    let spool = Spool::create(&source.spool)?;
    let root = spool.path().join("data");
    for (name, export) in exports {
        let Some(path) = source.members.path_of(&root, name) else {
            return Err(dump.refused(format!(
                "{} is of the member {name}, and the set has {}",
                export.display(),
                source.members
            )));
        };
        let parent = path.parent().unwrap_or(&root);
        fs::create_dir_all(parent).map_err(|cause| SourceError::io("make", parent, cause))?;
        let made = cx.run(Box::pin(duckdb::load_export(programs.as_deref(), export, &path)));
        made.await?.map_err(|error| dump.refused(format!("{}: {error}", export.display())))?;
    }
    let source = SetSource { root, ..source.clone() };
    let warnings = duckdb::export_warnings(exports.iter().map(|(_, export)| export.as_path()));
    Ok(Box::new(Unpacked::new(spool, source, warnings)))
}

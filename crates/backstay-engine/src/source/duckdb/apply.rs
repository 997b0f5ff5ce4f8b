//! Putting a database back: unpacked and imported beside, compared, then swapped with what belongs to the old one.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use backstay_format::{Content, Details, DuckdbContent, DuckdbTable, MediaType};

use super::error::{DuckdbError, refused};
use super::import::{self, check_scripts, is_of_an_export};
use super::rows::count;
use super::session::{On, Tool};
use super::{COMPANIONS, DuckdbSource, statements};
use crate::cx::Cx;
use crate::part::{PartError, PartReader};
use crate::source::one_file::Place;
use crate::source::sqlite::blocking;
use crate::source::{
    Applied, ApplyReport, Loaded, Outlook, SourceError, Target, TargetOptions, engine,
};
use crate::spool::{self, Spool, check_space};

/// A place beside a database file.
pub(super) struct ImportTarget {
    source: DuckdbSource,
    place: Place,
    /// What was backed up.
    expected: Option<DuckdbContent>,
    report: ApplyReport,
}

impl ImportTarget {
    pub(super) fn new(source: &DuckdbSource, options: &TargetOptions) -> Self {
        let place = Place::new(&source.path, options, &COMPANIONS);
        Self { source: source.clone(), place, expected: None, report: ApplyReport::default() }
    }

    /// Returns where the archive is unpacked.
    fn unpacked(&self) -> PathBuf {
        self.place.replacement.beside.join("import")
    }

    async fn import(&mut self, tool: &Tool) -> Result<(), DuckdbError> {
        let Some(content) = &self.expected else {
            return Err(refused("the backup is not of a DuckDB database"));
        };
        let (folder, loaded) = (self.unpacked(), self.place.replacement.loaded());
        import::run(tool, &folder, &loaded, content).await?;
        self.report.items = content.tables.len() as u64;
        Ok(())
    }
}

/// Counts the rows that are there now of tables that would come back; a database that cannot be read now has none to show.
async fn present(
    tool: &Tool,
    (database, spool): (&Path, &Path),
    then: &DuckdbContent,
) -> Option<DuckdbContent> {
    let temporary = Spool::create(spool).ok()?;
    let mut session = tool.open(On::Reading(database), temporary.path()).await.ok()?;
    let mut tables = Vec::new();
    for one in &then.tables {
        if let Ok(rows) = count(&mut session, &one.table).await {
            tables.push(DuckdbTable { rows, ..one.clone() });
        }
    }
    Some(DuckdbContent { engine: tool.engine(), tables, ..DuckdbContent::default() })
}

/// Returns what a backup holds, once it is known that its names are names.
fn content_of(details: &Details) -> Result<&DuckdbContent, DuckdbError> {
    let Some(Content::Duckdb(content)) = &details.content else {
        return Err(refused("the backup is not of a DuckDB database"));
    };
    let version = content.storage_version.iter();
    let is_version = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.');
    if let Some(other) = version.into_iter().find(|version| !is_version(version)) {
        return Err(refused(format!("the backup is of an unknown version of files: {other}")));
    }
    match content.tables.iter().find(|table| !statements::is_table(&table.table)) {
        Some(other) => Err(refused(format!("the backup has a table of no name: {}", other.table))),
        None => Ok(content),
    }
}

#[async_trait]
impl Target for ImportTarget {
    async fn outlook(&self, cx: &Cx, details: &Details) -> Result<Outlook, SourceError> {
        let tool = self.source.tool().await?;
        cx.check()?;
        let mut outlook = self.place.replacement.outlook();
        let (content, now) = (content_of(details)?, tool.engine());
        engine::compare(&content.engine, &now, &mut outlook.warnings).map_err(refused)?;
        outlook.engine = Some(now);
        if outlook.replaces {
            let places = (self.place.replacement.target.as_path(), self.source.spool.as_path());
            let present = cx.run(present(&tool, places, content)).await?;
            outlook.present = present.map(|present| Content::Duckdb(Box::new(present)));
        }
        Ok(outlook)
    }

    async fn prepare(&mut self, _cx: &Cx, details: &Details) -> Result<(), SourceError> {
        self.expected = Some(content_of(details)?.clone());
        self.place.prepare()
    }

    async fn apply(&mut self, cx: &Cx, data: PartReader) -> Result<Applied, SourceError> {
        if data.spec.media_type != MediaType::DuckdbExport {
            return Err(SourceError::UnknownPart { part: data.spec.name });
        }
        let bytes = data.spec.estimate_bytes.unwrap_or(0);
        // The files, and about as much for what is made of them.
        check_space(&self.place.replacement.beside, bytes.saturating_mul(2))?;
        let folder = self.unpacked();
        self.report.bytes = blocking(move || unpack(data, &folder)).await?;
        let tool = self.source.tool().await?;
        cx.run(self.import(&tool)).await??;
        spool::remove(&self.unpacked())?;
        let loaded = self.place.replacement.loaded();
        let file = File::open(&loaded).map_err(|cause| SourceError::io("open", &loaded, cause))?;
        self.report.warnings = self.place.complete(&file)?;
        Ok(Applied::Done)
    }

    async fn finish(self: Box<Self>, _cx: &Cx) -> Result<Loaded, SourceError> {
        Ok(Loaded { report: self.report, replacement: self.place.replacement.into() })
    }

    async fn discard(self: Box<Self>, _cx: &Cx) -> Result<(), SourceError> {
        self.place.discard()
    }
}

/// Unpacks an export into a new folder, and looks whether it is one. Returns the bytes of its files.
fn unpack(data: PartReader, folder: &Path) -> Result<u64, SourceError> {
    let part = data.spec.name.clone();
    let hostile = |finding: String| PartError::Refused { part: part.clone(), finding };
    let broken = |cause: io::Error| match cause.downcast::<PartError>() {
        Ok(part) => SourceError::from(part),
        Err(cause) => SourceError::io("unpack the backup to", folder, cause),
    };
    fs::create_dir(folder).map_err(broken)?;
    let mut archive = tar::Archive::new(data.into_read());
    let mut bytes = 0;
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let name = entry.path().ok().and_then(|path| Some(path.to_str()?.to_owned()));
        let name =
            name.filter(|name| is_of_an_export(name) && entry.header().entry_type().is_file());
        let name = name.ok_or_else(|| hostile("it holds what no export does".to_owned()))?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(folder.join(name))
            .map_err(broken)?;
        bytes += io::copy(&mut entry, &mut file).map_err(broken)?;
    }
    // Only its end proves it.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(broken)?;
    check_scripts(folder).map_err(hostile)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use backstay_format::MediaType;

    use super::super::{LOAD, SCHEMA};
    use super::*;
    use crate::part::part_pipe;
    use crate::source::fixed_part;

    /// Unpacks an archive of these files.
    fn unpacked(files: &[(&str, &str)], kind: tar::EntryType) -> Result<u64, SourceError> {
        let mut archive = tar::Builder::new(Vec::new());
        for (name, text) in files {
            let mut header = tar::Header::new_gnu();
            // Names that the library would refuse to write, too.
            header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_size(text.len() as u64);
            header.set_entry_type(kind);
            header.set_cksum();
            archive.append(&header, text.as_bytes()).unwrap();
        }
        let bytes = archive.into_inner().unwrap();
        let (mut writer, reader) =
            part_pipe(fixed_part("export.tar", MediaType::DuckdbExport, None));
        let sending = std::thread::spawn(move || {
            // Who refuses it reads no further.
            drop(io::Write::write_all(&mut writer, &bytes));
            writer.finish();
        });
        let folder = tempfile::tempdir().unwrap();
        let unpacked = unpack(reader, &folder.path().join("import"));
        sending.join().unwrap();
        unpacked
    }

    const FILE: tar::EntryType = tar::EntryType::Regular;
    const SCRIPT: &str = "CREATE TABLE t(i INTEGER);\n";
    const READS: &str = "COPY t FROM '0001.parquet' (FORMAT 'parquet');\n";

    #[test]
    fn archive_of_an_export_is_unpacked_and_any_other_is_refused() {
        let whole = [(SCHEMA, SCRIPT), (LOAD, READS), ("0001.parquet", "PAR1")];
        let bytes = (SCRIPT.len() + READS.len() + 4) as u64;
        assert_eq!(unpacked(&whole, FILE).unwrap(), bytes);
        let with = |name: &'static str, text: &'static str| {
            let mut files = whole.to_vec();
            files.retain(|(other, _)| *other != name);
            files.push((name, text));
            unpacked(&files, FILE).unwrap_err().to_string()
        };
        for (name, text, finding) in [
            ("../up.parquet", "", "what no export does"),
            ("/etc/0001.parquet", "", "what no export does"),
            ("sub/0001.parquet", "", "what no export does"),
            ("x.db", "", "what no export does"),
            (SCHEMA, "COPY t TO '/etc/passwd';", "no export has a statement"),
            (SCHEMA, "CREATE TABLE t AS SELECT 1;", "makes a table of a query"),
            (LOAD, "COPY t FROM '/etc/passwd' (FORMAT 'parquet');", "which it does not hold"),
            (LOAD, "COPY t FROM '0002.parquet' (FORMAT 'parquet');", "which it does not hold"),
            (LOAD, "COPY t FROM '0001.parquet' (FORMAT 'csv');", "which it does not hold"),
            (LOAD, "ATTACH '/other.db';", "no export has a statement"),
        ] {
            let error = with(name, text);
            assert!(error.contains(finding), "{name} {text}: {error}");
        }
        for kind in [tar::EntryType::Symlink, tar::EntryType::Link, tar::EntryType::Directory] {
            let error = unpacked(&whole, kind).unwrap_err().to_string();
            assert!(error.contains("what no export does"), "{kind:?}: {error}");
        }
        let error = unpacked(&whole[..2], FILE).unwrap_err().to_string();
        assert!(error.contains("which it does not hold"), "{error}");
    }
}

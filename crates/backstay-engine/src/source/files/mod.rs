//! Trees of files: one tar stream, from which the tree returns as it was.

mod apply;
mod estimate;
mod look;
mod maker;
mod pattern;
mod reader;
pub(super) mod tar_read;
mod tar_write;
mod unpack;
mod walk;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use backstay_format::{Content, FilesContent, ItemError, MediaType};
use tokio::task::JoinHandle;

use estimate::Exactness;
pub(crate) use pattern::glob_matches;
pub use pattern::{Pattern, PatternError};

use super::dump::{Dump, Form};
use super::imported::Unpacked;
use super::{Capture, Imported, Probe, Source, SourceError, Target, TargetOptions, fixed_part};
use crate::cx::Cx;
use crate::event::Event;
use crate::part::{CaptureReport, ItemErrors, PartError, PartReader, part_pipe};
use crate::replace::{OWN_PREFIX, PathSwapper};
use crate::source::sqlite::blocking;
use crate::spool::Spool;
use crate::swap::{Replacement, Swapper};

/// The one part of such a backup.
const PART: &str = "files.tar";

/// A tree of files.
#[derive(Debug, Clone)]
pub struct FilesSource {
    /// The root of the tree. May be a symbolic link; below it links are kept, never followed.
    pub root: PathBuf,
    /// What is left out.
    pub exclude: Vec<Pattern>,
    /// What is left out, and is not there after a restore even if the old tree had it (T3, T4).
    pub transient: Vec<Pattern>,
    /// Whether other file systems mounted below the root are left out.
    pub one_file_system: bool,
    /// Where snapshots of SQLite databases are kept while they are read.
    pub spool: PathBuf,
}

impl FilesSource {
    async fn estimate(&self, cx: &Cx, exactness: Exactness) -> Result<Probe, SourceError> {
        let (source, cx) = (self.clone(), cx.clone());
        blocking(move || estimate::estimate(&cx, &source, exactness)).await
    }

    /// Whether a path, relative to the root, is not backed up.
    fn leaves_out(&self, path: &[u8], is_directory: bool) -> bool {
        let mut patterns = self.exclude.iter().chain(&self.transient);
        // What a restore that waits to be confirmed keeps in the root is no data of the app.
        path.starts_with(OWN_PREFIX.as_bytes())
            || patterns.any(|pattern| pattern.matches(path, is_directory))
    }
}

#[async_trait]
impl Source for FilesSource {
    async fn probe(&self, cx: &Cx) -> Result<Probe, SourceError> {
        self.estimate(cx, Exactness::Quick).await
    }

    async fn capture(&self, cx: &Cx) -> Result<Box<dyn Capture>, SourceError> {
        let estimate = self.estimate(cx, Exactness::Full).await?.size_bytes;
        Ok(Box::new(FilesCapture { source: self.clone(), estimate, writing: None }))
    }

    fn target(&self, options: TargetOptions) -> Box<dyn Target> {
        Box::new(apply::FilesTarget::new(self, options))
    }

    /// Open files in a tree are usual (logs), and harmless to the new tree: hooks are the user's means to stop an app.
    fn check_free(&self, _replacement: &Replacement) -> Result<(), SourceError> {
        Ok(())
    }

    fn scratch(&self, folder: &Path, _tag: &str) -> Option<OsString> {
        Some(folder.join("data").into())
    }

    async fn ask(
        &self,
        _cx: &Cx,
        _loaded: &Replacement,
        _database: Option<&str>,
        _query: &str,
    ) -> Result<String, SourceError> {
        let path = self.root.clone();
        Err(SourceError::WrongKind { path, expected: "a database, so it answers no queries" })
    }

    async fn import(
        &self,
        cx: &Cx,
        dump: &Dump,
        _tag: &str,
    ) -> Result<Box<dyn Imported>, SourceError> {
        if dump.form != Form::Tar {
            return Err(dump.is_not_for("files", "tars"));
        }
        let spool = Spool::create(&self.spool)?;
        let root = spool.path().join("data");
        let (data, unpacked) = (dump.part(cx, PART, MediaType::Tar), root.clone());
        let (cx, like) = (cx.clone(), self.root.clone());
        let warnings =
            blocking(move || unpack::unpack_foreign(&cx, data, (unpacked, &like))).await?;
        // All of it counts, whatever the source leaves out of its own.
        let (exclude, transient) = (Vec::new(), Vec::new());
        let source = Self { root, exclude, transient, ..self.clone() };
        Ok(Box::new(Unpacked::new(spool, source, warnings)))
    }

    fn swapper(&self) -> Box<dyn Swapper> {
        Box::new(PathSwapper { own: self.root.clone() })
    }
}

/// Warnings, of which only the first are kept: a tree can earn millions.
#[derive(Debug, Default)]
struct Warnings {
    listed: Vec<String>,
    more: usize,
}

impl Warnings {
    const LISTED: usize = 20;

    fn add(&mut self, text: String) {
        if self.listed.len() < Self::LISTED {
            self.listed.push(text);
        } else {
            self.more += 1;
        }
    }

    fn list(&self) -> Vec<String> {
        let more = (self.more > 0).then(|| format!("and {} more such warnings", self.more));
        self.listed.iter().cloned().chain(more).collect()
    }
}

/// What became of a tree that was written.
#[derive(Debug, Default)]
struct Written {
    content: FilesContent,
    item_errors: ItemErrors,
    warnings: Warnings,
}

impl Written {
    /// Counts an item that could not be read, and tells the listener.
    fn item_error(&mut self, cx: &Cx, path: &[u8], error: String) {
        let item = readable(path);
        cx.event(Event::ItemError { item: item.clone(), error: error.clone() });
        self.item_errors.add(ItemError { item, error });
    }
}

struct FilesCapture {
    source: FilesSource,
    estimate: u64,
    writing: Option<JoinHandle<Result<Written, SourceError>>>,
}

#[async_trait]
impl Capture for FilesCapture {
    async fn next_part(&mut self, cx: &Cx) -> Result<Option<PartReader>, SourceError> {
        if self.writing.is_some() {
            return Ok(None);
        }
        let (writer, reader) = part_pipe(fixed_part(PART, MediaType::Tar, Some(self.estimate)));
        let (cx, source) = (cx.clone(), self.source.clone());
        self.writing =
            Some(tokio::task::spawn_blocking(move || walk::write_tree(&cx, &source, writer)));
        Ok(Some(reader))
    }

    async fn finish(self: Box<Self>, _cx: &Cx) -> Result<CaptureReport, SourceError> {
        let never = || PartError::CutShort { part: PART.parse().expect("a legal part name") };
        let written = self.writing.ok_or_else(never)?.await.map_err(|_died| never())??;
        Ok(CaptureReport {
            item_errors: written.item_errors,
            warnings: written.warnings.list(),
            content: Some(Content::Files(written.content)),
            ..CaptureReport::default()
        })
    }
}

/// Turns a raw path into text: bytes that are no UTF-8 and control characters as `\xNN`.
fn readable(path: &[u8]) -> String {
    let mut text = String::new();
    for chunk in path.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() {
                text.extend(c.to_string().bytes().map(|byte| format!("\\x{byte:02x}")));
            } else {
                text.push(c);
            }
        }
        text.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    text
}

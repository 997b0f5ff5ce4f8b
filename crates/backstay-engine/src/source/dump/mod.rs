//! Dumps and archives that other programs made: what they are, when they were made, and how they are read.

mod find;
mod form;
mod packing;
pub(super) mod script;
mod taken;

use std::fs::{self, File, Metadata};
use std::io::{self, BufRead, BufReader, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use backstay_format::{Hasher, ImportedFrom, MediaType, Sha256, TimeFrom};
use jiff::Timestamp;

use super::{SourceError, fixed_part};
use crate::cx::Cx;
use crate::part::{CHUNK_BYTES, PartError, PartReader, PartWriter, part_pipe};

pub use find::{Found, find};
pub use form::Form;
pub(super) use form::POSTGRES_CONTENTS;
pub use packing::Packing;

/// The name of a file's checksum beside it, as `sha256sum` writes it.
const CHECKSUM_SUFFIX: &str = ".sha256";

/// The name of what tools write of a dump beside it.
const META_EXTENSION: &str = "meta.json";
/// What is larger is no remark on a dump.
const MAX_BESIDE_BYTES: u64 = 64 << 10;

/// A dump or an archive that another program made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dump {
    /// The file or the directory.
    pub path: PathBuf,
    /// What it is.
    pub form: Form,
    /// What was done to all of it afterwards.
    pub packing: Packing,
    /// When it was made.
    pub taken_at: Timestamp,
    /// How that is known.
    pub time_from: TimeFrom,
    /// Its bytes as they lie there.
    pub bytes: u64,
    /// Its digest; of several files, that of their names and digests.
    pub sha256: Sha256,
    /// The digest of the file itself, without what lies beside it; none of a directory.
    checksum: Option<Sha256>,
    /// What was looked at, as it was then.
    files: Vec<Seen>,
}

/// A file as it was when it was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    path: PathBuf,
    bytes: u64,
    modified: i64,
    /// When anything about it was changed last, which nobody can set, and which file it is.
    changed: (i64, i64, u64),
}

impl Seen {
    fn of(path: &Path, meta: &Metadata) -> Self {
        let changed = (meta.ctime(), meta.ctime_nsec(), meta.ino());
        Self { path: path.to_owned(), bytes: meta.len(), modified: meta.mtime(), changed }
    }
}

impl Dump {
    /// Reads all of what lies at a path, and says what it is. Fails if a checksum that lies beside it, or is `expected`, is not
    /// its own. Blocks.
    pub fn examine(cx: &Cx, path: &Path, expected: Option<Sha256>) -> Result<Self, SourceError> {
        let (form, packing) = form::recognise(path)?;
        Self::digest(cx, path, form, packing)?.with_checksum(expected)
    }

    fn digest(cx: &Cx, path: &Path, form: Form, packing: Packing) -> Result<Self, SourceError> {
        let mut files = Vec::new();
        for root in form.roots(path, packing) {
            list(&root, &mut files)?;
        }
        let (mut all, mut first) = (Hasher::new(), None);
        for file in &files {
            let digest = digest_of(cx, &file.path)?;
            let name = file.path.strip_prefix(path).unwrap_or(&file.path);
            all.update(name.as_os_str().as_bytes());
            all.update(&[0]);
            all.update(digest.as_bytes());
            first = first.or(Some(digest));
        }
        let checksum = first.filter(|_| path.is_file());
        let sha256 = checksum.filter(|_| files.len() == 1).unwrap_or_else(|| all.finish());
        let bytes = files.iter().map(|file| file.bytes).sum();
        let (taken_at, time_from) = taken::taken_at(path, &form, packing, &files)?;
        let path = path.to_owned();
        Ok(Self { path, form, packing, taken_at, time_from, bytes, sha256, checksum, files })
    }

    fn with_checksum(self, expected: Option<Sha256>) -> Result<Self, SourceError> {
        let expected = match expected {
            Some(expected) => Some(expected),
            None => self.checksum_beside()?,
        };
        match (expected, self.checksum) {
            (Some(expected), Some(found)) if expected != found => Err(self.refused(format!(
                "its SHA-256 is {found}, and {expected} was expected: it is damaged, or another file; fetch it anew"
            ))),
            (Some(_), None) => Err(self.refused("a checksum is of a file, and it is none")),
            _ => Ok(self),
        }
    }

    /// Reads a checksum as `sha256sum` writes it.
    fn checksum_beside(&self) -> Result<Option<Sha256>, SourceError> {
        let beside = with_suffix(&self.path, CHECKSUM_SUFFIX);
        if self.checksum.is_none() || beside.symlink_metadata().is_err() {
            return Ok(None);
        }
        let text = small_text(&beside).ok_or_else(|| {
            self.refused(format!("{} beside it cannot be read as a checksum", beside.display()))
        })?;
        // `HEX  NAME`, or `SHA256 (NAME) = HEX` on other systems.
        let digest = text.split_ascii_whitespace().find_map(|word| word.parse().ok());
        let digest = digest.ok_or_else(|| {
            self.refused(format!("{} beside it has no SHA-256 in it", beside.display()))
        })?;
        Ok(Some(digest))
    }

    /// Fails if something was written to it since it was looked at.
    pub fn check_unchanged(&self) -> Result<(), SourceError> {
        let changed = self.files.iter().find(|seen| {
            let now = seen.path.metadata().map(|meta| Seen::of(&seen.path, &meta));
            now.ok().as_ref() != Some(*seen)
        });
        match changed {
            Some(file) => Err(self.refused(format!(
                "{} changed while it was read; import it when it is whole",
                file.path.display()
            ))),
            None => Ok(()),
        }
    }

    /// Returns what manifests say of it.
    pub fn provenance(&self) -> ImportedFrom {
        ImportedFrom {
            path: std::path::absolute(&self.path)
                .unwrap_or_else(|_| self.path.clone())
                .to_string_lossy()
                .into_owned(),
            form: self.label(),
            bytes: self.bytes,
            sha256: self.sha256,
            time_from: self.time_from,
        }
    }

    /// Says what it is, for a person.
    pub fn label(&self) -> String {
        match self.packing {
            Packing::None => self.form.to_string(),
            packing => format!("{}, in {packing}", self.form),
        }
    }

    /// Returns what the tool that made it wrote down beside it (VectorFlow's `.meta.json`), in one line. Blocks.
    pub fn note(&self) -> Option<String> {
        let text = small_text(&self.path.with_extension(META_EXTENSION))?;
        let meta: serde_json::Value = serde_json::from_str(&text).ok()?;
        Some(meta.to_string())
    }

    /// Returns what of it could not be checked, whatever it is loaded into.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.time_from == TimeFrom::File {
            warnings.push(format!(
                "when it was made is not known: {:.0} is when the file was written; a copy may be of older data",
                self.taken_at
            ));
        }
        if self.packing == (Packing::Zstd { has_checksum: false }) {
            warnings
                .push("its zstd frame has no checksum: damage in it may not have shown".to_owned());
        }
        warnings
    }

    /// Opens its bytes, unpacked. Blocks.
    pub(super) fn open(&self) -> Result<Box<dyn BufRead + Send>, SourceError> {
        self.packing.open(&self.path)
    }

    /// Returns its bytes, unpacked, as a part.
    pub(super) fn part(&self, cx: &Cx, name: &str, media_type: MediaType) -> PartReader {
        let estimate = (self.packing == Packing::None).then_some(self.bytes);
        let (writer, reader) = part_pipe(fixed_part(name, media_type, estimate));
        let (dump, cx) = (self.clone(), cx.clone());
        // Ends by itself when the reader goes away.
        drop(tokio::task::spawn_blocking(move || dump.send(&cx, writer)));
        reader
    }

    fn send(&self, cx: &Cx, mut writer: PartWriter) {
        match self.copy_to(cx, &mut writer) {
            Ok(()) => writer.finish(),
            Err(error) => {
                let part = writer.part_name();
                writer.fail(PartError::Failed { part, cause: Box::new(error) });
            }
        }
    }

    /// Writes its bytes, unpacked. What it cannot write has a reader that knows why. Blocks.
    pub(super) fn copy_to(&self, cx: &Cx, out: &mut impl io::Write) -> Result<(), SourceError> {
        let mut input = self.open()?;
        loop {
            cx.check()?;
            let piece = input.fill_buf().map_err(|cause| self.unreadable(&cause))?;
            if piece.is_empty() {
                return Ok(());
            }
            let read = piece.len();
            out.write_all(piece).map_err(|cause| SourceError::io("pass on", &self.path, cause))?;
            input.consume(read);
        }
    }

    /// Copies it, unpacked, to a new file; and what lies beside it and belongs to it. Blocks.
    pub(super) fn copy_with_companions(&self, cx: &Cx, to: &Path) -> Result<(), SourceError> {
        let mut file = File::create_new(to).map_err(|cause| SourceError::io("make", to, cause))?;
        self.copy_to(cx, &mut file)?;
        for (suffix, beside) in self.form.companions(&self.path, self.packing) {
            let copied = fs::copy(&beside, with_suffix(to, suffix));
            copied.map_err(|cause| SourceError::io("copy", beside, cause))?;
        }
        Ok(())
    }

    /// Says what it means that it could not be read or unpacked.
    pub(super) fn unreadable(&self, cause: &io::Error) -> SourceError {
        self.refused(format!("it cannot be read to its end: {cause}"))
    }

    /// Says why it is not taken.
    pub(super) fn refused(&self, finding: impl Into<String>) -> SourceError {
        refused(&self.path, finding)
    }

    /// Says that a source of this kind does not take it.
    pub(super) fn is_not_for(&self, kind: &str, expected: &str) -> SourceError {
        self.refused(format!(
            "it is {}, and a source of kind {kind} takes {expected}",
            self.label()
        ))
    }
}

fn refused(path: &Path, finding: impl Into<String>) -> SourceError {
    SourceError::Dump { path: path.to_owned(), finding: finding.into() }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Reads what somebody wrote beside a dump, if that is a file of a few lines. Blocks.
fn small_text(path: &Path) -> Option<String> {
    let is_small =
        path.metadata().is_ok_and(|meta| meta.is_file() && meta.len() <= MAX_BESIDE_BYTES);
    if is_small { fs::read_to_string(path).ok() } else { None }
}

/// Returns what lies in a directory, by name.
fn entries(path: &Path) -> Result<Vec<PathBuf>, SourceError> {
    let mut entries: Vec<PathBuf> = fs::read_dir(path)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .map_err(|cause| SourceError::io("list", path, cause))?;
    entries.sort();
    Ok(entries)
}

/// Lists the regular files at a path or below it, by name.
fn list(path: &Path, files: &mut Vec<Seen>) -> Result<(), SourceError> {
    let meta = path.metadata().map_err(|cause| SourceError::io("look at", path, cause))?;
    if meta.is_file() {
        files.push(Seen::of(path, &meta));
        return Ok(());
    }
    for entry in entries(path)? {
        let kind = entry.symlink_metadata();
        let kind = kind.map_err(|cause| SourceError::io("look at", &entry, cause))?.file_type();
        if !kind.is_file() && !kind.is_dir() {
            let finding = format!("{} is neither a file nor a directory", entry.display());
            return Err(refused(path, finding));
        }
        list(&entry, files)?;
    }
    Ok(())
}

fn digest_of(cx: &Cx, path: &Path) -> Result<Sha256, SourceError> {
    let read = |cause| SourceError::io("read", path, cause);
    let mut file = BufReader::with_capacity(CHUNK_BYTES, File::open(path).map_err(read)?);
    let mut hasher = Hasher::new();
    loop {
        cx.check()?;
        let piece = file.fill_buf().map_err(read)?;
        if piece.is_empty() {
            return Ok(hasher.finish());
        }
        hasher.update(piece);
        let length = piece.len();
        file.consume(length);
    }
}

/// Returns the first bytes of what a reader gives, as many as there are.
fn head(input: &mut impl io::Read, bytes: usize) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    input.take(bytes as u64).read_to_end(&mut head)?;
    Ok(head)
}

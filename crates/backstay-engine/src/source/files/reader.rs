//! Looking at the files of a directory ahead of the writer, by several threads: what the system does for each small file
//! costs more than its bytes, and a disk answers several questions at once.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{FileType, Stat};

use super::look;
use super::maker::SMALL_BYTES;
use crate::source::sqlite::COMPANIONS;

/// Names that are looked at ahead: with [`SMALL_BYTES`], 4 MiB.
pub(super) const AHEAD: usize = 32;
/// Enough to know a SQLite database by.
const HEAD_BYTES: usize = 16;
/// Disks gain little from more questions at once than this.
const THREADS: usize = 4;

/// What was found under a name.
pub(super) struct Looked {
    pub(super) stat: Stat,
    /// Nothing if it is no regular file, or one that should be opened only when it is its turn.
    pub(super) opened: Option<io::Result<Opened>>,
}

/// A file that was opened, and read if it is small.
pub(super) struct Opened {
    pub(super) file: File,
    pub(super) stat: Stat,
    /// All bytes that were there, and what the system said of the file afterwards. Only of a small file without holes.
    pub(super) contents: Option<(Vec<u8>, Stat)>,
    failure: Option<io::Error>,
}

impl Opened {
    /// Returns how the file begins, or why it cannot be read.
    pub(super) fn head(&mut self) -> io::Result<Vec<u8>> {
        if let Some(error) = self.failure.take() {
            return Err(error);
        }
        if let Some((bytes, _)) = &self.contents {
            return Ok(bytes.get(..HEAD_BYTES).unwrap_or(bytes).to_vec());
        }
        let mut head = Vec::with_capacity(HEAD_BYTES);
        (&mut self.file).take(HEAD_BYTES as u64).read_to_end(&mut head)?;
        Ok(head)
    }
}

/// Opens a file that may be read at once.
pub(super) fn open(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<Opened> {
    let mut file = look::open_file(parent, name)?;
    let stat = rustix::fs::fstat(&file)?;
    let size = stat.st_size.cast_unsigned();
    let is_small = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        && size <= SMALL_BYTES
        && !look::may_have_holes(&stat);
    let (contents, failure) = match is_small.then(|| read(&mut file, size)) {
        Some(Ok(contents)) => (Some(contents), None),
        Some(Err(error)) => (None, Some(error)),
        None => (None, None),
    };
    Ok(Opened { file, stat, contents, failure })
}

fn read(file: &mut File, size: u64) -> io::Result<(Vec<u8>, Stat)> {
    let mut bytes = Vec::with_capacity(size as usize);
    // What was added since belongs to the next backup.
    file.take(size).read_to_end(&mut bytes)?;
    Ok((bytes, rustix::fs::fstat(&*file)?))
}

fn look(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<Looked> {
    let stat = look::stat(parent, name)?;
    let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    // Closing any handle of a file drops the locks that SQLite holds on it in this process, under whatever name.
    let may_be_locked = stat.st_nlink > 1
        || COMPANIONS.iter().any(|companion| name.ends_with(companion.as_bytes()));
    let opened = (is_file && !may_be_locked).then(|| open(parent, name));
    Ok(Looked { stat, opened })
}

/// Threads that look at names.
pub(super) struct Readers {
    questions: SyncSender<Question>,
}

struct Question {
    parent: Arc<OwnedFd>,
    name: Vec<u8>,
    answer: SyncSender<io::Result<Looked>>,
}

/// What will be known of a name.
pub(super) struct Answer(Receiver<io::Result<Looked>>);

impl Readers {
    /// Does some work with the help of readers.
    pub(super) fn with<T>(work: impl FnOnce(Self) -> T) -> T {
        let (questions, waiting) = sync_channel(AHEAD);
        let waiting = Mutex::new(waiting);
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| answer_all(&waiting));
            }
            // They end when their questions do.
            work(Self { questions })
        })
    }

    /// Begins to look at a name.
    pub(super) fn ask(&self, parent: &Arc<OwnedFd>, name: &[u8]) -> Answer {
        let (answer, answered) = sync_channel(1);
        let question = Question { parent: parent.clone(), name: name.to_owned(), answer };
        // Nobody there shows as no answer.
        drop(self.questions.send(question));
        Answer(answered)
    }
}

impl Answer {
    pub(super) fn wait(self) -> io::Result<Looked> {
        self.0.recv().unwrap_or_else(|_| Err(io::Error::other("the thread that reads it died")))
    }
}

fn answer_all(questions: &Mutex<Receiver<Question>>) {
    loop {
        let next = questions.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Question { parent, name, answer }) = next else { return };
        // Whoever asked may have given up.
        drop(answer.send(look(parent.as_fd(), &name)));
    }
}

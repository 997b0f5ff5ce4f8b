//! Several databases of one server, one after the other, each in a view of its own. One that cannot be read does not keep the
//! others from being read.

use std::collections::VecDeque;

use async_trait::async_trait;
use backstay_format::{Content, ItemError, MediaType};
use jiff::Timestamp;

use super::databases;
use super::{Capture, SourceError, text_part};
use crate::cx::Cx;
use crate::part::{CaptureReport, ItemErrors, PartReader};

/// A server whose databases are read.
#[async_trait]
pub(super) trait Server: Send + Sync + 'static {
    /// Begins to read a database; its parts lie in a folder.
    async fn open(
        &self,
        cx: &Cx,
        name: &str,
        folder: &str,
    ) -> Result<Box<dyn Capture>, SourceError>;

    /// Returns the folder of a database's parts.
    fn folder(&self, name: &str) -> String {
        databases::folder(name)
    }

    /// Describes what was read.
    fn content(self, databases: Vec<Read>) -> Content;
}

/// A database that was read.
pub(super) struct Read {
    pub(super) name: String,
    pub(super) folder: String,
    pub(super) taken_at: Timestamp,
    pub(super) report: CaptureReport,
}

/// Databases, as they are read one after the other.
pub(super) struct ServerCapture<S> {
    server: S,
    /// If it is not that of each database.
    engine: Option<String>,
    /// Parts of the server itself, the last first.
    texts: Vec<(String, String)>,
    waiting: VecDeque<String>,
    reading: Option<Reading>,
    done: Vec<Read>,
    errors: ItemErrors,
    warnings: Vec<String>,
    /// Why the last one could not be read.
    cause: Option<SourceError>,
}

/// A database that is being read.
struct Reading {
    name: String,
    folder: String,
    began: Timestamp,
    capture: Box<dyn Capture>,
}

/// What is to be read of a server.
pub(super) struct Wanted {
    pub(super) databases: Vec<String>,
    /// Asked for, and not to be had.
    pub(super) missing: Vec<ItemError>,
}

impl<S: Server> ServerCapture<S> {
    /// Begins, with parts of the server itself, the last first.
    pub(super) fn new(
        server: S,
        engine: Option<String>,
        texts: Vec<(String, String)>,
        wanted: Wanted,
    ) -> Self {
        let mut errors = ItemErrors::default();
        wanted.missing.into_iter().for_each(|error| errors.add(error));
        Self {
            server,
            engine,
            texts,
            waiting: wanted.databases.into(),
            reading: None,
            done: Vec::new(),
            errors,
            warnings: Vec::new(),
            cause: None,
        }
    }

    /// Adds what a person should know.
    pub(super) fn warn(&mut self, warning: String) {
        self.warnings.push(warning);
    }

    async fn read(&mut self, cx: &Cx, name: String) -> Result<(), SourceError> {
        let (folder, began) = (self.server.folder(&name), cx.now());
        match self.server.open(cx, &name, &folder).await {
            Ok(capture) => self.reading = Some(Reading { name, folder, began, capture }),
            Err(error) => self.miss(name, error)?,
        }
        Ok(())
    }

    /// Notes what came of a database.
    async fn settle(&mut self, cx: &Cx, reading: Reading) -> Result<(), SourceError> {
        let Reading { name, folder, began: taken_at, capture } = reading;
        match capture.finish(cx).await {
            Ok(mut report) => {
                let warnings = std::mem::take(&mut report.warnings).into_iter();
                self.warnings.extend(warnings.map(|text| format!("database {name}: {text}")));
                self.engine = self.engine.take().or_else(|| report.engine.clone());
                self.done.push(Read { name, folder, taken_at, report });
                Ok(())
            }
            Err(error) => self.miss(name, error),
        }
    }

    fn miss(&mut self, name: String, error: SourceError) -> Result<(), SourceError> {
        if error.is_cancelled() {
            return Err(error);
        }
        self.errors.add(ItemError { item: name, error: error.to_string() });
        self.cause = Some(error);
        Ok(())
    }
}

#[async_trait]
impl<S: Server> Capture for ServerCapture<S> {
    async fn next_part(&mut self, cx: &Cx) -> Result<Option<PartReader>, SourceError> {
        if let Some((name, text)) = self.texts.pop() {
            return Ok(Some(text_part(&name, MediaType::Sql, text)));
        }
        loop {
            if let Some(reading) = &mut self.reading
                && let Some(part) = reading.capture.next_part(cx).await?
            {
                return Ok(Some(part));
            }
            if let Some(read) = self.reading.take() {
                self.settle(cx, read).await?;
            }
            let Some(name) = self.waiting.pop_front() else { return Ok(None) };
            self.read(cx, name).await?;
        }
    }

    fn goes_on(&self) -> bool {
        true
    }

    async fn finish(mut self: Box<Self>, cx: &Cx) -> Result<CaptureReport, SourceError> {
        if let Some(read) = self.reading.take() {
            self.settle(cx, read).await?;
        }
        match self.cause {
            // A backup without any database is none.
            Some(cause) if self.done.is_empty() => return Err(cause),
            _ => {}
        }
        Ok(CaptureReport {
            engine: self.engine,
            content: Some(self.server.content(self.done)),
            item_errors: self.errors,
            warnings: self.warnings,
            ..CaptureReport::default()
        })
    }
}

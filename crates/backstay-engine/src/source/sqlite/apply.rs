//! Putting a database back: loaded beside, checked, then swapped with all that belongs to the old one.

use std::fs::File;
use std::path::Path;

use async_trait::async_trait;
use backstay_format::Details;
use rusqlite::Connection;

use super::{COMPANIONS, blocking, snapshot};
use crate::cx::Cx;
use crate::part::{PartError, PartReader};
use crate::source::one_file::Place;
use crate::source::{Applied, ApplyReport, Loaded, Outlook, SourceError, Target, TargetOptions};
use crate::spool::{check_space, write_part};

/// A place beside a database file.
#[derive(Debug)]
pub(super) struct SqliteTarget {
    place: Place,
    report: ApplyReport,
}

impl SqliteTarget {
    pub(super) fn new(own: &Path, options: &TargetOptions) -> Self {
        Self { place: Place::new(own, options, &COMPANIONS), report: ApplyReport::default() }
    }
}

#[async_trait]
impl Target for SqliteTarget {
    async fn outlook(&self, _cx: &Cx, _details: &Details) -> Result<Outlook, SourceError> {
        Ok(self.place.replacement.outlook())
    }

    async fn prepare(&mut self, _cx: &Cx, _details: &Details) -> Result<(), SourceError> {
        self.place.prepare()
    }

    async fn apply(&mut self, cx: &Cx, data: PartReader) -> Result<Applied, SourceError> {
        let replacement = &self.place.replacement;
        check_space(&replacement.beside, data.spec.estimate_bytes.unwrap_or(0))?;
        let (cx, loaded) = (cx.clone(), replacement.loaded());
        let (file, report) = blocking(move || load(&cx, data, &loaded)).await?;
        let warnings = self.place.complete(&file)?;
        self.report = ApplyReport { warnings, ..report };
        Ok(Applied::Done)
    }

    async fn finish(self: Box<Self>, _cx: &Cx) -> Result<Loaded, SourceError> {
        Ok(Loaded { report: self.report, replacement: self.place.replacement.into() })
    }

    async fn discard(self: Box<Self>, _cx: &Cx) -> Result<(), SourceError> {
        self.place.discard()
    }
}

fn load(cx: &Cx, data: PartReader, beside: &Path) -> Result<(File, ApplyReport), SourceError> {
    let part = data.spec.name.clone();
    let (file, bytes) = write_part(data, beside)?;
    cx.check()?;
    let copy =
        Connection::open(beside).map_err(|cause| snapshot::explain("open", beside, cause))?;
    let content = snapshot::examine(&copy, beside).map_err(|error| match error {
        // The stream was proven, so it is the database in the backup that is bad.
        SourceError::Damaged { finding, .. } => PartError::Refused { part, finding }.into(),
        other => other,
    })?;
    copy.close().map_err(|(_, cause)| snapshot::explain("close", beside, cause))?;
    let items = content.tables.len() as u64;
    Ok((file, ApplyReport { items, bytes, ..ApplyReport::default() }))
}

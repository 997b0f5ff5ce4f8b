//! A digest of each row, the same for one that a database gave and one that a file holds.

use std::sync::Arc;

use arrow_array::cast::AsArray as _;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, Float64Array, RecordBatch};
use arrow_row::{RowConverter, SortField};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use backstay_format::Sha256;

use crate::source::SourceError;
use crate::source::table::{as_literals, is_literal, refused};

/// The first 16 bytes of a row's SHA-256: two different rows never meet, whatever the table holds.
pub(super) type RowDigest = u128;

/// Works out digests of rows of one schema.
pub(super) struct Digester {
    schema: SchemaRef,
    converter: RowConverter,
}

impl Digester {
    pub(super) fn new(schema: &Schema) -> Result<Self, SourceError> {
        let fields = schema.fields().iter().map(|field| SortField::new(field.data_type().clone()));
        let converter = RowConverter::new(fields.collect()).map_err(|error| unusable(&error))?;
        Ok(Self { schema: Arc::new(schema.clone()), converter })
    }

    /// The same for some of the columns only.
    pub(super) fn of_columns(schema: &Schema, names: &[String]) -> Result<Self, SourceError> {
        let chosen = names.iter().filter_map(|name| schema.field_with_name(name).ok().cloned());
        Self::new(&Schema::new(chosen.collect::<Vec<_>>()))
    }

    /// Returns the digests of rows that have the columns of the schema; others may stand beside them.
    pub(super) fn rows(&self, batch: &RecordBatch) -> Result<Vec<RowDigest>, SourceError> {
        let columns =
            self.columns(batch)?.ok_or_else(|| refused("rows lack a column".to_owned()))?;
        self.digests(&columns)
    }

    /// The same for rows of an earlier segment; nothing if they cannot be compared, since columns were added or changed.
    pub(super) fn earlier_rows(
        &self,
        batch: &RecordBatch,
    ) -> Result<Option<Vec<RowDigest>>, SourceError> {
        self.columns(batch)?.map(|columns| self.digests(&columns)).transpose()
    }

    fn digests(&self, columns: &[ArrayRef]) -> Result<Vec<RowDigest>, SourceError> {
        let rows = self.converter.convert_columns(columns).map_err(|error| unusable(&error))?;
        Ok(rows.iter().map(|row| digest(row.as_ref())).collect())
    }

    fn columns(&self, batch: &RecordBatch) -> Result<Option<Vec<ArrayRef>>, SourceError> {
        let mut columns = Vec::new();
        for field in self.schema.fields() {
            let Some((index, found)) = batch.schema_ref().column_with_name(field.name()) else {
                return Ok(None);
            };
            match conform(field, found, batch.column(index))? {
                Some(column) => columns.push(column),
                None => return Ok(None),
            }
        }
        Ok(Some(columns))
    }
}

/// Turns a column into what a later segment has of it, where that is wider.
fn conform(
    wanted: &Field,
    found: &Field,
    column: &ArrayRef,
) -> Result<Option<ArrayRef>, SourceError> {
    if is_literal(wanted) && !is_literal(found) {
        return Ok(Some(Arc::new(as_literals(column)?)));
    }
    if is_literal(wanted) == is_literal(found) && wanted.data_type() == found.data_type() {
        return Ok(Some(column.clone()));
    }
    if (wanted.data_type(), found.data_type()) == (&DataType::Float64, &DataType::Int64) {
        let numbers = column.as_primitive::<Int64Type>();
        #[expect(
            clippy::cast_precision_loss,
            reason = "a column that was made wider holds no number that is too long"
        )]
        let doubles: Float64Array =
            numbers.iter().map(|number| number.map(|number| number as f64)).collect();
        return Ok(Some(Arc::new(doubles)));
    }
    Ok(None)
}

fn digest(row: &[u8]) -> RowDigest {
    let sha256 = Sha256::of(row);
    let (first, _) = sha256.as_bytes().split_at(16);
    first.iter().fold(0, |digest, byte| digest << 8 | u128::from(*byte))
}

/// Adds digests up: the sum says the same whatever the order, and a row that stands twice counts twice.
pub(super) fn sum(digests: &[RowDigest]) -> RowDigest {
    digests.iter().fold(0, |sum, digest| sum.wrapping_add(*digest))
}

/// Writes a sum as a manifest does.
pub(super) fn text(sum: RowDigest) -> String {
    format!("{sum:032x}")
}

fn unusable(error: &arrow_schema::ArrowError) -> SourceError {
    refused(format!("rows cannot be compared: {error}"))
}

//! From values as databases give them to Arrow columns.

use std::sync::Arc;

use arrow_array::builder::{
    BinaryBuilder, BooleanBuilder, FixedSizeBinaryBuilder, PrimitiveBuilder, StringBuilder,
};
use arrow_array::cast::AsArray as _;
use arrow_array::types::{
    Date32Type, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type,
    Time64MicrosecondType, TimestampMicrosecondType, UInt64Type,
};
use arrow_array::{Array, ArrayRef, ListArray, RecordBatch};
use arrow_buffer::{BooleanBufferBuilder, NullBuffer, OffsetBuffer};
use arrow_schema::{DataType, Field, FieldRef, SchemaRef, TimeUnit};

use super::{BATCH_BYTES, BATCH_ROWS, refused};
use crate::source::SourceError;

/// A value of a row. Dates are days, times and timestamps microseconds, both since 1970 or midnight.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Unsigned(u64),
    Float(f32),
    Double(f64),
    /// In units of the column's scale.
    Decimal(i128),
    Text(&'a str),
    Bytes(&'a [u8]),
    List(Vec<Value<'a>>),
}

impl Value<'_> {
    /// Returns roughly what it takes in memory.
    fn bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Bytes(bytes) => bytes.len(),
            Self::List(values) => values.iter().map(Self::bytes).sum(),
            _ => size_of::<i64>(),
        }
    }
}

/// Gathers values of the columns of a schema.
pub(crate) struct Builder {
    schema: SchemaRef,
    columns: Vec<Column>,
    rows: usize,
    bytes: usize,
}

impl Builder {
    /// Fails if a column is of a type that no value here can be put into.
    pub(crate) fn new(schema: SchemaRef) -> Result<Self, SourceError> {
        let columns = schema.fields().iter().map(|field| Column::new(field));
        Ok(Self { columns: columns.collect::<Result<_, _>>()?, schema, rows: 0, bytes: 0 })
    }

    /// Says whether what was gathered is a batch: few rows, if they are large.
    pub(crate) fn is_full(&self) -> bool {
        self.rows >= BATCH_ROWS || self.bytes >= BATCH_BYTES
    }

    /// Adds a row: its values in the order of the columns.
    pub(crate) fn push<'a>(
        &mut self,
        values: impl IntoIterator<Item = Result<Value<'a>, SourceError>>,
    ) -> Result<(), SourceError> {
        let mut values = values.into_iter();
        for (column, field) in self.columns.iter_mut().zip(self.schema.fields()) {
            let value = values.next().unwrap_or(Ok(Value::Null))?;
            self.bytes += value.bytes();
            column.push(&value).map_err(|finding| {
                refused(format!(
                    "column {} holds {finding}, which is not {}",
                    field.name(),
                    field.data_type()
                ))
            })?;
        }
        self.rows += 1;
        Ok(())
    }

    /// Returns the rows so far, and begins anew.
    pub(crate) fn batch(&mut self) -> Result<RecordBatch, SourceError> {
        (self.rows, self.bytes) = (0, 0);
        let columns = self.columns.iter_mut().map(Column::finish).collect();
        RecordBatch::try_new(self.schema.clone(), columns)
            .map_err(|error| refused(format!("rows do not fit their columns: {error}")))
    }
}

enum Column {
    Bool(BooleanBuilder),
    Int16(PrimitiveBuilder<Int16Type>),
    Int32(PrimitiveBuilder<Int32Type>),
    Int64(PrimitiveBuilder<Int64Type>),
    UInt64(PrimitiveBuilder<UInt64Type>),
    Float(PrimitiveBuilder<Float32Type>),
    Double(PrimitiveBuilder<Float64Type>),
    Decimal(PrimitiveBuilder<Decimal128Type>),
    Date(PrimitiveBuilder<Date32Type>),
    Time(PrimitiveBuilder<Time64MicrosecondType>),
    Timestamp(PrimitiveBuilder<TimestampMicrosecondType>),
    Text(StringBuilder),
    Bytes(BinaryBuilder),
    Fixed(FixedSizeBinaryBuilder),
    List(Box<ListColumn>),
}

struct ListColumn {
    field: FieldRef,
    values: Column,
    lengths: Vec<usize>,
    present: BooleanBufferBuilder,
}

impl Column {
    fn new(field: &Field) -> Result<Self, SourceError> {
        let kind = field.data_type();
        Ok(match kind {
            DataType::Boolean => Self::Bool(BooleanBuilder::new()),
            DataType::Int16 => Self::Int16(PrimitiveBuilder::new()),
            DataType::Int32 => Self::Int32(PrimitiveBuilder::new()),
            DataType::Int64 => Self::Int64(PrimitiveBuilder::new()),
            DataType::UInt64 => Self::UInt64(PrimitiveBuilder::new()),
            DataType::Float32 => Self::Float(PrimitiveBuilder::new()),
            DataType::Float64 => Self::Double(PrimitiveBuilder::new()),
            DataType::Decimal128(..) => {
                Self::Decimal(PrimitiveBuilder::new().with_data_type(kind.clone()))
            }
            DataType::Date32 => Self::Date(PrimitiveBuilder::new()),
            DataType::Time64(TimeUnit::Microsecond) => Self::Time(PrimitiveBuilder::new()),
            DataType::Timestamp(TimeUnit::Microsecond, _) => {
                Self::Timestamp(PrimitiveBuilder::new().with_data_type(kind.clone()))
            }
            DataType::Utf8 => Self::Text(StringBuilder::new()),
            DataType::Binary => Self::Bytes(BinaryBuilder::new()),
            DataType::FixedSizeBinary(bytes) => Self::Fixed(FixedSizeBinaryBuilder::new(*bytes)),
            DataType::List(element) => Self::List(Box::new(ListColumn {
                field: element.clone(),
                values: Self::new(element)?,
                lengths: Vec::new(),
                present: BooleanBufferBuilder::new(0),
            })),
            other => {
                return Err(refused(format!("column {} cannot hold {other}", field.name())));
            }
        })
    }

    /// Fails with the value, for a person.
    fn push(&mut self, value: &Value<'_>) -> Result<(), String> {
        let bad = || short(value);
        match (self, value) {
            (Self::Bool(column), Value::Null) => column.append_null(),
            (Self::Bool(column), Value::Bool(value)) => column.append_value(*value),
            (Self::Int16(column), value) => column.append_option(whole(value)?),
            (Self::Int32(column), value) => column.append_option(whole(value)?),
            (Self::Int64(column), value) => column.append_option(whole(value)?),
            (Self::Date(column), value) => column.append_option(whole(value)?),
            (Self::Time(column), value) => column.append_option(whole(value)?),
            (Self::Timestamp(column), value) => column.append_option(whole(value)?),
            (Self::UInt64(column), Value::Null) => column.append_null(),
            (Self::UInt64(column), Value::Unsigned(value)) => column.append_value(*value),
            (Self::UInt64(column), Value::Int(value)) => {
                column.append_value(u64::try_from(*value).map_err(|_| bad())?);
            }
            (Self::Float(column), Value::Null) => column.append_null(),
            (Self::Float(column), Value::Float(value)) => column.append_value(*value),
            (Self::Double(column), Value::Null) => column.append_null(),
            (Self::Double(column), Value::Double(value)) => column.append_value(*value),
            (Self::Decimal(column), Value::Null) => column.append_null(),
            (Self::Decimal(column), Value::Decimal(value)) => column.append_value(*value),
            (Self::Text(column), Value::Null) => column.append_null(),
            (Self::Text(column), Value::Text(text)) => column.append_value(text),
            (Self::Bytes(column), Value::Null) => column.append_null(),
            (Self::Bytes(column), Value::Bytes(bytes)) => column.append_value(bytes),
            (Self::Fixed(column), Value::Null) => column.append_null(),
            (Self::Fixed(column), Value::Bytes(bytes)) => {
                column.append_value(bytes).map_err(|_| bad())?;
            }
            (Self::List(column), Value::Null) => {
                column.lengths.push(0);
                column.present.append(false);
            }
            (Self::List(column), Value::List(values)) => {
                for value in values {
                    column.values.push(value)?;
                }
                column.lengths.push(values.len());
                column.present.append(true);
            }
            _ => return Err(bad()),
        }
        Ok(())
    }

    fn finish(&mut self) -> ArrayRef {
        match self {
            Self::Bool(column) => Arc::new(column.finish()),
            Self::Int16(column) => Arc::new(column.finish()),
            Self::Int32(column) => Arc::new(column.finish()),
            Self::Int64(column) => Arc::new(column.finish()),
            Self::UInt64(column) => Arc::new(column.finish()),
            Self::Float(column) => Arc::new(column.finish()),
            Self::Double(column) => Arc::new(column.finish()),
            Self::Decimal(column) => Arc::new(column.finish()),
            Self::Date(column) => Arc::new(column.finish()),
            Self::Time(column) => Arc::new(column.finish()),
            Self::Timestamp(column) => Arc::new(column.finish()),
            Self::Text(column) => Arc::new(column.finish()),
            Self::Bytes(column) => Arc::new(column.finish()),
            Self::Fixed(column) => Arc::new(column.finish()),
            Self::List(column) => {
                let offsets = OffsetBuffer::from_lengths(std::mem::take(&mut column.lengths));
                let present = NullBuffer::new(column.present.finish());
                Arc::new(ListArray::new(
                    column.field.clone(),
                    offsets,
                    column.values.finish(),
                    Some(present),
                ))
            }
        }
    }
}

/// Returns a value of a column that a [`Builder`] made, or that was read from one of its files.
pub(crate) fn value_at(array: &dyn Array, row: usize) -> Result<Value<'_>, SourceError> {
    if array.is_null(row) {
        return Ok(Value::Null);
    }
    Ok(match array.data_type() {
        DataType::Boolean => Value::Bool(array.as_boolean().value(row)),
        DataType::Int16 => Value::Int(array.as_primitive::<Int16Type>().value(row).into()),
        DataType::Int32 => Value::Int(array.as_primitive::<Int32Type>().value(row).into()),
        DataType::Int64 => Value::Int(array.as_primitive::<Int64Type>().value(row)),
        DataType::UInt64 => Value::Unsigned(array.as_primitive::<UInt64Type>().value(row)),
        DataType::Float32 => Value::Float(array.as_primitive::<Float32Type>().value(row)),
        DataType::Float64 => Value::Double(array.as_primitive::<Float64Type>().value(row)),
        DataType::Decimal128(..) => {
            Value::Decimal(array.as_primitive::<Decimal128Type>().value(row))
        }
        DataType::Date32 => Value::Int(array.as_primitive::<Date32Type>().value(row).into()),
        DataType::Time64(TimeUnit::Microsecond) => {
            Value::Int(array.as_primitive::<Time64MicrosecondType>().value(row))
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            Value::Int(array.as_primitive::<TimestampMicrosecondType>().value(row))
        }
        DataType::Utf8 => Value::Text(array.as_string::<i32>().value(row)),
        DataType::Binary => Value::Bytes(array.as_binary::<i32>().value(row)),
        DataType::FixedSizeBinary(_) => Value::Bytes(array.as_fixed_size_binary().value(row)),
        other => {
            return Err(refused(format!("a value of {other} cannot be written to this database")));
        }
    })
}

/// Returns a whole number of any width.
fn whole<T: TryFrom<i64>>(value: &Value<'_>) -> Result<Option<T>, String> {
    match value {
        Value::Null => Ok(None),
        Value::Int(number) => T::try_from(*number).map(Some).map_err(|_| short(value)),
        _ => Err(short(value)),
    }
}

/// Shows a value in an error: enough to find it, not enough to tell.
fn short(value: &Value<'_>) -> String {
    match value {
        Value::Text(text) => format!("a text of {} bytes", text.len()),
        Value::Bytes(bytes) => format!("{} bytes", bytes.len()),
        Value::List(values) => format!("a list of {}", values.len()),
        other => format!("{other:?}"),
    }
}

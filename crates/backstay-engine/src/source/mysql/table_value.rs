//! Values as MySQL and MariaDB send them for prepared statements.

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray as _;
use arrow_array::types::Decimal128Type;
use arrow_schema::extension::{Json, Uuid};
use arrow_schema::{DataType, Field, TimeUnit};

use crate::source::SourceError;
use crate::source::table::{
    DAY_MICROS, Kept, TableColumn, TimeColumn, Value, civil, days_of, is_literal, refused,
    uuid_text, value_at,
};

/// The most digits that a decimal of 128 bits can have.
const MAX_DIGITS: u64 = 38;

/// What the values of a column are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Int,
    /// All of 64 bits.
    Unsigned,
    Bits,
    Float,
    Double,
    Decimal(u8, i8),
    Text,
    /// One of several texts.
    Enum,
    Json,
    Bytes,
    Date,
    Timestamp {
        has_zone: bool,
    },
    Uuid,
    /// The server's text for a type that nothing else can hold.
    Cast,
}

impl Kind {
    pub(super) fn of(kind: &str, declared: &str, (precision, scale): (u64, u64)) -> Option<Self> {
        Some(match kind {
            "bigint" if declared.contains("unsigned") => Self::Unsigned,
            "tinyint" | "smallint" | "mediumint" | "int" | "bigint" | "year" => Self::Int,
            "bit" => Self::Bits,
            "float" => Self::Float,
            "double" => Self::Double,
            "decimal" if precision <= MAX_DIGITS => {
                match (u8::try_from(precision), i8::try_from(scale)) {
                    (Ok(precision), Ok(scale)) => Self::Decimal(precision, scale),
                    _ => Self::Cast,
                }
            }
            "char" | "varchar" | "tinytext" | "text" | "mediumtext" | "longtext" | "set" => {
                Self::Text
            }
            "enum" => Self::Enum,
            "json" => Self::Json,
            "binary" | "varbinary" | "tinyblob" | "blob" | "mediumblob" | "longblob" => Self::Bytes,
            "geometry" | "point" | "linestring" | "polygon" | "multipoint" | "multilinestring"
            | "multipolygon" | "geometrycollection" | "geomcollection" => Self::Bytes,
            "date" => Self::Date,
            "datetime" => Self::Timestamp { has_zone: false },
            "timestamp" => Self::Timestamp { has_zone: true },
            "uuid" => Self::Uuid,
            "time" | "decimal" | "inet4" | "inet6" => Self::Cast,
            _ => return None,
        })
    }

    /// Returns what it is to somebody who looks for a time. That of a session with a zone is local, too: ours is UTC.
    pub(super) fn as_time(self) -> TimeColumn {
        match self {
            Self::Timestamp { .. } => TimeColumn::Time(Kept::Local),
            Self::Date => TimeColumn::Time(Kept::Date),
            Self::Int | Self::Unsigned => TimeColumn::Whole,
            _ => TimeColumn::Other,
        }
    }

    pub(super) fn field(self, name: &str) -> Field {
        let field = |kind| Field::new(name, kind, true);
        match self {
            Self::Int => field(DataType::Int64),
            Self::Unsigned | Self::Bits => field(DataType::UInt64),
            Self::Float => field(DataType::Float32),
            Self::Double => field(DataType::Float64),
            Self::Decimal(precision, scale) => field(DataType::Decimal128(precision, scale)),
            Self::Text | Self::Enum | Self::Cast => field(DataType::Utf8),
            Self::Json => field(DataType::Utf8).with_extension_type(Json::default()),
            Self::Bytes => field(DataType::Binary),
            Self::Date => field(DataType::Date32),
            Self::Timestamp { has_zone } => {
                let zone = has_zone.then(|| Arc::from("UTC"));
                field(DataType::Timestamp(TimeUnit::Microsecond, zone))
            }
            Self::Uuid => field(DataType::FixedSizeBinary(16)).with_extension_type(Uuid),
        }
    }
}

/// Reads a value. Fails with what it is, where the column cannot hold it.
pub(super) fn value(kind: Kind, value: &mysql_async::Value) -> Result<Value<'_>, String> {
    use mysql_async::Value as Found;
    let odd = || "a value that its type does not have".to_owned();
    Ok(match (value, kind) {
        (Found::NULL, _) => Value::Null,
        (Found::Int(number), Kind::Int | Kind::Unsigned | Kind::Bits) => Value::Int(*number),
        (Found::UInt(number), Kind::Unsigned | Kind::Bits) => Value::Unsigned(*number),
        (Found::UInt(number), Kind::Int) => Value::Int(i64::try_from(*number).map_err(|_| odd())?),
        (Found::Float(number), Kind::Float) => Value::Float(*number),
        (Found::Double(number), Kind::Double) => Value::Double(*number),
        (Found::Bytes(bytes), Kind::Decimal(_, scale)) => Value::Decimal(
            std::str::from_utf8(bytes)
                .ok()
                .and_then(|text| decimal(text, scale))
                .ok_or_else(odd)?,
        ),
        (Found::Bytes(bytes), Kind::Enum) if bytes.is_empty() => {
            return Err("a value that its list does not have".to_owned());
        }
        (Found::Bytes(bytes), Kind::Text | Kind::Enum | Kind::Json | Kind::Cast) => Value::Text(
            std::str::from_utf8(bytes).map_err(|_| "a text that is not UTF-8".to_owned())?,
        ),
        (Found::Bytes(bytes), Kind::Bytes | Kind::Uuid) => Value::Bytes(bytes),
        (
            Found::Date(year, month, day, hour, minute, second, micros),
            Kind::Date | Kind::Timestamp { .. },
        ) => {
            if *month == 0 || *day == 0 {
                return Err("a date that is none".to_owned());
            }
            let days = days_of((*year).into(), (*month).into(), (*day).into());
            if kind == Kind::Date {
                return Ok(Value::Int(days));
            }
            let seconds = (days * 24 + i64::from(*hour)) * 3600
                + i64::from(*minute) * 60
                + i64::from(*second);
            Value::Int(seconds * 1_000_000 + i64::from(*micros))
        }
        _ => return Err(odd()),
    })
}

/// Reads a decimal in units of its scale.
fn decimal(text: &str, scale: i8) -> Option<i128> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let scale = usize::try_from(scale).ok()?;
    if part.len() > scale {
        return None;
    }
    format!("{whole}{part}{}", "0".repeat(scale - part.len())).parse().ok()
}

/// Returns a value of a column as a parameter of a statement.
pub(super) fn parameter(
    rows: &RecordBatch,
    column: &TableColumn,
    row: usize,
) -> Result<mysql_async::Value, SourceError> {
    use mysql_async::Value as Sent;
    let name = column.field.name();
    let lacks = || refused(format!("the rows lack the column {name}"));
    let (index, field) = rows.schema_ref().column_with_name(name).ok_or_else(lacks)?;
    if is_literal(field) {
        let finding =
            format!("column {name} holds values as SQLite writes them; restore with --to-file");
        return Err(refused(finding));
    }
    let array = rows.column(index);
    Ok(match (value_at(array, row)?, field.data_type()) {
        (Value::Null, _) => Sent::NULL,
        (Value::Int(days), DataType::Date32) => date(days, 0),
        (Value::Int(micros), DataType::Timestamp(..)) => {
            date(micros.div_euclid(DAY_MICROS), micros.rem_euclid(DAY_MICROS))
        }
        (Value::Bool(value), _) => Sent::Int(value.into()),
        (Value::Int(number), _) => Sent::Int(number),
        (Value::Unsigned(number), _) => Sent::UInt(number),
        (Value::Float(number), _) => Sent::Float(number),
        (Value::Double(number), _) => Sent::Double(number),
        (Value::Decimal(_), _) => {
            Sent::Bytes(array.as_primitive::<Decimal128Type>().value_as_string(row).into_bytes())
        }
        (Value::Text(text), _) => Sent::Bytes(text.as_bytes().to_vec()),
        (Value::Bytes(bytes), DataType::FixedSizeBinary(_)) => {
            Sent::Bytes(uuid_text(bytes).into_bytes())
        }
        (Value::Bytes(bytes), _) => Sent::Bytes(bytes.to_vec()),
        (Value::List(_), _) => return Err(refused(format!("column {name} holds lists"))),
    })
}

fn date(days: i64, micros: i64) -> mysql_async::Value {
    let (year, month, day) = civil(days);
    let part = |number: i64| u8::try_from(number).unwrap_or(0);
    let seconds = micros / 1_000_000;
    mysql_async::Value::Date(
        u16::try_from(year).unwrap_or(0),
        part(month),
        part(day),
        part(seconds / 3600),
        part(seconds / 60 % 60),
        part(seconds % 60),
        u32::try_from(micros % 1_000_000).unwrap_or(0),
    )
}

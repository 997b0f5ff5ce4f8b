//! Values as PostgreSQL's binary COPY writes them.

use std::sync::Arc;

use arrow_schema::extension::{Json, Uuid};
use arrow_schema::{DataType, Field, TimeUnit};

use crate::source::table::{DAY_MICROS, Kept, TimeColumn, Value};

/// Days and microseconds from 1970 to 2000, where PostgreSQL begins to count.
const EPOCH_DAYS: i64 = 10_957;
const EPOCH_MICROS: i64 = EPOCH_DAYS * DAY_MICROS;
/// The most digits that a decimal of 128 bits can have.
const MAX_DIGITS: i32 = 38;
/// What a type modifier has beside what it says.
const MODIFIER_HEADER: i32 = 4;
/// The sign of a number below zero; others are nothing that a decimal can hold.
const NEGATIVE: u16 = 0x4000;

/// What the values of a column are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Bool,
    /// Of so many bytes.
    Int(u8),
    Float,
    Double,
    Decimal {
        precision: u8,
        scale: i8,
    },
    /// Perhaps only by a cast: the database's own text for a type that nothing else can hold.
    Text {
        is_cast: bool,
    },
    Json {
        is_binary: bool,
    },
    Bytes,
    Date,
    Time,
    Timestamp {
        has_zone: bool,
    },
    Uuid,
    List(Box<Kind>),
}

impl Kind {
    /// Chooses by the names of a type and of its elements, if it is of those, and its modifier.
    pub(super) fn of(name: &str, element: Option<&str>, modifier: i32) -> Self {
        match (name, element) {
            ("bool", _) => Self::Bool,
            ("int2", _) => Self::Int(2),
            ("int4", _) => Self::Int(4),
            ("int8", _) => Self::Int(8),
            ("float4", _) => Self::Float,
            ("float8", _) => Self::Double,
            ("numeric", _) => Self::decimal(modifier),
            ("text" | "varchar" | "bpchar", _) => Self::Text { is_cast: false },
            ("json", _) => Self::Json { is_binary: false },
            ("jsonb", _) => Self::Json { is_binary: true },
            ("bytea", _) => Self::Bytes,
            ("date", _) => Self::Date,
            ("time", _) => Self::Time,
            ("timestamp", _) => Self::Timestamp { has_zone: false },
            ("timestamptz", _) => Self::Timestamp { has_zone: true },
            ("uuid", _) => Self::Uuid,
            // Its elements have no modifier that a list could keep.
            (_, Some("numeric")) | (_, None) => Self::Text { is_cast: true },
            (_, Some(element)) => match Self::of(element, None, -1) {
                Self::Text { is_cast: true } => Self::Text { is_cast: true },
                element => Self::List(Box::new(element)),
            },
        }
    }

    fn decimal(modifier: i32) -> Self {
        let declared = modifier - MODIFIER_HEADER;
        let (precision, scale) = (declared >> 16, declared & 0x7ff);
        if declared < 0 || precision > MAX_DIGITS || scale > precision {
            return Self::Text { is_cast: true };
        }
        match (u8::try_from(precision), i8::try_from(scale)) {
            (Ok(precision), Ok(scale)) => Self::Decimal { precision, scale },
            _ => Self::Text { is_cast: true },
        }
    }

    /// Returns what it is to somebody who looks for a time.
    pub(super) fn as_time(&self) -> TimeColumn {
        match self {
            Self::Timestamp { has_zone: true } => TimeColumn::Time(Kept::Instant),
            Self::Timestamp { has_zone: false } => TimeColumn::Time(Kept::Local),
            Self::Date => TimeColumn::Time(Kept::Date),
            Self::Int(_) => TimeColumn::Whole,
            _ => TimeColumn::Other,
        }
    }

    /// Returns a column of such values.
    pub(super) fn field(&self, name: &str) -> Field {
        let field = |kind| Field::new(name, kind, true);
        match self {
            Self::Bool => field(DataType::Boolean),
            Self::Int(2) => field(DataType::Int16),
            Self::Int(4) => field(DataType::Int32),
            Self::Int(_) => field(DataType::Int64),
            Self::Float => field(DataType::Float32),
            Self::Double => field(DataType::Float64),
            Self::Decimal { precision, scale } => field(DataType::Decimal128(*precision, *scale)),
            Self::Text { .. } => field(DataType::Utf8),
            Self::Json { .. } => field(DataType::Utf8).with_extension_type(Json::default()),
            Self::Bytes => field(DataType::Binary),
            Self::Date => field(DataType::Date32),
            Self::Time => field(DataType::Time64(TimeUnit::Microsecond)),
            Self::Timestamp { has_zone } => {
                let zone = has_zone.then(|| Arc::from("UTC"));
                field(DataType::Timestamp(TimeUnit::Microsecond, zone))
            }
            Self::Uuid => field(DataType::FixedSizeBinary(16)).with_extension_type(Uuid),
            Self::List(element) => field(DataType::List(Arc::new(element.field("element")))),
        }
    }
}

/// Reads a value. Fails with what it is, where the column cannot hold it.
pub(super) fn value<'a>(kind: &Kind, bytes: &'a [u8]) -> Result<Value<'a>, String> {
    let text = |bytes: &'a [u8]| {
        std::str::from_utf8(bytes)
            .map(Value::Text)
            .map_err(|_| "a text that is not UTF-8".to_owned())
    };
    match kind {
        Kind::Bool => Ok(Value::Bool(bytes != [0])),
        Kind::Int(_) => whole(bytes).map(Value::Int),
        Kind::Float => Ok(Value::Float(f32::from_be_bytes(array(bytes)?))),
        Kind::Double => Ok(Value::Double(f64::from_be_bytes(array(bytes)?))),
        Kind::Decimal { scale, .. } => decimal(bytes, i32::from(*scale)).map(Value::Decimal),
        Kind::Text { .. } | Kind::Json { is_binary: false } => text(bytes),
        // Its first byte is a version.
        Kind::Json { is_binary: true } => text(bytes.get(1..).unwrap_or_default()),
        Kind::Bytes | Kind::Uuid => Ok(Value::Bytes(bytes)),
        Kind::Date => match i32::from_be_bytes(array(bytes)?) {
            i32::MAX | i32::MIN => Err("an infinite date".to_owned()),
            days => Ok(Value::Int(i64::from(days) + EPOCH_DAYS)),
        },
        Kind::Time => whole(bytes).map(Value::Int),
        Kind::Timestamp { .. } => match whole(bytes)? {
            i64::MAX | i64::MIN => Err("an infinite time".to_owned()),
            micros => micros
                .checked_add(EPOCH_MICROS)
                .map(Value::Int)
                .ok_or_else(|| "a time too far away".to_owned()),
        },
        Kind::List(element) => list(element, bytes),
    }
}

fn array<const N: usize>(bytes: &[u8]) -> Result<[u8; N], String> {
    bytes.try_into().map_err(|_| format!("{} bytes instead of {N}", bytes.len()))
}

fn whole(bytes: &[u8]) -> Result<i64, String> {
    Ok(match bytes.len() {
        2 => i16::from_be_bytes(array(bytes)?).into(),
        4 => i32::from_be_bytes(array(bytes)?).into(),
        _ => i64::from_be_bytes(array(bytes)?),
    })
}

/// Reads numbers in order.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], String> {
        let (taken, rest) =
            self.0.split_at_checked(bytes).ok_or_else(|| "a value cut short".to_owned())?;
        self.0 = rest;
        Ok(taken)
    }

    fn i16(&mut self) -> Result<i16, String> {
        Ok(i16::from_be_bytes(array(self.take(2)?)?))
    }

    fn i32(&mut self) -> Result<i32, String> {
        Ok(i32::from_be_bytes(array(self.take(4)?)?))
    }
}

/// Reads digits to the base of 10,000, the first of which counts that to the power of the weight.
fn decimal(bytes: &[u8], scale: i32) -> Result<i128, String> {
    let mut cursor = Cursor(bytes);
    let (digits, weight) = (cursor.i16()?, i32::from(cursor.i16()?));
    let sign = cursor.i16()?.cast_unsigned();
    cursor.i16()?;
    if sign != 0 && sign != NEGATIVE {
        return Err("a number that is none, or infinite".to_owned());
    }
    let mut units: i128 = 0;
    for i in 0..i32::from(digits) {
        let digit = i128::from(cursor.i16()?);
        // In units of the scale, this digit counts ten to the power of so much.
        let power = 4 * (weight - i) + scale;
        let part = match u32::try_from(power) {
            Ok(power) => 10_i128.checked_pow(power).and_then(|factor| digit.checked_mul(factor)),
            // The last digit may reach beyond the scale with zeros.
            Err(_) => 10_i128.checked_pow(power.unsigned_abs()).map(|divisor| digit / divisor),
        };
        let sum = part.and_then(|part| units.checked_add(part));
        units = sum.ok_or_else(|| "a number with too many digits".to_owned())?;
    }
    Ok(if sign == NEGATIVE { -units } else { units })
}

fn list<'a>(element: &Kind, bytes: &'a [u8]) -> Result<Value<'a>, String> {
    let mut cursor = Cursor(bytes);
    let dimensions = cursor.i32()?;
    cursor.take(8)?;
    if dimensions == 0 {
        return Ok(Value::List(Vec::new()));
    }
    let (length, first) = (cursor.i32()?, cursor.i32()?);
    if dimensions > 1 || first != 1 {
        return Err("an array of several dimensions, or one that does not begin at 1".to_owned());
    }
    let mut values = Vec::new();
    for _ in 0..length {
        values.push(match usize::try_from(cursor.i32()?) {
            Ok(bytes) => value(element, cursor.take(bytes)?)?,
            Err(_) => Value::Null,
        });
    }
    Ok(Value::List(values))
}

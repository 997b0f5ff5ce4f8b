//! Values of SQLite, from a row to a column and back.

use arrow_array::Array;
use arrow_schema::{DataType, Field};
use rusqlite::types::{Value as Bound, ValueRef};

use crate::source::SourceError;
use crate::source::table::{Value, is_literal, refused, sql_literal, value_at};

pub(super) fn value<'a>(value: ValueRef<'a>, field: &Field) -> Result<Value<'a>, SourceError> {
    Ok(match (value, field.data_type()) {
        (ValueRef::Null, _) => Value::Null,
        (ValueRef::Integer(number), DataType::Float64) => {
            #[expect(clippy::cast_precision_loss, reason = "compared right after")]
            let double = number as f64;
            #[expect(clippy::cast_possible_truncation, reason = "that is the question")]
            let is_same = double as i128 == i128::from(number);
            if !is_same {
                return Err(refused(format!(
                    "column {} holds {number}, which is too long for a fraction",
                    field.name()
                )));
            }
            Value::Double(double)
        }
        (ValueRef::Integer(number), _) => Value::Int(number),
        (ValueRef::Real(number), _) => Value::Double(number),
        (ValueRef::Text(bytes), _) => Value::Text(text(bytes, field.name())?),
        (ValueRef::Blob(bytes), _) => Value::Bytes(bytes),
    })
}

fn text<'a>(bytes: &'a [u8], column: &str) -> Result<&'a str, SourceError> {
    std::str::from_utf8(bytes).map_err(|_| {
        refused(format!(
            "column {column} holds a text that is not UTF-8; make it a blob: CAST({column} AS BLOB)"
        ))
    })
}

/// Returns a value as SQL writes it.
pub(super) fn literal_of(
    value: &ValueRef<'_>,
    column: &str,
) -> Result<Option<String>, SourceError> {
    Ok(match value {
        ValueRef::Null => None,
        ValueRef::Integer(number) => Some(number.to_string()),
        ValueRef::Real(number) => Some(sql_literal(&Value::Double(*number))),
        ValueRef::Text(bytes) => Some(sql_literal(&Value::Text(text(bytes, column)?))),
        ValueRef::Blob(bytes) => Some(sql_literal(&Value::Bytes(bytes))),
    })
}

/// Returns a value of a column as a parameter of a statement.
pub(super) fn bound_value(
    field: &Field,
    array: &dyn Array,
    row: usize,
) -> Result<Bound, SourceError> {
    Ok(match value_at(array, row)? {
        Value::Text(text) if is_literal(field) => of_literal(text).ok_or_else(|| {
            refused(format!(
                "column {} of the archived rows holds something that is no value",
                field.name()
            ))
        })?,
        Value::Null => Bound::Null,
        Value::Bool(value) => Bound::Integer(value.into()),
        Value::Int(number) => Bound::Integer(number),
        Value::Float(number) => Bound::Real(number.into()),
        Value::Double(number) => Bound::Real(number),
        Value::Text(text) => Bound::Text(text.to_owned()),
        Value::Bytes(bytes) => Bound::Blob(bytes.to_vec()),
        Value::Unsigned(_) | Value::Decimal(_) | Value::List(_) => {
            return Err(refused(format!("column {} holds what SQLite does not", field.name())));
        }
    })
}

/// Reads what [`literal_of`] wrote.
fn of_literal(text: &str) -> Option<Bound> {
    let quoted = |text: &str| text.strip_prefix('\'')?.strip_suffix('\'').map(str::to_owned);
    if let Some(inner) = quoted(text) {
        return Some(Bound::Text(inner.replace("''", "'")));
    }
    if let Some(inner) =
        text.strip_prefix("CAST(X").and_then(|rest| quoted(rest.strip_suffix(" AS TEXT)")?))
    {
        return String::from_utf8(hex::decode(inner).ok()?).ok().map(Bound::Text);
    }
    if let Some(inner) = text.strip_prefix('X').and_then(quoted) {
        return hex::decode(inner).ok().map(Bound::Blob);
    }
    match text {
        "9e999" => Some(Bound::Real(f64::INFINITY)),
        "-9e999" => Some(Bound::Real(f64::NEG_INFINITY)),
        _ => text.parse().map(Bound::Integer).or_else(|_| text.parse().map(Bound::Real)).ok(),
    }
}

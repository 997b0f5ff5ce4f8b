//! Arrow values as a database's SQL writes them.

use arrow_array::builder::StringBuilder;
use arrow_array::cast::AsArray as _;
use arrow_array::types::{
    Date32Type, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type,
    Time64MicrosecondType, TimestampMicrosecondType, UInt64Type,
};
use arrow_array::{Array, RecordBatch, StringArray};
use arrow_schema::{DataType, TimeUnit};

use super::time::{clock_text, date_text, time_text};
use super::{TableColumn, Value, is_literal, refused};
use crate::source::SourceError;

/// Whose SQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    Postgres,
    Mysql,
    Sqlite,
}

/// Writes the rows of a batch as `(…), (…)`: of each, the columns that are given, in their order.
pub(crate) fn rows_list(
    dialect: Dialect,
    batch: &RecordBatch,
    columns: &[&TableColumn],
) -> Result<String, SourceError> {
    let mut out = String::new();
    for row in 0..batch.num_rows() {
        out.push_str(if row == 0 { "(" } else { ", (" });
        for (i, column) in columns.iter().enumerate() {
            if i > 0 {
                out.push_str(", ");
            }
            let name = column.field.name();
            let array = batch
                .column_by_name(name)
                .ok_or_else(|| refused(format!("the rows lack the column {name}")))?;
            let is_literal = batch.schema_ref().field_with_name(name).is_ok_and(is_literal);
            if is_literal && dialect != Dialect::Sqlite {
                let finding = format!(
                    "column {name} holds values as SQLite writes them; restore with --to-file"
                );
                return Err(refused(finding));
            }
            if is_literal && !array.is_null(row) {
                write_literal(array.as_string::<i32>().value(row), name, &mut out)?;
            } else {
                write_value(dialect, &column.declared, array, row, &mut out)?;
            }
        }
        out.push(')');
    }
    Ok(out)
}

/// Writes the key of each row.
pub(crate) fn keys_list(
    dialect: Dialect,
    batch: &RecordBatch,
    columns: &[TableColumn],
    key: &[String],
) -> Result<String, SourceError> {
    rows_list(dialect, batch, &key_columns(columns, key))
}

/// Writes the key of each row as a condition.
pub(crate) fn key_conditions(
    dialect: Dialect,
    batch: &RecordBatch,
    columns: &[TableColumn],
    key: &[String],
    identifier: fn(&str) -> String,
) -> Result<Vec<String>, SourceError> {
    let key = key_columns(columns, key);
    let condition = |row: usize| {
        let row = batch.slice(row, 1);
        let equal = key.iter().map(|column| {
            let value = rows_list(dialect, &row, &[column])?;
            Ok(format!("{} = {value}", identifier(column.field.name())))
        });
        let equal: Vec<String> = equal.collect::<Result<_, SourceError>>()?;
        Ok(format!("({})", equal.join(" AND ")))
    };
    (0..batch.num_rows()).map(condition).collect()
}

fn key_columns<'a>(columns: &'a [TableColumn], key: &[String]) -> Vec<&'a TableColumn> {
    let of = |name| columns.iter().find(|column| column.field.name() == name);
    key.iter().filter_map(of).collect()
}

/// Writes a value that is kept as SQL writes it, after a look at it: what comes from a storage could be anything.
fn write_literal(text: &str, column: &str, out: &mut String) -> Result<(), SourceError> {
    let quoted = |text: &str| text.strip_prefix('\'')?.strip_suffix('\'').map(str::to_owned);
    let is_text = quoted(text).is_some_and(|inner| !inner.replace("''", "").contains(['\'', '\0']));
    let is_blob = text
        .strip_prefix('X')
        .and_then(quoted)
        .is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
    let is_cast =
        text.strip_prefix("CAST(X").and_then(|rest| quoted(rest.strip_suffix(" AS TEXT)")?));
    let is_cast = is_cast.is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
    let is_number =
        text.parse::<f64>().is_ok_and(f64::is_finite) || ["9e999", "-9e999"].contains(&text);
    if is_text || is_blob || is_cast || is_number {
        out.push_str(text);
        return Ok(());
    }
    Err(refused(format!("column {column} of the archived rows holds something that is no value")))
}

/// Writes a value as SQLite does, so that it is the same value again, of the same kind.
pub(crate) fn sql_literal(value: &Value<'_>) -> String {
    let mut out = String::new();
    match value {
        Value::Int(number) => out.push_str(&number.to_string()),
        Value::Double(number) => {
            // A point or an exponent: without, it would be a whole number.
            out.push_str(&float_text(Dialect::Sqlite, *number, format!("{number:e}")));
        }
        Value::Text(text) => {
            // For this dialect there is no text that cannot be written.
            drop(write_text(Dialect::Sqlite, text, &mut out));
        }
        Value::Bytes(bytes) => write_bytes(Dialect::Sqlite, bytes, &mut out),
        _ => out.push_str("NULL"),
    }
    out
}

/// Turns a column of another kind into one of values as SQL writes them.
pub(crate) fn as_literals(array: &dyn Array) -> Result<StringArray, SourceError> {
    let mut builder = StringBuilder::new();
    for row in 0..array.len() {
        if array.is_null(row) {
            builder.append_null();
            continue;
        }
        builder.append_value(match array.data_type() {
            DataType::Int64 => {
                sql_literal(&Value::Int(array.as_primitive::<Int64Type>().value(row)))
            }
            DataType::Float64 => {
                sql_literal(&Value::Double(array.as_primitive::<Float64Type>().value(row)))
            }
            DataType::Utf8 => sql_literal(&Value::Text(array.as_string::<i32>().value(row))),
            DataType::Binary => sql_literal(&Value::Bytes(array.as_binary::<i32>().value(row))),
            other => return Err(refused(format!("{other} is nothing that SQLite holds"))),
        });
    }
    Ok(builder.finish())
}

fn write_value(
    dialect: Dialect,
    declared: &str,
    array: &dyn Array,
    row: usize,
    out: &mut String,
) -> Result<(), SourceError> {
    if array.is_null(row) {
        out.push_str("NULL");
    } else if let DataType::List(_) = array.data_type() {
        let values = array.as_list::<i32>().value(row);
        out.push_str("ARRAY[");
        for i in 0..values.len() {
            if i > 0 {
                out.push_str(", ");
            }
            write_value(dialect, "", &values, i, out)?;
        }
        out.push(']');
    } else {
        write_plain(dialect, array, row, out)?;
    }
    if dialect == Dialect::Postgres && !declared.is_empty() {
        out.push_str("::");
        out.push_str(declared);
    }
    Ok(())
}

fn write_plain(
    dialect: Dialect,
    array: &dyn Array,
    row: usize,
    out: &mut String,
) -> Result<(), SourceError> {
    let mut number = |text: String| out.push_str(&text);
    match array.data_type() {
        DataType::Boolean => number(u8::from(array.as_boolean().value(row)).to_string()),
        // In front of a cast a minus would stand outside of it.
        DataType::Int16 => number(format!("({})", array.as_primitive::<Int16Type>().value(row))),
        DataType::Int32 => number(format!("({})", array.as_primitive::<Int32Type>().value(row))),
        DataType::Int64 => number(format!("({})", array.as_primitive::<Int64Type>().value(row))),
        DataType::UInt64 => number(array.as_primitive::<UInt64Type>().value(row).to_string()),
        DataType::Decimal128(..) => {
            number(format!("'{}'", array.as_primitive::<Decimal128Type>().value_as_string(row)));
        }
        DataType::Float32 => {
            let value = array.as_primitive::<Float32Type>().value(row);
            number(float_text(dialect, value.into(), format!("{value:e}")));
        }
        DataType::Float64 => {
            let value = array.as_primitive::<Float64Type>().value(row);
            number(float_text(dialect, value, format!("{value:e}")));
        }
        DataType::Date32 => {
            let days = array.as_primitive::<Date32Type>().value(row);
            number(era_text(date_text(days.into())));
        }
        DataType::Time64(TimeUnit::Microsecond) => {
            let micros = array.as_primitive::<Time64MicrosecondType>().value(row);
            number(format!("'{}'", clock_text(micros)));
        }
        DataType::Timestamp(TimeUnit::Microsecond, zone) => {
            let micros = array.as_primitive::<TimestampMicrosecondType>().value(row);
            let (mut text, is_bc) = time_text(micros);
            if zone.is_some() && dialect == Dialect::Postgres {
                text.push_str("+00");
            }
            number(era_text((text, is_bc)));
        }
        DataType::Utf8 => write_text(dialect, array.as_string::<i32>().value(row), out)?,
        DataType::Binary => write_bytes(dialect, array.as_binary::<i32>().value(row), out),
        DataType::FixedSizeBinary(16) => {
            number(format!("'{}'", uuid_text(array.as_fixed_size_binary().value(row))));
        }
        other => return Err(refused(format!("a value of {other} cannot be written as SQL"))),
    }
    Ok(())
}

/// Writes a UUID; of other bytes, their digits.
pub(crate) fn uuid_text(bytes: &[u8]) -> String {
    let mut text = hex::encode(bytes);
    if bytes.len() == 16 {
        for at in [20, 16, 12, 8] {
            text.insert(at, '-');
        }
    }
    text
}

fn era_text((text, is_bc): (String, bool)) -> String {
    format!("'{text}{}'", if is_bc { " BC" } else { "" })
}

/// Shortest digits that give the same number again.
fn float_text(dialect: Dialect, value: f64, digits: String) -> String {
    match dialect {
        Dialect::Postgres => format!("'{}'", digits.replace("inf", "Infinity")),
        Dialect::Sqlite if value.is_infinite() => {
            if value > 0.0 { "9e999" } else { "-9e999" }.to_owned()
        }
        Dialect::Mysql | Dialect::Sqlite => digits,
    }
}

fn write_text(dialect: Dialect, text: &str, out: &mut String) -> Result<(), SourceError> {
    match dialect {
        // Whatever its settings say of backslashes.
        Dialect::Mysql => {
            out.push_str("_utf8mb4 ");
            write_bytes(dialect, text.as_bytes(), out);
        }
        // A literal would end there.
        Dialect::Sqlite if text.contains('\0') => {
            out.push_str("CAST(");
            write_bytes(dialect, text.as_bytes(), out);
            out.push_str(" AS TEXT)");
        }
        Dialect::Postgres if text.contains('\0') => {
            return Err(refused("a text has a character of zero in it".to_owned()));
        }
        Dialect::Postgres | Dialect::Sqlite => {
            out.push('\'');
            out.push_str(&text.replace('\'', "''"));
            out.push('\'');
        }
    }
    Ok(())
}

fn write_bytes(dialect: Dialect, bytes: &[u8], out: &mut String) {
    out.push_str(match dialect {
        Dialect::Postgres => "'\\x",
        Dialect::Mysql | Dialect::Sqlite => "X'",
    });
    out.push_str(&hex::encode(bytes));
    out.push('\'');
}

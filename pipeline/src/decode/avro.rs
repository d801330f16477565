//! Avro messages: a datum and the schema it was written with, to rows of cells or to JSON.
//!
//! # Contract
//! Fields are found by name: what the mapping does not name is ignored, what is missing has no
//! value. A schema that could make a small message use unbounded memory or stack (it contains
//! itself, or lists of things that take no bytes) is refused before a message is read.

use std::borrow::Cow;

use apache_avro::Schema;
use apache_avro::rabin::Rabin;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::schema::RecordSchema;
use apache_avro::types::Value;
use apache_avro::util::max_allocation_bytes;

use super::cell::Cell;
use super::json::Columns;
use super::reason::{Reason, Reject};

/// Most bytes that one value of a message may ask for.
const VALUE_BYTES_MAX: usize = 16 << 20;
/// First bytes of the single-object encoding.
const SINGLE_OBJECT: [u8; 2] = [0xc3, 0x01];
/// Bytes of the single-object encoding before the datum.
const SINGLE_OBJECT_HEADER: usize = 10;
const MICROS_PER_DAY: i64 = 86_400_000_000;

/// A schema that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// Not a schema of its language.
    #[error("not a schema: {0}")]
    Syntax(String),
    /// It lets a small message use unbounded memory.
    #[error("the schema is not safe to read: {0}")]
    Unsafe(String),
    /// The named message is not in it.
    #[error("{0}")]
    Message(String),
}

/// An Avro schema, checked.
#[derive(Clone, Debug)]
pub struct AvroSchema {
    schema: Schema,
    fingerprint: [u8; 8],
}

impl AvroSchema {
    /// A schema from its JSON; `references` are the named types that it uses.
    pub fn parse(text: &str, references: &[String]) -> Result<AvroSchema, SchemaError> {
        let syntax = |error: apache_avro::Error| SchemaError::Syntax(error.to_string());
        max_allocation_bytes(VALUE_BYTES_MAX);
        let schema = if references.is_empty() {
            Schema::parse_str(text).map_err(syntax)?
        } else {
            Schema::parse_str_with_list(text, references).map_err(syntax)?.0
        };
        safe(&schema, &mut Vec::new())?;
        let mut fingerprint = [0; 8];
        let bytes = schema.fingerprint::<Rabin>().bytes;
        if bytes.len() == fingerprint.len() {
            fingerprint.copy_from_slice(&bytes);
        }
        Ok(AvroSchema { schema, fingerprint })
    }

    /// Reads a datum written with this schema, as `reader` sees it if one is given. The
    /// single-object encoding is taken when its fingerprint is this schema's.
    pub(crate) fn read(&self, body: &[u8], reader: Option<&AvroSchema>) -> Result<Value, Reject> {
        let mut rest = match body {
            [a, b, ..] if [*a, *b] == SINGLE_OBJECT && body.len() >= SINGLE_OBJECT_HEADER => {
                match body[2..SINGLE_OBJECT_HEADER] == self.fingerprint {
                    true => &body[SINGLE_OBJECT_HEADER..],
                    false => body,
                }
            }
            _ => body,
        };
        let reader = reader.map(|reader| &reader.schema);
        let value = GenericDatumReader::builder(&self.schema)
            .maybe_reader_schema(reader)
            .build()
            .and_then(|datum| datum.read_value(&mut rest))
            .map_err(|error| {
                let detail = format!("not a datum of its Avro schema: {error}");
                Reject::new(Reason::Malformed, detail)
            })?;
        if !rest.is_empty() {
            let detail = format!("{} bytes are left behind the Avro datum", rest.len());
            return Err(Reject::new(Reason::Malformed, detail));
        }
        Ok(value)
    }

    /// The records of a value, one for each row; a value without any is refused.
    pub(crate) fn rows(&self, value: Value) -> Result<Vec<Fields<'_>>, Reject> {
        let mut rows = Vec::with_capacity(1);
        records(value, Some(&self.schema), &mut rows)?;
        Ok(rows)
    }
}

/// The fields of one record.
pub(crate) struct Fields<'s> {
    values: Vec<(String, Value)>,
    schema: Option<&'s RecordSchema>,
}

impl Fields<'_> {
    /// Puts the values of the named columns into `cells`.
    pub(crate) fn cells(self, columns: &Columns, cells: &mut Vec<Cell<'static>>) {
        cells.clear();
        cells.resize(columns.len(), Cell::Null);
        let mut hint = 0;
        for (index, (name, value)) in self.values.into_iter().enumerate() {
            if let Some(slot) = columns.find(&name, hint) {
                let field = self.schema.and_then(|schema| schema.fields.get(index));
                cells[slot] = cell(value, field.map(|field| &field.schema));
                hint = slot + 1;
            }
        }
    }
}

fn records<'s>(
    value: Value,
    schema: Option<&'s Schema>,
    rows: &mut Vec<Fields<'s>>,
) -> Result<(), Reject> {
    match value {
        Value::Record(values) => {
            let schema = match schema {
                Some(Schema::Record(record)) => Some(record),
                _ => None,
            };
            rows.push(Fields { values, schema });
            Ok(())
        }
        Value::Union(at, inner) => records(*inner, variant(schema, at), rows),
        Value::Array(items) => {
            let schema = match schema {
                Some(Schema::Array(array)) => Some(array.items.as_ref()),
                _ => None,
            };
            items.into_iter().try_for_each(|item| records(item, schema, rows))
        }
        _ => Err(Reject::new(Reason::Malformed, "the Avro datum is not a record")),
    }
}

fn variant(schema: Option<&Schema>, at: u32) -> Option<&Schema> {
    match schema {
        Some(Schema::Union(union)) => union.variants().get(at as usize),
        _ => None,
    }
}

fn cell(value: Value, schema: Option<&Schema>) -> Cell<'static> {
    let text = |text: String| Cell::Text(Cow::Owned(text));
    let time = |value: Option<i64>| value.map_or(Cell::Nested, Cell::Time);
    match value {
        Value::Null => Cell::Null,
        Value::Boolean(value) => Cell::Text(Cow::Borrowed(if value { "true" } else { "false" })),
        Value::Int(value) | Value::TimeMillis(value) => Cell::Int(i64::from(value)),
        Value::Long(value) | Value::TimeMicros(value) => Cell::Int(value),
        // The shortest text of the narrow float, not of its widening.
        Value::Float(value) if value.is_finite() => text(value.to_string()),
        Value::Float(value) => Cell::Float(f64::from(value)),
        Value::Double(value) => Cell::Float(value),
        Value::String(value) | Value::Enum(_, value) => text(value),
        Value::Uuid(value) => text(value.to_string()),
        Value::BigDecimal(value) => text(value.to_string()),
        Value::Decimal(value) => match (Vec::try_from(&value), schema) {
            (Ok(bytes), Some(Schema::Decimal(decimal))) => {
                decimal_text(&bytes, decimal.scale).map_or(Cell::Nested, text)
            }
            _ => Cell::Nested,
        },
        Value::Union(at, inner) => cell(*inner, variant(schema, at)),
        Value::Bytes(bytes) | Value::Fixed(_, bytes) => {
            String::from_utf8(bytes).map_or(Cell::Nested, text)
        }
        Value::Date(days) => time(i64::from(days).checked_mul(MICROS_PER_DAY)),
        Value::TimestampMillis(ms) | Value::LocalTimestampMillis(ms) => time(ms.checked_mul(1_000)),
        Value::TimestampMicros(us) | Value::LocalTimestampMicros(us) => Cell::Time(us),
        Value::TimestampNanos(ns) | Value::LocalTimestampNanos(ns) => {
            Cell::Time(ns.div_euclid(1_000))
        }
        Value::Array(_) | Value::Map(_) | Value::Record(_) | Value::Duration(_) => Cell::Nested,
    }
}

/// The decimal text of a big-endian two's complement number with `scale` digits behind the mark.
fn decimal_text(bytes: &[u8], scale: usize) -> Option<String> {
    if bytes.is_empty() || bytes.len() > 16 || scale > 38 {
        return None;
    }
    let sign = if bytes[0] & 0x80 == 0 { 0 } else { 0xff };
    let mut whole = [sign; 16];
    whole[16 - bytes.len()..].copy_from_slice(bytes);
    let number = i128::from_be_bytes(whole);
    let digits = format!("{:0>width$}", number.unsigned_abs(), width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    let sign = if number < 0 { "-" } else { "" };
    Some(match fraction {
        "" => format!("{sign}{whole}"),
        fraction => format!("{sign}{whole}.{fraction}"),
    })
}

/// Refuses schemas that contain themselves and lists of what takes no bytes. True when a value may
/// take no bytes at all.
fn safe(schema: &Schema, above: &mut Vec<String>) -> Result<bool, SchemaError> {
    let widthless = |list: &str| {
        SchemaError::Unsafe(format!("{list} of values that take no bytes have no bound"))
    };
    match schema {
        Schema::Null => Ok(true),
        Schema::Fixed(fixed) => Ok(fixed.size == 0),
        Schema::Array(array) => match safe(&array.items, above)? {
            true => Err(widthless("arrays")),
            false => Ok(false),
        },
        // Keys take bytes.
        Schema::Map(map) => safe(&map.types, above).map(|_| false),
        Schema::Union(union) => {
            union.variants().iter().try_for_each(|schema| safe(schema, above).map(drop))?;
            Ok(false)
        }
        Schema::Record(record) => {
            above.push(record.name.fullname(None));
            let mut empty = true;
            for field in &record.fields {
                empty &= safe(&field.schema, above)?;
            }
            above.pop();
            Ok(empty)
        }
        Schema::Ref { name } => {
            let name = name.fullname(None);
            if above.contains(&name) {
                return Err(SchemaError::Unsafe(format!("`{name}` contains itself")));
            }
            // Seen where it was defined. Whether it takes no bytes is not known here: a list of it
            // is refused, which costs nobody anything that is in use.
            Ok(true)
        }
        _ => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dangerous_schemas_are_refused() {
        let refused = |text: &str| AvroSchema::parse(text, &[]).unwrap_err().to_string();
        let list = r#"{"type":"record","name":"n","fields":[
            {"name":"next","type":["null","n"],"default":null}]}"#;
        assert!(refused(list).contains("contains itself"), "{}", refused(list));
        let nulls = r#"{"type":"array","items":"null"}"#;
        assert!(refused(nulls).contains("no bytes"), "{}", refused(nulls));
        let empty = r#"{"type":"array","items":{"type":"record","name":"e","fields":[]}}"#;
        assert!(refused(empty).contains("no bytes"), "{}", refused(empty));
        assert!(AvroSchema::parse("{", &[]).is_err());
    }

    #[test]
    fn decimals_keep_their_scale() {
        let text = |number: i64, scale| decimal_text(&number.to_be_bytes(), scale).unwrap();
        assert_eq!(text(12_345, 2), "123.45");
        assert_eq!(text(-5, 2), "-0.05");
        assert_eq!(text(7, 0), "7");
        assert_eq!(decimal_text(&[0xff], 1).unwrap(), "-0.1");
        assert_eq!(decimal_text(&[], 1), None);
        assert_eq!(decimal_text(&[0; 17], 1), None);
    }
}

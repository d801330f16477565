//! Protobuf messages: bytes and the description of their message, to cells or to JSON.
//!
//! # Contract
//! Fields are found by name: what the mapping does not name is ignored, an absent field has no
//! value, a field without presence has its default. Descriptions come from `.proto` text, compiled
//! here: no `protoc`, nothing at build time.

use std::borrow::Cow;
use std::collections::BTreeMap;

use prost_reflect::{
    DynamicMessage, FileDescriptor, Kind, MessageDescriptor, ReflectMessage, Value,
};
use protox::file::{ChainFileResolver, File, FileResolver, GoogleFileResolver};

use super::avro::SchemaError;
use super::cell::Cell;
use super::json::Columns;
use super::reason::{Reason, Reject};

/// Name of the file whose messages count; files that it imports have the names it gives them.
const MAIN: &str = "main.proto";
/// Messages nested deeper have no index that we read.
const NESTING_MAX: usize = 16;

/// The messages of a `.proto` file.
#[derive(Clone, Debug)]
pub struct ProtoSchema {
    messages: Vec<MessageDescriptor>,
}

/// Files by name.
struct Sources(BTreeMap<String, String>);

impl FileResolver for Sources {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        match self.0.get(name) {
            Some(text) => File::from_source(name, text),
            None => Err(protox::Error::file_not_found(name)),
        }
    }
}

impl ProtoSchema {
    /// The messages of the file `text`, which may import `references` (name and text) and the
    /// well-known types.
    pub fn parse(text: &str, references: &[(String, String)]) -> Result<ProtoSchema, SchemaError> {
        let mut sources: BTreeMap<String, String> = references.iter().cloned().collect();
        sources.insert(MAIN.to_owned(), text.to_owned());
        let mut resolver = ChainFileResolver::new();
        resolver.add(Sources(sources));
        resolver.add(GoogleFileResolver::new());
        let mut compiler = protox::Compiler::with_file_resolver(resolver);
        compiler.include_imports(true);
        let syntax = |error: protox::Error| SchemaError::Syntax(error.to_string());
        compiler.open_file(MAIN).map_err(syntax)?;
        let file = compiler.descriptor_pool().get_file_by_name(MAIN);
        let messages: Vec<_> = file.iter().flat_map(FileDescriptor::messages).collect();
        if messages.is_empty() {
            return Err(SchemaError::Message("the .proto file describes no message".to_owned()));
        }
        Ok(ProtoSchema { messages })
    }

    /// The message with this full name, or the first of the file for "".
    pub fn message(&self, name: &str) -> Result<ProtoMessage, SchemaError> {
        let found = match name {
            "" => self.messages.first(),
            name => self.messages.iter().find(|message| message.full_name() == name),
        };
        found.map(|message| ProtoMessage(message.clone())).ok_or_else(|| {
            let known: Vec<_> = self.messages.iter().map(MessageDescriptor::full_name).collect();
            let known = known.join(", ");
            SchemaError::Message(format!("no message `{name}` in the .proto file: it has {known}"))
        })
    }

    /// The message that the indexes before a framed message name, and the bytes behind them.
    pub(crate) fn indexed<'b>(&self, body: &'b [u8]) -> Result<(ProtoMessage, &'b [u8]), Reject> {
        let bad = |detail: &str| Reject::new(Reason::Malformed, detail);
        let (count, mut rest) = varint(body).ok_or_else(|| bad("its message indexes are cut"))?;
        let mut next = || {
            let (index, after) = varint(rest).ok_or_else(|| bad("its message indexes are cut"))?;
            rest = after;
            usize::try_from(index).map_err(|_| bad("a message index is negative"))
        };
        // No index at all is short for the first message.
        let indexes = match usize::try_from(count) {
            Ok(0) => vec![0],
            Ok(count @ 1..=NESTING_MAX) => (0..count).map(|_| next()).collect::<Result<_, _>>()?,
            _ => return Err(bad("the number of message indexes makes no sense")),
        };
        let unknown = || bad("its message indexes name no message of the schema");
        let mut message = self.messages.get(indexes[0]).cloned().ok_or_else(unknown)?;
        for index in &indexes[1..] {
            let child = message.child_messages().nth(*index);
            message = child.ok_or_else(unknown)?;
        }
        Ok((ProtoMessage(message), rest))
    }
}

/// One kind of message.
#[derive(Clone, Debug)]
pub struct ProtoMessage(MessageDescriptor);

impl ProtoMessage {
    pub(crate) fn read(&self, body: &[u8]) -> Result<DynamicMessage, Reject> {
        DynamicMessage::decode(self.0.clone(), body).map_err(|error| {
            let detail = format!("not a {}: {error}", self.0.full_name());
            Reject::new(Reason::Malformed, detail)
        })
    }

    /// Puts the values of the named columns into `cells`.
    pub(crate) fn cells(
        &self,
        message: &DynamicMessage,
        columns: &Columns,
        cells: &mut Vec<Cell<'static>>,
    ) {
        cells.clear();
        cells.extend(columns.names().map(|name| {
            let Some(field) = self.0.get_field_by_name(name) else { return Cell::Null };
            if field.supports_presence() && !message.has_field(&field) {
                return Cell::Null;
            }
            cell(&message.get_field(&field), &field.kind())
        }));
    }

    /// The message as JSON, with the names of the `.proto` file.
    pub(crate) fn json(message: &DynamicMessage) -> Result<serde_json::Value, Reject> {
        let options = prost_reflect::SerializeOptions::new()
            .stringify_64_bit_integers(false)
            .use_proto_field_name(true);
        message.serialize_with_options(serde_json::value::Serializer, &options).map_err(|error| {
            Reject::new(Reason::Malformed, format!("it has no form in JSON: {error}"))
        })
    }
}

fn cell(value: &Value, kind: &Kind) -> Cell<'static> {
    let text = |text: String| Cell::Text(Cow::Owned(text));
    match value {
        Value::Bool(value) => Cell::Text(Cow::Borrowed(if *value { "true" } else { "false" })),
        Value::I32(value) => Cell::Int(i64::from(*value)),
        Value::I64(value) => Cell::Int(*value),
        Value::U32(value) => Cell::Int(i64::from(*value)),
        Value::U64(value) => {
            i64::try_from(*value).map_or_else(|_| text(value.to_string()), Cell::Int)
        }
        // The shortest text of the narrow float, not of its widening.
        Value::F32(value) if value.is_finite() => text(value.to_string()),
        Value::F32(value) => Cell::Float(f64::from(*value)),
        Value::F64(value) => Cell::Float(*value),
        Value::String(value) => text(value.clone()),
        Value::Bytes(bytes) => String::from_utf8(bytes.to_vec()).map_or(Cell::Nested, text),
        Value::EnumNumber(number) => {
            let name = match kind {
                Kind::Enum(described) => described.get_value(*number),
                _ => None,
            };
            name.map_or(Cell::Int(i64::from(*number)), |name| text(name.name().to_owned()))
        }
        Value::Message(message) => well_known(message),
        Value::List(_) | Value::Map(_) => Cell::Nested,
    }
}

/// Times and wrapped scalars; other messages are no value of a field.
fn well_known(message: &DynamicMessage) -> Cell<'static> {
    let descriptor = message.descriptor();
    let name = descriptor.full_name();
    if name == "google.protobuf.Timestamp" {
        let whole = |name| match message.get_field_by_name(name).as_deref() {
            Some(Value::I64(value)) => *value,
            Some(Value::I32(value)) => i64::from(*value),
            _ => 0,
        };
        let us = whole("seconds").checked_mul(1_000_000);
        let us = us.and_then(|us| us.checked_add(whole("nanos").div_euclid(1_000)));
        return us.map_or(Cell::Nested, Cell::Time);
    }
    let wrapper = name.starts_with("google.protobuf.") && name.ends_with("Value");
    match descriptor.get_field_by_name("value") {
        Some(field) if wrapper => cell(&message.get_field(&field), &field.kind()),
        _ => Cell::Nested,
    }
}

/// A zigzag varint, and what follows it.
fn varint(bytes: &[u8]) -> Option<(i64, &[u8])> {
    let mut value = 0_u64;
    for (at, byte) in bytes.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f).checked_shl(7 * u32::try_from(at).ok()?)?;
        if byte & 0x80 == 0 {
            let half = i64::try_from(value >> 1).ok()?;
            let value = if value & 1 == 0 { half } else { -half - 1 };
            return Some((value, &bytes[at + 1..]));
        }
    }
    None
}

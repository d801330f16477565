//! One message of a topic to rows or controls.

use std::sync::Arc;

use omnify_decision::control::Control;
use omnify_operators::model::EventTime;
use serde_json::Value;

use super::options::{Format, TopicKind, TopicOptions};
use super::registry::{Lookup, Registered, SchemaRegistry};
use crate::decode::{
    AvroSchema, Batch, Cell, Door, ProtoMessage, ProtoSchema, Push, Reason, Reject,
};

/// First byte of a message that begins with the id of its schema.
const MAGIC: u8 = 0;
/// Bytes before the payload of such a message.
const FRAME_BYTES: usize = 5;
/// Columns of a row; controls have none.
const CELLS: usize = 32;

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It is accounted for.
    Done,
    /// Its schema is not known yet: try again later. Nothing was taken.
    Waiting,
}

/// Reads the messages of one topic.
pub(super) struct TopicReader {
    /// The source's name in positions.
    pub(super) source: Arc<str>,
    topic: TopicOptions,
    registry: Option<SchemaRegistry>,
    push: Push,
    sender: Option<String>,
    cells: Vec<Cell<'static>>,
}

/// A payload and how it is to be read.
enum Wire {
    Json,
    Avro(Arc<AvroSchema>, Option<Arc<AvroSchema>>),
    Protobuf(ProtoMessage),
}

impl TopicReader {
    pub(super) fn new(
        topic: TopicOptions,
        door: Arc<Door>,
        registry: Option<SchemaRegistry>,
    ) -> TopicReader {
        let source: Arc<str> = format!("kafka:{}", topic.name).into();
        let mut push = Push::new(&topic.mapping, door, &source);
        push.only_tenant(topic.tenant.as_deref());
        if topic.kind == TopicKind::Reports {
            push.reports_by_default();
        }
        let sender = topic.tenant.clone();
        TopicReader { source, topic, registry, push, sender, cells: Vec::with_capacity(CELLS) }
    }

    /// Takes one message. `sender` is the tenant that its headers name: it can only narrow what the
    /// topic may hold.
    pub(super) fn take(
        &mut self,
        payload: Option<&[u8]>,
        sender: Option<&str>,
        not_after: Option<EventTime>,
        batch: &mut Batch,
        controls: &mut Vec<Control>,
    ) -> Taken {
        let Some(payload) = payload.filter(|payload| !payload.is_empty()) else {
            // A tombstone: it says nothing that the engine could take back.
            batch.rows += 1;
            batch.ignored += 1;
            return Taken::Done;
        };
        self.push.restart_rows();
        self.push.not_after(not_after);
        match self.read(payload, sender, batch, controls) {
            Ok(taken) => taken,
            Err(reject) => {
                self.push.refuse(reject, batch, payload);
                Taken::Done
            }
        }
    }

    fn read(
        &mut self,
        payload: &[u8],
        sender: Option<&str>,
        batch: &mut Batch,
        controls: &mut Vec<Control>,
    ) -> Result<Taken, Reject> {
        self.narrow(sender)?;
        let Some((wire, body)) = self.wire(payload)? else { return Ok(Taken::Waiting) };
        match self.topic.kind {
            TopicKind::Events | TopicKind::Reports => self.rows(&wire, body, payload, batch)?,
            kind @ (TopicKind::Goals | TopicKind::Approvals) => {
                for value in values(&wire, body)? {
                    controls.push(control(kind, value, self.sender.as_deref())?);
                }
            }
        }
        Ok(Taken::Done)
    }

    fn narrow(&mut self, sender: Option<&str>) -> Result<(), Reject> {
        let wanted = match (self.topic.tenant.as_deref(), sender) {
            (Some(only), Some(sender)) if only != sender => {
                let detail =
                    format!("its header names tenant `{sender}`, the topic is of `{only}`");
                return Err(Reject::new(Reason::UnknownTenant, detail));
            }
            (only, sender) => only.or(sender),
        };
        if wanted != self.sender.as_deref() {
            self.push.only_tenant(wanted);
            self.sender = wanted.map(str::to_owned);
        }
        Ok(())
    }

    /// How the message is to be read; `None` while its schema is not known.
    fn wire<'b>(&self, payload: &'b [u8]) -> Result<Option<(Wire, &'b [u8])>, Reject> {
        let (id, body) = match (self.topic.framed, payload) {
            (false, body) => (None, body),
            (true, [MAGIC, a, b, c, d, body @ ..]) => {
                (Some(u32::from_be_bytes([*a, *b, *c, *d])), body)
            }
            (true, _) => {
                let detail = format!(
                    "it does not begin with a schema id ({FRAME_BYTES} bytes, the first 0)"
                );
                return Err(Reject::new(Reason::Malformed, detail));
            }
        };
        let registered = match (&self.topic.format, id, &self.registry) {
            (Format::Json, _, _) => return Ok(Some((Wire::Json, body))),
            (_, Some(id), Some(registry)) => match registry.lookup(id) {
                Lookup::Ready(schema) => Some((id, schema)),
                Lookup::Waiting => return Ok(None),
                Lookup::Missing(why) => return Err(Reject::new(Reason::Malformed, why.as_ref())),
            },
            _ => None,
        };
        let other = |id: u32, wanted: &str| {
            let detail = format!("schema {id} of the registry is not {wanted}");
            Reject::new(Reason::Malformed, detail)
        };
        let wire = match (&self.topic.format, registered) {
            (Format::Avro { given, own }, None) => {
                (Wire::Avro(given.clone().unwrap_or_else(|| own.clone()), None), body)
            }
            (Format::Avro { given, .. }, Some((_, Registered::Avro(schema)))) => {
                (Wire::Avro(schema, given.clone()), body)
            }
            (Format::Avro { .. }, Some((id, _))) => return Err(other(id, "Avro")),
            (Format::Protobuf(message), None) => (Wire::Protobuf(message.clone()), body),
            (Format::Protobuf(_), Some((_, Registered::Protobuf(schema)))) => {
                let (message, body) = ProtoSchema::indexed(&schema, body)?;
                (Wire::Protobuf(message), body)
            }
            (Format::Protobuf(_), Some((id, _))) => return Err(other(id, "Protobuf")),
            (Format::Json, _) => (Wire::Json, body),
        };
        Ok(Some(wire))
    }

    fn rows(
        &mut self,
        wire: &Wire,
        body: &[u8],
        payload: &[u8],
        batch: &mut Batch,
    ) -> Result<(), Reject> {
        match wire {
            Wire::Json => self.push.decode_into(body, batch),
            Wire::Avro(writer, reader) => {
                let value = writer.read(body, reader.as_deref())?;
                for fields in reader.as_ref().unwrap_or(writer).rows(value)? {
                    fields.cells(self.push.columns(), &mut self.cells);
                    self.push.cells(&mut self.cells, batch, payload);
                }
            }
            Wire::Protobuf(message) => {
                let read = message.read(body)?;
                message.cells(&read, self.push.columns(), &mut self.cells);
                self.push.cells(&mut self.cells, batch, payload);
            }
        }
        Ok(())
    }
}

/// The payload as JSON: one value, or one for each line of NDJSON.
fn values(wire: &Wire, body: &[u8]) -> Result<Vec<Value>, Reject> {
    let malformed = |error: serde_json::Error| {
        Reject::new(Reason::Malformed, format!("not a control in JSON: {error}"))
    };
    match wire {
        Wire::Json => serde_json::Deserializer::from_slice(body)
            .into_iter()
            .collect::<Result<_, _>>()
            .map_err(malformed),
        Wire::Avro(writer, reader) => {
            let value = writer.read(body, reader.as_deref())?;
            let value = Value::try_from(value).map_err(|error| {
                Reject::new(Reason::Malformed, format!("it has no form in JSON: {error}"))
            })?;
            Ok(vec![value])
        }
        Wire::Protobuf(message) => Ok(vec![ProtoMessage::json(&message.read(body)?)?]),
    }
}

/// A control of the kind that the topic is for; nothing else may enter through it.
fn control(kind: TopicKind, mut value: Value, sender: Option<&str>) -> Result<Control, Reject> {
    let allowed: [&str; 2] = match kind {
        TopicKind::Goals => ["goal", "drop_goal"],
        _ => ["approve", "reject"],
    };
    without_nulls(&mut value);
    let said = value.get("control").and_then(Value::as_str).unwrap_or_default();
    let Some(tag) = allowed.into_iter().find(|tag| *tag == said) else {
        let detail = format!("control `{said}` is not one of {}", allowed.join(", "));
        return Err(Reject::new(Reason::UnknownKind, detail));
    };
    if let Some(sender) = sender {
        match (tag, value.as_object_mut()) {
            // Who speaks for one tenant ends its goals only, whatever the message says.
            ("drop_goal", Some(fields)) => {
                fields.insert("tenant".to_owned(), sender.into());
            }
            ("goal", _) => {}
            _ => {
                let detail = "an approval does not say whose it is: its topic can have no tenant";
                return Err(Reject::new(Reason::UnknownTenant, detail));
            }
        }
    }
    let control = serde_json::from_value(value)
        .map_err(|error| Reject::new(Reason::Malformed, format!("not a control: {error}")))?;
    if let Control::Goal { goal } = &control {
        if sender.is_some() && goal.tenant() != sender {
            let detail =
                format!("the sender may only set goals of tenant `{}`", sender.unwrap_or_default());
            return Err(Reject::new(Reason::UnknownTenant, detail));
        }
        goal.validate().map_err(|error| Reject::new(Reason::OutOfRange, error.to_string()))?;
    }
    Ok(control)
}

/// Removes fields without a value: forms with a fixed set of fields have to name them all.
fn without_nulls(value: &mut Value) {
    if let Value::Object(fields) = value {
        fields.retain(|_, value| !value.is_null());
        fields.values_mut().for_each(without_nulls);
    }
}

//! From the rows of any source to events and report rows of the model, validated and interned.
//!
//! ```text
//!  mapping (TOML) ─► plan ─┐
//!  text, JSON, columns, Avro, Protobuf ─► cells ─► row decoder ─► Batch { events, reports, dead, ignored }
//!                                     │  door: registry, tenants, limits, report memory
//! ```
//!
//! Contract: every row read is accounted for, as an event, a report row, a dead letter with a
//! stable reason, or ignored by the mapping ([`Batch::accounted`] equals [`Batch::rows`]). No
//! input, however broken, panics.
//!
//! What this module never does: it opens no file and reads no clock (the latest acceptable time is
//! an argument), and it writes nothing.

mod avro;
mod batch;
mod cell;
mod door;
mod json;
mod mapping;
mod paths;
mod plan;
mod protobuf;
mod push;
mod reason;
mod row;
mod time;

pub use avro::{AvroSchema, SchemaError};
pub use batch::{Batch, Place};
pub use door::{Door, Limits};
pub use mapping::{Mapping, MappingError};
pub use protobuf::{ProtoMessage, ProtoSchema};
pub use push::Push;
pub use reason::{Reason, Reject};
pub use row::Projection;
pub use time::{TIME_US_MAX, TIME_US_MIN};

pub(crate) use cell::{AMOUNT_MAX, Cell};
pub(crate) use json::{Columns, parse_object};
pub(crate) use paths::{Found, intern, text_hash};
pub(crate) use plan::{AmountPlan, EventPlan, KindCode, KindPlan, Plan, TextPlan};
pub(crate) use row::RowDecoder;

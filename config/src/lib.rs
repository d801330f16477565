//! Typed, checked configuration.
//!
//! ```text
//!  default.toml ◄── file given with -c ◄── --set path.to.key=value   ──►  Config  ── validate ──►  Checked
//! ```
//!
//! `default.toml` (compiled in) holds every key with its default and the reason for it. Each later
//! layer may only say keys that exist: an unknown key is refused with its place and the nearest
//! known one. [`Config::validate`] then finds *all* problems at once, each with its key and a
//! remedy; only the [`Checked`] configuration it returns should travel.
//!
//! # What this crate never does
//! It knows no other crate of the workspace, reads no environment variable, keeps no global, and
//! never holds a secret: keys that end in `_file` or `_env` name where one is kept.

mod check;
mod layers;
mod schema;
mod units;

pub use check::{Checked, CheckedGoal, Problem, Problems, TenantAccount};
pub use layers::{ConfigError, DEFAULT_TOML, Layers};
pub use schema::*;
pub use units::{Decimal, Size, Span};

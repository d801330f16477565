//! The words every crate shares: who (entities), what (events, stats), when (ticks, windows) and
//! the feature rows that come out.

mod attribution;
mod entity;
mod event;
mod feature;
mod money;
mod stats;
mod time;

pub use attribution::{Attribution, AttributionError, AttributionRule};
pub use entity::{
    EntityId, EntityInfo, EntityKey, KeyError, Level, Registry, RegistryView, ZoneOf,
};
pub use event::{Event, EventKind, NO_ID, NO_USER, ReportKey, ReportRow, ReportVersion};
pub use feature::{
    Anomaly, Estimate, Expected, Fatigue, FatigueState, FeatureRow, Frame, MAX_WINDOWS, Maturity,
    PaneBatch, PaneRow, Reach,
};
pub use money::{Currency, CurrencyError, MICROS_PER_UNIT, Money, micros_from_decimal};
pub use stats::Stats;
pub use time::{
    DAY_US, EventTime, HOUR_US, MINUTE_US, Span, Tick, WindowError, WindowSpec, tick_of_us,
    us_of_tick,
};

//! One row of cells to one event or report row: the only definition of what a mapping means. The
//! columnar fast path must agree with it, and a test holds the two together.

use std::sync::Arc;

use omnify_operators::model::{
    Attribution, Event, EventKind, EventTime, NO_ID, NO_USER, ReportKey, ReportRow, ReportVersion,
    Stats,
};

use super::batch::{Batch, Place};
use super::cell::{AMOUNT_MAX, COUNT_MAX, Cell};
use super::door::Door;
use super::mapping::Mapping;
use super::paths::{Found, Paths, text_hash};
use super::plan::{
    AmountPlan, EndPlan, EventPlan, KindCode, KindPlan, Part, Plan, ReportPlan, TextPlan, TimePlan,
};
use super::reason::{Reason, Reject};
use super::time::{TIME_US_MAX, TIME_US_MIN};

/// Which costly fields are wanted; what nobody reads need not be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Projection {
    /// Users, for reach.
    pub users: bool,
    /// Event ids, for deduplication.
    pub ids: bool,
}

impl Projection {
    /// Everything the mapping names.
    pub const ALL: Projection = Projection { users: true, ids: true };
}

/// What a row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Row {
    Event(Event),
    Report(ReportRow),
    Ignored,
}

/// Decodes rows of cells, one cell for each slot of the plan.
pub(crate) struct RowDecoder {
    pub(crate) plan: Arc<Plan>,
    pub(crate) door: Arc<Door>,
    source: Arc<str>,
    projection: Projection,
    not_after: Option<EventTime>,
    only: Option<Arc<str>>,
    paths: Paths,
    scratch: String,
    last_time: (String, EventTime),
}

impl RowDecoder {
    /// A decoder of the source called `source` in dead letters.
    pub(crate) fn new(
        mapping: &Mapping,
        door: Arc<Door>,
        source: Arc<str>,
        projection: Projection,
    ) -> RowDecoder {
        RowDecoder {
            plan: mapping.plan.clone(),
            paths: Paths::new(door.clone()),
            door,
            source,
            projection,
            not_after: None,
            only: None,
            scratch: String::new(),
            last_time: (String::new(), 0),
        }
    }

    /// From now on, refuses times after `time`.
    pub(crate) fn not_after(&mut self, time: Option<EventTime>) {
        self.not_after = time;
    }

    /// From now on, refuses rows of other tenants than `tenant`, if one is given.
    pub(crate) fn only_tenant(&mut self, tenant: Option<Arc<str>>) {
        self.only = tenant;
    }

    /// Decodes row number `row` into `batch`; `bytes` gives the original for a dead letter.
    #[inline]
    pub(crate) fn push(
        &mut self,
        cells: &[Cell<'_>],
        batch: &mut Batch,
        row: u64,
        bytes: impl FnOnce() -> Vec<u8>,
    ) {
        batch.rows += 1;
        match self.decode(cells) {
            Ok(Row::Event(event)) => batch.event(event),
            Ok(Row::Report(report)) => batch.report(report),
            Ok(Row::Ignored) => batch.ignored += 1,
            Err(reject) => {
                let bytes = bytes();
                // What a tenant sends is its own business, whatever tenant it names.
                let tenant = self.only.clone().or_else(|| self.paths.tenant().map(Arc::from));
                let length = bytes.len() as u64;
                batch.refuse(Place { tenant, ..self.place(row) }, reject, &bytes, length);
            }
        }
    }

    /// Takes a row that could not even be split into cells.
    pub(crate) fn refuse(
        &mut self,
        batch: &mut Batch,
        row: u64,
        reject: Reject,
        bytes: &[u8],
        length: u64,
    ) {
        batch.rows += 1;
        batch.refuse(self.place(row), reject, bytes, length);
    }

    fn place(&self, row: u64) -> Place<'_> {
        let bytes_max = self.door.limits.dead_bytes_max;
        Place { source: &self.source, row, bytes_max, tenant: None }
    }

    /// Decodes one row.
    pub(crate) fn decode(&mut self, cells: &[Cell<'_>]) -> Result<Row, Reject> {
        let plan = self.plan.clone();
        self.paths.start();
        match (&plan.events, &plan.reports) {
            (Some(events), None) => self.event(&plan, events, cells),
            (None, Some(reports)) => self.report(&plan, reports, cells),
            (Some(events), Some(reports)) => {
                let cell = plan.row_type.map_or(&Cell::Null, |slot| &cells[slot]);
                self.scratch.clear();
                let told = cell.append(&mut self.scratch, |text| plan.is_null(text))?;
                match self.scratch.as_str() {
                    _ if !told => self.event(&plan, events, cells),
                    "event" => self.event(&plan, events, cells),
                    "report" => self.report(&plan, reports, cells),
                    _ => {
                        let detail = format!("type `{}` is neither event nor report", cell.shown());
                        Err(Reject::new(Reason::UnknownKind, detail))
                    }
                }
            }
            (None, None) => Ok(Row::Ignored),
        }
    }

    fn event(
        &mut self,
        plan: &Plan,
        fields: &EventPlan,
        cells: &[Cell<'_>],
    ) -> Result<Row, Reject> {
        let kind = match &fields.kind {
            KindPlan::Constant(kind) => *kind,
            KindPlan::Column { slot, map } => match self.kind(plan, map, &cells[*slot])? {
                KindCode::Event(kind) => kind,
                KindCode::Ignore => return Ok(Row::Ignored),
            },
        };
        let found = self.path(plan, cells)?;
        let time = self.required_time(plan, &fields.time, cells)?;
        let mut delta = Stats::ZERO;
        match kind {
            EventKind::Impression => delta.impressions = 1,
            EventKind::Click => delta.clicks = 1,
            EventKind::Conversion => delta.conversions = 1,
            EventKind::Cost | EventKind::Report => {}
        }
        let money = |amount: &Option<AmountPlan>| match amount {
            Some(amount) if amount.only[kind as usize] => {
                money(plan, amount, cells, kind == EventKind::Cost)
            }
            _ => Ok(0),
        };
        delta.cost_micros = money(&fields.cost)?;
        delta.revenue_micros = money(&fields.revenue)?;
        let user = match &fields.user {
            Some(user) if self.projection.users => self.hash(plan, user, cells, 0)?,
            _ => NO_USER,
        };
        let id = match &fields.id {
            Some(id) if self.projection.ids => self.hash(plan, id, cells, found.scope)?,
            _ => NO_ID,
        };
        Ok(Row::Event(Event { time, creative: found.creative, kind, delta, user, id }))
    }

    fn report(
        &mut self,
        plan: &Plan,
        fields: &ReportPlan,
        cells: &[Cell<'_>],
    ) -> Result<Row, Reject> {
        let found = self.path(plan, cells)?;
        let start = self.required_time(plan, &fields.start, cells)?;
        let end = match &fields.end {
            // It may be to come: totals of a day are stated while it runs.
            EndPlan::Column(end) => {
                self.any_time(plan, end, cells)?.ok_or_else(|| missing(plan, &end.text))?
            }
            EndPlan::Interval(interval) => {
                interval.end(start).filter(|end| *end <= TIME_US_MAX).ok_or_else(|| {
                    Reject::new(Reason::OutOfRange, "the interval ends beyond the year 2100")
                })?
            }
        };
        if start >= end {
            let detail =
                format!("the interval from {start} µs to {end} µs does not end after it starts");
            return Err(Reject::new(Reason::EmptyInterval, detail));
        }
        let as_of = match &fields.as_of {
            Some(as_of) => self.any_time(plan, as_of, cells)?.unwrap_or(end),
            None => end,
        };
        let count = |amount: &Option<AmountPlan>| match amount {
            Some(amount) => count(plan, amount, cells),
            None => Ok(0),
        };
        let money = |amount: &Option<AmountPlan>| match amount {
            Some(amount) => money(plan, amount, cells, false),
            None => Ok(0),
        };
        let totals = Stats {
            impressions: count(&fields.impressions)?,
            clicks: count(&fields.clicks)?,
            conversions: count(&fields.conversions)?,
            cost_micros: money(&fields.cost)?,
            revenue_micros: money(&fields.revenue)?,
        };
        if totals.clicks > totals.impressions && fields.impressions.is_some() {
            let detail = format!("{} clicks on {} impressions", totals.clicks, totals.impressions);
            return Err(Reject::new(Reason::ClicksOverImpressions, detail));
        }
        let attribution = self.attribution(plan, fields, cells)?;
        let key = ReportKey { creative: found.creative, start, end, attribution };
        let version = ReportVersion { as_of, sequence: self.door.next_sequence(), totals };
        Ok(Row::Report(ReportRow { key, version }))
    }

    fn attribution(
        &mut self,
        plan: &Plan,
        fields: &ReportPlan,
        cells: &[Cell<'_>],
    ) -> Result<Attribution, Reject> {
        let Some(text) = &fields.attribution else { return Ok(Attribution::DEFAULT) };
        self.scratch.clear();
        match append(plan, text, cells, &mut self.scratch)? {
            true => self.scratch.trim().parse().map_err(|error| {
                Reject::new(Reason::UnknownAttribution, format!("{}: {error}", text.key))
            }),
            false if text.optional => Ok(Attribution::DEFAULT),
            false => Err(missing(plan, text)),
        }
    }

    fn kind(
        &mut self,
        plan: &Plan,
        map: &[(String, KindCode)],
        cell: &Cell<'_>,
    ) -> Result<KindCode, Reject> {
        // The common case without a copy: a text, as it stands in the map.
        if let Cell::Raw(bytes) = cell
            && let Some((_, code)) = map.iter().find(|(text, _)| text.as_bytes() == *bytes)
        {
            return Ok(*code);
        }
        self.scratch.clear();
        let present = cell
            .append(&mut self.scratch, |text| plan.is_null(text))
            .map_err(|reject| about("events.kind", plan, None, reject))?;
        if let Some((_, code)) = map.iter().find(|(text, _)| *text == self.scratch) {
            return Ok(*code);
        }
        if !present {
            return Err(Reject::new(Reason::MissingField, "events.kind is empty"));
        }
        let known: Vec<&str> = map.iter().map(|(text, _)| text.as_str()).collect();
        let detail = format!("kind `{}` is not one of {}", cell.shown(), known.join(", "));
        Err(Reject::new(Reason::UnknownKind, detail))
    }

    #[inline]
    fn path(&mut self, plan: &Plan, cells: &[Cell<'_>]) -> Result<Found, Reject> {
        for text in &plan.path {
            let buffer = self.paths.segment();
            let before = buffer.len();
            let present = append(plan, text, cells, buffer)?;
            if !present || buffer.len() == before {
                return Err(missing(plan, text));
            }
            self.paths.end_segment(plan.slash.as_deref());
        }
        if let Some(only) = &self.only
            && self.paths.tenant() != Some(only)
        {
            let detail = format!("the sender may only send rows of tenant `{only}`");
            return Err(Reject::new(Reason::UnknownTenant, detail));
        }
        self.paths.find()
    }

    fn required_time(
        &mut self,
        plan: &Plan,
        time: &TimePlan,
        cells: &[Cell<'_>],
    ) -> Result<EventTime, Reject> {
        let value = self.any_time(plan, time, cells)?;
        let value = value.ok_or_else(|| missing(plan, &time.text))?;
        if self.not_after.is_some_and(|limit| value > limit) {
            let detail = format!("{}: {value} µs lies in the future", time.text.key);
            return Err(Reject::new(Reason::FutureTime, detail));
        }
        Ok(value)
    }

    fn any_time(
        &mut self,
        plan: &Plan,
        time: &TimePlan,
        cells: &[Cell<'_>],
    ) -> Result<Option<EventTime>, Reject> {
        let single = time.text.single().map_or(&Cell::Null, |slot| &cells[slot]);
        let value = match single {
            Cell::Time(value) => Some(*value),
            Cell::Int(number) => time.format.of_number(*number),
            cell if time.format.is_number()
                && cell.plain_int().is_some()
                && !cell.as_text().is_some_and(|text| plan.is_null(text)) =>
            {
                cell.plain_int().and_then(|number| time.format.of_number(number))
            }
            _ => {
                self.scratch.clear();
                if !append(plan, &time.text, cells, &mut self.scratch)? {
                    return Ok(None);
                }
                // Neighbouring rows often share their time, and formats are slow to read.
                if self.last_time.0 == self.scratch {
                    Some(self.last_time.1)
                } else {
                    let value = time.format.of_text(self.scratch.trim());
                    if let Some(value) = value {
                        self.last_time.0.clone_from(&self.scratch);
                        self.last_time.1 = value;
                    }
                    value
                }
            }
        };
        let Some(value) = value else {
            let shown = if matches!(single, Cell::Null) {
                self.scratch.chars().take(60).collect()
            } else {
                single.shown()
            };
            let detail = format!("{}: `{shown}` is not a time of its format", time.text.key);
            return Err(Reject::new(Reason::BadTime, detail));
        };
        if !(TIME_US_MIN..TIME_US_MAX).contains(&value) {
            let detail = format!("{}: {value} µs is not between 1970 and 2100", time.text.key);
            return Err(Reject::new(Reason::OutOfRange, detail));
        }
        Ok(Some(value))
    }

    fn hash(
        &mut self,
        plan: &Plan,
        text: &TextPlan,
        cells: &[Cell<'_>],
        seed: u64,
    ) -> Result<u64, Reject> {
        self.scratch.clear();
        if append(plan, text, cells, &mut self.scratch)? {
            return Ok(text_hash(self.scratch.as_bytes(), seed));
        }
        if text.optional { Ok(0) } else { Err(missing(plan, text)) }
    }
}

/// Appends the text to `out`; false when a column of it has no value and nothing stands for it.
#[inline]
fn append(
    plan: &Plan,
    text: &TextPlan,
    cells: &[Cell<'_>],
    out: &mut String,
) -> Result<bool, Reject> {
    for part in &text.parts {
        match part {
            Part::Constant(constant) => out.push_str(constant),
            Part::Slot(slot) => {
                let present = cells[*slot]
                    .append(out, |text| plan.is_null(text))
                    .map_err(|reject| about(text.key, plan, Some(*slot), reject))?;
                match (&text.missing, present) {
                    (_, true) => {}
                    (Some(missing), false) => out.push_str(missing),
                    (None, false) => return Ok(false),
                }
            }
        }
    }
    Ok(true)
}

fn missing(plan: &Plan, text: &TextPlan) -> Reject {
    let columns: Vec<&str> = text
        .parts
        .iter()
        .filter_map(|part| match part {
            Part::Slot(slot) => Some(plan.slots[*slot].column.as_str()),
            Part::Constant(_) => None,
        })
        .collect();
    let detail = format!("{} has no value (column {})", text.key, columns.join(", "));
    Reject::new(Reason::MissingField, detail)
}

/// The refusal with the field and the column before its words.
fn about(key: &str, plan: &Plan, slot: Option<usize>, reject: Reject) -> Reject {
    let column = slot.map(|slot| format!(" (column {})", plan.slots[slot].column));
    let detail = format!("{key}{} {}", column.unwrap_or_default(), reject.detail);
    Reject { detail, ..reject }
}

#[inline]
fn money(
    plan: &Plan,
    amount: &AmountPlan,
    cells: &[Cell<'_>],
    negative: bool,
) -> Result<i64, Reject> {
    let value =
        cells[amount.slot].micros(amount.unit_micros, plan.decimal, |text| plan.is_null(text));
    checked(plan, amount, value, AMOUNT_MAX, negative)
}

fn count(plan: &Plan, amount: &AmountPlan, cells: &[Cell<'_>]) -> Result<i64, Reject> {
    let value = cells[amount.slot].count(plan.decimal, |text| plan.is_null(text));
    checked(plan, amount, value, COUNT_MAX, false)
}

#[inline]
fn checked(
    plan: &Plan,
    amount: &AmountPlan,
    value: Result<Option<i64>, Reject>,
    max: i64,
    negative: bool,
) -> Result<i64, Reject> {
    let refuse = |reject| about(amount.key, plan, Some(amount.slot), reject);
    match value.map_err(refuse)? {
        Some(value) if (0..=max).contains(&value) => Ok(value),
        Some(value) if negative && (-max..0).contains(&value) => Ok(value),
        Some(value) if value < 0 => {
            Err(refuse(Reject::new(Reason::Negative, format!("is negative ({value})"))))
        }
        Some(value) => {
            let detail = format!("is {value}, too large to be true");
            Err(refuse(Reject::new(Reason::OutOfRange, detail)))
        }
        None if amount.optional => Ok(0),
        None => Err(refuse(Reject::new(Reason::MissingField, "has no value"))),
    }
}

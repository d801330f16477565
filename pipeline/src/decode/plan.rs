//! A mapping compiled: every column it names is a *slot*, every field says how to read its slots.

use jiff::tz::TimeZone;
use omnify_operators::model::{EventKind, Span};

use super::mapping::{Amount, Document, Kind, Text, Time};
use super::time::{Interval, TimeFormat};

/// A column that the mapping reads.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    /// Name of the column.
    pub(crate) column: String,
    /// The first key of the mapping that names it, for messages.
    pub(crate) key: String,
    /// Whether the source may lack it.
    pub(crate) optional: bool,
}

/// The compiled form of a mapping.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Columns, each once.
    pub(crate) slots: Vec<Slot>,
    /// The slot that tells events from report rows, where both may come.
    pub(crate) row_type: Option<usize>,
    /// Texts that mean "no value".
    pub(crate) nulls: Vec<String>,
    /// Decimal mark.
    pub(crate) decimal: u8,
    /// What takes the place of a `/` in names.
    pub(crate) slash: Option<String>,
    /// Tenant, platform, account, campaign, ad group, creative.
    pub(crate) path: [TextPlan; 6],
    /// How to read events.
    pub(crate) events: Option<EventPlan>,
    /// How to read report rows.
    pub(crate) reports: Option<ReportPlan>,
}

/// Names of the path's fields, in order.
pub(crate) const PATH_KEYS: [&str; 6] = [
    "entity.tenant",
    "entity.platform",
    "entity.account",
    "entity.campaign",
    "entity.ad_group",
    "entity.creative",
];

/// A text made of constants and columns.
#[derive(Clone, Debug)]
pub(crate) struct TextPlan {
    pub(crate) key: &'static str,
    pub(crate) parts: Vec<Part>,
    /// Stands for a column without a value.
    pub(crate) missing: Option<String>,
    /// Whether the whole text may be absent.
    pub(crate) optional: bool,
}

impl TextPlan {
    /// The slot, when the text is exactly one column.
    pub(crate) fn single(&self) -> Option<usize> {
        match self.parts.as_slice() {
            [Part::Slot(slot)] => Some(*slot),
            _ => None,
        }
    }

    /// Every slot that the text reads.
    pub(crate) fn slots(&self) -> impl Iterator<Item = usize> + '_ {
        self.parts.iter().filter_map(|part| match part {
            Part::Slot(slot) => Some(*slot),
            Part::Constant(_) => None,
        })
    }

    /// The constant, when the text is one.
    pub(crate) fn constant(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [Part::Constant(text)] => Some(text),
            _ => None,
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Part {
    Constant(String),
    Slot(usize),
}

#[derive(Clone, Debug)]
pub(crate) struct TimePlan {
    pub(crate) text: TextPlan,
    pub(crate) format: TimeFormat,
}

/// What a row of some kind becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KindCode {
    Ignore,
    Event(EventKind),
}

#[derive(Clone, Debug)]
pub(crate) enum KindPlan {
    Constant(EventKind),
    Column { slot: usize, map: Vec<(String, KindCode)> },
}

#[derive(Clone, Debug)]
pub(crate) struct AmountPlan {
    pub(crate) key: &'static str,
    pub(crate) slot: usize,
    pub(crate) unit_micros: i64,
    /// `only[kind as usize]`: whether events of the kind carry the amount.
    pub(crate) only: [bool; 5],
    pub(crate) optional: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct EventPlan {
    pub(crate) time: TimePlan,
    pub(crate) kind: KindPlan,
    pub(crate) user: Option<TextPlan>,
    pub(crate) id: Option<TextPlan>,
    pub(crate) cost: Option<AmountPlan>,
    pub(crate) revenue: Option<AmountPlan>,
}

#[derive(Clone, Debug)]
pub(crate) struct ReportPlan {
    pub(crate) start: TimePlan,
    pub(crate) end: EndPlan,
    pub(crate) as_of: Option<TimePlan>,
    pub(crate) attribution: Option<TextPlan>,
    pub(crate) impressions: Option<AmountPlan>,
    pub(crate) clicks: Option<AmountPlan>,
    pub(crate) conversions: Option<AmountPlan>,
    pub(crate) cost: Option<AmountPlan>,
    pub(crate) revenue: Option<AmountPlan>,
}

#[derive(Clone, Debug)]
pub(crate) enum EndPlan {
    Column(TimePlan),
    Interval(Interval),
}

/// Key of the mapping, and what is wrong with it.
type Fault = (String, String);

impl Plan {
    /// Compiles the mapping, or says which key makes no sense.
    pub(crate) fn compile(document: &Document) -> Result<Plan, Fault> {
        let mut slots = Slots::default();
        let entity = &document.entity;
        let [tenant, platform, account, campaign, ad_group, creative] = PATH_KEYS;
        let path = [
            slots.text(tenant, &entity.tenant)?,
            slots.text(platform, &entity.platform)?,
            slots.text(account, &entity.account)?,
            slots.text(campaign, &entity.campaign)?,
            slots.text(ad_group, &entity.ad_group)?,
            slots.text(creative, &entity.creative)?,
        ];
        if let Some(text) = path.iter().find(|text| text.optional) {
            let message = "cannot be optional; use `missing` to name what is not there";
            return Err((text.key.to_owned(), message.to_owned()));
        }
        let events = match &document.events {
            Some(events) => Some(EventPlan {
                time: slots.time("events.time", &events.time)?,
                kind: slots.kind(&events.kind)?,
                user: slots.optional_text("events.user", events.user.as_ref())?,
                id: slots.optional_text("events.id", events.id.as_ref())?,
                cost: slots.money("events.cost", events.cost.as_ref())?,
                revenue: slots.money("events.revenue", events.revenue.as_ref())?,
            }),
            None => None,
        };
        let reports = match &document.reports {
            Some(reports) => {
                let start = slots.time("reports.start", &reports.start)?;
                let end = match (&reports.end, &reports.interval) {
                    (Some(end), None) => EndPlan::Column(slots.time("reports.end", end)?),
                    (None, Some(text)) => {
                        EndPlan::Interval(interval(text, reports.start.zone.as_deref())?)
                    }
                    _ => {
                        let message = "give either `end` or `interval`";
                        return Err(("reports.interval".to_owned(), message.to_owned()));
                    }
                };
                let as_of = match &reports.as_of {
                    Some(as_of) => Some(slots.time("reports.as_of", as_of)?),
                    None => None,
                };
                Some(ReportPlan {
                    start,
                    end,
                    as_of,
                    attribution: slots
                        .optional_text("reports.attribution", reports.attribution.as_ref())?,
                    impressions: slots
                        .count("reports.impressions", reports.impressions.as_ref())?,
                    clicks: slots.count("reports.clicks", reports.clicks.as_ref())?,
                    conversions: slots
                        .count("reports.conversions", reports.conversions.as_ref())?,
                    cost: slots.money("reports.cost", reports.cost.as_ref())?,
                    revenue: slots.money("reports.revenue", reports.revenue.as_ref())?,
                })
            }
            None => None,
        };
        let row_type = match (&document.row_type, &events, &reports) {
            (Some(column), Some(_), Some(_)) => Some(slots.slot("type", column, true)),
            (None, Some(_), None) | (None, None, Some(_)) => None,
            (None, Some(_), Some(_)) => {
                let message = "is missing: name the column that says event or report";
                return Err(("type".to_owned(), message.to_owned()));
            }
            (_, None, None) => {
                let message = "is missing: describe [events], [reports] or both";
                return Err(("events".to_owned(), message.to_owned()));
            }
            (Some(_), ..) => {
                let message = "is only for mappings with both [events] and [reports]";
                return Err(("type".to_owned(), message.to_owned()));
            }
        };
        // With both kinds of rows in one file, each kind leaves the other's columns empty.
        if row_type.is_some() {
            slots.0.iter_mut().for_each(|slot| slot.optional = true);
        }
        let decimal = match document.format.decimal {
            '.' => b'.',
            ',' => b',',
            other => {
                let message = format!("`{other}` is no decimal mark: use \".\" or \",\"");
                return Err(("format.decimal".to_owned(), message));
            }
        };
        if document.format.slash.as_ref().is_some_and(|text| text.contains('/')) {
            let message = "holds a `/` itself; use another text, for example \"_\"";
            return Err(("format.slash".to_owned(), message.to_owned()));
        }
        Ok(Plan {
            slots: slots.0,
            row_type,
            nulls: document.format.null.clone(),
            decimal,
            slash: document.format.slash.clone(),
            path,
            events,
            reports,
        })
    }

    /// Whether an event field besides user and id reads the slot.
    pub(crate) fn is_read_elsewhere(&self, slot: usize) -> bool {
        let Some(events) = &self.events else { return true };
        let kind = matches!(&events.kind, KindPlan::Column { slot: kind, .. } if *kind == slot);
        let amounts = [&events.cost, &events.revenue].into_iter().flatten();
        kind || self
            .path
            .iter()
            .chain([&events.time.text])
            .any(|text| text.slots().any(|s| s == slot))
            || amounts.into_iter().any(|amount| amount.slot == slot)
    }

    /// Whether `text` means "no value".
    #[inline]
    pub(crate) fn is_null(&self, text: &str) -> bool {
        self.nulls.iter().any(|null| null == text)
    }
}

/// The slots found so far.
#[derive(Default)]
struct Slots(Vec<Slot>);

impl Slots {
    fn slot(&mut self, key: &str, column: &str, optional: bool) -> usize {
        match self.0.iter().position(|slot| slot.column == column) {
            Some(at) => {
                self.0[at].optional &= optional;
                at
            }
            None => {
                self.0.push(Slot { column: column.to_owned(), key: key.to_owned(), optional });
                self.0.len() - 1
            }
        }
    }

    fn text(&mut self, key: &'static str, text: &Text) -> Result<TextPlan, Fault> {
        let parts = match (&text.column, &text.template, &text.value) {
            (Some(column), None, None) => vec![Part::Slot(self.slot(key, column, text.optional))],
            (None, Some(template), None) => self.template(key, template, text.optional)?,
            (None, None, Some(value)) => vec![Part::Constant(value.clone())],
            _ => {
                let message = "give exactly one of `column`, `template` and `value`";
                return Err((key.to_owned(), message.to_owned()));
            }
        };
        Ok(TextPlan { key, parts, missing: text.missing.clone(), optional: text.optional })
    }

    fn optional_text(
        &mut self,
        key: &'static str,
        text: Option<&Text>,
    ) -> Result<Option<TextPlan>, Fault> {
        text.map(|text| self.text(key, text)).transpose()
    }

    fn template(&mut self, key: &str, text: &str, optional: bool) -> Result<Vec<Part>, Fault> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let Some((column, after)) = after.split_once('}') else {
                let message = format!("`{text}` opens a `{{` and does not close it");
                return Err((key.to_owned(), message));
            };
            if !before.is_empty() {
                parts.push(Part::Constant(before.to_owned()));
            }
            parts.push(Part::Slot(self.slot(key, column, optional)));
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Constant(rest.to_owned()));
        }
        if !parts.iter().any(|part| matches!(part, Part::Slot(_))) {
            let message = format!("`{text}` names no column: write {{column}}, or use `value`");
            return Err((key.to_owned(), message));
        }
        Ok(parts)
    }

    fn time(&mut self, key: &'static str, time: &Time) -> Result<TimePlan, Fault> {
        let text = Text {
            column: time.column.clone(),
            template: time.template.clone(),
            optional: time.optional,
            ..Text::default()
        };
        let format = TimeFormat::parse_name(&time.format, time.zone.as_deref())
            .map_err(|message| (key.to_owned(), message))?;
        Ok(TimePlan { text: self.text(key, &text)?, format })
    }

    fn kind(&mut self, kind: &Kind) -> Result<KindPlan, Fault> {
        let key = "events.kind";
        match (&kind.column, &kind.value) {
            (None, Some(value)) => match kind_code(key, value)? {
                KindCode::Event(kind) => Ok(KindPlan::Constant(kind)),
                KindCode::Ignore => {
                    Err((key.to_owned(), "would ignore every row; name a kind".to_owned()))
                }
            },
            (Some(column), None) => {
                let slot = self.slot(key, column, false);
                let map = match &kind.map {
                    Some(map) => map
                        .iter()
                        .map(|(text, name)| Ok((text.clone(), kind_code(key, name)?)))
                        .collect::<Result<_, Fault>>()?,
                    None => KINDS
                        .iter()
                        .map(|kind| (kind.name().to_owned(), KindCode::Event(*kind)))
                        .collect(),
                };
                Ok(KindPlan::Column { slot, map })
            }
            _ => Err((key.to_owned(), "give exactly one of `column` and `value`".to_owned())),
        }
    }

    fn amount(
        &mut self,
        key: &'static str,
        amount: &Amount,
        unit_micros: i64,
    ) -> Result<AmountPlan, Fault> {
        let mut only = [amount.only.is_empty(); 5];
        for name in &amount.only {
            match kind_code(key, name)? {
                KindCode::Event(kind) => only[kind as usize] = true,
                KindCode::Ignore => {
                    return Err((key.to_owned(), "`only` names kinds that are read".to_owned()));
                }
            }
        }
        if unit_micros < 1 {
            let message = "`unit_micros` must be 1 or more: what one unit is worth in micros";
            return Err((key.to_owned(), message.to_owned()));
        }
        let slot = self.slot(key, &amount.column, amount.optional);
        Ok(AmountPlan { key, slot, unit_micros, only, optional: amount.optional })
    }

    fn money(
        &mut self,
        key: &'static str,
        amount: Option<&Amount>,
    ) -> Result<Option<AmountPlan>, Fault> {
        let Some(amount) = amount else { return Ok(None) };
        let Some(unit_micros) = amount.unit_micros else {
            let message = "needs `unit_micros`: 1 for micros, 1_000_000 for currency units";
            return Err((key.to_owned(), message.to_owned()));
        };
        self.amount(key, amount, unit_micros).map(Some)
    }

    fn count(
        &mut self,
        key: &'static str,
        amount: Option<&Amount>,
    ) -> Result<Option<AmountPlan>, Fault> {
        let Some(amount) = amount else { return Ok(None) };
        if amount.unit_micros.is_some() || !amount.only.is_empty() {
            let message = "is a count: it takes no `unit_micros` and no `only`";
            return Err((key.to_owned(), message.to_owned()));
        }
        self.amount(key, amount, 1).map(Some)
    }
}

/// Kinds that rows may have; [`EventKind::Report`] is what the engine makes of report rows.
const KINDS: [EventKind; 4] =
    [EventKind::Impression, EventKind::Click, EventKind::Conversion, EventKind::Cost];

fn kind_code(key: &str, name: &str) -> Result<KindCode, Fault> {
    if name == "ignore" {
        return Ok(KindCode::Ignore);
    }
    KINDS.iter().find(|kind| kind.name() == name).map(|kind| KindCode::Event(*kind)).ok_or_else(
        || {
            let message =
                "is not a kind: use impression, click, conversion, cost (or ignore, in `map`)";
            (key.to_owned(), format!("`{name}` {message}"))
        },
    )
}

fn interval(text: &str, zone: Option<&str>) -> Result<Interval, Fault> {
    if text == "day" {
        // The zone was checked with the start's format.
        let zone = zone.and_then(|name| TimeZone::get(name).ok()).unwrap_or(TimeZone::UTC);
        return Ok(Interval::Day(zone));
    }
    let fault = |message: String| ("reports.interval".to_owned(), message);
    let span = text.parse::<Span>().map_err(|error| fault(error.to_string()))?;
    if span.us() <= 0 {
        return Err(fault("must be above zero".to_owned()));
    }
    Ok(Interval::Fixed(span.us()))
}

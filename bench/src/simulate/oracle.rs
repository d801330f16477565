//! What must be true in the end, from the files alone, the platform's memory, and a second engine that
//! was never disturbed.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use arrow::array::{Array as _, BinaryArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use omnify_decision::control::{Control, Outcome};
use omnify_operators::model::{EntityKey, EventKind, Registry, RegistryView, Stats, Tick};
use omnify_pipeline::clock::Virtual;
use omnify_pipeline::live::Stepped;
use omnify_sinks::history::{HistoryReader, Table};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use rand::Rng as _;

use super::platform::Call;
use super::world::World;

/// Rows of `features` that are recomputed.
const RECOMPUTED: usize = 400;

/// What the run came to, for the report.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Summary {
    pub(super) ticks: u64,
    pub(super) events: u64,
    pub(super) features: u64,
    pub(super) actions: u64,
    pub(super) calls: u64,
}

/// Stops the engine, which is at rest, and looks at everything.
pub(super) fn check(mut world: World) -> anyhow::Result<Summary> {
    // 6 and "exactly the desired state": the engine's picture of the platform is true.
    let engine = world.engine.as_ref().context("the engine runs")?;
    if let Some(stage) = engine.stage() {
        for (key, actual) in world.platform.settings() {
            let Some(owner) = stage.owner(&key) else { continue };
            let believed = &owner.actual;
            ensure!(*believed == actual, "{key} is believed to be {believed:?} and is {actual:?}");
        }
    }
    let reader = stop(&mut world)?;
    let held = world.held;
    let verification = reader.verify(&mut |_| {})?;
    ensure!(verification.is_intact(), "the history is damaged: {:?}", verification.difference);
    let events = Events::read(&reader)?;
    events.against(&world, &reader, held)?;
    let features = table(&reader, Table::Features)?;
    recompute(&mut world, &events, &features)?;
    let calls = actions(&world, &reader)?;
    let summary = Summary {
        ticks: world.shadow.ticks,
        events: events.rows.len() as u64,
        features: features.rows.len() as u64,
        actions: table(&reader, Table::Actions)?.rows.len() as u64,
        calls,
    };
    undisturbed(world, &reader)?;
    Ok(summary)
}

/// Stops the engine so that its history holds every tick: it ends before where the last rows are still
/// to be closed.
fn stop(world: &mut World) -> anyhow::Result<HistoryReader> {
    for _ in 0..10 {
        world.stop()?;
        super::invariants::check(world)?;
        let history = world.history.clone().context("a history was written")?;
        let reader = HistoryReader::open(&history)?;
        if reader.manifest().last_tick == Some(world.shadow.durable) {
            return Ok(reader);
        }
        world.start()?;
        while world.flow()? {}
    }
    anyhow::bail!("the history never holds the last tick, {}", world.shadow.durable)
}

struct Row {
    tick: Tick,
    time: i64,
    entity: EntityKey,
    kind: EventKind,
    delta: Stats,
}

struct Events {
    rows: Vec<Row>,
}

impl Events {
    fn read(reader: &HistoryReader) -> anyhow::Result<Events> {
        let registry = Arc::new(Registry::utc());
        let mut rows = Vec::new();
        for batch in reader.scan_events(registry.clone(), i64::MIN, i64::MAX) {
            let mut view = RegistryView::new(registry.clone());
            rows.extend(batch?.into_iter().map(|(tick, event)| Row {
                tick,
                time: event.time,
                entity: view.info(event.creative).key.clone(),
                kind: event.kind,
                delta: event.delta,
            }));
        }
        Ok(Events { rows })
    }

    /// No event is lost, none counts twice, and the reports of a creative come to what was said of its
    /// intervals last.
    fn against(&self, world: &World, reader: &HistoryReader, held: u64) -> anyhow::Result<()> {
        let mut seen: BTreeMap<i64, (u32, u32)> = BTreeMap::new();
        for row in &self.rows {
            if row.kind == EventKind::Report {
                continue;
            }
            seen.entry(row.delta.cost_micros).or_default().0 += 1;
        }
        for letter in table(reader, Table::DeadLetters)?.rows {
            let bytes = letter.get("bytes").context("dead letters have bytes")?;
            let row: serde_json::Value = serde_json::from_str(bytes)
                .with_context(|| format!("a dead letter that is no row: {letter:?}"))?;
            if row["type"] == "event" {
                let number = row["cost_micros"].as_i64().context("events cost")?;
                seen.entry(number).or_default().1 += 1;
            }
        }
        let mut missing = 0;
        for (number, copies) in &world.shadow.copies {
            let (events, dead) = seen.remove(number).unwrap_or_default();
            ensure!(events <= 1, "event {number} counts {events} times");
            ensure!(
                events + dead <= *copies,
                "event {number} was taken in {copies} times, and is there {events} times and {dead} \
                 times among the dead letters"
            );
            missing += u64::from(copies - events - dead);
        }
        ensure!(missing == held, "{missing} events are nowhere, {held} are held");
        ensure!(seen.is_empty(), "events that were never taken in: {:?}", seen.keys());
        // By creative, as a change is never placed after the tick that brings it: of an interval that
        // has not begun on the engine's clock it falls before.
        let mut sums: BTreeMap<&EntityKey, (Stats, Stats)> = BTreeMap::new();
        for row in self.rows.iter().filter(|row| row.kind == EventKind::Report) {
            let (found, _) = sums.entry(&row.entity).or_default();
            *found = add(*found, row.delta);
        }
        for ((creative, _), (_, totals)) in &world.shadow.reports {
            let (_, said) = sums.entry(creative).or_default();
            *said = add(*said, *totals);
        }
        for (creative, (found, said)) in sums {
            ensure!(found == said, "{creative}: its reports say {said:?} and come to {found:?}");
        }
        Ok(())
    }
}

fn add(a: Stats, b: Stats) -> Stats {
    Stats {
        impressions: a.impressions + b.impressions,
        clicks: a.clicks + b.clicks,
        conversions: a.conversions + b.conversions,
        cost_micros: a.cost_micros + b.cost_micros,
        revenue_micros: a.revenue_micros + b.revenue_micros,
    }
}

type Named = HashMap<String, String>;

/// The rows of a table as text by column.
struct Rows {
    rows: Vec<Named>,
}

fn table(reader: &HistoryReader, which: Table) -> anyhow::Result<Rows> {
    let mut rows = Vec::new();
    for part in reader.manifest().parts.iter().filter(|part| part.table == which) {
        let file = File::open(reader.root().join(&part.file))?;
        for batch in ParquetRecordBatchReaderBuilder::try_new(file)?.build()? {
            let batch = batch?;
            let first = rows.len();
            rows.resize_with(first + batch.num_rows(), Named::new);
            for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
                // Times as numbers: text needs a time zone database.
                let column = match column.data_type() {
                    DataType::Timestamp(_, _) => cast(column, &DataType::Int64)?,
                    _ => column.clone(),
                };
                let binary = column.as_any().downcast_ref::<BinaryArray>();
                let options = FormatOptions::default();
                let text = ArrayFormatter::try_new(&column, &options)?;
                for at in 0..batch.num_rows() {
                    let value = match binary {
                        Some(bytes) => String::from_utf8_lossy(bytes.value(at)).into_owned(),
                        None => text.value(at).to_string(),
                    };
                    rows[first + at].insert(field.name().clone(), value);
                }
            }
        }
    }
    Ok(Rows { rows })
}

fn number(row: &Named, column: &str) -> anyhow::Result<i64> {
    let text = row.get(column).with_context(|| format!("no column {column}"))?;
    text.parse().with_context(|| format!("{column} is `{text}`"))
}

fn entity(row: &Named) -> anyhow::Result<String> {
    let path = ["tenant", "platform", "account", "campaign", "ad_group", "creative"];
    let segments = path.iter().filter_map(|name| row.get(*name)).filter(|text| !text.is_empty());
    Ok(segments.cloned().collect::<Vec<_>>().join("/"))
}

/// 2 and 3: rows of `features`, recomputed from the events of the history.
fn recompute(world: &mut World, events: &Events, features: &Rows) -> anyhow::Result<()> {
    if features.rows.is_empty() {
        return Ok(());
    }
    for _ in 0..RECOMPUTED.min(features.rows.len()) {
        let row = &features.rows[world.random.gen_range(0..features.rows.len())];
        let (start, end) = (number(row, "window_start")?, number(row, "window_end")?);
        let (tick, of) = (number(row, "tick")? as Tick, entity(row)?);
        let below = format!("{of}/");
        let within = events.rows.iter().filter(|event| {
            let key = event.entity.as_str();
            let mine = key == of || key.starts_with(&below);
            mine && event.tick <= tick && (start..end).contains(&event.time)
        });
        let sums = within.fold(Stats::ZERO, |sum, event| add(sum, event.delta));
        let found = Stats {
            impressions: number(row, "impressions")?,
            clicks: number(row, "clicks")?,
            conversions: number(row, "conversions")?,
            cost_micros: number(row, "cost_micros")?,
            revenue_micros: number(row, "revenue_micros")?,
        };
        ensure!(
            sums == found,
            "{of} in [{start}, {end}) at {tick}: {found:?}, its events {sums:?}"
        );
    }
    Ok(())
}

/// The platform's memory against the history: what it did was decided at a tick that is durable, and
/// ended as the history says.
fn actions(world: &World, reader: &HistoryReader) -> anyhow::Result<u64> {
    let mut known: HashMap<String, u32> = HashMap::new();
    for row in table(reader, Table::Actions)?.rows {
        *known.entry(row.get("id").context("actions have ids")?.clone()).or_default() += 1;
    }
    if let Some((id, count)) = known.iter().find(|(_, count)| **count > 1) {
        anyhow::bail!("action {id} is in the history {count} times");
    }
    let mut ended: HashMap<String, Outcome> = HashMap::new();
    for tick in reader.ticks() {
        for control in tick?.controls {
            if let Control::Acknowledge { action, outcome, .. } = control {
                ended.insert(action.to_string(), outcome);
            }
        }
    }
    let calls = world.platform.calls();
    for (id, call) in &calls {
        let id = id.to_string();
        ensure!(known.contains_key(&id), "{id} reached the platform and no tick knows it");
        let end = ended.get(&id);
        let told_so = matches!(end, Some(Outcome::Applied { .. } | Outcome::NoChange));
        // A lost call is read back: what it is said to have led to was done by a call of this owner.
        let effective = match end {
            Some(Outcome::Applied { effective }) => effective,
            _ => &call.desired,
        };
        let holds = |other: &Call| {
            let same = (&other.owner, &other.desired) == (&call.owner, effective);
            same && other.carried_out > 0
        };
        ensure!(
            !told_so || calls.values().any(holds) || world.meddled,
            "{id} was never carried out: {end:?}"
        );
        // Without an end: the owner was seen to be as wanted before the end could be told, and the
        // process died. Nobody asks any more; the ledger knows.
        let denied = matches!(end, Some(Outcome::Expired | Outcome::Rejected { .. }));
        ensure!(
            call.effects == 0 || !denied || world.meddled,
            "{id} took effect and ended as {end:?}: {call:?}"
        );
        ensure!(
            world.plan.dedupes || call.carried_out <= 1 || world.plan.weather.twice > 0,
            "{id} was carried out {} times by a platform that keeps no ids",
            call.carried_out
        );
    }
    Ok(calls.len() as u64)
}

/// 10 and 11: an engine that makes every durable tick in one go, with another number of workers, makes
/// the same decisions, rows and actions.
fn undisturbed(world: World, reader: &HistoryReader) -> anyhow::Result<()> {
    let workers = 1 + world.plan.workers[0] % 3;
    let last = world.shadow.durable;
    let dir = world.dir.join("undisturbed");
    let setup = world.setup(&world.quiet, workers, &dir)?;
    drop(world.shadow.finish()?);
    let mut engine = Stepped::start(setup)?;
    ensure!(engine.recovered_to() == last, "its journal ends at {}", engine.recovered_to());
    for _ in 0..200 {
        while engine.decide()? | engine.conclude()? | engine.record()? | engine.snapshot() {}
        let through = engine.stop();
        let moved = engine.journal(usize::MAX)? | engine.decide()? | engine.conclude()?;
        Virtual::pass(Duration::from_millis(100));
        if through && !moved {
            break;
        }
    }
    while engine.record()? | engine.snapshot() {}
    let other = engine.history().clone();
    engine.finish()?;
    compare(reader, &HistoryReader::open(&other)?)
}

fn compare(one: &HistoryReader, other: &HistoryReader) -> anyhow::Result<()> {
    let last = one.manifest().last_tick.min(other.manifest().last_tick);
    let last = last.context("both histories have ticks")?;
    let (mut left, mut right) = (one.ticks(), other.ticks());
    loop {
        let (a, b) = (left.next().transpose()?, right.next().transpose()?);
        let (Some(a), Some(b)) = (a, b) else { break };
        if a.tick > last {
            break;
        }
        ensure!(a == b, "the run without disturbance has {b:?} where this one has {a:?}");
    }
    for which in [Table::Features, Table::Actions, Table::Decisions, Table::Outcomes] {
        let (a, b) = (sorted(one, which, last)?, sorted(other, which, last)?);
        let differing = a.iter().zip(&b).find(|(a, b)| a != b);
        ensure!(
            a == b,
            "{which}: {} rows, without disturbance {}; the first that differ: {differing:?}",
            a.len(),
            b.len()
        );
    }
    Ok(())
}

fn sorted(reader: &HistoryReader, which: Table, last: Tick) -> anyhow::Result<Vec<String>> {
    let mut rows = Vec::new();
    for row in table(reader, which)?.rows {
        if number(&row, "tick")? as Tick <= last {
            let mut columns: Vec<_> = row.into_iter().collect();
            columns.sort();
            rows.push(format!("{columns:?}"));
        }
    }
    rows.sort();
    Ok(rows)
}

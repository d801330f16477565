//! What a step does to the engine and its surroundings.

use std::fs;
use std::time::Duration;

use omnify_decision::action::Status;
use omnify_decision::control::{Actual, Control};
use omnify_decision::goal::{Goal, Objective, Pricing};
use omnify_operators::model::{EntityKey, HOUR_US, Level, MINUTE_US, Stats, us_of_tick};
use omnify_pipeline::clock::Virtual;
use omnify_pipeline::decode;
use omnify_pipeline::live::{Arrival, Stepped};
use omnify_sinks::journal::Position;
use omnify_sinks::serve::{Push, PushError, PushFormat, Scope};
use omnify_sinks::snapshot::SnapshotStore;
use rand::Rng as _;
use rand::seq::SliceRandom as _;
use serde_json::json;

use super::disk::Death;
use super::options::Kind;
use super::platform::Weather;
use super::shadow::Report;
use super::world::{Body, PARTS, Sent, World};

/// Rows of a body at most.
const BODY_ROWS: usize = 12;
/// Bodies that a client has on the way at most.
const BODIES_OPEN: usize = 6;
/// Rows of the partition read at once at most.
const PARTITION_ROWS: usize = 15;

impl World {
    pub(super) fn act(&mut self, kind: Kind) -> anyhow::Result<()> {
        match kind {
            Kind::Part => {
                let part = self.random.gen_range(0..PARTS);
                self.part(part)?;
            }
            Kind::Flow => {
                self.flow()?;
            }
            Kind::Time => {
                let ms = *[1, 10, 50, 200, 600, 2_000].choose(&mut self.random).unwrap_or(&1);
                Virtual::pass(Duration::from_millis(self.random.gen_range(1..=ms)));
            }
            Kind::Pause => {
                let minutes = *[1, 20, 180].choose(&mut self.random).unwrap_or(&1);
                let ms = self.random.gen_range(1..minutes * 60_000);
                self.note(|| format!("{ms} ms pass"));
                Virtual::pass(Duration::from_millis(ms));
            }
            Kind::Push => self.push()?,
            Kind::Resend => self.resend()?,
            Kind::Partition => {
                if self.random.gen_bool(0.5) {
                    for _ in 0..self.random.gen_range(1..6) {
                        let row = self.event()?;
                        self.shadow.taken(&[self.events], &[]);
                        self.partition.push(row);
                    }
                }
                self.read_partition(PARTITION_ROWS)?;
            }
            Kind::Report => self.report()?,
            Kind::Observe => self.observe()?,
            Kind::Manual => self.meddle()?,
            Kind::Goal => self.goal(),
            Kind::Kill => {
                let tenant = self.random.gen_bool(0.5).then(|| "t0".to_owned());
                let kill = self.random.gen_bool(0.3);
                self.control(if kill {
                    Control::Kill { tenant }
                } else {
                    Control::Resume { tenant }
                });
            }
            Kind::Approve => self.approve(),
            Kind::Model => {
                // No model at all: it is refused, and the one before stays.
                let version = self.random.gen_range(1..5);
                self.control(Control::Model { version, model: json!({ "version": version }) });
            }
            Kind::ClockBack => {
                let ms = self.random.gen_range(1..3_600_000);
                self.note(|| format!("the clock is set back by {ms} ms"));
                Virtual::set_wall(self.clock() - ms);
            }
            Kind::Network => {
                self.fine_weather = !self.fine_weather;
                let weather = if self.fine_weather { Weather::FINE } else { self.plan.weather };
                self.meddled |= !self.fine_weather && weather.late > 0;
                self.platform.set_weather(weather);
            }
            Kind::Crash => {
                let death =
                    if self.random.gen_bool(0.4) { Death::PowerLoss } else { Death::Killed };
                self.crash(death)?;
            }
            Kind::CrashAt => {
                let most = *[5, 30, 150].choose(&mut self.random).unwrap_or(&5);
                self.disk.die_in(self.random.gen_range(1..=most));
            }
            Kind::Stop => self.stop()?,
            Kind::DiskFull => {
                let times = *[1, 5, 40, 40, 700].choose(&mut self.random).unwrap_or(&1);
                self.note(|| format!("the disk fills up, for {times} tries"));
                self.disk.fill(self.random.gen_range(0..4_000), times);
            }
            Kind::BadSync => {
                self.note(|| "a sync will fail".to_owned());
                self.disk.fail_syncs(self.random.gen_range(1..3));
            }
            Kind::BadWrite => {
                self.note(|| "a write will fail".to_owned());
                self.disk.fail_writes(self.random.gen_range(1..3));
            }
            Kind::BitFlip => self.flip()?,
        }
        Ok(())
    }

    /// A new event, as a row; its number is [`World::events`].
    fn event(&mut self) -> anyhow::Result<String> {
        self.events += 1;
        let number = self.events;
        let creative = self.creative()?;
        let now = us_of_tick(self.clock());
        let ago = match self.random.gen_range(0..20) {
            0 => -self.random.gen_range(0..10 * MINUTE_US),
            1 => self.random.gen_range(0..5 * HOUR_US),
            2 => self.random.gen_range(0..35 * 24 * HOUR_US),
            _ => self.random.gen_range(0..3_000_000),
        };
        let kind = match self.random.gen_range(0..20) {
            0..=2 => "click",
            3 => "conversion",
            _ => "impression",
        };
        let revenue =
            if kind == "conversion" { self.random.gen_range(1..90) * 1_000_000 } else { 0 };
        let mut row = row(&creative);
        row["type"] = "event".into();
        row["ts_us"] = (now - ago).into();
        row["kind"] = kind.into();
        row["event_id"] = format!("e{number}").into();
        row["user"] = format!("u{}", self.random.gen_range(0..40)).into();
        row["cost_micros"] = number.into();
        row["revenue_micros"] = revenue.into();
        Ok(row.to_string())
    }

    /// A client sends something new, or once more what has no answer yet.
    fn push(&mut self) -> anyhow::Result<()> {
        let open = self.bodies.iter().filter(|body| !matches!(body.state, Sent::Answered)).count();
        if open >= BODIES_OPEN {
            return self.send_all();
        }
        let (mut text, mut events) = (String::new(), Vec::new());
        for _ in 0..self.random.gen_range(1..BODY_ROWS) {
            let row = self.event()?;
            text += &row;
            text.push('\n');
            events.push(self.events);
        }
        // Sometimes a row of an earlier body again, under a new key: the id tells.
        if self.random.gen_bool(0.2)
            && let Some(body) = self.bodies.iter().rev().take(20).next_back()
            && let Some((row, number)) = body.text.lines().zip(&body.events).last()
        {
            text += row;
            events.push(*number);
        }
        self.send(text, events, Vec::new());
        self.send_all()
    }

    fn send(&mut self, text: String, events: Vec<i64>, reports: Vec<Report>) {
        let key = format!("body-{}", self.bodies.len());
        self.bodies.push(Body { key, text, events, reports, state: Sent::No });
    }

    /// Everything that has no answer and is not on its way is sent. Not while ticks of an earlier life
    /// are being made once more: which keys are known then depends on the worker's thread.
    pub(super) fn send_all(&mut self) -> anyhow::Result<()> {
        let Some(engine) = self.engine.as_ref().filter(|of| !of.is_recovering()) else {
            return Ok(());
        };
        for body in &mut self.bodies {
            if !matches!(body.state, Sent::No) {
                continue;
            }
            match engine.push(&body_of(body)) {
                Ok(pushed) => body.state = Sent::Waiting(pushed),
                // An earlier life took it, and remembers.
                Err(Ok(answer)) => {
                    let rows = body.text.lines().count() as u64;
                    anyhow::ensure!(
                        answer.accepted + answer.dead_letters == rows,
                        "{} was answered with {answer:?}, it has {rows} rows",
                        body.key
                    );
                    body.state = Sent::Answered;
                    self.shadow.taken(&body.events, &body.reports);
                }
                Err(Err(PushError::Busy { .. } | PushError::Closed(_))) => {}
                Err(Err(error)) => anyhow::bail!("{} was refused: {error}", body.key),
            }
        }
        Ok(())
    }

    /// A client that lost its answer sends again: it hears the same, and nothing is taken twice.
    fn resend(&mut self) -> anyhow::Result<()> {
        let Some(engine) = self.engine.as_ref().filter(|of| !of.is_recovering()) else {
            return Ok(());
        };
        let answered: Vec<&Body> = self
            .bodies
            .iter()
            .rev()
            .take(30)
            .filter(|body| matches!(body.state, Sent::Answered))
            .collect();
        let Some(body) = answered.choose(&mut self.random) else { return Ok(()) };
        match engine.push(&body_of(body)) {
            Err(Ok(answer)) => {
                let rows = body.text.lines().count() as u64;
                anyhow::ensure!(
                    answer.accepted + answer.dead_letters == rows,
                    "{} was answered with {answer:?} the second time",
                    body.key
                );
            }
            Err(Err(PushError::Busy { .. } | PushError::Closed(_))) => {}
            Err(Err(error)) => anyhow::bail!("{} was refused the second time: {error}", body.key),
            Ok(_) => anyhow::bail!("{} was taken in twice", body.key),
        }
        Ok(())
    }

    /// Reads on where the engine says, up to `rows` rows.
    pub(super) fn read_partition(&mut self, rows: usize) -> anyhow::Result<()> {
        let Some(engine) = &self.engine else { return Ok(()) };
        if engine.intake().is_full() || engine.intake().is_closed() {
            return Ok(());
        }
        let from = engine.positions().next("log", 0).unwrap_or(0) as usize;
        let to = self.partition.len().min(from.saturating_add(rows));
        if from >= to {
            return Ok(());
        }
        let mut decoder = decode::Push::native(engine.door().clone(), "log");
        let batch = decoder.decode(self.partition[from..to].join("\n").as_bytes(), None);
        let position = Position { source: "log".into(), partition: 0, next: to as i64 };
        engine.positions().advance(&position);
        let positions = vec![position];
        engine.intake().send(Arrival { batch, positions, ..Arrival::default() });
        Ok(())
    }

    /// Totals of an hour of a creative, as the platform sees them now.
    fn report(&mut self) -> anyhow::Result<()> {
        let (mut text, mut reports) = (String::new(), Vec::new());
        let now = us_of_tick(self.clock());
        for _ in 0..self.random.gen_range(1..5) {
            let creative = self.creative()?;
            let hours = *[1, 3, 30].choose(&mut self.random).unwrap_or(&1);
            let start = now - now.rem_euclid(HOUR_US) - self.random.gen_range(0..hours) * HOUR_US;
            let mut some = |most: i64| self.random.gen_range(0..most);
            let totals = Stats {
                impressions: 50 + some(1_000),
                clicks: some(50),
                conversions: some(5),
                cost_micros: some(5_000_000),
                revenue_micros: some(90_000_000),
            };
            // Distinct, and not always in order: an older statement changes nothing.
            self.events += 1;
            let as_of = (now - some(3) * MINUTE_US).max(start + 1_000_000) + self.events;
            let mut row = row(&creative);
            row["type"] = "report".into();
            row["start_us"] = start.into();
            row["end_us"] = (start + HOUR_US).into();
            row["as_of_us"] = as_of.into();
            row["impressions"] = totals.impressions.into();
            row["clicks"] = totals.clicks.into();
            row["conversions"] = totals.conversions.into();
            row["cost_micros"] = totals.cost_micros.into();
            row["revenue_micros"] = totals.revenue_micros.into();
            text += &row.to_string();
            text.push('\n');
            reports.push(Report { creative, start, as_of, totals });
        }
        self.send(text, Vec::new(), reports);
        self.send_all()
    }

    /// A person changes something on the platform.
    fn meddle(&mut self) -> anyhow::Result<()> {
        self.meddled = true;
        let creative = self.creative()?;
        let level = if self.random.gen_bool(0.8) { Level::Campaign } else { Level::Creative };
        let Some(entity) = creative.ancestor(level) else { return Ok(()) };
        let settings = self.platform.settings();
        let Some(before) = settings.get(&entity) else { return Ok(()) };
        let mut actual = Actual { ..before.clone() };
        match self.random.gen_range(0..3) {
            0 => {
                let bid = self.random.gen_range(1..300) * 10_000;
                actual.bid_micros = actual.bid_micros.map(|_| bid);
            }
            1 => {
                let budget = self.random.gen_range(1..300) * 1_000_000;
                actual.budget_micros = actual.budget_micros.map(|_| budget);
            }
            _ => {
                let paused = actual.status == Some(Status::Paused);
                actual.status = Some(if paused { Status::Enabled } else { Status::Paused });
            }
        }
        self.note(|| format!("a person sets {entity} to {actual:?}"));
        self.platform.set(entity, actual);
        Ok(())
    }

    fn goal(&mut self) {
        let name = format!("goal-{}", self.random.gen_range(0..3));
        if self.random.gen_bool(0.3) {
            return self.control(Control::DropGoal { name, tenant: None });
        }
        let tenant = self.random.gen_range(0..2);
        let campaign = self.random.gen_range(0..3);
        let objective = match self.random.gen_range(0..4) {
            0 => Objective::Maximise,
            1 => Objective::TargetCpa { cpa_micros: self.random.gen_range(1..5_000) },
            2 => Objective::TargetRoas { roas: f64::from(self.random.gen_range(1..50)) },
            _ => Objective::TargetCpc { cpc_micros: self.random.gen_range(1..200) },
        };
        let goal = Goal {
            name,
            applies_to: format!("t{tenant}/p/a{tenant}/c{campaign}"),
            objective,
            daily_budget_micros: self.random.gen_range(1..400) * 1_000_000,
            pricing: Pricing::Cpm,
            start: None,
            end: None,
            bid_floor_micros: 10_000,
            bid_cap_micros: self.random.gen_range(1..50) * 1_000_000,
            portfolio_budget_micros: None,
        };
        self.control(Control::Goal { goal });
    }

    fn approve(&mut self) {
        let stage = self.engine.as_ref().and_then(Stepped::stage);
        let proposals: Vec<_> =
            stage.iter().flat_map(|stage| stage.proposals()).map(|proposal| proposal.id).collect();
        let Some(proposal) = proposals.choose(&mut self.random).copied() else { return };
        let by = "somebody".to_owned();
        match self.random.gen_bool(0.7) {
            true => self.control(Control::Approve { proposal, by }),
            false => self.control(Control::Reject { proposal, by, reason: String::new() }),
        }
    }

    fn control(&mut self, control: Control) {
        self.note(|| format!("{control:?}"));
        if let Some(engine) = &self.engine {
            // Full is full: whoever sent it is told so.
            let _ = engine.controls().try_send(control);
        }
    }

    /// A crash, and a bit of the newest snapshot changes: the one before serves. Two damaged ones at
    /// once are more than is promised.
    fn flip(&mut self) -> anyhow::Result<()> {
        self.crash(Death::Killed)?;
        let root = self.dir.join("state").join("snapshots");
        if !root.is_dir() {
            return Ok(());
        }
        let disk = std::sync::Arc::new(self.disk.clone());
        let ticks = SnapshotStore::open_on(disk, &root)?.list()?;
        let newer = ticks.iter().filter(|tick| Some(**tick) > self.flipped).count();
        let Some(newest) = ticks.last().copied() else { return Ok(()) };
        if self.flipped.is_some() && newer < 2 {
            return Ok(());
        }
        let mut files: Vec<_> = fs::read_dir(root.join(format!("{newest:020}")))?
            .collect::<Result<Vec<_>, _>>()?
            .into_iter()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "bin"))
            .collect();
        files.sort();
        let Some(file) = files.choose(&mut self.random) else { return Ok(()) };
        let mut bytes = fs::read(file)?;
        if bytes.is_empty() {
            return Ok(());
        }
        let at = self.random.gen_range(0..bytes.len());
        bytes[at] ^= 1 << self.random.gen_range(0..8);
        fs::write(file, bytes)?;
        self.flipped = Some(newest);
        self.note(|| format!("a bit of snapshot {newest} flipped"));
        Ok(())
    }
}

fn body_of(body: &Body) -> Push {
    Push {
        body: body.text.clone().into(),
        format: PushFormat::Ndjson,
        scope: Scope::All,
        key: Some(body.key.clone()),
        strict: false,
    }
}

/// A row that names a creative.
fn row(creative: &EntityKey) -> serde_json::Value {
    let segment = |at| creative.segment(at).unwrap_or_default();
    json!({
        "tenant": segment(0), "platform": segment(1), "account": segment(2),
        "campaign": segment(3), "ad_group": segment(4), "creative": segment(5),
    })
}

//! Learning the curves: from what report rows said to what share of a click day is known when.

use std::collections::BTreeMap;
use std::sync::Arc;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::{AGES, Curve, MaturitySpec, ONE_PPM, age_of};
use crate::model::{
    DAY_US, EntityId, EntityInfo, Event, EventTime, Level, RegistryView, Stats, Tick,
};
use crate::state::{Outgoing, StateError, StateItem, StatePart, Stateful};

/// Learned sums are kept in 1024ths of a conversion, so that forgetting rounds nothing away.
const UNIT: i64 = 1 << 10;
/// A change that moves clicks or impressions too is a first statement, an import, or of another
/// grain. Later than this after its day it says nothing about when its conversions came.
const PROMPT_DAYS: i64 = 3;
/// Settled click days an account needs of its own before its curve can be called broken.
const SETTLED_MIN: u32 = 7;
/// One squared residual moves the dispersion by this share of the difference.
const DISPERSION_GAIN: f64 = 1.0 / 16.0;
/// A squared residual counts as this much at most.
const SQUARE_MAX: f64 = 9.0;

/// Conversions by which one click day changed at one age.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Late {
    conversions: i64,
    /// Some of them corrected what had been said before.
    again: bool,
}

/// What restated reports said of one account at one tick. It adds up, over workers and in any order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Said {
    account: EntityId,
    /// When it was heard, the local day of it, and what was added to UTC for that.
    heard: Heard,
    /// By click day and age.
    late: BTreeMap<(i64, u8), Late>,
}

/// An instant in the time zone of an account. The newest is the greatest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Heard {
    at_us: EventTime,
    day: i64,
    offset_us: i64,
}

impl Said {
    fn merge(&mut self, other: Said) {
        self.heard = self.heard.max(other.heard);
        for (at, more) in other.late {
            let late = self.late.entry(at).or_default();
            late.conversions += more.conversions;
            late.again |= more.again;
        }
    }
}

/// Gathers what restated reports said at a tick.
#[derive(Clone, Debug, Default)]
pub struct Sayings(BTreeMap<EntityId, Said>);

impl Sayings {
    /// Takes in a change that a report row made, known at `now`; `creative` is whose it is.
    pub fn hear(&mut self, creative: &EntityInfo, now: EventTime, change: &Event) {
        let account = creative.ancestors[Level::Account as usize];
        let offset_us = |time| offset_us(&creative.time_zone, time);
        let day = (change.time + offset_us(change.time)).div_euclid(DAY_US);
        self.note(account, (now, offset_us(now)), day, &change.delta);
    }

    /// The same with all that matters told: `now` and what local time is ahead of UTC then, and the
    /// local day that changed.
    pub fn note(
        &mut self,
        account: EntityId,
        (now, offset_us): (EventTime, i64),
        day: i64,
        change: &Stats,
    ) {
        let heard = Heard { at_us: now, day: (now + offset_us).div_euclid(DAY_US), offset_us };
        let new = || Said { account, heard, late: BTreeMap::new() };
        let said = self.0.entry(account).or_insert_with(new);
        said.heard = said.heard.max(heard);
        let age = age_of(day, heard.day).clamp(0, AGES as i64);
        let first = change.impressions != 0 || change.clicks != 0;
        if change.conversions == 0 || (first && age > PROMPT_DAYS) {
            return;
        }
        let late = said.late.entry((day, age as u8)).or_default();
        late.conversions += change.conversions;
        late.again |= !first;
    }

    /// All of it.
    pub fn into_said(self) -> impl Iterator<Item = Said> {
        self.0.into_values()
    }
}

/// What local time is ahead of UTC.
fn offset_us(zone: &jiff::tz::TimeZone, time: EventTime) -> i64 {
    let at = jiff::Timestamp::from_microsecond(time).unwrap_or_default();
    i64::from(zone.to_offset(at).seconds()) * 1_000_000
}

/// What is known of one account.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Account {
    /// Place of its platform; a number of this process.
    #[serde(skip)]
    platform: usize,
    heard: Heard,
    /// Click days before it were not seen from their beginning.
    since_day: i64,
    /// Conversions have come late.
    grows: bool,
    /// By click day that is not final: how conversions changed, by age.
    open: BTreeMap<i64, Vec<i64>>,
    /// What settled click days had by each age up to the last, forgetting the oldest; in [`UNIT`]s.
    known: Vec<i64>,
    settled: u32,
    /// The last whole day up to which late conversions were compared with the curve.
    judged_day: i64,
    /// Mean squared residual, at least 1.
    dispersion: f64,
    residual: f64,
    broken: bool,
    #[serde(skip)]
    curve: Option<Arc<Curve>>,
}

impl Account {
    fn new(platform: usize, said: &Said, ages: usize) -> Account {
        let day = said.heard.day;
        Account {
            platform,
            heard: said.heard,
            // Yesterday is complete in its first statement, and no more than a day old.
            since_day: day - 1,
            grows: false,
            open: BTreeMap::new(),
            known: vec![0; ages],
            settled: 0,
            judged_day: day,
            dispersion: 1.0,
            residual: 0.0,
            broken: false,
            curve: None,
        }
    }

    /// Adds what was said; true when click days became final.
    fn take(&mut self, spec: &MaturitySpec, said: &Said) -> bool {
        let day_before = self.heard.day;
        self.heard = self.heard.max(said.heard);
        // Where clocks go back at midnight, the day does not.
        self.heard.day = self.heard.day.max(day_before);
        let day = self.heard.day;
        let open = self.since_day.max(final_until(spec, day_before) + 1)..=day + 1;
        for ((click_day, age), late) in &said.late {
            self.grows |= late.again && *age > 0;
            if open.contains(click_day) && i64::from(*age) <= spec.settle_days {
                let ages = self.open.entry(*click_day).or_default();
                ages.resize(ages.len().max(usize::from(*age) + 1), 0);
                ages[usize::from(*age)] += late.conversions;
            }
        }
        if day == day_before {
            return false;
        }
        self.judge(spec, day_before);
        let rest = self.open.split_off(&(final_until(spec, day) + 1));
        let settled = std::mem::replace(&mut self.open, rest);
        settled.values().for_each(|ages| self.learn(spec, ages));
        !settled.is_empty()
    }

    /// Takes a click day that is final into the learned sums.
    fn learn(&mut self, spec: &MaturitySpec, ages: &[i64]) {
        if known_by(ages, spec.settle_days) <= 0 {
            return; // what share of nothing was known?
        }
        self.settled = self.settled.saturating_add(1);
        let mut known = 0;
        for (age, sum) in self.known.iter_mut().enumerate() {
            known += ages.get(age).unwrap_or(&0);
            *sum += known.max(0) * UNIT - *sum / spec.memory_days;
        }
    }

    /// Compares the late conversions since the last whole day with what the curve predicted. What
    /// clicks bring at first is left out: that depends on the conversion rate, this does not.
    fn judge(&mut self, spec: &MaturitySpec, day: i64) {
        let from = std::mem::replace(&mut self.judged_day, day);
        let Some(curve) = self.curve.clone().filter(|_| self.settled >= SETTLED_MIN) else {
            return;
        };
        let (mut came, mut expected, mut variance) = (0.0, 0.0, 0.0);
        for (click_day, ages) in self.open.range(..from) {
            let (age_from, age) =
                (from - click_day - 1, (day - click_day - 1).min(spec.settle_days));
            let before = known_by(ages, age_from);
            let share = |age: i64| curve.share_ppm(age as usize) as f64;
            let growth = share(age) / share(age_from).max(1.0) - 1.0;
            came += (known_by(ages, age) - before) as f64;
            expected += before as f64 * growth;
            variance += before as f64 * growth.abs() * (1.0 + growth.abs());
        }
        self.residual = (came - expected) / (variance.max(0.0) + 1.0).sqrt();
        self.broken = self.residual.abs() > spec.break_score * self.dispersion.sqrt();
        if !self.broken {
            let square = (self.residual * self.residual).min(SQUARE_MAX);
            self.dispersion += DISPERSION_GAIN * (square - self.dispersion);
            self.dispersion = self.dispersion.max(1.0);
        }
    }

    fn heap_bytes(&self) -> usize {
        let days: usize = self.open.values().map(|ages| ages.capacity() * 8 + 48).sum();
        days + self.known.capacity() * 8 + size_of::<Curve>()
    }
}

/// The newest click day that is final when a day has begun.
fn final_until(spec: &MaturitySpec, day: i64) -> i64 {
    day - spec.settle_days - 2
}

/// Conversions of a click day known by an age.
fn known_by(ages: &[i64], age: i64) -> i64 {
    ages.iter().take((age + 1).max(0) as usize).sum()
}

/// What the accounts of one platform and tenant showed together.
#[derive(Clone, Debug)]
struct Platform {
    known: Vec<i64>,
    grows: bool,
    accounts: Vec<usize>,
}

/// The curves of all accounts. Every worker has the same.
pub struct Learner {
    spec: MaturitySpec,
    prior: [i64; AGES],
    view: RegistryView,
    /// Which of the workers this is: each exports its own accounts.
    worker: (u64, u64),
    /// In the order in which they were first heard; it never shows.
    accounts: IndexMap<EntityId, Account>,
    platforms: IndexMap<(EntityId, String), Platform>,
    export: Option<Outgoing>,
}

impl Learner {
    /// Knows nothing yet.
    pub fn new(spec: MaturitySpec, view: RegistryView) -> Learner {
        Learner {
            prior: spec.prior(),
            spec,
            view,
            worker: (0, 1),
            accounts: IndexMap::new(),
            platforms: IndexMap::new(),
            export: None,
        }
    }

    /// The same, as one of several workers.
    pub(crate) fn on_worker(self, index: usize, peers: usize) -> Learner {
        Learner { worker: (index as u64, peers as u64), ..self }
    }

    /// Takes in everything that was said at one tick, on all workers; returns the curves that
    /// changed, in no order that matters.
    pub fn take(&mut self, said: Vec<Said>) -> Vec<(EntityId, Arc<Curve>)> {
        let mut merged: BTreeMap<EntityId, Said> = BTreeMap::new();
        for said in said {
            match merged.get_mut(&said.account) {
                Some(known) => known.merge(said),
                None => drop(merged.insert(said.account, said)),
            }
        }
        let (mut changed, mut spread) = (Vec::new(), Vec::new());
        for said in merged.into_values() {
            let at = self.account(&said);
            if let Some(export) = &mut self.export
                && export.claim(at)
            {
                self.leave(at);
            }
            let account = &mut self.accounts[at];
            let before = account.known.clone();
            let (settled, grew) = (account.take(&self.spec, &said), account.grows);
            let platform = &mut self.platforms[account.platform];
            if settled {
                for ((sum, before), now) in
                    platform.known.iter_mut().zip(&before).zip(&account.known)
                {
                    *sum += now - before;
                }
            }
            if settled || (grew && !platform.grows) {
                platform.grows |= grew;
                spread.push(account.platform);
            }
            changed.push(at);
        }
        spread.iter().for_each(|platform| changed.extend(&self.platforms[*platform].accounts));
        changed.sort_unstable();
        changed.dedup();
        changed.into_iter().filter_map(|at| self.draw(at)).collect()
    }

    /// The curve of an account.
    pub fn curve(&self, account: EntityId) -> Option<&Arc<Curve>> {
        self.accounts.get(&account)?.curve.as_ref()
    }

    /// Every curve there is.
    pub(crate) fn curves(&self) -> impl Iterator<Item = (EntityId, Arc<Curve>)> + '_ {
        self.accounts.iter().filter_map(|(id, account)| Some((*id, account.curve.clone()?)))
    }

    /// Bytes on the heap.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.accounts.values().map(Account::heap_bytes).sum::<usize>()
            + self.accounts.capacity() * (size_of::<Account>() + 32)
    }

    fn account(&mut self, said: &Said) -> usize {
        if let Some(at) = self.accounts.get_index_of(&said.account) {
            return at;
        }
        let ages = self.spec.settle_days as usize + 1;
        let platform = self.platform(said.account);
        self.add(said.account, Account::new(platform, said, ages))
    }

    fn add(&mut self, id: EntityId, account: Account) -> usize {
        let platform = account.platform;
        let at = self.accounts.insert_full(id, account).0;
        self.platforms[platform].accounts.push(at);
        at
    }

    fn platform(&mut self, account: EntityId) -> usize {
        let info = self.view.info(account);
        let tenant = info.ancestors[Level::Tenant as usize];
        let name = info.key.segment(1).unwrap_or_default().to_owned();
        let ages = self.spec.settle_days as usize + 1;
        let new = || Platform { known: vec![0; ages], grows: false, accounts: Vec::new() };
        let entry = self.platforms.entry((tenant, name));
        let at = entry.index();
        entry.or_insert_with(new);
        at
    }

    /// Draws the curve of an account anew.
    fn draw(&mut self, at: usize) -> Option<(EntityId, Arc<Curve>)> {
        let (id, account) = self.accounts.get_index_mut(at)?;
        let platform = &self.platforms[account.platform];
        if !platform.grows {
            return None;
        }
        let weight = i128::from(self.spec.shrink_conversions * UNIT);
        let shrunk = |known: &[i64], age: usize, toward: i64| {
            let (Some(by_age), Some(all)) = (known.get(age), known.last()) else { return ONE_PPM };
            let sum = i128::from(*by_age) * i128::from(ONE_PPM) + weight * i128::from(toward);
            let share = sum / (i128::from(*all) + weight).max(1);
            share.clamp(0, i128::from(ONE_PPM)) as i64
        };
        let all = account.known.last().copied().unwrap_or(0) / UNIT + self.spec.shrink_conversions;
        let by_age = std::array::from_fn(|age| {
            let share = shrunk(&account.known, age, shrunk(&platform.known, age, self.prior[age]));
            let p = share as f64 / ONE_PPM as f64;
            let error = (account.dispersion * p * (1.0 - p) / all.max(1) as f64).sqrt();
            (share, (error * ONE_PPM as f64).round() as i64)
        });
        let verdict = (account.residual, account.broken);
        let Heard { at_us, day, offset_us } = account.heard;
        let curve = Arc::new(Curve::new((at_us, day, offset_us), by_age, verdict));
        account.curve = Some(curve.clone());
        Some((*id, curve))
    }

    /// Pushes an account into the export if it is this worker's to export.
    fn leave(&mut self, at: usize) {
        let Some((id, account)) = self.accounts.get_index(at) else { return };
        let (index, peers) = self.worker;
        if self.view.info(*id).shard % peers == index
            && let Some(export) = &mut self.export
        {
            let state = (*id, account);
            export.push(StateItem::new(StatePart::Maturity, StateItem::EVERYWHERE, &state));
        }
    }
}

impl Stateful for Learner {
    fn begin_export(&mut self, _tick: Tick) {
        self.export = Some(Outgoing::new(self.accounts.len()));
    }

    fn export(&mut self, bytes: usize) -> (Vec<StateItem>, bool) {
        while let Some(at) = self.export.as_mut().and_then(|export| export.next(bytes)) {
            self.leave(at);
        }
        let Some(export) = &mut self.export else { return (Vec::new(), true) };
        let (items, done) = (export.take(), export.is_through());
        if done {
            self.export = None;
        }
        (items, done)
    }

    fn restore(&mut self, _tick: Tick, items: &[StateItem]) -> Result<(), StateError> {
        for item in items {
            let (id, mut account): (EntityId, Account) = item.read()?;
            let unreadable = |what: &str| StateError::Unreadable {
                part: item.part,
                entity: id,
                what: what.to_owned(),
            };
            if !self.view.knows(id) {
                return Err(unreadable("the registry does not know it"));
            }
            let ages = self.spec.settle_days as usize + 1;
            if account.known.len() != ages {
                // Days were final at another age then: what they taught is not what is asked now.
                (account.known, account.settled) = (vec![0; ages], 0);
            }
            account.platform = self.platform(id);
            let platform = &mut self.platforms[account.platform];
            platform.grows |= account.grows;
            for (sum, known) in platform.known.iter_mut().zip(&account.known) {
                *sum += known;
            }
            self.add(id, account);
        }
        for at in 0..self.accounts.len() {
            self.draw(at);
        }
        Ok(())
    }
}

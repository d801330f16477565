//! A seeded simulator of conversions that are reported late, and the completeness curve recomputed
//! from everything that was ever said.

#![allow(dead_code, reason = "not every test needs all of it")]

use std::collections::{BTreeMap, BTreeSet};

use omnify_operators::maturity::{AGES, MaturitySpec, Said, Sayings};
use omnify_operators::model::{DAY_US, EntityId, HOUR_US, Stats, Tick, us_of_tick};

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In [0, 1).
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Poisson, by arrivals of a unit process.
    pub(crate) fn poisson(&mut self, mean: f64) -> i64 {
        let (mut count, mut time) = (-1, 0.0);
        while time <= mean {
            time -= (1.0 - self.unit()).ln();
            count += 1;
        }
        count
    }
}

/// How long conversions take: a share at once, the others exponential.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delays {
    pub(crate) at_once: f64,
    pub(crate) mean_days: f64,
}

/// Reports are read at this time of each day.
pub(crate) const READ_AT_US: i64 = 6 * HOUR_US;

impl Delays {
    pub(crate) fn draw(&self, random: &mut Random) -> f64 {
        let late = random.unit() >= self.at_once;
        if late { -self.mean_days * (1.0 - random.unit()).ln() } else { 0.0 }
    }

    /// Share of the conversions of a day that is known at an age, of those within `settle_days`.
    pub(crate) fn completeness(&self, age: i64, settle_days: i64) -> f64 {
        let known = |age: i64| {
            let at = age as f64 + READ_AT_US as f64 / DAY_US as f64;
            let by = |click: f64| {
                1.0 - (1.0 - self.at_once) * (-(at + 1.0 - click) / self.mean_days).exp()
            };
            (0..1_000).map(|n| by((f64::from(n) + 0.5) / 1_000.0)).sum::<f64>() / 1_000.0
        };
        known(age) / known(settle_days)
    }
}

/// One account: clicks of each day, and its conversions by the age at which they are known.
pub(crate) struct Account {
    pub(crate) delays: Delays,
    pub(crate) clicks: i64,
    pub(crate) rate: f64,
    /// By click day: conversions by age.
    pub(crate) days: Vec<Vec<i64>>,
    random: Random,
}

impl Account {
    pub(crate) fn new(seed: u64, clicks: i64, rate: f64, delays: Delays) -> Account {
        Account { delays, clicks, rate, days: Vec::new(), random: Random(seed) }
    }

    /// Lets another click day pass.
    pub(crate) fn day(&mut self) {
        let mut by_age = vec![0; 200];
        for _ in 0..self.random.poisson(self.clicks as f64 * self.rate) {
            let (click, delay) = (self.random.unit(), self.delays.draw(&mut self.random));
            let age = click + delay - 1.0 - READ_AT_US as f64 / DAY_US as f64;
            let age = (age.floor() + 1.0).max(0.0) as usize;
            by_age[age.min(199)] += 1;
        }
        self.days.push(by_age);
    }

    /// Conversions of click day `day` that are known when `today` is read.
    pub(crate) fn known(&self, day: usize, today: usize) -> i64 {
        self.days[day].iter().take((today - day).min(200)).sum()
    }

    /// Conversions of click day `day` in the end.
    pub(crate) fn settled(&self, day: usize, settle_days: i64) -> i64 {
        self.days[day].iter().take(settle_days as usize + 1).sum()
    }

    /// What a reading on the morning of day `today` says that is new.
    pub(crate) fn read(&self, account: EntityId, today: usize) -> Vec<Said> {
        let (mut said, now) = (Sayings::default(), today as i64 * DAY_US + READ_AT_US);
        for day in 0..today.min(self.days.len()) {
            let first = day + 1 == today;
            let before = if first { 0 } else { self.known(day, today - 1) };
            let conversions = self.known(day, today) - before;
            let clicks = if first { self.clicks } else { 0 };
            let change = Stats { clicks, conversions, ..Stats::ZERO };
            said.note(account, (now, 0), day as i64, &change);
        }
        said.into_said().collect()
    }
}

/// One change of a click day as it became known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Statement {
    pub(crate) tick: Tick,
    pub(crate) account: EntityId,
    pub(crate) day: i64,
    /// The first statement of a row, which brings its clicks.
    pub(crate) first: bool,
    pub(crate) conversions: i64,
}

/// What the curve of an account must be: shares by age, residual, broken.
pub(crate) type Expected = (Vec<i64>, f64, bool);

/// Curves after every tick, from the whole list of statements: slow and obvious. `platform_of` says
/// which accounts learn from each other.
pub(crate) fn curves(
    spec: &MaturitySpec,
    statements: &[Statement],
    platform_of: impl Fn(EntityId) -> u32,
) -> BTreeMap<Tick, BTreeMap<EntityId, Expected>> {
    let ticks: BTreeSet<Tick> = statements.iter().map(|said| said.tick).collect();
    let accounts: BTreeSet<EntityId> = statements.iter().map(|said| said.account).collect();
    let one = 1_000_000_i64;
    let mut out: BTreeMap<Tick, BTreeMap<EntityId, Expected>> = BTreeMap::new();
    let mut verdicts: BTreeMap<EntityId, (f64, f64, bool)> = BTreeMap::new();
    let today = |said: &Statement| us_of_tick(said.tick).div_euclid(DAY_US);
    // The day on which an account last spoke by a tick.
    let fresh_day = |account: EntityId, tick: Tick| {
        let of = statements.iter().filter(|said| said.account == account && said.tick <= tick);
        of.map(today).max()
    };
    let age_of = |said: &Statement| (today(said) - said.day - 1).clamp(0, AGES as i64);
    let first_tick = |account: EntityId| {
        statements.iter().filter(|said| said.account == account).map(|said| said.tick).min()
    };
    let since = |account: EntityId| {
        first_tick(account).and_then(|tick| fresh_day(account, tick)).unwrap() - 1
    };
    // Conversions of a click day known by an age, from what came by a tick.
    let known = |account: EntityId, day: i64, age: i64, tick: Tick| -> i64 {
        let own = statements.iter().filter(|said| said.account == account && said.tick <= tick);
        let of = own.filter(|said| {
            let day_then = fresh_day(account, said.tick).unwrap();
            let before = ticks.range(..said.tick).rev().find_map(|at| fresh_day(account, *at));
            said.day == day
                && age_of(said) <= age
                && (!said.first || age_of(said) <= 3)
                && day <= day_then + 1
                // Not once it was final.
                && before.is_none_or(|before| before < day + spec.settle_days + 2)
        });
        of.map(|said| said.conversions).sum()
    };
    for &tick in &ticks {
        let before = ticks.range(..tick).next_back().copied();
        for &account in &accounts {
            let Some(day) = fresh_day(account, tick) else { continue };
            let day_before = before.and_then(|tick| fresh_day(account, tick));
            let Some(day_before) = day_before.filter(|before| *before < day) else { continue };
            // The whole day that has just passed is compared with the one compared before it.
            let passed = ticks.range(..tick).filter_map(|at| fresh_day(account, *at));
            let mut passed: Vec<i64> = passed.collect();
            passed.dedup();
            let from = passed.iter().rev().nth(1).copied().unwrap_or(passed[0]);
            let curve = before.and_then(|tick| out[&tick].get(&account).cloned());
            let learned = learned_days(spec, account, day_before, &since, |day| {
                known(account, day, spec.settle_days, tick)
            });
            let Some((curve, _, _)) = curve.filter(|_| learned >= 7) else { continue };
            let (mut came, mut expected, mut variance) = (0.0, 0.0, 0.0);
            for click_day in since(account).max(day_before - spec.settle_days - 1)..from {
                let (a, b) =
                    (from - click_day - 1, (day_before - click_day - 1).min(spec.settle_days));
                let had = known(account, click_day, a, tick) as f64;
                let grows = curve[b as usize] as f64 / (curve[a as usize] as f64).max(1.0) - 1.0;
                came += known(account, click_day, b, tick) as f64 - had;
                expected += had * grows;
                variance += had * grows.abs() * (1.0 + grows.abs());
            }
            let residual = (came - expected) / (variance.max(0.0) + 1.0).sqrt();
            let verdict = verdicts.entry(account).or_insert((1.0, 0.0, false));
            let broken = residual.abs() > spec.break_score * verdict.0.sqrt();
            if !broken {
                let square = (residual * residual).min(9.0);
                verdict.0 = (verdict.0 + (square - verdict.0) / 16.0).max(1.0);
            }
            (verdict.1, verdict.2) = (residual, broken);
        }
        // Forgetting sums of all settled days, of each account.
        let sums = |account: EntityId| -> Option<Vec<i64>> {
            let day = fresh_day(account, tick)?;
            let mut sums = vec![0_i64; spec.settle_days as usize + 1];
            for click_day in since(account)..=day - spec.settle_days - 2 {
                if known(account, click_day, spec.settle_days, tick) > 0 {
                    for (age, sum) in sums.iter_mut().enumerate() {
                        let known = known(account, click_day, age as i64, tick).max(0);
                        *sum += known * 1_024 - *sum / spec.memory_days;
                    }
                }
            }
            Some(sums)
        };
        let all: BTreeMap<EntityId, Vec<i64>> =
            accounts.iter().filter_map(|account| Some((*account, sums(*account)?))).collect();
        let grows = |platform: u32| {
            statements.iter().any(|said| {
                said.tick <= tick
                    && platform_of(said.account) == platform
                    && !said.first
                    && said.conversions != 0
                    && age_of(said) > 0
            })
        };
        let shrunk = |sums: &[i64], age: usize, toward: i64| {
            let weight = i128::from(spec.shrink_conversions * 1_024);
            let (Some(at), Some(all)) = (sums.get(age), sums.last()) else { return one };
            let share = (i128::from(*at) * i128::from(one) + weight * i128::from(toward))
                / (i128::from(*all) + weight);
            share.clamp(0, i128::from(one)) as i64
        };
        let prior = |age: usize| {
            let late = (1.0 - spec.prior_first_day) * (-(age as f64) / spec.prior_mean_days).exp();
            let open = (age as i64) < spec.settle_days;
            if open { ((1.0 - late) * 1e6).round() as i64 } else { one }
        };
        let mut now = BTreeMap::new();
        for (account, own) in &all {
            let platform = platform_of(*account);
            if !grows(platform) {
                continue;
            }
            let mut pooled = vec![0; own.len()];
            for (_, sums) in all.iter().filter(|(other, _)| platform_of(**other) == platform) {
                pooled.iter_mut().zip(sums).for_each(|(sum, more)| *sum += more);
            }
            let shares =
                (0..AGES).map(|age| shrunk(own, age, shrunk(&pooled, age, prior(age)))).collect();
            let (_, residual, broken) = verdicts.get(account).copied().unwrap_or((1.0, 0.0, false));
            now.insert(*account, (shares, residual, broken));
        }
        out.insert(tick, now);
    }
    out
}

/// Click days with conversions that were final when `day` had begun.
fn learned_days(
    spec: &MaturitySpec,
    account: EntityId,
    day: i64,
    since: &impl Fn(EntityId) -> i64,
    known: impl Fn(i64) -> i64,
) -> usize {
    (since(account)..=day - spec.settle_days - 2).filter(|day| known(*day) > 0).count()
}

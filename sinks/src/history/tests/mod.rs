//! A small random run, written and read back in every way that must hold.

mod compact;
mod crash;
mod damage;
mod export;
mod round_trip;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use omnify_decision::action::{Action, Decision, Id, Prediction, Setting, Status, Verdict};
use omnify_decision::control::{Actual, Control, Outcome};
use omnify_operators::model::{
    Anomaly, Currency, EntityId, EntityKey, Estimate, Event, EventKind, Expected, Fatigue,
    FatigueState, FeatureRow, Level, MAX_WINDOWS, MINUTE_US, Maturity, PaneBatch, PaneRow, Reach,
    Registry, RegistryView, Stats, Tick, us_of_tick,
};

use super::{DeadLetter, HistoryError, HistoryMeta, HistoryWriter, WriterOptions};

/// 2024-10-03 23:59:00 UTC: a run of two minutes crosses midnight.
const START: Tick = 1_727_999_940_000;

/// A generator with a fixed seed (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn float(&mut self) -> f64 {
        (self.next() as i64) as f64 / 1e12
    }
}

/// Everything of one tick.
#[derive(Clone, Debug)]
struct TickInput {
    tick: Tick,
    events: Vec<Event>,
    panes: PaneBatch,
    decisions: Vec<Decision>,
    actions: Vec<Action>,
    controls: Vec<Control>,
    letters: Vec<DeadLetter>,
}

/// A run: its entities and its ticks.
struct Run {
    registry: Arc<Registry>,
    ticks: Vec<TickInput>,
}

fn meta() -> HistoryMeta {
    let windows = ["1h/1m", "24h/15m", "day"].map(|text| text.parse().unwrap());
    HistoryMeta {
        windows: windows.to_vec(),
        levels: Level::ALL.to_vec(),
        versions: BTreeMap::from([("engine".to_owned(), "0.1.0".to_owned())]),
        config_toml: "# the effective configuration\n".to_owned(),
    }
}

/// Small limits, so that a small run makes many parts and row groups.
fn small() -> WriterOptions {
    WriterOptions {
        rows_per_file: 40,
        row_group_rows: 16,
        buffered_bytes_max: 64 << 10,
        commit_rows: 300,
        durable: false,
        ..WriterOptions::default()
    }
}

fn open(root: &Path, run: &Run, options: WriterOptions) -> Result<HistoryWriter, HistoryError> {
    let view = RegistryView::new(run.registry.clone());
    Ok(HistoryWriter::open(root, meta(), view, options)?.with_currencies(Box::new(currency)))
}

fn currency(key: &EntityKey) -> Option<Currency> {
    (key.tenant() != "_").then_some(Currency::USD)
}

fn hand_over(writer: &mut HistoryWriter, input: &TickInput) -> Result<(), HistoryError> {
    // Twice, as a tick may come in pieces.
    let (head, tail) = input.events.split_at(input.events.len() / 2);
    writer.events(input.tick, head)?;
    writer.events(input.tick, tail)?;
    writer.outcomes(input.tick, &input.controls)?;
    writer.panes(&input.panes)?;
    writer.decisions(&input.decisions)?;
    writer.actions(&input.actions)?;
    writer.dead_letters(&input.letters)?;
    writer.tick(input.tick, &input.controls).map(|_| ())
}

/// Writes a whole run.
fn write(root: &Path, run: &Run, options: WriterOptions) {
    let mut writer = open(root, run, options).unwrap();
    run.ticks.iter().for_each(|input| hand_over(&mut writer, input).unwrap());
    writer.finish().unwrap();
}

/// All files under a folder with their content, by relative path.
fn files(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(root).unwrap().to_owned();
                found.insert(name, fs::read(path).unwrap());
            }
        }
    }
    found
}

impl Run {
    fn new(seed: u64, ticks: u64, events_per_tick: u64) -> Run {
        let mut random = Random(seed);
        let registry = Arc::new(Registry::utc());
        let mut creatives = Vec::new();
        for tenant in ["acme", "b b%é", "_"] {
            for n in 0..5 {
                let key = EntityKey::new(&[
                    tenant,
                    "meta",
                    "act",
                    &format!("c{}", n / 3),
                    &format!("g{n}"),
                    // The same creative name everywhere: only the whole path identifies.
                    &format!("x{}", n % 2),
                ]);
                creatives.push(registry.intern(&key.unwrap()));
            }
        }
        let mut view = RegistryView::new(registry.clone());
        let ticks = (0..ticks)
            .map(|n| {
                let tick = START + n * (120_000 / ticks.max(1)).max(1);
                tick_input(&mut random, &mut view, &creatives, tick, events_per_tick)
            })
            .collect();
        Run { registry, ticks }
    }

    /// The events of a tick with their keys: ids differ between registries.
    fn keyed(registry: &Arc<Registry>, events: &[Event]) -> Vec<(EntityKey, Event)> {
        let mut view = RegistryView::new(registry.clone());
        let none = EntityId(0);
        events
            .iter()
            .map(|e| (view.info(e.creative).key.clone(), Event { creative: none, ..*e }))
            .collect()
    }
}

fn stats(random: &mut Random) -> Stats {
    let mut number = || random.below(2_000) as i64 - 500;
    Stats {
        impressions: number(),
        clicks: number(),
        conversions: number(),
        cost_micros: number() * 1_000,
        revenue_micros: number() * 1_000,
    }
}

fn feature_row(random: &mut Random, entity: EntityId, tick: Tick) -> FeatureRow {
    let mut windows = [Stats::ZERO; MAX_WINDOWS];
    windows[..3].iter_mut().for_each(|window| *window = stats(random));
    let mut estimate = || Estimate {
        mean: random.float(),
        low: random.float(),
        high: random.float(),
        successes: random.below(9) as i64,
        trials: random.below(99) as i64,
    };
    let (ctr, cvr) = (estimate(), estimate());
    let states = [FatigueState::Insufficient, FatigueState::Fresh, FatigueState::WearingOut];
    FeatureRow {
        entity,
        tick,
        windows,
        ctr,
        cvr,
        reach: Reach { users: random.float(), frequency: random.float() },
        fatigue: Fatigue {
            state: states[random.below(3) as usize],
            baseline_ctr: random.float(),
            ratio: random.float(),
            probability: random.float(),
            slope_per_day: random.float(),
            days_to_onset: (random.below(2) == 0).then(|| random.float()),
        },
        anomaly: Anomaly { score: random.float(), alarm: random.below(2) == 0 },
        maturity: (random.below(2) == 0).then(|| maturity(random)),
    }
}

fn maturity(random: &mut Random) -> Maturity {
    let mut expected =
        || Expected { mean: random.float(), low: random.float(), high: random.float() };
    let (conversions, revenue_micros) = (expected(), expected());
    Maturity {
        share: random.float(),
        error: random.float(),
        conversions,
        revenue_micros,
        fresh_us: random.below(1 << 50) as i64,
        settled_us: random.below(1 << 50) as i64,
        residual: random.float(),
        broken: random.below(2) == 0,
    }
}

fn id(random: &mut Random) -> Id {
    let (a, b) = (random.next().to_le_bytes(), random.next().to_le_bytes());
    Id(std::array::from_fn(|at| if at < 8 { a[at] } else { b[at - 8] }))
}

fn tick_input(
    random: &mut Random,
    view: &mut RegistryView,
    creatives: &[EntityId],
    tick: Tick,
    events_per_tick: u64,
) -> TickInput {
    let now = us_of_tick(tick);
    let any = |random: &mut Random| creatives[random.below(creatives.len() as u64) as usize];
    let events = (0..random.below(2 * events_per_tick + 1))
        .map(|_| Event {
            time: now - random.below(90_000_000) as i64,
            creative: any(random),
            kind: EventKind::ALL[random.below(5) as usize],
            delta: stats(random),
            user: [0, random.next()][random.below(2) as usize],
            id: [0, random.next()][random.below(2) as usize],
        })
        .collect();
    let mut panes = PaneBatch::default();
    for at in 0..random.below(6) as u32 {
        let entity = any(random);
        let entity = view.info(entity).ancestors[random.below(5) as usize];
        let window_end = now - now.rem_euclid(MINUTE_US);
        let (window, sums) = (random.below(3) as u8, stats(random));
        panes.rows.push(PaneRow { entity, window, window_end, sums, tick });
        if random.below(3) == 0 {
            panes.features.push((at, feature_row(random, entity, tick)));
        }
    }
    let mut decisions: Vec<Decision> = Vec::new();
    for _ in 0..random.below(4) {
        let creative = any(random);
        decisions.push(decision(random, view, creative, tick));
    }
    let actions = decisions.iter().filter_map(|decision| {
        let desired = decision.granted.clone()?;
        Some(Action {
            id: decision.action?,
            decision: decision.id,
            tick,
            expires: tick + 1_000,
            owner: decision.entity.key.clone(),
            desired,
            before: decision.proposed.clone(),
            reasons: decision.reasons.clone(),
        })
    });
    let actions: Vec<Action> = actions.collect();
    let letters = (0..random.below(2)).map(|row| {
        let bytes = random.next().to_le_bytes();
        let letter =
            DeadLetter::new(tick, "in.csv".into(), row, "bad_number", "no number".into(), &bytes);
        if random.below(2) == 0 { letter } else { letter.of_tenant("acme".into()) }
    });
    let letters = letters.collect();
    let creative = any(random);
    let controls = controls(random, view, creative);
    TickInput { tick, events, panes, decisions, actions, controls, letters }
}

fn decision(random: &mut Random, view: &mut RegistryView, of: EntityId, tick: Tick) -> Decision {
    let campaign = view.info(of).ancestors[Level::Campaign as usize];
    let entity = view.info(campaign).clone();
    let bid = |random: &mut Random| Setting::Bid { bid_micros: random.below(1 << 40) as i64 };
    let verdicts = [Verdict::Act, Verdict::Hold, Verdict::Blocked, Verdict::Propose];
    let verdict = verdicts[random.below(4) as usize];
    Decision {
        id: id(random),
        tick,
        goal: "grow".into(),
        policy: "target_cpa/1",
        model_version: random.below(3),
        verdict,
        proposed: (verdict != Verdict::Hold).then(|| bid(random)),
        granted: (verdict == Verdict::Act).then(|| bid(random)),
        action: (verdict == Verdict::Act).then(|| id(random)),
        reasons: ["cpa_high", "spend_low"][..random.below(3) as usize].to_vec(),
        guardrails: ["step"][..random.below(2) as usize].to_vec(),
        predicted: Prediction {
            spend_micros: random.float(),
            value: random.float(),
            value_low: -0.0,
            value_high: random.float(),
        },
        propensity: 1.0,
        pacing_error: random.float(),
        row: feature_row(random, entity.id, tick),
        entity,
    }
}

fn controls(random: &mut Random, view: &mut RegistryView, of: EntityId) -> Vec<Control> {
    let owner = view.info(of).key.ancestor(Level::Campaign).unwrap();
    match random.below(6) {
        0 => vec![Control::Acknowledge {
            action: id(random),
            owner,
            outcome: Outcome::Applied { effective: Setting::Status { status: Status::Paused } },
        }],
        1 => vec![
            Control::Acknowledge {
                action: id(random),
                owner: owner.clone(),
                outcome: Outcome::Rejected { class: "validation".into(), message: "no".into() },
            },
            Control::Observe {
                entity: owner,
                actual: Actual { bid_micros: Some(5), ..Actual::default() },
            },
        ],
        2 => vec![Control::Model {
            version: random.below(9),
            model: serde_json::json!({ "weights": [random.float(), 0.1 + 0.2, 1e-300] }),
        }],
        3 => vec![Control::Kill { tenant: None }, Control::Resume { tenant: Some("acme".into()) }],
        _ => Vec::new(),
    }
}

//! What of a tick goes out: feature rows, not too often for one entity, and alerts, once each.
//!
//! # Contract
//! A function of the ticks it has seen and nothing else: the same ticks give the same messages with
//! the same ids. What it remembers is saved with a snapshot ([`Selector::save`]), so that an alert
//! that was told before a restart is not told again, and a row that waits is not forgotten.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use omnify_operators::model::{
    EntityId, EntityInfo, EntityKey, FatigueState, FeatureRow, Frame, Level, Tick,
};
use serde::{Deserialize, Serialize};

use super::message::Alert;
use crate::serve::Problem;

/// What of one tick goes out.
#[derive(Clone, Debug, Default)]
pub struct TickOutputs {
    /// The tick.
    pub tick: Tick,
    /// Feature rows, at most one for each entity.
    pub features: Vec<(Arc<EntityInfo>, FeatureRow)>,
    /// Alerts.
    pub alerts: Vec<Alert>,
}

/// What is remembered of what was told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelectorState {
    raised: BTreeMap<EntityKey, Raised>,
    violations: BTreeMap<String, u64>,
    problems: Vec<String>,
    /// When entities were told of last.
    sent: Vec<(EntityId, Tick)>,
    /// Those of which a newer row waits.
    waiting: Vec<EntityId>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Raised {
    anomaly: bool,
    wearing_out: bool,
    curve_broken: bool,
}

/// Kept by the decision thread.
#[derive(Debug, Default)]
pub struct Selector {
    every_ms: u64,
    features: bool,
    alerts: bool,
    state: SelectorState,
    sent: HashMap<EntityId, Tick>,
    /// The newest row of entities that were told of too recently.
    waiting: HashMap<EntityId, (Arc<EntityInfo>, FeatureRow)>,
    /// When to look at them again.
    due: BTreeMap<Tick, Vec<EntityId>>,
}

impl Selector {
    /// Selects features (at most every `every_ms` for one entity) and alerts, as far as wanted.
    pub fn new(features: bool, alerts: bool, every_ms: u64) -> Selector {
        Selector { every_ms, features, alerts, ..Selector::default() }
    }

    /// What a snapshot keeps, beside the newest row of every entity.
    pub fn save(&self) -> SelectorState {
        let mut sent: Vec<_> = self.sent.iter().map(|(id, tick)| (*id, *tick)).collect();
        sent.sort_unstable();
        let mut waiting: Vec<_> = self.waiting.keys().copied().collect();
        waiting.sort_unstable();
        SelectorState { sent, waiting, ..self.state.clone() }
    }

    /// Goes on from a snapshot, in which `rows` were the newest of every entity.
    pub fn load(&mut self, mut state: SelectorState, rows: &[(Arc<EntityInfo>, FeatureRow)]) {
        self.sent = std::mem::take(&mut state.sent).into_iter().collect();
        let waiting = std::mem::take(&mut state.waiting);
        for row in rows.iter().filter(|(info, _)| waiting.binary_search(&info.id).is_ok()) {
            let id = row.0.id;
            self.waiting.insert(id, row.clone());
            let due = self.sent.get(&id).map_or(0, |sent| sent + self.every_ms);
            self.due.entry(due).or_default().push(id);
        }
        self.state = state;
    }

    /// What of a complete tick goes out. `violations` are counts since the start of the process,
    /// `problems` those of now.
    pub fn tick(
        &mut self,
        frame: &Frame,
        violations: &BTreeMap<&'static str, u64>,
        problems: &[Problem],
    ) -> TickOutputs {
        let tick = frame.tick;
        let mut outputs = TickOutputs { tick, ..TickOutputs::default() };
        if self.features {
            self.rows(frame, &mut outputs.features);
        }
        if self.alerts {
            for (info, row) in &frame.rows {
                self.entity(tick, info, row, &mut outputs.alerts);
            }
            self.engine(tick, violations, problems, &mut outputs.alerts);
        }
        outputs
    }

    fn rows(&mut self, frame: &Frame, out: &mut Vec<(Arc<EntityInfo>, FeatureRow)>) {
        let tick = frame.tick;
        for (info, row) in &frame.rows {
            let due = self.sent.get(&info.id).map_or(0, |sent| sent + self.every_ms);
            if due <= tick {
                self.waiting.remove(&info.id);
                self.sent.insert(info.id, tick);
                out.push((info.clone(), *row));
            } else if self.waiting.insert(info.id, (info.clone(), *row)).is_none() {
                self.due.entry(due).or_default().push(info.id);
            }
        }
        while let Some(entry) = self.due.first_entry()
            && *entry.key() <= tick
        {
            for id in entry.remove() {
                if let Some(row) = self.waiting.remove(&id) {
                    self.sent.insert(id, tick);
                    out.push(row);
                }
            }
        }
    }

    fn entity(&mut self, tick: Tick, info: &EntityInfo, row: &FeatureRow, out: &mut Vec<Alert>) {
        let now = Raised {
            anomaly: row.anomaly.alarm,
            wearing_out: row.fatigue.state == FatigueState::WearingOut,
            curve_broken: info.level == Level::Account
                && row.maturity.is_some_and(|maturity| maturity.broken),
        };
        let before = self.state.raised.get(&info.key).copied().unwrap_or_default();
        if now == before {
            return;
        }
        if now.anomaly && !before.anomaly {
            let text =
                format!("delivery of {} is unusual (score {:.1})", info.key, row.anomaly.score);
            out.push(Alert::of("anomaly", tick, Some(&info.key), text));
        }
        if now.wearing_out && !before.wearing_out {
            let share = row.fatigue.ratio * 100.0;
            let text = format!("response of {} fell to {share:.0} % of its baseline", info.key);
            out.push(Alert::of("wearing_out", tick, Some(&info.key), text));
        }
        if now.curve_broken && !before.curve_broken {
            let residual = row.maturity.map_or(0.0, |maturity| maturity.residual);
            let text = format!(
                "late conversions of {} are {residual:+.1} standard deviations from its curve",
                info.key
            );
            out.push(Alert::of("completeness_break", tick, Some(&info.key), text));
        }
        if now == Raised::default() {
            self.state.raised.remove(&info.key);
        } else {
            self.state.raised.insert(info.key.clone(), now);
        }
    }

    fn engine(
        &mut self,
        tick: Tick,
        violations: &BTreeMap<&'static str, u64>,
        problems: &[Problem],
        out: &mut Vec<Alert>,
    ) {
        for (code, count) in violations {
            let told = self.state.violations.get(*code).copied().unwrap_or(0);
            if *count > told {
                let text = format!("invariant `{code}` was violated {count} times: this is a bug");
                out.push(Alert::of("invariant", tick, None, text));
            }
            if *count != told {
                self.state.violations.insert((*code).to_owned(), *count);
            }
        }
        for problem in problems {
            if !self.state.problems.iter().any(|told| told == problem.code) {
                out.push(Alert::of(problem.code, tick, None, problem.text.clone()));
                self.state.problems.push(problem.code.to_owned());
            }
        }
        let stands = |code: &String| problems.iter().any(|problem| problem.code == code);
        self.state.problems.retain(stands);
    }
}

#[cfg(test)]
mod tests {
    use omnify_operators::model::{Registry, RegistryView};

    use super::*;

    fn frame(tick: Tick, view: &mut RegistryView, rows: &[(EntityId, bool, i64)]) -> Frame {
        let rows = rows
            .iter()
            .map(|(id, alarm, clicks)| {
                let mut row = super::super::message::tests::row(*id, tick);
                row.anomaly.alarm = *alarm;
                row.windows[0].clicks = *clicks;
                (view.info(*id).clone(), row)
            })
            .collect();
        Frame { tick, rows }
    }

    #[test]
    fn an_entity_is_told_of_at_most_so_often_and_the_newest_row_is_never_lost() {
        let registry = Arc::new(Registry::utc());
        let key: EntityKey = "t/p/a/c".parse().unwrap();
        let id = registry.intern(&key);
        let mut view = RegistryView::new(registry);
        // Whenever it is restarted from what it saved and the newest rows, it goes on as it would have.
        for restart in (990..1_300).step_by(10) {
            let mut selector = Selector::new(true, false, 100);
            let (mut told, mut newest) = (Vec::new(), Vec::new());
            for tick in (1_000..1_300).step_by(10) {
                let rows: &[_] = if tick < 1_050 { &[(id, false, tick as i64)] } else { &[] };
                let frame = frame(tick, &mut view, rows);
                let outputs = selector.tick(&frame, &BTreeMap::new(), &[]);
                told.extend(outputs.features.iter().map(|(_, row)| (tick, row.windows[0].clicks)));
                if !frame.rows.is_empty() {
                    newest = frame.rows;
                }
                if tick == restart {
                    let saved = serde_json::to_string(&selector.save()).unwrap();
                    selector = Selector::new(true, false, 100);
                    selector.load(serde_json::from_str(&saved).unwrap(), &newest);
                }
            }
            assert_eq!(told, [(1_000, 1_000), (1_100, 1_040)], "restarted at {restart}");
        }
    }

    #[test]
    fn an_alert_is_told_when_it_begins_and_not_again_after_a_restart() {
        let registry = Arc::new(Registry::utc());
        let id = registry.intern(&"t/p/a/c".parse::<EntityKey>().unwrap());
        let mut view = RegistryView::new(registry);
        let mut selector = Selector::new(false, true, 0);
        let stalled = [Problem { code: "history_writer_stalled", text: "full".into() }];
        let mut codes = |selector: &mut Selector, tick, alarm, violated, problems: &[Problem]| {
            let frame = frame(tick, &mut view, &[(id, alarm, 0)]);
            let violations = BTreeMap::from([("conservation", violated)]);
            let outputs = selector.tick(&frame, &violations, problems);
            outputs.alerts.iter().map(|alert| alert.code.clone()).collect::<Vec<_>>()
        };
        assert_eq!(
            codes(&mut selector, 1, true, 0, &stalled),
            ["anomaly", "history_writer_stalled"]
        );
        assert!(codes(&mut selector, 2, true, 0, &stalled).is_empty());
        let mut restarted = Selector::new(false, true, 0);
        let saved = serde_json::to_string(&selector.save()).unwrap();
        restarted.load(serde_json::from_str(&saved).unwrap(), &[]);
        assert!(codes(&mut restarted, 3, true, 0, &stalled).is_empty());
        assert_eq!(codes(&mut restarted, 4, false, 2, &[]), ["invariant"]);
        assert_eq!(
            codes(&mut restarted, 5, true, 2, &stalled),
            ["anomaly", "history_writer_stalled"]
        );
    }
}

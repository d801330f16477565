//! What becomes of a proposal: approved, rejected, expired, superseded, dropped.

mod support;

use omnify_decision::action::{Decision, Setting, Verdict};
use omnify_decision::approvals::Proposal;
use omnify_decision::codes::{guardrail, policy, reason};
use omnify_decision::control::{Actual, Control};
use omnify_decision::goal::Objective;
use omnify_decision::stage::{Autonomy, Stage, StageConfig, TickOutput};
use omnify_operators::model::{EntityKey, RegistryView, Stats, Tick};
use support::{estimate, frame, goal, registry, row};

const MINUTE: Tick = 60_000;
const CAMPAIGN: &str = "t/p/a/c";

struct Session {
    stage: Stage,
    registry: RegistryView,
    tick: Tick,
}

impl Session {
    fn new(change: impl FnOnce(&mut StageConfig)) -> Session {
        let goals = vec![goal(Objective::TargetCpa { cpa_micros: 2_000_000 })];
        let mut config =
            StageConfig { goals, autonomy: Autonomy::HumanLed, ..StageConfig::default() };
        change(&mut config);
        let stage = Stage::new(config).expect("a valid configuration");
        Session { stage, registry: registry(), tick: 1_704_067_200_000 }
    }

    /// A tick, some minutes later, with a row of each campaign.
    fn tick(&mut self, minutes: Tick, keys: &[&str], controls: &[Control]) -> TickOutput {
        self.tick += minutes * MINUTE;
        let rows = keys.iter().map(|key| {
            let mut row = row(&mut self.registry, key, self.tick);
            let sums = Stats {
                impressions: 100_000,
                clicks: 1_000,
                conversions: 60,
                cost_micros: 1_000_000,
                revenue_micros: 0,
            };
            row.windows[..4].copy_from_slice(&[sums; 4]);
            estimate(&mut row, &sums);
            row
        });
        let rows = rows.collect();
        let frame = frame(&mut self.registry, self.tick, rows);
        self.stage.on_tick(self.tick, controls, &frame)
    }

    fn open(&self) -> Vec<Proposal> {
        self.stage.proposals().map(|open| open.as_ref().clone()).collect()
    }

    /// The first proposal: the goal's budget.
    fn proposed(&mut self) -> Proposal {
        let out = self.tick(1, &[CAMPAIGN], &[]);
        assert!(out.actions.is_empty());
        let open = self.open();
        let [proposal] = open.as_slice() else { panic!("one proposal: {open:?}") };
        assert_eq!(out.decisions[0].verdict, Verdict::Propose);
        assert_eq!(proposal.decision, out.decisions[0].id);
        assert_eq!(proposal.desired, Setting::Budget { budget_micros: 100_000_000 });
        proposal.clone()
    }
}

fn approve(proposal: &Proposal) -> Control {
    Control::Approve { proposal: proposal.id, by: "ann".into() }
}

fn observe(budget_micros: i64) -> Control {
    let actual = Actual { budget_micros: Some(budget_micros), ..Actual::default() };
    Control::Observe { entity: CAMPAIGN.parse().expect("a key"), actual }
}

fn answer(out: &TickOutput) -> &Decision {
    let answers: Vec<_> =
        out.decisions.iter().filter(|one| one.policy == policy::APPROVAL).collect();
    let [one] = answers.as_slice() else { panic!("one answer: {answers:?}") };
    one
}

#[test]
fn what_is_approved_is_done_under_the_id_proposed() {
    let mut session = Session::new(|_| {});
    let proposal = session.proposed();
    let out = session.tick(1, &[], &[approve(&proposal)]);
    let answer = answer(&out);
    assert_eq!((answer.verdict, answer.reasons[0]), (Verdict::Act, reason::APPROVED));
    assert_eq!(answer.propensity, proposal.propensity);
    assert_eq!(out.actions.len(), 1);
    assert_eq!((out.actions[0].id, &out.actions[0].desired), (proposal.id, &proposal.desired));
    assert_eq!(out.actions[0].tick, session.tick);
    assert!(session.open().is_empty());
    let again = session.tick(1, &[], &[approve(&proposal)]);
    assert!(again.actions.is_empty() && again.refused.len() == 1, "{again:?}");
    assert_eq!(session.stage.counters().approvals_unmatched, 1);
    assert_eq!(session.stage.counters().invariant_violations, 0);
}

#[test]
fn what_is_rejected_is_not_proposed_again_for_a_while() {
    let mut session = Session::new(|_| {});
    let proposal = session.proposed();
    let no = Control::Reject { proposal: proposal.id, by: "ann".into(), reason: "no".into() };
    let out = session.tick(1, &[CAMPAIGN], &[no]);
    assert_eq!(answer(&out).reasons[0], reason::DECLINED);
    let budgets = |session: &Session| {
        let open = session.open();
        open.iter().filter(|one| matches!(one.desired, Setting::Budget { .. })).count()
    };
    assert!(out.actions.is_empty());
    session.tick(60, &[CAMPAIGN], &[]);
    assert_eq!(budgets(&session), 0);
    session.tick(240, &[CAMPAIGN], &[]);
    session.tick(1, &[CAMPAIGN], &[]);
    assert_eq!(budgets(&session), 1, "after that it may be asked again");
}

#[test]
fn silence_expires_and_an_equal_wish_keeps_its_place() {
    let mut session = Session::new(|config| config.approval_ttl_ms = 60 * MINUTE);
    let proposal = session.proposed();
    let same = session.tick(20, &[CAMPAIGN], &[]);
    assert_eq!(same.decisions[0].reasons[0], reason::AWAITING);
    assert_eq!(session.open(), [proposal]);
    let out = session.tick(41, &[], &[]);
    let expired = answer(&out);
    assert_eq!((expired.verdict, expired.reasons[0]), (Verdict::Hold, reason::EXPIRED));
    assert!(out.actions.is_empty());
}

#[test]
fn a_newer_proposal_takes_the_place_of_the_older() {
    let mut session = Session::new(|_| {});
    let proposal = session.proposed();
    let mut changed = goal(Objective::TargetCpa { cpa_micros: 2_000_000 });
    changed.daily_budget_micros = 70_000_000;
    let out = session.tick(1, &[CAMPAIGN], &[Control::Goal { goal: changed }]);
    assert_eq!(answer(&out).reasons[0], reason::SUPERSEDED);
    let open = session.open();
    assert_eq!(open.len(), 1);
    assert_eq!(open[0].desired, Setting::Budget { budget_micros: 70_000_000 });
    let late = session.tick(1, &[], &[approve(&proposal)]);
    assert!(late.actions.is_empty() && late.refused.len() == 1);
}

#[test]
fn a_kill_between_proposal_and_approval_wins() {
    let mut session = Session::new(|_| {});
    let proposal = session.proposed();
    let kill = Control::Kill { tenant: Some("t".into()) };
    let out = session.tick(1, &[], &[kill, approve(&proposal)]);
    let answer = answer(&out);
    assert_eq!(answer.verdict, Verdict::Blocked);
    assert_eq!(answer.guardrails, [guardrail::KILL_TENANT]);
    assert!(out.actions.is_empty() && session.open().is_empty());
}

#[test]
fn an_approval_of_what_moved_on_is_dropped() {
    let mut session = Session::new(|_| {});
    session.tick(1, &[], &[observe(50_000_000)]);
    session.tick(1, &[CAMPAIGN], &[]);
    let proposal = session.open().remove(0);
    assert_eq!(proposal.before, Some(Setting::Budget { budget_micros: 50_000_000 }));
    let out = session.tick(1, &[], &[observe(80_000_000), approve(&proposal)]);
    assert_eq!((answer(&out).verdict, answer(&out).reasons[0]), (Verdict::Hold, reason::STALE));
    assert!(out.actions.is_empty());
}

#[test]
fn a_guardrail_that_blocks_now_stops_what_was_approved() {
    let mut session = Session::new(|_| {});
    session.tick(1, &[], &[observe(50_000_000)]);
    session.tick(1, &[CAMPAIGN], &[]);
    let proposal = session.open().remove(0);
    // A small foreign edit leaves less room for the step than the proposal needs.
    let out = session.tick(1, &[], &[observe(48_000_000), approve(&proposal)]);
    let answer = answer(&out);
    assert_eq!(
        (answer.reasons[0], answer.guardrails.as_slice()),
        (reason::STALE, &[guardrail::STEP][..])
    );
    assert!(out.actions.is_empty());
}

#[test]
fn each_tenant_has_its_own_bound() {
    let mut session = Session::new(|config| config.approvals_max = 1);
    session.tick(1, &[CAMPAIGN], &[]);
    let out = session.tick(1, &["t/p/a/d", "u/p/a/c"], &[]);
    assert_eq!(answer(&out).reasons[0], reason::EXPIRED, "the oldest of the tenant");
    let owners: Vec<EntityKey> = session.open().into_iter().map(|one| one.owner).collect();
    assert_eq!(owners, ["t/p/a/d".parse().expect("a key")], "nobody covers tenant u");
}

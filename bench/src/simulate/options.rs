//! What a seed does how often: each draws its own mixture, so that some know no crash and some little
//! else, and its own sizes, so that bounds are met.

use std::collections::BTreeSet;
use std::str::FromStr;

use rand::Rng as _;
use rand::seq::SliceRandom as _;

use super::Random;
use super::platform::Weather;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident $text:literal $weight:literal $fault:literal,)*) => {
        /// What a step does.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Kind { $($(#[$doc])* $name,)* }

        impl Kind {
            /// All of them, with their usual weight, and whether it is a fault that a run may do
            /// without.
            const ALL: &'static [(Kind, u32, bool)] = &[$((Kind::$name, $weight, $fault),)*];

            /// Its name on the command line.
            pub const fn name(self) -> &'static str {
                match self { $(Kind::$name => $text,)* }
            }
        }
    };
}

kinds! {
    /// One part of the engine gets on.
    Part "part" 400 false,
    /// Every part gets on once.
    Flow "flow" 150 false,
    /// Up to two seconds pass.
    Time "time" 150 false,
    /// Minutes or hours pass.
    Pause "pause" 6 true,
    /// A body of events is sent.
    Push "push" 100 false,
    /// A body that was answered is sent again, as if the answer had been lost.
    Resend "resend" 8 true,
    /// A partition grows and is read.
    Partition "partition" 40 true,
    /// Report rows and restatements.
    Report "report" 30 true,
    /// The platform's settings are read.
    Observe "observe" 30 false,
    /// A person changes a setting on the platform.
    Manual "manual" 6 true,
    /// A goal is set or dropped.
    Goal "goal" 4 true,
    /// Actions are stopped, or go on.
    Kill "kill" 3 true,
    /// A person answers a proposal.
    Approve "approve" 10 true,
    /// A model comes in.
    Model "model" 2 true,
    /// The wall clock is set back by up to an hour.
    ClockBack "clock_back" 1 true,
    /// The network gets better or worse.
    Network "network" 10 true,
    /// The process dies between two steps.
    Crash "crash" 4 true,
    /// The process dies at an operation of the disk to come.
    CrashAt "crash_at" 8 true,
    /// The engine is stopped in order, and started again.
    Stop "stop" 2 true,
    /// The disk is full for a while.
    DiskFull "disk_full" 3 true,
    /// A sync fails.
    BadSync "bad_sync" 2 true,
    /// A write fails half way.
    BadWrite "bad_write" 2 true,
    /// A crash, and bits of a snapshot that change meanwhile.
    BitFlip "bit_flip" 2 true,
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Kind, String> {
        let mut all = Kind::ALL.iter().map(|(kind, ..)| *kind);
        all.find(|kind| kind.name() == text).ok_or_else(|| {
            let names: Vec<_> = Kind::ALL.iter().map(|(kind, ..)| kind.name()).collect();
            format!("`{text}` is none of {}", names.join(", "))
        })
    }
}

impl Kind {
    /// Every kind that a run may do without.
    pub(super) fn optional() -> impl Iterator<Item = Kind> {
        Kind::ALL.iter().filter(|(_, _, fault)| *fault).map(|(kind, ..)| *kind)
    }
}

/// What a seed decided before its first step.
pub(super) struct Plan {
    pub(super) weights: Vec<(Kind, u32)>,
    /// Workers of one life after the other, over and over.
    pub(super) workers: Vec<usize>,
    pub(super) dedupes: bool,
    pub(super) weather: Weather,
    pub(super) config_toml: String,
}

impl Plan {
    /// What is drawn does not depend on `without`, so a run without some kind is like the run with it
    /// as far as it can be.
    pub(super) fn draw(random: &mut Random, without: &BTreeSet<Kind>) -> Plan {
        let mut weights = Vec::new();
        for (kind, weight, optional) in Kind::ALL {
            let scale = *[0, 1, 1, 1, 2, 4].choose(random).unwrap_or(&1);
            let weight = if *optional { weight * scale } else { *weight };
            if weight > 0 && !without.contains(kind) {
                weights.push((*kind, weight));
            }
        }
        let workers = (0..4).map(|_| *[1, 1, 2, 3].choose(random).unwrap_or(&1)).collect();
        let mut some = |most: u32| if random.gen_bool(0.5) { random.gen_range(0..most) } else { 0 };
        let weather = Weather {
            answer: 20,
            throttle: some(5),
            unreachable: some(5),
            error_before: some(5),
            error_after: some(5),
            lost_before: some(5),
            lost_after: some(5),
            twice: some(5),
            late: some(4),
            refuse: some(3),
            deaf_percent: some(60),
        };
        let autonomy = *["autonomous", "autonomous", "guided", "human_led"]
            .choose(random)
            .unwrap_or(&"guided");
        let mut one_of = |of: &[&'static str]| *of.choose(random).unwrap_or(&of[0]);
        let config_toml = format!(
            r#"
[engine]
tick = "{tick}"
decide_every = "{decide_every}"
queue_events = {queue_events}
queue_actions = {queue_actions}
[state]
snapshot_every = "{snapshot_every}"
snapshots_kept = {snapshots_kept}
journal_segment = "{segment}"
journal_bytes_max = "{bytes_max}"
queue_journal = {queue_journal}
[history]
file_time = "{file_time}"
[decision]
autonomy = "{autonomy}"
action_ttl = "{action_ttl}"
approval_ttl = "10m"
approvals_max = 5
[controller]
period = "2s"
horizon = "1m"
deadband = 0.0
review = "1m"
exploration_sd = {exploration}
[guardrails]
step_max = 0.5
change_24h_max = 10.0
change_7d_max = 10.0
events_min = 0
gain_probability_min = 0.001
cooldown = "{cooldown}"
learning_events = 0
learning_time = "0s"
[rotation]
clicks_min = 1
retry = "1m"
[executor]
kind = "market"
attempts_max = 4
backoff = "200ms"
concurrency = {concurrency}
[[goals]]
name = "clicks"
applies_to = "t0/*"
objective = "target_cpc"
target = "0.00002"
daily_budget = "500"
currency = "USD"
pricing = "cpm"
bid_floor = "0.01"
bid_cap = "100"
[[goals]]
name = "sales"
applies_to = "t1/*"
objective = "maximise"
daily_budget = "300"
currency = "USD"
bid_floor = "0.10"
bid_cap = "20"
"#,
            tick = one_of(&["20ms", "100ms", "400ms"]),
            decide_every = one_of(&["50ms", "500ms", "2s"]),
            queue_events = one_of(&["20", "200", "65536"]),
            queue_actions = one_of(&["2", "64", "4096"]),
            snapshot_every = one_of(&["2s", "10s", "1m"]),
            snapshots_kept = one_of(&["2", "3"]),
            segment = one_of(&["4KiB", "16KiB", "64MiB"]),
            bytes_max = one_of(&["16KiB", "256KiB", "8GiB"]),
            queue_journal = one_of(&["2", "16", "1024"]),
            file_time = one_of(&["1s", "5s", "1m"]),
            action_ttl = one_of(&["10s", "1m", "5m"]),
            exploration = one_of(&["0.0", "0.05"]),
            cooldown = one_of(&["1s", "5s"]),
            concurrency = one_of(&["1", "2", "8"]),
        );
        let dedupes = random.gen_bool(0.7);
        Plan { weights, workers, dedupes, weather, config_toml }
    }
}

//! The newest statements about one creative, packed.
//!
//! An interval with its totals takes some twenty bytes where plain structs take over a hundred: an
//! account that is re-read for 28 days by the hour has 700 intervals for each creative. Intervals
//! lie in one block for each (UTC) day in which they begin, each as differences to the one before;
//! what a row may touch is unpacked, and the days it changed are packed again.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::forest::{Fact, Node};
use crate::model::{DAY_US, EventTime, ReportVersion, Stats};
use crate::varint::{get, put, unzigzag, zigzag};

/// The intervals of one creative.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Known {
    /// No interval is longer.
    longest_us: i64,
    intervals: usize,
    days: BTreeMap<i64, Box<[u8]>>,
}

fn day_of(node: &Node) -> i64 {
    node.start.div_euclid(DAY_US)
}

impl Known {
    /// Number of intervals.
    pub(super) fn len(&self) -> usize {
        self.intervals
    }

    /// Every interval that may share a tree with one that begins from `first` to `last` and is no
    /// longer than `longest_us`. Trees at the edges may be incomplete.
    pub(super) fn around(&self, first: EventTime, last: EventTime, longest_us: i64) -> Vec<Node> {
        let longest = longest_us.max(self.longest_us);
        let first = first.saturating_sub(longest).div_euclid(DAY_US);
        let last = last.saturating_add(longest).div_euclid(DAY_US);
        let mut nodes = Vec::new();
        for (day, bytes) in self.days.range(first..=last) {
            unpack(*day, bytes, &mut nodes);
        }
        nodes
    }

    /// Takes back what [`Known::around`] gave, with intervals added or changed that begin in
    /// `days`.
    pub(super) fn put(&mut self, nodes: &[Node], days: impl IntoIterator<Item = i64>) {
        for day in days {
            let first = nodes.partition_point(|node| day_of(node) < day);
            let nodes = &nodes[first..];
            let nodes = &nodes[..nodes.partition_point(|node| day_of(node) == day)];
            let before = self.days.remove(&day).map_or(0, |bytes| count(&bytes));
            self.intervals = self.intervals - before + nodes.len();
            let longest = nodes.iter().map(|node| node.end - node.start).max();
            self.longest_us = self.longest_us.max(longest.unwrap_or(0));
            if !nodes.is_empty() {
                self.days.insert(day, pack(day, nodes));
            }
        }
    }

    /// Forgets every tree that ended before `oldest`; false when nothing is left.
    pub(super) fn forget(&mut self, oldest: EventTime) -> bool {
        // A tree that has ended lies in these days entirely.
        let last = oldest.div_euclid(DAY_US);
        let mut nodes = Vec::new();
        for (day, bytes) in self.days.range(..=last) {
            unpack(*day, bytes, &mut nodes);
        }
        let days: Vec<i64> = self.days.range(..=last).map(|(day, _)| *day).collect();
        let (mut root_end, count) = (EventTime::MIN, nodes.len());
        nodes.retain(|node| {
            if node.start >= root_end {
                root_end = node.end;
            }
            root_end >= oldest
        });
        if nodes.len() < count {
            self.put(&nodes, days);
        }
        !self.days.is_empty()
    }

    /// Bytes on the heap, apart from what the allocator adds.
    pub(super) fn heap_bytes(&self) -> usize {
        let entry = size_of::<(i64, Box<[u8]>)>();
        // Nodes of a B-tree are two thirds full on average.
        self.days.len() * entry * 3 / 2 + self.days.values().map(|bytes| bytes.len()).sum::<usize>()
    }
}

/// Bits of a packed interval's first byte.
mod bit {
    pub(super) const DELIVERY: u8 = 1;
    pub(super) const OUTCOME: u8 = 2;
    /// The outcome was stated together with the delivery.
    pub(super) const TOGETHER: u8 = 4;
    /// The delivery was stated earlier than what was packed before it; the same of the outcome.
    pub(super) const DELIVERY_EARLIER: u8 = 8;
    pub(super) const OUTCOME_EARLIER: u8 = 16;
}

/// Spans that times are usually multiples of, by the two bits that say so.
const UNITS_US: [u64; 4] = [1, 1_000, 1_000_000, 60_000_000];

/// Appends a span. It must be below 2^62 µs, as all are between times from 1970 to 2100.
fn put_span(bytes: &mut Vec<u8>, span: u64) {
    let unit = (0..UNITS_US.len()).rev().find(|unit| span.is_multiple_of(UNITS_US[*unit]));
    let unit = unit.unwrap_or(0);
    put(bytes, ((span / UNITS_US[unit]) << 2) | unit as u64);
}

fn get_span(bytes: &[u8], at: &mut usize) -> i64 {
    let value = get(bytes, at);
    ((value >> 2) * UNITS_US[(value & 3) as usize]) as i64
}

/// What the next interval is packed as differences to.
struct Before {
    start: EventTime,
    as_of: EventTime,
    sequence: u64,
}

impl Before {
    fn of(day: i64) -> Before {
        Before { start: day * DAY_US, as_of: day * DAY_US, sequence: 0 }
    }

    fn put_version(&mut self, bytes: &mut Vec<u8>, said: &ReportVersion) {
        put_span(bytes, said.as_of.abs_diff(self.as_of));
        put(bytes, zigzag(said.sequence.wrapping_sub(self.sequence).cast_signed()));
        (self.as_of, self.sequence) = (said.as_of, said.sequence);
    }

    fn get_version(&mut self, bytes: &[u8], at: &mut usize, earlier: bool) {
        let span = get_span(bytes, at);
        self.as_of += if earlier { -span } else { span };
        let step = unzigzag(get(bytes, at)).cast_unsigned();
        self.sequence = self.sequence.wrapping_add(step);
    }

    fn said(&self, totals: Stats) -> ReportVersion {
        ReportVersion { as_of: self.as_of, sequence: self.sequence, totals }
    }
}

fn pack(day: i64, nodes: &[Node]) -> Box<[u8]> {
    let mut bytes = Vec::with_capacity(24 * nodes.len());
    let mut before = Before::of(day);
    put(&mut bytes, nodes.len() as u64);
    for node in nodes {
        let head = bytes.len();
        bytes.push(0);
        put_span(&mut bytes, node.start.abs_diff(before.start));
        put_span(&mut bytes, node.end.abs_diff(node.start));
        before.start = node.start;
        if let Some(said) = &node.said[Fact::Delivery as usize] {
            let earlier = said.as_of < before.as_of;
            bytes[head] |= bit::DELIVERY | if earlier { bit::DELIVERY_EARLIER } else { 0 };
            before.put_version(&mut bytes, said);
            let Stats { impressions, clicks, cost_micros, .. } = said.totals;
            for value in [impressions, clicks, cost_micros] {
                put(&mut bytes, zigzag(value));
            }
        }
        if let Some(said) = &node.said[Fact::Outcome as usize] {
            bytes[head] |= bit::OUTCOME;
            if *said == before.said(said.totals) {
                bytes[head] |= bit::TOGETHER;
            } else {
                bytes[head] |= if said.as_of < before.as_of { bit::OUTCOME_EARLIER } else { 0 };
                before.put_version(&mut bytes, said);
            }
            let Stats { conversions, revenue_micros, .. } = said.totals;
            for value in [conversions, revenue_micros] {
                put(&mut bytes, zigzag(value));
            }
        }
    }
    bytes.into_boxed_slice()
}

fn count(bytes: &[u8]) -> usize {
    get(bytes, &mut 0) as usize
}

fn unpack(day: i64, bytes: &[u8], nodes: &mut Vec<Node>) {
    let (at, mut before) = (&mut 0, Before::of(day));
    for _ in 0..get(bytes, at) {
        let head = bytes[*at];
        *at += 1;
        let has = |bit: u8| head & bit != 0;
        let start = before.start + get_span(bytes, at);
        let end = start + get_span(bytes, at);
        before.start = start;
        let mut said = [None; 2];
        if has(bit::DELIVERY) {
            before.get_version(bytes, at, has(bit::DELIVERY_EARLIER));
            let [impressions, clicks, cost_micros] = [(); 3].map(|()| unzigzag(get(bytes, at)));
            let totals = Stats { impressions, clicks, cost_micros, ..Stats::ZERO };
            said[Fact::Delivery as usize] = Some(before.said(totals));
        }
        if has(bit::OUTCOME) {
            if !has(bit::TOGETHER) {
                before.get_version(bytes, at, has(bit::OUTCOME_EARLIER));
            }
            let [conversions, revenue_micros] = [(); 2].map(|()| unzigzag(get(bytes, at)));
            let totals = Stats { conversions, revenue_micros, ..Stats::ZERO };
            said[Fact::Outcome as usize] = Some(before.said(totals));
        }
        nodes.push(Node { start, end, said });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::HOUR_US;

    fn said(fact: Fact) -> impl Strategy<Value = Option<ReportVersion>> {
        let as_of = prop_oneof![
            (0..60 * 86_400_i64).prop_map(|s| s * 1_000_000),
            (0..60 * 86_400_000_i64).prop_map(|ms| ms * 1_000),
            0..60 * DAY_US,
        ];
        let value = prop_oneof![Just(0), 0..5_000_i64, any::<i64>()];
        let said = (as_of, any::<u64>(), prop::array::uniform5(value)).prop_map(
            move |(as_of, sequence, [a, b, c, d, e])| {
                let all = Stats {
                    impressions: a,
                    clicks: b,
                    conversions: c,
                    cost_micros: d,
                    revenue_micros: e,
                };
                ReportVersion { as_of, sequence, totals: fact.of(&all) }
            },
        );
        prop::option::weighted(0.8, said)
    }

    fn nodes() -> impl Strategy<Value = Vec<Node>> {
        let start = prop_oneof![(0..30 * 24_i64).prop_map(|h| h * HOUR_US), 0..30 * DAY_US];
        let length = prop_oneof![Just(HOUR_US), Just(DAY_US), 1..9 * DAY_US];
        let node = (start, length, said(Fact::Delivery), said(Fact::Outcome), any::<bool>())
            .prop_map(|(start, length, delivery, outcome, together)| {
                let mut said = [delivery, outcome];
                if let (true, [Some(delivery), Some(outcome)]) = (together, &mut said) {
                    (outcome.as_of, outcome.sequence) = (delivery.as_of, delivery.sequence);
                }
                Node { start, end: start + length, said }
            });
        prop::collection::vec(node, 0..60).prop_map(|mut nodes| {
            nodes.sort_by_key(Node::order);
            nodes.dedup_by_key(|node| node.order());
            nodes
        })
    }

    proptest! {
        #[test]
        fn what_is_packed_comes_back(nodes in nodes(), again in nodes()) {
            let mut known = Known::default();
            known.put(&nodes, nodes.iter().map(day_of).collect::<std::collections::BTreeSet<_>>());
            prop_assert_eq!(known.len(), nodes.len());
            prop_assert_eq!(&known.around(0, 40 * DAY_US, 0), &nodes);
            // Some days of it are written once more, with other intervals.
            let days: Vec<i64> = vec![3, 4, 20];
            let mut mixed: Vec<Node> =
                nodes.iter().filter(|node| !days.contains(&day_of(node))).copied().collect();
            mixed.extend(again.iter().filter(|node| days.contains(&day_of(node))));
            mixed.sort_by_key(Node::order);
            known.put(&mixed, days);
            prop_assert_eq!(known.len(), mixed.len());
            prop_assert_eq!(&known.around(0, 40 * DAY_US, 0), &mixed);
            let bytes = postcard::to_stdvec(&known).unwrap();
            prop_assert_eq!(&postcard::from_bytes::<Known>(&bytes).unwrap(), &known);
        }

        #[test]
        fn around_holds_every_interval_that_may_share_a_tree(
            nodes in nodes(), at in 0..30 * DAY_US, length in 1..9 * DAY_US,
        ) {
            let mut known = Known::default();
            known.put(&nodes, nodes.iter().map(day_of).collect::<std::collections::BTreeSet<_>>());
            let around = known.around(at, at, length);
            let meets = |node: &&Node| node.start < at + length && at < node.end;
            for node in nodes.iter().filter(meets) {
                prop_assert!(around.contains(node), "{node:?}");
            }
        }
    }

    #[test]
    fn four_weeks_by_hour_and_day_take_little() {
        let mut nodes = Vec::new();
        let as_of = 20_028 * DAY_US + 3_600_123_000;
        for day in 20_000..20_028_i64 {
            for hour in -1..24 {
                let start = day * DAY_US + hour.max(0) * HOUR_US;
                let (length, scale) = if hour < 0 { (DAY_US, 24) } else { (HOUR_US, 1) };
                let totals = Stats {
                    impressions: (1_200 + 37 * hour) * scale,
                    clicks: (14 + hour) * scale,
                    conversions: (1 + hour % 2) * scale,
                    cost_micros: (2_345_678 + 91_237 * hour) * scale,
                    revenue_micros: (5_000_000 + 10_000 * hour) * scale,
                };
                let sequence = (day * 25 + hour).cast_unsigned() * 2_000;
                let version = ReportVersion { as_of, sequence, totals };
                let said = Fact::ALL
                    .map(|fact| Some(ReportVersion { totals: fact.of(&totals), ..version }));
                nodes.push(Node { start, end: start + length, said });
            }
        }
        let mut known = Known::default();
        known.put(&nodes, 20_000..20_028);
        let (bytes, intervals) = (known.heap_bytes(), known.len());
        assert_eq!(intervals, 700);
        // 25 bytes an interval; as plain structs it would be four times as much.
        assert!(bytes < 25 * intervals, "{bytes} bytes for {intervals} intervals");
    }
}

//! What the intervals of one creative amount to, when some lie inside others.
//!
//! # The rule
//! Hours, days, weeks state the same conversions and the same money at different grains. Intervals
//! contain one another or exclude one another, so they form trees. Of an interval N with totals T,
//! as of time A, the finer intervals directly inside it that began *before* A are in T already:
//!
//! - what N adds by itself, its *own*, is T less their sum: the part that no finer row places;
//! - the finer intervals that began at A or later come on top: N cannot have seen them;
//! - while N still runs (A is before its end) and a finer row is newer than A, own is not negative:
//!   hours polled every few minutes may exceed a stale day row, and then they count. Nothing can be
//!   counted twice by this, as all of N up to A lies in those same intervals.
//!
//! So once a row was stated after its interval ended, the sum over the interval is its totals, and
//! finer rows, however new, only say where inside it they fall.
//!
//! Each metric is treated by itself: platforms that state no conversions by the hour state zeros.
//! Delivery and outcome are separate facts with separate versions, see [`Fact`].

use std::cmp::Reverse;

use crate::model::{EventTime, ReportVersion, Stats};

/// The two facts that a row states of its interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fact {
    /// Impressions, clicks and cost: the same whatever the attribution window.
    Delivery,
    /// Conversions and revenue of the window that feeds the features.
    Outcome,
}

impl Fact {
    pub(super) const ALL: [Fact; 2] = [Fact::Delivery, Fact::Outcome];

    /// The fact's part of `totals`.
    pub(super) fn of(self, totals: &Stats) -> Stats {
        let Stats { impressions, clicks, conversions, cost_micros, revenue_micros } = *totals;
        match self {
            Fact::Delivery => Stats { impressions, clicks, cost_micros, ..Stats::ZERO },
            Fact::Outcome => Stats { conversions, revenue_micros, ..Stats::ZERO },
        }
    }
}

/// An interval and the newest statement of each fact, with only that fact's totals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) start: EventTime,
    pub(super) end: EventTime,
    pub(super) said: [Option<ReportVersion>; 2],
}

impl Node {
    /// Ascending by this, an interval comes before those inside it.
    pub(super) fn order(&self) -> (EventTime, Reverse<EventTime>) {
        (self.start, Reverse(self.end))
    }
}

/// What an interval amounts to in one fact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Share {
    /// What it adds to those inside it.
    pub(super) own: Stats,
    /// Its own and those inside it.
    pub(super) whole: Stats,
    /// Time of the newest statement in it.
    pub(super) as_of: EventTime,
}

/// The share of each of `nodes` (in their order) in one fact.
pub(super) fn shares(nodes: &[Node], fact: Fact) -> Vec<Share> {
    let mut shares = vec![Share::default(); nodes.len()];
    // From the end: what an interval contains has been worked out before it, and waits here, the
    // earliest last.
    let mut waiting: Vec<usize> = Vec::new();
    for (at, node) in nodes.iter().enumerate().rev() {
        let Some(said) = &node.said[fact as usize] else { continue };
        let (mut seen, mut later) = (Stats::ZERO, Stats::ZERO);
        let (mut seen_as_of, mut as_of) = (EventTime::MIN, said.as_of);
        while let Some(inside) = waiting.pop_if(|inside| nodes[*inside].start < node.end) {
            let share = &shares[inside];
            as_of = as_of.max(share.as_of);
            if nodes[inside].start < said.as_of {
                seen += share.whole;
                seen_as_of = seen_as_of.max(share.as_of);
            } else {
                later += share.whole;
            }
        }
        let mut own = said.totals - seen;
        if said.as_of < node.end && seen_as_of > said.as_of {
            own = not_negative(own);
        }
        shares[at] = Share { own, whole: own + seen + later, as_of };
        waiting.push(at);
    }
    shares
}

fn not_negative(stats: Stats) -> Stats {
    Stats {
        impressions: stats.impressions.max(0),
        clicks: stats.clicks.max(0),
        conversions: stats.conversions.max(0),
        cost_micros: stats.cost_micros.max(0),
        revenue_micros: stats.revenue_micros.max(0),
    }
}

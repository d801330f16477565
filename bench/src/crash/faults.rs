//! What happens in a round besides the kill.

use std::collections::BTreeMap;
use std::str::FromStr;

use rand::seq::SliceRandom;
use rand_xoshiro::Xoshiro256PlusPlus;
use serde_json::{Value, json};

/// A kind of round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Nothing else: killed at a random moment of its life.
    Kill,
    /// Killed while it starts.
    Start,
    /// The disk is full for a while.
    DiskFull,
    /// State and history are gone, and restored from the copy; some kills fall into that.
    DiskLost,
    /// The wall clock steps by an hour, back or forward.
    Clock,
    /// The broker is killed and starts again.
    Broker,
    /// Another member joins the consumer group, or leaves it.
    Rebalance,
}

impl Fault {
    /// All of them.
    pub const ALL: [Fault; 7] = [
        Fault::Kill,
        Fault::Start,
        Fault::DiskFull,
        Fault::DiskLost,
        Fault::Clock,
        Fault::Broker,
        Fault::Rebalance,
    ];

    /// Its name on the command line and in the answer.
    pub const fn name(self) -> &'static str {
        match self {
            Fault::Kill => "kill",
            Fault::Start => "start",
            Fault::DiskFull => "disk-full",
            Fault::DiskLost => "disk-lost",
            Fault::Clock => "clock",
            Fault::Broker => "broker",
            Fault::Rebalance => "rebalance",
        }
    }

    /// Whether there must be a broker.
    pub(super) fn needs_kafka(self) -> bool {
        matches!(self, Fault::Broker | Fault::Rebalance)
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Fault, String> {
        let all = Fault::ALL.map(Fault::name).join(", ");
        let found = Fault::ALL.into_iter().find(|fault| fault.name() == text);
        found.ok_or_else(|| format!("there is no fault `{text}`; there are {all}"))
    }
}

/// Deals the rounds out to `faults` evenly, in an order that the seed gives.
pub(super) fn deal(rounds: u64, faults: &[Fault], rng: &mut Xoshiro256PlusPlus) -> Vec<Fault> {
    let mut dealt: Vec<Fault> = faults.iter().copied().cycle().take(rounds as usize).collect();
    dealt.shuffle(rng);
    dealt
}

/// Counts, by fault and by what came of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally(BTreeMap<Fault, BTreeMap<&'static str, u64>>);

impl Tally {
    /// Counts one.
    pub(super) fn add(&mut self, fault: Fault, what: &'static str) {
        *self.0.entry(fault).or_default().entry(what).or_default() += 1;
    }

    pub(super) fn json(&self) -> Value {
        self.0.iter().map(|(fault, counts)| (fault.name(), json!(counts))).collect()
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn rounds_are_dealt_evenly_and_by_the_seed() {
        let deal = |seed| deal(20, &Fault::ALL, &mut Xoshiro256PlusPlus::seed_from_u64(seed));
        for fault in Fault::ALL {
            let rounds = deal(7).iter().filter(|of| **of == fault).count();
            assert!((2..=3).contains(&rounds), "{fault:?} {rounds}");
            assert_eq!(fault.name().parse(), Ok(fault));
        }
        assert_eq!(deal(7), deal(7));
        assert_ne!(deal(7), deal(8));
        assert!("disk".parse::<Fault>().unwrap_err().contains("disk-full"));
    }
}

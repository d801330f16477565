//! Reach and frequency: one HyperLogLog per (entity, day), merged over days.
//!
//! A user is a 64-bit hash. The register and rank it maps to are all a sketch ever sees, and a
//! register only grows; so a parent's sketch can change only when its child's did, and only
//! *changed registers* travel up the hierarchy. After the first hours of a day that is almost
//! nothing, however many impressions arrive.
//!
//! 2¹⁰ registers give a standard error of 3.25 % (1.04/√m). A sketch holds its registers sparsely
//! (two bytes each) up to 256 of them, then as half a byte each with the few high ranks (one user in
//! 16,384 has one) behind them, and where there are more of those, with millions of users, as a byte.
//!
//! The estimator is the improved raw estimator of O. Ertl, "New cardinality estimation algorithms
//! for HyperLogLog sketches" (2017), which needs no bias tables and no small-range switch.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::model::Reach;

const PRECISION: u32 = 10;
/// Registers of a sketch.
const REGISTERS: usize = 1 << PRECISION;
/// Greatest rank: 64 − precision hash bits remain, all zero counts one more.
const RANK_MAX: usize = 64 - PRECISION as usize + 1;
/// Registers a sketch holds sparsely before it packs them.
const SPARSE_MAX: usize = 256;
/// Bytes of all registers, packed two to a byte.
const PACKED_BYTES: usize = REGISTERS / 2;
/// Half a byte that says that the rank is this or higher, and is told behind.
const HIGH: u8 = 15;
/// High ranks a sketch holds packed before it turns dense.
const HIGH_MAX: usize = 128;

/// One register of one day, raised by some user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Register {
    index: u16,
    rank: u8,
}

impl Register {
    pub(crate) fn of(user: u64) -> Register {
        let index = (user >> (64 - PRECISION)) as u16;
        let rest = user << PRECISION;
        let rank = (rest.leading_zeros() as usize + 1).min(RANK_MAX) as u8;
        Register { index, rank }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Sketch {
    /// `index << 6 | rank`, ascending.
    Sparse(Vec<u16>),
    /// A byte each.
    Dense(Vec<u8>),
    /// Half a byte each, the even ones low; behind them what [`Sketch::Sparse`] would hold of the
    /// high ones, in two bytes each.
    Packed(Vec<u8>),
}

impl Sketch {
    /// The rank that a register had before, 0 for none, if it was lower.
    fn raise(&mut self, register: Register) -> Option<u8> {
        let Register { index, rank } = register;
        let entry = index << 6 | u16::from(rank);
        let before = match self {
            Sketch::Sparse(entries) => {
                let at = entries.partition_point(|have| have >> 6 < index);
                match entries.get_mut(at).filter(|have| **have >> 6 == index) {
                    Some(have) if *have >= entry => return None,
                    Some(have) => low(std::mem::replace(have, entry)),
                    None => {
                        entries.insert(at, entry);
                        if entries.len() > SPARSE_MAX {
                            self.turn(Sketch::Packed(vec![0; PACKED_BYTES]));
                        }
                        0
                    }
                }
            }
            Sketch::Dense(ranks) => {
                let have = &mut ranks[usize::from(index)];
                if *have >= rank {
                    return None;
                }
                std::mem::replace(have, rank)
            }
            Sketch::Packed(bytes) => {
                let before = packed_rank(bytes, index);
                if before >= rank {
                    return None;
                }
                let (half, shift) = (rank.min(HIGH), index % 2 * 4);
                let byte = &mut bytes[usize::from(index / 2)];
                *byte = *byte & !(HIGH << shift) | half << shift;
                if half == HIGH {
                    let at = PACKED_BYTES + 2 * high(bytes).take_while(|h| h >> 6 < index).count();
                    let until = if before >= HIGH { at + 2 } else { at };
                    bytes.splice(at..until, entry.to_le_bytes());
                    if bytes.len() > PACKED_BYTES + 2 * HIGH_MAX {
                        self.turn(Sketch::Dense(vec![0; REGISTERS]));
                    }
                }
                before
            }
        };
        Some(before)
    }

    /// Turns into another, empty one.
    #[cold]
    fn turn(&mut self, other: Sketch) {
        let before = std::mem::replace(self, other);
        before.each(|register| {
            self.raise(register);
        });
    }

    fn heap_bytes(&self) -> usize {
        match self {
            Sketch::Sparse(entries) => entries.capacity() * size_of::<u16>(),
            Sketch::Dense(bytes) | Sketch::Packed(bytes) => bytes.capacity(),
        }
    }

    /// All registers, by index.
    fn each(&self, mut f: impl FnMut(Register)) {
        let mut all = |rank: &dyn Fn(u16) -> u8| {
            let registers =
                (0..REGISTERS as u16).map(|index| Register { index, rank: rank(index) });
            registers.filter(|register| register.rank > 0).for_each(&mut f);
        };
        match self {
            Sketch::Sparse(entries) => {
                entries.iter().for_each(|have| f(Register { index: have >> 6, rank: low(*have) }));
            }
            Sketch::Dense(ranks) => all(&|index| ranks[usize::from(index)]),
            Sketch::Packed(bytes) => all(&|index| packed_rank(bytes, index)),
        }
    }
}

/// The rank of an entry.
const fn low(entry: u16) -> u8 {
    (entry & 63) as u8
}

/// The entries of the high ranks of a packed sketch.
fn high(bytes: &[u8]) -> impl Iterator<Item = u16> + '_ {
    bytes[PACKED_BYTES..].chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
}

/// The rank of a register of a packed sketch, 0 for none.
#[inline]
fn packed_rank(bytes: &[u8], index: u16) -> u8 {
    let half = bytes[usize::from(index / 2)] >> (index % 2 * 4) & HIGH;
    if half < HIGH {
        return half;
    }
    high(bytes).find(|entry| entry >> 6 == index).map_or(HIGH, low)
}

/// The union over days, with the histogram of ranks that the estimator reads.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Union {
    ranks: Sketch,
    /// Registers by rank; `[0]` is implied (the registers not counted elsewhere).
    histogram: Vec<u16>,
}

impl Union {
    fn new() -> Union {
        Union { ranks: Sketch::Sparse(Vec::new()), histogram: Vec::new() }
    }

    fn raise(&mut self, register: Register) {
        let Some(before) = self.ranks.raise(register) else { return };
        if self.histogram.is_empty() {
            self.histogram = vec![0; RANK_MAX + 1];
        }
        if before > 0 {
            self.histogram[usize::from(before)] -= 1;
        }
        self.histogram[usize::from(register.rank)] += 1;
    }

    fn estimate(&self) -> f64 {
        let m = REGISTERS as f64;
        let used: u32 = self.histogram.iter().map(|count| u32::from(*count)).sum();
        if used == 0 {
            return 0.0;
        }
        let zeros = m - f64::from(used);
        let full = f64::from(self.histogram[RANK_MAX]);
        let mut z = m * tau(1.0 - full / m);
        for rank in (1..RANK_MAX).rev() {
            z = 0.5 * (z + f64::from(self.histogram[rank]));
        }
        z += m * sigma(zeros / m);
        m * m / (2.0 * std::f64::consts::LN_2 * z)
    }
}

fn sigma(mut x: f64) -> f64 {
    if x >= 1.0 {
        return f64::INFINITY;
    }
    let (mut y, mut z) = (1.0, x);
    loop {
        x *= x;
        let before = z;
        z += x * y;
        y += y;
        if z == before {
            return z;
        }
    }
}

fn tau(mut x: f64) -> f64 {
    if x <= 0.0 || x >= 1.0 {
        return 0.0;
    }
    let (mut y, mut z) = (1.0, 1.0 - x);
    loop {
        x = x.sqrt();
        let before = z;
        y *= 0.5;
        z -= (1.0 - x) * (1.0 - x) * y;
        if z == before {
            return z / 3.0;
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Day {
    day: i64,
    sketch: Sketch,
    impressions: i64,
}

/// Reach of one entity over the last `days` UTC days.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ReachState {
    /// The newest day, where nearly every question ends.
    newest: Day,
    /// The days before, ascending.
    older: VecDeque<Day>,
    /// Union of all days; rebuilt when a day leaves.
    union: Union,
}

impl Day {
    fn new(day: i64) -> Day {
        Day { day, sketch: Sketch::Sparse(Vec::new()), impressions: 0 }
    }
}

impl ReachState {
    pub(crate) fn new() -> ReachState {
        ReachState { newest: Day::new(i64::MIN), older: VecDeque::new(), union: Union::new() }
    }

    /// Raises a register of `day`; true when the day's sketch changed.
    #[inline]
    pub(crate) fn raise(&mut self, day: i64, register: Register) -> bool {
        let changed = self.day(day).sketch.raise(register).is_some();
        if changed {
            self.union.raise(register);
        }
        changed
    }

    /// Counts impressions of known users on `day`.
    pub(crate) fn count(&mut self, day: i64, impressions: i64) {
        self.day(day).impressions += impressions;
    }

    #[inline]
    fn day(&mut self, day: i64) -> &mut Day {
        if day == self.newest.day { &mut self.newest } else { self.other_day(day) }
    }

    #[cold]
    fn other_day(&mut self, day: i64) -> &mut Day {
        if day > self.newest.day {
            let before = std::mem::replace(&mut self.newest, Day::new(day));
            if before.day != i64::MIN {
                self.older.push_back(before);
            }
            return &mut self.newest;
        }
        let at = self.older.partition_point(|have| have.day < day);
        if self.older.get(at).is_none_or(|have| have.day != day) {
            self.older.insert(at, Day::new(day));
        }
        &mut self.older[at]
    }

    /// Forgets the days that are not in `(today − days, today]`.
    pub(crate) fn forget(&mut self, today: i64, days: i64) {
        let gone = |day: &Day| day.day <= today - days;
        let kept = self.older.len();
        while self.older.front().is_some_and(gone) {
            self.older.pop_front();
        }
        let mut left = self.older.len() < kept;
        if self.newest.day != i64::MIN && gone(&self.newest) {
            self.newest = Day::new(i64::MIN);
            left = true;
        }
        if left {
            self.union = Union::new();
            for day in self.older.iter().chain([&self.newest]) {
                day.sketch.each(|register| self.union.raise(register));
            }
        }
    }

    /// Bytes on the heap.
    pub(crate) fn heap_bytes(&self) -> usize {
        let days: usize =
            self.older.iter().chain([&self.newest]).map(|day| day.sketch.heap_bytes()).sum();
        days + self.older.capacity() * size_of::<Day>()
            + self.union.ranks.heap_bytes()
            + self.union.histogram.capacity() * size_of::<u16>()
    }

    /// Reach over the days `(today − days, today]`; forgets older ones.
    pub(crate) fn over(&mut self, today: i64, days: i64) -> Reach {
        self.forget(today, days);
        let users = self.union.estimate();
        let impressions: i64 =
            self.older.iter().chain([&self.newest]).map(|day| day.impressions).sum();
        let frequency = if users > 0.0 { impressions as f64 / users } else { 0.0 };
        Reach { users, frequency }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;
    use xxhash_rust::xxh3::xxh3_64;

    use super::*;

    fn user(n: u64) -> u64 {
        xxh3_64(&n.to_le_bytes())
    }

    #[test]
    fn estimates_are_within_four_standard_errors() {
        for users in [1_u64, 10, 100, 300, 1_000, 5_000, 30_000, 200_000] {
            let mut reach = ReachState::new();
            for n in 0..users {
                for _ in 0..2 {
                    reach.raise(0, Register::of(user(n)));
                }
                reach.count(0, 2);
            }
            let got = reach.over(0, 7);
            let error = got.users / users as f64 - 1.0;
            assert!(error.abs() < 4.0 * 0.0325, "{users}: {}", got.users);
            assert!((got.frequency * got.users / users as f64 - 2.0).abs() < 1e-9);
        }
    }

    proptest! {
        /// Through all its forms, with few high ranks and with many.
        #[test]
        fn a_sketch_is_an_array_of_ranks(
            registers in prop::collection::vec((0..REGISTERS as u16, 0..40_u8), 0..3_000),
            shift in 0..30_u8,
        ) {
            let mut sketch = Sketch::Sparse(Vec::new());
            let mut flat = vec![0_u8; REGISTERS];
            for (index, rank) in registers {
                // Mostly low where the shift is small.
                let rank = if rank % 4 == 0 { rank + shift / 2 } else { rank % 16 }.clamp(1, 55);
                let have = &mut flat[usize::from(index)];
                let before = (*have < rank).then_some(*have);
                prop_assert_eq!(sketch.raise(Register { index, rank }), before);
                *have = rank.max(*have);
            }
            let mut told = vec![0_u8; REGISTERS];
            sketch.each(|register| told[usize::from(register.index)] = register.rank);
            prop_assert_eq!(told, flat);
        }
    }

    #[test]
    fn days_merge_as_a_set_union_and_leave() {
        let mut reach = ReachState::new();
        let mut truth: HashSet<u64> = HashSet::new();
        for day in 0..10_i64 {
            for n in 0..2_000 {
                let id = user(n + 500 * day as u64);
                reach.raise(day, Register::of(id));
                if day >= 7 {
                    truth.insert(id);
                }
            }
        }
        let got = reach.over(9, 3).users / truth.len() as f64;
        assert!((got - 1.0).abs() < 0.13, "{got}");
        // What is left after expiry equals a sketch that never saw the older days.
        let mut fresh = ReachState::new();
        for day in 7..10_i64 {
            for n in 0..2_000 {
                fresh.raise(day, Register::of(user(n + 500 * day as u64)));
            }
        }
        assert_eq!(fresh.over(9, 3).users.to_bits(), reach.over(9, 3).users.to_bits());
    }

    #[test]
    fn a_parent_fed_with_changes_only_equals_one_fed_with_everything() {
        let (mut child, mut by_change, mut by_all) =
            (ReachState::new(), ReachState::new(), ReachState::new());
        for n in 0..20_000_u64 {
            let register = Register::of(user(n % 7_000));
            if child.raise(3, register) {
                by_change.raise(3, register);
            }
            by_all.raise(3, register);
        }
        assert_eq!(by_change.over(3, 7).users.to_bits(), by_all.over(3, 7).users.to_bits());
    }
}

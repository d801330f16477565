//! Puts slightly disordered rows in order of time, within a bound.
//!
//! At least [`Reorder::new`]'s `rows` rows are held back, and at most twice as many and one batch.
//! A row that is displaced by no more than `rows` comes out in its place; one that is later still
//! comes out at once, behind rows of a later time, and is counted as late: the engine takes it as a
//! late event, which changes the pane it belongs to. Batches that are in order already pass
//! through untouched.

use std::collections::VecDeque;

use omnify_operators::model::{Event, EventTime, ReportRow};

/// Has a time in whose order it is wanted.
pub trait Timed {
    /// The time.
    fn time(&self) -> EventTime;
}

impl Timed for Event {
    fn time(&self) -> EventTime {
        self.time
    }
}

impl Timed for ReportRow {
    fn time(&self) -> EventTime {
        self.version.as_of
    }
}

/// The buffer.
pub struct Reorder<T> {
    /// Sorted runs, each not before the one in front of it.
    runs: VecDeque<Vec<T>>,
    held: usize,
    rows: usize,
    emitted_until: EventTime,
    late: u64,
}

impl<T: Timed> Reorder<T> {
    /// A buffer that holds back at least `rows` rows.
    pub fn new(rows: usize) -> Reorder<T> {
        Reorder { runs: VecDeque::new(), held: 0, rows, emitted_until: EventTime::MIN, late: 0 }
    }

    /// Takes the next rows of the source and gives back those whose turn has come, in order of
    /// time; rows of equal time keep their order.
    pub fn push(&mut self, rows: Vec<T>) -> Vec<T> {
        let (Some(first), true) = (rows.first(), rows.is_sorted_by_key(Timed::time)) else {
            return if rows.is_empty() { rows } else { self.merge(rows) };
        };
        let follows = match self.runs.back().and_then(|run| run.last()) {
            Some(last) => last.time() <= first.time(),
            None => self.emitted_until <= first.time(),
        };
        if !follows {
            return self.merge(rows);
        }
        self.held += rows.len();
        self.runs.push_back(rows);
        let mut ready = Vec::new();
        while let Some(front) = self.runs.front()
            && self.held - front.len() >= self.rows
            && let Some(run) = self.runs.pop_front()
        {
            self.held -= run.len();
            if ready.is_empty() { ready = run } else { ready.extend(run) }
        }
        self.account(ready)
    }

    /// Gives back all rows still held, in order of time.
    pub fn finish(&mut self) -> Vec<T> {
        let rows: Vec<T> = self.runs.drain(..).flatten().collect();
        self.held = 0;
        self.account(rows)
    }

    /// Rows that came later than the bound allows.
    pub fn late(&self) -> u64 {
        self.late
    }

    /// Rows held back now.
    pub fn held(&self) -> usize {
        self.held
    }

    fn merge(&mut self, rows: Vec<T>) -> Vec<T> {
        let mut all: Vec<T> = self.runs.drain(..).flatten().chain(rows).collect();
        all.sort_by_key(Timed::time);
        let keep = all.len().min(self.rows);
        let held = all.split_off(all.len() - keep);
        self.held = held.len();
        self.runs.push_back(held);
        self.account(all)
    }

    fn account(&mut self, ready: Vec<T>) -> Vec<T> {
        let late = ready.partition_point(|row| row.time() < self.emitted_until);
        self.late += late as u64;
        if let Some(last) = ready.last() {
            self.emitted_until = self.emitted_until.max(last.time());
        }
        ready
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Row(EventTime, usize);

    impl Timed for Row {
        fn time(&self) -> EventTime {
            self.0
        }
    }

    fn run(rows: &[Row], batch: usize, bound: usize) -> (Vec<Row>, u64) {
        let mut reorder = Reorder::new(bound);
        let mut out = Vec::new();
        for rows in rows.chunks(batch) {
            out.extend(reorder.push(rows.to_vec()));
            assert!(reorder.held() <= 2 * bound + batch, "the buffer is bounded");
        }
        out.extend(reorder.finish());
        assert_eq!(reorder.held(), 0);
        (out, reorder.late())
    }

    #[test]
    fn sorted_batches_pass_untouched() {
        let mut reorder = Reorder::new(2);
        let batch = vec![Row(1, 0), Row(2, 1)];
        let place = batch.as_ptr();
        assert_eq!(reorder.push(batch), []);
        let out = reorder.push(vec![Row(2, 2), Row(3, 3)]);
        assert_eq!(out, [Row(1, 0), Row(2, 1)]);
        assert_eq!(out.as_ptr(), place, "moved, not copied");
        assert_eq!(reorder.finish(), [Row(2, 2), Row(3, 3)]);
        assert_eq!(reorder.late(), 0);
    }

    #[test]
    fn rows_beyond_the_bound_are_late_and_not_lost() {
        let mut rows: Vec<Row> = (0..100).map(|n| Row(n, n as usize)).collect();
        rows.push(Row(5, 100));
        let (out, late) = run(&rows, 10, 20);
        assert_eq!(out.len(), 101);
        assert_eq!(late, 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn disorder_within_the_bound_is_undone(
            jitter in prop::collection::vec(0i64..8, 0..300),
            batch in 1usize..20,
        ) {
            // Times rise by one a row, each displaced by less than eight rows.
            let rows: Vec<Row> = jitter
                .iter()
                .enumerate()
                .map(|(n, jitter)| Row(n as EventTime + jitter, n))
                .collect();
            let mut expected = rows.clone();
            expected.sort_by_key(|row| row.0);
            let (out, late) = run(&rows, batch, 16);
            prop_assert_eq!(out, expected);
            prop_assert_eq!(late, 0);
        }
    }
}

//! Rows of one table in the order (tick, position in the tick), merged over tenants and dates.
//!
//! A part is opened when its first tick is reached and closed at its end, so memory holds one batch
//! for each partition that has rows around the current tick, whatever the size of the history.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::path::Path;
use std::sync::Arc;

use arrow::array::RecordBatch;
use omnify_operators::model::Tick;

use super::super::manifest::Part;
use super::super::{Difference, HistoryError, HistoryMeta, Table};
use super::HistoryReader;
use super::file::{DecodeError, PartFile};

/// Turns batches of a table into rows.
pub(crate) trait Decode {
    /// A row.
    type Row;
    /// The table.
    const TABLE: Table;
    /// Appends the rows of `batch`, each checked against its check where the table has one.
    fn decode(
        &mut self,
        batch: &RecordBatch,
        out: &mut Decoded<Self::Row>,
    ) -> Result<(), DecodeError>;
}

/// Decoded rows with what orders and checks them.
pub(crate) struct Decoded<R> {
    pub(crate) ticks: Vec<Tick>,
    pub(crate) seqs: Vec<u32>,
    pub(crate) checks: Vec<u64>,
    pub(crate) rows: Vec<R>,
}

impl<R> Default for Decoded<R> {
    fn default() -> Self {
        Decoded { ticks: Vec::new(), seqs: Vec::new(), checks: Vec::new(), rows: Vec::new() }
    }
}

impl<R> Decoded<R> {
    pub(crate) fn clear(&mut self) {
        self.ticks.clear();
        self.seqs.clear();
        self.checks.clear();
        self.rows.clear();
    }
}

/// The parts of one partition, read one after the other.
struct Stream<R> {
    parts: VecDeque<Part>,
    open: Option<(PartFile, Part)>,
    batch: Decoded<R>,
    at: usize,
}

impl<R: Clone> Stream<R> {
    /// The tick of the next row, without opening a part.
    fn head(&self) -> Option<Tick> {
        match self.batch.ticks.get(self.at) {
            Some(tick) => Some(*tick),
            None => self.parts.front().map(|part| part.first_tick),
        }
    }

    /// Makes the next row available, opening the next part if need be.
    fn fill<D: Decode<Row = R>>(
        &mut self,
        root: &Path,
        meta: &Arc<HistoryMeta>,
        decode: &mut D,
    ) -> Result<bool, HistoryError> {
        while self.at >= self.batch.ticks.len() {
            self.batch.clear();
            self.at = 0;
            if self.open.is_none() {
                let Some(part) = self.parts.pop_front() else { return Ok(false) };
                self.open = Some((PartFile::open(root, &part, meta)?, part));
            }
            let Some((file, part)) = &mut self.open else { continue };
            match file.next()? {
                None => self.open = None,
                Some(batch) => {
                    decode_checked(decode, &batch, &mut self.batch, &part.file)?;
                    if let Some(at) = self.batch.ticks.windows(2).position(|w| w[0] > w[1]) {
                        return Err(out_of_order(part, self.batch.ticks[at + 1]).into());
                    }
                }
            }
        }
        Ok(true)
    }
}

fn out_of_order(part: &Part, tick: Tick) -> Difference {
    let what = "rows are not in the order of ticks".to_owned();
    Difference { tick: Some(tick), entity: None, file: part.file.clone(), what }
}

/// Decodes, naming the file in what goes wrong.
pub(crate) fn decode_checked<D: Decode>(
    decode: &mut D,
    batch: &RecordBatch,
    out: &mut Decoded<D::Row>,
    file: &str,
) -> Result<(), HistoryError> {
    decode.decode(batch, out).map_err(|error| error.in_file(file))
}

/// The merge.
pub(crate) struct Merge<D: Decode> {
    root: Arc<Path>,
    meta: Arc<HistoryMeta>,
    decode: D,
    streams: Vec<Stream<D::Row>>,
    heap: BinaryHeap<Reverse<(Tick, usize)>>,
    order: Vec<(u32, usize)>,
    scratch: Vec<D::Row>,
    seqs: Vec<u32>,
}

impl<D: Decode> Merge<D>
where
    D::Row: Clone,
{
    pub(crate) fn new(reader: &HistoryReader, decode: D) -> Merge<D> {
        let mut partitions: BTreeMap<(Option<String>, String), VecDeque<Part>> = BTreeMap::new();
        for part in reader.parts(D::TABLE) {
            let key = (part.tenant.clone(), part.date.clone());
            partitions.entry(key).or_default().push_back(part.clone());
        }
        let streams: Vec<Stream<D::Row>> = partitions
            .into_values()
            .map(|parts| Stream { parts, open: None, batch: Decoded::default(), at: 0 })
            .collect();
        let heads = streams.iter().enumerate().filter_map(|(at, s)| Some((s.head()?, at)));
        Merge {
            root: reader.root.clone(),
            meta: reader.meta.clone(),
            decode,
            heap: heads.map(Reverse).collect(),
            streams,
            order: Vec::new(),
            scratch: Vec::new(),
            seqs: Vec::new(),
        }
    }

    /// Number of tenants' days merged.
    #[cfg(test)]
    pub(crate) fn partitions(&self) -> usize {
        self.streams.len()
    }

    /// Number of parts open now.
    #[cfg(test)]
    pub(crate) fn open_parts(&self) -> usize {
        self.streams.iter().filter(|stream| stream.open.is_some()).count()
    }

    /// The tick of the next row.
    pub(crate) fn peek(&self) -> Option<Tick> {
        self.heap.peek().map(|Reverse((tick, _))| *tick)
    }

    /// Replaces `out` by the rows of the next tick, which is `tick`, in order; returns the wrapping
    /// sum of their checks. Positions in the tick must be 0, 1, 2 … without a gap.
    pub(crate) fn take(&mut self, tick: Tick, out: &mut Vec<D::Row>) -> Result<u64, HistoryError> {
        out.clear();
        self.seqs.clear();
        let (mut sum, mut sources) = (0_u64, 0);
        let mut file = None;
        while let Some(Reverse((head, at))) = self.heap.peek().copied() {
            if head != tick {
                break;
            }
            self.heap.pop();
            sources += 1;
            let stream = &mut self.streams[at];
            while stream.fill(&self.root, &self.meta, &mut self.decode)? {
                if file.is_none() {
                    file = stream.open.as_ref().map(|(_, part)| part.file.clone());
                }
                let start = stream.at;
                let batch = &stream.batch;
                let run = batch.ticks[start..].iter().take_while(|t| **t == tick).count();
                if run == 0 {
                    break;
                }
                let rows = start..start + run;
                out.extend_from_slice(&batch.rows[rows.clone()]);
                self.seqs.extend_from_slice(&batch.seqs[rows.clone()]);
                sum = batch.checks[rows].iter().fold(sum, |sum, check| sum.wrapping_add(*check));
                stream.at += run;
                // At the end of a batch the tick may go on in the next one, or in the next part.
                if stream.at < batch.ticks.len() {
                    break;
                }
            }
            if let Some(head) = stream.head() {
                if head < tick {
                    let what = "rows are not in the order of ticks".to_owned();
                    let file = file.unwrap_or_default();
                    return Err(Difference { tick: Some(head), entity: None, file, what }.into());
                }
                self.heap.push(Reverse((head, at)));
            }
        }
        if sources > 1 {
            self.order.clear();
            self.order.extend(self.seqs.iter().copied().zip(0..));
            self.order.sort_unstable();
            self.scratch.clear();
            self.scratch.extend(self.order.iter().map(|(_, at)| out[*at].clone()));
            std::mem::swap(out, &mut self.scratch);
            self.seqs.sort_unstable();
        }
        if self.seqs.iter().zip(0..).any(|(seq, at)| *seq != at) {
            let what = "rows of this tick are missing or doubled".to_owned();
            let file = file.unwrap_or_default();
            return Err(Difference { tick: Some(tick), entity: None, file, what }.into());
        }
        Ok(sum)
    }
}

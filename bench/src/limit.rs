//! The limit: what a plain array program does with the same file on one core.
//!
//! It decodes the same columns, finds the creative, and keeps one rolling sum of panes per entity of
//! the wanted levels, with flat arrays and no engine around them: no exchange, no ticks, no late
//! data, no validation. It counts the rows it would close. Nothing that does more work can be
//! faster, so the engine's rate is stated as a share of it.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

use anyhow::Context as _;
use arrow::array::{Array, AsArray, DictionaryArray};
use arrow::datatypes::{DataType, Int32Type, Int64Type};
use omnify_operators::model::{MINUTE_US, Stats};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};

/// Panes of the one-hour window.
const PANES: usize = 60;

/// Panes lie by slot, then entity: a pane end is one pass over neighbouring memory.
struct Rolling {
    panes: [Vec<Stats>; PANES],
    sums: Vec<Stats>,
    newest: i64,
    closed: u64,
}

impl Rolling {
    fn new() -> Rolling {
        let panes = std::array::from_fn(|_| Vec::new());
        Rolling { panes, sums: Vec::new(), newest: i64::MIN, closed: 0 }
    }

    fn advance(&mut self, minute: i64) {
        if self.newest == i64::MIN {
            self.newest = minute;
        }
        while self.newest < minute {
            self.closed += self.sums.iter().filter(|sums| !sums.is_empty()).count() as u64;
            self.newest += 1;
            let leaving = &mut self.panes[self.newest.rem_euclid(PANES as i64) as usize];
            for (pane, sums) in leaving.iter_mut().zip(&mut self.sums) {
                *sums -= std::mem::take(pane);
            }
        }
    }

    #[inline]
    fn add(&mut self, entity: usize, slot: usize, delta: Stats) {
        if entity >= self.sums.len() {
            self.sums.resize(entity + 1, Stats::ZERO);
            self.panes.iter_mut().for_each(|pane| pane.resize(entity + 1, Stats::ZERO));
        }
        self.panes[slot][entity] += delta;
        self.sums[entity] += delta;
    }
}

/// Rows read and rows it would close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Rows read.
    pub rows: u64,
    /// Rows closed: (window end, entity) with a non-empty window.
    pub closed: u64,
}

/// Runs over a file of the generic layout; `all_levels` also keeps campaign, platform and tenant
/// sums, by one addition each.
pub fn run(path: &Path, all_levels: bool) -> anyhow::Result<Counted> {
    let open = || File::open(path).with_context(|| format!("cannot open {}", path.display()));
    let plain = ParquetRecordBatchReaderBuilder::try_new(open()?)?;
    let fields: Vec<_> = plain
        .schema()
        .fields()
        .iter()
        .map(|field| {
            let field = field.as_ref().clone();
            match field.data_type() {
                DataType::Utf8 => field.with_data_type(DataType::Dictionary(
                    Box::new(DataType::Int32),
                    Box::new(DataType::Utf8),
                )),
                _ => field,
            }
        })
        .collect();
    let schema = std::sync::Arc::new(arrow::datatypes::Schema::new(fields));
    let options = ArrowReaderOptions::new().with_schema(schema);
    let builder = ParquetRecordBatchReaderBuilder::try_new_with_options(open()?, options)?;
    let wanted = [
        "ts_us",
        "tenant",
        "platform",
        "campaign",
        "creative",
        "kind",
        "cost_micros",
        "revenue_micros",
    ];
    let mask = ProjectionMask::columns(builder.parquet_schema(), wanted);
    let reader = builder.with_projection(mask).with_batch_size(1 << 16).build()?;

    let mut ids: HashMap<[String; 4], [usize; 4]> = HashMap::new();
    let mut names: [HashMap<Vec<String>, usize>; 4] = Default::default();
    let mut levels = [Rolling::new(), Rolling::new(), Rolling::new(), Rolling::new()];
    let kept = if all_levels { 4 } else { 1 };
    let mut rows = 0;
    for batch in reader {
        let batch = batch?;
        let column =
            |name: &str| batch.column_by_name(name).with_context(|| format!("no column {name}"));
        let ts = column("ts_us")?.as_primitive::<Int64Type>().values();
        let cost = column("cost_micros")?.as_primitive::<Int64Type>().values();
        let revenue = column("revenue_micros")?.as_primitive::<Int64Type>().values();
        let kind = arrow::compute::cast(column("kind")?, &DataType::Int64)?;
        let kind = kind.as_primitive::<Int64Type>().values();
        let texts = ["tenant", "platform", "campaign", "creative"].map(|name| {
            column(name)
                .map(|array| array.as_any().downcast_ref::<DictionaryArray<Int32Type>>().cloned())
        });
        let mut dictionaries = Vec::new();
        for text in texts {
            dictionaries.push(text?.context("a text column is not dictionary-encoded")?);
        }
        let keys: Vec<&[i32]> =
            dictionaries.iter().map(|array| array.keys().values().as_ref()).collect();
        let mut memo: HashMap<[i32; 4], [usize; 4]> = HashMap::new();
        let mut last = ([-1; 4], [0; 4]);
        for row in 0..batch.num_rows() {
            let codes = [keys[0][row], keys[1][row], keys[2][row], keys[3][row]];
            if codes != last.0 {
                let found = *memo.entry(codes).or_insert_with(|| {
                    let path: [String; 4] = std::array::from_fn(|at| {
                        dictionaries[at]
                            .values()
                            .as_string::<i32>()
                            .value(codes[at] as usize)
                            .to_owned()
                    });
                    *ids.entry(path.clone()).or_insert_with(|| {
                        std::array::from_fn(|level| {
                            let key = path[..4 - level].to_vec();
                            let next = names[level].len();
                            *names[level].entry(key).or_insert(next)
                        })
                    })
                });
                last = (codes, found);
            }
            let minute = ts[row].div_euclid(MINUTE_US);
            let slot = minute.rem_euclid(PANES as i64) as usize;
            let delta = Stats {
                impressions: i64::from(kind[row] == 0),
                clicks: i64::from(kind[row] == 1),
                conversions: i64::from(kind[row] == 2),
                cost_micros: cost[row],
                revenue_micros: revenue[row],
            };
            for (level, entity) in levels.iter_mut().zip(last.1).take(kept) {
                if minute > level.newest {
                    level.advance(minute);
                }
                level.add(entity, slot, delta);
            }
        }
        rows += batch.num_rows() as u64;
    }
    Ok(Counted { rows, closed: levels.iter().map(|level| level.closed).sum() })
}

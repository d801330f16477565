//! A file of the generic layout: a day and more of events of many creatives, in time order.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use arrow::array::{ArrayRef, DictionaryArray, Int8Array, Int64Array, StringArray};
use arrow::datatypes::{DataType, Field, Int32Type, Schema};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

/// What is generated.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Rows.
    pub rows: usize,
    /// Creatives; ten to a campaign, a hundred campaigns to a tenant and platform.
    pub creatives: usize,
    /// Users.
    pub users: u64,
    /// Time from the first to the last row, in hours.
    pub hours: u64,
    /// Seed.
    pub seed: u64,
}

impl Default for Workload {
    /// Ten million events of ten thousand creatives over a day.
    fn default() -> Self {
        Workload { rows: 10_000_000, creatives: 10_000, users: 1_000_000, hours: 24, seed: 7 }
    }
}

/// 2026-01-05 00:00 UTC, a Monday.
const START_US: i64 = 1_767_571_200_000_000;
/// Creatives of one campaign.
const PER_CAMPAIGN: usize = 10;
/// Campaigns of one tenant on one platform.
const PER_ACCOUNT: usize = 100;
const PLATFORMS: [&str; 4] = ["google", "meta", "tiktok", "linkedin"];
const ROW_GROUP_ROWS: usize = 1 << 17;

/// Names of creative `n`: tenant, platform, campaign, creative.
pub fn names(n: usize) -> (String, &'static str, String, String) {
    let campaign = n / PER_CAMPAIGN;
    let account = campaign / PER_ACCOUNT;
    let tenant = format!("tenant{}", account / PLATFORMS.len());
    let platform = PLATFORMS[account % PLATFORMS.len()];
    (tenant, platform, format!("campaign{campaign}"), format!("creative{n}"))
}

/// One generated row.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// When.
    pub ts_us: i64,
    /// Which creative.
    pub creative: usize,
    /// Who.
    pub user: u64,
    /// 0 impression, 1 click, 2 conversion.
    pub kind: i8,
    /// Cost.
    pub cost_micros: i64,
    /// Revenue.
    pub revenue_micros: i64,
}

/// The rows, in time order. Creatives are skewed: the square of a uniform draw picks one.
pub fn rows(workload: &Workload) -> impl Iterator<Item = Row> + use<> {
    let workload = workload.clone();
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(workload.seed);
    let span_us = workload.hours as i64 * 3_600_000_000;
    (0..workload.rows).map(move |at| {
        let u: f64 = rng.r#gen();
        let creative = ((u * u * 0.5 + u * 0.5) * workload.creatives as f64) as usize;
        let draw: u32 = rng.gen_range(0..10_000);
        let kind = i8::from(draw < 150) + i8::from(draw < 5);
        Row {
            ts_us: START_US + (at as i128 * i128::from(span_us) / workload.rows as i128) as i64,
            creative: creative.min(workload.creatives - 1),
            user: rng.gen_range(0..workload.users),
            kind,
            cost_micros: if kind == 0 { rng.gen_range(500..5_000) } else { 0 },
            revenue_micros: if kind == 2 { rng.gen_range(5_000_000..90_000_000) } else { 0 },
        }
    })
}

/// Writes the workload to a Parquet file.
pub fn write(workload: &Workload, path: &Path) -> anyhow::Result<()> {
    let text = || DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    let schema = Arc::new(Schema::new(vec![
        Field::new("ts_us", DataType::Int64, false),
        Field::new("tenant", text(), false),
        Field::new("platform", text(), false),
        Field::new("campaign", text(), false),
        Field::new("creative", text(), false),
        Field::new("user", DataType::Int64, false),
        Field::new("kind", DataType::Int8, false),
        Field::new("cost_micros", DataType::Int64, false),
        Field::new("revenue_micros", DataType::Int64, false),
    ]));
    let dictionary = |of: fn(usize) -> String| -> Arc<StringArray> {
        Arc::new((0..workload.creatives).map(|n| Some(of(n))).collect())
    };
    let dictionaries = [
        dictionary(|n| names(n).0),
        dictionary(|n| names(n).1.to_owned()),
        dictionary(|n| names(n).2),
        dictionary(|n| names(n).3),
    ];
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .build();
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    let mut writer = ArrowWriter::try_new(file, schema.clone(), Some(properties))?;
    let mut rows = rows(workload).peekable();
    while rows.peek().is_some() {
        let chunk: Vec<Row> = rows.by_ref().take(ROW_GROUP_ROWS).collect();
        let int64 = |of: fn(&Row) -> i64| -> ArrayRef {
            Arc::new(Int64Array::from_iter_values(chunk.iter().map(of)))
        };
        let mut columns: Vec<ArrayRef> = vec![int64(|row| row.ts_us)];
        for values in &dictionaries {
            let keys = chunk.iter().map(|row| row.creative as i32).collect::<Vec<_>>();
            let keys = arrow::array::Int32Array::from(keys);
            let texts = DictionaryArray::<Int32Type>::try_new(keys, values.clone())?;
            columns.push(Arc::new(texts));
        }
        columns.push(int64(|row| row.user as i64));
        columns.push(Arc::new(Int8Array::from_iter_values(chunk.iter().map(|row| row.kind))));
        columns.push(int64(|row| row.cost_micros));
        columns.push(int64(|row| row.revenue_micros));
        writer.write(&RecordBatch::try_new(schema.clone(), columns)?)?;
    }
    writer.close()?;
    Ok(())
}

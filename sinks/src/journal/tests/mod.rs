//! The journal under crash, damage, full disks and growth. Here: the rig, and what comes back.

mod crash;
mod evolution;
mod faults;
mod fuzz;
mod upkeep;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use omnify_decision::action::{Id, Setting};
use omnify_decision::control::{Actual, Control, Outcome};
use omnify_operators::model::{
    Attribution, EntityId, Event, EventKind, Registry, RegistryView, ReportKey, ReportRow,
    ReportVersion, Stats, Tick,
};
use proptest::prelude::*;

use super::*;
use crate::disk::{Disk, FileSystem, Output};
use crate::history::DeadLetter;
use crate::serve::Watermarks;

/// Entities of the tests.
const ENTITIES: u32 = 12;

fn name(n: u32) -> String {
    // Names with shared starts, and with characters of several bytes at the border.
    format!(
        "t{}/p/a/c{}/gé/{}",
        n % 2,
        n % 3,
        ["x", "xé", "xè", "y"][n as usize % 4].repeat(1 + n as usize / 4)
    )
}

/// A registry that met the entities in the order of `order`.
fn registry(order: impl IntoIterator<Item = u32>) -> Arc<Registry> {
    let registry = Arc::new(Registry::utc());
    for n in order {
        registry.intern(&name(n).parse().unwrap());
    }
    registry
}

fn known() -> Arc<Registry> {
    registry(0..ENTITIES)
}

/// The id of entity `n` in `registry`.
fn id(registry: &Registry, n: u32) -> EntityId {
    registry.lookup(&name(n).parse().unwrap()).unwrap()
}

/// The file system without waiting for it: these tests crash by hand.
#[derive(Clone, Copy)]
struct Quick;

struct QuickFile(Box<dyn Output>);

impl Output for QuickFile {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.0.cut(length)
    }
}

impl Disk for Quick {
    fn create(&self, path: &Path) -> io::Result<Box<dyn Output>> {
        Ok(Box::new(QuickFile(FileSystem.create(path)?)))
    }

    fn open_at(&self, path: &Path, length: u64) -> io::Result<Box<dyn Output>> {
        Ok(Box::new(QuickFile(FileSystem.open_at(path, length)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        FileSystem.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        FileSystem.remove(path)
    }

    fn sync_folder(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
}

fn open(dir: &Path, registry: &Arc<Registry>, options: &JournalOptions) -> (JournalWriter, Opened) {
    let view = RegistryView::new(registry.clone());
    JournalWriter::open_on(Arc::new(Quick), dir, options.clone(), view).unwrap()
}

fn small() -> JournalOptions {
    JournalOptions { segment_bytes: 600, created_by: "test".to_owned() }
}

fn read(
    dir: &Path,
    registry: &Arc<Registry>,
    after: Option<Tick>,
) -> Result<Vec<TickEntry>, JournalError> {
    JournalReader::open(dir)?.ticks(registry, after)?.collect()
}

/// A tick with a bit of everything, made of `seed`.
fn entry(registry: &Registry, tick: Tick, seed: u64) -> TickEntry {
    let n = |shift: u32| (seed.rotate_right(shift) & 0xff) as u32;
    let amount = |shift: u32| i64::from(n(shift)) * 1_000 - 50_000;
    let stats = |shift: u32| match n(shift) % 4 {
        0 => Stats { impressions: 1, ..Stats::ZERO },
        1 => Stats { clicks: 1, cost_micros: amount(shift), ..Stats::ZERO },
        2 => Stats { conversions: 1, revenue_micros: amount(shift), ..Stats::ZERO },
        _ => Stats {
            impressions: amount(shift),
            clicks: -1,
            conversions: i64::from(n(shift)),
            cost_micros: i64::MIN,
            revenue_micros: i64::MAX,
        },
    };
    let event = |k: u32| Event {
        time: tick as i64 * 1_000 - i64::from(n(k)),
        creative: id(registry, n(k + 3) % ENTITIES),
        kind: EventKind::ALL[n(k + 5) as usize % 5],
        delta: stats(k),
        user: if n(k + 7) % 2 == 0 { 0 } else { seed.wrapping_mul(7) },
        id: if n(k + 9) % 3 == 0 { 0 } else { seed.wrapping_add(u64::from(k)) },
    };
    let report = |k: u32| ReportRow {
        key: ReportKey {
            creative: id(registry, n(k + 11) % ENTITIES),
            start: i64::from(n(k)) * 3_600_000_000,
            end: i64::from(n(k) + 1) * 3_600_000_000,
            attribution: Attribution::of_code(n(k + 17)).unwrap(),
        },
        version: ReportVersion {
            as_of: tick as i64 * 1_000,
            sequence: seed.rotate_left(k),
            totals: stats(k + 1),
        },
    };
    let key = name(n(13) % ENTITIES).parse().unwrap();
    let controls = [
        Control::Acknowledge {
            action: Id(seed.to_le_bytes().repeat(2).try_into().unwrap()),
            owner: name(n(2) % ENTITIES).parse().unwrap(),
            outcome: Outcome::Applied { effective: Setting::Bid { bid_micros: amount(3) } },
        },
        Control::Observe {
            entity: key,
            actual: Actual { bid_micros: Some(5), ..Actual::default() },
        },
        Control::Model { version: 3, model: serde_json::json!({"w": [0.1, 1.0 / 3.0, f64::MAX]}) },
        Control::Kill { tenant: None },
    ];
    let dead = |k: u32| {
        let bytes = seed.to_le_bytes().repeat(k as usize);
        let reason = ["not_a_number", "unknown_kind"][k as usize % 2];
        let letter = DeadLetter::new(
            tick,
            "file.csv".into(),
            u64::from(k),
            reason,
            format!("é {k}"),
            &bytes,
        );
        if k.is_multiple_of(2) { letter } else { letter.of_tenant("t1".into()) }
    };
    TickEntry {
        tick,
        mark_last: n(17) % 5 == 0,
        mark_snapshot: n(18) % 3 == 0,
        calm: n(19) as u8,
        events: (0..n(20) % 9).map(event).collect(),
        reports: (0..n(21) % 3).map(report).collect(),
        controls: controls[..n(22) as usize % 5].to_vec(),
        dead: (0..n(23) % 3).map(dead).collect(),
        rows: seed % 100_000,
        ignored: u64::from(n(24)),
        watermarks: (n(25) % 2 == 0).then(|| Watermarks {
            fresh_until_us: (n(26) % 2 == 0).then_some(amount(26)),
            settled_until_us: (n(27) % 2 == 0).then_some(amount(27)),
        }),
        positions: (0..n(28) % 3)
            .map(|k| Position {
                source: "kafka/events".into(),
                partition: k as i32,
                next: amount(k),
            })
            .collect(),
        batches: (0..n(29) % 3)
            .map(|k| BatchKey {
                tenant: "t0".into(),
                key: format!("key-{seed}-{k}").into(),
                accepted: u64::from(k),
                dead_letters: 1,
                ignored: 0,
            })
            .collect(),
    }
}

/// Entries with the ids of `from` replaced by those of `to`.
fn translated(entries: &[TickEntry], from: &Arc<Registry>, to: &Registry) -> Vec<TickEntry> {
    let mut view = RegistryView::new(from.clone());
    let mut id = |id: &mut EntityId| *id = to.lookup(&view.info(*id).key).unwrap();
    let mut entries = entries.to_vec();
    for entry in &mut entries {
        entry.events.iter_mut().for_each(|event| id(&mut event.creative));
        entry.reports.iter_mut().for_each(|row| id(&mut row.key.creative));
    }
    entries
}

fn files(dir: &Path) -> Vec<PathBuf> {
    segments(dir).unwrap().into_iter().map(|(_, path)| path).collect()
}

/// `groups` groups of up to three ticks.
fn some_groups(registry: &Registry, groups: u64) -> Vec<Vec<TickEntry>> {
    let mut tick = 1_700_000_000_000;
    let seed = |n: u64| xxhash_rust::xxh3::xxh3_64(&n.to_le_bytes());
    (0..groups)
        .map(|group| {
            let next = |k| {
                tick += 1 + k;
                entry(registry, tick, seed(group * 10 + k))
            };
            (0..1 + group % 3).map(next).collect()
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn everything_comes_back_in_order_whatever_the_registry(
        steps in prop::collection::vec((1_u64..1_000, any::<u64>()), 1..30),
        commits in prop::collection::vec(any::<bool>(), 30),
        order in Just((0..ENTITIES).collect::<Vec<_>>()).prop_shuffle(),
        skip in 0_usize..30,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let known = known();
        let (mut writer, opened) = open(dir.path(), &known, &small());
        prop_assert_eq!(opened, Opened::default());
        let mut written: Vec<TickEntry> = Vec::new();
        for ((step, seed), commit) in steps.into_iter().zip(commits) {
            let tick = written.last().map_or(0, |entry| entry.tick) + step;
            written.push(entry(&known, tick, seed));
            writer.append(&written[written.len() - 1]).unwrap();
            if commit {
                prop_assert_eq!(writer.commit().unwrap(), Some(tick));
            }
        }
        writer.commit().unwrap();
        prop_assert_eq!(writer.bytes(), files(dir.path()).iter().map(|f| f.metadata().unwrap().len()).sum::<u64>());
        let fresh = registry([]);
        let all = read(dir.path(), &fresh, Some(0)).unwrap();
        prop_assert_eq!(&all, &translated(&written, &known, &fresh));
        // Another order of ids, and only a tail.
        let other = registry(order);
        let at = skip % written.len();
        let tail = read(dir.path(), &other, Some(written[at].tick)).unwrap();
        prop_assert_eq!(tail, translated(&written[at + 1..], &known, &other));
    }
}

#[test]
fn events_take_few_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let known = known();
    let (mut writer, _) = open(dir.path(), &known, &JournalOptions::default());
    let mut written = Vec::new();
    for tick in 0..20_u64 {
        let events = (0..500_u64).map(|n| {
            let hash = xxhash_rust::xxh3::xxh3_64(&(tick * 500 + n).to_le_bytes());
            Event {
                time: (1_700_000_000_000 + tick as i64) * 1_000 + (hash % 2_000) as i64,
                creative: id(&known, (hash % u64::from(ENTITIES)) as u32),
                kind: EventKind::Impression,
                delta: Stats { impressions: 1, cost_micros: (hash % 9_000) as i64, ..Stats::ZERO },
                user: hash,
                id: hash.rotate_left(17),
            }
        });
        let entry = TickEntry { tick: tick + 1, events: events.collect(), ..TickEntry::default() };
        writer.append(&entry).unwrap();
        written.push(entry);
    }
    writer.commit().unwrap();
    assert!(writer.bytes() / 10_000 <= 24, "{} bytes an event", writer.bytes() / 10_000);
    assert_eq!(read(dir.path(), &known, None).unwrap(), written);
}

#[test]
fn ticks_only_ascend_and_one_writer_holds_the_folder() {
    let dir = tempfile::tempdir().unwrap();
    let known = known();
    let (mut writer, _) = open(dir.path(), &known, &small());
    writer.append(&entry(&known, 5, 1)).unwrap();
    let error = writer.append(&entry(&known, 5, 2)).unwrap_err();
    assert!(matches!(error, JournalError::TickOrder { tick: 5, last: 5 }), "{error}");
    writer.commit().unwrap();
    let view = RegistryView::new(known.clone());
    let error = JournalWriter::open(dir.path(), small(), view).err().unwrap();
    assert!(matches!(error, JournalError::Locked { .. }), "{error}");
    drop(writer);
    let (mut writer, opened) = open(dir.path(), &known, &small());
    assert_eq!((opened.last_tick, writer.last_tick()), (Some(5), Some(5)));
    assert!(writer.append(&entry(&known, 4, 2)).is_err());
    assert_eq!(writer.commit().unwrap(), Some(5));
}

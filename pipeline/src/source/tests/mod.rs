//! Sources as their users meet them: small files written here, read through the public way in.

mod bad_input;
mod columnar;
mod foreign;
mod property;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use omnify_operators::model::{EntityId, Registry, RegistryView};
use tempfile::TempDir;

use super::{ReadOptions, Source, SourceError, open};
use crate::decode::{Batch, Door, Limits, Mapping};

/// Header of the generic layout.
pub(super) const GENERIC: &str =
    "ts_us,tenant,platform,campaign,creative,user,kind,cost_micros,revenue_micros";

pub(super) fn door() -> Arc<Door> {
    door_with(Limits::default())
}

pub(super) fn door_with(limits: Limits) -> Arc<Door> {
    Arc::new(Door::new(Arc::new(Registry::utc()), limits))
}

pub(super) fn mapping(name: &str) -> Mapping {
    Mapping::load(name).unwrap()
}

/// A folder with one file in it.
pub(super) fn file(name: &str, bytes: impl AsRef<[u8]>) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Everything a source yields, as one batch, and how it ended. Every batch must account for its
/// rows and say the truth about its span and order.
pub(super) fn drain(source: &mut dyn Source) -> (Batch, Option<SourceError>) {
    let mut all = Batch::new();
    loop {
        match source.next_batch() {
            Ok(Some(batch)) => {
                assert_eq!(batch.accounted(), batch.rows, "rows are accounted for");
                let times = batch.events.iter().map(|event| event.time);
                let known = batch.reports.iter().map(|report| report.version.as_of);
                let times: Vec<_> = times.chain(known).collect();
                let span = times.iter().min().copied().zip(times.iter().max().copied());
                assert_eq!(batch.span, span);
                assert_eq!(batch.sorted, batch.events.is_sorted_by_key(|event| event.time));
                all.events.extend(batch.events);
                all.reports.extend(batch.reports);
                all.dead.extend(batch.dead);
                all.rows += batch.rows;
                all.ignored += batch.ignored;
            }
            Ok(None) => {
                assert!(source.next_batch().unwrap().is_none(), "the end stays the end");
                return (all, None);
            }
            Err(error) => {
                assert!(matches!(source.next_batch(), Ok(None)), "an error ends the source");
                return (all, Some(error));
            }
        }
    }
}

/// Reads a whole file or folder that must be sound.
pub(super) fn read(path: &Path, mapping: &Mapping, door: &Arc<Door>) -> Batch {
    let mut source = open(path, mapping, door, ReadOptions::default()).unwrap();
    let (batch, error) = drain(source.as_mut());
    assert!(error.is_none(), "{error:?}");
    batch
}

pub(super) fn reasons(batch: &Batch) -> Vec<&'static str> {
    batch.dead.iter().map(|letter| letter.reason).collect()
}

pub(super) fn key(door: &Door, id: EntityId) -> String {
    RegistryView::new(door.registry.clone()).info(id).key.to_string()
}

#[test]
fn forms_are_told_by_their_first_bytes() {
    let text = format!("{GENERIC}\n7,t,p,c,x,u,0,5,0\n");
    let json = br#"{"ts_us":7,"tenant":"t","platform":"p","campaign":"c","creative":"x","user":"u","kind":0,"cost_micros":5,"revenue_micros":0}"#;
    let forms: [Vec<u8>; 5] = [
        text.as_bytes().to_vec(),
        gzip(text.as_bytes()),
        zstd::encode_all(text.as_bytes(), 1).unwrap(),
        json.to_vec(),
        gzip(json),
    ];
    let mut seen = Vec::new();
    for bytes in forms {
        // The name says Parquet, and lies.
        let (_folder, path) = file("data.parquet", bytes);
        let door = door();
        let batch = read(&path, &mapping("generic"), &door);
        assert_eq!(batch.rows, 1);
        assert_eq!(key(&door, batch.events[0].creative), "t/p/p/c/c/x");
        seen.push(batch.events);
    }
    assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "{seen:?}");
}

#[test]
fn a_folder_is_the_chain_of_its_files_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let row = |time: u32| format!("{GENERIC}\n{time},t,p,c,x,u,0,5,0\n");
    std::fs::write(folder.path().join("b.csv"), row(2)).unwrap();
    std::fs::write(folder.path().join("a.csv.gz"), gzip(row(1).as_bytes())).unwrap();
    std::fs::write(folder.path().join("c.csv"), "").unwrap();
    std::fs::write(folder.path().join(".hidden"), "no").unwrap();
    std::fs::write(folder.path().join("_SUCCESS"), "no").unwrap();
    let door = door();
    let mut source =
        open(folder.path(), &mapping("generic"), &door, ReadOptions::default()).unwrap();
    let (batch, error) = drain(source.as_mut());
    assert!(error.is_none());
    assert_eq!(batch.events.iter().map(|event| event.time).collect::<Vec<_>>(), [1, 2]);
    let (done, total) = source.progress();
    assert!(done == total && total > 0);

    let empty = tempfile::tempdir().unwrap();
    let error = open(empty.path(), &mapping("generic"), &door, ReadOptions::default()).err();
    assert!(matches!(error, Some(SourceError::Empty { .. })));
    let error = open(Path::new("no/such"), &mapping("generic"), &door, ReadOptions::default());
    assert!(error.err().unwrap().to_string().contains("no/such"));
}

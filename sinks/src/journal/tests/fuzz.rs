//! The decoder on bytes that nobody wrote: an error, never a panic, never much memory.

use super::decode::{Names, decode};
use super::encode::{Dictionary, FrameBuilder};
use super::*;

/// A sound payload with a bit of everything.
fn sound(seeds: &[u64]) -> Vec<u8> {
    let known = known();
    let mut frame = FrameBuilder::default();
    frame.start(&StartRecord::default());
    for (tick, seed) in seeds.iter().enumerate() {
        frame.tick(&entry(&known, tick as u64 + 1, *seed));
    }
    let mut payload = Vec::new();
    frame.write(&mut Dictionary::default(), &mut RegistryView::new(known), &mut payload);
    payload
}

/// Decodes, and checks that no more came out than the bytes can stand for.
fn decodes(payload: &[u8]) -> bool {
    match decode(payload, &mut Names::default(), &registry([]), None) {
        Ok(content) => {
            let most = payload.len() * 256;
            assert!(content.ticks.len() <= most);
            let rows = |entry: &TickEntry| entry.events.capacity() + entry.reports.capacity();
            assert!(content.ticks.iter().map(rows).sum::<usize>() <= 2 * most);
            true
        }
        Err(_) => false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        decodes(&bytes);
    }

    #[test]
    fn any_columns(
        columns in prop::collection::vec((1_u8..90, 0_u8..2, prop::collection::vec(any::<u8>(), 0..40)), 0..12),
    ) {
        let mut payload = Vec::new();
        for (number, coding, bytes) in columns {
            payload.extend([number, coding]);
            payload.push(bytes.len() as u8);
            payload.extend(bytes);
        }
        decodes(&payload);
    }

    #[test]
    fn bytes_nearly_right(
        seeds in prop::collection::vec(any::<u64>(), 1..5),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0_u8..3), 1..4),
    ) {
        let mut payload = sound(&seeds);
        prop_assert!(decodes(&payload));
        for (at, byte, change) in changes {
            if payload.is_empty() {
                break;
            }
            let at = at.index(payload.len());
            match change {
                0 => payload[at] = byte,
                1 => payload.truncate(at),
                _ => payload.insert(at, byte),
            }
        }
        decodes(&payload);
    }

    #[test]
    fn files_nearly_right(
        at in any::<prop::sample::Index>(),
        bytes in prop::collection::vec(any::<u8>(), 1..40),
    ) {
        let (dir, known) = (tempfile::tempdir().unwrap(), known());
        let path = segment::path(dir.path(), 1_700_000_000_001);
        let mut file = include_bytes!("v1.omj").to_vec();
        let at = at.index(file.len());
        let end = (at + bytes.len()).min(file.len());
        file.splice(at..end, bytes);
        std::fs::write(&path, &file).unwrap();
        // Any answer will do, as long as there is one.
        let _ = read(dir.path(), &known, None);
        let inspection = inspect(dir.path(), 0, Tick::MAX).unwrap();
        prop_assert_eq!(inspection.segments.len(), 1);
    }
}

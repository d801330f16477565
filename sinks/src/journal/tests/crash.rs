//! A crash anywhere leaves everything committed; damage is found and located.

use std::fs;

use super::*;

/// A journal, and for each commit the file it went to and the bytes of that file before and after.
struct Written {
    dir: tempfile::TempDir,
    registry: Arc<Registry>,
    groups: Vec<Vec<TickEntry>>,
    commits: Vec<(PathBuf, u64, u64)>,
}

impl Written {
    fn new(groups: u64) -> Written {
        let (dir, registry) = (tempfile::tempdir().unwrap(), known());
        let groups = some_groups(&registry, groups);
        let (mut writer, _) = open(dir.path(), &registry, &small());
        writer.started(StartRecord { version: "1".to_owned(), ..StartRecord::default() });
        let mut commits: Vec<(PathBuf, u64, u64)> = Vec::new();
        for group in &groups {
            group.iter().for_each(|entry| writer.append(entry).unwrap());
            writer.commit().unwrap();
            let path = files(dir.path()).pop().unwrap();
            let end = path.metadata().unwrap().len();
            let start = match commits.last() {
                Some((before, _, end)) if *before == path => *end,
                _ => header_bytes(&path),
            };
            commits.push((path, start, end));
        }
        assert!(files(dir.path()).len() > 3, "too few segments to show anything");
        Written { dir, registry, groups, commits }
    }

    fn entries(&self, groups: usize) -> Vec<TickEntry> {
        self.groups[..groups].concat()
    }

    /// The commit that holds byte `at` of `path`; `None` in the header.
    fn commit_at(&self, path: &Path, at: u64) -> Option<usize> {
        self.commits
            .iter()
            .position(|(file, start, end)| file == path && (*start..*end).contains(&at))
    }
}

fn header_bytes(path: &Path) -> u64 {
    let bytes = fs::read(path).unwrap();
    24 + u64::from(u32::from_le_bytes(bytes[12..16].try_into().unwrap()))
}

#[test]
fn a_tail_cut_anywhere_keeps_every_whole_commit() {
    let two_in_the_last = |written: &Written| {
        let mut last_two = written.commits.iter().rev();
        last_two.next().map(|(path, ..)| path) == last_two.next().map(|(path, ..)| path)
    };
    let written = (12..).map(Written::new).find(two_in_the_last).unwrap();
    let (last, _, end) = written.commits.last().unwrap().clone();
    let whole = fs::read(&last).unwrap();
    let header = header_bytes(&last);
    for length in header..=end {
        fs::write(&last, &whole[..length as usize]).unwrap();
        let kept =
            written.commits.iter().filter(|(p, _, end)| *p != last || *end <= length).count();
        let expected = written.entries(kept);
        assert_eq!(read(written.dir.path(), &written.registry, None).unwrap(), expected);
        let (mut writer, opened) = open(written.dir.path(), &written.registry, &small());
        let good = written.commits[..kept].iter().rfind(|(path, ..)| *path == last);
        let good = good.map_or(header, |(_, _, end)| *end);
        assert_eq!(opened.repaired_bytes, length - good);
        assert_eq!(opened.last_tick, expected.last().map(|entry| entry.tick));
        // It goes on where it was cut, and what follows is read behind it.
        let next = entry(&written.registry, opened.last_tick.unwrap() + 1, length);
        writer.append(&next).unwrap();
        writer.commit().unwrap();
        let new = files(written.dir.path()).pop().unwrap();
        let read = read(written.dir.path(), &written.registry, None).unwrap();
        assert_eq!(read[..read.len() - 1], expected);
        assert_eq!(read.last(), Some(&next));
        drop(writer);
        fs::remove_file(new).unwrap();
    }
}

#[test]
fn every_flipped_bit_is_found_and_located() {
    let written = Written::new(9);
    let all = written.entries(written.groups.len());
    let last_commit = written.commits.len() - 1;
    for path in files(written.dir.path()) {
        let whole = fs::read(&path).unwrap();
        for at in (0..whole.len()).step_by(11) {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << (at % 8);
            fs::write(&path, &flipped).unwrap();
            let commit = written.commit_at(&path, at as u64);
            match read(written.dir.path(), &written.registry, None) {
                // Only the very last commit cannot be told from one that was never finished.
                Ok(entries) => {
                    assert_eq!(commit, Some(last_commit), "{} byte {at}", path.display());
                    assert_eq!(entries, all[..all.len() - written.groups[last_commit].len()]);
                }
                Err(JournalError::Damaged { path: named, offset, .. }) => {
                    assert_eq!(named, path);
                    let start = commit.map_or(0, |commit| written.commits[commit].1);
                    assert!(
                        offset == start || commit.is_none() && offset == 16,
                        "{offset} {start}"
                    );
                    let view = RegistryView::new(written.registry.clone());
                    let opened = JournalWriter::open(written.dir.path(), small(), view);
                    // The writer looks into the last segment and all headers.
                    let last = written.commits[last_commit].0 == path;
                    assert_eq!(opened.is_err(), last || commit.is_none(), "{}", path.display());
                    assert_eq!(fs::read(&path).unwrap(), flipped, "damage is left as it is");
                }
                Err(other) => panic!("{}: byte {at}: {other}", path.display()),
            }
        }
        fs::write(&path, whole).unwrap();
    }
    assert_eq!(read(written.dir.path(), &written.registry, None).unwrap(), all);
}

#[test]
fn a_lost_segment_is_missed() {
    let written = Written::new(9);
    let files = files(written.dir.path());
    let (lost, kept) = (&files[1], fs::read(&files[1]).unwrap());
    fs::remove_file(lost).unwrap();
    let error = read(written.dir.path(), &written.registry, None).unwrap_err();
    assert!(matches!(&error, JournalError::Missing { path, .. } if *path == files[2]), "{error}");
    // One that is shorter than its successor knows it, too.
    fs::write(lost, &kept[..kept.len() - 1]).unwrap();
    let error = read(written.dir.path(), &written.registry, None).unwrap_err();
    assert!(matches!(&error, JournalError::Damaged { path, .. } if path == lost), "{error}");
}

#[test]
fn a_commit_of_many_frames_may_be_torn_in_its_middle() {
    let (dir, registry) = (tempfile::tempdir().unwrap(), known());
    let entries: Vec<_> = (1..=5).map(|tick| entry(&registry, tick, tick * 977)).collect();
    let (mut writer, _) = open(dir.path(), &registry, &JournalOptions::default());
    writer.frame_bytes = 1;
    writer.append(&entries[0]).unwrap();
    writer.commit().unwrap();
    let mut ends = Vec::new();
    let path = files(dir.path()).pop().unwrap();
    ends.push(path.metadata().unwrap().len() as usize);
    entries[1..4].iter().for_each(|entry| writer.append(entry).unwrap());
    writer.commit().unwrap();
    let three = fs::read(&path).unwrap();
    writer.append(&entries[4]).unwrap();
    writer.commit().unwrap();
    drop(writer);
    let four = fs::read(&path).unwrap();
    // The frames of the second commit, by their markers.
    while ends.len() < 3 {
        let from = ends[ends.len() - 1];
        let length = u32::from_le_bytes(four[from + 4..from + 8].try_into().unwrap()) as usize;
        ends.push(from + 24 + length);
    }
    for (frame, start) in ends.iter().enumerate() {
        // The system wrote what is behind, and not this page.
        let zeroed = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            bytes[*start..*start + 24].fill(0);
            bytes
        };
        fs::write(&path, zeroed(&three)).unwrap();
        assert_eq!(read(dir.path(), &registry, None).unwrap(), entries[..=frame]);
        fs::write(&path, zeroed(&four)).unwrap();
        let error = read(dir.path(), &registry, None).unwrap_err();
        let found =
            matches!(error, JournalError::Damaged { offset, .. } if offset == *start as u64);
        assert!(found, "a later commit proves that this one was whole: {error}");
    }
}

#[test]
fn a_frame_inside_a_dead_letter_is_not_taken_for_a_commit() {
    let other = Written::new(5);
    let bytes = fs::read(&other.commits[0].0).unwrap();
    let (dir, registry) = (tempfile::tempdir().unwrap(), known());
    let (mut writer, _) = open(dir.path(), &registry, &JournalOptions::default());
    let letter = DeadLetter::new(1, "f".into(), 1, "unknown_kind", String::new(), &bytes);
    let holding = TickEntry { tick: 1, dead: vec![letter], ..TickEntry::default() };
    writer.append(&holding).unwrap();
    writer.commit().unwrap();
    drop(writer);
    let path = files(dir.path()).pop().unwrap();
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    let (_, opened) = open(dir.path(), &registry, &JournalOptions::default());
    assert_eq!((opened.last_tick, opened.repaired_bytes > bytes.len() as u64), (None, true));
}

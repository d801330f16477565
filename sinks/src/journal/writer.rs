//! Writes the journal.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use omnify_operators::model::{RegistryView, Tick};
use rustix::fs::{FlockOperation, flock};

use super::JournalError;
use super::decode::{self, Names};
use super::encode::{Dictionary, FrameBuilder};
use super::entry::{StartRecord, TickEntry};
use super::frame::{self, PAYLOAD_BYTES_MAX};
use super::retain::{self, Removed, Retention};
use super::segment::{self, Header, Link, STARTING, SegmentReader, Step};
use crate::disk::{Disk, FileSystem, Output};

/// A frame is sealed when it has grown past this, so that a reader needs little memory. A single
/// tick is never split.
const FRAME_BYTES: usize = 8 << 20;

/// Sizes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalOptions {
    /// A new segment is begun when the last has grown past this.
    pub segment_bytes: u64,
    /// What the segments name as their writer.
    pub created_by: String,
}

impl Default for JournalOptions {
    fn default() -> Self {
        JournalOptions {
            segment_bytes: 64 << 20,
            created_by: concat!("omnify ", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

/// What was found on opening.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// The last durable tick; `None` of an empty journal.
    pub last_tick: Option<Tick>,
    /// Bytes that were cut off the end, because a crash left them unfinished.
    pub repaired_bytes: u64,
    /// Number of segments.
    pub segments: usize,
    /// The process that wrote last.
    pub last_start: Option<StartRecord>,
}

/// The segment being written.
struct Current {
    path: PathBuf,
    output: Box<dyn Output>,
    /// Check of its header.
    salt: u64,
    /// What of it is durable.
    link: Link,
    /// The one before it.
    previous: Option<Link>,
    dictionary: Dictionary,
    /// It holds frames.
    used: bool,
    /// A write failed, so bytes beyond the durable ones may be in the file.
    dirty: bool,
    /// An fsync failed: nothing more is written here.
    lost: bool,
}

/// The journal of one engine. See the module.
pub struct JournalWriter {
    dir: PathBuf,
    disk: Arc<dyn Disk>,
    options: JournalOptions,
    view: RegistryView,
    /// Holds the lock of the folder while the journal lives.
    _lock: File,
    current: Option<Current>,
    /// The last segment, where `current` is none.
    last: Option<Link>,
    /// Bytes of the closed segments.
    closed_bytes: u64,
    start: Option<StartRecord>,
    rotate: bool,
    /// Frames that are not durable yet; the last is being filled.
    frames: Vec<FrameBuilder>,
    /// The last appended tick.
    appended: Option<Tick>,
    /// The last durable tick.
    durable: Option<Tick>,
    buffer: Vec<u8>,
    /// [`FRAME_BYTES`], less in tests.
    pub(super) frame_bytes: usize,
}

impl JournalWriter {
    /// Opens or creates the journal in `dir`, cutting off what a crash tore. What follows goes to a
    /// new segment. `view` names the entities of what will be appended; nothing is interned.
    pub fn open(
        dir: &Path,
        options: JournalOptions,
        view: RegistryView,
    ) -> Result<(JournalWriter, Opened), JournalError> {
        JournalWriter::open_on(Arc::new(FileSystem), dir, options, view)
    }

    /// The same on another disk; reading always goes to the file system.
    pub fn open_on(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: JournalOptions,
        view: RegistryView,
    ) -> Result<(JournalWriter, Opened), JournalError> {
        fs::create_dir_all(dir).map_err(JournalError::io("create", dir))?;
        let lock = dir.join("lock");
        let lock = File::create(&lock).map_err(JournalError::io("lock", &lock))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| JournalError::Locked { path: dir.to_owned() })?;
        remove_unfinished(&*disk, dir)?;
        let (last, opened, closed_bytes) = repair(&*disk, dir)?;
        disk.sync_folder(dir).map_err(JournalError::io("make durable", dir))?;
        let writer = JournalWriter {
            dir: dir.to_owned(),
            disk,
            options,
            view,
            _lock: lock,
            current: None,
            last,
            closed_bytes,
            start: None,
            rotate: false,
            frames: vec![FrameBuilder::default()],
            appended: opened.last_tick,
            durable: opened.last_tick,
            buffer: Vec::new(),
            frame_bytes: FRAME_BYTES,
        };
        Ok((writer, opened))
    }

    /// Records that this process starts to write. It becomes durable with the next tick.
    pub fn started(&mut self, record: StartRecord) {
        self.filling().start(&record);
        self.start = Some(record);
    }

    /// Buffers a tick. On an error it was not taken.
    pub fn append(&mut self, entry: &TickEntry) -> Result<(), JournalError> {
        let tick = entry.tick;
        if let Some(last) = self.appended.filter(|last| *last >= tick) {
            return Err(JournalError::TickOrder { tick, last });
        }
        if self.filling().ticks.is_some() && self.filling().len() >= self.frame_bytes {
            self.frames.push(FrameBuilder::default());
        }
        let frame = self.filling();
        let mark = frame.mark();
        frame.tick(entry);
        let bytes = frame.len();
        if bytes > PAYLOAD_BYTES_MAX / 2 {
            frame.back_to(&mark);
            return Err(JournalError::TooLarge { tick, bytes, max: PAYLOAD_BYTES_MAX / 2 });
        }
        self.appended = Some(tick);
        Ok(())
    }

    fn filling(&mut self) -> &mut FrameBuilder {
        if self.frames.is_empty() {
            self.frames.push(FrameBuilder::default());
        }
        let last = self.frames.len() - 1;
        &mut self.frames[last]
    }

    /// Makes everything appended durable and returns the last durable tick. On an error everything
    /// stays buffered: free the cause and commit again.
    pub fn commit(&mut self) -> Result<Option<Tick>, JournalError> {
        let first = self.frames.iter().find_map(|frame| frame.ticks).map(|(first, _)| first);
        let Some(first) = first else { return Ok(self.durable) };
        self.ready(first)?;
        let Some(current) = &mut self.current else { return Ok(self.durable) };
        let mark = current.dictionary.mark();
        self.buffer.clear();
        let mut link = current.link;
        for (at, frame) in self.frames.iter().enumerate() {
            let (dictionary, view) = (&mut current.dictionary, &mut self.view);
            let chain = (current.salt, link.check);
            link.check = frame::write(&mut self.buffer, at == 0, chain, |out| {
                frame.write(dictionary, view, out);
            });
        }
        link.bytes += self.buffer.len() as u64;
        current.dirty = true;
        let mut written = current.output.write_all(&self.buffer);
        if written.is_ok() {
            written = current.output.sync();
            current.lost = written.is_err();
        }
        if let Err(error) = written {
            current.dictionary.back_to(mark);
            return Err(JournalError::io("write", &current.path)(error));
        }
        (current.dirty, current.used, current.link) = (false, true, link);
        self.durable = self.appended;
        // One frame is kept for its memory.
        self.frames.truncate(1);
        self.frames[0].clear();
        self.buffer.shrink_to(2 * FRAME_BYTES);
        Ok(self.durable)
    }

    /// Makes the current segment ready for frames, or begins a new one whose first tick is `first`.
    fn ready(&mut self, first: Tick) -> Result<(), JournalError> {
        if let Some(current) = &mut self.current {
            let full =
                current.used && (self.rotate || current.link.bytes >= self.options.segment_bytes);
            if current.dirty && (full || current.lost) {
                // Best effort: its successor says how far it counts.
                let _ = current.output.cut(current.link.bytes);
            }
            if !full && !current.lost {
                if current.dirty {
                    let cut = current.output.cut(current.link.bytes);
                    cut.map_err(JournalError::io("repair", &current.path))?;
                    current.dirty = false;
                }
                return Ok(());
            }
        }
        self.begin(first)
    }

    fn begin(&mut self, first_tick: Tick) -> Result<(), JournalError> {
        let previous = match &self.current {
            Some(current) if current.used => Some(current.link),
            // It was begun for the same tick and never held a frame: the new one replaces it.
            Some(current) => current.previous,
            None => self.last,
        };
        let header = Header {
            created_by: self.options.created_by.clone(),
            first_tick,
            previous,
            start: self.start.clone(),
        };
        let path = segment::path(&self.dir, first_tick);
        let starting = path.with_extension(STARTING);
        let (bytes, check) = header.write();
        let create = || {
            let mut output = self.disk.create(&starting)?;
            output.write_all(&bytes)?;
            output.sync()?;
            self.disk.rename(&starting, &path)?;
            Ok(output)
        };
        let output = create().map_err(JournalError::io("begin", &path))?;
        self.disk.sync_folder(&self.dir).map_err(JournalError::io("make durable", &self.dir))?;
        if let Some(closed) = self.current.take().filter(|current| current.used) {
            self.closed_bytes += closed.link.bytes;
        }
        let link = Link { first_tick, bytes: bytes.len() as u64, check };
        self.rotate = false;
        self.current = Some(Current {
            path,
            output,
            salt: check,
            link,
            previous,
            dictionary: Dictionary::default(),
            used: false,
            dirty: false,
            lost: false,
        });
        Ok(())
    }

    /// Ends the current segment: the next commit begins a new one.
    pub fn rotate(&mut self) {
        self.rotate = true;
    }

    /// The last durable tick.
    pub fn last_tick(&self) -> Option<Tick> {
        self.durable
    }

    /// Durable bytes of all segments.
    pub fn bytes(&self) -> u64 {
        self.closed_bytes + self.current.as_ref().map_or(0, |current| current.link.bytes)
    }

    /// The segment that is being written and its durable bytes; `None` before its first commit.
    pub fn extent(&self) -> Option<(String, u64)> {
        let current = self.current.as_ref().filter(|current| current.used)?;
        Some((segment::name(current.link.first_tick), current.link.bytes))
    }

    /// Every segment that the journal was opened with, and its durable bytes.
    pub fn opened_extents(&self) -> Result<Vec<(String, u64)>, JournalError> {
        let mut extents = Vec::new();
        for (first_tick, _, counts) in segment::chain(&self.dir)? {
            let link = counts.or(self.last.filter(|last| last.first_tick == first_tick));
            extents.extend(link.map(|link| (segment::name(first_tick), link.bytes)));
        }
        Ok(extents)
    }

    /// Bytes appended and not durable yet, before compression: commit when it grows large.
    pub fn pending_bytes(&self) -> usize {
        self.frames.iter().map(FrameBuilder::len).sum()
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Removes closed segments as `retention` allows, oldest first, and says which.
    pub fn retain(&mut self, retention: &Retention, now: Tick) -> Result<Removed, JournalError> {
        let mut removed = Removed::default();
        // The last segment with frames stays: it knows the last tick.
        let kept = match &self.current {
            Some(current) if current.used => current.link.first_tick,
            Some(Current { previous: Some(link), .. }) => link.first_tick,
            _ => self.last.map_or(0, |link| link.first_tick),
        };
        let candidates = retain::candidates(&self.dir, kept, retention.keep_from)?;
        for candidate in candidates {
            if !retention.wants(self.bytes(), candidate.next_tick, now) {
                break;
            }
            let path = &candidate.path;
            self.disk.remove(path).map_err(JournalError::io("remove", path))?;
            self.closed_bytes = self.closed_bytes.saturating_sub(candidate.bytes);
            removed.add(candidate);
        }
        if !removed.segments.is_empty() {
            self.disk
                .sync_folder(&self.dir)
                .map_err(JournalError::io("make durable", &self.dir))?;
        }
        Ok(removed)
    }
}

/// Removes segments that were being started.
fn remove_unfinished(disk: &dyn Disk, dir: &Path) -> Result<(), JournalError> {
    for entry in fs::read_dir(dir).map_err(JournalError::io("list", dir))? {
        let path = entry.map_err(JournalError::io("list", dir))?.path();
        if path.to_str().is_some_and(|path| path.ends_with(STARTING)) {
            disk.remove(&path).map_err(JournalError::io("remove", &path))?;
        }
    }
    Ok(())
}

/// Cuts the torn end; returns the last segment that holds frames, and the bytes of all.
fn repair(disk: &dyn Disk, dir: &Path) -> Result<(Option<Link>, Opened, u64), JournalError> {
    let mut segments = segment::chain(dir)?;
    let mut opened = Opened::default();
    // What the last segment's successor said of it, if that was removed for holding nothing.
    let mut counts = None;
    while let Some((_, path, _)) = segments.last() {
        let mut reader = SegmentReader::open(path, counts)?;
        let (end, torn_bytes) = survey(&mut reader, &mut opened)?;
        opened.repaired_bytes += torn_bytes;
        if end.used {
            // Also where nothing is torn: what was written before a crash of the process alone is
            // read back from the system's cache, and counts as durable from now on.
            disk.open_at(path, end.link.bytes)
                .and_then(|mut file| file.sync())
                .map_err(JournalError::io("repair", path))?;
            opened.segments = segments.len();
            let before = &segments[..segments.len() - 1];
            let before = before.iter().filter_map(|(_, _, link)| *link).map(|link| link.bytes);
            return Ok((Some(end.link), opened, end.link.bytes + before.sum::<u64>()));
        }
        disk.remove(path).map_err(JournalError::io("remove", path))?;
        counts = reader.header.previous;
        segments.pop();
    }
    Ok((None, opened, 0))
}

struct Surveyed {
    link: Link,
    used: bool,
}

/// Reads a segment to its end.
fn survey(
    reader: &mut SegmentReader,
    opened: &mut Opened,
) -> Result<(Surveyed, u64), JournalError> {
    let mut names = Names::default();
    let mut used = false;
    if reader.header.start.is_some() {
        opened.last_start.clone_from(&reader.header.start);
    }
    loop {
        let (offset, outline) = match reader.next()? {
            Step::End { torn_bytes } => {
                return Ok((Surveyed { link: reader.link(), used }, torn_bytes));
            }
            Step::Frame { offset, payload } => (offset, decode::outline(payload, &mut names)),
        };
        let outline = outline.map_err(|bad| reader.senseless(offset, &bad))?;
        used = true;
        opened.last_tick = outline.ticks.last().copied().or(opened.last_tick);
        if let Some(start) = outline.starts.last() {
            opened.last_start = Some(start.clone());
        }
    }
}

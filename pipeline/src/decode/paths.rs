//! Entity paths to dense ids: a cache in front of the registry, so that a row costs one comparison
//! (the same entity as the row before) or one lookup.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use omnify_operators::model::{EntityId, EntityKey};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::door::Door;
use super::reason::{Reason, Reject};

/// A creative as decoders know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// The creative.
    pub(crate) creative: EntityId,
    /// Hash of its account: event ids are unique within one account only.
    pub(crate) scope: u64,
}

/// Hash of a text that stays the same everywhere; never 0, which means "none".
#[inline]
pub(crate) fn text_hash(text: &[u8], seed: u64) -> u64 {
    xxh3_64_with_seed(text, seed).max(1)
}

#[derive(Default)]
struct PathHasher(u64);

impl Hasher for PathHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64_with_seed(bytes, self.0);
    }

    fn write_u8(&mut self, _end_of_text: u8) {}
}

/// The path of the row at hand, and the ids of the paths seen before.
pub(crate) struct Paths {
    door: Arc<Door>,
    known: HashMap<Box<str>, Found, BuildHasherDefault<PathHasher>>,
    path: String,
    ends: [usize; 6],
    count: usize,
    last: Option<(String, Found)>,
}

impl Paths {
    pub(crate) fn new(door: Arc<Door>) -> Paths {
        Paths {
            door,
            known: HashMap::default(),
            path: String::new(),
            ends: [0; 6],
            count: 0,
            last: None,
        }
    }

    /// Starts the path of a row.
    #[inline]
    pub(crate) fn start(&mut self) {
        self.path.clear();
        self.count = 0;
    }

    /// The buffer to which the next segment is to be appended; end it with [`Paths::end_segment`].
    #[inline]
    pub(crate) fn segment(&mut self) -> &mut String {
        if self.count > 0 {
            self.path.push('/');
        }
        &mut self.path
    }

    /// Ends a segment. A `/` in it is replaced by `slash`, if there is one.
    #[inline]
    pub(crate) fn end_segment(&mut self, slash: Option<&str>) {
        if let Some(slash) = slash {
            let start = if self.count > 0 { self.ends[self.count - 1] + 1 } else { 0 };
            if self.path[start..].contains('/') {
                let replaced = self.path[start..].replace('/', slash);
                self.path.truncate(start);
                self.path.push_str(&replaced);
            }
        }
        self.ends[self.count] = self.path.len();
        self.count += 1;
    }

    /// The tenant of the row at hand, if it got that far and may enter.
    pub(crate) fn tenant(&self) -> Option<&str> {
        if self.count == 0 {
            return None;
        }
        let tenant = &self.path[..self.ends[0]];
        (EntityKey::new(&[tenant]).is_ok() && self.door.admits(tenant)).then_some(tenant)
    }

    /// The creative of the path, when all six segments have ended.
    #[inline]
    pub(crate) fn find(&mut self) -> Result<Found, Reject> {
        if let Some((last, found)) = &self.last
            && *last == self.path
        {
            return Ok(*found);
        }
        // A text with another `/` in a segment never equals a known path: those have exactly five.
        let found = match self.known.get(self.path.as_str()) {
            Some(found) => *found,
            None => self.intern()?,
        };
        match &mut self.last {
            Some((last, last_found)) => {
                last.clear();
                last.push_str(&self.path);
                *last_found = found;
            }
            None => self.last = Some((self.path.clone(), found)),
        }
        Ok(found)
    }

    #[cold]
    fn intern(&mut self) -> Result<Found, Reject> {
        let mut start = 0;
        let mut segments = [""; 6];
        for (segment, end) in segments.iter_mut().zip(self.ends) {
            *segment = &self.path[start..end];
            start = end + 1;
        }
        let found = intern(&self.door, &segments)?;
        self.known.insert(self.path.as_str().into(), found);
        Ok(found)
    }
}

/// The creative of six segments, checked and interned.
pub(crate) fn intern(door: &Door, segments: &[&str; 6]) -> Result<Found, Reject> {
    let key = EntityKey::new(segments)
        .map_err(|error| Reject::new(Reason::BadName, error.to_string()))?;
    if !door.admits(segments[0]) {
        let detail = format!("`{}` is not one of validation.tenants", segments[0]);
        return Err(Reject::new(Reason::UnknownTenant, detail));
    }
    let account = segments[..3].join("/");
    Ok(Found { creative: door.registry.intern(&key), scope: xxh3_64(account.as_bytes()) })
}

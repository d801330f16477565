//! A market that several readers and writers share: the lock, and the bounded buffer of its feed.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use omnify_operators::model::{EntityKey, EventTime};

use crate::action::{ActionError, Applied, EntitySettings, Setting};
use crate::faults::{Fault, Faults};
use crate::feed::FeedItem;
use crate::market::Market;

/// A market behind a lock with the newest part of its feed. Time moves only by
/// [`Platform::advance_to`].
#[derive(Debug)]
pub struct Platform {
    inner: Mutex<Inner>,
    faults: Faults,
    keys: Vec<EntityKey>,
}

#[derive(Debug)]
struct Inner {
    market: Market,
    items: VecDeque<FeedItem>,
    /// Cursor of the first item held.
    oldest: u64,
    /// Items held at most; the oldest fall off.
    capacity: usize,
    /// Actions received.
    actions: u64,
    scratch: Vec<FeedItem>,
}

/// A part of the feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedPage {
    /// The items, in order.
    pub items: Vec<FeedItem>,
    /// Where to go on.
    pub next: u64,
    /// Market time up to which a reader at `next` knows everything.
    pub complete_us: EventTime,
}

/// The cursor is older than the buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "cursor {after} is no longer held; go on with after={oldest} (items in between are lost to this reader), and read faster or hold more"
)]
pub struct FeedGone {
    /// The cursor asked for.
    pub after: u64,
    /// The oldest cursor held.
    pub oldest: u64,
}

impl Platform {
    /// A platform that holds the newest `capacity` feed items (80 bytes each).
    pub fn new(market: Market, capacity: usize, faults: Faults) -> Platform {
        let keys = market.creatives().iter().map(|creative| creative.key.clone()).collect();
        let inner = Inner {
            market,
            items: VecDeque::new(),
            oldest: 0,
            capacity: capacity.max(1),
            actions: 0,
            scratch: Vec::new(),
        };
        Platform { inner: Mutex::new(inner), faults, keys }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // The market's methods leave no half-done state behind a panic that matters more than
        // going on would.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Plays the market up to `time`; returns the cursor behind the newest item. The lock is
    /// released after every step, so readers never wait for longer than one.
    pub fn advance_to(&self, time: EventTime) -> u64 {
        loop {
            let mut inner = self.lock();
            let inner = &mut *inner;
            let next = inner.market.now_us().saturating_add(inner.market.config().step_us);
            if next > time {
                return inner.oldest + inner.items.len() as u64;
            }
            inner.scratch.clear();
            inner.market.advance_to(next, &mut inner.scratch);
            inner.items.extend(inner.scratch.drain(..));
            let surplus = inner.items.len().saturating_sub(inner.capacity);
            inner.items.drain(..surplus);
            inner.oldest += surplus as u64;
        }
    }

    /// Up to `limit` items from cursor `after` on. A cursor beyond the end gets none.
    pub fn feed(&self, after: u64, limit: usize) -> Result<FeedPage, FeedGone> {
        let inner = self.lock();
        let oldest = inner.oldest;
        let skip = after.checked_sub(oldest).ok_or(FeedGone { after, oldest })?;
        let skip = usize::try_from(skip).unwrap_or(usize::MAX).min(inner.items.len());
        let end = skip.saturating_add(limit).min(inner.items.len());
        let items: Vec<FeedItem> = inner.items.range(skip..end).copied().collect();
        let complete_us = match inner.items.get(end) {
            Some(next) => next.known_us() - 1,
            None => inner.market.now_us(),
        };
        Ok(FeedPage { items, next: oldest + end as u64, complete_us })
    }

    /// [`Market::apply`] without faults.
    pub fn apply(
        &self,
        owner: &EntityKey,
        desired: &Setting,
        before: Option<&Setting>,
    ) -> Result<Applied, ActionError> {
        self.lock().market.apply(owner, desired, before)
    }

    /// [`Market::settings`].
    pub fn settings(&self, key: &EntityKey) -> Option<EntitySettings> {
        self.lock().market.settings(key)
    }

    /// Reads from the market.
    pub fn read<T>(&self, read: impl FnOnce(&Market) -> T) -> T {
        read(&self.lock().market)
    }

    /// Key of the creative that a feed item names by index; `None` for an index of another market.
    pub fn creative_key(&self, index: u32) -> Option<&EntityKey> {
        self.keys.get(index as usize)
    }

    /// Numbers an action and says how it shall fail.
    pub(crate) fn next_fault(&self) -> Option<Fault> {
        let mut inner = self.lock();
        let number = inner.actions;
        inner.actions += 1;
        self.faults.of(number)
    }

    pub(crate) fn faults(&self) -> &Faults {
        &self.faults
    }
}

//! A growing list that is copied in no time: what the stage remembers of thousands of entities.
//!
//! Items live in pages behind `Arc`s. A clone shares all pages; the first change of a page that is
//! still shared copies that page alone. So a copy of the whole stage can be taken between two
//! ticks, and its price is paid bit by bit by the ticks that change something, while it lives.
//! Positions are never reused; nothing is ever removed.

use std::ops::{Index, IndexMut};
use std::sync::Arc;

/// Items that are copied together. Some items are a kilobyte and more.
const PAGE: usize = 16;

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Pages<T> {
    pages: Vec<Arc<Vec<T>>>,
}

impl<T> Default for Pages<T> {
    fn default() -> Self {
        Pages { pages: Vec::new() }
    }
}

impl<T: Clone> Pages<T> {
    /// Number of items.
    pub(crate) fn len(&self) -> usize {
        self.pages.last().map_or(0, |last| (self.pages.len() - 1) * PAGE + last.len())
    }

    /// Adds an item at the end and returns its position.
    pub(crate) fn push(&mut self, item: T) -> usize {
        let at = self.len();
        if at.is_multiple_of(PAGE) {
            self.pages.push(Arc::new(Vec::with_capacity(PAGE)));
        }
        if let Some(last) = self.pages.last_mut() {
            Arc::make_mut(last).push(item);
        }
        at
    }

    /// All items in the order of their positions.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.pages.iter().flat_map(|page| page.iter())
    }
}

impl<T> Index<usize> for Pages<T> {
    type Output = T;

    fn index(&self, at: usize) -> &T {
        &self.pages[at / PAGE][at % PAGE]
    }
}

impl<T: Clone> IndexMut<usize> for Pages<T> {
    fn index_mut(&mut self, at: usize) -> &mut T {
        &mut Arc::make_mut(&mut self.pages[at / PAGE])[at % PAGE]
    }
}

impl<T: Clone> FromIterator<T> for Pages<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        let mut pages = Pages::default();
        items.into_iter().for_each(|item| {
            pages.push(item);
        });
        pages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_keeps_what_was_and_shares_what_is_unchanged() {
        let mut pages: Pages<usize> = (0..5 * PAGE + 3).collect();
        let copy = pages.clone();
        pages[PAGE] = 7;
        assert_eq!(pages.push(8), 5 * PAGE + 3);
        assert_eq!((pages[PAGE], copy[PAGE]), (7, PAGE));
        assert_eq!((pages.len(), copy.len()), (5 * PAGE + 4, 5 * PAGE + 3));
        let shared = |at: usize| Arc::ptr_eq(&pages.pages[at], &copy.pages[at]);
        assert_eq!((0..6).map(shared).collect::<Vec<_>>(), [true, false, true, true, true, false]);
        assert!(copy.iter().copied().eq(0..5 * PAGE + 3));
        assert_eq!(Pages::<u8>::default().len(), 0);
    }
}

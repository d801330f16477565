//! A list with fixed positions that is copied in no time: what the stage remembers of thousands of
//! entities.
//!
//! Items live in pages behind `Arc`s. A clone shares all pages; the first change of a page that is
//! still shared copies that page alone. So a copy of the whole stage can be taken between two
//! ticks, and its price is paid bit by bit by the ticks that change something, while it lives.
//! An item keeps its position until it is removed; the next new one takes the lowest that is free.

use std::collections::BTreeSet;
use std::ops::{Index, IndexMut};
use std::sync::Arc;

/// Items that are copied together. Some items are a kilobyte and more.
const PAGE: usize = 16;

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Pages<T> {
    pages: Vec<Arc<Vec<Option<T>>>>,
    free: Arc<BTreeSet<usize>>,
}

impl<T> Default for Pages<T> {
    fn default() -> Self {
        Pages { pages: Vec::new(), free: Arc::default() }
    }
}

impl<T: Clone> Pages<T> {
    /// Positions given out so far; those below that are free are among them.
    pub(crate) fn end(&self) -> usize {
        self.pages.last().map_or(0, |last| (self.pages.len() - 1) * PAGE + last.len())
    }

    /// Adds an item and returns its position.
    pub(crate) fn insert(&mut self, item: T) -> usize {
        if !self.free.is_empty()
            && let Some(at) = Arc::make_mut(&mut self.free).pop_first()
        {
            self.slot(at).replace(item);
            return at;
        }
        self.push(Some(item))
    }

    fn push(&mut self, item: Option<T>) -> usize {
        let at = self.end();
        if at.is_multiple_of(PAGE) {
            self.pages.push(Arc::new(Vec::with_capacity(PAGE)));
        }
        if let Some(last) = self.pages.last_mut() {
            Arc::make_mut(last).push(item);
        }
        at
    }

    /// Removes the item at a position, which becomes free.
    pub(crate) fn remove(&mut self, at: usize) {
        if self.slot(at).take().is_some() {
            Arc::make_mut(&mut self.free).insert(at);
        }
    }

    fn slot(&mut self, at: usize) -> &mut Option<T> {
        &mut Arc::make_mut(&mut self.pages[at / PAGE])[at % PAGE]
    }

    /// The item at a position, if there is one.
    pub(crate) fn get(&self, at: usize) -> Option<&T> {
        self.pages.get(at / PAGE)?.get(at % PAGE)?.as_ref()
    }

    /// What is at each position below the end.
    pub(crate) fn slots(&self) -> impl Iterator<Item = Option<&T>> {
        self.pages.iter().flat_map(|page| page.iter().map(Option::as_ref))
    }

    /// All items with their positions, which ascend.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, &T)> {
        self.slots().enumerate().filter_map(|(at, item)| Some((at, item?)))
    }

    /// The positions of the items that `wanted` picks.
    pub(crate) fn positions(&self, wanted: impl Fn(&T) -> bool) -> Vec<usize> {
        self.iter().filter(|(_, item)| wanted(item)).map(|(at, _)| at).collect()
    }
}

impl<T> Index<usize> for Pages<T> {
    type Output = T;

    fn index(&self, at: usize) -> &T {
        self.pages[at / PAGE][at % PAGE].as_ref().expect("an item that was not removed")
    }
}

impl<T: Clone> IndexMut<usize> for Pages<T> {
    fn index_mut(&mut self, at: usize) -> &mut T {
        self.slot(at).as_mut().expect("an item that was not removed")
    }
}

/// Items at the positions in which they come.
impl<T: Clone> FromIterator<Option<T>> for Pages<T> {
    fn from_iter<I: IntoIterator<Item = Option<T>>>(items: I) -> Self {
        let mut pages = Pages::default();
        for item in items {
            let is_free = item.is_none();
            let at = pages.push(item);
            if is_free {
                Arc::make_mut(&mut pages.free).insert(at);
            }
        }
        pages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_keeps_what_was_and_shares_what_is_unchanged() {
        let mut pages: Pages<usize> = (0..5 * PAGE + 3).map(Some).collect();
        let copy = pages.clone();
        pages[PAGE] = 7;
        assert_eq!(pages.insert(8), 5 * PAGE + 3);
        assert_eq!((pages[PAGE], copy[PAGE]), (7, PAGE));
        assert_eq!((pages.end(), copy.end()), (5 * PAGE + 4, 5 * PAGE + 3));
        let shared = |at: usize| Arc::ptr_eq(&pages.pages[at], &copy.pages[at]);
        assert_eq!((0..6).map(shared).collect::<Vec<_>>(), [true, false, true, true, true, false]);
        assert!(copy.iter().all(|(at, item)| at == *item));
        assert_eq!(Pages::<u8>::default().end(), 0);
    }

    #[test]
    fn positions_that_are_free_are_taken_again_the_lowest_first() {
        let mut pages: Pages<char> = "abcd".chars().map(Some).collect();
        let copy = pages.clone();
        pages.remove(2);
        pages.remove(0);
        assert_eq!((pages.get(0), pages.get(1), pages.get(9)), (None, Some(&'b'), None));
        let again: Pages<char> = pages.slots().map(Option::<&char>::copied).collect();
        for mut pages in [pages, again] {
            assert_eq!([pages.insert('e'), pages.insert('f'), pages.insert('g')], [0, 2, 4]);
            let all: String = pages.iter().map(|(_, item)| *item).collect();
            assert_eq!(all, "ebfdg");
            assert_eq!(pages.positions(|item| *item > 'e'), [2, 4]);
        }
        assert_eq!(copy.slots().flatten().copied().collect::<String>(), "abcd");
    }
}

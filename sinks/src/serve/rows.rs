//! Rows by dense id in two levels of copy-on-write pieces.
//!
//! Cloning copies one pointer per page. The first change of a row after that copies its page (64
//! pointers) and its chunk (4 rows, about 3 KiB), so what a publication costs is spread over the
//! changes that follow it, in proportion to them.

use std::sync::Arc;

use super::snapshot::Row;

/// Rows copied together: siblings tend to change together, strangers do not.
const CHUNK_ROWS: usize = 4;
/// Chunks of a page.
const PAGE_CHUNKS: usize = 64;
const PAGE_ROWS: usize = CHUNK_ROWS * PAGE_CHUNKS;

type Chunk = [Option<Row>; CHUNK_ROWS];
type Page = Vec<Option<Arc<Chunk>>>;

/// Rows by dense id.
#[derive(Clone, Default)]
pub(super) struct Rows(Vec<Arc<Page>>);

impl Rows {
    /// The row of `id`.
    pub(super) fn get(&self, id: u32) -> Option<&Row> {
        let (page, chunk, at) = place(id);
        self.0.get(page)?.get(chunk)?.as_ref()?[at].as_ref()
    }

    /// All rows, by id.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Row> {
        self.0
            .iter()
            .flat_map(|page| page.iter().flatten())
            .flat_map(|chunk| chunk.iter().flatten())
    }

    /// The row of `id` for writing; a miss copies nothing.
    pub(super) fn get_mut(&mut self, id: u32) -> Option<&mut Row> {
        self.get(id)?;
        self.slot(id).as_mut()
    }

    /// Forgets the row of `id`.
    pub(super) fn remove(&mut self, id: u32) {
        if self.get(id).is_none() {
            return;
        }
        *self.slot(id) = None;
        let (page, chunk, _) = place(id);
        let page = Arc::make_mut(&mut self.0[page]);
        if page[chunk].as_ref().is_some_and(|chunk| chunk.iter().all(Option::is_none)) {
            page[chunk] = None;
        }
    }

    /// Ids below which all rows are.
    pub(super) fn bound(&self) -> u32 {
        u32::try_from(self.0.len() * PAGE_ROWS).unwrap_or(u32::MAX)
    }

    /// The place of `id`'s row for writing, made if there is none.
    pub(super) fn slot(&mut self, id: u32) -> &mut Option<Row> {
        let (page, chunk, at) = place(id);
        while self.0.len() <= page {
            self.0.push(Arc::new(vec![None; PAGE_CHUNKS]));
        }
        let chunk = &mut Arc::make_mut(&mut self.0[page])[chunk];
        &mut Arc::make_mut(chunk.get_or_insert_with(|| Arc::new([const { None }; CHUNK_ROWS])))[at]
    }
}

const fn place(id: u32) -> (usize, usize, usize) {
    let id = id as usize;
    (id / PAGE_ROWS, id % PAGE_ROWS / CHUNK_ROWS, id % CHUNK_ROWS)
}

//! From the parts of all workers to one complete frame.

use crate::graph::Part;
use crate::model::{Frame, RegistryView};

/// Merges the parts of one tick into a frame whose rows are in the stable order of entities.
pub fn assemble(parts: &mut [Part], view: &mut RegistryView) -> Frame {
    let tick = parts.first().map_or(0, |part| part.tick);
    let rows = parts.iter_mut().flat_map(|part| std::mem::take(&mut part.rows));
    let mut rows: Vec<_> = rows.map(|row| (view.info(row.entity).clone(), row)).collect();
    rows.sort_unstable_by(|(a, _), (b, _)| (a.order, &a.key).cmp(&(b.order, &b.key)));
    Frame { tick, rows }
}

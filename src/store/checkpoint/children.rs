//! Child listings in a checkpoint: those that are pending are stored whole; the others are only counted.
//!
//! Their number is limited where a page is staged (`room`).

use crate::error::Result;

use super::super::page::child_bytes;
use super::super::rows::{CHILD_IDS, CHILD_STREAMS, CHILDREN, ChildIdRow, Key};
use super::super::run_handle::Run;
use super::super::tables::{Change, Rows};
use super::form::{ChildPart, ChildStreamPart, Position};

/// Adds the child listings of a run to a position.
pub(super) fn children_part(run: &Run, rows: &impl Rows, position: &mut Position) -> Result<()> {
    let prefix = run.run_key();
    for (tail, row) in rows.all(&CHILDREN, &prefix)? {
        position.children.push(ChildPart::of(run.number_in(CHILDREN.name, &tail)?, row));
    }
    for (name, row) in rows.all(&CHILD_STREAMS, &prefix)? {
        position.child_streams.insert(run.name(&name)?, ChildStreamPart::of(&row));
    }
    Ok(())
}

/// Restores them. Which exhausted ones were named is not known any more.
pub(super) fn restore_children(change: &Change<'_>, prefix: &Key, position: &Position) -> Result<()> {
    let mut streams: Vec<_> =
        position.child_streams.iter().map(|(name, part)| (name.as_str(), part.row())).collect();
    for part in &position.children {
        let row = part.row();
        let bytes = child_bytes(&row.stream, &row.parent, &row.data, row.cursor.as_deref());
        if let Some((_, counts)) = streams.iter_mut().find(|(name, _)| *name == row.stream) {
            counts.pending_bytes += bytes;
        }
        let id = prefix.clone().and_inner_name(&row.stream).and_name(&row.parent);
        change.put(&CHILD_IDS, &id, &ChildIdRow { no: part.no })?;
        change.put(&CHILDREN, &prefix.clone().and_number(part.no), &row)?;
    }
    for (name, row) in streams {
        change.put(&CHILD_STREAMS, &prefix.clone().and_name(name), &row)?;
    }
    Ok(())
}

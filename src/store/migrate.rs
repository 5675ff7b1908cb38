//! A store of format 1 becomes one of format 2.
//!
//! Format 2 adds tables, which are empty where they are not there, and changes no row. `attachment_ids` has by their whole ids what `seen_attachments` has by hashes
//! of them: a row moves over when its attachment is named again, and until then the hash leads to it. So however many
//! attachments a unit has seen, opening its store moves none of them. `artifact_ids` gets what the unfinished runs have
//! uploaded; that is bounded by what may be unsettled at a time.
//!
//! All of it is one transaction: killed amid it, the store is of format 1 still, and the next opening begins anew. The
//! dump reads a store of format 1 as it is.

use crate::error::Result;

use super::rows::{
    ARTIFACT_IDS, ATTACHMENTS, ArtifactIdRow, ArtifactUser, BATCHES, FormatRow, Key, META, UNITS, number_of,
    run_key,
};
use super::tables::{Change, FORMAT, FORMAT_KEY, Rows, Tables};

/// Brings a store up to the newest format.
///
/// # Errors
/// `Corrupt`, `Io`; the store is of the format that it was of.
pub(super) fn migrate(tables: &Tables) -> Result<()> {
    let format_key = Key::name(FORMAT_KEY);
    let row = tables.view(|rows| rows.need(&META, &format_key))?;
    if row.format >= FORMAT {
        return Ok(());
    }
    tables.change(|change| {
        let none = Key::name("");
        for (_, unit) in change.all(&UNITS, &none)? {
            if let Some(run) = unit.run {
                note_artifacts(change, &run_key(unit.no, run))?;
            }
        }
        change.put(&META, &format_key, &FormatRow { format: FORMAT, ..row })
    })
}

/// Notes the artifact ids that the rows of a run name.
fn note_artifacts(change: &Change<'_>, run: &Key) -> Result<()> {
    let number = |table: &str, tail: &[u8]| {
        number_of(tail).map_err(|error| change.tables().damaged(table, run, error.to_string()))
    };
    let mut used = Vec::new();
    change.scan(&BATCHES, run, run, |tail, batch| {
        if let Some(id) = batch.artifact {
            used.push((id, ArtifactUser::Batch(number(BATCHES.name, tail)?)));
        }
        Ok(true)
    })?;
    change.scan(&ATTACHMENTS, run, run, |tail, attachment| {
        if let Some((id, _)) = attachment.artifact {
            used.push((id, ArtifactUser::Attachment(number(ATTACHMENTS.name, tail)?)));
        }
        Ok(true)
    })?;
    for (id, by) in used {
        change.put(&ARTIFACT_IDS, &run.clone().and_name(&id), &ArtifactIdRow { by })?;
    }
    Ok(())
}

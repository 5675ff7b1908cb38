//! The artifact ids that a run has used, for whatever upload: each is accepted once.
//!
//! Two uploads under one id would be announced as one artifact, and one of them lost. So the transaction that stores the id
//! of an upload takes it here, `unit, run, artifact id -> when`, or is told that it is taken. The rows go with their run.

use crate::error::Result;
use crate::model::{ArtifactId, Micros};

use super::rows::{ATTACHMENTS, BATCHES, Key, USED, UsedRow};
use super::tables::{Change, Rows};

/// Takes an id; false if the run has used it before.
pub(super) fn take(change: &Change<'_>, run: &Key, artifact: &ArtifactId, used_at: Micros) -> Result<bool> {
    let key = run.clone().and_name(artifact.as_str());
    if change.get(&USED, &key)?.is_some() {
        return Ok(false);
    }
    change.put(&USED, &key, &UsedRow { used_at })?;
    Ok(true)
}

/// Takes the ids under which the rows of a run have uploads: of a run that was begun without this table, or that a
/// checkpoint brought back.
pub(super) fn take_those_of_rows(change: &Change<'_>, run: &Key, used_at: Micros) -> Result<()> {
    let mut ids = Vec::new();
    change.scan(&BATCHES, run, run, |_, batch| {
        ids.extend(batch.artifact);
        Ok(true)
    })?;
    change.scan(&ATTACHMENTS, run, run, |_, attachment| {
        ids.extend(attachment.artifact.map(|(id, _)| id));
        Ok(true)
    })?;
    for id in ids {
        change.put(&USED, &run.clone().and_name(&id), &UsedRow { used_at })?;
    }
    Ok(())
}

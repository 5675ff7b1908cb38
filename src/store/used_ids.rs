//! The artifact ids that a run has used, for any upload: each is accepted once.
//!
//! Two uploads under one id would be announced as one artifact, and one of them would be lost. So the transaction
//! that stores the id of an upload, or acknowledges an upload whose id was not stored before, claims it here, `unit,
//! run, artifact id -> when`, or finds that it is taken. The rows are removed with their run.
//!
//! A checkpoint has no room for all of them: it lists the newest [`NEWEST_MAX`], each as 32 bits of a hash. A false
//! match (one in two million uploads) only causes the upload to be prepared again. A checkpoint is saved before an id
//! is confirmed or announced, and it holds the id with its batch or attachment. So [`newest`] takes the ids from
//! there, and saving reads nothing else.

use std::collections::HashSet;

use crate::error::Result;
use crate::model::{ArtifactId, Micros};

use super::digest::name_hash;
use super::rows::{ATTACHMENTS, BATCHES, Key, USED, USED_NEWEST, UsedNewestRow, UsedRow};
use super::tables::{Change, Rows};

/// The most artifact ids that a checkpoint lists.
const NEWEST_MAX: usize = 2_000;

/// Claims an id; false if the run has used it before.
pub(super) fn take(change: &Change<'_>, run: &Key, artifact: &ArtifactId, used_at: Micros) -> Result<bool> {
    let key = run.clone().and_name(artifact.as_str());
    let newest = change.get(&USED_NEWEST, run)?.unwrap_or_default();
    if change.get(&USED, &key)?.is_some() || newest.hashes.contains(&short_hash(artifact.as_str())) {
        return Ok(false);
    }
    change.put(&USED, &key, &UsedRow { used_at })?;
    Ok(true)
}

/// Claims the ids of the uploads in the rows of a run, for a run that began without this table, or that a checkpoint
/// restored.
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

fn short_hash(artifact: &str) -> u32 {
    let [_, _, _, _, bytes @ ..] = name_hash(artifact).to_be_bytes();
    u32::from_be_bytes(bytes)
}

/// The newest ids that a run has used, for a checkpoint that holds `artifacts`: those of the checkpoint before, and
/// these.
pub(super) fn newest<'a>(
    rows: &impl Rows,
    run: &Key,
    artifacts: impl Iterator<Item = &'a str>,
) -> Result<Vec<u32>> {
    let mut hashes = rows.get(&USED_NEWEST, run)?.unwrap_or_default().hashes;
    let mut known: HashSet<u32> = hashes.iter().copied().collect();
    hashes.extend(artifacts.map(short_hash).filter(|&hash| known.insert(hash)));
    hashes.drain(..hashes.len().saturating_sub(NEWEST_MAX));
    Ok(hashes)
}

/// Keeps the list of a checkpoint that was saved, or that is being restored.
pub(super) fn keep_newest(change: &Change<'_>, run: &Key, hashes: &[u32]) -> Result<()> {
    if hashes.is_empty() {
        return Ok(());
    }
    let hashes = hashes.iter().copied().skip(hashes.len().saturating_sub(NEWEST_MAX)).collect();
    change.put(&USED_NEWEST, run, &UsedNewestRow { hashes })
}

#[cfg(test)]
mod tests {
    use super::super::Store;
    use super::super::tables::Tables;
    use super::*;

    fn id(number: usize) -> ArtifactId {
        ArtifactId::new(format!("artifact-{number}")).unwrap()
    }

    #[test]
    fn a_checkpoint_names_the_newest_2000_and_those_are_not_accepted_on_another_machine() {
        let dir = tempfile::tempdir().unwrap();
        let open = |name: &str| Store::open(dir.path().join(name)).unwrap().sync_unit("unit").unwrap();
        let run = Key::unit(1).and_number(1);
        let (here, there) = (open("here.redb"), open("there.redb"));
        let tables: [&Tables; 2] = [&here.inner.tables, &there.inner.tables];
        let mut hashes = Vec::new();
        for save in 0..250 {
            let ids: Vec<_> = (save * 10..save * 10 + 12).map(|number| id(number).to_string()).collect();
            hashes = tables[0]
                .change(|change| {
                    let hashes = newest(change, &run, ids.iter().map(String::as_str))?;
                    keep_newest(change, &run, &hashes)?;
                    Ok(hashes)
                })
                .unwrap();
        }
        assert_eq!(hashes.len(), NEWEST_MAX);
        let taken = tables[1].change(|change| {
            keep_newest(change, &run, &hashes)?;
            (0..2_600).map(|number| take(change, &run, &id(number), Micros(1))).collect::<Result<Vec<_>>>()
        });
        for (number, taken) in taken.unwrap().into_iter().enumerate() {
            // Each of the 2,502 was named once, two of them by two checkpoints.
            assert_eq!(taken, !(502..2_502).contains(&number), "{number}");
        }
    }
}

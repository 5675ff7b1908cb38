//! The states of batches on their way to the platform. Each move changes a batch's row and the figures of its run.

use crate::error::{Error, Result};
use crate::model::{ArtifactId, Micros};
use crate::transfer::{Event, State, recount};

use super::super::rows::{BATCHES, BatchRow, BatchState, Dates, RunRow, TYPES, TypeRow};
use super::super::run_handle::Run;
use super::super::tables::{Change, Rows};
use super::super::uploads::batch_moved;
use super::super::used_ids;
use super::payload;

/// What a message contains about a batch, except its artifact id.
#[derive(Debug, Clone)]
pub(crate) struct BatchInfo {
    pub(crate) seq: u64,
    pub(crate) item_type: String,
    pub(crate) items: u32,
    pub(crate) dates: Dates,
}

impl BatchInfo {
    /// A batch whose number its owner knows.
    pub(crate) fn new(
        item_type: String,
        items: u32,
        created: Option<(Micros, Micros)>,
        modified: Option<(Micros, Micros)>,
    ) -> Self {
        Self { seq: 0, item_type, items, dates: Dates { created, modified } }
    }

    pub(super) fn of(seq: u64, row: &BatchRow) -> Self {
        Self { seq, item_type: row.item_type.clone(), items: row.items, dates: row.dates }
    }
}

/// A batch on its way to the platform.
#[derive(Debug, Clone)]
pub(crate) struct UnsettledBatch {
    pub(crate) info: BatchInfo,
    pub(crate) state: State,
    /// The id that is stored.
    pub(crate) artifact: Option<ArtifactId>,
}

impl Run {
    /// The gzip member of a batch.
    pub(crate) fn payload(&self, seq: u64) -> Result<Vec<u8>> {
        let key = self.batch_key(seq);
        self.look(|rows, _| payload::read(rows, &key, &rows.need(&BATCHES, &key)?))
    }

    /// The batches that are staged or uploaded, in order.
    pub(crate) fn unsettled(&self) -> Result<Vec<UnsettledBatch>> {
        let rows = self.look(|rows, _| rows.all(&BATCHES, &self.run_key()))?;
        let mut unsettled = Vec::new();
        for (tail, row) in rows {
            let seq = self.number_in(BATCHES.name, &tail)?;
            let info = BatchInfo::of(seq, &row);
            let state = row.transfer_state(self.epoch);
            let artifact = match (state, row.artifact) {
                (State::Staged(_), _) => None,
                (State::Uploaded(_), Some(artifact)) => Some(ArtifactId::new(artifact)?),
                (State::Uploaded(_), None) => {
                    let key = self.batch_key(seq);
                    return Err(self.inner.tables.damaged(BATCHES.name, &key, "it is uploaded under no id"));
                }
                _ => continue,
            };
            unsettled.push(UnsettledBatch { info, state, artifact });
        }
        Ok(unsettled)
    }

    /// Batches that are confirmed and in no message, in order.
    pub(crate) fn confirmed(&self) -> Result<Vec<(BatchInfo, String)>> {
        let rows = self.look(|rows, _| rows.all(&BATCHES, &self.run_key()))?;
        rows.into_iter()
            .filter(|(_, row)| row.state == BatchState::Confirmed)
            .map(|(tail, row)| {
                Ok((
                    BatchInfo::of(self.number_in(BATCHES.name, &tail)?, &row),
                    row.artifact.unwrap_or_default(),
                ))
            })
            .collect()
    }

    /// Stores the id of an upload. Returns false, and stores nothing, if the run has used the id before.
    ///
    /// # Durability
    /// When this returns `Ok`, the id survives power loss, so it may be confirmed.
    pub(crate) fn uploaded(&self, seq: u64, artifact: &ArtifactId) -> Result<bool> {
        Ok(self.settle_batches(&[(seq, BatchSettling::Uploaded(artifact.clone()))])?.is_empty())
    }

    /// Stores what happened to batches, in one transaction. Returns those whose id the run has used before: nothing of
    /// them is stored.
    ///
    /// # Durability
    /// When this returns `Ok`, all of it survives power loss.
    ///
    /// # Errors
    /// `Invalid` if a batch is not in a state that allows it, or is stored under another id; `Fenced`, `Corrupt`, `Io`.
    /// Nothing of the whole group is stored.
    pub(crate) fn settle_batches(&self, group: &[(u64, BatchSettling)]) -> Result<Vec<u64>> {
        self.change(|change, row| settle(self, change, row, group))
    }
}

/// What happened to a batch.
#[derive(Debug)]
pub(crate) enum BatchSettling {
    /// The platform has its bytes, under this id.
    Uploaded(ArtifactId),
    /// The platform has it for good: it confirmed the upload, or needs no confirmation. The bytes are dropped.
    Confirmed,
    /// The confirmation was refused for good: the batch must be uploaded again, under another id.
    GivenUp,
}

/// Stores what happened to batches. Returns those whose id the run has used before: nothing of them is stored.
pub(super) fn settle(
    run: &Run,
    change: &Change<'_>,
    row: &mut RunRow,
    group: &[(u64, BatchSettling)],
) -> Result<Vec<u64>> {
    let mut used = Vec::new();
    for (seq, settling) in group {
        if !settle_one(run, change, row, *seq, settling)? {
            used.push(*seq);
        }
    }
    Ok(used)
}

/// Stores what happened to one batch. Returns false, and stores nothing, if the run has used the id before.
fn settle_one(
    run: &Run,
    change: &Change<'_>,
    row: &mut RunRow,
    seq: u64,
    settling: &BatchSettling,
) -> Result<bool> {
    let mut batch = need_batch(run, change, seq)?;
    let events = match settling {
        BatchSettling::Uploaded(artifact) => {
            if !matches!(batch.transfer_state(run.epoch), State::Staged(_)) {
                return match batch.artifact {
                    Some(held) if held == artifact.as_str() => Ok(true),
                    held => Err(Error::Invalid {
                        what: format!("the artifact id {artifact} of batch {seq}"),
                        reason: format!("the batch was uploaded as {}", held.unwrap_or_default()),
                    }),
                };
            }
            let now = Micros::from_time(run.inner.clock.now());
            if !used_ids::take(change, &run.run_key(), artifact, now)? {
                return Ok(false);
            }
            batch.artifact = Some(artifact.to_string());
            batch.uploaded_in = run.epoch;
            [Event::Uploaded, Event::IdStored]
        }
        BatchSettling::Confirmed => [Event::Confirmed, Event::ConfirmStored],
        BatchSettling::GivenUp => [Event::ConfirmRefused, Event::GivingUpStored],
    };
    move_batch(run, change, row, seq, batch, &events, 0)?;
    Ok(true)
}

/// Records that a batch was delivered without a message. Returns false, and stores nothing, if the run has used the
/// id before.
pub(super) fn acknowledge(run: &Run, seq: u64, artifact: &ArtifactId) -> Result<bool> {
    run.change(|change, row| {
        let batch = need_batch(run, change, seq)?;
        let used_at = Micros::from_time(run.inner.clock.now());
        if batch.artifact.is_none() && !used_ids::take(change, &run.run_key(), artifact, used_at)? {
            return Ok(false);
        }
        let batch = move_batch(run, change, row, seq, batch, &[Event::Acknowledged], 0)?;
        count(run, change, &batch.item_type, |counts| counts.last_artifact = Some(artifact.to_string()))?;
        Ok(true)
    })
}

/// Moves a batch to another state, in its row and in the figures of its run. Its bytes are removed when the platform
/// has them for good, and its row when it is delivered. `message`: the message that names it, if there is one.
pub(in crate::store) fn move_batch(
    run: &Run,
    change: &Change<'_>,
    row: &mut RunRow,
    seq: u64,
    mut batch: BatchRow,
    events: &[Event],
    message: u64,
) -> Result<BatchRow> {
    let key = run.batch_key(seq);
    let state = batch.transfer_state(run.epoch);
    let after = batch_moved(run, seq, state, events)?;
    batch.set_transfer_state(after, message);
    let (was, is) = (state.counts(), after.counts());
    recount(&mut row.open_batches, was.open, is.open, 1);
    if (was.confirmed, was.announced) != (is.confirmed, is.announced) {
        let items = u64::from(batch.items);
        count(run, change, &batch.item_type, |counts| {
            recount(&mut counts.confirmed, was.confirmed, is.confirmed, items);
            recount(&mut counts.announced, was.announced, is.announced, items);
            recount(&mut counts.artifacts_announced, was.announced, is.announced, 1);
            recount(&mut counts.announced_bytes, was.announced, is.announced, batch.gzip_bytes);
        })?;
    }
    if is.confirmed && !was.confirmed {
        payload::remove(change, &key)?;
    }
    if after == State::Delivered {
        change.remove(&BATCHES, &key)?;
    } else {
        change.put(&BATCHES, &key, &batch)?;
    }
    Ok(batch)
}

/// Records that a saved checkpoint contains the uploaded batches.
pub(in crate::store) fn batches_saved(run: &Run, change: &Change<'_>, row: &mut RunRow) -> Result<()> {
    for (seq, batch) in batches_in(run, change, BatchState::Uploaded)? {
        if !batch.saved {
            move_batch(run, change, row, seq, batch, &[Event::Saved], 0)?;
        }
    }
    Ok(())
}

fn need_batch(run: &Run, change: &Change<'_>, seq: u64) -> Result<BatchRow> {
    change.get(&BATCHES, &run.batch_key(seq))?.ok_or_else(|| Error::Invalid {
        what: format!("batch {seq} of run {} of {}", run.id, run.unit),
        reason: "it was acknowledged before".to_owned(),
    })
}

pub(in crate::store) fn batches_in(
    run: &Run,
    change: &Change<'_>,
    state: BatchState,
) -> Result<Vec<(u64, BatchRow)>> {
    let rows = change.all(&BATCHES, &run.run_key())?;
    rows.into_iter()
        .filter(|(_, row)| row.state == state)
        .map(|(tail, row)| Ok((run.number_in(BATCHES.name, &tail)?, row)))
        .collect()
}

/// Changes the counts of an item type.
pub(super) fn count(
    run: &Run,
    change: &Change<'_>,
    item_type: &str,
    by: impl FnOnce(&mut TypeRow),
) -> Result<()> {
    let key = run.run_key().and_name(item_type);
    let mut counts = change.get(&TYPES, &key)?.unwrap_or_default();
    by(&mut counts);
    change.put(&TYPES, &key, &counts)
}

/// Counts records that were read and are not staged.
pub(in crate::store) fn count_left_out(
    run: &Run,
    change: &Change<'_>,
    item_type: &str,
    items: u64,
) -> Result<()> {
    count(run, change, item_type, |counts| {
        counts.read += items;
        counts.left_out += items;
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::{Page, Store};
    use super::*;
    use crate::error::ErrorKind;
    use crate::record::Record;

    /// Three staged batches of a record each.
    fn staged(folder: &std::path::Path) -> Run {
        let store = Store::options().batch_items(1).open(folder.join("state.redb")).unwrap();
        let run = store.sync_unit("unit").unwrap().begin().unwrap();
        let page = |_: Option<u32>| -> Result<Page<u32>> {
            ["1", "2", "3"].iter().try_fold(Page::last(), |page, id| {
                Ok(page.record("issues", Record::new(*id, &serde_json::json!({}))?))
            })
        };
        assert_eq!(run.batches("issues", page).map(|batch| batch.unwrap().key().seq).sum::<u64>(), 6);
        run
    }

    fn uploaded(artifact: &str) -> BatchSettling {
        BatchSettling::Uploaded(ArtifactId::new(artifact).unwrap())
    }

    /// The batches that are staged or uploaded, with their ids.
    fn ids(run: &Run) -> Vec<(u64, Option<String>)> {
        let unsettled = run.unsettled().unwrap();
        unsettled.into_iter().map(|batch| (batch.info.seq, batch.artifact.map(|id| id.to_string()))).collect()
    }

    #[test]
    fn of_two_batches_that_get_one_id_together_the_first_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let run = staged(folder.path());
        let group = [(1, uploaded("x")), (2, uploaded("x")), (3, uploaded("y"))];
        assert_eq!(run.settle_batches(&group).unwrap(), [2]);
        assert_eq!(ids(&run), [(1, Some("x".into())), (2, None), (3, Some("y".into()))]);

        let group = [(1, BatchSettling::Confirmed), (3, BatchSettling::GivenUp), (2, uploaded("z"))];
        assert!(run.settle_batches(&group).unwrap().is_empty());
        assert_eq!(ids(&run), [(2, Some("z".into())), (3, None)]);
        // An id that was given up is used all the same.
        assert_eq!(run.settle_batches(&[(3, uploaded("y"))]).unwrap(), [3]);
    }

    #[test]
    fn if_one_of_a_group_cannot_be_settled_none_is() {
        let folder = tempfile::tempdir().unwrap();
        let run = staged(folder.path());
        let before = ids(&run);
        let impossible =
            [(9, BatchSettling::Confirmed), (2, BatchSettling::Confirmed), (2, BatchSettling::GivenUp)];
        for last in impossible {
            let error = run.settle_batches(&[(1, uploaded("x")), last]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
            assert_eq!(ids(&run), before);
        }
        assert!(run.settle_batches(&[(1, uploaded("x"))]).unwrap().is_empty());
        let error = run.settle_batches(&[(2, uploaded("y")), (1, uploaded("z"))]).unwrap_err();
        assert!(error.to_string().contains("uploaded as x"), "{error}");
        assert_eq!(ids(&run), [(1, Some("x".into())), (2, None), (3, None)]);
    }
}

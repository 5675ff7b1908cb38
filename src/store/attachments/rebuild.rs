//! The queue without the store file: what a checkpoint holds of it, and how the rest is rebuilt from the artifacts in
//! which the run announced the metadata.
//!
//! All lines of a run are known before its first attachment is streamed, and each attachment is processed at the last
//! line that names it. So lines before the checkpoint's position are not needed again, except those of the few
//! unsettled attachments that the checkpoint names.

use crate::error::{Error, Result};
use crate::model::{ArtifactId, Micros};
use crate::record::Attachment;
use crate::transfer::{Event, State, recount};

use super::super::checkpoint::form::{FailedPart, Position, QueueCountsPart, QueuePart, UnsettledPart};
use super::super::notes::forget_left_attachments;
use super::super::open::SyncUnit;
use super::super::rows::{
    ATTACHMENTS, AttachmentRow, FAILED, FILES, FailedRow, FileRow, Json, Key, POSITIONS, QUEUES, QueueRow,
    REQUEUED, UNITS, number_of, run_key,
};
use super::super::run_handle::Run;
use super::super::tables::{Change, Rows};
use super::super::uploads::attachment_moved;
use super::failed::place_in;
use super::queue::{REQUEUED_FROM, note_seen, queue_line, remove_attachments};

/// Lines that another library announced before it handed the run over to us get numbers from here on, above the
/// number of any line of ours. Each of its artifacts has a range of numbers.
const INHERITED_FROM: u64 = 1 << 61;

const INHERITED_LINES_MAX: u64 = 1 << 40;

/// Bytes of failed attachments that a checkpoint keeps. If there are more, the oldest are left out.
const FAILED_BYTES_MAX: usize = 20_000;

/// What happens to a line that another library announced before it handed the run over.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum InheritedLine {
    /// Its attachment is done.
    Settled,
    /// Its attachment still has to be transferred: the line, in our form.
    Queued(String),
    /// Its attachment is given up: the line to list it by, and the reason.
    Failed { json: String, reason: String },
}

impl Run {
    /// The artifacts whose lines still have to be queued here, by seq. There are none unless a checkpoint restored
    /// the run.
    pub(crate) fn files_to_load(&self) -> Result<Vec<(u64, ArtifactId)>> {
        self.look(|rows, _| {
            if !rows.get(&QUEUES, &self.run_key())?.is_some_and(|queue| queue.rebuild) {
                return Ok(Vec::new());
            }
            let mut files = Vec::new();
            for (tail, file) in rows.all(&FILES, &self.run_key())? {
                let seq = self.number_in(ATTACHMENTS.name, &tail)?;
                match file.artifact {
                    _ if file.loaded => {}
                    Some(artifact) => files.push((seq, ArtifactId::new(artifact)?)),
                    None => {
                        let key = self.batch_key(seq);
                        let reason = "its lines were announced under no id";
                        return Err(self.inner.tables.damaged(FILES.name, &key, reason));
                    }
                }
            }
            Ok(files)
        })
    }

    /// Takes over the artifacts that name attachments of a run which another library began, unless that was done
    /// before.
    pub(crate) fn inherit_files(&self, artifacts: &[String]) -> Result<()> {
        let first_key = self.batch_key(INHERITED_FROM);
        let known = self.look(|rows, _| {
            let known = rows.get(&FILES, &first_key)?.is_some();
            Ok(known || rows.get(&QUEUES, &self.run_key())?.is_some_and(|queue| queue.position > 0))
        })?;
        if known || artifacts.is_empty() {
            return Ok(());
        }
        self.change(|change, _| {
            let mut number = INHERITED_FROM;
            for (seq, artifact) in (INHERITED_FROM..).zip(artifacts) {
                let artifact = Some(artifact.clone());
                let file = FileRow { artifact, first: number, items: 0, loaded: false };
                change.put(&FILES, &self.batch_key(seq), &file)?;
                number += INHERITED_LINES_MAX;
            }
            let queue = change.get(&QUEUES, &self.run_key())?.unwrap_or_default();
            change.put(&QUEUES, &self.run_key(), &QueueRow { rebuild: true, ..queue })
        })
    }

    /// Queues the lines of an artifact again. For an inherited artifact, `judge` decides about each line: it gets the
    /// place of the artifact, the place of the line in it, and the line.
    pub(crate) fn load_file(
        &self,
        seq: u64,
        lines: &[u8],
        judge: impl Fn(u64, u64, &str) -> InheritedLine,
    ) -> Result<()> {
        self.change(|change, _| {
            let mut file = change.need(&FILES, &self.batch_key(seq))?;
            let mut queue = change.need(&QUEUES, &self.run_key())?;
            let lines: Vec<&[u8]> =
                lines.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).collect();
            let items = u32::try_from(lines.len()).unwrap_or(u32::MAX);
            if file.items > 0 && items != file.items {
                return Err(Error::Invalid {
                    what: format!("an artifact with attachments of {}", self.unit),
                    reason: format!("it has {items} lines, and was announced with {}", file.items),
                });
            }
            let inherited = seq.checked_sub(INHERITED_FROM);
            for (at, line) in (0..).zip(lines) {
                let number = file.first + at;
                let line = String::from_utf8_lossy(line);
                match inherited.map(|place| judge(place, at, &line)) {
                    None => self.load_line(change, &mut queue, number, &line)?,
                    Some(InheritedLine::Queued(line)) => self.load_line(change, &mut queue, number, &line)?,
                    Some(InheritedLine::Settled) => {}
                    Some(InheritedLine::Failed { json, reason }) => {
                        self.fail_inherited(change, &mut queue, number, json, reason)?;
                    }
                }
            }
            file.items = items;
            file.loaded = true;
            change.put(&FILES, &self.batch_key(seq), &file)?;
            change.put(&QUEUES, &self.run_key(), &queue)
        })
    }

    fn load_line(&self, change: &Change<'_>, queue: &mut QueueRow, number: u64, line: &str) -> Result<()> {
        let key = self.run_key().and_number(number);
        match change.get(&ATTACHMENTS, &key)? {
            // The checkpoint held only its number.
            Some(row) if row.json.is_empty() => {
                let attachment = Attachment::from_line(line)?;
                note_seen(change, self.unit_no, self.no, number, &attachment, false)?;
                change.put(&ATTACHMENTS, &key, &AttachmentRow { json: line.to_owned(), ..row })
            }
            None if number >= queue.position => queue_line(self, change, queue, number, line),
            _ => Ok(()),
        }
    }

    /// Lists an inherited attachment as given up, unless an earlier life did.
    fn fail_inherited(
        &self,
        change: &Change<'_>,
        queue: &mut QueueRow,
        number: u64,
        json: String,
        reason: String,
    ) -> Result<()> {
        let key = self.run_key().and_number(number);
        if number < queue.position || change.get(&FAILED, &key)?.is_some() {
            return Ok(());
        }
        let after = attachment_moved(self, number, State::NEW, &[Event::GivenUp])?;
        queue.counts.queued += 1;
        recount(&mut queue.counts.failed, State::NEW.counts().failed, after.counts().failed, 1);
        let attachment = Attachment::from_line(&json)?;
        note_seen(change, self.unit_no, self.no, number, &attachment, true)?;
        let failed_at = Micros::from_time(self.inner.clock.now());
        change.put(&FAILED, &key, &FailedRow { json, reason, tries: 0, failed_at })
    }

    /// Records that the queue is complete again.
    pub(crate) fn queue_rebuilt(&self) -> Result<()> {
        let rebuild =
            self.look(|rows, _| Ok(rows.get(&QUEUES, &self.run_key())?.is_some_and(|queue| queue.rebuild)))?;
        if !rebuild {
            return Ok(());
        }
        self.change(|change, _| {
            let mut queue = change.need(&QUEUES, &self.run_key())?;
            let mut left = 0;
            let prefix = self.run_key();
            let mut untold = None;
            change.scan(&ATTACHMENTS, &prefix, &prefix, |tail, row| {
                recount(&mut left, false, row.transfer_state(self.epoch).counts().open, 1);
                if row.json.is_empty() {
                    untold = Some(self.number_in(ATTACHMENTS.name, tail)?);
                }
                Ok(true)
            })?;
            if let Some(number) = untold {
                let key = prefix.and_number(number);
                return Err(self.inner.tables.damaged(ATTACHMENTS.name, &key, "no artifact holds its line"));
            }
            queue.counts.queued = queue.counts.settled + queue.counts.failed + left;
            queue.rebuild = false;
            change.put(&QUEUES, &self.run_key(), &queue)
        })
    }
}

/// What a checkpoint holds of the queue, as it is now.
pub(in crate::store) fn queue_part(run: &Run, rows: &impl Rows) -> Result<QueuePart> {
    let queue = rows.get(&QUEUES, &run.run_key())?.unwrap_or_default();
    let prefix = run.run_key();
    let mut unsettled: Vec<UnsettledPart> = Vec::new();
    let mut take = |tail: &[u8], row: AttachmentRow| {
        let number = run.number_in(ATTACHMENTS.name, tail)?;
        let line = (number >= REQUEUED_FROM).then_some(row.json);
        let artifact = row.artifact.map(|(id, _)| id);
        unsettled.push((number, artifact, row.given_up, row.tries, row.ready_at, line));
        Ok(())
    };
    rows.scan(&ATTACHMENTS, &prefix, &prefix, |tail, row| {
        let begun = run.number_in(ATTACHMENTS.name, tail)? < queue.position.min(REQUEUED_FROM);
        if begun {
            take(tail, row)?;
        }
        Ok(begun)
    })?;
    rows.scan(&ATTACHMENTS, &prefix, &prefix.clone().and_number(REQUEUED_FROM), |tail, row| {
        take(tail, row)?;
        Ok(true)
    })?;
    let queue = QueueCountsPart::of(&queue);
    Ok(QueuePart { queue, unsettled, ..failed_part(run, rows)? })
}

/// What a checkpoint between two runs holds of attachments: those that were given up, as far as there is room.
pub(in crate::store) fn failed_part(run: &Run, rows: &impl Rows) -> Result<QueuePart> {
    let unit = Key::unit(run.unit_no);
    let mut bytes = 0;
    let mut kept = |table| -> Result<Vec<(u64, u64, FailedPart)>> {
        let mut kept = Vec::new();
        rows.scan(table, &unit, &unit, |tail, row: FailedRow| {
            let (run, number) = place_in(&run.inner.tables, FAILED.name, tail)?;
            bytes += row.json.len() + row.reason.len() + 60;
            if bytes <= FAILED_BYTES_MAX {
                kept.push((run, number, FailedPart::of(row)));
            }
            Ok(bytes <= FAILED_BYTES_MAX)
        })?;
        Ok(kept)
    };
    // Attachments to try again come first. If others are left out, only the list of failures is shorter.
    let requeued = kept(&REQUEUED)?;
    let failed = kept(&FAILED)?;
    Ok(QueuePart { failed, requeued, ..QueuePart::default() })
}

/// The artifacts whose lines a checkpoint at this position has to name.
pub(in crate::store) fn files_needed(
    run: &Run,
    rows: &impl Rows,
    part: &QueuePart,
    next_seq: u64,
) -> Result<Vec<(u64, FileRow)>> {
    let mut files = Vec::new();
    for (tail, file) in rows.all(&FILES, &run.run_key())? {
        let seq = run.number_in(ATTACHMENTS.name, &tail)?;
        if (seq < next_seq || seq >= INHERITED_FROM) && part.needs(&file) {
            files.push((seq, file));
        }
    }
    Ok(files)
}

/// Restores what a checkpoint holds of attachments.
pub(in crate::store) fn restore_queue(
    change: &Change<'_>,
    unit: u64,
    run: u64,
    is_open: bool,
    part: &QueuePart,
    files: impl Iterator<Item = (u64, FileRow)>,
) -> Result<()> {
    for (table, rows) in [(&FAILED, &part.failed), (&REQUEUED, &part.requeued)] {
        for (run, number, part) in rows {
            let row = part.row();
            change.put(table, &run_key(unit, *run).and_number(*number), &row)?;
            if let Ok(attachment) = Attachment::from_line(&row.json) {
                note_seen(change, unit, *run, *number, &attachment, true)?;
            }
        }
    }
    let prefix = run_key(unit, run);
    for (number, artifact, given_up, tries, ready_at, line) in &part.unsettled {
        let row = AttachmentRow {
            // An earlier life uploaded it; which one does not matter.
            artifact: artifact.clone().map(|id| (id, 0)),
            saved: artifact.is_some(),
            given_up: *given_up,
            tries: *tries,
            ready_at: *ready_at,
            ..AttachmentRow::new(line.clone().unwrap_or_default())
        };
        if let Some(attachment) = line.as_deref().and_then(|line| Attachment::from_line(line).ok()) {
            note_seen(change, unit, run, *number, &attachment, false)?;
        }
        change.put(&ATTACHMENTS, &prefix.clone().and_number(*number), &row)?;
    }
    let mut any = !part.is_empty();
    for (seq, file) in files {
        change.put(&FILES, &prefix.clone().and_number(seq), &file)?;
        any = true;
    }
    if is_open && any {
        change.put(&QUEUES, &prefix, &part.queue.row())?;
    }
    Ok(())
}

impl SyncUnit {
    /// Forgets everything known about the unit's attachments. Doing it twice is the same as once.
    pub(in crate::store) fn delete_attachments_in(&self, change: &Change<'_>) -> Result<()> {
        let Some(unit) = change.get(&UNITS, &self.key())? else { return Ok(()) };
        let key = Key::unit(unit.no);
        let queues = change.all(&QUEUES, &key)?;
        remove_attachments(change, &key)?;
        for (tail, Json(json)) in change.all(&POSITIONS, &key)? {
            let damaged = |error: String| change.tables().damaged(POSITIONS.name, &key, error);
            let json = Position::without_attachments(&json).map_err(|error| damaged(error.to_string()))?;
            let run = number_of(&tail).map_err(|error| damaged(error.to_string()))?;
            change.put(&POSITIONS, &run_key(unit.no, run), &Json(json))?;
        }
        forget_left_attachments(change, unit.no)?;
        // The lines that a run has staged remain, so their number remains too.
        for (tail, QueueRow { lines, .. }) in queues {
            let run = run_key(
                unit.no,
                number_of(&tail)
                    .map_err(|error| self.inner.tables.damaged(QUEUES.name, &key, error.to_string()))?,
            );
            change.put(&QUEUES, &run, &QueueRow { lines, ..QueueRow::default() })?;
        }
        Ok(())
    }
}

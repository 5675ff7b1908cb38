//! What a crash may leave of a disk.
//!
//! The model: a sync that has returned made everything before it durable. Of what was recorded since, a crash keeps
//! any part. A write may be kept, lost, or *torn*: of its 512-byte sectors, any may be kept (one sector is whole or
//! not at all). A change of length may be kept or lost; where lengthening was lost, what was written past the old
//! end is lost with it, and where it was kept and the write was lost, those bytes read zero. A write past the end is
//! recorded as a change of length and a write, so the same holds for it. What is kept is done in the recorded order.
//! Real file systems keep less at random (they order changes of length, they write pages of 4 KiB), so every image
//! that they can leave is among these.
//!
//! **Where to crash.** An operation can only add choices: of what was recorded at some position since the last
//! sync, every choice is also one at the next position, with the new operation lost. So the images at the position
//! just before a sync are all images of its epoch, for each crash within it. What they lack is *when*: at an earlier
//! position the world outside had seen less. So [`Recording::moments`] takes the positions at which the world
//! changed, and gives the fewest pairs of position and world that cover every crash. And [`CrashImage::earliest`]
//! bounds from the other side: what was begun only later cannot be in this image.
//!
//! **A process killed on a machine that lives on** leaves all that it wrote: the choice that loses nothing, so it is among
//! the images. But what it had not synced is still not durable, and the next process, which has read it, may lose it to
//! a power failure: [`Recording::killed_at`] is the disk that it finds.

use std::collections::BTreeSet;
use std::fmt::{self, Write};
use std::str::FromStr;

use crate::error::Error;

use super::disk::{Entry, SimDisk};
use super::image::Image;

/// At most 2^20 subsets are enumerated, whatever [`Sampling`] asks for.
const EXHAUSTIVE_MAX: u32 = 20;

/// How many images to look at where there are too many for all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sampling {
    /// Up to so many unsynced operations (at most 20), every subset of them is an image.
    pub exhaustive_max: u32,
    /// With more of them, so many random subsets; and always every prefix, every single operation alone, and all
    /// without any single one.
    pub subsets: u32,
    /// So many images with torn writes at each moment, where a write there is longer than a sector.
    pub torn: u32,
    /// Where the random choices come from; the same seed makes the same ones.
    pub seed: u64,
}

impl Sampling {
    /// All subsets of up to 12 operations; 4,096 of more; 64 images with torn writes.
    pub fn new(seed: u64) -> Self {
        Self { exhaustive_max: 12, subsets: 4096, torn: 64, seed }
    }
}

/// What was done to a [`SimDisk`](super::SimDisk), from its start to the moment the recording was taken.
#[derive(Clone)]
pub struct Recording {
    initial: Image,
    log: Vec<Entry>,
}

/// A pair of position and world at which to crash: see [`Recording::moments`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment {
    /// How many of the given changes the world had seen.
    pub outside: usize,
    /// How many operations were recorded.
    pub position: usize,
}

/// One crash, so that [`Recording::image`] makes its image again. Its text form (`412:torn:9e3779b97f4a7c15`) reads back
/// as the same point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CrashPoint {
    /// How many operations were recorded when the disk died.
    pub position: usize,
    /// What was kept of those not yet synced.
    pub kept: Kept,
}

/// What a crash kept of the operations that were not yet synced. They are counted from the last sync on, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kept {
    /// Operation `i` where bit `i` is set; none past bit 63.
    Subset(u64),
    /// The first so many.
    Prefix(usize),
    /// All but this one.
    Without(usize),
    /// This one alone.
    Only(usize),
    /// A random subset, of this seed.
    Random(u64),
    /// A random choice with torn writes, of this seed.
    Torn(u64),
}

/// An image that a crash may leave.
#[derive(Debug, Clone)]
pub struct CrashImage {
    /// What [`Recording::image`] makes it again from.
    pub point: CrashPoint,
    /// The bytes.
    pub image: Image,
    /// The first position at which a crash can leave this image by this choice: just after the last operation of
    /// which something was kept.
    pub earliest: usize,
}

impl Recording {
    pub(super) fn new(initial: Image, log: Vec<Entry>) -> Self {
        Self { initial, log }
    }

    /// The last position: the number of recorded operations.
    pub fn end(&self) -> usize {
        self.log.len()
    }

    /// The disk before the first operation.
    pub fn initial(&self) -> &Image {
        &self.initial
    }

    /// The fewest moments that cover every crash, where `outside` are the positions, in order, at which something
    /// changed outside of the disk: a call to a platform was made, a commit was acknowledged.
    ///
    /// For each state of the world there is a moment before each sync, and one when that state ends (where it did not
    /// end just after a sync).
    ///
    /// ```
    /// use highwater::Disk;
    /// use highwater::testing::{Moment, SimDisk};
    ///
    /// let disk = SimDisk::new();
    /// disk.write(0, b"a")?; // positions 0 and 1: a new length, and a byte
    /// disk.sync()?; // position 2
    /// let told = disk.position();
    /// disk.write(0, b"b")?; // position 3
    ///
    /// let moment = |outside, position| Moment { outside, position };
    /// assert_eq!(disk.recording().moments(&[told]), [moment(0, 2), moment(1, 4)]);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn moments(&self, outside: &[usize]) -> Vec<Moment> {
        let syncs: Vec<usize> = self
            .log
            .iter()
            .enumerate()
            .filter_map(|(position, entry)| matches!(entry, Entry::Sync(_)).then_some(position))
            .collect();
        let mut moments = Vec::new();
        let mut from = 0;
        for (outside, until) in outside.iter().copied().chain([self.end()]).enumerate() {
            let until = until.clamp(from, self.end());
            let first = syncs.partition_point(|sync| *sync < from);
            let last = syncs.partition_point(|sync| *sync < until);
            let before_syncs = syncs.get(first..last).unwrap_or_default();
            moments.extend(before_syncs.iter().map(|&position| Moment { outside, position }));
            // Just after a sync there is but one image, and just before it, it is among the images.
            if before_syncs.last().is_none_or(|sync| sync + 1 != until) {
                moments.push(Moment { outside, position: until });
            }
            from = until;
        }
        moments
    }

    /// The images that a crash at `position` may leave, each once: what was durable then, and each choice of what
    /// was not, as [`Sampling`] says. A position past the end is the end.
    pub fn images_at(&self, position: usize, sampling: &Sampling) -> CrashImages<'_> {
        let window = self.window(position);
        let seed = sampling.seed ^ (window.position as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        CrashImages {
            window,
            sampling: sampling.clone(),
            rng: fastrand::Rng::with_seed(seed),
            next: 0,
            prefixes: Vec::new(),
            seen: BTreeSet::new(),
            considered: 0,
        }
    }

    /// The disk that the next process finds if this one was killed at `position` and the machine lives on: all that was
    /// written is there, and what was not synced is still not durable. It records on from `position`.
    ///
    /// ```
    /// use highwater::Disk;
    /// use highwater::testing::{Sampling, SimDisk};
    ///
    /// let disk = SimDisk::new();
    /// disk.set_len(7)?; // not synced
    /// let next = disk.recording().killed_at(1);
    /// assert_eq!(next.len()?, 7);
    /// let lost = next.recording().images_at(1, &Sampling::new(1)).any(|crash| crash.image.is_empty());
    /// assert!(lost, "power failed before the next process made it durable");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn killed_at(&self, position: usize) -> SimDisk {
        let log = self.log.get(..position).unwrap_or(&self.log);
        SimDisk::from_log(self.initial.clone(), log.to_vec())
    }

    /// The image of `point`; `None` if the recording ends before it.
    pub fn image(&self, point: &CrashPoint) -> Option<CrashImage> {
        if point.position > self.end() {
            return None;
        }
        Some(self.window(point.position).image(point.kept))
    }

    /// In words, what `point` keeps, loses and tears of the operations not yet synced.
    pub fn describe(&self, point: &CrashPoint) -> String {
        let window = self.window(point.position);
        let since = window.durable_from;
        let mut text = format!("at position {} of {}, durable up to {since}", window.position, self.end());
        for ((position, entry), fate) in window.entries.iter().zip(window.fates(point.kept)) {
            let fate = match fate {
                Fate::Kept => "kept".to_owned(),
                Fate::Lost => "lost".to_owned(),
                Fate::Torn(sectors) => {
                    let map: String = sectors.iter().map(|kept| if *kept { '#' } else { '.' }).collect();
                    format!("torn [{map}]")
                }
            };
            // Writing to a string cannot fail.
            let _ = write!(text, "\n  {position}: {entry}: {fate}");
        }
        text
    }

    fn window(&self, position: usize) -> Window<'_> {
        let position = position.min(self.end());
        let log = self.log.get(..position).unwrap_or_default();
        let synced = log.iter().enumerate().rev().find_map(|(position, entry)| match entry {
            Entry::Sync(image) => Some((position + 1, image)),
            _ => None,
        });
        let (durable_from, durable) = synced.unwrap_or((0, &self.initial));
        let entries: Vec<_> = log
            .iter()
            .enumerate()
            .skip(durable_from)
            .filter(|(_, entry)| matches!(entry, Entry::Write { .. } | Entry::SetLen(_)))
            .collect();
        let tearable = entries.iter().enumerate().filter(|(_, (_, entry))| sectors(entry) > 1);
        Window { position, durable_from, durable, tearable: tearable.map(|(at, _)| at).collect(), entries }
    }
}

impl fmt::Debug for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recording")
            .field("initial", &self.initial)
            .field("end", &self.end())
            .finish_non_exhaustive()
    }
}

/// How many sectors a write touches, counted once in each of its pieces (no sector lies in two).
fn sectors(entry: &Entry) -> usize {
    match entry {
        Entry::Write { pieces, .. } => pieces.iter().map(|piece| piece.sectors().len()).sum(),
        _ => 0,
    }
}

/// What became of one operation.
enum Fate {
    Kept,
    Lost,
    /// For each sector that the write touches, whether it was kept.
    Torn(Vec<bool>),
}

/// What is durable at a position, and what is not yet.
#[derive(Debug)]
struct Window<'a> {
    position: usize,
    durable_from: usize,
    durable: &'a Image,
    /// The unsynced operations, with their places in the log.
    entries: Vec<(usize, &'a Entry)>,
    /// Those of `entries` that are writes of more than one sector.
    tearable: Vec<usize>,
}

impl Window<'_> {
    fn image(&self, kept: Kept) -> CrashImage {
        let mut image = self.durable.clone();
        let mut earliest = self.durable_from;
        for ((position, entry), fate) in self.entries.iter().zip(self.fates(kept)) {
            match (fate, entry) {
                (Fate::Lost, _) => continue,
                (Fate::Torn(sectors), Entry::Write { pieces, .. }) => {
                    let mut sectors = sectors.into_iter();
                    for piece in pieces.iter() {
                        image.apply_sectors(piece, |_| sectors.next().unwrap_or(false));
                    }
                }
                (Fate::Kept | Fate::Torn(_), _) => entry.apply(&mut image),
            }
            earliest = position + 1;
        }
        CrashImage { point: CrashPoint { position: self.position, kept }, image, earliest }
    }

    fn fates(&self, kept: Kept) -> Vec<Fate> {
        let count = self.entries.len();
        let choose = |keep: &mut dyn FnMut(usize) -> bool| {
            (0..count).map(|at| if keep(at) { Fate::Kept } else { Fate::Lost }).collect()
        };
        match kept {
            Kept::Subset(mask) => choose(&mut |at| at < 64 && mask >> at & 1 == 1),
            Kept::Prefix(len) => choose(&mut |at| at < len),
            Kept::Without(one) => choose(&mut |at| at != one),
            Kept::Only(one) => choose(&mut |at| at == one),
            Kept::Random(seed) => {
                let mut rng = fastrand::Rng::with_seed(seed);
                let end = rng.usize(0..=count);
                let odds = *rng.choice(&[16, 64, 128, 192, 240]).unwrap_or(&128);
                choose(&mut |at| at < end && rng.u8(..) < odds)
            }
            Kept::Torn(seed) => self.torn(&mut fastrand::Rng::with_seed(seed)),
        }
    }

    /// At least one write torn, mostly with the operations after some position lost.
    fn torn(&self, rng: &mut fastrand::Rng) -> Vec<Fate> {
        let count = self.entries.len();
        let Some(victim) = rng.choice(&self.tearable).copied() else {
            return (0..count).map(|_| Fate::Lost).collect();
        };
        let end = rng.usize(victim + 1..=count);
        let others = rng.u8(0..4);
        let fate = |(at, (_, entry)): (usize, &(usize, &Entry))| {
            let sectors = sectors(entry);
            let tear = at == victim || (others == 3 && sectors > 1 && rng.bool());
            match () {
                () if at >= end => Fate::Lost,
                () if tear => Fate::Torn(tear_sectors(sectors, rng)),
                () if others == 0 || (others > 1 && rng.bool()) => Fate::Kept,
                () => Fate::Lost,
            }
        };
        self.entries.iter().enumerate().map(fate).collect()
    }
}

/// A write stopped short, or done from its end; one sector missing, or one alone; or any of them.
fn tear_sectors(sectors: usize, rng: &mut fastrand::Rng) -> Vec<bool> {
    let (kind, any, inner) = (rng.u8(0..6), rng.usize(0..sectors.max(1)), rng.usize(1..sectors.max(2)));
    let keep = |at: usize| match kind {
        0 => at < inner,
        1 => at >= inner,
        2 => at != any,
        3 => at == any,
        _ => rng.bool(),
    };
    (0..sectors).map(keep).collect()
}

/// The images that a crash at one position may leave: see [`Recording::images_at`].
#[derive(Debug)]
pub struct CrashImages<'a> {
    window: Window<'a>,
    sampling: Sampling,
    rng: fastrand::Rng,
    /// Choices made so far.
    next: u64,
    /// While all subsets are enumerated: the image after the choices for the first 0, 1, 2, ... operations, since
    /// the next subset mostly differs in the last few.
    prefixes: Vec<Image>,
    seen: BTreeSet<u128>,
    considered: u64,
}

impl CrashImages<'_> {
    /// How many choices were looked at so far, the ones that led to an image again included.
    pub fn considered(&self) -> u64 {
        self.considered
    }

    fn choose(&mut self) -> Option<Kept> {
        let mut at = self.next;
        self.next += 1;
        let count = self.window.entries.len();
        if let Some(subsets) = self.exhaustive() {
            if at < subsets {
                return Some(Kept::Subset(first_slowest(at, count)));
            }
            at -= subsets;
        } else {
            let mut at_place = usize::try_from(at).ok()?;
            for (kinds, make) in [
                (count + 1, Kept::Prefix as fn(usize) -> Kept),
                (count, Kept::Without as fn(usize) -> Kept),
                (count, Kept::Only as fn(usize) -> Kept),
            ] {
                if at_place < kinds {
                    return Some(make(at_place));
                }
                at_place -= kinds;
            }
            at = at_place as u64;
            if at < u64::from(self.sampling.subsets) {
                return Some(Kept::Random(self.rng.u64(..)));
            }
            at -= u64::from(self.sampling.subsets);
        }
        let torn = !self.window.tearable.is_empty() && at < u64::from(self.sampling.torn);
        torn.then(|| Kept::Torn(self.rng.u64(..)))
    }

    /// The number of all subsets, if they are few enough.
    fn exhaustive(&self) -> Option<u64> {
        let count = u32::try_from(self.window.entries.len()).ok()?;
        (count <= self.sampling.exhaustive_max.min(EXHAUSTIVE_MAX)).then(|| 1 << count)
    }

    /// The image of a subset, from those of its predecessor's prefixes.
    fn subset(&mut self, mask: u64) -> CrashImage {
        let entries = &self.window.entries;
        let at = self.next - 1;
        // Counting up by one changes the trailing ones of the predecessor and the zero before them.
        let same = match at.checked_sub(1) {
            Some(before) => entries.len().saturating_sub(before.trailing_ones() as usize + 1),
            None => 0,
        };
        if self.prefixes.is_empty() {
            self.prefixes.push(self.window.durable.clone());
        }
        self.prefixes.truncate(same + 1);
        let mut image = self.prefixes.last().unwrap_or(self.window.durable).clone();
        for (place, (_, entry)) in entries.iter().enumerate().skip(same) {
            if mask >> place & 1 == 1 {
                entry.apply(&mut image);
            }
            self.prefixes.push(image.clone());
        }
        let last = mask.checked_ilog2().and_then(|place| entries.get(place as usize));
        CrashImage {
            point: CrashPoint { position: self.window.position, kept: Kept::Subset(mask) },
            image,
            earliest: last.map_or(self.window.durable_from, |(position, _)| position + 1),
        }
    }
}

/// The `at`-th subset of `count` operations, in an order in which the first operation changes slowest.
fn first_slowest(at: u64, count: usize) -> u64 {
    at.reverse_bits().checked_shr(64 - u32::try_from(count).unwrap_or(64)).unwrap_or(0)
}

impl Iterator for CrashImages<'_> {
    type Item = CrashImage;

    fn next(&mut self) -> Option<CrashImage> {
        loop {
            let kept = self.choose()?;
            self.considered += 1;
            let crash = match kept {
                Kept::Subset(mask) => self.subset(mask),
                kept => self.window.image(kept),
            };
            if self.seen.insert(crash.image.hash()) {
                return Some(crash);
            }
        }
    }
}

impl fmt::Display for CrashPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.position)?;
        match self.kept {
            Kept::Subset(mask) => write!(f, "subset:{mask:x}"),
            Kept::Prefix(len) => write!(f, "prefix:{len}"),
            Kept::Without(one) => write!(f, "without:{one}"),
            Kept::Only(one) => write!(f, "only:{one}"),
            Kept::Random(seed) => write!(f, "random:{seed:x}"),
            Kept::Torn(seed) => write!(f, "torn:{seed:x}"),
        }
    }
}

impl FromStr for CrashPoint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parse = || {
            let (position, kept) = text.split_once(':')?;
            let (kind, choice) = kept.split_once(':')?;
            let bits = || u64::from_str_radix(choice, 16).ok();
            let place = || choice.parse().ok();
            let kept = match kind {
                "subset" => Kept::Subset(bits()?),
                "prefix" => Kept::Prefix(place()?),
                "without" => Kept::Without(place()?),
                "only" => Kept::Only(place()?),
                "random" => Kept::Random(bits()?),
                "torn" => Kept::Torn(bits()?),
                _ => return None,
            };
            Some(Self { position: position.parse().ok()?, kept })
        };
        parse().ok_or_else(|| Error::Invalid {
            what: format!("crash point {text:?}"),
            reason: "a crash point is `<position>:<subset|prefix|without|only|random|torn>:<choice>`"
                .to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::store::Disk;
    use crate::testing::{Fault, SimDisk};

    /// What was done, as the test did it: the oracle knows nothing of images, entries or windows.
    #[derive(Clone)]
    enum Done {
        Write(usize, Vec<u8>),
        SetLen(usize),
        Sync,
    }

    /// A random run; its operations as the recording counts them, with the lengthening of a write on its own.
    fn random_run(rng: &mut fastrand::Rng, operations: usize) -> (SimDisk, Vec<Done>) {
        let disk = SimDisk::new();
        let mut done = Vec::new();
        let mut len = 0;
        while done.len() < operations {
            match rng.u8(0..6) {
                0 => {
                    disk.sync().unwrap();
                    done.push(Done::Sync);
                }
                1 => {
                    len = rng.usize(0..12_000);
                    disk.set_len(len as u64).unwrap();
                    done.push(Done::SetLen(len));
                }
                _ => {
                    let at = rng.usize(0..9000);
                    let bytes = vec![rng.u8(1..); rng.usize(1..5000)];
                    disk.write(at as u64, &bytes).unwrap();
                    if at + bytes.len() > len {
                        len = at + bytes.len();
                        done.push(Done::SetLen(len));
                    }
                    done.push(Done::Write(at, bytes));
                }
            }
        }
        assert_eq!(disk.position(), done.len());
        (disk, done)
    }

    fn apply(done: &Done, bytes: &mut Vec<u8>) {
        match done {
            Done::Write(at, new) => {
                let end = bytes.len().min(at + new.len());
                if *at < end {
                    bytes[*at..end].copy_from_slice(&new[..end - at]);
                }
            }
            Done::SetLen(len) => bytes.resize(*len, 0),
            Done::Sync => {}
        }
    }

    /// Every image at a position, by the book.
    fn by_the_book(done: &[Done], position: usize) -> BTreeSet<Vec<u8>> {
        let durable =
            done[..position].iter().rposition(|done| matches!(done, Done::Sync)).map_or(0, |at| at + 1);
        let mut base = Vec::new();
        done[..durable].iter().for_each(|done| apply(done, &mut base));
        let open = &done[durable..position];
        let subset = |mask: u32| {
            let mut bytes = base.clone();
            (0..open.len()).filter(|at| mask >> at & 1 == 1).for_each(|at| apply(&open[at], &mut bytes));
            bytes
        };
        (0..1 << open.len()).map(subset).collect()
    }

    fn no_torn(seed: u64) -> Sampling {
        Sampling { torn: 0, ..Sampling::new(seed) }
    }

    #[test]
    fn images_are_all_subsets_each_once() {
        let mut rng = fastrand::Rng::with_seed(2);
        let mut images = 0;
        for _ in 0..40 {
            let operations = rng.usize(1..12);
            let (disk, done) = random_run(&mut rng, operations);
            let run = disk.recording();
            for position in 0..=run.end() {
                let found: Vec<_> =
                    run.images_at(position, &no_torn(1)).map(|crash| crash.image.to_bytes()).collect();
                let distinct: BTreeSet<_> = found.iter().cloned().collect();
                assert_eq!(found.len(), distinct.len(), "an image came twice");
                assert!(distinct == by_the_book(&done, position), "position {position}");
                images += found.len();
            }
            assert!(
                disk.image().to_bytes()
                    == by_the_book(&[done, vec![Done::Sync]].concat(), run.end() + 1).pop_first().unwrap()
            );
        }
        assert!(images > 2000, "{images}");
    }

    /// All pairs of world and image that any crash can leave, against those of the moments; and the earliest
    /// position of each image against the first position that has it.
    #[test]
    fn moments_cover_every_crash() {
        let mut rng = fastrand::Rng::with_seed(3);
        for _ in 0..30 {
            let (disk, done) = random_run(&mut rng, 9);
            let run = disk.recording();
            let mut outside: Vec<usize> = (0..rng.usize(0..4)).map(|_| rng.usize(0..=run.end())).collect();
            outside.sort_unstable();
            let moments = run.moments(&outside);
            let mut covered = BTreeSet::new();
            for moment in &moments {
                for crash in run.images_at(moment.position, &no_torn(1)) {
                    let bytes = crash.image.to_bytes();
                    assert!(by_the_book(&done, crash.earliest).contains(&bytes));
                    covered.insert((moment.outside, bytes));
                }
            }
            let mut possible = BTreeSet::new();
            for position in 0..=run.end() {
                let images = by_the_book(&done, position);
                for world in 0..=outside.len() {
                    let from = if world == 0 { 0 } else { outside[world - 1] };
                    let until = outside.get(world).copied().unwrap_or(run.end());
                    if (from..=until).contains(&position) {
                        possible.extend(images.iter().map(|image| (world, image.clone())));
                    }
                }
            }
            assert!(covered == possible);
            assert!(moments.len() <= 10 + outside.len());
        }
    }

    #[test]
    fn torn_writes_keep_any_sectors_whole() {
        let disk = SimDisk::new();
        disk.write(0, &[1; 8192]).unwrap();
        disk.sync().unwrap();
        disk.write(256, &[2; 4608]).unwrap();
        let run = disk.recording();
        let sampling = Sampling { torn: 3000, ..Sampling::new(4) };
        let mut patterns = BTreeSet::new();
        for crash in run.images_at(run.end(), &sampling) {
            let bytes = crash.image.to_bytes();
            let mut pattern = 0_u32;
            for (sector, content) in bytes.chunks(512).enumerate() {
                let of_write = |at: usize| (256..256 + 4608).contains(&(sector * 512 + at));
                let new = (0..512).all(|at| content[at] == if of_write(at) { 2 } else { 1 });
                let old = content.iter().all(|byte| *byte == 1);
                assert!(new || old, "sector {sector} is neither old nor new");
                pattern |= u32::from(!old) << sector;
            }
            patterns.insert(pattern);
        }
        assert_eq!(patterns.iter().next_back(), Some(&0b11_1111_1111), "ten sectors are touched");
        assert!(patterns.len() > 500, "{} of 1024 patterns", patterns.len());
        assert!(patterns.contains(&0b1) && patterns.contains(&0b11_1111_1110));
    }

    #[test]
    fn points_are_replayed_from_their_text() {
        let mut rng = fastrand::Rng::with_seed(5);
        let mut kinds = BTreeSet::new();
        for operations in [6, 40] {
            let (disk, _) = random_run(&mut rng, operations);
            disk.inject(Fault::SyncsIgnored);
            for at in 0..30_u8 {
                disk.write(u64::from(at) * 100, &[at; 3000]).unwrap();
                disk.sync().unwrap();
            }
            let run = disk.recording();
            let sampling = Sampling { subsets: 50, torn: 50, ..Sampling::new(6) };
            for position in [run.end(), 5] {
                let images: Vec<_> = run.images_at(position, &sampling).collect();
                let again: Vec<_> =
                    run.images_at(position, &sampling).map(|crash| crash.image.hash()).collect();
                assert_eq!(images.iter().map(|crash| crash.image.hash()).collect::<Vec<_>>(), again);
                for crash in images {
                    let text = crash.point.to_string();
                    kinds.insert(text.split(':').nth(1).unwrap().to_owned());
                    let replayed = run.image(&text.parse().unwrap()).unwrap();
                    assert_eq!(
                        (replayed.image.hash(), replayed.earliest),
                        (crash.image.hash(), crash.earliest),
                        "{text}"
                    );
                    assert!(
                        run.describe(&crash.point)
                            .starts_with(&format!("at position {position} of {}", run.end()))
                    );
                }
            }
        }
        assert_eq!(
            kinds.into_iter().collect::<Vec<_>>(),
            ["only", "prefix", "random", "subset", "torn", "without"]
        );
        let (disk, _) = random_run(&mut rng, 3);
        assert!(disk.recording().image(&"4:subset:0".parse().unwrap()).is_none());
        for bad in ["", "1", "1:subset", "1:subset:g", "x:only:1", "1:only:-1", "1:all:1"] {
            assert!(bad.parse::<CrashPoint>().is_err(), "{bad}");
        }
    }

    #[test]
    fn point_is_told_in_words() {
        let disk = SimDisk::new();
        disk.write(0, &[1; 1024]).unwrap();
        disk.sync().unwrap();
        disk.set_len(2048).unwrap();
        disk.write(512, &[2; 1024]).unwrap();
        let run = disk.recording();
        assert_eq!(
            run.describe(&"5:subset:2".parse().unwrap()),
            "at position 5 of 5, durable up to 3\n  3: length 2048: lost\n  4: write of 1024 bytes at 512: kept"
        );
        assert!(run.describe(&"5:torn:1".parse().unwrap()).contains(": torn ["));
    }

    #[test]
    fn ignored_syncs_leave_everything_to_chance() {
        let disk = SimDisk::new();
        disk.set_len(3).unwrap();
        disk.sync().unwrap();
        disk.inject(Fault::SyncsIgnored);
        for at in 0..3 {
            disk.write(at, b"x").unwrap();
            disk.sync().unwrap();
        }
        let run = disk.recording();
        assert_eq!(run.images_at(run.end(), &Sampling::new(1)).count(), 8);
        assert_eq!(disk.fault_counts().syncs_ignored, 3);
    }

    #[test]
    fn a_second_crash_is_of_what_the_first_one_left() {
        let disk = SimDisk::new();
        disk.write(0, b"a").unwrap();
        disk.sync().unwrap();
        disk.write(0, b"b").unwrap();
        let mut second = BTreeSet::new();
        let run = disk.recording();
        for crash in run.images_at(run.end(), &Sampling::new(1)) {
            let next = crash.image.disk();
            assert_eq!((next.position(), next.recording().initial().hash()), (0, crash.image.hash()));
            next.write(1, b"c").unwrap();
            let run = next.recording();
            second.extend(run.images_at(run.end(), &Sampling::new(1)).map(|crash| crash.image.to_bytes()));
        }
        let expected: BTreeSet<Vec<u8>> =
            [&b"a"[..], b"b", b"a\0", b"b\0", b"ac", b"bc"].map(<[u8]>::to_vec).into();
        assert_eq!(second, expected);
    }
}

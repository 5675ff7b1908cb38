//! What a crash may leave of a disk.
//!
//! The model: a sync that has returned made everything before it durable. A crash keeps any part of what was recorded
//! after it. A write may be kept, lost, or *torn*: of its 512-byte sectors, any may be kept (one sector is written
//! completely or not at all). A change of length may be kept or lost. If a lengthening was lost, what was written
//! past the old end is lost with it; if it was kept and the write was lost, those bytes read as zero. A write past
//! the end is recorded as a change of length and a write, so the same holds for it. What is kept is applied in the
//! recorded order. Real file systems have less freedom (they order changes of length, they write pages of 4 KiB), so
//! every image that they can leave is among these.
//!
//! **Where to crash.** An operation can only add choices: every choice among the operations recorded since the last
//! sync is also a choice at the next position, with the new operation lost. So the images at the position just before
//! a sync include all images of its epoch, for each crash within it. They do not say *when*: at an earlier position
//! the world outside had seen less. So [`Recording::moments`] takes the positions at which the world changed, and
//! returns the fewest pairs of position and world that cover every crash. [`CrashImage::earliest`] is the bound from
//! the other side: what was begun later cannot be in this image.
//!
//! **A process killed on a machine that keeps running** leaves everything that it wrote. That is the choice that
//! loses nothing, so it is among the images. But what it had not synced is still not durable, and the next process,
//! which has read it, may lose it in a power failure: [`Recording::killed_at`] is the disk that it finds.

use std::collections::BTreeSet;
use std::fmt::{self, Write};
use std::str::FromStr;
use std::sync::Arc;

use crate::error::Error;

use super::image::{Image, Piece};

/// At most 2^20 subsets are enumerated, whatever [`Sampling`] asks for.
const EXHAUSTIVE_MAX: u32 = 20;

/// How many images to examine if there are too many for all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sampling {
    /// Up to this many unsynced operations (at most 20), every subset of them is an image.
    pub exhaustive_max: u32,
    /// With more of them, this many random subsets; and always every prefix, every single operation alone, and all
    /// but any single one.
    pub subsets: u32,
    /// This many images with torn writes at each moment, if a write there is longer than a sector.
    pub torn: u32,
    /// The seed of the random choices.
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
    log: Vec<Recorded>,
}

/// One recorded operation.
#[derive(Clone)]
pub(super) enum Recorded {
    Write {
        at: u64,
        bytes: u64,
        pieces: Arc<[Piece]>,
    },
    SetLen(u64),
    /// The content that was durable from then on.
    Sync(Image),
    IgnoredSync,
}

impl Recorded {
    /// Applies it to `image`.
    pub(super) fn apply(&self, image: &mut Image) {
        match self {
            Recorded::Write { pieces, .. } => pieces.iter().for_each(|piece| image.apply(piece)),
            Recorded::SetLen(len) => image.set_len(*len),
            Recorded::Sync(_) | Recorded::IgnoredSync => {}
        }
    }
}

impl fmt::Display for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Recorded::Write { at, bytes, .. } => write!(f, "write of {bytes} bytes at {at}"),
            Recorded::SetLen(len) => write!(f, "length {len}"),
            Recorded::Sync(_) => f.write_str("sync"),
            Recorded::IgnoredSync => f.write_str("ignored sync"),
        }
    }
}

impl fmt::Debug for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A pair of position and world at which to crash: see [`Recording::moments`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment {
    /// How many of the given changes the world had seen.
    pub outside: usize,
    /// How many operations were recorded.
    pub position: usize,
}

/// One crash, from which [`Recording::image`] makes its image again. Its text form (`412:torn:9e3779b97f4a7c15`)
/// reads back as the same point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CrashPoint {
    /// How many operations were recorded when the disk died.
    pub position: usize,
    /// What was kept of the operations that were not yet synced.
    pub kept: Kept,
}

/// What a crash kept of the operations that were not yet synced. They are numbered from 0, from the last sync on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kept {
    /// Operation `i` if bit `i` is set; none after bit 63.
    Subset(u64),
    /// The first operations, this many.
    Prefix(usize),
    /// All but this one.
    Without(usize),
    /// Only this one.
    Only(usize),
    /// A random subset, with this seed.
    Random(u64),
    /// A random choice with torn writes, with this seed.
    Torn(u64),
}

/// An image that a crash may leave.
#[derive(Debug, Clone)]
pub struct CrashImage {
    /// The point from which [`Recording::image`] makes it again.
    pub point: CrashPoint,
    /// The bytes.
    pub image: Image,
    /// The first position at which a crash can leave this image by this choice: just after the last operation of
    /// which something was kept.
    pub earliest: usize,
}

impl Recording {
    pub(super) fn new(initial: Image, log: Vec<Recorded>) -> Self {
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

    /// The operations, in order.
    pub(super) fn log(&self) -> &[Recorded] {
        &self.log
    }

    /// The fewest moments that cover every crash, where `outside` are the positions, in order, at which something
    /// changed outside of the disk: a call to a platform was made, a commit was acknowledged.
    ///
    /// For each state of the world there is a moment before each sync, and one when that state ends (unless it ended
    /// just after a sync).
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
            .filter_map(|(position, entry)| matches!(entry, Recorded::Sync(_)).then_some(position))
            .collect();
        let mut moments = Vec::new();
        let mut from = 0;
        for (outside, until) in outside.iter().copied().chain([self.end()]).enumerate() {
            let until = until.clamp(from, self.end());
            let first = syncs.partition_point(|sync| *sync < from);
            let last = syncs.partition_point(|sync| *sync < until);
            let before_syncs = syncs.get(first..last).unwrap_or_default();
            moments.extend(before_syncs.iter().map(|&position| Moment { outside, position }));
            // Just after a sync there is only one image, and it is among those just before it.
            if before_syncs.last().is_none_or(|sync| sync + 1 != until) {
                moments.push(Moment { outside, position: until });
            }
            from = until;
        }
        moments
    }

    /// The images that a crash at `position` may leave, each once: what was durable then, and each choice of the
    /// rest, as [`Sampling`] says. A position after the end is the end.
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

    /// The image of `point`; `None` if the recording ends before it.
    pub fn image(&self, point: &CrashPoint) -> Option<CrashImage> {
        if point.position > self.end() {
            return None;
        }
        Some(self.window(point.position).image(point.kept))
    }

    /// Describes what `point` keeps, loses and tears of the operations not yet synced.
    pub fn describe(&self, point: &CrashPoint) -> String {
        let window = self.window(point.position);
        let since = window.durable_from;
        let mut text = format!("at position {} of {}, durable up to {since}", window.position, self.end());
        for ((position, entry), fate) in window.entries.iter().zip(window.fates(point.kept)) {
            let fate = match fate {
                Survival::Kept => "kept".to_owned(),
                Survival::Lost => "lost".to_owned(),
                Survival::Torn(sectors) => {
                    let map: String = sectors.iter().map(|kept| if *kept { '#' } else { '.' }).collect();
                    format!("torn [{map}]")
                }
            };
            // Writing to a string does not fail.
            let _ = write!(text, "\n  {position}: {entry}: {fate}");
        }
        text
    }

    fn window(&self, position: usize) -> Window<'_> {
        let position = position.min(self.end());
        let log = self.log.get(..position).unwrap_or_default();
        let synced = log.iter().enumerate().rev().find_map(|(position, entry)| match entry {
            Recorded::Sync(image) => Some((position + 1, image)),
            _ => None,
        });
        let (durable_from, durable) = synced.unwrap_or((0, &self.initial));
        let entries: Vec<_> = log
            .iter()
            .enumerate()
            .skip(durable_from)
            .filter(|(_, entry)| matches!(entry, Recorded::Write { .. } | Recorded::SetLen(_)))
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

/// The number of sectors that a write touches, over all of its pieces (no sector is in two pieces).
fn sectors(entry: &Recorded) -> usize {
    match entry {
        Recorded::Write { pieces, .. } => pieces.iter().map(|piece| piece.sectors().len()).sum(),
        _ => 0,
    }
}

/// The fate of one operation.
enum Survival {
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
    entries: Vec<(usize, &'a Recorded)>,
    /// Those of `entries` that are writes of more than one sector.
    tearable: Vec<usize>,
}

impl Window<'_> {
    fn image(&self, kept: Kept) -> CrashImage {
        let mut image = self.durable.clone();
        let mut earliest = self.durable_from;
        for ((position, entry), fate) in self.entries.iter().zip(self.fates(kept)) {
            match (fate, entry) {
                (Survival::Lost, _) => continue,
                (Survival::Torn(sectors), Recorded::Write { pieces, .. }) => {
                    let mut sectors = sectors.into_iter();
                    for piece in pieces.iter() {
                        image.apply_sectors(piece, |_| sectors.next().unwrap_or(false));
                    }
                }
                (Survival::Kept | Survival::Torn(_), _) => entry.apply(&mut image),
            }
            earliest = position + 1;
        }
        CrashImage { point: CrashPoint { position: self.position, kept }, image, earliest }
    }

    fn fates(&self, kept: Kept) -> Vec<Survival> {
        let count = self.entries.len();
        let choose = |keep: &mut dyn FnMut(usize) -> bool| {
            (0..count).map(|at| if keep(at) { Survival::Kept } else { Survival::Lost }).collect()
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

    /// At least one torn write, usually with the operations after some position lost.
    fn torn(&self, rng: &mut fastrand::Rng) -> Vec<Survival> {
        let count = self.entries.len();
        let Some(victim) = rng.choice(&self.tearable).copied() else {
            return (0..count).map(|_| Survival::Lost).collect();
        };
        let end = rng.usize(victim + 1..=count);
        let others = rng.u8(0..4);
        let fate = |(at, (_, entry)): (usize, &(usize, &Recorded))| {
            let sectors = sectors(entry);
            let tear = at == victim || (others == 3 && sectors > 1 && rng.bool());
            match () {
                () if at >= end => Survival::Lost,
                () if tear => Survival::Torn(tear_sectors(sectors, rng)),
                () if others == 0 || (others > 1 && rng.bool()) => Survival::Kept,
                () => Survival::Lost,
            }
        };
        self.entries.iter().enumerate().map(fate).collect()
    }
}

/// A write that stopped early, or was done from its end; one sector missing, or only one; or any of them.
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
    /// While all subsets are enumerated: the image after the choices for the first 0, 1, 2, ... operations, because
    /// the next subset usually differs only in the last few.
    prefixes: Vec<Image>,
    seen: BTreeSet<u128>,
    considered: u64,
}

impl CrashImages<'_> {
    /// How many choices were examined so far, including those that led to an image seen before.
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

/// The `at`-th subset of `count` operations, in an order in which the first operation changes most slowly.
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
mod tests;

//! A disk in memory that records what is done to it, and fails as disks do.

use std::fmt;
use std::io;
use std::ops::AddAssign;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::store::Disk;

use super::crash::{Recorded, Recording};
use super::image::{Image, pieces};

/// The maximum size of a simulated disk: 16 GiB (unwritten parts take no memory).
pub const SIM_DISK_BYTES_MAX: u64 = 16 << 30;

/// A disk in memory that records every write, change of length and sync, so that a [`Recording`] can show what a
/// crash at any moment may have left of it.
///
/// Clones are handles of the same disk. Operations are recorded in the order in which they were done. The number of
/// operations recorded so far is a *position* in the recording. Reads are not recorded: they change nothing.
///
/// ```
/// use highwater::Disk;
/// use highwater::testing::{Sampling, SimDisk};
///
/// let disk = SimDisk::new();
/// disk.write(0, b"one")?;
/// disk.sync()?;
/// disk.write(0, b"two")?;
///
/// // Power fails now: the second write may have come to the platter, or not.
/// let run = disk.recording();
/// let mut left: Vec<_> = run.images_at(run.end(), &Sampling::new(1)).map(|crash| crash.image.to_bytes()).collect();
/// left.sort();
/// assert_eq!(left, [b"one", b"two"]);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone)]
pub struct SimDisk {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    initial: Image,
    live: Image,
    log: Vec<Recorded>,
    faults: Vec<Fault>,
    counts: FaultCounts,
    dead: bool,
    replaced: bool,
}

/// The operations of a process on a disk that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiskOperation {
    /// [`Disk::read`].
    Read,
    /// [`Disk::write`].
    Write,
    /// [`Disk::set_len`].
    SetLen,
    /// [`Disk::sync`].
    Sync,
}

/// A way in which a disk fails. Each is counted when it fires: [`SimDisk::fault_counts`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The disk has room for a file of this many bytes. A write past that writes what there is room for, and fails
    /// with "no space"; lengthening past that changes nothing, and fails in the same way.
    FullAt {
        /// The longest that the file can be, in bytes.
        bytes: u64,
    },
    /// There is room for this many more writes; then each write, and each lengthening, changes nothing and fails with
    /// "no space". Writes are counted, not their bytes: on a disk with holes, or one that writes copies, any write
    /// may need room.
    FullAfter {
        /// How many more writes succeed.
        writes: u64,
    },
    /// This many more operations of a kind succeed; the next fails, once, as on a broken sector. A write that fails
    /// has written the first half of its sectors. A sync that fails has made nothing durable, but the next one that
    /// succeeds does; see [`Fault::Forgets`] for systems on which it does not.
    Fails {
        /// The kind of operation.
        operation: DiskOperation,
        /// How many more of them succeed.
        after: u64,
    },
    /// This many more syncs succeed; the next fails, and what was written since the last successful one is lost, as on
    /// systems that drop the pages that they could not write. (A later successful sync says nothing about them.)
    Forgets {
        /// How many more syncs succeed.
        after: u64,
    },
    /// The process dies when this many operations are recorded ([`SimDisk::position`]), in the middle of a write if
    /// necessary: from then on, everything fails and nothing is recorded. Because reads are not recorded, the process
    /// cannot die at a read: dying at the next operation leaves the same disk.
    Dies {
        /// Operations recorded at death.
        position: usize,
    },
    /// A sync reports success and makes nothing durable. A negative control: nothing is proven on such a disk.
    SyncsIgnored,
}

/// How often each kind of [`Fault`] fired.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FaultCounts {
    /// Writes and lengthenings refused for lack of space.
    pub no_space: u64,
    /// Reads that failed.
    pub reads: u64,
    /// Writes that failed.
    pub writes: u64,
    /// Changes of length that failed.
    pub set_lens: u64,
    /// Syncs that failed.
    pub syncs: u64,
    /// Syncs that failed and dropped what was not yet durable.
    pub syncs_forgotten: u64,
    /// Syncs that were ignored.
    pub syncs_ignored: u64,
    /// Deaths of the process.
    pub deaths: u64,
}

impl AddAssign for FaultCounts {
    fn add_assign(&mut self, other: Self) {
        self.no_space += other.no_space;
        self.reads += other.reads;
        self.writes += other.writes;
        self.set_lens += other.set_lens;
        self.syncs += other.syncs;
        self.syncs_forgotten += other.syncs_forgotten;
        self.syncs_ignored += other.syncs_ignored;
        self.deaths += other.deaths;
    }
}

impl fmt::Display for FaultCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "no_space={} reads={} writes={} set_lens={} syncs={} syncs_forgotten={} syncs_ignored={} deaths={}",
            self.no_space,
            self.reads,
            self.writes,
            self.set_lens,
            self.syncs,
            self.syncs_forgotten,
            self.syncs_ignored,
            self.deaths
        )
    }
}

impl SimDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::from_image(Image::default())
    }

    /// A disk that holds `image`; its recording begins there.
    pub fn from_image(image: Image) -> Self {
        Self::from_log(image, Vec::new())
    }

    /// A disk that held `initial`, and to which all of `log` was applied.
    pub(super) fn from_log(initial: Image, log: Vec<Recorded>) -> Self {
        let mut live = initial.clone();
        for entry in &log {
            entry.apply(&mut live);
        }
        let (faults, counts) = (Vec::new(), FaultCounts::default());
        Self {
            inner: Arc::new(Mutex::new(Inner {
                initial,
                live,
                log,
                faults,
                counts,
                dead: false,
                replaced: false,
            })),
        }
    }

    /// Makes the disk fail from now on; counts in `fault` begin now. Faults add up, until [`SimDisk::heal`].
    ///
    /// ```
    /// use highwater::Disk;
    /// use highwater::testing::{Fault, SimDisk};
    ///
    /// let disk = SimDisk::new();
    /// disk.inject(Fault::FullAt { bytes: 4 });
    /// assert_eq!(disk.write(0, b"seven b").unwrap_err().kind(), std::io::ErrorKind::StorageFull);
    /// assert_eq!(disk.image().to_bytes(), b"seve");
    /// assert_eq!(disk.fault_counts().no_space, 1);
    /// ```
    pub fn inject(&self, fault: Fault) {
        self.lock().faults.push(fault);
    }

    /// Removes all faults. A dead process stays dead.
    pub fn heal(&self) {
        self.lock().faults.clear();
    }

    /// Kills the process now: from now on everything fails and nothing is recorded.
    pub fn kill(&self) {
        self.lock().die();
    }

    /// Replaces the file by another one: it is still open here, but nobody else will find it.
    pub fn replace(&self) {
        self.lock().replaced = true;
    }

    /// Whether the process has died, by [`Fault::Dies`] or [`SimDisk::kill`].
    pub fn is_dead(&self) -> bool {
        self.lock().dead
    }

    /// How often each fault has fired so far.
    pub fn fault_counts(&self) -> FaultCounts {
        self.lock().counts
    }

    /// The number of recorded operations. What the outside world saw at this moment, it saw at this position.
    pub fn position(&self) -> usize {
        self.lock().log.len()
    }

    /// The operations on the disk so far. Takes time in proportion to their number, not their bytes.
    pub fn recording(&self) -> Recording {
        let inner = self.lock();
        Recording::new(inner.initial.clone(), inner.log.clone())
    }

    /// What a process reads from the disk now: with every write, synced or not.
    pub fn image(&self) -> Image {
        self.lock().live.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Image {
    /// A disk with this content, without faults, with a new recording: a process that starts on it is in its next
    /// life, and may crash during its recovery too.
    pub fn disk(&self) -> SimDisk {
        SimDisk::from_image(self.clone())
    }
}

impl Recording {
    /// The disk that the next process finds if this one was killed at `position` and the machine keeps running:
    /// everything written is there, and what was not synced is still not durable. Its recording continues from
    /// `position`.
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
        let log = self.log().get(..position).unwrap_or(self.log());
        SimDisk::from_log(self.initial().clone(), log.to_vec())
    }
}

impl Default for SimDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.lock();
        f.debug_struct("SimDisk")
            .field("image", &inner.live)
            .field("position", &inner.log.len())
            .field("faults", &inner.faults)
            .field("dead", &inner.dead)
            .finish()
    }
}

impl Inner {
    fn die(&mut self) {
        if !self.dead {
            self.dead = true;
            self.counts.deaths += 1;
        }
    }

    /// Fails if the process is dead. Called before anything is done.
    fn live(&mut self) -> io::Result<()> {
        let position = self.log.len();
        if self.faults.iter().any(|fault| matches!(fault, Fault::Dies { position: at } if *at <= position)) {
            self.die();
        }
        if self.dead { Err(io::Error::other("simulated: the process is dead")) } else { Ok(()) }
    }

    /// What the last sync made durable.
    fn durable(&self) -> Image {
        let synced = self.log.iter().rev().find_map(|entry| match entry {
            Recorded::Sync(image) => Some(image),
            _ => None,
        });
        synced.unwrap_or(&self.initial).clone()
    }

    /// Applies an operation and records it.
    fn record(&mut self, entry: Recorded) -> io::Result<()> {
        self.live()?;
        entry.apply(&mut self.live);
        self.log.push(entry);
        Ok(())
    }

    fn record_write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        // A write past the end is two things for a file system: a new length, and bytes.
        let end = at.saturating_add(bytes.len() as u64);
        if end > self.live.len() {
            self.record(Recorded::SetLen(end))?;
        }
        self.record(Recorded::Write { at, bytes: bytes.len() as u64, pieces: pieces(at, bytes).into() })
    }

    /// Whether a sync fails now and loses what was written.
    fn forgets(&mut self) -> bool {
        let mut forgets = false;
        self.faults.retain_mut(|fault| {
            let Fault::Forgets { after } = fault else { return true };
            let fires = *after == 0;
            *after = after.saturating_sub(1);
            forgets |= fires;
            !fires
        });
        forgets
    }

    /// Whether an operation of this kind fails now.
    fn fails(&mut self, kind: DiskOperation) -> bool {
        let mut fails = false;
        self.faults.retain_mut(|fault| {
            let Fault::Fails { operation, after } = fault else { return true };
            if *operation != kind {
                return true;
            }
            let fires = *after == 0;
            *after = after.saturating_sub(1);
            fails |= fires;
            !fires
        });
        fails
    }

    /// Whether there is no room for another write, or for a new length.
    fn full(&mut self, is_write: bool) -> bool {
        let mut full = false;
        for fault in &mut self.faults {
            if let Fault::FullAfter { writes } = fault {
                full |= *writes == 0;
                *writes = writes.saturating_sub(u64::from(is_write));
            }
        }
        full
    }

    /// The longest that the file can be.
    fn capacity(&self) -> u64 {
        let bound = |fault: &Fault| match fault {
            Fault::FullAt { bytes } => Some(*bytes),
            _ => None,
        };
        self.faults.iter().filter_map(bound).fold(SIM_DISK_BYTES_MAX, u64::min)
    }

    fn no_space(&mut self) -> io::Error {
        self.counts.no_space += 1;
        io::Error::new(io::ErrorKind::StorageFull, "simulated: no space left on the disk")
    }
}

fn broken(what: &str) -> io::Error {
    io::Error::other(format!("simulated: the disk failed to {what}"))
}

impl Disk for SimDisk {
    fn len(&self) -> io::Result<u64> {
        let mut inner = self.lock();
        inner.live()?;
        Ok(inner.live.len())
    }

    fn read(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
        let mut inner = self.lock();
        inner.live()?;
        if inner.fails(DiskOperation::Read) {
            inner.counts.reads += 1;
            return Err(broken("read"));
        }
        if inner.live.read(at, out) {
            return Ok(());
        }
        let (bytes, len) = (out.len(), inner.live.len());
        Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("{bytes} bytes at {at} end past the {len} bytes of the disk"),
        ))
    }

    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut inner = self.lock();
        inner.live()?;
        if inner.fails(DiskOperation::Write) {
            inner.counts.writes += 1;
            let half = bytes.len() / 2 / 512 * 512;
            inner.record_write(at, bytes.get(..half).unwrap_or_default())?;
            return Err(broken("write"));
        }
        if inner.full(true) {
            return Err(inner.no_space());
        }
        let room = inner.capacity().max(inner.live.len()).saturating_sub(at);
        if (bytes.len() as u64) > room {
            let fits = usize::try_from(room).ok().and_then(|room| bytes.get(..room)).unwrap_or_default();
            inner.record_write(at, fits)?;
            return Err(inner.no_space());
        }
        inner.record_write(at, bytes)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut inner = self.lock();
        inner.live()?;
        if inner.fails(DiskOperation::SetLen) {
            inner.counts.set_lens += 1;
            return Err(broken("change its length"));
        }
        if len > inner.live.len() && (len > inner.capacity() || inner.full(false)) {
            return Err(inner.no_space());
        }
        inner.record(Recorded::SetLen(len))
    }

    fn sync(&self) -> io::Result<()> {
        let mut inner = self.lock();
        inner.live()?;
        if inner.fails(DiskOperation::Sync) {
            inner.counts.syncs += 1;
            return Err(broken("sync"));
        }
        if inner.forgets() {
            inner.counts.syncs_forgotten += 1;
            let durable = inner.durable();
            inner.live = durable.clone();
            // From here on, nothing that was lost can be kept.
            inner.log.push(Recorded::Sync(durable));
            return Err(broken("sync, and has dropped what it could not write"));
        }
        let entry = if inner.faults.contains(&Fault::SyncsIgnored) {
            inner.counts.syncs_ignored += 1;
            Recorded::IgnoredSync
        } else {
            Recorded::Sync(inner.live.clone())
        };
        inner.record(entry)
    }

    fn is_in_place(&self) -> io::Result<bool> {
        Ok(!self.lock().replaced)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(result: io::Result<()>) -> Option<io::ErrorKind> {
        result.err().map(|error| error.kind())
    }

    #[test]
    fn clones_are_the_same_disk_and_images_are_not() {
        let disk = SimDisk::new();
        let same = disk.clone();
        let image = disk.image();
        same.write(10, b"ab").unwrap();
        assert_eq!((disk.len().unwrap(), disk.position(), image.len()), (12, 2, 0));
        let mut out = [0; 3];
        disk.read(9, &mut out).unwrap();
        assert_eq!(&out, b"\0ab");
        assert_eq!(kind(disk.read(10, &mut out)), Some(io::ErrorKind::UnexpectedEof));
        let next = disk.image().disk();
        next.write(0, b"x").unwrap();
        assert_eq!((next.position(), disk.image().to_bytes()), (1, b"\0\0\0\0\0\0\0\0\0\0ab".to_vec()));
    }

    #[test]
    fn full_disk_takes_what_fits_and_overwrites_still() {
        let disk = SimDisk::new();
        disk.set_len(1000).unwrap();
        disk.inject(Fault::FullAt { bytes: 1004 });
        assert_eq!(kind(disk.write(998, &[1; 10])), Some(io::ErrorKind::StorageFull));
        assert_eq!(kind(disk.set_len(1005)), Some(io::ErrorKind::StorageFull));
        assert_eq!(disk.len().unwrap(), 1004);
        disk.write(0, &[2; 1004]).unwrap();
        disk.set_len(10).unwrap();
        assert_eq!(disk.fault_counts().no_space, 2);
        disk.heal();
        disk.set_len(1005).unwrap();
        assert_eq!(kind(disk.set_len(SIM_DISK_BYTES_MAX + 1)), Some(io::ErrorKind::StorageFull));
        assert_eq!(kind(disk.write(u64::MAX - 1, &[1; 4])), Some(io::ErrorKind::StorageFull));
    }

    #[test]
    fn full_after_so_many_writes_stays_full_until_healed() {
        let disk = SimDisk::new();
        disk.inject(Fault::FullAfter { writes: 2 });
        disk.write(0, b"a").unwrap();
        disk.set_len(5).unwrap();
        disk.write(1, b"b").unwrap();
        assert_eq!(kind(disk.write(0, b"c")), Some(io::ErrorKind::StorageFull));
        assert_eq!(kind(disk.set_len(6)), Some(io::ErrorKind::StorageFull));
        disk.set_len(4).unwrap();
        disk.sync().unwrap();
        assert_eq!((disk.image().to_bytes(), disk.fault_counts().no_space), (b"ab\0\0".to_vec(), 2));
        disk.heal();
        disk.write(0, b"c").unwrap();
    }

    #[test]
    fn each_operation_fails_once_at_its_turn() {
        let disk = SimDisk::new();
        for operation in
            [DiskOperation::Read, DiskOperation::Write, DiskOperation::SetLen, DiskOperation::Sync]
        {
            disk.inject(Fault::Fails { operation, after: 1 });
        }
        let mut out = [0; 1];
        disk.write(0, &[1; 2048]).unwrap();
        assert_eq!(kind(disk.write(0, &[2; 2048])), Some(io::ErrorKind::Other));
        assert_eq!(disk.image().to_bytes(), [[2; 1024], [1; 1024]].concat(), "the first half is written");
        disk.write(0, &[3; 2048]).unwrap();
        disk.read(0, &mut out).unwrap();
        assert!(disk.read(0, &mut out).is_err());
        disk.read(0, &mut out).unwrap();
        disk.set_len(4096).unwrap();
        assert!(disk.set_len(0).is_err());
        assert_eq!(disk.len().unwrap(), 4096);
        disk.sync().unwrap();
        assert!(disk.sync().is_err());
        disk.sync().unwrap();
        let expected = FaultCounts { reads: 1, writes: 1, set_lens: 1, syncs: 1, ..FaultCounts::default() };
        assert_eq!(disk.fault_counts(), expected);
    }

    #[test]
    fn the_dead_do_nothing_more() {
        let disk = SimDisk::new();
        disk.inject(Fault::Dies { position: 2 });
        disk.write(0, b"ab").unwrap();
        let mut out = [0; 1];
        assert!(disk.read(0, &mut out).is_err() && disk.is_dead());
        assert!(disk.write(0, b"cd").is_err() && disk.sync().is_err() && disk.len().is_err());
        disk.heal();
        assert!(disk.set_len(0).is_err());
        assert_eq!((disk.position(), disk.image().to_bytes()), (2, b"ab".to_vec()));
        assert_eq!(disk.fault_counts(), FaultCounts { deaths: 1, ..FaultCounts::default() });
        // Within a write that lengthens: the length is there, its bytes are not.
        let disk = SimDisk::new();
        disk.inject(Fault::Dies { position: 1 });
        assert!(disk.write(0, b"ab").is_err());
        assert_eq!(disk.image().to_bytes(), b"\0\0");
    }

    #[test]
    fn counts_add_up_and_are_shown() {
        let disk = SimDisk::new();
        disk.inject(Fault::SyncsIgnored);
        disk.sync().unwrap();
        disk.kill();
        disk.kill();
        let mut total = disk.fault_counts();
        total += disk.fault_counts();
        assert_eq!(
            total.to_string(),
            "no_space=0 reads=0 writes=0 set_lens=0 syncs=0 syncs_forgotten=0 syncs_ignored=2 deaths=2"
        );
    }
}

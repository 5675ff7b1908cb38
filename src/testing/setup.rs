//! The store of every schedule of an exploration: how it is opened on a simulated disk, and checked; and how the
//! runtime drives the extractor of a life.

use std::collections::BTreeMap;
#[cfg(feature = "async")]
use std::pin::pin;
#[cfg(feature = "async")]
use std::sync::Arc;
#[cfg(feature = "async")]
use std::task::{self, Poll, Wake, Waker};
#[cfg(feature = "async")]
use std::thread::Thread;

#[cfg(feature = "async")]
use crate::airdrop::{AsyncExtractor, drive};
use crate::airdrop::{Event, Extractor, Platform, Serve};
use crate::artifact::Level;
use crate::clock::VirtualClock;
use crate::error::{Error, Result, chain};
use crate::model::Safeguard;
use crate::store::Store;
use crate::transfer::Tables;

use super::controls::{Uploads, tables_without};
use super::crash::Sampling;
use super::disk::SimDisk;
use super::image::Image;
use super::report::{Broken, Violation};
use super::watched::Watched;
use super::world::{Life, still_clock};

/// What is the same for every schedule of an exploration.
#[derive(Debug, Clone)]
pub(super) struct Setup {
    /// Records in a batch.
    pub(super) batch_items: u32,
    /// A rule of the runtime that is disabled.
    pub(super) broken: Option<Safeguard>,
    /// The uploads for which it is disabled, if not for all.
    pub(super) broken_of: Option<Uploads>,
    /// Whether the disk ignores syncs.
    pub(super) syncs_ignored: bool,
    /// Whether a life finds the disk of the one before it. If not, it has an empty one. That one is simulated too,
    /// and is not a store in memory: it may be full, fail, or be found by a later life.
    pub(super) has_disk: bool,
    /// For each of these item types: how many records the first sync announces.
    pub(super) expected: BTreeMap<String, u64>,
}

/// What a life is given to work with.
pub(super) struct Work<'w> {
    pub(super) serve: Serve,
    pub(super) store: &'w Store,
    pub(super) platform: &'w dyn Platform,
    pub(super) event: &'w Event,
    pub(super) life: &'w Life,
}

/// The result, and the first violation that was noted meanwhile.
pub(super) type Worked = (Result<()>, Option<Violation>);

/// Makes the extractor of a life, and has the runtime drive it.
pub(super) trait Make: Sync {
    fn work(&self, work: Work<'_>) -> Worked;
}

impl<E: Extractor, F: Fn(&Life) -> E + Sync> Make for F {
    fn work(&self, Work { serve, store, platform, event, life }: Work<'_>) -> Worked {
        let watched = Watched::new(self(life), life.clone());
        let outcome = serve.serve(store, platform, &watched, event).map(drop);
        (outcome, watched.into_violation())
    }
}

/// Makes extractors that await.
#[cfg(feature = "async")]
pub(super) struct Awaiting<F>(pub(super) F);

#[cfg(feature = "async")]
impl<E: AsyncExtractor, F: Fn(&Life) -> E + Sync> Make for Awaiting<F> {
    /// The engine on a thread of its own, the extractor's futures on this one. No second worker comes to it: it would
    /// have to borrow this one's schedule.
    fn work(&self, Work { serve, store, event, life, .. }: Work<'_>) -> Worked {
        let extractor = self.0(life);
        let (store, event, life) = (store.clone(), event.clone(), life.clone());
        let engine = move |bridge| {
            let world = life.world.clone();
            let watched = Watched::new(bridge, life);
            let outcome = serve.serve(&store, &world, &watched, &event).map(drop);
            (outcome, watched.into_violation())
        };
        match block_on(drive(&extractor, Arc::default(), engine)) {
            Ok(worked) => worked,
            Err(error) => (Err(error), None),
        }
    }
}

/// Polls a future on this thread until it is ready.
#[cfg(feature = "async")]
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unparks(Thread);

    impl Wake for Unparks {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    let waker = Waker::from(Arc::new(Unparks(std::thread::current())));
    let mut task = task::Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut task) {
            Poll::Ready(ready) => return ready,
            Poll::Pending => std::thread::park(),
        }
    }
}

impl Setup {
    pub(super) fn open(&self, disk: &SimDisk, clock: VirtualClock) -> Result<Store> {
        Store::options()
            .batch_items(self.batch_items)
            .level(Level::new(0)?)
            .cache_bytes(1024 * 1024)
            .clock(clock)
            .break_rule(self.broken)
            .transfer_tables(
                self.broken.map_or_else(Tables::default, |rule| tables_without(rule, self.broken_of)),
            )
            .open_on(Box::new(disk.clone()), "the simulated store")
    }

    /// A disk where a store was just created.
    pub(super) fn fresh_disk(&self) -> Image {
        let disk = SimDisk::new();
        drop(self.open(&disk, still_clock()));
        disk.image()
    }

    /// A fingerprint of what a disk holds, as the store reads it.
    pub(super) fn fingerprint(&self, disk: &SimDisk) -> Result<u64, Violation> {
        self.open(disk, still_clock())
            .and_then(|store| store.fingerprint())
            .map_err(|error| unopenable(&error))
    }

    /// Checks that what a life has read of a killed one, once it has opened the store on this disk, is still there if
    /// power fails at that moment.
    pub(super) fn durable_at_open(&self, disk: &SimDisk) -> Result<(), Violation> {
        if self.syncs_ignored {
            return Ok(());
        }
        let store = self.open(disk, still_clock()).map_err(|error| unopenable(&error))?;
        let read = store.fingerprint().map_err(|error| unopenable(&error))?;
        let recording = disk.recording();
        let sampling = Sampling { exhaustive_max: 2, subsets: 2, torn: 1, seed: read };
        for crash in recording.images_at(recording.end(), &sampling) {
            if self.fingerprint(&crash.image.disk())? != read {
                let what = format!(
                    "what a life had read when it opened the store of a killed one was taken back by a power failure: {}",
                    recording.describe(&crash.point)
                );
                return Err(Violation { kind: Broken::Lost, what });
            }
        }
        Ok(())
    }

    /// Makes the store on a disk check itself, every page and every row. (With a rule disabled its rows need not
    /// agree: then the oracle judges the result.)
    pub(super) fn check(&self, disk: &SimDisk) -> Result<(), Violation> {
        if self.broken.is_some() || self.syncs_ignored {
            return Ok(());
        }
        let found = self.open(disk, still_clock()).and_then(|mut store| store.check());
        match found.map_err(|error| unopenable(&error))? {
            None => Ok(()),
            Some(finding) => {
                let what = format!("the store does not pass its own check: {finding}");
                Err(Violation { kind: Broken::Unopenable, what })
            }
        }
    }
}

fn unopenable(error: &Error) -> Violation {
    Violation { kind: Broken::Unopenable, what: chain(error) }
}

//! The store, how to open it, and one sync unit in it: what every other room of the store uses.

use std::path::Path;
use std::sync::Arc;
#[cfg(feature = "async")]
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::artifact::Level;
use crate::clock::{Clock, SystemClock};
use crate::error::{Error, Result};
use crate::model::{BATCH_ITEMS, Micros, RESERVED_UNIT_PREFIX, Safeguard, SyncUnitId};

use super::backend::memory::Memory;
use super::backend::redb::Syncs;
#[cfg(feature = "testing")]
use super::disk::Disk;
use super::migrate::migrate;
use super::rows::{Key, UNITS};
use super::tables::{Rows, Tables};

/// Bytes of the page cache. It fills, so all of it is memory that a long sync takes; more saves no time, as the system has the
/// pages in its own cache. Half of it may be pages to be written: those of the two batches that a commit stages must fit into
/// that, or redb writes them twice. redb's default is 1 GiB.
pub(super) const CACHE_BYTES: usize = 1536 * 1024;

/// An open store file: how far each of any number of sync units has been extracted.
///
/// A clone is another handle of the same open store. One process at a time can have a file open.
#[derive(Debug, Clone)]
pub struct Store {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(super) tables: Tables,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) settings: Settings,
}

impl Inner {
    /// Whether a rule is disabled, for a negative control. Without the feature `testing` no rule can be: then this is
    /// `false` at compile time, and the code that depends on it is left out.
    pub(crate) fn breaks(&self, rule: Safeguard) -> bool {
        self.settings.breaks(rule)
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Settings {
    pub(super) batch_items: u32,
    pub(super) level: Level,
    pub(super) overlap: Duration,
    /// The rule that is disabled, for a negative control.
    #[cfg(feature = "testing")]
    pub(super) broken: Option<Safeguard>,
    /// Other tables of upload moves, for a negative control.
    #[cfg(feature = "testing")]
    pub(super) transfer_tables: crate::transfer::Tables,
}

impl Settings {
    #[cfg(feature = "testing")]
    fn breaks(&self, rule: Safeguard) -> bool {
        self.broken == Some(rule)
    }

    #[cfg(not(feature = "testing"))]
    #[allow(clippy::unused_self, reason = "a control disables a rule")]
    const fn breaks(&self, _: Safeguard) -> bool {
        false
    }

    fn syncs(&self) -> Syncs {
        Syncs::new(self.breaks(Safeguard::DurableAtOpen))
    }
}

/// How to open a [`Store`]; made by [`Store::options`].
#[derive(Debug, Clone)]
#[must_use]
pub struct StoreOptions {
    settings: Settings,
    cache_bytes: usize,
    clock: Arc<dyn Clock>,
    wait: Duration,
}

impl StoreOptions {
    /// Items that close a batch: 1 to 1,000,000, [`BATCH_ITEMS`] unless set. Zero counts as 1.
    pub fn batch_items(mut self, items: u32) -> Self {
        self.settings.batch_items = items.clamp(1, 1_000_000);
        self
    }

    /// The compression level of batches: [`Level::default`] unless set.
    pub fn level(mut self, level: Level) -> Self {
        self.settings.level = level;
        self
    }

    /// How far [`Run::since`](crate::Run::since) is moved back, for a source whose listings lag behind its changes.
    /// Zero unless set.
    pub fn overlap(mut self, overlap: Duration) -> Self {
        self.settings.overlap = overlap;
        self
    }

    /// Bytes of page cache, 1.5 MiB unless set; at least 1 MiB. More saves no time on a machine whose file system has a cache of
    /// its own. Half of it is for pages to be written, and a commit may stage two batches: with 1 MiB, those of 2,000 records
    /// of 900 bytes are written twice.
    pub fn cache_bytes(mut self, bytes: usize) -> Self {
        self.cache_bytes = bytes.max(1024 * 1024);
        self
    }

    /// The clock to use: the machine's, unless set.
    pub fn clock(mut self, clock: impl Clock + 'static) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// How long to wait while another process has the file open, before `InUse` is returned. Zero unless set.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// Disables a rule, for a negative control.
    #[cfg(feature = "testing")]
    #[doc(hidden)]
    pub fn break_rule(mut self, rule: Option<Safeguard>) -> Self {
        self.settings.broken = rule;
        self
    }

    /// Uses other tables of upload moves, for a negative control.
    #[cfg(feature = "testing")]
    pub(crate) fn transfer_tables(mut self, tables: crate::transfer::Tables) -> Self {
        self.settings.transfer_tables = tables;
        self
    }

    /// Opens the store, or creates it.
    ///
    /// # Durability
    /// When this returns `Ok`, the file survives power loss. A kill while a store is created leaves no file or a whole
    /// one. What a killed owner left unsynced is synced here, with the directory, before anything is read.
    ///
    /// Every page of the file is verified against its checksum. The time for that grows with the file: well under a
    /// second for 500 MiB on a local disk.
    ///
    /// # Errors
    /// `InUse`; `NotAStore`, also for anything but a regular file; `NewerFormat`; `Corrupt`; `Io`. The file is
    /// unchanged.
    pub fn open(self, path: impl AsRef<Path>) -> Result<Store> {
        let path = path.as_ref();
        let started = self.clock.elapsed();
        loop {
            match Tables::open(path, self.cache_bytes, &self.settings.syncs()) {
                Err(Error::InUse { .. }) if self.clock.elapsed().saturating_sub(started) < self.wait => {
                    self.clock.sleep(Duration::from_millis(50));
                }
                tables => return self.with_tables(tables?),
            }
        }
    }

    /// Opens a store on another kind of disk; errors call it `name`.
    ///
    /// # Errors
    /// Those of [`StoreOptions::open`].
    #[cfg(feature = "testing")]
    #[doc(hidden)]
    pub fn open_on(self, disk: Box<dyn Disk>, name: impl AsRef<Path>) -> Result<Store> {
        let tables = Tables::open_on(disk.into(), name.as_ref(), self.cache_bytes, self.settings.syncs())?;
        self.with_tables(tables)
    }

    /// Opens the store in any backend, or creates it there if the backend is empty; errors call it `name`.
    ///
    /// # Errors
    /// Those of [`StoreOptions::open`].
    #[cfg(feature = "testing")]
    pub fn open_in(
        self,
        backend: impl super::backend::contract::Backend + 'static,
        name: impl AsRef<Path>,
    ) -> Result<Store> {
        let tables = Tables::open_in(Box::new(backend), name.as_ref())?;
        self.with_tables(tables)
    }

    fn with_tables(self, tables: Tables) -> Result<Store> {
        migrate(&tables)?;
        Ok(Store { inner: Arc::new(Inner { tables, clock: self.clock, settings: self.settings }) })
    }
}

impl Store {
    /// Opens the store at `path` with the default options, or creates it.
    ///
    /// # Errors
    /// Those of [`StoreOptions::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::options().open(path)
    }

    /// An empty store in memory; `name` is what errors call it.
    ///
    /// # Errors
    /// Those of [`StoreOptions::open`].
    pub(crate) fn in_memory(name: &str) -> Result<Self> {
        Self::options().with_tables(Tables::open_in(Box::new(Memory::new()), Path::new(name))?)
    }

    /// Options to open a store with.
    pub fn options() -> StoreOptions {
        StoreOptions {
            settings: Settings {
                batch_items: BATCH_ITEMS,
                level: Level::default(),
                overlap: Duration::ZERO,
                #[cfg(feature = "testing")]
                broken: None,
                #[cfg(feature = "testing")]
                transfer_tables: crate::transfer::Tables { batches: None, attachments: None },
            },
            cache_bytes: CACHE_BYTES,
            clock: Arc::new(SystemClock::new()),
            wait: Duration::ZERO,
        }
    }

    /// A handle of one sync unit. Nothing is stored before a run of it begins.
    ///
    /// # Errors
    /// `TooLarge` or `Invalid` if the id is not allowed.
    pub fn sync_unit(&self, id: impl Into<String>) -> Result<SyncUnit> {
        let id = SyncUnitId::new(id)?;
        if id.as_str().starts_with(RESERVED_UNIT_PREFIX) {
            return Err(Error::Invalid {
                what: format!("the sync unit id {id}"),
                reason: format!("ids that start with {RESERVED_UNIT_PREFIX} are reserved"),
            });
        }
        Ok(self.any_unit(id))
    }

    /// A unit by its id; our reserved ids are allowed.
    pub(crate) fn any_unit(&self, id: SyncUnitId) -> SyncUnit {
        SyncUnit { inner: Arc::clone(&self.inner), id }
    }

    /// A handle of the same store that changes nothing any more once this flag is set.
    #[cfg(feature = "async")]
    pub(crate) fn until(&self, cut: &Arc<AtomicBool>) -> Self {
        let Inner { tables, clock, settings } = &*self.inner;
        let inner = Inner { tables: tables.until(cut), clock: Arc::clone(clock), settings: *settings };
        Self { inner: Arc::new(inner) }
    }

    pub(crate) fn breaks(&self, rule: Safeguard) -> bool {
        self.inner.breaks(rule)
    }

    /// Fails if the store file was deleted or replaced since it was opened. Call it right before anything is
    /// confirmed or sent; changes of the store check it themselves.
    ///
    /// # Errors
    /// `Replaced`: stop, and send nothing. `Io` if the path cannot be examined.
    pub(crate) fn ensure_in_place(&self) -> Result<()> {
        self.inner.tables.ensure_in_place()
    }

    /// A fingerprint of everything stored: the same for the same rows.
    #[cfg(feature = "testing")]
    pub(crate) fn fingerprint(&self) -> Result<u64> {
        self.inner.tables.fingerprint()
    }

    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.inner.clock
    }
}

/// One sync unit in a store.
#[derive(Debug, Clone)]
pub struct SyncUnit {
    pub(super) inner: Arc<Inner>,
    pub(super) id: SyncUnitId,
}

impl SyncUnit {
    /// Its id.
    pub fn id(&self) -> &SyncUnitId {
        &self.id
    }

    /// When the last finished run started: everything modified before was extracted. `None` before the first.
    ///
    /// # Errors
    /// `Corrupt` or `Io`.
    pub fn watermark(&self) -> Result<Option<DateTime<Utc>>> {
        let row = self.inner.tables.view(|rows| rows.get(&UNITS, &Key::name(self.id.as_str())))?;
        Ok(row.and_then(|unit| unit.watermark).map(crate::model::Micros::to_time))
    }

    pub(super) fn key(&self) -> Key {
        Key::name(self.id.as_str())
    }

    pub(super) fn now(&self) -> Micros {
        Micros::from_time(self.inner.clock.now())
    }
}

//! Compacting: removing unused space from a store file.
//!
//! A store reuses the pages of what it has forgotten, and seldom returns them to the file system. Compacting moves
//! the rows to the front and cuts the file. How much this saves is found by doing it to a copy.

use std::io;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::model::Micros;

use super::super::backend::redb::is_open_elsewhere;
use super::super::backend::store_file::open_to_read;
use super::super::open::Store;
use super::super::rows::ActRow;
use super::super::tables::Tables;
use super::left::keep_act;
use super::plan::invalid;

/// What compacting a store saves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Compaction {
    /// Size of the file.
    pub bytes: u64,
    /// Size of the file once it is compacted.
    pub bytes_after: u64,
}

impl Compaction {
    /// Compacts a copy, in the directory for temporary files, and measures it. The store does not change.
    ///
    /// # Errors
    /// `InUse`, `NotAStore`, `NewerFormat`, `Corrupt`; `Io`, also if there is no room for a copy.
    pub fn measure(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut file = open_to_read(path)?;
        let copying = |error| Error::io(format!("copy the store {} to measure it", path.display()), error);
        if is_open_elsewhere(&file).map_err(copying)? != Some(false) {
            return Err(Error::InUse { path: path.to_owned() });
        }
        let mut copy = tempfile::NamedTempFile::new().map_err(copying)?;
        let bytes = io::copy(&mut file, &mut copy).map_err(copying)?;
        let named = |error| named_for(error, copy.path(), path);
        let mut store = Store::open(copy.path()).map_err(named)?;
        store.tables_alone()?.compact().map_err(named)?;
        drop(store);
        let bytes_after = copy.path().metadata().map_err(copying)?.len();
        Ok(Self { bytes, bytes_after })
    }

    /// Bytes that it saves.
    pub fn saves(&self) -> u64 {
        self.bytes.saturating_sub(self.bytes_after)
    }
}

/// The error of a copy, as one of the store that it is a copy of: the name of the copy says nothing to an operator.
fn named_for(error: Error, copy: &Path, store: &Path) -> Error {
    let renamed = |text: String| text.replace(&copy.display().to_string(), &store.display().to_string());
    match error {
        Error::Corrupt { what, reason } => Error::Corrupt { what: renamed(what), reason: renamed(reason) },
        Error::NotAStore { reason, .. } => Error::NotAStore { path: store.to_owned(), reason },
        Error::NewerFormat { what, found, supported } => {
            Error::NewerFormat { what: renamed(what), found, supported }
        }
        Error::Io { action, source } => Error::Io { action: renamed(action), source },
        other => other,
    }
}

impl Store {
    /// Compacts the store. `by`: who does it, as for [`Store::mend`].
    ///
    /// # Durability
    /// A kill at any moment leaves all rows, in a file that is compacted, partly compacted, or not.
    ///
    /// # Errors
    /// `Invalid` if the store is in use in this process: there are clones of it, units or runs; `Corrupt`, `Io`.
    pub fn compact(&mut self, by: &str) -> Result<()> {
        let at = Micros::from_time(self.clock().now());
        let row = ActRow { at, by: by.to_owned(), act: "compact the store".to_owned(), changes: Vec::new() };
        let tables = self.tables_alone()?;
        tables.change(|change| keep_act(change, "", &row))?;
        tables.compact()
    }

    /// The tables, if nothing else in this process uses the store.
    fn tables_alone(&mut self) -> Result<&mut Tables> {
        let path = self.inner.tables.path().to_owned();
        let inner = Arc::get_mut(&mut self.inner).ok_or_else(|| {
            let reason = "it is in use in this process: drop its clones, units and runs first".to_owned();
            invalid(format!("compacting {}", path.display()), reason)
        })?;
        Ok(&mut inner.tables)
    }
}

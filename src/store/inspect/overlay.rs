//! A disk over a file that is only read: writes stay in memory, page by page.
//!
//! A store whose owner was killed must be recovered before it can be read, and recovery writes. Here these writes
//! reach only the overlay. It takes memory for the pages written (a few, whatever the file's size), and is dropped
//! after the read.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use crate::store::disk::Disk;

const PAGE_BYTES: usize = 4096;

/// A file opened for reading, shared by its readers.
#[derive(Debug, Clone)]
pub(super) struct Base(Arc<Mutex<File>>);

impl Base {
    pub(super) fn new(file: File) -> Self {
        Self(Arc::new(Mutex::new(file)))
    }

    pub(super) fn with<T>(&self, look: impl FnOnce(&File) -> io::Result<T>) -> io::Result<T> {
        look(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// One call of the system, as every page of a store is read in this way.
    #[cfg(unix)]
    fn read(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
        self.with(|file| std::os::unix::fs::FileExt::read_exact_at(file, out, at))
    }

    #[cfg(not(unix))]
    fn read(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
        use std::io::{Read, Seek, SeekFrom};
        self.with(|mut file| {
            file.seek(SeekFrom::Start(at))?;
            file.read_exact(out)
        })
    }
}

/// What a store sees of a [`Base`], and what it wrote over it.
#[derive(Debug)]
pub(super) struct Overlay {
    base: Base,
    written: Mutex<Written>,
}

#[derive(Debug)]
struct Written {
    pages: BTreeMap<u64, Box<[u8; PAGE_BYTES]>>,
    bytes: u64,
    /// Below this, unwritten bytes are the file's; above it, they are zeroes.
    base_bytes: u64,
}

impl Overlay {
    pub(super) fn over(base: Base) -> io::Result<Self> {
        let bytes = base.with(|file| Ok(file.metadata()?.len()))?;
        let written = Mutex::new(Written { pages: BTreeMap::new(), bytes, base_bytes: bytes });
        Ok(Self { base, written })
    }

    /// Fills `out` from `at` with the file's bytes, and with zeroes after its end.
    fn read_base(&self, base_bytes: u64, at: u64, out: &mut [u8]) -> io::Result<()> {
        let there = usize::try_from(base_bytes.saturating_sub(at)).unwrap_or(usize::MAX).min(out.len());
        let (file, zeroes) = out.split_at_mut(there);
        zeroes.fill(0);
        self.base.read(at, file)
    }

    /// Calls `each` with page, place within it and length for every page that `bytes` bytes from `at` touch.
    fn pages(
        at: u64,
        bytes: usize,
        mut each: impl FnMut(u64, usize, usize) -> io::Result<()>,
    ) -> io::Result<()> {
        let page_bytes = PAGE_BYTES as u64;
        let (mut at, mut left) = (at, bytes);
        while left > 0 {
            let within = usize::try_from(at % page_bytes).unwrap_or_default();
            let length = left.min(PAGE_BYTES - within);
            each(at / page_bytes, within, length)?;
            at += length as u64;
            left -= length;
        }
        Ok(())
    }
}

fn beyond() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "read past the end of the file")
}

impl Disk for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.written.lock().unwrap_or_else(PoisonError::into_inner).bytes)
    }

    fn read(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if at.checked_add(out.len() as u64).is_none_or(|end| end > written.bytes) {
            return Err(beyond());
        }
        let (first, last) = (at / PAGE_BYTES as u64, (at + out.len() as u64) / PAGE_BYTES as u64);
        if written.pages.range(first..=last).next().is_none() {
            return self.read_base(written.base_bytes, at, out);
        }
        let mut rest = out;
        Self::pages(at, rest.len(), |page, within, length| {
            let (part, later) = std::mem::take(&mut rest).split_at_mut(length);
            rest = later;
            match written.pages.get(&page).and_then(|bytes| bytes.get(within..within + length)) {
                Some(bytes) => part.copy_from_slice(bytes),
                None => self.read_base(written.base_bytes, page * PAGE_BYTES as u64 + within as u64, part)?,
            }
            Ok(())
        })
    }

    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let end = at.checked_add(bytes.len() as u64).ok_or_else(beyond)?;
        let mut rest = bytes;
        Self::pages(at, bytes.len(), |page, within, length| {
            let (part, later) = rest.split_at(length);
            rest = later;
            if !written.pages.contains_key(&page) {
                let mut whole = Box::new([0; PAGE_BYTES]);
                if length < PAGE_BYTES {
                    self.read_base(written.base_bytes, page * PAGE_BYTES as u64, whole.as_mut_slice())?;
                }
                written.pages.insert(page, whole);
            }
            if let Some(place) =
                written.pages.get_mut(&page).and_then(|whole| whole.get_mut(within..within + length))
            {
                place.copy_from_slice(part);
            }
            Ok(())
        })?;
        written.bytes = written.bytes.max(end);
        Ok(())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if bytes < written.bytes {
            // Bytes that were cut off read as zeroes if the file grows again.
            let page_bytes = PAGE_BYTES as u64;
            drop(written.pages.split_off(&bytes.div_ceil(page_bytes)));
            let within = usize::try_from(bytes % page_bytes).unwrap_or_default();
            if let Some(tail) =
                written.pages.get_mut(&(bytes / page_bytes)).and_then(|page| page.get_mut(within..))
            {
                tail.fill(0);
            }
            written.base_bytes = written.base_bytes.min(bytes);
        }
        written.bytes = bytes;
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Act {
        Read(u64, usize),
        Write(u64, Vec<u8>),
        SetLen(u64),
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let at = 0_u64..20_000;
        let act = prop_oneof![
            (at.clone(), 0_usize..10_000).prop_map(|(at, bytes)| Act::Read(at, bytes)),
            (at.clone(), proptest::collection::vec(any::<u8>(), 1..9_000))
                .prop_map(|(at, bytes)| Act::Write(at, bytes)),
            at.prop_map(Act::SetLen),
        ];
        proptest::collection::vec(act, 1..30)
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            failure_persistence: Some(Box::new(
                proptest::test_runner::FileFailurePersistence::Direct("proptest-regressions/overlay.txt"),
            )),
            ..ProptestConfig::default()
        })]

        /// The oracle is a plain file of the same bytes, held in memory.
        #[test]
        fn an_overlay_behaves_as_the_file_would_and_never_writes_to_it(
            content in proptest::collection::vec(any::<u8>(), 0..15_000),
            acts in acts(),
        ) {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(&content).unwrap();
            let base = Base::new(File::open(file.path()).unwrap());
            let overlay = Overlay::over(base).unwrap();
            let mut oracle = content.clone();
            for act in acts {
                match act {
                    Act::Read(at, bytes) => {
                        let mut out = vec![0xAA; bytes];
                        let read = overlay.read(at, &mut out);
                        let start = usize::try_from(at).unwrap();
                        match oracle.get(start..start + bytes) {
                            Some(expected) => {
                                prop_assert!(read.is_ok());
                                prop_assert_eq!(&out, expected);
                            }
                            None => prop_assert!(read.is_err()),
                        }
                    }
                    Act::Write(at, bytes) => {
                        overlay.write(at, &bytes).unwrap();
                        let start = usize::try_from(at).unwrap();
                        let end = start + bytes.len();
                        if oracle.len() < end {
                            oracle.resize(end, 0);
                        }
                        oracle[start..end].copy_from_slice(&bytes);
                    }
                    Act::SetLen(bytes) => {
                        overlay.set_len(bytes).unwrap();
                        oracle.resize(usize::try_from(bytes).unwrap(), 0);
                    }
                }
                prop_assert_eq!(overlay.len().unwrap(), oracle.len() as u64);
            }
            let mut whole = vec![0; oracle.len()];
            overlay.read(0, &mut whole).unwrap();
            prop_assert_eq!(whole, oracle);
            prop_assert_eq!(std::fs::read(file.path()).unwrap(), content);
        }
    }
}

//! The bytes of a simulated disk at one moment.
//!
//! An image is a tree of shared pages: a copy costs one pointer for each 256 KiB, a changed page costs that page. Its
//! hash is the wrapping sum of its pages' hashes, each seeded with the page's place, so that a change costs the hash
//! of the pages it touches. A page of zeroes is not stored and adds nothing, whether it was written or never was.

use std::fmt;
use std::sync::Arc;

use twox_hash::XxHash3_128;

/// The unit of copy-on-write.
const PAGE_BYTES: usize = 4096;
const PAGE_BYTES_U64: u64 = PAGE_BYTES as u64;
/// The unit that a disk writes completely or not at all.
const SECTOR_BYTES: usize = 512;
const PAGE_SECTORS: usize = PAGE_BYTES / SECTOR_BYTES;
const CHUNK_PAGES: usize = 64;
const CHUNK_PAGES_U64: u64 = CHUNK_PAGES as u64;

static ZEROES: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

struct Page {
    bytes: [u8; PAGE_BYTES],
    hash: u128,
}

impl Page {
    /// `None` for zeroes, which are not stored.
    fn new(index: u64, bytes: &[u8; PAGE_BYTES]) -> Option<Arc<Self>> {
        if *bytes == ZEROES {
            return None;
        }
        let hash = XxHash3_128::oneshot_with_seed(index, bytes);
        Some(Arc::new(Self { bytes: *bytes, hash }))
    }
}

type Chunk = [Option<Arc<Page>>; CHUNK_PAGES];

/// The content of a [`SimDisk`](super::SimDisk) at one moment: cheap to copy, cheap to compare by [`Image::hash`].
#[derive(Clone, Default)]
pub struct Image {
    len: u64,
    /// Shorter than the file if its end was never written.
    chunks: Vec<Option<Arc<Chunk>>>,
    sum: u128,
}

impl Image {
    /// An image of these bytes.
    ///
    /// ```
    /// use highwater::testing::Image;
    ///
    /// let image = Image::from_bytes(b"twelve bytes");
    /// assert_eq!((image.len(), image.to_bytes()), (12, b"twelve bytes".to_vec()));
    /// ```
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut image = Self::default();
        image.set_len(bytes.len() as u64);
        for piece in pieces(0, bytes) {
            image.apply(&piece);
        }
        image
    }

    /// All of its bytes, as in a file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(self.len).unwrap_or(usize::MAX)];
        self.read(0, &mut bytes);
        bytes
    }

    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A hash of length and content, 128 bits wide: equal for equal images, and different for different ones, except
    /// for an accident that will never happen. It takes almost no time, whatever the length.
    ///
    /// ```
    /// use highwater::testing::Image;
    ///
    /// assert_eq!(Image::from_bytes(b"a").hash(), Image::from_bytes(b"a").hash());
    /// assert_ne!(Image::from_bytes(b"a").hash(), Image::from_bytes(b"a\0").hash());
    /// ```
    pub fn hash(&self) -> u128 {
        self.sum.wrapping_add(XxHash3_128::oneshot(&self.len.to_le_bytes()))
    }

    /// Fills `out` from `at`; returns `false`, without filling anything, if that is past the end.
    pub(super) fn read(&self, at: u64, out: &mut [u8]) -> bool {
        let Some(end) = at.checked_add(out.len() as u64) else { return false };
        if end > self.len {
            return false;
        }
        let mut at = at;
        let mut left = out;
        while !left.is_empty() {
            let (index, from) = place(at);
            let (part, rest) = left.split_at_mut(left.len().min(PAGE_BYTES - from));
            match self.page(index).and_then(|page| page.bytes.get(from..from + part.len())) {
                Some(bytes) => part.copy_from_slice(bytes),
                None => part.fill(0),
            }
            at += part.len() as u64;
            left = rest;
        }
        true
    }

    /// Cuts the image, or lengthens it with zeroes.
    pub(super) fn set_len(&mut self, len: u64) {
        if len < self.len {
            let pages = len.div_ceil(PAGE_BYTES_U64);
            let chunks = usize::try_from(pages.div_ceil(CHUNK_PAGES_U64)).unwrap_or(usize::MAX);
            for chunk in self.chunks.drain(chunks.min(self.chunks.len())..).flatten() {
                for page in chunk.iter().flatten() {
                    self.sum = self.sum.wrapping_sub(page.hash);
                }
            }
            for index in pages..pages.next_multiple_of(CHUNK_PAGES_U64) {
                self.put(index, None);
            }
            let (index, from) = place(len);
            if from > 0
                && let Some(page) = self.page(index)
            {
                let mut bytes = page.bytes;
                for byte in bytes.iter_mut().skip(from) {
                    *byte = 0;
                }
                self.put(index, Page::new(index, &bytes));
            }
        }
        self.len = len;
    }

    /// Writes the piece; the part past the end is lost.
    pub(super) fn apply(&mut self, piece: &Piece) {
        self.apply_sectors(piece, |_| true);
    }

    /// Writes those sectors of the piece (counted within its page) for which `keep` is true.
    pub(super) fn apply_sectors(&mut self, piece: &Piece, mut keep: impl FnMut(usize) -> bool) {
        let room = self.len.saturating_sub(piece.index * PAGE_BYTES_U64).min(PAGE_BYTES_U64);
        let room = usize::try_from(room).unwrap_or(PAGE_BYTES);
        let kept = piece.sectors().fold(0_u8, |kept, sector| kept | u8::from(keep(sector)) << sector);
        if room == 0 || kept == 0 {
            return;
        }
        if let Body::Page(page) = &piece.body
            && kept == u8::MAX
            && room == PAGE_BYTES
        {
            self.put(piece.index, page.clone());
            return;
        }
        let mut bytes = self.page(piece.index).map_or(ZEROES, |page| page.bytes);
        for sector in piece.sectors().filter(|sector| kept >> sector & 1 == 1) {
            let from = (sector * SECTOR_BYTES).max(piece.from);
            let to = ((sector + 1) * SECTOR_BYTES).min(piece.from + piece.len()).min(room);
            if from < to
                && let Some(new) = piece.bytes().get(from - piece.from..to - piece.from)
                && let Some(old) = bytes.get_mut(from..to)
            {
                old.copy_from_slice(new);
            }
        }
        self.put(piece.index, Page::new(piece.index, &bytes));
    }

    fn page(&self, index: u64) -> Option<&Arc<Page>> {
        let (chunk, page) = slot(index);
        self.chunks.get(chunk)?.as_ref()?.get(page)?.as_ref()
    }

    fn put(&mut self, index: u64, page: Option<Arc<Page>>) {
        let (chunk, within) = slot(index);
        if chunk >= self.chunks.len() {
            if page.is_none() {
                return;
            }
            self.chunks.resize(chunk + 1, None);
        }
        let Some(chunk) = self.chunks.get_mut(chunk) else { return };
        if chunk.is_none() && page.is_none() {
            return;
        }
        let chunk = chunk.get_or_insert_with(|| Arc::new(std::array::from_fn(|_| None)));
        let Some(place) = Arc::make_mut(chunk).get_mut(within) else { return };
        self.sum = self
            .sum
            .wrapping_sub(place.as_ref().map_or(0, |page| page.hash))
            .wrapping_add(page.as_ref().map_or(0, |page| page.hash));
        *place = page;
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Image({} bytes, {:032x})", self.len, self.hash())
    }
}

/// The part of a write that lies in one page.
#[derive(Clone)]
pub(super) struct Piece {
    index: u64,
    /// Where it begins in the page.
    from: usize,
    body: Body,
}

#[derive(Clone)]
enum Body {
    /// A whole page, made and hashed once for every image that keeps it.
    Page(Option<Arc<Page>>),
    Part(Arc<[u8]>),
}

impl Piece {
    fn bytes(&self) -> &[u8] {
        match &self.body {
            Body::Page(Some(page)) => &page.bytes,
            Body::Page(None) => &ZEROES,
            Body::Part(bytes) => bytes,
        }
    }

    fn len(&self) -> usize {
        self.bytes().len()
    }

    /// The sectors of its page that it touches.
    pub(super) fn sectors(&self) -> std::ops::Range<usize> {
        self.from / SECTOR_BYTES..(self.from + self.len()).div_ceil(SECTOR_BYTES).min(PAGE_SECTORS)
    }
}

/// Splits a write into pages, in order.
pub(super) fn pieces(at: u64, bytes: &[u8]) -> Vec<Piece> {
    let mut pieces = Vec::with_capacity(bytes.len() / PAGE_BYTES + 2);
    let mut at = at;
    let mut left = bytes;
    while !left.is_empty() {
        let (index, from) = place(at);
        let (part, rest) = left.split_at(left.len().min(PAGE_BYTES - from));
        let body = match <&[u8; PAGE_BYTES]>::try_from(part) {
            Ok(whole) => Body::Page(Page::new(index, whole)),
            Err(_) => Body::Part(part.into()),
        };
        pieces.push(Piece { index, from, body });
        at += part.len() as u64;
        left = rest;
    }
    pieces
}

/// Page, and place in it.
fn place(at: u64) -> (u64, usize) {
    (at / PAGE_BYTES_U64, usize::try_from(at % PAGE_BYTES_U64).unwrap_or(0))
}

/// Chunk, and page in it.
fn slot(index: u64) -> (usize, usize) {
    (
        usize::try_from(index / CHUNK_PAGES_U64).unwrap_or(usize::MAX),
        usize::try_from(index % CHUNK_PAGES_U64).unwrap_or(0),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes and cuts at random, against a plain vector; the hash against that of an image made at once.
    #[test]
    fn image_is_as_a_vector_of_bytes() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut image = Image::default();
        let mut plain: Vec<u8> = Vec::new();
        for step in 0..3000 {
            match rng.u8(0..4) {
                0 => {
                    let len = rng.usize(0..700_000);
                    image.set_len(len as u64);
                    plain.resize(len, 0);
                }
                _ if plain.is_empty() => {}
                kind => {
                    let at = if kind == 1 {
                        rng.usize(0..plain.len()) / 512 * 512
                    } else {
                        rng.usize(0..plain.len())
                    };
                    let longest = [20, 4096, 20_000][rng.usize(0..3)];
                    let len = rng.usize(0..=longest.min(plain.len() - at));
                    let fill = if rng.u8(0..4) == 0 { 0 } else { rng.u8(..) };
                    let bytes: Vec<u8> = (0..len).map(|at| if at % 512 < 500 { fill } else { 0 }).collect();
                    // A write may reach past the end; that part is lost.
                    let past = rng.usize(0..600);
                    let longer =
                        [bytes.clone(), vec![7; if at + len == plain.len() { past } else { 0 }]].concat();
                    for piece in pieces(at as u64, &longer) {
                        image.apply(&piece);
                    }
                    plain[at..at + len].copy_from_slice(&bytes);
                }
            }
            if step % 10 == 0 {
                assert!(image.to_bytes() == plain, "step {step}");
                assert_eq!(image.hash(), Image::from_bytes(&plain).hash(), "step {step}");
            }
        }
    }

    #[test]
    fn copy_is_not_changed_by_its_original() {
        let mut image = Image::from_bytes(&[1; 10_000]);
        let copy = image.clone();
        for piece in pieces(5000, &[2; 100]) {
            image.apply(&piece);
        }
        image.set_len(9000);
        assert_eq!(copy.to_bytes(), vec![1; 10_000]);
        assert_ne!(copy.hash(), image.hash());
    }

    #[test]
    fn hash_tells_place_and_length_apart() {
        let page = |fill| vec![fill; PAGE_BYTES];
        let hashes = [
            Image::from_bytes(&[]),
            Image::from_bytes(&page(0)),
            Image::from_bytes(&[page(0), page(0)].concat()),
            Image::from_bytes(&[page(1), page(2)].concat()),
            Image::from_bytes(&[page(2), page(1)].concat()),
            Image::from_bytes(&[page(1), page(1)].concat()),
            Image::from_bytes(&page(1)),
        ]
        .map(|image| image.hash());
        let distinct: std::collections::BTreeSet<_> = hashes.iter().collect();
        assert_eq!(distinct.len(), hashes.len());
    }

    #[test]
    fn reading_past_the_end_fails_and_fills_nothing() {
        let image = Image::from_bytes(&[3; 100]);
        let mut out = [9; 10];
        assert!(!image.read(91, &mut out) && !image.read(u64::MAX, &mut out));
        assert_eq!(out, [9; 10]);
        assert!(image.read(90, &mut out));
        assert_eq!(out, [3; 10]);
    }

    #[test]
    fn sectors_are_kept_one_by_one() {
        let mut image = Image::from_bytes(&[1; 8192]);
        // From the middle of sector 1 to the middle of sector 9, so in two pages.
        let cut = pieces(700, &[2; 4096]);
        assert_eq!(cut.iter().map(Piece::sectors).collect::<Vec<_>>(), [1..8, 0..2]);
        for piece in &cut {
            image.apply_sectors(piece, |sector| sector == 1);
        }
        let mut expected = vec![1; 8192];
        expected[700..1024].fill(2);
        expected[4608..4796].fill(2);
        assert!(image.to_bytes() == expected);
    }
}

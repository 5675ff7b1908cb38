//! Cursors that make no progress: a page that leads back to its own cursor, and a cycle of several pages.
//!
//! Either would be read forever, and its records announced each time. A page that leads to the very cursor it was
//! fetched with is found at once, also if another invocation fetched the page before it. A longer cycle is found
//! within one invocation by Brent's algorithm (R. P. Brent, "An improved Monte Carlo factorization algorithm", BIT
//! 20, 1980): it keeps one earlier cursor, replaced after 1, 2, 4, 8... pages, and compares each new one with it. So
//! it needs memory for one cursor, whatever the length of the stream. A cycle of `n` cursors that begins after `m`
//! pages is found before the `2 * max(m, n) + n`th page is staged. Cursors are compared whole, as JSON, so different
//! cursors are never confused. (A cursor that is written differently each time, such as a map in random order, is not
//! recognised.)

use std::fmt::Display;

use crate::cut;
use crate::error::{Error, Result};

/// The cursors of one stream in one invocation.
#[derive(Debug, Default)]
pub(crate) struct CursorWatch {
    /// The earlier cursor that new ones are compared with.
    earlier: Option<String>,
    /// Pages since then, and after how many the next one takes its place.
    pages: u64,
    span: u64,
    /// It was reported that the stream reads far more than ever before.
    pub(super) is_told: bool,
}

impl CursorWatch {
    /// Takes the cursor that a page leads to, before the page is staged.
    ///
    /// # Errors
    /// `Invalid` if it leads back into a cycle.
    pub(crate) fn advance(&mut self, listing: impl Display, next: &str) -> Result<()> {
        if self.earlier.as_deref() == Some(next) {
            let reason = format!(
                "it came {} pages ago in this invocation, so the source's pages form a cycle and would be read forever",
                self.pages + 1
            );
            return Err(refused(listing, next, reason));
        }
        self.pages += 1;
        if self.pages >= self.span {
            self.earlier = Some(next.to_owned());
            self.span = (self.span * 2).max(1);
            self.pages = 0;
        }
        Ok(())
    }
}

/// Refuses a page that leads to the cursor it was fetched with.
///
/// # Errors
/// `Invalid` if it does.
pub(super) fn check_moves(listing: impl Display, cursor: Option<&str>, next: Option<&str>) -> Result<()> {
    match next {
        Some(next) if cursor == Some(next) => Err(refused(
            listing,
            next,
            "the page that was fetched with it leads to it again, so it would be read forever: to wait for the source, \
             end the invocation with RateLimited"
                .to_owned(),
        )),
        _ => Ok(()),
    }
}

fn refused(listing: impl Display, cursor: &str, reason: String) -> Error {
    let shown = cut::to_chars(cursor, 200);
    Error::Invalid { what: format!("the cursor {shown} of {listing}"), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of pages after which a cycle is found: one of `length` cursors after `before` others.
    fn found_after(before: u64, cycle: u64) -> Option<u64> {
        let stream = "stream issues";
        let mut watch = CursorWatch::default();
        (0..1000).find(|&page| {
            let cursor = if page < before { page } else { before + (page - before) % cycle };
            watch.advance(stream, &cursor.to_string()).is_err()
        })
    }

    #[test]
    fn every_cycle_is_found_and_no_straight_line_is_taken_for_one() {
        for before in 0..40 {
            for cycle in 1..40 {
                let page = found_after(before, cycle).unwrap_or_else(|| panic!("{before} {cycle}"));
                assert!(page >= before + cycle, "{before} {cycle}: nothing came twice before");
                assert!(page <= 2 * before.max(cycle) + cycle, "{before} {cycle}: only after {page}");
            }
        }
        assert_eq!(found_after(2000, 1), None);
    }

    #[test]
    fn the_error_names_stream_and_cursor_and_a_long_cursor_is_cut() {
        let stream = "stream issues";
        check_moves(stream, Some("1"), Some("2")).unwrap();
        check_moves(stream, Some("1"), None).unwrap();
        check_moves(stream, None, Some("1")).unwrap();
        check_moves(stream, None, None).unwrap();
        let error = check_moves(stream, Some("17"), Some("17")).unwrap_err().to_string();
        assert!(error.starts_with("the cursor 17 of stream issues is not allowed: "), "{error}");
        let long = "9".repeat(5000);
        assert!(check_moves(stream, Some(&long), Some(&long)).unwrap_err().to_string().len() < 500);
    }
}

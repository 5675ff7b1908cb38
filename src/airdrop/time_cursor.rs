//! The position in a listing that is sorted by the time of the last change and has only page numbers.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use chrono::{DateTime, FixedOffset};
use serde::{Deserialize, Serialize};

use super::source_client::QueryValue;
use super::source_error::SourceError;

/// The position in a listing whose API has only page numbers, but sorts by the time of the last change, the oldest
/// first, and takes a time to begin at.
///
/// A page number is no position: if a record that was read changes, it moves to the end, and all behind it move up by
/// one. The first of the next page is then never seen. So this cursor asks for the first page of what changed since the
/// last time that was read, and [`TimeCursor::is_new`] leaves out what was read before. Nothing is lost or read twice,
/// whatever changes or is deleted meanwhile, as long as a time has fewer records than a page. If an answer has no later
/// time, the next page of that time is asked for, and a record of this time that changes then can hide another one.
///
/// ```
/// use highwater::airdrop::{Context, SourceClient, SourceError, TimeCursor};
/// use highwater::record::Id;
/// use highwater::{Page, Record};
/// use serde_json::json;
///
/// #[derive(serde::Deserialize)]
/// struct Tickets { tickets: Vec<Ticket>, next_page: Option<u32> }
/// #[derive(serde::Deserialize)]
/// struct Ticket { id: Id, updated_at: String }
///
/// fn tickets(
///     source: &SourceClient,
///     context: &Context,
///     cursor: Option<TimeCursor>,
/// ) -> Result<Page<TimeCursor>, SourceError> {
///     let mut at = cursor.unwrap_or_else(|| TimeCursor::new(context.since()));
///     let query = [("updated_since", at.since()), ("page", at.page().into())];
///     let listing: Tickets = source.get_json("/tickets", &query)?;
///     let mut page = Page::last();
///     for ticket in listing.tickets {
///         if at.is_new(&ticket.id, &ticket.updated_at)? {
///             page.push("tickets", Record::new(ticket.id, &json!({}))?.modified_text(&ticket.updated_at)?);
///         }
///     }
///     page.set_next(at.next(listing.next_page));
///     Ok(page)
/// }
/// ```
///
/// A listing in which nothing leaves its place, such as comments that cannot be deleted, needs no time: without
/// [`TimeCursor::is_new`], a [default](TimeCursor::default) cursor is the number of the page. So one type serves both.
///
/// # What the API must do
/// - Sort by the time of the last change, the oldest first, and records of one time in an order that does not change,
///   such as by id. [`TimeCursor::is_new`] refuses a record that is older than the one before it.
/// - Include the time itself in what it returns. If the API means *later than*, pass times that are one unit less, to
///   [`TimeCursor::new`] too; otherwise records of the last time can be lost.
/// - Compare with the times that it returns. If it is coarser, such as whole minutes, pass times that are cut to that.
///
/// The ids that were read at one time are in the cursor, which has at most
/// [`CURSOR_BYTES_MAX`](crate::limits::CURSOR_BYTES_MAX) bytes of JSON: some 1,600 UUIDs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TimeCursor {
    /// The time of the last record that was read or, until one is, where to begin.
    since: Option<String>,
    /// The number of the page, of what changed at or after `since`; `None` for the first one.
    page: Option<u32>,
    /// The records of the time `since` that were read.
    read: BTreeSet<String>,
    /// Whether the answer at hand has a later time than the one before it.
    #[serde(skip)]
    is_later: bool,
}

impl TimeCursor {
    /// The start of a listing: of what changed at or after this time, usually
    /// [`Context::since`](super::Context::since).
    pub fn new(since: impl Into<QueryValue>) -> Self {
        Self { since: since.into().into_text(), ..Self::default() }
    }

    /// The time to ask for, as the API wrote it; nothing at the start of a listing without one.
    pub fn since(&self) -> QueryValue {
        self.since.as_ref().into()
    }

    /// The number of the page to ask for, of what changed at or after [`TimeCursor::since`]; nothing for the first one.
    pub fn page(&self) -> Option<u32> {
        self.page
    }

    /// Whether this record was not read yet. Call it for each record of the answer, in its order. `changed_at` is the
    /// text of the API: RFC 3339, or a number such as seconds since 1970.
    ///
    /// # Errors
    /// `Failed` if the text is no time, or is earlier than that of a record before it. Then the API does not sort as it
    /// must, and records could be lost.
    pub fn is_new(&mut self, id: &str, changed_at: &str) -> Result<bool, SourceError> {
        if self.since.as_deref() != Some(changed_at) || self.read.is_empty() {
            let order = self.order(changed_at).map_err(|reason| format!("the listing has {id}: {reason}"))?;
            if order == Ordering::Greater {
                self.since = Some(changed_at.to_owned());
                self.is_later = true;
                self.page = None;
                self.read.clear();
            }
        }
        Ok(self.read.insert(id.to_owned()))
    }

    /// How this time is to that of the last record that was read. If there is none, any is later.
    fn order(&self, changed_at: &str) -> Result<Ordering, String> {
        let of = |text: &str| {
            Time::of(text)
                .ok_or_else(|| format!("its time is {text:?}, expected RFC 3339 with offset, or a number"))
        };
        let time = of(changed_at)?;
        let Some(last) = self.since.as_deref().filter(|_| !self.read.is_empty()) else {
            return Ok(Ordering::Greater);
        };
        match time.order(&of(last)?) {
            Some(order @ (Ordering::Equal | Ordering::Greater)) => Ok(order),
            _ => Err(format!(
                "its time {changed_at} comes after {last}. Ask for the oldest change first; if the API compares \
                 with whole seconds or minutes, pass times that are cut to these"
            )),
        }
    }

    /// The cursor of the next page. `next_page` is its number, as the API says in this answer; `None` at the end of the
    /// listing. Do not count instead: an answer that leads to its own page, as a broken one may, is then refused and
    /// not passed over. Only if the API just says that there is more, take `at.page().unwrap_or(1) + 1`.
    pub fn next(mut self, next_page: Option<u32>) -> Option<Self> {
        // What is behind a later time begins at its first page.
        self.page = next_page.filter(|_| !self.is_later);
        self.is_later = false;
        next_page.map(|_| self)
    }
}

/// A time as APIs write it.
enum Time {
    Moment(DateTime<FixedOffset>),
    Number(f64),
}

impl Time {
    fn of(text: &str) -> Option<Self> {
        let number = || text.parse().ok().filter(|number: &f64| number.is_finite()).map(Self::Number);
        DateTime::parse_from_rfc3339(text).ok().map(Self::Moment).or_else(number)
    }

    /// `None` if they are of two kinds.
    fn order(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Moment(time), Self::Moment(other)) => Some(time.cmp(other)),
            (Self::Number(time), Self::Number(other)) => time.partial_cmp(other),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A record, and the time of its last change.
    type Changed = (u32, u32);

    /// A listing that is sorted by time and id, and changes after each answer.
    struct Source {
        records: Vec<Changed>,
        per_page: usize,
        /// The times are texts or numbers.
        is_text: bool,
    }

    impl Source {
        fn text(&self, time: u32) -> String {
            let text = || DateTime::from_timestamp(time.into(), 0).unwrap().to_rfc3339();
            if self.is_text { text() } else { time.to_string() }
        }

        /// What `updated_since=` this text and `page=` this number answer, and the number of the next page.
        fn answer(&mut self, since: Option<&str>, page: u32) -> (Vec<Changed>, Option<u32>) {
            self.records.sort_by_key(|(id, time)| (*time, *id));
            let least = self.records.iter().map(|(_, time)| *time);
            let least = least.filter(|time| since.is_none_or(|since| self.text(*time) == since)).min();
            let wanted: Vec<_> = self
                .records
                .iter()
                .copied()
                .filter(|(_, time)| least.is_some_and(|least| *time >= least))
                .collect();
            let from = self.per_page * (page as usize - 1);
            let answer = wanted.iter().copied().skip(from).take(self.per_page).collect();
            (answer, (wanted.len() > from + self.per_page).then_some(page + 1))
        }
    }

    /// What is read of a source that changes behind the reader, and what is there at the end.
    fn read(mut source: Source, changes: &[(usize, bool)], by_time: bool) -> (Vec<Changed>, Vec<Changed>) {
        let (mut seen, mut next) = (Vec::new(), Some("{}".to_owned()));
        let (mut changes, mut now) = (changes.iter(), 10_000);
        for asked in 0.. {
            let Some(json) = next else { break };
            assert!(asked < 1_000, "it has no end");
            let mut at: TimeCursor = serde_json::from_str(&json).unwrap();
            // The last record of the time stays, so that the time is known to the source.
            let since = at.since.clone().filter(|_| by_time);
            let (answer, next_page) = source.answer(since.as_deref(), at.page.unwrap_or(1));
            for record in &answer {
                if !by_time || at.is_new(&record.0.to_string(), &source.text(record.1)).unwrap() {
                    seen.push(*record);
                }
            }
            // One that was read, and is not of the last time, changes or is deleted, unless this was the last page.
            if let Some((index, is_deleted)) = changes.next().filter(|_| next_page.is_some()) {
                let last = answer.last().map_or(0, |(_, time)| *time);
                let read: Vec<_> =
                    (0..source.records.len()).filter(|at| source.records[*at].1 < last).collect();
                if !read.is_empty() {
                    let which = read[index % read.len()];
                    if *is_deleted {
                        source.records.remove(which);
                    } else {
                        now += 1;
                        source.records[which].1 = now;
                    }
                }
            }
            next = at.next(next_page).map(|at| serde_json::to_string(&at).unwrap());
        }
        (seen, source.records)
    }

    fn lost((seen, there): &(Vec<Changed>, Vec<Changed>)) -> usize {
        there.iter().filter(|record| !seen.contains(record)).count()
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_read_twice_while_what_is_older_than_the_last_time_changes(
            times in prop::collection::vec(0_u32..12, 1..60),
            per_page in 1_usize..9,
            is_text in any::<bool>(),
            changes in prop::collection::vec((any::<usize>(), any::<bool>()), 0..30),
        ) {
            let records = (0..).zip(times).collect();
            let read = read(Source { records, per_page, is_text }, &changes, true);
            prop_assert_eq!(lost(&read), 0, "{:?}", read);
            let once: BTreeSet<_> = read.0.iter().collect();
            prop_assert_eq!(once.len(), read.0.len(), "{:?}", read);
        }
    }

    #[test]
    fn page_numbers_alone_lose_records_of_the_same_source() {
        let changes = [(0, false); 10];
        let source = || Source { records: (0..40).map(|n| (n, n)).collect(), per_page: 4, is_text: true };
        assert!(lost(&read(source(), &changes, false)) > 0);
        assert_eq!(lost(&read(source(), &changes, true)), 0);
        assert_eq!(lost(&read(source(), &[], false)), 0, "a source that does not change");
    }

    /// The limit that the documentation names; no cursor of page numbers is without it.
    #[test]
    fn more_records_of_one_time_than_a_page_has_can_hide_one() {
        let mut source = Source { records: (0..4).map(|id| (id, 0)).collect(), per_page: 2, is_text: true };
        let mut at = TimeCursor::default();
        let mut seen = Vec::new();
        for moves in [None, Some(0), None] {
            let (answer, next_page) = source.answer(at.since.clone().as_deref(), at.page.unwrap_or(1));
            for (id, time) in answer {
                if at.is_new(&id.to_string(), &source.text(time)).unwrap() {
                    seen.push(id);
                }
            }
            if let Some(which) = moves {
                source.records[which].1 = 1;
            }
            let Some(next) = at.clone().next(next_page) else { break };
            at = next;
        }
        assert_eq!(seen, [0, 1, 3, 0], "record 2 moved to a page that was read");
    }

    #[test]
    fn one_instant_in_two_forms_is_one_time() {
        let mut at = TimeCursor::default();
        assert!(at.is_new("1", "2026-01-02T03:04:05Z").unwrap());
        assert!(!at.is_new("1", "2026-01-02T04:04:05.0+01:00").unwrap());
        assert!(at.is_new("1", "2026-01-02T03:04:05.5Z").unwrap(), "it changed");
        let next = at.next(Some(2)).unwrap();
        assert_eq!((next.since(), next.page()), ("2026-01-02T03:04:05.5Z".into(), None));
        // All of a page were read.
        let mut at = next;
        assert!(!at.is_new("1", "2026-01-02T03:04:05.5Z").unwrap());
        let next = at.next(Some(2)).unwrap();
        assert_eq!((next.since(), next.page()), ("2026-01-02T03:04:05.5Z".into(), Some(2)));
        // An answer that leads to its own page gives the cursor that it came from, which a run refuses.
        assert_eq!(next.clone().next(Some(2)), Some(next.clone()));
        assert_eq!(next.next(None), None);
    }

    #[test]
    fn what_is_before_the_start_is_new_and_what_is_out_of_order_is_refused_by_name() {
        // The API compares with whole minutes.
        let mut at = TimeCursor::new("2026-01-02T03:04:05Z");
        assert!(at.is_new("7", "2026-01-02T03:04:00Z").unwrap());
        let error = format!("{:?}", at.is_new("8", "2026-01-02T03:03:59Z").unwrap_err());
        assert!(
            error.contains("has 8: its time 2026-01-02T03:03:59Z comes after 2026-01-02T03:04:00Z"),
            "{error}"
        );
        for text in ["yesterday", "", "NaN", "5"] {
            let error = format!("{:?}", at.is_new("9", text).unwrap_err());
            assert!(error.contains("has 9: its time"), "{error}");
        }
    }

    #[test]
    fn without_times_it_is_the_number_of_the_page() {
        let at = TimeCursor::default().next(Some(2)).unwrap().next(Some(3)).unwrap();
        assert_eq!((at.since(), at.page()), (None::<&str>.into(), Some(3)));
        let json = serde_json::to_string(&at).unwrap();
        assert_eq!(serde_json::from_str::<TimeCursor>(&json).unwrap(), at);
    }
}

//! Rejected records in an invocation: whether they can be requested again, the request, and the limit on their share.

use tracing::info;

use crate::model::{Phase, REJECTED_FEW};
use crate::store::{Page, Run};

use super::context::Context;
use super::invocation::{Invocation, Stop};
use super::json_cursors::{AnyExtractor, CursorJson};

/// Fetches rejected records again.
///
/// # Errors
/// The extractor's failure, or that it cannot refetch.
pub(super) fn refetch(
    invocation: &Invocation<'_>,
    extractor: &AnyExtractor<'_>,
    context: &Context,
    item_type: &str,
    ids: &[String],
) -> Result<Page<CursorJson>, Stop> {
    let unit = context.run.sync_unit();
    let count = ids.len();
    if !extractor.can_refetch(item_type) {
        let first = ids.first().map_or("", String::as_str);
        return Err(Stop::failed(&format!(
            "earlier runs of {unit} rejected records of {item_type}, {first} among them, and this extractor cannot refetch \
             them: write Extractor::refetch and can_refetch for {item_type}; their ids are kept until then"
        )));
    }
    info!(target: "highwater", item_type, count, "requesting rejected records again");
    let page = invocation.ask(context, Phase::Data, || extractor.refetch(context, item_type, ids));
    page.map(|page| page.asked(item_type, ids)).map_err(|stop| {
        stop.while_doing(&format!("requesting {count} rejected records of {item_type} of {unit} again"))
    })
}

/// Refuses a page that rejects records which cannot be requested again: they would be lost.
///
/// # Errors
/// What to answer.
pub(super) fn check_refetchable(
    extractor: &AnyExtractor<'_>,
    run: &Run,
    stream: &str,
    page: &Page<CursorJson>,
) -> Result<(), Stop> {
    for (item_type, (id, reason, count)) in page.rejected_by_type() {
        if !extractor.can_refetch(item_type) {
            return Err(Stop::failed(&format!(
                "a page of stream {stream} of {} rejects {count} records of {item_type}, the first {id}: {reason}; this \
                 extractor cannot refetch them, so they would be lost: correct them, or write Extractor::refetch and \
                 can_refetch for {item_type}; nothing of the page is stored, and it is fetched again",
                run.sync_unit()
            )));
        }
    }
    Ok(())
}

/// Whether at most `percent` of the records read by the run were rejected. Checked once everything is read.
///
/// # Errors
/// What to answer.
pub(super) fn check_part(run: &Run, percent: u8) -> Result<(), Stop> {
    let (read, rejected) = run.read_and_rejected()?;
    if is_too_many(read, rejected, percent) {
        return Err(Stop::failed(&format!(
            "run {} of {} rejected {rejected} of {read} records, more than {percent} %: inspect them with highwater-dump; \
             then fix the extractor or the source and start a new run, which fetches all of it again, or raise the limit \
             (Serve::rejected_percent) and go on with this one",
            run.id(),
            run.sync_unit()
        )));
    }
    Ok(())
}

/// Whether a run rejected more of the records it read than allowed.
fn is_too_many(read: u64, rejected: u64, percent: u8) -> bool {
    rejected > REJECTED_FEW && u128::from(rejected) * 100 > u128::from(read) * u128::from(percent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_are_never_too_many_and_beyond_them_a_part_of_what_was_read_may_be_rejected() {
        for (read, rejected, percent, expected) in [
            (10, 10, 1, false),
            (11, 11, 1, true),
            (1_099, 11, 1, true),
            (1_100, 11, 1, false),
            (100_000, 1_000, 1, false),
            (100_000, 1_001, 1, true),
            (20, 11, 100, false),
            (20, 11, 0, true),
            (u64::MAX, u64::MAX, 100, false),
        ] {
            assert_eq!(is_too_many(read, rejected, percent), expected, "{rejected} of {read}, {percent} %");
        }
    }
}

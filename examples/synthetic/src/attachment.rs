//! Attachments: how pages name them, and how their bytes are fetched.

use std::time::Duration;

use highwater::airdrop::{AttachmentBody, AttachmentError, Context, SourceError};
use highwater::record::Attachment;
use ureq::Agent;

use crate::issue::Issue;
use crate::source::{Tracker, whole};

/// The item type under which attachments are staged.
pub(crate) const ITEM_TYPE: &str = "attachments";

/// How long the external system may take to begin its answer, and between two parts of it: a stalled stream would
/// hold up the invocation.
pub(crate) const STALL: Duration = Duration::from_secs(30);

/// The files of the external system: one for each of the first issues.
#[derive(Debug)]
pub(crate) struct Files {
    /// The number of issues that have one.
    count: u32,
    /// Bytes of each.
    bytes: u64,
    /// How long to wait if the external system asks to wait, and does not say how long.
    retry_after: Duration,
    agent: Agent,
}

impl Files {
    /// `count` files of this many bytes; as many are fetched at once as there are streams.
    pub(crate) fn new(count: u32, bytes: u64, streams: usize, retry_after: Duration) -> Self {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(STALL))
            .timeout_recv_response(Some(STALL))
            .timeout_per_read(Some(STALL))
            .max_idle_connections(streams)
            .max_idle_connections_per_host(streams)
            .build()
            .into();
        Self { count, bytes, retry_after, agent }
    }

    /// The attachment of issue number `key`, if it has one. Without a tracker it is on the platform's stand-in for
    /// one.
    pub(crate) fn of_issue(
        &self,
        context: &Context,
        tracker: Option<&Tracker>,
        key: u32,
        issue: &Issue,
    ) -> Result<Option<Attachment>, SourceError> {
        if key >= self.count {
            return Ok(None);
        }
        let url = if let Some(tracker) = tracker {
            tracker.file(key, self.bytes)
        } else {
            let endpoint = context.event().devrev_endpoint()?.ok_or(
                "the event has no execution_metadata.devrev_endpoint, from which attachments are fetched",
            )?;
            format!("{endpoint}/ext/attachment/{key}?bytes={}", self.bytes)
        };
        let mut attachment = Attachment::new(
            format!("attachment-{key}"),
            url,
            format!("issue-{key}.bin"),
            format!("issue-{key}"),
        );
        attachment.author_id = Some(issue.creator());
        Ok(Some(attachment))
    }

    /// Begins to fetch the bytes of an attachment.
    pub(crate) fn open(&self, attachment: &Attachment) -> Result<AttachmentBody, AttachmentError> {
        let response = self.agent.get(&attachment.url).call()?;
        let body = whole("the file", response, self.retry_after)?.into_body();
        let (length_bytes, content_type) = (body.content_length(), body.mime_type().map(str::to_owned));
        let mut opened = AttachmentBody::new(body.into_reader());
        opened.length_bytes = length_bytes;
        opened.content_type = content_type;
        Ok(opened)
    }
}

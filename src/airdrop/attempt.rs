//! One attempt at a call about an upload, made in a lane: the bytes of a batch, an attachment, a confirm.

use crate::artifact;
use crate::error::Result;
use crate::model::ArtifactId;
use crate::record::Attachment;

use super::body::Failure;
use super::in_flight::UploadNo;
use super::lanes::guarded;
use super::platform::{Body, Platform, Upload};

/// An attempt to be made in a lane.
pub(super) struct Attempt {
    pub(super) no: UploadNo,
    pub(super) call: Call,
}

pub(super) enum Call {
    Batch { file_name: String, bytes: Vec<u8> },
    Attachment(Attachment),
    Confirm(ArtifactId),
}

/// The result of an attempt.
pub(super) struct AttemptResult {
    pub(super) no: UploadNo,
    /// The new artifact of an upload; `None` for a confirm.
    pub(super) result: Result<Option<ArtifactId>, Failure>,
}

/// Opens an attachment and streams it to the platform: one attempt.
pub(super) type UploadAttachment<'a> = dyn Fn(&Attachment) -> Result<ArtifactId, Failure> + Sync + 'a;

/// Makes one attempt; attachments are opened and streamed by `upload_attachment`. Right before a confirm, `in_place`
/// sees that the store's path still leads to the open file.
///
/// # Errors
/// That of `in_place`: the confirm was not made, and this worker must stop.
pub(super) fn attempt(
    platform: &dyn Platform,
    in_place: impl Fn() -> Result<()>,
    upload_attachment: Option<&UploadAttachment<'_>>,
    attempt: &Attempt,
) -> Result<AttemptResult> {
    let result = match (&attempt.call, upload_attachment) {
        (Call::Batch { file_name, bytes }, _) => guarded(|| {
            let body = Body::Batch(bytes);
            platform.upload(Upload { file_name, content_type: artifact::CONTENT_TYPE, body }).map(Some)
        })
        .map_err(Failure::Platform),
        (Call::Confirm(artifact), _) => {
            in_place()?;
            guarded(|| platform.confirm(artifact).map(|()| None)).map_err(Failure::Platform)
        }
        (Call::Attachment(attachment), Some(upload)) => upload(attachment).map(Some),
        (Call::Attachment(attachment), None) => Err(Failure::Final(format!(
            "attachment {} is uploaded in the attachments phase only",
            attachment.id
        ))),
    };
    Ok(AttemptResult { no: attempt.no, result })
}

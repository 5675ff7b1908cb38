//! The addresses of artifacts: to prepare an upload, to upload, to confirm, and to download.
//!
//! An upload is accepted as S3 accepts a presigned POST: it must have every field of `form_data` unchanged, no other,
//! and then the file. What follows the file is ignored. A second upload replaces the first.

use std::fs::File;
use std::hash::Hasher as _;
use std::io::{self, Read};

use flate2::write::MultiGzDecoder;
use highwater::ArtifactId;
use highwater::airdrop::{Body, Fate, Platform as _, PlatformError, Upload};
use serde_json::{Map, Value, json};
use twox_hash::XxHash3_64;

use crate::api::{Api, Exchange, artifact_id, failed};
use crate::call::Content;
use crate::form::{self, Form};
use crate::http::Answer;
use crate::local::UPLOAD_BYTES_MAX;

/// Characters of a file name. The platform's SDK cuts longer ones.
const FILE_NAME_CHARS_MAX: usize = 256;

impl Api {
    /// Prepares an upload. The fields of its form are derived from the id, so a server that is restarted still knows
    /// them.
    pub(crate) fn prepare(&self, exchange: &mut Exchange<'_, '_>, _: &str) -> Result<Answer, Answer> {
        exchange.needed("request_id")?;
        let file_type = exchange.needed("file_type")?;
        let file_name = exchange.needed("file_name")?;
        exchange.seen.file_name = Some(file_name.clone());
        let chars = file_name.chars().count();
        if chars > FILE_NAME_CHARS_MAX {
            let text = format!("file_name has {chars} characters, the limit is {FILE_NAME_CHARS_MAX}");
            exchange.lint("file-name-length", 400, text)?;
        }
        // No SDK up to 2.0 sends it for a batch.
        let file_size: Option<u64> = match exchange.request.parameter("file_size") {
            None => None,
            Some(text) => {
                let bytes = text.parse().ok().filter(|bytes| *bytes > 0);
                Some(bytes.ok_or_else(|| {
                    Answer::refused(400, format!("file_size must be a whole number of bytes, not {text:?}"))
                })?)
            }
        };
        if let Some(file_size) = file_size.filter(|bytes| *bytes > UPLOAD_BYTES_MAX) {
            let reason = format!("file_size is {file_size} bytes, the limit is {UPLOAD_BYTES_MAX}");
            return Err(Answer::refused(413, reason));
        }
        let id = self.local.prepare().map_err(|error| Answer::refused(503, error.to_string()))?;
        exchange.seen.artifact = Some(id.to_string());
        let fields: Map<String, Value> = form_data(id.as_str(), &file_type, file_size)
            .into_iter()
            .map(|(name, value)| (name, value.into()))
            .collect();
        let answer = json!({
            "artifact_id": id.as_str(),
            "upload_url": format!("{}/upload/{id}", self.base),
            "form_data": fields,
        });
        Ok(Answer::json(200, &answer))
    }

    pub(crate) fn upload(&self, exchange: &mut Exchange<'_, '_>, id: &str) -> Result<Answer, Answer> {
        exchange.seen.artifact = Some(id.to_owned());
        let strict = exchange.is_strict();
        let id = artifact_id(id)?;
        let boundary = boundary(exchange)?;
        let unfit = |error: io::Error| Answer::refused(400, error.to_string());
        let Form { fields, mut file } = Form::read(&mut exchange.request.body, &boundary).map_err(unfit)?;
        let told = check_fields(&id, &fields)?;
        let content_type = field(&fields, "Content-Type")?.to_owned();
        file.must_be_last = strict;
        let mut counted = Counted::new(&mut file);
        let body = Body::Stream { reader: &mut counted, length_bytes: told.filter(|_| strict) };
        let upload = Upload { file_name: "the file", content_type: &content_type, body };
        let before = self.local.artifact_bytes(&id).ok();
        let taken =
            if strict { self.local.upload_as(&id, upload) } else { self.local.upload_again(&id, upload) };
        let content = counted.content();
        let followed = file.followed;
        exchange.seen.content = Some(content.clone());
        taken.map_err(|error| match error {
            PlatformError::Retry { fate: Fate::NotApplied, reason, .. } => Answer::refused(400, reason),
            error => failed(error),
        })?;
        if followed {
            let text = "something follows the file, which is the last part of the form: it is ignored";
            exchange.lint("after-the-file", 400, text)?;
        }
        if let Some(told) = told.filter(|told| *told != content.bytes) {
            let text = format!("the file was declared to be {told} bytes and has {}", content.bytes);
            exchange.lint("file-size", 400, text)?;
        }
        if let Some(before) = before
            && format!("{:016x}", XxHash3_64::oneshot(&before)) != content.hash
        {
            let text = format!("artifact {id} was uploaded before, with other bytes");
            exchange.lint("uploaded-again", 409, text)?;
        }
        Ok(Answer::empty())
    }

    pub(crate) fn confirm(&self, exchange: &mut Exchange<'_, '_>, _: &str) -> Result<Answer, Answer> {
        let id = exchange.artifact_request()?;
        self.local.confirm(&id).map_err(failed)?;
        Ok(Answer::json(200, &json!({})))
    }

    pub(crate) fn download_url(&self, exchange: &mut Exchange<'_, '_>, _: &str) -> Result<Answer, Answer> {
        exchange.needed("request_id")?;
        let id = artifact_id(&exchange.needed("artifact_id")?)?;
        exchange.seen.artifact = Some(id.to_string());
        self.artifact(&id)?;
        Ok(Answer::json(200, &json!({ "download_url": format!("{}/download/{id}", self.base) })))
    }

    pub(crate) fn download(&self, exchange: &mut Exchange<'_, '_>, id: &str) -> Result<Answer, Answer> {
        exchange.seen.artifact = Some(id.to_owned());
        let (file, bytes) = self.artifact(&artifact_id(id)?)?;
        Ok(Answer::stream(file, bytes, true))
    }

    /// The bytes of an artifact, and their number.
    pub(crate) fn artifact(&self, id: &ArtifactId) -> Result<(File, u64), Answer> {
        let path = self.local.artifact_path(id).map_err(|error| Answer::refused(404, error.to_string()))?;
        let opened = File::open(path).and_then(|file| file.metadata().map(|about| (file, about.len())));
        opened.map_err(|error| Answer::refused(503, error.to_string()))
    }
}

/// Inspects an upload that is not kept.
pub(crate) fn hear_upload(exchange: &mut Exchange<'_, '_>, id: &str) {
    exchange.seen.artifact = Some(id.to_owned());
    let Ok(boundary) = boundary(exchange) else { return };
    let Ok(Form { mut file, .. }) = Form::read(&mut exchange.request.body, &boundary) else { return };
    let mut counted = Counted::new(&mut file);
    if io::copy(&mut counted, &mut io::sink()).is_ok() {
        let content = counted.content();
        exchange.seen.content = Some(content);
    }
}

fn boundary(exchange: &Exchange<'_, '_>) -> Result<String, Answer> {
    let content_type = exchange.request.header("Content-Type").unwrap_or_default();
    form::boundary(content_type).ok_or_else(|| {
        Answer::refused(415, "an upload is multipart/form-data, with the boundary in its Content-Type")
    })
}

/// The only value of a form field.
fn field<'f>(fields: &'f [(String, String)], name: &str) -> Result<&'f str, Answer> {
    let mut sent = fields.iter().filter(|(known, _)| known == name);
    match (sent.next(), sent.next()) {
        (Some((_, value)), None) => Ok(value),
        (Some(_), Some(_)) => Err(Answer::refused(400, format!("the form field {name} was sent twice"))),
        (None, _) => {
            let reason = format!("the form field {name} was not sent before the file; form_data names it");
            Err(Answer::refused(400, reason))
        }
    }
}

/// Refuses a form whose fields are not those of `form_data`. Returns the size that was given when it was prepared.
fn check_fields(id: &ArtifactId, fields: &[(String, String)]) -> Result<Option<u64>, Answer> {
    // The size is among the fields only if it was given; the signature covers whether it is.
    let told = if fields.iter().any(|(name, _)| name == SIZE_FIELD) {
        Some(field(fields, SIZE_FIELD)?.parse().unwrap_or(0))
    } else {
        None
    };
    let expected = form_data(id.as_str(), field(fields, "Content-Type")?, told);
    for (name, value) in &expected {
        if field(fields, name)? != value {
            let reason = format!("the form field {name} is not as form_data says");
            return Err(Answer::refused(403, reason));
        }
    }
    match fields.iter().find(|(name, _)| expected.iter().all(|(known, _)| known != name)) {
        Some((name, _)) => Err(Answer::refused(400, format!("form_data names no form field {name}"))),
        None => Ok(told),
    }
}

/// The form field with the length of the file.
const SIZE_FIELD: &str = "x-file-size";

/// The fields of an upload's form. The signature stands for that of a file store: it shows that nothing was changed.
fn form_data(id: &str, content_type: &str, bytes: Option<u64>) -> Vec<(String, String)> {
    let size = bytes.map(|bytes| bytes.to_string());
    let signed = format!("{id}\n{content_type}\n{}", size.as_deref().unwrap_or("of any size"));
    let fields = [
        ("key", Some(format!("artifacts/{id}"))),
        ("Content-Type", Some(content_type.to_owned())),
        (SIZE_FIELD, size),
        ("x-signature", Some(format!("{:016x}", XxHash3_64::oneshot(signed.as_bytes())))),
    ];
    fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

/// A reader that counts and hashes the bytes that pass through it, and counts the lines in them.
struct Counted<R> {
    inner: R,
    bytes: u64,
    hash: XxHash3_64,
    /// `None` once the bytes are not gzip.
    lines: Option<MultiGzDecoder<Lines>>,
}

/// Counts lines. The last one may lack its line break, as the platform's SDK writes it.
#[derive(Default)]
struct Lines {
    ended: u64,
    is_open: bool,
}

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.ended += bytes.split(|byte| *byte == b'\n').skip(1).count() as u64;
        self.is_open = bytes.last().map_or(self.is_open, |byte| *byte != b'\n');
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<R: Read> Counted<R> {
    fn new(inner: R) -> Self {
        Self { inner, bytes: 0, hash: XxHash3_64::new(), lines: Some(MultiGzDecoder::new(Lines::default())) }
    }

    fn content(self) -> Content {
        let lines = self.lines.filter(|_| self.bytes > 0).and_then(|lines| lines.finish().ok());
        Content {
            bytes: self.bytes,
            hash: format!("{:016x}", self.hash.finish()),
            lines: lines.map(|lines| lines.ended + u64::from(lines.is_open)),
        }
    }
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        let read = buffer.get(..count).unwrap_or_default();
        self.bytes += count as u64;
        self.hash.write(read);
        if let Some(lines) = &mut self.lines
            && io::Write::write_all(lines, read).is_err()
        {
            self.lines = None;
        }
        Ok(count)
    }
}

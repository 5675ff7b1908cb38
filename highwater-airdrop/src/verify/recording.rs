//! The recorded answers of the external system: every later sync has the same source, and needs no network.
//!
//! A request is identified by its method, path and query, and by a hash of its body. Times in parameters or in fields
//! of the body are ignored, unless only they identify the answer: `since=now` differs in each sync, but a page's
//! `before=TIME` does not. Credentials in a body are ignored, too, and so are named parameters
//! ([`Matching::ignored`]). A request never gets the answer for another body: in GraphQL all requests have one
//! address.
//!
//! # On disk
//!
//! JSON Lines, readable only by the owner (mode 0600), replaced as a whole when the recording is complete: if
//! recording is interrupted, the last file is kept. The first line is a [`Head`], each other an [`Answered`]. Neither
//! the headers nor the body of a request are stored. Credentials, recognised by the name of a field or header, are
//! replaced by `REDACTED` everywhere. The address of the source is replaced by one that leads nowhere; when the
//! recording is replayed, by the address of the proxy.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::DateTime;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tempfile::NamedTempFile;
use twox_hash::XxHash3_64;

use crate::audit::printable;
use crate::error::{Error, Result};

/// The format of a recording.
const FORMAT: u32 = 1;
/// Requests that were not repeated, as examples.
const REQUESTS_TOLD_MAX: usize = 3;
/// Stands for a credential.
const REDACTED: &str = "REDACTED";
/// Stands for the address of the source.
const SOURCE: &str = "http://source.invalid";
/// A shorter credential is too likely to be equal to another word.
const SECRET_BYTES_MIN: usize = 6;
/// A value named just `key` is a credential from this length on: `key=PROJ-1` is the name of a thing.
const KEY_BYTES_MIN: usize = 16;
/// Parts of the names of parameters and headers with a credential, in lower case, without `-` and `_`.
const CREDENTIALS: [&str; 13] = [
    "accesskey",
    "apikey",
    "authorization",
    "bearer",
    "cookie",
    "credential",
    "jwt",
    "passwd",
    "password",
    "privatekey",
    "secret",
    "session",
    "signature",
];
/// Names of JSON fields with a credential, in lower case, without `-` and `_`. A bare `token` may be that of the next
/// page.
const SECRET_FIELDS: [&str; 7] =
    ["accesstoken", "apikey", "clientsecret", "idtoken", "password", "privatekey", "refreshtoken"];
/// Headers of an answer about its connection or the caller: they are not stored.
const DROPPED_HEADERS: [&str; 10] = [
    "connection",
    "content-encoding",
    "content-length",
    "date",
    "keep-alive",
    "server",
    "set-cookie",
    "strict-transport-security",
    "trailer",
    "transfer-encoding",
];

/// Whether a name is that of a credential. The token of a next page is not.
pub(super) fn is_credential(name: &str) -> bool {
    let name = plain(name);
    let of_page = ["page", "next", "continu", "cursor", "sync", "skip", "prev"];
    let is_token = name.ends_with("token") && !of_page.iter().any(|word| name.contains(word));
    is_token
        || matches!(name.as_str(), "auth" | "hapikey" | "key" | "pat" | "sig")
        || name.starts_with("xamz")
        || CREDENTIALS.iter().any(|part| name.contains(part))
}

/// The same, for a name with its value.
pub(super) fn is_credential_of(name: &str, value: &str) -> bool {
    is_credential(name) && (!name.eq_ignore_ascii_case("key") || value.len() >= KEY_BYTES_MIN)
}

/// Whether the name of a JSON field is that of a credential.
fn is_secret_field(name: &str) -> bool {
    SECRET_FIELDS.contains(&plain(name).as_str())
}

/// A name in lower case, without `-` and `_`.
fn plain(name: &str) -> String {
    name.to_ascii_lowercase().replace(|char: char| !char.is_ascii_alphanumeric(), "")
}

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    format: u32,
    /// What was recorded.
    source: String,
    /// Requests that were answered only when they were repeated.
    #[serde(default)]
    unanswered: u64,
}

/// A request, as it is looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    /// Method and path, and the query without ignored parameters.
    pub(super) request: String,
    /// The same, without the values of times.
    timeless: String,
    body: u64,
    timeless_body: u64,
}

/// How requests are compared.
#[derive(Debug, Clone, Default)]
pub(super) struct Matching {
    /// Parameters that are ignored.
    pub(super) ignored: Vec<String>,
}

impl Matching {
    pub(super) fn asked(&self, method: &str, path: &str, query: &[(String, String)], body: &[u8]) -> Asked {
        let (mut request, mut timeless) = (format!("{method} {path}"), format!("{method} {path}"));
        let looked_at = query.iter().filter(|(name, _)| !self.ignored.contains(name));
        for (at, (name, value)) in looked_at.enumerate() {
            let value = if is_credential_of(name, value) { REDACTED } else { value };
            let add = |to: &mut String, value: &str| {
                to.push(if at == 0 { '?' } else { '&' });
                to.push_str(
                    &form_urlencoded::Serializer::new(String::new()).append_pair(name, value).finish(),
                );
            };
            add(&mut request, value);
            add(&mut timeless, if is_time(name, value) { "*" } else { value });
        }
        Asked { request, timeless, body: XxHash3_64::oneshot(body), timeless_body: timeless_hash(body) }
    }
}

/// A hash of a body in which the values of times and credentials are ignored: fields of JSON, or parameters of a
/// form. It is 0 if there is no body.
fn timeless_hash(body: &[u8]) -> u64 {
    if body.is_empty() {
        return 0;
    }
    if let Ok(mut value) = serde_json::from_slice::<Value>(body) {
        blank("", &mut value);
        return XxHash3_64::oneshot(value.to_string().as_bytes());
    }
    // A body that is not text is not a form: decoded, two bodies could become the same.
    if std::str::from_utf8(body).is_err() {
        return XxHash3_64::oneshot(body);
    }
    let mut form = form_urlencoded::Serializer::new(String::new());
    for (name, value) in form_urlencoded::parse(body) {
        let counts = !is_time(&name, &value) && !is_credential_of(&name, &value);
        form.append_pair(&name, if counts { &value } else { "*" });
    }
    XxHash3_64::oneshot(form.finish().as_bytes())
}

/// Replaces times and credentials by `*`. The elements of a list have the name of the list.
fn blank(name: &str, value: &mut Value) {
    let counts = match value {
        Value::Array(values) => return values.iter_mut().for_each(|value| blank(name, value)),
        Value::Object(fields) => return fields.iter_mut().for_each(|(name, value)| blank(name, value)),
        Value::String(text) => !is_time(name, text) && !is_secret_field(name),
        Value::Number(number) => !is_time(name, &number.to_string()),
        Value::Null | Value::Bool(_) => true,
    };
    if !counts {
        *value = "*".into();
    }
}

/// Whether a parameter is a time: a date, a timestamp, or seconds or milliseconds since 1970 under a name that is
/// used for times.
fn is_time(name: &str, value: &str) -> bool {
    let bytes = value.as_bytes();
    let is_date = bytes.len() >= 10
        && bytes.iter().take(10).enumerate().all(|(at, byte)| match at {
            4 | 7 => *byte == b'-',
            _ => byte.is_ascii_digit(),
        })
        && (bytes.len() == 10 || matches!(bytes.get(10), Some(b'T' | b't' | b' ')));
    if is_date {
        return true;
    }
    let name = name.to_ascii_lowercase();
    let of_time = ["since", "time", "date", "modified", "created", "_at", "until"];
    let seconds = value.parse::<i64>().ok().map(|number| match bytes.len() {
        10 => number,
        13 => number / 1000,
        _ => 0,
    });
    let in_this_century = seconds.and_then(|seconds| DateTime::from_timestamp(seconds, 0));
    of_time.iter().any(|word| name.contains(word))
        && in_this_century.is_some_and(|at| at.timestamp() >= 978_307_200)
}

/// A request, and its answer: a line of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Answered {
    /// Whether it was in the first sync.
    pub(super) initial: bool,
    request: String,
    timeless: String,
    request_hash: u64,
    /// The hash of the request's body, in which times and credentials are ignored; 0 if there is no body.
    #[serde(default)]
    timeless_hash: u64,
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    text: String,
    /// A body that is not UTF-8.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    base64: String,
}

impl Answered {
    pub(super) fn new(
        initial: bool,
        asked: Asked,
        status: u16,
        headers: Vec<(String, String)>,
        body: Vec<u8>,
    ) -> Self {
        let headers = headers
            .into_iter()
            .filter(|(name, _)| !DROPPED_HEADERS.contains(&name.to_ascii_lowercase().as_str()))
            .collect();
        let (text, base64) = match String::from_utf8(body) {
            Ok(text) => (text, String::new()),
            Err(error) => (String::new(), STANDARD.encode(error.as_bytes())),
        };
        let Asked { request, timeless, body: request_hash, timeless_body: timeless_hash } = asked;
        Self { initial, request, timeless, request_hash, timeless_hash, status, headers, text, base64 }
    }

    /// Its headers and body, with the address of the proxy that replays it.
    pub(super) fn replayed(&self, base: &str) -> (Vec<(String, String)>, Vec<u8>) {
        let here = |text: &str| text.replace(SOURCE, base);
        let headers = self.headers.iter().map(|(name, value)| (name.clone(), here(value))).collect();
        // It was encoded by this program: a file that cannot be decoded was refused when it was read.
        let body = if self.base64.is_empty() {
            here(&self.text).into_bytes()
        } else {
            STANDARD.decode(&self.base64).unwrap_or_default()
        };
        (headers, body)
    }

    /// Whether it is a page: JSON.
    pub(super) fn json(&self) -> Option<Value> {
        serde_json::from_str(&self.text).ok().filter(|value: &Value| value.is_object() || value.is_array())
    }

    /// Method and path without what is probably an id: equal for requests for the same kind of thing.
    pub(super) fn place(&self) -> String {
        let (method, target) = self.request.split_once(' ').unwrap_or(("", &self.request));
        let path = target.split('?').next().unwrap_or_default();
        let parts: Vec<&str> = path
            .split('/')
            .map(|part| if part.bytes().any(|byte| byte.is_ascii_digit()) { "*" } else { part })
            .collect();
        format!("{method} {}", parts.join("/"))
    }

    /// Whether it is what was asked for, or says where that is, or that there is nothing.
    pub(super) fn is_final(&self) -> bool {
        matches!(self.status, 200..=399 | 404 | 410)
    }

    /// Whether it answers this very request.
    pub(super) fn answers(&self, asked: &Asked) -> bool {
        self.request == asked.request && self.request_hash == asked.body
    }

    fn parameters(&self) -> Vec<(String, String)> {
        let query = self.request.split_once('?').map_or("", |(_, query)| query);
        form_urlencoded::parse(query.as_bytes()).into_owned().collect()
    }

    fn replace(&mut self, what: &str, by: &str) {
        for text in [&mut self.request, &mut self.timeless, &mut self.text] {
            if text.contains(what) {
                *text = text.replace(what, by);
            }
        }
        for (_, value) in &mut self.headers {
            *value = value.replace(what, by);
        }
    }
}

/// Replaces the fields that are credentials by `REDACTED`; returns how many there were.
fn redact_fields(value: &mut Value) -> usize {
    match value {
        Value::Array(values) => values.iter_mut().map(redact_fields).sum(),
        Value::Object(fields) => fields
            .iter_mut()
            .map(|(name, value)| {
                if value.is_string() && is_secret_field(name) {
                    *value = REDACTED.into();
                    return 1;
                }
                redact_fields(value)
            })
            .sum(),
        _ => 0,
    }
}

/// Whether a source that answers so may answer otherwise in a moment: the answer says nothing of what it has.
fn is_temporary(status: u16) -> bool {
    matches!(status, 408 | 429 | 500..)
}

/// The failures among the recorded answers. A worker that takes one for an empty page delivers less in every sync from
/// the recording, the clean ones included, so that no case can show it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RecordedFailures {
    /// All recorded answers.
    pub answers: u64,
    /// Answers with 408, 429 or a 5xx, by status.
    pub failures: BTreeMap<u16, u64>,
    /// Requests without a whole answer. All were repeated until there was one, or there would be no recording.
    pub unanswered: u64,
    /// The `failures` after which the same sync never got a 2xx or 3xx for the same request, nor a 404 or 410.
    pub not_repeated: BTreeMap<u16, u64>,
    /// Some of the requests that were not repeated.
    pub requests: Vec<String>,
}

impl RecordedFailures {
    /// Whether the clean syncs may be smaller than the source.
    pub fn is_suspicious(&self) -> bool {
        !self.not_repeated.is_empty()
    }
}

impl fmt::Display for RecordedFailures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by_status = |counts: &BTreeMap<u16, u64>, unanswered: u64| {
            let mut each: Vec<String> =
                counts.iter().map(|(status, count)| format!("{count} with {status}")).collect();
            if unanswered > 0 {
                each.push(format!("{unanswered} without an answer"));
            }
            format!("{} ({})", counts.values().sum::<u64>() + unanswered, each.join(", "))
        };
        let answers = self.answers;
        if self.failures.is_empty() && self.unanswered == 0 {
            return write!(f, "{answers} answers, no failures");
        }
        write!(f, "{answers} answers, failures: {}", by_status(&self.failures, self.unanswered))?;
        if !self.is_suspicious() {
            return f.write_str("; the worker repeated each of these requests until it was answered");
        }
        write!(
            f,
            "; not repeated until answered: {}, such as {}. If the worker took a failure for an empty page, the \
             clean syncs lack its records, and no case can show that: compare their counts with the source. If \
             records are missing, make the worker repeat the request or stop with an error. To record again, remove \
             source.jsonl, or the file that --recording names",
            by_status(&self.not_repeated, 0),
            printable(&self.requests.join(", ")),
        )
    }
}

/// Answers, by the requests that they answer.
type Index = HashMap<(String, u64), Vec<usize>>;

/// A recording, to be replayed.
#[derive(Debug, Default)]
pub(super) struct Recording {
    answers: Vec<Answered>,
    unanswered: u64,
    /// By sync (the first one first) and request.
    exact: [Index; 2],
    /// The same, where times are ignored.
    timeless: [Index; 2],
}

impl Recording {
    pub(super) fn new(answers: Vec<Answered>) -> Self {
        let mut recording = Self { answers, ..Self::default() };
        for (at, answer) in recording.answers.iter().enumerate() {
            let [first, next] = &mut recording.exact;
            let exact = if answer.initial { first } else { next };
            exact.entry((answer.request.clone(), answer.request_hash)).or_default().push(at);
            let [first, next] = &mut recording.timeless;
            let timeless = if answer.initial { first } else { next };
            timeless.entry((answer.timeless.clone(), answer.timeless_hash)).or_default().push(at);
        }
        recording
    }

    /// Writes it durably. The file contains no secrets, nor the address of the source.
    ///
    /// # Errors
    /// `Io` if the disk fails.
    pub(super) fn save(
        path: &Path,
        source: &str,
        secrets: &BTreeSet<String>,
        mut answers: Vec<Answered>,
        unanswered: u64,
    ) -> Result<Self> {
        // The longest first: one secret may be a part of another.
        let mut secrets: Vec<&String> =
            secrets.iter().filter(|secret| secret.len() >= SECRET_BYTES_MIN).collect();
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        for answer in &mut answers {
            if let Some(mut value) = answer.json()
                && redact_fields(&mut value) > 0
            {
                answer.text = value.to_string();
            }
            for secret in &secrets {
                answer.replace(secret, REDACTED);
            }
            answer.replace(source, SOURCE);
        }
        let written = (|| {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            // A new file with mode 0600 replaces the last one when it is complete.
            let mut file = NamedTempFile::new_in(folder.unwrap_or(Path::new(".")))?;
            let head = Head { format: FORMAT, source: source.to_owned(), unanswered };
            writeln!(file, "{}", serde_json::to_string(&head)?)?;
            for answer in &answers {
                writeln!(file, "{}", serde_json::to_string(answer)?)?;
            }
            file.as_file().sync_all()?;
            file.persist(path).map_err(|error| error.error).map(drop)
        })();
        written.map_err(|error: std::io::Error| {
            Error::io(format!("write the recording {}", path.display()), error)
        })?;
        Ok(Self { unanswered, ..Self::new(answers) })
    }

    /// Reads one; `None` if there is none, or if it is of another source and may be replaced.
    ///
    /// # Errors
    /// `Invalid` if it is of another source and may not be replaced, or is not a recording; `Io` if the disk fails.
    pub(super) fn read(path: &Path, source: &str, may_replace: bool) -> Result<Option<Self>> {
        let file = match fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(format!("read the recording {}", path.display()), error)),
        };
        let unusable = |reason: String| Error::Invalid {
            what: format!("the recording {}", path.display()),
            reason: format!("{reason}; use another one with --recording, or remove it to record again"),
        };
        let mut lines = BufReader::new(file).lines();
        let first =
            lines.next().transpose().map_err(|error| unusable(format!("it cannot be read: {error}")))?;
        let head: Head = serde_json::from_str(&first.unwrap_or_default())
            .map_err(|_| unusable("it is not a recording".to_owned()))?;
        if head.format != FORMAT {
            return Err(unusable(format!("it has format {}, this version reads {FORMAT}", head.format)));
        }
        if head.source != source {
            if may_replace {
                return Ok(None);
            }
            return Err(unusable(format!("it is a recording of {}, not of {source}", head.source)));
        }
        let mut answers = Vec::new();
        for (number, line) in lines.enumerate() {
            let answer = line
                .map_err(|error| error.to_string())
                .and_then(|line| serde_json::from_str(&line).map_err(|error| error.to_string()))
                .and_then(|answer: Answered| match STANDARD.decode(&answer.base64) {
                    Ok(_) => Ok(answer),
                    Err(error) => Err(error.to_string()),
                });
            answers.push(answer.map_err(|error| unusable(format!("line {}: {error}", number + 2)))?);
        }
        Ok(Some(Self { unanswered: head.unanswered, ..Self::new(answers) }))
    }

    pub(super) fn answer(&self, at: usize) -> Option<&Answered> {
        self.answers.get(at)
    }

    /// The answers that are failures, as they would be of the source by itself, not of a fault that was set.
    pub(super) fn failures(&self) -> RecordedFailures {
        let mut found = RecordedFailures {
            answers: self.answers.len() as u64,
            unanswered: self.unanswered,
            ..RecordedFailures::default()
        };
        for (at, answer) in self.answers.iter().enumerate() {
            if !is_temporary(answer.status) {
                continue;
            }
            *found.failures.entry(answer.status).or_default() += 1;
            // A request of the other sync does not bring back what this one went without.
            let [first, next] = &self.exact;
            let of_sync = if answer.initial { first } else { next };
            let same = of_sync.get(&(answer.request.clone(), answer.request_hash));
            let was_repeated = same
                .into_iter()
                .flatten()
                .any(|&later| later > at && self.answer(later).is_some_and(Answered::is_final));
            if !was_repeated {
                *found.not_repeated.entry(answer.status).or_default() += 1;
                let is_known = found.requests.contains(&answer.request);
                if !is_known && found.requests.len() < REQUESTS_TOLD_MAX {
                    found.requests.push(answer.request.clone());
                }
            }
        }
        found
    }

    /// The answers to a request, in their order: those of this sync, or else of the other one.
    pub(super) fn answers_to(&self, initial: bool, asked: &Asked) -> &[usize] {
        let exact = (asked.request.clone(), asked.body);
        let timeless = (asked.timeless.clone(), asked.timeless_body);
        let [first, next] = &self.exact;
        let [first_timeless, next_timeless] = &self.timeless;
        let in_order = if initial {
            [(first, &exact), (first_timeless, &timeless), (next, &exact), (next_timeless, &timeless)]
        } else {
            [(next, &exact), (next_timeless, &timeless), (first, &exact), (first_timeless, &timeless)]
        };
        in_order.into_iter().find_map(|(index, key)| index.get(key)).map_or(&[], Vec::as_slice)
    }

    /// This answer without its items, changed to lead to the same page again. `None` if it is not a page that leads
    /// to another one by a parameter.
    pub(super) fn empty_page(&self, at: usize) -> Option<Vec<u8>> {
        let answer = self.answer(at)?;
        let mut page = answer.json().filter(Value::is_object)?;
        let here = answer.parameters();
        let beginning = |answer: &Answered| answer.request.split('?').next().map(str::to_owned);
        // The page after it: a request that differs in one parameter, whose value is in this answer.
        let (from, to) =
            self.answers.iter().filter(|other| beginning(other) == beginning(answer)).find_map(|other| {
                let there = other.parameters();
                let mut differ = here.iter().zip(&there).filter(|(one, other)| one != other);
                let (one, other) =
                    differ.next().filter(|_| differ.next().is_none() && here.len() == there.len())?;
                (one.0 == other.0 && tells(&page, &other.1)).then(|| (other.1.clone(), one.1.clone()))
            })?;
        (empty(&mut page) && lead(&mut page, &from, &to) > 0).then(|| page.to_string().into_bytes())
    }
}

/// Whether a text or number with this value occurs outside of the items.
fn tells(page: &Value, text: &str) -> bool {
    match page {
        Value::Object(fields) => fields.values().any(|value| tells(value, text)),
        Value::String(value) => value == text,
        Value::Number(value) => value.to_string() == text,
        _ => false,
    }
}

/// Removes the items; returns whether there were any.
fn empty(page: &mut Value) -> bool {
    let Value::Object(fields) = page else { return false };
    let mut any = false;
    for value in fields.values_mut() {
        if let Value::Array(items) = value {
            any |= !items.is_empty();
            items.clear();
        }
    }
    any
}

/// Changes where it leads; returns in how many places.
fn lead(page: &mut Value, from: &str, to: &str) -> usize {
    match page {
        Value::Object(fields) => fields.values_mut().map(|value| lead(value, from, to)).sum(),
        Value::String(value) if value == from => {
            to.clone_into(value);
            1
        }
        Value::Number(value) if value.to_string() == from => {
            *page = serde_json::from_str(to).unwrap_or_else(|_| to.into());
            1
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Vec<(String, String)> {
        form_urlencoded::parse(text.as_bytes()).into_owned().collect()
    }

    fn answered(initial: bool, target: &str, text: &str) -> Answered {
        let (path, parameters) = target.split_once('?').unwrap_or((target, ""));
        let asked = Matching::default().asked("GET", path, &query(parameters), b"");
        Answered::new(initial, asked, 200, Vec::new(), text.as_bytes().to_vec())
    }

    #[test]
    fn a_failure_is_harmless_only_if_the_same_request_of_the_same_sync_is_answered_later() {
        let answer = |initial, target, status| Answered { status, ..answered(initial, target, "") };
        for (answers, not_repeated) in [
            (vec![answer(true, "/a?p=1", 503), answer(true, "/a?p=1", 200)], 0),
            (vec![answer(true, "/a?p=1", 503), answer(true, "/a?p=1", 429), answer(true, "/a?p=1", 302)], 0),
            // That there is nothing is an answer, too.
            (vec![answer(true, "/a?p=1", 503), answer(true, "/a?p=1", 404)], 0),
            // Before, of another request, of the other sync, with another failure: none of these brings it back.
            (vec![answer(true, "/a?p=1", 200), answer(true, "/a?p=1", 503)], 1),
            (vec![answer(true, "/a?p=1", 503), answer(true, "/a?p=2", 200)], 1),
            (vec![answer(true, "/a?p=1", 503), answer(false, "/a?p=1", 200)], 1),
            (vec![answer(true, "/a?p=1", 503), answer(true, "/a?p=1", 500)], 2),
        ] {
            let failures = Recording::new(answers.clone()).failures();
            assert_eq!(failures.answers, answers.len() as u64);
            assert_eq!(failures.not_repeated.values().sum::<u64>(), not_repeated, "{failures:?}");
        }
        // What the source does not have is no failure.
        let refusals = [401, 403, 404, 410].map(|status| answer(true, "/a", status));
        assert!(Recording::new(refusals.to_vec()).failures().failures.is_empty());
    }

    fn found<'r>(recording: &'r Recording, initial: bool, target: &str) -> Vec<&'r str> {
        let (path, parameters) = target.split_once('?').unwrap_or((target, ""));
        let asked = Matching::default().asked("GET", path, &query(parameters), b"");
        let at = recording.answers_to(initial, &asked);
        at.iter().map(|at| recording.answer(*at).unwrap().text.as_str()).collect()
    }

    #[test]
    fn a_time_is_set_aside_only_where_it_is_another_one() {
        let recording = Recording::new(vec![
            answered(true, "/t?before=2026-01-02T00:00:00Z", "1"),
            answered(true, "/t?before=2026-01-01T00:00:00Z", "2"),
            answered(true, "/t", "3"),
            answered(false, "/t?modified_since=1767225600", "4"),
        ]);
        assert_eq!(found(&recording, true, "/t?before=2026-01-01T00:00:00Z"), ["2"]);
        assert_eq!(found(&recording, true, "/t?before=2025-01-01T00:00:00Z"), ["1", "2"]);
        assert_eq!(found(&recording, true, "/t"), ["3"]);
        assert_eq!(found(&recording, false, "/t?modified_since=1767229999"), ["4"]);
        // A request that only the other sync made is answered as it was there.
        assert_eq!(found(&recording, false, "/t"), ["3"]);
        assert!(found(&recording, true, "/t?limit=1767229999").is_empty(), "a number is no time by itself");
        assert!(found(&recording, true, "/u").is_empty());
    }

    #[test]
    fn a_body_is_answered_as_one_that_differs_in_times_and_credentials_and_as_no_other() {
        let asked = |body: &[u8]| Matching::default().asked("POST", "/graphql", &[], body);
        let bodies: [&[u8]; 5] = [
            br#"{"query":"issues","first":50,"since":"2026-01-01T00:00:00Z","access_token":"one"}"#,
            br#"{"query":"users","ids":["2","3"],"modified":[1767225600]}"#,
            b"method=list&page=1&since=1767225600&token=one",
            b"\xff\x01",
            b"",
        ];
        let answers = bodies
            .iter()
            .zip(0_u8..)
            .map(|(body, at)| Answered::new(true, asked(body), 200, Vec::new(), at.to_string().into_bytes()));
        // As it is after it was written and read.
        let lines: Vec<String> = answers.map(|answer| serde_json::to_string(&answer).unwrap()).collect();
        let recording =
            Recording::new(lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect());
        for (at, body) in bodies.iter().enumerate() {
            assert_eq!(recording.answers_to(true, &asked(body)), [at]);
        }
        let known: [(&[u8], usize); 3] = [
            (br#"{"query":"issues","first":50,"since":"2026-02-02","access_token":"other"}"#, 0),
            (br#"{"query":"users","ids":["2","3"],"modified":[1767229999]}"#, 1),
            (b"method=list&page=1&since=1767229999&token=other", 2),
        ];
        for (body, at) in known {
            assert_eq!(recording.answers_to(false, &asked(body)), [at], "{}", String::from_utf8_lossy(body));
        }
        let unknown: [&[u8]; 7] = [
            // A smaller page, another query, an earlier time.
            br#"{"query":"issues","first":10,"since":"2026-01-01T00:00:00Z","access_token":"one"}"#,
            br#"{"query":"rateLimit"}"#,
            br#"{"query":"issues","first":50,"access_token":"one"}"#,
            br#"{"query":"users","ids":["2","4"],"modified":[1767225600]}"#,
            b"method=list&page=2&since=1767225600&token=one",
            b"method=list&page=1&token=one",
            b"\xfe\x01",
        ];
        for body in unknown {
            assert!(recording.answers_to(true, &asked(body)).is_empty(), "{}", String::from_utf8_lossy(body));
        }
    }

    #[test]
    fn an_ignored_parameter_and_the_value_of_a_credential_count_for_nothing() {
        let matching = Matching { ignored: vec!["nonce".to_owned()] };
        let one = matching.asked("GET", "/t", &query("nonce=1&token=one&page=2"), b"");
        assert_eq!(one, matching.asked("GET", "/t", &query("token=other&page=2&nonce=7"), b""));
        assert!(!one.request.contains("one"), "{}", one.request);
        assert_ne!(one, matching.asked("GET", "/t", &query("token=one&page=3"), b""));
    }

    #[test]
    fn names_of_credentials_are_known_however_they_are_written() {
        for name in [
            "auth_token",
            "hapikey",
            "api-token",
            "accessToken",
            "apiKey",
            "secret_key",
            "client-secret",
            "session_id",
            "X-Goog-Signature",
            "X-Shopify-Access-Token",
            "X-Amz-Credential",
            "Authorization",
        ] {
            assert!(is_credential(name), "{name}");
        }
        for name in
            ["pageToken", "next_page_token", "sync-token", "continuation_token", "path", "author", "tokens"]
        {
            assert!(!is_credential(name), "{name}");
        }
        let asked = |key: &str| Matching::default().asked("GET", "/t", &query(&format!("key={key}")), b"");
        assert_ne!(asked("PROJ-1"), asked("PROJ-2"), "the key of a project is no credential");
        assert_eq!(asked("0123456789abcdef"), asked("fedcba9876543210"));
    }

    #[test]
    fn no_credential_is_in_the_file_which_its_owner_alone_can_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("source.jsonl");
        let body = r#"{"access_token":"very-secret-1","echo":"Bearer very-secret-2","next":"https://api.example/p/2"}"#;
        let secrets = BTreeSet::from(["very-secret-2".to_owned(), "a".to_owned()]);
        let mut answer = answered(true, "/p?key=very-secret-3-of-the-source", body);
        answer.headers.push(("X-Echo".to_owned(), "very-secret-2".to_owned()));
        Recording::save(&path, "https://api.example", &secrets, vec![answer], 2).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains("very-secret") && text.contains("Bearer REDACTED"), "{text}");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        let read = Recording::read(&path, "https://api.example", false).unwrap().unwrap();
        assert_eq!(read.failures().unanswered, 2, "it is as it was recorded");
        let (headers, body) = read.answer(0).unwrap().replayed("http://127.0.0.1:1");
        assert!(String::from_utf8(body).unwrap().contains("\"http://127.0.0.1:1/p/2\""));
        assert_eq!(headers, [("X-Echo".to_owned(), REDACTED.to_owned())]);
        assert!(Recording::read(&path, "https://other.example", true).unwrap().is_none());
        let other = Recording::read(&path, "https://other.example", false).unwrap_err().to_string();
        assert!(
            other.contains("it is a recording of https://api.example") && other.contains("--recording"),
            "{other}"
        );
        fs::write(&path, "{}\n").unwrap();
        let garbage = Recording::read(&path, "x", true).unwrap_err().to_string();
        assert!(garbage.contains("it is not a recording"), "{garbage}");
        assert!(Recording::read(&dir.path().join("none"), "x", false).unwrap().is_none());
    }

    #[test]
    fn an_empty_page_leads_to_the_same_page_again() {
        let recording = Recording::new(vec![
            answered(true, "/t?limit=2&offset=0", r#"{"items":[1,2],"next":{"offset":2}}"#),
            answered(true, "/t?limit=2&offset=2", r#"{"items":[3],"next":null}"#),
            answered(true, "/list", "[1,2,3]"),
        ]);
        let page: Value = serde_json::from_slice(&recording.empty_page(0).unwrap()).unwrap();
        assert_eq!(page, serde_json::json!({ "items": [], "next": { "offset": 0 } }));
        // A false end would lose records of any worker.
        assert_eq!((recording.empty_page(1), recording.empty_page(2)), (None, None));
    }
}

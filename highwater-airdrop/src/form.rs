//! A form with a file, `multipart/form-data`, as the file store reads it: first the fields, then the file, and
//! nothing after it. The file is streamed. If it does not end properly, its reader returns an error, before the
//! upload counts.

use std::io::{self, Read};

/// Bytes of a form's fields at most, and of a header line of a part.
const FIELDS_BYTES_MAX: usize = 64 * 1024;
/// Bytes that are read at a time.
const BUFFER_BYTES: usize = 64 * 1024;

/// The boundary in a `Content-Type`, if it is that of such a form.
pub(crate) fn boundary(content_type: &str) -> Option<String> {
    let (kind, parameters) = content_type.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    let value = parameters.split(';').find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("boundary").then(|| value.trim().trim_matches('"'))
    })?;
    (1..=70).contains(&value.len()).then(|| value.to_owned())
}

/// A form up to the start of its file.
pub(crate) struct Form<R> {
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) file: File<R>,
}

impl<R: Read> Form<R> {
    /// Reads the fields, and the header of the part `file`.
    ///
    /// # Errors
    /// A description of what is wrong with the form.
    pub(crate) fn read(body: R, boundary: &str) -> io::Result<Self> {
        let delimiter = format!("\r\n--{boundary}").into_bytes();
        let mut source = Source { inner: body, buffer: Vec::new(), at: 0 };
        if source.line()? != format!("--{boundary}").as_bytes() {
            return unfit("the form does not begin with the boundary that its Content-Type names");
        }
        let (mut fields, mut bytes) = (Vec::new(), 0);
        loop {
            let name = source.part_name()?;
            if name == "file" {
                return Ok(Self {
                    fields,
                    file: File { source, delimiter, over: false, followed: false, must_be_last: false },
                });
            }
            let mut value = Vec::new();
            while let ready @ 1.. = source.content(&delimiter)? {
                bytes += ready;
                if bytes > FIELDS_BYTES_MAX {
                    return unfit(format!("the fields of a form have at most {FIELDS_BYTES_MAX} bytes"));
                }
                value.extend_from_slice(source.take(ready));
            }
            if !source.line()?.is_empty() {
                return unfit("the form ends without the part `file`");
            }
            fields.push((name, String::from_utf8_lossy(&value).into_owned()));
        }
    }
}

/// The content of the part `file`. Its end is reported only if the form ends there as well.
pub(crate) struct File<R> {
    source: Source<R>,
    delimiter: Vec<u8>,
    over: bool,
    /// Whether something followed the file, which the file store ignores. Known when the file was read to its end.
    pub(crate) followed: bool,
    /// Whether that is an error instead.
    pub(crate) must_be_last: bool,
}

impl<R: Read> Read for File<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.over || buffer.is_empty() {
            return Ok(0);
        }
        let ready = self.source.content(&self.delimiter)?.min(buffer.len());
        if ready == 0 {
            while self.source.more()? {
                if self.source.unread().len() > BUFFER_BYTES {
                    break;
                }
            }
            if !self.source.unread().starts_with(b"--") && !self.source.unread().starts_with(b"\r\n") {
                return unfit("the form ends without the boundary that ends it");
            }
            self.followed = !matches!(self.source.unread(), b"--" | b"--\r\n");
            if self.followed && self.must_be_last {
                return unfit("something follows the file, which must be the last part of the form");
            }
            // What follows does not belong to the file. It is read, so that the client can send all of it.
            io::copy(&mut self.source.inner, &mut io::sink())?;
            self.over = true;
            return Ok(0);
        }
        buffer[..ready].copy_from_slice(self.source.take(ready));
        Ok(ready)
    }
}

/// The form's bytes, buffered.
struct Source<R> {
    inner: R,
    buffer: Vec<u8>,
    /// The index of the next byte in it.
    at: usize,
}

impl<R: Read> Source<R> {
    fn unread(&self) -> &[u8] {
        &self.buffer[self.at..]
    }

    fn take(&mut self, count: usize) -> &[u8] {
        let from = self.at;
        self.at += count;
        &self.buffer[from..self.at]
    }

    /// Reads ahead; `false` at the end.
    fn more(&mut self) -> io::Result<bool> {
        self.buffer.drain(..self.at);
        self.at = 0;
        let known = self.buffer.len();
        self.buffer.resize(known + BUFFER_BYTES, 0);
        let read = self.inner.read(&mut self.buffer[known..]);
        self.buffer.truncate(known + *read.as_ref().unwrap_or(&0));
        read.map(|read| read > 0)
    }

    /// A line without its line break.
    fn line(&mut self) -> io::Result<Vec<u8>> {
        loop {
            if let Some(length) = find(self.unread(), b"\r\n") {
                let line = self.take(length).to_vec();
                self.take(2);
                return Ok(line);
            }
            if self.unread().len() > FIELDS_BYTES_MAX || !self.more()? {
                return unfit("the form ends where a line of it was expected");
            }
        }
    }

    /// The name of a part, read from its header.
    fn part_name(&mut self) -> io::Result<String> {
        let mut name = None;
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return name.map_or_else(|| unfit("a part of the form has no name"), Ok);
            }
            let line = String::from_utf8_lossy(&line);
            let Some((header, value)) = line.split_once(':') else {
                return unfit(format!("{line:?} is not a header of a form's part"));
            };
            if header.trim().eq_ignore_ascii_case("Content-Disposition") {
                let mut parameters = value.split(';').filter_map(|parameter| parameter.split_once('='));
                let found = parameters.find(|(parameter, _)| parameter.trim().eq_ignore_ascii_case("name"));
                name = found.map(|(_, value)| value.trim().trim_matches('"').to_owned());
            }
        }
    }

    /// How many bytes of a part's content are available. Zero: the part is over, and the delimiter after it was read.
    fn content(&mut self, delimiter: &[u8]) -> io::Result<usize> {
        loop {
            match find(self.unread(), delimiter) {
                Some(0) => {
                    self.take(delimiter.len());
                    return Ok(0);
                }
                Some(length) => return Ok(length),
                None => {}
            }
            // The last bytes may be the start of the delimiter.
            let sure = (self.unread().len() + 1).saturating_sub(delimiter.len());
            if sure > 0 {
                return Ok(sure);
            }
            if !self.more()? {
                return unfit("the form ends before the boundary that ends it");
            }
        }
    }
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(at) = text[from..].iter().position(|byte| *byte == wanted[0]) {
        if text[from + at..].starts_with(wanted) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

fn unfit<T>(reason: impl Into<String>) -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::InvalidData, reason.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns few bytes at a time, so that every boundary is split somewhere.
    struct Slow<'a>(&'a [u8], usize);

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.1.min(buffer.len());
            self.0.read(&mut buffer[..count])
        }
    }

    fn read(text: &str, at_a_time: usize) -> Result<(Vec<(String, String)>, String), String> {
        let form = Form::read(Slow(text.as_bytes(), at_a_time), "b7").map_err(|error| error.to_string())?;
        let (fields, mut file) = (form.fields, form.file);
        let mut content = String::new();
        file.read_to_string(&mut content).map_err(|error| error.to_string())?;
        Ok((fields, content))
    }

    const FIELD: &str = "--b7\r\nContent-Disposition: form-data; name=\"key\"\r\n\r\na\r\n-b\r\n";
    const FILE: &str =
        "--b7\r\nContent-Disposition: form-data; name=\"file\"; filename=\"x\"\r\nContent-Type: a/b\r\n\r\n";

    #[test]
    fn a_form_is_read_whole_however_it_is_cut() {
        let content = "one\r\n--b\r\n\r\n--b6 two\r";
        let text = format!("{FIELD}{FILE}{content}\r\n--b7--\r\n");
        for at_a_time in 1..text.len() {
            let (fields, found) = read(&text, at_a_time).unwrap();
            assert_eq!(fields, [("key".to_owned(), "a\r\n-b".to_owned())]);
            assert_eq!(found, content);
        }
        assert_eq!(read(&format!("{FILE}\r\n--b7--"), 5).unwrap().1, "");
    }

    #[test]
    fn what_is_wrong_with_a_form_is_said() {
        for (text, reason) in [
            (format!("{FILE}abc"), "before the boundary that ends it"),
            (format!("{FILE}abc\r\n--b7"), "without the boundary that ends it"),
            (format!("{FIELD}--b7--\r\n"), "without the part `file`"),
            (FILE.replace("b7", "b8"), "does not begin with the boundary"),
            (FILE.replace("; name=\"file\"", ""), "has no name"),
            (String::new(), "where a line of it was expected"),
        ] {
            let said = read(&text, 7).unwrap_err();
            assert!(said.contains(reason), "{said}, not {reason}");
        }
    }

    #[test]
    fn what_follows_the_file_is_no_part_of_it_and_is_told() {
        for (text, followed) in [
            (format!("{FILE}abc\r\n--b7--\r\n"), false),
            (format!("{FILE}abc\r\n{FIELD}--b7--\r\n"), true),
            (format!("{FILE}abc\r\n--b7--\r\nan epilogue"), true),
        ] {
            for at_a_time in [1, 7, text.len()] {
                let mut form = Form::read(Slow(text.as_bytes(), at_a_time), "b7").unwrap();
                let mut content = String::new();
                form.file.read_to_string(&mut content).unwrap();
                assert_eq!((content.as_str(), form.file.followed), ("abc", followed));
            }
        }
    }

    #[test]
    fn the_boundary_is_in_the_content_type() {
        assert_eq!(boundary("multipart/form-data; boundary=abc").as_deref(), Some("abc"));
        assert_eq!(boundary("Multipart/Form-Data; charset=utf-8; Boundary=\"a b\"").as_deref(), Some("a b"));
        assert_eq!(boundary("multipart/form-data"), None);
        assert_eq!(boundary("application/json; boundary=abc"), None);
    }
}

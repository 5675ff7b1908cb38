//! What several tests share: reading an artifact without the code that wrote it.

use std::io::Read;

use serde_json::Value;

/// The lines of a gzipped JSON Lines artifact. It must be one member, and every line, the last too, must end.
pub(crate) fn lines(gzip: &[u8]) -> Vec<Value> {
    let mut text = String::new();
    let mut decoder = flate2::bufread::GzDecoder::new(gzip);
    decoder.read_to_string(&mut text).expect("an artifact is one gzip member of text");
    assert!(decoder.into_inner().is_empty(), "bytes follow the gzip member");
    assert!(text.is_empty() || text.ends_with('\n'), "the last line ends without a newline");
    text.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect()
}

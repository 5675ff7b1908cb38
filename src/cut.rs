//! Text cut to a limit, between two characters. Three dots at its end show that it was cut.

/// At most `chars_max` characters of `text`; then three dots, if there are more.
pub(crate) fn to_chars(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// At most `bytes_max` bytes, at least three, the dots among them.
pub(crate) fn to_bytes(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    let start = text.get(..floor_boundary(text, bytes_max.saturating_sub(3))).unwrap_or_default();
    format!("{start}...")
}

/// The last place at or before `at` where a character begins or the text ends.
pub(crate) fn floor_boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_is_left_as_it_is() {
        for text in ["", "abcdef", "\u{e9}\u{e9}\u{e9}"] {
            assert_eq!(to_bytes(text, 6), text);
            assert_eq!(to_chars(text, 6), text);
        }
    }

    #[test]
    fn a_cut_is_between_characters_and_shows() {
        assert_eq!(to_bytes("abcdefg", 6), "abc...");
        assert_eq!(to_bytes("\u{e9}\u{e9}\u{e9}\u{e9}", 6), "\u{e9}...");
        assert_eq!(to_bytes("abcd", 2), "...");
        assert_eq!(to_chars("abcdefg", 6), "abcdef...");
        assert_eq!(to_chars("\u{e9}\u{e9}\u{e9}\u{e9}", 3), "\u{e9}\u{e9}\u{e9}...");
    }
}

//! A guest's output made harmless: whatever it writes, it cannot drive the operator's terminal.

use alloc::string::String;
use alloc::vec::Vec;

/// Turns bytes into text that does nothing to a terminal but show letters, tabs and line ends. Carriage returns and control sequences
/// (ECMA-48 5.4: colours, places of the cursor) are left out, other control characters are shown as `^X`, and what is no UTF-8, or
/// turns the direction of writing, as U+FFFD.
#[derive(Debug, Default)]
pub struct Plain {
    /// The beginning of a character whose rest has not come yet.
    begun: Vec<u8>,
    /// Within a control sequence.
    sequence: Sequence,
}

/// How far a control sequence has come.
#[derive(Clone, Copy, Debug, Default)]
enum Sequence {
    /// There is none.
    #[default]
    None,
    /// ESC.
    Escape,
    /// ESC [, and so many letters behind it.
    Parameters(u8),
}

/// Letters that a control sequence has at most; what goes on longer is none.
const LONGEST_SEQUENCE: u8 = 32;

impl Plain {
    /// Takes bytes, and adds what can be shown of them.
    pub fn feed(&mut self, bytes: &[u8], text: &mut String) {
        self.begun.extend_from_slice(bytes);
        let mut rest = self.begun.as_slice();
        let unfinished = loop {
            let error = match core::str::from_utf8(rest) {
                Ok(good) => {
                    for letter in good.chars() {
                        self.sequence = self.sequence.feed(letter, text);
                    }
                    break &[][..];
                }
                Err(error) => error,
            };
            let (good, bad) = rest.split_at(error.valid_up_to());
            let good = core::str::from_utf8(good).unwrap_or_default();
            for letter in good.chars() {
                self.sequence = self.sequence.feed(letter, text);
            }
            match error.error_len() {
                None => break bad,
                Some(length) => {
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = bad.get(length..).unwrap_or_default();
                }
            }
        };
        self.begun = unfinished.to_vec();
    }
}

impl Sequence {
    /// Takes a letter, and adds what can be shown of it.
    fn feed(self, letter: char, text: &mut String) -> Self {
        match (self, letter) {
            (Self::None, '\x1b') => Self::Escape,
            (Self::Escape, '[') => Self::Parameters(0),
            // Parameters and intermediates; the final letter ends it.
            (Self::Parameters(count), ' '..='?') if count < LONGEST_SEQUENCE => {
                Self::Parameters(count + 1)
            }
            (Self::Parameters(_), '@'..='~') => Self::None,
            (Self::Escape, _) => {
                show('\x1b', text);
                Self::None.feed(letter, text)
            }
            (Self::Parameters(_), '\x1b') => Self::Escape,
            (Self::None | Self::Parameters(_), _) => {
                show(letter, text);
                Self::None
            }
        }
    }
}

fn show(letter: char, text: &mut String) {
    match letter {
        '\n' | '\t' => text.push(letter),
        '\r' => {}
        '\0'..='\x1f' | '\x7f' => {
            text.push('^');
            text.push(char::from(letter as u8 ^ 0x40));
        }
        // Characters that order the text by its direction (UAX 9), line and paragraph separators, C1 controls.
        '\u{80}'..='\u{9f}'
        | '\u{200e}'
        | '\u{200f}'
        | '\u{2028}'..='\u{202e}'
        | '\u{2066}'..='\u{2069}' => text.push(char::REPLACEMENT_CHARACTER),
        _ => text.push(letter),
    }
}

/// Longest line that [`Lines`] gathers, in bytes; a longer one is cut in two.
const LONGEST: usize = 1000;

/// Cuts a guest's output into harmless lines.
#[derive(Debug, Default)]
pub struct Lines {
    plain: Plain,
    text: String,
}

impl Lines {
    /// Takes bytes; the lines that are complete with them.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<String> {
        self.plain.feed(bytes, &mut self.text);
        let mut lines = Vec::new();
        loop {
            let end = self.text.find('\n');
            let length = end.unwrap_or(self.text.len());
            if length > LONGEST {
                let at = self.text.floor_char_boundary(LONGEST);
                let rest = self.text.split_off(at);
                lines.push(core::mem::replace(&mut self.text, rest));
            } else if end.is_some() {
                let rest = self.text.split_off(length + 1);
                let mut line = core::mem::replace(&mut self.text, rest);
                line.pop();
                lines.push(line);
            } else {
                return lines;
            }
        }
    }

    /// What of a line has come without its end.
    pub fn finish(&mut self) -> Option<String> {
        let line = core::mem::take(&mut self.text);
        (!line.is_empty()).then_some(line)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plain(parts: &[&[u8]]) -> String {
        let mut plain = Plain::default();
        let mut text = String::new();
        for part in parts {
            plain.feed(part, &mut text);
        }
        text
    }

    #[test]
    fn control_characters_are_shown() {
        assert_eq!(plain(&[b"a\tb\r\nc"]), "a\tb\nc");
        assert_eq!(plain(&[b"\x1b]2J\x07\x7f\0"]), "^[]2J^G^?^@");
        assert_eq!(
            plain(&["\u{9b}2J\u{202e}x".as_bytes()]),
            "\u{fffd}2J\u{fffd}x"
        );
    }

    #[test]
    fn control_sequences_are_left_out() {
        assert_eq!(plain(&[b"a\x1b[2Jb\x1b[1;31", b"mc\x1b", b"[6nd"]), "abcd");
        assert_eq!(plain(&[b"\x1b\x1b[Kx"]), "^[x");
        assert_eq!(plain(&[b"\x1b[1\nx"]), "\nx");
        let endless = [&b"\x1b["[..], &[b'1'; 40], b"m"].concat();
        assert_eq!(plain(&[&endless]), "11111111m");
    }

    #[test]
    fn letters_may_come_in_parts() {
        assert_eq!(plain(&["grün €".as_bytes()]), "grün €");
        assert_eq!(
            plain(&[b"gr\xc3", b"\xbcn \xe2", b"\x82", b"\xac"]),
            "grün €"
        );
        assert_eq!(plain(&[b"a\xffb\xc3", b"c"]), "a\u{fffd}b\u{fffd}c");
    }

    #[test]
    fn lines_are_cut() {
        let mut lines = Lines::default();
        assert_eq!(lines.feed(b"one\r\ntw"), ["one"]);
        assert_eq!(lines.feed(b"o\n\n"), ["two", ""]);
        assert_eq!(lines.finish(), None);
        let long = lines.feed(&[b'x'; 2500]);
        assert_eq!(
            long.iter().map(String::len).collect::<Vec<_>>(),
            [1000, 1000]
        );
        assert_eq!(lines.finish().map(|line| line.len()), Some(500));
    }

    proptest! {
        /// Whatever comes, in whatever parts, no control character but tab and line end goes out.
        #[test]
        fn nothing_drives_the_terminal(bytes: Vec<u8>, cut in 0usize..64) {
            let (first, second) = bytes.split_at(cut.min(bytes.len()));
            let text = plain(&[first, second]);
            prop_assert!(text.chars().all(|letter| matches!(letter, '\n' | '\t') || !letter.is_control()));
            prop_assert_eq!(text, plain(&[&bytes]));
        }
    }
}

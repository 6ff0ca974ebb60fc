//! The line editor: bytes of the keyboard in, bytes for the terminal out. A line longer than the screen is wide is shown in part.

mod history;
mod keys;

use alloc::format;
use alloc::string::String;

pub use history::History;
pub use keys::{Decoder, Key};

/// What stands before the line. Programs that type for an operator wait for it.
pub const PROMPT: &str = "plinth> ";
/// Columns of the terminal.
const COLUMNS: usize = 80;
/// Letters of the line that are shown; the last column stays free, so that no terminal begins a new line.
const SHOWN: usize = COLUMNS - PROMPT.len() - 1;
/// Longest line.
const LONGEST: usize = 1000;

/// Erases the line that the cursor is in, and leaves the cursor at its beginning.
pub const ERASE: &str = "\r\x1b[K";

/// What a key asks of the shell.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// The line is complete; a new one begins.
    Entered(String),
    /// Complete the word before the cursor.
    Complete,
}

/// The line that is being edited. It is ASCII: one byte, one letter, one column.
#[derive(Debug, Default)]
pub struct Editor {
    line: String,
    /// The cursor stands before this letter.
    cursor: usize,
    /// The first letter that is shown.
    first: usize,
    decoder: Decoder,
    history: History,
}

impl Editor {
    /// The prompt and the line, as they are shown in an empty line of the terminal, with the cursor where it belongs.
    pub fn show(&mut self, out: &mut String) {
        // The cursor is always among what is shown.
        self.first = self
            .first
            .clamp((self.cursor + 1).saturating_sub(SHOWN), self.cursor);
        out.push_str(PROMPT);
        let end = self.line.len().min(self.first + SHOWN);
        out.push_str(self.line.get(self.first..end).unwrap_or_default());
        let back = end.saturating_sub(self.cursor);
        if back > 0 {
            *out += &format!("\x1b[{back}D");
        }
    }

    fn redraw(&mut self, out: &mut String) {
        out.push_str(ERASE);
        self.show(out);
    }

    /// Takes a byte of the keyboard; adds to `out` what it changes on the terminal.
    pub fn feed(&mut self, byte: u8, out: &mut String) -> Option<Action> {
        match self.decoder.feed(byte)? {
            Key::Letter(letter) => self.insert(char::from(letter).encode_utf8(&mut [0; 4]), out),
            Key::Enter => {
                let line = core::mem::take(&mut self.line);
                self.history.add(&line);
                (self.cursor, self.first) = (0, 0);
                out.push_str("\r\n");
                return Some(Action::Entered(line));
            }
            Key::Tab => return Some(Action::Complete),
            Key::Backspace => {
                if let Some(start) = self.cursor.checked_sub(1) {
                    self.delete(start, self.cursor, out);
                }
            }
            Key::Delete => self.delete(self.cursor, self.cursor + 1, out),
            Key::Left | Key::Control(b'B') => self.go(self.cursor.saturating_sub(1), out),
            Key::Right | Key::Control(b'F') => self.go(self.cursor + 1, out),
            Key::Home | Key::Control(b'A') => self.go(0, out),
            Key::End | Key::Control(b'E') => self.go(self.line.len(), out),
            Key::Up | Key::Control(b'P') => {
                let older = self.history.older(&self.line);
                self.replace(older, out);
            }
            Key::Down | Key::Control(b'N') => {
                let newer = self.history.newer();
                self.replace(newer, out);
            }
            Key::Control(b'D') => self.delete(self.cursor, self.cursor + 1, out),
            Key::Control(b'U') => self.delete(0, self.cursor, out),
            Key::Control(b'K') => self.delete(self.cursor, self.line.len(), out),
            Key::Control(b'W') => self.delete(self.word_start(), self.cursor, out),
            Key::Control(b'L') => {
                out.push_str("\x1b[H\x1b[2J");
                self.show(out);
            }
            Key::Control(b'C') => {
                self.line.clear();
                (self.cursor, self.first) = (0, 0);
                out.push_str("\r\n");
                self.show(out);
            }
            Key::Control(_) => {}
        }
        None
    }

    /// The line up to the cursor, which is what completion looks at.
    pub fn before_cursor(&self) -> &str {
        self.line.get(..self.cursor).unwrap_or_default()
    }

    /// Puts text at the cursor.
    pub fn insert(&mut self, text: &str, out: &mut String) {
        if self.line.len() + text.len() > LONGEST {
            return;
        }
        let at_end = self.cursor == self.line.len();
        self.line.insert_str(self.cursor, text);
        self.cursor += text.len();
        if at_end && self.cursor < self.first + SHOWN {
            out.push_str(text);
        } else {
            self.redraw(out);
        }
    }

    fn delete(&mut self, start: usize, end: usize, out: &mut String) {
        let end = end.min(self.line.len());
        if start >= end {
            return;
        }
        self.line.drain(start..end);
        self.cursor = start;
        self.redraw(out);
    }

    fn go(&mut self, to: usize, out: &mut String) {
        let to = to.min(self.line.len());
        if to != self.cursor {
            self.cursor = to;
            self.redraw(out);
        }
    }

    fn replace(&mut self, line: Option<String>, out: &mut String) {
        if let Some(line) = line {
            self.cursor = line.len();
            self.line = line;
            self.redraw(out);
        }
    }

    /// Where the word before the cursor begins.
    fn word_start(&self) -> usize {
        let before = self.before_cursor().trim_end_matches(' ');
        before.rfind(' ').map_or(0, |blank| blank + 1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A terminal's line: letters, and where the cursor is. Panics at what the editor should not send.
    #[derive(Default)]
    struct Terminal {
        cells: Vec<char>,
        cursor: usize,
    }

    impl Terminal {
        fn take(&mut self, out: &str) {
            let mut letters = out.chars();
            while let Some(letter) = letters.next() {
                match letter {
                    '\r' => self.cursor = 0,
                    '\n' => *self = Self::default(),
                    '\x1b' => {
                        assert_eq!(letters.next(), Some('['));
                        let mut number = String::new();
                        let last = loop {
                            match letters.next().unwrap() {
                                digit @ '0'..='9' => number.push(digit),
                                last => break last,
                            }
                        };
                        match last {
                            'K' => self.cells.truncate(self.cursor),
                            'D' => {
                                self.cursor =
                                    self.cursor.checked_sub(number.parse().unwrap()).unwrap()
                            }
                            'H' => self.cursor = 0,
                            'J' => self.cells.clear(),
                            other => panic!("ESC [ {other}"),
                        }
                    }
                    letter => {
                        if self.cursor == self.cells.len() {
                            self.cells.push(letter);
                        } else {
                            self.cells[self.cursor] = letter;
                        }
                        self.cursor += 1;
                        assert!(self.cursor < COLUMNS, "the line wraps");
                    }
                }
            }
        }

        fn text(&self) -> String {
            self.cells.iter().collect()
        }
    }

    struct Session {
        editor: Editor,
        terminal: Terminal,
        entered: Vec<String>,
    }

    impl Session {
        fn new() -> Self {
            let mut session = Self {
                editor: Editor::default(),
                terminal: Terminal::default(),
                entered: Vec::new(),
            };
            session.show();
            session
        }

        fn show(&mut self) {
            let mut out = String::new();
            self.editor.show(&mut out);
            self.terminal.take(&out);
        }

        fn keys(&mut self, bytes: &[u8]) -> &mut Self {
            for &byte in bytes {
                let mut out = String::new();
                let action = self.editor.feed(byte, &mut out);
                self.terminal.take(&out);
                if let Some(Action::Entered(line)) = action {
                    self.entered.push(line);
                    self.show();
                }
            }
            self
        }

        /// The line, and the cursor's place in it, as the terminal shows them.
        fn seen(&self) -> (String, usize) {
            let text = self.terminal.text();
            let line = text.strip_prefix(PROMPT).unwrap().to_owned();
            (line, self.terminal.cursor - PROMPT.len())
        }
    }

    fn after(bytes: &[u8]) -> (String, usize) {
        Session::new().keys(bytes).seen()
    }

    #[test]
    fn letters_go_to_the_cursor() {
        assert_eq!(after(b"list"), ("list".into(), 4));
        assert_eq!(after(b"lst\x1b[D\x1b[Di"), ("list".into(), 2));
        assert_eq!(after(b"ist\x01l"), ("list".into(), 1));
        assert_eq!(after(b"ist\x1b[Hl\x1b[F!"), ("list!".into(), 5));
        assert_eq!(after(b"a\x1b[C\x1b[D\x1b[D\x1b[Db"), ("ba".into(), 1));
    }

    #[test]
    fn letters_can_be_deleted() {
        assert_eq!(after(b"lisst\x7f\x7ft"), ("list".into(), 4));
        assert_eq!(after(b"xlist\x01\x1b[3~\x1b[3~"), ("ist".into(), 0));
        assert_eq!(after(b"\x7f\x1b[3~\x17\x15\x0b"), (String::new(), 0));
        assert_eq!(after(b"one two\x1b[D\x1b[D\x1b[D\x15"), ("two".into(), 0));
        assert_eq!(after(b"one two\x1b[D\x1b[D\x1b[D\x0b"), ("one ".into(), 4));
        assert_eq!(after(b"one two  \x17"), ("one ".into(), 4));
        assert_eq!(after(b"one two\x17\x17\x17"), (String::new(), 0));
        assert_eq!(after(b"one\x03two"), ("two".into(), 3));
    }

    #[test]
    fn lines_are_entered_and_come_back() {
        let mut session = Session::new();
        session.keys(b"one\rtwo\r");
        assert_eq!(session.entered, ["one", "two"]);
        assert_eq!(session.seen(), (String::new(), 0));
        assert_eq!(session.keys(b"dr\x1b[A").seen(), ("two".into(), 3));
        assert_eq!(session.keys(b"\x1b[A").seen(), ("one".into(), 3));
        assert_eq!(session.keys(b"\x1b[B\x1b[B").seen(), ("dr".into(), 2));
        session.keys(b"\x1b[A!\r");
        assert_eq!(session.entered.last().unwrap(), "two!");
    }

    #[test]
    fn a_long_line_is_shown_in_part() {
        let line: String = ('a'..='z').cycle().take(200).collect();
        let mut session = Session::new();
        session.keys(line.as_bytes());
        let (seen, cursor) = session.seen();
        assert!(line.ends_with(&seen) && seen.len() == SHOWN - 1, "{seen}");
        assert_eq!(cursor, SHOWN - 1);
        let (seen, cursor) = session.keys(b"\x01").seen();
        assert_eq!((seen.as_str(), cursor), (&line[..SHOWN], 0));
        session.keys(b"\r");
        assert_eq!(session.entered, [line]);
    }

    #[test]
    fn a_line_has_an_end() {
        let mut session = Session::new();
        session.keys(&[b'x'; LONGEST + 50]).keys(b"\r");
        assert_eq!(session.entered[0].len(), LONGEST);
    }

    proptest! {
        /// Whatever is typed: what the terminal shows is the line around the cursor, and nothing panics.
        #[test]
        fn the_terminal_shows_the_line(bytes in prop::collection::vec(
            prop_oneof![any::<u8>().prop_map(|byte| vec![byte]), prop::sample::select(vec![
                b"\x1b[A".to_vec(), b"\x1b[B".to_vec(), b"\x1b[C".to_vec(), b"\x1b[D".to_vec(), b"\x1b[H".to_vec(),
                b"\x1b[F".to_vec(), b"\x1b[3~".to_vec(), b"word ".to_vec(), vec![b'm'; 30],
            ])], 0..60)) {
            let mut session = Session::new();
            session.keys(&bytes.concat());
            let (seen, cursor) = session.seen();
            let editor = &session.editor;
            let end = editor.line.len().min(editor.first + SHOWN);
            prop_assert_eq!(seen, &editor.line[editor.first..end]);
            prop_assert_eq!(cursor, editor.cursor - editor.first);
        }
    }
}

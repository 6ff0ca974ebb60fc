//! Keys, out of the bytes that a terminal sends for them.

/// A key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Key {
    /// A printable ASCII character.
    Letter(u8),
    /// Enter.
    Enter,
    /// Tab.
    Tab,
    /// Deletes the letter before the cursor.
    Backspace,
    /// Deletes the letter under the cursor.
    Delete,
    /// Cursor left.
    Left,
    /// Cursor right.
    Right,
    /// Cursor up.
    Up,
    /// Cursor down.
    Down,
    /// To the beginning of the line.
    Home,
    /// To its end.
    End,
    /// Ctrl and this capital letter.
    Control(u8),
}

/// Where in a key's sequence of bytes the decoder is (ECMA-48 5.4; xterm's control sequences, "PC-Style Function Keys").
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Decoder {
    state: State,
    /// A line feed right behind a carriage return belongs to it.
    after_return: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum State {
    #[default]
    Text,
    /// Behind ESC.
    Escape,
    /// Behind ESC O.
    Single,
    /// Behind ESC [; the first parameter so far, and whether it is still that one.
    Sequence(u8, bool),
}

impl Decoder {
    /// Takes a byte; the key that is complete with it. What is no key of ours is swallowed.
    pub fn feed(&mut self, byte: u8) -> Option<Key> {
        let after_return = core::mem::replace(&mut self.after_return, byte == b'\r');
        let state = core::mem::take(&mut self.state);
        match (state, byte) {
            (_, 0x1b) => self.wait(State::Escape),
            (State::Escape, b'[') => self.wait(State::Sequence(0, true)),
            (State::Escape, b'O') => self.wait(State::Single),
            (State::Escape, _) => None,
            (State::Single, _) => named(byte),
            (State::Sequence(number, true), b'0'..=b'9') => {
                let number = number.saturating_mul(10).saturating_add(byte - b'0');
                self.wait(State::Sequence(number, true))
            }
            (State::Sequence(number, _), 0x20..=0x3f) => self.wait(State::Sequence(number, false)),
            (State::Sequence(number, _), b'~') => match number {
                1 | 7 => Some(Key::Home),
                4 | 8 => Some(Key::End),
                3 => Some(Key::Delete),
                _ => None,
            },
            (State::Sequence(..), _) => named(byte),
            (State::Text, b'\n') if after_return => None,
            (State::Text, b'\r' | b'\n') => Some(Key::Enter),
            (State::Text, b'\t') => Some(Key::Tab),
            (State::Text, 0x08 | 0x7f) => Some(Key::Backspace),
            (State::Text, 0x01..=0x1f) => Some(Key::Control(byte ^ 0x40)),
            (State::Text, b' '..=b'~') => Some(Key::Letter(byte)),
            (State::Text, _) => None,
        }
    }

    fn wait(&mut self, state: State) -> Option<Key> {
        self.state = state;
        None
    }
}

/// The key of a sequence that ends with this byte.
fn named(last: u8) -> Option<Key> {
    match last {
        b'A' => Some(Key::Up),
        b'B' => Some(Key::Down),
        b'C' => Some(Key::Right),
        b'D' => Some(Key::Left),
        b'H' => Some(Key::Home),
        b'F' => Some(Key::End),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(bytes: &[u8]) -> Vec<Key> {
        let mut decoder = Decoder::default();
        bytes
            .iter()
            .filter_map(|&byte| decoder.feed(byte))
            .collect()
    }

    #[test]
    fn sequences_are_keys() {
        use Key::*;
        assert_eq!(
            keys(b"\x1b[A\x1b[B\x1b[C\x1b[D\x1b[H\x1b[F"),
            [Up, Down, Right, Left, Home, End]
        );
        assert_eq!(
            keys(b"\x1bOA\x1bOB\x1bOC\x1bOD\x1bOH\x1bOF"),
            [Up, Down, Right, Left, Home, End]
        );
        assert_eq!(
            keys(b"\x1b[1~\x1b[3~\x1b[4~\x1b[7~\x1b[8~"),
            [Home, Delete, End, Home, End]
        );
        // Ctrl-Right.
        assert_eq!(keys(b"\x1b[1;5C"), [Right]);
    }

    #[test]
    fn bytes_are_keys() {
        use Key::*;
        assert_eq!(
            keys(b"a ~\t\x7f\x08"),
            [
                Letter(b'a'),
                Letter(b' '),
                Letter(b'~'),
                Tab,
                Backspace,
                Backspace
            ]
        );
        assert_eq!(
            keys(b"\x01\x03\x1d"),
            [Control(b'A'), Control(b'C'), Control(b']')]
        );
    }

    #[test]
    fn a_line_end_is_one_key() {
        assert_eq!(keys(b"\r\n\n\r\r"), [Key::Enter; 4]);
        assert_eq!(keys(b"\ra\n"), [Key::Enter, Key::Letter(b'a'), Key::Enter]);
    }

    #[test]
    fn other_sequences_are_swallowed() {
        assert_eq!(
            keys(b"\x1b[5~\x1b[200~\x1b[99999999~\x1bx\x1b[?25l\x1b[Z\0\xff\xc3\xbcq"),
            [Key::Letter(b'q')]
        );
        // One that is broken off by the next.
        assert_eq!(keys(b"\x1b[1\x1b[A"), [Key::Up]);
    }
}

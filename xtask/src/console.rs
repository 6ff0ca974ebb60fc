//! The terminal as the machine's serial console: keys go to the machine as they are, except the escape key Ctrl-A.
//!
//! The terminal's mode is put back by [`crate::guard`] however the program ends.

use std::io::{self, IsTerminal, Read, Write};
use std::sync::mpsc::{self, Receiver};

use rustix::termios::{
    LocalModes, OptionalActions, OutputModes, SpecialCodeIndex, tcgetattr, tcsetattr,
};

use crate::guard;
use crate::serial::Filter;

/// What the keyboard says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Bytes for the machine.
    Bytes(Vec<u8>),
    /// Ctrl-A X: end the machine.
    Quit,
}

/// Ctrl-A.
const ESCAPE: u8 = 1;

/// Takes the escape key out of what is typed.
#[derive(Debug, Default)]
struct Keys {
    escaped: bool,
}

impl Keys {
    fn push(&mut self, typed: &[u8]) -> Vec<Input> {
        let (mut inputs, mut bytes) = (Vec::new(), Vec::new());
        for &byte in typed {
            if std::mem::take(&mut self.escaped) {
                match byte {
                    b'x' | b'X' => {
                        inputs.push(Input::Bytes(std::mem::take(&mut bytes)));
                        inputs.push(Input::Quit);
                    }
                    ESCAPE => bytes.push(ESCAPE),
                    // Not one of ours: the machine gets both keys.
                    other => bytes.extend([ESCAPE, other]),
                }
            } else if byte == ESCAPE {
                self.escaped = true;
            } else {
                bytes.push(byte);
            }
        }
        inputs.push(Input::Bytes(bytes));
        inputs.retain(|input| *input != Input::Bytes(Vec::new()));
        inputs
    }
}

/// The console of this program.
#[derive(Debug)]
pub struct Console {
    input: Receiver<Input>,
    raw: bool,
    screen: Screen,
}

impl Console {
    /// Takes the terminal, if there is one. Without one, nothing is read: what stands ready on a pipe would reach the
    /// firmware, not the guest.
    pub fn open() -> io::Result<Self> {
        let (sender, input) = mpsc::channel();
        let raw = io::stdin().is_terminal();
        if raw {
            let mut mode = tcgetattr(io::stdin())?;
            guard::owe_terminal(mode.clone());
            mode.make_raw();
            // What the machine prints may end its lines with a bare line feed.
            mode.output_modes |= OutputModes::OPOST | OutputModes::ONLCR;
            mode.local_modes.remove(LocalModes::ISIG);
            mode.special_codes[SpecialCodeIndex::VMIN] = 1;
            mode.special_codes[SpecialCodeIndex::VTIME] = 0;
            tcsetattr(io::stdin(), OptionalActions::Drain, &mode)?;
            std::thread::spawn(move || {
                let (mut keys, mut buffer) = (Keys::default(), [0; 256]);
                while let Ok(count @ 1..) = io::stdin().read(&mut buffer) {
                    for input in keys.push(buffer.get(..count).unwrap_or_default()) {
                        if sender.send(input).is_err() {
                            return;
                        }
                    }
                }
            });
        }
        let screen = if io::stdout().is_terminal() {
            Screen::Waiting(Filter::default())
        } else {
            Screen::Plain(Filter::default())
        };
        Ok(Self { input, raw, screen })
    }

    /// A console without keyboard and screen.
    #[cfg(test)]
    pub fn silent() -> Self {
        Self {
            input: mpsc::channel().1,
            raw: false,
            screen: Screen::Dark,
        }
    }

    /// Whether keys are read.
    pub fn is_interactive(&self) -> bool {
        self.raw
    }

    /// What was typed since the last call.
    pub fn typed(&mut self) -> Vec<Input> {
        self.input.try_iter().collect()
    }

    /// Shows what the machine wrote. `ours` says that Plinth has spoken already, not only the firmware.
    pub fn show(&mut self, bytes: &[u8], ours: bool) {
        let mut stdout = io::stdout().lock();
        let shown = self.screen.prepare(bytes, ours);
        // A closed standard output is no reason to end the machine in disorder.
        let _ = stdout.write_all(&shown).and_then(|()| stdout.flush());
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        guard::restore_terminal();
    }
}

/// What of the machine's output reaches ours.
#[derive(Debug)]
enum Screen {
    /// Not a terminal: control sequences mean nothing there.
    Plain(Filter),
    /// A terminal while the firmware speaks, whose control sequences would clear it.
    Waiting(Filter),
    /// A terminal while Plinth speaks.
    Open,
    /// None.
    #[cfg(test)]
    Dark,
}

impl Screen {
    fn prepare(&mut self, bytes: &[u8], ours: bool) -> Vec<u8> {
        match self {
            Self::Waiting(filter) => {
                let shown = bytes.iter().filter_map(|&byte| filter.pass(byte)).collect();
                if ours {
                    *self = Self::Open;
                }
                shown
            }
            Self::Plain(filter) => bytes.iter().filter_map(|&byte| filter.pass(byte)).collect(),
            Self::Open => bytes.to_vec(),
            #[cfg(test)]
            Self::Dark => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &[u8]) -> Input {
        Input::Bytes(text.to_vec())
    }

    #[test]
    fn keys_pass_through() {
        assert_eq!(Keys::default().push(b"ab\r\x03"), [bytes(b"ab\r\x03")]);
    }

    #[test]
    fn the_escape_key_quits_or_is_doubled() {
        let mut keys = Keys::default();
        assert_eq!(keys.push(b"a\x01x"), [bytes(b"a"), Input::Quit]);
        assert_eq!(keys.push(b"\x01\x01b"), [bytes(b"\x01b")]);
        assert_eq!(keys.push(b"\x01"), []);
        assert_eq!(keys.push(b"X"), [Input::Quit]);
        assert_eq!(keys.push(b"\x01q"), [bytes(b"\x01q")]);
        assert_eq!(keys.push(b"x"), [bytes(b"x")]);
    }

    #[test]
    fn the_firmware_does_not_clear_the_screen() {
        let mut screen = Screen::Waiting(Filter::default());
        assert_eq!(screen.prepare(b"\x1b[2Jfirm", false), b"firm");
        assert_eq!(screen.prepare(b"\x1b[Hplinth", true), b"plinth");
        assert_eq!(screen.prepare(b"\x1b[1mbold", true), b"\x1b[1mbold");
    }
}

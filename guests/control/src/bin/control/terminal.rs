//! The operator's terminal: lines of output, the prompt, and notices that come in between without disturbing either.

use alloc::string::String;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

use plinth_guest_control::command::Completion;
use plinth_guest_control::format;
use plinth_guest_control::line::{Action, ERASE, Editor};

use crate::serial::Serial;

/// Ctrl-C, which breaks a command off.
const INTERRUPT: u8 = 0x03;
/// Notices that are kept while they cannot be shown.
const HELD: usize = 100;
/// Bytes of waiting output above which notices are left out.
const CROWDED: usize = 64 << 10;

/// What is on the terminal.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Lines of output.
    Lines,
    /// The prompt, with a line that is being edited.
    Prompt,
    /// A domain's console, or the table of `top`: notices wait.
    Foreign,
}

/// The terminal.
pub struct Terminal {
    serial: &'static Serial,
    editor: RefCell<Editor>,
    mode: Cell<Mode>,
    held: RefCell<Vec<String>>,
    left_out: Cell<usize>,
}

impl Terminal {
    /// The terminal at this port.
    pub fn new(serial: &'static Serial) -> Self {
        Self {
            serial,
            editor: RefCell::default(),
            mode: Cell::new(Mode::Lines),
            held: RefCell::default(),
            left_out: Cell::new(0),
        }
    }

    /// Writes text as it is, but for line ends, which are made the terminal's.
    pub fn text(&self, text: &str) {
        for (index, line) in text.split('\n').enumerate() {
            if index > 0 {
                self.serial.send(b"\r\n");
            }
            self.serial.send(line.as_bytes());
        }
    }

    /// Writes a line.
    pub fn line(&self, text: &str) {
        self.text(text);
        self.text("\n");
    }

    /// Tells the operator of something that happened, whatever is on the terminal.
    pub fn notice(&self, text: &str) {
        let mut held = self.held.borrow_mut();
        let crowded = self.serial.waiting() > CROWDED || held.len() >= HELD;
        if crowded {
            self.left_out.set(self.left_out.get() + 1);
            return;
        }
        match self.mode.get() {
            Mode::Lines => {
                self.tell_left_out();
                self.line(text);
            }
            Mode::Foreign => held.push(text.into()),
            Mode::Prompt => {
                self.text(ERASE);
                self.tell_left_out();
                self.line(text);
                self.show_prompt();
            }
        }
    }

    fn tell_left_out(&self) {
        let count = self.left_out.take();
        if count > 0 {
            self.line(&alloc::format!(
                "({} left out: too many at once)",
                format::counted(count, "notice")
            ));
        }
    }

    fn show_prompt(&self) {
        let mut out = String::new();
        self.editor.borrow_mut().show(&mut out);
        self.text(&out);
    }

    /// Reads a line. `complete` is asked when Tab is typed.
    pub async fn read_line(&self, complete: impl Fn(&str) -> Completion) -> String {
        self.mode.set(Mode::Prompt);
        self.show_prompt();
        loop {
            let byte = self.serial.receive().await;
            let mut out = String::new();
            let action = self.editor.borrow_mut().feed(byte, &mut out);
            // Line ends are the terminal's already.
            self.serial.send(out.as_bytes());
            match action {
                None => {}
                Some(Action::Entered(line)) => {
                    self.mode.set(Mode::Lines);
                    return line;
                }
                Some(Action::Complete) => self.complete(&complete),
            }
        }
    }

    fn complete(&self, complete: &impl Fn(&str) -> Completion) {
        let completion = complete(self.editor.borrow().before_cursor());
        match completion {
            Completion::Nothing => self.text("\x07"),
            Completion::Insert(text) => {
                let mut out = String::new();
                self.editor.borrow_mut().insert(&text, &mut out);
                self.text(&out);
            }
            Completion::Choices(choices) => {
                self.text(ERASE);
                for line in format::columns(&choices) {
                    self.line(&line);
                }
                self.show_prompt();
            }
        }
    }

    /// Gives the terminal to something else than lines, until [`Self::take_back`].
    pub fn give_away(&self) {
        self.mode.set(Mode::Foreign);
    }

    /// Takes the terminal back at the beginning of a line, and shows the notices that came meanwhile.
    pub fn take_back(&self) {
        self.mode.set(Mode::Lines);
        for notice in self.held.take() {
            self.line(&notice);
        }
        self.tell_left_out();
    }

    /// The next byte that is typed.
    pub async fn key(&self) -> u8 {
        self.serial.receive().await
    }

    /// Waits for Ctrl-C.
    pub async fn interrupted(&self) {
        self.serial.typed(INTERRUPT).await;
    }

    /// Waits until there is room for more output.
    pub async fn room(&self) {
        self.serial.room().await;
    }

    /// Waits until everything has been sent.
    pub async fn flush(&self) {
        self.serial.flush().await;
    }
}

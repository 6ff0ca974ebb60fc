//! Scripts: what is typed at the serial console, and when. `cargo xtask run --script` and the scenarios of the tests have them.
//!
//! The control guest's line editor draws its prompt again whenever something else was printed, so a prompt alone does not say
//! that a command is over: the next is typed at the first prompt behind the echo of the one before.

use std::collections::VecDeque;

use crate::serial::Lines;

/// The control guest's prompt.
const PROMPT: &str = "plinth> ";
/// How a line begins by which the control guest says that a command failed.
const ERROR: &str = "error: ";

/// A step of a script. The next begins when it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step<'a> {
    /// Types a command line and the Enter key when the control guest prompts. Done with its echo.
    Type(&'a str),
    /// Waits for a line that contains this.
    Expect(&'a str),
    /// Types keys as they are, at once.
    Keys(&'a str),
}

/// A script under way.
#[derive(Debug, Default)]
pub struct Script<'a> {
    steps: VecDeque<Step<'a>>,
    /// What an error makes of the steps that are left, from the first command on.
    on_error: Option<Step<'a>>,
    lines: Lines,
    /// Whether there was a prompt since the last echo.
    is_prompted: bool,
    /// The command line whose echo is not complete.
    typed: Option<&'a str>,
    has_begun: bool,
}

impl<'a> Script<'a> {
    /// A script that goes on whatever the commands say.
    pub fn new(steps: &[Step<'a>]) -> Self {
        Self {
            steps: steps.iter().copied().collect(),
            ..Self::default()
        }
    }

    /// Commands separated by `;`, which end the machine: with status 1 at the first that fails, or else behind the last, if that
    /// does not do so by itself. Without a command, nothing is typed.
    pub fn of_commands(text: &'a str) -> Self {
        let commands = text.split(';').map(str::trim);
        let mut steps: VecDeque<_> = commands
            .filter(|command| !command.is_empty())
            .map(Step::Type)
            .collect();
        if let Some(Step::Type(last)) = steps.back()
            && !matches!(last.split_whitespace().next(), Some("shutdown" | "reboot"))
        {
            steps.push_back(Step::Type("shutdown"));
        }
        Self {
            steps,
            on_error: Some(Step::Type("shutdown 1")),
            ..Self::default()
        }
    }

    /// Looks at what the machine wrote; what to type now.
    pub fn answer(&mut self, output: &[u8]) -> Vec<u8> {
        let mut keys = Vec::new();
        for &byte in output {
            if let Some(line) = self.lines.push_byte(byte) {
                self.look_at(&line);
            }
            self.is_prompted |= self.typed.is_none() && self.lines.partial() == PROMPT.as_bytes();
            self.advance(&mut keys);
        }
        // What is waited for may be a question, whose line does not end.
        if let Some(Step::Expect(_)) = self.steps.front() {
            let partial = String::from_utf8_lossy(self.lines.partial()).into_owned();
            self.expect_in(&partial);
            self.advance(&mut keys);
        }
        keys
    }

    /// What it still waits for, if it has not come to its end.
    pub fn wish(&self) -> Option<String> {
        match (self.typed, self.steps.front()?) {
            (Some(line), _) => Some(format!("the echo of `{line}`")),
            (None, Step::Type(line)) => Some(format!("a prompt for `{line}`")),
            (None, Step::Expect(text)) => Some(format!("a line with {text:?}")),
            (None, Step::Keys(_)) => Some("any output".to_owned()),
        }
    }

    fn look_at(&mut self, line: &str) {
        if self.typed.is_some() {
            // The kernel's log may cut the echo short, so its beginning is enough.
            if line
                .strip_prefix(PROMPT)
                .is_some_and(|echo| !echo.trim().is_empty())
            {
                self.typed = None;
            }
        } else if self.has_begun && line.starts_with(ERROR) {
            if let Some(instead) = self.on_error.take() {
                self.steps = [instead].into();
            }
        } else {
            self.expect_in(line);
        }
    }

    fn expect_in(&mut self, line: &str) {
        if self.typed.is_none()
            && let Some(Step::Expect(text)) = self.steps.front()
            && line.contains(text)
        {
            self.steps.pop_front();
        }
    }

    /// Takes the steps that can be taken now.
    fn advance(&mut self, keys: &mut Vec<u8>) {
        while self.typed.is_none() {
            match self.steps.front() {
                Some(Step::Type(line)) if self.is_prompted => {
                    keys.extend(line.as_bytes());
                    // What a terminal sends for the Enter key.
                    keys.push(b'\r');
                    self.typed = Some(line);
                    self.is_prompted = false;
                    self.has_begun = true;
                }
                Some(Step::Keys(text)) => keys.extend(text.as_bytes()),
                _ => return,
            }
            self.steps.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Step::*;
    use super::*;

    /// What a script types at each piece of output.
    fn typed(mut script: Script<'_>, output: &[&str]) -> Vec<String> {
        let answers = output
            .iter()
            .map(|piece| script.answer(piece.as_bytes()))
            .map(|keys| String::from_utf8(keys).unwrap());
        answers.collect()
    }

    #[test]
    fn each_prompt_gets_one_command() {
        let output = [
            "boot\r\n",
            "plinth>",
            " ",
            "li",
            "st\r",
            "\na domain\r\n",
            "plinth> ",
            "stop 3\r\nplinth> ",
        ];
        let expected = ["", "", "list\r", "", "", "", "stop 3\r", "shutdown\r"];
        assert_eq!(
            typed(Script::of_commands("list; ; stop 3 ;"), &output),
            expected
        );
    }

    #[test]
    fn a_prompt_that_is_drawn_anew_is_none() {
        let output = [
            "\r\x1b[Kplinth> ",
            // A notice comes before the echo, and one in the middle of it.
            "\r\x1b[Khello ended\r\nplinth> \r\nbye\r\nplinth> ",
            "\r\x1b[Kplinth> l\r\x1b[Kplinth> li",
            "\r\x1b[Kspin ended\r\n\r\x1b[Kplinth> \r\x1b[Kplinth> li",
            "\r\x1b[Kplinth> list\r\nnothing\r\n",
            "\r\x1b[Kplinth> ",
        ];
        let expected = ["list\r", "", "", "", "", "info\r"];
        assert_eq!(
            typed(Script::new(&[Type("list"), Type("info")]), &output),
            expected
        );
    }

    #[test]
    fn the_kernels_log_may_come_between() {
        for output in [
            // Behind the prompt, so that the echo stands alone, and in the middle of the echo.
            [
                "plinth> [    1.000000] INFO  cpu0 up\r\n",
                "list\r\nplinth> ",
            ],
            [
                "plinth> ",
                "li[    1.000000] INFO  cpu0 up\r\nst\r\nplinth> ",
            ],
        ] {
            let script = Script::new(&[Type("list"), Type("info")]);
            assert_eq!(typed(script, &output), ["list\r", "info\r"]);
        }
    }

    #[test]
    fn a_prompt_elsewhere_in_the_line_is_none() {
        assert_eq!(typed(Script::of_commands("a"), &["say plinth> "]), [""]);
        assert_eq!(typed(Script::of_commands(" ; "), &["plinth> "]), [""]);
    }

    #[test]
    fn a_script_of_commands_ends_the_machine() {
        let last = |text| Script::of_commands(text).steps.back().copied();
        assert_eq!(last("list"), Some(Type("shutdown")));
        assert_eq!(last("list; shutdown 3"), Some(Type("shutdown 3")));
        assert_eq!(last("reboot;"), Some(Type("reboot")));
        assert_eq!(last(""), None);
    }

    #[test]
    fn an_error_ends_a_script_of_commands() {
        let output = [
            "error: a machine file is wrong\r\nplinth> ",
            "a\r\nerror: no such command\r\nplinth> ",
            "shutdown 1\r\nerror: not now\r\nplinth> ",
        ];
        assert_eq!(
            typed(Script::of_commands("a; b"), &output),
            ["a\r", "shutdown 1\r", ""]
        );
        let indifferent = Script::new(&[Type("a"), Type("b"), Type("c")]);
        assert_eq!(typed(indifferent, &output), ["a\r", "b\r", "c\r"]);
    }

    #[test]
    fn keys_wait_for_what_is_expected() {
        let script = Script::new(&[
            Type("console echo"),
            Expect("name?"),
            Keys("me\r"),
            Expect("echo me"),
            Keys("\x1d"),
            Type("list"),
        ]);
        let output = [
            "plinth> ",
            // The echo itself is not what is expected.
            "console name?\r\n",
            "who\r\nyour name? ",
            "me\r\necho",
            " me\r\n",
            "plinth> ",
        ];
        let expected = ["console echo\r", "", "me\r", "", "\x1d", "list\r"];
        assert_eq!(typed(script, &output), expected);
    }

    #[test]
    fn a_prompt_that_came_while_something_else_was_expected_counts() {
        let script = Script::new(&[Type("start a"), Expect("a ended"), Type("list")]);
        let output = [
            "plinth> ",
            "start a\r\nplinth> ",
            "[    1.000000] INFO  cpu0 a ended\r\n",
        ];
        assert_eq!(typed(script, &output), ["start a\r", "", "list\r"]);
    }

    #[test]
    fn what_it_waits_for_can_be_told() {
        let mut script = Script::new(&[Type("a"), Expect("b"), Keys("c")]);
        assert_eq!(script.wish().unwrap(), "a prompt for `a`");
        script.answer(b"plinth> ");
        assert_eq!(script.wish().unwrap(), "the echo of `a`");
        script.answer(b"a\n");
        assert_eq!(script.wish().unwrap(), "a line with \"b\"");
        assert_eq!(script.answer(b"b"), b"c");
        assert_eq!(script.wish(), None);
    }
}

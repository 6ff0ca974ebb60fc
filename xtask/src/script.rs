//! `--script`: command lines that are typed at the serial console, each when the guest prompts for one.

use std::collections::VecDeque;

/// The control guest's prompt.
const PROMPT: &str = "plinth> ";

/// The commands that are still to be typed.
#[derive(Debug, Default)]
pub struct Script {
    commands: VecDeque<String>,
    /// Whether the current line's prompt has been answered already.
    answered: bool,
}

impl Script {
    /// Commands separated by `;`. Empty ones are left out.
    pub fn new(text: &str) -> Self {
        let commands = text
            .split(';')
            .map(str::trim)
            .filter(|command| !command.is_empty())
            .map(str::to_owned);
        Self {
            commands: commands.collect(),
            answered: false,
        }
    }

    /// Looks at the line that is not complete yet, after `completed` lines became complete; what to type, if anything.
    pub fn answer(&mut self, completed: usize, partial: &str) -> Option<String> {
        if completed > 0 {
            self.answered = false;
        }
        if self.answered || !partial.starts_with(PROMPT) {
            return None;
        }
        let command = self.commands.pop_front()?;
        self.answered = true;
        // What a terminal sends for the Enter key.
        Some(format!("{command}\r"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_prompt_gets_one_command() {
        let mut script = Script::new("list; ; stop 3 ;");
        assert_eq!(script.answer(4, "boot"), None);
        assert_eq!(script.answer(1, "plinth>"), None);
        assert_eq!(script.answer(0, "plinth> "), Some("list\r".into()));
        // The echo of what was typed is not a new prompt.
        assert_eq!(script.answer(0, "plinth> li"), None);
        assert_eq!(script.answer(2, ""), None);
        assert_eq!(script.answer(1, "plinth> "), Some("stop 3\r".into()));
        assert_eq!(script.answer(1, "plinth> "), None);
    }

    #[test]
    fn a_prompt_elsewhere_in_the_line_is_none() {
        assert_eq!(Script::new("a").answer(1, "say plinth> "), None);
        assert_eq!(Script::new("").answer(1, "plinth> "), None);
    }
}

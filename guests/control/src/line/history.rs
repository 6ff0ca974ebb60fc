//! The lines that were entered.

use alloc::collections::VecDeque;
use alloc::string::String;

/// Lines that are kept.
const KEPT: usize = 100;

/// What was entered before, and where in it somebody is looking.
#[derive(Debug, Default)]
pub struct History {
    lines: VecDeque<String>,
    /// How many lines back; 0 is the line that is being edited.
    back: usize,
    /// That line, while another one is shown.
    draft: String,
}

impl History {
    /// Keeps a line. Blank ones, and the same again, are not kept.
    pub fn add(&mut self, line: &str) {
        self.back = 0;
        if line.trim().is_empty() || self.lines.back().is_some_and(|last| last == line) {
            return;
        }
        if self.lines.len() == KEPT {
            self.lines.pop_front();
        }
        self.lines.push_back(line.into());
    }

    /// The line before the one that is shown, which is `shown`.
    pub fn older(&mut self, shown: &str) -> Option<String> {
        let index = self.lines.len().checked_sub(self.back + 1)?;
        if self.back == 0 {
            self.draft = shown.into();
        }
        self.back += 1;
        self.lines.get(index).cloned()
    }

    /// The line behind the one that is shown.
    pub fn newer(&mut self) -> Option<String> {
        self.back = self.back.checked_sub(1)?;
        match self.back {
            0 => Some(core::mem::take(&mut self.draft)),
            back => self.lines.get(self.lines.len().checked_sub(back)?).cloned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_can_go_back_and_forth() {
        let mut history = History::default();
        assert_eq!(history.older("x"), None);
        history.add("one");
        history.add("two");
        assert_eq!(history.newer(), None);
        assert_eq!(history.older("draft").as_deref(), Some("two"));
        assert_eq!(history.older("two").as_deref(), Some("one"));
        assert_eq!(history.older("one"), None);
        assert_eq!(history.newer().as_deref(), Some("two"));
        assert_eq!(history.newer().as_deref(), Some("draft"));
        assert_eq!(history.newer(), None);
    }

    #[test]
    fn what_is_blank_or_repeated_is_not_kept() {
        let mut history = History::default();
        for line in ["one", "", "  ", "two", "two"] {
            history.add(line);
        }
        assert_eq!(history.older("").as_deref(), Some("two"));
        assert_eq!(history.older("").as_deref(), Some("one"));
        assert_eq!(history.older(""), None);
    }

    #[test]
    fn the_oldest_lines_are_forgotten() {
        let mut history = History::default();
        for number in 0..KEPT + 5 {
            history.add(&number.to_string());
        }
        let mut last = None;
        while let Some(line) = history.older("") {
            last = Some(line);
        }
        assert_eq!(last.as_deref(), Some("5"));
    }
}

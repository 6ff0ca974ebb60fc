//! Completion of the word before the cursor.

use alloc::string::String;
use alloc::vec::Vec;

use super::table::{Argument, COMMANDS, find};

/// The names that there are.
#[derive(Debug, Default)]
pub struct Names {
    /// Of machines.
    pub machines: Vec<String>,
    /// Of domains.
    pub domains: Vec<String>,
}

/// What Tab does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Completion {
    /// Nothing fits.
    Nothing,
    /// This goes to the cursor.
    Insert(String),
    /// These could be meant.
    Choices(Vec<String>),
}

/// Completes what stands before the cursor.
pub fn complete(before_cursor: &str, names: &Names) -> Completion {
    // Only the last of several commands counts.
    let statement = before_cursor.rsplit(';').next().unwrap_or_default();
    let (words, begun) = match statement.rsplit_once(' ') {
        Some((words, begun)) => (words, begun),
        None => ("", statement),
    };
    let mut choices: Vec<&str> = candidates(words, names)
        .into_iter()
        .filter(|candidate| candidate.starts_with(begun))
        .collect();
    choices.sort_unstable();
    choices.dedup();
    let rest = |text: &str| text.get(begun.len()..).unwrap_or_default().into();
    match choices[..] {
        [] => Completion::Nothing,
        [only] => {
            let mut text: String = rest(only);
            text.push(' ');
            Completion::Insert(text)
        }
        [first, ..] => {
            let common = choices
                .iter()
                .fold(first, |common, choice| shared(common, choice));
            if common.len() > begun.len() {
                return Completion::Insert(rest(common));
            }
            Completion::Choices(choices.into_iter().map(Into::into).collect())
        }
    }
}

/// What can stand behind these words.
fn candidates<'a>(words: &str, names: &'a Names) -> Vec<&'a str> {
    let mut words = words.split_ascii_whitespace();
    let Some(command) = words.next() else {
        return COMMANDS.iter().map(|entry| entry.name).collect();
    };
    let kind = find(command).and_then(|entry| entry.argument(words.count()));
    let machines = || names.machines.iter().map(String::as_str);
    let domains = || names.domains.iter().map(String::as_str);
    match kind {
        None | Some(Argument::Any) => Vec::new(),
        Some(Argument::Command) => COMMANDS.iter().map(|entry| entry.name).collect(),
        Some(Argument::Machine) => machines().collect(),
        Some(Argument::Domain) => domains().collect(),
        Some(Argument::Name) => machines().chain(domains()).collect(),
        Some(Argument::Word(words)) => words.to_vec(),
    }
}

/// What two words begin with, both.
fn shared<'a>(one: &'a str, other: &str) -> &'a str {
    let end = one
        .char_indices()
        .zip(other.chars())
        .find(|&((_, a), b)| a != b)
        .map_or(one.len().min(other.len()), |((at, _), _)| at);
    one.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(text: &str) -> Completion {
        let names = Names {
            machines: vec!["hello".into(), "spin".into()],
            domains: vec!["hello".into(), "spin-1".into(), "spin-2".into()],
        };
        complete(text, &names)
    }

    fn insert(text: &str) -> Completion {
        Completion::Insert(text.into())
    }

    fn choices(words: &[&str]) -> Completion {
        Completion::Choices(words.iter().map(|&word| word.into()).collect())
    }

    #[test]
    fn commands_are_completed() {
        assert_eq!(on("li"), insert("st "));
        assert_eq!(on("list; hel"), insert("p "));
        assert_eq!(on("res"), choices(&["restart", "resume"]));
        assert_eq!(on("rest"), insert("art "));
        assert_eq!(on("x"), Completion::Nothing);
        assert_eq!(on("help vers"), insert("ion "));
        assert!(matches!(on(""), Completion::Choices(all) if all.len() == COMMANDS.len()));
    }

    #[test]
    fn names_and_words_are_completed() {
        assert_eq!(on("create s"), insert("pin "));
        assert_eq!(on("pause s"), insert("pin-"));
        assert_eq!(on("pause spin-"), choices(&["spin-1", "spin-2"]));
        assert_eq!(on("pause hello h"), insert("ello "));
        assert_eq!(
            on("start "),
            choices(&["hello", "spin", "spin-1", "spin-2"])
        );
        assert_eq!(on("set hello w"), insert("eight "));
        assert_eq!(on("create hello a"), insert("s "));
        assert_eq!(on("info hello x"), Completion::Nothing);
        assert_eq!(on("nonsense h"), Completion::Nothing);
        assert_eq!(on("sleep 1"), Completion::Nothing);
    }
}

//! What the operator types: command lines, taken apart and understood.

mod complete;
mod table;

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use plinth_abi::Schedule;

pub use complete::{Completion, Names, complete};
pub use table::{COMMANDS, Entry, find};

use crate::config::Seconds;
use crate::suggest;

/// What happens to each of some domains.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the commands' names are their documentation")]
pub enum Verb {
    Start,
    Pause,
    Resume,
    Stop,
    Kill,
    Restart,
    Destroy,
}

/// What `set` sets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Setting {
    /// The weight.
    Weight(u32),
    /// The cap in percent, 0 for none.
    Cap(u32),
    /// The CPU, or [`Schedule::ANY_CPU`].
    Pin(u32),
}

impl Setting {
    /// Changes this one thing.
    pub fn apply(self, schedule: &mut Schedule) {
        match self {
            Self::Weight(weight) => schedule.weight = weight,
            Self::Cap(cap) => schedule.cap = cap,
            Self::Pin(cpu) => schedule.cpu = cpu,
        }
    }
}

/// How many domains `create` makes, and what they are called.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Copies {
    /// One, called so.
    One(String),
    /// So many, numbered.
    Many(u32),
}

/// The status with which `shutdown` ends the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// This one.
    Status(u64),
    /// That of the last command.
    Last,
}

/// How the control guest crashes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Crash {
    /// By a write to where no memory is.
    Fault,
    /// By a panic.
    Panic,
}

/// A command.
#[derive(Clone, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the table of commands is their documentation")]
pub enum Command {
    Help(Option<&'static Entry>),
    List,
    Machines,
    Create { machine: String, copies: Copies },
    Each(Verb, Vec<String>),
    Run(Vec<String>),
    Wait(String, Option<Seconds>),
    Sleep(Seconds),
    Info(String),
    Top(Option<u32>),
    Console(String),
    Log(String),
    Set(String, Setting),
    Dmesg(Option<usize>),
    Trace { count: usize, cpu: Option<u32> },
    Version,
    Crash(Crash),
    Shutdown(Exit),
    Reboot,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Entry {}

/// Most domains that one `create` makes.
const MOST_COPIES: u32 = 1000;
/// Events that `trace` shows, unless told how many.
const TRACE: usize = 20;

/// The commands of a line: each is its words. `;` separates commands, a word that begins with `#` begins a comment.
pub fn split(line: &str) -> Vec<Vec<&str>> {
    let comment = line
        .char_indices()
        .find(|&(at, letter)| {
            letter == '#'
                && line
                    .get(..at)
                    .is_some_and(|before| before.is_empty() || before.ends_with([' ', ';']))
        })
        .map_or(line.len(), |(at, _)| at);
    line.get(..comment)
        .unwrap_or_default()
        .split(';')
        .map(|command| command.split_ascii_whitespace().collect::<Vec<_>>())
        .filter(|words| !words.is_empty())
        .collect()
}

/// Understands a command; what is wrong with it, and what would be right.
pub fn parse(words: &[&str]) -> Result<Command, String> {
    let (&name, arguments) = words.split_first().ok_or("no command")?;
    let entry = find(name).ok_or_else(|| unknown(name))?;
    if let ("help", &[about]) = (name, arguments) {
        return Ok(Command::Help(Some(
            find(about).ok_or_else(|| unknown(about))?,
        )));
    }
    understand(name, arguments).map_err(|why| {
        let synopsis = entry.synopsis();
        match why {
            Some(why) => format!("{why}; it is `{synopsis}`"),
            None => format!("it is `{synopsis}`; `help {name}` tells more"),
        }
    })
}

fn unknown(name: &str) -> String {
    let names = COMMANDS.iter().map(|entry| entry.name);
    match suggest::nearest(name, names) {
        Some(near) => format!("no command is called `{name}`; did you mean `{near}`?"),
        None => format!("no command is called `{name}`; `help` lists them"),
    }
}

/// `None`: the number of arguments is wrong.
type Wrong = Option<String>;

fn understand(name: &str, arguments: &[&str]) -> Result<Command, Wrong> {
    let names = || {
        arguments
            .iter()
            .map(|&name| name.to_owned())
            .collect::<Vec<_>>()
    };
    let each = |verb: Verb| {
        if arguments.is_empty() {
            return Err(None);
        }
        Ok(Command::Each(verb, names()))
    };
    Ok(match (name, arguments) {
        ("help", []) => Command::Help(None),
        ("list", []) => Command::List,
        ("machines", []) => Command::Machines,
        ("create", [machine, copies @ ..]) => Command::Create {
            machine: (*machine).to_owned(),
            copies: match copies {
                [] => Copies::One((*machine).to_owned()),
                ["as", name] => Copies::One((*name).to_owned()),
                [count] => Copies::Many(number("COUNT", count, 1, MOST_COPIES)?),
                _ => return Err(None),
            },
        },
        ("start", _) => each(Verb::Start)?,
        ("pause", _) => each(Verb::Pause)?,
        ("resume", _) => each(Verb::Resume)?,
        ("stop", _) => each(Verb::Stop)?,
        ("kill", _) => each(Verb::Kill)?,
        ("restart", _) => each(Verb::Restart)?,
        ("destroy", _) => each(Verb::Destroy)?,
        ("run", [_, ..]) => Command::Run(names()),
        ("wait", [name]) => Command::Wait((*name).to_owned(), None),
        ("wait", [name, time]) => Command::Wait((*name).to_owned(), Some(seconds(time)?)),
        ("sleep", [time]) => Command::Sleep(seconds(time)?),
        ("info", [name]) => Command::Info((*name).to_owned()),
        ("top", []) => Command::Top(None),
        ("top", [samples]) => Command::Top(Some(number("SAMPLES", samples, 1, 1000)?)),
        ("console", [name]) => Command::Console((*name).to_owned()),
        ("log", [name]) => Command::Log((*name).to_owned()),
        ("set", [name, what, value]) => Command::Set((*name).to_owned(), setting(what, value)?),
        ("dmesg", []) => Command::Dmesg(None),
        ("dmesg", [lines]) => Command::Dmesg(Some(number("LINES", lines, 1, u32::MAX)? as usize)),
        ("trace", []) => Command::Trace {
            count: TRACE,
            cpu: None,
        },
        ("trace", [count, cpu @ ..]) => Command::Trace {
            count: number("COUNT", count, 1, 10_000)? as usize,
            cpu: match cpu {
                [] => None,
                [cpu] => Some(number("CPU", cpu, 0, u16::MAX.into())?),
                _ => return Err(None),
            },
        },
        ("version", []) => Command::Version,
        ("crash", [] | ["fault"]) => Command::Crash(Crash::Fault),
        ("crash", ["panic"]) => Command::Crash(Crash::Panic),
        ("shutdown", []) => Command::Shutdown(Exit::Status(0)),
        ("shutdown", ["last"]) => Command::Shutdown(Exit::Last),
        ("shutdown", [status]) => {
            Command::Shutdown(Exit::Status(number("STATUS", status, 0, 100)?.into()))
        }
        ("reboot", []) => Command::Reboot,
        _ => return Err(None),
    })
}

fn setting(what: &str, value: &str) -> Result<Setting, String> {
    Ok(match (what, value) {
        ("weight", _) => Setting::Weight(number(
            "the weight",
            value,
            Schedule::MIN_WEIGHT,
            Schedule::MAX_WEIGHT,
        )?),
        ("cap", "none") => Setting::Cap(0),
        ("cap", _) => Setting::Cap(number("the cap", value, 0, 100)?),
        ("pin", "any") => Setting::Pin(Schedule::ANY_CPU),
        ("pin", _) => Setting::Pin(number("the CPU", value, 0, u16::MAX.into())?),
        _ => return Err(format!("`{what}` cannot be set")),
    })
}

fn number(what: &str, text: &str, least: u32, most: u32) -> Result<u32, String> {
    text.parse()
        .ok()
        .filter(|number| (least..=most).contains(number))
        .ok_or_else(|| match most {
            u32::MAX => format!("{what} is `{text}`, not a number from {least} on"),
            _ => format!("{what} is `{text}`, not a number from {least} to {most}"),
        })
}

fn seconds(text: &str) -> Result<Seconds, String> {
    text.parse()
        .map_err(|why| format!("SECONDS is `{text}`: {why}"))
}

/// Whether a name is meant by a pattern, which may end with `*`.
pub fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => name == pattern,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn on(line: &str) -> Result<Command, String> {
        parse(&split(line)[0])
    }

    #[test]
    fn lines_are_split() {
        assert_eq!(
            split("a b;c  d ;; ;e"),
            [vec!["a", "b"], vec!["c", "d"], vec!["e"]]
        );
        assert_eq!(split("a # b; c"), [vec!["a"]]);
        assert_eq!(split("a;#b"), [vec!["a"]]);
        assert_eq!(split("a#b"), [vec!["a#b"]]);
        assert!(split("# a").is_empty() && split(" ; ").is_empty() && split("").is_empty());
    }

    #[test]
    fn commands_are_understood() {
        let names = |names: &[&str]| {
            names
                .iter()
                .map(|&name| name.to_owned())
                .collect::<Vec<_>>()
        };
        for (line, command) in [
            ("help", Command::Help(None)),
            ("help set", Command::Help(find("set"))),
            (
                "create a",
                Command::Create {
                    machine: "a".into(),
                    copies: Copies::One("a".into()),
                },
            ),
            (
                "create a as b",
                Command::Create {
                    machine: "a".into(),
                    copies: Copies::One("b".into()),
                },
            ),
            (
                "create a 3",
                Command::Create {
                    machine: "a".into(),
                    copies: Copies::Many(3),
                },
            ),
            (
                "start a b*",
                Command::Each(Verb::Start, names(&["a", "b*"])),
            ),
            ("destroy a", Command::Each(Verb::Destroy, names(&["a"]))),
            ("run a b", Command::Run(names(&["a", "b"]))),
            ("wait a", Command::Wait("a".into(), None)),
            (
                "wait a 0.5",
                Command::Wait("a".into(), Some(Seconds(500_000_000))),
            ),
            ("sleep 2", Command::Sleep(Seconds(2_000_000_000))),
            ("top 3", Command::Top(Some(3))),
            (
                "set a weight 512",
                Command::Set("a".into(), Setting::Weight(512)),
            ),
            ("set a cap 25", Command::Set("a".into(), Setting::Cap(25))),
            ("set a cap none", Command::Set("a".into(), Setting::Cap(0))),
            ("set a pin 1", Command::Set("a".into(), Setting::Pin(1))),
            (
                "set a pin any",
                Command::Set("a".into(), Setting::Pin(Schedule::ANY_CPU)),
            ),
            ("dmesg 5", Command::Dmesg(Some(5))),
            (
                "trace",
                Command::Trace {
                    count: 20,
                    cpu: None,
                },
            ),
            (
                "trace 5 1",
                Command::Trace {
                    count: 5,
                    cpu: Some(1),
                },
            ),
            ("crash", Command::Crash(Crash::Fault)),
            ("crash panic", Command::Crash(Crash::Panic)),
            ("shutdown", Command::Shutdown(Exit::Status(0))),
            ("shutdown 7", Command::Shutdown(Exit::Status(7))),
            ("shutdown last", Command::Shutdown(Exit::Last)),
            ("reboot", Command::Reboot),
        ] {
            assert_eq!(on(line), Ok(command), "{line}");
        }
    }

    #[test]
    fn errors_say_what_would_be_right() {
        for (line, message) in [
            ("lst", "no command is called `lst`; did you mean `list`?"),
            ("xyzzy", "no command is called `xyzzy`; `help` lists them"),
            (
                "help lst",
                "no command is called `lst`; did you mean `list`?",
            ),
            ("list all", "it is `list`; `help list` tells more"),
            ("pause", "it is `pause NAME...`; `help pause` tells more"),
            (
                "create a b c d",
                "it is `create NAME [COUNT | as DOMAIN]`; `help create` tells more",
            ),
            (
                "create a 0",
                "COUNT is `0`, not a number from 1 to 1000; it is `create NAME [COUNT | as DOMAIN]`",
            ),
            (
                "set a weight 9",
                "the weight is `9`, not a number from 16 to 4096; it is `set NAME weight|cap|pin VALUE`",
            ),
            (
                "set a colour 9",
                "`colour` cannot be set; it is `set NAME weight|cap|pin VALUE`",
            ),
            (
                "wait a soon",
                "SECONDS is `soon`: expected a number of seconds; it is `wait NAME [SECONDS]`",
            ),
            (
                "shutdown 101",
                "STATUS is `101`, not a number from 0 to 100; it is `shutdown [STATUS | last]`",
            ),
            (
                "dmesg 0",
                "LINES is `0`, not a number from 1 on; it is `dmesg [LINES]`",
            ),
        ] {
            assert_eq!(on(line), Err(message.into()), "{line}");
        }
    }

    #[test]
    fn every_command_of_the_table_is_understood() {
        for entry in COMMANDS {
            let example = match entry.name {
                "create" | "start" | "run" | "pause" | "resume" | "stop" | "kill" | "restart"
                | "destroy" | "wait" | "info" | "console" | "log" => vec![entry.name, "a"],
                "sleep" => vec!["sleep", "1"],
                "set" => vec!["set", "a", "weight", "16"],
                name => vec![name],
            };
            assert!(parse(&example).is_ok(), "{}", entry.name);
        }
    }

    #[test]
    fn a_star_stands_for_anything() {
        assert!(matches("spin-*", "spin-12") && matches("*", "x") && matches("a", "a"));
        assert!(!matches("spin-*", "spin") && !matches("a", "ab"));
    }

    #[test]
    fn settings_change_one_thing() {
        let mut schedule = Schedule::USUAL;
        Setting::Cap(30).apply(&mut schedule);
        Setting::Pin(2).apply(&mut schedule);
        assert_eq!(
            (schedule.weight, schedule.cap, schedule.cpu),
            (Schedule::USUAL.weight, 30, 2)
        );
    }

    proptest! {
        #[test]
        fn nothing_that_is_typed_makes_it_panic(line in "[ -~]{0,40}") {
            for words in split(&line) {
                let _ = parse(&words);
            }
            let _ = complete(&line, &Names::default());
        }
    }
}

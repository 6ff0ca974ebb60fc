//! The kernel's command line: blank-separated `key` or `key=value`. Pure but for the place where the result is kept.

use log::LevelFilter;
use spin::Once;

use crate::rules::speculation::Choice;

/// What to do when the machine's work has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Switch the machine off.
    PowerOff,
    /// Reset it.
    Reboot,
    /// Stop all CPUs and leave the screen readable.
    Halt,
}

/// Who serves guests' local APICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Apics {
    /// The CPU, as far as it can, if it does so as the manual says.
    Auto,
    /// The CPU, as far as it can.
    Cpu,
    /// The kernel alone.
    Software,
}

/// Whether several threads of one core run guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// Where one cannot find out what the other does.
    Auto,
    /// All do.
    On,
    /// One of each core does, the others stay idle.
    Off,
}

/// The command line, typed. Keys that are absent have the values of [`Options::DEFAULT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options<'a> {
    /// `log=`: the least urgent level that is printed.
    pub log: LevelFilter,
    /// `panic=`: what follows a panic.
    pub panic: End,
    /// `end=`: what follows the end of the first domain.
    pub end: End,
    /// `maxcpus=`: how many CPUs are brought up at most; at least 1.
    pub maxcpus: u32,
    /// `apic=`: who serves guests' local APICs.
    pub apic: Apics,
    /// `mitigations=`: who decides what is done against speculative execution.
    pub mitigations: Choice,
    /// `smt=`: whether several threads of one core run guests.
    pub smt: Threads,
    /// `test=`: the machine-test scenario to run.
    pub test: Option<&'a str>,
    /// `root=`: the guest that becomes the first domain, instead of the control guest.
    pub root: Option<&'a str>,
    /// `restart=`: whether the first domain is started anew however often it crashes.
    pub restart_always: bool,
}

impl Options<'_> {
    /// What holds without a command line.
    pub const DEFAULT: Options<'static> = Options {
        log: LevelFilter::Info,
        panic: End::PowerOff,
        end: End::PowerOff,
        maxcpus: u32::MAX,
        apic: Apics::Auto,
        mitigations: Choice::Auto,
        smt: Threads::Auto,
        test: None,
        root: None,
        restart_always: false,
    };
}

/// Reads `text`. Words that mean nothing are handed to `complain`, and have no effect.
pub fn parse<'a>(text: &'a str, mut complain: impl FnMut(&'a str)) -> Options<'a> {
    let mut options = Options::DEFAULT;
    for word in text.split_ascii_whitespace() {
        if apply(&mut options, word).is_none() {
            complain(word);
        }
    }
    options
}

fn apply<'a>(options: &mut Options<'a>, word: &'a str) -> Option<()> {
    let (key, value) = word.split_once('=')?;
    match key {
        "log" => options.log = level(value)?,
        "panic" => options.panic = end(value)?,
        "end" => options.end = end(value)?,
        "maxcpus" => options.maxcpus = value.parse().ok().filter(|&count| count > 0)?,
        "apic" => {
            options.apic = match value {
                "auto" => Apics::Auto,
                "cpu" => Apics::Cpu,
                "software" => Apics::Software,
                _ => return None,
            }
        }
        "mitigations" => options.mitigations = Choice::parse(value)?,
        "smt" => {
            options.smt = match value {
                "auto" => Threads::Auto,
                "on" => Threads::On,
                "off" => Threads::Off,
                _ => return None,
            }
        }
        "test" => options.test = Some(value).filter(|name| !name.is_empty()),
        "root" => options.root = Some(value).filter(|name| !name.is_empty()),
        "restart" => {
            options.restart_always = match value {
                "always" => true,
                "limited" => false,
                _ => return None,
            }
        }
        // These are the first domain's own.
        "guests" | "parallel" | "fuzz" => {}
        _ => return None,
    }
    Some(())
}

fn level(value: &str) -> Option<LevelFilter> {
    Some(match value {
        "error" => LevelFilter::Error,
        "warn" => LevelFilter::Warn,
        "info" => LevelFilter::Info,
        "debug" => LevelFilter::Debug,
        "trace" => LevelFilter::Trace,
        _ => return None,
    })
}

fn end(value: &str) -> Option<End> {
    Some(match value {
        "poweroff" => End::PowerOff,
        "reboot" => End::Reboot,
        "halt" => End::Halt,
        _ => return None,
    })
}

static OPTIONS: Once<Options<'static>> = Once::new();

/// Reads the command line once and for all; complains in the log about words that mean nothing.
pub fn init(text: &'static str) -> &'static Options<'static> {
    OPTIONS.call_once(|| {
        parse(text, |word| {
            log::warn!("command line: `{word}` is not known and has no effect")
        })
    })
}

/// The options in force: the defaults before [`init`].
pub fn options() -> &'static Options<'static> {
    OPTIONS.get().unwrap_or(&Options::DEFAULT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::speculation::Mitigations;

    fn quiet(text: &str) -> Options<'_> {
        parse(text, |word| panic!("complained about {word}"))
    }

    #[test]
    fn an_empty_line_means_the_defaults() {
        assert_eq!(quiet(""), Options::DEFAULT);
        assert_eq!(quiet(" \n"), Options::DEFAULT);
    }

    #[test]
    fn every_key_is_read() {
        let options = quiet(
            "log=trace panic=halt end=reboot maxcpus=3 apic=software mitigations=off smt=off test=cpu root=a restart=always guests=a,b fuzz=c\n",
        );
        assert_eq!(
            options,
            Options {
                log: LevelFilter::Trace,
                panic: End::Halt,
                end: End::Reboot,
                maxcpus: 3,
                apic: Apics::Software,
                mitigations: Choice::Just(Mitigations::empty()),
                smt: Threads::Off,
                test: Some("cpu"),
                root: Some("a"),
                restart_always: true,
            }
        );
    }

    #[test]
    fn nonsense_is_reported_and_has_no_effect() {
        let mut seen = Vec::new();
        let options = parse(
            "quiet maxcpus=0 log=loud maxcpus=x colour=blue end= mitigations=none smt=0",
            |word| seen.push(word),
        );
        assert_eq!(options, Options::DEFAULT);
        assert_eq!(
            seen,
            [
                "quiet",
                "maxcpus=0",
                "log=loud",
                "maxcpus=x",
                "colour=blue",
                "end=",
                "mitigations=none",
                "smt=0"
            ]
        );
    }

    #[test]
    fn the_last_of_two_wins() {
        assert_eq!(quiet("maxcpus=2 maxcpus=5").maxcpus, 5);
    }
}

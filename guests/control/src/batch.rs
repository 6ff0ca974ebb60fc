//! Batch mode: what the kernel's command line asks of the control guest.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;

use plinth_abi::call::power;

/// Machines that run at a time, unless `parallel=` says otherwise.
const PARALLEL: usize = 2;

/// The words of the command line that concern the control guest; the kernel complains about words that nobody knows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// `guests=a,b`: run these machines without a prompt, and end. `None`: talk to the operator.
    pub guests: Option<Vec<String>>,
    /// `parallel=`: how many of them run at a time, at least 1.
    pub parallel: usize,
    /// `end=`: the action of `SYSTEM_POWER` after the last has ended.
    pub end: u64,
}

impl Options {
    /// Reads the command line. Values that mean nothing have no effect.
    pub fn parse(text: &str) -> Self {
        let mut options = Self {
            guests: None,
            parallel: PARALLEL,
            end: power::OFF,
        };
        for (key, value) in text
            .split_ascii_whitespace()
            .filter_map(|word| word.split_once('='))
        {
            match key {
                "guests" => {
                    let names = value.split(',').filter(|name| !name.is_empty());
                    options.guests = Some(names.map(str::to_owned).collect());
                }
                "parallel" => {
                    if let Some(count) = value.parse().ok().filter(|&count| count > 0) {
                        options.parallel = count;
                    }
                }
                "end" => {
                    options.end = match value {
                        "poweroff" => power::OFF,
                        "reboot" => power::REBOOT,
                        "halt" => power::HALT,
                        _ => options.end,
                    }
                }
                _ => {}
            }
        }
        options
    }
}

/// The machine's status after so many guests ended otherwise than expected. 101 and above mean something else.
pub fn status(surprises: usize) -> u64 {
    surprises.min(100) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_guests_there_is_a_prompt() {
        let options = Options::parse("log=debug maxcpus=2\n");
        assert_eq!(
            options,
            Options {
                guests: None,
                parallel: 2,
                end: power::OFF
            }
        );
    }

    #[test]
    fn every_word_is_read() {
        let options = Options::parse("guests=a,,b parallel=7 end=halt nonsense");
        assert_eq!(
            options,
            Options {
                guests: Some(vec!["a".into(), "b".into()]),
                parallel: 7,
                end: power::HALT
            }
        );
        assert_eq!(Options::parse("guests=").guests, Some(vec![]));
        assert_eq!(Options::parse("end=reboot").end, power::REBOOT);
    }

    #[test]
    fn nonsense_has_no_effect() {
        let options = Options::parse("parallel=0 parallel=x end=never guests");
        assert_eq!(options, Options::parse(""));
    }

    #[test]
    fn the_status_leaves_room_for_the_kernels() {
        assert_eq!([0, 3, 100, 101, 9999].map(status), [0, 3, 100, 100, 100]);
    }
}

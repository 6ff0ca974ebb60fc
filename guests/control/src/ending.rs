//! How domains end: in words, and as it was expected.

use core::fmt;
use core::str::FromStr;

use plinth_abi::domain::fault;
use plinth_abi::{DomainInfo, DomainState, Reason};

/// Why a domain was killed, where that was not the operator's wish.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// It used up its time.
    TimeLimit,
    /// It switched its machine off.
    PowerOff,
    /// It reset its machine.
    Reset,
    /// It wrote this to the port that ends the machine.
    Exit(u32),
}

/// A domain's end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ending {
    reason: Reason,
    info: [u64; 3],
    /// RIP of the vCPU that ended it.
    pub rip: u64,
    /// That vCPU.
    pub vcpu: u32,
    /// Why it was killed.
    cause: Option<Cause>,
}

impl Ending {
    /// The end of a domain that has ended; `cause`: of its being killed.
    pub fn of(info: &DomainInfo, cause: Option<Cause>) -> Option<Self> {
        (info.state == DomainState::ENDED).then_some(Self {
            reason: info.reason,
            info: info.info,
            rip: info.rip,
            vcpu: info.ended_vcpu,
            // It may have ended by itself just before.
            cause: cause.filter(|_| info.reason == Reason::KILLED),
        })
    }

    /// Whether somebody killed it, for its time limit too, and it did not ask for that.
    pub fn is_kill(&self) -> bool {
        self.reason == Reason::KILLED && matches!(self.cause, None | Some(Cause::TimeLimit))
    }

    /// The status of a domain that ended itself; a machine that is switched off has ended well.
    pub fn status(&self) -> Option<u64> {
        match self.cause {
            Some(Cause::PowerOff) => Some(0),
            Some(Cause::Exit(status)) => Some(status.into()),
            _ => (self.reason == Reason::STATUS).then_some(self.info[0]),
        }
    }

    fn is_out_of_time(&self) -> bool {
        self.cause == Some(Cause::TimeLimit)
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, second, third] = self.info;
        match self.reason {
            Reason::STATUS => write!(f, "status {first}"),
            Reason::KILLED => match self.cause {
                None => f.write_str("killed"),
                Some(Cause::TimeLimit) => f.write_str("time limit used up"),
                Some(Cause::PowerOff) => f.write_str("powered off"),
                Some(Cause::Reset) => f.write_str("reset"),
                Some(Cause::Exit(status)) => write!(f, "exit port, status {status}"),
            },
            Reason::NESTED_FAULT => {
                let has = |bit: u64| second & bit != 0;
                let access = match (has(fault::WRITE), has(fault::FETCH)) {
                    (true, _) => "write to",
                    (_, true) => "instruction fetch from",
                    _ => "read of",
                };
                let what = if has(fault::PRESENT) {
                    "protected"
                } else {
                    "unmapped"
                };
                let walk = if has(fault::TABLE_WALK) {
                    ", by its page walk"
                } else {
                    ""
                };
                write!(f, "{access} {what} guest-physical {first:#x}{walk}")
            }
            Reason::ENTRY_FAILED => write!(f, "{} (code {first:#x})", self.reason.text()),
            Reason::TASK_SWITCH => {
                write!(
                    f,
                    "hardware task switch to selector {first:#x}, not emulated"
                )
            }
            Reason::UNEXPECTED_EXIT => {
                write!(
                    f,
                    "unexpected exit {first:#x}, information {second:#x} {third:#x}"
                )
            }
            Reason::NESTED_MISCONFIGURATION => {
                write!(
                    f,
                    "{} at guest-physical {first:#x} (a defect of the kernel)",
                    self.reason.text()
                )
            }
            reason => f.write_str(reason.text()),
        }
    }
}

/// How a machine is expected to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expect {
    /// By itself, with this status.
    Status(u64),
    /// By a triple fault.
    TripleFault,
    /// By touching memory that is not its own.
    NestedFault,
    /// By being killed.
    Killed,
    /// By halting for ever.
    Halted,
    /// By using up its time.
    TimeLimit,
}

impl Expect {
    /// Success.
    pub const SUCCESS: Self = Self::Status(0);

    /// Whether this ending is the expected one.
    pub fn matches(self, ending: &Ending) -> bool {
        match self {
            Self::Status(status) => ending.status() == Some(status),
            Self::TripleFault => ending.reason == Reason::TRIPLE_FAULT,
            Self::NestedFault => ending.reason == Reason::NESTED_FAULT,
            Self::Killed => ending.is_kill() && !ending.is_out_of_time(),
            Self::Halted => ending.reason == Reason::HALTED,
            Self::TimeLimit => ending.is_out_of_time(),
        }
    }
}

impl FromStr for Expect {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = "expected `status N`, `triple-fault`, `nested-fault`, `killed`, `halted` or `time-limit`";
        Ok(match text {
            "triple-fault" => Self::TripleFault,
            "nested-fault" => Self::NestedFault,
            "killed" => Self::Killed,
            "halted" => Self::Halted,
            "time-limit" => Self::TimeLimit,
            _ => {
                let number = text.strip_prefix("status ").ok_or(known)?;
                Self::Status(number.parse().map_err(|_| known)?)
            }
        })
    }
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "status {status}"),
            Self::TripleFault => f.write_str("triple-fault"),
            Self::NestedFault => f.write_str("nested-fault"),
            Self::Killed => f.write_str("killed"),
            Self::Halted => f.write_str("halted"),
            Self::TimeLimit => f.write_str("time-limit"),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use zerocopy::FromZeros;

    use super::*;

    /// The information of a domain that ended so.
    pub(crate) fn ended(reason: Reason, info: [u64; 3]) -> DomainInfo {
        DomainInfo {
            state: DomainState::ENDED,
            reason,
            info,
            rip: 0x1000,
            ..DomainInfo::new_zeroed()
        }
    }

    fn ending(reason: Reason, info: [u64; 3]) -> Ending {
        Ending::of(&ended(reason, info), None).unwrap()
    }

    #[test]
    fn only_what_has_ended_has_an_ending() {
        let mut info = ended(Reason::STATUS, [0; 3]);
        info.state = DomainState::RUNNING;
        assert_eq!(Ending::of(&info, None), None);
    }

    #[test]
    fn endings_are_told_in_words() {
        use fault::*;
        for (reason, info, text) in [
            (Reason::STATUS, [7, 0, 0], "status 7"),
            (Reason::KILLED, [0; 3], "killed"),
            (Reason::TRIPLE_FAULT, [0; 3], "triple fault"),
            (
                Reason::NESTED_FAULT,
                [0x40_0000, WRITE, 0],
                "write to unmapped guest-physical 0x400000",
            ),
            (
                Reason::NESTED_FAULT,
                [0x1000, FETCH | PRESENT, 0],
                "instruction fetch from protected guest-physical 0x1000",
            ),
            (
                Reason::NESTED_FAULT,
                [0, TABLE_WALK, 0],
                "read of unmapped guest-physical 0x0, by its page walk",
            ),
            (Reason::HALTED, [0; 3], "halted for good"),
            (
                Reason::ENTRY_FAILED,
                [7, 0, 0],
                "entry refused by the CPU (code 0x7)",
            ),
            (
                Reason::TASK_SWITCH,
                [0x28, 0, 0],
                "hardware task switch to selector 0x28, not emulated",
            ),
            (
                Reason::UNEXPECTED_EXIT,
                [1, 2, 3],
                "unexpected exit 0x1, information 0x2 0x3",
            ),
            (
                Reason::NESTED_MISCONFIGURATION,
                [0x2000, 0, 0],
                "nested page tables broken at guest-physical 0x2000 (a defect of the kernel)",
            ),
            (Reason(999), [0; 3], "unknown reason"),
        ] {
            assert_eq!(ending(reason, info).to_string(), text);
        }
    }

    #[test]
    fn a_time_limit_is_a_kill_with_a_reason() {
        let killed = Ending::of(&ended(Reason::KILLED, [0; 3]), Some(Cause::TimeLimit)).unwrap();
        assert_eq!(killed.to_string(), "time limit used up");
        assert!(Expect::TimeLimit.matches(&killed));
        assert!(!Expect::Killed.matches(&killed) && killed.is_kill());
        let by_itself = Ending::of(&ended(Reason::STATUS, [0; 3]), Some(Cause::TimeLimit)).unwrap();
        assert_eq!(by_itself.to_string(), "status 0");
        assert!(!Expect::TimeLimit.matches(&by_itself) && !by_itself.is_kill());
    }

    #[test]
    fn a_guest_ends_its_machine() {
        let end = |cause| Ending::of(&ended(Reason::KILLED, [0; 3]), Some(cause)).unwrap();
        let off = end(Cause::PowerOff);
        assert_eq!(
            (off.to_string().as_str(), off.status()),
            ("powered off", Some(0))
        );
        assert!(!off.is_kill() && Expect::SUCCESS.matches(&off) && !Expect::Killed.matches(&off));
        let reset = end(Cause::Reset);
        assert_eq!(
            (reset.to_string().as_str(), reset.status()),
            ("reset", None)
        );
        assert_eq!(end(Cause::Exit(7)).status(), Some(7));
    }

    #[test]
    fn each_expectation_matches_its_ending_only() {
        let endings = [
            (Expect::Status(0), ending(Reason::STATUS, [0; 3])),
            (Expect::Status(3), ending(Reason::STATUS, [3, 0, 0])),
            (Expect::TripleFault, ending(Reason::TRIPLE_FAULT, [0; 3])),
            (Expect::NestedFault, ending(Reason::NESTED_FAULT, [0; 3])),
            (Expect::Killed, ending(Reason::KILLED, [0; 3])),
            (Expect::Halted, ending(Reason::HALTED, [0; 3])),
        ];
        for (expect, _) in endings {
            let matching: Vec<_> = endings
                .iter()
                .filter(|(_, ending)| expect.matches(ending))
                .collect();
            assert!(
                matches!(matching[..], [(only, _)] if *only == expect),
                "{expect}"
            );
            assert_eq!(expect.to_string().parse(), Ok(expect));
        }
        for bad in ["", "status", "status -1", "status x", "Halted"] {
            assert!(bad.parse::<Expect>().is_err(), "{bad}");
        }
    }
}

//! Why a domain ended.

use core::fmt;

use plinth_abi::Reason;
use plinth_abi::domain::fault;

use crate::mem::Gpa;
use crate::virt::exit::{EntryFailure, NestedFault};

/// The reason for a domain's end, as it is reported.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// It ended itself with this status; 0 means success.
    Status(u64),
    /// An exception in the delivery of a double fault, or a shutdown.
    TripleFault,
    /// It touched guest-physical memory that is not its own, or not in this way.
    NestedFault(NestedFault),
    /// Its nested page tables were found broken: a defect of the kernel.
    NestedMisconfiguration(Gpa),
    /// Somebody killed it.
    Killed,
    /// Its vCPUs halted and nothing can wake one.
    Halted,
    /// A hardware task switch, which Plinth does not emulate.
    TaskSwitch {
        /// The new task's selector.
        selector: u16,
    },
    /// The CPU refused to enter it.
    EntryFailed(EntryFailure),
    /// An instruction exited whose bytes could not be fetched or understood.
    Undecodable,
    /// An exit that no control asked for.
    UnexpectedExit {
        /// The exit reason or exit code.
        code: u64,
        /// Exit qualification, EXITINFO1.
        info1: u64,
        /// Guest-physical address, EXITINFO2.
        info2: u64,
    },
}

impl Ending {
    /// As `DOMAIN_INFO` tells it: the reason, and more about it.
    pub const fn as_told(&self) -> (Reason, [u64; 3]) {
        match *self {
            Self::Status(status) => (Reason::STATUS, [status, 0, 0]),
            Self::Killed => (Reason::KILLED, [0; 3]),
            Self::TripleFault => (Reason::TRIPLE_FAULT, [0; 3]),
            Self::NestedFault(fault) => {
                let NestedFault {
                    gpa,
                    write,
                    fetch,
                    table_walk,
                    present,
                } = fault;
                let bits = (write as u64 * fault::WRITE)
                    | (fetch as u64 * fault::FETCH)
                    | (table_walk as u64 * fault::TABLE_WALK)
                    | (present as u64 * fault::PRESENT);
                (Reason::NESTED_FAULT, [gpa.get(), bits, 0])
            }
            Self::NestedMisconfiguration(gpa) => {
                (Reason::NESTED_MISCONFIGURATION, [gpa.get(), 0, 0])
            }
            Self::Halted => (Reason::HALTED, [0; 3]),
            Self::EntryFailed(failure) => (Reason::ENTRY_FAILED, [failure.code, 0, 0]),
            Self::TaskSwitch { selector } => (Reason::TASK_SWITCH, [selector as u64, 0, 0]),
            Self::Undecodable => (Reason::UNDECODABLE, [0; 3]),
            Self::UnexpectedExit { code, info1, info2 } => {
                (Reason::UNEXPECTED_EXIT, [code, info1, info2])
            }
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "status {status}"),
            Self::TripleFault => f.write_str("triple fault"),
            Self::NestedFault(fault) => {
                let access = match (fault.write, fault.fetch) {
                    (true, _) => "write to",
                    (_, true) => "instruction fetch from",
                    _ => "read of",
                };
                let what = if fault.present {
                    "protected"
                } else {
                    "unmapped"
                };
                let walk = if fault.table_walk {
                    ", by its page walk"
                } else {
                    ""
                };
                write!(f, "{access} {what} guest-physical {}{walk}", fault.gpa)
            }
            Self::NestedMisconfiguration(gpa) => {
                write!(
                    f,
                    "nested page tables broken at guest-physical {gpa} (a defect of the kernel)"
                )
            }
            Self::Killed => f.write_str("killed"),
            Self::Halted => f.write_str("halted for good"),
            Self::TaskSwitch { selector } => write!(
                f,
                "hardware task switch to selector {selector:#x}, not emulated"
            ),
            Self::EntryFailed(failure) => write!(
                f,
                "entry refused: {} (code {:#x})",
                failure.reason, failure.code
            ),
            Self::Undecodable => {
                f.write_str("an instruction exited that could not be fetched or decoded")
            }
            Self::UnexpectedExit { code, info1, info2 } => {
                write!(
                    f,
                    "unexpected exit {code:#x}, information {info1:#x} {info2:#x}"
                )
            }
        }
    }
}

//! Why a domain ended.

use core::fmt;

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
    /// Its time budget is used up.
    OutOfTime,
    /// It halted and nothing can wake it.
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
            Self::OutOfTime => f.write_str("time budget used up"),
            Self::Halted => f.write_str("halted, and nothing can wake it"),
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

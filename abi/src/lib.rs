//! The contract between the Plinth kernel and its guests: call numbers, status codes, structures, CPUID leaves.
//!
//! Nothing here does anything: it is what both sides compile against. Structures are plain old data without padding,
//! little-endian as the machine is. `docs/abi.md` is the prose of the same contract.
//!
//! # Calling
//! `VMCALL` on Intel, `VMMCALL` on AMD, from CPL 0; elsewhere the instruction raises #UD as it does without a
//! hypervisor. Number in RAX, arguments in RDI, RSI, RDX, R10, R8, R9; the status comes back in RAX, the value in RDX.
//! No other register changes.

#![no_std]

pub mod call;
pub mod cpuid;
pub mod device;
pub mod domain;
pub mod handle;
pub mod state;
pub mod status;
pub mod system;
pub mod trace;

pub use call::Call;
pub use device::{Claim, Slot};
pub use domain::{
    DomainConfig, DomainInfo, DomainState, MemoryInfo, Reason, Schedule, StreamHeader, VcpuInfo,
    VcpuRun,
};
pub use handle::{Handle, ObjectType, rights};
pub use state::{Segment, VcpuState};
pub use status::Status;
pub use system::{StartEntry, StartInfo, SystemInfo};

/// Version of this contract: major in the upper half, minor in the lower. A guest refuses a different major; a minor
/// only ever adds calls and bits that were reserved.
pub const ABI_VERSION: u32 = 3;

//! Kernel objects: what handles name, and how they belong together.
//!
//! Lock order, from the outside in: a domain's life, a vCPU's scheduling state, a CPU's queue; a domain's handles, address
//! space, claims and console are innermost, and held for the time of one access only. An event's lock comes before a vCPU's
//! queue of events and before its scheduling state.

mod clock;
mod console;
mod context;
mod device;
mod domain;
mod ending;
mod eoi;
mod event;
pub(crate) mod handles;
mod memory;
mod pc;
mod registry;
mod space;
mod vcpu;

pub use clock::{Clock, Now};
pub use console::Console;
pub use context::{Context, Run, Stop, Waiting, keeps_apics};
pub use device::{Access, Claim, ClaimKind};
pub use domain::{Domain, Life};
pub use ending::Ending;
pub use eoi::{EndOfInterrupt, MSR_EOI};
pub use event::{Event, EventQueue, take_pending};
pub use handles::HandleTable;
pub use memory::{LARGEST, Memory, MemoryPage, Run as MemoryRun};
pub use pc::{Line, Pc};
pub use registry::{Entry, Kernel, Object};
pub use space::{Removed, Space, SpaceError};
pub use vcpu::Vcpu;

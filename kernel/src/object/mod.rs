//! Kernel objects: domains and their vCPUs.

mod console;
mod domain;
mod ending;
mod vcpu;

pub use console::Console;
pub use domain::{BuildError, Domain, DomainId};
pub use ending::Ending;
pub use vcpu::{Stop, Vcpu};

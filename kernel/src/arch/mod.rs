//! This CPU and this machine: what is reached by privileged instructions.

pub mod paging;

//! Memory: addresses, frames and their owners, the kernel's heap, nested page tables, guest memory.

pub mod addr;
pub mod domain;
pub mod frames;
pub mod guest;
pub mod heap;
pub mod mtrr;
pub mod nested;
pub mod phys;
pub mod regions;
pub mod walk;

pub use addr::{Gpa, Hpa, Hva, PAGE_SIZE};
pub use nested::{Access, MemoryType, PageSize};

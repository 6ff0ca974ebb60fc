//! Memory: addresses, frames and their owners, the kernel's heap, nested page tables, guest memory.

pub mod addr;

pub use addr::{Gpa, Hpa, Hva, PAGE_SIZE};

//! Memory: addresses, frames and their owners, the kernel's heap, budgets, nested page tables, guest memory.

pub mod addr;
pub mod budget;
pub mod device;
pub(crate) mod faults;
pub mod frames;
pub mod guest;
pub mod heap;
pub mod mtrr;
pub mod nested;
pub mod phys;
pub mod reaper;
pub mod regions;
pub mod shared;
pub mod walk;
pub mod window;

pub use addr::{Gpa, Hpa, Hva, PAGE_SIZE};
pub use budget::{Amounts, Budget, Charge};
pub use nested::{Access, MemoryType, PageSize};
pub use shared::{Ref, try_box};
pub use window::{Flag, Window};

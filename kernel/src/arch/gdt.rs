//! Each CPU's descriptor tables: flat code and data, and a TSS whose interrupt stacks serve the exceptions that may come at
//! any moment (SDM vol. 3 7.14.5).

#![allow(unsafe_code, reason = "LGDT, LTR and the segment registers")]

use core::arch::asm;
use core::cell::UnsafeCell;

use x86_64::VirtAddr;
use x86_64::structures::tss::TaskStateSegment;

/// Kernel code.
pub const KERNEL_CS: u16 = 0x08;
/// Kernel data.
pub const KERNEL_DS: u16 = 0x10;
/// The task state segment.
pub const TSS: u16 = 0x18;

/// Pages of an interrupt stack.
pub(super) const IST_PAGES: usize = 4;
/// How many interrupt stacks a CPU has: for NMI, double fault and machine check, in this order. Debug exceptions need none: the
/// kernel has no code at another privilege level and sets no breakpoints, and after a VM exit, where RSP is not yet a stack's
/// on VMX, DR7 and TF are clear.
pub(crate) const IST_STACKS: usize = 3;

const CODE64: u64 = 0x00af_9b00_0000_ffff;
const DATA: u64 = 0x00cf_9300_0000_ffff;

/// GDT and TSS of one CPU.
pub(super) struct Tables {
    gdt: UnsafeCell<[u64; 5]>,
    tss: UnsafeCell<TaskStateSegment>,
}

// SAFETY: written only by `load`, which the CPU that owns the tables calls once before anything reads them.
unsafe impl Sync for Tables {}

#[repr(C, packed)]
struct TablePointer {
    limit: u16,
    base: u64,
}

impl Tables {
    pub(super) const fn new() -> Self {
        Self {
            gdt: UnsafeCell::new([0, CODE64, DATA, 0, 0]),
            tss: UnsafeCell::new(TaskStateSegment::new()),
        }
    }

    /// Fills the TSS with the tops of the interrupt stacks and loads both into the calling CPU, which must own them.
    pub(super) fn load(&'static self, stacks: [u64; IST_STACKS]) {
        let tss = self.tss.get();
        let address = tss as u64;
        let [low, high] = tss_descriptor(address);
        // SAFETY: only the owner calls this, once, before the tables are in use; no other reference to them exists.
        let gdt = unsafe {
            // The structure is packed: its fields are written whole.
            let mut table = (*tss).interrupt_stack_table;
            for (slot, top) in table.iter_mut().zip(stacks) {
                *slot = VirtAddr::new(top);
            }
            (*tss).interrupt_stack_table = table;
            let gdt = &mut *self.gdt.get();
            gdt[3] = low;
            gdt[4] = high;
            gdt.as_ptr() as u64
        };
        let pointer = TablePointer {
            limit: 5 * 8 - 1,
            base: gdt,
        };
        // SAFETY: the table is flat, so code and stack stay where they are; FS and GS get null selectors, after which the
        // caller sets the base of GS; the tables live forever.
        unsafe {
            asm!(
                "lgdt [{pointer}]",
                "push {cs}",
                "lea {scratch}, [rip + 2f]",
                "push {scratch}",
                "retfq",
                "2:",
                "mov ss, {ds:x}",
                "mov ds, {ds:x}",
                "mov es, {ds:x}",
                "mov fs, {null:x}",
                "mov gs, {null:x}",
                "ltr {tss:x}",
                pointer = in(reg) &raw const pointer,
                cs = in(reg) u64::from(KERNEL_CS),
                ds = in(reg) u64::from(KERNEL_DS),
                null = in(reg) 0u64,
                tss = in(reg) u64::from(TSS),
                scratch = out(reg) _,
            );
        }
    }
}

/// The 16 bytes of a descriptor of an available 64-bit TSS (SDM vol. 3 8.2.3).
fn tss_descriptor(address: u64) -> [u64; 2] {
    let limit = size_of::<TaskStateSegment>() as u64 - 1;
    let low = limit | (address & 0xff_ffff) << 16 | 0x89 << 40 | (address >> 24 & 0xff) << 56;
    [low, address >> 32]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tss_descriptor_carries_its_address_in_pieces() {
        let [low, high] = tss_descriptor(0x1234_5678_9abc_def0);
        assert_eq!(high, 0x1234_5678);
        assert_eq!(low >> 16 & 0xff_ffff, 0xbc_def0);
        assert_eq!(low >> 56, 0x9a);
        assert_eq!(low >> 40 & 0xff, 0x89, "present, available 64-bit TSS");
        assert_eq!(low & 0xffff, 103);
    }
}

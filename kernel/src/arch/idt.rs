//! The interrupt descriptor table, one for all CPUs: a gate for each of the 256 vectors.

#![allow(unsafe_code, reason = "LIDT")]

use core::arch::asm;

use spin::Once;

use super::{gdt, trap};

/// A gate (SDM vol. 3 7.14.1).
#[derive(Clone, Copy)]
#[repr(C)]
struct Gate {
    low: u64,
    high: u64,
}

impl Gate {
    /// An interrupt gate to `handler`: interrupts go off. `stack` 1 to 7 is one of the TSS's interrupt stacks, 0 none.
    const fn interrupt(handler: u64, stack: u8) -> Self {
        const PRESENT_INTERRUPT_GATE: u64 = 0x8e;
        Self {
            low: handler & 0xffff
                | (gdt::KERNEL_CS as u64) << 16
                | (stack as u64) << 32
                | PRESENT_INTERRUPT_GATE << 40
                | (handler >> 16 & 0xffff) << 48,
            high: handler >> 32,
        }
    }
}

static TABLE: Once<[Gate; 256]> = Once::new();

#[repr(C, packed)]
struct TablePointer {
    limit: u16,
    base: u64,
}

/// Loads the table into the calling CPU.
pub(super) fn load() {
    let table = TABLE.call_once(|| {
        core::array::from_fn(|vector| {
            Gate::interrupt(trap::stub(vector as u8), stack_of(vector as u8))
        })
    });
    let pointer = TablePointer {
        limit: (size_of_val(table) - 1) as u16,
        base: table.as_ptr() as u64,
    };
    // SAFETY: every gate leads to a stub that handles its vector, and the table lives forever.
    unsafe {
        asm!("lidt [{}]", in(reg) &raw const pointer, options(readonly, nostack, preserves_flags))
    };
}

/// The interrupt stack of a vector, in the order that [`gdt::IST_STACKS`] tells.
const fn stack_of(vector: u8) -> u8 {
    match vector {
        2 => 1,
        8 => 2,
        18 => 3,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_carries_its_handler_in_pieces() {
        let gate = Gate::interrupt(0xffff_ffff_8012_3456, 2);
        assert_eq!(gate.high, 0xffff_ffff);
        assert_eq!(gate.low >> 48, 0x8012);
        assert_eq!(gate.low & 0xffff, 0x3456);
        assert_eq!(gate.low >> 32 & 7, 2);
        assert_eq!(gate.low >> 40 & 0xff, 0x8e);
    }
}

//! The state of the CPU in which the boot loader entered the kernel, as the entry code noted it.

use crate::Local;
use crate::{Outcome, check, check_eq};

/// What the entry code notes. It knows the offsets.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct State {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// CR0.
    pub cr0: u32,
    /// CR4.
    pub cr4: u32,
    /// EFLAGS; comparisons have changed the arithmetic flags.
    pub eflags: u32,
    /// EIP at a place in the entry code, less that place's address.
    pub displacement: u32,
    /// A bit for each of [`SEGMENTS`] by which memory is found at the same place as by DS, and can be written unless it is code.
    pub bases: u32,
    /// A bit for each of [`SEGMENTS`] by which the last byte of 4 GiB can be read.
    pub limits: u32,
    /// Selectors in the order of [`SEGMENTS`], and the task register.
    pub selectors: [u32; 7],
}

/// The segment registers in the order of [`State`]'s bits.
pub const SEGMENTS: [&str; 6] = ["CS", "DS", "ES", "SS", "FS", "GS"];

pub(crate) static STATE: Local<State> = Local::new(State {
    eax: 0,
    ebx: 0,
    cr0: 0,
    cr4: 0,
    eflags: 0,
    displacement: 0,
    bases: 0,
    limits: 0,
    selectors: [0; 7],
});

/// As the boot loader left it.
pub fn state() -> State {
    STATE.get()
}

/// Whether those of [`SEGMENTS`] that `wanted` has bits for have base 0 and limit 4 GiB. That DS has base 0 shows by the noted
/// state's being found at all: 32-bit code wrote it by DS, and 64-bit code, for which DS has no base, reads it.
pub fn segments_are_flat(wanted: u32) -> Outcome {
    let state = state();
    check_eq!(state.displacement, 0, "the base of CS");
    for (index, name) in SEGMENTS.iter().enumerate() {
        if wanted >> index & 1 != 0 {
            let selector = state.selectors[index];
            check!(
                state.bases >> index & 1 != 0,
                "{name} ({selector:#x}) does not lead where DS does"
            );
            check!(
                state.limits >> index & 1 != 0,
                "{name} ({selector:#x}) has a limit below 4 GiB"
            );
        }
    }
    Ok(())
}

/// Whether address line 20 is on: what is written to the second MiB does not appear in the first.
pub fn a20_is_on() -> Outcome {
    static CELL: Local<u32> = Local::new(0);
    const LINE: u64 = 1 << 20;
    let address = &raw const CELL as u64;
    check!(address & LINE != 0, "the kernel is not in an odd MiB");
    let below = || crate::memory::read::<u32>(address & !LINE);
    let before = below();
    for value in [0x1234_5678, !0x1234_5678] {
        CELL.set(value);
        check_eq!(below(), before, "the cell below");
        check_eq!(CELL.get(), value, "the cell");
    }
    Ok(())
}

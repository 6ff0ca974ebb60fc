//! What stands around a guest's run because CPUs execute speculatively: the L1D flush, VERW and the guest's SPEC_CTRL before
//! the entry, the return stack and the kernel's SPEC_CTRL after the exit.
//!
//! Each vendor's entry code has two ways in and out: one without any of this, and one with all of it, whose parts are
//! taken by the vCPU's [`Guards`]. Which way is chosen before the entry, where a wrong guess of the CPU enters no guest; so after
//! an exit there is no branch that could be guessed wrong and lead around the return stack's filling. Within the guarded way
//! an LFENCE comes before the first return.
//!
//! The fragments of code find the [`Guards`] at RDI + [`OFFSET`], and change RAX, RCX, RDX and flags.

use core::mem::offset_of;

use bitflags::bitflags;

use crate::arch::gdt::KERNEL_DS;
use crate::rules::speculation::{Mitigations, Plan, Rsb};

bitflags! {
    /// The parts of the guarded way that are taken.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    #[repr(transparent)]
    pub struct Actions: u32 {
        /// Before the entry: IA32_FLUSH_CMD.L1D_FLUSH.
        const L1D = 1 << 0;
        /// Before the entry: VERW.
        const VERW = 1 << 1;
        /// SPEC_CTRL is the guest's before the entry, and the kernel's after the exit.
        const SPEC_CTRL = 1 << 2;
        /// After the exit: 32 calls, as many as a return stack has entries.
        const FILL = 1 << 3;
        /// After the exit: one call.
        const ONE_CALL = 1 << 4;
    }
}

/// What is done around the runs of a vCPU.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Guards {
    actions: Actions,
    /// SPEC_CTRL of the kernel. Its upper half is reserved.
    kernel: u32,
    /// SPEC_CTRL while the guest runs.
    guest: u32,
    /// What VERW verifies: it has to be a data segment that can be written (AMD's guidance about TSA; Intel's about MDS).
    selector: u16,
    /// Bits of SPEC_CTRL that are always set for guests.
    always: u32,
}

/// Where the entry code finds the guards, from the beginning of what it works on.
pub const OFFSET: usize = 144;

// The fragments have these numbers in them.
const _: () = assert!(offset_of!(Guards, actions) == 144 - OFFSET);
const _: () = assert!(offset_of!(Guards, kernel) == 148 - OFFSET);
const _: () = assert!(offset_of!(Guards, guest) == 152 - OFFSET);
const _: () = assert!(offset_of!(Guards, selector) == 156 - OFFSET);
const _: () = assert!(Actions::L1D.bits() == 1 && Actions::VERW.bits() == 2);
const _: () = assert!(Actions::SPEC_CTRL.bits() == 4);
const _: () = assert!(Actions::FILL.bits() == 8 && Actions::ONE_CALL.bits() == 16);

impl Default for Guards {
    /// Nothing is done.
    fn default() -> Self {
        Self {
            actions: Actions::empty(),
            kernel: 0,
            guest: 0,
            selector: KERNEL_DS,
            always: 0,
        }
    }
}

impl Guards {
    /// By the plan of the CPU that runs the vCPU, with the SPEC_CTRL that the guest has set.
    pub fn new(plan: &Plan, spec_ctrl: u64) -> Self {
        let mut actions = Actions::empty();
        actions.set(Actions::L1D, plan.taken.contains(Mitigations::L1D));
        actions.set(Actions::VERW, plan.taken.contains(Mitigations::VERW));
        actions.set(Actions::FILL, plan.rsb == Rsb::Filled);
        actions.set(Actions::ONE_CALL, plan.rsb == Rsb::OneCall);
        let mut guards = Self {
            actions,
            kernel: plan.kernel_spec_ctrl as u32,
            always: plan.guest_spec_ctrl as u32,
            ..Self::default()
        };
        guards.set_spec_ctrl(spec_ctrl);
        guards
    }

    /// The guest has set its SPEC_CTRL.
    pub fn set_spec_ctrl(&mut self, value: u64) {
        self.guest = value as u32 | self.always;
        self.actions
            .set(Actions::SPEC_CTRL, self.guest != self.kernel);
    }

    /// Whether there is nothing to do.
    #[inline(always)]
    pub const fn is_empty(&self) -> bool {
        self.actions.is_empty()
    }
}

/// Before the entry, as long as registers are free: the L1D flush and the guest's SPEC_CTRL. Nothing that follows returns.
macro_rules! guard_entry {
    () => {
        "test byte ptr [rdi + 144], 1
        jz 71f
        mov ecx, 0x10b
        mov eax, 1
        xor edx, edx
        wrmsr
        71: test byte ptr [rdi + 144], 4
        jz 72f
        mov ecx, 0x48
        mov eax, [rdi + 152]
        xor edx, edx
        wrmsr
        72:"
    };
}

/// Last of all before the entry but the load of RDI: what that brings into the CPU's buffers is the guest's own.
macro_rules! guard_buffers {
    () => {
        "test byte ptr [rdi + 144], 2
        jz 73f
        verw word ptr [rdi + 156]
        73:"
    };
}

/// After the exit, on the kernel's stack: the return stack, and the kernel's SPEC_CTRL.
macro_rules! guard_exit {
    () => {
        "test byte ptr [rdi + 144], 8
        jz 76f
        mov ecx, 16
        74: call 75f
        77: pause
        lfence
        jmp 77b
        75: call 78f
        79: pause
        lfence
        jmp 79b
        78: add rsp, 16
        dec ecx
        jnz 74b
        76: test byte ptr [rdi + 144], 16
        jz 80f
        call 81f
        int3
        81: add rsp, 8
        80: test byte ptr [rdi + 144], 4
        jz 82f
        mov ecx, 0x48
        mov eax, [rdi + 148]
        xor edx, edx
        wrmsr
        82: lfence"
    };
}

pub(super) use {guard_buffers, guard_entry, guard_exit};

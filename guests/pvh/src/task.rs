//! The task register: an active 32-bit TSS with base 0 and limit 0x67.
//!
//! Neither can be read. But a CPU that changes from CPL 3 to CPL 0 finds its stack in the TSS (RSP0 at offset 4), and at CPL 3 it
//! looks there for the permission of an I/O instruction (the map's offset, at 0x66; SDM vol. 1 19.5.2): if the stack at address 4 is
//! taken, the base is 0; if a port is refused that a permission map behind 0x67 allows, the TSS ends there, and if it ended
//! before, the stack would not be found. (QEMU 7.2 refuses ports to CPL 3 whatever an entered guest's TSS says, for it knows busy ones by
//! LTR only: a limit that is too high is found on the others.)

#![allow(unsafe_code, reason = "goes to CPL 3 and comes back by an exception")]

use core::sync::atomic::{AtomicU64, Ordering};

use plinth_pc::trap::{self, Frame};
use plinth_pc::{Outcome, check_eq, memory};

/// A 64-bit TSS's stack for CPL 0.
const RSP0: u64 = 4;
/// The offset of the permission map, in the upper half of the doubleword here.
const MAP: u64 = 0x64;
/// Where the map would be that a limit of 0x67 does not reach.
const MAP_AT: u32 = 0x68;
const GENERAL_PROTECTION: u64 = 13;

static RIP: AtomicU64 = AtomicU64::new(0);
static HANDLER_STACK: AtomicU64 = AtomicU64::new(0);

core::arch::global_asm!(
    // probe(): to CPL 3, and back here with RBX as it was.
    ".globl plinth_pvh_probe, plinth_pvh_user, plinth_pvh_back",
    "plinth_pvh_probe:",
    "push rbx",
    "push rbp",
    "mov rbx, rsp",
    "mov rax, {user_data}",
    "push rax",
    // The stack of CPL 3 is never used.
    "push rbx",
    // No flag is set but the one that always is: IOPL is 0.
    "push 2",
    "mov rax, {user_code}",
    "push rax",
    "lea rax, [rip + plinth_pvh_user]",
    "push rax",
    "iretq",
    "plinth_pvh_user:",
    "in al, 0",
    // Reached only if the port was allowed: a second exception, at another address.
    "hlt",
    "plinth_pvh_back:",
    "mov rsp, rbx",
    "pop rbp",
    "pop rbx",
    "ret",
    user_data = const trap::USER_DATA,
    user_code = const trap::USER_CODE,
);

unsafe extern "C" {
    fn plinth_pvh_probe();
    static plinth_pvh_user: u8;
    static plinth_pvh_back: u8;
}

/// Where exceptions of CPL 3 are handled.
#[repr(align(16))]
struct Stack([AtomicU64; 512]);

static STACK: Stack = Stack([const { AtomicU64::new(0) }; 512]);

fn on_trap(frame: &mut Frame) -> bool {
    if frame.vector != GENERAL_PROTECTION || frame.cs != trap::USER_CODE {
        return false;
    }
    RIP.store(frame.rip, Ordering::Relaxed);
    HANDLER_STACK.store(&raw const *frame as u64, Ordering::Relaxed);
    frame.rip = &raw const plinth_pvh_back as u64;
    frame.cs = trap::CODE;
    frame.ss = trap::DATA;
    // It takes its stack from RBX, which has not changed.
    frame.rsp = frame.rsp.next_multiple_of(16);
    true
}

/// Whether the task register is as it must be.
pub fn check() -> Outcome {
    let top = STACK.0.as_ptr_range().end as u64;
    let places = [
        (RSP0, top as u32),
        (RSP0 + 4, 0),
        (MAP, MAP_AT << 16),
        (MAP_AT.into(), 0),
    ];
    let before = places.map(|(address, _)| memory::read::<u32>(address));
    trap::set_handler(Some(on_trap));
    for (address, value) in places {
        // SAFETY: the first 4 KiB are RAM in which the kernel is not; what else may be there is put back.
        unsafe { memory::write(address, value) }
    }
    // SAFETY: it comes back by `on_trap`, with all registers as a call leaves them; without a TSS at 0 it does not come back at all.
    unsafe { plinth_pvh_probe() }
    for ((address, _), value) in places.into_iter().zip(before) {
        // SAFETY: as above.
        unsafe { memory::write(address, value) }
    }
    trap::set_handler(None);
    let handler = HANDLER_STACK.load(Ordering::Relaxed);
    check_eq!(
        handler,
        top - size_of::<Frame>() as u64,
        "the stack pointer in the handler"
    );
    check_eq!(
        RIP.load(Ordering::Relaxed),
        &raw const plinth_pvh_user as u64,
        "where CPL 3 got to"
    );
    Ok(())
}

//! Hypercalls: the raw instruction and a wrapper for each call.

#![allow(unsafe_code, reason = "the hypercall instruction")]

use core::arch::asm;

use plinth_abi::{Call, Status};

use crate::cpu;
use crate::local::Local;

static VMMCALL: Local<bool> = Local::new(false);

/// Finds out which instruction is this CPU's.
pub(crate) fn init() {
    VMMCALL.set(cpu::is_amd());
}

/// Whether hypercalls are made by VMMCALL (AMD), not by VMCALL.
pub fn is_vmmcall() -> bool {
    VMMCALL.get()
}

/// Makes a hypercall with up to three arguments; the rest are 0. Returns the status and the value.
pub fn call(call: Call, arguments: [u64; 3]) -> (Status, u64) {
    let mut status = call.0;
    let mut value = arguments[2];
    // SAFETY: every call that exists reads or writes no memory of the guest but the buffers that its arguments name, and
    // the wrappers below pass initialised buffers. No register but RAX and RDX changes.
    unsafe {
        if VMMCALL.get() {
            asm!("vmmcall", inout("rax") status, inout("rdx") value, in("rdi") arguments[0], in("rsi") arguments[1],
                in("r10") 0u64, in("r8") 0u64, in("r9") 0u64, options(nostack));
        } else {
            asm!("vmcall", inout("rax") status, inout("rdx") value, in("rdi") arguments[0], in("rsi") arguments[1],
                in("r10") 0u64, in("r8") 0u64, in("r9") 0u64, options(nostack));
        }
    }
    (Status(status), value)
}

/// Version of the contract that the kernel keeps: major in the upper half, minor in the lower.
pub fn version() -> u32 {
    call(Call::VERSION, [0; 3]).1 as u32
}

/// Writes bytes to the guest's console, as many calls as it takes. Gives up at the first refusal: there is no other
/// channel to complain on.
pub fn console_write(mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let length = bytes
            .len()
            .min(plinth_abi::call::CONSOLE_WRITE_MAX as usize);
        let (status, taken) = call(
            Call::CONSOLE_WRITE,
            [bytes.as_ptr() as u64, length as u64, 0],
        );
        let taken = usize::try_from(taken).unwrap_or(0);
        if status != Status::OK && status != Status::AGAIN {
            return;
        }
        match bytes.get(taken..) {
            Some(rest) if taken != 0 => bytes = rest,
            _ => return,
        }
    }
}

/// Nanoseconds since the machine's boot.
pub fn clock() -> u64 {
    call(Call::CLOCK, [0; 3]).1
}

/// Gives the rest of the time slice away.
pub fn yield_now() {
    call(Call::YIELD, [0; 3]);
}

/// Ends the domain. Status 0 means success.
pub fn end(status: u64) -> ! {
    loop {
        call(Call::END, [status, 0, 0]);
    }
}

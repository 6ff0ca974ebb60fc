//! Hypercalls: the raw instruction and a wrapper for each call.

#![allow(unsafe_code, reason = "the hypercall instruction")]

use core::arch::asm;

use plinth_abi::{Call, Status};

use crate::Local;
use crate::cpu;

static VMMCALL: Local<bool> = Local::new(false);

/// Finds out which instruction is this CPU's.
pub(crate) fn init() {
    VMMCALL.set(cpu::is_amd());
}

/// Whether hypercalls are made by VMMCALL (AMD), not by VMCALL.
pub fn is_vmmcall() -> bool {
    VMMCALL.get()
}

/// Makes a hypercall. Arguments that are not given are 0. Returns the status and the value.
pub fn call<const N: usize>(call: Call, arguments: [u64; N]) -> (Status, u64) {
    const { assert!(N <= 6, "a call takes six arguments at most") };
    let mut all = [0; 6];
    all[..N].copy_from_slice(&arguments);
    let mut status = call.0;
    let mut value = all[2];
    // SAFETY: every call that exists reads or writes no memory of the guest but the buffers that its arguments name, and
    // the wrappers pass buffers that they own. No register but RAX and RDX changes.
    unsafe {
        if VMMCALL.get() {
            asm!("vmmcall", inout("rax") status, inout("rdx") value, in("rdi") all[0], in("rsi") all[1],
                in("r10") all[3], in("r8") all[4], in("r9") all[5], options(nostack));
        } else {
            asm!("vmcall", inout("rax") status, inout("rdx") value, in("rdi") all[0], in("rsi") all[1],
                in("r10") all[3], in("r8") all[4], in("r9") all[5], options(nostack));
        }
    }
    (Status(status), value)
}

/// As [`call`], with the value of a success or the status of a failure. `AGAIN` is a failure here.
pub fn checked<const N: usize>(number: Call, arguments: [u64; N]) -> Result<u64, Status> {
    match call(number, arguments) {
        (Status::OK, value) => Ok(value),
        (status, _) => Err(status),
    }
}

/// Version of the contract that the kernel keeps: major in the upper half, minor in the lower.
pub fn version() -> u32 {
    call(Call::VERSION, [0; 3]).1 as u32
}

/// Writes bytes to the guest's console, as many calls as it takes. Gives up at the first refusal: there is no other
/// channel to complain on.
pub fn console_write(mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let length = bytes.len().min(plinth_abi::call::CONSOLE_MAX as usize);
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

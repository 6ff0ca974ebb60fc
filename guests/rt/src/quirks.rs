//! Emulators that are known to leave out checks which every real CPU makes: tests leave out theirs there, and say so.

#![allow(
    unsafe_code,
    reason = "snippet! assembles code; what is run, the runtime runs"
)]

use crate::{Gprs, println, snippet, trap};

/// Whether the CPU is QEMU's TCG, which leaves out some checks that every real CPU makes. It is known by one of its errors: it
/// multiplies the vector in the error code of a missing gate by 16, not by 8.
pub fn is_tcg() -> bool {
    trap::set_gate(0x92, trap::default_gate(0x92).absent());
    let result = snippet!("int 0x92").run(Gprs::ZERO);
    trap::set_gate(0x92, trap::default_gate(0x92));
    result.is_err_and(|trap| trap.error == 0x92 << 4 | 2)
}

/// As [`is_tcg`], and says on the console that a check is left out for it.
pub fn left_out_for_tcg(what: &str) -> bool {
    let left_out = is_tcg();
    if left_out {
        println!("note: this CPU is QEMU's TCG, which lacks {what}");
    }
    left_out
}

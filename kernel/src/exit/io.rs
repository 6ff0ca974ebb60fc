//! IN, OUT, INS and OUTS.
//!
//! A port that nobody claims behaves like an empty place on a PC's bus: reads give all ones, writes are swallowed.

use super::{Next, claimed, instruction, string};
use crate::object::{Context, Run};
use crate::virt::exit::Io;
use crate::virt::{Vcpu as _, Vendor};

/// Serves an access to a port.
#[inline(always)]
pub(super) fn handle<V: Vendor>(vcpu: &mut Context<V>, run: &mut Run<'_, V>, access: Io) -> Next {
    if access.string {
        return string::handle(vcpu, run, access);
    }
    let length = match instruction::length(vcpu) {
        Ok(length) => length,
        Err(next) => return next,
    };
    if let Some(next) = claimed::port(vcpu, run, access, length) {
        return next;
    }
    finish(vcpu, access, length, u64::MAX)
}

/// Ends an access to a port that gave `value`.
pub(super) fn finish<V: Vendor>(vcpu: &mut Context<V>, access: Io, length: u8, value: u64) -> Next {
    if access.input {
        let gprs = vcpu.hw.gprs_mut();
        gprs.rax = merge(gprs.rax, value as u32, access.size);
    }
    vcpu.hw.skip(length);
    Next::Resume
}

/// RAX after IN: 8- and 16-bit operands leave the upper bits, 32-bit ones clear them (SDM vol. 1 3.4.1.1).
const fn merge(rax: u64, value: u32, size: u8) -> u64 {
    match size {
        1 => rax & !0xff | (value & 0xff) as u64,
        2 => rax & !0xffff | (value & 0xffff) as u64,
        _ => value as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrow_reads_leave_the_upper_bits() {
        let rax = 0x1122_3344_5566_7788;
        assert_eq!(merge(rax, 0xff, 1), 0x1122_3344_5566_77ff);
        assert_eq!(merge(rax, 0xabcd, 2), 0x1122_3344_5566_abcd);
        assert_eq!(merge(rax, 0x89ab_cdef, 4), 0x89ab_cdef);
    }
}

//! IN, OUT, INS and OUTS.
//!
//! A port that nobody claims behaves like an empty place on a PC's bus: reads give all ones, writes are swallowed.

use super::{Next, instruction, string};
use crate::object::Vcpu;
use crate::virt::exit::Io;
use crate::virt::{Vcpu as _, Vendor};

/// Serves an access to a port.
pub(super) fn handle<V: Vendor>(vcpu: &mut Vcpu<V>, access: Io) -> Next {
    if access.string {
        return string::handle(vcpu, access);
    }
    let length = match instruction::length(vcpu) {
        Ok(length) => length,
        Err(next) => return next,
    };
    if access.input {
        let value = read_unclaimed(access.size);
        let gprs = vcpu.hw.gprs_mut();
        gprs.rax = merge(gprs.rax, value, access.size);
    }
    vcpu.hw.skip(length);
    Next::Resume
}

/// What a read of `size` bytes (1, 2 or 4) gives at a port that nobody claims.
pub(super) const fn read_unclaimed(size: u8) -> u32 {
    match size {
        1 => 0xff,
        2 => 0xffff,
        _ => u32::MAX,
    }
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

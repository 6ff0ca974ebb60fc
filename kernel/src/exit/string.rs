//! INS and OUTS, with and without REP.
//!
//! The registers advance with every element, as on a CPU: an element that faults, or the end of what one exit may do,
//! leaves the guest at the same instruction with the rest to do.

use plinth_abi::Segment;

use super::access::{self, CodeSize, Fault};
use super::{Next, claimed, instruction};
use crate::object::{Context, Run};
use crate::virt::exit::Io;
use crate::virt::{SegmentName, Vcpu as _, Vendor};

/// Elements that one exit serves; then the guest is entered again, and exits at the same instruction for the rest.
const ELEMENTS: u64 = 512;
/// RFLAGS.TF: a trap after each element.
const TRAP: u64 = 1 << 8;
/// RFLAGS.DF: downwards.
const DIRECTION: u64 = 1 << 10;

/// The registers that string instructions use, by address size.
#[derive(Clone, Copy, Debug)]
struct Width {
    mask: u64,
}

impl Width {
    /// For addresses of 2, 4 or 8 bytes.
    const fn new(address_size: u8) -> Self {
        Self {
            mask: match address_size {
                2 => 0xffff,
                4 => 0xffff_ffff,
                _ => u64::MAX,
            },
        }
    }

    /// The register after it was written at this width: 32-bit writes clear the upper half (SDM vol. 1 3.4.1.1).
    const fn write(self, whole: u64, value: u64) -> u64 {
        match self.mask {
            0xffff => whole & !0xffff | value & 0xffff,
            mask => value & mask,
        }
    }
}

/// An INS or OUTS that exited, as far as it does not change from element to element.
#[derive(Clone, Copy, Debug)]
pub struct StringAccess {
    /// The access to the port.
    pub(super) io: Io,
    /// Bytes of the instruction.
    length: u8,
    width: Width,
    name: SegmentName,
    segment: Segment,
    code: CodeSize,
    /// What the index register advances by for each element.
    step: u64,
}

impl StringAccess {
    fn of<V: Vendor>(vcpu: &mut Context<V>, io: Io) -> Result<Self, Next> {
        let insn = instruction::decoded(vcpu)?;
        let name = match (io.input, insn.prefixes.segment) {
            (true, _) => SegmentName::Es,
            (false, None) => SegmentName::Ds,
            (false, Some(segment)) => access::segment_name(segment),
        };
        let size = u64::from(io.size);
        Ok(Self {
            io,
            length: insn.length,
            width: Width::new(insn.address_size),
            name,
            segment: vcpu.hw.segment(name),
            code: access::code_size(vcpu, &vcpu.hw.segment(SegmentName::Cs)),
            step: if vcpu.hw.rflags() & DIRECTION != 0 {
                size.wrapping_neg()
            } else {
                size
            },
        })
    }

    /// Elements that are left.
    pub(super) fn left<V: Vendor>(&self, vcpu: &Context<V>) -> u64 {
        if self.io.repeat {
            vcpu.hw.gprs().rcx & self.width.mask
        } else {
            1
        }
    }

    /// Elements that one exit may serve.
    pub(super) fn most<V: Vendor>(vcpu: &Context<V>) -> u64 {
        if vcpu.hw.rflags() & TRAP != 0 {
            1
        } else {
            ELEMENTS
        }
    }

    /// The linear address of the element that is `index` elements behind the next one.
    ///
    /// # Errors
    /// The exception that the guest takes instead.
    pub(super) fn linear<V: Vendor>(&self, vcpu: &Context<V>, index: u64) -> Result<u64, Fault> {
        let register = if self.io.input {
            vcpu.hw.gprs().rdi
        } else {
            vcpu.hw.gprs().rsi
        };
        let offset = register.wrapping_add(self.step.wrapping_mul(index)) & self.width.mask;
        let size = u64::from(self.io.size);
        let Self {
            segment,
            name,
            code,
            ..
        } = self;
        linear_address(segment, *name, *code, offset, size, self.io.input)
            .ok_or_else(|| Fault::of_segment(*name))
    }

    /// The registers advance by one element.
    pub(super) fn advance<V: Vendor>(&self, vcpu: &mut Context<V>) {
        let left = self.left(vcpu).saturating_sub(1);
        let gprs = vcpu.hw.gprs_mut();
        let register = if self.io.input {
            &mut gprs.rdi
        } else {
            &mut gprs.rsi
        };
        let offset = *register & self.width.mask;
        *register = self.width.write(*register, offset.wrapping_add(self.step));
        if self.io.repeat {
            gprs.rcx = self.width.write(gprs.rcx, left);
        }
    }

    /// Moves past the instruction when no element is left.
    pub(super) fn finish<V: Vendor>(&self, vcpu: &mut Context<V>, left: u64) -> Next {
        // A single-step trap finds RIP still at the instruction (SDM vol. 3 18.3.1.4). And the shadow of an STI or MOV SS in
        // front ends with the first element: kept, it could hold off the host's interrupts too, for as many exits as RCX asks
        // for.
        vcpu.hw.skip(if left == 0 { self.length } else { 0 });
        Next::Resume
    }
}

/// Serves INS or OUTS.
pub(super) fn handle<V: Vendor>(vcpu: &mut Context<V>, run: &mut Run<'_, V>, io: Io) -> Next {
    let access = match StringAccess::of(vcpu, io) {
        Ok(access) => access,
        Err(next) => return next,
    };
    if let Some(next) = claimed::string(vcpu, run, access) {
        return next;
    }
    let ones = [0xff; 4];
    let element = ones.get(..usize::from(io.size)).unwrap_or(&ones);
    let mut left = access.left(vcpu);
    for _ in 0..StringAccess::most(vcpu).min(left) {
        let result = access.linear(vcpu, 0).and_then(|linear| {
            if io.input {
                access::write(vcpu, linear, element)
            } else {
                // The port swallows it, but reading it may fault.
                access::read(vcpu, linear, &mut [0; 4][..element.len()])
            }
        });
        if let Err(fault) = result {
            return fault.next(vcpu);
        }
        access.advance(vcpu);
        left -= 1;
    }
    access.finish(vcpu, left)
}

/// The linear address of `size` bytes at `offset`, if the segment allows the access (SDM vol. 3 6.3, 6.8). In 64-bit mode
/// there are no limits; whether the address is canonical is seen by the page walk.
pub(super) fn linear_address(
    segment: &Segment,
    name: SegmentName,
    code: CodeSize,
    offset: u64,
    size: u64,
    write: bool,
) -> Option<u64> {
    if code == CodeSize::Bits64 {
        let base = if matches!(name, SegmentName::Fs | SegmentName::Gs) {
            segment.base
        } else {
            0
        };
        return Some(base.wrapping_add(offset));
    }
    let is_code = segment.attributes & 8 != 0;
    let bit1 = segment.attributes & 2 != 0; // writable data, or readable code
    let allowed = if write {
        !is_code && bit1
    } else {
        !is_code || bit1
    };
    if !segment.is_present() || !allowed {
        return None;
    }
    let last = offset.checked_add(size - 1)?;
    let limit = u64::from(segment.limit);
    let expands_down = !is_code && segment.attributes & 4 != 0;
    let inside = if expands_down {
        let top = if segment.is_default_32() {
            0xffff_ffff
        } else {
            0xffff
        };
        offset > limit && last <= top
    } else {
        last <= limit
    };
    inside.then(|| segment.base.wrapping_add(offset) & 0xffff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAT: Segment = Segment {
        selector: 8,
        attributes: Segment::DATA,
        limit: 0xffff,
        base: 0x1000,
    };

    fn address(segment: &Segment, offset: u64, write: bool) -> Option<u64> {
        linear_address(segment, SegmentName::Es, CodeSize::Bits32, offset, 4, write)
    }

    #[test]
    fn an_element_must_end_within_the_limit() {
        assert_eq!(address(&FLAT, 0xfffc, true), Some(0x1_0ffc));
        assert_eq!(address(&FLAT, 0xfffd, true), None);
    }

    #[test]
    fn an_expand_down_segment_begins_above_its_limit() {
        let stack = Segment {
            attributes: Segment::DATA | 4,
            ..FLAT
        };
        assert_eq!(address(&stack, 0xffff, true), None);
        assert_eq!(address(&stack, 0x1_0000, true), Some(0x1_1000));
    }

    #[test]
    fn rights_are_those_of_the_descriptor() {
        let read_only = Segment {
            attributes: Segment::DATA & !2,
            ..FLAT
        };
        assert_eq!(address(&read_only, 0, true), None);
        assert_eq!(address(&read_only, 0, false), Some(0x1000));
        let code = Segment {
            attributes: Segment::CODE32,
            ..FLAT
        };
        assert_eq!(address(&code, 0, true), None);
        assert_eq!(address(&code, 0, false), Some(0x1000));
        let absent = Segment {
            attributes: 0,
            ..FLAT
        };
        assert_eq!(address(&absent, 0, false), None);
    }

    #[test]
    fn long_mode_uses_the_bases_of_fs_and_gs_only() {
        let at = |name| linear_address(&FLAT, name, CodeSize::Bits64, 0x10_0000, 4, true);
        assert_eq!(at(SegmentName::Es), Some(0x10_0000));
        assert_eq!(at(SegmentName::Fs), Some(0x10_1000));
    }

    #[test]
    fn registers_are_written_at_the_address_size() {
        let short = Width::new(2);
        assert_eq!(
            short.write(0x1234_5678_9abc_def0, 0x1_0001),
            0x1234_5678_9abc_0001
        );
        let half = Width::new(4);
        assert_eq!(half.write(0x1234_5678_9abc_def0, 0x1_0000_0001), 1);
    }
}

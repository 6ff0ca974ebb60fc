//! Operands: registers, memory and immediates; and the address of a memory operand.

/// A segment register that can address memory, in the order of the encoding (SDM vol. 2 table 2-1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the registers' names are their documentation")]
pub enum Segment {
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
}

/// A general register or a part of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Register {
    /// Encoding of the whole register, 0 (RAX) to 15.
    pub number: u8,
    /// Size in bytes: 1, 2, 4 or 8.
    pub size: u8,
    /// Bits 15:8 of the register: AH, CH, DH or BH. `size` is 1 then.
    pub high: bool,
}

impl Register {
    /// Register `number` in an operand of `size` bytes. Byte registers 4 to 7 are AH, CH, DH and BH unless there is a REX
    /// prefix (SDM vol. 2 table 3-1).
    pub(super) const fn new(number: u8, size: u8, rex: bool) -> Self {
        let high = size == 1 && !rex && number >= 4;
        Self {
            number: if high { number & 3 } else { number },
            size,
            high,
        }
    }

    /// The operand's value, zero-extended, where the whole register holds `whole`.
    pub const fn read(self, whole: u64) -> u64 {
        let value = if self.high { whole >> 8 } else { whole };
        value & mask(self.size)
    }

    /// The whole register after `value` was written to the operand, where it held `whole` before: 32-bit writes clear the
    /// upper half, shorter ones leave the rest as it is (SDM vol. 1 3.4.1.1).
    pub const fn write(self, whole: u64, value: u64) -> u64 {
        match self.size {
            8 => value,
            4 => value & 0xffff_ffff,
            2 => (whole & !0xffff) | (value & 0xffff),
            _ if self.high => (whole & !0xff00) | ((value & 0xff) << 8),
            _ => (whole & !0xff) | (value & 0xff),
        }
    }
}

/// The bits of an operand of `size` bytes; all 64 for 8 and above.
pub const fn mask(size: u8) -> u64 {
    match size {
        1 => 0xff,
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    }
}

/// A memory operand: segment, and base + index * scale + displacement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Memory {
    /// The segment, overrides applied.
    pub segment: Segment,
    /// Encoding of the base register.
    pub base: Option<u8>,
    /// Encoding of the index register.
    pub index: Option<u8>,
    /// 1, 2, 4 or 8.
    pub scale: u8,
    /// Sign-extended displacement, or the offset of a `moffs` operand.
    pub displacement: u64,
    /// Relative to the next instruction.
    pub rip_relative: bool,
    /// 2, 4 or 8 bytes: the effective address wraps there.
    pub address_size: u8,
    /// 64-bit mode: only FS and GS have a base, and linear addresses have 64 bits.
    pub long: bool,
}

impl Memory {
    /// The effective address (offset in the segment), wrapped to the address size. `regs` gives whole general registers by
    /// encoding; `next_rip` is the address of the next instruction.
    pub fn effective_address(&self, regs: &dyn Fn(u8) -> u64, next_rip: u64) -> u64 {
        let base = self.base.map_or(0, regs);
        let index = self
            .index
            .map_or(0, |index| regs(index).wrapping_mul(u64::from(self.scale)));
        let rip = if self.rip_relative { next_rip } else { 0 };
        base.wrapping_add(index)
            .wrapping_add(self.displacement)
            .wrapping_add(rip)
            & mask(self.address_size)
    }

    /// The linear address of the operand's first byte: `segment_base` plus the effective address, wrapped to 32 bits outside
    /// 64-bit mode (SDM vol. 3 3.3, 3.4.4). Limits, rights and canonicality are not checked: the CPU has done that.
    pub fn linear_address(
        &self,
        regs: &dyn Fn(u8) -> u64,
        segment_base: &dyn Fn(Segment) -> u64,
        next_rip: u64,
    ) -> u64 {
        let offset = self.effective_address(regs, next_rip);
        if !self.long {
            segment_base(self.segment).wrapping_add(offset) & 0xffff_ffff
        } else if matches!(self.segment, Segment::Fs | Segment::Gs) {
            segment_base(self.segment).wrapping_add(offset)
        } else {
            offset
        }
    }
}

/// What an instruction works on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operand {
    /// A general register.
    Register(Register),
    /// Memory.
    Memory(Memory),
    /// An immediate, sign- or zero-extended as the instruction does, cut to the operand size.
    Immediate(u64),
}

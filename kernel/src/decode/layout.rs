//! Where an instruction's parts are: prefixes, opcode, ModRM, SIB, displacement, immediates.
//!
//! One table entry an opcode ([`Shape`]) says whether there is a ModRM byte and which immediates follow; that alone gives
//! the length.

use super::{DecodeError, MAX_LENGTH, Memory, Mode, Prefixes, Repeat, Segment};

/// Opcode maps (SDM vol. 2 appendix A). The extended encodings are told apart by `Encoding`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Map {
    /// One byte.
    Primary,
    /// 0F.
    Two,
    /// 0F 38.
    Three38,
    /// 0F 3A.
    Three3A,
    /// VEX, EVEX, XOP and 3DNow!: nothing in there is the kernel's affair.
    Extended,
}

/// Immediates that follow an opcode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Immediate {
    None,
    /// One byte.
    Byte,
    /// Two bytes.
    Word,
    /// Four bytes.
    Dword,
    /// Two or four bytes, by operand size; four with REX.W.
    Z,
    /// Two, four or eight bytes, by operand size.
    V,
    /// As `Z`, but four bytes in 64-bit mode.
    Branch,
    /// A word and a byte: ENTER; or two bytes: EXTRQ, INSERTQ.
    Bytes(u8),
    /// An offset of the address size.
    Offset,
    /// A far pointer: offset of the operand size, and a selector.
    Far,
    /// TEST in group 3: an immediate only with ModRM.reg 0 and 1. `true`: a byte, else as `Z`.
    Group3(bool),
}

/// What follows an opcode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Shape {
    /// ModRM or not, and the immediates.
    Is(bool, Immediate),
    /// ModRM whose mod field is ignored: always a register (MOV to and from CR and DR).
    RegisterOnly,
    /// Undefined on every CPU that has the mode.
    Invalid,
}

use Immediate as I;
use Shape::{Invalid, Is, RegisterOnly};

/// The one-byte map (SDM vol. 2 table A-2) without prefixes and escapes.
const fn primary(opcode: u8, mode: Mode) -> Shape {
    let long = matches!(mode, Mode::Long64);
    match opcode {
        0x00..=0x3f => match opcode & 7 {
            0..=3 => Is(true, I::None),
            4 => Is(false, I::Byte),
            5 => Is(false, I::Z),
            // PUSH and POP of segments, and the decimal adjustments.
            _ if long => Invalid,
            _ => Is(false, I::None),
        },
        0x60 | 0x61 | 0x82 | 0x9a | 0xce | 0xd4 | 0xd5 | 0xd6 | 0xea if long => Invalid,
        0x62 | 0x63 => Is(true, I::None),
        0x68 => Is(false, I::Z),
        0x69 => Is(true, I::Z),
        0x6a => Is(false, I::Byte),
        0x6b => Is(true, I::Byte),
        0x70..=0x7f => Is(false, I::Byte),
        0x80 | 0x82 | 0x83 => Is(true, I::Byte),
        0x81 => Is(true, I::Z),
        0x84..=0x8f => Is(true, I::None),
        0x9a | 0xea => Is(false, I::Far),
        0xa0..=0xa3 => Is(false, I::Offset),
        0xa8 => Is(false, I::Byte),
        0xa9 => Is(false, I::Z),
        0xb0..=0xb7 => Is(false, I::Byte),
        0xb8..=0xbf => Is(false, I::V),
        0xc0 | 0xc1 | 0xc6 => Is(true, I::Byte),
        0xc2 | 0xca => Is(false, I::Word),
        0xc4 | 0xc5 => Is(true, I::None),
        0xc7 => Is(true, I::Z),
        0xc8 => Is(false, I::Bytes(3)),
        0xcd | 0xd4 | 0xd5 => Is(false, I::Byte),
        0xd0..=0xd3 | 0xd8..=0xdf => Is(true, I::None),
        0xe0..=0xe7 | 0xeb => Is(false, I::Byte),
        0xe8 | 0xe9 => Is(false, I::Branch),
        0xf6 => Is(true, I::Group3(true)),
        0xf7 => Is(true, I::Group3(false)),
        0xfe | 0xff => Is(true, I::None),
        _ => Is(false, I::None),
    }
}

/// The 0F map (SDM vol. 2 table A-3, APM3 tables ).
const fn two_byte(opcode: u8, prefixes: &Prefixes) -> Shape {
    match opcode {
        0x04 | 0x0a | 0x0c | 0x24..=0x27 | 0x36 | 0x39 | 0x3b..=0x3f => Invalid,
        0x05..=0x09
        | 0x0b
        | 0x0e
        | 0x30..=0x37
        | 0x77
        | 0xa0..=0xa2
        | 0xa8..=0xaa
        | 0xc8..=0xcf => Is(false, I::None),
        0x20..=0x23 => RegisterOnly,
        0x70..=0x73 | 0xa4 | 0xac | 0xba | 0xc2 | 0xc4..=0xc6 => Is(true, I::Byte),
        // SSE4a: EXTRQ (66) and INSERTQ (F2) with two bytes; VMREAD without a prefix.
        0x78 => match (prefixes.repeat, prefixes.operand_size) {
            (Some(Repeat::NotEqual), _) | (None, true) => Is(true, I::Bytes(2)),
            _ => Is(true, I::None),
        },
        0x80..=0x8f => Is(false, I::Branch),
        _ => Is(true, I::None),
    }
}

/// VEX and EVEX maps (SDM vol. 2 2.3.5, 2.7): ModRM always, but for VZEROUPPER; immediates as in the legacy maps.
const fn vector(map: u8, opcode: u8, evex: bool) -> Shape {
    match (map, opcode) {
        (1, 0x77) if !evex => Is(false, I::None),
        (1, 0x70..=0x73 | 0xc2 | 0xc4..=0xc6) => Is(true, I::Byte),
        (1 | 2, _) => Is(true, I::None),
        (3, _) => Is(true, I::Byte),
        // AVX512-FP16.
        (5 | 6, _) if evex => Is(true, I::None),
        // URDMSR and UWRMSR with an immediate.
        (7, 0xf8) if !evex => Is(true, I::Dword),
        _ => Invalid,
    }
}

/// XOP maps (APM3 1.2.7): 8 with a byte, 9 with none, 10 with four bytes.
const fn xop(map: u8) -> Shape {
    match map {
        8 => Is(true, I::Byte),
        9 => Is(true, I::None),
        10 => Is(true, I::Dword),
        _ => Invalid,
    }
}

/// ModRM taken apart, REX not yet applied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ModRm {
    /// Addressing form, 3: register.
    pub(super) mode: u8,
    /// Register or opcode extension.
    pub(super) reg: u8,
    /// Register or base.
    pub(super) rm: u8,
}

impl ModRm {
    const fn new(byte: u8) -> Self {
        Self {
            mode: byte >> 6,
            reg: (byte >> 3) & 7,
            rm: byte & 7,
        }
    }

    /// The byte again.
    pub(super) const fn byte(self) -> u8 {
        (self.mode << 6) | (self.reg << 3) | self.rm
    }
}

/// An instruction with its parts found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub(super) mode: Mode,
    pub(super) prefixes: Prefixes,
    pub(super) map: Map,
    pub(super) opcode: u8,
    pub(super) modrm: Option<ModRm>,
    /// The memory operand of ModRM, or of a `moffs`.
    pub(super) memory: Option<Memory>,
    /// The immediate bytes, little-endian, zero-extended; a `moffs` is not one.
    pub(super) immediate: u64,
    /// How many bytes they are, 0 to 8.
    pub(super) immediate_size: u8,
    /// All bytes.
    pub(super) length: u8,
}

/// Reads byte after byte, never beyond the end or the fifteenth.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn peek(&self) -> Result<u8, DecodeError> {
        if self.at >= MAX_LENGTH {
            return Err(DecodeError::TooLong);
        }
        self.bytes
            .get(self.at)
            .copied()
            .ok_or(DecodeError::Truncated)
    }

    fn next(&mut self) -> Result<u8, DecodeError> {
        let byte = self.peek()?;
        self.at += 1;
        Ok(byte)
    }

    /// `size` bytes, at most 8, little-endian.
    fn number(&mut self, size: u8) -> Result<u64, DecodeError> {
        // What cannot fit is too long, even where the bytes end before: no further byte makes it an instruction.
        if self.at + usize::from(size) > MAX_LENGTH {
            return Err(DecodeError::TooLong);
        }
        let mut value = 0;
        for shift in 0..u32::from(size) {
            value |= u64::from(self.next()?) << (shift * 8);
        }
        Ok(value)
    }
}

/// Sign-extends the low `size` bytes of `value` to 64 bits.
pub const fn sign_extend(value: u64, size: u8) -> u64 {
    match size {
        1 => value as u8 as i8 as i64 as u64,
        2 => value as u16 as i16 as i64 as u64,
        4 => value as u32 as i32 as i64 as u64,
        _ => value,
    }
}

impl Layout {
    /// Finds the parts of the instruction at the start of `bytes`.
    pub(super) fn parse(bytes: &[u8], mode: Mode) -> Result<Self, DecodeError> {
        let mut cursor = Cursor { bytes, at: 0 };
        let mut prefixes = Prefixes::default();
        let first = loop {
            let byte = cursor.next()?;
            if !prefixes.take(byte, mode) {
                break byte;
            }
        };
        let (map, opcode, shape) = Self::opcode(&mut cursor, &prefixes, first, mode)?;
        let mut layout = Self {
            mode,
            prefixes,
            map,
            opcode,
            modrm: None,
            memory: None,
            immediate: 0,
            immediate_size: 0,
            length: 0,
        };
        let immediate = match shape {
            Invalid => return Err(DecodeError::Invalid),
            RegisterOnly => {
                let modrm = ModRm::new(cursor.next()?);
                layout.modrm = Some(ModRm { mode: 3, ..modrm });
                I::None
            }
            Is(true, immediate) => {
                let modrm = ModRm::new(cursor.next()?);
                layout.modrm = Some(modrm);
                if modrm.mode != 3 {
                    layout.memory = Some(layout.read_memory(&mut cursor, modrm)?);
                }
                immediate
            }
            Is(false, immediate) => immediate,
        };
        layout.read_immediate(&mut cursor, immediate)?;
        // 3DNow!: the opcode stands behind the operands (APM3 1.2.5).
        if map == Map::Two && opcode == 0x0f {
            layout.map = Map::Extended;
            layout.opcode = cursor.next()?;
        }
        layout.length = cursor.at as u8; // at most 15
        Ok(layout)
    }

    /// Reads the opcode behind its first byte, through escapes and the VEX, EVEX and XOP prefixes.
    fn opcode(
        cursor: &mut Cursor<'_>,
        prefixes: &Prefixes,
        first: u8,
        mode: Mode,
    ) -> Result<(Map, u8, Shape), DecodeError> {
        match first {
            0x0f => match cursor.next()? {
                0x38 => Ok((Map::Three38, cursor.next()?, Is(true, I::None))),
                0x3a => Ok((Map::Three3A, cursor.next()?, Is(true, I::Byte))),
                opcode => Ok((Map::Two, opcode, two_byte(opcode, prefixes))),
            },
            0xc4 | 0xc5 | 0x62 | 0x8f => {
                let next = cursor.peek()?;
                // Outside 64-bit mode LES, LDS and BOUND share the byte; they have no register form (SDM vol. 2 2.3.5, 2.7.1).
                // POP has ModRM.reg 0, XOP a map of 8 or more in the same bits (APM3 1.2.7).
                let extended = match first {
                    0x8f => next & 0x1f >= 8,
                    _ => mode == Mode::Long64 || next >= 0xc0,
                };
                if !extended {
                    return Ok((Map::Primary, first, primary(first, mode)));
                }
                // SDM vol. 2 2.3.2, 2.3.3, 2.7.1: #UD.
                if prefixes.lock
                    || prefixes.operand_size
                    || prefixes.repeat.is_some()
                    || prefixes.rex.is_some()
                {
                    return Err(DecodeError::Invalid);
                }
                Self::extended(cursor, first)
            }
            _ => Ok((Map::Primary, first, primary(first, mode))),
        }
    }

    /// The opcode behind a VEX, EVEX or XOP prefix whose first byte is `first`.
    fn extended(cursor: &mut Cursor<'_>, first: u8) -> Result<(Map, u8, Shape), DecodeError> {
        let second = cursor.next()?;
        let map = match first {
            0xc5 => 1,
            0xc4 | 0x8f => {
                cursor.next()?;
                second & 0x1f
            }
            _ => {
                let third = cursor.next()?;
                // P0[3] is 0 and P1[2] is 1 (SDM vol. 2 table 2-30).
                if second & 8 != 0 || third & 4 == 0 {
                    return Err(DecodeError::Invalid);
                }
                cursor.next()?;
                second & 7
            }
        };
        let opcode = cursor.next()?;
        let shape = match first {
            0x8f => xop(map),
            _ => vector(map, opcode, first == 0x62),
        };
        Ok((Map::Extended, opcode, shape))
    }

    /// Reads SIB and displacement, and makes the memory operand (SDM vol. 2 tables 2-1 to 2-3).
    fn read_memory(&self, cursor: &mut Cursor<'_>, modrm: ModRm) -> Result<Memory, DecodeError> {
        let address_size = self.prefixes.address_bytes(self.mode);
        let mut memory = Memory {
            segment: Segment::Ds,
            base: None,
            index: None,
            scale: 1,
            displacement: 0,
            rip_relative: false,
            address_size,
            long: self.mode == Mode::Long64,
        };
        let mut displacement = match modrm.mode {
            1 => 1,
            2 if address_size == 2 => 2,
            2 => 4,
            _ => 0,
        };
        const BX: u8 = 3;
        const SP: u8 = 4;
        const BP: u8 = 5;
        const SI: u8 = 6;
        const DI: u8 = 7;
        if address_size == 2 {
            (memory.base, memory.index) = match modrm.rm {
                0 => (Some(BX), Some(SI)),
                1 => (Some(BX), Some(DI)),
                2 => (Some(BP), Some(SI)),
                3 => (Some(BP), Some(DI)),
                4 => (Some(SI), None),
                5 => (Some(DI), None),
                6 if modrm.mode == 0 => {
                    displacement = 2;
                    (None, None)
                }
                6 => (Some(BP), None),
                _ => (Some(BX), None),
            };
        } else if modrm.rm == SP {
            let sib = ModRm::new(cursor.next()?);
            memory.scale = 1 << sib.mode;
            let index = sib.reg | self.prefixes.x();
            memory.index = (index != SP).then_some(index);
            if sib.rm == BP && modrm.mode == 0 {
                displacement = 4;
            } else {
                memory.base = Some(sib.rm | self.prefixes.b());
            }
        } else if modrm.rm == BP && modrm.mode == 0 {
            displacement = 4;
            memory.rip_relative = self.mode == Mode::Long64;
        } else {
            memory.base = Some(modrm.rm | self.prefixes.b());
        }
        memory.displacement = sign_extend(cursor.number(displacement)?, displacement);
        // Addresses based on the stack's registers are in SS, all others in DS (SDM vol. 1 table 3-5).
        if matches!(memory.base, Some(SP | BP)) {
            memory.segment = Segment::Ss;
        }
        memory.segment = self.prefixes.segment.unwrap_or(memory.segment);
        Ok(memory)
    }

    /// Reads the immediate, or the offset of a `moffs` operand.
    fn read_immediate(
        &mut self,
        cursor: &mut Cursor<'_>,
        immediate: Immediate,
    ) -> Result<(), DecodeError> {
        let operand = self.prefixes.operand_bytes(self.mode);
        let size = match immediate {
            I::None => 0,
            I::Byte => 1,
            I::Word => 2,
            I::Dword => 4,
            I::Z => operand.min(4),
            I::V => operand,
            I::Branch if self.mode == Mode::Long64 => 4,
            I::Branch => operand,
            I::Bytes(count) => count,
            I::Far => operand + 2,
            I::Group3(byte) => match (self.modrm, byte) {
                (Some(ModRm { reg: 2.., .. }), _) => 0,
                (_, true) => 1,
                (_, false) => operand.min(4),
            },
            I::Offset => {
                let address_size = self.prefixes.address_bytes(self.mode);
                self.memory = Some(Memory {
                    segment: self.prefixes.segment.unwrap_or(Segment::Ds),
                    base: None,
                    index: None,
                    scale: 1,
                    displacement: cursor.number(address_size)?,
                    rip_relative: false,
                    address_size,
                    long: self.mode == Mode::Long64,
                });
                return Ok(());
            }
        };
        self.immediate = cursor.number(size)?;
        self.immediate_size = size;
        Ok(())
    }
}

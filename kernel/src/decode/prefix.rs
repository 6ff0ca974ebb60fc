//! Instruction prefixes (SDM vol. 2 2.1.1, 2.2.1; APM3 1.2).

use super::{Mode, Segment};

/// Prefix F2 or F3. On string instructions it repeats; on others it may be part of the opcode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Repeat {
    /// F2: REPNE.
    NotEqual,
    /// F3: REP, REPE.
    Equal,
}

/// The legacy prefixes of an instruction and its REX prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Prefixes {
    /// 66.
    pub operand_size: bool,
    /// 67.
    pub address_size: bool,
    /// F0.
    pub lock: bool,
    /// The last one of F2 and F3.
    pub repeat: Option<Repeat>,
    /// The last segment override that has an effect: in 64-bit mode only FS and GS have one (SDM vol. 2 2.2.1, APM3 1.2.4).
    pub segment: Option<Segment>,
    /// REX, where it stands directly before the opcode; elsewhere it is ignored (SDM vol. 2 2.2.1).
    pub rex: Option<u8>,
}

impl Prefixes {
    /// Takes `byte` as a further prefix; false: it is none.
    pub(super) fn take(&mut self, byte: u8, mode: Mode) -> bool {
        match byte {
            0x66 => self.operand_size = true,
            0x67 => self.address_size = true,
            0xf0 => self.lock = true,
            0xf2 => self.repeat = Some(Repeat::NotEqual),
            0xf3 => self.repeat = Some(Repeat::Equal),
            0x64 => self.segment = Some(Segment::Fs),
            0x65 => self.segment = Some(Segment::Gs),
            0x26 | 0x2e | 0x36 | 0x3e => {
                if mode != Mode::Long64 {
                    self.segment = Some(match byte {
                        0x26 => Segment::Es,
                        0x2e => Segment::Cs,
                        0x36 => Segment::Ss,
                        _ => Segment::Ds,
                    });
                }
            }
            0x40..=0x4f if mode == Mode::Long64 => {
                self.rex = Some(byte);
                return true;
            }
            _ => return false,
        }
        self.rex = None;
        true
    }

    /// REX.W: 64-bit operands.
    pub const fn w(&self) -> bool {
        matches!(self.rex, Some(rex) if rex & 8 != 0)
    }

    /// REX.R as bit 3 of a register number.
    pub(super) fn r(&self) -> u8 {
        self.rex.map_or(0, |rex| (rex & 4) << 1)
    }

    /// REX.X as bit 3 of a register number.
    pub(super) fn x(&self) -> u8 {
        self.rex.map_or(0, |rex| (rex & 2) << 2)
    }

    /// REX.B as bit 3 of a register number.
    pub(super) fn b(&self) -> u8 {
        self.rex.map_or(0, |rex| (rex & 1) << 3)
    }

    /// Size of a general operand in bytes: 2, 4 or 8. REX.W wins over 66 (SDM vol. 2 2.2.1.2).
    pub(super) const fn operand_bytes(&self, mode: Mode) -> u8 {
        match (mode, self.operand_size) {
            (Mode::Long64, _) if self.w() => 8,
            (Mode::Real16, false) | (Mode::Protected32 | Mode::Long64, true) => 2,
            (Mode::Real16, true) | (Mode::Protected32 | Mode::Long64, false) => 4,
        }
    }

    /// Size of an address in bytes: 2, 4 or 8.
    pub(super) const fn address_bytes(&self, mode: Mode) -> u8 {
        match (mode, self.address_size) {
            (Mode::Real16, false) | (Mode::Protected32, true) => 2,
            (Mode::Real16, true) | (Mode::Protected32, false) | (Mode::Long64, true) => 4,
            (Mode::Long64, false) => 8,
        }
    }
}

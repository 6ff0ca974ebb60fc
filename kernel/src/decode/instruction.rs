//! What an instruction does.

use super::layout::{Layout, Map, sign_extend};
use super::operand::mask;
use super::{DecodeError, Memory, Mode, Operand, Prefixes, Register, Repeat, Segment};

/// A decoded instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Instruction {
    /// Bytes, 1 to 15.
    pub length: u8,
    /// Its prefixes.
    pub prefixes: Prefixes,
    /// Size of the data operand in bytes: 1, 2, 4 or 8. For [`Operation::Extend`] that of the source. Without meaning for
    /// operations that have no data operand.
    pub operand_size: u8,
    /// Size of addresses in bytes, 2, 4 or 8; string instructions count in CX, ECX or RCX by it.
    pub address_size: u8,
    /// The memory operand, where ModRM or a `moffs` names one; string instructions name theirs in the operation.
    pub memory: Option<Memory>,
    /// What it does.
    pub operation: Operation,
}

/// Arithmetic with two operands, in the order of the encoding (SDM vol. 2 table A-6, group 1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(
    missing_docs,
    reason = "the instructions' names are their documentation"
)]
pub enum Alu {
    Add,
    Or,
    Adc,
    Sbb,
    And,
    Sub,
    Xor,
    Cmp,
}

/// Bit tests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(
    missing_docs,
    reason = "the instructions' names are their documentation"
)]
pub enum BitOperation {
    Bt,
    Bts,
    Btr,
    Btc,
}

/// String instructions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(
    missing_docs,
    reason = "the instructions' names are their documentation"
)]
pub enum StringKind {
    Movs,
    Cmps,
    Stos,
    Lods,
    Scas,
    Ins,
    Outs,
}

/// Where the number of an I/O port is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Port {
    /// In the instruction.
    Immediate(u8),
    /// In DX.
    Dx,
}

/// What an instruction does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// MOV, MOVNTI: the destination becomes the source.
    Move {
        /// Register or memory.
        destination: Operand,
        /// Register, memory or immediate.
        source: Operand,
    },
    /// MOVZX, MOVSX, MOVSXD: the destination becomes the source, extended.
    Extend {
        /// The destination; its size is the size that is extended to.
        destination: Register,
        /// Register or memory of `operand_size` bytes.
        source: Operand,
        /// Sign extension, else zero extension.
        signed: bool,
    },
    /// XCHG; locked with or without the prefix where an operand is in memory.
    Exchange {
        /// Register or memory.
        operand: Operand,
        /// The other one.
        register: Register,
    },
    /// ADD and its kind; CMP writes nothing but flags.
    Arithmetic {
        /// Which.
        kind: Alu,
        /// Register or memory, first source and destination.
        destination: Operand,
        /// Second source.
        source: Operand,
    },
    /// TEST: flags by the AND of both.
    Test {
        /// Register or memory.
        first: Operand,
        /// Register or immediate.
        second: Operand,
    },
    /// BT and its kind. An index in a register reaches beyond a memory operand: [`bit_displacement`] says where to.
    Bit {
        /// Which.
        kind: BitOperation,
        /// Register or memory.
        base: Operand,
        /// Register or immediate.
        index: Operand,
    },
    /// A string instruction, repeated where the prefixes say so.
    String {
        /// Which.
        kind: StringKind,
        /// By rSI, where it is read.
        source: Option<Memory>,
        /// By rDI in ES, where it is written or compared.
        destination: Option<Memory>,
    },
    /// IN: AL, AX or EAX becomes what the port gives.
    In(Port),
    /// OUT.
    Out(Port),
    /// MOV from a control register.
    ReadControl {
        /// 0, 2, 3, 4 or 8.
        control: u8,
        /// Destination.
        register: Register,
    },
    /// MOV to a control register.
    WriteControl {
        /// 0, 2, 3, 4 or 8.
        control: u8,
        /// Source.
        register: Register,
    },
    /// MOV from a debug register.
    ReadDebug {
        /// 0 to 7; 4 and 5 are 6 and 7, or #UD with CR4.DE.
        debug: u8,
        /// Destination.
        register: Register,
    },
    /// MOV to a debug register.
    WriteDebug {
        /// 0 to 7; 4 and 5 are 6 and 7, or #UD with CR4.DE.
        debug: u8,
        /// Source.
        register: Register,
    },
    /// CLTS.
    Clts,
    /// LMSW; the operand has 16 bits.
    Lmsw(Operand),
    /// SMSW; 16 bits in memory, the operand size in a register.
    Smsw(Operand),
    /// INVLPG of the address that the memory operand names.
    Invlpg(Memory),
    /// CPUID.
    Cpuid,
    /// RDMSR.
    Rdmsr,
    /// WRMSR.
    Wrmsr,
    /// HLT.
    Hlt,
    /// PAUSE.
    Pause,
    /// VMCALL.
    Vmcall,
    /// VMMCALL.
    Vmmcall,
    /// XGETBV.
    Xgetbv,
    /// XSETBV.
    Xsetbv,
    /// INVD.
    Invd,
    /// WBINVD and WBNOINVD.
    Wbinvd,
    /// RDPMC.
    Rdpmc,
    /// RDTSC.
    Rdtsc,
    /// RDTSCP.
    Rdtscp,
    /// MONITOR and MONITORX.
    Monitor,
    /// MWAIT and MWAITX.
    Mwait,
    /// RSM.
    Rsm,
    /// GETSEC.
    Getsec,
    /// INVPCID.
    Invpcid(Memory),
    /// One of VMX's or SVM's own but for VMCALL and VMMCALL.
    Virtualisation,
    /// Anything else.
    Other,
}

/// How far, in bytes, from its memory operand BT and its kind reach with the index `index` in a register, for an operand of
/// `operand_size` bytes: the index is signed, and whole operands of it displace the address (SDM vol. 2 "BT"). The bit
/// within the operand is the index modulo the operand's bits.
pub const fn bit_displacement(index: u64, operand_size: u8) -> u64 {
    let index = sign_extend(index, operand_size) as i64;
    let bits_log2 = match operand_size {
        2 => 4,
        4 => 5,
        _ => 6,
    };
    ((index >> bits_log2) << (bits_log2 - 3)) as u64
}

impl Instruction {
    /// The linear address of the ModRM or `moffs` operand, where there is one. `rip` is the instruction's own; see
    /// [`Memory::linear_address`].
    pub fn linear_address(
        &self,
        regs: &dyn Fn(u8) -> u64,
        segment_base: &dyn Fn(Segment) -> u64,
        rip: u64,
    ) -> Option<u64> {
        let next = rip.wrapping_add(u64::from(self.length));
        self.memory
            .map(|memory| memory.linear_address(regs, segment_base, next))
    }

    /// Gives the parts a meaning.
    pub(super) fn from_layout(layout: &Layout) -> Result<Self, DecodeError> {
        let mut parts = Parts {
            layout,
            size: layout.prefixes.operand_bytes(layout.mode),
        };
        let operation = match layout.map {
            Map::Primary => parts.primary()?,
            Map::Two => parts.two_byte()?,
            Map::Three38 => parts.three_byte_38(),
            Map::Three3A | Map::Extended => Operation::Other,
        };
        if layout.prefixes.lock && !operation.may_be_locked() {
            return Err(DecodeError::Invalid);
        }
        Ok(Self {
            length: layout.length,
            prefixes: layout.prefixes,
            operand_size: parts.size,
            address_size: layout.prefixes.address_bytes(layout.mode),
            memory: layout.memory,
            operation,
        })
    }
}

impl Operation {
    /// Whether LOCK is legal (SDM vol. 2 "LOCK"): a destination in memory that is read and written. What is not decoded is
    /// not judged. MOV CR with LOCK reaches CR8 (APM3 "MOV CRn").
    fn may_be_locked(&self) -> bool {
        match self {
            Self::Arithmetic {
                kind, destination, ..
            } => *kind != Alu::Cmp && matches!(destination, Operand::Memory(_)),
            Self::Exchange { operand, .. } => matches!(operand, Operand::Memory(_)),
            Self::Bit { kind, base, .. } => {
                *kind != BitOperation::Bt && matches!(base, Operand::Memory(_))
            }
            Self::ReadControl { control, .. } | Self::WriteControl { control, .. } => *control == 8,
            Self::Other => true,
            _ => false,
        }
    }
}

/// A layout being read, and the operand size found so far.
struct Parts<'a> {
    layout: &'a Layout,
    size: u8,
}

impl Parts<'_> {
    fn rex(&self) -> bool {
        self.layout.prefixes.rex.is_some()
    }

    /// ModRM.reg without REX.R: an opcode extension.
    fn extension(&self) -> u8 {
        self.layout.modrm.map_or(0, |modrm| modrm.reg)
    }

    /// The register of ModRM.reg.
    fn reg(&self) -> Register {
        Register::new(
            self.extension() | self.layout.prefixes.r(),
            self.size,
            self.rex(),
        )
    }

    /// The register of ModRM.rm, of `size` bytes.
    fn rm_register(&self, size: u8) -> Register {
        let rm = self.layout.modrm.map_or(0, |modrm| modrm.rm);
        Register::new(rm | self.layout.prefixes.b(), size, self.rex())
    }

    /// The operand of ModRM.rm.
    fn rm(&self) -> Operand {
        match self.layout.memory {
            Some(memory) => Operand::Memory(memory),
            None => Operand::Register(self.rm_register(self.size)),
        }
    }

    /// AL, AX, EAX or RAX.
    fn accumulator(&self) -> Register {
        Register::new(0, self.size, true)
    }

    /// The immediate, sign-extended to the operand size.
    fn immediate(&self) -> Operand {
        Operand::Immediate(
            sign_extend(self.layout.immediate, self.layout.immediate_size) & mask(self.size),
        )
    }

    /// Byte operands for even opcodes.
    fn size_by_bit_0(&mut self) {
        if self.layout.opcode & 1 == 0 {
            self.size = 1;
        }
    }

    /// Operands in the form that bits 2:0 of opcodes 00 to 3B say.
    fn alu(&mut self) -> Operation {
        self.size_by_bit_0();
        let opcode = self.layout.opcode;
        let (destination, source) = match opcode & 7 {
            0 | 1 => (self.rm(), Operand::Register(self.reg())),
            2 | 3 => (Operand::Register(self.reg()), self.rm()),
            _ => (Operand::Register(self.accumulator()), self.immediate()),
        };
        Operation::Arithmetic {
            kind: alu_kind(opcode >> 3),
            destination,
            source,
        }
    }

    fn primary(&mut self) -> Result<Operation, DecodeError> {
        let opcode = self.layout.opcode;
        Ok(match opcode {
            0x00..=0x3f if opcode & 7 < 6 => self.alu(),
            0x63 if self.layout.mode == Mode::Long64 => {
                let to = self.size;
                // MOVSXD reads 32 bits, and 16 only with 66 (SDM vol. 2 "MOVSX/MOVSXD").
                self.size = self.size.min(4);
                self.extend(to, true)
            }
            0x6c..=0x6f => {
                self.size_by_bit_0();
                self.size = self.size.min(4);
                self.string(if opcode < 0x6e {
                    StringKind::Ins
                } else {
                    StringKind::Outs
                })
            }
            0x80..=0x83 => {
                self.size_by_bit_0();
                Operation::Arithmetic {
                    kind: alu_kind(self.extension()),
                    destination: self.rm(),
                    source: self.immediate(),
                }
            }
            0x84 | 0x85 => {
                self.size_by_bit_0();
                Operation::Test {
                    first: self.rm(),
                    second: Operand::Register(self.reg()),
                }
            }
            0x86 | 0x87 => {
                self.size_by_bit_0();
                Operation::Exchange {
                    operand: self.rm(),
                    register: self.reg(),
                }
            }
            0x88..=0x8b => {
                self.size_by_bit_0();
                let (rm, reg) = (self.rm(), Operand::Register(self.reg()));
                let (destination, source) = if opcode < 0x8a { (rm, reg) } else { (reg, rm) };
                Operation::Move {
                    destination,
                    source,
                }
            }
            0x90 if self.layout.prefixes.repeat == Some(Repeat::Equal) => Operation::Pause,
            0xa0..=0xa3 => {
                self.size_by_bit_0();
                let (memory, register) = (self.rm(), Operand::Register(self.accumulator()));
                let (destination, source) = if opcode < 0xa2 {
                    (register, memory)
                } else {
                    (memory, register)
                };
                Operation::Move {
                    destination,
                    source,
                }
            }
            0xa4..=0xa7 | 0xaa..=0xaf => {
                self.size_by_bit_0();
                self.string(match opcode {
                    0xa4 | 0xa5 => StringKind::Movs,
                    0xa6 | 0xa7 => StringKind::Cmps,
                    0xaa | 0xab => StringKind::Stos,
                    0xac | 0xad => StringKind::Lods,
                    _ => StringKind::Scas,
                })
            }
            0xa8 | 0xa9 => {
                self.size_by_bit_0();
                Operation::Test {
                    first: Operand::Register(self.accumulator()),
                    second: self.immediate(),
                }
            }
            0xb0..=0xbf => {
                if opcode < 0xb8 {
                    self.size = 1;
                }
                let register =
                    Register::new(opcode & 7 | self.layout.prefixes.b(), self.size, self.rex());
                Operation::Move {
                    destination: Operand::Register(register),
                    source: self.immediate(),
                }
            }
            // Extensions 1 to 7 are reserved, but for XABORT and XBEGIN in their register forms.
            0xc6 | 0xc7 if self.extension() == 0 => {
                self.size_by_bit_0();
                Operation::Move {
                    destination: self.rm(),
                    source: self.immediate(),
                }
            }
            0xe4..=0xe7 | 0xec..=0xef => {
                self.size_by_bit_0();
                self.size = self.size.min(4);
                let port = if opcode < 0xe8 {
                    Port::Immediate(self.layout.immediate as u8)
                } else {
                    Port::Dx
                };
                if opcode & 2 == 0 {
                    Operation::In(port)
                } else {
                    Operation::Out(port)
                }
            }
            0xf4 => Operation::Hlt,
            // Extension 1 is an alias of TEST (APM3 table A-6).
            0xf6 | 0xf7 if self.extension() < 2 => {
                self.size_by_bit_0();
                Operation::Test {
                    first: self.rm(),
                    second: self.immediate(),
                }
            }
            _ => Operation::Other,
        })
    }

    fn two_byte(&mut self) -> Result<Operation, DecodeError> {
        let prefixes = self.layout.prefixes;
        let opcode = self.layout.opcode;
        Ok(match opcode {
            0x01 => self.group_7(),
            0x06 => Operation::Clts,
            0x08 => Operation::Invd,
            0x09 => Operation::Wbinvd,
            0x20 | 0x22 => {
                self.size = self.native();
                let control = match self.extension() | prefixes.r() {
                    // On AMD's CPUs, a way to CR8 without REX; on Intel's, LOCK is #UD and does not come here.
                    0 if prefixes.lock => 8,
                    control @ (0 | 2 | 3 | 4 | 8) => control,
                    _ => return Err(DecodeError::Invalid),
                };
                let register = self.rm_register(self.size);
                match opcode {
                    0x20 => Operation::ReadControl { control, register },
                    _ => Operation::WriteControl { control, register },
                }
            }
            0x21 | 0x23 => {
                self.size = self.native();
                if prefixes.r() != 0 {
                    return Err(DecodeError::Invalid);
                }
                let (debug, register) = (self.extension(), self.rm_register(self.size));
                match opcode {
                    0x21 => Operation::ReadDebug { debug, register },
                    _ => Operation::WriteDebug { debug, register },
                }
            }
            0x30 => Operation::Wrmsr,
            0x31 => Operation::Rdtsc,
            0x32 => Operation::Rdmsr,
            0x33 => Operation::Rdpmc,
            0x37 => Operation::Getsec,
            0x78 | 0x79 if prefixes.repeat.is_none() && !prefixes.operand_size => {
                Operation::Virtualisation
            }
            0xa2 => Operation::Cpuid,
            0xa3 | 0xab | 0xb3 | 0xbb => Operation::Bit {
                kind: bit_kind(opcode >> 3),
                base: self.rm(),
                index: Operand::Register(self.reg()),
            },
            0xaa => Operation::Rsm,
            0xb6 | 0xb7 | 0xbe | 0xbf => {
                let to = self.size;
                self.size = if opcode & 1 == 0 { 1 } else { 2 };
                self.extend(to, opcode >= 0xbe)
            }
            0xba if self.extension() >= 4 => {
                let index = self.layout.immediate & (u64::from(self.size) * 8 - 1);
                Operation::Bit {
                    kind: bit_kind(self.extension()),
                    base: self.rm(),
                    index: Operand::Immediate(index),
                }
            }
            // MOVNTI has no 16-bit form; with a mandatory prefix it is something else.
            0xc3 if self.layout.memory.is_some()
                && prefixes.repeat.is_none()
                && !prefixes.operand_size =>
            {
                self.size = if prefixes.w() { 8 } else { 4 };
                Operation::Move {
                    destination: self.rm(),
                    source: Operand::Register(self.reg()),
                }
            }
            // VMPTRLD, VMCLEAR, VMXON; VMPTRST. Their register forms are RDRAND and RDSEED.
            0xc7 if self.layout.memory.is_some() && self.extension() >= 6 => {
                Operation::Virtualisation
            }
            _ => Operation::Other,
        })
    }

    /// 0F 01 (SDM vol. 2 table A-6, APM3 tables ).
    fn group_7(&mut self) -> Operation {
        let Some(modrm) = self.layout.modrm else {
            return Operation::Other;
        };
        match (modrm.reg, self.layout.memory) {
            (4, Some(memory)) => {
                self.size = 2;
                return Operation::Smsw(Operand::Memory(memory));
            }
            (4, None) => return Operation::Smsw(self.rm()),
            (6, _) => {
                self.size = 2;
                return Operation::Lmsw(self.rm());
            }
            (7, Some(memory)) => return Operation::Invlpg(memory),
            (_, Some(_)) => return Operation::Other,
            (_, None) => {}
        }
        // F2 and F3 make others of them (VMGEXIT of VMMCALL, MCOMMIT of MONITORX); those in the first arm ignore them.
        let repeat = self.layout.prefixes.repeat.is_some();
        match modrm.byte() {
            0xd8 | 0xda..=0xdf => Operation::Virtualisation,
            0xf9 => Operation::Rdtscp,
            _ if repeat => Operation::Other,
            0xc1 => Operation::Vmcall,
            0xc2..=0xc4 | 0xd4 => Operation::Virtualisation,
            0xc8 | 0xfa => Operation::Monitor,
            0xc9 | 0xfb => Operation::Mwait,
            0xd0 => Operation::Xgetbv,
            0xd1 => Operation::Xsetbv,
            0xd9 => Operation::Vmmcall,
            _ => Operation::Other,
        }
    }

    fn three_byte_38(&self) -> Operation {
        let prefixes = self.layout.prefixes;
        match (self.layout.opcode, self.layout.memory) {
            (0x80..=0x82, Some(memory)) if prefixes.operand_size && prefixes.repeat.is_none() => {
                if self.layout.opcode == 0x82 {
                    Operation::Invpcid(memory)
                } else {
                    Operation::Virtualisation
                }
            }
            _ => Operation::Other,
        }
    }

    /// The size of moves to and from control and debug registers, whatever the prefixes.
    fn native(&self) -> u8 {
        if self.layout.mode == Mode::Long64 {
            8
        } else {
            4
        }
    }

    /// An extension of the operand, `self.size` bytes, to `to` bytes.
    fn extend(&self, to: u8, signed: bool) -> Operation {
        Operation::Extend {
            destination: Register::new(self.extension() | self.layout.prefixes.r(), to, self.rex()),
            source: self.rm(),
            signed,
        }
    }

    /// A string instruction with its implied operands (SDM vol. 1 7.3.9): only the source's segment can be overridden.
    fn string(&self, kind: StringKind) -> Operation {
        let at = |number, segment| Memory {
            segment,
            base: Some(number),
            index: None,
            scale: 1,
            displacement: 0,
            rip_relative: false,
            address_size: self.layout.prefixes.address_bytes(self.layout.mode),
            long: self.layout.mode == Mode::Long64,
        };
        let source = at(6, self.layout.prefixes.segment.unwrap_or(Segment::Ds));
        let destination = at(7, Segment::Es);
        let (source, destination) = match kind {
            StringKind::Movs | StringKind::Cmps => (Some(source), Some(destination)),
            StringKind::Lods | StringKind::Outs => (Some(source), None),
            StringKind::Stos | StringKind::Scas | StringKind::Ins => (None, Some(destination)),
        };
        Operation::String {
            kind,
            source,
            destination,
        }
    }
}

/// Bits 2:0 of `code` as arithmetic.
const fn alu_kind(code: u8) -> Alu {
    match code & 7 {
        0 => Alu::Add,
        1 => Alu::Or,
        2 => Alu::Adc,
        3 => Alu::Sbb,
        4 => Alu::And,
        5 => Alu::Sub,
        6 => Alu::Xor,
        _ => Alu::Cmp,
    }
}

/// Bits 1:0 of `code` as a bit test.
const fn bit_kind(code: u8) -> BitOperation {
    match code & 3 {
        0 => BitOperation::Bt,
        1 => BitOperation::Bts,
        2 => BitOperation::Btr,
        _ => BitOperation::Btc,
    }
}

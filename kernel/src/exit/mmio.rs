//! What an instruction that touched device memory does, one access at a time. Pure: the accesses are made by the caller, who may
//! let any time go by until it has an answer.
//!
//! An instruction is a few steps: [`start`] gives the first, [`complete`] the next. No register changes before the last
//! step of an instruction, or of an element of a string: one that is given up, or that faults at its second access, is simply run
//! again. It is not atomic, LOCK or not: devices are not memory.
//!
//! Emulated are MOV, MOVNTI, MOVZX, MOVSX, MOVSXD, XCHG, ADD, OR, ADC, SBB, AND, SUB, XOR, CMP, TEST, and MOVS, STOS and LODS
//! with and without REP (SDM vol. 2).

use crate::decode::{
    Alu, Instruction, Memory, Operand, Operation, Register, Segment, StringKind, mask, sign_extend,
};

/// Status flags of RFLAGS (SDM vol. 1 3.4.3.1).
const CF: u64 = 1 << 0;
const PF: u64 = 1 << 2;
const AF: u64 = 1 << 4;
const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;
const OF: u64 = 1 << 11;
const STATUS: u64 = CF | PF | AF | ZF | SF | OF;
/// Direction: strings are walked downwards.
const DF: u64 = 1 << 10;

/// Encodings of registers.
const RAX: u8 = 0;
const RCX: u8 = 1;
const RSI: u8 = 6;
const RDI: u8 = 7;

/// The registers that an instruction reads and writes.
pub trait Registers {
    /// The whole general register with this encoding.
    fn get(&self, number: u8) -> u64;
    /// Sets it.
    fn set(&mut self, number: u8, value: u64);
    /// Where the instruction is. It is never changed here: [`Step`] says whether to move past the instruction.
    fn rip(&self) -> u64;
    /// RFLAGS.
    fn rflags(&self) -> u64;
    /// Sets it.
    fn set_rflags(&mut self, value: u64);

    /// A register, or the part of one that an operand names.
    fn read(&self, register: Register) -> u64 {
        register.read(self.get(register.number))
    }

    /// Writes it.
    fn write(&mut self, register: Register, value: u64) {
        let whole = register.write(self.get(register.number), value);
        self.set(register.number, whole);
    }

    /// The value of an operand that is not in memory; 0 for one that is.
    fn value(&self, operand: Operand) -> u64 {
        match operand {
            Operand::Register(register) => self.read(register),
            Operand::Immediate(value) => value,
            Operand::Memory(_) => 0,
        }
    }

    /// Sets the status flags.
    fn set_status(&mut self, flags: u64) {
        self.set_rflags(self.rflags() & !STATUS | flags);
    }
}

/// An access to memory that an instruction makes. Limits, rights and paging have to be looked at by whoever makes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// The segment.
    pub segment: Segment,
    /// Offset in it.
    pub offset: u64,
    /// Bytes: 1, 2, 4 or 8.
    pub size: u8,
    /// Whether `value` is written; else as many bytes are read.
    pub write: bool,
    /// What is written, zero-extended; 0 for a read.
    pub value: u64,
}

/// What comes next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// This access, to memory or to a device; then [`complete`].
    Access(Access, Wait),
    /// Nothing: the instruction is complete, and RIP moves past it.
    Done,
    /// An element of a repeated string instruction is complete, and others are left: RIP stays, so that the instruction is
    /// executed again for the next.
    Repeat,
}

/// What an instruction waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// A read.
    Read,
    /// A write, after a read that gave this; 0 where nothing was read.
    Write(u64),
}

/// The first step of `instruction`; `None`: it is not emulated.
#[inline(always)]
pub fn start(instruction: &Instruction, registers: &impl Registers) -> Option<Step> {
    let read = |memory| Some(access(instruction, memory, Wait::Read, 0, registers));
    let write = |memory, value| {
        Some(access(
            instruction,
            memory,
            Wait::Write(0),
            value,
            registers,
        ))
    };
    match instruction.operation {
        Operation::Move {
            destination: Operand::Memory(memory),
            source,
        } => write(memory, registers.value(source)),
        Operation::Move {
            source: Operand::Memory(memory),
            ..
        }
        | Operation::Extend {
            source: Operand::Memory(memory),
            ..
        }
        | Operation::Exchange {
            operand: Operand::Memory(memory),
            ..
        }
        | Operation::Arithmetic {
            destination: Operand::Memory(memory),
            ..
        }
        | Operation::Arithmetic {
            source: Operand::Memory(memory),
            ..
        }
        | Operation::Test {
            first: Operand::Memory(memory),
            ..
        } => read(memory),
        Operation::String {
            kind: StringKind::Movs | StringKind::Stos | StringKind::Lods,
            source,
            destination,
        } => {
            if instruction.prefixes.repeat.is_some() && registers.read(count(instruction)) == 0 {
                return Some(Step::Done);
            }
            match (source, destination) {
                (Some(source), _) => read(source),
                (None, Some(destination)) => {
                    write(destination, registers.read(accumulator(instruction)))
                }
                (None, None) => None,
            }
        }
        _ => None,
    }
}

/// The access for which `instruction` waits is made, and gave `value` if it was a read; bits beyond its size are ignored. The registers
/// are those with which the instruction started.
pub fn complete(
    instruction: &Instruction,
    wait: Wait,
    value: u64,
    registers: &mut impl Registers,
) -> Step {
    let size = instruction.operand_size;
    let (value, is_written) = match wait {
        Wait::Read => (value & mask(size), false),
        Wait::Write(read) => (read, true),
    };
    match instruction.operation {
        Operation::Move {
            destination: Operand::Register(register),
            ..
        } => registers.write(register, value),
        Operation::Extend {
            destination,
            signed,
            ..
        } => {
            let extended = if signed {
                sign_extend(value, size)
            } else {
                value
            };
            registers.write(destination, extended);
        }
        Operation::Exchange {
            operand: Operand::Memory(memory),
            register,
        } => {
            if !is_written {
                let new = registers.read(register);
                return access(instruction, memory, Wait::Write(value), new, registers);
            }
            registers.write(register, value);
        }
        Operation::Arithmetic {
            kind,
            destination,
            source,
        } => {
            let of = |operand| match operand {
                Operand::Memory(_) => value,
                other => registers.value(other),
            };
            let carry = registers.rflags() & CF;
            let (result, flags) = alu(kind, of(destination), of(source), carry, size);
            match destination {
                Operand::Memory(memory) if kind != Alu::Cmp && !is_written => {
                    return access(instruction, memory, Wait::Write(value), result, registers);
                }
                Operand::Register(register) if kind != Alu::Cmp => {
                    registers.write(register, result);
                }
                _ => {}
            }
            registers.set_status(flags);
        }
        Operation::Test { second, .. } => {
            let (_, flags) = alu(Alu::And, value, registers.value(second), 0, size);
            registers.set_status(flags);
        }
        Operation::String {
            source,
            destination,
            ..
        } => {
            match destination {
                Some(memory) if !is_written => {
                    return access(instruction, memory, Wait::Write(value), value, registers);
                }
                Some(_) => {}
                None => registers.write(accumulator(instruction), value),
            }
            return advance(
                instruction,
                source.is_some(),
                destination.is_some(),
                registers,
            );
        }
        _ => {}
    }
    Step::Done
}
/// The access to `memory` for which `instruction` waits so; `value` is what is written.
#[inline(always)]
fn access(
    instruction: &Instruction,
    memory: Memory,
    wait: Wait,
    value: u64,
    registers: &impl Registers,
) -> Step {
    let next = registers.rip().wrapping_add(u64::from(instruction.length));
    let access = Access {
        segment: memory.segment,
        offset: memory.effective_address(&|number| registers.get(number), next),
        size: instruction.operand_size,
        write: matches!(wait, Wait::Write(_)),
        value,
    };
    Step::Access(access, wait)
}

/// The register that a string instruction loads or stores.
const fn accumulator(instruction: &Instruction) -> Register {
    part(RAX, instruction.operand_size)
}

/// The register that counts the elements of a repeated one.
const fn count(instruction: &Instruction) -> Register {
    part(RCX, instruction.address_size)
}

/// The lowest `size` bytes of a register.
const fn part(number: u8, size: u8) -> Register {
    Register {
        number,
        size,
        high: false,
    }
}

/// Moves a string instruction to its next element, by the index registers that it uses.
fn advance(
    instruction: &Instruction,
    rsi: bool,
    rdi: bool,
    registers: &mut impl Registers,
) -> Step {
    let size = u64::from(instruction.operand_size);
    let step = if registers.rflags() & DF != 0 {
        size.wrapping_neg()
    } else {
        size
    };
    for (number, is_used) in [(RSI, rsi), (RDI, rdi)] {
        if is_used {
            let index = part(number, instruction.address_size);
            registers.write(index, registers.read(index).wrapping_add(step));
        }
    }
    if instruction.prefixes.repeat.is_none() {
        return Step::Done;
    }
    let count = count(instruction);
    let left = registers.read(count).wrapping_sub(1);
    registers.write(count, left);
    if left == 0 { Step::Done } else { Step::Repeat }
}

/// `a` and `b`, of `size` bytes, with `carry` (0 or 1) where the kind takes one: the result, and the status flags. AF, which is
/// undefined after AND, OR and XOR, is 0.
fn alu(kind: Alu, a: u64, b: u64, carry: u64, size: u8) -> (u64, u64) {
    let mask = mask(size);
    let sign = mask ^ (mask >> 1);
    let sum = |carry| {
        let result = a.wrapping_add(b).wrapping_add(carry) & mask;
        // Bit by bit: a carry goes out where two ones meet, or where a one meets a carry.
        let out = (a & b) | ((a | b) & !result);
        (result, out, (a ^ result) & (b ^ result))
    };
    let difference = |borrow| {
        let result = a.wrapping_sub(b).wrapping_sub(borrow) & mask;
        let out = (!a & b) | (!(a ^ b) & result);
        (result, out, (a ^ b) & (a ^ result))
    };
    let (result, carries, overflows) = match kind {
        Alu::Add => sum(0),
        Alu::Adc => sum(carry),
        Alu::Sub | Alu::Cmp => difference(0),
        Alu::Sbb => difference(carry),
        Alu::And => (a & b, 0, 0),
        Alu::Or => (a | b, 0, 0),
        Alu::Xor => (a ^ b, 0, 0),
    };
    let flag = |is_set: bool, flag| if is_set { flag } else { 0 };
    let flags = flag(carries & sign != 0, CF)
        | flag((result as u8).count_ones().is_multiple_of(2), PF)
        | flag(carries & 1 << 3 != 0, AF)
        | flag(result == 0, ZF)
        | flag(result & sign != 0, SF)
        | flag(overflows & sign != 0, OF);
    (result, flags)
}

#[cfg(any(test, feature = "fuzzing"))]
#[path = "mmio_tests.rs"]
pub(crate) mod tests;

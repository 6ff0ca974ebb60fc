//! A decoder for the instructions that make a guest exit.
//!
//! [`length`] knows the length of every instruction; [`decode`] also says what it does, for the instructions that touch
//! device memory and for those that are privileged or intercepted. The bytes come from a guest: any input gives an answer
//! in bounded time, and nothing here panics or reads anything but the bytes it is given. Legality that depends on the
//! CPU's state (CPL, CR4, CPUID) is not decided here: `rules` and the exit handlers do that.
//!
//! Formats: SDM vol. 2 chapter 2 and appendix A; APM3 chapter 1 and appendix A (XOP, 3DNow!).

mod instruction;
mod layout;
mod operand;
mod prefix;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod tests;

pub use instruction::{
    Alu, BitOperation, Instruction, Operation, Port, StringKind, bit_displacement,
};
pub use layout::sign_extend;
pub use operand::{Memory, Operand, Register, Segment, mask};
pub use prefix::{Prefixes, Repeat};

use layout::Layout;

/// The longest instruction (SDM vol. 2 2.3.11); a longer one raises #GP.
pub const MAX_LENGTH: usize = 15;

/// How code is read: by CS.L and CS.D, and by CR0.PE and EFLAGS.VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// 16-bit operands and addresses by default: real mode, virtual-8086 mode, and 16-bit protected mode.
    Real16,
    /// 32-bit operands and addresses by default: protected mode and compatibility mode with CS.D.
    Protected32,
    /// 64-bit mode: CS.L with EFER.LMA.
    Long64,
}

/// Why bytes are no instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DecodeError {
    /// Longer than 15 bytes: #GP.
    TooLong,
    /// The instruction goes on behind the bytes that were given.
    Truncated,
    /// No CPU knows it: #UD.
    Invalid,
}

/// Length in bytes, 1 to 15, of the instruction at the start of `bytes`.
///
/// Lenient where only the CPU's features decide: an opcode that some CPU could have is given the length that its map
/// implies. In 64-bit mode a near branch with prefix 66 has a 32-bit displacement, as on Intel's CPUs (AMD's take 16
/// bits; SDM vol. 2 "JMP", APM3 "JMP (Near)"); no near branch is intercepted.
///
/// # Errors
/// As [`DecodeError`] says; `Truncated` means that up to 15 bytes would tell.
pub fn length(bytes: &[u8], mode: Mode) -> Result<u8, DecodeError> {
    Ok(Layout::parse(bytes, mode)?.length)
}

/// The instruction at the start of `bytes`. One that is none of the kernel's affair is [`Operation::Other`], its length
/// right.
///
/// # Errors
/// As [`length`]; and `Invalid` for an instruction of the known set in a form that raises #UD, such as MOV with LOCK or MOV
/// to CR1.
pub fn decode(bytes: &[u8], mode: Mode) -> Result<Instruction, DecodeError> {
    Instruction::from_layout(&Layout::parse(bytes, mode)?)
}

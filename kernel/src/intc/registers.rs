//! The registers of a local APIC: where they are, which bits they have.
//!
//! A register's number is its offset in the page divided by 16, and its MSR's number less 0x800 (SDM vol. 3 tables 11-1,
//! 11-6).

use bitfield_struct::bitfield;

/// Sources of the local vector table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Source {
    Timer,
    Thermal,
    Performance,
    Lint0,
    Lint1,
    Error,
}

impl Source {
    /// How many there are.
    pub(super) const COUNT: usize = 6;
}

/// An entry of the local vector table (SDM vol. 3 figure 11-8).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub(super) struct LocalVector {
    pub(super) vector: u8,
    #[bits(3)]
    pub(super) delivery: u8,
    #[bits(1)]
    __: u8,
    /// Delivery status: read-only, and nothing waits here.
    pub(super) pending: bool,
    pub(super) active_low: bool,
    /// Read-only: the level-triggered interrupt has not ended.
    pub(super) remote_irr: bool,
    pub(super) level: bool,
    pub(super) masked: bool,
    #[bits(2)]
    pub(super) timer_mode: u8,
    #[bits(13)]
    __: u16,
}

impl LocalVector {
    pub(super) const FIXED: u8 = 0b000;
    pub(super) const NMI: u8 = 0b100;
    pub(super) const INIT: u8 = 0b101;
    pub(super) const EXT_INT: u8 = 0b111;

    /// After a reset, and while software disables the APIC.
    pub(super) const MASKED: Self = Self::new().with_masked(true);
    const READ_ONLY: u32 = Self::new()
        .with_pending(true)
        .with_remote_irr(true)
        .into_bits();

    /// What remains of this when `value` is written to the entry of `source`.
    pub(super) const fn written(self, source: Source, value: u32) -> Self {
        let writable = Register::Local(source).bits() as u32 & !Self::READ_ONLY;
        Self::from_bits(self.into_bits() & Self::READ_ONLY | value & writable)
    }

    /// Whether it is a pin's interrupt that lasts until it ends.
    pub(super) const fn is_level(self) -> bool {
        self.level() && self.delivery() == Self::FIXED
    }
}

/// The spurious-interrupt vector register (SDM vol. 3 figure 11-23).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub(super) struct SpuriousVector {
    pub(super) vector: u8,
    pub(super) enabled: bool,
    /// Focus processor checking is off. Without effect since the Pentium 4, but AMD's processors keep the bit (APM2 16.4.7).
    pub(super) no_focus_check: bool,
    #[bits(2)]
    __: u8,
    pub(super) suppress_eoi_broadcast: bool,
    #[bits(19)]
    __: u32,
}

impl SpuriousVector {
    /// After a reset: disabled.
    pub(super) const RESET: Self = Self::new().with_vector(0xff);
}

/// Bits of the error status register (SDM vol. 3 figure 11-9).
pub(super) mod error {
    pub(in super::super) const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
    pub(in super::super) const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
    pub(in super::super) const ILLEGAL_REGISTER: u32 = 1 << 7;
}

/// The version register: an integrated APIC, the entries of the local vector table less one, and EOI broadcasts can be
/// suppressed (SDM vol. 3 11.4.8).
pub(super) const VERSION: u32 = 0x14 | (Source::COUNT as u32 - 1) << 16 | 1 << 24;

/// A register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Register {
    Id,
    Version,
    TaskPriority,
    ArbitrationPriority,
    ProcessorPriority,
    EndOfInterrupt,
    RemoteRead,
    LogicalDestination,
    DestinationFormat,
    SpuriousVector,
    InService(u8),
    TriggerMode(u8),
    InterruptRequest(u8),
    ErrorStatus,
    /// All of it in x2APIC mode, the lower half in xAPIC mode.
    InterruptCommand,
    InterruptCommandHigh,
    Local(Source),
    InitialCount,
    CurrentCount,
    DivideConfiguration,
    SelfInterrupt,
}

impl Register {
    const fn at(number: u32) -> Option<Self> {
        Some(match number {
            0x02 => Self::Id,
            0x03 => Self::Version,
            0x08 => Self::TaskPriority,
            0x09 => Self::ArbitrationPriority,
            0x0a => Self::ProcessorPriority,
            0x0b => Self::EndOfInterrupt,
            0x0c => Self::RemoteRead,
            0x0d => Self::LogicalDestination,
            0x0e => Self::DestinationFormat,
            0x0f => Self::SpuriousVector,
            0x10..=0x17 => Self::InService(number as u8 - 0x10),
            0x18..=0x1f => Self::TriggerMode(number as u8 - 0x18),
            0x20..=0x27 => Self::InterruptRequest(number as u8 - 0x20),
            0x28 => Self::ErrorStatus,
            0x30 => Self::InterruptCommand,
            0x31 => Self::InterruptCommandHigh,
            0x32 => Self::Local(Source::Timer),
            0x33 => Self::Local(Source::Thermal),
            0x34 => Self::Local(Source::Performance),
            0x35 => Self::Local(Source::Lint0),
            0x36 => Self::Local(Source::Lint1),
            0x37 => Self::Local(Source::Error),
            0x38 => Self::InitialCount,
            0x39 => Self::CurrentCount,
            0x3e => Self::DivideConfiguration,
            0x3f => Self::SelfInterrupt,
            _ => return None,
        })
    }

    /// The register of xAPIC mode at `offset`, which is divisible by 16; `None`: it is reserved (SDM vol. 3 table 11-1).
    pub(super) const fn of_offset(offset: u32) -> Option<Self> {
        match Self::at(offset >> 4) {
            Some(Self::SelfInterrupt) => None,
            register => register,
        }
    }

    /// The register of x2APIC mode; `None`: it is reserved (SDM vol. 3 table 11-6).
    #[inline(always)]
    pub(super) fn of_msr(msr: u32) -> Option<&'static MsrRegister> {
        MSR_REGISTERS
            .get(msr.wrapping_sub(0x800) as usize)?
            .as_ref()
    }

    /// The bits that are not reserved when x2APIC mode writes the register.
    pub(super) const fn bits(self) -> u64 {
        match self {
            Self::TaskPriority | Self::SelfInterrupt => 0xff,
            Self::SpuriousVector => 0x13ff,
            // Bit 12, delivery status, is gone in this mode, but Intel's processors ignore it.
            Self::InterruptCommand => 0xffff_ffff_000c_dfff,
            Self::Local(Source::Timer) => 0x7_10ff,
            Self::Local(Source::Thermal | Source::Performance) => 0x1_17ff,
            Self::Local(Source::Lint0 | Source::Lint1) => 0x1_f7ff,
            Self::Local(Source::Error) => 0x1_10ff,
            Self::InitialCount => 0xffff_ffff,
            Self::DivideConfiguration => 0xb,
            // EOI and ESR take 0 alone; the others cannot be written.
            _ => 0,
        }
    }
}

/// A register of x2APIC mode.
#[derive(Clone, Copy, Debug)]
pub(super) struct MsrRegister {
    /// Which.
    pub(super) register: Register,
    /// It may be read.
    pub(super) readable: bool,
    /// It may be written.
    pub(super) writable: bool,
    /// The bits that are not reserved when it is written.
    pub(super) bits: u64,
}

impl MsrRegister {
    const fn at(number: u32) -> Option<Self> {
        let register = match Register::at(number) {
            None
            | Some(
                Register::ArbitrationPriority
                | Register::RemoteRead
                | Register::DestinationFormat
                | Register::InterruptCommandHigh,
            ) => return None,
            Some(register) => register,
        };
        Some(Self {
            register,
            readable: !matches!(register, Register::EndOfInterrupt | Register::SelfInterrupt),
            writable: !matches!(
                register,
                Register::Id
                    | Register::Version
                    | Register::ProcessorPriority
                    | Register::LogicalDestination
                    | Register::InService(_)
                    | Register::TriggerMode(_)
                    | Register::InterruptRequest(_)
                    | Register::CurrentCount
            ),
            bits: register.bits(),
        })
    }
}

/// By the MSR's number less 0x800. A table, for these are the MSRs that a guest accesses most.
static MSR_REGISTERS: [Option<MsrRegister>; 0x40] = {
    let mut table = [None; 0x40];
    let mut number = 0;
    while number < table.len() {
        table[number] = MsrRegister::at(number as u32);
        number += 1;
    }
    table
};

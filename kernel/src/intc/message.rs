//! What travels between interrupt controllers: whom it is for, and what is to happen there.
//!
//! Messages come from a local APIC's interrupt command register (SDM vol. 3 11.6.1, 11.12.9), from a device's message
//! (11.11), and from the I/O APIC's redirection table, which has the same fields in other places.

/// Whom a message is for (SDM vol. 3 11.6.2, 11.12.10). What an identifier means depends on the mode of the APIC that
/// reads it; `Requests::matches` decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Destination {
    /// Every APIC, the sender's as well.
    All,
    /// Every APIC but the one with this identifier, the sender's.
    AllBut(u32),
    /// The APIC with this identifier.
    Physical(u32),
    /// The APICs whose logical identifier this selects.
    Logical(u32),
}

/// What is to happen at the destination.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Delivery {
    /// An interrupt at each.
    Fixed(u8),
    /// An interrupt at one of them.
    LowestPriority(u8),
    /// A system management interrupt. Guests have no such mode: it is ignored.
    Smi,
    /// A non-maskable interrupt.
    Nmi,
    /// A reset of the processor, which then waits for its start-up.
    Init,
    /// The end of an INIT that was asserted; processors since the Pentium 4 ignore it (SDM vol. 3 11.6.1).
    InitDeassert,
    /// The processor that waits for it starts at this page of the first MiB.
    StartUp(u8),
    /// An interrupt whose vector the PIC knows.
    ExtInt,
}

impl Delivery {
    /// What the three bits of a delivery mode mean in messages of devices and of the I/O APIC; `None`: reserved.
    pub const fn of_bits(mode: u8, vector: u8) -> Option<Self> {
        Some(match mode {
            0b000 => Self::Fixed(vector),
            0b001 => Self::LowestPriority(vector),
            0b010 => Self::Smi,
            0b100 => Self::Nmi,
            0b101 => Self::Init,
            0b111 => Self::ExtInt,
            _ => return None,
        })
    }

    /// The vector of an interrupt that goes through IRR and ISR.
    pub const fn vector(self) -> Option<u8> {
        match self {
            Self::Fixed(vector) | Self::LowestPriority(vector) => Some(vector),
            _ => None,
        }
    }
}

/// A message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    /// Whom it is for.
    pub destination: Destination,
    /// What is to happen.
    pub delivery: Delivery,
    /// Level-triggered: the end of the interrupt is told to the I/O APIC.
    pub level: bool,
}

impl Message {
    /// What a write of the interrupt command register sends; `None`: nothing, for the combination is reserved.
    pub const fn of_command(_command: u64, _x2apic: bool, _sender: u32) -> Option<Self> {
        None
    }

    /// What a device's write of `data` to `address` sends; `None`: the address or the combination is reserved.
    pub const fn of_msi(_address: u64, _data: u32) -> Option<Self> {
        None
    }
}

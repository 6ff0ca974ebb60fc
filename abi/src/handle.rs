//! Handles: how a domain names kernel objects, and what it may do with them.
//!
//! A handle is a number that means something in the table of its domain only. Bits 15:0 are the place in the table,
//! bits 31:16 count how often the place was used, so that a handle that was closed does not name what came after. 0 names
//! nothing.

/// A handle.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
#[repr(transparent)]
pub struct Handle(pub u32);

impl Handle {
    /// Names nothing, ever.
    pub const NONE: Self = Self(0);
}

/// The type of an object. Open.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(transparent)]
pub struct ObjectType(pub u32);

impl ObjectType {
    /// The machine itself: making and finding domains, its log, its power.
    pub const SYSTEM: Self = Self(1);
    /// A domain.
    pub const DOMAIN: Self = Self(2);
    /// A vCPU.
    pub const VCPU: Self = Self(3);
    /// A run of memory.
    pub const MEMORY: Self = Self(4);
    /// An event.
    pub const EVENT: Self = Self(5);
    /// A physical interrupt.
    pub const IRQ: Self = Self(6);
    /// A range of physical I/O ports.
    pub const PORTS: Self = Self(7);

    /// The type in words.
    pub const fn text(self) -> &'static str {
        match self {
            Self::SYSTEM => "system",
            Self::DOMAIN => "domain",
            Self::VCPU => "vcpu",
            Self::MEMORY => "memory",
            Self::EVENT => "event",
            Self::IRQ => "irq",
            Self::PORTS => "ports",
            _ => "unknown",
        }
    }
}

/// Rights of a handle: bits. The same bit means the same for every type that has it.
pub mod rights {
    /// The handle may be granted to other domains.
    pub const GRANT: u32 = 1 << 0;
    /// Domain: info, console output. vCPU: info, state out. Memory: mapping readable. System: info, log, trace, the list of domains.
    pub const READ: u32 = 1 << 1;
    /// Memory: mapping writable. Domain: console input.
    pub const WRITE: u32 = 1 << 2;
    /// Memory: mapping executable.
    pub const EXECUTE: u32 = 1 << 3;
    /// Domain: start, pause, resume, kill, destroy, watch, vCPUs. vCPU: state in, scheduling, interrupts. Irq, Ports: use.
    pub const CONTROL: u32 = 1 << 4;
    /// Domain: its memory: map, unmap, protect, copies, dirty pages.
    pub const MEMORY: u32 = 1 << 5;
    /// Domain: claim ports and addresses, complete accesses.
    pub const DEVICE: u32 = 1 << 6;
    /// Domain: objects may be charged to it, and handles put into its table.
    pub const CHARGE: u32 = 1 << 7;
    /// Event: signal it, or have the kernel do so.
    pub const SIGNAL: u32 = 1 << 8;
    /// Event: bind it.
    pub const BIND: u32 = 1 << 9;
    /// System: make domains.
    pub const CREATE: u32 = 1 << 10;
    /// System: open any domain.
    pub const OPEN: u32 = 1 << 11;
    /// System: end the machine.
    pub const POWER: u32 = 1 << 12;
    /// System: device memory.
    pub const PHYSICAL: u32 = 1 << 13;

    /// Every right that a system handle can have.
    pub const SYSTEM: u32 = GRANT | READ | CREATE | OPEN | POWER | PHYSICAL;
    /// Every right that a domain handle can have.
    pub const DOMAIN: u32 = GRANT | READ | WRITE | CONTROL | MEMORY | DEVICE | CHARGE;
    /// Every right that a vCPU handle can have.
    pub const VCPU: u32 = GRANT | READ | CONTROL;
    /// Every right that a memory handle can have.
    pub const MEMORY_OBJECT: u32 = GRANT | READ | WRITE | EXECUTE;
    /// Every right that an event handle can have.
    pub const EVENT: u32 = GRANT | SIGNAL | BIND;
    /// Every right that a handle to an interrupt or to ports can have.
    pub const PHYSICAL_OBJECT: u32 = GRANT | CONTROL;
}

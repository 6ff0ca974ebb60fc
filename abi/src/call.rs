//! Hypercall numbers, by family. One line each in the table of `docs/abi.md`.
//!
//! `H` is a handle, `gpa` a guest-physical address of the caller's, `ns` nanoseconds of [`Call::CLOCK`]. Arguments go to RDI, RSI,
//! RDX, R10, R8, R9 in the order in which they are named here; those that a call does not name are ignored.

/// The number of a hypercall (RAX). Open: what this version does not name is answered with `NO_CALL`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(transparent)]
pub struct Call(pub u64);

macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident = $value:literal;)*) => {
        impl Call {
            $($(#[$doc])* pub const $name: Self = Self($value);)*

            /// Every call, in the order of the numbers, with its name.
            pub const ALL: &'static [(Self, &'static str)] = &[$((Self::$name, stringify!($name))),*];

            /// The call's name, as in the source.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                    _ => "UNKNOWN",
                }
            }
        }
    };
}

calls! {
    // Core: these need no handle.

    /// Version of the contract. Value: [`crate::ABI_VERSION`]. Also the null call for measurements.
    VERSION = 0x00;
    /// `(gpa, length)` Writes to the caller's console, at most [`CONSOLE_MAX`] bytes. Value: bytes taken, which may be fewer:
    /// call again with the rest.
    CONSOLE_WRITE = 0x01;
    /// Value: nanoseconds since the machine's boot, monotonic on and across CPUs.
    CLOCK = 0x02;
    /// Gives the rest of the time slice away.
    YIELD = 0x03;
    /// `(status)` Ends the calling domain; status 0 means success. Does not return.
    END = 0x04;
    /// `(ns)` Waits until an event that is bound to the calling vCPU is pending, or the clock has reached `ns`: 0 asks
    /// without waiting, `u64::MAX` waits for ever. Value: the key of the event, whose pending mark is taken. `TIMED_OUT`.
    WAIT = 0x05;
    /// `(gpa, length)` Reads from the caller's console input, at most [`CONSOLE_MAX`] bytes. Value: bytes read, 0 if there are none.
    CONSOLE_READ = 0x06;

    // Domain.

    /// `(H system, gpa of DomainConfig)` Makes a domain. Its budget is taken from the caller's. Value: a handle with all
    /// rights.
    DOMAIN_CREATE = 0x10;
    /// `(H domain)` Lets its vCPUs run for the first time.
    DOMAIN_START = 0x11;
    /// `(H domain)` Stops its vCPUs until resumed.
    DOMAIN_PAUSE = 0x12;
    /// `(H domain)` Lets them go on.
    DOMAIN_RESUME = 0x13;
    /// `(H domain)` Ends it, whatever it is doing.
    DOMAIN_KILL = 0x14;
    /// `(H domain)` Takes back all that an ended or never started domain has, in steps: `AGAIN` until it is done.
    DOMAIN_DESTROY = 0x15;
    /// `(H domain, gpa of DomainInfo)` What and how it is.
    DOMAIN_INFO = 0x16;
    /// `(H domain, H event, mask)` Signals the event whenever one of [`watch`]'s things happens; replaces what was watched
    /// before. Event 0 ends the watch.
    DOMAIN_WATCH = 0x17;
    /// `(H domain, gpa of StreamHeader, length, position)` Copies console output from that stream position on, behind a header.
    /// Value: bytes copied, header not included.
    DOMAIN_CONSOLE = 0x18;
    /// `(H domain, gpa, length)` Types into its console. Value: bytes taken.
    DOMAIN_TYPE = 0x19;
    /// `(H system, number)` Value: number of the domain that follows the one numbered so. `NOT_FOUND` at the end.
    DOMAIN_NEXT = 0x1a;
    /// `(H system, number)` Value: a handle with all rights.
    DOMAIN_OPEN = 0x1b;
    /// `(H domain, gpa of buffer, length, offset gpa)` Copies from the domain's memory at the last argument. Value: bytes
    /// copied, at most [`COPY_MAX`].
    DOMAIN_READ = 0x1c;
    /// As `DOMAIN_READ`, into the domain's memory.
    DOMAIN_WRITE = 0x1d;

    // vCPU.

    /// `(H domain)` Adds a vCPU, in the state after reset. Value: a handle with all rights.
    VCPU_CREATE = 0x20;
    /// `(H domain, index)` Value: a handle with all rights to the vCPU of that index.
    VCPU_OPEN = 0x21;
    /// `(H vcpu, part, gpa, length)` Copies a [`crate::state::part`] of its state out. Value: the part's bytes.
    VCPU_GET_STATE = 0x22;
    /// `(H vcpu, part, gpa, length)` Sets a part of its state.
    VCPU_SET_STATE = 0x23;
    /// `(H vcpu, gpa of Schedule)` Sets weight, cap and pinning.
    VCPU_SCHEDULE = 0x24;
    /// `(H vcpu, gpa of VcpuInfo)` Times and counters.
    VCPU_INFO = 0x25;
    /// `(H vcpu, vector)` Makes the interrupt `vector` (32 to 255) pending.
    VCPU_INTERRUPT = 0x26;

    // Memory.

    /// `(H domain, bytes)` Makes a Memory object of that size, without frames yet, charged to the domain. Value: a handle
    /// with all rights.
    MEMORY_CREATE = 0x30;
    /// `(H memory)` Gives it its zeroed frames, in steps: `AGAIN` until it has all. Value: bytes it has.
    MEMORY_POPULATE = 0x31;
    /// `(H memory, offset, H domain, gpa in the domain, length, access)` Maps a part of it. Done in steps: `AGAIN` with the bytes
    /// done as value; go on with what is left. [`access`] names the bits.
    MEMORY_MAP = 0x32;
    /// `(H domain, gpa in the domain, length)` Unmaps. In steps, as `MEMORY_MAP`.
    MEMORY_UNMAP = 0x33;
    /// `(H domain, gpa in the domain, length, access)` Changes what may be done there. In steps, as `MEMORY_MAP`.
    MEMORY_PROTECT = 0x34;
    /// `(H domain, gpa in the domain, length, gpa of bitmap)` Tells which 4 KiB pages were written since the last such call, a
    /// bit each, and forgets it. In steps, as `MEMORY_MAP`; the bitmap begins with the first page of the call.
    MEMORY_DIRTY = 0x35;
    /// `(H system, host-physical address, bytes)` Value: a handle to a Memory object that is device memory.
    MEMORY_PHYSICAL = 0x36;
    /// `(H memory, gpa of MemoryInfo)` Its size and what it is.
    MEMORY_INFO = 0x37;

    // Event.

    /// `(H domain)` Makes an event, charged to the domain. Value: a handle with all rights.
    EVENT_CREATE = 0x40;
    /// `(H event)` Marks it pending. Several signals before it is taken are one.
    EVENT_SIGNAL = 0x41;
    /// `(H event, key)` Binds it to the calling vCPU: `WAIT` gives the key when it is pending. Replaces another binding.
    EVENT_BIND = 0x42;
    /// `(H event, H vcpu, vector)` Binds it to an interrupt vector (32 to 255) of a vCPU. Replaces another binding.
    EVENT_BIND_VECTOR = 0x43;
    /// `(H event)` Ends its binding.
    EVENT_UNBIND = 0x44;

    // Device.

    /// `(H domain, gpa of Claim)` Claims ports or guest-physical addresses of a domain: accesses to them arrive at the claimer.
    DEVICE_CLAIM = 0x50;
    /// `(H domain, kind, first)` Gives a claim back; accesses that wait are completed as if nobody had claimed.
    DEVICE_RELEASE = 0x51;
    /// `(H domain, index of the vCPU, value)` Completes the access that the vCPU waits for; the value is what a read gives.
    DEVICE_COMPLETE = 0x52;
    /// `(H domain, line, level)` Sets an input of the domain's I/O APIC: [`crate::device::line`]. Level 1: active; 0: not.
    DEVICE_LINE = 0x53;
    /// `(H domain, address, data)` Sends a message-signalled interrupt into the domain: what a device would write, and where (SDM vol.
    /// 3 11.11).
    DEVICE_MSI = 0x54;
    /// `(H domain, index of the vCPU, value, deadline)` As `DEVICE_COMPLETE`, and then as `WAIT` with this deadline.
    DEVICE_COMPLETE_AND_WAIT = 0x55;

    // Physical.

    /// `(H irq, H event)` Signals the event at each interrupt, and enables it. It stays masked from each one until `IRQ_ACK`.
    IRQ_BIND = 0x60;
    /// `(H irq)` The interrupt has been served: unmasks it.
    IRQ_ACK = 0x61;
    /// `(H ports, H domain)` Lets the domain use the ports directly.
    PORTS_ENABLE = 0x62;

    // Handle.

    /// `(H, rights)` Value: another handle to the object with just these rights, which the first must have.
    HANDLE_DUPLICATE = 0x70;
    /// `(H, H domain, rights)` Puts a handle with these rights, which the first must have, into the domain's table. Value: the
    /// handle, as that domain names it.
    HANDLE_GRANT = 0x71;
    /// `(H)` Gives it up.
    HANDLE_CLOSE = 0x72;
    /// `(H)` Value: the object's type in bits 63:32, the rights in bits 31:0.
    HANDLE_INFO = 0x73;

    // System.

    /// `(H system, gpa of SystemInfo)` The machine and what is left of it.
    SYSTEM_INFO = 0x80;
    /// `(H system, gpa of StreamHeader, length, position)` Copies the kernel's log, as `DOMAIN_CONSOLE` does a console.
    SYSTEM_LOG = 0x81;
    /// `(H system, gpa of StreamHeader, length, position)` Copies [`crate::trace::Record`]s of a CPU's trace ring: its number is in
    /// bits 63:48 of the position, which counts records in the others. Value: bytes copied, header not included.
    SYSTEM_TRACE = 0x82;
    /// `(H system, action, status)` Ends the machine: [`power`].
    SYSTEM_POWER = 0x83;
}

/// Most bytes that one console call takes or gives: a page.
pub const CONSOLE_MAX: u64 = 4096;
/// Most bytes that one `DOMAIN_READ` or `DOMAIN_WRITE` copies: a page.
pub const COPY_MAX: u64 = 4096;
/// Most bytes, header included, that one call copies of a stream.
pub const STREAM_MAX: u64 = 4096;

/// What `DOMAIN_WATCH` watches for: bits.
pub mod watch {
    /// The domain ended.
    pub const ENDED: u64 = 1 << 0;
    /// It wrote to its console.
    pub const CONSOLE: u64 = 1 << 1;
    /// All bits that have a meaning.
    pub const ALL: u64 = ENDED | CONSOLE;
}

/// What may be done with mapped memory: bits. A mapping always has `READ`.
pub mod access {
    /// Data reads.
    pub const READ: u64 = 1 << 0;
    /// Data writes.
    pub const WRITE: u64 = 1 << 1;
    /// Instruction fetches.
    pub const EXECUTE: u64 = 1 << 2;
    /// All bits that have a meaning.
    pub const ALL: u64 = READ | WRITE | EXECUTE;
}

/// Actions of `SYSTEM_POWER`.
pub mod power {
    /// Switch the machine off. The status is what an emulator hands to its caller.
    pub const OFF: u64 = 0;
    /// Reset it.
    pub const REBOOT: u64 = 1;
    /// Stop all CPUs and leave the screen readable.
    pub const HALT: u64 = 2;
}

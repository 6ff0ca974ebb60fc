//! Structures of the calls on the machine, and what the first domain finds at its start.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Most CPUs that [`SystemInfo`] lists one by one.
pub const LISTED_CPUS: usize = 64;

/// The machine: `SYSTEM_INFO`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SystemInfo {
    /// Nanoseconds since boot.
    pub now_ns: u64,
    /// TSC ticks a second.
    pub tsc_hz: u64,
    /// 4 KiB frames of the machine's memory that Plinth manages.
    pub frames: u64,
    /// Those that are free.
    pub free_frames: u64,
    /// Those of Memory objects.
    pub memory_frames: u64,
    /// The kernel's heap, in bytes.
    pub heap: u64,
    /// What is used of it.
    pub heap_used: u64,
    /// CPUs online.
    pub cpus: u32,
    /// Domains that are not destroyed.
    pub domains: u32,
    /// "VMX" or "SVM", padded with zeroes.
    pub extension: [u8; 8],
    /// The kernel's version, padded with zeroes.
    pub version: [u8; 16],
    /// Nanoseconds that each CPU has been idle.
    pub idle_ns: [u64; LISTED_CPUS],
    /// How often each CPU halted for want of work.
    pub idle_halts: [u64; LISTED_CPUS],
}

/// "PlinStrt": the start information is there.
pub const START_MAGIC: u64 = u64::from_le_bytes(*b"PlinStrt");

/// Most entries of [`StartInfo`].
pub const START_ENTRIES: usize = 32;

/// What a domain with handles finds at the address in RSI when it starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct StartInfo {
    /// [`START_MAGIC`].
    pub magic: u64,
    /// Entries that follow.
    pub count: u32,
    /// How often this domain was started before since boot: not 0 if its predecessor crashed.
    pub restarts: u32,
    /// The entries.
    pub entries: [StartEntry; START_ENTRIES],
}

/// A thing that a domain has from its start.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct StartEntry {
    /// [`start`].
    pub kind: u32,
    /// The handle.
    pub handle: u32,
    /// By kind.
    pub first: u64,
    /// By kind.
    pub length: u64,
}

/// Kinds of [`StartEntry`].
pub mod start {
    /// The system handle.
    pub const SYSTEM: u32 = 1;
    /// The domain's own handle.
    pub const SELF: u32 = 2;
    /// The domain's RAM, mapped at `first`, `length` bytes.
    pub const RAM: u32 = 3;
    /// The module archive (a tar), mapped read-only at `first`, `length` bytes.
    pub const MODULES: u32 = 4;
    /// I/O ports from `first` on, `length` of them.
    pub const PORTS: u32 = 5;
    /// The physical interrupt of the ISA line `first`.
    pub const IRQ: u32 = 6;
    /// The command line: UTF-8 text at `first`, `length` bytes.
    pub const COMMAND_LINE: u32 = 7;
    /// The domain's vCPU of the index `first`.
    pub const VCPU: u32 = 8;
}

const _: () = assert!(size_of::<SystemInfo>() == 7 * 8 + 8 + 24 + 2 * 8 * LISTED_CPUS);
const _: () = assert!(size_of::<StartEntry>() == 24);
const _: () = assert!(size_of::<StartInfo>() == 16 + 24 * START_ENTRIES);
const _: () = assert!(size_of::<StartInfo>() <= 4096);

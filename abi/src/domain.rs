//! Structures of the calls on domains, vCPUs and memory.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::VcpuState;

/// Longest name of a domain, in bytes.
pub const NAME: usize = 32;

/// What a new domain is to be: `DOMAIN_CREATE`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DomainConfig {
    /// Its name, UTF-8, padded with zeroes; not empty.
    pub name: [u8; NAME],
    /// Budget of 4 KiB frames: its memory, and what the kernel needs for it.
    pub frames: u64,
    /// Budget of kernel heap in bytes.
    pub heap: u64,
    /// Budget of handles, 1 to [`MAX_HANDLES`].
    pub handles: u32,
    /// Most vCPUs, 1 to [`MAX_VCPUS`]. CPUID shows so many.
    pub vcpus: u32,
    /// What machine its vCPUs see: bits of [`platform`].
    pub platform: u32,
    /// 0.
    pub reserved: u32,
    /// For a [`platform::PC`]: the Unix time in nanoseconds when the clock of `CLOCK` was 0, from which the guest's wall clock is told.
    pub wall_clock: u64,
}

/// What machine a domain's vCPUs see: bits of [`DomainConfig::platform`].
pub mod platform {
    /// A PC's processors: each vCPU has a local APIC, the domain has an I/O APIC; vCPUs but the first wait for INIT and SIPI; MSRs and
    /// CPUID leaves tell the time as KVM does. Without it a vCPU's interrupts are bare: `VCPU_INTERRUPT`, `EVENT_BIND_VECTOR`.
    pub const PC: u32 = 1 << 0;
    /// All bits that have a meaning.
    pub const ALL: u32 = PC;
}

impl DomainConfig {
    /// The least budget of frames: page tables, and a vCPU.
    pub const LEAST_FRAMES: u64 = 8;
    /// The least budget of kernel heap: the domain itself, and a vCPU.
    pub const LEAST_HEAP: u64 = 16 << 10;

    /// Kernel heap that a domain with `vcpus` vCPUs and some hundred objects gets along with.
    pub const fn usual_heap(vcpus: u32) -> u64 {
        (16 << 10) + vcpus as u64 * (16 << 10)
    }
}

/// Most handles that a domain can have.
pub const MAX_HANDLES: u32 = 4096;
/// Most vCPUs that a domain can have.
pub const MAX_VCPUS: u32 = 64;

/// Where a domain is in its life. Open.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct DomainState(pub u32);

impl DomainState {
    /// Made, not started.
    pub const CREATED: Self = Self(0);
    /// Its vCPUs may run.
    pub const RUNNING: Self = Self(1);
    /// Its vCPUs are held.
    pub const PAUSED: Self = Self(2);
    /// Over; its memory and its vCPUs' state are still there.
    pub const ENDED: Self = Self(3);
    /// Its parts are being taken back, or are gone.
    pub const DESTROYED: Self = Self(4);

    /// The state in words.
    pub const fn text(self) -> &'static str {
        match self {
            Self::CREATED => "created",
            Self::RUNNING => "running",
            Self::PAUSED => "paused",
            Self::ENDED => "ended",
            Self::DESTROYED => "destroyed",
            _ => "unknown",
        }
    }
}

/// Why a domain ended. Open.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Reason(pub u32);

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $text:literal;)*) => {
        impl Reason {
            $($(#[$doc])* pub const $name: Self = Self($value);)*

            /// The reason in words.
            pub const fn text(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                    _ => "unknown reason",
                }
            }
        }
    };
}

reasons! {
    /// It has not ended.
    NONE = 0, "has not ended";
    /// By its own wish; `info[0]` is its status.
    STATUS = 1, "ended itself";
    /// Killed.
    KILLED = 2, "killed";
    /// An exception in the delivery of a double fault, or a shutdown.
    TRIPLE_FAULT = 3, "triple fault";
    /// It touched guest-physical memory that is not its own, or not in this way: `info[0]` is the address, `info[1]` has
    /// [`fault`]'s bits.
    NESTED_FAULT = 4, "touched memory that is not its own";
    /// Every vCPU halted and nothing can wake one.
    HALTED = 5, "halted for good";
    /// The CPU refused to enter it: `info[0]` is the VM-instruction error, exit qualification or exit code.
    ENTRY_FAILED = 6, "entry refused by the CPU";
    /// A hardware task switch, which Plinth does not emulate: `info[0]` is the selector.
    TASK_SWITCH = 7, "hardware task switch, not emulated";
    /// An instruction exited that could not be fetched or decoded.
    UNDECODABLE = 8, "an instruction that exited could not be fetched or decoded";
    /// An exit that no control asked for: `info` is its code and the CPU's information about it.
    UNEXPECTED_EXIT = 9, "unexpected exit";
    /// Its nested page tables were found broken, a defect of the kernel: `info[0]` is the address.
    NESTED_MISCONFIGURATION = 10, "nested page tables broken";
}

/// Statuses by which a guest says that it did not mean to end. A first domain that ends so has crashed.
pub mod status {
    /// A panic.
    pub const PANIC: u64 = 101;
    /// An exception that nothing expected.
    pub const TRAP: u64 = 102;
}

/// Bits of `info[1]` of a [`Reason::NESTED_FAULT`].
pub mod fault {
    /// A write; else a read, unless it is a fetch.
    pub const WRITE: u64 = 1 << 0;
    /// An instruction fetch.
    pub const FETCH: u64 = 1 << 1;
    /// By the walk of the guest's own page tables.
    pub const TABLE_WALK: u64 = 1 << 2;
    /// Something is mapped there, but does not allow this.
    pub const PRESENT: u64 = 1 << 3;
}

/// How a domain is: `DOMAIN_INFO`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DomainInfo {
    /// Its name, padded with zeroes.
    pub name: [u8; NAME],
    /// Its number: unique since boot.
    pub number: u32,
    /// Where it is in its life.
    pub state: DomainState,
    /// Why it ended.
    pub reason: Reason,
    /// The vCPU that made it end.
    pub ended_vcpu: u32,
    /// More about the end: see [`Reason`].
    pub info: [u64; 3],
    /// RIP of that vCPU then.
    pub rip: u64,
    /// vCPUs it has.
    pub vcpus: u32,
    /// vCPUs it can have.
    pub max_vcpus: u32,
    /// Handles in use, and the budget.
    pub handles: u32,
    /// Its budget of handles.
    pub max_handles: u32,
    /// Frames charged to it.
    pub frames: u64,
    /// Its budget of frames, what it gave on to domains that it made not included.
    pub max_frames: u64,
    /// Of `frames`, those of Memory objects.
    pub memory_frames: u64,
    /// Kernel heap charged to it, in bytes.
    pub heap: u64,
    /// Its budget of kernel heap.
    pub max_heap: u64,
    /// Bytes it has written to its console since its start: the stream position of the next.
    pub console_end: u64,
}

/// How a vCPU is scheduled: `VCPU_SCHEDULE`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Schedule {
    /// Its share of a CPU in proportion to others', [`Schedule::MIN_WEIGHT`] to [`Schedule::MAX_WEIGHT`].
    pub weight: u32,
    /// Most of one CPU's time it gets, in percent, 1 to 100; 0: as much as there is.
    pub cap: u32,
    /// The CPU it runs on, or [`Schedule::ANY_CPU`].
    pub cpu: u32,
    /// 0.
    pub reserved: u32,
}

impl Schedule {
    /// The least weight.
    pub const MIN_WEIGHT: u32 = 16;
    /// The most.
    pub const MAX_WEIGHT: u32 = 4096;
    /// Not pinned.
    pub const ANY_CPU: u32 = u32::MAX;
    /// What a new vCPU has.
    pub const USUAL: Self = Self {
        weight: 256,
        cap: 0,
        cpu: Self::ANY_CPU,
        reserved: 0,
    };
}

/// What a vCPU is doing. Open.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct VcpuRun(pub u32);

impl VcpuRun {
    /// Not started, or paused while it could run.
    pub const HELD: Self = Self(0);
    /// Could run, and waits for a CPU.
    pub const READY: Self = Self(1);
    /// Runs.
    pub const RUNNING: Self = Self(2);
    /// Waits for an event, an interrupt, a time or a device.
    pub const BLOCKED: Self = Self(3);
    /// Has used up its cap.
    pub const CAPPED: Self = Self(4);
    /// Over.
    pub const ENDED: Self = Self(5);

    /// The state in words.
    pub const fn text(self) -> &'static str {
        match self {
            Self::HELD => "held",
            Self::READY => "ready",
            Self::RUNNING => "running",
            Self::BLOCKED => "blocked",
            Self::CAPPED => "capped",
            Self::ENDED => "ended",
            _ => "unknown",
        }
    }
}

/// Kinds of exits that are counted, by index; [`EXIT_NAMES`] names them.
pub const EXITS: usize = 16;

/// Names of the kinds of exits, in the order of [`VcpuInfo::exits`].
pub const EXIT_NAMES: [&str; EXITS] = [
    "host",
    "hypercall",
    "cpuid",
    "halt",
    "pause",
    "io",
    "msr",
    "cr",
    "nested-fault",
    "exception",
    "instruction",
    "window",
    "mmio",
    "other",
    "",
    "",
];

/// Times and counters of a vCPU: `VCPU_INFO`. Times are nanoseconds; their sum is the vCPU's age.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VcpuInfo {
    /// Its index in the domain.
    pub index: u32,
    /// What it is doing.
    pub run: VcpuRun,
    /// The CPU it runs on or ran on last.
    pub cpu: u32,
    /// 0.
    pub reserved: u32,
    /// How it is scheduled.
    pub schedule: Schedule,
    /// Time it ran.
    pub run_ns: u64,
    /// Time it waited for a CPU that others had.
    pub ready_ns: u64,
    /// Time it waited for an event, an interrupt, a time or a device.
    pub blocked_ns: u64,
    /// Time it was held, by a pause or before its start.
    pub held_ns: u64,
    /// Time it could have run but for its cap.
    pub capped_ns: u64,
    /// `ready_ns` and `capped_ns`: what a guest's clock shows as steal time.
    pub steal_ns: u64,
    /// How often its slice ended before it gave the CPU away.
    pub preemptions: u64,
    /// How often it took a CPU.
    pub switches: u64,
    /// How often it went to another CPU.
    pub migrations: u64,
    /// Exits by kind.
    pub exits: [u64; EXITS],
}

/// A Memory object: `MEMORY_INFO`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemoryInfo {
    /// Its size in bytes.
    pub bytes: u64,
    /// Bytes that have frames: all, once it is populated.
    pub populated: u64,
    /// 1: device memory or the boot modules, whose frames are nobody's; else 0.
    pub is_physical: u64,
}

/// What stands before the bytes of a stream (console, log, trace): `DOMAIN_CONSOLE`, `SYSTEM_LOG`, `SYSTEM_TRACE`.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct StreamHeader {
    /// Stream position of the first byte (or record) copied: later than asked for where the ring has dropped some.
    pub start: u64,
    /// Stream position behind the last there is.
    pub end: u64,
}

const _: () = assert!(size_of::<DomainConfig>() == 72);
const _: () = assert!(size_of::<DomainInfo>() == 144);
const _: () = assert!(size_of::<Schedule>() == 16);
const _: () = assert!(size_of::<VcpuInfo>() == 32 + 9 * 8 + EXITS * 8);
const _: () = assert!(size_of::<MemoryInfo>() == 24);
const _: () = assert!(size_of::<StreamHeader>() == 16);
const _: () = assert!(size_of::<VcpuState>().is_multiple_of(8));

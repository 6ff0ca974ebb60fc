//! Per-CPU data, reached through the base of GS.
//!
//! A [`Cpu`] is made once, never moved and never freed, so references to it are `'static`. Only atomics in it are written by
//! other CPUs.

#![allow(
    unsafe_code,
    reason = "the base of GS is the address of this CPU's data"
)]

use super::alarm::Alarm;
use super::apic;
use super::gdt::Tables;
use super::msr::{self, Msr};
use super::watchdog::Watch;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use crate::sync::atomic::AtomicU32;

/// [`Cpu::pending`]: the scheduler should choose anew.
pub const PENDING_RESCHEDULE: u32 = 1 << 0;
/// [`Cpu::pending`]: this CPU must stop for good.
pub const PENDING_STOP: u32 = 1 << 1;
/// [`Cpu::pending`]: an NMI arrived.
pub const PENDING_NMI: u32 = 1 << 2;
/// [`Cpu::pending`]: another CPU wants this one's attention.
pub const PENDING_KICK: u32 = 1 << 3;
/// [`Cpu::pending`]: nested tables have changed that this CPU may have cached.
pub const PENDING_FLUSH: u32 = 1 << 4;
/// [`Cpu::pending`]: a physical interrupt was noted by [`super::irq`].
pub const PENDING_IRQ: u32 = 1 << 5;

/// What the CPU knows about itself.
#[repr(C, align(64))]
pub struct Cpu {
    /// Its own address: what GS-relative code reads first.
    this: AtomicPtr<Cpu>,
    /// Its number: 0 for the one that booted, then in the order of bring-up.
    pub id: u32,
    /// Its local APIC's id. Set before the CPU is listed.
    apic_id: AtomicU32,
    /// Work noted by interrupt handlers: `PENDING_*` flags.
    pub pending: AtomicU32,
    /// When its timer is to set [`PENDING_RESCHEDULE`], in TSC ticks.
    pub(super) alarm: Alarm,
    /// NMIs that were sent to it and may not have come yet.
    awaited_nmis: AtomicU32,
    /// Whether it goes on.
    pub watch: Watch,
    /// Whether it is not to run guests.
    parked: AtomicBool,
    /// Whether it has stopped for good because another CPU ends the machine.
    stopped: AtomicBool,
    /// What its interrupts have been.
    pub counters: Counters,
    /// Its descriptor tables. Only this CPU loads them.
    pub(super) tables: Tables,
}

/// Interrupts since boot.
#[derive(Debug)]
pub struct Counters {
    /// Timer interrupts that came when armed and due.
    pub timer: AtomicU64,
    /// Kicks from other CPUs.
    pub kick: AtomicU64,
    /// Non-maskable interrupts.
    pub nmi: AtomicU64,
    /// Those that no CPU had sent.
    pub stray_nmi: AtomicU64,
    /// Breakpoint exceptions.
    pub breakpoint: AtomicU64,
    /// Spurious interrupts (SDM 12.9).
    pub spurious: AtomicU64,
    /// Errors the local APIC reported.
    pub apic_error: AtomicU64,
    /// Interrupts on vectors that nobody uses.
    pub unexpected: AtomicU64,
}

impl Counters {
    const fn new() -> Self {
        Self {
            timer: AtomicU64::new(0),
            kick: AtomicU64::new(0),
            nmi: AtomicU64::new(0),
            stray_nmi: AtomicU64::new(0),
            breakpoint: AtomicU64::new(0),
            spurious: AtomicU64::new(0),
            apic_error: AtomicU64::new(0),
            unexpected: AtomicU64::new(0),
        }
    }
}

impl Cpu {
    const fn new(id: u32) -> Self {
        Self {
            this: AtomicPtr::new(core::ptr::null_mut()),
            id,
            apic_id: AtomicU32::new(0),
            pending: AtomicU32::new(0),
            alarm: Alarm::new(),
            awaited_nmis: AtomicU32::new(0),
            watch: Watch::new(),
            parked: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            counters: Counters::new(),
            tables: Tables::new(),
        }
    }

    /// Data for another CPU, on the heap for good.
    pub(crate) fn leaked(id: u32) -> &'static Self {
        Box::leak(Box::new(Self::new(id)))
    }

    /// Its local APIC's id.
    pub fn apic_id(&self) -> u32 {
        self.apic_id.load(Ordering::Relaxed)
    }

    pub(crate) fn set_apic_id(&self, id: u32) {
        self.apic_id.store(id, Ordering::Relaxed);
    }

    /// Whether it is not to run guests: it halts, with all that it takes to live through a machine check, which Intel's CPUs tell all threads.
    pub fn is_parked(&self) -> bool {
        self.parked.load(Ordering::Acquire)
    }

    pub(super) fn park(&self) {
        self.parked.store(true, Ordering::Release);
    }

    /// Sends it an NMI.
    pub fn send_nmi(&self) {
        self.awaited_nmis.fetch_add(1, Ordering::SeqCst);
        apic::send_nmi(self.apic_id());
    }

    /// An NMI has come; whether one was sent. Asked once for each.
    pub(super) fn expects_nmi(&self) -> bool {
        // Several that were sent may have come as one, and at most one more waits behind that (SDM vol. 3 7.7.1).
        let take = |count: u32| count.checked_sub(1).map(|left| left.min(1));
        self.awaited_nmis
            .try_update(Ordering::SeqCst, Ordering::SeqCst, take)
            .is_ok()
    }

    /// Whether it has stopped for good because another CPU ends the machine.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    pub(super) fn set_stopped(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    /// Whether any `PENDING_*` flag is noted.
    #[inline(always)]
    pub fn is_pending(&self) -> bool {
        self.pending.load(Ordering::Relaxed) != 0
    }

    /// Takes the `PENDING_*` flags noted so far and clears them, but for [`PENDING_STOP`]: that one is for the NMI which is on its way.
    pub fn take_pending(&self) -> u32 {
        self.pending.fetch_and(PENDING_STOP, Ordering::SeqCst)
    }

    /// Makes this the data that [`cpu`] finds on the CPU that executes this call.
    pub(super) fn install(&'static self) {
        self.this
            .store(core::ptr::from_ref(self).cast_mut(), Ordering::Relaxed);
        // SAFETY: nothing else uses GS in the kernel, and `self` lives forever.
        unsafe { msr::write(Msr::IA32_GS_BASE, core::ptr::from_ref(self) as u64) };
        KNOWN.store(true, Ordering::Release);
    }
}

static BOOT_CPU: Cpu = Cpu::new(0);

/// Whether the boot CPU's GS base is set. Other CPUs set theirs before they run anything that asks.
static KNOWN: AtomicBool = AtomicBool::new(false);

/// The data of the CPU that booted.
pub(super) fn boot_cpu() -> &'static Cpu {
    &BOOT_CPU
}

/// This CPU's data. Not before [`super::init_boot_cpu`].
#[inline(always)]
pub fn cpu() -> &'static Cpu {
    let address: *const Cpu;
    // SAFETY: the base of GS is a `Cpu` that lives forever, and its first field is its own address (`Cpu::install`).
    unsafe {
        asm!("mov {}, gs:[0]", out(reg) address, options(nostack, preserves_flags, readonly));
        &*address
    }
}

/// This CPU's id, or 0 while only the boot CPU runs and isn't set up.
pub(crate) fn id_if_known() -> u32 {
    if KNOWN.load(Ordering::Acquire) {
        cpu().id
    } else {
        0
    }
}

/// The list that [`cpus`] shows: a table that is replaced by a larger one when full, and never freed.
static LISTED: AtomicPtr<&'static Cpu> = AtomicPtr::new(core::ptr::null_mut());
static COUNT: AtomicUsize = AtomicUsize::new(0);
static CAPACITY: AtomicUsize = AtomicUsize::new(0);

/// All CPUs that are online, by id.
pub fn cpus() -> &'static [&'static Cpu] {
    let count = COUNT.load(Ordering::Acquire);
    if count == 0 {
        return &[];
    }
    // SAFETY: `list` publishes a table with at least `COUNT` entries before it raises `COUNT`; tables are never freed and
    // entries never change.
    unsafe { core::slice::from_raw_parts(LISTED.load(Ordering::Acquire), count) }
}

/// Adds `cpu` to the list. Only the boot CPU calls this.
pub(super) fn list(cpu: &'static Cpu) {
    let count = COUNT.load(Ordering::Relaxed);
    if count == CAPACITY.load(Ordering::Relaxed) {
        let capacity = (count * 2).max(16);
        let mut larger = Vec::with_capacity(capacity);
        larger.extend_from_slice(cpus());
        CAPACITY.store(capacity, Ordering::Relaxed);
        LISTED.store(larger.leak().as_mut_ptr(), Ordering::Release);
    }
    // SAFETY: the table has room for more than `count` entries, and nobody reads this one before `COUNT` says so.
    unsafe { LISTED.load(Ordering::Relaxed).add(count).write(cpu) };
    COUNT.store(count + 1, Ordering::Release);
}

//! The machine of a model, in place of `arch` where the scheduler uses that: CPUs are threads, interrupts are flags, and the TSC
//! goes on when a model says so.

use core::cell::{Cell, RefCell};
use std::rc::Rc;

use loom::sync::{Condvar, Mutex};
use loom::thread::ThreadId;

use crate::arch::cpu::{Cpu, PENDING_RESCHEDULE};
use crate::sync::atomic::Ordering;

/// A TSC tick is a nanosecond.
const TSC_HZ: u64 = 1_000_000_000;

/// What reaches a CPU from outside.
#[derive(Clone, Copy, Default)]
struct Lines {
    /// An interrupt is pending in its local APIC: it ends HLT, and a guest's run.
    interrupt: bool,
    /// The model is over: whoever has nothing to do any more leaves.
    end: bool,
}

struct Socket {
    cpu: &'static Cpu,
    lines: Mutex<Lines>,
    changed: Condvar,
    /// The thread that is this CPU.
    thread: Cell<Option<ThreadId>>,
    /// It halts for ever.
    is_over: Cell<bool>,
    /// What it runs; 0: nothing.
    runs: Cell<usize>,
}

thread_local! {
    /// The CPUs of the model that runs on this thread.
    static SOCKETS: RefCell<Vec<Rc<Socket>>> = const { RefCell::new(Vec::new()) };
    /// CPUs are never freed. Those of one run are those of the next.
    static CPUS: Cell<&'static [&'static Cpu]> = const { Cell::new(&[]) };
    static TSC: Cell<u64> = const { Cell::new(0) };
}

/// A machine with so many CPUs.
pub(super) fn plug_in(count: u32) {
    if CPUS.get().len() != count as usize {
        CPUS.set((0..count).map(Cpu::leaked).collect::<Vec<_>>().leak());
    }
    let sockets = CPUS.get().iter().map(|cpu| {
        cpu.set_apic_id(cpu.id);
        // What the last run has left.
        cpu.take_pending();
        Rc::new(Socket {
            cpu,
            lines: Mutex::new(Lines::default()),
            changed: Condvar::new(),
            thread: Cell::new(None),
            is_over: Cell::new(false),
            runs: Cell::new(0),
        })
    });
    // What a run before has left is of no use any more.
    SOCKETS.set(sockets.collect());
    TSC.set(1);
}

/// The calling thread is this CPU from now on.
pub(crate) fn take_place(cpu: &Cpu) {
    socket(cpu.id)
        .thread
        .set(Some(loom::thread::current().id()));
}

fn socket(id: u32) -> Rc<Socket> {
    SOCKETS.with_borrow(|sockets| sockets[id as usize].clone())
}

/// The TSC goes on.
pub(super) fn pass(ticks: u64) {
    TSC.set(TSC.get() + ticks);
}

/// The CPU that the calling thread is. A thread that is none is like a CPU that no other one ever has anything to tell.
pub(crate) fn cpu() -> &'static Cpu {
    let thread = loom::thread::current().id();
    let is_it = |socket: &&Rc<Socket>| socket.thread.get() == Some(thread);
    SOCKETS
        .with_borrow(|sockets| sockets.iter().find(is_it).map(|socket| socket.cpu))
        .unwrap_or_else(nobody)
}

fn nobody() -> &'static Cpu {
    thread_local! {
        static NOBODY: &'static Cpu = Cpu::leaked(u32::MAX);
    }
    NOBODY.with(|nobody| *nobody)
}

/// All CPUs.
pub(crate) fn cpus() -> &'static [&'static Cpu] {
    CPUS.get()
}

/// The model is over for a CPU as soon as that has nothing to do.
pub(super) fn end(id: u32) {
    let socket = socket(id);
    socket.lines.lock().unwrap().end = true;
    socket.changed.notify_one();
}

/// Waits for an interrupt and takes it; false: the model is over, and there is none.
fn wait(cpu: &Cpu) -> bool {
    let socket = socket(cpu.id);
    let mut lines = socket.lines.lock().unwrap();
    loop {
        if lines.interrupt {
            lines.interrupt = false;
            return true;
        }
        if lines.end {
            return false;
        }
        lines = socket.changed.wait(lines).unwrap();
    }
}

/// The calling CPU runs a guest that never leaves by itself; false: it does so for ever.
pub(crate) fn run_guest() -> bool {
    let cpu = cpu();
    // With interrupts off: one that comes from here on ends the run at once.
    cpu.is_pending() || wait(cpu)
}

/// Whether the calling CPU halts for ever: the model is over.
pub(crate) fn is_over() -> bool {
    socket(cpu().id).is_over.get()
}

/// The calling CPU runs the vCPU at this address, and no other does.
pub(crate) fn begin_run(vcpu: usize) {
    SOCKETS.with_borrow(|sockets| {
        let elsewhere = sockets.iter().any(|socket| socket.runs.get() == vcpu);
        assert!(!elsewhere, "a vCPU runs on two CPUs");
    });
    socket(cpu().id).runs.set(vcpu);
}

/// The calling CPU runs nothing any more.
pub(crate) fn end_run() {
    socket(cpu().id).runs.set(0);
}

/// Whether this CPU runs a vCPU.
pub(crate) fn is_busy(id: u32) -> bool {
    socket(id).runs.get() != 0
}

fn interrupt(id: u32) {
    let socket = socket(id);
    socket.lines.lock().unwrap().interrupt = true;
    socket.changed.notify_one();
}

/// A CPU's timer interrupts it: the handler notes that somebody's time has come.
pub(super) fn tick(cpu: &Cpu) {
    cpu.pending.fetch_or(PENDING_RESCHEDULE, Ordering::SeqCst);
    interrupt(cpu.id);
}

/// Interrupts between CPUs.
pub(crate) mod apic {
    pub(crate) use crate::arch::apic::KICK;

    /// As the scheduler's machine does; a CPU's APIC has the CPU's number.
    pub(crate) fn send_ipi(apic_id: u32, _: u8) {
        super::interrupt(apic_id);
    }
}

/// Time, which passes when a model says so.
pub(crate) mod time {
    use super::{Cpu, TSC, TSC_HZ};

    pub(crate) fn tsc() -> u64 {
        TSC.get()
    }

    pub(crate) const fn tsc_hz() -> u64 {
        TSC_HZ
    }

    pub(crate) const fn ticks_of_us(us: u64) -> u64 {
        TSC_HZ / 1_000_000 * us
    }

    /// A model has no interrupt that is lost.
    pub(crate) const fn is_overdue(_: &Cpu, _: u64) -> bool {
        false
    }

    /// The model itself lets the timer's interrupt come: [`super::tick`].
    pub(crate) const fn arm(_: u64) {}

    pub(crate) const fn disarm() {}
}

/// Halting.
pub(crate) mod trap {
    use super::{Cpu, cpu, socket, wait};

    pub(crate) fn enable_and_halt() {
        let cpu = cpu();
        if !wait(cpu) {
            socket(cpu.id).is_over.set(true);
        }
    }

    pub(crate) const fn interrupt_window() {}

    pub(crate) fn halt_forever() -> ! {
        unreachable!("a model's CPUs are all known to its scheduler")
    }

    pub(crate) const fn tell_stray_nmi(_: &Cpu) {}
}

/// Lines of devices, which there are none of.
pub(crate) mod irq {
    pub(crate) fn take_pending() -> impl Iterator<Item = u8> {
        core::iter::empty()
    }
}

/// No CPU of a model speculates.
pub(crate) mod speculation {
    pub(crate) const fn parts_domains() -> bool {
        false
    }

    pub(crate) const fn barrier() {}

    pub(crate) const fn clear_buffers() {}
}

/// No CPU of a model hangs: it would be told as a deadlock.
pub(crate) mod watchdog {
    use super::Cpu;

    pub(crate) const fn look_at(_: &Cpu, _: u64) {}
}

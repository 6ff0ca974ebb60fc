//! Which vCPU runs where and when: one queue of those that are ready, slices of equal length, idle CPUs halt.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use spin::Mutex;

use crate::arch::cpu::Cpu;
use crate::arch::{apic, power, time, trap};
use crate::boot::{cmdline, modules};
use crate::guests::{self, Guest};
use crate::mem::frames::{Kind, frames};
use crate::object::{DomainId, Ending, Stop, Vcpu};
use crate::rules::cpuid::CpuidTable;
use crate::virt::Vendor;

/// How long a vCPU runs before others of its CPU have their turn.
const SLICE_MS: u64 = 10;
/// How many guests of the list live at the same time.
const LIVE: usize = 2;

/// All that the CPUs share in running guests.
pub struct Scheduler<V: Vendor> {
    state: Mutex<State<V>>,
    cpuid: CpuidTable,
    next_domain: AtomicU32,
    /// Grows with every domain's end; a CPU that has seen less flushes before it enters a guest.
    flush_epoch: AtomicU64,
}

struct State<V: Vendor> {
    /// Ready to run.
    ready: VecDeque<Box<Vcpu<V>>>,
    /// Guests of the list that have not been started, the next one last.
    waiting: Vec<Guest>,
    /// Domains that were started and have not ended, those that are being built included.
    live: usize,
    /// Domains that ended otherwise than expected, or could not be built.
    surprises: u32,
    /// A CPU has been told to end the machine; the others have nothing left to do.
    finishing: bool,
    /// CPUs that halt for want of work.
    idle: Vec<&'static Cpu>,
}

/// What a CPU does next.
enum Work<V: Vendor> {
    Build(Guest),
    Run(Box<Vcpu<V>>),
    Idle,
    Finish { surprises: u32 },
}

impl<V: Vendor> Scheduler<V> {
    /// A scheduler that will start these guests.
    pub fn new(list: &[Guest], cpuid: CpuidTable) -> Self {
        Self {
            state: Mutex::new(State {
                ready: VecDeque::new(),
                waiting: list.iter().rev().copied().collect(),
                live: 0,
                surprises: 0,
                finishing: false,
                idle: Vec::new(),
            }),
            cpuid,
            next_domain: AtomicU32::new(1),
            flush_epoch: AtomicU64::new(0),
        }
    }

    /// A CPU's life from here on.
    pub fn run(&self, cpu: &'static Cpu, hardware: &mut V::Cpu) -> ! {
        let mut flushed = 0;
        loop {
            match self.next(cpu) {
                Work::Build(guest) => self.build(&guest, hardware),
                Work::Run(vcpu) => {
                    let epoch = self.flush_epoch.load(Ordering::Acquire);
                    if epoch != flushed {
                        V::flush_all(hardware);
                        flushed = epoch;
                    }
                    self.run_slice(vcpu, cpu, hardware);
                }
                Work::Idle => {
                    time::disarm();
                    trap::enable_and_halt();
                }
                Work::Finish { surprises } => {
                    V::disable(hardware);
                    let left = {
                        let frames = frames();
                        frames.count(Kind::GuestRam) + frames.count(Kind::NestedTable)
                    };
                    log::info!("guests' memory left: {left} frames");
                    log::info!(
                        "all guests have ended, {surprises} of them otherwise than expected"
                    );
                    power::end(cmdline::options().end, surprises);
                }
            }
        }
    }

    fn next(&self, cpu: &'static Cpu) -> Work<V> {
        let mut state = self.state.lock();
        state.idle.retain(|idle| idle.id != cpu.id);
        if state.live < LIVE
            && let Some(guest) = state.waiting.pop()
        {
            state.live += 1;
            return Work::Build(guest);
        }
        if let Some(vcpu) = state.ready.pop_front() {
            return Work::Run(vcpu);
        }
        if state.live == 0 && state.waiting.is_empty() && !state.finishing {
            state.finishing = true;
            return Work::Finish {
                surprises: state.surprises,
            };
        }
        // Still under the lock: whoever makes work sees this CPU in the list and sends it an interrupt, which stays
        // pending until the halt.
        state.idle.push(cpu);
        Work::Idle
    }

    /// Puts a vCPU at the end of the queue and wakes a CPU that has nothing to do.
    fn make_ready(&self, vcpu: Box<Vcpu<V>>) {
        let mut state = self.state.lock();
        state.ready.push_back(vcpu);
        Self::wake(&mut state);
    }

    fn wake(state: &mut State<V>) {
        if let Some(idle) = state.idle.pop() {
            apic::send_ipi(idle.apic_id(), apic::KICK);
        }
    }

    fn build(&self, guest: &Guest, hardware: &mut V::Cpu) {
        let id = DomainId(self.next_domain.fetch_add(1, Ordering::Relaxed));
        let mut path = heapless::String::<64>::new();
        let named = path
            .push_str("guests/")
            .and_then(|()| path.push_str(guest.name));
        let image = named.ok().and_then(|()| modules::modules().find(&path));
        let Some(image) = image else {
            log::error!("guest \"{}\": the module archive has no {path}", guest.name);
            return self.forget(true);
        };
        match guests::build::<V>(id, guest, image, self.cpuid.clone(), hardware) {
            Ok(vcpu) => {
                log::info!(
                    "domain {id} \"{}\" starts: {} KiB of RAM",
                    guest.name,
                    guest.ram >> 10
                );
                self.make_ready(vcpu);
            }
            Err(why) => {
                log::error!("guest \"{}\" could not be built: {why}", guest.name);
                self.forget(true);
            }
        }
    }

    fn run_slice(&self, mut vcpu: Box<Vcpu<V>>, cpu: &'static Cpu, hardware: &mut V::Cpu) {
        let deadline = time::tsc() + time::tsc_hz() / 1000 * SLICE_MS;
        let stop = vcpu.run(cpu, hardware, deadline);
        let guest = guests::listed(vcpu.domain.name());
        let spent_ms = time::ms_of_ticks(vcpu.run_ticks);
        match stop {
            Stop::Ended(ending) => self.end(*vcpu, ending),
            Stop::Blocked => self.end(*vcpu, Ending::Halted),
            Stop::Preempted | Stop::Yielded if spent_ms >= guest.budget_ms => {
                self.end(*vcpu, Ending::OutOfTime)
            }
            Stop::Preempted | Stop::Yielded => self.make_ready(vcpu),
        }
    }

    /// Reports a domain's end and takes everything back.
    fn end(&self, vcpu: Vcpu<V>, ending: Ending) {
        let guest = guests::listed(vcpu.domain.name());
        let expected = guest.expected.matches(&ending);
        vcpu.domain.finish_console();
        log::info!(
            "domain {} \"{}\" ended: {ending}, rip {:#x}{}",
            vcpu.domain.id,
            vcpu.domain.name(),
            vcpu.last_rip,
            if expected { "" } else { " (not expected)" },
        );
        log::info!(
            "domain {} \"{}\" ran {} ms, was preempted {} times, left {} times:{}",
            vcpu.domain.id,
            vcpu.domain.name(),
            time::ms_of_ticks(vcpu.run_ticks),
            vcpu.preemptions,
            vcpu.counters.total(),
            vcpu.counters,
        );
        let Vcpu { domain, hw, .. } = vcpu;
        drop(hw);
        // A later domain may get the same frames for its tables: every CPU forgets what it cached before it enters that one.
        // Nobody runs this domain any more. This comes before its frames are free: another CPU may build a domain from them,
        // and run it, before this one gets any further.
        self.flush_epoch.fetch_add(1, Ordering::Release);
        match Arc::try_unwrap(domain) {
            Ok(domain) => domain.free(),
            Err(domain) => log::error!("domain {} is still in use and stays in memory", domain.id),
        }
        self.forget(!expected);
    }

    fn forget(&self, surprise: bool) {
        let mut state = self.state.lock();
        state.live -= 1;
        state.surprises += u32::from(surprise);
        // Whoever idles may build the next guest, or finish.
        while !state.idle.is_empty() {
            Self::wake(&mut state);
        }
    }
}

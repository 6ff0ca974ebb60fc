//! A vCPU: the vendor's part and what the common code switches and counts.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use core::fmt::{self, Write};

use plinth_abi::VcpuState;

use super::{BuildError, Domain, Ending};
use crate::arch::cpu::Cpu;
use crate::arch::fpu::XsaveArea;
use crate::arch::{debug, fpu, time, trap};
use crate::exit::{self, LengthCache, Next};
use crate::rules::cpuid::VcpuView;
use crate::rules::cr::{self, is_pae_paging};
use crate::rules::msr::MsrState;
use crate::trace::{Counter, Counters};
use crate::virt::{BadState, Vcpu as _, Vendor};

/// A guest's CPU. It belongs to one host CPU at a time: whoever holds it may run it.
pub struct Vcpu<V: Vendor> {
    /// The domain whose memory and handles it sees.
    pub domain: Arc<Domain<V>>,
    /// Number within the domain, from 0.
    pub id: u32,
    /// Registers and control structure. Only to be used between attach and detach.
    pub hw: V::Vcpu,
    /// CR8, where no hardware keeps it: the priority class that interrupts must exceed, 0 to 15.
    pub task_priority: u8,
    /// MSRs that no hardware switches.
    pub msrs: MsrState,
    /// Lengths of instructions that exited, where the CPU does not tell them.
    pub lengths: LengthCache,
    /// Exits by reason.
    pub counters: Counters,
    /// TSC ticks that it has run.
    pub run_ticks: u64,
    /// How often its slice ended before it gave the CPU away.
    pub preemptions: u64,
    /// RIP when it last left.
    pub last_rip: u64,
    /// XCR0, while the vCPU has no CPU.
    xcr0: u64,
    vector_state: XsaveArea,
    debug_addresses: [u64; 4],
}

/// The leaf of XSAVE, which alone follows XCR0.
const LEAF_XSAVE: u32 = 0xd;

/// Why a run of a vCPU came to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// Its slice is over, or the CPU has something else to do.
    Preempted,
    /// It gave the rest of its slice away.
    Yielded,
    /// It waits for an event.
    Blocked,
    /// It is over.
    Ended(Ending),
}

impl<V: Vendor> Vcpu<V> {
    /// A vCPU of `domain` in the state after reset.
    pub fn new(domain: Arc<Domain<V>>, id: u32) -> Result<Box<Self>, BuildError> {
        let hw = V::Vcpu::new(domain.hardware(), domain.nested_root())
            .map_err(|_| BuildError::NoMemory)?;
        let vector_state = XsaveArea::new().ok_or(BuildError::NoMemory)?;
        Ok(Box::new(Self {
            domain,
            id,
            hw,
            task_priority: 0,
            msrs: MsrState::new(id == 0),
            lengths: LengthCache::default(),
            counters: Counters::default(),
            run_ticks: 0,
            preemptions: 0,
            last_rip: 0,
            xcr0: 1,
            vector_state,
            debug_addresses: [0; 4],
        }))
    }

    /// Sets the whole register state. The vCPU is not attached; it is so for the time of the call.
    pub fn set_state(&mut self, cpu: &mut V::Cpu, state: &VcpuState) -> Result<(), BadState> {
        let supported = self.domain.cpuid.features().xcr0;
        // Without XSAVE there is no XCR0, and the state says what a reset leaves in it.
        if state.xcr0 != 1 && cr::write_xcr0(state.xcr0, supported).is_err() {
            return Err(BadState(
                "XCR0 has a component that is not offered, or lacks one that another needs",
            ));
        }
        self.hw.attach(cpu);
        let result = self
            .hw
            .set_state(state)
            .and_then(|()| self.load_pdptes(state));
        self.hw.detach(cpu);
        result?;
        self.xcr0 = state.xcr0;
        self.debug_addresses = state.dr;
        Ok(())
    }

    /// Loads the four top entries of PAE paging, where the state translates by it.
    fn load_pdptes(&mut self, state: &VcpuState) -> Result<(), BadState> {
        if !is_pae_paging(state.cr0, state.cr4, state.efer) {
            return Ok(());
        }
        let entries = self.domain.read_pdptes(state.cr3);
        let entries =
            entries.map_err(|_| BadState("PAE paging with CR3 where there is no memory"))?;
        self.hw.set_pdptes(entries)
    }

    /// Runs the guest on the calling CPU until its slice ends at `deadline` (TSC) or something stops it.
    pub fn run(&mut self, cpu: &'static Cpu, hardware: &mut V::Cpu, deadline: u64) -> Stop {
        self.attach(hardware);
        let start = time::tsc();
        cpu.take_pending();
        time::arm(deadline);
        self.hw.set_deadline(hardware, deadline);
        let stop = self.run_loop(cpu, hardware, deadline);
        self.run_ticks += time::tsc().saturating_sub(start);
        self.last_rip = self.hw.rip();
        if let Stop::Ended(ending) = stop {
            self.report(ending);
        }
        self.detach(hardware);
        stop
    }

    /// Enter, serve, enter again. Everything on this path is counted in instructions by the benchmark.
    #[inline(always)]
    fn run_loop(&mut self, cpu: &'static Cpu, hardware: &mut V::Cpu, deadline: u64) -> Stop {
        loop {
            if cpu.is_pending() {
                self.preemptions += 1;
                return Stop::Preempted;
            }
            let exit = self.hw.run(hardware);
            let (counter, next) = exit::handle(self, exit);
            self.counters.bump(counter);
            if matches!(counter, Counter::Host | Counter::Exception) {
                // The interrupt that ended the run is still pending: it is taken here, through the host's IDT. A slice
                // that the preemption timer ended may have left none. An exception may be raised again by its own
                // delivery, at every entry anew (CVE-2015-5307, CVE-2015-8104): that comes before any interrupt could end
                // the run, so the host's have to be taken here too.
                trap::interrupt_window();
                if time::tsc() >= deadline {
                    self.preemptions += 1;
                    return Stop::Preempted;
                }
            }
            match next {
                Next::Resume => {}
                Next::Yield => return Stop::Yielded,
                Next::Block => return Stop::Blocked,
                Next::End(ending) => return Stop::Ended(ending),
            }
        }
    }

    /// Shows the state of a guest whose end is not its own wish, while its registers are at hand.
    fn report(&self, ending: Ending) {
        let mut text = String::new();
        // A string takes all that is written to it.
        let _ = match ending {
            Ending::Status(_) | Ending::OutOfTime | Ending::Halted => return,
            Ending::EntryFailed(_) => self.hw.dump(&mut text),
            _ => write!(text, "{}", Registers(&self.hw.state())),
        };
        log::info!(
            "\"{}\" vcpu {} as it was when it left for good:",
            self.domain.name(),
            self.id
        );
        for line in text.lines() {
            log::info!("  {line}");
        }
    }

    /// The CPUID leaf as this vCPU sees it now.
    #[inline(always)]
    pub fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        match self.domain.cpuid.plain(leaf) {
            Some(registers) => registers,
            None => self.cpuid_of_vcpu(leaf, subleaf),
        }
    }

    /// A leaf that depends on the vCPU or on the subleaf.
    #[inline(never)]
    fn cpuid_of_vcpu(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        let view = VcpuView {
            apic_id: self.id,
            cr4: self.hw.cr4(),
            xcr0: if leaf == LEAF_XSAVE { fpu::xcr0() } else { 0 },
        };
        self.domain.cpuid.get(leaf, subleaf, &view)
    }

    /// Loads what the guest owns of this CPU: the vendor's part, vector state, debug addresses.
    fn attach(&mut self, hardware: &mut V::Cpu) {
        self.hw.attach(hardware);
        fpu::restore(&self.vector_state, self.xcr0);
        debug::set_addresses(&self.debug_addresses);
    }

    /// Saves it again, so that the next vCPU finds nothing of this one.
    fn detach(&mut self, hardware: &mut V::Cpu) {
        self.debug_addresses = debug::addresses();
        self.xcr0 = fpu::save(&mut self.vector_state);
        self.hw.detach(hardware);
    }
}

/// A vCPU's registers as a few lines of text.
struct Registers<'a>(&'a VcpuState);

impl fmt::Display for Registers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = self.0;
        writeln!(
            f,
            "rip {:016x} rsp {:016x} rflags {:08x}",
            s.rip, s.rsp, s.rflags
        )?;
        writeln!(
            f,
            "rax {:016x} rbx {:016x} rcx {:016x} rdx {:016x}",
            s.rax, s.rbx, s.rcx, s.rdx
        )?;
        writeln!(
            f,
            "rsi {:016x} rdi {:016x} rbp {:016x} r8  {:016x}",
            s.rsi, s.rdi, s.rbp, s.r8
        )?;
        writeln!(
            f,
            "r9  {:016x} r10 {:016x} r11 {:016x} r12 {:016x}",
            s.r9, s.r10, s.r11, s.r12
        )?;
        writeln!(
            f,
            "r13 {:016x} r14 {:016x} r15 {:016x} cr2 {:016x}",
            s.r13, s.r14, s.r15, s.cr2
        )?;
        writeln!(
            f,
            "cr0 {:08x} cr3 {:016x} cr4 {:08x} efer {:04x}",
            s.cr0, s.cr3, s.cr4, s.efer
        )?;
        write!(
            f,
            "cs {:04x} base {:x} limit {:x} attributes {:03x}",
            s.cs.selector, s.cs.base, s.cs.limit, s.cs.attributes
        )
    }
}

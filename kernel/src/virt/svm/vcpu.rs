//! A vCPU: its control block, and what is due before the next entry.
//!
//! Whatever is changed here is noted in `changes`; an entry with nothing noted costs nothing but itself. That is why no
//! other code gets a mutable view of the block.

#![allow(unsafe_code, reason = "enters the guest")]

use core::arch::asm;
use core::fmt;

use bitflags::bitflags;
use plinth_abi::{Segment, VcpuState};

use super::enter::{self, Context, Serve};
use super::events::Events;
use super::exit_code::ExitCode;
use super::exits::{self, Outcome, Report};
use super::features::{Features, Identity};
use super::frame::Framed;
use super::registers::{self, RFLAGS_FIXED, RFLAGS_IF};
use super::shadow::Shadow;
use super::validate::{self, efer};
use super::vmcb::{
    CleanBits, EventInjection, Exceptions, Intercepts1, Intercepts2, Intercepts3, NestedControl,
    RegisterSet, TlbControl, VirtualInterrupt, Vmcb,
};
use super::{Svm, SvmCpu, SvmDomain};
use crate::arch::debug;
use crate::arch::msr::{self, Msr};
use crate::mem::Hpa;
use crate::virt::event::vector;
use crate::virt::exit::EntryFailure;
use crate::virt::guard::Guards;
use crate::virt::tag::{Flush, Tag};
use crate::virt::{
    BadState, Event, EventKind, Exit, Gprs, OutOfMemory, Runner, SegmentName, Served, Vcpu,
};

/// PAUSEs that a guest executes in a row before it is noticed, and the cycles between two that make a row.
const PAUSE_COUNT: u16 = 3000;
const PAUSE_THRESHOLD: u16 = 128;

/// What of the debug registers exits while they are watched.
const DEBUG_READS: RegisterSet = RegisterSet::DEBUG_ADDRESSES;
const DEBUG_WRITES: RegisterSet = RegisterSet::DEBUG_ADDRESSES.union(RegisterSet::DEBUG_CONTROL);

bitflags! {
    /// What has to be done before the next entry. The low half are the clean bits that have to be cleared.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    struct Changes: u32 {
        /// What the CPU cached of the guest's own page tables is no longer true.
        const FLUSH = 1 << 27;
        /// What VMRUN checks was set from outside.
        const VALIDATE = 1 << 28;
        /// An event is to be injected, or waits.
        const EVENT = 1 << 29;
        /// The last entry had something to do: EVENTINJ, TLB_CONTROL and clean bits go back to nothing.
        const SETTLE = 1 << 30;
        const _ = !0;
    }
}

impl Changes {
    const fn of(group: CleanBits) -> Self {
        Self::from_bits_retain(group.bits())
    }

    /// What the CPU need not look at.
    const fn unchanged(self) -> CleanBits {
        CleanBits::all().difference(CleanBits::from_bits_truncate(self.bits()))
    }
}

/// A vCPU under SVM.
#[derive(Debug)]
pub struct SvmVcpu {
    context: Context,
    vmcb: Framed<Vmcb>,
    changes: Changes,
    events: Events,
    /// CR4 as the guest wrote it; the block's may have more (see `SvmCpu::forced_cr4`).
    guest_cr4: u64,
    forced_cr4: u64,
    /// TSC_AUX, which RDTSCP and RDPID read and no entry switches. Writes exit, so this is the truth.
    tsc_aux: u64,
    /// SPEC_CTRL as the guest has set it. Writes exit, so this is the truth.
    spec_ctrl: u64,
    shadow: Shadow,
    /// The interrupt window opens again at the next exit.
    window_waits: bool,
    /// The next exit is looked at, whatever it is: for a shadow that is kept, or a window that waits.
    is_looked_at: bool,
    tag: Tag,
    /// The CPU it was attached to last.
    cpu: Option<u32>,
    identity: Identity,
}

impl SvmVcpu {
    fn touch(&mut self, group: CleanBits) {
        self.changes |= Changes::of(group);
    }

    fn window_is_open(&self) -> bool {
        self.vmcb.control.intercepts1.contains(Intercepts1::VINTR)
    }

    fn set_window(&mut self, open: bool) {
        let control = &mut self.vmcb.control;
        control.intercepts1.set(Intercepts1::VINTR, open);
        // The interrupt is never delivered: it exits where it would be. The guest's TPR is not asked.
        control.virtual_interrupt.set_irq(open);
        control.virtual_interrupt.set_ignore_tpr(open);
        self.touch(CleanBits::INTERCEPTS | CleanBits::VIRTUAL_INTERRUPT);
    }

    /// Has the next VMRUN deliver an event.
    ///
    /// Where EVENTINJ is not to be trusted with an external interrupt, that goes as a virtual interrupt that is not intercepted
    /// (APM2 15.21.4): with IF set, as it is here, the CPU takes it before the guest's first instruction. Where the window
    /// stands open for another, there is EVENTINJ only.
    fn send(&mut self, event: Option<EventInjection>) {
        let mut injected = event.unwrap_or(EventInjection::NONE);
        if self.identity.injects_twice
            && matches!(injected.event(), Some(event) if event.kind == EventKind::External)
            && !self.window_is_open()
        {
            let offer = &mut self.vmcb.control.virtual_interrupt;
            offer.set_irq(true);
            offer.set_ignore_tpr(true);
            offer.set_vector(injected.vector());
            self.touch(CleanBits::VIRTUAL_INTERRUPT);
            injected = EventInjection::NONE;
        }
        self.vmcb.control.event_injection = injected;
    }

    /// The virtual interrupt that the guest has not taken, because something else ended its run first.
    fn take_back_offer(&mut self) -> Option<u8> {
        if self.window_is_open() || !self.vmcb.control.virtual_interrupt.irq() {
            return None;
        }
        let offer = &mut self.vmcb.control.virtual_interrupt;
        offer.set_irq(false);
        let vector = offer.vector();
        self.touch(CleanBits::VIRTUAL_INTERRUPT);
        Some(vector)
    }

    fn watch_iret(&mut self) {
        let (is, should) = (
            self.vmcb.control.intercepts1.contains(Intercepts1::IRET),
            self.events.watches_iret(),
        );
        if is != should {
            self.vmcb.control.intercepts1.set(Intercepts1::IRET, should);
            self.touch(CleanBits::INTERCEPTS);
        }
    }

    fn entry_failure(&self) -> Exit {
        let reason = match validate::validate(&self.vmcb, self.identity.limits()) {
            Err(rule) => rule,
            Ok(()) => "VMRUN refuses a state that breaks no rule Plinth knows",
        };
        Exit::EntryFailed(EntryFailure {
            reason,
            code: ExitCode::INVALID.0,
        })
    }

    /// Sees to it that the ASID is this vCPU's on this CPU.
    #[inline(never)]
    fn take_tag(&mut self, cpu: &mut SvmCpu) {
        if cpu.tags.validate(&mut self.tag) == Flush::All {
            cpu.flush = true;
        }
        if self.vmcb.control.asid != self.tag.value {
            self.vmcb.control.asid = self.tag.value;
            self.touch(CleanBits::ASID);
        }
    }

    /// A register that governs paging was written for the guest: what the CPU would have flushed is flushed, and VMRUN's
    /// rules are checked.
    fn paging_changed(&mut self) {
        self.changes |=
            Changes::of(CleanBits::CONTROL_REGISTERS) | Changes::VALIDATE | Changes::FLUSH;
    }

    /// What the last entry did is done.
    #[inline(always)]
    fn settle(&mut self) {
        let control = &mut self.vmcb.control;
        control.clean = CleanBits::all();
        control.tlb_control = TlbControl::NOTHING;
        control.event_injection = EventInjection::NONE;
        self.changes = Changes::empty();
    }

    /// Does what is due before the next entry, if anything is: mostly to settle the last, or to deliver an interrupt.
    ///
    /// # Errors
    /// As [`Self::prepare`].
    #[inline(always)]
    fn make_ready(&mut self, cpu: &mut SvmCpu) -> Result<(), Exit> {
        if cpu.flush {
            return self.prepare(cpu);
        }
        if self.changes.is_empty() {
            return Ok(());
        }
        if self.changes == Changes::SETTLE {
            self.settle();
            return Ok(());
        }
        if (Changes::EVENT | Changes::SETTLE).contains(self.changes)
            && let Some(vector) = self.events.take_interrupt()
        {
            self.send_alone(vector);
            return Ok(());
        }
        self.prepare(cpu)
    }

    /// Has the next VMRUN deliver an interrupt, and nothing else.
    #[inline(always)]
    fn send_alone(&mut self, vector: u8) {
        self.settle();
        self.send(EventInjection::of(Event::external(vector)));
        self.vmcb.control.clean = self.changes.unchanged();
        self.changes = Changes::SETTLE;
    }

    /// Does what `changes` and the CPU's pending flush ask for.
    ///
    /// # Errors
    /// The rule of VMRUN that the block breaks; everything stays as it was then.
    #[inline(never)]
    fn prepare(&mut self, cpu: &mut SvmCpu) -> Result<(), Exit> {
        if self.changes.contains(Changes::FLUSH) {
            // A new ASID has nothing cached. It is cheaper than a flush, and every CPU can do it.
            self.tag = Tag::NONE;
            self.take_tag(cpu);
            self.changes -= Changes::FLUSH;
        }
        let validates = self.changes.contains(Changes::VALIDATE);
        let before = validates.then_some(self.events);
        let event = self
            .events
            .take(self.vmcb.save.rip)
            .map(|event| registers::as_delivered(&self.vmcb.save, event))
            .and_then(EventInjection::of);
        self.watch_iret();
        self.send(event);
        if let Some(before) = before
            && validate::validate(&self.vmcb, self.identity.limits()).is_err()
        {
            let failure = self.entry_failure();
            let _ = self.take_back_offer();
            self.events = before;
            self.watch_iret();
            return Err(failure);
        }
        let control = &mut self.vmcb.control;
        control.clean = self.changes.unchanged();
        control.tlb_control = if cpu.flush {
            TlbControl::FLUSH_ALL
        } else {
            TlbControl::NOTHING
        };
        let settle = event.is_some() || cpu.flush || control.clean != CleanBits::all();
        cpu.flush = false;
        self.changes = Changes::empty();
        self.changes.set(Changes::SETTLE, settle);
        self.changes.set(Changes::EVENT, self.events.nmi_waits());
        Ok(())
    }

    /// Why the guest has left.
    #[inline(always)]
    fn why(&mut self, code: ExitCode) -> Exit {
        if self.is_looked_at {
            return self.left(code);
        }
        // An instruction that exits interrupts no delivery and comes after a virtual interrupt, so neither is looked at.
        match code {
            ExitCode::VMMCALL => Exit::Hypercall,
            ExitCode::CPUID => Exit::Cpuid,
            ExitCode::MSR if self.vmcb.control.exit_info1 == 0 => Exit::ReadMsr,
            ExitCode::MSR => Exit::WriteMsr,
            ExitCode::IOIO => Exit::Io(exits::io(self.vmcb.control.exit_info1)),
            ExitCode::HLT => Exit::Halt,
            ExitCode::NPF => match self.nested_fault() {
                Some(exit) => exit,
                None => self.left(code),
            },
            _ => self.left(code),
        }
    }

    /// A nested fault; not one that a delivery or an offer was interrupted by, which is looked at closely.
    #[inline(always)]
    fn nested_fault(&self) -> Option<Exit> {
        let control = &self.vmcb.control;
        let is_alone = !control.exit_int_info.is_valid() && !control.virtual_interrupt.irq();
        is_alone.then(|| exits::nested_fault(control.exit_info1, control.exit_info2))
    }

    /// Every exit but those that are to be quick.
    #[inline(never)]
    fn left(&mut self, code: ExitCode) -> Exit {
        if code == SERVED {
            return Exit::Served;
        }
        let report = Report::of(
            &self.vmcb.control,
            self.identity.features.contains(Features::DECODE_ASSISTS),
        );
        self.mend(report.code);
        if self.keep_shadow(report.code) {
            return Exit::Host;
        }
        let offer = self.take_back_offer().map(Event::external);
        let outcome = exits::decode(report);
        if matches!(outcome, Outcome::Invalid) {
            if let Some(event) = self.vmcb.control.event_injection.event().or(offer) {
                self.requeue(event);
            }
            return self.entry_failure();
        }
        // QEMU keeps V_IRQ while it delivers the interrupt, and says that an exit then has interrupted an exception.
        if let Some(event) = offer.or_else(|| exits::requeue(report.interrupted)) {
            self.requeue(event);
        }
        match outcome {
            Outcome::Exit(exit) => exit,
            Outcome::InterruptWindow => {
                self.set_window(false);
                Exit::InterruptWindow
            }
            Outcome::Iret => {
                self.events.iret(self.vmcb.save.rip);
                self.changes |= Changes::EVENT;
                Exit::Host
            }
            Outcome::DoubleFault if !registers::has_gate(&self.vmcb.save, vector::DF) => {
                Exit::TripleFault
            }
            Outcome::DoubleFault => {
                self.requeue(Event::DF);
                Exit::Host
            }
            Outcome::MachineCheck => {
                enter::raise_machine_check();
                Exit::Host
            }
            Outcome::Invalid => self.entry_failure(),
        }
    }

    /// Makes the registers what the manual says they are at this exit, where an implementation differs.
    fn mend(&mut self, code: ExitCode) {
        const CR0_WRITE: ExitCode = ExitCode(0x10);
        const DB: ExitCode = ExitCode::exception(vector::DB);
        match code {
            // The write has not been made, but Bochs has changed EFER.LMA as if it had.
            CR0_WRITE => {
                let cr0 = self.vmcb.save.cr0;
                registers::set_cr0(&mut self.vmcb.save, cr0);
                self.touch(CleanBits::CONTROL_REGISTERS);
            }
            // DR6 and DR7 are as the handler would see them (APM2 15.12.2): without general detection.
            DB => {
                self.vmcb.save.dr7 &= !registers::DR7_GD;
                self.touch(CleanBits::DEBUG_REGISTERS);
            }
            _ => {}
        }
    }

    /// Keeps the interrupt shadow; whether the window has opened in it. Then the guest gets past the instruction first: a HLT exits, and
    /// others open the window again when they do.
    fn keep_shadow(&mut self, code: ExitCode) -> bool {
        let is_told = self.vmcb.control.interrupt_state.shadow();
        let holds = self.shadow.at_exit(code, self.vmcb.save.rip, is_told);
        self.vmcb.control.interrupt_state.set_shadow(holds);
        if core::mem::take(&mut self.window_waits) {
            self.set_window(true);
        }
        let is_early = holds && code == ExitCode::VINTR;
        if is_early {
            self.set_window(false);
            self.window_waits = true;
        }
        self.is_looked_at = holds || is_early;
        is_early
    }

    fn requeue(&mut self, event: Event) {
        self.events.requeue(event);
        self.changes |= Changes::EVENT;
    }

    /// The length of an instruction, if the next one is there. What is no length is none: RIP wrapped, or the CPU left the
    /// field alone.
    #[inline(always)]
    fn length_to(&self, next: u64) -> Option<u8> {
        match next.wrapping_sub(self.vmcb.save.rip) {
            length @ 1..=15 => Some(length as u8),
            _ => None,
        }
    }

    /// Of IN and OUT every CPU tells where the next instruction is (APM2 15.10.2).
    #[inline(always)]
    fn length_of_io(&self) -> Option<u8> {
        self.length_to(self.vmcb.control.exit_info2)
    }

    fn load_tsc_aux(&self) {
        if self.identity.has_tsc_aux() {
            // SAFETY: the host does not use this register.
            unsafe { msr::write(Msr::IA32_TSC_AUX, self.tsc_aux) };
        }
    }

    /// Has the guest's next runs happen with its SPEC_CTRL. No clean bit covers the control block's (APM2 15.15.3).
    fn put_spec_ctrl(&mut self) {
        if self.identity.features.contains(Features::SPEC_CTRL) {
            self.vmcb.save.spec_ctrl = self.spec_ctrl;
        } else {
            self.context.guards.set_spec_ctrl(self.spec_ctrl);
        }
    }

    /// It is attached to another CPU than before.
    #[inline(never)]
    fn come_to(&mut self, cpu: &SvmCpu) {
        // What this CPU may have cached of the block is of another time, or of another block in the same frame.
        self.touch(CleanBits::all());
        self.cpu = Some(cpu.id);
        self.context.host = cpu.host.hpa();
        self.context.guards = Guards::new(&cpu.speculation, 0);
        self.put_spec_ctrl();
        self.forced_cr4 = cpu.forced_cr4;
        registers::set_cr4(&mut self.vmcb, self.guest_cr4, self.forced_cr4);
    }

    fn put_state(&mut self, state: &VcpuState) {
        registers::set_state(
            &mut self.vmcb,
            &mut self.context.gprs,
            state,
            self.forced_cr4,
        );
        self.guest_cr4 = state.cr4;
        self.tsc_aux = state.tsc_aux;
        self.changes |= Changes::of(CleanBits::all()) | Changes::EVENT;
        self.paging_changed();
    }
}

/// Writes CR2, which the kernel itself does not use. VMRUN loads it from the block (APM2 15.5.1); Bochs 2.7 does not.
fn load_cr2(value: u64) {
    // SAFETY: CR2 has no effect on anything.
    unsafe { asm!("mov cr2, {}", in(reg) value, options(nomem, nostack, preserves_flags)) };
}

/// What [`enter::enter`] returns where an exit has been served, and something is due before the next entry: the code of an access to CR1, which there
/// is none of.
const SERVED: ExitCode = ExitCode(1);

/// Has `runner` serve an exit. Whatever is not usual follows in another function: what is has no registers to save.
#[inline(always)]
fn pass<R: Runner<Svm>>(runner: &mut R, serve: impl FnOnce(&mut R) -> Served) -> u64 {
    let (vcpu, _) = runner.parts();
    let code = vcpu.vmcb.control.exit_code;
    if vcpu.is_looked_at {
        return code.0;
    }
    vcpu.context.gprs.rax = vcpu.vmcb.save.rax;
    let served = serve(runner);
    let (vcpu, _) = runner.parts();
    match served {
        Served::No => return code.0,
        Served::Interrupted => return deliver(runner),
        Served::Yes | Served::Delivered => {}
    }
    vcpu.vmcb.save.rax = vcpu.context.gprs.rax;
    // What is due for an interrupt that was put into the block has been done with that.
    if served == Served::Delivered || vcpu.changes.is_empty() {
        return enter::AGAIN;
    }
    prepare(runner)
}

/// Has `runner` deliver an interrupt.
#[inline(never)]
fn deliver<R: Runner<Svm>>(runner: &mut R) -> u64 {
    let is_done = runner.deliver();
    let (vcpu, _) = runner.parts();
    vcpu.vmcb.save.rax = vcpu.context.gprs.rax;
    if is_done { prepare(runner) } else { SERVED.0 }
}

/// Does what is due before the next entry.
fn prepare<R: Runner<Svm>>(runner: &mut R) -> u64 {
    let (vcpu, cpu) = runner.parts();
    match vcpu.make_ready(cpu) {
        Ok(()) => enter::AGAIN,
        // It is found again, and told, at the next entry.
        Err(_) => SERVED.0,
    }
}

// SAFETY: they use nothing of the CPU's but what the contract of `Runner` leaves them.
unsafe impl<R: Runner<Svm>> Serve for R {
    unsafe extern "sysv64" fn hypercall(this: *mut Self) -> u64 {
        // SAFETY: it was given to `enter` as the only pointer.
        pass(unsafe { &mut *this }, R::serve_null_call)
    }

    unsafe extern "sysv64" fn cpuid(this: *mut Self) -> u64 {
        // SAFETY: as above.
        pass(unsafe { &mut *this }, R::serve_cpuid)
    }

    unsafe extern "sysv64" fn msr(this: *mut Self) -> u64 {
        // SAFETY: as above.
        let runner = unsafe { &mut *this };
        let (vcpu, _) = runner.parts();
        let is_read = vcpu.vmcb.control.exit_info1 == 0;
        match (Msr(vcpu.context.gprs.rcx as u32), is_read) {
            (Msr::X2APIC_TPR, true) => pass(runner, R::serve_read_tpr),
            (Msr::X2APIC_TPR, false) => pass(runner, R::serve_write_tpr),
            (Msr::X2APIC_EOI, false) => write_eoi(runner),
            (Msr::X2APIC_SELF_IPI, false) => self_ipi(runner),
            _ => ExitCode::MSR.0,
        }
    }

    unsafe extern "sysv64" fn nested_fault(this: *mut Self) -> u64 {
        // SAFETY: as above.
        let runner = unsafe { &mut *this };
        match runner.parts().0.nested_fault() {
            Some(Exit::NestedFault(fault)) => {
                pass(runner, |runner| runner.serve_nested_fault(&fault))
            }
            _ => ExitCode::NPF.0,
        }
    }
}

#[inline(never)]
fn write_eoi<R: Runner<Svm>>(runner: &mut R) -> u64 {
    pass(runner, R::serve_write_eoi)
}

#[inline(never)]
fn self_ipi<R: Runner<Svm>>(runner: &mut R) -> u64 {
    pass(runner, R::serve_self_ipi)
}

impl Vcpu<Svm> for SvmVcpu {
    fn new(domain: &SvmDomain, nested_root: Hpa) -> Result<Self, OutOfMemory> {
        let mut vmcb: Framed<Vmcb> = Framed::zeroed()?;
        let control = &mut vmcb.control;
        // Features that a guest is not offered are kept from it in CR4. CR0 is checked, because emulators take what VMRUN
        // then refuses; it is written seldom. The selective intercept (CR0_SEL_WRITE) would let TS and MP pass, but in
        // QEMU it overlooks the upper half. CR3 is the guest's own. CR8 is the task priority of its local APIC, which decides
        // what is injected: the V_TPR of V_INTR_MASKING would be a second one that nobody asks.
        control.cr_reads = RegisterSet::R8;
        control.cr_writes = RegisterSet::R0 | RegisterSet::R4 | RegisterSet::R8;
        control.dr_reads = DEBUG_READS;
        control.dr_writes = DEBUG_WRITES;
        // #DB and #AC: their delivery can raise them again without end, which no interrupt ends (CVE-2015-8104,
        // CVE-2015-5307). #DF: not every implementation reports the shutdown that may follow.
        control.exceptions = Exceptions::DB | Exceptions::DF | Exceptions::AC | Exceptions::MC;
        control.intercepts1 = Intercepts1::INTR
            | Intercepts1::NMI
            | Intercepts1::SMI
            | Intercepts1::INIT
            | Intercepts1::RDPMC
            | Intercepts1::CPUID
            | Intercepts1::RSM
            | Intercepts1::INVD
            | Intercepts1::HLT
            | Intercepts1::INVLPGA
            | Intercepts1::IOIO
            | Intercepts1::MSR
            | Intercepts1::TASK_SWITCH
            | Intercepts1::FERR_FREEZE
            | Intercepts1::SHUTDOWN;
        control.intercepts2 = Intercepts2::VMRUN
            | Intercepts2::VMMCALL
            | Intercepts2::VMLOAD
            | Intercepts2::VMSAVE
            | Intercepts2::STGI
            | Intercepts2::CLGI
            | Intercepts2::SKINIT
            | Intercepts2::WBINVD
            | Intercepts2::MONITOR
            | Intercepts2::MWAIT
            | Intercepts2::MWAIT_ARMED
            | Intercepts2::XSETBV
            | Intercepts2::RDPRU;
        control.intercepts3 = Intercepts3::INVLPGB
            | Intercepts3::INVLPGB_ILLEGAL
            | Intercepts3::MCOMMIT
            | Intercepts3::TLBSYNC;
        control.iopm_base = domain.iopm();
        control.msrpm_base = domain.msrpm();
        control.virtual_interrupt = VirtualInterrupt::new().with_masking(true);
        control.nested = NestedControl::new().with_nested_paging(true);
        control.nested_cr3 = nested_root;
        control.tlb_control = TlbControl::NOTHING;
        let identity = Identity::read();
        if identity.features.contains(Features::PAUSE_FILTER) {
            control.intercepts1 |= Intercepts1::PAUSE;
            control.pause_filter_count = PAUSE_COUNT;
            if identity.features.contains(Features::PAUSE_THRESHOLD) {
                control.pause_filter_threshold = PAUSE_THRESHOLD;
            }
        }
        let mut vcpu = Self {
            context: Context {
                gprs: Gprs::default(),
                vmcb: vmcb.hpa(),
                host: Hpa::default(),
                guards: Guards::default(),
                exit_code: (&raw const vmcb.control.exit_code).addr(),
            },
            vmcb,
            changes: Changes::empty(),
            events: Events::default(),
            guest_cr4: 0,
            forced_cr4: 0,
            tsc_aux: 0,
            spec_ctrl: 0,
            shadow: Shadow::default(),
            window_waits: false,
            is_looked_at: false,
            tag: Tag::NONE,
            cpu: None,
            identity,
        };
        vcpu.put_state(&VcpuState::RESET);
        Ok(vcpu)
    }

    #[inline(always)]
    fn attach(&mut self, cpu: &mut SvmCpu, domain: &SvmDomain) {
        let iopm = domain.iopm();
        if self.vmcb.control.iopm_base != iopm {
            self.vmcb.control.iopm_base = iopm;
            self.touch(CleanBits::PERMISSION_MAPS);
        }
        if self.cpu != Some(cpu.id) {
            self.come_to(cpu);
        }
        if !cpu.tags.is_valid(&self.tag) {
            self.take_tag(cpu);
        }
        if cpu.tsc_aux != self.tsc_aux {
            self.load_tsc_aux();
        }
        load_cr2(self.vmcb.save.cr2);
    }

    #[inline(always)]
    fn detach(&mut self, cpu: &mut SvmCpu) {
        // Everything else is in memory after each run: VMSAVE is part of it.
        cpu.tsc_aux = self.tsc_aux;
    }

    #[inline(always)]
    fn run<R: Runner<Svm>>(runner: &mut R) -> Exit {
        let (vcpu, cpu) = runner.parts();
        if let Err(failure) = vcpu.make_ready(cpu) {
            return failure;
        }
        vcpu.vmcb.save.rax = vcpu.context.gprs.rax;
        let context = &raw mut vcpu.context;
        // SAFETY: there is a `SvmCpu` only while SVM is on, and the vCPU is attached to it, so `context.host` is its. The
        // block is this vCPU's alone and passed the validator when it was last changed; the domain, whose tables and
        // maps it names, outlives its vCPUs.
        let code = unsafe { enter::enter(context, core::ptr::from_mut(runner)) };
        let (vcpu, _) = runner.parts();
        vcpu.context.gprs.rax = vcpu.vmcb.save.rax;
        vcpu.why(ExitCode(code))
    }

    fn set_deadline(&mut self, _cpu: &mut SvmCpu, _tsc: u64) {
        // SVM has no timer of its own; the host's ends the run.
    }

    #[inline(always)]
    fn gprs(&self) -> &Gprs {
        &self.context.gprs
    }

    #[inline(always)]
    fn gprs_mut(&mut self) -> &mut Gprs {
        &mut self.context.gprs
    }

    #[inline(always)]
    fn rip(&self) -> u64 {
        self.vmcb.save.rip
    }

    fn set_rip(&mut self, rip: u64) {
        self.vmcb.save.rip = rip;
    }

    fn rsp(&self) -> u64 {
        self.vmcb.save.rsp
    }

    fn set_rsp(&mut self, rsp: u64) {
        self.vmcb.save.rsp = rsp;
    }

    fn rflags(&self) -> u64 {
        self.vmcb.save.rflags
    }

    fn set_rflags(&mut self, rflags: u64) {
        self.vmcb.save.rflags = rflags | RFLAGS_FIXED;
    }

    #[inline(always)]
    fn cpl(&self) -> u8 {
        self.vmcb.save.cpl & 3
    }

    fn segment(&self, which: SegmentName) -> Segment {
        registers::segment(&self.vmcb.save, which)
    }

    fn cr0(&self) -> u64 {
        self.vmcb.save.cr0
    }

    #[inline(always)]
    fn cr3(&self) -> u64 {
        self.vmcb.save.cr3
    }

    fn cr4(&self) -> u64 {
        self.guest_cr4
    }

    fn efer(&self) -> u64 {
        self.vmcb.save.efer & !efer::SVME
    }

    fn set_cr2(&mut self, value: u64) {
        self.vmcb.save.cr2 = value;
        self.touch(CleanBits::CR2);
        load_cr2(value);
    }

    fn set_cr0(&mut self, value: u64) {
        registers::set_cr0(&mut self.vmcb.save, value);
        self.paging_changed();
    }

    fn set_cr4(&mut self, value: u64) {
        self.guest_cr4 = value;
        registers::set_cr4(&mut self.vmcb, value, self.forced_cr4);
        self.touch(CleanBits::INTERCEPTS);
        self.paging_changed();
    }

    fn watch_debug(&mut self, watches: bool) {
        let control = &mut self.vmcb.control;
        control.dr_reads.set(DEBUG_READS, watches);
        control.dr_writes.set(DEBUG_WRITES, watches);
        self.touch(CleanBits::INTERCEPTS);
    }

    fn has_breakpoints(&self) -> bool {
        debug::is_enabled(self.vmcb.save.dr7)
    }

    fn set_efer(&mut self, value: u64) {
        self.vmcb.save.efer = value | efer::SVME;
        self.paging_changed();
    }

    fn msr(&self, msr: Msr) -> Option<u64> {
        if msr == Msr::IA32_TSC_AUX && self.identity.has_tsc_aux() {
            return Some(self.tsc_aux);
        }
        if msr == Msr::IA32_SPEC_CTRL {
            return Some(self.spec_ctrl);
        }
        registers::read_msr(&self.vmcb.save, msr)
    }

    fn set_msr(&mut self, msr: Msr, value: u64) -> bool {
        if msr == Msr::IA32_TSC_AUX && self.identity.has_tsc_aux() {
            self.tsc_aux = value;
            self.load_tsc_aux();
            return true;
        }
        if msr == Msr::IA32_SPEC_CTRL {
            self.spec_ctrl = value;
            self.put_spec_ctrl();
            return true;
        }
        let Some(place) = registers::msr(&mut self.vmcb.save, msr) else {
            return false;
        };
        *place = value;
        // Of these only PAT is under a clean bit and a rule.
        self.changes |= Changes::of(CleanBits::NESTED_PAGING) | Changes::VALIDATE;
        true
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        self.vmcb.control.tsc_offset = offset;
        self.touch(CleanBits::INTERCEPTS);
    }

    #[inline(always)]
    fn instruction_length(&self) -> Option<u8> {
        if self.identity.features.contains(Features::NRIP_SAVE) {
            return self.length_to(self.vmcb.control.next_rip);
        }
        if self.vmcb.control.exit_code == ExitCode::IOIO {
            return self.length_of_io();
        }
        None
    }

    #[inline(always)]
    fn skip(&mut self, length: u8) {
        if registers::skip(&mut self.vmcb, length) {
            self.touch(CleanBits::DEBUG_REGISTERS);
            self.requeue(Event::exception(vector::DB, None));
        }
    }

    fn inject(&mut self, event: Event) -> bool {
        self.changes |= Changes::EVENT;
        if event.kind == EventKind::External && self.window_is_open() {
            // It was for this one. Whoever has another asks again.
            self.set_window(false);
        }
        self.events.inject(event)
    }

    #[inline(always)]
    fn inject_interrupt(&mut self, vector: u8) -> bool {
        if !self.accepts_interrupt() {
            return false;
        }
        // Nothing is pending that it could combine with.
        self.changes |= Changes::EVENT;
        if self.window_is_open() {
            self.set_window(false);
        }
        self.events.requeue(Event::external(vector));
        true
    }

    #[inline(always)]
    fn inject_at_once(&mut self, vector: u8, cpu: &SvmCpu) -> bool {
        let is_alone = !cpu.flush
            && Changes::SETTLE.contains(self.changes)
            && self.accepts_interrupt()
            && !self.events.minds_nmi()
            && !self.window_is_open();
        if is_alone {
            self.send_alone(vector);
        }
        is_alone
    }

    fn withdraw_interrupt(&mut self) -> Option<u8> {
        self.events.withdraw_interrupt()
    }

    fn delivers_event(&self) -> bool {
        self.events.is_pending()
    }

    fn ends_halt(&mut self) -> bool {
        self.events.ends_halt()
    }

    fn accepts_interrupt(&self) -> bool {
        self.vmcb.save.rflags & RFLAGS_IF != 0
            && !self.vmcb.control.interrupt_state.shadow()
            && !self.events.is_pending()
    }

    fn request_interrupt_window(&mut self) {
        self.set_window(true);
    }

    fn state(&self) -> VcpuState {
        registers::state(&self.vmcb, &self.context.gprs, self.guest_cr4, self.tsc_aux)
    }

    fn set_state(&mut self, state: &VcpuState) -> Result<(), BadState> {
        registers::sensible(state).map_err(BadState)?;
        let (before, events) = (self.state(), self.events);
        self.events = Events::default();
        self.put_state(state);
        if let Err(rule) = validate::validate(&self.vmcb, self.identity.limits()) {
            self.put_state(&before);
            self.events = events;
            return Err(BadState(rule));
        }
        self.shadow = Shadow::default();
        self.is_looked_at = self.window_waits;
        self.load_tsc_aux();
        Ok(())
    }

    fn dump(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        super::dump::dump(&self.vmcb, out)
    }
}

//! What runs of a vCPU: the vendor's part, and what the common code switches and counts. It belongs to one CPU at a time.

use core::fmt::{self, Write};

use plinth_abi::{Status, VcpuState};

use super::{
    Access, ClaimKind, Clock, Domain, EndOfInterrupt, Ending, Now, Pc, Vcpu, take_pending,
};
use crate::arch::cpu::Cpu;
use crate::arch::fpu::XsaveArea;
use crate::arch::{debug, errata, fpu, time, trap};
use crate::boot::cmdline::{self, Apics};
use crate::exit::{self, Completion, DecodeCache, LengthCache, Next, Passer};
use crate::intc::{LocalApic, Mode, Origin, Requests};
use crate::mem::{Amounts, Charge, Ref};
use crate::rules::cpuid::{CpuidTable, VcpuView};
use crate::rules::cr::{self, cr4, efer, is_pae_paging};
use crate::rules::msr::MsrState;
use crate::trace::Counters;
use crate::virt::{BadState, Event, Vcpu as _, Vendor};

/// The state of a guest's CPU.
pub struct Context<V: Vendor> {
    /// The domain whose memory and handles it sees.
    pub domain: Ref<Domain<V>>,
    /// CPUID as the domain's vCPUs see it.
    pub cpuid: Ref<CpuidTable>,
    /// Number within the domain, from 0.
    pub index: u32,
    /// Registers and control structure. Only to be used between attach and detach.
    pub hw: V::Vcpu,
    /// CR8, where no hardware keeps it: the priority class that interrupts must exceed, 0 to 15.
    pub task_priority: u8,
    /// Its local APIC, in a domain that is a PC. What others ask of it is in [`Vcpu::requests`].
    pub apic: Option<LocalApic>,
    /// Who has that: the CPU may keep a part of it.
    keeper: Keeper,
    /// How it wants to end interrupts.
    pub ends: EndOfInterrupt,
    /// How it wants to be told the time.
    pub clock: Clock,
    /// When its slice ends, or somebody else wakes on its CPU: value of the TSC.
    slice_end: u64,
    /// When its APIC's timer expires: value of the host's TSC.
    timer_end: u64,
    /// MSRs that no hardware switches.
    pub msrs: MsrState,
    /// Lengths of instructions that exited, where the CPU does not tell them.
    pub lengths: LengthCache,
    /// Instructions that touched device memory.
    pub decoded: DecodeCache,
    /// Exits by kind.
    pub counters: Counters,
    /// What has to happen before it goes on.
    pub waiting: Waiting,
    /// What follows the answer of a device.
    completion: Option<Completion>,
    /// How it made its domain end.
    ending: Ending,
    /// An interrupt whose delivery an exception interrupted.
    pub returned_interrupt: Option<u8>,
    /// XCR0, while it is not in a CPU.
    xcr0: u64,
    /// The guest can reach XCR0 (CR4.OSXSAVE): while the vCPU has a CPU, that has it.
    has_xcr0: bool,
    vector_state: XsaveArea,
    /// DR0 to DR3, while they are not in a CPU.
    debug_addresses: [u64; 4],
    /// The guest uses them: while the vCPU has a CPU, that has them. Else its accesses exit.
    has_debug: bool,
    _charge: Charge,
}

/// Who has the priorities, the requests and the interrupts in service of a local APIC ([`VirtualApic`](crate::virt::VirtualApic)).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Keeper {
    /// The kernel: the CPU cannot, or shall not.
    Kernel,
    /// The kernel, until the guest is entered next.
    KernelNow,
    /// The CPU, until somebody asks for it.
    Cpu,
}

/// What a vCPU waits for.
#[derive(Clone, Copy, Debug)]
pub enum Waiting {
    /// Nothing: it runs.
    Nothing,
    /// An event, or this value of the TSC: `WAIT`.
    Event {
        /// TSC; `u64::MAX`: for ever.
        deadline: u64,
        /// It has passed its CPU on, and leaves it in any case: an event that has come meanwhile keeps it ready.
        passed: bool,
    },
    /// An interrupt: HLT.
    Interrupt,
    /// The answer of whoever claimed a device: then [`Context::completion`] follows.
    Device,
    /// A start-up message: after INIT.
    StartUp,
}

/// Where a vCPU runs: what handlers of its exits may need besides its context.
pub struct Run<'a, V: Vendor> {
    /// The vCPU.
    pub vcpu: &'a Ref<Vcpu<V>>,
    /// The CPU that it has.
    pub cpu: &'static Cpu,
    /// What that CPU holds while the extension is on.
    pub hardware: &'a mut V::Cpu,
}

/// RFLAGS.IF.
const RFLAGS_IF: u64 = 1 << 9;
/// The leaf of XSAVE, which alone follows XCR0.
const LEAF_XSAVE: u32 = 0xd;

/// Why a run of a vCPU came to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// The CPU has something to look at: [`Cpu::pending`].
    Pending,
    /// Its slice is over.
    SliceOver,
    /// It gave the rest of its slice away.
    Yielded,
    /// It waits, until this value of the TSC at most.
    Blocked(u64),
    /// It has halted, and nothing that is known can wake it.
    Halted,
    /// It made its domain end: [`Context::ending`] says how.
    Ended,
}

impl<V: Vendor> Context<V> {
    /// Bytes of heap that one costs.
    pub fn cost() -> u64 {
        const ALLOCATOR: u64 = 64;
        (size_of::<Self>() + fpu::area_bytes()) as u64 + V::HEAP_PER_VCPU + ALLOCATOR
    }

    /// The context of a new vCPU of `domain`, in the state after reset.
    ///
    /// # Errors
    /// `OVER_BUDGET`, `NO_MEMORY`.
    pub fn new(domain: &Ref<Domain<V>>, index: u32, requests: &Requests) -> Result<Self, Status> {
        let keeps_apic = domain.pc.is_some() && keeps_apics::<V>();
        let amounts = Amounts {
            frames: V::FRAMES_PER_VCPU + if keeps_apic { V::FRAMES_PER_APIC } else { 0 },
            memory_frames: 0,
            heap: Self::cost(),
        };
        let charge = Charge::new(&domain.budget, amounts)?;
        let mut hw =
            V::Vcpu::new(domain.hardware(), domain.nested_root()).map_err(|_| Status::NO_MEMORY)?;
        if keeps_apic {
            hw.add_apic().map_err(|_| Status::NO_MEMORY)?;
        }
        let vector_state = XsaveArea::new().ok_or(Status::NO_MEMORY)?;
        let is_bootstrap = index == 0;
        let apic = domain
            .pc
            .as_ref()
            .map(|_| LocalApic::new(is_bootstrap, requests));
        let waiting = if apic.is_some() && !is_bootstrap {
            Waiting::StartUp
        } else {
            Waiting::Nothing
        };
        Ok(Self {
            domain: domain.clone(),
            cpuid: domain.cpuid.clone(),
            index,
            hw,
            task_priority: 0,
            apic,
            keeper: if keeps_apic {
                Keeper::KernelNow
            } else {
                Keeper::Kernel
            },
            ends: EndOfInterrupt::default(),
            clock: Clock::default(),
            slice_end: u64::MAX,
            timer_end: u64::MAX,
            msrs: MsrState::default(),
            lengths: LengthCache::default(),
            decoded: DecodeCache::default(),
            counters: Counters::default(),
            waiting,
            completion: None,
            ending: Ending::Halted,
            returned_interrupt: None,
            xcr0: 1,
            has_xcr0: false,
            vector_state,
            debug_addresses: [0; 4],
            has_debug: false,
            _charge: charge,
        })
    }

    /// The whole register state; of the vCPU that this is the context of. Not attached; it is so for the time of the call.
    pub fn state(&mut self, vcpu: &Vcpu<V>, hardware: &mut V::Cpu) -> VcpuState {
        self.hw.attach(hardware, self.domain.hardware());
        self.take_back_interrupt(vcpu);
        let state = self.hw.state();
        self.hw.detach(hardware);
        VcpuState {
            xcr0: self.xcr0,
            dr: self.debug_addresses,
            ..state
        }
    }

    /// Sets the whole register state. Not attached; it is so for the time of the call. Interrupts that are pending stay so; what
    /// the vCPU waited for is forgotten.
    ///
    /// # Errors
    /// A state in which no CPU can be; nothing has changed then.
    pub fn set_state(
        &mut self,
        vcpu: &Vcpu<V>,
        hardware: &mut V::Cpu,
        state: &VcpuState,
    ) -> Result<(), BadState> {
        let supported = self.cpuid.features().xcr0;
        // Without XSAVE there is no XCR0, and the state says what a reset leaves in it.
        if state.xcr0 != 1 && cr::write_xcr0(state.xcr0, supported).is_err() {
            return Err(BadState(
                "XCR0 has a component that is not offered, or lacks one that another needs",
            ));
        }
        // What a guest could not set itself is not set for it either: the CPU may lack it, or nobody switches what it turns on.
        let features = self.cpuid.features();
        if state.cr4 & !features.cr4 != 0 || state.efer & !(features.efer | efer::LMA) != 0 {
            return Err(BadState("CR4 or EFER has a bit that is not offered"));
        }
        self.hw.attach(hardware, self.domain.hardware());
        self.take_back_interrupt(vcpu);
        let before = self.hw.state();
        let result = self
            .hw
            .set_state(state)
            .and_then(|()| self.load_pdptes(state));
        if result.is_err() {
            // It was legal before.
            let _ = self.hw.set_state(&before);
        } else {
            self.set_has_debug(debug::is_enabled(state.dr7));
        }
        self.hw.detach(hardware);
        result?;
        self.xcr0 = state.xcr0;
        self.has_xcr0 = state.cr4 & cr4::OSXSAVE != 0;
        self.debug_addresses = state.dr;
        self.forget_wait(vcpu);
        Ok(())
    }

    /// It waits for nothing.
    fn forget_wait(&mut self, vcpu: &Vcpu<V>) {
        self.waiting = Waiting::Nothing;
        self.completion = None;
        let mut device = vcpu.device.lock();
        device.claim = None;
        device.answer = None;
    }

    /// An interrupt that the next entry would deliver is pending again. Attached.
    fn take_back_interrupt(&mut self, vcpu: &Vcpu<V>) {
        self.put_returned_interrupt(vcpu);
        if let Some(vector) = self.hw.withdraw_interrupt() {
            self.put_back(vcpu, vector);
        }
    }

    /// An interrupt that was taken did not get into the guest.
    fn put_back(&mut self, vcpu: &Vcpu<V>, vector: u8) {
        self.fetch_apic(vcpu);
        match &mut self.apic {
            Some(apic) => apic.put_back(vector, &vcpu.requests),
            None => vcpu.requests.put_back(vector, false),
        }
    }

    /// An interrupt whose delivery an exception interrupted is pending again.
    fn put_returned_interrupt(&mut self, vcpu: &Vcpu<V>) {
        if let Some(vector) = self.returned_interrupt.take() {
            self.put_back(vcpu, vector);
        }
    }

    /// The vector state; not attached.
    pub fn vector_state(&mut self) -> &mut XsaveArea {
        &mut self.vector_state
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

    /// It waits for this.
    pub fn wait(&mut self, waiting: Waiting) -> Next {
        self.waiting = waiting;
        Next::Wait
    }

    /// It waits for the answer of a device, which is followed by this.
    pub fn wait_for_device(&mut self, completion: Completion) -> Next {
        self.completion = Some(completion);
        self.wait(Waiting::Device)
    }

    /// What follows the answer that it waits for.
    pub const fn completion(&self) -> Option<&Completion> {
        self.completion.as_ref()
    }

    /// It makes its domain end.
    pub fn end(&mut self, ending: Ending) -> Next {
        self.ending = ending;
        Next::End
    }

    /// How it made its domain end; to be asked after [`Stop::Ended`].
    pub const fn ending(&self) -> Ending {
        self.ending
    }

    /// Whether it waits for nothing, and has nothing to be told.
    #[inline(always)]
    fn is_undisturbed(&self, vcpu: &Vcpu<V>) -> bool {
        matches!(self.waiting, Waiting::Nothing)
            && self.returned_interrupt.is_none()
            && self.apic.is_none()
            && !vcpu.requests.has_interrupt()
    }

    /// Lets the vCPU go on if what it waits for has come; else why it still waits. Attached.
    #[inline(always)]
    pub fn go_on(&mut self, run: &mut Run<'_, V>) -> Option<Stop> {
        if self.is_undisturbed(run.vcpu) {
            return None;
        }
        self.look_what_came(run)
    }

    #[inline(never)]
    fn look_what_came(&mut self, run: &mut Run<'_, V>) -> Option<Stop> {
        self.put_returned_interrupt(run.vcpu);
        self.look_at_apic(run.vcpu);
        match self.waiting {
            Waiting::Nothing => {}
            Waiting::Event { deadline, .. } => {
                let (status, value) = match take_pending(run.vcpu) {
                    Some(key) => (Status::OK, key),
                    None if time::tsc() >= deadline => (Status::TIMED_OUT, 0),
                    None => return Some(Stop::Blocked(deadline)),
                };
                let gprs = self.hw.gprs_mut();
                gprs.rax = status.0;
                gprs.rdx = value;
            }
            Waiting::Interrupt => {
                self.fetch_apic(run.vcpu);
                if let Some(stop) = self.halt(run.vcpu) {
                    return Some(stop);
                }
            }
            // Only another vCPU's message ends this, and its APIC has had a look for one.
            Waiting::StartUp => return Some(Stop::Halted),
            Waiting::Device => {
                let Some(answer) = run.vcpu.device.lock().answer.take() else {
                    return Some(Stop::Blocked(u64::MAX));
                };
                match exit::complete(self, run, answer) {
                    Next::End => return Some(Stop::Ended),
                    // The instruction has another access to make.
                    Next::Wait => return self.wait_here(run),
                    Next::Resume | Next::Yield => {}
                }
            }
        }
        self.waiting = Waiting::Nothing;
        match self.deliver_interrupt(run.vcpu) {
            Next::Wait => self.wait_here(run),
            _ => None,
        }
    }

    /// It has just begun to wait: why it stops, if it does. What it waits for may be there already, but if it has passed the CPU on
    /// to another, that has it now. Attached.
    fn wait_here(&mut self, run: &mut Run<'_, V>) -> Option<Stop> {
        let stop = self.go_on(run);
        if stop.is_none() && self.domain.kernel.sched.has_passed(run.cpu) {
            return Some(Stop::Yielded);
        }
        stop
    }

    /// What HLT waits for: an interrupt that it takes, or an NMI; `None`: there is one.
    fn halt(&mut self, vcpu: &Vcpu<V>) -> Option<Stop> {
        // An NMI may have been taken from the requests and not have got into the guest before its HLT.
        if self.hw.ends_halt() || self.apic.is_some() && vcpu.requests.has_nmi() {
            return None;
        }
        // Only with interrupts on does one end HLT.
        let open = self.hw.rflags() & RFLAGS_IF != 0;
        if !open || self.apic.is_none() && !vcpu.can_be_interrupted() {
            return Some(Stop::Halted);
        }
        let comes = self.next_interrupt(vcpu).is_some() || self.takes_from_pic();
        (!comes).then(|| Stop::Blocked(self.timer_deadline()))
    }

    /// The vCPU runs and has been told to look at its requests. Why it stops, if it does. Attached.
    pub fn attend(&mut self, run: &mut Run<'_, V>) -> Option<Stop> {
        self.look_at_apic(run.vcpu);
        if matches!(self.waiting, Waiting::StartUp) {
            return self.go_on(run);
        }
        match self.deliver_interrupt(run.vcpu) {
            Next::Wait => self.wait_here(run),
            _ => None,
        }
    }

    /// The timer of its local APIC, and what others ask of that besides interrupts. Attached.
    fn look_at_apic(&mut self, vcpu: &Vcpu<V>) {
        let now = self.guest_tsc();
        let Some(apic) = &mut self.apic else {
            return;
        };
        apic.expire(&vcpu.requests, now);
        if vcpu.requests.has_signals() {
            let _ = apic.receive(&vcpu.requests);
            let starts = vcpu.requests.take_starts();
            if starts.init {
                self.init(vcpu);
            }
            if let (Waiting::StartUp, Some(page)) = (&self.waiting, starts.page) {
                self.start_up(page);
            }
        }
    }

    /// INIT (SDM vol. 3 table 11-1, 11.4.7.3): registers are as after a reset but for those that it does not name.
    fn init(&mut self, vcpu: &Vcpu<V>) {
        const CACHING: u64 = 3 << 29;
        let before = self.hw.state();
        let state = VcpuState {
            cr0: VcpuState::RESET.cr0 & !CACHING | before.cr0 & CACHING,
            pat: before.pat,
            star: before.star,
            lstar: before.lstar,
            cstar: before.cstar,
            sfmask: before.sfmask,
            kernel_gs_base: before.kernel_gs_base,
            sysenter_cs: before.sysenter_cs,
            sysenter_esp: before.sysenter_esp,
            sysenter_eip: before.sysenter_eip,
            tsc_aux: before.tsc_aux,
            rdx: VcpuState::RESET.rdx,
            ..VcpuState::RESET
        };
        self.take_back_interrupt(vcpu);
        self.fetch_apic(vcpu);
        // Every CPU can be entered in the state after a reset.
        let _ = self.hw.set_state(&state);
        self.reach_xcr0(state.cr4);
        self.debug_addresses = state.dr;
        if self.has_debug {
            debug::set_addresses(&self.debug_addresses);
        }
        self.forget_wait(vcpu);
        self.ends = EndOfInterrupt::default();
        if let Some(apic) = &mut self.apic {
            apic.init_reset(&vcpu.requests);
        }
        // The bootstrap processor goes on at the reset vector (SDM vol. 3 10.4.2).
        if self.index != 0 {
            self.waiting = Waiting::StartUp;
        }
    }

    /// The start-up that it waits for: real mode, at this page of the first MiB (SDM vol. 3 10.4.4).
    fn start_up(&mut self, page: u8) {
        self.waiting = Waiting::Nothing;
        let mut state = self.hw.state();
        state.cs.selector = u16::from(page) << 8;
        state.cs.base = u64::from(page) << 12;
        state.rip = 0;
        // It is the state after INIT but for CS.
        let _ = self.hw.set_state(&state);
    }

    /// The guest's TSC.
    #[inline(always)]
    pub fn guest_tsc(&self) -> u64 {
        time::tsc().wrapping_add(self.msrs.tsc_offset)
    }

    /// What tells the guest's TSC, as long as that is not set.
    #[inline(always)]
    pub fn guest_clock(&self) -> impl Fn() -> u64 + use<V> {
        let offset = self.msrs.tsc_offset;
        move || time::tsc().wrapping_add(offset)
    }

    /// The time, as the guest is told it.
    pub fn now(&self) -> Now {
        let tsc = time::tsc();
        Now {
            guest_tsc: tsc.wrapping_add(self.msrs.tsc_offset),
            ns: time::ns_at_tsc(tsc),
            tsc_hz: time::tsc_hz(),
        }
    }

    /// The guest has set its TSC, which was ahead of the host's by `before`. Attached.
    pub fn tsc_moved(&mut self, run: &mut Run<'_, V>, before: u64) {
        let by = self.msrs.tsc_offset.wrapping_sub(before);
        if let Some(apic) = &mut self.apic {
            let _ = apic.tsc_moved(by);
            self.rearm(run);
        }
        self.clock.tell_time(&self.domain, &self.now());
    }

    /// When the timer of its APIC expires: value of the host's TSC, `u64::MAX` for never.
    fn timer_deadline(&self) -> u64 {
        let Some(deadline) = self.apic.as_ref().and_then(LocalApic::next_deadline) else {
            return u64::MAX;
        };
        let now = time::tsc();
        let guest = now.wrapping_add(self.msrs.tsc_offset);
        now.saturating_add(deadline.saturating_sub(guest))
    }

    /// It runs until this value of the TSC at most.
    pub const fn begin_slice(&mut self, end: u64) {
        self.slice_end = end;
    }

    /// Bounds its run: a value of the TSC. Attached.
    pub fn set_deadline(&mut self, hardware: &mut V::Cpu, deadline: u64) {
        self.slice_end = deadline;
        self.timer_end = self.timer_deadline();
        let first = self.slice_end.min(self.timer_end);
        time::arm(first);
        self.hw.set_deadline(hardware, first);
    }

    /// The timer of its APIC has been set. Attached.
    pub fn rearm(&mut self, run: &mut Run<'_, V>) {
        self.set_deadline(run.hardware, self.slice_end);
    }

    /// Has the local APIC as a whole here, for what concerns the part of it that the CPU may keep, or that the guest ends interrupts by
    /// itself; until the guest is entered. Attached.
    #[inline(always)]
    pub fn fetch_apic(&mut self, vcpu: &Vcpu<V>) {
        if self.cpu_keeps_apic() {
            self.fetch_kept_apic(vcpu);
        }
        if self.offers_end() {
            self.take_back_end();
        }
    }

    /// Whether [`Self::fetch_apic`] has something to do.
    #[inline(always)]
    pub fn is_apic_away(&self) -> bool {
        self.cpu_keeps_apic() || self.offers_end()
    }

    #[inline(always)]
    fn cpu_keeps_apic(&self) -> bool {
        V::Vcpu::KEEPS_APIC && self.keeper == Keeper::Cpu
    }

    #[inline(always)]
    fn offers_end(&self) -> bool {
        self.ends.is_enabled() && self.apic.as_ref().is_some_and(LocalApic::offers_end)
    }

    /// The guest is given an interrupt, and may end it by itself if nobody waits for that.
    #[inline(never)]
    fn accept_and_offer_end(&mut self, vector: u8, from: Origin, vcpu: &Vcpu<V>) {
        if let Some(apic) = &mut self.apic
            && apic.accept_and_offer_end(vector, from, &vcpu.requests)
            && !self.ends.offer(&self.domain)
        {
            apic.settle_end(false);
        }
    }

    /// The guest has told the end of an interrupt; whether that was offered, and nothing else follows.
    pub fn refuse_end(&mut self) -> bool {
        let was_offered = self.offers_end();
        if was_offered {
            // It has left the local APIC already, and was the only one there.
            self.take_back_end();
        }
        was_offered
    }

    /// The guest may have ended the interrupt in service; else its end has to be told from now on.
    #[inline(never)]
    fn take_back_end(&mut self) {
        let has_ended = self.ends.take_back(&self.domain);
        if let Some(apic) = &mut self.apic {
            apic.settle_end(has_ended);
        }
    }

    #[inline(never)]
    fn fetch_kept_apic(&mut self, vcpu: &Vcpu<V>) {
        if let Some(apic) = &mut self.apic {
            apic.take_back(&self.hw.take_back_apic(), &vcpu.requests);
            self.keeper = Keeper::KernelNow;
        }
    }

    #[inline(never)]
    fn lend_apic(&mut self, vcpu: &Vcpu<V>) {
        if let Some(apic) = &self.apic {
            self.hw.lend_apic(&apic.lend(&vcpu.requests));
            self.keeper = Keeper::Cpu;
        }
    }

    /// The highest of its pending interrupts, if its local APIC lets it through.
    fn next_interrupt(&self, vcpu: &Vcpu<V>) -> Option<u8> {
        match &self.apic {
            Some(apic) => apic.deliverable(&vcpu.requests),
            None => vcpu.requests.highest(),
        }
    }

    /// Whether the 8259A pair interrupts it.
    fn takes_from_pic(&self) -> bool {
        self.domain.pc.as_ref().is_some_and(Pc::has_intr)
            && self.apic.as_ref().is_some_and(LocalApic::accepts_extint)
    }

    /// Sees to it that the guest takes the highest of its pending interrupts as soon as it can. [`Next::Wait`]: its vector has to be
    /// asked for, or there is an INIT. Attached.
    #[inline(always)]
    pub fn deliver_interrupt(&mut self, vcpu: &Ref<Vcpu<V>>) -> Next {
        if self.has_interrupt(vcpu) {
            self.deliver_pending(vcpu)
        } else {
            Next::Resume
        }
    }

    /// Whether [`Self::deliver_interrupt`] has something to look at.
    #[inline(always)]
    pub fn has_interrupt(&self, vcpu: &Vcpu<V>) -> bool {
        self.returned_interrupt.is_some()
            || !vcpu.requests.is_quiet()
            || self.domain.pc.as_ref().is_some_and(Pc::has_intr)
    }

    /// Does what [`Self::deliver_interrupt`] does where the highest interrupt of the local APIC, which the kernel keeps, can be injected at once, and
    /// nothing else is due; whether it is so. Otherwise that has to follow. May be called in passing.
    #[inline(always)]
    pub fn deliver_in_passing(&mut self, vcpu: &Vcpu<V>) -> bool {
        !vcpu.requests.has_signals()
            && self.only_apic_interrupts()
            && self.inject_highest(vcpu) != Some(false)
    }

    /// Whether interrupts come from nowhere but the local APIC, and that is kept here.
    #[inline(always)]
    fn only_apic_interrupts(&self) -> bool {
        self.returned_interrupt.is_none() && !self.cpu_keeps_apic() && !self.takes_from_pic()
    }

    /// Has the guest take the highest interrupt that its local APIC, which the kernel keeps, lets through; whether it can at once. `None`:
    /// there is none.
    #[inline(always)]
    fn inject_highest(&mut self, vcpu: &Vcpu<V>) -> Option<bool> {
        if self.offers_end() {
            self.take_back_end();
        }
        let vector = self.apic.as_ref()?.deliverable(&vcpu.requests)?;
        let can_take = self.hw.inject_interrupt(vector);
        if can_take {
            self.accept(vector, Origin::Requests, vcpu);
        }
        Some(can_take)
    }

    /// The guest is given an interrupt of the local APIC.
    #[inline(always)]
    fn accept(&mut self, vector: u8, from: Origin, vcpu: &Vcpu<V>) {
        if self.ends.is_enabled() {
            self.accept_and_offer_end(vector, from, vcpu);
        } else if let Some(apic) = &mut self.apic {
            apic.accept(vector, from, &vcpu.requests);
        }
    }

    /// Has the guest take an interrupt that its local APIC sends itself, where it can at once, and nothing else is due; whether the entry that follows
    /// delivers it. Otherwise it has to be sent yet. May be called in passing.
    #[inline(always)]
    pub fn take_from_itself(&mut self, vector: u8, run: &mut Run<'_, V>) -> bool {
        if !self.only_apic_interrupts() {
            return false;
        }
        if self.offers_end() {
            self.take_back_end();
        }
        let apic = self.apic.as_ref();
        let takes = apic.is_some_and(|apic| apic.passes(vector, &run.vcpu.requests))
            && self.hw.inject_at_once(vector, run.hardware);
        if takes {
            self.accept(vector, Origin::Itself, run.vcpu);
        }
        takes
    }

    #[inline(never)]
    fn deliver_pending(&mut self, vcpu: &Ref<Vcpu<V>>) -> Next {
        let signalled = vcpu.requests.has_signals();
        if signalled && self.apic.is_some() && vcpu.requests.has_init() {
            // It comes before all interrupts. Nobody prompts a vCPU to look at one that it has sent itself.
            return Next::Wait;
        }
        self.put_returned_interrupt(vcpu);
        if signalled && vcpu.requests.has_nmi() && vcpu.requests.take_nmi() {
            // An NMI makes no triple fault: it waits for what is being delivered.
            let _ = self.hw.inject(Event::NMI);
        }
        if V::Vcpu::KEEPS_APIC && self.keeper != Keeper::Kernel {
            // The CPU delivers them. Where it does not keep the APIC yet, it gets them with that.
            if self.keeper == Keeper::Cpu
                && let Some(apic) = &self.apic
            {
                self.hw.lend_interrupts(&apic.lend_more(&vcpu.requests));
            }
            return self.ask_pic(vcpu);
        }
        if self.apic.is_some() {
            match self.inject_highest(vcpu) {
                // All others wait for its end, which is looked at. Who raises a higher one prompts the vCPU.
                Some(true) => return Next::Resume,
                Some(false) => {}
                None => return self.ask_pic(vcpu),
            }
        } else {
            let Some(vector) = vcpu.requests.highest() else {
                return Next::Resume;
            };
            if self.hw.inject_interrupt(vector) {
                vcpu.requests.take(vector);
                if !vcpu.requests.has_interrupt() {
                    return Next::Resume;
                }
            }
        }
        self.hw.request_interrupt_window();
        Next::Resume
    }

    /// Asks whoever serves the 8259A pair for a vector, if that interrupts it and it can take an interrupt.
    fn ask_pic(&mut self, vcpu: &Ref<Vcpu<V>>) -> Next {
        if !self.takes_from_pic() {
            return Next::Resume;
        }
        if !self.hw.accepts_interrupt() {
            self.hw.request_interrupt_window();
            return Next::Resume;
        }
        let cycle = Access {
            address: 0,
            size: 1,
            write: false,
            value: 0,
            count: 1,
            data: None,
        };
        if !self
            .domain
            .tell_claimer(ClaimKind::Acknowledge, vcpu, &cycle)
        {
            return Next::Resume;
        }
        self.wait_for_device(Completion::Acknowledge)
    }

    /// Enter, serve, enter again, until something stops it. Everything on this path is counted in instructions by the
    /// benchmark.
    #[inline(always)]
    pub fn run_loop(&mut self, run: &mut Run<'_, V>, deadline: u64) -> Stop {
        loop {
            if run.cpu.is_pending() {
                return Stop::Pending;
            }
            if V::Vcpu::KEEPS_APIC && self.keeper == Keeper::KernelNow {
                self.lend_apic(run.vcpu);
            }
            let exit = V::Vcpu::run(&mut Passer { vcpu: self, run });
            let (next, window) = exit::handle(self, run, exit);
            if window {
                // The interrupt that ended the run is still pending: it is taken here, through the host's IDT. A slice
                // that the preemption timer ended may have left none.
                trap::interrupt_window();
                let now = time::tsc();
                if now >= deadline {
                    return Stop::SliceOver;
                }
                if now >= self.timer_end {
                    return Stop::Pending;
                }
            }
            match next {
                Next::Resume => {}
                Next::Yield => return Stop::Yielded,
                Next::Wait => match self.waiting {
                    // Whoever answers sooner than this CPU is left has it chosen again.
                    Waiting::Device => return Stop::Blocked(u64::MAX),
                    Waiting::Event {
                        deadline,
                        passed: true,
                    } => return Stop::Blocked(deadline),
                    _ => {
                        if let Some(stop) = self.wait_here(run) {
                            return stop;
                        }
                    }
                },
                Next::End => return Stop::Ended,
            }
        }
    }

    /// Shows the state of a guest whose end is not its own wish, while its registers are at hand.
    pub fn report(&self) {
        let ending = self.ending;
        if matches!(ending, Ending::Status(_) | Ending::Killed | Ending::Halted) {
            return;
        }
        log::info!(
            "\"{}\" vcpu {} as it was when it left for good:",
            self.domain.name(),
            self.index
        );
        let mut out = Indented::default();
        // The log takes all that is written to it.
        let _ = match ending {
            Ending::EntryFailed(_) => self.hw.dump(&mut out),
            _ => writeln!(out, "{}", Registers(&self.hw.state())),
        };
    }

    /// The CPUID leaf as this vCPU sees it now.
    #[inline(always)]
    pub fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        match self.cpuid.plain(leaf) {
            Some(registers) => registers,
            None => self.cpuid_of_vcpu(leaf, subleaf),
        }
    }

    /// A leaf that depends on the vCPU or on the subleaf.
    #[inline(never)]
    fn cpuid_of_vcpu(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        let view = VcpuView {
            apic_id: self.index,
            cr4: self.hw.cr4(),
            xcr0: if leaf == LEAF_XSAVE { self.xcr0() } else { 0 },
            apic_disabled: self
                .apic
                .as_ref()
                .is_some_and(|apic| apic.mode() == Mode::Disabled),
        };
        self.cpuid.get(leaf, subleaf, &view)
    }

    /// Loads what the guest owns of this CPU: the vendor's part, vector state, and what it uses of XCR0 and the debug addresses.
    #[inline(always)]
    pub fn attach(&mut self, hardware: &mut V::Cpu) {
        self.hw.attach(hardware, self.domain.hardware());
        fpu::restore(&self.vector_state);
        if self.has_xcr0 {
            fpu::load_xcr0(self.xcr0);
        }
        if self.has_debug {
            debug::set_addresses(&self.debug_addresses);
        }
    }

    /// Saves it again, so that the next vCPU finds nothing of this one.
    #[inline(always)]
    pub fn detach(&mut self, hardware: &mut V::Cpu) {
        if self.has_debug {
            self.save_debug();
        }
        if self.has_xcr0 {
            self.xcr0 = fpu::take_xcr0();
        }
        fpu::save(&mut self.vector_state);
        self.hw.detach(hardware);
    }

    /// XCR0. Attached.
    fn xcr0(&self) -> u64 {
        if self.has_xcr0 {
            fpu::xcr0()
        } else {
            self.xcr0
        }
    }

    /// The guest's CR4 is this now, which says whether it can reach XCR0. Where it cannot, nothing depends on that but leaf 0Dh of CPUID, and
    /// writing it takes a CPU long. Attached.
    pub fn reach_xcr0(&mut self, value: u64) {
        let reaches = value & cr4::OSXSAVE != 0;
        match (self.has_xcr0, reaches) {
            (false, true) => fpu::load_xcr0(self.xcr0),
            (true, false) => self.xcr0 = fpu::take_xcr0(),
            _ => {}
        }
        self.has_xcr0 = reaches;
    }

    /// The guest has the debug addresses from now on, until it leaves a CPU without a breakpoint: most never have one, and to move
    /// these registers takes a CPU long. Attached.
    pub fn give_debug(&mut self) {
        debug::set_addresses(&self.debug_addresses);
        self.set_has_debug(true);
    }

    #[inline(never)]
    fn save_debug(&mut self) {
        self.debug_addresses = debug::addresses();
        self.set_has_debug(self.hw.has_breakpoints());
    }

    fn set_has_debug(&mut self, has: bool) {
        self.has_debug = has;
        self.hw.watch_debug(!has);
    }

    /// RIP; attached.
    pub fn rip(&self) -> u64 {
        self.hw.rip()
    }
}

/// Whether the CPU keeps the local APICs of PCs: it can, and is to.
pub fn keeps_apics<V: Vendor>() -> bool {
    let is_wanted = || match cmdline::options().apic {
        Apics::Auto => !errata::ignores_if(),
        Apics::Cpu => true,
        Apics::Software => false,
    };
    V::Vcpu::KEEPS_APIC && V::keeps_apics() && is_wanted()
}

/// Writes lines to the log, indented. What is longer than a line of registers is cut.
#[derive(Default)]
struct Indented {
    line: heapless::String<160>,
}

impl Write for Indented {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for letter in text.chars() {
            if letter == '\n' {
                log::info!("  {}", self.line);
                self.line.clear();
            } else {
                let _ = self.line.push(letter);
            }
        }
        Ok(())
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

//! The boundary between the two vendors' virtualisation extensions and everything above.
//!
//! Above this module nobody knows Intel from AMD. [`Vendor`] is chosen once at boot and everything that runs guests is
//! monomorphised over it: there is no `dyn` call on the exit path. `vmx/` and `svm/` have the same file names on both
//! sides. What a guest did arrives as an [`Exit`]; what it means is decided in `exit/`, once for both.

pub mod event;
pub mod exit;
pub mod gprs;
pub mod guard;
pub mod svm;
pub mod tag;
pub mod vmx;

pub use event::{Event, EventKind};
pub use exit::Exit;
pub use gprs::Gprs;

use core::fmt;

use plinth_abi::{Segment, VcpuState};

use crate::arch::msr::Msr;
use crate::mem::Hpa;
use crate::mem::nested::EntryFormat;

/// A vendor's extension: VMX with EPT, or SVM with nested paging.
pub trait Vendor: Sized + 'static {
    /// "VMX" or "SVM".
    const NAME: &'static str;
    /// The instruction by which guests call: VMCALL or VMMCALL.
    const HYPERCALL: [u8; 3];
    /// Format of the nested page tables' entries.
    type Format: EntryFormat;
    /// What one CPU holds while the extension is on: VMXON region or host save area, capabilities, tag allocator.
    type Cpu;
    /// The vendor's part of a vCPU.
    type Vcpu: Vcpu<Self> + Send;
    /// The vendor's part of a domain, shared by its vCPUs: MSR and I/O permission bitmaps.
    type Domain: Send + Sync;
    /// 4 KiB frames that a vCPU takes.
    const FRAMES_PER_VCPU: u64;
    /// Frames that a vCPU needs besides for a local APIC that the CPU keeps.
    const FRAMES_PER_APIC: u64 = 0;
    /// Bytes of kernel heap that a vCPU takes besides its own size.
    const HEAP_PER_VCPU: u64;
    /// 4 KiB frames that a domain takes which uses ports directly.
    const FRAMES_FOR_PORTS: u64;

    /// What this CPU offers, or the first thing that is lacking. Changes nothing.
    fn probe() -> Result<Capabilities, Lack>;

    /// Turns the extension on, on the calling CPU. IA32_FEATURE_CONTROL left unlocked is set and locked here.
    fn enable() -> Result<Self::Cpu, Lack>;

    /// Turns it off again, on the calling CPU; before a power-off or a reset.
    fn disable(cpu: &mut Self::Cpu);

    /// Forgets every guest translation that the calling CPU caches (INVEPT and INVVPID all contexts; ASID flush).
    fn flush_all(cpu: &mut Self::Cpu);

    /// Whether the CPU notes in the nested tables which pages guests have written.
    fn notes_writes() -> bool;

    /// Whether this CPU keeps guests' local APICs: delivers interrupts, and takes accesses to the task priority and ends of interrupts
    /// without an exit.
    fn keeps_apics() -> bool {
        false
    }

    /// Which instructions run in guests that need more than the host's CPU having them.
    fn guest_instructions() -> GuestInstructions;

    /// The vendor's part of a new domain: every port and every MSR exits, but those MSRs that the hardware switches. Domains share
    /// their bitmaps as long as they are the same.
    fn new_domain() -> Result<Self::Domain, OutOfMemory>;

    /// Lets a domain use ports directly, from the next attach of each of its vCPUs on.
    fn allow_ports(domain: &Self::Domain, first: u16, count: u16) -> Result<(), OutOfMemory>;
}

/// The vendor's part of a vCPU: register state and the way into the guest.
///
/// A vCPU is attached to at most one CPU at a time. `run` and every accessor may only be called while it is attached to
/// the calling CPU (on VMX its VMCS is then current).
pub trait Vcpu<V: Vendor>: Sized {
    /// A vCPU in the state after reset, translating through the nested tables at `nested_root`.
    fn new(domain: &V::Domain, nested_root: Hpa) -> Result<Self, OutOfMemory>;

    /// Binds the vCPU to the calling CPU: makes its control structure current, gives it a valid tag (VPID, ASID), loads the
    /// MSRs that neither entry nor exit switches. Called once before a run of `run` calls; interrupts are off. `domain` is the one
    /// that the vCPU was made for.
    fn attach(&mut self, cpu: &mut V::Cpu, domain: &V::Domain);

    /// Unbinds: everything that still lives in this CPU goes to memory, so that any CPU may attach the vCPU next.
    fn detach(&mut self, cpu: &mut V::Cpu);

    /// Enters the guest and comes back with why it left. Interrupts are off before and after; a host interrupt that ended
    /// the run is still pending, and the caller takes it by opening an interrupt window. A host NMI has been handled.
    ///
    /// An event whose delivery the exit interrupted is injected again by the next `run`, unless an exception injected
    /// meanwhile combines with it (SDM table 7-5).
    ///
    /// `runner` has the vCPU. Exits that it serves in passing are not told, if it is asked: that is the vendor's choice.
    fn run<R: Runner<V>>(runner: &mut R) -> Exit;

    /// Bounds the guest's run: an exit comes no later than at this TSC value even where interrupts do not cause one (VMX:
    /// preemption timer). Vendors without such a timer rely on the host's APIC timer and do nothing.
    fn set_deadline(&mut self, cpu: &mut V::Cpu, tsc: u64);

    /// The general registers that the entry code switches. RSP is not among them.
    fn gprs(&self) -> &Gprs;
    /// As [`Vcpu::gprs`], to be changed.
    fn gprs_mut(&mut self) -> &mut Gprs;

    /// RIP of the instruction that exited.
    fn rip(&self) -> u64;
    /// Sets RIP.
    fn set_rip(&mut self, rip: u64);
    /// RSP.
    fn rsp(&self) -> u64;
    /// Sets RSP.
    fn set_rsp(&mut self, rsp: u64);
    /// RFLAGS.
    fn rflags(&self) -> u64;
    /// Sets RFLAGS; bit 1 stays set.
    fn set_rflags(&mut self, rflags: u64);
    /// Current privilege level, 0 to 3.
    fn cpl(&self) -> u8;
    /// A segment register.
    fn segment(&self, which: SegmentName) -> Segment;
    /// CR0 as the guest sees it.
    fn cr0(&self) -> u64;
    /// CR3.
    fn cr3(&self) -> u64;
    /// CR4 as the guest sees it.
    fn cr4(&self) -> u64;
    /// EFER as the guest sees it.
    fn efer(&self) -> u64;
    /// Sets CR2, before a page fault is injected.
    fn set_cr2(&mut self, value: u64);
    /// Sets CR0 to a value that `exit::cr` has found legal, with what follows from it: EFER.LMA, entry
    /// controls, the flush of the translations that it invalidates.
    fn set_cr0(&mut self, value: u64);
    /// Sets CR4 to a legal value, and flushes the translations that this invalidates.
    fn set_cr4(&mut self, value: u64);
    /// Sets EFER to a legal value; LMA is the caller's affair.
    fn set_efer(&mut self, value: u64);
    /// Loads the four top entries of PAE paging, which the caller has read from the guest's memory at CR3; before `set_cr0`,
    /// `set_cr4` or after `set_state` wherever the new mode is PAE paging (CR0.PG and CR4.PAE without EFER.LMA). VMX takes
    /// them from the VMCS at every entry (SDM 27.3.2.4); SVM reads them from memory itself, and nothing is to be done.
    /// Refused where one has a reserved bit: #GP for the guest.
    fn set_pdptes(&mut self, _entries: [u64; 4]) -> Result<(), BadState> {
        Ok(())
    }
    /// Reads an MSR that the hardware switches for the guest (FS_BASE, STAR, SYSENTER_*, PAT ...). `None`: not one of these.
    fn msr(&self, msr: Msr) -> Option<u64>;
    /// Writes such an MSR with a value that has been checked; false: not one of these.
    fn set_msr(&mut self, msr: Msr, value: u64) -> bool;
    /// Whether accesses to DR0 to DR3, and writes of DR7, exit with [`Exit::DebugRegister`]; so they do at first.
    fn watch_debug(&mut self, watches: bool);
    /// Whether DR7 has an address watched.
    fn has_breakpoints(&self) -> bool;
    /// What the guest's TSC is ahead of the host's, modulo 2^64.
    fn set_tsc_offset(&mut self, offset: u64);

    /// Length in bytes of the instruction that exited, where the hardware tells it; `None`: it has to be decoded.
    fn instruction_length(&self) -> Option<u8>;
    /// Moves RIP past an instruction of `length` bytes: wraps at 32 bits outside 64-bit mode, ends the interrupt shadow,
    /// and leaves a pending single-step trap to be delivered if RFLAGS.TF is set.
    fn skip(&mut self, length: u8);

    /// Makes the guest take this event at the next entry. An exception that meets one whose delivery is pending combines
    /// with it to #DF or a triple fault (SDM table 7-5, APM2 8.2.9). Returns false where the result is a triple fault.
    #[must_use]
    fn inject(&mut self, event: Event) -> bool;
    /// Has the next entry deliver an external interrupt, if it can; whether it can: [`Self::accepts_interrupt`].
    fn inject_interrupt(&mut self, vector: u8) -> bool {
        self.accepts_interrupt() && self.inject(Event::external(vector))
    }
    /// Has the entry that follows at once deliver an external interrupt, if it can and would have nothing else to do; whether it does. Where it
    /// does not, nothing has changed. May be called in passing.
    fn inject_at_once(&mut self, _vector: u8, _cpu: &V::Cpu) -> bool {
        false
    }
    /// Takes back an external interrupt that the next entry would deliver: its vector.
    fn withdraw_interrupt(&mut self) -> Option<u8>;
    /// Whether the next entry delivers an event.
    fn delivers_event(&self) -> bool;
    /// Whether the next entry delivers an event, be it an NMI that has waited until now, or a single step: such an event ends HLT.
    fn ends_halt(&mut self) -> bool;
    /// Whether an external interrupt could be injected now: RFLAGS.IF, no shadow, nothing pending.
    fn accepts_interrupt(&self) -> bool;
    /// Asks for [`Exit::InterruptWindow`] as soon as the guest can take an external interrupt.
    fn request_interrupt_window(&mut self);

    /// Whether CPUs of this vendor may be able to keep a local APIC. Where not, the code for it is left out.
    const KEEPS_APIC: bool = false;
    /// Gives the vCPU, which has never been attached, what its CPU needs to keep its local APIC: where [`Vendor::keeps_apics`].
    fn add_apic(&mut self) -> Result<(), OutOfMemory> {
        Ok(())
    }
    /// The CPU keeps the local APIC from now on. Of a vCPU that can have one.
    fn lend_apic(&mut self, _apic: &VirtualApic) {}
    /// More interrupts are requested of the local APIC that the CPU keeps, and more ends told.
    fn lend_interrupts(&mut self, _more: &VirtualInterrupts) {}
    /// The CPU keeps it no longer: what it is now.
    fn take_back_apic(&mut self) -> VirtualApic {
        VirtualApic::default()
    }

    /// The whole register state but what the common code switches (XCR0, DR0 to DR3), which is zero here.
    fn state(&self) -> VcpuState;
    /// Sets the whole register state; refused, with the rule that is broken, where the CPU could not be entered so.
    fn set_state(&mut self, state: &VcpuState) -> Result<(), BadState>;

    /// Writes the control structure field by field, for the report of a failed entry.
    fn dump(&self, out: &mut dyn fmt::Write) -> fmt::Result;
}

/// Who has a vCPU run, and serves exits in passing, while the guest's state is still on the CPU. Of that the general registers can be
/// reached (RBP and R12 to R15 only by [`Runner::serve_nested_fault`]), and what SVM's VMRUN switches: RIP, RFLAGS, control registers, CS, SS, DS, ES, but neither the other segments nor the
/// MSRs of SYSCALL and SYSENTER.
///
/// What serves an exit skips the instruction and counts the exit.
///
/// # Safety
/// The registers by which the kernel finds what is its CPU's are the guest's meanwhile: nothing that serves an exit asks which CPU it is, writes
/// to the log, or ends in a fault.
#[allow(
    unsafe_code,
    reason = "code that is called in the midst of an entry relies on it"
)]
pub unsafe trait Runner<V: Vendor> {
    /// The vCPU, which is attached, and what its CPU holds.
    fn parts(&mut self) -> (&mut V::Vcpu, &mut V::Cpu);
    /// Serves [`Exit::Hypercall`], where RAX says that it is [`Call::VERSION`](plinth_abi::Call::VERSION).
    fn serve_null_call(&mut self) -> Served;
    /// Serves [`Exit::Cpuid`].
    fn serve_cpuid(&mut self) -> Served;
    /// Serves [`Exit::ReadMsr`] of TPR.
    fn serve_read_tpr(&mut self) -> Served;
    /// Serves [`Exit::WriteMsr`] of TPR.
    fn serve_write_tpr(&mut self) -> Served;
    /// Serves [`Exit::WriteMsr`] of EOI.
    fn serve_write_eoi(&mut self) -> Served;
    /// Serves [`Exit::WriteMsr`] of SELF IPI.
    fn serve_self_ipi(&mut self) -> Served;
    /// Serves [`Exit::NestedFault`].
    fn serve_nested_fault(&mut self, fault: &exit::NestedFault) -> Served;
    /// After [`Served::Interrupted`]: whether the interrupt has been injected, or waits for another. Else [`Exit::Served`] has to follow.
    fn deliver(&mut self) -> bool;
}

/// What has been done about an exit.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Served {
    /// Nothing.
    No,
    /// Everything: the guest goes on behind the instruction.
    Yes,
    /// Everything, but there is an interrupt to be looked at.
    Interrupted,
    /// Everything, and the next entry delivers an interrupt and does nothing else.
    Delivered,
}

/// Clears the bits of `count` ports from `first` on in a map that has a bit for each port.
fn clear_bits(map: &mut [u8], first: u16, count: u16) {
    for port in (usize::from(first)..).take(count.into()) {
        if let Some(byte) = map.get_mut(port / 8) {
            *byte &= !(1 << (port % 8));
        }
    }
}

/// What a CPU keeps of a guest's local APIC while it runs that guest (SDM vol. 3 chapter 30): what its priorities are, what is
/// requested and what is in service. Words of vectors have vector 0 in bit 0 of the first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VirtualApic {
    /// TPR.
    pub task_priority: u8,
    /// ISR.
    pub in_service: [u64; 4],
    /// The guest reaches TPR, EOI and SELF IPI as MSRs, without an exit.
    pub x2apic: bool,
    /// What is to be delivered.
    pub interrupts: VirtualInterrupts,
}

/// Interrupts that a CPU is to deliver to its guest by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VirtualInterrupts {
    /// IRR.
    pub requested: [u64; 4],
    /// Those whose end exits, requested or not: they are level-triggered, or were when they were requested.
    pub told_ends: [u64; 4],
}

/// Names of the segment registers in the order of their encoding (SDM vol. 2 table 2-1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the registers' names are their documentation")]
pub enum SegmentName {
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
    Ldtr,
    Tr,
}

/// A state in which no CPU could run, and the rule that says so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadState(pub &'static str);

impl fmt::Display for BadState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// Instructions that a guest is shown only where the extension lets it execute them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestInstructions {
    /// INVPCID.
    pub invpcid: bool,
    /// RDTSCP and RDPID, with a TSC_AUX of the vCPU's own.
    pub rdtscp: bool,
}

/// There is no frame or heap left for a control structure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutOfMemory;

/// Why this CPU cannot run guests, in words and with what may help.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lack {
    /// What is missing.
    pub what: &'static str,
    /// What the machine's owner can do about it.
    pub advice: &'static str,
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what, self.advice)
    }
}

/// What a CPU's extension can do, as a table to be printed: name, whether it is there, and what Plinth does without it.
#[derive(Clone, Debug, Default)]
pub struct Capabilities {
    /// One row a capability.
    pub rows: alloc::vec::Vec<Capability>,
}

/// One row of the capability table.
#[derive(Clone, Debug)]
pub struct Capability {
    /// The manual's name of it.
    pub name: &'static str,
    /// What the CPU says: "yes", "no", or a number with its unit.
    pub value: alloc::borrow::Cow<'static, str>,
    /// Where it is missing: what is done instead. Empty where it is there.
    pub without: &'static str,
}

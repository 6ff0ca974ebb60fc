//! Why a guest left: the same for both vendors. Small, so that it stays in registers on the way up.

use super::Event;
use crate::mem::Gpa;

/// What made the guest leave. The instruction that exited has not been skipped, except where said.
#[derive(Clone, Copy, Debug)]
pub enum Exit {
    /// Something of the host's: an interrupt (still pending), an NMI (handled), the end of the slice. The guest did nothing.
    Host,
    /// An exit has been served, and counted, in passing ([`Runner`](super::Runner)); an interrupt may have become deliverable by it.
    Served,
    /// VMCALL or VMMCALL, whichever is this vendor's.
    Hypercall,
    /// CPUID.
    Cpuid,
    /// HLT.
    Halt,
    /// PAUSE, often enough to be noticed.
    Pause,
    /// IN, OUT, INS or OUTS.
    Io(Io),
    /// RDMSR; the number is in ECX.
    ReadMsr,
    /// WRMSR; the number is in ECX.
    WriteMsr,
    /// An access to a control register that is not the guest's own affair.
    ControlRegister(ControlRegister),
    /// An access to a debug register, which has not been made ([`watch_debug`](super::Vcpu::watch_debug)).
    DebugRegister,
    /// An access that the nested page tables do not allow.
    NestedFault(NestedFault),
    /// The nested page tables are broken at this address: a defect of the kernel.
    NestedMisconfiguration(Gpa),
    /// An exception that is looked at before the guest takes it; DR6 and CR2 are already as the guest expects them.
    Exception(Event),
    /// An instruction that always exits.
    Instruction(Instruction),
    /// A task switch through a task gate, a far jump or call, or IRET.
    TaskSwitch {
        /// The new task's selector.
        selector: u16,
    },
    /// The guest can take an external interrupt now; the request has been withdrawn.
    InterruptWindow,
    /// The guest has ended this interrupt at the local APIC that the CPU keeps, one of those whose ends are told. The instruction is
    /// done.
    EndOfInterrupt(u8),
    /// The guest has sent itself an interrupt by this vector, which is none, at the local APIC that the CPU keeps. The instruction is done.
    IllegalSelfIpi(u8),
    /// A triple fault (SVM: shutdown).
    TripleFault,
    /// The CPU refused to enter the guest. RIP and the rest are what they were before.
    EntryFailed(EntryFailure),
    /// An exit that the controls do not allow or that no manual we know names.
    Unexpected {
        /// The exit reason or exit code.
        code: u64,
        /// Exit qualification, EXITINFO1.
        info1: u64,
        /// Guest-physical address, EXITINFO2.
        info2: u64,
    },
}

/// An access to an I/O port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Io {
    /// The first port.
    pub port: u16,
    /// 1, 2 or 4 bytes.
    pub size: u8,
    /// IN or INS.
    pub input: bool,
    /// INS or OUTS.
    pub string: bool,
    /// With a REP prefix.
    pub repeat: bool,
}

/// An access to CR0, CR3, CR4 or CR8.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ControlRegister {
    /// MOV to a control register. `gpr` is the encoding of the source register.
    Write {
        /// 0, 3, 4 or 8.
        register: u8,
        /// Encoding of the general register, 0 to 15.
        gpr: u8,
    },
    /// MOV from a control register.
    Read {
        /// 0, 3, 4 or 8.
        register: u8,
        /// Encoding of the general register, 0 to 15.
        gpr: u8,
    },
    /// CLTS.
    Clts,
    /// LMSW with this operand.
    Lmsw(u16),
    /// One of these, and which one only the instruction's bytes tell (SVM without decode assists).
    Undecoded {
        /// 0, 3, 4 or 8.
        register: u8,
        /// A write (MOV to, CLTS, LMSW); else a read.
        write: bool,
    },
}

/// An EPT violation or a nested page fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NestedFault {
    /// The guest-physical address.
    pub gpa: Gpa,
    /// A write was tried.
    pub write: bool,
    /// An instruction fetch was tried.
    pub fetch: bool,
    /// The access was to the guest's own page tables, not to what they translate.
    pub table_walk: bool,
    /// The page is mapped, and the access was not among what is allowed.
    pub present: bool,
}

/// Instructions that exit whatever the guest meant by them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(
    missing_docs,
    reason = "the instructions' names are their documentation"
)]
pub enum Instruction {
    Invd,
    Wbinvd,
    Monitor,
    Mwait,
    Rdpmc,
    Xsetbv,
    /// One of VMX's or SVM's own; the guest's CPUID shows neither.
    Virtualisation,
    Getsec,
    Rsm,
    /// ENCLS, ENCLV, PCONFIG, and what else CPUID does not show to guests.
    Hidden,
}

/// Why an entry failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryFailure {
    /// The rule of the manual that the state breaks, or the CPU's error in words.
    pub reason: &'static str,
    /// VM-instruction error, exit qualification, or exit code.
    pub code: u64,
}

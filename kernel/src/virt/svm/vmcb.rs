//! The virtual machine control block as the CPU reads it (APM2 appendix B).
//!
//! Every field has a type that says its meaning, so that what belongs into one field does not compile in another:
//! `tests/compile_fail` shows that it does not.
//!
//! Nothing here decides anything; what a consistent block is says [`super::validate`].

#![expect(
    missing_docs,
    reason = "the names of intercepts and registers are their documentation"
)]

use core::mem::offset_of;

use bitfield_struct::bitfield;
use bitflags::bitflags;
use plinth_abi::Segment;

use super::exit_code::ExitCode;
use crate::mem::Hpa;
use crate::virt::{Event, EventKind};

bitflags! {
    /// Control or debug registers whose reads or writes exit; bit n is register n (APM2 15.8).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    #[repr(transparent)]
    pub struct RegisterSet: u16 {
        /// CR0 or DR0.
        const R0 = 1 << 0;
        /// CR3 or DR3.
        const R3 = 1 << 3;
        /// CR4 or DR4.
        const R4 = 1 << 4;
        /// CR8.
        const R8 = 1 << 8;
        /// DR0 to DR3.
        const DEBUG_ADDRESSES = 0xf;
        /// DR7, and DR5, which is the same without CR4.DE.
        const DEBUG_CONTROL = 1 << 5 | 1 << 7;
        const _ = !0;
    }
}

bitflags! {
    /// Exceptions that exit; bit n is vector n (APM2 15.12).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    #[repr(transparent)]
    pub struct Exceptions: u32 {
        /// #DB.
        const DB = 1 << 1;
        /// #UD.
        const UD = 1 << 6;
        /// #DF.
        const DF = 1 << 8;
        /// #PF.
        const PF = 1 << 14;
        /// #AC.
        const AC = 1 << 17;
        /// #MC.
        const MC = 1 << 18;
        const _ = !0;
    }
}

bitflags! {
    /// Intercepts at offset 00Ch (APM2 15.9, table B-1).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    #[repr(transparent)]
    pub struct Intercepts1: u32 {
        const INTR = 1 << 0;
        const NMI = 1 << 1;
        const SMI = 1 << 2;
        const INIT = 1 << 3;
        const VINTR = 1 << 4;
        const CR0_SEL_WRITE = 1 << 5;
        const IDTR_READ = 1 << 6;
        const GDTR_READ = 1 << 7;
        const LDTR_READ = 1 << 8;
        const TR_READ = 1 << 9;
        const IDTR_WRITE = 1 << 10;
        const GDTR_WRITE = 1 << 11;
        const LDTR_WRITE = 1 << 12;
        const TR_WRITE = 1 << 13;
        const RDTSC = 1 << 14;
        const RDPMC = 1 << 15;
        const PUSHF = 1 << 16;
        const POPF = 1 << 17;
        const CPUID = 1 << 18;
        const RSM = 1 << 19;
        const IRET = 1 << 20;
        const INT_N = 1 << 21;
        const INVD = 1 << 22;
        const PAUSE = 1 << 23;
        const HLT = 1 << 24;
        const INVLPG = 1 << 25;
        const INVLPGA = 1 << 26;
        const IOIO = 1 << 27;
        const MSR = 1 << 28;
        const TASK_SWITCH = 1 << 29;
        const FERR_FREEZE = 1 << 30;
        const SHUTDOWN = 1 << 31;
    }
}

bitflags! {
    /// Intercepts at offset 010h; the upper half traps writes of CR0 to CR15 after they are made.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    #[repr(transparent)]
    pub struct Intercepts2: u32 {
        const VMRUN = 1 << 0;
        const VMMCALL = 1 << 1;
        const VMLOAD = 1 << 2;
        const VMSAVE = 1 << 3;
        const STGI = 1 << 4;
        const CLGI = 1 << 5;
        const SKINIT = 1 << 6;
        const RDTSCP = 1 << 7;
        const ICEBP = 1 << 8;
        const WBINVD = 1 << 9;
        const MONITOR = 1 << 10;
        const MWAIT = 1 << 11;
        const MWAIT_ARMED = 1 << 12;
        const XSETBV = 1 << 13;
        const RDPRU = 1 << 14;
        const EFER_WRITE_TRAP = 1 << 15;
        const _ = !0;
    }
}

bitflags! {
    /// Intercepts at offset 014h.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    #[repr(transparent)]
    pub struct Intercepts3: u32 {
        const INVLPGB = 1 << 0;
        const INVLPGB_ILLEGAL = 1 << 1;
        const INVPCID = 1 << 2;
        const MCOMMIT = 1 << 3;
        const TLBSYNC = 1 << 4;
        const BUS_LOCK = 1 << 5;
        const IDLE_HLT = 1 << 6;
        const _ = !0;
    }
}

/// What VMRUN flushes from the TLB (APM2 15.16.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct TlbControl(u8);

impl TlbControl {
    /// Nothing.
    pub const NOTHING: Self = Self(0);
    /// Every translation of every ASID.
    pub const FLUSH_ALL: Self = Self(1);

    /// The number in the field.
    pub const fn bits(self) -> u8 {
        self.0
    }
}

/// Virtual interrupt control at offset 060h (APM2 15.21.4).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct VirtualInterrupt {
    /// The guest's CR8 while V_INTR_MASKING is set.
    pub tpr: u8,
    /// A virtual interrupt is pending.
    pub irq: bool,
    /// Virtual GIF.
    pub gif: bool,
    #[bits(6)]
    __: u8,
    /// Priority of the virtual interrupt, compared with the virtual TPR.
    #[bits(4)]
    pub priority: u8,
    /// The virtual TPR does not hold the virtual interrupt back.
    pub ignore_tpr: bool,
    #[bits(3)]
    __: u8,
    /// The guest's RFLAGS.IF and CR8 govern virtual interrupts only, the host's RFLAGS.IF the physical ones.
    pub masking: bool,
    /// Virtual GIF is used.
    pub gif_enable: bool,
    #[bits(5)]
    __: u8,
    /// AVIC is used.
    pub avic_enable: bool,
    /// Vector of the virtual interrupt.
    pub vector: u8,
    #[bits(24)]
    __: u32,
}

/// Guest interrupt state at offset 068h.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct InterruptState {
    /// The instruction at RIP is in an interrupt shadow (after STI or MOV SS).
    pub shadow: bool,
    /// RFLAGS.IF of an encrypted guest; not used.
    pub interrupt_mask: bool,
    #[bits(62)]
    __: u64,
}

/// Nested paging and its relatives at offset 090h.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct NestedControl {
    /// Nested paging.
    pub nested_paging: bool,
    /// Encrypted guest; not used.
    pub sev: bool,
    /// Encrypted guest state; not used.
    pub sev_es: bool,
    #[bits(61)]
    __: u64,
}

/// Virtualisation of last-branch records and of VMLOAD and VMSAVE, at offset 0B8h. Both are off: no guest sees either.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct LbrControl {
    /// Last-branch records are switched.
    pub lbr: bool,
    /// VMLOAD and VMSAVE run in the guest.
    pub vmload: bool,
    #[bits(62)]
    __: u64,
}

/// EVENTINJ: an event that VMRUN delivers (APM2 15.20).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct EventInjection {
    /// Vector in the guest's IDT.
    pub vector: u8,
    /// 0 external interrupt, 2 NMI, 3 exception, 4 software interrupt.
    #[bits(3)]
    pub kind: u8,
    /// The error code is pushed.
    pub error_code_valid: bool,
    #[bits(19)]
    __: u32,
    /// There is an event.
    pub valid: bool,
    /// Error code.
    pub error_code: u32,
}

impl EventInjection {
    /// No event.
    pub const NONE: Self = Self::new();

    /// The encoding of an event; `None` for those that software raises, which SVM has the guest raise again.
    pub const fn of(event: Event) -> Option<Self> {
        match event.kind {
            EventKind::External | EventKind::Nmi | EventKind::Exception => {}
            EventKind::SoftwareInterrupt
            | EventKind::PrivilegedSoftwareException
            | EventKind::SoftwareException => return None,
        }
        let encoded = Self::new()
            .with_vector(event.vector)
            .with_kind(event.kind as u8)
            .with_valid(true);
        Some(match event.error_code {
            Some(code) => encoded.with_error_code_valid(true).with_error_code(code),
            None => encoded,
        })
    }

    /// The event, where there is one of a kind the manual names.
    pub const fn event(self) -> Option<Event> {
        if !self.valid() {
            return None;
        }
        let kind = match self.kind() {
            0 => EventKind::External,
            2 => EventKind::Nmi,
            3 => EventKind::Exception,
            4 => EventKind::SoftwareInterrupt,
            _ => return None,
        };
        Some(Event {
            vector: self.vector(),
            kind,
            error_code: if self.error_code_valid() {
                Some(self.error_code())
            } else {
                None
            },
            instruction_length: 0,
        })
    }
}

/// EXITINTINFO: the event whose delivery the exit interrupted (APM2 15.7.2). Laid out as EVENTINJ, but not to be written
/// there unseen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct ExitIntInfo(EventInjection);

impl ExitIntInfo {
    /// With this content.
    pub const fn new(bits: EventInjection) -> Self {
        Self(bits)
    }

    /// Whether there is an event.
    pub const fn is_valid(self) -> bool {
        self.0.valid()
    }

    /// The event, where there is one.
    pub const fn event(self) -> Option<Event> {
        self.0.event()
    }

    /// The raw encoding.
    pub const fn into_bits(self) -> u64 {
        self.0.into_bits()
    }
}

bitflags! {
    /// Groups of fields that have not changed since the last VMRUN of this block on this CPU (APM2 15.15.3).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    #[repr(transparent)]
    pub struct CleanBits: u32 {
        /// Intercepts, TSC offset, pause filter.
        const INTERCEPTS = 1 << 0;
        /// Addresses of the permission maps.
        const PERMISSION_MAPS = 1 << 1;
        /// ASID.
        const ASID = 1 << 2;
        /// V_TPR, V_IRQ and the rest of virtual interrupt control.
        const VIRTUAL_INTERRUPT = 1 << 3;
        /// NP_ENABLE, nCR3, G_PAT.
        const NESTED_PAGING = 1 << 4;
        /// CR0, CR3, CR4, EFER.
        const CONTROL_REGISTERS = 1 << 5;
        /// DR6, DR7.
        const DEBUG_REGISTERS = 1 << 6;
        /// GDTR, IDTR.
        const DESCRIPTOR_TABLES = 1 << 7;
        /// CS, DS, SS, ES, CPL.
        const SEGMENTS = 1 << 8;
        /// CR2.
        const CR2 = 1 << 9;
        /// Last-branch records.
        const LBR = 1 << 10;
        /// AVIC.
        const AVIC = 1 << 11;
        /// Shadow-stack registers.
        const CET = 1 << 12;
    }
}

/// Control area (APM2 table B-1).
#[derive(Debug)]
#[repr(C)]
pub struct ControlArea {
    pub cr_reads: RegisterSet,
    pub cr_writes: RegisterSet,
    pub dr_reads: RegisterSet,
    pub dr_writes: RegisterSet,
    pub exceptions: Exceptions,
    pub intercepts1: Intercepts1,
    pub intercepts2: Intercepts2,
    pub intercepts3: Intercepts3,
    reserved_018: [u8; 0x24],
    /// Cycles between two PAUSEs that count as one loop.
    pub pause_filter_threshold: u16,
    /// PAUSEs until one exits.
    pub pause_filter_count: u16,
    pub iopm_base: Hpa,
    pub msrpm_base: Hpa,
    /// Added to the host's TSC, modulo 2^64.
    pub tsc_offset: u64,
    pub asid: u32,
    pub tlb_control: TlbControl,
    reserved_05d: [u8; 3],
    pub virtual_interrupt: VirtualInterrupt,
    pub interrupt_state: InterruptState,
    pub exit_code: ExitCode,
    pub exit_info1: u64,
    pub exit_info2: u64,
    pub exit_int_info: ExitIntInfo,
    pub nested: NestedControl,
    pub avic_bar: u64,
    ghcb: u64,
    pub event_injection: EventInjection,
    /// Root of the nested page table.
    pub nested_cr3: Hpa,
    pub lbr: LbrControl,
    pub clean: CleanBits,
    reserved_0c4: u32,
    /// RIP of the instruction after the one that exited; only with NRIP save.
    pub next_rip: u64,
    pub fetched_count: u8,
    pub fetched_bytes: [u8; 15],
    pub avic_backing_page: u64,
    reserved_0e8: u64,
    pub avic_logical_table: u64,
    pub avic_physical_table: u64,
    reserved_100: [u8; 0x300],
}

/// State save area (APM2 table B-2).
#[derive(Debug)]
#[repr(C)]
pub struct SaveArea {
    pub es: Segment,
    pub cs: Segment,
    pub ss: Segment,
    pub ds: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub gdtr: Segment,
    pub ldtr: Segment,
    pub idtr: Segment,
    pub tr: Segment,
    reserved_0a0: [u8; 0x2b],
    pub cpl: u8,
    reserved_0cc: u32,
    pub efer: u64,
    reserved_0d8: [u8; 0x70],
    pub cr4: u64,
    pub cr3: u64,
    pub cr0: u64,
    pub dr7: u64,
    pub dr6: u64,
    pub rflags: u64,
    pub rip: u64,
    reserved_180: [u8; 0x58],
    pub rsp: u64,
    pub s_cet: u64,
    pub ssp: u64,
    pub interrupt_ssp_table: u64,
    pub rax: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub cr2: u64,
    reserved_248: [u8; 0x20],
    pub g_pat: u64,
    pub debugctl: u64,
    pub br_from: u64,
    pub br_to: u64,
    pub last_exception_from: u64,
    pub last_exception_to: u64,
    reserved_298: [u8; 0x48],
    /// The guest's SPEC_CTRL, where the CPU switches it (APM2 15.37).
    pub spec_ctrl: u64,
    reserved_2e8: [u8; 0x918],
}

/// A virtual machine control block: one frame.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct Vmcb {
    pub control: ControlArea,
    pub save: SaveArea,
}

macro_rules! layout {
    ($area:ty { $($field:ident = $offset:literal,)* }) => {
        $(const _: () = assert!(offset_of!($area, $field) == $offset, stringify!($field));)*
    };
}

layout!(ControlArea {
    cr_reads = 0x000,
    cr_writes = 0x002,
    dr_reads = 0x004,
    dr_writes = 0x006,
    exceptions = 0x008,
    intercepts1 = 0x00c,
    intercepts2 = 0x010,
    intercepts3 = 0x014,
    pause_filter_threshold = 0x03c,
    pause_filter_count = 0x03e,
    iopm_base = 0x040,
    msrpm_base = 0x048,
    tsc_offset = 0x050,
    asid = 0x058,
    tlb_control = 0x05c,
    virtual_interrupt = 0x060,
    interrupt_state = 0x068,
    exit_code = 0x070,
    exit_info1 = 0x078,
    exit_info2 = 0x080,
    exit_int_info = 0x088,
    nested = 0x090,
    avic_bar = 0x098,
    ghcb = 0x0a0,
    event_injection = 0x0a8,
    nested_cr3 = 0x0b0,
    lbr = 0x0b8,
    clean = 0x0c0,
    next_rip = 0x0c8,
    fetched_count = 0x0d0,
    fetched_bytes = 0x0d1,
    avic_backing_page = 0x0e0,
    avic_logical_table = 0x0f0,
    avic_physical_table = 0x0f8,
});

layout!(SaveArea {
    es = 0x000,
    cs = 0x010,
    ss = 0x020,
    ds = 0x030,
    fs = 0x040,
    gs = 0x050,
    gdtr = 0x060,
    ldtr = 0x070,
    idtr = 0x080,
    tr = 0x090,
    cpl = 0x0cb,
    efer = 0x0d0,
    cr4 = 0x148,
    cr3 = 0x150,
    cr0 = 0x158,
    dr7 = 0x160,
    dr6 = 0x168,
    rflags = 0x170,
    rip = 0x178,
    rsp = 0x1d8,
    s_cet = 0x1e0,
    ssp = 0x1e8,
    interrupt_ssp_table = 0x1f0,
    rax = 0x1f8,
    star = 0x200,
    lstar = 0x208,
    cstar = 0x210,
    sfmask = 0x218,
    kernel_gs_base = 0x220,
    sysenter_cs = 0x228,
    sysenter_esp = 0x230,
    sysenter_eip = 0x238,
    cr2 = 0x240,
    g_pat = 0x268,
    debugctl = 0x270,
    br_from = 0x278,
    br_to = 0x280,
    last_exception_from = 0x288,
    last_exception_to = 0x290,
    spec_ctrl = 0x2e0,
});

layout!(Vmcb {
    control = 0,
    save = 0x400,
});

const _: () = assert!(size_of::<ControlArea>() == 0x400);
const _: () = assert!(size_of::<SaveArea>() == 0xc00);
const _: () = assert!(size_of::<Vmcb>() == 0x1000);
// A segment register is stored as the ABI has it: selector, attributes, limit, base (APM2 figure B-1).
const _: () = assert!(offset_of!(Segment, attributes) == 2 && offset_of!(Segment, limit) == 4);
const _: () = assert!(offset_of!(Segment, base) == 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_encoded_as_the_manual_draws_them() {
        assert_eq!(
            EventInjection::of(Event::external(0x41)).map(u64::from),
            Some(0x8000_0041)
        );
        assert_eq!(
            EventInjection::of(Event::NMI).map(u64::from),
            Some(0x8000_0202)
        );
        let fault = Event::exception(14, Some(7));
        assert_eq!(
            EventInjection::of(fault).map(u64::from),
            Some(0x7_8000_0b0e)
        );
    }

    #[test]
    fn events_come_back_as_they_were() {
        for event in [
            Event::external(0xff),
            Event::NMI,
            Event::UD,
            Event::GP0,
            Event::exception(14, Some(0x1f)),
        ] {
            let encoded = EventInjection::of(event).expect("not raised by software");
            assert_eq!(ExitIntInfo::new(encoded).event(), Some(event));
        }
        assert_eq!(EventInjection::NONE.event(), None);
        assert_eq!(
            EventInjection::from_bits(0x0e).event(),
            None,
            "stale bits without V"
        );
    }

    #[test]
    fn virtual_interrupt_control_has_its_bits_in_place() {
        let window = VirtualInterrupt::new()
            .with_irq(true)
            .with_ignore_tpr(true)
            .with_masking(true);
        assert_eq!(u64::from(window), 1 << 8 | 1 << 20 | 1 << 24);
        assert_eq!(
            u64::from(VirtualInterrupt::new().with_vector(0xff)),
            0xff << 32
        );
        assert_eq!(
            u64::from(VirtualInterrupt::new().with_priority(15)),
            0xf << 16
        );
        assert_eq!(
            u64::from(VirtualInterrupt::new().with_avic_enable(true)),
            1 << 31
        );
    }
}

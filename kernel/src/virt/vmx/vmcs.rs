//! The fields of a VMCS as types (SDM vol. 3 chapter 25 and appendix B).
//!
//! A field is a constant whose type holds its width, whether it can be written, and the type of its value; its number can
//! be had only as an [`Encoding`], which is no value of any field. So neither a value nor a number of one field can be
//! written into another. Values that hardware may extend are newtypes, never Rust `enum`s.
//!
//! Every access needs a current VMCS; [`super::vcpu`] sees to that. This module never makes one current.

#![allow(
    unsafe_code,
    reason = "VMREAD and VMWRITE are instructions without a safe form"
)]

use core::arch::asm;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicU64, Ordering};

use bitflags::bitflags;

use crate::mem::{Gpa, Hpa};

/// VMWRITEs that the CPU refused, on all CPUs. Stays 0 unless the kernel has a defect.
pub static FAILED_WRITES: AtomicU64 = AtomicU64::new(0);

/// The number of a field (SDM appendix B). Deliberately not an integer: it is no value of any field.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Encoding(u32);

impl Encoding {
    /// The number, to be printed or put into an assembler operand.
    pub const fn number(self) -> u32 {
        self.0
    }

    /// Bits 14:13: 0 for 16 bits, 1 for 64, 2 for 32, 3 for natural width.
    const fn width(self) -> u32 {
        self.0 >> 13 & 3
    }

    /// Bits 11:10: 0 control, 1 VM-exit information (read-only), 2 guest state, 3 host state.
    const fn kind(self) -> u32 {
        self.0 >> 10 & 3
    }
}

/// Width of a field.
pub trait Width {
    /// Bits 14:13 of the encoding.
    const CODE: u32;
    /// Bytes of a value.
    const BYTES: usize;
}

/// 16 bits wide.
pub struct W16;
/// 32 bits wide.
pub struct W32;
/// 64 bits wide.
pub struct W64;
/// As wide as a register: 64 bits here.
pub struct Natural;

impl Width for W16 {
    const CODE: u32 = 0;
    const BYTES: usize = 2;
}
impl Width for W32 {
    const CODE: u32 = 2;
    const BYTES: usize = 4;
}
impl Width for W64 {
    const CODE: u32 = 1;
    const BYTES: usize = 8;
}
impl Width for Natural {
    const CODE: u32 = 3;
    const BYTES: usize = 8;
}

/// May be read and written.
pub struct ReadWrite;
/// VM-exit information: may only be read.
pub struct ReadOnly;

/// Whether a field can be written.
pub trait Access {
    /// Whether fields of this access are VM-exit information.
    const EXIT_INFORMATION: bool;
}
impl Access for ReadWrite {
    const EXIT_INFORMATION: bool = false;
}
impl Access for ReadOnly {
    const EXIT_INFORMATION: bool = true;
}

/// What a field can hold.
pub trait Value: Copy {
    /// From the low bits of a register.
    fn from_bits(bits: u64) -> Self;
    /// To a register.
    fn to_bits(self) -> u64;
}

/// A field of width `W` that holds a `T`.
pub struct Field<W, T, A = ReadWrite> {
    encoding: Encoding,
    kind: PhantomData<(W, T, A)>,
}

impl<W, T, A> Clone for Field<W, T, A> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<W, T, A> Copy for Field<W, T, A> {}

impl<W: Width, T: Value, A: Access> Field<W, T, A> {
    /// Checks at compile time that the number says the same as the types.
    const fn new(number: u32) -> Self {
        let encoding = Encoding(number);
        assert!(
            encoding.width() == W::CODE,
            "the encoding names another width"
        );
        assert!(
            size_of::<T>() == W::BYTES,
            "the value's type has another width"
        );
        assert!(
            (encoding.kind() == 1) == A::EXIT_INFORMATION,
            "VM-exit information is read-only, everything else is not"
        );
        Self {
            encoding,
            kind: PhantomData,
        }
    }

    /// The field's number.
    pub const fn encoding(self) -> Encoding {
        self.encoding
    }

    /// The field's value in the current VMCS.
    #[inline(always)]
    pub fn read(self) -> T {
        T::from_bits(read_raw(self.encoding))
    }
}

impl<W: Width, T: Value> Field<W, T, ReadWrite> {
    /// Writes the field in the current VMCS.
    #[inline(always)]
    pub fn write(self, value: T) {
        write_raw(self.encoding, value.to_bits());
    }
}

#[inline(always)]
fn read_raw(field: Encoding) -> u64 {
    if cfg!(debug_assertions) {
        return try_read(field).expect("VMREAD of a field that this CPU has");
    }
    let value: u64;
    // SAFETY: VMREAD of a register changes nothing but its destination and the flags. The CPU is in VMX operation, or this
    // is #UD, which ends the kernel in an orderly way.
    unsafe {
        asm!("vmread {value}, {field}", field = in(reg) u64::from(field.0), value = out(reg) value,
            options(nostack, readonly));
    }
    value
}

/// Reads a field that this CPU may not have.
pub fn try_read(field: Encoding) -> Option<u64> {
    let value: u64;
    let failed: u8;
    // SAFETY: as in `read_raw`.
    unsafe {
        asm!("vmread {value}, {field}", "setbe {failed}", field = in(reg) u64::from(field.0),
            value = inout(reg) 0u64 => value, failed = out(reg_byte) failed, options(nostack, readonly));
    }
    (failed == 0).then_some(value)
}

#[inline(always)]
fn write_raw(field: Encoding, value: u64) {
    // SAFETY: VMWRITE changes the current VMCS alone. What a field's value makes the CPU do is in the hands of those who
    // choose it: host state and controls are written only in this folder, from values that are the host's own.
    unsafe {
        asm!("vmwrite {field}, {value}", "jbe {failed}", field = in(reg) u64::from(field.0), value = in(reg) value,
            failed = label { write_failed(field, value) }, options(nostack));
    }
}

#[cold]
#[inline(never)]
fn write_failed(field: Encoding, value: u64) {
    FAILED_WRITES.fetch_add(1, Ordering::Relaxed);
    if cfg!(debug_assertions) {
        panic!("VMWRITE of {value:#x} to field {:#06x} failed", field.0);
    }
}

macro_rules! integers {
    ($($t:ty)*) => {$(
        impl Value for $t {
            #[inline(always)]
            fn from_bits(bits: u64) -> Self {
                bits as Self
            }
            #[inline(always)]
            fn to_bits(self) -> u64 {
                u64::from(self)
            }
        }
    )*};
}
integers!(u16 u32 u64);

macro_rules! addresses {
    ($($t:ty)*) => {$(
        impl Value for $t {
            #[inline(always)]
            fn from_bits(bits: u64) -> Self {
                Self::new(bits)
            }
            #[inline(always)]
            fn to_bits(self) -> u64 {
                self.get()
            }
        }
    )*};
}
addresses!(Hpa Gpa);

macro_rules! newtypes {
    ($($(#[$doc:meta])* $name:ident($t:ty);)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        #[repr(transparent)]
        pub struct $name(pub $t);

        impl Value for $name {
            #[inline(always)]
            fn from_bits(bits: u64) -> Self {
                Self(bits as $t)
            }
            #[inline(always)]
            fn to_bits(self) -> u64 {
                u64::from(self.0)
            }
        }
    )*};
}

newtypes! {
    /// A segment selector.
    Selector(u16);
    /// A virtual-processor identifier; 0 is the host's.
    Vpid(u16);
    /// Limit of a segment or descriptor table, in bytes.
    Limit(u32);
    /// Access rights of a segment (SDM table 25-2).
    AccessRights(u32);
    /// A linear address: a segment's base, RIP, RSP, a stack or an entry point.
    Linear(u64);
    /// Value of CR0.
    Cr0(u64);
    /// Value of CR3: page-table root with PCID or flags.
    Cr3(u64);
    /// Value of CR4.
    Cr4(u64);
    /// Value of RFLAGS.
    Rflags(u64);
    /// Value of DR7.
    Dr7(u64);
    /// Value of IA32_EFER.
    Efer(u64);
    /// Value of IA32_PAT.
    Pat(u64);
    /// Value of IA32_DEBUGCTL.
    DebugCtl(u64);
    /// A page-directory-pointer-table entry of PAE paging.
    Pdpte(u64);
    /// One bit a vector: exceptions that exit.
    ExceptionBitmap(u32);
    /// Page-fault error-code mask or match.
    PageFaultFilter(u32);
    /// How many of something: MSRs in a list, CR3 targets.
    Count(u32);
    /// Error code of an event.
    ErrorCode(u32);
    /// Length of an instruction, in bytes.
    InstructionLength(u32);
    /// Instruction information of a VM exit (SDM 28.2.5); its form depends on the instruction.
    InstructionInformation(u32);
    /// Added to the TSC for the guest.
    TscOffset(u64);
    /// One bit a leaf of ENCLS or ENCLV: those that exit.
    InstructionBitmap(u64);
    /// Units of the VMX-preemption timer.
    TimerValue(u32);
    /// The EPT pointer (SDM table 25-9).
    EptPointer(u64);
    /// Pending debug exceptions (SDM table 25-4).
    PendingDebug(u64);
    /// Activity state (SDM 25.4.2): 0 active, 1 HLT, 2 shutdown, 3 wait for SIPI.
    ActivityState(u32);
    /// VM-instruction error (SDM table 31-1).
    InstructionError(u32);
    /// Exit qualification; [`super::exits`] decodes it by reason.
    Qualification(u64);
    /// Link to a shadow VMCS; all ones for none.
    LinkPointer(u64);
    /// One bit a vector of a quarter of all: those whose end of interrupt exits.
    EoiExits(u64);
    /// The class of the task priority below which there is an exit.
    TprThreshold(u32);
    /// Guest interrupt status (SDM 25.4.2): the highest vector requested, and the highest in service.
    InterruptStatus(u16);
    /// Value of IA32_SYSENTER_CS.
    SysenterCs(u32);
}

impl ActivityState {
    /// Runs instructions.
    pub const ACTIVE: Self = Self(0);
}

impl LinkPointer {
    /// No shadow VMCS.
    pub const NONE: Self = Self(u64::MAX);
}

impl PendingDebug {
    /// A single-step trap is pending.
    pub const BS: u64 = 1 << 14;
    /// What makes a #DB pending: the single step, an enabled breakpoint that was met (bit 12), and one inside a transactional region (bit 16). An address
    /// that was met (bits 3:0) does not by itself.
    pub const DUE: u64 = Self::BS | 1 << 12 | 1 << 16;
}

impl AccessRights {
    /// The segment is unusable: a null selector was loaded.
    pub const UNUSABLE: u32 = 1 << 16;
}

/// An exit reason with its flags (SDM table 25-20, appendix C): the basic reason in bits 15:0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct ExitReason(pub u32);

impl Value for ExitReason {
    #[inline(always)]
    fn from_bits(bits: u64) -> Self {
        Self(bits as u32)
    }
    #[inline(always)]
    fn to_bits(self) -> u64 {
        u64::from(self.0)
    }
}

macro_rules! exit_reasons {
    ($($number:literal $name:ident $words:literal;)*) => {
        #[expect(missing_docs, reason = "the names are those of SDM appendix C")]
        impl ExitReason {
            $(pub const $name: Self = Self($number);)*

            /// The basic reason in words.
            pub const fn name(self) -> &'static str {
                match self.basic() {
                    $(Self::$name => $words,)*
                    _ => "an exit reason that the manual does not name",
                }
            }
        }
    };
}

impl ExitReason {
    /// Bit 31: the entry failed.
    pub const ENTRY_FAILURE: u32 = 1 << 31;

    /// The reason without the flags in bits 31:16.
    pub const fn basic(self) -> Self {
        Self(self.0 & 0xffff)
    }

    /// Whether this is a failed VM entry.
    pub const fn is_entry_failure(self) -> bool {
        self.0 & Self::ENTRY_FAILURE != 0
    }
}

exit_reasons! {
    0 EXCEPTION_OR_NMI "exception or NMI";
    1 EXTERNAL_INTERRUPT "external interrupt";
    2 TRIPLE_FAULT "triple fault";
    3 INIT "INIT signal";
    4 STARTUP_IPI "start-up IPI";
    5 IO_SMI "I/O SMI";
    6 OTHER_SMI "other SMI";
    7 INTERRUPT_WINDOW "interrupt window";
    8 NMI_WINDOW "NMI window";
    9 TASK_SWITCH "task switch";
    10 CPUID "CPUID";
    11 GETSEC "GETSEC";
    12 HLT "HLT";
    13 INVD "INVD";
    14 INVLPG "INVLPG";
    15 RDPMC "RDPMC";
    16 RDTSC "RDTSC";
    17 RSM "RSM";
    18 VMCALL "VMCALL";
    19 VMCLEAR "VMCLEAR";
    20 VMLAUNCH "VMLAUNCH";
    21 VMPTRLD "VMPTRLD";
    22 VMPTRST "VMPTRST";
    23 VMREAD "VMREAD";
    24 VMRESUME "VMRESUME";
    25 VMWRITE "VMWRITE";
    26 VMXOFF "VMXOFF";
    27 VMXON "VMXON";
    28 CONTROL_REGISTER "control-register access";
    29 MOV_DR "MOV DR";
    30 IO "I/O instruction";
    31 RDMSR "RDMSR";
    32 WRMSR "WRMSR";
    33 INVALID_GUEST_STATE "VM-entry failure due to invalid guest state";
    34 MSR_LOADING "VM-entry failure due to MSR loading";
    36 MWAIT "MWAIT";
    37 MONITOR_TRAP_FLAG "monitor trap flag";
    39 MONITOR "MONITOR";
    40 PAUSE "PAUSE";
    41 MACHINE_CHECK_AT_ENTRY "VM-entry failure due to a machine check";
    43 TPR_BELOW_THRESHOLD "TPR below threshold";
    44 APIC_ACCESS "APIC access";
    45 VIRTUALIZED_EOI "virtualised EOI";
    46 GDTR_IDTR "access to GDTR or IDTR";
    47 LDTR_TR "access to LDTR or TR";
    48 EPT_VIOLATION "EPT violation";
    49 EPT_MISCONFIGURATION "EPT misconfiguration";
    50 INVEPT "INVEPT";
    51 RDTSCP "RDTSCP";
    52 PREEMPTION_TIMER "VMX-preemption timer expired";
    53 INVVPID "INVVPID";
    54 WBINVD "WBINVD or WBNOINVD";
    55 XSETBV "XSETBV";
    56 APIC_WRITE "APIC write";
    57 RDRAND "RDRAND";
    58 INVPCID "INVPCID";
    59 VMFUNC "VMFUNC";
    60 ENCLS "ENCLS";
    61 RDSEED "RDSEED";
    62 PAGE_MODIFICATION_LOG_FULL "page-modification log full";
    63 XSAVES "XSAVES";
    64 XRSTORS "XRSTORS";
    65 PCONFIG "PCONFIG";
    66 SUB_PAGE_PERMISSION "sub-page-permission event";
    67 UMWAIT "UMWAIT";
    68 TPAUSE "TPAUSE";
    69 LOADIWKEY "LOADIWKEY";
    70 ENCLV "ENCLV";
    72 ENQCMD "ENQCMD PASID translation failure";
    73 ENQCMDS "ENQCMDS PASID translation failure";
    74 BUS_LOCK "bus lock";
    75 INSTRUCTION_TIMEOUT "instruction timeout";
    76 SEAMCALL "SEAMCALL";
    77 TDCALL "TDCALL";
    78 RDMSRLIST "RDMSRLIST";
    79 WRMSRLIST "WRMSRLIST";
    80 URDMSR "URDMSR";
    81 UWRMSR "UWRMSR";
    84 RDMSR_IMMEDIATE "RDMSR with an immediate";
    85 WRMSRNS_IMMEDIATE "WRMSRNS with an immediate";
}

macro_rules! controls {
    ($($(#[$doc:meta])* $name:ident: $t:ty { $($flag:ident = $bit:literal;)* })*) => {$(
        bitflags! {
            $(#[$doc])*
            #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
            pub struct $name: $t {
                $(#[expect(missing_docs, reason = "the names are those of the manual's table")]
                const $flag = 1 << $bit;)*
                // Reserved bits that capability MSRs demand are kept.
                const _ = !0;
            }
        }
        impl Value for $name {
            #[inline(always)]
            fn from_bits(bits: u64) -> Self {
                Self::from_bits_retain(bits as $t)
            }
            #[inline(always)]
            fn to_bits(self) -> u64 {
                u64::from(self.bits())
            }
        }
    )*};
}

controls! {
    /// Pin-based VM-execution controls (SDM table 25-5).
    PinControls: u32 {
        EXTERNAL_INTERRUPT_EXITING = 0;
        NMI_EXITING = 3;
        VIRTUAL_NMIS = 5;
        PREEMPTION_TIMER = 6;
        POSTED_INTERRUPTS = 7;
    }
    /// Primary processor-based VM-execution controls (SDM table 25-6).
    PrimaryControls: u32 {
        INTERRUPT_WINDOW_EXITING = 2;
        TSC_OFFSETTING = 3;
        HLT_EXITING = 7;
        INVLPG_EXITING = 9;
        MWAIT_EXITING = 10;
        RDPMC_EXITING = 11;
        RDTSC_EXITING = 12;
        CR3_LOAD_EXITING = 15;
        CR3_STORE_EXITING = 16;
        TERTIARY_CONTROLS = 17;
        CR8_LOAD_EXITING = 19;
        CR8_STORE_EXITING = 20;
        TPR_SHADOW = 21;
        NMI_WINDOW_EXITING = 22;
        MOV_DR_EXITING = 23;
        UNCONDITIONAL_IO_EXITING = 24;
        IO_BITMAPS = 25;
        MONITOR_TRAP_FLAG = 27;
        MSR_BITMAPS = 28;
        MONITOR_EXITING = 29;
        PAUSE_EXITING = 30;
        SECONDARY_CONTROLS = 31;
    }
    /// Secondary processor-based VM-execution controls (SDM table 25-7).
    SecondaryControls: u32 {
        VIRTUALIZE_APIC_ACCESSES = 0;
        EPT = 1;
        DESCRIPTOR_TABLE_EXITING = 2;
        RDTSCP = 3;
        VIRTUALIZE_X2APIC_MODE = 4;
        VPID = 5;
        WBINVD_EXITING = 6;
        UNRESTRICTED_GUEST = 7;
        APIC_REGISTER_VIRTUALIZATION = 8;
        VIRTUAL_INTERRUPT_DELIVERY = 9;
        PAUSE_LOOP_EXITING = 10;
        RDRAND_EXITING = 11;
        INVPCID = 12;
        VM_FUNCTIONS = 13;
        VMCS_SHADOWING = 14;
        ENCLS_EXITING = 15;
        RDSEED_EXITING = 16;
        PML = 17;
        EPT_VIOLATION_VE = 18;
        CONCEAL_FROM_PT = 19;
        XSAVES = 20;
        MODE_BASED_EXECUTE = 22;
        SUB_PAGE_PERMISSIONS = 23;
        PT_GUEST_PHYSICAL = 24;
        TSC_SCALING = 25;
        USER_WAIT_AND_PAUSE = 26;
        PCONFIG = 27;
        ENCLV_EXITING = 28;
        BUS_LOCK_DETECTION = 30;
        INSTRUCTION_TIMEOUT = 31;
    }
    /// VM-exit controls (SDM table 25-13).
    ExitControls: u32 {
        SAVE_DEBUG_CONTROLS = 2;
        HOST_ADDRESS_SPACE_SIZE = 9;
        LOAD_PERF_GLOBAL_CTRL = 12;
        ACKNOWLEDGE_INTERRUPT = 15;
        SAVE_PAT = 18;
        LOAD_PAT = 19;
        SAVE_EFER = 20;
        LOAD_EFER = 21;
        SAVE_PREEMPTION_TIMER = 22;
        CLEAR_BNDCFGS = 23;
        CONCEAL_FROM_PT = 24;
        CLEAR_RTIT_CTL = 25;
        CLEAR_LBR_CTL = 26;
        LOAD_CET = 28;
        LOAD_PKRS = 29;
        SAVE_PERF_GLOBAL_CTRL = 30;
        SECONDARY_CONTROLS = 31;
    }
    /// VM-entry controls (SDM table 25-16).
    EntryControls: u32 {
        LOAD_DEBUG_CONTROLS = 2;
        IA32E_MODE_GUEST = 9;
        ENTRY_TO_SMM = 10;
        DEACTIVATE_DUAL_MONITOR = 11;
        LOAD_PERF_GLOBAL_CTRL = 13;
        LOAD_PAT = 14;
        LOAD_EFER = 15;
        LOAD_BNDCFGS = 16;
        CONCEAL_FROM_PT = 17;
        LOAD_RTIT_CTL = 18;
        LOAD_CET = 20;
        LOAD_LBR_CTL = 21;
        LOAD_PKRS = 22;
    }
    /// Interruptibility state (SDM table 25-3).
    Interruptibility: u32 {
        BLOCKING_BY_STI = 0;
        BLOCKING_BY_MOV_SS = 1;
        BLOCKING_BY_SMI = 2;
        BLOCKING_BY_NMI = 3;
        ENCLAVE_INTERRUPTION = 4;
    }
}

impl Interruptibility {
    /// The shadow of STI, MOV SS and POP SS: ends with the next instruction.
    pub const SHADOW: Self = Self::BLOCKING_BY_STI.union(Self::BLOCKING_BY_MOV_SS);
}

/// Interruption information (SDM tables 25-17, 25-18, 25-19): the form that VM entry, VM exit and IDT vectoring share.
#[bitfield_struct::bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct InterruptionInfo {
    /// Vector.
    pub vector: u8,
    /// 0 external, 2 NMI, 3 hardware exception, 4 software interrupt, 5 privileged software exception, 6 software exception.
    #[bits(3)]
    pub kind: u8,
    /// An error code goes with it.
    pub has_error_code: bool,
    /// VM exit: NMI unblocking due to IRET. Undefined in IDT-vectoring information, reserved at VM entry.
    pub nmi_unblocking: bool,
    #[bits(18)]
    __: u32,
    /// The field says something.
    pub valid: bool,
}

impl Value for InterruptionInfo {
    #[inline(always)]
    fn from_bits(bits: u64) -> Self {
        Self::from_bits(bits as u32)
    }
    #[inline(always)]
    fn to_bits(self) -> u64 {
        u64::from(u32::from(self))
    }
}

macro_rules! fields {
    ($($number:literal $name:ident: $w:ident $t:ty $(, $a:ident)?;)*) => {
        $(
            #[doc = concat!("Field ", stringify!($number), " (SDM appendix B).")]
            pub const $name: Field<$w, $t $(, $a)?> = Field::new($number);
        )*

        /// Every field named here, for a dump.
        pub const ALL: &[(&str, Encoding)] = &[$((stringify!($name), $name.encoding())),*];
    };
}

fields! {
    // Controls.
    0x0000 VPID: W16 Vpid;
    0x2000 IO_BITMAP_A: W64 Hpa;
    0x2002 IO_BITMAP_B: W64 Hpa;
    0x2004 MSR_BITMAP: W64 Hpa;
    0x2010 TSC_OFFSET: W64 TscOffset;
    0x2012 VIRTUAL_APIC: W64 Hpa;
    0x201a EPT_POINTER: W64 EptPointer;
    0x201c EOI_EXITS_0: W64 EoiExits;
    0x201e EOI_EXITS_1: W64 EoiExits;
    0x2020 EOI_EXITS_2: W64 EoiExits;
    0x2022 EOI_EXITS_3: W64 EoiExits;
    0x202e ENCLS_BITMAP: W64 InstructionBitmap;
    0x2036 ENCLV_BITMAP: W64 InstructionBitmap;
    0x4000 PIN_CONTROLS: W32 PinControls;
    0x4002 PRIMARY_CONTROLS: W32 PrimaryControls;
    0x4004 EXCEPTION_BITMAP: W32 ExceptionBitmap;
    0x4006 PAGE_FAULT_MASK: W32 PageFaultFilter;
    0x4008 PAGE_FAULT_MATCH: W32 PageFaultFilter;
    0x400a CR3_TARGET_COUNT: W32 Count;
    0x400c EXIT_CONTROLS: W32 ExitControls;
    0x400e EXIT_MSR_STORE_COUNT: W32 Count;
    0x4010 EXIT_MSR_LOAD_COUNT: W32 Count;
    0x4012 ENTRY_CONTROLS: W32 EntryControls;
    0x4014 ENTRY_MSR_LOAD_COUNT: W32 Count;
    0x4016 ENTRY_INTERRUPTION_INFO: W32 InterruptionInfo;
    0x4018 ENTRY_ERROR_CODE: W32 ErrorCode;
    0x401a ENTRY_INSTRUCTION_LENGTH: W32 InstructionLength;
    0x401c TPR_THRESHOLD: W32 TprThreshold;
    0x401e SECONDARY_CONTROLS: W32 SecondaryControls;
    0x6000 CR0_MASK: Natural Cr0;
    0x6002 CR4_MASK: Natural Cr4;
    0x6004 CR0_SHADOW: Natural Cr0;
    0x6006 CR4_SHADOW: Natural Cr4;

    // VM-exit information.
    0x2400 GUEST_PHYSICAL_ADDRESS: W64 Gpa, ReadOnly;
    0x4400 INSTRUCTION_ERROR: W32 InstructionError, ReadOnly;
    0x4402 EXIT_REASON: W32 ExitReason, ReadOnly;
    0x4404 EXIT_INTERRUPTION_INFO: W32 InterruptionInfo, ReadOnly;
    0x4406 EXIT_ERROR_CODE: W32 ErrorCode, ReadOnly;
    0x4408 IDT_VECTORING_INFO: W32 InterruptionInfo, ReadOnly;
    0x440a IDT_VECTORING_ERROR_CODE: W32 ErrorCode, ReadOnly;
    0x440c EXIT_INSTRUCTION_LENGTH: W32 InstructionLength, ReadOnly;
    0x440e EXIT_INSTRUCTION_INFO: W32 InstructionInformation, ReadOnly;
    0x6400 EXIT_QUALIFICATION: Natural Qualification, ReadOnly;
    0x640a GUEST_LINEAR_ADDRESS: Natural Linear, ReadOnly;

    // Guest state.
    0x0800 GUEST_ES_SELECTOR: W16 Selector;
    0x0802 GUEST_CS_SELECTOR: W16 Selector;
    0x0804 GUEST_SS_SELECTOR: W16 Selector;
    0x0806 GUEST_DS_SELECTOR: W16 Selector;
    0x0808 GUEST_FS_SELECTOR: W16 Selector;
    0x080a GUEST_GS_SELECTOR: W16 Selector;
    0x080c GUEST_LDTR_SELECTOR: W16 Selector;
    0x080e GUEST_TR_SELECTOR: W16 Selector;
    0x0810 GUEST_INTERRUPT_STATUS: W16 InterruptStatus;
    0x2800 VMCS_LINK_POINTER: W64 LinkPointer;
    0x2802 GUEST_DEBUGCTL: W64 DebugCtl;
    0x2804 GUEST_PAT: W64 Pat;
    0x2806 GUEST_EFER: W64 Efer;
    0x280a GUEST_PDPTE0: W64 Pdpte;
    0x280c GUEST_PDPTE1: W64 Pdpte;
    0x280e GUEST_PDPTE2: W64 Pdpte;
    0x2810 GUEST_PDPTE3: W64 Pdpte;
    0x4800 GUEST_ES_LIMIT: W32 Limit;
    0x4802 GUEST_CS_LIMIT: W32 Limit;
    0x4804 GUEST_SS_LIMIT: W32 Limit;
    0x4806 GUEST_DS_LIMIT: W32 Limit;
    0x4808 GUEST_FS_LIMIT: W32 Limit;
    0x480a GUEST_GS_LIMIT: W32 Limit;
    0x480c GUEST_LDTR_LIMIT: W32 Limit;
    0x480e GUEST_TR_LIMIT: W32 Limit;
    0x4810 GUEST_GDTR_LIMIT: W32 Limit;
    0x4812 GUEST_IDTR_LIMIT: W32 Limit;
    0x4814 GUEST_ES_RIGHTS: W32 AccessRights;
    0x4816 GUEST_CS_RIGHTS: W32 AccessRights;
    0x4818 GUEST_SS_RIGHTS: W32 AccessRights;
    0x481a GUEST_DS_RIGHTS: W32 AccessRights;
    0x481c GUEST_FS_RIGHTS: W32 AccessRights;
    0x481e GUEST_GS_RIGHTS: W32 AccessRights;
    0x4820 GUEST_LDTR_RIGHTS: W32 AccessRights;
    0x4822 GUEST_TR_RIGHTS: W32 AccessRights;
    0x4824 GUEST_INTERRUPTIBILITY: W32 Interruptibility;
    0x4826 GUEST_ACTIVITY: W32 ActivityState;
    0x482a GUEST_SYSENTER_CS: W32 SysenterCs;
    0x482e PREEMPTION_TIMER: W32 TimerValue;
    0x6800 GUEST_CR0: Natural Cr0;
    0x6802 GUEST_CR3: Natural Cr3;
    0x6804 GUEST_CR4: Natural Cr4;
    0x6806 GUEST_ES_BASE: Natural Linear;
    0x6808 GUEST_CS_BASE: Natural Linear;
    0x680a GUEST_SS_BASE: Natural Linear;
    0x680c GUEST_DS_BASE: Natural Linear;
    0x680e GUEST_FS_BASE: Natural Linear;
    0x6810 GUEST_GS_BASE: Natural Linear;
    0x6812 GUEST_LDTR_BASE: Natural Linear;
    0x6814 GUEST_TR_BASE: Natural Linear;
    0x6816 GUEST_GDTR_BASE: Natural Linear;
    0x6818 GUEST_IDTR_BASE: Natural Linear;
    0x681a GUEST_DR7: Natural Dr7;
    0x681c GUEST_RSP: Natural Linear;
    0x681e GUEST_RIP: Natural Linear;
    0x6820 GUEST_RFLAGS: Natural Rflags;
    0x6822 GUEST_PENDING_DEBUG: Natural PendingDebug;
    0x6824 GUEST_SYSENTER_ESP: Natural Linear;
    0x6826 GUEST_SYSENTER_EIP: Natural Linear;

    // Host state.
    0x0c00 HOST_ES_SELECTOR: W16 Selector;
    0x0c02 HOST_CS_SELECTOR: W16 Selector;
    0x0c04 HOST_SS_SELECTOR: W16 Selector;
    0x0c06 HOST_DS_SELECTOR: W16 Selector;
    0x0c08 HOST_FS_SELECTOR: W16 Selector;
    0x0c0a HOST_GS_SELECTOR: W16 Selector;
    0x0c0c HOST_TR_SELECTOR: W16 Selector;
    0x2c00 HOST_PAT: W64 Pat;
    0x2c02 HOST_EFER: W64 Efer;
    0x4c00 HOST_SYSENTER_CS: W32 SysenterCs;
    0x6c00 HOST_CR0: Natural Cr0;
    0x6c02 HOST_CR3: Natural Cr3;
    0x6c04 HOST_CR4: Natural Cr4;
    0x6c06 HOST_FS_BASE: Natural Linear;
    0x6c08 HOST_GS_BASE: Natural Linear;
    0x6c0a HOST_TR_BASE: Natural Linear;
    0x6c0c HOST_GDTR_BASE: Natural Linear;
    0x6c0e HOST_IDTR_BASE: Natural Linear;
    0x6c10 HOST_SYSENTER_ESP: Natural Linear;
    0x6c12 HOST_SYSENTER_EIP: Natural Linear;
    0x6c14 HOST_RSP: Natural Linear;
    0x6c16 HOST_RIP: Natural Linear;
}

/// The four fields of a segment register.
#[derive(Clone, Copy)]
pub struct SegmentFields {
    /// Selector.
    pub selector: Field<W16, Selector>,
    /// Limit in bytes.
    pub limit: Field<W32, Limit>,
    /// Access rights.
    pub rights: Field<W32, AccessRights>,
    /// Base.
    pub base: Field<Natural, Linear>,
}

macro_rules! segments {
    ($($(#[$doc:meta])* $name:ident: $selector:ident $limit:ident $rights:ident $base:ident;)*) => {$(
        $(#[$doc])*
        pub const $name: SegmentFields = SegmentFields {
            selector: $selector,
            limit: $limit,
            rights: $rights,
            base: $base,
        };
    )*};
}

segments! {
    /// ES.
    ES: GUEST_ES_SELECTOR GUEST_ES_LIMIT GUEST_ES_RIGHTS GUEST_ES_BASE;
    /// CS.
    CS: GUEST_CS_SELECTOR GUEST_CS_LIMIT GUEST_CS_RIGHTS GUEST_CS_BASE;
    /// SS.
    SS: GUEST_SS_SELECTOR GUEST_SS_LIMIT GUEST_SS_RIGHTS GUEST_SS_BASE;
    /// DS.
    DS: GUEST_DS_SELECTOR GUEST_DS_LIMIT GUEST_DS_RIGHTS GUEST_DS_BASE;
    /// FS.
    FS: GUEST_FS_SELECTOR GUEST_FS_LIMIT GUEST_FS_RIGHTS GUEST_FS_BASE;
    /// GS.
    GS: GUEST_GS_SELECTOR GUEST_GS_LIMIT GUEST_GS_RIGHTS GUEST_GS_BASE;
    /// LDTR.
    LDTR: GUEST_LDTR_SELECTOR GUEST_LDTR_LIMIT GUEST_LDTR_RIGHTS GUEST_LDTR_BASE;
    /// TR.
    TR: GUEST_TR_SELECTOR GUEST_TR_LIMIT GUEST_TR_RIGHTS GUEST_TR_BASE;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_fields_share_a_number() {
        for (i, (name, encoding)) in ALL.iter().enumerate() {
            for (other, second) in &ALL[..i] {
                assert_ne!(encoding, second, "{name} and {other}");
            }
        }
    }

    /// Bit 0 selects the high half of a 64-bit field, bits 12 and 31:15 are reserved (SDM table 25-21).
    #[test]
    fn no_number_uses_reserved_bits() {
        for (name, encoding) in ALL {
            assert_eq!(encoding.number() & 0xffff_9001, 0, "{name}");
        }
    }

    #[test]
    fn names_follow_the_area_that_the_number_says() {
        for (name, encoding) in ALL {
            assert_eq!(name.starts_with("HOST_"), encoding.kind() == 3, "{name}");
            if name.starts_with("GUEST_") && !name.ends_with("_ADDRESS") {
                assert_eq!(encoding.kind(), 2, "{name}");
            }
        }
    }

    #[test]
    fn the_bitfield_lies_as_table_25_17_says() {
        let info = InterruptionInfo::new()
            .with_vector(14)
            .with_kind(3)
            .with_has_error_code(true)
            .with_valid(true);
        assert_eq!(u32::from(info), 0x8000_0b0e);
        assert!(InterruptionInfo::from_bits(1 << 12).nmi_unblocking());
    }

    #[test]
    fn the_basic_reason_has_no_flags() {
        let reason = ExitReason(ExitReason::ENTRY_FAILURE | 33);
        assert!(reason.is_entry_failure());
        assert_eq!(reason.basic(), ExitReason::INVALID_GUEST_STATE);
        assert_eq!(reason.name(), "VM-entry failure due to invalid guest state");
        assert_eq!(
            ExitReason(35).name(),
            "an exit reason that the manual does not name"
        );
    }
}

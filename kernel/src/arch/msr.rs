//! Model-specific registers: their numbers, and access to them.

#![allow(unsafe_code, reason = "RDMSR and WRMSR")]

use core::arch::asm;

/// A model-specific register's number. Any number is allowed: a CPU may have registers that no constant here names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Msr(pub u32);

macro_rules! registers {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        impl Msr {
            $($(#[$doc])* pub const $name: Self = Self($number);)*
        }
    };
}

registers! {
    /// Time-stamp counter.
    IA32_TIME_STAMP_COUNTER = 0x10,
    /// Platform id: the slot a microcode update is for.
    IA32_PLATFORM_ID = 0x17,
    /// The local APIC's address, mode and enable bit (SDM 12.4.4).
    IA32_APIC_BASE = 0x1b,
    /// Whether VMX and SGX may be used; locked until reset (SDM 25.7).
    IA32_FEATURE_CONTROL = 0x3a,
    /// What is added to the time-stamp counter.
    IA32_TSC_ADJUST = 0x3b,
    /// Speculation control: IBRS, STIBP, SSBD.
    IA32_SPEC_CTRL = 0x48,
    /// Prediction commands: IBPB.
    IA32_PRED_CMD = 0x49,
    /// The microcode's revision.
    IA32_BIOS_SIGN_ID = 0x8b,
    /// Ranges and features of the MTRRs (SDM 13.11).
    IA32_MTRRCAP = 0xfe,
    /// Which speculation weaknesses the CPU lacks.
    IA32_ARCH_CAPABILITIES = 0x10a,
    /// L1 data-cache flush.
    IA32_FLUSH_CMD = 0x10b,
    /// SYSENTER code segment.
    IA32_SYSENTER_CS = 0x174,
    /// SYSENTER stack pointer.
    IA32_SYSENTER_ESP = 0x175,
    /// SYSENTER entry point.
    IA32_SYSENTER_EIP = 0x176,
    /// Machine-check capabilities.
    IA32_MCG_CAP = 0x179,
    /// Machine-check status.
    IA32_MCG_STATUS = 0x17a,
    /// Miscellaneous features, fast strings and MONITOR among them.
    IA32_MISC_ENABLE = 0x1a0,
    /// Debug features: LBR, BTF.
    IA32_DEBUGCTL = 0x1d9,
    /// First variable-range MTRR: base. The mask follows; the next pair is two further on.
    IA32_MTRR_PHYSBASE0 = 0x200,
    /// First variable-range MTRR: mask.
    IA32_MTRR_PHYSMASK0 = 0x201,
    /// Fixed-range MTRR for 0 to 512 KiB.
    IA32_MTRR_FIX64K_00000 = 0x250,
    /// Fixed-range MTRR for 512 to 640 KiB.
    IA32_MTRR_FIX16K_80000 = 0x258,
    /// Fixed-range MTRR for 640 to 768 KiB.
    IA32_MTRR_FIX16K_A0000 = 0x259,
    /// First of the eight fixed-range MTRRs for 768 KiB to 1 MiB.
    IA32_MTRR_FIX4K_C0000 = 0x268,
    /// Page attribute table.
    IA32_PAT = 0x277,
    /// Default memory type, and the MTRRs' enable bits.
    IA32_MTRR_DEF_TYPE = 0x2ff,
    /// First bank of machine-check registers: control.
    IA32_MC0_CTL = 0x400,
    /// Basic facts of VMX (SDM vol. 3 appendix A.1).
    IA32_VMX_BASIC = 0x480,
    /// Allowed pin-based controls.
    IA32_VMX_PINBASED_CTLS = 0x481,
    /// Allowed primary processor-based controls.
    IA32_VMX_PROCBASED_CTLS = 0x482,
    /// Allowed VM-exit controls.
    IA32_VMX_EXIT_CTLS = 0x483,
    /// Allowed VM-entry controls.
    IA32_VMX_ENTRY_CTLS = 0x484,
    /// Miscellaneous facts of VMX.
    IA32_VMX_MISC = 0x485,
    /// CR0 bits that must be 1 in VMX operation.
    IA32_VMX_CR0_FIXED0 = 0x486,
    /// CR0 bits that may be 1 in VMX operation.
    IA32_VMX_CR0_FIXED1 = 0x487,
    /// CR4 bits that must be 1 in VMX operation.
    IA32_VMX_CR4_FIXED0 = 0x488,
    /// CR4 bits that may be 1 in VMX operation.
    IA32_VMX_CR4_FIXED1 = 0x489,
    /// The highest VMCS field index.
    IA32_VMX_VMCS_ENUM = 0x48a,
    /// Allowed secondary processor-based controls.
    IA32_VMX_PROCBASED_CTLS2 = 0x48b,
    /// EPT and VPID capabilities.
    IA32_VMX_EPT_VPID_CAP = 0x48c,
    /// True pin-based controls: defaults that may be 0.
    IA32_VMX_TRUE_PINBASED_CTLS = 0x48d,
    /// True primary processor-based controls.
    IA32_VMX_TRUE_PROCBASED_CTLS = 0x48e,
    /// True VM-exit controls.
    IA32_VMX_TRUE_EXIT_CTLS = 0x48f,
    /// True VM-entry controls.
    IA32_VMX_TRUE_ENTRY_CTLS = 0x490,
    /// Allowed VM functions.
    IA32_VMX_VMFUNC = 0x491,
    /// Allowed tertiary processor-based controls.
    IA32_VMX_PROCBASED_CTLS3 = 0x492,
    /// When the TSC-deadline timer fires (SDM 12.5.4.1).
    IA32_TSC_DEADLINE = 0x6e0,
    /// First x2APIC register: the register at offset `n` of the xAPIC page is number `0x800 + n / 16` (SDM 12.12.1.2).
    IA32_X2APIC_FIRST = 0x800,
    /// TPR of the x2APIC.
    X2APIC_TPR = 0x808,
    /// EOI of the x2APIC.
    X2APIC_EOI = 0x80b,
    /// SELF IPI of the x2APIC.
    X2APIC_SELF_IPI = 0x83f,
    /// Which supervisor states XSAVES handles.
    IA32_XSS = 0xda0,
    /// Extended features: long mode, NX, SVM.
    IA32_EFER = 0xc000_0080,
    /// SYSCALL segments.
    IA32_STAR = 0xc000_0081,
    /// SYSCALL entry in 64-bit mode.
    IA32_LSTAR = 0xc000_0082,
    /// SYSCALL entry in compatibility mode (AMD).
    IA32_CSTAR = 0xc000_0083,
    /// Flags cleared by SYSCALL.
    IA32_FMASK = 0xc000_0084,
    /// Base of FS.
    IA32_FS_BASE = 0xc000_0100,
    /// Base of GS.
    IA32_GS_BASE = 0xc000_0101,
    /// What SWAPGS exchanges with the base of GS.
    IA32_KERNEL_GS_BASE = 0xc000_0102,
    /// What RDTSCP returns in ECX.
    IA32_TSC_AUX = 0xc000_0103,
    /// AMD: system configuration, memory encryption and the MTRRs' extensions.
    SYSCFG = 0xc001_0010,
    /// AMD: hardware configuration.
    HWCR = 0xc001_0015,
    /// AMD: the top of memory above 4 GiB.
    TOP_MEM2 = 0xc001_001d,
    /// AMD: the interrupt pending message register.
    INT_PENDING = 0xc001_0055,
    /// AMD: whether SVM is disabled, and its lock (APM2 15.30.1).
    VM_CR = 0xc001_0114,
    /// AMD: whether IGNNE is asserted (APM2 15.30.2).
    IGNNE = 0xc001_0115,
    /// AMD: SMM control (APM2 15.30.3).
    SMM_CTL = 0xc001_0116,
    /// AMD: where VMRUN saves the host's state (APM2 15.30.4).
    VM_HSAVE_PA = 0xc001_0117,
    /// AMD: decode-stage configuration; LFENCE serialises when bit 1 is set.
    DE_CFG = 0xc001_1029,
}

/// Reads `msr`, which this CPU is known to have; a register it lacks ends the kernel by #GP.
pub fn read(msr: Msr) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading a model-specific register has no effect on memory; one that does not exist raises #GP, which panics.
    unsafe {
        asm!("rdmsr", in("ecx") msr.0, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Writes `value` to `msr`; a register this CPU lacks, or a value it refuses, ends the kernel by #GP.
///
/// # Safety
///
/// The write must not change what the compiler relies on: page tables, segment bases in use, entry points, memory types.
pub unsafe fn write(msr: Msr, value: u64) {
    // SAFETY: by the caller's promise. The compiler keeps memory accesses in order around it.
    unsafe {
        asm!("wrmsr", in("ecx") msr.0, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack, preserves_flags));
    }
}

/// Reads `msr`, or gives `None` where this CPU answers with #GP.
pub fn try_read(msr: Msr) -> Option<u64> {
    let (low, high, done): (u32, u32, u32);
    // SAFETY: as for `read`; the fixup entry makes the trap handler go on at label 3 when the instruction at label 2 raises
    // #GP, with all registers as before it.
    unsafe {
        asm!(
            "xor {done:e}, {done:e}",
            "2: rdmsr",
            "mov {done:e}, 1",
            "3:",
            ".pushsection plinth_fixup, \"aR\"",
            ".balign 8",
            ".long 2b - .",
            ".long 3b - .",
            ".popsection",
            done = out(reg) done,
            in("ecx") msr.0,
            out("eax") low,
            out("edx") high,
            options(nostack),
        );
    }
    (done == 1).then_some(u64::from(high) << 32 | u64::from(low))
}

/// Writes `value` to `msr`; `false` where this CPU answers with #GP, and then nothing has changed.
///
/// # Safety
///
/// As for [`write()`].
pub unsafe fn try_write(msr: Msr, value: u64) -> bool {
    let done: u32;
    // SAFETY: by the caller's promise; the fixup as in `try_read`.
    unsafe {
        asm!(
            "xor {done:e}, {done:e}",
            "2: wrmsr",
            "mov {done:e}, 1",
            "3:",
            ".pushsection plinth_fixup, \"aR\"",
            ".balign 8",
            ".long 2b - .",
            ".long 3b - .",
            ".popsection",
            done = out(reg) done,
            in("ecx") msr.0,
            in("eax") value as u32,
            in("edx") (value >> 32) as u32,
            options(nostack),
        );
    }
    done == 1
}

//! What VM entry demands of guest state (SDM 27.3.1), as a pure check: a state that breaks a rule is refused in words
//! before it reaches a VMCS, and the rule that a failed entry broke can be named. Also the words for the CPU's own errors.
//!
//! The segments' G bit is no rule here: the limit decides it when access rights are made ([`rights`]).

use plinth_abi::{Segment, VcpuState};

use super::vmcs::{AccessRights, ExitReason, InstructionError, Interruptibility, Qualification};
use crate::virt::BadState;

/// What this CPU allows.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// IA32_VMX_CR0_FIXED1: bits that may be 1.
    pub cr0_allowed: u64,
    /// IA32_VMX_CR4_FIXED1: bits that may be 1.
    pub cr4_allowed: u64,
    /// EFER bits that the CPU has.
    pub efer_allowed: u64,
    /// Physical-address width in bits.
    pub physical_bits: u32,
}

/// Bits of the control registers that rules speak of.
pub mod bits {
    #![expect(missing_docs, reason = "the names are those of the manual")]
    pub const CR0_PE: u64 = 1 << 0;
    pub const CR0_MP: u64 = 1 << 1;
    pub const CR0_EM: u64 = 1 << 2;
    pub const CR0_TS: u64 = 1 << 3;
    pub const CR0_ET: u64 = 1 << 4;
    pub const CR0_NE: u64 = 1 << 5;
    pub const CR0_WP: u64 = 1 << 16;
    pub const CR0_AM: u64 = 1 << 18;
    pub const CR0_NW: u64 = 1 << 29;
    pub const CR0_CD: u64 = 1 << 30;
    pub const CR0_PG: u64 = 1 << 31;
    pub const CR4_VME: u64 = 1 << 0;
    pub const CR4_PVI: u64 = 1 << 1;
    pub const CR4_TSD: u64 = 1 << 2;
    pub const CR4_DE: u64 = 1 << 3;
    pub const CR4_PSE: u64 = 1 << 4;
    pub const CR4_PAE: u64 = 1 << 5;
    pub const CR4_MCE: u64 = 1 << 6;
    pub const CR4_PGE: u64 = 1 << 7;
    pub const CR4_PCE: u64 = 1 << 8;
    pub const CR4_OSFXSR: u64 = 1 << 9;
    pub const CR4_OSXMMEXCPT: u64 = 1 << 10;
    pub const CR4_LA57: u64 = 1 << 12;
    pub const CR4_VMXE: u64 = 1 << 13;
    pub const CR4_PCIDE: u64 = 1 << 17;
    pub const CR4_CET: u64 = 1 << 23;
    pub const EFER_SCE: u64 = 1 << 0;
    pub const EFER_LME: u64 = 1 << 8;
    pub const EFER_LMA: u64 = 1 << 10;
    pub const EFER_NXE: u64 = 1 << 11;
    pub const RFLAGS_TF: u64 = 1 << 8;
    pub const RFLAGS_IF: u64 = 1 << 9;
    pub const RFLAGS_VM: u64 = 1 << 17;
    pub const DR7_GD: u64 = 1 << 13;
}
use bits::*;

/// Whether bits 63 to `width` - 1 of a linear address are all alike.
pub const fn is_canonical(address: u64, width: u32) -> bool {
    let unused = 64 - width;
    ((address << unused) as i64 >> unused) as u64 == address
}

/// Whether each byte of a PAT names a memory type (SDM table 13-10).
pub fn is_pat(pat: u64) -> bool {
    pat.to_le_bytes()
        .iter()
        .all(|kind| matches!(kind, 0 | 1 | 4..=7))
}

/// Whether paging is PAE paging, whose four top entries VM entry takes from the VMCS.
pub const fn is_pae_paging(cr0: u64, cr4: u64, efer: u64) -> bool {
    cr0 & CR0_PG != 0 && cr4 & CR4_PAE != 0 && efer & EFER_LMA == 0
}

/// Segment attributes with their limit as access rights (SDM table 25-2). G follows the limit where the limit leaves no
/// choice: VM entry insists on it, and the ABI's limits are in bytes whatever G says.
pub const fn rights(segment: &Segment) -> AccessRights {
    let mut attributes = segment.attributes as u32 & 0xfff;
    if segment.limit >> 20 != 0 {
        attributes |= 0x800;
    } else if segment.limit & 0xfff != 0xfff {
        attributes &= !0x800;
    }
    let unusable = if segment.is_present() {
        0
    } else {
        AccessRights::UNUSABLE
    };
    AccessRights(attributes & 0xff | (attributes & 0xf00) << 4 | unusable)
}

/// Access rights as segment attributes; an unusable segment is one that is not present.
pub const fn attributes(rights: AccessRights) -> u16 {
    let packed = (rights.0 & 0xff | rights.0 >> 4 & 0xf00) as u16;
    if rights.0 & AccessRights::UNUSABLE != 0 {
        packed & !0x80
    } else {
        packed
    }
}

macro_rules! rule {
    ($holds:expr, $words:literal) => {
        if !$holds {
            return Err(BadState($words));
        }
    };
}

/// Checks every rule of SDM 27.3.1 that a [`VcpuState`] can break, and that its MSRs hold values WRMSR takes.
pub fn check(state: &VcpuState, limits: &Limits) -> Result<(), BadState> {
    control_registers(state, limits)?;
    msrs(state)?;
    segments(state)?;
    tables(state)?;
    rip_and_flags(state)
}

fn linear_width(state: &VcpuState) -> u32 {
    if state.cr4 & CR4_LA57 != 0 { 57 } else { 48 }
}

/// SDM 27.3.1.1, control registers and EFER.
fn control_registers(state: &VcpuState, limits: &Limits) -> Result<(), BadState> {
    let (cr0, cr4, efer) = (state.cr0, state.cr4, state.efer);
    rule!(
        cr0 & !limits.cr0_allowed == 0,
        "CR0 has a bit that must be 0 (SDM 27.3.1.1, A.7)"
    );
    rule!(
        cr0 & CR0_PG == 0 || cr0 & CR0_PE != 0,
        "CR0.PG without CR0.PE (SDM 27.3.1.1)"
    );
    rule!(
        cr0 & CR0_NW == 0 || cr0 & CR0_CD != 0,
        "CR0.NW without CR0.CD (SDM 2.5)"
    );
    rule!(cr4 & CR4_VMXE == 0, "CR4.VMXE, which guests do not have");
    rule!(
        cr4 & !limits.cr4_allowed == 0,
        "CR4 has a bit that must be 0 (SDM 27.3.1.1, A.8)"
    );
    rule!(
        cr4 & CR4_CET == 0 || cr0 & CR0_WP != 0,
        "CR4.CET without CR0.WP (SDM 27.3.1.1)"
    );
    rule!(
        state.cr3 >> limits.physical_bits == 0,
        "CR3 has bits beyond the physical-address width (SDM 27.3.1.1)"
    );
    rule!(
        efer & !limits.efer_allowed == 0,
        "EFER has a bit that this CPU reserves (SDM 27.3.1.1)"
    );
    let long = efer & EFER_LMA != 0;
    rule!(
        !long || cr0 & CR0_PG != 0,
        "EFER.LMA without CR0.PG (SDM 27.3.1.1)"
    );
    rule!(
        !long || cr4 & CR4_PAE != 0,
        "EFER.LMA without CR4.PAE (SDM 27.3.1.1)"
    );
    rule!(
        cr0 & CR0_PG == 0 || long == (efer & EFER_LME != 0),
        "EFER.LMA differs from EFER.LME with CR0.PG set (SDM 27.3.1.1)"
    );
    rule!(
        long || cr4 & CR4_PCIDE == 0,
        "CR4.PCIDE outside IA-32e mode (SDM 27.3.1.1)"
    );
    rule!(
        state.dr7 >> 32 == 0,
        "DR7 has a bit above 31 (SDM 27.3.1.1)"
    );
    rule!(state.dr6 >> 32 == 0, "DR6 has a bit above 31 (SDM 18.2.3)");
    Ok(())
}

/// SDM 27.3.1.1, the MSRs of the VMCS, and those that are switched by WRMSR.
fn msrs(state: &VcpuState) -> Result<(), BadState> {
    let width = linear_width(state);
    rule!(
        is_canonical(state.sysenter_esp, width),
        "SYSENTER_ESP is not canonical (SDM 27.3.1.1)"
    );
    rule!(
        is_canonical(state.sysenter_eip, width),
        "SYSENTER_EIP is not canonical (SDM 27.3.1.1)"
    );
    rule!(
        state.sysenter_cs >> 32 == 0,
        "SYSENTER_CS has a bit above 31"
    );
    rule!(
        is_pat(state.pat),
        "PAT names a memory type that there is not (SDM 27.3.1.1)"
    );
    rule!(is_canonical(state.lstar, width), "LSTAR is not canonical");
    rule!(is_canonical(state.cstar, width), "CSTAR is not canonical");
    rule!(
        is_canonical(state.kernel_gs_base, width),
        "KERNEL_GS_BASE is not canonical"
    );
    rule!(state.sfmask >> 32 == 0, "FMASK has a bit above 31");
    rule!(state.tsc_aux >> 32 == 0, "TSC_AUX has a bit above 31");
    Ok(())
}

/// SDM 27.3.1.2. The guest is always an unrestricted one.
fn segments(state: &VcpuState) -> Result<(), BadState> {
    let width = linear_width(state);
    let v86 = state.rflags & RFLAGS_VM != 0;
    let long = state.efer & EFER_LMA != 0;
    let (cs, ss) = (&state.cs, &state.ss);
    let data = [&state.ss, &state.ds, &state.es, &state.fs, &state.gs];

    rule!(
        state.tr.selector & 4 == 0,
        "TR's selector points into the LDT (SDM 27.3.1.2)"
    );
    rule!(
        !state.ldtr.is_present() || state.ldtr.selector & 4 == 0,
        "LDTR's selector points into the LDT (SDM 27.3.1.2)"
    );
    rule!(
        [&state.tr, &state.fs, &state.gs]
            .iter()
            .all(|s| is_canonical(s.base, width)),
        "the base of TR, FS or GS is not canonical (SDM 27.3.1.2)"
    );
    rule!(
        !state.ldtr.is_present() || is_canonical(state.ldtr.base, width),
        "the base of LDTR is not canonical (SDM 27.3.1.2)"
    );
    rule!(
        cs.base >> 32 == 0,
        "the base of CS has a bit above 31 (SDM 27.3.1.2)"
    );
    rule!(
        [ss, &state.ds, &state.es]
            .iter()
            .all(|s| !s.is_present() || s.base >> 32 == 0),
        "the base of SS, DS or ES has a bit above 31 (SDM 27.3.1.2)"
    );

    if v86 {
        for s in data.into_iter().chain([cs]) {
            rule!(
                s.base == u64::from(s.selector) << 4,
                "in virtual-8086 mode a segment's base is not its selector times 16 (SDM 27.3.1.2)"
            );
            rule!(
                s.limit == 0xffff,
                "in virtual-8086 mode a segment's limit is not 0xFFFF (SDM 27.3.1.2)"
            );
            rule!(
                s.attributes & 0xfff == 0xf3,
                "in virtual-8086 mode a segment's attributes are not 0xF3 (SDM 27.3.1.2)"
            );
        }
    } else {
        code_segment(cs, ss, long)?;
        rule!(
            !ss.is_present() || matches!(ss.attributes & 0xf, 3 | 7),
            "SS is usable and not a writable, accessed data segment (SDM 27.3.1.2)"
        );
        rule!(
            ss.dpl() == 0 || (cs.attributes & 0xf != 3 && state.cr0 & CR0_PE != 0),
            "SS.DPL is not 0 in real mode or with a data segment in CS (SDM 27.3.1.2)"
        );
        for s in data.into_iter().filter(|s| s.is_present()) {
            rule!(
                s.attributes & 0x10 != 0,
                "a usable data segment is a system segment (SDM 27.3.1.2)"
            );
            rule!(
                s.attributes & 1 != 0,
                "a usable data segment is not accessed (SDM 27.3.1.2)"
            );
            rule!(
                s.attributes & 8 == 0 || s.attributes & 2 != 0,
                "a data segment register holds code that is not readable (SDM 27.3.1.2)"
            );
            limit(s)?;
        }
    }

    let tr = &state.tr;
    rule!(tr.is_present(), "TR is not present (SDM 27.3.1.2)");
    rule!(
        tr.attributes & 0x1f == 11 || (!long && tr.attributes & 0x1f == 3),
        "TR is not a busy TSS of this mode (SDM 27.3.1.2)"
    );
    limit(tr)?;
    if state.ldtr.is_present() {
        rule!(
            state.ldtr.attributes & 0x1f == 2,
            "LDTR is usable and not an LDT (SDM 27.3.1.2)"
        );
        limit(&state.ldtr)?;
    }
    Ok(())
}

fn code_segment(cs: &Segment, ss: &Segment, long: bool) -> Result<(), BadState> {
    rule!(cs.is_present(), "CS is not present (SDM 27.3.1.2)");
    rule!(
        cs.attributes & 0x10 != 0,
        "CS is a system segment (SDM 27.3.1.2)"
    );
    match cs.attributes & 0xf {
        3 => rule!(
            cs.dpl() == 0,
            "CS is a data segment with DPL other than 0 (SDM 27.3.1.2)"
        ),
        9 | 11 => rule!(cs.dpl() == ss.dpl(), "CS.DPL is not SS.DPL (SDM 27.3.1.2)"),
        13 | 15 => rule!(
            cs.dpl() <= ss.dpl(),
            "conforming CS has a DPL above SS.DPL (SDM 27.3.1.2)"
        ),
        _ => {
            return Err(BadState(
                "CS is not an accessed code segment (SDM 27.3.1.2)",
            ));
        }
    }
    rule!(
        !(long && cs.is_long() && cs.is_default_32()),
        "CS has both L and D in IA-32e mode (SDM 27.3.1.2)"
    );
    limit(cs)
}

/// No G bit fits a limit that is above 1 MiB and not a multiple of 4 KiB, less one.
fn limit(segment: &Segment) -> Result<(), BadState> {
    rule!(
        segment.limit >> 20 == 0 || segment.limit & 0xfff == 0xfff,
        "a segment's limit is above 1 MiB and its low 12 bits are not all ones (SDM 27.3.1.2)"
    );
    Ok(())
}

/// SDM 27.3.1.3.
fn tables(state: &VcpuState) -> Result<(), BadState> {
    let width = linear_width(state);
    for table in [&state.gdtr, &state.idtr] {
        rule!(
            is_canonical(table.base, width),
            "the base of GDTR or IDTR is not canonical (SDM 27.3.1.3)"
        );
        rule!(
            table.limit >> 16 == 0,
            "the limit of GDTR or IDTR has a bit above 15 (SDM 27.3.1.3)"
        );
    }
    Ok(())
}

/// SDM 27.3.1.4.
fn rip_and_flags(state: &VcpuState) -> Result<(), BadState> {
    let long = state.efer & EFER_LMA != 0;
    if long && state.cs.is_long() {
        rule!(
            is_canonical(state.rip, linear_width(state)),
            "RIP is not canonical (SDM 27.3.1.4)"
        );
    } else {
        rule!(
            state.rip >> 32 == 0,
            "RIP has a bit above 31 outside 64-bit mode (SDM 27.3.1.4)"
        );
    }
    rule!(state.rflags & 2 != 0, "RFLAGS bit 1 is 0 (SDM 27.3.1.4)");
    rule!(
        state.rflags & !0x003f_7fd7 == 0,
        "RFLAGS has a reserved bit (SDM 27.3.1.4)"
    );
    rule!(
        state.rflags & RFLAGS_VM == 0 || (!long && state.cr0 & CR0_PE != 0),
        "RFLAGS.VM in IA-32e mode or outside protected mode (SDM 27.3.1.4)"
    );
    Ok(())
}

/// SDM 27.3.1.6 and 4.4.1: entries of PAE paging's top level. Breaking it is #GP for a MOV to a control register.
pub fn check_pdptes(entries: &[u64; 4], physical_bits: u32) -> Result<(), BadState> {
    for entry in entries {
        rule!(
            entry & 1 == 0 || (entry & 0x1e6 == 0 && entry >> physical_bits == 0),
            "a page-directory-pointer-table entry has a reserved bit (SDM 4.4.1)"
        );
    }
    Ok(())
}

/// SDM 27.3.1.5: the rules that bind interruptibility, RFLAGS and pending debug exceptions.
pub fn check_interruptibility(
    blocking: Interruptibility,
    rflags: u64,
    pending_debug: u64,
) -> Result<(), BadState> {
    rule!(
        !blocking.contains(Interruptibility::SHADOW),
        "blocking by both STI and MOV SS (SDM 27.3.1.5)"
    );
    rule!(
        !blocking.contains(Interruptibility::BLOCKING_BY_STI) || rflags & RFLAGS_IF != 0,
        "blocking by STI with RFLAGS.IF clear (SDM 27.3.1.5)"
    );
    if blocking.intersects(Interruptibility::SHADOW) {
        rule!(
            (pending_debug & super::vmcs::PendingDebug::BS != 0) == (rflags & RFLAGS_TF != 0),
            "pending debug exception BS differs from RFLAGS.TF under blocking by STI or MOV SS (SDM 27.3.1.5)"
        );
    }
    Ok(())
}

/// The VM-instruction error in words (SDM table 31-1).
pub const fn instruction_error(error: InstructionError) -> &'static str {
    match error.0 {
        1 => "VMCALL executed in VMX root operation",
        2 => "VMCLEAR with invalid physical address",
        3 => "VMCLEAR with VMXON pointer",
        4 => "VMLAUNCH with non-clear VMCS",
        5 => "VMRESUME with non-launched VMCS",
        6 => "VMRESUME after VMXOFF",
        7 => "VM entry with invalid control fields",
        8 => "VM entry with invalid host-state fields",
        9 => "VMPTRLD with invalid physical address",
        10 => "VMPTRLD with VMXON pointer",
        11 => "VMPTRLD with incorrect VMCS revision identifier",
        12 => "VMREAD or VMWRITE from or to unsupported VMCS component",
        13 => "VMWRITE to read-only VMCS component",
        15 => "VMXON executed in VMX root operation",
        16 => "VM entry with invalid executive-VMCS pointer",
        17 => "VM entry with non-launched executive VMCS",
        18 => "VM entry with executive-VMCS pointer not VMXON pointer",
        19 => "VMCALL with non-clear VMCS",
        20 => "VMCALL with invalid VM-exit control fields",
        22 => "VMCALL with incorrect MSEG revision identifier",
        23 => "VMXOFF under dual-monitor treatment of SMIs and SMM",
        24 => "VMCALL with invalid SMM-monitor features",
        25 => "VM entry with invalid VM-execution control fields in executive VMCS",
        26 => "VM entry with events blocked by MOV SS",
        28 => "invalid operand to INVEPT or INVVPID",
        _ => "a VM-instruction error that the manual does not name",
    }
}

/// A failed entry's exit reason and qualification in words (SDM 27.8).
pub const fn entry_failure(reason: ExitReason, qualification: Qualification) -> &'static str {
    match reason.basic() {
        ExitReason::INVALID_GUEST_STATE => match qualification.0 {
            2 => {
                "invalid guest state: loading the page-directory-pointer-table entries (SDM 27.3.1.6)"
            }
            3 => "invalid guest state: an NMI injected while NMIs are blocked (SDM 27.3.1.5)",
            4 => "invalid guest state: the VMCS link pointer (SDM 27.3.1.5)",
            _ => "invalid guest state (SDM 27.3.1)",
        },
        ExitReason::MSR_LOADING => {
            "loading MSRs: the qualification counts to the entry that failed (SDM 27.4)"
        }
        ExitReason::MACHINE_CHECK_AT_ENTRY => "a machine check during the entry (SDM 27.9)",
        _ => "an entry failure that the manual does not name",
    }
}

#[cfg(any(test, feature = "fuzzing"))]
#[path = "validate_tests.rs"]
pub(crate) mod tests;

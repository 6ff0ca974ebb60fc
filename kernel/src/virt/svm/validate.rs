//! The rules that VMRUN checks (APM2 15.5.1, 15.11, 15.20, 15.25.3), in software.
//!
//! A CPU answers a broken rule with VMEXIT_INVALID and does not say which one; an emulator may not check at all. So the
//! block is judged here first, whenever something that a rule mentions has been set from outside. What the guest itself
//! changed needs no check: the CPU lets it make no change that would be refused.

use super::vmcb::{EventInjection, Intercepts2, Vmcb};
use crate::mem::Hpa;

/// CR0.
pub mod cr0 {
    /// Protected mode.
    pub const PE: u64 = 1 << 0;
    /// Not write-through.
    pub const NW: u64 = 1 << 29;
    /// Cache disable.
    pub const CD: u64 = 1 << 30;
    /// Paging.
    pub const PG: u64 = 1 << 31;
}

/// CR4.
pub mod cr4 {
    /// Physical-address extension.
    pub const PAE: u64 = 1 << 5;
    /// Machine-check exceptions.
    pub const MCE: u64 = 1 << 6;
    /// Linear addresses of 57 bits.
    pub const LA57: u64 = 1 << 12;
    /// Every bit an AMD CPU defines: 0 to 12, 16 to 18, 20 to 23 (APM2 3.1.3).
    pub const DEFINED: u64 = 0x00f7_1fff;
    /// Those a guest may have: all but CET, whose MSRs are not switched.
    pub const GUEST: u64 = DEFINED & !(1 << 23);
}

/// EFER.
pub mod efer {
    /// Long mode enabled.
    pub const LME: u64 = 1 << 8;
    /// Long mode active.
    pub const LMA: u64 = 1 << 10;
    /// SVM enabled.
    pub const SVME: u64 = 1 << 12;
    /// Every bit an AMD CPU defines: SCE, LME, LMA, NXE, SVME, LMSLE, FFXSR, TCE, MCOMMIT, INTWB, UAIE, AIBRSE (APM2 3.1.7).
    pub const DEFINED: u64 = 0x0036_fd01;
}

/// Bytes of the MSR permission map.
pub const MSRPM_BYTES: u64 = 0x2000;
/// Bytes of the I/O permission map: a bit for each of 65536 ports, three more for accesses that reach beyond the last one, and
/// the rest of the third page (APM2 15.10.1).
pub const IOPM_BYTES: u64 = 0x3000;

/// What differs between CPUs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Width of physical addresses in bits, at most 52.
    pub physical_bits: u8,
    /// CPUID shows long mode.
    pub long_mode: bool,
}

impl Limits {
    const fn contains(self, base: Hpa, bytes: u64) -> bool {
        match base.checked_add(bytes) {
            Some(end) => end.get() <= 1 << self.physical_bits,
            None => false,
        }
    }
}

/// Judges a block that is to be entered.
///
/// # Errors
/// The first rule it breaks.
pub fn validate(vmcb: &Vmcb, limits: Limits) -> Result<(), &'static str> {
    registers(vmcb, limits)?;
    controls(vmcb, limits)?;
    injection(vmcb.control.event_injection)
}

fn check(holds: bool, rule: &'static str) -> Result<(), &'static str> {
    if holds { Ok(()) } else { Err(rule) }
}

fn registers(vmcb: &Vmcb, limits: Limits) -> Result<(), &'static str> {
    let save = &vmcb.save;
    let (cr0, cr4, efer) = (save.cr0, save.cr4, save.efer);
    check(efer & efer::SVME != 0, "EFER.SVME is zero (APM2 15.5.1)")?;
    check(
        cr0 & cr0::CD != 0 || cr0 & cr0::NW == 0,
        "CR0.CD is zero and CR0.NW is set (APM2 15.5.1)",
    )?;
    check(cr0 >> 32 == 0, "CR0[63:32] are not zero (APM2 15.5.1)")?;
    check(
        save.cr3 >> limits.physical_bits == 0,
        "a reserved bit of CR3 is set (APM2 15.5.1)",
    )?;
    check(
        cr4 & !cr4::DEFINED == 0,
        "a reserved bit of CR4 is set (APM2 15.5.1)",
    )?;
    check(save.dr6 >> 32 == 0, "DR6[63:32] are not zero (APM2 15.5.1)")?;
    check(save.dr7 >> 32 == 0, "DR7[63:32] are not zero (APM2 15.5.1)")?;
    check(
        efer & !efer::DEFINED == 0,
        "a reserved bit of EFER is set (APM2 15.5.1)",
    )?;
    let long = efer & efer::LME != 0;
    check(
        limits.long_mode || efer & (efer::LME | efer::LMA) == 0,
        "EFER.LMA or EFER.LME is set and the CPU has no long mode (APM2 15.5.1)",
    )?;
    if long && cr0 & cr0::PG != 0 {
        check(
            cr4 & cr4::PAE != 0,
            "EFER.LME and CR0.PG are set and CR4.PAE is zero (APM2 15.5.1)",
        )?;
        check(
            cr0 & cr0::PE != 0,
            "EFER.LME and CR0.PG are set and CR0.PE is zero (APM2 15.5.1)",
        )?;
        check(
            !(save.cs.is_long() && save.cs.is_default_32()),
            "EFER.LME, CR0.PG, CR4.PAE, CS.L and CS.D are all set (APM2 15.5.1)",
        )?;
    }
    let pat_types = save.g_pat.to_le_bytes();
    check(
        pat_types.iter().all(|kind| matches!(kind, 0 | 1 | 4..=7)),
        "G_PAT has a reserved memory type or bit (APM2 15.25.4)",
    )
}

fn controls(vmcb: &Vmcb, limits: Limits) -> Result<(), &'static str> {
    let control = &vmcb.control;
    check(
        control.intercepts2.contains(Intercepts2::VMRUN),
        "the VMRUN intercept is clear (APM2 15.5.1)",
    )?;
    check(control.asid != 0, "ASID is zero (APM2 15.5.1)")?;
    check(
        limits.contains(control.msrpm_base, MSRPM_BYTES),
        "the MSR permission map extends beyond the physical addresses (APM2 15.11)",
    )?;
    check(
        limits.contains(control.iopm_base, IOPM_BYTES),
        "the I/O permission map extends beyond the physical addresses (APM2 15.10.1)",
    )?;
    check(
        control.msrpm_base.is_aligned(0x1000),
        "the MSR permission map is not aligned to 4 KiB (APM2 15.11)",
    )?;
    check(
        control.iopm_base.is_aligned(0x1000),
        "the I/O permission map is not aligned to 4 KiB (APM2 15.10.1)",
    )?;
    check(
        control.nested.nested_paging(),
        "nested paging is off: guest-physical would be host-physical",
    )?;
    check(
        !control.nested.sev() && !control.nested.sev_es(),
        "SEV is on, and this guest's memory is not encrypted (APM2 15.34)",
    )?;
    check(
        control.nested_cr3.is_aligned(0x1000),
        "nCR3 is not aligned to 4 KiB (APM2 15.25.3)",
    )?;
    check(
        limits.contains(control.nested_cr3, 0x1000),
        "a reserved bit of nCR3 is set (APM2 15.25.4)",
    )
}

fn injection(event: EventInjection) -> Result<(), &'static str> {
    if !event.valid() {
        return Ok(());
    }
    match event.kind() {
        0 | 2 | 4 => Ok(()),
        3 => {
            check(
                event.vector() != 2,
                "EVENTINJ has type 3 with vector 2, which is an NMI and no exception (APM2 15.20)",
            )?;
            check(
                event.vector() < 32,
                "EVENTINJ has type 3 with a vector above 31 (APM2 15.20)",
            )
        }
        _ => Err("EVENTINJ has a reserved type (APM2 15.20)"),
    }
}

#[cfg(test)]
mod tests {
    use plinth_abi::VcpuState;

    use super::super::vmcb::{CleanBits, NestedControl};
    use super::*;
    use crate::virt::Event;

    const LIMITS: Limits = Limits {
        physical_bits: 48,
        long_mode: true,
    };

    /// A block that VMRUN takes, in 64-bit mode.
    fn valid() -> Box<Vmcb> {
        // SAFETY: every field is an integer, an integer in a newtype, or an array of such: zero is valid.
        #[allow(unsafe_code, reason = "a zeroed block")]
        let mut vmcb: Box<Vmcb> = unsafe { Box::new_zeroed().assume_init() };
        let state = VcpuState::long_mode(0x1000, 0x2000, 0x3000);
        vmcb.save.cs = state.cs;
        vmcb.save.cr0 = state.cr0;
        vmcb.save.cr3 = state.cr3;
        vmcb.save.cr4 = state.cr4;
        vmcb.save.efer = state.efer | efer::SVME;
        vmcb.save.dr6 = state.dr6;
        vmcb.save.dr7 = state.dr7;
        vmcb.save.g_pat = state.pat;
        vmcb.control.intercepts2 = Intercepts2::VMRUN;
        vmcb.control.asid = 1;
        vmcb.control.nested = NestedControl::new().with_nested_paging(true);
        vmcb.control.nested_cr3 = Hpa::new(0x5000);
        vmcb.control.msrpm_base = Hpa::new(0x6000);
        vmcb.control.iopm_base = Hpa::new(0x8000);
        vmcb.control.clean = CleanBits::empty();
        vmcb
    }

    /// What the validator says of a valid block that `change` has changed.
    fn verdict(change: impl FnOnce(&mut Vmcb)) -> Result<(), &'static str> {
        let mut vmcb = valid();
        change(&mut vmcb);
        validate(&vmcb, LIMITS)
    }

    macro_rules! broken {
        ($($name:ident: $change:expr => $words:literal;)*) => {
            $(
                #[test]
                fn $name() {
                    let rule = verdict($change).expect_err("a rule is broken");
                    assert!(rule.starts_with($words), "{rule}");
                }
            )*
        };
    }

    macro_rules! legal {
        ($($name:ident: $change:expr;)*) => {
            $(
                #[test]
                fn $name() {
                    assert_eq!(verdict($change), Ok(()));
                }
            )*
        };
    }

    const fn inject(kind: u8, vector: u8) -> EventInjection {
        EventInjection::new()
            .with_kind(kind)
            .with_vector(vector)
            .with_valid(true)
    }

    broken! {
        svme_is_needed: |v| v.save.efer &= !efer::SVME => "EFER.SVME is zero";
        nw_needs_cd: |v| v.save.cr0 |= cr0::NW => "CR0.CD is zero";
        cr0_has_32_bits: |v| v.save.cr0 |= 1 << 32 => "CR0[63:32]";
        cr0_has_no_bit_63: |v| v.save.cr0 |= 1 << 63 => "CR0[63:32]";
        cr3_ends_at_the_physical_width: |v| v.save.cr3 |= 1 << 48 => "a reserved bit of CR3";
        cr3_has_no_bit_63: |v| v.save.cr3 |= 1 << 63 => "a reserved bit of CR3";
        cr4_has_no_bit_15: |v| v.save.cr4 |= 1 << 15 => "a reserved bit of CR4";
        cr4_has_no_vmxe: |v| v.save.cr4 |= 1 << 13 => "a reserved bit of CR4";
        cr4_has_no_bit_32: |v| v.save.cr4 |= 1 << 32 => "a reserved bit of CR4";
        dr6_has_32_bits: |v| v.save.dr6 |= 1 << 32 => "DR6[63:32]";
        dr7_has_32_bits: |v| v.save.dr7 |= 1 << 40 => "DR7[63:32]";
        efer_has_no_bit_9: |v| v.save.efer |= 1 << 9 => "a reserved bit of EFER";
        efer_has_no_bit_63: |v| v.save.efer |= 1 << 63 => "a reserved bit of EFER";
        long_mode_needs_pae: |v| v.save.cr4 &= !cr4::PAE => "EFER.LME and CR0.PG are set and CR4.PAE";
        long_mode_needs_pe: |v| v.save.cr0 &= !cr0::PE => "EFER.LME and CR0.PG are set and CR0.PE";
        code_is_not_both_16_and_64_bit: |v| v.save.cs.attributes |= 0x400 => "EFER.LME, CR0.PG, CR4.PAE, CS.L";
        pat_type_2_is_reserved: |v| v.save.g_pat = 0x0007_0406_0007_0402 => "G_PAT";
        pat_type_3_is_reserved: |v| v.save.g_pat = 0x0307_0406_0007_0406 => "G_PAT";
        pat_bit_3_is_reserved: |v| v.save.g_pat |= 8 => "G_PAT";
        vmrun_is_intercepted: |v| v.control.intercepts2 = Intercepts2::VMMCALL => "the VMRUN intercept";
        asid_0_is_the_hosts: |v| v.control.asid = 0 => "ASID is zero";
        msrpm_ends_below_the_limit: |v| v.control.msrpm_base = Hpa::new((1 << 48) - 0x1000) => "the MSR permission map extends";
        msrpm_does_not_wrap: |v| v.control.msrpm_base = Hpa::new(!0xfff) => "the MSR permission map extends";
        iopm_ends_below_the_limit: |v| v.control.iopm_base = Hpa::new((1 << 48) - 0x2000) => "the I/O permission map extends";
        msrpm_is_aligned: |v| v.control.msrpm_base = Hpa::new(0x6800) => "the MSR permission map is not aligned";
        iopm_is_aligned: |v| v.control.iopm_base = Hpa::new(0x8800) => "the I/O permission map is not aligned";
        nested_paging_is_on: |v| v.control.nested = NestedControl::new() => "nested paging is off";
        sev_is_off: |v| v.control.nested.set_sev(true) => "SEV";
        sev_es_is_off: |v| v.control.nested.set_sev_es(true) => "SEV";
        nested_cr3_is_aligned: |v| v.control.nested_cr3 = Hpa::new(0x5008) => "nCR3 is not aligned";
        nested_cr3_is_below_the_limit: |v| v.control.nested_cr3 = Hpa::new(1 << 48) => "a reserved bit of nCR3";
        event_type_1_is_reserved: |v| v.control.event_injection = inject(1, 0x20) => "EVENTINJ has a reserved type";
        event_type_5_is_reserved: |v| v.control.event_injection = inject(5, 1) => "EVENTINJ has a reserved type";
        event_type_6_is_reserved: |v| v.control.event_injection = inject(6, 3) => "EVENTINJ has a reserved type";
        event_type_7_is_reserved: |v| v.control.event_injection = inject(7, 0) => "EVENTINJ has a reserved type";
        vector_2_is_no_exception: |v| v.control.event_injection = inject(3, 2) => "EVENTINJ has type 3 with vector 2";
        vector_32_is_no_exception: |v| v.control.event_injection = inject(3, 32) => "EVENTINJ has type 3 with a vector above";
    }

    legal! {
        a_64_bit_guest: |_| ();
        cd_with_nw: |v| v.save.cr0 |= cr0::CD | cr0::NW;
        cd_alone: |v| v.save.cr0 |= cr0::CD;
        paged_real_mode: |v| { v.save.efer = efer::SVME; v.save.cr0 &= !cr0::PE; };
        cs_l_and_d_outside_long_mode: |v| { v.save.efer = efer::SVME; v.save.cs.attributes |= 0x600; };
        lme_before_paging: |v| { v.save.cr0 &= !cr0::PG; v.save.cr4 = 0; v.save.efer &= !efer::LMA; };
        msrpm_in_the_last_two_frames: |v| v.control.msrpm_base = Hpa::new((1 << 48) - MSRPM_BYTES);
        iopm_in_the_last_three_frames: |v| v.control.iopm_base = Hpa::new((1 << 48) - IOPM_BYTES);
        an_interrupt_of_any_vector: |v| v.control.event_injection = inject(0, 0xff);
        an_nmi: |v| v.control.event_injection = EventInjection::of(Event::NMI).unwrap_or_default();
        an_exception_with_code: |v| v.control.event_injection = EventInjection::of(Event::GP0).unwrap_or_default();
        an_invalid_event_without_v: |v| v.control.event_injection = inject(7, 2).with_valid(false);
    }

    #[test]
    fn long_mode_needs_a_cpu_that_has_it() {
        let limits = Limits {
            long_mode: false,
            ..LIMITS
        };
        let rule = validate(&valid(), limits).expect_err("no long mode");
        assert!(rule.starts_with("EFER.LMA or EFER.LME"), "{rule}");
    }
}

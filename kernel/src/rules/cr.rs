//! Which writes to CR0, CR3, CR4, CR8, EFER and XCR0 are legal, and what follows from them.
//!
//! SDM vol. 3 2.2.1, 2.5, 2.6, 5.1 (paging modes), 5.10.4 (invalidation); vol. 2 "MOV to/from Control Registers", "LMSW",
//! "XSETBV"; APM2 3.1, 11.5.2.

use super::{GeneralProtection, low_bits};

/// Bits of CR0 (SDM vol. 3 2.5).
#[expect(missing_docs, reason = "the bits' names are their documentation")]
pub mod cr0 {
    pub const PE: u64 = 1 << 0;
    pub const MP: u64 = 1 << 1;
    pub const EM: u64 = 1 << 2;
    pub const TS: u64 = 1 << 3;
    pub const ET: u64 = 1 << 4;
    pub const NE: u64 = 1 << 5;
    pub const WP: u64 = 1 << 16;
    pub const AM: u64 = 1 << 18;
    pub const NW: u64 = 1 << 29;
    pub const CD: u64 = 1 << 30;
    pub const PG: u64 = 1 << 31;
    /// Those that exist.
    pub const KNOWN: u64 = PE | MP | EM | TS | ET | NE | WP | AM | NW | CD | PG;
}

/// Bits of CR4 (SDM vol. 3 2.5).
#[expect(missing_docs, reason = "the bits' names are their documentation")]
pub mod cr4 {
    pub const VME: u64 = 1 << 0;
    pub const PVI: u64 = 1 << 1;
    pub const TSD: u64 = 1 << 2;
    pub const DE: u64 = 1 << 3;
    pub const PSE: u64 = 1 << 4;
    pub const PAE: u64 = 1 << 5;
    pub const MCE: u64 = 1 << 6;
    pub const PGE: u64 = 1 << 7;
    pub const PCE: u64 = 1 << 8;
    pub const OSFXSR: u64 = 1 << 9;
    pub const OSXMMEXCPT: u64 = 1 << 10;
    pub const UMIP: u64 = 1 << 11;
    pub const LA57: u64 = 1 << 12;
    pub const VMXE: u64 = 1 << 13;
    pub const SMXE: u64 = 1 << 14;
    pub const FSGSBASE: u64 = 1 << 16;
    pub const PCIDE: u64 = 1 << 17;
    pub const OSXSAVE: u64 = 1 << 18;
    pub const SMEP: u64 = 1 << 20;
    pub const SMAP: u64 = 1 << 21;
    pub const PKE: u64 = 1 << 22;
    pub const CET: u64 = 1 << 23;
}

/// Bits of EFER (SDM vol. 3 2.2.1, APM2 3.1.7).
#[expect(missing_docs, reason = "the bits' names are their documentation")]
pub mod efer {
    pub const SCE: u64 = 1 << 0;
    pub const LME: u64 = 1 << 8;
    pub const LMA: u64 = 1 << 10;
    pub const NXE: u64 = 1 << 11;
    pub const SVME: u64 = 1 << 12;
    pub const FFXSR: u64 = 1 << 14;
}

/// Components of XCR0 (SDM vol. 1 13.3, APM2 11.5.2).
#[expect(missing_docs, reason = "the bits' names are their documentation")]
pub mod xcr0 {
    pub const X87: u64 = 1 << 0;
    pub const SSE: u64 = 1 << 1;
    pub const AVX: u64 = 1 << 2;
    pub const BNDREGS: u64 = 1 << 3;
    pub const BNDCSR: u64 = 1 << 4;
    pub const AVX512: u64 = 7 << 5;
    pub const PKRU: u64 = 1 << 9;
    pub const TILE: u64 = 3 << 17;
}

/// The state that decides which writes are legal.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ControlState {
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER, with LMA.
    pub efer: u64,
    /// CS.L. Counts only while EFER.LMA is set, and when it becomes set.
    pub cs_l: bool,
    /// TR holds a 16-bit TSS (type 1 or 3).
    pub tss_16: bool,
}

impl ControlState {
    /// IA-32e mode is active.
    pub const fn long_mode(&self) -> bool {
        self.efer & efer::LMA != 0
    }

    /// 64-bit mode: code of 64 bits runs.
    pub const fn in_64_bit_mode(&self) -> bool {
        self.long_mode() && self.cs_l
    }
}

/// Whether these translate by PAE paging, the mode that caches four PDPTEs (SDM vol. 3 5.1.1).
pub const fn is_pae_paging(cr0: u64, cr4: u64, efer: u64) -> bool {
    cr0 & cr0::PG != 0 && cr4 & cr4::PAE != 0 && efer & efer::LMA == 0
}

/// What a legal write to CR0, CR3 or CR4 leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Effect {
    /// What the register holds then.
    pub value: u64,
    /// EFER then; only a write to CR0 changes it, in LMA.
    pub efer: u64,
    /// Cached translations become invalid.
    pub flush: Flush,
    /// PAE paging loads its four PDPTEs from CR3 (SDM vol. 3 5.4.1). The caller reads them from guest memory; a reserved bit
    /// in one of them is a #GP, before anything changes.
    pub load_pdptes: bool,
}

/// How much of the guest's cached translations a write invalidates (SDM vol. 3 5.10.4.1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Flush {
    /// Nothing.
    Nothing,
    /// What is not global, of the current PCID.
    NonGlobal,
    /// Everything, global translations too.
    All,
}

/// MOV to CR0 with this operand; outside 64-bit mode its upper half is zero.
///
/// # Errors
/// SDM vol. 2 "MOV CR" exceptions: bits 63:32 set; PG without PE; NW without CD; PG with LME and without PAE, or from CS.L, or
/// with a 16-bit TSS; PG cleared in 64-bit mode or with CR4.PCIDE; WP cleared with CR4.CET. Reserved bits of the lower half
/// are ignored and stay clear; ET stays set (SDM vol. 3 2.5).
pub const fn write_cr0(new: u64, now: &ControlState) -> Result<Effect, GeneralProtection> {
    if new >> 32 != 0 {
        return Err(GeneralProtection);
    }
    let new = (new & cr0::KNOWN) | cr0::ET;
    if new & cr0::PG != 0 && new & cr0::PE == 0 || new & cr0::NW != 0 && new & cr0::CD == 0 {
        return Err(GeneralProtection);
    }
    if new & cr0::WP == 0 && now.cr4 & cr4::CET != 0 {
        return Err(GeneralProtection);
    }
    let changed = new ^ now.cr0;
    let mut efer = now.efer;
    if changed & cr0::PG != 0 {
        if new & cr0::PG != 0 {
            if efer & efer::LME != 0 {
                if now.cr4 & cr4::PAE == 0 || now.cs_l || now.tss_16 {
                    return Err(GeneralProtection);
                }
                efer |= efer::LMA;
            }
        } else {
            if now.in_64_bit_mode() || now.cr4 & cr4::PCIDE != 0 {
                return Err(GeneralProtection);
            }
            efer &= !efer::LMA;
        }
    }
    Ok(Effect {
        value: new,
        efer,
        flush: if changed & cr0::PG != 0 {
            Flush::All
        } else {
            Flush::Nothing
        },
        load_pdptes: is_pae_paging(new, now.cr4, efer)
            && changed & (cr0::CD | cr0::NW | cr0::PG) != 0,
    })
}

/// CLTS: the new CR0. It is always legal.
pub const fn clts(now: &ControlState) -> u64 {
    now.cr0 & !cr0::TS
}

/// LMSW: PE, MP, EM and TS from the operand; PE can be set and not cleared (SDM vol. 2 "LMSW").
///
/// # Errors
/// As [`write_cr0`]; with a legal `now` there is none.
pub const fn lmsw(operand: u16, now: &ControlState) -> Result<Effect, GeneralProtection> {
    let low = operand as u64 & (cr0::PE | cr0::MP | cr0::EM | cr0::TS);
    write_cr0((now.cr0 & !(cr0::MP | cr0::EM | cr0::TS)) | low, now)
}

/// MOV to CR3, on a CPU whose guest-physical addresses have `physical_bits` bits.
///
/// # Errors
/// Bits from `physical_bits` up are set; but bit 63 may be with CR4.PCIDE: it keeps translations, and is not stored (SDM
/// vol. 2 "MOV CR", APM2 5.5.1).
pub const fn write_cr3(
    new: u64,
    physical_bits: u8,
    now: &ControlState,
) -> Result<Effect, GeneralProtection> {
    const KEEP: u64 = 1 << 63;
    let pcide = now.cr4 & cr4::PCIDE != 0;
    let value = if pcide { new & !KEEP } else { new };
    if value & !low_bits(physical_bits) != 0 {
        return Err(GeneralProtection);
    }
    Ok(Effect {
        value,
        efer: now.efer,
        flush: if pcide && new & KEEP != 0 {
            Flush::Nothing
        } else {
            Flush::NonGlobal
        },
        load_pdptes: is_pae_paging(now.cr0, now.cr4, now.efer),
    })
}

/// MOV to CR4; `allowed` are the bits that the guest's CPUID offers ([`super::cpuid::Features::cr4`]).
///
/// # Errors
/// A bit that is not offered; PAE or LA57 changed in long mode (LA57 either way, PAE cleared); PCIDE set outside long mode or
/// while CR3[11:0] is not zero; CET without CR0.WP.
pub const fn write_cr4(
    new: u64,
    now: &ControlState,
    allowed: u64,
) -> Result<Effect, GeneralProtection> {
    let changed = new ^ now.cr4;
    let set = new & changed;
    if new & !allowed != 0
        || now.long_mode() && (new & cr4::PAE == 0 || changed & cr4::LA57 != 0)
        || new & cr4::CET != 0 && now.cr0 & cr0::WP == 0
        || set & cr4::PCIDE != 0 && (!now.long_mode() || now.cr3 & 0xfff != 0)
    {
        return Err(GeneralProtection);
    }
    // PSE is in AMD's list only (APM2 5.5.2).
    let flush =
        if changed & (cr4::PGE | cr4::PAE | cr4::PSE) != 0 || (changed & !new) & cr4::PCIDE != 0 {
            Flush::All
        } else if set & cr4::SMEP != 0 {
            Flush::NonGlobal
        } else {
            Flush::Nothing
        };
    let reloads = cr4::PAE | cr4::PGE | cr4::PSE | cr4::SMEP;
    Ok(Effect {
        value: new,
        efer: now.efer,
        flush,
        load_pdptes: is_pae_paging(now.cr0, new, now.efer) && changed & reloads != 0,
    })
}

/// MOV to CR8: the new priority class of the task-priority register, 0 to 15 (SDM vol. 3 12.8.6).
///
/// # Errors
/// A bit from 4 up is set.
pub const fn write_cr8(new: u64) -> Result<u8, GeneralProtection> {
    if new > 15 {
        Err(GeneralProtection)
    } else {
        Ok(new as u8)
    }
}

/// WRMSR to EFER: the new value. `allowed` are the bits that the guest's CPUID offers ([`super::cpuid::Features::efer`]).
/// LMA is read-only, and what is written to it is ignored on both vendors' CPUs (SDM vol. 3 2.2.1, APM2 3.1.7).
///
/// # Errors
/// A bit that is not offered; LME changed with CR0.PG.
pub const fn write_efer(
    new: u64,
    now: &ControlState,
    allowed: u64,
) -> Result<u64, GeneralProtection> {
    if new & !(allowed | efer::LMA) != 0
        || (new ^ now.efer) & efer::LME != 0 && now.cr0 & cr0::PG != 0
    {
        return Err(GeneralProtection);
    }
    Ok((new & !efer::LMA) | (now.efer & efer::LMA))
}

/// XSETBV of XCR0: the new value. `supported` are the components of the guest's CPUID leaf 0DH. The caller has checked CPL,
/// CR4.OSXSAVE and that ECX is 0.
///
/// # Errors
/// A component that is not supported; no x87; AVX without SSE; AVX-512 without AVX or in part; MPX or TILE in part (SDM vol. 1
/// 13.3).
pub const fn write_xcr0(new: u64, supported: u64) -> Result<u64, GeneralProtection> {
    const MPX: u64 = xcr0::BNDREGS | xcr0::BNDCSR;
    let avx512 = new & xcr0::AVX512;
    let mpx = new & MPX;
    let tile = new & xcr0::TILE;
    if new & !supported != 0
        || new & xcr0::X87 == 0
        || new & xcr0::AVX != 0 && new & xcr0::SSE == 0
        || avx512 != 0 && (avx512 != xcr0::AVX512 || new & xcr0::AVX == 0)
        || mpx != 0 && mpx != MPX
        || tile != 0 && tile != xcr0::TILE
    {
        return Err(GeneralProtection);
    }
    Ok(new)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const REAL: ControlState = ControlState {
        cr0: cr0::ET | cr0::CD | cr0::NW,
        cr3: 0,
        cr4: 0,
        efer: 0,
        cs_l: false,
        tss_16: false,
    };
    const LONG: ControlState = ControlState {
        cr0: cr0::PG | cr0::PE | cr0::ET | cr0::WP | cr0::NE,
        cr3: 0x1000,
        cr4: cr4::PAE,
        efer: efer::LME | efer::LMA,
        cs_l: true,
        tss_16: false,
    };
    const PAGED32: ControlState = ControlState {
        cr0: cr0::PG | cr0::PE | cr0::ET,
        ..REAL
    };
    const GP: GeneralProtection = GeneralProtection;
    const ALL4: u64 = 0xff_ffff;

    fn value(result: Result<Effect, GeneralProtection>) -> Result<u64, GeneralProtection> {
        result.map(|effect| effect.value)
    }

    #[test]
    fn et_stays_set_and_reserved_bits_stay_clear() {
        assert_eq!(value(write_cr0(0, &REAL)), Ok(cr0::ET));
        assert_eq!(value(write_cr0(0x1ffa_ffc0, &REAL)), Ok(cr0::ET));
    }

    #[test]
    fn the_upper_half_of_cr0_must_be_zero() {
        assert_eq!(write_cr0(LONG.cr0 | 1 << 32, &LONG), Err(GP));
        assert_eq!(write_cr0(LONG.cr0 | 1 << 63, &LONG), Err(GP));
    }

    #[test]
    fn paging_needs_protection() {
        assert_eq!(write_cr0(cr0::PG, &REAL), Err(GP));
        assert_eq!(
            value(write_cr0(cr0::PG | cr0::PE, &REAL)),
            Ok(cr0::PG | cr0::PE | cr0::ET)
        );
    }

    #[test]
    fn not_write_through_needs_cache_disable() {
        assert_eq!(write_cr0(cr0::NW, &REAL), Err(GP));
        assert!(write_cr0(cr0::NW | cr0::CD, &REAL).is_ok());
        assert!(write_cr0(cr0::CD, &REAL).is_ok());
    }

    #[test]
    fn paging_with_lme_activates_long_mode_and_flushes() {
        let mut now = REAL;
        now.efer = efer::LME;
        now.cr4 = cr4::PAE;
        let effect = write_cr0(cr0::PG | cr0::PE, &now).expect("legal");
        assert_eq!(effect.efer, efer::LME | efer::LMA);
        assert_eq!(effect.flush, Flush::All);
        assert!(
            !effect.load_pdptes,
            "four-level paging has no PDPTE registers"
        );
    }

    #[test]
    fn long_mode_needs_pae_a_32_bit_cs_and_a_32_bit_tss() {
        let ready = ControlState {
            efer: efer::LME,
            cr4: cr4::PAE,
            ..REAL
        };
        let on = cr0::PG | cr0::PE;
        assert!(write_cr0(on, &ready).is_ok());
        assert_eq!(write_cr0(on, &ControlState { cr4: 0, ..ready }), Err(GP));
        assert_eq!(
            write_cr0(
                on,
                &ControlState {
                    cs_l: true,
                    ..ready
                }
            ),
            Err(GP)
        );
        assert_eq!(
            write_cr0(
                on,
                &ControlState {
                    tss_16: true,
                    ..ready
                }
            ),
            Err(GP)
        );
    }

    #[test]
    fn paging_is_left_from_compatibility_mode_only() {
        let off = LONG.cr0 & !cr0::PG;
        assert_eq!(write_cr0(off, &LONG), Err(GP));
        let compatibility = ControlState {
            cs_l: false,
            ..LONG
        };
        let effect = write_cr0(off, &compatibility).expect("legal");
        assert_eq!(effect.efer, efer::LME);
        let pcid = ControlState {
            cr4: cr4::PAE | cr4::PCIDE,
            ..compatibility
        };
        assert_eq!(write_cr0(off, &pcid), Err(GP));
    }

    #[test]
    fn write_protection_stays_with_cet() {
        let now = ControlState {
            cr4: cr4::PAE | cr4::CET,
            ..LONG
        };
        assert_eq!(write_cr0(LONG.cr0 & !cr0::WP, &now), Err(GP));
        assert!(write_cr0(LONG.cr0 & !cr0::WP, &LONG).is_ok());
        assert_eq!(
            write_cr4(
                cr4::PAE | cr4::CET,
                &ControlState {
                    cr0: LONG.cr0 & !cr0::WP,
                    ..LONG
                },
                ALL4
            ),
            Err(GP)
        );
    }

    #[test]
    fn pdptes_are_loaded_when_pae_paging_begins_and_when_caching_changes() {
        let now = ControlState {
            cr4: cr4::PAE,
            ..REAL
        };
        assert!(
            write_cr0(cr0::PG | cr0::PE, &now)
                .expect("legal")
                .load_pdptes
        );
        let paged = ControlState {
            cr4: cr4::PAE,
            ..PAGED32
        };
        assert!(
            write_cr0(PAGED32.cr0 | cr0::CD, &paged)
                .expect("legal")
                .load_pdptes
        );
        assert!(
            !write_cr0(PAGED32.cr0 | cr0::TS, &paged)
                .expect("legal")
                .load_pdptes
        );
        assert!(
            write_cr4(cr4::PAE, &PAGED32, ALL4)
                .expect("legal")
                .load_pdptes
        );
        assert!(write_cr3(0x2000, 36, &paged).expect("legal").load_pdptes);
        assert!(!write_cr3(0x2000, 36, &PAGED32).expect("legal").load_pdptes);
    }

    #[test]
    fn lmsw_sets_pe_and_never_clears_it() {
        assert_eq!(value(lmsw(1, &REAL)), Ok(REAL.cr0 | cr0::PE));
        assert_eq!(value(lmsw(0, &PAGED32)), Ok(PAGED32.cr0));
        let now = ControlState {
            cr0: PAGED32.cr0 | cr0::TS | cr0::MP,
            ..PAGED32
        };
        assert_eq!(
            value(lmsw(0xfff4, &now)),
            Ok(PAGED32.cr0 | cr0::EM),
            "only the low four bits count"
        );
    }

    #[test]
    fn clts_clears_ts_alone() {
        let now = ControlState {
            cr0: LONG.cr0 | cr0::TS,
            ..LONG
        };
        assert_eq!(clts(&now), LONG.cr0);
    }

    #[test]
    fn cr3_ends_at_the_physical_address_width() {
        assert_eq!(
            value(write_cr3(0x7f_ffff_f018, 39, &LONG)),
            Ok(0x7f_ffff_f018)
        );
        assert_eq!(write_cr3(1 << 39, 39, &LONG), Err(GP));
        assert_eq!(write_cr3(1 << 63, 39, &LONG), Err(GP), "without PCIDE");
    }

    #[test]
    fn bit_63_keeps_translations_with_pcide_and_is_not_stored() {
        let now = ControlState {
            cr4: cr4::PAE | cr4::PCIDE,
            ..LONG
        };
        let effect = write_cr3(1 << 63 | 0x5003, 39, &now).expect("legal");
        assert_eq!((effect.value, effect.flush), (0x5003, Flush::Nothing));
        assert_eq!(
            write_cr3(0x5003, 39, &now).expect("legal").flush,
            Flush::NonGlobal
        );
    }

    #[test]
    fn cr4_bits_that_are_not_offered_fault() {
        assert_eq!(
            write_cr4(cr4::PAE | cr4::VMXE, &LONG, ALL4 & !cr4::VMXE),
            Err(GP)
        );
        assert_eq!(write_cr4(cr4::PAE | 1 << 40, &LONG, ALL4), Err(GP));
        assert_eq!(
            value(write_cr4(cr4::PAE | cr4::OSFXSR, &LONG, ALL4)),
            Ok(cr4::PAE | cr4::OSFXSR)
        );
    }

    #[test]
    fn pae_and_la57_do_not_change_in_long_mode() {
        assert_eq!(write_cr4(0, &LONG, ALL4), Err(GP));
        assert_eq!(write_cr4(cr4::PAE | cr4::LA57, &LONG, ALL4), Err(GP));
        assert!(write_cr4(cr4::LA57, &PAGED32, ALL4).is_ok());
    }

    #[test]
    fn pcide_needs_long_mode_and_pcid_zero() {
        assert!(write_cr4(cr4::PAE | cr4::PCIDE, &LONG, ALL4).is_ok());
        assert_eq!(
            write_cr4(
                cr4::PAE | cr4::PCIDE,
                &ControlState {
                    cr3: 0x1008,
                    ..LONG
                },
                ALL4
            ),
            Err(GP)
        );
        assert_eq!(write_cr4(cr4::PAE | cr4::PCIDE, &PAGED32, ALL4), Err(GP));
        let on = ControlState {
            cr4: cr4::PAE | cr4::PCIDE,
            cr3: 0x1008,
            ..LONG
        };
        assert!(
            write_cr4(on.cr4 | cr4::PGE, &on, ALL4).is_ok(),
            "only the change from 0 to 1 looks at CR3"
        );
    }

    #[test]
    fn cr4_flushes_as_the_manual_says() {
        let flush = |from: u64, to: u64| {
            write_cr4(
                to | cr4::PAE,
                &ControlState {
                    cr4: from | cr4::PAE,
                    ..LONG
                },
                ALL4,
            )
            .map(|effect| effect.flush)
        };
        assert_eq!(flush(0, cr4::PGE), Ok(Flush::All));
        assert_eq!(flush(cr4::PGE, 0), Ok(Flush::All));
        assert_eq!(flush(cr4::PCIDE, 0), Ok(Flush::All));
        assert_eq!(flush(0, cr4::PCIDE), Ok(Flush::Nothing));
        assert_eq!(flush(0, cr4::SMEP), Ok(Flush::NonGlobal));
        assert_eq!(flush(cr4::SMEP, 0), Ok(Flush::Nothing));
        assert_eq!(flush(0, cr4::OSFXSR), Ok(Flush::Nothing));
    }

    #[test]
    fn cr8_has_four_bits() {
        assert_eq!(write_cr8(15), Ok(15));
        assert_eq!(write_cr8(16), Err(GP));
        assert_eq!(write_cr8(1 << 63), Err(GP));
    }

    #[test]
    fn lme_does_not_change_while_paging_is_on() {
        let allowed = efer::SCE | efer::LME | efer::NXE;
        assert_eq!(write_efer(efer::SCE, &LONG, allowed), Err(GP));
        assert_eq!(write_efer(efer::LME, &PAGED32, allowed), Err(GP));
        assert_eq!(write_efer(efer::LME, &REAL, allowed), Ok(efer::LME));
    }

    #[test]
    fn lma_is_read_only_and_ignored() {
        let allowed = efer::SCE | efer::LME | efer::NXE;
        assert_eq!(
            write_efer(efer::LME | efer::NXE, &LONG, allowed),
            Ok(efer::LME | efer::NXE | efer::LMA)
        );
        assert_eq!(write_efer(efer::LMA, &REAL, allowed), Ok(0));
    }

    #[test]
    fn efer_bits_that_are_not_offered_fault() {
        assert_eq!(
            write_efer(LONG.efer | efer::SVME, &LONG, efer::LME | efer::SCE),
            Err(GP)
        );
        assert_eq!(write_efer(LONG.efer | 1 << 1, &LONG, efer::LME), Err(GP));
        assert_eq!(write_efer(LONG.efer | efer::NXE, &LONG, efer::LME), Err(GP));
    }

    #[test]
    fn xcr0_components_depend_on_each_other() {
        let all = 0x602ff;
        for (new, legal) in [
            (0, false),
            (1, true),
            (2, false),
            (3, true),
            (5, false),
            (7, true),
            (0xe7, true),
            (0xe3, false),
            (0x67, false),
            (0x27, false),
            (0x1f, true),
            (0xb, false),
            (0x13, false),
            (0x203, true),
            (0x2_0003, false),
            (0x6_0007, true),
            (0x403, false),
        ] {
            assert_eq!(write_xcr0(new, all).is_ok(), legal, "{new:#x}");
        }
        assert_eq!(write_xcr0(7, 3), Err(GP));
    }

    fn states() -> impl Strategy<Value = ControlState> {
        (
            any::<u64>(),
            any::<u64>(),
            any::<u64>(),
            any::<u64>(),
            any::<bool>(),
            any::<bool>(),
        )
            .prop_map(|(cr0, cr3, cr4, efer, cs_l, tss_16)| ControlState {
                cr0: cr0 & cr0::KNOWN,
                cr3,
                cr4: cr4 & ALL4,
                // LMA is LME with PG.
                efer: efer & !efer::LMA | (efer & efer::LME) << 2 & (cr0 & cr0::PG) >> 21,
                cs_l,
                tss_16,
            })
    }

    proptest! {
        /// What is accepted satisfies the invariants of the manual, from whatever state.
        #[test]
        fn accepted_cr0_is_consistent(new in any::<u32>(), now in states()) {
            if let Ok(effect) = write_cr0(new.into(), &now) {
                let v = effect.value;
                prop_assert!(v & cr0::PG == 0 || v & cr0::PE != 0);
                prop_assert!(v & cr0::NW == 0 || v & cr0::CD != 0);
                prop_assert!(v & cr0::ET != 0 && v & !cr0::KNOWN == 0);
                prop_assert_eq!((effect.efer ^ now.efer) & !efer::LMA, 0);
                if (v ^ now.cr0) & cr0::PG != 0 {
                    prop_assert_eq!(effect.efer & efer::LMA != 0, v & cr0::PG != 0 && now.efer & efer::LME != 0);
                }
            }
        }

        /// A write of what is there changes nothing, where the state is legal.
        #[test]
        fn writing_back_is_without_effect(bits in any::<u64>()) {
            let now = ControlState { cr4: cr4::PAE | bits & (cr4::PGE | cr4::SMEP | cr4::OSFXSR | cr4::PCIDE), ..LONG };
            prop_assert_eq!(write_cr4(now.cr4, &now, ALL4), Ok(Effect {
                value: now.cr4, efer: now.efer, flush: Flush::Nothing, load_pdptes: false,
            }));
            prop_assert_eq!(write_efer(now.efer, &now, efer::LME), Ok(now.efer));
        }

        /// No CR4 value outside of what is offered is accepted.
        #[test]
        fn cr4_never_leaves_what_is_offered(new in any::<u64>(), allowed in any::<u64>(), now in states()) {
            if let Ok(effect) = write_cr4(new, &now, allowed) {
                prop_assert_eq!(effect.value & !allowed, 0);
            }
        }
    }
}

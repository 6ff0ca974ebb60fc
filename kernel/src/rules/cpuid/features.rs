//! What the guest has been told that other rules depend on.

use super::CpuidTable;
use crate::rules::CpuVendor;
use crate::rules::cr::{cr4, efer};
use crate::rules::speculation::spec_ctrl;

/// The features that decide which bits of control registers may be set and which MSRs there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Features {
    /// Whose rules the CPU follows.
    pub vendor: CpuVendor,
    /// Bits of CR4 that may be set.
    pub cr4: u64,
    /// Bits of EFER that may be set; LMA is not among them.
    pub efer: u64,
    /// Components of XCR0 that may be set; 0: no XSAVE.
    pub xcr0: u64,
    /// Bits of a guest-physical address.
    pub physical_bits: u8,
    /// Bits of a linear address.
    pub linear_bits: u8,
    /// There is a local APIC.
    pub local_apic: bool,
    /// MTRRs.
    pub mtrr: bool,
    /// The page-attribute table.
    pub pat: bool,
    /// Machine-check MSRs.
    pub mca: bool,
    /// SYSENTER.
    pub sysenter: bool,
    /// SYSCALL and its MSRs.
    pub syscall: bool,
    /// Long mode.
    pub long_mode: bool,
    /// TSC_AUX.
    pub tsc_aux: bool,
    /// TSC_ADJUST.
    pub tsc_adjust: bool,
    /// Bits of SPEC_CTRL that may be set; 0: there is none.
    pub spec_ctrl: u64,
    /// PRED_CMD, with a barrier of indirect branch predictions.
    pub ibpb: bool,
    /// ARCH_CAPABILITIES, where there is one.
    pub arch_capabilities: Option<u64>,
}

impl Default for Features {
    /// A CPU of Intel's kind that has nothing.
    fn default() -> Self {
        Self {
            vendor: CpuVendor::Intel,
            cr4: 0,
            efer: 0,
            xcr0: 0,
            physical_bits: 36,
            linear_bits: 48,
            local_apic: false,
            mtrr: false,
            pat: false,
            mca: false,
            sysenter: false,
            syscall: false,
            long_mode: false,
            tsc_aux: false,
            tsc_adjust: false,
            spec_ctrl: 0,
            ibpb: false,
            arch_capabilities: None,
        }
    }
}

impl Features {
    pub(super) fn new(table: &CpuidTable) -> Self {
        let [_, _, l1c, l1d] = table.entry(1, 0);
        let [_, l7b, l7c, l7d] = table.entry(7, 0);
        let [_, _, _, l72d] = table.entry(7, 2);
        let [_, x8b, _, _] = table.entry(0x8000_0008, 0);
        let [_, _, _, x1d] = table.entry(0x8000_0001, 0);
        let state = table.entry(0xd, 0);
        let has = |register: u32, bit: u32| register & 1 << bit != 0;
        let mask = |rules: &[(bool, u64)]| {
            rules
                .iter()
                .filter(|rule| rule.0)
                .fold(0, |mask, rule| mask | rule.1)
        };
        let long_mode = has(x1d, 29);
        Self {
            vendor: table.vendor(),
            // SDM vol. 3 2.5: each bit exists by its feature. PCE exists with RDPMC, which every CPU of long mode has.
            cr4: mask(&[
                (has(l1d, 1), cr4::VME | cr4::PVI),
                (has(l1d, 4), cr4::TSD),
                (has(l1d, 2), cr4::DE),
                (has(l1d, 3), cr4::PSE),
                (has(l1d, 6), cr4::PAE),
                (has(l1d, 7), cr4::MCE),
                (has(l1d, 13), cr4::PGE),
                (true, cr4::PCE),
                (has(l1d, 24), cr4::OSFXSR),
                (has(l1d, 25), cr4::OSXMMEXCPT),
                (has(l7c, 2), cr4::UMIP),
                (has(l7b, 0), cr4::FSGSBASE),
                (has(l1c, 17), cr4::PCIDE),
                (has(l1c, 26), cr4::OSXSAVE),
                (has(l7b, 7), cr4::SMEP),
                (has(l7b, 20), cr4::SMAP),
                (has(l7c, 3), cr4::PKE),
            ]),
            efer: mask(&[
                (has(x1d, 11), efer::SCE),
                (long_mode, efer::LME),
                (has(x1d, 20), efer::NXE),
                (has(x1d, 25), efer::FFXSR),
            ]),
            xcr0: u64::from(state[3]) << 32 | u64::from(state[0]),
            physical_bits: table.guest().physical_bits,
            linear_bits: 48,
            local_apic: table.guest().local_apic,
            mtrr: has(l1d, 12),
            pat: has(l1d, 16),
            mca: has(l1d, 14),
            sysenter: has(l1d, 11),
            syscall: has(x1d, 11),
            long_mode,
            tsc_aux: has(x1d, 27) || has(l7c, 22),
            tsc_adjust: has(l7b, 1),
            // SDM vol. 4 table 2-2; APM2 3.2.9. Each vendor's leaf has these bits on its own CPUs only.
            spec_ctrl: mask(&[
                (has(l7d, 26) || has(x8b, 14), spec_ctrl::IBRS),
                (has(l7d, 27) || has(x8b, 15), spec_ctrl::STIBP),
                (has(l7d, 31) || has(x8b, 24), spec_ctrl::SSBD),
                (has(l72d, 0) || has(x8b, 28), spec_ctrl::PSFD),
                (has(l72d, 1), spec_ctrl::IPRED_DIS),
                (has(l72d, 2), spec_ctrl::RRSBA_DIS),
                (has(l72d, 4), spec_ctrl::BHI_DIS_S),
            ]),
            ibpb: has(l7d, 26) || has(x8b, 12),
            arch_capabilities: table.guest().arch_capabilities.filter(|_| has(l7d, 29)),
        }
    }
}

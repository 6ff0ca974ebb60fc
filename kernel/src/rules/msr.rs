//! What RDMSR and WRMSR mean for a guest.
//!
//! An MSR exists if the guest's CPUID says so; every other raises #GP. MSRs that the hardware switches live in the vCPU's
//! control structure and are reached through [`Context`]; what only has to be remembered is in [`MsrState`]. Nothing here
//! reads or writes an MSR of the host.
//!
//! SDM vol. 4; vol. 3 13.11 (MTRRs), 13.12 (PAT), 16.3 (machine check), 19.17 (TSC); APM2 appendix A.
//!
//! Not offered, and so #GP: FLUSH_CMD, VIRT_SPEC_CTRL, performance counters, the MSRs of VMX and SVM but for those below, OSVW. Those of the local APIC are in `intc`, those of KVM's clock in `object::Clock`.

use super::cpuid::Features;
use super::cr::{ControlState, write_efer};
use super::{CpuVendor, GeneralProtection, canonicalise, is_canonical, low_bits};

/// Numbers of MSRs (SDM vol. 4 table 2-2, APM2 appendix A).
#[expect(missing_docs, reason = "the MSRs' names are their documentation")]
pub mod number {
    pub const TSC: u32 = 0x10;
    pub const PLATFORM_ID: u32 = 0x17;
    pub const APIC_BASE: u32 = 0x1b;
    pub const FEATURE_CONTROL: u32 = 0x3a;
    pub const TSC_ADJUST: u32 = 0x3b;
    pub const SPEC_CTRL: u32 = 0x48;
    pub const PRED_CMD: u32 = 0x49;
    pub const BIOS_SIGN_ID: u32 = 0x8b;
    pub const MTRR_CAP: u32 = 0xfe;
    pub const ARCH_CAPABILITIES: u32 = 0x10a;
    pub const SYSENTER_CS: u32 = 0x174;
    pub const SYSENTER_ESP: u32 = 0x175;
    pub const SYSENTER_EIP: u32 = 0x176;
    pub const MCG_CAP: u32 = 0x179;
    pub const MCG_STATUS: u32 = 0x17a;
    pub const MISC_ENABLE: u32 = 0x1a0;
    pub const TSC_DEADLINE: u32 = 0x6e0;
    pub const DEBUGCTL: u32 = 0x1d9;
    pub const MTRR_VARIABLE: u32 = 0x200;
    pub const MTRR_FIXED_64K: u32 = 0x250;
    pub const MTRR_FIXED_16K: u32 = 0x258;
    pub const MTRR_FIXED_4K: u32 = 0x268;
    pub const PAT: u32 = 0x277;
    pub const MTRR_DEF_TYPE: u32 = 0x2ff;
    pub const EFER: u32 = 0xc000_0080;
    pub const STAR: u32 = 0xc000_0081;
    pub const LSTAR: u32 = 0xc000_0082;
    pub const CSTAR: u32 = 0xc000_0083;
    pub const SFMASK: u32 = 0xc000_0084;
    pub const FS_BASE: u32 = 0xc000_0100;
    pub const GS_BASE: u32 = 0xc000_0101;
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub const TSC_AUX: u32 = 0xc000_0103;
    pub const SYSCFG: u32 = 0xc001_0010;
    pub const HWCR: u32 = 0xc001_0015;
    pub const NB_CFG: u32 = 0xc001_001f;
    pub const VM_CR: u32 = 0xc001_0114;
}

use number as n;

/// Variable-range MTRRs (MTRRcap.VCNT).
const VARIABLE_RANGES: u32 = 8;
/// MTRRcap: eight variable ranges, fixed ranges, write combining (SDM vol. 3 13.11.1).
const MTRR_CAP: u64 = VARIABLE_RANGES as u64 | 1 << 8 | 1 << 10;
/// MISC_ENABLE: fast strings on; no branch trace store, no precise event sampling (SDM vol. 4 table 2-2).
const MISC_ENABLE_FAST_STRINGS: u64 = 1;
const MISC_ENABLE_RESET: u64 = MISC_ENABLE_FAST_STRINGS | 1 << 11 | 1 << 12;
/// HWCR: the TSC counts at the rate of P0 whatever the P-state.
const HWCR_TSC_FREQ_SEL: u64 = 1 << 24;
/// HWCR bits that system software sets and that change nothing in a guest: TlbCacheDis, FFDis, IgnneEm.
const HWCR_WITHOUT_EFFECT: u64 = 1 << 3 | 1 << 6 | 1 << 8;
/// NB_CFG: EnableCf8ExtCfg, which lets CF8 reach the extended configuration space (BKDG for family 10h). A system that finds such
/// a family sets it without asking for a feature; a guest's PCI has no extended space, so it changes nothing.
const NB_CFG_WITHOUT_EFFECT: u64 = 1 << 46;
/// PRED_CMD: a barrier of indirect branch predictions (SDM vol. 4 table 2-2; APM2 3.2.9).
const PRED_CMD_IBPB: u64 = 1;
/// VM_CR: LOCK and SVMDIS (APM2 15.30.1): SVM is off and stays so.
const VM_CR: u64 = 1 << 3 | 1 << 4;

/// What the rules need of the vCPU and the machine.
pub trait Context {
    /// The control registers; EFER among them.
    fn control(&self) -> ControlState;
    /// Sets EFER to a value that has been found legal.
    fn set_efer(&mut self, value: u64);
    /// The host's TSC now.
    fn host_tsc(&self) -> u64;
    /// Sets what the guest's TSC is ahead of the host's.
    fn set_tsc_offset(&mut self, offset: u64);
    /// An MSR that the hardware switches for the guest; `None`: not one of these.
    fn switched(&self, msr: u32) -> Option<u64>;
    /// Writes such an MSR with a value that has been checked; false: not one of these.
    fn set_switched(&mut self, msr: u32, value: u64) -> bool;
    /// Puts a barrier into the CPU's indirect branch predictions (IBPB).
    fn prediction_barrier(&mut self);
}

/// The MSRs of a vCPU that no hardware switches. MTRRs have no effect: the nested page tables honour the machine's own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MsrState {
    /// What the guest's TSC is ahead of the host's, modulo 2^64.
    pub tsc_offset: u64,
    /// TSC_ADJUST.
    pub tsc_adjust: u64,
    /// MISC_ENABLE.
    pub misc_enable: u64,
    /// MTRRdefType.
    pub mtrr_def_type: u64,
    /// The fixed ranges: 64K, two of 16K, eight of 4K.
    pub mtrr_fixed: [u64; 11],
    /// The variable ranges: base, mask, base, ...
    pub mtrr_variable: [u64; 2 * VARIABLE_RANGES as usize],
}

impl Default for MsrState {
    /// The state after reset.
    fn default() -> Self {
        Self {
            tsc_offset: 0,
            tsc_adjust: 0,
            misc_enable: MISC_ENABLE_RESET,
            mtrr_def_type: 0,
            mtrr_fixed: [0; 11],
            mtrr_variable: [0; 2 * VARIABLE_RANGES as usize],
        }
    }
}

impl MsrState {
    /// The register of a fixed or variable range, where `msr` is one.
    fn mtrr(&self, msr: u32) -> Option<u64> {
        match variable_index(msr) {
            Some(at) => self.mtrr_variable.get(at).copied(),
            None => self.mtrr_fixed.get(fixed_index(msr)?).copied(),
        }
    }

    /// As [`MsrState::mtrr`], to be written.
    fn mtrr_mut(&mut self, msr: u32) -> Option<&mut u64> {
        match variable_index(msr) {
            Some(at) => self.mtrr_variable.get_mut(at),
            None => self.mtrr_fixed.get_mut(fixed_index(msr)?),
        }
    }
}

fn variable_index(msr: u32) -> Option<usize> {
    let at = msr.checked_sub(n::MTRR_VARIABLE)?;
    (at < 2 * VARIABLE_RANGES).then_some(at as usize)
}

fn fixed_index(msr: u32) -> Option<usize> {
    let at = match msr {
        n::MTRR_FIXED_64K => 0,
        n::MTRR_FIXED_16K..0x25a => 1 + msr - n::MTRR_FIXED_16K,
        n::MTRR_FIXED_4K..0x270 => 3 + msr - n::MTRR_FIXED_4K,
        _ => return None,
    };
    Some(at as usize)
}

/// Whether `msr` is one that the hardware switches and the guest's CPUID offers.
fn is_switched(msr: u32, features: &Features) -> bool {
    match msr {
        n::PAT => features.pat,
        n::SYSENTER_CS | n::SYSENTER_ESP | n::SYSENTER_EIP => features.sysenter,
        n::STAR => features.syscall,
        n::LSTAR | n::CSTAR | n::SFMASK => features.syscall && features.long_mode,
        n::FS_BASE | n::GS_BASE | n::KERNEL_GS_BASE => features.long_mode,
        n::TSC_AUX => features.tsc_aux,
        n::SPEC_CTRL => features.spec_ctrl != 0,
        _ => false,
    }
}

/// RDMSR.
///
/// # Errors
/// There is no such MSR, or it cannot be read.
pub fn read(
    msr: u32,
    state: &MsrState,
    features: &Features,
    context: &impl Context,
) -> Result<u64, GeneralProtection> {
    let intel = features.vendor == CpuVendor::Intel;
    match msr {
        n::TSC => Ok(context.host_tsc().wrapping_add(state.tsc_offset)),
        n::TSC_ADJUST if features.tsc_adjust => Ok(state.tsc_adjust),
        n::EFER if features.efer != 0 => Ok(context.control().efer),
        n::MTRR_CAP if features.mtrr => Ok(MTRR_CAP),
        n::ARCH_CAPABILITIES => features.arch_capabilities.ok_or(GeneralProtection),
        n::MTRR_DEF_TYPE if features.mtrr => Ok(state.mtrr_def_type),
        // No banks, nothing in progress.
        n::MCG_CAP | n::MCG_STATUS if features.mca => Ok(0),
        // No microcode update is loaded; no branch recording or stepping is on.
        n::BIOS_SIGN_ID | n::DEBUGCTL => Ok(0),
        n::PLATFORM_ID if intel => Ok(0),
        // Locked, with VMX and all else off.
        n::FEATURE_CONTROL if intel => Ok(1),
        n::MISC_ENABLE if intel => Ok(state.misc_enable),
        n::SYSCFG if !intel => Ok(0),
        n::HWCR if !intel => Ok(HWCR_TSC_FREQ_SEL),
        n::NB_CFG if !intel => Ok(0),
        n::VM_CR if !intel => Ok(VM_CR),
        _ if is_switched(msr, features) => context.switched(msr).ok_or(GeneralProtection),
        _ if features.mtrr => state.mtrr(msr).ok_or(GeneralProtection),
        _ => Err(GeneralProtection),
    }
}

/// WRMSR. Where it fails, nothing has changed.
///
/// # Errors
/// There is no such MSR, it cannot be written, or the value is not legal in it.
pub fn write(
    msr: u32,
    value: u64,
    state: &mut MsrState,
    features: &Features,
    context: &mut impl Context,
) -> Result<(), GeneralProtection> {
    let intel = features.vendor == CpuVendor::Intel;
    match msr {
        n::TSC => {
            // What a write adds to the TSC it adds to TSC_ADJUST (SDM vol. 3 19.17.3).
            let offset = value.wrapping_sub(context.host_tsc());
            let moved = offset.wrapping_sub(state.tsc_offset);
            state.tsc_adjust = state.tsc_adjust.wrapping_add(moved);
            set_tsc_offset(offset, state, context);
        }
        n::TSC_ADJUST if features.tsc_adjust => {
            let moved = value.wrapping_sub(state.tsc_adjust);
            state.tsc_adjust = value;
            set_tsc_offset(state.tsc_offset.wrapping_add(moved), state, context);
        }
        n::EFER if features.efer != 0 => {
            let efer = write_efer(value, &context.control(), features.efer)?;
            context.set_efer(efer);
        }
        n::MTRR_DEF_TYPE if features.mtrr => {
            // Type, FE and E (SDM vol. 3 13.11.2.1).
            only(value, 0xff | 1 << 10 | 1 << 11)?;
            memory_type(value)?;
            state.mtrr_def_type = value;
        }
        n::MCG_STATUS if features.mca => only(value, 0)?,
        // It is a command, and cannot be read.
        n::PRED_CMD if features.ibpb => {
            only(value, PRED_CMD_IBPB)?;
            if value != 0 {
                context.prediction_barrier();
            }
        }
        n::DEBUGCTL => only(value, 0)?,
        // Written before CPUID loads the revision; there is none to load.
        n::BIOS_SIGN_ID => {}
        n::MISC_ENABLE if intel => {
            only(value ^ state.misc_enable, MISC_ENABLE_FAST_STRINGS)?;
            state.misc_enable = value;
        }
        n::SYSCFG if !intel => only(value, 0)?,
        n::HWCR if !intel => only(value & !HWCR_WITHOUT_EFFECT, HWCR_TSC_FREQ_SEL)?,
        n::NB_CFG if !intel => only(value, NB_CFG_WITHOUT_EFFECT)?,
        // LOCK and SVMDIS are locked, and writes to them ignored; no other bit can be set.
        n::VM_CR if !intel => only(value, VM_CR)?,
        _ if is_switched(msr, features) => {
            let value = check_switched(msr, value, features)?;
            if !context.set_switched(msr, value) {
                return Err(GeneralProtection);
            }
        }
        _ if features.mtrr => {
            check_mtrr(msr, value, features)?;
            *state.mtrr_mut(msr).ok_or(GeneralProtection)? = value;
        }
        _ => return Err(GeneralProtection),
    }
    Ok(())
}

fn set_tsc_offset(offset: u64, state: &mut MsrState, context: &mut impl Context) {
    state.tsc_offset = offset;
    context.set_tsc_offset(offset);
}

/// #GP where `value` has other bits than `mask`.
const fn only(value: u64, mask: u64) -> Result<(), GeneralProtection> {
    if value & !mask != 0 {
        Err(GeneralProtection)
    } else {
        Ok(())
    }
}

/// #GP where bits 7:0 are no memory type of an MTRR: UC, WC, WT, WP, WB (SDM vol. 3 table 13-8).
const fn memory_type(value: u64) -> Result<(), GeneralProtection> {
    match value & 0xff {
        0 | 1 | 4 | 5 | 6 => Ok(()),
        _ => Err(GeneralProtection),
    }
}

/// A range's register (SDM vol. 3 13.11.2.2, 13.11.2.3).
fn check_mtrr(msr: u32, value: u64, features: &Features) -> Result<(), GeneralProtection> {
    match variable_index(msr) {
        // Base and type; mask and valid. The rest is reserved.
        Some(at) if at % 2 == 0 => {
            only(value, low_bits(features.physical_bits) & !0xf00)?;
            memory_type(value)
        }
        Some(_) => only(value, low_bits(features.physical_bits) & !0x7ff),
        None => value
            .to_le_bytes()
            .into_iter()
            .try_for_each(|byte| memory_type(byte.into())),
    }
}

/// The value that a switched MSR takes.
fn check_switched(msr: u32, value: u64, features: &Features) -> Result<u64, GeneralProtection> {
    let canonical = || {
        if is_canonical(value, features.linear_bits) {
            Ok(value)
        } else {
            Err(GeneralProtection)
        }
    };
    match (msr, features.vendor) {
        // UC, WC, WT, WP, WB, UC- in each byte (SDM vol. 3 13.12.2).
        (n::PAT, _) => {
            let legal = |byte: u8| matches!(byte, 0 | 1 | 4..=7);
            value
                .to_le_bytes()
                .into_iter()
                .all(legal)
                .then_some(value)
                .ok_or(GeneralProtection)
        }
        (n::LSTAR | n::CSTAR | n::FS_BASE | n::GS_BASE | n::KERNEL_GS_BASE, _) => canonical(),
        (n::SYSENTER_ESP | n::SYSENTER_EIP, CpuVendor::Intel) => canonical(),
        // AMD's CPUs have no SYSENTER in long mode and do not look at the upper half (APM2 6.1.2).
        (n::SYSENTER_ESP | n::SYSENTER_EIP, CpuVendor::Amd) => {
            Ok(canonicalise(value, features.linear_bits))
        }
        (n::SFMASK, _) => only(value, 0xffff_ffff).map(|()| value),
        (n::SPEC_CTRL, _) => only(value, features.spec_ctrl).map(|()| value),
        // The upper half is reserved on Intel's CPUs, and ignored on AMD's.
        (n::TSC_AUX, CpuVendor::Intel) => only(value, 0xffff_ffff).map(|()| value),
        (n::TSC_AUX, CpuVendor::Amd) => Ok(value & 0xffff_ffff),
        _ => Ok(value),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::rules::cr::{cr0, efer};
    use crate::rules::speculation::spec_ctrl;

    const GP: GeneralProtection = GeneralProtection;
    const INTEL: Features = Features {
        vendor: CpuVendor::Intel,
        cr4: 0,
        efer: efer::SCE | efer::LME | efer::NXE,
        xcr0: 7,
        physical_bits: 40,
        linear_bits: 48,
        local_apic: true,
        mtrr: true,
        pat: true,
        mca: true,
        sysenter: true,
        syscall: true,
        long_mode: true,
        tsc_aux: true,
        tsc_adjust: true,
        spec_ctrl: spec_ctrl::IBRS | spec_ctrl::SSBD,
        ibpb: true,
        arch_capabilities: Some(0x2b),
    };
    const AMD: Features = Features {
        vendor: CpuVendor::Amd,
        ..INTEL
    };

    /// A vCPU as the rules see it.
    #[derive(Clone, Default)]
    struct Fake {
        control: ControlState,
        tsc: u64,
        offset: u64,
        switched: BTreeMap<u32, u64>,
        barriers: u32,
    }

    impl Context for Fake {
        fn control(&self) -> ControlState {
            self.control
        }
        fn set_efer(&mut self, value: u64) {
            self.control.efer = value;
        }
        fn host_tsc(&self) -> u64 {
            self.tsc
        }
        fn set_tsc_offset(&mut self, offset: u64) {
            self.offset = offset;
        }
        fn switched(&self, msr: u32) -> Option<u64> {
            Some(self.switched.get(&msr).copied().unwrap_or(0))
        }
        fn set_switched(&mut self, msr: u32, value: u64) -> bool {
            self.switched.insert(msr, value);
            true
        }
        fn prediction_barrier(&mut self) {
            self.barriers += 1;
        }
    }

    struct Machine(MsrState, Features, Fake);

    impl Machine {
        fn new(features: Features) -> Self {
            Self(MsrState::default(), features, Fake::default())
        }
        fn read(&self, msr: u32) -> Result<u64, GeneralProtection> {
            read(msr, &self.0, &self.1, &self.2)
        }
        fn write(&mut self, msr: u32, value: u64) -> Result<(), GeneralProtection> {
            write(msr, value, &mut self.0, &self.1, &mut self.2)
        }
    }

    #[test]
    fn unknown_and_hidden_msrs_fault() {
        let hidden = [
            0x0,
            0x10b,
            0xc001_011f,
            0xc1,
            0x186,
            0x38f,
            0x345,
            0x480,
            0x6a0,
            0x6e0,
            0x802,
            0xda0,
            0x400,
            0x17b,
            0xce,
            0xc001_0117,
            0xc001_0140,
            0xc001_0141,
            0xc001_0000,
            0xc001_0200,
            u32::MAX,
        ];
        for features in [INTEL, AMD] {
            let mut machine = Machine::new(features);
            for msr in hidden {
                assert_eq!(machine.read(msr), Err(GP), "{msr:#x}");
                assert_eq!(machine.write(msr, 0), Err(GP), "{msr:#x}");
            }
        }
    }

    #[test]
    fn what_cpuid_does_not_show_is_not_there() {
        let mut machine = Machine::new(Features::default());
        for msr in [
            n::TSC_ADJUST,
            n::EFER,
            n::APIC_BASE,
            n::MTRR_CAP,
            n::MTRR_DEF_TYPE,
            n::MTRR_VARIABLE,
            n::MCG_CAP,
            n::PAT,
            n::SYSENTER_CS,
            n::STAR,
            n::LSTAR,
            n::FS_BASE,
            n::TSC_AUX,
            n::SPEC_CTRL,
            n::PRED_CMD,
            n::ARCH_CAPABILITIES,
        ] {
            assert_eq!(machine.read(msr), Err(GP), "{msr:#x}");
            assert_eq!(machine.write(msr, 0), Err(GP), "{msr:#x}");
        }
    }

    #[test]
    fn a_write_to_the_tsc_moves_tsc_adjust_and_the_other_way_round() {
        let mut machine = Machine::new(INTEL);
        machine.2.tsc = 1000;
        assert_eq!(machine.write(n::TSC, 5000), Ok(()));
        machine.2.tsc = 1100;
        assert_eq!(machine.read(n::TSC), Ok(5100));
        assert_eq!(machine.read(n::TSC_ADJUST), Ok(4000));
        assert_eq!(machine.write(n::TSC_ADJUST, 0), Ok(()));
        assert_eq!(machine.read(n::TSC), Ok(1100));
        assert_eq!(machine.2.offset, 0);
    }

    #[test]
    fn spec_ctrl_keeps_the_bits_that_are_offered() {
        let mut machine = Machine::new(INTEL);
        assert_eq!(machine.read(n::SPEC_CTRL), Ok(0));
        for legal in [1, 4, 5, 0] {
            assert_eq!(machine.write(n::SPEC_CTRL, legal), Ok(()));
            assert_eq!(machine.read(n::SPEC_CTRL), Ok(legal));
        }
        for reserved in [2, 3, 1 << 7, 1 << 10, 1 << 32, u64::MAX] {
            assert_eq!(machine.write(n::SPEC_CTRL, reserved), Err(GP));
        }
        assert_eq!(machine.read(n::SPEC_CTRL), Ok(0));
    }

    #[test]
    fn pred_cmd_is_a_command() {
        let mut machine = Machine::new(AMD);
        assert_eq!(machine.read(n::PRED_CMD), Err(GP));
        assert_eq!(machine.write(n::PRED_CMD, 0), Ok(()));
        assert_eq!(machine.2.barriers, 0);
        assert_eq!(machine.write(n::PRED_CMD, 1), Ok(()));
        assert_eq!(machine.2.barriers, 1);
        for reserved in [2, 3, 1 << 7, 1 << 63] {
            assert_eq!(machine.write(n::PRED_CMD, reserved), Err(GP));
        }
        assert_eq!(machine.2.barriers, 1);
    }

    #[test]
    fn arch_capabilities_is_only_read() {
        let mut machine = Machine::new(INTEL);
        assert_eq!(machine.read(n::ARCH_CAPABILITIES), Ok(0x2b));
        assert_eq!(machine.write(n::ARCH_CAPABILITIES, 0x2b), Err(GP));
    }

    #[test]
    fn efer_follows_its_rules() {
        let mut machine = Machine::new(INTEL);
        assert_eq!(machine.write(n::EFER, efer::LME), Ok(()));
        machine.2.control.cr0 = cr0::PG | cr0::PE;
        assert_eq!(machine.write(n::EFER, 0), Err(GP));
        assert_eq!(machine.write(n::EFER, efer::SVME | efer::LME), Err(GP));
        assert_eq!(machine.read(n::EFER), Ok(efer::LME));
    }

    #[test]
    fn each_byte_of_pat_is_a_legal_type() {
        let mut machine = Machine::new(INTEL);
        assert_eq!(machine.write(n::PAT, 0x0007_0406_0105_0406), Ok(()));
        for bad in [2, 3, 8, 0x80] {
            for byte in 0..8 {
                assert_eq!(machine.write(n::PAT, bad << (byte * 8)), Err(GP));
            }
        }
        assert_eq!(machine.read(n::PAT), Ok(0x0007_0406_0105_0406));
    }

    #[test]
    fn bases_are_canonical() {
        for msr in [
            n::FS_BASE,
            n::GS_BASE,
            n::KERNEL_GS_BASE,
            n::LSTAR,
            n::CSTAR,
        ] {
            for features in [INTEL, AMD] {
                let mut machine = Machine::new(features);
                assert_eq!(machine.write(msr, 0x7fff_ffff_ffff), Ok(()));
                assert_eq!(machine.write(msr, 0xffff_8000_0000_0000), Ok(()));
                assert_eq!(machine.write(msr, 0x8000_0000_0000), Err(GP));
                assert_eq!(machine.read(msr), Ok(0xffff_8000_0000_0000));
            }
        }
    }

    #[test]
    fn sysenter_addresses_are_checked_by_intel_alone() {
        for msr in [n::SYSENTER_ESP, n::SYSENTER_EIP] {
            assert_eq!(Machine::new(INTEL).write(msr, 1 << 47), Err(GP));
            let mut amd = Machine::new(AMD);
            assert_eq!(amd.write(msr, 1 << 47), Ok(()));
            assert_eq!(amd.read(msr), Ok(0xffff_8000_0000_0000));
        }
    }

    #[test]
    fn upper_halves_of_tsc_aux_and_sfmask() {
        let (mut intel, mut amd) = (Machine::new(INTEL), Machine::new(AMD));
        assert_eq!(intel.write(n::TSC_AUX, 1 << 32), Err(GP));
        assert_eq!(amd.write(n::TSC_AUX, 1 << 32 | 7), Ok(()));
        assert_eq!(amd.read(n::TSC_AUX), Ok(7));
        assert_eq!(intel.write(n::SFMASK, 1 << 32), Err(GP));
    }

    #[test]
    fn mtrr_cap_is_read_only_and_the_default_type_is_checked() {
        let mut machine = Machine::new(INTEL);
        assert_eq!(machine.read(n::MTRR_CAP), Ok(0x508));
        assert_eq!(machine.write(n::MTRR_CAP, 0x508), Err(GP));
        assert_eq!(machine.write(n::MTRR_DEF_TYPE, 0xc06), Ok(()));
        for bad in [2, 3, 7, 0x100, 0x1000] {
            assert_eq!(machine.write(n::MTRR_DEF_TYPE, bad), Err(GP), "{bad:#x}");
        }
        assert_eq!(machine.read(n::MTRR_DEF_TYPE), Ok(0xc06));
    }

    #[test]
    fn variable_ranges_have_reserved_bits() {
        let mut machine = Machine::new(INTEL);
        assert_eq!(machine.write(0x200, 0xff_0000_0006), Ok(()));
        assert_eq!(machine.write(0x201, 0xff_0000_0800), Ok(()));
        assert_eq!(machine.write(0x20f, 0x800), Ok(()));
        for (msr, bad) in [
            (0x200, 1 << 40),
            (0x200, 0x106),
            (0x200, 2),
            (0x201, 1 << 10),
            (0x201, 1 << 40),
            (0x210, 0),
        ] {
            assert_eq!(machine.write(msr, bad), Err(GP), "{msr:#x} {bad:#x}");
        }
        assert_eq!(
            (machine.read(0x200), machine.read(0x201)),
            (Ok(0xff_0000_0006), Ok(0xff_0000_0800))
        );
    }

    #[test]
    fn the_eleven_fixed_ranges_are_separate_and_checked() {
        let mut machine = Machine::new(AMD);
        let fixed = [
            0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f,
        ];
        // A different value for each.
        let value = |at: usize| [0, 1, 4, 5, 6][at % 5] | [0, 1, 4][at / 5] << 56;
        for (at, &msr) in fixed.iter().enumerate() {
            assert_eq!(machine.write(msr, value(at)), Ok(()));
            assert_eq!(machine.write(msr, 0x0200_0000), Err(GP));
        }
        for (at, &msr) in fixed.iter().enumerate() {
            assert_eq!(machine.read(msr), Ok(value(at)), "{msr:#x}");
        }
        for msr in [0x251, 0x257, 0x25a, 0x267, 0x270] {
            assert_eq!(machine.read(msr), Err(GP), "{msr:#x}");
        }
    }

    #[test]
    fn virtualisation_is_locked_off() {
        let (mut intel, mut amd) = (Machine::new(INTEL), Machine::new(AMD));
        assert_eq!(intel.read(n::FEATURE_CONTROL), Ok(1));
        assert_eq!(intel.write(n::FEATURE_CONTROL, 5), Err(GP));
        assert_eq!(amd.read(n::FEATURE_CONTROL), Err(GP));
        assert_eq!(amd.read(n::VM_CR), Ok(0x18));
        assert_eq!(amd.write(n::VM_CR, 0), Ok(()));
        assert_eq!(amd.read(n::VM_CR), Ok(0x18));
        assert_eq!(amd.write(n::VM_CR, 1 << 5), Err(GP));
        assert_eq!(intel.read(n::VM_CR), Err(GP));
    }

    #[test]
    fn machine_check_has_no_banks() {
        let mut machine = Machine::new(INTEL);
        assert_eq!(
            (machine.read(n::MCG_CAP), machine.read(n::MCG_STATUS)),
            (Ok(0), Ok(0))
        );
        assert_eq!(machine.write(n::MCG_CAP, 0), Err(GP));
        assert_eq!(machine.write(n::MCG_STATUS, 0), Ok(()));
        assert_eq!(machine.write(n::MCG_STATUS, 4), Err(GP));
    }

    #[test]
    fn registers_of_one_vendor() {
        let (mut intel, mut amd) = (Machine::new(INTEL), Machine::new(AMD));
        assert_eq!(intel.read(n::MISC_ENABLE), Ok(0x1801));
        assert_eq!(intel.write(n::MISC_ENABLE, 0x1800), Ok(()));
        assert_eq!(intel.write(n::MISC_ENABLE, 1 << 18), Err(GP));
        assert_eq!(amd.read(n::MISC_ENABLE), Err(GP));
        assert_eq!(amd.read(n::HWCR), Ok(1 << 24));
        assert_eq!(amd.write(n::HWCR, 1 << 24 | 0x148), Ok(()));
        assert_eq!(amd.write(n::HWCR, 1 << 17), Err(GP));
        assert_eq!(amd.write(n::SYSCFG, 0), Ok(()));
        assert_eq!(amd.write(n::SYSCFG, 1 << 23), Err(GP));
        assert_eq!(intel.read(n::HWCR), Err(GP));
        assert_eq!(amd.write(n::NB_CFG, 1 << 46), Ok(()));
        assert_eq!(amd.read(n::NB_CFG), Ok(0));
        assert_eq!(amd.write(n::NB_CFG, 1 << 45), Err(GP));
        assert_eq!(intel.read(n::NB_CFG), Err(GP));
    }

    #[test]
    fn debugctl_and_microcode() {
        let mut machine = Machine::new(INTEL);
        assert_eq!(machine.write(n::DEBUGCTL, 0), Ok(()));
        assert_eq!(machine.write(n::DEBUGCTL, 1), Err(GP));
        assert_eq!(machine.write(n::BIOS_SIGN_ID, 0), Ok(()));
        assert_eq!(machine.read(n::BIOS_SIGN_ID), Ok(0));
    }

    proptest! {
        /// Where a write fails nothing has changed; where it does not, the MSR can be read.
        #[test]
        fn a_failed_write_changes_nothing(
            msr in prop_oneof![0u32..0x300, 0xc000_0080u32..0xc000_0104, 0xc001_0000u32..0xc001_0150, any::<u32>()],
            value in prop_oneof![any::<u64>(), 0u64..0x2000],
            amd in any::<bool>(),
        ) {
            let mut machine = Machine::new(if amd { AMD } else { INTEL });
            let state = machine.0;
            match machine.write(msr, value) {
                Err(GeneralProtection) => {
                    prop_assert_eq!(machine.0, state);
                    prop_assert!(machine.2.switched.is_empty());
                    prop_assert_eq!((machine.2.control, machine.2.offset), (ControlState::default(), 0));
                }
                Ok(()) => prop_assert!(machine.read(msr).is_ok()),
            }
        }
    }
}

//! Which mitigations of speculative execution a CPU needs and can have, by what it says of itself: CPUID, and
//! IA32_ARCH_CAPABILITIES on Intel's CPUs.
//!
//! What is not said is decided for the worse: a CPU is affected unless it, or its maker's list of affected processors, says
//! that it is not. Pure; `arch::speculation` asks the CPU, and `virt::guard` is what the way into the guest does.
//!
//! SDM vol. 2 "CPUID", vol. 4 table 2-2; Intel's guidance by CVE; APM2 3.2.9, APM3 E.4; AMD's "Software techniques for managing
//! speculation".

use core::fmt;

use bitflags::bitflags;

use super::CpuVendor;
use super::cpuid::{Registers, vendor};

bitflags! {
    /// What the kernel can do against speculative execution.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Mitigations: u32 {
        /// A barrier between branch predictions (IBPB) where a CPU goes from one domain to another.
        const IBPB = 1 << 0;
        /// What guests did does not predict the kernel's indirect branches (IBRS, AMD's automatic IBRS).
        const IBRS = 1 << 1;
        /// What runs on the core's other thread does not predict a guest's indirect branches (STIBP).
        const STIBP = 1 << 2;
        /// The return stack holds the kernel's own entries after an exit.
        const RSB = 1 << 3;
        /// VERW clears the CPU's buffers before each entry.
        const VERW = 1 << 4;
        /// The L1 data cache is flushed before each entry.
        const L1D = 1 << 5;
    }
}

/// Each mitigation: its word on the command line, and in the log.
const NAMES: [(Mitigations, &str, &str); 6] = [
    (Mitigations::IBPB, "ibpb", "IBPB between domains"),
    (Mitigations::IBRS, "ibrs", "IBRS in the kernel"),
    (Mitigations::STIBP, "stibp", "STIBP in guests"),
    (Mitigations::RSB, "rsb", "RSB filling after exits"),
    (Mitigations::VERW, "verw", "VERW before entries"),
    (Mitigations::L1D, "l1d", "L1D flush before entries"),
];

impl fmt::Display for Mitigations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (_, _, name) in NAMES.iter().filter(|entry| self.contains(entry.0)) {
            write!(f, "{separator}{name}")?;
            separator = ", ";
        }
        Ok(())
    }
}

/// Who chooses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Choice {
    /// The CPU: what it needs.
    Auto,
    /// The machine's owner: just these, needed or not, as far as the CPU can execute them.
    Just(Mitigations),
}

impl Choice {
    /// `auto`, `off`, `all`, or words such as `rsb,verw`; `None`: something else.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "auto" => Some(Self::Auto),
            "off" => Some(Self::Just(Mitigations::empty())),
            "all" => Some(Self::Just(Mitigations::all())),
            list => list
                .split(',')
                .map(|word| Some(NAMES.iter().find(|entry| entry.1 == word)?.0))
                .try_fold(Mitigations::empty(), |all, one| Some(all | one?))
                .map(Self::Just),
        }
    }
}

bitflags! {
    /// IA32_ARCH_CAPABILITIES (SDM vol. 4 table 2-2), as far as it matters here.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct ArchCapabilities: u64 {
        /// Not affected by rogue data cache loads, nor by the L1 terminal fault.
        const RDCL_NO = 1 << 0;
        /// IBRS is set once: it holds at every change of privilege.
        const IBRS_ALL = 1 << 1;
        /// An empty return stack is made up for by other predictors.
        const RSBA = 1 << 2;
        /// No L1D flush is needed at VM entry.
        const SKIP_L1DFL_VMENTRY = 1 << 3;
        /// Not affected by speculative store bypass.
        const SSB_NO = 1 << 4;
        /// Not affected by microarchitectural data sampling.
        const MDS_NO = 1 << 5;
        /// No machine check where a page's size changes.
        const PSCHANGE_MC_NO = 1 << 6;
        /// Not affected by TSX asynchronous abort.
        const TAA_NO = 1 << 8;
        /// Not affected by shared-buffer data reads and sampling.
        const SBDR_SSDP_NO = 1 << 13;
        /// Not affected by the propagation of stale data from fill buffers.
        const FBSDP_NO = 1 << 14;
        /// Not affected by the propagation of stale data from the uncore.
        const PSDP_NO = 1 << 15;
        /// VERW overwrites fill buffers.
        const FB_CLEAR = 1 << 17;
        /// As RSBA, within what IBRS allows.
        const RRSBA = 1 << 19;
        /// Not affected by branch history injection.
        const BHI_NO = 1 << 20;
        /// The return stack holds nothing of the guest's after an exit with IBRS.
        const PBRSB_NO = 1 << 24;
        /// Not affected by gather data sampling.
        const GDS_NO = 1 << 26;
        /// Not affected by register file data sampling.
        const RFDS_NO = 1 << 27;
        /// VERW clears the register file's stale data.
        const RFDS_CLEAR = 1 << 28;
        /// Not affected by indirect target selection.
        const ITS_NO = 1 << 62;
    }
}

impl ArchCapabilities {
    /// What guests are told: what they cannot rely on, such as a register that they do not have, is not named above.
    pub const fn for_guests(host: u64) -> u64 {
        Self::from_bits_truncate(host).bits()
    }
}

/// Bits of IA32_SPEC_CTRL (SDM vol. 4 table 2-2; APM2 3.2.9).
pub mod spec_ctrl {
    /// Indirect branches are restricted.
    pub const IBRS: u64 = 1 << 0;
    /// Indirect branch predictions are the thread's own.
    pub const STIBP: u64 = 1 << 1;
    /// No loads before older stores whose address is not known.
    pub const SSBD: u64 = 1 << 2;
    /// Indirect branches of CPL 3 are predicted by the targets of direct ones alone; and those below CPL 3.
    pub const IPRED_DIS: u64 = 1 << 3 | 1 << 4;
    /// No RRSBA at CPL 3; and below.
    pub const RRSBA_DIS: u64 = 1 << 5 | 1 << 6;
    /// No fast store forwarding by prediction.
    pub const PSFD: u64 = 1 << 7;
    /// Branches below CPL 3 are not predicted by what was executed at CPL 3.
    pub const BHI_DIS_S: u64 = 1 << 10;
}

/// Bits of CPUID's leaves; those that guests are shown, too, stand in `cpuid::leaves`.
mod bit {
    pub const L7_EBX_RTM: u32 = 1 << 11;
    pub const L7_EDX_MD_CLEAR: u32 = 1 << 10;
    pub const L7_EDX_IBRS_IBPB: u32 = 1 << 26;
    pub const L7_EDX_STIBP: u32 = 1 << 27;
    pub const L7_EDX_L1D_FLUSH: u32 = 1 << 28;
    pub const L7_2_EDX_BHI_CTRL: u32 = 1 << 4;
    pub const X1_ECX_TOPOLOGY: u32 = 1 << 22;
    pub const X8_EBX_IBPB: u32 = 1 << 12;
    pub const X8_EBX_IBRS: u32 = 1 << 14;
    pub const X8_EBX_STIBP: u32 = 1 << 15;
    pub const X8_EBX_IBRS_ALWAYS_ON: u32 = 1 << 16;
    pub const X21_EAX_VERW_CLEAR: u32 = 1 << 5;
    pub const X21_EAX_AUTOMATIC_IBRS: u32 = 1 << 8;
    pub const X21_ECX_TSA_NO: u32 = 1 << 1 | 1 << 2;
}

/// Intel's processors of family 6 that do not say RDCL_NO and are not affected by the L1 terminal fault: Silvermont, Airmont,
/// Goldmont, Goldmont Plus, Knights Landing and Knights Mill. (What does not execute out of order has no EPT either.)
const NO_L1TF: [u32; 10] = [0x37, 0x4a, 0x4c, 0x4d, 0x57, 0x5a, 0x5c, 0x5f, 0x7a, 0x85];
/// Of those that do not say MDS_NO, the ones that microarchitectural data sampling does not affect: Goldmont, Goldmont Plus.
const NO_MDS: [u32; 3] = [0x5c, 0x5f, 0x7a];

/// What a CPU says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Facts {
    vendor: CpuVendor,
    family: u32,
    model: u32,
    l7_ebx: u32,
    l7_edx: u32,
    l7_2_edx: u32,
    x8_ebx: u32,
    x21_eax: u32,
    x21_ecx: u32,
    capabilities: ArchCapabilities,
    /// It is an emulator, which executes one instruction after the other.
    is_emulated: bool,
    /// Two of the machine's CPUs are threads of one core.
    shares_cores: bool,
}

/// What CPUID does not say.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Circumstances {
    /// IA32_ARCH_CAPABILITIES, where there is one.
    pub arch_capabilities: Option<u64>,
    /// It is an emulator, which executes one instruction after the other.
    pub is_emulated: bool,
    /// Two of the machine's CPUs are threads of one core.
    pub shares_cores: bool,
}

impl Facts {
    /// By CPUID, and by what that does not tell.
    pub fn new(cpuid: &dyn Fn(u32, u32) -> Registers, circumstances: &Circumstances) -> Self {
        let leaf_0 = cpuid(0, 0);
        let signature = cpuid(1, 0)[0];
        let base_family = signature >> 8 & 0xf;
        let leaf = |leaf: u32, subleaf| {
            let last = if leaf < 0x8000_0000 {
                leaf_0[0]
            } else {
                cpuid(0x8000_0000, 0)[0]
            };
            if leaf <= last {
                cpuid(leaf, subleaf)
            } else {
                [0; 4]
            }
        };
        let [last_of_7, l7_ebx, _, l7_edx] = leaf(7, 0);
        let l7_2_edx = if last_of_7 >= 2 { leaf(7, 2)[3] } else { 0 };
        let [x21_eax, _, x21_ecx, _] = leaf(0x8000_0021, 0);
        Self {
            vendor: vendor(leaf_0),
            // SDM vol. 2 "CPUID", figure 3-6; APM3 E.3.2.
            family: base_family
                + if base_family == 0xf {
                    signature >> 20 & 0xff
                } else {
                    0
                },
            model: signature >> 4 & 0xf | (signature >> 16 & 0xf) << 4,
            l7_ebx,
            l7_edx,
            l7_2_edx,
            x8_ebx: leaf(0x8000_0008, 0)[1],
            x21_eax,
            x21_ecx,
            capabilities: ArchCapabilities::from_bits_truncate(
                circumstances.arch_capabilities.unwrap_or(0),
            ),
            is_emulated: circumstances.is_emulated,
            shares_cores: circumstances.shares_cores,
        }
    }

    /// What a CPU like that needs.
    fn needed(&self) -> Mitigations {
        use ArchCapabilities as Says;
        if self.is_emulated {
            return Mitigations::empty();
        }
        let says = |no| self.capabilities.contains(no);
        let family_6 = |exempt: &[u32]| self.family == 6 && !exempt.contains(&self.model);
        // The kernel has no retpolines, and every CPU with nested paging predicts branches.
        let mut needed = Mitigations::IBPB | Mitigations::IBRS;
        match self.vendor {
            CpuVendor::Intel => {
                let l1tf = family_6(&NO_L1TF) && !says(Says::RDCL_NO);
                needed.set(Mitigations::L1D, l1tf && !says(Says::SKIP_L1DFL_VMENTRY));
                let mds = family_6(&NO_MDS) && !says(Says::MDS_NO);
                let taa = self.l7_ebx & bit::L7_EBX_RTM != 0 && !says(Says::TAA_NO);
                // Stale data of MMIO and of the register file: who is affected says what clears it.
                let mmio = says(Says::FB_CLEAR)
                    && !says(Says::SBDR_SSDP_NO | Says::FBSDP_NO | Says::PSDP_NO);
                let rfds = says(Says::RFDS_CLEAR) && !says(Says::RFDS_NO);
                needed.set(Mitigations::VERW, mds || taa || mmio || rfds);
                // With IBRS that holds everywhere, a guest's entries predict nothing, but for one return after the exit.
                let rsb = !says(Says::IBRS_ALL | Says::PBRSB_NO);
                needed.set(Mitigations::RSB, rsb);
                // IBRS keeps the other thread out, too, while it is set.
                let stibp = self.shares_cores && !says(Says::IBRS_ALL);
                needed.set(Mitigations::STIBP, stibp);
            }
            CpuVendor::Amd => {
                // Transient scheduler attacks: who is affected says that VERW clears.
                let tsa = self.x21_eax & bit::X21_EAX_VERW_CLEAR != 0
                    && self.x21_ecx & bit::X21_ECX_TSA_NO != bit::X21_ECX_TSA_NO;
                needed.set(Mitigations::VERW, tsa);
                // Automatic IBRS clears the return stack at #VMEXIT.
                needed.set(Mitigations::RSB, !self.has_automatic_ibrs());
                needed.set(Mitigations::STIBP, self.shares_cores);
            }
        }
        needed
    }

    /// What it can have that has an effect.
    fn possible(&self) -> Mitigations {
        let intel = self.vendor == CpuVendor::Intel;
        let [ibpb, ibrs, stibp, l1d, verw] = if intel {
            let has = |bit: u32| self.l7_edx & bit != 0;
            [
                has(bit::L7_EDX_IBRS_IBPB),
                has(bit::L7_EDX_IBRS_IBPB),
                has(bit::L7_EDX_STIBP),
                has(bit::L7_EDX_L1D_FLUSH),
                has(bit::L7_EDX_MD_CLEAR)
                    || self
                        .capabilities
                        .intersects(ArchCapabilities::FB_CLEAR | ArchCapabilities::RFDS_CLEAR),
            ]
        } else {
            let has = |bit: u32| self.x8_ebx & bit != 0;
            [
                has(bit::X8_EBX_IBPB),
                has(bit::X8_EBX_IBRS) || self.has_automatic_ibrs(),
                has(bit::X8_EBX_STIBP),
                false,
                self.x21_eax & bit::X21_EAX_VERW_CLEAR != 0,
            ]
        };
        let mut possible = Mitigations::RSB;
        possible.set(Mitigations::IBPB, ibpb);
        possible.set(Mitigations::IBRS, ibrs);
        possible.set(Mitigations::STIBP, stibp);
        possible.set(Mitigations::L1D, l1d);
        possible.set(Mitigations::VERW, verw);
        possible
    }

    const fn has_automatic_ibrs(&self) -> bool {
        self.x21_eax & bit::X21_EAX_AUTOMATIC_IBRS != 0
    }

    /// IBRS that is set once: it need not be written after each exit to have its effect.
    fn has_lasting_ibrs(&self) -> bool {
        match self.vendor {
            CpuVendor::Intel => self.capabilities.contains(ArchCapabilities::IBRS_ALL),
            CpuVendor::Amd => self.x8_ebx & bit::X8_EBX_IBRS_ALWAYS_ON != 0,
        }
    }

    /// What is done, by this choice.
    pub fn plan(&self, choice: Choice) -> Plan {
        let (asked, possible) = match choice {
            Choice::Auto => (self.needed(), self.possible()),
            // VERW is an instruction of every CPU, whether it clears anything or not.
            Choice::Just(asked) => (asked, self.possible() | Mitigations::VERW),
        };
        let taken = asked & possible;
        let open = self.needed() - taken;
        let automatic_ibrs = taken.contains(Mitigations::IBRS) && self.has_automatic_ibrs();
        let mut always = 0;
        let mut kernel_only = 0;
        if taken.contains(Mitigations::STIBP) {
            always |= spec_ctrl::STIBP;
        }
        if taken.contains(Mitigations::IBRS) && !automatic_ibrs {
            if self.has_lasting_ibrs() {
                always |= spec_ctrl::IBRS;
                let history = self.vendor == CpuVendor::Intel
                    && self.l7_2_edx & bit::L7_2_EDX_BHI_CTRL != 0
                    && !self.capabilities.contains(ArchCapabilities::BHI_NO);
                if history {
                    always |= spec_ctrl::BHI_DIS_S;
                }
            } else {
                kernel_only |= spec_ctrl::IBRS;
            }
        }
        let rsb = if !taken.contains(Mitigations::RSB) {
            Rsb::Untouched
        } else if self.vendor == CpuVendor::Intel && always & spec_ctrl::IBRS != 0 {
            Rsb::OneCall
        } else {
            Rsb::Filled
        };
        Plan {
            choice,
            taken,
            lacking: asked - possible,
            automatic_ibrs,
            kernel_spec_ctrl: always | kernel_only,
            guest_spec_ctrl: always,
            rsb,
            is_emulated: self.is_emulated,
            threads_see_each_other: self.shares_cores
                && (open.contains(Mitigations::STIBP)
                    || match self.vendor {
                        CpuVendor::Intel => self
                            .needed()
                            .intersects(Mitigations::L1D | Mitigations::VERW),
                        // A thread finds what the other has left when that halts, and VERW has cleared it by then.
                        CpuVendor::Amd => open.contains(Mitigations::VERW),
                    }),
        }
    }
}

/// What is done about the return stack after an exit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rsb {
    /// Nothing.
    Untouched,
    /// One CALL is completed before any return is executed.
    OneCall,
    /// Every entry is made the kernel's own.
    Filled,
}

/// What is done on a CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plan {
    choice: Choice,
    /// The mitigations that are in force.
    pub taken: Mitigations,
    /// What would be, if the CPU could: its microcode may be too old.
    pub lacking: Mitigations,
    /// EFER.AIBRSE is set for the kernel.
    pub automatic_ibrs: bool,
    /// SPEC_CTRL while the kernel runs.
    pub kernel_spec_ctrl: u64,
    /// Bits of SPEC_CTRL that are set while a guest runs, besides those that it has set.
    pub guest_spec_ctrl: u64,
    /// The return stack after an exit.
    pub rsb: Rsb,
    is_emulated: bool,
    /// Two domains on the threads of one core can find out about each other what no mitigation here prevents.
    pub threads_see_each_other: bool,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.choice {
            Choice::Just(mitigations) if mitigations.is_empty() => {
                return f.write_str("mitigations are off");
            }
            Choice::Auto if self.is_emulated => {
                return f.write_str("no mitigations, an emulator does not speculate");
            }
            _ if self.taken.is_empty() => f.write_str("no mitigations")?,
            _ => write!(f, "{}", self.taken)?,
        }
        let rest = !(self.taken | self.lacking);
        if !rest.is_empty() {
            let why = match self.choice {
                Choice::Auto => "not needed",
                Choice::Just(_) => "not asked for",
            };
            write!(f, "; {why}: {rest}")?;
        }
        Ok(())
    }
}

/// How many of the low bits of an APIC identifier tell the threads of one core apart (SDM vol. 3 10.9.3; APM3 E.4.15).
pub fn thread_bits(cpuid: &dyn Fn(u32, u32) -> Registers) -> u32 {
    const THREADS: u32 = 1;
    let leaf_0 = cpuid(0, 0);
    if leaf_0[0] >= 0xb {
        let [shift, count, level, _] = cpuid(0xb, 0);
        if count & 0xffff != 0 && level >> 8 & 0xff == THREADS {
            return shift & 0x1f;
        }
    }
    let has_topology = vendor(leaf_0) == CpuVendor::Amd
        && cpuid(0x8000_0000, 0)[0] >= 0x8000_001e
        && cpuid(0x8000_0001, 0)[2] & bit::X1_ECX_TOPOLOGY != 0;
    if has_topology {
        let more_threads = cpuid(0x8000_001e, 0)[1] >> 8 & 0xff;
        return u32::BITS - more_threads.leading_zeros();
    }
    0
}

#[cfg(test)]
#[path = "speculation_tests.rs"]
mod tests;

//! The leaves one by one.

use plinth_abi::cpuid as plinth;

use super::{GuestIdentity, Registers, VcpuView};
use crate::rules::CpuVendor;
use crate::rules::cr::{cr4, xcr0};

const ZERO: Registers = [0; 4];

/// The highest basic leaf that is shown: V2 extended topology, or on AMD's CPUs the extended state.
const LAST_BASIC_INTEL: u32 = 0x1f;
const LAST_BASIC_AMD: u32 = 0xd;
/// The highest extended leaf that is shown.
const LAST_EXTENDED_INTEL: u32 = 0x8000_0008;
const LAST_EXTENDED_AMD: u32 = 0x8000_0021;
/// Hypervisor leaves end here; what lies behind is out of range.
const HYPERVISOR_END: u32 = 0x4000_0200;

/// A mask of bits.
const fn bits(list: &[u32]) -> u32 {
    let mut mask = 0;
    let mut at = 0;
    while at < list.len() {
        mask |= 1 << list[at];
        at += 1;
    }
    mask
}

// The allow lists, by leaf and register (SDM vol. 2 tables 3-10 and 3-11 and the leaf tables; APM3 E.3, E.4).

/// SSE3 PCLMULQDQ SSSE3 FMA CX16 PCID SSE4.1 SSE4.2 MOVBE POPCNT AES XSAVE AVX F16C RDRAND.
const L1_ECX: u32 = bits(&[0, 1, 9, 12, 13, 17, 19, 20, 22, 23, 25, 26, 28, 29, 30]);
/// FPU VME DE PSE TSC MSR PAE MCE CX8 SEP MTRR PGE MCA CMOV PAT PSE36 CLFSH MMX FXSR SSE SSE2 SS.
const L1_EDX: u32 = bits(&[
    0, 1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26, 27,
]);
/// FSGSBASE TSC_ADJUST BMI1 AVX2 FDP_EXCPTN_ONLY SMEP BMI2 ERMS INVPCID no-FCS-FDS AVX512F AVX512DQ RDSEED ADX SMAP AVX512_IFMA
/// CLFLUSHOPT CLWB AVX512PF AVX512ER AVX512CD SHA AVX512BW AVX512VL. Not SGX, HLE, RTM, MPX, PT, resource control.
const L7_EBX: u32 = bits(&[
    0, 1, 3, 5, 6, 7, 8, 9, 10, 13, 16, 17, 18, 19, 20, 21, 23, 24, 26, 27, 28, 29, 30, 31,
]);
/// AVX512_VBMI UMIP PKU AVX512_VBMI2 GFNI VAES VPCLMULQDQ AVX512_VNNI AVX512_BITALG AVX512_VPOPCNTDQ RDPID CLDEMOTE MOVDIRI
/// MOVDIR64B. Not WAITPKG, shadow stacks, LA57, key locker, ENQCMD, PKS.
const L7_ECX: u32 = bits(&[1, 2, 3, 6, 8, 9, 10, 11, 12, 14, 22, 25, 27, 28]);
/// AVX512_4VNNIW AVX512_4FMAPS FSRM AVX512_VP2INTERSECT MD_CLEAR SERIALIZE AVX512_FP16; and Intel's: IBRS_IBPB STIBP
/// ARCH_CAPABILITIES SSBD. Not UINTR, AMX, IBT, L1D_FLUSH.
const L7_EDX: u32 = bits(&[2, 3, 4, 8, 10, 14, 23]);
const L7_EDX_INTEL: u32 = L7_EDX | bits(&[26, 27, 29, 31]);
/// More bits of SPEC_CTRL: PSFD IPRED_CTRL RRSBA_CTRL BHI_CTRL; and MCDT_NO.
const L7_2_EDX: u32 = bits(&[0, 1, 2, 4, 5]);
/// SHA512 SM3 SM4 AVX_VNNI AVX512_BF16 CMPCCXADD and the fast short string operations, AVX_IFMA.
const L7_1_EAX: u32 = bits(&[0, 1, 2, 4, 5, 7, 10, 11, 12, 23]);
/// AVX_VNNI_INT8 AVX_NE_CONVERT AVX_VNNI_INT16 PREFETCHI.
const L7_1_EDX: u32 = bits(&[4, 5, 10, 14]);
/// XSAVEOPT XSAVEC XGETBV(1). Not XSAVES, XFD.
const LD_1_EAX: u32 = bits(&[0, 1, 2]);
/// LAHF ABM PREFETCHW; and AMD's: AltMovCr8 SSE4A MisAlignSse XOP FMA4 TBM TopologyExtensions. Not SVM, SKINIT, OSVW, IBS, WDT,
/// LWP, counters, MONITORX.
const X1_ECX: u32 = bits(&[0, 5, 8]);
const X1_ECX_AMD: u32 = X1_ECX | bits(&[4, 6, 7, 11, 16, 21, 22]);
/// SYSCALL NX 1-GiB pages RDTSCP LM; and AMD's: MMXEXT FFXSR 3DNowExt 3DNow, and the bits that repeat leaf 1.
const X1_EDX: u32 = bits(&[11, 20, 26, 27, 29]);
const X1_EDX_AMD: u32 = X1_EDX
    | bits(&[
        0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 14, 15, 16, 17, 22, 23, 24, 25, 30, 31,
    ]);
/// WBNOINVD; and AMD's: CLZERO, RstrFpErrPtrs, and what concerns predictions: IBPB, IBRS, STIBP, how IBRS and STIBP are best used
/// (4 bits), SSBD, SSB_NO, PSFD, BTC_NO, IBPB_RET. Not VIRT_SPEC_CTRL.
const X8_EBX: u32 = bits(&[9]);
const X8_EBX_AMD: u32 = bits(&[0, 2, 9, 12, 14, 15, 16, 17, 18, 19, 24, 26, 28, 29, 30]);
/// NoNestedDataBp, LFENCE always serialising, VERW clears, null selector clears base, IBPB clears all predictions, SRSO_NO,
/// SRSO_USER_KERNEL_NO. Not automatic IBRS, which is a bit of EFER, nor SBPB.
const X21_EAX: u32 = bits(&[0, 2, 5, 6, 28, 29, 30]);
/// TSA_SQ_NO, TSA_L1_NO.
const X21_ECX: u32 = bits(&[1, 2]);

/// KVM_FEATURE_NOP_IO_DELAY, CLOCKSOURCE2, STEAL_TIME, PV_EOI, MSI_EXT_DEST_ID and CLOCKSOURCE_STABLE (Linux's
/// Documentation/virt/kvm/x86/cpuid.rst): what needs a hypercall of KVM's is not there.
const KVM_FEATURES: u32 = bits(&[1, 3, 5, 6, 15, 24]);

// What needs the vector state that XCR0 may lack.
const L1_ECX_AVX: u32 = bits(&[12, 28, 29]);
const L7_EBX_AVX: u32 = bits(&[5]);
const L7_EBX_AVX512: u32 = bits(&[16, 17, 21, 26, 27, 28, 30, 31]);
const L7_ECX_AVX: u32 = bits(&[9, 10]);
const L7_ECX_AVX512: u32 = bits(&[1, 6, 11, 12, 14]);
const L7_EDX_AVX512: u32 = bits(&[2, 3, 8, 23]);
const L7_1_EAX_AVX: u32 = bits(&[0, 1, 2, 4, 23]);
const L7_1_EAX_AVX512: u32 = bits(&[5]);
const L7_1_EDX_AVX: u32 = bits(&[4, 5, 10]);
const X1_ECX_AVX: u32 = bits(&[11, 16]);

pub(super) const OSXSAVE: u32 = 1 << 27;
pub(super) const OSPKE: u32 = 1 << 4;
const APIC: u32 = 1 << 9;
const ARCH_CAPABILITIES: u32 = 1 << 29;
const XSAVE: u32 = 1 << 26;
const HYPERVISOR: u32 = 1 << 31;

/// The vendor that the host's leaf 0 names; who is not AMD or Hygon follows Intel's rules.
pub fn vendor(leaf_0: Registers) -> CpuVendor {
    let name = [leaf_0[1], leaf_0[3], leaf_0[2]];
    let is = |text: &[u8; 12]| {
        name.iter()
            .zip(text.chunks_exact(4))
            .all(|(word, chunk)| word.to_le_bytes() == *chunk)
    };
    if is(b"AuthenticAMD") || is(b"HygonGenuine") {
        CpuVendor::Amd
    } else {
        CpuVendor::Intel
    }
}

/// The guest's CPUID as a function of the host's. [`super::CpuidTable`] gives the same from a table.
pub fn cpuid(
    leaf: u32,
    subleaf: u32,
    host: &dyn Fn(u32, u32) -> Registers,
    guest: &GuestIdentity,
    vcpu: &VcpuView,
) -> Registers {
    let source = Source::new(host, guest);
    let Some(leaf) = source.in_range(leaf) else {
        return ZERO;
    };
    patch(
        leaf,
        subleaf,
        source.leaf(leaf, subleaf),
        guest,
        vcpu,
        &|component| source.component(component),
    )
}

/// Shift that makes a package's identifier from an APIC identifier.
pub(super) const fn package_shift(vcpus: u32) -> u32 {
    match vcpus {
        0 | 1 => 0,
        more => u32::BITS - (more - 1).leading_zeros(),
    }
}

/// Bytes that XSAVE needs for the components `xcr0`; `compact`: XSAVEC. `component` gives the registers of leaf 0DH's
/// subleaves from 2 on (SDM vol. 1 13.4.2, 13.4.3).
pub(super) fn xsave_size(xcr0: u64, compact: bool, component: &dyn Fn(u32) -> Registers) -> u32 {
    let mut end = 512 + 64;
    for number in 2..63 {
        if xcr0 & 1 << number == 0 {
            continue;
        }
        let [size, offset, flags, _] = component(number);
        if !compact {
            end = end.max(offset.saturating_add(size));
            continue;
        }
        if flags & 2 != 0 {
            end = end.saturating_add(63) & !63;
        }
        end = end.saturating_add(size);
    }
    end
}

/// Puts what the vCPU decides into a leaf that is otherwise the domain's.
pub(super) fn patch(
    leaf: u32,
    subleaf: u32,
    mut registers: Registers,
    guest: &GuestIdentity,
    vcpu: &VcpuView,
    component: &dyn Fn(u32) -> Registers,
) -> Registers {
    match (leaf, subleaf) {
        (1, _) => {
            registers[1] |= vcpu.apic_id << 24;
            if vcpu.cr4 & cr4::OSXSAVE != 0 && registers[2] & XSAVE != 0 {
                registers[2] |= OSXSAVE;
            }
            if vcpu.apic_disabled {
                registers[3] &= !APIC;
            }
        }
        (7, 0) if vcpu.cr4 & cr4::PKE != 0 && registers[2] & 1 << 3 != 0 => registers[2] |= OSPKE,
        // A level of threads (one a core), one of cores, and then none (SDM vol. 2 "CPUID", leaf 0BH).
        (0xb | 0x1f, _) => {
            let low = subleaf & 0xff;
            registers = match subleaf {
                0 => [0, 1, low | 1 << 8, vcpu.apic_id],
                1 => [
                    package_shift(guest.vcpus),
                    guest.vcpus,
                    low | 2 << 8,
                    vcpu.apic_id,
                ],
                _ => [0, 0, low, vcpu.apic_id],
            };
        }
        (0xd, 0) if registers[0] != 0 => registers[1] = xsave_size(vcpu.xcr0, false, component),
        (0xd, 1) if registers[0] & 2 != 0 => registers[1] = xsave_size(vcpu.xcr0, true, component),
        // One thread a core, one node; EDX, which is reserved, says up to here that the leaf is there.
        (0x8000_001e, _) if registers[3] != 0 => {
            registers = [vcpu.apic_id, vcpu.apic_id & 0xff, 0, 0]
        }
        _ => {}
    }
    registers
}

/// The leaf that answers for `leaf`: Intel's CPUs answer a leaf out of range with the highest basic one, AMD's with zeros (SDM
/// vol. 2 "CPUID", "INPUT EAX"; APM3 "CPUID").
pub(super) const fn in_range(
    leaf: u32,
    last_basic: u32,
    last_extended: u32,
    vendor: CpuVendor,
) -> Option<u32> {
    let known = match leaf {
        0..0x4000_0000 => leaf <= last_basic,
        0x4000_0000..HYPERVISOR_END => true,
        _ => leaf >= 0x8000_0000 && leaf <= last_extended,
    };
    match (known, vendor) {
        (true, _) => Some(leaf),
        (false, CpuVendor::Intel) => Some(last_basic),
        (false, CpuVendor::Amd) => None,
    }
}

/// The host's CPUID and what is made of it.
pub(super) struct Source<'a> {
    host: &'a dyn Fn(u32, u32) -> Registers,
    guest: &'a GuestIdentity,
    pub(super) vendor: CpuVendor,
    pub(super) last_basic: u32,
    pub(super) last_extended: u32,
    /// XCR0's components that are shown; 0: no XSAVE.
    pub(super) xcr0: u64,
}

impl<'a> Source<'a> {
    pub(super) fn new(host: &'a dyn Fn(u32, u32) -> Registers, guest: &'a GuestIdentity) -> Self {
        let basic = host(0, 0);
        let extended = host(0x8000_0000, 0)[0];
        let vendor = vendor(basic);
        let (limit_basic, limit_extended) = match vendor {
            CpuVendor::Intel => (LAST_BASIC_INTEL, LAST_EXTENDED_INTEL),
            CpuVendor::Amd => (LAST_BASIC_AMD, LAST_EXTENDED_AMD),
        };
        let last_basic = basic[0].min(limit_basic);
        Self {
            host,
            guest,
            vendor,
            last_basic,
            last_extended: extended.clamp(0x8000_0000, limit_extended),
            xcr0: Self::components(host, guest, last_basic),
        }
    }

    /// The components of XCR0 that the host has, Plinth switches and the guest is shown.
    fn components(
        host: &dyn Fn(u32, u32) -> Registers,
        guest: &GuestIdentity,
        last_basic: u32,
    ) -> u64 {
        const KNOWN: u64 = xcr0::X87 | xcr0::SSE | xcr0::AVX | xcr0::AVX512 | xcr0::PKRU;
        const BASE: u64 = xcr0::X87 | xcr0::SSE;
        if last_basic < 0xd || host(1, 0)[2] & XSAVE == 0 {
            return 0;
        }
        let leaf = host(0xd, 0);
        let mut shown =
            (u64::from(leaf[3]) << 32 | u64::from(leaf[0])) & guest.xcr0_supported & KNOWN;
        if shown & xcr0::AVX512 != xcr0::AVX512 || shown & xcr0::AVX == 0 {
            shown &= !xcr0::AVX512;
        }
        if shown & BASE == BASE { shown } else { 0 }
    }

    /// The leaf that answers for `leaf`.
    fn in_range(&self, leaf: u32) -> Option<u32> {
        in_range(leaf, self.last_basic, self.last_extended, self.vendor)
    }

    /// Leaf 0DH's subleaf `number`, from 2 on: size, offset and alignment of a component.
    pub(super) fn component(&self, number: u32) -> Registers {
        if !(2..63).contains(&number) || self.xcr0 & 1 << number == 0 {
            return ZERO;
        }
        let [size, offset, flags, _] = (self.host)(0xd, number);
        [size, offset, flags & 2, 0]
    }

    fn avx(&self) -> bool {
        self.xcr0 & xcr0::AVX != 0
    }

    fn avx512(&self) -> bool {
        self.xcr0 & xcr0::AVX512 != 0
    }

    /// `value` without the bits that need vector state the guest does not have.
    fn without(&self, value: u32, avx: u32, avx512: u32) -> u32 {
        let mut value = value;
        if !self.avx() {
            value &= !(avx | avx512);
        }
        if !self.avx512() {
            value &= !avx512;
        }
        value
    }

    /// Leaf `leaf`, which is in range, as it is for all vCPUs.
    pub(super) fn leaf(&self, leaf: u32, subleaf: u32) -> Registers {
        let host = self.host;
        match leaf {
            0 => {
                let [_, b, c, d] = host(0, 0);
                [self.last_basic, b, c, d]
            }
            1 => self.leaf_1(),
            // Descriptors of caches and TLBs.
            2 if self.vendor == CpuVendor::Intel => host(2, 0),
            4 if self.vendor == CpuVendor::Intel => self.caches(host(4, subleaf), true),
            // The APIC timer always runs (ARAT); no thermal or power management.
            6 if self.guest.local_apic => [1 << 2, 0, 0, 0],
            7 => self.leaf_7(subleaf),
            0xd => self.leaf_d(subleaf),
            0x15 if self.vendor == CpuVendor::Intel => self.frequency(),
            0x16 if self.vendor == CpuVendor::Intel && self.guest.tsc_khz != 0 => {
                let mhz = (self.guest.tsc_khz / 1000) & 0xffff;
                [mhz, mhz, 100, 0]
            }
            plinth::LEAF_SIGNATURE => {
                let [b, c, d] = plinth::SIGNATURE;
                [plinth::LEAF_LAST, b, c, d]
            }
            plinth::LEAF_VERSION => [plinth_abi::ABI_VERSION, 0, 0, 0],
            plinth::LEAF_FREQUENCY => [self.guest.tsc_khz, self.guest.apic_khz, 0, 0],
            plinth::LEAF_KVM if self.guest.local_apic => {
                let [b, c, d] = plinth::KVM_SIGNATURE;
                [plinth::LEAF_KVM_FEATURES, b, c, d]
            }
            plinth::LEAF_KVM_FEATURES if self.guest.local_apic => [KVM_FEATURES, 0, 0, 0],
            0x8000_0000 => {
                let [_, b, c, d] = host(leaf, 0);
                [self.last_extended, b, c, d]
            }
            0x8000_0001 => self.extended_1(),
            // The processor's name.
            0x8000_0002..=0x8000_0004 => host(leaf, 0),
            // AMD: L1 caches and TLBs; and TLBs for 1-GiB pages, hints for the optimiser.
            0x8000_0005 | 0x8000_0019 | 0x8000_001a if self.vendor == CpuVendor::Amd => {
                host(leaf, 0)
            }
            0x8000_0006 => host(leaf, 0),
            // The TSC does not change its rate.
            0x8000_0007 => [0, 0, 0, host(leaf, 0)[3] & 1 << 8],
            0x8000_0008 => self.sizes(),
            0x8000_001d if self.topology_extensions() => self.caches(host(leaf, subleaf), false),
            0x8000_001e if self.topology_extensions() => [0, 0, 0, 1],
            0x8000_0021 if self.vendor == CpuVendor::Amd => {
                let [a, _, c, _] = host(leaf, 0);
                [a & X21_EAX, 0, c & X21_ECX, 0]
            }
            _ => ZERO,
        }
    }

    fn leaf_1(&self) -> Registers {
        let [signature, b, c, d] = (self.host)(1, 0);
        let mut c = self.without(c & L1_ECX, L1_ECX_AVX, 0);
        if self.xcr0 == 0 {
            c &= !XSAVE;
        }
        let mut d = d & L1_EDX;
        if self.guest.local_apic {
            c |= 1 << 21 | 1 << 24; // x2APIC, TSC deadline
            d |= APIC;
        }
        if self.guest.vcpus > 1 {
            d |= 1 << 28; // HTT: EBX[23:16] counts
        }
        let logical = 1u32
            .checked_shl(package_shift(self.guest.vcpus))
            .unwrap_or(255)
            .min(255);
        [signature, b & 0xff00 | logical << 16, c | HYPERVISOR, d]
    }

    fn leaf_7(&self, subleaf: u32) -> Registers {
        let [a, b, c, d] = (self.host)(7, subleaf);
        match subleaf {
            0 => {
                let mut b = self.without(b & L7_EBX, L7_EBX_AVX, L7_EBX_AVX512);
                let mut c = self.without(c & L7_ECX, L7_ECX_AVX, L7_ECX_AVX512);
                if !self.guest.invpcid {
                    b &= !(1 << 10);
                }
                if !self.guest.rdtscp {
                    c &= !(1 << 22);
                }
                if self.xcr0 & xcr0::PKRU == 0 {
                    c &= !(1 << 3);
                }
                let mut d = match self.vendor {
                    CpuVendor::Intel => d & L7_EDX_INTEL,
                    CpuVendor::Amd => d & L7_EDX,
                };
                if self.guest.arch_capabilities.is_none() {
                    d &= !ARCH_CAPABILITIES;
                }
                [a.min(2), b, c, self.without(d, 0, L7_EDX_AVX512)]
            }
            1 if (self.host)(7, 0)[0] >= 1 => [
                self.without(a & L7_1_EAX, L7_1_EAX_AVX, L7_1_EAX_AVX512),
                0,
                0,
                self.without(d & L7_1_EDX, L7_1_EDX_AVX, 0),
            ],
            2 if self.vendor == CpuVendor::Intel && (self.host)(7, 0)[0] >= 2 => {
                [0, 0, 0, d & L7_2_EDX]
            }
            _ => ZERO,
        }
    }

    fn leaf_d(&self, subleaf: u32) -> Registers {
        match subleaf {
            _ if self.xcr0 == 0 => ZERO,
            // EBX is the vCPU's.
            0 => {
                let all = xsave_size(self.xcr0, false, &|number| self.component(number));
                [self.xcr0 as u32, 0, all, (self.xcr0 >> 32) as u32]
            }
            1 => [(self.host)(0xd, 1)[0] & LD_1_EAX, 0, 0, 0],
            _ => self.component(subleaf),
        }
    }

    /// A cache as the host's leaf 4 or 8000_001DH describes it, shared as the guest's topology has it: the last level by the
    /// whole package, the others by one core.
    fn caches(&self, host: Registers, intel: bool) -> Registers {
        let [a, b, c, d] = host;
        if a & 0x1f == 0 {
            return ZERO;
        }
        let identifiers = 1u32
            .checked_shl(package_shift(self.guest.vcpus))
            .unwrap_or(u32::MAX)
            - 1;
        let sharing = if a >> 5 & 7 >= 3 {
            identifiers.min(0xfff)
        } else {
            0
        };
        // Leaf 4 has the identifiers of cores in the package behind it, AMD's leaf has nothing there.
        let cores = if intel { identifiers.min(0x3f) } else { 0 };
        [a & 0x3fff | sharing << 14 | cores << 26, b, c, d]
    }

    /// Leaf 15H: TSC = ECX * EBX / EAX, and ECX is the rate of the APIC timer.
    fn frequency(&self) -> Registers {
        match (self.guest.tsc_khz, self.guest.apic_khz) {
            (0, _) => ZERO,
            (tsc, 0) => [1000, tsc, 1_000_000, 0],
            (tsc, apic) => match apic.checked_mul(1000) {
                Some(hz) => [apic, tsc, hz, 0],
                None => [1000, tsc, 1_000_000, 0],
            },
        }
    }

    fn extended_1(&self) -> Registers {
        let [a, _, c, d] = (self.host)(0x8000_0001, 0);
        let amd = self.vendor == CpuVendor::Amd;
        let (mut c, mut d) = if amd {
            (self.without(c & X1_ECX_AMD, X1_ECX_AVX, 0), d & X1_EDX_AMD)
        } else {
            (c & X1_ECX, d & X1_EDX)
        };
        if amd && self.guest.vcpus > 1 {
            c |= 1 << 1; // CmpLegacy
        }
        if amd && self.guest.local_apic {
            d |= 1 << 9;
        }
        if !self.guest.rdtscp {
            d &= !(1 << 27);
        }
        // The signature is AMD's; Intel has zero there.
        [if amd { a } else { 0 }, 0, c, d]
    }

    fn sizes(&self) -> Registers {
        let [a, b, _, _] = (self.host)(0x8000_0008, 0);
        // 57-bit linear addresses are not offered.
        let linear = (a >> 8 & 0xff).clamp(32, 48);
        let a = u32::from(self.guest.physical_bits) | linear << 8;
        match self.vendor {
            CpuVendor::Intel => [a, b & X8_EBX, 0, 0],
            CpuVendor::Amd => {
                let cores = self.guest.vcpus.saturating_sub(1).min(0xff);
                [
                    a,
                    b & X8_EBX_AMD,
                    cores | package_shift(self.guest.vcpus) << 12,
                    0,
                ]
            }
        }
    }

    /// AMD's topology leaves are there.
    pub(super) fn topology_extensions(&self) -> bool {
        self.vendor == CpuVendor::Amd && (self.host)(0x8000_0001, 0)[2] & 1 << 22 != 0
    }
}

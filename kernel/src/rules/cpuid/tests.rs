use proptest::prelude::*;

use super::*;
use crate::rules::CpuVendor;
use crate::rules::cr::{cr4, efer};

const GUEST: GuestIdentity = GuestIdentity {
    vcpus: 3,
    local_apic: false,
    invpcid: true,
    rdtscp: true,
    xcr0_supported: 7,
    tsc_khz: 2_500_000,
    apic_khz: 0,
    physical_bits: 39,
    arch_capabilities: None,
};
const VCPU: VcpuView = VcpuView {
    apic_id: 2,
    cr4: 0,
    xcr0: 1,
    apic_disabled: false,
};

/// A host that has every feature, known or not.
fn host(vendor: CpuVendor, leaf: u32, subleaf: u32) -> Registers {
    let words = |text: &[u8; 12]| {
        let word =
            |at: usize| u32::from_le_bytes([text[at], text[at + 1], text[at + 2], text[at + 3]]);
        [word(0), word(8), word(4)]
    };
    let [b, c, d] = match vendor {
        CpuVendor::Intel => words(b"GenuineIntel"),
        CpuVendor::Amd => words(b"AuthenticAMD"),
    };
    match (leaf, subleaf) {
        (0, _) => [0x20, b, c, d],
        (4 | 0x8000_001d, 0..=3) => [
            0xfc00_c000 | [0x21, 0x22, 0x43, 0x63][subleaf as usize],
            0x1c0_003f,
            0x3f,
            0,
        ],
        (4 | 0x8000_001d, _) => [0; 4],
        (0xd, 0) => [0x602ff, 0xffff, 0xffff, 0],
        (0xd, 1) => [0x1f, 0xffff, 0x1fff, 0],
        (0xd, 2) => [256, 576, 0, 0],
        (0xd, 5) => [40, 1088, 0, 0],
        (0xd, 6) => [512, 1152, 0, 0],
        (0xd, 7) => [1024, 1664, 2, 0],
        (0xd, 9) => [8, 2688, 0, 0],
        (0xd, _) => [0; 4],
        (0x8000_0000, _) => [0x8000_0028, b, c, d],
        (0x8000_0008, _) => [0x3930, u32::MAX, u32::MAX, u32::MAX],
        _ => [u32::MAX; 4],
    }
}

fn intel(leaf: u32, subleaf: u32) -> Registers {
    cpuid(
        leaf,
        subleaf,
        &|l, s| host(CpuVendor::Intel, l, s),
        &GUEST,
        &VCPU,
    )
}

fn amd(leaf: u32, subleaf: u32) -> Registers {
    cpuid(
        leaf,
        subleaf,
        &|l, s| host(CpuVendor::Amd, l, s),
        &GUEST,
        &VCPU,
    )
}

fn table(vendor: CpuVendor, guest: &GuestIdentity) -> CpuidTable {
    CpuidTable::new(&|l, s| host(vendor, l, s), guest)
}

const fn has(register: u32, bit: u32) -> bool {
    register & 1 << bit != 0
}

#[test]
fn the_vendor_passes_and_the_maxima_are_capped() {
    assert_eq!(intel(0, 0)[0], 0x1f);
    assert_eq!(&intel(0, 0)[1].to_le_bytes(), b"Genu");
    assert_eq!(amd(0, 0)[0], 0xd);
    assert_eq!(intel(0x8000_0000, 0)[0], 0x8000_0008);
    assert_eq!(amd(0x8000_0000, 0)[0], 0x8000_0021);
    assert_eq!(vendor(host(CpuVendor::Amd, 0, 0)), CpuVendor::Amd);
}

#[test]
fn what_a_guest_cannot_use_is_not_shown() {
    let [_, _, c, d] = intel(1, 0);
    // DTES64 MONITOR DS-CPL VMX SMX EIST TM2 CNXT-ID SDBG xTPR PDCM DCA x2APIC TSC-deadline OSXSAVE
    for bit in [2, 3, 4, 5, 6, 7, 8, 10, 11, 14, 15, 16, 18, 21, 24, 27] {
        assert!(!has(c, bit), "leaf 1 ECX bit {bit}");
    }
    // APIC PSN DS ACPI TM PBE
    for bit in [9, 18, 20, 21, 22, 29, 31] {
        assert!(!has(d, bit), "leaf 1 EDX bit {bit}");
    }
    let [_, b, c, d] = intel(7, 0);
    // SGX HLE PQM RTM MPX PQE PT
    for bit in [2, 4, 11, 12, 14, 15, 22, 25] {
        assert!(!has(b, bit), "leaf 7 EBX bit {bit}");
    }
    // PKU (XCR0 has no PKRU) OSPKE WAITPKG CET_SS TME LA57 KL ENQCMD SGX_LC PKS
    for bit in [3, 4, 5, 7, 13, 16, 23, 29, 30, 31] {
        assert!(!has(c, bit), "leaf 7 ECX bit {bit}");
    }
    // UINTR IBT AMX L1D_FLUSH ARCH_CAPABILITIES (the guest has none)
    for bit in [5, 20, 22, 24, 25, 28, 29] {
        assert!(!has(d, bit), "leaf 7 EDX bit {bit}");
    }
    let [_, _, c, _] = amd(0x8000_0001, 0);
    // SVM OSVW IBS SKINIT WDT LWP counters MONITORX
    for bit in [2, 3, 9, 10, 12, 13, 15, 23, 24, 26, 27, 28, 29] {
        assert!(!has(c, bit), "leaf 8000_0001 ECX bit {bit}");
    }
    for leaf in [3, 5, 6, 9, 0xa, 0x12, 0x14, 0x19, 0x1d] {
        assert_eq!(intel(leaf, 0), [0; 4], "leaf {leaf:#x}");
    }
    for leaf in [
        4,
        6,
        0x8000_000a,
        0x8000_001b,
        0x8000_001c,
        0x8000_001f,
        0x8000_0020,
    ] {
        assert_eq!(amd(leaf, 0), [0; 4], "leaf {leaf:#x}");
    }
}

#[test]
fn what_a_guest_can_use_is_shown() {
    let [_, _, c, d] = intel(1, 0);
    assert!(has(c, 31), "hypervisor");
    assert!(
        has(c, 26)
            && has(c, 28)
            && has(c, 30)
            && has(d, 0)
            && has(d, 12)
            && has(d, 16)
            && has(d, 26)
    );
    let [_, b, c, _] = intel(7, 0);
    assert!(has(b, 0) && has(b, 5) && has(b, 10) && has(c, 22));
    let [_, _, c, d] = amd(0x8000_0001, 0);
    assert!(has(c, 6) && has(c, 22) && has(d, 11) && has(d, 20) && has(d, 27) && has(d, 29));
    assert_eq!(intel(0x8000_0007, 0), [0, 0, 0, 1 << 8]);
}

#[test]
fn what_concerns_predictions_is_shown_by_each_vendors_own_leaf() {
    let guest = GuestIdentity {
        arch_capabilities: Some(0x2b),
        ..GUEST
    };
    let intel = table(CpuVendor::Intel, &guest);
    let [last, _, _, d] = intel.get(7, 0, &VCPU);
    assert!(has(d, 26) && has(d, 27) && has(d, 29) && has(d, 31) && !has(d, 28));
    assert_eq!(last, 2);
    assert_eq!(intel.get(7, 2, &VCPU), [0, 0, 0, 0b11_0111]);
    assert_eq!(intel.get(0x8000_0008, 0, &VCPU)[1], 1 << 9);
    let features = intel.features();
    assert_eq!(features.spec_ctrl, 0b100_1111_1111);
    assert!(features.ibpb);
    assert_eq!(features.arch_capabilities, Some(0x2b));

    let amd = table(CpuVendor::Amd, &guest);
    assert_eq!(amd.get(7, 0, &VCPU)[3] >> 24 & !0b1, 0, "Intel's bits");
    assert_eq!(amd.get(7, 2, &VCPU), [0; 4]);
    let [_, b, _, _] = amd.get(0x8000_0008, 0, &VCPU);
    assert!(has(b, 12) && has(b, 14) && has(b, 15) && has(b, 24));
    assert!(!has(b, 25), "VIRT_SPEC_CTRL");
    let [a, _, c, _] = amd.get(0x8000_0021, 0, &VCPU);
    assert!(!has(a, 8), "automatic IBRS is a bit of EFER");
    assert!(!has(a, 27), "SBPB is a bit of PRED_CMD");
    assert_eq!(c, 0b110);
    let features = amd.features();
    assert_eq!(features.spec_ctrl, 0b1000_0111);
    assert!(features.ibpb);
    assert_eq!(features.arch_capabilities, None);
}

#[test]
fn the_apic_is_shown_when_there_is_one() {
    let guest = GuestIdentity {
        local_apic: true,
        ..GUEST
    };
    let table = table(CpuVendor::Amd, &guest);
    let [_, _, c, d] = table.get(1, 0, &VCPU);
    assert!(has(c, 21) && has(c, 24) && has(d, 9));
    assert!(has(table.get(0x8000_0001, 0, &VCPU)[3], 9));
    assert_eq!(table.get(6, 0, &VCPU), [4, 0, 0, 0]);
}

#[test]
fn features_follow_what_the_host_allows() {
    let guest = GuestIdentity {
        invpcid: false,
        rdtscp: false,
        xcr0_supported: 3,
        ..GUEST
    };
    let table = table(CpuVendor::Intel, &guest);
    let [_, b, c, _] = table.get(7, 0, &VCPU);
    assert!(!has(b, 10) && !has(c, 22) && !has(b, 5) && !has(b, 16));
    assert!(!has(table.get(0x8000_0001, 0, &VCPU)[3], 27));
    let [_, _, c, _] = table.get(1, 0, &VCPU);
    assert!(!has(c, 28) && !has(c, 12) && !has(c, 29) && has(c, 26));
}

#[test]
fn osxsave_and_ospke_mirror_cr4() {
    let guest = GuestIdentity {
        xcr0_supported: 0x2ff,
        ..GUEST
    };
    let table = table(CpuVendor::Intel, &guest);
    let on = VcpuView {
        cr4: cr4::OSXSAVE | cr4::PKE,
        ..VCPU
    };
    assert!(!has(table.get(1, 0, &VCPU)[2], 27) && has(table.get(1, 0, &on)[2], 27));
    assert!(!has(table.get(7, 0, &VCPU)[2], 4) && has(table.get(7, 0, &on)[2], 4));
}

#[test]
fn topology_is_one_package_with_a_core_a_vcpu() {
    let [_, b, _, d] = intel(1, 0);
    assert_eq!(
        (b >> 24, b >> 16 & 0xff),
        (2, 4),
        "the count is a power of two"
    );
    assert!(has(d, 28));
    for leaf in [0xb, 0x1f] {
        assert_eq!(intel(leaf, 0), [0, 1, 0x100, 2]);
        assert_eq!(intel(leaf, 1), [2, 3, 0x201, 2]);
        assert_eq!(intel(leaf, 2), [0, 0, 2, 2]);
    }
    assert_eq!(amd(0x8000_0008, 0)[2], 2 | 2 << 12);
    assert_eq!(amd(0x8000_001e, 0), [2, 2, 0, 0]);
    let alone = table(CpuVendor::Intel, &GuestIdentity { vcpus: 1, ..GUEST });
    assert!(!has(alone.get(1, 0, &VCPU)[3], 28));
    assert_eq!(alone.get(1, 0, &VCPU)[1] >> 16 & 0xff, 1);
}

#[test]
fn the_last_cache_is_shared_and_the_others_are_not() {
    for caches in [
        [intel(4, 0), intel(4, 2), intel(4, 3)],
        [
            amd(0x8000_001d, 0),
            amd(0x8000_001d, 2),
            amd(0x8000_001d, 3),
        ],
    ] {
        assert_eq!(caches.map(|c| c[0] >> 14 & 0xfff), [0, 0, 3]);
    }
    assert_eq!(intel(4, 0)[0] >> 26, 3, "four identifiers of cores");
    assert_eq!(intel(4, 4), [0; 4]);
}

#[test]
fn the_size_of_the_xsave_area_follows_xcr0() {
    let guest = GuestIdentity {
        xcr0_supported: 0x2ff,
        ..GUEST
    };
    let table = table(CpuVendor::Intel, &guest);
    let size = |subleaf, xcr0| table.get(0xd, subleaf, &VcpuView { xcr0, ..VCPU });
    assert_eq!(
        size(0, 1),
        [0x2e7, 576, 2696, 0],
        "MPX and AMX are not shown"
    );
    assert_eq!(size(0, 7)[1], 832);
    assert_eq!(size(0, 0x207)[1], 2696, "at its fixed offset");
    assert_eq!(size(1, 0x207), [7, 840, 0, 0], "compact; no XSAVES");
    assert_eq!(
        size(1, 0xe7)[1],
        1408 + 1024,
        "832 + 40 + 512, aligned to 64 for the last"
    );
    assert_eq!(size(2, 1), [256, 576, 0, 0]);
    assert_eq!(size(3, 1), [0; 4]);
    assert_eq!(size(17, 1), [0; 4]);
}

#[test]
fn a_part_of_avx_512_is_none() {
    for (supported, shown) in [(0x67, 7), (0xe3, 3), (0xe7, 0xe7), (5, 0)] {
        let guest = GuestIdentity {
            xcr0_supported: supported,
            ..GUEST
        };
        let table = table(CpuVendor::Intel, &guest);
        assert_eq!(table.features().xcr0, shown, "{supported:#x}");
        assert_eq!(
            has(table.get(7, 0, &VCPU)[1], 16),
            shown == 0xe7,
            "AVX512F with {supported:#x}"
        );
    }
}

#[test]
fn without_xsave_there_is_none_of_it() {
    let guest = GuestIdentity {
        xcr0_supported: 0,
        ..GUEST
    };
    let table = table(CpuVendor::Amd, &guest);
    assert!(!has(table.get(1, 0, &VCPU)[2], 26));
    assert_eq!(table.get(0xd, 0, &VCPU), [0; 4]);
    assert_eq!(table.features().xcr0, 0);
    assert_eq!(table.features().cr4 & cr4::OSXSAVE, 0);
}

#[test]
fn a_leaf_out_of_range_is_the_highest_on_intel_and_zero_on_amd() {
    assert_eq!(intel(0x20, 1), intel(0x1f, 1));
    assert_eq!(intel(0x8000_0009, 1), intel(0x1f, 1));
    assert_eq!(intel(0x4000_0200, 0), intel(0x1f, 0));
    assert_eq!(amd(0xe, 0), [0; 4]);
    assert_eq!(amd(0x8000_0022, 0), [0; 4]);
    assert_eq!(amd(u32::MAX, 0), [0; 4]);
}

#[test]
fn plinth_is_recognised() {
    let [a, b, c, d] = amd(0x4000_0000, 0);
    assert_eq!(a, plinth_abi::cpuid::LEAF_LAST);
    assert_eq!([b, c, d], plinth_abi::cpuid::SIGNATURE);
    assert_eq!(amd(0x4000_0001, 0), [plinth_abi::ABI_VERSION, 0, 0, 0]);
    assert_eq!(amd(0x4000_0010, 0)[0], 2_500_000);
    assert_eq!(amd(0x4000_0002, 0), [0; 4]);
}

#[test]
fn what_kvm_has_is_offered_with_local_apics_only() {
    assert_eq!(amd(0x4000_0100, 0), [0; 4]);
    let guest = GuestIdentity {
        local_apic: true,
        ..GUEST
    };
    let [a, b, c, d] = table(CpuVendor::Amd, &guest).get(0x4000_0100, 0, &VCPU);
    let name: Vec<u8> = [b, c, d].into_iter().flat_map(u32::to_le_bytes).collect();
    assert_eq!((a, &name[..]), (0x4000_0101, &b"KVMKVMKVM\0\0\0"[..]));
    let [features, ..] = table(CpuVendor::Amd, &guest).get(0x4000_0101, 0, &VCPU);
    assert_eq!(features, 0x0100_806a);
}

#[test]
fn the_frequency_leaf_gives_the_tsc_exactly() {
    for apic_khz in [0, 1_000_000, 25_000, u32::MAX] {
        let guest = GuestIdentity { apic_khz, ..GUEST };
        let [a, b, c, _] = table(CpuVendor::Intel, &guest).get(0x15, 0, &VCPU);
        assert_eq!(
            u64::from(c) * u64::from(b) / u64::from(a),
            2_500_000_000,
            "{apic_khz}"
        );
    }
    assert_eq!(intel(0x16, 0), [2500, 2500, 100, 0]);
}

#[test]
fn widths_of_addresses_are_the_guests() {
    assert_eq!(
        intel(0x8000_0008, 0)[0],
        39 | 48 << 8,
        "no 57-bit linear addresses"
    );
    assert_eq!(intel(0x8000_0008, 0)[2], 0);
}

#[test]
fn control_register_bits_follow_the_features_shown() {
    let table = table(CpuVendor::Intel, &GUEST);
    let features = table.features();
    assert_eq!(
        features.cr4 & (cr4::VMXE | cr4::SMXE | cr4::LA57 | cr4::CET | cr4::PKE),
        0
    );
    assert_ne!(features.cr4 & cr4::PCIDE, 0);
    assert_eq!(
        features.efer,
        efer::SCE | efer::LME | efer::NXE,
        "FFXSR is AMD's"
    );
    let none = CpuidTable::new(&|_, _| [0; 4], &GUEST);
    assert_eq!((none.features().cr4, none.features().efer), (cr4::PCE, 0));
}

proptest! {
    /// The table and the function are the same, on any host.
    #[test]
    fn the_table_is_the_function(
        seed in any::<u32>(),
        amd in any::<bool>(),
        vcpus in 1u32..300,
        xcr0 in any::<u64>(),
        cr4 in any::<u64>(),
        local_apic in any::<bool>(),
        apic_disabled in any::<bool>(),
    ) {
        let vendor = if amd { CpuVendor::Amd } else { CpuVendor::Intel };
        let noisy = |leaf: u32, subleaf: u32| {
            let real = host(vendor, leaf, subleaf);
            if matches!(leaf, 0 | 4 | 0xd | 0x8000_0000 | 0x8000_001d) {
                return real;
            }
            real.map(|word| word & seed.rotate_left(leaf ^ subleaf).wrapping_mul(0x9e37_79b9))
        };
        let guest = GuestIdentity { vcpus, local_apic, xcr0_supported: xcr0, ..GUEST };
        let vcpu = VcpuView { apic_id: seed % vcpus, cr4, xcr0, apic_disabled };
        let table = CpuidTable::new(&noisy, &guest);
        let ranges = [0..0x22u32, 0x4000_0000..0x4000_0012, 0x8000_0000..0x8000_0024, 0xc000_0000..0xc000_0001];
        for leaf in ranges.into_iter().flatten() {
            for subleaf in [0, 1, 2, 3, 4, 5, 6, 7, 9, 62, 63, 64, u32::MAX] {
                let function = cpuid(leaf, subleaf, &noisy, &guest, &vcpu);
                prop_assert_eq!(table.get(leaf, subleaf, &vcpu), function, "{:#x}.{:#x}", leaf, subleaf);
                if let Some(plain) = table.plain(leaf) {
                    prop_assert_eq!(plain, function, "plain {:#x}.{:#x}", leaf, subleaf);
                }
            }
        }
    }

    /// Nothing is shown that the host lacks, but for what Plinth itself provides.
    #[test]
    fn nothing_is_shown_that_the_host_lacks(mask in any::<u32>()) {
        let poor = |leaf: u32, subleaf: u32| {
            let real = host(CpuVendor::Intel, leaf, subleaf);
            if matches!(leaf, 0 | 4 | 0xd | 0x8000_0000) { real } else { real.map(|word| word & mask) }
        };
        let shown = |leaf| cpuid(leaf, 0, &poor, &GUEST, &VCPU);
        prop_assert_eq!(shown(1)[2] & !mask & !(1 << 31), 0);
        prop_assert_eq!(shown(1)[3] & !mask & !(1 << 28), 0);
        for register in 1..4 {
            prop_assert_eq!(shown(7)[register] & !mask, 0);
        }
        prop_assert_eq!(shown(0x8000_0001)[3] & !mask, 0);
    }
}

use super::*;

/// EBX, ECX and EDX of leaf 0.
const GENUINE_INTEL: [u32; 3] = [0x756e_6547, 0x6c65_746e, 0x4965_6e69];
const AUTHENTIC_AMD: [u32; 3] = [0x6874_7541, 0x444d_4163, 0x6974_6e65];

/// What a CPU says of itself. Leaves that are not named are zero.
struct Cpu {
    name: [u32; 3],
    signature: u32,
    l7: Registers,
    l7_2_edx: u32,
    x8_ebx: u32,
    x21: Registers,
    capabilities: Option<u64>,
}

impl Cpu {
    fn facts(&self) -> Facts {
        let [b, c, d] = self.name;
        let cpuid = |leaf: u32, subleaf: u32| match (leaf, subleaf) {
            (0, _) => [0x1f, b, c, d],
            (1, _) => [self.signature, 0, 0, 0],
            (7, 0) => self.l7,
            (7, 2) => [0, 0, 0, self.l7_2_edx],
            (0x8000_0000, _) => [0x8000_0021, 0, 0, 0],
            (0x8000_0008, _) => [0, self.x8_ebx, 0, 0],
            (0x8000_0021, _) => self.x21,
            _ => [0; 4],
        };
        let circumstances = Circumstances {
            arch_capabilities: self.capabilities,
            ..Circumstances::default()
        };
        Facts::new(&cpuid, &circumstances)
    }

    fn plan(&self) -> Plan {
        self.facts().plan(Choice::Auto)
    }
}

const NONE: Cpu = Cpu {
    name: GENUINE_INTEL,
    signature: 0,
    l7: [0; 4],
    l7_2_edx: 0,
    x8_ebx: 0,
    x21: [0; 4],
    capabilities: None,
};

const MD_CLEAR: u32 = 1 << 10;
/// IBRS_IBPB, STIBP, L1D_FLUSH, SSBD.
const INTEL_2018: u32 = 1 << 26 | 1 << 27 | 1 << 28 | 1 << 31;
const TELLS: u32 = 1 << 29;
const RTM: u32 = 1 << 11;

/// 06_5EH, with the microcode of 2019.
const SKYLAKE: Cpu = Cpu {
    signature: 0x506e3,
    l7: [0, RTM, 0, INTEL_2018 | MD_CLEAR],
    ..NONE
};
/// The same before 2018.
const OLD_SKYLAKE: Cpu = Cpu {
    l7: [0, RTM, 0, 0],
    ..SKYLAKE
};
/// 06_55H stepping 7: RDCL_NO, IBRS_ALL, SKIP_L1DFL_VMENTRY, MDS_NO, TSX_CTRL.
const CASCADE_LAKE: Cpu = Cpu {
    signature: 0x50657,
    l7: [0, RTM, 0, INTEL_2018 | MD_CLEAR | TELLS],
    capabilities: Some(0xab),
    ..NONE
};
/// 06_97H: besides these TAA_NO, the three of MMIO, PBRSB_NO; RFDS_CLEAR, and BHI_CTRL.
const ALDER_LAKE: Cpu = Cpu {
    signature: 0x90672,
    l7: [2, 0, 0, INTEL_2018 | MD_CLEAR | TELLS],
    l7_2_edx: 0x17,
    capabilities: Some(0x1180_fd6b),
    ..NONE
};
/// 06_5CH.
const GOLDMONT: Cpu = Cpu {
    signature: 0x506c9,
    l7: [0, 0, 0, INTEL_2018],
    ..NONE
};
/// 06_37H.
const SILVERMONT: Cpu = Cpu {
    signature: 0x30678,
    l7: [0, 0, 0, INTEL_2018 | MD_CLEAR],
    ..NONE
};
/// Family 17H, model 31H: IBPB, IBRS, STIBP.
const ZEN_2: Cpu = Cpu {
    name: AUTHENTIC_AMD,
    signature: 0x0083_0f10,
    x8_ebx: 1 << 12 | 1 << 14 | 1 << 15 | 1 << 17 | 1 << 24,
    ..NONE
};
/// Family 19H, model 11H: automatic IBRS, too; and with the microcode of 2025 VERW clears.
const ZEN_4: Cpu = Cpu {
    name: AUTHENTIC_AMD,
    signature: 0x00a1_0f11,
    x8_ebx: 0x791e_f257,
    x21: [0x0006_2fef, 0, 0, 0],
    ..NONE
};

const COMMON: Mitigations = Mitigations::IBPB.union(Mitigations::IBRS);

fn sharing(cpu: &Cpu) -> Facts {
    Facts {
        shares_cores: true,
        ..cpu.facts()
    }
}

#[test]
fn family_and_model_are_put_together() {
    let facts = ZEN_2.facts();
    assert_eq!((facts.family, facts.model), (0x17, 0x31));
    let facts = ALDER_LAKE.facts();
    assert_eq!((facts.family, facts.model), (6, 0x97));
    assert_eq!(facts.vendor, CpuVendor::Intel);
    assert_eq!(ZEN_4.facts().vendor, CpuVendor::Amd);
}

#[test]
fn a_skylake_needs_all_of_it() {
    let plan = SKYLAKE.plan();
    assert_eq!(
        plan.taken,
        COMMON | Mitigations::RSB | Mitigations::VERW | Mitigations::L1D
    );
    assert_eq!(plan.lacking, Mitigations::empty());
    assert_eq!(plan.rsb, Rsb::Filled);
    // Its IBRS is written after each exit, and is the guest's own affair in the guest.
    assert_eq!((plan.kernel_spec_ctrl, plan.guest_spec_ctrl), (1, 0));
}

#[test]
fn each_no_is_believed_by_itself() {
    const L1D_AND_VERW: Mitigations = Mitigations::L1D.union(Mitigations::VERW);
    let needs = |says: u64, ebx: u32| {
        let cpu = Cpu {
            l7: [0, ebx, 0, SKYLAKE.l7[3] | TELLS],
            capabilities: Some(says),
            ..SKYLAKE
        };
        cpu.plan().taken & L1D_AND_VERW
    };
    let (rdcl_no, skip, mds_no, taa_no) = (1, 1 << 3, 1 << 5, 1 << 8);
    assert_eq!(needs(0, 0), L1D_AND_VERW);
    assert_eq!(needs(rdcl_no, 0), Mitigations::VERW);
    assert_eq!(needs(skip, 0), Mitigations::VERW);
    assert_eq!(needs(mds_no, 0), Mitigations::L1D);
    assert_eq!(needs(mds_no, RTM), L1D_AND_VERW);
    assert_eq!(needs(mds_no | taa_no, RTM), Mitigations::L1D);
    assert_eq!(needs(taa_no, 0), L1D_AND_VERW);
}

#[test]
fn without_its_microcode_it_lacks_what_that_brings() {
    let plan = OLD_SKYLAKE.plan();
    assert_eq!(plan.taken, Mitigations::RSB);
    assert_eq!(plan.lacking, COMMON | Mitigations::VERW | Mitigations::L1D);
    assert_eq!((plan.kernel_spec_ctrl, plan.guest_spec_ctrl), (0, 0));
}

#[test]
fn a_cascade_lake_needs_verw_for_tsx_alone() {
    let plan = CASCADE_LAKE.plan();
    assert_eq!(plan.taken, COMMON | Mitigations::RSB | Mitigations::VERW);
    assert_eq!(plan.rsb, Rsb::OneCall);
    assert_eq!(
        (plan.kernel_spec_ctrl, plan.guest_spec_ctrl),
        (1, 1),
        "IBRS stays set"
    );
    let without_tsx = Cpu {
        l7: [0, 0, 0, CASCADE_LAKE.l7[3]],
        ..CASCADE_LAKE
    };
    assert_eq!(without_tsx.plan().taken, COMMON | Mitigations::RSB);
    // Stale data of MMIO: the microcode that clears it says so.
    let mmio = Cpu {
        capabilities: Some(0xab | 1 << 17),
        ..without_tsx
    };
    assert!(mmio.plan().taken.contains(Mitigations::VERW));
    for (needs, no) in [
        (true, 0b011 << 13),
        (true, 0b110 << 13),
        (false, 0b111 << 13),
    ] {
        let cpu = Cpu {
            capabilities: Some(0xab | 1 << 17 | no),
            ..mmio
        };
        assert_eq!(cpu.plan().taken.contains(Mitigations::VERW), needs);
    }
}

#[test]
fn an_alder_lake_needs_verw_for_its_register_file() {
    let plan = ALDER_LAKE.plan();
    assert_eq!(plan.taken, COMMON | Mitigations::VERW);
    assert_eq!(plan.rsb, Rsb::Untouched);
    let ibrs_and_history = 1 | 1 << 10;
    assert_eq!(plan.kernel_spec_ctrl, ibrs_and_history);
    assert_eq!(plan.guest_spec_ctrl, ibrs_and_history);
    let later = Cpu {
        capabilities: Some(0x1180_fd6b | 1 << 27 | 1 << 20),
        ..ALDER_LAKE
    };
    assert_eq!(later.plan().taken, COMMON);
    assert_eq!(later.plan().kernel_spec_ctrl, 1, "BHI_NO");
}

#[test]
fn the_list_of_unaffected_processors_is_heeded() {
    assert_eq!(GOLDMONT.plan().taken, COMMON | Mitigations::RSB);
    assert_eq!(GOLDMONT.plan().lacking, Mitigations::empty());
    assert_eq!(
        SILVERMONT.plan().taken,
        COMMON | Mitigations::RSB | Mitigations::VERW,
        "store buffers, but no L1 terminal fault"
    );
    let unknown = Cpu {
        signature: 0xf06f0,
        ..SKYLAKE
    };
    assert_eq!(unknown.plan().taken, SKYLAKE.plan().taken, "for the worse");
}

#[test]
fn amds_need_neither_l1d_flush_nor_the_verw_of_intels() {
    let plan = ZEN_2.plan();
    assert_eq!(plan.taken, COMMON | Mitigations::RSB);
    assert_eq!(plan.rsb, Rsb::Filled);
    assert_eq!((plan.kernel_spec_ctrl, plan.guest_spec_ctrl), (1, 0));
    let always_on = Cpu {
        x8_ebx: ZEN_2.x8_ebx | 1 << 16,
        ..ZEN_2
    };
    assert_eq!(always_on.plan().guest_spec_ctrl, 1);
    assert_eq!(always_on.plan().rsb, Rsb::Filled);
}

#[test]
fn automatic_ibrs_is_a_bit_of_efer() {
    let plan = ZEN_4.plan();
    assert_eq!(plan.taken, COMMON | Mitigations::VERW);
    assert!(plan.automatic_ibrs);
    assert_eq!((plan.kernel_spec_ctrl, plan.guest_spec_ctrl), (0, 0));
    let unaffected = Cpu {
        x21: [ZEN_4.x21[0], 0, 0b110, 0],
        ..ZEN_4
    };
    assert_eq!(unaffected.plan().taken, COMMON, "TSA_SQ_NO and TSA_L1_NO");
    let without = ZEN_4.facts().plan(Choice::Just(Mitigations::RSB));
    assert!(!without.automatic_ibrs);
    assert_eq!(without.rsb, Rsb::Filled);
}

#[test]
fn threads_of_a_core_are_kept_apart_where_that_can_be() {
    let plan = sharing(&SKYLAKE).plan(Choice::Auto);
    assert!(plan.taken.contains(Mitigations::STIBP));
    assert_eq!((plan.kernel_spec_ctrl, plan.guest_spec_ctrl), (3, 2));
    assert!(plan.threads_see_each_other, "L1TF and MDS cross threads");

    let plan = sharing(&CASCADE_LAKE).plan(Choice::Auto);
    assert!(!plan.taken.contains(Mitigations::STIBP), "IBRS does it");

    let plan = sharing(&ZEN_2).plan(Choice::Auto);
    assert!(plan.taken.contains(Mitigations::STIBP));
    assert!(!plan.threads_see_each_other);
    let zen_4 = sharing(&ZEN_4);
    assert!(
        !zen_4.plan(Choice::Auto).threads_see_each_other,
        "TSA crosses threads only where one halts"
    );
    let off = Choice::Just(Mitigations::empty());
    assert!(zen_4.plan(off).threads_see_each_other);
    let zen_1 = Cpu {
        x8_ebx: 1 << 12,
        ..ZEN_2
    };
    let plan = sharing(&zen_1).plan(Choice::Auto);
    assert_eq!(plan.lacking, Mitigations::IBRS | Mitigations::STIBP);
    assert!(plan.threads_see_each_other);
    assert!(!zen_1.plan().threads_see_each_other);
}

#[test]
fn an_emulator_needs_nothing_and_can_be_made_to_do_it() {
    let facts = Facts {
        is_emulated: true,
        ..OLD_SKYLAKE.facts()
    };
    let plan = facts.plan(Choice::Auto);
    assert_eq!((plan.taken, plan.lacking), Default::default());
    assert_eq!(
        plan.to_string(),
        "no mitigations, an emulator does not speculate"
    );
    let plan = facts.plan(Choice::Just(Mitigations::all()));
    assert_eq!(plan.taken, Mitigations::RSB | Mitigations::VERW);
}

#[test]
fn off_is_nothing_at_all() {
    for cpu in [SKYLAKE, CASCADE_LAKE, ALDER_LAKE, ZEN_2, ZEN_4] {
        let plan = sharing(&cpu).plan(Choice::Just(Mitigations::empty()));
        assert_eq!((plan.taken, plan.lacking), Default::default());
        assert_eq!((plan.kernel_spec_ctrl, plan.guest_spec_ctrl), (0, 0));
        assert_eq!(plan.rsb, Rsb::Untouched);
        assert!(!plan.automatic_ibrs);
        assert_eq!(plan.to_string(), "mitigations are off");
    }
}

#[test]
fn the_choice_is_told_in_words() {
    assert_eq!(
        CASCADE_LAKE.plan().to_string(),
        "IBPB between domains, IBRS in the kernel, RSB filling after exits, VERW before entries; \
         not needed: STIBP in guests, L1D flush before entries"
    );
    let some = Choice::Just(Mitigations::VERW);
    assert_eq!(
        ZEN_2.facts().plan(some).to_string(),
        "VERW before entries; not asked for: IBPB between domains, IBRS in the kernel, STIBP in guests, \
         RSB filling after exits, L1D flush before entries"
    );
}

#[test]
fn choices_are_words() {
    assert_eq!(Choice::parse("auto"), Some(Choice::Auto));
    assert_eq!(
        Choice::parse("off"),
        Some(Choice::Just(Mitigations::empty()))
    );
    assert_eq!(Choice::parse("all"), Some(Choice::Just(Mitigations::all())));
    assert_eq!(
        Choice::parse("rsb,l1d"),
        Some(Choice::Just(Mitigations::RSB | Mitigations::L1D))
    );
    for wrong in ["", "on", "rsb,", "rsb, verw", "auto,rsb"] {
        assert_eq!(Choice::parse(wrong), None, "{wrong}");
    }
}

#[test]
fn threads_are_told_by_the_low_bits_of_apic_identifiers() {
    let leaf_b = |level: Registers| {
        move |leaf: u32, _: u32| match leaf {
            0 => [0xb, GENUINE_INTEL[0], GENUINE_INTEL[1], GENUINE_INTEL[2]],
            0xb => level,
            _ => [0; 4],
        }
    };
    assert_eq!(thread_bits(&leaf_b([1, 2, 0x100, 0])), 1);
    assert_eq!(thread_bits(&leaf_b([0, 1, 0x100, 0])), 0);
    assert_eq!(thread_bits(&leaf_b([0; 4])), 0);
    let amd = |more_threads: u32| {
        move |leaf: u32, _: u32| match leaf {
            0 => [0xa, AUTHENTIC_AMD[0], AUTHENTIC_AMD[1], AUTHENTIC_AMD[2]],
            0x8000_0000 => [0x8000_001e, 0, 0, 0],
            0x8000_0001 => [0, 0, 1 << 22, 0],
            0x8000_001e => [0, more_threads << 8, 0, 0],
            _ => [0; 4],
        }
    };
    assert_eq!(thread_bits(&amd(1)), 1);
    assert_eq!(thread_bits(&amd(0)), 0);
}

#[test]
fn guests_are_told_only_what_is_theirs() {
    let told = ArchCapabilities::for_guests(u64::MAX);
    // TSX_CTRL, MCU_CONTROL, MISC_PACKAGE_CTLS, ENERGY_FILTERING, DOITM, FB_CLEAR_CTRL, XAPIC_DISABLE, OVERCLOCKING, GDS_CTRL.
    for bit in [7, 9, 10, 11, 12, 18, 21, 23, 25] {
        assert_eq!(told & 1 << bit, 0, "bit {bit}");
    }
    assert_eq!(told & 0x3f, 0x3f);
    assert_eq!(ArchCapabilities::for_guests(0), 0);
}

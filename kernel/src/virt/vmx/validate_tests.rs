//! Each rule of SDM 27.3.1 broken once, from a state that keeps them all.

use super::*;

const LIMITS: Limits = Limits {
    cr0_allowed: 0xffff_ffff,
    cr4_allowed: 0x0077_27ff,
    efer_allowed: EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE,
    physical_bits: 40,
};

fn long() -> VcpuState {
    VcpuState::long_mode(0x20_0000, 0x30_0000, 0x1000)
}

/// 32-bit protected mode without paging.
fn protected() -> VcpuState {
    VcpuState {
        cr0: 0x6000_0031,
        cr4: 0,
        efer: 0,
        cs: Segment {
            attributes: Segment::CODE32,
            ..long().cs
        },
        ..long()
    }
}

fn virtual_8086() -> VcpuState {
    let segment = Segment {
        selector: 0x1234,
        attributes: 0xf3,
        limit: 0xffff,
        base: 0x12340,
    };
    VcpuState {
        rflags: 2 | RFLAGS_VM,
        rip: 0x100,
        cs: segment,
        ss: segment,
        ds: segment,
        es: segment,
        fs: segment,
        gs: segment,
        ..protected()
    }
}

/// The state is refused, and the words name the rule.
#[track_caller]
fn broken(state: VcpuState, words: &str) {
    match check(&state, &LIMITS) {
        Ok(()) => panic!("taken, though: {words}"),
        Err(BadState(rule)) => assert!(rule.contains(words), "{rule}"),
    }
}

#[test]
fn the_usual_states_are_taken() {
    for state in [VcpuState::RESET, long(), protected(), virtual_8086()] {
        assert_eq!(check(&state, &LIMITS), Ok(()));
    }
}

#[test]
fn paging_needs_protection() {
    broken(
        VcpuState {
            cr0: 0x8000_0010,
            efer: 0,
            cr4: 0,
            ..protected()
        },
        "CR0.PG without CR0.PE",
    );
}

#[test]
fn not_write_through_needs_cache_disable() {
    broken(
        VcpuState {
            cr0: 0x2000_0031,
            ..protected()
        },
        "CR0.NW",
    );
}

#[test]
fn cr0_and_cr4_have_bits_that_must_be_zero() {
    broken(
        VcpuState {
            cr0: long().cr0 | 1 << 40,
            ..long()
        },
        "CR0 has a bit",
    );
    broken(
        VcpuState {
            cr4: long().cr4 | 1 << 63,
            ..long()
        },
        "CR4 has a bit",
    );
}

#[test]
fn vmxe_is_hidden() {
    broken(
        VcpuState {
            cr4: long().cr4 | CR4_VMXE,
            ..long()
        },
        "VMXE",
    );
}

#[test]
fn control_flow_enforcement_needs_write_protection() {
    let limits = Limits {
        cr4_allowed: u64::MAX,
        ..LIMITS
    };
    let state = VcpuState {
        cr0: long().cr0 & !CR0_WP,
        cr4: long().cr4 | CR4_CET,
        ..long()
    };
    assert!(check(&state, &limits).unwrap_err().0.contains("CET"));
}

#[test]
fn cr3_fits_the_physical_width() {
    broken(
        VcpuState {
            cr3: 1 << 40,
            ..long()
        },
        "CR3",
    );
    assert_eq!(
        check(
            &VcpuState {
                cr3: (1 << 40) - 0x1000,
                ..long()
            },
            &LIMITS
        ),
        Ok(())
    );
}

#[test]
fn long_mode_needs_pae_and_paging() {
    broken(
        VcpuState {
            cr4: 0x600,
            ..long()
        },
        "LMA without CR4.PAE",
    );
    broken(
        VcpuState {
            cr0: 0x31,
            ..long()
        },
        "LMA without CR0.PG",
    );
}

#[test]
fn lma_follows_lme_under_paging() {
    broken(
        VcpuState {
            efer: EFER_LME,
            ..long()
        },
        "LMA differs",
    );
    broken(
        VcpuState {
            efer: EFER_LMA,
            ..long()
        },
        "LMA differs",
    );
}

#[test]
fn efer_has_reserved_bits() {
    broken(
        VcpuState {
            efer: long().efer | 1 << 12,
            ..long()
        },
        "EFER has a bit",
    );
}

#[test]
fn pcid_needs_long_mode() {
    broken(
        VcpuState {
            cr4: CR4_PCIDE,
            ..protected()
        },
        "PCIDE",
    );
}

#[test]
fn debug_registers_are_32_bits_wide() {
    broken(
        VcpuState {
            dr7: 1 << 32,
            ..long()
        },
        "DR7",
    );
    broken(
        VcpuState {
            dr6: 1 << 32,
            ..long()
        },
        "DR6",
    );
}

#[test]
fn msrs_hold_what_wrmsr_takes() {
    const BAD: u64 = 0x8000_0000_0000;
    broken(
        VcpuState {
            sysenter_esp: BAD,
            ..long()
        },
        "SYSENTER_ESP",
    );
    broken(
        VcpuState {
            sysenter_eip: BAD,
            ..long()
        },
        "SYSENTER_EIP",
    );
    broken(
        VcpuState {
            lstar: BAD,
            ..long()
        },
        "LSTAR",
    );
    broken(
        VcpuState {
            cstar: BAD,
            ..long()
        },
        "CSTAR",
    );
    broken(
        VcpuState {
            kernel_gs_base: BAD,
            ..long()
        },
        "KERNEL_GS_BASE",
    );
    broken(
        VcpuState {
            sfmask: 1 << 32,
            ..long()
        },
        "FMASK",
    );
    broken(
        VcpuState {
            tsc_aux: 1 << 32,
            ..long()
        },
        "TSC_AUX",
    );
    broken(
        VcpuState {
            pat: 0x0007_0406_0007_0402,
            ..long()
        },
        "PAT",
    );
}

#[test]
fn bases_are_canonical_or_32_bits_wide() {
    let fs = Segment {
        base: 0x8000_0000_0000,
        ..long().fs
    };
    broken(VcpuState { fs, ..long() }, "TR, FS or GS");
    broken(
        VcpuState {
            ldtr: Segment {
                base: 1 << 47,
                ..long().ldtr
            },
            ..long()
        },
        "LDTR",
    );
    broken(
        VcpuState {
            cs: Segment {
                base: 1 << 32,
                ..long().cs
            },
            ..long()
        },
        "base of CS",
    );
    broken(
        VcpuState {
            ds: Segment {
                base: 1 << 32,
                ..long().ds
            },
            ..long()
        },
        "SS, DS or ES",
    );
    let unusable = Segment {
        base: 1 << 32,
        attributes: 0,
        ..long().ds
    };
    assert_eq!(
        check(
            &VcpuState {
                ds: unusable,
                ..long()
            },
            &LIMITS
        ),
        Ok(())
    );
}

#[test]
fn a_five_level_guest_has_57_bits() {
    let limits = Limits {
        cr4_allowed: u64::MAX,
        ..LIMITS
    };
    let state = VcpuState {
        cr4: long().cr4 | CR4_LA57,
        rip: 0x8000_0000_0000,
        ..long()
    };
    assert_eq!(check(&state, &limits), Ok(()));
}

#[test]
fn virtual_8086_segments_are_what_the_mode_says() {
    let state = virtual_8086();
    broken(
        VcpuState {
            ds: Segment {
                base: 0,
                ..state.ds
            },
            ..state
        },
        "selector times 16",
    );
    broken(
        VcpuState {
            ds: Segment {
                limit: 0xfffff,
                ..state.ds
            },
            ..state
        },
        "0xFFFF",
    );
    broken(
        VcpuState {
            ss: Segment {
                attributes: 0x93,
                ..state.ss
            },
            ..state
        },
        "0xF3",
    );
}

#[test]
fn virtual_8086_mode_is_a_protected_one() {
    broken(
        VcpuState {
            cr0: 0x6000_0030,
            ..virtual_8086()
        },
        "RFLAGS.VM",
    );
}

#[test]
fn code_segments_are_accessed_code() {
    for (attributes, words) in [
        (Segment::CODE64 & !1, "not an accessed code"),
        (Segment::CODE64 & !0x80, "not present"),
        (Segment::CODE64 & !0x10, "system segment"),
        (Segment::CODE64 | 0x60, "CS.DPL is not SS.DPL"),
        (Segment::CODE64 | 0x64, "conforming"),
        (Segment::CODE64 | 0x400, "both L and D"),
    ] {
        broken(
            VcpuState {
                cs: Segment {
                    attributes,
                    ..long().cs
                },
                ..long()
            },
            words,
        );
    }
}

#[test]
fn a_data_segment_in_cs_is_an_unrestricted_guests_right() {
    let cs = Segment {
        attributes: Segment::REAL_DATA,
        ..VcpuState::RESET.cs
    };
    assert_eq!(
        check(
            &VcpuState {
                cs,
                ..VcpuState::RESET
            },
            &LIMITS
        ),
        Ok(())
    );
    let cs = Segment {
        attributes: 0xf3,
        ..cs
    };
    broken(
        VcpuState {
            cs,
            ..VcpuState::RESET
        },
        "DPL other than 0",
    );
}

#[test]
fn stack_segments_are_writable() {
    broken(
        VcpuState {
            ss: Segment {
                attributes: 0xc91,
                ..long().ss
            },
            ..long()
        },
        "SS is usable",
    );
    let real = VcpuState::RESET;
    let ring3 = |s: Segment| Segment {
        attributes: s.attributes | 0x60,
        ..s
    };
    broken(
        VcpuState {
            ss: ring3(real.ss),
            cs: ring3(real.cs),
            ..real
        },
        "SS.DPL",
    );
}

#[test]
fn data_segments_are_accessed_and_readable() {
    for (attributes, words) in [
        (0xc92, "not accessed"),
        (0xc83, "system segment"),
        (0xc99, "not readable"),
    ] {
        broken(
            VcpuState {
                gs: Segment {
                    attributes,
                    ..long().gs
                },
                ..long()
            },
            words,
        );
    }
}

#[test]
fn a_limit_that_no_granularity_fits_is_refused() {
    broken(
        VcpuState {
            ds: Segment {
                limit: 0x10_0000,
                ..long().ds
            },
            ..long()
        },
        "limit is above 1 MiB",
    );
}

#[test]
fn the_task_register_holds_a_busy_tss() {
    broken(
        VcpuState {
            tr: Segment {
                attributes: 0x89,
                ..long().tr
            },
            ..long()
        },
        "busy TSS",
    );
    broken(
        VcpuState {
            tr: Segment {
                attributes: 0,
                ..long().tr
            },
            ..long()
        },
        "TR is not present",
    );
    broken(
        VcpuState {
            tr: Segment {
                selector: 4,
                ..long().tr
            },
            ..long()
        },
        "TR's selector",
    );
    let tss16 = Segment {
        attributes: 0x83,
        ..long().tr
    };
    broken(
        VcpuState {
            tr: tss16,
            ..long()
        },
        "busy TSS",
    );
    assert_eq!(
        check(
            &VcpuState {
                tr: tss16,
                ..protected()
            },
            &LIMITS
        ),
        Ok(())
    );
}

#[test]
fn a_usable_ldtr_holds_an_ldt() {
    broken(
        VcpuState {
            ldtr: Segment {
                attributes: 0x8b,
                ..long().ldtr
            },
            ..long()
        },
        "LDTR is usable",
    );
    broken(
        VcpuState {
            ldtr: Segment {
                selector: 4,
                ..long().ldtr
            },
            ..long()
        },
        "LDTR's selector",
    );
    assert_eq!(
        check(
            &VcpuState {
                ldtr: Segment {
                    attributes: 0,
                    ..long().ldtr
                },
                ..long()
            },
            &LIMITS
        ),
        Ok(())
    );
}

#[test]
fn descriptor_tables_lie_in_canonical_space() {
    broken(
        VcpuState {
            gdtr: Segment {
                base: 1 << 47,
                ..long().gdtr
            },
            ..long()
        },
        "base of GDTR or IDTR",
    );
    broken(
        VcpuState {
            idtr: Segment {
                limit: 0x1_0000,
                ..long().idtr
            },
            ..long()
        },
        "limit of GDTR or IDTR",
    );
}

#[test]
fn rip_fits_the_mode() {
    broken(
        VcpuState {
            rip: 1 << 47,
            ..long()
        },
        "RIP is not canonical",
    );
    broken(
        VcpuState {
            rip: 1 << 32,
            ..protected()
        },
        "RIP has a bit",
    );
}

#[test]
fn rflags_has_fixed_bits() {
    broken(
        VcpuState {
            rflags: 0,
            ..long()
        },
        "bit 1",
    );
    for bit in [3, 5, 15, 22, 63] {
        broken(
            VcpuState {
                rflags: 2 | 1 << bit,
                ..long()
            },
            "reserved",
        );
    }
    assert_eq!(
        check(
            &VcpuState {
                rflags: 0x003d_7fd7,
                ..long()
            },
            &LIMITS
        ),
        Ok(())
    );
}

#[test]
fn top_entries_of_pae_paging_have_reserved_bits() {
    assert_eq!(
        check_pdptes(&[0x1001, 0, 0x1fe, 0x9], 40),
        Ok(()),
        "a clear P bit frees the rest; PWT is allowed"
    );
    assert!(check_pdptes(&[0x1003, 0, 0, 0], 40).is_err());
    assert!(check_pdptes(&[0, 0, 0, 1 << 40 | 1], 40).is_err());
    assert!(is_pae_paging(CR0_PG | CR0_PE, CR4_PAE, 0));
    assert!(!is_pae_paging(
        CR0_PG | CR0_PE,
        CR4_PAE,
        EFER_LME | EFER_LMA
    ));
}

#[test]
fn a_shadow_goes_with_if_and_tf() {
    let sti = Interruptibility::BLOCKING_BY_STI;
    let bs = crate::virt::vmx::vmcs::PendingDebug::BS;
    assert!(check_interruptibility(Interruptibility::SHADOW, RFLAGS_IF, 0).is_err());
    assert!(check_interruptibility(sti, 0, 0).is_err());
    assert!(check_interruptibility(sti, RFLAGS_IF | RFLAGS_TF, 0).is_err());
    assert!(check_interruptibility(sti, RFLAGS_IF, bs).is_err());
    assert_eq!(
        check_interruptibility(sti, RFLAGS_IF | RFLAGS_TF, bs),
        Ok(())
    );
    assert_eq!(
        check_interruptibility(Interruptibility::BLOCKING_BY_NMI, RFLAGS_TF, 0),
        Ok(())
    );
}

#[test]
fn granularity_follows_the_limit() {
    let segment = |attributes, limit| Segment {
        selector: 8,
        attributes,
        limit,
        base: 0,
    };
    assert_eq!(
        rights(&segment(Segment::CODE64, u32::MAX)),
        AccessRights(0xa09b)
    );
    assert_eq!(
        rights(&segment(Segment::DATA, 0xffff)),
        AccessRights(0xc093),
        "either fits: as given"
    );
    assert_eq!(rights(&segment(Segment::DATA, 0x67)), AccessRights(0x4093));
    assert_eq!(
        rights(&segment(Segment::TSS_BUSY, 0x67)),
        AccessRights(0x8b)
    );
}

#[test]
fn unusable_and_not_present_are_the_same() {
    let null = Segment {
        selector: 0,
        attributes: 0x60,
        limit: 0,
        base: 0,
    };
    assert_eq!(rights(&null).0, 0x1_0060, "SS keeps its DPL: it is the CPL");
    assert_eq!(attributes(AccessRights(0x1_00f3)), 0x73);
}

#[test]
fn attributes_come_back_from_access_rights() {
    for attributes in [
        Segment::CODE64,
        Segment::CODE32,
        Segment::DATA,
        Segment::TSS_BUSY,
        Segment::REAL_DATA,
    ] {
        let limit = if attributes & 0x800 != 0 {
            u32::MAX
        } else {
            0xffff
        };
        let segment = Segment {
            selector: 0,
            attributes,
            limit,
            base: 0,
        };
        assert_eq!(super::attributes(rights(&segment)), attributes);
    }
}

#[test]
fn errors_are_told_in_words() {
    assert_eq!(
        instruction_error(InstructionError(7)),
        "VM entry with invalid control fields"
    );
    assert_eq!(
        instruction_error(InstructionError(12)),
        "VMREAD or VMWRITE from or to unsupported VMCS component"
    );
    assert!(instruction_error(InstructionError(99)).contains("does not name"));
    let failed = |reason: u32, qualification| {
        entry_failure(ExitReason(reason | 1 << 31), Qualification(qualification))
    };
    assert!(failed(33, 0).starts_with("invalid guest state"));
    assert!(failed(33, 4).contains("link pointer"));
    assert!(failed(34, 1).contains("MSRs"));
    assert!(failed(41, 0).contains("machine check"));
}

/// States that are taken.
pub fn good_states() -> [VcpuState; 3] {
    [long(), protected(), virtual_8086()]
}

/// Whatever the state: it is judged, and what is taken has no bit that the CPU does not allow.
pub fn judges(state: &VcpuState) {
    if check(state, &LIMITS).is_ok() {
        assert_eq!(state.cr0 & !LIMITS.cr0_allowed, 0);
        assert_eq!(state.cr4 & !LIMITS.cr4_allowed, 0);
        assert_eq!(state.efer & !LIMITS.efer_allowed, 0);
        assert!(state.cr0 & bits::CR0_PG == 0 || state.cr0 & bits::CR0_PE != 0);
    }
}

#[test]
fn no_single_bit_makes_a_state_that_must_not_be() {
    use zerocopy::IntoBytes;

    for good in good_states() {
        judges(&good);
        for bit in 0..8 * size_of::<VcpuState>() {
            let mut state = good;
            state.as_mut_bytes()[bit / 8] ^= 1 << (bit % 8);
            judges(&state);
        }
    }
}

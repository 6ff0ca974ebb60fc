//! CPUID: a consistent machine, and nothing of what guests do not have.

use plinth_rt::abi::{ABI_VERSION, cpuid as leaves};
use plinth_rt::cpu::{self, cpuid};
use plinth_rt::{Gprs, Outcome, check, check_eq, hypercall, snippet};

pub fn hypervisor_bit() -> Outcome {
    check!(cpuid(1, 0).ecx >> 31 == 1, "leaf 1 ECX bit 31 is clear");
    Ok(())
}

pub fn signature() -> Outcome {
    let leaf = cpuid(leaves::LEAF_SIGNATURE, 0);
    check_eq!(leaf.eax, leaves::LEAF_LAST, "highest leaf");
    check!(
        [leaf.ebx, leaf.ecx, leaf.edx] == leaves::SIGNATURE,
        "signature differs"
    );
    check_eq!(
        cpuid(leaves::LEAF_VERSION, 0).eax,
        ABI_VERSION,
        "ABI version"
    );
    Ok(())
}

pub fn frequency() -> Outcome {
    check!(
        cpuid(leaves::LEAF_FREQUENCY, 0).eax != 0,
        "TSC frequency is 0"
    );
    Ok(())
}

pub fn no_virtualisation() -> Outcome {
    check_eq!(cpuid(1, 0).ecx & (1 << 5 | 1 << 6), 0, "VMX, SMX");
    check_eq!(
        cpuid(0x8000_0001, 0).ecx & (1 << 2 | 1 << 12),
        0,
        "SVM, SKINIT"
    );
    if cpuid(0x8000_0000, 0).eax >= 0x8000_000a && cpu::is_amd() {
        let leaf = cpuid(0x8000_000a, 0);
        check_eq!(leaf.eax | leaf.ebx | leaf.ecx | leaf.edx, 0, "SVM leaf");
    }
    Ok(())
}

pub fn no_monitor() -> Outcome {
    check_eq!(cpuid(1, 0).ecx & 1 << 3, 0, "MONITOR");
    Ok(())
}

/// SDM vol. 2 CPUID: in 64-bit mode the upper halves of all four registers are cleared.
pub fn clears_upper_halves() -> Outcome {
    let ones = 0xffff_ffff_0000_0000;
    let out = snippet!("cpuid").run(Gprs {
        rax: ones | 1,
        rbx: ones,
        rcx: ones,
        rdx: ones,
        ..Gprs::ZERO
    })?;
    check_eq!(
        (out.rax | out.rbx | out.rcx | out.rdx) >> 32,
        0,
        "upper halves"
    );
    Ok(())
}

pub fn keeps_other_registers() -> Outcome {
    let mut registers = crate::pattern();
    registers.rax = 0;
    registers.rcx = 0;
    let out = snippet!("cpuid").run(registers)?;
    let expected = Gprs {
        rax: out.rax,
        rbx: out.rbx,
        rcx: out.rcx,
        rdx: out.rdx,
        ..registers
    };
    check!(
        out == expected,
        "a register changed that CPUID does not write"
    );
    Ok(())
}

/// Intel answers a leaf beyond the highest with the data of the highest basic leaf, AMD with zeros.
pub fn beyond_highest() -> Outcome {
    let highest = cpuid(0, 0).eax;
    let beyond = cpuid(highest + 1, 0);
    if cpu::is_amd() {
        check_eq!(
            beyond.eax | beyond.ebx | beyond.ecx | beyond.edx,
            0,
            "registers"
        );
    } else {
        check!(
            beyond == cpuid(highest, 0),
            "not the data of leaf {highest:#x}"
        );
    }
    Ok(())
}

pub fn extended_leaves() -> Outcome {
    check!(
        cpuid(0x8000_0000, 0).eax >= 0x8000_0008,
        "extended leaves are missing"
    );
    check!(
        cpuid(0x8000_0001, 0).edx & 1 << 29 != 0,
        "long mode is missing"
    );
    let widths = cpuid(0x8000_0008, 0).eax;
    check!(
        matches!(widths & 0xff, 32..=52),
        "physical width {}",
        widths & 0xff
    );
    check!(
        matches!(widths >> 8 & 0xff, 48 | 57),
        "linear width {}",
        widths >> 8 & 0xff
    );
    Ok(())
}

pub fn one_cpu() -> Outcome {
    check_eq!(cpuid(1, 0).ebx >> 24, 0, "initial APIC identifier");
    if cpuid(0, 0).eax >= 0xb {
        check_eq!(cpuid(0xb, 0).edx, 0, "x2APIC identifier");
    }
    Ok(())
}

pub fn osxsave_mirrors_cr4() -> Outcome {
    check!(crate::has_xsave(), "the machine has no XSAVE");
    let cr4 = cpu::cr4()?;
    for value in [cr4 | crate::CR4_OSXSAVE, cr4 & !crate::CR4_OSXSAVE] {
        cpu::set_cr4(value)?;
        check_eq!(
            u64::from(cpuid(1, 0).ecx >> 27 & 1),
            value >> 18 & 1,
            "OSXSAVE"
        );
    }
    Ok(())
}

/// Leaf 0DH: EBX is the size of what XCR0 enables now, ECX that of all that it could enable.
pub fn xsave_sizes() -> Outcome {
    check!(crate::has_xsave(), "the machine has no XSAVE");
    cpu::set_cr4(cpu::cr4()? | crate::CR4_OSXSAVE)?;
    let before = cpu::xgetbv()?;
    cpu::xsetbv(0, 1)?;
    let smallest = cpuid(0xd, 0);
    check_eq!(smallest.ebx, 576, "size with x87 only");
    let possible = u64::from(smallest.edx) << 32 | u64::from(smallest.eax);
    check_eq!(possible & 3, 3, "x87 and SSE among what XCR0 may hold");
    if possible & 4 != 0 {
        cpu::xsetbv(0, 7)?;
        let vector = cpuid(0xd, 2);
        check_eq!(cpuid(0xd, 0).ebx, vector.eax + vector.ebx, "size with AVX");
    }
    cpu::xsetbv(0, possible)?;
    let largest = cpuid(0xd, 0);
    check_eq!(largest.ebx, largest.ecx, "size with everything");
    cpu::xsetbv(0, before)?;
    Ok(())
}

/// XCR0 stays while CR4.OSXSAVE hides it, whoever has the CPU meanwhile; and leaf 0DH goes by it all the while.
pub fn xcr0_outlives_osxsave() -> Outcome {
    check!(crate::has_xsave(), "the machine has no XSAVE");
    let cr4 = cpu::cr4()? | crate::CR4_OSXSAVE;
    cpu::set_cr4(cr4)?;
    let before = cpu::xgetbv()?;
    let leaf = cpuid(0xd, 0);
    for value in [1, u64::from(leaf.edx) << 32 | u64::from(leaf.eax), 3] {
        cpu::xsetbv(0, value)?;
        let size = cpuid(0xd, 0).ebx;
        cpu::set_cr4(cr4 & !crate::CR4_OSXSAVE)?;
        check_eq!(cpuid(0xd, 0).ebx, size, "size while it is hidden");
        hypercall::yield_now();
        check_eq!(cpuid(0xd, 0).ebx, size, "size after another's turn");
        cpu::set_cr4(cr4)?;
        check_eq!(cpu::xgetbv()?, value, "XCR0");
        hypercall::yield_now();
        check_eq!(cpu::xgetbv()?, value, "XCR0 after another's turn");
    }
    cpu::xsetbv(0, before)?;
    Ok(())
}

pub fn works_at_cpl3() -> Outcome {
    let out = snippet!("cpuid").run_user(Gprs::ZERO)?;
    check_eq!(out.rax, u64::from(cpuid(0, 0).eax), "highest leaf");
    Ok(())
}

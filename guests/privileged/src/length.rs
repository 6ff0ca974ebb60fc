//! Lengths of instructions that exit: after each, RIP must be that of the next one, whatever prefixes it has, wherever it
//! lies, and also when the code has just been rewritten.

use plinth_rt::paging::{self, PAGE, flag};
use plinth_rt::suite::{faulted, trapped};
use plinth_rt::trap::vector;
use plinth_rt::{Gprs, Outcome, Scratch, Snippet, check_eq, snippet};

static CODE: Scratch<8192> = Scratch::new();

/// The instruction must be passed over as a whole: what follows it sets R15.
macro_rules! passes {
    ($registers:expr, $($line:literal),+) => {{
        let snippet = snippet!($($line,)+ "mov r15d, 0x600d");
        check_eq!(snippet.run($registers)?.r15, 0x600d, "R15");
    }};
}

pub fn cpuid_with_prefixes() -> Outcome {
    let none = Gprs::ZERO;
    passes!(none, "cpuid");
    passes!(none, ".byte 0x66, 0x0f, 0xa2");
    passes!(none, ".byte 0x48, 0x0f, 0xa2");
    passes!(none, ".byte 0xf3, 0x0f, 0xa2");
    passes!(none, ".byte 0xf2, 0x0f, 0xa2");
    passes!(none, ".byte 0x2e, 0x67, 0x66, 0x4f, 0x0f, 0xa2");
    passes!(
        none,
        ".byte 0x2e, 0x3e, 0x36, 0x26, 0x64, 0x65, 0x66, 0x67, 0x66, 0x67, 0x2e, 0x2e, 0x40, 0x0f, 0xa2"
    );
    Ok(())
}

/// More than 15 bytes raise #GP(0) (SDM vol. 3 7.15).
pub fn too_long() -> Outcome {
    let snippet = snippet!(
        ".byte 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x0f, 0xa2"
    );
    faulted(&snippet, snippet.run(Gprs::ZERO), vector::GP, 0)?;
    Ok(())
}

pub fn msr_with_prefixes() -> Outcome {
    let efer = Gprs {
        rcx: 0xc000_0080,
        ..Gprs::ZERO
    };
    passes!(efer, ".byte 0x66, 0x0f, 0x32");
    passes!(efer, ".byte 0x48, 0x0f, 0x32");
    passes!(efer, "rdmsr", ".byte 0x2e, 0x48, 0x0f, 0x30");
    Ok(())
}

pub fn io_with_prefixes() -> Outcome {
    let port = Gprs {
        rdx: crate::io::PORT,
        rdi: crate::PAGES.address(),
        rsi: crate::PAGES.address(),
        rcx: 1,
        ..Gprs::ZERO
    };
    passes!(port, ".byte 0x2e, 0x66, 0xed");
    passes!(port, ".byte 0x48, 0xec");
    passes!(port, ".byte 0x66, 0xe5, 0xee");
    passes!(port, ".byte 0x65, 0x48, 0xe7, 0xee");
    passes!(port, ".byte 0xf2, 0x66, 0x6d");
    passes!(port, ".byte 0x67, 0xf3, 0x48, 0x6f");
    Ok(())
}

pub fn control_registers_with_prefixes() -> Outcome {
    let none = Gprs::ZERO;
    passes!(none, ".byte 0x66, 0x0f, 0x20, 0xc0");
    passes!(
        none,
        ".byte 0x48, 0x0f, 0x20, 0xc0",
        ".byte 0x2e, 0x48, 0x0f, 0x22, 0xc0"
    );
    passes!(none, ".byte 0x66, 0x0f, 0x06");
    passes!(none, "smsw rax", ".byte 0x66, 0x0f, 0x01, 0xf0");
    passes!(none, ".byte 0x2e, 0x0f, 0x09");
    passes!(none, ".byte 0x2e, 0xf3, 0x90");
    Ok(())
}

/// LOCK with MOV CR0 is MOV CR8 on AMD CPUs that say so, and undefined elsewhere.
pub fn lock_mov_cr0() -> Outcome {
    let snippet = snippet!(".byte 0xf0, 0x0f, 0x20, 0xc0");
    if plinth_rt::cpu::is_amd() && plinth_rt::cpu::cpuid(0x8000_0001, 0).ecx & 1 << 4 != 0 {
        check_eq!(snippet.run(Gprs::ZERO)?.rax, 0, "CR8");
        return Ok(());
    }
    faulted(&snippet, snippet.run(Gprs::ZERO), vector::UD, 0)?;
    Ok(())
}

/// Two pages that lie apart, mapped one after the other.
fn window() -> u64 {
    let first = paging::map(16, CODE.address() + PAGE, flag::ALL);
    paging::map(17, CODE.address(), flag::ALL);
    first
}

fn straddle(snippet: &Snippet, bytes_before: u64, registers: Gprs) -> Outcome {
    let copy = snippet.copy_to(window() + PAGE - bytes_before);
    check_eq!(copy.run(registers)?.r15, 0x600d, "R15");
    Ok(())
}

pub fn across_a_page_boundary() -> Outcome {
    let cpuid = snippet!(".byte 0x66, 0x48, 0x0f, 0xa2", "mov r15d, 0x600d");
    for bytes_before in 1..=4 {
        straddle(&cpuid, bytes_before, Gprs::ZERO)?;
    }
    let port = Gprs {
        rdx: crate::io::PORT,
        rsi: crate::PAGES.address(),
        rcx: 3,
        ..Gprs::ZERO
    };
    let outs = snippet!("rep outsb", "mov r15d, 0x600d");
    straddle(&outs, 1, port)?;
    let mov = snippet!("mov rax, cr0", "mov cr0, rax", "mov r15d, 0x600d");
    for bytes_before in 1..=6 {
        straddle(&mov, bytes_before, Gprs::ZERO)?;
    }
    Ok(())
}

/// The second half of the instruction lies in an absent page: the fetch faults, and nothing exits.
pub fn into_an_absent_page() -> Outcome {
    let copy = snippet!("cpuid").copy_to(window() + PAGE - 1);
    paging::set_entry(17, 0);
    let trap = trapped(copy.run(Gprs::ZERO), vector::PF)?;
    check_eq!(trap.error, 0x10, "error code");
    check_eq!(trap.cr2, copy.start() + 1, "CR2");
    check_eq!(trap.rip(), copy.start(), "RIP");
    Ok(())
}

/// The last byte of the instruction is the last of its page, and the next page is absent: nothing beyond it may be fetched.
pub fn before_an_absent_page() -> Outcome {
    let copy = snippet!("cpuid").copy_to(window() + PAGE - 2);
    paging::set_entry(17, 0);
    let trap = trapped(copy.run(Gprs::ZERO), vector::PF)?;
    check_eq!(trap.cr2, copy.start() + 2, "CR2");
    check_eq!(trap.rip(), copy.start() + 2, "RIP");
    Ok(())
}

/// The same address with ever longer encodings: no length may be remembered from before.
pub fn rewritten_code() -> Outcome {
    let address = CODE.address() + 512;
    let versions = [
        snippet!("cpuid", "mov r15d, 1"),
        snippet!(".byte 0x66, 0x0f, 0xa2", "mov r15d, 2"),
        snippet!(".byte 0x2e, 0x66, 0x48, 0x0f, 0xa2", "mov r15d, 3"),
        snippet!("cpuid", "mov r15d, 4"),
        snippet!("in al, 0xee", "mov r15d, 5"),
        snippet!("in al, dx", "mov r15d, 6"),
    ];
    for (version, expected) in versions.iter().zip(1u64..) {
        let out = version.copy_to(address).run(Gprs {
            rdx: crate::io::PORT,
            ..Gprs::ZERO
        })?;
        check_eq!(out.r15, expected, "R15");
    }
    Ok(())
}

/// Code at CPL 3 in a page of its own address: the kernel reads the instruction through the guest's tables.
pub fn through_other_mappings() -> Outcome {
    let address = paging::map(40, CODE.address(), flag::PRESENT | flag::USER);
    snippet!("cpuid", "mov r15d, 0x600d").copy_to(CODE.address());
    let there = Snippet::new(address, address + 8);
    check_eq!(there.run_user(Gprs::ZERO)?.r15, 0x600d, "R15");
    Ok(())
}

/// In compatibility mode there is no REX prefix, and 40H is an instruction of its own.
pub fn in_compatibility_mode() -> Outcome {
    let snippet = snippet!(
        "push 0x58",
        "lea r8, [rip + 2f]",
        "push r8",
        "retfq",
        ".code32",
        "2:",
        ".byte 0x40", // inc eax
        "cpuid",
        ".byte 0x66, 0x0f, 0xa2",
        "in eax, dx",
        ".byte 0x66, 0xed",
        "mov ebp, 0x600d",
        ".byte 0xea",
        ".long 3f",
        ".word 8",
        ".code64",
        "3:",
    );
    let out = snippet.run(Gprs {
        rdx: crate::io::PORT,
        ..Gprs::ZERO
    })?;
    check_eq!(out.rbp, 0x600d, "RBP");
    Ok(())
}

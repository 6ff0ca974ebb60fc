//! Port I/O to ports that nobody claims: reads give all ones, writes vanish, and the string forms do to memory and
//! registers what the manual says (SDM vol. 2 INS, OUTS).

use plinth_rt::paging::{self, PAGE, flag};
use plinth_rt::suite::{faulted, must_fault_user, trapped};
use plinth_rt::trap::vector;
use plinth_rt::{Gprs, Outcome, check, check_eq, cpu, snippet};

use crate::PAGES;

/// A port that no machine has.
pub const PORT: u64 = 0x5678;

const OLD: u64 = 0x1122_3344_5566_7788;

fn at(rdi: u64, rcx: u64) -> Gprs {
    Gprs {
        rdx: PORT,
        rdi,
        rsi: rdi,
        rcx,
        ..Gprs::ZERO
    }
}

pub fn in_register() -> Outcome {
    let registers = Gprs {
        rax: OLD,
        ..at(0, 0)
    };
    let byte = snippet!("in al, dx").run(registers)?;
    check_eq!(byte.rax, OLD | 0xff, "RAX after a byte");
    let word = snippet!("in ax, dx").run(registers)?;
    check_eq!(word.rax, OLD | 0xffff, "RAX after a word");
    let dword = snippet!("in eax, dx").run(registers)?;
    check_eq!(dword.rax, 0xffff_ffff, "RAX after a dword");
    let rex = snippet!(".byte 0x48, 0xed").run(registers)?;
    check_eq!(rex.rax, 0xffff_ffff, "RAX after a dword with REX.W");
    Ok(())
}

pub fn in_immediate() -> Outcome {
    let registers = Gprs {
        rax: OLD,
        ..Gprs::ZERO
    };
    let byte = snippet!("in al, 0xee").run(registers)?;
    check_eq!(byte.rax, OLD | 0xff, "RAX after a byte");
    let word = snippet!("in ax, 0xee").run(registers)?;
    check_eq!(word.rax, OLD | 0xffff, "RAX after a word");
    let dword = snippet!("in eax, 0xee").run(registers)?;
    check_eq!(dword.rax, 0xffff_ffff, "RAX after a dword");
    Ok(())
}

pub fn out_register_and_immediate() -> Outcome {
    let registers = Gprs {
        rax: OLD,
        ..at(0, 0)
    };
    for snippet in [
        snippet!("out dx, al"),
        snippet!("out dx, ax"),
        snippet!("out dx, eax"),
        snippet!("out 0xee, al"),
        snippet!("out 0xee, ax"),
        snippet!("out 0xee, eax"),
    ] {
        check!(snippet.run(registers)? == registers, "a register changed");
    }
    Ok(())
}

/// Only DX names the port; the rest of RDX does not count.
pub fn upper_rdx_is_ignored() -> Outcome {
    let out = snippet!("in al, dx").run(Gprs {
        rdx: 0xffff_ffff_ffff_0000 | PORT,
        ..Gprs::ZERO
    })?;
    check_eq!(out.rax, 0xff, "RAX");
    Ok(())
}

/// The last port with a dword: its upper bytes have no port at all. The guest goes on.
pub fn beyond_last_port() -> Outcome {
    let registers = Gprs {
        rdx: 0xffff,
        ..Gprs::ZERO
    };
    snippet!("in eax, dx").run(registers)?;
    snippet!("out dx, eax").run(registers)?;
    Ok(())
}

pub fn ins_each_size() -> Outcome {
    let snippets = [snippet!("insb"), snippet!("insw"), snippet!("insd")];
    for (snippet, size) in snippets.iter().zip([1u64, 2, 4]) {
        PAGES.fill(0);
        let out = snippet.run(at(PAGES.address() + 8, 99))?;
        check_eq!(out.rdi, PAGES.address() + 8 + size, "RDI");
        check_eq!(out.rcx, 99, "RCX");
        check_eq!(PAGES.get_u64(8), (1 << (8 * size)) - 1, "memory");
        check_eq!(PAGES.get_u64(0), 0, "memory before");
    }
    Ok(())
}

pub fn outs_each_size() -> Outcome {
    let snippets = [snippet!("outsb"), snippet!("outsw"), snippet!("outsd")];
    for (snippet, size) in snippets.iter().zip([1u64, 2, 4]) {
        let out = snippet.run(at(PAGES.address(), 99))?;
        check_eq!(out.rsi, PAGES.address() + size, "RSI");
        check_eq!(out.rcx, 99, "RCX");
    }
    Ok(())
}

pub fn rep_ins() -> Outcome {
    PAGES.fill(0);
    let out = snippet!("rep insw").run(at(PAGES.address() + 2, 100))?;
    check_eq!(out.rcx, 0, "RCX");
    check_eq!(out.rdi, PAGES.address() + 202, "RDI");
    for offset in 0..300 {
        let expected = if (2..202).contains(&offset) { 0xff } else { 0 };
        check!(
            PAGES.get(offset) == expected,
            "byte {offset} is {:#x}",
            PAGES.get(offset)
        );
    }
    Ok(())
}

pub fn rep_ins_downwards() -> Outcome {
    PAGES.fill(0);
    let out = snippet!("std", "rep insd", "cld").run(at(PAGES.address() + 32, 4))?;
    check_eq!(out.rcx, 0, "RCX");
    check_eq!(out.rdi, PAGES.address() + 16, "RDI");
    for offset in 0..64 {
        let expected = if (20..36).contains(&offset) { 0xff } else { 0 };
        check!(
            PAGES.get(offset) == expected,
            "byte {offset} is {:#x}",
            PAGES.get(offset)
        );
    }
    Ok(())
}

pub fn rep_outs_downwards() -> Outcome {
    let out = snippet!("std", "rep outsw", "cld").run(at(PAGES.address() + 64, 8))?;
    check_eq!(out.rcx, 0, "RCX");
    check_eq!(out.rsi, PAGES.address() + 48, "RSI");
    Ok(())
}

/// With a count of 0 no memory is touched, not even an unmapped page.
pub fn rep_of_nothing() -> Outcome {
    let address = paging::map(4, 0, 0);
    let registers = at(address, 0);
    check!(
        snippet!("rep insb").run(registers)? == registers,
        "INS changed a register"
    );
    check!(
        snippet!("rep outsb").run(registers)? == registers,
        "OUTS changed a register"
    );
    Ok(())
}

/// More iterations than a kernel does in one go.
pub fn rep_outs_long() -> Outcome {
    let count = 50_000;
    let out = snippet!("rep outsb").run(at(0x10_0000, count))?;
    check_eq!(out.rcx, 0, "RCX");
    check_eq!(out.rsi, 0x10_0000 + count, "RSI");
    Ok(())
}

/// An element that straddles two pages which lie apart.
pub fn ins_across_pages() -> Outcome {
    PAGES.fill(0);
    let first = paging::map(0, PAGES.address() + 2 * PAGE, flag::ALL);
    paging::map(1, PAGES.address(), flag::ALL);
    let out = snippet!("rep insd").run(at(first + PAGE - 6, 3))?;
    check_eq!(out.rdi, first + PAGE + 6, "RDI");
    for offset in 0..16 {
        let high = PAGES.get(3 * PAGE as usize - 16 + offset);
        check!(
            high == if offset >= 10 { 0xff } else { 0 },
            "byte {offset} before the boundary is {high:#x}"
        );
        let low = PAGES.get(offset);
        check!(
            low == if offset < 6 { 0xff } else { 0 },
            "byte {offset} after the boundary is {low:#x}"
        );
    }
    Ok(())
}

/// The fault comes at the first element that cannot be stored; the registers tell how far it came.
pub fn ins_to_read_only_page() -> Outcome {
    let first = paging::map(0, PAGES.address(), flag::ALL);
    paging::map(1, PAGES.address() + PAGE, flag::PRESENT);
    let snippet = snippet!("rep insw");
    let trap = faulted(
        &snippet,
        snippet.run(at(first + PAGE - 8, 10)),
        vector::PF,
        3,
    )?;
    check_eq!(trap.cr2, first + PAGE, "CR2");
    check_eq!(trap.frame.gprs.rcx, 6, "RCX");
    check_eq!(trap.frame.gprs.rdi, first + PAGE, "RDI");
    Ok(())
}

pub fn ins_to_absent_page() -> Outcome {
    let address = paging::map(2, 0, 0);
    let snippet = snippet!("insb");
    let trap = faulted(&snippet, snippet.run(at(address + 5, 1)), vector::PF, 2)?;
    check_eq!(trap.cr2, address + 5, "CR2");
    check_eq!(trap.frame.gprs.rdi, address + 5, "RDI");
    Ok(())
}

pub fn outs_from_absent_page() -> Outcome {
    let first = paging::map(0, PAGES.address(), flag::PRESENT);
    paging::map(1, 0, 0);
    let snippet = snippet!("rep outsd");
    let trap = faulted(
        &snippet,
        snippet.run(at(first + PAGE - 16, 9)),
        vector::PF,
        0,
    )?;
    check_eq!(trap.cr2, first + PAGE, "CR2");
    check_eq!(trap.frame.gprs.rcx, 5, "RCX");
    check_eq!(trap.frame.gprs.rsi, first + PAGE, "RSI");
    Ok(())
}

pub fn ins_sets_accessed_and_dirty() -> Outcome {
    let address = paging::map(3, PAGES.address(), flag::ALL);
    snippet!("outsb").run(at(address, 0))?;
    check_eq!(
        paging::entry(3) & (flag::ACCESSED | flag::DIRTY),
        flag::ACCESSED,
        "entry after OUTS"
    );
    snippet!("insb").run(at(address, 0))?;
    check_eq!(
        paging::entry(3) & (flag::ACCESSED | flag::DIRTY),
        flag::ACCESSED | flag::DIRTY,
        "entry after INS"
    );
    Ok(())
}

/// With a 32-bit address size EDI, ESI and ECX are what counts, and what is written back.
pub fn address_size_32() -> Outcome {
    PAGES.fill(0);
    let upper = 0xffff_ffff_0000_0000;
    let registers = at(upper | PAGES.address(), upper | 2);
    let out = snippet!(".byte 0x67", "rep insb").run(registers)?;
    check_eq!(out.rdi, PAGES.address() + 2, "RDI");
    check_eq!(out.rcx, 0, "RCX");
    check_eq!(PAGES.get_u64(0), 0xffff, "memory");
    let out = snippet!(".byte 0x67", "rep outsb").run(registers)?;
    check_eq!(out.rsi, PAGES.address() + 2, "RSI");
    Ok(())
}

/// OUTS takes its source through the segment that a prefix names; INS always uses ES, which has no base here.
pub fn segment_override() -> Outcome {
    let address = paging::map(5, 0, 0);
    cpu::wrmsr(0xc000_0100, address)?;
    let outs = snippet!(".byte 0x64, 0x6e");
    let ins = snippet!(".byte 0x64, 0x6c");
    let trap = trapped(outs.run(at(0x123, 0)), vector::PF);
    let stored = ins.run(at(PAGES.address(), 0));
    cpu::wrmsr(0xc000_0100, 0)?;
    let trap = trap?;
    check_eq!(trap.cr2, address + 0x123, "CR2");
    check_eq!(trap.rip(), outs.start(), "RIP");
    check_eq!(stored?.rdi, PAGES.address() + 1, "RDI");
    Ok(())
}

pub fn non_canonical() -> Outcome {
    let snippet = snippet!("insb");
    faulted(&snippet, snippet.run(at(1 << 63, 0)), vector::GP, 0)?;
    let snippet = snippet!("outsb");
    faulted(&snippet, snippet.run(at(1 << 63, 0)), vector::GP, 0)?;
    Ok(())
}

/// IOPL is 0 and the TSS has no permission bitmap.
pub fn refused_at_cpl3() -> Outcome {
    for snippet in [
        snippet!("in al, dx"),
        snippet!("out dx, eax"),
        snippet!("in al, 0xee"),
        snippet!("insb"),
        snippet!("rep outsb"),
    ] {
        must_fault_user(&snippet, at(PAGES.address(), 1), vector::GP, 0)?;
    }
    Ok(())
}

/// With IOPL 3 the ports are open to CPL 3, and what INS stores is checked as an access of CPL 3.
pub fn iopl_3() -> Outcome {
    let address = paging::map(6, PAGES.address(), flag::PRESENT | flag::WRITE);
    let raise = snippet!(
        "pushfq",
        "or dword ptr [rsp], 0x3000",
        "popfq",
        "push 0x23",
        "push rbx",
        "pushfq",
        "push 0x2b",
        "push r8",
        "iretq"
    );
    let target = snippet!("in al, dx", "insb", "int 0x80");
    let registers = Gprs {
        rbx: PAGES.address() + PAGE,
        r8: target.start(),
        ..at(address, 1)
    };
    paging::open_to_user();
    let trap = trapped(raise.run(registers), vector::PF)?;
    check_eq!(trap.rip(), target.start() + 1, "RIP");
    check_eq!(trap.error, 7, "error code");
    check_eq!(trap.frame.gprs.rax, 0xff, "RAX");
    Ok(())
}

//! Port instructions where they hurt: strings across pages that are not there, counts and addresses that wrap, ports at the end of the
//! range, and all ports at once.

use plinth_rt::abi::Reason;
use plinth_rt::abi::domain::{fault, platform};
use plinth_rt::paging::{self, PAGE, flag};
use plinth_rt::suite::{must_fault_user, trapped};
use plinth_rt::trap::vector;
use plinth_rt::{Gprs, Outcome, Snippet, Trap, Why, check, check_eq, snippet};
use plinth_testkit::kit::{MS, sleep};

use crate::attacker::{
    Attacker, FREE, Plan, RAM, Unexpected, at, fatal_to, faults_at, inside, nested_fault, peek,
    poke,
};

cases!("ports":
    ins_runs_into_an_absent_page,
    ins_element_across_an_absent_page,
    ins_downwards_into_an_absent_page,
    outs_runs_into_an_absent_page,
    ins_into_a_read_only_page,
    ins_into_a_supervisors_page,
    ins_over_the_end_of_memory,
    outs_over_the_end_of_memory,
    ins_into_the_apic,
    outs_from_code_that_is_not_there,
    count_of_zero_in_32_bits,
    address_of_32_bits_is_cut,
    not_canonical,
    count_of_all_ones,
    ports_at_the_end_of_the_range,
    all_ports_are_read,
    all_ports_are_written,
    string_that_never_ends,
);

/// A port that no machine has.
const PORT: u64 = 0x5678;

fn string(address: u64, count: u64) -> Gprs {
    Gprs {
        rdx: PORT,
        rcx: count,
        rsi: address,
        ..at(address)
    }
}

/// Two pages of the window: the first is there, the second is not.
fn half_mapped() -> u64 {
    let first = paging::map(8, FREE, flag::ALL);
    paging::set_entry(9, 0);
    first + PAGE
}

/// The string instruction must end in a #PF with this error code at this address.
fn page_fault(code: &Snippet, registers: Gprs, error: u64, address: u64) -> Result<Trap, Why> {
    let trap = trapped(code.run(registers), vector::PF)?;
    check_eq!(trap.error, error, "error code");
    check_eq!(trap.cr2, address, "CR2");
    check_eq!(trap.rip(), code.start(), "RIP");
    Ok(trap)
}

/// What was done before the fault stays done, in memory and in the registers (SDM vol. 2, REP).
fn ins_runs_into_an_absent_page() -> Outcome {
    inside(|| {
        let end = half_mapped();
        for (code, size) in [
            (snippet!("rep insb"), 1),
            (snippet!("rep insw"), 2),
            (snippet!("rep insd"), 4),
        ] {
            poke(FREE + PAGE - 8, 0);
            let trap = page_fault(&code, string(end - 8, 16), 2, end)?;
            check_eq!(trap.frame.gprs.rdi, end, "RDI");
            check_eq!(trap.frame.gprs.rcx, 16 - 8 / size, "RCX");
            check_eq!(peek(FREE + PAGE - 8), u64::MAX, "what was read");
        }
        Ok(())
    })
}

/// Half of the element lies on the page that is there.
fn ins_element_across_an_absent_page() -> Outcome {
    inside(|| {
        let end = half_mapped();
        poke(FREE + PAGE - 8, 0x1111_2222_3333_4444);
        let trap = page_fault(&snippet!("insd"), string(end - 2, 3), 2, end)?;
        check_eq!(trap.frame.gprs.rdi, end - 2, "RDI");
        check_eq!(peek(FREE + PAGE - 8), 0x1111_2222_3333_4444, "memory");
        Ok(())
    })
}

fn ins_downwards_into_an_absent_page() -> Outcome {
    inside(|| {
        let page = paging::map(9, FREE, flag::ALL);
        paging::set_entry(8, 0);
        poke(FREE, 0);
        let code = snippet!("std", "rep insb");
        let trap = trapped(code.run(string(page + 3, 9)), vector::PF)?;
        check_eq!(trap.cr2, page - 1, "CR2");
        check_eq!(trap.frame.gprs.rcx, 5, "RCX");
        check_eq!(trap.frame.gprs.rdi, page - 1, "RDI");
        check_eq!(peek(FREE), 0xffff_ffff, "what was read");
        Ok(())
    })
}

fn outs_runs_into_an_absent_page() -> Outcome {
    inside(|| {
        let end = half_mapped();
        let trap = page_fault(&snippet!("rep outsw"), string(end - 6, 10), 0, end)?;
        check_eq!(trap.frame.gprs.rsi, end, "RSI");
        check_eq!(trap.frame.gprs.rcx, 7, "RCX");
        Ok(())
    })
}

/// CR0.WP is set.
fn ins_into_a_read_only_page() -> Outcome {
    inside(|| {
        let page = paging::map(8, FREE, flag::PRESENT);
        poke(FREE, 7);
        page_fault(&snippet!("rep insb"), string(page, 8), 3, page)?;
        check_eq!(peek(FREE), 7, "memory");
        Ok(())
    })
}

/// From CPL 3 the port is refused before memory is looked at.
fn ins_into_a_supervisors_page() -> Outcome {
    inside(|| {
        let page = paging::map(8, FREE, flag::PRESENT | flag::WRITE);
        poke(FREE, 7);
        for code in [snippet!("rep insb"), snippet!("insd"), snippet!("outsb")] {
            must_fault_user(&code, string(page, 8), vector::GP, 0)?;
        }
        check_eq!(peek(FREE), 7, "memory");
        Ok(())
    })
}

fn ins_over_the_end_of_memory() -> Outcome {
    let attacker = Attacker::new(&Plan::new(|| {
        snippet!("rep insb")
            .run(string(RAM - 24, 64))
            .into_unexpected()
    }))?;
    attacker.start()?;
    let info = attacker.ends(Reason::NESTED_FAULT)?.info;
    check_eq!(info[0], RAM, "address");
    check_eq!(info[1], fault::WRITE, "bits");
    check_eq!(attacker.word(RAM - 8)?, u64::MAX, "the last word");
    Ok(())
}

fn outs_over_the_end_of_memory() -> Outcome {
    faults_at(
        || {
            snippet!("rep outsd")
                .run(string(RAM - 8, 64))
                .into_unexpected()
        },
        RAM,
        0,
    )
}

/// A string of a port does not go to another device's registers: no such instruction is emulated.
fn ins_into_the_apic() -> Outcome {
    nested_fault(
        &Plan::new(|| {
            let apic = paging::map(0, 0xfee0_0000, flag::ALL);
            snippet!("insd")
                .run(string(apic + 0x80, 1))
                .into_unexpected()
        })
        .on(platform::PC),
        0xfee0_0080,
        fault::WRITE,
    )
}

/// The instruction itself is the last byte of memory: it is done, and the next is fetched from where nothing is.
fn outs_from_code_that_is_not_there() -> Outcome {
    let attacker = Attacker::new(&Plan::new(|| {
        snippet!("jmp r8")
            .run(Gprs {
                r8: RAM - 1,
                ..string(FREE, 1)
            })
            .into_unexpected()
    }))?;
    // OUTSB.
    attacker.write(RAM - 1, &[0x6e])?;
    attacker.start()?;
    let info = attacker.ends(Reason::NESTED_FAULT)?;
    check_eq!(info.info[0] & !0xfff, RAM, "page");
    check_eq!(info.info[1], fault::FETCH, "bits");
    check_eq!(info.rip, RAM, "RIP");
    Ok(())
}

/// With addresses of 32 bits the count is ECX.
fn count_of_zero_in_32_bits() -> Outcome {
    inside(|| {
        poke(FREE, 7);
        let out = snippet!(".byte 0x67", "rep insb").run(string(FREE, 1 << 32))?;
        check_eq!(out.rdi, FREE, "RDI");
        check_eq!(peek(FREE), 7, "memory");
        Ok(())
    })
}

/// Bits above 31 of RDI are not part of the address.
fn address_of_32_bits_is_cut() -> Outcome {
    inside(|| {
        poke(FREE, 0);
        let out =
            snippet!(".byte 0x67", "rep insb").run(string(0x5555_0000_0000_0000 | FREE, 4))?;
        check_eq!(out.rdi, FREE + 4, "RDI");
        check_eq!(out.rcx, 0, "RCX");
        check_eq!(peek(FREE), 0xffff_ffff, "memory");
        // The top of 32 bits, which the tables do not map.
        let high = snippet!(".byte 0x67", "rep insb");
        let trap = trapped(high.run(string(0xffff_fffe, 4)), vector::PF)?;
        check_eq!(trap.cr2, 0xffff_fffe, "CR2");
        check_eq!(trap.frame.gprs.rcx, 4, "RCX");
        Ok(())
    })
}

fn not_canonical() -> Outcome {
    inside(|| {
        for code in [
            snippet!("insb"),
            snippet!("outsb"),
            snippet!("rep insd"),
            snippet!("rep outsw"),
        ] {
            let trap = trapped(code.run(string(1 << 47, 3)), vector::GP)?;
            check_eq!(trap.error, 0, "error code");
            check_eq!(trap.frame.gprs.rcx, 3, "RCX");
        }
        Ok(())
    })
}

/// It runs until memory ends, and no element more.
fn count_of_all_ones() -> Outcome {
    let [address, bits, _] = fatal_to(
        &Plan::new(|| {
            snippet!("rep outsd")
                .run(string(RAM - 4096, u64::MAX))
                .into_unexpected()
        }),
        Reason::NESTED_FAULT,
    )?;
    check_eq!(address, RAM, "address");
    check_eq!(bits, 0, "bits");
    Ok(())
}

/// What reaches beyond the last port has no port there: all ones, or nothing at all.
fn ports_at_the_end_of_the_range() -> Outcome {
    inside(|| {
        for port in 0xfff8..=0xffffu64 {
            let registers = Gprs {
                rdx: port,
                ..Gprs::ZERO
            };
            check_eq!(snippet!("in al, dx").run(registers)?.rax, 0xff, "a byte");
            check_eq!(snippet!("in ax, dx").run(registers)?.rax, 0xffff, "a word");
            check_eq!(
                snippet!("in eax, dx").run(registers)?.rax,
                0xffff_ffff,
                "a doubleword"
            );
            for code in [
                snippet!("out dx, al"),
                snippet!("out dx, ax"),
                snippet!("out dx, eax"),
            ] {
                check!(code.run(registers)? == registers, "a register has changed");
            }
            poke(FREE, 0);
            let out = snippet!("rep insd").run(Gprs {
                rdx: port,
                ..string(FREE, 2)
            })?;
            check_eq!(out.rcx, 0, "RCX");
            check_eq!(peek(FREE), u64::MAX, "memory");
        }
        Ok(())
    })
}

/// Every port below 0x1000, every 16th above: where the machine's own devices are, and where they could be.
fn all_ports_are_read() -> Outcome {
    inside(|| {
        let out = snippet!(
            "mov r8d, -1",
            "2: in al, dx",
            "and r8b, al",
            "inc edx",
            "cmp edx, 0x1000",
            "jb 2b",
            "add edx, 15",
            "cmp edx, 0x10000",
            "jb 2b",
        )
        .run(Gprs::ZERO)?;
        check_eq!(out.r8 & 0xff, 0xff, "the AND of all");
        check!(out.rdx >= 0x1_0000, "RDX {:#x}", out.rdx);
        Ok(())
    })
}

/// Resets, power-offs, PCI's configuration, the emulators' own: none of it may be felt.
fn all_ports_are_written() -> Outcome {
    inside(|| {
        for value in [0x06, 0xfe] {
            let out = snippet!(
                "2: out dx, al",
                "inc edx",
                "cmp edx, 0x1000",
                "jb 2b",
                "add edx, 15",
                "cmp edx, 0x10000",
                "jb 2b",
            )
            .run(Gprs {
                rax: value,
                ..Gprs::ZERO
            })?;
            check!(out.rdx >= 0x1_0000, "RDX {:#x}", out.rdx);
        }
        Ok(())
    })
}

/// It can be killed in the middle of a string.
fn string_that_never_ends() -> Outcome {
    let attacker = Attacker::new(&Plan::new(|| {
        crate::attacker::tell(0, 1);
        snippet!("2: mov ecx, 0x1000", "mov rsi, r8", "rep outsb", "jmp 2b")
            .run(Gprs {
                r8: FREE,
                ..string(FREE, 0)
            })
            .into_unexpected()
    }))?;
    attacker.start()?;
    attacker.until_told(0, 1)?;
    sleep(3 * MS);
    attacker.is_killed()
}

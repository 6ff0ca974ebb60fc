//! Tricks with what lies at and behind the end of memory, and with the pages of interrupt controllers: accesses that straddle an end,
//! tables and stacks that lie there, instructions that change between their exit and their being read.

use plinth_rt::abi::Reason;
use plinth_rt::abi::call::access;
use plinth_rt::abi::domain::{fault, platform};
use plinth_rt::cpu::{self, TablePointer};
use plinth_rt::paging::{self, flag};
use plinth_rt::quirks::is_tcg;
use plinth_rt::suite::{faulted, must_fault};
use plinth_rt::trap::vector;
use plinth_rt::{Gprs, Outcome, Snippet, check, check_eq, snippet};
use plinth_testkit::kit::{Must, memory};

use crate::attacker::{
    Attacker, FREE, Plan, RAM, TABLES, Unexpected, at, fatal_to, faults_at, heard, inside,
    nested_fault, ordered, poke, tell,
};
use plinth_testkit::window::Mapped;

cases!("nested_faults":
    read_straddles_the_end,
    write_straddles_the_end,
    fetch_behind_the_end,
    instruction_across_the_end,
    push_across_the_end,
    call_with_its_stack_behind_the_end,
    return_from_behind_the_end,
    exception_with_its_stack_behind_the_end,
    interrupt_table_behind_the_end,
    descriptor_table_behind_the_end,
    operand_of_lgdt_across_the_end,
    fxsave_across_the_end,
    string_runs_over_the_end,
    root_table_behind_the_end,
    table_behind_the_end,
    entry_points_at_nothing,
    entry_with_the_widest_address,
    entry_with_reserved_bits,
    large_entry_with_reserved_bits,
    tables_on_a_read_only_page,
    wrapped_linear_address,
    not_canonical,
    apic_read_straddles_its_end,
    apic_as_code,
    apic_as_root_table,
    apic_as_stack,
    apic_as_descriptor_table,
    apic_by_instructions_not_emulated,
    apic_copied_onto_itself,
    code_rewritten_before_its_exit,
    code_rewritten_by_another_vcpu,
);

/// Where a PC's local APIC is.
const APIC: u64 = 0xfee0_0000;
/// Its version register.
const VERSION: u64 = 0x30;

fn pc(attack: fn() -> Outcome) -> Plan {
    Plan::new(attack).on(platform::PC)
}

/// Maps the page of the local APIC; its linear address.
fn apic() -> u64 {
    paging::map(0, APIC, flag::ALL)
}

/// As [`faults_at`], where only the page is known: CPUs fetch code and walk tables in pieces of their own choice.
fn faults_in(plan: &Plan, page: u64, bits: u64) -> Outcome {
    let [seen, seen_bits, _] = fatal_to(plan, Reason::NESTED_FAULT)?;
    check_eq!(seen & !0xfff, page, "page of the nested fault");
    check!(
        seen_bits & bits == bits,
        "bits of the nested fault: {seen_bits:#x}, expected {bits:#x} among them"
    );
    Ok(())
}

fn read_straddles_the_end() -> Outcome {
    faults_at(
        || {
            snippet!("mov rax, [rdi]")
                .run(at(RAM - 4))
                .into_unexpected()
        },
        RAM,
        0,
    )
}

/// The half that lies in memory must not be written either.
fn write_straddles_the_end() -> Outcome {
    let attacker = Attacker::new(&Plan::new(|| {
        tell(0, snippet!("mov rax, [rdi]").run(at(RAM - 8))?.rax);
        let registers = Gprs {
            rax: u64::MAX,
            ..at(RAM - 4)
        };
        snippet!("mov [rdi], rax").run(registers).into_unexpected()
    }))?;
    attacker.start()?;
    let info = attacker.ends(Reason::NESTED_FAULT)?.info;
    check_eq!(info[0], RAM, "address");
    check_eq!(info[1], fault::WRITE, "bits");
    check_eq!(attacker.word(RAM - 8)?, attacker.told(0)?, "the last word");
    Ok(())
}

fn fetch_behind_the_end() -> Outcome {
    faults_in(
        &Plan::new(|| snippet!("jmp rdi").run(at(RAM)).into_unexpected()),
        RAM,
        fault::FETCH,
    )
}

/// The first three bytes of a MOV of a 64-bit constant are the last of memory.
fn instruction_across_the_end() -> Outcome {
    let attacker = Attacker::new(&Plan::new(|| {
        snippet!("jmp rdi").run(at(RAM - 3)).into_unexpected()
    }))?;
    attacker.write(RAM - 3, &[0x48, 0xb8, 0x00])?;
    attacker.start()?;
    let info = attacker.ends(Reason::NESTED_FAULT)?;
    check_eq!(info.info[0] & !0xfff, RAM, "page");
    check_eq!(info.info[1], fault::FETCH, "bits");
    check_eq!(info.rip, RAM - 3, "RIP");
    Ok(())
}

fn push_across_the_end() -> Outcome {
    faults_at(
        || {
            snippet!("mov rsp, rdi", "push rax")
                .run(at(RAM + 4))
                .into_unexpected()
        },
        RAM,
        fault::WRITE,
    )
}

fn call_with_its_stack_behind_the_end() -> Outcome {
    faults_at(
        || {
            snippet!("mov rsp, rdi", "call 2f", "2:")
                .run(at(RAM + 64))
                .into_unexpected()
        },
        RAM + 56,
        fault::WRITE,
    )
}

fn return_from_behind_the_end() -> Outcome {
    faults_at(
        || {
            snippet!("mov rsp, rdi", "ret")
                .run(at(RAM + 16))
                .into_unexpected()
        },
        RAM + 16,
        0,
    )
}

/// SS is the first that an exception pushes in 64-bit mode.
fn exception_with_its_stack_behind_the_end() -> Outcome {
    faults_at(
        || {
            snippet!("mov rsp, rdi", "int3")
                .run(at(RAM + 0x1000))
                .into_unexpected()
        },
        RAM + 0xff8,
        fault::WRITE,
    )
}

/// The gate of #UD, that of the handlers that would tell of it included.
fn interrupt_table_behind_the_end() -> Outcome {
    faults_at(
        || {
            cpu::lidt(&TablePointer {
                limit: 0xfff,
                base: RAM,
            });
            snippet!("ud2").run(Gprs::ZERO).into_unexpected()
        },
        RAM + 6 * 16,
        0,
    )
}

fn descriptor_table_behind_the_end() -> Outcome {
    faults_at(
        || {
            cpu::lgdt(&TablePointer {
                limit: 0xff,
                base: RAM,
            });
            snippet!("mov es, edi").run(at(0x48)).into_unexpected()
        },
        RAM + 0x48,
        0,
    )
}

/// The limit lies in memory, the base behind it.
fn operand_of_lgdt_across_the_end() -> Outcome {
    faults_at(
        || snippet!("lgdt [rdi]").run(at(RAM - 2)).into_unexpected(),
        RAM,
        0,
    )
}

fn fxsave_across_the_end() -> Outcome {
    faults_in(
        &Plan::new(|| {
            snippet!("fxsave64 [rdi]")
                .run(at(RAM - 256))
                .into_unexpected()
        }),
        RAM,
        fault::WRITE,
    )
}

/// What a repeated string instruction has done when it faults stays done (SDM vol. 2, REP), and no more.
fn string_runs_over_the_end() -> Outcome {
    let attacker = Attacker::new(&Plan::new(|| {
        let registers = Gprs {
            rax: 0x5a,
            rcx: 64,
            ..at(RAM - 24)
        };
        snippet!("rep stosb").run(registers).into_unexpected()
    }))?;
    attacker.start()?;
    let info = attacker.ends(Reason::NESTED_FAULT)?.info;
    check_eq!(info[0], RAM, "address");
    check_eq!(info[1], fault::WRITE, "bits");
    for offset in [24, 16, 8] {
        check_eq!(
            attacker.word(RAM - offset)?,
            0x5a5a_5a5a_5a5a_5a5a,
            "a word before the end"
        );
    }
    Ok(())
}

fn root_table_behind_the_end() -> Outcome {
    faults_in(
        &Plan::new(|| snippet!("mov cr3, rdi").run(at(RAM)).into_unexpected()),
        RAM,
        fault::TABLE_WALK,
    )
}

/// A linear address of which all tables but the first are where nothing is.
const SECOND_HALF_TIB: u64 = 1 << 39;

fn table_behind_the_end() -> Outcome {
    faults_in(
        &Plan::new(|| {
            poke(TABLES + 8, (RAM + 0x5000) | flag::ALL);
            snippet!("mov rax, [rdi]")
                .run(at(SECOND_HALF_TIB))
                .into_unexpected()
        }),
        RAM + 0x5000,
        fault::TABLE_WALK,
    )
}

fn entry_points_at_nothing() -> Outcome {
    faults_at(
        || {
            let page = paging::map(3, 0x4000_0000, flag::ALL);
            snippet!("mov [rdi], rax")
                .run(at(page + 0x123))
                .into_unexpected()
        },
        0x4000_0123,
        fault::WRITE,
    )
}

fn physical_bits() -> u32 {
    cpu::cpuid(0x8000_0008, 0).eax & 0xff
}

/// The top page of what the guest's CPUID says that addresses reach.
fn entry_with_the_widest_address() -> Outcome {
    let top = (1 << physical_bits()) - 0x1000;
    faults_at(
        || {
            let page = paging::map(3, (1 << physical_bits()) - 0x1000, flag::ALL);
            snippet!("mov eax, [rdi]").run(at(page)).into_unexpected()
        },
        top,
        0,
    )
}

/// #PF's error code for reserved bits: P and RSVD; TCG forgets P.
fn reserved_error() -> u64 {
    if is_tcg() { 8 } else { 9 }
}

/// An address that no CPU has is the guest's #PF: it never gets as far as the nested tables.
fn entry_with_reserved_bits() -> Outcome {
    inside(|| {
        for bit in physical_bits()..52 {
            let page = paging::map(3, 1 << bit, flag::ALL);
            let read = snippet!("mov rax, [rdi]");
            let trap = faulted(&read, read.run(at(page)), vector::PF, reserved_error())?;
            check_eq!(trap.cr2, page, "CR2");
        }
        Ok(())
    })
}

/// Bits 20:13 of an entry of a large page.
fn large_entry_with_reserved_bits() -> Outcome {
    inside(|| {
        for bit in 13..21 {
            // The last of the directory: 1022 MiB, where no memory is either.
            poke(TABLES + 2 * 0x1000 + 511 * 8, 1022 << 20 | 1 << bit | 0x83);
            paging::flush();
            let read = snippet!("mov rax, [rdi]");
            faulted(
                &read,
                read.run(at(1022 << 20)),
                vector::PF,
                reserved_error(),
            )?;
        }
        Ok(())
    })
}

/// The walk sets accessed bits, which is a write.
fn tables_on_a_read_only_page() -> Outcome {
    const READ_ONLY: u64 = 4 << 20;
    let attacker = Attacker::new(&Plan::new(|| {
        poke(TABLES + 8, READ_ONLY | flag::ALL);
        snippet!("mov rax, [rdi]")
            .run(at(SECOND_HALF_TIB))
            .into_unexpected()
    }))?;
    let table = memory(4096)?;
    Mapped::new(0, *table, 4096)?.set_word(0, (TABLES + 0x2000) | flag::ALL);
    attacker
        .domain
        .map(READ_ONLY, *table, 0, 4096, access::READ)
        .must("map")?;
    attacker.start()?;
    let info = attacker.ends(Reason::NESTED_FAULT)?.info;
    check_eq!(info[0] & !0xfff, READ_ONLY, "page");
    check_eq!(
        info[1] & (fault::TABLE_WALK | fault::PRESENT),
        fault::TABLE_WALK | fault::PRESENT,
        "bits"
    );
    let seen = Mapped::new(0, *table, 4096)?.word(0);
    check_eq!(seen, (TABLES + 0x2000) | flag::ALL, "the entry");
    Ok(())
}

/// The last bytes of the address space, and the first behind it.
fn wrapped_linear_address() -> Outcome {
    inside(|| {
        let code = snippet!("mov rax, [rdi]");
        let trap = faulted(&code, code.run(at(u64::MAX - 3)), vector::PF, 0)?;
        check_eq!(trap.cr2, u64::MAX - 3, "CR2");
        // The sum of base and displacement wraps to the words of this attacker.
        let wrapped =
            snippet!("mov rax, [rdi + 0x40001000]").run(at(0u64.wrapping_sub(0x4000_0000)))?;
        check_eq!(
            wrapped.rax,
            crate::attacker::peek(0x1000),
            "the word at the sum"
        );
        Ok(())
    })
}

fn not_canonical() -> Outcome {
    inside(|| {
        for address in [
            0x8000_0000_0000,
            0x7fff_ffff_fffc + 4,
            0xffff_7fff_ffff_fff8,
        ] {
            must_fault(&snippet!("mov rax, [rdi]"), at(address), vector::GP, 0)?;
            must_fault(&snippet!("mov [rdi], rax"), at(address), vector::GP, 0)?;
        }
        Ok(())
    })
}

/// Half of it is nobody's: as any access to what is not there.
fn apic_read_straddles_its_end() -> Outcome {
    let [address, bits, _] = fatal_to(
        &pc(|| {
            apic();
            let second = paging::map(1, APIC + 0x1000, flag::ALL);
            snippet!("mov rax, [rdi]")
                .run(at(second - 4))
                .into_unexpected()
        }),
        Reason::NESTED_FAULT,
    )?;
    check!(
        (APIC + 0xffc..=APIC + 0x1000).contains(&address),
        "address {address:#x}"
    );
    check_eq!(bits, 0, "bits");
    Ok(())
}

fn apic_as_code() -> Outcome {
    faults_in(
        &pc(|| snippet!("jmp rdi").run(at(apic())).into_unexpected()),
        APIC,
        fault::FETCH,
    )
}

fn apic_as_root_table() -> Outcome {
    faults_in(
        &pc(|| snippet!("mov cr3, rdi").run(at(APIC)).into_unexpected()),
        APIC,
        fault::TABLE_WALK,
    )
}

fn apic_as_stack() -> Outcome {
    nested_fault(
        &pc(|| {
            snippet!("mov rsp, rdi", "push rax")
                .run(at(apic() + 0x88))
                .into_unexpected()
        }),
        APIC + 0x80,
        fault::WRITE,
    )
}

fn apic_as_descriptor_table() -> Outcome {
    nested_fault(
        &pc(|| {
            cpu::lgdt(&TablePointer {
                limit: 0xff,
                base: apic(),
            });
            snippet!("mov es, edi").run(at(0x80)).into_unexpected()
        }),
        APIC + 0x80,
        0,
    )
}

/// Instructions for which Plinth has no emulation; RDI is the address.
fn not_emulated(index: u64) -> Snippet {
    match index {
        0 => snippet!("fxsave64 [rdi]"),
        1 => snippet!("cmpxchg [rdi], ecx"),
        2 => snippet!("lock xadd [rdi], ecx"),
        3 => snippet!("movups xmm0, [rdi]"),
        4 => snippet!("lock cmpxchg8b [rdi]"),
        5 => snippet!("bts dword ptr [rdi], 3"),
        _ => snippet!("sidt [rdi]"),
    }
}

/// They end the domain as an access to what is not there.
fn apic_by_instructions_not_emulated() -> Outcome {
    for index in 0..7 {
        let attacker = Attacker::new(&pc(|| {
            not_emulated(ordered(0))
                .run(at(apic() + 0x80))
                .into_unexpected()
        }))?;
        attacker.order(0, index)?;
        attacker.start()?;
        let info = attacker.ends(Reason::NESTED_FAULT)?.info;
        check_eq!(info[0] & !0xf, APIC + 0x80, "address");
    }
    Ok(())
}

/// MOVS whose both operands are registers of the APIC: the divide configuration from the task priority, element by element.
fn apic_copied_onto_itself() -> Outcome {
    crate::attacker::carried_out(&pc(|| {
        let base = apic();
        snippet!("mov dword ptr [rdi], 0x1b").run(at(base + 0x80))?;
        let registers = Gprs {
            rsi: base + 0x80,
            rcx: 1,
            ..at(base + 0x3e0)
        };
        let out = snippet!("rep movsd").run(registers)?;
        check_eq!(out.rcx, 0, "RCX");
        check_eq!(out.rdi, base + 0x3e4, "RDI");
        let divider = snippet!("mov eax, [rdi]").run(at(base + 0x3e0))?.rax;
        check_eq!(divider, 0xb, "divide configuration");
        Ok(())
    }))
}

/// MOV EAX, [RDI]; the byte of the register is changed to that of ECX by the instruction before it.
fn code_rewritten_before_its_exit() -> Outcome {
    crate::attacker::carried_out(&pc(|| {
        let base = apic();
        let code = snippet!("mov byte ptr [rsi], 0x0f", "mov eax, [rdi]").copy_to(FREE);
        let registers = Gprs {
            rsi: code.end() - 1,
            ..at(base + VERSION)
        };
        for _ in 0..100 {
            poke_byte(code.end() - 1, 0x07);
            let out = code.run(registers)?;
            check_eq!(out.rax, 0, "RAX");
            check_eq!(out.rcx & 0xff, 0x14, "the version in RCX");
        }
        Ok(())
    }))
}

fn poke_byte(address: u64, byte: u8) {
    let word = address & !7;
    let shift = 8 * (address & 7);
    let seen = crate::attacker::peek(word);
    poke(word, seen & !(0xff << shift) | u64::from(byte) << shift);
}

/// The same byte, rewritten again and again by another vCPU: whichever instruction it was, it was a whole one.
fn code_rewritten_by_another_vcpu() -> Outcome {
    let mut attacker = Attacker::new(
        &pc(|| {
            let base = apic();
            let code = snippet!("mov eax, [rdi]").copy_to(FREE);
            tell(1, code.end() - 1);
            let mut seen = [0u64; 2];
            for _ in 0..3000 {
                let out = code.run(at(base + VERSION))?;
                let which = usize::from(out.rax == 0);
                check_eq!([out.rax, out.rcx][which] & 0xff, 0x14, "the version");
                check_eq!([out.rcx, out.rax][which], 0, "the other register");
                seen[which] += 1;
            }
            check!(heard(2) > 0, "the other vCPU did nothing");
            Ok(())
        })
        .with_vcpus(2),
    )?;
    attacker.add(snippet!(
        "2: mov rax, [rdi + 8]",
        "test rax, rax",
        "jz 2b",
        "3: mov byte ptr [rax], 0x0f",
        "inc qword ptr [rdi + 16]",
        "mov byte ptr [rax], 0x07",
        "pause",
        "jmp 3b",
    ))?;
    attacker.start()?;
    attacker.succeeds()
}

//! Descriptor tables, the task register and the local descriptor table.

use plinth_rt::cpu::TablePointer;
use plinth_rt::suite::must_fault;
use plinth_rt::trap::{self, vector};
use plinth_rt::{Gprs, Outcome, check, check_eq, gdt, snippet};

use crate::PAGES;

fn stored() -> (u64, u64) {
    (PAGES.get_u64(0) & 0xffff, PAGES.get_u64(2))
}

fn is(table: TablePointer) -> Outcome {
    let (limit, base) = stored();
    check_eq!(limit, u64::from(table.limit), "limit");
    check_eq!(base, { table.base }, "base");
    Ok(())
}

pub fn sgdt() -> Outcome {
    snippet!("sgdt [rdi]").run(crate::addresses())?;
    is(gdt::table())
}

pub fn sidt() -> Outcome {
    snippet!("sidt [rdi]").run(crate::addresses())?;
    is(trap::table())
}

pub fn lgdt_and_lidt_keep_values() -> Outcome {
    let other = TablePointer {
        limit: 0x1234,
        base: 0xffff_8000_1234_5678,
    };
    PAGES.set_u64(0, u64::from(other.limit));
    PAGES.set_u64(2, other.base);
    let registers = Gprs {
        rsi: PAGES.address() + 64,
        ..crate::addresses()
    };
    snippet!("sgdt [rsi]", "lgdt [rdi]", "sgdt [rdi]", "lgdt [rsi]").run(registers)?;
    is(other)?;
    snippet!("sidt [rsi]", "lidt [rdi]", "sidt [rdi]", "lidt [rsi]").run(registers)?;
    is(other)
}

pub fn lgdt_non_canonical() -> Outcome {
    if crate::left_out_for_tcg("the check of a descriptor table's address") {
        return Ok(());
    }
    PAGES.set_u64(0, 0xffff);
    PAGES.set_u64(2, 1 << 63);
    must_fault(&snippet!("lgdt [rdi]"), crate::addresses(), vector::GP, 0)?;
    must_fault(&snippet!("lidt [rdi]"), crate::addresses(), vector::GP, 0)
}

pub fn task_register() -> Outcome {
    let out = snippet!("str rax").run(Gprs::ZERO)?;
    check_eq!(out.rax, u64::from(gdt::selector::TSS), "TR");
    // The descriptor is busy now.
    let registers = Gprs {
        rax: u64::from(gdt::selector::TSS),
        ..Gprs::ZERO
    };
    must_fault(&snippet!("ltr ax"), registers, vector::GP, registers.rax)?;
    if crate::left_out_for_tcg("the check of LTR's operand for a null selector") {
        return Ok(());
    }
    must_fault(&snippet!("ltr ax"), Gprs::ZERO, vector::GP, 0)
}

pub fn local_descriptor_table() -> Outcome {
    let registers = Gprs {
        rax: u64::from(gdt::selector::LDT),
        ..Gprs::ZERO
    };
    let out = snippet!("lldt ax", "sldt rbx").run(registers)?;
    check_eq!(out.rbx, registers.rax, "LDTR");
    // The LDT is the GDT once more: its entry 2 is flat data.
    let through = snippet!("mov es, ecx", "mov edx, es");
    let out = through.run(Gprs {
        rcx: 0x14,
        ..Gprs::ZERO
    })?;
    check_eq!(out.rdx, 0x14, "ES");
    snippet!("lldt ax").run(Gprs::ZERO)?;
    let result = through.run(Gprs {
        rcx: 0x14,
        ..Gprs::ZERO
    });
    check!(result.is_err(), "ES was loaded from no table");
    let wrong = Gprs {
        rax: u64::from(gdt::selector::KERNEL_DATA),
        ..Gprs::ZERO
    };
    must_fault(&snippet!("lldt ax"), wrong, vector::GP, wrong.rax)
}

/// A TSS descriptor is busy after LTR, in memory as well.
pub fn ltr_marks_busy() -> Outcome {
    let table = gdt::table().base;
    let out = snippet!("mov rax, [rdi]").run(Gprs {
        rdi: table + u64::from(gdt::selector::TSS),
        ..Gprs::ZERO
    })?;
    check_eq!(out.rax >> 40 & 0xf, 0xb, "type");
    Ok(())
}

/// LAR and LSL tell what the descriptors say.
pub fn lar_and_lsl() -> Outcome {
    let out = snippet!("lar ebx, eax", "lsl ecx, eax").run(Gprs {
        rax: u64::from(gdt::selector::KERNEL_DATA),
        ..Gprs::ZERO
    })?;
    check_eq!(out.rbx & 0x00f0_ff00, 0x00c0_9300, "access rights");
    check_eq!(out.rcx, 0xffff_ffff, "limit");
    Ok(())
}

//! Hardware task switches. Long mode has none, so that each attempt is an exception; in protected mode each ends the domain, with the
//! selector of the task that it wanted.

use plinth_rt::abi::{Reason, VcpuState};
use plinth_rt::cpu::TablePointer;
use plinth_rt::gdt::selector;
use plinth_rt::quirks::{is_tcg, left_out_for_tcg};
use plinth_rt::suite::{faulted, must_fault};
use plinth_rt::trap::{self, vector};
use plinth_rt::{Gprs, Outcome, Snippet, check_eq, cpu, snippet};

use crate::attacker::{Attacker, FREE, Plan, at, inside, poke};

cases!("tasks":
    jump_in_long_mode,
    call_in_long_mode,
    return_to_a_nested_task_in_long_mode,
    gate_in_long_mode,
    busy_task_register_in_long_mode,
    jump,
    call,
    jump_by_a_gate,
    interrupt_by_a_gate,
    exception_by_a_gate,
    return_to_a_nested_task,
);

/// A far pointer to this selector.
fn far(selector: u64) -> Gprs {
    poke(FREE, 0);
    poke(FREE + 4, selector);
    at(FREE)
}

/// SDM vol. 2, JMP: with EFER.LMA set a TSS is #GP of the selector.
fn jump_in_long_mode() -> Outcome {
    inside(|| {
        let tss = u64::from(selector::TSS);
        must_fault(&snippet!("jmp fword ptr [rdi]"), far(tss), vector::GP, tss)
    })
}

fn call_in_long_mode() -> Outcome {
    inside(|| {
        let tss = u64::from(selector::TSS);
        must_fault(&snippet!("call fword ptr [rdi]"), far(tss), vector::GP, tss)
    })
}

/// SDM vol. 2, IRET: with EFER.LMA and RFLAGS.NT set it is #GP(0).
fn return_to_a_nested_task_in_long_mode() -> Outcome {
    inside(|| {
        let code = snippet!(
            "pushfq",
            "pop rax",
            "or rax, 0x4000",
            "push rax",
            "popfq",
            "iretq"
        );
        let trap = plinth_rt::suite::trapped(code.run(Gprs::ZERO), vector::GP)?;
        check_eq!(trap.error, 0, "error code");
        check_eq!(trap.rip(), code.end() - 2, "RIP");
        Ok(())
    })
}

/// A gate of the type 5, with a TSS that is there: long mode knows no such gate (SDM vol. 3 7.14.1).
fn gate_in_long_mode() -> Outcome {
    inside(|| {
        let gate = 0x0000_8500_0000_0000 | u64::from(selector::TSS) << 16;
        // Interrupt tables are the runtime's; this one is the attacker's, with the runtime's gate for #GP.
        let table = FREE + 0x1000;
        poke(table + 0x40 * 16, gate);
        let [low, high] = trap::default_gate(vector::GP).words();
        poke(table + 13 * 16, low);
        poke(table + 13 * 16 + 8, high);
        let code = snippet!("int 0x40");
        let tcg = is_tcg();
        cpu::lidt(&TablePointer {
            limit: 0xfff,
            base: table,
        });
        let result = code.run(Gprs::ZERO);
        cpu::lidt(&trap::table());
        let error = 0x40 << if tcg { 4 } else { 3 } | 2;
        faulted(&code, result, vector::GP, error).map(drop)
    })
}

/// The task register holds a busy TSS already.
fn busy_task_register_in_long_mode() -> Outcome {
    inside(|| {
        let tss = u64::from(selector::TSS);
        must_fault(&snippet!("ltr di"), at(tss), vector::GP, tss)
    })
}

/// The attacker's tables in protected mode.
const GDT: u64 = FREE;
const IDT: u64 = FREE + 0x100;
const TSS: u64 = FREE + 0x400;
const OTHER_TSS: u64 = FREE + 0x500;
const CODE: u64 = FREE + 0x600;
const STACK: u64 = FREE + 0x1000;

/// Selectors: the current task, another, and a gate to that.
const CURRENT: u64 = 0x18;
const OTHER: u64 = 0x20;
const GATE: u64 = 0x28;

/// Types of TSS descriptors of 32 bits: a switch needs one that is available, a return one that is busy.
const AVAILABLE: u64 = 0x9;
const BUSY: u64 = 0xb;

/// A TSS descriptor of 32 bits (SDM vol. 3 figure 9-3).
const fn descriptor(base: u64, kind: u64) -> u64 {
    0x67 | (base & 0xff_ffff) << 16 | (0x80 | kind) << 40
}

/// A task gate (SDM vol. 3 figure 9-6).
const fn gate(selector: u64) -> u64 {
    0x85 << 40 | selector << 16
}

/// Runs code of 32 bits with two tasks; it must end by a switch to the other.
///
/// TCG has no intercept of task switches: the guest makes the switch by itself there, to a task of zeroes, which ends by a triple fault.
fn switches(code: Snippet, other: u64, change: fn(&mut VcpuState)) -> Outcome {
    let attacker = Attacker::new(&Plan::new(|| Ok(())))?;
    let table = [
        0,
        0x00cf_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        descriptor(TSS, BUSY),
        descriptor(OTHER_TSS, other),
        gate(OTHER),
    ];
    for (index, entry) in (0u64..).zip(table) {
        attacker.write(GDT + index * 8, &entry.to_le_bytes())?;
    }
    for vector in [6, 0x30] {
        attacker.write(IDT + vector * 8, &gate(OTHER).to_le_bytes())?;
    }
    // The link to the task before.
    attacker.write(TSS, &OTHER.to_le_bytes())?;
    attacker.copy(CODE, &code)?;
    attacker.set(0, |state| {
        *state = VcpuState::protected_mode(CODE as u32);
        state.rsp = STACK;
        state.gdtr.base = GDT;
        state.gdtr.limit = 6 * 8 - 1;
        state.idtr.base = IDT;
        state.idtr.limit = 0x31 * 8 - 1;
        state.tr.selector = CURRENT as u16;
        state.tr.base = TSS;
        change(state);
    })?;
    attacker.start()?;
    if left_out_for_tcg("the intercept of task switches") {
        return attacker.ends(Reason::TRIPLE_FAULT).map(drop);
    }
    check_eq!(
        attacker.ends(Reason::TASK_SWITCH)?.info[0],
        OTHER,
        "selector"
    );
    Ok(())
}

fn jump() -> Outcome {
    switches(
        snippet!(".byte 0xea, 0, 0, 0, 0, 0x20, 0", "2: jmp 2b"),
        AVAILABLE,
        |_| {},
    )
}

fn call() -> Outcome {
    switches(
        snippet!(".byte 0x9a, 0, 0, 0, 0, 0x20, 0", "2: jmp 2b"),
        AVAILABLE,
        |_| {},
    )
}

fn jump_by_a_gate() -> Outcome {
    const { assert!(GATE == 0x28) };
    switches(
        snippet!(".byte 0xea, 0, 0, 0, 0, 0x28, 0", "2: jmp 2b"),
        AVAILABLE,
        |_| {},
    )
}

fn interrupt_by_a_gate() -> Outcome {
    switches(snippet!("int 0x30", "2: jmp 2b"), AVAILABLE, |_| {})
}

fn exception_by_a_gate() -> Outcome {
    switches(snippet!("ud2", "2: jmp 2b"), AVAILABLE, |_| {})
}

/// IRET with NT set goes to the task in the link.
fn return_to_a_nested_task() -> Outcome {
    switches(snippet!(".byte 0xcf", "2: jmp 2b"), BUSY, |state| {
        state.rflags |= 1 << 14;
    })
}

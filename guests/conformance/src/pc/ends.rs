//! Ends of interrupts that are told by a word in memory, as KVM has them (MSR_KVM_EOI_EN). Only where the kernel has the local APIC does it
//! offer them.

use plinth_rt::abi::call::access;
use plinth_rt::{Outcome, check, check_eq};
use plinth_testkit::kit::{Must, Owned, own, until};
use plinth_testkit::pc::{
    self as ops, Ending, Pc, again, cell, cli, counter, end, ended_by_word, ending, get, gives,
    interrupts, put, rdmsr, spin_until, sti, take, word, wrmsr,
};

use plinth_testkit::window::Mapped;

use super::{EOI, ISR, enable, interrupt_self, send, to_x2apic, x2};

tests!("pc_ends":
    by_the_word,
    by_the_register_all_the_same,
    taken_back_where_it_is_looked_at,
    taken_back_for_a_lower,
    not_offered_beside_another,
    not_offered_while_others_wait,
    not_offered_unless_wanted,
    where_no_memory_is,
    bad_value,
    not_where_memory_was,
    back_and_forth,
);

/// MSR_KVM_EOI_EN.
const MSR: u32 = 0x4b56_4d04;
const ENABLED: u64 = 1;
const WORD: u64 = word(0);
const OFFERED: u64 = 1;
const PAGE: u64 = 4096;

/// The script ends interrupts itself.
const fn by_script() -> ops::Op {
    put(ending(0), Ending::Script as u64)
}

fn by_the_word() -> Outcome {
    let pc = gives(&[&[
        to_x2apic(),
        enable(),
        rdmsr(MSR).gives(0),
        wrmsr(MSR, WORD | ENABLED),
        rdmsr(MSR).gives(WORD | ENABLED),
        by_script(),
        sti(),
        get(WORD).gives(0),
        interrupt_self(0x41),
        get(WORD).gives(OFFERED),
        put(WORD, 0),
        // Nothing is in service any more.
        interrupt_self(0x31),
        get(WORD).gives(OFFERED),
        put(WORD, 0),
        rdmsr(x2(ISR + 1)).gives(0),
        rdmsr(x2(ISR + 2)).gives(0),
        end(),
    ]])?;
    pc.took(0, &[0x41, 0x31])
}

/// Who writes the register needs no word, and what was offered is void.
fn by_the_register_all_the_same() -> Outcome {
    let pc = gives(&[&[
        to_x2apic(),
        enable(),
        wrmsr(MSR, WORD | ENABLED),
        by_script(),
        sti(),
        interrupt_self(0x41),
        wrmsr(x2(EOI), 0),
        get(WORD).gives(0),
        rdmsr(x2(ISR + 2)).gives(0),
        interrupt_self(0x31),
        get(WORD).gives(OFFERED),
        end(),
    ]])?;
    pc.took(0, &[0x41, 0x31])
}

fn taken_back_where_it_is_looked_at() -> Outcome {
    gives(&[&[
        to_x2apic(),
        enable(),
        wrmsr(MSR, WORD | ENABLED),
        by_script(),
        sti(),
        interrupt_self(0x41),
        rdmsr(x2(ISR + 2)).gives(1 << 1),
        get(WORD).gives(0),
        rdmsr(x2(ISR + 2)).gives(1 << 1),
        wrmsr(x2(EOI), 0),
        rdmsr(x2(ISR + 2)).gives(0),
        end(),
    ]])
    .map(drop)
}

/// Its end has to be told, for another waits for it.
fn taken_back_for_a_lower() -> Outcome {
    let pc = gives(&[&[
        to_x2apic(),
        enable(),
        wrmsr(MSR, WORD | ENABLED),
        by_script(),
        sti(),
        interrupt_self(0x61),
        get(WORD).gives(OFFERED),
        interrupt_self(0x41),
        get(WORD).gives(0),
        get(interrupts(0)).gives(1),
        wrmsr(x2(EOI), 0),
        get(interrupts(0)).gives(2),
        get(WORD).gives(OFFERED),
        end(),
    ]])?;
    pc.took(0, &[0x61, 0x41])
}

fn not_offered_beside_another() -> Outcome {
    let pc = gives(&[&[
        to_x2apic(),
        enable(),
        wrmsr(MSR, WORD | ENABLED),
        by_script(),
        sti(),
        interrupt_self(0x41),
        get(WORD).gives(OFFERED),
        interrupt_self(0x61),
        get(interrupts(0)).gives(2),
        get(WORD).gives(0),
        wrmsr(x2(EOI), 0),
        rdmsr(x2(ISR + 3)).gives(0),
        rdmsr(x2(ISR + 2)).gives(1 << 1),
        get(WORD).gives(0),
        wrmsr(x2(EOI), 0),
        rdmsr(x2(ISR + 2)).gives(0),
        end(),
    ]])?;
    pc.took(0, &[0x41, 0x61])
}

fn not_offered_while_others_wait() -> Outcome {
    let pc = gives(&[&[
        to_x2apic(),
        enable(),
        wrmsr(MSR, WORD | ENABLED),
        by_script(),
        cli(),
        interrupt_self(0x41),
        interrupt_self(0x61),
        sti(),
        get(interrupts(0)).gives(1),
        get(WORD).gives(0),
        wrmsr(x2(EOI), 0),
        get(interrupts(0)).gives(2),
        get(WORD).gives(OFFERED),
        end(),
    ]])?;
    pc.took(0, &[0x61, 0x41])
}

fn not_offered_unless_wanted() -> Outcome {
    gives(&[&[
        to_x2apic(),
        enable(),
        wrmsr(MSR, WORD),
        by_script(),
        sti(),
        interrupt_self(0x41),
        get(WORD).gives(0),
        wrmsr(x2(EOI), 0),
        wrmsr(MSR, WORD | ENABLED),
        interrupt_self(0x41),
        get(WORD).gives(OFFERED),
        // What was offered is taken back with it.
        wrmsr(MSR, 0),
        get(WORD).gives(0),
        rdmsr(x2(ISR + 2)).gives(1 << 1),
        end(),
    ]])
    .map(drop)
}

/// All ends are told then.
fn where_no_memory_is() -> Outcome {
    const NOWHERE: u64 = 1 << 40;
    let pc = gives(&[&[
        to_x2apic(),
        enable(),
        wrmsr(MSR, NOWHERE | ENABLED),
        sti(),
        interrupt_self(0x41),
        interrupt_self(0x42),
        rdmsr(x2(ISR + 2)).gives(0),
        wrmsr(MSR, !2),
        interrupt_self(0x43),
        end(),
    ]])?;
    pc.took(0, &[0x41, 0x42, 0x43])
}

fn bad_value() -> Outcome {
    gives(&[&[
        wrmsr(MSR, WORD | ENABLED),
        wrmsr(MSR, WORD | 2 | ENABLED).faults(),
        rdmsr(MSR).gives(WORD | ENABLED),
        end(),
    ]])
    .map(drop)
}

/// Once a page is unmapped nothing is written there, however many interrupts come.
fn not_where_memory_was() -> Outcome {
    const PLACE: u64 = 4 << 20;
    const ROUNDS: usize = 20;
    let memory = own().create_memory(PAGE).must("memory").map(Owned)?;
    let seen = Mapped::new(0, *memory, PAGE)?;
    let pc = Pc::running(&[&[
        to_x2apic(),
        enable(),
        wrmsr(MSR, PLACE | ENABLED),
        sti(),
        interrupt_self(0x41),
        again(1, u64::MAX),
    ]])?;
    let more = |count: u64| {
        let before = pc.word(counter(0, 0x41))?;
        until("interrupts", || {
            Ok(pc.word(counter(0, 0x41))? >= before + count)
        })
    };
    let mut offers = 0;
    for _ in 0..ROUNDS {
        pc.domain
            .map(PLACE, *memory, 0, PAGE, access::READ | access::WRITE)
            .must("map")?;
        more(50)?;
        pc.domain.unmap(PLACE, PAGE).must("unmap")?;
        // What the last one left.
        offers += seen.word(0);
        seen.set_word(0, 0);
        more(50)?;
        check_eq!(seen.word(0), 0, "the word after it was unmapped");
    }
    check!(offers > 0, "none was offered when the page was taken away");
    Ok(())
}

/// Two that wake each other, and end what they are given as Linux does: no interrupt is lost, and most ends are no exit.
fn back_and_forth() -> Outcome {
    const ROUNDS: u64 = 2000;
    let first = [
        to_x2apic(),
        enable(),
        wrmsr(MSR, word(0) | ENABLED),
        put(ending(0), Ending::Word as u64),
        spin_until(cell(8), 1),
        send(1, 0x41),
        take(counter(0, 0x51), cell(0)),
        again(2, ROUNDS),
        end(),
    ];
    let second = [
        to_x2apic(),
        enable(),
        wrmsr(MSR, word(1) | ENABLED),
        put(ending(1), Ending::Word as u64),
        put(cell(8), 1),
        take(counter(1, 0x41), cell(1)),
        send(0, 0x51),
        again(2, u64::MAX),
    ];
    let pc = Pc::running(&[&first, &second])?;
    pc.ends_with(0)?;
    for (vcpu, vector) in [(0, 0x51), (1, 0x41)] {
        check_eq!(pc.word(counter(vcpu, vector))?, ROUNDS, "interrupts");
        let ended = pc.word(ended_by_word(vcpu))?;
        check!(
            ended > ROUNDS / 2,
            "{ended} of {ROUNDS} were ended by the word"
        );
    }
    Ok(())
}

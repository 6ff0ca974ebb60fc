//! Ends of interrupts that are told by a word in memory, as KVM has them (MSR_KVM_EOI_EN). Only where the kernel has the local APIC does it
//! offer them.

use plinth_rt::abi::call::access;
use plinth_rt::{Outcome, Why, check, check_eq};
use plinth_testkit::kit::{Must, Owned, own, until};
use plinth_testkit::pc::{
    self as ops, Ending, Pc, again, cli, counter, end, ended_by_word, ending, get, gives,
    interrupts, put, rdmsr, sti, word, wrmsr,
};
use plinth_testkit::window::Mapped;

use super::{EOI, ISR, KVM_EOI, cpus, enable, interrupt_self, joined, to_x2apic, x2};

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

const ENABLED: u64 = 1;
const WORD: u64 = word(0);
const OFFERED: u64 = 1;
const PAGE: u64 = 4096;

/// The script ends interrupts itself.
const fn by_script() -> ops::Op {
    put(ending(0), Ending::Script as u64)
}

/// Carries out a script of a vCPU that may end interrupts by its word, and does so itself; interrupts are on.
fn offered(rest: &[ops::Op]) -> Result<Pc, Why> {
    let first = [
        to_x2apic(),
        enable(),
        wrmsr(KVM_EOI, WORD | ENABLED),
        by_script(),
        sti(),
    ];
    gives(&[&joined(&[&first, rest])])
}

fn by_the_word() -> Outcome {
    let pc = gives(&[&[
        to_x2apic(),
        enable(),
        rdmsr(KVM_EOI).gives(0),
        wrmsr(KVM_EOI, WORD | ENABLED),
        rdmsr(KVM_EOI).gives(WORD | ENABLED),
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
    let pc = offered(&[
        interrupt_self(0x41),
        wrmsr(x2(EOI), 0),
        get(WORD).gives(0),
        rdmsr(x2(ISR + 2)).gives(0),
        interrupt_self(0x31),
        get(WORD).gives(OFFERED),
        end(),
    ])?;
    pc.took(0, &[0x41, 0x31])
}

fn taken_back_where_it_is_looked_at() -> Outcome {
    offered(&[
        interrupt_self(0x41),
        rdmsr(x2(ISR + 2)).gives(1 << 1),
        get(WORD).gives(0),
        rdmsr(x2(ISR + 2)).gives(1 << 1),
        wrmsr(x2(EOI), 0),
        rdmsr(x2(ISR + 2)).gives(0),
        end(),
    ])
    .map(drop)
}

/// Its end has to be told, for another waits for it.
fn taken_back_for_a_lower() -> Outcome {
    let pc = offered(&[
        interrupt_self(0x61),
        get(WORD).gives(OFFERED),
        interrupt_self(0x41),
        get(WORD).gives(0),
        get(interrupts(0)).gives(1),
        wrmsr(x2(EOI), 0),
        get(interrupts(0)).gives(2),
        get(WORD).gives(OFFERED),
        end(),
    ])?;
    pc.took(0, &[0x61, 0x41])
}

fn not_offered_beside_another() -> Outcome {
    let pc = offered(&[
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
    ])?;
    pc.took(0, &[0x41, 0x61])
}

fn not_offered_while_others_wait() -> Outcome {
    let pc = offered(&[
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
    ])?;
    pc.took(0, &[0x61, 0x41])
}

fn not_offered_unless_wanted() -> Outcome {
    gives(&[&[
        to_x2apic(),
        enable(),
        wrmsr(KVM_EOI, WORD),
        by_script(),
        sti(),
        interrupt_self(0x41),
        get(WORD).gives(0),
        wrmsr(x2(EOI), 0),
        wrmsr(KVM_EOI, WORD | ENABLED),
        interrupt_self(0x41),
        get(WORD).gives(OFFERED),
        // What was offered is taken back with it.
        wrmsr(KVM_EOI, 0),
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
        wrmsr(KVM_EOI, NOWHERE | ENABLED),
        sti(),
        interrupt_self(0x41),
        interrupt_self(0x42),
        rdmsr(x2(ISR + 2)).gives(0),
        wrmsr(KVM_EOI, !2),
        interrupt_self(0x43),
        end(),
    ]])?;
    pc.took(0, &[0x41, 0x42, 0x43])
}

fn bad_value() -> Outcome {
    gives(&[&[
        wrmsr(KVM_EOI, WORD | ENABLED),
        wrmsr(KVM_EOI, WORD | 2 | ENABLED).faults(),
        rdmsr(KVM_EOI).gives(WORD | ENABLED),
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
        wrmsr(KVM_EOI, PLACE | ENABLED),
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
    let by_word = |vcpu: usize| {
        [
            wrmsr(KVM_EOI, word(vcpu) | ENABLED),
            put(ending(vcpu), Ending::Word as u64),
        ]
    };
    let pc = cpus::back_and_forth(ROUNDS, [&by_word(0), &by_word(1)])?;
    for vcpu in [0, 1] {
        let ended = pc.word(ended_by_word(vcpu))?;
        check!(
            ended > ROUNDS / 2,
            "{ended} of {ROUNDS} were ended by the word"
        );
    }
    Ok(())
}

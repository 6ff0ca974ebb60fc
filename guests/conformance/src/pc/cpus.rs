//! What the vCPUs of a PC send each other: interrupts, NMIs, INIT and start-up messages.

use plinth_rt::abi::Reason;
use plinth_rt::{Outcome, Snippet, Why, check_eq, snippet};
use plinth_testkit::pc::{
    self as ops, Ending, NMI_VECTOR, Op, Pc, REAL, REAL_2, again, cell, counter, delay, end,
    ending, get, gives, halt_until, idle, interrupts, put, rdmsr, spin, spin_until, sti, take,
    write, wrmsr,
};

use super::{
    APIC_BASE, DFR, ESR, ICR, ICR_HIGH, IRR, LDR, LVT_TIMER, MASKED, TPR, command, enable,
    enable_x1, joined, send, to_x2apic, until_blocked, x1, x2,
};
use crate::kit::{MS, Must, sleep};

tests!("pc_cpus":
    interrupt_while_it_spins,
    interrupt_while_it_halts,
    interrupts_back_and_forth,
    interrupts_to_nobody,
    interrupt_of_one_that_is_disabled,
    broadcasts,
    broadcast_by_identifier,
    logical_clusters,
    logical_flat,
    logical_cluster_model,
    lowest_priority_goes_to_one,
    from_xapic_to_x2apic,
    nmi_while_it_spins,
    nmi_while_it_halts,
    nmis_at_any_moment,
    nmis_to_all_others,
    start_up,
    start_up_without_init,
    start_up_in_xapic_mode,
    second_start_up_is_ignored,
    init_stops_it,
    init_resets,
    init_keeps_the_mode,
    init_while_it_halts,
    init_of_the_first,
    start_up_of_the_first_is_ignored,
);

const NMI: u64 = 0x400;
const INIT: u64 = 0x500;
const START_UP: u64 = 0x600;
/// The shorthands.
const ALL: u64 = 2 << 18;
const OTHERS: u64 = 3 << 18;
const LOGICAL: u64 = 1 << 11;

/// The page's number, which a start-up message has for its vector.
const fn page(address: u64) -> u64 {
    address >> 12
}

/// The other says that it is ready by this cell.
const fn ready(vcpu: u64) -> u64 {
    cell(8 + vcpu)
}

fn interrupt_while_it_spins() -> Outcome {
    let first = [
        to_x2apic(),
        enable(),
        spin_until(ready(1), 1),
        send(1, 0x41),
        spin_until(ready(1), 2),
        send(1, 0x42),
        spin_until(ready(1), 3),
        end(),
    ];
    let second = [
        to_x2apic(),
        enable(),
        sti(),
        put(ready(1), 1),
        spin_until(counter(1, 0x41), 1),
        put(ready(1), 2),
        spin_until(counter(1, 0x42), 1),
        put(ready(1), 3),
        spin(),
    ];
    let pc = gives(&[&first, &second])?;
    pc.took(0, &[])?;
    pc.took(1, &[0x41, 0x42])
}

fn interrupt_while_it_halts() -> Outcome {
    let first = [
        to_x2apic(),
        enable(),
        spin_until(cell(0), 1),
        send(1, 0x41),
        halt_until(counter(0, 0x51), 1),
        end(),
    ];
    let second = [
        to_x2apic(),
        enable(),
        put(ready(1), 1),
        halt_until(counter(1, 0x41), 1),
        send(0, 0x51),
        idle(),
    ];
    let pc = Pc::running(&[&first, &second])?;
    pc.until_word(ready(1), 1)?;
    until_blocked(&pc, 1)?;
    pc.set_word(cell(0), 1)?;
    pc.ends_with(0)?;
    pc.took(0, &[0x51])?;
    pc.took(1, &[0x41])
}

/// Each halts until the other's has come: none may be lost between the look and the halt.
fn interrupts_back_and_forth() -> Outcome {
    back_and_forth(2000, [&[], &[]]).map(drop)
}

/// So many rounds of two vCPUs, which have done these operations before.
pub(super) fn back_and_forth(rounds: u64, before: [&[Op]; 2]) -> Result<Pc, Why> {
    let [before_first, before_second] = before;
    let first = [
        spin_until(ready(1), 1),
        send(1, 0x41),
        take(counter(0, 0x51), cell(0)),
        again(2, rounds),
    ];
    let second = [
        put(ready(1), 1),
        take(counter(1, 0x41), cell(1)),
        send(0, 0x51),
        again(2, u64::MAX),
    ];
    let enabled = [to_x2apic(), enable()];
    let pc = Pc::running(&[
        &joined(&[&enabled, before_first, &first]),
        &joined(&[&enabled, before_second, &second]),
    ])?;
    pc.ends_with(0)?;
    check_eq!(
        pc.word(counter(0, 0x51))?,
        rounds,
        "interrupts of the first"
    );
    check_eq!(
        pc.word(counter(1, 0x41))?,
        rounds,
        "interrupts of the second"
    );
    Ok(pc)
}

/// No error: there is no bus on which it could be noticed.
fn interrupts_to_nobody() -> Outcome {
    gives(&[&[
        to_x2apic(),
        enable(),
        sti(),
        send(1, 0x41),
        send(255, 0x41),
        send(0x8000_0000, 0x41),
        send(1, NMI),
        send(1, INIT),
        send(1, START_UP | 6),
        send(0, OTHERS | 0x41),
        wrmsr(x2(ESR), 0),
        rdmsr(x2(ESR)).gives(0),
        get(interrupts(0)).gives(0),
        end(),
    ]])
    .map(drop)
}

/// One that software disabled takes no interrupts, but NMIs; one that APIC_BASE disables is reached by nothing.
fn interrupt_of_one_that_is_disabled() -> Outcome {
    let first = [
        to_x2apic(),
        enable(),
        spin_until(ready(1), 1),
        send(1, 0x41),
        send(1, NMI),
        spin_until(counter(1, NMI_VECTOR), 1),
        put(cell(0), 1),
        spin_until(ready(1), 2),
        send(1, NMI),
        send(1, INIT),
        delay(200_000),
        put(cell(0), 2),
        spin_until(ready(1), 3),
        end(),
    ];
    let second = [
        to_x2apic(),
        sti(),
        put(ready(1), 1),
        spin_until(cell(0), 1),
        get(interrupts(1)).gives(0),
        rdmsr(x2(IRR + 2)).gives(0),
        wrmsr(APIC_BASE, 0xfee0_0000),
        put(ready(1), 2),
        spin_until(cell(0), 2),
        get(counter(1, NMI_VECTOR)).gives(1),
        put(ready(1), 3),
        spin(),
    ];
    gives(&[&first, &second]).map(drop)
}

/// A vCPU that is ready for so many interrupts and then idles.
fn taker(vcpu: u64, count: u64) -> [Op; 7] {
    [
        to_x2apic(),
        enable(),
        put(ready(vcpu), 1),
        sti(),
        spin_until(interrupts(vcpu as usize), count),
        put(ready(vcpu), 2),
        idle(),
    ]
}

fn broadcasts() -> Outcome {
    let first = [
        to_x2apic(),
        enable(),
        sti(),
        spin_until(ready(1), 1),
        spin_until(ready(2), 1),
        send(0, OTHERS | 0x41),
        get(interrupts(0)).gives(0),
        spin_until(counter(1, 0x41), 1),
        spin_until(counter(2, 0x41), 1),
        send(0, ALL | 0x42),
        get(counter(0, 0x42)).gives(1),
        spin_until(ready(1), 2),
        spin_until(ready(2), 2),
        end(),
    ];
    let pc = gives(&[&first, &taker(1, 2), &taker(2, 2)])?;
    pc.took(0, &[0x42])?;
    pc.took(1, &[0x41, 0x42])?;
    pc.took(2, &[0x41, 0x42])
}

/// All ones are everybody, physical and logical (SDM vol. 3 11.12.9).
fn broadcast_by_identifier() -> Outcome {
    let first = [
        to_x2apic(),
        enable(),
        sti(),
        spin_until(ready(1), 1),
        send(u32::MAX, 0x41),
        get(counter(0, 0x41)).gives(1),
        spin_until(counter(1, 0x41), 1),
        send(u32::MAX, LOGICAL | 0x42),
        get(counter(0, 0x42)).gives(1),
        spin_until(ready(1), 2),
        end(),
    ];
    let pc = gives(&[&first, &taker(1, 2)])?;
    pc.took(1, &[0x41, 0x42])
}

/// SDM vol. 3 11.12.10.2.
fn logical_clusters() -> Outcome {
    let first = [
        to_x2apic(),
        enable(),
        sti(),
        spin_until(ready(1), 1),
        spin_until(ready(2), 1),
        // The bits of 1 and 2 of cluster 0; nobody of cluster 1.
        send(0b110, LOGICAL | 0x41),
        send(0x1_0007, LOGICAL | 0x4f),
        spin_until(counter(1, 0x41), 1),
        spin_until(counter(2, 0x41), 1),
        send(0b101, LOGICAL | 0x42),
        get(counter(0, 0x42)).gives(1),
        spin_until(counter(2, 0x42), 1),
        send(0b010, LOGICAL | 0x43),
        spin_until(ready(1), 2),
        spin_until(ready(2), 2),
        end(),
    ];
    let pc = gives(&[&first, &taker(1, 2), &taker(2, 2)])?;
    pc.took(0, &[0x42])?;
    pc.took(1, &[0x41, 0x43])?;
    pc.took(2, &[0x41, 0x42])
}

/// In xAPIC mode, with this logical identifier in this model, ready for so many interrupts.
fn taker_x1(vcpu: u64, logical: u64, model: u64, count: u64) -> [Op; 9] {
    [
        put(ending(vcpu as usize), Ending::Memory as u64),
        enable_x1(),
        write(4, x1(LDR), logical << 24),
        write(4, x1(DFR), model),
        put(ready(vcpu), 1),
        sti(),
        spin_until(interrupts(vcpu as usize), count),
        put(ready(vcpu), 2),
        idle(),
    ]
}

/// Writes both halves of the interrupt command register.
const fn send_x1(destination: u64, low: u64) -> [Op; 2] {
    [
        write(4, x1(ICR_HIGH), destination << 24),
        write(4, x1(ICR), 0x4000 | low),
    ]
}

/// SDM vol. 3 11.6.2.2.
fn logical_flat() -> Outcome {
    let [a, b] = send_x1(0b0110, LOGICAL | 0x41);
    let [c, d] = send_x1(0b1001, LOGICAL | 0x42);
    let [e, f] = send_x1(0xff, LOGICAL | 0x43);
    let [g, h] = send_x1(2, 0x44);
    let first = [
        put(ending(0), Ending::Memory as u64),
        enable_x1(),
        write(4, x1(LDR), 1 << 24),
        ops::read(4, x1(LDR)).gives(1 << 24),
        ops::read(4, x1(DFR)).gives(0xffff_ffff),
        sti(),
        spin_until(ready(1), 1),
        spin_until(ready(2), 1),
        a,
        b,
        spin_until(counter(1, 0x41), 1),
        spin_until(counter(2, 0x41), 1),
        c,
        d,
        get(counter(0, 0x42)).gives(1),
        e,
        f,
        get(counter(0, 0x43)).gives(1),
        spin_until(counter(1, 0x43), 1),
        spin_until(counter(2, 0x43), 1),
        g,
        h,
        spin_until(ready(2), 2),
        end(),
    ];
    let flat = 0xffff_ffff;
    let pc = gives(&[&first, &taker_x1(1, 2, flat, 2), &taker_x1(2, 4, flat, 3)])?;
    pc.took(0, &[0x42, 0x43])?;
    pc.took(1, &[0x41, 0x43])?;
    pc.took(2, &[0x41, 0x43, 0x44])
}

/// Four bits of cluster, four of members (SDM vol. 3 11.6.2.2).
fn logical_cluster_model() -> Outcome {
    let [a, b] = send_x1(0x1f, LOGICAL | 0x41);
    let [c, d] = send_x1(0x21, LOGICAL | 0x42);
    let [e, f] = send_x1(0x12, LOGICAL | 0x4f);
    let first = [
        put(ending(0), Ending::Memory as u64),
        enable_x1(),
        write(4, x1(DFR), 0x0fff_ffff),
        ops::read(4, x1(DFR)).gives(0x0fff_ffff),
        write(4, x1(LDR), 0x14 << 24),
        sti(),
        spin_until(ready(1), 1),
        spin_until(ready(2), 1),
        a,
        b,
        get(counter(0, 0x41)).gives(1),
        spin_until(counter(1, 0x41), 1),
        // A member of the first cluster that is not there.
        e,
        f,
        c,
        d,
        spin_until(ready(1), 2),
        spin_until(ready(2), 2),
        end(),
    ];
    let model = 0x0fff_ffff;
    let pc = gives(&[
        &first,
        &taker_x1(1, 0x11, model, 1),
        &taker_x1(2, 0x21, model, 1),
    ])?;
    pc.took(0, &[0x41])?;
    pc.took(1, &[0x41])?;
    pc.took(2, &[0x42])
}

fn lowest_priority_goes_to_one() -> Outcome {
    const MESSAGES: u64 = 30;
    let first = [
        to_x2apic(),
        enable(),
        spin_until(ready(1), 1),
        spin_until(ready(2), 1),
        send(0b110, LOGICAL | 0x141),
        // It may not come before the one before it was taken: two that are pending are one.
        delay(50_000),
        spin_until(cell(0), 1),
        put(cell(0), 0),
        again(4, MESSAGES),
        end(),
    ];
    // Each says that one has come.
    let other = |vcpu: u64| {
        [
            to_x2apic(),
            enable(),
            put(ready(vcpu), 1),
            take(counter(vcpu as usize, 0x41), cell(vcpu)),
            put(cell(0), 1),
            again(2, u64::MAX),
        ]
    };
    let pc = Pc::running(&[&first, &other(1), &other(2)])?;
    pc.ends_with(0)?;
    let (one, two) = (pc.word(counter(1, 0x41))?, pc.word(counter(2, 0x41))?);
    check_eq!(one + two, MESSAGES, "interrupts");
    Ok(())
}

fn from_xapic_to_x2apic() -> Outcome {
    let [a, b] = send_x1(1, 0x41);
    let [c, d] = send_x1(0xff, 0x42);
    let first = [
        put(ending(0), Ending::Memory as u64),
        enable_x1(),
        sti(),
        spin_until(ready(1), 1),
        a,
        b,
        spin_until(counter(1, 0x41), 1),
        c,
        d,
        get(counter(0, 0x42)).gives(1),
        spin_until(ready(1), 2),
        end(),
    ];
    let pc = gives(&[&first, &taker(1, 2)])?;
    pc.took(1, &[0x41, 0x42])
}

/// Whatever RFLAGS.IF, TPR and the enabling by software say.
fn nmi_while_it_spins() -> Outcome {
    let first = [
        to_x2apic(),
        spin_until(ready(1), 1),
        send(1, NMI),
        spin_until(counter(1, NMI_VECTOR), 1),
        send(1, NMI),
        spin_until(counter(1, NMI_VECTOR), 2),
        end(),
    ];
    let second = [to_x2apic(), wrmsr(x2(TPR), 0xff), put(ready(1), 1), spin()];
    gives(&[&first, &second]).map(drop)
}

fn nmi_while_it_halts() -> Outcome {
    let first = [
        to_x2apic(),
        spin_until(cell(0), 1),
        send(1, NMI),
        spin_until(ready(1), 2),
        end(),
    ];
    let second = [put(ready(1), 1), ops::sti_hlt(), put(ready(1), 2), spin()];
    let pc = Pc::running(&[&first, &second])?;
    pc.until_word(ready(1), 1)?;
    until_blocked(&pc, 1)?;
    pc.set_word(cell(0), 1)?;
    pc.ends_with(0)?;
    pc.gave(1, &second)?;
    check_eq!(pc.word(counter(1, NMI_VECTOR))?, 1, "NMIs");
    Ok(())
}

/// Between STI and HLT, too, where some CPUs take none.
fn nmis_at_any_moment() -> Outcome {
    const NMIS: usize = 30;
    const CHILDREN: usize = 20;
    let first: [Op; 2 * NMIS + 3] = core::array::from_fn(|index| match index {
        0 => to_x2apic(),
        1 => spin_until(ready(1), 1),
        _ if index == 2 * NMIS + 2 => end(),
        _ if index % 2 == 0 => send(1, NMI),
        _ => spin_until(counter(1, NMI_VECTOR), (index / 2) as u64),
    });
    let second = [put(ready(1), 1), idle()];
    for _ in 0..CHILDREN {
        let pc = Pc::running(&[&first, &second])?;
        pc.ends_with(0)?;
        check_eq!(pc.word(counter(1, NMI_VECTOR))?, NMIS as u64, "NMIs");
    }
    Ok(())
}

fn nmis_to_all_others() -> Outcome {
    let first = [
        to_x2apic(),
        spin_until(ready(1), 1),
        spin_until(ready(2), 1),
        send(0, OTHERS | NMI),
        spin_until(counter(1, NMI_VECTOR), 1),
        spin_until(counter(2, NMI_VECTOR), 1),
        get(counter(0, NMI_VECTOR)).gives(0),
        end(),
    ];
    let other = |vcpu| [put(ready(vcpu), 1), spin()];
    gives(&[&first, &other(1), &other(2)]).map(drop)
}

/// What the code of start-up messages tells: at cell 0 a magic number, at 1 CS, at 2 CR0, at 3 the APIC's identifier by CPUID; then it
/// counts cell 4 up. It uses no stack.
fn starter() -> Snippet {
    snippet!(
        ".code16",
        "mov [0x2008], cs",
        "mov eax, cr0",
        "mov [0x2010], eax",
        "mov eax, 1",
        "xor ecx, ecx",
        "cpuid",
        "shr ebx, 24",
        "mov [0x2018], ebx",
        "mov dword ptr [0x2000], 0x1234",
        "2: inc dword ptr [0x2020]",
        "jmp 2b",
        ".code64"
    )
}

/// The same for the other page: it counts cell 5 up.
fn other_starter() -> Snippet {
    snippet!(
        ".code16",
        "mov eax, cr0",
        "mov [0x2010], eax",
        "2: inc dword ptr [0x2028]",
        "jmp 2b",
        ".code64"
    )
}

/// A PC whose first vCPU has a script, and whose second is as after reset.
fn started_with_a_second(script: &[Op]) -> Result<Pc, Why> {
    let mut pc = Pc::new(&Pc::plan(1))?;
    pc.add_vcpu()?;
    pc.put_code(REAL, &starter())?;
    pc.put_code(REAL_2, &other_starter())?;
    pc.load(0, script)?;
    pc.start()?;
    Ok(pc)
}

/// The same, which ends itself.
fn with_a_second(script: &[Op]) -> Result<Pc, Why> {
    let pc = started_with_a_second(script)?;
    pc.ends_with(0)?;
    pc.gave(0, script)?;
    Ok(pc)
}

const MAGIC: u64 = cell(0);
const CR0: u64 = cell(2);
const COUNT: u64 = cell(4);
const OTHER_COUNT: u64 = cell(5);

fn started(pc: &Pc, cr0: u64) -> Outcome {
    check_eq!(pc.word(MAGIC)?, 0x1234, "the word that it sets");
    check_eq!(pc.word(cell(1))?, REAL >> 4, "CS");
    check_eq!(pc.word(CR0)?, cr0, "CR0");
    check_eq!(pc.word(cell(3))?, 1, "identifier");
    Ok(())
}

/// CR0 after power-up (SDM vol. 3 table 11-1).
const CR0_RESET: u64 = 0x6000_0010;

/// As MultiProcessor Specification B.4 has it.
fn start_up() -> Outcome {
    let pc = with_a_second(&[
        to_x2apic(),
        send(1, 0xc000 | INIT),
        wrmsr(x2(ICR), 1 << 32 | 0x8000 | INIT),
        delay(10_000),
        send(1, START_UP | page(REAL)),
        delay(10_000),
        send(1, START_UP | page(REAL)),
        spin_until(COUNT, 100),
        end(),
    ])?;
    started(&pc, CR0_RESET)
}

/// After power-up it waits for the message.
fn start_up_without_init() -> Outcome {
    let pc = with_a_second(&[
        to_x2apic(),
        get(MAGIC).gives(0),
        send(1, START_UP | page(REAL)),
        spin_until(COUNT, 1),
        end(),
    ])?;
    started(&pc, CR0_RESET)
}

fn start_up_in_xapic_mode() -> Outcome {
    let [a, b] = send_x1(1, 0x8000 | INIT);
    let [_, c] = send_x1(1, START_UP | page(REAL));
    let pc = with_a_second(&[a, b, c, spin_until(COUNT, 1), end()])?;
    started(&pc, CR0_RESET)
}

/// A vCPU that runs ignores it; it does not start it after a later INIT either.
fn second_start_up_is_ignored() -> Outcome {
    let script = [
        to_x2apic(),
        send(1, START_UP | page(REAL)),
        spin_until(COUNT, 1),
        send(1, START_UP | page(REAL_2)),
        // It may be in the middle of adding one.
        put(COUNT, 0),
        delay(300_000),
        put(COUNT, 0),
        spin_until(COUNT, 100),
        get(OTHER_COUNT).gives(0),
        send(1, INIT),
        spin_until(cell(6), 1),
        get(OTHER_COUNT).gives(0),
        send(1, START_UP | page(REAL_2)),
        spin_until(OTHER_COUNT, 1),
        end(),
    ];
    let pc = started_with_a_second(&script)?;
    pc.until_done(0, 9)?;
    until_blocked(&pc, 1)?;
    pc.set_word(cell(6), 1)?;
    pc.ends_with(0)?;
    pc.gave(0, &script)
}

fn init_stops_it() -> Outcome {
    let script = [
        to_x2apic(),
        send(1, START_UP | page(REAL)),
        spin_until(COUNT, 1),
        send(1, INIT),
        spin_until(cell(6), 1),
        put(MAGIC, 0),
        // And again.
        send(1, START_UP | page(REAL)),
        spin_until(MAGIC, 0x1234),
        end(),
    ];
    let pc = started_with_a_second(&script)?;
    pc.until_done(0, 3)?;
    until_blocked(&pc, 1)?;
    let count = pc.word(COUNT)?;
    sleep(3 * MS);
    check_eq!(pc.word(COUNT)?, count, "a counter after INIT");
    pc.set_word(cell(6), 1)?;
    pc.ends_with(0)
}

/// What it had becomes what it is after INIT; caching stays as it was (SDM vol. 3 table 11-1).
fn init_resets() -> Outcome {
    let first = [
        to_x2apic(),
        spin_until(ready(1), 1),
        send(1, INIT),
        send(1, START_UP | page(REAL)),
        spin_until(MAGIC, 0x1234),
        end(),
    ];
    let second = [to_x2apic(), enable(), sti(), put(ready(1), 1), idle()];
    let pc = Pc::new(&Pc::plan(2))?;
    pc.put_code(REAL, &starter())?;
    pc.load(0, &first)?;
    pc.load(1, &second)?;
    let before = pc.state(1)?;
    pc.start()?;
    pc.ends_with(0)?;
    const CACHING: u64 = 3 << 29;
    started(&pc, before.cr0 & CACHING | 0x10)?;
    let state = pc.state(1)?;
    check_eq!(state.efer, 0, "EFER");
    check_eq!(state.cr3, 0, "CR3");
    check_eq!(state.cr4, 0, "CR4");
    check_eq!(state.rsp, 0, "RSP");
    check_eq!(state.r15, 0, "R15");
    check_eq!(state.rflags & 0x200, 0, "RFLAGS.IF");
    check_eq!(state.idtr.base, 0, "IDTR's base");
    Ok(())
}

/// Registers of the local APIC are as after reset, its mode and identifier are not (SDM vol. 3 11.12.5.1). The second is set up again
/// by its maker.
fn init_keeps_the_mode() -> Outcome {
    let first = [
        to_x2apic(),
        spin_until(ready(1), 1),
        send(1, INIT),
        delay(300_000),
        put(cell(0), 1),
        spin_until(cell(0), 2),
        spin_until(ready(1), 2),
        end(),
    ];
    let second = [
        to_x2apic(),
        enable(),
        wrmsr(x2(TPR), 0x50),
        wrmsr(x2(LVT_TIMER), 0x41),
        ops::wrmsr(x2(ICR), command(1, 0x42)),
        put(ready(1), 1),
        spin(),
        // Here it goes on.
        rdmsr(APIC_BASE).gives(0xfee0_0c00),
        rdmsr(x2(super::ID)).gives(1),
        rdmsr(x2(super::SVR)).gives(0xff),
        rdmsr(x2(TPR)).gives(0),
        rdmsr(x2(LVT_TIMER)).gives(MASKED),
        rdmsr(x2(ICR)).gives(0),
        rdmsr(x2(IRR + 2)).gives(0),
        put(ready(1), 2),
        spin(),
    ];
    let pc = Pc::new(&Pc::plan(2))?;
    pc.load(0, &first)?;
    pc.load(1, &second)?;
    let mut state = pc.state(1)?;
    pc.start()?;
    pc.until_word(cell(0), 1)?;
    until_blocked(&pc, 1)?;
    pc.domain.pause().must("pause")?;
    state.rbx += 7 * 64;
    pc.set(1, |now| *now = state)?;
    pc.domain.resume().must("resume")?;
    pc.set_word(cell(0), 2)?;
    pc.ends_with(0)?;
    for (index, op) in second.iter().enumerate().skip(7).take(8) {
        pc.gave_at(1, index, op)?;
    }
    Ok(())
}

fn init_while_it_halts() -> Outcome {
    let first = [
        to_x2apic(),
        spin_until(cell(6), 1),
        send(1, INIT),
        send(1, START_UP | page(REAL)),
        spin_until(COUNT, 1),
        end(),
    ];
    for halt in [ops::hlt(), ops::sti_hlt()] {
        let pc = Pc::new(&Pc::plan(2))?;
        pc.put_code(REAL, &starter())?;
        pc.load(0, &first)?;
        pc.load(1, &[put(ready(1), 1), halt, spin()])?;
        pc.start()?;
        pc.until_word(ready(1), 1)?;
        until_blocked(&pc, 1)?;
        pc.set_word(cell(6), 1)?;
        pc.ends_with(0)?;
        check_eq!(pc.word(MAGIC)?, 0x1234, "the word that it sets");
    }
    Ok(())
}

/// The bootstrap processor goes on at the reset vector, where this domain has no memory.
fn init_of_the_first() -> Outcome {
    let first = [put(ready(1), 1), spin()];
    let second = [to_x2apic(), spin_until(ready(1), 1), send(0, INIT), spin()];
    let pc = Pc::running(&[&first, &second])?;
    let info = pc.ends(Reason::NESTED_FAULT)?;
    check_eq!(info.ended_vcpu, 0, "vCPU");
    check_eq!(info.info[0] & !0xfff, 0xffff_f000, "address");
    Ok(())
}

fn start_up_of_the_first_is_ignored() -> Outcome {
    let first = [spin_until(ready(1), 1), spin_until(ready(1), 2), end()];
    let second = [
        to_x2apic(),
        put(ready(1), 1),
        send(0, START_UP | page(REAL)),
        delay(300_000),
        put(ready(1), 2),
        spin(),
    ];
    let pc = gives(&[&first, &second])?;
    check_eq!(pc.word(MAGIC)?, 0, "the word that the code sets");
    Ok(())
}

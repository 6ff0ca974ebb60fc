//! The I/O APIC, message-signalled interrupts, and the 8259A pair's line into LINT0.

use plinth_rt::abi::device::{kind, line};
use plinth_rt::{Outcome, check, check_eq};
use plinth_testkit::pc::{
    self as ops, Ending, IO_APIC, NMI_VECTOR, Op, Pc, cell, counter, end, ending, get, halt_until,
    idle, interrupts, or, put, rdmsr, read, spin, spin_until, sti, write, wrmsr,
};

use super::{
    EOI, IRR, ISR, KVM_EOI, LDR, LVT_LINT0, SVR, TMR, TPR, enable, enable_x1, joined, to_x2apic,
    until_blocked, x1, x2,
};
use crate::child::Child;
use crate::devices::{Served, access};
use crate::kit::{MS, Must, sleep, until};

tests!("pc_io":
    registers,
    registers_by_other_widths,
    entries,
    edge_once_a_rise,
    edge_to_the_second,
    edge_to_all,
    edge_while_it_halts,
    edge_while_masked_is_lost,
    edge_while_disabled_is_lost,
    nmi_pin,
    level_until_deasserted,
    level_has_to_end,
    level_is_not_ended_by_a_word,
    level_while_masked,
    level_ends_by_the_register,
    level_ends_in_memory,
    level_made_an_edge_forgets,
    level_while_disabled,
    message,
    message_to_the_second,
    message_logical,
    message_while_it_halts,
    message_nmi,
    message_of_lowest_priority,
    each_pin,
    pic,
    pic_takes_any_vector,
    pic_waits_for_sti,
    pic_masked,
    pic_needs_no_end,
    pic_goes_round_the_priorities,
    pic_while_it_halts,
    pic_withdrawn,
    pic_without_an_answer,
    pic_without_anybody,
    pic_while_disabled,
);

const SELECT: u64 = IO_APIC;
const WINDOW: u64 = IO_APIC + 0x10;
const EOI_REGISTER: u64 = IO_APIC + 0x40;

/// Bits of an entry of the redirection table (82093AA 3.2.4).
const MASKED: u64 = 1 << 16;
const LEVEL: u64 = 1 << 15;
const REMOTE_IRR: u64 = 1 << 14;

const PIN: u32 = 5;
const VECTOR: u8 = 0x41;

/// What a pin leads to: the halves of its entry, the upper one first.
const fn route(pin: u32, destination: u64, low: u64) -> [Op; 4] {
    let register = 0x10 + 2 * pin as u64;
    [
        write(4, SELECT, register + 1),
        write(4, WINDOW, destination << 24),
        write(4, SELECT, register),
        write(4, WINDOW, low),
    ]
}

/// A script as an array: the vCPU in x2APIC mode, [`PIN`] routed to it so, then these operations.
fn routed<const N: usize>(low: u64, rest: [Op; N]) -> [Op; 32] {
    joined(&[&[to_x2apic(), enable()], &route(PIN, 0, low), &rest])
}

fn registers() -> Outcome {
    ops::gives(&[&[
        write(4, SELECT, 1),
        read(4, SELECT).gives(1),
        // Version 0x20, the highest entry.
        read(4, WINDOW).gives(0x0017_0020),
        write(4, WINDOW, 0),
        read(4, WINDOW).gives(0x0017_0020),
        write(4, SELECT, 0),
        read(4, WINDOW).gives(0),
        write(4, WINDOW, 0xffff_ffff),
        read(4, WINDOW).gives(0x0f00_0000),
        write(4, SELECT, 2),
        read(4, WINDOW).gives(0x0f00_0000),
        // None of these is there.
        write(4, SELECT, 0x40),
        read(4, WINDOW).gives(0),
        write(4, WINDOW, 0x1234),
        write(4, SELECT, 0xff),
        read(4, WINDOW).gives(0),
        read(4, IO_APIC + 0x20).gives(0),
        write(4, IO_APIC + 0x20, 0x1234),
        end(),
    ]])
    .map(drop)
}

/// As with the local APIC's.
fn registers_by_other_widths() -> Outcome {
    ops::gives(&[&[
        write(4, SELECT, 1),
        read(1, WINDOW).gives(0x20),
        read(2, WINDOW + 2).gives(0x17),
        read(8, WINDOW).gives(0x0017_0020),
        write(1, SELECT, 0),
        read(4, SELECT).gives(1),
        write(8, SELECT, 0x12),
        read(1, SELECT).gives(0x12),
        or(WINDOW, 0x41),
        read(4, WINDOW).gives(MASKED | 0x41),
        end(),
    ]])
    .map(drop)
}

/// All are masked after reset; status bits cannot be written.
fn entries() -> Outcome {
    let mut script = [end(); 64];
    let mut at = 0;
    for pin in [0, 1, 22, 23] {
        let low = 0x10 + 2 * pin;
        for op in [
            write(4, SELECT, low),
            read(4, WINDOW).gives(MASKED),
            write(4, WINDOW, 0xffff_ffff),
            read(4, WINDOW).gives(0x0001_afff),
            write(4, SELECT, low + 1),
            read(4, WINDOW).gives(0),
            write(4, WINDOW, 0x1200_0000),
            read(4, WINDOW).gives(0x1200_0000),
            write(4, SELECT, low),
            write(4, WINDOW, MASKED | 0x41),
            read(4, WINDOW).gives(MASKED | 0x41),
        ] {
            script[at] = op;
            at += 1;
        }
    }
    ops::gives(&[&script]).map(drop)
}

/// A PC with these scripts, started, whose first vCPU has come to this operation.
fn at(scripts: &[&[Op]], op: usize) -> Result<Pc, plinth_rt::Why> {
    let pc = Pc::running(scripts)?;
    pc.until_done(0, op)?;
    Ok(pc)
}

fn set(pc: &Child, active: bool) -> Outcome {
    pc.domain.set_line(PIN, active).must("line")
}

/// Gives the machine time for an interrupt that must not come.
fn stays(pc: &Child, vcpu: usize, count: u64) -> Outcome {
    sleep(2 * MS);
    check_eq!(pc.word(interrupts(vcpu))?, count, "interrupts");
    Ok(())
}

fn edge_once_a_rise() -> Outcome {
    let pc = at(&[&routed(VECTOR.into(), [sti(), spin()])], 6)?;
    for rise in 1..=5 {
        set(&pc, true)?;
        pc.until_word(counter(0, VECTOR), rise)?;
        set(&pc, true)?;
        set(&pc, false)?;
        set(&pc, false)?;
        stays(&pc, 0, rise)?;
    }
    Ok(())
}

fn edge_to_the_second() -> Outcome {
    let [a, b, c, d] = route(PIN, 1, VECTOR.into());
    let first = [to_x2apic(), a, b, c, d, spin_until(cell(0), 1), end()];
    let second = [
        to_x2apic(),
        enable(),
        sti(),
        put(cell(1), 1),
        spin_until(counter(1, VECTOR), 1),
        put(cell(0), 1),
        idle(),
    ];
    let pc = at(&[&first, &second], 4)?;
    pc.until_word(cell(1), 1)?;
    set(&pc, true)?;
    pc.ends_with(0)?;
    pc.took(0, &[])?;
    pc.took(1, &[VECTOR])
}

/// 0xff is everybody, in physical mode as well.
fn edge_to_all() -> Outcome {
    let [a, b, c, d] = route(PIN, 0xff, VECTOR.into());
    let first = [
        to_x2apic(),
        enable(),
        a,
        b,
        c,
        d,
        sti(),
        spin_until(counter(0, VECTOR), 1),
        spin_until(cell(0), 1),
        end(),
    ];
    let second = [
        to_x2apic(),
        enable(),
        sti(),
        put(cell(1), 1),
        spin_until(counter(1, VECTOR), 1),
        put(cell(0), 1),
        idle(),
    ];
    let pc = at(&[&first, &second], 6)?;
    pc.until_word(cell(1), 1)?;
    set(&pc, true)?;
    pc.ends_with(0)?;
    pc.took(0, &[VECTOR])?;
    pc.took(1, &[VECTOR])
}

fn edge_while_it_halts() -> Outcome {
    let script = routed(
        VECTOR.into(),
        [put(cell(0), 1), halt_until(counter(0, VECTOR), 3), end()],
    );
    let pc = at(&[&script], 6)?;
    for count in 1..=3 {
        until_blocked(&pc, 0)?;
        set(&pc, true)?;
        pc.until_word(counter(0, VECTOR), count)?;
        set(&pc, false)?;
    }
    pc.ends_with(0)
}

/// 82093AA 3.2.4: an edge at a masked pin is neither delivered nor held.
fn edge_while_masked_is_lost() -> Outcome {
    let script = routed(
        MASKED | u64::from(VECTOR),
        [
            sti(),
            spin_until(cell(0), 1),
            write(4, WINDOW, VECTOR.into()),
            read(4, WINDOW).gives(VECTOR.into()),
            put(cell(1), 1),
            spin_until(counter(0, VECTOR), 1),
            end(),
        ],
    );
    let pc = at(&[&script], 6)?;
    set(&pc, true)?;
    pc.set_word(cell(0), 1)?;
    pc.until_word(cell(1), 1)?;
    stays(&pc, 0, 0)?;
    set(&pc, false)?;
    set(&pc, true)?;
    pc.ends_with(0)?;
    pc.gave(0, &script)?;
    pc.took(0, &[VECTOR])
}

/// A local APIC that software disabled takes none, and nothing waits for it.
fn edge_while_disabled_is_lost() -> Outcome {
    let script = routed(
        VECTOR.into(),
        [
            wrmsr(x2(SVR), 0xff),
            sti(),
            put(cell(1), 1),
            spin_until(cell(0), 1),
            enable(),
            ops::delay(100_000),
            get(interrupts(0)).gives(0),
            end(),
        ],
    );
    let pc = at(&[&script], 8)?;
    set(&pc, true)?;
    pc.domain
        .send_msi(0xfee0_0000, VECTOR.into())
        .must("message")?;
    pc.set_word(cell(0), 1)?;
    pc.ends_with(0)?;
    pc.gave(0, &script)
}

fn nmi_pin() -> Outcome {
    let script = routed(0x400, [spin_until(counter(0, NMI_VECTOR), 2), end()]);
    let pc = at(&[&script], 5)?;
    set(&pc, true)?;
    pc.until_word(counter(0, NMI_VECTOR), 1)?;
    set(&pc, false)?;
    set(&pc, true)?;
    pc.ends_with(0)
}

/// As long as the line is asserted, each end brings another.
fn level_until_deasserted() -> Outcome {
    let pc = at(&[&routed(LEVEL | u64::from(VECTOR), [sti(), spin()])], 6)?;
    stays(&pc, 0, 0)?;
    for _ in 0..3 {
        set(&pc, true)?;
        for _ in 0..5 {
            pc.until_change(counter(0, VECTOR))?;
        }
        set(&pc, false)?;
        // One that was accepted before that may still be on its way.
        until("no more interrupts", || {
            let before = pc.word(interrupts(0))?;
            sleep(2 * MS);
            Ok(pc.word(interrupts(0))? == before)
        })?;
    }
    Ok(())
}

/// Remote IRR is set from its acceptance to its end; meanwhile there is no other.
fn level_has_to_end() -> Outcome {
    let script = routed(
        LEVEL | u64::from(VECTOR),
        [
            put(ending(0), Ending::Script as u64),
            sti(),
            spin_until(cell(0), 1),
            read(4, WINDOW).gives(LEVEL | REMOTE_IRR | u64::from(VECTOR)),
            rdmsr(x2(TMR + 2)).gives(1 << 1),
            rdmsr(x2(ISR + 2)).gives(1 << 1),
            get(interrupts(0)).gives(1),
            // Still asserted: the next one.
            wrmsr(x2(EOI), 0),
            get(interrupts(0)).gives(2),
            read(4, WINDOW).gives(LEVEL | REMOTE_IRR | u64::from(VECTOR)),
            put(cell(1), 1),
            spin_until(cell(0), 2),
            wrmsr(x2(EOI), 0),
            get(interrupts(0)).gives(2),
            read(4, WINDOW).gives(LEVEL | u64::from(VECTOR)),
            rdmsr(x2(ISR + 2)).gives(0),
            end(),
        ],
    );
    let pc = at(&[&script], 7)?;
    set(&pc, true)?;
    pc.until_word(interrupts(0), 1)?;
    set(&pc, false)?;
    set(&pc, true)?;
    stays(&pc, 0, 1)?;
    pc.set_word(cell(0), 1)?;
    pc.until_word(cell(1), 1)?;
    set(&pc, false)?;
    pc.set_word(cell(0), 2)?;
    pc.ends_with(0)?;
    pc.gave(0, &script)
}

/// A guest that may end interrupts by a word in its memory has to tell the end of this one.
fn level_is_not_ended_by_a_word() -> Outcome {
    let script = routed(
        LEVEL | u64::from(VECTOR),
        [
            wrmsr(KVM_EOI, ops::word(0) | 1),
            put(ending(0), Ending::Script as u64),
            sti(),
            spin_until(cell(0), 1),
            get(interrupts(0)).gives(1),
            get(ops::word(0)).gives(0),
            wrmsr(x2(EOI), 0),
            read(4, WINDOW).gives(LEVEL | u64::from(VECTOR)),
            end(),
        ],
    );
    let pc = at(&[&script], 8)?;
    set(&pc, true)?;
    pc.until_word(interrupts(0), 1)?;
    set(&pc, false)?;
    pc.set_word(cell(0), 1)?;
    pc.ends_with(0)?;
    pc.gave(0, &script)
}

/// What is asserted when the pin is opened is delivered then.
fn level_while_masked() -> Outcome {
    let vector = u64::from(VECTOR);
    let script = routed(
        MASKED | LEVEL | vector,
        [
            put(ending(0), Ending::Script as u64),
            sti(),
            spin_until(cell(0), 1),
            read(4, WINDOW).gives(MASKED | LEVEL | vector),
            get(interrupts(0)).gives(0),
            write(4, WINDOW, LEVEL | vector),
            get(interrupts(0)).gives(1),
            // Masked in its service, it comes again only when the mask is gone.
            write(4, WINDOW, MASKED | LEVEL | vector),
            wrmsr(x2(EOI), 0),
            get(interrupts(0)).gives(1),
            read(4, WINDOW).gives(MASKED | LEVEL | vector),
            write(4, WINDOW, LEVEL | vector),
            get(interrupts(0)).gives(2),
            end(),
        ],
    );
    let pc = at(&[&script], 7)?;
    set(&pc, true)?;
    pc.set_word(cell(0), 1)?;
    pc.ends_with(0)?;
    pc.gave(0, &script)
}

/// The local APIC does not tell its end where software says so (SDM vol. 3 11.8.5); then the I/O APIC's own register does.
fn level_ends_by_the_register() -> Outcome {
    let vector = u64::from(VECTOR);
    let script = routed(
        LEVEL | vector,
        [
            wrmsr(x2(SVR), 0x11ff),
            put(ending(0), Ending::Script as u64),
            sti(),
            spin_until(interrupts(0), 1),
            wrmsr(x2(EOI), 0),
            rdmsr(x2(ISR + 2)).gives(0),
            read(4, WINDOW).gives(LEVEL | REMOTE_IRR | vector),
            get(interrupts(0)).gives(1),
            // Another vector's.
            write(4, EOI_REGISTER, vector + 1),
            get(interrupts(0)).gives(1),
            write(4, EOI_REGISTER, vector),
            get(interrupts(0)).gives(2),
            end(),
        ],
    );
    let pc = at(&[&script], 8)?;
    set(&pc, true)?;
    pc.ends_with(0)?;
    pc.gave(0, &script)
}

fn level_ends_in_memory() -> Outcome {
    let vector = u64::from(VECTOR);
    let [a, b, c, d] = route(PIN, 0, LEVEL | vector);
    let script = [
        enable_x1(),
        a,
        b,
        c,
        d,
        put(ending(0), Ending::Script as u64),
        sti(),
        spin_until(interrupts(0), 1),
        read(4, WINDOW).gives(LEVEL | REMOTE_IRR | vector),
        write(4, x1(EOI), 0),
        get(interrupts(0)).gives(2),
        put(cell(1), 1),
        spin_until(cell(0), 1),
        write(4, x1(EOI), 0),
        read(4, WINDOW).gives(LEVEL | vector),
        get(interrupts(0)).gives(2),
        end(),
    ];
    let pc = at(&[&script], 6)?;
    set(&pc, true)?;
    pc.until_word(cell(1), 1)?;
    set(&pc, false)?;
    pc.set_word(cell(0), 1)?;
    pc.ends_with(0)?;
    pc.gave(0, &script)
}

/// How systems end an interrupt at an I/O APIC without that register.
fn level_made_an_edge_forgets() -> Outcome {
    let vector = u64::from(VECTOR);
    let script = routed(
        LEVEL | vector,
        [
            put(ending(0), Ending::Script as u64),
            sti(),
            spin_until(interrupts(0), 1),
            spin_until(cell(0), 1),
            write(4, WINDOW, MASKED | vector),
            read(4, WINDOW).gives(MASKED | vector),
            write(4, WINDOW, MASKED | LEVEL | vector),
            read(4, WINDOW).gives(MASKED | LEVEL | vector),
            end(),
        ],
    );
    let pc = at(&[&script], 7)?;
    set(&pc, true)?;
    pc.until_word(interrupts(0), 1)?;
    set(&pc, false)?;
    pc.set_word(cell(0), 1)?;
    pc.ends_with(0)?;
    pc.gave(0, &script)
}

/// What no local APIC takes waits, until the line is told again or the entry is written.
fn level_while_disabled() -> Outcome {
    let vector = u64::from(VECTOR);
    let pending = 1 << 12;
    let script = routed(
        LEVEL | vector,
        [
            put(ending(0), Ending::Script as u64),
            wrmsr(x2(SVR), 0xff),
            sti(),
            spin_until(cell(0), 1),
            read(4, WINDOW).gives(LEVEL | pending | vector),
            enable(),
            write(4, WINDOW, LEVEL | vector),
            get(interrupts(0)).gives(1),
            read(4, WINDOW).gives(LEVEL | REMOTE_IRR | vector),
            wrmsr(x2(SVR), 0xff),
            wrmsr(x2(EOI), 0),
            read(4, WINDOW).gives(LEVEL | pending | vector),
            enable(),
            put(cell(1), 1),
            spin_until(interrupts(0), 2),
            end(),
        ],
    );
    let pc = at(&[&script], 8)?;
    set(&pc, true)?;
    pc.set_word(cell(0), 1)?;
    pc.until_word(cell(1), 1)?;
    set(&pc, true)?;
    pc.ends_with(0)?;
    pc.gave(0, &script)
}

fn message() -> Outcome {
    let pc = at(&[&[to_x2apic(), enable(), sti(), spin()]], 2)?;
    for (count, data) in (1..).zip([0x41, 0x4042, 0xc043]) {
        pc.domain.send_msi(0xfee0_0000, data).must("message")?;
        pc.until_word(interrupts(0), count)?;
    }
    stays(&pc, 0, 3)?;
    pc.took(0, &[0x41, 0x42, 0x43])
}

/// One vCPU that is ready for interrupts, in either mode, and another.
fn two() -> Result<Pc, plinth_rt::Why> {
    let first = [
        to_x2apic(),
        enable(),
        sti(),
        spin_until(cell(1), 1),
        put(cell(2), 1),
        idle(),
    ];
    let second = [
        put(ending(1), Ending::Memory as u64),
        enable_x1(),
        write(4, x1(LDR), 2 << 24),
        sti(),
        put(cell(1), 1),
        idle(),
    ];
    let pc = Pc::running(&[&first, &second])?;
    pc.until_word(cell(2), 1)?;
    Ok(pc)
}

fn message_to_the_second() -> Outcome {
    let pc = two()?;
    pc.domain
        .send_msi(0xfee0_1000, VECTOR.into())
        .must("message")?;
    pc.until_word(interrupts(1), 1)?;
    // To nobody.
    pc.domain
        .send_msi(0xfee0_2000, VECTOR.into())
        .must("message")?;
    // To all.
    pc.domain
        .send_msi(0xfeef_f000, VECTOR.into())
        .must("message")?;
    pc.until_word(interrupts(0), 1)?;
    pc.until_word(interrupts(1), 2)
}

/// The first is in x2APIC mode, where identifier 1 is its own bit; for the second it is what its LDR says.
fn message_logical() -> Outcome {
    let pc = two()?;
    pc.domain.send_msi(0xfee0_1004, 0x41).must("message")?;
    pc.until_word(interrupts(0), 1)?;
    pc.domain.send_msi(0xfee0_2004, 0x42).must("message")?;
    pc.until_word(interrupts(1), 1)?;
    pc.domain.send_msi(0xfee0_3004, 0x43).must("message")?;
    pc.until_word(interrupts(0), 2)?;
    pc.until_word(interrupts(1), 2)?;
    pc.took(0, &[0x41, 0x43])?;
    pc.took(1, &[0x42, 0x43])
}

fn message_while_it_halts() -> Outcome {
    let pc = two()?;
    for count in 1..=3 {
        until_blocked(&pc, 0)?;
        pc.domain
            .send_msi(0xfee0_0000, VECTOR.into())
            .must("message")?;
        pc.until_word(interrupts(0), count)?;
    }
    Ok(())
}

fn message_nmi() -> Outcome {
    let pc = two()?;
    pc.domain.send_msi(0xfee0_1000, 0x400).must("message")?;
    pc.until_word(counter(1, NMI_VECTOR), 1)?;
    check_eq!(pc.word(counter(0, NMI_VECTOR))?, 0, "NMIs of the first");
    Ok(())
}

/// By the delivery mode, and by the redirection hint of a logical destination.
fn message_of_lowest_priority() -> Outcome {
    let pc = two()?;
    for (count, (address, data)) in (1..).zip([
        (0xfee0_3004, 0x141),
        (0xfee0_300c, 0x41),
        (0xfee0_3004, 0x141),
        (0xfee0_300c, 0x41),
    ]) {
        pc.domain.send_msi(address, data).must("message")?;
        until("an interrupt of one of them", || {
            Ok(pc.word(interrupts(0))? + pc.word(interrupts(1))? >= count)
        })?;
    }
    sleep(2 * MS);
    check_eq!(
        pc.word(interrupts(0))? + pc.word(interrupts(1))?,
        4,
        "interrupts"
    );
    Ok(())
}

/// Each of the pins has an entry of its own.
fn each_pin() -> Outcome {
    let mut script = [end(); 56];
    script[0] = to_x2apic();
    script[1] = enable();
    for pin in 0..line::PINS as usize {
        script[2 + 2 * pin] = write(4, SELECT, 0x10 + 2 * pin as u64);
        script[3 + 2 * pin] = write(4, WINDOW, 0x60 + pin as u64);
    }
    script[50] = sti();
    script[51] = spin();
    let pc = at(&[&script], 50)?;
    for pin in 0..line::PINS {
        pc.domain.set_line(pin, true).must("line")?;
        pc.until_word(counter(0, 0x60 + pin as u8), 1)?;
    }
    stays(&pc, 0, line::PINS.into())
}

/// LINT0 of the first vCPU is the 8259A pair's, as firmware leaves it.
const EXT_INT: u64 = 0x700;

/// A PC with this script, whose interrupt acknowledge cycles are the suite's to answer, started, whose vCPU has come to an operation.
fn with_pic(script: &[Op], op: usize) -> Result<Served, plinth_rt::Why> {
    let pc = Pc::new(&Pc::plan(1))?;
    pc.load(0, script)?;
    let served = Served::of(pc.into_child())?;
    served.claim(kind::ACKNOWLEDGE, 0, 1)?;
    served.child.start()?;
    ops::until_done(&served.child, 0, op)?;
    Ok(served)
}

fn intr(child: &Child, active: bool) -> Outcome {
    child.domain.set_line(line::INTR, active).must("INTR")
}

/// What the slot shows of such a cycle.
fn cycle() -> plinth_rt::abi::Slot {
    access(kind::ACKNOWLEDGE, 0, 1)
}

/// Waits for the cycle, and answers it as an 8259A does: with a vector, and its line is no longer active.
fn answer(served: &Served, vector: u8) -> Outcome {
    served.sees(&cycle())?;
    intr(&served.child, false)?;
    served.complete(vector.into())
}

fn pic() -> Outcome {
    let served = with_pic(
        &[
            put(ending(0), Ending::Script as u64),
            to_x2apic(),
            enable(),
            wrmsr(x2(LVT_LINT0), EXT_INT),
            sti(),
            spin(),
        ],
        4,
    )?;
    for (count, vector) in (1..).zip([0x38, 0x30, 0x38]) {
        intr(&served.child, true)?;
        answer(&served, vector)?;
        served.child.until_word(interrupts(0), count)?;
    }
    stays(&served.child, 0, 3)
}

/// Vectors of exceptions too: a BIOS has them there.
fn pic_takes_any_vector() -> Outcome {
    let served = with_pic(
        &[
            to_x2apic(),
            enable(),
            wrmsr(x2(LVT_LINT0), EXT_INT),
            sti(),
            spin(),
        ],
        3,
    )?;
    intr(&served.child, true)?;
    // The handler of this one is that of NMIs.
    answer(&served, NMI_VECTOR)?;
    served.child.until_word(counter(0, NMI_VECTOR), 1)
}

fn pic_waits_for_sti() -> Outcome {
    let served = with_pic(
        &[
            to_x2apic(),
            enable(),
            wrmsr(x2(LVT_LINT0), EXT_INT),
            spin_until(cell(0), 1),
            sti(),
            spin_until(counter(0, 0x38), 1),
            end(),
        ],
        2,
    )?;
    intr(&served.child, true)?;
    sleep(2 * MS);
    check!(!served.asks()?, "it asks though RFLAGS.IF is clear");
    served.child.set_word(cell(0), 1)?;
    answer(&served, 0x38)?;
    served.child.ends_with(0)
}

fn pic_masked() -> Outcome {
    let served = with_pic(
        &[
            to_x2apic(),
            enable(),
            wrmsr(x2(LVT_LINT0), super::MASKED | EXT_INT),
            sti(),
            spin_until(cell(0), 1),
            wrmsr(x2(LVT_LINT0), EXT_INT),
            spin_until(counter(0, 0x38), 1),
            end(),
        ],
        3,
    )?;
    intr(&served.child, true)?;
    sleep(2 * MS);
    check!(!served.asks()?, "it asks though LINT0 is masked");
    served.child.set_word(cell(0), 1)?;
    answer(&served, 0x38)?;
    served.child.ends_with(0)
}

/// The local APIC has nothing of it in service.
fn pic_needs_no_end() -> Outcome {
    let script = [
        put(ending(0), Ending::Script as u64),
        to_x2apic(),
        enable(),
        wrmsr(x2(LVT_LINT0), EXT_INT),
        sti(),
        spin_until(counter(0, 0x58), 1),
        rdmsr(x2(ISR + 2)).gives(0),
        rdmsr(x2(IRR + 2)).gives(0),
        ops::wrmsr(x2(super::SELF), 0x41),
        get(counter(0, 0x41)).gives(1),
        end(),
    ];
    let served = with_pic(&script, 4)?;
    intr(&served.child, true)?;
    answer(&served, 0x58)?;
    served.child.ends_with(0)?;
    ops::gave(&served.child, 0, &script)
}

/// Neither TPR nor what is in service holds it back (SDM vol. 3 11.8.3.1).
fn pic_goes_round_the_priorities() -> Outcome {
    let script = [
        put(ending(0), Ending::Script as u64),
        to_x2apic(),
        enable(),
        wrmsr(x2(LVT_LINT0), EXT_INT),
        wrmsr(x2(TPR), 0xff),
        sti(),
        spin_until(counter(0, 0x38), 1),
        end(),
    ];
    let served = with_pic(&script, 5)?;
    intr(&served.child, true)?;
    answer(&served, 0x38)?;
    served.child.ends_with(0)
}

fn pic_while_it_halts() -> Outcome {
    let served = with_pic(
        &[
            put(ending(0), Ending::Script as u64),
            to_x2apic(),
            enable(),
            wrmsr(x2(LVT_LINT0), EXT_INT),
            halt_until(counter(0, 0x38), 3),
            end(),
        ],
        3,
    )?;
    for _ in 0..3 {
        until_blocked(&served.child, 0)?;
        intr(&served.child, true)?;
        answer(&served, 0x38)?;
    }
    served.child.ends_with(0)
}

/// A request that is gone before it is taken has not been there.
fn pic_withdrawn() -> Outcome {
    let served = with_pic(
        &[
            to_x2apic(),
            enable(),
            wrmsr(x2(LVT_LINT0), EXT_INT),
            spin_until(cell(0), 1),
            sti(),
            put(cell(1), 1),
            spin(),
        ],
        2,
    )?;
    intr(&served.child, true)?;
    intr(&served.child, false)?;
    served.child.set_word(cell(0), 1)?;
    served.child.until_word(cell(1), 1)?;
    sleep(2 * MS);
    check!(!served.asks()?, "it asks for what is gone");
    check_eq!(served.child.word(interrupts(0))?, 0, "interrupts");
    Ok(())
}

/// An answer that is no vector is no interrupt: the vCPU goes on.
fn pic_without_an_answer() -> Outcome {
    let served = with_pic(
        &[
            to_x2apic(),
            enable(),
            wrmsr(x2(LVT_LINT0), EXT_INT),
            sti(),
            spin_until(cell(0), 1),
            end(),
        ],
        3,
    )?;
    for value in [256, u64::MAX] {
        intr(&served.child, true)?;
        served.sees(&cycle())?;
        intr(&served.child, false)?;
        served.complete(value)?;
    }
    // The claim goes while it waits.
    intr(&served.child, true)?;
    served.sees(&cycle())?;
    served
        .child
        .domain
        .release(kind::ACKNOWLEDGE, 0)
        .must("release")?;
    intr(&served.child, false)?;
    served.child.set_word(cell(0), 1)?;
    served.child.ends_with(0)?;
    check_eq!(served.child.word(interrupts(0))?, 0, "interrupts");
    Ok(())
}

/// Where nobody answers there is no interrupt, and the vCPU goes on.
fn pic_without_anybody() -> Outcome {
    let pc = at(
        &[&[
            to_x2apic(),
            enable(),
            wrmsr(x2(LVT_LINT0), EXT_INT),
            sti(),
            spin_until(cell(0), 1),
            end(),
        ]],
        3,
    )?;
    intr(&pc, true)?;
    pc.set_word(cell(0), 1)?;
    pc.ends_with(0)?;
    pc.took(0, &[])
}

/// A processor whose APIC is disabled has its INTR pin (SDM vol. 3 11.4.3).
fn pic_while_disabled() -> Outcome {
    let served = with_pic(
        &[
            put(ending(0), Ending::Script as u64),
            wrmsr(super::APIC_BASE, 0xfee0_0000),
            sti(),
            spin_until(counter(0, 0x38), 1),
            end(),
        ],
        2,
    )?;
    intr(&served.child, true)?;
    answer(&served, 0x38)?;
    served.child.ends_with(0)
}

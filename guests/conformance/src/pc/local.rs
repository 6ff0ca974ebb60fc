//! The local APIC of one vCPU: its modes, its registers, its priorities.

use plinth_rt::abi::Reason;
use plinth_rt::abi::cpuid::{KVM_SIGNATURE, LEAF_KVM, LEAF_KVM_FEATURES};
use plinth_rt::{Outcome, check, check_eq};
use plinth_testkit::pc::{
    self as ops, Ending, Op, Pc, cell, cli, counter, cpuid, cr8, end, ending, get, gives, or, put,
    rdmsr, read, set_cr8, spin_until, sti, write, wrmsr,
};

use super::{
    APIC_BASE, CURRENT, DFR, DIVIDE, EOI, ESR, ICR, ICR_HIGH, ID, INITIAL, IRR, ISR, LDR,
    LVT_COUNTERS, LVT_ERROR, LVT_LINT0, LVT_LINT1, LVT_THERMAL, LVT_TIMER, MASKED, PPR, SELF, SVR,
    TMR, TPR, TSC_DEADLINE, VERSION, command, enable, enable_x1, interrupt_self, send, to_x2apic,
    x1, x2,
};
use crate::kit::Must;

tests!("pc_local":
    base_transitions,
    base_reserved_bits,
    base_of_the_second_vcpu,
    disabled_is_as_after_reset,
    cpuid_leaves,
    cpuid_while_disabled,
    registers_after_reset,
    registers_read_back,
    registers_that_cannot_be_read,
    registers_that_cannot_be_written,
    registers_with_reserved_bits,
    registers_of_the_other_mode,
    identifiers,
    self_interrupt,
    self_interrupt_by_command,
    interrupts_wait_for_sti,
    interrupts_wait_for_sti_beside_others,
    pending_and_in_service,
    higher_comes_first,
    lower_waits_for_the_end_of_a_higher,
    task_priority_masks,
    task_priority_is_cr8,
    processor_priority,
    disabled_by_software,
    pending_when_disabled,
    end_without_an_interrupt,
    send_illegal_vector,
    interrupt_call_goes_through_it,
    memory_widths,
    memory_read_modify_write,
    memory_reserved_register,
    memory_interrupts,
    memory_not_in_x2apic_mode,
    memory_not_while_disabled,
    memory_of_no_pc,
);

const BASE: u64 = 0xfee0_0000;
const BSP: u64 = 1 << 8;
const X2APIC: u64 = 1 << 10;
const ENABLED: u64 = 1 << 11;

fn passes(ops: &[Op]) -> Outcome {
    gives(&[ops]).map(drop)
}

/// SDM vol. 3 11.12.5.
fn base_transitions() -> Outcome {
    let (xapic, x2apic) = (BASE | BSP | ENABLED, BASE | BSP | ENABLED | X2APIC);
    let disabled = BASE | BSP;
    passes(&[
        rdmsr(APIC_BASE).gives(xapic),
        wrmsr(APIC_BASE, xapic),
        wrmsr(APIC_BASE, disabled | X2APIC).faults(),
        rdmsr(APIC_BASE).gives(xapic),
        wrmsr(APIC_BASE, x2apic),
        rdmsr(APIC_BASE).gives(x2apic),
        wrmsr(APIC_BASE, x2apic),
        wrmsr(APIC_BASE, xapic).faults(),
        wrmsr(APIC_BASE, disabled | X2APIC).faults(),
        rdmsr(APIC_BASE).gives(x2apic),
        wrmsr(APIC_BASE, disabled),
        rdmsr(APIC_BASE).gives(disabled),
        wrmsr(APIC_BASE, x2apic).faults(),
        wrmsr(APIC_BASE, disabled | X2APIC).faults(),
        rdmsr(APIC_BASE).gives(disabled),
        wrmsr(APIC_BASE, xapic),
        rdmsr(APIC_BASE).gives(xapic),
        wrmsr(APIC_BASE, disabled),
        rdmsr(APIC_BASE).gives(disabled),
        end(),
    ])
}

fn base_reserved_bits() -> Outcome {
    let good = BASE | BSP | ENABLED;
    let mut ops = [end(); 18];
    for (op, bit) in ops
        .iter_mut()
        .zip([0, 1, 2, 3, 4, 5, 6, 7, 9, 48, 52, 60, 63])
    {
        *op = wrmsr(APIC_BASE, good | 1 << bit).faults();
    }
    // The registers are nowhere else.
    ops[13] = wrmsr(APIC_BASE, 0xfed0_0000 | BSP | ENABLED).faults();
    ops[14] = wrmsr(APIC_BASE, BSP | ENABLED).faults();
    ops[15] = rdmsr(APIC_BASE).gives(good);
    passes(&ops)
}

fn base_of_the_second_vcpu() -> Outcome {
    let first = [spin_until(cell(0), 1), end()];
    let second = [
        rdmsr(APIC_BASE).gives(BASE | ENABLED),
        // The flag cannot be set.
        wrmsr(APIC_BASE, BASE | BSP | ENABLED),
        rdmsr(APIC_BASE).gives(BASE | ENABLED),
        put(cell(0), 1),
        ops::idle(),
    ];
    gives(&[&first, &second]).map(drop)
}

/// SDM vol. 3 11.4.3.
fn disabled_is_as_after_reset() -> Outcome {
    passes(&[
        to_x2apic(),
        enable(),
        wrmsr(x2(TPR), 0x50),
        wrmsr(x2(LVT_TIMER), 0x41),
        interrupt_self(0x42),
        wrmsr(APIC_BASE, BASE),
        rdmsr(x2(TPR)).faults(),
        wrmsr(APIC_BASE, BASE | ENABLED),
        to_x2apic(),
        rdmsr(x2(TPR)).gives(0),
        rdmsr(x2(SVR)).gives(0xff),
        rdmsr(x2(LVT_TIMER)).gives(MASKED),
        rdmsr(x2(IRR + 2)).gives(0),
        cr8().gives(0),
        end(),
    ])
}

fn cpuid_leaves() -> Outcome {
    let second = [
        cpuid(1, 1).gives_in(0xff << 24, 1 << 24),
        cpuid(0xb, 3).gives(1),
        put(cell(0), 1),
        ops::idle(),
    ];
    let [b, c, d] = KVM_SIGNATURE.map(u64::from);
    let first = [
        // x2APIC, TSC deadline; APIC.
        cpuid(1, 2).gives_in(1 << 21 | 1 << 24, 1 << 21 | 1 << 24),
        cpuid(1, 3).gives_in(1 << 9, 1 << 9),
        cpuid(1, 1).gives_in(0xff << 24, 0),
        cpuid(0xb, 3).gives(0),
        // The timer always runs.
        cpuid(6, 0).gives_in(1 << 2, 1 << 2),
        cpuid(LEAF_KVM, 0).gives(LEAF_KVM_FEATURES.into()),
        cpuid(LEAF_KVM, 1).gives(b),
        cpuid(LEAF_KVM, 2).gives(c),
        cpuid(LEAF_KVM, 3).gives(d),
        // CLOCKSOURCE2, STEAL_TIME, PV_EOI, MSI_EXT_DEST_ID, CLOCKSOURCE_STABLE; nothing that needs KVM's hypercalls or the old MSRs.
        cpuid(LEAF_KVM_FEATURES, 0)
            .gives_in(0xffff_fffd, 1 << 3 | 1 << 5 | 1 << 6 | 1 << 15 | 1 << 24),
        spin_until(cell(0), 1),
        end(),
    ];
    gives(&[&first, &second]).map(drop)
}

/// A processor whose APIC is disabled is as one that has none (SDM vol. 3 11.4.3).
fn cpuid_while_disabled() -> Outcome {
    passes(&[
        wrmsr(APIC_BASE, BASE),
        cpuid(1, 3).gives_in(1 << 9, 0),
        wrmsr(APIC_BASE, BASE | ENABLED),
        cpuid(1, 3).gives_in(1 << 9, 1 << 9),
        end(),
    ])
}

/// SDM vol. 3 11.4.7.1.
fn registers_after_reset() -> Outcome {
    passes(&[
        to_x2apic(),
        rdmsr(x2(ID)).gives(0),
        rdmsr(x2(VERSION)).gives(0x0105_0014),
        rdmsr(x2(TPR)).gives(0),
        rdmsr(x2(PPR)).gives(0),
        rdmsr(x2(LDR)).gives(1),
        rdmsr(x2(SVR)).gives(0xff),
        rdmsr(x2(ISR)).gives(0),
        rdmsr(x2(ISR + 7)).gives(0),
        rdmsr(x2(TMR)).gives(0),
        rdmsr(x2(TMR + 7)).gives(0),
        rdmsr(x2(IRR)).gives(0),
        rdmsr(x2(IRR + 7)).gives(0),
        rdmsr(x2(ESR)).gives(0),
        rdmsr(x2(ICR)).gives(0),
        rdmsr(x2(LVT_TIMER)).gives(MASKED),
        rdmsr(x2(LVT_THERMAL)).gives(MASKED),
        rdmsr(x2(LVT_COUNTERS)).gives(MASKED),
        rdmsr(x2(LVT_LINT0)).gives(MASKED),
        rdmsr(x2(LVT_LINT1)).gives(MASKED),
        rdmsr(x2(LVT_ERROR)).gives(MASKED),
        rdmsr(x2(INITIAL)).gives(0),
        rdmsr(x2(CURRENT)).gives(0),
        rdmsr(x2(DIVIDE)).gives(0),
        rdmsr(TSC_DEADLINE).gives(0),
        end(),
    ])
}

fn registers_read_back() -> Outcome {
    let mut ops = [end(); 32];
    ops[0] = to_x2apic();
    ops[1] = enable();
    let pairs = [
        (TPR, 0x73),
        (TPR, 0),
        (SVR, 0x11ef),
        (SVR, 0x1ff),
        (ESR, 0),
        // To nobody.
        (ICR, command(0x1234_5678, 0x41)),
        (LVT_TIMER, MASKED | 0x41),
        (LVT_THERMAL, MASKED | 0x42),
        (LVT_COUNTERS, MASKED | 0x443),
        (LVT_LINT0, MASKED | 0x8700),
        (LVT_LINT1, MASKED | 0x400),
        (LVT_ERROR, 0x44),
        (DIVIDE, 0b1011),
        (DIVIDE, 0b0011),
    ];
    for (place, (register, value)) in ops[2..].chunks_mut(2).zip(pairs) {
        place[0] = wrmsr(x2(register), value);
        place[1] = rdmsr(x2(register)).gives(value);
    }
    passes(&ops)
}

fn registers_that_cannot_be_read() -> Outcome {
    let mut ops = [end(); 20];
    ops[0] = to_x2apic();
    let registers = [
        0x00, 0x01, 0x04, 0x09, EOI, 0x0c, DFR, 0x29, 0x2e, ICR_HIGH, 0x3a, 0x3d, SELF, 0x40, 0xff,
    ];
    for (place, register) in ops[1..].iter_mut().zip(registers) {
        *place = rdmsr(x2(register)).faults();
    }
    passes(&ops)
}

fn registers_that_cannot_be_written() -> Outcome {
    let mut ops = [end(); 24];
    ops[0] = to_x2apic();
    let registers = [
        0x00, ID, VERSION, 0x09, PPR, 0x0c, LDR, DFR, ISR, TMR, IRR, 0x27, 0x2f, ICR_HIGH, CURRENT,
        0x3a, 0x40, 0xff,
    ];
    for (place, register) in ops[1..].iter_mut().zip(registers) {
        *place = wrmsr(x2(register), 0).faults();
    }
    passes(&ops)
}

/// SDM vol. 3 11.12.1.2.
fn registers_with_reserved_bits() -> Outcome {
    let mut ops = [end(); 32];
    ops[0] = to_x2apic();
    ops[1] = enable();
    let writes = [
        (TPR, 0x100),
        (TPR, 1 << 32),
        (EOI, 1),
        (EOI, 1 << 32),
        (SVR, 1 << 10 | 0x1ff),
        (SVR, 1 << 32 | 0x1ff),
        (ESR, 1),
        (ICR, 1 << 13 | 0x41),
        (ICR, 1 << 20 | 0x41),
        (LVT_TIMER, 1 << 8),
        (LVT_TIMER, 1 << 19),
        (LVT_LINT0, 1 << 17),
        (LVT_ERROR, 1 << 8),
        (LVT_ERROR, 1 << 32),
        (INITIAL, 1 << 32),
        (DIVIDE, 0b100),
        (SELF, 0x141),
    ];
    for (place, (register, value)) in ops[2..].iter_mut().zip(writes) {
        *place = wrmsr(x2(register), value).faults();
    }
    ops[19] = rdmsr(x2(TPR)).gives(0);
    ops[20] = rdmsr(x2(SVR)).gives(0x1ff);
    ops[21] = rdmsr(x2(LVT_TIMER)).gives(MASKED);
    passes(&ops)
}

/// In xAPIC mode there are no MSRs, and none while it is disabled.
fn registers_of_the_other_mode() -> Outcome {
    passes(&[
        rdmsr(x2(ID)).faults(),
        rdmsr(x2(TPR)).faults(),
        wrmsr(x2(TPR), 0).faults(),
        wrmsr(x2(EOI), 0).faults(),
        wrmsr(x2(SELF), 0x41).faults(),
        wrmsr(x2(ICR), 0x4_4041).faults(),
        wrmsr(APIC_BASE, BASE),
        rdmsr(x2(ID)).faults(),
        wrmsr(x2(EOI), 0).faults(),
        end(),
    ])
}

fn identifiers() -> Outcome {
    let first = [
        read(4, x1(ID)).gives(0),
        to_x2apic(),
        rdmsr(x2(ID)).gives(0),
        rdmsr(x2(LDR)).gives(1),
        spin_until(cell(0), 2),
        end(),
    ];
    let second = [
        read(4, x1(ID)).gives(1 << 24),
        to_x2apic(),
        rdmsr(x2(ID)).gives(1),
        rdmsr(x2(LDR)).gives(2),
        put(cell(0), 1),
        ops::idle(),
    ];
    let third = [
        read(4, x1(ID)).gives(2 << 24),
        to_x2apic(),
        rdmsr(x2(ID)).gives(2),
        rdmsr(x2(LDR)).gives(4),
        spin_until(cell(0), 1),
        put(cell(0), 2),
        ops::idle(),
    ];
    gives(&[&first, &second, &third]).map(drop)
}

fn self_interrupt() -> Outcome {
    let pc = gives(&[&[
        to_x2apic(),
        enable(),
        sti(),
        interrupt_self(0x41),
        get(counter(0, 0x41)).gives(1),
        interrupt_self(0x20),
        interrupt_self(0xff),
        interrupt_self(0x41),
        get(counter(0, 0x41)).gives(2),
        end(),
    ]])?;
    pc.took(0, &[0x41, 0x20, 0xff, 0x41])
}

/// By the shorthand, and by its own identifier, physical and logical.
fn self_interrupt_by_command() -> Outcome {
    let pc = gives(&[&[
        to_x2apic(),
        enable(),
        sti(),
        send(0, 1 << 18 | 0x41),
        get(counter(0, 0x41)).gives(1),
        send(0, 0x42),
        get(counter(0, 0x42)).gives(1),
        send(1, 1 << 11 | 0x43),
        get(counter(0, 0x43)).gives(1),
        // Of lowest priority to oneself alone.
        send(0, 0x144),
        get(counter(0, 0x44)).gives(1),
        // The shorthand allows only fixed (SDM vol. 3 table 11-3).
        send(0, 1 << 18 | 0x445),
        get(counter(0, ops::NMI_VECTOR)).gives(0),
        end(),
    ]])?;
    pc.took(0, &[0x41, 0x42, 0x43, 0x44])
}

fn interrupts_wait_for_sti() -> Outcome {
    let pc = gives(&[&[
        to_x2apic(),
        enable(),
        interrupt_self(0x41),
        ops::delay(100_000),
        get(ops::interrupts(0)).gives(0),
        sti(),
        get(ops::interrupts(0)).gives(1),
        cli(),
        interrupt_self(0x41),
        // One that is pending already is the same one.
        interrupt_self(0x41),
        get(ops::interrupts(0)).gives(1),
        sti(),
        get(ops::interrupts(0)).gives(2),
        end(),
    ]])?;
    pc.took(0, &[0x41, 0x41])
}

/// Nor does the attention that another's interrupt needs let one in that was pending before.
fn interrupts_wait_for_sti_beside_others() -> Outcome {
    let first = [
        to_x2apic(),
        enable(),
        sti(),
        cli(),
        interrupt_self(0x41),
        put(cell(0), 1),
        ops::delay(2_000_000),
        get(ops::interrupts(0)).gives(0),
        spin_until(cell(1), 1),
        get(ops::interrupts(0)).gives(0),
        sti(),
        spin_until(counter(0, 0x41), 1),
        end(),
    ];
    let second = [
        to_x2apic(),
        enable(),
        spin_until(cell(0), 1),
        send(0, 0x52),
        put(cell(1), 1),
        ops::spin(),
    ];
    gives(&[&first, &second])?.took(0, &[0x52, 0x41])
}

/// IRR and ISR (SDM vol. 3 11.8.4).
fn pending_and_in_service() -> Outcome {
    passes(&[
        put(ending(0), Ending::Script as u64),
        to_x2apic(),
        enable(),
        interrupt_self(0x41),
        rdmsr(x2(IRR + 2)).gives(1 << 1),
        rdmsr(x2(ISR + 2)).gives(0),
        sti(),
        rdmsr(x2(IRR + 2)).gives(0),
        rdmsr(x2(ISR + 2)).gives(1 << 1),
        rdmsr(x2(TMR + 2)).gives(0),
        // Another of the same vector waits in IRR meanwhile.
        interrupt_self(0x41),
        rdmsr(x2(IRR + 2)).gives(1 << 1),
        get(counter(0, 0x41)).gives(1),
        wrmsr(x2(EOI), 0),
        get(counter(0, 0x41)).gives(2),
        rdmsr(x2(IRR + 2)).gives(0),
        rdmsr(x2(ISR + 2)).gives(1 << 1),
        wrmsr(x2(EOI), 0),
        rdmsr(x2(ISR + 2)).gives(0),
        end(),
    ])
}

fn higher_comes_first() -> Outcome {
    let pc = gives(&[&[
        to_x2apic(),
        enable(),
        interrupt_self(0x51),
        interrupt_self(0x31),
        interrupt_self(0xf1),
        interrupt_self(0x58),
        interrupt_self(0x81),
        sti(),
        spin_until(ops::interrupts(0), 5),
        end(),
    ]])?;
    pc.took(0, &[0xf1, 0x81, 0x58, 0x51, 0x31])
}

/// SDM vol. 3 11.8.3: one of the same class or a lower one waits.
fn lower_waits_for_the_end_of_a_higher() -> Outcome {
    let pc = gives(&[&[
        put(ending(0), Ending::Script as u64),
        to_x2apic(),
        enable(),
        sti(),
        interrupt_self(0x61),
        interrupt_self(0x51),
        interrupt_self(0x6f),
        get(ops::interrupts(0)).gives(1),
        interrupt_self(0x71),
        get(ops::interrupts(0)).gives(2),
        rdmsr(x2(PPR)).gives(0x70),
        wrmsr(x2(EOI), 0),
        get(ops::interrupts(0)).gives(2),
        rdmsr(x2(PPR)).gives(0x60),
        wrmsr(x2(EOI), 0),
        get(ops::interrupts(0)).gives(3),
        get(counter(0, 0x6f)).gives(1),
        wrmsr(x2(EOI), 0),
        get(ops::interrupts(0)).gives(4),
        rdmsr(x2(PPR)).gives(0x50),
        wrmsr(x2(EOI), 0),
        rdmsr(x2(PPR)).gives(0),
        end(),
    ]])?;
    pc.took(0, &[0x61, 0x71, 0x6f, 0x51])
}

/// SDM vol. 3 11.8.3.1: the class must be above that of TPR.
fn task_priority_masks() -> Outcome {
    let pc = gives(&[&[
        to_x2apic(),
        enable(),
        sti(),
        wrmsr(x2(TPR), 0x50),
        interrupt_self(0x5f),
        interrupt_self(0x31),
        get(ops::interrupts(0)).gives(0),
        interrupt_self(0x60),
        get(ops::interrupts(0)).gives(1),
        wrmsr(x2(TPR), 0x4f),
        get(ops::interrupts(0)).gives(2),
        wrmsr(x2(TPR), 0x20),
        get(ops::interrupts(0)).gives(3),
        wrmsr(x2(TPR), 0xff),
        interrupt_self(0xff),
        get(ops::interrupts(0)).gives(3),
        wrmsr(x2(TPR), 0xef),
        get(ops::interrupts(0)).gives(4),
        end(),
    ]])?;
    pc.took(0, &[0x60, 0x5f, 0x31, 0xff])
}

/// SDM vol. 3 11.8.6.1.
fn task_priority_is_cr8() -> Outcome {
    let pc = gives(&[&[
        to_x2apic(),
        enable(),
        sti(),
        set_cr8(5),
        cr8().gives(5),
        rdmsr(x2(TPR)).gives(0x50),
        wrmsr(x2(TPR), 0x6b),
        cr8().gives(6),
        set_cr8(6),
        rdmsr(x2(TPR)).gives(0x60),
        interrupt_self(0x61),
        get(ops::interrupts(0)).gives(0),
        set_cr8(5),
        get(ops::interrupts(0)).gives(1),
        set_cr8(15),
        interrupt_self(0xf0),
        get(ops::interrupts(0)).gives(1),
        set_cr8(0),
        get(ops::interrupts(0)).gives(2),
        end(),
    ]])?;
    pc.took(0, &[0x61, 0xf0])
}

/// The higher of TPR and of what is in service; where TPR's class is the higher one all of TPR.
fn processor_priority() -> Outcome {
    passes(&[
        put(ending(0), Ending::Script as u64),
        to_x2apic(),
        enable(),
        wrmsr(x2(TPR), 0x35),
        rdmsr(x2(PPR)).gives(0x35),
        sti(),
        interrupt_self(0x47),
        rdmsr(x2(PPR)).gives(0x40),
        wrmsr(x2(TPR), 0x59),
        rdmsr(x2(PPR)).gives(0x59),
        wrmsr(x2(TPR), 0),
        rdmsr(x2(PPR)).gives(0x40),
        wrmsr(x2(EOI), 0),
        rdmsr(x2(PPR)).gives(0),
        end(),
    ])
}

/// SDM vol. 3 11.4.7.2.
fn disabled_by_software() -> Outcome {
    passes(&[
        to_x2apic(),
        sti(),
        interrupt_self(0x41),
        rdmsr(x2(IRR + 2)).gives(0),
        wrmsr(x2(LVT_TIMER), 0x42),
        rdmsr(x2(LVT_TIMER)).gives(MASKED | 0x42),
        enable(),
        rdmsr(x2(LVT_TIMER)).gives(MASKED | 0x42),
        wrmsr(x2(LVT_TIMER), 0x42),
        rdmsr(x2(LVT_TIMER)).gives(0x42),
        wrmsr(x2(SVR), 0xff),
        rdmsr(x2(LVT_TIMER)).gives(MASKED | 0x42),
        interrupt_self(0x41),
        enable(),
        get(ops::interrupts(0)).gives(0),
        end(),
    ])
}

/// What is in IRR and ISR is held.
fn pending_when_disabled() -> Outcome {
    passes(&[
        to_x2apic(),
        enable(),
        interrupt_self(0x41),
        wrmsr(x2(SVR), 0xff),
        rdmsr(x2(IRR + 2)).gives(1 << 1),
        sti(),
        get(counter(0, 0x41)).gives(1),
        rdmsr(x2(ISR + 2)).gives(0),
        end(),
    ])
}

fn end_without_an_interrupt() -> Outcome {
    let pc = gives(&[&[
        to_x2apic(),
        enable(),
        sti(),
        wrmsr(x2(EOI), 0),
        wrmsr(x2(EOI), 0),
        interrupt_self(0x41),
        wrmsr(x2(EOI), 0),
        interrupt_self(0x42),
        end(),
    ]])?;
    pc.took(0, &[0x41, 0x42])
}

/// Vectors below 16 are an error that the error status register tells, and an interrupt (SDM vol. 3 11.5.3).
fn send_illegal_vector() -> Outcome {
    let pc = gives(&[&[
        to_x2apic(),
        enable(),
        wrmsr(x2(LVT_ERROR), 0x45),
        sti(),
        send(0, 0x0f),
        get(counter(0, 0x45)).gives(1),
        rdmsr(x2(ESR)).gives(0),
        wrmsr(x2(ESR), 0),
        rdmsr(x2(ESR)).gives(1 << 5),
        wrmsr(x2(ESR), 0),
        rdmsr(x2(ESR)).gives(0),
        interrupt_self(0),
        get(counter(0, 0x45)).gives(2),
        // 16 to 31 are legal, though exceptions have them.
        cli(),
        interrupt_self(0x1f),
        rdmsr(x2(IRR)).gives(1 << 31),
        end(),
    ]])?;
    pc.took(0, &[0x45, 0x45])
}

/// `VCPU_INTERRUPT` is an interrupt like others: it waits for its priority, and for its end.
fn interrupt_call_goes_through_it() -> Outcome {
    let ops = [
        to_x2apic(),
        enable(),
        wrmsr(x2(TPR), 0x60),
        sti(),
        spin_until(cell(0), 1),
        get(ops::interrupts(0)).gives(0),
        rdmsr(x2(IRR + 2)).gives(1 << 1),
        wrmsr(x2(TPR), 0),
        get(counter(0, 0x41)).gives(1),
        wrmsr(x2(SVR), 0xff),
        put(cell(1), 1),
        spin_until(cell(0), 2),
        get(counter(0, 0x42)).gives(0),
        end(),
    ];
    let pc = Pc::running(&[&ops])?;
    pc.until_done(0, 3)?;
    pc.vcpu(0).interrupt(0x41).must("interrupt")?;
    pc.set_word(cell(0), 1)?;
    pc.until_word(cell(1), 1)?;
    pc.vcpu(0).interrupt(0x42).must("interrupt")?;
    pc.set_word(cell(0), 2)?;
    pc.ends_with(0)?;
    pc.gave(0, &ops)
}

/// Registers are 32 bits wide. Narrower reads give a part, narrower writes do nothing; wider ones have the register as their lower
/// half.
fn memory_widths() -> Outcome {
    passes(&[
        read(4, x1(VERSION)).gives(0x0105_0014),
        read(1, x1(VERSION)).gives(0x14),
        read(1, x1(VERSION) + 2).gives(0x05),
        read(2, x1(VERSION) + 2).gives(0x0105),
        read(8, x1(VERSION)).gives(0x0105_0014),
        write(4, x1(SVR), 0x1ee),
        read(4, x1(SVR)).gives(0x1ee),
        write(1, x1(TPR), 0x50),
        write(2, x1(TPR), 0x50),
        read(4, x1(TPR)).gives(0),
        write(4, x1(TPR), 0x1250),
        read(4, x1(TPR)).gives(0x50),
        write(8, x1(TPR), 0xffff_ffff_0000_0060),
        read(4, x1(TPR)).gives(0x60),
        // Between registers there is nothing.
        write(4, x1(TPR) + 4, 0x70),
        read(4, x1(TPR) + 4).gives(0),
        read(4, x1(TPR)).gives(0x60),
        // Read-only: ignored, there is no fault.
        write(4, x1(VERSION), 0),
        read(4, x1(VERSION)).gives(0x0105_0014),
        // The halves of the interrupt command register, to nobody.
        write(4, x1(ICR_HIGH), 0x7000_0000),
        write(4, x1(ICR), 0x4041),
        read(4, x1(ICR_HIGH)).gives(0x7000_0000),
        read(4, x1(ICR)).gives(0x4041),
        end(),
    ])
}

fn memory_read_modify_write() -> Outcome {
    passes(&[
        write(4, x1(SVR), 0x0ff),
        or(x1(SVR), 0x100),
        read(4, x1(SVR)).gives(0x1ff),
        write(4, x1(LVT_ERROR), 0x42),
        or(x1(LVT_ERROR), MASKED),
        read(4, x1(LVT_ERROR)).gives(MASKED | 0x42),
        end(),
    ])
}

/// SDM vol. 3 11.5.3, "illegal register address".
fn memory_reserved_register() -> Outcome {
    passes(&[
        enable_x1(),
        read(4, x1(0x40)).gives(0),
        write(4, x1(ESR), 0),
        read(4, x1(ESR)).gives(1 << 7),
        write(4, x1(0x04), 0),
        write(4, x1(ESR), 0),
        read(4, x1(ESR)).gives(1 << 7),
        write(4, x1(ESR), 0),
        read(4, x1(ESR)).gives(0),
        end(),
    ])
}

fn memory_interrupts() -> Outcome {
    let pc = gives(&[&[
        put(ending(0), Ending::Memory as u64),
        enable_x1(),
        write(4, x1(TPR), 0x40),
        sti(),
        write(4, x1(ICR), 0x4_4041),
        write(4, x1(ICR), 0x4_4061),
        get(ops::interrupts(0)).gives(1),
        read(4, x1(IRR + 2)).gives(1 << 1),
        write(4, x1(TPR), 0),
        get(ops::interrupts(0)).gives(2),
        read(4, x1(ISR + 2)).gives(0),
        put(ending(0), Ending::Script as u64),
        write(4, x1(ICR), 0x4_4055),
        read(4, x1(ISR + 2)).gives(1 << 21),
        read(4, x1(PPR)).gives(0x50),
        write(4, x1(ICR), 0x4_4054),
        get(ops::interrupts(0)).gives(3),
        write(4, x1(EOI), 0),
        get(ops::interrupts(0)).gives(4),
        end(),
    ]])?;
    pc.took(0, &[0x61, 0x41, 0x55, 0x54])
}

/// The domain ends at the register page, as at memory that is not there.
fn ends_at_the_page(ops: &[Op]) -> Outcome {
    let pc = Pc::running(&[ops])?;
    let info = pc.ends(Reason::NESTED_FAULT)?;
    check_eq!(
        info.info[0],
        ops::LOCAL_APIC_GPA + u64::from(VERSION) * 16,
        "address"
    );
    Ok(())
}

fn memory_not_in_x2apic_mode() -> Outcome {
    ends_at_the_page(&[to_x2apic(), read(4, x1(VERSION)), end()])?;
    ends_at_the_page(&[to_x2apic(), write(4, x1(VERSION), 0), end()])
}

fn memory_not_while_disabled() -> Outcome {
    ends_at_the_page(&[wrmsr(APIC_BASE, BASE), read(4, x1(VERSION)), end()])
}

/// A domain that is no PC has neither the pages nor the MSRs.
fn memory_of_no_pc() -> Outcome {
    let plain = plinth_testkit::child::Plan {
        platform: 0,
        ..Pc::plan(1)
    };
    for op in [
        read(4, x1(VERSION)),
        read(4, ops::IO_APIC),
        write(4, x1(EOI), 0),
    ] {
        let pc = Pc::new(&plain)?;
        pc.load(0, &[op, end()])?;
        pc.start()?;
        pc.ends(Reason::NESTED_FAULT)?;
    }
    let ops = [
        rdmsr(x2(ID)).faults(),
        wrmsr(x2(EOI), 0).faults(),
        rdmsr(TSC_DEADLINE).faults(),
        rdmsr(0x4b56_4d01).faults(),
        wrmsr(0x4b56_4d00, DATA_PAGE).faults(),
        cpuid(1, 2).gives_in(1 << 21 | 1 << 24, 0),
        cpuid(1, 3).gives_in(1 << 9, 0),
        cpuid(LEAF_KVM, 1).gives_in(0xffff_ffff, NO_LEAF),
        end(),
    ];
    let pc = Pc::new(&plain)?;
    pc.load(0, &ops)?;
    pc.start()?;
    pc.ends_with(0)?;
    check!(
        pc.word(counter(0, 0x41))? == 0,
        "an interrupt without a controller"
    );
    pc.gave(0, &ops)
}

const DATA_PAGE: u64 = plinth_testkit::child::DATA;
/// What a leaf gives that is not there.
const NO_LEAF: u64 = 0;

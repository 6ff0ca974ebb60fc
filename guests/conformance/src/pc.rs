//! Domains that are PCs: what their vCPUs can rely on, and the calls by which their devices interrupt them.
//!
//! What the controllers do is asserted as the manuals have it: SDM vol. 3 chapter 11 for the local APIC, the datasheet of the 82093AA
//! for the I/O APIC, Linux's Documentation/virt/kvm/x86/msr.rst for the clock and for ends of interrupts without an exit.

pub mod cpus;
pub mod ends;
pub mod io;
pub mod local;
pub mod time;

use plinth_rt::abi::device::{kind, line};
use plinth_rt::abi::domain::platform;
use plinth_rt::abi::{Call, Claim, DomainState, Reason, Status, VcpuRun};
use plinth_rt::{Outcome, check, check_eq};
use plinth_testkit::pc::{self as ops, Op, Pc};

use crate::child::{Child, Plan, Temporary, config, spin};
use crate::devices::Served;
use crate::kit::{MS, Must, event, raw, refused, refuses, sleep, until};

tests!("pc":
    create,
    line_bad_arguments,
    line_of_no_pc,
    line_of_a_destroyed_domain,
    msi_bad_arguments,
    msi_of_no_pc,
    msi_of_a_destroyed_domain,
    acknowledge,
    acknowledge_bad_values,
    acknowledge_exists,
    acknowledge_release,
    halts_without_interrupts,
    halts_with_interrupts,
    halts_while_others_wait_for_a_start_up,
    waits_for_a_start_up_alone,
    halts_with_two_vcpus,
    halt_that_an_nmi_ends,
    event_bound_to_a_vector,
);

/// MSRs.
const APIC_BASE: u32 = 0x1b;
const TSC_DEADLINE: u32 = 0x6e0;

/// MSR_KVM_EOI_EN.
const KVM_EOI: u32 = 0x4b56_4d04;

/// Registers of a local APIC (SDM vol. 3 tables 11-1, 11-6): offset / 16, and MSR - 0x800.
const ID: u32 = 0x02;
const VERSION: u32 = 0x03;
const TPR: u32 = 0x08;
const PPR: u32 = 0x0a;
const EOI: u32 = 0x0b;
const LDR: u32 = 0x0d;
const DFR: u32 = 0x0e;
const SVR: u32 = 0x0f;
const ISR: u32 = 0x10;
const TMR: u32 = 0x18;
const IRR: u32 = 0x20;
const ESR: u32 = 0x28;
const ICR: u32 = 0x30;
const ICR_HIGH: u32 = 0x31;
const LVT_TIMER: u32 = 0x32;
const LVT_THERMAL: u32 = 0x33;
const LVT_COUNTERS: u32 = 0x34;
const LVT_LINT0: u32 = 0x35;
const LVT_LINT1: u32 = 0x36;
const LVT_ERROR: u32 = 0x37;
const INITIAL: u32 = 0x38;
const CURRENT: u32 = 0x39;
const DIVIDE: u32 = 0x3e;
const SELF: u32 = 0x3f;

/// Bits of an entry of the local vector table.
const MASKED: u64 = 1 << 16;

/// A script of several parts, one after the other, with an end.
fn joined(parts: &[&[Op]]) -> [Op; 32] {
    let mut script = [ops::end(); 32];
    assert!(parts.iter().map(|part| part.len()).sum::<usize>() < script.len());
    for (place, op) in script.iter_mut().zip(parts.iter().copied().flatten()) {
        *place = *op;
    }
    script
}

/// The MSR of a register.
const fn x2(register: u32) -> u32 {
    0x800 + register
}

/// The linear address of a register.
const fn x1(register: u32) -> u64 {
    ops::LOCAL_APIC + register as u64 * 16
}

/// To x2APIC mode.
const fn to_x2apic() -> Op {
    ops::wrmsr(APIC_BASE, 0xfee0_0c00)
}

/// Software enables the local APIC: in x2APIC mode.
const fn enable() -> Op {
    ops::wrmsr(x2(SVR), 0x1ff)
}

/// Software enables it: in xAPIC mode.
const fn enable_x1() -> Op {
    ops::write(4, x1(SVR), 0x1ff)
}

/// An interrupt to itself.
const fn interrupt_self(vector: u8) -> Op {
    ops::wrmsr(x2(SELF), vector as u64)
}

/// What an interrupt command to the vCPU with this APIC identifier is in x2APIC mode: edge, assert.
const fn command(destination: u32, low: u64) -> u64 {
    (destination as u64) << 32 | 0x4000 | low
}

/// Sends it.
const fn send(destination: u32, low: u64) -> Op {
    ops::wrmsr(x2(ICR), command(destination, low))
}

fn pc() -> Result<Child, plinth_rt::Why> {
    Child::new(&Plan {
        platform: platform::PC,
        ..Plan::new(spin())
    })
}

fn create() -> Outcome {
    let domain = Temporary::new(&plinth_rt::abi::DomainConfig {
        platform: platform::PC,
        ..config(b"pc")
    })?;
    check!(
        domain.info().must("info")?.state == DomainState::CREATED,
        "state"
    );
    // Devices may be there before vCPUs are.
    domain.set_line(0, true).must("line")?;
    domain.set_line(line::INTR, true).must("line")?;
    domain.send_msi(0xfee0_0000, 0x40).must("message")?;
    domain.create_vcpu().map(crate::kit::Owned).must("vCPU")?;
    domain.set_line(0, false).must("line")
}

fn line_bad_arguments() -> Outcome {
    let child = pc()?;
    let domain = raw(child.domain.any());
    for line in [
        u64::from(line::INTR) + 1,
        0xff,
        u64::from(u32::MAX),
        1 << 32,
        1 << 32 | 4,
        u64::MAX,
    ] {
        refuses(Call::DEVICE_LINE, [domain, line, 1], Status::BAD_ARGUMENT)?;
    }
    for level in [2, 1 << 32, 1 << 63, u64::MAX] {
        refuses(Call::DEVICE_LINE, [domain, 4, level], Status::BAD_ARGUMENT)?;
    }
    for line in 0..=line::INTR {
        for level in [true, true, false, false] {
            child.domain.set_line(line, level).must("line")?;
        }
    }
    Ok(())
}

fn line_of_no_pc() -> Outcome {
    let child = Child::new(&Plan::new(spin()))?;
    for line in [0, 23, line::INTR] {
        refused(
            child.domain.set_line(line, true),
            Status::WRONG_STATE,
            "line",
        )?;
    }
    Ok(())
}

fn line_of_a_destroyed_domain() -> Outcome {
    let child = pc()?;
    child.start()?;
    child.bring_to_the_end()?;
    child
        .domain
        .set_line(3, true)
        .must("line of one that ended")?;
    child.destroy()?;
    for line in [3, line::INTR] {
        refused(
            child.domain.set_line(line, false),
            Status::WRONG_STATE,
            "line",
        )?;
    }
    Ok(())
}

fn msi_bad_arguments() -> Outcome {
    let child = pc()?;
    let domain = raw(child.domain.any());
    for address in [
        0,
        0x1000,
        0xfec0_0000,
        0xfed0_0000,
        0xfef0_0000,
        1 << 32 | 0xfee0_0000,
        u64::MAX,
    ] {
        refuses(
            Call::DEVICE_MSI,
            [domain, address, 0x40],
            Status::BAD_ARGUMENT,
        )?;
    }
    // Above 32 bits; delivery modes that are reserved (SDM vol. 3 11.11.2); the end of a level.
    for data in [1 << 32 | 0x40, u64::MAX, 0x340, 0x640, 0x8040] {
        refuses(
            Call::DEVICE_MSI,
            [domain, 0xfee0_0000, data],
            Status::BAD_ARGUMENT,
        )?;
    }
    for data in [0x40, 0x4040, 0xc040, 0x140, 0x400] {
        child
            .domain
            .send_msi(0xfee0_0000, data)
            .must("a good message")?;
    }
    // Nobody is there.
    child.domain.send_msi(0xfee0_7000, 0x40).must("to nobody")
}

fn msi_of_no_pc() -> Outcome {
    let child = Child::new(&Plan::new(spin()))?;
    refused(
        child.domain.send_msi(0xfee0_0000, 0x40),
        Status::WRONG_STATE,
        "message",
    )
}

fn msi_of_a_destroyed_domain() -> Outcome {
    let child = pc()?;
    child.start()?;
    child.bring_to_the_end()?;
    child.destroy()?;
    refused(
        child.domain.send_msi(0xfee0_0000, 0x40),
        Status::WRONG_STATE,
        "message",
    )
}

fn acknowledge() -> Outcome {
    let served = Served::of(pc()?)?;
    for _ in 0..2 {
        served.claim(kind::ACKNOWLEDGE, 0, 1)?;
        served
            .child
            .domain
            .release(kind::ACKNOWLEDGE, 0)
            .must("release")?;
    }
    Ok(())
}

fn acknowledge_bad_values() -> Outcome {
    let served = Served::of(pc()?)?;
    let good = served.claim_of(kind::ACKNOWLEDGE, 0, 1);
    for (claim, what) in [
        (Claim { first: 1, ..good }, "first 1"),
        (
            Claim {
                first: u64::MAX,
                ..good
            },
            "the last first",
        ),
        (Claim { length: 0, ..good }, "length 0"),
        (Claim { length: 2, ..good }, "length 2"),
        (
            Claim {
                length: u64::MAX,
                ..good
            },
            "the last length",
        ),
        (
            Claim {
                reserved: 1,
                ..good
            },
            "reserved",
        ),
    ] {
        refused(
            served.child.domain.claim(&claim),
            Status::BAD_ARGUMENT,
            what,
        )?;
    }
    served.child.domain.claim(&good).must("the good one")
}

fn acknowledge_exists() -> Outcome {
    let served = Served::of(pc()?)?;
    served.claim(kind::ACKNOWLEDGE, 0, 1)?;
    let again = served.claim_of(kind::ACKNOWLEDGE, 0, 1);
    refused(served.child.domain.claim(&again), Status::EXISTS, "again")?;
    // Ports and addresses of the same numbers are something else.
    served.claim(kind::PORTS, 0, 1)?;
    served.claim(kind::MMIO, 0x10_0000, 4096)
}

fn acknowledge_release() -> Outcome {
    let served = Served::of(pc()?)?;
    let domain = &served.child.domain;
    refused(
        domain.release(kind::ACKNOWLEDGE, 0),
        Status::NOT_FOUND,
        "nothing claimed",
    )?;
    served.claim(kind::ACKNOWLEDGE, 0, 1)?;
    refused(
        domain.release(kind::ACKNOWLEDGE, 1),
        Status::NOT_FOUND,
        "not its first",
    )?;
    domain.release(kind::ACKNOWLEDGE, 0).must("release")
}

/// No interrupt can end HLT while RFLAGS.IF is clear, though one is there.
fn halts_without_interrupts() -> Outcome {
    let pc = Pc::running(&[&[to_x2apic(), enable(), interrupt_self(0x41), ops::hlt()]])?;
    pc.ends(Reason::HALTED)?;
    pc.took(0, &[])
}

/// Waits until a vCPU does not run.
fn until_blocked(child: &Child, vcpu: usize) -> Outcome {
    until("a vCPU that waits", || {
        Ok(child.vcpu(vcpu).info().must("info")?.run == VcpuRun::BLOCKED)
    })
}

/// With it set one may come from anywhere at any time, even where no source of one is known.
fn halts_with_interrupts() -> Outcome {
    let pc = Pc::running(&[&[to_x2apic(), enable(), ops::sti_hlt(), ops::end()]])?;
    until_blocked(&pc, 0)?;
    sleep(3 * MS);
    check!(pc.is(DomainState::RUNNING)?, "not RUNNING");
    pc.vcpu(0).interrupt(0x52).must("interrupt")?;
    pc.ends_with(0)?;
    pc.took(0, &[0x52])
}

fn halts_while_others_wait_for_a_start_up() -> Outcome {
    let mut pc = Pc::new(&Pc::plan(1))?;
    pc.add_vcpu()?;
    pc.load(0, &[ops::hlt()])?;
    pc.start()?;
    pc.ends(Reason::HALTED)?;
    Ok(())
}

/// The first vCPU has been told by its maker where to begin, which ends its wait; the others have not.
fn waits_for_a_start_up_alone() -> Outcome {
    let mut pc = Pc::new(&Pc::plan(1))?;
    for _ in 0..2 {
        pc.add_vcpu()?;
    }
    pc.load(0, &[ops::spin_until(ops::cell(0), 1), ops::hlt()])?;
    pc.start()?;
    for vcpu in 1..3 {
        until_blocked(&pc, vcpu)?;
    }
    sleep(2 * MS);
    check!(pc.is(DomainState::RUNNING)?, "not RUNNING");
    for vcpu in 1..3 {
        // The state of reset: nothing was executed.
        check_eq!(
            pc.vcpu(vcpu).info().must("info")?.exits.iter().sum::<u64>(),
            0,
            "exits"
        );
    }
    pc.set_word(ops::cell(0), 1)?;
    pc.ends(Reason::HALTED)?;
    Ok(())
}

fn halts_with_two_vcpus() -> Outcome {
    let pc = Pc::running(&[
        &[ops::hlt()],
        &[ops::spin_until(ops::cell(0), 1), ops::hlt()],
    ])?;
    until_blocked(&pc, 0)?;
    sleep(2 * MS);
    check!(pc.is(DomainState::RUNNING)?, "ended by the first");
    pc.set_word(ops::cell(0), 1)?;
    pc.ends(Reason::HALTED)?;
    Ok(())
}

/// It is an interrupt like others: it ends HLT, and has a priority.
fn event_bound_to_a_vector() -> Outcome {
    let script = [
        to_x2apic(),
        enable(),
        ops::sti_hlt(),
        ops::get(ops::counter(0, 0x41)).gives(1),
        ops::wrmsr(x2(TPR), 0x40),
        ops::spin_until(ops::cell(0), 1),
        ops::get(ops::counter(0, 0x41)).gives(1),
        ops::wrmsr(x2(TPR), 0),
        ops::get(ops::counter(0, 0x41)).gives(2),
        ops::end(),
    ];
    let pc = Pc::running(&[&script])?;
    let event = event()?;
    event.bind_vector(pc.vcpu(0), 0x41).must("bind")?;
    pc.until_done(0, 1)?;
    until_blocked(&pc, 0)?;
    event.signal().must("signal")?;
    pc.until_done(0, 4)?;
    event.signal().must("signal")?;
    pc.set_word(ops::cell(0), 1)?;
    pc.ends_with(0)?;
    pc.gave(0, &script)
}

/// A vCPU that halts with RFLAGS.IF clear has not halted for good as long as another one runs.
fn halt_that_an_nmi_ends() -> Outcome {
    let first = [
        to_x2apic(),
        ops::spin_until(ops::cell(0), 1),
        send(1, 0x400),
        ops::spin_until(ops::cell(1), 1),
        ops::end(),
    ];
    let second = [ops::hlt(), ops::put(ops::cell(1), 1), ops::hlt()];
    let pc = Pc::running(&[&first, &second])?;
    until_blocked(&pc, 1)?;
    pc.set_word(ops::cell(0), 1)?;
    pc.ends_with(0)?;
    check_eq!(pc.word(ops::counter(1, ops::NMI_VECTOR))?, 1, "NMIs");
    Ok(())
}

//! Handles that are guessed, used after their end, or asked for more than they allow. An attacker knows the calls, and how handles are
//! made (`abi/src/handle.rs`): a place in bits 15:0, how often it was used in bits 31:16.

use plinth_rt::abi::call::{access, power, watch};
use plinth_rt::abi::{Call, DomainState, Schedule, Status, rights};
use plinth_rt::object::Any;
use plinth_rt::{Outcome, check, check_eq, hypercall};
use plinth_testkit::child::{Child, Plan as ChildPlan, count};
use plinth_testkit::kit::{Must, duplicate, event, memory, own, raw, refused, system};

use crate::attacker::{Attacker, FREE, Plan, inside, ordered};

cases!("handles":
    every_place,
    every_use_of_each_place,
    numbers_above_32_bits,
    numbers_of_the_suites_own,
    one_that_was_closed,
    one_that_was_closed_again_and_again,
    of_a_domain_that_is_destroyed,
    every_call_with_the_wrong_type,
    rights_by_duplicating,
    rights_by_granting_to_oneself,
    rights_in_a_circle,
    memory_to_be_read_only,
    domain_without_each_right,
    system_to_be_read_only,
    physical_memory_of_the_machine,
);

/// The call, which must answer so.
fn answers<const N: usize>(call: Call, arguments: [u64; N], expected: Status) -> Outcome {
    let (status, _) = hypercall::call(call, arguments);
    check!(
        status == expected,
        "{}{arguments:x?}: {status:?}, expected {expected:?}",
        call.name()
    );
    Ok(())
}

fn nobody(handle: u64) -> Outcome {
    answers(Call::HANDLE_INFO, [handle], Status::BAD_HANDLE)
}

fn every_place() -> Outcome {
    inside(|| {
        for handle in 0..0x1200 {
            nobody(handle)?;
        }
        for handle in (0..0x1_0000).step_by(64) {
            nobody(handle | 0x1_0000)?;
        }
        Ok(())
    })
}

/// With one handle in the table, its number is the only one that names anything.
fn every_use_of_each_place() -> Outcome {
    let attacker = Attacker::new(&Plan::new(|| {
        let own = ordered(0);
        for place in 0..4 {
            for uses in (0..0x400u64).chain((0x400..0x1_0000).step_by(97)) {
                let handle = uses << 16 | place;
                if handle != own {
                    nobody(handle)?;
                }
            }
        }
        answers(Call::HANDLE_INFO, [own], Status::OK)
    }))?;
    attacker.succeeds_with(event()?.any(), rights::SIGNAL)
}

fn numbers_above_32_bits() -> Outcome {
    let attacker = Attacker::new(&Plan::new(|| {
        let own = ordered(0);
        for bit in 32..64 {
            nobody(own | 1 << bit)?;
            answers(Call::EVENT_SIGNAL, [own | 1 << bit], Status::BAD_HANDLE)?;
        }
        nobody(own | u64::MAX << 32)?;
        answers(Call::EVENT_SIGNAL, [own], Status::OK)
    }))?;
    attacker.succeeds_with(event()?.any(), rights::SIGNAL)
}

/// What they name is a matter of whose table it is.
fn numbers_of_the_suites_own() -> Outcome {
    let attacker = Attacker::new(&Plan::new(|| {
        for index in 0..4 {
            nobody(ordered(index))?;
            answers(Call::DOMAIN_KILL, [ordered(index)], Status::BAD_HANDLE)?;
        }
        Ok(())
    }))?;
    for (index, any) in [
        (0, system().any()),
        (1, own().any()),
        (2, attacker.domain.any()),
        (3, attacker.memory.any()),
    ] {
        attacker.order(index, raw(any))?;
    }
    attacker.start()?;
    attacker.succeeds()
}

fn one_that_was_closed() -> Outcome {
    let attacker = Attacker::new(&Plan::new(|| {
        let own = ordered(0);
        answers(Call::EVENT_SIGNAL, [own], Status::OK)?;
        answers(Call::HANDLE_CLOSE, [own], Status::OK)?;
        for call in [
            Call::EVENT_SIGNAL,
            Call::EVENT_BIND,
            Call::EVENT_UNBIND,
            Call::HANDLE_CLOSE,
            Call::HANDLE_INFO,
            Call::HANDLE_DUPLICATE,
        ] {
            answers(call, [own, 0], Status::BAD_HANDLE)?;
        }
        Ok(())
    }))?;
    attacker.succeeds_with(event()?.any(), rights::SIGNAL | rights::BIND)
}

/// Each use of a place has another number, and those before it stay nobody's.
fn one_that_was_closed_again_and_again() -> Outcome {
    let attacker = Attacker::new(&Plan::new(|| {
        let own = ordered(0);
        let mut last = [0; 8];
        for round in 0..500usize {
            let (status, handle) =
                hypercall::call(Call::HANDLE_DUPLICATE, [own, rights::SIGNAL.into()]);
            check!(status == Status::OK, "duplicate: {status:?}");
            check!(!last.contains(&handle), "{handle:#x} again");
            for old in last {
                nobody(old)?;
            }
            last[round % 8] = handle;
            answers(Call::HANDLE_CLOSE, [handle], Status::OK)?;
        }
        Ok(())
    }))?;
    attacker.succeeds_with(event()?.any(), rights::SIGNAL)
}

fn of_a_domain_that_is_destroyed() -> Outcome {
    let attacker = Attacker::new(&Plan::new(|| {
        let domain = ordered(0);
        for call in [
            Call::DOMAIN_START,
            Call::DOMAIN_PAUSE,
            Call::DOMAIN_RESUME,
            Call::DOMAIN_KILL,
            Call::DOMAIN_DESTROY,
            Call::VCPU_CREATE,
            Call::EVENT_CREATE,
        ] {
            answers(call, [domain], Status::WRONG_STATE)?;
        }
        answers(Call::VCPU_OPEN, [domain, 0], Status::NOT_FOUND)
            .or_else(|_| answers(Call::VCPU_OPEN, [domain, 0], Status::WRONG_STATE))?;
        answers(
            Call::DOMAIN_READ,
            [domain, FREE, 8, 0x2000],
            Status::WRONG_STATE,
        )?;
        answers(
            Call::DOMAIN_WRITE,
            [domain, FREE, 8, 0x2000],
            Status::WRONG_STATE,
        )?;
        answers(Call::MEMORY_CREATE, [domain, 4096], Status::WRONG_STATE)?;
        answers(Call::MEMORY_UNMAP, [domain, 0, 4096], Status::WRONG_STATE)?;
        answers(Call::DOMAIN_INFO, [domain, FREE], Status::OK)
    }))?;
    let victim = Child::new(&ChildPlan::new(count()))?;
    let handle = attacker.give(victim.domain.any(), rights::DOMAIN)?;
    attacker.order(0, handle)?;
    victim.destroy()?;
    check!(victim.is(DomainState::DESTROYED)?, "not destroyed");
    attacker.start()?;
    attacker.succeeds()
}

/// Calls that want a handle of another type than an event's.
fn every_call_with_the_wrong_type() -> Outcome {
    let attacker = Attacker::new(&Plan::new(|| {
        let event = ordered(0);
        for (call, _) in Call::ALL {
            let wants_any_or_event = matches!(call.0, 0x00..0x10 | 0x40..0x50 | 0x70..0x80);
            if !wants_any_or_event {
                answers(
                    *call,
                    [event, event, event, event, event, event],
                    Status::WRONG_TYPE,
                )?;
            }
        }
        answers(Call::EVENT_CREATE, [event], Status::WRONG_TYPE)?;
        answers(
            Call::EVENT_BIND_VECTOR,
            [event, event, 0x40],
            Status::WRONG_TYPE,
        )?;
        answers(Call::HANDLE_GRANT, [event, event, 0], Status::WRONG_TYPE)
    }))?;
    attacker.succeeds_with(event()?.any(), rights::EVENT)
}

/// Each right that there is, and each number that is none.
fn rights_by_duplicating() -> Outcome {
    let attacker = Attacker::new(&Plan::new(|| {
        let own = ordered(0);
        let has = u64::from(rights::READ | rights::MEMORY);
        for bit in 0..64 {
            let wanted = 1 << bit;
            let expected = match bit {
                32.. => Status::BAD_ARGUMENT,
                _ if has & wanted != 0 => continue,
                _ => Status::NO_RIGHT,
            };
            answers(Call::HANDLE_DUPLICATE, [own, wanted], expected)?;
            answers(Call::HANDLE_DUPLICATE, [own, has | wanted], expected)?;
        }
        answers(
            Call::HANDLE_DUPLICATE,
            [own, u32::MAX.into()],
            Status::NO_RIGHT,
        )
    }))?;
    attacker.succeeds_with(attacker.domain.any(), rights::READ | rights::MEMORY)
}

fn rights_by_granting_to_oneself() -> Outcome {
    let attacker = Attacker::new(&Plan::new(|| {
        let [own, event, closed] = [ordered(0), ordered(1), ordered(2)];
        let (bind, signal) = (rights::BIND.into(), rights::SIGNAL.into());
        answers(Call::HANDLE_GRANT, [event, own, bind], Status::NO_RIGHT)?;
        answers(
            Call::HANDLE_GRANT,
            [event, own, u32::MAX.into()],
            Status::NO_RIGHT,
        )?;
        // Without GRANT nothing at all.
        answers(Call::HANDLE_GRANT, [closed, own, signal], Status::NO_RIGHT)?;
        answers(Call::HANDLE_GRANT, [closed, own, 0], Status::NO_RIGHT)?;
        let (status, handle) = hypercall::call(Call::HANDLE_GRANT, [event, own, signal]);
        check!(status == Status::OK, "what it has: {status:?}");
        let (_, info) = hypercall::call(Call::HANDLE_INFO, [handle]);
        check_eq!(info & 0xffff_ffff, signal, "rights");
        // What was granted without GRANT goes no further.
        answers(Call::HANDLE_GRANT, [handle, own, 0], Status::NO_RIGHT)
    }))?;
    let event = event()?;
    let own = attacker.give(attacker.domain.any(), rights::CHARGE)?;
    let open = attacker.give(event.any(), rights::GRANT | rights::SIGNAL)?;
    let closed = attacker.give(event.any(), rights::SIGNAL)?;
    for (index, handle) in [(0, own), (1, open), (2, closed)] {
        attacker.order(index, handle)?;
    }
    attacker.start()?;
    attacker.succeeds()
}

/// From one domain to another and back a handle loses what it lost on the way.
fn rights_in_a_circle() -> Outcome {
    let victim = Child::new(&ChildPlan::new(count()))?;
    let mut any = duplicate(victim.domain.any(), rights::DOMAIN)?;
    let mut left = rights::DOMAIN;
    for right in [
        rights::CONTROL,
        rights::MEMORY,
        rights::DEVICE,
        rights::CHARGE,
        rights::WRITE,
    ] {
        left &= !right;
        // The suite's own table is the other domain's here, by way of a grant to itself.
        let granted = any.grant(own(), left).must("grant")?;
        let next = plinth_testkit::kit::Owned(Any(granted));
        let (_, has) = next.info().must("info")?;
        check_eq!(has, left, "rights");
        refused(
            next.duplicate(left | right),
            Status::NO_RIGHT,
            "what was lost",
        )?;
        refused(
            next.grant(own(), left | right),
            Status::NO_RIGHT,
            "what was lost",
        )?;
        any = next;
    }
    Ok(())
}

fn memory_to_be_read_only() -> Outcome {
    let attacker = Attacker::new(&Plan::new(|| {
        let [own, memory] = [ordered(0), ordered(1)];
        const PLACE: u64 = 4 << 20;
        for wanted in [
            access::READ | access::WRITE,
            access::READ | access::EXECUTE,
            access::ALL,
        ] {
            let arguments = [memory, 0, own, PLACE, 4096, wanted];
            answers(Call::MEMORY_MAP, arguments, Status::NO_RIGHT)?;
        }
        answers(Call::MEMORY_POPULATE, [memory], Status::NO_RIGHT)?;
        let arguments = [memory, 0, own, PLACE, 4096, access::READ];
        answers(Call::MEMORY_MAP, arguments, Status::OK)?;
        for wanted in [
            access::READ | access::WRITE,
            access::READ | access::EXECUTE,
            access::ALL,
        ] {
            let arguments = [own, PLACE, 4096, wanted];
            answers(Call::MEMORY_PROTECT, arguments, Status::NO_RIGHT)?;
        }
        // A call does not write there for it either.
        answers(
            Call::DOMAIN_WRITE,
            [own, FREE, 8, PLACE],
            Status::BAD_ADDRESS,
        )?;
        answers(Call::DOMAIN_INFO, [own, PLACE], Status::BAD_ADDRESS)?;
        answers(Call::MEMORY_UNMAP, [own, PLACE, 4096], Status::OK)
    }))?;
    let page = memory(4096)?;
    let own = attacker.give(attacker.domain.any(), rights::MEMORY | rights::READ)?;
    let memory = attacker.give(page.any(), rights::READ)?;
    attacker.order(0, own)?;
    attacker.order(1, memory)?;
    attacker.start()?;
    attacker.succeeds()
}

/// A victim's domain, with every right but one, and what that one is for. Other arguments are good.
fn domain_without_each_right() -> Outcome {
    const WITHOUT: [u32; 7] = [
        rights::READ,
        rights::WRITE,
        rights::CONTROL,
        rights::MEMORY,
        rights::DEVICE,
        rights::CHARGE,
        rights::GRANT,
    ];
    let attacker = Attacker::new(&Plan::new(|| {
        let [read, write, control, memory, device, charge, grant] =
            core::array::from_fn(|index| ordered(index as u64));
        let no = Status::NO_RIGHT;
        answers(Call::DOMAIN_INFO, [read, FREE], no)?;
        answers(Call::DOMAIN_CONSOLE, [read, FREE, 4096, 0], no)?;
        answers(Call::DOMAIN_TYPE, [write, FREE, 1], no)?;
        for call in [
            Call::DOMAIN_START,
            Call::DOMAIN_PAUSE,
            Call::DOMAIN_RESUME,
            Call::DOMAIN_KILL,
            Call::DOMAIN_DESTROY,
            Call::VCPU_CREATE,
        ] {
            answers(call, [control], no)?;
        }
        answers(Call::DOMAIN_WATCH, [control, 0, watch::ALL], no)?;
        answers(Call::VCPU_OPEN, [control, 0], no)?;
        answers(Call::DOMAIN_READ, [memory, FREE, 8, 0x2000], no)?;
        answers(Call::DOMAIN_WRITE, [memory, FREE, 8, 0x2000], no)?;
        answers(Call::MEMORY_UNMAP, [memory, 0, 4096], no)?;
        answers(Call::MEMORY_PROTECT, [memory, 0, 4096, access::READ], no)?;
        answers(Call::MEMORY_DIRTY, [memory, 0, 4096, FREE], no)?;
        answers(Call::DEVICE_CLAIM, [device, FREE], no)?;
        answers(Call::DEVICE_RELEASE, [device, 1, 0], no)?;
        answers(Call::DEVICE_COMPLETE, [device, 0, 0], no)?;
        answers(Call::DEVICE_LINE, [device, 1, 1], no)?;
        answers(Call::DEVICE_MSI, [device, 0xfee0_0000, 0x40], no)?;
        answers(Call::DEVICE_COMPLETE_AND_WAIT, [device, 0, 0, 0], no)?;
        answers(Call::MEMORY_CREATE, [charge, 4096], no)?;
        answers(Call::EVENT_CREATE, [charge], no)?;
        answers(Call::HANDLE_GRANT, [read, charge, 0], no)?;
        answers(Call::HANDLE_GRANT, [grant, read, 0], no)
    }))?;
    let victim = Child::new(&ChildPlan::new(count()))?;
    victim.start()?;
    for (index, without) in (0..).zip(WITHOUT) {
        let handle = attacker.give(victim.domain.any(), rights::DOMAIN & !without)?;
        attacker.order(index, handle)?;
    }
    attacker.start()?;
    attacker.succeeds()?;
    check!(victim.is(DomainState::RUNNING)?, "the victim does not run");
    let usual = victim.vcpu(0).info().must("info")?.schedule;
    check!(usual == Schedule::USUAL, "{usual:?}");
    Ok(())
}

/// The machine goes on.
fn system_to_be_read_only() -> Outcome {
    let attacker = Attacker::new(&Plan::new(|| {
        let system = ordered(0);
        let no = Status::NO_RIGHT;
        for action in [power::OFF, power::REBOOT, power::HALT, 3, u64::MAX] {
            answers(Call::SYSTEM_POWER, [system, action, 0], no)?;
        }
        answers(Call::DOMAIN_CREATE, [system, FREE], no)?;
        answers(Call::MEMORY_PHYSICAL, [system, 0, 4096], no)?;
        for number in 0..64 {
            answers(Call::DOMAIN_OPEN, [system, number], no)?;
        }
        answers(Call::SYSTEM_INFO, [system, FREE], Status::OK)
    }))?;
    attacker.succeeds_with(system().any(), rights::READ)
}

/// With the right to device memory: RAM is none, nor are the kernel's own devices, nor what wraps.
fn physical_memory_of_the_machine() -> Outcome {
    let attacker = Attacker::new(&Plan::new(|| {
        let system = ordered(0);
        for (address, bytes) in [
            (1 << 20, 4096),
            (16 << 20, 1 << 20),
            (64 << 20, 4096),
            (0xfee0_0000, 4096),
            (0xfee0_0000 - 4096, 8192),
            (0xfec0_0000, 4096),
            (0xfe00_0000, 0x100_0000),
            (0, 4 << 30),
        ] {
            answers(
                Call::MEMORY_PHYSICAL,
                [system, address, bytes],
                Status::WRONG_STATE,
            )?;
        }
        for (address, bytes) in [
            (0, 0),
            (1, 4096),
            (4096, 1),
            (u64::MAX - 4095, 4096),
            (u64::MAX - 4095, 8192),
            (1 << 52, 4096),
            (4096, u64::MAX - 4095),
            (4096, 2 << 40),
        ] {
            answers(
                Call::MEMORY_PHYSICAL,
                [system, address, bytes],
                Status::BAD_ARGUMENT,
            )?;
        }
        Ok(())
    }))?;
    attacker.succeeds_with(system().any(), rights::PHYSICAL)
}

//! Handles: what they name, for how long, and that rights never grow.

use plinth_rt::abi::call::access;
use plinth_rt::abi::{Call, DomainConfig, Handle, ObjectType, Reason, Status, rights};
use plinth_rt::object::{Any, Event, bytes_of};
use plinth_rt::{Outcome, check, check_eq};

use crate::child::{Child, DATA, Plan, Step, Temporary, agents, caller, config, give, lets, spin};
use crate::kit::{
    Must, Owned, Random, duplicate, event, memory, names, own, pending, raw, refused, refuses,
    system,
};
use crate::objects::{Objects, TYPES};

tests!("handle":
    info,
    duplicate_each_type,
    duplicate_without_rights,
    duplicate_cannot_grow,
    duplicate_bad_rights,
    duplicate_over_budget,
    grant_each_type,
    grant_cannot_grow,
    grant_bad_rights,
    grant_over_budget,
    grant_to_itself,
    grant_in_a_chain,
    grant_is_of_the_other_table,
    granted_domain_is_controlled,
    granted_memory_is_mapped,
    granted_system_makes_domains,
    child_cannot_grow,
    close,
    close_of_one_of_two,
    close_twice,
    closed_number_names_nothing_again,
    numbers_without_meaning,
    table_full,
);

fn info() -> Outcome {
    let objects = Objects::new()?;
    for (kind, all) in TYPES {
        if let Some(object) = objects.get(kind) {
            check!(object.0 != Handle::NONE, "{} is 0", kind.text());
            let (seen, has) = object.info().must("info")?;
            check!(seen == kind, "{}, expected {}", seen.text(), kind.text());
            check_eq!(has & !all, 0, "rights that the type does not have");
        }
    }
    names(system().any(), ObjectType::SYSTEM, rights::SYSTEM)?;
    names(own().any(), ObjectType::DOMAIN, rights::DOMAIN)
}

/// The bits of a number, each alone.
fn bits(of: u32) -> impl Iterator<Item = u32> {
    (0..32).map(|bit| 1 << bit).filter(move |bit| of & bit != 0)
}

fn duplicate_each_type() -> Outcome {
    let objects = Objects::new()?;
    for (kind, _) in TYPES {
        let Some(object) = objects.get(kind) else {
            continue;
        };
        let (_, all) = object.info().must("info")?;
        for some in bits(all)
            .map(|bit| all & !bit)
            .chain(bits(all))
            .chain([all])
        {
            let other = duplicate(object, some)?;
            check!(*other != object, "the same handle");
            names(*other, kind, some)?;
        }
        names(object, kind, all)?;
    }
    Ok(())
}

fn duplicate_without_rights() -> Outcome {
    let event = event()?;
    let none = duplicate(event.any(), 0)?;
    names(*none, ObjectType::EVENT, 0)?;
    refused(Event(none.0.0).signal(), Status::NO_RIGHT, "signal")?;
    refused(none.duplicate(rights::SIGNAL), Status::NO_RIGHT, "growth")
}

/// From each handle with one right missing, that right cannot be had; nor those that the type does not have.
fn duplicate_cannot_grow() -> Outcome {
    let objects = Objects::new()?;
    for (kind, _) in TYPES {
        let Some(object) = objects.get(kind) else {
            continue;
        };
        let (_, all) = object.info().must("info")?;
        for bit in bits(all) {
            let weak = duplicate(object, all & !bit)?;
            for wanted in [bit, all] {
                refused(weak.duplicate(wanted), Status::NO_RIGHT, kind.text())?;
            }
        }
        for bit in bits(!all) {
            refused(object.duplicate(bit), Status::NO_RIGHT, kind.text())?;
            refused(object.duplicate(all | bit), Status::NO_RIGHT, kind.text())?;
        }
    }
    Ok(())
}

fn duplicate_bad_rights() -> Outcome {
    let event = event()?;
    for wanted in [1 << 32, 1 << 63, u64::MAX] {
        refuses(
            Call::HANDLE_DUPLICATE,
            [raw(event.any()), wanted],
            Status::BAD_ARGUMENT,
        )?;
    }
    Ok(())
}

/// A child with room for one handle more than it has.
fn duplicate_over_budget() -> Outcome {
    let child = Child::new(&Plan {
        handles: 2,
        ..agents(1)
    })?;
    let event = event()?;
    let handle = give(&child, event.any(), rights::SIGNAL)?;
    let duplicate = Step::new(Call::HANDLE_DUPLICATE, [handle, rights::SIGNAL.into()]);
    lets(
        &child,
        &[
            duplicate.to(0),
            duplicate,
            Step::new(Call::HANDLE_CLOSE, [0]).from(0),
            duplicate,
        ],
    )?;
    child.answered(0, 0, Status::OK)?;
    child.answered(0, 1, Status::OVER_BUDGET)?;
    child.answered(0, 2, Status::OK)?;
    child.answered(0, 3, Status::OK)?;
    Ok(())
}

fn grant_each_type() -> Outcome {
    let objects = Objects::new()?;
    let child = caller()?;
    let mut steps = [Step::new(Call::VERSION, []); 7];
    let mut given = [None; 7];
    for ((kind, _), (step, given)) in TYPES
        .into_iter()
        .zip(steps.iter_mut().zip(given.iter_mut()))
    {
        if let Some(object) = objects.get(kind) {
            let (_, all) = object.info().must("info")?;
            let handle = give(&child, object, all)?;
            *step = Step::new(Call::HANDLE_INFO, [handle]);
            *given = Some(u64::from(kind.0) << 32 | u64::from(all));
        }
    }
    lets(&child, &steps)?;
    for (index, expected) in given.into_iter().enumerate() {
        if let Some(expected) = expected {
            let seen = child.answered(0, index, Status::OK)?;
            check_eq!(seen, expected, "type and rights in the child");
        }
    }
    Ok(())
}

fn grant_cannot_grow() -> Outcome {
    let objects = Objects::new()?;
    let child = caller()?;
    for (kind, _) in TYPES {
        let Some(object) = objects.get(kind) else {
            continue;
        };
        let (_, all) = object.info().must("info")?;
        for bit in bits(all & !rights::GRANT) {
            let weak = duplicate(object, all & !bit)?;
            refused(
                weak.grant(*child.domain, all),
                Status::NO_RIGHT,
                kind.text(),
            )?;
        }
        for bit in bits(!all) {
            refused(
                object.grant(*child.domain, bit),
                Status::NO_RIGHT,
                kind.text(),
            )?;
        }
        let kept = duplicate(object, all & !rights::GRANT)?;
        refused(kept.grant(*child.domain, 0), Status::NO_RIGHT, kind.text())?;
    }
    check_eq!(
        child.domain.info().must("info")?.handles,
        0,
        "handles of the child"
    );
    Ok(())
}

fn grant_bad_rights() -> Outcome {
    let objects = Objects::new()?;
    for wanted in [1 << 32, 1 << 63, u64::MAX] {
        refuses(
            Call::HANDLE_GRANT,
            [
                raw(objects.event.any()),
                raw(objects.child.domain.any()),
                wanted,
            ],
            Status::BAD_ARGUMENT,
        )?;
    }
    Ok(())
}

fn grant_over_budget() -> Outcome {
    let child = Child::new(&Plan {
        handles: 3,
        ..Plan::new(spin())
    })?;
    let event = event()?;
    for _ in 0..3 {
        give(&child, event.any(), rights::SIGNAL)?;
    }
    refused(
        event.any().grant(*child.domain, rights::SIGNAL),
        Status::OVER_BUDGET,
        "the fourth",
    )?;
    check_eq!(child.domain.info().must("info")?.handles, 3, "handles");
    Ok(())
}

fn grant_to_itself() -> Outcome {
    let event = event()?;
    let other = event
        .any()
        .grant(own(), rights::SIGNAL)
        .must("grant")
        .map(|handle| Owned(Any(handle)))?;
    names(*other, ObjectType::EVENT, rights::SIGNAL)?;
    event.bind(6).must("bind")?;
    Event(other.0.0).signal().must("signal")?;
    check!(pending()? == Some(6), "another event");
    Ok(())
}

/// From the suite to one child, from that to another, each time with fewer rights.
fn grant_in_a_chain() -> Outcome {
    let (first, second) = (caller()?, caller()?);
    let event = event()?;
    let handle = give(&first, event.any(), rights::EVENT)?;
    let domain = give(&first, second.domain.any(), rights::CHARGE)?;
    lets(
        &first,
        &[
            Step::new(Call::HANDLE_GRANT, [handle, domain, rights::SIGNAL.into()]),
            Step::new(Call::HANDLE_GRANT, [domain, domain, rights::CHARGE.into()]),
        ],
    )?;
    let handle = first.answered(0, 0, Status::OK)?;
    // Its handle to the second domain may not be granted on.
    first.answered(0, 1, Status::NO_RIGHT)?;
    drop(first);
    lets(
        &second,
        &[
            Step::new(Call::EVENT_SIGNAL, [handle]),
            Step::new(Call::EVENT_BIND, [handle, 1]),
        ],
    )?;
    second.answered(0, 0, Status::OK)?;
    second.answered(0, 1, Status::NO_RIGHT)?;
    event.bind(0x77).must("bind")?;
    check!(pending()? == Some(0x77), "it was not signalled");
    Ok(())
}

/// A handle's number means something in its own table only.
fn grant_is_of_the_other_table() -> Outcome {
    let child = caller()?;
    let event = event()?;
    let handle = give(&child, event.any(), rights::SIGNAL)?;
    lets(
        &child,
        &[
            Step::new(Call::HANDLE_INFO, [raw(system().any())]),
            Step::new(Call::HANDLE_INFO, [raw(own().any())]),
            Step::new(Call::HANDLE_INFO, [raw(event.any())]),
            Step::new(Call::HANDLE_INFO, [handle]),
        ],
    )?;
    // One of the numbers may be the same by chance; it then names the one object that the child has.
    let expected = u64::from(ObjectType::EVENT.0) << 32 | u64::from(rights::SIGNAL);
    for step in 0..4 {
        match child.answer(0, step)? {
            (Status::OK, value) => check_eq!(value, expected, "what it names"),
            (status, _) => check!(
                status == Status::BAD_HANDLE && step != 3,
                "step {step}: {status:?}"
            ),
        }
    }
    Ok(())
}

/// One child pauses, resumes and kills another.
fn granted_domain_is_controlled() -> Outcome {
    let target = Child::new(&Plan::new(spin()))?;
    let child = caller()?;
    let handle = give(&child, target.domain.any(), rights::CONTROL)?;
    let step = |call| Step::new(call, [handle]);
    lets(
        &child,
        &[
            step(Call::DOMAIN_START),
            step(Call::DOMAIN_PAUSE),
            step(Call::DOMAIN_RESUME),
            Step::new(Call::DOMAIN_INFO, [handle, DATA]),
            step(Call::DOMAIN_KILL),
            step(Call::HANDLE_CLOSE),
        ],
    )?;
    for (step, expected) in [
        Status::OK,
        Status::OK,
        Status::OK,
        Status::NO_RIGHT,
        Status::OK,
        Status::OK,
    ]
    .into_iter()
    .enumerate()
    {
        child.answered(0, step, expected)?;
    }
    target.ends(Reason::KILLED)?;
    Ok(())
}

/// A child maps memory into itself and writes to it.
fn granted_memory_is_mapped() -> Outcome {
    let child = caller()?;
    let memory = memory(4096)?;
    let window = crate::window::Mapped::new(0, *memory, 4096)?;
    let handle = give(&child, memory.any(), rights::READ | rights::WRITE)?;
    let its = give(&child, child.domain.any(), rights::MEMORY)?;
    let map = |access| Step::new(Call::MEMORY_MAP, [handle, 0, its, 0x10_0000, 4096, access]);
    lets(
        &child,
        &[
            map(access::ALL),
            map(access::READ | access::WRITE),
            // The clock goes there by way of the kernel.
            Step::new(Call::DOMAIN_READ, [its, 0x10_0000, 8, DATA]),
            Step::new(Call::MEMORY_PROTECT, [its, 0x10_0000, 4096, access::ALL]),
        ],
    )?;
    child.answered(0, 0, Status::NO_RIGHT)?;
    child.answered(0, 1, Status::OK)?;
    child.answered(0, 2, Status::OK)?;
    child.answered(0, 3, Status::NO_RIGHT)?;
    check_eq!(window.word(0), child.word(DATA)?, "word");
    Ok(())
}

/// A domain that a child makes comes out of the child's budget, and outlives the child.
fn granted_system_makes_domains() -> Outcome {
    let child = Child::new(&Plan {
        frames: 200,
        heap: 100_000,
        ..agents(1)
    })?;
    child.write(
        DATA,
        bytes_of(&DomainConfig {
            frames: 50,
            heap: 20_000,
            ..config(b"grandchild")
        }),
    )?;
    child.write(
        DATA + 0x100,
        bytes_of(&DomainConfig {
            frames: 10_000,
            ..config(b"too much")
        }),
    )?;
    let handle = give(&child, system().any(), rights::CREATE)?;
    let before = child.domain.info().must("info")?;
    lets(
        &child,
        &[
            Step::new(Call::DOMAIN_CREATE, [handle, DATA]).to(0),
            Step::new(Call::DOMAIN_CREATE, [handle, DATA + 0x100]),
            Step::new(Call::DOMAIN_NEXT, [handle, 0]),
            Step::new(Call::DOMAIN_INFO, [0, DATA + 0x200]).from(0),
        ],
    )?;
    child.answered(0, 0, Status::OK)?;
    child.answered(0, 1, Status::OVER_BUDGET)?;
    child.answered(0, 2, Status::NO_RIGHT)?;
    child.answered(0, 3, Status::OK)?;
    let after = child.domain.info().must("info")?;
    check_eq!(before.max_frames - after.max_frames, 50, "frames");
    check_eq!(before.max_heap - after.max_heap, 20_000, "heap");
    let number = child.word(DATA + 0x200 + 32)? as u32;
    drop(child);
    let grandchild: Temporary = system().open_domain(number).must("open")?.into();
    let info = grandchild.info().must("info")?;
    check!(info.name.starts_with(b"grandchild"), "{:x?}", info.name);
    grandchild.destroy().must("destroy")
}

/// What a child was given it cannot make more of, by no way.
fn child_cannot_grow() -> Outcome {
    let child = caller()?;
    let event = event()?;
    let its = give(&child, child.domain.any(), rights::CHARGE | rights::GRANT)?;
    let handle = give(&child, event.any(), rights::SIGNAL | rights::GRANT)?;
    let all = u64::from(rights::EVENT);
    lets(
        &child,
        &[
            Step::new(Call::HANDLE_DUPLICATE, [handle, all]),
            Step::new(Call::HANDLE_GRANT, [handle, its, all]),
            Step::new(Call::HANDLE_DUPLICATE, [its, rights::DOMAIN.into()]),
            Step::new(Call::HANDLE_GRANT, [its, its, rights::DOMAIN.into()]),
            Step::new(Call::HANDLE_GRANT, [handle, its, rights::SIGNAL.into()]).to(0),
            Step::new(Call::HANDLE_DUPLICATE, [0, rights::GRANT.into()]).from(0),
            Step::new(Call::VCPU_OPEN, [its, 0]),
            Step::new(Call::DOMAIN_KILL, [its]),
        ],
    )?;
    for step in [0, 1, 2, 3, 5, 6, 7] {
        child.answered(0, step, Status::NO_RIGHT)?;
    }
    child.answered(0, 4, Status::OK)?;
    Ok(())
}

fn close() -> Outcome {
    let objects = Objects::new()?;
    let before = own().info().must("info")?.handles;
    for (kind, _) in TYPES {
        let Some(object) = objects.get(kind) else {
            continue;
        };
        let other = object.duplicate(0).must("duplicate")?;
        other.close().must("close")?;
        refused(other.info(), Status::BAD_HANDLE, kind.text())?;
    }
    check_eq!(own().info().must("info")?.handles, before, "handles");
    Ok(())
}

fn close_of_one_of_two() -> Outcome {
    let event = event()?;
    let other = duplicate(event.any(), rights::EVENT)?;
    event.any().close().must("close")?;
    let other = Event(other.0.0);
    other.bind(3).must("bind")?;
    other.signal().must("signal")?;
    check!(pending()? == Some(3), "the event is gone");
    other.unbind().must("unbind")
}

fn close_twice() -> Outcome {
    let event = event()?;
    event.any().close().must("close")?;
    refused(event.any().close(), Status::BAD_HANDLE, "close")
}

/// The place in the table is used again, the number is not.
fn closed_number_names_nothing_again() -> Outcome {
    let event = event()?;
    let first = event.any().duplicate(rights::SIGNAL).must("duplicate")?;
    first.close().must("close")?;
    let mut last = first.0.0;
    for _ in 0..300 {
        let next = event.any().duplicate(rights::SIGNAL).must("duplicate")?;
        check!(next.0.0 != last, "the number {last:#x} again");
        refused(first.info(), Status::BAD_HANDLE, "the first number")?;
        next.close().must("close")?;
        last = next.0.0;
    }
    Ok(())
}

fn numbers_without_meaning() -> Outcome {
    let mut random = Random::new(0x9e37_79b9_7f4a_7c15);
    for _ in 0..2000 {
        let number = random.number();
        // A table has at most 4096 places; the suite's own handles are among the first.
        let number = if number & 0xffff < 4096 {
            number | 0xf000
        } else {
            number
        };
        refuses(Call::HANDLE_INFO, [number], Status::BAD_HANDLE)?;
        refuses(
            Call::HANDLE_CLOSE,
            [number & 0xffff_ffff],
            Status::BAD_HANDLE,
        )?;
    }
    Ok(())
}

/// Fills the suite's own table; `judge` looks at what calls answer then.
pub fn with_full_table(judge: impl FnOnce() -> Outcome) -> Outcome {
    const MOST: usize = plinth_rt::abi::domain::MAX_HANDLES as usize;
    let mut handles = [Handle::NONE; MOST];
    let event = event()?;
    let mut status = Status::OK;
    for place in &mut handles {
        match event.any().duplicate(0) {
            Ok(any) => *place = any.0,
            Err(why) => {
                status = why;
                break;
            }
        }
    }
    let outcome = if status == Status::OVER_BUDGET {
        judge()
    } else {
        Err(format_args!("{status:?} when the table is full").into())
    };
    for handle in handles.into_iter().filter(|handle| *handle != Handle::NONE) {
        Any(handle).close().must("close")?;
    }
    outcome
}

/// With no place left, every call that would give a handle is refused, and has done nothing.
fn table_full() -> Outcome {
    let objects = Objects::new()?;
    let child = &objects.child;
    let number = child.domain.info().must("info")?.number;
    let config = config(b"nowhere");
    let (machine, mine) = (raw(system().any()), raw(own().any()));
    let domain = raw(child.domain.any());
    with_full_table(|| {
        let before = (
            own().info().must("own info")?,
            child.domain.info().must("info")?,
        );
        for (call, arguments) in [
            (
                Call::DOMAIN_CREATE,
                [machine, core::ptr::from_ref(&config) as u64, 0],
            ),
            (Call::DOMAIN_OPEN, [machine, number.into(), 0]),
            (Call::VCPU_CREATE, [domain, 0, 0]),
            (Call::VCPU_OPEN, [domain, 0, 0]),
            (Call::MEMORY_CREATE, [mine, 4096, 0]),
            (Call::MEMORY_CREATE, [domain, 4096, 0]),
            (Call::MEMORY_PHYSICAL, [machine, 0xa_0000, 4096]),
            (Call::EVENT_CREATE, [mine, 0, 0]),
            (Call::EVENT_CREATE, [domain, 0, 0]),
            (Call::HANDLE_DUPLICATE, [mine, 0, 0]),
            (Call::HANDLE_GRANT, [mine, mine, 0]),
        ] {
            refuses(call, arguments, Status::OVER_BUDGET)?;
        }
        let after = (
            own().info().must("own info")?,
            child.domain.info().must("info")?,
        );
        check!(before == after, "an attempt has changed the accounts");
        Ok(())
    })
}

//! Events: signals, bindings, waits.

use plinth_rt::abi::{Call, DomainConfig, ObjectType, Reason, Status, VcpuRun, rights};
use plinth_rt::object::{self, Event};
use plinth_rt::trap::{Gprs, Trap};
use plinth_rt::{Outcome, Why, check, check_eq, hypercall, snippet};

use crate::child::{After, COUNTERS, Child, DATA, Plan, Step, Temporary, caller, config, give};
use crate::kit::{
    MS, Must, Owned, answers, event, names, own, pending, raw, refused, refuses, sleep, until,
};
use crate::objects::{Objects, own_vcpu};

tests!("event":
    create,
    create_over_budget,
    signal_then_bind,
    bind_then_signal,
    signals_are_one,
    order_is_that_of_the_signals,
    signalled_again_is_last,
    every_key,
    bound_again_with_another_key,
    unbind,
    unbind_keeps_it_pending,
    unbind_of_what_is_not_bound,
    wait_takes_one,
    wait_for_ever_finds_what_is_pending,
    wait_with_past_deadline_finds_what_is_pending,
    wakes_the_suite,
    wakes_a_child,
    wakes_before_the_deadline,
    many_are_woken,
    bound_to_another_vcpu,
    binding_ends_with_its_vcpu,
    outlives_its_domain,
    vector,
    vector_when_pending,
    vector_of_itself,
    vector_waits_for_sti,
    vector_replaces_a_key,
    vector_bad,
    closed_while_pending,
);

fn create() -> Outcome {
    let before = own().info().must("own info")?;
    let event = event()?;
    names(event.any(), ObjectType::EVENT, rights::EVENT)?;
    let after = own().info().must("own info")?;
    check_eq!(after.handles, before.handles + 1, "handles");
    check!(after.heap > before.heap, "its heap is nobody's");
    event.bind(1).must("bind")?;
    check!(pending()?.is_none(), "pending from the start");
    Ok(())
}

fn create_over_budget() -> Outcome {
    let domain = Temporary::new(&DomainConfig {
        heap: DomainConfig::LEAST_HEAP,
        ..config(b"poor")
    })?;
    let mut events: [Option<Owned<Event>>; 1024] = [const { None }; 1024];
    let mut made = 0;
    let mut status = Status::OK;
    for place in &mut events {
        match domain.create_event() {
            Ok(event) => {
                *place = Some(Owned(event));
                made += 1;
            }
            Err(why) => {
                status = why;
                break;
            }
        }
    }
    check!(
        status == Status::OVER_BUDGET,
        "{status:?} after {made} events"
    );
    let info = domain.info().must("info")?;
    check!(info.heap <= info.max_heap, "beyond its budget");
    // What one gives back is enough for another.
    if let Some(place) = events.iter_mut().find(|event| event.is_some()) {
        *place = None;
        *place = Some(domain.create_event().must("create").map(Owned)?);
    }
    Ok(())
}

/// The suite's vCPU must find this key, or nothing.
fn finds(key: Option<u64>) -> Outcome {
    let seen = pending()?;
    check!(seen == key, "found {seen:x?}, expected {key:x?}");
    Ok(())
}

fn signal_then_bind() -> Outcome {
    let event = event()?;
    event.signal().must("signal")?;
    finds(None)?;
    event.bind(7).must("bind")?;
    finds(Some(7))?;
    finds(None)
}

fn bind_then_signal() -> Outcome {
    let event = event()?;
    event.bind(8).must("bind")?;
    finds(None)?;
    event.signal().must("signal")?;
    finds(Some(8))?;
    finds(None)?;
    event.signal().must("signal")?;
    finds(Some(8))
}

fn signals_are_one() -> Outcome {
    let event = event()?;
    event.bind(9).must("bind")?;
    for _ in 0..5 {
        event.signal().must("signal")?;
    }
    finds(Some(9))?;
    finds(None)
}

fn order_is_that_of_the_signals() -> Outcome {
    let events = [event()?, event()?, event()?, event()?];
    for (key, event) in (0..).zip(&events) {
        event.bind(key).must("bind")?;
    }
    for order in [[2, 0, 3, 1], [0, 1, 2, 3], [3, 2, 1, 0]] {
        for index in order {
            events[index].signal().must("signal")?;
        }
        for index in order {
            finds(Some(index as u64))?;
        }
        finds(None)?;
    }
    Ok(())
}

/// A second signal of what is pending changes no order; one of what was taken comes last.
fn signalled_again_is_last() -> Outcome {
    let (first, second) = (event()?, event()?);
    first.bind(1).must("bind")?;
    second.bind(2).must("bind")?;
    first.signal().must("signal")?;
    second.signal().must("signal")?;
    first.signal().must("signal")?;
    finds(Some(1))?;
    first.signal().must("signal")?;
    finds(Some(2))?;
    finds(Some(1))?;
    finds(None)
}

fn every_key() -> Outcome {
    let event = event()?;
    for key in [0, 1, 1 << 32, u64::MAX - 1, u64::MAX] {
        event.bind(key).must("bind")?;
        event.signal().must("signal")?;
        finds(Some(key))?;
    }
    Ok(())
}

fn bound_again_with_another_key() -> Outcome {
    let event = event()?;
    event.bind(1).must("bind")?;
    event.signal().must("signal")?;
    event.bind(2).must("bind")?;
    finds(Some(2))?;
    finds(None)
}

fn unbind() -> Outcome {
    let event = event()?;
    event.bind(1).must("bind")?;
    event.unbind().must("unbind")?;
    event.signal().must("signal")?;
    finds(None)
}

fn unbind_keeps_it_pending() -> Outcome {
    let event = event()?;
    event.bind(1).must("bind")?;
    event.signal().must("signal")?;
    event.unbind().must("unbind")?;
    finds(None)?;
    event.bind(2).must("bind")?;
    finds(Some(2))
}

fn unbind_of_what_is_not_bound() -> Outcome {
    let event = event()?;
    refused(event.unbind(), Status::NOT_FOUND, "never bound")?;
    event.bind(1).must("bind")?;
    event.unbind().must("unbind")?;
    refused(event.unbind(), Status::NOT_FOUND, "unbound")
}

fn wait_takes_one() -> Outcome {
    let (first, second) = (event()?, event()?);
    first.bind(1).must("bind")?;
    second.bind(2).must("bind")?;
    first.signal().must("signal")?;
    second.signal().must("signal")?;
    finds(Some(1))?;
    second.unbind().must("unbind")?;
    finds(None)
}

fn wait_for_ever_finds_what_is_pending() -> Outcome {
    let event = event()?;
    event.bind(5).must("bind")?;
    event.signal().must("signal")?;
    check!(
        object::wait(u64::MAX).must("wait")? == Some(5),
        "another key"
    );
    Ok(())
}

fn wait_with_past_deadline_finds_what_is_pending() -> Outcome {
    let event = event()?;
    event.bind(5).must("bind")?;
    event.signal().must("signal")?;
    check!(object::wait(1).must("wait")? == Some(5), "another key");
    Ok(())
}

/// A child that signals the suite's event after some time.
fn signaller(event: Event, delay: u64) -> Result<Child, Why> {
    let child = caller()?;
    let handle = give(&child, event.any(), rights::SIGNAL)?;
    child.load(
        0,
        &[
            Step::new(Call::WAIT, [hypercall::clock() + delay]),
            Step::new(Call::EVENT_SIGNAL, [handle]),
        ],
        1,
        After::Wait,
    )?;
    child.start()?;
    Ok(child)
}

fn wakes_the_suite() -> Outcome {
    let event = event()?;
    event.bind(0x11).must("bind")?;
    let _child = signaller(*event, 2 * MS)?;
    check!(
        object::wait(u64::MAX).must("wait")? == Some(0x11),
        "another key"
    );
    Ok(())
}

fn wakes_before_the_deadline() -> Outcome {
    let event = event()?;
    event.bind(0x12).must("bind")?;
    let deadline = hypercall::clock() + 5000 * MS;
    let _child = signaller(*event, 2 * MS)?;
    check!(
        object::wait(deadline).must("wait")? == Some(0x12),
        "no event"
    );
    check!(hypercall::clock() < deadline, "too late");
    Ok(())
}

/// A child with one vCPU that binds the event with this key and waits for it.
fn waiter(event: Event, key: u64) -> Result<Child, Why> {
    let child = caller()?;
    let handle = give(&child, event.any(), rights::BIND)?;
    child.load(
        0,
        &[
            Step::new(Call::EVENT_BIND, [handle, key]),
            Step::new(Call::WAIT, [u64::MAX]),
        ],
        1,
        After::Wait,
    )?;
    Ok(child)
}

fn blocked(child: &Child) -> Result<bool, Why> {
    Ok(child.vcpu(0).info().must("info")?.run == VcpuRun::BLOCKED)
}

fn wakes_a_child() -> Outcome {
    let event = event()?;
    let child = waiter(*event, 0xabc)?;
    child.start()?;
    until("its wait", || blocked(&child))?;
    event.signal().must("signal")?;
    child.until_done(0)?;
    check_eq!(child.answered(0, 1, Status::OK)?, 0xabc, "key");
    Ok(())
}

fn many_are_woken() -> Outcome {
    let events = [event()?, event()?, event()?, event()?];
    let children = [
        waiter(*events[0], 0)?,
        waiter(*events[1], 1)?,
        waiter(*events[2], 2)?,
        waiter(*events[3], 3)?,
    ];
    for child in &children {
        child.start()?;
        until("its wait", || blocked(child))?;
    }
    for event in events.iter().rev() {
        event.signal().must("signal")?;
    }
    for (key, child) in (0..).zip(&children) {
        child.until_done(0)?;
        check_eq!(child.answered(0, 1, Status::OK)?, key, "key");
    }
    Ok(())
}

/// A new binding takes the event from the vCPU that had it.
fn bound_to_another_vcpu() -> Outcome {
    let event = event()?;
    let child = waiter(*event, 1)?;
    child.start()?;
    until("its wait", || blocked(&child))?;
    event.bind(2).must("bind")?;
    event.signal().must("signal")?;
    finds(Some(2))?;
    sleep(MS);
    check!(blocked(&child)?, "it was woken, too");
    Ok(())
}

fn binding_ends_with_its_vcpu() -> Outcome {
    let event = event()?;
    let child = waiter(*event, 1)?;
    child.start()?;
    until("its wait", || blocked(&child))?;
    child.domain.kill().must("kill")?;
    child.ends(Reason::KILLED)?;
    event.signal().must("signal")?;
    refused(event.unbind(), Status::NOT_FOUND, "unbind")?;
    event.bind(3).must("bind")?;
    finds(Some(3))?;
    drop(child);
    event.signal().must("signal")?;
    finds(Some(3))
}

/// Its domain paid for it and is gone; a handle is left.
fn outlives_its_domain() -> Outcome {
    let domain = Temporary::new(&config(b"payer"))?;
    let event = domain.create_event().must("create").map(Owned)?;
    event.bind(4).must("bind")?;
    domain.destroy().must("destroy")?;
    drop(domain);
    event.signal().must("signal")?;
    finds(Some(4))
}

/// A child that enables interrupts and counts those of the vectors 32 to 47.
fn counter() -> Result<Child, Why> {
    Child::new(&Plan::new(snippet!(
        "sti",
        "2: inc qword ptr [0x2000]",
        "jmp 2b"
    )))
}

fn vector() -> Outcome {
    let (first, second) = (event()?, event()?);
    let child = counter()?;
    first.bind_vector(child.vcpu(0), 34).must("bind")?;
    second.bind_vector(child.vcpu(0), 40).must("bind")?;
    child.start()?;
    child.until_change(DATA)?;
    for times in 1..4 {
        first.signal().must("signal")?;
        child.until_word(COUNTERS + 2 * 8, times)?;
    }
    check_eq!(child.word(COUNTERS + 8 * 8)?, 0, "the other vector");
    second.signal().must("signal")?;
    child.until_word(COUNTERS + 8 * 8, 1)?;
    // It was delivered, and is not pending any more.
    first.bind(1).must("bind")?;
    finds(None)
}

fn vector_when_pending() -> Outcome {
    let event = event()?;
    event.signal().must("signal")?;
    let child = counter()?;
    event.bind_vector(child.vcpu(0), 33).must("bind")?;
    child.start()?;
    child.until_word(COUNTERS + 8, 1)?;
    sleep(MS);
    check_eq!(child.word(COUNTERS + 8)?, 1, "interrupts");
    Ok(())
}

/// What the suite gets when it enables interrupts for a moment.
fn open_for_a_moment() -> Result<Gprs, Trap> {
    snippet!("sti", "nop", "nop", "cli").run(Gprs::ZERO)
}

fn vector_of_itself() -> Outcome {
    let event = event()?;
    let own = own_vcpu()?;
    event.bind_vector(*own, 0x55).must("bind")?;
    open_for_a_moment()?;
    for _ in 0..3 {
        event.signal().must("signal")?;
        match open_for_a_moment() {
            Ok(_) => return Err(format_args!("no interrupt").into()),
            Err(trap) => check_eq!(trap.vector, 0x55, "vector"),
        }
        open_for_a_moment()?;
    }
    finds(None)
}

fn vector_waits_for_sti() -> Outcome {
    let event = event()?;
    let child = Child::new(&Plan::new(snippet!(
        "2: inc qword ptr [0x2000]",
        "cmp qword ptr [0x2008], 0",
        "je 2b",
        "sti",
        "3: jmp 3b"
    )))?;
    event.bind_vector(child.vcpu(0), 32).must("bind")?;
    child.start()?;
    event.signal().must("signal")?;
    child.until_change(DATA)?;
    child.until_change(DATA)?;
    check_eq!(child.word(COUNTERS)?, 0, "interrupts before STI");
    child.set_word(DATA + 8, 1)?;
    child.until_word(COUNTERS, 1)
}

fn vector_replaces_a_key() -> Outcome {
    let event = event()?;
    event.bind(1).must("bind")?;
    let child = counter()?;
    event.bind_vector(child.vcpu(0), 32).must("bind")?;
    child.start()?;
    event.signal().must("signal")?;
    child.until_word(COUNTERS, 1)?;
    finds(None)?;
    event.unbind().must("unbind")?;
    event.signal().must("signal")?;
    sleep(MS);
    check_eq!(child.word(COUNTERS)?, 1, "interrupts after the binding");
    Ok(())
}

fn vector_bad() -> Outcome {
    let objects = Objects::new()?;
    let (event, vcpu) = (raw(objects.event.any()), raw(objects.child.vcpu(0).any()));
    for vector in [0, 14, 31, 256, 1 << 32, u64::MAX] {
        refuses(
            Call::EVENT_BIND_VECTOR,
            [event, vcpu, vector],
            Status::BAD_ARGUMENT,
        )?;
    }
    Ok(())
}

/// Its last handle goes while it is bound and pending. Whether `WAIT` still finds it is not said; the next event is found.
fn closed_while_pending() -> Outcome {
    let (first, second) = (event()?, event()?);
    first.bind(1).must("bind")?;
    second.bind(2).must("bind")?;
    first.signal().must("signal")?;
    second.signal().must("signal")?;
    answers(Call::HANDLE_CLOSE, [raw(first.any())], Status::OK)?;
    let seen = pending()?;
    check!(
        seen == Some(1) || seen == Some(2),
        "found {seen:x?}, expected 1 or 2"
    );
    if seen == Some(1) {
        finds(Some(2))?;
    }
    finds(None)
}

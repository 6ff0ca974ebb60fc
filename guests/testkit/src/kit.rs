//! What every test uses: the handles that the suite was started with, and short words for what must and must not succeed.

use core::ops::Deref;

use plinth_rt::abi::system::{StartEntry, start};
use plinth_rt::abi::{Call, Handle, ObjectType, Status};
use plinth_rt::object::{self, Any, Domain, Event, Irq, Memory, Ports, System, Vcpu};
use plinth_rt::{Outcome, Scratch, Why, check, hypercall};

/// Nanoseconds of a millisecond.
pub const MS: u64 = 1_000_000;

/// How long something may take that must happen: far longer than on the slowest machine.
const PATIENCE: u64 = 10_000 * MS;

/// The first thing of this kind that the suite was started with.
pub fn given(kind: u32) -> Option<StartEntry> {
    let info = plinth_rt::start_info()?;
    let count = info.entries.len().min(info.count as usize);
    info.entries
        .into_iter()
        .take(count)
        .find(|entry| entry.kind == kind)
}

fn given_handle(kind: u32) -> Handle {
    given(kind).map_or(Handle::NONE, |entry| Handle(entry.handle))
}

/// The machine, with all rights.
pub fn system() -> System {
    System(given_handle(start::SYSTEM))
}

/// The suite's own domain, with all rights.
pub fn own() -> Domain {
    Domain(given_handle(start::SELF))
}

/// A physical interrupt, if the suite was given one.
pub fn irq() -> Option<Irq> {
    given(start::IRQ).map(|entry| Irq(Handle(entry.handle)))
}

/// Physical ports, if the suite was given some: the handle, and the first of them.
pub fn ports() -> Option<(Ports, u16)> {
    given(start::PORTS).map(|entry| (Ports(Handle(entry.handle)), entry.first as u16))
}

/// A handle as an argument of a call.
pub fn raw(any: Any) -> u64 {
    any.0.0.into()
}

/// A result that the test needs.
pub trait Must<T> {
    /// The value; the failure of the test, in these words, if there is none.
    fn must(self, what: &str) -> Result<T, Why>;
}

impl<T> Must<T> for object::Result<T> {
    fn must(self, what: &str) -> Result<T, Why> {
        self.map_err(|status| format_args!("{what}: {status:?}").into())
    }
}

/// The result must be a failure with this status.
pub fn refused<T>(result: object::Result<T>, expected: Status, what: &str) -> Outcome {
    match result {
        Ok(_) => Err(format_args!("{what}: OK, expected {expected:?}").into()),
        Err(status) => {
            check!(
                status == expected,
                "{what}: {status:?}, expected {expected:?}"
            );
            Ok(())
        }
    }
}

/// Makes the call, whose status must be this one; returns its value.
pub fn answers<const N: usize>(
    call: Call,
    arguments: [u64; N],
    expected: Status,
) -> Result<u64, Why> {
    let (status, value) = hypercall::call(call, arguments);
    check!(
        status == expected,
        "{}{arguments:x?}: {status:?}, expected {expected:?}",
        call.name()
    );
    Ok(value)
}

/// Makes the call, which must be refused with this status.
pub fn refuses<const N: usize>(call: Call, arguments: [u64; N], expected: Status) -> Outcome {
    answers(call, arguments, expected).map(drop)
}

/// Makes the call again until it says something else than `AGAIN`.
pub fn to_the_end<const N: usize>(call: Call, arguments: [u64; N]) -> (Status, u64) {
    loop {
        match hypercall::call(call, arguments) {
            (Status::AGAIN, _) => hypercall::yield_now(),
            answer => return answer,
        }
    }
}

/// Asks again until the answer is another than `AGAIN`.
pub fn patiently<T>(mut ask: impl FnMut() -> object::Result<T>) -> object::Result<T> {
    loop {
        match ask() {
            Err(Status::AGAIN) => hypercall::yield_now(),
            answer => return answer,
        }
    }
}

/// Lets time go by without the CPU. Events that come meanwhile are lost.
pub fn sleep(ns: u64) {
    let deadline = hypercall::clock() + ns;
    while let Ok(Some(_)) = object::wait(deadline) {}
}

/// Waits until the condition holds; fails in these words if it does not in a long time.
pub fn until(what: &str, mut condition: impl FnMut() -> Result<bool, Why>) -> Outcome {
    let deadline = hypercall::clock() + PATIENCE;
    while !condition()? {
        check!(hypercall::clock() < deadline, "{what}: not in a long time");
        sleep(MS / 10);
    }
    Ok(())
}

/// A handle that can be given up.
pub trait Release: Copy {
    /// Gives it up.
    fn release(self);
}

macro_rules! close_on_release {
    ($($name:ident)*) => {$(
        impl Release for $name {
            fn release(self) {
                // A test may have closed it already.
                let _ = self.any().close();
            }
        }
    )*};
}

close_on_release!(System Domain Vcpu Memory);

impl Release for Event {
    fn release(self) {
        // Most events are not bound; one that is must not reach the next test.
        let _ = self.unbind();
        let _ = self.any().close();
    }
}

impl Release for Any {
    fn release(self) {
        let _ = self.close();
    }
}

/// A handle of a test's own, closed when the test is over.
pub struct Owned<T: Release>(pub T);

impl<T: Release> Deref for Owned<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Release> Drop for Owned<T> {
    fn drop(&mut self) {
        self.0.release();
    }
}

/// Another handle to the object, closed when the test is over.
pub fn duplicate(any: Any, rights: u32) -> Result<Owned<Any>, Why> {
    any.duplicate(rights).must("duplicate").map(Owned)
}

/// A new event, charged to the suite.
pub fn event() -> Result<Owned<Event>, Why> {
    own().create_event().must("event").map(Owned)
}

/// New memory with frames, charged to the suite.
pub fn memory(bytes: u64) -> Result<Owned<Memory>, Why> {
    own().create_memory(bytes).must("memory").map(Owned)
}

/// The key of a bound event that is pending; `None` without one.
pub fn pending() -> Result<Option<u64>, Why> {
    object::wait(0).must("wait")
}

/// A handle must be to this type and have these rights.
pub fn names(any: Any, kind: ObjectType, rights: u32) -> Outcome {
    let (seen, has) = any.info().must("handle info")?;
    check!(seen == kind, "{}, expected {}", seen.text(), kind.text());
    check!(has == rights, "rights {has:#x}, expected {rights:#x}");
    Ok(())
}

/// Numbers without pattern, the same in every run (xorshift64, Marsaglia 2003).
pub struct Random(u64);

impl Random {
    /// A row of its own for each seed, which must not be 0.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// A page that calls fill, and one that they read from.
pub static PAGE: Scratch<4096> = Scratch::new();

//! Accounts: what is used of the machine and of the suite's budget. Each test of a suite that makes domains must leave them as it
//! found them.

use core::sync::atomic::{AtomicU64, Ordering};

use plinth_rt::{Outcome, Why, hypercall};

use crate::kit::{MS, Must, own, sleep, system};

const NAMES: [&str; 10] = [
    "free frames",
    "frames of memory objects",
    "heap in use",
    "domains",
    "own handles",
    "own frames",
    "own frames of memory objects",
    "own heap",
    "own budget of frames",
    "own budget of heap",
];

/// The figures: of the machine, and of the suite.
pub type Accounts = [u64; NAMES.len()];

/// How long the kernel may take to give back what has ended.
const PATIENCE: u64 = 2_000 * MS;

static START: [AtomicU64; NAMES.len()] = [const { AtomicU64::new(0) }; NAMES.len()];

/// The accounts as they are.
pub fn now() -> Result<Accounts, Why> {
    let machine = system().info().must("system info")?;
    let own = own().info().must("own info")?;
    Ok([
        machine.free_frames,
        machine.memory_frames,
        machine.heap_used,
        machine.domains.into(),
        own.handles.into(),
        own.frames,
        own.memory_frames,
        own.heap,
        own.max_frames,
        own.max_heap,
    ])
}

/// Waits until the accounts are as before, because much is given back in steps, after the call that ended it.
pub fn settle(before: &Accounts) -> Outcome {
    let deadline = hypercall::clock() + PATIENCE;
    loop {
        let after = now()?;
        let differing = NAMES
            .iter()
            .zip(before.iter().zip(&after))
            .find(|(_, (before, after))| before != after);
        let Some((name, (before, after))) = differing else {
            return Ok(());
        };
        if hypercall::clock() > deadline {
            return Err(format_args!("{name}: {before} before, {after} after").into());
        }
        sleep(MS / 10);
    }
}

/// Runs a test, after which the accounts must be as before it.
pub fn balanced(test: impl FnOnce() -> Outcome) -> Outcome {
    let before = now()?;
    let outcome = test();
    // What a failed test leaves behind must not be taken for the next one's.
    let settled = settle(&before);
    match (outcome, settled) {
        (Err(why), Err(left)) => Err(format_args!("{why}; {left}").into()),
        (outcome, settled) => outcome.and(settled),
    }
}

/// Notes the accounts for [`as_at_the_start`], once all that ended before has been given back.
pub fn open() -> Outcome {
    sleep(PATIENCE / 20);
    for (place, value) in START.iter().zip(now()?) {
        place.store(value, Ordering::Relaxed);
    }
    Ok(())
}

/// The accounts must be as they were when they were opened.
pub fn as_at_the_start() -> Outcome {
    settle(&core::array::from_fn(|index| {
        START
            .get(index)
            .map_or(0, |place| place.load(Ordering::Relaxed))
    }))
}

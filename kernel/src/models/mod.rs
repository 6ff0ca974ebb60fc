//! Models of what several CPUs do to the same objects: the kernel's own code, run in every order in which its atomics and locks can
//! be reached, by [loom](https://docs.rs/loom).
//!
//! The objects are the kernel's: scheduler, domains, vCPUs, events, handles. Only what is below them is a stand-in: the machine
//! (`machine`), and a vendor without hardware (`vendor`). Nobody enters a guest; a model says what it does.

pub(crate) mod doubles;
mod events;
mod handles;
pub(crate) mod machine;
mod objects;
mod tables;
mod vcpus;
pub(crate) mod vendor;
mod world;

use std::sync::Arc;

use loom::thread::{Builder, JoinHandle};

use doubles::Modelled;

/// Words of a thread's stack: objects are large, and this is no optimised code.
const STACK: usize = 1 << 16;
/// Accesses in one run at most. What goes on beyond waits for ever.
const MOST_ACCESSES: usize = 20_000;

/// Runs a small model in every order of its threads' accesses. Fails where one of the runs panics, or where all threads wait.
pub(crate) fn check(model: impl Fn() + Send + Sync + 'static) {
    run(None, model);
}

/// As [`check`], but only in those orders in which a thread is interrupted, in the midst of what it could go on with, so many times at
/// most: two interruptions are enough for nearly all that goes wrong between threads.
pub(crate) fn check_within(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    run(Some(preemptions), model);
}

fn run(preemptions: Option<usize>, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    builder.max_branches = MOST_ACCESSES;
    let model = Arc::new(model);
    builder.check(move || {
        let model = model.clone();
        // The first thread's own stack is small.
        let whole = spawn(move || {
            let _run = Modelled::begin();
            model();
        });
        join(whole);
    });
}

/// Another thread of the model.
pub(crate) fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    Builder::new().stack_size(STACK).spawn(work).unwrap()
}

/// Waits for a thread.
pub(crate) fn join<T>(thread: JoinHandle<T>) -> T {
    thread.join().unwrap()
}

//! What domains cost: a switch between two vCPUs, making and destroying one, the kernel's memory for one, and all that again beside
//! five hundred others.

use plinth_rt::abi::DomainConfig;
use plinth_rt::{Outcome, Snippet, Why, println, snippet};
use plinth_testkit::child::{Child, DATA, Plan, wait};
use plinth_testkit::kit::{Must, sleep, system, until};

/// Domains beside which everything is measured again.
const OTHERS: usize = 500;
/// Pages of a domain that is measured: 2 MiB, as those of a small guest.
const PAGES: u64 = 512;
/// Yields that are measured at once.
const YIELDS: u64 = 200;

/// Nanoseconds that are ample for all yields: 50 milliseconds.
const AMPLE: u64 = 50_000_000;

/// Notes the TSC at the data page, yields RBX times, and notes it again; then yields for ever.
fn yields() -> Snippet {
    snippet!(
        "rdtsc",
        "mov [0x2000], eax",
        "mov [0x2004], edx",
        "2: mov eax, 3",
        "call r15",
        "dec rbx",
        "jnz 2b",
        "rdtsc",
        "mov [0x2008], eax",
        "mov [0x200c], edx",
        "3: mov eax, 3",
        "call r15",
        "jmp 3b"
    )
}

fn child(code: Snippet) -> Result<Child, Why> {
    let child = Child::new(&Plan {
        pages: PAGES,
        max_vcpus: 1,
        frames: 24,
        heap: DomainConfig::LEAST_HEAP,
        handles: 4,
        ..Plan::new(code)
    })?;
    child.pin(0, 0)?;
    Ok(child)
}

/// What a switch from one vCPU to another costs, YIELD included: two yield to each other.
fn world_switch() -> Result<u64, Why> {
    let pair = [child(yields())?, child(yields())?];
    for child in &pair {
        child.set(0, |state| state.rbx = YIELDS)?;
        child.start()?;
    }
    // Nobody else wants the CPU meanwhile: to look in between would be measured, too.
    sleep(AMPLE);
    let [first, second] = &pair;
    for child in [first, second] {
        // It may have come to its end before the first look.
        until("the last yield", || Ok(child.word(DATA + 8)? != 0))?;
    }
    let ticks = first.word(DATA + 8)? - first.word(DATA)?;
    // In each round the other had the CPU once, too.
    Ok(ticks / (2 * YIELDS))
}

fn create_and_destroy() -> Result<u64, Why> {
    let start = ticks();
    let child = child(wait())?;
    child.start()?;
    child.domain.kill().must("kill")?;
    child.destroy()?;
    drop(child);
    Ok(ticks() - start)
}

/// Bytes that the kernel needs for a domain that waits, its memory not included.
fn kernel_bytes() -> Result<u64, Why> {
    let before = system().info().must("info")?;
    let child = child(wait())?;
    child.start()?;
    let after = system().info().must("info")?;
    let memory = after.memory_frames - before.memory_frames;
    let frames = before.free_frames - after.free_frames - memory;
    drop(child);
    Ok(frames * 4096 + (after.heap_used - before.heap_used))
}

fn ticks() -> u64 {
    // SAFETY: RDTSC has no effect.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Measures; `calls` measures what must not depend on how many domains there are, with a suffix for its names.
pub fn measure(calls: &dyn Fn(&str)) -> Outcome {
    let report = |name: &str, value: u64| println!("bench {name}: {value} ({value} to {value})");
    // The first time, the kernel decodes instructions and makes room.
    world_switch()?;
    create_and_destroy()?;
    report("world_switch", world_switch()?);
    report("create_destroy", create_and_destroy()?);
    report("kernel_bytes_per_domain", kernel_bytes()?);
    let mut others = [const { None }; OTHERS];
    for place in &mut others {
        let child = child(wait())?;
        child.start()?;
        *place = Some(child);
    }
    // Until all of them wait.
    sleep(500_000_000);
    calls("_500");
    report("world_switch_500", world_switch()?);
    report("create_destroy_500", create_and_destroy()?);
    Ok(())
}

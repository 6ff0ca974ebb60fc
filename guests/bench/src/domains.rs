//! What domains cost: a switch between two vCPUs, two that signal each other, making and destroying one, the kernel's memory for
//! one; and the same beside up to a thousand others.

use plinth_common::Ticks;
use plinth_rt::abi::{DomainConfig, rights};
use plinth_rt::{Outcome, Snippet, Why, println, snippet};
use plinth_testkit::child::{Child, DATA, Plan, wait};
use plinth_testkit::kit::{Must, Owned, own, sleep, system, until};

/// Numbers of other domains beside which everything is measured again, as far as there is memory for them, and what is behind the
/// names then.
const OTHERS: [(usize, &str); 4] = [
    (1, "_at_1"),
    (10, "_at_10"),
    (100, "_at_100"),
    (MOST, "_at_1000"),
];
/// The most of these numbers.
const MOST: usize = 1000;
/// Frames that a domain needs besides its memory.
const FRAMES: u64 = 24;
/// Pages of a domain that is measured: 2 MiB, as those of a small guest.
const PAGES: u64 = 512;
/// Rounds that are measured at once.
const ROUNDS: u64 = 200;
/// How often a domain is made and destroyed: one or the other time the kernel's timer comes between.
const RUNS: usize = 5;

/// Nanoseconds that are ample for all rounds: 50 milliseconds.
const AMPLE: u64 = 50_000_000;

/// Notes the TSC at the data page, yields RBX times, and notes it again. Then it yields a few times more, so that the other finds
/// somebody to the end, and waits for ever.
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
        "mov ebx, 8",
        "3: mov eax, 3",
        "call r15",
        "dec ebx",
        "jnz 3b",
        "4: mov eax, 5",
        "mov rdi, -1",
        "call r15",
        "jmp 4b"
    )
}

/// Binds the event in R13 and waits for it. Then it notes the TSC at the data page, RBX times signals the event in R14 and waits for
/// its own, and notes the TSC again; then it waits for ever.
fn signals() -> Snippet {
    snippet!(
        "mov eax, 0x42",
        "mov rdi, r13",
        "mov esi, 1",
        "call r15",
        "mov eax, 5",
        "mov rdi, -1",
        "call r15",
        "rdtsc",
        "mov [0x2000], eax",
        "mov [0x2004], edx",
        "2: mov eax, 0x41",
        "mov rdi, r14",
        "call r15",
        "mov eax, 5",
        "mov rdi, -1",
        "call r15",
        "dec rbx",
        "jnz 2b",
        "rdtsc",
        "mov [0x2008], eax",
        "mov [0x200c], edx",
        "3: mov eax, 5",
        "mov rdi, -1",
        "call r15",
        "jmp 3b"
    )
}

fn child(code: Snippet) -> Result<Child, Why> {
    let child = Child::new(&Plan {
        pages: PAGES,
        max_vcpus: 1,
        frames: FRAMES,
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
        child.set(0, |state| state.rbx = ROUNDS)?;
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
    Ok(ticks / (2 * ROUNDS))
}

/// What it costs that one domain signals another, which waits, and gets the answer in the same way.
fn event_round_trip() -> Result<u64, Why> {
    let pair = [child(signals())?, child(signals())?];
    let events = [
        own().create_event().must("event").map(Owned)?,
        own().create_event().must("event").map(Owned)?,
    ];
    for (index, child) in pair.iter().enumerate() {
        let [mine, theirs] = [index, 1 - index].map(|event| {
            let event = events[event].any();
            event.grant(*child.domain, rights::SIGNAL | rights::BIND)
        });
        let (mine, theirs) = (mine.must("grant")?, theirs.must("grant")?);
        child.set(0, |state| {
            state.rbx = ROUNDS;
            state.r13 = mine.0.into();
            state.r14 = theirs.0.into();
        })?;
        child.start()?;
    }
    // Until both wait.
    sleep(AMPLE);
    events[0].signal().must("signal")?;
    sleep(AMPLE);
    let [first, _] = &pair;
    until("the last answer", || Ok(first.word(DATA + 8)? != 0))?;
    Ok((first.word(DATA + 8)? - first.word(DATA)?) / ROUNDS)
}

/// Median, least and most of some times.
fn create_and_destroy() -> Result<Ticks, Why> {
    let mut runs = [0; RUNS];
    for run in &mut runs {
        let start = ticks();
        let child = child(wait())?;
        child.start()?;
        child.domain.kill().must("kill")?;
        child.destroy()?;
        drop(child);
        *run = ticks() - start;
    }
    runs.sort_unstable();
    Ok(Ticks {
        median: runs[RUNS / 2],
        least: runs[0],
        most: runs[RUNS - 1],
    })
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
    // The first time, the kernel decodes instructions and makes room.
    world_switch()?;
    event_round_trip()?;
    create_and_destroy()?;
    domains("")?;
    println!(
        "bench kernel_bytes_per_domain: {}",
        exactly(kernel_bytes()?)
    );
    let mut others = [const { None }; MOST];
    let mut made = 0;
    for (count, suffix) in OTHERS {
        let more = count - made;
        let free = system().info().must("info")?.free_frames;
        // What is measured needs two domains more.
        if free < (more as u64 + 2) * (PAGES + FRAMES) {
            println!("note: there is no memory for {count} domains");
            break;
        }
        for place in others.iter_mut().skip(made).take(more) {
            let child = child(wait())?;
            child.start()?;
            *place = Some(child);
        }
        made = count;
        // Until all of them wait.
        sleep(500_000_000);
        calls(suffix);
        domains(suffix)?;
    }
    Ok(())
}

/// What may depend on how many domains there are.
fn domains(suffix: &str) -> Outcome {
    println!("bench world_switch{suffix}: {}", exactly(world_switch()?));
    println!(
        "bench event_round_trip{suffix}: {}",
        exactly(event_round_trip()?)
    );
    println!("bench create_destroy{suffix}: {}", create_and_destroy()?);
    Ok(())
}

/// What is measured once.
fn exactly(value: u64) -> Ticks {
    Ticks {
        median: value,
        least: value,
        most: value,
    }
}

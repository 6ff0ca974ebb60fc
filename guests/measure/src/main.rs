//! Measures how the scheduler shares CPUs, what a switch costs, and what a domain costs; prints each figure as a line
//! `measure NAME: VALUE`, and says whether it is as good as promised.
//!
//! It needs a system handle and a handle to its own domain, and two CPUs: it sleeps on the first, and what it measures runs on
//! the second, or on both.

#![no_std]
#![no_main]
#![allow(
    clippy::result_large_err,
    reason = "without a heap a failure travels by value"
)]
#![allow(
    unsafe_code,
    reason = "snippet! assembles code, which runs in child domains"
)]

use plinth_rt::abi::{DomainConfig, Handle, Schedule};
use plinth_rt::{Gprs, Outcome, Snippet, Why, check, cpu, hypercall, println, snippet, suite};
use plinth_testkit::child::{Child, DATA, Plan, spin};
use plinth_testkit::kit::{MS, Must, Owned, own, sleep, system, until};

plinth_rt::entry!(main);

/// Exit status of a guest that was not given what it needs.
const STATUS_NOTHING_GIVEN: u64 = 103;

fn main() -> u64 {
    if system().0 == Handle::NONE || own().0 == Handle::NONE {
        println!("measuring needs a system handle and a handle to the own domain");
        return STATUS_NOTHING_GIVEN;
    }
    if let Err(why) = stay_aside() {
        println!("measuring cannot begin: {why}");
        return STATUS_NOTHING_GIVEN;
    }
    suite!(
        "measure",
        [
            two_cpus,
            weights_share_a_cpu,
            cap_holds,
            many_progress_alike,
            wakes_beside_spinners,
            wakes_beside_the_uninterruptible,
            switch_costs_the_same_with_many,
            domain_costs_little,
            many_domains_at_once,
        ]
    )
}

/// This guest itself runs on the first CPU only.
fn stay_aside() -> Outcome {
    let vcpu = own().open_vcpu(0).must("own vCPU").map(Owned)?;
    vcpu.schedule(&Schedule {
        cpu: 0,
        ..Schedule::USUAL
    })
    .must("schedule")
}

fn two_cpus() -> Outcome {
    let cpus = system().info().must("system info")?.cpus;
    println!("measure cpus: {cpus}");
    check!(cpus >= 2, "{cpus} CPUs");
    Ok(())
}

/// The CPU on which something is measured that is about one CPU.
const CPU: u32 = 1;

/// As usual, but on that CPU.
const PINNED: Schedule = Schedule {
    cpu: CPU,
    ..Schedule::USUAL
};

/// A plan for as small a domain as there can be.
fn small(code: Snippet) -> Plan {
    Plan {
        max_vcpus: 1,
        frames: 24,
        heap: DomainConfig::LEAST_HEAP,
        handles: 4,
        ..Plan::new(code)
    }
}

/// A child with one vCPU that is scheduled so, not started.
fn scheduled(code: Snippet, schedule: &Schedule) -> Result<Child, Why> {
    let child = Child::new(&small(code))?;
    child.vcpu(0).schedule(schedule).must("schedule")?;
    Ok(child)
}

/// Nanoseconds that its vCPU has run.
fn ran(child: &Child) -> Result<u64, Why> {
    Ok(child.vcpu(0).info().must("vCPU info")?.run_ns)
}

/// A share in hundredths of a percent.
fn share(part: u64, whole: u64) -> u64 {
    part.saturating_mul(10_000) / whole.max(1)
}

/// Prints hundredths as a number with two places.
fn hundredths(name: &str, value: u64, unit: &str) {
    println!("measure {name}: {}.{:02}{unit}", value / 100, value % 100);
}

/// Two spinners with weights 2:1 share one CPU 2:1, within 3 %.
fn weights_share_a_cpu() -> Outcome {
    let weighing = |weight| scheduled(spin(), &Schedule { weight, ..PINNED });
    let (heavy, light) = (weighing(512)?, weighing(256)?);
    heavy.start()?;
    light.start()?;
    until("both to run", || Ok(ran(&heavy)? > 0 && ran(&light)? > 0))?;
    let before = (ran(&heavy)?, ran(&light)?);
    sleep(3000 * MS);
    let (heavy, light) = (ran(&heavy)? - before.0, ran(&light)? - before.1);
    let ratio = heavy.saturating_mul(100) / light.max(1);
    hundredths("weights_2_to_1", ratio, "");
    check!((194..=206).contains(&ratio), "{heavy} to {light} ns");
    Ok(())
}

/// A cap of 25 % holds within 2 points on a CPU that is idle otherwise.
fn cap_holds() -> Outcome {
    let child = scheduled(spin(), &Schedule { cap: 25, ..PINNED })?;
    child.start()?;
    until("it to run", || Ok(ran(&child)? > 0))?;
    let (before, start) = (ran(&child)?, hypercall::clock());
    sleep(2000 * MS);
    let (ran, time) = (ran(&child)? - before, hypercall::clock() - start);
    let share = share(ran, time);
    hundredths("cap_25_percent", share, " %");
    check!((2300..=2700).contains(&share), "{ran} of {time} ns");
    Ok(())
}

/// 64 domains with a spinner each: the slowest within 10 % of the fastest.
fn many_progress_alike() -> Outcome {
    const CHILDREN: usize = 64;
    let mut children = [const { None }; CHILDREN];
    for place in &mut children {
        let child = scheduled(spin(), &Schedule::USUAL)?;
        child.start()?;
        *place = Some(child);
    }
    let times = |children: &[Option<Child>; CHILDREN]| {
        let mut times = [0; CHILDREN];
        for (time, child) in times.iter_mut().zip(children.iter().flatten()) {
            *time = ran(child)?;
        }
        Ok::<_, Why>(times)
    };
    // The first to start have an advantage; what is measured begins when all are there.
    let before = times(&children)?;
    sleep(8000 * MS);
    let after = times(&children)?;
    let progress = || {
        after
            .iter()
            .zip(&before)
            .map(|(after, before)| after - before)
    };
    let slowest = progress().min().unwrap_or(0);
    let fastest = progress().max().unwrap_or(0);
    println!("measure spinners_64: {slowest} to {fastest} ns");
    check!(slowest > 0, "one has not run");
    let promised = if ticks_are_instructions()? {
        90
    } else {
        println!("note: a tick is no instruction on this machine; half of the fastest is enough");
        50
    };
    check!(
        slowest.saturating_mul(100) >= fastest.saturating_mul(promised),
        "{slowest} to {fastest} ns"
    );
    Ok(())
}

/// How often the interactive domain wakes.
const WAKES: u64 = 400;
/// From one deadline to the next.
const STEP: u64 = 5 * MS;
/// Microseconds of a step of its histogram, and how many steps there are; the last counts all that is later.
const BIN_NS: u64 = 25_000;
const BINS: u64 = 480;
/// Where the histogram is: behind the stack.
const HISTOGRAM: u64 = 0x4000;

/// Waits for one moment after the other, and counts how late it is when it runs: RBX the first moment, R12 how many, R13 the
/// nanoseconds of a bin, R14 the histogram.
fn interactive() -> Snippet {
    snippet!(
        "2:",
        "mov eax, 5",
        "mov rdi, rbx",
        "call r15",
        "mov eax, 2",
        "call r15",
        "mov rax, rdx",
        "sub rax, rbx",
        "xor edx, edx",
        "div r13",
        "cmp rax, 479",
        "jbe 3f",
        "mov eax, 479",
        "3:",
        "inc qword ptr [r14 + rax * 8]",
        "add rbx, 5000000",
        "dec r12",
        "jnz 2b",
        "mov qword ptr [0x2000], 1",
        "4:",
        "mov eax, 5",
        "mov rdi, -1",
        "call r15",
        "jmp 4b",
    )
}

/// The latency in nanoseconds below which so many percent of all wakes were.
fn percentile(child: &Child, percent: u64) -> Result<u64, Why> {
    let mut seen = 0;
    for bin in 0..BINS {
        seen += child.word(HISTOGRAM + bin * 8)?;
        if seen * 100 >= WAKES * percent {
            return Ok((bin + 1) * BIN_NS);
        }
    }
    Ok(u64::MAX)
}

/// As an operating system's process computes: with interrupts on.
fn spin_interruptibly() -> Snippet {
    snippet!("sti", "2: jmp 2b")
}

/// A domain that wakes beside eight spinners on its CPU runs within a millisecond in 99 of 100 cases.
fn wakes_beside_spinners() -> Outcome {
    wakes_beside(spin_interruptibly, "wake_latency", MS)
}

/// The same where the spinners keep interrupts off, which is no matter to a hypervisor.
fn wakes_beside_the_uninterruptible() -> Outcome {
    // Bochs's SVM takes no interrupt in such a guest. There an NMI bounds its run every 10 ms (`arch::nmi_tick` of the kernel).
    let only_nmis = ticks_are_instructions()? && cpu::is_amd();
    let most = if only_nmis { 11 * MS } else { MS };
    wakes_beside(spin, "wake_latency_if_0", most)
}

fn wakes_beside(spinner: fn() -> Snippet, name: &str, promised: u64) -> Outcome {
    const SPINNERS: usize = 8;
    let mut spinners = [const { None }; SPINNERS];
    for place in &mut spinners {
        let child = scheduled(spinner(), &PINNED)?;
        child.start()?;
        *place = Some(child);
    }
    let child = Child::new(&Plan {
        pages: 5,
        ..small(interactive())
    })?;
    child.vcpu(0).schedule(&PINNED).must("schedule")?;
    child.set(0, |state| {
        // It has had its first turn by then.
        state.rbx = hypercall::clock() + 300 * MS;
        state.r12 = WAKES;
        state.r13 = BIN_NS;
        state.r14 = HISTOGRAM;
    })?;
    child.start()?;
    sleep(300 * MS + WAKES * STEP);
    child.until_word(DATA, 1)?;
    let (half, most, all) = (
        percentile(&child, 50)?,
        percentile(&child, 99)?,
        percentile(&child, 100)?,
    );
    println!("measure {name}_50: below {} us", half / 1000);
    println!("measure {name}_99: below {} us", most / 1000);
    println!("measure {name}_100: below {} us", all / 1000);
    drop(spinners);
    if ticks_are_instructions()? {
        check!(most <= promised, "below {most} ns");
    } else {
        // Time passes while the computer does something else than this machine.
        println!("note: a tick is no instruction on this machine; only the median is judged");
        check!(half <= promised, "the median: below {half} ns");
    }
    Ok(())
}

/// Whether a tick of the TSC is an executed instruction, which a loop of known length tells.
fn ticks_are_instructions() -> Result<bool, Why> {
    let timed = snippet!(
        "rdtsc",
        "shl rdx, 32",
        "or rax, rdx",
        "mov r8, rax",
        "2: dec rcx",
        "jnz 2b",
        "rdtsc",
        "shl rdx, 32",
        "or rax, rdx",
        "sub rax, r8",
    );
    let run = |loops| {
        let out = timed.run(Gprs {
            rcx: loops,
            ..Gprs::ZERO
        })?;
        Ok::<_, Why>(out.rax)
    };
    // The difference of two runs is free of what surrounds the loop; an interrupt may lengthen one of them.
    for _ in 0..10 {
        if run(1100)?.checked_sub(run(100)?) == Some(2000) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Gives the CPU away for ever.
fn yielder() -> Snippet {
    snippet!("2: mov eax, 3", "call r15", "jmp 2b")
}

/// Gives the CPU away until it is told to measure at DATA, then R12 times more, and tells how many ticks those took.
fn measuring_yielder() -> Snippet {
    snippet!(
        "2:",
        "mov eax, 3",
        "call r15",
        "cmp qword ptr [0x2000], 0",
        "je 2b",
        "rdtsc",
        "shl rdx, 32",
        "or rax, rdx",
        "mov rbx, rax",
        "3:",
        "mov eax, 3",
        "call r15",
        "dec r12",
        "jnz 3b",
        "rdtsc",
        "shl rdx, 32",
        "or rax, rdx",
        "sub rax, rbx",
        "mov [0x2010], rax",
        "mov qword ptr [0x2008], 1",
        "4:",
        "mov eax, 5",
        "mov rdi, -1",
        "call r15",
        "jmp 4b",
    )
}

/// Most domains that a measurement makes.
const MANY: usize = 500;

/// Ticks of a switch from one vCPU to the next on one CPU, where so many of them take turns.
fn ticks_of_a_switch(vcpus: usize) -> Result<u64, Why> {
    /// About so many switches are measured.
    const SWITCHES: u64 = 20_000;
    let mut others = [const { None }; MANY];
    for place in others.iter_mut().take(vcpus - 1) {
        let child = scheduled(yielder(), &PINNED)?;
        child.start()?;
        *place = Some(child);
    }
    let rounds = SWITCHES / vcpus as u64;
    let child = scheduled(measuring_yielder(), &PINNED)?;
    child.set(0, |state| state.r12 = rounds)?;
    child.start()?;
    child.set_word(DATA, 1)?;
    // Whoever asks too often disturbs: each time the first CPU has nothing to do it looks for work on the second.
    sleep(1000 * MS);
    child.until_word(DATA + 8, 1)?;
    let ticks = child.word(DATA + 16)?;
    drop(others);
    Ok(ticks / (rounds * vcpus as u64))
}

/// A pick costs the same with 2 and with 500 runnable vCPUs.
fn switch_costs_the_same_with_many() -> Outcome {
    let exact = ticks_are_instructions()?;
    let unit = if exact { "instructions" } else { "ticks" };
    let few = ticks_of_a_switch(2)?;
    println!("measure switch_among_2: {few} {unit}");
    let many = ticks_of_a_switch(MANY)?;
    println!("measure switch_among_{MANY}: {many} {unit}");
    // Elsewhere caches, and whatever else the computer does, have their part in it.
    if exact {
        check!(
            many.abs_diff(few).saturating_mul(20) <= few,
            "{few} and {many} instructions"
        );
    } else {
        println!("note: a tick is no instruction on this machine; the two are not compared");
    }
    Ok(())
}

/// Frames and bytes of heap that are in use.
fn in_use() -> Result<(u64, u64), Why> {
    let info = system().info().must("system info")?;
    Ok((info.frames - info.free_frames, info.heap_used))
}

/// Pages of 2 MiB.
const PAGES: u64 = 512;

/// A child with 2 MiB of memory.
fn two_mib(code: Snippet) -> Result<Child, Why> {
    Child::new(&Plan {
        pages: PAGES,
        ..small(code)
    })
}

/// A domain with a vCPU and 2 MiB of memory costs the kernel at most 64 KiB.
fn domain_costs_little() -> Outcome {
    // The kernel keeps some things once they have been needed.
    drop(two_mib(spin())?);
    sleep(50 * MS);
    let before = in_use()?;
    let child = two_mib(spin())?;
    child.start()?;
    until("it to run", || Ok(ran(&child)? > 0))?;
    let after = in_use()?;
    let frames = (after.0 - before.0).saturating_sub(PAGES);
    let heap = after.1 - before.1;
    let cost = frames * 4096 + heap;
    println!(
        "measure domain_of_2_mib: {frames} frames and {heap} bytes of heap, {cost} bytes in all"
    );
    check!(cost <= 64 << 10, "{cost} bytes");
    Ok(())
}

/// Counts how often it had the CPU, and gives it away.
fn counting_yielder() -> Snippet {
    snippet!(
        "2:",
        "inc qword ptr [0x2000]",
        "mov eax, 3",
        "call r15",
        "jmp 2b"
    )
}

/// 500 domains with 2 MiB each run at once, or as many as this machine has memory for.
fn many_domains_at_once() -> Outcome {
    let free = system().info().must("system info")?.free_frames;
    let budget = own().info().must("own info")?;
    let left = free.min(budget.max_frames - budget.frames);
    // A domain's budget is not much more than its memory.
    let count = MANY.min((left / (PAGES + 32)) as usize);
    if count < MANY {
        println!("note: there is memory for {count} domains, not {MANY}");
    }
    let mut children = [const { None }; MANY];
    for place in children.iter_mut().take(count) {
        *place = Some(two_mib(counting_yielder())?);
    }
    children.iter().flatten().try_for_each(Child::start)?;
    for child in children.iter().flatten() {
        child.until_change(DATA)?;
    }
    let domains = system().info().must("system info")?.domains;
    println!("measure domains_at_once: {domains}");
    check!(domains as usize > count, "{domains} domains");
    Ok(())
}

//! Lists of the kernel, made long before the accounts are opened: of domains, and for each CPU of vCPUs that are ready, that were woken,
//! that wait for a time. They stay as long as they were once, which must not be taken for a leak.

#![allow(
    unsafe_code,
    reason = "snippet! assembles code, which runs in child domains"
)]

use plinth_rt::abi::{DomainConfig, Schedule};
use plinth_rt::{Outcome, Snippet, hypercall, snippet};
use plinth_testkit::child::{Child, DATA, Plan, spin};
use plinth_testkit::kit::{MS, Must, sleep, system};

/// Domains at once. The fuzzers make fewer, and lists double.
const MANY: usize = 65;
/// From the moment at which domains begin to start to that for which they wait.
const SOON: u64 = 400 * MS;

/// Waits for the moment at [`DATA`], and then for ever.
fn doze() -> Snippet {
    snippet!(
        "mov eax, 5",
        "mov rdi, [0x2000]",
        "call r15",
        "2: mov eax, 5",
        "mov rdi, -1",
        "call r15",
        "jmp 2b",
    )
}

/// Makes all lists long.
pub fn lengthen() -> Outcome {
    for cpu in 0..system().info().must("system info")?.cpus {
        many(spin(), cpu, 0)?;
        many(doze(), cpu, SOON)?;
    }
    Ok(())
}

/// So many domains that run this code on one CPU, for so many nanoseconds.
fn many(code: Snippet, cpu: u32, time: u64) -> Outcome {
    let plan = Plan {
        max_vcpus: 1,
        frames: 24,
        heap: DomainConfig::LEAST_HEAP,
        handles: 4,
        ..Plan::new(code)
    };
    let schedule = Schedule {
        cpu,
        ..Schedule::USUAL
    };
    let mut children = [const { None }; MANY];
    for place in &mut children {
        let child = Child::new(&plan)?;
        child.vcpu(0).schedule(&schedule).must("schedule")?;
        *place = Some(child);
    }
    let deadline = hypercall::clock() + time;
    for child in children.iter().flatten() {
        child.set_word(DATA, deadline)?;
        child.start()?;
    }
    sleep(time + time / 4);
    Ok(())
}

//! How a domain ends, and that it can be ended in every state in which it can be.

use plinth_rt::abi::call::access;
use plinth_rt::abi::device::kind;
use plinth_rt::abi::domain::fault;
use plinth_rt::abi::{Call, DomainState, Reason, Schedule, Status, VcpuRun, rights};
use plinth_rt::{Outcome, Snippet, Why, check, check_eq, object, snippet};

use crate::child::{
    After, COUNTERS, Child, DATA, ENTRY, Plan, Step, agents, caller, count, give, spin, wait,
};
use crate::devices::claim_with;
use crate::kit::{MS, Must, event, memory, refused, refuses, sleep, until};

tests!("ending":
    reads_what_is_not_there,
    writes_what_is_not_there,
    fetches_what_is_not_there,
    walks_what_is_not_there,
    writes_read_only,
    fetches_data,
    triple_fault,
    halts,
    halts_with_nothing_to_come,
    halts_with_two_vcpus,
    halt_waits_for_an_event,
    halt_with_an_interrupt_pending,
    killed_while_it_halts,
    of_the_second_vcpu,
    killed_before_its_start,
    killed_while_it_spins,
    killed_while_it_is_ready,
    killed_while_it_waits,
    killed_while_it_waits_for_a_time,
    killed_while_it_calls,
    killed_while_it_is_capped,
    killed_while_paused,
    killed_while_it_waits_for_a_device,
    killed_with_an_interrupt_pending,
    killed_with_all_vcpus_busy,
    killed_while_another_maps,
    cannot_be_undone,
    keeps_memory_and_state,
    state_of_each_vcpu,
);

/// An address at which nothing is mapped.
const EMPTY: u64 = 0x10_0000;

/// Runs the code, which must end by a nested fault at this address with these bits, at its instruction at this offset.
fn faults(child: &Child, address: u64, bits: u64, offset: u64) -> Outcome {
    child.start()?;
    let info = child.ends(Reason::NESTED_FAULT)?;
    check_eq!(info.info[0], address, "address");
    check_eq!(info.info[1], bits, "bits");
    check_eq!(info.rip, ENTRY + offset, "RIP");
    Ok(())
}

fn child(code: Snippet) -> Result<Child, Why> {
    Child::new(&Plan::new(code))
}

fn reads_what_is_not_there() -> Outcome {
    faults(
        &child(snippet!("nop", "mov rax, [0x100010]"))?,
        EMPTY + 16,
        0,
        1,
    )
}

fn writes_what_is_not_there() -> Outcome {
    faults(
        &child(snippet!("nop", "nop", "mov [0x100018], rax"))?,
        EMPTY + 24,
        fault::WRITE,
        2,
    )
}

fn fetches_what_is_not_there() -> Outcome {
    let child = child(snippet!("mov eax, 0x100020", "jmp rax"))?;
    child.start()?;
    let info = child.ends(Reason::NESTED_FAULT)?;
    check_eq!(info.info[0] & !0xfff, EMPTY, "page");
    check_eq!(info.info[1], fault::FETCH, "bits");
    check_eq!(info.rip, EMPTY + 32, "RIP");
    Ok(())
}

/// The page table itself is where nothing is.
fn walks_what_is_not_there() -> Outcome {
    let child = child(spin())?;
    child.set(0, |state| state.cr3 = EMPTY)?;
    child.start()?;
    let info = child.ends(Reason::NESTED_FAULT)?;
    check_eq!(info.info[0] & !0xfff, EMPTY, "page");
    check!(
        info.info[1] & fault::TABLE_WALK != 0,
        "bits {:#x}",
        info.info[1]
    );
    check_eq!(info.info[1] & fault::PRESENT, 0, "PRESENT");
    Ok(())
}

fn writes_read_only() -> Outcome {
    let child = child(snippet!("mov rax, [0x100000]", "mov [0x100000], rax"))?;
    let memory = memory(4096)?;
    child
        .domain
        .map(EMPTY, *memory, 0, 4096, access::READ)
        .must("map")?;
    faults(&child, EMPTY, fault::WRITE | fault::PRESENT, 8)
}

fn fetches_data() -> Outcome {
    let child = child(snippet!("mov eax, 0x100000", "jmp rax"))?;
    let memory = memory(4096)?;
    child
        .domain
        .map(EMPTY, *memory, 0, 4096, access::READ | access::WRITE)
        .must("map")?;
    child.start()?;
    let info = child.ends(Reason::NESTED_FAULT)?;
    check_eq!(info.info[0] & !0xfff, EMPTY, "page");
    check_eq!(info.info[1], fault::FETCH | fault::PRESENT, "bits");
    Ok(())
}

/// No exception has a gate.
fn triple_fault() -> Outcome {
    let child = child(snippet!("ud2"))?;
    child.start()?;
    let info = child.ends(Reason::TRIPLE_FAULT)?;
    check_eq!(info.ended_vcpu, 0, "vCPU");
    Ok(())
}

fn halts() -> Outcome {
    let child = child(snippet!("hlt", "jmp 2f", "2:"))?;
    child.start()?;
    child.ends(Reason::HALTED)?;
    Ok(())
}

/// Interrupts are on, and none can come.
fn halts_with_nothing_to_come() -> Outcome {
    let child = child(snippet!("sti", "hlt"))?;
    child.start()?;
    child.ends(Reason::HALTED)?;
    Ok(())
}

/// Halts with interrupts on, and ends with status 0 after that.
fn halter() -> Result<Child, Why> {
    child(snippet!(
        "sti",
        "hlt",
        "mov eax, 4",
        "xor edi, edi",
        "call r15"
    ))
}

fn halt_waits_for_an_event() -> Outcome {
    let child = halter()?;
    let event = event()?;
    event.bind_vector(child.vcpu(0), 33).must("bind")?;
    child.start()?;
    until_it_is(&child, VcpuRun::BLOCKED)?;
    sleep(MS);
    check!(child.is(DomainState::RUNNING)?, "not RUNNING");
    event.signal().must("signal")?;
    child.ends_with(0)?;
    check_eq!(child.word(COUNTERS + 8)?, 1, "interrupts");
    Ok(())
}

/// The interrupt is taken in the halt, between STI and HLT there is no room for it.
fn halt_with_an_interrupt_pending() -> Outcome {
    let child = halter()?;
    child.vcpu(0).interrupt(34).must("interrupt")?;
    child.start()?;
    child.ends_with(0)?;
    check_eq!(child.word(COUNTERS + 16)?, 1, "interrupts");
    Ok(())
}

fn killed_while_it_halts() -> Outcome {
    let child = halter()?;
    let event = event()?;
    event.bind_vector(child.vcpu(0), 33).must("bind")?;
    child.start()?;
    until_it_is(&child, VcpuRun::BLOCKED)?;
    dies(&child)
}

/// The first to halt ends nothing; the last does.
fn halts_with_two_vcpus() -> Outcome {
    let child = Child::new(&Plan {
        vcpus: 2,
        ..Plan::new(snippet!(
            "inc qword ptr [0x2008]",
            "2: cmp [0x2000], rbx",
            "jb 2b",
            "hlt"
        ))
    })?;
    child.set(1, |state| state.rbx = 1)?;
    child.start()?;
    child.until_word(DATA + 8, 2)?;
    sleep(2 * MS);
    check!(child.is(DomainState::RUNNING)?, "ended by the first");
    child.set_word(DATA, 1)?;
    child.ends(Reason::HALTED)?;
    Ok(())
}

fn of_the_second_vcpu() -> Outcome {
    let child = Child::new(&Plan {
        vcpus: 2,
        ..Plan::new(snippet!("2: test rbx, rbx", "jz 2b", "ud2"))
    })?;
    child.set(1, |state| state.rbx = 1)?;
    child.start()?;
    let info = child.ends(Reason::TRIPLE_FAULT)?;
    check_eq!(info.ended_vcpu, 1, "vCPU");
    for index in 0..2 {
        until("each vCPU's end", || {
            Ok(child.vcpu(index).info().must("info")?.run == VcpuRun::ENDED)
        })?;
    }
    Ok(())
}

/// Kills it, sees that nothing of it goes on, and destroys it.
fn dies(child: &Child) -> Outcome {
    child.domain.kill().must("kill")?;
    let info = child.ends(Reason::KILLED)?;
    check!(info.state == DomainState::ENDED, "{:?}", info.state);
    for index in 0..info.vcpus as usize {
        child.state(index)?;
        let run = child.vcpu(index).info().must("info")?.run;
        check!(run == VcpuRun::ENDED, "vCPU {index} is {}", run.text());
    }
    let counter = child.word(DATA)?;
    sleep(MS / 2);
    check_eq!(child.word(DATA)?, counter, "a counter after the end");
    refused(child.domain.kill(), Status::WRONG_STATE, "kill again")?;
    child.destroy()
}

/// Waits until its vCPU does this.
fn until_it_is(child: &Child, run: VcpuRun) -> Outcome {
    until("what its vCPU is to do", || {
        Ok(child.vcpu(0).info().must("info")?.run == run)
    })
}

fn killed_before_its_start() -> Outcome {
    dies(&child(count())?)
}

fn killed_while_it_spins() -> Outcome {
    let child = Child::running(count())?;
    child.until_change(DATA)?;
    dies(&child)
}

/// Three spinners on one CPU: two of them are ready at any time.
fn killed_while_it_is_ready() -> Outcome {
    let children = [child(count())?, child(count())?, child(count())?];
    for child in &children {
        child.pin(0, 0)?;
        child.start()?;
    }
    for child in &children {
        child.until_change(DATA)?;
    }
    children.iter().try_for_each(dies)
}

fn killed_while_it_waits() -> Outcome {
    let child = Child::running(wait())?;
    until_it_is(&child, VcpuRun::BLOCKED)?;
    dies(&child)
}

fn killed_while_it_waits_for_a_time() -> Outcome {
    let child = caller()?;
    let deadline = plinth_rt::hypercall::clock() + 3600 * 1000 * MS;
    child.load(0, &[Step::new(Call::WAIT, [deadline])], 1, After::Wait)?;
    child.start()?;
    until_it_is(&child, VcpuRun::BLOCKED)?;
    dies(&child)
}

fn killed_while_it_calls() -> Outcome {
    for call in [Call::VERSION, Call::YIELD, Call::CLOCK, Call::WAIT] {
        let child = caller()?;
        // WAIT only asks.
        child.load(0, &[Step::new(call, [0])], u64::MAX, After::Wait)?;
        child.start()?;
        sleep(MS / 2);
        dies(&child)?;
    }
    Ok(())
}

fn killed_while_it_is_capped() -> Outcome {
    let child = child(count())?;
    child
        .vcpu(0)
        .schedule(&Schedule {
            cap: 1,
            ..Schedule::USUAL
        })
        .must("cap")?;
    child.start()?;
    until_it_is(&child, VcpuRun::CAPPED)?;
    dies(&child)
}

fn killed_while_paused() -> Outcome {
    let child = Child::running(count())?;
    child.until_change(DATA)?;
    child.domain.pause().must("pause")?;
    dies(&child)
}

fn killed_while_it_waits_for_a_device() -> Outcome {
    let child = child(snippet!("mov edx, 0x100", "in al, dx"))?;
    let (memory, event) = (memory(4096)?, event()?);
    child
        .domain
        .claim(&claim_with(*memory, *event, kind::PORTS, 0x100..0x101))
        .must("claim")?;
    child.start()?;
    until_it_is(&child, VcpuRun::BLOCKED)?;
    dies(&child)
}

fn killed_with_an_interrupt_pending() -> Outcome {
    // Interrupts stay off.
    let child = Child::running(count())?;
    let event = event()?;
    event.bind_vector(child.vcpu(0), 32).must("bind")?;
    event.signal().must("signal")?;
    child.vcpu(0).interrupt(33).must("interrupt")?;
    child.until_change(DATA)?;
    check_eq!(child.word(COUNTERS)?, 0, "interrupts");
    dies(&child)
}

fn killed_with_all_vcpus_busy() -> Outcome {
    for _ in 0..5 {
        let child = Child::new(&Plan {
            vcpus: 3,
            ..Plan::new(count())
        })?;
        child.start()?;
        child.until_change(DATA)?;
        dies(&child)?;
    }
    Ok(())
}

/// The child is the object of another's calls all the time.
fn killed_while_another_maps() -> Outcome {
    let target = Child::running(count())?;
    let other = Child::new(&agents(1))?;
    let memory = memory(4096)?;
    let domain = give(&other, target.domain.any(), rights::MEMORY)?;
    let handle = give(&other, memory.any(), rights::READ)?;
    other.load(
        0,
        &[
            Step::new(
                Call::MEMORY_MAP,
                [handle, 0, domain, EMPTY, 4096, access::READ],
            ),
            Step::new(Call::MEMORY_UNMAP, [domain, EMPTY, 4096]),
        ],
        u64::MAX,
        After::Wait,
    )?;
    other.start()?;
    sleep(MS);
    dies(&target)?;
    other.domain.kill().must("kill")?;
    for step in 0..2 {
        other.only(0, step, &[Status::OK, Status::WRONG_STATE])?;
    }
    Ok(())
}

fn cannot_be_undone() -> Outcome {
    let child = Child::running(count())?;
    child.domain.kill().must("kill")?;
    child.ends(Reason::KILLED)?;
    refused(child.domain.start(), Status::WRONG_STATE, "start")?;
    refused(child.domain.resume(), Status::WRONG_STATE, "resume")?;
    refused(child.domain.pause(), Status::WRONG_STATE, "pause")?;
    check!(child.is(DomainState::ENDED)?, "not ENDED");
    Ok(())
}

fn keeps_memory_and_state() -> Outcome {
    let child = child(snippet!(
        "mov qword ptr [0x2000], 0x77",
        "mov ebx, 0x88",
        "ud2"
    ))?;
    child.start()?;
    let info = child.ends(Reason::TRIPLE_FAULT)?;
    check_eq!(child.word(DATA)?, 0x77, "word");
    let state = child.state(0)?;
    check_eq!(state.rbx, 0x88, "RBX");
    check_eq!(state.rip, info.rip, "RIP");
    refuses(
        Call::DOMAIN_START,
        [crate::kit::raw(child.domain.any())],
        Status::WRONG_STATE,
    )?;
    check!(object::wait(0).must("wait")?.is_none(), "an event");
    Ok(())
}

/// After the end the state of every vCPU can be read, also of those that were not its cause.
fn state_of_each_vcpu() -> Outcome {
    let child = Child::new(&Plan {
        vcpus: 3,
        ..Plan::new(snippet!(
            "lock inc qword ptr [0x2000]",
            "2: cmp qword ptr [0x2000], 3",
            "jne 2b",
            "3: test rbx, rbx",
            "jz 3b",
            "ud2"
        ))
    })?;
    for index in 0..3 {
        child.set(index, |state| {
            state.r12 = index as u64 + 50;
            state.rbx = u64::from(index == 2);
        })?;
    }
    child.start()?;
    let info = child.ends(Reason::TRIPLE_FAULT)?;
    check_eq!(info.ended_vcpu, 2, "vCPU");
    for index in 0..3 {
        check_eq!(child.state(index)?.r12, index as u64 + 50, "R12");
    }
    Ok(())
}

//! Buffers that another vCPU rewrites while a call or an exit reads them: what was checked is what is used, or the call is refused.

use plinth_rt::abi::call::access;
use plinth_rt::abi::device::kind;
use plinth_rt::abi::state::part;
use plinth_rt::abi::{Call, Claim, DomainConfig, Handle, Schedule, Status, VcpuState, rights};
use plinth_rt::object::{Domain, Vcpu, bytes_of};
use plinth_rt::paging::{self, flag};
use plinth_rt::trap::vector;
use plinth_rt::{Gprs, Outcome, Snippet, check, check_eq, hypercall, snippet};
use plinth_testkit::child::{Child, DATA, Plan as ChildPlan, config, count};
use plinth_testkit::kit::{Must, event, memory, own, system};

use crate::attacker::{Attacker, FREE, Plan, at, heard, ordered, peek, poke};

cases!("double_fetches":
    weight_of_a_schedule,
    budget_of_a_new_domain,
    memory_of_a_claim,
    mode_of_a_vcpus_state,
    header_of_a_vector_state,
    buffer_that_comes_and_goes,
    tables_rewritten_during_a_string,
);

/// How often a call is made against the rewriting.
const TIMES: u64 = 600;

/// Rewrites the word at RSI with R8 and R9 in turn, and counts its rounds in the last of the words that the attacker tells.
fn rewriter() -> Snippet {
    snippet!(
        "2: mov [rsi], r8",
        "inc qword ptr [rdi + 0x800]",
        "mov [rsi], r9",
        "jmp 2b"
    )
}

/// An attacker whose second vCPU gives the word at `at` these values in turn.
fn rewriting(plan: Plan, at: u64, values: [u64; 2]) -> Result<Attacker, plinth_rt::Why> {
    let mut attacker = Attacker::new(&plan.with_vcpus(2))?;
    attacker.add(rewriter())?;
    attacker.set(1, |state| {
        state.rsi = at;
        [state.r8, state.r9] = values;
    })?;
    Ok(attacker)
}

/// Waits until the other vCPU has begun, and now and then lets it have a CPU.
fn let_it_rewrite(round: u64) {
    while heard(0x100) == 0 || round.is_multiple_of(100) && heard(0x100) % 64 == 63 {
        hypercall::yield_now();
    }
    if round.is_multiple_of(8) {
        hypercall::yield_now();
    }
}

/// Puts bytes at [`FREE`].
fn put(bytes: &[u8]) {
    for (index, chunk) in (0u64..).zip(bytes.chunks(8)) {
        let word = chunk
            .iter()
            .rev()
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        poke(FREE + index * 8, word);
    }
}

fn weight_of_a_schedule() -> Outcome {
    // Weight and cap are one word.
    let attacker = rewriting(
        Plan::new(|| {
            let vcpu = Vcpu(Handle(ordered(0) as u32));
            put(bytes_of(&Schedule::USUAL));
            for round in 0..TIMES {
                let_it_rewrite(round);
                let (status, _) = hypercall::call(Call::VCPU_SCHEDULE, [ordered(0), FREE]);
                check!(
                    matches!(status, Status::OK | Status::BAD_ARGUMENT),
                    "round {round}: {status:?}"
                );
                let now = vcpu
                    .info()
                    .map_err(|status| format_args!("{status:?}").into());
                let now: plinth_rt::abi::VcpuInfo = now.map_err(|why: plinth_rt::Why| why)?;
                check!(
                    matches!(now.schedule.weight, 16 | 256) && now.schedule.cap == 0,
                    "round {round}: {:?}",
                    now.schedule
                );
            }
            Ok(())
        }),
        FREE,
        [16, 5000 | 400 << 32],
    )?;
    attacker.succeeds_with(attacker.vcpu(0).any(), rights::CONTROL | rights::READ)
}

fn budget_of_a_new_domain() -> Outcome {
    const FRAMES: u64 = 64;
    let attacker = rewriting(
        Plan {
            frames: 400,
            heap: 256 << 10,
            ..Plan::new(|| {
                put(bytes_of(&config(b"victim")));
                for round in 0..TIMES / 4 {
                    let_it_rewrite(round);
                    match hypercall::call(Call::DOMAIN_CREATE, [ordered(0), FREE]) {
                        (Status::OVER_BUDGET, _) => {}
                        (Status::OK, handle) => {
                            let domain = Domain(Handle(handle as u32));
                            let info = domain.info().must("info")?;
                            check_eq!(info.max_frames, FRAMES, "frames");
                            domain.destroy().must("destroy")?;
                            domain.any().close().must("close")?;
                        }
                        (status, _) => {
                            return Err(format_args!("round {round}: {status:?}").into());
                        }
                    }
                }
                Ok(())
            })
        },
        FREE + core::mem::offset_of!(DomainConfig, frames) as u64,
        [FRAMES, 1 << 40],
    )?;
    attacker.succeeds_with(system().any(), rights::CREATE)
}

/// The handle of the Memory object becomes one of an event, and back.
fn memory_of_a_claim() -> Outcome {
    let mut attacker = Attacker::new(
        &Plan::new(|| {
            let [domain, memory, event] = [ordered(0), ordered(1), ordered(2)];
            put(bytes_of(&Claim {
                kind: kind::PORTS,
                memory: memory as u32,
                event: event as u32,
                reserved: 0,
                first: 0x500,
                length: 8,
                tag: 0,
            }));
            for round in 0..TIMES {
                let_it_rewrite(round);
                match hypercall::call(Call::DEVICE_CLAIM, [domain, FREE]).0 {
                    Status::WRONG_TYPE => {}
                    Status::OK => {
                        let arguments = [domain, kind::PORTS.into(), 0x500];
                        let (status, _) = hypercall::call(Call::DEVICE_RELEASE, arguments);
                        check!(status == Status::OK, "release: {status:?}");
                    }
                    status => return Err(format_args!("round {round}: {status:?}").into()),
                }
            }
            Ok(())
        })
        .with_vcpus(2),
    )?;
    let slots = memory(4096)?;
    let signalled = event()?;
    let domain = attacker.give(attacker.domain.any(), rights::DEVICE)?;
    let memory = attacker.give(slots.any(), rights::READ | rights::WRITE)?;
    let event = attacker.give(signalled.any(), rights::SIGNAL)?;
    for (index, handle) in [(0, domain), (1, memory), (2, event)] {
        attacker.order(index, handle)?;
    }
    attacker.add(rewriter())?;
    attacker.set(1, |state| {
        state.rsi = FREE;
        state.r8 = u64::from(kind::PORTS) | memory << 32;
        state.r9 = u64::from(kind::PORTS) | event << 32;
    })?;
    attacker.start()?;
    attacker.succeeds()
}

/// CR0 with PG, with and without PE. Its victim is not started.
fn mode_of_a_vcpus_state() -> Outcome {
    let good = VcpuState::long_mode(0x1010, 0x4000, 0);
    let attacker = rewriting(
        Plan::new(|| {
            let good = VcpuState::long_mode(0x1010, 0x4000, 0);
            let vcpu = ordered(0);
            put(bytes_of(&good));
            let length = size_of::<VcpuState>() as u64;
            for round in 0..TIMES {
                let_it_rewrite(round);
                let arguments = [vcpu, part::REGISTERS, FREE, length];
                let (status, _) = hypercall::call(Call::VCPU_SET_STATE, arguments);
                check!(
                    matches!(status, Status::OK | Status::BAD_ARGUMENT),
                    "round {round}: {status:?}"
                );
                let state = Vcpu(Handle(vcpu as u32)).state().must("get state")?;
                check_eq!(state.cr0, good.cr0, "CR0");
            }
            Ok(())
        }),
        FREE + core::mem::offset_of!(VcpuState, cr0) as u64,
        [good.cr0, good.cr0 & !1],
    )?;
    let victim = Child::new(&ChildPlan::new(count()))?;
    attacker.succeeds_with(victim.vcpu(0).any(), rights::CONTROL | rights::READ)
}

/// XSTATE_BV with a component that there is not, and without. Afterwards the victim runs with what it got: the host's XRSTOR would have
/// met it.
fn header_of_a_vector_state() -> Outcome {
    const XSTATE_BV: u64 = FREE + 512;
    let attacker = rewriting(
        Plan::new(|| {
            let vcpu = ordered(0);
            let (status, length) =
                hypercall::call(Call::VCPU_GET_STATE, [vcpu, part::VECTOR, FREE, 0x8000]);
            check!(status == Status::OK, "get: {status:?}");
            for round in 0..TIMES / 2 {
                let_it_rewrite(round);
                let arguments = [vcpu, part::VECTOR, FREE, length];
                let (status, _) = hypercall::call(Call::VCPU_SET_STATE, arguments);
                check!(
                    status == Status::OK || length > 512 && status == Status::BAD_ARGUMENT,
                    "round {round}: {status:?}"
                );
            }
            Ok(())
        }),
        XSTATE_BV,
        [3, 1 << 62 | 3],
    )?;
    let victim = Child::new(&ChildPlan::new(count()))?;
    attacker.succeeds_with(victim.vcpu(0).any(), rights::CONTROL | rights::READ)?;
    victim.start()?;
    victim.until_change(DATA)
}

/// A page into which a call writes, and which its maker takes away and gives back meanwhile.
fn buffer_that_comes_and_goes() -> Outcome {
    const BUFFER: u64 = 4 << 20;
    let attacker = Attacker::new(&Plan::new(|| {
        for round in 0..u64::MAX {
            let (status, _) = hypercall::call(Call::HANDLE_INFO, [ordered(0)]);
            check!(status == Status::OK, "handle info: {status:?}");
            let (status, _) = hypercall::call(Call::DOMAIN_INFO, [ordered(0), BUFFER + 4000]);
            check!(
                matches!(status, Status::OK | Status::BAD_ADDRESS),
                "round {round}: {status:?}"
            );
            crate::attacker::tell(u64::from(status == Status::OK), round + 1);
        }
        Ok(())
    }))?;
    let domain = attacker.give(attacker.domain.any(), rights::READ)?;
    attacker.order(0, domain)?;
    let pages = memory(2 * 4096)?;
    attacker.start()?;
    for _ in 0..40 {
        attacker
            .domain
            .map(BUFFER, *pages, 0, 8192, access::ALL)
            .must("map")?;
        let before = attacker.told(1)?;
        attacker.until_told(1, before + 1)?;
        attacker.domain.unmap(BUFFER + 4096, 4096).must("unmap")?;
        attacker.domain.unmap(BUFFER, 4096).must("unmap")?;
        let before = attacker.told(0)?;
        attacker.until_told(0, before + 1)?;
    }
    check!(own().info().is_ok(), "the suite's own call");
    attacker.is_killed()
}

/// The entry of the page to which INS writes goes from one page to another, and to none: every byte lands in one of both.
fn tables_rewritten_during_a_string() -> Outcome {
    let mut attacker = Attacker::new(
        &Plan::new(|| {
            let page = paging::map(4, FREE + 0x1000, flag::ALL);
            let entry = page_entry();
            crate::attacker::tell(1, entry);
            for round in 0..TIMES {
                let_it_rewrite(round);
                let result = snippet!("rep insb").run(Gprs {
                    rdx: 0x5678,
                    rcx: 256,
                    ..at(page + 0x100)
                });
                match result {
                    Ok(out) => check_eq!(out.rcx, 0, "RCX"),
                    Err(trap) => check!(trap.vector == vector::PF, "{trap}"),
                }
            }
            // Nothing beside the two strings.
            for page in [FREE + 0x1000, FREE + 0x2000] {
                for offset in (0..0x1000).step_by(8) {
                    let seen = peek(page + offset);
                    let inside = (0x100..0x200).contains(&offset);
                    check!(inside || seen == 0, "{:#x}: {seen:#x}", page + offset);
                }
            }
            for page in [FREE, FREE + 0x3000] {
                check_eq!(peek(page + 0x100), 0, "another page");
            }
            Ok(())
        })
        .with_vcpus(2),
    )?;
    attacker.add(snippet!(
        "2: mov rsi, [rdi + 8]",
        "test rsi, rsi",
        "jz 2b",
        "3: mov qword ptr [rsi], 0x11007",
        "inc qword ptr [rdi + 0x800]",
        "mov qword ptr [rsi], 0x12007",
        "mov qword ptr [rsi], 0",
        "jmp 3b",
    ))?;
    attacker.start()?;
    attacker.succeeds()
}

/// Where the window's entry of page 4 is: found through the tables.
fn page_entry() -> u64 {
    let mut table = crate::attacker::TABLES;
    for index in [0, 1, 0] {
        table = peek(table + index * 8) & 0x000f_ffff_ffff_f000;
    }
    table + 4 * 8
}

//! Everything that can be used up, used up: frames, heap, handles, mappings, claims, vCPUs, domains, the console. Who does it meets his
//! own budget, and nobody else's, and it all goes back with him.

use plinth_rt::abi::call::{access, watch};
use plinth_rt::abi::device::kind;
use plinth_rt::abi::{Call, Claim, DomainConfig, Handle, Status, rights};
use plinth_rt::object::{Domain, bytes_of};
use plinth_rt::{Outcome, check, check_eq, hypercall};
use plinth_testkit::child::config;
use plinth_testkit::kit::{Must, event, memory, system};

use crate::attacker::{Attacker, FREE, Plan, ordered, poke, tell};

cases!("budgets":
    frames,
    frames_without_memory,
    heap,
    handles,
    mappings,
    nested_tables,
    claims,
    sizes_without_measure,
    vcpus,
    domains,
    domains_of_domains,
    configurations_without_measure,
    console_that_nobody_reads,
    console_that_somebody_reads,
    input_that_nobody_reads,
    signals,
);

/// The call again and again until it answers so; how often it succeeded.
fn until_refused<const N: usize>(
    most: u64,
    expected: Status,
    mut call: impl FnMut(u64) -> (Call, [u64; N]),
) -> Result<u64, plinth_rt::Why> {
    for round in 0..=most {
        let (number, arguments) = call(round);
        match hypercall::call(number, arguments) {
            (Status::OK, _) => {}
            (status, _) => {
                check!(status == expected, "round {round}: {status:?}");
                return Ok(round);
            }
        }
    }
    Err(format_args!("{most} times, and no end").into())
}

/// Lets an attacker do its worst with a handle to its own domain that has all rights.
fn greedy(plan: Plan) -> Outcome {
    let attacker = Attacker::new(&plan)?;
    attacker.succeeds_with(attacker.domain.any(), rights::DOMAIN)
}

fn own() -> Domain {
    Domain(Handle(ordered(0) as u32))
}

fn frames() -> Outcome {
    greedy(Plan {
        handles: 512,
        heap: 1 << 20,
        ..Plan::new(|| {
            let free = |info: &plinth_rt::abi::DomainInfo| info.max_frames - info.frames;
            let before = own().info().must("info")?;
            let mut last = 0;
            let count = until_refused(256, Status::OVER_BUDGET, |_| {
                (Call::MEMORY_CREATE, [ordered(0), 4096])
            })?;
            let after = own().info().must("info")?;
            check!(after.frames <= after.max_frames, "above its budget");
            check!(count <= free(&before), "{count} of {}", free(&before));
            check!(free(&after) < 4, "{} frames are left", free(&after));
            last += count;
            tell(1, last);
            Ok(())
        })
    })
}

/// All that is left at once, and one page more.
fn frames_without_memory() -> Outcome {
    greedy(Plan::new(|| {
        let info = own().info().must("info")?;
        let left = (info.max_frames - info.frames) * 4096;
        for bytes in [left + 4096, left * 2, 1 << 30, 1 << 40] {
            let (status, _) = hypercall::call(Call::MEMORY_CREATE, [ordered(0), bytes]);
            check!(
                status == Status::OVER_BUDGET,
                "{bytes:#x} bytes: {status:?}"
            );
        }
        check_eq!(own().info().must("info")?.frames, info.frames, "frames");
        Ok(())
    }))
}

fn heap() -> Outcome {
    greedy(Plan {
        handles: 4096,
        heap: 128 << 10,
        frames: 512,
        ..Plan::new(|| {
            let count = until_refused(4096, Status::OVER_BUDGET, |_| {
                (Call::EVENT_CREATE, [ordered(0)])
            })?;
            let info = own().info().must("info")?;
            check!(info.heap <= info.max_heap, "above its budget");
            check!(info.handles < info.max_handles, "the handles ended first");
            check!(count > 100, "{count} events");
            Ok(())
        })
    })
}

fn handles() -> Outcome {
    greedy(Plan {
        handles: 100,
        ..Plan::new(|| {
            let (own_handle, right) = (ordered(0), u64::from(rights::READ));
            let count = until_refused(200, Status::OVER_BUDGET, |_| {
                (Call::HANDLE_DUPLICATE, [own_handle, right])
            })?;
            check_eq!(count, 99, "handles");
            // Calls that make a handle fail, and make nothing else.
            let before = own().info().must("info")?;
            for call in [Call::EVENT_CREATE, Call::MEMORY_CREATE] {
                let (status, _) = hypercall::call(call, [own_handle, 4096]);
                check!(status == Status::OVER_BUDGET, "{}: {status:?}", call.name());
            }
            let after = own().info().must("info")?;
            check!(
                (before.frames, before.heap) == (after.frames, after.heap),
                "a call that failed was charged"
            );
            Ok(())
        })
    })
}

fn place(round: u64) -> u64 {
    (16 << 20) + round * 8192
}

/// The same page at thousands of places.
fn mappings() -> Outcome {
    let attacker = Attacker::new(&Plan {
        heap: 4 << 20,
        ..Plan::new(|| {
            let count = until_refused(4200, Status::OVER_BUDGET, |round| {
                let arguments = [ordered(1), 0, ordered(0), place(round), 4096, access::READ];
                (Call::MEMORY_MAP, arguments)
            })?;
            check!(count <= 4096, "{count} mappings");
            tell(1, count);
            Ok(())
        })
    })?;
    let page = memory(4096)?;
    let own = attacker.give(attacker.domain.any(), rights::DOMAIN)?;
    let memory = attacker.give(page.any(), rights::READ)?;
    attacker.order(0, own)?;
    attacker.order(1, memory)?;
    attacker.start()?;
    attacker.succeeds()?;
    // The budget of frames, which pays for nested tables, must not have been what ended it.
    check!(attacker.told(1)? > 1000, "{} mappings", attacker.told(1)?);
    Ok(())
}

/// A page in every GiB: the tables for it are more than the page.
fn nested_tables() -> Outcome {
    let attacker = Attacker::new(&Plan {
        frames: 40,
        heap: 1 << 20,
        ..Plan::new(|| {
            until_refused(200, Status::OVER_BUDGET, |round| {
                let place = (1 + round) << 30;
                (
                    Call::MEMORY_MAP,
                    [ordered(1), 0, ordered(0), place, 4096, access::READ],
                )
            })?;
            let info = own().info().must("info")?;
            check!(info.frames <= info.max_frames, "above its budget");
            Ok(())
        })
    })?;
    let page = memory(4096)?;
    let own = attacker.give(attacker.domain.any(), rights::DOMAIN)?;
    let memory = attacker.give(page.any(), rights::READ)?;
    attacker.order(0, own)?;
    attacker.order(1, memory)?;
    attacker.start()?;
    attacker.succeeds()
}

fn claims() -> Outcome {
    let attacker = Attacker::new(&Plan {
        heap: 1 << 20,
        ..Plan::new(|| {
            let count = until_refused(300, Status::OVER_BUDGET, |round| {
                let claim = Claim {
                    kind: kind::PORTS,
                    memory: ordered(1) as u32,
                    event: ordered(2) as u32,
                    reserved: 0,
                    first: 0x1000 + round * 2,
                    length: 1,
                    tag: round,
                };
                for (index, chunk) in (0u64..).zip(bytes_of(&claim).chunks(8)) {
                    let word = chunk
                        .iter()
                        .rev()
                        .fold(0, |sum, byte| sum << 8 | u64::from(*byte));
                    poke(FREE + index * 8, word);
                }
                (Call::DEVICE_CLAIM, [ordered(0), FREE])
            })?;
            check_eq!(count, 256, "claims");
            Ok(())
        })
    })?;
    let (slots, event) = (memory(4096)?, event()?);
    let own = attacker.give(attacker.domain.any(), rights::DOMAIN)?;
    let memory = attacker.give(slots.any(), rights::READ | rights::WRITE)?;
    let event = attacker.give(event.any(), rights::SIGNAL)?;
    for (index, handle) in [(0, own), (1, memory), (2, event)] {
        attacker.order(index, handle)?;
    }
    attacker.start()?;
    attacker.succeeds()
}

fn sizes_without_measure() -> Outcome {
    greedy(Plan::new(|| {
        for bytes in [
            0,
            1,
            4095,
            4097,
            (1 << 40) + 4096,
            1 << 63,
            u64::MAX - 4095,
            u64::MAX,
        ] {
            let (status, _) = hypercall::call(Call::MEMORY_CREATE, [ordered(0), bytes]);
            check!(
                status == Status::BAD_ARGUMENT,
                "{bytes:#x} bytes: {status:?}"
            );
        }
        for (gpa, length) in [
            (0, 0),
            (0, u64::MAX - 4095),
            (u64::MAX - 4095, 8192),
            (1 << 48, 4096),
            (1, 4096),
        ] {
            let (status, _) = hypercall::call(Call::MEMORY_UNMAP, [ordered(0), gpa, length]);
            check!(
                status == Status::BAD_ARGUMENT,
                "{gpa:#x}, {length:#x}: {status:?}"
            );
        }
        Ok(())
    }))
}

/// One more vCPU than it was made for, which a domain that runs gets never.
fn vcpus() -> Outcome {
    greedy(Plan::new(|| {
        let (status, _) = hypercall::call(Call::VCPU_CREATE, [ordered(0)]);
        check!(status == Status::WRONG_STATE, "{status:?}");
        Ok(())
    }))?;
    let attacker = Attacker::new(&Plan::new(|| Ok(())).with_vcpus(3))?;
    let mut more = [const { None }; 2];
    for place in &mut more {
        let vcpu = attacker.domain.create_vcpu().must("create")?;
        *place = Some(plinth_testkit::kit::Owned(vcpu));
    }
    for _ in 0..3 {
        plinth_testkit::kit::refused(
            attacker.domain.create_vcpu(),
            Status::OVER_BUDGET,
            "a fourth",
        )?;
    }
    Ok(())
}

/// The configuration of a small domain, at [`FREE`].
fn small_domain(change: impl FnOnce(&mut DomainConfig)) {
    let mut small = DomainConfig {
        frames: 16,
        heap: 32 << 10,
        ..config(b"small")
    };
    change(&mut small);
    for (index, chunk) in (0u64..).zip(bytes_of(&small).chunks(8)) {
        let word = chunk
            .iter()
            .rev()
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        poke(FREE + index * 8, word);
    }
}

/// Domains until its own budget is given away; each goes back whole.
fn domains() -> Outcome {
    let attacker = Attacker::new(&Plan {
        frames: 200,
        heap: 512 << 10,
        ..Plan::new(|| {
            small_domain(|_| {});
            for _ in 0..3 {
                let mut made = [0u64; 32];
                let mut count = 0;
                loop {
                    match hypercall::call(Call::DOMAIN_CREATE, [ordered(0), FREE]) {
                        (Status::OK, handle) => made[count] = handle,
                        (status, _) => {
                            check!(status == Status::OVER_BUDGET, "{status:?}");
                            break;
                        }
                    }
                    count += 1;
                }
                check!((4..=12).contains(&count), "{count} domains");
                for handle in made.into_iter().take(count) {
                    let domain = Domain(Handle(handle as u32));
                    domain.destroy().must("destroy")?;
                    domain.any().close().must("close")?;
                }
            }
            Ok(())
        })
    })?;
    attacker.succeeds_with(system().any(), rights::CREATE)
}

/// An attacker that ends and leaves domains of its own: whoever may open them finds them, and destroys them.
fn domains_of_domains() -> Outcome {
    let attacker = Attacker::new(&Plan {
        frames: 200,
        heap: 512 << 10,
        ..Plan::new(|| {
            small_domain(|_| {});
            for index in 0..4 {
                let (status, handle) = hypercall::call(Call::DOMAIN_CREATE, [ordered(0), FREE]);
                check!(status == Status::OK, "create: {status:?}");
                let info = Domain(Handle(handle as u32)).info().must("info")?;
                tell(index, info.number.into());
            }
            Ok(())
        })
    })?;
    attacker.succeeds_with(system().any(), rights::CREATE)?;
    let numbers = [
        attacker.told(0)?,
        attacker.told(1)?,
        attacker.told(2)?,
        attacker.told(3)?,
    ];
    attacker.domain.destroy().must("destroy")?;
    for number in numbers {
        let domain = system().open_domain(number as u32).must("open")?;
        domain.destroy().must("destroy")?;
        domain.any().close().must("close")?;
    }
    Ok(())
}

/// A change of a good configuration, and what it makes of the call.
type Refusal = (fn(&mut DomainConfig), Status);

fn configurations_without_measure() -> Outcome {
    let attacker = Attacker::new(&Plan {
        frames: 200,
        heap: 512 << 10,
        ..Plan::new(|| {
            let refusals: [Refusal; 12] = [
                (|small| small.frames = u64::MAX, Status::OVER_BUDGET),
                (|small| small.frames = 1 << 63, Status::OVER_BUDGET),
                (|small| small.heap = u64::MAX, Status::OVER_BUDGET),
                (|small| small.frames = 201, Status::OVER_BUDGET),
                (|small| small.frames = 0, Status::BAD_ARGUMENT),
                (|small| small.heap = 0, Status::BAD_ARGUMENT),
                (|small| small.handles = u32::MAX, Status::BAD_ARGUMENT),
                (|small| small.vcpus = u32::MAX, Status::BAD_ARGUMENT),
                (|small| small.vcpus = 0, Status::BAD_ARGUMENT),
                (|small| small.platform = u32::MAX, Status::BAD_ARGUMENT),
                (|small| small.reserved = 1, Status::BAD_ARGUMENT),
                (|small| small.name = [0xff; 32], Status::BAD_ARGUMENT),
            ];
            for (index, (change, expected)) in refusals.into_iter().enumerate() {
                small_domain(change);
                let (status, _) = hypercall::call(Call::DOMAIN_CREATE, [ordered(0), FREE]);
                check!(
                    status == expected,
                    "{index}: {status:?}, expected {expected:?}"
                );
            }
            Ok(())
        })
    })?;
    attacker.succeeds_with(system().any(), rights::CREATE)
}

/// Without anybody who watches it is lost; it costs the kernel no more than what it keeps.
fn console_that_nobody_reads() -> Outcome {
    greedy(Plan::new(|| {
        let before = own().info().must("info")?;
        for _ in 0..400 {
            let (status, taken) = hypercall::call(Call::CONSOLE_WRITE, [FREE, 4096]);
            check!(status == Status::OK, "{status:?}");
            check!(taken <= 256, "{taken} bytes in one call");
        }
        let after = own().info().must("info")?;
        check_eq!(after.heap, before.heap, "heap");
        check_eq!(after.frames, before.frames, "frames");
        check_eq!(
            after.console_end - before.console_end,
            400 * 256,
            "its console"
        );
        Ok(())
    }))
}

/// A watcher who is behind holds the writer, and not the other way round.
fn console_that_somebody_reads() -> Outcome {
    let attacker = Attacker::new(&Plan::new(|| {
        let mut held = 0;
        for _ in 0..200 {
            match hypercall::call(Call::CONSOLE_WRITE, [FREE, 256]) {
                (Status::OK, _) => {}
                (Status::AGAIN, _) => held += 1,
                (status, _) => return Err(format_args!("{status:?}").into()),
            }
        }
        check!(held >= 150, "held {held} times");
        Ok(())
    }))?;
    let event = event()?;
    attacker
        .domain
        .watch(*event, watch::CONSOLE)
        .must("watch")?;
    attacker.start()?;
    attacker.succeeds()
}

fn input_that_nobody_reads() -> Outcome {
    let attacker = Attacker::new(&Plan::new(|| Ok(())))?;
    let mut taken = 0;
    for _ in 0..40 {
        taken += attacker.domain.type_in(&[0x61; 64]).must("type")?;
    }
    check_eq!(taken, 256, "bytes taken");
    Ok(())
}

/// Thousands of signals before it is looked are one.
fn signals() -> Outcome {
    let attacker = Attacker::new(&Plan::new(|| {
        let event = ordered(0);
        let (status, _) = hypercall::call(Call::EVENT_BIND, [event, 0x77]);
        check!(status == Status::OK, "bind: {status:?}");
        for _ in 0..3000 {
            let (status, _) = hypercall::call(Call::EVENT_SIGNAL, [event]);
            check!(status == Status::OK, "signal: {status:?}");
        }
        let (status, key) = hypercall::call(Call::WAIT, [0]);
        check!((status, key) == (Status::OK, 0x77), "{status:?}, {key:#x}");
        let (status, _) = hypercall::call(Call::WAIT, [0]);
        check!(status == Status::TIMED_OUT, "another: {status:?}");
        Ok(())
    }))?;
    attacker.succeeds_with(event()?.any(), rights::SIGNAL | rights::BIND)
}

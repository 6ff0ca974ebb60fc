//! Races: two vCPUs of one child, or two children, make calls on the same objects at the same time, as often as they can.
//!
//! Which of them comes first is chance. That each answer is one of those that are possible, and that nothing is left in the end,
//! is not.

use plinth_rt::abi::call::{access, watch};
use plinth_rt::abi::device::kind;
use plinth_rt::abi::{
    Call, Claim, DomainConfig, DomainState, Reason, Schedule, Status, VcpuState, rights,
};
use plinth_rt::object::bytes_of;
use plinth_rt::{Outcome, Why, check, check_eq, hypercall, object, snippet};

use crate::child::{After, Child, DATA, ENTRY, Plan, STACK, Step, agents, count, give, spin};
use crate::devices::claim_with;
use crate::kit::{
    MS, Must, Owned, Random, event, memory, patiently, pending, refused, sleep, system, until,
};

tests!("race":
    close_while_mapping,
    close_while_duplicating,
    close_while_granting,
    close_while_signalling,
    close_while_populating,
    two_populate,
    two_map_one_place,
    unmap_while_it_is_read,
    protect_while_it_is_written,
    dirty_while_it_is_written,
    kill_while_it_is_controlled,
    kill_while_it_is_granted_to,
    kill_while_it_is_mapped_into,
    kill_while_its_state_is_read,
    kill_while_it_is_typed_to,
    two_kill_themselves,
    end_and_kill,
    end_while_it_is_watched,
    two_destroy,
    destroy_while_it_is_opened,
    create_side_by_side,
    start_while_state_is_set,
    bind_while_signalling,
    vector_while_it_dies,
    claim_while_it_is_accessed,
    complete_while_releasing,
    two_write_the_console,
    move_between_cpus,
    budgets_shared,
);

/// How often each vCPU of a race does what it does.
const ROUNDS: u64 = 400;

/// Lets two vCPUs of a child race: each has a script.
struct Race {
    child: Child,
}

impl Race {
    fn new() -> Result<Self, Why> {
        Self::with(&agents(2))
    }

    fn with(plan: &Plan) -> Result<Self, Why> {
        let child = Child::new(plan)?;
        let cpus = system().info().must("system info")?.cpus;
        for vcpu in 0..2 {
            let cpu = vcpu as u32 % cpus;
            child.pin(vcpu, cpu)?;
        }
        Ok(Self { child })
    }

    /// A handle of the child's to its own domain.
    fn own(&self, rights: u32) -> Result<u64, Why> {
        give(&self.child, self.child.domain.any(), rights)
    }

    /// Runs both scripts, the first [`ROUNDS`] times and the second so many times, to their ends.
    fn run(&self, first: &[Step], second: &[Step], times: u64) -> Outcome {
        self.child.load(0, first, ROUNDS, After::Wait)?;
        self.child.load(1, second, ROUNDS * times, After::Wait)?;
        self.child.start()?;
        self.child.until_done(0)?;
        self.child.until_done(1)
    }

    /// The statuses that each step of a vCPU may have had.
    fn only(&self, vcpu: usize, allowed: &[&[Status]]) -> Outcome {
        for (step, allowed) in allowed.iter().enumerate() {
            self.child.only(vcpu, step, allowed)?;
        }
        Ok(())
    }
}

const OK: Status = Status::OK;
const HANDLE: Status = Status::BAD_HANDLE;
const STATE: Status = Status::WRONG_STATE;
const NONE: Status = Status::NOT_FOUND;
const THERE: Status = Status::EXISTS;
const AGAIN: Status = Status::AGAIN;
const OVER: Status = Status::OVER_BUDGET;

/// Where races map memory.
const PLACE: u64 = 0x10_0000;

/// Closes what the other vCPU has put into the cell.
fn close(cell: u64) -> Step {
    Step::new(Call::HANDLE_CLOSE, [0]).from(cell)
}

fn close_while_mapping() -> Outcome {
    let race = Race::new()?;
    let memory = memory(4096)?;
    let handle = give(&race.child, memory.any(), rights::MEMORY_OBJECT)?;
    let its = race.own(rights::MEMORY)?;
    race.run(
        &[
            Step::new(Call::HANDLE_DUPLICATE, [handle, rights::READ.into()]).to(0),
            Step::new(Call::MEMORY_MAP, [0, 0, its, PLACE, 4096, access::READ]).from(0),
            Step::new(Call::MEMORY_UNMAP, [its, PLACE, 4096]),
            close(0),
        ],
        &[close(0)],
        4,
    )?;
    race.only(0, &[&[OK], &[OK, HANDLE], &[OK, NONE], &[OK, HANDLE]])?;
    race.only(1, &[&[OK, HANDLE]])
}

fn close_while_duplicating() -> Outcome {
    let race = Race::new()?;
    let event = event()?;
    let handle = give(&race.child, event.any(), rights::SIGNAL)?;
    let signal = u64::from(rights::SIGNAL);
    race.run(
        &[
            Step::new(Call::HANDLE_DUPLICATE, [handle, signal]).to(0),
            Step::new(Call::HANDLE_DUPLICATE, [0, signal]).from(0).to(1),
            close(1),
            close(0),
        ],
        &[close(0), close(1)],
        2,
    )?;
    race.only(0, &[&[OK], &[OK, HANDLE], &[OK, HANDLE], &[OK, HANDLE]])?;
    race.only(1, &[&[OK, HANDLE], &[OK, HANDLE]])
}

fn close_while_granting() -> Outcome {
    let race = Race::new()?;
    let target = Child::new(&Plan {
        handles: 100,
        ..Plan::new(spin())
    })?;
    let event = event()?;
    let handle = give(&race.child, event.any(), rights::SIGNAL | rights::GRANT)?;
    let domain = give(&race.child, target.domain.any(), rights::CHARGE)?;
    let (both, signal) = (
        u64::from(rights::SIGNAL | rights::GRANT),
        u64::from(rights::SIGNAL),
    );
    race.run(
        &[
            Step::new(Call::HANDLE_DUPLICATE, [handle, both]).to(0),
            Step::new(Call::HANDLE_GRANT, [0, domain, signal]).from(0),
            close(0),
        ],
        &[close(0)],
        3,
    )?;
    race.only(0, &[&[OK], &[OK, HANDLE, OVER], &[OK, HANDLE]])?;
    race.only(1, &[&[OK, HANDLE]])?;
    let granted = race.child.tally(0, 1)?[OK.0 as usize];
    check_eq!(
        u64::from(target.domain.info().must("info")?.handles),
        granted,
        "handles granted"
    );
    Ok(())
}

fn close_while_signalling() -> Outcome {
    let race = Race::new()?;
    let its = race.own(rights::CHARGE)?;
    race.run(
        &[
            Step::new(Call::EVENT_CREATE, [its]).to(0),
            Step::new(Call::EVENT_BIND, [0, 5]).from(0),
            Step::new(Call::EVENT_SIGNAL, [0]).from(0),
            Step::new(Call::WAIT, [0]),
            close(0),
        ],
        &[Step::new(Call::EVENT_SIGNAL, [0]).from(0), close(0)],
        2,
    )?;
    race.only(
        0,
        &[
            &[OK],
            &[OK, HANDLE],
            &[OK, HANDLE],
            &[OK, Status::TIMED_OUT],
            &[OK, HANDLE],
        ],
    )?;
    race.only(1, &[&[OK, HANDLE], &[OK, HANDLE]])
}

fn close_while_populating() -> Outcome {
    let race = Race::new()?;
    let its = race.own(rights::CHARGE)?;
    race.run(
        &[
            Step::new(Call::MEMORY_CREATE, [its, 4 * 4096]).to(0),
            Step::new(Call::MEMORY_POPULATE, [0]).from(0),
            close(0),
        ],
        &[close(0)],
        3,
    )?;
    // Frames may still be on their way back when the next are asked for.
    race.only(0, &[&[OK, OVER], &[OK, HANDLE, AGAIN], &[OK, HANDLE]])?;
    race.only(1, &[&[OK, HANDLE]])
}

fn two_populate() -> Outcome {
    let race = Race::new()?;
    let its = race.own(rights::CHARGE)?;
    let populate = Step::new(Call::MEMORY_POPULATE, [0]).from(0);
    race.run(
        &[
            Step::new(Call::MEMORY_CREATE, [its, 8 * 4096]).to(0),
            populate,
            close(0),
        ],
        &[populate],
        3,
    )?;
    race.only(0, &[&[OK, OVER], &[OK, HANDLE, AGAIN], &[OK, HANDLE]])?;
    race.only(1, &[&[OK, HANDLE, AGAIN]])
}

fn two_map_one_place() -> Outcome {
    let race = Race::new()?;
    let memory = memory(4096)?;
    let handle = give(&race.child, memory.any(), rights::READ)?;
    let its = race.own(rights::MEMORY)?;
    let steps = [
        Step::new(
            Call::MEMORY_MAP,
            [handle, 0, its, PLACE, 4096, access::READ],
        ),
        Step::new(Call::MEMORY_UNMAP, [its, PLACE, 4096]),
    ];
    race.run(&steps, &steps, 1)?;
    let mut mapped = 0;
    let mut unmapped = 0;
    for vcpu in 0..2 {
        race.only(vcpu, &[&[OK, THERE, AGAIN], &[OK, NONE, AGAIN]])?;
        mapped += race.child.tally(vcpu, 0)?[OK.0 as usize];
        unmapped += race.child.tally(vcpu, 1)?[OK.0 as usize];
    }
    check_eq!(mapped, unmapped, "as often mapped as unmapped");
    Ok(())
}

/// A child that reads and writes a page without end while the suite changes what it may do there.
fn toucher() -> Result<(Child, Owned<object::Memory>), Why> {
    let child = Child::new(&Plan::new(snippet!(
        "2: inc qword ptr [0x100000]",
        "inc qword ptr [0x2000]",
        "jmp 2b"
    )))?;
    let memory = memory(4096)?;
    child
        .domain
        .map(PLACE, *memory, 0, 4096, access::READ | access::WRITE)
        .must("map")?;
    child.start()?;
    child.until_change(DATA)?;
    Ok((child, memory))
}

fn unmap_while_it_is_read() -> Outcome {
    for _ in 0..10 {
        let (child, _memory) = toucher()?;
        child.domain.unmap(PLACE, 4096).must("unmap")?;
        let info = child.ends(Reason::NESTED_FAULT)?;
        check_eq!(info.info[0], PLACE, "address");
    }
    Ok(())
}

fn protect_while_it_is_written() -> Outcome {
    for _ in 0..10 {
        let (child, memory) = toucher()?;
        child
            .domain
            .protect(PLACE, 4096, access::READ)
            .must("protect")?;
        let window = crate::window::Mapped::with(0, *memory, 4096, access::READ)?;
        // No write gets through once the call has returned.
        let counter = window.word(0);
        child.ends(Reason::NESTED_FAULT)?;
        check_eq!(window.word(0), counter, "counter");
    }
    Ok(())
}

/// While a child writes without end, each look at the page finds it written.
fn dirty_while_it_is_written() -> Outcome {
    let (child, _memory) = toucher()?;
    for _ in 0..20 {
        child.until_change(DATA)?;
        child.until_change(DATA)?;
        let mut bitmap = [0];
        child.domain.dirty(PLACE, 4096, &mut bitmap).must("dirty")?;
        check_eq!(bitmap[0], 1, "bitmap");
    }
    Ok(())
}

/// Lets one child make these calls on another without end, kills that other meanwhile, and checks what the calls answered.
fn kill_during(
    rights: u32,
    steps: impl Fn(u64) -> [Step; 2],
    allowed: [&[Status]; 2],
    steps_prepared: impl Fn(&Child) -> Outcome,
) -> Outcome {
    let mut random = Random::new(0xdead_beef);
    for _ in 0..20 {
        let target = Child::running(count())?;
        let caller = Child::new(&agents(1))?;
        steps_prepared(&caller)?;
        let handle = give(&caller, target.domain.any(), rights)?;
        caller.load(0, &steps(handle), u64::MAX, After::Wait)?;
        caller.start()?;
        let deadline = hypercall::clock() + 20_000 + random.number() % 100_000;
        while hypercall::clock() < deadline {}
        target.domain.kill().must("kill")?;
        target.ends(Reason::KILLED)?;
        target.destroy()?;
        caller.domain.kill().must("kill")?;
        for (step, allowed) in allowed.iter().enumerate() {
            caller.only(0, step, allowed)?;
        }
    }
    Ok(())
}

fn kill_while_it_is_controlled() -> Outcome {
    kill_during(
        rights::CONTROL,
        |target| {
            [
                Step::new(Call::DOMAIN_PAUSE, [target]),
                Step::new(Call::DOMAIN_RESUME, [target]),
            ]
        },
        [&[OK, STATE], &[OK, STATE]],
        |_| Ok(()),
    )
}

fn kill_while_it_is_granted_to() -> Outcome {
    kill_during(
        rights::CHARGE | rights::GRANT,
        |target| {
            [
                Step::new(Call::HANDLE_GRANT, [target, target, 0]),
                Step::new(Call::HANDLE_DUPLICATE, [target, rights::CHARGE.into()]),
            ]
        },
        [&[OK, STATE, OVER], &[OK, OVER]],
        |_| Ok(()),
    )
}

fn kill_while_it_is_mapped_into() -> Outcome {
    // The page that it runs on is mapped a second time.
    kill_during(
        rights::MEMORY,
        |target| {
            [
                Step::new(Call::MEMORY_PROTECT, [target, STACK, 4096, access::READ]),
                Step::new(Call::DOMAIN_READ, [target, DATA, 8, DATA]),
            ]
        },
        [&[OK, STATE], &[OK, STATE]],
        |_| Ok(()),
    )
}

fn kill_while_its_state_is_read() -> Outcome {
    kill_during(
        rights::CONTROL,
        |target| [Step::new(Call::VCPU_OPEN, [target, 0]).to(0), close(0)],
        [&[OK, STATE], &[OK, HANDLE]],
        |_| Ok(()),
    )
}

fn kill_while_it_is_typed_to() -> Outcome {
    kill_during(
        rights::WRITE | rights::READ,
        |target| {
            [
                Step::new(Call::DOMAIN_TYPE, [target, DATA, 3]),
                Step::new(Call::DOMAIN_CONSOLE, [target, DATA, 64, 0]),
            ]
        },
        [&[OK, STATE], &[OK]],
        |caller| caller.write(DATA, b"abc"),
    )
}

/// Both vCPUs kill their own domain; neither goes on.
fn two_kill_themselves() -> Outcome {
    for _ in 0..20 {
        let race = Race::new()?;
        let its = race.own(rights::CONTROL)?;
        let steps = [
            Step::new(Call::VERSION, []),
            Step::new(Call::DOMAIN_KILL, [its]),
        ];
        for vcpu in 0..2 {
            race.child.load(vcpu, &steps, u64::MAX, After::Wait)?;
        }
        race.child.start()?;
        race.child.ends(Reason::KILLED)?;
        for vcpu in 0..2 {
            race.child.state(vcpu)?;
            check!(race.child.tally(vcpu, 0)?[0] <= 1, "it went on");
            race.only(vcpu, &[&[OK], &[]])?;
        }
    }
    Ok(())
}

/// A domain ends itself while it is killed: one reason, whichever.
fn end_and_kill() -> Outcome {
    for round in 0..40 {
        let child = Child::new(&Plan::new(snippet!(
            "2: dec rbx",
            "jnz 2b",
            "mov eax, 4",
            "mov edi, 6",
            "call r15"
        )))?;
        child.set(0, |state| state.rbx = 1 + round * 100)?;
        child.start()?;
        let result = child.domain.kill();
        until("its end", || child.is(DomainState::ENDED))?;
        let info = child.domain.info().must("info")?;
        match result {
            Ok(()) => check!(
                info.reason == Reason::KILLED || info.reason == Reason::STATUS,
                "{}",
                info.reason.text()
            ),
            Err(STATE) => {
                check!(info.reason == Reason::STATUS, "{}", info.reason.text());
                check_eq!(info.info[0], 6, "status");
            }
            Err(status) => return Err(format_args!("kill: {status:?}").into()),
        }
    }
    Ok(())
}

/// However late the watch begins, the end is signalled.
fn end_while_it_is_watched() -> Outcome {
    let event = event()?;
    event.bind(0x77).must("bind")?;
    for round in 0..40 {
        let child = Child::new(&Plan::new(snippet!(
            "2: dec rbx",
            "jnz 2b",
            "mov eax, 4",
            "call r15"
        )))?;
        child.set(0, |state| state.rbx = 1 + round * 100)?;
        child.start()?;
        child.domain.watch(*event, watch::ENDED).must("watch")?;
        let deadline = hypercall::clock() + 5000 * MS;
        check!(
            object::wait(deadline).must("wait")? == Some(0x77),
            "round {round}: no signal"
        );
        check!(child.is(DomainState::ENDED)?, "signalled before its end");
        // A second signal of this child must not be taken for the next one's.
        drop(child);
        pending()?;
    }
    Ok(())
}

fn two_destroy() -> Outcome {
    for _ in 0..10 {
        let target = Child::new(&Plan {
            handles: 200,
            heap: 64 << 10,
            ..Plan::new(spin())
        })?;
        let event = event()?;
        for _ in 0..200 {
            give(&target, event.any(), rights::SIGNAL)?;
        }
        let race = Race::new()?;
        let handle = give(&race.child, target.domain.any(), rights::CONTROL)?;
        let steps = [Step::new(Call::DOMAIN_DESTROY, [handle])];
        race.run(&steps, &steps, 1)?;
        for vcpu in 0..2 {
            race.only(vcpu, &[&[OK, AGAIN, STATE]])?;
        }
        let done = race.child.tally(0, 0)?[0] + race.child.tally(1, 0)?[0];
        check_eq!(done, 1, "vCPUs that were told that it is done");
        check!(target.is(DomainState::DESTROYED)?, "not DESTROYED");
    }
    Ok(())
}

/// A child opens domains by their numbers while the suite makes and destroys them.
fn destroy_while_it_is_opened() -> Outcome {
    let caller = Child::new(&agents(1))?;
    let machine = give(&caller, system().any(), rights::OPEN | rights::READ)?;
    let number = caller.domain.info().must("info")?.number;
    caller.load(
        0,
        &[
            // The domain that comes after the caller, if there is one.
            Step::new(Call::DOMAIN_NEXT, [machine, number.into()]),
            Step::new(Call::DOMAIN_OPEN, [machine, u64::from(number) + 1]).to(0),
            Step::new(Call::DOMAIN_INFO, [0, DATA]).from(0),
            close(0),
        ],
        u64::MAX,
        After::Wait,
    )?;
    caller.start()?;
    for _ in 0..30 {
        let target = Child::running(spin())?;
        target.domain.kill().must("kill")?;
        target.destroy()?;
    }
    caller.domain.kill().must("kill")?;
    for (step, allowed) in [
        [OK, NONE].as_slice(),
        &[OK, NONE],
        &[OK, HANDLE],
        &[OK, HANDLE],
    ]
    .into_iter()
    .enumerate()
    {
        caller.only(0, step, allowed)?;
    }
    Ok(())
}

/// Both vCPUs make and destroy domains out of one budget, which has room for one at a time.
fn create_side_by_side() -> Outcome {
    let race = Race::with(&Plan {
        frames: 120,
        heap: 200 << 10,
        ..agents(2)
    })?;
    race.child.write(
        DATA,
        bytes_of(&DomainConfig {
            frames: 40,
            heap: 16 << 10,
            handles: 8,
            vcpus: 1,
            ..crate::child::config(b"small")
        }),
    )?;
    let machine = give(&race.child, system().any(), rights::CREATE)?;
    let steps = |cell| {
        [
            Step::new(Call::DOMAIN_CREATE, [machine, DATA]).to(cell),
            Step::new(Call::VCPU_CREATE, [0]).from(cell).to(cell + 2),
            Step::new(Call::HANDLE_CLOSE, [0]).from(cell + 2),
            Step::new(Call::DOMAIN_DESTROY, [0]).from(cell),
            Step::new(Call::DOMAIN_DESTROY, [0]).from(cell),
            Step::new(Call::DOMAIN_DESTROY, [0]).from(cell),
            Step::new(Call::HANDLE_CLOSE, [0]).from(cell),
        ]
    };
    race.child.load(0, &steps(0), 50, After::Wait)?;
    race.child.load(1, &steps(1), 50, After::Wait)?;
    race.child.start()?;
    race.child.until_done(0)?;
    race.child.until_done(1)?;
    for vcpu in 0..2 {
        // Where a domain could not be made the other steps find what the cell held before: a closed handle.
        race.only(
            vcpu,
            &[
                &[OK, OVER],
                &[OK, OVER, HANDLE],
                &[OK, HANDLE],
                &[OK, AGAIN, HANDLE],
                &[OK, AGAIN, STATE, HANDLE],
                &[OK, AGAIN, STATE, HANDLE],
                &[OK, HANDLE],
            ],
        )?;
        check!(race.child.tally(vcpu, 0)?[0] > 0, "vCPU {vcpu} made none");
    }
    Ok(())
}

fn start_while_state_is_set() -> Outcome {
    for _ in 0..20 {
        let target = Child::new(&Plan::new(count()))?;
        let caller = Child::new(&agents(1))?;
        let vcpu = give(
            &caller,
            target.vcpu(0).any(),
            rights::CONTROL | rights::READ,
        )?;
        let mut state = VcpuState::long_mode(ENTRY, STACK, 0);
        state.r15 = 0x1000;
        let length = size_of::<VcpuState>() as u64;
        caller.write(DATA, bytes_of(&state))?;
        caller.load(
            0,
            &[
                Step::new(Call::VCPU_SET_STATE, [vcpu, 0, DATA, length]),
                Step::new(Call::VCPU_GET_STATE, [vcpu, 0, DATA, length]),
            ],
            u64::MAX,
            After::Wait,
        )?;
        caller.start()?;
        target.start()?;
        target.until_change(DATA)?;
        refused(
            patiently(|| target.vcpu(0).state()),
            Status::WRONG_STATE,
            "state of a running domain",
        )?;
        caller.domain.kill().must("kill")?;
        for step in 0..2 {
            caller.only(0, step, &[OK, STATE, AGAIN])?;
        }
    }
    Ok(())
}

fn bind_while_signalling() -> Outcome {
    let race = Race::new()?;
    let event = event()?;
    let handle = give(&race.child, event.any(), rights::EVENT)?;
    race.run(
        &[
            Step::new(Call::EVENT_BIND, [handle, 9]),
            Step::new(Call::WAIT, [0]),
            Step::new(Call::EVENT_UNBIND, [handle]),
        ],
        &[Step::new(Call::EVENT_SIGNAL, [handle])],
        3,
    )?;
    race.only(0, &[&[OK], &[OK, Status::TIMED_OUT], &[OK]])?;
    race.only(1, &[&[OK]])?;
    // It is still a good event.
    event.bind(1).must("bind")?;
    pending()?;
    event.signal().must("signal")?;
    check!(pending()? == Some(1), "no event");
    Ok(())
}

/// An event is signalled without end while the vCPU that it interrupts comes and goes.
fn vector_while_it_dies() -> Outcome {
    let event = event()?;
    let caller = Child::new(&agents(1))?;
    let handle = give(&caller, event.any(), rights::SIGNAL)?;
    caller.load(
        0,
        &[Step::new(Call::EVENT_SIGNAL, [handle])],
        u64::MAX,
        After::Wait,
    )?;
    caller.start()?;
    for _ in 0..20 {
        let target = Child::new(&Plan::new(snippet!(
            "sti",
            "2: inc qword ptr [0x2000]",
            "jmp 2b"
        )))?;
        event.bind_vector(target.vcpu(0), 32).must("bind")?;
        target.start()?;
        target.until_change(crate::child::COUNTERS)?;
        target.domain.kill().must("kill")?;
        target.ends(Reason::KILLED)?;
    }
    caller.domain.kill().must("kill")?;
    caller.only(0, 0, &[OK])
}

/// A child reads a port without end. Its claim comes and goes; whoever serves it completes what there is to complete.
fn claim_while_it_is_accessed() -> Outcome {
    let child = Child::running(snippet!(
        "mov edx, 0x100",
        "2: in al, dx",
        "inc qword ptr [0x2000]",
        "jmp 2b"
    ))?;
    let (memory, event) = (memory(4096)?, event()?);
    let claim = claim_with(*memory, *event, kind::PORTS, 0x100..0x101);
    let mut random = Random::new(0xc1a1);
    for _ in 0..50 {
        child.domain.claim(&claim).must("claim")?;
        for _ in 0..random.number() % 8 {
            match child.domain.complete(0, 0x55) {
                Ok(()) | Err(Status::WRONG_STATE) => {}
                Err(status) => return Err(format_args!("complete: {status:?}").into()),
            }
        }
        child.domain.release(kind::PORTS, 0x100).must("release")?;
        // With nobody there it goes on.
        child.until_change(DATA)?;
    }
    Ok(())
}

fn complete_while_releasing() -> Outcome {
    let target = Child::running(snippet!(
        "mov edx, 0x100",
        "2: in al, dx",
        "inc qword ptr [0x2000]",
        "jmp 2b"
    ))?;
    let race = Race::new()?;
    let (memory, event) = (memory(4096)?, event()?);
    let domain = give(&race.child, target.domain.any(), rights::DEVICE)?;
    let claim = Claim {
        kind: kind::PORTS,
        memory: give(&race.child, memory.any(), rights::READ | rights::WRITE)? as u32,
        event: give(&race.child, event.any(), rights::SIGNAL)? as u32,
        reserved: 0,
        first: 0x100,
        length: 1,
        tag: 0,
    };
    race.child.write(DATA, bytes_of(&claim))?;
    race.run(
        &[
            Step::new(Call::DEVICE_CLAIM, [domain, DATA]),
            Step::new(Call::DEVICE_COMPLETE, [domain, 0, 1]),
            Step::new(Call::DEVICE_RELEASE, [domain, kind::PORTS.into(), 0x100]),
        ],
        &[Step::new(Call::DEVICE_COMPLETE, [domain, 0, 2])],
        3,
    )?;
    race.only(0, &[&[OK], &[OK, STATE], &[OK]])?;
    race.only(1, &[&[OK, STATE]])?;
    target.until_change(DATA)
}

fn two_write_the_console() -> Outcome {
    let race = Race::new()?;
    race.child.write(DATA, b"abcdefg\nABCDEFG\n")?;
    race.child.load(
        0,
        &[Step::new(Call::CONSOLE_WRITE, [DATA, 8])],
        50,
        After::Wait,
    )?;
    race.child.load(
        1,
        &[Step::new(Call::CONSOLE_WRITE, [DATA + 8, 8])],
        50,
        After::Wait,
    )?;
    race.child.start()?;
    race.child.until_done(0)?;
    race.child.until_done(1)?;
    let mut buffer = [0; 16 + 800];
    let (header, bytes) = race.child.domain.console(&mut buffer, 0).must("console")?;
    check_eq!(header.end, 800, "end");
    // What one call wrote stays together.
    let (mut small, mut large) = (0, 0);
    for line in bytes.chunks(8) {
        match line {
            b"abcdefg\n" => small += 1,
            b"ABCDEFG\n" => large += 1,
            line => return Err(format_args!("a line of {line:x?}").into()),
        }
    }
    check!(small == 50 && large == 50, "{small} and {large} lines");
    Ok(())
}

/// A spinner is sent from CPU to CPU as fast as it goes.
fn move_between_cpus() -> Outcome {
    let child = Child::running(count())?;
    let cpus = system().info().must("system info")?.cpus;
    let mut random = Random::new(0x1234_5678);
    for _ in 0..200 {
        let cpu = match random.number() % u64::from(cpus + 1) {
            0 => Schedule::ANY_CPU,
            number => number as u32 - 1,
        };
        child
            .vcpu(0)
            .schedule(&Schedule {
                cpu,
                ..Schedule::USUAL
            })
            .must("schedule")?;
    }
    child.until_change(DATA)
}

/// Two vCPUs charge the same budget until it is used up, and give back: it is never exceeded.
fn budgets_shared() -> Outcome {
    let race = Race::with(&Plan {
        frames: 80,
        ..agents(2)
    })?;
    let its = race.own(rights::CHARGE)?;
    let steps = |cell| {
        [
            Step::new(Call::MEMORY_CREATE, [its, 10 * 4096]).to(cell),
            Step::new(Call::MEMORY_CREATE, [its, 10 * 4096]).to(cell + 1),
            close(cell),
            close(cell + 1),
        ]
    };
    race.child.load(0, &steps(0), ROUNDS, After::Wait)?;
    race.child.load(1, &steps(2), ROUNDS, After::Wait)?;
    race.child.start()?;
    let domain = *race.child.domain;
    for _ in 0..20 {
        let info = domain.info().must("info")?;
        check!(
            info.frames <= info.max_frames,
            "{} frames of {}",
            info.frames,
            info.max_frames
        );
        sleep(MS / 20);
    }
    race.child.until_done(0)?;
    race.child.until_done(1)?;
    for vcpu in 0..2 {
        race.only(
            vcpu,
            &[&[OK, OVER], &[OK, OVER], &[OK, HANDLE], &[OK, HANDLE]],
        )?;
    }
    Ok(())
}

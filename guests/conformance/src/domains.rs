//! Domains: making, starting, holding, ending, destroying them; their memory and their console from outside.

use plinth_rt::abi::call::{COPY_MAX, STREAM_MAX, access, watch};
use plinth_rt::abi::domain::{MAX_HANDLES, MAX_VCPUS};
use plinth_rt::abi::{
    Call, DomainConfig, DomainState, ObjectType, Reason, Status, StreamHeader, VcpuRun, rights,
};
use plinth_rt::{Outcome, Why, check, check_eq, hypercall};

use crate::child::{
    self, After, Child, DATA, Plan, Step, Temporary, caller, config, count, end, give, lets, spin,
};
use crate::kit::{
    MS, Must, Owned, PAGE, answers, event, names, own, pending, raw, refused, refuses, sleep,
    system, until,
};

tests!("domain":
    create,
    create_takes_from_the_callers_budget,
    create_least_and_most,
    create_names,
    create_bad_values,
    create_over_budget,
    numbers_are_unique,
    start,
    start_without_vcpu,
    pause_holds,
    pause_soon_after_resume,
    pause_and_resume_itself,
    pause_while_waiting,
    kill_itself,
    cannot_start_or_destroy_itself,
    destroy_gives_back,
    destroy_with_many_handles,
    destroyed_still_answers,
    info,
    watch_end,
    watch_after_the_end,
    watch_console,
    watch_is_replaced,
    watch_ends,
    watch_bad_mask,
    console,
    console_from_the_middle,
    console_overflow,
    console_bad_length,
    console_after_the_end,
    type_in,
    type_until_full,
    type_too_long,
    type_before_the_start,
    next,
    next_bad_number,
    open,
    open_bad_number,
    read_and_write,
    copy_across_pages,
    copy_too_long,
    copy_is_all_or_nothing,
    write_to_read_only,
    copy_of_its_own,
);

fn create() -> Outcome {
    let domain = Temporary::new(&DomainConfig {
        frames: 100,
        heap: 50_000,
        handles: 17,
        vcpus: 3,
        ..config(b"fresh")
    })?;
    names(domain.any(), ObjectType::DOMAIN, rights::DOMAIN)?;
    let info = domain.info().must("info")?;
    check!(&info.name[..6] == b"fresh\0", "name {:x?}", info.name);
    check!(info.number >= 1, "number 0");
    check!(info.state == DomainState::CREATED, "{:?}", info.state);
    check!(info.reason == Reason::NONE, "{:?}", info.reason);
    check_eq!(info.vcpus, 0, "vCPUs");
    check_eq!(info.max_vcpus, 3, "most vCPUs");
    check_eq!(info.handles, 0, "handles");
    check_eq!(info.max_handles, 17, "most handles");
    check_eq!(info.max_frames, 100, "budget of frames");
    check_eq!(info.max_heap, 50_000, "budget of heap");
    check_eq!(info.memory_frames, 0, "frames of memory");
    check_eq!(info.console_end, 0, "console");
    check!(
        info.frames <= info.max_frames && info.heap <= info.max_heap,
        "beyond its budget"
    );
    Ok(())
}

fn create_takes_from_the_callers_budget() -> Outcome {
    let before = own().info().must("own info")?;
    let wanted = config(b"budget");
    let domain = Temporary::new(&wanted)?;
    let after = own().info().must("own info")?;
    check_eq!(
        before.max_frames - after.max_frames,
        wanted.frames,
        "frames"
    );
    check_eq!(before.max_heap - after.max_heap, wanted.heap, "heap");
    check_eq!(after.handles - before.handles, 1, "handles");
    domain.destroy().must("destroy")?;
    let destroyed = own().info().must("own info")?;
    check_eq!(destroyed.max_frames, before.max_frames, "frames given back");
    // What its handle still names stays charged to it.
    check!(
        before.max_heap - destroyed.max_heap < wanted.heap,
        "no heap given back"
    );
    drop(domain);
    let end = own().info().must("own info")?;
    check_eq!(end.max_heap, before.max_heap, "heap given back");
    Ok(())
}

fn create_least_and_most() -> Outcome {
    let least = DomainConfig {
        frames: DomainConfig::LEAST_FRAMES,
        heap: DomainConfig::LEAST_HEAP,
        handles: 1,
        vcpus: 1,
        ..config(b"x")
    };
    let domain = Temporary::new(&least)?;
    // That is enough for a vCPU.
    drop(domain.create_vcpu().must("create vCPU").map(Owned)?);
    drop(domain);
    let domain = Temporary::new(&DomainConfig {
        handles: MAX_HANDLES,
        vcpus: MAX_VCPUS,
        ..least
    })?;
    let info = domain.info().must("info")?;
    check_eq!(info.max_handles, MAX_HANDLES, "handles");
    check_eq!(info.max_vcpus, MAX_VCPUS, "vCPUs");
    Ok(())
}

fn create_names() -> Outcome {
    for name in [
        "a",
        "32 bytes and not a single one +",
        "dömäne",
        "name with blanks",
    ] {
        let domain = Temporary::new(&config(name.as_bytes()))?;
        let seen = domain.info().must("info")?.name;
        let end = seen.iter().position(|byte| *byte == 0).unwrap_or(32);
        check!(&seen[..end] == name.as_bytes(), "{name}: {seen:x?}");
    }
    let full = Temporary::new(&config(&[b'n'; 32]))?;
    check!(full.info().must("info")?.name == [b'n'; 32], "32 bytes");
    Ok(())
}

fn create_bad_values() -> Outcome {
    let good = config(b"bad");
    let refused = |config: DomainConfig, what: &str| {
        refused(
            system().create_domain(&config).map(Temporary::from),
            Status::BAD_ARGUMENT,
            what,
        )
    };
    refused(config(b""), "no name")?;
    refused(config(b"\0x"), "an empty name with something behind it")?;
    refused(config(b"\xff"), "no UTF-8")?;
    refused(config(b"ab\xc3"), "half a character")?;
    refused(config(&[0x80; 32]), "32 bytes of no UTF-8")?;
    for handles in [0, MAX_HANDLES + 1, u32::MAX] {
        refused(DomainConfig { handles, ..good }, "handles")?;
    }
    for vcpus in [0, MAX_VCPUS + 1, u32::MAX] {
        refused(DomainConfig { vcpus, ..good }, "vCPUs")?;
    }
    for frames in [0, DomainConfig::LEAST_FRAMES - 1] {
        refused(DomainConfig { frames, ..good }, "frames")?;
    }
    for heap in [0, DomainConfig::LEAST_HEAP - 1] {
        refused(DomainConfig { heap, ..good }, "heap")?;
    }
    for platform in [2, 3, 1 << 31, u32::MAX] {
        refused(DomainConfig { platform, ..good }, "platform")?;
    }
    for reserved in [1, 1 << 31, u32::MAX] {
        refused(DomainConfig { reserved, ..good }, "reserved")?;
    }
    Ok(())
}

fn create_over_budget() -> Outcome {
    let own = own().info().must("own info")?;
    let good = config(b"greedy");
    let refused = |config: DomainConfig, what: &str| {
        refused(
            system().create_domain(&config).map(Temporary::from),
            Status::OVER_BUDGET,
            what,
        )
    };
    for frames in [own.max_frames - own.frames + 1, 1 << 40, 1 << 52, u64::MAX] {
        refused(DomainConfig { frames, ..good }, "frames")?;
    }
    for heap in [own.max_heap - own.heap + 1, 1 << 40, u64::MAX] {
        refused(DomainConfig { heap, ..good }, "heap")?;
    }
    Ok(())
}

fn numbers_are_unique() -> Outcome {
    let mut last = 0;
    for _ in 0..10 {
        let domain = Temporary::new(&config(b"number"))?;
        let number = domain.info().must("info")?.number;
        check!(number > last, "number {number} after {last}");
        last = number;
    }
    Ok(())
}

fn start() -> Outcome {
    let child = Child::new(&Plan::new(count()))?;
    check!(child.is(DomainState::CREATED)?, "not CREATED");
    sleep(MS);
    check_eq!(child.word(DATA)?, 0, "it ran before its start");
    child.start()?;
    check!(child.is(DomainState::RUNNING)?, "not RUNNING");
    child.until_change(DATA)
}

fn start_without_vcpu() -> Outcome {
    let domain = Temporary::new(&config(b"headless"))?;
    refused(domain.start(), Status::WRONG_STATE, "start")?;
    check!(
        domain.info().must("info")?.state == DomainState::CREATED,
        "state"
    );
    Ok(())
}

fn pause_holds() -> Outcome {
    let child = Child::running(count())?;
    for _ in 0..3 {
        child.until_change(DATA)?;
        child.domain.pause().must("pause")?;
        check!(child.is(DomainState::PAUSED)?, "not PAUSED");
        // Once its state can be read, it has left its CPU.
        child.state(0)?;
        let held = child.word(DATA)?;
        sleep(2 * MS);
        check_eq!(child.word(DATA)?, held, "counter while paused");
        child.domain.resume().must("resume")?;
        check!(child.is(DomainState::RUNNING)?, "not RUNNING");
    }
    child.until_change(DATA)
}

/// Its CPU may just have chosen it: a state that can be read is that of a vCPU which runs nowhere.
fn pause_soon_after_resume() -> Outcome {
    let child = Child::running(count())?;
    for round in 0..300 {
        child.domain.pause().must("pause")?;
        child.state(0)?;
        let run = child.vcpu(0).info().must("info")?.run;
        check!(run == VcpuRun::HELD, "round {round}: {}", run.text());
        child.domain.resume().must("resume")?;
        sleep(MS / 1000 * (round % 100));
    }
    Ok(())
}

fn pause_and_resume_itself() -> Outcome {
    let child = caller()?;
    let handle = give(&child, child.domain.any(), rights::CONTROL)?;
    child.load(
        0,
        &[
            Step::new(Call::DOMAIN_RESUME, [handle]),
            Step::new(Call::DOMAIN_PAUSE, [handle]),
        ],
        1,
        After::Wait,
    )?;
    child.start()?;
    until("its pause", || child.is(DomainState::PAUSED))?;
    child.domain.resume().must("resume")?;
    child.until_done(0)?;
    child.answered(0, 0, Status::WRONG_STATE)?;
    child.answered(0, 1, Status::OK)?;
    Ok(())
}

/// The deadline passes while it is held; the wait ends with its resumption.
fn pause_while_waiting() -> Outcome {
    let child = caller()?;
    let deadline = hypercall::clock() + 3 * MS;
    child.load(
        0,
        &[
            Step::new(Call::WAIT, [deadline]),
            Step::new(Call::CLOCK, []),
        ],
        1,
        After::Wait,
    )?;
    child.start()?;
    child.domain.pause().must("pause")?;
    sleep(6 * MS);
    let resumed = hypercall::clock();
    child.domain.resume().must("resume")?;
    child.until_done(0)?;
    child.answered(0, 0, Status::TIMED_OUT)?;
    let woke = child.answered(0, 1, Status::OK)?;
    check!(woke >= resumed, "it went on {} ns early", resumed - woke);
    Ok(())
}

fn kill_itself() -> Outcome {
    let child = caller()?;
    let handle = give(&child, child.domain.any(), rights::CONTROL)?;
    child.load(
        0,
        &[
            Step::new(Call::DOMAIN_KILL, [handle]),
            Step::new(Call::END, [3]),
        ],
        1,
        After::Wait,
    )?;
    child.start()?;
    child.ends(Reason::KILLED)?;
    Ok(())
}

fn cannot_start_or_destroy_itself() -> Outcome {
    let child = caller()?;
    let handle = give(&child, child.domain.any(), rights::CONTROL)?;
    lets(
        &child,
        &[
            Step::new(Call::DOMAIN_START, [handle]),
            Step::new(Call::DOMAIN_DESTROY, [handle]),
            Step::new(Call::VCPU_CREATE, [handle]),
        ],
    )?;
    for step in 0..3 {
        child.answered(0, step, Status::WRONG_STATE)?;
    }
    Ok(())
}

fn destroy_gives_back() -> Outcome {
    let before = system().info().must("system info")?;
    let child = Child::running(spin())?;
    child.domain.kill().must("kill")?;
    child.destroy()?;
    let info = child.domain.info().must("info")?;
    check!(info.state == DomainState::DESTROYED, "{:?}", info.state);
    check_eq!(info.handles, 0, "handles");
    check_eq!(
        system().info().must("system info")?.domains,
        before.domains,
        "domains"
    );
    Ok(())
}

fn destroy_with_many_handles() -> Outcome {
    let child = Child::new(&Plan {
        handles: 300,
        heap: 64 << 10,
        ..Plan::new(spin())
    })?;
    let event = event()?;
    for _ in 0..300 {
        give(&child, event.any(), rights::SIGNAL)?;
    }
    child.destroy()?;
    // The event was only shared.
    event.signal().must("signal")
}

fn destroyed_still_answers() -> Outcome {
    let child = caller()?;
    child.write(DATA, b"last words")?;
    lets(&child, &[Step::new(Call::CONSOLE_WRITE, [DATA, 10])])?;
    let before = child.domain.info().must("info")?;
    child.destroy()?;
    let after = child.domain.info().must("info")?;
    check!(after.state == DomainState::DESTROYED, "{:?}", after.state);
    check_eq!(after.number, before.number, "number");
    check!(after.name == before.name, "name");
    check!(after.reason == Reason::STATUS, "{:?}", after.reason);
    let mut buffer = [0; 64];
    let (_, bytes) = child.domain.console(&mut buffer, 0).must("console")?;
    check!(bytes == b"last words", "{bytes:x?}");
    Ok(())
}

fn info() -> Outcome {
    let child = Child::new(&Plan {
        vcpus: 2,
        max_vcpus: 3,
        handles: 9,
        ..Plan::new(spin())
    })?;
    let event = event()?;
    give(&child, event.any(), rights::SIGNAL)?;
    let info = child.domain.info().must("info")?;
    check_eq!(info.vcpus, 2, "vCPUs");
    check_eq!(info.max_vcpus, 3, "most vCPUs");
    check_eq!(info.handles, 1, "handles");
    check_eq!(info.max_handles, 9, "most handles");
    check_eq!(info.memory_frames, 4, "frames of memory");
    check!(info.frames > 4, "frames {}: no tables?", info.frames);
    check!(info.heap > 0, "no heap");
    child.start()?;
    let running = child.domain.info().must("info")?;
    check!(running.state == DomainState::RUNNING, "{:?}", running.state);
    Ok(())
}

/// Whether the event was signalled: binds it to ask.
fn signalled(event: plinth_rt::object::Event) -> Result<bool, Why> {
    event.bind(0x5151).must("bind")?;
    let seen = pending()?;
    event.unbind().must("unbind")?;
    Ok(seen == Some(0x5151))
}

fn watch_end() -> Outcome {
    let child = Child::running(spin())?;
    let event = event()?;
    child.domain.watch(*event, watch::ENDED).must("watch")?;
    check!(!signalled(*event)?, "signalled before its end");
    child.domain.kill().must("kill")?;
    until("the event", || signalled(*event))?;
    check!(child.is(DomainState::ENDED)?, "not ENDED");
    Ok(())
}

fn watch_after_the_end() -> Outcome {
    let child = Child::new(&Plan::new(end()))?;
    child.start()?;
    child.ends_with(0)?;
    let event = event()?;
    child.domain.watch(*event, watch::ENDED).must("watch")?;
    check!(signalled(*event)?, "not at once");
    Ok(())
}

fn watch_console() -> Outcome {
    let child = caller()?;
    child.write(DATA, b"x\n")?;
    child.load(
        0,
        &[Step::new(Call::CONSOLE_WRITE, [DATA, 2])],
        1,
        After::Wait,
    )?;
    let event = event()?;
    child.domain.watch(*event, watch::CONSOLE).must("watch")?;
    check!(!signalled(*event)?, "signalled before it wrote");
    child.start()?;
    until("the event", || signalled(*event))?;
    // There is output, so that a new watch signals at once.
    child.domain.watch(*event, watch::CONSOLE).must("watch")?;
    check!(signalled(*event)?, "not at once");
    Ok(())
}

fn watch_is_replaced() -> Outcome {
    let child = Child::running(spin())?;
    let (first, second) = (event()?, event()?);
    child.domain.watch(*first, watch::ENDED).must("watch")?;
    child.domain.watch(*second, watch::ENDED).must("watch")?;
    child.domain.kill().must("kill")?;
    until("the second event", || signalled(*second))?;
    check!(!signalled(*first)?, "the first was signalled, too");
    Ok(())
}

fn watch_ends() -> Outcome {
    let child = Child::running(spin())?;
    let event = event()?;
    child.domain.watch(*event, watch::ALL).must("watch")?;
    let domain = raw(child.domain.any());
    answers(Call::DOMAIN_WATCH, [domain, 0, 0], Status::OK)?;
    child.domain.kill().must("kill")?;
    child.ends(Reason::KILLED)?;
    child.destroy()?;
    check!(!signalled(*event)?, "signalled after the watch");
    Ok(())
}

fn watch_bad_mask() -> Outcome {
    let child = Child::new(&Plan::new(spin()))?;
    let event = event()?;
    let (domain, event) = (raw(child.domain.any()), raw(event.any()));
    for mask in [0, 1 << 2, watch::ALL | 1 << 63, u64::MAX] {
        refuses(
            Call::DOMAIN_WATCH,
            [domain, event, mask],
            Status::BAD_ARGUMENT,
        )?;
    }
    refuses(
        Call::DOMAIN_WATCH,
        [domain, 0, 1 << 2],
        Status::BAD_ARGUMENT,
    )
}

/// The byte that a talker writes at a position of its stream: lines of 64 bytes.
fn spoken(position: u64) -> u8 {
    match position % 64 {
        63 => b'\n',
        column => b'0' + (column as u8 + (position / 64 % 4) as u8) % 64,
    }
}

/// A child that writes the 256 bytes of [`spoken`] so many times.
fn talker(times: u64) -> Result<Child, Why> {
    let child = caller()?;
    let text: [u8; 256] = core::array::from_fn(|index| spoken(index as u64));
    child.write(DATA, &text)?;
    child.load(
        0,
        &[Step::new(Call::CONSOLE_WRITE, [DATA, 256])],
        times,
        After::Wait,
    )?;
    Ok(child)
}

fn console() -> Outcome {
    let child = talker(2)?;
    let mut buffer = [0; 600];
    let (header, bytes) = child.domain.console(&mut buffer, 0).must("console")?;
    check!(header == StreamHeader::default(), "{header:?}");
    check!(bytes.is_empty(), "bytes before its start");
    child.start()?;
    child.until_done(0)?;
    let (header, bytes) = child.domain.console(&mut buffer, 0).must("console")?;
    check_eq!(header.start, 0, "start");
    check_eq!(header.end, 512, "end");
    check_eq!(bytes.len(), 512, "bytes");
    for (position, byte) in (0..).zip(bytes) {
        check_eq!(*byte, spoken(position), "a byte");
    }
    check_eq!(
        child.domain.info().must("info")?.console_end,
        512,
        "end in its info"
    );
    Ok(())
}

fn console_from_the_middle() -> Outcome {
    let child = talker(2)?;
    child.start()?;
    child.until_done(0)?;
    let mut buffer = [0; 100];
    for position in [1, 255, 256, 300, 511, 512] {
        let (header, bytes) = child
            .domain
            .console(&mut buffer, position)
            .must("console")?;
        check_eq!(header.start, position, "start");
        check_eq!(header.end, 512, "end");
        check_eq!(bytes.len() as u64, (512 - position).min(84), "bytes");
        for (position, byte) in (position..).zip(bytes) {
            check_eq!(*byte, spoken(position), "a byte");
        }
    }
    // Behind the end there is nothing.
    for position in [513, 1 << 32, u64::MAX] {
        let (header, bytes) = child
            .domain
            .console(&mut buffer, position)
            .must("console")?;
        check_eq!(header.end, 512, "end");
        check_eq!(bytes.len(), 0, "bytes behind the end");
    }
    // Room for the header only.
    let domain = raw(child.domain.any());
    let copied = answers(
        Call::DOMAIN_CONSOLE,
        [domain, PAGE.address(), 16, 0],
        Status::OK,
    )?;
    check_eq!(copied, 0, "bytes without room");
    check_eq!(PAGE.get_u64(8), 512, "end");
    Ok(())
}

/// What falls out of the ring is gone; what is left is right, and the position says where it begins.
fn console_overflow() -> Outcome {
    let child = talker(u64::MAX)?;
    child.start()?;
    let mut buffer = [0; 64];
    until("the ring's overflow", || {
        let (header, _) = child.domain.console(&mut buffer, 0).must("console")?;
        Ok(header.start > 0)
    })?;
    child.domain.pause().must("pause")?;
    child.state(0)?;
    let (oldest, _) = child.domain.console(&mut buffer, 0).must("console")?;
    check!(oldest.start < oldest.end, "{oldest:?}");
    let mut position = oldest.start;
    let mut buffer = [0; STREAM_MAX as usize];
    while position < oldest.end {
        let (header, bytes) = child
            .domain
            .console(&mut buffer, position)
            .must("console")?;
        check_eq!(header.start, position, "start");
        check_eq!(header.end, oldest.end, "end");
        check!(!bytes.is_empty(), "nothing at {position}");
        for (position, byte) in (position..).zip(bytes) {
            check_eq!(*byte, spoken(position), "a byte");
        }
        position += bytes.len() as u64;
    }
    check_eq!(position, oldest.end, "end of what was read");
    Ok(())
}

fn console_bad_length() -> Outcome {
    let child = Child::new(&Plan::new(spin()))?;
    let domain = raw(child.domain.any());
    for length in [0, 15, STREAM_MAX + 1, 1 << 32, u64::MAX] {
        for at in [PAGE.address(), u64::MAX] {
            refuses(
                Call::DOMAIN_CONSOLE,
                [domain, at, length, 0],
                Status::BAD_ARGUMENT,
            )?;
        }
    }
    Ok(())
}

fn console_after_the_end() -> Outcome {
    let child = talker(1)?;
    child.start()?;
    child.until_done(0)?;
    child.domain.kill().must("kill")?;
    let mut buffer = [0; 300];
    for _ in 0..2 {
        let (header, bytes) = child.domain.console(&mut buffer, 0).must("console")?;
        check_eq!(header.end, 256, "end");
        check_eq!(bytes.len(), 256, "bytes");
        child.ends(Reason::KILLED)?;
    }
    Ok(())
}

fn type_in() -> Outcome {
    let child = caller()?;
    child.load(
        0,
        &[Step::new(Call::CONSOLE_READ, [DATA, 64])],
        1,
        After::Wait,
    )?;
    check_eq!(child.domain.type_in(b"hello").must("type")?, 5, "taken");
    check_eq!(child.domain.type_in(b" you").must("type")?, 4, "taken");
    child.start()?;
    child.until_done(0)?;
    check_eq!(child.answered(0, 0, Status::OK)?, 9, "bytes read");
    let mut seen = [0; 9];
    child.domain.read(DATA, &mut seen).must("read")?;
    check!(&seen == b"hello you", "{seen:x?}");
    Ok(())
}

fn type_until_full() -> Outcome {
    let child = caller()?;
    let text: [u8; 300] = core::array::from_fn(|index| index as u8);
    let mut typed = 0;
    while typed < 256 {
        let taken = child.domain.type_in(&text[typed..]).must("type")?;
        check!(taken > 0, "full after {typed} bytes");
        typed += taken;
    }
    check_eq!(typed, 256, "bytes that wait");
    check_eq!(
        child.domain.type_in(b"x").must("type")?,
        0,
        "taken when full"
    );
    lets(
        &child,
        &[
            Step::new(Call::CONSOLE_READ, [DATA, 100]),
            Step::new(Call::CONSOLE_READ, [DATA + 100, 400]),
            Step::new(Call::CONSOLE_READ, [DATA, 1]),
        ],
    )?;
    check_eq!(child.answered(0, 0, Status::OK)?, 100, "first bytes");
    check_eq!(child.answered(0, 1, Status::OK)?, 156, "the others");
    check_eq!(child.answered(0, 2, Status::OK)?, 0, "bytes left");
    let mut seen = [0; 256];
    child.domain.read(DATA, &mut seen).must("read")?;
    check!(seen == text[..256], "not what was typed");
    Ok(())
}

fn type_too_long() -> Outcome {
    let child = Child::new(&Plan::new(spin()))?;
    for length in [4097, 1 << 32, u64::MAX] {
        refuses(
            Call::DOMAIN_TYPE,
            [raw(child.domain.any()), PAGE.address(), length],
            Status::BAD_ARGUMENT,
        )?;
    }
    Ok(())
}

fn type_before_the_start() -> Outcome {
    let domain = Temporary::new(&config(b"typed"))?;
    check_eq!(domain.type_in(b"early").must("type")?, 5, "taken");
    Ok(())
}

fn next() -> Outcome {
    let child = Child::new(&Plan::new(spin()))?;
    let mine = own().info().must("own info")?.number;
    let its = child.domain.info().must("info")?.number;
    let (mut number, mut seen, mut domains) = (0, 0, 0);
    while let Some(next) = system().next_domain(number).must("next")? {
        check!(next > number, "{next} after {number}");
        number = next;
        domains += 1;
        seen += u32::from(next == mine) + u32::from(next == its);
    }
    check_eq!(seen, 2, "own and the child's number");
    check_eq!(
        domains,
        system().info().must("system info")?.domains,
        "domains"
    );
    drop(child);
    let mut number = 0;
    while let Some(next) = system().next_domain(number).must("next")? {
        check!(next != its, "destroyed, and in the list");
        number = next;
    }
    Ok(())
}

fn next_bad_number() -> Outcome {
    let machine = raw(system().any());
    refuses(
        Call::DOMAIN_NEXT,
        [machine, u32::MAX.into()],
        Status::NOT_FOUND,
    )?;
    for number in [1 << 32, 1 << 63, u64::MAX] {
        refuses(Call::DOMAIN_NEXT, [machine, number], Status::BAD_ARGUMENT)?;
    }
    Ok(())
}

fn open() -> Outcome {
    let child = Child::new(&Plan::new(spin()))?;
    let number = child.domain.info().must("info")?.number;
    let opened = system().open_domain(number).must("open").map(Owned)?;
    names(opened.any(), ObjectType::DOMAIN, rights::DOMAIN)?;
    check!(opened.0.0 != child.domain.any().0, "the same handle");
    check_eq!(opened.info().must("info")?.number, number, "number");
    child.destroy()?;
    refused(
        system().open_domain(number).map(Owned),
        Status::NOT_FOUND,
        "open of a destroyed domain",
    )
}

fn open_bad_number() -> Outcome {
    let machine = raw(system().any());
    for number in [0, u32::MAX.into()] {
        refuses(Call::DOMAIN_OPEN, [machine, number], Status::NOT_FOUND)?;
    }
    for number in [1 << 32, 1 << 63, u64::MAX] {
        refuses(Call::DOMAIN_OPEN, [machine, number], Status::BAD_ARGUMENT)?;
    }
    Ok(())
}

fn read_and_write() -> Outcome {
    let child = Child::new(&Plan::new(spin()))?;
    let text: [u8; 4096] = core::array::from_fn(|index| (index * 7 + index / 256) as u8);
    let domain = raw(child.domain.any());
    let copied = answers(
        Call::DOMAIN_WRITE,
        [domain, text.as_ptr() as u64, COPY_MAX, DATA],
        Status::OK,
    )?;
    check_eq!(copied, COPY_MAX, "bytes written");
    let copied = answers(
        Call::DOMAIN_READ,
        [domain, PAGE.address(), COPY_MAX, DATA],
        Status::OK,
    )?;
    check_eq!(copied, COPY_MAX, "bytes read");
    for (offset, byte) in text.iter().enumerate() {
        check_eq!(PAGE.get(offset), *byte, "a byte");
    }
    Ok(())
}

fn copy_across_pages() -> Outcome {
    let child = Child::new(&Plan::new(spin()))?;
    let text: [u8; 64] = core::array::from_fn(|index| index as u8 + 1);
    child.write(DATA + 4096 - 32, &text)?;
    let mut seen = [0; 64];
    child
        .domain
        .read(DATA + 4096 - 32, &mut seen)
        .must("read")?;
    check!(seen == text, "{seen:x?}");
    check_eq!(child.word(DATA + 4096)? & 0xff, 33, "the next page");
    Ok(())
}

fn copy_too_long() -> Outcome {
    let child = Child::new(&Plan::new(spin()))?;
    for call in [Call::DOMAIN_READ, Call::DOMAIN_WRITE] {
        for length in [COPY_MAX + 1, 1 << 32, u64::MAX] {
            refuses(
                call,
                [raw(child.domain.any()), PAGE.address(), length, 0],
                Status::BAD_ARGUMENT,
            )?;
        }
    }
    Ok(())
}

/// The first part of the copy would be possible.
fn copy_is_all_or_nothing() -> Outcome {
    let child = Child::new(&Plan::new(spin()))?;
    let end = child::STACK + 4096;
    let domain = raw(child.domain.any());
    PAGE.fill(0xaa);
    refuses(
        Call::DOMAIN_WRITE,
        [domain, PAGE.address(), 64, end - 32],
        Status::BAD_ADDRESS,
    )?;
    check_eq!(child.word(end - 32)?, 0, "written");
    refuses(
        Call::DOMAIN_READ,
        [domain, PAGE.address(), 64, end - 32],
        Status::BAD_ADDRESS,
    )?;
    check_eq!(PAGE.get(0), 0xaa, "read");
    Ok(())
}

fn write_to_read_only() -> Outcome {
    let child = Child::new(&Plan::new(spin()))?;
    child.set_word(DATA, 0x1234)?;
    child
        .domain
        .protect(DATA, 4096, access::READ)
        .must("protect")?;
    let domain = raw(child.domain.any());
    refuses(
        Call::DOMAIN_WRITE,
        [domain, PAGE.address(), 8, DATA],
        Status::BAD_ADDRESS,
    )?;
    check_eq!(child.word(DATA)?, 0x1234, "word");
    Ok(())
}

/// A domain with a handle to itself copies within itself.
fn copy_of_its_own() -> Outcome {
    let child = caller()?;
    child.set_word(DATA, 0xfeed)?;
    let handle = give(&child, child.domain.any(), rights::MEMORY)?;
    lets(
        &child,
        &[
            Step::new(Call::DOMAIN_READ, [handle, DATA + 8, 8, DATA]),
            Step::new(Call::DOMAIN_WRITE, [handle, DATA, 8, DATA + 16]),
        ],
    )?;
    child.answered(0, 0, Status::OK)?;
    child.answered(0, 1, Status::OK)?;
    check_eq!(child.word(DATA + 8)?, 0xfeed, "read");
    check_eq!(child.word(DATA + 16)?, 0xfeed, "written");
    Ok(())
}

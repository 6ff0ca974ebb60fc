//! Memory objects: making, mapping, sharing, watching them, and what becomes of them.

use plinth_rt::abi::call::access::{self, EXECUTE, READ, WRITE};
use plinth_rt::abi::domain::fault;
use plinth_rt::abi::{Call, DomainConfig, Handle, MemoryInfo, ObjectType, Reason, Status, rights};
use plinth_rt::object::{Any, Memory};
use plinth_rt::{Outcome, Why, check, check_eq, hypercall, snippet};

use crate::child::{Child, DATA, ENTRY, Plan, STACK, TABLE, Temporary, config, count, spin};
use crate::kit::{
    Must, Owned, PAGE, answers, duplicate, memory, names, own, raw, refused, refuses, sleep,
    system, to_the_end, until,
};
use crate::objects::Objects;
use crate::window::{Mapped, WINDOW};

tests!("memory":
    create,
    create_bad_size,
    create_over_budget,
    create_is_charged,
    populate,
    populate_in_steps,
    populate_again,
    map,
    map_misaligned,
    map_bad_length,
    map_beyond_the_object,
    map_beyond_48_bits,
    map_bad_access,
    map_rights,
    map_not_populated,
    map_exists,
    map_in_steps,
    map_a_part,
    map_twice,
    map_at_the_top,
    map_over_budget,
    unmap,
    unmap_bad_arguments,
    unmap_not_mapped,
    unmap_a_part,
    unmap_in_steps,
    unmap_what_is_read,
    protect,
    protect_bad_arguments,
    protect_needs_the_right,
    protect_not_mapped,
    protect_what_is_written,
    protect_in_steps,
    dirty,
    dirty_forgets,
    dirty_of_a_call,
    dirty_bad_arguments,
    dirty_not_mapped,
    dirty_in_steps,
    shared_by_two,
    outlives_its_handle,
    outlives_its_mapping,
    outlives_its_domain,
    zeroed,
    zeroed_again,
    large_pages,
    physical,
    physical_bad_arguments,
    physical_of_ram,
    physical_of_the_kernels_devices,
    physical_needs_no_frames,
    info,
);

const KIB_4: u64 = 4096;

/// An address of a child's that nothing is mapped at.
const EMPTY: u64 = 0x10_0000;

fn create() -> Outcome {
    let before = own().info().must("own info")?;
    let value = answers(
        Call::MEMORY_CREATE,
        [raw(own().any()), 3 * KIB_4],
        Status::OK,
    )?;
    let memory = Owned(Memory(Handle(value as u32)));
    names(memory.any(), ObjectType::MEMORY, rights::MEMORY_OBJECT)?;
    let info = memory.info().must("info")?;
    check_eq!(info.bytes, 3 * KIB_4, "bytes");
    check_eq!(info.populated, 0, "bytes with frames");
    check_eq!(info.is_physical, 0, "physical");
    let after = own().info().must("own info")?;
    check_eq!(after.handles, before.handles + 1, "handles");
    check!(after.heap > before.heap, "its heap is nobody's");
    Ok(())
}

fn create_bad_size() -> Outcome {
    for bytes in [
        0,
        1,
        KIB_4 - 1,
        KIB_4 + 1,
        (1 << 40) + KIB_4,
        1 << 63,
        u64::MAX,
        u64::MAX - 4095,
    ] {
        refuses(
            Call::MEMORY_CREATE,
            [raw(own().any()), bytes],
            Status::BAD_ARGUMENT,
        )?;
    }
    Ok(())
}

fn create_over_budget() -> Outcome {
    let domain = Temporary::new(&config(b"poor"))?;
    let info = domain.info().must("info")?;
    let left = info.max_frames - info.frames;
    let create = |bytes| {
        let answer = hypercall::call(Call::MEMORY_CREATE, [raw(domain.any()), bytes]);
        (answer.0, Owned(Any(Handle(answer.1 as u32))))
    };
    for bytes in [1 << 40, (left + 1) * KIB_4] {
        let (status, _memory) = create(bytes);
        check!(
            status == Status::OVER_BUDGET,
            "{bytes:#x} bytes: {status:?}"
        );
        check_eq!(domain.info().must("info")?.frames, info.frames, "frames");
    }
    let (status, _memory) = create(left * KIB_4);
    check!(status == Status::OK, "all that is left: {status:?}");
    let (status, _memory) = create(KIB_4);
    check!(
        status == Status::OVER_BUDGET,
        "one more than that: {status:?}"
    );
    Ok(())
}

fn create_is_charged() -> Outcome {
    let domain = Temporary::new(&config(b"charged"))?;
    let before = domain.info().must("info")?;
    let memory = domain.create_memory(5 * KIB_4).must("memory").map(Owned)?;
    let after = domain.info().must("info")?;
    check!(after.frames >= before.frames + 5, "frames");
    check_eq!(after.memory_frames, before.memory_frames + 5, "of memory");
    check!(after.heap > before.heap, "heap");
    check_eq!(after.handles, before.handles, "handles are the caller's");
    drop(memory);
    until("the frames' return", || {
        let end = domain.info().must("info")?;
        Ok(end.frames == before.frames
            && end.memory_frames == before.memory_frames
            && end.heap == before.heap)
    })
}

/// Memory without frames.
fn empty(bytes: u64) -> Result<Owned<Memory>, Why> {
    answers(Call::MEMORY_CREATE, [raw(own().any()), bytes], Status::OK)
        .map(|value| Owned(Memory(Handle(value as u32))))
}

fn populate() -> Outcome {
    let memory = empty(2 * KIB_4)?;
    let bytes = answers(Call::MEMORY_POPULATE, [raw(memory.any())], Status::OK)?;
    check_eq!(bytes, 2 * KIB_4, "value");
    check_eq!(
        memory.info().must("info")?.populated,
        2 * KIB_4,
        "bytes with frames"
    );
    Ok(())
}

const MIB_2: u64 = 2 << 20;

fn populate_in_steps() -> Outcome {
    let bytes = MIB_2 + KIB_4;
    let memory = empty(bytes)?;
    let (mut steps, mut before) = (0, 0);
    loop {
        let (status, has) = hypercall::call(Call::MEMORY_POPULATE, [raw(memory.any())]);
        check_eq!(
            memory.info().must("info")?.populated,
            has,
            "bytes with frames"
        );
        steps += 1;
        match status {
            Status::OK => {
                check_eq!(has, bytes, "bytes at the end");
                break;
            }
            Status::AGAIN => {
                check!(has > before && has < bytes, "{has} bytes after {before}");
                check!(has - before <= MIB_2, "{} bytes in a step", has - before);
                before = has;
            }
            status => return Err(format_args!("{status:?}").into()),
        }
    }
    check!(steps >= 2, "{steps} steps of at most 2 MiB");
    Ok(())
}

fn populate_again() -> Outcome {
    let memory = memory(KIB_4)?;
    let window = Mapped::new(0, *memory, KIB_4)?;
    window.set_word(8, 0x77);
    let bytes = answers(Call::MEMORY_POPULATE, [raw(memory.any())], Status::OK)?;
    check_eq!(bytes, KIB_4, "value");
    check_eq!(window.word(8), 0x77, "content");
    Ok(())
}

/// The arguments of a good `MEMORY_MAP`, for tests that spoil one of them.
struct Map {
    memory: u64,
    offset: u64,
    domain: u64,
    gpa: u64,
    length: u64,
    access: u64,
}

impl Map {
    fn of(objects: &Objects) -> Self {
        Self {
            memory: raw(objects.memory.any()),
            offset: 0,
            domain: raw(objects.child.domain.any()),
            gpa: EMPTY,
            length: KIB_4,
            access: access::ALL,
        }
    }

    fn refused(&self, status: Status) -> Outcome {
        refuses(
            Call::MEMORY_MAP,
            [
                self.memory,
                self.offset,
                self.domain,
                self.gpa,
                self.length,
                self.access,
            ],
            status,
        )
    }
}

fn map() -> Outcome {
    let child = Child::new(&Plan::new(snippet!(
        "2: mov rax, [0x100000]",
        "mov [0x100008], rax",
        "jmp 2b"
    )))?;
    let memory = memory(KIB_4)?;
    let window = Mapped::new(0, *memory, KIB_4)?;
    let done = answers(
        Call::MEMORY_MAP,
        [
            raw(memory.any()),
            0,
            raw(child.domain.any()),
            EMPTY,
            KIB_4,
            READ | WRITE,
        ],
        Status::OK,
    )?;
    check_eq!(done, KIB_4, "value");
    window.set_word(0, 0xabcd);
    child.start()?;
    until("the child's write", || Ok(window.word(8) == 0xabcd))
}

fn map_misaligned() -> Outcome {
    let objects = Objects::new()?;
    for off in [1, 8, 2048, 4095] {
        for map in [
            Map {
                offset: off,
                ..Map::of(&objects)
            },
            Map {
                gpa: EMPTY + off,
                ..Map::of(&objects)
            },
            Map {
                length: KIB_4 - off,
                ..Map::of(&objects)
            },
        ] {
            map.refused(Status::BAD_ARGUMENT)?;
        }
    }
    Ok(())
}

fn map_bad_length() -> Outcome {
    let objects = Objects::new()?;
    for length in [0, 1, 1 << 63, u64::MAX, u64::MAX - 4095] {
        Map {
            length,
            ..Map::of(&objects)
        }
        .refused(Status::BAD_ARGUMENT)?;
    }
    Ok(())
}

fn map_beyond_the_object() -> Outcome {
    let objects = Objects::new()?;
    for (offset, length) in [
        (0, 2 * KIB_4),
        (KIB_4, KIB_4),
        (1 << 40, KIB_4),
        (u64::MAX - 4095, KIB_4),
        (u64::MAX - 4095, 2 * KIB_4),
    ] {
        Map {
            offset,
            length,
            ..Map::of(&objects)
        }
        .refused(Status::BAD_ARGUMENT)?;
    }
    Ok(())
}

fn map_beyond_48_bits() -> Outcome {
    let objects = Objects::new()?;
    for gpa in [1 << 48, 1 << 52, 1 << 63, u64::MAX - 4095] {
        Map {
            gpa,
            ..Map::of(&objects)
        }
        .refused(Status::BAD_ARGUMENT)?;
    }
    let memory = memory(2 * KIB_4)?;
    Map {
        memory: raw(memory.any()),
        gpa: (1 << 48) - KIB_4,
        length: 2 * KIB_4,
        ..Map::of(&objects)
    }
    .refused(Status::BAD_ARGUMENT)
}

fn map_bad_access() -> Outcome {
    let objects = Objects::new()?;
    for access in [
        0,
        WRITE,
        EXECUTE,
        WRITE | EXECUTE,
        8,
        15,
        1 << 32 | READ,
        1 << 63 | READ,
    ] {
        Map {
            access,
            ..Map::of(&objects)
        }
        .refused(Status::BAD_ARGUMENT)?;
    }
    Ok(())
}

fn map_rights() -> Outcome {
    let objects = Objects::new()?;
    for (lacking, denied) in [
        (rights::READ, [READ, access::ALL].as_slice()),
        (rights::WRITE, &[READ | WRITE, access::ALL]),
        (rights::EXECUTE, &[READ | EXECUTE, access::ALL]),
    ] {
        let weak = duplicate(objects.memory.any(), rights::MEMORY_OBJECT & !lacking)?;
        for access in denied {
            Map {
                memory: raw(*weak),
                access: *access,
                ..Map::of(&objects)
            }
            .refused(Status::NO_RIGHT)?;
        }
    }
    // What is asked for is enough.
    let read_only = duplicate(objects.memory.any(), rights::READ)?;
    objects
        .child
        .domain
        .map(EMPTY, Memory(read_only.0.0), 0, KIB_4, READ)
        .must("map")
}

fn map_not_populated() -> Outcome {
    let objects = Objects::new()?;
    let empty = empty(KIB_4)?;
    Map {
        memory: raw(empty.any()),
        ..Map::of(&objects)
    }
    .refused(Status::WRONG_STATE)
}

fn map_exists() -> Outcome {
    let objects = Objects::new()?;
    for gpa in [0, STACK] {
        Map {
            gpa,
            ..Map::of(&objects)
        }
        .refused(Status::EXISTS)?;
    }
    // One page of two.
    let memory = memory(2 * KIB_4)?;
    objects
        .child
        .domain
        .map(EMPTY + KIB_4, *objects.memory, 0, KIB_4, READ)
        .must("map")?;
    // A step may end before it.
    refused(
        objects.child.domain.map(EMPTY, *memory, 0, 2 * KIB_4, READ),
        Status::EXISTS,
        "one page of two",
    )
}

/// Makes a call in steps and checks what each says; `arguments` gets what is done. Returns how many there were.
fn in_steps(
    call: Call,
    length: u64,
    multiple: u64,
    arguments: impl Fn(u64) -> [u64; 6],
) -> Result<u64, Why> {
    let (mut done, mut steps) = (0, 0);
    loop {
        let (status, value) = hypercall::call(call, arguments(done));
        steps += 1;
        match status {
            Status::OK => {
                check_eq!(value, length - done, "bytes of the last step");
                return Ok(steps);
            }
            Status::AGAIN => {
                check!(
                    value > 0 && value < length - done && value.is_multiple_of(multiple),
                    "{value:#x} bytes of {:#x} in a step",
                    length - done
                );
                done += value;
            }
            status => {
                return Err(format_args!("{} after {done:#x}: {status:?}", call.name()).into());
            }
        }
    }
}

const PAGES: u64 = 150;

/// A child with 150 pages mapped at an address that large pages cannot be used for.
fn scattered() -> Result<(Objects, Owned<Memory>), Why> {
    let objects = Objects::new()?;
    let memory = memory(PAGES * KIB_4)?;
    Ok((objects, memory))
}

const ODD: u64 = EMPTY + KIB_4;

fn map_all(objects: &Objects, memory: Memory) -> Result<u64, Why> {
    let (memory, domain) = (raw(memory.any()), raw(objects.child.domain.any()));
    let length = PAGES * KIB_4;
    in_steps(Call::MEMORY_MAP, length, KIB_4, |done| {
        [memory, done, domain, ODD + done, length - done, access::ALL]
    })
}

fn map_in_steps() -> Outcome {
    let (objects, memory) = scattered()?;
    let steps = map_all(&objects, *memory)?;
    check!(steps >= 3, "{steps} steps of at most 64 pages");
    // All of it is there, each page in its place.
    for page in [0, 63, 64, 127, 128, PAGES - 1] {
        objects.child.set_word(ODD + page * KIB_4, page + 1)?;
    }
    let window = Mapped::new(0, *memory, 52 * KIB_4)?;
    check_eq!(window.word(0), 1, "the first page");
    Ok(())
}

fn map_a_part() -> Outcome {
    let objects = Objects::new()?;
    let memory = memory(4 * KIB_4)?;
    let window = Mapped::new(0, *memory, 4 * KIB_4)?;
    for page in 0..4 {
        window.set_word(page * KIB_4, page + 100);
    }
    objects
        .child
        .domain
        .map(EMPTY, *memory, KIB_4, 2 * KIB_4, READ)
        .must("map")?;
    check_eq!(objects.child.word(EMPTY)?, 101, "second page");
    check_eq!(objects.child.word(EMPTY + KIB_4)?, 102, "third page");
    refused(
        objects.child.domain.read(EMPTY + 2 * KIB_4, &mut [0]),
        Status::BAD_ADDRESS,
        "the fourth page",
    )
}

/// One page in two places of a domain, with different access.
fn map_twice() -> Outcome {
    let objects = Objects::new()?;
    let child = &objects.child;
    for (gpa, access) in [(EMPTY, READ | WRITE), (EMPTY + KIB_4, READ)] {
        child
            .domain
            .map(gpa, *objects.memory, 0, KIB_4, access)
            .must("map")?;
    }
    child.set_word(EMPTY, 0x99)?;
    check_eq!(child.word(EMPTY + KIB_4)?, 0x99, "by the other address");
    refused(
        child.domain.write(EMPTY + KIB_4, &[1]),
        Status::BAD_ADDRESS,
        "write to the other",
    )
}

fn map_at_the_top() -> Outcome {
    let objects = Objects::new()?;
    let top = (1 << 48) - KIB_4;
    objects
        .child
        .domain
        .map(top, *objects.memory, 0, KIB_4, READ | WRITE)
        .must("map")?;
    objects.child.set_word(top + 4088, 0x33)?;
    check_eq!(objects.child.word(top + 4088)?, 0x33, "word");
    Ok(())
}

/// Each mapping needs nested tables of its own, which are charged to the domain.
fn map_over_budget() -> Outcome {
    let domain = Temporary::new(&DomainConfig {
        frames: 16,
        ..config(b"tables")
    })?;
    let memory = memory(KIB_4)?;
    let mut mapped = 0;
    let status = loop {
        check!(mapped < 16, "{mapped} mappings with 16 frames");
        let gpa = (mapped + 1) << 39;
        match domain.map(gpa, *memory, 0, KIB_4, READ) {
            Ok(()) => mapped += 1,
            Err(status) => break status,
        }
    };
    check!(status == Status::OVER_BUDGET, "{status:?}");
    let info = domain.info().must("info")?;
    check!(info.frames <= 16, "{} frames", info.frames);
    // What failed has mapped nothing, and what was mapped before still is.
    refused(
        domain.unmap((mapped + 1) << 39, KIB_4),
        Status::NOT_FOUND,
        "unmap",
    )?;
    for index in 1..=mapped {
        domain.unmap(index << 39, KIB_4).must("unmap")?;
    }
    Ok(())
}

fn unmap() -> Outcome {
    let objects = Objects::new()?;
    let child = &objects.child;
    child
        .domain
        .map(EMPTY, *objects.memory, 0, KIB_4, READ)
        .must("map")?;
    let done = answers(
        Call::MEMORY_UNMAP,
        [raw(child.domain.any()), EMPTY, KIB_4],
        Status::OK,
    )?;
    check_eq!(done, KIB_4, "value");
    refused(
        child.domain.read(EMPTY, &mut [0]),
        Status::BAD_ADDRESS,
        "read",
    )?;
    // The place is free again.
    child
        .domain
        .map(EMPTY, *objects.memory, 0, KIB_4, READ)
        .must("map again")
}

/// Ranges that no call on mapped memory takes.
const BAD_RANGES: [(u64, u64); 10] = [
    (1, KIB_4),
    (2048, KIB_4),
    (0, 1),
    (0, 0),
    (0, KIB_4 + 1),
    (1 << 48, KIB_4),
    ((1 << 48) - KIB_4, 2 * KIB_4),
    (u64::MAX - 4095, KIB_4),
    (u64::MAX - 4095, 2 * KIB_4),
    (0, u64::MAX - 4095),
];

fn unmap_bad_arguments() -> Outcome {
    let objects = Objects::new()?;
    let domain = raw(objects.child.domain.any());
    for (gpa, length) in BAD_RANGES {
        refuses(
            Call::MEMORY_UNMAP,
            [domain, gpa, length],
            Status::BAD_ARGUMENT,
        )?;
    }
    objects.child.word(TABLE).map(drop)
}

fn unmap_not_mapped() -> Outcome {
    let objects = Objects::new()?;
    let domain = raw(objects.child.domain.any());
    for (gpa, length) in [(EMPTY, KIB_4), (1 << 40, KIB_4), ((1 << 48) - KIB_4, KIB_4)] {
        refuses(Call::MEMORY_UNMAP, [domain, gpa, length], Status::NOT_FOUND)?;
    }
    // The first of two is mapped; a step may end behind it.
    refused(
        objects.child.domain.unmap(STACK, 2 * KIB_4),
        Status::NOT_FOUND,
        "one page of two",
    )
}

fn unmap_a_part() -> Outcome {
    let objects = Objects::new()?;
    let child = &objects.child;
    child.domain.unmap(DATA, KIB_4).must("unmap")?;
    refused(
        child.domain.read(DATA, &mut [0]),
        Status::BAD_ADDRESS,
        "the page",
    )?;
    child.word(DATA - 8)?;
    child.word(DATA + KIB_4).map(drop)
}

fn unmap_in_steps() -> Outcome {
    let (objects, memory) = scattered()?;
    map_all(&objects, *memory)?;
    let domain = raw(objects.child.domain.any());
    let length = PAGES * KIB_4;
    let steps = in_steps(Call::MEMORY_UNMAP, length, KIB_4, |done| {
        [domain, ODD + done, length - done, 0, 0, 0]
    })?;
    check!(steps >= 3, "{steps} steps of at most 64 pages");
    for page in [0, 63, 64, PAGES - 1] {
        refused(
            objects.child.domain.read(ODD + page * KIB_4, &mut [0]),
            Status::BAD_ADDRESS,
            "a page",
        )?;
    }
    Ok(())
}

/// Another vCPU reads the page in a loop: the unmapping must reach it, cached translations or not.
fn unmap_what_is_read() -> Outcome {
    let child = Child::new(&Plan::new(snippet!(
        "2: mov rax, [0x100000]",
        "inc qword ptr [0x2000]",
        "jmp 2b"
    )))?;
    let memory = memory(KIB_4)?;
    child
        .domain
        .map(EMPTY, *memory, 0, KIB_4, READ | WRITE)
        .must("map")?;
    child.start()?;
    child.until_change(DATA)?;
    child.domain.unmap(EMPTY, KIB_4).must("unmap")?;
    let info = child.ends(Reason::NESTED_FAULT)?;
    check_eq!(info.info[0], EMPTY, "address");
    check_eq!(info.info[1], 0, "kind: a read of what is not there");
    check_eq!(info.rip, ENTRY, "RIP");
    Ok(())
}

fn protect() -> Outcome {
    let objects = Objects::new()?;
    let child = &objects.child;
    let domain = raw(child.domain.any());
    let done = answers(
        Call::MEMORY_PROTECT,
        [domain, DATA, KIB_4, READ],
        Status::OK,
    )?;
    check_eq!(done, KIB_4, "value");
    refused(child.domain.write(DATA, &[1]), Status::BAD_ADDRESS, "write")?;
    child.word(DATA)?;
    child
        .domain
        .protect(DATA, KIB_4, READ | WRITE)
        .must("protect")?;
    child.set_word(DATA, 1)
}

fn protect_bad_arguments() -> Outcome {
    let objects = Objects::new()?;
    let domain = raw(objects.child.domain.any());
    for (gpa, length) in BAD_RANGES {
        refuses(
            Call::MEMORY_PROTECT,
            [domain, gpa, length, READ],
            Status::BAD_ARGUMENT,
        )?;
    }
    for access in [0, WRITE, EXECUTE, 8 | READ, 1 << 32 | READ, u64::MAX] {
        refuses(
            Call::MEMORY_PROTECT,
            [domain, DATA, KIB_4, access],
            Status::BAD_ARGUMENT,
        )?;
    }
    Ok(())
}

/// A mapping keeps the limits of the handle by which it was made, whatever other handles there are.
fn protect_needs_the_right() -> Outcome {
    let objects = Objects::new()?;
    let child = &objects.child;
    let weak = duplicate(objects.memory.any(), rights::READ | rights::EXECUTE)?;
    child
        .domain
        .map(EMPTY, Memory(weak.0.0), 0, KIB_4, READ)
        .must("map")?;
    let domain = raw(child.domain.any());
    for access in [READ | WRITE, access::ALL] {
        refuses(
            Call::MEMORY_PROTECT,
            [domain, EMPTY, KIB_4, access],
            Status::NO_RIGHT,
        )?;
    }
    for access in [READ | EXECUTE, READ] {
        child.domain.protect(EMPTY, KIB_4, access).must("protect")?;
    }
    refused(
        child.domain.write(EMPTY, &[1]),
        Status::BAD_ADDRESS,
        "write",
    )
}

fn protect_not_mapped() -> Outcome {
    let objects = Objects::new()?;
    let domain = raw(objects.child.domain.any());
    for gpa in [EMPTY, 1 << 40] {
        refuses(
            Call::MEMORY_PROTECT,
            [domain, gpa, KIB_4, READ],
            Status::NOT_FOUND,
        )?;
    }
    refused(
        objects.child.domain.protect(STACK, 2 * KIB_4, READ),
        Status::NOT_FOUND,
        "one page of two",
    )
}

fn protect_what_is_written() -> Outcome {
    let child = Child::running(count())?;
    child.until_change(DATA)?;
    child.domain.protect(DATA, KIB_4, READ).must("protect")?;
    let info = child.ends(Reason::NESTED_FAULT)?;
    check_eq!(info.info[0], DATA, "address");
    check_eq!(
        info.info[1],
        fault::WRITE | fault::PRESENT,
        "kind: a write to what is read-only"
    );
    Ok(())
}

fn protect_in_steps() -> Outcome {
    let (objects, memory) = scattered()?;
    map_all(&objects, *memory)?;
    let domain = raw(objects.child.domain.any());
    let length = PAGES * KIB_4;
    let steps = in_steps(Call::MEMORY_PROTECT, length, KIB_4, |done| {
        [domain, ODD + done, length - done, READ, 0, 0]
    })?;
    check!(steps >= 3, "{steps} steps of at most 64 pages");
    for page in [0, 63, 64, PAGES - 1] {
        refused(
            objects.child.domain.write(ODD + page * KIB_4, &[1]),
            Status::BAD_ADDRESS,
            "a page",
        )?;
    }
    Ok(())
}

const DIRTY_PAGES: u64 = 20;

/// A child that writes to the pages 5 and 9 of twenty, tells so, and does it again when it is told to.
fn writer() -> Result<(Child, Owned<Memory>), Why> {
    let child = Child::new(&Plan::new(snippet!(
        "2: mov byte ptr [0x105000], 1",
        "mov byte ptr [0x109fff], 1",
        "mov rax, [0x103000]",
        "mov qword ptr [0x2000], 1",
        "3: cmp qword ptr [0x2000], 0",
        "jne 3b",
        "jmp 2b"
    )))?;
    let memory = memory(DIRTY_PAGES * KIB_4)?;
    child
        .domain
        .map(EMPTY, *memory, 0, DIRTY_PAGES * KIB_4, READ | WRITE)
        .must("map")?;
    Ok((child, memory))
}

/// Which of the twenty pages were written.
fn dirty_pages(child: &Child) -> Result<u32, Why> {
    let mut bitmap = [0xff; 4];
    child
        .domain
        .dirty(EMPTY, DIRTY_PAGES * KIB_4, &mut bitmap[..3])
        .must("dirty")?;
    check_eq!(bitmap[3], 0xff, "what lies behind the bitmap");
    Ok(u32::from_le_bytes(bitmap) & 0xff_ffff)
}

fn dirty() -> Outcome {
    let (child, _memory) = writer()?;
    check_eq!(dirty_pages(&child)?, 0, "pages before any write");
    child.start()?;
    child.until_word(DATA, 1)?;
    check_eq!(dirty_pages(&child)?, 1 << 5 | 1 << 9, "pages");
    Ok(())
}

fn dirty_forgets() -> Outcome {
    let (child, _memory) = writer()?;
    child.start()?;
    for _ in 0..3 {
        child.until_word(DATA, 1)?;
        check_eq!(dirty_pages(&child)?, 1 << 5 | 1 << 9, "pages");
        check_eq!(dirty_pages(&child)?, 0, "pages, asked again");
        child.set_word(DATA, 0)?;
    }
    Ok(())
}

/// What the kernel writes on somebody's behalf is written, too.
fn dirty_of_a_call() -> Outcome {
    let (child, _memory) = writer()?;
    check_eq!(dirty_pages(&child)?, 0, "pages before any write");
    child.set_word(EMPTY + 3 * KIB_4, 1)?;
    child.word(EMPTY + 4 * KIB_4)?;
    check_eq!(dirty_pages(&child)?, 1 << 3, "pages");
    Ok(())
}

fn dirty_bad_arguments() -> Outcome {
    let objects = Objects::new()?;
    let domain = raw(objects.child.domain.any());
    for (gpa, length) in BAD_RANGES {
        refuses(
            Call::MEMORY_DIRTY,
            [domain, gpa, length, PAGE.address()],
            Status::BAD_ARGUMENT,
        )?;
    }
    Ok(())
}

fn dirty_not_mapped() -> Outcome {
    let objects = Objects::new()?;
    let domain = raw(objects.child.domain.any());
    for gpa in [EMPTY, 1 << 40] {
        refuses(
            Call::MEMORY_DIRTY,
            [domain, gpa, KIB_4, PAGE.address()],
            Status::NOT_FOUND,
        )?;
    }
    refused(
        objects.child.domain.dirty(STACK, 2 * KIB_4, &mut [0]),
        Status::NOT_FOUND,
        "one page of two",
    )
}

fn dirty_in_steps() -> Outcome {
    const PAGES: u64 = 600;
    let domain = Temporary::new(&config(b"dirty"))?;
    let memory = memory(PAGES * KIB_4)?;
    let length = PAGES * KIB_4;
    // No large page begins there.
    domain
        .map(KIB_4, *memory, 0, length, READ | WRITE)
        .must("map")?;
    for page in [0, 511, 512, 599] {
        domain.write((page + 1) * KIB_4, &[1]).must("write")?;
    }
    PAGE.fill(0);
    let handle = raw(domain.any());
    let steps = in_steps(Call::MEMORY_DIRTY, length, 32 << 10, |done| {
        [
            handle,
            KIB_4 + done,
            length - done,
            PAGE.address() + done / KIB_4 / 8,
            0,
            0,
        ]
    })?;
    check!(steps >= 2, "{steps} steps of at most 512 pages");
    for page in 0..PAGES {
        let bit = PAGE.get(page as usize / 8) >> (page % 8) & 1 != 0;
        check!(
            bit == [0, 511, 512, 599].contains(&page),
            "page {page}: {bit}"
        );
    }
    Ok(())
}

/// Two children and the suite see one page.
fn shared_by_two() -> Outcome {
    let producer = Child::new(&Plan::new(snippet!(
        "2: inc qword ptr [0x100000]",
        "jmp 2b"
    )))?;
    let consumer = Child::new(&Plan::new(snippet!(
        "2: mov rax, [0x101000]",
        "mov [0x2000], rax",
        "jmp 2b"
    )))?;
    let memory = memory(KIB_4)?;
    producer
        .domain
        .map(EMPTY, *memory, 0, KIB_4, READ | WRITE)
        .must("map")?;
    consumer
        .domain
        .map(EMPTY + KIB_4, *memory, 0, KIB_4, READ)
        .must("map")?;
    consumer.start()?;
    producer.start()?;
    for _ in 0..3 {
        consumer.until_change(DATA)?;
    }
    let window = Mapped::with(0, *memory, KIB_4, READ)?;
    check!(window.word(0) > 0, "the suite sees nothing");
    producer.domain.kill().must("kill")?;
    producer.ends(Reason::KILLED)?;
    drop(producer);
    consumer.until_word(DATA, window.word(0))
}

fn outlives_its_handle() -> Outcome {
    let memory = memory(KIB_4)?;
    let window = Mapped::new(0, *memory, KIB_4)?;
    drop(memory);
    window.set_word(0, 0x4242);
    sleep(crate::kit::MS);
    check_eq!(window.word(0), 0x4242, "word");
    Ok(())
}

fn outlives_its_mapping() -> Outcome {
    let memory = memory(KIB_4)?;
    let window = Mapped::new(0, *memory, KIB_4)?;
    window.set_word(0, 0x4343);
    drop(window);
    let window = Mapped::new(1, *memory, KIB_4)?;
    check_eq!(window.word(0), 0x4343, "word");
    Ok(())
}

/// Its domain paid for it and is gone; a handle and a mapping in others are left.
fn outlives_its_domain() -> Outcome {
    let child = Child::running(count())?;
    child.until_change(DATA)?;
    let memory = child
        .memory
        .duplicate(rights::MEMORY_OBJECT)
        .must("duplicate")
        .map(Owned)?;
    drop(child);
    let window = Mapped::new(0, *memory, 4 * KIB_4)?;
    let counter = window.word(DATA);
    check!(counter > 0, "the counter is gone");
    drop(memory);
    // Other memory must not be given its frames.
    let other = crate::kit::memory(16 * KIB_4)?;
    check_eq!(window.word(DATA), counter, "counter");
    drop(other);
    Ok(())
}

fn zeroed() -> Outcome {
    let memory = memory(32 * KIB_4)?;
    let window = Mapped::with(0, *memory, 32 * KIB_4, READ)?;
    for offset in (0..32 * KIB_4).step_by(8) {
        check_eq!(window.word(offset), 0, "a word of new memory");
    }
    Ok(())
}

/// What was written by one is not seen by the next.
fn zeroed_again() -> Outcome {
    for _ in 0..4 {
        let memory = memory(8 * KIB_4)?;
        let window = Mapped::new(0, *memory, 8 * KIB_4)?;
        for page in 0..8 {
            check_eq!(window.word(page * KIB_4), 0, "first word of a page");
            check_eq!(window.word(page * KIB_4 + 4088), 0, "last word of a page");
            window.set_word(page * KIB_4, u64::MAX);
            window.set_word(page * KIB_4 + 4088, u64::MAX);
        }
    }
    Ok(())
}

/// Parts of what is mapped by large pages are unmapped and protected.
fn large_pages() -> Outcome {
    let domain = Temporary::new(&config(b"large"))?;
    let memory = memory(MIB_2)?;
    domain
        .map(2 * MIB_2, *memory, 0, MIB_2, READ | WRITE)
        .must("map")?;
    let at = 2 * MIB_2 + 7 * KIB_4;
    domain.write(at, &[1, 2, 3]).must("write")?;
    domain.unmap(at + KIB_4, KIB_4).must("unmap a part")?;
    domain
        .protect(at + 2 * KIB_4, KIB_4, READ)
        .must("protect a part")?;
    let mut seen = [0; 3];
    domain.read(at, &mut seen).must("read")?;
    check!(seen == [1, 2, 3], "{seen:?}");
    refused(
        domain.read(at + KIB_4, &mut seen),
        Status::BAD_ADDRESS,
        "what is unmapped",
    )?;
    refused(
        domain.write(at + 2 * KIB_4, &seen),
        Status::BAD_ADDRESS,
        "what is protected",
    )?;
    domain.write(at + 3 * KIB_4, &seen).must("what is left")?;
    domain.write(3 * MIB_2 - 3, &seen).must("the last bytes")
}

/// The screen's memory of old: device memory on every PC.
const SCREEN: u64 = 0xa_0000;

fn screen() -> Result<Owned<Memory>, Why> {
    system()
        .physical_memory(SCREEN, 2 * KIB_4)
        .must("device memory")
        .map(Owned)
}

fn physical() -> Outcome {
    let memory = screen()?;
    names(
        memory.any(),
        ObjectType::MEMORY,
        rights::READ | rights::WRITE | rights::GRANT,
    )?;
    let info = memory.info().must("info")?;
    check!(
        info == MemoryInfo {
            bytes: 2 * KIB_4,
            populated: info.populated,
            is_physical: 1
        },
        "{info:?}"
    );
    refuses(
        Call::MEMORY_POPULATE,
        [raw(memory.any())],
        Status::WRONG_STATE,
    )?;
    let objects = Objects::new()?;
    Map {
        memory: raw(memory.any()),
        access: READ | EXECUTE,
        ..Map::of(&objects)
    }
    .refused(Status::NO_RIGHT)?;
    objects
        .child
        .domain
        .map(EMPTY, *memory, 0, 2 * KIB_4, READ | WRITE)
        .must("map")?;
    objects.child.domain.unmap(EMPTY, 2 * KIB_4).must("unmap")
}

fn physical_bad_arguments() -> Outcome {
    let machine = raw(system().any());
    for (address, bytes) in [
        (SCREEN, 0),
        (SCREEN, 1),
        (SCREEN + 1, KIB_4),
        (SCREEN, KIB_4 + 1),
        (SCREEN, (1 << 40) + KIB_4),
        (1 << 52, KIB_4),
        (1 << 63, KIB_4),
        (u64::MAX - 4095, KIB_4),
        (u64::MAX - 4095, 2 * KIB_4),
        (SCREEN, u64::MAX - 4095),
    ] {
        refuses(
            Call::MEMORY_PHYSICAL,
            [machine, address, bytes],
            Status::BAD_ARGUMENT,
        )?;
    }
    Ok(())
}

fn physical_of_ram() -> Outcome {
    let machine = raw(system().any());
    for (address, bytes) in [
        (0x10_0000, KIB_4),
        (16 << 20, KIB_4),
        (64 << 20, MIB_2),
        // It begins as device memory.
        (SCREEN, 1 << 20),
    ] {
        refuses(
            Call::MEMORY_PHYSICAL,
            [machine, address, bytes],
            Status::WRONG_STATE,
        )?;
    }
    Ok(())
}

fn physical_of_the_kernels_devices() -> Outcome {
    let machine = raw(system().any());
    // The local APIC.
    for (address, bytes) in [(0xfee0_0000, KIB_4), (0xfedf_f000, 2 * KIB_4)] {
        refuses(
            Call::MEMORY_PHYSICAL,
            [machine, address, bytes],
            Status::WRONG_STATE,
        )?;
    }
    Ok(())
}

fn physical_needs_no_frames() -> Outcome {
    let before = own().info().must("own info")?;
    let _screen = screen()?;
    let after = own().info().must("own info")?;
    check_eq!(after.frames, before.frames, "frames");
    check_eq!(after.handles, before.handles + 1, "handles");
    Ok(())
}

fn info() -> Outcome {
    let child = Child::new(&Plan::new(spin()))?;
    let info = child.memory.info().must("info")?;
    let expected = MemoryInfo {
        bytes: 4 * KIB_4,
        populated: 4 * KIB_4,
        is_physical: 0,
    };
    check!(info == expected, "{info:?}");
    let (status, _) = to_the_end(
        Call::MEMORY_MAP,
        [
            raw(child.memory.any()),
            0,
            raw(own().any()),
            WINDOW,
            KIB_4,
            READ,
        ],
    );
    check!(status == Status::OK, "map: {status:?}");
    own().unmap(WINDOW, KIB_4).must("unmap")
}

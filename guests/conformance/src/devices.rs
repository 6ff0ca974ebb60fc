//! Claims: accesses to ports and addresses of a child arrive at the suite, which completes them.

use core::ops::Range;

use plinth_rt::abi::call::access;
use plinth_rt::abi::device::{self, kind};
use plinth_rt::abi::domain::fault;
use plinth_rt::abi::{
    Call, Claim, DomainConfig, DomainState, Handle, Reason, Slot, Status, VcpuRun, rights,
};
use plinth_rt::object::{Any, Event, Memory, bytes_of};
use plinth_rt::{Outcome, Snippet, Why, check, check_eq, hypercall, object, snippet};
use zerocopy::FromBytes;

use crate::child::{
    self, After, Child, DATA, ENTRY, Plan, Step, Temporary, agents, config, give, spin,
};
use crate::kit::{Must, Owned, duplicate, event, memory, own, raw, refused, refuses, sleep, until};
use crate::objects::Objects;
use crate::window::Mapped;

tests!("device":
    claim,
    claim_bad_values,
    claim_bad_memory,
    claim_bad_event,
    claim_memory_too_small,
    claim_exists,
    claim_over_what_is_mapped,
    claim_over_budget,
    map_over_a_claim,
    release,
    release_bad_arguments,
    release_lets_go_on,
    complete_without_access,
    complete_bad_vcpu,
    complete_and_wait,
    complete_and_wait_waits,
    complete_and_wait_fails_at_once,
    nobody_reads_all_ones,
    out_each_size,
    in_each_size,
    in_keeps_the_rest,
    outs,
    outs_in_pieces,
    ins,
    only_what_is_claimed,
    mmio_reads,
    mmio_extending_reads,
    mmio_writes,
    mmio_string_writes,
    mmio_copies,
    mmio_without_claim,
    mmio_reads_and_writes,
    mmio_comparisons,
    mmio_string_reads,
    mmio_other_instructions,
    mmio_code_rewritten,
    mmio_code_mapped_by_the_guest,
    mmio_code_mapped_by_others,
    sequence_counts,
    tag_comes_back,
    two_vcpus_wait,
    two_claims,
    waits_without_a_cpu,
    pause_while_it_waits,
    kill_while_it_waits,
    destroy_with_claims,
    claimers_end_completes,
    claimers_end_ends_claims,
);

const PORT: u16 = 0x5a0;
/// Where a child's device memory is.
const MMIO: u64 = 0x10_0000;
const TAG: u64 = 0x7461_6721_7461_6721;
const KEY: u64 = 0xdef;

/// A child whose ports or addresses are the suite's to serve.
pub struct Served {
    /// The child.
    pub child: Child,
    slots: Mapped,
    memory: Owned<Memory>,
    event: Owned<Event>,
}

impl Served {
    /// A child that runs this code, its event bound, nothing claimed.
    fn new(plan: &Plan) -> Result<Self, Why> {
        Self::of(Child::new(plan)?)
    }

    /// This child, its event bound, nothing claimed.
    pub fn of(child: Child) -> Result<Self, Why> {
        let memory = memory(4096)?;
        let slots = Mapped::new(0, *memory, 4096)?;
        let event = event()?;
        event.bind(KEY).must("bind")?;
        Ok(Self {
            child,
            slots,
            memory,
            event,
        })
    }

    /// A claim that is told here.
    pub fn claim_of(&self, kind: u32, first: u64, length: u64) -> Claim {
        claim_with(*self.memory, *self.event, kind, first..first + length)
    }

    /// Claims.
    pub fn claim(&self, kind: u32, first: u64, length: u64) -> Outcome {
        self.child
            .domain
            .claim(&self.claim_of(kind, first, length))
            .must("claim")
    }

    /// One that runs this code, with eight ports claimed, started.
    fn ports(code: Snippet) -> Result<Self, Why> {
        let served = Self::new(&Plan::new(code))?;
        served.claim(kind::PORTS, PORT.into(), 8)?;
        served.child.start()?;
        Ok(served)
    }

    /// One that runs this code, with a page claimed, started.
    fn mmio(code: Snippet) -> Result<Self, Why> {
        let served = Self::new(&Plan::new(code))?;
        served.claim(kind::MMIO, MMIO, 4096)?;
        served.child.start()?;
        Ok(served)
    }

    /// A vCPU's slot as it is.
    fn slot(&self, vcpu: u64) -> Result<Slot, Why> {
        let bytes = self
            .slots
            .bytes::<{ size_of::<Slot>() }>(vcpu * size_of::<Slot>() as u64);
        Slot::read_from_bytes(&bytes).map_err(|_| format_args!("no slot").into())
    }

    /// Waits for the next access, which must be of vCPU 0.
    fn access(&self) -> Result<Slot, Why> {
        let deadline = hypercall::clock() + 10_000 * crate::kit::MS;
        check!(
            object::wait(deadline).must("wait")? == Some(KEY),
            "no access"
        );
        self.slot(0)
    }

    /// Waits for the next access, which must be like this one, whatever its number.
    pub fn sees(&self, expected: &Slot) -> Outcome {
        let seen = self.access()?;
        let expected = Slot {
            sequence: seen.sequence,
            data: seen.data,
            ..*expected
        };
        check!(seen == expected, "{seen:x?}, expected {expected:x?}");
        Ok(())
    }

    /// Whether an access has been told since the last.
    pub fn asks(&self) -> Result<bool, Why> {
        Ok(object::wait(0).must("wait")? == Some(KEY))
    }

    /// Completes the access of vCPU 0.
    pub fn complete(&self, value: u64) -> Outcome {
        self.child.domain.complete(0, value).must("complete")
    }
}

/// A claim whose accesses are told in this memory and by this event.
pub fn claim_with(memory: Memory, event: Event, kind: u32, range: Range<u64>) -> Claim {
    Claim {
        kind,
        memory: memory.0.0,
        event: event.0.0,
        reserved: 0,
        first: range.start,
        length: range.end - range.start,
        tag: TAG,
    }
}

/// A read of this kind, as its slot tells it.
pub fn access(kind: u32, address: u64, size: u32) -> Slot {
    Slot {
        sequence: 0,
        tag: TAG,
        address,
        value: 0,
        size,
        kind,
        write: 0,
        count: 1,
        data: [0; device::DATA],
        reserved: [0; 2],
    }
}

fn port_in(offset: u16, size: u32) -> Slot {
    access(kind::PORTS, (PORT + offset).into(), size)
}

fn port_out(offset: u16, size: u32, value: u64) -> Slot {
    Slot {
        write: 1,
        value,
        ..port_in(offset, size)
    }
}

fn read(offset: u64, size: u32) -> Slot {
    access(kind::MMIO, MMIO + offset, size)
}

fn write(offset: u64, size: u32, value: u64) -> Slot {
    Slot {
        write: 1,
        value,
        ..read(offset, size)
    }
}

fn claim() -> Outcome {
    let served = Served::new(&Plan::new(spin()))?;
    served.claim(kind::PORTS, 0, 1)?;
    served.claim(kind::PORTS, 1, 0xffff)?;
    served.claim(kind::MMIO, MMIO, 4096)?;
    served.claim(kind::MMIO, 1 << 40, 1 << 20)?;
    served.claim(kind::MMIO, (1 << 48) - 4096, 4096)
}

fn claim_refused(served: &Served, claim: Claim, status: Status, what: &str) -> Outcome {
    refused(served.child.domain.claim(&claim), status, what)
}

fn claim_bad_values() -> Outcome {
    let served = Served::new(&Plan::new(spin()))?;
    let ports = served.claim_of(kind::PORTS, PORT.into(), 8);
    let mmio = served.claim_of(kind::MMIO, MMIO, 4096);
    for (claim, what) in [
        (Claim { kind: 0, ..ports }, "kind 0"),
        (Claim { kind: 4, ..ports }, "kind 4"),
        (
            Claim {
                kind: kind::ACKNOWLEDGE,
                first: 0,
                length: 1,
                ..ports
            },
            "interrupts of no PC",
        ),
        (
            Claim {
                kind: u32::MAX,
                ..mmio
            },
            "the last kind",
        ),
        (Claim { length: 0, ..ports }, "no ports"),
        (Claim { length: 0, ..mmio }, "no addresses"),
        (
            Claim {
                first: 0x1_0000,
                ..ports
            },
            "first port",
        ),
        (
            Claim {
                first: 0xffff,
                length: 2,
                ..ports
            },
            "last port",
        ),
        (
            Claim {
                first: 1,
                length: 0x1_0000,
                ..ports
            },
            "too many ports",
        ),
        (
            Claim {
                first: 1,
                length: u64::MAX,
                ..ports
            },
            "ports that wrap",
        ),
        (
            Claim {
                first: u64::MAX,
                length: 2,
                ..ports
            },
            "ports that wrap",
        ),
        (
            Claim {
                first: MMIO + 8,
                ..mmio
            },
            "first address",
        ),
        (
            Claim {
                length: 100,
                ..mmio
            },
            "length",
        ),
        (
            Claim {
                length: 4097,
                ..mmio
            },
            "length",
        ),
        (
            Claim {
                first: 1 << 48,
                ..mmio
            },
            "beyond 48 bits",
        ),
        (
            Claim {
                first: (1 << 48) - 4096,
                length: 8192,
                ..mmio
            },
            "across 48 bits",
        ),
        (
            Claim {
                first: u64::MAX - 4095,
                length: 8192,
                ..mmio
            },
            "addresses that wrap",
        ),
        (
            Claim {
                reserved: 1,
                ..ports
            },
            "reserved",
        ),
        (
            Claim {
                reserved: 1 << 31,
                ..mmio
            },
            "reserved",
        ),
    ] {
        claim_refused(&served, claim, Status::BAD_ARGUMENT, what)?;
    }
    Ok(())
}

fn claim_bad_memory() -> Outcome {
    let served = Served::new(&Plan::new(spin()))?;
    let good = served.claim_of(kind::PORTS, PORT.into(), 8);
    let refused = |memory: Handle, status, what| {
        claim_refused(
            &served,
            Claim {
                memory: memory.0,
                ..good
            },
            status,
            what,
        )
    };
    refused(Handle::NONE, Status::BAD_HANDLE, "no memory")?;
    refused(Handle(u32::MAX), Status::BAD_HANDLE, "no such memory")?;
    refused(served.event.0.0, Status::WRONG_TYPE, "an event for memory")?;
    for lacking in [rights::READ, rights::WRITE] {
        let weak = duplicate(served.memory.any(), rights::MEMORY_OBJECT & !lacking)?;
        refused(weak.0.0, Status::NO_RIGHT, "weak memory")?;
    }
    let (_, value) = plinth_rt::hypercall::call(Call::MEMORY_CREATE, [raw(own().any()), 4096]);
    let empty = Owned(Any(Handle(value as u32)));
    refused(empty.0.0, Status::WRONG_STATE, "memory without frames")
}

fn claim_bad_event() -> Outcome {
    let served = Served::new(&Plan::new(spin()))?;
    let good = served.claim_of(kind::PORTS, PORT.into(), 8);
    let refused = |event: Handle, status, what| {
        claim_refused(
            &served,
            Claim {
                event: event.0,
                ..good
            },
            status,
            what,
        )
    };
    refused(Handle::NONE, Status::BAD_HANDLE, "no event")?;
    refused(Handle(u32::MAX), Status::BAD_HANDLE, "no such event")?;
    refused(served.memory.0.0, Status::WRONG_TYPE, "memory for an event")?;
    let weak = duplicate(served.event.any(), rights::EVENT & !rights::SIGNAL)?;
    refused(weak.0.0, Status::NO_RIGHT, "weak event")
}

/// A page holds the slots of 32 vCPUs.
fn claim_memory_too_small() -> Outcome {
    let served = Served::new(&Plan::new(spin()))?;
    for (vcpus, good) in [(32, true), (33, false), (64, false)] {
        let domain = Temporary::new(&DomainConfig {
            vcpus,
            ..config(b"wide")
        })?;
        let result = domain.claim(&served.claim_of(kind::PORTS, PORT.into(), 8));
        if good {
            result.must("claim")?;
        } else {
            refused(result, Status::BAD_ARGUMENT, "slots beyond the memory")?;
        }
    }
    Ok(())
}

fn claim_exists() -> Outcome {
    let served = Served::new(&Plan::new(spin()))?;
    served.claim(kind::PORTS, 0x100, 16)?;
    for (first, length) in [
        (0x100, 16),
        (0xff, 2),
        (0x10f, 1),
        (0x10f, 100),
        (0, 0x1_0000),
    ] {
        claim_refused(
            &served,
            served.claim_of(kind::PORTS, first, length),
            Status::EXISTS,
            "ports",
        )?;
    }
    served.claim(kind::PORTS, 0xff, 1)?;
    served.claim(kind::PORTS, 0x110, 1)?;
    served.claim(kind::MMIO, MMIO, 8192)?;
    for (first, length) in [(MMIO, 4096), (MMIO + 4096, 8192), (MMIO - 4096, 1 << 20)] {
        claim_refused(
            &served,
            served.claim_of(kind::MMIO, first, length),
            Status::EXISTS,
            "addresses",
        )?;
    }
    // Another domain has ports of its own.
    Child::new(&Plan::new(spin()))?
        .domain
        .claim(&served.claim_of(kind::PORTS, 0x100, 16))
        .must("claim of another child's")
}

fn claim_over_what_is_mapped() -> Outcome {
    let served = Served::new(&Plan::new(spin()))?;
    for (first, length) in [(0, 4096), (DATA, 4096), (DATA, 1 << 20)] {
        claim_refused(
            &served,
            served.claim_of(kind::MMIO, first, length),
            Status::EXISTS,
            "what is mapped",
        )?;
    }
    Ok(())
}

fn claim_over_budget() -> Outcome {
    let served = Served::new(&Plan::new(spin()))?;
    let domain = Temporary::new(&DomainConfig {
        heap: DomainConfig::LEAST_HEAP,
        ..config(b"poor")
    })?;
    let mut claims = 0;
    let status = loop {
        check!(claims < 4096, "{claims} claims in 16 KiB of heap");
        let claim = served.claim_of(kind::PORTS, claims * 2, 1);
        match domain.claim(&claim) {
            Ok(()) => claims += 1,
            Err(status) => break status,
        }
    };
    check!(
        status == Status::OVER_BUDGET,
        "{status:?} after {claims} claims"
    );
    let info = domain.info().must("info")?;
    check!(info.heap <= info.max_heap, "beyond its budget");
    Ok(())
}

fn map_over_a_claim() -> Outcome {
    let served = Served::new(&Plan::new(spin()))?;
    served.claim(kind::MMIO, MMIO + 4096, 4096)?;
    let memory = memory(8192)?;
    let domain = &served.child.domain;
    refused(
        domain.map(MMIO, *memory, 0, 8192, access::READ),
        Status::EXISTS,
        "map across a claim",
    )?;
    domain
        .map(MMIO, *memory, 0, 4096, access::READ)
        .must("map beside it")?;
    domain.release(kind::MMIO, MMIO + 4096).must("release")?;
    domain
        .map(MMIO + 4096, *memory, 0, 4096, access::READ)
        .must("map in its place")
}

fn release() -> Outcome {
    let served = Served::new(&Plan::new(spin()))?;
    let domain = &served.child.domain;
    for _ in 0..3 {
        served.claim(kind::PORTS, PORT.into(), 8)?;
        domain.release(kind::PORTS, PORT.into()).must("release")?;
        refused(
            domain.release(kind::PORTS, PORT.into()),
            Status::NOT_FOUND,
            "release again",
        )?;
    }
    Ok(())
}

fn release_bad_arguments() -> Outcome {
    let served = Served::new(&Plan::new(spin()))?;
    served.claim(kind::PORTS, PORT.into(), 8)?;
    let domain = raw(served.child.domain.any());
    for kind in [0, 4, 1 << 32 | 1, u64::MAX] {
        refuses(
            Call::DEVICE_RELEASE,
            [domain, kind, PORT.into()],
            Status::BAD_ARGUMENT,
        )?;
    }
    for (kind, first) in [
        (kind::PORTS, u64::from(PORT) + 1),
        (kind::PORTS, 0),
        (kind::MMIO, PORT.into()),
        (kind::MMIO, MMIO),
    ] {
        refuses(
            Call::DEVICE_RELEASE,
            [domain, kind.into(), first],
            Status::NOT_FOUND,
        )?;
    }
    Ok(())
}

/// A read by IN of four bytes; the child then shows RAX and waits.
fn read_port() -> Snippet {
    snippet!(
        "mov rax, -1",
        "mov edx, 0x5a0",
        "in eax, dx",
        "mov [0x2000], rax",
        "mov qword ptr [0x2008], 1",
        "2: jmp 2b"
    )
}

fn release_lets_go_on() -> Outcome {
    let served = Served::ports(read_port())?;
    served.sees(&port_in(0, 4))?;
    served
        .child
        .domain
        .release(kind::PORTS, PORT.into())
        .must("release")?;
    served.child.until_word(DATA + 8, 1)?;
    check_eq!(served.child.word(DATA)?, 0xffff_ffff, "RAX");
    refused(
        served.child.domain.complete(0, 1),
        Status::WRONG_STATE,
        "complete",
    )
}

fn complete_without_access() -> Outcome {
    let served = Served::ports(read_port())?;
    served.sees(&port_in(0, 4))?;
    served.complete(0x12)?;
    served.child.until_word(DATA + 8, 1)?;
    for _ in 0..2 {
        refused(
            served.child.domain.complete(0, 0x13),
            Status::WRONG_STATE,
            "complete",
        )?;
    }
    check_eq!(served.child.word(DATA)?, 0x12, "RAX");
    Ok(())
}

fn complete_bad_vcpu() -> Outcome {
    let served = Served::new(&Plan::new(spin()))?;
    let domain = raw(served.child.domain.any());
    for vcpu in [1, 63, 64, u64::from(u32::MAX)] {
        refuses(Call::DEVICE_COMPLETE, [domain, vcpu, 0], Status::NOT_FOUND)?;
    }
    for vcpu in [1 << 32, u64::MAX] {
        refuses(
            Call::DEVICE_COMPLETE,
            [domain, vcpu, 0],
            Status::BAD_ARGUMENT,
        )?;
    }
    Ok(())
}

/// It completes, and gives the next event as WAIT does.
fn complete_and_wait() -> Outcome {
    let served = Served::ports(snippet!(
        "mov edx, 0x5a0",
        "in eax, dx",
        "mov [0x2000], rax",
        "in eax, dx",
        "mov [0x2008], rax",
        "mov qword ptr [0x2010], 1",
        "2: jmp 2b"
    ))?;
    served.sees(&port_in(0, 4))?;
    let deadline = hypercall::clock() + 10_000 * crate::kit::MS;
    let next = served.child.domain.complete_and_wait(0, 0x12, deadline);
    check!(next == Ok(Some(KEY)), "the next access: {next:?}");
    check_eq!(served.child.word(DATA)?, 0x12, "the first answer");
    served.complete(0x34)?;
    served.child.until_word(DATA + 16, 1)?;
    check_eq!(served.child.word(DATA + 8)?, 0x34, "the second answer");
    Ok(())
}

/// Without an event it waits to the deadline, which 0 is at once.
fn complete_and_wait_waits() -> Outcome {
    for wait in [0, 20 * crate::kit::MS] {
        let served = Served::ports(read_port())?;
        served.sees(&port_in(0, 4))?;
        let start = hypercall::clock();
        let deadline = if wait == 0 { 0 } else { start + wait };
        let domain = &served.child.domain;
        let result = domain.complete_and_wait(0, 0x12, deadline);
        check!(result == Ok(None), "in time: {result:?}");
        check!(hypercall::clock() >= start + wait, "it did not wait");
        served.child.until_word(DATA + 8, 1)?;
        check_eq!(served.child.word(DATA)?, 0x12, "RAX");
    }
    Ok(())
}

/// What cannot be completed is not waited for, and no event is taken.
fn complete_and_wait_fails_at_once() -> Outcome {
    let served = Served::ports(read_port())?;
    served.sees(&port_in(0, 4))?;
    served.complete(0)?;
    served.child.until_word(DATA + 8, 1)?;
    served.event.signal().must("signal")?;
    let domain = &served.child.domain;
    let result = domain.complete_and_wait(0, 1, u64::MAX);
    check!(
        result == Err(Status::WRONG_STATE),
        "nobody waits: {result:?}"
    );
    let result = domain.complete_and_wait(1, 1, u64::MAX);
    check!(result == Err(Status::NOT_FOUND), "no such vCPU: {result:?}");
    check!(served.asks()?, "the event is gone");
    Ok(())
}

fn nobody_reads_all_ones() -> Outcome {
    let child = Child::running(read_port())?;
    child.until_word(DATA + 8, 1)?;
    check_eq!(child.word(DATA)?, 0xffff_ffff, "RAX");
    Ok(())
}

fn out_each_size() -> Outcome {
    let served = Served::ports(snippet!(
        "mov rax, 0x1122334455667788",
        "mov edx, 0x5a0",
        "out dx, al",
        "mov edx, 0x5a2",
        "out dx, ax",
        "mov edx, 0x5a4",
        "out dx, eax",
        "mov qword ptr [0x2008], 1",
        "2: jmp 2b"
    ))?;
    for expected in [
        port_out(0, 1, 0x88),
        port_out(2, 2, 0x7788),
        port_out(4, 4, 0x5566_7788),
    ] {
        served.sees(&expected)?;
        check_eq!(served.child.word(DATA + 8)?, 0, "it went on before");
        served.complete(u64::MAX)?;
    }
    served.child.until_word(DATA + 8, 1)
}

fn in_each_size() -> Outcome {
    let served = Served::ports(snippet!(
        "xor eax, eax",
        "mov edx, 0x5a1",
        "in al, dx",
        "mov [0x2000], rax",
        "xor eax, eax",
        "mov edx, 0x5a2",
        "in ax, dx",
        "mov [0x2008], rax",
        "xor eax, eax",
        "mov edx, 0x5a4",
        "in eax, dx",
        "mov [0x2010], rax",
        "mov qword ptr [0x2018], 1",
        "2: jmp 2b"
    ))?;
    for (offset, size) in [(1, 1), (2, 2), (4, 4)] {
        served.sees(&port_in(offset, size))?;
        served.complete(0x99aa_bbcc_ddee_ff00 | u64::from(size))?;
    }
    served.child.until_word(DATA + 0x18, 1)?;
    served
        .child
        .holds(&[(0, 0x01), (8, 0xff02), (16, 0xddee_ff04)], "RAX")
}

/// IN of one or two bytes leaves the rest of RAX alone; of four it clears the upper half.
fn in_keeps_the_rest() -> Outcome {
    let served = Served::ports(snippet!(
        "mov rax, -1",
        "mov edx, 0x5a0",
        "in al, dx",
        "mov [0x2000], rax",
        "mov rax, -1",
        "in ax, dx",
        "mov [0x2008], rax",
        "mov rax, -1",
        "in eax, dx",
        "mov [0x2010], rax",
        "mov qword ptr [0x2018], 1",
        "2: jmp 2b"
    ))?;
    for size in [1, 2, 4] {
        served.sees(&port_in(0, size))?;
        served.complete(0)?;
    }
    served.child.until_word(DATA + 0x18, 1)?;
    served
        .child
        .holds(&[(0, !0xff), (8, !0xffff), (16, 0)], "RAX")
}

/// The elements of a string access so far, in order; completes accesses until there are so many bytes.
fn collect(served: &Served, size: u32, buffer: &mut [u8]) -> Result<usize, Why> {
    let (mut at, mut accesses) = (0, 0);
    while at < buffer.len() {
        let slot = served.access()?;
        let bytes = (slot.count * size) as usize;
        check!(
            slot.size == size && slot.write == 1 && slot.address == PORT.into(),
            "{slot:x?}"
        );
        check!(
            slot.count > 0 && bytes <= device::DATA && at + bytes <= buffer.len(),
            "{} elements after {at} bytes",
            slot.count
        );
        buffer[at..at + bytes].copy_from_slice(&slot.data[..bytes]);
        at += bytes;
        accesses += 1;
        served.complete(0)?;
    }
    Ok(accesses)
}

fn outs() -> Outcome {
    for (code, size) in [
        (
            snippet!(
                "cld",
                "mov edx, 0x5a0",
                "mov esi, 0x2100",
                "mov ecx, 6",
                "rep outsb",
                "2: jmp 2b"
            ),
            1,
        ),
        (
            snippet!(
                "cld",
                "mov edx, 0x5a0",
                "mov esi, 0x2100",
                "mov ecx, 6",
                "rep outsw",
                "2: jmp 2b"
            ),
            2,
        ),
        (
            snippet!(
                "cld",
                "mov edx, 0x5a0",
                "mov esi, 0x2100",
                "mov ecx, 6",
                "rep outsd",
                "2: jmp 2b"
            ),
            4,
        ),
    ] {
        let served = Served::new(&Plan::new(code))?;
        let text: [u8; 24] = core::array::from_fn(|index| index as u8 + 0x40);
        served.child.write(DATA + 0x100, &text)?;
        served.claim(kind::PORTS, PORT.into(), 8)?;
        served.child.start()?;
        let mut seen = [0; 24];
        let bytes = 6 * size as usize;
        collect(&served, size, &mut seen[..bytes])?;
        check!(seen[..bytes] == text[..bytes], "{seen:x?}");
    }
    Ok(())
}

fn outs_in_pieces() -> Outcome {
    let served = Served::new(&Plan::new(snippet!(
        "cld",
        "mov edx, 0x5a0",
        "mov esi, 0x2100",
        "mov ecx, 200",
        "rep outsb",
        "mov [0x2000], rsi",
        "mov [0x2008], rcx",
        "mov qword ptr [0x2010], 1",
        "2: jmp 2b"
    )))?;
    let text: [u8; 200] = core::array::from_fn(|index| index as u8);
    served.child.write(DATA + 0x100, &text)?;
    served.claim(kind::PORTS, PORT.into(), 8)?;
    served.child.start()?;
    let mut seen = [0; 200];
    let accesses = collect(&served, 1, &mut seen)?;
    check!(seen == text, "not what was written");
    check!(accesses >= 4, "{accesses} accesses of at most 64 bytes");
    served.child.until_word(DATA + 16, 1)?;
    check_eq!(served.child.word(DATA)?, DATA + 0x100 + 200, "RSI");
    check_eq!(served.child.word(DATA + 8)?, 0, "RCX");
    Ok(())
}

fn ins() -> Outcome {
    let served = Served::ports(snippet!(
        "cld",
        "mov edx, 0x5a0",
        "mov edi, 0x2100",
        "mov ecx, 40",
        "rep insw",
        "mov [0x2000], rdi",
        "mov qword ptr [0x2010], 1",
        "2: jmp 2b"
    ))?;
    let text: [u8; 80] = core::array::from_fn(|index| index as u8 ^ 0x33);
    let mut at = 0;
    while at < 80 {
        let slot = served.access()?;
        let bytes = slot.count as usize * 2;
        check!(
            slot.size == 2 && slot.write == 0 && slot.count > 0 && bytes <= device::DATA,
            "{slot:x?}"
        );
        check!(at + bytes <= 80, "{} elements after {at}", slot.count);
        let data = core::mem::offset_of!(Slot, data) as u64;
        served.slots.write(data, &text[at..at + bytes]);
        at += bytes;
        // A single element may come by value.
        served.complete(u64::from_le_bytes(core::array::from_fn(|index| {
            text.get(at - bytes + index).copied().unwrap_or(0)
        })))?;
    }
    served.child.until_word(DATA + 16, 1)?;
    let mut seen = [0; 80];
    served
        .child
        .domain
        .read(DATA + 0x100, &mut seen)
        .must("read")?;
    check!(seen == text, "not what was given: {:x?}", &seen[..16]);
    check_eq!(served.child.word(DATA)?, DATA + 0x100 + 80, "RDI");
    Ok(())
}

/// The ports before and behind a claim are nobody's.
fn only_what_is_claimed() -> Outcome {
    let served = Served::ports(snippet!(
        "mov edx, 0x59f",
        "in al, dx",
        "mov [0x2000], al",
        "mov edx, 0x5a8",
        "in al, dx",
        "mov [0x2001], al",
        "mov edx, 0x5a7",
        "in al, dx",
        "mov [0x2002], al",
        "mov qword ptr [0x2010], 1",
        "2: jmp 2b"
    ))?;
    served.sees(&port_in(7, 1))?;
    served.complete(0x11)?;
    served.child.until_word(DATA + 16, 1)?;
    check_eq!(served.child.word(DATA)?, 0x11_ffff, "what was read");
    Ok(())
}

fn mmio_reads() -> Outcome {
    let served = Served::mmio(snippet!(
        "mov rbx, 0x100000",
        "mov rax, -1",
        "mov al, [rbx + 1]",
        "mov [0x2000], rax",
        "mov rax, -1",
        "mov ax, [rbx + 2]",
        "mov [0x2008], rax",
        "mov rcx, -1",
        "mov ecx, [rbx + 4]",
        "mov [0x2010], rcx",
        "mov r13, [rbx + 0xff8]",
        "mov [0x2018], r13",
        "mov qword ptr [0x2020], 1",
        "2: jmp 2b"
    ))?;
    for (offset, size) in [(1, 1), (2, 2), (4, 4), (0xff8, 8)] {
        served.sees(&read(offset, size))?;
        served.complete(0x8182_8384_8586_8788)?;
    }
    served.child.until_word(DATA + 0x20, 1)?;
    served.child.holds(
        &[
            (0, 0xffff_ffff_ffff_ff88),
            (8, 0xffff_ffff_ffff_8788),
            (16, 0x8586_8788),
            (24, 0x8182_8384_8586_8788),
        ],
        "register",
    )
}

fn mmio_extending_reads() -> Outcome {
    let served = Served::mmio(snippet!(
        "mov rbx, 0x100000",
        "movzx eax, byte ptr [rbx]",
        "mov [0x2000], rax",
        "movzx rax, word ptr [rbx]",
        "mov [0x2008], rax",
        "movsx eax, byte ptr [rbx]",
        "mov [0x2010], rax",
        "movsx rax, word ptr [rbx]",
        "mov [0x2018], rax",
        "movsxd rax, dword ptr [rbx]",
        "mov [0x2020], rax",
        "mov qword ptr [0x2028], 1",
        "2: jmp 2b"
    ))?;
    for size in [1, 2, 1, 2, 4] {
        served.sees(&read(0, size))?;
        served.complete(0x8182_8384_8586_8788)?;
    }
    served.child.until_word(DATA + 0x28, 1)?;
    served.child.holds(
        &[
            (0, 0x88),
            (8, 0x8788),
            (0x10, 0xffff_ff88),
            (0x18, 0xffff_ffff_ffff_8788),
            (0x20, 0xffff_ffff_8586_8788),
        ],
        "register",
    )
}

fn mmio_writes() -> Outcome {
    let served = Served::mmio(snippet!(
        "mov rbx, 0x100000",
        "mov rax, 0x1122334455667788",
        "mov [rbx], al",
        "mov [rbx + 1], ah",
        "mov [rbx + 2], ax",
        "mov [rbx + 4], eax",
        "mov [rbx + 8], rax",
        "mov byte ptr [rbx], 0x7f",
        "mov word ptr [rbx], 0x1234",
        "mov dword ptr [rbx], 0x12345678",
        "mov qword ptr [rbx], -2",
        "mov qword ptr [0x2000], 1",
        "2: jmp 2b"
    ))?;
    for expected in [
        write(0, 1, 0x88),
        write(1, 1, 0x77),
        write(2, 2, 0x7788),
        write(4, 4, 0x5566_7788),
        write(8, 8, 0x1122_3344_5566_7788),
        write(0, 1, 0x7f),
        write(0, 2, 0x1234),
        write(0, 4, 0x1234_5678),
        write(0, 8, u64::MAX - 1),
    ] {
        served.sees(&expected)?;
        served.complete(0)?;
    }
    served.child.until_word(DATA, 1)
}

/// Takes writes of elements one after the other, whether they come singly or several at once.
fn mmio_elements(served: &Served, size: u32, expected: &[u64]) -> Outcome {
    let mut at = 0;
    while at < expected.len() {
        let slot = served.access()?;
        check!(
            slot.kind == kind::MMIO && slot.size == size && slot.write == 1 && slot.count > 0,
            "{slot:x?}"
        );
        check_eq!(slot.address, MMIO + at as u64 * u64::from(size), "address");
        for index in 0..slot.count as usize {
            let element = match slot.count {
                1 => slot.value,
                _ => slot
                    .data
                    .iter()
                    .skip(index * size as usize)
                    .take(size as usize)
                    .rev()
                    .fold(0, |value, byte| value << 8 | u64::from(*byte)),
            };
            check!(
                expected.get(at) == Some(&element),
                "element {at}: {element:#x}"
            );
            at += 1;
        }
        served.complete(0)?;
    }
    Ok(())
}

fn mmio_string_writes() -> Outcome {
    let served = Served::mmio(snippet!(
        "cld",
        "mov edi, 0x100000",
        "mov rax, 0x1122334455667788",
        "mov ecx, 5",
        "rep stosd",
        "mov [0x2000], rdi",
        "mov [0x2008], rcx",
        "mov qword ptr [0x2010], 1",
        "2: jmp 2b"
    ))?;
    mmio_elements(&served, 4, &[0x5566_7788; 5])?;
    served.child.until_word(DATA + 16, 1)?;
    check_eq!(served.child.word(DATA)?, MMIO + 20, "RDI");
    check_eq!(served.child.word(DATA + 8)?, 0, "RCX");
    Ok(())
}

/// MOVS from memory to a device, and back.
fn mmio_copies() -> Outcome {
    let served = Served::new(&Plan::new(snippet!(
        "cld",
        "mov esi, 0x2100",
        "mov edi, 0x100000",
        "mov ecx, 3",
        "rep movsd",
        "mov esi, 0x100010",
        "mov edi, 0x2200",
        "movsq",
        "mov [0x2000], rsi",
        "mov [0x2008], rdi",
        "mov qword ptr [0x2010], 1",
        "2: jmp 2b"
    )))?;
    served.child.set_word(DATA + 0x100, 0x0000_0002_0000_0001)?;
    served.child.set_word(DATA + 0x108, 3)?;
    served.claim(kind::MMIO, MMIO, 4096)?;
    served.child.start()?;
    mmio_elements(&served, 4, &[1, 2, 3])?;
    served.sees(&read(0x10, 8))?;
    served.complete(0xa5a5_0000_5a5a_1111)?;
    served.child.until_word(DATA + 16, 1)?;
    check_eq!(
        served.child.word(DATA + 0x200)?,
        0xa5a5_0000_5a5a_1111,
        "copy"
    );
    check_eq!(served.child.word(DATA)?, MMIO + 0x18, "RSI");
    check_eq!(served.child.word(DATA + 8)?, DATA + 0x208, "RDI");
    Ok(())
}

fn mmio_without_claim() -> Outcome {
    let served = Served::mmio(snippet!("mov al, [0x100fff]", "mov al, [0x101000]"))?;
    served.sees(&read(0xfff, 1))?;
    served.complete(0)?;
    let info = served.child.ends(Reason::NESTED_FAULT)?;
    check_eq!(info.info[0], MMIO + 4096, "address");
    check_eq!(info.info[1], 0, "kind: a read of what is not there");
    Ok(())
}

/// What reads and writes makes two accesses, of which the first decides about the second.
fn mmio_reads_and_writes() -> Outcome {
    let served = Served::mmio(snippet!(
        "mov ebx, 0x100000",
        "mov eax, 5",
        "add [rbx], eax",
        "setc [0x2000]",
        "mov eax, 0x0ff0",
        "and [rbx + 8], ax",
        "mov rax, 0x1234",
        "xchg [rbx + 16], rax",
        "mov [0x2008], rax",
        "or byte ptr [rbx], 0x80",
        "mov qword ptr [0x2010], 1",
        "2: jmp 2b"
    ))?;
    for (offset, size, before, after) in [
        (0, 4, 0xffff_ffff, 4),
        (8, 2, 0x1234, 0x0230),
        (16, 8, 0xfeed, 0x1234),
        (0, 1, 0x01, 0x81),
    ] {
        served.sees(&read(offset, size))?;
        served.complete(before)?;
        served.sees(&write(offset, size, after))?;
        served.complete(0)?;
    }
    served.child.until_word(DATA + 16, 1)?;
    check_eq!(served.child.word(DATA)?, 1, "carry of the sum");
    check_eq!(served.child.word(DATA + 8)?, 0xfeed, "what was exchanged");
    Ok(())
}

/// CMP and TEST only read, and set flags.
fn mmio_comparisons() -> Outcome {
    let served = Served::mmio(snippet!(
        "mov ebx, 0x100000",
        "cmp dword ptr [rbx], 7",
        "sete [0x2000]",
        "mov eax, 0x10",
        "test [rbx], al",
        "setnz [0x2001]",
        "sub eax, [rbx]",
        "mov [0x2004], eax",
        "mov qword ptr [0x2008], 1",
        "2: jmp 2b"
    ))?;
    for (size, value) in [(4, 7), (1, 0xff), (4, 6)] {
        served.sees(&read(0, size))?;
        served.complete(value)?;
    }
    served.child.until_word(DATA + 8, 1)?;
    check_eq!(served.child.word(DATA)?, 0x0a_0000_0101, "results");
    Ok(())
}

fn mmio_string_reads() -> Outcome {
    let served = Served::mmio(snippet!(
        "cld",
        "mov esi, 0x100000",
        "lodsd",
        "mov [0x2000], rax",
        "mov ecx, 2",
        "rep lodsb",
        "mov [0x2008], al",
        "mov [0x2010], rsi",
        "mov qword ptr [0x2018], 1",
        "2: jmp 2b"
    ))?;
    for (offset, size, value) in [(0, 4, 0x1122_3344), (4, 1, 0x55), (5, 1, 0x66)] {
        served.sees(&read(offset, size))?;
        served.complete(value)?;
    }
    served.child.until_word(DATA + 0x18, 1)?;
    check_eq!(served.child.word(DATA)?, 0x1122_3344, "RAX");
    check_eq!(served.child.word(DATA + 8)?, 0x66, "AL");
    check_eq!(served.child.word(DATA + 16)?, MMIO + 6, "RSI");
    Ok(())
}

fn mmio_other_instructions() -> Outcome {
    for (code, kind) in [
        (snippet!("inc qword ptr [0x100000]"), None),
        (snippet!("lock cmpxchg [0x100000], eax"), None),
        (snippet!("movups xmm0, [0x100000]"), Some(0)),
        (snippet!("movups [0x100000], xmm0"), Some(fault::WRITE)),
        (snippet!("push qword ptr [0x100000]"), Some(0)),
        (snippet!("imul eax, [0x100000]"), Some(0)),
        (snippet!("mov rax, 0x100000", "jmp rax"), Some(fault::FETCH)),
    ] {
        let served = Served::mmio(code)?;
        let info = served.child.ends(Reason::NESTED_FAULT)?;
        check_eq!(info.info[0], MMIO, "address");
        if let Some(kind) = kind {
            check_eq!(info.info[1] & !fault::PRESENT, kind, "kind");
        }
        let seen = object::wait(0).must("wait")?;
        check!(seen.is_none(), "it arrived at the claimer");
    }
    Ok(())
}

/// Reads four bytes of device memory for ever, and flushes its TLB after each: `mov eax, [rcx]`, `mov rax, cr3`, `mov cr3, rax`,
/// `jmp`.
const READS_FOUR: [u8; 10] = [0x8b, 1, 0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8, 0xeb, 0xf6];
/// As [`READS_FOUR`], but one byte: `mov al, [rcx]`.
const READS_ONE: [u8; 10] = [0x8a, 1, 0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8, 0xeb, 0xf6];

/// A child that is at [`READS_FOUR`] at this address: its third access waits, so that whatever is remembered of it is.
fn reader(code: u64, prepare: impl FnOnce(&Child) -> Outcome) -> Result<Served, Why> {
    let served = Served::new(&Plan {
        pages: 8,
        ..Plan::new(snippet!("mov ecx, 0x100000", "jmp rax"))
    })?;
    served.claim(kind::MMIO, MMIO, 4096)?;
    prepare(&served.child)?;
    served.child.set(0, |state| state.rax = code)?;
    served.child.start()?;
    for _ in 0..2 {
        served.sees(&read(0, 4))?;
        served.complete(0)?;
    }
    served.sees(&read(0, 4))?;
    Ok(served)
}

/// What it executes next is the other instruction at the same place.
fn reads_one(served: &Served) -> Outcome {
    served.complete(0)?;
    for _ in 0..3 {
        served.sees(&read(0, 1))?;
        served.complete(0)?;
    }
    Ok(())
}

fn mmio_code_rewritten() -> Outcome {
    // At the start of a page, near its end, at its end, across it.
    for place in [0x5000, 0x5ff9, 0x5ffe, 0x5fff] {
        let served = reader(place, |child| child.write(place, &READS_FOUR))?;
        served.child.write(place, &READS_ONE)?;
        reads_one(&served)?;
    }
    Ok(())
}

/// The guest's page table leads to another page with another instruction.
fn mmio_code_mapped_by_the_guest() -> Outcome {
    const LINEAR: u64 = 0x10_000;
    const ENTRY: u64 = child::TABLE + LINEAR / 4096 * 8;
    let served = reader(LINEAR, |child| {
        child.write(0x5000, &READS_FOUR)?;
        child.write(0x6000, &READS_ONE)?;
        child.set_word(ENTRY, 0x5003)
    })?;
    served.child.set_word(ENTRY, 0x6003)?;
    reads_one(&served)
}

/// Other memory is mapped at the guest-physical address.
fn mmio_code_mapped_by_others() -> Outcome {
    const GPA: u64 = 0x20_000;
    let all = access::READ | access::WRITE | access::EXECUTE;
    let (before, after) = (memory(4096)?, memory(4096)?);
    let served = reader(GPA, |child| {
        child.domain.map(GPA, *before, 0, 4096, all).must("map")?;
        child.write(GPA, &READS_FOUR)
    })?;
    let child = &served.child;
    child.domain.unmap(GPA, 4096).must("unmap")?;
    child.domain.map(GPA, *after, 0, 4096, all).must("map")?;
    child.write(GPA, &READS_ONE)?;
    reads_one(&served)
}

/// A read of one byte without end.
fn read_for_ever() -> Snippet {
    snippet!(
        "mov edx, 0x5a0",
        "2: in al, dx",
        "inc qword ptr [0x2000]",
        "jmp 2b"
    )
}

fn sequence_counts() -> Outcome {
    let served = Served::ports(read_for_ever())?;
    for number in 1..20 {
        check_eq!(served.access()?.sequence, number, "sequence");
        served.complete(0)?;
    }
    Ok(())
}

fn tag_comes_back() -> Outcome {
    let served = Served::new(&Plan::new(read_port()))?;
    for tag in [0, u64::MAX] {
        let claim = Claim {
            tag,
            ..served.claim_of(kind::PORTS, PORT.into(), 8)
        };
        let child = Child::new(&Plan::new(read_port()))?;
        child.domain.claim(&claim).must("claim")?;
        child.start()?;
        check_eq!(served.access()?.tag, tag, "tag");
    }
    Ok(())
}

fn two_vcpus_wait() -> Outcome {
    let served = Served::new(&Plan {
        vcpus: 2,
        ..Plan::new(snippet!(
            "mov rdx, rbx",
            "in al, dx",
            "mov [rbp], al",
            "2: jmp 2b"
        ))
    })?;
    for vcpu in 0..2 {
        served.child.set(vcpu, |state| {
            state.rbx = u64::from(PORT) + vcpu as u64;
            state.rbp = DATA + vcpu as u64 * 8;
        })?;
    }
    served.claim(kind::PORTS, PORT.into(), 8)?;
    served.child.start()?;
    until("both accesses", || {
        Ok(served.slot(0)?.sequence == 1 && served.slot(1)?.sequence == 1)
    })?;
    for vcpu in 0..2 {
        check_eq!(served.slot(vcpu)?.address, u64::from(PORT) + vcpu, "port");
    }
    served
        .child
        .domain
        .complete(1, 0x22)
        .must("complete the second")?;
    served.child.until_word(DATA + 8, 0x22)?;
    check_eq!(served.child.word(DATA)?, 0, "the first went on, too");
    served
        .child
        .domain
        .complete(0, 0x11)
        .must("complete the first")?;
    served.child.until_word(DATA, 0x11)
}

/// Two claims with an event and memory of their own each.
fn two_claims() -> Outcome {
    let served = Served::new(&Plan::new(snippet!(
        "mov edx, 0x5a0",
        "mov eax, 1",
        "out dx, al",
        "mov edx, 0x5b0",
        "mov eax, 2",
        "out dx, al",
        "2: jmp 2b"
    )))?;
    served.claim(kind::PORTS, PORT.into(), 8)?;
    let memory = memory(4096)?;
    let slots = Mapped::new(1, *memory, 4096)?;
    let event = event()?;
    event.bind(KEY + 1).must("bind")?;
    served
        .child
        .domain
        .claim(&Claim {
            memory: memory.0.0.0,
            event: event.0.0.0,
            tag: 5,
            ..served.claim_of(kind::PORTS, 0x5b0, 1)
        })
        .must("claim")?;
    served.child.start()?;
    served.sees(&port_out(0, 1, 1))?;
    served.complete(0)?;
    check!(
        object::wait(u64::MAX).must("wait")? == Some(KEY + 1),
        "not the second event"
    );
    let slot = Slot::read_from_bytes(&slots.bytes::<{ size_of::<Slot>() }>(0))
        .map_err(|_| format_args!("no slot"))?;
    check!(
        slot.tag == 5 && slot.address == 0x5b0 && slot.value == 2,
        "{slot:x?}"
    );
    Ok(())
}

/// Another vCPU on the same CPU runs while it waits.
fn waits_without_a_cpu() -> Outcome {
    let served = Served::new(&Plan::new(read_port()))?;
    let other = Child::new(&Plan::new(crate::child::count()))?;
    served.child.pin(0, 0)?;
    other.pin(0, 0)?;
    served.claim(kind::PORTS, PORT.into(), 8)?;
    served.child.start()?;
    served.sees(&port_in(0, 4))?;
    let info = served.child.vcpu(0).info().must("info")?;
    check!(info.run == VcpuRun::BLOCKED, "{}", info.run.text());
    other.start()?;
    other.until_change(DATA)?;
    let later = served.child.vcpu(0).info().must("info")?;
    check_eq!(later.run_ns, info.run_ns, "time it ran");
    check!(later.blocked_ns > info.blocked_ns, "it does not wait");
    Ok(())
}

fn pause_while_it_waits() -> Outcome {
    let served = Served::ports(read_port())?;
    served.sees(&port_in(0, 4))?;
    served.child.domain.pause().must("pause")?;
    let state = served.child.state(0)?;
    check!(
        state.rip > ENTRY && state.rip < ENTRY + 32,
        "RIP {:#x}",
        state.rip
    );
    served.complete(0x77)?;
    sleep(crate::kit::MS);
    check_eq!(served.child.word(DATA + 8)?, 0, "it went on while paused");
    served.child.domain.resume().must("resume")?;
    served.child.until_word(DATA + 8, 1)?;
    check_eq!(served.child.word(DATA)?, 0x77, "RAX");
    Ok(())
}

fn kill_while_it_waits() -> Outcome {
    let served = Served::ports(read_port())?;
    served.sees(&port_in(0, 4))?;
    served.child.domain.kill().must("kill")?;
    served.child.ends(Reason::KILLED)?;
    refused(
        served.child.domain.complete(0, 0),
        Status::WRONG_STATE,
        "complete",
    )?;
    check!(served.child.is(DomainState::ENDED)?, "not ENDED");
    Ok(())
}

fn destroy_with_claims() -> Outcome {
    let served = Served::new(&Plan::new(spin()))?;
    for port in 0..10 {
        served.claim(kind::PORTS, port * 16, 8)?;
        served.claim(kind::MMIO, MMIO + port * 8192, 4096)?;
    }
    served.child.destroy()
}

/// A child that claims the ports of another, and what it claims with.
struct Claimer {
    child: Child,
    _memory: Owned<Memory>,
    _event: Owned<Event>,
}

impl Claimer {
    /// Claims eight ports and a page of the domain, then waits.
    fn of(target: &Child) -> Result<Self, Why> {
        let child = Child::new(&agents(1))?;
        let (memory, event) = (memory(4096)?, event()?);
        let domain = give(&child, target.domain.any(), rights::DEVICE)?;
        let claim = Claim {
            kind: kind::PORTS,
            memory: give(&child, memory.any(), rights::READ | rights::WRITE)? as u32,
            event: give(&child, event.any(), rights::SIGNAL)? as u32,
            reserved: 0,
            first: PORT.into(),
            length: 8,
            tag: 0,
        };
        let page = Claim {
            kind: kind::MMIO,
            first: MMIO,
            length: 4096,
            ..claim
        };
        child.write(DATA, bytes_of(&claim))?;
        child.write(DATA + 64, bytes_of(&page))?;
        child.load(
            0,
            &[
                Step::new(Call::DEVICE_CLAIM, [domain, DATA]),
                Step::new(Call::DEVICE_CLAIM, [domain, DATA + 64]),
            ],
            1,
            After::Wait,
        )?;
        child.start()?;
        child.until_done(0)?;
        for step in 0..2 {
            child.answered(0, step, Status::OK)?;
        }
        Ok(Self {
            child,
            _memory: memory,
            _event: event,
        })
    }
}

fn claimers_end_completes() -> Outcome {
    let target = Child::new(&Plan::new(read_port()))?;
    let claimer = Claimer::of(&target)?;
    target.start()?;
    until("its wait", || {
        Ok(target.vcpu(0).info().must("info")?.run == VcpuRun::BLOCKED)
    })?;
    claimer.child.domain.kill().must("kill")?;
    target.until_word(DATA + 8, 1)?;
    check_eq!(target.word(DATA)?, 0xffff_ffff, "RAX");
    Ok(())
}

fn claimers_end_ends_claims() -> Outcome {
    let target = Child::new(&Plan::new(spin()))?;
    let claimer = Claimer::of(&target)?;
    let objects = Objects::new()?;
    let claim = Claim {
        kind: kind::PORTS,
        memory: objects.memory.0.0.0,
        event: objects.event.0.0.0,
        reserved: 0,
        first: PORT.into(),
        length: 8,
        tag: 0,
    };
    refused(target.domain.claim(&claim), Status::EXISTS, "claim")?;
    claimer.child.domain.kill().must("kill")?;
    claimer.child.ends(Reason::KILLED)?;
    drop(claimer);
    until("the claims' end", || match target.domain.claim(&claim) {
        Ok(()) => Ok(true),
        Err(Status::EXISTS) => Ok(false),
        Err(status) => Err(format_args!("claim: {status:?}").into()),
    })?;
    let memory = memory(4096)?;
    until("the page's end", || {
        match target.domain.map(MMIO, *memory, 0, 4096, access::READ) {
            Ok(()) => Ok(true),
            Err(Status::EXISTS) => Ok(false),
            Err(status) => Err(format_args!("map: {status:?}").into()),
        }
    })?;
    Ok(())
}

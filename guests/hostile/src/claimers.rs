//! Whoever serves devices, and answers what nobody asked, or too much, or into a slot that it has torn up: the vCPU that waits gets a value
//! of the width that it asked for, and the kernel nothing that it believes.

use plinth_rt::abi::device::{DATA as SLOT_DATA, kind};
use plinth_rt::abi::domain::platform;
use plinth_rt::abi::{Call, Claim, Status};
use plinth_rt::object::{self, Event, Memory};
use plinth_rt::paging::{self, flag};
use plinth_rt::{Gprs, Outcome, Why, check, check_eq, snippet};
use plinth_testkit::kit::{MS, Must, Owned, event, memory, raw, refused, to_the_end, until};

use crate::attacker::{Attacker, FREE, Plan, at, peek, poke, tell};
use plinth_testkit::window::Mapped;

cases!("claimers":
    answers_without_a_question,
    answers_twice,
    answers_wider_than_a_port,
    answers_wider_than_an_address,
    answers_to_a_read_and_write,
    slot_torn_up_by_a_word,
    slot_torn_up_under_a_string,
    slot_rewritten_without_pause,
    released_under_a_question,
    memory_gone_under_a_question,
    killed_under_a_question,
    vectors_out_of_range,
    claims_over_what_is_there,
    claims_that_wrap,
);

const PORT: u64 = 0x5a0;
const MMIO: u64 = 0x1000_0000;
const KEY: u64 = 9;
/// Bytes of a slot.
const SLOT: u64 = 128;

/// Memory for the slots of so many vCPUs.
pub fn slots_of(vcpus: u64) -> Result<Owned<Memory>, Why> {
    memory((vcpus * SLOT).next_multiple_of(4096))
}

/// A claim.
pub fn claim(memory: Memory, event: Event, kind: u32, first: u64, length: u64) -> Claim {
    Claim {
        kind,
        memory: memory.0.0,
        event: event.0.0,
        reserved: 0,
        first,
        length,
        tag: 0,
    }
}

/// An attacker in reverse: the victim of whoever serves its devices.
struct Victim {
    victim: Attacker,
    slots: Mapped,
    memory: Option<Owned<Memory>>,
    event: Owned<Event>,
}

impl Victim {
    fn new(plan: &Plan, kind: u32, first: u64, length: u64) -> Result<Self, Why> {
        let victim = Attacker::new(plan)?;
        let memory = slots_of(4)?;
        let slots = Mapped::new(0, *memory, 4096)?;
        let event = event()?;
        event.bind(KEY).must("bind")?;
        victim
            .domain
            .claim(&claim(*memory, *event, kind, first, length))
            .must("claim")?;
        victim.start()?;
        Ok(Self {
            victim,
            slots,
            memory: Some(memory),
            event,
        })
    }

    fn ports(attack: fn() -> Outcome) -> Result<Self, Why> {
        Self::new(&Plan::new(attack), kind::PORTS, PORT, 8)
    }

    fn mmio(attack: fn() -> Outcome) -> Result<Self, Why> {
        Self::new(&Plan::new(attack), kind::MMIO, MMIO, 4096)
    }

    /// Waits for the next question.
    fn asks(&self) -> Outcome {
        let deadline = plinth_rt::hypercall::clock() + 10_000 * MS;
        check!(
            object::wait(deadline).must("wait")? == Some(KEY),
            "no access arrived"
        );
        Ok(())
    }

    fn answer(&self, value: u64) -> Outcome {
        self.victim.domain.complete(0, value).must("complete")
    }

    fn answers(&self, value: u64) -> Outcome {
        self.asks()?;
        self.answer(value)
    }

    /// Fills the slot of vCPU 0 with what it never held.
    fn tear_up(&self) {
        for offset in (0..SLOT).step_by(8) {
            self.slots.set_word(offset, u64::MAX - offset);
        }
    }
}

fn input() -> Gprs {
    Gprs {
        rdx: PORT,
        rax: 0x1122_3344_5566_7788,
        ..Gprs::ZERO
    }
}

fn answers_without_a_question() -> Outcome {
    let served = Victim::ports(|| {
        tell(0, 1);
        snippet!("2: cmp qword ptr [0x2008], 0", "je 2b").run(Gprs::ZERO)?;
        check_eq!(snippet!("in al, dx").run(input())?.rax & 0xff, 0x5a, "AL");
        Ok(())
    })?;
    let victim = &served.victim;
    victim.until_told(0, 1)?;
    for value in [0, u64::MAX] {
        refused(
            victim.domain.complete(0, value),
            Status::WRONG_STATE,
            "nobody asked",
        )?;
    }
    for vcpu in [1, 2, 63, 64, 0xffff_ffff] {
        refused(
            victim.domain.complete(vcpu, 0),
            Status::NOT_FOUND,
            "no such vCPU",
        )?;
    }
    let domain = raw(victim.domain.any());
    for vcpu in [1 << 32, u64::MAX] {
        let (status, _) = to_the_end(Call::DEVICE_COMPLETE, [domain, vcpu, 0]);
        check!(
            matches!(status, Status::BAD_ARGUMENT | Status::NOT_FOUND),
            "vCPU {vcpu:#x}: {status:?}"
        );
    }
    victim.write(crate::attacker::told_at(1), &1u64.to_le_bytes())?;
    served.answers(0x5a)?;
    victim.succeeds()
}

/// Of two answers to one question the first counts, and the next question is not answered by the second.
fn answers_twice() -> Outcome {
    let served = Victim::ports(|| {
        for expected in 1..=20 {
            let seen = snippet!("in eax, dx").run(input())?.rax;
            check_eq!(seen, expected, "EAX");
        }
        Ok(())
    })?;
    for value in 1..=20 {
        served.asks()?;
        served.answer(value)?;
        // It may ask again meanwhile: then this is an answer to that, and the right one.
        match served.victim.domain.complete(0, value + 1) {
            Ok(()) if value == 20 => return Err(format_args!("answered after the last").into()),
            Ok(()) => return finish_twice(&served, value + 2),
            Err(status) => check!(
                status == Status::WRONG_STATE,
                "the second answer: {status:?}"
            ),
        }
    }
    served.victim.succeeds()
}

/// From here on the events of two questions may come as one: what tells of a question is that an answer to it is taken.
fn finish_twice(served: &Victim, next: u64) -> Outcome {
    for value in next..=20 {
        until("a question", || {
            Ok(served.victim.domain.complete(0, value).is_ok())
        })?;
    }
    served.victim.succeeds()
}

fn answers_wider_than_a_port() -> Outcome {
    let served = Victim::ports(|| {
        let byte = snippet!("in al, dx").run(input())?.rax;
        check_eq!(byte, 0x1122_3344_5566_77a5, "RAX after a byte");
        let word = snippet!("in ax, dx").run(input())?.rax;
        check_eq!(word, 0x1122_3344_5566_a5a5, "RAX after a word");
        let doubleword = snippet!("in eax, dx").run(input())?.rax;
        check_eq!(doubleword, 0xa5a5_a5a5, "RAX after a doubleword");
        // An answer to a write is ignored.
        let out = snippet!("out dx, al").run(input())?;
        check!(out == input(), "a register has changed");
        Ok(())
    })?;
    for _ in 0..4 {
        served.answers(0xa5a5_a5a5_a5a5_a5a5)?;
    }
    served.victim.succeeds()
}

fn answers_wider_than_an_address() -> Outcome {
    let served = Victim::mmio(|| {
        let device = paging::map(2, MMIO, flag::ALL);
        let registers = Gprs {
            rax: 0x1122_3344_5566_7788,
            ..at(device)
        };
        for (code, expected) in [
            (snippet!("mov al, [rdi]"), 0x1122_3344_5566_77a5),
            (snippet!("mov ah, [rdi]"), 0x1122_3344_5566_a588),
            (snippet!("mov ax, [rdi]"), 0x1122_3344_5566_a5a5),
            (snippet!("mov eax, [rdi]"), 0xa5a5_a5a5),
            (snippet!("movzx eax, byte ptr [rdi]"), 0xa5),
            (snippet!("movsx eax, byte ptr [rdi]"), 0xffff_ffa5),
            (snippet!("movsx rax, word ptr [rdi]"), 0xffff_ffff_ffff_a5a5),
            (snippet!("mov rax, [rdi]"), 0xa5a5_a5a5_a5a5_a5a5),
            (snippet!("lodsb"), 0x1122_3344_5566_77a5),
        ] {
            let out = code.run(Gprs {
                rsi: device,
                ..registers
            })?;
            check_eq!(out.rax, expected, "RAX");
        }
        Ok(())
    })?;
    for _ in 0..9 {
        served.answers(0xa5a5_a5a5_a5a5_a5a5)?;
    }
    served.victim.succeeds()
}

/// ADD to a byte: what is written is a byte, whatever the answer to the read was, and so are the flags.
fn answers_to_a_read_and_write() -> Outcome {
    let served = Victim::mmio(|| {
        let device = paging::map(2, MMIO, flag::ALL);
        let out = snippet!("add byte ptr [rdi], 1", "pushfq", "pop rax").run(at(device))?;
        // CF, PF, AF and ZF of 0xff + 1.
        check_eq!(out.rax & 0x8d5, 0x55, "flags");
        Ok(())
    })?;
    served.answers(u64::MAX)?;
    served.asks()?;
    check_eq!(served.slots.word(24), 0, "what is written");
    served.answer(u64::MAX)?;
    served.victim.succeeds()
}

/// The kernel reads nothing from the slot of an access that is no string.
fn slot_torn_up_by_a_word() -> Outcome {
    let served = Victim::ports(|| {
        for _ in 0..50 {
            let out = snippet!("in ax, dx").run(input())?;
            check_eq!(out.rax, 0x1122_3344_5566_1234, "RAX");
            let out = snippet!("out dx, eax").run(input())?;
            check!(out == input(), "a register has changed");
        }
        Ok(())
    })?;
    for index in 0..100 {
        served.asks()?;
        // Address, size and direction are those of the access, written anew each time.
        check_eq!(served.slots.word(16), PORT, "address");
        let expected = if index % 2 == 0 { 2 } else { 4 };
        check_eq!(served.slots.word(32) & 0xffff_ffff, expected, "size");
        served.tear_up();
        served.answer(0x1234)?;
    }
    served.victim.succeeds()
}

/// Of INS it reads the data: as many bytes as it asked for, whatever count and size are in the slot now.
fn slot_torn_up_under_a_string() -> Outcome {
    let served = Victim::ports(|| {
        for offset in (0..0x1000).step_by(8) {
            poke(FREE + offset, 0x7777_7777_7777_7777);
        }
        let out = snippet!("rep insw").run(Gprs {
            rdx: PORT,
            rcx: 40,
            ..at(FREE + 0x100)
        })?;
        check_eq!(out.rcx, 0, "RCX");
        check_eq!(out.rdi, FREE + 0x150, "RDI");
        for offset in (0..0x1000).step_by(8) {
            let seen = peek(FREE + offset);
            let inside = (0x100..0x150).contains(&offset);
            check!(
                inside != (seen == 0x7777_7777_7777_7777),
                "{offset:#x}: {seen:#x}"
            );
        }
        Ok(())
    })?;
    // 64 bytes, and 16.
    for count in [32, 8] {
        served.asks()?;
        check_eq!(served.slots.word(40) >> 32, count, "count");
        served.tear_up();
        served.answer(u64::MAX)?;
    }
    served.victim.succeeds()
}

/// Another vCPU of whoever serves writes the data while the kernel reads it.
fn slot_rewritten_without_pause() -> Outcome {
    let served = Victim::ports(|| {
        // The suite waits for the writer first, and an event that comes meanwhile would be lost.
        snippet!("2: pause", "cmp qword ptr [0x2008], 0", "je 2b").run(Gprs::ZERO)?;
        for _ in 0..30 {
            poke(FREE + 64, 0x7777);
            let out = snippet!("rep insb").run(Gprs {
                rdx: PORT,
                rcx: 64,
                ..at(FREE)
            })?;
            check_eq!(out.rcx, 0, "RCX");
            check_eq!(peek(FREE + 64), 0x7777, "behind the string");
        }
        Ok(())
    })?;
    let writer = Attacker::new(&Plan::new(|| {
        snippet!(
            "2: mov rcx, 16",
            "mov rdi, rsi",
            "rep stosq",
            "inc rax",
            "inc qword ptr [0x2000]",
            "jmp 2b"
        )
        .run(Gprs {
            rsi: 4 << 20,
            ..Gprs::ZERO
        })?;
        Ok(())
    }))?;
    let Some(memory) = &served.memory else {
        return Err(format_args!("no memory").into());
    };
    writer
        .domain
        .map(
            4 << 20,
            **memory,
            0,
            4096,
            plinth_rt::abi::call::access::ALL,
        )
        .must("map")?;
    writer.start()?;
    writer.until_told(0, 10)?;
    served
        .victim
        .write(crate::attacker::told_at(1), &1u64.to_le_bytes())?;
    for _ in 0..30 {
        served.answers(0)?;
    }
    served.victim.succeeds()?;
    writer.is_killed()
}

/// As if nobody had claimed it.
fn released_under_a_question() -> Outcome {
    let served = Victim::ports(|| {
        check_eq!(snippet!("in eax, dx").run(input())?.rax, 0xffff_ffff, "EAX");
        check_eq!(snippet!("in al, dx").run(input())?.rax & 0xff, 0xff, "AL");
        Ok(())
    })?;
    served.asks()?;
    served.tear_up();
    served
        .victim
        .domain
        .release(kind::PORTS, PORT)
        .must("release")?;
    served.victim.succeeds()?;
    refused(
        served.victim.domain.complete(0, 1),
        Status::WRONG_STATE,
        "an answer after it",
    )
}

/// The handle is closed and the mapping gone: the claim keeps what it needs.
fn memory_gone_under_a_question() -> Outcome {
    let mut served = Victim::ports(|| {
        poke(FREE + 8, 0x7777);
        let out = snippet!("rep insb").run(Gprs {
            rdx: PORT,
            rcx: 8,
            ..at(FREE)
        })?;
        check_eq!(out.rcx, 0, "RCX");
        check_eq!(peek(FREE), 0x0707_0707_0707_0707, "what was read");
        check_eq!(peek(FREE + 8), 0x7777, "behind the string");
        Ok(())
    })?;
    served.asks()?;
    const { assert!(SLOT_DATA == 64) };
    served.slots.write(48, &[7; 64]);
    served.memory = None;
    served.answer(0)?;
    served.victim.succeeds()
}

fn killed_under_a_question() -> Outcome {
    let served = Victim::ports(|| {
        snippet!("in al, dx").run(input())?;
        Ok(())
    })?;
    served.asks()?;
    served.victim.is_killed()?;
    for value in [0, u64::MAX] {
        refused(
            served.victim.domain.complete(0, value),
            Status::WRONG_STATE,
            "an answer to the dead",
        )?;
    }
    served.victim.domain.destroy().must("destroy")?;
    refused(
        served.victim.domain.complete(0, 0),
        Status::WRONG_STATE,
        "an answer to the destroyed",
    )?;
    check!(
        served.event.signal().is_ok(),
        "its event is the claimer's own"
    );
    Ok(())
}

/// An acknowledge cycle that is answered by what is no vector brings no interrupt.
fn vectors_out_of_range() -> Outcome {
    let served = Victim::new(
        &Plan::new(|| {
            let handler = snippet!("inc qword ptr [0x2008]", "iretq");
            for vector in 32..=255 {
                plinth_rt::trap::set_gate(
                    vector,
                    plinth_rt::trap::Gate::interrupt(handler.start(), 0, 0),
                );
            }
            tell(0, 1);
            // LINT0 takes it as long as the local APIC is disabled.
            plinth_rt::cpu::wrmsr(0x1b, 0xfee0_0000)?;
            snippet!("sti", "2: cmp qword ptr [0x2008], 1", "jb 2b", "cli").run(Gprs::ZERO)?;
            check_eq!(crate::attacker::heard(1), 1, "interrupts");
            Ok(())
        })
        .on(platform::PC),
        kind::ACKNOWLEDGE,
        0,
        1,
    )?;
    served.victim.until_told(0, 1)?;
    for value in [0x100, 0x141, 1 << 32 | 0x41, u64::MAX] {
        served.victim.domain.set_line(24, true).must("line")?;
        served.asks()?;
        served.victim.domain.set_line(24, false).must("line")?;
        served.answer(value)?;
        check_eq!(served.victim.told(1)?, 0, "interrupts");
    }
    served.victim.domain.set_line(24, true).must("line")?;
    served.asks()?;
    served.victim.domain.set_line(24, false).must("line")?;
    served.answer(0x41)?;
    served.victim.succeeds()
}

/// Memory and claims cannot be claimed over; the page of a local APIC stays the APIC's.
fn claims_over_what_is_there() -> Outcome {
    let served = Victim::new(
        &Plan::new(|| {
            let apic = paging::map(0, 0xfee0_0000, flag::ALL);
            let version = snippet!("mov eax, [rdi]").run(at(apic + 0x30))?.rax;
            check_eq!(version & 0xff, 0x14, "version");
            Ok(())
        })
        .on(platform::PC),
        kind::MMIO,
        0xfee0_0000,
        4096,
    )?;
    let victim = &served.victim;
    let Some(memory) = &served.memory else {
        return Err(format_args!("no memory").into());
    };
    for (first, length) in [
        (0, 4096),
        (0x10_0000, 4096),
        (0, 1 << 40),
        (0xfee0_0000, 4096),
        (0xfed0_0000, 0x20_0000),
    ] {
        let claim = claim(**memory, *served.event, kind::MMIO, first, length);
        match victim.domain.claim(&claim) {
            Err(Status::EXISTS) => {}
            // It may have ended already.
            Err(Status::WRONG_STATE) => {}
            other => return Err(format_args!("{first:#x}: {other:?}").into()),
        }
    }
    victim.succeeds()
}

fn claims_that_wrap() -> Outcome {
    let victim = Attacker::new(&Plan::new(|| Ok(())))?;
    let (memory, event) = (slots_of(1)?, event()?);
    for (kind, first, length) in [
        (kind::PORTS, 0xffff, 2),
        (kind::PORTS, 0x1_0000, 1),
        (kind::PORTS, 1, u64::MAX),
        (kind::PORTS, u64::MAX, 1),
        (kind::PORTS, 0x500, 0),
        (kind::MMIO, 1 << 48, 4096),
        (kind::MMIO, (1 << 48) - 4096, 8192),
        (kind::MMIO, 0u64.wrapping_sub(4096), 8192),
        (kind::MMIO, 4096, 0u64.wrapping_sub(4096)),
        (kind::MMIO, MMIO + 1, 4096),
        (kind::MMIO, MMIO, 0),
        (kind::ACKNOWLEDGE, 0, 1),
        (0, 0, 1),
        (4, 0, 1),
        (u32::MAX, 0, 1),
    ] {
        refused(
            victim
                .domain
                .claim(&claim(*memory, *event, kind, first, length)),
            Status::BAD_ARGUMENT,
            "a claim",
        )?;
    }
    victim.start()?;
    victim.succeeds()
}

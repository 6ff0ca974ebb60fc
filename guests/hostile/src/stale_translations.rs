//! Memory that is taken away, or whose access changes, while vCPUs use it without pause: from the moment that the call has returned, nobody
//! reads, writes or executes by an old translation.

use plinth_rt::abi::Reason;
use plinth_rt::abi::call::access;
use plinth_rt::abi::device::kind;
use plinth_rt::abi::domain::fault;
use plinth_rt::object::Memory;
use plinth_rt::{Gprs, Outcome, Snippet, Why, check, check_eq, object, snippet};
use plinth_testkit::kit::{MS, Must, event, memory, sleep};

use crate::attacker::{Attacker, Plan, Unexpected, at};
use crate::claimers::{claim, slots_of};
use plinth_testkit::window::Mapped;

cases!("stale_translations":
    unmapped_while_read,
    unmapped_while_written,
    unmapped_while_executed,
    unmapped_while_two_vcpus_read,
    made_read_only_while_written,
    made_data_while_executed,
    replaced_while_paused,
    given_to_another_while_read,
    a_page_out_of_a_large_one,
    claimed_after_it_was_unmapped,
    written_after_it_was_found_dirty,
    shared_with_one_who_keeps_it,
);

/// Where the memory is that comes and goes.
const PLACE: u64 = 4 << 20;
const SECRET: u64 = 0x5ec7_e75e_c7e7_5ec7;
const ALL: u64 = access::ALL;

/// An attacker that runs this loop on [`PLACE`], and words that it tells.
fn on_place(attack: fn() -> Outcome) -> Result<Attacker, Why> {
    Attacker::new(&Plan::new(attack).with_vcpus(2))
}

fn run_on_place(code: &Snippet) -> Outcome {
    code.run(Gprs {
        rsi: 0x2000,
        ..at(PLACE)
    })
    .into_unexpected()
}

/// The attacker must end by a fault at [`PLACE`].
fn faults(attacker: &Attacker, bits: u64) -> Outcome {
    let info = attacker.ends(Reason::NESTED_FAULT)?.info;
    check_eq!(info[0] & !0xfff, PLACE, "page");
    check_eq!(info[1], bits, "bits");
    Ok(())
}

/// Reads without pause; what it read last and how often are the words 1 and 0.
fn reads() -> Outcome {
    run_on_place(&snippet!(
        "2: mov rax, [rdi]",
        "mov [rsi + 8], rax",
        "inc qword ptr [rsi]",
        "jmp 2b"
    ))
}

/// Writes a number that grows.
fn writes() -> Outcome {
    run_on_place(&snippet!(
        "2: inc rax",
        "mov [rdi], rax",
        "inc qword ptr [rsi]",
        "jmp 2b"
    ))
}

/// Calls a function there, which counts.
fn executes() -> Outcome {
    run_on_place(&snippet!("2: call rdi", "jmp 2b"))
}

/// Maps a page at its place, starts it, and waits until it has used the page often.
fn uses(attacker: &Attacker, page: Memory) -> Outcome {
    attacker.domain.map(PLACE, page, 0, 4096, ALL).must("map")?;
    attacker.start()?;
    attacker.until_told(0, 100)
}

fn unmapped_while_read() -> Outcome {
    for _ in 0..3 {
        let page = memory(4096)?;
        let own = Mapped::new(0, *page, 4096)?;
        own.set_word(0, 7);
        let attacker = on_place(reads)?;
        uses(&attacker, *page)?;
        attacker.domain.unmap(PLACE, 4096).must("unmap")?;
        own.set_word(0, SECRET);
        faults(&attacker, 0)?;
        check_eq!(attacker.told(1)?, 7, "what it read last");
    }
    Ok(())
}

fn unmapped_while_written() -> Outcome {
    for _ in 0..3 {
        let page = memory(4096)?;
        let own = Mapped::new(0, *page, 4096)?;
        let attacker = on_place(writes)?;
        uses(&attacker, *page)?;
        attacker.domain.unmap(PLACE, 4096).must("unmap")?;
        let last = own.word(0);
        faults(&attacker, fault::WRITE)?;
        check_eq!(own.word(0), last, "the word after the call");
    }
    Ok(())
}

/// `inc qword ptr [rsi]; ret`, at [`PLACE`].
const FUNCTION: [u8; 4] = [0x48, 0xff, 0x06, 0xc3];

fn unmapped_while_executed() -> Outcome {
    let page = memory(4096)?;
    let own = Mapped::new(0, *page, 4096)?;
    own.write(0, &FUNCTION);
    let attacker = on_place(executes)?;
    uses(&attacker, *page)?;
    attacker.domain.unmap(PLACE, 4096).must("unmap")?;
    // INT3: whoever still fetches from there finds no gate.
    own.write(0, &[0xcc; 64]);
    faults(&attacker, fault::FETCH)
}

/// Both CPUs have the translation.
fn unmapped_while_two_vcpus_read() -> Outcome {
    for _ in 0..2 {
        let page = memory(4096)?;
        let own = Mapped::new(0, *page, 4096)?;
        own.set_word(0, 7);
        let mut attacker = on_place(reads)?;
        attacker.add(snippet!(
            "2: mov rax, [0x400000]",
            "mov [rdi + 24], rax",
            "inc qword ptr [rdi + 16]",
            "jmp 2b"
        ))?;
        uses(&attacker, *page)?;
        attacker.until_told(2, 100)?;
        attacker.domain.unmap(PLACE, 4096).must("unmap")?;
        own.set_word(0, SECRET);
        faults(&attacker, 0)?;
        check_eq!(attacker.told(1)?, 7, "what the first read last");
        check_eq!(attacker.told(3)?, 7, "what the second read last");
    }
    Ok(())
}

fn made_read_only_while_written() -> Outcome {
    for _ in 0..3 {
        let page = memory(4096)?;
        let own = Mapped::new(0, *page, 4096)?;
        let attacker = on_place(writes)?;
        uses(&attacker, *page)?;
        attacker
            .domain
            .protect(PLACE, 4096, access::READ)
            .must("protect")?;
        let last = own.word(0);
        faults(&attacker, fault::WRITE | fault::PRESENT)?;
        check_eq!(own.word(0), last, "the word after the call");
    }
    Ok(())
}

fn made_data_while_executed() -> Outcome {
    let page = memory(4096)?;
    Mapped::new(0, *page, 4096)?.write(0, &FUNCTION);
    let attacker = on_place(executes)?;
    uses(&attacker, *page)?;
    attacker
        .domain
        .protect(PLACE, 4096, access::READ | access::WRITE)
        .must("protect")?;
    faults(&attacker, fault::FETCH | fault::PRESENT)
}

/// It sees the one memory before and the other after, never the first again.
fn replaced_while_paused() -> Outcome {
    let pages = [memory(4096)?, memory(4096)?];
    for (index, page) in pages.iter().enumerate() {
        Mapped::new(index as u64, **page, 4096)?.set_word(0, index as u64);
    }
    let attacker = on_place(reads)?;
    attacker
        .domain
        .map(PLACE, *pages[0], 0, 4096, ALL)
        .must("map")?;
    attacker.start()?;
    for round in 1..20usize {
        let before = attacker.told(0)?;
        attacker.until_told(0, before + 100)?;
        attacker.domain.pause().must("pause")?;
        attacker.domain.unmap(PLACE, 4096).must("unmap")?;
        attacker
            .domain
            .map(PLACE, *pages[round % 2], 0, 4096, ALL)
            .must("map")?;
        attacker.domain.resume().must("resume")?;
        let before = attacker.told(0)?;
        attacker.until_told(0, before + 2)?;
        check_eq!(attacker.told(1)?, round as u64 % 2, "what it reads");
    }
    attacker.is_killed()
}

/// The frame goes back to the machine, and to who asks next.
fn given_to_another_while_read() -> Outcome {
    for _ in 0..3 {
        let page = memory(4096)?;
        let attacker = on_place(reads)?;
        uses(&attacker, *page)?;
        attacker.domain.unmap(PLACE, 4096).must("unmap")?;
        drop(page);
        let others = memory(16 * 4096)?;
        let own = Mapped::new(0, *others, 16 * 4096)?;
        for page in 0..16 {
            check_eq!(own.word(page * 4096), 0, "a new frame");
            own.set_word(page * 4096, SECRET);
        }
        faults(&attacker, 0)?;
        check_eq!(attacker.told(1)?, 0, "what it read last");
    }
    Ok(())
}

/// One of 512 pages that one large entry may have mapped: it is gone, its neighbours are there.
fn a_page_out_of_a_large_one() -> Outcome {
    const HOLE: u64 = 0x12_3000;
    let large = memory(2 << 20)?;
    let attacker = on_place(|| {
        run_on_place(&snippet!(
            "2: mov rax, [rdi + 0x122ff8]",
            "mov rax, [rdi + 0x124000]",
            "inc qword ptr [rsi]",
            "mov rax, [rdi + 0x123000]",
            "jmp 2b"
        ))
    })?;
    attacker
        .domain
        .map(PLACE, *large, 0, 2 << 20, ALL)
        .must("map")?;
    attacker.start()?;
    attacker.until_told(0, 100)?;
    attacker.domain.unmap(PLACE + HOLE, 4096).must("unmap")?;
    let info = attacker.ends(Reason::NESTED_FAULT)?.info;
    check_eq!(info[0], PLACE + HOLE, "address");
    check_eq!(info[1], 0, "bits");
    Ok(())
}

/// What was memory is a device's: the next access arrives there.
fn claimed_after_it_was_unmapped() -> Outcome {
    let page = memory(4096)?;
    Mapped::new(1, *page, 4096)?.set_word(0, 7);
    let attacker = on_place(reads)?;
    uses(&attacker, *page)?;
    // Between both calls nothing is there: it must not look.
    attacker.domain.pause().must("pause")?;
    attacker.domain.unmap(PLACE, 4096).must("unmap")?;
    let (slots, event) = (slots_of(2)?, event()?);
    event.bind(9).must("bind")?;
    attacker
        .domain
        .claim(&claim(*slots, *event, kind::MMIO, PLACE, 4096))
        .must("claim")?;
    attacker.domain.resume().must("resume")?;
    for answer in [1, 2, 3] {
        let deadline = plinth_rt::hypercall::clock() + 10_000 * MS;
        let key = object::wait(deadline).must("wait")?;
        check!(key == Some(9), "no access arrived");
        let last = attacker.told(1)?;
        let expected = if answer == 1 { 7 } else { answer - 1 };
        check_eq!(last, expected, "what it read last");
        attacker.domain.complete(0, answer).must("complete")?;
    }
    attacker.is_killed()
}

/// The dirty bit that a CPU has set and remembers must be set again after it was taken.
fn written_after_it_was_found_dirty() -> Outcome {
    let page = memory(4096)?;
    let attacker = on_place(writes)?;
    attacker
        .domain
        .map(PLACE, *page, 0, 4096, ALL)
        .must("map")?;
    attacker.start()?;
    for round in 0..20 {
        let before = attacker.told(0)?;
        attacker.until_told(0, before + 10)?;
        let mut bitmap = [0; 1];
        match attacker.domain.dirty(PLACE, 4096, &mut bitmap) {
            Ok(()) => check!(bitmap[0] == 1, "round {round}: not dirty"),
            // CPUs before 2013 do not note it.
            Err(plinth_rt::abi::Status::NOT_SUPPORTED) => break,
            Err(why) => return Err(format_args!("dirty: {why:?}").into()),
        }
    }
    attacker.is_killed()
}

/// Two domains have it; what is taken from the one stays with the other.
fn shared_with_one_who_keeps_it() -> Outcome {
    let page = memory(4096)?;
    let own = Mapped::new(0, *page, 4096)?;
    own.set_word(0, 7);
    let (loses, keeps) = (on_place(reads)?, on_place(reads)?);
    for attacker in [&loses, &keeps] {
        uses(attacker, *page)?;
    }
    loses.domain.unmap(PLACE, 4096).must("unmap")?;
    own.set_word(0, 8);
    faults(&loses, 0)?;
    check_eq!(loses.told(1)?, 7, "what it read last");
    let before = keeps.told(0)?;
    keeps.until_told(0, before + 100)?;
    check_eq!(keeps.told(1)?, 8, "what the other reads");
    sleep(MS);
    keeps.is_killed()
}

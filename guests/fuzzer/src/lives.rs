//! The first domain, killed at random points of what a control guest does: it makes domains, starts, feeds, pauses, resumes, kills and
//! destroys them. A domain of its own making, which has a handle to it, kills it after a random time; the kernel makes it anew, as it does
//! with the control guest, and it looks at what it finds.
//!
//! What must be there is in a book, a page of memory of a domain that never runs. A life notes there what it is about to do before it does
//! it, and afterwards what has come of it. The next life finds every domain as the book has it, but for the one that something was being
//! done to, which may be as before or as after. A neighbour must have gone on. Every few lives all is destroyed, and the accounts must
//! be those of the first such life.

#![allow(
    unsafe_code,
    reason = "snippet! assembles code, which runs in child domains"
)]

use plinth_rt::abi::call::access;
use plinth_rt::abi::device::kind;
use plinth_rt::abi::{Claim, DomainState, Schedule, rights};
use plinth_rt::object::Domain;
use plinth_rt::{Outcome, Snippet, Why, check, hypercall, println, snippet, suite};
use plinth_testkit::accounts::{self, Accounts};
use plinth_testkit::child::{Child, DATA, Plan, Temporary, config};
use plinth_testkit::kit::{self, MS, Must, own, sleep, system, until};
use plinth_testkit::neighbour;

use crate::dice::Dice;
use crate::lists;
use crate::orders::Orders;

/// Operations of a run.
const OPERATIONS: u64 = 200;
/// Most domains at once.
const DOMAINS: u64 = 6;
/// After so many lives all is destroyed, and the accounts are looked at.
const BETWEEN_AUDITS: u64 = 2;

const BOOK: &[u8] = b"book";

/// What the book has, by its words.
#[derive(Clone, Copy)]
enum Entry {
    /// Lives so far.
    Lives,
    /// Operations that were begun.
    Begun,
    /// What is being done, [`Operation`], and to which domain.
    Operation,
    Target,
    /// The number of the domain that kills.
    Killer,
    /// The number of the neighbour, and its rounds when it was looked at last.
    Neighbour,
    Rounds,
    /// How many nanoseconds an operation takes.
    Time,
    /// The accounts of the first audit, if there was one.
    Audited,
    Accounts,
    /// The domains: the number in the upper half, the state in the lower; 0: none.
    Domains = 32,
}

/// What is done to domains.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Operation {
    Nothing,
    Make,
    Start,
    Feed,
    Pause,
    Resume,
    Kill,
    Destroy,
}

use Operation::{Destroy, Feed, Kill, Make, Nothing, Pause, Resume, Start};

const ALL: [Operation; 8] = [Nothing, Make, Start, Feed, Pause, Resume, Kill, Destroy];

/// The book's domain, by a handle of this life.
struct Book(Domain);

impl Book {
    /// Makes it.
    fn new() -> Result<Self, Why> {
        let domain = system().create_domain(&config(BOOK)).must("the book")?;
        let memory = domain.create_memory(4096).must("a page")?;
        domain
            .map(0, memory, 0, 4096, access::READ | access::WRITE)
            .must("map the page")?;
        memory.any().close().must("close")?;
        Ok(Self(domain))
    }

    /// Finds it again.
    fn find() -> Result<Self, Why> {
        let mut last = 0;
        while let Some(number) = system().next_domain(last).must("next domain")? {
            last = number;
            let domain = system().open_domain(number).must("open domain")?;
            if domain.info().must("info")?.name.starts_with(BOOK) {
                return Ok(Self(domain));
            }
            domain.any().close().must("close")?;
        }
        Err(format_args!("the book is gone").into())
    }

    fn word(&self, index: u64) -> Result<u64, Why> {
        let mut word = [0; 8];
        self.0.read(index * 8, &mut word).must("read the book")?;
        Ok(u64::from_le_bytes(word))
    }

    fn set_word(&self, index: u64, value: u64) -> Outcome {
        self.0
            .write(index * 8, &value.to_le_bytes())
            .must("write the book")
    }

    fn get(&self, entry: Entry) -> Result<u64, Why> {
        self.word(entry as u64)
    }

    fn set(&self, entry: Entry, value: u64) -> Outcome {
        self.set_word(entry as u64, value)
    }

    /// The domain in a place, and its state.
    fn domain(&self, place: u64) -> Result<Option<(u32, DomainState)>, Why> {
        let word = self.word(Entry::Domains as u64 + place)?;
        Ok((word != 0).then_some(((word >> 32) as u32, DomainState(word as u32))))
    }

    fn set_domain(&self, place: u64, number: u32, state: DomainState) -> Outcome {
        let word = u64::from(number) << 32 | u64::from(state.0);
        self.set_word(Entry::Domains as u64 + place, word)
    }

    fn strike(&self, place: u64) -> Outcome {
        self.set_word(Entry::Domains as u64 + place, 0)
    }

    /// The place of the domain with this number.
    fn place_of(&self, number: u32) -> Result<Option<u64>, Why> {
        for place in 0..DOMAINS {
            if self
                .domain(place)?
                .is_some_and(|(found, _)| found == number)
            {
                return Ok(Some(place));
            }
        }
        Ok(None)
    }
}

/// A handle to a domain, closed when it is no longer needed.
fn opened(number: u32) -> Result<kit::Owned<Domain>, Why> {
    system()
        .open_domain(number)
        .must("open domain")
        .map(kit::Owned)
}

/// Counts, and asks a port that is served, as long as somebody serves it.
fn worker() -> Snippet {
    snippet!(
        "2: inc qword ptr [0x2000]",
        "in al, 0x42",
        "pause",
        "jmp 2b"
    )
}

/// Waits for the moment at [`DATA`], and then kills what the handle behind it names.
fn killer() -> Snippet {
    snippet!(
        "2: mov eax, 5",
        "mov rdi, [0x2000]",
        "call r15",
        "cmp eax, 13", // TIMED_OUT
        "jne 2b",
        "mov eax, 0x14", // DOMAIN_KILL
        "mov rdi, [0x2008]",
        "call r15",
        "3: mov eax, 5",
        "mov rdi, -1",
        "call r15",
        "jmp 3b",
    )
}

/// One life, to its end by the killer, or to the end of the run.
pub fn live() -> u64 {
    let restarts = plinth_rt::start_info().map_or(0, |info| info.restarts);
    if restarts == 0 {
        println!("suite fuzzer: 1 tests");
    }
    let orders = Orders::given();
    match found_and_work(&orders, restarts) {
        // The whole run is one test, which only the last life reports.
        Ok(()) => suite::run_announced("fuzzer", &[("lives::run", || Ok(()))]),
        Err(why) => {
            println!("life {restarts}, seed {}: {why}", orders.seed);
            suite::run_announced(
                "fuzzer",
                &[("lives::run", || {
                    Err(format_args!("see the line above").into())
                })],
            )
        }
    }
}

fn found_and_work(orders: &Orders, restarts: u32) -> Outcome {
    let dice = Dice::new(orders.seed, restarts.into());
    let book = if restarts == 0 {
        begin()?
    } else {
        let book = Book::find()?;
        let number = book.get(Entry::Neighbour)? as u32;
        neighbour::adopt(system().open_domain(number).must("the neighbour")?);
        take_over(&book)?;
        book
    };
    let mut worker = Worker { book, dice };
    if restarts == 0 {
        worker.measure()?;
    }
    worker.book.set(Entry::Lives, u64::from(restarts) + 1)?;
    worker.hire_a_killer()?;
    while worker.book.get(Entry::Begun)? < OPERATIONS {
        worker.operate()?;
    }
    let killer = worker.book.get(Entry::Killer)? as u32;
    drop(Temporary::from(
        system().open_domain(killer).must("the killer")?,
    ));
    worker.book.set(Entry::Killer, 0)?;
    take_over(&worker.book)?;
    audit(&worker.book)?;
    println!("note: {OPERATIONS} operations in {} lives", restarts + 1);
    Ok(())
}

/// The first life: makes what lasts.
fn begin() -> Result<Book, Why> {
    neighbour::move_in()?;
    lists::lengthen()?;
    let book = Book::new()?;
    book.set(Entry::Neighbour, neighbour::number()?.into())?;
    Ok(book)
}

/// A later life: everything must be as the book has it.
fn take_over(book: &Book) -> Outcome {
    let number = neighbour::number()?;
    neighbour::goes_on(book.get(Entry::Rounds)?)?;
    book.set(Entry::Rounds, neighbour::watch()?)?;
    let under_way = book.get(Entry::Operation)? as usize;
    let operation = ALL.get(under_way).copied().unwrap_or(Nothing);
    let target = book.get(Entry::Target)? as u32;
    let own = own().info().must("own info")?.number;
    let book_number = book.0.info().must("the book's info")?.number;
    // What is in the list and not in the book was being made, or is the killer.
    let mut last = 0;
    while let Some(found) = system().next_domain(last).must("next domain")? {
        last = found;
        if [own, number, book_number].contains(&found) || book.place_of(found)?.is_some() {
            continue;
        }
        let is_killer = u64::from(found) == book.get(Entry::Killer)?;
        check!(
            is_killer || operation == Make,
            "domain {found} is nobody's, {operation:?} of {target} was under way"
        );
        drop(Temporary::from(system().open_domain(found).must("open")?));
    }
    for place in 0..DOMAINS {
        if let Some((number, state)) = book.domain(place)? {
            let under_way = if number == target { operation } else { Nothing };
            let now = find_again(number, state, under_way)?;
            if now == DomainState::DESTROYED {
                book.strike(place)?;
            } else {
                book.set_domain(place, number, now)?;
            }
        }
    }
    book.set(Entry::Operation, Nothing as u64)?;
    if book.get(Entry::Lives)?.is_multiple_of(BETWEEN_AUDITS) {
        audit(book)?;
    }
    Ok(())
}

/// The domain must be in the state of the book, or in that to which the operation leads; its state.
fn find_again(number: u32, state: DomainState, under_way: Operation) -> Result<DomainState, Why> {
    let after = match under_way {
        Nothing | Make | Feed => state,
        Start | Resume => DomainState::RUNNING,
        Pause => DomainState::PAUSED,
        Kill => DomainState::ENDED,
        Destroy => DomainState::DESTROYED,
    };
    let domain = match system().open_domain(number) {
        Ok(domain) => kit::Owned(domain),
        Err(_) if after == DomainState::DESTROYED => return Ok(after),
        Err(status) => return Err(format_args!("domain {number} is lost: {status:?}").into()),
    };
    // Whoever was killed is on its way out for a moment.
    if under_way == Kill {
        sleep(MS);
    }
    let now = domain.info().must("info")?.state;
    check!(
        now == state || now == after,
        "domain {number} is {}, was {}, {under_way:?} was under way",
        now.text(),
        state.text()
    );
    match now {
        DomainState::RUNNING => {
            let before = word(*domain, DATA)?;
            until("a domain's progress", || Ok(word(*domain, DATA)? > before))?;
        }
        // Half destroyed: it is finished.
        DomainState::DESTROYED => domain.destroy().must("finish the destruction")?,
        _ => {}
    }
    Ok(now)
}

fn word(domain: Domain, gpa: u64) -> Result<u64, Why> {
    let mut word = [0; 8];
    domain.read(gpa, &mut word).must("read its memory")?;
    Ok(u64::from_le_bytes(word))
}

/// Destroys all domains of the book. The accounts must be those of the first time.
fn audit(book: &Book) -> Outcome {
    for place in 0..DOMAINS {
        if let Some((number, _)) = book.domain(place)? {
            drop(Temporary::from(system().open_domain(number).must("open")?));
            book.strike(place)?;
        }
    }
    let first = Entry::Accounts as u64;
    if book.get(Entry::Audited)? == 0 {
        sleep(100 * MS);
        for (index, value) in (first..).zip(accounts::now()?) {
            book.set_word(index, value)?;
        }
        return book.set(Entry::Audited, 1);
    }
    let mut before = Accounts::default();
    for (index, value) in (first..).zip(&mut before) {
        *value = book.word(index)?;
    }
    accounts::settle(&before)
}

/// Who does what a control guest does.
struct Worker {
    book: Book,
    dice: Dice,
}

impl Worker {
    /// Notes how long an operation takes, by some that are not counted.
    fn measure(&mut self) -> Outcome {
        const SOME: u64 = 16;
        let start = hypercall::clock();
        for _ in 0..SOME {
            self.operate()?;
        }
        let time = (hypercall::clock() - start) / SOME;
        self.book.set(Entry::Begun, 0)?;
        self.book.set(Entry::Time, time.max(1000))
    }

    /// Makes a domain that will kill this one.
    fn hire_a_killer(&mut self) -> Outcome {
        let child = Child::new(&Plan::new(killer()))?;
        let number = child.domain.info().must("info")?.number;
        self.book.set(Entry::Killer, number.into())?;
        let handle = own()
            .any()
            .grant(*child.domain, rights::CONTROL)
            .must("grant")?;
        let time = self.dice.below(3 * self.book.get(Entry::Time)?);
        child.set_word(DATA + 8, handle.0.into())?;
        child.set_word(DATA, hypercall::clock() + time)?;
        child.start()?;
        child.leave();
        Ok(())
    }

    /// Does something to one of the domains, or makes one.
    fn operate(&mut self) -> Outcome {
        let place = self.dice.below(DOMAINS);
        let Some((number, state)) = self.book.domain(place)? else {
            return self.make(place);
        };
        let operation = match state {
            DomainState::CREATED => self.dice.one(&[Start, Start, Start, Destroy]),
            DomainState::RUNNING => self.dice.one(&[Feed, Feed, Pause, Kill]),
            DomainState::PAUSED => self.dice.one(&[Resume, Resume, Feed, Kill]),
            _ => Destroy,
        };
        self.begin(operation, number)?;
        let domain = opened(number)?;
        let state = match operation {
            Nothing | Make => state,
            Start => {
                domain.start().must("start")?;
                DomainState::RUNNING
            }
            Feed => {
                self.feed(*domain)?;
                state
            }
            Pause => {
                domain.pause().must("pause")?;
                DomainState::PAUSED
            }
            Resume => {
                domain.resume().must("resume")?;
                DomainState::RUNNING
            }
            Kill => {
                domain.kill().must("kill")?;
                until("an end", || {
                    Ok(domain.info().must("info")?.state == DomainState::ENDED)
                })?;
                DomainState::ENDED
            }
            Destroy => {
                domain.destroy().must("destroy")?;
                self.book.strike(place)?;
                return self.end();
            }
        };
        self.book.set_domain(place, number, state)?;
        self.end()
    }

    fn begin(&self, operation: Operation, target: u32) -> Outcome {
        self.book.set(Entry::Target, target.into())?;
        self.book.set(Entry::Operation, operation as u64)?;
        let begun = self.book.get(Entry::Begun)?;
        self.book.set(Entry::Begun, begun + 1)
    }

    fn end(&self) -> Outcome {
        self.book.set(Entry::Operation, Nothing as u64)
    }

    fn make(&mut self, place: u64) -> Outcome {
        self.begin(Make, 0)?;
        let child = Child::new(&Plan::new(worker()))?;
        // It is to leave the CPUs to others.
        let schedule = Schedule {
            cap: 5,
            ..Schedule::USUAL
        };
        child.vcpu(0).schedule(&schedule).must("schedule")?;
        let number = child.domain.info().must("info")?.number;
        child.leave();
        self.book.set_domain(place, number, DomainState::CREATED)?;
        self.end()
    }

    /// What a control guest does for a domain that lives: types, writes to its memory, serves a port of it for a while.
    fn feed(&self, domain: Domain) -> Outcome {
        domain.type_in(b"food\n").must("type")?;
        domain.write(DATA + 0x100, b"food").must("write")?;
        let (slots, event) = (kit::memory(4096)?, kit::event()?);
        domain
            .claim(&Claim {
                kind: kind::PORTS,
                memory: slots.0.0.0,
                event: event.0.0.0,
                reserved: 0,
                first: 0x42,
                length: 1,
                tag: 0,
            })
            .must("claim")?;
        for _ in 0..8 {
            sleep(MS / 20);
            // It waits, if it runs and has come to the port.
            let _ = domain.complete(0, 0x55);
        }
        domain.release(kind::PORTS, 0x42).must("release")
    }
}

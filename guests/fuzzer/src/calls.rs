//! Random hypercalls. Two attackers at once make them, each with handles of every type: to itself, to two domains that both share, and
//! to what it makes as it goes. Arguments are mostly what the call wants, so that it gets deep, and sometimes anything.
//!
//! What must not happen to attackers by chance (that they end or unmap themselves) is left to a step of its own, which is rare and told
//! before.

#![allow(
    unsafe_code,
    reason = "snippet! assembles code, which runs in child domains"
)]

use plinth_rt::abi::call::{access, power, watch};
use plinth_rt::abi::device::kind;
use plinth_rt::abi::domain::platform;
use plinth_rt::abi::state::part;
use plinth_rt::abi::system::start::PORTS as START_PORTS;
use plinth_rt::abi::{
    Call, Claim, DomainConfig, DomainState, Handle, ObjectType, Reason, Schedule, Status, VcpuRun,
    VcpuState, rights,
};
use plinth_rt::object::{Any, Event, bytes_of};
use plinth_rt::quirks::is_tcg;
use plinth_rt::{Outcome, Snippet, Why, check, cpu, hypercall, println, snippet};
use plinth_testkit::attacker::{
    Attacker, FREE, Plan, RAM, heard, ordered, peek, poke, tell, told_at,
};
use plinth_testkit::child::{Child, Plan as ChildPlan, Temporary, config, real_mode};
use plinth_testkit::kit::{MS, Must, event, irq, memory, own, sleep, system};
use plinth_testkit::neighbour;
use plinth_testkit::runner::watched;

use crate::dice::Dice;
use crate::orders::{Again, Orders};

/// Calls of a run.
const CALLS: u64 = 1_000_000;
/// Calls of each attacker of a round.
const EACH: u64 = 20_000;
/// Attackers of a round.
const ATTACKERS: usize = 2;

// The words of an attacker's order.
const SEED: u64 = 0;
const MOST: u64 = 1;
const TCG: u64 = 2;
const TELLS: u64 = 3;
/// A handle to the attacker's own domain, without CONTROL.
const SELF: u64 = 4;
/// One with it, for the step that ends the attacker.
const WHOLE_SELF: u64 = 5;
/// How many other handles follow.
const HANDLES: u64 = 6;

// The words that an attacker tells.
/// Calls that it has made.
const MADE: u64 = 0;
/// It has made a step that may end it, at once or later, or is about to.
const DARES: u64 = 1;
/// What it found to be wrong, [`WRONG`].
const FOUND: u64 = 2;
/// Steps that it wants to have told, and those that were; the call and its arguments.
const WISH: u64 = 3;
const GRANTED: u64 = 4;
const STEP: u64 = 5;
/// For each of [`SHAPES`] how often it was made, and how often it succeeded.
const TALLY: u64 = 16;

/// What an attacker can find to be wrong.
const WRONG: [&str; 4] = [
    "nothing",
    "a status that there is none of",
    "another version",
    "a clock that goes back",
];

/// What an argument is to be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A handle of this type.
    To(ObjectType),
    /// A handle of any type.
    Any,
    /// A handle to an event, or none.
    EventOrNone,
    /// The address of a buffer of the caller's.
    Buffer,
    /// The address of such a structure, with contents.
    Config,
    Schedule,
    Claim,
    State,
    /// Bytes of a buffer.
    Length,
    /// Bytes of the part of a state that the arguments before name.
    PartLength,
    /// Bytes of memory.
    Bytes,
    /// An offset in memory.
    Offset,
    /// An address in the domain that the arguments before name.
    Page,
    /// The same, of a byte.
    Place,
    /// One of few numbers.
    Of(&'static [u64]),
    /// A number below this one.
    Below(u64),
    /// Rights for the handle before.
    Rights,
    /// A point of time.
    Time,
    /// Anything.
    Number,
}

/// A call as it is meant.
struct Shape {
    call: Call,
    /// How often it is made in proportion to others.
    weight: u64,
    arguments: &'static [Kind],
    /// The handle that it gives.
    gives: Option<ObjectType>,
}

const fn shape(call: Call, weight: u64, arguments: &'static [Kind]) -> Shape {
    Shape {
        call,
        weight,
        arguments,
        gives: None,
    }
}

impl Shape {
    const fn gives(self, kind: ObjectType) -> Self {
        Self {
            gives: Some(kind),
            ..self
        }
    }
}

use ObjectType as Type;

const SYSTEM: Kind = Kind::To(Type::SYSTEM);
const DOMAIN: Kind = Kind::To(Type::DOMAIN);
const VCPU: Kind = Kind::To(Type::VCPU);
const MEMORY: Kind = Kind::To(Type::MEMORY);
const EVENT: Kind = Kind::To(Type::EVENT);
const IRQ: Kind = Kind::To(Type::IRQ);
const PORTS: Kind = Kind::To(Type::PORTS);

const ACCESS: Kind = Kind::Of(&[1, 3, 5, 7, 7, 7, 0, 2, 8]);
const PARTS: Kind = Kind::Of(&[part::REGISTERS, part::REGISTERS, part::VECTOR, 2]);
const VECTOR: Kind = Kind::Of(&[31, 32, 33, 0x40, 0x80, 0xfe, 0xff, 0x100]);
const INDEX: Kind = Kind::Of(&[0, 0, 0, 1, 1, 2, 3, 64]);
const LINES: Kind = Kind::Of(&[0, 1, 2, 4, 23, 24, 25]);
/// Addresses and data of messages: to few, to all, with all delivery modes.
const MESSAGE_TO: Kind = Kind::Of(&[
    0xfee0_0000,
    0xfee0_1000,
    0xfeef_f000,
    0xfee0_000c,
    0xfee0_0fe0,
    0xfed0_0000,
]);
const MESSAGE: Kind = Kind::Of(&[
    0x40, 0x41, 0x140, 0x200, 0x400, 0x500, 0x600, 0x4500, 0x8040, 0xc040, 0x700, 0x10, 0x4610,
]);
const ACTIONS: Kind = Kind::Of(&[power::OFF, power::REBOOT, power::HALT, 3]);
const KINDS: Kind = Kind::Of(&[0, 1, 2, 3, 4]);
/// Ports and addresses at which claims begin.
const FIRST: Kind = Kind::Of(&[0, 0x40, 0x60, 0x70, 0x4000, 0x8000, 0xf000, 0xffff]);
/// Without the HPET, a narrow read of which ends Bochs (docs/testing.md).
const PHYSICAL: Kind = Kind::Of(&[
    0,
    0xa_0000,
    0xb_8000,
    0x10_0000,
    0xe000_0000,
    0xfec0_0000,
    0xfee0_0000,
    0xffff_f000,
    1 << 40,
]);
const POSITION: Kind = Kind::Of(&[0, 1, 100, 4096, 1 << 48, 1 << 48 | 7, 5 << 48, 1 << 63]);
const MASK: Kind = Kind::Of(&[0, watch::ENDED, watch::CONSOLE, watch::ALL, 4]);

/// Every call, but END, which is a step of its own.
static SHAPES: &[Shape] = &[
    shape(Call::VERSION, 1, &[]),
    shape(Call::CONSOLE_WRITE, 2, &[Kind::Buffer, Kind::Length]),
    shape(Call::CLOCK, 1, &[]),
    shape(Call::YIELD, 1, &[]),
    shape(Call::WAIT, 6, &[Kind::Time]),
    shape(Call::CONSOLE_READ, 2, &[Kind::Buffer, Kind::Length]),
    shape(Call::DOMAIN_CREATE, 8, &[SYSTEM, Kind::Config]).gives(Type::DOMAIN),
    shape(Call::DOMAIN_START, 8, &[DOMAIN]),
    shape(Call::DOMAIN_PAUSE, 8, &[DOMAIN]),
    shape(Call::DOMAIN_RESUME, 12, &[DOMAIN]),
    shape(Call::DOMAIN_KILL, 4, &[DOMAIN]),
    shape(Call::DOMAIN_DESTROY, 6, &[DOMAIN]),
    shape(Call::DOMAIN_INFO, 4, &[DOMAIN, Kind::Buffer]),
    shape(Call::DOMAIN_WATCH, 8, &[DOMAIN, Kind::EventOrNone, MASK]),
    shape(
        Call::DOMAIN_CONSOLE,
        4,
        &[DOMAIN, Kind::Buffer, Kind::Length, POSITION],
    ),
    shape(Call::DOMAIN_TYPE, 4, &[DOMAIN, Kind::Buffer, Kind::Length]),
    shape(Call::DOMAIN_NEXT, 2, &[SYSTEM, Kind::Below(40)]),
    shape(Call::DOMAIN_OPEN, 1, &[SYSTEM, Kind::Below(40)]).gives(Type::DOMAIN),
    shape(
        Call::DOMAIN_READ,
        8,
        &[DOMAIN, Kind::Buffer, Kind::Length, Kind::Place],
    ),
    shape(
        Call::DOMAIN_WRITE,
        8,
        &[DOMAIN, Kind::Buffer, Kind::Length, Kind::Place],
    ),
    shape(Call::VCPU_CREATE, 8, &[DOMAIN]).gives(Type::VCPU),
    shape(Call::VCPU_OPEN, 4, &[DOMAIN, INDEX]).gives(Type::VCPU),
    shape(
        Call::VCPU_GET_STATE,
        8,
        &[VCPU, PARTS, Kind::Buffer, Kind::Length],
    ),
    shape(
        Call::VCPU_SET_STATE,
        12,
        &[VCPU, PARTS, Kind::State, Kind::PartLength],
    ),
    shape(Call::VCPU_SCHEDULE, 4, &[VCPU, Kind::Schedule]),
    shape(Call::VCPU_INFO, 3, &[VCPU, Kind::Buffer]),
    shape(Call::VCPU_INTERRUPT, 6, &[VCPU, VECTOR]),
    shape(Call::MEMORY_CREATE, 12, &[DOMAIN, Kind::Bytes]).gives(Type::MEMORY),
    shape(Call::MEMORY_POPULATE, 12, &[MEMORY]),
    shape(
        Call::MEMORY_MAP,
        20,
        &[
            MEMORY,
            Kind::Offset,
            DOMAIN,
            Kind::Page,
            Kind::Bytes,
            ACCESS,
        ],
    ),
    shape(Call::MEMORY_UNMAP, 10, &[DOMAIN, Kind::Page, Kind::Bytes]),
    shape(
        Call::MEMORY_PROTECT,
        10,
        &[DOMAIN, Kind::Page, Kind::Bytes, ACCESS],
    ),
    shape(
        Call::MEMORY_DIRTY,
        8,
        &[DOMAIN, Kind::Page, Kind::Bytes, Kind::Buffer],
    ),
    shape(Call::MEMORY_PHYSICAL, 2, &[SYSTEM, PHYSICAL, Kind::Bytes]).gives(Type::MEMORY),
    shape(Call::MEMORY_INFO, 3, &[MEMORY, Kind::Buffer]),
    shape(Call::EVENT_CREATE, 8, &[DOMAIN]).gives(Type::EVENT),
    shape(Call::EVENT_SIGNAL, 10, &[EVENT]),
    shape(Call::EVENT_BIND, 8, &[EVENT, Kind::Number]),
    shape(Call::EVENT_BIND_VECTOR, 8, &[EVENT, VCPU, VECTOR]),
    shape(Call::EVENT_UNBIND, 6, &[EVENT]),
    shape(Call::DEVICE_CLAIM, 12, &[DOMAIN, Kind::Claim]),
    shape(Call::DEVICE_RELEASE, 6, &[DOMAIN, KINDS, FIRST]),
    shape(Call::DEVICE_COMPLETE, 10, &[DOMAIN, INDEX, Kind::Number]),
    shape(
        Call::DEVICE_LINE,
        6,
        &[DOMAIN, LINES, Kind::Of(&[0, 1, 1, 2])],
    ),
    shape(Call::DEVICE_MSI, 6, &[DOMAIN, MESSAGE_TO, MESSAGE]),
    shape(Call::IRQ_BIND, 2, &[IRQ, EVENT]),
    shape(Call::IRQ_ACK, 2, &[IRQ]),
    shape(Call::PORTS_ENABLE, 2, &[PORTS, DOMAIN]),
    shape(Call::HANDLE_DUPLICATE, 8, &[Kind::Any, Kind::Rights]),
    shape(Call::HANDLE_GRANT, 6, &[Kind::Any, DOMAIN, Kind::Rights]),
    shape(Call::HANDLE_CLOSE, 4, &[Kind::Any]),
    shape(Call::HANDLE_INFO, 3, &[Kind::Any]),
    shape(Call::SYSTEM_INFO, 1, &[SYSTEM, Kind::Buffer]),
    shape(
        Call::SYSTEM_LOG,
        2,
        &[SYSTEM, Kind::Buffer, Kind::Length, POSITION],
    ),
    shape(
        Call::SYSTEM_TRACE,
        2,
        &[SYSTEM, Kind::Buffer, Kind::Length, POSITION],
    ),
    shape(Call::SYSTEM_POWER, 1, &[SYSTEM, ACTIONS, Kind::Number]),
];

/// Calls that the attackers have no right to, so that none of them can succeed.
const FORBIDDEN: [Call; 2] = [Call::DOMAIN_OPEN, Call::SYSTEM_POWER];

/// Handles that an attacker remembers.
const KNOWN: usize = 72;
/// Pages of an attacker's address space above its memory, where it maps what it likes; as many of other domains' from 0 on.
const WINDOW: u64 = 4 << 20;
const WINDOW_PAGES: u64 = 16;
const PAGE: u64 = 4096;
/// What is written from below here on does not reach the image.
const LAST_FREE: u64 = (1 << 20) - 2 * PAGE;
/// The entries of an attacker's tables from here on map nothing that it uses.
const LAST_TABLES: u64 = RAM - 256;
/// Where an attacker keeps vector state.
const VECTOR_STATE: u64 = FREE + 0x8_0000;
/// Real-mode programs for the domains that attackers make: they spin, halt, ask and write ports, count, call, touch what may be claimed,
/// wait by WAIT, and end by a triple fault.
const PROGRAMS: [&[u8]; 8] = [
    &[0xf3, 0x90, 0xeb, 0xfc],
    &[0xfb, 0xf4, 0xeb, 0xfc],
    &[0xe4, 0x40, 0xe6, 0x70, 0x0f, 0xa2, 0xf3, 0x90, 0xeb, 0xf6],
    &[0xff, 0x06, 0x00, 0x20, 0xf3, 0x90, 0xeb, 0xf8],
    &[
        0x66, 0xb8, 3, 0, 0, 0, 0x0f, 0x01, 0xd9, 0xf3, 0x90, 0xeb, 0xf3,
    ],
    &[
        0xa0, 0x00, 0x80, 0xa2, 0x00, 0x40, 0xa1, 0xff, 0x8f, 0xf3, 0x90, 0xeb, 0xf3,
    ],
    &[
        0x66, 0xb8, 5, 0, 0, 0, 0x66, 0xbf, 0xff, 0xff, 0xff, 0x7f, 0x0f, 0x01, 0xd9, 0xeb, 0xef,
    ],
    &[0x0f, 0x01, 0x1e, 0x00, 0x30, 0xcd, 0x03],
];

/// How what is made runs: so little that the attackers have the CPUs.
const LIGHT: Schedule = Schedule {
    weight: Schedule::MIN_WEIGHT,
    cap: 1,
    ..Schedule::USUAL
};

/// What the shared domains do. Whoever spins says so by PAUSE: an emulator whose CPUs take turns goes on with the next then.
fn counter() -> Snippet {
    snippet!("2: inc qword ptr [0x2000]", "pause", "jmp 2b")
}

/// A handle that an attacker has.
#[derive(Clone, Copy)]
struct Known {
    kind: ObjectType,
    /// 0 in a free place.
    handle: u64,
    /// It names the attacker's own domain.
    is_own: bool,
}

impl Known {
    const NONE: Self = Self {
        kind: Type(0),
        handle: 0,
        is_own: false,
    };
}

/// In an attacker: makes calls.
struct Caller {
    dice: Dice,
    made: u64,
    known: [Known; KNOWN],
    /// How many of them it was given, which it keeps.
    given: usize,
    /// The handle for the step that ends it.
    whole_self: u64,
    /// A handle that was closed.
    closed: u64,
    weights: u64,
    vector_length: u64,
    clock: u64,
    is_tcg: bool,
    tells: bool,
}

/// What an attacker does.
fn attack() -> Outcome {
    let vector_length = match cpu::cpuid(0xd, 0).ebx {
        0 => 512,
        length => length.into(),
    };
    let mut caller = Caller {
        dice: Dice::new(ordered(SEED), 0),
        made: 0,
        known: [Known::NONE; KNOWN],
        given: 0,
        whole_self: ordered(WHOLE_SELF),
        closed: 0,
        weights: SHAPES.iter().map(|shape| shape.weight).sum(),
        vector_length,
        clock: 0,
        is_tcg: ordered(TCG) != 0,
        tells: ordered(TELLS) != 0,
    };
    caller.keep(Known {
        kind: Type::DOMAIN,
        handle: ordered(SELF),
        is_own: true,
    });
    for index in 0..ordered(HANDLES) {
        let handle = ordered(HANDLES + 1 + index);
        let (_, info) = hypercall::call(Call::HANDLE_INFO, [handle]);
        caller.keep_new(Type((info >> 32) as u32), handle);
        caller.given = index as usize + 2;
    }
    // Calls may write to where the order lies.
    let most = ordered(MOST);
    while caller.made < most {
        caller.step();
    }
    Ok(())
}

/// The address of a buffer, or one behind the attacker's memory, if what it needs itself is there: orders and words, its image and its
/// tables but for the last entries.
fn safe(address: u64) -> u64 {
    match address {
        0x20..FREE | LAST_FREE..LAST_TABLES => address + RAM,
        _ => address,
    }
}

/// In an attacker: tells what is wrong, and ends.
fn found(what: u64) -> ! {
    tell(FOUND, what);
    hypercall::end(0)
}

impl Caller {
    fn step(&mut self) {
        match self.dice.below(1024) {
            0 if self.dice.once_in(16) => self.dare(),
            0 => self.look_at_myself(),
            1..=16 => self.make_domain(),
            17..=40 => self.let_go(),
            41..=60 => {
                let call = match self.dice.below(4) {
                    0 => self.dice.interesting(),
                    _ => self.dice.below(0x90),
                };
                let arguments = core::array::from_fn(|_| safe(self.dice.interesting()));
                if call != Call::END.0 {
                    self.call(Call(call), arguments);
                }
            }
            _ => self.shaped(),
        }
    }

    /// Makes a call. What comes back must be a status.
    fn call(&mut self, call: Call, arguments: [u64; 6]) -> (Status, u64) {
        if self.tells {
            for (index, word) in (STEP..).zip([call.0].into_iter().chain(arguments)) {
                tell(index, word);
            }
            tell(WISH, self.made + 1);
            while heard(GRANTED) <= self.made {
                hypercall::yield_now();
            }
        }
        let answer = hypercall::call(call, arguments);
        self.made += 1;
        tell(MADE, self.made);
        if answer.0.0 > Status::NOT_SUPPORTED.0 {
            found(1);
        }
        answer
    }

    /// The version is what it was, and time goes on.
    fn look_at_myself(&mut self) {
        let (_, version) = self.call(Call::VERSION, [0; 6]);
        if version != plinth_rt::abi::ABI_VERSION.into() {
            found(2);
        }
        let (_, now) = self.call(Call::CLOCK, [0; 6]);
        if now < self.clock {
            found(3);
        }
        self.clock = now;
    }

    /// Does what may be its end.
    fn dare(&mut self) {
        tell(DARES, 1);
        let whole = self.whole_self;
        let page = self.dice.below(RAM / PAGE) * PAGE;
        let number = self.dice.number();
        match self.dice.below(8) {
            0 => self.call(Call::END, [number, 0, 0, 0, 0, 0]),
            1 => self.call(Call::DOMAIN_KILL, [whole, 0, 0, 0, 0, 0]),
            2 => self.call(Call::DOMAIN_PAUSE, [whole, 0, 0, 0, 0, 0]),
            3 => self.call(
                Call::MEMORY_UNMAP,
                [whole, page, PAGE << (number & 7), 0, 0, 0],
            ),
            4 => self.call(Call::MEMORY_PROTECT, [whole, page, PAGE, number & 7, 0, 0]),
            5 => self.call(Call::WAIT, [u64::MAX, 0, 0, 0, 0, 0]),
            6 => self.call(Call::DOMAIN_WRITE, [whole, FREE, PAGE, page, 0, 0]),
            _ => self.call(Call::DOMAIN_DESTROY, [whole, 0, 0, 0, 0, 0]),
        };
    }

    /// Remembers a handle. Another is forgotten for it, and mostly closed.
    fn keep(&mut self, new: Known) {
        if let Some(free) = self.known.iter_mut().find(|known| known.handle == 0) {
            *free = new;
            return;
        }
        let place = self.given + self.dice.below((KNOWN - self.given) as u64) as usize;
        self.give_up(place);
        self.known[place] = new;
    }

    /// Remembers a handle to something that is not its own domain.
    fn keep_new(&mut self, kind: ObjectType, handle: u64) {
        self.keep(Known {
            kind,
            handle,
            is_own: false,
        });
    }

    /// Gives up what is in this place, as the kinds of objects want it.
    fn give_up(&mut self, place: usize) {
        let Known {
            kind,
            handle,
            is_own,
        } = self.known[place];
        if handle == 0 || place < self.given {
            return;
        }
        if kind == Type::DOMAIN && !is_own && !self.dice.once_in(8) {
            self.call(Call::DOMAIN_KILL, [handle, 0, 0, 0, 0, 0]);
            while self.call(Call::DOMAIN_DESTROY, [handle, 0, 0, 0, 0, 0]).0 == Status::AGAIN {}
        }
        if is_own || !self.dice.once_in(32) {
            self.call(Call::HANDLE_CLOSE, [handle, 0, 0, 0, 0, 0]);
            self.closed = handle;
        }
        self.known[place] = Known::NONE;
    }

    /// What it knows of this handle.
    fn known(&self, handle: u64) -> Known {
        self.known
            .iter()
            .find(|known| known.handle == handle)
            .map_or(Known::NONE, |known| *known)
    }

    /// Gives something up, so that budgets do not stay used up.
    fn let_go(&mut self) {
        let place = self.dice.below(KNOWN as u64) as usize;
        self.give_up(place);
    }

    /// A call as it is meant, mostly.
    fn shaped(&mut self) {
        let mut at = self.dice.below(self.weights);
        let chosen = SHAPES.iter().enumerate().find(|(_, shape)| {
            let is_it = at < shape.weight;
            at = at.wrapping_sub(shape.weight);
            is_it
        });
        let Some((index, shape)) = chosen else {
            return;
        };
        // It costs turns of all others that are ready.
        if shape.call == Call::YIELD && !self.dice.once_in(4) {
            return;
        }
        let mut arguments = [0; 6];
        for (place, kind) in shape.arguments.iter().enumerate() {
            arguments[place] = self.argument(*kind, &arguments);
        }
        if self.dice.once_in(16) {
            let place = self.dice.below(6) as usize;
            arguments[place] = match shape.arguments.get(place) {
                Some(Kind::Buffer | Kind::Config | Kind::Schedule | Kind::Claim | Kind::State) => {
                    safe(self.dice.interesting())
                }
                _ => self.dice.interesting(),
            };
        }
        // That what is anything is not by chance the caller's own memory, which it would not survive.
        if matches!(
            shape.call,
            Call::MEMORY_UNMAP | Call::MEMORY_PROTECT | Call::DOMAIN_WRITE
        ) && self.known(arguments[0]).is_own
        {
            let gpa = if shape.call == Call::DOMAIN_WRITE {
                3
            } else {
                1
            };
            arguments[gpa] = arguments[gpa].max(WINDOW);
        }
        let is_given = |known: &Known| known.handle == arguments[0];
        if shape.call == Call::HANDLE_CLOSE && self.known[..self.given].iter().any(is_given) {
            return;
        }
        let (status, value) = self.call(shape.call, arguments);
        let tally = TALLY + 2 * index as u64;
        tell(tally, heard(tally) + 1);
        if status != Status::OK {
            return;
        }
        tell(tally + 1, heard(tally + 1) + 1);
        match shape.call {
            Call::HANDLE_DUPLICATE => self.keep_another(arguments[0], value),
            Call::HANDLE_GRANT if self.known(arguments[1]).is_own => {
                self.keep_another(arguments[0], value);
            }
            Call::HANDLE_CLOSE => {
                self.closed = arguments[0];
                self.forget(arguments[0]);
            }
            // It is good for little any more.
            Call::DOMAIN_DESTROY if self.dice.once_in(2) => {
                self.call(Call::HANDLE_CLOSE, [arguments[0], 0, 0, 0, 0, 0]);
                self.forget(arguments[0]);
            }
            _ => {
                if let Some(kind) = shape.gives {
                    self.keep_new(kind, value);
                }
            }
        }
    }

    fn forget(&mut self, handle: u64) {
        for known in self.known.iter_mut().skip(self.given) {
            if known.handle == handle {
                *known = Known::NONE;
            }
        }
    }

    /// Remembers another handle to the same object.
    fn keep_another(&mut self, handle: u64, another: u64) {
        let known = self.known(handle);
        self.keep(Known {
            handle: another,
            ..known
        });
    }

    /// A handle of this type, or of any; one that it has, mostly.
    fn handle(&mut self, kind: Option<ObjectType>) -> u64 {
        let any = self.dice.below(KNOWN as u64) as usize;
        let near = self.known[any].handle;
        match self.dice.below(64) {
            0 => self.dice.interesting(),
            1 => self.closed,
            2 => near ^ 1 << self.dice.below(64),
            3 => near.wrapping_add(1 << 16),
            4 => near,
            _ => {
                let (before, from) = self.known.split_at(any);
                from.iter()
                    .chain(before)
                    .find(|known| known.handle != 0 && kind.is_none_or(|kind| known.kind == kind))
                    .map_or(0, |known| known.handle)
            }
        }
    }

    /// The address of a buffer: mostly memory that is free for it, sometimes across its end, or anything.
    fn buffer(&mut self) -> u64 {
        match self.dice.below(32) {
            0 => safe(self.dice.interesting()),
            1 => RAM - self.dice.one(&[0, 1, 8, 16, 144]),
            2..=5 => WINDOW + self.dice.below(WINDOW_PAGES * PAGE),
            6 => FREE + PAGE * (1 + self.dice.below(32)) - self.dice.below(200),
            _ => FREE + 8 * self.dice.below(0x8000),
        }
    }

    /// Where a structure of so many bytes can be written: a buffer that is free memory.
    fn place(&mut self, bytes: &[u8]) -> u64 {
        let at = FREE + 8 * self.dice.below(0x4000);
        for (address, word) in (at..).step_by(8).zip(bytes.chunks(8)) {
            let word = word
                .iter()
                .rev()
                .fold(0, |sum, byte| sum << 8 | u64::from(*byte));
            poke(address, word);
        }
        // Sometimes with a word changed.
        if self.dice.once_in(4) {
            let word = self.dice.below(bytes.len().div_ceil(8) as u64);
            let value = match self.dice.below(3) {
                0 => self.dice.interesting(),
                _ => peek(at + 8 * word) ^ 1 << self.dice.below(64),
            };
            poke(at + 8 * word, value);
        }
        at
    }

    fn argument(&mut self, kind: Kind, before: &[u64; 6]) -> u64 {
        match kind {
            Kind::To(kind) => self.handle(Some(kind)),
            Kind::Any => self.handle(None),
            Kind::EventOrNone if self.dice.once_in(4) => 0,
            Kind::EventOrNone => self.handle(Some(Type::EVENT)),
            Kind::Buffer => self.buffer(),
            Kind::Config => self.config(),
            Kind::Schedule => {
                let schedule = Schedule {
                    weight: self.dice.one(&[16, 16, 16, 64, 256, 15]),
                    cap: self.dice.one(&[1, 1, 1, 2, 5, 0, 101]),
                    cpu: self.dice.one(&[Schedule::ANY_CPU, 0, 1, 2]),
                    reserved: 0,
                };
                self.place(bytes_of(&schedule))
            }
            Kind::Claim => self.claim(),
            Kind::State if before[1] == part::VECTOR => VECTOR_STATE,
            Kind::State => {
                let state = self.state();
                self.place_state(state)
            }
            Kind::Length => match self.dice.below(8) {
                0 => self.dice.interesting(),
                1 => self.dice.one(&[0, 4095, 4096, 4097]),
                2 => size_of::<VcpuState>() as u64,
                3 => self.vector_length,
                _ => self.dice.below(256),
            },
            Kind::PartLength if before[1] == part::VECTOR => self.vector_length,
            Kind::PartLength => size_of::<VcpuState>() as u64,
            Kind::Bytes => match self.dice.below(32) {
                0 => self.dice.interesting(),
                1 => self
                    .dice
                    .one(&[1 << 21, 1 << 30, 1 << 40, 0u64.wrapping_sub(PAGE)]),
                _ => PAGE << self.dice.below(5),
            },
            Kind::Offset => match self.dice.below(16) {
                0 => self.dice.interesting(),
                _ => PAGE * self.dice.one(&[0, 0, 0, 0, 1, 2, 3]),
            },
            Kind::Page | Kind::Place => {
                let domain = before[0];
                // MEMORY_MAP names the domain behind the memory.
                let is_own = self.known(domain).is_own || self.known(before[2]).is_own;
                let base = if is_own { WINDOW } else { 0 };
                let within = if kind == Kind::Place {
                    self.dice.below(PAGE)
                } else {
                    0
                };
                match self.dice.below(32) {
                    0 => self.dice.interesting(),
                    1 => self
                        .dice
                        .one(&[0xfee0_0000, 0xfec0_0000, 1 << 30, (1 << 48) - PAGE]),
                    _ => base + PAGE * self.dice.below(WINDOW_PAGES) + within,
                }
            }
            Kind::Of(numbers) => self.dice.one(numbers),
            Kind::Below(end) => self.dice.below(end),
            Kind::Rights => match self.dice.below(8) {
                0 => self.dice.number() & 0x3fff,
                1 => self.dice.interesting(),
                _ => match self.known(before[0]).kind {
                    Type::DOMAIN => rights::DOMAIN & !rights::CONTROL,
                    Type::VCPU => rights::READ,
                    Type::MEMORY => rights::MEMORY_OBJECT,
                    Type::EVENT => rights::EVENT,
                    _ => rights::READ,
                }
                .into(),
            },
            Kind::Time => match self.dice.below(8) {
                0 => hypercall::clock() + self.dice.below(50_000),
                1 => hypercall::clock().wrapping_sub(self.dice.below(1000)),
                _ => 0,
            },
            Kind::Number => self.dice.interesting(),
        }
    }

    fn config(&mut self) -> u64 {
        let config = DomainConfig {
            frames: self.dice.one(&[8, 24, 48, 64, 96, 7]),
            heap: self.dice.one(&[16 << 10, 32 << 10, 48 << 10, 64 << 10]),
            handles: self.dice.one(&[1, 4, 16, 32]),
            vcpus: self.dice.one(&[1, 1, 2, 4]),
            platform: self.dice.one(&[0, platform::PC]),
            ..config(
                self.dice
                    .one(&[&b"a"[..], b"fuzzed", b"\xc3\xa9", b"\xff", b""]),
            )
        };
        self.place(bytes_of(&config))
    }

    fn claim(&mut self) -> u64 {
        let what = self
            .dice
            .one(&[kind::PORTS, kind::MMIO, kind::ACKNOWLEDGE, 0]);
        let (first, length) = match what {
            kind::PORTS => (
                self.dice.one(&[0, 0x40, 0x60, 0x70, 0xffff]),
                self.dice.one(&[1, 1, 2, 8, 0x1_0000]),
            ),
            kind::MMIO => (
                PAGE * self.dice.below(WINDOW_PAGES),
                PAGE * self.dice.one(&[1, 1, 2, 4]),
            ),
            _ => (0, 1),
        };
        let claim = Claim {
            kind: what,
            memory: self.handle(Some(Type::MEMORY)) as u32,
            event: self.handle(Some(Type::EVENT)) as u32,
            reserved: 0,
            first,
            length,
            tag: self.dice.number(),
        };
        self.place(bytes_of(&claim))
    }

    fn state(&mut self) -> VcpuState {
        match self.dice.below(4) {
            0 => VcpuState::long_mode(0x1000, 0x3000, 0),
            1 => VcpuState::protected_mode(0x1000),
            _ => real_mode(0x1000),
        }
    }

    /// A state in memory, sometimes changed, but not to what an emulator does not survive (docs/testing.md).
    fn place_state(&mut self, state: VcpuState) -> u64 {
        let at = self.place(bytes_of(&state));
        if self.is_tcg {
            let word = |offset: usize| peek(at + offset as u64);
            let (cr0, cr4) = (
                word(core::mem::offset_of!(VcpuState, cr0)),
                word(core::mem::offset_of!(VcpuState, cr4)),
            );
            if cr0 >> 31 & 1 == 0 && cr4 >> 5 & 1 == 0 {
                poke(at + core::mem::offset_of!(VcpuState, efer) as u64, 0);
            }
            poke(at + core::mem::offset_of!(VcpuState, dr7) as u64, 0x400);
        }
        at
    }

    /// A whole domain that runs, if the budgets allow it.
    fn make_domain(&mut self) {
        let system = self.handle(Some(Type::SYSTEM));
        let pages = self.dice.one(&[4, 8, 16]);
        let config = DomainConfig {
            frames: pages + 40,
            heap: 48 << 10,
            handles: 8,
            vcpus: 2,
            platform: self.dice.one(&[0, platform::PC]),
            ..config(b"made")
        };
        let at = self.place(bytes_of(&config));
        let (status, domain) = self.call(Call::DOMAIN_CREATE, [system, at, 0, 0, 0, 0]);
        if status != Status::OK {
            return;
        }
        self.keep_new(Type::DOMAIN, domain);
        let bytes = pages * PAGE;
        let (status, memory) = self.call(Call::MEMORY_CREATE, [domain, bytes, 0, 0, 0, 0]);
        if status != Status::OK {
            return;
        }
        self.keep_new(Type::MEMORY, memory);
        while self.call(Call::MEMORY_POPULATE, [memory, 0, 0, 0, 0, 0]).0 == Status::AGAIN {}
        self.call(Call::MEMORY_MAP, [memory, 0, domain, 0, bytes, access::ALL]);
        let program = self.dice.one(&PROGRAMS);
        let mut code = [0x90; 24];
        for (place, byte) in code.iter_mut().zip(program) {
            *place = *byte;
        }
        if !hypercall::is_vmmcall() {
            // VMCALL in place of VMMCALL.
            if let Some(at) = code
                .windows(3)
                .position(|bytes| bytes == [0x0f, 0x01, 0xd9])
            {
                code[at + 2] = 0xc1;
            }
        }
        let at = self.place(&code);
        self.call(Call::DOMAIN_WRITE, [domain, at, 24, 0x1000, 0, 0]);
        for _ in 0..1 + self.dice.below(2) {
            let (status, vcpu) = self.call(Call::VCPU_CREATE, [domain, 0, 0, 0, 0, 0]);
            if status != Status::OK {
                return;
            }
            self.keep_new(Type::VCPU, vcpu);
            let at = self.place_state(real_mode(0x1000));
            let length = size_of::<VcpuState>() as u64;
            self.call(
                Call::VCPU_SET_STATE,
                [vcpu, part::REGISTERS, at, length, 0, 0],
            );
            let at = self.place(bytes_of(&LIGHT));
            self.call(Call::VCPU_SCHEDULE, [vcpu, at, 0, 0, 0, 0]);
        }
        self.claim_of(domain);
        self.call(Call::DOMAIN_START, [domain, 0, 0, 0, 0, 0]);
        if self.dice.once_in(16) {
            self.call(Call::YIELD, [0; 6]);
        }
        self.call(Call::DEVICE_COMPLETE, [domain, 0, 0x55, 0, 0, 0]);
    }

    /// Claims of a domain what its program touches.
    fn claim_of(&mut self, domain: u64) {
        let ports = self.dice.once_in(2);
        let claim = Claim {
            kind: if ports { kind::PORTS } else { kind::MMIO },
            memory: self.handle(Some(Type::MEMORY)) as u32,
            event: self.handle(Some(Type::EVENT)) as u32,
            reserved: 0,
            first: if ports { 0x40 } else { 0x8000 },
            length: if ports { 1 } else { PAGE },
            tag: 0,
        };
        let at = self.place(bytes_of(&claim));
        self.call(Call::DEVICE_CLAIM, [domain, at, 0, 0, 0, 0]);
    }
}

/// How often each of [`SHAPES`] was made, and how often it succeeded.
struct Tallies([[u64; 2]; SHAPES.len()]);

/// An attacker in its round.
struct Running {
    attacker: Attacker,
    /// Calls that it has made, when it was looked at last.
    made: u64,
    /// When that number changed.
    since: u64,
    /// It has ended, or was ended.
    is_over: bool,
}

/// How long an attacker may wait before it is ended, and how long it may be in one call.
const IDLE: u64 = 20 * MS;
const STUCK: u64 = 5_000 * MS;

impl Running {
    /// Makes one.
    fn new(orders: &Orders, seed: u64, most: u64) -> Result<Self, Why> {
        let attacker = Attacker::new(&Plan {
            frames: 2048,
            heap: 1 << 20,
            handles: 256,
            ..Plan::new(attack)
        })?;
        let schedule = Schedule {
            weight: 1024,
            ..Schedule::USUAL
        };
        attacker.vcpu(0).schedule(&schedule).must("schedule")?;
        for (index, word) in [
            (SEED, seed),
            (MOST, most),
            (TCG, is_tcg().into()),
            (TELLS, orders.tells.into()),
        ] {
            attacker.order(index, word)?;
        }
        let whole = attacker.domain.any();
        let own = attacker.give(whole, rights::DOMAIN & !rights::CONTROL)?;
        attacker.order(SELF, own)?;
        attacker.order(WHOLE_SELF, attacker.give(whole, rights::DOMAIN)?)?;
        Ok(Self {
            attacker,
            made: 0,
            since: hypercall::clock(),
            is_over: false,
        })
    }

    /// Gives it these handles, and lets it run.
    fn start(&self, handles: &[(Any, u32)]) -> Outcome {
        self.attacker.order(HANDLES, handles.len() as u64)?;
        for (index, (any, rights)) in (HANDLES + 1..).zip(handles) {
            let handle = self.attacker.give(*any, *rights)?;
            self.attacker.order(index, handle)?;
        }
        self.attacker.start()
    }

    /// A word that it tells; 0 where it has unmapped even that.
    fn told(&self, index: u64) -> u64 {
        self.attacker.told(index).unwrap_or(0)
    }

    /// Tells the call that it wants to make, and lets it.
    fn grant(&self, name: usize) -> Outcome {
        let wish = self.told(WISH);
        if wish > self.told(GRANTED) {
            let [call, arguments @ ..]: [u64; 7] =
                core::array::from_fn(|index| self.told(STEP + index as u64));
            println!("{name}: {wish} {}{arguments:x?}", Call(call).name());
            let at = told_at(GRANTED);
            // It may have unmapped that just now.
            let _ = self.attacker.write(at, &wish.to_le_bytes());
        }
        Ok(())
    }

    /// Looks at it: its end, if it has ended, must be one that it may have; where it does nothing any more, it is ended.
    fn look(&mut self) -> Outcome {
        let info = self.attacker.domain.info().must("its info")?;
        let (now, made) = (hypercall::clock(), self.told(MADE));
        if made > self.made {
            self.made = made;
            self.since = now;
        }
        if info.state == DomainState::ENDED {
            self.is_over = true;
            let wrong = self.told(FOUND);
            check!(
                wrong == 0,
                "call {made}: {}",
                WRONG.get(wrong as usize).unwrap_or(&"something")
            );
            let is_good = match info.reason {
                Reason::STATUS if info.info[0] == 0 => true,
                // Whoever dares can end by whatever it has made of its memory, but not by a fault of the kernel.
                Reason::ENTRY_FAILED
                | Reason::UNEXPECTED_EXIT
                | Reason::NESTED_MISCONFIGURATION => false,
                _ => self.told(DARES) != 0 || self.told(MADE) == 0,
            };
            if !is_good && info.reason == Reason::STATUS {
                // An exception or a panic says more on the console.
                let mut text = [0; 272];
                let from = info.console_end.saturating_sub(256);
                if let Ok((_, bytes)) = self.attacker.domain.console(&mut text, from) {
                    for line in bytes.utf8_chunks() {
                        println!("note: the attacker says: {}", line.valid());
                    }
                }
            }
            check!(
                is_good,
                "behind call {made}: {} {:x?} at {:#x}",
                info.reason.text(),
                info.info,
                info.rip
            );
            return Ok(());
        }
        let run = self.attacker.vcpu(0).info().must("its vCPU")?.run;
        let is_idle = matches!(run, VcpuRun::BLOCKED | VcpuRun::HELD);
        if is_idle && now - self.since > IDLE {
            self.is_over = true;
            return self.attacker.domain.kill().must("kill");
        }
        check!(
            now - self.since < STUCK,
            "stuck behind call {made}: its vCPU is {}",
            run.text()
        );
        Ok(())
    }
}

/// One round: two attackers with what they share. How many calls they made, and which.
fn one_round(orders: &Orders, round: u64, each: u64, idle: &Event) -> Result<(u64, Tallies), Why> {
    let victims = [0, platform::PC].map(|platform| {
        Child::new(&ChildPlan {
            platform,
            ..ChildPlan::new(counter())
        })
    });
    let (shared, event) = (memory(4 * PAGE)?, event()?);
    let mut running = [0, 1].map(|index| {
        let mut dice = Dice::new(orders.seed, round.wrapping_mul(ATTACKERS as u64) + index);
        Running::new(orders, dice.number(), each)
    });
    let outcome = carried_out(orders, &victims, shared.any(), event.any(), &mut running);
    drop((victims, shared, event));
    let mut made = 0;
    let mut tallies = Tallies([[0; 2]; SHAPES.len()]);
    for running in running.iter().flatten() {
        made += running.made;
        for (index, tally) in tallies.0.iter_mut().enumerate() {
            for (word, sum) in (0..).zip(tally) {
                *sum += running.told(TALLY + 2 * index as u64 + word);
            }
        }
    }
    drop(running);
    // An interrupt keeps the event that it signals: this one is nobody's but the suite's.
    if let Some(irq) = irq() {
        let _ = irq.bind(*idle);
    }
    sweep()?;
    outcome.map(|()| (made, tallies))
}

fn carried_out(
    orders: &Orders,
    victims: &[Result<Child, Why>; 2],
    memory: Any,
    event: Any,
    running: &mut [Result<Running, Why>; ATTACKERS],
) -> Outcome {
    let [Ok(plain), Ok(pc)] = victims else {
        return Err(format_args!("no victims").into());
    };
    let [Ok(first), Ok(second)] = running else {
        return Err(format_args!("no attackers").into());
    };
    for victim in [plain, pc] {
        victim.vcpu(0).schedule(&LIGHT).must("schedule")?;
        victim.start()?;
    }
    let of_the_system = rights::READ | rights::CREATE | rights::PHYSICAL | rights::GRANT;
    for (running, peer) in [(&*first, &*second), (&*second, &*first)] {
        let mut handles = [(system().any(), of_the_system); 12];
        let given = [
            (system().any(), of_the_system),
            (running.attacker.vcpu(0).any(), rights::READ),
            (
                peer.attacker.domain.any(),
                rights::READ | rights::WRITE | rights::GRANT,
            ),
            (plain.domain.any(), rights::DOMAIN),
            (plain.vcpu(0).any(), rights::VCPU),
            (plain.memory.any(), rights::MEMORY_OBJECT),
            (pc.domain.any(), rights::DOMAIN),
            (pc.vcpu(0).any(), rights::VCPU),
            (memory, rights::MEMORY_OBJECT),
            (event, rights::EVENT),
        ];
        let physical = [
            irq().map(|irq| (irq.any(), rights::PHYSICAL_OBJECT)),
            // The first ports are those of the console.
            clock_ports().map(|ports| (ports, rights::PHYSICAL_OBJECT)),
        ];
        let mut count = 0;
        for (place, handle) in handles
            .iter_mut()
            .zip(given.into_iter().chain(physical.into_iter().flatten()))
        {
            *place = handle;
            count += 1;
        }
        running.start(handles.get(..count).unwrap_or(&[]))?;
    }
    let all = [first, second];
    let mut all = all;
    while all.iter().any(|running| !running.is_over) {
        for (name, running) in all.iter_mut().enumerate() {
            if !running.is_over {
                if orders.tells {
                    running.grant(name)?;
                }
                running.look()?;
            }
        }
        sleep(if orders.tells { MS / 20 } else { MS });
    }
    Ok(())
}

/// The ports of the machine's clock.
fn clock_ports() -> Option<Any> {
    const FIRST: u64 = 0x70;
    let info = plinth_rt::start_info()?;
    let mut entries = info.entries.iter().take(info.count as usize);
    entries
        .find(|entry| entry.kind == START_PORTS && entry.first == FIRST)
        .map(|entry| Any(Handle(entry.handle)))
}

/// Ends and takes back what attackers have made and left: every domain but the suite's own and the neighbour.
fn sweep() -> Outcome {
    let keep = [own().info().must("own info")?.number, neighbour::number()?];
    let mut last = 0;
    while let Some(number) = system().next_domain(last).must("next domain")? {
        last = number;
        if !keep.contains(&number) {
            let domain = system().open_domain(number).must("open domain")?;
            drop(Temporary::from(domain));
        }
    }
    Ok(())
}

/// Rounds of random calls until there were so many as the orders say.
pub fn run() -> Outcome {
    let orders = Orders::given();
    if !orders.want("calls") {
        return Ok(());
    }
    let idle = event()?;
    // What the first of all attackers leaves in the kernel's lists is not what the rounds look for.
    one_round(&orders, u64::MAX, 2_000, &idle).map(drop)?;
    let most = orders.calls.unwrap_or(CALLS);
    let start = hypercall::clock();
    let (mut rounds, mut made) = (0, 0);
    let mut tallies = [[0; 2]; SHAPES.len()];
    while !orders.are_done(rounds, made, most) {
        let again = Again {
            fuzzer: "calls",
            seed: orders.seed,
            round: orders.first + rounds,
        };
        println!("{again}");
        let outcome = watched(|| {
            let (calls, of_the_round) = one_round(&orders, again.round, EACH, &idle)?;
            made += calls;
            for (sum, tally) in tallies.iter_mut().zip(of_the_round.0) {
                sum[0] += tally[0];
                sum[1] += tally[1];
            }
            Ok(())
        });
        outcome.map_err(|why| Why::from(format_args!("{again}: {why}")))?;
        rounds += 1;
    }
    let ms = (hypercall::clock() - start) / MS;
    println!("note: {made} calls in {rounds} rounds, {ms} ms");
    for (shape, [made, good]) in SHAPES.iter().zip(tallies) {
        println!("note: {}: {made}, of these good: {good}", shape.call.name());
    }
    for (shape, [_, good]) in SHAPES.iter().zip(tallies) {
        let name = shape.call.name();
        if FORBIDDEN.contains(&shape.call) {
            check!(good == 0, "{name} succeeded without the right to");
        } else if made >= CALLS / 4 {
            // In so many calls each gets to its end, or the fuzzer does not get deep.
            check!(good != 0, "{name} never succeeded");
        }
    }
    Ok(())
}

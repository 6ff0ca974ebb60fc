//! What the control guest has, and what it knows of the machine.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use core::cell::{Cell, RefCell};

use embassy_sync::blocking_mutex::raw::NoopRawMutex;
use embassy_sync::signal::Signal;
use embassy_sync::watch::{Receiver, Watch};
use embassy_time::{Duration, Instant, Timer, with_deadline};
use plinth_guest_control::format;
use plinth_guest_control::ring::Ring;
use plinth_rt::abi::Status;
use plinth_rt::object::{Domain, Memory, System};

use crate::archive::Archive;
use crate::guest::Guest;
use crate::terminal::Terminal;
use crate::window::Windows;

/// Consoles of destroyed domains that are kept.
const PAST: usize = 16;
/// Who can wait for changes at a time.
const WATCHERS: usize = 4;

type Changes = Watch<NoopRawMutex, (), WATCHERS>;

/// The control guest.
pub struct Control {
    /// The machine.
    pub system: System,
    /// The control guest's own domain.
    pub own: Domain,
    /// Its number.
    pub own_number: u32,
    /// Its name.
    pub own_name: String,
    /// The module archive's Memory object, and the archive's length in bytes.
    pub modules: Option<(Memory, u64)>,
    /// What is in the archive.
    pub archive: Archive,
    /// Where memory of others is mapped.
    pub windows: Windows,
    /// The operator's terminal.
    pub terminal: Terminal,
    /// The domains, by number.
    pub guests: RefCell<BTreeMap<u32, Guest>>,
    /// Consoles of destroyed domains, the latest last.
    pub past: RefCell<VecDeque<(String, Ring)>>,
    /// When which domain is to be restarted.
    pub restarts: RefCell<BTreeMap<u32, Instant>>,
    /// Wakes the keeper: a time limit or a restart is new.
    pub keeper: Signal<NoopRawMutex, ()>,
    /// Wakes who looks after the time of devices.
    pub timers: Signal<NoopRawMutex, ()>,
    /// There is output that nobody was told of.
    pub untold: Cell<bool>,
    /// The Unix time in nanoseconds when the machine's clock was 0.
    pub wall_clock: u64,
    /// Keys of the events that were taken and not looked at yet.
    arrived: RefCell<BTreeSet<u64>>,
    /// Something has arrived.
    arrival: Signal<NoopRawMutex, ()>,
    /// Something changed about some domain: output, an end.
    changes: Changes,
    /// Whether the last command succeeded.
    pub succeeded: Cell<bool>,
}

/// What the control guest finds at its start.
pub struct Found {
    pub system: System,
    pub own: Domain,
    pub own_number: u32,
    pub own_name: String,
    pub modules: Option<(Memory, u64)>,
    pub archive: Archive,
    pub windows: Windows,
    pub terminal: Terminal,
    pub wall_clock: u64,
}

impl Control {
    /// The control guest with what it found, and without domains.
    pub fn new(found: Found) -> Self {
        Self {
            system: found.system,
            own: found.own,
            own_number: found.own_number,
            own_name: found.own_name,
            modules: found.modules,
            archive: found.archive,
            windows: found.windows,
            terminal: found.terminal,
            guests: RefCell::default(),
            past: RefCell::default(),
            restarts: RefCell::default(),
            keeper: Signal::new(),
            timers: Signal::new(),
            untold: Cell::new(false),
            wall_clock: found.wall_clock,
            arrived: RefCell::default(),
            arrival: Signal::new(),
            changes: Watch::new(),
            succeeded: Cell::new(true),
        }
    }

    /// An event was taken.
    pub fn arrived(&self, key: u64) {
        self.arrived.borrow_mut().insert(key);
        self.arrival.signal(());
    }

    /// The key of an event that was taken, the lowest first.
    pub async fn next_event(&self) -> u64 {
        loop {
            if let Some(key) = self.arrived.borrow_mut().pop_first() {
                return key;
            }
            self.arrival.wait().await;
        }
    }

    /// Tells everyone who waits that something changed about some domain.
    pub fn changed(&self) {
        self.changes.sender().send(());
    }

    /// To wait for changes with.
    pub fn changes(&self) -> Waiter<'_> {
        Waiter {
            receiver: self.changes.receiver(),
        }
    }

    /// Does something with a domain; `None` where there is none of this number.
    pub fn with<T>(&self, number: u32, what: impl FnOnce(&mut Guest) -> T) -> Option<T> {
        self.guests.borrow_mut().get_mut(&number).map(what)
    }

    /// The number of the domain of this name.
    pub fn number_of(&self, name: &str) -> Option<u32> {
        let guests = self.guests.borrow();
        guests
            .values()
            .find(|guest| guest.name == name)
            .map(|guest| guest.number)
    }

    /// Keeps the console of a domain that is gone.
    pub fn keep_console(&self, name: String, console: Ring) {
        let mut past = self.past.borrow_mut();
        past.retain(|(other, _)| *other != name);
        if past.len() == PAST {
            past.pop_front();
        }
        past.push_back((name, console));
    }

    /// Words for an error of the kernel, with what is left of what it says is short.
    pub fn shortage(&self, why: Status) -> String {
        let left = match why {
            Status::NO_MEMORY => self.system.info().map(|info| info.free_frames),
            Status::OVER_BUDGET => self
                .own
                .info()
                .map(|info| info.max_frames.saturating_sub(info.frames)),
            _ => return why.to_string(),
        };
        match left {
            Ok(left) => alloc::format!("{why}: {} are left", format::frames(left)),
            Err(_) => why.to_string(),
        }
    }

    /// The machine of a domain that was found, by its name or by the name that it was numbered from.
    pub fn machine_of(
        &self,
        name: &str,
    ) -> Option<(String, Rc<plinth_guest_control::config::Machine>)> {
        let numbered = name
            .rsplit_once('-')
            .filter(|(_, number)| number.parse::<u32>().is_ok())
            .map(|(machine, _)| machine);
        [Some(name), numbered]
            .into_iter()
            .flatten()
            .find_map(|machine| Some((machine.into(), self.archive.machine(machine).ok()?)))
    }
}

/// Waits for changes.
pub struct Waiter<'a> {
    receiver: Option<Receiver<'a, NoopRawMutex, (), WATCHERS>>,
}

impl Waiter<'_> {
    /// Waits for a change since the last call, but not longer than to this moment.
    pub async fn until(&mut self, deadline: Instant) {
        match &mut self.receiver {
            // It does not matter which of both came.
            Some(receiver) => drop(with_deadline(deadline, receiver.changed()).await),
            // More wait than were thought of: then by looking now and then.
            None => Timer::at(deadline.min(Instant::now() + Duration::from_millis(20))).await,
        }
    }
}

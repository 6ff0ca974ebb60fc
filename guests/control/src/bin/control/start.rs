//! The control guest's start: what the kernel gave it, and what was there before it.

#![allow(
    unsafe_code,
    reason = "the module archive is memory that the kernel mapped"
)]

use alloc::string::String;
use alloc::vec::Vec;

use plinth_guest_control::batch::{Options, status};
use plinth_guest_control::format;
use plinth_guest_control::report::name;
use plinth_guest_control::windows::free_place;
use plinth_rt::abi::system::start;
use plinth_rt::abi::{Handle, Schedule, StartEntry, StartInfo};
use plinth_rt::object::{Domain, Irq, Memory, Ports, System};

use crate::archive::Archive;
use crate::cmos;
use crate::control::{Control, Found};
use crate::guest::with_vcpu;
use crate::heap;
use crate::key;
use crate::serial::Serial;
use crate::terminal::Terminal;
use crate::window::Windows;

/// What the kernel gave.
pub struct Start {
    info: StartInfo,
    system: System,
    own: Domain,
    /// How often a control guest was started before.
    pub restarts: u32,
}

impl Start {
    /// Takes what is at hand; what is missing of what is needed.
    pub fn take() -> Result<Self, &'static str> {
        let info = plinth_rt::start_info().ok_or("it was given nothing")?;
        let handle = |kind: u32| find(&info, kind).map(|entry| Handle(entry.handle));
        let system = handle(start::SYSTEM).map(System);
        let own = handle(start::SELF).map(Domain);
        Ok(Self {
            system: system.ok_or("it has no handle to the system")?,
            own: own.ok_or("it has no handle to itself")?,
            restarts: info.restarts,
            info,
        })
    }

    /// The serial port, where one was given.
    pub fn serial(&self) -> Serial {
        let enabled = self.enable_ports(|first| first != cmos::INDEX);
        let serial = Serial::new(enabled);
        if let Some(entry) = find(&self.info, start::IRQ)
            && let Ok(event) = self.own.create_event()
            && event.bind(key::SERIAL).is_ok()
        {
            serial.use_interrupt(Irq(Handle(entry.handle)), event);
        }
        serial
    }

    /// Enables the ports whose first is such a one, if they were given; the first.
    fn enable_ports(&self, is_meant: impl Fn(u16) -> bool) -> Option<u16> {
        let (entry, first) = entries(&self.info)
            .filter(|entry| entry.kind == start::PORTS)
            .filter_map(|entry| Some((entry, u16::try_from(entry.first).ok()?)))
            .find(|&(_, first)| is_meant(first))?;
        let enabled = Ports(Handle(entry.handle)).enable(self.own);
        enabled.is_ok().then_some(first)
    }

    /// The Unix time in nanoseconds when the machine's clock was 0; 0 where nothing tells it.
    fn wall_clock(&self) -> u64 {
        self.enable_ports(|first| first == cmos::INDEX)
            .map_or(0, |_| cmos::wall_clock())
    }

    /// Lets the control guest come before others: whoever needs it waits for it. Without that it is only slower.
    pub fn take_precedence(&self) {
        let schedule = Schedule {
            weight: Schedule::MAX_WEIGHT,
            ..Schedule::USUAL
        };
        let _ = with_vcpu(self.own, 0, |vcpu| vcpu.schedule(&schedule));
    }

    /// The control guest.
    pub fn control(&self, serial: &'static Serial) -> Result<Control, &'static str> {
        let modules = find(&self.info, start::MODULES);
        let mut taken: Vec<(u64, u64)> = entries(&self.info)
            .filter(|entry| [start::RAM, start::MODULES].contains(&entry.kind))
            .map(|entry| (entry.first, entry.length))
            .collect();
        let ram = plinth_rt::ram_size();
        let behind = free_place(ram, heap::RESERVED, &taken)
            .ok_or("it has no room for its heap below 1 GiB")?;
        heap::reserve(self.own, behind).map_err(|_| "there is no memory for its heap")?;
        taken.push((behind, heap::RESERVED));
        let bytes = modules.map_or(&[][..], |entry| {
            // SAFETY: the kernel has mapped so many bytes there, for reading only and for as long as this domain lives.
            unsafe { core::slice::from_raw_parts(entry.first as *const u8, entry.length as usize) }
        });
        let own = self.own.info().map_err(|_| "it cannot ask what it is")?;
        Ok(Control::new(Found {
            system: self.system,
            own: self.own,
            own_number: own.number,
            own_name: name(&own),
            modules: modules
                .filter(|entry| entry.handle != 0)
                .map(|entry| (Memory(Handle(entry.handle)), entry.length)),
            archive: Archive::new(bytes),
            windows: Windows::new(self.own, ram, &taken)
                .ok_or("it has no room for windows below 1 GiB")?,
            terminal: Terminal::new(serial),
            wall_clock: self.wall_clock(),
        }))
    }
}

fn entries(info: &StartInfo) -> impl Iterator<Item = StartEntry> {
    info.entries.into_iter().take(info.count as usize)
}

fn find(info: &StartInfo, kind: u32) -> Option<StartEntry> {
    entries(info).find(|entry| entry.kind == kind)
}

/// Takes over the domains that there are, and tells of a predecessor's crash.
pub fn find_domains(control: &Control, restarts: u32) {
    let mut found = Vec::new();
    for number in control.strangers() {
        match control.adopt(number) {
            Ok((number, state)) => {
                found.push(alloc::format!(
                    "{} ({})",
                    control.name_of(number),
                    state.text()
                ));
            }
            Err(why) => control.terminal.line(&alloc::format!(
                "error: domain {number} cannot be taken over: {why}"
            )),
        }
    }
    control.keeper.signal(());
    if restarts > 0 {
        control.terminal.line(&alloc::format!(
            "\n*** The control guest crashed and was started anew ({} so far). ***",
            format::counted(restarts as usize, "time")
        ));
        control.terminal.line(&alloc::format!(
            "{} found: {}",
            format::counted(found.len(), "domain"),
            some(&found)
        ));
    }
}

/// Some of the names.
fn some(names: &[String]) -> String {
    const SHOWN: usize = 20;
    let mut text = format::listed(names.iter().take(SHOWN));
    if names.len() > SHOWN {
        text += ", ...";
    }
    text
}

/// Starts the machines that want it.
pub fn autostart(control: &Control) {
    for name in control.archive.machines() {
        let started = match control.archive.machine(&name) {
            Ok(machine) if machine.autostart => control
                .create(&name, &name)
                .and_then(|number| control.start(number)),
            Ok(_) => continue,
            Err(why) => Err(why),
        };
        match started {
            Ok(done) => control.terminal.line(&done),
            Err(why) => control.terminal.line(&alloc::format!("error: {why}")),
        }
    }
}

/// A batch whose control guest crashed: nobody knows what has run of it.
pub async fn give_up(control: &Control, options: &Options) -> ! {
    control
        .terminal
        .line("error: the control guest crashed in the middle of the batch");
    control.power(options.end, status(usize::MAX)).await
}

//! The devices of a domain that the control guest serves: those of a PC, and the debug console.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::ops::Range;

use plinth_devices::{Ports, Power, bus};
use plinth_guest_control::slot::{answer, count, elements, single};
use plinth_rt::abi::device::{kind, line};
use plinth_rt::abi::{Claim, Slot, Status};
use plinth_rt::hypercall;
use plinth_rt::object::{Domain, Event, Memory, Result};

use crate::window::{Slots, Windows};

/// Bytes of input that are kept for a guest that does not read them.
const MOST_TYPED: usize = 4096;
/// The debug console's port, as Bochs and QEMU have it: what is written there goes to the domain's console.
const DEBUG_CONSOLE: u16 = 0xe9;

/// Which devices a domain has.
#[derive(Debug)]
pub struct Equipment {
    /// Port 0xe9.
    pub debug_console: bool,
    /// Those of a PC.
    pub pc: Option<Pc>,
}

/// A PC's devices.
#[derive(Debug)]
pub struct Pc {
    /// Those at ports.
    pub ports: bus::Config,
    /// The hole below 4 GiB in which no memory is: addresses there read as all ones.
    pub hole: Range<u64>,
}

/// The answer to an access, which the vCPU waits for.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    domain: Domain,
    vcpu: u32,
    value: u64,
}

impl Answer {
    /// Gives it.
    pub fn give(self) {
        // A domain that has ended meanwhile waits for nothing.
        let _ = self.domain.complete(self.vcpu, self.value);
    }

    /// Gives it, and waits for an event, as [`plinth_rt::object::wait`] does.
    pub fn give_and_wait(self, deadline_ns: u64) -> Result<Option<u64>> {
        self.domain
            .complete_and_wait(self.vcpu, self.value, deadline_ns)
    }
}

/// A domain's devices.
pub struct Devices {
    domain: Domain,
    event: Event,
    memory: Memory,
    slots: Slots,
    /// The last access of each vCPU that was served.
    served: Vec<u64>,
    /// What was claimed: kind and beginning.
    claims: Vec<(u32, u64)>,
    debug_console: bool,
    ports: Option<Ports>,
    /// There is a power button.
    has_button: bool,
    /// Its console is COM1.
    has_com1: bool,
    /// The level of the 8259As' output as the kernel knows it.
    intr: bool,
    output: Vec<u8>,
    /// What was typed, and the serial port had no room for.
    typed: VecDeque<u8>,
    /// What the domain wants of its machine.
    power: Option<Power>,
}

impl Devices {
    /// Claims what the devices of `domain` need, which has at most `vcpus` vCPUs. Accesses are told with `key`.
    pub fn new(
        own: Domain,
        windows: &Windows,
        domain: Domain,
        vcpus: u32,
        key: u64,
        equipment: &Equipment,
    ) -> Result<Self> {
        let bytes = (u64::from(vcpus) * size_of::<Slot>() as u64).next_multiple_of(4096);
        let memory = own.create_memory(bytes)?;
        let undo = |slots: Option<Slots>, why: Status| {
            // What was just made can be taken back; of the two errors the first one counts.
            if let Some(slots) = slots {
                let _ = windows.unmap_slots(slots);
            }
            let _ = memory.any().close();
            Err(why)
        };
        let slots = match windows.map_slots(memory, bytes) {
            Ok(Some(slots)) => slots,
            Ok(None) => return undo(None, Status::OVER_BUDGET),
            Err(why) => return undo(None, why),
        };
        let event = match own.create_event() {
            Ok(event) => event,
            Err(why) => return undo(Some(slots), why),
        };
        let pc = equipment.pc.as_ref();
        let mut devices = Self {
            domain,
            event,
            memory,
            slots,
            served: alloc::vec![0; vcpus as usize],
            claims: Vec::new(),
            debug_console: equipment.debug_console,
            ports: pc.map(|pc| Ports::new(&pc.ports, hypercall::clock())),
            has_button: pc.is_some_and(|pc| pc.ports.pm.is_some()),
            has_com1: pc.is_some_and(|pc| pc.ports.com1),
            intr: false,
            output: Vec::new(),
            typed: VecDeque::new(),
            power: None,
        };
        let claimed = event
            .bind(key)
            .and_then(|()| devices.claim_all(pc.map(|pc| &pc.hole)));
        match claimed {
            Ok(()) => Ok(devices),
            Err(why) => {
                devices.close(windows);
                Err(why)
            }
        }
    }

    fn claim_all(&mut self, hole: Option<&Range<u64>>) -> Result<()> {
        if self.debug_console {
            self.claim(kind::PORTS, DEBUG_CONSOLE.into(), 1)?;
        }
        let ranges = self.ports.as_ref().map(Ports::ranges).unwrap_or_default();
        for range in ranges {
            self.claim(kind::PORTS, range.first.into(), range.length.into())?;
        }
        if let Some(hole) = hole {
            self.claim(kind::ACKNOWLEDGE, 0, 1)?;
            self.claim(kind::MMIO, hole.start, hole.end - hole.start)?;
        }
        Ok(())
    }

    fn claim(&mut self, kind: u32, first: u64, length: u64) -> Result<()> {
        self.domain.claim(&Claim {
            kind,
            memory: self.memory.0.0,
            event: self.event.0.0,
            reserved: 0,
            first,
            length,
            tag: 0,
        })?;
        self.claims.push((kind, first));
        Ok(())
    }

    /// Serves the accesses that wait; whether the time of [`Self::next_event`] may be another one now, and the last answer, which is
    /// left to the caller to give.
    pub fn serve(&mut self) -> (bool, Option<Answer>) {
        let (mut moved, mut last) = (false, None);
        for vcpu in 0..self.served.len() {
            let sequence = self.slots.sequence(vcpu as u32);
            if sequence.is_none() || sequence == self.served.get(vcpu).copied() {
                continue;
            }
            // The sequence is written last: the rest is there.
            if let (Some(slot), Some(served)) =
                (self.slots.read(vcpu as u32), self.served.get_mut(vcpu))
            {
                *served = slot.sequence;
                let (is_timed, answer) = self.serve_one(vcpu as u32, &slot);
                moved |= is_timed;
                if let Some(before) = core::mem::replace(&mut last, answer) {
                    before.give();
                }
            }
        }
        (moved, last)
    }

    /// Serves one access; whether a device follows the clock that it was to, and the answer.
    fn serve_one(&mut self, vcpu: u32, slot: &Slot) -> (bool, Option<Answer>) {
        // The serial port, at which most accesses are, follows no clock.
        let is_timed = slot.kind != kind::PORTS || !bus::is_com1(slot.address as u16);
        let now = if is_timed { hypercall::clock() } else { 0 };
        let value = match (slot.kind, slot.write != 0) {
            (kind::PORTS, true) => {
                match single(slot) {
                    Some(element) => self.write(slot.address as u16, slot.size, element, now),
                    None => {
                        for element in elements(slot) {
                            self.write(slot.address as u16, slot.size, element, now);
                        }
                    }
                }
                0
            }
            (kind::PORTS, false) if slot.count == 1 => {
                let value = self.read(slot.address as u16, slot.size, now);
                if !self.typed.is_empty() {
                    // There may be room again.
                    self.pass_typed();
                }
                self.slots.answer_word(vcpu, value);
                value.into()
            }
            (kind::PORTS, false) => {
                let read: Vec<u32> = (0..count(slot))
                    .map(|_| self.read(slot.address as u16, slot.size, now))
                    .collect();
                let (data, value) = answer(slot, &read);
                self.slots.answer(vcpu, &data);
                value
            }
            (kind::ACKNOWLEDGE, _) => {
                let vector = self.ports.as_mut().map(|ports| ports.acknowledge(now));
                vector.map_or(u64::MAX, u64::from)
            }
            // Nothing is there.
            _ => u64::MAX,
        };
        // The lines first: who has lowered one must not find it high when it goes on.
        self.tell_lines();
        // Who has switched the machine off does not get to the next instruction: that may be a HLT, which would be another end.
        let answer = self.power.is_none().then_some(Answer {
            domain: self.domain,
            vcpu,
            value,
        });
        (is_timed, answer)
    }

    fn read(&mut self, port: u16, size: u32, now: u64) -> u32 {
        match &mut self.ports {
            _ if self.debug_console && port == DEBUG_CONSOLE => 0xffff_ff00 | u32::from(port),
            Some(ports) => ports.read(port, size, now),
            None => u32::MAX,
        }
    }

    fn write(&mut self, port: u16, size: u32, value: u32, now: u64) {
        match &mut self.ports {
            _ if self.debug_console && port == DEBUG_CONSOLE => self.output.push(value as u8),
            Some(ports) => {
                ports.write(port, size, value, now);
                self.power = self.power.or(ports.take_power());
            }
            None => {}
        }
    }

    /// Tells the kernel which interrupt lines have changed. That the domain is over is no matter.
    fn tell_lines(&mut self) {
        let Some(ports) = &mut self.ports else {
            return;
        };
        let edges = ports.take_edges();
        let intr = ports.has_intr();
        // Most accesses move none.
        let moved = [(edges.lowered, false), (edges.raised, true)]
            .into_iter()
            .filter(|_| edges.lowered | edges.raised != 0);
        for (lines, level) in moved {
            let mut gsis = bus::gsis(lines);
            while gsis != 0 {
                let _ = self.domain.set_line(gsis.trailing_zeros(), level);
                gsis &= gsis - 1;
            }
        }
        if intr != self.intr {
            self.intr = intr;
            let _ = self.domain.set_line(line::INTR, intr);
        }
    }

    /// Looks at the lines, which somebody else than the guest may have moved.
    fn look(&mut self) {
        if let Some(ports) = &mut self.ports {
            ports.lines(hypercall::clock());
        }
        self.tell_lines();
    }

    /// Tells what time has brought; when to ask again, in nanoseconds of the clock.
    pub fn next_event(&mut self) -> Option<u64> {
        let next = self.ports.as_mut()?.next_event(hypercall::clock());
        // To look at the time may move lines.
        self.tell_lines();
        next
    }

    /// What the domain wrote to its consoles.
    pub fn take_output(&mut self) -> Vec<u8> {
        // After most accesses there is nothing.
        match &mut self.ports {
            Some(ports) if ports.has_output() => {
                let mut output = core::mem::take(&mut self.output);
                output.append(&mut ports.take_output());
                output
            }
            _ if self.output.is_empty() => Vec::new(),
            _ => core::mem::take(&mut self.output),
        }
    }

    /// What the domain wants of its machine. Its vCPUs wait from then on: it has to be ended.
    pub const fn power(&self) -> Option<Power> {
        self.power
    }

    /// Types into the serial port; how many bytes there was room for. `None`: it has none.
    pub fn type_in(&mut self, bytes: &[u8]) -> Option<usize> {
        if !self.has_com1 {
            return None;
        }
        let taken = bytes.len().min(MOST_TYPED.saturating_sub(self.typed.len()));
        self.typed.extend(bytes.iter().take(taken));
        self.pass_typed();
        Some(taken)
    }

    /// Gives the serial port what was typed, as far as it has room, and tells the interrupt that comes of it.
    fn pass_typed(&mut self) {
        let Some(ports) = &mut self.ports else {
            return;
        };
        while let Some(&byte) = self.typed.front()
            && ports.type_in(&[byte]) != 0
        {
            self.typed.pop_front();
        }
        self.look();
    }

    /// Presses the power button; whether it has one.
    pub fn press_power_button(&mut self) -> bool {
        let Some(ports) = self.ports.as_mut().filter(|_| self.has_button) else {
            return false;
        };
        ports.press_power_button();
        self.look();
        true
    }

    /// Gives back what was claimed, and all that it took.
    pub fn close(self, windows: &Windows) {
        for (kind, first) in self.claims {
            // The claim is gone already where the domain is. The rest is this guest's own, and there.
            let _ = self.domain.release(kind, first);
        }
        let _ = windows.unmap_slots(self.slots);
        let _ = self.event.any().close();
        let _ = self.memory.any().close();
    }
}

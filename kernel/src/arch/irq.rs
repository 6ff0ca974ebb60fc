//! The machine's interrupt lines: those of ISA, by the I/O APICs.
//!
//! A line that is bound calls its handler once, and then not before [`unmask`]. What keeps it quiet meanwhile depends on how it
//! is triggered. A level-triggered one is masked, and comes again by itself when it is still active. An edge that comes at a
//! masked input is lost for ever, so an edge-triggered line stays open: one edge is remembered, and masks the line so that a
//! device that runs wild costs no more than that.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

use spin::Mutex;

use super::ioapic::{Delivery, IoApic, Redirection};
use super::{apic, cpu};
use crate::boot::acpi::{DEFAULT_IO_APIC, Firmware};

/// Lines whose interrupts were noted by [`note`], a bit each.
static NOTED: AtomicU32 = AtomicU32::new(0);

/// A handler that notes the interrupt for whoever looks at the CPU's pending work.
pub fn note(line: u8) {
    NOTED.fetch_or(1 << line, Ordering::Release);
    cpu::cpu()
        .pending
        .fetch_or(cpu::PENDING_IRQ, Ordering::Relaxed);
}

/// The lines that were noted since the last look.
pub fn take_pending() -> impl Iterator<Item = u8> {
    let noted = NOTED.swap(0, Ordering::Acquire);
    (0..ISA_LINES).filter(move |line| noted & 1 << line != 0)
}

/// Number of ISA lines that can be bound.
pub const ISA_LINES: u8 = 16;

/// Vector of line 0; the others follow. Those of the old controllers, which may still interrupt spuriously, are below.
const FIRST_VECTOR: u8 = 0x30;

/// As a destination: every CPU. No CPU can have it as its APIC id here, where messages carry 8 bits of it.
const EVERY_CPU: u8 = 0xff;

/// Why a line was not bound.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BindError {
    /// The machine has no I/O APIC.
    NoController,
    /// There is no such line, or it arrives nowhere.
    NoSuchLine,
    /// The line carries the kernel's own NMI.
    InUse,
    /// No I/O APIC can address a CPU with this APIC id: only those below 255.
    Unreachable,
}

/// Where a line stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Nothing is taken from it.
    Masked,
    /// The next interrupt goes to the handler.
    Open,
    /// The handler was called; what comes now has to wait.
    Taken,
    /// Edge-triggered: the handler was called, and another edge has come.
    Missed,
}

/// What is to be done about an interrupt that came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Arrival {
    /// The state from now on.
    state: State,
    /// Whether the input is masked.
    mask: bool,
    /// Whether the handler is called.
    call: bool,
}

impl State {
    /// An interrupt of the line came.
    const fn arrival(self, level: bool) -> Arrival {
        let (state, mask, call) = match self {
            Self::Open => (Self::Taken, level, true),
            Self::Taken if !level => (Self::Missed, true, false),
            // It was on its way when the input was masked. One that is level-triggered comes again.
            other => (other, true, false),
        };
        Arrival { state, mask, call }
    }
}

/// A line that has an input.
struct Line {
    /// Which I/O APIC, by its place in the list, and which of its inputs.
    input: (usize, u32),
    /// What the input's entry is.
    entry: Redirection,
    state: State,
    handler: Option<fn(u8)>,
}

/// The I/O APICs and what the kernel uses of them.
struct Lines {
    chips: Vec<IoApic>,
    /// By the number of the line.
    lines: [Option<Line>; ISA_LINES as usize],
}

/// Locked with interrupts off only: handlers of interrupts take it. No handler of NMIs does.
static LINES: Mutex<Lines> = Mutex::new(Lines {
    chips: Vec::new(),
    lines: [const { None }; ISA_LINES as usize],
});

impl Lines {
    /// The line and its I/O APIC.
    fn get(&mut self, line: u8) -> Option<(&mut Line, &mut IoApic)> {
        let line = self.lines.get_mut(usize::from(line))?.as_mut()?;
        let chip = self.chips.get_mut(line.input.0)?;
        Some((line, chip))
    }
}

impl Line {
    fn set(&mut self, chip: &mut IoApic, entry: Redirection) {
        chip.set(self.input.1, entry);
        self.entry = entry;
    }

    /// Masks or unmasks the input. An input that is open is not written again: an edge might fall into that moment.
    fn set_masked(&mut self, chip: &mut IoApic, masked: bool) {
        if self.entry.masked() != masked {
            self.entry.set_masked(masked);
            chip.set_low(self.input.1, self.entry);
        }
    }
}

/// Finds the I/O APICs and masks everything. Called once, on the boot CPU, with interrupts off.
pub(super) fn init(firmware: &Firmware) {
    let mut lines = LINES.lock();
    if firmware.present {
        for known in &firmware.io_apics {
            match IoApic::find(known.address, known.gsi_base) {
                Some(chip) => lines.chips.push(chip),
                None => log::warn!(
                    "no I/O APIC answers at {:#x}, where the firmware has one",
                    known.address.get()
                ),
            }
        }
    } else {
        lines.chips.extend(IoApic::find(DEFAULT_IO_APIC, 0));
    }
    for number in 0..ISA_LINES {
        let line = firmware.isa_line(number).and_then(|isa| {
            let input = lines
                .chips
                .iter()
                .enumerate()
                .find_map(|(index, chip)| Some((index, chip.input(isa.gsi)?)))?;
            let entry = Redirection::new()
                .with_vector(FIRST_VECTOR + number)
                .with_level(isa.level)
                .with_active_low(isa.active_low)
                .with_masked(true);
            Some(Line {
                input,
                entry,
                state: State::Masked,
                handler: None,
            })
        });
        if let Some(slot) = lines.lines.get_mut(usize::from(number)) {
            *slot = line;
        }
    }
}

/// Whether there is an I/O APIC: without one, no line can be bound.
pub fn is_available() -> bool {
    !LINES.lock().chips.is_empty()
}

/// Calls `handler(line)` with interrupts off at each interrupt of the ISA line `line`, on the CPU with this APIC id. After each
/// call the next one waits for [`unmask`]. The line is unmasked. A line that is bound already is bound anew.
///
/// # Errors
/// Any [`BindError`]; nothing changes then.
pub fn bind(line: u8, apic_id: u32, handler: fn(u8)) -> Result<(), BindError> {
    let destination = u8::try_from(apic_id)
        .ok()
        .filter(|&destination| destination != EVERY_CPU)
        .ok_or(BindError::Unreachable)?;
    let mut lines = LINES.lock();
    if lines.chips.is_empty() {
        return Err(BindError::NoController);
    }
    let (line, chip) = lines.get(line).ok_or(BindError::NoSuchLine)?;
    if line.entry.delivery() == Delivery::Nmi {
        return Err(BindError::InUse);
    }
    line.handler = Some(handler);
    line.state = State::Open;
    let entry = line.entry.with_destination(destination).with_masked(false);
    line.set(chip, entry);
    Ok(())
}

/// Lets the next interrupt of a line through to its handler. One that came since the handler was last called comes now. Nothing
/// happens where the line is not bound.
pub fn unmask(line: u8) {
    let mut lines = LINES.lock();
    let Some((line, chip)) = lines.get(line) else {
        return;
    };
    if line.handler.is_none() {
        return;
    }
    let missed = line.state == State::Missed;
    line.state = State::Open;
    line.set_masked(chip, false);
    if missed {
        apic::send_ipi(u32::from(line.entry.destination()), line.entry.vector());
    }
}

/// Takes nothing more from a line, until [`unmask`]; edges that come meanwhile are lost.
pub fn mask(line: u8) {
    if let Some((line, chip)) = LINES.lock().get(line)
        && line.handler.is_some()
    {
        line.state = State::Masked;
        line.set_masked(chip, true);
    }
}

/// Makes every edge of a line an NMI at every CPU, for good; whether the line has an input.
pub(super) fn make_nmi(line: u8) -> bool {
    let mut lines = LINES.lock();
    let Some((line, chip)) = lines.get(line) else {
        return false;
    };
    line.handler = None;
    let entry = Redirection::new()
        .with_delivery(Delivery::Nmi)
        .with_destination(EVERY_CPU);
    line.set(chip, entry);
    true
}

/// Takes a line for level-triggered, active high, whatever the firmware says: for a test with a device whose line stays active.
/// The line is masked and unbound.
pub(crate) fn force_trigger(line: u8, level: bool) {
    if let Some((line, chip)) = LINES.lock().get(line) {
        line.handler = None;
        line.state = State::Masked;
        let entry = line.entry.with_level(level).with_active_low(false);
        line.set(chip, entry.with_masked(true));
    }
}

/// Serves an interrupt with this vector; false: it is none of a line that is bound.
pub(super) fn interrupt(vector: u8) -> bool {
    let number = vector.wrapping_sub(FIRST_VECTOR);
    let (handler, arrival) = {
        let mut lines = LINES.lock();
        let Some((line, chip)) = lines.get(number) else {
            return false;
        };
        let Some(handler) = line.handler else {
            return false;
        };
        let arrival = line.state.arrival(line.entry.level());
        line.state = arrival.state;
        // Before the end of interrupt: that makes a level-triggered input that is still active interrupt again.
        if arrival.mask {
            line.set_masked(chip, true);
        }
        (handler, arrival)
    };
    apic::end_of_interrupt();
    if arrival.call {
        handler(number);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the handler is given of a sequence of interrupts without an `unmask`.
    fn calls(level: bool, arrivals: usize) -> (usize, State, bool) {
        let mut state = State::Open;
        let mut masked = false;
        let mut calls = 0;
        for _ in 0..arrivals {
            let arrival = state.arrival(level);
            state = arrival.state;
            masked |= arrival.mask;
            calls += usize::from(arrival.call);
        }
        (calls, state, masked)
    }

    #[test]
    fn a_level_is_masked_at_once() {
        assert_eq!(calls(true, 1), (1, State::Taken, true));
        assert_eq!(calls(true, 2), (1, State::Taken, true));
    }

    #[test]
    fn one_edge_is_remembered_and_masks_the_line() {
        assert_eq!(calls(false, 1), (1, State::Taken, false));
        assert_eq!(calls(false, 2), (1, State::Missed, true));
        assert_eq!(calls(false, 3), (1, State::Missed, true));
    }

    #[test]
    fn a_masked_line_stays_masked() {
        for level in [false, true] {
            assert_eq!(
                State::Masked.arrival(level),
                Arrival {
                    state: State::Masked,
                    mask: true,
                    call: false
                }
            );
        }
    }
}

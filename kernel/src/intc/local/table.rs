//! The local vector table: what the timer, errors and the local interrupt pins raise.

use super::super::FIRST_VECTOR;
use super::super::registers::{LocalVector, Source, error};
use super::super::requests::Requests;
use super::{Effect, Lint, LocalApic, Mode};

impl LocalApic {
    pub(super) fn local(&self, source: Source) -> LocalVector {
        self.local
            .get(source as usize)
            .copied()
            .unwrap_or(LocalVector::MASKED)
    }

    pub(super) fn set_local(&mut self, source: Source, entry: LocalVector) {
        if let Some(place) = self.local.get_mut(source as usize) {
            *place = entry;
        }
    }

    /// Notes an error. It raises an interrupt, unless one did so since the error status register was written (SDM vol. 3
    /// 11.5.3); so an error of delivering that interrupt ends here.
    pub(super) fn note_error(&mut self, error: u32, requests: &Requests) {
        self.errors |= error;
        if self.error_armed && !self.local(Source::Error).masked() {
            self.error_armed = false;
            self.fire(Source::Error, requests);
        }
    }

    /// Does what the local vector table says for an event of `source`; whether anything was raised.
    pub(super) fn fire(&mut self, source: Source, requests: &Requests) -> bool {
        let entry = self.local(source);
        if entry.masked() {
            return false;
        }
        match entry.delivery() {
            LocalVector::FIXED => self.raise(entry.vector(), entry.is_level(), requests),
            LocalVector::NMI => requests.raise_nmi(),
            LocalVector::INIT => requests.raise_init(),
            _ => false,
        }
    }

    fn raise(&mut self, vector: u8, level: bool, requests: &Requests) -> bool {
        if vector < FIRST_VECTOR {
            self.note_error(error::RECEIVE_ILLEGAL_VECTOR, requests);
            return false;
        }
        requests.raise(vector, level)
    }

    /// What was noted in `requests` and is neither interrupt nor NMI, INIT or start-up: an illegal vector. To be called
    /// when [`Requests::has_signals`].
    pub fn receive(&mut self, requests: &Requests) -> Effect {
        if !requests.take_illegal() {
            return Effect::None;
        }
        self.note_error(error::RECEIVE_ILLEGAL_VECTOR, requests);
        Effect::Changed
    }

    /// A local interrupt pin is asserted or deasserted.
    ///
    /// NMI and INIT are edges, and so is a fixed interrupt, unless its entry says level. The PIC's interrupts (ExtINT) are
    /// not raised here: [`Self::accepts_extint`] tells whether they are to be taken.
    pub fn set_lint(&mut self, lint: Lint, asserted: bool, requests: &Requests) -> Effect {
        let Some(pin) = self.asserted.get_mut(lint as usize) else {
            return Effect::None;
        };
        let rises = !core::mem::replace(pin, asserted) && asserted;
        let source = lint.source();
        let raised = if self.mode == Mode::Disabled {
            // The pins are the processor's INTR and NMI (SDM vol. 3 11.4.3).
            lint == Lint::Lint1 && rises && requests.raise_nmi()
        } else if self.local(source).is_level() {
            self.serve_pin(source, requests)
        } else {
            rises && self.fire(source, requests)
        };
        if raised {
            Effect::SelfInterrupt
        } else if asserted {
            Effect::Changed
        } else {
            Effect::None
        }
    }

    /// Raises the level-triggered interrupt of a pin that is asserted, unless one has not ended yet.
    pub(super) fn serve_pin(&mut self, source: Source, requests: &Requests) -> bool {
        let [lint0, lint1] = self.asserted;
        let asserted = match source {
            Source::Lint0 => lint0,
            Source::Lint1 => lint1,
            _ => false,
        };
        let entry = self.local(source);
        if !asserted || !entry.is_level() || entry.masked() || entry.remote_irr() {
            return false;
        }
        self.set_local(source, entry.with_remote_irr(true));
        self.fire(source, requests)
    }

    /// Whether the processor takes the PIC's interrupts: LINT0 is ExtINT and unmasked, or there is no APIC between them.
    pub fn accepts_extint(&self) -> bool {
        let lint0 = self.local(Source::Lint0);
        self.mode == Mode::Disabled || (!lint0.masked() && lint0.delivery() == LocalVector::EXT_INT)
    }
}

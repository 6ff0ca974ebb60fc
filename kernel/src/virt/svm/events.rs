//! Events on their way into a guest: the one that the next VMRUN delivers, and NMIs that have to wait.
//!
//! The CPU does not tell when a guest can take an NMI. As it would, a guest takes none from one NMI to the IRET that ends
//! its handler; IRET is intercepted meanwhile. An NMI that waited is delivered once the guest has left that IRET behind, at
//! the next exit of any kind: the host's timer bounds the wait.

use crate::virt::{Event, EventKind};

/// The events of a vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Events {
    /// What the next VMRUN delivers.
    pending: Option<Event>,
    /// From an NMI to its handler's IRET.
    nmi_masked: bool,
    /// Another NMI waits; there is never more than one (APM2 8.2.3).
    nmi_waiting: bool,
    /// RIP of the IRET that the guest is about to execute.
    iret_at: Option<u64>,
}

impl Events {
    /// Adds an event; false where it makes a triple fault with the one that is pending.
    #[must_use]
    pub fn inject(&mut self, event: Event) -> bool {
        match event.kind {
            // The guest runs the instruction again, which raises it (see `exits::requeue`).
            EventKind::SoftwareInterrupt
            | EventKind::PrivilegedSoftwareException
            | EventKind::SoftwareException => return true,
            EventKind::Nmi if self.nmi_masked || self.pending.is_some() => {
                self.nmi_waiting = true;
                return true;
            }
            EventKind::External | EventKind::Nmi | EventKind::Exception => {}
        }
        let combined = match self.pending {
            Some(first) => first.combine(event),
            None => Some(event),
        };
        match combined {
            Some(event) => {
                self.pending = Some(event);
                true
            }
            None => false,
        }
    }

    /// Puts back an event whose delivery was interrupted.
    pub const fn requeue(&mut self, event: Event) {
        self.pending = Some(event);
    }

    /// Takes back an external interrupt that the next VMRUN would deliver.
    pub fn withdraw_interrupt(&mut self) -> Option<u8> {
        let event = self
            .pending
            .take_if(|event| event.kind == EventKind::External)?;
        Some(event.vector)
    }

    /// Whether the next VMRUN delivers something.
    pub const fn is_pending(&self) -> bool {
        self.pending.is_some()
    }

    /// Whether the next VMRUN delivers something to a guest that has just left its HLT behind.
    pub const fn ends_halt(&self) -> bool {
        self.pending.is_some() || self.nmi_waiting && !self.nmi_masked
    }

    /// Whether an NMI waits for the end of the one before it.
    pub const fn nmi_waits(&self) -> bool {
        self.nmi_waiting
    }

    /// Whether the guest's IRET has to exit.
    pub const fn watches_iret(&self) -> bool {
        self.nmi_masked
    }

    /// What VMRUN has to deliver to a guest that goes on at `rip`.
    #[inline]
    pub fn take(&mut self, rip: u64) -> Option<Event> {
        if self.nmi_waiting || self.iret_at.is_some() {
            self.look_at_nmi(rip);
        }
        let event = self.pending.take();
        if event.is_some_and(|event| event.kind == EventKind::Nmi) {
            self.nmi_masked = true;
        }
        event
    }

    /// Takes the external interrupt that VMRUN has to deliver, if there is nothing else, be it only that an NMI is handled.
    #[inline(always)]
    pub fn take_interrupt(&mut self) -> Option<u8> {
        if self.minds_nmi() {
            return None;
        }
        self.withdraw_interrupt()
    }

    /// Whether an NMI is handled, waits, or has just been ended.
    #[inline(always)]
    pub const fn minds_nmi(&self) -> bool {
        self.nmi_masked || self.nmi_waiting || self.iret_at.is_some()
    }

    /// An NMI that waits may be delivered to a guest that goes on at `rip`.
    fn look_at_nmi(&mut self, rip: u64) {
        if self.iret_at.is_some_and(|at| at != rip) {
            self.iret_at = None;
        }
        if self.nmi_waiting && !self.nmi_masked && self.iret_at.is_none() && self.pending.is_none()
        {
            self.nmi_waiting = false;
            self.pending = Some(Event::NMI);
        }
    }

    /// The guest is about to execute the IRET at `rip`.
    pub const fn iret(&mut self, rip: u64) {
        self.nmi_masked = false;
        self.iret_at = Some(rip);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virt::event::vector;

    #[test]
    fn an_interrupt_is_taken_alone_if_it_is_alone() {
        let alone = || {
            let mut events = Events::default();
            assert!(events.inject(Event::external(0x40)));
            events
        };
        let mut events = alone();
        assert_eq!(events.take_interrupt(), Some(0x40));
        assert!(!events.is_pending());
        assert_eq!(events.take_interrupt(), None);

        let mut beside_an_nmi = alone();
        assert!(beside_an_nmi.inject(Event::NMI));
        assert_eq!(beside_an_nmi.take_interrupt(), None, "one waits");

        let mut events = Events::default();
        assert!(events.inject(Event::NMI));
        assert_eq!(events.take_interrupt(), None, "that is none");
        assert_eq!(events.take(0), Some(Event::NMI));
        assert!(events.inject(Event::external(0x40)));
        assert_eq!(events.take_interrupt(), None, "an NMI is handled");
        events.iret(0x1000);
        assert_eq!(events.take_interrupt(), None, "its IRET is to come");
        assert_eq!(events.take(0x1000), Some(Event::external(0x40)));
        assert_eq!(events.take(0x2000), None);
        assert!(events.inject(Event::external(0x41)));
        assert_eq!(events.take_interrupt(), Some(0x41));

        events.requeue(Event::GP0);
        assert_eq!(events.take_interrupt(), None, "an exception");
        assert!(events.is_pending());
    }

    #[test]
    fn exceptions_combine_with_an_interrupted_one() {
        let mut events = Events::default();
        events.requeue(Event::exception(vector::PF, Some(2)));
        assert!(events.inject(Event::GP0));
        assert_eq!(events.take(0), Some(Event::DF));
        events.requeue(Event::DF);
        assert!(!events.inject(Event::GP0));
    }

    #[test]
    fn software_events_are_left_to_their_instruction() {
        let mut events = Events::default();
        let int80 = Event {
            vector: 0x80,
            kind: EventKind::SoftwareInterrupt,
            error_code: None,
            instruction_length: 2,
        };
        assert!(events.inject(int80));
        assert_eq!(events.take(0), None);
    }

    #[test]
    fn a_second_nmi_waits_for_the_first_ones_iret() {
        let mut events = Events::default();
        assert!(events.inject(Event::NMI));
        assert_eq!(events.take(0x1000), Some(Event::NMI));
        assert!(events.watches_iret());
        assert!(events.inject(Event::NMI));
        assert_eq!(events.take(0x2000), None);
        events.iret(0x2010);
        assert!(!events.watches_iret());
        assert_eq!(events.take(0x2010), None, "the IRET comes first");
        assert_eq!(events.take(0x1000), Some(Event::NMI));
        assert!(!events.nmi_waits());
    }

    #[test]
    fn an_nmi_does_not_push_an_exception_aside() {
        let mut events = Events::default();
        assert!(events.inject(Event::UD));
        assert!(events.inject(Event::NMI));
        assert_eq!(events.take(0), Some(Event::UD));
        assert_eq!(events.take(0), Some(Event::NMI));
    }

    #[test]
    fn an_nmi_ends_a_halt_once_it_can_be_taken() {
        let mut events = Events::default();
        assert!(!events.ends_halt());
        assert!(events.inject(Event::UD) && events.inject(Event::NMI));
        assert_eq!(events.take(0x1000), Some(Event::UD));
        assert!(events.ends_halt(), "it has waited for the exception only");
        assert_eq!(events.take(0x1001), Some(Event::NMI));
        assert!(events.inject(Event::NMI));
        assert!(!events.ends_halt(), "its handler halts");
        events.iret(0x1002);
        assert!(events.ends_halt());
    }

    #[test]
    fn an_nmi_whose_delivery_was_interrupted_is_the_same_one() {
        let mut events = Events::default();
        assert!(events.inject(Event::NMI));
        assert_eq!(events.take(0), Some(Event::NMI));
        events.requeue(Event::NMI);
        assert_eq!(events.take(0), Some(Event::NMI));
        assert_eq!(events.take(0), None);
    }
}

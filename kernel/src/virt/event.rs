//! Events that are injected into a guest: interrupts and exceptions, and how two exceptions combine.

/// What kind of event a vector stands for. The values are those of VMX interruption information (SDM table 25-17) and, but
/// for the last two, of SVM's EVENTINJ (APM2 15.20).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum EventKind {
    /// An external interrupt, through the IDT without an end of interrupt.
    External = 0,
    /// A non-maskable interrupt; the vector is 2.
    Nmi = 2,
    /// An exception of the CPU.
    Exception = 3,
    /// INT n.
    SoftwareInterrupt = 4,
    /// INT1 (VMX only).
    PrivilegedSoftwareException = 5,
    /// INT3 or INTO (VMX only; SVM injects them as exceptions 3 and 4).
    SoftwareException = 6,
}

/// An event with its vector, its error code where the vector has one, and the length of the instruction that raised it
/// where software did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// Vector in the guest's IDT.
    pub vector: u8,
    /// What raised it.
    pub kind: EventKind,
    /// Error code, for the exceptions that push one.
    pub error_code: Option<u32>,
    /// Bytes of the instruction that raised a software interrupt or exception, else 0.
    pub instruction_length: u8,
}

/// Vectors of the exceptions (SDM vol. 3 table 7-1).
#[expect(missing_docs, reason = "the exceptions' names are their documentation")]
pub mod vector {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const MC: u8 = 18;
    pub const XM: u8 = 19;
    pub const VE: u8 = 20;
    pub const CP: u8 = 21;
}

impl Event {
    /// #UD.
    pub const UD: Self = Self::exception(vector::UD, None);
    /// #GP with error code 0.
    pub const GP0: Self = Self::exception(vector::GP, Some(0));
    /// #DF.
    pub const DF: Self = Self::exception(vector::DF, Some(0));
    /// A non-maskable interrupt.
    pub const NMI: Self = Self {
        vector: vector::NMI,
        kind: EventKind::Nmi,
        error_code: None,
        instruction_length: 0,
    };

    /// A CPU exception.
    pub const fn exception(vector: u8, error_code: Option<u32>) -> Self {
        Self {
            vector,
            kind: EventKind::Exception,
            error_code,
            instruction_length: 0,
        }
    }

    /// An external interrupt.
    pub const fn external(vector: u8) -> Self {
        Self {
            vector,
            kind: EventKind::External,
            error_code: None,
            instruction_length: 0,
        }
    }

    /// What is to be delivered when `second` is raised while the delivery of `self` has not ended (SDM table 7-5, APM2
    /// 8.2.9): `second` alone, #DF, or `None` for a triple fault. Interrupts and software events give way: they are
    /// raised again by their source or by running the instruction again.
    pub const fn combine(self, second: Self) -> Option<Self> {
        if !matches!(self.kind, EventKind::Exception)
            || !matches!(second.kind, EventKind::Exception)
        {
            return Some(second);
        }
        match (Class::of(self.vector), Class::of(second.vector)) {
            (Class::DoubleFault, Class::Contributory | Class::PageFault) => None,
            (Class::Contributory, Class::Contributory) => Some(Self::DF),
            (Class::PageFault, Class::Contributory | Class::PageFault) => Some(Self::DF),
            _ => Some(second),
        }
    }
}

/// Classes of exceptions (SDM table 7-4).
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

impl Class {
    const fn of(vector: u8) -> Self {
        match vector {
            vector::DE | vector::TS | vector::NP | vector::SS | vector::GP | vector::CP => {
                Self::Contributory
            }
            vector::PF | vector::VE => Self::PageFault,
            vector::DF => Self::DoubleFault,
            _ => Self::Benign,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PF: Event = Event::exception(vector::PF, Some(2));
    const NP: Event = Event::exception(vector::NP, Some(8));

    #[test]
    fn contributory_after_contributory_is_a_double_fault() {
        assert_eq!(Event::GP0.combine(NP), Some(Event::DF));
        assert_eq!(NP.combine(Event::GP0), Some(Event::DF));
    }

    #[test]
    fn page_fault_after_contributory_is_served_serially() {
        assert_eq!(Event::GP0.combine(PF), Some(PF));
    }

    #[test]
    fn page_fault_combines_with_page_fault_and_contributory() {
        assert_eq!(PF.combine(PF), Some(Event::DF));
        assert_eq!(PF.combine(Event::GP0), Some(Event::DF));
        assert_eq!(PF.combine(Event::UD), Some(Event::UD));
    }

    #[test]
    fn a_fault_in_a_double_fault_is_a_triple_fault() {
        assert_eq!(Event::DF.combine(Event::GP0), None);
        assert_eq!(Event::DF.combine(PF), None);
        assert_eq!(Event::DF.combine(Event::UD), Some(Event::UD));
    }

    #[test]
    fn interrupts_give_way() {
        assert_eq!(Event::external(0x40).combine(Event::GP0), Some(Event::GP0));
    }
}

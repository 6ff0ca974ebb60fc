//! Counters of exits, and the ring of what the scheduler and the objects did.

mod ring;

use core::fmt;

pub use plinth_abi::trace::Kind;
pub use ring::{read, record, record_at};

use plinth_abi::domain::EXITS;

/// What an exit is counted as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
#[expect(missing_docs, reason = "each is the exit of its name")]
pub enum Counter {
    Host,
    Hypercall,
    Cpuid,
    Halt,
    Pause,
    Io,
    Msr,
    ControlRegister,
    NestedFault,
    Exception,
    Instruction,
    InterruptWindow,
    Mmio,
    Other,
}

impl Counter {
    /// Every counter in the order of its number, with its name.
    pub const ALL: [(Self, &'static str); 14] = [
        (Self::Host, "host"),
        (Self::Hypercall, "hypercall"),
        (Self::Cpuid, "cpuid"),
        (Self::Halt, "halt"),
        (Self::Pause, "pause"),
        (Self::Io, "io"),
        (Self::Msr, "msr"),
        (Self::ControlRegister, "cr"),
        (Self::NestedFault, "nested-fault"),
        (Self::Exception, "exception"),
        (Self::Instruction, "instruction"),
        (Self::InterruptWindow, "window"),
        (Self::Mmio, "mmio"),
        (Self::Other, "other"),
    ];
}

/// A vCPU's counters.
#[derive(Clone, Debug, Default)]
pub struct Counters([u64; Counter::ALL.len()]);

impl Counters {
    /// Counts one.
    #[inline(always)]
    pub fn bump(&mut self, counter: Counter) {
        if let Some(count) = self.0.get_mut(counter as usize) {
            *count = count.wrapping_add(1);
        }
    }

    /// How often.
    pub fn get(&self, counter: Counter) -> u64 {
        self.0.get(counter as usize).copied().unwrap_or(0)
    }

    /// As `VCPU_INFO` tells them.
    pub fn all(&self) -> [u64; EXITS] {
        let mut all = [0; EXITS];
        for (to, from) in all.iter_mut().zip(self.0) {
            *to = from;
        }
        all
    }

    /// All of them together.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (counter, name) in Counter::ALL {
            match self.get(counter) {
                0 => {}
                count => write!(f, " {name} {count}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_has_its_own_place_and_the_contracts_name() {
        for (index, (counter, name)) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, index);
            assert_eq!(plinth_abi::domain::EXIT_NAMES[index], *name);
        }
        let mut counters = Counters::default();
        counters.bump(Counter::Other);
        counters.bump(Counter::Host);
        assert_eq!((counters.get(Counter::Other), counters.total()), (1, 2));
    }
}

//! Ends of interrupts without an exit, as KVM has them: a guest that is given an interrupt may find a bit set in its memory, and then ends the
//! interrupt by clearing it instead of writing to its local APIC (Linux, Documentation/virt/kvm/x86/msr.rst, MSR_KVM_EOI_EN).
//!
//! The bit is set with an interrupt whose end nobody waits for: it is the only one that is requested or in service, and edge-triggered. Before
//! anything looks at what is in service, the bit is looked at, and taken back if the guest has not got so far: from then on its end has to be
//! told. A word that is no memory is never written, and all ends are told.

use super::Domain;
use crate::mem::{Flag, Gpa};
use crate::rules::GeneralProtection;
use crate::virt::Vendor;

/// MSR_KVM_EOI_EN: bit 0: ends may be told by the word at this address, a multiple of 4.
pub const MSR_EOI: u32 = 0x4b56_4d04;

const ENABLED: u64 = 1;
/// Bits that must be 0.
const RESERVED: u64 = 2;

/// What a vCPU asked for. Whether an end is offered is known to its local APIC.
#[derive(Debug, Default)]
pub struct EndOfInterrupt {
    msr: u64,
    /// Where the word is, and the state of all nested tables by which it was found.
    place: Option<(u64, Flag)>,
}

impl EndOfInterrupt {
    /// RDMSR.
    pub const fn read(&self) -> u64 {
        self.msr
    }

    /// WRMSR, while nothing is offered.
    ///
    /// # Errors
    /// A reserved bit.
    pub fn write(&mut self, value: u64) -> Result<(), GeneralProtection> {
        if value & RESERVED != 0 {
            return Err(GeneralProtection);
        }
        *self = Self {
            msr: value,
            ..Self::default()
        };
        Ok(())
    }

    /// Whether the guest wants to end interrupts so.
    #[inline(always)]
    pub const fn is_enabled(&self) -> bool {
        self.msr & ENABLED != 0
    }

    const fn address(&self) -> Gpa {
        Gpa::new(self.msr & !(ENABLED | RESERVED))
    }

    fn place<V: Vendor>(&mut self, domain: &Domain<V>) -> Option<Flag> {
        let epoch = domain.kernel.sched.epoch();
        match self.place {
            Some((seen, flag)) if seen == epoch => Some(flag),
            _ => {
                let flag = domain.with_space(|space| space.flag(self.address()))??;
                self.place = Some((epoch, flag));
                Some(flag)
            }
        }
    }

    /// Sets the bit: the guest may end by it the interrupt that it is given at the next entry. False: there is no memory. On the CPU that runs the
    /// vCPU.
    #[must_use]
    pub fn offer<V: Vendor>(&mut self, domain: &Domain<V>) -> bool {
        let Some(flag) = self.place(domain) else {
            return false;
        };
        // No nested table has changed up to now, and whoever changes one from now on waits for this CPU to flush before he gives the frame away
        // (`Sched::flush_now`).
        flag.set();
        true
    }

    /// Clears the bit again; whether the guest has done so.
    pub fn take_back<V: Vendor>(&mut self, domain: &Domain<V>) -> bool {
        let is_set = self.place(domain).is_some_and(Flag::load);
        if is_set {
            // Not by way of the flag: the page counts as written.
            let _ = domain.write_guest(self.address(), &[0]);
        }
        !is_set
    }
}

//! The local APIC of a vCPU.

use super::message::Message;
use super::requests::Requests;
use crate::rules::GeneralProtection;

/// The mode that IA32_APIC_BASE has put the APIC in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Disabled: the processor is as one without a local APIC (SDM vol. 3 11.4.3).
    Disabled,
    /// Registers are in memory.
    XApic,
    /// Registers are MSRs.
    X2Apic,
}

/// The local interrupt pins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lint {
    /// LINT0: the PIC's INTR.
    Lint0,
    /// LINT1: NMI.
    Lint1,
}

/// What is left to do after a write, and cannot be done here.
///
/// Any of them but `None` may also have made an interrupt deliverable or no longer so.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Nothing.
    None,
    /// Deliver the message; the sender may be among those that it is for.
    Send(Message),
    /// An interrupt was raised in the vCPU's own requests.
    SelfInterrupt,
    /// The highest interrupt in service has ended; `broadcast`: tell the I/O APICs.
    Eoi {
        /// Its vector.
        vector: u8,
        /// It was level-triggered, and the guest does not tell the I/O APICs itself.
        broadcast: bool,
    },
    /// The deadline may have changed.
    Timer,
    /// Priority, enabling or the local vector table has changed: look for a deliverable interrupt again.
    Changed,
}

/// The local APIC, but for what others may touch ([`Requests`]).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocalApic {
    id: u32,
    bootstrap: bool,
    mode: Mode,
}

impl LocalApic {
    /// The state after power-up (SDM vol. 3 11.4.7.1): xAPIC mode, disabled by software. Publishes into `requests`.
    pub fn new(bootstrap: bool, requests: &Requests) -> Self {
        Self {
            id: requests.id(),
            bootstrap,
            mode: Mode::XApic,
        }
    }

    /// INIT (SDM vol. 3 11.4.7.3, 11.12.5.1): as after power-up, but mode and identifier stay. Forgets IRR.
    pub fn init_reset(&mut self, _requests: &Requests) {}

    /// What a PC's firmware leaves at the bootstrap processor (MP specification 3.6.2.2, virtual wire): enabled by software,
    /// the PIC's interrupts come through LINT0, and LINT1 is NMI.
    pub fn set_virtual_wire(&mut self, _requests: &Requests) {}

    /// IA32_APIC_BASE.
    pub const fn base(&self) -> u64 {
        self.bootstrap as u64
    }

    /// Writes IA32_APIC_BASE.
    ///
    /// # Errors
    /// A reserved bit, an address other than 0xfee00000, or a transition that SDM vol. 3 11.12.5 forbids.
    pub fn set_base(
        &mut self,
        _value: u64,
        _requests: &Requests,
    ) -> Result<Effect, GeneralProtection> {
        Ok(Effect::None)
    }

    /// The mode.
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// The identifier.
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// Reads up to four bytes of the register page; `offset` in bytes. The illegal ones read 0 and are an error that the
    /// error status register tells. All ones unless the APIC is in xAPIC mode.
    pub fn read_mmio(&mut self, _offset: u32, _requests: &Requests, _now: u64) -> u32 {
        0
    }

    /// Writes a register; `offset` in bytes. Writes that are not 32 bits wide have no effect and must not come here.
    pub fn write_mmio(
        &mut self,
        _offset: u32,
        _value: u32,
        _requests: &Requests,
        _now: u64,
    ) -> Effect {
        Effect::None
    }

    /// RDMSR of 0x800 to 0x8ff.
    ///
    /// # Errors
    /// The APIC is not in x2APIC mode, or there is no such register, or it cannot be read.
    pub fn read_msr(
        &self,
        _msr: u32,
        _requests: &Requests,
        _now: u64,
    ) -> Result<u64, GeneralProtection> {
        Err(GeneralProtection)
    }

    /// WRMSR of 0x800 to 0x8ff.
    ///
    /// # Errors
    /// The APIC is not in x2APIC mode, or there is no such register, or it cannot be written, or a reserved bit is set.
    pub fn write_msr(
        &mut self,
        _msr: u32,
        _value: u64,
        _requests: &Requests,
        _now: u64,
    ) -> Result<Effect, GeneralProtection> {
        Err(GeneralProtection)
    }

    /// IA32_TSC_DEADLINE.
    pub const fn tsc_deadline(&self) -> u64 {
        0
    }

    /// Writes IA32_TSC_DEADLINE.
    pub fn set_tsc_deadline(&mut self, _value: u64) -> Effect {
        Effect::None
    }

    /// The guest's TSC was set, and is `by` (modulo 2^64) ahead of what it would have been: counts go on as they did.
    pub fn tsc_moved(&mut self, _by: u64) {}

    /// CR8: the class of the task priority, 0 to 15.
    pub const fn task_priority(&self) -> u8 {
        0
    }

    /// Writes CR8; the lower half of TPR becomes 0 (SDM vol. 3 11.8.6.1).
    pub fn set_task_priority(&mut self, _class: u8) -> Effect {
        Effect::None
    }

    /// PPR.
    pub fn processor_priority(&self) -> u8 {
        0
    }

    /// The interrupt to be delivered next: the highest in IRR, if its class is above that of PPR.
    pub fn deliverable(&self, _requests: &Requests) -> Option<u8> {
        None
    }

    /// The processor takes the deliverable interrupt: from IRR to ISR. Whether it was still there.
    pub fn accept(&mut self, _vector: u8, _requests: &Requests) -> bool {
        false
    }

    /// An accepted interrupt has not reached the guest: from ISR back to IRR.
    pub fn put_back(&mut self, _vector: u8, _requests: &Requests) {}

    /// What was noted in `requests` and is not an interrupt: errors of receiving.
    pub fn receive(&mut self, _requests: &Requests) -> Effect {
        Effect::None
    }

    /// When the timer expires, in ticks of the guest's TSC.
    pub fn next_deadline(&self) -> Option<u64> {
        None
    }

    /// The timer, if its time has come; whether an interrupt was raised.
    pub fn expire(&mut self, _requests: &Requests, _now: u64) -> bool {
        false
    }

    /// A local interrupt pin is asserted or deasserted.
    pub fn set_lint(&mut self, _lint: Lint, _asserted: bool, _requests: &Requests) -> Effect {
        Effect::None
    }

    /// Whether the processor takes the PIC's interrupts from LINT0.
    pub const fn accepts_extint(&self) -> bool {
        false
    }
}

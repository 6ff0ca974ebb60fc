//! The local APIC of a vCPU (SDM vol. 3 chapter 11).
//!
//! One CPU has it at a time. What others ask of it is in [`Requests`], which every method takes that needs it: IRR and TMR
//! are there, and there it publishes how it is to be addressed.
//!
//! It has xAPIC and x2APIC mode, the timer in its three modes, and six entries of the local vector table, of which no
//! thermal sensor and no performance counter ever makes use. It is at the address 0xfee00000 and nowhere else. IPIs of
//! lowest priority are sent; the receiver is the caller's choice.

mod access;
mod table;

use core::array;

use super::message::Message;
use super::registers::{LocalVector, Source, SpuriousVector};
use super::requests::{Addressing, Requests};
use super::timer::Timer;
use super::vectors::Vectors;
use crate::rules::GeneralProtection;
use crate::virt::{VirtualApic, VirtualInterrupts};

/// IA32_APIC_BASE: the address of the register page, BSP, x2APIC mode, enabled (SDM vol. 3 11.4.4, 11.12.1).
const BASE_ADDRESS: u64 = 0xfee0_0000;
const BASE_BSP: u64 = 1 << 8;
const BASE_X2: u64 = 1 << 10;
const BASE_ENABLE: u64 = 1 << 11;

/// The destination format register of the flat model: bits 31:28 are the model, the others 1 (SDM vol. 3 11.6.2.2).
const FLAT: u32 = u32::MAX;
const MODEL: u32 = 0xf << 28;

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

impl Lint {
    pub(super) const fn source(self) -> Source {
        match self {
            Self::Lint0 => Source::Lint0,
            Self::Lint1 => Source::Lint1,
        }
    }
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
        /// It was level-triggered, and the guest does not tell the I/O APICs itself. Or its end is still offered
        /// ([`LocalApic::offers_end`]), and that has to be settled instead.
        broadcast: bool,
    },
    /// The deadline may have changed.
    Timer,
    /// Priority, enabling or the local vector table has changed, or an error was noted: look for a deliverable interrupt
    /// again, and ask for the deadline.
    Changed,
}

/// Where an interrupt comes from that is accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// From IRR: [`LocalApic::deliverable`].
    Requests,
    /// From the local APIC itself, past IRR: [`LocalApic::passes`].
    Itself,
}

/// The local APIC, but for what others may touch ([`Requests`]).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocalApic {
    id: u32,
    bootstrap: bool,
    mode: Mode,
    /// ISR.
    in_service: Vectors,
    /// Those of ISR that were level-triggered when they were accepted; TMR may change under them. Also one whose end is offered: something
    /// follows from an end that is told.
    in_service_level: Vectors,
    /// The guest may end the interrupt in service without telling.
    end_is_offered: bool,
    /// The highest of ISR; 0: none.
    highest: u8,
    /// TPR.
    task_priority: u8,
    /// LDR bits 31:24, of xAPIC mode.
    logical: u8,
    /// DFR.
    format: u32,
    spurious: SpuriousVector,
    /// ESR, and the errors since it was written.
    error_status: u32,
    errors: u32,
    /// An error raises an interrupt: none has done so since ESR was written.
    error_armed: bool,
    /// ICR.
    command: u64,
    local: [LocalVector; Source::COUNT],
    /// LINT0 and LINT1 are asserted.
    asserted: [bool; 2],
    timer: Timer,
}

impl LocalApic {
    /// The state after power-up (SDM vol. 3 11.4.7.1): xAPIC mode, disabled by software. Publishes into `requests`.
    pub fn new(bootstrap: bool, requests: &Requests) -> Self {
        let apic = Self {
            bootstrap,
            ..Self::reset(requests.id(), Mode::XApic)
        };
        apic.publish(requests);
        apic
    }

    const fn reset(id: u32, mode: Mode) -> Self {
        Self {
            id,
            bootstrap: false,
            mode,
            in_service: Vectors::EMPTY,
            in_service_level: Vectors::EMPTY,
            end_is_offered: false,
            highest: 0,
            task_priority: 0,
            logical: 0,
            format: FLAT,
            spurious: SpuriousVector::RESET,
            error_status: 0,
            errors: 0,
            error_armed: true,
            command: 0,
            local: [LocalVector::MASKED; Source::COUNT],
            asserted: [false; 2],
            timer: Timer::RESET,
        }
    }

    /// INIT (SDM vol. 3 11.4.7.3, 11.12.5.1): as after power-up, but mode and identifier stay. Forgets IRR.
    pub fn init_reset(&mut self, requests: &Requests) {
        *self = Self {
            bootstrap: self.bootstrap,
            asserted: self.asserted,
            ..Self::reset(self.id, self.mode)
        };
        requests.clear_interrupts();
        self.publish(requests);
    }

    /// What a PC's firmware leaves at the bootstrap processor (MultiProcessor Specification 3.6.2.2, virtual wire mode):
    /// enabled by software, the PIC's interrupts come through LINT0, and LINT1 is NMI.
    pub fn set_virtual_wire(&mut self, requests: &Requests) {
        self.spurious = self.spurious.with_enabled(true);
        let entry = LocalVector::new();
        self.set_local(Source::Lint0, entry.with_delivery(LocalVector::EXT_INT));
        self.set_local(Source::Lint1, entry.with_delivery(LocalVector::NMI));
        self.publish(requests);
    }

    fn publish(&self, requests: &Requests) {
        requests.publish(
            Addressing::new()
                .with_hardware_enabled(self.mode != Mode::Disabled)
                .with_software_enabled(self.spurious.enabled())
                .with_x2apic(self.mode == Mode::X2Apic)
                .with_flat(self.format & MODEL == MODEL)
                .with_logical(self.logical),
        );
    }

    /// IA32_APIC_BASE.
    pub const fn base(&self) -> u64 {
        let mode = match self.mode {
            Mode::Disabled => 0,
            Mode::XApic => BASE_ENABLE,
            Mode::X2Apic => BASE_ENABLE | BASE_X2,
        };
        BASE_ADDRESS | mode | if self.bootstrap { BASE_BSP } else { 0 }
    }

    /// Writes IA32_APIC_BASE. The BSP flag stays what it is. An APIC that was disabled is as after power-up (SDM vol. 3
    /// 11.4.3).
    ///
    /// # Errors
    /// A reserved bit, an address other than 0xfee00000, or a transition that SDM vol. 3 11.12.5 forbids.
    pub fn set_base(
        &mut self,
        value: u64,
        requests: &Requests,
    ) -> Result<Effect, GeneralProtection> {
        if value & !(BASE_BSP | BASE_X2 | BASE_ENABLE) != BASE_ADDRESS {
            return Err(GeneralProtection);
        }
        let mode = match (value & BASE_ENABLE != 0, value & BASE_X2 != 0) {
            (false, false) => Mode::Disabled,
            (true, false) => Mode::XApic,
            (true, true) => Mode::X2Apic,
            (false, true) => return Err(GeneralProtection),
        };
        match (self.mode, mode) {
            (old, new) if old == new => return Ok(Effect::None),
            (Mode::X2Apic, Mode::XApic) | (Mode::Disabled, Mode::X2Apic) => {
                return Err(GeneralProtection);
            }
            (_, Mode::Disabled) => {
                self.mode = mode;
                self.init_reset(requests);
            }
            // The upper half, whose layout differs, is not preserved (SDM vol. 3 11.12.5.1).
            (Mode::XApic, Mode::X2Apic) => self.command &= 0xffff_ffff,
            _ => {}
        }
        self.mode = mode;
        self.publish(requests);
        Ok(Effect::Changed)
    }

    /// The mode.
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// The identifier.
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// CR8: the class of the task priority, 0 to 15.
    pub const fn task_priority(&self) -> u8 {
        self.task_priority >> 4
    }

    /// Writes CR8; the lower half of TPR becomes 0 (SDM vol. 3 11.8.6.1).
    pub const fn set_task_priority(&mut self, class: u8) -> Effect {
        self.task_priority = class << 4;
        Effect::Changed
    }

    /// PPR (SDM vol. 3 11.8.3.1). Where both classes are equal its lower half is TPR's, as in the processor's own
    /// virtualisation of it (30.1.3).
    pub const fn processor_priority(&self) -> u8 {
        if self.task_priority >> 4 >= self.highest >> 4 {
            self.task_priority
        } else {
            self.highest & 0xf0
        }
    }

    /// The interrupt to be delivered next: the highest in IRR, if its class is above that of PPR. Disabling by software
    /// keeps new ones out, but does not hold back those that are pending (SDM vol. 3 11.4.7.2).
    #[inline]
    pub fn deliverable(&self, requests: &Requests) -> Option<u8> {
        let vector = requests.highest()?;
        let above = vector >> 4 > self.task_priority.max(self.highest) >> 4;
        (above && self.mode != Mode::Disabled).then_some(vector)
    }

    /// The processor takes the deliverable interrupt. Whether it was still there.
    #[inline(always)]
    pub fn accept(&mut self, vector: u8, from: Origin, requests: &Requests) -> bool {
        match from {
            Origin::Requests if !requests.take(vector) => return false,
            Origin::Requests => {}
            Origin::Itself => requests.pass(vector),
        }
        self.in_service.set(vector, true);
        self.in_service_level.set(vector, requests.is_level(vector));
        self.highest = self.highest.max(vector);
        true
    }

    /// An accepted interrupt has not reached the guest: from ISR back to IRR.
    pub fn put_back(&mut self, vector: u8, requests: &Requests) {
        if let Some(level) = self.retire(vector) {
            requests.put_back(vector, level);
        }
    }

    /// Takes a vector out of ISR; whether it was level-triggered, `None` if it was not there.
    fn retire(&mut self, vector: u8) -> Option<bool> {
        if !self.in_service.set(vector, false) {
            return None;
        }
        // Mostly it was the only one.
        self.highest = if self.in_service.is_empty() {
            0
        } else {
            self.in_service.highest().unwrap_or(0)
        };
        Some(self.in_service_level.set(vector, false))
    }

    /// [`Self::accept`], and an offer of its end where nobody waits for that: it is edge-triggered, and no other is in service or requested.
    /// Whether that is offered; then [`Self::settle_end`] has to come before anything else that is about what is in service.
    #[inline(always)]
    pub fn accept_and_offer_end(&mut self, vector: u8, from: Origin, requests: &Requests) -> bool {
        let is_alone = self.highest == 0;
        let is_offered = self.accept(vector, from, requests)
            && is_alone
            && self.in_service_level.is_empty()
            && !requests.has_interrupt();
        if is_offered {
            self.in_service_level.set(vector, true);
            self.end_is_offered = true;
        }
        is_offered
    }

    /// Whether an end is offered.
    #[inline(always)]
    pub const fn offers_end(&self) -> bool {
        self.end_is_offered
    }

    /// The end is offered no more; `has_ended`: the guest has taken the offer.
    pub fn settle_end(&mut self, has_ended: bool) {
        self.end_is_offered = false;
        // It is the only one.
        self.in_service_level = Vectors::EMPTY;
        if has_ended {
            self.in_service = Vectors::EMPTY;
            self.highest = 0;
        }
    }

    /// EOI (SDM vol. 3 11.8.5).
    #[inline]
    fn end_of_interrupt(&mut self, requests: &Requests) -> Effect {
        let vector = self.highest;
        match self.retire(vector) {
            Some(level) => self.ended(vector, level, requests),
            None => Effect::None,
        }
    }

    /// EOI where one interrupt at most is in service, and that is edge-triggered: its end concerns nobody else. Whether it is so.
    #[inline(always)]
    fn end_the_only(&mut self) -> bool {
        let is_it = self.in_service_level.is_empty() && self.in_service.is_only(self.highest);
        if is_it {
            self.in_service = Vectors::EMPTY;
            self.highest = 0;
        }
        is_it
    }

    /// An interrupt that was in service has ended.
    #[inline]
    pub fn ended(&mut self, vector: u8, level: bool, requests: &Requests) -> Effect {
        if level {
            self.level_ended(vector, requests);
        }
        Effect::Eoi {
            vector,
            broadcast: level && (self.end_is_offered || !self.spurious.suppress_eoi_broadcast()),
        }
    }

    #[inline(never)]
    fn level_ended(&mut self, vector: u8, requests: &Requests) {
        if self.end_is_offered {
            return;
        }
        for source in [Source::Lint0, Source::Lint1] {
            let entry = self.local(source);
            if entry.remote_irr() && entry.vector() == vector {
                self.set_local(source, entry.with_remote_irr(false));
                self.serve_pin(source, requests);
            }
        }
    }

    /// What the CPU keeps of it while it runs the guest: all that is requested and in service, until [`Self::take_back`].
    pub fn lend(&self, requests: &Requests) -> VirtualApic {
        VirtualApic {
            task_priority: self.task_priority,
            in_service: self.in_service.words(),
            x2apic: self.mode == Mode::X2Apic && self.spurious.enabled(),
            interrupts: self.lend_more(requests),
        }
    }

    /// Interrupts that have been requested since.
    pub fn lend_more(&self, requests: &Requests) -> VirtualInterrupts {
        let requested = if self.mode == Mode::Disabled {
            [0; 4]
        } else {
            requests.take_all()
        };
        // After that: the trigger mode of an interrupt is there before the interrupt.
        let (levels, in_service) = (requests.levels(), self.in_service_level.words());
        VirtualInterrupts {
            requested,
            told_ends: array::from_fn(|index| {
                [levels, in_service]
                    .iter()
                    .filter_map(|words| words.get(index))
                    .fold(0, |all, word| all | word)
            }),
        }
    }

    /// The CPU keeps it no longer, and left this.
    pub fn take_back(&mut self, kept: &VirtualApic, requests: &Requests) {
        requests.return_all(kept.interrupts.requested, kept.interrupts.told_ends);
        self.task_priority = kept.task_priority;
        let before = self.in_service.words();
        let level_before = self.in_service_level.words();
        // Those that it has delivered meanwhile count as level-triggered where it would have told their ends: TMR may have changed since.
        let level = array::from_fn(|index| {
            let of = |words: &[u64; 4]| words.get(index).copied().unwrap_or(0);
            let (now, told) = (of(&kept.in_service), of(&kept.interrupts.told_ends));
            now & (of(&level_before) | told & !of(&before))
        });
        self.in_service_level = Vectors::from_words(level);
        self.in_service = Vectors::from_words(kept.in_service);
        self.highest = self.in_service.highest().unwrap_or(0);
    }

    /// IA32_TSC_DEADLINE: 0 if the timer is not in TSC-deadline mode, or not armed.
    pub const fn tsc_deadline(&self) -> u64 {
        self.timer.tsc_deadline()
    }

    /// Writes IA32_TSC_DEADLINE; ignored if the timer is not in TSC-deadline mode (SDM vol. 3 11.5.4.1).
    pub const fn set_tsc_deadline(&mut self, value: u64) -> Effect {
        self.timer.set_tsc_deadline(value);
        Effect::Timer
    }

    /// The guest's TSC was set, and is `by` (modulo 2^64) ahead of what it would have been: counts go on as they did, while
    /// the TSC deadline is nearer or farther.
    pub fn tsc_moved(&mut self, by: u64) -> Effect {
        self.timer.tsc_moved(by);
        Effect::Timer
    }

    /// When [`Self::expire`] is to be called, as a value of the guest's TSC; it may be past.
    pub fn next_deadline(&self) -> Option<u64> {
        self.timer.deadline(self.local(Source::Timer).masked())
    }

    /// The timer, if its time has come; whether an interrupt was raised. Periods that have ended since the last call are one
    /// interrupt, and later ones stay in phase.
    pub fn expire(&mut self, requests: &Requests, now: u64) -> bool {
        self.timer.expire(now) && self.fire(Source::Timer, requests)
    }
}

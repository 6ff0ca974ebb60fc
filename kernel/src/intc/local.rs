//! The local APIC of a vCPU (SDM vol. 3 chapter 11).
//!
//! One CPU has it at a time. What others ask of it is in [`Requests`], which every method takes that needs it: IRR and TMR
//! are there, and there it publishes how it is to be addressed.
//!
//! It has xAPIC and x2APIC mode, the timer in its three modes, and six entries of the local vector table, of which no
//! thermal sensor and no performance counter ever makes use. It is at the address 0xfee00000 and nowhere else. IPIs of
//! lowest priority are sent; the receiver is the caller's choice.

use super::FIRST_VECTOR;
use super::message::{Delivery, Destination, Message};
use super::registers::{LocalVector, Register, Source, SpuriousVector, VERSION, error};
use super::requests::{Addressing, Requests, x2apic_logical};
use super::timer::{Timer, TimerMode};
use super::vectors::Vectors;
use crate::rules::GeneralProtection;

/// IA32_APIC_BASE: the address of the register page, BSP, x2APIC mode, enabled (SDM vol. 3 11.4.4, 11.12.1).
const BASE_ADDRESS: u64 = 0xfee0_0000;
const BASE_BSP: u64 = 1 << 8;
const BASE_X2: u64 = 1 << 10;
const BASE_ENABLE: u64 = 1 << 11;

/// The delivery status of the interrupt command register: nothing that is sent waits.
const COMMAND_STATUS: u64 = 1 << 12;
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
    const fn source(self) -> Source {
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
        /// It was level-triggered, and the guest does not tell the I/O APICs itself.
        broadcast: bool,
    },
    /// The deadline may have changed.
    Timer,
    /// Priority, enabling or the local vector table has changed, or an error was noted: look for a deliverable interrupt
    /// again, and ask for the deadline.
    Changed,
}

/// The local APIC, but for what others may touch ([`Requests`]).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocalApic {
    id: u32,
    bootstrap: bool,
    mode: Mode,
    /// ISR.
    in_service: Vectors,
    /// Those of ISR that were level-triggered when they were accepted; TMR may change under them.
    in_service_level: Vectors,
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
            // The destination is in other bits.
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

    /// Reads up to four bytes of the register page; `offset` in bytes. A reserved register reads 0, and is an error that the
    /// error status register tells. All ones unless the APIC is in xAPIC mode.
    pub fn read_mmio(&mut self, offset: u32, requests: &Requests, now: u64) -> u32 {
        if self.mode != Mode::XApic {
            return u32::MAX;
        }
        let Some(register) = Register::of_offset(offset) else {
            self.note_error(error::ILLEGAL_REGISTER, requests);
            return 0;
        };
        match offset & 0xf {
            byte @ 0..4 => self.read(register, requests, now) >> (8 * byte),
            _ => 0,
        }
    }

    /// Writes a register; `offset` in bytes. Writes of another width than 32 bits have no effect and must not come here. Nor
    /// has one that is not at a register's first byte (SDM vol. 3 11.4.1).
    pub fn write_mmio(&mut self, offset: u32, value: u32, requests: &Requests, now: u64) -> Effect {
        if self.mode != Mode::XApic || offset & 0xf != 0 {
            return Effect::None;
        }
        match Register::of_offset(offset) {
            Some(register) => self.write(register, u64::from(value), requests, now),
            None => {
                self.note_error(error::ILLEGAL_REGISTER, requests);
                Effect::Changed
            }
        }
    }

    /// RDMSR of 0x800 to 0x8ff.
    ///
    /// # Errors
    /// The APIC is not in x2APIC mode, or there is no such register, or it cannot be read.
    pub fn read_msr(
        &self,
        msr: u32,
        requests: &Requests,
        now: u64,
    ) -> Result<u64, GeneralProtection> {
        match Register::of_msr(msr) {
            Some(Register::InterruptCommand) if self.mode == Mode::X2Apic => Ok(self.command),
            Some(register) if self.mode == Mode::X2Apic && !register.is_write_only() => {
                Ok(u64::from(self.read(register, requests, now)))
            }
            _ => Err(GeneralProtection),
        }
    }

    /// WRMSR of 0x800 to 0x8ff.
    ///
    /// # Errors
    /// The APIC is not in x2APIC mode, or there is no such register, or it cannot be written, or a reserved bit is set.
    pub fn write_msr(
        &mut self,
        msr: u32,
        value: u64,
        requests: &Requests,
        now: u64,
    ) -> Result<Effect, GeneralProtection> {
        match Register::of_msr(msr) {
            Some(register)
                if self.mode == Mode::X2Apic
                    && !register.is_read_only()
                    && value & !register.bits() == 0 =>
            {
                Ok(self.write(register, value, requests, now))
            }
            _ => Err(GeneralProtection),
        }
    }

    /// What a register holds; the lower half of the interrupt command register.
    fn read(&self, register: Register, requests: &Requests, now: u64) -> u32 {
        let x2apic = self.mode == Mode::X2Apic;
        match register {
            Register::Id if x2apic => self.id,
            Register::Id => self.id << 24,
            Register::Version => VERSION,
            Register::TaskPriority => u32::from(self.task_priority),
            Register::ProcessorPriority => u32::from(self.processor_priority()),
            Register::LogicalDestination if x2apic => x2apic_logical(self.id),
            Register::LogicalDestination => u32::from(self.logical) << 24,
            Register::DestinationFormat => self.format,
            Register::SpuriousVector => self.spurious.into_bits(),
            Register::InService(index) => self.in_service.half(index),
            Register::TriggerMode(index) => requests.tmr_word(index),
            Register::InterruptRequest(index) => requests.irr_word(index),
            Register::ErrorStatus => self.error_status,
            Register::InterruptCommand => self.command as u32,
            Register::InterruptCommandHigh => (self.command >> 32) as u32,
            Register::Local(source) => self.local(source).into_bits(),
            Register::InitialCount => self.timer.initial(),
            Register::CurrentCount => self.timer.current(now),
            Register::DivideConfiguration => self.timer.divide(),
            // Processors since the Pentium 4 have neither of the first two.
            Register::ArbitrationPriority
            | Register::RemoteRead
            | Register::EndOfInterrupt
            | Register::SelfInterrupt => 0,
        }
    }

    /// Writes a register; reserved bits and those that are read-only are ignored.
    fn write(&mut self, register: Register, value: u64, requests: &Requests, now: u64) -> Effect {
        let low = value as u32;
        match register {
            Register::TaskPriority => self.task_priority = low as u8,
            Register::EndOfInterrupt => return self.end_of_interrupt(requests),
            Register::LogicalDestination => {
                self.logical = (low >> 24) as u8;
                self.publish(requests);
            }
            Register::DestinationFormat => {
                self.format = low | !MODEL;
                self.publish(requests);
            }
            Register::SpuriousVector => self.set_spurious(low, requests),
            Register::ErrorStatus => {
                if requests.take_illegal() {
                    self.errors |= error::RECEIVE_ILLEGAL_VECTOR;
                }
                self.error_status = core::mem::take(&mut self.errors);
                self.error_armed = true;
                return Effect::None;
            }
            Register::InterruptCommand => {
                let mask = register.bits() & !COMMAND_STATUS;
                self.command = if self.mode == Mode::X2Apic {
                    value & mask
                } else {
                    self.command & !0xffff_ffff | value & 0xffff_ffff & mask
                };
                return self.send(requests);
            }
            Register::InterruptCommandHigh => {
                self.command = self.command & 0xffff_ffff | (value & 0xff00_0000) << 32;
                return Effect::None;
            }
            Register::Local(source) => self.write_local(source, low, requests, now),
            Register::InitialCount => {
                self.expire(requests, now);
                self.timer.set_initial(low, now);
                return Effect::Timer;
            }
            Register::DivideConfiguration => {
                self.expire(requests, now);
                self.timer.set_divide(low, now);
                return Effect::Timer;
            }
            Register::SelfInterrupt => {
                let fixed = Delivery::Fixed(low as u8);
                return self.send_message(Destination::Physical(self.id), fixed, requests);
            }
            // Software should not write the identifier, and on many processors cannot (SDM vol. 3 11.4.6).
            _ => return Effect::None,
        }
        Effect::Changed
    }

    /// Disabling by software masks the local vector table; interrupts that are pending or in service stay so, and IPIs can
    /// be sent (SDM vol. 3 11.4.7.2).
    fn set_spurious(&mut self, value: u32, requests: &Requests) {
        let bits = Register::SpuriousVector.bits() as u32;
        self.spurious = SpuriousVector::from_bits(value & bits);
        if !self.spurious.enabled() {
            for entry in &mut self.local {
                entry.set_masked(true);
            }
        }
        self.publish(requests);
    }

    fn write_local(&mut self, source: Source, value: u32, requests: &Requests, now: u64) {
        if source == Source::Timer {
            self.expire(requests, now);
        }
        let mut entry = self.local(source).written(source, value);
        if !self.spurious.enabled() {
            entry.set_masked(true);
        }
        if !entry.is_level() {
            entry.set_remote_irr(false);
        }
        self.set_local(source, entry);
        match source {
            Source::Timer => self.timer.set_mode(TimerMode::of_bits(entry.timer_mode())),
            Source::Lint0 | Source::Lint1 => {
                self.serve_pin(source, requests);
            }
            _ => {}
        }
    }

    fn local(&self, source: Source) -> LocalVector {
        self.local
            .get(source as usize)
            .copied()
            .unwrap_or(LocalVector::MASKED)
    }

    fn set_local(&mut self, source: Source, entry: LocalVector) {
        if let Some(place) = self.local.get_mut(source as usize) {
            *place = entry;
        }
    }

    /// Sends what the interrupt command register holds.
    fn send(&mut self, requests: &Requests) -> Effect {
        let x2apic = self.mode == Mode::X2Apic;
        match Message::of_command(self.command, x2apic, self.id) {
            Some(message) => self.send_message(message.destination, message.delivery, requests),
            None => Effect::None,
        }
    }

    fn send_message(
        &mut self,
        destination: Destination,
        delivery: Delivery,
        requests: &Requests,
    ) -> Effect {
        match delivery.vector() {
            Some(..FIRST_VECTOR) => {
                self.note_error(error::SEND_ILLEGAL_VECTOR, requests);
                Effect::Changed
            }
            Some(vector) if destination == Destination::Physical(self.id) => {
                if self.spurious.enabled() && requests.raise(vector, false) {
                    Effect::SelfInterrupt
                } else {
                    Effect::None
                }
            }
            _ => Effect::Send(Message {
                destination,
                delivery,
                level: false,
            }),
        }
    }

    /// Notes an error. It raises an interrupt, unless one did so since the error status register was written (SDM vol. 3
    /// 11.5.3); so an error of delivering that interrupt ends here.
    fn note_error(&mut self, error: u32, requests: &Requests) {
        self.errors |= error;
        if self.error_armed && !self.local(Source::Error).masked() {
            self.error_armed = false;
            self.fire(Source::Error, requests);
        }
    }

    /// Does what the local vector table says for an event of `source`; whether anything was raised.
    fn fire(&mut self, source: Source, requests: &Requests) -> bool {
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
        let above = vector >> 4 > self.task_priority >> 4 && vector >> 4 > self.highest >> 4;
        (above && self.mode != Mode::Disabled).then_some(vector)
    }

    /// The processor takes the deliverable interrupt: from IRR to ISR. Whether it was still there.
    pub fn accept(&mut self, vector: u8, requests: &Requests) -> bool {
        if !requests.take(vector) {
            return false;
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
        self.highest = self.in_service.highest().unwrap_or(0);
        Some(self.in_service_level.set(vector, false))
    }

    /// EOI (SDM vol. 3 11.8.5).
    fn end_of_interrupt(&mut self, requests: &Requests) -> Effect {
        let vector = self.highest;
        let Some(level) = self.retire(vector) else {
            return Effect::None;
        };
        if level {
            for source in [Source::Lint0, Source::Lint1] {
                let entry = self.local(source);
                if entry.remote_irr() && entry.vector() == vector {
                    self.set_local(source, entry.with_remote_irr(false));
                    self.serve_pin(source, requests);
                }
            }
        }
        Effect::Eoi {
            vector,
            broadcast: level && !self.spurious.suppress_eoi_broadcast(),
        }
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
    fn serve_pin(&mut self, source: Source, requests: &Requests) -> bool {
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

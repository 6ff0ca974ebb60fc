//! Accesses of a local APIC's registers, and what they do. The guest's TSC is asked for where a register needs it.

use super::super::FIRST_VECTOR;
use super::super::message::{Delivery, Destination, Message};
use super::super::registers::{Register, Source, SpuriousVector, VERSION, error};
use super::super::requests::{Requests, x2apic_logical};
use super::super::timer::TimerMode;
use super::{Effect, LocalApic, MODEL, Mode};
use crate::arch::msr::Msr;
use crate::rules::GeneralProtection;

/// The delivery status of the interrupt command register: nothing that is sent waits.
const COMMAND_STATUS: u64 = 1 << 12;

impl LocalApic {
    /// Reads up to four bytes of the register page; `offset` in bytes. A reserved register reads 0, and is an error that the
    /// error status register tells. All ones unless the APIC is in xAPIC mode.
    pub fn read_mmio(
        &mut self,
        offset: u32,
        requests: &Requests,
        now: impl FnOnce() -> u64,
    ) -> u32 {
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

    /// Reads the four bytes of a register as [`Self::read_mmio`] does; `None` where that would do something, or find no register's first byte.
    #[inline(always)]
    pub fn read_mmio_at_once(
        &self,
        offset: u32,
        requests: &Requests,
        now: impl FnOnce() -> u64,
    ) -> Option<u32> {
        if self.mode != Mode::XApic || offset & 0xf != 0 {
            return None;
        }
        Some(self.read(Register::of_offset(offset)?, requests, now))
    }

    /// Writes a register; `offset` in bytes. Writes of another width than 32 bits have no effect and must not come here. Nor
    /// has one that is not at a register's first byte (SDM vol. 3 11.4.1).
    pub fn write_mmio(
        &mut self,
        offset: u32,
        value: u32,
        requests: &Requests,
        now: impl FnOnce() -> u64,
    ) -> Effect {
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

    /// Writes TPR or EOI, as [`Self::write_mmio`] does it, where nothing follows but that an interrupt may be delivered. Whether it is so; otherwise
    /// that has to do it.
    #[inline(always)]
    pub fn write_mmio_at_once(&mut self, offset: u32, value: u32) -> bool {
        // SDM vol. 3 table 11-1.
        const TPR: u32 = 0x80;
        const EOI: u32 = 0xb0;
        if self.mode != Mode::XApic {
            return false;
        }
        match offset {
            TPR => {
                self.task_priority = value as u8;
                true
            }
            EOI => self.end_the_only(),
            _ => false,
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
        now: impl FnOnce() -> u64,
    ) -> Result<u64, GeneralProtection> {
        match Register::of_msr(msr) {
            Some(known) if self.mode == Mode::X2Apic && known.readable => {
                Ok(match known.register {
                    Register::InterruptCommand => self.command,
                    register => u64::from(self.read(register, requests, now)),
                })
            }
            _ => Err(GeneralProtection),
        }
    }

    /// WRMSR of 0x800 to 0x8ff.
    ///
    /// # Errors
    /// The APIC is not in x2APIC mode, or there is no such register, or it cannot be written, or a reserved bit is set.
    #[inline(always)]
    pub fn write_msr(
        &mut self,
        msr: u32,
        value: u64,
        requests: &Requests,
        now: impl FnOnce() -> u64,
    ) -> Result<Effect, GeneralProtection> {
        match Register::of_msr(msr) {
            Some(known)
                if self.mode == Mode::X2Apic && known.writable && value & !known.bits == 0 =>
            {
                Ok(self.write(known.register, value, requests, now))
            }
            _ => Err(GeneralProtection),
        }
    }

    /// WRMSR of what is written with nearly every interrupt: TPR, EOI, SELF IPI and IA32_TSC_DEADLINE, as [`Self::write_msr`] and
    /// [`Self::set_tsc_deadline`] do it. `None`: they have to do it.
    #[inline(always)]
    pub fn write_msr_at_once(
        &mut self,
        msr: u32,
        value: u64,
        requests: &Requests,
    ) -> Option<Effect> {
        const TPR: u32 = Msr::X2APIC_TPR.0;
        const EOI: u32 = Msr::X2APIC_EOI.0;
        const SELF_IPI: u32 = Msr::X2APIC_SELF_IPI.0;
        const TSC_DEADLINE: u32 = Msr::IA32_TSC_DEADLINE.0;
        match msr {
            TPR => self.write_tpr(value).then_some(Effect::Changed),
            TSC_DEADLINE => Some(self.set_tsc_deadline(value)),
            EOI if value == 0 && self.mode == Mode::X2Apic => Some(self.end_of_interrupt(requests)),
            SELF_IPI => {
                let vector = self.self_ipi(value)?;
                let _ = self.interrupt_self(vector, requests);
                Some(Effect::Changed)
            }
            _ => None,
        }
    }

    /// TPR in x2APIC mode.
    #[inline(always)]
    pub fn read_tpr(&self) -> Option<u8> {
        (self.mode == Mode::X2Apic).then_some(self.task_priority)
    }

    /// WRMSR of TPR; whether it is legal, and done. What it leads to is that an interrupt may be delivered.
    #[inline(always)]
    pub fn write_tpr(&mut self, value: u64) -> bool {
        let is_legal = self.mode == Mode::X2Apic && value <= 0xff;
        if is_legal {
            self.task_priority = value as u8;
        }
        is_legal
    }

    /// WRMSR of EOI where nothing follows but that an interrupt may be delivered; whether it is so, and done.
    #[inline(always)]
    pub fn write_eoi(&mut self, value: u64) -> bool {
        value == 0 && self.mode == Mode::X2Apic && self.end_the_only()
    }

    /// WRMSR of SELF IPI: the vector of the interrupt that it sends itself; `None`: the value is not legal.
    #[inline(always)]
    pub fn self_ipi(&self, value: u64) -> Option<u8> {
        let vector = u8::try_from(value).ok();
        vector.filter(|_| self.mode == Mode::X2Apic)
    }

    /// Whether an interrupt that it sends itself is the one to be delivered, there being no other. Then [`Self::accept`] may follow.
    #[inline(always)]
    pub fn passes(&self, vector: u8, requests: &Requests) -> bool {
        // Those of a class above that of PPR, which no illegal vector is.
        vector > self.task_priority.max(self.highest) | 0xf
            && self.spurious.enabled()
            && requests.is_quiet()
    }

    /// An interrupt that it sends itself.
    #[inline]
    pub fn interrupt_self(&mut self, vector: u8, requests: &Requests) -> Effect {
        self.send_message(
            Destination::Physical(self.id),
            Delivery::Fixed(vector),
            requests,
        )
    }

    /// What a register holds; the lower half of the interrupt command register.
    fn read(&self, register: Register, requests: &Requests, now: impl FnOnce() -> u64) -> u32 {
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
            Register::CurrentCount => self.timer.current(now()),
            Register::DivideConfiguration => self.timer.divide(),
            // Processors since the Pentium 4 have neither of the first two.
            Register::ArbitrationPriority
            | Register::RemoteRead
            | Register::EndOfInterrupt
            | Register::SelfInterrupt => 0,
        }
    }

    /// Writes a register; reserved bits and those that are read-only are ignored.
    fn write(
        &mut self,
        register: Register,
        value: u64,
        requests: &Requests,
        now: impl FnOnce() -> u64,
    ) -> Effect {
        let low = value as u32;
        match register {
            Register::TaskPriority => self.task_priority = low as u8,
            Register::EndOfInterrupt => return self.end_of_interrupt(requests),
            Register::SelfInterrupt => return self.interrupt_self(low as u8, requests),
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
                let now = now();
                self.expire(requests, now);
                self.timer.set_initial(low, now);
                return Effect::Timer;
            }
            Register::DivideConfiguration => {
                let now = now();
                self.expire(requests, now);
                self.timer.set_divide(low, now);
                return Effect::Timer;
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

    fn write_local(
        &mut self,
        source: Source,
        value: u32,
        requests: &Requests,
        now: impl FnOnce() -> u64,
    ) {
        if source == Source::Timer {
            self.expire(requests, now());
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

    /// Sends what the interrupt command register holds.
    fn send(&mut self, requests: &Requests) -> Effect {
        let x2apic = self.mode == Mode::X2Apic;
        match Message::of_command(self.command, x2apic, self.id) {
            Some(message) => self.send_message(message.destination, message.delivery, requests),
            None => Effect::None,
        }
    }

    #[inline]
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
}

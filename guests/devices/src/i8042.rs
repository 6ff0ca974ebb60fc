//! The keyboard controller of a PC/AT, an 8042, to which nothing is attached (IBM, "PS/2 Hardware Interface Technical Reference",
//! keyboard and auxiliary device controller).
//!
//! It is there to be found, to reset the machine, and to tell a driver soon that there is neither keyboard nor mouse: what is sent to
//! either is answered at once as by a controller whose device did not reply. The gate of address line 20 is a bit that can be
//! written and read; the line itself is always let through.

use crate::Power;

/// The data port.
pub const DATA: u16 = 0x60;
/// The command port; when read, the status.
pub const COMMAND: u16 = 0x64;
/// System control port A: a second way to the reset and to address line 20.
pub const CONTROL_A: u16 = 0x92;

/// Status register.
mod status {
    pub(super) const OUTPUT_FULL: u8 = 1 << 0;
    pub(super) const SYSTEM: u8 = 1 << 2;
    /// The last write went to the command port.
    pub(super) const COMMAND: u8 = 1 << 3;
    pub(super) const NOT_INHIBITED: u8 = 1 << 4;
    pub(super) const AUXILIARY: u8 = 1 << 5;
    pub(super) const TIMEOUT: u8 = 1 << 6;
}

/// Command byte.
mod command_byte {
    pub(super) const KEYBOARD_INTERRUPT: u8 = 1 << 0;
    pub(super) const AUXILIARY_INTERRUPT: u8 = 1 << 1;
    pub(super) const SYSTEM: u8 = 1 << 2;
    pub(super) const KEYBOARD_DISABLED: u8 = 1 << 4;
    pub(super) const AUXILIARY_DISABLED: u8 = 1 << 5;
}

/// Output port, and [`CONTROL_A`] in its own order.
mod output_port {
    /// Low resets the CPU.
    pub(super) const NOT_RESET: u8 = 1 << 0;
    pub(super) const A20: u8 = 1 << 1;
}
mod control_a {
    pub(super) const RESET: u8 = 1 << 0;
    pub(super) const A20: u8 = 1 << 1;
}

/// Commands.
mod command {
    pub(super) const READ_RAM: u8 = 0x20;
    pub(super) const READ_RAM_LAST: u8 = 0x3f;
    pub(super) const WRITE_RAM: u8 = 0x60;
    pub(super) const WRITE_RAM_LAST: u8 = 0x7f;
    pub(super) const DISABLE_AUXILIARY: u8 = 0xa7;
    pub(super) const ENABLE_AUXILIARY: u8 = 0xa8;
    pub(super) const TEST_AUXILIARY: u8 = 0xa9;
    pub(super) const SELF_TEST: u8 = 0xaa;
    pub(super) const TEST_KEYBOARD: u8 = 0xab;
    pub(super) const DISABLE_KEYBOARD: u8 = 0xad;
    pub(super) const ENABLE_KEYBOARD: u8 = 0xae;
    pub(super) const READ_INPUT: u8 = 0xc0;
    pub(super) const READ_OUTPUT: u8 = 0xd0;
    pub(super) const WRITE_OUTPUT: u8 = 0xd1;
    pub(super) const LOOP_KEYBOARD: u8 = 0xd2;
    pub(super) const LOOP_AUXILIARY: u8 = 0xd3;
    pub(super) const TO_AUXILIARY: u8 = 0xd4;
    /// To 0xff: pulse the lines of the output port whose bits are clear.
    pub(super) const PULSE: u8 = 0xf0;
}

/// The self test has found nothing.
const SELF_TEST_PASSED: u8 = 0x55;
/// The keyboard's lines are in order.
const KEYBOARD_GOOD: u8 = 0x00;
/// The auxiliary device's clock line is low: there is no such connector.
const AUXILIARY_BAD: u8 = 0x01;
/// What stands in the output buffer when a device did not answer: "resend".
const NO_ANSWER: u8 = 0xfe;
/// Input port: the keyboard is not locked.
const INPUT_PORT: u8 = 1 << 7;

/// The output buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Output {
    byte: u8,
    /// Status bits that go with it.
    status: u8,
}

/// The controller.
#[derive(Clone, Debug)]
pub struct I8042 {
    /// Its memory that can be read and written; the first byte is the command byte.
    memory: [u8; 32],
    /// The last byte that was put out: it stays readable.
    last: u8,
    output: Option<Output>,
    /// The command whose parameter the data port expects.
    parameter: Option<u8>,
    wrote_command: bool,
    tested: bool,
    a20: bool,
}

impl Default for I8042 {
    fn default() -> Self {
        Self::new()
    }
}

impl I8042 {
    /// As firmware leaves it: tested, with both interfaces disabled and no interrupts.
    pub const fn new() -> Self {
        let mut memory = [0; 32];
        memory[0] = command_byte::SYSTEM
            | command_byte::KEYBOARD_DISABLED
            | command_byte::AUXILIARY_DISABLED;
        Self {
            memory,
            last: 0,
            output: None,
            parameter: None,
            wrote_command: false,
            tested: true,
            a20: true,
        }
    }

    /// Whether a port is one of these.
    pub const fn owns(port: u16) -> bool {
        matches!(port, DATA | COMMAND | CONTROL_A)
    }

    /// A read of a port.
    pub fn read(&mut self, port: u16) -> u8 {
        match port {
            DATA => {
                if let Some(output) = self.output.take() {
                    self.last = output.byte;
                }
                self.last
            }
            COMMAND => self.status(),
            CONTROL_A => {
                if self.a20 {
                    control_a::A20
                } else {
                    0
                }
            }
            _ => 0xff,
        }
    }

    /// A write to a port; what the guest asks for by it.
    pub fn write(&mut self, port: u16, value: u8) -> Option<Power> {
        match port {
            DATA => self.write_data(value),
            COMMAND => self.command(value),
            CONTROL_A => {
                self.a20 = value & control_a::A20 != 0;
                (value & control_a::RESET != 0).then_some(Power::Reset)
            }
            _ => None,
        }
    }

    /// The level of ISA interrupt 1: there is a byte of the keyboard's.
    pub fn keyboard_interrupt(&self) -> bool {
        self.interrupt(0, command_byte::KEYBOARD_INTERRUPT)
    }

    /// The level of ISA interrupt 12: there is a byte of the auxiliary device's.
    pub fn auxiliary_interrupt(&self) -> bool {
        self.interrupt(status::AUXILIARY, command_byte::AUXILIARY_INTERRUPT)
    }

    fn interrupt(&self, source: u8, enable: u8) -> bool {
        let full = self
            .output
            .is_some_and(|output| output.status & status::AUXILIARY == source);
        full && self.command_byte() & enable != 0
    }

    fn command_byte(&self) -> u8 {
        self.memory.first().copied().unwrap_or(0)
    }

    fn change_command_byte(&mut self, clear: u8, set: u8) {
        if let Some(byte) = self.memory.first_mut() {
            *byte = *byte & !clear | set;
        }
    }

    fn status(&self) -> u8 {
        let mut bits = status::NOT_INHIBITED;
        if self.tested {
            bits |= status::SYSTEM;
        }
        if self.wrote_command {
            bits |= status::COMMAND;
        }
        if let Some(output) = self.output {
            bits |= status::OUTPUT_FULL | output.status;
        }
        bits
    }

    fn put(&mut self, byte: u8) {
        self.output = Some(Output { byte, status: 0 });
    }

    /// A device was sent something, and is not there.
    fn no_answer(&mut self, source: u8) {
        self.output = Some(Output {
            byte: NO_ANSWER,
            status: source | status::TIMEOUT,
        });
    }

    fn command(&mut self, value: u8) -> Option<Power> {
        self.wrote_command = true;
        self.parameter = None;
        match value {
            command::READ_RAM..=command::READ_RAM_LAST => {
                let byte = self.memory.get(usize::from(value & 0x1f));
                self.put(byte.copied().unwrap_or(0));
            }
            command::WRITE_RAM..=command::WRITE_RAM_LAST
            | command::WRITE_OUTPUT
            | command::LOOP_KEYBOARD
            | command::LOOP_AUXILIARY
            | command::TO_AUXILIARY => self.parameter = Some(value),
            command::DISABLE_AUXILIARY => {
                self.change_command_byte(0, command_byte::AUXILIARY_DISABLED);
            }
            command::ENABLE_AUXILIARY => {
                self.change_command_byte(command_byte::AUXILIARY_DISABLED, 0);
            }
            command::TEST_AUXILIARY => self.put(AUXILIARY_BAD),
            command::SELF_TEST => {
                self.tested = true;
                self.change_command_byte(
                    0,
                    command_byte::SYSTEM
                        | command_byte::KEYBOARD_DISABLED
                        | command_byte::AUXILIARY_DISABLED,
                );
                self.put(SELF_TEST_PASSED);
            }
            command::TEST_KEYBOARD => self.put(KEYBOARD_GOOD),
            command::DISABLE_KEYBOARD => {
                self.change_command_byte(0, command_byte::KEYBOARD_DISABLED);
            }
            command::ENABLE_KEYBOARD => {
                self.change_command_byte(command_byte::KEYBOARD_DISABLED, 0);
            }
            command::READ_INPUT => self.put(INPUT_PORT),
            command::READ_OUTPUT => {
                let a20 = if self.a20 { output_port::A20 } else { 0 };
                self.put(output_port::NOT_RESET | a20);
            }
            command::PULSE.. if value & output_port::NOT_RESET == 0 => return Some(Power::Reset),
            _ => {}
        }
        None
    }

    fn write_data(&mut self, value: u8) -> Option<Power> {
        self.wrote_command = false;
        match self.parameter.take() {
            // For the keyboard. Sending to it enables its interface.
            None => {
                self.change_command_byte(command_byte::KEYBOARD_DISABLED, 0);
                self.no_answer(0);
            }
            Some(command::WRITE_OUTPUT) => {
                self.a20 = value & output_port::A20 != 0;
                if value & output_port::NOT_RESET == 0 {
                    return Some(Power::Reset);
                }
            }
            Some(command::LOOP_KEYBOARD) => self.put(value),
            // A controller without that connector: drivers look whether the byte comes from there, and take it that it does not.
            Some(command::LOOP_AUXILIARY) => self.put(value),
            Some(command::TO_AUXILIARY) => self.no_answer(status::AUXILIARY),
            Some(write_ram) => {
                let index = usize::from(write_ram & 0x1f);
                if let Some(byte) = self.memory.get_mut(index) {
                    *byte = value;
                }
                if index == 0 {
                    self.tested = value & command_byte::SYSTEM != 0;
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;

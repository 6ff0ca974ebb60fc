use proptest::prelude::*;

use super::register::*;
use super::*;

/// The cause alone, without the bits of the FIFOs.
fn cause(uart: &mut Uart) -> u8 {
    uart.read(IIR_FCR) & 0x0f
}

fn with_fifos(trigger: u8) -> Uart {
    let mut uart = Uart::new();
    uart.write(IIR_FCR, trigger << 6 | 0b111);
    uart.write(MCR, 0b1011);
    uart
}

#[test]
fn a_reset_leaves_what_table_i_says() {
    let mut uart = Uart::new();
    assert_eq!(uart.read(IER), 0);
    assert_eq!(uart.read(IIR_FCR), 0x01);
    assert_eq!(uart.read(LCR), 0);
    assert_eq!(uart.read(MCR), 0);
    assert_eq!(uart.read(LSR), 0x60);
    assert_eq!(uart.read(MSR), 0xb0);
    assert!(!uart.interrupt());
}

#[test]
fn reserved_bits_read_as_zero() {
    let mut uart = Uart::new();
    uart.write(IER, 0xff);
    assert_eq!(uart.read(IER), 0x0f);
    uart.write(MCR, 0xff);
    assert_eq!(uart.read(MCR), 0x1f);
    uart.write(SCR, 0xa5);
    assert_eq!(uart.read(SCR), 0xa5);
}

#[test]
fn bytes_go_out_and_the_divisor_does_not() {
    let mut uart = Uart::new();
    assert_eq!(uart.write(DATA, b'x'), Some(b'x'));
    uart.write(LCR, 0x83);
    assert_eq!(uart.write(DATA, 0x34), None);
    assert_eq!(uart.write(IER, 0x12), None);
    assert_eq!((uart.read(DATA), uart.read(IER)), (0x34, 0x12));
    uart.write(LCR, 0x03);
    // The interrupt enable register is another one.
    assert_eq!(uart.read(IER), 0);
    assert_eq!(uart.write(DATA, b'y'), Some(b'y'));
}

#[test]
fn without_fifos_there_is_room_for_one() {
    let mut uart = Uart::new();
    assert!(uart.receive(1));
    assert!(!uart.receive(2));
    assert_eq!(uart.read(LSR), 0x61);
    assert_eq!(uart.read(DATA), 1);
    assert_eq!(uart.read(LSR), 0x60);
    assert!(uart.receive(2));
    assert_eq!(uart.read(IIR_FCR) & iir::FIFOS, 0);
}

#[test]
fn the_fifo_holds_sixteen_in_order() {
    let mut uart = with_fifos(0);
    assert_eq!(uart.read(IIR_FCR) & iir::FIFOS, iir::FIFOS);
    for byte in 0..16 {
        assert!(uart.receive(byte));
    }
    assert!(!uart.receive(16));
    // Refused is not lost: no overrun.
    assert_eq!(uart.read(LSR), 0x61);
    for byte in 0..16 {
        assert_eq!(uart.read(DATA), byte);
    }
    assert_eq!(uart.read(LSR), 0x60);
}

#[test]
fn below_the_trigger_level_a_timeout_tells() {
    for (code, level) in [(0, 1), (1, 4), (2, 8), (3, 14)] {
        let mut uart = with_fifos(code);
        uart.write(IER, 0x01);
        for received in 1..=16 {
            uart.receive(0);
            let expected = if received >= level {
                iir::RECEIVED
            } else {
                iir::TIMEOUT
            };
            assert_eq!(cause(&mut uart), expected, "{received} of {level}");
            assert!(uart.interrupt());
        }
        // Reading below the level ends one and begins the other; reading all ends both.
        for left in (0..16).rev() {
            uart.read(DATA);
            let expected = match left {
                0 => iir::NONE,
                left if left >= level => iir::RECEIVED,
                _ => iir::TIMEOUT,
            };
            assert_eq!(cause(&mut uart), expected);
        }
        assert!(!uart.interrupt());
    }
}

#[test]
fn changing_the_fifos_empties_them() {
    let mut uart = with_fifos(0);
    uart.receive(1);
    uart.write(IIR_FCR, 0b001);
    assert_eq!(uart.read(LSR), 0x61);
    uart.write(IIR_FCR, 0b011);
    assert_eq!(uart.read(LSR), 0x60);
    uart.receive(1);
    uart.write(IIR_FCR, 0);
    assert_eq!(uart.read(LSR), 0x60);
    // The other bits count with the enable bit only.
    uart.receive(1);
    uart.write(IIR_FCR, 0b1100_0010);
    assert_eq!(uart.read(LSR), 0x61);
    uart.write(IER, 0x01);
    assert_eq!(cause(&mut uart), iir::RECEIVED);
}

#[test]
fn an_empty_transmitter_interrupts_once_per_emptying() {
    let mut uart = with_fifos(0);
    // Enabling it while THR is empty raises it.
    uart.write(IER, 0x02);
    assert!(uart.interrupt());
    assert_eq!(cause(&mut uart), iir::TRANSMITTER_EMPTY);
    // Being read ended it, although THR is still empty.
    assert_eq!(uart.read(LSR), 0x60);
    assert_eq!(cause(&mut uart), iir::NONE);
    assert!(!uart.interrupt());
    // Written without being newly set: nothing.
    uart.write(IER, 0x02);
    assert!(!uart.interrupt());
    // A byte was sent.
    uart.write(DATA, b'x');
    assert!(uart.interrupt());
    assert_eq!(cause(&mut uart), iir::TRANSMITTER_EMPTY);
    // Newly set.
    uart.write(IER, 0);
    uart.write(IER, 0x02);
    assert!(uart.interrupt());
    // Not set at all.
    uart.write(IER, 0);
    assert!(!uart.interrupt());
}

#[test]
fn interrupts_are_told_by_priority() {
    let mut uart = with_fifos(0);
    uart.write(MCR, 0b1_0000);
    for byte in 0..17 {
        uart.write(DATA, byte);
    }
    uart.write(MCR, 0b1000);
    // All four are there; each is told until its reason has gone.
    uart.write(IER, 0x0f);
    assert_eq!(cause(&mut uart), iir::LINE_STATUS);
    assert_eq!(cause(&mut uart), iir::LINE_STATUS);
    assert_eq!(uart.read(LSR), 0x63);
    assert_eq!(uart.read(LSR), 0x61);
    assert_eq!(cause(&mut uart), iir::RECEIVED);
    for byte in 0..16 {
        assert_eq!(uart.read(DATA), byte);
    }
    assert_eq!(cause(&mut uart), iir::TRANSMITTER_EMPTY);
    assert_eq!(cause(&mut uart), iir::MODEM_STATUS);
    assert_eq!(cause(&mut uart), iir::MODEM_STATUS);
    assert!(uart.interrupt());
    assert_eq!(uart.read(MSR) & 0xf0, 0xb0);
    assert_eq!(cause(&mut uart), iir::NONE);
    assert!(!uart.interrupt());
}

#[test]
fn a_lower_cause_is_not_cleared_by_being_outranked() {
    let mut uart = with_fifos(0);
    uart.write(IER, 0x03);
    uart.receive(b'x');
    assert_eq!(cause(&mut uart), iir::RECEIVED);
    uart.read(DATA);
    assert_eq!(cause(&mut uart), iir::TRANSMITTER_EMPTY);
}

#[test]
fn out2_gates_the_line() {
    let mut uart = Uart::new();
    uart.write(IER, 0x02);
    assert!(!uart.interrupt());
    uart.write(MCR, 0b1000);
    assert!(uart.interrupt());
    // In loopback the pin is inactive, whatever the bit says.
    uart.write(MCR, 0b1_1000);
    assert!(!uart.interrupt());
    assert_eq!(cause(&mut uart), iir::TRANSMITTER_EMPTY);
}

#[test]
fn loopback_connects_the_modem_lines() {
    let mut uart = Uart::new();
    uart.write(MCR, 0b1_0000);
    // All three lines that were active are not any more; RI was not.
    assert_eq!(uart.read(MSR), 0x0b);
    assert_eq!(uart.read(MSR), 0x00);
    for (outputs, inputs) in [
        (0b0001, 0x22),
        (0b0010, 0x13),
        (0b0100, 0x41),
        (0b1000, 0x8c),
    ] {
        uart.write(MCR, 0b1_0000 | outputs);
        assert_eq!(uart.read(MSR), inputs, "{outputs:04b}");
    }
}

#[test]
fn loopback_keeps_bytes_within() {
    let mut uart = Uart::new();
    uart.write(MCR, 0b1_0000);
    assert!(!uart.receive(9));
    assert_eq!(uart.write(DATA, 1), None);
    assert_eq!(uart.read(LSR), 0x61);
    // An overrun without FIFOs: the newer byte stays.
    assert_eq!(uart.write(DATA, 2), None);
    assert_eq!(uart.read(LSR), 0x63);
    assert_eq!(uart.read(DATA), 2);
    // With them: the older ones do.
    uart.write(IIR_FCR, 0b1);
    for byte in 0..20 {
        uart.write(DATA, byte);
    }
    assert_eq!(uart.read(LSR), 0x63);
    let all: Vec<u8> = (0..16).map(|_| uart.read(DATA)).collect();
    assert_eq!(all, (0..16).collect::<Vec<u8>>());
    assert_eq!(uart.read(LSR), 0x60);
}

proptest! {
    #[test]
    fn a_storm_keeps_its_invariants(storm in prop::collection::vec((any::<u8>(), any::<u16>(), any::<u8>()), 0..400)) {
        let mut uart = Uart::new();
        for (kind, offset, value) in storm {
            match kind % 3 {
                0 => { uart.write(offset % 9, value); }
                1 => { uart.read(offset % 9); }
                _ => { uart.receive(value); }
            }
            prop_assert!(uart.received.len() <= FIFO);
            prop_assert!(uart.fifos || uart.received.len() <= 1);
            // The line says no more than the identification register.
            let line = uart.interrupt();
            prop_assert!(!line || uart.cause() & 1 == 0);
            prop_assert!(uart.ier.bits() != 0 || !line);
        }
    }
}

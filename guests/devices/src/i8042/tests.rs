use proptest::prelude::*;

use super::*;

/// A command, and what it puts out.
fn answer(i8042: &mut I8042, command: u8) -> Option<u8> {
    assert_eq!(i8042.write(COMMAND, command), None);
    output(i8042)
}

/// The byte in the output buffer, if it is full.
fn output(i8042: &mut I8042) -> Option<u8> {
    (i8042.read(COMMAND) & 1 != 0).then(|| i8042.read(DATA))
}

#[test]
fn it_is_found_and_tested() {
    let mut i8042 = I8042::new();
    // Nothing is in the buffer, and never is the input buffer full.
    assert_eq!(i8042.read(COMMAND), 0x14);
    assert_eq!(answer(&mut i8042, 0xaa), Some(0x55));
    assert_eq!(answer(&mut i8042, 0xab), Some(0x00));
    assert_eq!(output(&mut i8042), None);
    // The last write was a command.
    assert_eq!(i8042.read(COMMAND), 0x1c);
}

#[test]
fn the_command_byte_holds() {
    let mut i8042 = I8042::new();
    assert_eq!(answer(&mut i8042, 0x20), Some(0x34));
    i8042.write(COMMAND, 0x60);
    i8042.write(DATA, 0x47);
    assert_eq!(answer(&mut i8042, 0x20), Some(0x47));
    // What disables and enables the interfaces shows there.
    for (command, byte) in [(0xad, 0x57), (0xa7, 0x77), (0xae, 0x67), (0xa8, 0x47)] {
        i8042.write(COMMAND, command);
        assert_eq!(answer(&mut i8042, 0x20), Some(byte), "{command:#x}");
    }
    // The system flag is the status's, too.
    i8042.write(COMMAND, 0x60);
    i8042.write(DATA, 0x00);
    assert_eq!(i8042.read(COMMAND) & 0x04, 0);
    // Another byte of its memory.
    i8042.write(COMMAND, 0x7f);
    i8042.write(DATA, 0xa5);
    assert_eq!(answer(&mut i8042, 0x3f), Some(0xa5));
}

#[test]
fn the_keyboard_does_not_answer_and_that_is_told_at_once() {
    let mut i8042 = I8042::new();
    i8042.write(COMMAND, 0x60);
    i8042.write(DATA, 0x07);
    assert!(!i8042.keyboard_interrupt());
    i8042.write(DATA, 0xf2);
    assert!(i8042.keyboard_interrupt());
    assert!(!i8042.auxiliary_interrupt());
    // Full, not from the auxiliary device, timed out.
    assert_eq!(i8042.read(COMMAND) & 0x61, 0x41);
    assert_eq!(i8042.read(DATA), 0xfe);
    assert!(!i8042.keyboard_interrupt());
    assert_eq!(i8042.read(COMMAND) & 0x61, 0);
}

#[test]
fn there_is_no_auxiliary_device() {
    let mut i8042 = I8042::new();
    i8042.write(COMMAND, 0x60);
    i8042.write(DATA, 0x47);
    // Looped back, but not from the auxiliary side.
    i8042.write(COMMAND, 0xd3);
    i8042.write(DATA, 0x5a);
    assert_eq!(i8042.read(COMMAND) & 0x21, 0x01);
    assert_eq!(i8042.read(DATA), 0x5a);
    assert_eq!(answer(&mut i8042, 0xa9), Some(0x01));
    i8042.write(COMMAND, 0xd4);
    i8042.write(DATA, 0xff);
    assert!(i8042.auxiliary_interrupt());
    assert!(!i8042.keyboard_interrupt());
    assert_eq!(i8042.read(COMMAND) & 0x61, 0x61);
    assert_eq!(i8042.read(DATA), 0xfe);
}

#[test]
fn there_are_four_ways_to_reset() {
    let mut i8042 = I8042::new();
    assert_eq!(i8042.write(COMMAND, 0xfe), Some(Power::Reset));
    assert_eq!(i8042.write(COMMAND, 0xf0), Some(Power::Reset));
    // No line is pulsed, and only others.
    assert_eq!(i8042.write(COMMAND, 0xff), None);
    assert_eq!(i8042.write(COMMAND, 0xfd), None);
    assert_eq!(i8042.write(COMMAND, 0xd1), None);
    assert_eq!(i8042.write(DATA, 0xde), Some(Power::Reset));
    assert_eq!(i8042.write(COMMAND, 0xd1), None);
    assert_eq!(i8042.write(DATA, 0xdf), None);
    assert_eq!(i8042.write(CONTROL_A, 0x02), None);
    assert_eq!(i8042.write(CONTROL_A, 0x03), Some(Power::Reset));
}

#[test]
fn address_line_20_has_one_gate_and_two_controls() {
    let mut i8042 = I8042::new();
    assert_eq!(answer(&mut i8042, 0xd0), Some(0x03));
    i8042.write(COMMAND, 0xd1);
    i8042.write(DATA, 0xdd);
    assert_eq!(i8042.read(CONTROL_A), 0);
    i8042.write(CONTROL_A, 0x02);
    assert_eq!(answer(&mut i8042, 0xd0), Some(0x03));
    i8042.write(CONTROL_A, 0x00);
    assert_eq!(answer(&mut i8042, 0xd0), Some(0x01));
}

proptest! {
    #[test]
    fn a_storm_never_panics(storm in prop::collection::vec((any::<bool>(), 0..4usize, any::<u8>()), 0..400)) {
        let mut i8042 = I8042::new();
        for (write, port, value) in storm {
            let port = [DATA, COMMAND, CONTROL_A, 0x61][port];
            if write {
                i8042.write(port, value);
            } else {
                i8042.read(port);
            }
            // It is always ready to be written to, and an interrupt means a full buffer, of one of the two.
            let status = i8042.read(COMMAND);
            prop_assert_eq!(status & 0x02, 0);
            let (one, other) = (i8042.keyboard_interrupt(), i8042.auxiliary_interrupt());
            prop_assert!(!(one && other));
            prop_assert!(!(one || other) || status & 1 != 0);
        }
    }
}

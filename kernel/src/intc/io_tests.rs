//! Tests of the I/O APIC, against the 82093AA datasheet.

use proptest::prelude::*;

use super::io::{IoApic, PINS};
use super::*;

const SELECT: u32 = 0x00;
const WINDOW: u32 = 0x10;
const EOIR: u32 = 0x40;

const NONE: [u8; 0] = [];

/// Bits of an entry's lower half.
const PENDING: u32 = 1 << 12;
const REMOTE_IRR: u32 = 1 << 14;
const LEVEL: u32 = 1 << 15;
const MASKED: u32 = 1 << 16;

/// An I/O APIC, and what it has sent.
struct Board {
    io: IoApic,
    sent: Vec<Message>,
    /// Whether there is an APIC that takes messages.
    taken: bool,
}

impl Board {
    fn new() -> Self {
        Self {
            io: IoApic::new(),
            sent: Vec::new(),
            taken: true,
        }
    }

    fn sending(&mut self, action: impl FnOnce(&mut IoApic, &mut dyn FnMut(&Message) -> bool)) {
        let (sent, taken) = (&mut self.sent, self.taken);
        action(&mut self.io, &mut |message| {
            sent.push(*message);
            taken
        });
    }

    fn write(&mut self, register: u8, value: u32) {
        self.sending(|io, deliver| {
            io.write_mmio(SELECT, u32::from(register), &mut *deliver);
            io.write_mmio(WINDOW, value, deliver);
        });
    }

    fn read(&mut self, register: u8) -> u32 {
        self.io.write_mmio(SELECT, u32::from(register), |_| false);
        self.io.read_mmio(WINDOW)
    }

    fn entry(&mut self, pin: u8) -> u32 {
        self.read(0x10 + 2 * pin)
    }

    fn set_entry(&mut self, pin: u8, low: u32) {
        self.write(0x10 + 2 * pin, low);
    }

    fn line(&mut self, pin: u8, asserted: bool) {
        self.sending(|io, deliver| io.set_line(pin, asserted, deliver));
    }

    fn eoi(&mut self, vector: u8) {
        self.sending(|io, deliver| io.end_of_interrupt(vector, deliver));
    }

    /// The vectors that were sent since the last call.
    fn vectors(&mut self) -> Vec<u8> {
        let vector = |message: Message| message.delivery.vector().unwrap();
        self.sent.drain(..).map(vector).collect()
    }
}

#[test]
fn the_state_after_reset() {
    let mut board = Board::new();
    assert_eq!(board.read(0), 0);
    assert_eq!(board.read(1), 0x0017_0020);
    for pin in 0..24 {
        assert_eq!(board.entry(pin), MASKED);
        assert_eq!(board.read(0x11 + 2 * pin), 0);
    }
    for register in (0x03..0x10).chain(0x40..=0xff) {
        assert_eq!(board.read(register), 0, "{register:#x}");
    }
}

#[test]
fn registers_keep_their_bits_alone() {
    let mut board = Board::new();
    board.write(0, u32::MAX);
    assert_eq!((board.read(0), board.read(2)), (0x0f00_0000, 0x0f00_0000));
    board.write(1, 0);
    assert_eq!(board.read(1), 0x0017_0020);
    board.set_entry(5, u32::MAX);
    board.write(0x1b, u32::MAX);
    assert_eq!(board.entry(5), 0x1_afff);
    assert_eq!(board.read(0x1b), 0xfffe_0000);
    for register in [0x03, 0x0f, 0x40, 0xff] {
        board.write(register, u32::MAX);
        assert_eq!(board.read(register), 0, "{register:#x}");
    }
    assert_eq!(board.io.read_mmio(0x01), 0);
    assert_eq!(board.io.read_mmio(0x00), 0xff);
    assert_eq!(board.read(1), 0x0017_0020);
    assert_eq!(board.io.read_mmio(WINDOW + 2), 0x17, "byte by byte");
}

#[test]
fn an_edge_is_sent_when_it_rises() {
    let mut board = Board::new();
    board.set_entry(4, 0x34);
    board.line(4, true);
    board.line(4, true);
    assert_eq!(board.vectors(), [0x34]);
    board.line(4, false);
    assert_eq!(board.vectors(), NONE);
    board.line(4, true);
    assert_eq!(board.vectors(), [0x34]);
    assert_eq!(board.entry(4), 0x34, "an edge leaves nothing behind");
}

#[test]
fn an_edge_at_a_masked_pin_is_lost() {
    let mut board = Board::new();
    board.set_entry(4, MASKED | 0x34);
    board.line(4, true);
    board.set_entry(4, 0x34);
    assert_eq!(board.vectors(), NONE);
}

#[test]
fn a_level_is_sent_once_until_it_ends() {
    let mut board = Board::new();
    board.set_entry(9, LEVEL | 0x39);
    board.line(9, true);
    assert_eq!(board.entry(9), LEVEL | REMOTE_IRR | 0x39);
    board.line(9, false);
    board.line(9, true);
    assert_eq!(board.vectors(), [0x39]);
    board.eoi(0x40);
    assert_eq!(board.vectors(), NONE, "another vector");
    board.eoi(0x39);
    assert_eq!(board.vectors(), [0x39], "still asserted");
    board.line(9, false);
    board.eoi(0x39);
    assert_eq!(board.vectors(), NONE);
    assert_eq!(board.entry(9), LEVEL | 0x39);
    board.eoi(0x39);
    assert_eq!(board.vectors(), NONE);
}

#[test]
fn the_eoi_register_ends_an_interrupt_as_well() {
    let mut board = Board::new();
    board.set_entry(9, LEVEL | 0x39);
    board.line(9, true);
    board.sending(|io, deliver| io.write_mmio(EOIR, 0x39, deliver));
    assert_eq!(board.vectors(), [0x39, 0x39]);
    assert_eq!(board.io.read_mmio(EOIR), 0);
}

#[test]
fn unmasking_sends_a_level_that_is_asserted() {
    let mut board = Board::new();
    board.line(9, true);
    board.set_entry(9, MASKED | LEVEL | 0x39);
    assert_eq!(board.vectors(), NONE);
    board.set_entry(9, LEVEL | 0x39);
    assert_eq!(board.vectors(), [0x39]);
    // As systems do that mask while they serve.
    board.set_entry(9, MASKED | LEVEL | 0x39);
    board.eoi(0x39);
    assert_eq!(board.vectors(), NONE);
    board.set_entry(9, LEVEL | 0x39);
    assert_eq!(board.vectors(), [0x39]);
}

#[test]
fn remote_irr_is_not_the_guests_to_write() {
    let mut board = Board::new();
    board.set_entry(9, LEVEL | REMOTE_IRR | PENDING | 0x39);
    assert_eq!(board.entry(9), LEVEL | 0x39);
    board.line(9, true);
    board.set_entry(9, LEVEL | 0x39);
    assert_eq!(board.entry(9), LEVEL | REMOTE_IRR | 0x39);
    assert_eq!(board.vectors(), [0x39]);
}

#[test]
fn an_entry_that_becomes_edge_triggered_forgets_what_it_waits_for() {
    let mut board = Board::new();
    board.set_entry(9, LEVEL | 0x39);
    board.line(9, true);
    board.set_entry(9, MASKED | 0x39);
    assert_eq!(board.entry(9), MASKED | 0x39);
    board.set_entry(9, LEVEL | 0x39);
    assert_eq!(board.vectors(), [0x39, 0x39]);
}

#[test]
fn what_no_apic_takes_waits() {
    let mut board = Board::new();
    board.taken = false;
    board.set_entry(9, LEVEL | 0x39);
    board.line(9, true);
    assert_eq!(board.vectors(), [0x39]);
    assert_eq!(board.entry(9), LEVEL | PENDING | 0x39);
    board.taken = true;
    board.sending(|io, deliver| io.retry(deliver));
    board.sending(|io, deliver| io.retry(deliver));
    assert_eq!(board.vectors(), [0x39]);
    assert_eq!(board.entry(9), LEVEL | REMOTE_IRR | 0x39);
}

#[test]
fn destinations_and_deliveries() {
    let mut board = Board::new();
    let mut send = |high: u32, low: u32| {
        board.write(0x11, high);
        board.set_entry(0, low);
        board.line(0, true);
        board.line(0, false);
        board.eoi(low as u8);
        board.sent.drain(..).next()
    };
    let message = |destination, delivery| {
        Some(Message {
            destination,
            delivery,
            level: false,
        })
    };
    assert_eq!(
        send(0x0500_0000, 0x41),
        message(Destination::Physical(5), Delivery::Fixed(0x41))
    );
    assert_eq!(
        send(0x0500_0000, 0x941),
        message(Destination::Logical(5), Delivery::LowestPriority(0x41))
    );
    assert_eq!(
        send(0xff00_0000, 0x841),
        message(Destination::All, Delivery::Fixed(0x41))
    );
    assert_eq!(
        send(0x3424_0000, 0x41),
        message(Destination::Physical(0x1234), Delivery::Fixed(0x41))
    );
    let to = Destination::Physical(1);
    assert_eq!(send(1 << 24, 0x400), message(to, Delivery::Nmi));
    assert_eq!(send(1 << 24, 0x500), message(to, Delivery::Init));
    assert_eq!(send(1 << 24, 0x700), message(to, Delivery::ExtInt));
    assert_eq!(
        send(1 << 24, LEVEL | 0x400),
        message(to, Delivery::Nmi),
        "an edge whatever the trigger mode"
    );
    assert_eq!(send(1 << 24, 0x341), None, "reserved");
    assert_eq!(send(1 << 24, LEVEL | 0x641), None, "reserved");
    assert!(send(1 << 24, LEVEL | 0x41).is_some_and(|message| message.level));
}

#[test]
fn two_pins_may_share_a_vector() {
    let mut board = Board::new();
    for pin in [10, 11] {
        board.set_entry(pin, LEVEL | 0x55);
        board.line(pin, true);
    }
    assert_eq!(board.vectors(), [0x55, 0x55]);
    board.line(10, false);
    board.eoi(0x55);
    assert_eq!(board.vectors(), [0x55]);
    assert_eq!(board.entry(10) & REMOTE_IRR, 0);
}

#[test]
fn there_are_no_other_pins() {
    let mut board = Board::new();
    for pin in [24, 31, 32, 255] {
        board.line(pin, true);
    }
    assert_eq!(board.io, IoApic::new());
}

/// What happens to an I/O APIC.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    Line(u8, bool),
    Write(u8, u32),
    End(u8),
    Retry,
    Taken(bool),
}

/// One of them.
pub fn event() -> impl Strategy<Value = Event> {
    // Few pins and vectors, so that they meet.
    let low = (0u32..4, any::<u32>()).prop_map(|(vector, bits)| {
        0x30 | vector | bits & (MASKED | LEVEL | REMOTE_IRR | PENDING | 0x100)
    });
    prop_oneof![
        4 => (0u8..4, any::<bool>()).prop_map(|(pin, asserted)| Event::Line(pin, asserted)),
        2 => (0u8..4, low).prop_map(|(pin, low)| Event::Write(0x10 + 2 * pin, low)),
        1 => any::<(u8, u32)>().prop_map(|(register, value)| Event::Write(register, value)),
        3 => (0x30u8..0x34).prop_map(Event::End),
        1 => Just(Event::Retry),
        1 => any::<bool>().prop_map(Event::Taken),
    ]
}

/// Offset, value, whether the offset is one of a register, and a pin.
pub type Access = (u32, u32, bool, u8);

/// After every event: a level-triggered pin that is open and asserted either waits for its end or was offered and not
/// taken. It was not sent again before its end.
pub fn loses_and_doubles_nothing(events: Vec<Event>) -> Result<(), TestCaseError> {
    let mut board = Board::new();
    let mut lines = [false; PINS];
    // Level-triggered interrupts that were taken and have not ended, by vector.
    for event in events {
        let before: Vec<u32> = (0..PINS as u8).map(|pin| board.entry(pin)).collect();
        board.sent.clear();
        match event {
            Event::Line(pin, asserted) => {
                lines[usize::from(pin)] = asserted;
                board.line(pin, asserted);
            }
            Event::Write(register, value) => board.write(register, value),
            Event::End(vector) => board.eoi(vector),
            Event::Retry => board.sending(|io, deliver| io.retry(deliver)),
            Event::Taken(taken) => {
                board.taken = taken;
                board.sending(|io, deliver| io.retry(deliver));
            }
        }
        prop_assert!(board.sent.len() <= PINS);
        let levels = board.sent.iter().filter(|message| message.level).count();
        let mut begun = 0;
        for (pin, &old) in before.iter().enumerate() {
            let new = board.entry(pin as u8);
            let is_level = new & LEVEL != 0 && new & 0x600 == 0;
            let due = lines[pin] && new & MASKED == 0 && is_level;
            if due && new & REMOTE_IRR == 0 {
                prop_assert!(!board.taken, "pin {} is due and was not sent", pin);
                prop_assert!(new & PENDING != 0);
            } else {
                prop_assert_eq!(new & PENDING, 0);
            }
            let ended = matches!(event, Event::End(vector) if u32::from(vector) == old & 0xff);
            match (old & REMOTE_IRR != 0, new & REMOTE_IRR != 0) {
                (false, true) => begun += 1,
                (true, true) if ended => begun += 1,
                (true, false) => prop_assert!(ended || new & LEVEL == 0),
                _ => {}
            }
        }
        if board.taken {
            prop_assert_eq!(levels, begun, "as many were sent as now wait for their end");
        } else {
            prop_assert_eq!(begun, 0);
        }
    }
    Ok(())
}

/// No access panics, and a read has no effect.
pub fn reads_change_nothing(accesses: Vec<Access>) -> Result<(), TestCaseError> {
    let mut io = IoApic::new();
    for (offset, value, near, pin) in accesses {
        let offset = if near { offset & 0x50 } else { offset };
        io.write_mmio(offset, value, |_| true);
        io.set_line(pin & 31, value & 1 != 0, |_| true);
        let before = io.clone();
        io.read_mmio(offset);
        io.read_mmio(WINDOW);
        prop_assert_eq!(&io, &before);
    }
    Ok(())
}

proptest! {
    #[test]
    fn a_level_is_never_lost_and_never_doubled(events in prop::collection::vec(event(), 0..200)) {
        loses_and_doubles_nothing(events)?;
    }

    #[test]
    fn no_access_panics_and_reads_change_nothing(accesses in prop::collection::vec(any::<Access>(), 0..100)) {
        reads_change_nothing(accesses)?;
    }
}

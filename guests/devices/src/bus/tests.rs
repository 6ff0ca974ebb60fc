use proptest::prelude::*;

use super::*;
use crate::time::SECOND;

fn everything() -> Config {
    Config {
        com1: true,
        pic: true,
        pit: true,
        rtc: Some(rtc::Config::default()),
        pm: Some(TimerWidth::Bits32),
        i8042: true,
        pci: true,
        debug_exit: Some(debug::EXIT),
    }
}

fn nothing() -> Config {
    Config {
        com1: false,
        pic: false,
        pit: false,
        rtc: None,
        pm: None,
        i8042: false,
        pci: false,
        debug_exit: None,
    }
}

/// The 8259As with vectors from 0x20 on and nothing masked.
fn initialise_pic(ports: &mut Ports) {
    for (port, values) in [
        (0x20, [0x11, 0x20, 0x04, 0x01]),
        (0xa0, [0x11, 0x28, 0x02, 0x01]),
    ] {
        let [icw1, others @ ..] = values;
        ports.write(port, 1, icw1, 0);
        for value in others {
            ports.write(port + 1, 1, value, 0);
        }
    }
}

#[test]
fn the_ranges_are_apart_and_ascending() {
    let ranges = Ports::new(&everything(), 0).ranges();
    for pair in ranges.windows(2) {
        assert!(pair[0].first + pair[0].length <= pair[1].first, "{pair:?}");
    }
    let expected = [
        (0x20, 2),
        (0x40, 4),
        (0x60, 1),
        (0x61, 1),
        (0x64, 1),
        (0x70, 2),
        (0x92, 1),
        (0xa0, 2),
        (0xf4, 4),
        (0x3f8, 8),
        (0x4d0, 2),
        (0x600, 4),
        (0x604, 2),
        (0x608, 4),
        (0xcf8, 1),
        (0xcf9, 1),
        (0xcfc, 4),
    ];
    let found: Vec<_> = ranges
        .iter()
        .map(|range| (range.first, range.length))
        .collect();
    assert_eq!(found, expected);
    assert!(Ports::new(&nothing(), 0).ranges().is_empty());
    let last = Config {
        debug_exit: Some(0xffff),
        ..nothing()
    };
    assert_eq!(
        Ports::new(&last, 0).ranges(),
        [Range {
            first: 0xffff,
            length: 1
        }]
    );
}

#[test]
fn what_is_not_there_is_all_ones() {
    let mut ports = Ports::new(&nothing(), 0);
    for port in [
        0, 0x20, 0x40, 0x60, 0x70, 0x80, 0x3f8, 0x600, 0xcf8, 0xcf9, 0xcfc, 0xffff,
    ] {
        for (size, ones) in [(0, 0), (1, 0xff), (2, 0xffff), (4, u32::MAX), (9, u32::MAX)] {
            ports.write(port, size, 0, 0);
            assert_eq!(ports.read(port, size, 0), ones);
        }
    }
    assert_eq!(ports.lines(0), 0);
    assert_eq!(ports.changed_lines(0), Edges::default());
    assert_eq!(ports.next_event(0), None);
    assert!(!ports.intr(0));
    assert_eq!(ports.acknowledge(0), 0xff);
    assert_eq!(ports.type_in(b"x"), 0);
    assert_eq!(
        (ports.take_output(), ports.take_power()),
        (Vec::new(), None)
    );
    ports.press_power_button();
}

#[test]
fn wide_accesses_are_bytes_at_ports_that_follow() {
    let mut ports = Ports::new(&everything(), 0);
    // Scratch register, and nothing behind it.
    ports.write(0x3ff, 2, 0x11a5, 0);
    assert_eq!(ports.read(0x3ff, 1, 0), 0xa5);
    assert_eq!(ports.read(0x3ff, 4, 0), 0xffff_ffa5);
    // A register of the clock by one access: the index, then the data.
    ports.write(0x70, 2, 0x5a40, 0);
    assert_eq!(ports.read(0x71, 1, 0), 0x5a);
    // Both bytes of a count, one access each.
    assert_eq!(ports.read(0x608, 4, SECOND), 3_579_545);
    assert_eq!(ports.read(0x60a, 2, SECOND), 3_579_545 >> 16);
    ports.write(0x600, 4, 1 << 24, 0);
    assert_eq!(ports.read(0x602, 2, 0), 1 << 8);
    // The last port.
    assert_eq!(ports.read(0xffff, 4, 0), u32::MAX);
    ports.write(0xffff, 4, 0, 0);
}

#[test]
fn pcis_address_is_not_the_reset_register() {
    let mut ports = Ports::new(&everything(), 0);
    ports.write(0xcf8, 4, 0x8000_0604, 0);
    assert_eq!(ports.read(0xcf8, 4, 0), 0x8000_0604);
    assert_eq!(ports.take_power(), None);
    ports.write(0xcf9, 1, 0x06, 0);
    assert_eq!(ports.take_power(), Some(Power::Reset));
}

#[test]
fn the_first_end_counts() {
    let mut ports = Ports::new(&everything(), 0);
    ports.write(0xf4, 4, 0x1_0203, 0);
    ports.write(0x604, 2, 1 << 13 | 5 << 10, 0);
    ports.write(0x64, 1, 0xfe, 0);
    assert_eq!(ports.take_power(), Some(Power::Exit(0x1_0203)));
    assert_eq!(ports.take_power(), None);
    ports.write(0x64, 1, 0xfe, 0);
    assert_eq!(ports.take_power(), Some(Power::Reset));
    ports.write(0x604, 2, 1 << 13 | 5 << 10, 0);
    assert_eq!(ports.take_power(), Some(Power::Off));
    ports.write(0xf7, 1, 3, 0);
    assert_eq!(ports.take_power(), Some(Power::Exit(3)));
}

#[test]
fn com1_sends_and_receives() {
    let mut ports = Ports::new(&everything(), 0);
    for byte in b"Linux" {
        ports.write(0x3f8, 1, (*byte).into(), 0);
    }
    assert_eq!(ports.take_output(), b"Linux");
    assert!(ports.take_output().is_empty());
    for _ in 0..MOST_OUTPUT + 10 {
        ports.write(0x3f8, 1, 0, 0);
    }
    assert_eq!(ports.take_output().len(), MOST_OUTPUT);
    ports.write(0x3fa, 1, 0x07, 0);
    assert_eq!(ports.type_in(b"0123456789abcdefgh"), 16);
    assert_eq!(ports.read(0x3f8, 1, 0), b'0'.into());
    assert_eq!(ports.type_in(b"gh"), 1);
}

#[test]
fn a_serial_interrupt_goes_to_line_4_and_to_the_8259as() {
    let mut ports = Ports::new(&everything(), 0);
    initialise_pic(&mut ports);
    ports.write(0x3fc, 1, 0x08, 0);
    ports.write(0x3f9, 1, 0x01, 0);
    ports.type_in(b"x");
    assert_eq!(ports.lines(0), 1 << 4);
    let raised = Edges {
        lowered: 0,
        raised: 1 << 4,
    };
    assert_eq!(ports.changed_lines(0), raised);
    assert_eq!(ports.changed_lines(0), Edges::default());
    assert!(ports.intr(0));
    assert_eq!(ports.acknowledge(0), 0x24);
    ports.read(0x3f8, 1, 0);
    let lowered = Edges {
        lowered: 1 << 4,
        raised: 0,
    };
    assert_eq!(ports.changed_lines(0), lowered);
}

#[test]
fn a_line_that_fell_and_rose_is_told_as_both() {
    let mut ports = Ports::new(&everything(), 0);
    ports.write(0x3fc, 1, 0x08, 0);
    ports.write(0x3f9, 1, 0x02, 0);
    assert_eq!(ports.changed_lines(0).raised, 1 << 4);
    // Read away, and raised by the next byte.
    ports.read(0x3fa, 1, 0);
    ports.write(0x3f8, 1, 0, 0);
    let both = Edges {
        lowered: 1 << 4,
        raised: 1 << 4,
    };
    assert_eq!(ports.changed_lines(0), both);
    // The transmitter was full for a moment, though nobody has asked why the line is high.
    ports.write(0x3f8, 1, 0, 0);
    assert_eq!(ports.changed_lines(0), both);
    // Up and down in between is nothing.
    ports.write(0x3f9, 1, 0, 0);
    ports.changed_lines(0);
    ports.write(0x3f9, 1, 2, 0);
    ports.read(0x3fa, 1, 0);
    assert_eq!(ports.changed_lines(0), Edges::default());
}

#[test]
fn each_tick_of_the_timer_is_an_edge_of_line_0() {
    let mut ports = Ports::new(&everything(), 0);
    initialise_pic(&mut ports);
    ports.write(0x43, 1, 0x34, 0);
    ports.write(0x40, 1, 0x9c, 0);
    ports.write(0x40, 1, 0x2e, 0);
    ports.changed_lines(0);
    ports.acknowledge(0);
    ports.write(0x20, 1, 0x20, 0);
    let mut now = 0;
    for _ in 0..10 {
        assert!(!ports.intr(now));
        now = ports.next_event(now).unwrap();
        let edge = Edges {
            lowered: 1,
            raised: 1,
        };
        assert_eq!(ports.changed_lines(now), edge);
        assert_eq!(ports.lines(now), 1);
        assert!(ports.intr(now));
        assert_eq!(ports.acknowledge(now), 0x20);
        ports.write(0x20, 1, 0x20, now);
    }
    // Ten periods of 11932 ticks, and the one in which the count was loaded.
    assert_eq!(now, crate::time::moment(119_321, pit::HZ));
}

#[test]
fn the_clock_and_the_power_button_have_lines() {
    let mut ports = Ports::new(&everything(), 0);
    ports.write(0x70, 2, 0x120b, 0);
    let now = ports.next_event(0).unwrap();
    assert_eq!(now, SECOND);
    assert_eq!(ports.changed_lines(now).raised, 1 << 8);
    ports.write(0x70, 1, 0x0c, now);
    ports.read(0x71, 1, now);
    assert_eq!(ports.changed_lines(now).lowered, 1 << 8);
    ports.write(0x602, 2, 1 << 8, now);
    ports.press_power_button();
    assert_eq!(ports.changed_lines(now).raised, 1 << 9);
    // Level triggered, as firmware would have set it up.
    assert_eq!(ports.read(0x4d1, 1, now), 0x02);
    ports.write(0x600, 2, 1 << 8, now);
    assert_eq!(ports.changed_lines(now).lowered, 1 << 9);
}

#[test]
fn the_keyboard_controller_has_lines() {
    let mut ports = Ports::new(&everything(), 0);
    ports.write(0x64, 1, 0x60, 0);
    ports.write(0x60, 1, 0x03, 0);
    ports.write(0x60, 1, 0xf2, 0);
    assert_eq!(ports.lines(0), 1 << 1);
    ports.read(0x60, 1, 0);
    ports.write(0x64, 1, 0xd4, 0);
    ports.write(0x60, 1, 0xf2, 0);
    assert_eq!(ports.lines(0), 1 << 12);
}

#[test]
fn line_0_is_global_system_interrupt_2() {
    assert_eq!(gsis(0b1), 0b100);
    assert_eq!(gsis(1 << 4 | 1 << 9 | 1), 1 << 4 | 1 << 9 | 1 << 2);
    assert_eq!(gsis(1 << 12), 1 << 12);
}

/// What is done, to which of the ports, with what value; or how much time passes.
pub type Gust = (u8, prop::sample::Index, u32, u64);

/// Anything at any port, or time.
pub fn gust() -> impl Strategy<Value = Gust> {
    (
        0..6u8,
        any::<prop::sample::Index>(),
        any::<u32>(),
        0..1u64 << 34,
    )
}

/// Who follows the edges knows the lines; and nothing changes between the looks that were asked for.
pub fn keeps_the_owner_informed(storm: Vec<Gust>) -> Result<(), TestCaseError> {
    let mut ports = Ports::new(&everything(), 0);
    let all: Vec<u16> = ports
        .ranges()
        .iter()
        .flat_map(|range| {
            (range.first..=range.first + (range.length - 1)).chain([range.first.wrapping_sub(1)])
        })
        .collect();
    let (mut now, mut known) = (0u64, 0);
    for (kind, port, value, step) in storm {
        let port = *port.get(&all);
        let size = 1 << (value >> 30);
        match kind {
            0 | 1 => ports.write(port, size, value, now),
            2 => {
                ports.read(port, size, now);
            }
            3 => {
                ports.type_in(&value.to_le_bytes());
            }
            4 => {
                ports.acknowledge(now);
            }
            _ => {
                let until = now.saturating_add(step >> (value & 31));
                let mut looks = 0;
                while let Some(next) = ports
                    .next_event(now)
                    .filter(|next| *next < until && looks < 30)
                {
                    if next > now {
                        // One moment before nothing has happened.
                        prop_assert_eq!(ports.clone().lines(next - 1), ports.lines(now));
                        prop_assert_eq!(
                            ports.clone().changed_lines(next - 1),
                            ports.clone().changed_lines(now)
                        );
                    }
                    now = next;
                    ports.lines(now);
                    looks += 1;
                }
                now = until;
            }
        }
        let edges = ports.changed_lines(now);
        prop_assert_eq!(edges.lowered & !known, 0);
        known &= !edges.lowered;
        prop_assert_eq!(edges.raised & known, 0);
        known |= edges.raised;
        prop_assert_eq!(known, ports.lines(now));
        ports.take_output();
        ports.take_power();
    }
    Ok(())
}

proptest! {
    #[test]
    fn a_storm_keeps_the_owner_informed(storm in prop::collection::vec(gust(), 0..150)) {
        keeps_the_owner_informed(storm)?;
    }
}

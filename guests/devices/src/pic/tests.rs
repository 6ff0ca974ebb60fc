use proptest::prelude::*;

use super::*;

/// A pair as a PC's firmware sets it up: vectors 0x20 and 0x28, nothing masked.
fn initialised() -> Pic {
    initialised_with(0x01, 0x01)
}

fn initialised_with(master_icw4: u8, slave_icw4: u8) -> Pic {
    let mut pic = Pic::new();
    for (port, base, wiring, icw4) in [
        (MASTER, 0x20, 0x04, master_icw4),
        (SLAVE, 0x28, 0x02, slave_icw4),
    ] {
        pic.write(port, 0x11);
        pic.write(port + 1, base);
        pic.write(port + 1, wiring);
        pic.write(port + 1, icw4);
    }
    pic
}

fn raise(pic: &mut Pic, lines: &[u8]) {
    for line in lines {
        pic.set_line(*line, true);
    }
}

fn pulse(pic: &mut Pic, line: u8) {
    pic.set_line(line, false);
    pic.set_line(line, true);
}

/// Takes what is pending, if anything is.
fn taken(pic: &mut Pic) -> Option<u8> {
    pic.intr().then(|| pic.acknowledge())
}

fn in_service(pic: &mut Pic, port: u16) -> u8 {
    pic.write(port, 0x0b);
    let value = pic.read(port);
    pic.write(port, 0x0a);
    value
}

const EOI: u8 = 0x20;

#[test]
fn an_edge_interrupts_once() {
    let mut pic = initialised();
    assert!(!pic.intr());
    pic.set_line(3, true);
    assert_eq!(pic.read(MASTER), 0x08);
    assert_eq!(taken(&mut pic), Some(0x23));
    assert_eq!((pic.read(MASTER), in_service(&mut pic, MASTER)), (0, 0x08));
    pic.write(MASTER, EOI);
    // Still high: no other edge.
    assert!(!pic.intr());
    pic.set_line(3, true);
    assert!(!pic.intr());
    pulse(&mut pic, 3);
    assert_eq!(taken(&mut pic), Some(0x23));
}

#[test]
fn an_edge_while_in_service_waits_for_the_end() {
    let mut pic = initialised();
    raise(&mut pic, &[3]);
    pic.acknowledge();
    pulse(&mut pic, 3);
    assert!(!pic.intr());
    pic.write(MASTER, EOI);
    assert_eq!(taken(&mut pic), Some(0x23));
}

#[test]
fn a_level_interrupts_as_long_as_it_is_high() {
    let mut pic = initialised();
    pic.write(ELCR, 0x20);
    raise(&mut pic, &[5]);
    for _ in 0..3 {
        assert_eq!(taken(&mut pic), Some(0x25));
        assert!(!pic.intr());
        pic.write(MASTER, EOI);
    }
    pic.set_line(5, false);
    assert!(!pic.intr());
}

#[test]
fn all_inputs_can_be_level_triggered_by_icw1() {
    let mut pic = initialised();
    pic.write(MASTER, 0x19);
    for value in [0x20, 0x04, 0x01] {
        pic.write(MASTER + 1, value);
    }
    raise(&mut pic, &[0]);
    assert_eq!(taken(&mut pic), Some(0x20));
    pic.write(MASTER, EOI);
    assert_eq!(taken(&mut pic), Some(0x20));
}

#[test]
fn the_edge_and_level_registers_keep_what_cannot_be_level() {
    let mut pic = Pic::new();
    pic.write(ELCR, 0xff);
    pic.write(ELCR + 1, 0xff);
    assert_eq!((pic.read(ELCR), pic.read(ELCR + 1)), (0xf8, 0xde));
    // An initialisation leaves them.
    pic.write(MASTER, 0x11);
    assert_eq!(pic.read(ELCR), 0xf8);
}

#[test]
fn priorities_nest() {
    let mut pic = initialised();
    raise(&mut pic, &[6, 4, 7]);
    assert_eq!(taken(&mut pic), Some(0x24));
    // Lower ones wait, a higher one does not.
    assert!(!pic.intr());
    raise(&mut pic, &[1]);
    assert_eq!(taken(&mut pic), Some(0x21));
    assert_eq!(in_service(&mut pic, MASTER), 0x12);
    // A non-specific end is that of the highest.
    pic.write(MASTER, EOI);
    assert_eq!(in_service(&mut pic, MASTER), 0x10);
    assert!(!pic.intr());
    pic.write(MASTER, EOI);
    assert_eq!(taken(&mut pic), Some(0x26));
    // A specific end.
    pic.write(MASTER, 0x60 | 6);
    assert_eq!(taken(&mut pic), Some(0x27));
}

#[test]
fn masks_hold_requests_back() {
    let mut pic = initialised();
    pic.write(MASTER + 1, 0x02);
    assert_eq!(pic.read(MASTER + 1), 0x02);
    raise(&mut pic, &[1]);
    assert!(!pic.intr());
    assert_eq!(pic.read(MASTER), 0x02);
    pic.write(MASTER + 1, 0);
    assert_eq!(taken(&mut pic), Some(0x21));
}

#[test]
fn the_second_comes_through_the_first() {
    let mut pic = initialised();
    raise(&mut pic, &[12, 9]);
    assert_eq!(pic.read(MASTER), 0x04);
    assert_eq!(taken(&mut pic), Some(0x29));
    assert_eq!(in_service(&mut pic, MASTER), 0x04);
    assert_eq!(in_service(&mut pic, SLAVE), 0x02);
    // 3 is lower than the cascade, 1 is higher.
    raise(&mut pic, &[3, 1]);
    assert_eq!(taken(&mut pic), Some(0x21));
    pic.write(MASTER, EOI);
    // The second's end alone lets its next one ask, but not through.
    pic.write(SLAVE, EOI);
    assert!(!pic.intr());
    pic.write(MASTER, EOI);
    assert_eq!(taken(&mut pic), Some(0x2c));
    pic.write(SLAVE, EOI);
    pic.write(MASTER, EOI);
    assert_eq!(taken(&mut pic), Some(0x23));
}

#[test]
fn a_higher_one_of_the_second_waits_unless_fully_nested() {
    for (icw4, expected) in [(0x01, None), (0x11, Some(0x28))] {
        let mut pic = initialised_with(icw4, 0x01);
        raise(&mut pic, &[12]);
        assert_eq!(taken(&mut pic), Some(0x2c));
        raise(&mut pic, &[8]);
        assert_eq!(taken(&mut pic), expected);
        // A lower one never comes through.
        raise(&mut pic, &[14]);
        assert_eq!(taken(&mut pic), None);
    }
}

#[test]
fn a_request_that_goes_away_is_spurious() {
    let mut pic = initialised();
    raise(&mut pic, &[4]);
    pic.set_line(4, false);
    assert!(!pic.intr());
    assert_eq!(pic.acknowledge(), 0x27);
    // Not in service: there is nothing to end.
    assert_eq!(in_service(&mut pic, MASTER), 0);
}

#[test]
fn a_spurious_one_of_the_second_is_in_service_at_the_first() {
    let mut pic = initialised();
    // The request is withdrawn between the two acknowledgements, as far as the first can tell.
    raise(&mut pic, &[10]);
    pic.slave.set_line(2, false);
    assert_eq!(pic.acknowledge(), 0x2f);
    assert_eq!(in_service(&mut pic, MASTER), 0x04);
    assert_eq!(in_service(&mut pic, SLAVE), 0);
}

#[test]
fn rotation_makes_the_served_one_the_last() {
    let mut pic = initialised();
    raise(&mut pic, &[3, 4]);
    assert_eq!(taken(&mut pic), Some(0x23));
    // Rotate on non-specific end of interrupt.
    pic.write(MASTER, 0xa0);
    pulse(&mut pic, 3);
    assert_eq!(taken(&mut pic), Some(0x24));
    // Rotate on specific end of interrupt.
    pic.write(MASTER, 0xe0 | 4);
    assert_eq!(pic.master.lowest, 4);
    // Set priority: 5 the lowest, so 6 is the highest.
    pic.write(MASTER, 0xc0 | 5);
    raise(&mut pic, &[6, 7]);
    pulse(&mut pic, 4);
    let order: Vec<_> = core::iter::from_fn(|| {
        let vector = taken(&mut pic);
        pic.write(MASTER, EOI);
        vector
    })
    .collect();
    assert_eq!(order, [0x26, 0x27, 0x23, 0x24]);
}

#[test]
fn an_automatic_end_leaves_nothing_in_service() {
    let mut pic = initialised_with(0x03, 0x03);
    raise(&mut pic, &[3, 10, 11]);
    assert_eq!(taken(&mut pic), Some(0x2a));
    assert_eq!(taken(&mut pic), Some(0x2b));
    assert_eq!(taken(&mut pic), Some(0x23));
    assert_eq!(in_service(&mut pic, MASTER), 0);
    assert_eq!(in_service(&mut pic, SLAVE), 0);
    // With rotation.
    pic.write(MASTER, 0x80);
    pulse(&mut pic, 3);
    pic.acknowledge();
    assert_eq!(pic.master.lowest, 3);
    pic.write(MASTER, 0x00);
    pulse(&mut pic, 5);
    pic.acknowledge();
    assert_eq!(pic.master.lowest, 3);
}

#[test]
fn special_mask_mode_lets_lower_ones_through() {
    let mut pic = initialised();
    raise(&mut pic, &[2, 3, 5]);
    assert_eq!(taken(&mut pic), Some(0x23));
    assert!(!pic.intr());
    // A handler masks its own level, and sets the mode: all others are enabled.
    pic.write(MASTER + 1, 0x08);
    assert!(!pic.intr());
    pic.write(MASTER, 0x68);
    assert_eq!(taken(&mut pic), Some(0x25));
    // A non-specific end passes over the masked one.
    pic.write(MASTER, EOI);
    assert_eq!(in_service(&mut pic, MASTER), 0x08);
    pic.write(MASTER, EOI);
    assert_eq!(in_service(&mut pic, MASTER), 0x08);
    pic.write(MASTER, 0x48);
    pic.write(MASTER, EOI);
    assert_eq!(in_service(&mut pic, MASTER), 0);
}

#[test]
fn a_poll_acknowledges() {
    let mut pic = initialised();
    raise(&mut pic, &[4]);
    pic.write(MASTER, 0x0c);
    assert_eq!(pic.read(MASTER), 0x84);
    assert!(!pic.intr());
    // One read only: the next is that of the request register again.
    raise(&mut pic, &[6]);
    assert_eq!(pic.read(MASTER), 0x40);
    pic.set_line(6, false);
    assert_eq!(in_service(&mut pic, MASTER), 0x10);
    // There is nothing where there is no request.
    pic.write(MASTER, EOI);
    pic.write(MASTER, 0x0c);
    assert_eq!(pic.read(MASTER), 0);
    // Of the second: the first tells of the cascade, then the second of the line.
    raise(&mut pic, &[9, 11]);
    pic.write(MASTER, 0x0c);
    assert_eq!(pic.read(MASTER), 0x82);
    pic.write(SLAVE, 0x0c);
    assert_eq!(pic.read(SLAVE), 0x81);
    pic.write(SLAVE, EOI);
    pic.write(MASTER, EOI);
    assert_eq!(taken(&mut pic), Some(0x2b));
}

#[test]
fn icw1_starts_anew() {
    let mut pic = initialised();
    pic.write(MASTER + 1, 0xff);
    pic.write(MASTER, 0xc0 | 2);
    pic.write(MASTER, 0x68);
    pic.write(MASTER, 0x0b);
    raise(&mut pic, &[5]);
    pic.write(MASTER, 0x11);
    for value in [0x40, 0x04, 0x01] {
        pic.write(MASTER + 1, value);
    }
    // No mask, the request register is read, and the edge was forgotten while the line is still high.
    assert_eq!((pic.read(MASTER + 1), pic.read(MASTER)), (0, 0));
    assert!(!pic.master.special_mask);
    assert!(!pic.intr());
    pulse(&mut pic, 5);
    raise(&mut pic, &[1]);
    assert_eq!(taken(&mut pic), Some(0x41));
}

#[test]
fn the_number_of_initialisation_words_follows_icw1() {
    let mut pic = initialised();
    // Single, no ICW4: ICW2 is the only one.
    pic.write(MASTER, 0x12);
    pic.write(MASTER + 1, 0x57);
    pic.write(MASTER + 1, 0x80);
    assert_eq!(pic.read(MASTER + 1), 0x80);
    raise(&mut pic, &[0]);
    assert_eq!(taken(&mut pic), Some(0x50));
    // Single with ICW4: an automatic end.
    pic.write(MASTER, 0x13);
    pic.write(MASTER + 1, 0x50);
    pic.write(MASTER + 1, 0x03);
    pic.write(MASTER + 1, 0x40);
    assert_eq!(pic.read(MASTER + 1), 0x40);
    // Cascaded, no ICW4: the automatic end is off again.
    pic.write(MASTER, 0x10);
    pic.write(MASTER + 1, 0x50);
    pic.write(MASTER + 1, 0x03);
    pic.write(MASTER + 1, 0x20);
    assert_eq!(pic.read(MASTER + 1), 0x20);
    assert!(!pic.master.auto_eoi);
}

#[test]
fn a_probe_finds_the_mask_before_any_initialisation() {
    let mut pic = Pic::new();
    pic.write(SLAVE + 1, 0xff);
    pic.write(MASTER + 1, 0xfb);
    assert_eq!(pic.read(MASTER + 1), 0xfb);
    assert_eq!(pic.read(SLAVE + 1), 0xff);
}

#[test]
fn the_cascade_is_nobody_elses_line() {
    let mut pic = initialised();
    pic.set_line(2, true);
    assert!(!pic.intr());
    pic.set_line(16, true);
    assert!(!pic.intr());
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Line(u8, bool),
    Write(u16, u8),
    Read(u16),
    Acknowledge,
}

fn step() -> impl Strategy<Value = Step> {
    let port = prop::sample::select(vec![MASTER, MASTER + 1, SLAVE, SLAVE + 1, ELCR, ELCR + 1]);
    prop_oneof![
        (0..20u8, any::<bool>()).prop_map(|(line, high)| Step::Line(line, high)),
        (port.clone(), any::<u8>()).prop_map(|(port, value)| Step::Write(port, value)),
        port.prop_map(Step::Read),
        Just(Step::Acknowledge),
    ]
}

proptest! {
    #[test]
    fn a_storm_keeps_the_invariants(steps in prop::collection::vec(step(), 0..400)) {
        let mut pic = Pic::new();
        for step in steps {
            match step {
                Step::Line(line, high) => pic.set_line(line, high),
                Step::Write(port, value) => pic.write(port, value),
                Step::Read(port) => { pic.read(port); }
                Step::Acknowledge => {
                    let (asked, before) = (pic.intr(), pic.clone());
                    let vector = pic.acknowledge();
                    // Without a request nothing changes, and the vector is input 7's.
                    if !asked {
                        prop_assert_eq!(vector, before.master.base | 7);
                        prop_assert_eq!(pic.master.in_service, before.master.in_service);
                        prop_assert_eq!(pic.slave.in_service, before.slave.in_service);
                    }
                    // With one, it is an input that is not masked, at the chip whose base the vector has.
                    let input = bit(vector);
                    if asked && vector & 0xf8 == before.master.base && before.master.base != before.slave.base {
                        prop_assert_eq!(input & before.master.mask, 0);
                        prop_assert_ne!(input & before.master.requests(), 0);
                    }
                }
            }
            for chip in [&pic.master, &pic.slave] {
                // A request stands on a line that is high.
                prop_assert_eq!(chip.requests() & !chip.lines, 0);
                prop_assert_eq!(chip.elcr & !chip.elcr_writable, 0);
                prop_assert!(chip.lowest < 8);
            }
            // The first sees the second's output, and nothing else asks there.
            prop_assert_eq!(pic.master.lines & 4 != 0, pic.slave.pending(0).is_some());
            // INT means an unmasked request.
            prop_assert!(!pic.intr() || pic.master.requests() & !pic.master.mask != 0);
        }
    }

    #[test]
    fn every_edge_is_delivered_by_priority(lines in prop::collection::btree_set(0..16u8, 1..16)) {
        let mut pic = initialised();
        for line in &lines {
            pic.set_line(*line, true);
        }
        let mut expected: Vec<u8> = lines.iter().copied().filter(|line| *line != 2).collect();
        // The second's lines have the place of input 2.
        expected.sort_by_key(|line| if *line >= 8 { 20 + line } else if *line < 2 { *line } else { 40 + line });
        let mut delivered = Vec::new();
        while let Some(vector) = taken(&mut pic) {
            delivered.push(vector - 0x20);
            if vector >= 0x28 {
                pic.write(SLAVE, EOI);
            }
            pic.write(MASTER, EOI);
        }
        prop_assert_eq!(delivered, expected);
    }
}

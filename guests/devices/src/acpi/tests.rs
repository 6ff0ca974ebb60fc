use super::*;
use crate::rtc::Config as RtcConfig;

const BASE: u64 = 0xe_0000;

fn everything() -> bus::Config {
    bus::Config {
        com1: true,
        pic: true,
        pit: true,
        rtc: Some(RtcConfig::default()),
        pm: Some(TimerWidth::Bits32),
        i8042: true,
        pci: true,
        debug_exit: None,
    }
}

/// Only what tables cannot do without.
fn nothing() -> bus::Config {
    bus::Config {
        com1: false,
        pic: false,
        pit: false,
        rtc: None,
        pm: Some(TimerWidth::Bits24),
        i8042: false,
        pci: false,
        debug_exit: None,
    }
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn dword(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn qword(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// The table at an address, whose signature and checksum are right.
fn table<'a>(tables: &'a Tables, at: u64, signature: &[u8; 4]) -> &'a [u8] {
    let bytes = &tables.bytes[(at - tables.base) as usize..];
    let table = &bytes[..dword(bytes, 4) as usize];
    assert_eq!(&table[..4], signature);
    if signature != b"FACS" {
        assert_eq!(sum(table), 0, "checksum of {}", signature.escape_ascii());
    }
    table
}

/// What the RSDP leads to.
struct Found<'a> {
    fadt: &'a [u8],
    madt: &'a [u8],
    dsdt: &'a [u8],
    facs: u64,
}

fn follow(tables: &Tables) -> Found<'_> {
    let rsdp = &tables.bytes[(tables.rsdp - tables.base) as usize..];
    assert_eq!(&rsdp[..8], b"RSD PTR ");
    assert_eq!(sum(&rsdp[..20]), 0);
    assert_eq!(sum(&rsdp[..36]), 0);
    assert_eq!((rsdp[15], dword(rsdp, 20)), (2, 36));
    let xsdt = table(tables, qword(rsdp, 24), b"XSDT");
    assert_eq!(xsdt.len(), 36 + 16);
    let fadt = table(tables, qword(xsdt, 36), b"FACP");
    let madt = table(tables, qword(xsdt, 44), b"APIC");
    let dsdt = table(tables, qword(fadt, 140), b"DSDT");
    let facs = dword(fadt, 36).into();
    assert_eq!(table(tables, facs, b"FACS").len(), 64);
    Found {
        fadt,
        madt,
        dsdt,
        facs,
    }
}

/// The structures of an MADT: type and bytes.
fn structures(madt: &[u8]) -> Vec<(u8, &[u8])> {
    let mut rest = &madt[44..];
    let mut found = Vec::new();
    while let [kind, length, ..] = *rest {
        let (structure, behind) = rest.split_at(length.into());
        found.push((kind, structure));
        rest = behind;
    }
    found
}

fn holds(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|window| window == what)
}

#[test]
fn the_tables_lead_to_each_other_with_right_checksums() {
    for base in [BASE, 0xf_0000, 0xf_ffc0 - 0x1000] {
        for config in [everything(), nothing()] {
            let tables = build(2, &config, base).unwrap();
            assert_eq!((tables.rsdp, tables.base), (base, base));
            let found = follow(&tables);
            assert!(found.facs.is_multiple_of(64));
        }
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let config = everything();
    for base in [0, 0xd_ffc0, 0x10_0000, BASE + 16, u64::MAX - 63] {
        assert_eq!(build(1, &config, base), Err(AcpiError::Misplaced));
    }
    for vcpus in [0, 4097, u32::MAX] {
        assert_eq!(build(vcpus, &config, BASE), Err(AcpiError::Vcpus));
    }
    assert_eq!(build(64, &config, 0xf_f800), Err(AcpiError::Vcpus));
    let without = bus::Config { pm: None, ..config };
    assert_eq!(build(1, &without, BASE), Err(AcpiError::NoFixedHardware));
}

#[test]
fn the_fadt_tells_what_there_is() {
    let tables = build(1, &everything(), BASE).unwrap();
    let fadt = follow(&tables).fadt;
    assert_eq!((fadt.len(), fadt[8], fadt[131]), (276, 6, 5));
    // The short fields and the extended ones agree.
    assert_eq!(u64::from(dword(fadt, 40)), qword(fadt, 140));
    assert_eq!(word(fadt, 46), 9);
    // No SMI command port: the machine is in ACPI mode.
    assert_eq!((dword(fadt, 48), fadt[52], fadt[53]), (0, 0, 0));
    for (short, length, extended, address, bytes) in [
        (56, 88, 148, 0x600, 4),
        (64, 89, 172, 0x604, 2),
        (76, 91, 208, 0x608, 4),
    ] {
        assert_eq!(dword(fadt, short), address);
        assert_eq!(fadt[length], bytes);
        assert_eq!(fadt[extended..extended + 3], [1, bytes * 8, 0]);
        assert_eq!(qword(fadt, extended + 4), address.into());
    }
    // Not there: PM1b, PM2, GPE0, GPE1.
    for absent in [60, 68, 72, 80, 84] {
        assert_eq!(dword(fadt, absent), 0);
    }
    for absent in [160, 184, 196, 220, 232, 244, 256] {
        assert!(fadt[absent..absent + 12].iter().all(|byte| *byte == 0));
    }
    assert_eq!((word(fadt, 96), word(fadt, 98)), (101, 1001));
    assert_eq!(fadt[106..109], [0, 0, 0x32]);
    assert_eq!(word(fadt, 109), 0b00_0111);
    let flags = 1 << 0 | 1 << 2 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 10;
    assert_eq!(dword(fadt, 112), flags);
    assert_eq!(fadt[116..120], [1, 8, 0, 1]);
    assert_eq!((qword(fadt, 120), fadt[128]), (0xcf9, 6));
}

#[test]
fn the_fadt_tells_what_there_is_not() {
    let tables = build(1, &nothing(), BASE).unwrap();
    let found = follow(&tables);
    // No legacy devices, no 8042, no VGA, no CMOS clock.
    assert_eq!(word(found.fadt, 109), 0b10_0100);
    assert_eq!(found.fadt[108], 0);
    // A timer of 24 bits.
    assert_eq!(dword(found.fadt, 112) & 1 << 8, 0);
    // No 8259As.
    assert_eq!(dword(found.madt, 40), 0);
    for name in [b"PIC_", b"TIMR", b"RTC_", b"KBD_", b"MOU_", b"COM1"] {
        assert!(!holds(found.dsdt, name));
    }
}

#[test]
fn the_madt_lists_processors_and_wiring() {
    let tables = build(3, &everything(), BASE).unwrap();
    let madt = follow(&tables).madt;
    assert_eq!((dword(madt, 36), dword(madt, 40)), (0xfee0_0000, 1));
    let expected: [(u8, &[u8]); 7] = [
        (0, &[0, 8, 0, 0, 1, 0, 0, 0]),
        (0, &[0, 8, 1, 1, 1, 0, 0, 0]),
        (0, &[0, 8, 2, 2, 1, 0, 0, 0]),
        (1, &[1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]),
        // ISA interrupt 0 is GSI 2; the SCI is active high and level triggered.
        (2, &[2, 10, 0, 0, 2, 0, 0, 0, 0, 0]),
        (2, &[2, 10, 0, 9, 9, 0, 0, 0, 0x0d, 0]),
        (4, &[4, 6, 0xff, 0, 0, 1]),
    ];
    assert_eq!(structures(madt), expected);
}

#[test]
fn identifiers_beyond_a_byte_are_x2apics() {
    let tables = build(257, &everything(), BASE).unwrap();
    let found = follow(&tables);
    let structures = structures(found.madt);
    let count = |wanted| {
        structures
            .iter()
            .filter(|(kind, _)| *kind == wanted)
            .count()
    };
    // 255 means every processor, and is nobody's own.
    assert_eq!((count(0), count(9)), (255, 2));
    let (_, last) = structures[256];
    assert_eq!(last, [9, 16, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0]);
    assert_eq!(
        structures.last(),
        Some(&(10, &[10, 12, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0][..]))
    );
    for name in [b"C000", b"C0FF", b"C100"] {
        assert!(holds(found.dsdt, name));
    }
}

#[test]
fn the_dsdt_has_the_devices() {
    let tables = build(2, &everything(), BASE).unwrap();
    let dsdt = follow(&tables).dsdt;
    assert_eq!(dsdt[8], 2);
    // Name (_S5_, Package (4) {5, 5, 0, 0})
    assert!(holds(dsdt, b"\x08_S5_\x12\x08\x04\x0a\x05\x0a\x05\x00\x00"));
    // IO (Decode16, 0x3f8, 0x3f8, 1, 8), IRQNoFlags () {4}
    assert!(holds(
        dsdt,
        b"\x47\x01\xf8\x03\xf8\x03\x01\x08\x22\x10\x00\x79"
    ));
    for name in [
        b"C000", b"C001", b"PIC_", b"TIMR", b"RTC_", b"KBD_", b"MOU_", b"COM1",
    ] {
        assert!(holds(dsdt, name));
    }
    assert!(!holds(dsdt, b"C002"));
}

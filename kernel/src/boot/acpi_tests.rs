//! Tests of [`super`], on tables laid out byte by byte as the specification says.

use super::*;
use proptest::prelude::*;

/// A fake physical memory: the tables lie one after the other from 0x1000 on.
struct Memory(&'static [u8]);

impl Memory {
    const BASE: u64 = 0x1000;

    fn read(&self, at: Hpa, len: usize) -> Option<&'static [u8]> {
        let start = usize::try_from(at.get().checked_sub(Self::BASE)?).ok()?;
        self.0.get(start..start.checked_add(len)?)
    }
}

fn seal(table: &mut [u8], checksum_at: usize) {
    let sum = table.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte));
    table[checksum_at] = table[checksum_at].wrapping_sub(sum);
}

fn sdt(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let mut table = vec![0; 36];
    table[..4].copy_from_slice(signature);
    table[4..8].copy_from_slice(&(36 + body.len() as u32).to_le_bytes());
    table.extend_from_slice(body);
    seal(&mut table, 9);
    table
}

fn madt() -> Vec<u8> {
    let mut body = vec![0; 8];
    body.extend_from_slice(&[0, 8, 0, 0, 1, 0, 0, 0]);
    body.extend_from_slice(&[0, 8, 1, 2, 1, 0, 0, 0]);
    // Not enabled, only online-capable.
    body.extend_from_slice(&[0, 8, 2, 4, 2, 0, 0, 0]);
    // An absent one of old firmware.
    body.extend_from_slice(&[0, 8, 3, 0xff, 1, 0, 0, 0]);
    // A kind that nobody knows.
    body.extend_from_slice(&[0x7f, 3, 9]);
    body.extend_from_slice(&[9, 16, 0, 0, 0x34, 0x12, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0]);
    // The first one again.
    body.extend_from_slice(&[9, 16, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    body.extend_from_slice(&[1, 12, 5, 0, 0, 0, 0xc0, 0xfe, 24, 0, 0, 0]);
    // One that is nowhere.
    body.extend_from_slice(&[1, 12, 6, 0, 0, 0, 0, 0, 48, 0, 0, 0]);
    body.extend_from_slice(&[2, 10, 0, 0, 2, 0, 0, 0, 0x0d, 0]);
    // An override of another bus, one of a line that does not exist, and one cut short.
    body.extend_from_slice(&[2, 10, 1, 5, 5, 0, 0, 0, 0x0f, 0]);
    body.extend_from_slice(&[2, 10, 0, 16, 6, 0, 0, 0, 0x0f, 0]);
    body.extend_from_slice(&[2, 9, 0, 7, 7, 0, 0, 0, 0x0f]);
    body.extend_from_slice(&[4, 6, 0xff, 0, 0, 1]);
    body.extend_from_slice(&[10, 12, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
    sdt(b"APIC", &body)
}

fn fadt(dsdt: u64) -> Vec<u8> {
    let mut body = vec![0; 276 - 36];
    let mut put =
        |at: usize, bytes: &[u8]| body[at - 36..at - 36 + bytes.len()].copy_from_slice(bytes);
    put(48, &0xb2u32.to_le_bytes());
    put(52, &[0xf1]);
    put(64, &0x404u32.to_le_bytes());
    put(76, &0x408u32.to_le_bytes());
    put(112, &(1u32 << 8 | 1 << 10).to_le_bytes());
    put(116, &[1, 8, 0, 1]);
    put(120, &0xcf9u64.to_le_bytes());
    put(128, &[6]);
    put(140, &dsdt.to_le_bytes());
    // The extended address of the timer, elsewhere than the old one.
    put(208, &[1, 32, 0, 3]);
    put(212, &0x608u64.to_le_bytes());
    sdt(b"FACP", &body)
}

/// `Name (\_S5, Package () { 5, 4, 0, 0 })` behind other mentions of the name.
const S5: &[u8] = &[
    0xa0, b'_', b'S', b'5', b'_', 0x08, b'_', b'S', b'4', b'_', 0x12, 0x06, 0x04, 0x0a, 0x06, 0x00,
    0x00, 0x00, 0x08, b'\\', b'_', b'S', b'5', b'_', 0x12, 0x08, 0x04, 0x0a, 0x05, 0x0a, 0x04,
    0x00, 0x00,
];

fn memory(revision: u8) -> Vec<u8> {
    let madt = madt();
    let dsdt = sdt(b"DSDT", S5);
    let madt_at = Memory::BASE + 36;
    let dsdt_at = madt_at + madt.len() as u64;
    let fadt_at = dsdt_at + dsdt.len() as u64;
    let fadt = fadt(dsdt_at);
    let root_at = fadt_at + fadt.len() as u64;
    let root = if revision >= 2 {
        sdt(
            b"XSDT",
            &[fadt_at.to_le_bytes(), madt_at.to_le_bytes()].concat(),
        )
    } else {
        let short = |at: u64| (at as u32).to_le_bytes();
        sdt(b"RSDT", &[short(fadt_at), short(madt_at)].concat())
    };
    let mut rsdp = vec![0; 36];
    rsdp[..8].copy_from_slice(b"RSD PTR ");
    rsdp[15] = revision;
    rsdp[16..20].copy_from_slice(&(root_at as u32).to_le_bytes());
    seal(&mut rsdp[..20], 8);
    if revision >= 2 {
        rsdp[20] = 36;
        rsdp[24..32].copy_from_slice(&root_at.to_le_bytes());
        seal(&mut rsdp, 32);
    }
    [rsdp, madt, dsdt, fadt, root].concat()
}

fn firmware(memory: Vec<u8>) -> Firmware {
    let memory = Memory(memory.leak());
    Firmware::read(Hpa::new(Memory::BASE), &|at, len| memory.read(at, len))
}

#[test]
fn processors_are_those_enabled_once_each() {
    let cpus = firmware(memory(2)).cpus;
    let ids: Vec<_> = cpus.iter().map(|cpu| (cpu.apic_id, cpu.uid)).collect();
    assert_eq!(ids, [(0, 0), (2, 1), (0x1234, 7)]);
}

#[test]
fn interrupt_controllers_are_read() {
    let facts = firmware(memory(2));
    assert_eq!(
        facts.io_apics,
        [IoApic {
            id: 5,
            address: Hpa::new(0xfec0_0000),
            gsi_base: 24
        }]
    );
    assert_eq!(
        facts.overrides,
        [InterruptOverride {
            irq: 0,
            gsi: 2,
            flags: 0xd
        }]
    );
    assert_eq!(
        facts.local_nmis,
        [
            LocalNmi { uid: None, lint: 1 },
            LocalNmi {
                uid: Some(7),
                lint: 0
            }
        ]
    );
}

#[test]
fn isa_lines_arrive_where_the_firmware_says() {
    let line = |gsi, level, active_low| {
        Some(IsaLine {
            gsi,
            level,
            active_low,
        })
    };
    let mut facts = firmware(memory(2));
    assert_eq!(facts.isa_line(0), line(2, true, false), "flags 0xd");
    assert_eq!(facts.isa_line(1), line(1, false, false), "no override");
    assert_eq!(facts.isa_line(2), None, "its GSI is line 0's");
    assert_eq!(facts.isa_line(15), line(15, false, false));
    assert_eq!(facts.isa_line(16), None);
    for (flags, level, active_low) in [
        (0x0, false, false),
        (0x5, false, false),
        (0x7, false, true),
        (0xf, true, true),
        // Reserved values of both fields.
        (0xa, false, false),
    ] {
        facts.overrides[0] = InterruptOverride {
            irq: 9,
            gsi: 20,
            flags,
        };
        assert_eq!(facts.isa_line(9), line(20, level, active_low), "{flags:#x}");
    }
    assert_eq!(
        facts.isa_line(0),
        line(0, false, false),
        "tables without an override of line 0"
    );
    let none = Firmware::default();
    assert_eq!(none.isa_line(0), line(2, false, false));
    assert_eq!(none.isa_line(2), None);
    assert_eq!(none.isa_line(4), line(4, false, false));
}

#[test]
fn nmis_come_where_the_firmware_says() {
    let mut facts = firmware(memory(2));
    assert_eq!(facts.nmi_inputs(0), [false, true], "LINT1 at each");
    assert_eq!(facts.nmi_inputs(0x1234), [true, true], "and LINT0 at uid 7");
    facts.local_nmis.remove(0);
    assert_eq!(facts.nmi_inputs(0), [false, false]);
    assert_eq!(facts.nmi_inputs(0x1234), [true, false]);
    assert_eq!(facts.nmi_inputs(7), [false, false], "a uid is no APIC id");
    assert_eq!(Firmware::default().nmi_inputs(3), [false, true]);
}

#[test]
fn fixed_hardware_is_read() {
    let facts = firmware(memory(2));
    assert_eq!(
        facts.pm_timer,
        Some(PmTimer {
            port: 0x608,
            wide: true
        })
    );
    assert_eq!(
        facts.reset,
        Some(Reset {
            register: Register::Port(0xcf9),
            value: 6
        })
    );
    assert_eq!(
        facts.soft_off,
        Some(SoftOff {
            pm1a: 0x404,
            pm1b: None,
            enable: Some((0xb2, 0xf1)),
            sleep_type: (5, 4),
        })
    );
}

#[test]
fn acpi_1_leads_to_the_same_facts() {
    assert_eq!(firmware(memory(0)), firmware(memory(2)));
}

#[test]
fn a_wrong_checksum_costs_the_table() {
    let mut bytes = memory(2);
    // The APIC id of the second processor.
    bytes[36 + 44 + 8 + 3] ^= 0x40;
    let facts = firmware(bytes);
    assert!(facts.cpus.is_empty());
    assert!(facts.pm_timer.is_some());
}

#[test]
fn no_rsdp_no_facts() {
    let mut bytes = memory(2);
    bytes[0] = b'X';
    assert_eq!(firmware(bytes), Firmware::default());
}

#[test]
fn s5_is_found_in_its_forms() {
    assert_eq!(s5_sleep_type(S5), Some((5, 4)));
    // Zero and One have operators of their own.
    assert_eq!(
        s5_sleep_type(&[8, b'_', b'S', b'5', b'_', 0x12, 0x04, 0x02, 0x00, 0x01]),
        Some((0, 1))
    );
    // A package length of two bytes.
    assert_eq!(
        s5_sleep_type(&[
            8, b'_', b'S', b'5', b'_', 0x12, 0x47, 0x00, 0x02, 0x0a, 7, 0x0a, 7
        ]),
        Some((7, 7))
    );
}

#[test]
fn what_only_looks_like_s5_is_left_alone() {
    // A method of that name, a value that is no sleep type, and a package cut short.
    assert_eq!(
        s5_sleep_type(&[0x14, b'_', b'S', b'5', b'_', 0x12, 4, 2, 0, 1]),
        None
    );
    assert_eq!(
        s5_sleep_type(&[8, b'_', b'S', b'5', b'_', 0x12, 5, 2, 0x0a, 8, 0]),
        None
    );
    assert_eq!(
        s5_sleep_type(&[8, b'_', b'S', b'5', b'_', 0x12, 5, 2, 0x0a]),
        None
    );
}

proptest! {
    #[test]
    fn damage_never_panics(at: prop::sample::Index, value: u8, seal_again: bool) {
        let mut bytes = memory(2);
        let at = at.index(bytes.len());
        let old = bytes[at];
        bytes[at] = value;
        if seal_again && at > 36 && at + 9 < bytes.len() {
            // Keeps the sum, so that the damage gets past the checksum.
            bytes[at + 1] = bytes[at + 1].wrapping_add(old).wrapping_sub(value);
        }
        firmware(bytes);
    }

    #[test]
    fn any_aml_is_scanned_safely(aml in prop::collection::vec(any::<u8>(), 0..200)) {
        s5_sleep_type(&aml);
    }
}

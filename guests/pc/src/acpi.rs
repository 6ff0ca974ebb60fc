//! ACPI's tables (ACPI 6.5), as far as these guests read them.

use crate::{Outcome, Why, check, check_eq, memory};

/// Length of the RSDP's first version, and of the later ones (5.2.5.3).
const RSDP_FIRST: u64 = 20;
const RSDP: u64 = 36;
/// Length of a table's header (5.2.6).
const HEADER: u64 = 36;

/// The sum of bytes must be 0.
fn sums_up(address: u64, length: u64, what: &str) -> Outcome {
    let bytes = (address..address + length).map(memory::read::<u8>);
    let sum = bytes.fold(0, u8::wrapping_add);
    check!(sum == 0, "the checksum of {what} is off by {sum:#x}");
    Ok(())
}

/// Whether a root pointer is at an address: signature, checksums, length.
pub fn check_root(rsdp: u64) -> Outcome {
    memory::expect(rsdp, b"RSD PTR ", "the RSDP's signature")?;
    sums_up(rsdp, RSDP_FIRST, "the RSDP's first part")?;
    let revision: u8 = memory::read(rsdp + 15);
    check!(revision >= 2, "the RSDP has revision {revision}");
    check_eq!(
        memory::read::<u32>(rsdp + 20),
        RSDP as u32,
        "the RSDP's length"
    );
    sums_up(rsdp, RSDP, "the RSDP")
}

/// The length of the table at an address, whose checksum must be right.
fn length(table: u64) -> Result<u64, Why> {
    let length = memory::read::<u32>(table + 4).into();
    check!(
        (HEADER..0x1_0000).contains(&length),
        "the table at {table:#x} has {length} bytes"
    );
    sums_up(table, length, "a table")?;
    Ok(length)
}

/// The addresses of the tables that the root pointer leads to.
fn tables(rsdp: u64) -> Result<impl Iterator<Item = u64>, Why> {
    check_root(rsdp)?;
    let xsdt: u64 = memory::read(rsdp + 24);
    memory::expect(xsdt, b"XSDT", "the XSDT's signature")?;
    let length = length(xsdt)?;
    Ok((HEADER..length)
        .step_by(8)
        .map(move |offset| memory::read(xsdt + offset)))
}

/// The address and length of the table with a signature.
pub fn table(rsdp: u64, signature: &[u8; 4]) -> Result<(u64, u64), Why> {
    let has_it = |table: &u64| memory::read::<[u8; 4]>(*table) == *signature;
    let found = tables(rsdp)?.find(has_it).ok_or_else(|| {
        let name = str::from_utf8(signature).unwrap_or_default();
        Why::from(format_args!("there is no table {name}"))
    })?;
    Ok((found, length(found)?))
}

/// What these guests want of the fixed hardware (5.2.9).
#[derive(Clone, Copy, Debug)]
pub struct Fixed {
    /// The port of the PM1a control register.
    pub control: u16,
    /// The port of the power management timer.
    pub timer: u16,
    /// How many of the timer's bits count.
    pub timer_bits: u32,
    /// The DSDT's address.
    pub dsdt: u64,
}

/// The fixed hardware.
pub fn fixed(rsdp: u64) -> Result<Fixed, Why> {
    let (fadt, length) = table(rsdp, b"FACP")?;
    check!(length >= 148, "the FADT has {length} bytes");
    let port = |offset| memory::read::<u32>(fadt + offset) as u16;
    let flags: u32 = memory::read(fadt + 112);
    let extended: u64 = memory::read(fadt + 140);
    let dsdt = if extended != 0 {
        extended
    } else {
        memory::read::<u32>(fadt + 40).into()
    };
    Ok(Fixed {
        control: port(64),
        timer: port(76),
        timer_bits: if flags & 1 << 8 != 0 { 32 } else { 24 },
        dsdt,
    })
}

/// The sleep type of S5 for the PM1a control register: the first element of the package `_S5` in the DSDT (7.4.2.6; AML: 20.2).
pub fn sleep_type_s5(fixed: &Fixed) -> Result<u8, Why> {
    const PACKAGE: u8 = 0x12;
    const BYTE: u8 = 0x0a;
    memory::expect(fixed.dsdt, b"DSDT", "the DSDT's signature")?;
    let end = fixed.dsdt + length(fixed.dsdt)?;
    let byte = |at: u64| if at < end { memory::read(at) } else { 0u8 };
    let name = (fixed.dsdt + HEADER..end - 4)
        .find(|&at| memory::read::<[u8; 4]>(at) == *b"_S5_")
        .ok_or_else(|| Why::from(format_args!("the DSDT has no _S5")))?;
    check_eq!(byte(name + 4), PACKAGE, "what _S5 is");
    // The two highest bits say how many bytes follow of the package's length. Then comes the number of elements.
    let first = name + 5 + 1 + u64::from(byte(name + 5) >> 6) + 1;
    match byte(first) {
        BYTE => Ok(byte(first + 1)),
        small @ 0..=1 => Ok(small),
        other => Err(Why::from(format_args!("_S5 begins with {other:#x}"))),
    }
}

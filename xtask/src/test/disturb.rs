//! What comes from outside while a machine works: NMIs and machine checks, by QEMU's monitor.

use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::ensure;

use crate::machine::{Machine, MachineCheck, Monitor};

/// What comes from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disturbance {
    /// NMIs to all CPUs, and between them machine checks that the hardware has corrected, at random moments until the machine's end.
    Nmis,
    /// One machine check that is not corrected, at the second CPU.
    MachineCheck,
}

/// Begins the disturbance when the machine has said this.
pub const BEGINNING: &str = "domain 1 ";

/// Where the random moments begin: the same ones in each run.
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;
/// The moments are up to so many milliseconds apart.
const APART_MS: u64 = 40;
/// So many of them have an NMI, before one has a corrected error.
const NMIS: u64 = 7;

/// Valid, enabled, with an address: a read of a cache that was corrected (SDM vol. 3 17.9.2).
const CORRECTED: MachineCheck = MachineCheck {
    bank: 1,
    status: 0x9400_0000_0000_0136,
    mcg_status: 0,
    address: 0x1000,
};
/// As well uncorrected, with the CPU's context corrupt.
pub const UNCORRECTED: MachineCheck = MachineCheck {
    bank: 2,
    status: 0xb600_0000_0000_0150,
    mcg_status: 0x4,
    address: 0x1234_5000,
};

/// A disturbance that goes on; how often something came.
#[derive(Debug)]
pub struct Disturber(JoinHandle<anyhow::Result<u32>>);

impl Disturber {
    /// Begins it.
    pub fn start(what: Disturbance, machine: &Machine) -> anyhow::Result<Self> {
        let monitor = machine.monitor()?;
        Ok(Self(thread::spawn(move || match what {
            Disturbance::Nmis => nmis(monitor),
            Disturbance::MachineCheck => machine_check(monitor),
        })))
    }

    /// How often something came. The machine is off.
    ///
    /// # Errors
    /// Where nothing did.
    pub fn finish(self) -> anyhow::Result<u32> {
        let count = self
            .0
            .join()
            .map_err(|_| anyhow::anyhow!("the disturbance has panicked"))??;
        ensure!(count != 0, "the machine was not disturbed");
        Ok(count)
    }
}

/// Until the machine's end, which closes its monitor.
fn nmis(mut monitor: Monitor) -> anyhow::Result<u32> {
    let mut random = SEED;
    for count in 0.. {
        // Xorshift: Marsaglia, 2003.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        thread::sleep(Duration::from_millis(random % APART_MS));
        let done = if random >> 32 & NMIS == 0 {
            monitor.inject_machine_check(0, &CORRECTED)
        } else {
            monitor.inject_nmi()
        };
        if let Err(why) = done {
            // The first is not to fail: then it would not be the machine's end.
            return if count == 0 { Err(why) } else { Ok(count) };
        }
    }
    Ok(u32::MAX)
}

/// The second CPU idles soon: QEMU delivers a machine check to a guest that it finds there, without asking the host.
fn machine_check(mut monitor: Monitor) -> anyhow::Result<u32> {
    thread::sleep(Duration::from_secs(1));
    monitor.inject_machine_check(1, &UNCORRECTED)?;
    Ok(1)
}

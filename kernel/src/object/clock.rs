//! The time as KVM tells it to guests: a clock that follows the TSC, the wall clock, and the time that others took from a vCPU.
//!
//! The layouts and the MSRs are those of Linux's Documentation/virt/kvm/x86/msr.rst; guests write to an MSR where in their memory
//! they want to find it. A place that is no memory is not written.

use zerocopy::{Immutable, IntoBytes};

use super::Domain;
use crate::mem::Gpa;
use crate::rules::GeneralProtection;
use crate::virt::Vendor;

/// MSR_KVM_WALL_CLOCK_NEW: the wall clock is written to this address once.
pub const MSR_WALL_CLOCK: u32 = 0x4b56_4d00;
/// MSR_KVM_SYSTEM_TIME_NEW: bit 0: the clock is at this address.
pub const MSR_SYSTEM_TIME: u32 = 0x4b56_4d01;
/// MSR_KVM_STEAL_TIME: bit 0: the stolen time is at this address, a multiple of 64.
pub const MSR_STEAL_TIME: u32 = 0x4b56_4d03;

const ENABLED: u64 = 1;
/// Bits that must be 0 in MSR_KVM_STEAL_TIME.
const STEAL_RESERVED: u64 = 0x3e;
const NS_PER_S: u64 = 1_000_000_000;

/// What a vCPU asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Clock {
    system_time: u64,
    steal_time: u64,
    wall_clock: u64,
    steal_version: u32,
}

/// `pvclock_vcpu_time_info`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct TimeInfo {
    version: u32,
    pad: u32,
    tsc_timestamp: u64,
    system_time: u64,
    tsc_to_system_mul: u32,
    tsc_shift: i8,
    flags: u8,
    pad2: [u8; 2],
}

/// The clocks of all vCPUs agree (PVCLOCK_TSC_STABLE_BIT).
const TSC_STABLE: u8 = 1;

/// `pvclock_wall_clock`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct WallClock {
    version: u32,
    sec: u32,
    nsec: u32,
}

/// The beginning of `kvm_steal_time`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct StealTime {
    steal: u64,
    version: u32,
    flags: u32,
}

/// A multiplier and a shift that turn ticks into nanoseconds: `((ticks << shift) * multiplier) >> 32`, the shift to the right where it is
/// negative.
fn scale(tsc_hz: u64) -> (u32, i8) {
    let mut hz = u128::from(tsc_hz.max(1));
    let mut shift = 0;
    while hz <= u128::from(NS_PER_S) {
        hz <<= 1;
        shift += 1;
    }
    let multiplier = (u128::from(NS_PER_S) << 32) / hz;
    (multiplier as u32, shift)
}

impl Clock {
    /// RDMSR; `None`: not one of these.
    pub const fn read(&self, msr: u32) -> Option<u64> {
        match msr {
            MSR_SYSTEM_TIME => Some(self.system_time),
            MSR_STEAL_TIME => Some(self.steal_time),
            MSR_WALL_CLOCK => Some(self.wall_clock),
            _ => None,
        }
    }

    /// WRMSR by a guest of `domain` at the moment `now`; `wall_clock`: the Unix time in nanoseconds when the machine's clock was 0. `None`:
    /// not one of these.
    ///
    /// # Errors
    /// A reserved bit.
    pub fn write<V: Vendor>(
        &mut self,
        msr: u32,
        value: u64,
        domain: &Domain<V>,
        now: &Now,
        wall_clock: u64,
    ) -> Option<Result<(), GeneralProtection>> {
        match msr {
            MSR_SYSTEM_TIME => {
                self.system_time = value;
                self.tell_time(domain, now);
            }
            MSR_STEAL_TIME if value & STEAL_RESERVED != 0 => {
                return Some(Err(GeneralProtection));
            }
            MSR_STEAL_TIME => self.steal_time = value,
            MSR_WALL_CLOCK => {
                self.wall_clock = value;
                let told = WallClock {
                    version: 2,
                    sec: (wall_clock / NS_PER_S) as u32,
                    nsec: (wall_clock % NS_PER_S) as u32,
                };
                // Where there is no memory nobody reads it.
                let _ = domain.write_guest(Gpa::new(value), told.as_bytes());
            }
            _ => return None,
        }
        Some(Ok(()))
    }

    /// Writes the clock to where the guest wants it; to be done anew when its TSC was set.
    pub fn tell_time<V: Vendor>(&self, domain: &Domain<V>, now: &Now) {
        if self.system_time & ENABLED == 0 {
            return;
        }
        let (multiplier, shift) = scale(now.tsc_hz);
        let told = TimeInfo {
            version: 2,
            pad: 0,
            tsc_timestamp: now.guest_tsc,
            system_time: now.ns,
            tsc_to_system_mul: multiplier,
            tsc_shift: shift,
            flags: TSC_STABLE,
            pad2: [0; 2],
        };
        let _ = domain.write_guest(Gpa::new(self.system_time & !ENABLED), told.as_bytes());
    }

    /// Whether the guest wants to know how much time others took.
    pub const fn wants_steal_time(&self) -> bool {
        self.steal_time & ENABLED != 0
    }

    /// Others have had the CPU for so many nanoseconds while the vCPU could have run; it does not run now.
    pub fn tell_steal_time<V: Vendor>(&mut self, domain: &Domain<V>, ns: u64) {
        // Even: it is not being changed. The reader is the vCPU that does not run.
        self.steal_version = self.steal_version.wrapping_add(2);
        let told = StealTime {
            steal: ns,
            version: self.steal_version,
            flags: 0,
        };
        let _ = domain.write_guest(
            Gpa::new(self.steal_time & !(ENABLED | STEAL_RESERVED)),
            told.as_bytes(),
        );
    }
}

/// The time, as it is to be told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Now {
    /// The guest's TSC.
    pub guest_tsc: u64,
    /// The machine's clock at that moment, in nanoseconds.
    pub ns: u64,
    /// Ticks of the TSC in a second.
    pub tsc_hz: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a guest makes of ticks (Linux's pvclock_scale_delta).
    fn scaled(ticks: u64, (multiplier, shift): (u32, i8)) -> u64 {
        let ticks = if shift < 0 {
            ticks >> -shift
        } else {
            ticks << shift
        };
        ((u128::from(ticks) * u128::from(multiplier)) >> 32) as u64
    }

    #[test]
    fn a_second_of_ticks_is_a_second() {
        for hz in [
            1_193_182,
            50_000_000,
            999_999_999,
            1_000_000_000,
            2_394_230_000,
            5_000_000_000,
        ] {
            let ns = scaled(hz, scale(hz));
            assert!((999_999_990..=1_000_000_000).contains(&ns), "{hz}: {ns}");
            let hour = scaled(3600 * hz, scale(hz));
            assert!(
                hour.abs_diff(3600 * NS_PER_S) < 10_000,
                "{hz}: {hour} ns in an hour"
            );
        }
    }

    #[test]
    fn layouts_are_kvms() {
        assert_eq!(size_of::<TimeInfo>(), 32);
        assert_eq!(core::mem::offset_of!(TimeInfo, tsc_shift), 28);
        assert_eq!(size_of::<WallClock>(), 12);
        assert_eq!(core::mem::offset_of!(StealTime, version), 8);
    }
}

//! What a guest's writes to control registers and MSRs mean, and what CPUID tells it: pure functions of the guest's state.
//!
//! Nothing here touches hardware or changes anything but the state that it is given. What CPUID shows is the one source:
//! which bits of CR4 and EFER may be set and which MSRs exist follows from the [`cpuid::Features`] shown to the guest, not
//! from the host's.

pub mod cpuid;
pub mod cr;
pub mod msr;
pub mod speculation;

/// The instruction raises #GP with error code 0, and has changed nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GeneralProtection;

/// Makers of CPUs, as far as their rules differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CpuVendor {
    /// Intel, and those who follow its rules.
    Intel,
    /// AMD and Hygon.
    Amd,
}

/// Whether `address` is canonical for `bits` bits of linear address: all upper bits equal bit `bits` - 1 (SDM vol. 1
/// 3.3.7.1, APM2 5.3.1). `bits` is 48 or 57; others are taken into 1 to 64.
pub const fn is_canonical(address: u64, bits: u8) -> bool {
    canonicalise(address, bits) == address
}

/// `address` with its upper bits made canonical.
pub const fn canonicalise(address: u64, bits: u8) -> u64 {
    let bits = if bits < 1 {
        1
    } else if bits > 64 {
        64
    } else {
        bits as u32
    };
    let unused = 64 - bits;
    (((address << unused) as i64) >> unused) as u64
}

/// The bits `0..bits`, for widths up to 64.
const fn low_bits(bits: u8) -> u64 {
    if bits >= 64 {
        u64::MAX
    } else {
        (1 << bits) - 1
    }
}

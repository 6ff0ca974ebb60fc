//! The debug address registers, which neither VMCS nor VMCB switches. The kernel uses none of them, and its DR7 is clear
//! whenever it runs: both vendors' CPUs see to that at every exit.

#![allow(
    unsafe_code,
    reason = "debug registers are moved by instructions of their own"
)]

use core::arch::asm;

/// Whether DR7 has an address watched: L0 to L3, G0 to G3 (SDM vol. 3 18.2.4).
pub const fn is_enabled(dr7: u64) -> bool {
    dr7 & 0xff != 0
}

/// DR0 to DR3.
pub fn addresses() -> [u64; 4] {
    let (dr0, dr1, dr2, dr3): (u64, u64, u64, u64);
    // SAFETY: CPL 0, and DR7.GD is clear in the host: reading debug registers has no effect.
    unsafe {
        asm!(
            "mov {}, dr0", "mov {}, dr1", "mov {}, dr2", "mov {}, dr3",
            out(reg) dr0, out(reg) dr1, out(reg) dr2, out(reg) dr3,
            options(nomem, nostack, preserves_flags),
        );
    }
    [dr0, dr1, dr2, dr3]
}

/// Sets DR0 to DR3. With DR7 clear they have no effect until a guest is entered.
pub fn set_addresses(addresses: &[u64; 4]) {
    let [dr0, dr1, dr2, dr3] = *addresses;
    // SAFETY: CPL 0, and DR7 is clear in the host: no address is watched.
    unsafe {
        asm!(
            "mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}",
            in(reg) dr0, in(reg) dr1, in(reg) dr2, in(reg) dr3,
            options(nomem, nostack, preserves_flags),
        );
    }
}

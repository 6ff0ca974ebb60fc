//! The MSR and I/O permission maps (APM2 15.11, 15.10.1): every MSR and every port exits, but those MSRs that the CPU
//! switches with the control block.
//!
//! PAT is among what it switches and exits all the same: some emulators share it with the host. It is written once a boot.

use crate::arch::msr::Msr;

/// Bytes of the map: 6 KiB used, 2 KiB reserved.
pub const BYTES: usize = super::validate::MSRPM_BYTES as usize;

/// MSRs that the guest reads and writes by itself, at every switch between its threads: VMLOAD and VMSAVE switch them (APM2
/// 15.5.2).
pub const OWN: [Msr; 3] = [
    Msr::IA32_FS_BASE,
    Msr::IA32_GS_BASE,
    Msr::IA32_KERNEL_GS_BASE,
];

/// MSRs that VMLOAD and VMSAVE switch as well, but that a guest writes once: reads do not exit. Writes do, so that values are
/// checked on CPUs, emulated ones, that take what the manual forbids.
pub const OWN_READS: [Msr; 7] = [
    Msr::IA32_SYSENTER_CS,
    Msr::IA32_SYSENTER_ESP,
    Msr::IA32_SYSENTER_EIP,
    Msr::IA32_STAR,
    Msr::IA32_LSTAR,
    Msr::IA32_CSTAR,
    Msr::IA32_FMASK,
];

/// Byte and bit of an MSR's read bit in the map; the write bit is the next one. `None`: not covered, it always exits.
pub const fn position(msr: Msr) -> Option<(usize, u32)> {
    let (block, index) = match msr.0 {
        0x0000_0000..=0x0000_1fff => (0x0000, msr.0),
        0xc000_0000..=0xc000_1fff => (0x0800, msr.0 & 0x1fff),
        0xc001_0000..=0xc001_1fff => (0x1000, msr.0 & 0x1fff),
        _ => return None,
    };
    Some((block + index as usize / 4, index % 4 * 2))
}

/// Fills a map: reads and writes of everything exit, but of `OWN`, and reads of `OWN_READS`.
pub fn fill(map: &mut [u8; BYTES]) {
    const READ: u8 = 1;
    const BOTH: u8 = 3;
    map.fill(0xff);
    let own = OWN.iter().map(|msr| (*msr, BOTH));
    let reads = OWN_READS.iter().map(|msr| (*msr, READ));
    for (msr, passes) in own.chain(reads) {
        if let Some((byte, bit)) = position(msr)
            && let Some(bits) = map.get_mut(byte)
        {
            *bits &= !(passes << bit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exits(map: &[u8; BYTES], msr: u32) -> (bool, bool) {
        let Some((byte, bit)) = position(Msr(msr)) else {
            return (true, true);
        };
        (map[byte] >> bit & 1 != 0, map[byte] >> (bit + 1) & 1 != 0)
    }

    #[test]
    fn positions_are_those_of_the_manual() {
        assert_eq!(position(Msr(0)), Some((0, 0)));
        assert_eq!(position(Msr(0x175)), Some((0x5d, 2)));
        assert_eq!(position(Msr(0x1fff)), Some((0x7ff, 6)));
        assert_eq!(position(Msr(0xc000_0080)), Some((0x820, 0)));
        assert_eq!(position(Msr(0xc000_1fff)), Some((0xfff, 6)));
        assert_eq!(position(Msr(0xc001_0117)), Some((0x1045, 6)));
        assert_eq!(position(Msr(0xc001_1fff)), Some((0x17ff, 6)));
        for uncovered in [
            0x2000,
            0x4000_0000,
            0xbfff_ffff,
            0xc000_2000,
            0xc001_2000,
            u32::MAX,
        ] {
            assert_eq!(position(Msr(uncovered)), None, "{uncovered:#x}");
        }
    }

    #[test]
    fn only_what_the_cpu_switches_does_not_exit() {
        let mut map = [0; BYTES];
        fill(&mut map);
        let ranges = (0..0x2000)
            .chain(0xc000_0000..0xc000_2000)
            .chain(0xc001_0000..0xc001_2000);
        for msr in ranges {
            let own = OWN.contains(&Msr(msr));
            let reads = own || OWN_READS.contains(&Msr(msr));
            assert_eq!(exits(&map, msr), (!reads, !own), "{msr:#x}");
        }
        assert_eq!(
            exits(&map, 0xc000_0080),
            (true, true),
            "EFER shows SVME and guards it"
        );
        assert_eq!(exits(&map, 0x277), (true, true), "PAT");
        assert_eq!(
            exits(&map, 0x10),
            (true, true),
            "a write of the TSC would change the host's"
        );
    }
}

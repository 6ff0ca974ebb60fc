//! MSR and I/O bitmaps (SDM 25.6.4, 25.6.9): which accesses exit. Pure; the frames that hold them come from elsewhere.
//!
//! An MSR passes without an exit only where the hardware switches it together with the guest, so that what the guest
//! reads and writes is its own: by the VMCS (FS and GS base, SYSENTER) or when a vCPU is attached and detached (the
//! SYSCALL registers, KERNEL_GS_BASE, TSC_AUX). EFER and PAT are loaded at entry and read without an exit, but writing
//! them exits: EFER because guests may not set every bit that the CPU has, PAT so that the VMCS holds its value without
//! being saved at each exit.

use crate::arch::msr::Msr;

/// Bytes in the MSR bitmap and in each of the two I/O bitmaps.
pub const BYTES: usize = 4096;

/// MSRs whose reads and writes both stay in the guest.
const OWN: &[Msr] = &[
    Msr::IA32_SYSENTER_CS,
    Msr::IA32_SYSENTER_ESP,
    Msr::IA32_SYSENTER_EIP,
    Msr::IA32_STAR,
    Msr::IA32_LSTAR,
    Msr::IA32_CSTAR,
    Msr::IA32_FMASK,
    Msr::IA32_FS_BASE,
    Msr::IA32_GS_BASE,
    Msr::IA32_KERNEL_GS_BASE,
    Msr::IA32_TSC_AUX,
];

/// MSRs that are read in the guest and written through an exit.
const READABLE: &[Msr] = &[Msr::IA32_EFER, Msr::IA32_PAT];

/// Makes every MSR exit but those that the module's head names.
pub fn fill_msr(bitmap: &mut [u8; BYTES]) {
    bitmap.fill(0xff);
    for &msr in OWN {
        pass(bitmap, msr, Direction::Read);
        pass(bitmap, msr, Direction::Write);
    }
    for &msr in READABLE {
        pass(bitmap, msr, Direction::Read);
    }
}

/// As [`fill_msr`], for a vCPU whose local APIC the CPU keeps in x2APIC mode: accesses to the task priority, ends of interrupts and
/// interrupts to itself do not exit (SDM 30.5). To be used with "virtualize x2APIC mode" only: without it these MSRs are the host's.
pub fn fill_msr_x2apic(bitmap: &mut [u8; BYTES]) {
    fill_msr(bitmap);
    pass(bitmap, Msr::X2APIC_TPR, Direction::Read);
    for msr in [Msr::X2APIC_TPR, Msr::X2APIC_EOI, Msr::X2APIC_SELF_IPI] {
        pass(bitmap, msr, Direction::Write);
    }
}

/// Makes every port of one I/O bitmap exit.
pub fn fill_io(bitmap: &mut [u8; BYTES]) {
    bitmap.fill(0xff);
}

#[derive(Clone, Copy)]
enum Direction {
    Read,
    Write,
}

/// Byte and bit that decide over an MSR; `None` outside the two ranges that have bits, where every access exits.
fn place(msr: Msr, direction: Direction) -> Option<(usize, u8)> {
    let (base, index) = match msr.0 {
        low @ 0..=0x1fff => (0, low),
        high @ 0xc000_0000..=0xc000_1fff => (1024, high - 0xc000_0000),
        _ => return None,
    };
    let base = match direction {
        Direction::Read => base,
        Direction::Write => base + 2048,
    };
    Some((base + index as usize / 8, 1 << (index % 8)))
}

fn pass(bitmap: &mut [u8; BYTES], msr: Msr, direction: Direction) {
    if let Some((byte, bit)) = place(msr, direction)
        && let Some(byte) = bitmap.get_mut(byte)
    {
        *byte &= !bit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the CPU does by SDM 25.6.9 and 26.1.3, computed by another way than `place`.
    fn exits(bitmap: &[u8; BYTES], msr: u32, write: bool) -> bool {
        let bit = match msr {
            0..=0x1fff => msr,
            0xc000_0000..=0xc000_1fff => 0x2000 + (msr & 0x1fff),
            _ => return true,
        } + if write { 0x4000 } else { 0 };
        bitmap[(bit >> 3) as usize] >> (bit & 7) & 1 == 1
    }

    fn msr_bitmap() -> Box<[u8; BYTES]> {
        let mut bitmap = Box::new([0; BYTES]);
        fill_msr(&mut bitmap);
        bitmap
    }

    #[test]
    fn switched_msrs_pass() {
        let bitmap = msr_bitmap();
        for msr in [
            0x174,
            0x175,
            0x176,
            0xc000_0081,
            0xc000_0082,
            0xc000_0083,
            0xc000_0084,
            0xc000_0100,
            0xc000_0101,
            0xc000_0102,
            0xc000_0103,
        ] {
            assert!(!exits(&bitmap, msr, false), "{msr:#x}");
            assert!(!exits(&bitmap, msr, true), "{msr:#x}");
        }
    }

    #[test]
    fn efer_and_pat_are_read_and_not_written() {
        let bitmap = msr_bitmap();
        for msr in [0xc000_0080, 0x277] {
            assert!(!exits(&bitmap, msr, false));
            assert!(exits(&bitmap, msr, true));
        }
    }

    #[test]
    fn of_a_kept_x2apic_pass_only_what_the_cpu_virtualises() {
        let mut bitmap = Box::new([0; BYTES]);
        fill_msr_x2apic(&mut bitmap);
        let plain = msr_bitmap();
        for msr in (0..=0x1fff).chain(0xc000_0000..=0xc000_1fff) {
            // SDM vol. 3 30.5: TPR is read; TPR, EOI and SELF IPI are written.
            let read = msr == 0x808;
            let written = matches!(msr, 0x808 | 0x80b | 0x83f);
            assert_eq!(
                exits(&bitmap, msr, false),
                exits(&plain, msr, false) && !read,
                "{msr:#x}"
            );
            assert_eq!(
                exits(&bitmap, msr, true),
                exits(&plain, msr, true) && !written,
                "{msr:#x}"
            );
        }
    }

    #[test]
    fn nothing_else_passes() {
        let bitmap = msr_bitmap();
        let passing = |write| {
            (0..0x2000)
                .chain(0xc000_0000..0xc000_2000)
                .filter(|&msr| !exits(&bitmap, msr, write))
                .count()
        };
        assert_eq!(passing(false), 13);
        assert_eq!(passing(true), 11);
        for msr in [
            0x10,
            0x1b,
            0x3a,
            0x480,
            0x1d9,
            0x6e0,
            0x830,
            0x4b56_4d00,
            0xc001_0117,
        ] {
            assert!(
                exits(&bitmap, msr, false) && exits(&bitmap, msr, true),
                "{msr:#x}"
            );
        }
    }

    #[test]
    fn every_port_exits() {
        let mut bitmap = [0; BYTES];
        fill_io(&mut bitmap);
        assert!((0..0x8000).all(|port: usize| bitmap[port / 8] >> (port % 8) & 1 == 1));
    }
}

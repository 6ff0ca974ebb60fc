//! Physical memory by its addresses: the low 4 GiB are mapped to themselves, and nothing is mapped anywhere else.

#![allow(unsafe_code, reason = "memory that a boot loader or firmware filled")]

use zerocopy::FromBytes;

use crate::Outcome;
use crate::{Why, check};

/// The end of what is mapped.
pub const MAPPED: u64 = 4 << 30;

/// A structure at an address; all ones where no memory is. What lies beyond the mapped 4 GiB raises an exception.
pub fn read<T: FromBytes>(address: u64) -> T {
    // SAFETY: any bytes are a `T`, and no reference is made. Volatile, for devices' registers can be read so.
    unsafe { read_any(address) }
}

/// # Safety
/// The bytes there must be a `T`.
unsafe fn read_any<T>(address: u64) -> T {
    let pointer = address as *const T;
    if pointer.is_aligned() && !pointer.is_null() {
        // SAFETY: aligned, not null; the caller answers for the bytes.
        unsafe { pointer.read_volatile() }
    } else {
        let value: T;
        // SAFETY: as many bytes as the value has are copied into it. By instructions of its own, for address 0 is memory like any
        // other, and no pointer for Rust.
        unsafe {
            let mut place = core::mem::MaybeUninit::<T>::uninit();
            core::arch::asm!("rep movsb", inout("rcx") size_of::<T>() => _, inout("rsi") address => _,
                inout("rdi") place.as_mut_ptr() => _, options(nostack, preserves_flags));
            value = place.assume_init();
        }
        value
    }
}

/// Writes a doubleword to an address, be it a device's, or memory that is nobody's.
///
/// # Safety
/// Neither the program nor the tables that the CPU uses may lie there.
pub unsafe fn write(address: u64, value: u32) {
    // SAFETY: the caller answers for the place. By an instruction of its own, for address 0 is memory like any other.
    unsafe {
        core::arch::asm!("mov dword ptr [{}], {:e}", in(reg) address, in(reg) value,
            options(nostack, preserves_flags));
    }
}

/// Whether the bytes from an address on are these.
pub fn expect(address: u64, expected: &[u8], what: &str) -> Outcome {
    for (offset, &byte) in (0..).zip(expected) {
        let found: u8 = read(address + offset);
        if found != byte {
            return Err(Why::from(format_args!(
                "{what} at {address:#x}: byte {offset} is {found:#x}, expected {byte:#x}"
            )));
        }
    }
    Ok(())
}

/// Whether the text at an address, which ends with a zero, is this one.
pub fn expect_text(address: u64, expected: &str, what: &str) -> Outcome {
    check!(address != 0, "{what}: there is none");
    expect(address, expected.as_bytes(), what)?;
    let end: u8 = read(address + expected.len() as u64);
    check!(
        end == 0,
        "{what}: it goes on behind {} bytes with {end:#x}",
        expected.len()
    );
    Ok(())
}

unsafe extern "C" {
    static image_start: u8;
    static image_end: u8;
}

/// Where this program is, with all that its file does not have but its memory does.
pub fn image() -> core::ops::Range<u64> {
    (&raw const image_start) as u64..(&raw const image_end) as u64
}

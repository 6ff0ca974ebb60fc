//! Vector state: saved and restored whole whenever another vCPU takes the CPU. The kernel itself is compiled without vector
//! registers and never touches them.

#![allow(unsafe_code, reason = "XSAVE, XRSTOR and XSETBV")]

use alloc::alloc::{Layout, alloc_zeroed, dealloc};
use core::arch::asm;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use plinth_abi::Status;
use raw_cpuid::CpuId;

/// State components that this CPU has and that guests may use (XCR0).
static FEATURES: AtomicU64 = AtomicU64::new(LEGACY);
/// Bytes of an area that holds them all, in the standard format.
static AREA_BYTES: AtomicUsize = AtomicUsize::new(FXSAVE_BYTES);
/// Whether XSAVE is used; else FXSAVE.
static XSAVE: AtomicBool = AtomicBool::new(false);
/// Whether restoring leaves the x87's pointers of whoever had the CPU before (see [`keeps_pointers`]).
static KEEPS_POINTERS: AtomicBool = AtomicBool::new(false);

/// Bits of MXCSR that may be set (SDM vol. 1 11.6.6).
static MXCSR_MASK: AtomicU32 = AtomicU32::new(MXCSR_ALWAYS);
const MXCSR_ALWAYS: u32 = 0xffbf;

/// x87 and SSE: what FXSAVE saves.
const LEGACY: u64 = 3;
/// The FXSAVE area (SDM vol. 1 10.5.1).
const FXSAVE_BYTES: usize = 512;
/// The header behind it (SDM vol. 1 13.4.2).
const HEADER_BYTES: usize = 64;
/// XSAVE areas are aligned to this (SDM vol. 1 13.4).
const ALIGNMENT: usize = 64;
const CR0_MP: u64 = 1 << 1;
const CR0_EM: u64 = 1 << 2;
const CR0_TS: u64 = 1 << 3;
const CR4_OSFXSR: u64 = 1 << 9;
const CR4_OSXMMEXCPT: u64 = 1 << 10;
const CR4_OSXSAVE: u64 = 1 << 18;

/// User state components that Plinth knows to be plain data: x87, SSE, AVX, AVX-512, PKRU. What a later CPU may add
/// (AMX needs permission, CET and others are supervisor's) is not offered.
const KNOWN: u64 = 0b10_1110_0111;

/// Switches vector state on, on the calling CPU. The boot CPU's call decides what is used.
pub(super) fn init(boot_cpu: bool) {
    let cpuid = CpuId::new();
    let has_xsave = cpuid
        .get_feature_info()
        .is_some_and(|features| features.has_xsave());
    // SAFETY: these bits make vector instructions usable, with their own exceptions; the kernel has none of either.
    unsafe {
        asm!("mov {t}, cr0", "and {t}, {clear}", "or {t}, {set}", "mov cr0, {t}",
            t = out(reg) _, clear = in(reg) !(CR0_EM | CR0_TS), set = in(reg) CR0_MP, options(nostack));
        let wanted = CR4_OSFXSR | CR4_OSXMMEXCPT | if has_xsave { CR4_OSXSAVE } else { 0 };
        asm!("mov {t}, cr4", "or {t}, {set}", "mov cr4, {t}", t = out(reg) _, set = in(reg) wanted, options(nostack));
    }
    if boot_cpu {
        let is_amd = cpuid
            .get_vendor_info()
            .is_some_and(|vendor| matches!(vendor.as_str(), "AuthenticAMD" | "HygonGenuine"));
        let sizes = (core::arch::x86_64::__cpuid(0x8000_0000).eax >= 0x8000_0008)
            .then(|| core::arch::x86_64::__cpuid(0x8000_0008).ebx);
        KEEPS_POINTERS.store(
            keeps_pointers(is_amd, sizes.unwrap_or(0)),
            Ordering::Relaxed,
        );
    }
    if boot_cpu {
        MXCSR_MASK.store(mxcsr_mask(), Ordering::Relaxed);
    }
    if boot_cpu && has_xsave {
        // SAFETY: leaf 0Dh exists where XSAVE does.
        let state = core::arch::x86_64::__cpuid_count(0xd, 0);
        let features = (u64::from(state.edx) << 32 | u64::from(state.eax)) & KNOWN;
        // AVX-512's three components belong together, and to AVX.
        let features = if features & 0xe4 == 0xe4 {
            features
        } else {
            features & !0xe0
        };
        XSAVE.store(true, Ordering::Relaxed);
        FEATURES.store(features, Ordering::Relaxed);
        write_xcr0(features);
        let size = core::arch::x86_64::__cpuid_count(0xd, 0).ebx as usize;
        AREA_BYTES.store(size.max(FXSAVE_BYTES + ALIGNMENT), Ordering::Relaxed);
    } else if has_xsave && XSAVE.load(Ordering::Relaxed) {
        write_xcr0(features());
    }
}

/// The bits of MXCSR that this CPU has.
fn mxcsr_mask() -> u32 {
    #[repr(C, align(16))]
    struct Area([u8; FXSAVE_BYTES]);
    let mut area = Area([0; FXSAVE_BYTES]);
    // SAFETY: 512 bytes, aligned to 16.
    unsafe { asm!("fxsave64 [{}]", in(reg) &raw mut area, options(nostack)) };
    match word(&area.0, 28) as u32 {
        0 => MXCSR_ALWAYS,
        mask => mask,
    }
}

/// Whether FXSAVE and XSAVE save, and FXRSTOR and XRSTOR load, the x87's last instruction and data pointer and opcode only
/// while an x87 exception is pending (APM2 11.4.4): AMD's CPUs but those with RstrFpErrPtrs (CPUID 8000_0008h EBX bit 2; APM3
/// appendix E.4.7). What one guest left there would be read by the next (CVE-2006-1056).
const fn keeps_pointers(is_amd: bool, extended_8_ebx: u32) -> bool {
    is_amd && extended_8_ebx & 1 << 2 == 0
}

/// Puts the kernel's own pointers in place of those that the last guest left.
fn replace_pointers() {
    static ZERO: u32 = 0;
    // SAFETY: x87 registers are nobody's but guests', and the caller loads them next. The guest's pending exception is
    // cleared and its registers are marked empty first, so FILD of an integer raises none of its own.
    unsafe {
        asm!("fnclex", "emms", "fild dword ptr [{}]", in(reg) &raw const ZERO, options(nostack, readonly));
    }
}

/// The state components that guests may switch on in XCR0.
pub fn features() -> u64 {
    FEATURES.load(Ordering::Relaxed)
}

/// Bytes of an area.
pub fn area_bytes() -> usize {
    AREA_BYTES.load(Ordering::Relaxed)
}

fn write_xcr0(value: u64) {
    // SAFETY: the value has only components that CPUID reports, x87 among them; CR4.OSXSAVE is set.
    unsafe {
        asm!("xsetbv", in("ecx") 0, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nomem, nostack));
    }
}

/// Where a vCPU's vector state waits.
#[derive(Debug)]
pub struct XsaveArea(NonNull<u8>);

// SAFETY: plain memory with one owner.
unsafe impl Send for XsaveArea {}

impl XsaveArea {
    fn layout() -> Option<Layout> {
        Layout::from_size_align(area_bytes(), ALIGNMENT).ok()
    }

    /// The state after reset (SDM vol. 1 13.6: a component whose XSTATE_BV bit is clear is in its initial state), or `None`
    /// for want of heap.
    pub fn new() -> Option<Self> {
        // SAFETY: the layout's size is not zero.
        let pointer = NonNull::new(unsafe { alloc_zeroed(Self::layout()?) })?;
        // FCW 037Fh and MXCSR 1F80h (SDM vol. 3 table 11-1). XRSTOR takes MXCSR from memory even for an initial state.
        // SAFETY: both lie within the 512 bytes that every area has.
        unsafe {
            pointer.cast::<u16>().write(0x37f);
            pointer.add(24).cast::<u32>().write(0x1f80);
        }
        Some(Self(pointer))
    }
}

impl XsaveArea {
    /// Its content: what XSAVE wrote last, in the standard format.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the area is of that size, initialised, and changed only through `&mut self`.
        unsafe { core::slice::from_raw_parts(self.0.as_ptr(), area_bytes()) }
    }

    /// Replaces its content by what `read` copies from an offset, each byte once. `supported` are the components that the guest may have.
    ///
    /// # Errors
    /// `BAD_ARGUMENT` where restoring it would fault (SDM vol. 1 13.8): another component, the compacted format, reserved bits.
    /// Any error of `read`; what lies behind the header may be new then.
    pub fn set(
        &mut self,
        supported: u64,
        read: impl Fn(usize, &mut [u8]) -> Result<(), Status>,
    ) -> Result<(), Status> {
        let mut legacy = [0; FXSAVE_BYTES];
        read(0, &mut legacy)?;
        let mxcsr = word(&legacy, 24) as u32;
        if mxcsr & !MXCSR_MASK.load(Ordering::Relaxed) != 0 {
            return Err(Status::BAD_ARGUMENT);
        }
        let mut header = [0; HEADER_BYTES];
        if XSAVE.load(Ordering::Relaxed) {
            read(FXSAVE_BYTES, &mut header)?;
            let (components, rest) = header.split_at(8);
            if word(components, 0) & !supported != 0 || rest.iter().any(|byte| *byte != 0) {
                return Err(Status::BAD_ARGUMENT);
            }
        }
        // SAFETY: the area is of that size, initialised, and this is the only reference.
        let area = unsafe { core::slice::from_raw_parts_mut(self.0.as_ptr(), area_bytes()) };
        let (first, rest) = area.split_at_mut(FXSAVE_BYTES);
        if let Some((place, rest)) = rest.split_first_chunk_mut::<HEADER_BYTES>() {
            read(FXSAVE_BYTES + HEADER_BYTES, rest)?;
            *place = header;
        }
        for (to, from) in first.iter_mut().zip(legacy) {
            *to = from;
        }
        Ok(())
    }
}

/// Eight bytes at an offset, little-endian; 0 beyond the end.
fn word(bytes: &[u8], offset: usize) -> u64 {
    bytes
        .get(offset..)
        .and_then(|rest| rest.first_chunk())
        .map_or(0, |word| u64::from_le_bytes(*word))
}

impl Drop for XsaveArea {
    fn drop(&mut self) {
        if let Some(layout) = Self::layout() {
            // SAFETY: allocated by `new` with the same layout, which does not change after the first area was made.
            unsafe { dealloc(self.0.as_ptr(), layout) };
        }
    }
}

/// Loads a vCPU's vector state. XCR0 is whole.
#[inline(always)]
pub fn restore(area: &XsaveArea) {
    if KEEPS_POINTERS.load(Ordering::Relaxed) {
        replace_pointers();
    }
    let area = area.0.as_ptr();
    if !XSAVE.load(Ordering::Relaxed) {
        // SAFETY: 512 bytes, aligned, written by `new` or FXSAVE.
        unsafe { asm!("fxrstor64 [{}]", in(reg) area, options(nostack, readonly)) };
        return;
    }
    // SAFETY: XCR0 holds all components, so everything is loaded; the area is of that size and was written by `new` or XSAVE.
    // Vector registers are nobody's but guests'.
    unsafe {
        asm!("xrstor64 [{}]", in(reg) area, in("eax") u32::MAX, in("edx") u32::MAX, options(nostack, readonly));
    }
}

/// Saves the vector state of the vCPU that has the CPU. XCR0 is whole.
#[inline(always)]
pub fn save(area: &mut XsaveArea) {
    let area = area.0.as_ptr();
    if !XSAVE.load(Ordering::Relaxed) {
        // SAFETY: 512 bytes, aligned.
        unsafe { asm!("fxsave64 [{}]", in(reg) area, options(nostack)) };
        return;
    }
    // SAFETY: the area has room for all components of XCR0.
    unsafe {
        asm!("xsave64 [{}]", in(reg) area, in("eax") u32::MAX, in("edx") u32::MAX, options(nostack));
    }
}

/// XCR0. Not every emulator lets XSETBV exit under SVM, so the CPU is what is asked. Where there is none, what FXSAVE saves.
pub fn xcr0() -> u64 {
    if !XSAVE.load(Ordering::Relaxed) {
        return LEGACY;
    }
    let (low, high): (u32, u32);
    // SAFETY: CR4.OSXSAVE is set.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Sets XCR0 for the guest that has the CPU, to a value found legal.
pub fn set_xcr0(value: u64) {
    write_xcr0(value);
}

/// As [`set_xcr0`], where XCR0 is whole.
pub fn load_xcr0(value: u64) {
    if value != features() {
        write_xcr0(value);
    }
}

/// Makes XCR0 whole again after a guest that could reach it: what that left there. What it has switched off keeps its contents in the CPU.
pub fn take_xcr0() -> u64 {
    let xcr0 = xcr0();
    if xcr0 != features() {
        write_xcr0(features());
    }
    xcr0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_are_replaced_on_amds_cpus_that_do_not_switch_them() {
        assert!(keeps_pointers(true, 0));
        assert!(keeps_pointers(true, !(1 << 2)));
        assert!(!keeps_pointers(true, 1 << 2), "RstrFpErrPtrs");
        assert!(!keeps_pointers(false, 0), "Intel switches them always");
    }
}

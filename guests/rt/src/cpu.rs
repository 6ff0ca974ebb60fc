//! Registers of the CPU. What may raise an exception returns it as an error.

#![allow(unsafe_code, reason = "instructions that Rust has no words for")]

use core::arch::asm;

use crate::snippet;
use crate::trap::{Gprs, Trap};

/// What CPUID returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cpuid {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

/// CPUID of a leaf and a subleaf.
pub fn cpuid(leaf: u32, subleaf: u32) -> Cpuid {
    let (eax, ebx, ecx, edx);
    // SAFETY: CPUID has no effect but on these registers. RBX belongs to the compiler and is put back.
    unsafe {
        asm!("xchg {b}, rbx", "cpuid", "xchg {b}, rbx", b = inout(reg) 0u64 => ebx,
            inout("eax") leaf => eax, inout("ecx") subleaf => ecx, out("edx") edx, options(nomem, nostack, preserves_flags));
    }
    let ebx: u64 = ebx;
    Cpuid {
        eax,
        ebx: ebx as u32,
        ecx,
        edx,
    }
}

/// The twelve letters of leaf 0.
pub fn vendor() -> [u8; 12] {
    letters([cpuid(0, 0).ebx, cpuid(0, 0).edx, cpuid(0, 0).ecx])
}

/// The letters that three registers hold, first the first.
pub fn letters(registers: [u32; 3]) -> [u8; 12] {
    let mut text = [0; 12];
    for (chunk, register) in text.chunks_exact_mut(4).zip(registers) {
        chunk.copy_from_slice(&register.to_le_bytes());
    }
    text
}

/// Whether this is a CPU of AMD's kind, with SVM instead of VMX.
pub fn is_amd() -> bool {
    matches!(&vendor(), b"AuthenticAMD" | b"HygonGenuine")
}

/// RDMSR.
pub fn rdmsr(msr: u32) -> Result<u64, Trap> {
    let out = snippet!("rdmsr").run(Gprs {
        rcx: u64::from(msr),
        ..Gprs::ZERO
    })?;
    Ok(out.rdx << 32 | out.rax & 0xffff_ffff)
}

/// WRMSR.
pub fn wrmsr(msr: u32, value: u64) -> Result<(), Trap> {
    snippet!("wrmsr")
        .run(Gprs {
            rcx: u64::from(msr),
            rax: value & 0xffff_ffff,
            rdx: value >> 32,
            ..Gprs::ZERO
        })
        .map(drop)
}

/// XGETBV of XCR0.
pub fn xgetbv() -> Result<u64, Trap> {
    let out = snippet!("xgetbv").run(Gprs::ZERO)?;
    Ok(out.rdx << 32 | out.rax & 0xffff_ffff)
}

/// XSETBV of an extended control register.
pub fn xsetbv(register: u32, value: u64) -> Result<(), Trap> {
    snippet!("xsetbv")
        .run(Gprs {
            rcx: u64::from(register),
            rax: value & 0xffff_ffff,
            rdx: value >> 32,
            ..Gprs::ZERO
        })
        .map(drop)
}

macro_rules! registers {
    ($($read:ident $write:ident $name:literal;)*) => {$(
        #[doc = concat!("Reads ", $name, ".")]
        pub fn $read() -> Result<u64, Trap> {
            snippet!(concat!("mov rax, ", $name)).run(Gprs::ZERO).map(|out| out.rax)
        }

        #[doc = concat!("Writes ", $name, ".")]
        pub fn $write(value: u64) -> Result<(), Trap> {
            snippet!(concat!("mov ", $name, ", rax")).run(Gprs { rax: value, ..Gprs::ZERO }).map(drop)
        }
    )*};
}

registers! {
    cr0 set_cr0 "cr0";
    cr2 set_cr2 "cr2";
    cr3 set_cr3 "cr3";
    cr4 set_cr4 "cr4";
    cr8 set_cr8 "cr8";
    dr0 set_dr0 "dr0";
    dr1 set_dr1 "dr1";
    dr2 set_dr2 "dr2";
    dr3 set_dr3 "dr3";
    dr6 set_dr6 "dr6";
    dr7 set_dr7 "dr7";
}

/// Operand of LGDT, LIDT, SGDT and SIDT.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C, packed)]
pub struct TablePointer {
    /// Size of the table in bytes, less one.
    pub limit: u16,
    /// Linear address of the table.
    pub base: u64,
}

/// LGDT. The table must hold the segments that are in use.
pub fn lgdt(table: &TablePointer) {
    // SAFETY: reads 10 bytes at the reference; loads no segment register.
    unsafe { asm!("lgdt [{}]", in(reg) table, options(readonly, nostack, preserves_flags)) }
}

/// LIDT.
pub fn lidt(table: &TablePointer) {
    // SAFETY: reads 10 bytes at the reference; what the table does is the next exception's affair.
    unsafe { asm!("lidt [{}]", in(reg) table, options(readonly, nostack, preserves_flags)) }
}

/// INVLPG of the page at a linear address.
pub fn invlpg(address: u64) {
    // SAFETY: forgets a cached translation, which has no other effect.
    unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack, preserves_flags)) }
}

/// RDTSC.
pub fn rdtsc() -> u64 {
    let (low, high): (u64, u64);
    // SAFETY: reads a counter.
    unsafe {
        asm!("rdtsc", out("rax") low, out("rdx") high, options(nomem, nostack, preserves_flags));
    }
    high << 32 | low & 0xffff_ffff
}

//! Vector state: what [`fpu`] saves and restores.

#![allow(unsafe_code, reason = "vector registers, which nothing else here uses")]

use alloc::boxed::Box;
use core::arch::asm;

use super::{check, mailbox, tests};
use crate::arch::fpu::{self, XsaveArea};

tests!("vector":
    a_new_area_is_the_state_after_reset,
    xmm_registers_are_kept,
    ymm_registers_are_kept,
    components_that_a_guest_switched_off_are_kept,
);

/// Bit of XCR0.
const AVX: u64 = 1 << 2;

type Xmm = [[u64; 2]; 16];

macro_rules! for_all {
    ($instruction:literal, $operands:literal) => {
        concat!(
            ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n",
            $instruction,
            " ",
            $operands,
            "\n",
            ".endr"
        )
    };
}

fn load_xmm(values: &Xmm) {
    // SAFETY: nothing in the kernel uses these registers.
    unsafe {
        asm!(for_all!("movdqu", "xmm\\n, [{0} + \\n * 16]"), in(reg) values, options(nostack, readonly))
    };
}

fn xmm() -> Xmm {
    let mut values = [[0; 2]; 16];
    // SAFETY: stores 256 bytes.
    unsafe {
        asm!(for_all!("movdqu", "[{0} + \\n * 16], xmm\\n"), in(reg) &raw mut values, options(nostack))
    };
    values
}

type Ymm = [[u64; 4]; 16];

fn load_ymm(values: &Ymm) {
    // SAFETY: nothing in the kernel uses these registers; AVX is switched on where this is called.
    unsafe {
        asm!(for_all!("vmovdqu", "ymm\\n, [{0} + \\n * 32]"), in(reg) values, options(nostack, readonly))
    };
}

fn ymm() -> Ymm {
    let mut values = [[0; 4]; 16];
    // SAFETY: stores 512 bytes; AVX is switched on where this is called.
    unsafe {
        asm!(for_all!("vmovdqu", "[{0} + \\n * 32], ymm\\n"), in(reg) &raw mut values, options(nostack))
    };
    values
}

fn mxcsr() -> u32 {
    let mut value = 0_u32;
    // SAFETY: stores four bytes.
    unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut value, options(nostack)) };
    value
}

fn area() -> Result<Box<XsaveArea>, alloc::string::String> {
    XsaveArea::new()
        .map(Box::new)
        .ok_or_else(|| "no memory for an area".into())
}

fn a_new_area_is_the_state_after_reset() -> super::Outcome {
    load_xmm(&[[u64::MAX; 2]; 16]);
    fpu::restore(&*area()?);
    check!(xmm() == [[0; 2]; 16], "a register is not zero");
    check!(mxcsr() == 0x1f80, "MXCSR is {:#x}", mxcsr());
    let mut control = 0_u16;
    // SAFETY: stores two bytes.
    unsafe { asm!("fnstcw [{}]", in(reg) &raw mut control, options(nostack)) };
    check!(control == 0x37f, "the x87's control word is {control:#x}");
    Ok(())
}

/// Keeps a pattern, loads the state after reset, and goes back.
fn keep_xmm() -> super::Outcome {
    let values: Xmm = core::array::from_fn(|n| [0x1111_1111 * (n as u64 + 1), !(n as u64)]);
    let (mut kept, fresh) = (area()?, area()?);
    load_xmm(&values);
    fpu::save(&mut kept);
    fpu::restore(&fresh);
    check!(xmm() == [[0; 2]; 16], "another state shows through");
    fpu::restore(&kept);
    check!(xmm() == values, "they come back as {:x?}", xmm());
    Ok(())
}

fn xmm_registers_are_kept() -> super::Outcome {
    for (cpu, outcome) in mailbox::on_each(keep_xmm)? {
        outcome.map_err(|why| alloc::format!("cpu{}: {why}", cpu.id))?;
    }
    Ok(())
}

fn keep_ymm() -> super::Outcome {
    if fpu::features() & AVX == 0 {
        return Ok(());
    }
    let values: Ymm = core::array::from_fn(|n| {
        core::array::from_fn(|word| (n * 4 + word + 1) as u64 * 0x0101_0101)
    });
    let (mut kept, fresh) = (area()?, area()?);
    load_ymm(&values);
    fpu::save(&mut kept);
    fpu::restore(&fresh);
    check!(ymm() == [[0; 4]; 16], "another state shows through");
    fpu::restore(&kept);
    check!(ymm() == values, "they come back as {:x?}", ymm());
    Ok(())
}

fn ymm_registers_are_kept() -> super::Outcome {
    for (cpu, outcome) in mailbox::on_each(keep_ymm)? {
        outcome.map_err(|why| alloc::format!("cpu{}: {why}", cpu.id))?;
    }
    Ok(())
}

/// A guest with XCR0 of x87 and SSE alone may switch AVX on again, and must find what it left there.
fn components_that_a_guest_switched_off_are_kept() -> super::Outcome {
    if fpu::features() & AVX == 0 {
        return Ok(());
    }
    const X87_SSE: u64 = 3;
    let values: Ymm = [[7; 4]; 16];
    let (mut kept, fresh) = (area()?, area()?);
    load_ymm(&values);
    fpu::set_xcr0(X87_SSE);
    let xcr0 = fpu::take_xcr0();
    let whole = fpu::xcr0();
    check!(xcr0 == X87_SSE, "the guest's XCR0 was {xcr0:#x}");
    check!(whole == fpu::features(), "XCR0 was left at {whole:#x}");
    fpu::save(&mut kept);
    fpu::restore(&fresh);
    fpu::restore(&kept);
    check!(ymm() == values, "they come back as {:x?}", ymm());
    Ok(())
}

//! Hypercalls: who may call, what is kept, and how bad arguments are answered.

use plinth_rt::abi::{ABI_VERSION, Call, Status, call::CONSOLE_MAX};
use plinth_rt::suite::{must_fault, must_fault_user};
use plinth_rt::trap::vector;
use plinth_rt::{Gprs, Outcome, Scratch, Snippet, check, check_eq, cpu, hypercall, snippet};

fn instruction() -> Snippet {
    if hypercall::is_vmmcall() {
        snippet!("vmmcall")
    } else {
        snippet!("vmcall")
    }
}

pub fn version() -> Outcome {
    let out = instruction().run(Gprs::ZERO)?;
    check_eq!(out.rax, Status::OK.0, "status");
    check_eq!(out.rdx, u64::from(ABI_VERSION), "version");
    Ok(())
}

pub fn other_vendors_instruction() -> Outcome {
    let other = if hypercall::is_vmmcall() {
        snippet!("vmcall")
    } else {
        snippet!("vmmcall")
    };
    must_fault(&other, Gprs::ZERO, vector::UD, 0)
}

pub fn refused_at_cpl3() -> Outcome {
    must_fault_user(&instruction(), Gprs::ZERO, vector::UD, 0)?;
    must_fault_user(&snippet!("vmcall"), Gprs::ZERO, vector::UD, 0)?;
    must_fault_user(&snippet!("vmmcall"), Gprs::ZERO, vector::UD, 0)
}

pub fn unknown_number() -> Outcome {
    for number in [0x7777, 1 << 32, 1 << 63, u64::MAX] {
        let (status, _) = hypercall::call(Call(number), [0; 3]);
        check!(status == Status::NO_CALL, "{number:#x}: {status:?}");
    }
    Ok(())
}

pub fn keeps_registers() -> Outcome {
    for number in [Call::VERSION.0, Call::CLOCK.0, Call::YIELD.0, 0x7777] {
        let registers = Gprs {
            rax: number,
            ..crate::pattern()
        };
        let out = instruction().run(registers)?;
        let expected = Gprs {
            rax: out.rax,
            rdx: out.rdx,
            ..registers
        };
        check!(out == expected, "call {number:#x} changed {out:x?}");
    }
    Ok(())
}

pub fn keeps_flags() -> Outcome {
    let set = if hypercall::is_vmmcall() {
        snippet!("stc", "std", "vmmcall", "pushfq", "pop rbx", "cld")
    } else {
        snippet!("stc", "std", "vmcall", "pushfq", "pop rbx", "cld")
    };
    let out = set.run(Gprs::ZERO)?;
    check_eq!(out.rbx & 0x401, 0x401, "CF and DF");
    Ok(())
}

pub fn clock_is_monotonic() -> Outcome {
    let mut last = hypercall::clock();
    for _ in 0..100 {
        let now = hypercall::clock();
        check!(now >= last, "{now} after {last}");
        last = now;
    }
    for _ in 0..1000 {
        if hypercall::clock() > last {
            return Ok(());
        }
        hypercall::yield_now();
    }
    Err(format_args!("stands still at {last}").into())
}

fn write(address: u64, length: u64) -> (Status, u64) {
    hypercall::call(Call::CONSOLE_WRITE, [address, length, 0])
}

pub fn console_write_beyond_memory() -> Outcome {
    let end = plinth_rt::ram_size();
    for (address, length) in [
        (end, 1),
        (end - 1, 2),
        (end - 16, 4096),
        (1 << 40, 16),
        (0xfee0_0000, 4),
        (1 << 52, 1),
        (1 << 63, 1),
    ] {
        let (status, _) = write(address, length);
        check!(
            status == Status::BAD_ADDRESS,
            "{length} bytes at {address:#x}: {status:?}"
        );
    }
    Ok(())
}

pub fn console_write_wrapping() -> Outcome {
    for (address, length) in [(u64::MAX, 1), (u64::MAX, 2), (u64::MAX - 15, 4096)] {
        let (status, _) = write(address, length);
        check!(
            status == Status::BAD_ADDRESS || status == Status::BAD_ARGUMENT,
            "{length} bytes at {address:#x}: {status:?}"
        );
    }
    Ok(())
}

pub fn console_write_too_long() -> Outcome {
    for length in [CONSOLE_MAX + 1, 1 << 32, u64::MAX] {
        let (status, _) = write(crate::PAGES.address(), length);
        check!(
            status == Status::BAD_ARGUMENT,
            "{length:#x} bytes: {status:?}"
        );
    }
    Ok(())
}

pub fn console_write_nothing() -> Outcome {
    let (status, taken) = write(crate::PAGES.address(), 0);
    check!(status == Status::OK, "{status:?}");
    check_eq!(taken, 0, "bytes taken");
    Ok(())
}

/// In compatibility mode the call is made all the same: it is CPL that counts.
pub fn from_compatibility_mode() -> Outcome {
    macro_rules! in_32_bits {
        ($call:literal) => {
            snippet!(
                "push 0x58",
                "lea rbx, [rip + 2f]",
                "push rbx",
                "retfq",
                ".code32",
                "2:",
                $call,
                ".byte 0xea",
                ".long 3f",
                ".word 8",
                ".code64",
                "3:",
            )
        };
    }
    let snippet = if hypercall::is_vmmcall() {
        in_32_bits!("vmmcall")
    } else {
        in_32_bits!("vmcall")
    };
    let out = snippet.run(Gprs::ZERO)?;
    check_eq!(out.rax, Status::OK.0, "status");
    check_eq!(out.rdx, u64::from(ABI_VERSION), "version");
    Ok(())
}

static BEFORE: Scratch<4096> = Scratch::new();
static AFTER: Scratch<4096> = Scratch::new();

/// A snippet that loads all vector registers from R12, makes the call, and stores them to R13.
macro_rules! across {
    ($call:literal, $load:literal, $prefix:literal, $size:literal) => {
        snippet!(
            concat!(
                ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n",
                $load,
                " ",
                $prefix,
                "\\n, [r12 + \\n * ",
                $size,
                "]\n.endr"
            ),
            $call,
            concat!(
                ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n",
                $load,
                " [r13 + \\n * ",
                $size,
                "], ",
                $prefix,
                "\\n\n.endr"
            ),
        )
    };
}

fn vectors_survive(snippet: &Snippet, bytes: usize) -> Outcome {
    for call in [Call::VERSION, Call::YIELD] {
        for offset in 0..4096 {
            BEFORE.set(offset, (offset * 7 + offset / 256) as u8);
        }
        AFTER.fill(0);
        let out = snippet.run(Gprs {
            rax: call.0,
            r12: BEFORE.address(),
            r13: AFTER.address(),
            ..Gprs::ZERO
        })?;
        check_eq!(out.rax, Status::OK.0, "status");
        for offset in 0..bytes {
            check!(
                AFTER.get(offset) == BEFORE.get(offset),
                "register {} differs",
                offset * 16 / bytes
            );
        }
    }
    Ok(())
}

pub fn keeps_xmm_registers() -> Outcome {
    let snippet = if hypercall::is_vmmcall() {
        across!("vmmcall", "movups", "xmm", "16")
    } else {
        across!("vmcall", "movups", "xmm", "16")
    };
    vectors_survive(&snippet, 256)
}

/// Without AVX the instructions must be undefined instead.
pub fn keeps_ymm_registers() -> Outcome {
    if cpu::cpuid(1, 0).ecx & 1 << 28 == 0 {
        return must_fault(&snippet!("vmovups ymm0, [r12]"), Gprs::ZERO, vector::UD, 0);
    }
    let before = crate::enable_avx()?;
    let snippet = if hypercall::is_vmmcall() {
        across!("vmmcall", "vmovups", "ymm", "32")
    } else {
        across!("vmcall", "vmovups", "ymm", "32")
    };
    let outcome = vectors_survive(&snippet, 512);
    cpu::xsetbv(0, before)?;
    outcome
}

pub fn keeps_x87_state() -> Outcome {
    let snippet = if hypercall::is_vmmcall() {
        snippet!(
            "fninit",
            "fldpi",
            "vmmcall",
            "fldpi",
            "fcomip st, st(1)",
            "sete bl",
            "fstp st(0)",
            "fnstcw [r13]"
        )
    } else {
        snippet!(
            "fninit",
            "fldpi",
            "vmcall",
            "fldpi",
            "fcomip st, st(1)",
            "sete bl",
            "fstp st(0)",
            "fnstcw [r13]"
        )
    };
    let out = snippet.run(Gprs {
        rax: Call::YIELD.0,
        r13: AFTER.address(),
        ..Gprs::ZERO
    })?;
    check_eq!(out.rbx, 1, "equality of the stack's top");
    check_eq!(AFTER.get_u64(0) & 0xffff, 0x37f, "control word");
    Ok(())
}

//! Exceptions reach the guest's own handlers with the right error code, RIP and CR2, whether the kernel looks at them or not.

use plinth_rt::cpu::{self, TablePointer};
use plinth_rt::suite::{faulted, must_fault, must_fault_user, trapped};
use plinth_rt::trap::{self, vector};
use plinth_rt::{Gprs, Outcome, Scratch, check, check_eq, gdt, snippet};

static STATE: Scratch<4096> = Scratch::new();

const AM: u64 = 1 << 18;

pub fn divide_error() -> Outcome {
    must_fault(&snippet!("div ecx"), Gprs::ZERO, vector::DE, 0)
}

pub fn undefined() -> Outcome {
    must_fault(&snippet!("ud2"), Gprs::ZERO, vector::UD, 0)?;
    must_fault_user(&snippet!("ud2"), Gprs::ZERO, vector::UD, 0)?;
    // INTO does not exist in 64-bit mode.
    must_fault(&snippet!(".byte 0xce"), Gprs::ZERO, vector::UD, 0)
}

pub fn breakpoint() -> Outcome {
    let snippet = snippet!("int3", "nop");
    let trap = trapped(snippet.run(Gprs::ZERO), vector::BP)?;
    check_eq!(trap.rip(), snippet.start() + 1, "RIP");
    let trap = trapped(snippet.run_user(Gprs::ZERO), vector::BP)?;
    check_eq!(trap.rip(), snippet.start() + 1, "RIP from CPL 3");
    Ok(())
}

pub fn software_interrupt() -> Outcome {
    let snippet = snippet!("int 0x90", "nop");
    let trap = trapped(snippet.run(Gprs::ZERO), 0x90)?;
    check_eq!(trap.rip(), snippet.start() + 2, "RIP");
    // The gate's DPL is 0.
    must_fault_user(&snippet, Gprs::ZERO, vector::GP, crate::gate_error(0x90))
}

pub fn selector_beyond_table() -> Outcome {
    let registers = Gprs {
        rax: u64::from(gdt::selector::BEYOND),
        ..Gprs::ZERO
    };
    must_fault(
        &snippet!("mov ds, eax"),
        registers,
        vector::GP,
        registers.rax,
    )
}

pub fn segment_not_present() -> Outcome {
    let registers = Gprs {
        rax: u64::from(gdt::selector::NOT_PRESENT),
        ..Gprs::ZERO
    };
    must_fault(
        &snippet!("mov es, eax"),
        registers,
        vector::NP,
        registers.rax,
    )?;
    must_fault(
        &snippet!("mov ss, eax"),
        registers,
        vector::SS,
        registers.rax,
    )
}

pub fn gate_not_present() -> Outcome {
    let error = crate::gate_error(0x91);
    trap::set_gate(0x91, trap::default_gate(0x91).absent());
    let outcome = must_fault(&snippet!("int 0x91"), Gprs::ZERO, vector::NP, error);
    trap::set_gate(0x91, trap::default_gate(0x91));
    outcome
}

pub fn gate_beyond_table() -> Outcome {
    let error = crate::gate_error(0x90);
    cpu::lidt(&TablePointer {
        limit: 0x90 * 16 - 1,
        ..trap::table()
    });
    must_fault(&snippet!("int 0x90"), Gprs::ZERO, vector::GP, error)
}

pub fn non_canonical_access() -> Outcome {
    let registers = Gprs {
        rax: 1 << 63,
        rbp: 1 << 63,
        ..Gprs::ZERO
    };
    must_fault(&snippet!("mov rbx, [rax]"), registers, vector::GP, 0)?;
    must_fault(&snippet!("mov [rax], rbx"), registers, vector::GP, 0)?;
    if crate::left_out_for_tcg("#SS for addresses that are not canonical") {
        return Ok(());
    }
    must_fault(&snippet!("mov rbx, [rbp]"), registers, vector::SS, 0)
}

pub fn non_canonical_jump() -> Outcome {
    let snippet = snippet!("jmp rax");
    let trap = trapped(
        snippet.run(Gprs {
            rax: 1 << 63,
            ..Gprs::ZERO
        }),
        vector::GP,
    )?;
    check_eq!(trap.error, 0, "error code");
    Ok(())
}

/// CR0.AM and RFLAGS.AC at CPL 3; never at CPL 0.
pub fn alignment_check() -> Outcome {
    cpu::set_cr0(cpu::cr0()? | AM)?;
    let snippet = snippet!(
        "pushfq",
        "or dword ptr [rsp], 0x40000",
        "popfq",
        "mov eax, [rdi + 1]"
    );
    snippet.run(crate::addresses())?;
    if crate::left_out_for_tcg("the alignment check") {
        return Ok(());
    }
    let trap = trapped(snippet.run_user(crate::addresses()), vector::AC)?;
    check_eq!(trap.error, 0, "error code");
    check_eq!(trap.rip(), snippet.end() - 3, "RIP");
    Ok(())
}

/// Without CR0.AM the flag means nothing.
pub fn no_alignment_check_without_am() -> Outcome {
    cpu::set_cr0(cpu::cr0()? & !AM)?;
    snippet!(
        "pushfq",
        "or dword ptr [rsp], 0x40000",
        "popfq",
        "mov eax, [rdi + 1]"
    )
    .run_user(crate::addresses())?;
    Ok(())
}

pub fn x87_error() -> Outcome {
    STATE.set_u64(0, 0x37b);
    let snippet = snippet!(
        "fninit",
        "fldcw [rdi]",
        "fld1",
        "fldz",
        "fdivp st(1), st",
        "fwait"
    );
    let trap = trapped(
        snippet.run(Gprs {
            rdi: STATE.address(),
            ..Gprs::ZERO
        }),
        vector::MF,
    );
    snippet!("fninit").run(Gprs::ZERO)?;
    check_eq!(trap?.rip(), snippet.end() - 1, "RIP");
    Ok(())
}

pub fn simd_error() -> Outcome {
    if crate::left_out_for_tcg("SIMD floating-point exceptions") {
        return Ok(());
    }
    STATE.set_u64(0, 0x1d80);
    STATE.set_u64(8, 0x1f80);
    let snippet = snippet!(
        "ldmxcsr [rdi]",
        "xorps xmm1, xmm1",
        "mov eax, 0x3f800000",
        "movd xmm0, eax",
        "divss xmm0, xmm1"
    );
    let trap = trapped(
        snippet.run(Gprs {
            rdi: STATE.address(),
            ..Gprs::ZERO
        }),
        vector::XM,
    );
    snippet!("ldmxcsr [rdi]").run(Gprs {
        rdi: STATE.address() + 8,
        ..Gprs::ZERO
    })?;
    check_eq!(trap?.rip(), snippet.end() - 4, "RIP");
    Ok(())
}

/// A page fault whose gate is not present: the second exception, #NP, combines with it to a double fault, which has a stack
/// of its own.
pub fn double_fault() -> Outcome {
    let address = plinth_rt::paging::map(7, 0, 0);
    trap::set_gate(vector::PF, trap::default_gate(vector::PF).absent());
    let result = snippet!("mov rax, [rdi]").run(Gprs {
        rdi: address,
        ..Gprs::ZERO
    });
    trap::set_gate(vector::PF, trap::default_gate(vector::PF));
    let trap = trapped(result, vector::DF)?;
    check_eq!(trap.error, 0, "error code");
    Ok(())
}

/// #GP whose gate is not present: contributory after contributory.
pub fn double_fault_of_two_contributory() -> Outcome {
    trap::set_gate(vector::GP, trap::default_gate(vector::GP).absent());
    let result = snippet!("mov rax, [rdi]").run(Gprs {
        rdi: 1 << 63,
        ..Gprs::ZERO
    });
    trap::set_gate(vector::GP, trap::default_gate(vector::GP));
    trapped(result, vector::DF)?;
    Ok(())
}

/// The same where the kernel injects the first exception: the refused RDMSR exits.
pub fn double_fault_of_injected() -> Outcome {
    if crate::left_out_for_tcg("the double fault where an injected exception cannot be delivered") {
        return Ok(());
    }
    trap::set_gate(vector::GP, trap::default_gate(vector::GP).absent());
    let result = snippet!("rdmsr").run(Gprs {
        rcx: 0x1234_5678,
        ..Gprs::ZERO
    });
    trap::set_gate(vector::GP, trap::default_gate(vector::GP));
    trapped(result, vector::DF)?;
    Ok(())
}

/// A benign exception before a contributory one does not make a double fault.
pub fn serial_exceptions() -> Outcome {
    trap::set_gate(vector::UD, trap::default_gate(vector::UD).absent());
    let snippet = snippet!("ud2");
    let result = snippet.run(Gprs::ZERO);
    trap::set_gate(vector::UD, trap::default_gate(vector::UD));
    let trap = trapped(result, vector::NP)?;
    // EXT is set: the event was being delivered (SDM vol. 3 7.13).
    check_eq!(trap.error & !1, crate::gate_error(vector::UD), "error code");
    check_eq!(trap.rip(), snippet.start(), "RIP");
    Ok(())
}

/// A handler that returns: the code goes on where it was, with its registers.
pub fn handler_returns() -> Outcome {
    let out = trap::with_handler(
        |frame| {
            let ours = frame.vector == u64::from(vector::UD);
            if ours {
                frame.rip += 2;
                frame.gprs.rbx = 0x77;
            }
            ours
        },
        || snippet!("ud2", "add rbx, 1").run(Gprs::ZERO),
    )??;
    check_eq!(out.rbx, 0x78, "RBX");
    Ok(())
}

/// The frame that the CPU pushes: CS, SS and flags of the code that was interrupted.
pub fn frame_contents() -> Outcome {
    let snippet = snippet!("stc", "ud2");
    let trap = trapped(snippet.run(Gprs::ZERO), vector::UD)?;
    check_eq!(trap.frame.cs, 8, "CS");
    check_eq!(trap.frame.ss, 0x10, "SS");
    check_eq!(trap.frame.rflags & 1, 1, "CF");
    let trap = trapped(snippet.run_user(Gprs::ZERO), vector::UD)?;
    check_eq!(trap.frame.cs, 0x2b, "CS at CPL 3");
    check_eq!(trap.frame.ss, 0x23, "SS at CPL 3");
    check!(
        trap.rip() == snippet.start() + 1,
        "RIP is not that of the instruction"
    );
    Ok(())
}

pub fn privileged_at_cpl3() -> Outcome {
    let lgdt = snippet!("lgdt [rdi]");
    faulted(&lgdt, lgdt.run_user(crate::addresses()), vector::GP, 0)?;
    must_fault_user(&snippet!("lidt [rdi]"), crate::addresses(), vector::GP, 0)?;
    must_fault_user(&snippet!("ltr ax"), Gprs::ZERO, vector::GP, 0)?;
    must_fault_user(&snippet!("lldt ax"), Gprs::ZERO, vector::GP, 0)
}

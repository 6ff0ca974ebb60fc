//! Debug registers, breakpoints and single-stepping, over instructions that exit above all.

use plinth_rt::cpu;
use plinth_rt::hypercall;
use plinth_rt::suite::{faulted, must_fault, must_fault_user, trapped};
use plinth_rt::trap::{Trap, vector};
use plinth_rt::{Gprs, Outcome, Snippet, check, check_eq, println, snippet};

const DE: u64 = 1 << 3;
const DR6_INIT: u64 = 0xffff_0ff0;
/// Single step.
const BS: u64 = 1 << 14;
/// Access to a debug register.
const BD: u64 = 1 << 13;

/// The bits of DR6 that name a breakpoint, the single step and the general detection.
const CAUSES: u64 = 0x600f;

macro_rules! step {
    ($($line:literal),+) => {
        snippet!("pushfq", "or qword ptr [rsp], 0x100", "popfq", $($line),+)
    };
}

/// DR6 names the cause of a debug exception.
fn check_cause(trap: &Trap, cause: u64) -> Outcome {
    if trap.dr6 & CAUSES == 0 && loses_cause() {
        println!(
            "note: this CPU is Bochs's SVM, which loses DR6 where a hypervisor intercepts #DB"
        );
        return Ok(());
    }
    check_eq!(trap.dr6 & CAUSES, cause, "DR6");
    Ok(())
}

/// Whether the CPU forgets DR6 at an intercepted #DB, which Plinth intercepts everywhere (CVE-2015-8104). Bochs 2.7 does so
/// under SVM, and no other CPU: on VMX and on QEMU nothing is let pass.
fn loses_cause() -> bool {
    let stepped = trapped(step!("nop").run(Gprs::ZERO), vector::DB);
    hypercall::is_vmmcall() && !crate::is_tcg() && stepped.is_ok_and(|trap| trap.dr6 & CAUSES == 0)
}

pub fn addresses_keep_values() -> Outcome {
    let values = [
        0x1111,
        0x7fff_ffff_0000,
        0xffff_8000_0000_0000,
        0x1234_5678_9abc,
    ];
    cpu::set_dr0(values[0])?;
    cpu::set_dr1(values[1])?;
    cpu::set_dr2(values[2])?;
    cpu::set_dr3(values[3])?;
    hypercall::version();
    hypercall::yield_now();
    let seen = [cpu::dr0()?, cpu::dr1()?, cpu::dr2()?, cpu::dr3()?];
    check!(seen == values, "{seen:x?}, expected {values:x?}");
    for set in [cpu::set_dr0, cpu::set_dr1, cpu::set_dr2, cpu::set_dr3] {
        set(0)?;
    }
    Ok(())
}

/// Reserved bits of DR6 read 1; writing to the upper half raises #GP(0) (SDM vol. 3 19.2.6).
pub fn dr6_rules() -> Outcome {
    cpu::set_dr6(0)?;
    check_eq!(cpu::dr6()? & !(CAUSES | 1 << 15), DR6_INIT, "DR6 of zeros");
    cpu::set_dr6(0xffff_ffff)?;
    check_eq!(cpu::dr6()? & CAUSES, CAUSES, "causes");
    must_fault(
        &snippet!("mov dr6, rax"),
        Gprs {
            rax: 1 << 32,
            ..Gprs::ZERO
        },
        vector::GP,
        0,
    )
}

pub fn dr7_rules() -> Outcome {
    cpu::set_dr7(0)?;
    check_eq!(cpu::dr7()?, 0x400, "DR7 of zeros");
    must_fault(
        &snippet!("mov dr7, rax"),
        Gprs {
            rax: 1 << 32,
            ..Gprs::ZERO
        },
        vector::GP,
        0,
    )
}

/// DR4 and DR5 are DR6 and DR7, unless CR4.DE makes them undefined.
pub fn dr4_and_dr5() -> Outcome {
    let dr4 = snippet!(".byte 0x0f, 0x21, 0xe0");
    let dr5 = snippet!(".byte 0x0f, 0x21, 0xe8");
    check_eq!(dr4.run(Gprs::ZERO)?.rax, cpu::dr6()?, "DR4");
    check_eq!(dr5.run(Gprs::ZERO)?.rax, cpu::dr7()?, "DR5");
    cpu::set_cr4(cpu::cr4()? | DE)?;
    must_fault(&dr4, Gprs::ZERO, vector::UD, 0)?;
    must_fault(&dr5, Gprs::ZERO, vector::UD, 0)
}

pub fn refused_at_cpl3() -> Outcome {
    must_fault_user(&snippet!("mov rax, dr0"), Gprs::ZERO, vector::GP, 0)?;
    must_fault_user(&snippet!("mov dr7, rax"), Gprs::ZERO, vector::GP, 0)
}

/// DR7.GD makes the next access a fault, and is cleared by it.
pub fn general_detect() -> Outcome {
    if crate::left_out_for_tcg("DR7.GD") {
        return Ok(());
    }
    let read = snippet!("mov dr7, rax", "mov rbx, dr0");
    let trap = trapped(
        read.run(Gprs {
            rax: 0x2400,
            ..Gprs::ZERO
        }),
        vector::DB,
    )?;
    check_cause(&trap, BD)?;
    check_eq!(trap.rip(), read.start() + 3, "RIP");
    check_eq!(cpu::dr7()?, 0x400, "DR7");
    Ok(())
}

pub fn execution_breakpoint() -> Outcome {
    let target = snippet!("nop", "mov rax, rbx");
    cpu::set_dr1(target.start() + 1)?;
    cpu::set_dr7(0x404)?;
    let trap = trapped(target.run(Gprs::ZERO), vector::DB)?;
    check_eq!(trap.rip(), target.start() + 1, "RIP");
    check_cause(&trap, 2)?;
    Ok(())
}

pub fn execution_breakpoint_on_cpuid() -> Outcome {
    let target = snippet!("cpuid");
    cpu::set_dr0(target.start())?;
    cpu::set_dr7(0x401)?;
    let trap = faulted(&target, target.run(Gprs::ZERO), vector::DB, 0)?;
    check_cause(&trap, 1)?;
    Ok(())
}

pub fn write_breakpoint() -> Outcome {
    let address = crate::PAGES.address() + 128;
    cpu::set_dr2(address)?;
    cpu::set_dr7(0x400 | 1 << 4 | 0b1101 << 24)?;
    let load = snippet!("mov eax, [rdi]");
    let store = snippet!("mov dword ptr [rdi], 1", "nop");
    let registers = Gprs {
        rdi: address,
        ..Gprs::ZERO
    };
    load.run(registers)?;
    let trap = trapped(store.run(registers), vector::DB)?;
    check_eq!(trap.rip(), store.end() - 1, "RIP");
    check_cause(&trap, 4)?;
    Ok(())
}

pub fn access_breakpoint() -> Outcome {
    let address = crate::PAGES.address() + 256;
    cpu::set_dr3(address)?;
    cpu::set_dr7(0x400 | 1 << 6 | 0b1011 << 28)?;
    let load = snippet!("mov rax, [rdi]");
    let trap = trapped(
        load.run(Gprs {
            rdi: address,
            ..Gprs::ZERO
        }),
        vector::DB,
    )?;
    check_eq!(trap.rip(), load.end(), "RIP");
    check_cause(&trap, 8)?;
    Ok(())
}

/// Runs the snippet, which sets TF in its last instruction but one; the trap must come right after the last.
fn steps(snippet: &Snippet, registers: Gprs) -> Outcome {
    let trap = trapped(snippet.run(registers), vector::DB)?;
    check_eq!(trap.rip(), snippet.end(), "RIP");
    check_cause(&trap, BS)?;
    Ok(())
}

pub fn step_over_nop() -> Outcome {
    steps(&step!("nop"), Gprs::ZERO)
}

pub fn step_over_cpuid() -> Outcome {
    steps(&step!("cpuid"), Gprs::ZERO)
}

pub fn step_over_rdmsr() -> Outcome {
    steps(
        &step!("rdmsr"),
        Gprs {
            rcx: 0xc000_0080,
            ..Gprs::ZERO
        },
    )
}

pub fn step_over_in() -> Outcome {
    steps(
        &step!("in al, dx"),
        Gprs {
            rdx: crate::io::PORT,
            ..Gprs::ZERO
        },
    )
}

pub fn step_over_mov_cr() -> Outcome {
    steps(&step!("mov rax, cr0"), Gprs::ZERO)?;
    steps(
        &step!("mov cr0, rax"),
        Gprs {
            rax: cpu::cr0()?,
            ..Gprs::ZERO
        },
    )
}

pub fn step_over_wbinvd() -> Outcome {
    steps(&step!("wbinvd"), Gprs::ZERO)
}

/// A debug exception ends HLT (SDM vol. 2, HLT), whether interrupts are on or not.
pub fn step_over_hlt() -> Outcome {
    steps(&step!("hlt"), Gprs::ZERO)
}

pub fn step_over_hypercall() -> Outcome {
    if hypercall::is_vmmcall() {
        steps(&step!("vmmcall"), Gprs::ZERO)
    } else {
        steps(&step!("vmcall"), Gprs::ZERO)
    }
}

/// Each iteration of a repeated string instruction is a step of its own (SDM vol. 3 19.3.1.4).
pub fn step_over_rep_outs() -> Outcome {
    let snippet = step!("rep outsb");
    let registers = Gprs {
        rdx: crate::io::PORT,
        rcx: 3,
        rsi: crate::PAGES.address(),
        ..Gprs::ZERO
    };
    let trap = trapped(snippet.run(registers), vector::DB)?;
    check_eq!(trap.rip(), snippet.end() - 2, "RIP");
    check_eq!(trap.frame.gprs.rcx, 2, "RCX");
    check_eq!(trap.frame.gprs.rsi, registers.rsi + 1, "RSI");
    Ok(())
}

/// MOV to SS holds the trap back until after the next instruction, also where that one exits (SDM vol. 3 7.8.3).
pub fn step_in_shadow_of_mov_ss() -> Outcome {
    let registers = Gprs {
        rbx: 0x10,
        ..Gprs::ZERO
    };
    for snippet in [step!("mov ss, ebx", "nop"), step!("mov ss, ebx", "cpuid")] {
        steps(&snippet, registers)?;
    }
    Ok(())
}

/// A fault of the instruction that was to be stepped comes alone.
pub fn step_over_fault() -> Outcome {
    let snippet = step!("rdpmc");
    let trap = trapped(
        snippet.run(Gprs {
            rcx: 0x1234_5678,
            ..Gprs::ZERO
        }),
        vector::GP,
    )?;
    check_eq!(trap.rip(), snippet.end() - 2, "RIP");
    check_eq!(trap.dr6 & CAUSES, 0, "DR6");
    Ok(())
}

pub fn step_at_cpl3_over_cpuid() -> Outcome {
    let snippet = step!("cpuid");
    let trap = trapped(snippet.run_user(Gprs::ZERO), vector::DB)?;
    check_eq!(trap.rip(), snippet.end(), "RIP");
    Ok(())
}

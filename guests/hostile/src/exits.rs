//! Exits in a tight loop, one kind after the other: each does what its instruction promises every time, each can be killed at any
//! moment, and no loop keeps the CPU from anybody.

use plinth_rt::abi::{ABI_VERSION, Call, Reason, Status};
use plinth_rt::paging::{self, flag};
use plinth_rt::quirks::{is_tcg, left_out_for_tcg};
use plinth_rt::trap::{self, Gate, vector};
use plinth_rt::{Gprs, Outcome, Snippet, Why, check, check_eq, cpu, hypercall, snippet};
use plinth_testkit::kit::{MS, sleep};

use crate::attacker::{Attacker, FREE, Plan, fatal, inside, peek, poke, told_at};

cases!("exits":
    cpuid,
    rdmsr,
    wrmsr,
    input,
    output,
    hypercalls,
    unknown_hypercalls,
    yields,
    waits_for_what_has_passed,
    empty_console_writes,
    xsetbv,
    cr0,
    cr4,
    cr8,
    debug_registers,
    caches,
    pauses,
    page_flushes,
    refused_msrs,
    undefined_instructions,
    breakpoints,
    single_steps,
    watchpoints,
    page_faults,
    halts_with_an_interrupt_each,
    halts_for_good,
    debug_exception_of_its_own_delivery,
    killed_in_each_loop,
);

/// How often each is done.
const TIMES: u64 = 1000;

/// Runs a loop that counts R12 down to 0.
fn storm(code: &Snippet, registers: Gprs) -> Result<Gprs, Why> {
    let out = code.run(Gprs {
        r12: TIMES,
        ..registers
    })?;
    check_eq!(out.r12, 0, "R12");
    Ok(out)
}

/// Runs a loop with this handler for a vector; the handler counts in R13.
fn storm_of(vector: u8, handler: &Snippet, code: &Snippet, registers: Gprs) -> Result<Gprs, Why> {
    trap::set_gate(vector, Gate::interrupt(handler.start(), 3, 0));
    let out = storm(code, registers);
    trap::set_gate(vector, trap::default_gate(vector));
    out
}

fn cpuid() -> Outcome {
    inside(|| {
        let expected = cpu::cpuid(0x4000_0000, 0);
        let out = storm(
            &snippet!(
                "2: mov eax, 0x40000000",
                "cpuid",
                "xor eax, r8d",
                "or r9d, eax",
                "xor ebx, r10d",
                "or r9d, ebx",
                "dec r12",
                "jnz 2b"
            ),
            Gprs {
                r8: expected.eax.into(),
                r10: expected.ebx.into(),
                ..Gprs::ZERO
            },
        )?;
        check_eq!(out.r9, 0, "bits that differed");
        Ok(())
    })
}

fn rdmsr() -> Outcome {
    inside(|| {
        let efer = cpu::rdmsr(0xc000_0080)?;
        let out = storm(
            &snippet!(
                "2: mov ecx, 0xc0000080",
                "rdmsr",
                "xor eax, r8d",
                "or r9d, eax",
                "or r9d, edx",
                "dec r12",
                "jnz 2b"
            ),
            Gprs {
                r8: efer,
                ..Gprs::ZERO
            },
        )?;
        check_eq!(out.r9, 0, "bits that differed");
        Ok(())
    })
}

/// TSC_ADJUST or MTRRs are written by exits; each value is read back.
fn wrmsr() -> Outcome {
    inside(|| {
        let out = storm(
            &snippet!(
                "2: mov ecx, 0x201",
                "mov eax, r12d",
                "shl eax, 12",
                "xor edx, edx",
                "wrmsr",
                "mov r8d, eax",
                "rdmsr",
                "xor eax, r8d",
                "or r9d, eax",
                "dec r12",
                "jnz 2b"
            ),
            Gprs::ZERO,
        )?;
        check_eq!(out.r9, 0, "bits that differed");
        Ok(())
    })
}

fn input() -> Outcome {
    inside(|| {
        let out = storm(
            &snippet!(
                "mov r9d, -1",
                "2: xor eax, eax",
                "in eax, dx",
                "and r9d, eax",
                "inc edx",
                "and edx, 0xffff",
                "dec r12",
                "jnz 2b"
            ),
            Gprs {
                rdx: 0xcf0,
                ..Gprs::ZERO
            },
        )?;
        check_eq!(out.r9, 0xffff_ffff, "the AND of all");
        Ok(())
    })
}

fn output() -> Outcome {
    inside(|| {
        let out = storm(
            &snippet!("2: out dx, al", "inc eax", "dec r12", "jnz 2b"),
            Gprs {
                rdx: 0x3f8,
                ..Gprs::ZERO
            },
        )?;
        check_eq!(out.rax, TIMES, "RAX");
        Ok(())
    })
}

/// A loop of hypercalls with this number; R9 gathers what differs from status and value.
fn calls(number: u64, argument: u64, status: Status, value: u64) -> Outcome {
    let code = if hypercall::is_vmmcall() {
        snippet!(
            "2: mov rax, r8",
            "mov rdi, r10",
            "xor esi, esi",
            "vmmcall",
            "xor rax, r11",
            "or r13, rax",
            "xor rdx, r14",
            "or r13, rdx",
            "dec r12",
            "jnz 2b"
        )
    } else {
        snippet!(
            "2: mov rax, r8",
            "mov rdi, r10",
            "xor esi, esi",
            "vmcall",
            "xor rax, r11",
            "or r13, rax",
            "xor rdx, r14",
            "or r13, rdx",
            "dec r12",
            "jnz 2b"
        )
    };
    let out = storm(
        &code,
        Gprs {
            r8: number,
            r10: argument,
            r11: status.0,
            r14: value,
            ..Gprs::ZERO
        },
    )?;
    check_eq!(out.r13, 0, "bits that differed");
    Ok(())
}

fn hypercalls() -> Outcome {
    inside(|| calls(Call::VERSION.0, 0, Status::OK, ABI_VERSION.into()))
}

fn unknown_hypercalls() -> Outcome {
    inside(|| calls(0x1234_5678, 0, Status::NO_CALL, 0))
}

fn yields() -> Outcome {
    inside(|| calls(Call::YIELD.0, 0, Status::OK, 0))
}

fn waits_for_what_has_passed() -> Outcome {
    inside(|| {
        calls(Call::WAIT.0, 0, Status::TIMED_OUT, 0)?;
        calls(Call::WAIT.0, 1, Status::TIMED_OUT, 0)
    })
}

fn empty_console_writes() -> Outcome {
    inside(|| calls(Call::CONSOLE_WRITE.0, u64::MAX, Status::OK, 0))
}

fn xsetbv() -> Outcome {
    inside(|| {
        if cpu::cpuid(1, 0).ecx & 1 << 26 == 0 {
            return plinth_rt::suite::must_fault(&snippet!("xsetbv"), Gprs::ZERO, vector::UD, 0);
        }
        cpu::set_cr4(cpu::cr4()? | 1 << 18)?;
        let out = storm(
            &snippet!(
                "2: xor ecx, ecx",
                "xor edx, edx",
                "mov eax, r12d",
                "and eax, 2",
                "or eax, 1",
                "mov r8d, eax",
                "xsetbv",
                "xgetbv",
                "xor eax, r8d",
                "or r9d, eax",
                "dec r12",
                "jnz 2b"
            ),
            Gprs::ZERO,
        )?;
        check_eq!(out.r9, 0, "bits that differed");
        Ok(())
    })
}

/// TS set and cleared, and read; each time the first x87 instruction would tell.
fn cr0() -> Outcome {
    inside(|| {
        let out = storm(
            &snippet!(
                "2: mov rax, cr0",
                "mov r8, rax",
                "or eax, 8",
                "mov cr0, rax",
                "mov rbx, cr0",
                "xor rbx, rax",
                "or r9, rbx",
                "clts",
                "fnop",
                "mov rbx, cr0",
                "xor rbx, r8",
                "or r9, rbx",
                "dec r12",
                "jnz 2b"
            ),
            Gprs::ZERO,
        )?;
        check_eq!(out.r9, 0, "bits that differed");
        Ok(())
    })
}

/// PGE on and off, which flushes everything.
fn cr4() -> Outcome {
    inside(|| {
        let out = storm(
            &snippet!(
                "2: mov rax, cr4",
                "xor eax, 0x80",
                "mov cr4, rax",
                "mov rbx, cr4",
                "xor rbx, rax",
                "or r9, rbx",
                "dec r12",
                "jnz 2b"
            ),
            Gprs::ZERO,
        )?;
        check_eq!(out.r9, 0, "bits that differed");
        Ok(())
    })
}

fn cr8() -> Outcome {
    inside(|| {
        let out = storm(
            &snippet!(
                "2: mov eax, r12d",
                "and eax, 15",
                "mov cr8, rax",
                "mov rbx, cr8",
                "xor rbx, rax",
                "or r9, rbx",
                "dec r12",
                "jnz 2b"
            ),
            Gprs::ZERO,
        )?;
        check_eq!(out.r9, 0, "bits that differed");
        Ok(())
    })
}

fn debug_registers() -> Outcome {
    inside(|| {
        let out = storm(
            &snippet!(
                "2: mov rax, r12",
                "shl rax, 20",
                "mov dr1, rax",
                "mov rbx, dr1",
                "xor rbx, rax",
                "or r9, rbx",
                "mov eax, 0x400",
                "mov dr7, rax",
                "mov rbx, dr7",
                "xor rbx, rax",
                "or r9, rbx",
                "dec r12",
                "jnz 2b"
            ),
            Gprs::ZERO,
        )?;
        check_eq!(out.r9, 0, "bits that differed");
        Ok(())
    })
}

/// INVD must not throw away what was written just before it.
fn caches() -> Outcome {
    inside(|| {
        let out = storm(
            &snippet!(
                "2: mov [rdi], r12",
                "invd",
                "mov rax, [rdi]",
                "xor rax, r12",
                "or r9, rax",
                "wbinvd",
                "dec r12",
                "jnz 2b"
            ),
            crate::attacker::at(FREE),
        )?;
        check_eq!(out.r9, 0, "bits that differed");
        Ok(())
    })
}

fn pauses() -> Outcome {
    inside(|| storm(&snippet!("2: pause", "dec r12", "jnz 2b"), Gprs::ZERO).map(drop))
}

/// A page that is mapped to another frame each time: after INVLPG the new one is seen.
fn page_flushes() -> Outcome {
    inside(|| {
        let page = paging::map(4, FREE, flag::ALL);
        poke(FREE, 1);
        poke(FREE + 0x1000, 2);
        for round in 0..TIMES / 4 {
            let expected = 1 + round % 2;
            paging::set_entry(4, (FREE + (round % 2) * 0x1000) | flag::ALL);
            check_eq!(peek(page), expected, "the page");
        }
        Ok(())
    })
}

/// Counts in R13, and passes over an instruction of two bytes.
fn count_and_pass() -> Snippet {
    snippet!("inc r13", "add qword ptr [rsp], 2", "iretq")
}

/// As [`count_and_pass`], with an error code, which R14 gathers.
fn count_and_pass_with_error() -> Snippet {
    snippet!(
        "inc r13",
        "or r14, [rsp]",
        "add rsp, 8",
        "add qword ptr [rsp], 2",
        "iretq"
    )
}

fn refused_msrs() -> Outcome {
    inside(|| {
        let out = storm_of(
            vector::GP,
            &count_and_pass_with_error(),
            &snippet!(
                "2: mov ecx, r12d",
                "or ecx, 0x480",
                "and ecx, 0x48f",
                "rdmsr",
                "wrmsr",
                "dec r12",
                "jnz 2b"
            ),
            Gprs::ZERO,
        )?;
        check_eq!(out.r13, 2 * TIMES, "exceptions");
        check_eq!(out.r14, 0, "error codes");
        Ok(())
    })
}

fn undefined_instructions() -> Outcome {
    inside(|| {
        let out = storm_of(
            vector::UD,
            &count_and_pass(),
            &snippet!("2: ud2", "dec r12", "jnz 2b"),
            Gprs::ZERO,
        )?;
        check_eq!(out.r13, TIMES, "exceptions");
        Ok(())
    })
}

fn breakpoints() -> Outcome {
    inside(|| {
        let out = storm_of(
            vector::BP,
            &snippet!("inc r13", "iretq"),
            &snippet!("2: int3", "dec r12", "jnz 2b"),
            Gprs::ZERO,
        )?;
        check_eq!(out.r13, TIMES, "exceptions");
        Ok(())
    })
}

/// TF on all the while: a #DB after each of the loop's two instructions.
fn single_steps() -> Outcome {
    inside(|| {
        let out = storm_of(
            vector::DB,
            &snippet!("inc r13", "iretq"),
            &snippet!(
                "pushfq",
                "or dword ptr [rsp], 0x100",
                "popfq",
                "2: dec r12",
                "jnz 2b",
                "pushfq",
                "and dword ptr [rsp], 0xfffffeff",
                "popfq",
            ),
            Gprs::ZERO,
        )?;
        // Those of the loop, and PUSHFQ, AND and POPFQ behind it.
        let steps = out.r13 - 2 * TIMES;
        check!((2..=3).contains(&steps), "{} exceptions", out.r13);
        Ok(())
    })
}

/// A write to a watched word each time: a trap behind the instruction.
///
/// QEMU's VMRUN loads DR7 but arms nothing of what it enables, so that a vCPU that leaves its CPU for another one's turn loses its
/// watchpoints. There one of a few rounds must get through without that.
fn watchpoints() -> Outcome {
    inside(|| {
        let rounds = if is_tcg() { 20 } else { 1 };
        let mut exceptions = 0;
        for _ in 0..rounds {
            cpu::set_dr0(FREE)?;
            // DR0: writes of eight bytes, local.
            cpu::set_dr7(0x400 | 1 | 0b1001 << 16)?;
            let out = storm_of(
                vector::DB,
                &snippet!("inc r13", "iretq"),
                &snippet!("2: mov [rdi], r12", "dec r12", "jnz 2b"),
                crate::attacker::at(FREE),
            );
            cpu::set_dr7(0x400)?;
            exceptions = out?.r13;
            if exceptions == TIMES {
                break;
            }
        }
        check_eq!(exceptions, TIMES, "exceptions");
        Ok(())
    })
}

fn page_faults() -> Outcome {
    inside(|| {
        let page = paging::map(4, FREE, flag::ALL);
        paging::set_entry(4, 0);
        let out = storm_of(
            vector::PF,
            &count_and_pass_with_error(),
            &snippet!("2: mov [rdi], eax", "dec r12", "jnz 2b"),
            crate::attacker::at(page),
        )?;
        check_eq!(out.r13, TIMES, "exceptions");
        check_eq!(out.r14, 2, "error codes");
        Ok(())
    })
}

/// HLT each time with an interrupt that the vCPU sends itself; none may be lost, or it would sleep for ever.
fn halts_with_an_interrupt_each() -> Outcome {
    let attacker = Attacker::new(&Plan::new(|| {
        let handle = crate::attacker::ordered(0);
        let code = if hypercall::is_vmmcall() {
            snippet!(
                "2: mov eax, 0x26",
                "mov rdi, r8",
                "mov esi, 0x41",
                "vmmcall",
                "or r9, rax",
                "sti",
                "hlt",
                "cli",
                "dec r12",
                "jnz 2b"
            )
        } else {
            snippet!(
                "2: mov eax, 0x26",
                "mov rdi, r8",
                "mov esi, 0x41",
                "vmcall",
                "or r9, rax",
                "sti",
                "hlt",
                "cli",
                "dec r12",
                "jnz 2b"
            )
        };
        let out = storm_of(
            0x41,
            &snippet!("inc r13", "iretq"),
            &code,
            Gprs {
                r8: handle,
                ..Gprs::ZERO
            },
        )?;
        check_eq!(out.r9, 0, "bits of the statuses");
        check_eq!(out.r13, TIMES, "interrupts");
        Ok(())
    }))?;
    attacker.succeeds_with(attacker.vcpu(0).any(), plinth_rt::abi::rights::CONTROL)
}

/// With interrupts off, and with interrupts on and nobody who could send one.
fn halts_for_good() -> Outcome {
    fatal(
        || {
            snippet!("2: hlt", "jmp 2b").run(Gprs::ZERO)?;
            Ok(())
        },
        Reason::HALTED,
    )?;
    fatal(
        || {
            snippet!("sti", "2: hlt", "jmp 2b").run(Gprs::ZERO)?;
            Ok(())
        },
        Reason::HALTED,
    )
    .map(drop)
}

/// #DB by a watchpoint on the very stack to which #DB pushes (CVE-2015-8104): a CPU may deliver for ever. Whatever becomes of
/// the attacker, it can be ended.
fn debug_exception_of_its_own_delivery() -> Outcome {
    if left_out_for_tcg("watchpoints in the delivery of exceptions, and gives up at one") {
        return Ok(());
    }
    let attacker = Attacker::new(&Plan::new(|| {
        let handler = snippet!("inc qword ptr [0x2000]", "iretq");
        trap::set_gate(vector::DB, Gate::interrupt(handler.start(), 0, 0));
        // The frame that the handler finds: 40 bytes below FREE + 0x1000.
        cpu::set_dr0(FREE + 0xff8)?;
        cpu::set_dr1(FREE + 0xff0)?;
        cpu::set_dr7(0x400 | 5 | 0b1001 << 16 | 0b1001 << 20)?;
        snippet!("mov rsp, rdi", "2: mov [rdi - 8], rax", "jmp 2b")
            .run(crate::attacker::at(FREE + 0x1000))?;
        Ok(())
    }))?;
    attacker.start()?;
    attacker.until_told(0, 10)?;
    sleep(3 * MS);
    attacker.is_killed()
}

/// An endless loop of each, killed after a moment.
fn killed_in_each_loop() -> Outcome {
    fn endless(index: u64) -> Snippet {
        match index {
            0 => snippet!("2: xor eax, eax", "cpuid", "jmp 2b"),
            1 => snippet!("2: mov ecx, 0xc0000080", "rdmsr", "jmp 2b"),
            2 => snippet!("2: in al, 0x80", "jmp 2b"),
            3 => snippet!("2: mov rax, cr0", "mov cr0, rax", "jmp 2b"),
            4 => snippet!("2: wbinvd", "jmp 2b"),
            5 => snippet!("2: pause", "jmp 2b"),
            6 => snippet!("2: mov rax, cr3", "mov cr3, rax", "jmp 2b"),
            7 => snippet!("cli", "2: jmp 2b"),
            8 => snippet!("2: mov dr7, rax", "jmp 2b"),
            _ => snippet!("2: invlpg [rax]", "jmp 2b"),
        }
    }
    for index in 0..10 {
        let attacker = Attacker::new(&Plan::new(|| {
            crate::attacker::tell(0, 1);
            endless(crate::attacker::ordered(0)).run(Gprs {
                rax: 0x400,
                ..Gprs::ZERO
            })?;
            Ok(())
        }))?;
        attacker.order(0, index)?;
        attacker.start()?;
        attacker.until_told(0, 1)?;
        sleep(MS / 2);
        attacker.is_killed()?;
        check!(attacker.word(told_at(0))? == 1, "loop {index}");
    }
    Ok(())
}

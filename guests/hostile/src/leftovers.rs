//! What a guest leaves behind in registers, memory and controllers, and what the next one on the same CPU finds there: nothing.

use plinth_rt::abi::domain::platform;
use plinth_rt::abi::{Schedule, Status};
use plinth_rt::paging::{self, flag};
use plinth_rt::{Gprs, Outcome, Snippet, Why, check, check_eq, cpu, hypercall, snippet};
use plinth_testkit::child::{CELLS, Child, DATA, Plan as ChildPlan};
use plinth_testkit::kit::{MS, Must, sleep};

use crate::attacker::{Attacker, FREE, Plan, RAM, at, image_end, peek, tell};

cases!("leftovers":
    general_registers,
    vector_registers,
    upper_halves_of_vector_registers,
    x87_and_mxcsr,
    debug_registers,
    control_registers,
    msrs,
    local_apic,
    time_stamp_counter,
    pending_interrupts,
    memory,
    two_take_turns_on_a_cpu,
);

const CPU: u32 = 1;

fn pin(attacker: &Attacker) -> Outcome {
    attacker
        .vcpu(0)
        .schedule(&Schedule {
            cpu: CPU,
            ..Schedule::USUAL
        })
        .must("pin")
}

/// One attacker fills what it can, and is killed in its loop; the next one, on the same CPU, must find nothing of it.
fn left(platform: u32, fills: fn() -> Outcome, finds: fn() -> Outcome) -> Outcome {
    for _ in 0..2 {
        let first = Attacker::new(&Plan::new(fills).on(platform))?;
        pin(&first)?;
        first.start()?;
        first.until_told(0, 1)?;
        // Made while the other runs, started when it has ended.
        let second = Attacker::new(&Plan::new(finds).on(platform))?;
        pin(&second)?;
        first.is_killed()?;
        second.start()?;
        second.succeeds()?;
    }
    Ok(())
}

/// Says that it is done, and spins with all that it has set.
fn spin() -> Outcome {
    tell(0, 1);
    snippet!("2: jmp 2b").run(Gprs::ZERO)?;
    Ok(())
}

/// Those of a vCPU of which nobody has set the state but where it starts.
fn general_registers() -> Outcome {
    let filler = snippet!(
        "mov rax, -1",
        "mov rbx, -2",
        "mov rcx, -3",
        "mov rdx, -4",
        "mov rsi, -5",
        "mov rdi, -6",
        "mov rbp, -7",
        "mov r8, -8",
        "mov r9, -9",
        "mov r10, -10",
        "mov r11, -11",
        "mov r12, -12",
        "mov r13, -13",
        "mov r14, -14",
        "lock inc qword ptr [0x2000]",
        "2: jmp 2b"
    );
    let first = Child::new(&ChildPlan::new(filler))?;
    first.pin(0, CPU)?;
    first.start()?;
    first.until_word(DATA, 1)?;
    let second = Child::new(&ChildPlan::new(snippet!(
        "mov [0x2800], rax",
        "mov [0x2808], rbx",
        "mov [0x2810], rcx",
        "mov [0x2818], rdx",
        "mov [0x2820], rsi",
        "mov [0x2828], rdi",
        "mov [0x2830], rbp",
        "mov [0x2838], r8",
        "mov [0x2840], r9",
        "mov [0x2848], r10",
        "mov [0x2850], r11",
        "mov [0x2858], r12",
        "mov [0x2860], r13",
        "mov [0x2868], r14",
        "xor edi, edi",
        "mov eax, 4",
        "call r15"
    )))?;
    second.pin(0, CPU)?;
    first.domain.kill().must("kill")?;
    second.start()?;
    second.ends_with(0)?;
    for register in 0..14 {
        check_eq!(second.word(CELLS + register * 8)?, 0, "a general register");
    }
    Ok(())
}

fn fill_xmm() -> Snippet {
    snippet!(
        "mov rax, 0x5ec7e75ec7e75ec7",
        "movq xmm0, rax",
        "punpcklqdq xmm0, xmm0",
        ".irp n, 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
        "movdqa xmm\\n, xmm0",
        ".endr",
    )
}

fn vector_registers() -> Outcome {
    left(
        0,
        || {
            fill_xmm().run(Gprs::ZERO)?;
            spin()
        },
        || {
            snippet!("fxsave64 [rdi]").run(at(FREE))?;
            for offset in (160..416).step_by(8) {
                check_eq!(peek(FREE + offset), 0, "half of an XMM register");
            }
            Ok(())
        },
    )
}

/// Switches AVX on; false where there is none.
fn avx() -> Result<bool, Why> {
    if cpu::cpuid(1, 0).ecx >> 26 & 1 == 0 || cpu::cpuid(0xd, 0).eax & 4 == 0 {
        return Ok(false);
    }
    cpu::set_cr4(cpu::cr4()? | 1 << 18)?;
    cpu::xsetbv(0, 7)?;
    Ok(true)
}

/// They cannot be seen before XCR0 is set, and are there all the same.
fn upper_halves_of_vector_registers() -> Outcome {
    left(
        0,
        || {
            if avx()? {
                fill_xmm().run(Gprs::ZERO)?;
                snippet!(
                    ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
                    "vinsertf128 ymm\\n, ymm\\n, xmm\\n, 1",
                    ".endr",
                )
                .run(Gprs::ZERO)?;
            }
            spin()
        },
        || {
            if !avx()? {
                return Ok(());
            }
            snippet!(
                ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
                "vextractf128 [rdi], ymm\\n, 1",
                "add rdi, 16",
                ".endr",
            )
            .run(at(FREE))?;
            for offset in (0..256).step_by(8) {
                check_eq!(peek(FREE + offset), 0, "half of an upper half");
            }
            Ok(())
        },
    )
}

fn x87_and_mxcsr() -> Outcome {
    left(
        0,
        || {
            snippet!(
                "mov dword ptr [rdi], 0x7f80",
                "ldmxcsr [rdi]",
                "fninit",
                "fldpi",
                "fldl2e",
                "fldpi",
                "mov word ptr [rdi], 0x0c7f",
                "fldcw [rdi]",
            )
            .run(at(FREE))?;
            spin()
        },
        || {
            snippet!("fxsave64 [rdi]").run(at(FREE))?;
            let control = peek(FREE) & 0xffff;
            // After a reset, and after FNINIT (SDM vol. 3 table 11-1).
            check!(matches!(control, 0x40 | 0x37f), "FCW {control:#x}");
            check_eq!(peek(FREE) >> 16 & 0xffff, 0, "FSW");
            check_eq!(peek(FREE + 24) & 0xffff_ffff, 0x1f80, "MXCSR");
            for offset in (32..160).step_by(8) {
                check_eq!(peek(FREE + offset), 0, "half of an x87 register");
            }
            check_eq!(peek(FREE + 8), 0, "FIP");
            check_eq!(peek(FREE + 16), 0, "FDP");
            Ok(())
        },
    )
}

fn debug_registers() -> Outcome {
    left(
        0,
        || {
            for (index, set) in [cpu::set_dr0, cpu::set_dr1, cpu::set_dr2, cpu::set_dr3]
                .into_iter()
                .enumerate()
            {
                set(0x1111_1111 * (index as u64 + 1))?;
            }
            cpu::set_dr7(0x4aa)?;
            spin()
        },
        || {
            for read in [cpu::dr0, cpu::dr1, cpu::dr2, cpu::dr3] {
                check_eq!(read()?, 0, "an address");
            }
            check_eq!(cpu::dr7()?, 0x400, "DR7");
            check_eq!(cpu::dr6()? & 0xe00f, 0, "DR6");
            Ok(())
        },
    )
}

fn control_registers() -> Outcome {
    left(
        platform::PC,
        || {
            cpu::set_cr2(0x2222_2222_2222)?;
            cpu::set_cr8(9)?;
            cpu::set_cr4(cpu::cr4()? | 0x8c)?;
            cpu::set_cr0(cpu::cr0()? | 0x4_0008)?;
            spin()
        },
        || {
            check_eq!(cpu::cr2()?, 0, "CR2");
            check_eq!(cpu::cr8()?, 0, "CR8");
            check_eq!(cpu::cr4()?, 0x620, "CR4");
            check_eq!(cpu::cr0()?, 0x8001_0033, "CR0");
            Ok(())
        },
    )
}

/// MSRs that WRMSR reaches without an exit, and those that do exit; with what a reset leaves in each (SDM vol. 3 table 11-1).
const MSRS: [(u32, u64); 15] = [
    (0x174, 0),
    (0x175, 0),
    (0x176, 0),
    (0x201, 0),
    (0x250, 0),
    (0x277, 0x0007_0406_0007_0406),
    (0x2ff, 0),
    (0xc000_0081, 0),
    (0xc000_0082, 0),
    (0xc000_0083, 0),
    (0xc000_0084, 0),
    (0xc000_0100, 0),
    (0xc000_0101, 0),
    (0xc000_0102, 0),
    (0xc000_0103, 0),
];

fn msrs() -> Outcome {
    left(
        0,
        || {
            for (msr, reset) in MSRS {
                if cpu::rdmsr(msr).is_ok() {
                    // Legal in each: 6 is a memory type.
                    let value = match msr {
                        0x201 => 0x8000_0800,
                        0x2ff => 6,
                        0x277 | 0x250 => 0x0606_0606_0606_0606,
                        _ => 0x1234_5678,
                    };
                    cpu::wrmsr(msr, value)?;
                    check!(cpu::rdmsr(msr)? != reset, "MSR {msr:#x} was not filled");
                }
            }
            spin()
        },
        || {
            for (msr, reset) in MSRS {
                if let Ok(value) = cpu::rdmsr(msr) {
                    check!(value == reset, "MSR {msr:#x}: {value:#x}");
                }
            }
            Ok(())
        },
    )
}

/// With requests pending, entries of the local vector table set, and its timer counting.
fn local_apic() -> Outcome {
    const OFFSETS: [(u64, u64); 10] = [
        (0x80, 0),
        (0xd0, 0),
        (0xe0, 0xffff_ffff),
        (0xf0, 0xff),
        (0x220, 0),
        (0x280, 0),
        (0x300, 0),
        (0x320, 0x1_0000),
        (0x350, 0x1_0000),
        (0x380, 0),
    ];
    left(
        platform::PC,
        || {
            let base = paging::map(0, 0xfee0_0000, flag::ALL);
            for (offset, value) in [
                (0xf0, 0x1ff),
                (0x80, 0x20),
                (0xd0, 0xff00_0000),
                (0x300, 0x4_0055),
                (0x350, 0x8700),
                (0x320, 0x2_0077),
                (0x380, 0x0fff_ffff),
            ] {
                snippet!("mov [rdi], eax").run(Gprs {
                    rax: value,
                    ..at(base + offset)
                })?;
            }
            spin()
        },
        || {
            let base = paging::map(0, 0xfee0_0000, flag::ALL);
            for (offset, expected) in OFFSETS {
                let seen = snippet!("mov eax, [rdi]").run(at(base + offset))?.rax;
                check!(
                    seen == expected,
                    "{offset:#x}: {seen:#x}, expected {expected:#x}"
                );
            }
            Ok(())
        },
    )
}

/// The offset that the other gave itself.
fn time_stamp_counter() -> Outcome {
    left(
        0,
        || {
            cpu::wrmsr(0x10, 1 << 60)?;
            spin()
        },
        || {
            check!(cpu::rdtsc() < 1 << 59, "TSC {:#x}", cpu::rdtsc());
            if let Ok(adjust) = cpu::rdmsr(0x3b) {
                check_eq!(adjust, 0, "TSC_ADJUST");
            }
            Ok(())
        },
    )
}

/// Interrupts that the first was never open to.
fn pending_interrupts() -> Outcome {
    for _ in 0..3 {
        let first = Attacker::new(&Plan::new(spin))?;
        pin(&first)?;
        first.start()?;
        first.until_told(0, 1)?;
        for vector in 32..=255 {
            first.vcpu(0).interrupt(vector).must("interrupt")?;
        }
        let second = Attacker::new(&Plan::new(|| {
            // Any would be an exception that nobody expects.
            snippet!("sti", "nop", "2: dec ecx", "jnz 2b", "cli").run(Gprs {
                rcx: 10_000,
                ..Gprs::ZERO
            })?;
            let (status, _) = hypercall::call(plinth_rt::abi::Call::WAIT, [0]);
            check!(status == Status::TIMED_OUT, "an event: {status:?}");
            Ok(())
        }))?;
        pin(&second)?;
        first.is_killed()?;
        second.start()?;
        second.succeeds()?;
    }
    Ok(())
}

/// The first writes all of its memory but what it runs on; the second is given memory at once when that is back.
fn memory() -> Outcome {
    /// From the free pages to the image, and between image and stacks.
    fn ranges() -> [(u64, u64); 2] {
        [(FREE, 1 << 20), (image_end(), RAM - 0x2_0000)]
    }
    for _ in 0..3 {
        let first = Attacker::new(&Plan::new(|| {
            for (start, end) in ranges() {
                snippet!("rep stosq").run(Gprs {
                    rax: 0x5ec7_e75e_c7e7_5ec7,
                    rcx: (end - start) / 8,
                    ..at(start)
                })?;
            }
            Ok(())
        }))?;
        first.start()?;
        first.succeeds()?;
        first.domain.destroy().must("destroy")?;
        drop(first);
        let second = Attacker::new(&Plan::new(|| {
            for (start, end) in ranges() {
                let out = snippet!("repe scasq", "setne al").run(Gprs {
                    rcx: (end - start) / 8,
                    ..at(start)
                })?;
                check!(out.rax == 0, "the word before {:#x} is not zero", out.rdi);
            }
            Ok(())
        }))?;
        second.start()?;
        second.succeeds()?;
    }
    Ok(())
}

/// Two on one CPU, each with values of its own in vector, debug and general registers and MSRs, which each finds unchanged in each round.
fn two_take_turns_on_a_cpu() -> Outcome {
    let code = snippet!(
        "mov r14, rbx",
        "movq xmm7, r14",
        "mov dr2, r14",
        "mov cr2, r14",
        "mov ecx, 0xc0000102",
        "mov eax, r14d",
        "xor edx, edx",
        "wrmsr",
        "2: cmp r14, rbx",
        "jne 9f",
        "movq rax, xmm7",
        "cmp rax, rbx",
        "jne 9f",
        "mov rax, dr2",
        "cmp rax, rbx",
        "jne 9f",
        "mov rax, cr2",
        "cmp rax, rbx",
        "jne 9f",
        "rdmsr",
        "cmp eax, ebx",
        "jne 9f",
        "inc qword ptr [0x2000]",
        // YIELD.
        "mov eax, 3",
        "call r15",
        "jmp 2b",
        "9: mov qword ptr [0x2008], 1",
        "8: jmp 8b",
    );
    let make = |value: u64| {
        let child = Child::new(&ChildPlan::new(code))?;
        child.set(0, |state| state.rbx = value)?;
        child.pin(0, CPU)?;
        child.start()?;
        Ok::<_, Why>(child)
    };
    let children = [make(0x1234_5678)?, make(0x0fed_cba9)?];
    sleep(5 * MS);
    for child in &children {
        child.until_change(DATA)?;
        check_eq!(child.word(DATA + 8)?, 0, "a value that has changed");
    }
    Ok(())
}

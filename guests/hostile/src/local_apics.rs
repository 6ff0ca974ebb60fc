//! Storms on a PC's interrupt controllers: registers that are not there, vectors that are illegal, messages to nobody and to everybody,
//! timers that never rest. The attacker is a PC; SDM vol. 3 chapter 11, and `docs/abi.md` for what it leaves open.

use core::arch::asm;

use plinth_rt::abi::domain::{fault, platform};
use plinth_rt::abi::{Call, Reason, Status};
use plinth_rt::paging::{self, flag};
use plinth_rt::quirks::is_tcg;
use plinth_rt::trap::{self, Gate, vector};
use plinth_rt::{Gprs, Outcome, Snippet, check, check_eq, cpu, snippet};
use plinth_testkit::kit::{MS, Must, Random, raw, sleep, to_the_end};

use crate::attacker::{Attacker, FREE, Plan, at, carried_out, fatal_to, heard, nested_fault, tell};

cases!("local_apics":
    every_offset_is_read,
    every_offset_is_written,
    narrow_and_wide_accesses,
    accesses_by_every_general_register,
    illegal_vectors_are_sent,
    illegal_vectors_are_sent_by_the_self_register,
    self_register_in_every_state,
    nmi_to_oneself_in_a_single_step,
    reserved_delivery_modes,
    interrupts_to_nobody,
    end_of_interrupt_without_one,
    startup_to_oneself,
    init_to_oneself,
    nmis_to_oneself,
    every_vector_to_oneself,
    timer_with_a_count_of_zero,
    timer_with_every_divisor,
    timer_with_an_illegal_vector,
    timer_with_a_period_of_one,
    deadlines_that_have_passed,
    local_vectors_of_every_kind,
    changes_of_mode,
    page_of_a_disabled_apic,
    page_in_x2apic_mode,
    command_with_reserved_bits,
    broadcasts_by_two_vcpus,
    ping_pong,
    init_and_startup_again_and_again,
    nmis_to_a_vcpu_that_waits,
    io_apic_every_index,
    io_apic_line_that_stays_asserted,
    messages_of_every_kind,
    vcpu_interrupts_of_every_vector,
);

const APIC: u64 = 0xfee0_0000;
const IO_APIC: u64 = 0xfec0_0000;

/// Offsets of registers.
const VERSION: u64 = 0x30;
const TASK_PRIORITY: u64 = 0x80;
const END_OF_INTERRUPT: u64 = 0xb0;
const SPURIOUS: u64 = 0xf0;
const IN_SERVICE: u64 = 0x100;
const REQUESTS: u64 = 0x200;
const ERRORS: u64 = 0x280;
const COMMAND: u64 = 0x300;
const COMMAND_HIGH: u64 = 0x310;
const TIMER: u64 = 0x320;
const INITIAL_COUNT: u64 = 0x380;
const CURRENT_COUNT: u64 = 0x390;
const DIVISOR: u64 = 0x3e0;

fn pc(attack: fn() -> Outcome) -> Plan {
    Plan::new(attack).on(platform::PC)
}

fn inside_a_pc(attack: fn() -> Outcome) -> Outcome {
    carried_out(&pc(attack))
}

/// The registers in memory: their linear address. The APIC is enabled by software, and nothing is masked by priority.
fn registers() -> u64 {
    let base = paging::map(0, APIC, flag::ALL);
    write(base + SPURIOUS, 0x1ff);
    base
}

/// The same in x2APIC mode.
fn x2apic() -> Outcome {
    registers();
    Ok(cpu::wrmsr(0x1b, APIC | 0xd00)?)
}

fn read(address: u64) -> u32 {
    let value;
    // SAFETY: the callers pass addresses of interrupt controllers' registers, which hold nothing of Rust's.
    unsafe { asm!("mov {:e}, [{}]", out(reg) value, in(reg) address, options(nostack)) };
    value
}

fn write(address: u64, value: u32) {
    // SAFETY: as in `read`; what comes of it is the attack.
    unsafe { asm!("mov [{}], {:e}", in(reg) address, in(reg) value, options(nostack)) };
}

/// What the error register has gathered since it was last asked.
fn errors(base: u64) -> u32 {
    write(base + ERRORS, 0);
    read(base + ERRORS)
}

/// The OR of the eight registers from this one on: of ISR, TMR or IRR.
fn any_of(base: u64, register: u64) -> u32 {
    (0..8).fold(0, |sum, index| sum | read(base + register + index * 0x10))
}

/// Nothing was requested, nothing is being served, and the version is as ever.
fn is_at_rest(base: u64) -> Outcome {
    check_eq!(any_of(base, REQUESTS), 0, "IRR");
    check_eq!(any_of(base, IN_SERVICE), 0, "ISR");
    check_eq!(read(base + VERSION) & 0xff, 0x14, "version");
    Ok(())
}

/// Lets a vector come to a handler of assembled code.
fn handle(vector: u8, handler: &Snippet) {
    trap::set_gate(vector, Gate::interrupt(handler.start(), 0, 0));
}

/// Counts in the first word that an attacker tells, and ends the interrupt by the register in memory at R15.
fn counts() -> Snippet {
    snippet!(
        "lock inc qword ptr [0x2000]",
        "mov dword ptr [r15 + 0xb0], 0",
        "iretq"
    )
}

fn every_offset_is_read() -> Outcome {
    inside_a_pc(|| {
        let base = registers();
        let version = read(base + VERSION);
        for _ in 0..2 {
            for offset in (0..0x1000).step_by(4) {
                read(base + offset);
            }
        }
        check_eq!(read(base + VERSION), version, "version");
        is_at_rest(base)
    })
}

/// Everything but the command: all ones, zeroes, and what is neither. What is read-only is as before.
fn every_offset_is_written() -> Outcome {
    inside_a_pc(|| {
        let base = registers();
        let mut random = Random::new(0x0ff5_e700);
        let version = read(base + VERSION);
        for round in 0..3 {
            for offset in (0..0x1000).step_by(4) {
                if (COMMAND..COMMAND + 0x20).contains(&offset) {
                    continue;
                }
                write(
                    base + offset,
                    match round {
                        0 => u32::MAX,
                        1 => random.number() as u32,
                        _ => 0,
                    },
                );
            }
        }
        check_eq!(read(base + VERSION), version, "version");
        check_eq!(any_of(base, IN_SERVICE), 0, "ISR");
        check_eq!(read(base + CURRENT_COUNT), 0, "current count");
        Ok(())
    })
}

/// A narrow read gives its part, a narrow write does nothing, a wide access has the register as its lower half (docs/abi.md).
fn narrow_and_wide_accesses() -> Outcome {
    inside_a_pc(|| {
        let base = registers();
        write(base + TASK_PRIORITY, 0x35);
        let wide = snippet!("mov rax, [rdi]")
            .run(at(base + TASK_PRIORITY))?
            .rax;
        check_eq!(wide, 0x35, "eight bytes");
        let version = read(base + VERSION);
        for (offset, shift) in [(0, 0), (1, 8), (2, 16), (3, 24)] {
            let byte = snippet!("movzx eax, byte ptr [rdi]").run(at(base + VERSION + offset))?;
            check_eq!(byte.rax, u64::from(version >> shift & 0xff), "a byte");
        }
        for code in [
            snippet!("mov byte ptr [rdi], 0x77"),
            snippet!("mov word ptr [rdi], 0x77"),
            snippet!("mov dword ptr [rdi + 2], 0x77"),
        ] {
            code.run(at(base + TASK_PRIORITY))?;
            check_eq!(read(base + TASK_PRIORITY), 0x35, "after a narrow write");
        }
        snippet!(
            "mov rax, -1",
            "shl rax, 32",
            "mov al, 0x42",
            "mov [rdi], rax"
        )
        .run(at(base + TASK_PRIORITY))?;
        check_eq!(read(base + TASK_PRIORITY), 0x42, "after a wide write");
        Ok(())
    })
}

/// Writes a value to TPR from a register, and reads it back into the same, in which all bits are set before; `$whole` is the whole of it.
macro_rules! through {
    ($whole:literal, $half:literal, $value:literal) => {
        concat!(
            "mov ",
            $half,
            ", ",
            $value,
            "\n",
            "mov [rdi + 0x80], ",
            $half,
            "\n",
            "mov ",
            $whole,
            ", -1\n",
            "mov ",
            $half,
            ", [rdi + 0x80]"
        )
    };
}

/// By instructions that are decoded, and by the same again.
fn accesses_by_every_general_register() -> Outcome {
    inside_a_pc(|| {
        let base = registers();
        let storms = snippet!(
            "mov r15, rsp",
            through!("rsp", "esp", "0x1f"),
            "xchg rsp, r15",
            through!("rax", "eax", "0x20"),
            through!("rbx", "ebx", "0x21"),
            through!("rcx", "ecx", "0x22"),
            through!("rdx", "edx", "0x23"),
            through!("rsi", "esi", "0x24"),
            through!("rbp", "ebp", "0x25"),
            through!("r8", "r8d", "0x26"),
            through!("r9", "r9d", "0x27"),
            through!("r10", "r10d", "0x28"),
            through!("r11", "r11d", "0x29"),
            through!("r12", "r12d", "0x2a"),
            through!("r13", "r13d", "0x2b"),
            through!("r14", "r14d", "0x2c"),
            "mov dword ptr [rdi + 0x80], 0"
        );
        let registers = Gprs {
            rdi: base,
            ..Gprs::ZERO
        };
        let expected = Gprs {
            rax: 0x20,
            rbx: 0x21,
            rcx: 0x22,
            rdx: 0x23,
            rsi: 0x24,
            rdi: base,
            rbp: 0x25,
            r8: 0x26,
            r9: 0x27,
            r10: 0x28,
            r11: 0x29,
            r12: 0x2a,
            r13: 0x2b,
            r14: 0x2c,
            r15: 0x1f,
        };
        for _ in 0..4 {
            let seen = storms.run(registers)?;
            check!(seen == expected, "{seen:x?}, expected {expected:x?}");
            check_eq!(read(base + TASK_PRIORITY), 0, "TPR");
        }
        // A few places are remembered: one that comes again at once is.
        let again = snippet!(
            "mov r12, 100",
            "2: mov [rdi + 0x80], r12d",
            "mov rbp, -1",
            "mov ebp, [rdi + 0x80]",
            "xor ebp, r12d",
            "or r13, rbp",
            "mov r14, -1",
            "mov r14d, [rdi + 0x30]",
            "xor r14, rbx",
            "or r13, r14",
            "dec r12",
            "jnz 2b",
            "mov dword ptr [rdi + 0x80], 0"
        );
        let out = again.run(Gprs {
            rdi: base,
            rbx: read(base + VERSION).into(),
            ..Gprs::ZERO
        })?;
        check_eq!(out.r13, 0, "bits that differed");
        is_at_rest(base)
    })
}

/// 11.5.3: "send illegal vector", and nothing is sent.
fn illegal_vectors_are_sent() -> Outcome {
    inside_a_pc(|| {
        let base = registers();
        for vector in 0..16 {
            check_eq!(errors(base), 0, "errors before");
            // To oneself, by shorthand and by number.
            write(base + COMMAND, 0x4_0000 | vector);
            check_eq!(errors(base) & 0x20, 0x20, "send illegal vector");
            write(base + COMMAND_HIGH, 0);
            write(base + COMMAND, vector);
            check_eq!(errors(base) & 0x20, 0x20, "send illegal vector");
            is_at_rest(base)?;
        }
        Ok(())
    })
}

fn illegal_vectors_are_sent_by_the_self_register() -> Outcome {
    inside_a_pc(|| {
        x2apic()?;
        for vector in 0..16 {
            cpu::wrmsr(0x828, 0)?;
            cpu::wrmsr(0x83f, vector)?;
            cpu::wrmsr(0x828, 0)?;
            check_eq!(cpu::rdmsr(0x828)? & 0x20, 0x20, "send illegal vector");
        }
        for value in [0x100, 1 << 31, 1 << 32, u64::MAX] {
            check!(cpu::wrmsr(0x83f, value).is_err(), "{value:#x} was taken");
        }
        check!(cpu::rdmsr(0x83f).is_err(), "it can be read");
        for register in 0x820..0x828 {
            check_eq!(cpu::rdmsr(register)?, 0, "IRR");
        }
        Ok(())
    })
}

/// Keeps the address at which a single step came in R11, and what R10 was then in R12.
fn ends_a_single_step() -> Snippet {
    snippet!(
        "mov r11, [rsp]",
        "mov r12, r10",
        "and qword ptr [rsp + 16], ~0x100",
        "iretq",
    )
}

/// The single step comes first, and neither is lost (SDM vol. 3 table 7-2).
fn nmi_to_oneself_in_a_single_step() -> Outcome {
    inside_a_pc(|| {
        x2apic()?;
        handle(vector::DB, &ends_a_single_step());
        handle(vector::NMI, &snippet!("mov r9, [rsp]", "inc r10", "iretq"));
        for _ in 0..3 {
            let out = snippet!(
                "lea r8, [rip + 2f]",
                "pushfq",
                "or qword ptr [rsp], 0x100",
                "popfq",
                "wrmsr",
                // Where the CPU does not tell that it can take an NMI, that comes with another exit.
                "2: mov ecx, 0x1b",
                "rdmsr",
                "rdmsr",
            )
            .run(Gprs {
                rax: 0x4400,
                rcx: 0x830,
                ..Gprs::ZERO
            })?;
            check_eq!(out.r11, out.r8, "where the single step came");
            check!(out.r9 != out.r8, "the NMI came before it");
            check_eq!(out.r10, 1, "NMIs");
        }
        Ok(())
    })
}

/// Where the interrupt comes that is sent by the self register: right behind it, even in the shadow of STI, else behind the shadow of the STI that lets
/// it through, and after a single step (SDM vol. 3 table 7-2).
fn self_register_in_every_state() -> Outcome {
    inside_a_pc(|| {
        x2apic()?;
        handle(
            0x40,
            &snippet!(
                "mov r9, [rsp]",
                "inc r10",
                "push rax",
                "push rcx",
                "mov ecx, 0x80b",
                "xor eax, eax",
                "wrmsr",
                "pop rcx",
                "pop rax",
                "iretq",
            ),
        );
        handle(vector::DB, &ends_a_single_step());
        let sends = |code: &Snippet| {
            code.run(Gprs {
                rax: 0x40,
                rcx: 0x83f,
                r12: u64::MAX,
                ..Gprs::ZERO
            })
        };
        for _ in 0..3 {
            let open = snippet!("lea r8, [rip + 2f]", "sti", "nop", "wrmsr", "2: nop", "cli");
            let shadowed = snippet!("lea r8, [rip + 2f]", "sti", "wrmsr", "2: nop", "cli");
            let closed = snippet!(
                "lea r8, [rip + 2f]",
                "wrmsr",
                "nop",
                "mov r12, r10",
                "sti",
                "nop",
                "2: cli"
            );
            let stepped = snippet!(
                "lea r8, [rip + 2f]",
                "sti",
                "pushfq",
                "or qword ptr [rsp], 0x100",
                "popfq",
                "wrmsr",
                "2: nop",
                "cli"
            );
            for (state, code, before) in [
                ("open", open, u64::MAX),
                ("shadowed", shadowed, u64::MAX),
                ("closed", closed, 0),
                ("stepped", stepped, 0),
            ] {
                let out = sends(&code)?;
                check!(out.r10 == 1, "{state}: {} interrupts", out.r10);
                check!(
                    out.r9 == out.r8,
                    "{state}: it came at {:#x}, not {:#x}",
                    out.r9,
                    out.r8
                );
                check!(out.r12 == before, "{state}: {} before", out.r12);
                if state == "stepped" {
                    check_eq!(out.r11, out.r8, "where the single step came");
                }
            }
        }
        Ok(())
    })
}

/// Delivery modes 3 (reserved), 2 (SMI), 7 (ExtINT, which no command has), and INIT's level deasserted.
fn reserved_delivery_modes() -> Outcome {
    inside_a_pc(|| {
        let base = registers();
        for mode in [2, 3, 7] {
            for destination in [0, 1 << 18, 2 << 18] {
                write(base + COMMAND_HIGH, 0);
                write(base + COMMAND, destination | mode << 8 | 0x40);
                check_eq!(read(base + COMMAND) & 1 << 12, 0, "delivery status");
            }
        }
        write(base + COMMAND, 1 << 15 | 5 << 8);
        write(base + COMMAND, 2 << 18 | 1 << 15 | 5 << 8);
        is_at_rest(base)
    })
}

/// Destinations that nobody has, physical and logical, fixed and lowest priority: gone, and nothing waits.
fn interrupts_to_nobody() -> Outcome {
    inside_a_pc(|| {
        let base = registers();
        // Of the flat logical destinations, this APIC has bit 7.
        write(base + 0xe0, u32::MAX);
        write(base + 0xd0, 0x80 << 24);
        for round in 0..1000u32 {
            let destination = 1 + round % 0xfe;
            write(base + COMMAND_HIGH, destination << 24);
            write(base + COMMAND, (round & 1) << 8 | 0x40);
            write(base + COMMAND_HIGH, (round & 0x7f) << 24);
            write(base + COMMAND, (round & 1) << 8 | 1 << 11 | 0x50);
            check_eq!(read(base + COMMAND) & 1 << 12, 0, "delivery status");
        }
        // All others, of whom there are none.
        write(base + COMMAND, 3 << 18 | 0x60);
        is_at_rest(base)
    })
}

fn end_of_interrupt_without_one() -> Outcome {
    inside_a_pc(|| {
        let base = registers();
        for value in 0..1000 {
            write(
                base + END_OF_INTERRUPT,
                u32::wrapping_mul(value, 0x0101_0101),
            );
        }
        is_at_rest(base)?;
        // One that waits is not ended by it.
        write(base + COMMAND, 1 << 18 | 0x61);
        write(base + END_OF_INTERRUPT, 0);
        check_eq!(read(base + REQUESTS + 0x30), 2, "IRR");
        Ok(())
    })
}

/// A processor that runs loses it (10.4.4.3).
fn startup_to_oneself() -> Outcome {
    inside_a_pc(|| {
        let base = registers();
        for vector in 0..=255 {
            write(base + COMMAND_HIGH, 0);
            write(base + COMMAND, 6 << 8 | 1 << 14 | vector);
        }
        is_at_rest(base)
    })
}

/// The first vCPU goes on at the reset vector, where an attacker has no memory.
fn init_to_oneself() -> Outcome {
    let [address, bits, _] = fatal_to(
        &pc(|| {
            let base = registers();
            write(base + COMMAND_HIGH, 0);
            write(base + COMMAND, 5 << 8 | 1 << 14);
            Err(format_args!("it went on").into())
        }),
        Reason::NESTED_FAULT,
    )?;
    check_eq!(address & !0xfff, 0xffff_f000, "page");
    check_eq!(bits, fault::FETCH, "bits");
    Ok(())
}

/// Each is taken, or merged with one that has not been yet.
fn nmis_to_oneself() -> Outcome {
    inside_a_pc(|| {
        let base = registers();
        handle(vector::NMI, &snippet!("inc r13", "iretq"));
        // By number: with the shorthand it is no valid command (table 11-3), and does nothing.
        write(base + COMMAND, 0x4_4400);
        write(base + COMMAND_HIGH, 0);
        let out =
            snippet!("2: mov dword ptr [rdi], 0x4400", "dec r12", "jnz 2b", "nop").run(Gprs {
                r12: 1000,
                ..at(base + COMMAND)
            })?;
        check!((1..=1000).contains(&out.r13), "{} NMIs", out.r13);
        is_at_rest(base)
    })
}

/// All 240 at once, while interrupts are off; they then come, the highest first, each once.
fn every_vector_to_oneself() -> Outcome {
    inside_a_pc(|| {
        let base = registers();
        let handler = counts();
        for vector in 32..=255 {
            handle(vector, &handler);
        }
        for vector in 16..=255 {
            write(base + COMMAND, 1 << 18 | vector);
        }
        // Those that are exceptions in this attacker are kept away by the priority.
        write(base + TASK_PRIORITY, 0x10);
        snippet!("sti", "nop", "nop", "cli").run(Gprs {
            r15: base,
            ..Gprs::ZERO
        })?;
        check_eq!(heard(0), 224, "interrupts");
        check_eq!(any_of(base, IN_SERVICE), 0, "ISR");
        check_eq!(read(base + REQUESTS), 0xffff_0000, "IRR");
        Ok(())
    })
}

fn timer_with_a_count_of_zero() -> Outcome {
    inside_a_pc(|| {
        let base = registers();
        for mode in 0..4 {
            write(base + TIMER, mode << 17 | 0x40);
            for divisor in 0..16 {
                write(base + DIVISOR, divisor);
                write(base + INITIAL_COUNT, 0);
                check_eq!(read(base + CURRENT_COUNT), 0, "current count");
            }
        }
        is_at_rest(base)
    })
}

/// Bits 0, 1 and 3 of the register; with each it counts.
fn timer_with_every_divisor() -> Outcome {
    inside_a_pc(|| {
        let base = registers();
        write(base + TIMER, 1 << 16 | 0x40);
        for value in (0..16).chain([0xffff_fff0, u32::MAX]) {
            write(base + DIVISOR, value);
            check_eq!(read(base + DIVISOR), value & 0xb, "divisor");
            write(base + INITIAL_COUNT, u32::MAX);
            let first = read(base + CURRENT_COUNT);
            let mut second = first;
            for _ in 0..10_000 {
                second = read(base + CURRENT_COUNT);
                if second != first {
                    break;
                }
            }
            check!(
                second < first,
                "divisor {value:#x}: {first:#x}, {second:#x}"
            );
            write(base + INITIAL_COUNT, 0);
        }
        is_at_rest(base)
    })
}

/// "Receive illegal vector" when it is due, and no interrupt.
fn timer_with_an_illegal_vector() -> Outcome {
    inside_a_pc(|| {
        let base = registers();
        write(base + DIVISOR, 0xb);
        for vector in [0, 5, 15] {
            errors(base);
            write(base + TIMER, vector);
            write(base + INITIAL_COUNT, 10);
            // The count is over before the timer has told that, where the host's timer has to come first.
            let is_told = (0..1_000_000).any(|_| errors(base) & 0x40 != 0);
            check!(is_told, "no illegal vector was received");
        }
        is_at_rest(base)
    })
}

/// An interrupt with every tick: the attacker gets no further, the others must.
fn timer_with_a_period_of_one() -> Outcome {
    let attacker = Attacker::new(&pc(|| {
        let base = registers();
        handle(0x40, &counts());
        write(base + DIVISOR, 0xb);
        write(base + TIMER, 1 << 17 | 0x40);
        write(base + INITIAL_COUNT, 1);
        snippet!("sti", "2: jmp 2b").run(Gprs {
            r15: base,
            ..Gprs::ZERO
        })?;
        Ok(())
    }))?;
    attacker.start()?;
    attacker.until_told(0, 50)?;
    sleep(3 * MS);
    attacker.is_killed()
}

/// In TSC-deadline mode each write of a time that has passed is an interrupt.
fn deadlines_that_have_passed() -> Outcome {
    inside_a_pc(|| {
        let base = registers();
        handle(0x40, &counts());
        write(base + TIMER, 2 << 17 | 0x40);
        let out = snippet!(
            "sti",
            "2: mov ecx, 0x6e0",
            "mov eax, 1",
            "xor edx, edx",
            "wrmsr",
            "mov rbx, r12",
            "3: cmp [0x2000], rbx",
            "jb 3b",
            "inc r12",
            "cmp r12, 500",
            "jbe 2b",
            "cli",
        )
        .run(Gprs {
            r15: base,
            r12: 1,
            ..Gprs::ZERO
        })?;
        check_eq!(out.r12, 501, "R12");
        check_eq!(heard(0), 500, "interrupts");
        // Zero disarms it.
        cpu::wrmsr(0x6e0, 0)?;
        is_at_rest(base)
    })
}

/// Every delivery mode, trigger and mask in every entry: only bits that an entry has are kept (11.5.1).
fn local_vectors_of_every_kind() -> Outcome {
    inside_a_pc(|| {
        let base = registers();
        let entries = [
            (0x320, 0x7_10ff),
            (0x330, 0x1_17ff),
            (0x340, 0x1_17ff),
            (0x350, 0x1_f7ff),
            (0x360, 0x1_f7ff),
            (0x370, 0x1_10ff),
        ];
        let mut random = Random::new(0x1076_a1b2);
        for _ in 0..100 {
            let value = random.number() as u32;
            for (offset, bits) in entries {
                write(base + offset, value);
                let seen = read(base + offset);
                // Delivery status and remote IRR are the APIC's own.
                let own = 1 << 12 | 1 << 14;
                check!(
                    seen & !own == value & bits & !own,
                    "{offset:#x}: {value:#x} became {seen:#x}"
                );
            }
        }
        is_at_rest(base)
    })
}

/// 11.12.5: what is not in figure 11-27 is #GP, and nothing has changed.
fn changes_of_mode() -> Outcome {
    inside_a_pc(|| {
        const ENABLED: u64 = 1 << 11;
        const X2: u64 = 1 << 10;
        const BSP: u64 = 1 << 8;
        registers();
        let refused = |value: u64| {
            let before = cpu::rdmsr(0x1b)?;
            check!(
                cpu::wrmsr(0x1b, value).is_err(),
                "{value:#x} was taken in {before:#x}"
            );
            check_eq!(cpu::rdmsr(0x1b)?, before, "APIC_BASE");
            Ok(())
        };
        for bit in (0..8).chain([9]).chain(12..64) {
            refused((APIC | ENABLED | BSP) ^ 1 << bit)?;
        }
        // From xAPIC mode: not to x2APIC without the enable bit.
        refused(APIC | X2 | BSP)?;
        cpu::wrmsr(0x1b, APIC | ENABLED | X2 | BSP)?;
        // From x2APIC mode: not back to xAPIC mode.
        refused(APIC | ENABLED | BSP)?;
        refused(APIC | X2 | BSP)?;
        cpu::wrmsr(0x1b, APIC | BSP)?;
        // From disabled: not to x2APIC mode at once.
        refused(APIC | ENABLED | X2 | BSP)?;
        refused(APIC | X2 | BSP)?;
        cpu::wrmsr(0x1b, APIC | ENABLED | BSP)?;
        let base = paging::map(0, APIC, flag::ALL);
        check_eq!(read(base + SPURIOUS) & 0x100, 0, "enabled by software");
        Ok(())
    })
}

fn page_of_a_disabled_apic() -> Outcome {
    nested_fault(
        &pc(|| {
            let base = registers();
            cpu::wrmsr(0x1b, APIC)?;
            read(base + VERSION);
            Err(format_args!("it came back").into())
        }),
        APIC + VERSION,
        0,
    )
}

fn page_in_x2apic_mode() -> Outcome {
    nested_fault(
        &pc(|| {
            let base = registers();
            cpu::wrmsr(0x1b, APIC | 0xd00)?;
            write(base + TASK_PRIORITY, 0);
            Err(format_args!("it came back").into())
        }),
        APIC + TASK_PRIORITY,
        fault::WRITE,
    )
}

/// In x2APIC mode, reserved bits are #GP (11.12.1.2).
fn command_with_reserved_bits() -> Outcome {
    inside_a_pc(|| {
        x2apic()?;
        for bit in [13, 16, 17, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31] {
            // To nobody.
            let command = 0x7fff_0000_0000_0040 | 1 << bit;
            check!(cpu::wrmsr(0x830, command).is_err(), "bit {bit} was taken");
        }
        for (msr, value) in [
            (0x80b, 1),
            (0x828, 1),
            (0x80f, 1 << 32 | 0x1ff),
            (0x838, 1 << 32),
            (0x83e, 4),
            (0x832, 1 << 19),
        ] {
            check!(
                cpu::wrmsr(msr, value).is_err(),
                "MSR {msr:#x} took {value:#x}"
            );
        }
        for msr in [0x802, 0x803, 0x80a, 0x80d, 0x810, 0x818, 0x820, 0x839] {
            check!(
                cpu::wrmsr(msr, 0).is_err(),
                "MSR {msr:#x}, which is read-only"
            );
        }
        Ok(())
    })
}

/// The code of a second vCPU of these attackers: enables its APIC and does what the first asks for by the word 8. R15: the APIC.
fn second_with_interrupts() -> Snippet {
    snippet!(
        "2: mov r15, [rdi + 64]",
        "test r15, r15",
        "jz 2b",
        "mov dword ptr [r15 + 0xf0], 0x1ff",
        "sti",
        "mov qword ptr [rdi + 72], 1",
        "3: mov dword ptr [r15 + 0x300], 0xc0041",
        "inc qword ptr [rdi + 80]",
        "cmp qword ptr [rdi + 80], 500",
        "jb 3b",
        "mov qword ptr [rdi + 88], 1",
        "4: jmp 4b",
    )
}

/// Each of two sends the other, and all including itself, interrupts in a loop. All handlers run, and both come to their end.
fn broadcasts_by_two_vcpus() -> Outcome {
    let mut attacker = Attacker::new(
        &pc(|| {
            let base = registers();
            let handler = counts();
            handle(0x40, &handler);
            handle(0x41, &handler);
            tell(8, base);
            let out = snippet!(
                "4: cmp qword ptr [rdi + 72], 0",
                "je 4b",
                "sti",
                "2: mov dword ptr [r15 + 0x300], 0x80040",
                "dec r12",
                "jnz 2b",
                "3: pause",
                "cmp qword ptr [rdi + 88], 0",
                "je 3b",
                "cli",
            )
            .run(Gprs {
                r15: base,
                r12: 500,
                ..at(0x2000)
            })?;
            check_eq!(out.r12, 0, "R12");
            check!(heard(0) >= 500, "{} interrupts", heard(0));
            Ok(())
        })
        .with_vcpus(2),
    )?;
    attacker.add(second_with_interrupts())?;
    attacker.start()?;
    attacker.succeeds()
}

/// Two that halt between the interrupts that they send each other: none may be lost.
fn ping_pong() -> Outcome {
    let mut attacker = Attacker::new(
        &pc(|| {
            let base = registers();
            // Each answers in its handler, and counts: the first ends it.
            handle(
                0x40,
                &snippet!(
                    "inc qword ptr [0x2000]",
                    "mov dword ptr [r15 + 0xb0], 0",
                    "mov dword ptr [r15 + 0x300], 0xc0041",
                    "iretq"
                ),
            );
            handle(
                0x41,
                &snippet!(
                    "inc qword ptr [0x2008]",
                    "mov dword ptr [r15 + 0xb0], 0",
                    "mov dword ptr [r15 + 0x300], 0xc0040",
                    "iretq"
                ),
            );
            tell(8, base);
            while heard(9) == 0 {
                plinth_rt::hypercall::yield_now();
            }
            write(base + COMMAND, 3 << 18 | 0x41);
            let out = snippet!(
                "2: sti",
                "hlt",
                "cli",
                "cmp qword ptr [0x2000], 500",
                "jb 2b"
            )
            .run(Gprs {
                r15: base,
                ..Gprs::ZERO
            })?;
            check_eq!(out.r15, base, "R15");
            check!(heard(1) >= heard(0), "{} and {}", heard(0), heard(1));
            Ok(())
        })
        .with_vcpus(2),
    )?;
    attacker.add(snippet!(
        "2: mov r15, [rdi + 64]",
        "test r15, r15",
        "jz 2b",
        "mov dword ptr [r15 + 0xf0], 0x1ff",
        "mov qword ptr [rdi + 72], 1",
        "3: sti",
        "hlt",
        "jmp 3b",
    ))?;
    attacker.start()?;
    attacker.succeeds()
}

/// INIT and start-up to a vCPU that is just starting, again and again; the last start counts.
fn init_and_startup_again_and_again() -> Outcome {
    let mut attacker = Attacker::new(
        &pc(|| {
            let base = registers();
            // Real-mode code at a page below 1 MiB: inc dword ptr [0x2000]; hlt; jmp $.
            let code =
                snippet!(".byte 0x66, 0x67, 0xff, 0x05, 0x00, 0x20, 0x00, 0x00, 0xf4, 0xeb, 0xfd");
            code.copy_to(FREE);
            write(base + COMMAND_HIGH, 1 << 24);
            for _ in 0..200 {
                write(base + COMMAND, 5 << 8 | 1 << 14);
                write(base + COMMAND, 6 << 8 | 1 << 14 | (FREE >> 12) as u32);
                write(base + COMMAND, 6 << 8 | 1 << 14 | (FREE >> 12) as u32);
            }
            let before = heard(0);
            write(base + COMMAND, 5 << 8 | 1 << 14);
            write(base + COMMAND, 6 << 8 | 1 << 14 | (FREE >> 12) as u32);
            while heard(0) == before {
                plinth_rt::hypercall::yield_now();
            }
            Ok(())
        })
        .with_vcpus(2),
    )?;
    attacker.add(snippet!("2: jmp 2b"))?;
    attacker.start()?;
    attacker.succeeds()
}

/// NMI, fixed interrupts and INIT to a vCPU that waits for its start: it still starts, and nothing came before that.
fn nmis_to_a_vcpu_that_waits() -> Outcome {
    let mut attacker = Attacker::new(
        &pc(|| {
            let base = registers();
            let code = snippet!(".byte 0x66, 0x67, 0xff, 0x05, 0x00, 0x20, 0x00, 0x00, 0xfa, 0xf4");
            code.copy_to(FREE);
            write(base + COMMAND_HIGH, 1 << 24);
            write(base + COMMAND, 5 << 8 | 1 << 14);
            for _ in 0..300 {
                write(base + COMMAND, 0x40);
                write(base + COMMAND, 0xfe);
                write(base + COMMAND, 5 << 8 | 1 << 14);
            }
            check_eq!(heard(0), 0, "starts");
            write(base + COMMAND, 6 << 8 | 1 << 14 | (FREE >> 12) as u32);
            while heard(0) == 0 {
                plinth_rt::hypercall::yield_now();
            }
            check_eq!(heard(0), 1, "starts");
            Ok(())
        })
        .with_vcpus(2),
    )?;
    attacker.add(snippet!("2: jmp 2b"))?;
    attacker.start()?;
    attacker.succeeds()
}

/// Every index of the I/O APIC, written and read; entries keep the bits that they have, and the version is as ever.
fn io_apic_every_index() -> Outcome {
    inside_a_pc(|| {
        let base = registers();
        let io = paging::map(1, IO_APIC, flag::ALL);
        let mut random = Random::new(0x10a_91c);
        write(io, 1);
        let version = read(io + 0x10);
        check_eq!(version >> 16 & 0xff, 23, "the last entry");
        for round in 0..3 {
            for index in 0..256 {
                write(io, index);
                let value = if round == 0 {
                    u32::MAX
                } else {
                    // Masked, so that nothing comes of it.
                    random.number() as u32 | 1 << 16
                };
                write(io + 0x10, value);
                let seen = read(io + 0x10);
                if (0x10..0x40).contains(&index) && index % 2 == 0 {
                    check!(seen & 0xfffe_5000 == 0, "entry {index:#x}: {seen:#x}");
                    check!(
                        seen & 0xafff == value & 0xafff,
                        "entry {index:#x}: {value:#x} became {seen:#x}"
                    );
                }
            }
        }
        for offset in (0..0x1000).step_by(4) {
            write(io + offset, u32::MAX);
            read(io + offset);
        }
        write(io, 1);
        check_eq!(read(io + 0x10), version, "version");
        is_at_rest(base)
    })
}

/// A level-triggered line that nobody lowers: an interrupt after the end of each.
fn io_apic_line_that_stays_asserted() -> Outcome {
    let attacker = Attacker::new(&pc(|| {
        let base = registers();
        let io = paging::map(1, IO_APIC, flag::ALL);
        handle(0x40, &counts());
        // Pin 5: level, to this APIC.
        for (index, value) in [(0x1b, 0), (0x1a, 1 << 15 | 0x40)] {
            write(io, index);
            write(io + 0x10, value);
        }
        tell(1, 1);
        snippet!("sti", "2: jmp 2b").run(Gprs {
            r15: base,
            ..Gprs::ZERO
        })?;
        Ok(())
    }))?;
    attacker.start()?;
    attacker.until_told(1, 1)?;
    attacker.domain.set_line(5, true).must("line")?;
    attacker.until_told(0, 200)?;
    sleep(2 * MS);
    attacker.is_killed()
}

/// Message-signalled interrupts of every delivery mode but INIT, with every kind of address: taken or refused, and the attacker finds
/// requests of legal vectors at most.
fn messages_of_every_kind() -> Outcome {
    let attacker = Attacker::new(&pc(|| {
        let base = registers();
        tell(1, 1);
        while heard(2) == 0 {
            plinth_rt::hypercall::yield_now();
        }
        check_eq!(
            read(base + REQUESTS) & 0xffff,
            0,
            "IRR of the illegal vectors"
        );
        check_eq!(any_of(base, IN_SERVICE), 0, "ISR");
        Ok(())
    }))?;
    attacker.start()?;
    attacker.until_told(1, 1)?;
    let mut random = Random::new(0x0005_1e55_a6e5);
    for _ in 0..500 {
        let address = 0xfee0_0000 | random.number() & 0xf_ffff;
        let mode = [0, 1, 2, 3, 6, 7][random.number() as usize % 6];
        let data = random.number() & 0xffff_f8ff | mode << 8;
        let (status, _) = to_the_end(
            Call::DEVICE_MSI,
            [raw(attacker.domain.any()), address, data],
        );
        check!(
            matches!(status, Status::OK | Status::BAD_ARGUMENT),
            "{address:#x}, {data:#x}: {status:?}"
        );
    }
    for (address, data) in [
        (0, 0x40),
        (0xfed0_0000, 0x40),
        (0xfef0_0000, 0x40),
        (1 << 32 | 0xfee0_0000, 0x40),
        (0xfee0_0000, 1 << 32),
    ] {
        let (status, _) = to_the_end(
            Call::DEVICE_MSI,
            [raw(attacker.domain.any()), address, data],
        );
        check!(status == Status::BAD_ARGUMENT, "{address:#x}: {status:?}");
    }
    attacker.write(crate::attacker::told_at(2), &1u64.to_le_bytes())?;
    attacker.succeeds()
}

/// A plain domain: every vector, as fast as they can be raised, while its loop halts between them.
fn vcpu_interrupts_of_every_vector() -> Outcome {
    let attacker = Attacker::new(&Plan::new(|| {
        let handler = snippet!("inc qword ptr [0x2000]", "iretq");
        for vector in 32..=255 {
            handle(vector, &handler);
        }
        tell(1, 1);
        snippet!("sti", "2: inc qword ptr [0x2010]", "jmp 2b").run(Gprs::ZERO)?;
        Ok(())
    }))?;
    attacker.start()?;
    attacker.until_told(1, 1)?;
    for round in 0..8u64 {
        for vector in 32..=255 {
            attacker.vcpu(0).interrupt(vector).must("interrupt")?;
        }
        attacker.until_told(0, round + 1)?;
    }
    // All that were raised last come, and its own loop goes on between them.
    let loops = attacker.told(2)?;
    attacker.until_told(2, loops + 1)?;
    let count = attacker.told(0)?;
    check!(count >= 224, "{count} interrupts");
    // TCG delivers one again now and then (docs/testing.md).
    check!(
        count <= 8 * 224 || is_tcg(),
        "{count} interrupts, {} were raised",
        8 * 224
    );
    attacker.is_killed()
}

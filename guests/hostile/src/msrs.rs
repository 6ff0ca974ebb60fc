//! Every MSR of the ranges that CPUs have, read and written: a value or #GP(0), nothing but what the guest's CPUID announces, and
//! nothing that anybody else notices.

use plinth_rt::abi::domain::platform;
use plinth_rt::trap::{self, Gate, vector};
use plinth_rt::{Gprs, Outcome, Snippet, Why, check, check_eq, cpu, snippet};

use crate::attacker::{FREE, Plan, carried_out, ordered, peek};

cases!("msrs":
    architectural_are_read,
    architectural_are_written,
    architectural_are_read_by_a_pc,
    architectural_are_written_by_a_pc,
    x2apic_are_read_and_written,
    hypervisors_are_read_and_written,
    kvms_are_read_and_written,
    amds_are_read,
    amds_are_written,
    amds_second_are_read,
    amds_second_are_written,
    between_the_ranges,
    each_bit_of_each,
    clocks_at_every_address,
);

/// The attacker's handler of #GP while it sweeps: RDMSR and WRMSR are two bytes, which are passed over; R8 is set, and R14 gathers
/// the bits of error codes. It is short, because it runs tens of thousands of times.
fn pass_over() -> Snippet {
    snippet!(
        "or r14, [rsp]",
        "add rsp, 8",
        "add qword ptr [rsp], 2",
        "mov r8d, 1",
        "iretq",
    )
}

/// Where the sweeps note what is not refused, a pair of words for each: number and value.
const NOTES: u64 = FREE;
const MOST: u64 = 256;

/// Reads every MSR from `first` to before `end`; how many can be read is the number of [`note`]s.
fn read_all(first: u32, end: u32) -> Result<u64, Why> {
    let sweep = snippet!(
        "2: mov ecx, esi",
        "xor r8d, r8d",
        "rdmsr",
        "test r8d, r8d",
        "jnz 3f",
        "mov [rdi], rsi",
        "shl rdx, 32",
        "or rax, rdx",
        "mov [rdi + 8], rax",
        "add rdi, 16",
        "3: inc esi",
        "cmp esi, ebx",
        "jne 2b",
    );
    swept(&sweep, first, end, 0)
}

/// Writes a value to every MSR from `first` to before `end`; how many took it is the number of [`note`]s. No value that is written so
/// takes from an attacker what it needs.
fn write_all(first: u32, end: u32, value: u64) -> Result<u64, Why> {
    let sweep = snippet!(
        "2: mov ecx, esi",
        "xor r8d, r8d",
        "mov eax, r9d",
        "mov rdx, r9",
        "shr rdx, 32",
        "wrmsr",
        "test r8d, r8d",
        "jnz 3f",
        "mov [rdi], rsi",
        "add rdi, 16",
        "3: inc esi",
        "cmp esi, ebx",
        "jne 2b",
    );
    swept(&sweep, first, end, value)
}

/// Runs a sweep with [`pass_over`].
fn swept(sweep: &Snippet, first: u32, end: u32, value: u64) -> Result<u64, Why> {
    let registers = Gprs {
        rdi: NOTES,
        rsi: first.into(),
        rbx: end.into(),
        r9: value,
        ..Gprs::ZERO
    };
    trap::set_gate(vector::GP, Gate::interrupt(pass_over().start(), 0, 0));
    let out = sweep.run(registers);
    trap::set_gate(vector::GP, trap::default_gate(vector::GP));
    let out = out?;
    check_eq!(out.r14, 0, "bits of error codes");
    let notes = (out.rdi - NOTES) / 16;
    check!(notes <= MOST, "{notes} MSRs are there");
    Ok(notes)
}

/// The number and the value of a note.
fn note(index: u64) -> (u32, u64) {
    (
        peek(NOTES + index * 16) as u32,
        peek(NOTES + index * 16 + 8),
    )
}

/// What a guest can have, by the SDM's volume 4, the APM's appendix A, and the CPUID that Plinth shows. The x2APIC's are looked at
/// elsewhere.
fn may_exist(msr: u32, pc: bool) -> bool {
    let amd = cpu::is_amd();
    match msr {
        // TSC, its adjustment, microcode's revision, machine check without banks, debug control.
        0x10 | 0x3b | 0x8b | 0x179 | 0x17a | 0x1d9 => true,
        // MTRRs and PAT.
        0xfe | 0x200..=0x20f | 0x250 | 0x258 | 0x259 | 0x268..=0x26f | 0x277 | 0x2ff => true,
        // SPEC_CTRL; PRED_CMD; ARCH_CAPABILITIES.
        0x48 => predictions(
            1 << 26 | 1 << 27 | 1 << 31,
            1 << 14 | 1 << 15 | 1 << 24 | 1 << 28,
        ),
        0x49 => predictions(1 << 26, 1 << 12),
        0x10a => predictions(1 << 29, 0),
        // SYSENTER.
        0x174..=0x176 => true,
        // PLATFORM_ID, FEATURE_CONTROL, MISC_ENABLE.
        0x17 | 0x3a | 0x1a0 => !amd,
        // APIC_BASE, TSC_DEADLINE; KVM's clocks, steal time and ends of interrupts.
        0x1b | 0x6e0 | 0x4b56_4d00 | 0x4b56_4d01 | 0x4b56_4d03 | 0x4b56_4d04 => pc,
        // EFER, SYSCALL, bases, TSC_AUX.
        0xc000_0080..=0xc000_0084 | 0xc000_0100..=0xc000_0103 => true,
        // SYSCFG, HWCR, NB_CFG, VM_CR.
        0xc001_0010 | 0xc001_0015 | 0xc001_001f | 0xc001_0114 => amd,
        _ => false,
    }
}

/// Whether CPUID announces one of these: Intel's in EDX of leaf 7, AMD's in EBX of leaf 8000_0008.
fn predictions(intel: u32, amd: u32) -> bool {
    if cpu::is_amd() {
        cpu::cpuid(0x8000_0008, 0).ebx & amd != 0
    } else {
        cpu::cpuid(7, 0).edx & intel != 0
    }
}

fn all_may_exist(notes: u64) -> Outcome {
    // The platform is the attacker's first word.
    let pc = ordered(0) != 0;
    for (msr, value) in (0..notes).map(note) {
        check!(may_exist(msr, pc), "MSR {msr:#x} is there: {value:#x}");
    }
    Ok(())
}

fn reads(first: u32, end: u32) -> Outcome {
    let notes = read_all(first, end)?;
    all_may_exist(notes)
}

/// All ones, which few take; then, to those that can be read, zeroes and a value that is neither an address nor flags.
fn writes(first: u32, end: u32) -> Outcome {
    all_may_exist(write_all(first, end, u64::MAX)?)?;
    let (there, count) = readable(first, end.min(first + 0x400))?;
    for msr in there.into_iter().take(count) {
        for value in [0, 0x5555_5555_5555_5555] {
            all_may_exist(write_all(msr, msr + 1, value)?)?;
        }
    }
    Ok(())
}

/// The MSRs of a range that can be read, and how many.
fn readable(first: u32, end: u32) -> Result<([u32; MOST as usize], usize), Why> {
    let notes = read_all(first, end)?;
    let there = core::array::from_fn(|index| note(index as u64).0);
    Ok((there, notes as usize))
}

/// An attack on MSRs, whose attacker is told whether it is a PC. The suite's own MSRs stay as they are.
fn attack(attack: fn() -> Outcome, platform: u32) -> Outcome {
    const OWN: [u32; 14] = [
        0x48,
        0x174,
        0x175,
        0x176,
        0x277,
        0xc000_0080,
        0xc000_0081,
        0xc000_0082,
        0xc000_0083,
        0xc000_0084,
        0xc000_0100,
        0xc000_0101,
        0xc000_0102,
        0xc000_0103,
    ];
    let own = || OWN.map(|msr| cpu::rdmsr(msr).unwrap_or(u64::MAX));
    let before = own();
    let attacker = crate::attacker::Attacker::new(&Plan::new(attack).on(platform))?;
    attacker.order(0, platform.into())?;
    attacker.start()?;
    attacker.succeeds()?;
    let after = own();
    check!(
        before == after,
        "the suite's own MSRs: {after:x?}, before {before:x?}"
    );
    Ok(())
}

fn architectural_are_read() -> Outcome {
    attack(|| reads(0, 0x2000), 0)
}

fn architectural_are_written() -> Outcome {
    attack(|| writes(0, 0x2000), 0)
}

fn architectural_are_read_by_a_pc() -> Outcome {
    attack(|| reads(0, 0x2000), platform::PC)
}

fn architectural_are_written_by_a_pc() -> Outcome {
    attack(|| writes(0, 0x2000), platform::PC)
}

/// In x2APIC mode, with interrupts off: registers of 32 bits, but for the command; those that are there have a place in SDM vol. 3 table
/// 11-6.
fn x2apic_are_read_and_written() -> Outcome {
    carried_out(
        &Plan::new(|| {
            cpu::wrmsr(0x1b, 0xfee0_0d00)?;
            let notes = read_all(0x800, 0x900)?;
            for (msr, value) in (0..notes).map(note) {
                let there = matches!(msr, 0x802 | 0x803 | 0x808 | 0x80a | 0x80d | 0x80f..=0x828 | 0x830 | 0x832..=0x839 | 0x83e);
                check!(there, "MSR {msr:#x} is there: {value:#x}");
                check!(msr == 0x830 || value >> 32 == 0, "MSR {msr:#x}: {value:#x}");
            }
            for value in [u64::MAX, 1 << 32, 1 << 63] {
                let notes = write_all(0x800, 0x900, value)?;
                for (msr, _) in (0..notes).map(note) {
                    // 1 << 32 and 1 << 63 are destinations that nobody has, with the vector 0.
                    check!(msr == 0x830 && value != u64::MAX, "MSR {msr:#x} took {value:#x}");
                }
            }
            Ok(())
        })
        .on(platform::PC),
    )
}

fn hypervisors_are_read_and_written() -> Outcome {
    attack(
        || {
            reads(0x4000_0000, 0x4000_0400)?;
            writes(0x4000_0000, 0x4000_0400)
        },
        platform::PC,
    )
}

fn kvms_are_read_and_written() -> Outcome {
    attack(
        || {
            reads(0x4b56_4d00, 0x4b56_4e00)?;
            writes(0x4b56_4d00, 0x4b56_4e00)
        },
        platform::PC,
    )?;
    // A domain that is no PC has none of them.
    attack(
        || {
            let notes = read_all(0x4b56_4d00, 0x4b56_4e00)?;
            check!(notes == 0, "{notes} can be read");
            writes(0x4b56_4d00, 0x4b56_4e00)
        },
        0,
    )
}

fn amds_are_read() -> Outcome {
    attack(|| reads(0xc000_0000, 0xc000_2000), 0)
}

fn amds_are_written() -> Outcome {
    attack(|| writes(0xc000_0000, 0xc000_2000), 0)
}

fn amds_second_are_read() -> Outcome {
    attack(|| reads(0xc001_0000, 0xc001_2000), 0)
}

fn amds_second_are_written() -> Outcome {
    attack(|| writes(0xc001_0000, 0xc001_2000), 0)
}

/// Where no permission map reaches, a number's lower bits must not be taken for another's.
fn between_the_ranges() -> Outcome {
    attack(
        || {
            for first in [
                0x2000,
                0x1_0000,
                0x8000_0000,
                0xbfff_ff00,
                0xc000_2000,
                0xc000_8000,
                0xc001_2000,
                0xc002_0000,
                0xffff_fe00,
            ] {
                let notes = read_all(first, first + 0xff)?;
                check!(notes == 0, "from {first:#x} on, {notes} can be read");
                let notes = write_all(first, first + 0xff, 0)?;
                check!(notes == 0, "from {first:#x} on, {notes} can be written");
            }
            Ok(())
        },
        0,
    )
}

/// Every bit of every MSR that can be read, turned over: refused, and then nothing has changed, or taken, and then nothing but that bit
/// has.
fn each_bit_of_each() -> Outcome {
    attack(
        || {
            for (first, end) in [
                (0, 0x300),
                (0xc000_0080, 0xc000_0110),
                (0xc001_0000, 0xc001_0120),
            ] {
                let (there, count) = readable(first, end)?;
                for msr in there.into_iter().take(count) {
                    // The TSC does not stand still.
                    if !matches!(msr, 0x10 | 0x3b) {
                        each_bit(msr)?;
                    }
                }
            }
            Ok(())
        },
        0,
    )
}

fn each_bit(msr: u32) -> Outcome {
    let before = cpu::rdmsr(msr)?;
    let turn = snippet!("xor r8d, r8d", "wrmsr", "mov r9, r8", "rdmsr");
    trap::set_gate(vector::GP, Gate::interrupt(pass_over().start(), 0, 0));
    let mut failed = None;
    for bit in 0..64 {
        let wanted = before ^ 1 << bit;
        let run = |value: u64| {
            turn.run(Gprs {
                rcx: msr.into(),
                rax: value & 0xffff_ffff,
                rdx: value >> 32,
                ..Gprs::ZERO
            })
        };
        let out = run(wanted)?;
        let (taken, after) = (out.r9 == 0, out.rdx << 32 | out.rax & 0xffff_ffff);
        // Bits that read as they were whatever is written are no harm.
        let good = after == before || taken && (after == wanted || is_widened(msr, wanted, after));
        if !good {
            failed = Some((bit, after));
        }
        if after != before {
            run(before)?;
        }
    }
    trap::set_gate(vector::GP, trap::default_gate(vector::GP));
    if let Some((bit, after)) = failed {
        return Err(format_args!("MSR {msr:#x}, {before:#x}, bit {bit}: {after:#x}").into());
    }
    Ok(())
}

/// AMD's CPUs make the addresses of SYSENTER canonical (APM2 6.1.2).
fn is_widened(msr: u32, wanted: u64, after: u64) -> bool {
    matches!(msr, 0x175 | 0x176)
        && cpu::is_amd()
        && wanted & 0xffff_ffff_ffff == after & 0xffff_ffff_ffff
}

/// KVM's clocks, written to every kind of place: what is not memory is not written, and what lies beside it neither.
fn clocks_at_every_address() -> Outcome {
    carried_out(
        &Plan::new(|| {
            use crate::attacker::{RAM, poke};
            for msr in [0x4b56_4d00, 0x4b56_4d01, 0x4b56_4d03, 0x4b56_4d04] {
                for address in [
                    RAM,
                    RAM - 4,
                    RAM - 16,
                    RAM + 0x1000,
                    0xfee0_0000,
                    0xfec0_0000,
                    0xffff_fffc,
                    0x7fff_ffff_fff0,
                    0xffff_ffff_ffff_ffe0,
                    !0x3f,
                ] {
                    poke(RAM - 8, 0x83);
                    // Bit 0 switches it on where it can be switched; a misaligned address is refused.
                    for value in [address, address | 1] {
                        let _ = cpu::wrmsr(msr, value);
                    }
                    plinth_rt::hypercall::yield_now();
                    let _ = cpu::wrmsr(msr, 0);
                    if address >= RAM {
                        check!(
                            peek(RAM - 8) == 0x83,
                            "the last word after {msr:#x} at {address:#x}"
                        );
                    }
                }
            }
            poke(RAM - 8, 0);
            Ok(())
        })
        .on(platform::PC),
    )
}

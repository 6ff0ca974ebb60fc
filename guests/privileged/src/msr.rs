//! Model-specific registers: those that a guest has, their rules, and #GP(0) for all others.

use plinth_rt::abi::{Call, Status, cpuid as leaves};
use plinth_rt::cpu::{self, rdmsr, wrmsr};
use plinth_rt::suite::{must_fault, must_fault_user, trapped};
use plinth_rt::trap::vector;
use plinth_rt::{Gprs, Outcome, check, check_eq, hypercall, snippet};

const EFER: u32 = 0xc000_0080;
const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const CSTAR: u32 = 0xc000_0083;
const SFMASK: u32 = 0xc000_0084;
const FS_BASE: u32 = 0xc000_0100;
const GS_BASE: u32 = 0xc000_0101;
const KERNEL_GS_BASE: u32 = 0xc000_0102;
const TSC_AUX: u32 = 0xc000_0103;
const PAT: u32 = 0x277;
const TSC: u32 = 0x10;
const SYSENTER_CS: u32 = 0x174;
const SYSENTER_ESP: u32 = 0x175;
const SYSENTER_EIP: u32 = 0x176;
const SPEC_CTRL: u32 = 0x48;
const PRED_CMD: u32 = 0x49;
const ARCH_CAPABILITIES: u32 = 0x10a;
const FLUSH_CMD: u32 = 0x10b;

const SCE: u64 = 1 << 0;
const LME: u64 = 1 << 8;
const LMA: u64 = 1 << 10;
const NXE: u64 = 1 << 11;
const SVME: u64 = 1 << 12;

const NON_CANONICAL: u64 = 0x8000_0000_0000_0000;

fn refused(msr: u32, value: u64) -> Outcome {
    match wrmsr(msr, value) {
        Err(trap) if trap.vector == vector::GP && trap.error == 0 => Ok(()),
        Err(trap) => Err(trap.into()),
        Ok(()) => Err(format_args!("write of {value:#x} to {msr:#x} was taken").into()),
    }
}

fn keeps(msr: u32, value: u64) -> Outcome {
    let before = rdmsr(msr)?;
    wrmsr(msr, value)?;
    let seen = rdmsr(msr)?;
    wrmsr(msr, before)?;
    check!(
        seen == value,
        "MSR {msr:#x} reads {seen:#x} after {value:#x} was written"
    );
    Ok(())
}

pub fn unknown_read() -> Outcome {
    for msr in [0x1234_5678u32, 0xc000_f000, 0x7fff_0000] {
        let registers = Gprs {
            rcx: u64::from(msr),
            rax: 0x1111,
            rdx: 0x2222,
            ..Gprs::ZERO
        };
        let trap = trapped(snippet!("rdmsr").run(registers), vector::GP)?;
        check_eq!(trap.error, 0, "error code");
        check!(trap.frame.gprs == registers, "registers changed");
    }
    Ok(())
}

pub fn unknown_write() -> Outcome {
    refused(0x1234_5678, 0)?;
    refused(0xc000_f000, u64::MAX)
}

pub fn refused_at_cpl3() -> Outcome {
    let registers = Gprs {
        rcx: u64::from(FS_BASE),
        ..Gprs::ZERO
    };
    must_fault_user(&snippet!("rdmsr"), registers, vector::GP, 0)?;
    must_fault_user(&snippet!("wrmsr"), registers, vector::GP, 0)
}

/// RDMSR ignores the upper half of RCX and clears those of RAX and RDX.
pub fn upper_halves() -> Outcome {
    let ones = 0xffff_ffff_0000_0000;
    let out = snippet!("rdmsr").run(Gprs {
        rcx: ones | u64::from(EFER),
        rax: ones,
        rdx: ones,
        ..Gprs::ZERO
    })?;
    check_eq!((out.rax | out.rdx) >> 32, 0, "upper halves");
    check_eq!(out.rax, rdmsr(EFER)?, "EFER");
    Ok(())
}

pub fn efer_start() -> Outcome {
    check_eq!(rdmsr(EFER)?, LME | LMA | NXE, "EFER");
    Ok(())
}

/// Clearing LME while paging is on raises #GP(0) and changes nothing (SDM vol. 3 11.8.5, APM2 14.6).
pub fn efer_lme_under_paging() -> Outcome {
    let efer = rdmsr(EFER)?;
    refused(EFER, efer & !LME)?;
    check_eq!(rdmsr(EFER)?, efer, "EFER");
    Ok(())
}

pub fn efer_reserved_bits() -> Outcome {
    let efer = rdmsr(EFER)?;
    refused(EFER, efer | 1 << 63)?;
    refused(EFER, efer | 1 << 40)?;
    refused(EFER, efer | 1 << 9)
}

pub fn efer_hides_svme() -> Outcome {
    let efer = rdmsr(EFER)?;
    check_eq!(efer & SVME, 0, "SVME");
    refused(EFER, efer | SVME)
}

pub fn efer_sce_and_nxe_toggle() -> Outcome {
    let efer = rdmsr(EFER)?;
    keeps(EFER, efer | SCE)?;
    keeps(EFER, efer & !SCE)?;
    keeps(EFER, efer & !NXE)
}

pub fn pat_own() -> Outcome {
    check_eq!(rdmsr(PAT)?, 0x0007_0406_0007_0406, "PAT at the start");
    keeps(PAT, 0x0605_0401_0006_0701)
}

/// Types 2, 3 and above 7 are reserved (SDM vol. 3 13.12.2, APM2 7.8.1).
pub fn pat_illegal_types() -> Outcome {
    let before = rdmsr(PAT)?;
    for illegal in [2, 3, 8, 0x80] {
        refused(PAT, illegal)?;
        refused(PAT, illegal << 56)?;
    }
    check_eq!(rdmsr(PAT)?, before, "PAT");
    Ok(())
}

pub fn bases_keep_values() -> Outcome {
    for msr in [FS_BASE, GS_BASE, KERNEL_GS_BASE] {
        keeps(msr, 0x7fff_1234_5678)?;
        keeps(msr, 0xffff_8000_1234_5678)?;
    }
    Ok(())
}

fn called(call: Call) -> Outcome {
    let (status, _) = hypercall::call(call, [0; 3]);
    check!(status == Status::OK, "{call:?}: {status:?}");
    Ok(())
}

/// Exits of every kind of way in and out of the guest: those that the hypervisor serves with these registers still on the CPU, and those for
/// which it switches them; one after the other, and with another vCPU's turn between.
pub fn exits_keep_switched_registers() -> Outcome {
    let values = [
        (FS_BASE, 0x1111_2222_3000),
        (GS_BASE, 0xffff_8000_4444_5000),
        (KERNEL_GS_BASE, 0xffff_8000_6666_7000),
        (STAR, 0x0018_0008_1234_5678),
        (LSTAR, 0xffff_8000_0000_1000),
        (CSTAR, 0xffff_8000_0000_2000),
        (SFMASK, 0x0000_0700),
        (SYSENTER_CS, 0x8),
        (SYSENTER_ESP, 0x7fff_0000_3000),
        (SYSENTER_EIP, 0xffff_8000_0000_4000),
    ];
    let exits: [fn() -> Outcome; 4] = [
        || {
            cpu::cpuid(leaves::LEAF_SIGNATURE, 0);
            Ok(())
        },
        || called(Call::VERSION),
        || called(Call::YIELD),
        || rdmsr(EFER).map(|_| ()).map_err(Into::into),
    ];
    let mut before = values;
    for (msr, value) in &mut before {
        *value = rdmsr(*msr)?;
    }
    let mut wrong = None;
    for (msr, value) in values {
        wrmsr(msr, value)?;
    }
    for first in exits {
        for second in exits {
            first()?;
            second()?;
            for (msr, value) in values {
                if rdmsr(msr)? != value {
                    wrong = wrong.or(Some(msr));
                }
            }
        }
    }
    for (msr, value) in before {
        wrmsr(msr, value)?;
    }
    check!(wrong.is_none(), "MSR {wrong:x?} has changed");
    Ok(())
}

pub fn bases_non_canonical() -> Outcome {
    if crate::left_out_for_tcg("the check of addresses in MSRs that do not exit") {
        return Ok(());
    }
    for msr in [FS_BASE, GS_BASE, KERNEL_GS_BASE] {
        refused(msr, NON_CANONICAL)?;
    }
    Ok(())
}

pub fn fs_base_is_used() -> Outcome {
    crate::PAGES.set_u64(64, 0x1122_3344_5566_7788);
    wrmsr(FS_BASE, crate::PAGES.address())?;
    let out = snippet!("mov rax, fs:[64]").run(Gprs::ZERO)?;
    wrmsr(FS_BASE, 0)?;
    check_eq!(out.rax, 0x1122_3344_5566_7788, "what FS reads");
    Ok(())
}

pub fn swapgs() -> Outcome {
    wrmsr(GS_BASE, 0x1000)?;
    wrmsr(KERNEL_GS_BASE, 0x2000)?;
    snippet!("swapgs").run(Gprs::ZERO)?;
    check_eq!(rdmsr(GS_BASE)?, 0x2000, "GS base");
    check_eq!(rdmsr(KERNEL_GS_BASE)?, 0x1000, "kernel GS base");
    must_fault_user(&snippet!("swapgs"), Gprs::ZERO, vector::GP, 0)
}

pub fn syscall_registers_keep_values() -> Outcome {
    keeps(STAR, 0x0018_0008_1234_5678)?;
    keeps(LSTAR, 0xffff_8000_0000_1000)?;
    keeps(CSTAR, 0x2000)?;
    keeps(SFMASK, 0x4_7700)
}

pub fn lstar_non_canonical() -> Outcome {
    refused(LSTAR, NON_CANONICAL)
}

pub fn syscall_and_sysret() -> Outcome {
    let kernel = snippet!("mov rbx, cs", "mov r8, rcx", "sysretq");
    let user = snippet!("syscall", "mov rdx, cs");
    wrmsr(STAR, 0x0018_0008 << 32)?;
    wrmsr(LSTAR, kernel.start())?;
    wrmsr(SFMASK, 0x700)?;
    let efer = rdmsr(EFER)?;
    wrmsr(EFER, efer | SCE)?;
    let result = user.run_user(Gprs::ZERO);
    wrmsr(EFER, efer)?;
    let out = result?;
    check_eq!(out.rbx, 8, "CS in the kernel");
    check_eq!(out.r8, user.start() + 2, "RCX in the kernel");
    check_eq!(out.rdx, 0x2b, "CS afterwards");
    Ok(())
}

pub fn syscall_needs_sce() -> Outcome {
    must_fault_user(&snippet!("syscall"), Gprs::ZERO, vector::UD, 0)
}

pub fn sysenter_registers_keep_values() -> Outcome {
    keeps(SYSENTER_CS, 8)?;
    keeps(SYSENTER_ESP, 0x7fff_0000)?;
    keeps(SYSENTER_EIP, 0x1234_5678)
}

/// In long mode SYSENTER is Intel's alone; on AMD it raises #UD (APM3), but Bochs executes it on all its CPUs.
pub fn sysenter() -> Outcome {
    let kernel = snippet!("mov rbx, cs", "mov rdx, rsp", "int 0x80");
    wrmsr(SYSENTER_CS, 8)?;
    wrmsr(SYSENTER_ESP, crate::PAGES.address() + 2048)?;
    wrmsr(SYSENTER_EIP, kernel.start())?;
    let user = snippet!("sysenter");
    let result = user.run_user(Gprs::ZERO);
    wrmsr(SYSENTER_CS, 0)?;
    if cpu::is_amd() && result.is_err() {
        check_eq!(trapped(result, vector::UD)?.rip(), user.start(), "RIP");
        return Ok(());
    }
    let out = result?;
    check_eq!(out.rbx, 8, "CS");
    check_eq!(out.rdx, crate::PAGES.address() + 2048, "RSP");
    Ok(())
}

pub fn tsc() -> Outcome {
    let before = cpu::rdtsc();
    let seen = rdmsr(TSC)?;
    let after = cpu::rdtsc();
    check!(
        before <= seen && seen <= after,
        "{seen} is not between {before} and {after}"
    );
    Ok(())
}

pub fn rdtscp_and_tsc_aux() -> Outcome {
    if cpu::cpuid(0x8000_0001, 0).edx & 1 << 27 == 0 {
        return must_fault(&snippet!("rdtscp"), Gprs::ZERO, vector::UD, 0);
    }
    let before = rdmsr(TSC_AUX)?;
    wrmsr(TSC_AUX, 0x1234_5678)?;
    let out = snippet!("rdtscp").run(Gprs::ZERO)?;
    wrmsr(TSC_AUX, before)?;
    check_eq!(out.rcx, 0x1234_5678, "RCX");
    check!(out.rdx << 32 | out.rax <= cpu::rdtsc(), "ahead of RDTSC");
    Ok(())
}

pub fn tsc_monotonic() -> Outcome {
    let mut last = cpu::rdtsc();
    for _ in 0..1000 {
        let now = cpu::rdtsc();
        check!(now >= last, "{now} after {last}");
        last = now;
        if now & 0xf == 0 {
            plinth_rt::hypercall::yield_now();
        }
    }
    Ok(())
}

fn unreadable(msr: u32) -> Outcome {
    let registers = Gprs {
        rcx: u64::from(msr),
        ..Gprs::ZERO
    };
    let trap = trapped(snippet!("rdmsr").run(registers), vector::GP)?;
    check_eq!(trap.error, 0, "error code");
    Ok(())
}

/// The bits of SPEC_CTRL that CPUID announces (SDM vol. 4 table 2-2; APM2 3.2.9).
fn spec_ctrl_bits() -> u64 {
    let gather = |register: u32, rules: &[(u32, u64)]| {
        rules
            .iter()
            .filter(|(bit, _)| register & 1 << bit != 0)
            .fold(0, |all, (_, bits)| all | bits)
    };
    if cpu::is_amd() {
        let sizes = cpu::cpuid(0x8000_0008, 0).ebx;
        return gather(sizes, &[(14, 1), (15, 2), (24, 4), (28, 0x80)]);
    }
    let features = cpu::cpuid(7, 0);
    let bits = gather(features.edx, &[(26, 1), (27, 2), (31, 4)]);
    if features.eax < 2 {
        return bits;
    }
    let more = [(0, 0x80), (1, 0x18), (2, 0x60), (4, 0x400)];
    bits | gather(cpu::cpuid(7, 2).edx, &more)
}

/// It is there if one of its bits is, keeps those and refuses all others, also over exits and turns of others on the CPU.
pub fn spec_ctrl() -> Outcome {
    let offered = spec_ctrl_bits();
    if offered == 0 {
        unreadable(SPEC_CTRL)?;
        return refused(SPEC_CTRL, 0);
    }
    check_eq!(rdmsr(SPEC_CTRL)?, 0, "SPEC_CTRL at the start");
    for bit in (0..64).map(|bit| 1 << bit) {
        if offered & bit != 0 {
            keeps(SPEC_CTRL, bit)?;
        } else {
            refused(SPEC_CTRL, bit)?;
        }
    }
    for value in [offered, 0, offered] {
        wrmsr(SPEC_CTRL, value)?;
        for _ in 0..10 {
            plinth_rt::hypercall::yield_now();
        }
        check_eq!(rdmsr(SPEC_CTRL)?, value, "SPEC_CTRL afterwards");
    }
    wrmsr(SPEC_CTRL, 0)?;
    Ok(())
}

/// A command, which is not there to be read.
pub fn prediction_command() -> Outcome {
    unreadable(PRED_CMD)?;
    let offered = if cpu::is_amd() {
        cpu::cpuid(0x8000_0008, 0).ebx & 1 << 12 != 0
    } else {
        cpu::cpuid(7, 0).edx & 1 << 26 != 0
    };
    if !offered {
        return refused(PRED_CMD, 1);
    }
    wrmsr(PRED_CMD, 0)?;
    wrmsr(PRED_CMD, 1)?;
    refused(PRED_CMD, 2)?;
    refused(PRED_CMD, 1 << 63)
}

pub fn arch_capabilities() -> Outcome {
    if cpu::is_amd() || cpu::cpuid(7, 0).edx & 1 << 29 == 0 {
        unreadable(ARCH_CAPABILITIES)?;
    } else {
        // Bits of registers that guests do not have.
        check_eq!(
            rdmsr(ARCH_CAPABILITIES)? & (1 << 7 | 1 << 9 | 1 << 18 | 1 << 25),
            0,
            "TSX_CTRL, MCU_CONTROL, FB_CLEAR_CTRL, GDS_CTRL"
        );
    }
    refused(ARCH_CAPABILITIES, 0)
}

/// The L1 data cache is flushed for guests, not by them.
pub fn no_flush_command() -> Outcome {
    check!(
        cpu::is_amd() || cpu::cpuid(7, 0).edx & 1 << 28 == 0,
        "L1D_FLUSH is shown"
    );
    unreadable(FLUSH_CMD)?;
    refused(FLUSH_CMD, 1)
}

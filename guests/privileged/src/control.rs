//! Control registers, CLTS, LMSW, SMSW, XSETBV.

use plinth_rt::cpu::{self, cpuid};
use plinth_rt::paging::{self, flag};
use plinth_rt::suite::{faulted, must_fault, must_fault_user, trapped};
use plinth_rt::trap::vector;
use plinth_rt::{Gprs, Outcome, Snippet, Trap, check, check_eq, snippet};

const PE: u64 = 1 << 0;
const MP: u64 = 1 << 1;
const EM: u64 = 1 << 2;
const TS: u64 = 1 << 3;
const ET: u64 = 1 << 4;
const WP: u64 = 1 << 16;
const NW: u64 = 1 << 29;
const CD: u64 = 1 << 30;
const PG: u64 = 1 << 31;

const TSD: u64 = 1 << 2;
const PAE: u64 = 1 << 5;
const PGE: u64 = 1 << 7;
const PCE: u64 = 1 << 8;
const UMIP: u64 = 1 << 11;
const VMXE: u64 = 1 << 13;
const SMXE: u64 = 1 << 14;
const FSGSBASE: u64 = 1 << 16;
const PCIDE: u64 = 1 << 17;
const SMEP: u64 = 1 << 20;
const SMAP: u64 = 1 << 21;
const PKE: u64 = 1 << 22;

fn refused(result: Result<(), Trap>) -> Outcome {
    match result {
        Err(trap) if trap.vector == vector::GP && trap.error == 0 => Ok(()),
        Err(trap) => Err(trap.into()),
        Ok(()) => Err(format_args!("the value was taken").into()),
    }
}

pub fn cr0_pg_without_pe() -> Outcome {
    let cr0 = cpu::cr0()?;
    refused(cpu::set_cr0(cr0 & !PE))?;
    check_eq!(cpu::cr0()?, cr0, "CR0");
    Ok(())
}

pub fn cr0_nw_without_cd() -> Outcome {
    refused(cpu::set_cr0(cpu::cr0()? & !CD | NW))
}

pub fn cr0_pg_clear_in_long_mode() -> Outcome {
    refused(cpu::set_cr0(cpu::cr0()? & !PG))
}

pub fn cr0_upper_half() -> Outcome {
    refused(cpu::set_cr0(cpu::cr0()? | 1 << 32))
}

pub fn cr0_et_stays() -> Outcome {
    cpu::set_cr0(cpu::cr0()? & !ET)?;
    check_eq!(cpu::cr0()? & ET, ET, "ET");
    Ok(())
}

pub fn cr0_cd_reads_back() -> Outcome {
    let cr0 = cpu::cr0()?;
    cpu::set_cr0(cr0 | CD)?;
    check_eq!(cpu::cr0()?, cr0 | CD, "CR0 with CD");
    cpu::set_cr0(cr0 | CD | NW)?;
    check_eq!(cpu::cr0()?, cr0 | CD | NW, "CR0 with CD and NW");
    cpu::set_cr0(cr0)?;
    check_eq!(cpu::cr0()?, cr0, "CR0");
    Ok(())
}

pub fn cr0_wp_enforced() -> Outcome {
    let address = paging::map(0, crate::PAGES.address(), flag::PRESENT);
    let store = snippet!("mov byte ptr [rdi], 1");
    let registers = Gprs {
        rdi: address,
        ..Gprs::ZERO
    };
    let trap = faulted(&store, store.run(registers), vector::PF, 3)?;
    check_eq!(trap.cr2, address, "CR2");
    cpu::set_cr0(cpu::cr0()? & !WP)?;
    store.run(registers)?;
    cpu::set_cr0(cpu::cr0()? | WP)?;
    faulted(&store, store.run(registers), vector::PF, 3)?;
    Ok(())
}

pub fn cr0_ts() -> Outcome {
    let cr0 = cpu::cr0()?;
    cpu::set_cr0(cr0 | TS)?;
    check_eq!(cpu::cr0()?, cr0 | TS, "CR0");
    must_fault(&snippet!("fninit"), Gprs::ZERO, vector::NM, 0)?;
    must_fault(&snippet!("pxor xmm0, xmm0"), Gprs::ZERO, vector::NM, 0)?;
    snippet!("clts").run(Gprs::ZERO)?;
    check_eq!(cpu::cr0()?, cr0, "CR0 after CLTS");
    snippet!("fninit").run(Gprs::ZERO)?;
    Ok(())
}

pub fn cr0_mp() -> Outcome {
    let cr0 = cpu::cr0()?;
    cpu::set_cr0(cr0 | TS | MP)?;
    must_fault(&snippet!("fwait"), Gprs::ZERO, vector::NM, 0)?;
    cpu::set_cr0((cr0 | TS) & !MP)?;
    snippet!("fwait").run(Gprs::ZERO)?;
    Ok(())
}

pub fn cr0_em() -> Outcome {
    cpu::set_cr0(cpu::cr0()? | EM)?;
    must_fault(&snippet!("fninit"), Gprs::ZERO, vector::NM, 0)?;
    must_fault(&snippet!("pxor xmm0, xmm0"), Gprs::ZERO, vector::UD, 0)
}

pub fn clts_at_cpl3() -> Outcome {
    must_fault_user(&snippet!("clts"), Gprs::ZERO, vector::GP, 0)
}

/// LMSW changes PE, MP, EM and TS, and cannot clear PE.
pub fn lmsw() -> Outcome {
    let cr0 = cpu::cr0()?;
    snippet!("lmsw ax").run(Gprs {
        rax: 0xfff0 | TS | EM,
        ..Gprs::ZERO
    })?;
    check_eq!(cpu::cr0()?, cr0 & !MP | TS | EM, "CR0 after a register");
    crate::PAGES.set_u64(0, MP);
    snippet!("lmsw word ptr [rdi]").run(Gprs {
        rdi: crate::PAGES.address(),
        ..Gprs::ZERO
    })?;
    check_eq!(cpu::cr0()?, cr0 & !(TS | EM) | MP, "CR0 after memory");
    must_fault_user(&snippet!("lmsw ax"), Gprs::ZERO, vector::GP, 0)
}

pub fn smsw() -> Outcome {
    let cr0 = cpu::cr0()?;
    let out = snippet!("smsw rax").run(Gprs::ZERO)?;
    check_eq!(out.rax & 0xffff_ffff, cr0, "register");
    crate::PAGES.set_u64(8, u64::MAX);
    snippet!("smsw word ptr [rdi]").run(Gprs {
        rdi: crate::PAGES.address() + 8,
        ..Gprs::ZERO
    })?;
    check_eq!(crate::PAGES.get_u64(8), !0xffff | cr0 & 0xffff, "memory");
    Ok(())
}

/// Every general register as the operand, RSP included.
pub fn cr0_every_operand() -> Outcome {
    let cr0 = cpu::cr0()?;
    type Case = (Snippet, fn(&Gprs) -> u64);
    let snippets: [Case; 6] = [
        (snippet!("mov rbx, cr0", "mov cr0, rbx"), |r| r.rbx),
        (snippet!("mov rbp, cr0", "mov cr0, rbp"), |r| r.rbp),
        (snippet!("mov rdi, cr0", "mov cr0, rdi"), |r| r.rdi),
        (snippet!("mov r8, cr0", "mov cr0, r8"), |r| r.r8),
        (snippet!("mov r15, cr0", "mov cr0, r15"), |r| r.r15),
        (
            snippet!(
                "mov r8, rsp",
                "mov rsp, cr0",
                "mov rax, rsp",
                "mov cr0, rsp",
                "mov rsp, r8"
            ),
            |r| r.rax,
        ),
    ];
    for (index, (snippet, pick)) in snippets.iter().enumerate() {
        let out = snippet.run(Gprs::ZERO)?;
        check!(
            pick(&out) == cr0,
            "operand {index}: {:#x}, expected {cr0:#x}",
            pick(&out)
        );
    }
    check_eq!(cpu::cr0()?, cr0, "CR0");
    Ok(())
}

/// The mod field of MOV to and from a control register is ignored: the operand is a register (SDM vol. 2 MOV).
pub fn mov_cr_ignores_mod() -> Outcome {
    let out = snippet!(".byte 0x0f, 0x20, 0x03").run(Gprs::ZERO)?;
    check_eq!(out.rbx, cpu::cr0()?, "RBX");
    let out = snippet!(".byte 0x0f, 0x20, 0x63, 0x90").run(Gprs::ZERO)?;
    check_eq!(out.rbx, cpu::cr4()?, "RBX from CR4");
    Ok(())
}

pub fn cr_at_cpl3() -> Outcome {
    must_fault_user(&snippet!("mov rax, cr0"), Gprs::ZERO, vector::GP, 0)?;
    must_fault_user(&snippet!("mov cr0, rax"), Gprs::ZERO, vector::GP, 0)?;
    must_fault_user(&snippet!("mov cr3, rax"), Gprs::ZERO, vector::GP, 0)?;
    must_fault_user(&snippet!("mov cr4, rax"), Gprs::ZERO, vector::GP, 0)?;
    must_fault_user(&snippet!("mov cr8, rax"), Gprs::ZERO, vector::GP, 0)
}

pub fn cr3_reserved_bits() -> Outcome {
    if crate::left_out_for_tcg("the check of CR3's reserved bits") {
        return Ok(());
    }
    let cr3 = cpu::cr3()?;
    refused(cpu::set_cr3(cr3 | 1 << 52))?;
    refused(cpu::set_cr3(cr3 | 1 << 62))?;
    check_eq!(cpu::cr3()?, cr3, "CR3");
    Ok(())
}

pub fn cr3_cache_bits_read_back() -> Outcome {
    let cr3 = cpu::cr3()?;
    cpu::set_cr3(cr3 | 0x18)?;
    check_eq!(cpu::cr3()?, cr3 | 0x18, "CR3");
    Ok(())
}

pub fn cr4_reserved_bits() -> Outcome {
    let cr4 = cpu::cr4()?;
    for bit in [15, 30, 31, 32, 63] {
        refused(cpu::set_cr4(cr4 | 1 << bit))?;
    }
    check_eq!(cpu::cr4()?, cr4, "CR4");
    Ok(())
}

pub fn cr4_vmxe_and_smxe() -> Outcome {
    let cr4 = cpu::cr4()?;
    check_eq!(cr4 & (VMXE | SMXE), 0, "VMXE, SMXE");
    refused(cpu::set_cr4(cr4 | VMXE))?;
    refused(cpu::set_cr4(cr4 | SMXE))
}

pub fn cr4_pae_clear_in_long_mode() -> Outcome {
    refused(cpu::set_cr4(cpu::cr4()? & !PAE))
}

pub fn cr4_toggles() -> Outcome {
    let cr4 = cpu::cr4()?;
    for bit in [PGE, PCE, TSD, 1 << 3, 1 << 6] {
        for value in [cr4 ^ bit, cr4] {
            cpu::set_cr4(value)?;
            check_eq!(cpu::cr4()?, value, "CR4");
        }
    }
    Ok(())
}

/// A bit whose feature CPUID does not show is reserved.
pub fn cr4_follows_cpuid() -> Outcome {
    let cr4 = cpu::cr4()?;
    let (ebx, ecx) = if cpuid(0, 0).eax >= 7 {
        (cpuid(7, 0).ebx, cpuid(7, 0).ecx)
    } else {
        (0, 0)
    };
    let has = |register: u32, bit: u32| register >> bit & 1 != 0;
    let all = [
        (UMIP, has(ecx, 2), true),
        (FSGSBASE, has(ebx, 0), true),
        (PKE, has(ecx, 3), true),
        (crate::CR4_OSXSAVE, crate::has_xsave(), true),
        // Not switched on: the code of the guest lies in pages of CPL 3. PCIDE asks for bits of CR3 that are in use.
        (SMEP, has(ebx, 7), false),
        (SMAP, has(ebx, 20), false),
        (PCIDE, has(cpuid(1, 0).ecx, 17), false),
    ];
    for (bit, shown, harmless) in all {
        if !shown {
            check!(
                refused(cpu::set_cr4(cr4 | bit)).is_ok(),
                "bit {bit:#x} was taken though CPUID does not show it"
            );
        } else if harmless {
            cpu::set_cr4(cr4 | bit)?;
            check_eq!(cpu::cr4()?, cr4 | bit, "CR4");
            cpu::set_cr4(cr4)?;
        }
    }
    Ok(())
}

pub fn cr4_tsd() -> Outcome {
    snippet!("rdtsc").run_user(Gprs::ZERO)?;
    cpu::set_cr4(cpu::cr4()? | TSD)?;
    snippet!("rdtsc").run(Gprs::ZERO)?;
    must_fault_user(&snippet!("rdtsc"), Gprs::ZERO, vector::GP, 0)
}

pub fn cr8() -> Outcome {
    for value in 0..16 {
        cpu::set_cr8(value)?;
        check_eq!(cpu::cr8()?, value, "CR8");
    }
    cpu::set_cr8(0)?;
    refused(cpu::set_cr8(16))?;
    refused(cpu::set_cr8(1 << 63))
}

pub fn absent_registers() -> Outcome {
    let absent = [
        snippet!(".byte 0x0f, 0x20, 0xc8"),       // from CR1
        snippet!(".byte 0x0f, 0x22, 0xc8"),       // to CR1
        snippet!(".byte 0x0f, 0x20, 0xe8"),       // from CR5
        snippet!(".byte 0x0f, 0x22, 0xf0"),       // to CR6
        snippet!(".byte 0x0f, 0x20, 0xf8"),       // from CR7
        snippet!(".byte 0x44, 0x0f, 0x20, 0xc8"), // from CR9
        snippet!(".byte 0x44, 0x0f, 0x22, 0xf8"), // to CR15
    ];
    for snippet in absent {
        must_fault(&snippet, Gprs::ZERO, vector::UD, 0)?;
    }
    Ok(())
}

pub fn xsetbv_rules() -> Outcome {
    check!(crate::has_xsave(), "the machine has no XSAVE");
    let xsetbv = snippet!("xsetbv");
    must_fault(
        &xsetbv,
        Gprs {
            rax: 1,
            ..Gprs::ZERO
        },
        vector::UD,
        0,
    )?;
    cpu::set_cr4(cpu::cr4()? | crate::CR4_OSXSAVE)?;
    let before = cpu::xgetbv()?;
    refused(cpu::xsetbv(0, 0))?;
    refused(cpu::xsetbv(0, 2))?;
    refused(cpu::xsetbv(0, 5))?;
    refused(cpu::xsetbv(0, 1 << 62 | 3))?;
    refused(cpu::xsetbv(1, 3))?;
    check_eq!(cpu::xgetbv()?, before, "XCR0");
    cpu::xsetbv(0, 3)?;
    check_eq!(cpu::xgetbv()?, 3, "XCR0");
    cpu::xsetbv(0, before)?;
    let registers = Gprs {
        rax: 1,
        ..Gprs::ZERO
    };
    trapped(xsetbv.run_user(registers), vector::GP)?;
    Ok(())
}

//! The instructions of VMX, SVM and SMX, and the switches that would enable them: a guest has none of it, whatever its operands.

use plinth_rt::quirks::{is_tcg, left_out_for_tcg};
use plinth_rt::suite::{must_fault, must_fault_user, trapped};
use plinth_rt::trap::vector;
use plinth_rt::{Gprs, Outcome, Snippet, check, check_eq, cpu, hypercall, snippet};

use crate::attacker::{FREE, RAM, at, inside, poke};

/// An operand where nothing is, which must not be touched: an instruction that is not there reads none.
fn behind_the_end() -> Gprs {
    Gprs {
        rax: RAM + 0x1000,
        rbx: 0x4000,
        rcx: 1,
        ..at(RAM)
    }
}

/// An operand that would be good.
fn in_memory() -> Gprs {
    Gprs {
        rax: FREE,
        rbx: FREE,
        rcx: 1,
        ..at(FREE)
    }
}

/// Cases of one instruction each: #UD at CPL 0, whatever the operands are, and this at CPL 3.
macro_rules! undefined {
    ($cpl3:ident: $($name:ident: $code:literal;)*) => {$(
        fn $name() -> Outcome {
            inside(|| {
                let code = snippet!($code);
                // The revision that a VMCS would have.
                poke(FREE, 1);
                for registers in [behind_the_end(), in_memory(), Gprs::ZERO] {
                    must_fault(&code, registers, vector::UD, 0)?;
                    $cpl3(&code, registers)?;
                }
                check_eq!(crate::attacker::peek(FREE), 1, "the operand");
                Ok(())
            })
        }
    )*};
}

fn undefined(code: &Snippet, registers: Gprs) -> Outcome {
    must_fault_user(code, registers, vector::UD, 0)
}

/// SVM's own: the CPU looks at the CPL before it looks at intercepts (APM2 15.9, docs/abi.md).
fn privileged_on_amd(code: &Snippet, registers: Gprs) -> Outcome {
    // TCG looks at the intercept of SKINIT before it looks at the CPL.
    let skinit = code.length() == 3 && crate::attacker::peek(code.start()) & 0xff_ffff == 0xde_010f;
    if cpu::is_amd() && !(skinit && is_tcg()) {
        must_fault_user(code, registers, vector::GP, 0)
    } else {
        undefined(code, registers)
    }
}

undefined! { undefined:
    vmxon: "vmxon [rdi]";
    vmxoff: "vmxoff";
    vmclear: "vmclear [rdi]";
    vmptrld: "vmptrld [rdi]";
    vmptrst: "vmptrst [rdi]";
    vmread_to_register: "vmread rax, rbx";
    vmread_to_memory: "vmread [rdi], rbx";
    vmwrite: "vmwrite rax, rbx";
    vmlaunch: "vmlaunch";
    vmresume: "vmresume";
    vmfunc: "vmfunc";
    invept: "invept rax, [rdi]";
    invvpid: "invvpid rax, [rdi]";
    getsec: ".byte 0x0f, 0x37";
    rsm: "rsm";
    seamcall: ".byte 0x66, 0x0f, 0x01, 0xcf";
}

undefined! { privileged_on_amd:
    vmrun: "vmrun";
    vmload: "vmload";
    vmsave: "vmsave";
    stgi: "stgi";
    clgi: "clgi";
    skinit: ".byte 0x0f, 0x01, 0xde";
    invlpga: ".byte 0x0f, 0x01, 0xdf";
}

cases!("virtualisation":
    vmxon, vmxoff, vmclear, vmptrld, vmptrst, vmread_to_register, vmread_to_memory, vmwrite, vmlaunch, vmresume, vmfunc, invept,
    invvpid, getsec, rsm, seamcall, vmrun, vmload, vmsave, stgi, clgi, skinit, invlpga,
    other_vendors_call,
    efer_svme,
    cr4_vmxe_and_smxe,
    msrs_that_would_enable_it,
    register_forms_of_group_seven,
    register_forms_of_group_nine,
    prefixes_before_a_hypercall,
);

/// The call of the other vendor's CPUs, and both at CPL 3.
fn other_vendors_call() -> Outcome {
    inside(|| {
        let calls = [snippet!("vmcall"), snippet!("vmmcall")];
        let [own, other] = if hypercall::is_vmmcall() {
            [&calls[1], &calls[0]]
        } else {
            [&calls[0], &calls[1]]
        };
        must_fault(other, Gprs::ZERO, vector::UD, 0)?;
        must_fault_user(other, Gprs::ZERO, vector::UD, 0)?;
        must_fault_user(own, Gprs::ZERO, vector::UD, 0)
    })
}

/// EFER.SVME cannot be set, and is not seen to be.
fn efer_svme() -> Outcome {
    inside(|| {
        let efer = cpu::rdmsr(0xc000_0080)?;
        check_eq!(efer & 1 << 12, 0, "SVME as it is read");
        trapped(
            snippet!("wrmsr").run(Gprs {
                rax: efer & 0xffff_ffff | 1 << 12,
                rcx: 0xc000_0080,
                ..Gprs::ZERO
            }),
            vector::GP,
        )?;
        check_eq!(cpu::rdmsr(0xc000_0080)?, efer, "EFER after it");
        Ok(())
    })
}

fn cr4_vmxe_and_smxe() -> Outcome {
    inside(|| {
        let cr4 = cpu::cr4()?;
        check_eq!(cr4 & (3 << 13), 0, "VMXE and SMXE as they are read");
        for bit in [13, 14] {
            let trap = cpu::set_cr4(cr4 | 1 << bit).err();
            check!(
                trap.is_some_and(|trap| (trap.vector, trap.error) == (vector::GP, 0)),
                "bit {bit} was taken"
            );
            check_eq!(cpu::cr4()?, cr4, "CR4 after it");
        }
        Ok(())
    })
}

/// FEATURE_CONTROL, VM_CR, VM_HSAVE_PA, SVM_KEY, SMM_CTL, IGNNE, SMM_MONITOR_CTL and what VMX is capable of: refused, or locked.
fn msrs_that_would_enable_it() -> Outcome {
    inside(|| {
        for msr in (0x480..=0x493)
            .chain([0x9b])
            .chain(0xc001_0111..=0xc001_0113)
            .chain(0xc001_0115..=0xc001_0119)
        {
            check!(cpu::rdmsr(msr).is_err(), "MSR {msr:#x} can be read");
            check!(cpu::wrmsr(msr, 1).is_err(), "MSR {msr:#x} can be written");
        }
        let locked = if cpu::is_amd() {
            (0xc001_0114, 0x18, 0x18)
        } else {
            (0x3a, 7, 1)
        };
        let (msr, mask, value) = locked;
        for attempt in [0, 5, 7, u64::MAX] {
            // Refused or without effect.
            let _ = cpu::wrmsr(msr, attempt);
            check_eq!(cpu::rdmsr(msr)? & mask, value, "the locking MSR");
        }
        Ok(())
    })
}

/// Runs `code`, whose last byte is replaced by each of these; what it gives must be nothing, #UD or #GP.
fn each_last_byte(code: &Snippet, bytes: core::ops::RangeInclusive<u8>) -> Outcome {
    let copy = code.copy_to(FREE);
    // A form that writes to RSP takes the stack away from its own return.
    for byte in bytes.filter(|byte| byte & 7 != 4) {
        let word = crate::attacker::peek(FREE);
        let shift = 8 * (copy.length() - 1);
        poke(FREE, word & !(0xff << shift) | u64::from(byte) << shift);
        // The value suits LMSW and SMSW, and is the number of VERSION.
        let registers = Gprs {
            rax: 0,
            rbx: FREE + 0x100,
            ..at(1)
        };
        match copy.run(registers) {
            Ok(_) => {}
            Err(trap) => {
                check!(
                    matches!((trap.vector, trap.error), (vector::UD | vector::GP, 0)),
                    "byte {byte:#x}: {trap}"
                );
            }
        }
    }
    Ok(())
}

/// 0F 01 C0 to FF: where VMX, SVM, SGX, XSAVE and others hide.
fn register_forms_of_group_seven() -> Outcome {
    inside(|| each_last_byte(&snippet!(".byte 0x0f, 0x01, 0xc0"), 0xc0..=0xff))
}

/// 0F C7 C0 to FF, with the prefixes that make it VMCLEAR, VMXON or RDPID in other forms.
fn register_forms_of_group_nine() -> Outcome {
    inside(|| {
        each_last_byte(&snippet!(".byte 0x0f, 0xc7, 0xc0"), 0xc0..=0xff)?;
        each_last_byte(&snippet!(".byte 0x66, 0x0f, 0xc7, 0xc0"), 0xc0..=0xff)?;
        each_last_byte(&snippet!(".byte 0xf3, 0x0f, 0xc7, 0xc0"), 0xc0..=0xff)
    })
}

/// LOCK makes it #UD (SDM vol. 2, VMCALL); the others must not confuse where it ends.
fn prefixes_before_a_hypercall() -> Outcome {
    inside(|| {
        let [plain, long, locked] = if hypercall::is_vmmcall() {
            [
                snippet!(".byte 0x48, 0x0f, 0x01, 0xd9", "mov ecx, 5"),
                snippet!(
                    ".byte 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65, 0x4f, 0x0f, 0x01, 0xd9",
                    "mov ecx, 5"
                ),
                snippet!(".byte 0xf0, 0x0f, 0x01, 0xd9"),
            ]
        } else {
            [
                snippet!(".byte 0x48, 0x0f, 0x01, 0xc1", "mov ecx, 5"),
                snippet!(
                    ".byte 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65, 0x4f, 0x0f, 0x01, 0xc1",
                    "mov ecx, 5"
                ),
                snippet!(".byte 0xf0, 0x0f, 0x01, 0xc1"),
            ]
        };
        for code in [plain, long] {
            let out = code.run(Gprs::ZERO)?;
            check_eq!(
                out.rdx,
                u64::from(plinth_rt::abi::ABI_VERSION),
                "the version"
            );
            check_eq!(out.rcx, 5, "RCX of the next instruction");
        }
        if left_out_for_tcg("the check of LOCK before VMMCALL") {
            return Ok(());
        }
        must_fault(&locked, Gprs::ZERO, vector::UD, 0)
    })
}

//! Instructions that a guest does not have, and those that always exit.

use plinth_rt::suite::{must_fault, must_fault_user};
use plinth_rt::trap::vector;
use plinth_rt::{Gprs, Outcome, check_eq, snippet};

/// One test an instruction: #UD at CPL 0 and at CPL 3, as on a CPU that lacks it.
macro_rules! undefined {
    ($($name:ident: $code:literal;)*) => {$(
        pub fn $name() -> Outcome {
            let snippet = snippet!($code);
            must_fault(&snippet, crate::addresses(), vector::UD, 0)?;
            must_fault_user(&snippet, crate::addresses(), vector::UD, 0)
        }
    )*};
}

undefined! {
    vmxon: "vmxon [rdi]";
    vmxoff: "vmxoff";
    vmclear: "vmclear [rdi]";
    vmptrld: "vmptrld [rdi]";
    vmptrst: "vmptrst [rdi]";
    vmread: "vmread rax, rbx";
    vmwrite: "vmwrite rax, rbx";
    vmlaunch: "vmlaunch";
    vmresume: "vmresume";
    vmfunc: "vmfunc";
    invept: "invept rax, [rdi]";
    invvpid: "invvpid rax, [rdi]";
    getsec: ".byte 0x0f, 0x37";
    rsm: "rsm";
    encls: ".byte 0x0f, 0x01, 0xcf";
    enclv: ".byte 0x0f, 0x01, 0xc0";
    pconfig: ".byte 0x0f, 0x01, 0xc5";
    monitor: "monitor";
    mwait: "mwait";
}

/// SVM's own. A guest runs with EFER.SVME set, whatever it reads, and the CPU checks CPL before it looks at intercepts (APM2
/// 15.9): from CPL 3 they raise #GP on CPUs that have them.
macro_rules! undefined_at_cpl0 {
    ($($name:ident: $code:literal;)*) => {$(
        pub fn $name() -> Outcome {
            let snippet = snippet!($code);
            must_fault(&snippet, crate::addresses(), vector::UD, 0)?;
            match must_fault_user(&snippet, crate::addresses(), vector::GP, 0) {
                Ok(()) => Ok(()),
                Err(_) => must_fault_user(&snippet, crate::addresses(), vector::UD, 0),
            }
        }
    )*};
}

undefined_at_cpl0! {
    vmrun: "vmrun";
    vmload: "vmload";
    vmsave: "vmsave";
    stgi: "stgi";
    clgi: "clgi";
    skinit: ".byte 0x0f, 0x01, 0xde";
    invlpga: ".byte 0x0f, 0x01, 0xdf";
}

/// There are no performance counters: every number is beyond the last.
pub fn rdpmc() -> Outcome {
    for counter in [0u64, 3, 0x4000_0000, 0x1234_5678] {
        let registers = Gprs {
            rcx: counter,
            ..Gprs::ZERO
        };
        must_fault(&snippet!("rdpmc"), registers, vector::GP, 0)?;
        must_fault_user(&snippet!("rdpmc"), registers, vector::GP, 0)?;
    }
    Ok(())
}

pub fn pause() -> Outcome {
    let out = snippet!("2: pause", "dec rcx", "jnz 2b").run(Gprs {
        rcx: 100_000,
        ..Gprs::ZERO
    })?;
    check_eq!(out.rcx, 0, "RCX");
    Ok(())
}

pub fn invd() -> Outcome {
    crate::PAGES.set_u64(0, 0x5555);
    snippet!("invd").run(Gprs::ZERO)?;
    check_eq!(crate::PAGES.get_u64(0), 0x5555, "memory after INVD");
    must_fault_user(&snippet!("invd"), Gprs::ZERO, vector::GP, 0)
}

pub fn wbinvd() -> Outcome {
    snippet!("wbinvd").run(Gprs::ZERO)?;
    must_fault_user(&snippet!("wbinvd"), Gprs::ZERO, vector::GP, 0)
}

pub fn hlt_at_cpl3() -> Outcome {
    must_fault_user(&snippet!("hlt"), Gprs::ZERO, vector::GP, 0)
}

pub fn invlpg_at_cpl3() -> Outcome {
    must_fault_user(&snippet!("invlpg [rdi]"), crate::addresses(), vector::GP, 0)
}

pub fn cli_and_sti_at_cpl3() -> Outcome {
    must_fault_user(&snippet!("cli"), Gprs::ZERO, vector::GP, 0)?;
    must_fault_user(&snippet!("sti"), Gprs::ZERO, vector::GP, 0)
}

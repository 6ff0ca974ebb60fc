//! Reaches for what is not its own: ports, MSRs and memory of the machine. What can be survived comes first, a test each;
//! the last deed is a write beyond the end of its memory, which ends the domain.

#![no_std]
#![no_main]
#![allow(
    clippy::result_large_err,
    reason = "without a heap a trap and a failure travel by value"
)]
#![allow(
    unsafe_code,
    reason = "snippet! assembles code; what is run, the runtime runs"
)]

use plinth_rt::abi::{Call, Status};
use plinth_rt::trap::vector;
use plinth_rt::{
    Gprs, Outcome, check, check_eq, cpu, hypercall, println, ram_size, snippet, suite,
};

plinth_rt::entry!(main);

fn read(port: u16) -> Outcome {
    let registers = Gprs {
        rdx: u64::from(port),
        ..Gprs::ZERO
    };
    for (snippet, expected) in [
        (snippet!("in al, dx"), 0xff),
        (snippet!("in ax, dx"), 0xffff),
        (snippet!("in eax, dx"), 0xffff_ffff),
    ] {
        let seen = snippet.run(registers)?.rax;
        check!(
            seen == expected,
            "port {port:#x} reads {seen:#x}, expected {expected:#x}"
        );
    }
    Ok(())
}

fn write(port: u16, value: u8) -> Outcome {
    snippet!("out dx, al").run(Gprs {
        rdx: u64::from(port),
        rax: u64::from(value),
        ..Gprs::ZERO
    })?;
    Ok(())
}

/// Text on the machine's serial port would be seen in its log.
fn port_serial() -> Outcome {
    for port in 0x3f8..0x400 {
        read(port)?;
    }
    for byte in *b"TRESPASS\n" {
        write(0x3f8, byte)?;
    }
    Ok(())
}

fn port_keyboard() -> Outcome {
    read(0x60)?;
    read(0x64)?;
    // Resets the machine.
    write(0x64, 0xfe)
}

fn port_pci() -> Outcome {
    snippet!("out dx, eax").run(Gprs {
        rdx: 0xcf8,
        rax: 0x8000_0000,
        ..Gprs::ZERO
    })?;
    read(0xcf8)?;
    read(0xcfc)
}

fn port_interrupt_controllers() -> Outcome {
    for port in [0x20, 0x21, 0xa0, 0xa1, 0x40, 0x43, 0x61, 0x70, 0x71] {
        read(port)?;
    }
    write(0x21, 0xff)?;
    write(0xa1, 0xff)
}

fn port_reset() -> Outcome {
    read(0xcf9)?;
    write(0xcf9, 0x0e)?;
    // System control port A.
    write(0x92, 1)
}

fn port_power_off() -> Outcome {
    // The ACPI PM1a control registers of QEMU's q35 and i440fx, and of Bochs: S5 with SLP_EN.
    for port in [0x604u64, 0xb004] {
        for value in [0x2000, 0x3400] {
            snippet!("out dx, ax").run(Gprs {
                rdx: port,
                rax: value,
                ..Gprs::ZERO
            })?;
        }
    }
    Ok(())
}

fn port_emulator_exit() -> Outcome {
    read(0xf4)?;
    write(0xf4, 0x55)?;
    read(0xe9)?;
    for byte in *b"Shutdown" {
        write(0x8900, byte)?;
    }
    Ok(())
}

/// The same word by one OUTS, as a string form may take another path.
fn port_emulator_exit_by_string() -> Outcome {
    static WORD: [u8; 8] = *b"Shutdown";
    let out = snippet!("rep outsb").run(Gprs {
        rdx: 0x8900,
        rcx: WORD.len() as u64,
        rsi: WORD.as_ptr() as u64,
        ..Gprs::ZERO
    })?;
    check_eq!(out.rcx, 0, "RCX");
    Ok(())
}

fn refused(registers: core::ops::RangeInclusive<u32>) -> Outcome {
    for msr in registers {
        for result in [cpu::rdmsr(msr).map(drop), cpu::wrmsr(msr, 0)] {
            match result {
                Err(trap) if trap.vector == vector::GP && trap.error == 0 => {}
                Err(trap) => return Err(trap.into()),
                Ok(()) => return Err(format_args!("MSR {msr:#x} was accessible").into()),
            }
        }
    }
    Ok(())
}

fn msr_vmx() -> Outcome {
    refused(0x480..=0x493)
}

/// IA32_FEATURE_CONTROL, where there is one, is locked with VMX off (SDM vol. 3 25.7).
fn msr_feature_control() -> Outcome {
    if cpu::is_amd() {
        return refused(0x3a..=0x3a);
    }
    if let Ok(value) = cpu::rdmsr(0x3a) {
        check_eq!(value & 7, 1, "lock and VMX bits");
    }
    check!(cpu::wrmsr(0x3a, 5).is_err(), "the lock bit did not hold");
    Ok(())
}

/// VM_CR, where there is one, says that SVM is locked off (APM2 15.30.1); IGNNE, SMM_CTL, VM_HSAVE_PA and SVM_LOCK_KEY are
/// not there.
fn msr_svm() -> Outcome {
    // Refused or without effect.
    let _ = cpu::wrmsr(0xc001_0114, 0);
    if let Ok(value) = cpu::rdmsr(0xc001_0114) {
        check_eq!(value & 0x18, 0x18, "LOCK and SVMDIS");
    }
    refused(0xc001_0115..=0xc001_0118)
}

fn msr_smm() -> Outcome {
    refused(0xc001_0111..=0xc001_0113)?;
    refused(0x9b..=0x9b)
}

fn msr_x2apic() -> Outcome {
    refused(0x802..=0x803)?;
    refused(0x808..=0x80f)?;
    refused(0x830..=0x83f)
}

/// A guest that is shown no local APIC has no register that says where it is.
fn msr_apic_base() -> Outcome {
    if cpu::cpuid(1, 0).edx & 1 << 9 == 0 {
        return refused(0x1b..=0x1b);
    }
    // Moving the page must not move the machine's.
    let _ = cpu::wrmsr(0x1b, 0x10_0800);
    Ok(())
}

fn msr_tsc_deadline() -> Outcome {
    refused(0x6e0..=0x6e0)
}

/// No code of the guest lies there, and nothing of the kernel shows through.
fn kernel_addresses() -> Outcome {
    for address in [
        0xffff_8000_0000_0000u64,
        0xffff_ffff_8000_0000,
        0xffff_ffff_8020_0000,
        0xffff_ffff_ffff_f000,
    ] {
        for snippet in [
            snippet!("mov rax, [rdi]"),
            snippet!("mov [rdi], rax"),
            snippet!("jmp rdi"),
        ] {
            let result = snippet.run(Gprs {
                rdi: address,
                ..Gprs::ZERO
            });
            match result {
                Err(trap) if trap.vector == vector::PF && trap.cr2 == address => {}
                Err(trap) => return Err(trap.into()),
                Ok(_) => return Err(format_args!("{address:#x} was accessible").into()),
            }
        }
    }
    Ok(())
}

/// The console must not show what is not the guest's memory.
fn console_of_foreign_memory() -> Outcome {
    for address in [
        ram_size(),
        ram_size() - 8,
        0xfee0_0000,
        0xfec0_0000,
        1 << 32,
        0xffff_8000_0000_0000,
    ] {
        let (status, _) = hypercall::call(Call::CONSOLE_WRITE, [address, 64, 0]);
        check!(
            status == Status::BAD_ADDRESS,
            "64 bytes at {address:#x}: {status:?}"
        );
    }
    Ok(())
}

/// Memory comes zeroed: nothing of who had it before is left. Below the image, and from 1 MiB behind its start to where the
/// stack and the page tables may begin.
fn memory_is_zeroed() -> Outcome {
    const IMAGE: u64 = 0x10_0000;
    const TOP: u64 = 0x4_0000;
    for (start, end) in [(0, IMAGE), (2 * IMAGE, ram_size() - TOP)] {
        let out = snippet!("repe scasq", "setne al").run(Gprs {
            rdi: start,
            rcx: (end - start) / 8,
            ..Gprs::ZERO
        })?;
        check!(
            out.rax == 0,
            "the word at {:#x} is not zero",
            out.rdi.wrapping_sub(8)
        );
    }
    Ok(())
}

fn main() -> u64 {
    let failed = suite!(
        "trespass",
        [
            port_serial,
            port_keyboard,
            port_pci,
            port_interrupt_controllers,
            port_reset,
            port_power_off,
            port_emulator_exit,
            port_emulator_exit_by_string,
            msr_vmx,
            msr_feature_control,
            msr_svm,
            msr_smm,
            msr_x2apic,
            msr_apic_base,
            msr_tsc_deadline,
            kernel_addresses,
            console_of_foreign_memory,
            memory_is_zeroed,
        ]
    );
    println!("writing beyond the end of memory");
    let result = snippet!("mov [rdi], rax").run(Gprs {
        rdi: ram_size(),
        ..Gprs::ZERO
    });
    // Not reached where the kernel holds.
    println!("the write came back: {}", result.is_ok());
    failed + 1
}

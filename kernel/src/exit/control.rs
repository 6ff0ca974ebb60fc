//! Control registers: CR0, CR4, CR8, and XCR0 by XSETBV. What is legal is decided by `rules::cr`. CR3 is the guest's own: with
//! nested paging its accesses do not exit.

use super::access::{self, Fault};
use super::{Next, apic, instruction, raise};
use crate::arch::fpu;
use crate::decode::{Operand, Operation};
use crate::object::{Context, Run};
use crate::rules::GeneralProtection;
use crate::rules::cr::{self, ControlState, Effect};
use crate::virt::exit::ControlRegister;
use crate::virt::{Event, SegmentName, Vcpu as _, Vendor};

/// RAX to R15 by encoding, RSP among them.
fn gpr<V: Vendor>(vcpu: &Context<V>, number: u8) -> u64 {
    const RSP: u8 = 4;
    if number == RSP {
        vcpu.hw.rsp()
    } else {
        vcpu.hw.gprs().get(number)
    }
}

fn set_gpr<V: Vendor>(vcpu: &mut Context<V>, number: u8, value: u64) {
    const RSP: u8 = 4;
    if number == RSP {
        vcpu.hw.set_rsp(value);
    } else {
        vcpu.hw.gprs_mut().set(number, value);
    }
}

/// What decides which writes are legal.
pub(super) fn state<V: Vendor>(vcpu: &Context<V>) -> ControlState {
    let tss_type = vcpu.hw.segment(SegmentName::Tr).attributes & 0xf;
    ControlState {
        cr0: vcpu.hw.cr0(),
        cr3: vcpu.hw.cr3(),
        cr4: vcpu.hw.cr4(),
        efer: vcpu.hw.efer(),
        cs_l: vcpu.hw.segment(SegmentName::Cs).is_long(),
        tss_16: matches!(tss_type, 1 | 3),
    }
}

/// Serves an access to a control register.
pub(super) fn handle<V: Vendor>(
    vcpu: &mut Context<V>,
    run: &Run<'_, V>,
    access: ControlRegister,
) -> Next {
    let length = match instruction::length(vcpu) {
        Ok(length) => length,
        Err(next) => return next,
    };
    let result = match access {
        ControlRegister::Write {
            register,
            gpr: number,
        } => {
            let value = operand(vcpu, number);
            write(vcpu, register, value)
        }
        ControlRegister::Read {
            register,
            gpr: number,
        } => read(vcpu, register, number),
        ControlRegister::Clts => clts(vcpu),
        ControlRegister::Lmsw(operand) => lmsw(vcpu, operand),
        ControlRegister::Undecoded { .. } => match undecoded(vcpu) {
            Ok(result) => result,
            Err(next) => return next,
        },
    };
    match result {
        Ok(()) => {
            vcpu.hw.skip(length);
            // With another priority one may be taken that had to wait.
            vcpu.deliver_interrupt(run.vcpu)
        }
        Err(fault) => fault.next(vcpu),
    }
}

/// The value of a general register as a MOV to a control register takes it: 32 bits outside 64-bit mode.
fn operand<V: Vendor>(vcpu: &Context<V>, number: u8) -> u64 {
    let value = gpr(vcpu, number);
    if state(vcpu).in_64_bit_mode() {
        value
    } else {
        value & 0xffff_ffff
    }
}

/// Decodes the instruction that accessed a control register, and does it.
fn undecoded<V: Vendor>(vcpu: &mut Context<V>) -> Result<Result<(), Fault>, Next> {
    let insn = instruction::decoded(vcpu)?;
    Ok(match insn.operation {
        Operation::WriteControl { control, register } => {
            let value = operand(vcpu, register.number);
            write(vcpu, control, value)
        }
        Operation::ReadControl { control, register } => read(vcpu, control, register.number),
        Operation::Clts => clts(vcpu),
        Operation::Lmsw(Operand::Register(register)) => {
            let value = register.read(gpr(vcpu, register.number));
            lmsw(vcpu, value as u16)
        }
        Operation::Lmsw(Operand::Memory(memory)) => {
            let next_rip = vcpu.hw.rip().wrapping_add(u64::from(insn.length));
            let linear = memory.linear_address(
                &|number| gpr(vcpu, number),
                &|segment| vcpu.hw.segment(access::segment_name(segment)).base,
                next_rip,
            );
            let mut bytes = [0; 2];
            access::read(vcpu, linear, &mut bytes)
                .and_then(|()| lmsw(vcpu, u16::from_le_bytes(bytes)))
        }
        // Another CPU has changed the bytes meanwhile: the guest runs what is there now.
        _ => return Err(Next::Resume),
    })
}

fn write<V: Vendor>(vcpu: &mut Context<V>, register: u8, value: u64) -> Result<(), Fault> {
    let now = state(vcpu);
    let features = vcpu.cpuid.features();
    match register {
        0 => {
            let effect = cr::write_cr0(value, &now)?;
            apply_cr0(vcpu, &effect)
        }
        4 => {
            let effect = cr::write_cr4(value, &now, features.cr4)?;
            load_pdptes(vcpu, &effect, now.cr3)?;
            vcpu.hw.set_cr4(effect.value);
            vcpu.reach_xcr0(effect.value);
            Ok(())
        }
        8 => {
            let class = cr::write_cr8(value)?;
            apic::set_task_priority(vcpu, class);
            Ok(())
        }
        _ => Err(Fault::Exception(Event::UD)),
    }
}

fn read<V: Vendor>(vcpu: &mut Context<V>, register: u8, number: u8) -> Result<(), Fault> {
    let value = match register {
        0 => vcpu.hw.cr0(),
        4 => vcpu.hw.cr4(),
        8 => u64::from(apic::task_priority(vcpu)),
        _ => return Err(Fault::Exception(Event::UD)),
    };
    set_gpr(vcpu, number, value);
    Ok(())
}

fn clts<V: Vendor>(vcpu: &mut Context<V>) -> Result<(), Fault> {
    let value = cr::clts(&state(vcpu));
    vcpu.hw.set_cr0(value);
    Ok(())
}

fn lmsw<V: Vendor>(vcpu: &mut Context<V>, operand: u16) -> Result<(), Fault> {
    let effect = cr::lmsw(operand, &state(vcpu))?;
    apply_cr0(vcpu, &effect)
}

fn apply_cr0<V: Vendor>(vcpu: &mut Context<V>, effect: &Effect) -> Result<(), Fault> {
    load_pdptes(vcpu, effect, vcpu.hw.cr3())?;
    vcpu.hw.set_cr0(effect.value);
    Ok(())
}

/// Loads the four top entries of PAE paging where the write asks for it (SDM vol. 3 5.4.1).
fn load_pdptes<V: Vendor>(vcpu: &mut Context<V>, effect: &Effect, cr3: u64) -> Result<(), Fault> {
    if !effect.load_pdptes {
        return Ok(());
    }
    let loaded = vcpu
        .domain
        .read_pdptes(cr3)
        .map_err(|gpa| Fault::Unmapped {
            gpa,
            write: false,
            fetch: false,
            table_walk: true,
        })?;
    vcpu.hw
        .set_pdptes(loaded)
        .map_err(|_| Fault::Exception(Event::GP0))
}

/// XSETBV (SDM vol. 2): CPL 0 was checked by the CPU, except under SVM, where the intercept comes first.
pub(super) fn xsetbv<V: Vendor>(vcpu: &mut Context<V>) -> Next {
    const OSXSAVE: u64 = 1 << 18;
    if vcpu.hw.cr4() & OSXSAVE == 0 {
        return raise(vcpu, Event::UD);
    }
    let gprs = vcpu.hw.gprs();
    let (index, value) = (gprs.rcx as u32, gprs.edx_eax());
    let supported = vcpu.cpuid.features().xcr0;
    match cr::write_xcr0(value, supported) {
        Ok(value) if index == 0 && vcpu.hw.cpl() == 0 => {
            if let Err(next) = instruction::skip(vcpu) {
                return next;
            }
            fpu::set_xcr0(value);
            Next::Resume
        }
        _ => raise(vcpu, Event::GP0),
    }
}

impl From<GeneralProtection> for Fault {
    fn from(_: GeneralProtection) -> Self {
        Self::Exception(Event::GP0)
    }
}

//! From exit reasons to [`Exit`]: every reason of SDM appendix C has its place here, and the work that an exit leaves to
//! software before anybody looks at it: events whose delivery was cut short, NMIs, debug registers.

use super::apic;
use super::ops;
use super::validate;
use super::validate::bits::{DR7_GD, RFLAGS_TF};
use super::vcpu::Inner;
use super::vmcs::{
    self, Dr7, ExitReason, InstructionError, Interruptibility, InterruptionInfo, PendingDebug,
    PrimaryControls, Qualification,
};
use super::{enter, host};
use crate::mem::Gpa;
use crate::virt::event::vector;
use crate::virt::exit::{ControlRegister, EntryFailure, Instruction, Io, NestedFault};
use crate::virt::{Event, EventKind, Exit};

impl Inner {
    /// What the exit with this reason means. VMCALL has been dealt with by the caller, on a shorter way.
    #[inline(never)]
    pub(super) fn decode(&mut self, reason: ExitReason) -> Exit {
        if reason == enter::NOT_ENTERED {
            return not_entered();
        }
        if reason.is_entry_failure() {
            return self.entry_failed(reason);
        }
        match reason.basic() {
            ExitReason::EXTERNAL_INTERRUPT | ExitReason::PREEMPTION_TIMER => Exit::Host,
            ExitReason::IO => Exit::Io(io(vmcs::EXIT_QUALIFICATION.read())),
            ExitReason::HLT => Exit::Halt,
            ExitReason::CPUID => Exit::Cpuid,
            ExitReason::INTERRUPT_WINDOW => {
                self.change_primary(PrimaryControls::INTERRUPT_WINDOW_EXITING, false);
                Exit::InterruptWindow
            }
            ExitReason::EPT_VIOLATION => {
                let qualification = vmcs::EXIT_QUALIFICATION.read();
                self.requeue(qualification.0 & 1 << 12 != 0);
                Exit::NestedFault(nested_fault(
                    qualification,
                    vmcs::GUEST_PHYSICAL_ADDRESS.read(),
                ))
            }
            ExitReason::RDMSR => Exit::ReadMsr,
            ExitReason::WRMSR => Exit::WriteMsr,
            ExitReason::CONTROL_REGISTER => {
                Exit::ControlRegister(control_register(vmcs::EXIT_QUALIFICATION.read()))
            }
            ExitReason::MOV_DR => Exit::DebugRegister,
            ExitReason::VIRTUALIZED_EOI => {
                Exit::EndOfInterrupt(vmcs::EXIT_QUALIFICATION.read().0 as u8)
            }
            ExitReason::APIC_WRITE => self.apic_write(reason),
            ExitReason::EXCEPTION_OR_NMI => self.exception(),
            ExitReason::VMCALL => Exit::Hypercall,
            ExitReason::PAUSE => Exit::Pause,

            ExitReason::TRIPLE_FAULT => Exit::TripleFault,
            ExitReason::NMI_WINDOW => {
                self.change_primary(PrimaryControls::NMI_WINDOW_EXITING, false);
                Exit::Host
            }
            // The host's own affair: guests' INIT and start-up IPIs are emulated, and these never end a guest's wait.
            ExitReason::INIT
            | ExitReason::STARTUP_IPI
            | ExitReason::IO_SMI
            | ExitReason::OTHER_SMI => Exit::Host,
            ExitReason::TASK_SWITCH => Exit::TaskSwitch {
                selector: vmcs::EXIT_QUALIFICATION.read().0 as u16,
            },
            ExitReason::EPT_MISCONFIGURATION => {
                self.requeue(false);
                Exit::NestedMisconfiguration(vmcs::GUEST_PHYSICAL_ADDRESS.read())
            }

            ExitReason::INVD => Exit::Instruction(Instruction::Invd),
            ExitReason::WBINVD => Exit::Instruction(Instruction::Wbinvd),
            ExitReason::MONITOR => Exit::Instruction(Instruction::Monitor),
            ExitReason::MWAIT => Exit::Instruction(Instruction::Mwait),
            ExitReason::RDPMC => Exit::Instruction(Instruction::Rdpmc),
            ExitReason::XSETBV => Exit::Instruction(Instruction::Xsetbv),
            ExitReason::GETSEC => Exit::Instruction(Instruction::Getsec),
            ExitReason::RSM => Exit::Instruction(Instruction::Rsm),
            ExitReason::VMCLEAR
            | ExitReason::VMLAUNCH
            | ExitReason::VMPTRLD
            | ExitReason::VMPTRST
            | ExitReason::VMREAD
            | ExitReason::VMRESUME
            | ExitReason::VMWRITE
            | ExitReason::VMXOFF
            | ExitReason::VMXON
            | ExitReason::INVEPT
            | ExitReason::INVVPID
            | ExitReason::VMFUNC => Exit::Instruction(Instruction::Virtualisation),
            // What guests' CPUID does not show. ENCLS and ENCLV exit where the CPU has SGX; the others do where the CPU gives
            // no control over it.
            ExitReason::ENCLS
            | ExitReason::ENCLV
            | ExitReason::PCONFIG
            | ExitReason::XSAVES
            | ExitReason::XRSTORS
            | ExitReason::UMWAIT
            | ExitReason::TPAUSE
            | ExitReason::LOADIWKEY
            | ExitReason::ENQCMD
            | ExitReason::ENQCMDS
            | ExitReason::SEAMCALL
            | ExitReason::TDCALL
            | ExitReason::RDMSRLIST
            | ExitReason::WRMSRLIST
            | ExitReason::URDMSR
            | ExitReason::UWRMSR
            | ExitReason::RDMSR_IMMEDIATE
            | ExitReason::WRMSRNS_IMMEDIATE => Exit::Instruction(Instruction::Hidden),

            // Controls that are never set make these: INVLPG, RDTSC, RDTSCP, the descriptor tables, RDRAND, RDSEED and
            // INVPCID are the guest's own affair; there is no monitor trap, no threshold, no APIC-access page, no page-modification log,
            // no sub-page permission, no bus-lock and no timeout exit. So one of them is a defect, and so is a new reason.
            ExitReason::INVLPG
            | ExitReason::RDTSC
            | ExitReason::RDTSCP
            | ExitReason::GDTR_IDTR
            | ExitReason::LDTR_TR
            | ExitReason::RDRAND
            | ExitReason::RDSEED
            | ExitReason::INVPCID
            | ExitReason::MONITOR_TRAP_FLAG
            | ExitReason::TPR_BELOW_THRESHOLD
            | ExitReason::APIC_ACCESS
            | ExitReason::PAGE_MODIFICATION_LOG_FULL
            | ExitReason::SUB_PAGE_PERMISSION
            | ExitReason::BUS_LOCK
            | ExitReason::INSTRUCTION_TIMEOUT => unexpected(reason),
            _ => unexpected(reason),
        }
    }

    /// A write to the local APIC that the CPU keeps, of what it does not virtualise: SELF IPI with a vector below 16 (SDM 30.5).
    fn apic_write(&self, reason: ExitReason) -> Exit {
        let offset = vmcs::EXIT_QUALIFICATION.read().0 & 0xfff;
        match &self.apic {
            Some(page) if offset == apic::SELF_IPI as u64 => {
                Exit::IllegalSelfIpi(apic::register(page.bytes(), apic::SELF_IPI) as u8)
            }
            _ => unexpected(reason),
        }
    }

    /// An exception of the bitmap, or an NMI of the host's.
    fn exception(&mut self) -> Exit {
        let info = vmcs::EXIT_INTERRUPTION_INFO.read();
        if info.kind() == EventKind::Nmi as u8 {
            ops::raise_nmi();
            return Exit::Host;
        }
        self.requeue(info.nmi_unblocking() && info.vector() != vector::DF);
        match info.vector() {
            vector::MC => {
                ops::raise_machine_check();
                return Exit::Host;
            }
            vector::DB => debug_exception(),
            _ => {}
        }
        Exit::Exception(event(
            info,
            vmcs::EXIT_ERROR_CODE.read().0,
            vmcs::EXIT_INSTRUCTION_LENGTH.read().0,
        ))
    }

    /// After an exit that can come in the middle of an event's delivery (SDM 28.2.4): the event is injected again. Where
    /// there is none, and an IRET had just ended the blocking of NMIs when the exit came, they are blocked again, because that
    /// IRET will be executed again (SDM 28.2.3).
    fn requeue(&mut self, nmi_unblocking: bool) {
        let vectoring = vmcs::IDT_VECTORING_INFO.read();
        if !vectoring.valid() {
            if nmi_unblocking && self.virtual_nmis() {
                let blocking = vmcs::GUEST_INTERRUPTIBILITY.read();
                vmcs::GUEST_INTERRUPTIBILITY.write(blocking | Interruptibility::BLOCKING_BY_NMI);
            }
            return;
        }
        if vectoring.kind() == EventKind::Nmi as u8 {
            // VM entry blocks NMIs itself when it injects one, and refuses to inject one into the blocking (SDM 27.3.1.5).
            let blocking = vmcs::GUEST_INTERRUPTIBILITY.read();
            vmcs::GUEST_INTERRUPTIBILITY.write(blocking - Interruptibility::BLOCKING_BY_NMI);
        }
        vmcs::ENTRY_ERROR_CODE.write(vmcs::IDT_VECTORING_ERROR_CODE.read());
        vmcs::ENTRY_INSTRUCTION_LENGTH.write(vmcs::EXIT_INSTRUCTION_LENGTH.read());
        vmcs::ENTRY_INTERRUPTION_INFO.write(vectoring.with_nmi_unblocking(false));
    }

    fn entry_failed(&mut self, reason: ExitReason) -> Exit {
        let qualification = vmcs::EXIT_QUALIFICATION.read();
        if reason.basic() == ExitReason::MACHINE_CHECK_AT_ENTRY {
            ops::raise_machine_check();
        }
        let mut words = validate::entry_failure(reason, qualification);
        if reason.basic() == ExitReason::INVALID_GUEST_STATE
            && let Err(rule) = self.check()
        {
            words = rule.0;
        }
        Exit::EntryFailed(EntryFailure {
            reason: words,
            code: qualification.0,
        })
    }
}

#[cold]
fn unexpected(reason: ExitReason) -> Exit {
    Exit::Unexpected {
        code: u64::from(reason.0),
        info1: vmcs::EXIT_QUALIFICATION.read().0,
        info2: vmcs::GUEST_PHYSICAL_ADDRESS.read().get(),
    }
}

/// VMLAUNCH or VMRESUME failed without an exit (SDM 27.8).
#[cold]
fn not_entered() -> Exit {
    let error = vmcs::try_read(vmcs::INSTRUCTION_ERROR.encoding());
    Exit::EntryFailed(match error {
        Some(error) => EntryFailure {
            reason: validate::instruction_error(InstructionError(error as u32)),
            code: error,
        },
        None => EntryFailure {
            reason: "there is no current VMCS",
            code: 0,
        },
    })
}

/// A #DB that exits has not changed DR6, DR7 or the pending debug exceptions (SDM 28.1); its delivery would have.
fn debug_exception() {
    let qualification = vmcs::EXIT_QUALIFICATION.read();
    let dr7 = vmcs::GUEST_DR7.read();
    host::set_dr6(dr6_after(host::dr6(), qualification, dr7));
    vmcs::GUEST_DR7.write(Dr7(dr7.0 & !DR7_GD));
    // In the shadow of STI or MOV SS with TF set, VM entry insists on a pending single step (SDM 27.3.1.5).
    if vmcs::GUEST_INTERRUPTIBILITY
        .read()
        .intersects(Interruptibility::SHADOW)
        && vmcs::GUEST_RFLAGS.read().0 & RFLAGS_TF != 0
    {
        let pending = vmcs::GUEST_PENDING_DEBUG.read();
        vmcs::GUEST_PENDING_DEBUG.write(PendingDebug(pending.0 | PendingDebug::BS));
    }
}

/// DR6 after the delivery of a #DB with this qualification (SDM 18.2.3, table 28-1): B3 to B0 are those of this exception;
/// BD, BS and the like stay until software clears them. Bit 16 is 0 for a #DB inside a transactional region.
///
/// A CPU may or may not tell that an address was met which DR7 does not have watched. It does not here: the addresses may be another
/// guest's (see [`watch_debug`](crate::virt::Vcpu::watch_debug)).
fn dr6_after(dr6: u64, qualification: Qualification, dr7: Dr7) -> u64 {
    const TRAPS: u64 = 0xf;
    const STICKY: u64 = 1 << 13 | 1 << 14;
    let watched = (0..4).filter(|index| dr7.0 >> (2 * index) & 3 != 0);
    let watched: u64 = watched.map(|index| 1 << index).sum();
    dr6 & !TRAPS | qualification.0 & (watched | STICKY)
}

/// Interruption information of an exit or of IDT vectoring as an event.
pub(super) fn event(info: InterruptionInfo, error_code: u32, instruction_length: u32) -> Event {
    let kind = match info.kind() {
        2 => EventKind::Nmi,
        3 => EventKind::Exception,
        4 => EventKind::SoftwareInterrupt,
        5 => EventKind::PrivilegedSoftwareException,
        6 => EventKind::SoftwareException,
        _ => EventKind::External,
    };
    let by_software = matches!(
        kind,
        EventKind::SoftwareInterrupt
            | EventKind::PrivilegedSoftwareException
            | EventKind::SoftwareException
    );
    Event {
        vector: info.vector(),
        kind,
        error_code: info.has_error_code().then_some(error_code),
        instruction_length: if by_software {
            instruction_length as u8
        } else {
            0
        },
    }
}

/// Whether an exit for this reason leaves the length of the instruction that caused it (SDM 28.2.5).
pub(super) fn has_instruction_length(reason: ExitReason) -> bool {
    matches!(
        reason.basic().0,
        9..=32 | 36 | 39 | 40 | 46 | 47 | 50 | 51 | 53..=55 | 57..=61 | 63..=65 | 67..=70 | 72 | 73 | 76..=85
    )
}

/// SDM table 28-3.
fn control_register(qualification: Qualification) -> ControlRegister {
    let bits = qualification.0;
    let register = (bits & 0xf) as u8;
    let gpr = (bits >> 8 & 0xf) as u8;
    match bits >> 4 & 3 {
        0 => ControlRegister::Write { register, gpr },
        1 => ControlRegister::Read { register, gpr },
        2 => ControlRegister::Clts,
        _ => ControlRegister::Lmsw((bits >> 16) as u16),
    }
}

/// SDM table 28-5.
pub(super) fn io(qualification: Qualification) -> Io {
    let bits = qualification.0;
    Io {
        port: (bits >> 16) as u16,
        size: (bits & 7) as u8 + 1,
        input: bits & 1 << 3 != 0,
        string: bits & 1 << 4 != 0,
        repeat: bits & 1 << 5 != 0,
    }
}

/// SDM table 28-7.
fn nested_fault(qualification: Qualification, gpa: Gpa) -> NestedFault {
    let bits = qualification.0;
    NestedFault {
        gpa,
        write: bits & 1 << 1 != 0,
        fetch: bits & 1 << 2 != 0,
        // Bit 8 says "not the page tables" and is defined where bit 7 says that there is a linear address.
        table_walk: bits & (1 << 7 | 1 << 8) == 1 << 7,
        present: bits & 0b111 << 3 != 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_register_accesses_decode() {
        let decode = |bits| control_register(Qualification(bits));
        assert_eq!(
            decode(0x0c04),
            ControlRegister::Write {
                register: 4,
                gpr: 12
            }
        );
        assert_eq!(
            decode(0x0318),
            ControlRegister::Read {
                register: 8,
                gpr: 3
            }
        );
        assert_eq!(decode(0x0020), ControlRegister::Clts);
        assert_eq!(decode(0xfff1_0030), ControlRegister::Lmsw(0xfff1));
    }

    #[test]
    fn io_accesses_decode() {
        assert_eq!(
            io(Qualification(0x03f8_0048)),
            Io {
                port: 0x3f8,
                size: 1,
                input: true,
                string: false,
                repeat: false
            }
        );
        assert_eq!(
            io(Qualification(0x01f0_0033)),
            Io {
                port: 0x1f0,
                size: 4,
                input: false,
                string: true,
                repeat: true
            }
        );
    }

    #[test]
    fn ept_violations_decode() {
        let gpa = Gpa::new(0x1234);
        let write = nested_fault(Qualification(0b1_1000_0010 | 1 << 3), gpa);
        assert!(write.write && !write.fetch && !write.table_walk && write.present);
        let walk = nested_fault(Qualification(0b0_1000_0001), gpa);
        assert!(!walk.write && walk.table_walk && !walk.present);
        let fetch = nested_fault(Qualification(0b1_1000_0100), gpa);
        assert!(fetch.fetch);
        // PAE entries loaded by MOV CR: no linear address.
        assert!(!nested_fault(Qualification(1), gpa).table_walk);
    }

    #[test]
    fn a_debug_exception_replaces_the_old_breakpoints_in_dr6() {
        const ALL: Dr7 = Dr7(0x4ff);
        let after = |dr6, bits, dr7| dr6_after(dr6, Qualification(bits), dr7);
        assert_eq!(after(0xffff_0ff3, 0b0100, ALL), 0xffff_0ff4);
        assert_eq!(after(0xffff_0ff0, 1 << 14, ALL), 0xffff_4ff0);
        assert_eq!(after(0xffff_2ff0, 1, ALL), 0xffff_2ff1, "BD stays");
    }

    #[test]
    fn an_address_that_is_not_watched_is_not_told() {
        let after = |dr7| dr6_after(0xffff_0ff0, Qualification(0b1111 | 1 << 14), Dr7(dr7));
        assert_eq!(after(0xffff_0400), 0xffff_4ff0);
        assert_eq!(after(0x401), 0xffff_4ff1, "L0");
        assert_eq!(after(0x408), 0xffff_4ff2, "G1");
        assert_eq!(after(0x4c0), 0xffff_4ff8, "L3 and G3");
    }

    #[test]
    fn software_events_keep_their_length_and_others_have_none() {
        let info = InterruptionInfo::new()
            .with_valid(true)
            .with_vector(3)
            .with_kind(6);
        assert_eq!(event(info, 9, 1).instruction_length, 1);
        assert_eq!(event(info, 9, 1).error_code, None);
        let fault = info.with_vector(14).with_kind(3).with_has_error_code(true);
        assert_eq!(event(fault, 9, 1), Event::exception(14, Some(9)));
    }

    #[test]
    fn only_instructions_have_a_length() {
        for reason in [
            ExitReason::CPUID,
            ExitReason::VMCALL,
            ExitReason::IO,
            ExitReason::WRMSR,
            ExitReason::XSETBV,
        ] {
            assert!(has_instruction_length(reason), "{}", reason.name());
        }
        for reason in [
            ExitReason::EXCEPTION_OR_NMI,
            ExitReason::EXTERNAL_INTERRUPT,
            ExitReason::EPT_VIOLATION,
            ExitReason::EPT_MISCONFIGURATION,
            ExitReason::PREEMPTION_TIMER,
            ExitReason::INTERRUPT_WINDOW,
            ExitReason::NMI_WINDOW,
            ExitReason::INVALID_GUEST_STATE,
        ] {
            assert!(!has_instruction_length(reason), "{}", reason.name());
        }
    }
}

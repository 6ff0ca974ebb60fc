//! Exit codes to [`Exit`]: every code of APM2 appendix C ends in a decided place.
//!
//! Pure: what an exit asks of the vCPU itself comes back as another [`Outcome`], and `vcpu` does it.

use super::exit_code::ExitCode;
use super::vmcb::{ControlArea, ExitIntInfo};
use crate::mem::Gpa;
use crate::virt::event::vector;
use crate::virt::exit::{ControlRegister, Instruction, Io, NestedFault};
use crate::virt::{Event, EventKind, Exit};

/// What the control block says about an exit.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// EXITCODE.
    pub code: ExitCode,
    /// EXITINFO1.
    pub info1: u64,
    /// EXITINFO2.
    pub info2: u64,
    /// EXITINTINFO.
    pub interrupted: ExitIntInfo,
    /// The CPU decodes MOV to and from control registers (APM2 15.8.1).
    pub decode_assists: bool,
}

impl Report {
    /// As the CPU wrote it.
    pub fn of(control: &ControlArea, decode_assists: bool) -> Self {
        Self {
            code: control.exit_code.widened(),
            info1: control.exit_info1,
            info2: control.exit_info2,
            interrupted: control.exit_int_info,
            decode_assists,
        }
    }
}

/// What becomes of an exit.
#[derive(Clone, Copy, Debug)]
pub enum Outcome {
    /// It goes up.
    Exit(Exit),
    /// The guest can take an interrupt: the request is withdrawn, then it goes up.
    InterruptWindow,
    /// The guest is about to end its NMI handler.
    Iret,
    /// #DF: delivered again at once.
    DoubleFault,
    /// #MC: the host's handler looks at it.
    MachineCheck,
    /// VMRUN refused the control block.
    Invalid,
}

/// Decides what an exit means.
pub fn decode(report: Report) -> Outcome {
    let Report {
        code, info1, info2, ..
    } = report;
    let unexpected = Outcome::Exit(Exit::Unexpected {
        code: code.0,
        info1,
        info2,
    });
    Outcome::Exit(match code {
        // The host's interrupts stay pending; NMI, SMI and INIT were taken at STGI (APM2 15.13).
        ExitCode::INTR | ExitCode::NMI | ExitCode::SMI | ExitCode::INIT => Exit::Host,
        ExitCode::NPF => nested_fault(info1, info2),
        ExitCode::CPUID => Exit::Cpuid,
        ExitCode::VMMCALL => Exit::Hypercall,
        ExitCode::HLT | ExitCode::IDLE_HLT => Exit::Halt,
        ExitCode::MSR if info1 == 0 => Exit::ReadMsr,
        ExitCode::MSR => Exit::WriteMsr,
        ExitCode::IOIO => Exit::Io(io(info1)),
        ExitCode::PAUSE => Exit::Pause,
        ExitCode::VINTR => return Outcome::InterruptWindow,
        ExitCode::IRET => return Outcome::Iret,
        ExitCode::SHUTDOWN => Exit::TripleFault,
        ExitCode::TASK_SWITCH => Exit::TaskSwitch {
            selector: info1 as u16,
        },
        ExitCode::RDPMC => Exit::Instruction(Instruction::Rdpmc),
        ExitCode::INVD => Exit::Instruction(Instruction::Invd),
        ExitCode::WBINVD => Exit::Instruction(Instruction::Wbinvd),
        ExitCode::MONITOR => Exit::Instruction(Instruction::Monitor),
        ExitCode::MWAIT | ExitCode::MWAIT_CONDITIONAL => Exit::Instruction(Instruction::Mwait),
        ExitCode::XSETBV => Exit::Instruction(Instruction::Xsetbv),
        ExitCode::RSM => Exit::Instruction(Instruction::Rsm),
        ExitCode::VMRUN
        | ExitCode::VMLOAD
        | ExitCode::VMSAVE
        | ExitCode::STGI
        | ExitCode::CLGI
        | ExitCode::SKINIT
        | ExitCode::INVLPGA => Exit::Instruction(Instruction::Virtualisation),
        ExitCode::RDTSCP
        | ExitCode::RDPRU
        | ExitCode::INVLPGB
        | ExitCode::INVLPGB_ILLEGAL
        | ExitCode::MCOMMIT
        | ExitCode::TLBSYNC => Exit::Instruction(Instruction::Hidden),
        ExitCode::CR0_SEL_WRITE => Exit::ControlRegister(control_register(0, true, report)),
        ExitCode(0x00..=0x0f) => {
            Exit::ControlRegister(control_register(code.0 as u8, false, report))
        }
        ExitCode(0x10..=0x1f) => {
            Exit::ControlRegister(control_register(code.0 as u8 & 0xf, true, report))
        }
        // Reads of DR0 to DR3, writes of those and of DR7, which is DR5, too.
        ExitCode(0x20..=0x23 | 0x30..=0x33 | 0x35 | 0x37) => Exit::DebugRegister,
        ExitCode(0x40..=0x5f) => return exception(code.0 as u8 - 0x40, report),
        ExitCode::INVALID => return Outcome::Invalid,
        // None of these is intercepted or enabled: other accesses to debug registers, descriptor tables, RDTSC (offset), PUSHF,
        // POPF, INT n, INVLPG, INVPCID, ICEBP (its #DB is intercepted), bus locks; the traps after a write and
        // VMGEXIT (encrypted guests); AVIC. FERR_FREEZE is intercepted, as a frozen CPU is of no use to anybody: a
        // guest with CR0.NE clear that leaves an x87 exception unmasked needs wiring that Plinth's machine lacks.
        // BUSY, IDLE_REQUIRED and INVALID_PMC answer features that are off.
        ExitCode(0x24..=0x3f)
        | ExitCode(0x66..=0x6e)
        | ExitCode::PUSHF
        | ExitCode::POPF
        | ExitCode::SWINT
        | ExitCode::INVLPG
        | ExitCode::INVPCID
        | ExitCode::ICEBP
        | ExitCode::BUS_LOCK
        | ExitCode::EFER_WRITE_TRAP
        | ExitCode(0x90..=0x9f)
        | ExitCode::VMGEXIT
        | ExitCode::AVIC_INCOMPLETE_IPI
        | ExitCode::AVIC_NOACCEL
        | ExitCode::FERR_FREEZE
        | ExitCode::BUSY
        | ExitCode::IDLE_REQUIRED
        | ExitCode::INVALID_PMC => return unexpected,
        // What later manuals add is not enabled either.
        _ => return unexpected,
    })
}

/// The event that has to be delivered again, once the exit that interrupted its delivery has been served (APM2 15.7.2).
///
/// Events that an instruction raised (INT n, INT3, INTO) are raised again by running that instruction: RIP still points to
/// it. To inject them, the return address on the guest's stack would have to be told in nRIP, which not every CPU has.
pub fn requeue(interrupted: ExitIntInfo) -> Option<Event> {
    interrupted.event().filter(|event| match event.kind {
        EventKind::External | EventKind::Nmi => true,
        EventKind::Exception => !matches!(event.vector, vector::BP | vector::OF),
        EventKind::SoftwareInterrupt
        | EventKind::PrivilegedSoftwareException
        | EventKind::SoftwareException => false,
    })
}

/// IOIO information (APM2 15.10.2).
#[inline]
pub fn io(info1: u64) -> Io {
    Io {
        port: (info1 >> 16) as u16,
        size: match info1 >> 4 & 7 {
            1 => 1,
            2 => 2,
            _ => 4,
        },
        input: info1 & 1 != 0,
        string: info1 & 4 != 0,
        repeat: info1 & 8 != 0,
    }
}

/// Nested page faults (APM2 15.25.6).
#[inline]
pub fn nested_fault(info1: u64, info2: u64) -> Exit {
    let gpa = Gpa::new(info2);
    // A reserved bit in a nested entry. Bit 0 (present) is not looked at: not every implementation sets it then.
    if info1 & 1 << 3 != 0 {
        return Exit::NestedMisconfiguration(gpa);
    }
    Exit::NestedFault(NestedFault {
        gpa,
        write: info1 & 1 << 1 != 0,
        fetch: info1 & 1 << 4 != 0,
        table_walk: info1 & 1 << 33 != 0,
        present: info1 & 1 != 0,
    })
}

/// Accesses to control registers. With decode assists bit 63 says MOV, and bits 3:0 name the general register; CLTS, LMSW
/// and SMSW have it clear (APM2 15.8.1).
fn control_register(register: u8, write: bool, report: Report) -> ControlRegister {
    let gpr = report.info1 as u8 & 0xf;
    let is_move = report.decode_assists && report.info1 >> 63 != 0;
    match (is_move, write) {
        (true, true) => ControlRegister::Write { register, gpr },
        (true, false) => ControlRegister::Read { register, gpr },
        (false, _) => ControlRegister::Undecoded { register, write },
    }
}

/// Intercepted exceptions (APM2 15.12).
fn exception(number: u8, report: Report) -> Outcome {
    let has_code = matches!(
        number,
        vector::DF
            | vector::TS
            | vector::NP
            | vector::SS
            | vector::GP
            | vector::PF
            | vector::AC
            | vector::CP
    );
    match number {
        vector::MC => Outcome::MachineCheck,
        // A second #DF while the first is delivered: not every implementation makes that a shutdown by itself.
        vector::DF => match report.interrupted.event() {
            Some(event) if event.kind == EventKind::Exception && event.vector == vector::DF => {
                Outcome::Exit(Exit::TripleFault)
            }
            _ => Outcome::DoubleFault,
        },
        _ => Outcome::Exit(Exit::Exception(Event::exception(
            number,
            has_code.then_some(report.info1 as u32),
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::vmcb::EventInjection;
    use super::*;

    fn report(code: u64, info1: u64, info2: u64) -> Report {
        Report {
            code: ExitCode(code),
            info1,
            info2,
            interrupted: ExitIntInfo::new(EventInjection::NONE),
            decode_assists: false,
        }
    }

    fn exit(code: u64, info1: u64, info2: u64) -> Exit {
        match decode(report(code, info1, info2)) {
            Outcome::Exit(exit) => exit,
            other => panic!("{other:?}"),
        }
    }

    fn interrupted_by(event: u64) -> ExitIntInfo {
        ExitIntInfo::new(EventInjection::from_bits(event))
    }

    #[test]
    fn ports_are_decoded() {
        // OUT DX, AL to 3f8h; REP INSW from 1f0h; IN EAX from cfch.
        let out = Io {
            port: 0x3f8,
            size: 1,
            input: false,
            string: false,
            repeat: false,
        };
        assert!(matches!(exit(0x7b, 0x03f8_0010 | 1 << 9, 0), Exit::Io(io) if io == out));
        let ins = Io {
            port: 0x1f0,
            size: 2,
            input: true,
            string: true,
            repeat: true,
        };
        assert!(matches!(exit(0x7b, 0x01f0_002d | 1 << 8, 0), Exit::Io(io) if io == ins));
        let long = Io {
            port: 0xcfc,
            size: 4,
            input: true,
            string: false,
            repeat: false,
        };
        assert!(matches!(exit(0x7b, 0x0cfc_0041, 0), Exit::Io(io) if io == long));
    }

    #[test]
    fn nested_faults_are_decoded() {
        let Exit::NestedFault(fault) = exit(0x400, 1 << 32 | 0b110, 0xfee0_0300) else {
            panic!()
        };
        let expected = NestedFault {
            gpa: Gpa::new(0xfee0_0300),
            write: true,
            fetch: false,
            table_walk: false,
            present: false,
        };
        assert_eq!(fault, expected);
        let Exit::NestedFault(fault) = exit(0x400, 1 << 33 | 0b1_0101, 0x1000) else {
            panic!()
        };
        let expected = NestedFault {
            gpa: Gpa::new(0x1000),
            write: false,
            fetch: true,
            table_walk: true,
            present: true,
        };
        assert_eq!(fault, expected);
    }

    #[test]
    fn a_reserved_bit_is_the_kernels_fault_whatever_bit_0_says() {
        assert!(
            matches!(exit(0x400, 0b1000, 0x2000), Exit::NestedMisconfiguration(gpa) if gpa == Gpa::new(0x2000))
        );
        assert!(matches!(
            exit(0x400, 0b1001, 0x2000),
            Exit::NestedMisconfiguration(_)
        ));
    }

    #[test]
    fn msr_accesses_are_told_apart() {
        assert!(matches!(exit(0x7c, 0, 0), Exit::ReadMsr));
        assert!(matches!(exit(0x7c, 1, 0), Exit::WriteMsr));
    }

    #[test]
    fn control_registers_without_decode_assists_stay_undecoded() {
        for (code, register, write) in [
            (0x00, 0, false),
            (0x10, 0, true),
            (0x14, 4, true),
            (0x04, 4, false),
            (0x65, 0, true),
        ] {
            // EXITINFO1 means nothing then, whatever it holds.
            let Exit::ControlRegister(access) = exit(code, 1 << 63 | 3, 0) else {
                panic!()
            };
            assert_eq!(access, ControlRegister::Undecoded { register, write });
        }
    }

    #[test]
    fn control_registers_with_decode_assists_name_the_general_register() {
        let mut assisted = report(0x14, 1 << 63 | 11, 0);
        assisted.decode_assists = true;
        let Outcome::Exit(Exit::ControlRegister(access)) = decode(assisted) else {
            panic!()
        };
        assert_eq!(
            access,
            ControlRegister::Write {
                register: 4,
                gpr: 11
            }
        );
        assisted.code = ExitCode(0x18);
        let Outcome::Exit(Exit::ControlRegister(access)) = decode(assisted) else {
            panic!()
        };
        assert_eq!(
            access,
            ControlRegister::Write {
                register: 8,
                gpr: 11
            }
        );
        // CLTS or LMSW.
        assisted.code = ExitCode(0x10);
        assisted.info1 = 0;
        let Outcome::Exit(Exit::ControlRegister(access)) = decode(assisted) else {
            panic!()
        };
        assert_eq!(
            access,
            ControlRegister::Undecoded {
                register: 0,
                write: true
            }
        );
    }

    #[test]
    fn exceptions_carry_their_error_codes() {
        assert!(
            matches!(exit(0x41, 0, 0), Exit::Exception(e) if e == Event::exception(vector::DB, None))
        );
        assert!(
            matches!(exit(0x51, 0, 0), Exit::Exception(e) if e == Event::exception(vector::AC, Some(0)))
        );
        assert!(
            matches!(exit(0x4e, 6, 0), Exit::Exception(e) if e == Event::exception(vector::PF, Some(6)))
        );
        assert!(matches!(decode(report(0x52, 0, 0)), Outcome::MachineCheck));
    }

    #[test]
    fn a_double_fault_in_a_double_fault_is_a_triple_fault() {
        let mut second = report(0x48, 0, 0);
        assert!(matches!(decode(second), Outcome::DoubleFault));
        second.interrupted = interrupted_by(0x8000_0b0d);
        assert!(matches!(decode(second), Outcome::DoubleFault));
        second.interrupted = interrupted_by(0x8000_0b08);
        assert!(matches!(decode(second), Outcome::Exit(Exit::TripleFault)));
        second.interrupted = interrupted_by(0x8000_0008);
        assert!(
            matches!(decode(second), Outcome::DoubleFault),
            "interrupt 8 is no #DF"
        );
    }

    #[test]
    fn interrupted_deliveries_are_repeated_but_not_those_of_instructions() {
        assert_eq!(
            requeue(interrupted_by(0x8000_0041)),
            Some(Event::external(0x41))
        );
        assert_eq!(requeue(interrupted_by(0x8000_0202)), Some(Event::NMI));
        assert_eq!(
            requeue(interrupted_by(0x2_8000_0b0e)),
            Some(Event::exception(vector::PF, Some(2)))
        );
        assert_eq!(requeue(interrupted_by(0x8000_0480)), None, "INT 80h");
        assert_eq!(requeue(interrupted_by(0x8000_0303)), None, "INT3");
        assert_eq!(requeue(interrupted_by(0x8000_0304)), None, "INTO");
        assert_eq!(requeue(interrupted_by(0x0000_0041)), None, "V is clear");
    }

    #[test]
    fn vendor_instructions_are_hidden_or_named() {
        for code in [0x7a, 0x80, 0x82, 0x83, 0x84, 0x85, 0x86] {
            assert!(
                matches!(
                    exit(code, 0, 0),
                    Exit::Instruction(Instruction::Virtualisation)
                ),
                "{code:#x}"
            );
        }
        for code in [0x87, 0x8e, 0xa0, 0xa1, 0xa3, 0xa4] {
            assert!(
                matches!(exit(code, 0, 0), Exit::Instruction(Instruction::Hidden)),
                "{code:#x}"
            );
        }
    }

    #[test]
    fn the_hosts_events_are_the_hosts() {
        for code in [0x60, 0x61, 0x62, 0x63] {
            assert!(matches!(exit(code, 0, 0), Exit::Host), "{code:#x}");
        }
    }

    #[test]
    fn debug_registers_that_are_watched() {
        for code in [0x20, 0x23, 0x30, 0x33, 0x35, 0x37] {
            assert!(matches!(exit(code, 0, 0), Exit::DebugRegister), "{code:#x}");
        }
    }

    #[test]
    fn the_rest_keeps_its_code() {
        for code in [
            0x24,
            0x27,
            0x34,
            0x36,
            0x3f,
            0x66,
            0x6e,
            0x75,
            0x79,
            0x7e,
            0x88,
            0x8f,
            0x90,
            0xa2,
            0xa5,
            0x401,
            0x403,
            0x1234,
            u64::MAX - 1,
        ] {
            assert!(
                matches!(exit(code, 7, 9), Exit::Unexpected { code: c, info1: 7, info2: 9 } if c == code),
                "{code:#x}"
            );
        }
        assert!(matches!(decode(report(u64::MAX, 0, 0)), Outcome::Invalid));
    }
}

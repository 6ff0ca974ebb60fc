//! The registers of a vCPU in the control block: as the guest sees them, and back.

use plinth_abi::{Segment, VcpuState};

use super::validate::{cr0, cr4, efer};
use super::vmcb::{EventInjection, InterruptState, RegisterSet, SaveArea, Vmcb};
use crate::arch::msr::Msr;
use crate::rules::is_canonical;
use crate::virt::{Event, Gprs, SegmentName};

/// RFLAGS: bit 1, always set.
pub const RFLAGS_FIXED: u64 = 1 << 1;
/// RFLAGS: single step.
pub const RFLAGS_TF: u64 = 1 << 8;
/// RFLAGS: interrupts.
pub const RFLAGS_IF: u64 = 1 << 9;
/// RFLAGS: virtual-8086 mode.
const RFLAGS_VM: u64 = 1 << 17;
/// DR7: accesses to debug registers raise #DB.
pub const DR7_GD: u64 = 1 << 13;
/// DR6: a single step was taken.
const DR6_BS: u64 = 1 << 14;

/// Moves RIP past an instruction of `length` bytes. True: the guest is single-stepping, DR6 says so, and #DB is due.
#[inline(always)]
pub fn skip(vmcb: &mut Vmcb, length: u8) -> bool {
    let save = &mut vmcb.save;
    let next = save.rip.wrapping_add(u64::from(length));
    // Below 4 GiB there is nothing to wrap, whatever the mode.
    save.rip = if next >> 32 == 0 {
        next
    } else {
        wrapped(save, next)
    };
    vmcb.control.interrupt_state = InterruptState::new();
    let steps = save.rflags & RFLAGS_TF != 0;
    if steps {
        save.dr6 |= DR6_BS;
    }
    steps
}

#[cold]
fn wrapped(save: &SaveArea, next: u64) -> u64 {
    let is_64_bit = save.efer & efer::LMA != 0 && save.cs.is_long();
    if is_64_bit { next } else { next & 0xffff_ffff }
}

/// The event as the guest's mode delivers it: in real mode no exception pushes an error code (APM2 8.2, SDM vol. 3 22.1.4).
pub const fn as_delivered(save: &SaveArea, event: Event) -> Event {
    if save.cr0 & cr0::PE != 0 {
        return event;
    }
    Event {
        error_code: None,
        ..event
    }
}

/// Whether the limit of the IDT leaves room for this vector (APM2 8.2.9, 8.9). Where it does not for #DF, delivering it is a
/// triple fault, which Bochs takes for the end of the machine.
pub const fn has_gate(save: &SaveArea, vector: u8) -> bool {
    let size = if save.cr0 & cr0::PE == 0 {
        4
    } else if save.efer & efer::LMA == 0 {
        8
    } else {
        16
    };
    vector as u32 * size + (size - 1) <= save.idtr.limit
}

/// A segment register as any vendor shows it: the DPL of SS is the CPL, the type of TR is busy. SVM keeps the first in a
/// field of its own and does not always keep the second.
pub fn segment(save: &SaveArea, which: SegmentName) -> Segment {
    match which {
        SegmentName::Es => save.es,
        SegmentName::Cs => save.cs,
        SegmentName::Ss => {
            let cpl = u16::from(save.cpl & 3) << 5;
            Segment {
                attributes: save.ss.attributes & !0x60 | cpl,
                ..save.ss
            }
        }
        SegmentName::Ds => save.ds,
        SegmentName::Fs => save.fs,
        SegmentName::Gs => save.gs,
        SegmentName::Ldtr => save.ldtr,
        SegmentName::Tr => Segment {
            attributes: save.tr.attributes | 2,
            ..save.tr
        },
    }
}

/// The place of an MSR that the CPU switches with the block.
pub fn msr(save: &mut SaveArea, msr: Msr) -> Option<&mut u64> {
    Some(match msr {
        Msr::IA32_FS_BASE => &mut save.fs.base,
        Msr::IA32_GS_BASE => &mut save.gs.base,
        Msr::IA32_KERNEL_GS_BASE => &mut save.kernel_gs_base,
        Msr::IA32_STAR => &mut save.star,
        Msr::IA32_LSTAR => &mut save.lstar,
        Msr::IA32_CSTAR => &mut save.cstar,
        Msr::IA32_FMASK => &mut save.sfmask,
        Msr::IA32_SYSENTER_CS => &mut save.sysenter_cs,
        Msr::IA32_SYSENTER_ESP => &mut save.sysenter_esp,
        Msr::IA32_SYSENTER_EIP => &mut save.sysenter_eip,
        Msr::IA32_PAT => &mut save.g_pat,
        _ => return None,
    })
}

/// The value of such an MSR.
pub fn read_msr(save: &SaveArea, msr: Msr) -> Option<u64> {
    Some(match msr {
        Msr::IA32_FS_BASE => save.fs.base,
        Msr::IA32_GS_BASE => save.gs.base,
        Msr::IA32_KERNEL_GS_BASE => save.kernel_gs_base,
        Msr::IA32_STAR => save.star,
        Msr::IA32_LSTAR => save.lstar,
        Msr::IA32_CSTAR => save.cstar,
        Msr::IA32_FMASK => save.sfmask,
        Msr::IA32_SYSENTER_CS => save.sysenter_cs,
        Msr::IA32_SYSENTER_ESP => save.sysenter_esp,
        Msr::IA32_SYSENTER_EIP => save.sysenter_eip,
        Msr::IA32_PAT => save.g_pat,
        _ => return None,
    })
}

/// Writes CR4: the guest's value, and the bits in `forced` that it does not see. Reads exit while the two differ.
pub fn set_cr4(vmcb: &mut Vmcb, guest: u64, forced: u64) {
    vmcb.save.cr4 = guest | forced;
    vmcb.control
        .cr_reads
        .set(RegisterSet::R4, guest != vmcb.save.cr4);
}

/// Writes CR0, and EFER.LMA as it follows from it (APM2 14.6.1).
pub const fn set_cr0(save: &mut SaveArea, value: u64) {
    save.cr0 = value;
    if save.efer & efer::LME != 0 {
        if value & cr0::PG != 0 {
            save.efer |= efer::LMA;
        } else {
            save.efer &= !efer::LMA;
        }
    }
}

/// What of the state is in the block and the general registers; `guest_cr4` is CR4 as the guest sees it.
pub fn state(vmcb: &Vmcb, gprs: &Gprs, guest_cr4: u64, tsc_aux: u64) -> VcpuState {
    let save = &vmcb.save;
    VcpuState {
        rax: gprs.rax,
        rcx: gprs.rcx,
        rdx: gprs.rdx,
        rbx: gprs.rbx,
        rsp: save.rsp,
        rbp: gprs.rbp,
        rsi: gprs.rsi,
        rdi: gprs.rdi,
        r8: gprs.r8,
        r9: gprs.r9,
        r10: gprs.r10,
        r11: gprs.r11,
        r12: gprs.r12,
        r13: gprs.r13,
        r14: gprs.r14,
        r15: gprs.r15,
        rip: save.rip,
        rflags: save.rflags,
        es: save.es,
        cs: save.cs,
        ss: segment(save, SegmentName::Ss),
        ds: save.ds,
        fs: save.fs,
        gs: save.gs,
        ldtr: save.ldtr,
        tr: segment(save, SegmentName::Tr),
        gdtr: save.gdtr,
        idtr: save.idtr,
        cr0: save.cr0,
        cr2: save.cr2,
        cr3: save.cr3,
        cr4: guest_cr4,
        xcr0: 0,
        dr: [0; 4],
        dr6: save.dr6,
        dr7: save.dr7,
        efer: save.efer & !efer::SVME,
        pat: save.g_pat,
        star: save.star,
        lstar: save.lstar,
        cstar: save.cstar,
        sfmask: save.sfmask,
        kernel_gs_base: save.kernel_gs_base,
        sysenter_cs: save.sysenter_cs,
        sysenter_esp: save.sysenter_esp,
        sysenter_eip: save.sysenter_eip,
        tsc_aux,
    }
}

/// Puts a state into the block and the general registers. No event is left to be injected, no interrupt shadow.
pub fn set_state(vmcb: &mut Vmcb, gprs: &mut Gprs, state: &VcpuState, forced_cr4: u64) {
    *gprs = Gprs::from(state);
    set_cr4(vmcb, state.cr4, forced_cr4);
    vmcb.control.interrupt_state = InterruptState::new();
    vmcb.control.event_injection = EventInjection::NONE;
    let save = &mut vmcb.save;
    save.rsp = state.rsp;
    save.rip = state.rip;
    save.rflags = state.rflags | RFLAGS_FIXED;
    save.es = state.es;
    save.cs = state.cs;
    save.ss = state.ss;
    save.ds = state.ds;
    save.fs = state.fs;
    save.gs = state.gs;
    save.ldtr = state.ldtr;
    save.tr = state.tr;
    save.gdtr = state.gdtr;
    save.idtr = state.idtr;
    save.cr0 = state.cr0;
    save.cr2 = state.cr2;
    save.cr3 = state.cr3;
    save.dr6 = state.dr6;
    save.dr7 = state.dr7;
    save.efer = state.efer | efer::SVME;
    save.g_pat = state.pat;
    save.star = state.star;
    save.lstar = state.lstar;
    save.cstar = state.cstar;
    save.sfmask = state.sfmask;
    save.kernel_gs_base = state.kernel_gs_base;
    save.sysenter_cs = state.sysenter_cs;
    save.sysenter_esp = state.sysenter_esp;
    save.sysenter_eip = state.sysenter_eip;
    save.cpl = if state.cr0 & cr0::PE == 0 {
        0
    } else if state.rflags & RFLAGS_VM != 0 {
        3
    } else {
        state.ss.dpl()
    };
}

/// Rules that VMRUN does not check and that a sensible state keeps: it makes bases canonical and ignores what it has no use for (APM2
/// 15.5.1), but no instruction leads to such a state, and what one vendor's CPUs refuse the others' are not asked to bear.
///
/// # Errors
/// The rule that is broken.
pub fn sensible(state: &VcpuState) -> Result<(), &'static str> {
    let long = state.efer & efer::LME != 0 && state.cr0 & cr0::PG != 0;
    if (state.efer & efer::LMA != 0) != long {
        return Err("EFER.LMA is not what EFER.LME and CR0.PG make it (APM2 14.6.1)");
    }
    if state.cr0 & cr0::PG != 0 && state.cr0 & cr0::PE == 0 {
        return Err("CR0.PG is set and CR0.PE is not (APM2 3.1.1)");
    }
    if state.efer & efer::SVME != 0 {
        return Err("EFER.SVME is set, and guests see no SVM");
    }
    if state.tsc_aux >> 32 != 0 || state.sfmask >> 32 != 0 {
        return Err("TSC_AUX and SFMASK have 32 bits (APM2 appendix A)");
    }
    if state.cr4 & cr4::DEFINED & !cr4::GUEST != 0 {
        return Err("CR4 has shadow stacks on, which no guest is offered");
    }
    sensible_segments(state)?;
    sensible_rip_and_flags(state)
}

/// Bits of a linear address.
const fn linear_bits(state: &VcpuState) -> u8 {
    if state.cr4 & cr4::LA57 != 0 { 57 } else { 48 }
}

fn sensible_segments(state: &VcpuState) -> Result<(), &'static str> {
    let bits = linear_bits(state);
    let bases = [&state.fs, &state.gs, &state.tr, &state.ldtr];
    if !bases.iter().all(|segment| is_canonical(segment.base, bits)) {
        return Err("the base of FS, GS, TR or LDTR is not canonical (APM2 4.5.3)");
    }
    for table in [&state.gdtr, &state.idtr] {
        if !is_canonical(table.base, bits) || table.limit >> 16 != 0 {
            return Err(
                "the base of GDTR or IDTR is not canonical, or its limit has more than 16 bits (APM2 4.6)",
            );
        }
    }
    let addresses = [state.lstar, state.cstar, state.kernel_gs_base];
    if !addresses.iter().all(|address| is_canonical(*address, bits)) {
        return Err("LSTAR, CSTAR or KERNEL_GS_BASE is not canonical (APM2 6.1.1)");
    }
    // In real and virtual-8086 mode attributes are what is left of another.
    if state.cr0 & cr0::PE == 0 || state.rflags & RFLAGS_VM != 0 {
        return Ok(());
    }
    if !state.cs.is_present() || state.cs.attributes & 0x18 != 0x18 {
        return Err("CS is no code segment that is present (APM2 4.8.1)");
    }
    if state.ss.is_present() && state.ss.attributes & 0x1a != 0x12 {
        return Err("SS is no data segment that can be written (APM2 4.8.2)");
    }
    Ok(())
}

fn sensible_rip_and_flags(state: &VcpuState) -> Result<(), &'static str> {
    let long = state.efer & efer::LMA != 0;
    if long && state.cs.is_long() {
        if !is_canonical(state.rip, linear_bits(state)) {
            return Err("RIP is not canonical (APM2 5.3.1)");
        }
    } else if state.rip >> 32 != 0 {
        return Err("RIP has a bit above 31 outside 64-bit mode (APM2 3.1.4)");
    }
    if state.rflags & 2 == 0 || state.rflags & !0x003f_7fd7 != 0 {
        return Err("a reserved bit of RFLAGS is not what it always is (APM2 3.1.6)");
    }
    if state.rflags & RFLAGS_VM != 0 && (long || state.cr0 & cr0::PE == 0) {
        return Err("RFLAGS.VM in long mode or outside protected mode (APM2 3.1.6)");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn real_mode_delivers_no_error_codes() {
        let mut vmcb = block();
        vmcb.save.cr0 = 0;
        assert_eq!(as_delivered(&vmcb.save, Event::GP0).error_code, None);
        vmcb.save.cr0 = cr0::PE;
        assert_eq!(as_delivered(&vmcb.save, Event::GP0), Event::GP0);
    }

    fn block() -> Box<Vmcb> {
        // SAFETY: every field is an integer, an integer in a newtype, or an array of such: zero is valid.
        #[allow(unsafe_code, reason = "a zeroed block")]
        unsafe {
            Box::new_zeroed().assume_init()
        }
    }

    fn loaded(state: &VcpuState) -> Box<Vmcb> {
        let mut vmcb = block();
        set_state(&mut vmcb, &mut Gprs::default(), state, 0);
        vmcb
    }

    const LONG: VcpuState = VcpuState::long_mode(0xffff_8000_0000_1000, 0x2000, 0x3000);

    #[test]
    fn a_state_comes_back_as_it_went_in() {
        let mut state = LONG;
        // Every field another value, so that no two can be exchanged.
        for (n, field) in [
            &mut state.rax,
            &mut state.rcx,
            &mut state.rdx,
            &mut state.rbx,
            &mut state.rsp,
            &mut state.rbp,
            &mut state.rsi,
            &mut state.rdi,
            &mut state.r8,
            &mut state.r9,
            &mut state.r10,
            &mut state.r11,
            &mut state.r12,
            &mut state.r13,
            &mut state.r14,
            &mut state.r15,
            &mut state.rip,
            &mut state.cr2,
            &mut state.cr3,
            &mut state.dr6,
            &mut state.dr7,
            &mut state.pat,
            &mut state.star,
            &mut state.lstar,
            &mut state.cstar,
            &mut state.sfmask,
            &mut state.kernel_gs_base,
            &mut state.sysenter_cs,
            &mut state.sysenter_esp,
            &mut state.sysenter_eip,
        ]
        .into_iter()
        .enumerate()
        {
            *field = 0x1000 + n as u64;
        }
        for (n, segment) in [
            &mut state.es,
            &mut state.cs,
            &mut state.ss,
            &mut state.ds,
            &mut state.fs,
            &mut state.gs,
            &mut state.ldtr,
            &mut state.tr,
            &mut state.gdtr,
            &mut state.idtr,
        ]
        .into_iter()
        .enumerate()
        {
            segment.selector = n as u16;
            segment.base = 0x5000 + n as u64;
            segment.limit = 0x7000 + n as u32;
        }
        state.tsc_aux = 9;
        let (mut vmcb, mut gprs) = (block(), Gprs::default());
        set_state(&mut vmcb, &mut gprs, &state, cr4::MCE);
        let back = super::state(&vmcb, &gprs, state.cr4, 9);
        assert_eq!(back, VcpuState { xcr0: 0, ..state });
        assert_eq!(vmcb.save.efer, LONG.efer | efer::SVME);
    }

    #[test]
    fn reset_comes_back_as_it_went_in() {
        let vmcb = loaded(&VcpuState::RESET);
        let gprs = Gprs {
            rdx: 0x600,
            ..Gprs::default()
        };
        let back = super::state(&vmcb, &gprs, 0, 0);
        assert_eq!(
            back,
            VcpuState {
                xcr0: 0,
                ..VcpuState::RESET
            }
        );
    }

    #[test]
    fn rip_wraps_at_32_bits_outside_64_bit_mode_only() {
        let mut vmcb = loaded(&VcpuState {
            rip: 0xffff_fffe,
            ..VcpuState::RESET
        });
        assert!(!skip(&mut vmcb, 3));
        assert_eq!(vmcb.save.rip, 1);
        let mut vmcb = loaded(&VcpuState {
            rip: 0xffff_fffe,
            ..LONG
        });
        assert!(!skip(&mut vmcb, 3));
        assert_eq!(vmcb.save.rip, 0x1_0000_0001);
        // Compatibility mode: long mode, but CS.L clear.
        let mut state = LONG;
        state.rip = 0xffff_fffe;
        state.cs.attributes = Segment::CODE32;
        let mut vmcb = loaded(&state);
        assert!(!skip(&mut vmcb, 3));
        assert_eq!(vmcb.save.rip, 1);
        let mut vmcb = loaded(&LONG);
        assert!(!skip(&mut vmcb, 15));
        assert_eq!(vmcb.save.rip, 0xffff_8000_0000_100f);
    }

    #[test]
    fn skip_ends_the_shadow_and_traps_a_single_step() {
        let mut vmcb = loaded(&VcpuState {
            rflags: RFLAGS_TF | 2,
            dr6: 0xffff_0ff0,
            ..LONG
        });
        vmcb.control.interrupt_state.set_shadow(true);
        assert!(skip(&mut vmcb, 2));
        assert!(!vmcb.control.interrupt_state.shadow());
        assert_eq!(vmcb.save.dr6, 0xffff_4ff0);
    }

    #[test]
    fn the_stack_segment_shows_the_privilege_level() {
        let mut vmcb = loaded(&LONG);
        vmcb.save.cpl = 3;
        assert_eq!(segment(&vmcb.save, SegmentName::Ss).dpl(), 3);
        let back = super::state(&vmcb, &Gprs::default(), 0, 0);
        assert_eq!(loaded(&back).save.cpl, 3);
    }

    #[test]
    fn gates_are_as_large_as_the_mode_says() {
        for (state, size) in [
            (VcpuState::RESET, 4),
            (
                VcpuState {
                    cr0: 0x11,
                    ..VcpuState::RESET
                },
                8,
            ),
            (LONG, 16),
        ] {
            let mut vmcb = loaded(&state);
            vmcb.save.idtr.limit = 9 * size - 1;
            assert!(has_gate(&vmcb.save, 8));
            vmcb.save.idtr.limit = 9 * size - 2;
            assert!(!has_gate(&vmcb.save, 8));
        }
    }

    #[test]
    fn privilege_follows_the_mode() {
        let mut state = VcpuState::RESET;
        state.ss.attributes |= 0x60;
        assert_eq!(loaded(&state).save.cpl, 0, "real mode");
        state.cr0 |= cr0::PE;
        assert_eq!(loaded(&state).save.cpl, 3);
        state.ss.attributes &= !0x60;
        state.rflags |= RFLAGS_VM;
        assert_eq!(loaded(&state).save.cpl, 3, "virtual-8086 mode");
    }

    #[test]
    fn reads_of_cr4_exit_while_the_guest_must_not_see_it() {
        let mut vmcb = block();
        set_cr4(&mut vmcb, 0x20, cr4::MCE);
        assert_eq!(vmcb.save.cr4, 0x60);
        assert!(vmcb.control.cr_reads.contains(RegisterSet::R4));
        set_cr4(&mut vmcb, 0x60, cr4::MCE);
        assert!(!vmcb.control.cr_reads.contains(RegisterSet::R4));
    }

    #[test]
    fn long_mode_is_active_when_paging_is() {
        let mut vmcb = loaded(&VcpuState {
            cr0: 0x11,
            efer: efer::LME,
            ..VcpuState::RESET
        });
        set_cr0(&mut vmcb.save, 0x8000_0011);
        assert_eq!(vmcb.save.efer & efer::LMA, efer::LMA);
        set_cr0(&mut vmcb.save, 0x11);
        assert_eq!(vmcb.save.efer & efer::LMA, 0);
    }

    #[test]
    fn senseless_states_are_refused() {
        assert_eq!(sensible(&LONG), Ok(()));
        assert_eq!(sensible(&VcpuState::RESET), Ok(()));
        assert!(
            sensible(&VcpuState {
                efer: efer::LME,
                ..LONG
            })
            .is_err()
        );
        assert!(
            sensible(&VcpuState {
                efer: efer::LMA,
                ..VcpuState::RESET
            })
            .is_err()
        );
        assert!(
            sensible(&VcpuState {
                cr0: 0x8000_0000,
                ..VcpuState::RESET
            })
            .is_err()
        );
        assert!(
            sensible(&VcpuState {
                efer: LONG.efer | efer::SVME,
                ..LONG
            })
            .is_err()
        );
        assert!(
            sensible(&VcpuState {
                cr4: LONG.cr4 | 1 << 23,
                ..LONG
            })
            .is_err()
        );
    }

    #[test]
    fn msrs_have_places_of_their_own() {
        let mut vmcb = block();
        let all = super::super::msrpm::OWN.into_iter().chain([Msr::IA32_PAT]);
        for (n, number) in all.clone().enumerate() {
            *msr(&mut vmcb.save, number).expect("switched") = n as u64 + 1;
        }
        for (n, number) in all.enumerate() {
            assert_eq!(read_msr(&vmcb.save, number), Some(n as u64 + 1));
        }
        assert_eq!(read_msr(&vmcb.save, Msr::IA32_EFER), None);
        assert_eq!(msr(&mut vmcb.save, Msr::IA32_TSC_AUX), None);
    }
}

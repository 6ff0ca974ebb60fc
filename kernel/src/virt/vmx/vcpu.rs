//! A vCPU: its VMCS, what the VMCS does not hold, and the accessors of the boundary.
//!
//! Most of a guest's registers live in the VMCS alone and are read when somebody asks. CR2, DR6 and the MSRs of
//! [`SWITCHED`] live in the CPU while the vCPU is attached and in [`Inner`] while it is not.

#![allow(
    unsafe_code,
    reason = "the VMCS is made current, and the guest entered, here"
)]

use alloc::boxed::Box;
use core::fmt;

use bitflags::bitflags;
use plinth_abi::{Segment, VcpuState};

use super::apic;
use super::control::{Controls, FlushTypes};
use super::enter::{EntryArea, enter};
use super::exits::{self, has_instruction_length};
use super::frame::Frame;
use super::validate::{self, Limits, bits::*};
use super::vmcs::{
    self, ActivityState, Count, Cr0, Cr3, Cr4, DebugCtl, Dr7, Efer, EntryControls, EoiExits,
    EptPointer, ErrorCode, ExceptionBitmap, ExitReason, Field, InstructionBitmap,
    InstructionLength, InterruptStatus, Interruptibility, InterruptionInfo, Limit, Linear,
    LinkPointer, PageFaultFilter, Pat, Pdpte, PendingDebug, PinControls, PrimaryControls, Rflags,
    SecondaryControls, SegmentFields, Selector, SysenterCs, TimerValue, TprThreshold, TscOffset,
    Vpid, W64,
};
use super::{SWITCHED, Vmx, VmxCpu, VmxDomain, dump, host, ops};
use crate::arch::debug;
use crate::arch::msr::{self, Msr};
use crate::mem::{Hpa, try_box};
use crate::virt::event::vector;
use crate::virt::guard::Guards;
use crate::virt::tag::{Flush, Tag};
use crate::virt::{
    BadState, Event, EventKind, Exit, Gprs, OutOfMemory, Runner, SegmentName, Vcpu, VirtualApic,
    VirtualInterrupts,
};

/// CR0 bits that a guest changes without an exit. The others have consequences (PE, PG), or must stay as the CPU needs
/// them (NE, ET), or would slow the host (CD, NW).
const CR0_OWN: u64 = CR0_MP | CR0_EM | CR0_TS | CR0_WP | CR0_AM;

/// CR4 bits that a guest changes without an exit: features that every CPU with EPT has, whose rules the CPU itself upholds.
/// The others belong to features that CPUID may hide from the guest.
const CR4_OWN: u64 = CR4_VME
    | CR4_PVI
    | CR4_TSD
    | CR4_DE
    | CR4_PSE
    | CR4_PAE
    | CR4_PGE
    | CR4_PCE
    | CR4_OSFXSR
    | CR4_OSXMMEXCPT;

/// #DB and #AC exit because a guest can make their delivery raise them again without end (CVE-2015-8104, CVE-2015-5307);
/// #MC is the host's.
const EXCEPTIONS: u32 = 1 << vector::DB | 1 << vector::AC | 1 << vector::MC;

/// Whose ends of interrupts exit, a quarter of the vectors each.
const EOI_EXITS: [Field<W64, EoiExits>; 4] = [
    vmcs::EOI_EXITS_0,
    vmcs::EOI_EXITS_1,
    vmcs::EOI_EXITS_2,
    vmcs::EOI_EXITS_3,
];

/// A vCPU on VMX.
#[derive(Debug)]
pub struct VmxVcpu(Box<Inner>);

bitflags! {
    /// What there is about a vCPU's NMIs.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    struct Nmi: u8 {
        /// One waits until the guest can take it.
        const WAITS = 1;
        /// One has been injected, and was not seen to have ended.
        const IN_SERVICE = 1 << 1;
    }
}

/// On the heap, because the VMCS holds the address of `area`.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Inner {
    area: EntryArea,
    vmcs: Frame,
    ept: EptPointer,
    /// In force, without and with a local APIC that the CPU keeps in x2APIC mode.
    msr_bitmaps: [Hpa; 2],
    io_bitmaps: [Hpa; 2],
    /// The virtual-APIC page, where the CPU keeps the local APIC.
    pub(super) apic: Option<Frame>,
    /// What the VMCS says for that APIC: x2APIC mode, and whose ends of interrupts exit.
    x2apic: bool,
    told_ends: [u64; 4],
    /// The CPU whose host state the VMCS holds; `None` before the VMCS was first written.
    host: Option<u32>,
    attached: bool,
    tag: Tag,
    vpid: Option<Vpid>,
    flush: FlushTypes,
    pin: PinControls,
    primary: PrimaryControls,
    secondary: SecondaryControls,
    timer_rate: Option<u32>,
    limits: Limits,
    cr0_required: u64,
    cr4_required: u64,
    nmi: Nmi,
    /// The guest's [`SWITCHED`] MSRs, and how many this CPU has.
    msrs: [u64; SWITCHED.len()],
    switched: usize,
    cr2: u64,
    dr6: u64,
    /// IA32_SPEC_CTRL as the guest has set it. Writes exit, so this is the truth.
    spec_ctrl: u64,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.attached {
            // SAFETY: it is attached to the calling CPU, by the boundary's contract. The frame must not go back while the
            // CPU may still write to it.
            if unsafe { ops::vmclear(self.vmcs.hpa()) }.is_err() {
                log::error!("vmx: VMCLEAR of {} failed", self.vmcs.hpa());
            }
        }
    }
}

impl Inner {
    pub(super) fn virtual_nmis(&self) -> bool {
        self.pin.contains(PinControls::VIRTUAL_NMIS)
    }

    /// Sets or clears a primary control; the VMCS is written only where that changes it.
    pub(super) fn change_primary(&mut self, control: PrimaryControls, on: bool) {
        if self.primary.contains(control) != on {
            self.primary.set(control, on);
            vmcs::PRIMARY_CONTROLS.write(self.primary);
        }
    }

    /// Writes the VMCS for the first time.
    fn set_up(&mut self, cpu: &VmxCpu) {
        let controls = &cpu.controls;
        self.pin = controls.pin;
        self.primary = controls.primary;
        self.secondary = controls.secondary;
        if let Some(page) = &self.apic {
            let exits = PrimaryControls::CR8_LOAD_EXITING | PrimaryControls::CR8_STORE_EXITING;
            self.primary.remove(exits);
            self.primary |= Controls::KEEP_PRIMARY;
            self.secondary |= Controls::KEEP_SECONDARY;
            vmcs::VIRTUAL_APIC.write(page.hpa());
            vmcs::TPR_THRESHOLD.write(TprThreshold(0));
            vmcs::GUEST_INTERRUPT_STATUS.write(InterruptStatus(0));
            for field in EOI_EXITS {
                field.write(EoiExits(0));
            }
        }
        self.timer_rate = controls.timer_rate;
        self.flush = controls.flush;
        self.limits = cpu.limits;
        self.cr0_required = cpu.cr0_required;
        self.cr4_required = cpu.cr4_required;
        self.switched = cpu.switched;

        vmcs::PIN_CONTROLS.write(controls.pin);
        vmcs::PRIMARY_CONTROLS.write(self.primary);
        vmcs::SECONDARY_CONTROLS.write(self.secondary);
        vmcs::EXIT_CONTROLS.write(controls.exit);
        vmcs::ENTRY_CONTROLS.write(controls.entry);
        vmcs::EXCEPTION_BITMAP.write(ExceptionBitmap(EXCEPTIONS));
        // Mask and match 0: bit 14 of the bitmap alone decides over #PF, and it is 0 (SDM 25.6.3).
        vmcs::PAGE_FAULT_MASK.write(PageFaultFilter(0));
        vmcs::PAGE_FAULT_MATCH.write(PageFaultFilter(0));
        vmcs::CR3_TARGET_COUNT.write(Count(0));
        vmcs::EXIT_MSR_STORE_COUNT.write(Count(0));
        vmcs::EXIT_MSR_LOAD_COUNT.write(Count(0));
        vmcs::ENTRY_MSR_LOAD_COUNT.write(Count(0));
        vmcs::ENTRY_INTERRUPTION_INFO.write(InterruptionInfo::new());
        let [io_a, io_b] = self.io_bitmaps;
        vmcs::IO_BITMAP_A.write(io_a);
        vmcs::IO_BITMAP_B.write(io_b);
        let [msr_bitmap, _] = self.msr_bitmaps;
        vmcs::MSR_BITMAP.write(msr_bitmap);
        vmcs::EPT_POINTER.write(self.ept);
        vmcs::TSC_OFFSET.write(TscOffset(0));
        vmcs::CR0_MASK.write(Cr0(!CR0_OWN));
        vmcs::CR4_MASK.write(Cr4(!CR4_OWN));
        if controls
            .secondary
            .contains(SecondaryControls::ENCLS_EXITING)
        {
            vmcs::ENCLS_BITMAP.write(InstructionBitmap(u64::MAX));
        }
        if controls
            .secondary
            .contains(SecondaryControls::ENCLV_EXITING)
        {
            vmcs::ENCLV_BITMAP.write(InstructionBitmap(u64::MAX));
        }
        if self.timer_rate.is_some() {
            vmcs::PREEMPTION_TIMER.write(TimerValue(u32::MAX));
        }

        vmcs::VMCS_LINK_POINTER.write(LinkPointer::NONE);
        vmcs::GUEST_DEBUGCTL.write(DebugCtl(0));
        vmcs::GUEST_ACTIVITY.write(ActivityState::ACTIVE);
        for field in [
            vmcs::GUEST_PDPTE0,
            vmcs::GUEST_PDPTE1,
            vmcs::GUEST_PDPTE2,
            vmcs::GUEST_PDPTE3,
        ] {
            field.write(Pdpte(0));
        }
        self.write_state(&VcpuState::RESET);

        vmcs::HOST_RSP.write(Linear(self.area.stack_top()));
    }

    /// Sets whose ends of interrupts exit; the VMCS is written only where that changes.
    fn tell_ends(&mut self, told: [u64; 4]) {
        if self.told_ends != told {
            self.told_ends = told;
            for (field, word) in EOI_EXITS.into_iter().zip(told) {
                field.write(EoiExits(word));
            }
        }
    }

    /// Forgets the linear translations that the guest's own change of its paging mode made stale. Without VPIDs every
    /// entry does.
    fn flush_own(&self) {
        if let Some(vpid) = self.vpid {
            ops::flush_vpid(self.flush, vpid);
        }
    }

    fn write_cr0(&self, value: u64) {
        vmcs::CR0_SHADOW.write(Cr0(value));
        vmcs::GUEST_CR0.write(Cr0((value | self.cr0_required) & !(CR0_CD | CR0_NW)));
    }

    fn write_cr4(&self, value: u64) {
        vmcs::CR4_SHADOW.write(Cr4(value));
        vmcs::GUEST_CR4.write(Cr4(value | self.cr4_required));
    }

    fn write_efer(&self, value: u64) {
        vmcs::GUEST_EFER.write(Efer(value));
        let mut entry = vmcs::ENTRY_CONTROLS.read();
        entry.set(EntryControls::IA32E_MODE_GUEST, value & EFER_LMA != 0);
        vmcs::ENTRY_CONTROLS.write(entry);
    }

    /// Writes the whole state, already checked.
    fn write_state(&mut self, state: &VcpuState) {
        self.area.gprs = Gprs::from(state);
        vmcs::GUEST_RSP.write(Linear(state.rsp));
        vmcs::GUEST_RIP.write(Linear(state.rip));
        vmcs::GUEST_RFLAGS.write(Rflags(state.rflags));
        for (fields, segment) in [
            (vmcs::ES, &state.es),
            (vmcs::CS, &state.cs),
            (vmcs::SS, &state.ss),
            (vmcs::DS, &state.ds),
            (vmcs::FS, &state.fs),
            (vmcs::GS, &state.gs),
            (vmcs::LDTR, &state.ldtr),
            (vmcs::TR, &state.tr),
        ] {
            write_segment(fields, segment);
        }
        vmcs::GUEST_GDTR_BASE.write(Linear(state.gdtr.base));
        vmcs::GUEST_GDTR_LIMIT.write(Limit(state.gdtr.limit));
        vmcs::GUEST_IDTR_BASE.write(Linear(state.idtr.base));
        vmcs::GUEST_IDTR_LIMIT.write(Limit(state.idtr.limit));
        self.write_cr0(state.cr0);
        vmcs::GUEST_CR3.write(Cr3(state.cr3));
        self.write_cr4(state.cr4);
        self.write_efer(state.efer);
        vmcs::GUEST_DR7.write(Dr7(state.dr7));
        vmcs::GUEST_PAT.write(Pat(state.pat));
        vmcs::GUEST_SYSENTER_CS.write(SysenterCs(state.sysenter_cs as u32));
        vmcs::GUEST_SYSENTER_ESP.write(Linear(state.sysenter_esp));
        vmcs::GUEST_SYSENTER_EIP.write(Linear(state.sysenter_eip));
        self.cr2 = state.cr2;
        self.dr6 = state.dr6;
        self.msrs = [
            state.star,
            state.lstar,
            state.cstar,
            state.sfmask,
            state.kernel_gs_base,
            state.tsc_aux,
        ];
        // A new state has nothing under way.
        vmcs::GUEST_INTERRUPTIBILITY.write(Interruptibility::empty());
        vmcs::GUEST_PENDING_DEBUG.write(PendingDebug(0));
        vmcs::ENTRY_INTERRUPTION_INFO.write(InterruptionInfo::new());
        self.nmi = Nmi::empty();
    }

    /// Puts what lives in the CPU while attached there.
    fn load(&self, loaded: &mut [u64; SWITCHED.len()]) {
        for ((&wanted, loaded), &msr) in self
            .msrs
            .iter()
            .zip(loaded)
            .zip(&SWITCHED)
            .take(self.switched)
        {
            if wanted != *loaded {
                // SAFETY: the kernel uses none of these; values are checked before they get here.
                if unsafe { msr::try_write(msr, wanted) } {
                    *loaded = wanted;
                }
            }
        }
        host::set_cr2(self.cr2);
        host::set_dr6(self.dr6);
    }

    /// The whole state; attached.
    fn read_state(&self) -> VcpuState {
        let gprs = &self.area.gprs;
        let table = |base: Linear, limit: Limit| Segment {
            selector: 0,
            attributes: 0,
            limit: limit.0,
            base: base.0,
        };
        let msr = |msr| switched_msr(msr).unwrap_or(0);
        VcpuState {
            rax: gprs.rax,
            rcx: gprs.rcx,
            rdx: gprs.rdx,
            rbx: gprs.rbx,
            rsp: vmcs::GUEST_RSP.read().0,
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
            rip: vmcs::GUEST_RIP.read().0,
            rflags: vmcs::GUEST_RFLAGS.read().0,
            es: read_segment(vmcs::ES),
            cs: read_segment(vmcs::CS),
            ss: read_segment(vmcs::SS),
            ds: read_segment(vmcs::DS),
            fs: read_segment(vmcs::FS),
            gs: read_segment(vmcs::GS),
            ldtr: read_segment(vmcs::LDTR),
            tr: read_segment(vmcs::TR),
            gdtr: table(vmcs::GUEST_GDTR_BASE.read(), vmcs::GUEST_GDTR_LIMIT.read()),
            idtr: table(vmcs::GUEST_IDTR_BASE.read(), vmcs::GUEST_IDTR_LIMIT.read()),
            cr0: read_cr0(),
            cr2: host::cr2(),
            cr3: vmcs::GUEST_CR3.read().0,
            cr4: read_cr4(),
            xcr0: 0,
            dr: [0; 4],
            dr6: host::dr6(),
            dr7: vmcs::GUEST_DR7.read().0,
            efer: vmcs::GUEST_EFER.read().0,
            pat: vmcs::GUEST_PAT.read().0,
            star: msr(Msr::IA32_STAR),
            lstar: msr(Msr::IA32_LSTAR),
            cstar: msr(Msr::IA32_CSTAR),
            sfmask: msr(Msr::IA32_FMASK),
            kernel_gs_base: msr(Msr::IA32_KERNEL_GS_BASE),
            sysenter_cs: u64::from(vmcs::GUEST_SYSENTER_CS.read().0),
            sysenter_esp: vmcs::GUEST_SYSENTER_ESP.read().0,
            sysenter_eip: vmcs::GUEST_SYSENTER_EIP.read().0,
            tsc_aux: msr(Msr::IA32_TSC_AUX),
        }
    }

    /// Finds the rule of SDM 27.3.1 that the present state breaks.
    pub(super) fn check(&self) -> Result<(), BadState> {
        let state = self.read_state();
        validate::check(&state, &self.limits)?;
        validate::check_interruptibility(
            vmcs::GUEST_INTERRUPTIBILITY.read(),
            state.rflags,
            vmcs::GUEST_PENDING_DEBUG.read().0,
        )?;
        if validate::is_pae_paging(state.cr0, state.cr4, state.efer) {
            let pdptes = [
                vmcs::GUEST_PDPTE0,
                vmcs::GUEST_PDPTE1,
                vmcs::GUEST_PDPTE2,
                vmcs::GUEST_PDPTE3,
            ];
            validate::check_pdptes(
                &pdptes.map(|field| field.read().0),
                self.limits.physical_bits,
            )?;
        }
        Ok(())
    }

    /// Injects the NMI that waits, or goes on waiting.
    ///
    /// Only an NMI blocks others. Bochs 2.7 does not load that at VM entry (SDM 27.3.1.5), so a vCPU that has had none comes back
    /// with the blocking of the one before it on that CPU: it is taken from it again.
    fn inject_waiting_nmi(&mut self) {
        let mut blocking = vmcs::GUEST_INTERRUPTIBILITY.read();
        let event = vmcs::ENTRY_INTERRUPTION_INFO.read();
        if !blocking.contains(Interruptibility::BLOCKING_BY_NMI) {
            self.nmi.set(
                Nmi::IN_SERVICE,
                self.nmi.contains(Nmi::IN_SERVICE)
                    && event.valid()
                    && event.kind() == EventKind::Nmi as u8,
            );
        } else if !self.nmi.contains(Nmi::IN_SERVICE) {
            blocking -= Interruptibility::BLOCKING_BY_NMI;
            vmcs::GUEST_INTERRUPTIBILITY.write(blocking);
        }
        if !self.nmi.contains(Nmi::WAITS) {
            return;
        }
        let blocked =
            blocking.intersects(Interruptibility::BLOCKING_BY_NMI | Interruptibility::SHADOW);
        if blocked || event.valid() || debug_exception_is_due() {
            if self.virtual_nmis() {
                self.change_primary(PrimaryControls::NMI_WINDOW_EXITING, true);
            }
            return;
        }
        self.nmi = Nmi::IN_SERVICE;
        write_event(Event::NMI);
    }
}

/// Whether a #DB comes before the guest's next instruction: a trap after the last one, which goes before NMIs and interrupts (SDM table 7-2). VM entry
/// would forget it for an event that is injected (SDM 27.7.3); where those wait for their windows, it is delivered first (SDM 27.7.5, 27.7.6).
fn debug_exception_is_due() -> bool {
    vmcs::GUEST_PENDING_DEBUG.read().0 & PendingDebug::DUE != 0
}

fn write_segment(fields: SegmentFields, segment: &Segment) {
    fields.selector.write(Selector(segment.selector));
    fields.limit.write(Limit(segment.limit));
    fields.rights.write(validate::rights(segment));
    fields.base.write(Linear(segment.base));
}

fn read_segment(fields: SegmentFields) -> Segment {
    Segment {
        selector: fields.selector.read().0,
        attributes: validate::attributes(fields.rights.read()),
        limit: fields.limit.read().0,
        base: fields.base.read().0,
    }
}

fn read_cr0() -> u64 {
    vmcs::CR0_SHADOW.read().0 & !CR0_OWN | vmcs::GUEST_CR0.read().0 & CR0_OWN
}

fn read_cr4() -> u64 {
    vmcs::CR4_SHADOW.read().0 & !CR4_OWN | vmcs::GUEST_CR4.read().0 & CR4_OWN
}

/// One of [`SWITCHED`] while attached: the CPU holds it. TSC_AUX may not be there.
fn switched_msr(msr: Msr) -> Option<u64> {
    if SWITCHED.contains(&msr) {
        msr::try_read(msr)
    } else {
        None
    }
}

/// Writes an event for the next entry. Outside protected mode no exception pushes an error code, and in it those that do
/// must have one (SDM 27.2.1.3).
fn write_event(event: Event) {
    let error_code = match event.kind {
        EventKind::Exception if vmcs::GUEST_CR0.read().0 & CR0_PE != 0 => {
            event.error_code.or(match event.vector {
                vector::DF | vector::TS..=vector::PF | vector::AC => Some(0),
                _ => None,
            })
        }
        _ => None,
    };
    if let Some(code) = error_code {
        vmcs::ENTRY_ERROR_CODE.write(ErrorCode(code));
    }
    if event.instruction_length != 0 {
        vmcs::ENTRY_INSTRUCTION_LENGTH.write(InstructionLength(event.instruction_length.into()));
    }
    vmcs::ENTRY_INTERRUPTION_INFO.write(
        InterruptionInfo::new()
            .with_vector(event.vector)
            .with_kind(event.kind as u8)
            .with_has_error_code(error_code.is_some())
            .with_valid(true),
    );
}

impl VmxVcpu {
    /// Bytes of heap that one takes besides its own size.
    pub(super) const HEAP: u64 = size_of::<Inner>() as u64 + 32;
}

impl Vcpu<Vmx> for VmxVcpu {
    fn new(domain: &VmxDomain, nested_root: Hpa) -> Result<Self, OutOfMemory> {
        let vmcs = Frame::new()?;
        try_box(Inner {
            area: EntryArea::default(),
            vmcs,
            // Write-back tables of four levels, with accessed and dirty flags where the CPU has them (SDM table 25-9).
            ept: EptPointer(nested_root.get() | ept_flags() | 3 << 3 | 6),
            msr_bitmaps: domain.msr_bitmaps(),
            io_bitmaps: domain.io_bitmaps(),
            apic: None,
            x2apic: false,
            told_ends: [0; 4],
            host: None,
            attached: false,
            tag: Tag::NONE,
            vpid: None,
            flush: FlushTypes {
                ept_single: false,
                ept_all: false,
                vpid_single: false,
                vpid_all: false,
            },
            pin: PinControls::empty(),
            primary: PrimaryControls::empty(),
            secondary: SecondaryControls::empty(),
            timer_rate: None,
            limits: Limits {
                cr0_allowed: 0,
                cr4_allowed: 0,
                efer_allowed: 0,
                physical_bits: 0,
            },
            cr0_required: 0,
            cr4_required: 0,
            nmi: Nmi::empty(),
            msrs: [0; SWITCHED.len()],
            switched: 0,
            cr2: 0,
            dr6: 0,
            spec_ctrl: 0,
        })
        .map(Self)
    }

    fn attach(&mut self, cpu: &mut VmxCpu, domain: &VmxDomain) {
        let inner = &mut *self.0;
        let region = inner.vmcs.hpa();
        if inner.host.is_none() {
            inner.vmcs.set_revision(cpu.controls.revision);
            // SAFETY: VMX is on while there is a `VmxCpu`; the VMCS was never active.
            if unsafe { ops::vmclear(region) }.is_err() {
                log::error!("vmx: VMCLEAR of {region} failed");
            }
        }
        // SAFETY: as above; a vCPU is attached to one CPU at a time, and detaching clears its VMCS.
        if unsafe { ops::vmptrld(region) }.is_err() {
            // The entry will fail and say so.
            log::error!("vmx: VMPTRLD of {region} failed");
        }
        inner.attached = true;
        inner.area.launched = 0;
        if inner.host.is_none() {
            inner.set_up(cpu);
        }
        if inner.host != Some(cpu.id) {
            cpu.host.write();
            inner.host = Some(cpu.id);
            inner.area.guards = Guards::new(&cpu.speculation, inner.spec_ctrl);
            vmcs::HOST_RIP.write(inner.area.exit_address());
        }
        host::HostState::write_control_registers();
        let io_bitmaps = domain.io_bitmaps();
        if inner.io_bitmaps != io_bitmaps {
            inner.io_bitmaps = io_bitmaps;
            let [io_a, io_b] = io_bitmaps;
            vmcs::IO_BITMAP_A.write(io_a);
            vmcs::IO_BITMAP_B.write(io_b);
        }

        let before = inner.tag;
        let mut everything = cpu.tags.validate(&mut inner.tag) == Flush::All;
        if inner.tag != before {
            let vpid = Vpid(inner.tag.value as u16);
            if cpu.controls.has_vpid() {
                vmcs::VPID.write(vpid);
                inner.vpid = Some(vpid);
            }
            // Where a flush cannot reach every context at once, a new tag is what asks for it.
            everything |= !(cpu.controls.flush.ept_all
                && (cpu.controls.flush.vpid_all || !cpu.controls.has_vpid()));
        }
        cpu.current = Some((inner.ept, Vpid(inner.tag.value as u16)));
        if everything {
            ops::flush_everything(cpu.controls.flush, cpu.controls.has_vpid(), cpu.current);
        }
        inner.load(&mut cpu.loaded);
    }

    fn detach(&mut self, cpu: &mut VmxCpu) {
        let inner = &mut *self.0;
        for ((saved, loaded), &msr) in inner
            .msrs
            .iter_mut()
            .zip(&mut cpu.loaded)
            .zip(&SWITCHED)
            .take(inner.switched)
        {
            *loaded = msr::read(msr);
            *saved = *loaded;
        }
        inner.cr2 = host::cr2();
        inner.dr6 = host::dr6();
        // SAFETY: the vCPU is attached to the calling CPU, which is in VMX operation.
        if unsafe { ops::vmclear(inner.vmcs.hpa()) }.is_err() {
            log::error!("vmx: VMCLEAR of {} failed", inner.vmcs.hpa());
        }
        inner.attached = false;
        cpu.current = None;
    }

    #[inline(always)]
    fn run<R: Runner<Vmx>>(runner: &mut R) -> Exit {
        let (vcpu, _) = runner.parts();
        let inner = &mut *vcpu.0;
        debug_assert!(inner.attached);
        // Not before the last exit has been served: an exception that came of that goes first.
        if !inner.nmi.is_empty() {
            inner.inject_waiting_nmi();
        }
        // SAFETY: the vCPU is attached to this CPU, by the boundary's contract: its VMCS is current, set up for `area`, which
        // is on the heap and does not move, and holds this CPU's host state. The nested tables and bitmaps are the domain's.
        let reason = unsafe { enter(&raw mut inner.area) };
        match reason {
            ExitReason::VMCALL => Exit::Hypercall,
            ExitReason::CPUID => Exit::Cpuid,
            ExitReason::RDMSR => Exit::ReadMsr,
            ExitReason::WRMSR => Exit::WriteMsr,
            ExitReason::IO => Exit::Io(exits::io(vmcs::EXIT_QUALIFICATION.read())),
            ExitReason::HLT => Exit::Halt,
            _ => inner.decode(reason),
        }
    }

    fn set_deadline(&mut self, _cpu: &mut VmxCpu, tsc: u64) {
        if let Some(rate) = self.0.timer_rate {
            vmcs::PREEMPTION_TIMER.write(timer_value(tsc, ops::tsc(), rate));
        }
    }

    #[inline(always)]
    fn gprs(&self) -> &Gprs {
        &self.0.area.gprs
    }

    #[inline(always)]
    fn gprs_mut(&mut self) -> &mut Gprs {
        &mut self.0.area.gprs
    }

    #[inline(always)]
    fn rip(&self) -> u64 {
        vmcs::GUEST_RIP.read().0
    }

    fn set_rip(&mut self, rip: u64) {
        vmcs::GUEST_RIP.write(Linear(rip));
    }

    fn rsp(&self) -> u64 {
        vmcs::GUEST_RSP.read().0
    }

    fn set_rsp(&mut self, rsp: u64) {
        vmcs::GUEST_RSP.write(Linear(rsp));
    }

    fn rflags(&self) -> u64 {
        vmcs::GUEST_RFLAGS.read().0
    }

    fn set_rflags(&mut self, rflags: u64) {
        vmcs::GUEST_RFLAGS.write(Rflags(rflags | 2));
    }

    #[inline(always)]
    fn cpl(&self) -> u8 {
        // SS.DPL is the CPL in every mode (SDM 25.4.1).
        (vmcs::GUEST_SS_RIGHTS.read().0 >> 5 & 3) as u8
    }

    fn segment(&self, which: SegmentName) -> Segment {
        read_segment(match which {
            SegmentName::Es => vmcs::ES,
            SegmentName::Cs => vmcs::CS,
            SegmentName::Ss => vmcs::SS,
            SegmentName::Ds => vmcs::DS,
            SegmentName::Fs => vmcs::FS,
            SegmentName::Gs => vmcs::GS,
            SegmentName::Ldtr => vmcs::LDTR,
            SegmentName::Tr => vmcs::TR,
        })
    }

    fn cr0(&self) -> u64 {
        read_cr0()
    }

    fn cr3(&self) -> u64 {
        vmcs::GUEST_CR3.read().0
    }

    fn cr4(&self) -> u64 {
        read_cr4()
    }

    fn efer(&self) -> u64 {
        vmcs::GUEST_EFER.read().0
    }

    fn set_cr2(&mut self, value: u64) {
        host::set_cr2(value);
    }

    fn set_cr0(&mut self, value: u64) {
        let efer = self.efer();
        let long = value & CR0_PG != 0 && efer & EFER_LME != 0;
        let after = if long {
            efer | EFER_LMA
        } else {
            efer & !EFER_LMA
        };
        if after != efer {
            self.0.write_efer(after);
        }
        let before = read_cr0();
        self.0.write_cr0(value);
        if (before ^ value) & (CR0_PG | CR0_PE | CR0_WP) != 0 {
            self.0.flush_own();
        }
    }

    fn set_cr4(&mut self, value: u64) {
        let before = read_cr4();
        self.0.write_cr4(value);
        if before != value {
            self.0.flush_own();
        }
    }

    fn watch_debug(&mut self, watches: bool) {
        self.0
            .change_primary(PrimaryControls::MOV_DR_EXITING, watches);
    }

    fn has_breakpoints(&self) -> bool {
        debug::is_enabled(vmcs::GUEST_DR7.read().0)
    }

    fn set_efer(&mut self, value: u64) {
        let before = self.efer();
        self.0.write_efer(value);
        if (before ^ value) & EFER_NXE != 0 {
            self.0.flush_own();
        }
    }

    fn set_pdptes(&mut self, entries: [u64; 4]) -> Result<(), BadState> {
        validate::check_pdptes(&entries, self.0.limits.physical_bits)?;
        let fields = [
            vmcs::GUEST_PDPTE0,
            vmcs::GUEST_PDPTE1,
            vmcs::GUEST_PDPTE2,
            vmcs::GUEST_PDPTE3,
        ];
        for (field, entry) in fields.into_iter().zip(entries) {
            field.write(Pdpte(entry));
        }
        Ok(())
    }

    fn msr(&self, msr: Msr) -> Option<u64> {
        Some(match msr {
            Msr::IA32_FS_BASE => vmcs::GUEST_FS_BASE.read().0,
            Msr::IA32_GS_BASE => vmcs::GUEST_GS_BASE.read().0,
            Msr::IA32_SYSENTER_CS => u64::from(vmcs::GUEST_SYSENTER_CS.read().0),
            Msr::IA32_SYSENTER_ESP => vmcs::GUEST_SYSENTER_ESP.read().0,
            Msr::IA32_SYSENTER_EIP => vmcs::GUEST_SYSENTER_EIP.read().0,
            Msr::IA32_PAT => vmcs::GUEST_PAT.read().0,
            Msr::IA32_SPEC_CTRL => self.0.spec_ctrl,
            _ => return switched_msr(msr),
        })
    }

    fn set_msr(&mut self, msr: Msr, value: u64) -> bool {
        match msr {
            Msr::IA32_FS_BASE => vmcs::GUEST_FS_BASE.write(Linear(value)),
            Msr::IA32_GS_BASE => vmcs::GUEST_GS_BASE.write(Linear(value)),
            Msr::IA32_SYSENTER_CS => vmcs::GUEST_SYSENTER_CS.write(SysenterCs(value as u32)),
            Msr::IA32_SYSENTER_ESP => vmcs::GUEST_SYSENTER_ESP.write(Linear(value)),
            Msr::IA32_SYSENTER_EIP => vmcs::GUEST_SYSENTER_EIP.write(Linear(value)),
            Msr::IA32_PAT => vmcs::GUEST_PAT.write(Pat(value)),
            Msr::IA32_SPEC_CTRL => {
                self.0.spec_ctrl = value;
                self.0.area.guards.set_spec_ctrl(value);
                vmcs::HOST_RIP.write(self.0.area.exit_address());
            }
            // SAFETY: the kernel uses none of these.
            _ => return SWITCHED.contains(&msr) && unsafe { msr::try_write(msr, value) },
        }
        true
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        vmcs::TSC_OFFSET.write(TscOffset(offset));
    }

    fn instruction_length(&self) -> Option<u8> {
        has_instruction_length(vmcs::EXIT_REASON.read())
            .then(|| vmcs::EXIT_INSTRUCTION_LENGTH.read().0 as u8)
    }

    #[inline(always)]
    fn skip(&mut self, length: u8) {
        let rip = vmcs::GUEST_RIP.read().0;
        let mut next = rip.wrapping_add(length.into());
        if (next ^ rip) >> 32 != 0 && !is_64_bit_mode() {
            next &= 0xffff_ffff;
        }
        vmcs::GUEST_RIP.write(Linear(next));
        let blocking = vmcs::GUEST_INTERRUPTIBILITY.read();
        if blocking.intersects(Interruptibility::SHADOW) {
            vmcs::GUEST_INTERRUPTIBILITY.write(blocking - Interruptibility::SHADOW);
        }
        if vmcs::GUEST_RFLAGS.read().0 & RFLAGS_TF != 0 {
            let pending = vmcs::GUEST_PENDING_DEBUG.read();
            vmcs::GUEST_PENDING_DEBUG.write(PendingDebug(pending.0 | PendingDebug::BS));
        }
    }

    fn inject(&mut self, event: Event) -> bool {
        if event.kind == EventKind::Nmi {
            self.0.nmi |= Nmi::WAITS;
            self.0.inject_waiting_nmi();
            return true;
        }
        let pending = vmcs::ENTRY_INTERRUPTION_INFO.read();
        let combined = if pending.valid() {
            exits::event(
                pending,
                vmcs::ENTRY_ERROR_CODE.read().0,
                vmcs::ENTRY_INSTRUCTION_LENGTH.read().0,
            )
            .combine(event)
        } else {
            Some(event)
        };
        match combined {
            Some(event) => write_event(event),
            None => return false,
        }
        true
    }

    fn withdraw_interrupt(&mut self) -> Option<u8> {
        let info = vmcs::ENTRY_INTERRUPTION_INFO.read();
        if !info.valid() || info.kind() != EventKind::External as u8 {
            return None;
        }
        vmcs::ENTRY_INTERRUPTION_INFO.write(InterruptionInfo::new());
        Some(info.vector())
    }

    fn delivers_event(&self) -> bool {
        vmcs::ENTRY_INTERRUPTION_INFO.read().valid()
    }

    fn ends_halt(&mut self) -> bool {
        if !self.0.nmi.is_empty() {
            self.0.inject_waiting_nmi();
        }
        self.delivers_event() || debug_exception_is_due()
    }

    fn accepts_interrupt(&self) -> bool {
        vmcs::GUEST_RFLAGS.read().0 & RFLAGS_IF != 0
            && !vmcs::GUEST_INTERRUPTIBILITY
                .read()
                .intersects(Interruptibility::SHADOW)
            && !vmcs::ENTRY_INTERRUPTION_INFO.read().valid()
            && !debug_exception_is_due()
    }

    fn request_interrupt_window(&mut self) {
        self.0
            .change_primary(PrimaryControls::INTERRUPT_WINDOW_EXITING, true);
    }

    const KEEPS_APIC: bool = true;

    fn add_apic(&mut self) -> Result<(), OutOfMemory> {
        self.0.apic = Some(Frame::new()?);
        Ok(())
    }

    fn lend_apic(&mut self, lent: &VirtualApic) {
        let inner = &mut *self.0;
        let Some(frame) = &mut inner.apic else {
            return;
        };
        let page = frame.bytes_mut();
        apic::set_task_priority(page, lent.task_priority);
        apic::set_in_service(page, lent.in_service);
        apic::set_requested(page, lent.interrupts.requested);
        let status = apic::status(&lent.interrupts.requested, &lent.in_service);
        vmcs::GUEST_INTERRUPT_STATUS.write(InterruptStatus(status));
        inner.tell_ends(lent.interrupts.told_ends);
        if inner.x2apic != lent.x2apic {
            inner.x2apic = lent.x2apic;
            inner.secondary.set(Controls::KEEP_X2APIC, lent.x2apic);
            let [plain, x2apic] = inner.msr_bitmaps;
            vmcs::SECONDARY_CONTROLS.write(inner.secondary);
            vmcs::MSR_BITMAP.write(if lent.x2apic { x2apic } else { plain });
        }
    }

    fn lend_interrupts(&mut self, more: &VirtualInterrupts) {
        let inner = &mut *self.0;
        let Some(frame) = &mut inner.apic else {
            return;
        };
        let page = frame.bytes_mut();
        let mut requested = apic::requested(page);
        for (word, more) in requested.iter_mut().zip(more.requested) {
            *word |= more;
        }
        apic::set_requested(page, requested);
        let status = apic::status(&requested, &apic::in_service(page));
        vmcs::GUEST_INTERRUPT_STATUS.write(InterruptStatus(status));
        let told = core::array::from_fn(|index| {
            let of = |words: &[u64; 4]| words.get(index).copied().unwrap_or(0);
            of(&inner.told_ends) | of(&more.told_ends)
        });
        inner.tell_ends(told);
    }

    fn take_back_apic(&mut self) -> VirtualApic {
        let inner = &mut *self.0;
        let Some(frame) = &inner.apic else {
            return VirtualApic::default();
        };
        let page = frame.bytes();
        VirtualApic {
            task_priority: apic::task_priority(page),
            in_service: apic::in_service(page),
            x2apic: inner.x2apic,
            interrupts: VirtualInterrupts {
                requested: apic::requested(page),
                told_ends: inner.told_ends,
            },
        }
    }

    fn state(&self) -> VcpuState {
        self.0.read_state()
    }

    fn set_state(&mut self, state: &VcpuState) -> Result<(), BadState> {
        let inner = &mut *self.0;
        validate::check(state, &inner.limits)?;
        inner.write_state(state);
        // Compared with what the CPU holds, not with a note of it: the guest may have written these since.
        let mut loaded = SWITCHED.map(|msr| msr::try_read(msr).unwrap_or(0));
        inner.load(&mut loaded);
        inner.flush_own();
        Ok(())
    }

    fn dump(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        dump::dump(out)
    }
}

/// The bit of the EPT pointer that makes the CPU note accesses and writes in the tables; 0 where it cannot.
pub(super) fn ept_flags() -> u64 {
    const CAPABLE: u64 = 1 << 21;
    const ENABLE: u64 = 1 << 6;
    if msr::read(Msr::IA32_VMX_EPT_VPID_CAP) & CAPABLE != 0 {
        ENABLE
    } else {
        0
    }
}

fn is_64_bit_mode() -> bool {
    const LONG: u32 = 1 << 13;
    vmcs::GUEST_EFER.read().0 & EFER_LMA != 0 && vmcs::GUEST_CS_RIGHTS.read().0 & LONG != 0
}

/// Timer units from `now` to `deadline`: rounded down, so that the exit is not late. The timer is 32 bits wide; a longer
/// slice ends early.
fn timer_value(deadline: u64, now: u64, rate: u32) -> TimerValue {
    TimerValue(u32::try_from(deadline.saturating_sub(now) >> rate).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_counted_in_timer_units() {
        assert_eq!(timer_value(1000, 0, 0), TimerValue(1000));
        assert_eq!(timer_value(1063, 1000, 5), TimerValue(1));
        assert_eq!(
            timer_value(1000, 1001, 5),
            TimerValue(0),
            "a deadline that has passed exits at once"
        );
        assert_eq!(timer_value(u64::MAX, 0, 5), TimerValue(u32::MAX));
    }

    #[test]
    fn a_guest_does_not_own_what_the_cpu_needs() {
        assert_eq!(
            CR0_OWN & (CR0_PE | CR0_PG | CR0_NE | CR0_ET | CR0_CD | CR0_NW),
            0
        );
        assert_eq!(
            CR4_OWN & (CR4_VMXE | CR4_MCE | CR4_LA57 | CR4_PCIDE | CR4_CET),
            0
        );
    }
}

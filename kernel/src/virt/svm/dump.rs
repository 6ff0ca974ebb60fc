//! The control block in words, for the report of a failed entry.

use core::fmt;

use plinth_abi::Segment;

use super::vmcb::Vmcb;

/// Writes every field that Plinth uses or a CPU writes.
///
/// # Errors
/// Those of `out`.
pub fn dump(vmcb: &Vmcb, out: &mut dyn fmt::Write) -> fmt::Result {
    control(vmcb, out)?;
    save(vmcb, out)
}

fn control(vmcb: &Vmcb, out: &mut dyn fmt::Write) -> fmt::Result {
    let c = &vmcb.control;
    writeln!(
        out,
        "  intercepted CR reads {:04x} writes {:04x}, DR reads {:04x} writes {:04x}, exceptions {:08x}",
        c.cr_reads.bits(),
        c.cr_writes.bits(),
        c.dr_reads.bits(),
        c.dr_writes.bits(),
        c.exceptions.bits()
    )?;
    write!(out, "  intercepts")?;
    for (name, _) in c.intercepts1.iter_names() {
        write!(out, " {name}")?;
    }
    for (name, _) in c.intercepts2.iter_names() {
        write!(out, " {name}")?;
    }
    for (name, _) in c.intercepts3.iter_names() {
        write!(out, " {name}")?;
    }
    writeln!(out)?;
    writeln!(
        out,
        "  pause filter count {} threshold {}, iopm {}, msrpm {}, tsc offset {:#x}",
        c.pause_filter_count, c.pause_filter_threshold, c.iopm_base, c.msrpm_base, c.tsc_offset
    )?;
    writeln!(
        out,
        "  asid {}, tlb control {}, clean bits {:#x}, nested control {:#x}, ncr3 {}, lbr control {:#x}",
        c.asid,
        c.tlb_control.bits(),
        c.clean.bits(),
        c.nested.into_bits(),
        c.nested_cr3,
        c.lbr.into_bits()
    )?;
    let v = c.virtual_interrupt;
    writeln!(
        out,
        "  virtual interrupt: tpr {:#x} irq {} vector {:#x} priority {} ignore-tpr {} masking {}; shadow {}",
        v.tpr(),
        v.irq(),
        v.vector(),
        v.priority(),
        v.ignore_tpr(),
        v.masking(),
        c.interrupt_state.shadow()
    )?;
    writeln!(
        out,
        "  exit {} info1 {:#x} info2 {:#x}, next rip {:#x}, {} bytes fetched {:02x?}",
        c.exit_code, c.exit_info1, c.exit_info2, c.next_rip, c.fetched_count, c.fetched_bytes
    )?;
    writeln!(
        out,
        "  interrupted {:#x} {:?}, to inject {:#x} {:?}",
        c.exit_int_info.into_bits(),
        c.exit_int_info.event(),
        c.event_injection.into_bits(),
        c.event_injection.event()
    )?;
    writeln!(
        out,
        "  avic bar {:#x} backing page {:#x} logical {:#x} physical {:#x}",
        c.avic_bar, c.avic_backing_page, c.avic_logical_table, c.avic_physical_table
    )
}

fn save(vmcb: &Vmcb, out: &mut dyn fmt::Write) -> fmt::Result {
    let s = &vmcb.save;
    let segments: [(&str, &Segment); 10] = [
        ("es", &s.es),
        ("cs", &s.cs),
        ("ss", &s.ss),
        ("ds", &s.ds),
        ("fs", &s.fs),
        ("gs", &s.gs),
        ("ldtr", &s.ldtr),
        ("tr", &s.tr),
        ("gdtr", &s.gdtr),
        ("idtr", &s.idtr),
    ];
    for (name, segment) in segments {
        writeln!(
            out,
            "  {name:4} {:04x} attributes {:03x} limit {:08x} base {:016x}",
            segment.selector, segment.attributes, segment.limit, segment.base
        )?;
    }
    writeln!(
        out,
        "  rip {:016x} rsp {:016x} rax {:016x} rflags {:08x} cpl {}",
        s.rip, s.rsp, s.rax, s.rflags, s.cpl
    )?;
    writeln!(
        out,
        "  cr0 {:#x} cr2 {:#x} cr3 {:#x} cr4 {:#x} efer {:#x} dr6 {:#x} dr7 {:#x} pat {:#x}",
        s.cr0, s.cr2, s.cr3, s.cr4, s.efer, s.dr6, s.dr7, s.g_pat
    )?;
    writeln!(
        out,
        "  star {:#x} lstar {:#x} cstar {:#x} sfmask {:#x} kernel gs base {:#x}",
        s.star, s.lstar, s.cstar, s.sfmask, s.kernel_gs_base
    )?;
    writeln!(
        out,
        "  sysenter cs {:#x} esp {:#x} eip {:#x}; debugctl {:#x} branch {:#x} to {:#x}, exception {:#x} to {:#x}",
        s.sysenter_cs,
        s.sysenter_esp,
        s.sysenter_eip,
        s.debugctl,
        s.br_from,
        s.br_to,
        s.last_exception_from,
        s.last_exception_to
    )?;
    writeln!(
        out,
        "  s_cet {:#x} ssp {:#x} interrupt ssp table {:#x} spec_ctrl {:#x}",
        s.s_cet, s.ssp, s.interrupt_ssp_table, s.spec_ctrl
    )
}

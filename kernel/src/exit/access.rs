//! Guest memory by linear address, as the instruction that exited would reach it: segments, paging, faults.

use plinth_abi::Segment;

use super::{Next, raise};
use crate::decode;
use crate::mem::walk::{Intent, PageFault, Paging, Trail, WalkError};
use crate::mem::{Gpa, PAGE_SIZE};
use crate::object::{Context, Ending};
use crate::virt::event::vector;
use crate::virt::exit::NestedFault;
use crate::virt::{Event, SegmentName, Vcpu as _, Vendor};

/// Why an access could not be made for the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fault {
    /// The guest takes this exception instead.
    Exception(Event),
    /// It takes a page fault.
    PageFault(PageFault),
    /// There is no memory behind its paging.
    Unmapped {
        gpa: Gpa,
        write: bool,
        fetch: bool,
        table_walk: bool,
    },
    /// Its tables keep changing: the instruction is run again.
    Again,
}

impl Fault {
    /// What an access takes that this segment does not allow (SDM vol. 3 7.15).
    pub(super) fn of_segment(name: SegmentName) -> Self {
        let vector = if name == SegmentName::Ss {
            vector::SS
        } else {
            vector::GP
        };
        Self::Exception(Event::exception(vector, Some(0)))
    }

    /// What follows from it.
    pub(super) fn next<V: Vendor>(self, vcpu: &mut Context<V>) -> Next {
        match self {
            Self::Exception(event) => raise(vcpu, event),
            Self::PageFault(fault) => {
                vcpu.hw.set_cr2(fault.address);
                raise(vcpu, Event::exception(vector::PF, Some(fault.error_code)))
            }
            Self::Unmapped {
                gpa,
                write,
                fetch,
                table_walk,
            } => vcpu.end(Ending::NestedFault(NestedFault {
                gpa,
                write,
                fetch,
                table_walk,
                present: false,
            })),
            Self::Again => Next::Resume,
        }
    }
}

/// How wide addresses and operands are where the guest executes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum CodeSize {
    /// Real mode, virtual 8086 mode, 16-bit code segments.
    Bits16,
    /// 32-bit code segments, compatibility mode included.
    Bits32,
    /// 64-bit mode.
    Bits64,
}

/// The vCPU's name of a segment that an instruction names.
pub(super) const fn segment_name(segment: decode::Segment) -> SegmentName {
    match segment {
        decode::Segment::Es => SegmentName::Es,
        decode::Segment::Cs => SegmentName::Cs,
        decode::Segment::Ss => SegmentName::Ss,
        decode::Segment::Ds => SegmentName::Ds,
        decode::Segment::Fs => SegmentName::Fs,
        decode::Segment::Gs => SegmentName::Gs,
    }
}

/// Long mode active.
const EFER_LMA: u64 = 1 << 10;
/// RFLAGS.AC.
const RFLAGS_AC: u64 = 1 << 18;

/// The size of the code that is executing.
pub(super) fn code_size<V: Vendor>(vcpu: &Context<V>, cs: &Segment) -> CodeSize {
    if vcpu.hw.efer() & EFER_LMA != 0 && cs.is_long() {
        CodeSize::Bits64
    } else if cs.is_default_32() {
        CodeSize::Bits32
    } else {
        CodeSize::Bits16
    }
}

/// What rules the walk of the guest's own page tables.
fn paging<V: Vendor>(vcpu: &Context<V>) -> Paging {
    let [_, _, _, edx] = vcpu.cpuid(0x8000_0001, 0);
    let [eax, ..] = vcpu.cpuid(0x8000_0008, 0);
    Paging {
        cr0: vcpu.hw.cr0(),
        cr3: vcpu.hw.cr3(),
        cr4: vcpu.hw.cr4(),
        efer: vcpu.hw.efer(),
        cpl: vcpu.hw.cpl(),
        rflags_ac: vcpu.hw.rflags() & RFLAGS_AC != 0,
        physical_bits: eax & 0xff,
        gigabyte_pages: edx & 1 << 26 != 0,
    }
}

/// The guest-physical address behind a linear one.
pub(super) fn translate<V: Vendor>(
    vcpu: &Context<V>,
    linear: u64,
    intent: Intent,
) -> Result<Gpa, Fault> {
    let paging = paging(vcpu);
    let unmapped = WalkError::Unreachable(Gpa::new(0));
    vcpu.domain
        .with_space(|space| paging.walk(&space.view(), linear, intent))
        .unwrap_or(Err(unmapped))
        .map_err(|why| match why {
            WalkError::PageFault(fault) => Fault::PageFault(fault),
            WalkError::NotCanonical => Fault::Exception(Event::GP0),
            WalkError::Unreachable(gpa) => Fault::Unmapped {
                gpa,
                write: false,
                fetch: false,
                table_walk: true,
            },
            WalkError::Contended => Fault::Again,
        })
}

/// The way of a walk that finds code.
pub(super) fn trail<V: Vendor>(vcpu: &Context<V>, linear: u64) -> Option<Trail> {
    let paging = paging(vcpu);
    vcpu.domain
        .with_space(|space| paging.trail(&space.view(), linear, Intent::Fetch))?
}

/// Bytes from `linear` to the end of its page.
pub(super) const fn to_page_end(linear: u64) -> usize {
    (PAGE_SIZE - linear % PAGE_SIZE) as usize
}

/// Reads at `linear` into `out`, which does not reach beyond the page.
pub(super) fn read_in_page<V: Vendor>(
    vcpu: &Context<V>,
    linear: u64,
    out: &mut [u8],
    intent: Intent,
) -> Result<(), Fault> {
    let gpa = translate(vcpu, linear, intent)?;
    vcpu.domain
        .read_guest(gpa, out)
        .map_err(|_| Fault::Unmapped {
            gpa,
            write: false,
            fetch: intent == Intent::Fetch,
            table_walk: false,
        })
}

/// Writes `bytes` at `linear`. Both pages are translated before either is written, so that a fault leaves nothing half done.
pub(super) fn write<V: Vendor>(vcpu: &Context<V>, linear: u64, bytes: &[u8]) -> Result<(), Fault> {
    let (first, second) = bytes.split_at(bytes.len().min(to_page_end(linear)));
    let at = translate(vcpu, linear, Intent::Write)?;
    let rest = match second {
        [] => at,
        _ => translate(vcpu, linear.wrapping_add(first.len() as u64), Intent::Write)?,
    };
    for (gpa, part) in [(at, first), (rest, second)] {
        if !part.is_empty() {
            vcpu.domain
                .write_guest(gpa, part)
                .map_err(|_| Fault::Unmapped {
                    gpa,
                    write: true,
                    fetch: false,
                    table_walk: false,
                })?;
        }
    }
    Ok(())
}

/// Reads at `linear`, across a page's end as well.
pub(super) fn read<V: Vendor>(vcpu: &Context<V>, linear: u64, out: &mut [u8]) -> Result<(), Fault> {
    let (first, second) = out.split_at_mut(out.len().min(to_page_end(linear)));
    read_in_page(vcpu, linear, first, Intent::Read)?;
    if second.is_empty() {
        return Ok(());
    }
    read_in_page(
        vcpu,
        linear.wrapping_add(first.len() as u64),
        second,
        Intent::Read,
    )
}

//! Accesses to ports and addresses that somebody has claimed: told to the claimer, and completed when it has answered.

use plinth_abi::device::DATA;

use super::access::{self, Fault};
use super::mmio::{self, Registers as _, Step, Wait};
use super::string::{self, StringAccess};
use super::{Next, apic, instruction, io};
use crate::decode::{Instruction, Operand, Operation, Register};
use crate::mem::walk::Intent;
use crate::mem::{Gpa, PAGE_SIZE};
use crate::object::{Access, ClaimKind, Context, Ending, Run};
use crate::trace::Counter;
use crate::virt::exit::{Io, NestedFault};
use crate::virt::{Event, SegmentName, Vcpu as _, Vendor};

/// What has to be done when a claimer has answered.
#[derive(Clone, Copy, Debug)]
pub enum Completion {
    /// IN or OUT, of so many bytes of instruction.
    Port(Io, u8),
    /// INS or OUTS, and how many elements.
    String(StringAccess, u32),
    /// An instruction that touched an address.
    Mmio(Instruction, Wait),
    /// An interrupt acknowledge cycle: the answer is the vector.
    Acknowledge,
}

/// Steps of one instruction: a read, a write, and the end.
const STEPS: usize = 4;
/// Encoding of RSP.
const RSP: u8 = 4;

/// Completes what a vCPU waited for: the claimer's answer is `value`.
pub fn complete<V: Vendor>(vcpu: &mut Context<V>, run: &mut Run<'_, V>, value: u64) -> Next {
    // By reference, of which each takes what it needs: the largest is of some hundred bytes.
    match vcpu.completion() {
        None => Next::Resume,
        Some(&Completion::Port(access, length)) => io::finish(vcpu, access, length, value),
        Some(&Completion::String(access, count)) => finish_string(vcpu, run, access, count),
        Some(&Completion::Mmio(instruction, wait)) => {
            let step = mmio::complete(&instruction, wait, value, &mut Registers::<V>(&mut vcpu.hw));
            walk(vcpu, run, &instruction, step, None)
        }
        Some(Completion::Acknowledge) => {
            // Without an answer there was no interrupt.
            if let Ok(vector) = u8::try_from(value) {
                // Nothing else is being delivered: that was looked at before.
                let _ = vcpu.hw.inject(Event::external(vector));
            }
            Next::Resume
        }
    }
}

/// IN or OUT on a claimed port; `None` where nobody has claimed it.
pub(super) fn port<V: Vendor>(
    vcpu: &mut Context<V>,
    run: &Run<'_, V>,
    access: Io,
    length: u8,
) -> Option<Next> {
    let value = if access.input {
        0
    } else {
        vcpu.hw.gprs().rax & (u64::MAX >> (64 - 8 * u32::from(access.size)))
    };
    let told = Access {
        address: access.port.into(),
        size: access.size,
        write: !access.input,
        value,
        count: 1,
        data: None,
    };
    let told = vcpu.domain.tell_claimer(ClaimKind::Ports, run.vcpu, &told);
    told.then(|| vcpu.wait_for_device(Completion::Port(access, length)))
}

/// INS or OUTS on a claimed port, as many elements at once as a slot holds; `None` where nobody has claimed it.
pub(super) fn string<V: Vendor>(
    vcpu: &mut Context<V>,
    run: &Run<'_, V>,
    access: StringAccess,
) -> Option<Next> {
    let io = access.io;
    let left = access.left(vcpu);
    if left == 0 || !vcpu.domain.has_claim(ClaimKind::Ports, io.port.into()) {
        return None;
    }
    let size = usize::from(io.size);
    let most = StringAccess::most(vcpu).min(left).min((DATA / size) as u64);
    let mut data = [0; DATA];
    let mut count = 0;
    // Everything that can fault comes before the device notices anything.
    for (index, element) in (0..most).zip(data.chunks_mut(size)) {
        let result = access.linear(vcpu, index).and_then(|linear| {
            if io.input {
                access::translate(vcpu, linear, Intent::Write)
                    .and_then(|_| {
                        access::translate(vcpu, linear.wrapping_add(size as u64 - 1), Intent::Write)
                    })
                    .map(drop)
            } else {
                access::read(vcpu, linear, element)
            }
        });
        match result {
            Ok(()) => count += 1,
            // The elements before it go first; it faults when its turn comes.
            Err(_) if count > 0 => break,
            Err(fault) => return Some(fault.next(vcpu)),
        }
    }
    let told = Access {
        address: io.port.into(),
        size: io.size,
        write: !io.input,
        value: 0,
        count,
        data: Some(data),
    };
    let told = vcpu.domain.tell_claimer(ClaimKind::Ports, run.vcpu, &told);
    told.then(|| vcpu.wait_for_device(Completion::String(access, count)))
}

/// The claimer has taken the elements, or left them in the slot.
fn finish_string<V: Vendor>(
    vcpu: &mut Context<V>,
    run: &Run<'_, V>,
    access: StringAccess,
    count: u32,
) -> Next {
    // A claimer that is gone leaves what an empty bus gives.
    let data = vcpu
        .domain
        .claimer_data(ClaimKind::Ports, access.io.port.into(), run.vcpu)
        .unwrap_or([0xff; DATA]);
    for element in data
        .chunks(usize::from(access.io.size))
        .take(count as usize)
    {
        if access.io.input {
            let result = access
                .linear(vcpu, 0)
                .and_then(|linear| access::write(vcpu, linear, element));
            if let Err(fault) = result {
                return fault.next(vcpu);
            }
        }
        access.advance(vcpu);
    }
    let left = if access.io.repeat {
        access.left(vcpu)
    } else {
        0
    };
    access.finish(vcpu, left)
}

/// An access that the nested tables do not allow: to what somebody has claimed, or the end of the domain.
#[inline(never)]
pub(super) fn nested_fault<V: Vendor>(
    vcpu: &mut Context<V>,
    run: &mut Run<'_, V>,
    fault: &NestedFault,
) -> (Counter, Next) {
    // The delivery of an event to a device's memory is nothing that an instruction does.
    let by_instruction = is_access(fault) && !vcpu.hw.delivers_event();
    let page = apic::page(vcpu, fault.gpa);
    let served = page.is_some() || vcpu.domain.has_claim(ClaimKind::Mmio, fault.gpa.get());
    if !by_instruction || !served {
        return (Counter::NestedFault, vcpu.end(Ending::NestedFault(*fault)));
    }
    if let Some(page) = page
        && let Some(next) = move_at_once(vcpu, run, page, fault)
    {
        return (Counter::Mmio, next);
    }
    let instruction = match instruction::known(vcpu) {
        Some(known) => *known,
        None => match instruction::decoded(vcpu) {
            Ok(instruction) => instruction,
            Err(next) => return (Counter::Mmio, next),
        },
    };
    match mmio::start(&instruction, &Registers::<V>(&mut vcpu.hw)) {
        Some(step) => {
            // A string instruction may have two operands in memory.
            let is_string = matches!(instruction.operation, Operation::String { .. });
            let known = (!is_string).then_some(fault);
            let next = walk(vcpu, run, &instruction, step, known);
            (Counter::Mmio, next)
        }
        None => (Counter::NestedFault, vcpu.end(Ending::NestedFault(*fault))),
    }
}

/// Whether there is nothing at an address, and it is not code or a page table that was looked for there.
#[inline(always)]
const fn is_access(fault: &NestedFault) -> bool {
    !fault.present && !fault.fetch && !fault.table_walk
}

/// MOV of 32 bits between a register of an interrupt controller and one of the vCPU's.
enum Move {
    /// From the controller.
    Load(Register),
    /// To it.
    Store(Operand),
}

/// What faulted, where it is remembered that it is such an instruction, as nearly all that touches those pages; and its length. The CPU has found the
/// address with all checks, and nothing else can fail.
#[inline(always)]
fn known_move<V: Vendor>(vcpu: &Context<V>, fault: &NestedFault) -> Option<(Move, u8)> {
    // An operand that begins in the page before faults at the first byte of this one.
    if !fault.gpa.get().is_multiple_of(4) || fault.gpa.offset_in(PAGE_SIZE) == 0 {
        return None;
    }
    let &Instruction {
        operation: Operation::Move {
            destination,
            source,
        },
        operand_size: 4,
        length,
        ..
    } = instruction::known(vcpu)?
    else {
        return None;
    };
    match (destination, source) {
        (Operand::Register(register), Operand::Memory(_)) => Some((Move::Load(register), length)),
        (Operand::Memory(_), source) => Some((Move::Store(source), length)),
        _ => None,
    }
}

/// Makes such a move.
fn move_at_once<V: Vendor>(
    vcpu: &mut Context<V>,
    run: &mut Run<'_, V>,
    page: apic::Page,
    fault: &NestedFault,
) -> Option<Next> {
    let (what, length) = known_move(vcpu, fault)?;
    match what {
        Move::Load(register) => {
            let value = apic::read(vcpu, run, page, fault.gpa, 4);
            Registers::<V>(&mut vcpu.hw).write(register, value);
            vcpu.hw.skip(length);
            Some(Next::Resume)
        }
        Move::Store(source) => {
            let value = Registers::<V>(&mut vcpu.hw).value(source);
            apic::write(vcpu, run, page, fault.gpa, 4, value);
            vcpu.hw.skip(length);
            Some(vcpu.deliver_interrupt(run.vcpu))
        }
    }
}

/// Makes such a move in passing, if it is of the local APIC and concerns nobody else; whether it has. An interrupt may have become deliverable.
#[inline(always)]
pub(super) fn move_in_passing<V: Vendor>(
    vcpu: &mut Context<V>,
    run: &Run<'_, V>,
    fault: &NestedFault,
) -> bool {
    let is_local = apic::page(vcpu, fault.gpa) == Some(apic::Page::Local);
    if !is_local || !is_access(fault) || vcpu.is_apic_away() {
        return false;
    }
    let Some((what, length)) = known_move(vcpu, fault) else {
        return false;
    };
    match what {
        Move::Load(register) => {
            let Some(value) = apic::read_at_once(vcpu, run, fault.gpa) else {
                return false;
            };
            // The upper half becomes zero.
            Registers::<V>(&mut vcpu.hw).set(register.number, value.into());
        }
        Move::Store(source) => {
            let value = Registers::<V>(&mut vcpu.hw).value(source);
            if !apic::write_at_once(vcpu, fault.gpa, value) {
                return false;
            }
        }
    }
    vcpu.hw.skip(length);
    true
}

/// The registers of a vCPU.
struct Registers<'a, V: Vendor>(&'a mut V::Vcpu);

impl<V: Vendor> mmio::Registers for Registers<'_, V> {
    fn get(&self, number: u8) -> u64 {
        match number {
            RSP => self.0.rsp(),
            _ => self.0.gprs().get(number),
        }
    }

    fn set(&mut self, number: u8, value: u64) {
        match number {
            RSP => self.0.set_rsp(value),
            _ => self.0.gprs_mut().set(number, value),
        }
    }

    fn rip(&self) -> u64 {
        self.0.rip()
    }

    fn rflags(&self) -> u64 {
        self.0.rflags()
    }

    fn set_rflags(&mut self, value: u64) {
        self.0.set_rflags(value);
    }
}

/// Makes the steps of an instruction, until it is done or waits for a device. `known` is the fault of its only operand in memory.
fn walk<V: Vendor>(
    vcpu: &mut Context<V>,
    run: &mut Run<'_, V>,
    instruction: &Instruction,
    mut step: Step,
    known: Option<&NestedFault>,
) -> Next {
    // A write to an interrupt controller may let an interrupt through.
    let mut looks = false;
    for _ in 0..STEPS {
        let (access, wait) = match step {
            Step::Access(access, wait) => (access, wait),
            Step::Done | Step::Repeat => {
                let is_done = step == Step::Done;
                vcpu.hw.skip(if is_done { instruction.length } else { 0 });
                return if looks {
                    vcpu.deliver_interrupt(run.vcpu)
                } else {
                    Next::Resume
                };
            }
        };
        let value = match make(vcpu, run, &access, known) {
            Ok(Made::Read(value)) => value,
            Ok(Made::Written) => 0,
            Ok(Made::Controlled) => {
                looks = true;
                0
            }
            Ok(Made::Told) => {
                return vcpu.wait_for_device(Completion::Mmio(*instruction, wait));
            }
            Err(fault) => return fault.next(vcpu),
        };
        step = mmio::complete(instruction, wait, value, &mut Registers::<V>(&mut vcpu.hw));
    }
    // No instruction has so many.
    vcpu.end(Ending::Undecodable)
}

/// How an access was made.
enum Made {
    /// A read gave this.
    Read(u64),
    /// Memory was written.
    Written,
    /// An interrupt controller was written.
    Controlled,
    /// The claimer was told.
    Told,
}

/// Makes one access of an instruction, to memory or to what is claimed.
fn make<V: Vendor>(
    vcpu: &mut Context<V>,
    run: &mut Run<'_, V>,
    wanted: &mmio::Access,
    known: Option<&NestedFault>,
) -> Result<Made, Fault> {
    let name = access::segment_name(wanted.segment);
    let segment = vcpu.hw.segment(name);
    let code = access::code_size(vcpu, &vcpu.hw.segment(SegmentName::Cs));
    let size = u64::from(wanted.size);
    let linear = string::linear_address(&segment, name, code, wanted.offset, size, wanted.write)
        .ok_or_else(|| Fault::of_segment(name))?;
    let intent = if wanted.write {
        Intent::Write
    } else {
        Intent::Read
    };
    // The CPU has found this address already, with all checks; unless what faulted is a later page of the operand, or less was wanted.
    let known = known.filter(|fault| {
        fault.gpa.offset_in(PAGE_SIZE) == linear % PAGE_SIZE && (fault.write || !wanted.write)
    });
    let gpa = match known {
        Some(fault) => fault.gpa,
        None => access::translate(vcpu, linear, intent)?,
    };
    let page = apic::page(vcpu, gpa);
    let claimed = page.is_none() && vcpu.domain.has_claim(ClaimKind::Mmio, gpa.get());
    // An access across the end of a page has two addresses; no device expects that, and half of it must not be forgotten.
    let inside = gpa.offset_in(PAGE_SIZE) + size <= PAGE_SIZE;
    if (page.is_some() || claimed) && !inside {
        return Err(unmapped(wanted, gpa));
    }
    if let Some(page) = page {
        return Ok(if wanted.write {
            apic::write(vcpu, run, page, gpa, wanted.size, wanted.value);
            Made::Controlled
        } else {
            Made::Read(apic::read(vcpu, run, page, gpa, wanted.size))
        });
    }
    if claimed {
        return tell(vcpu, run, wanted, gpa);
    }
    let mut bytes = wanted.value.to_le_bytes();
    let part = bytes
        .get_mut(..usize::from(wanted.size))
        .unwrap_or_default();
    if wanted.write {
        access::write(vcpu, linear, part)?;
        return Ok(Made::Written);
    }
    access::read(vcpu, linear, part)?;
    Ok(Made::Read(u64::from_le_bytes(bytes)))
}

fn tell<V: Vendor>(
    vcpu: &Context<V>,
    run: &Run<'_, V>,
    wanted: &mmio::Access,
    gpa: Gpa,
) -> Result<Made, Fault> {
    let told = Access {
        address: gpa.get(),
        size: wanted.size,
        write: wanted.write,
        value: wanted.value,
        count: 1,
        data: None,
    };
    if vcpu.domain.tell_claimer(ClaimKind::Mmio, run.vcpu, &told) {
        return Ok(Made::Told);
    }
    Err(unmapped(wanted, gpa))
}

/// An access that nobody serves.
fn unmapped(wanted: &mmio::Access, gpa: Gpa) -> Fault {
    Fault::Unmapped {
        gpa,
        write: wanted.write,
        fetch: false,
        table_walk: false,
    }
}

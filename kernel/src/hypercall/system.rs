//! Calls on the machine.

use plinth_abi::call::power as action;
use plinth_abi::system::LISTED_CPUS;
use plinth_abi::trace::Record;
use plinth_abi::{Status, SystemInfo, rights};
use zerocopy::IntoBytes;

use super::Done;
use super::caller::{Caller, number};
use super::domain::stream;
use crate::arch::{power as machine, time};
use crate::boot::cmdline::End;
use crate::mem::frames::{Kind, frames};
use crate::mem::{Access, heap};
use crate::virt::{Vcpu as _, Vendor};
use crate::{log, trace as rings};

/// Tells what the machine has, and what is left of it.
pub(super) fn info<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [system, gpa, ..] = caller.arguments();
    caller.system(system, rights::READ)?;
    caller.check_buffer(gpa, size_of::<SystemInfo>() as u64, Access::WRITE)?;
    let kernel = caller.domain().kernel;
    let (total, free, memory) = {
        let frames = frames();
        let reserved = frames.count(Kind::Reserved);
        (
            frames.total_frames() - reserved,
            frames.free_frames(),
            frames.count(Kind::GuestRam),
        )
    };
    let mut info = SystemInfo {
        now_ns: time::ns_since_boot(),
        tsc_hz: time::tsc_hz(),
        frames: total,
        free_frames: free,
        memory_frames: memory,
        heap: heap::size() as u64,
        heap_used: heap::used() as u64,
        cpus: kernel.sched.cpus() as u32,
        domains: kernel.count(),
        extension: padded(V::NAME),
        version: padded(env!("CARGO_PKG_VERSION")),
        idle_ns: [0; LISTED_CPUS],
        idle_halts: [0; LISTED_CPUS],
    };
    let places = info.idle_ns.iter_mut().zip(&mut info.idle_halts);
    for (cpu, (ns, halts)) in (0..kernel.sched.cpus()).zip(places) {
        let (ticks, count) = kernel.sched.idle(cpu);
        *ns = time::ns_of_ticks(ticks);
        *halts = count;
    }
    caller.write(gpa, &info)?;
    Ok(Done::Value(0))
}

fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = [0; N];
    for (to, from) in bytes.iter_mut().zip(text.bytes()) {
        *to = from;
    }
    bytes
}

/// Copies from the kernel's log.
pub(super) fn log<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [system, gpa, length, position, ..] = caller.arguments();
    caller.system(system, rights::READ)?;
    stream(caller, gpa, length, position, log::read_ring)
}

/// Records that are copied at once.
const RECORDS: usize = 8;

/// Copies records of a CPU's trace ring.
pub(super) fn trace<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [system, gpa, length, position, ..] = caller.arguments();
    caller.system(system, rights::READ)?;
    const SIZE: u64 = size_of::<Record>() as u64;
    let cpu = (position >> 48) as usize;
    let first = position & 0xffff_ffff_ffff;
    if cpu >= caller.domain().kernel.sched.cpus() || rings::read(cpu, 0, &mut []).is_none() {
        return Err(Status::NOT_FOUND);
    }
    // A stream of bytes whose positions are records: only whole ones are copied.
    let mut next = first;
    let mut begun = None;
    let header = size_of::<plinth_abi::StreamHeader>() as u64;
    let whole = length.saturating_sub(header) / SIZE * SIZE + header;
    let length = if length < header || length > plinth_abi::call::STREAM_MAX {
        length
    } else {
        whole
    };
    let done = stream(caller, gpa, length, first, |_, out| {
        let mut records = [Record::default(); RECORDS];
        let (records, _) = records.split_at_mut(RECORDS.min(out.len() / SIZE as usize));
        let Some((start, count, end)) = rings::read(cpu, next, records) else {
            return (first, 0, first);
        };
        // The ring went round between two pieces: what follows is for the next call.
        if begun.is_some() && start != next {
            return (u64::MAX, 0, end);
        }
        let begin = *begun.get_or_insert(start);
        let done = (start - begin) * SIZE;
        next = start + count as u64;
        let (bytes, _) = records.as_bytes().split_at(count * SIZE as usize);
        for (to, from) in out.iter_mut().zip(bytes) {
            *to = *from;
        }
        (begin + done, bytes.len(), end)
    })?;
    Ok(done)
}

/// Ends the machine.
pub(super) fn power<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [system, wanted, status, ..] = caller.arguments();
    caller.system(system, rights::POWER)?;
    let end = match wanted {
        action::OFF => End::PowerOff,
        action::REBOOT => End::Reboot,
        action::HALT => End::Halt,
        _ => return Err(Status::BAD_ARGUMENT),
    };
    let status = number(status)?;
    caller.context.hw.detach(caller.run.hardware);
    V::disable(caller.run.hardware);
    machine::end(end, status)
}

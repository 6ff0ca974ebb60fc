//! Calls on memory.

use plinth_abi::call::access;
use plinth_abi::{MemoryInfo, Status, rights};

use super::Done;
use super::caller::{Caller, living, pages};
use crate::mem::nested::{GPA_LIMIT, MapError};
use crate::mem::{Access, Hpa, PAGE_SIZE, Ref, device, reaper};
use crate::object::{
    ClaimKind, Domain, Entry, LARGEST, Memory, Object, Removed, Space, SpaceError,
};
use crate::virt::Vendor;

/// Bytes of a bitmap that one step of `MEMORY_DIRTY` writes.
const BITMAP: usize = 64;

/// A number of bytes that a Memory object can have.
fn size(bytes: u64) -> Result<u64, Status> {
    let sound = bytes != 0 && bytes.is_multiple_of(PAGE_SIZE) && bytes <= LARGEST;
    sound.then_some(bytes).ok_or(Status::BAD_ARGUMENT)
}

/// Makes a Memory object.
pub(super) fn create<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [domain, bytes, ..] = caller.arguments();
    let domain = caller.domain_of(domain, rights::CHARGE)?;
    let bytes = size(bytes)?;
    living(&domain)?;
    caller.give(|| Memory::new(bytes, domain.number, &domain.budget).map(Object::Memory))
}

/// Gives it frames.
pub(super) fn populate<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [memory, ..] = caller.arguments();
    let (memory, _) = caller.memory_of(memory, rights::WRITE)?;
    let populated = match memory.populate() {
        Err(Status::AGAIN) => {
            reaper::step();
            return Ok(Done::Again(0));
        }
        result => result?,
    };
    Ok(if populated == memory.bytes() {
        Done::Value(populated)
    } else {
        Done::Again(populated)
    })
}

/// What the bits of the contract allow.
fn access_of(bits: u64) -> Result<Access, Status> {
    if bits & !access::ALL != 0 || bits & access::READ == 0 {
        return Err(Status::BAD_ARGUMENT);
    }
    let mut allowed = Access::READ;
    allowed.set(Access::WRITE, bits & access::WRITE != 0);
    allowed.set(Access::EXEC, bits & access::EXECUTE != 0);
    Ok(allowed)
}

fn status(why: SpaceError) -> Status {
    match why {
        SpaceError::Map(MapError::AlreadyMapped(_)) => Status::EXISTS,
        SpaceError::Map(MapError::NotMapped(_)) => Status::NOT_FOUND,
        SpaceError::Map(_) => Status::BAD_ARGUMENT,
        SpaceError::Denied => Status::NO_RIGHT,
        SpaceError::OverBudget => Status::OVER_BUDGET,
        SpaceError::NoMemory => Status::NO_MEMORY,
    }
}

/// `done` of `len` bytes are done.
fn in_steps(done: u64, len: u64) -> Done {
    if done == len {
        Done::Value(done)
    } else {
        Done::Again(done)
    }
}

/// Maps a part of a Memory object into a domain.
pub(super) fn map<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [memory, offset, domain, gpa, len, bits] = caller.arguments();
    // Which rights the handle needs is an argument's affair: its other faults come after the handles'.
    let needed = [
        (access::READ, rights::READ),
        (access::WRITE, rights::WRITE),
        (access::EXECUTE, rights::EXECUTE),
    ];
    let needed = needed
        .iter()
        .filter(|(bit, _)| bits & bit != 0)
        .fold(0, |all, (_, right)| all | right);
    let (memory, limit) = caller.memory_of(memory, needed)?;
    let domain = caller.domain_of(domain, rights::MEMORY)?;
    let allowed = access_of(bits)?;
    let at = pages(gpa, len)?;
    let inside = offset
        .checked_add(len)
        .is_some_and(|end| end <= memory.bytes());
    if !inside || !offset.is_multiple_of(PAGE_SIZE) {
        return Err(Status::BAD_ARGUMENT);
    }
    if !memory.is_populated() {
        return Err(Status::WRONG_STATE);
    }
    living(&domain)?;
    if domain.is_claimed(ClaimKind::Mmio, &(gpa..gpa + len)) {
        return Err(Status::EXISTS);
    }
    let done = domain
        .with_space(|space| space.map(at, &memory, offset, len, allowed, limit))
        .ok_or(Status::WRONG_STATE)?
        .map_err(status)?;
    Ok(in_steps(done, len))
}

/// Changes a domain's address space by `f`, and drops what was removed when no CPU uses it any more.
fn change<V: Vendor>(
    caller: &mut Caller<'_, '_, V>,
    domain: &Ref<Domain<V>>,
    len: u64,
    f: impl FnOnce(&mut Space<V::Format>) -> Result<(u64, Removed), SpaceError>,
) -> Result<Done, Status> {
    living(domain)?;
    let (done, removed) = domain
        .with_space(f)
        .ok_or(Status::WRONG_STATE)?
        .map_err(status)?;
    // No lock is held here: other CPUs may be waiting for this one.
    let sched = &domain.kernel.sched;
    sched.flush_now(caller.run.cpu, caller.run.hardware, domain.number);
    removed.flushed();
    Ok(in_steps(done, len))
}

/// Unmaps.
pub(super) fn unmap<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [domain, gpa, len, ..] = caller.arguments();
    let domain = caller.domain_of(domain, rights::MEMORY)?;
    let at = pages(gpa, len)?;
    change(caller, &domain, len, |space| space.unmap(at, len))
}

/// Changes what may be done with mapped memory.
pub(super) fn protect<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [domain, gpa, len, bits, ..] = caller.arguments();
    let domain = caller.domain_of(domain, rights::MEMORY)?;
    let allowed = access_of(bits)?;
    let at = pages(gpa, len)?;
    change(caller, &domain, len, |space| {
        space.protect(at, len, allowed)
    })
}

/// Tells which pages were written.
pub(super) fn dirty<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [domain, gpa, len, bitmap, ..] = caller.arguments();
    let domain = caller.domain_of(domain, rights::MEMORY)?;
    let at = pages(gpa, len)?;
    if !V::notes_writes() {
        return Err(Status::NOT_SUPPORTED);
    }
    let step = len.min(BITMAP as u64 * 8 * PAGE_SIZE);
    let bytes = (step / PAGE_SIZE).div_ceil(8);
    caller.check_buffer(bitmap, bytes, Access::WRITE)?;
    let mut bits = [0u8; BITMAP];
    let done = change(caller, &domain, len, |space| {
        space.take_dirty(at, len, &mut |page| {
            if let Some(byte) = bits.get_mut((page / 8) as usize) {
                *byte |= 1 << (page % 8);
            }
        })
    })?;
    let (bits, _) = bits.split_at((bytes as usize).min(BITMAP));
    caller.write_bytes(bitmap, bits)?;
    Ok(done)
}

/// A Memory object that is device memory.
pub(super) fn physical<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [system, hpa, bytes, ..] = caller.arguments();
    caller.system(system, rights::PHYSICAL)?;
    let bytes = size(bytes)?;
    let end = hpa.checked_add(bytes).filter(|end| *end <= GPA_LIMIT);
    let end = end
        .filter(|_| hpa.is_multiple_of(PAGE_SIZE))
        .ok_or(Status::BAD_ARGUMENT)?;
    if !device::is_free(Hpa::new(hpa), Hpa::new(end)) {
        return Err(Status::WRONG_STATE);
    }
    caller.give_entry(|| {
        let memory = Memory::physical(Hpa::new(hpa), bytes, &caller.domain().budget)?;
        Ok(Entry {
            object: Object::Memory(memory),
            rights: rights::GRANT | rights::READ | rights::WRITE,
        })
    })
}

/// Tells what a Memory object is.
pub(super) fn info<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [memory, gpa, ..] = caller.arguments();
    let (memory, _) = caller.memory_of(memory, rights::READ)?;
    caller.check_buffer(gpa, size_of::<MemoryInfo>() as u64, Access::WRITE)?;
    caller.write(gpa, &memory.info())?;
    Ok(Done::Value(0))
}

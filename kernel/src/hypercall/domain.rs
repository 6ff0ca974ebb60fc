//! Calls on domains.

use plinth_abi::call::{CONSOLE_MAX, COPY_MAX, STREAM_MAX, watch};
use plinth_abi::domain::{MAX_HANDLES, MAX_VCPUS, platform};
use plinth_abi::{DomainConfig, DomainInfo, DomainState, Status, StreamHeader, rights};

use super::Done;
use super::caller::{Caller, living, number};
use crate::mem::{Access, Amounts, Budget, Gpa, PAGE_SIZE, reaper};
use crate::object::{Domain, Ending, Object};
use crate::virt::{Vcpu as _, Vendor};

/// Bytes that are copied at once.
const PIECE: usize = 256;

/// Makes a domain.
pub(super) fn create<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [system, gpa, ..] = caller.arguments();
    caller.system(system, rights::CREATE)?;
    let config: DomainConfig = caller.read(gpa)?;
    let name = name_of(&config).ok_or(Status::BAD_ARGUMENT)?;
    if !(1..=MAX_HANDLES).contains(&config.handles)
        || !(1..=MAX_VCPUS).contains(&config.vcpus)
        || config.frames < DomainConfig::LEAST_FRAMES
        || config.heap < DomainConfig::LEAST_HEAP
        || config.platform & !platform::ALL != 0
        || config.reserved != 0
    {
        return Err(Status::BAD_ARGUMENT);
    }
    let kernel = caller.domain().kernel;
    caller.give(|| {
        let limit = Amounts {
            frames: config.frames,
            memory_frames: 0,
            heap: config.heap,
        };
        let budget = Budget::part_of(&caller.domain().budget, limit)?;
        let number = kernel.new_number().ok_or(Status::NO_MEMORY)?;
        let domain = Domain::new(kernel, number, name, &config, budget, false)?;
        kernel.list(domain.clone())?;
        Ok(Object::Domain(domain))
    })
}

/// The name in a configuration: UTF-8 up to the first zero, and nothing but zeroes behind it.
fn name_of(config: &DomainConfig) -> Option<&str> {
    let end = config
        .name
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(config.name.len());
    let (name, rest) = config.name.split_at(end);
    let name = str::from_utf8(name).ok()?;
    let sound = !name.is_empty()
        && !name.chars().any(char::is_control)
        && rest.iter().all(|byte| *byte == 0);
    sound.then_some(name)
}

/// Lets a domain run for the first time.
pub(super) fn start<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [domain, ..] = caller.arguments();
    let domain = caller.domain_of(domain, rights::CONTROL)?;
    domain.let_run(DomainState::CREATED)?;
    Ok(Done::Value(0))
}

/// Holds it.
pub(super) fn pause<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [domain, ..] = caller.arguments();
    caller.domain_of(domain, rights::CONTROL)?.pause()?;
    Ok(Done::Value(0))
}

/// Lets it go on.
pub(super) fn resume<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [domain, ..] = caller.arguments();
    let domain = caller.domain_of(domain, rights::CONTROL)?;
    domain.let_run(DomainState::PAUSED)?;
    Ok(Done::Value(0))
}

/// Ends it.
pub(super) fn kill<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [domain, ..] = caller.arguments();
    let domain = caller.domain_of(domain, rights::CONTROL)?;
    let (index, rip) = (caller.context.index, caller.context.hw.rip());
    let (index, rip) = if domain.is_same(caller.domain()) {
        (index, rip)
    } else {
        (0, 0)
    };
    domain.end(Ending::Killed, index, rip)?;
    Ok(Done::Value(0))
}

/// Takes back what it has.
pub(super) fn destroy<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [domain, ..] = caller.arguments();
    let domain = caller.domain_of(domain, rights::CONTROL)?;
    let done = match domain.destroy_step() {
        Err(Status::AGAIN) => false,
        result => result?,
    };
    // Its memory may still be on its way back.
    if !done || !domain.is_reaped() {
        reaper::step();
        return Ok(Done::Again(0));
    }
    domain.confirm_destroyed()?;
    Ok(Done::Value(0))
}

/// Tells what and how it is.
pub(super) fn info<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [domain, gpa, ..] = caller.arguments();
    let domain = caller.domain_of(domain, rights::READ)?;
    caller.check_buffer(gpa, size_of::<DomainInfo>() as u64, Access::WRITE)?;
    caller.write(gpa, &domain.info())?;
    Ok(Done::Value(0))
}

/// Signals an event when something happens to it.
pub(super) fn watch<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [domain, event, mask, ..] = caller.arguments();
    let domain = caller.domain_of(domain, rights::CONTROL)?;
    let watch = if event == 0 {
        None
    } else {
        Some((caller.event_of(event, rights::SIGNAL)?, mask))
    };
    if mask & !watch::ALL != 0 || watch.is_some() && mask == 0 {
        return Err(Status::BAD_ARGUMENT);
    }
    living(&domain)?;
    domain.set_watch(watch)?;
    Ok(Done::Value(0))
}

/// Copies from its console's output.
pub(super) fn console<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [domain, gpa, length, position, ..] = caller.arguments();
    let domain = caller.domain_of(domain, rights::READ)?;
    stream(caller, gpa, length, position, |position, out| {
        domain.with_console(|console| {
            let (start, copied) = console.read(position, out);
            (start, copied, console.end())
        })
    })
}

/// Copies a stream behind a header, piece by piece: `read` gets a position and fills a piece, and says where what it gave begins, how
/// much it is, and where the stream ends.
pub(super) fn stream<V: Vendor>(
    caller: &Caller<'_, '_, V>,
    gpa: u64,
    length: u64,
    position: u64,
    mut read: impl FnMut(u64, &mut [u8]) -> (u64, usize, u64),
) -> Result<Done, Status> {
    const HEADER: u64 = size_of::<StreamHeader>() as u64;
    if !(HEADER..=STREAM_MAX).contains(&length) {
        return Err(Status::BAD_ARGUMENT);
    }
    caller.check_buffer(gpa, length, Access::WRITE)?;
    let room = length - HEADER;
    let mut header = StreamHeader::default();
    let mut done = 0;
    loop {
        let mut piece = [0; PIECE];
        let (piece, _) = piece.split_at_mut(PIECE.min((room - done) as usize));
        let wanted = if done == 0 {
            position
        } else {
            header.start + done
        };
        let (start, copied, end) = read(wanted, piece);
        header.end = end;
        if done == 0 {
            header.start = start;
        } else if start != wanted {
            // What comes now does not follow what was copied: the ring went round. It is for the next call.
            break;
        }
        let (text, _) = piece.split_at(copied);
        caller.write_bytes(gpa + HEADER + done, text)?;
        done += copied as u64;
        if copied == 0 || done == room {
            break;
        }
    }
    caller.write(gpa, &header)?;
    Ok(Done::Value(done))
}

/// Types into its console.
pub(super) fn type_in<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [domain, gpa, length, ..] = caller.arguments();
    let domain = caller.domain_of(domain, rights::WRITE)?;
    if length > CONSOLE_MAX {
        return Err(Status::BAD_ARGUMENT);
    }
    caller.check_buffer(gpa, length, Access::READ)?;
    if domain.is_over() {
        return Err(Status::WRONG_STATE);
    }
    let mut piece = [0; PIECE];
    let (piece, _) = piece.split_at_mut(PIECE.min(length as usize));
    caller.read_bytes(gpa, piece)?;
    let taken = domain.with_console(|console| console.type_in(piece));
    Ok(Done::Value(taken as u64))
}

/// The number of the domain after this one.
pub(super) fn next<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [system, after, ..] = caller.arguments();
    caller.system(system, rights::READ)?;
    let next = caller.domain().kernel.next_domain(number(after)?);
    next.map(|domain| Done::Value(domain.number.into()))
        .ok_or(Status::NOT_FOUND)
}

/// A handle to the domain of this number.
pub(super) fn open<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [system, wanted, ..] = caller.arguments();
    caller.system(system, rights::OPEN)?;
    let domain = caller
        .domain()
        .kernel
        .find_domain(number(wanted)?)
        .ok_or(Status::NOT_FOUND)?;
    caller.give(|| Ok(Object::Domain(domain)))
}

/// Copies from its memory.
pub(super) fn read<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    copy(caller, false)
}

/// Copies into its memory.
pub(super) fn write<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    copy(caller, true)
}

fn copy<V: Vendor>(caller: &Caller<'_, '_, V>, into: bool) -> Result<Done, Status> {
    let [domain, gpa, length, there, ..] = caller.arguments();
    let domain = caller.domain_of(domain, rights::MEMORY)?;
    if length > COPY_MAX {
        return Err(Status::BAD_ARGUMENT);
    }
    let (here_access, there_access) = if into {
        (Access::READ, Access::WRITE)
    } else {
        (Access::WRITE, Access::READ)
    };
    caller.check_buffer(gpa, length, here_access)?;
    living(&domain)?;
    domain
        .with_space(|space| space.check(Gpa::new(there), length, there_access))
        .unwrap_or(Ok(()))
        .map_err(|_| Status::BAD_ADDRESS)?;
    let mut page = [0; PAGE_SIZE as usize];
    let (bytes, _) = page.split_at_mut((length as usize).min(PAGE_SIZE as usize));
    if into {
        caller.read_bytes(gpa, bytes)?;
        domain
            .write_guest(Gpa::new(there), bytes)
            .map_err(|_| Status::BAD_ADDRESS)?;
    } else {
        domain
            .read_guest(Gpa::new(there), bytes)
            .map_err(|_| Status::BAD_ADDRESS)?;
        caller.write_bytes(gpa, bytes)?;
    }
    Ok(Done::Value(length))
}

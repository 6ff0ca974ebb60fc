//! Calls on handles of any type.

use plinth_abi::{Status, rights};

use super::Done;
use super::caller::{Caller, number};
use crate::mem::reaper;
use crate::object::Entry;
use crate::virt::Vendor;

/// The entry with just these rights, which it must have.
fn with_rights<V: Vendor>(entry: Entry<V>, wanted: u64) -> Result<Entry<V>, Status> {
    let wanted = number(wanted)?;
    if wanted & !entry.rights != 0 {
        return Err(Status::NO_RIGHT);
    }
    Ok(Entry {
        object: entry.object,
        rights: wanted,
    })
}

/// Another handle to the same object.
pub(super) fn duplicate<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [handle, wanted, ..] = caller.arguments();
    let entry = with_rights(caller.entry(handle)?, wanted)?;
    caller.give_entry(|| Ok(entry))
}

/// A handle in another domain's table.
pub(super) fn grant<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [handle, domain, wanted, ..] = caller.arguments();
    let entry = caller.entry(handle)?;
    if entry.rights & rights::GRANT == 0 {
        return Err(Status::NO_RIGHT);
    }
    let domain = caller.domain_of(domain, rights::CHARGE)?;
    let entry = with_rights(entry, wanted)?;
    if domain.is_over() {
        return Err(Status::WRONG_STATE);
    }
    domain.reserve_handle()?;
    let handle = domain.add_handle(entry)?;
    Ok(Done::Value(handle.0.into()))
}

/// Gives a handle up.
pub(super) fn close<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [handle, ..] = caller.arguments();
    let entry = caller.domain().remove_handle(handle)?;
    drop(entry);
    // What was a small object's last is back at once.
    reaper::step();
    Ok(Done::Value(0))
}

/// What a handle names.
pub(super) fn info<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [handle, ..] = caller.arguments();
    let entry = caller.entry(handle)?;
    let (kind, _) = entry.object.kind();
    Ok(Done::Value(
        u64::from(kind.0) << 32 | u64::from(entry.rights),
    ))
}

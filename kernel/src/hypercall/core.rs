//! The core family: what concerns the caller only.

use plinth_abi::Status;
use plinth_abi::call::CONSOLE_MAX;

use super::Done;
use super::caller::Caller;
use crate::arch::time;
use crate::mem::Access;
use crate::object::{Ending, Waiting};
use crate::virt::Vendor;

/// Bytes that one call takes or gives: what the kernel's stack holds of a guest's text.
const PIECE: usize = 256;

/// Writes what it takes of the RSI bytes at guest-physical RDI to the domain's console. The whole range is checked first: on
/// a bad address in its middle nothing is shown.
pub(super) fn console_write<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [gpa, length, ..] = caller.arguments();
    if length > CONSOLE_MAX {
        return Err(Status::BAD_ARGUMENT);
    }
    caller.check_buffer(gpa, length, Access::READ)?;
    let mut piece = [0; PIECE];
    let (piece, _) = piece.split_at_mut(PIECE.min(length as usize));
    caller.read_bytes(gpa, piece)?;
    let taken = caller.domain().write_console(piece);
    if taken == 0 && length != 0 {
        // Whoever reads the console is behind, and gets the CPU.
        return Ok(Done::Yield(Status::AGAIN));
    }
    Ok(Done::Value(taken as u64))
}

/// Reads input into the RSI bytes at RDI.
pub(super) fn console_read<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [gpa, length, ..] = caller.arguments();
    if length > CONSOLE_MAX {
        return Err(Status::BAD_ARGUMENT);
    }
    caller.check_buffer(gpa, length, Access::WRITE)?;
    let mut piece = [0; PIECE];
    let (piece, _) = piece.split_at_mut(PIECE.min(length as usize));
    let taken = caller
        .domain()
        .with_console(|console| console.take_input(piece));
    let (read, _) = piece.split_at(taken);
    caller.write_bytes(gpa, read)?;
    Ok(Done::Value(taken as u64))
}

/// Nanoseconds since boot.
pub(super) fn clock() -> Result<Done, Status> {
    Ok(Done::Value(time::ns_since_boot()))
}

/// Ends the caller's domain with the status in RDI.
pub(super) fn end<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [status, ..] = caller.arguments();
    Ok(Done::End(Ending::Status(status)))
}

/// Waits for an event until the clock is at RDI.
pub(super) fn wait<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [deadline, ..] = caller.arguments();
    Ok(wait_until(deadline, false))
}

/// Waits for an event until the clock is at `deadline`; `passed`: the caller has passed its CPU on, and no event was pending then.
pub(super) fn wait_until(deadline: u64, passed: bool) -> Done {
    let deadline = match deadline {
        0 | u64::MAX => deadline,
        ns => time::tsc_at_ns(ns),
    };
    Done::Wait(Waiting::Event { deadline, passed })
}

//! The core family: console, clock, end.

use plinth_abi::Status;
use plinth_abi::call::CONSOLE_WRITE_MAX;

use super::Done;
use crate::arch::time;
use crate::mem::Gpa;
use crate::object::Vcpu;
use crate::virt::{Vcpu as _, Vendor};

/// Bytes copied at a time: what the kernel's stack holds of a guest's text.
const PIECE: usize = 256;

/// Writes RSI bytes at guest-physical RDI to the domain's console. The whole range is checked first: on a bad address in
/// its middle nothing is shown.
pub(super) fn console_write<V: Vendor>(vcpu: &mut Vcpu<V>) -> Result<Done, Status> {
    let (address, length) = (vcpu.hw.gprs().rdi, vcpu.hw.gprs().rsi);
    if length > CONSOLE_WRITE_MAX {
        return Err(Status::BAD_ARGUMENT);
    }
    let start = Gpa::new(address);
    start.checked_add(length).ok_or(Status::BAD_ADDRESS)?;
    let domain = &vcpu.domain;
    if !domain.with_memory(|memory| memory.is_mapped(start, length)) {
        return Err(Status::BAD_ADDRESS);
    }
    let mut piece = [0; PIECE];
    let mut done = 0;
    while done < length {
        let take = (length - done).min(PIECE as u64);
        let at = start.checked_add(done).ok_or(Status::BAD_ADDRESS)?;
        let Some(bytes) = piece.get_mut(..take as usize) else {
            break;
        };
        domain
            .read_guest(at, bytes)
            .map_err(|_| Status::BAD_ADDRESS)?;
        domain.write_console(bytes);
        done += take;
    }
    Ok(Done::Value(length))
}

/// Nanoseconds since boot.
pub(super) fn clock() -> Result<Done, Status> {
    Ok(Done::Value(time::ns_since_boot()))
}

/// Ends the caller's domain with the status in RDI.
pub(super) fn end<V: Vendor>(vcpu: &mut Vcpu<V>) -> Result<Done, Status> {
    Ok(Done::End(vcpu.hw.gprs().rdi))
}

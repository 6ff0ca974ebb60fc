//! The core family: console, clock, end.

use plinth_abi::Status;
use plinth_abi::call::CONSOLE_MAX;

use super::Done;
use crate::arch::time;
use crate::mem::Gpa;
use crate::object::Vcpu;
use crate::virt::{Vcpu as _, Vendor};

/// Bytes that one call takes: what the kernel's stack holds of a guest's text.
const PIECE: usize = 256;
/// Lines that one call shows. A serial port needs milliseconds for each, with interrupts off.
const LINES: usize = 8;

/// Writes what it takes of the RSI bytes at guest-physical RDI to the domain's console. The whole range is checked first: on
/// a bad address in its middle nothing is shown.
pub(super) fn console_write<V: Vendor>(vcpu: &mut Vcpu<V>) -> Result<Done, Status> {
    let (address, length) = (vcpu.hw.gprs().rdi, vcpu.hw.gprs().rsi);
    if length > CONSOLE_MAX {
        return Err(Status::BAD_ARGUMENT);
    }
    let start = Gpa::new(address);
    start.checked_add(length).ok_or(Status::BAD_ADDRESS)?;
    let domain = &vcpu.domain;
    if !domain.with_memory(|memory| memory.is_mapped(start, length)) {
        return Err(Status::BAD_ADDRESS);
    }
    let mut piece = [0; PIECE];
    let (piece, _) = piece.split_at_mut(PIECE.min(length as usize));
    domain
        .read_guest(start, piece)
        .map_err(|_| Status::BAD_ADDRESS)?;
    let (taken, _) = piece.split_at(lines_end(piece, LINES));
    domain.write_console(taken);
    Ok(Done::Value(taken.len() as u64))
}

/// Where the first `count` lines of `text` end; its end, where there are fewer.
fn lines_end(text: &[u8], count: usize) -> usize {
    text.iter()
        .enumerate()
        .filter(|(_, byte)| **byte == b'\n')
        .nth(count.saturating_sub(1))
        .map_or(text.len(), |(at, _)| at + 1)
}

/// Nanoseconds since boot.
pub(super) fn clock() -> Result<Done, Status> {
    Ok(Done::Value(time::ns_since_boot()))
}

/// Ends the caller's domain with the status in RDI.
pub(super) fn end<V: Vendor>(vcpu: &mut Vcpu<V>) -> Result<Done, Status> {
    Ok(Done::End(vcpu.hw.gprs().rdi))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_takes_whole_lines_up_to_the_bound() {
        assert_eq!(lines_end(b"a\nb\nc\n", 2), 4);
        assert_eq!(lines_end(b"a\nb\nc\n", 3), 6);
        assert_eq!(lines_end(b"a\nb", 3), 3);
        assert_eq!(lines_end(b"", 3), 0);
    }
}

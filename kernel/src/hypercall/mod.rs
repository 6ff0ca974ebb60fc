//! Hypercalls: one file a family. Decoding checks everything and may fail with a status; what it lets pass is done.

mod core;

use plinth_abi::{Call, Status};

use crate::exit::{self, Next};
use crate::object::{Ending, Vcpu};
use crate::virt::{Event, Vcpu as _, Vendor};

/// What a call that succeeded leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Done {
    /// The caller goes on with this value in RDX.
    Value(u64),
    /// It goes on with 0, but lets others go first.
    Yield,
    /// Its domain ends with this status.
    End(u64),
}

/// Serves VMCALL or VMMCALL. The calls are for CPL 0; elsewhere the guest gets the #UD that it would get without a
/// hypervisor.
#[inline(always)]
pub fn handle<V: Vendor>(vcpu: &mut Vcpu<V>) -> Next {
    if vcpu.hw.cpl() != 0 {
        return exit::raise(vcpu, Event::UD);
    }
    if let Err(next) = exit::skip(vcpu) {
        return next;
    }
    let number = Call(vcpu.hw.gprs().rax);
    let result = match number {
        Call::VERSION => Ok(Done::Value(u64::from(plinth_abi::ABI_VERSION))),
        _ => dispatch(vcpu, number),
    };
    let (status, value, next) = match result {
        Ok(Done::Value(value)) => (Status::OK, value, Next::Resume),
        Ok(Done::Yield) => (Status::OK, 0, Next::Yield),
        Ok(Done::End(status)) => (Status::OK, 0, Next::End(Ending::Status(status))),
        Err(status) => (status, 0, Next::Resume),
    };
    let gprs = vcpu.hw.gprs_mut();
    gprs.rax = status.0;
    gprs.rdx = value;
    next
}

/// Every call but the null call, outside the run loop's code.
#[inline(never)]
fn dispatch<V: Vendor>(vcpu: &mut Vcpu<V>, number: Call) -> Result<Done, Status> {
    match number {
        Call::CONSOLE_WRITE => core::console_write(vcpu),
        Call::CLOCK => core::clock(),
        Call::YIELD => Ok(Done::Yield),
        Call::END => core::end(vcpu),
        _ => Err(Status::NO_CALL),
    }
}

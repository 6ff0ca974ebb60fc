//! What each privileged exit means: one file a family.
//!
//! A handler gets the vCPU that exited and says what happens next. It never blocks, does a bounded amount of work, and
//! cannot fail but by ending the guest: a guest's error is its own.

mod access;
mod control;
mod cpuid;
mod instruction;
mod io;
pub mod mmio;
mod msr;
mod string;

pub use instruction::{LengthCache, skip};

use crate::hypercall;
use crate::object::{Ending, Vcpu};
use crate::trace::Counter;
use crate::virt::exit::{Exit, Instruction};
use crate::virt::{Event, Vcpu as _, Vendor};

/// What a handler wants to happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// Enter the guest again.
    Resume,
    /// Enter it again, but let others of its CPU go first.
    Yield,
    /// It waits for an event.
    Block,
    /// It is over.
    End(Ending),
}

/// Serves an exit, and says which counter it belongs to.
#[inline(always)]
pub fn handle<V: Vendor>(vcpu: &mut Vcpu<V>, exit: Exit) -> (Counter, Next) {
    match exit {
        Exit::Host => (Counter::Host, Next::Resume),
        Exit::Hypercall => (Counter::Hypercall, hypercall::handle(vcpu)),
        Exit::Cpuid => (Counter::Cpuid, cpuid::handle(vcpu)),
        other => rare(vcpu, other),
    }
}

/// The exits that need not be fast yet, kept out of the run loop's code.
#[inline(never)]
fn rare<V: Vendor>(vcpu: &mut Vcpu<V>, exit: Exit) -> (Counter, Next) {
    match exit {
        Exit::Host | Exit::Hypercall | Exit::Cpuid => handle(vcpu, exit),
        Exit::Halt => (Counter::Halt, instruction::skip_and(vcpu, Next::Block)),
        Exit::Pause => (Counter::Pause, instruction::skip_and(vcpu, Next::Yield)),
        Exit::Io(access) => (Counter::Io, io::handle(vcpu, access)),
        Exit::ReadMsr => (Counter::Msr, msr::read(vcpu)),
        Exit::WriteMsr => (Counter::Msr, msr::write(vcpu)),
        Exit::ControlRegister(access) => (Counter::ControlRegister, control::handle(vcpu, access)),
        Exit::NestedFault(fault) => (Counter::NestedFault, Next::End(Ending::NestedFault(fault))),
        Exit::NestedMisconfiguration(gpa) => (
            Counter::NestedFault,
            Next::End(Ending::NestedMisconfiguration(gpa)),
        ),
        Exit::Exception(event) => (Counter::Exception, raise(vcpu, event)),
        Exit::Instruction(which) => (Counter::Instruction, instruction_exit(vcpu, which)),
        Exit::TaskSwitch { selector } => {
            (Counter::Other, Next::End(Ending::TaskSwitch { selector }))
        }
        Exit::InterruptWindow => (Counter::InterruptWindow, Next::Resume),
        Exit::TripleFault => (Counter::Other, Next::End(Ending::TripleFault)),
        Exit::EntryFailed(failure) => (Counter::Other, Next::End(Ending::EntryFailed(failure))),
        Exit::Unexpected { code, info1, info2 } => (
            Counter::Other,
            Next::End(Ending::UnexpectedExit { code, info1, info2 }),
        ),
    }
}

/// Instructions that exit whatever the guest meant by them.
fn instruction_exit<V: Vendor>(vcpu: &mut Vcpu<V>, which: Instruction) -> Next {
    match which {
        // The guest's memory is coherent with every device and CPU that Plinth lets near it: there is nothing to write
        // back, and throwing away dirty lines (INVD) would throw away the host's, too.
        Instruction::Invd | Instruction::Wbinvd => instruction::skip_and(vcpu, Next::Resume),
        Instruction::Xsetbv => control::xsetbv(vcpu),
        // CPUID shows no performance counters: no index is valid (SDM vol. 2 RDPMC).
        Instruction::Rdpmc => raise(vcpu, Event::GP0),
        // CPUID shows none of these.
        Instruction::Monitor
        | Instruction::Mwait
        | Instruction::Virtualisation
        | Instruction::Getsec
        | Instruction::Rsm
        | Instruction::Hidden => raise(vcpu, Event::UD),
    }
}

/// Makes the guest take an exception.
pub fn raise<V: Vendor>(vcpu: &mut Vcpu<V>, event: Event) -> Next {
    if vcpu.hw.inject(event) {
        Next::Resume
    } else {
        Next::End(Ending::TripleFault)
    }
}

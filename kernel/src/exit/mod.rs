//! What each privileged exit means: one file a family.
//!
//! A handler gets the vCPU that exited and says what happens next. It never blocks, does a bounded amount of work, and
//! cannot fail but by ending the guest: a guest's error is its own.

mod access;
mod apic;
mod claimed;
mod control;
mod cpuid;
mod decode_cache;
mod instruction;
mod io;
pub(crate) mod mmio;
mod msr;
mod passing;
mod string;

pub use claimed::{Completion, complete};
pub use decode_cache::DecodeCache;
pub use instruction::{LengthCache, skip};
pub use passing::Passer;

use crate::hypercall;
use crate::object::{Context, Ending, Run, Waiting};
use crate::trace::Counter;
use crate::virt::exit::{Exit, Instruction};
use crate::virt::{Event, Vcpu as _, Vendor};

/// What a handler wants to happen. It has no fields, so that it stays in a register: what the vCPU waits for, and how it ended, is noted
/// in its context.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// Enter the guest again.
    Resume,
    /// Enter it again, but let others of its CPU go first.
    Yield,
    /// It waits for something: made by [`Context::wait`].
    Wait,
    /// It is over: made by [`Context::end`].
    End,
}

/// Serves an exit, and counts it. Also, whether the host's interrupts have to be taken before the guest is entered again.
#[inline(always)]
pub fn handle<V: Vendor>(vcpu: &mut Context<V>, run: &mut Run<'_, V>, exit: Exit) -> (Next, bool) {
    match exit {
        Exit::Host => {
            vcpu.counters.bump(Counter::Host);
            (Next::Resume, true)
        }
        Exit::Served => (vcpu.deliver_interrupt(run.vcpu), false),
        Exit::Hypercall => {
            vcpu.counters.bump(Counter::Hypercall);
            (hypercall::handle(vcpu, run), false)
        }
        Exit::Cpuid => {
            vcpu.counters.bump(Counter::Cpuid);
            (cpuid::handle(vcpu), false)
        }
        Exit::ReadMsr => {
            vcpu.counters.bump(Counter::Msr);
            (msr::read(vcpu, run), false)
        }
        Exit::WriteMsr => {
            vcpu.counters.bump(Counter::Msr);
            (msr::write(vcpu, run), false)
        }
        Exit::Io(access) => {
            vcpu.counters.bump(Counter::Io);
            (io::handle(vcpu, run, access), false)
        }
        Exit::Halt => {
            vcpu.counters.bump(Counter::Halt);
            (halt(vcpu), false)
        }
        other => {
            let (counter, next) = rare(vcpu, run, other);
            vcpu.counters.bump(counter);
            // An exception may be raised again by its own delivery, at every entry anew (CVE-2015-5307, CVE-2015-8104): that
            // comes before any interrupt could end the run.
            (next, counter == Counter::Exception)
        }
    }
}

/// The exits that need not be fast yet, kept out of the run loop's code.
#[inline(never)]
fn rare<V: Vendor>(vcpu: &mut Context<V>, run: &mut Run<'_, V>, exit: Exit) -> (Counter, Next) {
    match exit {
        // The caller has served these.
        Exit::Host
        | Exit::Served
        | Exit::Hypercall
        | Exit::Cpuid
        | Exit::Halt
        | Exit::Io(_)
        | Exit::ReadMsr
        | Exit::WriteMsr => (Counter::Host, Next::Resume),
        Exit::Pause => (Counter::Pause, instruction::skip_and(vcpu, Next::Yield)),
        Exit::ControlRegister(access) => {
            (Counter::ControlRegister, control::handle(vcpu, run, access))
        }
        Exit::DebugRegister => {
            vcpu.give_debug();
            (Counter::Other, Next::Resume)
        }
        Exit::NestedFault(fault) => claimed::nested_fault(vcpu, run, &fault),
        Exit::NestedMisconfiguration(gpa) => (
            Counter::NestedFault,
            vcpu.end(Ending::NestedMisconfiguration(gpa)),
        ),
        Exit::Exception(event) => (Counter::Exception, raise(vcpu, event)),
        Exit::Instruction(which) => (Counter::Instruction, instruction_exit(vcpu, which)),
        Exit::TaskSwitch { selector } => {
            (Counter::Other, vcpu.end(Ending::TaskSwitch { selector }))
        }
        Exit::InterruptWindow => (Counter::InterruptWindow, vcpu.deliver_interrupt(run.vcpu)),
        Exit::EndOfInterrupt(vector) => (Counter::Msr, apic::ended(vcpu, run, vector)),
        Exit::IllegalSelfIpi(vector) => (Counter::Msr, apic::self_ipi(vcpu, run, vector)),
        Exit::TripleFault => (Counter::Other, vcpu.end(Ending::TripleFault)),
        Exit::EntryFailed(failure) => (Counter::Other, vcpu.end(Ending::EntryFailed(failure))),
        Exit::Unexpected { code, info1, info2 } => (
            Counter::Other,
            vcpu.end(Ending::UnexpectedExit { code, info1, info2 }),
        ),
    }
}

/// HLT: waits for an interrupt.
fn halt<V: Vendor>(vcpu: &mut Context<V>) -> Next {
    match skip(vcpu) {
        Ok(()) => vcpu.wait(Waiting::Interrupt),
        Err(instead) => instead,
    }
}

/// Instructions that exit whatever the guest meant by them.
fn instruction_exit<V: Vendor>(vcpu: &mut Context<V>, which: Instruction) -> Next {
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
pub fn raise<V: Vendor>(vcpu: &mut Context<V>, event: Event) -> Next {
    // An interrupt whose delivery the exception cuts short comes again after it.
    if let Some(vector) = vcpu.hw.withdraw_interrupt() {
        vcpu.returned_interrupt = Some(vector);
        vcpu.hw.request_interrupt_window();
    }
    if vcpu.hw.inject(event) {
        Next::Resume
    } else {
        vcpu.end(Ending::TripleFault)
    }
}

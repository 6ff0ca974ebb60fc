//! Hypercalls: one file a family.
//!
//! Every call has one signature: the caller in, a [`Done`] or a status out. A call checks first, in the order that `docs/abi.md`
//! gives; the last thing that can fail is the one change of an object, which is made under that object's lock, or not at all.
//! What it allocates for that, it allocates before.

mod caller;
mod core;
mod device;
mod domain;
mod event;
mod handle;
mod memory;
mod system;
mod vcpu;

use plinth_abi::{Call, Status};

use crate::exit::{self, Next};
use crate::object::{Context, Ending, Run, Waiting};
use crate::virt::{Event, Vcpu as _, Vendor};

use caller::Caller;

/// What a call that did not fail leads to.
#[derive(Clone, Copy, Debug)]
enum Done {
    /// The caller goes on with this value in RDX.
    Value(u64),
    /// So far this value is done; the caller is to call again.
    Again(u64),
    /// The caller goes on with this status, but lets others go first.
    Yield(Status),
    /// It goes on when something has come.
    Wait(Waiting),
    /// Its domain ends.
    End(Ending),
}

/// Serves VMCALL or VMMCALL. The calls are for CPL 0; elsewhere the guest gets the #UD that it would get without a
/// hypervisor.
#[inline(always)]
pub fn handle<V: Vendor>(vcpu: &mut Context<V>, run: &mut Run<'_, V>) -> Next {
    if vcpu.hw.cpl() != 0 {
        return exit::raise(vcpu, Event::UD);
    }
    if let Err(next) = exit::skip(vcpu) {
        return next;
    }
    let number = Call(vcpu.hw.gprs().rax);
    if number == Call::VERSION {
        let gprs = vcpu.hw.gprs_mut();
        gprs.rax = Status::OK.0;
        gprs.rdx = u64::from(plinth_abi::ABI_VERSION);
        return Next::Resume;
    }
    if number == Call::YIELD {
        let gprs = vcpu.hw.gprs_mut();
        gprs.rax = Status::OK.0;
        gprs.rdx = 0;
        return Next::Yield;
    }
    other(vcpu, run, number)
}

/// Every call but the null call and YIELD, outside the run loop's code.
#[inline(never)]
pub(crate) fn other<V: Vendor>(vcpu: &mut Context<V>, run: &mut Run<'_, V>, number: Call) -> Next {
    if !matches!(number, Call::WAIT | Call::DEVICE_COMPLETE_AND_WAIT) {
        vcpu.domain.kernel.sched.stays(run.cpu);
    }
    let mut caller = Caller::new(vcpu, run);
    let (status, value, next) = match dispatch(&mut caller, number) {
        Ok(Done::Value(value)) => (Status::OK, value, Next::Resume),
        Ok(Done::Again(value)) => (Status::AGAIN, value, Next::Resume),
        Ok(Done::Yield(status)) => (status, 0, Next::Yield),
        Ok(Done::Wait(waiting)) => (Status::OK, 0, vcpu.wait(waiting)),
        Ok(Done::End(ending)) => (Status::OK, 0, vcpu.end(ending)),
        Err(status) => (status, 0, Next::Resume),
    };
    let gprs = vcpu.hw.gprs_mut();
    gprs.rax = status.0;
    gprs.rdx = value;
    next
}

fn dispatch<V: Vendor>(caller: &mut Caller<'_, '_, V>, number: Call) -> Result<Done, Status> {
    match number {
        Call::CONSOLE_WRITE => core::console_write(caller),
        Call::CLOCK => core::clock(),
        Call::END => core::end(caller),
        Call::WAIT => core::wait(caller),
        Call::CONSOLE_READ => core::console_read(caller),

        Call::DOMAIN_CREATE => domain::create(caller),
        Call::DOMAIN_START => domain::start(caller),
        Call::DOMAIN_PAUSE => domain::pause(caller),
        Call::DOMAIN_RESUME => domain::resume(caller),
        Call::DOMAIN_KILL => domain::kill(caller),
        Call::DOMAIN_DESTROY => domain::destroy(caller),
        Call::DOMAIN_INFO => domain::info(caller),
        Call::DOMAIN_WATCH => domain::watch(caller),
        Call::DOMAIN_CONSOLE => domain::console(caller),
        Call::DOMAIN_TYPE => domain::type_in(caller),
        Call::DOMAIN_NEXT => domain::next(caller),
        Call::DOMAIN_OPEN => domain::open(caller),
        Call::DOMAIN_READ => domain::read(caller),
        Call::DOMAIN_WRITE => domain::write(caller),

        Call::VCPU_CREATE => vcpu::create(caller),
        Call::VCPU_OPEN => vcpu::open(caller),
        Call::VCPU_GET_STATE => vcpu::get_state(caller),
        Call::VCPU_SET_STATE => vcpu::set_state(caller),
        Call::VCPU_SCHEDULE => vcpu::schedule(caller),
        Call::VCPU_INFO => vcpu::info(caller),
        Call::VCPU_INTERRUPT => vcpu::interrupt(caller),

        Call::MEMORY_CREATE => memory::create(caller),
        Call::MEMORY_POPULATE => memory::populate(caller),
        Call::MEMORY_MAP => memory::map(caller),
        Call::MEMORY_UNMAP => memory::unmap(caller),
        Call::MEMORY_PROTECT => memory::protect(caller),
        Call::MEMORY_DIRTY => memory::dirty(caller),
        Call::MEMORY_PHYSICAL => memory::physical(caller),
        Call::MEMORY_INFO => memory::info(caller),

        Call::EVENT_CREATE => event::create(caller),
        Call::EVENT_SIGNAL => event::signal(caller),
        Call::EVENT_BIND => event::bind(caller),
        Call::EVENT_BIND_VECTOR => event::bind_vector(caller),
        Call::EVENT_UNBIND => event::unbind(caller),

        Call::DEVICE_CLAIM => device::claim(caller),
        Call::DEVICE_RELEASE => device::release(caller),
        Call::DEVICE_COMPLETE => device::complete(caller),
        Call::DEVICE_COMPLETE_AND_WAIT => device::complete_and_wait(caller),
        Call::DEVICE_LINE => device::line(caller),
        Call::DEVICE_MSI => device::message(caller),
        Call::IRQ_BIND => device::bind_irq(caller),
        Call::IRQ_ACK => device::acknowledge_irq(caller),
        Call::PORTS_ENABLE => device::enable_ports(caller),

        Call::HANDLE_DUPLICATE => handle::duplicate(caller),
        Call::HANDLE_GRANT => handle::grant(caller),
        Call::HANDLE_CLOSE => handle::close(caller),
        Call::HANDLE_INFO => handle::info(caller),

        Call::SYSTEM_INFO => system::info(caller),
        Call::SYSTEM_LOG => system::log(caller),
        Call::SYSTEM_TRACE => system::trace(caller),
        Call::SYSTEM_POWER => system::power(caller),
        _ => Err(Status::NO_CALL),
    }
}

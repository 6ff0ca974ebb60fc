//! Kernel objects by handle: a thin type for each, whose methods are the calls.
//!
//! A handle is a number: copying it copies no right, and dropping it closes nothing. [`Any::close`] does.

use plinth_abi::{
    Call, Claim, DomainConfig, DomainInfo, Handle, MemoryInfo, ObjectType, Schedule, Status,
    StreamHeader, SystemInfo, VcpuInfo, VcpuState, call, state,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::hypercall::{call as raw, checked};

/// What a call gives: the value, or the status of its failure.
pub type Result<T> = core::result::Result<T, Status>;

/// The address of a value, as the kernel wants it: linear and guest-physical addresses are the same here.
fn gpa_of<T: ?Sized>(value: &T) -> u64 {
    core::ptr::from_ref(value).cast::<u8>() as u64
}

/// Fills a structure by a call that takes its address as second argument.
fn filled<T: FromBytes + IntoBytes>(number: Call, handle: Handle) -> Result<T> {
    let mut value = T::new_zeroed();
    let at = value.as_mut_bytes().as_mut_ptr() as u64;
    checked(number, [handle.0.into(), at])?;
    Ok(value)
}

/// Makes a call again until it says something else than `AGAIN`.
fn to_the_end<const N: usize>(number: Call, arguments: [u64; N]) -> Result<u64> {
    loop {
        match raw(number, arguments) {
            (Status::OK, value) => return Ok(value),
            (Status::AGAIN, _) => {}
            (status, _) => return Err(status),
        }
    }
}

macro_rules! handles {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        $($(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        pub struct $name(pub Handle);

        impl $name {
            /// The handle as any.
            pub const fn any(self) -> Any {
                Any(self.0)
            }

            /// Another handle to it, with just these rights.
            pub fn duplicate(self, rights: u32) -> Result<Self> {
                self.any().duplicate(rights).map(|any| Self(any.0))
            }

            fn raw(self) -> u64 {
                self.0.0.into()
            }
        })*
    };
}

handles! {
    /// The machine.
    System;
    /// A domain.
    Domain;
    /// A vCPU.
    Vcpu;
    /// A run of memory.
    Memory;
    /// An event.
    Event;
    /// A physical interrupt.
    Irq;
    /// Physical I/O ports.
    Ports;
}

/// A handle of any type.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Any(pub Handle);

impl Any {
    fn raw(self) -> u64 {
        self.0.0.into()
    }

    /// Another handle to the object, with just these rights.
    pub fn duplicate(self, rights: u32) -> Result<Self> {
        checked(Call::HANDLE_DUPLICATE, [self.raw(), rights.into()])
            .map(handle)
            .map(Self)
    }

    /// Puts a handle with these rights into the domain's table; the handle as that domain names it.
    pub fn grant(self, domain: Domain, rights: u32) -> Result<Handle> {
        checked(
            Call::HANDLE_GRANT,
            [self.raw(), domain.raw(), rights.into()],
        )
        .map(handle)
    }

    /// Gives the handle up.
    pub fn close(self) -> Result<()> {
        checked(Call::HANDLE_CLOSE, [self.raw()]).map(drop)
    }

    /// The object's type, and the handle's rights.
    pub fn info(self) -> Result<(ObjectType, u32)> {
        let value = checked(Call::HANDLE_INFO, [self.raw()])?;
        Ok((ObjectType((value >> 32) as u32), value as u32))
    }
}

fn handle(value: u64) -> Handle {
    Handle(value as u32)
}

/// Reads a stream from `position` on; where what was read begins, where the stream ends, and the bytes.
fn stream(
    number: Call,
    of: u64,
    buffer: &mut [u8],
    position: u64,
) -> Result<(StreamHeader, &[u8])> {
    let length = buffer.len().min(call::STREAM_MAX as usize);
    let at = buffer.as_mut_ptr() as u64;
    let copied = checked(number, [of, at, length as u64, position])? as usize;
    let (header, rest) =
        StreamHeader::read_from_prefix(buffer).map_err(|_| Status::BAD_ARGUMENT)?;
    Ok((header, rest.get(..copied).unwrap_or(&[])))
}

impl System {
    /// Makes a domain.
    pub fn create_domain(self, config: &DomainConfig) -> Result<Domain> {
        checked(Call::DOMAIN_CREATE, [self.raw(), gpa_of(config)])
            .map(handle)
            .map(Domain)
    }

    /// The number of the domain that follows this one; `None` at the end.
    pub fn next_domain(self, number: u32) -> Result<Option<u32>> {
        match checked(Call::DOMAIN_NEXT, [self.raw(), number.into()]) {
            Ok(next) => Ok(Some(next as u32)),
            Err(Status::NOT_FOUND) => Ok(None),
            Err(why) => Err(why),
        }
    }

    /// A handle to the domain of this number.
    pub fn open_domain(self, number: u32) -> Result<Domain> {
        checked(Call::DOMAIN_OPEN, [self.raw(), number.into()])
            .map(handle)
            .map(Domain)
    }

    /// The machine, and what is left of it.
    pub fn info(self) -> Result<SystemInfo> {
        filled(Call::SYSTEM_INFO, self.0)
    }

    /// The kernel's log from a stream position on; the buffer holds a header as well.
    pub fn log(self, buffer: &mut [u8], position: u64) -> Result<(StreamHeader, &[u8])> {
        stream(Call::SYSTEM_LOG, self.raw(), buffer, position)
    }

    /// A CPU's trace ring from a record on; the buffer holds a header as well.
    pub fn trace(self, cpu: u32, buffer: &mut [u8], record: u64) -> Result<(StreamHeader, &[u8])> {
        let position = u64::from(cpu) << 48 | record & 0xffff_ffff_ffff;
        stream(Call::SYSTEM_TRACE, self.raw(), buffer, position)
    }

    /// Device memory.
    pub fn physical_memory(self, address: u64, bytes: u64) -> Result<Memory> {
        checked(Call::MEMORY_PHYSICAL, [self.raw(), address, bytes])
            .map(handle)
            .map(Memory)
    }

    /// Ends the machine; returns only if that is refused.
    pub fn power(self, action: u64, status: u64) -> Status {
        raw(Call::SYSTEM_POWER, [self.raw(), action, status]).0
    }
}

impl Domain {
    /// Lets its vCPUs run for the first time.
    pub fn start(self) -> Result<()> {
        checked(Call::DOMAIN_START, [self.raw()]).map(drop)
    }

    /// Holds its vCPUs.
    pub fn pause(self) -> Result<()> {
        checked(Call::DOMAIN_PAUSE, [self.raw()]).map(drop)
    }

    /// Lets them go on.
    pub fn resume(self) -> Result<()> {
        checked(Call::DOMAIN_RESUME, [self.raw()]).map(drop)
    }

    /// Ends it.
    pub fn kill(self) -> Result<()> {
        checked(Call::DOMAIN_KILL, [self.raw()]).map(drop)
    }

    /// Takes back all that it has.
    pub fn destroy(self) -> Result<()> {
        to_the_end(Call::DOMAIN_DESTROY, [self.raw()]).map(drop)
    }

    /// What and how it is.
    pub fn info(self) -> Result<DomainInfo> {
        filled(Call::DOMAIN_INFO, self.0)
    }

    /// Signals the event when one of the things of `mask` happens.
    pub fn watch(self, event: Event, mask: u64) -> Result<()> {
        checked(Call::DOMAIN_WATCH, [self.raw(), event.raw(), mask]).map(drop)
    }

    /// Its console's output from a stream position on; the buffer holds a header as well.
    pub fn console(self, buffer: &mut [u8], position: u64) -> Result<(StreamHeader, &[u8])> {
        stream(Call::DOMAIN_CONSOLE, self.raw(), buffer, position)
    }

    /// Types into its console; bytes taken.
    pub fn type_in(self, bytes: &[u8]) -> Result<usize> {
        let length = bytes.len().min(call::CONSOLE_MAX as usize) as u64;
        checked(
            Call::DOMAIN_TYPE,
            [self.raw(), bytes.as_ptr() as u64, length],
        )
        .map(|taken| taken as usize)
    }

    /// Copies from its memory, all of `buffer`.
    pub fn read(self, gpa: u64, buffer: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let length = rest.len().min(call::COPY_MAX as usize) as u64;
            let at = rest.as_mut_ptr() as u64;
            done += checked(
                Call::DOMAIN_READ,
                [self.raw(), at, length, gpa + done as u64],
            )? as usize;
        }
        Ok(())
    }

    /// Copies into its memory, all of `bytes`.
    pub fn write(self, gpa: u64, bytes: &[u8]) -> Result<()> {
        let mut done = 0;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            let length = rest.len().min(call::COPY_MAX as usize) as u64;
            done += checked(
                Call::DOMAIN_WRITE,
                [self.raw(), rest.as_ptr() as u64, length, gpa + done as u64],
            )? as usize;
        }
        Ok(())
    }

    /// Adds a vCPU.
    pub fn create_vcpu(self) -> Result<Vcpu> {
        checked(Call::VCPU_CREATE, [self.raw()])
            .map(handle)
            .map(Vcpu)
    }

    /// A handle to the vCPU of this index.
    pub fn open_vcpu(self, index: u32) -> Result<Vcpu> {
        checked(Call::VCPU_OPEN, [self.raw(), index.into()])
            .map(handle)
            .map(Vcpu)
    }

    /// Makes a Memory object, charged to this domain, which has no frames yet.
    pub fn reserve_memory(self, bytes: u64) -> Result<Memory> {
        checked(Call::MEMORY_CREATE, [self.raw(), bytes])
            .map(handle)
            .map(Memory)
    }

    /// Makes a Memory object, charged to this domain, and gives it its frames.
    pub fn create_memory(self, bytes: u64) -> Result<Memory> {
        let memory = self.reserve_memory(bytes)?;
        match memory.populate() {
            Ok(()) => Ok(memory),
            Err(why) => {
                memory.any().close()?;
                Err(why)
            }
        }
    }

    /// Maps a part of a Memory object into this domain.
    pub fn map(
        self,
        gpa: u64,
        memory: Memory,
        offset: u64,
        length: u64,
        access: u64,
    ) -> Result<()> {
        in_steps(length, |done| {
            raw(
                Call::MEMORY_MAP,
                [
                    memory.raw(),
                    offset + done,
                    self.raw(),
                    gpa + done,
                    length - done,
                    access,
                ],
            )
        })
    }

    /// Unmaps.
    pub fn unmap(self, gpa: u64, length: u64) -> Result<()> {
        in_steps(length, |done| {
            raw(Call::MEMORY_UNMAP, [self.raw(), gpa + done, length - done])
        })
    }

    /// Changes what may be done with mapped memory.
    pub fn protect(self, gpa: u64, length: u64, access: u64) -> Result<()> {
        in_steps(length, |done| {
            raw(
                Call::MEMORY_PROTECT,
                [self.raw(), gpa + done, length - done, access],
            )
        })
    }

    /// Which of the pages were written since the last such call: a bit a page. The bitmap has to have a bit for each page.
    pub fn dirty(self, gpa: u64, length: u64, bitmap: &mut [u8]) -> Result<()> {
        let pages = bitmap.len() as u64 * 8;
        if pages < length / 4096 {
            return Err(Status::BAD_ARGUMENT);
        }
        let at = bitmap.as_mut_ptr() as u64;
        // A step ends at a multiple of eight pages, so the next begins with a byte.
        in_steps(length, |done| {
            raw(
                Call::MEMORY_DIRTY,
                [self.raw(), gpa + done, length - done, at + done / 4096 / 8],
            )
        })
    }

    /// Makes an event, charged to this domain.
    pub fn create_event(self) -> Result<Event> {
        checked(Call::EVENT_CREATE, [self.raw()])
            .map(handle)
            .map(Event)
    }

    /// Claims ports or addresses of it.
    pub fn claim(self, claim: &Claim) -> Result<()> {
        checked(Call::DEVICE_CLAIM, [self.raw(), gpa_of(claim)]).map(drop)
    }

    /// Gives a claim back.
    pub fn release(self, kind: u32, first: u64) -> Result<()> {
        checked(Call::DEVICE_RELEASE, [self.raw(), kind.into(), first]).map(drop)
    }

    /// Sets a line of its I/O APIC, or of its 8259As' output.
    pub fn set_line(self, line: u32, active: bool) -> Result<()> {
        checked(Call::DEVICE_LINE, [self.raw(), line.into(), active.into()]).map(drop)
    }

    /// Sends a message-signalled interrupt into it.
    pub fn send_msi(self, address: u64, data: u32) -> Result<()> {
        checked(Call::DEVICE_MSI, [self.raw(), address, data.into()]).map(drop)
    }

    /// Completes the access that a vCPU of it waits for.
    pub fn complete(self, vcpu: u32, value: u64) -> Result<()> {
        checked(Call::DEVICE_COMPLETE, [self.raw(), vcpu.into(), value]).map(drop)
    }

    /// As [`Self::complete`], and then as [`wait`]. An error may be of either; what is there to be waited for is there as before then.
    pub fn complete_and_wait(self, vcpu: u32, value: u64, deadline_ns: u64) -> Result<Option<u64>> {
        came(checked(
            Call::DEVICE_COMPLETE_AND_WAIT,
            [self.raw(), vcpu.into(), value, deadline_ns],
        ))
    }
}

/// Makes a call in steps: `step` gets what is done so far.
fn in_steps(length: u64, mut step: impl FnMut(u64) -> (Status, u64)) -> Result<()> {
    let mut done = 0;
    loop {
        match step(done) {
            (Status::OK, _) => return Ok(()),
            // A step that does nothing would go on for ever.
            (Status::AGAIN, more) if more != 0 && more < length - done => done += more,
            (Status::AGAIN, _) => return Err(Status::AGAIN),
            (status, _) => return Err(status),
        }
    }
}

impl Vcpu {
    /// Its registers.
    pub fn state(self) -> Result<VcpuState> {
        let mut registers = VcpuState::RESET;
        let bytes = registers.as_mut_bytes();
        let (at, length) = (bytes.as_mut_ptr() as u64, bytes.len() as u64);
        checked(
            Call::VCPU_GET_STATE,
            [self.raw(), state::part::REGISTERS, at, length],
        )?;
        Ok(registers)
    }

    /// Sets its registers.
    pub fn set_state(self, registers: &VcpuState) -> Result<()> {
        let length = size_of::<VcpuState>() as u64;
        checked(
            Call::VCPU_SET_STATE,
            [
                self.raw(),
                state::part::REGISTERS,
                gpa_of(registers),
                length,
            ],
        )
        .map(drop)
    }

    /// Copies its vector state out; its length in bytes.
    pub fn vector_state(self, buffer: &mut [u8]) -> Result<usize> {
        let (at, length) = (buffer.as_mut_ptr() as u64, buffer.len() as u64);
        checked(
            Call::VCPU_GET_STATE,
            [self.raw(), state::part::VECTOR, at, length],
        )
        .map(|length| length as usize)
    }

    /// Sets its vector state.
    pub fn set_vector_state(self, bytes: &[u8]) -> Result<()> {
        let (at, length) = (bytes.as_ptr() as u64, bytes.len() as u64);
        checked(
            Call::VCPU_SET_STATE,
            [self.raw(), state::part::VECTOR, at, length],
        )
        .map(drop)
    }

    /// Sets how it is scheduled.
    pub fn schedule(self, schedule: &Schedule) -> Result<()> {
        checked(Call::VCPU_SCHEDULE, [self.raw(), gpa_of(schedule)]).map(drop)
    }

    /// Times and counters.
    pub fn info(self) -> Result<VcpuInfo> {
        filled(Call::VCPU_INFO, self.0)
    }

    /// Makes an interrupt pending.
    pub fn interrupt(self, vector: u8) -> Result<()> {
        checked(Call::VCPU_INTERRUPT, [self.raw(), vector.into()]).map(drop)
    }
}

impl Memory {
    /// Gives it all its frames.
    pub fn populate(self) -> Result<()> {
        to_the_end(Call::MEMORY_POPULATE, [self.raw()]).map(drop)
    }

    /// Its size, and what it is.
    pub fn info(self) -> Result<MemoryInfo> {
        filled(Call::MEMORY_INFO, self.0)
    }
}

impl Event {
    /// Marks it pending.
    pub fn signal(self) -> Result<()> {
        checked(Call::EVENT_SIGNAL, [self.raw()]).map(drop)
    }

    /// Binds it to the calling vCPU: [`wait`] gives the key.
    pub fn bind(self, key: u64) -> Result<()> {
        checked(Call::EVENT_BIND, [self.raw(), key]).map(drop)
    }

    /// Binds it to an interrupt vector of a vCPU.
    pub fn bind_vector(self, vcpu: Vcpu, vector: u8) -> Result<()> {
        checked(
            Call::EVENT_BIND_VECTOR,
            [self.raw(), vcpu.raw(), vector.into()],
        )
        .map(drop)
    }

    /// Ends its binding.
    pub fn unbind(self) -> Result<()> {
        checked(Call::EVENT_UNBIND, [self.raw()]).map(drop)
    }
}

impl Irq {
    /// Signals the event at each interrupt.
    pub fn bind(self, event: Event) -> Result<()> {
        checked(Call::IRQ_BIND, [self.raw(), event.raw()]).map(drop)
    }

    /// The interrupt has been served.
    pub fn acknowledge(self) -> Result<()> {
        checked(Call::IRQ_ACK, [self.raw()]).map(drop)
    }
}

impl Ports {
    /// Lets the domain use the ports directly.
    pub fn enable(self, domain: Domain) -> Result<()> {
        checked(Call::PORTS_ENABLE, [self.raw(), domain.raw()]).map(drop)
    }
}

/// Waits until an event that is bound to this vCPU is pending, or the clock reaches `deadline_ns`; the event's key, or `None`
/// when the time has come.
pub fn wait(deadline_ns: u64) -> Result<Option<u64>> {
    came(checked(Call::WAIT, [deadline_ns]))
}

/// What waiting has led to.
fn came(result: Result<u64>) -> Result<Option<u64>> {
    match result {
        Ok(key) => Ok(Some(key)),
        Err(Status::TIMED_OUT) => Ok(None),
        Err(why) => Err(why),
    }
}

/// A plain structure's bytes, for [`Domain::write`].
pub fn bytes_of<T: IntoBytes + Immutable>(value: &T) -> &[u8] {
    value.as_bytes()
}

//! Who calls, and what its arguments mean.

use plinth_abi::{DomainState, Status, rights};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::Done;
use crate::mem::nested::GPA_LIMIT;
use crate::mem::{Access, Gpa, Ref};
use crate::object::{Context, Domain, Entry, Event, Memory, Object, Run, Vcpu};
use crate::virt::{Vcpu as _, Vendor};

/// The vCPU that calls. Its arguments are allegations: each is read once, and checked by what reads it.
pub(super) struct Caller<'a, 'b, V: Vendor> {
    pub(super) context: &'a mut Context<V>,
    pub(super) run: &'a mut Run<'b, V>,
    arguments: [u64; 6],
}

impl<'a, 'b, V: Vendor> Caller<'a, 'b, V> {
    pub(super) fn new(context: &'a mut Context<V>, run: &'a mut Run<'b, V>) -> Self {
        let gprs = context.hw.gprs();
        let arguments = [gprs.rdi, gprs.rsi, gprs.rdx, gprs.r10, gprs.r8, gprs.r9];
        Self {
            context,
            run,
            arguments,
        }
    }

    /// The arguments, in their order.
    pub(super) fn arguments(&self) -> [u64; 6] {
        self.arguments
    }

    /// The domain that calls.
    pub(super) fn domain(&self) -> &Ref<Domain<V>> {
        &self.context.domain
    }

    // Handles.

    /// What the handle names, if it is of the type that `as_type` takes and has these rights; and all the rights that it has.
    fn object_and_rights<T>(
        &self,
        handle: u64,
        needed: u32,
        as_type: impl FnOnce(&Object<V>) -> Option<T>,
    ) -> Result<(T, u32), Status> {
        self.domain().with_handle(handle, |entry| {
            let object = as_type(&entry.object).ok_or(Status::WRONG_TYPE)?;
            if entry.rights & needed != needed {
                return Err(Status::NO_RIGHT);
            }
            Ok((object, entry.rights))
        })?
    }

    /// As [`Caller::object_and_rights`], the object alone.
    fn object<T>(
        &self,
        handle: u64,
        needed: u32,
        as_type: impl FnOnce(&Object<V>) -> Option<T>,
    ) -> Result<T, Status> {
        let (object, _) = self.object_and_rights(handle, needed, as_type)?;
        Ok(object)
    }

    /// Checks that the handle is one to the system.
    pub(super) fn system(&self, handle: u64, rights: u32) -> Result<(), Status> {
        self.object(handle, rights, |object| {
            matches!(object, Object::System).then_some(())
        })
    }

    /// The domain that the handle names.
    pub(super) fn domain_of(&self, handle: u64, rights: u32) -> Result<Ref<Domain<V>>, Status> {
        self.object(handle, rights, |object| match object {
            Object::Domain(domain) => Some(domain.clone()),
            _ => None,
        })
    }

    /// The vCPU that the handle names.
    pub(super) fn vcpu_of(&self, handle: u64, rights: u32) -> Result<Ref<Vcpu<V>>, Status> {
        self.object(handle, rights, |object| match object {
            Object::Vcpu(vcpu) => Some(vcpu.clone()),
            _ => None,
        })
    }

    /// The Memory object that the handle names, and the most access that it gives.
    pub(super) fn memory_of(
        &self,
        handle: u64,
        needed: u32,
    ) -> Result<(Ref<Memory>, Access), Status> {
        let (memory, has) = self.object_and_rights(handle, needed, |object| match object {
            Object::Memory(memory) => Some(memory.clone()),
            _ => None,
        })?;
        let mut limit = Access::empty();
        limit.set(Access::READ, has & rights::READ != 0);
        limit.set(Access::WRITE, has & rights::WRITE != 0);
        limit.set(Access::EXEC, has & rights::EXECUTE != 0);
        Ok((memory, limit))
    }

    /// The event that the handle names.
    pub(super) fn event_of(&self, handle: u64, rights: u32) -> Result<Ref<Event<V>>, Status> {
        self.object(handle, rights, |object| match object {
            Object::Event(event) => Some(event.clone()),
            _ => None,
        })
    }

    /// The ISA line whose interrupt the handle names.
    pub(super) fn irq_of(&self, handle: u64) -> Result<u8, Status> {
        self.object(handle, rights::CONTROL, |object| match object {
            Object::Irq(line) => Some(*line),
            _ => None,
        })
    }

    /// The ports that the handle names: the first, and how many.
    pub(super) fn ports_of(&self, handle: u64) -> Result<(u16, u16), Status> {
        self.object(handle, rights::CONTROL, |object| match object {
            Object::Ports(first, count) => Some((*first, *count)),
            _ => None,
        })
    }

    /// The entry of a handle of any type: a copy.
    pub(super) fn entry(&self, handle: u64) -> Result<Entry<V>, Status> {
        self.domain().with_handle(handle, |entry| Entry {
            object: entry.object.clone(),
            rights: entry.rights,
        })
    }

    /// Gives the caller a handle with every right to what `make` makes, after a place for it was found.
    pub(super) fn give(
        &self,
        make: impl FnOnce() -> Result<Object<V>, Status>,
    ) -> Result<Done, Status> {
        self.give_entry(|| make().map(Entry::full))
    }

    /// As [`Caller::give`], with rights that `make` chooses.
    pub(super) fn give_entry(
        &self,
        make: impl FnOnce() -> Result<Entry<V>, Status>,
    ) -> Result<Done, Status> {
        self.domain().reserve_handle()?;
        let entry = make().inspect_err(|_| self.domain().release_handle())?;
        let handle = self.domain().add_handle(entry)?;
        Ok(Done::Value(handle.0.into()))
    }

    // Buffers.

    /// Checks that a buffer of the caller's is memory that it may access so.
    pub(super) fn check_buffer(&self, gpa: u64, len: u64, access: Access) -> Result<(), Status> {
        self.domain()
            .with_space(|space| space.check(Gpa::new(gpa), len, access))
            .unwrap_or(Ok(()))
            .map_err(|_| Status::BAD_ADDRESS)
    }

    /// Reads a structure of the caller's, once.
    pub(super) fn read<T: FromBytes + IntoBytes>(&self, gpa: u64) -> Result<T, Status> {
        let mut value = T::new_zeroed();
        self.read_bytes(gpa, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Copies from the caller's memory.
    pub(super) fn read_bytes(&self, gpa: u64, out: &mut [u8]) -> Result<(), Status> {
        self.domain()
            .read_guest(Gpa::new(gpa), out)
            .map_err(|_| Status::BAD_ADDRESS)
    }

    /// Writes a structure to the caller.
    pub(super) fn write<T: IntoBytes + Immutable>(
        &self,
        gpa: u64,
        value: &T,
    ) -> Result<(), Status> {
        self.write_bytes(gpa, value.as_bytes())
    }

    /// Copies to the caller's memory: all, or nothing.
    pub(super) fn write_bytes(&self, gpa: u64, bytes: &[u8]) -> Result<(), Status> {
        self.domain()
            .write_guest(Gpa::new(gpa), bytes)
            .map_err(|_| Status::BAD_ADDRESS)
    }
}

/// A number that has 32 bits in the contract.
pub(super) fn number(value: u64) -> Result<u32, Status> {
    u32::try_from(value).map_err(|_| Status::BAD_ARGUMENT)
}

/// A range of guest-physical pages.
pub(super) fn pages(gpa: u64, len: u64) -> Result<Gpa, Status> {
    let end = gpa.checked_add(len).ok_or(Status::BAD_ARGUMENT)?;
    let aligned =
        gpa.is_multiple_of(crate::mem::PAGE_SIZE) && len.is_multiple_of(crate::mem::PAGE_SIZE);
    if len == 0 || !aligned || end > GPA_LIMIT {
        return Err(Status::BAD_ARGUMENT);
    }
    Ok(Gpa::new(gpa))
}

/// Checks that a domain is not destroyed.
pub(super) fn living<V: Vendor>(domain: &Domain<V>) -> Result<(), Status> {
    (domain.state() != DomainState::DESTROYED)
        .then_some(())
        .ok_or(Status::WRONG_STATE)
}

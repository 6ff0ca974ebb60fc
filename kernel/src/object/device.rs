//! Claims: who serves the ports and the device memory of a domain.

use core::mem::offset_of;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use plinth_abi::device::{DATA, kind};
use plinth_abi::{Slot, Status};
use zerocopy::IntoBytes;

use super::{Event, Memory, Vcpu};
use crate::mem::{Charge, Ref};
use crate::trace::{self, Kind};
use crate::virt::Vendor;

/// What a claim is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClaimKind {
    /// I/O ports.
    Ports,
    /// Guest-physical addresses.
    Mmio,
    /// Interrupt acknowledge cycles.
    Acknowledge,
}

impl ClaimKind {
    /// The kind with this number of the contract's.
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            kind::PORTS => Some(Self::Ports),
            kind::MMIO => Some(Self::Mmio),
            kind::ACKNOWLEDGE => Some(Self::Acknowledge),
            _ => None,
        }
    }

    const fn number(self) -> u32 {
        match self {
            Self::Ports => kind::PORTS,
            Self::Mmio => kind::MMIO,
            Self::Acknowledge => kind::ACKNOWLEDGE,
        }
    }
}

/// A claim of somebody on a part of a domain.
pub struct Claim<V: Vendor> {
    /// Tells it from all others.
    pub id: u64,
    /// What it is of.
    pub kind: ClaimKind,
    /// The ports or addresses.
    pub range: Range<u64>,
    /// The number of the domain that made it.
    pub claimer: u32,
    tag: u64,
    memory: Ref<Memory>,
    event: Ref<Event<V>>,
    _charge: Charge,
}

/// An access to what is claimed.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// Port or address.
    pub address: u64,
    /// Bytes of each element.
    pub size: u8,
    /// A write.
    pub write: bool,
    /// What is written.
    pub value: u64,
    /// Elements.
    pub count: u32,
    /// Elements of a string access.
    pub data: Option<[u8; DATA]>,
}

static NEXT: AtomicU64 = AtomicU64::new(1);

impl<V: Vendor> Claim<V> {
    /// Bytes of heap that one costs.
    pub const COST: u64 = 2 * size_of::<Self>() as u64;

    /// A claim by the domain numbered `claimer`. The Memory object has a [`Slot`] for each vCPU the domain can have.
    pub fn new(
        kind: ClaimKind,
        range: Range<u64>,
        claimer: u32,
        tag: u64,
        memory: Ref<Memory>,
        event: Ref<Event<V>>,
        charge: Charge,
    ) -> Self {
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            kind,
            range,
            claimer,
            tag,
            memory,
            event,
            _charge: charge,
        }
    }

    /// Whether it has anything of the range.
    pub fn overlaps(&self, kind: ClaimKind, range: &Range<u64>) -> bool {
        self.kind == kind && self.range.start < range.end && range.start < self.range.end
    }

    /// Tells the claimer of an access, for which the vCPU waits from now on.
    ///
    /// # Errors
    /// `BAD_ADDRESS` where the slot cannot be written: a defect of the kernel.
    pub fn tell(&self, vcpu: &Vcpu<V>, access: &Access) -> Result<(), Status> {
        let sequence = {
            let mut device = vcpu.device.lock();
            device.sequence += 1;
            device.claim = Some(self.id);
            device.answer = None;
            device.sequence
        };
        let slot = Slot {
            sequence,
            tag: self.tag,
            address: access.address,
            value: access.value,
            size: access.size.into(),
            kind: self.kind.number(),
            write: access.write.into(),
            count: access.count,
            data: access.data.unwrap_or([0; DATA]),
            reserved: [0; 2],
        };
        let at = Self::slot(vcpu);
        // Most accesses have no data. The first element reads 0 then; behind that they leave alone what is there.
        let end = match access.data {
            Some(_) => size_of::<Slot>(),
            None => offset_of!(Slot, data) + size_of::<u64>(),
        };
        let (first, rest) = slot.as_bytes()[..end].split_at(size_of::<u64>());
        // The sequence last: who sees it sees the rest.
        self.memory.write(at + first.len() as u64, rest)?;
        self.memory.write(at, first)?;
        let detail = match self.kind {
            ClaimKind::Ports | ClaimKind::Acknowledge => access.address,
            ClaimKind::Mmio => access.address >> 12,
        };
        trace::record(Kind::DEVICE, vcpu.domain.number, vcpu.index, detail as u32);
        // The vCPU waits from now on, and leaves its CPU to whoever answers.
        self.event.signal_and_leave();
        Ok(())
    }

    /// The data that the claimer left in the vCPU's slot, read once.
    pub fn data(&self, vcpu: &Vcpu<V>) -> [u8; DATA] {
        let mut data = [0xff; DATA];
        let at = Self::slot(vcpu) + offset_of!(Slot, data) as u64;
        // Where it cannot be read it reads as nobody's port does.
        let _ = self.memory.read(at, &mut data);
        data
    }

    fn slot(vcpu: &Vcpu<V>) -> u64 {
        u64::from(vcpu.index) * size_of::<Slot>() as u64
    }
}

//! Claims: who serves the ports and the device memory of a domain.

use core::array;
use core::mem::offset_of;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use plinth_abi::device::{DATA, kind};
use plinth_abi::domain::MAX_VCPUS;
use plinth_abi::{Slot, Status};
use zerocopy::transmute;

use super::{Event, Memory, MemoryPage, Vcpu};
use crate::mem::{Charge, PAGE_SIZE, Ref};
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
    /// Where the slots are, page by page.
    slots: [Option<MemoryPage>; SLOT_PAGES],
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

/// Slots in a page.
const SLOTS_A_PAGE: usize = PAGE_SIZE as usize / size_of::<Slot>();
/// Pages for the slots of all vCPUs that a domain can have.
const SLOT_PAGES: usize = (MAX_VCPUS as usize).div_ceil(SLOTS_A_PAGE);
/// 64-bit words of a string access's data.
const DATA_WORDS: usize = DATA / size_of::<u64>();
/// What `Claim::tell` writes as words.
const _: () = assert!(
    offset_of!(Slot, sequence) == 0
        && offset_of!(Slot, kind) == offset_of!(Slot, size) + 4
        && offset_of!(Slot, count) == offset_of!(Slot, write) + 4
        && offset_of!(Slot, data) == 6 * size_of::<u64>()
);

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
            slots: array::from_fn(|index| memory.page(index as u64 * PAGE_SIZE)),
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
        let (page, at) = self.slot(vcpu).ok_or(Status::BAD_ADDRESS)?;
        let words = [
            self.tag,
            access.address,
            access.value,
            pair(access.size.into(), self.kind.number()),
            pair(access.write.into(), access.count),
            // The data's first element reads 0; the rest may be what it is.
            0,
        ];
        page.store(at + offset_of!(Slot, tag), &words)?;
        if let Some(data) = access.data {
            page.store::<DATA_WORDS>(at + offset_of!(Slot, data), &transmute!(data))?;
        }
        // The sequence last: who sees it sees the rest.
        page.store(at + offset_of!(Slot, sequence), &[sequence])?;
        let detail = match self.kind {
            ClaimKind::Ports | ClaimKind::Acknowledge => access.address,
            ClaimKind::Mmio => access.address >> 12,
        };
        trace::record(Kind::DEVICE, vcpu.domain.number, vcpu.index, detail as u32);
        // The vCPU waits from now on, and leaves its CPU to whoever answers.
        self.event.signal_and_pass();
        Ok(())
    }

    /// The data that the claimer left in the vCPU's slot, read once.
    pub fn data(&self, vcpu: &Vcpu<V>) -> [u8; DATA] {
        let mut data = [0xff; DATA];
        // Where it cannot be read it reads as nobody's port does.
        if let Some((page, at)) = self.slot(vcpu) {
            let _ = page.load(at + offset_of!(Slot, data), &mut data);
        }
        data
    }

    /// The page that has a vCPU's slot, and where in it.
    fn slot(&self, vcpu: &Vcpu<V>) -> Option<(&MemoryPage, usize)> {
        let index = vcpu.index as usize;
        let page = self.slots.get(index / SLOTS_A_PAGE)?.as_ref()?;
        Some((page, index % SLOTS_A_PAGE * size_of::<Slot>()))
    }
}

/// Two neighbours of 32 bits as the word that they are in memory.
const fn pair(first: u32, second: u32) -> u64 {
    first as u64 | (second as u64) << 32
}

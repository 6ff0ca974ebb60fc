//! Windows: places in the control guest's own address space where memory of others is mapped for a while.

#![allow(unsafe_code, reason = "reads and writes what is mapped in the windows")]

use alloc::vec::Vec;
use core::cell::RefCell;
use core::ops::Range;

use plinth_guest_control::windows::free_place;
use plinth_rt::abi::call::access;
use plinth_rt::abi::device::DATA;
use plinth_rt::abi::{Slot, Status};
use plinth_rt::object::{Domain, Memory, Result};
use zerocopy::transmute;

/// The window through which a domain's RAM is filled: 2 MiB, a large page.
const SLICE: u64 = 2 << 20;
/// Bytes of slots that one domain can need: 64 vCPUs' of 128 bytes.
const SLOTS: u64 = 8192;
/// Domains that can have slots at a time.
const SLOT_PLACES: u64 = 1024;
const SIZE: u64 = SLICE + SLOTS * SLOT_PLACES;

/// The windows.
pub struct Windows {
    own: Domain,
    base: u64,
    /// Which places for slots are taken.
    taken: RefCell<Vec<bool>>,
}

impl Windows {
    /// Finds room above `ram` bytes of own RAM, where `taken` are start and length of what is there; `None`: there is none.
    pub fn new(own: Domain, ram: u64, taken: &[(u64, u64)]) -> Option<Self> {
        Some(Self {
            own,
            base: free_place(ram, SIZE, taken)?,
            taken: RefCell::new(alloc::vec![false; SLOT_PLACES as usize]),
        })
    }

    /// A place for slots; `None`: all are taken. The memory needs as many bytes as all slots of the domain.
    pub fn map_slots(&self, memory: Memory, bytes: u64) -> Result<Option<Slots>> {
        let free = self.taken.borrow().iter().position(|&taken| !taken);
        let Some(place) = free else {
            return Ok(None);
        };
        let at = self.base + SLICE + place as u64 * SLOTS;
        let length = bytes.min(SLOTS);
        self.own
            .map(at, memory, 0, length, access::READ | access::WRITE)?;
        if let Some(taken) = self.taken.borrow_mut().get_mut(place) {
            *taken = true;
        }
        Ok(Some(Slots { place, at, length }))
    }

    /// Takes a place for slots back.
    pub fn unmap_slots(&self, slots: Slots) -> Result<()> {
        self.own.unmap(slots.at, slots.length)?;
        if let Some(taken) = self.taken.borrow_mut().get_mut(slots.place) {
            *taken = false;
        }
        Ok(())
    }
}

/// A domain's device slots, as they are mapped here.
pub struct Slots {
    place: usize,
    at: u64,
    length: u64,
}

impl Slots {
    fn address(&self, vcpu: u32) -> Option<*mut Slot> {
        let offset = u64::from(vcpu) * size_of::<Slot>() as u64;
        let fits = offset + size_of::<Slot>() as u64 <= self.length;
        fits.then_some((self.at + offset) as *mut Slot)
    }

    /// How many accesses a vCPU has made, if it has a slot.
    #[inline]
    pub fn sequence(&self, vcpu: u32) -> Option<u64> {
        // SAFETY: as in `read`.
        self.address(vcpu)
            .map(|slot| unsafe { (&raw const (*slot).sequence).read_volatile() })
    }

    /// The slot of a vCPU, if it has one; of its data as much as means something.
    pub fn read(&self, vcpu: u32) -> Option<Slot> {
        let slot = self.address(vcpu)?;
        // SAFETY: mapped, aligned, and any bytes are a slot. The kernel may be writing it, so that all of it is copied once.
        unsafe {
            let count = (&raw const (*slot).count).read_volatile();
            let words = (&raw const (*slot).data).cast::<u64>();
            let mut data = [0; DATA / size_of::<u64>()];
            for (index, word) in data.iter_mut().enumerate() {
                *word = words.add(index).read_volatile();
                if count <= 1 {
                    break;
                }
            }
            Some(Slot {
                sequence: (&raw const (*slot).sequence).read_volatile(),
                tag: (&raw const (*slot).tag).read_volatile(),
                address: (&raw const (*slot).address).read_volatile(),
                value: (&raw const (*slot).value).read_volatile(),
                size: (&raw const (*slot).size).read_volatile(),
                kind: (&raw const (*slot).kind).read_volatile(),
                write: (&raw const (*slot).write).read_volatile(),
                count,
                data: transmute!(data),
                reserved: [0; 2],
            })
        }
    }

    /// Puts the data of a string read of one element into the slot of a vCPU.
    pub fn answer_word(&self, vcpu: u32, value: u32) {
        if let Some(slot) = self.address(vcpu) {
            // SAFETY: as in `read`, and aligned; no reference to the slot exists.
            unsafe {
                (&raw mut (*slot).data).cast::<u32>().write_volatile(value);
            }
        }
    }

    /// Puts the data of a string read into the slot of a vCPU.
    pub fn answer(&self, vcpu: u32, data: &[u8; DATA]) {
        if let Some(slot) = self.address(vcpu) {
            // SAFETY: as in `read`; no reference to the slot exists.
            unsafe { (&raw mut (*slot).data).write_volatile(*data) };
        }
    }
}

/// Fills memory of a new domain, through the window. There is one at a time: a build is not broken off by another.
pub struct Loader<'a> {
    windows: &'a Windows,
    /// Where each Memory object will be for the guest.
    regions: Vec<(Range<u64>, Memory)>,
    /// Which bytes of which region are in the window.
    mapped: Option<(usize, Range<u64>)>,
}

impl<'a> Loader<'a> {
    /// A loader of these Memory objects; each begins at the start of its guest-physical range.
    pub fn new(windows: &'a Windows, regions: Vec<(Range<u64>, Memory)>) -> Self {
        Self {
            windows,
            regions,
            mapped: None,
        }
    }

    /// Copies bytes to a guest-physical address.
    pub fn write(&mut self, mut gpa: u64, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let (at, room) = self.show(gpa)?;
            let length = bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX));
            let (now, later) = bytes.split_at(length);
            // SAFETY: `length` bytes from `at` on are mapped in the window, where nothing of this program lies.
            unsafe { core::ptr::copy_nonoverlapping(now.as_ptr(), at as *mut u8, length) };
            gpa += length as u64;
            bytes = later;
        }
        Ok(())
    }

    /// Brings the byte at `gpa` into the window; where it is, and how many are there from it on, at least one.
    fn show(&mut self, gpa: u64) -> Result<(u64, u64)> {
        let (index, range, memory) = self
            .regions
            .iter()
            .enumerate()
            .find(|(_, (range, _))| range.contains(&gpa))
            .map(|(index, (range, memory))| (index, range.clone(), *memory))
            .ok_or(Status::BAD_ADDRESS)?;
        let slice = (gpa - range.start) / SLICE * SLICE;
        let slice = slice..(slice + SLICE).min(range.end - range.start);
        if self.mapped.as_ref() != Some(&(index, slice.clone())) {
            self.hide()?;
            let length = slice.end - slice.start;
            let access = access::READ | access::WRITE;
            self.windows
                .own
                .map(self.windows.base, memory, slice.start, length, access)?;
            self.mapped = Some((index, slice.clone()));
        }
        let offset = gpa - range.start - slice.start;
        Ok((self.windows.base + offset, slice.end - slice.start - offset))
    }

    fn hide(&mut self) -> Result<()> {
        match self.mapped.take() {
            Some((_, slice)) => self
                .windows
                .own
                .unmap(self.windows.base, slice.end - slice.start),
            None => Ok(()),
        }
    }
}

impl Drop for Loader<'_> {
    fn drop(&mut self) {
        // What is mapped can be unmapped.
        let _ = self.hide();
    }
}

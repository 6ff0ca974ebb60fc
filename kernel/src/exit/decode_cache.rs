//! Instructions that touched device memory, decoded: a driver does so from few places, again and again.
//!
//! What is remembered is checked, not believed. With an instruction are kept the entries of the guest's page tables by which its bytes
//! were found, and the bytes; it holds only while all of them are in the guest's memory as they were, and no nested table has changed
//! since. So a walk and a decoding would find the same, and the cache can never be seen but in instructions that are saved.

use super::access;
use crate::decode::{Instruction, MAX_LENGTH};
use crate::mem::walk::Trail;
use crate::mem::{Gpa, Window};
use crate::object::Context;
use crate::virt::{Vcpu as _, Vendor};

/// Pairs of instructions that are remembered. A power of two.
const PAIRS: usize = 4;
/// Bytes that are compared at once.
const WORD: usize = size_of::<u64>();
/// Words that are compared, at most.
const SEEN: usize = Trail::MOST + MAX_LENGTH.div_ceil(WORD);

/// The instructions that a vCPU's exits were about.
#[derive(Debug, Default)]
pub struct DecodeCache([[Option<Entry>; 2]; PAIRS]);

/// Eight bytes of guest memory, and what some of them were.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    window: Window,
    mask: u64,
    value: u64,
}

impl Seen {
    /// Up to eight bytes of code in one page, at `gpa`.
    pub(super) fn code<V: Vendor>(vcpu: &Context<V>, gpa: Gpa, bytes: &[u8]) -> Option<Self> {
        let left = access::to_page_end(gpa.get());
        if bytes.len() > left {
            return None;
        }
        let mut word = [0; WORD];
        word.get_mut(..bytes.len())?.copy_from_slice(bytes);
        // At the end of a page its last eight bytes are looked at.
        let before = WORD.saturating_sub(left);
        let shift = 8 * before as u32;
        let mask = u64::MAX.checked_shr(64 - 8 * bytes.len() as u32)?;
        Some(Self {
            window: window(vcpu, Gpa::new(gpa.get() - before as u64))?,
            mask: mask << shift,
            value: u64::from_le_bytes(word) << shift,
        })
    }

    #[inline(always)]
    pub(super) fn is_as_it_was(&self) -> bool {
        self.window.load() & self.mask == self.value
    }
}

fn window<V: Vendor>(vcpu: &Context<V>, gpa: Gpa) -> Option<Window> {
    vcpu.domain.with_space(|space| space.window(gpa))?
}

#[derive(Debug)]
struct Entry {
    place: Place,
    /// The state of all nested tables.
    epoch: u64,
    /// The entries of the page tables, then the code.
    seen: heapless::Vec<Seen, SEEN>,
    instruction: Instruction,
}

/// Where an instruction is, and the registers by which it is found. That the code is 64-bit code is looked at by the caller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Place {
    rip: u64,
    cr3: u64,
    cr0: u64,
    cr4: u64,
    efer: u64,
}

impl Place {
    #[inline(always)]
    fn of<V: Vendor>(vcpu: &Context<V>) -> Self {
        Self {
            rip: vcpu.hw.rip(),
            cr3: vcpu.hw.cr3(),
            cr0: vcpu.hw.cr0(),
            cr4: vcpu.hw.cr4(),
            efer: vcpu.hw.efer(),
        }
    }

    #[inline(always)]
    fn pair(&self) -> usize {
        (self.rip as usize ^ (self.rip >> 4) as usize) % PAIRS
    }
}

/// The instruction at RIP, in 64-bit mode, if it is remembered.
#[inline(always)]
pub(super) fn find<V: Vendor>(vcpu: &Context<V>) -> Option<&Instruction> {
    let place = Place::of(vcpu);
    let epoch = vcpu.domain.kernel.sched.epoch();
    let [first, second] = vcpu.decoded.0.get(place.pair())?;
    let is_it = |entry: &&Entry| entry.place == place && entry.epoch == epoch;
    let entry = first.as_ref().filter(is_it);
    let entry = entry.or_else(|| second.as_ref().filter(is_it))?;
    let holds = entry.seen.iter().all(Seen::is_as_it_was);
    holds.then_some(&entry.instruction)
}

/// Remembers the instruction at RIP, which was found by a walk in 64-bit mode that began when nested tables were at `epoch`, and whose
/// bytes were these. Not one across the end of a page.
pub(super) fn remember<V: Vendor>(
    vcpu: &mut Context<V>,
    epoch: u64,
    bytes: &[u8],
    instruction: &Instruction,
) {
    let place = Place::of(vcpu);
    let Some(entry) = entry(vcpu, place, epoch, bytes, instruction) else {
        return;
    };
    if let Some([first, second]) = vcpu.decoded.0.get_mut(place.pair()) {
        // One of the same place holds no more.
        if !first.as_ref().is_some_and(|first| first.place == place) {
            core::mem::swap(first, second);
        }
        *first = Some(entry);
    }
}

fn entry<V: Vendor>(
    vcpu: &Context<V>,
    place: Place,
    epoch: u64,
    bytes: &[u8],
    instruction: &Instruction,
) -> Option<Entry> {
    let code = bytes.get(..usize::from(instruction.length))?;
    if code.len() > access::to_page_end(place.rip) {
        return None;
    }
    let trail = access::trail(vcpu, place.rip)?;
    let mut seen = heapless::Vec::new();
    for &(gpa, value) in trail.words() {
        let window = window(vcpu, gpa)?;
        let mask = u64::MAX;
        let word = Seen {
            window,
            mask,
            value,
        };
        seen.push(word).ok()?;
    }
    for (at, part) in (0..).step_by(WORD).zip(code.chunks(WORD)) {
        let gpa = Gpa::new(trail.gpa().get() + at);
        seen.push(Seen::code(vcpu, gpa, part)?).ok()?;
    }
    Some(Entry {
        place,
        epoch,
        seen,
        instruction: *instruction,
    })
}

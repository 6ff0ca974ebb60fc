//! The instruction that exited: its bytes, its length, and the way past it.

use super::Next;
use super::access::{self, CodeSize, Fault};
use super::decode_cache::{self, Seen};
use crate::decode::{self, DecodeError, MAX_LENGTH, Mode};
use crate::mem::walk::Intent;
use crate::object::{Context, Ending};
use crate::virt::{Event, SegmentName, Vcpu as _, Vendor};

/// Pairs of instructions that the cache remembers. A power of two.
const PAIRS: usize = 16;

/// Lengths of instructions that exited, for CPUs that do not tell them: SVM without NRIP-save, which AMD's CPUs have had
/// since 2009 and QEMU's emulation lacks.
///
/// Fetching and decoding takes some hundred instructions, and a guest exits at few places again and again. An entry is
/// found by RIP and CR3, and holds only while the bytes in memory are those that were decoded. What it cannot notice is a
/// guest that maps other memory, with another encoding of the same instruction, at the same address under the same CR3:
/// its RIP then goes wrong by the difference, which harms nobody else.
#[derive(Debug, Default)]
pub struct LengthCache([[Option<Entry>; 2]; PAIRS]);

#[derive(Clone, Copy, Debug)]
struct Entry {
    rip: u64,
    cr3: u64,
    code: Seen,
    length: u8,
}

impl LengthCache {
    #[inline(always)]
    fn pair(rip: u64) -> usize {
        (rip as usize ^ (rip >> 4) as usize) % PAIRS
    }

    #[inline(always)]
    fn find(&self, rip: u64, cr3: u64) -> Option<u8> {
        let [first, second] = self.0.get(Self::pair(rip))?;
        let length = |entry: &Option<Entry>| {
            let entry = entry.as_ref()?;
            let same = entry.rip == rip && entry.cr3 == cr3 && entry.code.is_as_it_was();
            same.then_some(entry.length)
        };
        length(first).or_else(|| length(second))
    }

    /// Forgets the older one of the pair.
    fn put(&mut self, entry: Entry) {
        if let Some([first, second]) = self.0.get_mut(Self::pair(entry.rip)) {
            *second = first.replace(entry);
        }
    }
}

/// Moves past the instruction that exited.
///
/// # Errors
/// What happens instead, where its length cannot be told.
#[inline(always)]
pub fn skip<V: Vendor>(vcpu: &mut Context<V>) -> Result<(), Next> {
    let length = length(vcpu)?;
    vcpu.hw.skip(length);
    Ok(())
}

/// Length in bytes of the instruction that exited. To be asked before the instruction has an effect: what it changes may
/// change how its bytes are fetched and read.
///
/// # Errors
/// As [`skip`].
#[inline(always)]
pub(super) fn length<V: Vendor>(vcpu: &mut Context<V>) -> Result<u8, Next> {
    match known_length(vcpu) {
        Some(length) => Ok(length),
        None => decoded_length(vcpu),
    }
}

/// The same, where it need not be decoded.
#[inline(always)]
pub(super) fn known_length<V: Vendor>(vcpu: &Context<V>) -> Option<u8> {
    vcpu.hw
        .instruction_length()
        .or_else(|| vcpu.lengths.find(vcpu.hw.rip(), vcpu.hw.cr3()))
}

/// Moves past it, and then does `next`.
#[inline(always)]
pub(super) fn skip_and<V: Vendor>(vcpu: &mut Context<V>, next: Next) -> Next {
    match skip(vcpu) {
        Ok(()) => next,
        Err(instead) => instead,
    }
}

/// Decodes the length, and remembers it.
#[inline(never)]
fn decoded_length<V: Vendor>(vcpu: &mut Context<V>) -> Result<u8, Next> {
    let bytes = fetch(vcpu).map_err(|fault| fault.next(vcpu))?;
    let length = decode::length(bytes.as_slice(), bytes.mode).map_err(|why| refused(vcpu, why))?;
    remember(vcpu, &bytes, length);
    Ok(length)
}

/// The exiting instruction, where it is remembered that its bytes are this.
#[inline(always)]
pub(super) fn known<V: Vendor>(vcpu: &Context<V>) -> Option<&decode::Instruction> {
    let (_, mode) = position(vcpu);
    match mode {
        Mode::Long64 => decode_cache::find(vcpu),
        _ => None,
    }
}

/// What the exiting instruction is: as it is remembered, or from its bytes.
pub(super) fn decoded<V: Vendor>(vcpu: &mut Context<V>) -> Result<decode::Instruction, Next> {
    if let Some(known) = known(vcpu) {
        return Ok(*known);
    }
    let epoch = vcpu.domain.kernel.sched.epoch();
    let bytes = fetch(vcpu).map_err(|fault| fault.next(vcpu))?;
    let instruction =
        decode::decode(bytes.as_slice(), bytes.mode).map_err(|why| refused(vcpu, why))?;
    if bytes.mode == Mode::Long64 {
        decode_cache::remember(vcpu, epoch, bytes.as_slice(), &instruction);
    }
    Ok(instruction)
}

/// Bytes that exited and make no instruction: another CPU has changed them meanwhile, or the CPU knows more than Plinth.
fn refused<V: Vendor>(vcpu: &mut Context<V>, why: DecodeError) -> Next {
    match why {
        DecodeError::TooLong => super::raise(vcpu, Event::GP0),
        DecodeError::Invalid => super::raise(vcpu, Event::UD),
        DecodeError::Truncated => vcpu.end(Ending::Undecodable),
    }
}

/// The bytes at RIP.
struct Fetched {
    bytes: [u8; MAX_LENGTH],
    count: usize,
    mode: Mode,
    linear: u64,
}

impl Fetched {
    fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.count).unwrap_or(&[])
    }
}

/// The linear address of RIP, and how code is read there.
fn position<V: Vendor>(vcpu: &Context<V>) -> (u64, Mode) {
    let cs = vcpu.hw.segment(SegmentName::Cs);
    let rip = vcpu.hw.rip();
    match access::code_size(vcpu, &cs) {
        CodeSize::Bits64 => (rip, Mode::Long64),
        CodeSize::Bits32 => (cs.base.wrapping_add(rip) & 0xffff_ffff, Mode::Protected32),
        CodeSize::Bits16 => (cs.base.wrapping_add(rip) & 0xffff_ffff, Mode::Real16),
    }
}

/// Reads the bytes at RIP: to the end of the page, and on the next page only as much as the instruction needs.
fn fetch<V: Vendor>(vcpu: &Context<V>) -> Result<Fetched, Fault> {
    let (linear, mode) = position(vcpu);
    let mut fetched = Fetched {
        bytes: [0; MAX_LENGTH],
        count: 0,
        mode,
        linear,
    };
    let count = MAX_LENGTH.min(access::to_page_end(linear));
    let (here, beyond) = fetched.bytes.split_at_mut(count);
    access::read_in_page(vcpu, linear, here, Intent::Fetch)?;
    let whole =
        beyond.is_empty() || !matches!(decode::length(here, mode), Err(DecodeError::Truncated));
    if !whole {
        access::read_in_page(
            vcpu,
            linear.wrapping_add(count as u64),
            beyond,
            Intent::Fetch,
        )?;
    }
    fetched.count = if whole { count } else { MAX_LENGTH };
    Ok(fetched)
}

/// Puts a length into the cache, if the instruction has eight bytes at most and lies in one page.
fn remember<V: Vendor>(vcpu: &mut Context<V>, fetched: &Fetched, length: u8) {
    let bytes = fetched.as_slice().get(..usize::from(length));
    let Some(bytes) = bytes.filter(|bytes| bytes.len() <= size_of::<u64>()) else {
        return;
    };
    let Ok(gpa) = access::translate(vcpu, fetched.linear, Intent::Fetch) else {
        return;
    };
    if let Some(code) = Seen::code(vcpu, gpa, bytes) {
        let (rip, cr3) = (vcpu.hw.rip(), vcpu.hw.cr3());
        vcpu.lengths.put(Entry {
            rip,
            cr3,
            code,
            length,
        });
    }
}

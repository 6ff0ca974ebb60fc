//! The trace rings: one a CPU, of its last events.

use plinth_abi::trace::{Kind, Record};
use zerocopy::transmute;

use crate::arch::{cpu, time};
use crate::sync::atomic::{AtomicU64, Ordering, fence};

/// Records that a ring keeps.
const RECORDS: usize = 1024;
/// CPUs that have a ring; what others do is not traced. In the host's tests no CPU has one: models would have to follow it.
const CPUS: usize = if cfg!(test) { 0 } else { 64 };

/// Written by its own CPU, and by nothing that interrupts that; read by any.
struct TraceRing<const N: usize = RECORDS> {
    /// Each a [`Record`], as words; its time is a TSC.
    records: [[AtomicU64; 3]; N],
    /// Records ever written.
    end: AtomicU64,
}

static RINGS: [TraceRing; CPUS] = [const { TraceRing::new() }; CPUS];

/// Notes an event on the calling CPU.
pub fn record(kind: Kind, domain: u32, vcpu: u32, detail: u32) {
    record_at(cpu::id_if_known(), time::tsc(), kind, domain, vcpu, detail);
}

/// Notes an event, where the number of the calling CPU and the TSC are at hand.
#[inline]
pub fn record_at(cpu: u32, tsc: u64, kind: Kind, domain: u32, vcpu: u32, detail: u32) {
    if let Some(ring) = RINGS.get(cpu as usize) {
        ring.push(&Record {
            // As nanoseconds when somebody reads it.
            ns: tsc,
            kind: kind.0,
            domain,
            vcpu,
            detail,
        });
    }
}

/// Copies records of a CPU from number `from` on, or from the oldest there is: the number of the first copied, how many, and the number behind the
/// last there is. `None`: the CPU has no ring.
pub fn read(cpu: usize, from: u64, out: &mut [Record]) -> Option<(u64, usize, u64)> {
    Some(RINGS.get(cpu)?.read(from, out))
}

impl<const N: usize> TraceRing<N> {
    const fn new() -> Self {
        Self {
            records: [const { [const { AtomicU64::new(0) }; 3] }; N],
            end: AtomicU64::new(0),
        }
    }

    #[inline]
    fn push(&self, record: &Record) {
        let words: [u64; 3] = transmute!(*record);
        let end = self.end.load(Ordering::Relaxed);
        if let Some(record) = self.records.get((end % N as u64) as usize) {
            for (to, word) in record.iter().zip(words) {
                to.store(word, Ordering::Release);
            }
        }
        self.end.store(end + 1, Ordering::Release);
    }

    /// The oldest record that is there for sure while `end` have been written: the next one may be half written, in place of the one before.
    const fn oldest(end: u64) -> u64 {
        (end + 1).saturating_sub(N as u64)
    }

    fn read(&self, from: u64, out: &mut [Record]) -> (u64, usize, u64) {
        let end = self.end.load(Ordering::Acquire);
        let start = from.clamp(Self::oldest(end), end);
        let mut count = 0;
        for (slot, number) in out.iter_mut().zip(start..end) {
            if let Some(record) = self.records.get((number % N as u64) as usize) {
                let words = record.each_ref().map(|word| word.load(Ordering::Acquire));
                let record: Record = transmute!(words);
                *slot = Record {
                    ns: time::ns_at_tsc(record.ns),
                    ..record
                };
                count += 1;
            }
        }
        fence(Ordering::Acquire);
        let end = self.end.load(Ordering::Relaxed);
        let oldest = Self::oldest(end);
        if start < oldest {
            // Overtaken by its CPU meanwhile: whoever asks again gets what is there then.
            return (oldest, 0, end);
        }
        (start, count, end)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::models::{check, join, spawn};

    #[test]
    fn the_ring_keeps_the_last() {
        let ring: Box<TraceRing> = Box::new(TraceRing::new());
        for detail in 0..RECORDS as u32 + 10 {
            ring.push(&Record {
                ns: detail.into(),
                kind: Kind::RUN.0,
                domain: 1,
                vcpu: 2,
                detail,
            });
        }
        let mut out = [Record::default(); 4];
        let (start, count, end) = ring.read(0, &mut out);
        assert_eq!((count, end - start), (4, RECORDS as u64 - 1));
        assert_eq!(out[0].detail, 11, "the oldest that is not about to go");
        let (start, count, _) = ring.read(end - 2, &mut out);
        assert_eq!((start, count), (end - 2, 2));
        let Record {
            kind,
            domain,
            vcpu,
            detail,
            ..
        } = out[1];
        assert_eq!(
            (kind, domain, vcpu, detail),
            (Kind::RUN.0, 1, 2, RECORDS as u32 + 9)
        );
        assert_eq!(ring.read(end + 5, &mut out), (end, 0, end));
        assert!(read(CPUS, 0, &mut out).is_none());
    }

    fn record(number: u32) -> Record {
        Record {
            ns: 0,
            kind: Kind::RUN.0,
            domain: number,
            vcpu: 0,
            detail: number,
        }
    }

    /// Whatever the CPU writes meanwhile, a record that is read is whole, and the one of its number.
    #[test]
    fn what_is_read_is_whole() {
        check(|| {
            let ring = Arc::new(TraceRing::<2>::new());
            (0..2).for_each(|number| ring.push(&record(number)));
            let also = ring.clone();
            let writes = spawn(move || (2..4).for_each(|number| also.push(&record(number))));
            let mut out = [Record::default(); 2];
            let (start, count, _) = ring.read(0, &mut out);
            for (number, read) in (start as u32..).zip(out).take(count) {
                assert_eq!((read.domain, read.detail), (number, number));
            }
            join(writes);
        });
    }
}

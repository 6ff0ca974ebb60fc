//! The trace rings: one a CPU, of its last events.

use plinth_abi::trace::{Kind, Record};
use spin::Mutex;

use crate::arch::{cpu, time};

/// Records that a ring keeps.
const RECORDS: usize = 1024;
/// CPUs that have a ring; what others do is not traced.
const CPUS: usize = 64;

struct TraceRing {
    records: [Record; RECORDS],
    /// Records ever written.
    end: u64,
}

/// Locked by its own CPU with interrupts off, and by whoever reads it.
static RINGS: [Mutex<TraceRing>; CPUS] = [const {
    Mutex::new(TraceRing {
        records: [Record {
            ns: 0,
            kind: 0,
            domain: 0,
            vcpu: 0,
            detail: 0,
        }; RECORDS],
        end: 0,
    })
}; CPUS];

/// Notes an event on the calling CPU.
pub fn record(kind: Kind, domain: u32, vcpu: u32, detail: u32) {
    record_at(cpu::id_if_known(), time::tsc(), kind, domain, vcpu, detail);
}

/// Notes an event, where the number of the calling CPU and the TSC are at hand.
#[inline]
pub fn record_at(cpu: u32, tsc: u64, kind: Kind, domain: u32, vcpu: u32, detail: u32) {
    let Some(ring) = RINGS.get(cpu as usize) else {
        return;
    };
    let record = Record {
        // As nanoseconds when somebody reads it.
        ns: tsc,
        kind: kind.0,
        domain,
        vcpu,
        detail,
    };
    let mut ring = ring.lock();
    let place = (ring.end % RECORDS as u64) as usize;
    if let Some(slot) = ring.records.get_mut(place) {
        *slot = record;
    }
    ring.end += 1;
}

/// Copies records of a CPU from number `from` on, or from the oldest there is: the number of the first copied, how many, and the number behind the
/// last there is. `None`: the CPU has no ring.
pub fn read(cpu: usize, from: u64, out: &mut [Record]) -> Option<(u64, usize, u64)> {
    let ring = RINGS.get(cpu)?.lock();
    let start = from.clamp(ring.end.saturating_sub(RECORDS as u64), ring.end);
    let mut count = 0;
    for (slot, number) in out.iter_mut().zip(start..ring.end) {
        if let Some(record) = ring.records.get((number % RECORDS as u64) as usize) {
            *slot = Record {
                ns: time::ns_at_tsc(record.ns),
                ..*record
            };
            count += 1;
        }
    }
    Some((start, count, ring.end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_keeps_the_last() {
        // On the host every thread is CPU 0, and this is the only test that reads its ring.
        for detail in 0..RECORDS as u32 + 10 {
            record(Kind::RUN, 1, 2, detail);
        }
        let mut out = [Record::default(); 4];
        let (start, count, end) = read(0, 0, &mut out).unwrap();
        assert_eq!((count, end - start), (4, RECORDS as u64));
        let (start, count, _) = read(0, end - 2, &mut out).unwrap();
        assert_eq!((start, count), (end - 2, 2));
        assert_eq!(out[1].detail, RECORDS as u32 + 9);
        assert!(read(CPUS, 0, &mut out).is_none());
    }
}

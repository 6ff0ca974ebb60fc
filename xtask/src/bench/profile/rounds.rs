//! From QEMU's log of executed instructions to the typical round of an operation that was repeated.
//!
//! The guest does the same again and again, so the places where the kernel is entered come again and again, too. How many entries
//! lie between a place and its return is looked for: the number with which most rounds come out, each at least as long as
//! what the guest has measured, so that a part of a round is not taken for one; nor is the guest's printing.

use std::collections::BTreeMap;
use std::ops::Range;

/// Where the kernel's addresses begin: the guests that measure are linked below.
const KERNEL: u64 = 0xffff_ffff_8000_0000;
/// An interrupt comes at any place of a loop that waits for it: places that are closer, in bytes, count as the same.
const NEAR: u64 = 64;
/// More entries are no round.
const MOST_ENTRIES: usize = 4096;
/// Fewer entries that come again one after the other are chance.
const LEAST_AGAIN: usize = 8;

/// Whether an instruction is the kernel's.
pub fn is_kernel(address: u64) -> bool {
    address >= KERNEL
}

/// Takes a line of the log to the addresses that were executed; other lines change nothing.
pub fn take(line: &str, addresses: &mut Vec<u64>) {
    if line.starts_with("Trace ") {
        addresses.extend(address(line));
    } else if line.starts_with("Stopped execution ") {
        // The instruction that was told last was not executed, but will be told again.
        addresses.pop();
    }
}

/// The address in a line such as `Trace 0: 0x7f.. [cs_base/address/flags/cflags]`.
fn address(line: &str) -> Option<u64> {
    let address = line.split_once('[')?.1.split('/').nth(1)?;
    u64::from_str_radix(address, 16).ok()
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rounds {
    /// A round of the most frequent length: a range of the addresses.
    pub typical: Range<usize>,
    /// How many rounds have that length.
    pub alike: usize,
    /// How many rounds were found.
    pub all: usize,
    /// The instructions of the shortest round.
    pub least: usize,
    /// The instructions of the longest round.
    pub most: usize,
}

/// Finds the rounds of an operation that takes at least `least` instructions. The kernel is not entered at a place that is `foreign`
/// in any of them.
pub fn find(addresses: &[u64], least: u64, foreign: impl Fn(u64) -> bool) -> Option<Rounds> {
    let entries = entries(addresses);
    let length = |round: &Range<usize>| entries[round.end] - entries[round.start];
    let is_long = |rounds: &Vec<Range<usize>>| {
        let mut lengths: Vec<_> = rounds.iter().map(length).collect();
        lengths.sort_unstable();
        lengths
            .get(lengths.len() / 2)
            .is_some_and(|&median| median as u64 >= least)
    };
    let places: Vec<_> = entries
        .iter()
        .map(|&entry| addresses[entry - 1])
        .map(|place| (!foreign(place)).then_some(place))
        .collect();
    let rounds = (1..=MOST_ENTRIES.min(places.len() / 2))
        .map(|count| repeated(&places, count))
        .filter(is_long)
        // Of equals the first: the shortest.
        .reduce(|best, rounds| {
            if rounds.len() > best.len() {
                rounds
            } else {
                best
            }
        })?;
    let mut by_length = BTreeMap::<usize, Vec<&Range<usize>>>::new();
    for round in &rounds {
        by_length.entry(length(round)).or_default().push(round);
    }
    let (least, most) = (*by_length.keys().next()?, *by_length.keys().next_back()?);
    let alike = by_length.into_values().max_by_key(Vec::len)?;
    let first = alike.first()?;
    Some(Rounds {
        typical: entries[first.start]..entries[first.end],
        alike: alike.len(),
        all: rounds.len(),
        least,
        most,
    })
}

/// Where the kernel is entered: the indices of its first instruction each time.
fn entries(addresses: &[u64]) -> Vec<usize> {
    let enters = |pair: &[u64]| !is_kernel(pair[0]) && is_kernel(pair[1]);
    let pairs = addresses.windows(2).enumerate();
    pairs
        .filter(|(_, pair)| enters(pair))
        .map(|(index, _)| index + 1)
        .collect()
}

/// The rounds of `count` entries, as far as two or more of them follow one another: ranges of entries' indices. A place that is none
/// never comes again.
fn repeated(places: &[Option<u64>], count: usize) -> Vec<Range<usize>> {
    let comes_again = |(one, other): (&Option<u64>, &Option<u64>)| {
        one.zip(*other)
            .is_some_and(|(one, other)| one.abs_diff(other) < NEAR)
    };
    let later = places.iter().skip(count);
    let again: Vec<_> = places.iter().zip(later).map(comes_again).collect();
    let mut rounds = Vec::new();
    let mut start = 0;
    for run in again.chunk_by(|one, other| one == other) {
        if run[0] && run.len() >= count.max(LEAST_AGAIN) {
            // The last one, too, ends where another of its kind would begin.
            let round = |index| start + index * count..start + (index + 1) * count;
            rounds.extend((0..run.len() / count).map(round));
        }
        start += run.len();
    }
    rounds
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where nothing is known to be foreign.
    fn find(addresses: &[u64], least: u64) -> Option<Rounds> {
        super::find(addresses, least, |_| false)
    }

    const HANDLER: u64 = KERNEL + 0x1000;

    /// A guest that enters the kernel at the given places, for so many instructions of the kernel each.
    fn trace(entries: &[(u64, usize)]) -> Vec<u64> {
        let mut addresses = Vec::new();
        for &(place, kernel) in entries {
            addresses.extend([place - 4, place]);
            addresses.extend((0..kernel as u64).map(|index| HANDLER + index));
        }
        // The last exit comes to its end.
        addresses.push(0x10_0000);
        addresses
    }

    #[test]
    fn addresses_are_read_from_the_log() {
        let mut addresses = Vec::new();
        for line in [
            "Trace 0: 0x7f2b4c0001c0 [0000000000000000/ffffffff8001f7a0/00c0b0b3/ff020201] ",
            "Trace 0: 0x7f2b4c0003c0 [00000000/0000000000103a10/00c0b0b3/ff020201] main",
            "Stopped execution of TB chain before 0x7f2b4c0003c0 [0000000000103a10] main",
            "Trace 0: 0x7f2b4c0003c0 [00000000/0000000000103a10/00c0b0b3/ff020201] main",
            "",
            "Trace 0: 0x7f2b [",
            "Servicing hardware INT=0x20",
        ] {
            take(line, &mut addresses);
        }
        assert_eq!(addresses, [0xffff_ffff_8001_f7a0, 0x10_3a10]);
    }

    #[test]
    fn an_exit_is_a_round() {
        let addresses = trace(&[(0x10_1000, 98); 50]);
        let rounds = find(&addresses, 90).unwrap();
        assert_eq!((rounds.all, rounds.alike), (49, 49));
        assert_eq!((rounds.least, rounds.most), (100, 100));
        assert_eq!(rounds.typical.len(), 100);
        // From the kernel's first instruction to the next such.
        assert_eq!(addresses[rounds.typical.start], HANDLER);
        assert_eq!(addresses[rounds.typical.end], HANDLER);
    }

    #[test]
    fn what_the_guest_has_measured_tells_several_exits_from_one() {
        // Two domains signal each other and wait, by one hypercall page.
        let call = 0x10_2000;
        let both = [(call, 400), (call, 600)].repeat(30);
        assert_eq!(find(&trace(&both), 900).unwrap().typical.len(), 1004);
        assert_eq!(find(&trace(&both), 1500).unwrap().typical.len(), 2008);
        assert_eq!(find(&trace(&both), 1_000_000), None);
    }

    #[test]
    fn the_most_frequent_length_is_typical_and_printing_is_no_round() {
        let mut entries = vec![(0x10_1000, 98); 60];
        // Once an interrupt was served, too; and then the guest prints, letter by letter, what costs more.
        entries[7].1 = 500;
        entries.extend([(0x10_5000, 300), (0x10_6000, 900)].repeat(20));
        let rounds = find(&trace(&entries), 90).unwrap();
        assert_eq!(rounds.typical.len(), 100);
        assert_eq!((rounds.least, rounds.most), (100, 502));
        assert_eq!((rounds.all, rounds.alike), (59, 58));
    }

    #[test]
    fn an_interrupt_of_a_loop_that_waits_comes_anywhere_in_it() {
        let entries: Vec<_> = (0..40)
            .flat_map(|index| [(0x10_1000, 50), (0x10_3000 + index % 5 * 3, 70)])
            .collect();
        let rounds = find(&trace(&entries), 60).unwrap();
        assert_eq!(rounds.typical.len(), 124);
    }

    #[test]
    fn what_is_foreign_is_no_round_however_often_it_comes() {
        let mut entries = vec![(0x10_1000, 98); 20];
        entries.extend([(0x10_5000, 300), (0x10_6000, 900)].repeat(40));
        let addresses = trace(&entries);
        assert_eq!(find(&addresses, 90).unwrap().typical.len(), 1204);
        let rounds = super::find(&addresses, 90, |place| place == 0x10_6000).unwrap();
        assert_eq!((rounds.typical.len(), rounds.all), (100, 19));
    }

    #[test]
    fn without_entries_there_is_no_round() {
        assert_eq!(find(&[], 1), None);
        assert_eq!(find(&[0x10_0000; 100], 1), None);
        assert_eq!(find(&[HANDLER; 100], 1), None);
        assert_eq!(find(&trace(&[(0x10_1000, 5)]), 1), None);
        // Places that never come again.
        let places: Vec<_> = (0..100)
            .map(|index| (0x10_0000 + index * 4096, 9))
            .collect();
        assert_eq!(find(&trace(&places), 1), None);
    }
}

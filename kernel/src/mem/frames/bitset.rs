//! A set of small numbers with a fast "first at or after": 64-way summaries over summaries.

/// Enough levels for 64^6 members.
const MAX_LEVELS: usize = 6;

/// A set of numbers below a fixed capacity. Every operation touches at most two words a level.
#[derive(Debug)]
pub(super) struct BitSet<'a> {
    words: &'a mut [u64],
    /// Where each level starts in `words`; level 0 holds the members, each further one the non-zero words below it.
    starts: [usize; MAX_LEVELS],
    levels: usize,
}

impl<'a> BitSet<'a> {
    /// The words a set with this capacity takes.
    pub(super) fn words(capacity: usize) -> usize {
        let mut total = 0;
        let mut bits = capacity;
        loop {
            let words = bits.div_ceil(64).max(1);
            total += words;
            if words == 1 {
                return total;
            }
            bits = words;
        }
    }

    /// An empty set over exactly [`BitSet::words`] words, whatever they hold.
    pub(super) fn new(words: &'a mut [u64], capacity: usize) -> Self {
        words.fill(0);
        let mut starts = [0; MAX_LEVELS];
        let mut levels = 1;
        let mut level_words = capacity.div_ceil(64).max(1);
        while level_words > 1 && levels < MAX_LEVELS {
            starts[levels] = starts[levels - 1] + level_words;
            level_words = level_words.div_ceil(64);
            levels += 1;
        }
        Self {
            words,
            starts,
            levels,
        }
    }

    #[cfg(test)]
    pub(super) fn contains(&self, member: usize) -> bool {
        self.words[member / 64] & (1 << (member % 64)) != 0
    }

    pub(super) fn insert(&mut self, member: usize) {
        let mut position = member;
        for level in 0..self.levels {
            let word = &mut self.words[self.starts[level] + position / 64];
            let was_empty = *word == 0;
            *word |= 1 << (position % 64);
            if !was_empty {
                return;
            }
            position /= 64;
        }
    }

    pub(super) fn remove(&mut self, member: usize) {
        let mut position = member;
        for level in 0..self.levels {
            let word = &mut self.words[self.starts[level] + position / 64];
            *word &= !(1 << (position % 64));
            if *word != 0 {
                return;
            }
            position /= 64;
        }
    }

    /// The smallest member that is at least `from`.
    pub(super) fn first_from(&self, from: usize) -> Option<usize> {
        let mut position = from;
        for level in 0..self.levels {
            let end = if level + 1 < self.levels {
                self.starts[level + 1]
            } else {
                self.words.len()
            };
            let index = self.starts[level] + position / 64;
            if index >= end {
                return None;
            }
            let word = self.words[index] & (u64::MAX << (position % 64));
            if word != 0 {
                let mut found = position / 64 * 64 + word.trailing_zeros() as usize;
                for below in (0..level).rev() {
                    let word = self.words[self.starts[below] + found];
                    found = found * 64 + word.trailing_zeros() as usize;
                }
                return Some(found);
            }
            position = position / 64 + 1;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::BitSet;

    proptest! {
        #[test]
        fn behaves_like_a_sorted_set(
            capacity in 1usize..20_000,
            steps in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 1..200),
        ) {
            let mut words = vec![u64::MAX; BitSet::words(capacity)];
            let mut set = BitSet::new(&mut words, capacity);
            let mut model = BTreeSet::new();
            for (insert, index) in steps {
                let member = index.index(capacity);
                if insert {
                    set.insert(member);
                    model.insert(member);
                } else {
                    set.remove(member);
                    model.remove(&member);
                }
                prop_assert_eq!(set.contains(member), insert);
                for from in [0, member.saturating_sub(1), member, member + 1] {
                    prop_assert_eq!(set.first_from(from), model.range(from..).next().copied());
                }
            }
        }
    }

    #[test]
    fn six_levels_reach_past_a_tebibyte_of_frames() {
        let capacity = 1usize << 28;
        let mut words = vec![0; BitSet::words(capacity)];
        let mut set = BitSet::new(&mut words, capacity);
        set.insert(capacity - 1);
        assert_eq!(set.first_from(0), Some(capacity - 1));
        assert_eq!(set.first_from(capacity), None);
    }
}

//! Sets of vectors.

/// The word of a set of 256 bits that has the vector, and the bit there.
pub(super) const fn place(vector: u8) -> (usize, u64) {
    ((vector >> 6) as usize, 1 << (vector & 63))
}

/// The highest vector of four words, vector 0 in bit 0 of the first.
#[inline]
pub(crate) const fn highest(words: [u64; 4]) -> Option<u8> {
    let (word, first) = match words {
        [word, 0, 0, 0] => (word, 0),
        [_, word, 0, 0] => (word, 64),
        [_, _, word, 0] => (word, 128),
        [_, _, _, word] => (word, 192),
    };
    match word.checked_ilog2() {
        Some(bit) => Some(first + bit as u8),
        None => None,
    }
}

/// 32 bits of four words, from `index` * 32, as the registers show them.
pub(super) fn half(index: u8, word: impl FnOnce(usize) -> Option<u64>) -> u32 {
    let word = word(usize::from(index / 2)).unwrap_or(0);
    (word >> (32 * (index % 2))) as u32
}

/// A set of vectors.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Vectors([u64; 4]);

impl Vectors {
    /// No vector.
    pub(super) const EMPTY: Self = Self([0; 4]);

    /// Those of the words, vector 0 in bit 0 of the first.
    pub(super) const fn from_words(words: [u64; 4]) -> Self {
        Self(words)
    }

    /// The words.
    pub(super) const fn words(&self) -> [u64; 4] {
        self.0
    }

    /// Adds the vector or removes it; whether it was there.
    pub(super) fn set(&mut self, vector: u8, there: bool) -> bool {
        let (index, bit) = place(vector);
        let Some(word) = self.0.get_mut(index) else {
            return false;
        };
        let was = *word & bit != 0;
        if there {
            *word |= bit;
        } else {
            *word &= !bit;
        }
        was
    }

    /// Whether there is none.
    #[inline(always)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().fold(0, |any, word| any | word) == 0
    }

    /// Whether there is none but this.
    #[inline(always)]
    pub(super) fn is_only(mut self, vector: u8) -> bool {
        self.set(vector, false);
        self.is_empty()
    }

    /// The highest.
    pub(super) fn highest(&self) -> Option<u8> {
        highest(self.0)
    }

    /// 32 bits, from `index` * 32.
    pub(super) fn half(&self, index: u8) -> u32 {
        half(index, |word| self.0.get(word).copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_a_set(changes in prop::collection::vec(any::<(u8, bool)>(), 0..100)) {
            let (mut vectors, mut model) = (Vectors::EMPTY, BTreeSet::new());
            for (vector, there) in changes {
                let was = model.contains(&vector);
                if there { model.insert(vector); } else { model.remove(&vector); }
                prop_assert_eq!(vectors.set(vector, there), was);
                prop_assert_eq!(vectors.highest(), model.last().copied());
                prop_assert_eq!(vectors.is_empty(), model.is_empty());
                prop_assert_eq!(vectors.is_only(vector), model.iter().all(|other| *other == vector));
                let half = vectors.half(vector / 32);
                prop_assert_eq!(half >> (vector % 32) & 1 != 0, there);
            }
        }
    }
}

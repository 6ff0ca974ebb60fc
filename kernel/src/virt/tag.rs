//! Tags of cached translations: VPIDs and ASIDs, dealt out per CPU.
//!
//! A tag must never name two address spaces at once. Each CPU deals out its tags in turn and, when they run out, starts
//! a new generation by flushing everything it has cached; a vCPU whose tag is of an older generation, or of another
//! CPU, gets a new one. No tag is taken back earlier, so nothing stale can be hit.

/// A tag as one CPU dealt it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tag {
    /// VPID or ASID, never 0.
    pub value: u32,
    cpu: u32,
    generation: u64,
}

impl Tag {
    /// A tag that no CPU takes for its own.
    pub const NONE: Self = Self {
        value: 0,
        cpu: u32::MAX,
        generation: 0,
    };
}

/// What a CPU has to flush before it enters with a tag.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flush {
    /// Nothing: what is cached under the tag is this vCPU's.
    Nothing,
    /// Everything that this CPU has cached for guests: a new generation begins.
    All,
}

/// The tags of one CPU.
#[derive(Debug)]
pub struct TagAllocator {
    cpu: u32,
    /// Tags are 1 to this.
    last: u32,
    next: u32,
    generation: u64,
}

impl TagAllocator {
    /// The tags 1 to `last` of CPU number `cpu`. `last` is at least 1. The first tag dealt asks for a flush: firmware, or a
    /// kernel before this one, may have left translations.
    pub const fn new(cpu: u32, last: u32) -> Self {
        Self {
            cpu,
            last,
            next: last.wrapping_add(1),
            generation: 0,
        }
    }

    /// Whether `tag` is valid on this CPU.
    #[inline(always)]
    pub const fn is_valid(&self, tag: &Tag) -> bool {
        tag.cpu == self.cpu && tag.generation == self.generation
    }

    /// Makes `tag` valid on this CPU, and says what has to be flushed before the next entry.
    pub fn validate(&mut self, tag: &mut Tag) -> Flush {
        if self.is_valid(tag) {
            return Flush::Nothing;
        }
        let mut flush = Flush::Nothing;
        if self.next == 0 || self.next > self.last {
            self.generation += 1;
            self.next = 1;
            flush = Flush::All;
        }
        *tag = Tag {
            value: self.next,
            cpu: self.cpu,
            generation: self.generation,
        };
        self.next += 1;
        flush
    }

    /// Makes every tag dealt so far invalid; the next one dealt asks for a flush.
    pub fn invalidate_all(&mut self) {
        self.generation += 1;
        self.next = self.last.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_tag_flushes_and_the_second_does_not() {
        let mut tags = TagAllocator::new(0, 8);
        let (mut a, mut b) = (Tag::NONE, Tag::NONE);
        assert_eq!(tags.validate(&mut a), Flush::All);
        assert_eq!(tags.validate(&mut b), Flush::Nothing);
        assert_ne!(a.value, b.value);
        assert_eq!(tags.validate(&mut a), Flush::Nothing);
    }

    #[test]
    fn a_tag_of_another_cpu_is_not_taken() {
        let (mut one, mut two) = (TagAllocator::new(0, 8), TagAllocator::new(1, 8));
        let mut tag = Tag::NONE;
        one.validate(&mut tag);
        assert_eq!(two.validate(&mut tag), Flush::All);
        assert_eq!(
            one.validate(&mut tag),
            Flush::Nothing,
            "a new one, of the old generation"
        );
        assert_eq!(tag.value, 2);
    }

    #[test]
    fn all_are_invalid_after_invalidate_all() {
        let mut tags = TagAllocator::new(0, 8);
        let mut tag = Tag::NONE;
        tags.validate(&mut tag);
        tags.invalidate_all();
        assert_eq!(tags.validate(&mut tag), Flush::All);
    }

    proptest! {
        /// Whatever the order in which vCPUs come, between two flushes no tag is used by two of them.
        #[test]
        fn no_tag_is_shared_within_a_generation(last in 1u32..6, order in prop::collection::vec(0usize..10, 1..200)) {
            let mut tags = TagAllocator::new(3, last);
            let mut held = [Tag::NONE; 10];
            let mut cached: BTreeMap<u32, usize> = BTreeMap::new();
            for vcpu in order {
                if tags.validate(&mut held[vcpu]) == Flush::All {
                    cached.clear();
                }
                let value = held[vcpu].value;
                prop_assert!((1..=last).contains(&value));
                prop_assert_eq!(*cached.entry(value).or_insert(vcpu), vcpu);
            }
        }
    }
}

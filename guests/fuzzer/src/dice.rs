//! Random choices.

use plinth_testkit::kit::Random;

/// Random choices; all follow from the seed.
pub struct Dice(Random);

impl Dice {
    /// Those of a round. Neighbouring seeds and rounds have nothing in common (SplitMix64, Steele, Lea and Flood 2014).
    pub fn new(seed: u64, round: u64) -> Self {
        let mut mixed = seed
            .wrapping_add(round.wrapping_mul(0xd1b5_4a32_d192_ed03))
            .wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        // Zero is the one number that the generator cannot begin with.
        Self(Random::new(mixed.max(1)))
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0.number()
    }

    /// A number below this one, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        // The upper bits: the lower ones follow each other more closely.
        (self.0.number() >> 20) % end
    }

    /// True once in so many times.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// One of these.
    pub fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    /// A number of any length, or one at which something changes.
    pub fn interesting(&mut self) -> u64 {
        const EDGES: [u64; 14] = [
            0,
            8,
            0x1000,
            0x10_0000,
            0x20_0000,
            0x4000_0000,
            0x7fff_ffff,
            0xfee0_0000,
            0xffff_ffff,
            1 << 32,
            1 << 47,
            1 << 48,
            1 << 52,
            1 << 63,
        ];
        match self.below(4) {
            0 => self.number() >> self.below(64),
            1 => self.below(32),
            2 => self.one(&EDGES).wrapping_add(self.below(5)).wrapping_sub(2),
            _ => 0u64.wrapping_sub(self.one(&[1, 2, 8, 16, 0x1000, 0x2000, 0x10_0000])),
        }
    }
}

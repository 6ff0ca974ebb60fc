//! Memory types from the memory type range registers (SDM 13.11; APM2 7.7), pure over their values.
//!
//! EPT entries carry the type a page gets, so nested tables ask here what the firmware meant each page to be.

use super::addr::{Hpa, PAGE_SIZE};
use super::nested::{MemoryType, PageSize};

/// IA32_MTRRCAP.
pub const MTRR_CAP: u32 = 0xfe;
/// IA32_MTRR_DEF_TYPE.
pub const MTRR_DEF_TYPE: u32 = 0x2ff;
/// IA32_MTRR_PHYSBASE0; base and mask of range `n` are at `+ 2n` and `+ 2n + 1`.
pub const MTRR_PHYS_BASE0: u32 = 0x200;
/// The fixed-range registers in the order of their addresses: 8 ranges each of 64 KiB, 2 * 16 KiB, 8 * 4 KiB
/// (SDM 13.11.2.2, table 13-9).
pub const MTRR_FIXED: [u32; 11] = [
    0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f,
];

/// As many variable ranges as fit below the fixed-range registers.
const MAX_VARIABLE: usize = 40;
const CAP_FIXED: u64 = 1 << 8;
const ENABLE: u64 = 1 << 11;
const ENABLE_FIXED: u64 = 1 << 10;
const VALID: u64 = 1 << 11;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const FIXED_END: u64 = 1 << 20;

/// A variable range: the two registers as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VariableRange {
    /// IA32_MTRR_PHYSBASEn: type in bits 7:0, base from bit 12 on.
    pub base: u64,
    /// IA32_MTRR_PHYSMASKn: valid in bit 11, mask from bit 12 on.
    pub mask: u64,
}

/// How much of a block a range covers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cover {
    None,
    Part,
    Whole,
}

impl VariableRange {
    fn memory_type(self) -> MemoryType {
        decode(self.base as u8)
    }

    /// The cover of the block of `size` bytes (a power of two, aligned). Masks need not be contiguous (SDM 13.11.3).
    fn cover(self, start: u64, size: u64) -> Cover {
        let mask = self.mask & ADDRESS;
        if self.mask & VALID == 0 || (start ^ self.base) & mask & !(size - 1) != 0 {
            Cover::None
        } else if mask & (size - 1) != 0 {
            Cover::Part
        } else {
            Cover::Whole
        }
    }
}

/// The MTRRs of a CPU. All CPUs of a machine have the same.
#[derive(Clone, Copy, Debug)]
pub struct Mtrrs {
    /// IA32_MTRRCAP.
    pub capability: u64,
    /// IA32_MTRR_DEF_TYPE.
    pub default: u64,
    /// The fixed-range registers in the order of [`MTRR_FIXED`].
    pub fixed: [u64; 11],
    /// The variable ranges; those the CPU lacks are zero, which is "not valid".
    pub variable: [VariableRange; MAX_VARIABLE],
}

impl Mtrrs {
    /// Reads the registers that the CPU has. `rdmsr` is asked for IA32_MTRRCAP first, so CPUID.1:EDX.MTRR must be set:
    /// without MTRRs use [`Mtrrs::absent`].
    pub fn read(rdmsr: impl Fn(u32) -> u64) -> Self {
        let capability = rdmsr(MTRR_CAP);
        let mut mtrrs = Self {
            capability,
            default: rdmsr(MTRR_DEF_TYPE),
            ..Self::absent()
        };
        if capability & CAP_FIXED != 0 {
            mtrrs.fixed = MTRR_FIXED.map(&rdmsr);
        }
        let count = (capability & 0xff) as usize;
        for (msr, range) in (MTRR_PHYS_BASE0..)
            .step_by(2)
            .zip(mtrrs.variable.iter_mut().take(count))
        {
            *range = VariableRange {
                base: rdmsr(msr),
                mask: rdmsr(msr + 1),
            };
        }
        mtrrs
    }

    /// A machine without MTRRs: as if all memory were write-back, the PAT alone deciding.
    pub const fn absent() -> Self {
        Self {
            capability: 0,
            default: ENABLE | MemoryType::WriteBack as u64,
            fixed: [0; 11],
            variable: [VariableRange { base: 0, mask: 0 }; MAX_VARIABLE],
        }
    }

    /// The type of the 4 KiB frame at `hpa` (SDM 13.11.4.1). Overlaps the manual leaves undefined count as uncacheable.
    pub fn memory_type(&self, hpa: Hpa) -> MemoryType {
        // At this size a variable range covers all or nothing, as masks start at bit 12.
        self.uniform(hpa, PageSize::Size4K)
            .unwrap_or(MemoryType::Uncacheable)
    }

    /// The type of the whole page of `size` that holds `hpa`, or `None` where it is, or may be, of several types.
    pub fn uniform(&self, hpa: Hpa, size: PageSize) -> Option<MemoryType> {
        if self.default & ENABLE == 0 {
            return Some(MemoryType::Uncacheable);
        }
        let start = hpa.align_down(size.bytes()).get();
        if self.default & ENABLE_FIXED == 0
            || self.capability & CAP_FIXED == 0
            || start >= FIXED_END
        {
            return self.variable_type(start, size.bytes());
        }
        if size == PageSize::Size4K {
            return Some(self.fixed_type(start));
        }
        // A larger page at 0 has all fixed ranges in it and goes on behind them.
        let beyond = self.variable_type(start, size.bytes())?;
        let mut types = self
            .fixed
            .iter()
            .flat_map(|register| register.to_le_bytes());
        types.all(|bits| decode(bits) == beyond).then_some(beyond)
    }

    fn fixed_type(&self, address: u64) -> MemoryType {
        let (register, range) = match address {
            0..0x8_0000 => (0, address >> 16),
            0x8_0000..0xc_0000 => (1 + ((address - 0x8_0000) >> 17), address >> 14),
            _ => (3 + ((address - 0xc_0000) >> 15), address >> 12),
        };
        let value = self.fixed.get(register as usize).copied().unwrap_or(0);
        decode((value >> (range % 8 * 8)) as u8)
    }

    /// The type by the variable ranges and the default.
    fn variable_type(&self, start: u64, size: u64) -> Option<MemoryType> {
        let cover = |cover| {
            self.variable
                .iter()
                .filter(move |range| range.cover(start, size) == cover)
                .map(|r| r.memory_type())
        };
        let whole = cover(Cover::Whole).reduce(combine);
        let result = whole.unwrap_or(decode(self.default as u8));
        // A range over a part does not matter if it adds nothing: under UC, or with the type that is there already.
        let unchanged = cover(Cover::Part)
            .all(|part| whole.map_or(part, |whole| combine(whole, part)) == result);
        unchanged.then_some(result)
    }
}

/// The type with this encoding, reserved ones as the strictest.
fn decode(bits: u8) -> MemoryType {
    MemoryType::from_bits(bits).unwrap_or(MemoryType::Uncacheable)
}

/// The type where two ranges overlap: UC wins, WT wins over WB, all else is undefined (SDM 13.11.4.1), here UC.
fn combine(a: MemoryType, b: MemoryType) -> MemoryType {
    use MemoryType::{Uncacheable, WriteBack, WriteThrough};
    match (a, b) {
        _ if a == b => a,
        (WriteThrough, WriteBack) | (WriteBack, WriteThrough) => WriteThrough,
        _ => Uncacheable,
    }
}

const _: () = assert!(FIXED_END.is_multiple_of(PAGE_SIZE));

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use MemoryType::*;
    use proptest::prelude::*;

    use super::*;

    const FULL: u64 = ((1 << 36) - 1) & !0xfff;

    fn range(base: u64, len: u64, bits: u64) -> VariableRange {
        VariableRange {
            base: base | bits,
            mask: FULL & !(len - 1) | VALID,
        }
    }

    fn mtrrs(default: u64, ranges: &[VariableRange]) -> Mtrrs {
        let mut mtrrs = Mtrrs {
            capability: CAP_FIXED | 10,
            default,
            ..Mtrrs::absent()
        };
        mtrrs.variable[..ranges.len()].copy_from_slice(ranges);
        mtrrs
    }

    #[test]
    fn disabled_mtrrs_make_everything_uncacheable() {
        let all = mtrrs(6, &[range(0, 1 << 30, 6)]);
        assert_eq!(all.memory_type(Hpa::new(0x1000)), Uncacheable);
        assert_eq!(
            all.uniform(Hpa::new(0), PageSize::Size1G),
            Some(Uncacheable)
        );
    }

    /// The example of SDM 13.11.2.3.1: 96 MiB of write-back memory with a 64 MiB and a 32 MiB range, and 64 MiB with a
    /// 1 MiB hole at 15 MiB.
    #[test]
    fn the_manuals_example() {
        let ranges = [
            VariableRange {
                base: 0x0000_0006,
                mask: 0xf_fc00_0800,
            },
            VariableRange {
                base: 0x0400_0006,
                mask: 0xf_fe00_0800,
            },
            VariableRange {
                base: 0x0600_0006,
                mask: 0xf_ffc0_0800,
            },
            VariableRange {
                base: 0x00f0_0000,
                mask: 0xf_fff0_0800,
            },
        ];
        let all = mtrrs(ENABLE, &ranges);
        for (address, expected) in [
            (0, WriteBack),
            (0xef_f000, WriteBack),
            (0xf0_0000, Uncacheable),
            (0xff_f000, Uncacheable),
            (0x100_0000, WriteBack),
            (0x63f_f000, WriteBack),
            (0x640_0000, Uncacheable),
        ] {
            assert_eq!(all.memory_type(Hpa::new(address)), expected, "{address:#x}");
        }
        assert_eq!(all.uniform(Hpa::new(0xe0_0000), PageSize::Size2M), None);
        assert_eq!(
            all.uniform(Hpa::new(0xc0_0000), PageSize::Size2M),
            Some(WriteBack)
        );
        assert_eq!(all.uniform(Hpa::new(0), PageSize::Size1G), None);
    }

    #[test]
    fn overlaps_follow_the_rules() {
        for (a, b, expected) in [
            (6, 6, WriteBack),
            (0, 6, Uncacheable),
            (0, 4, Uncacheable),
            (0, 1, Uncacheable),
            (4, 6, WriteThrough),
            (1, 6, Uncacheable),
            (5, 4, Uncacheable),
            (1, 1, WriteCombining),
        ] {
            for (a, b) in [(a, b), (b, a)] {
                let all = mtrrs(ENABLE | 5, &[range(0, 1 << 21, a), range(0, 1 << 21, b)]);
                assert_eq!(all.memory_type(Hpa::new(0x1000)), expected, "{a} with {b}");
                assert_eq!(all.uniform(Hpa::new(0), PageSize::Size2M), Some(expected));
            }
        }
    }

    #[test]
    fn the_default_holds_where_no_range_does() {
        let all = mtrrs(ENABLE | 1, &[range(0, 1 << 30, 6)]);
        assert_eq!(all.memory_type(Hpa::new(1 << 30)), WriteCombining);
        // A range that is not valid does not count.
        let invalid = VariableRange {
            base: 6,
            mask: FULL & !0xfff_ffff,
        };
        assert_eq!(
            mtrrs(ENABLE, &[invalid]).memory_type(Hpa::new(0)),
            Uncacheable
        );
    }

    #[test]
    fn fixed_ranges_rule_the_first_mebibyte_each_at_its_address() {
        let mut all = mtrrs(ENABLE | ENABLE_FIXED | 6, &[]);
        // Table 13-9: the first address and the size of each register's ranges.
        let table = [
            (0, 0x10000),
            (0x80000, 0x4000),
            (0xa0000, 0x4000),
            (0xc0000, 0x1000),
            (0xc8000, 0x1000),
        ];
        let table = table
            .into_iter()
            .chain((0xd0000..0x100000).step_by(0x8000).map(|at| (at, 0x1000)));
        for (register, (first, size)) in table.enumerate() {
            for i in 0..8 {
                all.fixed = [0x0606_0606_0606_0606; 11];
                all.fixed[register] = 0x0606_0606_0606_0606 & !(0xff << (i * 8)) | 4 << (i * 8);
                let start = first + i * size;
                assert_eq!(all.memory_type(Hpa::new(start)), WriteThrough, "{start:#x}");
                assert_eq!(
                    all.memory_type(Hpa::new(start + size - 0x1000)),
                    WriteThrough
                );
                assert_eq!(
                    all.memory_type(Hpa::new((start + size) % FIXED_END)),
                    WriteBack
                );
                assert_eq!(all.uniform(Hpa::new(0), PageSize::Size2M), None);
            }
        }
        all.fixed = [0x0606_0606_0606_0606; 11];
        assert_eq!(all.uniform(Hpa::new(0), PageSize::Size1G), Some(WriteBack));
        assert_eq!(all.memory_type(Hpa::new(FIXED_END)), WriteBack);
    }

    #[test]
    fn fixed_ranges_count_only_when_there_and_enabled() {
        let mut all = mtrrs(ENABLE | 6, &[]);
        assert_eq!(all.memory_type(Hpa::new(0)), WriteBack);
        all.default |= ENABLE_FIXED;
        assert_eq!(all.memory_type(Hpa::new(0)), Uncacheable);
        all.capability &= !CAP_FIXED;
        assert_eq!(all.memory_type(Hpa::new(0)), WriteBack);
    }

    #[test]
    fn only_registers_that_exist_are_read() {
        let mut msrs = HashMap::from([(MTRR_CAP, 2), (MTRR_DEF_TYPE, ENABLE)]);
        msrs.extend([
            (0x200, 6),
            (0x201, FULL & !0x1f_ffff | VALID),
            (0x202, 0x20_0004),
            (0x203, FULL | VALID),
        ]);
        // Indexing panics for any other register, as RDMSR would fault.
        let all = Mtrrs::read(|msr| msrs[&msr]);
        assert_eq!(all.memory_type(Hpa::new(0x1f_f000)), WriteBack);
        assert_eq!(all.memory_type(Hpa::new(0x20_0000)), WriteThrough);
        assert_eq!(all.memory_type(Hpa::new(0x20_1000)), Uncacheable);
    }

    proptest! {
        /// What is called uniform is so in each frame; what one range alone rules is found uniform.
        #[test]
        fn uniform_never_hides_a_second_type(
            ranges in prop::collection::vec((0u64..16, 0u32..14, prop::sample::select(vec![0u64, 1, 4, 5, 6])), 0..6),
            default in prop::sample::select(vec![0u64, 1, 4, 5, 6]),
            block in 0u64..4,
        ) {
            let ranges: Vec<_> = ranges
                .iter()
                .map(|&(at, log, bits)| {
                    let len = 0x1000u64 << log;
                    range((at << 19) & !(len - 1), len, bits)
                })
                .collect();
            let all = mtrrs(ENABLE | default, &ranges);
            let frames = (0..512).map(|i| all.memory_type(Hpa::new(block * 0x20_0000 + i * 0x1000)));
            let types: std::collections::HashSet<_> = frames.collect();
            match all.uniform(Hpa::new(block * 0x20_0000), PageSize::Size2M) {
                Some(one) => prop_assert_eq!(types, [one].into()),
                None => prop_assert!(!ranges.is_empty()),
            }
            if ranges.is_empty() {
                prop_assert!(all.uniform(Hpa::new(0), PageSize::Size1G).is_some());
            }
        }
    }
}

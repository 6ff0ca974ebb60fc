use std::cell::RefCell;
use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

/// Tables in a sparse memory of 64-bit words; words that are not there read as zero below `end`.
struct Memory {
    words: RefCell<HashMap<u64, u64>>,
    end: u64,
    /// What the guest writes between the walk's reading and its marking, once each.
    races: RefCell<Vec<(u64, u64)>>,
}

impl Memory {
    fn new(words: &[(u64, u64)]) -> Self {
        Self {
            words: RefCell::new(words.iter().copied().collect()),
            end: 1 << 40,
            races: RefCell::default(),
        }
    }

    /// Sets the 4-byte entry at `gpa`.
    fn set_short(&self, gpa: u64, value: u64) {
        let mut words = self.words.borrow_mut();
        let word = words.entry(gpa & !7).or_default();
        let shift = gpa % 8 * 8;
        *word = *word & !(0xffff_ffff << shift) | value << shift;
    }

    fn get(&self, gpa: u64) -> u64 {
        self.words.borrow().get(&gpa).copied().unwrap_or(0)
    }
}

impl GuestTables for Memory {
    fn read_u64(&self, gpa: Gpa) -> Option<u64> {
        assert!(gpa.is_aligned(8));
        (gpa.get() < self.end).then(|| self.get(gpa.get()))
    }

    fn compare_exchange(&self, gpa: Gpa, old: u64, new: u64) -> Option<u64> {
        if gpa.get() >= self.end {
            return None;
        }
        if let Some((at, value)) = self.races.borrow_mut().pop() {
            self.words.borrow_mut().insert(at, value);
        }
        let seen = self.get(gpa.get());
        if seen == old {
            self.words.borrow_mut().insert(gpa.get(), new);
        }
        Some(seen)
    }
}

const P: u64 = PRESENT;
const W: u64 = WRITE;
const U: u64 = USER;
const NX: u64 = NO_EXECUTE;
const CR0: u64 = CR0_PG | CR0_WP | 1;

fn long() -> Paging {
    Paging {
        cr0: CR0,
        cr3: 0x1000,
        cr4: CR4_PAE,
        efer: EFER_LMA | EFER_NXE | 0x100,
        cpl: 0,
        rflags_ac: false,
        physical_bits: 40,
        gigabyte_pages: true,
    }
}

fn pae() -> Paging {
    Paging {
        efer: EFER_NXE,
        cr3: 0x1020,
        ..long()
    }
}

fn legacy() -> Paging {
    Paging {
        efer: 0,
        cr4: CR4_PSE,
        ..long()
    }
}

fn fault(error_code: u32, address: u64) -> Result<Gpa, WalkError> {
    Err(WalkError::PageFault(PageFault {
        error_code,
        address,
    }))
}

fn ok(gpa: u64) -> Result<Gpa, WalkError> {
    Ok(Gpa::new(gpa))
}

#[test]
fn without_paging_the_low_32_bits_are_the_address() {
    let paging = Paging { cr0: 1, ..legacy() };
    assert_eq!(
        paging.walk(&Memory::new(&[]), 0xf_1234_5678, Intent::Write),
        ok(0x1234_5678)
    );
}

#[test]
fn long_mode_walks_four_levels_and_marks_them() {
    let memory = Memory::new(&[
        (0x1000 + 8 * 0x1ff, 0x2000 | P | W),
        (0x2000 + 8, 0x3000 | P | W),
        (0x3000 + 16, 0x4000 | P | W),
        (0x4000 + 24, 0xab_cdef_0000 & 0xff_ffff_f000 | P | W | NX),
    ]);
    let linear = 0xffff_ff80_4040_3123;
    assert_eq!(
        long().walk(&memory, linear, Intent::Read),
        ok(0xab_cdef_0123)
    );
    for gpa in [0x1ff8, 0x2008, 0x3010, 0x4018] {
        assert_eq!(memory.get(gpa) & (ACCESSED | DIRTY), ACCESSED, "{gpa:#x}");
    }
    assert_eq!(
        long().walk(&memory, linear, Intent::Write),
        ok(0xab_cdef_0123)
    );
    assert_eq!(memory.get(0x4018) & DIRTY, DIRTY);
    assert_eq!(memory.get(0x3010) & DIRTY, 0, "dirty is for the leaf alone");
    let fetch = error_code::PRESENT | error_code::FETCH;
    assert_eq!(
        long().walk(&memory, linear, Intent::Fetch),
        fault(fetch, linear)
    );
}

#[test]
fn five_levels_take_57_bits() {
    let memory = Memory::new(&[
        (0x1000 + 8 * 0x100, 0x2000 | P),
        (0x2000, 0x3000 | P),
        (0x3000, 0x4000 | P),
        (0x4000, 0x5000 | P),
        (0x5000, 0x9000 | P),
    ]);
    let paging = Paging {
        cr4: CR4_PAE | CR4_LA57,
        ..long()
    };
    assert_eq!(
        paging.walk(&memory, 0xff00_0000_0000_0007, Intent::Read),
        ok(0x9007)
    );
    assert_eq!(
        paging.walk(&memory, 0x0100_0000_0000_0000, Intent::Read),
        Err(WalkError::NotCanonical)
    );
    assert_eq!(
        long().walk(&memory, 0xff00_0000_0000_0007, Intent::Read),
        Err(WalkError::NotCanonical)
    );
    assert_eq!(
        long().walk(&memory, 0x0000_8000_0000_0000, Intent::Read),
        Err(WalkError::NotCanonical)
    );
}

#[test]
fn large_pages_of_long_mode() {
    let memory = Memory::new(&[
        (0x1000, 0x2000 | P),
        (0x2000, 0x3000 | P),
        (0x2008, 0x4000_0000 | P | PAGE | 1 << 12),
        (0x3000, 0x60_0000 | P | PAGE | 1 << 12),
    ]);
    assert_eq!(
        long().walk(&memory, 0x4567_89ab, Intent::Read),
        ok(0x4567_89ab),
        "bit 12 is PAT, not address"
    );
    assert_eq!(long().walk(&memory, 0x1f_ffff, Intent::Read), ok(0x7f_ffff));
    let without = Paging {
        gigabyte_pages: false,
        ..long()
    };
    let reserved = error_code::PRESENT | error_code::RESERVED;
    assert_eq!(
        without.walk(&memory, 0x4567_89ab, Intent::Read),
        fault(reserved, 0x4567_89ab)
    );
}

#[test]
fn pae_takes_its_four_top_entries_at_32_byte_alignment() {
    let memory = Memory::new(&[
        (0x1020 + 24, 0x2000 | P),
        (0x2000 + 8, 0x3000 | P | W),
        (0x2000 + 16, 0x80_0000 | P | PAGE),
        (0x3000, 0xf_0000_5000 | P | W),
    ]);
    let linear = 0xc020_0010;
    assert_eq!(
        pae().walk(&memory, linear, Intent::Write),
        ok(0xf_0000_5010)
    );
    assert_eq!(
        memory.get(0x1038),
        0x2000 | P,
        "these entries have no accessed bit"
    );
    assert_eq!(
        pae().walk(&memory, 0xffff_ffff_c041_2345, Intent::Read),
        ok(0x81_2345),
        "the upper half does not count"
    );
    assert_eq!(pae().walk(&memory, 0, Intent::Read), fault(0, 0));
}

#[test]
fn of_pae_top_entries_only_the_address_is_looked_at() {
    let reserved = error_code::PRESENT | error_code::RESERVED;
    for bit in [40, 51] {
        let memory = Memory::new(&[
            (0x1020, 0x2000 | P | 1 << bit),
            (0x2000, 0x3000 | P),
            (0x3000, 0x5000 | P),
        ]);
        assert_eq!(
            pae().walk(&memory, 0, Intent::Read),
            fault(reserved, 0),
            "bit {bit}"
        );
    }
    // SDM table 5-8: bits 2:1, 8:5 and 63:52 are reserved, but checked when CR3 is loaded, which is long ago here.
    for bit in [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 52, 62, 63] {
        let memory = Memory::new(&[
            (0x1020, 0x2000 | P | 1 << bit),
            (0x2000, 0x3000 | P),
            (0x3000, 0x5000 | P),
        ]);
        assert_eq!(
            pae().walk(&memory, 0, Intent::Read),
            ok(0x5000),
            "bit {bit}"
        );
    }
}

#[test]
fn legacy_paging_has_4_byte_entries() {
    let memory = Memory::new(&[]);
    memory.set_short(0x1000 + 4 * 3, 0x2000 | P | W);
    memory.set_short(0x2000 + 4 * 5, 0xffff_f000 | P | W);
    memory.set_short(0x2000 + 4 * 4, 0x1234_5678);
    let linear = 3 << 22 | 5 << 12 | 0x777;
    assert_eq!(
        legacy().walk(&memory, linear, Intent::Write),
        ok(0xffff_f777)
    );
    assert_eq!(memory.get(0x1008), (0x2000 | P | W | ACCESSED) << 32);
    assert_eq!(
        memory.get(0x2010),
        (0xffff_f000 | P | W | ACCESSED | DIRTY) << 32 | 0x1234_5678,
        "the neighbour is left alone"
    );
}

#[test]
fn four_mebibyte_pages_reach_40_bits() {
    let memory = Memory::new(&[]);
    memory.set_short(0x1000, 0xffc0_0000 | 0xa5 << 13 | P | PAGE | 1 << 12);
    assert_eq!(
        legacy().walk(&memory, 0x12_3456, Intent::Read),
        ok(0xa5_ffd2_3456)
    );
    let reserved = fault(error_code::PRESENT | error_code::RESERVED, 0x12_3456);
    // With 36 bits only four of the eight address bits exist.
    assert_eq!(
        Paging {
            physical_bits: 36,
            ..legacy()
        }
        .walk(&memory, 0x12_3456, Intent::Read),
        reserved
    );
    memory.set_short(0x1000, P | PAGE | 1 << 21);
    assert_eq!(legacy().walk(&memory, 0x12_3456, Intent::Read), reserved);
    // Without CR4.PSE the bit means nothing, and the entry is a table's.
    memory.set_short(0x1000, 0x3000 | P | PAGE);
    memory.set_short(0x3000 + 4 * 0x123, 0x7000 | P);
    assert_eq!(
        Paging { cr4: 0, ..legacy() }.walk(&memory, 0x12_3456, Intent::Read),
        ok(0x7456)
    );
}

#[test]
fn reserved_bits_of_long_mode() {
    let reserved = error_code::PRESENT | error_code::RESERVED;
    let walk = |paging: Paging, level4: u64, level3: u64, level2: u64, level1: u64| {
        let memory = Memory::new(&[
            (0x1000, 0x2000 | P | level4),
            (0x2000, 0x3000 | P | level3),
            (
                0x3000,
                if level2 & PAGE != 0 { P } else { 0x4000 | P } | level2,
            ),
            (0x4000, 0x5000 | P | level1),
        ]);
        paging.walk(&memory, 0, Intent::Read)
    };
    let bad = fault(reserved, 0);
    assert_eq!(
        walk(long(), PAGE, 0, 0, 0),
        bad,
        "PS is reserved at level 4"
    );
    for (l4, l3, l2, l1) in [
        (1 << 40, 0, 0, 0),
        (0, 1 << 51, 0, 0),
        (0, 0, 1 << 40, 0),
        (0, 0, 0, 1 << 45),
    ] {
        assert_eq!(walk(long(), l4, l3, l2, l1), bad);
        let wide = Paging {
            physical_bits: 52,
            ..long()
        };
        assert_ne!(walk(wide, l4, l3, l2, l1), bad);
    }
    assert_eq!(walk(long(), 0, 0, PAGE | 1 << 13, 0), bad);
    assert_eq!(walk(long(), 0, 0, PAGE | 1 << 20, 0), bad);
    assert_eq!(walk(long(), 0, 0, PAGE | 1 << 12, 0), ok(0));
    let no_nxe = Paging {
        efer: EFER_LMA,
        ..long()
    };
    assert_eq!(
        walk(no_nxe, 0, 0, 0, NX),
        bad,
        "bit 63 is reserved without NXE"
    );
    assert_eq!(walk(long(), 0, 0, 0, NX), ok(0x5000));
    assert_eq!(
        walk(long(), 0, 0, 0, 0x7ff << 52),
        ok(0x5000),
        "bits 62:52 are ignored"
    );
    assert_eq!(
        walk(long(), 0, 0, 0, 1 << 7),
        ok(0x5000),
        "bit 7 is PAT at level 1"
    );
}

#[test]
fn an_absent_page_wins_over_a_violation_above_it() {
    let memory = Memory::new(&[
        (0x1000, 0x2000 | P),
        (0x2000, 0x3000 | P),
        (0x3000, 0x4000 | P),
    ]);
    let user = Paging { cpl: 3, ..long() };
    assert_eq!(
        user.walk(&memory, 0x10, Intent::Write),
        fault(error_code::USER | error_code::WRITE, 0x10)
    );
}

#[test]
fn the_fetch_bit_is_reported_only_with_nxe_or_smep() {
    let memory = Memory::new(&[]);
    for (paging, expected) in [
        (long(), error_code::FETCH),
        (
            Paging {
                efer: EFER_LMA,
                ..long()
            },
            0,
        ),
        (legacy(), 0),
        (
            Paging {
                efer: EFER_NXE,
                ..legacy()
            },
            0,
        ),
        (
            Paging {
                cr4: CR4_SMEP,
                ..legacy()
            },
            error_code::FETCH,
        ),
    ] {
        assert_eq!(paging.walk(&memory, 0, Intent::Fetch), fault(expected, 0));
    }
}

#[test]
fn a_denied_access_marks_nothing_dirty() {
    let memory = Memory::new(&[(0x1000, 0x2000 | P), (0x2000, P | PAGE)]);
    assert!(long().walk(&memory, 0, Intent::Write).is_err());
    assert_eq!(memory.get(0x2000), P | PAGE);
}

#[test]
fn tables_without_memory_are_told_apart_from_faults() {
    let memory = Memory {
        end: 0x2000,
        ..Memory::new(&[(0x1000, 0x2000 | P)])
    };
    assert_eq!(
        long().walk(&memory, 0, Intent::Read),
        Err(WalkError::Unreachable(Gpa::new(0x2000)))
    );
}

#[test]
fn an_entry_that_changes_under_the_walk_is_walked_again() {
    let page = |page| page | P | PAGE | ACCESSED;
    let memory = Memory::new(&[
        (0x1000, 0x2000 | P | ACCESSED),
        (0x2000, page(0) & !ACCESSED),
    ]);
    memory.races.borrow_mut().push((0x2000, page(GIB)));
    assert_eq!(
        long().walk(&memory, 5, Intent::Read),
        ok(GIB + 5),
        "the new page, not the one that is gone"
    );
    // Withdrawn meanwhile: a fault, as if it had never been there.
    let memory = Memory::new(&[(0x1000, 0x2000 | P | ACCESSED), (0x2000, P | PAGE)]);
    memory.races.borrow_mut().push((0x2000, 0));
    assert_eq!(long().walk(&memory, 5, Intent::Read), fault(0, 5));
    // For ever: given up.
    let memory = Memory::new(&[(0x1000, 0x2000 | P | ACCESSED), (0x2000, P | PAGE)]);
    let flips = (0..100).map(|i| (0x2000, P | PAGE | (i % 2) << 9));
    memory.races.borrow_mut().extend(flips);
    assert_eq!(
        long().walk(&memory, 5, Intent::Read),
        Err(WalkError::Contended)
    );
}

const GIB: u64 = 1 << 30;

/// The rules of SDM 5.6.1 written out sentence by sentence, for a present translation.
#[expect(
    clippy::if_same_then_else,
    reason = "the manual's sentences stay apart"
)]
fn permitted(
    paging: &Paging,
    user_page: bool,
    writable: bool,
    executable: bool,
    intent: Intent,
) -> bool {
    let (wp, smep, smap) = (
        paging.cr0 & CR0_WP != 0,
        paging.cr4 & CR4_SMEP != 0,
        paging.cr4 & CR4_SMAP != 0,
    );
    let supervisor_mode = paging.cpl < 3;
    match (supervisor_mode, intent) {
        (true, Intent::Read) => {
            if !user_page {
                true
            } else if !smap {
                true
            } else {
                paging.rflags_ac
            }
        }
        (true, Intent::Write) => {
            if !user_page {
                if wp { writable } else { true }
            } else if wp {
                if smap {
                    paging.rflags_ac && writable
                } else {
                    writable
                }
            } else if smap {
                paging.rflags_ac
            } else {
                true
            }
        }
        (true, Intent::Fetch) => {
            if !user_page {
                executable
            } else if smep {
                false
            } else {
                executable
            }
        }
        (false, Intent::Read) => user_page,
        (false, Intent::Write) => user_page && writable,
        (false, Intent::Fetch) => user_page && executable,
    }
}

/// A walk for well-formed tables, a plain loop for each mode: the page, its size's offset, and the rights.
fn reference(paging: &Paging, memory: &Memory, linear: u64) -> Option<(u64, bool, bool, bool)> {
    let is_long = paging.efer & EFER_LMA != 0;
    let (mut rights, nx) = (U | W, paging.efer & EFER_NXE != 0);
    let mut blocked = 0;
    let mut entry_at = |gpa: u64, short: bool, counts: bool| {
        let word = memory.get(gpa & !7);
        let entry = if short {
            word >> (gpa % 8 * 8) & 0xffff_ffff
        } else {
            word
        };
        if counts {
            rights &= entry;
            if nx && !short {
                blocked |= entry & NX;
            }
        }
        (entry & P != 0).then_some(entry)
    };
    const FRAME: u64 = 0x000f_ffff_ffff_f000;
    let page = if is_long {
        let levels: &[u32] = if paging.cr4 & CR4_LA57 != 0 {
            &[48, 39, 30, 21, 12]
        } else {
            &[39, 30, 21, 12]
        };
        let mut table = paging.cr3 & FRAME;
        let mut page = 0;
        for &shift in levels {
            let entry = entry_at(table + (linear >> shift & 511) * 8, false, true)?;
            if shift == 12 || shift < 39 && entry & PAGE != 0 {
                page = entry & FRAME & !((1 << shift) - 1) | linear & ((1 << shift) - 1);
                break;
            }
            table = entry & FRAME;
        }
        page
    } else if paging.cr4 & CR4_PAE != 0 {
        let top = entry_at(
            (paging.cr3 & 0xffff_ffe0) + (linear >> 30) * 8,
            false,
            false,
        )?;
        let middle = entry_at((top & FRAME) + (linear >> 21 & 511) * 8, false, true)?;
        if middle & PAGE != 0 {
            middle & FRAME & !0x1f_ffff | linear & 0x1f_ffff
        } else {
            entry_at((middle & FRAME) + (linear >> 12 & 511) * 8, false, true)? & FRAME
                | linear & 0xfff
        }
    } else {
        let top = entry_at((paging.cr3 & 0xffff_f000) + (linear >> 22) * 4, true, true)?;
        if top & PAGE != 0 && paging.cr4 & CR4_PSE != 0 {
            top & 0xffc0_0000 | (top & 0x1f_e000) << 19 | linear & 0x3f_ffff
        } else {
            entry_at((top & 0xffff_f000) + (linear >> 12 & 1023) * 4, true, true)? & 0xffff_f000
                | linear & 0xfff
        }
    };
    Some((page, rights & U != 0, rights & W != 0, blocked == 0))
}

#[derive(Clone, Copy, Debug)]
pub enum TestMode {
    Legacy,
    Pae,
    Four,
    Five,
}

/// Rights and flags of an entry, whether it ends the walk, absent in one case of sixteen.
type Entry = (u64, bool, bool, u8);

/// A guest's tables and its registers, and what it does.
#[derive(Clone, Debug)]
pub struct Case {
    mode: TestMode,
    linear: u64,
    /// For each level.
    entries: [Entry; 5],
    page: u64,
    /// WP, SMEP, SMAP, PSE, NXE, AC.
    flags: (bool, bool, bool, bool, bool, bool),
    cpl: u8,
    intent: Intent,
}

/// Tables that a guest could have made.
pub fn case() -> impl Strategy<Value = Case> {
    let mode = prop::sample::select(vec![
        TestMode::Legacy,
        TestMode::Pae,
        TestMode::Four,
        TestMode::Five,
    ]);
    let entry = (0u64..4, any::<bool>(), prop::bool::weighted(0.25), 0u8..16);
    let cpl = prop::sample::select(vec![0u8, 1, 3]);
    let intent = prop::sample::select(vec![Intent::Read, Intent::Write, Intent::Fetch]);
    let entries = prop::array::uniform5(entry);
    (
        mode,
        any::<u64>(),
        entries,
        0u64..1 << 28,
        any::<(bool, bool, bool, bool, bool, bool)>(),
        cpl,
        intent,
    )
        .prop_map(|(mode, linear, entries, page, flags, cpl, intent)| Case {
            mode,
            linear,
            entries,
            page,
            flags,
            cpl,
            intent,
        })
}

impl Case {
    /// The case that these bytes are.
    pub fn of(bytes: &[u8; 32]) -> Self {
        let [mode, cpl, intent, flags, entries @ .., _, _, _, _] = *bytes;
        let (entries, rest) = entries.split_at(5);
        let word = |at: usize| {
            rest[at..at + 8]
                .iter()
                .fold(0, |word, byte| word << 8 | u64::from(*byte))
        };
        let flag = |bit: u8| flags >> bit & 1 != 0;
        Self {
            mode: [
                TestMode::Legacy,
                TestMode::Pae,
                TestMode::Four,
                TestMode::Five,
            ][usize::from(mode % 4)],
            linear: word(0),
            entries: core::array::from_fn(|at| {
                let bits = entries[at];
                (u64::from(bits & 3), bits & 4 != 0, bits & 8 != 0, bits >> 4)
            }),
            page: word(8) & 0xfff_ffff,
            flags: (flag(0), flag(1), flag(2), flag(3), flag(4), flag(5)),
            cpl: [0, 1, 3][usize::from(cpl % 3)],
            intent: [Intent::Read, Intent::Write, Intent::Fetch][usize::from(intent % 3)],
        }
    }
}

/// The walk gives what a plain reading of the manual gives.
pub fn follows_the_reference(case: Case) -> Result<(), TestCaseError> {
    let Case {
        mode,
        linear,
        entries,
        page,
        flags,
        cpl,
        intent,
    } = case;
    let (wp, smep, smap, pse, nxe, ac) = flags;
    let mut paging = long();
    let set = |bit, on| if on { bit } else { 0 };
    paging.cr0 = CR0_PG | 1 | set(CR0_WP, wp);
    paging.cr4 = set(CR4_SMEP, smep) | set(CR4_SMAP, smap) | set(CR4_PSE, pse);
    paging.efer = set(EFER_NXE, nxe);
    (paging.cpl, paging.rflags_ac) = (cpl, ac);
    let shifts: &[u32] = match mode {
        TestMode::Legacy => &[22, 12],
        TestMode::Pae => &[30, 21, 12],
        TestMode::Four => &[39, 30, 21, 12],
        TestMode::Five => &[48, 39, 30, 21, 12],
    };
    let width = match mode {
        TestMode::Legacy | TestMode::Pae => 32,
        TestMode::Four => 48,
        TestMode::Five => 57,
    };
    if width > 32 {
        paging.efer |= EFER_LMA;
    }
    paging.cr4 |= match mode {
        TestMode::Legacy => 0,
        TestMode::Pae | TestMode::Four => CR4_PAE,
        TestMode::Five => CR4_PAE | CR4_LA57,
    };
    let linear = if width == 32 {
        linear & 0xffff_ffff
    } else {
        ((linear << (64 - width)) as i64 >> (64 - width)) as u64
    };

    let memory = Memory::new(&[]);
    let short = width == 32 && paging.cr4 & CR4_PAE == 0;
    let mut table = paging.cr3 & !0xfff;
    if matches!(mode, TestMode::Pae) {
        paging.cr3 = 0x1000;
    }
    for (&shift, (rights, nx, large, absent)) in shifts.iter().zip(entries) {
        let is_pdpte = matches!(mode, TestMode::Pae) && shift == 30;
        let may_be_large = if short {
            shift == 22 && pse
        } else {
            (21..=30).contains(&shift) && !is_pdpte
        };
        let ends = shift == 12 || may_be_large && large;
        let mut entry = if ends {
            let address = page << 12 & !((1 << shift) - 1);
            if !short {
                address
            } else if shift == 22 {
                address & 0xffc0_0000 | (page & 0xff) << 13
            } else {
                address & 0xffff_f000
            }
        } else {
            table + 0x1000
        };
        entry |= if absent == 0 { 0 } else { P };
        if !is_pdpte {
            entry |=
                ((rights & 1) * W) | ((rights >> 1) * U) | if nx && nxe && !short { NX } else { 0 };
        }
        if ends && shift != 12 {
            entry |= PAGE;
        }
        if short {
            memory.set_short(table + (linear >> shift & 1023) * 4, entry);
        } else {
            memory
                .words
                .borrow_mut()
                .insert(table + (linear >> shift & 511) * 8, entry);
        }
        if ends {
            break;
        }
        table += 0x1000;
    }

    let expected = reference(&paging, &memory, linear);
    let result = paging.walk(&memory, linear, intent);
    match expected {
        None => {
            let Err(WalkError::PageFault(fault)) = result else {
                panic!("{result:?}")
            };
            prop_assert_eq!(
                fault.error_code & (error_code::PRESENT | error_code::RESERVED),
                0
            );
            prop_assert_eq!(
                fault.error_code & error_code::WRITE != 0,
                intent == Intent::Write
            );
            prop_assert_eq!(fault.error_code & error_code::USER != 0, cpl == 3);
            prop_assert_eq!(fault.address, linear);
        }
        Some((page, user, writable, executable)) => {
            if permitted(&paging, user, writable, executable, intent) {
                prop_assert_eq!(result, ok(page));
                // A second walk finds every bit set and reads the same.
                prop_assert_eq!(paging.walk(&memory, linear, intent), ok(page));
                let trail = paging.trail(&memory, linear, intent);
                prop_assert_eq!(trail.is_none(), matches!(mode, TestMode::Pae));
                if let Some(trail) = trail {
                    prop_assert_eq!(trail.gpa(), Gpa::new(page));
                    // A memory of nothing but these words leads to the same place: no other has a part in it.
                    let words: Vec<_> = trail
                        .words()
                        .iter()
                        .map(|&(gpa, word)| (gpa.get(), word))
                        .collect();
                    prop_assert!(words.iter().all(|&(gpa, word)| memory.get(gpa) == word));
                    let only = Memory::new(&words);
                    prop_assert_eq!(paging.walk(&only, linear, intent), ok(page));
                }
            } else {
                let Err(WalkError::PageFault(fault)) = result else {
                    panic!("{result:?}")
                };
                prop_assert_eq!(
                    fault.error_code & (error_code::PRESENT | error_code::RESERVED),
                    error_code::PRESENT
                );
            }
        }
    }
    Ok(())
}

/// What any table holds, CR0, CR3, CR4, EFER, the address, and the width of physical addresses.
pub type Noise = (Vec<u64>, (u64, u64, u64, u64, u64), u32);

/// Whatever the tables hold, the walk ends, and nothing it returns is beyond the address width.
pub fn stays_in_bounds((words, registers, bits): Noise) -> Result<(), TestCaseError> {
    let (cr0, cr3, cr4, efer, linear) = registers;
    struct Tables(Vec<u64>);
    impl GuestTables for Tables {
        fn read_u64(&self, gpa: Gpa) -> Option<u64> {
            Some(self.0[(gpa.get() / 8 % 61) as usize] | P)
        }
        fn compare_exchange(&self, _: Gpa, old: u64, _: u64) -> Option<u64> {
            Some(old)
        }
    }
    let paging = Paging {
        cr0: cr0 | CR0_PG,
        cr3,
        cr4,
        efer,
        cpl: 0,
        rflags_ac: true,
        physical_bits: bits,
        gigabyte_pages: true,
    };
    if let Ok(gpa) = paging.walk(&Tables(words), linear, Intent::Read) {
        prop_assert!(gpa.get() < 1 << bits.clamp(40, 52));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn every_mode_follows_the_reference(case in case()) {
        follows_the_reference(case)?;
    }

    #[test]
    fn any_bytes_are_a_case_that_follows_the_reference(bytes: [u8; 32]) {
        follows_the_reference(Case::of(&bytes))?;
    }

    #[test]
    fn any_content_is_walked_without_harm(noise in (prop::collection::vec(any::<u64>(), 64), any::<(u64, u64, u64, u64, u64)>(), 0u32..70)) {
        stays_in_bounds(noise)?;
    }
}

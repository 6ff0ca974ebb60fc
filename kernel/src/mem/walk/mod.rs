//! The walk of a guest's own page tables, as its CPU would do it: from a linear address to a guest-physical one, for
//! fetching instructions and for string I/O (SDM 5; APM2 5).
//!
//! Pure over [`GuestTables`]. Accessed and dirty bits are set as the CPU sets them, atomically, and only where the access
//! is allowed. Not handled, as guests are not offered them: protection keys, shadow stacks, linear-address masking.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod tests;

use super::addr::{Gpa, PAGE_SIZE};
use super::guest::{GuestMemory, HostMemory};
use super::nested::{EntryFormat, TableFrames};

const CR0_WP: u64 = 1 << 16;
const CR0_PG: u64 = 1 << 31;
const CR4_PSE: u64 = 1 << 4;
const CR4_PAE: u64 = 1 << 5;
const CR4_LA57: u64 = 1 << 12;
const CR4_SMEP: u64 = 1 << 20;
const CR4_SMAP: u64 = 1 << 21;
const EFER_LMA: u64 = 1 << 10;
const EFER_NXE: u64 = 1 << 11;

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const PAGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;

/// How often a walk starts again because the guest changed an entry under it.
const RETRIES: usize = 8;

/// The bits of a page fault's error code (SDM 5.7; APM2 8.2.15).
pub mod error_code {
    /// The page is present: the fault is a violation.
    pub const PRESENT: u32 = 1 << 0;
    /// The access was a write.
    pub const WRITE: u32 = 1 << 1;
    /// The access was made at CPL 3.
    pub const USER: u32 = 1 << 2;
    /// A reserved bit was set in an entry.
    pub const RESERVED: u32 = 1 << 3;
    /// The access was an instruction fetch (reported only with NXE or SMEP on).
    pub const FETCH: u32 = 1 << 4;
}

/// What the address is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// Reading data.
    Read,
    /// Writing data.
    Write,
    /// Fetching an instruction.
    Fetch,
}

/// The guest state that rules the walk. An access that the CPU makes as supervisor by itself (descriptor tables, the
/// TSS) has `cpl` 0 and `rflags_ac` false, whatever the registers hold.
#[derive(Clone, Copy, Debug)]
pub struct Paging {
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// IA32_EFER.
    pub efer: u64,
    /// The current privilege level, 0 to 3.
    pub cpl: u8,
    /// RFLAGS.AC.
    pub rflags_ac: bool,
    /// The width of physical addresses the guest's CPUID tells (leaf 8000_0008h), 32 to 52: bits above are reserved.
    pub physical_bits: u32,
    /// Whether the guest's CPUID tells of 1 GiB pages; if not, their bit is reserved.
    pub gigabyte_pages: bool,
}

/// A page fault to be injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFault {
    /// The error code, as in [`error_code`].
    pub error_code: u32,
    /// The linear address, for CR2.
    pub address: u64,
}

/// Why there is no guest-physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkError {
    /// The guest gets a page fault.
    PageFault(PageFault),
    /// The linear address is not canonical: #GP, or #SS for stack accesses.
    NotCanonical,
    /// A paging structure lies where the guest has no memory (or read-only memory): on a CPU, a nested page fault.
    Unreachable(Gpa),
    /// The guest keeps changing the entries under the walk: run the guest's instruction again.
    Contended,
}

/// The guest's paging structures, in its physical memory.
pub trait GuestTables {
    /// The aligned 64-bit word at `gpa`, read at once; `None` where there is no memory.
    fn read_u64(&self, gpa: Gpa) -> Option<u64>;
    /// Replaces the aligned word at `gpa` if it is `old`: the value that was there, `None` where it cannot be written.
    fn compare_exchange(&self, gpa: Gpa, old: u64, new: u64) -> Option<u64>;
}

impl<F: EntryFormat, T: TableFrames, M: HostMemory> GuestTables for GuestMemory<'_, F, T, M> {
    fn read_u64(&self, gpa: Gpa) -> Option<u64> {
        self.read(gpa).ok()
    }

    fn compare_exchange(&self, gpa: Gpa, old: u64, new: u64) -> Option<u64> {
        GuestMemory::compare_exchange(self, gpa, old, new).ok()
    }
}

/// How entries look in a paging mode.
#[derive(Clone, Copy)]
struct Mode {
    /// The level of the table CR3 points to.
    levels: u8,
    /// The bits of the linear address that count.
    linear_bits: u32,
    /// 4-byte entries of 32-bit paging.
    short: bool,
    /// PAE paging, whose four topmost entries are special.
    pae: bool,
}

impl Mode {
    /// `None` without paging.
    fn of(paging: &Paging) -> Option<Self> {
        let mode = |levels, linear_bits| Self {
            levels,
            linear_bits,
            short: false,
            pae: false,
        };
        if paging.cr0 & CR0_PG == 0 {
            None
        } else if paging.efer & EFER_LMA != 0 {
            Some(if paging.cr4 & CR4_LA57 != 0 {
                mode(5, 57)
            } else {
                mode(4, 48)
            })
        } else if paging.cr4 & CR4_PAE != 0 {
            Some(Self {
                pae: true,
                ..mode(3, 32)
            })
        } else {
            Some(Self {
                short: true,
                ..mode(2, 32)
            })
        }
    }

    fn index_bits(self) -> u32 {
        if self.short { 10 } else { 9 }
    }

    /// The lowest bit of the linear address that chooses the entry at `level`.
    fn shift(self, level: u8) -> u32 {
        12 + self.index_bits() * u32::from(level - 1)
    }
}

/// An entry that was used, to be marked so.
#[derive(Clone, Copy, Default)]
struct Used {
    gpa: u64,
    entry: u64,
}

/// What a completed walk found.
struct Leaf {
    gpa: u64,
    user: bool,
    writable: bool,
    executable: bool,
    used: [Used; Trail::MOST],
    used_count: usize,
}

/// Where a walk went: what it depends on besides registers.
#[derive(Clone, Debug)]
pub struct Trail {
    gpa: Gpa,
    words: heapless::Vec<(Gpa, u64), { Trail::MOST }>,
}

impl Trail {
    /// The most entries that a walk goes through.
    pub const MOST: usize = 5;

    /// Where it led.
    pub const fn gpa(&self) -> Gpa {
        self.gpa
    }

    /// The aligned words that hold the entries, and their values.
    pub fn words(&self) -> &[(Gpa, u64)] {
        &self.words
    }
}

impl Paging {
    /// The way to where `linear` led a moment ago, for the same intent; while its words stay what they are, it leads there still. `None`
    /// where it has changed meanwhile, and for PAE paging, whose topmost entries the CPU may hold otherwise than memory.
    pub fn trail(&self, tables: &impl GuestTables, linear: u64, intent: Intent) -> Option<Trail> {
        let gpa = self.walk(tables, linear, intent).ok()?;
        let mut trail = Trail {
            gpa,
            words: heapless::Vec::new(),
        };
        let Some(mode) = Mode::of(self) else {
            return Some(trail);
        };
        if mode.pae {
            return None;
        }
        // The walk has set the accessed bits: now they are part of what it read.
        let leaf = self.descend(tables, mode, linear, intent).ok()?;
        for used in leaf.used.iter().take(leaf.used_count) {
            let at = Gpa::new(used.gpa).align_down(8);
            let word = tables.read_u64(at)?;
            let entry = if mode.short {
                short_half(used.gpa, word)
            } else {
                word
            };
            if entry != used.entry {
                return None;
            }
            trail.words.push((at, word)).ok()?;
        }
        (leaf.gpa == gpa.get()).then_some(trail)
    }

    /// The guest-physical address for `linear`, if the guest may use it for `intent`.
    ///
    /// Outside long mode only the low 32 bits of `linear` count. In PAE mode the four topmost entries come from memory,
    /// where a CPU without nested paging would use what it loaded with CR3.
    ///
    /// # Errors
    /// Any [`WalkError`].
    pub fn walk(
        &self,
        tables: &impl GuestTables,
        linear: u64,
        intent: Intent,
    ) -> Result<Gpa, WalkError> {
        let Some(mode) = Mode::of(self) else {
            return Ok(Gpa::new(linear & 0xffff_ffff));
        };
        let linear = match mode.linear_bits {
            32 => linear & 0xffff_ffff,
            bits => {
                let unused = 64 - bits;
                if ((linear << unused) as i64 >> unused) as u64 != linear {
                    return Err(WalkError::NotCanonical);
                }
                linear
            }
        };
        for _ in 0..RETRIES {
            let leaf = self.descend(tables, mode, linear, intent)?;
            if !self.allows(&leaf, intent) {
                return Err(self.fault(linear, intent, error_code::PRESENT));
            }
            if mark(tables, mode, &leaf, intent)? {
                return Ok(Gpa::new(leaf.gpa));
            }
        }
        Err(WalkError::Contended)
    }

    fn descend(
        &self,
        tables: &impl GuestTables,
        mode: Mode,
        linear: u64,
        intent: Intent,
    ) -> Result<Leaf, WalkError> {
        let physical = (1u64 << self.physical_bits.clamp(32, 52)) - 1;
        let mut table = match mode {
            Mode { short: true, .. } => self.cr3 & 0xffff_f000,
            Mode { pae: true, .. } => self.cr3 & 0xffff_ffe0,
            _ => self.cr3 & physical & !(PAGE_SIZE - 1),
        };
        let mut leaf = Leaf {
            gpa: 0,
            user: true,
            writable: true,
            executable: true,
            used: Default::default(),
            used_count: 0,
        };
        for level in (1..=mode.levels).rev() {
            let is_pdpte = mode.pae && level == 3;
            let index = linear >> mode.shift(level) & ((1 << mode.index_bits()) - 1);
            let (gpa, entry) = if mode.short {
                let gpa = table + index * 4;
                (gpa, short_half(gpa, read(tables, gpa & !7)?))
            } else {
                let gpa = table + index * 8;
                (gpa, read(tables, gpa)?)
            };
            if entry & PRESENT == 0 {
                return Err(self.fault(linear, intent, 0));
            }
            let large = (2..=3).contains(&level)
                && !is_pdpte
                && entry & PAGE != 0
                && (!mode.short || self.cr4 & CR4_PSE != 0);
            if entry & self.reserved(mode, level, large, physical) != 0 {
                return Err(self.fault(linear, intent, error_code::PRESENT | error_code::RESERVED));
            }
            let address = if mode.short {
                entry & 0xffff_f000
            } else {
                entry & physical & !(PAGE_SIZE - 1)
            };
            if is_pdpte {
                // Neither rights nor accessed bits at this level (SDM 5.4.1).
                table = address;
                continue;
            }
            leaf.user &= entry & USER != 0;
            leaf.writable &= entry & WRITE != 0;
            leaf.executable &= mode.short || entry & NO_EXECUTE == 0;
            if let Some(used) = leaf.used.get_mut(leaf.used_count) {
                *used = Used { gpa, entry };
                leaf.used_count += 1;
            }
            if level == 1 || large {
                let offset = (1 << mode.shift(level)) - 1;
                let page = if mode.short && large {
                    // Bits 20:13 are bits 39:32 of the address (PSE-36; SDM 5.3, table 5-4).
                    (entry & 0xffc0_0000) | (entry >> 13 & 0xff) << 32
                } else {
                    address & !offset
                };
                leaf.gpa = page | linear & offset;
                return Ok(leaf);
            }
            table = address;
        }
        // The loop ends at level 1 at the latest.
        Err(WalkError::Contended)
    }

    /// The bits that must be clear in a present entry (SDM tables 5-4 to 5-20).
    fn reserved(&self, mode: Mode, level: u8, large: bool, physical: u64) -> u64 {
        if mode.short {
            // Of a 4 MiB page's bits 21:13, those that stand for physical-address bits the CPU lacks.
            let wide = self.physical_bits.clamp(32, 40) - 32;
            return if large {
                0x3f_e000 & !(((1 << wide) - 1) << 13)
            } else {
                0
            };
        }
        let beyond = 0x000f_ffff_ffff_ffff & !physical;
        if mode.pae && level == 3 {
            // A CPU checks them when it loads CR3, not when it walks (SDM 5.4.1); what it leaves out is what is set in memory
            // since, such as the accessed bit that QEMU's emulation sets.
            return beyond;
        }
        let mut reserved = beyond;
        if mode.pae {
            reserved |= 0x7ff0_0000_0000_0000;
        }
        if self.efer & EFER_NXE == 0 {
            reserved |= NO_EXECUTE;
        }
        if level >= 4 || level == 3 && !self.gigabyte_pages {
            reserved |= PAGE;
        }
        if large {
            // The address bits below the page's size, but for bit 12, which is PAT.
            reserved |= ((1 << mode.shift(level)) - 1) & !0x1fff;
        }
        reserved
    }

    /// Whether the access rights allow it (SDM 5.6.1).
    fn allows(&self, leaf: &Leaf, intent: Intent) -> bool {
        if self.cpl == 3 {
            return leaf.user
                && match intent {
                    Intent::Read => true,
                    Intent::Write => leaf.writable,
                    Intent::Fetch => leaf.executable,
                };
        }
        let data = !leaf.user || self.cr4 & CR4_SMAP == 0 || self.rflags_ac;
        match intent {
            Intent::Read => data,
            Intent::Write => data && (leaf.writable || self.cr0 & CR0_WP == 0),
            Intent::Fetch => leaf.executable && !(leaf.user && self.cr4 & CR4_SMEP != 0),
        }
    }

    fn fault(&self, address: u64, intent: Intent, bits: u32) -> WalkError {
        let mut error_code = bits;
        if self.cpl == 3 {
            error_code |= error_code::USER;
        }
        let fetches_differ =
            self.cr4 & CR4_SMEP != 0 || self.cr4 & CR4_PAE != 0 && self.efer & EFER_NXE != 0;
        match intent {
            Intent::Read => {}
            Intent::Write => error_code |= error_code::WRITE,
            Intent::Fetch if fetches_differ => error_code |= error_code::FETCH,
            Intent::Fetch => {}
        }
        WalkError::PageFault(PageFault {
            error_code,
            address,
        })
    }
}

fn read(tables: &impl GuestTables, gpa: u64) -> Result<u64, WalkError> {
    let gpa = Gpa::new(gpa);
    tables.read_u64(gpa).ok_or(WalkError::Unreachable(gpa))
}

/// The 4-byte entry at `gpa` out of the 8-byte word that holds it.
fn short_half(gpa: u64, word: u64) -> u64 {
    word >> (gpa % 8 * 8) & 0xffff_ffff
}

/// Sets the accessed bits of the entries used, and the dirty bit of the last for a write; `false` where an entry is no
/// longer what the walk read.
fn mark(
    tables: &impl GuestTables,
    mode: Mode,
    leaf: &Leaf,
    intent: Intent,
) -> Result<bool, WalkError> {
    for (i, used) in leaf.used.iter().take(leaf.used_count).enumerate() {
        let mut wanted = ACCESSED;
        if i + 1 == leaf.used_count && intent == Intent::Write {
            wanted |= DIRTY;
        }
        if used.entry & wanted == wanted {
            continue;
        }
        let gpa = Gpa::new(used.gpa);
        let unreachable = WalkError::Unreachable(gpa);
        if mode.short {
            let word_gpa = gpa.align_down(8);
            let word = tables.read_u64(word_gpa).ok_or(unreachable)?;
            let shift = gpa.offset_in(8) * 8;
            if short_half(used.gpa, word) != used.entry
                || tables
                    .compare_exchange(word_gpa, word, word | wanted << shift)
                    .ok_or(unreachable)?
                    != word
            {
                return Ok(false);
            }
        } else if tables
            .compare_exchange(gpa, used.entry, used.entry | wanted)
            .ok_or(unreachable)?
            != used.entry
        {
            return Ok(false);
        }
    }
    Ok(true)
}

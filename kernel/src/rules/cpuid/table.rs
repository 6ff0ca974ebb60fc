//! The leaves of a domain, computed once.

use heapless::Vec;

use super::leaves::{Source, patch};
use super::{Features, GuestIdentity, Registers, VcpuView};
use crate::rules::CpuVendor;

/// Leaves and subleaves that are not zero; the most that [`Source`] can give are fewer.
const CAPACITY: usize = 64;

/// The deepest subleaf that the leaves of caches may have.
const CACHES: u32 = 8;

/// Leaf and subleaf, as one number to search by.
const fn key(leaf: u32, subleaf: u32) -> u64 {
    (leaf as u64) << 32 | subleaf as u64
}

/// The ranges of leaves, by the top four bits of their number: basic, hypervisor, extended.
const RANGES: [u32; 3] = [0, 0x4000_0000, 0x8000_0000];

/// Leaves of a range that are found by their index.
const INDEXED: usize = 32;

/// CPUID of a domain: what is the same for all vCPUs is computed when the domain is made, the rest at each look.
#[derive(Clone, Debug)]
pub struct CpuidTable {
    /// By key, ascending.
    entries: Vec<(u64, Registers), CAPACITY>,
    guest: GuestIdentity,
    vendor: CpuVendor,
    last_basic: u32,
    last_extended: u32,
    features: Features,
    /// Answers that depend on nothing but the leaf, by range and index.
    plain: [[Registers; INDEXED]; RANGES.len()],
    /// Which of `plain` are so.
    is_plain: [u32; RANGES.len()],
}

/// Whether the leaf's answer depends on the vCPU.
const fn is_patched(leaf: u32) -> bool {
    matches!(leaf, 1 | 7 | 0xb | 0xd | 0x1f | 0x8000_001e)
}

/// Whether the leaf has subleaves; all others ignore ECX.
const fn has_subleaves(leaf: u32) -> bool {
    matches!(leaf, 4 | 7 | 0xb | 0xd | 0x1f | 0x8000_001d)
}

impl CpuidTable {
    /// The table of a domain on this host.
    pub fn new(host: &dyn Fn(u32, u32) -> Registers, guest: &GuestIdentity) -> Self {
        let source = Source::new(host, guest);
        let mut entries = Vec::new();
        let ranges = [
            (0, source.last_basic),
            (
                plinth_abi::cpuid::LEAF_SIGNATURE,
                plinth_abi::cpuid::LEAF_LAST,
            ),
            (
                plinth_abi::cpuid::LEAF_KVM,
                plinth_abi::cpuid::LEAF_KVM_FEATURES,
            ),
            (0x8000_0000, source.last_extended),
        ];
        for (first, last) in ranges {
            for leaf in first..=last {
                let subleaves = match leaf {
                    4 | 0x8000_001d => CACHES,
                    7 => 3,
                    0xd => 63,
                    _ => 1,
                };
                for subleaf in 0..subleaves {
                    let registers = source.leaf(leaf, subleaf);
                    if registers != [0; 4] {
                        // A host with more than fits loses the last leaves, which then read as zero.
                        let _ = entries.push((key(leaf, subleaf), registers));
                    }
                }
            }
        }
        let mut table = Self {
            entries,
            guest: *guest,
            vendor: source.vendor,
            last_basic: source.last_basic,
            last_extended: source.last_extended,
            features: Features::default(),
            plain: [[[0; 4]; INDEXED]; RANGES.len()],
            is_plain: [0; RANGES.len()],
        };
        table.features = Features::new(&table);
        table.index();
        table
    }

    /// Whether it is that of domains with so many vCPUs, with local APICs or without.
    pub const fn is_for(&self, vcpus: u32, local_apic: bool) -> bool {
        self.guest.vcpus == vcpus && self.guest.local_apic == local_apic
    }

    /// Fills the answers that are found by index.
    fn index(&mut self) {
        for (range, first) in RANGES.into_iter().enumerate() {
            for index in 0..INDEXED {
                let leaf = self.in_range(first + index as u32);
                if leaf.is_some_and(|leaf| has_subleaves(leaf) || is_patched(leaf)) {
                    continue;
                }
                let registers = leaf.map_or([0; 4], |leaf| self.entry(leaf, 0));
                if let (Some(place), Some(mask)) = (
                    self.plain
                        .get_mut(range)
                        .and_then(|range| range.get_mut(index)),
                    self.is_plain.get_mut(range),
                ) {
                    *place = registers;
                    *mask |= 1 << index;
                }
            }
        }
    }

    /// What CPUID gives every vCPU for a leaf that depends on nothing else: the short way to most answers.
    #[inline(always)]
    pub fn plain(&self, leaf: u32) -> Option<Registers> {
        let range = match leaf >> 28 {
            0 => 0,
            4 => 1,
            8 => 2,
            _ => return None,
        };
        let index = leaf & 0x0fff_ffff;
        if index >= INDEXED as u32 || self.is_plain.get(range)? >> index & 1 == 0 {
            return None;
        }
        self.plain.get(range)?.get(index as usize).copied()
    }

    /// What CPUID gives this vCPU.
    pub fn get(&self, leaf: u32, subleaf: u32, vcpu: &VcpuView) -> Registers {
        let Some(leaf) = self.in_range(leaf) else {
            return [0; 4];
        };
        let registers = self.entry(leaf, subleaf);
        patch(leaf, subleaf, registers, &self.guest, vcpu, &|component| {
            self.entry(0xd, component)
        })
    }

    /// What the guest has been told that decides other rules.
    pub const fn features(&self) -> &Features {
        &self.features
    }

    /// The domain's part of a leaf.
    pub(super) fn entry(&self, leaf: u32, subleaf: u32) -> Registers {
        let key = key(leaf, if has_subleaves(leaf) { subleaf } else { 0 });
        match self.entries.binary_search_by_key(&key, |entry| entry.0) {
            Ok(at) => self.entries.get(at).map_or([0; 4], |entry| entry.1),
            Err(_) => [0; 4],
        }
    }

    /// Whose rules the CPU follows.
    pub(super) const fn vendor(&self) -> CpuVendor {
        self.vendor
    }

    /// Whom the domain's CPUs are.
    pub(super) const fn guest(&self) -> &GuestIdentity {
        &self.guest
    }

    /// As `Source::in_range`.
    fn in_range(&self, leaf: u32) -> Option<u32> {
        super::leaves::in_range(leaf, self.last_basic, self.last_extended, self.vendor)
    }
}

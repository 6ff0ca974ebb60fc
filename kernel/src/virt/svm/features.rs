//! What this CPU's SVM offers (CPUID 8000_000Ah; APM3 appendix E.4.9), and the table of it.

use alloc::borrow::Cow;
use alloc::format;

use bitflags::bitflags;
use core::arch::x86_64::__cpuid;

use super::validate::Limits;
use crate::arch::errata;
use crate::virt::{Capabilities, Capability, Lack};

bitflags! {
    /// Optional features: EDX of CPUID 8000_000Ah.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Features: u32 {
        /// Nested paging.
        const NESTED_PAGING = 1 << 0;
        /// Last-branch records are switched.
        const LBR = 1 << 1;
        /// SVM can be locked off by a key.
        const LOCK = 1 << 2;
        /// RIP of the next instruction is saved.
        const NRIP_SAVE = 1 << 3;
        /// TSC scaling by an MSR.
        const TSC_RATE = 1 << 4;
        /// Clean bits.
        const VMCB_CLEAN = 1 << 5;
        /// A single ASID can be flushed.
        const FLUSH_BY_ASID = 1 << 6;
        /// Decode assists.
        const DECODE_ASSISTS = 1 << 7;
        /// PAUSE filter.
        const PAUSE_FILTER = 1 << 10;
        /// Threshold of the PAUSE filter.
        const PAUSE_THRESHOLD = 1 << 12;
        /// Advanced virtual interrupt controller.
        const AVIC = 1 << 13;
        /// VMLOAD and VMSAVE in guests.
        const VIRTUAL_VMLOAD = 1 << 15;
        /// Virtual GIF.
        const VIRTUAL_GIF = 1 << 16;
        /// AVIC in x2APIC mode.
        const X2AVIC = 1 << 18;
        /// SPEC_CTRL is switched.
        const SPEC_CTRL = 1 << 20;
    }
}

/// What CPUID says about this CPU, as far as it matters here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// CPUID 8000_0001h ECX.
    pub extended_ecx: u32,
    /// CPUID 8000_0001h EDX.
    pub extended_edx: u32,
    /// Number of ASIDs, the host's included.
    pub asids: u32,
    /// Optional features.
    pub features: Features,
    /// Width of physical addresses in bits.
    pub physical_bits: u8,
    /// It is QEMU's emulation: it delivers an injected interrupt again if something stops its CPU before the next exit.
    pub injects_twice: bool,
}

const ECX_SVM: u32 = 1 << 2;
const EDX_GIB_PAGES: u32 = 1 << 26;
const EDX_RDTSCP: u32 = 1 << 27;
const EDX_LONG_MODE: u32 = 1 << 29;

impl Identity {
    /// Asks this CPU.
    pub fn read() -> Self {
        let last = __cpuid(0x8000_0000).eax;
        let leaf = |number: u32| (last >= number).then(|| __cpuid(number));
        let extended = leaf(0x8000_0001);
        let extended_ecx = extended.map_or(0, |leaf| leaf.ecx);
        // Where there is no SVM, CPUID 8000_000Ah is reserved.
        let svm = leaf(0x8000_000a).filter(|_| extended_ecx & ECX_SVM != 0);
        Self {
            extended_ecx,
            extended_edx: extended.map_or(0, |leaf| leaf.edx),
            asids: svm.map_or(0, |leaf| leaf.ebx),
            features: Features::from_bits_truncate(svm.map_or(0, |leaf| leaf.edx)),
            physical_bits: leaf(0x8000_0008)
                .map_or(36, |leaf| leaf.eax as u8)
                .clamp(32, 52),
            injects_twice: errata::is_tcg(),
        }
    }

    /// RDTSCP and the TSC_AUX MSR are there.
    pub const fn has_tsc_aux(&self) -> bool {
        self.extended_edx & EDX_RDTSCP != 0
    }

    /// What the validator has to know.
    pub const fn limits(&self) -> Limits {
        Limits {
            physical_bits: self.physical_bits,
            long_mode: self.extended_edx & EDX_LONG_MODE != 0,
        }
    }

    /// The first thing without which Plinth cannot run guests here. `vm_cr` is read only where there is SVM.
    ///
    /// # Errors
    /// That thing.
    pub fn lack(&self, vm_cr: impl FnOnce() -> u64) -> Result<(), Lack> {
        if self.extended_ecx & ECX_SVM == 0 {
            return Err(Lack {
                what: "this CPU has no SVM",
                advice: "a CPU with AMD-V is needed; in a virtual machine, nested virtualisation",
            });
        }
        let vm_cr = vm_cr();
        // What is not locked is switched on by `enable` (APM2 15.30.1).
        if vm_cr & VM_CR_SVMDIS != 0 && vm_cr & VM_CR_LOCK != 0 {
            return Err(if self.features.contains(Features::LOCK) {
                Lack {
                    what: "SVM is switched off by firmware and locked with a key",
                    advice: "enable SVM in the firmware setup",
                }
            } else {
                Lack {
                    what: "SVM is switched off by firmware",
                    advice: "enable SVM in the firmware setup",
                }
            });
        }
        if !self.features.contains(Features::NESTED_PAGING) {
            return Err(Lack {
                what: "this CPU's SVM has no nested paging",
                advice: "a CPU of family 10h or later is needed; in a virtual machine, nested paging switched on",
            });
        }
        if self.asids < 2 {
            return Err(Lack {
                what: "this CPU shows no ASID for guests",
                advice: "the virtual machine that Plinth runs in is set up wrongly",
            });
        }
        Ok(())
    }

    /// The table to be printed at boot.
    pub fn capabilities(&self) -> Capabilities {
        let gib = self.extended_edx & EDX_GIB_PAGES != 0;
        let mut table = Capabilities::default();
        table.rows.push(Capability {
            name: "nested paging",
            value: Cow::Borrowed(if gib {
                "4 KiB, 2 MiB, 1 GiB"
            } else {
                "4 KiB, 2 MiB"
            }),
            without: if gib {
                ""
            } else {
                "guest memory is mapped by 2 MiB pages"
            },
        });
        table.rows.push(Capability {
            name: "ASIDs",
            value: Cow::Owned(format!("{}", self.asids)),
            without: "",
        });
        for (feature, name, without) in OPTIONAL {
            let there = self.features.contains(feature);
            table.rows.push(Capability {
                name,
                value: Cow::Borrowed(if there { "yes" } else { "no" }),
                without: if there { "" } else { without },
            });
        }
        table
    }
}

/// VM_CR: SVM cannot be enabled.
pub const VM_CR_SVMDIS: u64 = 1 << 4;
/// VM_CR: SVMDIS cannot be changed.
pub const VM_CR_LOCK: u64 = 1 << 3;

const OPTIONAL: [(Features, &str, &str); 13] = [
    (
        Features::NRIP_SAVE,
        "NRIP save",
        "instruction lengths are decoded",
    ),
    (
        Features::DECODE_ASSISTS,
        "decode assists",
        "accesses to control registers are decoded",
    ),
    (
        Features::VMCB_CLEAN,
        "VMCB clean bits",
        "the CPU loads the whole control block at each entry",
    ),
    (
        Features::FLUSH_BY_ASID,
        "flush by ASID",
        "not needed: a new ASID is taken instead",
    ),
    (
        Features::PAUSE_FILTER,
        "PAUSE filter",
        "a vCPU that spins keeps the CPU to the end of its slice",
    ),
    (
        Features::PAUSE_THRESHOLD,
        "PAUSE filter threshold",
        "PAUSEs are counted however far apart",
    ),
    (
        Features::TSC_RATE,
        "TSC rate MSR",
        "guests see the host's TSC frequency",
    ),
    (
        Features::LBR,
        "LBR virtualisation",
        "guests have no last-branch records",
    ),
    (
        Features::AVIC,
        "AVIC",
        "guests' local APICs are served in software",
    ),
    (
        Features::X2AVIC,
        "x2AVIC",
        "guests' local APICs are served in software",
    ),
    (
        Features::VIRTUAL_GIF,
        "virtual GIF",
        "not needed: guests see no SVM",
    ),
    (
        Features::VIRTUAL_VMLOAD,
        "virtual VMLOAD and VMSAVE",
        "not needed: guests see no SVM",
    ),
    (
        Features::SPEC_CTRL,
        "SPEC_CTRL virtualisation",
        "a guest's SPEC_CTRL is written before its entries, where it has one",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    const COMPLETE: Identity = Identity {
        extended_ecx: ECX_SVM,
        extended_edx: EDX_GIB_PAGES | EDX_LONG_MODE,
        asids: 16,
        features: Features::all().difference(Features::LOCK),
        physical_bits: 48,
        injects_twice: false,
    };

    fn what(identity: Identity, vm_cr: u64) -> &'static str {
        identity
            .lack(|| vm_cr)
            .map_or_else(|lack| lack.what, |()| "")
    }

    #[test]
    fn lacks_are_told_apart() {
        assert_eq!(what(COMPLETE, 0), "");
        assert!(
            what(
                Identity {
                    extended_ecx: 0,
                    ..COMPLETE
                },
                0
            )
            .contains("no SVM")
        );
        let features = COMPLETE.features - Features::NESTED_PAGING;
        assert!(
            what(
                Identity {
                    features,
                    ..COMPLETE
                },
                0
            )
            .contains("nested paging")
        );
        assert!(
            what(
                Identity {
                    asids: 1,
                    ..COMPLETE
                },
                0
            )
            .contains("ASID")
        );
    }

    #[test]
    fn firmware_that_locks_svm_off_is_named() {
        assert_eq!(
            what(COMPLETE, VM_CR_SVMDIS | VM_CR_LOCK),
            "SVM is switched off by firmware"
        );
        let features = COMPLETE.features | Features::LOCK;
        assert!(
            what(
                Identity {
                    features,
                    ..COMPLETE
                },
                VM_CR_SVMDIS | VM_CR_LOCK
            )
            .contains("key")
        );
        assert_eq!(what(COMPLETE, VM_CR_LOCK), "", "locked on");
        assert_eq!(
            what(COMPLETE, VM_CR_SVMDIS),
            "",
            "not locked: Plinth switches it on"
        );
    }

    #[test]
    fn vm_cr_is_not_read_where_there_is_no_svm() {
        let none = Identity {
            extended_ecx: 0,
            ..COMPLETE
        };
        assert!(none.lack(|| panic!("#GP")).is_err());
    }

    #[test]
    fn each_lack_in_the_table_says_what_is_done_instead() {
        let bare = Identity {
            features: Features::NESTED_PAGING,
            extended_edx: 0,
            ..COMPLETE
        };
        let table = bare.capabilities();
        assert_eq!(table.rows.len(), 15);
        assert!(
            table
                .rows
                .iter()
                .all(|row| row.name == "ASIDs" || !row.without.is_empty())
        );
        assert!(
            COMPLETE
                .capabilities()
                .rows
                .iter()
                .all(|row| row.without.is_empty() && row.value != "no")
        );
    }
}

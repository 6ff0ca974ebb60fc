//! What this CPU's VMX can do, and the controls that Plinth wants of it (SDM vol. 3 appendix A).
//!
//! Required, optional and forbidden bits are constants; each CPU folds them once with its capability MSRs. Pure but for
//! [`Registers::read`].

use alloc::borrow::Cow;
use alloc::format;
use alloc::vec;

use super::vmcs::{EntryControls, ExitControls, PinControls, PrimaryControls, SecondaryControls};
use crate::arch::msr::{self, Msr};
use crate::virt::{Capabilities, Capability, Lack};

const REQUIRED_PIN: PinControls =
    PinControls::EXTERNAL_INTERRUPT_EXITING.union(PinControls::NMI_EXITING);
const OPTIONAL_PIN: PinControls = PinControls::VIRTUAL_NMIS.union(PinControls::PREEMPTION_TIMER);

const REQUIRED_PRIMARY: PrimaryControls = PrimaryControls::TSC_OFFSETTING
    .union(PrimaryControls::HLT_EXITING)
    .union(PrimaryControls::MWAIT_EXITING)
    .union(PrimaryControls::MONITOR_EXITING)
    .union(PrimaryControls::RDPMC_EXITING)
    .union(PrimaryControls::CR8_LOAD_EXITING)
    .union(PrimaryControls::CR8_STORE_EXITING)
    .union(PrimaryControls::MOV_DR_EXITING)
    .union(PrimaryControls::IO_BITMAPS)
    .union(PrimaryControls::MSR_BITMAPS)
    .union(PrimaryControls::SECONDARY_CONTROLS);
/// With EPT a guest's CR3 is its own affair. These are 1 by default, and 0 only by the "true" capability MSRs.
const FORBIDDEN_PRIMARY: PrimaryControls =
    PrimaryControls::CR3_LOAD_EXITING.union(PrimaryControls::CR3_STORE_EXITING);

const REQUIRED_SECONDARY: SecondaryControls =
    SecondaryControls::EPT.union(SecondaryControls::UNRESTRICTED_GUEST);
/// RDTSCP and INVPCID are instructions that a guest finds in the CPU's own CPUID bits: without these controls they are #UD.
const OPTIONAL_SECONDARY: SecondaryControls = SecondaryControls::VPID
    .union(SecondaryControls::WBINVD_EXITING)
    .union(SecondaryControls::ENCLS_EXITING)
    .union(SecondaryControls::ENCLV_EXITING)
    .union(SecondaryControls::RDTSCP)
    .union(SecondaryControls::INVPCID);

const REQUIRED_EXIT: ExitControls = ExitControls::HOST_ADDRESS_SPACE_SIZE
    .union(ExitControls::SAVE_DEBUG_CONTROLS)
    .union(ExitControls::LOAD_PAT)
    .union(ExitControls::SAVE_EFER)
    .union(ExitControls::LOAD_EFER);
const OPTIONAL_EXIT: ExitControls = ExitControls::SAVE_PREEMPTION_TIMER;

const REQUIRED_ENTRY: EntryControls = EntryControls::LOAD_DEBUG_CONTROLS
    .union(EntryControls::LOAD_PAT)
    .union(EntryControls::LOAD_EFER);
/// Set and cleared as the guest enters and leaves IA-32e mode.
const SWITCHED_ENTRY: EntryControls = EntryControls::IA32E_MODE_GUEST;

/// The capability MSRs' values.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Registers {
    /// IA32_VMX_BASIC.
    pub basic: u64,
    /// IA32_VMX_MISC.
    pub misc: u64,
    /// Pin-based controls; the "true" register where there is one, as below.
    pub pin: u64,
    /// Primary processor-based controls.
    pub primary: u64,
    /// Secondary processor-based controls; 0 where there are none.
    pub secondary: u64,
    /// VM-exit controls.
    pub exit: u64,
    /// VM-entry controls.
    pub entry: u64,
    /// IA32_VMX_EPT_VPID_CAP; 0 where there is neither.
    pub ept_vpid: u64,
}

impl Registers {
    /// Reads them from a CPU that has VMX.
    pub fn read() -> Self {
        let basic = msr::read(Msr::IA32_VMX_BASIC);
        // Bit 55: there are "true" registers, which allow to clear some controls that are 1 by default (SDM A.2).
        let either = |plain, exact| msr::read(if basic & 1 << 55 != 0 { exact } else { plain });
        let primary = either(
            Msr::IA32_VMX_PROCBASED_CTLS,
            Msr::IA32_VMX_TRUE_PROCBASED_CTLS,
        );
        let has = |allowed: u64, bit: u32| allowed >> 32 & u64::from(bit) != 0;
        let secondary = if has(primary, PrimaryControls::SECONDARY_CONTROLS.bits()) {
            msr::read(Msr::IA32_VMX_PROCBASED_CTLS2)
        } else {
            0
        };
        let tables = SecondaryControls::EPT.union(SecondaryControls::VPID).bits();
        Self {
            basic,
            misc: msr::read(Msr::IA32_VMX_MISC),
            pin: either(
                Msr::IA32_VMX_PINBASED_CTLS,
                Msr::IA32_VMX_TRUE_PINBASED_CTLS,
            ),
            primary,
            secondary,
            exit: either(Msr::IA32_VMX_EXIT_CTLS, Msr::IA32_VMX_TRUE_EXIT_CTLS),
            entry: either(Msr::IA32_VMX_ENTRY_CTLS, Msr::IA32_VMX_TRUE_ENTRY_CTLS),
            ept_vpid: if has(secondary, tables) {
                msr::read(Msr::IA32_VMX_EPT_VPID_CAP)
            } else {
                0
            },
        }
    }
}

/// Folds what is wanted with one capability MSR: bits 31:0 are those that must be 1, bits 63:32 those that may be 1 (SDM
/// A.3). `None` where a required bit must be 0 or a forbidden one must be 1.
const fn fold(allowed: u64, required: u32, optional: u32, forbidden: u32) -> Option<u32> {
    let (must, may) = (allowed as u32, (allowed >> 32) as u32);
    if required & !may != 0 || forbidden & must != 0 {
        return None;
    }
    Some(must | required | optional & may)
}

/// The controls of every vCPU, and what may be used besides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Controls {
    /// Pin-based.
    pub pin: PinControls,
    /// Primary processor-based.
    pub primary: PrimaryControls,
    /// Secondary processor-based.
    pub secondary: SecondaryControls,
    /// VM exit.
    pub exit: ExitControls,
    /// VM entry, outside IA-32e mode.
    pub entry: EntryControls,
    /// VMCS revision identifier.
    pub revision: u32,
    /// The preemption timer counts down when this bit of the TSC changes; `None` without a usable timer.
    pub timer_rate: Option<u32>,
    /// How translations are forgotten.
    pub flush: FlushTypes,
    /// The CPU can keep a guest's local APIC: [`Controls::KEEP_PRIMARY`] and [`Controls::KEEP_SECONDARY`] may be set.
    pub keeps_apics: bool,
}

/// The types of INVEPT and INVVPID that this CPU has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlushTypes {
    /// INVEPT of one EPT pointer.
    pub ept_single: bool,
    /// INVEPT of all.
    pub ept_all: bool,
    /// INVVPID of one VPID.
    pub vpid_single: bool,
    /// INVVPID of all.
    pub vpid_all: bool,
}

const FIRMWARE: &str =
    "this CPU is too old for Plinth, or the hypervisor below it hides the feature";

impl Controls {
    /// Set for a vCPU whose local APIC the CPU keeps. Accesses to CR8 do not exit then.
    pub const KEEP_PRIMARY: PrimaryControls = PrimaryControls::TPR_SHADOW;
    /// As [`Self::KEEP_PRIMARY`].
    pub const KEEP_SECONDARY: SecondaryControls = SecondaryControls::VIRTUAL_INTERRUPT_DELIVERY;
    /// Besides, while the local APIC is in x2APIC mode.
    pub const KEEP_X2APIC: SecondaryControls = SecondaryControls::VIRTUALIZE_X2APIC_MODE;

    /// What Plinth uses of a CPU with these capabilities, or the first thing that is lacking.
    pub fn new(registers: &Registers) -> Result<Self, Lack> {
        let lack = |what| Lack {
            what,
            advice: FIRMWARE,
        };
        if registers.primary >> 63 == 0 {
            return Err(lack(
                "VMX has no secondary controls, hence no EPT (SDM A.3.2)",
            ));
        }
        let secondary =
            |bit: SecondaryControls| registers.secondary >> 32 & u64::from(bit.bits()) != 0;
        if !secondary(SecondaryControls::EPT) {
            return Err(lack("no extended page tables (EPT)"));
        }
        if !secondary(SecondaryControls::UNRESTRICTED_GUEST) {
            return Err(lack(
                "VMX cannot run guests in real mode (unrestricted guest)",
            ));
        }
        if registers.ept_vpid & (1 << 6) == 0 || registers.ept_vpid & (1 << 14) == 0 {
            return Err(lack(
                "EPT without four levels or write-back tables (SDM A.10)",
            ));
        }
        let flush = FlushTypes {
            ept_single: registers.ept_vpid & 1 << 25 != 0,
            ept_all: registers.ept_vpid & 1 << 26 != 0,
            vpid_single: registers.ept_vpid & 1 << 41 != 0,
            vpid_all: registers.ept_vpid & 1 << 42 != 0,
        };
        if registers.ept_vpid & 1 << 20 == 0 || !(flush.ept_single || flush.ept_all) {
            return Err(lack("EPT without INVEPT (SDM A.10)"));
        }

        let primary = fold(registers.primary, REQUIRED_PRIMARY.bits(), 0, FORBIDDEN_PRIMARY.bits())
            .ok_or(lack("VMX lacks a primary control: TSC offsetting, HLT, MWAIT, MONITOR, RDPMC, CR8 or MOV-DR exiting, I/O or MSR bitmaps, or CR3 accesses without exits"))?;
        let mut optional = OPTIONAL_SECONDARY;
        if registers.ept_vpid & 1 << 32 == 0 || !(flush.vpid_single || flush.vpid_all) {
            // Tags that cannot be flushed are worse than none.
            optional.remove(SecondaryControls::VPID);
        }
        let secondary_has =
            |bits: SecondaryControls| !(registers.secondary >> 32) & u64::from(bits.bits()) == 0;
        let secondary = fold(
            registers.secondary,
            REQUIRED_SECONDARY.bits(),
            optional.bits(),
            0,
        )
        .ok_or(lack("VMX lacks a secondary control"))?;

        let mut exit = fold(
            registers.exit,
            REQUIRED_EXIT.bits(),
            OPTIONAL_EXIT.bits(),
            ExitControls::ACKNOWLEDGE_INTERRUPT.bits(),
        )
        .map(ExitControls::from_bits_retain)
        .ok_or(lack(
            "VMX lacks a VM-exit control: 64-bit host, PAT or EFER switching",
        ))?;
        let mut pin = fold(registers.pin, REQUIRED_PIN.bits(), OPTIONAL_PIN.bits(), 0)
            .map(PinControls::from_bits_retain)
            .ok_or(lack("VMX lacks exits by external interrupts or NMIs"))?;
        // The timer bounds a slice only if what is left of it survives the exits in between.
        let timer = pin.contains(PinControls::PREEMPTION_TIMER)
            && exit.contains(ExitControls::SAVE_PREEMPTION_TIMER);
        if !timer {
            pin.remove(PinControls::PREEMPTION_TIMER);
            exit.remove(ExitControls::SAVE_PREEMPTION_TIMER);
        }
        let entry = fold(
            registers.entry,
            REQUIRED_ENTRY.bits(),
            0,
            SWITCHED_ENTRY.bits(),
        )
        .filter(|_| registers.entry >> 32 & u64::from(SWITCHED_ENTRY.bits()) != 0)
        .ok_or(lack(
            "VMX lacks a VM-entry control: 64-bit guests, PAT or EFER switching",
        ))?;
        Ok(Self {
            pin,
            primary: PrimaryControls::from_bits_retain(primary),
            secondary: SecondaryControls::from_bits_retain(secondary),
            exit,
            entry: EntryControls::from_bits_retain(entry),
            revision: registers.basic as u32 & 0x7fff_ffff,
            timer_rate: timer.then_some(registers.misc as u32 & 0x1f),
            flush,
            keeps_apics: registers.primary >> 32 & u64::from(Self::KEEP_PRIMARY.bits()) != 0
                && secondary_has(Self::KEEP_SECONDARY.union(Self::KEEP_X2APIC)),
        })
    }

    /// Whether vCPUs have VPIDs.
    pub fn has_vpid(&self) -> bool {
        self.secondary.contains(SecondaryControls::VPID)
    }

    /// Whether guests' NMIs are blocked and unblocked by the CPU.
    pub fn has_virtual_nmis(&self) -> bool {
        self.pin.contains(PinControls::VIRTUAL_NMIS)
    }
}

/// The capability table.
pub fn table(registers: &Registers) -> Capabilities {
    let row = |name, there: bool, without| Capability {
        name,
        value: Cow::Borrowed(if there { "yes" } else { "no" }),
        without: if there { "" } else { without },
    };
    let bit = |value: u64, bit: u32| value >> bit & 1 != 0;
    let pin = |control: PinControls| registers.pin >> 32 & u64::from(control.bits()) != 0;
    let primary =
        |control: PrimaryControls| registers.primary >> 32 & u64::from(control.bits()) != 0;
    let secondary =
        |control: SecondaryControls| registers.secondary >> 32 & u64::from(control.bits()) != 0;
    let ept = registers.ept_vpid;
    let apic = "the kernel serves guests' local APICs";
    let timer = pin(PinControls::PREEMPTION_TIMER)
        && registers.exit >> 32 & u64::from(ExitControls::SAVE_PREEMPTION_TIMER.bits()) != 0;
    let mut rows = vec![
        row("EPT", secondary(SecondaryControls::EPT), "no guest can run"),
        row("EPT 2 MiB pages", bit(ept, 16), "4 KiB pages"),
        row("EPT 1 GiB pages", bit(ept, 17), "2 MiB pages"),
        row(
            "EPT accessed and dirty flags",
            bit(ept, 21),
            "pages that guests write are not told",
        ),
        row(
            "EPT execute-only pages",
            bit(ept, 0),
            "executable pages are readable",
        ),
        row(
            "INVEPT all contexts",
            bit(ept, 26),
            "one context at a time, when a vCPU is attached",
        ),
        row(
            "unrestricted guest",
            secondary(SecondaryControls::UNRESTRICTED_GUEST),
            "no guest can run",
        ),
        row(
            "VPID",
            secondary(SecondaryControls::VPID) && bit(ept, 32),
            "every entry and exit flushes the TLB",
        ),
        row(
            "INVVPID all contexts",
            bit(ept, 42),
            "a new VPID, flushed alone",
        ),
        row(
            "preemption timer",
            timer,
            "the local APIC's timer ends a slice",
        ),
        row(
            "virtual NMIs",
            pin(PinControls::VIRTUAL_NMIS),
            "an NMI waits for the exit after the last one's IRET",
        ),
        row(
            "TPR shadow",
            primary(PrimaryControls::TPR_SHADOW),
            "each access to CR8 exits",
        ),
        row(
            "APIC-register virtualisation",
            secondary(SecondaryControls::APIC_REGISTER_VIRTUALIZATION),
            "APIC accesses exit",
        ),
        row(
            "virtual-interrupt delivery",
            secondary(SecondaryControls::VIRTUAL_INTERRUPT_DELIVERY),
            apic,
        ),
        row(
            "x2APIC virtualisation",
            secondary(SecondaryControls::VIRTUALIZE_X2APIC_MODE),
            "x2APIC accesses exit",
        ),
        row(
            "posted interrupts",
            pin(PinControls::POSTED_INTERRUPTS),
            "an interrupt for a guest makes its CPU leave it for a moment",
        ),
        row(
            "page-modification log",
            secondary(SecondaryControls::PML),
            "not needed: written pages are found by their dirty flags",
        ),
        row(
            "TSC scaling",
            secondary(SecondaryControls::TSC_SCALING),
            "guests see the host's TSC frequency",
        ),
        row(
            "mode-based execute",
            secondary(SecondaryControls::MODE_BASED_EXECUTE),
            "one execute right for user and supervisor",
        ),
        row(
            "PAUSE-loop exiting",
            secondary(SecondaryControls::PAUSE_LOOP_EXITING),
            "a spinning vCPU uses up its slice",
        ),
        row(
            "WBINVD exiting",
            secondary(SecondaryControls::WBINVD_EXITING),
            "guests flush the caches themselves",
        ),
        row(
            "RDTSCP",
            secondary(SecondaryControls::RDTSCP),
            "#UD in guests",
        ),
        row(
            "INVPCID",
            secondary(SecondaryControls::INVPCID),
            "#UD in guests",
        ),
    ];
    rows.push(Capability {
        name: "preemption timer rate",
        value: Cow::Owned(format!(
            "one unit in {} TSC ticks",
            1u32 << (registers.misc & 0x1f)
        )),
        without: "",
    });
    rows.push(Capability {
        name: "VMCS revision",
        value: Cow::Owned(format!("{:#x}", registers.basic & 0x7fff_ffff)),
        without: "",
    });
    Capabilities { rows }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything may be 1, nothing must be.
    const ALL: Registers = Registers {
        basic: 0x00d8_1000_0000_002b,
        misc: 0x2000_0165,
        pin: 0xffff_ffff_0000_0016,
        primary: 0xffff_ffff_0400_6172,
        secondary: 0xffff_ffff_0000_0000,
        exit: 0xffff_ffff_0003_6dfb,
        entry: 0xffff_ffff_0000_11fb,
        ept_vpid: 0x0000_0f01_0633_4141,
    };

    /// Without a bit of the allowed-1 half.
    fn without(allowed: u64, bit: u32) -> u64 {
        allowed & !(u64::from(bit) << 32)
    }

    #[test]
    fn defaults_that_must_be_one_are_kept() {
        let controls = Controls::new(&ALL).unwrap();
        assert_eq!(controls.primary.bits() & 0x0400_6172, 0x0400_6172);
        assert_eq!(controls.entry.bits() & 0x11fb, 0x11fb);
        assert_eq!(controls.revision, 0x2b);
        assert_eq!(controls.timer_rate, Some(5));
        assert!(controls.has_vpid() && controls.has_virtual_nmis());
    }

    #[test]
    fn cr3_exits_that_cannot_be_off_are_a_lack() {
        let registers = Registers {
            primary: ALL.primary | 1 << 15,
            ..ALL
        };
        assert!(Controls::new(&registers).is_err());
    }

    #[test]
    fn required_features_are_named_when_lacking() {
        let says = |registers: &Registers, words: &str| {
            let lack = Controls::new(registers).unwrap_err();
            assert!(lack.what.contains(words), "{lack}");
        };
        says(
            &Registers {
                primary: without(ALL.primary, 1 << 31),
                ..ALL
            },
            "secondary",
        );
        says(
            &Registers {
                secondary: without(ALL.secondary, 1 << 1),
                ..ALL
            },
            "EPT",
        );
        says(
            &Registers {
                secondary: without(ALL.secondary, 1 << 7),
                ..ALL
            },
            "real mode",
        );
        says(
            &Registers {
                primary: without(ALL.primary, 1 << 28),
                ..ALL
            },
            "MSR bitmaps",
        );
        says(
            &Registers {
                ept_vpid: ALL.ept_vpid & !(1 << 14),
                ..ALL
            },
            "write-back",
        );
        says(
            &Registers {
                ept_vpid: ALL.ept_vpid & !(1 << 20),
                ..ALL
            },
            "INVEPT",
        );
        says(
            &Registers {
                exit: without(ALL.exit, 1 << 21),
                ..ALL
            },
            "EFER",
        );
    }

    #[test]
    fn optional_features_have_plain_paths() {
        let registers = Registers {
            pin: without(ALL.pin, 1 << 5 | 1 << 6),
            secondary: without(ALL.secondary, 1 << 3 | 1 << 5 | 1 << 6 | 1 << 12),
            ..ALL
        };
        let controls = Controls::new(&registers).unwrap();
        assert!(!controls.has_vpid() && !controls.has_virtual_nmis());
        assert_eq!(controls.timer_rate, None);
        assert!(
            !controls.exit.contains(ExitControls::SAVE_PREEMPTION_TIMER),
            "SDM 27.2.1.2: not without the timer"
        );
        let no_vpid = table(&registers)
            .rows
            .into_iter()
            .find(|row| row.name == "VPID")
            .unwrap();
        assert_eq!(no_vpid.value, "no");
        assert!(!no_vpid.without.is_empty());
    }

    #[test]
    fn local_apics_are_kept_with_all_that_it_takes() {
        assert!(Controls::new(&ALL).unwrap().keeps_apics);
        for lacking in [
            Registers {
                primary: without(ALL.primary, 1 << 21),
                ..ALL
            },
            Registers {
                secondary: without(ALL.secondary, 1 << 4),
                ..ALL
            },
            Registers {
                secondary: without(ALL.secondary, 1 << 9),
                ..ALL
            },
        ] {
            assert!(!Controls::new(&lacking).unwrap().keeps_apics);
        }
    }

    #[test]
    fn a_timer_that_cannot_be_saved_is_not_used() {
        let controls = Controls::new(&Registers {
            exit: without(ALL.exit, 1 << 22),
            ..ALL
        })
        .unwrap();
        assert!(!controls.pin.contains(PinControls::PREEMPTION_TIMER));
        assert_eq!(controls.timer_rate, None);
    }

    #[test]
    fn vpids_that_cannot_be_flushed_are_not_used() {
        let registers = Registers {
            ept_vpid: ALL.ept_vpid & !(1 << 41 | 1 << 42),
            ..ALL
        };
        assert!(!Controls::new(&registers).unwrap().has_vpid());
    }
}

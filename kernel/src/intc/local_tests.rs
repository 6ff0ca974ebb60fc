//! Tests of the local APIC, against SDM vol. 3 chapter 11.

use super::*;
use crate::rules::GeneralProtection as GP;
use crate::virt::VirtualApic;

// Offsets of registers (SDM vol. 3 table 11-1).
const ID: u32 = 0x20;
const VERSION: u32 = 0x30;
const TPR: u32 = 0x80;
const PPR: u32 = 0xa0;
const EOI: u32 = 0xb0;
const LDR: u32 = 0xd0;
const DFR: u32 = 0xe0;
const SVR: u32 = 0xf0;
const ISR: u32 = 0x100;
const TMR: u32 = 0x180;
const IRR: u32 = 0x200;
const ESR: u32 = 0x280;
const ICR: u32 = 0x300;
const ICR_HIGH: u32 = 0x310;
const LVT_TIMER: u32 = 0x320;
const LVT_LINT0: u32 = 0x350;
const LVT_LINT1: u32 = 0x360;
const LVT_ERROR: u32 = 0x370;
const INITIAL_COUNT: u32 = 0x380;
const CURRENT_COUNT: u32 = 0x390;
const DIVIDE: u32 = 0x3e0;

const XAPIC: u64 = 0xfee0_0800;
const X2APIC: u64 = 0xfee0_0c00;
const DISABLED: u64 = 0xfee0_0000;

struct Cpu {
    apic: LocalApic,
    requests: Requests,
    now: u64,
}

impl Cpu {
    /// As after power-up.
    fn reset(id: u32) -> Self {
        let requests = Requests::new(id);
        Self {
            apic: LocalApic::new(id == 0, &requests),
            requests,
            now: 0,
        }
    }

    /// In xAPIC mode, enabled by software.
    fn new(id: u32) -> Self {
        let mut cpu = Self::reset(id);
        assert_eq!(cpu.write(SVR, 0x1ff), Effect::Changed);
        cpu
    }

    /// In x2APIC mode, enabled by software.
    fn x2apic(id: u32) -> Self {
        let mut cpu = Self::new(id);
        assert_eq!(cpu.base(X2APIC), Ok(Effect::Changed));
        cpu
    }

    fn read(&mut self, offset: u32) -> u32 {
        self.apic.read_mmio(offset, &self.requests, || self.now)
    }

    fn write(&mut self, offset: u32, value: u32) -> Effect {
        self.apic
            .write_mmio(offset, value, &self.requests, || self.now)
    }

    fn rdmsr(&self, msr: u32) -> Result<u64, GP> {
        self.apic.read_msr(msr, &self.requests, || self.now)
    }

    fn wrmsr(&mut self, msr: u32, value: u64) -> Result<Effect, GP> {
        self.apic.write_msr(msr, value, &self.requests, || self.now)
    }

    fn base(&mut self, value: u64) -> Result<Effect, GP> {
        self.apic.set_base(value, &self.requests)
    }

    fn raise(&self, vector: u8) {
        self.requests.raise(vector, false);
    }

    fn deliverable(&self) -> Option<u8> {
        self.apic.deliverable(&self.requests)
    }

    /// Takes the deliverable interrupt.
    fn take(&mut self) -> Option<u8> {
        let vector = self.deliverable()?;
        assert!(self.apic.accept(vector, Origin::Requests, &self.requests));
        Some(vector)
    }

    fn lint(&mut self, lint: Lint, asserted: bool) {
        let _ = self.apic.set_lint(lint, asserted, &self.requests);
    }

    /// What ESR says after it was written.
    fn errors(&mut self) -> u32 {
        assert_eq!(self.write(ESR, 0), Effect::None);
        self.read(ESR)
    }
}

fn eoi(vector: u8, broadcast: bool) -> Effect {
    Effect::Eoi { vector, broadcast }
}

#[test]
fn the_state_after_power_up_and_init() {
    let mut cpu = Cpu::new(3);
    for (offset, value) in [(TPR, 0x55), (LDR, 0x0800_0000), (DFR, 0), (SVR, 0x1f0)] {
        let _ = cpu.write(offset, value);
    }
    for offset in (LVT_TIMER..=LVT_ERROR).step_by(16) {
        let _ = cpu.write(offset, 0x40);
    }
    let _ = cpu.write(ICR_HIGH, 0x0100_0000);
    let _ = cpu.write(ICR, 0x4041);
    let _ = cpu.write(DIVIDE, 0xb);
    let _ = cpu.write(INITIAL_COUNT, 1000);
    cpu.raise(0x80);
    cpu.requests.raise(0x81, true);
    cpu.take();
    let _ = cpu.read(0);
    let _ = cpu.errors();

    cpu.apic.init_reset(&cpu.requests);
    let mut fresh = Cpu::reset(3);
    for offset in (0x20..=DIVIDE).step_by(16) {
        let (after, expected) = (cpu.read(offset), fresh.read(offset));
        assert_eq!(after, expected, "{offset:#x}");
    }
    // SDM vol. 3 11.4.7.1.
    for (offset, value) in [
        (ID, 3 << 24),
        (TPR, 0),
        (LDR, 0),
        (DFR, u32::MAX),
        (SVR, 0xff),
        (ICR, 0),
        (ESR, 0),
        (INITIAL_COUNT, 0),
        (CURRENT_COUNT, 0),
        (DIVIDE, 0),
    ] {
        assert_eq!(fresh.read(offset), value, "{offset:#x}");
    }
    for offset in (LVT_TIMER..=LVT_ERROR).step_by(16) {
        assert_eq!(fresh.read(offset), 0x1_0000, "{offset:#x}");
    }
    assert_eq!(cpu.requests.addressing(), fresh.requests.addressing());
    assert_eq!(cpu.apic.next_deadline(), None);
    assert!(!cpu.requests.has_any());
}

#[test]
fn init_keeps_x2apic_mode_and_the_identifier() {
    let mut cpu = Cpu::x2apic(0x123);
    cpu.apic.init_reset(&cpu.requests);
    assert_eq!(cpu.apic.base(), X2APIC);
    assert_eq!(cpu.rdmsr(0x802), Ok(0x123));
    assert_eq!(cpu.rdmsr(0x80d), Ok(0x0012_0008));
    assert_eq!(cpu.rdmsr(0x80f), Ok(0xff));
    assert!(cpu.requests.matches(&Destination::Physical(0x123)));
}

#[test]
fn the_version_tells_of_six_entries_and_of_suppressed_broadcasts() {
    assert_eq!(Cpu::new(0).read(VERSION), 0x0105_0014);
}

#[test]
fn legal_and_illegal_changes_of_the_mode() {
    // SDM vol. 3 figure 11-27: from each state, where each value leads.
    let invalid = 0xfee0_0400;
    let cases = [
        (DISABLED, [Ok(Mode::XApic), Err(GP), Ok(Mode::Disabled)]),
        (
            XAPIC,
            [Ok(Mode::XApic), Ok(Mode::X2Apic), Ok(Mode::Disabled)],
        ),
        (X2APIC, [Err(GP), Ok(Mode::X2Apic), Ok(Mode::Disabled)]),
    ];
    for (from, expected) in cases {
        for (to, expected) in [XAPIC, X2APIC, DISABLED].into_iter().zip(expected) {
            let mut cpu = Cpu::new(1);
            assert!(cpu.base(from).is_ok());
            let result = cpu.base(to).map(|_| cpu.apic.mode());
            assert_eq!(result, expected, "{from:#x} to {to:#x}");
            assert_eq!(cpu.apic.base(), if expected.is_ok() { to } else { from });
            assert_eq!(cpu.base(invalid), Err(GP));
        }
    }
}

#[test]
fn the_base_stays_where_it_is_and_no_write_makes_a_bootstrap_processor() {
    let mut cpu = Cpu::new(0);
    assert_eq!(cpu.apic.base(), XAPIC | 0x100);
    assert_eq!(cpu.base(XAPIC), Ok(Effect::None));
    assert_eq!(cpu.apic.base(), XAPIC | 0x100);
    for bad in [
        0xfed4_0800,
        0xfee0_1800,
        XAPIC | 1,
        XAPIC | 1 << 9,
        XAPIC | 1 << 36,
        XAPIC | 1 << 63,
        0x800,
    ] {
        assert_eq!(cpu.base(bad), Err(GP), "{bad:#x}");
    }
    let mut other = Cpu::new(1);
    assert_eq!(other.base(XAPIC | 0x100), Ok(Effect::None));
    assert_eq!(other.apic.base(), XAPIC);
}

#[test]
fn a_disabled_apic_is_gone_and_comes_back_as_new() {
    let mut cpu = Cpu::new(0);
    cpu.raise(0x40);
    let _ = cpu.write(LVT_LINT0, 0x1_0700);
    assert!(!cpu.apic.accepts_extint());
    assert_eq!(cpu.base(DISABLED), Ok(Effect::Changed));
    assert_eq!(cpu.deliverable(), None);
    assert!(cpu.apic.accepts_extint(), "LINT0 is INTR");
    cpu.lint(Lint::Lint1, true);
    assert!(cpu.requests.take_nmi(), "LINT1 is NMI");
    assert_eq!(cpu.read(VERSION), u32::MAX);
    assert_eq!(cpu.write(SVR, 0x1ff), Effect::None);
    assert!(!cpu.requests.matches(&Destination::All));
    assert_eq!(cpu.base(XAPIC), Ok(Effect::Changed));
    assert_eq!((cpu.read(SVR), cpu.read(IRR + 0x20)), (0xff, 0));
}

#[test]
fn registers_are_where_the_mode_says() {
    let mut cpu = Cpu::new(1);
    assert_eq!((cpu.rdmsr(0x803), cpu.wrmsr(0x808, 0)), (Err(GP), Err(GP)));
    let mut cpu = Cpu::x2apic(1);
    assert_eq!(cpu.read(VERSION), u32::MAX);
    assert_eq!(cpu.write(TPR, 0x20), Effect::None);
    assert_eq!(cpu.rdmsr(0x808), Ok(0));
    assert_eq!(cpu.rdmsr(0x803), Ok(0x0105_0014));
}

#[test]
fn entering_x2apic_mode_keeps_what_was_set() {
    let mut cpu = Cpu::new(1);
    let _ = cpu.write(TPR, 0x20);
    let _ = cpu.write(LVT_TIMER, 0x2_0040);
    let _ = cpu.write(ICR_HIGH, 0x0300_0000);
    let _ = cpu.write(ICR, 0x4055);
    cpu.raise(0x80);
    cpu.take();
    assert_eq!(cpu.base(X2APIC), Ok(Effect::Changed));
    assert_eq!((cpu.rdmsr(0x808), cpu.rdmsr(0x80f)), (Ok(0x20), Ok(0x1ff)));
    assert_eq!((cpu.rdmsr(0x832), cpu.rdmsr(0x814)), (Ok(0x2_0040), Ok(1)));
    assert_eq!(cpu.rdmsr(0x830), Ok(0x4055), "but not the destination");
}

#[test]
fn accesses_of_x2apic_registers() {
    // SDM vol. 3 table 11-6: number, readable, and the bits that may be written.
    let mut table = vec![
        (0x02, true, None),
        (0x03, true, None),
        (0x08, true, Some(0xff)),
        (0x0a, true, None),
        (0x0b, false, Some(0)),
        (0x0d, true, None),
        (0x0f, true, Some(0x13ff)),
        (0x28, true, Some(0)),
        (0x30, true, Some(0xffff_ffff_000c_dfff)),
        (0x32, true, Some(0x7_10ff)),
        (0x33, true, Some(0x1_17ff)),
        (0x34, true, Some(0x1_17ff)),
        (0x35, true, Some(0x1_f7ff)),
        (0x36, true, Some(0x1_f7ff)),
        (0x37, true, Some(0x1_10ff)),
        (0x38, true, Some(0xffff_ffff)),
        (0x39, true, None),
        (0x3e, true, Some(0xb)),
        (0x3f, false, Some(0xff)),
    ];
    table.extend((0x10..0x28).map(|number| (number, true, None)));
    for number in 0..0x100u32 {
        let row = table.iter().find(|row| row.0 == number);
        let mut cpu = Cpu::x2apic(1);
        let msr = 0x800 + number;
        let readable = row.is_some_and(|row| row.1);
        assert_eq!(cpu.rdmsr(msr).is_ok(), readable, "{msr:#x}");
        let writable = row.and_then(|row| row.2);
        assert_eq!(cpu.wrmsr(msr, 0).is_ok(), writable.is_some(), "{msr:#x}");
        for bit in 0..64 {
            let legal = writable.is_some_and(|bits: u64| bits >> bit & 1 != 0);
            let written = cpu.wrmsr(msr, 1 << bit);
            assert_eq!(written.is_ok(), legal, "{msr:#x} bit {bit}");
        }
    }
}

#[test]
fn a_refused_write_changes_nothing() {
    let mut cpu = Cpu::x2apic(1);
    let before = cpu.apic.clone();
    assert_eq!(cpu.wrmsr(0x808, 0x120), Err(GP));
    assert_eq!(cpu.wrmsr(0x830, 1 << 20 | 0x40), Err(GP));
    assert_eq!(cpu.wrmsr(0x80b, 1), Err(GP));
    assert_eq!(cpu.apic, before);
}

#[test]
fn reads_of_bytes_and_writes_beside_a_register() {
    let mut cpu = Cpu::new(5);
    assert_eq!(cpu.read(ID + 3), 5);
    assert_eq!(cpu.read(ID + 4), 0);
    assert_eq!(cpu.write(TPR + 4, 0xff), Effect::None);
    assert_eq!(cpu.read(TPR), 0);
}

#[test]
fn registers_keep_their_bits_alone() {
    let mut cpu = Cpu::new(5);
    for (offset, kept) in [
        (ID, 5 << 24),
        (VERSION, 0x0105_0014),
        (TPR, 0xff),
        (LDR, 0xff00_0000),
        (DFR, u32::MAX),
        (SVR, 0x13ff),
        (ICR_HIGH, 0xff00_0000),
        (LVT_TIMER, 0x7_00ff),
        (0x330, 0x1_07ff),
        (0x340, 0x1_07ff),
        (LVT_LINT0, 0x1_a7ff),
        (LVT_LINT1, 0x1_a7ff),
        (LVT_ERROR, 0x1_00ff),
        (DIVIDE, 0xb),
    ] {
        let _ = cpu.write(offset, u32::MAX);
        assert_eq!(cpu.read(offset), kept, "{offset:#x}");
    }
    assert_eq!(cpu.write(DFR, 0), Effect::Changed);
    assert_eq!(cpu.read(DFR), 0x0fff_ffff);
    let _ = cpu.write(ICR, u32::MAX);
    assert_eq!(cpu.read(ICR), 0xc_cfff);
}

#[test]
fn addressing_is_published_with_every_write_of_it() {
    let mut cpu = Cpu::reset(1);
    assert!(!cpu.requests.addressing().software_enabled());
    let _ = cpu.write(SVR, 0x1ff);
    assert!(cpu.requests.addressing().software_enabled());
    let _ = cpu.write(LDR, 0x0200_0000);
    assert!(cpu.requests.matches(&Destination::Logical(2)));
    assert!(cpu.requests.matches(&Destination::Logical(0x82)));
    let _ = cpu.write(DFR, 0x0fff_ffff);
    assert!(!cpu.requests.matches(&Destination::Logical(0x82)));
    let _ = cpu.write(SVR, 0xff);
    assert!(!cpu.requests.addressing().software_enabled());
    assert_eq!(cpu.base(X2APIC), Ok(Effect::Changed));
    assert!(cpu.requests.addressing().x2apic());
}

#[test]
fn the_highest_interrupt_is_delivered_first() {
    let mut cpu = Cpu::new(0);
    for vector in [0x31, 0xef, 0x10, 0x80] {
        cpu.raise(vector);
    }
    assert_eq!(cpu.take(), Some(0xef));
    assert_eq!(cpu.take(), None, "all others have a lower priority");
    assert_eq!(cpu.read(ISR + 0x70), 1 << 15);
    assert_eq!(cpu.read(IRR + 0x70), 0);
    assert_eq!(cpu.read(IRR + 0x40), 1);
    assert_eq!(cpu.write(EOI, 0), eoi(0xef, false));
    assert_eq!(cpu.take(), Some(0x80));
    cpu.raise(0x90);
    assert_eq!(cpu.take(), Some(0x90), "nested");
    assert_eq!(cpu.write(EOI, 0), eoi(0x90, false));
    assert_eq!(cpu.write(EOI, 0), eoi(0x80, false));
    assert_eq!(cpu.take(), Some(0x31));
    assert_eq!(cpu.write(EOI, 0), eoi(0x31, false));
    assert_eq!(cpu.take(), Some(0x10));
    assert_eq!(cpu.write(EOI, 0), eoi(0x10, false));
    assert_eq!(cpu.write(EOI, 0), Effect::None, "nothing is in service");
}

#[test]
fn within_a_class_nothing_interrupts() {
    let mut cpu = Cpu::new(0);
    cpu.raise(0x81);
    assert_eq!(cpu.take(), Some(0x81));
    cpu.raise(0x8f);
    assert_eq!(cpu.deliverable(), None);
    cpu.raise(0x90);
    assert_eq!(cpu.deliverable(), Some(0x90));
}

#[test]
fn the_same_vector_waits_for_its_end() {
    let mut cpu = Cpu::new(0);
    cpu.raise(0x81);
    cpu.take();
    cpu.raise(0x81);
    assert_eq!(cpu.take(), None);
    assert_eq!(cpu.write(EOI, 0), eoi(0x81, false));
    assert_eq!(cpu.take(), Some(0x81));
}

#[test]
fn task_priority_holds_its_class_and_those_below() {
    let mut cpu = Cpu::new(0);
    cpu.raise(0x4f);
    let _ = cpu.write(TPR, 0x40);
    assert_eq!(cpu.deliverable(), None);
    let _ = cpu.write(TPR, 0x3f);
    assert_eq!(cpu.deliverable(), Some(0x4f));
    let _ = cpu.write(TPR, 0xff);
    cpu.raise(0xff);
    assert_eq!(cpu.deliverable(), None);
}

#[test]
fn processor_priority_is_that_of_task_and_service() {
    let mut cpu = Cpu::new(0);
    let _ = cpu.write(TPR, 0x25);
    assert_eq!(cpu.read(PPR), 0x25);
    cpu.raise(0x83);
    cpu.take();
    assert_eq!(cpu.read(PPR), 0x80, "the class of the one in service alone");
    let _ = cpu.write(TPR, 0x95);
    assert_eq!(cpu.read(PPR), 0x95);
    let _ = cpu.write(TPR, 0x81);
    assert_eq!(cpu.read(PPR), 0x81, "equal classes");
    let _ = cpu.write(PPR, 0);
    assert_eq!(cpu.read(PPR) & 0xf0, 0x80, "read-only");
}

#[test]
fn cr8_is_the_class_of_the_task_priority() {
    let mut cpu = Cpu::new(0);
    let _ = cpu.write(TPR, 0x47);
    assert_eq!(cpu.apic.task_priority(), 4);
    assert_eq!(cpu.apic.set_task_priority(9), Effect::Changed);
    assert_eq!(cpu.read(TPR), 0x90);
}

#[test]
fn the_end_of_a_level_is_told_unless_software_tells_it_itself() {
    let mut cpu = Cpu::new(0);
    cpu.requests.raise(0x51, true);
    assert_eq!(cpu.read(TMR + 0x20), 1 << 17);
    cpu.take();
    assert_eq!(cpu.write(EOI, 0), eoi(0x51, true));
    let _ = cpu.write(SVR, 0x11ff);
    cpu.requests.raise(0x51, true);
    cpu.take();
    assert_eq!(cpu.write(EOI, 0), eoi(0x51, false));
}

#[test]
fn an_edge_that_comes_while_a_level_is_served_does_not_swallow_its_end() {
    let mut cpu = Cpu::new(0);
    cpu.requests.raise(0x51, true);
    cpu.take();
    cpu.raise(0x51);
    assert_eq!(cpu.read(TMR + 0x20), 0);
    assert_eq!(cpu.write(EOI, 0), eoi(0x51, true));
    cpu.take();
    assert_eq!(cpu.write(EOI, 0), eoi(0x51, false));
}

#[test]
fn an_end_is_offered_of_an_edge_that_is_alone() {
    let mut cpu = Cpu::new(0);
    cpu.requests.raise(0x41, false);
    assert!(
        cpu.apic
            .accept_and_offer_end(0x41, Origin::Requests, &cpu.requests)
    );
    assert!(cpu.apic.offers_end());
    // Beside it none is, and it is settled first.
    cpu.apic.settle_end(false);
    cpu.requests.raise(0x61, false);
    assert!(
        !cpu.apic
            .accept_and_offer_end(0x61, Origin::Requests, &cpu.requests)
    );
    assert_eq!(cpu.write(EOI, 0), eoi(0x61, false));
    assert_eq!(cpu.write(EOI, 0), eoi(0x41, false), "it is an edge again");
    // Nor of a level, nor while another waits.
    cpu.requests.raise(0x41, true);
    assert!(
        !cpu.apic
            .accept_and_offer_end(0x41, Origin::Requests, &cpu.requests)
    );
    assert_eq!(cpu.write(EOI, 0), eoi(0x41, true));
    cpu.requests.raise(0x41, false);
    cpu.requests.raise(0x31, false);
    assert!(
        !cpu.apic
            .accept_and_offer_end(0x41, Origin::Requests, &cpu.requests)
    );
}

/// By the guest itself, or by a write all the same, of which the caller is told whether broadcasts are suppressed or not.
#[test]
fn an_offered_end_is_settled() {
    const SUPPRESSED: u32 = 0x1ff | 1 << 12;
    for spurious in [0x1ff, SUPPRESSED] {
        let mut cpu = Cpu::new(0);
        assert_eq!(cpu.write(SVR, spurious), Effect::Changed);
        for is_told in [false, true, false] {
            cpu.requests.raise(0x41, false);
            assert!(
                cpu.apic
                    .accept_and_offer_end(0x41, Origin::Requests, &cpu.requests)
            );
            if is_told {
                assert_eq!(cpu.write(EOI, 0), eoi(0x41, true), "{spurious:#x}");
                assert!(cpu.apic.offers_end());
            }
            cpu.apic.settle_end(!is_told);
            assert!(!cpu.apic.offers_end());
            assert_eq!(cpu.read(ISR + 0x20), 0);
            assert_eq!(cpu.write(EOI, 0), Effect::None);
        }
    }
}

#[test]
fn what_did_not_reach_the_guest_is_pending_again() {
    let mut cpu = Cpu::new(0);
    cpu.raise(0x40);
    cpu.take();
    cpu.requests.raise(0x51, true);
    cpu.take();
    cpu.apic.put_back(0x51, &cpu.requests);
    assert_eq!(cpu.read(ISR + 0x20), 1, "the other one is still in service");
    assert_eq!(cpu.read(IRR + 0x20), 1 << 17);
    assert_eq!(cpu.read(PPR), 0x40);
    assert_eq!(cpu.take(), Some(0x51));
    assert_eq!(cpu.write(EOI, 0), eoi(0x51, true));
    cpu.apic.put_back(0x51, &cpu.requests);
    assert_eq!(cpu.deliverable(), None, "it is over");
}

#[test]
fn disabling_by_software_masks_and_holds() {
    let mut cpu = Cpu::new(1);
    let _ = cpu.write(LVT_TIMER, 0x40);
    let _ = cpu.write(LVT_LINT1, 0x400);
    cpu.raise(0x50);
    let _ = cpu.write(SVR, 0xff);
    assert_eq!(cpu.read(LVT_TIMER), 0x1_0040);
    assert_eq!(cpu.read(LVT_LINT1), 0x1_0400);
    let _ = cpu.write(LVT_TIMER, 0x40);
    assert_eq!(cpu.read(LVT_TIMER), 0x1_0040, "the mask cannot be cleared");
    assert_eq!(cpu.deliverable(), Some(0x50), "what was pending is held");
    assert_eq!(cpu.write(ICR, 0x4_0060), Effect::None);
    assert_eq!(cpu.read(IRR + 0x30), 0, "nothing new comes in");
    let _ = cpu.write(ICR_HIGH, 0);
    assert!(
        matches!(cpu.write(ICR, 0x4060), Effect::Send(_)),
        "IPIs go out"
    );
    let _ = cpu.write(SVR, 0x1ff);
    assert_eq!(cpu.read(LVT_TIMER), 0x1_0040, "enabling unmasks nothing");
}

#[test]
fn a_command_is_sent_with_its_lower_half() {
    let mut cpu = Cpu::new(1);
    assert_eq!(cpu.write(ICR_HIGH, 0x0200_0000), Effect::None);
    assert_eq!(
        cpu.write(ICR, 0x4041),
        Effect::Send(Message {
            destination: Destination::Physical(2),
            delivery: Delivery::Fixed(0x41),
            level: false,
        })
    );
    assert_eq!((cpu.read(ICR_HIGH), cpu.read(ICR)), (0x0200_0000, 0x4041));
    let mut cpu = Cpu::x2apic(1);
    let sent = cpu.wrmsr(0x830, 0x1234_5678_0000_0441);
    assert_eq!(
        sent,
        Ok(Effect::Send(Message {
            destination: Destination::Physical(0x1234_5678),
            delivery: Delivery::Nmi,
            level: false,
        }))
    );
    assert_eq!(cpu.rdmsr(0x830), Ok(0x1234_5678_0000_0441));
    let sent = cpu.wrmsr(0x830, 0x1041);
    assert!(matches!(sent, Ok(Effect::Send(_))), "{sent:?}");
    assert_eq!(cpu.rdmsr(0x830), Ok(0x41), "delivery status reads 0");
}

#[test]
fn an_interrupt_to_oneself() {
    let mut cpu = Cpu::new(7);
    assert_eq!(cpu.write(ICR, 0x4_4041), Effect::SelfInterrupt);
    let _ = cpu.write(ICR_HIGH, 7 << 24);
    assert_eq!(cpu.write(ICR, 0x4042), Effect::SelfInterrupt);
    assert_eq!(cpu.read(IRR + 0x20), 0b110);
    let mut cpu = Cpu::x2apic(7);
    assert_eq!(cpu.wrmsr(0x83f, 0x43), Ok(Effect::SelfInterrupt));
    assert_eq!(cpu.deliverable(), Some(0x43));
    assert_eq!(cpu.rdmsr(0x830), Ok(0), "ICR is another register");
    assert!(!cpu.requests.is_level(0x43));
}

#[test]
fn errors_are_latched_by_a_write() {
    let mut cpu = Cpu::new(1);
    let _ = cpu.write(ICR, 0x400f);
    assert_eq!(cpu.read(ESR), 0, "not yet");
    assert_eq!(cpu.errors(), 1 << 5);
    assert_eq!(cpu.read(ESR), 1 << 5, "reading clears nothing");
    assert_eq!(cpu.errors(), 0, "the second write does");
}

#[test]
fn the_kinds_of_errors() {
    let mut cpu = Cpu::new(1);
    assert_eq!(cpu.write(ICR, 0x4_400f), Effect::Changed);
    assert_eq!(cpu.errors(), 1 << 5, "send illegal vector, to oneself");
    assert_eq!(cpu.write(ICR, 0x4003), Effect::Changed);
    assert_eq!(cpu.errors(), 1 << 5, "send illegal vector");
    cpu.raise(0x0f);
    assert!(cpu.requests.has_signals());
    assert_eq!(cpu.apic.receive(&cpu.requests), Effect::Changed);
    assert_eq!(cpu.apic.receive(&cpu.requests), Effect::None);
    assert_eq!(cpu.errors(), 1 << 6, "receive illegal vector");
    cpu.raise(0x0f);
    assert_eq!(cpu.errors(), 1 << 6, "and without looking for it");
    for offset in [0x00, 0x10, 0x40, 0x290, 0x2f0, 0x3a0, 0x3f0, 0x400, 0xff0] {
        assert_eq!(cpu.read(offset), 0);
        assert_eq!(cpu.errors(), 1 << 7, "illegal register {offset:#x}");
        assert_eq!(cpu.write(offset, 1), Effect::Changed);
        assert_eq!(cpu.errors(), 1 << 7, "illegal register {offset:#x}");
    }
    for offset in (0x80..=0x280).chain(0x300..=0x390).step_by(16) {
        let _ = cpu.read(offset);
        assert_eq!(cpu.errors(), 0, "legal register {offset:#x}");
    }
    let mut cpu = Cpu::x2apic(1);
    assert_eq!(cpu.wrmsr(0x83f, 3), Ok(Effect::Changed));
    assert_eq!(cpu.wrmsr(0x828, 0), Ok(Effect::None));
    assert_eq!(cpu.rdmsr(0x828), Ok(1 << 5));
}

#[test]
fn an_error_interrupts_once_until_the_status_is_written() {
    let mut cpu = Cpu::new(1);
    let _ = cpu.write(ICR, 0x4001);
    assert_eq!(cpu.deliverable(), None, "masked");
    let _ = cpu.write(LVT_ERROR, 0xfe);
    assert_eq!(cpu.deliverable(), None, "the error is past");
    let _ = cpu.write(ICR, 0x4001);
    assert_eq!(cpu.take(), Some(0xfe));
    assert_eq!(cpu.write(EOI, 0), eoi(0xfe, false));
    let _ = cpu.write(ICR, 0x4001);
    assert_eq!(cpu.deliverable(), None);
    let _ = cpu.write(ESR, 0);
    let _ = cpu.write(ICR, 0x4001);
    assert_eq!(cpu.take(), Some(0xfe));
}

#[test]
fn an_error_interrupt_with_an_illegal_vector_ends() {
    let mut cpu = Cpu::new(1);
    let _ = cpu.write(LVT_ERROR, 0x03);
    let _ = cpu.write(ICR, 0x4001);
    assert_eq!(cpu.deliverable(), None);
    assert_eq!(cpu.errors(), 1 << 5 | 1 << 6);
}

#[test]
fn the_timer_interrupts_unless_masked() {
    let mut cpu = Cpu::new(0);
    let _ = cpu.write(DIVIDE, 0xb);
    let _ = cpu.write(LVT_TIMER, 0x1_0040);
    assert_eq!(cpu.write(INITIAL_COUNT, 1000), Effect::Timer);
    assert_eq!(cpu.apic.next_deadline(), None, "masked");
    cpu.now = 400;
    assert_eq!(cpu.read(CURRENT_COUNT), 600, "but it counts");
    let _ = cpu.write(LVT_TIMER, 0x40);
    assert_eq!(cpu.apic.next_deadline(), Some(1000));
    assert!(!cpu.apic.expire(&cpu.requests, 999));
    assert!(cpu.apic.expire(&cpu.requests, 1000));
    assert_eq!(cpu.take(), Some(0x40));
    assert_eq!(cpu.write(EOI, 0), eoi(0x40, false));
    assert_eq!(cpu.apic.next_deadline(), None);
}

#[test]
fn what_expired_while_masked_does_not_interrupt_later() {
    for mode in [0, 0x4_0000] {
        let mut cpu = Cpu::new(0);
        let _ = cpu.write(LVT_TIMER, 0x1_0040 | mode);
        let _ = cpu.write(INITIAL_COUNT, 500);
        let _ = cpu.apic.set_tsc_deadline(1000);
        cpu.now = 2000;
        let _ = cpu.write(LVT_TIMER, 0x40 | mode);
        assert!(!cpu.apic.expire(&cpu.requests, cpu.now));
        assert_eq!((cpu.deliverable(), cpu.apic.tsc_deadline()), (None, 0));
    }
}

#[test]
fn a_change_of_the_timer_comes_after_the_expiry_before_it() {
    for change in [(LVT_TIMER, 0x1_0040), (INITIAL_COUNT, 0), (DIVIDE, 0)] {
        let mut cpu = Cpu::new(0);
        let _ = cpu.write(LVT_TIMER, 0x40);
        let _ = cpu.write(INITIAL_COUNT, 500);
        cpu.now = 1000;
        let _ = cpu.write(change.0, change.1);
        assert_eq!(cpu.deliverable(), Some(0x40), "{:#x}", change.0);
    }
}

#[test]
fn tsc_deadline_mode() {
    let mut cpu = Cpu::x2apic(0);
    assert_eq!(cpu.apic.set_tsc_deadline(500), Effect::Timer);
    assert_eq!(cpu.apic.tsc_deadline(), 0, "another mode");
    assert_eq!(cpu.wrmsr(0x832, 0x4_00ec), Ok(Effect::Changed));
    let _ = cpu.apic.set_tsc_deadline(500);
    assert_eq!(cpu.apic.tsc_deadline(), 500);
    assert_eq!(cpu.apic.next_deadline(), Some(500));
    assert!(cpu.apic.expire(&cpu.requests, 501));
    assert_eq!(cpu.apic.tsc_deadline(), 0);
    assert_eq!(cpu.take(), Some(0xec));
    let _ = cpu.apic.set_tsc_deadline(900);
    assert_eq!(cpu.wrmsr(0x832, 0x0_00ec), Ok(Effect::Changed));
    assert_eq!(cpu.apic.next_deadline(), None, "disarmed");
}

#[test]
fn a_timer_with_an_illegal_vector_is_an_error() {
    let mut cpu = Cpu::new(0);
    let _ = cpu.write(LVT_TIMER, 0x0f);
    let _ = cpu.write(INITIAL_COUNT, 1);
    assert!(!cpu.apic.expire(&cpu.requests, 1000));
    assert_eq!((cpu.deliverable(), cpu.errors()), (None, 1 << 6));
}

#[test]
fn virtual_wire_mode() {
    let mut cpu = Cpu::reset(0);
    assert!(!cpu.apic.accepts_extint());
    cpu.apic.set_virtual_wire(&cpu.requests);
    assert!(cpu.apic.accepts_extint());
    assert!(cpu.requests.addressing().software_enabled());
    assert_eq!((cpu.read(LVT_LINT0), cpu.read(LVT_LINT1)), (0x700, 0x400));
    cpu.lint(Lint::Lint0, true);
    assert_eq!(cpu.deliverable(), None, "the PIC has the vector");
    cpu.lint(Lint::Lint1, true);
    cpu.lint(Lint::Lint1, true);
    assert!(cpu.requests.take_nmi());
    cpu.lint(Lint::Lint1, false);
    assert!(!cpu.requests.take_nmi(), "NMI is an edge");
    let _ = cpu.write(LVT_LINT0, 0x1_0700);
    assert!(!cpu.apic.accepts_extint());
}

#[test]
fn a_fixed_interrupt_of_a_pin() {
    let mut cpu = Cpu::new(0);
    let _ = cpu.write(LVT_LINT0, 0x40);
    cpu.lint(Lint::Lint0, true);
    assert_eq!(cpu.take(), Some(0x40));
    cpu.lint(Lint::Lint0, true);
    assert_eq!(cpu.write(EOI, 0), eoi(0x40, false));
    assert_eq!(cpu.deliverable(), None, "no second edge");
}

#[test]
fn a_level_of_a_pin_comes_again_until_it_is_gone() {
    let mut cpu = Cpu::new(0);
    cpu.lint(Lint::Lint0, true);
    let _ = cpu.write(LVT_LINT0, 0x8040);
    assert_eq!(cpu.take(), Some(0x40), "unmasked while asserted");
    assert_eq!(cpu.read(LVT_LINT0), 0xc040, "remote IRR");
    assert_eq!(cpu.deliverable(), None);
    assert_eq!(cpu.write(EOI, 0), eoi(0x40, true));
    assert_eq!(cpu.take(), Some(0x40));
    cpu.lint(Lint::Lint0, false);
    assert_eq!(cpu.write(EOI, 0), eoi(0x40, true));
    assert_eq!((cpu.deliverable(), cpu.read(LVT_LINT0)), (None, 0x8040));
}

/// A CPU that keeps a local APIC, as SDM vol. 3 30.2 says.
struct Keeping(VirtualApic);

impl Keeping {
    fn top(words: &[u64; 4]) -> u8 {
        (0..=255)
            .rev()
            .find(|&vector: &u8| words[usize::from(vector / 64)] >> (vector % 64) & 1 != 0)
            .unwrap_or(0)
    }

    fn set(words: &mut [u64; 4], vector: u8, there: bool) {
        let bit = 1 << (vector % 64);
        let word = &mut words[usize::from(vector / 64)];
        *word = *word & !bit | if there { bit } else { 0 };
    }

    /// 30.2.2: evaluation and delivery.
    fn deliver(&mut self) -> Option<u8> {
        let vector = Self::top(&self.0.interrupts.requested);
        let priority = (self.0.task_priority >> 4).max(Self::top(&self.0.in_service) >> 4);
        if vector >> 4 <= priority {
            return None;
        }
        Self::set(&mut self.0.interrupts.requested, vector, false);
        Self::set(&mut self.0.in_service, vector, true);
        Some(vector)
    }

    /// 30.1.4: the vector, and whether there is an exit.
    fn end(&mut self) -> Option<(u8, bool)> {
        let vector = Some(Self::top(&self.0.in_service)).filter(|&vector| vector != 0)?;
        Self::set(&mut self.0.in_service, vector, false);
        let told = self.0.interrupts.told_ends[usize::from(vector / 64)];
        Some((vector, told >> (vector % 64) & 1 != 0))
    }
}

#[derive(Clone, Debug)]
enum Step {
    Raise(u8, bool),
    Priority(u8),
    Deliver,
    End,
    Fetch,
}

proptest::proptest! {
    /// A CPU that keeps the APIC is not to be told from the software.
    #[test]
    fn what_the_cpu_keeps_is_as_it_would_be_here(steps in proptest::collection::vec(step(), 0..200)) {
        let (mut here, mut lent) = (Cpu::x2apic(0), Cpu::x2apic(0));
        let mut keeping = Keeping(lent.apic.lend(&lent.requests));
        assert!(keeping.0.x2apic);
        for step in steps {
            match step {
                Step::Raise(vector, level) => {
                    here.requests.raise(vector, level);
                    lent.requests.raise(vector, level);
                    let more = lent.apic.lend_more(&lent.requests);
                    let kept = &mut keeping.0.interrupts;
                    kept.requested = std::array::from_fn(|index| kept.requested[index] | more.requested[index]);
                    kept.told_ends = std::array::from_fn(|index| kept.told_ends[index] | more.told_ends[index]);
                }
                Step::Priority(value) => {
                    assert_eq!(here.wrmsr(0x808, value.into()), Ok(Effect::Changed));
                    keeping.0.task_priority = value;
                }
                Step::Deliver => assert_eq!(keeping.deliver(), here.take()),
                Step::End => {
                    let expected = here.wrmsr(0x80b, 0).unwrap();
                    match keeping.end() {
                        None => assert_eq!(expected, Effect::None),
                        Some((vector, false)) => assert_eq!(expected, eoi(vector, false)),
                        Some((vector, true)) => {
                            lent.apic.take_back(&keeping.0, &lent.requests);
                            let Effect::Eoi { vector: ended, broadcast } = lent.apic.ended(vector, true, &lent.requests) else {
                                panic!("no end");
                            };
                            // One that is told without need is for the I/O APIC to ignore.
                            let needed = expected == eoi(vector, true);
                            assert!(ended == vector && (broadcast || !needed));
                            keeping = Keeping(lent.apic.lend(&lent.requests));
                        }
                    }
                }
                Step::Fetch => {
                    lent.apic.take_back(&keeping.0, &lent.requests);
                    for register in (0x10..=0x17).chain(0x20..=0x27).chain([0x08, 0x0a]) {
                        let msr = 0x800 + register;
                        assert_eq!(lent.rdmsr(msr), here.rdmsr(msr), "{msr:#x}");
                    }
                    keeping = Keeping(lent.apic.lend(&lent.requests));
                }
            }
        }
    }
}

fn step() -> impl proptest::strategy::Strategy<Value = Step> {
    use proptest::prelude::*;
    prop_oneof![
        4 => (16u8.., any::<bool>()).prop_map(|(vector, level)| Step::Raise(vector, level)),
        1 => any::<u8>().prop_map(Step::Priority),
        4 => Just(Step::Deliver),
        4 => Just(Step::End),
        2 => Just(Step::Fetch),
    ]
}

/// What may be done at once, and what comes between.
#[derive(Clone, Debug)]
enum AtOnce {
    Raise(u8, bool),
    ToItself(u8),
    Deliver,
    Priority(u8),
    End,
}

fn at_once() -> impl proptest::strategy::Strategy<Value = AtOnce> {
    use proptest::prelude::*;
    // So few that they meet.
    let vector = || any::<u8>().prop_map(|vector| vector & 0x41 | 0x20);
    prop_oneof![
        4 => (vector(), any::<bool>()).prop_map(|(vector, level)| AtOnce::Raise(vector, level)),
        2 => vector().prop_map(AtOnce::ToItself),
        4 => Just(AtOnce::Deliver),
        1 => any::<u8>().prop_map(AtOnce::Priority),
        4 => Just(AtOnce::End),
    ]
}

/// Writes EOI or TPR: at once on the one, where that can be, else as on the other.
fn write_at_once(quick: &mut Cpu, other: &mut Cpu, offset: u32, value: u8) {
    let is_eoi = offset == EOI;
    let (is_done, effect) = if quick.apic.mode() == Mode::X2Apic {
        let (msr, value) = (0x800 + (offset >> 4), value.into());
        let is_done = if is_eoi {
            quick.apic.write_eoi(value)
        } else {
            quick.apic.write_tpr(value)
        };
        if !is_done {
            let _ = quick.wrmsr(msr, value);
        }
        (is_done, other.wrmsr(msr, value).unwrap())
    } else {
        let value = value.into();
        let is_done = quick.apic.write_mmio_at_once(offset, value);
        if !is_done {
            let _ = quick.write(offset, value);
        }
        (is_done, other.write(offset, value))
    };
    let concerns = matches!(
        effect,
        Effect::Eoi {
            broadcast: true,
            ..
        }
    );
    assert!(!(is_done && concerns), "{effect:?}");
}

proptest::proptest! {
    /// What is done at once is what would be done otherwise, and concerns nobody else.
    #[test]
    fn at_once_is_as_otherwise(
        steps in proptest::collection::vec(at_once(), 0..40),
        is_x2apic: bool,
    ) {
        let new = if is_x2apic { Cpu::x2apic } else { Cpu::new };
        let (mut quick, mut other) = (new(0), new(0));
        for step in steps {
            match step {
                AtOnce::Raise(vector, level) => {
                    quick.requests.raise(vector, level);
                    other.requests.raise(vector, level);
                }
                AtOnce::Deliver => assert_eq!(quick.take(), other.take()),
                AtOnce::ToItself(vector) => {
                    let _ = other.apic.interrupt_self(vector, &other.requests);
                    if quick.apic.passes(vector, &quick.requests) {
                        assert!(quick.apic.accept(vector, Origin::Itself, &quick.requests));
                        assert_eq!(other.take(), Some(vector));
                    } else {
                        let _ = quick.apic.interrupt_self(vector, &quick.requests);
                    }
                }
                AtOnce::Priority(value) => write_at_once(&mut quick, &mut other, TPR, value),
                AtOnce::End => write_at_once(&mut quick, &mut other, EOI, 0),
            }
            for register in (0..0x40).map(|register| register << 4) {
                let at_once = quick.apic.read_mmio_at_once(register, &quick.requests, || 7);
                if is_x2apic {
                    assert_eq!(at_once, None);
                    let msr = 0x800 + (register >> 4);
                    assert_eq!(quick.rdmsr(msr), other.rdmsr(msr), "{msr:#x}");
                } else if let Some(at_once) = at_once {
                    assert_eq!(at_once, other.read(register), "{register:#x}");
                    assert_eq!(quick.read(register), at_once, "{register:#x}");
                }
            }
        }
    }
}

#[test]
fn an_interrupt_passes_that_is_delivered_next_and_alone() {
    let passes = |cpu: &Cpu, vector| cpu.apic.passes(vector, &cpu.requests);
    let mut cpu = Cpu::x2apic(0);
    assert!(passes(&cpu, 0x10) && passes(&cpu, 0x40));
    assert!(!passes(&cpu, 0xf), "it is illegal");
    let _ = cpu.wrmsr(0x808, 0x40);
    assert!(!passes(&cpu, 0x4f), "TPR is of its class");
    assert!(passes(&cpu, 0x50));
    assert!(cpu.apic.accept(0x50, Origin::Itself, &cpu.requests));
    assert!(!passes(&cpu, 0x5f), "one of its class is in service");
    assert!(passes(&cpu, 0x60));
    cpu.raise(0x20);
    assert!(!passes(&cpu, 0x60), "another waits");
    assert!(cpu.requests.take(0x20) && cpu.requests.raise_nmi());
    assert!(!passes(&cpu, 0x60), "an NMI waits");
    assert!(cpu.requests.take_nmi() && passes(&cpu, 0x60));
    let _ = cpu.wrmsr(0x80f, 0xff);
    assert!(!passes(&cpu, 0x60), "software has disabled it");
}

#[test]
fn a_disabled_apic_lends_no_requests() {
    let mut cpu = Cpu::new(0);
    cpu.raise(0x40);
    assert_eq!(cpu.base(DISABLED), Ok(Effect::Changed));
    cpu.requests.raise(0x50, false);
    let lent = cpu.apic.lend(&cpu.requests);
    assert_eq!(lent.interrupts.requested, [0; 4]);
    assert!(!lent.x2apic);
}

#[test]
fn x2apic_accesses_are_lent_while_software_has_it_enabled() {
    let mut cpu = Cpu::x2apic(0);
    assert!(cpu.apic.lend(&cpu.requests).x2apic);
    // Disabled, it does not take its own interrupts, which the CPU would not know.
    assert_eq!(cpu.wrmsr(0x80f, 0xff), Ok(Effect::Changed));
    assert!(!cpu.apic.lend(&cpu.requests).x2apic);
    let cpu = Cpu::new(0);
    assert!(!cpu.apic.lend(&cpu.requests).x2apic, "xAPIC mode");
}

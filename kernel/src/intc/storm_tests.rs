//! Random guests at the interrupt controllers: what holds whatever they do.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

/// What happens to a local APIC.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    Raise(u8, bool),
    Take,
    PutBack,
    End,
    Priority(u8),
    Read(u32),
    Write(u32, u32),
    Rdmsr(u32),
    Wrmsr(u32, u64),
    Base(u64),
    Deadline(u64),
    Cr8(u8),
    Pin(bool, bool),
    TscMoved(u64),
    Receive,
    Init,
    Pass(u64),
}

/// Those of a guest that behaves: its interrupts and their priorities alone.
pub fn tame() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (16u8.., any::<bool>()).prop_map(|(vector, level)| Event::Raise(vector, level)),
        4 => Just(Event::Take),
        1 => Just(Event::PutBack),
        3 => Just(Event::End),
        2 => any::<u8>().prop_map(Event::Priority),
    ]
}

/// Those of any guest.
pub fn wild() -> impl Strategy<Value = Event> {
    let offset = prop_oneof![
        8 => (0u32..0x40).prop_map(|register| register << 4),
        1 => any::<u32>(),
    ];
    let value = prop_oneof![
        any::<u32>(),
        any::<u32>().prop_map(|bits| bits & 0x7_c7ff),
        Just(0x1ff),
        0u32..0x100,
    ];
    let msr = prop_oneof![8 => 0x800u32..0x840, 1 => any::<u32>()];
    let base = prop_oneof![
        Just(0xfee0_0000u64),
        Just(0xfee0_0800),
        Just(0xfee0_0c00),
        any::<u64>(),
    ];
    prop_oneof![
        6 => tame(),
        4 => (offset.clone(), value.clone()).prop_map(|(offset, value)| Event::Write(offset, value)),
        2 => offset.prop_map(Event::Read),
        4 => (msr.clone(), value.clone()).prop_map(|(msr, value)| Event::Wrmsr(msr, value.into())),
        1 => any::<(u32, u64)>().prop_map(|(msr, value)| Event::Wrmsr(0x800 | msr & 0x3f, value)),
        2 => msr.prop_map(Event::Rdmsr),
        1 => base.prop_map(Event::Base),
        1 => any::<u64>().prop_map(Event::Deadline),
        1 => any::<u8>().prop_map(Event::Cr8),
        1 => any::<(bool, bool)>().prop_map(|(pin, asserted)| Event::Pin(pin, asserted)),
        1 => any::<u64>().prop_map(Event::TscMoved),
        1 => Just(Event::Receive),
        1 => any::<u8>().prop_map(|vector| Event::Raise(vector & 0x1f, false)),
        1 => prop_oneof![0u64..1000, any::<u64>()].prop_map(Event::Pass),
        1 => Just(Event::Init),
    ]
}

/// IRR, ISR as sets of vectors.
fn set(word: impl Fn(u8) -> u32) -> BTreeSet<u8> {
    let vectors = |index| {
        let word = word(index);
        (0..32u8)
            .filter(move |bit| word >> bit & 1 != 0)
            .map(move |bit| 32 * index + bit)
    };
    (0..8).flat_map(vectors).collect()
}

struct Guest {
    apic: LocalApic,
    requests: Requests,
    now: u64,
}

impl Guest {
    fn new() -> Self {
        let requests = Requests::new(0);
        let mut apic = LocalApic::new(true, &requests);
        apic.set_virtual_wire(&requests);
        Self {
            apic,
            requests,
            now: 0,
        }
    }

    /// ISR, read through a copy, which reads of registers cannot harm.
    fn in_service(&self) -> BTreeSet<u8> {
        let apic = &self.apic;
        set(|index| match apic.mode() {
            Mode::X2Apic => apic
                .read_msr(0x810 + u32::from(index), &self.requests, || self.now)
                .unwrap() as u32,
            _ => apic
                .clone()
                .read_mmio(0x100 + 16 * u32::from(index), &self.requests, || self.now),
        })
    }

    fn pending(&self) -> BTreeSet<u8> {
        set(|index| self.requests.irr_word(index))
    }

    fn take(&mut self) -> Option<u8> {
        let vector = self.apic.deliverable(&self.requests)?;
        self.apic
            .accept(vector, Origin::Requests, &self.requests)
            .then_some(vector)
    }

    fn end(&mut self) -> Effect {
        match self.apic.mode() {
            Mode::X2Apic => self
                .apic
                .write_msr(0x80b, 0, &self.requests, || self.now)
                .unwrap(),
            _ => self.apic.write_mmio(0xb0, 0, &self.requests, || self.now),
        }
    }

    fn does(&mut self, event: Event) {
        let (apic, requests, now) = (&mut self.apic, &self.requests, self.now);
        match event {
            Event::Raise(vector, level) => _ = requests.raise(vector, level),
            Event::Take => _ = self.take(),
            Event::PutBack => {
                if let Some(vector) = self.take() {
                    self.apic.put_back(vector, &self.requests);
                }
            }
            Event::End => _ = self.end(),
            Event::Priority(value) => _ = apic.write_mmio(0x80, value.into(), requests, || now),
            Event::Read(offset) => _ = apic.read_mmio(offset, requests, || now),
            Event::Write(offset, value) => _ = apic.write_mmio(offset, value, requests, || now),
            Event::Rdmsr(msr) => _ = apic.read_msr(msr, requests, || now),
            Event::Wrmsr(msr, value) => _ = apic.write_msr(msr, value, requests, || now),
            Event::Base(value) => _ = apic.set_base(value, requests),
            Event::Deadline(value) => _ = apic.set_tsc_deadline(value),
            Event::Cr8(class) => _ = apic.set_task_priority(class),
            Event::Pin(pin, asserted) => {
                let lint = if pin { Lint::Lint1 } else { Lint::Lint0 };
                _ = apic.set_lint(lint, asserted, requests);
            }
            Event::TscMoved(by) => {
                _ = apic.tsc_moved(by);
                self.now = now.wrapping_add(by);
            }
            Event::Receive => _ = apic.receive(requests),
            Event::Init => apic.init_reset(requests),
            Event::Pass(ticks) => {
                self.now = now.saturating_add(ticks).min(u64::MAX - 1);
                apic.expire(requests, self.now);
            }
        }
    }
}

/// A model of two sets and a register: each interrupt that is accepted ends at most once, the highest first, with the
/// trigger mode that it had; and what is accepted is always of a higher class than all that is in service.
pub fn accepts_by_priority(events: Vec<Event>) -> Result<(), TestCaseError> {
    let mut guest = Guest::new();
    let mut pending = BTreeMap::new();
    let mut service: Vec<(u8, bool)> = Vec::new();
    let mut priority = 0;
    for event in events {
        let serving = service.last().map_or(0, |&(vector, _)| vector >> 4);
        let expected = pending
            .last_key_value()
            .map(|(&vector, &level)| (vector, level))
            .filter(|&(vector, _)| vector >> 4 > serving.max(priority >> 4));
        let deliverable = guest.apic.deliverable(&guest.requests);
        prop_assert_eq!(deliverable, expected.map(|(vector, _)| vector));
        match event {
            Event::Raise(vector, level) => {
                let new = guest.requests.raise(vector, level);
                prop_assert_eq!(new, !pending.contains_key(&vector));
                *pending.entry(vector).or_insert(level) |= level;
            }
            Event::Take => {
                guest.take();
                if let Some((vector, level)) = expected {
                    pending.remove(&vector);
                    service.push((vector, level));
                }
            }
            Event::End => {
                let expected = match service.pop() {
                    Some((vector, broadcast)) => Effect::Eoi { vector, broadcast },
                    None => Effect::None,
                };
                prop_assert_eq!(guest.end(), expected);
            }
            Event::Priority(value) => {
                priority = value;
                guest.does(event);
            }
            other => guest.does(other),
        }
        prop_assert_eq!(guest.pending(), pending.keys().copied().collect());
        let in_service: BTreeSet<u8> = service.iter().map(|&(vector, _)| vector).collect();
        prop_assert_eq!(guest.in_service(), in_service);
        // The law of PPR (SDM vol. 3 11.8.3.1).
        let serving = service.last().map_or(0, |&(vector, _)| vector >> 4);
        let ppr = guest.apic.processor_priority();
        prop_assert_eq!(ppr >> 4, serving.max(priority >> 4));
        if priority >> 4 > serving {
            prop_assert_eq!(ppr, priority);
        } else if priority >> 4 < serving {
            prop_assert_eq!(ppr & 0xf, 0);
        }
    }
    Ok(())
}

/// Nothing that a guest does panics. Illegal vectors never appear, no two interrupts of one class are in service, and
/// what is deliverable is above them.
pub fn breaks_no_law(events: Vec<Event>) -> Result<(), TestCaseError> {
    let mut guest = Guest::new();
    for event in events {
        guest.does(event);
        let pending = guest.pending();
        prop_assert!(pending.first().is_none_or(|&vector| vector >= FIRST_VECTOR));
        if guest.apic.mode() == Mode::Disabled {
            prop_assert_eq!(guest.apic.deliverable(&guest.requests), None);
            continue;
        }
        let service = guest.in_service();
        prop_assert!(service.first().is_none_or(|&vector| vector >= FIRST_VECTOR));
        let classes: BTreeSet<u8> = service.iter().map(|vector| vector >> 4).collect();
        prop_assert_eq!(classes.len(), service.len());
        let ppr = guest.apic.processor_priority();
        prop_assert!(service.last().is_none_or(|vector| vector >> 4 <= ppr >> 4));
        if let Some(vector) = guest.apic.deliverable(&guest.requests) {
            prop_assert!(vector >> 4 > ppr >> 4);
            prop_assert_eq!(Some(&vector), pending.last());
        }
        let addressing = guest.requests.addressing();
        prop_assert!(addressing.hardware_enabled());
        prop_assert_eq!(addressing.x2apic(), guest.apic.mode() == Mode::X2Apic);
    }
    Ok(())
}

/// The whole way of a level: from the line through IRR and ISR to the end and back. As often as its handler ran, it had
/// been asserted; and while it is asserted and nothing is in service, it is pending.
pub fn goes_round(steps: Vec<u8>) -> Result<(), TestCaseError> {
    let mut guest = Guest::new();
    let mut io = IoApic::new();
    let requests = &guest.requests;
    let mut deliver = |message: &Message| {
        let accepts = requests.accepts(message);
        if accepts {
            requests.post(message);
        }
        accepts
    };
    io.write_mmio(0, 0x10 + 2 * 9, |_| false);
    io.write_mmio(0x10, 1 << 15 | 0x39, &mut deliver);
    let (mut asserted, mut serving) = (false, false);
    for step in steps {
        match step {
            0 | 1 => {
                asserted = step == 1;
                io.set_line(9, asserted, &mut deliver);
            }
            2 => {
                if let Some(vector) = guest.apic.deliverable(requests) {
                    prop_assert!(!serving, "twice without an end");
                    prop_assert_eq!(vector, 0x39);
                    serving = guest.apic.accept(vector, Origin::Requests, requests);
                }
            }
            3 => {
                let effect = guest.apic.write_mmio(0xb0, 0, requests, || 0);
                let expected = if serving {
                    Effect::Eoi {
                        vector: 0x39,
                        broadcast: true,
                    }
                } else {
                    Effect::None
                };
                prop_assert_eq!(effect, expected);
                if serving {
                    io.end_of_interrupt(0x39, &mut deliver);
                }
                serving = false;
            }
            _ => {
                if serving {
                    guest.apic.put_back(0x39, requests);
                    serving = false;
                }
            }
        }
        if asserted && !serving {
            prop_assert_eq!(guest.apic.deliverable(requests), Some(0x39), "lost");
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn interrupts_are_accepted_by_priority_and_end_once(events in prop::collection::vec(tame(), 0..100)) {
        accepts_by_priority(events)?;
    }

    #[test]
    fn a_storm_breaks_no_law(events in prop::collection::vec(wild(), 0..100)) {
        breaks_no_law(events)?;
    }

    /// A refused write and every read but that of a reserved register leave everything as it is.
    #[test]
    fn reads_and_refusals_have_no_effect(
        events in prop::collection::vec(wild(), 0..60),
        offset in 0u32..0x400,
        msr in 0x800u32..0x840,
        value in any::<u64>(),
    ) {
        let mut guest = Guest::new();
        for event in events {
            guest.does(event);
        }
        let state = |guest: &Guest| (guest.apic.clone(), guest.pending(), guest.requests.has_signals());
        let before = state(&guest);
        let reserved = matches!(offset >> 4, 0 | 1 | 4..=7 | 0x29..=0x2f | 0x3a..=0x3d | 0x3f);
        if !reserved {
            guest.does(Event::Read(offset));
        }
        guest.does(Event::Rdmsr(msr));
        prop_assert_eq!(state(&guest), before.clone());
        let refused = guest.apic.write_msr(msr, value, &guest.requests, || guest.now).is_err();
        if refused {
            prop_assert_eq!(state(&guest), before);
        }
    }

    /// Nothing that is sent has an illegal vector, and it is never level-triggered.
    #[test]
    fn what_is_sent_is_sound(command in any::<u64>(), x2apic in any::<bool>()) {
        let mut guest = Guest::new();
        if x2apic {
            guest.does(Event::Base(0xfee0_0c00));
        }
        let (apic, requests) = (&mut guest.apic, &guest.requests);
        let effect = if x2apic {
            apic.write_msr(0x830, command & 0xffff_ffff_000c_dfff, requests, || 0).unwrap()
        } else {
            _ = apic.write_mmio(0x310, (command >> 32) as u32, requests, || 0);
            apic.write_mmio(0x300, command as u32, requests, || 0)
        };
        if let Effect::Send(message) = effect {
            prop_assert!(!message.level);
            prop_assert!(message.delivery.vector().is_none_or(|vector| vector >= FIRST_VECTOR));
        }
    }

    #[test]
    fn a_level_goes_round(steps in prop::collection::vec(0u8..5, 0..200)) {
        goes_round(steps)?;
    }
}

//! What other CPUs and devices ask of a vCPU's local APIC.
//!
//! Everything is atomic and waits for nobody. Who raises something that was not raised before wakes the vCPU or makes it
//! exit; who finds it raised already need not, for somebody else does. All accesses are sequentially consistent: a vCPU says
//! that it sleeps and then looks here, a sender raises and then looks whether it sleeps, and one of them sees the other.

use bitfield_struct::bitfield;

use super::FIRST_VECTOR;
use super::message::{Delivery, Destination, Message};
use super::vectors::{half, highest, place};
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

/// How an APIC is to be addressed.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Addressing {
    /// IA32_APIC_BASE enables it.
    pub hardware_enabled: bool,
    /// Its spurious-interrupt vector register enables it: it takes interrupts.
    pub software_enabled: bool,
    /// It is in x2APIC mode.
    pub x2apic: bool,
    /// The flat model (DFR), else the cluster model.
    pub flat: bool,
    #[bits(4)]
    __: u8,
    /// The logical identifier of xAPIC mode (LDR bits 31:24).
    pub logical: u8,
    __: u16,
}

/// What is asked for and is no interrupt.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
struct Signals {
    nmi: bool,
    init: bool,
    startup: bool,
    /// An interrupt has arrived with a vector that is illegal.
    illegal: bool,
    #[bits(4)]
    __: u8,
    startup_vector: u8,
    __: u16,
}

/// INIT and start-up, in the order in which they came: INIT voids the start-ups before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Starts {
    /// There was an INIT.
    pub init: bool,
    /// There was a start-up, after it: its page of the first MiB. Who does not wait for one ignores it.
    pub page: Option<u8>,
}

/// The logical identifier of x2APIC mode: the cluster, and a bit in it (SDM vol. 3 11.12.10.2).
pub const fn x2apic_logical(id: u32) -> u32 {
    // 28 bits of the identifier are a cluster; the register has 16 for it.
    (id >> 4) << 16 | 1 << (id & 15)
}

/// The requests to one local APIC.
#[derive(Debug)]
pub struct Requests {
    id: u32,
    irr: [AtomicU64; 4],
    tmr: [AtomicU64; 4],
    signals: AtomicU32,
    addressing: AtomicU32,
}

impl Requests {
    /// No request, to an APIC that is disabled until it publishes otherwise.
    pub const fn new(id: u32) -> Self {
        Self {
            id,
            irr: [const { AtomicU64::new(0) }; 4],
            tmr: [const { AtomicU64::new(0) }; 4],
            signals: AtomicU32::new(0),
            addressing: AtomicU32::new(0),
        }
    }

    /// The APIC's identifier.
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// An interrupt arrives; whether its IRR bit was clear, and so the vCPU needs to be told. A vector that is illegal is
    /// noted as an error instead (SDM vol. 3 11.5.3, "receive illegal vector").
    pub fn raise(&self, vector: u8, level: bool) -> bool {
        if vector < FIRST_VECTOR {
            return !self.signal(|signals| signals.with_illegal(true)).illegal();
        }
        let (index, bit) = place(vector);
        let (Some(irr), Some(tmr)) = (self.irr.get(index), self.tmr.get(index)) else {
            return false;
        };
        // The trigger mode comes first: who sees the interrupt sees its trigger mode, too. It seldom changes, and a load is
        // cheaper than a locked operation.
        let was_level = tmr.load(SeqCst) & bit != 0;
        if level && !was_level {
            tmr.fetch_or(bit, SeqCst);
        } else if !level && was_level && irr.load(SeqCst) & bit == 0 {
            // Where an edge and a level share a vector and are pending at once, the level's end must be told.
            tmr.fetch_and(!bit, SeqCst);
        }
        irr.fetch_or(bit, SeqCst) & bit == 0
    }

    /// An interrupt arrives whose trigger mode is edge, and which is put into service instead of IRR, where it is not.
    #[inline(always)]
    pub(super) fn pass(&self, vector: u8) {
        let (index, bit) = place(vector);
        if let Some(tmr) = self.tmr.get(index)
            && tmr.load(SeqCst) & bit != 0
        {
            tmr.fetch_and(!bit, SeqCst);
        }
    }

    /// Does here what `message` says, whoever it is for; whether the vCPU needs to be told.
    pub fn post(&self, message: &Message) -> bool {
        match message.delivery {
            Delivery::Fixed(vector) | Delivery::LowestPriority(vector) => {
                self.raise(vector, message.level)
            }
            Delivery::Nmi => self.raise_nmi(),
            Delivery::Init => self.raise_init(),
            Delivery::StartUp(vector) => self.raise_startup(vector),
            Delivery::Smi | Delivery::InitDeassert | Delivery::ExtInt => false,
        }
    }

    /// Whether nothing is asked for: no interrupt, no NMI, no INIT, no start-up.
    #[inline(always)]
    pub fn is_quiet(&self) -> bool {
        self.any_interrupt() | u64::from(self.signals.load(SeqCst)) == 0
    }

    /// 0 where no vector is in IRR.
    #[inline(always)]
    fn any_interrupt(&self) -> u64 {
        self.irr.iter().fold(0, |any, word| any | word.load(SeqCst))
    }

    /// Whether there is a vector in IRR.
    #[inline(always)]
    pub fn has_interrupt(&self) -> bool {
        self.any_interrupt() != 0
    }

    /// The highest vector in IRR.
    #[inline]
    pub fn highest(&self) -> Option<u8> {
        highest(self.irr.each_ref().map(|word| word.load(SeqCst)))
    }

    /// Takes all of IRR: the CPU keeps them from now on.
    pub(super) fn take_all(&self) -> [u64; 4] {
        self.irr.each_ref().map(|word| {
            // Mostly there is none in a word, and a load is cheaper than a locked operation.
            if word.load(SeqCst) == 0 {
                0
            } else {
                word.swap(0, SeqCst)
            }
        })
    }

    /// Puts back what [`Self::take_all`] took, and the CPU has not delivered. Those of `levels` are level-triggered: an edge that came
    /// meanwhile has found no level to leave alone.
    pub(super) fn return_all(&self, words: [u64; 4], levels: [u64; 4]) {
        for (((irr, tmr), word), levels) in self.irr.iter().zip(&self.tmr).zip(words).zip(levels) {
            if word != 0 {
                tmr.fetch_or(word & levels, SeqCst);
                irr.fetch_or(word, SeqCst);
            }
        }
    }

    /// TMR.
    pub(super) fn levels(&self) -> [u64; 4] {
        self.tmr.each_ref().map(|word| word.load(SeqCst))
    }

    /// Clears the vector's IRR bit; whether it was set.
    pub fn take(&self, vector: u8) -> bool {
        let (index, bit) = place(vector);
        self.irr
            .get(index)
            .is_some_and(|word| word.fetch_and(!bit, SeqCst) & bit != 0)
    }

    /// An interrupt that had been taken is pending again.
    pub fn put_back(&self, vector: u8, level: bool) {
        self.raise(vector, level);
    }

    /// Whether the vector's interrupt is level-triggered (TMR).
    pub fn is_level(&self, vector: u8) -> bool {
        let (index, bit) = place(vector);
        self.tmr
            .get(index)
            .is_some_and(|word| word.load(SeqCst) & bit != 0)
    }

    /// 32 bits of IRR, from `index` * 32.
    pub fn irr_word(&self, index: u8) -> u32 {
        half(index, |word| Some(self.irr.get(word)?.load(SeqCst)))
    }

    /// 32 bits of TMR, from `index` * 32.
    pub fn tmr_word(&self, index: u8) -> u32 {
        half(index, |word| Some(self.tmr.get(word)?.load(SeqCst)))
    }

    /// Forgets IRR and TMR: the APIC is reset.
    pub fn clear_interrupts(&self) {
        for word in self.irr.iter().chain(&self.tmr) {
            word.store(0, SeqCst);
        }
    }

    /// An NMI arrives; whether there was none.
    pub fn raise_nmi(&self) -> bool {
        !self.signal(|signals| signals.with_nmi(true)).nmi()
    }

    /// Takes the NMI; whether there was one.
    pub fn take_nmi(&self) -> bool {
        self.signal(|signals| signals.with_nmi(false)).nmi()
    }

    /// Whether there is an NMI.
    pub fn has_nmi(&self) -> bool {
        self.signals().nmi()
    }

    /// An INIT arrives; whether there was none. A start-up that came before it is void.
    pub fn raise_init(&self) -> bool {
        !self
            .signal(|signals| {
                signals
                    .with_init(true)
                    .with_startup(false)
                    .with_startup_vector(0)
            })
            .init()
    }

    /// Whether there is an INIT.
    pub fn has_init(&self) -> bool {
        self.signals().init()
    }

    /// A start-up arrives; whether there was none.
    pub fn raise_startup(&self, vector: u8) -> bool {
        !self
            .signal(|signals| signals.with_startup(true).with_startup_vector(vector))
            .startup()
    }

    /// Takes INIT and start-up in one step: an INIT that came between two would be found after the start-up that follows it.
    pub fn take_starts(&self) -> Starts {
        let signals = self.signals();
        if !signals.init() && !signals.startup() {
            return Starts::default();
        }
        let before = self.signal(|signals| {
            signals
                .with_init(false)
                .with_startup(false)
                .with_startup_vector(0)
        });
        Starts {
            init: before.init(),
            page: before.startup().then_some(before.startup_vector()),
        }
    }

    /// Takes the note that an interrupt with an illegal vector has arrived.
    pub(super) fn take_illegal(&self) -> bool {
        self.signals().illegal() && self.signal(|signals| signals.with_illegal(false)).illegal()
    }

    /// Tells senders how the APIC is addressed from now on.
    pub(super) fn publish(&self, addressing: Addressing) {
        self.addressing.store(addressing.into_bits(), SeqCst);
    }

    /// How the APIC is addressed.
    pub fn addressing(&self) -> Addressing {
        Addressing::from_bits(self.addressing.load(SeqCst))
    }

    /// Whether the APIC is among those that `destination` names (SDM vol. 3 11.6.2, 11.12.10). None that IA32_APIC_BASE
    /// disables is.
    pub fn matches(&self, destination: &Destination) -> bool {
        let own = self.addressing();
        own.hardware_enabled()
            && match *destination {
                Destination::All => true,
                Destination::AllBut(sender) => sender != self.id,
                // An identifier of more than eight bits reaches an APIC in xAPIC mode as well: there is no other way to
                // start such a processor, which is in that mode after INIT.
                Destination::Physical(id) => id == self.id,
                Destination::Logical(id) if own.x2apic() => {
                    let logical = x2apic_logical(self.id);
                    logical >> 16 == id >> 16 && logical & id & 0xffff != 0
                }
                Destination::Logical(id) => {
                    u8::try_from(id).is_ok_and(|id| selects(id, own.logical(), own.flat()))
                }
            }
    }

    /// Whether the APIC is among those that the message is for, and takes it: one that is disabled by software takes INIT, NMI
    /// and start-up, but no interrupts (SDM vol. 3 11.4.7.2).
    pub fn accepts(&self, message: &Message) -> bool {
        let taken = match message.delivery {
            Delivery::Fixed(_) | Delivery::LowestPriority(_) | Delivery::ExtInt => {
                self.addressing().software_enabled()
            }
            _ => true,
        };
        taken && self.matches(&message.destination)
    }

    /// Whether there is NMI, INIT, start-up or an error to be looked at.
    #[inline]
    pub fn has_signals(&self) -> bool {
        self.signals() != Signals::new()
    }

    /// Whether there is anything to be looked at: an interrupt, whatever its priority, NMI, INIT, start-up, an error.
    #[inline]
    pub fn has_any(&self) -> bool {
        self.has_signals() || self.has_interrupt()
    }

    fn signals(&self) -> Signals {
        Signals::from_bits(self.signals.load(SeqCst))
    }

    /// Changes the signals; what they were.
    fn signal(&self, change: impl Fn(Signals) -> Signals) -> Signals {
        let mut old = self.signals.load(SeqCst);
        loop {
            let new = change(Signals::from_bits(old)).into_bits();
            match self.signals.compare_exchange_weak(old, new, SeqCst, SeqCst) {
                Ok(_) => return Signals::from_bits(old),
                Err(found) => old = found,
            }
        }
    }
}

/// Whether the destination `id` of xAPIC mode selects the logical identifier `own` (SDM vol. 3 11.6.2.2).
const fn selects(id: u8, own: u8, flat: bool) -> bool {
    if flat {
        id & own != 0
    } else {
        id >> 4 == own >> 4 && id & own & 0xf != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    const XAPIC: Addressing = Addressing::new()
        .with_hardware_enabled(true)
        .with_software_enabled(true)
        .with_flat(true);

    fn at(id: u32, addressing: Addressing) -> Requests {
        let requests = Requests::new(id);
        requests.publish(addressing);
        requests
    }

    #[test]
    fn only_the_first_of_a_kind_needs_a_kick() {
        let requests = Requests::new(0);
        assert!(requests.raise(0x30, false));
        assert!(!requests.raise(0x30, false));
        assert!(requests.raise(0x31, false));
        assert!(requests.raise_nmi());
        assert!(!requests.raise_nmi());
        assert!(requests.take_nmi());
        assert!(requests.raise_nmi());
    }

    #[test]
    fn the_trigger_mode_is_that_of_the_last_interrupt() {
        let requests = Requests::new(0);
        requests.raise(0x30, true);
        assert!(requests.is_level(0x30));
        assert!(requests.take(0x30));
        requests.raise(0x30, false);
        assert!(!requests.is_level(0x30));
    }

    #[test]
    fn an_edge_does_not_hide_a_level_that_is_pending() {
        let requests = Requests::new(0);
        requests.raise(0x30, true);
        requests.raise(0x30, false);
        assert!(requests.is_level(0x30));
    }

    #[test]
    fn no_illegal_vector_is_in_irr() {
        let requests = Requests::new(0);
        for vector in 0..16 {
            requests.raise(vector, true);
        }
        assert_eq!((requests.highest(), requests.irr_word(0)), (None, 0));
        assert_eq!(requests.tmr_word(0), 0);
        assert!(requests.has_any() && requests.take_illegal());
        assert!(!requests.has_any());
    }

    #[test]
    fn an_init_voids_the_start_up_before_it_and_not_the_one_after() {
        let requests = Requests::new(0);
        let starts = |init, page| Starts { init, page };
        assert_eq!(requests.take_starts(), starts(false, None));
        requests.raise_startup(1);
        requests.raise_init();
        assert!(requests.has_any());
        assert_eq!(requests.take_starts(), starts(true, None));
        assert!(
            requests.is_quiet(),
            "the vector of the voided one is no request"
        );
        requests.raise_startup(1);
        requests.raise_init();
        requests.raise_startup(2);
        assert_eq!(requests.take_starts(), starts(true, Some(2)));
        assert!(
            !requests.has_any() && requests.is_quiet(),
            "the vector that was taken is no request"
        );
        requests.raise_startup(3);
        assert_eq!(requests.take_starts(), starts(false, Some(3)));
        assert!(requests.is_quiet());
    }

    #[test]
    fn a_disabled_apic_is_never_meant() {
        let requests = at(1, XAPIC.with_hardware_enabled(false).with_logical(0xff));
        for destination in [
            Destination::All,
            Destination::AllBut(0),
            Destination::Physical(1),
            Destination::Logical(1),
        ] {
            assert!(!requests.matches(&destination));
        }
    }

    #[test]
    fn one_that_software_disabled_takes_no_interrupts() {
        let requests = at(1, XAPIC.with_software_enabled(false));
        let takes = |delivery| {
            requests.accepts(&Message {
                destination: Destination::Physical(1),
                delivery,
                level: false,
            })
        };
        assert!(!takes(Delivery::Fixed(0x30)) && !takes(Delivery::LowestPriority(0x30)));
        assert!(takes(Delivery::Nmi) && takes(Delivery::Init) && takes(Delivery::StartUp(1)));
    }

    #[test]
    fn the_flat_and_the_cluster_model() {
        let flat = at(0, XAPIC.with_logical(0x12));
        assert!(flat.matches(&Destination::Logical(0x10)));
        assert!(flat.matches(&Destination::Logical(0x02)));
        assert!(!flat.matches(&Destination::Logical(0xed)));
        let cluster = at(0, XAPIC.with_flat(false).with_logical(0x12));
        assert!(cluster.matches(&Destination::Logical(0x12)));
        assert!(cluster.matches(&Destination::Logical(0x1f)));
        assert!(!cluster.matches(&Destination::Logical(0x1d)));
        assert!(!cluster.matches(&Destination::Logical(0x22)));
        assert!(!cluster.matches(&Destination::Logical(0x0112)));
    }

    #[test]
    fn x2apic_identifiers() {
        assert_eq!(x2apic_logical(0), 1);
        assert_eq!(x2apic_logical(0x12), 0x0001_0004);
        let requests = at(0x12, XAPIC.with_x2apic(true).with_logical(0xff));
        assert!(requests.matches(&Destination::Logical(0x0001_0004)));
        assert!(requests.matches(&Destination::Logical(0x0001_ffff)));
        assert!(!requests.matches(&Destination::Logical(0x0000_0004)));
        assert!(!requests.matches(&Destination::Logical(0x0001_fffb)));
        assert!(requests.matches(&Destination::Physical(0x12)));
        assert!(!requests.matches(&Destination::Physical(0x0100_0012)));
    }

    #[test]
    fn a_shorthand_leaves_out_the_sender_alone() {
        assert!(!at(3, XAPIC).matches(&Destination::AllBut(3)));
        assert!(at(4, XAPIC).matches(&Destination::AllBut(3)));
    }

    #[test]
    fn nothing_is_lost_between_cpus() {
        const ROUNDS: usize = 20_000;
        let requests = Requests::new(0);
        let raised = std::thread::scope(|scope| {
            let senders: Vec<_> = (0..2u8)
                .map(|sender| {
                    let requests = &requests;
                    scope.spawn(move || {
                        (0..ROUNDS)
                            .filter(|round| {
                                requests.raise(0x20 + sender + 2 * (round % 50) as u8, false)
                            })
                            .count()
                    })
                })
                .collect();
            let mut taken = 0;
            while !senders.iter().all(|sender| sender.is_finished()) {
                if let Some(vector) = requests.highest() {
                    taken += usize::from(requests.take(vector));
                }
            }
            while let Some(vector) = requests.highest() {
                taken += usize::from(requests.take(vector));
            }
            let raised: usize = senders
                .into_iter()
                .map(|sender| sender.join().unwrap())
                .sum();
            assert_eq!(raised, taken);
            raised
        });
        assert!(raised > 0);
    }

    proptest! {
        #[test]
        fn irr_is_a_set(changes in prop::collection::vec((16u8.., any::<bool>()), 0..100)) {
            let (requests, mut model) = (Requests::new(0), BTreeSet::new());
            for (vector, raise) in changes {
                if raise {
                    prop_assert_eq!(requests.raise(vector, false), model.insert(vector));
                } else {
                    prop_assert_eq!(requests.take(vector), model.remove(&vector));
                }
                prop_assert_eq!(requests.highest(), model.last().copied());
                prop_assert_eq!(requests.has_any(), !model.is_empty());
                let word = requests.irr_word(vector / 32);
                prop_assert_eq!(word >> (vector % 32) & 1 != 0, raise);
            }
        }

        /// Any two APICs with different identifiers are told apart by either kind of x2APIC address.
        #[test]
        fn x2apic_addresses_are_unique(a in 0u32..0x10_0000, b in 0u32..0x10_0000) {
            prop_assume!(a != b);
            let requests = at(a, XAPIC.with_x2apic(true));
            prop_assert!(requests.matches(&Destination::Logical(x2apic_logical(a))));
            prop_assert!(!requests.matches(&Destination::Logical(x2apic_logical(b))));
            prop_assert!(!requests.matches(&Destination::Physical(b)));
        }
    }
}

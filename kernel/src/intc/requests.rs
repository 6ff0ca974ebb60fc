//! What other CPUs and devices ask of a vCPU's local APIC.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use super::message::{Destination, Message};

/// How an APIC is to be addressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Addressing {
    /// IA32_APIC_BASE enables it.
    pub hardware_enabled: bool,
    /// Its spurious-interrupt vector register enables it: it takes interrupts.
    pub software_enabled: bool,
    /// It is in x2APIC mode.
    pub x2apic: bool,
    /// The flat model (DFR), else the cluster model.
    pub flat: bool,
    /// The logical identifier of xAPIC mode (LDR bits 31:24).
    pub logical: u8,
}

/// The requests to one local APIC.
#[derive(Debug)]
pub struct Requests {
    id: u32,
    irr: [AtomicU64; 4],
    tmr: [AtomicU64; 4],
    nmi: AtomicBool,
    init: AtomicBool,
    startup: AtomicU32,
    illegal: AtomicBool,
    addressing: AtomicU64,
}

impl Requests {
    /// No request, to an APIC that is disabled.
    pub const fn new(id: u32) -> Self {
        Self {
            id,
            irr: [const { AtomicU64::new(0) }; 4],
            tmr: [const { AtomicU64::new(0) }; 4],
            nmi: AtomicBool::new(false),
            init: AtomicBool::new(false),
            startup: AtomicU32::new(u32::MAX),
            illegal: AtomicBool::new(false),
            addressing: AtomicU64::new(0),
        }
    }

    /// The APIC's identifier.
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// An interrupt arrives; whether its IRR bit was clear, and so the vCPU needs to be told.
    pub fn raise(&self, _vector: u8, _level: bool) -> bool {
        false
    }

    /// Does at this APIC what `message` says, whoever it is for; whether the vCPU needs to be told.
    pub fn post(&self, _message: &Message) -> bool {
        false
    }

    /// The highest vector in IRR.
    pub fn highest(&self) -> Option<u8> {
        None
    }

    /// Clears the vector's IRR bit; whether it was set.
    pub fn take(&self, _vector: u8) -> bool {
        false
    }

    /// Sets the IRR bit of an interrupt that had been taken.
    pub fn put_back(&self, _vector: u8, _level: bool) {}

    /// Whether the vector's interrupt is level-triggered (TMR).
    pub fn is_level(&self, _vector: u8) -> bool {
        false
    }

    /// 32 bits of IRR, from `index` * 32.
    pub fn irr_word(&self, _index: u8) -> u32 {
        0
    }

    /// 32 bits of TMR, from `index` * 32.
    pub fn tmr_word(&self, _index: u8) -> u32 {
        0
    }

    /// Forgets IRR and TMR: the APIC is reset.
    pub fn clear_interrupts(&self) {}

    /// An NMI arrives; whether there was none.
    pub fn raise_nmi(&self) -> bool {
        !self.nmi.swap(true, Ordering::SeqCst)
    }

    /// Takes the NMI.
    pub fn take_nmi(&self) -> bool {
        self.nmi.swap(false, Ordering::SeqCst)
    }

    /// Whether there is an NMI.
    pub fn has_nmi(&self) -> bool {
        self.nmi.load(Ordering::SeqCst)
    }

    /// An INIT arrives; whether there was none.
    pub fn raise_init(&self) -> bool {
        !self.init.swap(true, Ordering::SeqCst)
    }

    /// Takes the INIT.
    pub fn take_init(&self) -> bool {
        self.init.swap(false, Ordering::SeqCst)
    }

    /// A start-up arrives; whether there was none.
    pub fn raise_startup(&self, _vector: u8) -> bool {
        self.startup.load(Ordering::SeqCst) == u32::MAX
    }

    /// Takes the start-up.
    pub fn take_startup(&self) -> Option<u8> {
        None
    }

    /// Takes the note that an interrupt with an illegal vector has arrived.
    pub fn take_illegal(&self) -> bool {
        self.illegal.swap(false, Ordering::SeqCst)
    }

    /// Tells senders how the APIC is addressed from now on.
    pub fn publish(&self, _addressing: Addressing) {}

    /// How the APIC is addressed.
    pub fn addressing(&self) -> Addressing {
        self.addressing.load(Ordering::SeqCst);
        Addressing::default()
    }

    /// Whether the APIC is among those that `destination` names.
    pub fn matches(&self, _destination: &Destination) -> bool {
        false
    }

    /// Whether the APIC is among those that the message is for and takes such a message: one that is disabled by software
    /// takes no interrupts, but INIT, NMI and start-up (SDM vol. 3 11.4.7.2).
    pub fn accepts(&self, message: &Message) -> bool {
        self.matches(&message.destination)
    }

    /// Whether there is anything to be looked at: an interrupt, whatever its priority, NMI, INIT, start-up, an error.
    pub fn has_any(&self) -> bool {
        false
    }
}

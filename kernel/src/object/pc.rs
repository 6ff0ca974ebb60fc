//! What a domain has besides that sees a PC: an I/O APIC, the output of a pair of 8259A, and the way of messages to local APICs.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use plinth_abi::device::line;
use spin::Mutex;

use super::{Domain, Vcpu};
use crate::intc::{Delivery, IoApic, Message};
use crate::mem::Ref;
use crate::virt::Vendor;

/// The part of a domain that makes it a PC.
pub struct Pc {
    /// Its I/O APIC. A message that it sends is delivered under its lock.
    io_apic: Mutex<IoApic>,
    /// INTR: the output of the 8259A pair.
    intr: AtomicBool,
    /// The vCPU that the last interrupt of lowest priority went to: they go round.
    last: AtomicU32,
    /// The Unix time in nanoseconds when the machine's clock was 0.
    pub wall_clock: u64,
}

/// A line that a device can change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Line {
    /// An input of the I/O APIC.
    Pin(u8),
    /// The output of the 8259A pair.
    Intr,
}

impl Line {
    /// The line with this number of the contract's.
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            0..line::PINS => Some(Self::Pin(number as u8)),
            line::INTR => Some(Self::Intr),
            _ => None,
        }
    }
}

impl Pc {
    /// As after power-up.
    pub const fn new(wall_clock: u64) -> Self {
        Self {
            io_apic: Mutex::new(IoApic::new()),
            intr: AtomicBool::new(false),
            last: AtomicU32::new(0),
            wall_clock,
        }
    }

    /// Whether the 8259A pair asks for attention.
    pub fn has_intr(&self) -> bool {
        self.intr.load(Ordering::Acquire)
    }
}

impl<V: Vendor> Domain<V> {
    /// Delivers a message to the local APICs that it is for; whether one took it. `sender`: the index of the vCPU that sends it and runs
    /// here, which looks at its own requests afterwards.
    pub fn send(&self, pc: &Pc, message: &Message, sender: Option<u32>) -> bool {
        let life = self.life.lock();
        let post = |vcpu: &Ref<Vcpu<V>>| {
            if vcpu.requests.post(message) && sender != Some(vcpu.index) {
                vcpu.prompt();
            }
        };
        let mut accepting = life
            .vcpus
            .iter()
            .filter(|vcpu| vcpu.requests.accepts(message));
        if let Delivery::LowestPriority(_) = message.delivery {
            // Any arbitration will do; the one behind the last is found by a second look.
            let last = pc.last.load(Ordering::Relaxed);
            let next = accepting
                .clone()
                .find(|vcpu| vcpu.index > last)
                .or_else(|| accepting.next());
            if let Some(vcpu) = next {
                pc.last.store(vcpu.index, Ordering::Relaxed);
                post(vcpu);
            }
            return next.is_some();
        }
        let mut taken = false;
        for vcpu in accepting {
            post(vcpu);
            taken = true;
        }
        taken
    }

    /// Does something with the I/O APIC, whose messages are delivered.
    pub fn with_io_apic<R>(
        &self,
        pc: &Pc,
        sender: Option<u32>,
        f: impl FnOnce(&mut IoApic, &mut dyn FnMut(&Message) -> bool) -> R,
    ) -> R {
        let mut io_apic = pc.io_apic.lock();
        f(&mut io_apic, &mut |message| self.send(pc, message, sender))
    }

    /// A device changes a line.
    pub fn set_line(&self, pc: &Pc, line: Line, active: bool) {
        match line {
            Line::Pin(pin) => {
                self.with_io_apic(pc, None, |io_apic, deliver| {
                    io_apic.set_line(pin, active, deliver);
                });
            }
            Line::Intr => {
                let before = pc.intr.swap(active, Ordering::AcqRel);
                if active && !before {
                    // LINT0 of any of them may be its way in; operating systems open the first one's.
                    for vcpu in &self.life.lock().vcpus {
                        vcpu.prompt();
                    }
                }
            }
        }
    }
}

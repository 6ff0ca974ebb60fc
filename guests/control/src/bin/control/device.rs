//! The debug console: port 0xe9 of a domain, as Bochs and QEMU have it. What is written there goes to the domain's console.

use alloc::vec::Vec;

use plinth_guest_control::debug_console::{ANSWER, PORT, written};
use plinth_rt::abi::device::kind;
use plinth_rt::abi::{Claim, Slot, Status};
use plinth_rt::object::{Domain, Event, Memory, Result};

use crate::window::{Slots, Windows};

/// A domain's debug console.
pub struct DebugConsole {
    domain: Domain,
    event: Event,
    memory: Memory,
    slots: Slots,
    /// The last access of each vCPU that was served.
    served: Vec<u64>,
}

impl DebugConsole {
    /// Claims the port of `domain`, which has at most `vcpus` vCPUs. Accesses are told with `key`.
    pub fn new(
        own: Domain,
        windows: &Windows,
        domain: Domain,
        vcpus: u32,
        key: u64,
    ) -> Result<Self> {
        let bytes = (u64::from(vcpus) * size_of::<Slot>() as u64).next_multiple_of(4096);
        let memory = own.create_memory(bytes)?;
        let undo = |slots: Option<Slots>, event: Option<Event>, why: Status| {
            // What was just made can be taken back; of the two errors the first one counts.
            if let Some(event) = event {
                let _ = event.any().close();
            }
            if let Some(slots) = slots {
                let _ = windows.unmap_slots(slots);
            }
            let _ = memory.any().close();
            Err(why)
        };
        let slots = match windows.map_slots(memory, bytes) {
            Ok(Some(slots)) => slots,
            Ok(None) => return undo(None, None, Status::OVER_BUDGET),
            Err(why) => return undo(None, None, why),
        };
        let event = match own.create_event() {
            Ok(event) => event,
            Err(why) => return undo(Some(slots), None, why),
        };
        let claim = Claim {
            kind: kind::PORTS,
            memory: memory.0.0,
            event: event.0.0,
            reserved: 0,
            first: PORT.into(),
            length: 1,
            tag: 0,
        };
        if let Err(why) = event.bind(key).and_then(|()| domain.claim(&claim)) {
            return undo(Some(slots), Some(event), why);
        }
        Ok(Self {
            domain,
            event,
            memory,
            slots,
            served: alloc::vec![0; vcpus as usize],
        })
    }

    /// Completes the accesses that wait; what they write.
    pub fn serve(&mut self) -> Vec<u8> {
        let mut output = Vec::new();
        for (vcpu, served) in (0..).zip(&mut self.served) {
            let Some(slot) = self.slots.read(vcpu) else {
                break;
            };
            if slot.sequence == *served {
                continue;
            }
            *served = slot.sequence;
            if slot.write != 0 {
                output.extend(written(&slot));
            } else {
                self.slots.answer(vcpu, ANSWER);
            }
            // A domain that has ended meanwhile waits for nothing.
            let _ = self.domain.complete(vcpu, u64::from_le_bytes([ANSWER; 8]));
        }
        output
    }

    /// Gives the port and all that it took back.
    pub fn close(self, windows: &Windows) {
        // The claim is gone already where the domain is. The rest is this guest's own, and there.
        let _ = self.domain.release(kind::PORTS, PORT.into());
        let _ = windows.unmap_slots(self.slots);
        let _ = self.event.any().close();
        let _ = self.memory.any().close();
    }
}

//! One object of each type, for tests that walk over all of them.

use plinth_rt::Why;
use plinth_rt::abi::{ObjectType, rights};
use plinth_rt::object::{Any, Event, Memory, Vcpu};

use crate::child::{Child, Plan, spin};
use crate::kit::{self, Must, Owned, event, memory, own, system};

/// A test's own objects: a child with one vCPU, memory of one page, an event.
pub struct Objects {
    /// The child; it spins where it is started.
    pub child: Child,
    /// Memory of the suite's.
    pub memory: Owned<Memory>,
    /// An event of the suite's.
    pub event: Owned<Event>,
}

impl Objects {
    /// Makes them.
    pub fn new() -> Result<Self, Why> {
        Self::on(0)
    }

    /// Makes them; the child's vCPUs see this machine.
    pub fn on(platform: u32) -> Result<Self, Why> {
        Ok(Self {
            child: Child::new(&Plan {
                max_vcpus: 2,
                platform,
                ..Plan::new(spin())
            })?,
            memory: memory(4096)?,
            event: event()?,
        })
    }

    /// The object of a type, with all rights; `None` for what the suite was not given.
    pub fn get(&self, kind: ObjectType) -> Option<Any> {
        match kind {
            ObjectType::SYSTEM => Some(system().any()),
            ObjectType::DOMAIN => Some(self.child.domain.any()),
            ObjectType::VCPU => Some(self.child.vcpu(0).any()),
            ObjectType::MEMORY => Some(self.memory.any()),
            ObjectType::EVENT => Some(self.event.any()),
            ObjectType::IRQ => kit::irq().map(|irq| irq.any()),
            ObjectType::PORTS => kit::ports().map(|(ports, _)| ports.any()),
            _ => None,
        }
    }
}

/// Every type, with every right that a handle to it can have.
pub const TYPES: [(ObjectType, u32); 7] = [
    (ObjectType::SYSTEM, rights::SYSTEM),
    (ObjectType::DOMAIN, rights::DOMAIN),
    (ObjectType::VCPU, rights::VCPU),
    (ObjectType::MEMORY, rights::MEMORY_OBJECT),
    (ObjectType::EVENT, rights::EVENT),
    (ObjectType::IRQ, rights::PHYSICAL_OBJECT),
    (ObjectType::PORTS, rights::PHYSICAL_OBJECT),
];

/// The suite's own first vCPU.
pub fn own_vcpu() -> Result<Owned<Vcpu>, Why> {
    own().open_vcpu(0).must("own vCPU").map(Owned)
}

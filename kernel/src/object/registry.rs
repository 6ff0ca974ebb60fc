//! The kernel's state: all domains, what each handle can name, and the first domain's life.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

use plinth_abi::{ObjectType, Status, rights};
use spin::Mutex;

use super::{Domain, Event, Memory, Vcpu};
use crate::arch::irq;
use crate::mem::{Budget, Ref};
use crate::root::Root;
use crate::rules::cpuid::{CpuidTable, GuestIdentity};
use crate::sched::Sched;
use crate::virt::Vendor;

/// What a handle names.
pub enum Object<V: Vendor> {
    /// The machine.
    System,
    /// A domain.
    Domain(Ref<Domain<V>>),
    /// A vCPU.
    Vcpu(Ref<Vcpu<V>>),
    /// A run of memory.
    Memory(Ref<Memory>),
    /// An event.
    Event(Ref<Event<V>>),
    /// The physical interrupt of an ISA line.
    Irq(u8),
    /// Physical I/O ports: the first, and how many.
    Ports(u16, u16),
}

impl<V: Vendor> Clone for Object<V> {
    fn clone(&self) -> Self {
        match self {
            Self::System => Self::System,
            Self::Domain(domain) => Self::Domain(domain.clone()),
            Self::Vcpu(vcpu) => Self::Vcpu(vcpu.clone()),
            Self::Memory(memory) => Self::Memory(memory.clone()),
            Self::Event(event) => Self::Event(event.clone()),
            Self::Irq(line) => Self::Irq(*line),
            Self::Ports(first, count) => Self::Ports(*first, *count),
        }
    }
}

impl<V: Vendor> Object<V> {
    /// Its type, and every right that a handle to it can have.
    pub const fn kind(&self) -> (ObjectType, u32) {
        match self {
            Self::System => (ObjectType::SYSTEM, rights::SYSTEM),
            Self::Domain(_) => (ObjectType::DOMAIN, rights::DOMAIN),
            Self::Vcpu(_) => (ObjectType::VCPU, rights::VCPU),
            Self::Memory(_) => (ObjectType::MEMORY, rights::MEMORY_OBJECT),
            Self::Event(_) => (ObjectType::EVENT, rights::EVENT),
            Self::Irq(_) => (ObjectType::IRQ, rights::PHYSICAL_OBJECT),
            Self::Ports(..) => (ObjectType::PORTS, rights::PHYSICAL_OBJECT),
        }
    }
}

/// An entry of a handle table.
pub struct Entry<V: Vendor> {
    /// What it names.
    pub object: Object<V>,
    /// What may be done with it.
    pub rights: u32,
}

impl<V: Vendor> Entry<V> {
    /// An entry with every right.
    pub const fn full(object: Object<V>) -> Self {
        let (_, rights) = object.kind();
        Self { object, rights }
    }
}

/// All that the CPUs share in running domains.
pub struct Kernel<V: Vendor> {
    /// Who runs where and when.
    pub sched: Sched<V>,
    /// Domains that are not destroyed, by number.
    domains: Mutex<Vec<Ref<Domain<V>>>>,
    next_number: AtomicU32,
    /// CPUID by the number of vCPUs.
    cpuid: Mutex<Vec<Ref<CpuidTable>>>,
    identity: GuestIdentity,
    host_cpuid: fn(u32, u32) -> [u32; 4],
    /// The events that physical interrupts signal.
    irqs: [Mutex<Option<Ref<Event<V>>>>; irq::ISA_LINES as usize],
    /// What the machine has, of which all domains' budgets are parts.
    pub whole: Ref<Budget>,
    /// The first domain.
    pub root: Mutex<Root<V>>,
}

impl<V: Vendor> Kernel<V> {
    /// A kernel without domains.
    pub fn new(
        sched: Sched<V>,
        identity: GuestIdentity,
        host_cpuid: fn(u32, u32) -> [u32; 4],
        whole: Ref<Budget>,
    ) -> Self {
        Self {
            sched,
            domains: Mutex::new(Vec::new()),
            next_number: AtomicU32::new(1),
            cpuid: Mutex::new(Vec::new()),
            identity,
            host_cpuid,
            irqs: [const { Mutex::new(None) }; irq::ISA_LINES as usize],
            whole,
            root: Mutex::default(),
        }
    }

    /// CPUID for domains of so many vCPUs, with local APICs (`is_pc`) or without.
    ///
    /// # Errors
    /// `NO_MEMORY`.
    pub fn cpuid(&self, vcpus: u32, is_pc: bool) -> Result<Ref<CpuidTable>, Status> {
        let mut tables = self.cpuid.lock();
        if let Some(table) = tables.iter().find(|table| table.is_for(vcpus, is_pc)) {
            return Ok(table.clone());
        }
        let identity = GuestIdentity {
            vcpus,
            local_apic: is_pc,
            // The timer of a local APIC counts at the rate of the TSC.
            apic_khz: if is_pc { self.identity.tsc_khz } else { 0 },
            ..self.identity
        };
        tables.try_reserve(1).map_err(|_| Status::NO_MEMORY)?;
        let table = Ref::new(CpuidTable::new(&self.host_cpuid, &identity))
            .map_err(|_| Status::NO_MEMORY)?;
        tables.push(table.clone());
        Ok(table)
    }

    /// A domain that has this table is gone: with the last such domain the table goes, too.
    pub fn release_cpuid(&self, table: &Ref<CpuidTable>) {
        const OURS_AND_THE_DOMAINS: usize = 2;
        let mut tables = self.cpuid.lock();
        // Nobody can take another pointer meanwhile: they are given out under this lock.
        if table.count() <= OURS_AND_THE_DOMAINS {
            tables.retain(|other| !other.is_same(table));
        }
    }

    /// A number for a new domain; `None` when all have been used, sixteen million: frames know their owner by 24 bits.
    pub fn new_number(&self) -> Option<u32> {
        const LAST: u32 = (1 << 24) - 1;
        self.next_number
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |number| {
                (number < LAST).then_some(number + 1)
            })
            .ok()
    }

    /// Makes a domain be found.
    ///
    /// # Errors
    /// `NO_MEMORY`.
    pub fn list(&self, domain: Ref<Domain<V>>) -> Result<(), Status> {
        let mut domains = self.domains.lock();
        domains.try_reserve(1).map_err(|_| Status::NO_MEMORY)?;
        let at = domains.partition_point(|other| other.number < domain.number);
        domains.insert(at, domain);
        Ok(())
    }

    /// Makes a domain not be found any more.
    pub fn forget(&self, domain: &Ref<Domain<V>>) {
        let gone = {
            let mut domains = self.domains.lock();
            let at = domains.binary_search_by_key(&domain.number, |other| other.number);
            at.ok().map(|at| domains.remove(at))
        };
        drop(gone);
    }

    /// The domain of this number.
    pub fn find_domain(&self, number: u32) -> Option<Ref<Domain<V>>> {
        let domains = self.domains.lock();
        let at = domains
            .binary_search_by_key(&number, |domain| domain.number)
            .ok()?;
        domains.get(at).cloned()
    }

    /// The domain with the least number above this one.
    pub fn next_domain(&self, number: u32) -> Option<Ref<Domain<V>>> {
        let domains = self.domains.lock();
        let at = domains.partition_point(|domain| domain.number <= number);
        domains.get(at).cloned()
    }

    /// How many domains there are.
    pub fn count(&self) -> u32 {
        self.domains.lock().len() as u32
    }

    /// Makes a physical interrupt signal an event.
    ///
    /// # Errors
    /// `NOT_FOUND` where there is no such line.
    pub fn bind_irq(&self, line: u8, event: Ref<Event<V>>) -> Result<(), Status> {
        let place = self.irqs.get(usize::from(line)).ok_or(Status::NOT_FOUND)?;
        let old = place.lock().replace(event);
        drop(old);
        Ok(())
    }

    /// Whether a physical interrupt signals anything.
    pub fn is_irq_bound(&self, line: u8) -> bool {
        self.irqs
            .get(usize::from(line))
            .is_some_and(|place| place.lock().is_some())
    }

    /// A physical interrupt has come.
    pub fn signal_irq(&self, line: u8) {
        let event = self
            .irqs
            .get(usize::from(line))
            .and_then(|place| place.lock().clone());
        if let Some(event) = event {
            event.signal();
        }
    }

    /// No physical interrupt signals anything any more: the first domain is over.
    pub fn unbind_irqs(&self) {
        for (line, place) in (0..).zip(&self.irqs) {
            let event = place.lock().take();
            if event.is_some() {
                irq::mask(line);
            }
        }
    }

    /// A domain has ended. Called by the domain.
    pub fn note_end(&self, domain: &Ref<Domain<V>>) {
        let root = self.root.lock();
        let is_root = root
            .domain
            .as_ref()
            .is_some_and(|root| root.is_same(domain));
        drop(root);
        if is_root {
            self.sched.ask_for_attention();
        }
    }
}

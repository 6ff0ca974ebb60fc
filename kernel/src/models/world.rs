//! A kernel with its machine, for one run of a model.

#![allow(
    unsafe_code,
    reason = "the kernel's state lives for ever, but in a model"
)]

use core::cell::RefCell;

use loom::thread::JoinHandle;
use plinth_abi::{DomainConfig, DomainState};
use zerocopy::FromZeros;

use super::vendor::{Model, Tlb};
use super::{join, machine, spawn};
use crate::mem::{Amounts, Budget, Charge, Ref};
use crate::object::{ClaimKind, Domain, Event, Kernel, Stop, Vcpu};
use crate::rules::cpuid::GuestIdentity;
use crate::sched::{Sched, Waiter};
use crate::sync::atomic::Ordering::Relaxed;

/// A kernel. What it has is taken apart when it is dropped.
pub(crate) struct World {
    /// It.
    pub(crate) kernel: &'static Kernel<Model>,
    domains: RefCell<Vec<Ref<Domain<Model>>>>,
}

impl World {
    /// On so many CPUs, which do nothing yet.
    pub(crate) fn new(cpus: u32) -> Self {
        machine::plug_in(cpus);
        let identity = GuestIdentity {
            vcpus: 1,
            local_apic: false,
            invpcid: false,
            rdtscp: false,
            xcr0_supported: 0,
            tsc_khz: 0,
            apic_khz: 0,
            physical_bits: 36,
            arch_capabilities: None,
        };
        let whole = Amounts {
            frames: 1 << 20,
            memory_frames: 0,
            heap: 1 << 40,
        };
        let whole = Ref::new(Budget::whole(whole)).unwrap();
        let kernel = Kernel::new(Sched::for_all_cpus(), identity, |_, _| [0; 4], whole);
        let kernel = Box::leak(Box::new(kernel));
        kernel.sched.touch();
        Self {
            kernel,
            domains: RefCell::default(),
        }
    }

    /// A domain without memory, with so many vCPUs.
    pub(crate) fn domain(&self, vcpus: u32) -> Ref<Domain<Model>> {
        let number = self.kernel.new_number().unwrap();
        let config = DomainConfig {
            vcpus,
            handles: 16,
            ..FromZeros::new_zeroed()
        };
        let whole = self.kernel.whole.clone();
        let domain =
            Domain::with_space_of(self.kernel, number, "guest", &config, whole, false, |_| {
                Ok(None)
            });
        let domain = domain.unwrap();
        let _ = (domain.is_reaped(), domain.has_claim(ClaimKind::Ports, 0));
        for flag in [&domain.claims_made, &domain.has_serial] {
            flag.load(Relaxed);
        }
        domain.halted.load(Relaxed);
        for index in 0..vcpus {
            let vcpu = Vcpu::with_context(&domain, index, |_| Ok(None)).unwrap();
            // All atomics are touched before there are threads.
            let _ = (vcpu.place(), vcpu.can_be_interrupted());
            let _ = (
                vcpu.must_leave.load(Relaxed),
                format!("{:?}", vcpu.requests),
            );
            let mut life = domain.life.lock();
            life.vcpus.push(vcpu);
            life.alive += 1;
        }
        self.domains.borrow_mut().push(domain.clone());
        domain
    }

    /// A domain that runs.
    pub(crate) fn running(&self, vcpus: u32) -> Ref<Domain<Model>> {
        let domain = self.domain(vcpus);
        domain.let_run(DomainState::CREATED).unwrap();
        domain
    }

    /// An event.
    pub(crate) fn event(&self) -> Ref<Event<Model>> {
        let charge = Charge::new(&self.kernel.whole, Amounts::default()).unwrap();
        Ref::new(Event::new(charge)).unwrap()
    }

    /// A CPU begins its life. `guest` is what a vCPU does when it is entered, until it leaves the CPU; `None`: it runs for ever.
    pub(crate) fn start(
        &self,
        cpu: u32,
        guest: impl FnMut(&Ref<Vcpu<Model>>, &mut Tlb) -> Option<Stop> + Send + 'static,
    ) -> JoinHandle<()> {
        let kernel = self.kernel;
        spawn(move || kernel.live_in_model(cpu, guest))
    }

    /// Nothing more comes from outside: when the CPUs have done all there was to do, they stand still. Then everything has to be in order.
    pub(crate) fn come_to_rest(&self, cpus: Vec<JoinHandle<()>>) {
        for cpu in 0..cpus.len() as u32 {
            machine::end(cpu);
        }
        cpus.into_iter().for_each(join);
        let domains = self.domains.borrow();
        let vcpus = domains
            .iter()
            .flat_map(|domain| domain.life.lock().vcpus.clone());
        self.kernel.sched.check_at_rest(&vcpus.collect::<Vec<_>>());
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        self.kernel.sched.clear();
        for domain in self.domains.take() {
            let vcpus = core::mem::take(&mut domain.life.lock().vcpus);
            for vcpu in vcpus {
                vcpu.close_events();
            }
            assert_eq!(domain.count(), 1, "somebody still knows a domain");
        }
        // SAFETY: it was made by `new`, and nothing that knows it is left: no domain, and so no vCPU.
        drop(unsafe { Box::from_raw(core::ptr::from_ref(self.kernel).cast_mut()) });
    }
}

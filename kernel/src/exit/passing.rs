//! Exits that are served in passing, while the guest's state is still on the CPU: what needs little more than general registers, and comes
//! often. Whatever is not as usual is left to those that serve the exit otherwise.

#![allow(unsafe_code, reason = "promises what entry code relies on")]

use plinth_abi::Status;

use super::{claimed, cpuid, instruction};
use crate::intc::{LocalApic, Requests};
use crate::object::{Context, Run};
use crate::trace::Counter;
use crate::virt::exit::NestedFault;
use crate::virt::{Runner, Served, Vcpu as _, Vendor};

/// A vCPU that runs.
pub struct Passer<'a, 'b, V: Vendor> {
    /// What is its own.
    pub vcpu: &'a mut Context<V>,
    /// Where it runs.
    pub run: &'a mut Run<'b, V>,
}

impl<V: Vendor> Passer<'_, '_, V> {
    /// Ends an instruction by `does`, which has no effect where it says that it has not done it.
    #[inline(always)]
    fn serve(&mut self, counter: Counter, does: impl FnOnce(&mut Self) -> bool) -> Served {
        let Some(length) = instruction::known_length(self.vcpu) else {
            return Served::No;
        };
        if !does(self) {
            return Served::No;
        }
        self.vcpu.counters.bump(counter);
        self.vcpu.hw.skip(length);
        Served::Yes
    }

    /// Ends WRMSR of a register of the local APIC; `does` says whether it has done that.
    #[inline(always)]
    fn serve_write(&mut self, does: impl FnOnce(&mut LocalApic, u64, &Requests) -> bool) -> Served {
        self.serve(Counter::Msr, |this| {
            let value = this.vcpu.hw.gprs().edx_eax();
            let apic = this.vcpu.apic.as_mut();
            apic.is_some_and(|apic| does(apic, value, &this.run.vcpu.requests))
        })
    }

    /// What has been done about an access to the local APIC, which may have let an interrupt through.
    #[inline(always)]
    fn followed(&self, served: Served) -> Served {
        match served {
            Served::Yes if self.vcpu.has_interrupt(self.run.vcpu) => Served::Interrupted,
            _ => served,
        }
    }
}

// SAFETY: what is called reads and writes the vCPU's own state, requests to it, and words of its memory through the physical map.
unsafe impl<V: Vendor> Runner<V> for Passer<'_, '_, V> {
    #[inline(always)]
    fn parts(&mut self) -> (&mut V::Vcpu, &mut V::Cpu) {
        (&mut self.vcpu.hw, self.run.hardware)
    }

    #[inline(always)]
    fn serve_null_call(&mut self) -> Served {
        if self.vcpu.hw.cpl() != 0 {
            return Served::No;
        }
        self.serve(Counter::Hypercall, |this| {
            let gprs = this.vcpu.hw.gprs_mut();
            gprs.rax = Status::OK.0;
            gprs.rdx = u64::from(plinth_abi::ABI_VERSION);
            true
        })
    }

    #[inline(always)]
    fn serve_cpuid(&mut self) -> Served {
        self.serve(Counter::Cpuid, |this| cpuid::in_passing(this.vcpu))
    }

    #[inline(always)]
    fn serve_read_tpr(&mut self) -> Served {
        self.serve(Counter::Msr, |this| {
            let tpr = this.vcpu.apic.as_ref().and_then(LocalApic::read_tpr);
            if let Some(tpr) = tpr {
                this.vcpu.hw.gprs_mut().set_edx_eax(tpr.into());
            }
            tpr.is_some()
        })
    }

    #[inline(always)]
    fn serve_write_tpr(&mut self) -> Served {
        let served = self.serve_write(|apic, value, _| apic.write_tpr(value));
        self.followed(served)
    }

    #[inline(always)]
    fn serve_write_eoi(&mut self) -> Served {
        let served = self.serve_write(|apic, value, _| apic.write_eoi(value));
        self.followed(served)
    }

    #[inline(always)]
    fn serve_self_ipi(&mut self) -> Served {
        let value = self.vcpu.hw.gprs().edx_eax();
        let apic = self.vcpu.apic.as_ref();
        let Some(vector) = apic.and_then(|apic| apic.self_ipi(value)) else {
            return Served::No;
        };
        let served = self.serve(Counter::Msr, |_| true);
        if served != Served::Yes {
            return served;
        }
        // The guest is behind the instruction now: no shadow holds the interrupt back, and a single step comes before it.
        if self.vcpu.take_from_itself(vector, self.run) {
            return Served::Delivered;
        }
        if let Some(apic) = &mut self.vcpu.apic {
            let _ = apic.interrupt_self(vector, &self.run.vcpu.requests);
        }
        Served::Interrupted
    }

    #[inline(always)]
    fn serve_nested_fault(&mut self, fault: &NestedFault) -> Served {
        if !claimed::move_in_passing(self.vcpu, self.run, fault) {
            return Served::No;
        }
        self.vcpu.counters.bump(Counter::Mmio);
        self.followed(Served::Yes)
    }

    fn deliver(&mut self) -> bool {
        self.vcpu.deliver_in_passing(self.run.vcpu)
    }
}

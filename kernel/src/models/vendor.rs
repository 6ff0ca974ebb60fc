//! A vendor without hardware: guests are what a model makes of them, and a CPU has only what it caches of nested tables.

#![allow(unsafe_code, reason = "memory whose accesses the model checks")]

use core::fmt;

use loom::cell::UnsafeCell;
use plinth_abi::{Segment, VcpuState};

use crate::arch::msr::Msr;
use crate::mem::Hpa;
use crate::mem::nested::Npt;
use crate::virt::{
    BadState, Capabilities, Event, Exit, Gprs, GuestInstructions, Lack, OutOfMemory, Runner,
    SegmentName, Vcpu, Vendor,
};

/// The vendor of models.
#[derive(Debug)]
pub(crate) enum Model {}

/// A CPU, in whose TLB there is at most what a guest's one page is mapped to.
#[derive(Debug, Default)]
pub(crate) struct Tlb(pub(crate) Option<usize>);

/// Memory that one uses at a time: a model fails where an access does not come after the one before.
#[derive(Debug, Default)]
pub(crate) struct Frame(UnsafeCell<()>);

// SAFETY: there is nothing in it, and the model sees to its accesses.
unsafe impl Sync for Frame {}

impl Frame {
    /// Somebody changes it, who has it alone.
    #[track_caller]
    pub(crate) fn change(&self) {
        self.0.with_mut(|_| ());
    }
}

/// A vCPU's hardware, which there is none of: the vCPUs of models have no context.
#[derive(Debug)]
pub(crate) enum NoVcpu {}

impl Vendor for Model {
    const NAME: &'static str = "model";
    const HYPERCALL: [u8; 3] = [0; 3];
    type Format = Npt;
    type Cpu = Tlb;
    type Vcpu = NoVcpu;
    type Domain = ();
    const FRAMES_PER_VCPU: u64 = 0;
    const HEAP_PER_VCPU: u64 = 0;
    const FRAMES_FOR_PORTS: u64 = 0;

    fn probe() -> Result<Capabilities, Lack> {
        Ok(Capabilities::default())
    }

    fn enable() -> Result<Tlb, Lack> {
        Ok(Tlb::default())
    }

    fn disable(_: &mut Tlb) {}

    fn flush_all(cpu: &mut Tlb) {
        *cpu = Tlb::default();
    }

    fn notes_writes() -> bool {
        false
    }

    fn guest_instructions() -> GuestInstructions {
        GuestInstructions {
            invpcid: false,
            rdtscp: false,
        }
    }

    fn new_domain() -> Result<(), OutOfMemory> {
        Ok(())
    }

    fn allow_ports((): &(), _: u16, _: u16) -> Result<(), OutOfMemory> {
        Err(OutOfMemory)
    }
}

/// Methods of what there is none of.
macro_rules! none {
    ($(fn $name:ident(&$($of:ident)+ $(, $type:ty)*) $(-> $result:ty)?;)*) => {$(
        none!(@ $name ($($of)+) ($($type),*) ($($result)?));
    )*};
    (@ $name:ident (self) ($($type:ty),*) ($($result:ty)?)) => {
        fn $name(&self $(, _: $type)*) $(-> $result)? {
            match *self {}
        }
    };
    (@ $name:ident (mut self) ($($type:ty),*) ($($result:ty)?)) => {
        fn $name(&mut self $(, _: $type)*) $(-> $result)? {
            match *self {}
        }
    };
}

impl Vcpu<Model> for NoVcpu {
    fn new((): &(), _: Hpa) -> Result<Self, OutOfMemory> {
        Err(OutOfMemory)
    }

    fn run<R: Runner<Model>>(runner: &mut R) -> Exit {
        match *runner.parts().0 {}
    }

    none! {
        fn attach(&mut self, &mut Tlb, &());
        fn detach(&mut self, &mut Tlb);
        fn set_deadline(&mut self, &mut Tlb, u64);
        fn gprs(&self) -> &Gprs;
        fn gprs_mut(&mut self) -> &mut Gprs;
        fn rip(&self) -> u64;
        fn set_rip(&mut self, u64);
        fn rsp(&self) -> u64;
        fn set_rsp(&mut self, u64);
        fn rflags(&self) -> u64;
        fn set_rflags(&mut self, u64);
        fn cpl(&self) -> u8;
        fn segment(&self, SegmentName) -> Segment;
        fn cr0(&self) -> u64;
        fn cr3(&self) -> u64;
        fn cr4(&self) -> u64;
        fn efer(&self) -> u64;
        fn set_cr2(&mut self, u64);
        fn set_cr0(&mut self, u64);
        fn set_cr4(&mut self, u64);
        fn set_efer(&mut self, u64);
        fn watch_debug(&mut self, bool);
        fn has_breakpoints(&self) -> bool;
        fn msr(&self, Msr) -> Option<u64>;
        fn set_msr(&mut self, Msr, u64) -> bool;
        fn set_tsc_offset(&mut self, u64);
        fn instruction_length(&self) -> Option<u8>;
        fn skip(&mut self, u8);
        fn inject(&mut self, Event) -> bool;
        fn withdraw_interrupt(&mut self) -> Option<u8>;
        fn delivers_event(&self) -> bool;
        fn ends_halt(&mut self) -> bool;
        fn accepts_interrupt(&self) -> bool;
        fn request_interrupt_window(&mut self);
        fn state(&self) -> VcpuState;
        fn set_state(&mut self, &VcpuState) -> Result<(), BadState>;
        fn dump(&self, &mut dyn fmt::Write) -> fmt::Result;
    }
}

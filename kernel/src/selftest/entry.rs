//! Entering guests: what follows where the CPU refuses.

use alloc::boxed::Box;
use alloc::format;
use alloc::sync::Arc;

use super::{check, tests};
use crate::arch::{cpu, time};
use crate::boot::modules;
use crate::mem::frames::{Kind, frames};
use crate::object::{DomainId, Ending, Stop, Vcpu};
use crate::virt::svm::Svm;
use crate::virt::vmx::Vmx;
use crate::virt::{Vcpu as _, Vendor};
use crate::{guests, launch};

tests!("entry": a_refused_entry_ends_that_guest_alone);

/// A bit of EFER that no CPU has: an entry with it is refused (SDM vol. 3 27.3.1.1; APM2 15.5.1).
const NO_BIT_OF_EFER: u64 = 1 << 40;

fn a_refused_entry_ends_that_guest_alone() -> super::Outcome {
    if Vmx::probe().is_ok() {
        with::<Vmx>()
    } else {
        with::<Svm>()
    }
}

fn with<V: Vendor>() -> super::Outcome {
    let mut hardware = V::enable().map_err(|lack| format!("{lack}"))?;
    let outcome = refused_and_after::<V>(&mut hardware);
    V::disable(&mut hardware);
    outcome
}

fn refused_and_after<V: Vendor>(hardware: &mut V::Cpu) -> super::Outcome {
    let mut broken = build::<V>(1, hardware)?;
    broken.hw.attach(hardware);
    let efer = broken.hw.efer();
    broken.hw.set_efer(efer | NO_BIT_OF_EFER);
    broken.hw.detach(hardware);
    let stop = run(&mut broken, hardware);
    check!(
        matches!(stop, Stop::Ended(Ending::EntryFailed(_))),
        "the broken one stopped by {stop:?}"
    );
    free(*broken);

    let mut sound = build::<V>(2, hardware)?;
    let mut stop = run(&mut sound, hardware);
    while matches!(stop, Stop::Preempted | Stop::Yielded) {
        stop = run(&mut sound, hardware);
    }
    check!(
        stop == Stop::Ended(Ending::Status(0)),
        "the one after it stopped by {stop:?}"
    );
    free(*sound);

    let left = {
        let frames = frames();
        frames.count(Kind::GuestRam) + frames.count(Kind::NestedTable)
    };
    check!(left == 0, "{left} frames of theirs are left");
    Ok(())
}

fn build<V: Vendor>(id: u32, hardware: &mut V::Cpu) -> Result<Box<Vcpu<V>>, alloc::string::String> {
    let guest = guests::listed("hello");
    let image = modules::modules().find("guests/hello");
    let image = image.ok_or("the image has no guest hello")?;
    guests::build::<V>(
        DomainId(id),
        &guest,
        image,
        launch::guest_cpuid::<V>(),
        hardware,
    )
    .map_err(|why| format!("{why}"))
}

fn run<V: Vendor>(vcpu: &mut Vcpu<V>, hardware: &mut V::Cpu) -> Stop {
    const SLICE_US: u64 = 100_000;
    let deadline = time::tsc() + time::ticks_of_us(SLICE_US);
    vcpu.run(cpu::cpu(), hardware, deadline)
}

fn free<V: Vendor>(vcpu: Vcpu<V>) {
    let Vcpu { domain, hw, .. } = vcpu;
    drop(hw);
    if let Some(domain) = Arc::into_inner(domain) {
        domain.free();
    }
}

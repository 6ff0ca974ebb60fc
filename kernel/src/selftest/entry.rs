//! Entering guests: what follows where the CPU refuses, and what is the kernel's own again afterwards.

#![allow(unsafe_code, reason = "SPEC_CTRL is written")]

use alloc::format;

use super::{check, tests};
use crate::arch::msr::{self, Msr};
use crate::arch::{cpu, speculation, time};
use crate::mem::frames::{Kind, frames};
use crate::mem::{Ref, reaper};
use crate::object::{Context, Ending, Kernel, Run, Stop, Vcpu};
use crate::rules::speculation::spec_ctrl;
use crate::virt::svm::Svm;
use crate::virt::vmx::Vmx;
use crate::virt::{Vcpu as _, Vendor};
use crate::{launch, root};

tests!("entry":
    a_refused_entry_ends_that_guest_alone,
    a_guests_spec_ctrl_stays_in_the_guest,
);

/// A bit of EFER that no CPU has: an entry with it is refused (SDM vol. 3 27.3.1.1; APM2 15.5.1).
const NO_BIT_OF_EFER: u64 = 1 << 40;

/// Runs a test with the extension that this CPU has.
macro_rules! with_extension {
    ($test:ident) => {
        if Vmx::probe().is_ok() {
            with::<Vmx>($test::<Vmx>)
        } else {
            with::<Svm>($test::<Svm>)
        }
    };
}

fn a_refused_entry_ends_that_guest_alone() -> super::Outcome {
    with_extension!(refused_and_after)
}

fn a_guests_spec_ctrl_stays_in_the_guest() -> super::Outcome {
    with_extension!(spec_ctrl_after_a_guest)
}

fn with<V: Vendor>(test: fn(&mut V::Cpu) -> super::Outcome) -> super::Outcome {
    let mut hardware = V::enable().map_err(|lack| format!("{lack}"))?;
    let outcome = test(&mut hardware);
    V::disable(&mut hardware);
    outcome
}

/// Writes SPEC_CTRL; whether it is a register that keeps that.
fn keeps_spec_ctrl(value: u64) -> bool {
    // SAFETY: its bits change predictions only.
    let written = unsafe { msr::try_write(Msr::IA32_SPEC_CTRL, value) };
    written && msr::try_read(Msr::IA32_SPEC_CTRL) == Some(value)
}

fn spec_ctrl_after_a_guest<V: Vendor>(hardware: &mut V::Cpu) -> super::Outcome {
    let own = speculation::plan().kernel_spec_ctrl;
    if !keeps_spec_ctrl(spec_ctrl::SSBD) {
        log::info!("note: this CPU has no SPEC_CTRL, or does not keep what is written to it");
        return Ok(());
    }
    check!(keeps_spec_ctrl(own), "SPEC_CTRL does not take {own:#x}");
    let guest = build(launch::kernel::<V>(), hardware)?;
    let taken = with_context(&guest, |context| {
        context.hw.attach(hardware, guest.domain.hardware());
        let taken = context.hw.set_msr(Msr::IA32_SPEC_CTRL, spec_ctrl::SSBD);
        context.hw.detach(hardware);
        taken
    });
    check!(taken == Some(true), "the guest has no SPEC_CTRL: {taken:?}");
    let stop = run(&guest, hardware);
    let after = msr::try_read(Msr::IA32_SPEC_CTRL);
    end(&guest)?;
    drop(guest);
    while reaper::step() {}
    check!(
        stop == Some((Stop::Ended, Ending::Status(0))),
        "the guest stopped by {stop:?}"
    );
    check!(
        after == Some(own),
        "SPEC_CTRL is {after:x?}, and not {own:#x}"
    );
    Ok(())
}

fn refused_and_after<V: Vendor>(hardware: &mut V::Cpu) -> super::Outcome {
    let kernel = launch::kernel::<V>();
    let broken = build(kernel, hardware)?;
    with_context(&broken, |context| {
        context.hw.attach(hardware, broken.domain.hardware());
        let efer = context.hw.efer();
        context.hw.set_efer(efer | NO_BIT_OF_EFER);
        context.hw.detach(hardware);
    });
    let stop = run(&broken, hardware);
    check!(
        matches!(stop, Some((Stop::Ended, Ending::EntryFailed(_)))),
        "the broken one stopped by {stop:?}"
    );
    end(&broken)?;

    let sound = build(kernel, hardware)?;
    let stop = run(&sound, hardware);
    check!(
        stop == Some((Stop::Ended, Ending::Status(0))),
        "the one after it stopped by {stop:?}"
    );
    end(&sound)?;
    drop((broken, sound));
    while reaper::step() {}

    let left = {
        let frames = frames();
        frames.count(Kind::GuestRam) + frames.count(Kind::NestedTable)
    };
    check!(left == 0, "{left} frames of theirs are left");
    Ok(())
}

fn build<V: Vendor>(
    kernel: &'static Kernel<V>,
    hardware: &mut V::Cpu,
) -> Result<Ref<Vcpu<V>>, alloc::string::String> {
    root::build(kernel, hardware, "hello").map_err(|why| format!("{why}"))
}

fn with_context<V: Vendor, R>(vcpu: &Vcpu<V>, f: impl FnOnce(&mut Context<V>) -> R) -> Option<R> {
    vcpu.context.lock().as_deref_mut().map(f)
}

/// Runs until the end of the domain; how it stopped, and how the domain ended.
fn run<V: Vendor>(vcpu: &Ref<Vcpu<V>>, hardware: &mut V::Cpu) -> Option<(Stop, Ending)> {
    const SLICE_US: u64 = 100_000;
    with_context(vcpu, |context| {
        loop {
            let deadline = time::tsc() + time::ticks_of_us(SLICE_US);
            cpu::cpu().take_pending();
            time::arm(deadline);
            context.attach(hardware);
            context.set_deadline(hardware, deadline);
            let mut run = Run {
                vcpu,
                cpu: cpu::cpu(),
                hardware,
            };
            let stop = context.run_loop(&mut run, deadline);
            if stop == Stop::Ended {
                context.report();
            }
            context.detach(hardware);
            if matches!(stop, Stop::Ended | Stop::Blocked(_)) {
                return (stop, context.ending());
            }
        }
    })
}

fn end<V: Vendor>(vcpu: &Vcpu<V>) -> super::Outcome {
    loop {
        match vcpu.domain.destroy_step() {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(why) => return Err(format!("the domain cannot be destroyed: {why}")),
        }
    }
}

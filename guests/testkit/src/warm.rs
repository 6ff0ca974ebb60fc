//! What the kernel keeps once it has been needed is not what tests look for: nested tables, room in lists. All of it is needed once before
//! the accounts are opened.

use plinth_rt::Outcome;
use plinth_rt::abi::domain::platform;

use crate::kit::{self, Must};
use crate::{attacker, child, window};

/// Needs what all suites need: every window, events, and many domains at once.
pub fn up() -> Outcome {
    let memory = kit::memory(4096)?;
    let mut mappings = [const { None }; window::SLOTS as usize];
    for (slot, mapping) in (0..).zip(&mut mappings) {
        *mapping = Some(window::Mapped::new(slot, *memory, 4096)?);
    }
    let mut events = [const { None }; 16];
    for place in &mut events {
        let event = kit::event()?;
        event.bind(0).must("bind")?;
        event.signal().must("signal")?;
        *place = Some(event);
    }
    let mut children = [const { None }; 24];
    for (index, place) in children.iter_mut().enumerate() {
        let code = if index % 2 == 0 {
            child::spin()
        } else {
            child::wait()
        };
        *place = Some(child::Child::running(code)?);
    }
    Ok(())
}

/// Needs what attackers need: domains of both platforms with one to four vCPUs.
pub fn attackers() -> Outcome {
    for platform in [0, platform::PC] {
        let plan = attacker::Plan::new(|| Ok(())).on(platform);
        for vcpus in 1..=4 {
            attacker::carried_out(&plan.with_vcpus(vcpus))?;
        }
    }
    Ok(())
}

//! The door for the fuzzer, `fuzz/`: the properties that the host's tests check, with the strategies that make the steps of their
//! inputs. No
//! kernel that is booted has this module.
//!
//! Each property takes what its strategy makes; a broken one is a panic or an error.

/// The instruction decoder.
pub mod decoder {
    pub use crate::decode::tests::check;
}

/// The local APIC and its timer.
pub mod local_apic {
    pub use crate::intc::storm_tests::{
        accepts_by_priority, breaks_no_law, goes_round, tame, wild,
    };
    pub use crate::intc::timer_tests::{change, deadlines_lie_ahead};
}

/// The I/O APIC.
pub mod io_apic {
    pub use crate::intc::io_tests::{event, loses_and_doubles_nothing, reads_change_nothing};
}

/// Nested page tables.
pub mod nested {
    pub use crate::mem::nested::tests::{follows_the_model, step};
    pub use crate::mem::nested::{Ept, Npt};
}

/// The frame allocator.
pub mod frames {
    pub use crate::mem::frames::tests::{follows_the_model, hands_out_zeroes, step};
}

/// The walk of a guest's page tables.
pub mod walk {
    pub use crate::mem::walk::tests::{Case, follows_the_reference, stays_in_bounds};
}

/// Handle tables.
pub mod handles {
    pub use crate::object::handles::tests::behaves_like_a_map;
}

/// The emulation of instructions that touch devices.
pub mod emulation {
    pub use crate::exit::mmio::tests::is_bounded;
}

/// A vCPU's state, as a hypercall sets it, before VMX enters it.
pub mod vcpu_state {
    pub use crate::virt::vmx::validate::tests::{good_states, judges};
}

/// The module archive.
pub mod modules {
    pub use crate::boot::modules::tests::{archive, gives_parts_of};
}

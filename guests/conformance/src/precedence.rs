//! Where more than one thing is wrong with a call, which of them is told: handles, then arguments, then buffers and what is in
//! them, then states, then budgets.

use plinth_rt::abi::call::access;
use plinth_rt::abi::device::kind;
use plinth_rt::abi::state::part;
use plinth_rt::abi::{Call, Claim, DomainConfig, Handle, Schedule, Status, VcpuState, rights};
use plinth_rt::object::{Any, bytes_of};
use plinth_rt::{Outcome, Scratch, hypercall};

use crate::child::Life;
use crate::child::config;
use crate::kit::{Owned, PAGE, duplicate, own, raw, refuses, system};
use crate::objects::Objects;

tests!("precedence":
    handle_before_argument,
    handle_before_address,
    first_handle_before_second,
    argument_before_address,
    argument_before_state,
    address_before_state,
    content_before_state,
    handle_in_a_structure_before_its_values,
    state_before_budget,
    right_of_a_duplicate,
);

/// An address at which the suite has no memory.
const NOWHERE: u64 = 1 << 40;

fn handle_before_argument() -> Outcome {
    let objects = Objects::new()?;
    let weak = duplicate(objects.child.domain.any(), rights::READ)?;
    refuses(Call::MEMORY_CREATE, [raw(*weak), 1], Status::NO_RIGHT)?;
    refuses(
        Call::MEMORY_CREATE,
        [raw(objects.event.any()), 1],
        Status::WRONG_TYPE,
    )?;
    refuses(Call::DEVICE_LINE, [raw(*weak), 25, 2], Status::NO_RIGHT)?;
    refuses(Call::DEVICE_MSI, [raw(*weak), 0, 1 << 32], Status::NO_RIGHT)?;
    refuses(
        Call::DOMAIN_TYPE,
        [raw(*weak), 0, u64::MAX],
        Status::NO_RIGHT,
    )
}

fn handle_before_address() -> Outcome {
    let objects = Objects::new()?;
    refuses(Call::DOMAIN_CREATE, [0, NOWHERE], Status::BAD_HANDLE)?;
    refuses(
        Call::VCPU_INFO,
        [raw(objects.memory.any()), NOWHERE],
        Status::WRONG_TYPE,
    )
}

fn first_handle_before_second() -> Outcome {
    let objects = Objects::new()?;
    let weak = raw(*duplicate(objects.event.any(), rights::SIGNAL)?);
    // It is closed by now.
    refuses(Call::HANDLE_GRANT, [weak, 0, 0], Status::BAD_HANDLE)?;
    let weak = duplicate(objects.event.any(), rights::SIGNAL)?;
    refuses(Call::HANDLE_GRANT, [raw(*weak), 0, 0], Status::NO_RIGHT)?;
    let memory = raw(objects.memory.any());
    refuses(Call::EVENT_BIND_VECTOR, [memory, 0, 0], Status::WRONG_TYPE)?;
    refuses(
        Call::EVENT_BIND_VECTOR,
        [raw(objects.event.any()), memory, 0],
        Status::WRONG_TYPE,
    )
}

fn argument_before_address() -> Outcome {
    let objects = Objects::new()?;
    let domain = raw(objects.child.domain.any());
    refuses(
        Call::DOMAIN_CONSOLE,
        [domain, NOWHERE, 15, 0],
        Status::BAD_ARGUMENT,
    )?;
    refuses(
        Call::DOMAIN_READ,
        [domain, NOWHERE, 4097, NOWHERE],
        Status::BAD_ARGUMENT,
    )?;
    refuses(
        Call::VCPU_GET_STATE,
        [raw(objects.child.vcpu(0).any()), 9, NOWHERE, 8],
        Status::BAD_ARGUMENT,
    )
}

const REGISTERS: u64 = size_of::<VcpuState>() as u64;

fn argument_before_state() -> Outcome {
    let objects = Objects::new()?;
    let domain = raw(objects.child.domain.any());
    let vcpu = raw(objects.child.vcpu(0).any());
    objects.child.bring_to(Life::Running)?;
    refuses(
        Call::VCPU_GET_STATE,
        [vcpu, 9, PAGE.address(), REGISTERS],
        Status::BAD_ARGUMENT,
    )?;
    objects.child.bring_to_the_end()?;
    refuses(Call::VCPU_INTERRUPT, [vcpu, 31], Status::BAD_ARGUMENT)?;
    refuses(
        Call::DOMAIN_TYPE,
        [domain, PAGE.address(), 4097],
        Status::BAD_ARGUMENT,
    )?;
    objects.child.destroy()?;
    refuses(Call::MEMORY_CREATE, [domain, 1], Status::BAD_ARGUMENT)?;
    refuses(Call::MEMORY_UNMAP, [domain, 1, 4096], Status::BAD_ARGUMENT)?;
    refuses(Call::DEVICE_RELEASE, [domain, 77, 0], Status::BAD_ARGUMENT)?;
    // It is no PC either.
    refuses(Call::DEVICE_LINE, [domain, 25, 0], Status::BAD_ARGUMENT)?;
    refuses(Call::DEVICE_LINE, [domain, 0, 2], Status::BAD_ARGUMENT)?;
    refuses(Call::DEVICE_MSI, [domain, 0, 0x40], Status::BAD_ARGUMENT)?;
    // Memory without frames is in no state to be mapped.
    let (_, value) = hypercall::call(Call::MEMORY_CREATE, [raw(own().any()), 4096]);
    let empty = Owned(Any(Handle(value as u32)));
    refuses(
        Call::MEMORY_MAP,
        [raw(*empty), 0, raw(own().any()), 1, 4096, access::READ],
        Status::BAD_ARGUMENT,
    )
}

fn address_before_state() -> Outcome {
    let objects = Objects::new()?;
    let vcpu = raw(objects.child.vcpu(0).any());
    objects.child.bring_to(Life::Running)?;
    for call in [Call::VCPU_GET_STATE, Call::VCPU_SET_STATE] {
        refuses(
            call,
            [vcpu, part::REGISTERS, NOWHERE, REGISTERS],
            Status::BAD_ADDRESS,
        )?;
    }
    objects.child.bring_to_the_end()?;
    refuses(Call::VCPU_SCHEDULE, [vcpu, NOWHERE], Status::BAD_ADDRESS)?;
    refuses(
        Call::DEVICE_CLAIM,
        [raw(objects.child.domain.any()), NOWHERE],
        Status::BAD_ADDRESS,
    )
}

static STRUCTURE: Scratch<4096> = Scratch::new();

/// Puts a structure where calls find it; the address.
fn put(bytes: &[u8]) -> u64 {
    for (offset, byte) in bytes.iter().enumerate() {
        STRUCTURE.set(offset, *byte);
    }
    STRUCTURE.address()
}

fn content_before_state() -> Outcome {
    let objects = Objects::new()?;
    let vcpu = raw(objects.child.vcpu(0).any());
    objects.child.bring_to(Life::Running)?;
    // But for a state in which no CPU can be, which is found last.
    let impossible = VcpuState {
        cr0: 0x2000_0010,
        ..VcpuState::RESET
    };
    refuses(
        Call::VCPU_SET_STATE,
        [vcpu, part::REGISTERS, put(bytes_of(&impossible)), REGISTERS],
        Status::WRONG_STATE,
    )?;
    objects.child.bring_to_the_end()?;
    let schedule = Schedule {
        weight: 1,
        ..Schedule::USUAL
    };
    refuses(
        Call::VCPU_SCHEDULE,
        [vcpu, put(bytes_of(&schedule))],
        Status::BAD_ARGUMENT,
    )?;
    let claim = Claim {
        kind: kind::PORTS,
        memory: objects.memory.0.0.0,
        event: objects.event.0.0.0,
        reserved: 1,
        first: 0x100,
        length: 1,
        tag: 0,
    };
    let domain = raw(objects.child.domain.any());
    refuses(
        Call::DEVICE_CLAIM,
        [domain, put(bytes_of(&claim))],
        Status::BAD_ARGUMENT,
    )
}

fn handle_in_a_structure_before_its_values() -> Outcome {
    let objects = Objects::new()?;
    let claim = Claim {
        kind: 99,
        memory: 0,
        event: 0,
        reserved: 1,
        first: u64::MAX,
        length: 0,
        tag: 0,
    };
    let domain = raw(objects.child.domain.any());
    refuses(
        Call::DEVICE_CLAIM,
        [domain, put(bytes_of(&claim))],
        Status::BAD_HANDLE,
    )
}

fn state_before_budget() -> Outcome {
    let objects = Objects::new()?;
    let domain = raw(objects.child.domain.any());
    objects.child.bring_to(Life::Running)?;
    objects.child.bring_to_the_end()?;
    objects.child.destroy()?;
    refuses(Call::MEMORY_CREATE, [domain, 1 << 40], Status::WRONG_STATE)?;
    // Values of a structure come before what the budget has.
    let greedy = DomainConfig {
        frames: u64::MAX,
        vcpus: 0,
        ..config(b"greedy")
    };
    refuses(
        Call::DOMAIN_CREATE,
        [raw(system().any()), put(bytes_of(&greedy))],
        Status::BAD_ARGUMENT,
    )
}

fn right_of_a_duplicate() -> Outcome {
    let objects = Objects::new()?;
    let weak = duplicate(objects.event.any(), rights::SIGNAL)?;
    for wanted in [1 << 32 | u64::from(rights::BIND), u64::MAX] {
        refuses(
            Call::HANDLE_DUPLICATE,
            [raw(*weak), wanted],
            Status::BAD_ARGUMENT,
        )?;
    }
    refuses(
        Call::HANDLE_DUPLICATE,
        [raw(*weak), rights::BIND.into()],
        Status::NO_RIGHT,
    )
}

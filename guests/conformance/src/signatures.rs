//! What each call needs of its handles: for every call and every handle that it takes, a handle that names nothing, one of each
//! other type, and one that lacks just the right that is needed. All other arguments are as wrong as can be, which must not
//! matter: handles are looked at first, from left to right.

use plinth_rt::abi::{Call, ObjectType, Status, rights};
use plinth_rt::suite::Test;
use plinth_rt::{Outcome, check};

use crate::accounts::balanced;
use crate::kit::{Must, duplicate, raw, refuses};
use crate::objects::{Objects, TYPES};

/// A handle that a call takes.
struct Need {
    /// Which argument.
    at: usize,
    /// Its type; [`ANY`] for each.
    kind: ObjectType,
    /// The right; 0 where it depends on something else or none is needed.
    right: u32,
    /// Whether 0 stands for no object.
    optional: bool,
}

const ANY: ObjectType = ObjectType(0);

const fn need(at: usize, kind: ObjectType, right: u32) -> Need {
    Need {
        at,
        kind,
        right,
        optional: false,
    }
}

const fn any(right: u32) -> Need {
    need(0, ANY, right)
}

const fn system(right: u32) -> Need {
    need(0, ObjectType::SYSTEM, right)
}

const fn domain(right: u32) -> Need {
    need(0, ObjectType::DOMAIN, right)
}

const fn vcpu(right: u32) -> Need {
    need(0, ObjectType::VCPU, right)
}

const fn memory(right: u32) -> Need {
    need(0, ObjectType::MEMORY, right)
}

const fn event(right: u32) -> Need {
    need(0, ObjectType::EVENT, right)
}

const fn irq(right: u32) -> Need {
    need(0, ObjectType::IRQ, right)
}

const fn ports(right: u32) -> Need {
    need(0, ObjectType::PORTS, right)
}

impl Need {
    const fn second(self) -> Self {
        Self { at: 1, ..self }
    }

    const fn third(self) -> Self {
        Self { at: 2, ..self }
    }

    const fn or_none(self) -> Self {
        Self {
            optional: true,
            ..self
        }
    }
}

/// Lets `judge` have a look at each handle that the call takes, with the arguments in which the handles before it are good;
/// everything else in them is all ones.
fn for_each(
    needs: &[Need],
    mut judge: impl FnMut(&Objects, &Need, [u64; 6]) -> Outcome,
) -> Outcome {
    let objects = Objects::new()?;
    let mut arguments = [u64::MAX; 6];
    for need in needs {
        judge(&objects, need, arguments)?;
        let kind = if need.kind == ANY {
            ObjectType::EVENT
        } else {
            need.kind
        };
        let Some(good) = objects.get(kind) else {
            // The suite was not given such an object, and cannot get further.
            return Ok(());
        };
        arguments[need.at] = raw(good);
    }
    Ok(())
}

fn bad_handle(call: Call, needs: &[Need]) -> Outcome {
    for_each(needs, |objects, need, mut arguments| {
        let closed = duplicate(objects.event.any(), rights::EVENT)?;
        closed.close().must("close")?;
        let good = objects.get(need.kind).map_or(0, raw);
        for bad in [
            0,
            raw(*closed),
            0xffff,
            u32::MAX.into(),
            good | 1 << 32,
            good | 1 << 63,
            u64::MAX,
        ] {
            if bad == 0 && need.optional {
                continue;
            }
            arguments[need.at] = bad;
            refuses(call, arguments, Status::BAD_HANDLE)?;
        }
        Ok(())
    })
}

fn wrong_type(call: Call, needs: &[Need]) -> Outcome {
    for_each(needs, |objects, need, mut arguments| {
        for (kind, _) in TYPES {
            if kind == need.kind || need.kind == ANY {
                continue;
            }
            if let Some(other) = objects.get(kind) {
                arguments[need.at] = raw(other);
                refuses(call, arguments, Status::WRONG_TYPE)?;
            }
        }
        Ok(())
    })
}

fn missing_right(call: Call, needs: &[Need]) -> Outcome {
    for_each(needs, |objects, need, mut arguments| {
        for (kind, all) in TYPES {
            if need.right == 0 || need.kind != ANY && kind != need.kind {
                continue;
            }
            check!(all & need.right != 0, "{} has no such right", kind.text());
            if let Some(object) = objects.get(kind) {
                let weak = duplicate(object, all & !need.right)?;
                arguments[need.at] = raw(*weak);
                refuses(call, arguments, Status::NO_RIGHT)?;
            }
        }
        Ok(())
    })
}

macro_rules! signatures {
    ($($call:ident: [$($need:expr),+];)+) => {
        /// Three tests a call.
        pub const TESTS: &[Test] = &[$(
            (concat!("handles::", stringify!($call), "_bad_handle"),
                || balanced(|| bad_handle(Call::$call, &[$($need),+]))),
            (concat!("handles::", stringify!($call), "_wrong_type"),
                || balanced(|| wrong_type(Call::$call, &[$($need),+]))),
            (concat!("handles::", stringify!($call), "_missing_right"),
                || balanced(|| missing_right(Call::$call, &[$($need),+]))),
        )+];
    };
}

macro_rules! signatures_of_any {
    ($($call:ident)+) => {
        /// The calls that take a handle of any type and need no right.
        pub const TESTS_OF_ANY: &[Test] = &[$(
            (concat!("handles::", stringify!($call), "_bad_handle"),
                || balanced(|| bad_handle(Call::$call, &[any(0)]))),
        )+];
    };
}

signatures! {
    DOMAIN_CREATE: [system(rights::CREATE)];
    DOMAIN_START: [domain(rights::CONTROL)];
    DOMAIN_PAUSE: [domain(rights::CONTROL)];
    DOMAIN_RESUME: [domain(rights::CONTROL)];
    DOMAIN_KILL: [domain(rights::CONTROL)];
    DOMAIN_DESTROY: [domain(rights::CONTROL)];
    DOMAIN_INFO: [domain(rights::READ)];
    DOMAIN_WATCH: [domain(rights::CONTROL), event(rights::SIGNAL).second().or_none()];
    DOMAIN_CONSOLE: [domain(rights::READ)];
    DOMAIN_TYPE: [domain(rights::WRITE)];
    DOMAIN_NEXT: [system(rights::READ)];
    DOMAIN_OPEN: [system(rights::OPEN)];
    DOMAIN_READ: [domain(rights::MEMORY)];
    DOMAIN_WRITE: [domain(rights::MEMORY)];
    VCPU_CREATE: [domain(rights::CONTROL)];
    VCPU_OPEN: [domain(rights::CONTROL)];
    VCPU_GET_STATE: [vcpu(rights::READ)];
    VCPU_SET_STATE: [vcpu(rights::CONTROL)];
    VCPU_SCHEDULE: [vcpu(rights::CONTROL)];
    VCPU_INFO: [vcpu(rights::READ)];
    VCPU_INTERRUPT: [vcpu(rights::CONTROL)];
    MEMORY_CREATE: [domain(rights::CHARGE)];
    MEMORY_POPULATE: [memory(rights::WRITE)];
    MEMORY_MAP: [memory(0), domain(rights::MEMORY).third()];
    MEMORY_UNMAP: [domain(rights::MEMORY)];
    MEMORY_PROTECT: [domain(rights::MEMORY)];
    MEMORY_DIRTY: [domain(rights::MEMORY)];
    MEMORY_PHYSICAL: [system(rights::PHYSICAL)];
    MEMORY_INFO: [memory(rights::READ)];
    EVENT_CREATE: [domain(rights::CHARGE)];
    EVENT_SIGNAL: [event(rights::SIGNAL)];
    EVENT_BIND: [event(rights::BIND)];
    EVENT_BIND_VECTOR: [event(rights::BIND), vcpu(rights::CONTROL).second()];
    EVENT_UNBIND: [event(rights::BIND)];
    DEVICE_CLAIM: [domain(rights::DEVICE)];
    DEVICE_RELEASE: [domain(rights::DEVICE)];
    DEVICE_COMPLETE: [domain(rights::DEVICE)];
    DEVICE_LINE: [domain(rights::DEVICE)];
    DEVICE_MSI: [domain(rights::DEVICE)];
    DEVICE_COMPLETE_AND_WAIT: [domain(rights::DEVICE)];
    IRQ_BIND: [irq(rights::CONTROL), event(rights::SIGNAL).second()];
    IRQ_ACK: [irq(rights::CONTROL)];
    PORTS_ENABLE: [ports(rights::CONTROL), domain(rights::CONTROL).second()];
    HANDLE_GRANT: [any(rights::GRANT), domain(rights::CHARGE).second()];
    SYSTEM_INFO: [system(rights::READ)];
    SYSTEM_LOG: [system(rights::READ)];
    SYSTEM_TRACE: [system(rights::READ)];
    SYSTEM_POWER: [system(rights::POWER)];
}

signatures_of_any! { HANDLE_DUPLICATE HANDLE_CLOSE HANDLE_INFO }

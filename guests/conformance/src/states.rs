//! What each call answers in each state of the domain that it concerns.

use plinth_rt::abi::call::{access, watch};
use plinth_rt::abi::device::kind;
use plinth_rt::abi::domain::platform;
use plinth_rt::abi::state::part;
use plinth_rt::abi::{Call, Claim, Handle, Schedule, Status, VcpuState, rights};
use plinth_rt::object::{Any, bytes_of};
use plinth_rt::suite::Test;
use plinth_rt::{Outcome, check};

use crate::accounts::balanced;
use crate::child::LIVES;
use crate::child::{DATA, ENTRY, STACK};
use crate::kit::{Owned, PAGE, own, raw, to_the_end};
use crate::objects::Objects;

const OK: Status = Status::OK;
const STATE: Status = Status::WRONG_STATE;
const NONE: Status = Status::NOT_FOUND;

/// What a call may answer in the states of [`LIVES`].
type Answers = [Status; LIVES.len()];

/// The arguments of a call that is good but for the domain's state.
struct Good<'a> {
    objects: &'a Objects,
}

impl Good<'_> {
    fn domain(&self) -> u64 {
        raw(self.objects.child.domain.any())
    }

    fn vcpu(&self) -> u64 {
        raw(self.objects.child.vcpu(0).any())
    }

    fn event(&self) -> u64 {
        raw(self.objects.event.any())
    }

    fn memory(&self) -> u64 {
        raw(self.objects.memory.any())
    }

    /// The address of a page that holds these bytes.
    fn page(&self, bytes: &[u8]) -> u64 {
        for (offset, byte) in bytes.iter().enumerate() {
            PAGE.set(offset, *byte);
        }
        PAGE.address()
    }

    fn claim(&self) -> u64 {
        self.claim_of(kind::PORTS, 0x100)
    }

    fn claim_of_acknowledge(&self) -> u64 {
        self.claim_of(kind::ACKNOWLEDGE, 0)
    }

    fn claim_of(&self, kind: u32, first: u64) -> u64 {
        self.page(bytes_of(&Claim {
            kind,
            memory: self.objects.memory.0.0.0,
            event: self.objects.event.0.0.0,
            reserved: 0,
            first,
            length: 1,
            tag: 0,
        }))
    }
}

fn in_each_state(
    platform: u32,
    call: Call,
    arguments: impl Fn(&Good) -> [u64; 6],
    expected: Answers,
) -> Outcome {
    for (life, expected) in LIVES.into_iter().zip(expected) {
        let objects = Objects::on(platform)?;
        objects.child.bring_to(life)?;
        let arguments = arguments(&Good { objects: &objects });
        let handles = own_handles()?;
        let (status, value) = to_the_end(call, arguments);
        check!(
            status == expected,
            "{life:?}: {status:?}, expected {expected:?}"
        );
        // What the call made, if it made a handle in the suite's table.
        if own_handles()? > handles {
            drop(Owned(Any(Handle(value as u32))));
        }
    }
    Ok(())
}

fn own_handles() -> Result<u32, plinth_rt::Why> {
    use crate::kit::Must;
    Ok(own().info().must("own info")?.handles)
}

macro_rules! states {
    (
        $(#[$doc:meta])* $tests:ident, $name:literal, $platform:expr;
        $($call:ident($good:ident): [$($argument:expr),*], $answers:expr;)+
    ) => {
        $(#[$doc])*
        pub const $tests: &[Test] = &[$(
            (concat!($name, "::", stringify!($call)), || balanced(|| in_each_state(
                $platform,
                Call::$call,
                |$good| {
                    let mut all = [0; 6];
                    for (place, value) in all.iter_mut().zip([$($argument),*]) {
                        *place = value;
                    }
                    all
                },
                $answers,
            ))),
        )+];
    };
}

const REGISTERS: u64 = size_of::<VcpuState>() as u64;

states! {
    /// A test a call.
    TESTS, "states", 0;
    DOMAIN_START(good): [good.domain()], [OK, STATE, STATE, STATE, STATE];
    DOMAIN_PAUSE(good): [good.domain()], [STATE, OK, STATE, STATE, STATE];
    DOMAIN_RESUME(good): [good.domain()], [STATE, STATE, OK, STATE, STATE];
    DOMAIN_KILL(good): [good.domain()], [OK, OK, OK, STATE, STATE];
    DOMAIN_DESTROY(good): [good.domain()], [OK, STATE, STATE, OK, STATE];
    DOMAIN_INFO(good): [good.domain(), PAGE.address()], [OK; 5];
    DOMAIN_WATCH(good): [good.domain(), good.event(), watch::ALL], [OK, OK, OK, OK, STATE];
    DOMAIN_CONSOLE(good): [good.domain(), PAGE.address(), 4096, 0], [OK; 5];
    DOMAIN_TYPE(good): [good.domain(), PAGE.address(), 1], [OK, OK, OK, STATE, STATE];
    DOMAIN_READ(good): [good.domain(), PAGE.address(), 8, DATA], [OK, OK, OK, OK, STATE];
    DOMAIN_WRITE(good): [good.domain(), PAGE.address(), 8, DATA], [OK, OK, OK, OK, STATE];
    VCPU_CREATE(good): [good.domain()], [OK, STATE, STATE, STATE, STATE];
    VCPU_OPEN(good): [good.domain(), 0], [OK, OK, OK, OK, STATE];
    VCPU_GET_STATE(good): [good.vcpu(), part::REGISTERS, PAGE.address(), REGISTERS], [OK, STATE, OK, OK, STATE];
    VCPU_SET_STATE(good): [
        good.vcpu(),
        part::REGISTERS,
        good.page(bytes_of(&VcpuState::long_mode(ENTRY, STACK, 0))),
        REGISTERS
    ], [OK, STATE, OK, STATE, STATE];
    VCPU_SCHEDULE(good): [good.vcpu(), good.page(bytes_of(&Schedule::USUAL))], [OK, OK, OK, STATE, STATE];
    VCPU_INTERRUPT(good): [good.vcpu(), 32], [OK, OK, OK, STATE, STATE];
    MEMORY_CREATE(good): [good.domain(), 4096], [OK, OK, OK, OK, STATE];
    MEMORY_MAP(good): [good.memory(), 0, good.domain(), 0x10_0000, 4096, access::READ], [OK, OK, OK, OK, STATE];
    MEMORY_UNMAP(good): [good.domain(), STACK, 4096], [OK, OK, OK, OK, STATE];
    MEMORY_PROTECT(good): [good.domain(), STACK, 4096, access::READ], [OK, OK, OK, OK, STATE];
    MEMORY_DIRTY(good): [good.domain(), STACK, 4096, PAGE.address()], [OK, OK, OK, OK, STATE];
    EVENT_CREATE(good): [good.domain()], [OK, OK, OK, OK, STATE];
    EVENT_BIND_VECTOR(good): [good.event(), good.vcpu(), 32], [OK, OK, OK, STATE, STATE];
    DEVICE_CLAIM(good): [good.domain(), good.claim()], [OK, OK, OK, STATE, STATE];
    DEVICE_RELEASE(good): [good.domain(), kind::PORTS.into(), 0x100], [NONE, NONE, NONE, NONE, STATE];
    DEVICE_COMPLETE(good): [good.domain(), 0, 0], [STATE; 5];
    DEVICE_LINE(good): [good.domain(), 4, 1], [STATE; 5];
    DEVICE_MSI(good): [good.domain(), 0xfee0_0000, 0x40], [STATE; 5];
    DEVICE_COMPLETE_AND_WAIT(good): [good.domain(), 0, 0, 0], [STATE; 5];
    HANDLE_GRANT(good): [good.event(), good.domain(), rights::SIGNAL.into()], [OK, OK, OK, STATE, STATE];
}

states! {
    /// Those that are otherwise for a domain that is a PC.
    TESTS_OF_A_PC, "states_of_a_pc", platform::PC;
    VCPU_CREATE(good): [good.domain()], [OK, STATE, STATE, STATE, STATE];
    VCPU_INTERRUPT(good): [good.vcpu(), 32], [OK, OK, OK, STATE, STATE];
    EVENT_BIND_VECTOR(good): [good.event(), good.vcpu(), 32], [OK, OK, OK, STATE, STATE];
    DEVICE_CLAIM(good): [good.domain(), good.claim_of_acknowledge()], [OK, OK, OK, STATE, STATE];
    DEVICE_RELEASE(good): [good.domain(), kind::ACKNOWLEDGE.into(), 0], [NONE, NONE, NONE, NONE, STATE];
    DEVICE_LINE(good): [good.domain(), 4, 1], [OK, OK, OK, OK, STATE];
    DEVICE_MSI(good): [good.domain(), 0xfee0_0000, 0x40], [OK, OK, OK, OK, STATE];
}

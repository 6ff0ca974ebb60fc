//! Buffers: for every call that takes one, addresses where it is not memory, where it ends in the middle, where it wraps; and
//! memory that may not be written for those that write.

use plinth_rt::abi::call::access;
use plinth_rt::abi::state::part;
use plinth_rt::abi::{
    Call, Claim, DomainConfig, DomainInfo, MemoryInfo, Schedule, Status, SystemInfo, VcpuInfo,
    VcpuState,
};
use plinth_rt::object::bytes_of;
use plinth_rt::suite::Test;
use plinth_rt::{Outcome, check_eq, hypercall};

use crate::accounts::balanced;
use crate::child::{DATA, config};
use crate::kit::{memory, own, raw, refuses, system, to_the_end};
use crate::objects::Objects;
use crate::window::{Mapped, WINDOW};

/// Whether the call writes to its buffer or reads from it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Out,
    In,
}

const MAPPED: u64 = 2 * 4096;

fn bad_addresses(
    call: Call,
    way: Way,
    size: u64,
    arguments: impl Fn(&Objects, u64) -> [u64; 6],
) -> Outcome {
    let objects = Objects::new()?;
    let memory = memory(MAPPED)?;
    let window = Mapped::new(0, *memory, MAPPED)?;
    let bad = |address| refuses(call, arguments(&objects, address), Status::BAD_ADDRESS);
    for address in [
        window.end(),
        window.end() - size + 1,
        WINDOW - 1,
        1 << 40,
        (1 << 48) - 8,
        1 << 48,
        1 << 52,
        1 << 63,
        u64::MAX - size + 1,
        u64::MAX - 7,
        u64::MAX,
    ] {
        bad(address)?;
    }
    drop(window);
    let window = Mapped::with(0, *memory, MAPPED, access::READ)?;
    if way == Way::Out {
        bad(window.address())?;
        // The part that may be written comes first.
        let _writable = Mapped::new(1, *memory, MAPPED)?;
        bad(window.address() + 8)?;
    }
    Ok(())
}

macro_rules! buffers {
    ($($call:ident($objects:ident, $address:ident): $way:ident $size:expr, [$($argument:expr),*];)+) => {
        /// A test a call.
        pub const TESTS: &[Test] = &[$(
            (concat!("buffers::", stringify!($call)), || balanced(|| bad_addresses(
                Call::$call,
                Way::$way,
                $size as u64,
                |$objects, $address| {
                    let mut all = [0; 6];
                    for (place, value) in all.iter_mut().zip([$($argument),*]) {
                        *place = value;
                    }
                    all
                },
            ))),
        )+
            ("buffers::other_end_of_a_copy", || balanced(other_end_of_a_copy)),
            ("buffers::empty", || balanced(empty)),
            ("buffers::unaligned_and_across_pages", || balanced(unaligned_and_across_pages)),
            ("buffers::read_only_to_read", || balanced(read_only_to_read)),
        ];
    };
}

const REGISTERS: u64 = size_of::<VcpuState>() as u64;

fn domain(objects: &Objects) -> u64 {
    raw(objects.child.domain.any())
}

fn vcpu(objects: &Objects) -> u64 {
    raw(objects.child.vcpu(0).any())
}

fn machine() -> u64 {
    raw(system().any())
}

buffers! {
    DOMAIN_CREATE(_o, at): In size_of::<DomainConfig>(), [machine(), at];
    DOMAIN_INFO(o, at): Out size_of::<DomainInfo>(), [domain(o), at];
    DOMAIN_CONSOLE(o, at): Out 4096, [domain(o), at, 4096, 0];
    DOMAIN_TYPE(o, at): In 64, [domain(o), at, 64];
    DOMAIN_READ(o, at): Out 4096, [domain(o), at, 4096, DATA];
    DOMAIN_WRITE(o, at): In 4096, [domain(o), at, 4096, DATA];
    VCPU_GET_STATE(o, at): Out REGISTERS, [vcpu(o), part::REGISTERS, at, REGISTERS];
    VCPU_SET_STATE(o, at): In REGISTERS, [vcpu(o), part::REGISTERS, at, REGISTERS];
    VCPU_SCHEDULE(o, at): In size_of::<Schedule>(), [vcpu(o), at];
    VCPU_INFO(o, at): Out size_of::<VcpuInfo>(), [vcpu(o), at];
    MEMORY_DIRTY(o, at): Out 1, [domain(o), DATA, 4096, at];
    MEMORY_INFO(o, at): Out size_of::<MemoryInfo>(), [raw(o.memory.any()), at];
    DEVICE_CLAIM(o, at): In size_of::<Claim>(), [domain(o), at];
    SYSTEM_INFO(_o, at): Out size_of::<SystemInfo>(), [machine(), at];
    SYSTEM_LOG(_o, at): Out 4096, [machine(), at, 4096, 0];
    SYSTEM_TRACE(_o, at): Out 4096, [machine(), at, 4096, 0];
    CONSOLE_WRITE(_o, at): In 64, [at, 64];
    CONSOLE_READ(_o, at): Out 64, [at, 64];
}

/// The other end of a copy.
fn other_end_of_a_copy() -> Outcome {
    let objects = Objects::new()?;
    let page = crate::kit::PAGE.address();
    let domain = domain(&objects);
    for call in [Call::DOMAIN_READ, Call::DOMAIN_WRITE] {
        for (length, gpa) in [
            (1, 0x10_0000),
            (4096, 0x3001),
            (2, 0x3fff),
            (1, 1 << 40),
            (1, 1 << 48),
            (1, 1 << 63),
            (8, u64::MAX - 3),
            (4096, u64::MAX - 4094),
            (1, u64::MAX),
        ] {
            refuses(call, [domain, page, length, gpa], Status::BAD_ADDRESS)?;
        }
    }
    Ok(())
}

/// A buffer of no length is good wherever it is.
fn empty() -> Outcome {
    let objects = Objects::new()?;
    let domain = domain(&objects);
    for at in [0, 1 << 40, 1 << 63, u64::MAX] {
        for (call, arguments) in [
            (Call::CONSOLE_WRITE, [at, 0, 0, 0]),
            (Call::CONSOLE_READ, [at, 0, 0, 0]),
            (Call::DOMAIN_TYPE, [domain, at, 0, 0]),
            (Call::DOMAIN_READ, [domain, at, 0, DATA]),
            (Call::DOMAIN_WRITE, [domain, at, 0, DATA]),
            (Call::DOMAIN_READ, [domain, DATA, 0, at]),
            (Call::DOMAIN_WRITE, [domain, DATA, 0, at]),
        ] {
            let (status, value) = hypercall::call(call, arguments);
            plinth_rt::check!(
                status == Status::OK,
                "{} at {at:#x}: {status:?}",
                call.name()
            );
            check_eq!(value, 0, "bytes");
        }
    }
    Ok(())
}

/// A structure may lie at any address.
fn unaligned_and_across_pages() -> Outcome {
    let objects = Objects::new()?;
    let memory = memory(MAPPED)?;
    let window = Mapped::new(0, *memory, MAPPED)?;
    for offset in [1, 4096 - 3, 4096 - 143] {
        let at = window.address() + offset;
        crate::kit::answers(Call::DOMAIN_INFO, [domain(&objects), at], Status::OK)?;
        let seen = window.bytes::<5>(offset);
        plinth_rt::check!(&seen == b"child", "name {seen:x?} at {offset}");
    }
    window.write(4096 - 20, bytes_of(&config(b"across")));
    let made = crate::kit::answers(
        Call::DOMAIN_CREATE,
        [machine(), window.address() + 4096 - 20],
        Status::OK,
    )?;
    let made: crate::child::Temporary =
        plinth_rt::object::Domain(plinth_rt::abi::Handle(made as u32)).into();
    let info = crate::kit::Must::must(made.info(), "info")?;
    plinth_rt::check!(info.name.starts_with(b"across\0"), "name {:x?}", info.name);
    Ok(())
}

/// What may be read is good for calls that only read.
fn read_only_to_read() -> Outcome {
    let objects = Objects::new()?;
    let memory = memory(MAPPED)?;
    let window = Mapped::new(0, *memory, MAPPED)?;
    window.write(0, b"constant");
    drop(window);
    let window = Mapped::with(0, *memory, MAPPED, access::READ)?;
    let write = [domain(&objects), window.address(), 8, DATA];
    let (status, _) = to_the_end(Call::DOMAIN_WRITE, write);
    plinth_rt::check!(status == Status::OK, "{status:?}");
    check_eq!(
        objects.child.word(DATA)?,
        u64::from_le_bytes(*b"constant"),
        "copy"
    );
    // The suite's own page table maps it for writing; the nested one does not.
    let own = raw(own().any());
    refuses(
        Call::DOMAIN_READ,
        [own, window.address(), 8, crate::kit::PAGE.address()],
        Status::BAD_ADDRESS,
    )
}

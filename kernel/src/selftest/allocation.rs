//! Allocations that fail: in turn each one that is made on a domain's way from its creation to its end.
//!
//! The calls are those of `docs/abi.md`, made on behalf of a vCPU that never runs. One that fails has done nothing: made once more, it
//! must succeed, and when everything has been given back, the machine must have what it has after a life in which nothing
//! failed. Each life has a kernel of its own, so that tables that grow begin empty.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use plinth_abi::call::{access, watch};
use plinth_abi::device::kind;
use plinth_abi::domain::{NAME, platform};
use plinth_abi::state::part;
use plinth_abi::{Call, Claim, DomainConfig, Schedule, Status, VcpuState, rights};
use zerocopy::{FromZeros, IntoBytes};

use super::{check, tests};
use crate::arch::cpu;
use crate::boot::cmdline;
use crate::mem::frames::frames;
use crate::mem::{Access, Amounts, Gpa, PAGE_SIZE, PageSize, Ref, faults, heap, reaper};
use crate::object::{Context, Domain, Entry, Kernel, Memory, Object, Run, Vcpu};
use crate::virt::svm::Svm;
use crate::virt::vmx::Vmx;
use crate::virt::{Vcpu as _, Vendor};
use crate::{hypercall, launch, log};

tests!("allocation": each_may_fail_on_the_way_from_create_to_destroy);

/// More allocations than any life makes.
const MANY: u64 = 1000;
/// Fewer than any life makes: a domain has tables, two vCPUs, three Memory objects, handles.
const FEW: u64 = 30;
/// Where the caller has its buffer: its one page.
const BUFFER: u64 = 0;
/// Ports that the caller may let others use: of the machine's clock.
const PORTS: (u16, u16) = (0x70, 2);
/// A page in the hole below 4 GiB in which a PC has no RAM, and Plinth no device.
const DEVICE: u64 = 0xfd00_0000;
const LARGE: u64 = PageSize::Size2M.bytes();
const SMALL: u64 = 4 * PAGE_SIZE;

fn each_may_fail_on_the_way_from_create_to_destroy() -> super::Outcome {
    if Vmx::probe().is_ok() {
        with::<Vmx>()
    } else {
        with::<Svm>()
    }
}

fn with<V: Vendor>() -> super::Outcome {
    let mut hardware = V::enable().map_err(|lack| format!("{lack}"))?;
    // Each life would tell of the machine's memory and of an end.
    log::set_level(::log::LevelFilter::Warn);
    let outcome = all::<V>(&mut hardware);
    log::set_level(cmdline::options().log);
    V::disable(&mut hardware);
    outcome
}

fn all<V: Vendor>(hardware: &mut V::Cpu) -> super::Outcome {
    let usual = life::<V>(hardware, 0)?;
    for n in 1..MANY {
        let life =
            life::<V>(hardware, n).map_err(|why| format!("without allocation {n}: {why}"))?;
        check!(
            life.kept == usual.kept,
            "without allocation {n}, {:?} stay with the kernel, otherwise {:?}",
            life.kept,
            usual.kept
        );
        if !life.has_failed {
            ::log::info!("{} allocations have failed", n - 1);
            check!(n > FEW, "there are only {} allocations", n - 1);
            return Ok(());
        }
    }
    Err(format!("there is no end of allocations: {MANY}"))
}

/// What came of a life.
struct Life {
    /// Frames and heap that the kernel keeps for the next, by the accounts of [`amounts`].
    kept: [i64; 4],
    /// The allocation that was to fail was made.
    has_failed: bool,
}

/// Free frames, heap in use, and the frames and the heap that the domains' budget has left.
fn amounts<V: Vendor>(kernel: &Kernel<V>) -> [i64; 4] {
    let (used, limit): (Amounts, Amounts) = kernel.whole.amounts();
    [
        frames().free_frames() as i64,
        heap::used() as i64,
        limit.frames as i64 - used.frames as i64,
        limit.heap as i64 - used.heap as i64,
    ]
}

/// A domain's life, in which the `n`-th allocation fails; none for 0.
fn life<V: Vendor>(hardware: &mut V::Cpu, n: u64) -> Result<Life, String> {
    let kernel = launch::kernel::<V>();
    let (vcpu, first) =
        caller(kernel).map_err(|why| format!("the caller cannot be made: {why}"))?;
    let (before, after, has_failed) = {
        let mut guard = vcpu.context.lock();
        let Some(context) = guard.as_deref_mut() else {
            return Err("the caller has no context".into());
        };
        context.attach(hardware);
        let mut calls = Calls {
            context,
            run: Run {
                vcpu: &vcpu,
                cpu: cpu::cpu(),
                hardware,
            },
            first,
            given: Vec::with_capacity(32),
            failing: n,
        };
        let before = amounts(kernel);
        let outcome = lives(&mut calls);
        let has_failed = calls.failing == 0;
        let Calls { context, run, .. } = calls;
        context.detach(run.hardware);
        outcome?;
        (before, amounts(kernel), has_failed)
    };
    while !vcpu
        .domain
        .destroy_step()
        .map_err(|why| format!("the caller cannot be destroyed: {why}"))?
    {}
    drop(vcpu);
    while reaper::step() {}
    Ok(Life {
        kept: core::array::from_fn(|index| after[index] - before[index]),
        has_failed: n != 0 && has_failed,
    })
}

/// The vCPU on whose behalf the calls are made. Its handles: the system, its domain, and ports.
fn caller<V: Vendor>(kernel: &'static Kernel<V>) -> Result<(Ref<Vcpu<V>>, [u64; 3]), Status> {
    let number = kernel.new_number().ok_or(Status::NO_MEMORY)?;
    let (_, limit) = kernel.whole.amounts();
    let config = DomainConfig {
        frames: limit.frames,
        heap: limit.heap,
        handles: 64,
        vcpus: 1,
        ..DomainConfig::new_zeroed()
    };
    let whole = kernel.whole.clone();
    let domain = Domain::new(kernel, number, "caller", &config, whole, false)?;
    kernel.list(domain.clone())?;
    let memory = Memory::new(PAGE_SIZE, number, &domain.budget)?;
    memory.populate()?;
    let both = Access::READ | Access::WRITE;
    domain
        .with_space(|space| space.map(Gpa::new(BUFFER), &memory, 0, PAGE_SIZE, both, both))
        .ok_or(Status::WRONG_STATE)?
        .map_err(|_| Status::NO_MEMORY)?;
    let give = |object| {
        domain.reserve_handle()?;
        let handle = domain.add_handle(Entry::full(object))?;
        Ok(u64::from(handle.0))
    };
    let handles = [
        give(Object::System)?,
        give(Object::Domain(domain.clone()))?,
        give(Object::Ports(PORTS.0, PORTS.1))?,
    ];
    Ok((domain.add_vcpu()?, handles))
}

/// Makes calls on behalf of a vCPU.
struct Calls<'a, 'b, V: Vendor> {
    context: &'a mut Context<V>,
    run: Run<'b, V>,
    /// The handles that it began with.
    first: [u64; 3],
    /// Those that calls have given.
    given: Vec<u64>,
    /// The allocation that is to fail, counted from the next call on; 0: it has, or none is to.
    failing: u64,
}

impl<V: Vendor> Calls<'_, '_, V> {
    /// Makes a call, and makes it once more where an allocation failed; the value.
    fn call(&mut self, number: Call, arguments: &[u64]) -> Result<u64, String> {
        let what = |why| format!("{number:?}: {why}");
        let mut all = [0; 6];
        for (to, from) in all.iter_mut().zip(arguments) {
            *to = *from;
        }
        let arguments = &mut all;
        if self.failing == 0 {
            return self.until_done(number, arguments).map_err(what);
        }
        let before = frames().free_frames();
        let (result, left) = {
            faults::arm(self.failing);
            let result = self.until_done(number, arguments);
            (result, faults::arm(0))
        };
        match (result, left) {
            (Ok(value), 1..) => {
                self.failing = left;
                Ok(value)
            }
            (Ok(_), 0) => Err(format!("{number:?} succeeded without an allocation")),
            (Err(Status::NO_MEMORY | Status::OVER_BUDGET), 0) => {
                self.failing = 0;
                while reaper::step() {}
                let free = frames().free_frames();
                check!(
                    free == before || matches!(number, Call::MEMORY_POPULATE | Call::MEMORY_MAP),
                    "{number:?} failed, and {} frames are gone",
                    before as i64 - free as i64
                );
                self.until_done(number, arguments)
                    .map_err(|why| format!("{number:?}, once more: {why}"))
            }
            (Err(why), _) => Err(what(why)),
        }
    }

    /// Makes a call until it is done; the value. Where it fails, `arguments` are for what is left to be done.
    fn until_done(&mut self, number: Call, arguments: &mut [u64; 6]) -> Result<u64, Status> {
        loop {
            let gprs = self.context.hw.gprs_mut();
            [gprs.rdi, gprs.rsi, gprs.rdx, gprs.r10, gprs.r8, gprs.r9] = *arguments;
            hypercall::other(self.context, &mut self.run, number);
            let gprs = self.context.hw.gprs();
            let done = gprs.rdx;
            let [_, offset_or_at, len, at, len_to_map, _] = arguments;
            match (Status(gprs.rax), number) {
                (Status::OK, _) => return Ok(done),
                (Status::AGAIN, Call::DOMAIN_DESTROY | Call::MEMORY_POPULATE) => {}
                (Status::AGAIN, Call::MEMORY_MAP) => {
                    *offset_or_at += done;
                    *at += done;
                    *len_to_map -= done;
                }
                (Status::AGAIN, Call::MEMORY_UNMAP | Call::MEMORY_PROTECT) => {
                    *offset_or_at += done;
                    *len -= done;
                }
                (why, _) => return Err(why),
            }
        }
    }

    /// As [`Calls::call`], whose value is a handle.
    fn make(&mut self, number: Call, arguments: &[u64]) -> Result<u64, String> {
        let handle = self.call(number, arguments)?;
        self.given.push(handle);
        Ok(handle)
    }

    /// Puts a structure where calls find it.
    fn put(&self, bytes: &[u8]) -> Result<u64, String> {
        self.context
            .domain
            .put(BUFFER, bytes)
            .map_err(|why| format!("the buffer: {why}"))?;
        Ok(BUFFER)
    }
}

/// From create to destroy, by every call that allocates.
fn lives<V: Vendor>(calls: &mut Calls<'_, '_, V>) -> Result<(), String> {
    let [system, own, ports] = calls.first;
    let mut config = DomainConfig {
        name: [0; NAME],
        frames: 1200,
        heap: 256 << 10,
        handles: 64,
        vcpus: 2,
        platform: platform::PC,
        reserved: 0,
        wall_clock: 0,
    };
    config.name[..4].copy_from_slice(b"life");
    let at = calls.put(config.as_bytes())?;
    let domain = calls.make(Call::DOMAIN_CREATE, &[system, at])?;

    let small = calls.make(Call::MEMORY_CREATE, &[domain, SMALL])?;
    let large = calls.make(Call::MEMORY_CREATE, &[domain, LARGE])?;
    let slots = calls.make(Call::MEMORY_CREATE, &[own, PAGE_SIZE])?;
    let device = calls.make(Call::MEMORY_PHYSICAL, &[system, DEVICE, PAGE_SIZE])?;
    for memory in [small, large, slots] {
        calls.call(Call::MEMORY_POPULATE, &[memory])?;
    }
    let data = access::READ | access::WRITE;
    for (memory, gpa, len, allowed) in [
        (small, 0, SMALL, access::ALL),
        (large, LARGE, LARGE, access::ALL),
        (device, 1 << 39, PAGE_SIZE, data),
    ] {
        calls.call(Call::MEMORY_MAP, &[memory, 0, domain, gpa, len, allowed])?;
    }
    // These split what is mapped by a large page.
    let inside = LARGE + PAGE_SIZE;
    calls.call(
        Call::MEMORY_PROTECT,
        &[domain, inside, PAGE_SIZE, access::READ],
    )?;
    calls.call(Call::MEMORY_UNMAP, &[domain, inside, PAGE_SIZE])?;
    if V::notes_writes() {
        calls.call(Call::MEMORY_DIRTY, &[domain, 0, SMALL, BUFFER])?;
    }

    let vcpu = calls.make(Call::VCPU_CREATE, &[domain])?;
    calls.make(Call::VCPU_CREATE, &[domain])?;
    calls.make(Call::VCPU_OPEN, &[domain, 0])?;
    let at = calls.put(VcpuState::RESET.as_bytes())?;
    let bytes = size_of::<VcpuState>() as u64;
    calls.call(Call::VCPU_SET_STATE, &[vcpu, part::REGISTERS, at, bytes])?;
    let schedule = Schedule {
        weight: 256,
        cpu: Schedule::ANY_CPU,
        ..Schedule::new_zeroed()
    };
    let at = calls.put(schedule.as_bytes())?;
    calls.call(Call::VCPU_SCHEDULE, &[vcpu, at])?;

    let event = calls.make(Call::EVENT_CREATE, &[own])?;
    calls.call(Call::EVENT_BIND, &[event, 1])?;
    calls.call(
        Call::DOMAIN_WATCH,
        &[domain, event, watch::ENDED | watch::CONSOLE],
    )?;
    let line = calls.make(Call::EVENT_CREATE, &[domain])?;
    calls.call(Call::EVENT_BIND_VECTOR, &[line, vcpu, 0x40])?;
    calls.call(Call::EVENT_SIGNAL, &[line])?;
    let claim = Claim {
        kind: kind::PORTS,
        memory: slots as u32,
        event: event as u32,
        reserved: 0,
        first: 0x80,
        length: 1,
        tag: 0,
    };
    let at = calls.put(claim.as_bytes())?;
    calls.call(Call::DEVICE_CLAIM, &[domain, at])?;
    calls.call(Call::PORTS_ENABLE, &[ports, domain])?;
    calls.make(Call::HANDLE_DUPLICATE, &[event, rights::EVENT.into()])?;
    calls.call(Call::HANDLE_GRANT, &[event, domain, rights::SIGNAL.into()])?;

    for step in [
        Call::DOMAIN_START,
        Call::DOMAIN_PAUSE,
        Call::DOMAIN_RESUME,
        Call::DOMAIN_KILL,
        Call::DOMAIN_DESTROY,
    ] {
        calls.call(step, &[domain])?;
    }
    while let Some(handle) = calls.given.pop() {
        calls.call(Call::HANDLE_CLOSE, &[handle])?;
    }
    while reaper::step() {}
    Ok(())
}

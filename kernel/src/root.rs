//! The first domain: made from its module, given the first handles, and started anew when it crashes.
//!
//! What it may do follows from its handles alone, like any domain's. What is special about it is its life: when it ends by its own
//! wish so does the machine, and when it crashes (or says by its status that it panicked) a new one takes its place, while all other
//! domains go on.

use core::fmt;

use plinth_abi::domain::{MAX_HANDLES, NAME, status};
use plinth_abi::system::{START_ENTRIES, START_MAGIC, start};
use plinth_abi::{DomainConfig, DomainState, Handle, StartEntry, StartInfo, Status, rights};
use plinth_image::{Executable, ImageError};
use zerocopy::{FromZeros, IntoBytes};

use crate::arch::{paging, power, time};
use crate::boot::{cmdline, modules};
use crate::mem::{Access, Gpa, Hpa, Hva, PAGE_SIZE, Ref, reaper};
use crate::object::{Domain, Ending, Entry, Kernel, Memory, Object, Vcpu};
use crate::virt::Vendor;

/// The guest that is the first domain unless the command line names another.
const CONTROL: &str = "control";
/// Its RAM in bytes. All of it is cleared before the domain starts; whoever needs more makes itself Memory objects.
const RAM: u64 = 16 << 20;
/// Where the module archive is mapped.
const MODULES: u64 = 0x3800_0000;
/// Where it finds what it has.
const START_INFO: u64 = MODULES - PAGE_SIZE;
/// The serial port that it is given: the first I/O port, how many, and the ISA line.
const SERIAL: (u16, u16, u8) = (0x3f8, 8, 4);
/// The ports of the machine's clock, which the kernel never reads: the first, and how many.
const CLOCK: (u16, u16) = (0x70, 2);
/// So many crashes in so many nanoseconds are too many.
const CRASHES: usize = 4;
const CRASH_TIME_NS: u64 = 10_000_000_000;
/// Exit status of a machine whose first domain cannot be kept alive.
const NO_ROOT: u32 = 103;

/// The life of the first domain.
pub struct Root<V: Vendor> {
    /// It; none while another is made.
    pub domain: Option<Ref<Domain<V>>>,
    restarts: u32,
    /// When it crashed last, the latest first.
    crashes: [Option<u64>; CRASHES],
    /// Its end has been looked at.
    is_reported: bool,
}

impl<V: Vendor> Default for Root<V> {
    fn default() -> Self {
        Self {
            domain: None,
            restarts: 0,
            crashes: [None; CRASHES],
            is_reported: false,
        }
    }
}

/// Why there is no first domain.
pub(crate) enum Why {
    NoModule,
    Image(ImageError),
    Status(&'static str, Status),
    BadState(&'static str),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoModule => f.write_str("the module archive has no such guest"),
            Self::Image(why) => write!(f, "bad image: {why}"),
            Self::Status(what, why) => write!(f, "{what}: {why}"),
            Self::BadState(why) => write!(f, "bad initial state: {why}"),
        }
    }
}

/// Makes the first domain and lets it run; ends the machine where that cannot be done.
pub fn start<V: Vendor>(kernel: &'static Kernel<V>, hardware: &mut V::Cpu) {
    let name = cmdline::options().root.unwrap_or(CONTROL);
    let started = build(kernel, hardware, name).and_then(|vcpu| {
        let domain = vcpu.domain.clone();
        domain
            .let_run(DomainState::CREATED)
            .map_err(failed("its start"))?;
        Ok(domain.number)
    });
    match started {
        Ok(number) => {
            ::log::info!(
                "domain {number} \"{name}\" starts: {} MiB of RAM",
                RAM >> 20
            );
        }
        Err(why) => {
            ::log::error!("the first domain, \"{name}\", cannot be made: {why}");
            power::end(cmdline::options().end, NO_ROOT);
        }
    }
}

/// What a step could not do.
fn failed(what: &'static str) -> impl Fn(Status) -> Why {
    move |status| Why::Status(what, status)
}

/// Makes a first domain out of the guest `name`: its vCPU, ready to run.
pub(crate) fn build<V: Vendor>(
    kernel: &'static Kernel<V>,
    hardware: &mut V::Cpu,
    name: &str,
) -> Result<Ref<Vcpu<V>>, Why> {
    let mut path = heapless::String::<64>::new();
    let named = path.push_str("guests/").and_then(|()| path.push_str(name));
    let image = named
        .ok()
        .and_then(|()| modules::modules().find(&path))
        .ok_or(Why::NoModule)?;
    let image = Executable::parse(image).map_err(Why::Image)?;
    let (_, limit) = kernel.whole.amounts();
    let config = DomainConfig {
        name: [0; NAME],
        frames: limit.frames,
        heap: limit.heap,
        handles: MAX_HANDLES,
        vcpus: 1,
        platform: 0,
        reserved: 0,
        wall_clock: 0,
    };
    let number = kernel
        .new_number()
        .ok_or(Why::Status("its number", Status::NO_MEMORY))?;
    let domain = Domain::new(kernel, number, name, &config, kernel.whole.clone(), true)
        .map_err(failed("the domain"))?;
    kernel
        .list(domain.clone())
        .map_err(failed("the list of domains"))?;
    let restarts = {
        let mut root = kernel.root.lock();
        root.domain = Some(domain.clone());
        root.is_reported = false;
        root.restarts
    };

    let whole = Access::READ | Access::WRITE | Access::EXEC;
    let ram = own_memory(&domain, 0, RAM, whole).map_err(failed("its RAM"))?;
    own_memory(&domain, START_INFO, PAGE_SIZE, Access::READ)
        .map_err(failed("its start information"))?;
    let mut state = image
        .load(RAM, &mut |gpa, bytes| {
            domain.write_guest(Gpa::new(gpa), bytes).is_ok()
        })
        .map_err(Why::Image)?;
    state.rsi = START_INFO;
    let info = endow(&domain, &ram, restarts).map_err(failed("its handles"))?;
    domain
        .put(START_INFO, info.as_bytes())
        .map_err(failed("its start information"))?;

    let vcpu = domain.add_vcpu().map_err(failed("its vCPU"))?;
    if let Some(context) = vcpu.context.lock().as_deref_mut() {
        context
            .set_state(&vcpu, hardware, &state)
            .map_err(|why| Why::BadState(why.0))?;
    }
    Ok(vcpu)
}

/// Memory of the domain's own, mapped at `gpa`.
fn own_memory<V: Vendor>(
    domain: &Ref<Domain<V>>,
    gpa: u64,
    bytes: u64,
    access: Access,
) -> Result<Ref<Memory>, Status> {
    let memory = Memory::new(bytes, domain.number, &domain.budget)?;
    loop {
        match memory.populate() {
            Ok(populated) if populated == bytes => break,
            Ok(_) => {}
            Err(Status::AGAIN) => {
                reaper::step();
            }
            Err(why) => return Err(why),
        }
    }
    map(domain, gpa, &memory, access)?;
    Ok(memory)
}

fn map<V: Vendor>(
    domain: &Domain<V>,
    gpa: u64,
    memory: &Ref<Memory>,
    access: Access,
) -> Result<(), Status> {
    let mut done = 0;
    while done < memory.bytes() {
        let left = memory.bytes() - done;
        let at = Gpa::new(gpa + done);
        done += domain
            .with_space(|space| space.map(at, memory, done, left, access, access))
            .ok_or(Status::WRONG_STATE)?
            .map_err(|_| Status::NO_MEMORY)?;
    }
    Ok(())
}

/// Gives the domain what it has from its start.
fn endow<V: Vendor>(
    domain: &Ref<Domain<V>>,
    ram: &Ref<Memory>,
    restarts: u32,
) -> Result<StartInfo, Status> {
    let give = |entry: Entry<V>| {
        domain.reserve_handle()?;
        domain.add_handle(entry)
    };
    let mut entries = heapless::Vec::<StartEntry, START_ENTRIES>::new();
    let mut note = |kind, handle: Handle, first, length| {
        // There is room for more kinds than there are.
        let _ = entries.push(StartEntry {
            kind,
            handle: handle.0,
            first,
            length,
        });
    };
    note(start::SYSTEM, give(Entry::full(Object::System))?, 0, 0);
    note(
        start::SELF,
        give(Entry::full(Object::Domain(domain.clone())))?,
        0,
        0,
    );
    note(
        start::RAM,
        give(Entry::full(Object::Memory(ram.clone())))?,
        0,
        ram.bytes(),
    );
    if let Some((archive, bytes)) = archive() {
        let memory = Memory::physical(archive, bytes.next_multiple_of(PAGE_SIZE), &domain.budget)?;
        map(domain, MODULES, &memory, Access::READ)?;
        let entry = Entry {
            object: Object::Memory(memory),
            rights: rights::READ | rights::GRANT,
        };
        note(start::MODULES, give(entry)?, MODULES, bytes);
    }
    let (port, count, line) = SERIAL;
    let ports = give(Entry::full(Object::Ports(port, count)))?;
    note(start::PORTS, ports, port.into(), count.into());
    let (port, count) = CLOCK;
    let ports = give(Entry::full(Object::Ports(port, count)))?;
    note(start::PORTS, ports, port.into(), count.into());
    note(
        start::IRQ,
        give(Entry::full(Object::Irq(line)))?,
        line.into(),
        1,
    );

    let mut info = StartInfo::new_zeroed();
    info.magic = START_MAGIC;
    info.count = entries.len() as u32;
    info.restarts = restarts;
    for (to, from) in info.entries.iter_mut().zip(entries) {
        *to = from;
    }
    Ok(info)
}

/// Where the module archive lies, and its length, if it is in one piece.
fn archive() -> Option<(Hpa, u64)> {
    let bytes = modules::archive();
    let start = bytes.as_ptr() as u64;
    let first = paging::translate(Hva::new(start))?;
    let pages = (bytes.len() as u64).div_ceil(PAGE_SIZE);
    let whole = (0..pages).all(|page| {
        let offset = page * PAGE_SIZE;
        paging::translate(Hva::new(start + offset)) == first.checked_add(offset)
    });
    (whole && pages != 0 && first.is_aligned(PAGE_SIZE)).then_some((first, bytes.len() as u64))
}

/// Looks at the end of the first domain: a bounded piece of what follows from it. Called by one CPU only.
pub fn attend<V: Vendor>(kernel: &'static Kernel<V>, hardware: &mut V::Cpu) {
    let domain = kernel.root.lock().domain.clone();
    let Some(domain) = domain else {
        return;
    };
    let ending = domain.life.lock().ending;
    let Some((ending, ..)) = ending else {
        return;
    };
    if let Ending::Status(status) = ending
        && !matches!(status, status::PANIC | status::TRAP)
    {
        V::disable(hardware);
        power::end(
            cmdline::options().end,
            u32::try_from(status).unwrap_or(u32::MAX),
        );
    }
    report(kernel, &domain);
    let done = match domain.destroy_step() {
        // Somebody else has destroyed it to the end.
        Err(Status::WRONG_STATE) => true,
        Err(_) => false,
        Ok(done) => done,
    };
    // The new one may need the memory of the old.
    if done && domain.is_reaped() {
        kernel.root.lock().restarts += 1;
        start(kernel, hardware);
    } else {
        reaper::step();
        kernel.sched.ask_for_attention();
    }
}

/// Tells of a crash, once, and ends the machine where there are too many.
fn report<V: Vendor>(kernel: &'static Kernel<V>, domain: &Domain<V>) {
    let now = time::ns_since_boot();
    let oldest = {
        let mut root = kernel.root.lock();
        if root.is_reported {
            return;
        }
        root.is_reported = true;
        root.crashes.rotate_right(1);
        let oldest = root.crashes.first().copied().flatten();
        if let Some(latest) = root.crashes.first_mut() {
            *latest = Some(now);
        }
        oldest
    };
    // Nobody serves its devices any more.
    kernel.unbind_irqs();
    let are_too_many = oldest.is_some_and(|oldest| now - oldest < CRASH_TIME_NS);
    if are_too_many && !cmdline::options().restart_always {
        ::log::error!(
            "\"{}\" has crashed {} times within {} s: the machine cannot be controlled",
            domain.name(),
            CRASHES + 1,
            CRASH_TIME_NS / 1_000_000_000
        );
        power::end(cmdline::options().panic, NO_ROOT);
    }
    ::log::error!(
        "\"{}\" has crashed; it is started anew, the other domains go on",
        domain.name()
    );
}

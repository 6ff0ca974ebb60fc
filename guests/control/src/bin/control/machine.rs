//! Building: a domain, of what a machine's file says.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use plinth_guest_control::config::{Grant, Machine};
use plinth_guest_control::format;
use plinth_image::{Executable, FIRMWARE};
use plinth_rt::abi::call::access;
use plinth_rt::abi::domain::NAME;
use plinth_rt::abi::system::{START_ENTRIES, START_MAGIC, start};
use plinth_rt::abi::{
    DomainConfig, Handle, Schedule, StartEntry, StartInfo, Status, VcpuState, rights,
};
use plinth_rt::object::{Domain, Memory, bytes_of};

use crate::control::Control;
use crate::window::Loader;

const PAGE: u64 = 4096;
const LARGE_PAGE: u64 = 2 << 20;
/// The end of what an ordinary guest's first page tables map.
const MAPPED: u64 = 1 << 30;
/// The end of firmware's RAM.
const FOUR_GIB: u64 = 1 << 32;
/// Frames that every domain needs: the upper levels of its nested page tables.
const TABLES: u64 = 16;
/// Frames that each vCPU needs.
const VCPU: u64 = 4;
/// Of the budget for domains that a domain makes, one part in so many is added as kernel heap: a domain of 2 MiB needs 32 KiB.
const HEAP_SHARE: u64 = 32;
/// Handles of a domain that is given none, and of one that is.
const FEW_HANDLES: u32 = 16;
const MANY_HANDLES: u32 = 1024;

/// Why a domain could not be built.
pub struct Failure {
    /// What was being done.
    step: String,
    /// What went wrong.
    why: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step, self.why)
    }
}

/// Names the step of an error.
trait Step<T> {
    fn step(self, step: &str) -> Result<T, Failure>;
}

impl<T, E: fmt::Display> Step<T> for Result<T, E> {
    fn step(self, step: &str) -> Result<T, Failure> {
        self.map_err(|why| Failure {
            step: step.to_string(),
            why: why.to_string(),
        })
    }
}

/// Makes the domain, ready to be started. After a failure nothing of it is left.
pub fn build(control: &Control, name: &str, machine: &Machine) -> Result<Domain, Failure> {
    let image = control
        .archive
        .find(&machine.image)
        .ok_or("the module archive has no such file")
        .step(&machine.image)?;
    let executable = Executable::parse(image).step(&machine.image)?;
    if let Some(cpu) = machine.cpu {
        let cpus = control.system.info().step("asking for the CPUs")?.cpus;
        if cpu.0 >= cpus {
            return Err(Failure {
                step: "its CPU".into(),
                why: alloc::format!(
                    "there is no CPU {}; the last is {}",
                    cpu.0,
                    cpus.saturating_sub(1)
                ),
            });
        }
    }
    let plan = Plan::new(machine, &executable);
    let modules = match control.modules {
        Some((_, length)) if machine.grants(Grant::Modules) => length,
        _ => 0,
    };
    let mut config = DomainConfig {
        name: [0; NAME],
        frames: plan.frames(machine.vcpus.0, modules) + machine.budget() / PAGE,
        heap: DomainConfig::usual_heap(machine.vcpus.0) + machine.budget() / HEAP_SHARE,
        handles: if machine.handles.is_empty() {
            FEW_HANDLES
        } else {
            MANY_HANDLES
        },
        vcpus: machine.vcpus.0,
    };
    for (to, from) in config.name.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    let domain = control
        .system
        .create_domain(&config)
        .map_err(|why| control.shortage(why))
        .step("making the domain")?;
    fill(control, domain, machine, &executable, &plan).inspect_err(|_| {
        // It was never started, so that it can be destroyed; the handle is there.
        let _ = domain.destroy();
        let _ = domain.any().close();
    })?;
    Ok(domain)
}

/// What goes where in a domain's memory.
struct Plan {
    ram: u64,
    /// Where the start information is: the page behind RAM.
    start_info: Option<u64>,
    is_firmware: bool,
}

impl Plan {
    fn new(machine: &Machine, executable: &Executable<'_>) -> Self {
        let ram = machine.memory.0;
        Self {
            ram,
            start_info: machine.has_start_info().then_some(ram),
            is_firmware: executable.is_firmware(),
        }
    }

    /// Bytes of the Memory object for RAM and start information.
    fn low(&self) -> u64 {
        self.ram + self.start_info.map_or(0, |_| PAGE)
    }

    /// Budget of frames: the memory itself, nested page tables for it and for `modules` bytes, vCPUs.
    fn frames(&self, vcpus: u32, modules: u64) -> u64 {
        let high = if self.is_firmware {
            FOUR_GIB - FIRMWARE
        } else {
            0
        };
        (self.low() + high) / PAGE
            + TABLES
            + 2 * self.low().div_ceil(LARGE_PAGE)
            + 2 * modules.div_ceil(LARGE_PAGE)
            + VCPU * u64::from(vcpus)
    }

    /// Where the module archive is mapped.
    fn modules(&self) -> u64 {
        self.low().next_multiple_of(LARGE_PAGE)
    }
}

fn fill(
    control: &Control,
    domain: Domain,
    machine: &Machine,
    executable: &Executable<'_>,
    plan: &Plan,
) -> Result<(), Failure> {
    let mut regions = alloc::vec![(0..plan.low(), memory(control, domain, plan.low())?)];
    if plan.is_firmware {
        let high = FIRMWARE..FOUR_GIB;
        match memory(control, domain, high.end - high.start) {
            Ok(memory) => regions.push((high, memory)),
            Err(why) => {
                close(&regions);
                return Err(why);
            }
        }
    }
    let result = fill_regions(control, domain, machine, executable, plan, &regions);
    // What is mapped stays; what is not goes back.
    close(&regions);
    result
}

type Regions = [(core::ops::Range<u64>, Memory)];

fn close(regions: &Regions) {
    for (_, memory) in regions {
        // The handle is there.
        let _ = memory.any().close();
    }
}

fn memory(control: &Control, domain: Domain, bytes: u64) -> Result<Memory, Failure> {
    domain
        .create_memory(bytes)
        .map_err(|why| control.shortage(why))
        .step(&alloc::format!("its memory of {}", format::size(bytes)))
}

fn fill_regions(
    control: &Control,
    domain: Domain,
    machine: &Machine,
    executable: &Executable<'_>,
    plan: &Plan,
    regions: &Regions,
) -> Result<(), Failure> {
    for (range, memory) in regions {
        domain
            .map(
                range.start,
                *memory,
                0,
                range.end - range.start,
                access::ALL,
            )
            .step("mapping its memory")?;
    }
    let mut loader = Loader::new(&control.windows, regions.to_vec());
    let mut failure = None;
    let state = executable.load(plan.ram, &mut |gpa, bytes| match loader.write(gpa, bytes) {
        Ok(()) => true,
        Err(why) => {
            failure = Some(why);
            false
        }
    });
    // A write that failed is the cause of the image's error.
    if let Some(why) = failure {
        return Err(why).step("filling its memory");
    }
    let mut state = state.step(&machine.image)?;
    let vcpu = vcpus(domain, machine)?;
    if let Some(at) = plan.start_info {
        let page = start_page(control, domain, machine, plan, vcpu)?;
        for (offset, bytes) in page {
            loader
                .write(at + offset, &bytes)
                .step("its start information")?;
        }
        state.rsi = at;
    }
    set_state(domain, &state)
}

/// Makes the vCPUs; vCPU 0 as a handle of the domain's, if it is to have that.
fn vcpus(domain: Domain, machine: &Machine) -> Result<Option<Handle>, Failure> {
    let schedule: Schedule = machine.schedule();
    let mut granted = None;
    for index in 0..machine.vcpus.0 {
        let vcpu = domain
            .create_vcpu()
            .step(&alloc::format!("making vCPU {index}"))?;
        let mut result = vcpu
            .schedule(&schedule)
            .step(&alloc::format!("scheduling vCPU {index}"));
        if result.is_ok() && index == 0 && machine.grants(Grant::Vcpu) {
            result = vcpu
                .any()
                .grant(domain, rights::VCPU)
                .step("granting `vcpu`")
                .map(|handle| granted = Some(handle));
        }
        vcpu.any().close().step("closing the vCPU")?;
        result?;
    }
    Ok(granted)
}

fn set_state(domain: Domain, state: &VcpuState) -> Result<(), Failure> {
    let vcpu = domain.open_vcpu(0).step("opening vCPU 0")?;
    let result = vcpu.set_state(state).step("setting the state of vCPU 0");
    vcpu.any().close().step("closing vCPU 0")?;
    result
}

/// Grants what the machine is given, and writes down where that is: offsets in the start page, and what is there.
fn start_page(
    control: &Control,
    domain: Domain,
    machine: &Machine,
    plan: &Plan,
    vcpu: Option<Handle>,
) -> Result<Vec<(u64, Vec<u8>)>, Failure> {
    if plan.is_firmware {
        return Err("firmware starts as after reset, and finds neither handles nor a command line")
            .step("its start information");
    }
    if plan.modules() > MAPPED {
        return Err("the first page tables end at 1 GiB, so that memory must be less than that")
            .step("its start information");
    }
    let mut entries = alloc::vec![StartEntry {
        kind: start::RAM,
        first: 0,
        length: plan.ram,
        handle: 0,
    }];
    let mut entry = |kind: u32, handle: Handle, first: u64, length: u64| {
        entries.push(StartEntry {
            kind,
            handle: handle.0,
            first,
            length,
        });
    };
    let text = machine.command_line.0.as_bytes();
    let text_offset = size_of::<StartInfo>() as u64;
    if !text.is_empty() {
        let at = plan.ram + text_offset;
        entry(start::COMMAND_LINE, Handle::NONE, at, text.len() as u64);
    }
    for grant in &machine.handles {
        match grant.0 {
            Grant::System => {
                let handle = control.system.any().grant(domain, rights::SYSTEM);
                entry(start::SYSTEM, handle.step("granting `system`")?, 0, 0);
            }
            Grant::Itself => {
                let handle = domain.any().grant(domain, rights::DOMAIN);
                entry(start::SELF, handle.step("granting `self`")?, 0, 0);
            }
            Grant::Vcpu => entry(start::VCPU, vcpu.unwrap_or_default(), 0, 0),
            Grant::Modules => {
                let at = plan.modules();
                let (memory, length) = control
                    .modules
                    .ok_or(Status::NOT_FOUND)
                    .step("granting `modules`")?;
                let bytes = memory.info().step("granting `modules`")?.bytes;
                if bytes > MAPPED - at {
                    return Err("it does not fit below 1 GiB, behind the domain's memory")
                        .step("granting `modules`");
                }
                domain
                    .map(at, memory, 0, bytes, access::READ)
                    .step("mapping the module archive")?;
                entry(start::MODULES, Handle::NONE, at, length);
            }
        }
    }
    let mut info = StartInfo {
        magic: START_MAGIC,
        count: entries.len() as u32,
        restarts: 0,
        entries: [StartEntry::default(); START_ENTRIES],
    };
    for (to, from) in info.entries.iter_mut().zip(entries) {
        *to = from;
    }
    Ok(alloc::vec![
        (0, bytes_of(&info).to_vec()),
        (text_offset, text.to_vec())
    ])
}

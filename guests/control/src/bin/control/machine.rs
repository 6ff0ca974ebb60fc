//! Building: a domain, of what a machine's file says.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use plinth_devices::{acpi, bus, pm, rtc};
use plinth_guest_control::config::{Device, Grant, Machine, Platform};
use plinth_guest_control::format;
use plinth_image::{
    FOUR_GIB, Format, Image, LEGACY, Machine as LoadedMachine, MemoryKind, Module, Region,
    ram_ranges,
};
use plinth_rt::abi::call::access;
use plinth_rt::abi::domain::{NAME, platform};
use plinth_rt::abi::system::{START_ENTRIES, START_MAGIC, start};
use plinth_rt::abi::{DomainConfig, Handle, StartEntry, StartInfo, Status, VcpuState, rights};
use plinth_rt::object::{Any, Domain, Memory, bytes_of};

use crate::control::Control;
use crate::device::{Equipment, Pc};
use crate::guest::with_vcpu;
use crate::window::Loader;

const PAGE: u64 = 4096;
const LARGE_PAGE: u64 = 2 << 20;
/// The end of what an ordinary guest's first page tables map.
const MAPPED: u64 = 1 << 30;
/// Where a PC's ACPI tables are, as firmware leaves them.
const ACPI: u64 = 0xe_0000;
/// Where in the start page the vCPUs above 0 start: `cli`, `hlt`, and back to the `hlt`.
const HALT_OFFSET: u64 = PAGE - 16;
const HALT_CODE: [u8; 4] = [0xfa, 0xf4, 0xeb, 0xfd];
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
    let (image, platform) = image(control, machine)?;
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
    let plan = Plan::new(machine, &image, platform);
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
        platform: match platform {
            Platform::Plain => 0,
            Platform::Pc => platform::PC,
        },
        reserved: 0,
        wall_clock: control.wall_clock,
    };
    for (to, from) in config.name.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    let domain = control
        .system
        .create_domain(&config)
        .map_err(|why| control.shortage(why))
        .step("making the domain")?;
    let builder = Builder {
        control,
        domain,
        machine,
        image,
        plan,
    };
    builder.fill().inspect_err(|_| {
        // It was never started, so that it can be destroyed; the handle is there.
        let _ = domain.destroy();
        let _ = domain.any().close();
    })?;
    Ok(domain)
}

/// The image of a machine, and the platform on which it runs.
fn image<'a>(control: &Control, machine: &Machine) -> Result<(Image<'a>, Platform), Failure> {
    let bytes = file(control, &machine.image)?;
    let image = match &machine.format {
        Some(format) => Image::with_format(bytes, format.0),
        None => Image::detect(bytes),
    }
    .step(&machine.image)?;
    let is_elf = bytes.starts_with(b"\x7fELF");
    let platform = machine.platform(image.format(), is_elf);
    Ok((image, platform))
}

fn file(control: &Control, path: &str) -> Result<&'static [u8], Failure> {
    control
        .archive
        .find(path)
        .ok_or("the module archive has no such file")
        .step(path)
}

/// The devices of a machine that the control guest serves; `None`: there are none.
pub fn equipment(control: &Control, machine: &Machine) -> Option<Equipment> {
    // A machine whose image is gone from the archive was none.
    let (image, platform) = image(control, machine).ok()?;
    let pc = (platform == Platform::Pc).then(|| {
        let [low, _] = ram_ranges(machine.memory.0);
        let end = image.firmware().map_or(FOUR_GIB, |range| range.start);
        Pc {
            ports: ports(control, machine, platform),
            hole: low.end..end,
        }
    });
    let debug_console = machine.has(Device::DebugConsole, platform);
    (debug_console || pc.is_some()).then_some(Equipment { debug_console, pc })
}

/// The devices at a PC's ports.
fn ports(control: &Control, machine: &Machine, platform: Platform) -> bus::Config {
    let has = |device| machine.has(device, platform);
    let [low, high] = ram_ranges(machine.memory.0);
    bus::Config {
        com1: has(Device::Com1),
        pic: has(Device::Pic),
        pit: has(Device::Pit),
        rtc: has(Device::Rtc).then(|| rtc::Config {
            epoch: control.wall_clock,
            memory: rtc::MemorySizes {
                below_4g: low.end - low.start,
                above_4g: high.end - high.start,
            },
        }),
        pm: has(Device::Acpi).then_some(pm::TimerWidth::Bits32),
        i8042: has(Device::I8042),
        pci: has(Device::Pci),
        debug_exit: has(Device::DebugExit).then_some(plinth_devices::debug::EXIT),
    }
}

/// What goes where in a domain's memory.
struct Plan {
    /// RAM as the machine's file says it.
    ram: u64,
    platform: Platform,
    /// Where the start page is, if there is one: behind RAM. It has the start information, and where vCPUs halt.
    start_page: Option<u64>,
    /// Firmware's own memory.
    firmware: Option<core::ops::Range<u64>>,
}

impl Plan {
    fn new(machine: &Machine, image: &Image<'_>, platform: Platform) -> Self {
        let ram = machine.memory.0;
        let is_plinth = image.format() == Format::Plinth;
        let firmware = image.firmware();
        let wants_start =
            machine.has_start_info() || machine.vcpus.0 > 1 && platform == Platform::Plain;
        let has_start = wants_start && (is_plinth || firmware.is_some());
        Self {
            ram,
            platform,
            start_page: has_start.then_some(ram),
            firmware,
        }
    }

    /// Bytes of the Memory object that begins at 0: RAM below the hole, and the start page.
    fn low(&self) -> u64 {
        let [low, _] = ram_ranges(self.ram);
        low.end + self.start_page.map_or(0, |_| PAGE)
    }

    /// Where memory is, besides the low part.
    fn others(&self) -> impl Iterator<Item = core::ops::Range<u64>> {
        let [_, high] = ram_ranges(self.ram);
        [Some(high), self.firmware.clone()]
            .into_iter()
            .flatten()
            .filter(|range| !range.is_empty())
    }

    /// Budget of frames: the memory itself, nested page tables for it and for `modules` bytes, vCPUs.
    fn frames(&self, vcpus: u32, modules: u64) -> u64 {
        let others: u64 = self.others().map(|range| range.end - range.start).sum();
        (self.low() + others) / PAGE
            + TABLES
            + 2 * (self.low() + others).div_ceil(LARGE_PAGE)
            + 2 * modules.div_ceil(LARGE_PAGE)
            + VCPU * u64::from(vcpus)
    }

    /// Where the module archive is mapped.
    fn modules(&self) -> u64 {
        self.low().next_multiple_of(LARGE_PAGE)
    }
}

/// Memory objects, and where each is in the domain.
type Regions = [(core::ops::Range<u64>, Memory)];

fn close(regions: &Regions) {
    for (_, memory) in regions {
        // The handle is there.
        let _ = memory.any().close();
    }
}

/// A domain that is being built.
struct Builder<'a> {
    control: &'a Control,
    domain: Domain,
    machine: &'a Machine,
    image: Image<'a>,
    plan: Plan,
}

impl Builder<'_> {
    /// Gives the domain its memory and vCPUs, and fills them.
    fn fill(&self) -> Result<(), Failure> {
        let low = self.plan.low();
        let mut regions = alloc::vec![(0..low, self.memory(low)?)];
        for range in self.plan.others() {
            match self.memory(range.end - range.start) {
                Ok(memory) => regions.push((range, memory)),
                Err(why) => {
                    close(&regions);
                    return Err(why);
                }
            }
        }
        let result = self.fill_regions(&regions);
        // What is mapped stays; what is not goes back.
        close(&regions);
        result
    }

    fn memory(&self, bytes: u64) -> Result<Memory, Failure> {
        self.domain
            .create_memory(bytes)
            .map_err(|why| self.control.shortage(why))
            .step(&alloc::format!("its memory of {}", format::size(bytes)))
    }

    fn fill_regions(&self, regions: &Regions) -> Result<(), Failure> {
        for (range, memory) in regions {
            let length = range.end - range.start;
            self.domain
                .map(range.start, *memory, 0, length, access::ALL)
                .step("mapping its memory")?;
        }
        let mut loader = Loader::new(&self.control.windows, regions.to_vec());
        let mut failure = None;
        let mut write = |gpa: u64, bytes: &[u8]| match loader.write(gpa, bytes) {
            Ok(()) => true,
            Err(why) => {
                failure = Some(why);
                false
            }
        };
        let state = self.load(&mut write)?;
        // A write that failed is the cause of the image's error.
        if let Some(why) = failure {
            return Err(why).step("filling its memory");
        }
        let mut state = state.step(&self.machine.image)?;
        let vcpu = self.vcpus()?;
        if let Some(at) = self.plan.start_page {
            for (offset, bytes) in self.start_page(vcpu)? {
                loader
                    .write(at + offset, &bytes)
                    .step("its start information")?;
            }
            if self.machine.has_start_info() {
                state.rsi = at;
            }
            let mut halted = VcpuState::long_mode(at + HALT_OFFSET, state.rsp, state.cr3);
            halted.rdi = state.rdi;
            for index in 1..self.machine.vcpus.0 {
                self.set_state(index, &halted)?;
            }
        }
        self.set_state(0, &state)
    }

    /// Loads the image with all that belongs to it. The inner result is the image's; the outer one that of what comes with it.
    fn load(
        &self,
        write: &mut dyn FnMut(u64, &[u8]) -> bool,
    ) -> Result<Result<VcpuState, plinth_image::ImageError>, Failure> {
        let ram = ram_ranges(self.plan.ram);
        let initrd = match &self.machine.initrd {
            Some(path) => Some(file(self.control, path)?),
            None => None,
        };
        let mut modules = Vec::new();
        for path in &self.machine.modules {
            modules.push(Module {
                bytes: file(self.control, path)?,
                command_line: path,
            });
        }
        let mut reserved = Vec::new();
        let mut rsdp = None;
        if self.plan.platform == Platform::Pc {
            reserved.push(LEGACY);
            let ports = ports(self.control, self.machine, self.plan.platform);
            if ports.pm.is_some() {
                let tables = acpi::build(self.machine.vcpus.0, &ports, ACPI)
                    .map_err(|why| alloc::format!("{why:?}"))
                    .step("its ACPI tables")?;
                if !write(tables.base, &tables.bytes) {
                    return Err("there is no memory for them").step("its ACPI tables");
                }
                reserved.push(Region {
                    start: tables.base,
                    end: (tables.base + tables.bytes.len() as u64).next_multiple_of(PAGE),
                    kind: MemoryKind::RESERVED,
                });
                rsdp = Some(tables.rsdp);
            }
        }
        // Guests of Plinth's own format find their command line in the start information.
        let has_line = !matches!(self.image.format(), Format::Plinth | Format::Firmware);
        let machine = LoadedMachine {
            ram: if ram[1].is_empty() { &ram[..1] } else { &ram },
            reserved: &reserved,
            rsdp,
            command_line: if has_line {
                &self.machine.command_line.0
            } else {
                ""
            },
            initrd,
            modules: &modules,
        };
        Ok(self.image.load(&machine, write))
    }

    /// Makes the vCPUs; vCPU 0 as a handle of the domain's, if it is to have that.
    fn vcpus(&self) -> Result<Option<Handle>, Failure> {
        let schedule = self.machine.schedule();
        let mut granted = None;
        for index in 0..self.machine.vcpus.0 {
            let vcpu = self
                .domain
                .create_vcpu()
                .step(&alloc::format!("making vCPU {index}"))?;
            let mut result = vcpu
                .schedule(&schedule)
                .step(&alloc::format!("scheduling vCPU {index}"));
            if result.is_ok() && index == 0 && self.machine.grants(Grant::Vcpu) {
                result = vcpu
                    .any()
                    .grant(self.domain, rights::VCPU)
                    .step("granting `vcpu`")
                    .map(|handle| granted = Some(handle));
            }
            vcpu.any().close().step("closing the vCPU")?;
            result?;
        }
        Ok(granted)
    }

    fn set_state(&self, index: u32, state: &VcpuState) -> Result<(), Failure> {
        with_vcpu(self.domain, index, |vcpu| vcpu.set_state(state))
            .step(&alloc::format!("setting the state of vCPU {index}"))
    }

    /// Grants what the machine is given, and writes down where that is: offsets in the start page, and what is there.
    fn start_page(&self, vcpu: Option<Handle>) -> Result<Vec<(u64, Vec<u8>)>, Failure> {
        if self.plan.firmware.is_some() {
            return Err(
                "firmware has one vCPU, no handles and no command line: it starts as after reset",
            )
            .step(&self.machine.image);
        }
        if self.plan.modules() > MAPPED {
            return Err(
                "the first page tables end at 1 GiB, so that memory must be less than that",
            )
            .step("its start information");
        }
        let mut entries = alloc::vec![StartEntry {
            kind: start::RAM,
            handle: Handle::NONE.0,
            first: 0,
            length: self.plan.ram,
        }];
        let text = self.machine.command_line.0.as_bytes();
        let text_offset = size_of::<StartInfo>() as u64;
        if !text.is_empty() {
            entries.push(StartEntry {
                kind: start::COMMAND_LINE,
                handle: Handle::NONE.0,
                first: self.plan.ram + text_offset,
                length: text.len() as u64,
            });
        }
        for grant in &self.machine.handles {
            entries.push(match grant.0 {
                Grant::System => {
                    self.grant(self.control.system.any(), start::SYSTEM, rights::SYSTEM)?
                }
                Grant::Itself => self.grant(self.domain.any(), start::SELF, rights::DOMAIN)?,
                Grant::Vcpu => of_handle(start::VCPU, vcpu.unwrap_or_default()),
                Grant::Modules => self.map_modules()?,
            });
        }
        let mut info = StartInfo {
            magic: START_MAGIC,
            count: entries.len() as u32,
            restarts: 0,
            entries: [StartEntry::default(); START_ENTRIES],
        };
        // There is room: nothing is granted twice.
        for (to, from) in info.entries.iter_mut().zip(entries) {
            *to = from;
        }
        Ok(alloc::vec![
            (0, bytes_of(&info).to_vec()),
            (text_offset, text.to_vec()),
            (HALT_OFFSET, HALT_CODE.to_vec()),
        ])
    }

    fn grant(&self, what: Any, kind: u32, rights: u32) -> Result<StartEntry, Failure> {
        what.grant(self.domain, rights)
            .step("granting a handle")
            .map(|handle| of_handle(kind, handle))
    }

    /// Maps the module archive behind the domain's own memory.
    fn map_modules(&self) -> Result<StartEntry, Failure> {
        const STEP: &str = "mapping the module archive";
        let at = self.plan.modules();
        let (memory, length) = self.control.modules.ok_or(Status::NOT_FOUND).step(STEP)?;
        let bytes = memory.info().step(STEP)?.bytes;
        if bytes > MAPPED - at {
            return Err("it does not fit below 1 GiB, behind the domain's memory").step(STEP);
        }
        self.domain
            .map(at, memory, 0, bytes, access::READ)
            .step(STEP)?;
        Ok(StartEntry {
            kind: start::MODULES,
            handle: Handle::NONE.0,
            first: at,
            length,
        })
    }
}

/// The entry of a handle to something that is one.
fn of_handle(kind: u32, handle: Handle) -> StartEntry {
    StartEntry {
        kind,
        handle: handle.0,
        first: 0,
        length: 0,
    }
}

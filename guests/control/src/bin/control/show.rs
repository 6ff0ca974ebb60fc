//! The commands that only show something.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use plinth_guest_control::ending::Ending;
use plinth_guest_control::format::{self, Table};
use plinth_guest_control::plain::Lines;
use plinth_guest_control::report::{self, name, padded};
use plinth_guest_control::ring::Ring;
use plinth_guest_control::top::{Sample, Vcpu};
use plinth_rt::abi::call::STREAM_MAX;
use plinth_rt::abi::trace::Record;
use plinth_rt::abi::{ABI_VERSION, DomainInfo, DomainState, Status, VcpuInfo};
use plinth_rt::object::{Domain, System};
use plinth_rt::{cpu, hypercall};
use zerocopy::FromBytes;

use crate::control::Control;
use crate::guest::{vcpu_infos, with_vcpu};
use crate::heap;
use crate::kernel_log::KernelLog;

type Result = core::result::Result<(), String>;

fn words(why: Status) -> String {
    why.to_string()
}

/// Prints lines, which may be many.
async fn print(control: &Control, lines: impl IntoIterator<Item = String>) {
    for line in lines {
        control.terminal.line(&line);
        control.terminal.room().await;
    }
}

/// `list`.
pub async fn list(control: &Control) -> Result {
    let mut table = Table::new(&report::LIST);
    let mut last = 0;
    while let Some(number) = control.system.next_domain(last).map_err(words)? {
        last = number;
        let kept = control.with(number, |guest| {
            let on_end = guest
                .config()
                .map_or("keep", |machine| machine.on_end.0.text());
            (guest.domain, on_end, guest.cause())
        });
        let seen = match kept {
            Some((domain, on_end, cause)) => {
                vcpu_infos(domain).map(|(info, vcpus)| (info, vcpus, on_end, cause))
            }
            None if number == control.own_number => {
                vcpu_infos(control.own).map(|(info, vcpus)| (info, vcpus, "-", None))
            }
            None => stranger(control.system, number).map(|(info, vcpus)| (info, vcpus, "*", None)),
        };
        // One that was destroyed meanwhile is left out.
        if let Ok((info, vcpus, on_end, cause)) = seen {
            table.row(report::row(&info, &vcpus, on_end, cause));
        }
    }
    print(control, table.lines().map(|line| format::cut(&line, 79))).await;
    Ok(())
}

/// What a domain is that is not kept here.
fn stranger(system: System, number: u32) -> plinth_rt::object::Result<(DomainInfo, Vec<VcpuInfo>)> {
    let domain = system.open_domain(number)?;
    let infos = vcpu_infos(domain);
    domain.any().close()?;
    infos
}

/// `machines`.
pub async fn machines(control: &Control) -> Result {
    let mut table = Table::new(&[
        "NAME",
        ">MEMORY",
        ">VCPUS",
        "AUTOSTART",
        "ON-END",
        "EXPECTED",
        "IMAGE",
    ]);
    let mut mistakes = Vec::new();
    for name in control.archive.machines() {
        match control.archive.machine(&name) {
            Ok(machine) => table.row([
                name,
                format::size(machine.memory.0),
                machine.vcpus.0.to_string(),
                if machine.autostart { "yes" } else { "no" }.into(),
                machine.on_end.0.text().into(),
                machine.expect.0.to_string(),
                machine.image.clone(),
            ]),
            Err(why) => mistakes.push(why),
        }
    }
    print(control, table.lines()).await;
    print(control, mistakes).await;
    Ok(())
}

/// `info`.
pub async fn info(control: &Control, pattern: &str) -> Result {
    let (domain, machine, [written, kept], cause) = if control.is_own(pattern) {
        (control.own, None, [0; 2], None)
    } else {
        let number = control.find_one(pattern)?;
        let known = control.with(number, |guest| {
            let end = guest.console.end();
            let console = [end, end - guest.console.start()];
            (guest.domain, guest.machine.clone(), console, guest.cause())
        });
        known.ok_or("it is gone")?
    };
    let (info, vcpus) = vcpu_infos(domain).map_err(words)?;
    let mut lines = alloc::vec![alloc::format!(
        "{} (domain {}): {}",
        name(&info),
        info.number,
        info.state.text()
    )];
    if let Some(ending) = Ending::of(&info, cause) {
        lines.push(fact(
            "ended by",
            alloc::format!("{ending}, rip {:#x}, vCPU {}", ending.rip, ending.vcpu),
        ));
    }
    match machine {
        Some((name, machine)) => {
            lines.push(fact(
                "machine",
                alloc::format!(
                    "{name}: on-end {}, expected {}",
                    machine.on_end.0.text(),
                    machine.expect.0
                ),
            ));
            if let Some(limit) = machine.time_limit {
                lines.push(fact(
                    "time limit",
                    alloc::format!("{} of CPU time", format::time(limit.0)),
                ));
            }
            if !machine.command_line.0.is_empty() {
                lines.push(fact("command line", machine.command_line.0.clone()));
            }
        }
        None if control.is_own(pattern) => {
            lines.push(fact("machine", "the control guest itself".into()));
        }
        None => lines.push(fact("machine", "none of the archive".into())),
    }
    lines.push(fact(
        "memory",
        alloc::format!(
            "{}; {} of its budget of {} used",
            format::frames(info.memory_frames),
            format::frames(info.frames),
            format::frames(info.max_frames)
        ),
    ));
    lines.push(fact(
        "kernel heap",
        alloc::format!(
            "{} of {}",
            format::size(info.heap),
            format::size(info.max_heap)
        ),
    ));
    lines.push(fact(
        "handles",
        alloc::format!("{} of {}", info.handles, info.max_handles),
    ));
    lines.push(fact(
        "console",
        alloc::format!(
            "{} written, the last {} kept",
            // By hypercalls, also before this control guest was there; or by a serial port as well.
            format::size(info.console_end.max(written)),
            format::size(kept)
        ),
    ));
    for vcpu in &vcpus {
        lines.push(fact(
            &alloc::format!("vCPU {}", vcpu.index),
            report::schedule(vcpu),
        ));
        lines.push(fact("", report::times(vcpu)));
        lines.push(fact(
            "",
            alloc::format!(
                "preempted {} times, took a CPU {} times, moved {} times",
                vcpu.preemptions,
                vcpu.switches,
                vcpu.migrations
            ),
        ));
        lines.push(fact(
            "",
            alloc::format!("exits:{}", report::exit_kinds(vcpu)),
        ));
        lines.extend(registers(domain, &info, vcpu.index));
    }
    print(control, lines).await;
    Ok(())
}

/// A line of `info`.
fn fact(what: &str, value: String) -> String {
    alloc::format!("  {what:<12} {value}")
}

/// The registers of a vCPU that does not run.
fn registers(domain: Domain, info: &DomainInfo, index: u32) -> Vec<String> {
    if info.state == DomainState::RUNNING {
        return Vec::new();
    }
    let mut state = with_vcpu(domain, index, |vcpu| vcpu.state());
    while state == Err(Status::AGAIN) {
        // It leaves its CPU: a moment.
        hypercall::yield_now();
        state = with_vcpu(domain, index, |vcpu| vcpu.state());
    }
    match state {
        Ok(state) => indented(report::registers(&state)),
        Err(why) => alloc::vec![alloc::format!("    no registers: {why}")],
    }
}

fn indented(lines: Vec<String>) -> Vec<String> {
    lines
        .into_iter()
        .map(|line| alloc::format!("    {line}"))
        .collect()
}

/// All that a console has kept, as lines.
async fn print_console(control: &Control, read: impl Fn(u64) -> Option<(u64, Vec<u8>)>) {
    let mut lines = Lines::default();
    let mut position = 0;
    while let Some((missed, bytes)) = read(position)
        && !bytes.is_empty()
    {
        position += missed + bytes.len() as u64;
        print(control, lines.feed(&bytes)).await;
    }
    print(control, lines.finish()).await;
}

/// Bytes of a console that are printed at a time.
const CHUNK: usize = 4096;

/// `log` of a domain that is there.
pub async fn log(control: &Control, number: u32) {
    print_console(control, |position| {
        control.with(number, |guest| guest.console.read(position, CHUNK))
    })
    .await;
}

/// `log` of a domain that is gone; whether there is something of it.
pub async fn past_log(control: &Control, name: &str) -> bool {
    let read = |position: u64| {
        let past = control.past.borrow();
        let of =
            |(other, ring): &(String, Ring)| (other == name).then(|| ring.read(position, CHUNK));
        past.iter().find_map(of)
    };
    if read(0).is_none() {
        return false;
    }
    print_console(control, read).await;
    true
}

/// `dmesg`.
pub async fn dmesg(control: &Control, last: Option<usize>) -> Result {
    let mut log = KernelLog::from_start(control.system);
    let mut all = Vec::new();
    loop {
        let lines = log.next_lines().map_err(words)?;
        if lines.is_empty() {
            break;
        }
        all.extend(lines);
    }
    let skipped = last.map_or(0, |last| all.len().saturating_sub(last));
    print(control, all.into_iter().skip(skipped)).await;
    Ok(())
}

/// `trace`.
pub async fn trace(control: &Control, count: usize, cpu: Option<u32>) -> Result {
    let cpus = control.system.info().map_err(words)?.cpus;
    let chosen = match cpu {
        Some(cpu) if cpu >= cpus => {
            return Err(alloc::format!(
                "there is no CPU {cpu}; the last is {}",
                cpus.saturating_sub(1)
            ));
        }
        Some(cpu) => cpu..cpu + 1,
        None => 0..cpus,
    };
    let mut records = Vec::new();
    for cpu in chosen {
        records.extend(
            last_records(control.system, cpu, count)?
                .into_iter()
                .map(|record| (record, cpu)),
        );
    }
    records.sort_by_key(|(record, cpu)| (record.ns, *cpu));
    let skipped = records.len().saturating_sub(count);
    let lines = records
        .into_iter()
        .skip(skipped)
        .map(|(record, cpu)| report::record(&record, cpu, &control.name_of(record.domain)));
    print(control, lines).await;
    Ok(())
}

/// The last records of a CPU's trace, the oldest first.
fn last_records(
    system: System,
    cpu: u32,
    count: usize,
) -> core::result::Result<Vec<Record>, String> {
    let mut buffer = [0; STREAM_MAX as usize];
    // Behind the last there is: only the header comes.
    let (header, _) = system.trace(cpu, &mut buffer, u64::MAX).map_err(words)?;
    let mut position = header.end.saturating_sub(count as u64);
    let mut records = Vec::new();
    while position < header.end {
        let (now, bytes) = system.trace(cpu, &mut buffer, position).map_err(words)?;
        let chunk = bytes.chunks_exact(size_of::<Record>());
        let before = records.len();
        records.extend(chunk.filter_map(|bytes| Record::read_from_bytes(bytes).ok()));
        position = now.start + (records.len() - before) as u64;
        if records.len() == before {
            break;
        }
    }
    Ok(records)
}

/// `version`.
pub async fn version(control: &Control) -> Result {
    let system = control.system.info().map_err(words)?;
    let own = control.own.info().map_err(words)?;
    let lines = [
        alloc::format!(
            "Plinth {}, contract {}.{}",
            padded(&system.version),
            hypercall::version() >> 16,
            hypercall::version() & 0xffff
        ),
        alloc::format!(
            "control guest {}, contract {}.{}; {} of its memory free",
            env!("CARGO_PKG_VERSION"),
            ABI_VERSION >> 16,
            ABI_VERSION & 0xffff,
            format::size(heap::free() as u64)
        ),
        alloc::format!(
            "{} by {}, {}, TSC {}.{:03} MHz",
            format::counted(system.cpus as usize, "CPU"),
            padded(&cpu::vendor()),
            padded(&system.extension),
            system.tsc_hz / 1_000_000,
            system.tsc_hz / 1000 % 1000
        ),
        alloc::format!(
            "{} of memory, {} free; control guest's budget: {} left",
            format::frames(system.frames),
            format::frames(system.free_frames),
            format::frames(own.max_frames.saturating_sub(own.frames))
        ),
        alloc::format!("up {}", format::time(system.now_ns)),
    ];
    print(control, lines).await;
    Ok(())
}

/// What all vCPUs are doing now; the control guest's too.
pub fn sample(control: &Control) -> core::result::Result<Sample, String> {
    let mut domains: Vec<Domain> = {
        let guests = control.guests.borrow();
        guests.values().map(|guest| guest.domain).collect()
    };
    domains.push(control.own);
    let mut vcpus = Vec::new();
    for (info, infos) in domains
        .into_iter()
        .filter_map(|domain| vcpu_infos(domain).ok())
    {
        if info.state == DomainState::ENDED {
            continue;
        }
        vcpus.extend(infos.into_iter().map(|vcpu| Vcpu {
            domain: info.number,
            name: name(&info),
            memory_frames: info.memory_frames,
            info: vcpu,
        }));
    }
    Ok(Sample {
        system: control.system.info().map_err(words)?,
        vcpus,
    })
}

//! The table of `top`: what the vCPUs did between two samples.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use plinth_abi::domain::EXIT_NAMES;
use plinth_abi::system::LISTED_CPUS;
use plinth_abi::{SystemInfo, VcpuInfo};

use crate::format::{counted, cut, frames, percent, time};

/// Columns of the screen that are used: no line wraps.
const COLUMNS: usize = 79;
/// Lines of the screen.
const LINES: usize = 24;

/// A vCPU at some moment.
#[derive(Clone, Debug)]
pub struct Vcpu {
    /// Its domain's number.
    pub domain: u32,
    /// Its domain's name.
    pub name: String,
    /// Frames of its domain's Memory objects.
    pub memory_frames: u64,
    /// Its times and counters.
    pub info: VcpuInfo,
}

/// The machine at some moment.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The machine.
    pub system: SystemInfo,
    /// All vCPUs.
    pub vcpus: Vec<Vcpu>,
}

/// What a vCPU did between two samples.
struct Row<'a> {
    vcpu: &'a Vcpu,
    run_ns: u64,
    steal_ns: u64,
    exits: Vec<(&'static str, u64)>,
}

/// The lines of the table, at most as many as a screen has.
pub fn lines(before: &Sample, now: &Sample) -> Vec<String> {
    let elapsed = now.system.now_ns.saturating_sub(before.system.now_ns);
    let mut lines = heading(now);
    lines.extend(idle(before, now, elapsed));
    lines.push(String::new());
    lines.push(format!(
        "{:<12} {:>4} {:>3} {:<7} {:>5} {:>6} {:>8}  {}",
        "DOMAIN", "VCPU", "CPU", "STATE", "RUN%", "STEAL%", "MEMORY", "EXITS/S"
    ));
    let mut rows: Vec<Row> = now.vcpus.iter().map(|vcpu| row(before, vcpu)).collect();
    rows.sort_by_key(|row| {
        (
            core::cmp::Reverse(row.run_ns),
            row.vcpu.domain,
            row.vcpu.info.index,
        )
    });
    let room = LINES.saturating_sub(lines.len() + 1);
    let shown = if rows.len() > room {
        room.saturating_sub(1)
    } else {
        room
    };
    lines.extend(rows.iter().take(shown).map(|row| line(row, elapsed)));
    if rows.len() > shown {
        lines.push(format!(
            "... and {} that did less",
            counted(rows.len() - shown, "vCPU")
        ));
    }
    lines
}

fn heading(now: &Sample) -> Vec<String> {
    let system = &now.system;
    let summary = format!(
        "Plinth, up {}: {}, {}, {}",
        time(system.now_ns),
        counted(system.cpus as usize, "CPU"),
        counted(system.domains as usize, "domain"),
        counted(now.vcpus.len(), "vCPU"),
    );
    let memory = format!(
        "memory: {} of {} free, domains have {}; kernel heap {}% used",
        frames(system.free_frames),
        frames(system.frames),
        frames(system.memory_frames),
        percent(system.heap_used, system.heap),
    );
    alloc::vec![cut(&summary, COLUMNS), cut(&memory, COLUMNS)]
}

/// How idle the CPUs were, in two lines at most.
fn idle(before: &Sample, now: &Sample, elapsed: u64) -> Vec<String> {
    let mut lines = alloc::vec![String::from("idle:")];
    let cpus = (now.system.cpus as usize).min(LISTED_CPUS);
    let times = before.system.idle_ns.iter().zip(&now.system.idle_ns);
    for (cpu, (before, now)) in times.take(cpus).enumerate() {
        let part = format!(
            " cpu{cpu} {}%",
            percent(now.saturating_sub(*before), elapsed)
        );
        let full = lines
            .last()
            .is_none_or(|line| line.len() + part.len() > COLUMNS - 4);
        if full && lines.len() == 2 {
            if let Some(line) = lines.last_mut() {
                line.push_str(" ...");
            }
            break;
        }
        if full {
            lines.push(String::from("     "));
        }
        if let Some(line) = lines.last_mut() {
            line.push_str(&part);
        }
    }
    lines
}

fn row<'a>(before: &Sample, vcpu: &'a Vcpu) -> Row<'a> {
    let info = &vcpu.info;
    // A vCPU that is new began with nothing.
    let old = before
        .vcpus
        .iter()
        .find(|old| old.domain == vcpu.domain && old.info.index == info.index)
        .map(|old| &old.info);
    let since = |of: fn(&VcpuInfo) -> u64| of(info).saturating_sub(old.map_or(0, of));
    let mut exits: Vec<(&str, u64)> = EXIT_NAMES
        .iter()
        .zip(info.exits)
        .enumerate()
        .map(|(kind, (&name, count))| {
            let old = old.and_then(|old| old.exits.get(kind)).copied();
            (name, count.saturating_sub(old.unwrap_or(0)))
        })
        .filter(|&(_, count)| count > 0)
        .collect();
    exits.sort_by_key(|&(_, count)| core::cmp::Reverse(count));
    Row {
        vcpu,
        run_ns: since(|info| info.run_ns),
        steal_ns: since(|info| info.steal_ns),
        exits,
    }
}

fn line(row: &Row, elapsed: u64) -> String {
    let info = &row.vcpu.info;
    let rate = |count: u64| short(u128::from(count) * 1_000_000_000 / u128::from(elapsed.max(1)));
    let total = row
        .exits
        .iter()
        .fold(0u64, |total, &(_, count)| total.saturating_add(count));
    let mut text = format!(
        "{:<12} {:>4} {:>3} {:<7} {:>5} {:>6} {:>8}  {}",
        cut(&row.vcpu.name, 12),
        info.index,
        info.cpu,
        info.run.text(),
        percent(row.run_ns, elapsed),
        percent(row.steal_ns, elapsed),
        frames(row.vcpu.memory_frames),
        rate(total),
    );
    for (place, &(name, count)) in row.exits.iter().take(2).enumerate() {
        text += &format!(
            "{}{name} {}",
            if place == 0 { ": " } else { ", " },
            rate(count)
        );
    }
    cut(&text, COLUMNS)
}

/// A number in at most five letters, as long as there are less than 10^10.
fn short(number: u128) -> String {
    match number {
        0..10_000 => format!("{number}"),
        10_000..10_000_000 => format!("{}k", number / 1000),
        _ => format!("{}M", number / 1_000_000),
    }
}

#[cfg(test)]
mod tests {
    use plinth_abi::VcpuRun;
    use zerocopy::FromZeros;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn vcpu(domain: u32, name: &str, run_ns: u64, steal_ns: u64, exits: [u64; 2]) -> Vcpu {
        let mut info = VcpuInfo::new_zeroed();
        info.run = VcpuRun::RUNNING;
        info.run_ns = run_ns;
        info.steal_ns = steal_ns;
        info.exits[..2].copy_from_slice(&exits);
        Vcpu {
            domain,
            name: name.into(),
            memory_frames: 1024,
            info,
        }
    }

    fn sample(now_ns: u64, idle_ns: &[u64], vcpus: Vec<Vcpu>) -> Sample {
        let mut system = SystemInfo::new_zeroed();
        system.now_ns = now_ns;
        system.cpus = idle_ns.len() as u32;
        system.domains = 2;
        system.frames = 1 << 18;
        system.free_frames = 1 << 17;
        for (slot, &idle) in system.idle_ns.iter_mut().zip(idle_ns) {
            *slot = idle;
        }
        Sample { system, vcpus }
    }

    #[test]
    fn shares_are_of_the_time_between_the_samples() {
        let before = sample(
            10 * SECOND,
            &[0, 5 * SECOND],
            vec![
                vcpu(1, "hello", SECOND, 7, [10, 20]),
                vcpu(2, "spin", 0, 0, [0, 0]),
            ],
        );
        let now = sample(
            12 * SECOND,
            &[SECOND, 5 * SECOND],
            vec![
                vcpu(1, "hello", SECOND + SECOND / 2, 7, [30, 120]),
                vcpu(2, "spin", 2 * SECOND, SECOND, [40, 0]),
            ],
        );
        let lines = lines(&before, &now);
        assert_eq!(lines[0], "Plinth, up 12.000 s: 2 CPUs, 2 domains, 2 vCPUs");
        assert!(lines[1].starts_with("memory: 512 MiB of 1 GiB free, "));
        assert_eq!(lines[2], "idle: cpu0 50.0% cpu1 0.0%");
        assert_eq!(
            &lines[4..],
            [
                "DOMAIN       VCPU CPU STATE    RUN% STEAL%   MEMORY  EXITS/S",
                "spin            0   0 running 100.0   50.0    4 MiB  20: host 20",
                "hello           0   0 running  25.0    0.0    4 MiB  60: hypercall 50, host 10",
            ]
        );
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            [9999, 10_000, 9_999_999, 12_345_678].map(short),
            ["9999", "10k", "9999k", "12M"]
        );
    }

    #[test]
    fn a_new_vcpu_began_with_nothing() {
        let before = sample(0, &[0], vec![]);
        let now = sample(SECOND, &[0], vec![vcpu(3, "new", SECOND / 10, 0, [1, 0])]);
        assert!(lines(&before, &now)[5].contains(" 10.0    0.0 "));
    }

    #[test]
    fn the_table_fits_the_screen() {
        let idle = [SECOND; 64];
        let many = |factor: u64| {
            let name = "a-name-that-is-as-long-as-it-gets";
            (0..500u64)
                .map(|number| {
                    vcpu(
                        number as u32,
                        name,
                        number * factor,
                        u64::MAX,
                        [u64::MAX; 2],
                    )
                })
                .collect()
        };
        let lines = lines(
            &sample(0, &[0; 64], many(0)),
            &sample(SECOND, &idle, many(1000)),
        );
        assert!(lines.len() < LINES, "{}", lines.len());
        for line in &lines {
            assert!(line.chars().count() <= COLUMNS, "{line}");
        }
        assert_eq!(lines.last().unwrap(), "... and 484 vCPUs that did less");
    }
}

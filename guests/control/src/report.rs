//! What the kernel tells of vCPUs, domains and events, in words.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use plinth_abi::domain::EXIT_NAMES;
use plinth_abi::trace::{Kind, Record};
use plinth_abi::{DomainInfo, Reason, Schedule, VcpuInfo, VcpuState};

use crate::ending::{Cause, Ending};
use crate::format::{cut, frames, stamp, time};
use crate::plain::Plain;

/// A text that the kernel gives padded with zeroes, on one line whatever is in it.
pub fn padded(bytes: &[u8]) -> String {
    let end = bytes
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(bytes.len());
    let mut plain = String::new();
    Plain::default().feed(bytes.get(..end).unwrap_or_default(), &mut plain);
    plain.replace(['\n', '\t'], "_")
}

/// A domain's name; one that another domain has chosen may be anything.
pub fn name(info: &DomainInfo) -> String {
    padded(&info.name).replace(' ', "_")
}

/// Time that vCPUs ran, all together, in nanoseconds.
pub fn run_ns(vcpus: &[VcpuInfo]) -> u64 {
    vcpus
        .iter()
        .map(|vcpu| vcpu.run_ns)
        .fold(0, u64::saturating_add)
}

/// Headings of the list of domains, for [`crate::format::Table`].
pub const LIST: [&str; 8] = [
    ">NO",
    "NAME",
    "STATE",
    ">VCPUS",
    ">MEMORY",
    ">CPU TIME",
    "ON-END",
    "ENDED BY",
];

/// A domain's row in that list. `cause`: of its being killed.
pub fn row(
    info: &DomainInfo,
    vcpus: &[VcpuInfo],
    on_end: &str,
    cause: Option<Cause>,
) -> [String; 8] {
    [
        info.number.to_string(),
        cut(&name(info), 16),
        info.state.text().into(),
        info.vcpus.to_string(),
        frames(info.memory_frames),
        time(run_ns(vcpus)),
        on_end.into(),
        Ending::of(info, cause).map_or(String::new(), |ending| ending.to_string()),
    ]
}

/// What a vCPU has done in all.
pub fn account(vcpu: &VcpuInfo) -> String {
    let exits = vcpu.exits.iter().copied().fold(0, u64::saturating_add);
    format!(
        "ran {} ms, was preempted {} times, left {exits} times:{}",
        vcpu.run_ns / 1_000_000,
        vcpu.preemptions,
        exit_kinds(vcpu)
    )
}

/// The kinds of a vCPU's exits with their counts, each with a blank before it.
pub fn exit_kinds(vcpu: &VcpuInfo) -> String {
    let counts = EXIT_NAMES.iter().zip(vcpu.exits);
    counts
        .filter(|&(_, count)| count > 0)
        .map(|(name, count)| format!(" {name} {count}"))
        .collect()
}

/// What a vCPU is doing, and how it is scheduled.
pub fn schedule(vcpu: &VcpuInfo) -> String {
    let Schedule {
        weight, cap, cpu, ..
    } = vcpu.schedule;
    let cap = match cap {
        0 => "no cap".into(),
        cap => format!("cap {cap}%"),
    };
    let cpu = match cpu {
        Schedule::ANY_CPU => "any CPU".into(),
        cpu => format!("pinned to CPU {cpu}"),
    };
    format!(
        "{} on CPU {}; weight {weight}, {cap}, {cpu}",
        vcpu.run.text(),
        vcpu.cpu
    )
}

/// A vCPU's times.
pub fn times(vcpu: &VcpuInfo) -> String {
    format!(
        "ran {}, ready {}, blocked {}, held {}, capped {}",
        time(vcpu.run_ns),
        time(vcpu.ready_ns),
        time(vcpu.blocked_ns),
        time(vcpu.held_ns),
        time(vcpu.capped_ns)
    )
}

/// A vCPU's registers, three a line.
pub fn registers(state: &VcpuState) -> Vec<String> {
    let cells = [
        ("rax", state.rax),
        ("rbx", state.rbx),
        ("rcx", state.rcx),
        ("rdx", state.rdx),
        ("rsi", state.rsi),
        ("rdi", state.rdi),
        ("rbp", state.rbp),
        ("rsp", state.rsp),
        ("r8", state.r8),
        ("r9", state.r9),
        ("r10", state.r10),
        ("r11", state.r11),
        ("r12", state.r12),
        ("r13", state.r13),
        ("r14", state.r14),
        ("r15", state.r15),
        ("rip", state.rip),
        ("flags", state.rflags),
        ("cr0", state.cr0),
        ("cr2", state.cr2),
        ("cr3", state.cr3),
        ("cr4", state.cr4),
        ("efer", state.efer),
        ("cs", state.cs.selector.into()),
    ];
    let row = |cells: &[(&str, u64)]| {
        let cells: Vec<_> = cells
            .iter()
            .map(|(name, value)| format!("{name:<5} {value:016x}"))
            .collect();
        cells.join("  ")
    };
    cells.chunks(3).map(row).collect()
}

/// A record of the trace ring of `cpu`, about a domain of this name.
pub fn record(record: &Record, cpu: u32, name: &str) -> String {
    let kind = Kind(record.kind);
    let detail = match kind {
        Kind::RUN if record.detail != 0 => format!("after {}", Kind(record.detail).text()),
        Kind::WAKE => format!("to CPU {}", record.detail),
        Kind::STEAL => format!("from CPU {}", record.detail),
        Kind::ENDED => Reason(record.detail).text().into(),
        Kind::DEVICE => format!("at {:#x}", record.detail),
        _ => String::new(),
    };
    let line = format!(
        "[{}] cpu{cpu:<2} {:<9} {name}/{} {detail}",
        stamp(record.ns),
        kind.text(),
        record.vcpu
    );
    line.trim_end().into()
}

/// Whether a line of the kernel's log is a warning or an error: by the word behind its time stamp.
pub fn is_trouble(line: &str) -> bool {
    let level = line
        .split_once(']')
        .and_then(|(_, rest)| rest.split_ascii_whitespace().next());
    matches!(level, Some("WARN" | "ERROR"))
}

#[cfg(test)]
mod tests {
    use plinth_abi::{DomainState, VcpuRun};
    use zerocopy::FromZeros;

    use super::*;

    fn vcpu() -> VcpuInfo {
        let mut vcpu = VcpuInfo::new_zeroed();
        vcpu.run = VcpuRun::READY;
        vcpu.cpu = 1;
        vcpu.schedule = Schedule::USUAL;
        vcpu.run_ns = 24_000_000;
        vcpu.preemptions = 1;
        vcpu.exits[..3].copy_from_slice(&[1, 11, 7]);
        vcpu
    }

    #[test]
    fn names_are_harmless() {
        assert_eq!(padded(b"SVM\0\0"), "SVM");
        assert_eq!(padded(b"full"), "full");
        assert_eq!(padded(b"a\nb\x1b[2J\0x"), "a_b");
        let mut info = DomainInfo::new_zeroed();
        info.name[..4].copy_from_slice(b"a b\xff");
        assert_eq!(name(&info), "a_b\u{fffd}");
    }

    #[test]
    fn a_domain_is_a_row() {
        let mut info = crate::ending::tests::ended(Reason::KILLED, [0; 3]);
        info.number = 3;
        info.name[..4].copy_from_slice(b"spin");
        info.vcpus = 1;
        info.memory_frames = 1024;
        let end = |cause| row(&info, &[vcpu(), vcpu()], "keep", cause);
        assert_eq!(
            end(None),
            [
                "3", "spin", "ended", "1", "4 MiB", "48 ms", "keep", "killed"
            ]
        );
        assert_eq!(end(Some(Cause::TimeLimit))[7], "time limit used up");
        info.state = DomainState::RUNNING;
        assert_eq!(
            row(&info, &[], "*", None)[2..],
            ["running", "1", "4 MiB", "0 ns", "*", ""]
        );
    }

    #[test]
    fn a_vcpus_account_is_a_line() {
        assert_eq!(
            account(&vcpu()),
            "ran 24 ms, was preempted 1 times, left 19 times: host 1 hypercall 11 cpuid 7"
        );
    }

    #[test]
    fn scheduling_is_told_in_words() {
        let mut vcpu = vcpu();
        assert_eq!(
            schedule(&vcpu),
            "ready on CPU 1; weight 256, no cap, any CPU"
        );
        vcpu.schedule.cap = 25;
        vcpu.schedule.cpu = 0;
        assert_eq!(
            schedule(&vcpu),
            "ready on CPU 1; weight 256, cap 25%, pinned to CPU 0"
        );
        assert_eq!(
            times(&vcpu),
            "ran 24 ms, ready 0 ns, blocked 0 ns, held 0 ns, capped 0 ns"
        );
    }

    #[test]
    fn registers_fit_the_screen() {
        let lines = registers(&VcpuState::RESET);
        assert_eq!(lines.len(), 8);
        assert!(lines.iter().all(|line| line.len() <= 76));
        assert_eq!(
            lines[0],
            "rax   0000000000000000  rbx   0000000000000000  rcx   0000000000000000"
        );
        assert!(lines[5].ends_with("rip   000000000000fff0  flags 0000000000000002"));
    }

    #[test]
    fn events_are_lines() {
        let mut event = Record {
            ns: 1_500_000_000,
            kind: Kind::WAKE.0,
            domain: 3,
            vcpu: 2,
            detail: 1,
        };
        assert_eq!(
            record(&event, 0, "hello"),
            "[    1.500000] cpu0  wake      hello/2 to CPU 1"
        );
        event.kind = Kind::ENDED.0;
        event.detail = Reason::TRIPLE_FAULT.0;
        assert_eq!(
            record(&event, 11, "hello"),
            "[    1.500000] cpu11 ended     hello/2 triple fault"
        );
        event.kind = Kind::RUN.0;
        event.detail = 0;
        assert_eq!(
            record(&event, 0, "hello"),
            "[    1.500000] cpu0  run       hello/2"
        );
        event.detail = Kind::YIELD.0;
        assert_eq!(
            record(&event, 0, "hello"),
            "[    1.500000] cpu0  run       hello/2 after yield"
        );
    }

    #[test]
    fn only_warnings_and_errors_are_trouble() {
        assert!(
            is_trouble("[    0.000000] WARN  cpu0 x") && is_trouble("[    0.000000] ERROR cpu0 x")
        );
        assert!(
            !is_trouble("[    0.000000] INFO  cpu0 WARN") && !is_trouble("") && !is_trouble("WARN")
        );
    }
}

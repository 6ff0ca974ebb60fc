//! The machine: what it is, its log, its trace, its power; physical interrupts and ports, where the suite was given some.

use plinth_rt::abi::call::{STREAM_MAX, power};
use plinth_rt::abi::device::kind;
use plinth_rt::abi::trace::{Kind, Record};
use plinth_rt::abi::{Call, Claim, Reason, Status, SystemInfo, rights};
use plinth_rt::{Outcome, Why, check, check_eq, hypercall, println, snippet};
use zerocopy::FromBytes;

use crate::child::Life;
use crate::child::{Child, Plan, spin};
use crate::kit::{
    self, MS, Must, PAGE, answers, duplicate, event, pending, raw, refuses, sleep, system,
};
use crate::objects::Objects;

tests!("machine":
    info,
    info_counts_domains,
    info_counts_memory,
    info_time_is_the_clock,
    log,
    log_from_the_middle,
    log_bad_length,
    trace_tells_a_domains_life,
    trace_of_each_cpu,
    trace_bad_length,
    trace_bad_cpu,
    power_bad_action,
    power_bad_status,
    power_needs_the_right,
    given_ports,
    given_interrupt,
);

fn info() -> Outcome {
    let info = system().info().must("info")?;
    check!(info.tsc_hz > 1_000_000, "TSC of {} Hz", info.tsc_hz);
    check!(info.cpus >= 1, "no CPUs");
    check!(
        info.free_frames < info.frames && info.free_frames > 0,
        "{} of {} frames free",
        info.free_frames,
        info.frames
    );
    check!(
        info.memory_frames + info.free_frames <= info.frames,
        "{} frames of memory objects",
        info.memory_frames
    );
    check!(
        info.heap_used > 0 && info.heap_used < info.heap,
        "{} of {} bytes of heap in use",
        info.heap_used,
        info.heap
    );
    check!(info.domains >= 1, "no domains");
    let expected: &[u8; 8] = if hypercall::is_vmmcall() {
        b"SVM\0\0\0\0\0"
    } else {
        b"VMX\0\0\0\0\0"
    };
    check!(&info.extension == expected, "{:x?}", info.extension);
    check!(
        info.version[0].is_ascii_digit(),
        "version {:x?}",
        info.version
    );
    for cpu in info.cpus as usize..info.idle_ns.len() {
        check_eq!(info.idle_ns[cpu], 0, "idle time of a CPU that is not there");
        check_eq!(info.idle_halts[cpu], 0, "halts of a CPU that is not there");
    }
    Ok(())
}

fn info_counts_domains() -> Outcome {
    let domains = || Ok::<_, Why>(system().info().must("info")?.domains);
    let before = domains()?;
    let child = Child::new(&Plan::new(spin()))?;
    check_eq!(domains()?, before + 1, "domains with a child");
    child.destroy()?;
    check_eq!(domains()?, before, "domains after its destruction");
    Ok(())
}

fn info_counts_memory() -> Outcome {
    let before = system().info().must("info")?;
    let _memory = kit::memory(10 * 4096)?;
    let after = system().info().must("info")?;
    check_eq!(
        after.memory_frames,
        before.memory_frames + 10,
        "frames of memory objects"
    );
    check!(
        after.free_frames <= before.free_frames - 10,
        "{} free frames, {} before",
        after.free_frames,
        before.free_frames
    );
    Ok(())
}

fn info_time_is_the_clock() -> Outcome {
    for _ in 0..5 {
        let before = hypercall::clock();
        let now = system().info().must("info")?.now_ns;
        let after = hypercall::clock();
        check!(
            (before..=after).contains(&now),
            "{now} not from {before} to {after}"
        );
    }
    let cpus = system().info().must("info")?.cpus as usize;
    let idle = |info: SystemInfo| info.idle_ns.iter().take(cpus).sum::<u64>();
    let before = idle(system().info().must("info")?);
    sleep(3 * MS);
    let after = idle(system().info().must("info")?);
    check!(after - before >= 2 * MS, "{} ns idle", after - before);
    Ok(())
}

/// The log's lines are UTF-8 text of more than one line.
fn log() -> Outcome {
    let mut buffer = [0; STREAM_MAX as usize];
    let (header, bytes) = system().log(&mut buffer, 0).must("log")?;
    check!(header.start < header.end, "{header:?}");
    check!(!bytes.is_empty(), "no bytes");
    check!(
        bytes.len() as u64 <= header.end - header.start,
        "more bytes than there are"
    );
    check!(bytes.contains(&b'\n'), "no line");
    let odd = bytes
        .iter()
        .find(|byte| !(byte.is_ascii_graphic() || **byte >= 0x80 || b" \n\r\t\x1b".contains(byte)));
    check!(odd.is_none(), "byte {odd:x?}");
    Ok(())
}

fn log_from_the_middle() -> Outcome {
    let mut first = [0; 128];
    let (header, bytes) = system().log(&mut first, 0).must("log")?;
    let start = header.start;
    let mut second = [0; 64];
    let (header, rest) = system().log(&mut second, start + 10).must("log")?;
    check_eq!(header.start, start + 10, "start");
    check!(
        !rest.is_empty() && bytes.get(10..10 + rest.len()) == Some(rest),
        "not the same bytes"
    );
    let (header, none) = system().log(&mut second, header.end).must("log")?;
    check!(none.is_empty() || header.end > header.start, "{header:?}");
    Ok(())
}

fn log_bad_length() -> Outcome {
    bad_length(Call::SYSTEM_LOG)
}

fn bad_length(call: Call) -> Outcome {
    for length in [0, 15, STREAM_MAX + 1, 1 << 32, u64::MAX] {
        refuses(
            call,
            [raw(system().any()), PAGE.address(), length, 0],
            Status::BAD_ARGUMENT,
        )?;
    }
    Ok(())
}

/// Which of these kinds the trace has of a domain, on any CPU.
fn traced(number: u32, kinds: &[Kind]) -> Result<u32, Why> {
    let mut seen = 0;
    let mut buffer = [0; 16 + 100 * size_of::<Record>()];
    for cpu in 0..system().info().must("info")?.cpus {
        let mut position = 0;
        loop {
            let (header, bytes) = system().trace(cpu, &mut buffer, position).must("trace")?;
            if bytes.is_empty() {
                break;
            }
            let records = bytes.len() / size_of::<Record>();
            check_eq!(bytes.len() % size_of::<Record>(), 0, "part of a record");
            for chunk in bytes.chunks_exact(size_of::<Record>()) {
                let record =
                    Record::read_from_bytes(chunk).map_err(|_| format_args!("no record"))?;
                if record.domain == number
                    && let Some(index) = kinds.iter().position(|kind| kind.0 == record.kind)
                {
                    seen |= 1 << index;
                }
            }
            check!(header.start >= position, "{header:?} from {position}");
            position = header.start + records as u64;
        }
    }
    Ok(seen)
}

fn trace_tells_a_domains_life() -> Outcome {
    let child = Child::running(snippet!("2: pause", "jmp 2b"))?;
    let number = child.domain.info().must("info")?.number;
    kit::until("time to run", || {
        Ok(child.vcpu(0).info().must("info")?.run_ns > 0)
    })?;
    child.domain.pause().must("pause")?;
    child.domain.resume().must("resume")?;
    child.domain.kill().must("kill")?;
    child.ends(Reason::KILLED)?;
    child.destroy()?;
    let kinds = [
        Kind::CREATED,
        Kind::STARTED,
        Kind::RUN,
        Kind::PAUSED,
        Kind::RESUMED,
        Kind::ENDED,
        Kind::DESTROYED,
    ];
    // A CPU may write down late what it has done.
    kit::until("a record of each kind", || {
        Ok(traced(number, &kinds)?.count_ones() == kinds.len() as u32)
    })?;
    check_eq!(traced(number + 1000, &kinds)?, 0, "records of nobody");
    Ok(())
}

fn trace_of_each_cpu() -> Outcome {
    let mut buffer = [0; 16 + 10 * size_of::<Record>()];
    for cpu in 0..system().info().must("info")?.cpus {
        let (header, _) = system().trace(cpu, &mut buffer, 0).must("trace")?;
        check!(header.start <= header.end, "{header:?}");
        // The upper bits are the CPU's number in what is asked for only.
        check!(header.end < 1 << 48, "end {:#x}", header.end);
    }
    Ok(())
}

fn trace_bad_length() -> Outcome {
    bad_length(Call::SYSTEM_TRACE)
}

fn trace_bad_cpu() -> Outcome {
    let cpus = u64::from(system().info().must("info")?.cpus);
    for cpu in [cpus, cpus + 1, 0xffff] {
        refuses(
            Call::SYSTEM_TRACE,
            [raw(system().any()), PAGE.address(), 64, cpu << 48],
            Status::NOT_FOUND,
        )?;
    }
    Ok(())
}

fn power_bad_action() -> Outcome {
    for action in [power::HALT + 1, 1 << 32, 1 << 63, u64::MAX] {
        refuses(
            Call::SYSTEM_POWER,
            [raw(system().any()), action, 0],
            Status::BAD_ARGUMENT,
        )?;
    }
    Ok(())
}

fn power_bad_status() -> Outcome {
    for status in [1 << 32, 1 << 63, u64::MAX] {
        refuses(
            Call::SYSTEM_POWER,
            [raw(system().any()), power::OFF, status],
            Status::BAD_ARGUMENT,
        )?;
    }
    Ok(())
}

fn power_needs_the_right() -> Outcome {
    let weak = duplicate(system().any(), rights::SYSTEM & !rights::POWER)?;
    for action in [power::OFF, power::REBOOT, power::HALT] {
        refuses(
            Call::SYSTEM_POWER,
            [raw(*weak), action, 0],
            Status::NO_RIGHT,
        )?;
    }
    Ok(())
}

/// Only what is refused: whoever uses the ports takes the serial port away from the log, and so from this suite.
fn given_ports() -> Outcome {
    let Some((ports, first)) = kit::ports() else {
        println!("note: the suite was given no physical ports");
        return Ok(());
    };
    let objects = Objects::new()?;
    let domain = &objects.child.domain;
    let enable = |status| {
        refuses(
            Call::PORTS_ENABLE,
            [raw(ports.any()), raw(domain.any())],
            status,
        )
    };
    let claim = Claim {
        kind: kind::PORTS,
        memory: objects.memory.0.0.0,
        event: objects.event.0.0.0,
        reserved: 0,
        first: u64::from(first) + 1,
        length: 1,
        tag: 0,
    };
    domain.claim(&claim).must("claim")?;
    enable(Status::EXISTS)?;
    objects.child.bring_to(Life::Destroyed)?;
    enable(Status::WRONG_STATE)
}

fn given_interrupt() -> Outcome {
    let Some(irq) = kit::irq() else {
        println!("note: the suite was given no physical interrupt");
        return Ok(());
    };
    let event = event()?;
    match irq.bind(*event) {
        Ok(()) => {}
        Err(Status::NOT_SUPPORTED) => {
            println!("note: this machine has no I/O APIC");
            return Ok(());
        }
        Err(status) => return Err(format_args!("bind: {status:?}").into()),
    }
    event.bind(1).must("bind")?;
    answers(Call::IRQ_ACK, [raw(irq.any())], Status::OK)?;
    pending()?;
    let weak = duplicate(irq.any(), rights::GRANT)?;
    refuses(Call::IRQ_ACK, [raw(*weak)], Status::NO_RIGHT)
}

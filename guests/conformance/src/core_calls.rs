//! The calls that need no handle, and what is true of all calls.

use plinth_rt::abi::call::{CONSOLE_MAX, access, watch};
use plinth_rt::abi::{ABI_VERSION, Call, Reason, Status};
use plinth_rt::trap::Gprs;
use plinth_rt::{Outcome, check, check_eq, hypercall, object, snippet};

use crate::child::{self, After, Child, DATA, Plan, Step, caller, lets};
use crate::kit::{MS, Must, PAGE, answers, event, refuses, sleep, until};

tests!("core":
    version,
    unknown_numbers,
    every_call_but_the_core_needs_a_handle,
    keeps_registers,
    clock_goes_on,
    clock_is_one_on_all_cpus,
    yield_returns,
    end_status,
    end_of_one_vcpu_is_the_domains,
    wait_asks,
    wait_is_not_early,
    wait_for_the_past,
    console_write_in_pieces,
    console_write_too_long,
    console_write_needs_no_newline,
    console_write_waits_for_its_watcher,
    console_read_without_input,
    console_read_too_long,
    console_read_into_read_only,
    ignores_other_arguments,
);

fn version() -> Outcome {
    check_eq!(hypercall::version(), ABI_VERSION, "version");
    let value = answers(Call::VERSION, [], Status::OK)?;
    check_eq!(value, u64::from(ABI_VERSION), "value");
    Ok(())
}

fn unknown_numbers() -> Outcome {
    let known = |number| Call::ALL.iter().any(|(call, _)| call.0 == number);
    for number in (0..0x400).filter(|number| !known(*number)) {
        refuses(Call(number), [u64::MAX; 6], Status::NO_CALL)?;
    }
    for (call, _) in Call::ALL {
        for high in [1 << 8, 1 << 16, 1 << 32, 1 << 63] {
            refuses(Call(call.0 | high), [u64::MAX; 6], Status::NO_CALL)?;
        }
    }
    Ok(())
}

fn every_call_but_the_core_needs_a_handle() -> Outcome {
    for (call, _) in Call::ALL.iter().filter(|(call, _)| call.0 >= 0x10) {
        refuses(*call, [0; 6], Status::BAD_HANDLE)?;
    }
    Ok(())
}

fn keeps_registers() -> Outcome {
    let instruction = if hypercall::is_vmmcall() {
        snippet!("vmmcall")
    } else {
        snippet!("vmcall")
    };
    for (call, name) in Call::ALL.iter().filter(|(call, _)| *call != Call::END) {
        let before = Gprs {
            rax: call.0,
            rbx: 0x0202_0202_0202_0202,
            rcx: 0x0303_0303_0303_0303,
            // No call takes 0 for a handle, and WAIT does not wait until 0.
            rdi: 0,
            rsi: u64::MAX,
            rdx: u64::MAX,
            rbp: 0x0707_0707_0707_0707,
            r8: u64::MAX,
            r9: u64::MAX,
            r10: u64::MAX,
            r11: 0x1111_1111_1111_1111,
            r12: 0x1212_1212_1212_1212,
            r13: 0x1313_1313_1313_1313,
            r14: 0x1414_1414_1414_1414,
            r15: 0x1515_1515_1515_1515,
        };
        let after = instruction.run(before)?;
        let expected = Gprs {
            rax: after.rax,
            rdx: after.rdx,
            ..before
        };
        check!(after == expected, "{name} changed {after:x?}");
    }
    Ok(())
}

fn clock_goes_on() -> Outcome {
    let start = hypercall::clock();
    let mut last = start;
    for _ in 0..200 {
        let now = hypercall::clock();
        check!(now >= last, "{now} after {last}");
        last = now;
    }
    check!(last > start, "stands still");
    Ok(())
}

/// A child on each CPU writes the clock down; the suite reads it before and after.
fn clock_is_one_on_all_cpus() -> Outcome {
    let cpus = crate::kit::system().info().must("system info")?.cpus;
    for cpu in 0..cpus {
        let child = caller()?;
        child.pin(0, cpu)?;
        let before = hypercall::clock();
        lets(&child, &[Step::new(Call::CLOCK, [])])?;
        let after = hypercall::clock();
        let seen = child.answered(0, 0, Status::OK)?;
        check!(
            (before..=after).contains(&seen),
            "CPU {cpu}: {seen}, not from {before} to {after}"
        );
    }
    Ok(())
}

fn yield_returns() -> Outcome {
    check_eq!(answers(Call::YIELD, [], Status::OK)?, 0, "value");
    Ok(())
}

fn end_status() -> Outcome {
    for status in [0, 1, 7, u64::from(u32::MAX), u64::MAX] {
        let child = Child::new(&Plan::new(child::end()))?;
        child.set(0, |state| state.rbx = status)?;
        child.start()?;
        child.ends_with(status)?;
    }
    Ok(())
}

fn end_of_one_vcpu_is_the_domains() -> Outcome {
    let child = Child::new(&Plan {
        vcpus: 2,
        ..Plan::new(snippet!(
            "2: test rbx, rbx",
            "jz 2b",
            "mov eax, 4",
            "mov rdi, rbx",
            "call r15"
        ))
    })?;
    child.set(1, |state| state.rbx = 9)?;
    child.start()?;
    let info = child.ends(Reason::STATUS)?;
    check_eq!(info.info[0], 9, "status");
    check_eq!(info.ended_vcpu, 1, "vCPU");
    Ok(())
}

fn wait_asks() -> Outcome {
    refuses(Call::WAIT, [0], Status::TIMED_OUT)
}

fn wait_is_not_early() -> Outcome {
    for ns in [1, 1000, MS / 10, MS, 3 * MS] {
        let deadline = hypercall::clock() + ns;
        refuses(Call::WAIT, [deadline], Status::TIMED_OUT)?;
        let now = hypercall::clock();
        check!(now >= deadline, "{} ns early", deadline - now);
        check!(now - deadline < 1000 * MS, "{} ns late", now - deadline);
    }
    Ok(())
}

fn wait_for_the_past() -> Outcome {
    let now = hypercall::clock();
    for deadline in [1, now / 2, now] {
        refuses(Call::WAIT, [deadline], Status::TIMED_OUT)?;
    }
    Ok(())
}

fn console_write_in_pieces() -> Outcome {
    let child = caller()?;
    child.write(DATA, &[b'.'; 257])?;
    let steps = [0, 1, 255, 256, 257, CONSOLE_MAX]
        .map(|length| Step::new(Call::CONSOLE_WRITE, [DATA, length]));
    lets(&child, &steps)?;
    let mut all = 0;
    for (step, asked) in [0, 1, 255, 256, 257, CONSOLE_MAX].into_iter().enumerate() {
        let taken = child.answered(0, step, Status::OK)?;
        check!(
            taken <= asked.min(256) && (taken > 0 || asked == 0),
            "{taken} bytes of {asked}"
        );
        all += taken;
    }
    let end = child.domain.info().must("info")?.console_end;
    check_eq!(end, all, "end of the console's stream");
    Ok(())
}

fn console_write_too_long() -> Outcome {
    for length in [CONSOLE_MAX + 1, 1 << 32, u64::MAX] {
        for at in [PAGE.address(), u64::MAX] {
            refuses(Call::CONSOLE_WRITE, [at, length], Status::BAD_ARGUMENT)?;
        }
    }
    Ok(())
}

fn console_write_needs_no_newline() -> Outcome {
    let child = caller()?;
    child.write(DATA, b"half a line")?;
    child.load(
        0,
        &[Step::new(Call::CONSOLE_WRITE, [DATA, 11])],
        1,
        After::Wait,
    )?;
    child.start()?;
    child.until_done(0)?;
    let mut buffer = [0; 64];
    let (header, bytes) = child.domain.console(&mut buffer, 0).must("console")?;
    check!(bytes == b"half a line", "{bytes:x?}");
    check_eq!(header.end, 11, "end");
    Ok(())
}

/// It does not run away from whoever watches its console.
fn console_write_waits_for_its_watcher() -> Outcome {
    let child = caller()?;
    let event = event()?;
    child.domain.watch(*event, watch::CONSOLE).must("watch")?;
    child.write(DATA, &[b'.'; 256])?;
    child.load(
        0,
        &[Step::new(Call::CONSOLE_WRITE, [DATA, 256])],
        u64::MAX,
        After::Wait,
    )?;
    child.start()?;
    let mut position = 0;
    for _ in 0..3 {
        until("it to wait", || {
            let before = child.tally(0, 0)?[Status::AGAIN.0 as usize];
            sleep(MS / 10);
            Ok(child.tally(0, 0)?[Status::AGAIN.0 as usize] > before)
        })?;
        let end = child.domain.info().must("info")?.console_end;
        check!(
            end - position <= 4096 + 256,
            "{} bytes ahead",
            end - position
        );
        let mut buffer = [0; 4096];
        while position < end {
            let (header, bytes) = child
                .domain
                .console(&mut buffer, position)
                .must("console")?;
            check_eq!(header.start, position, "start");
            position += bytes.len() as u64;
        }
    }
    check!(position > 4096, "{position} bytes in all");
    child.only(0, 0, &[Status::OK, Status::AGAIN])
}

fn console_read_without_input() -> Outcome {
    let child = caller()?;
    lets(&child, &[Step::new(Call::CONSOLE_READ, [DATA, 64])])?;
    check_eq!(child.answered(0, 0, Status::OK)?, 0, "bytes");
    Ok(())
}

fn console_read_too_long() -> Outcome {
    for length in [CONSOLE_MAX + 1, 1 << 32, u64::MAX] {
        for at in [PAGE.address(), u64::MAX] {
            refuses(Call::CONSOLE_READ, [at, length], Status::BAD_ARGUMENT)?;
        }
    }
    Ok(())
}

/// Input does not go where the domain may not write, and is not lost by the attempt.
fn console_read_into_read_only() -> Outcome {
    let child = caller()?;
    let last = child::SCRIPTS + 3 * 4096;
    child
        .domain
        .protect(last, 4096, access::READ)
        .must("protect")?;
    check_eq!(child.domain.type_in(b"typed").must("type")?, 5, "taken");
    lets(
        &child,
        &[
            Step::new(Call::CONSOLE_READ, [last, 5]),
            Step::new(Call::CONSOLE_READ, [DATA, 64]),
        ],
    )?;
    child.answered(0, 0, Status::BAD_ADDRESS)?;
    check_eq!(child.answered(0, 1, Status::OK)?, 5, "bytes");
    Ok(())
}

fn ignores_other_arguments() -> Outcome {
    let rest = u64::MAX;
    answers(Call::VERSION, [rest; 6], Status::OK)?;
    answers(Call::CLOCK, [rest; 6], Status::OK)?;
    answers(Call::YIELD, [rest; 6], Status::OK)?;
    answers(
        Call::CONSOLE_WRITE,
        [0, 0, rest, rest, rest, rest],
        Status::OK,
    )?;
    answers(
        Call::WAIT,
        [0, rest, rest, rest, rest, rest],
        Status::TIMED_OUT,
    )?;
    let own = crate::kit::raw(crate::kit::own().any());
    answers(
        Call::HANDLE_INFO,
        [own, rest, rest, rest, rest, rest],
        Status::OK,
    )?;
    check!(object::wait(0).must("wait")?.is_none(), "an event");
    Ok(())
}

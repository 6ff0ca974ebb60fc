//! Tricks with what lies at and behind the end of memory: accesses that straddle it, tables that point there.

use plinth_rt::abi::domain::fault;
use plinth_rt::{Gprs, Outcome, check_eq, snippet, trap::vector};

use crate::attacker::{RAM, faults_at, inside};

cases!("nested_faults":
    read_straddles_the_end,
    write_straddles_the_end,
    fetch_behind_the_end,
    wrapped_linear_address,
    not_canonical,
);

fn at(address: u64) -> Gprs {
    Gprs {
        rdi: address,
        ..Gprs::ZERO
    }
}

fn read_straddles_the_end() -> Outcome {
    faults_at(
        || {
            snippet!("mov rax, [rdi]").run(at(RAM - 4))?;
            Ok(())
        },
        RAM,
        0,
    )
}

fn write_straddles_the_end() -> Outcome {
    faults_at(
        || {
            snippet!("mov [rdi], rax").run(at(RAM - 4))?;
            Ok(())
        },
        RAM,
        fault::WRITE,
    )
}

fn fetch_behind_the_end() -> Outcome {
    faults_at(
        || {
            snippet!("jmp rdi").run(at(RAM))?;
            Ok(())
        },
        RAM,
        fault::FETCH,
    )
}

/// The last bytes of the address space, and the first behind it.
fn wrapped_linear_address() -> Outcome {
    inside(|| {
        let code = snippet!("mov rax, [rdi]");
        let trap = plinth_rt::suite::faulted(&code, code.run(at(u64::MAX - 3)), vector::PF, 0)?;
        check_eq!(trap.cr2, u64::MAX - 3, "CR2");
        Ok(())
    })
}

fn not_canonical() -> Outcome {
    inside(|| {
        plinth_rt::suite::must_fault(
            &snippet!("mov rax, [rdi]"),
            at(0x8000_0000_0000),
            vector::GP,
            0,
        )
    })
}

//! The current VMCS in words, for the report of a failed entry.

use core::fmt;

use super::validate;
use super::vmcs::{self, Encoding, Field, InterruptionInfo, Value, Width};

/// Writes every field that this CPU has, then the control fields by the names of their bits.
pub fn dump(out: &mut dyn fmt::Write) -> fmt::Result {
    let reason = vmcs::EXIT_REASON.read();
    writeln!(out, "exit reason {:#x}: {}", reason.0, reason.name())?;
    // 5 is what every first entry leaves behind: VMRESUME is tried before VMLAUNCH.
    if let Some(error) =
        vmcs::try_read(vmcs::INSTRUCTION_ERROR.encoding()).filter(|error| *error != 5)
    {
        let words = validate::instruction_error(vmcs::InstructionError(error as u32));
        writeln!(out, "last VM-instruction error {error}: {words}")?;
    }
    bits(out, "pin-based controls", vmcs::PIN_CONTROLS)?;
    bits(out, "primary controls", vmcs::PRIMARY_CONTROLS)?;
    bits(out, "secondary controls", vmcs::SECONDARY_CONTROLS)?;
    bits(out, "VM-exit controls", vmcs::EXIT_CONTROLS)?;
    bits(out, "VM-entry controls", vmcs::ENTRY_CONTROLS)?;
    bits(out, "guest interruptibility", vmcs::GUEST_INTERRUPTIBILITY)?;
    interruption(out, "event to inject", vmcs::ENTRY_INTERRUPTION_INFO.read())?;
    interruption(
        out,
        "event that exited",
        vmcs::EXIT_INTERRUPTION_INFO.read(),
    )?;
    interruption(
        out,
        "event being delivered",
        vmcs::IDT_VECTORING_INFO.read(),
    )?;
    fields(out, vmcs::ALL, vmcs::try_read)
}

/// Three fields a line. Fields that the CPU lacks are left out.
fn fields(
    out: &mut dyn fmt::Write,
    all: &[(&str, Encoding)],
    read: impl Fn(Encoding) -> Option<u64>,
) -> fmt::Result {
    let mut column = 0;
    for (name, encoding) in all {
        if let Some(value) = read(*encoding) {
            write!(out, "{name:<26}{value:#018x}")?;
            column += 1;
            out.write_str(if column % 3 == 0 { "\n" } else { "  " })?;
        }
    }
    if column % 3 != 0 {
        out.write_char('\n')?;
    }
    Ok(())
}

fn bits<W: Width, T: Value + fmt::Debug>(
    out: &mut dyn fmt::Write,
    name: &str,
    field: Field<W, T>,
) -> fmt::Result {
    writeln!(out, "{name}: {:?}", field.read())
}

fn interruption(out: &mut dyn fmt::Write, name: &str, info: InterruptionInfo) -> fmt::Result {
    if !info.valid() {
        return writeln!(out, "{name}: none");
    }
    let kind = match info.kind() {
        0 => "external interrupt",
        2 => "NMI",
        3 => "exception",
        4 => "software interrupt",
        5 => "privileged software exception",
        6 => "software exception",
        _ => "other event",
    };
    writeln!(
        out,
        "{name}: {kind} {}, error code: {}",
        info.vector(),
        info.has_error_code()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_that_is_there_is_written() {
        let mut text = String::new();
        let absent = vmcs::TSC_OFFSET.encoding();
        fields(&mut text, vmcs::ALL, |field| {
            (field != absent).then_some(field.number().into())
        })
        .unwrap();
        assert!(text.contains("GUEST_RIP                 0x000000000000681e"));
        assert!(!text.contains("TSC_OFFSET"));
        assert_eq!(text.matches("0x").count(), vmcs::ALL.len() - 1);
        assert!(text.ends_with('\n'));
    }

    #[test]
    fn events_are_told_in_words() {
        let mut text = String::new();
        let info = InterruptionInfo::new()
            .with_valid(true)
            .with_vector(14)
            .with_kind(3)
            .with_has_error_code(true);
        interruption(&mut text, "event", info).unwrap();
        interruption(&mut text, "event", InterruptionInfo::new()).unwrap();
        assert_eq!(text, "event: exception 14, error code: true\nevent: none\n");
    }
}

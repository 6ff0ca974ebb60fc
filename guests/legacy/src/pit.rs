//! The 8254: channel 0 interrupts, channel 2 is the speaker's, whose output can be read.

use plinth_pc::{Outcome, check, check_eq, ports};

use crate::{Moment, apic, irq, is_about, pic};

/// The clock of all channels.
const HZ: u64 = 1_193_182;
/// Channel 0; the others follow, then the control words.
const CHANNEL: u16 = 0x40;
const CONTROL: u16 = 0x43;
/// The gate of channel 2 (bit 0), the speaker (bit 1), the output of channel 2 (bit 5).
const SPEAKER: u16 = 0x61;

/// A count for 50 Hz.
const COUNT: u16 = 23_864;
/// A count for 200 Hz.
pub const FAST: u16 = 5_966;
/// How many ticks are measured.
const TICKS: u32 = 20;

/// Both bytes of the count, and a mode.
const fn control(channel: u16, mode: u8) -> u8 {
    (channel as u8) << 6 | 0b11 << 4 | mode << 1
}

fn load(channel: u16, mode: u8, count: u16) {
    let [low, high] = count.to_le_bytes();
    ports::write(CONTROL, control(channel, mode));
    ports::write(CHANNEL + channel, low);
    ports::write(CHANNEL + channel, high);
}

/// Ticks each `count` of the clock (mode 2).
pub fn periodic(count: u16) {
    load(0, 2, count);
}

/// No more ticks: mode 0, whose count never comes.
pub fn stop() {
    ports::write(CONTROL, control(0, 0));
}

/// Microseconds of a count.
const fn duration(count: u16) -> u64 {
    count as u64 * 1_000_000 / HZ
}

/// The count goes down from what was loaded, and the status says what was programmed ("READ-BACK COMMAND").
pub fn reads_back() -> Outcome {
    const STATUS_OF_0: u8 = 0b1110_0010;
    const LATCH_0: u8 = 0;
    periodic(COUNT);
    let latched = || {
        ports::write(CONTROL, LATCH_0);
        let [low, high] = [ports::read::<u8>(CHANNEL), ports::read::<u8>(CHANNEL)];
        u16::from_le_bytes([low, high])
    };
    let mut different = 0;
    let mut last = latched();
    for _ in 0..50 {
        let count = latched();
        check!(
            (1..=COUNT).contains(&count),
            "the count is {count}, and {COUNT} was loaded"
        );
        different += u32::from(count != last);
        last = count;
    }
    check!(different > 10, "it stands, or nearly");
    ports::write(CONTROL, STATUS_OF_0);
    // Without the output, and whether the count has been loaded.
    let status = ports::read::<u8>(CHANNEL) & 0x3f;
    check_eq!(status, control(0, 2) & 0x3f, "the status of channel 0");
    stop();
    Ok(())
}

/// Channel 2 counts down while its gate is open, and its output rises (mode 0).
pub fn speaker_channel() -> Outcome {
    const OUTPUT: u8 = 1 << 5;
    let count = FAST;
    ports::write(SPEAKER, 0u8);
    load(2, 0, count);
    let output = || ports::read::<u8>(SPEAKER) & OUTPUT != 0;
    check!(!output(), "the output is high before the gate is open");
    let begin = Moment::now()?;
    ports::write(SPEAKER, 1u8);
    while !output() {}
    let elapsed = begin.elapsed()?;
    ports::write(SPEAKER, 0u8);
    // Whoever looks at it may be late; it cannot be early.
    let expected = duration(count);
    check!(
        (expected * 99 / 100..expected * 20).contains(&elapsed),
        "it took {elapsed} us, expected {expected} us"
    );
    Ok(())
}

/// The time of [`TICKS`] ticks that come as `vector`. Who has other work may be late once: the best of some tries counts.
fn measure(vector: u8) -> Outcome {
    const TRIES: u32 = 4;
    let mut outcome = Ok(());
    for _ in 0..TRIES {
        periodic(COUNT);
        irq::wait_for(vector, 1)?;
        let begin = Moment::now()?;
        irq::wait_for(vector, TICKS)?;
        let elapsed = begin.elapsed()?;
        outcome = is_about(
            elapsed,
            u64::from(TICKS) * duration(COUNT),
            "that many ticks",
        );
        if outcome.is_ok() {
            break;
        }
    }
    stop();
    outcome
}

/// By the 8259A and LINT0.
pub fn ticks_by_pic() -> Outcome {
    irq::with_interrupts(|| {
        pic::open(1 << pic::TIMER);
        let outcome = measure(irq::PIC + pic::TIMER);
        pic::close();
        outcome
    })
}

/// By the I/O APIC, at whose pin 2 the timer is; the 8259A are masked.
pub fn ticks_by_io_apic() -> Outcome {
    irq::with_interrupts(|| {
        pic::open(0);
        pic::close();
        let by_pic = irq::count(irq::PIC + pic::TIMER);
        apic::route(apic::TIMER_PIN, Some(irq::IO_APIC));
        let outcome = measure(irq::IO_APIC);
        apic::route(apic::TIMER_PIN, None);
        check_eq!(
            irq::count(irq::PIC + pic::TIMER),
            by_pic,
            "ticks by the masked 8259A"
        );
        outcome
    })
}

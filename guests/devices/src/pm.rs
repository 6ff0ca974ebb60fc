//! ACPI's fixed hardware (ACPI 6.5 chapter 4): the power management timer, the PM1 blocks, the power button, and the reset register.

/// How many bits of the power management timer count (ACPI 6.5 4.8.3.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TimerWidth {
    /// It wraps every 4.7 s.
    Bits24,
    /// It wraps every 20 minutes.
    Bits32,
}

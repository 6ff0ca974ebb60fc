//! The timer of a local APIC.

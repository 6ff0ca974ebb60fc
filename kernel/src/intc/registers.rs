//! The registers of a local APIC.

//! What CPUID tells a guest: a machine of one package, one core a vCPU and one thread a core, on the host's processor.
//!
//! Features are shown by allow lists: what is not known here is not shown. A feature is known when a guest can use it with
//! the state that Plinth switches and the instructions that Plinth lets through.
//!
//! SDM vol. 2 "CPUID"; APM3 appendix E.

mod features;
mod leaves;
mod table;

#[cfg(test)]
mod tests;

pub use features::Features;
pub use leaves::{cpuid, vendor};
pub use table::CpuidTable;

/// EAX, EBX, ECX and EDX.
pub type Registers = [u32; 4];

/// What a domain's CPUs are, the same for all of its vCPUs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestIdentity {
    /// Number of vCPUs, at least 1.
    pub vcpus: u32,
    /// The guest has local APICs: APIC, x2APIC and the TSC deadline are shown, and KVM's leaves about time.
    pub local_apic: bool,
    /// INVPCID runs in the guest (VMX: "enable INVPCID").
    pub invpcid: bool,
    /// RDTSCP and RDPID run in the guest, and TSC_AUX is switched (VMX: "enable RDTSCP").
    pub rdtscp: bool,
    /// The components of XCR0 that the host switches for the guest.
    pub xcr0_supported: u64,
    /// Frequency of the guest's TSC in kHz; 0: not known.
    pub tsc_khz: u32,
    /// Frequency of the guest's local APIC timer in kHz; 0: there is none.
    pub apic_khz: u32,
    /// Bits of a guest-physical address, 32 to 52.
    pub physical_bits: u8,
    /// IA32_ARCH_CAPABILITIES as guests read it; `None`: there is none.
    pub arch_capabilities: Option<u64>,
}

/// What differs between vCPUs and over time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VcpuView {
    /// APIC identifier: below the power of two at or above the number of vCPUs.
    pub apic_id: u32,
    /// CR4: OSXSAVE and OSPKE mirror it.
    pub cr4: u64,
    /// XCR0: the sizes in leaf 0DH follow it.
    pub xcr0: u64,
    /// APIC_BASE disables the local APIC, of which leaf 1 then says nothing (SDM vol. 3 11.4.3).
    pub apic_disabled: bool,
}

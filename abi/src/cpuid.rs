//! CPUID leaves by which a guest recognises Plinth. Leaf 1 ECX bit 31 says that there is a hypervisor.

/// EAX: highest hypervisor leaf. EBX, ECX, EDX: [`SIGNATURE`].
pub const LEAF_SIGNATURE: u32 = 0x4000_0000;
/// EAX: [`crate::ABI_VERSION`]. EBX: feature bits (none yet). ECX, EDX: 0.
pub const LEAF_VERSION: u32 = 0x4000_0001;
/// EAX: frequency of the guest's TSC in kHz. EBX: frequency of its local APIC timer in kHz. ECX, EDX: 0.
pub const LEAF_FREQUENCY: u32 = 0x4000_0010;
/// EBX, ECX, EDX: [`KVM_SIGNATURE`], for a domain of [`crate::domain::platform::PC`]: guests that know KVM's clock find it here.
/// EAX: the highest leaf of that range.
pub const LEAF_KVM: u32 = 0x4000_0100;
/// EAX: which of KVM's features there are, as KVM defines them.
pub const LEAF_KVM_FEATURES: u32 = 0x4000_0101;
/// "KVMKVMKVM" in EBX, ECX, EDX of [`LEAF_KVM`].
pub const KVM_SIGNATURE: [u32; 3] = [
    u32::from_le_bytes(*b"KVMK"),
    u32::from_le_bytes(*b"VMKV"),
    u32::from_le_bytes(*b"M\0\0\0"),
];
/// The highest of these leaves.
pub const LEAF_LAST: u32 = LEAF_FREQUENCY;

/// "PlinthPlinth" in EBX, ECX, EDX.
pub const SIGNATURE: [u32; 3] = [
    u32::from_le_bytes(*b"Plin"),
    u32::from_le_bytes(*b"thPl"),
    u32::from_le_bytes(*b"inth"),
];

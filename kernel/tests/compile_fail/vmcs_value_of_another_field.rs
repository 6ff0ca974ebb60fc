//! A value that was read from one field of the VMCS is written into another.
use plinth_kernel::virt::vmx::vmcs;

fn main() {
    vmcs::GUEST_CR0.write(vmcs::GUEST_CR4.read());
}

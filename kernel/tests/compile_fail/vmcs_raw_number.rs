//! A bare number is written into a field.
use plinth_kernel::virt::vmx::vmcs;

fn main() {
    vmcs::PIN_CONTROLS.write(0x4000);
}

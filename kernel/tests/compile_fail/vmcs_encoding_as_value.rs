//! A field's number is written where its value belongs.
use plinth_kernel::virt::vmx::vmcs;

fn main() {
    vmcs::HOST_RIP.write(vmcs::HOST_RIP.encoding());
    vmcs::HOST_RSP.write(vmcs::HOST_RIP);
}

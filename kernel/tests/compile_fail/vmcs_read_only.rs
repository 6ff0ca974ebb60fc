//! VM-exit information is written.
use plinth_kernel::virt::vmx::vmcs::{EXIT_REASON, ExitReason};

fn main() {
    EXIT_REASON.write(ExitReason::HLT);
}

//! An exit code is written where an event belongs.
use plinth_kernel::virt::svm::exit_code::ExitCode;
use plinth_kernel::virt::svm::vmcb::Vmcb;

fn cancel(vmcb: &mut Vmcb) {
    vmcb.control.event_injection = ExitCode::VMMCALL;
}

fn main() {}

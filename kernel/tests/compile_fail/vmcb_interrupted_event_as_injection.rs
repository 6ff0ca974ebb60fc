//! An event whose delivery was interrupted is written where one to be injected belongs.
use plinth_kernel::virt::svm::vmcb::Vmcb;

fn again(vmcb: &mut Vmcb) {
    vmcb.control.event_injection = vmcb.control.exit_int_info;
}

fn main() {}

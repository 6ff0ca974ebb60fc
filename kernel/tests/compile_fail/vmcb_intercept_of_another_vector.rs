//! An intercept of one vector is written into another.
use plinth_kernel::virt::svm::vmcb::{Intercepts2, Vmcb};

fn intercept(vmcb: &mut Vmcb) {
    vmcb.control.intercepts1 = Intercepts2::VMRUN;
}

fn main() {}

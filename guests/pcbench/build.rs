//! Links the guest as a kernel for a PC.

fn main() {
    println!("cargo:rerun-if-changed=../pc/pc.ld");
    // As seen from the workspace's top, where cargo runs the linker: a checkout that moves stays good.
    println!("cargo:rustc-link-arg-bins=-Tguests/pc/pc.ld");
}

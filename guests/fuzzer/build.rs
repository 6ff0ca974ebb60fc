//! Links the guest where the kernel expects it.

fn main() {
    println!("cargo:rerun-if-changed=../rt/guest.ld");
    // As seen from the workspace's top, where cargo runs the linker: a checkout that moves stays good.
    println!("cargo:rustc-link-arg-bins=-Tguests/rt/guest.ld");
}

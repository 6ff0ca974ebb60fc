//! Links the guest as firmware: the entry at the reset vector, the rest in low memory.

fn main() {
    println!("cargo:rerun-if-changed=firmware.ld");
    // As seen from the workspace's top, where cargo runs the linker: a checkout that moves stays good.
    println!("cargo:rustc-link-arg-bins=-Tguests/realmode/firmware.ld");
}

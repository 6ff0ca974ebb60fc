//! Links the guest as firmware: the entry at the reset vector, the rest in low memory.

fn main() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/firmware.ld");
    println!("cargo:rerun-if-changed={script}");
    println!("cargo:rustc-link-arg-bins=-T{script}");
}

//! Links the guest where the kernel expects it.

fn main() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../rt/guest.ld");
    println!("cargo:rerun-if-changed={script}");
    println!("cargo:rustc-link-arg-bins=-T{script}");
}

//! Where the kernel is linked: at the bottom of the top 2 GiB, which the kernel code model can address.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        println!("cargo:rustc-link-arg-bins=--image-base=0xffffffff80000000");
        // Code, read-only data and data each in pages of their own, so that the loader can map them W^X.
        println!("cargo:rustc-link-arg-bins=-zseparate-loadable-segments");
        println!("cargo:rustc-link-arg-bins=--gc-sections");
    }
}

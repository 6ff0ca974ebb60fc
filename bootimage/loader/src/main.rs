//! The UEFI loader of Plinth: loads the kernel and its modules from the volume it was started from, builds the kernel's
//! address space, and enters the kernel with a `bootloader_api::BootInfo`.
//!
//! What goes wrong is told in words on the console and on the serial port; then the loader waits for a key and returns
//! to the firmware, which can try the next boot entry. It must never leave the firmware before everything that can fail
//! has succeeded.

#![cfg_attr(target_os = "uefi", no_std, no_main)]

#[cfg(target_os = "uefi")]
mod boot;
#[cfg(target_os = "uefi")]
mod console;
#[cfg(target_os = "uefi")]
mod cpu;
#[cfg(target_os = "uefi")]
mod firmware;
#[cfg(target_os = "uefi")]
mod graphics;
#[cfg(target_os = "uefi")]
mod handover;
#[cfg(target_os = "uefi")]
mod pages;
#[cfg(target_os = "uefi")]
mod volume;

#[cfg(target_os = "uefi")]
#[uefi::entry]
fn main() -> uefi::Status {
    console::start();
    console::say!("Plinth loader {}", env!("CARGO_PKG_VERSION"));
    let error = match boot::boot() {
        Ok(never) => match never {},
        Err(error) => error,
    };
    console::say!("error: {error}");
    console::say!("Plinth was not started. Press a key to return to the firmware.");
    console::wait_for_key();
    uefi::Status::LOAD_ERROR
}

/// The loader runs on UEFI only; on the host there is its library to be tested.
#[cfg(not(target_os = "uefi"))]
fn main() {}

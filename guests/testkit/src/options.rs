//! What the suite was told at its start: words `key=value` of its command line, or, in the first domain, of the kernel's.

#![allow(
    unsafe_code,
    reason = "text that lies where the start information says"
)]

use plinth_rt::abi::StartEntry;
use plinth_rt::abi::system::start;
use tar_no_std::TarArchiveRef;

use crate::kit::given;

fn bytes(entry: &StartEntry) -> &'static [u8] {
    // SAFETY: the start information names memory that is mapped there for the domain's life, and that nobody writes to.
    unsafe { core::slice::from_raw_parts(entry.first as *const u8, entry.length as usize) }
}

/// The file `cmdline` of the module archive.
fn of_the_kernel() -> Option<&'static [u8]> {
    let archive = TarArchiveRef::new(bytes(&given(start::MODULES)?)).ok()?;
    archive
        .entries()
        .find(|entry| entry.filename().as_str() == Ok("cmdline"))
        .map(|entry| entry.data())
}

/// The value of the last word with this key.
pub fn option(key: &str) -> Option<&'static str> {
    let text = match given(start::COMMAND_LINE) {
        Some(entry) => bytes(&entry),
        None => of_the_kernel()?,
    };
    core::str::from_utf8(text)
        .ok()?
        .split_ascii_whitespace()
        .filter_map(|word| word.split_once('='))
        .rfind(|(found, _)| *found == key)
        .map(|(_, value)| value)
}

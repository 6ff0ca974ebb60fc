//! Function names for backtraces, from the symbol table of the kernel's own ELF file. Used while the kernel is dying, so every
//! offset is checked and nothing allocates. Pure but for the place where the file's location is kept.

use core::fmt;
use spin::Once;

const SECTION_HEADER_BYTES: usize = 64;
const SYMBOL_BYTES: usize = 24;
/// `SHT_SYMTAB` of the ELF specification.
const SYMBOL_TABLE: u32 = 2;
/// `STT_FUNC` of the ELF specification.
const FUNCTION: u8 = 2;

/// The symbols of one ELF64 little-endian file.
#[derive(Clone, Copy, Debug)]
pub struct Symbols<'a> {
    table: &'a [u8],
    names: &'a [u8],
}

impl<'a> Symbols<'a> {
    /// Finds the symbol table of `elf`; `None` where there is none or the file is damaged.
    pub fn of(elf: &'a [u8]) -> Option<Self> {
        if elf.get(..6)? != b"\x7fELF\x02\x01" {
            return None;
        }
        let sections = usize::try_from(u64_at(elf, 40)?).ok()?;
        let stride = usize::from(u16_at(elf, 58)?);
        let count = usize::from(u16_at(elf, 60)?);
        if stride < SECTION_HEADER_BYTES {
            return None;
        }
        let header = |index: usize| {
            let at = sections.checked_add(index.checked_mul(stride)?)?;
            elf.get(at..at.checked_add(SECTION_HEADER_BYTES)?)
        };
        let contents = |header: &[u8]| {
            let at = usize::try_from(u64_at(header, 24)?).ok()?;
            let len = usize::try_from(u64_at(header, 32)?).ok()?;
            elf.get(at..at.checked_add(len)?)
        };
        let table = (0..count)
            .filter_map(header)
            .find(|header| u32_at(header, 4) == Some(SYMBOL_TABLE))?;
        let names = header(usize::try_from(u32_at(table, 40)?).ok()?)?;
        Some(Self {
            table: contents(table)?,
            names: contents(names)?,
        })
    }

    /// The mangled name of the function that holds `address`, and the bytes from its start.
    pub fn find(&self, address: u64) -> Option<(&'a str, u64)> {
        self.table.chunks_exact(SYMBOL_BYTES).find_map(|symbol| {
            let start = u64_at(symbol, 8)?;
            let len = u64_at(symbol, 16)?;
            let offset = address.checked_sub(start)?;
            // Assembly labels have no size; they name their first byte only.
            if symbol.get(4)? & 0xf != FUNCTION || offset >= len.max(1) {
                return None;
            }
            let name = self
                .names
                .get(usize::try_from(u32_at(symbol, 0)?).ok()?..)?;
            let end = name.iter().position(|&byte| byte == 0)?;
            Some((core::str::from_utf8(name.get(..end)?).ok()?, offset))
        })
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

static KERNEL: Once<Symbols<'static>> = Once::new();

/// Keeps the symbols of the kernel, whose ELF file is `elf`.
pub fn init(elf: &'static [u8]) {
    match Symbols::of(elf) {
        Some(symbols) => {
            KERNEL.call_once(|| symbols);
        }
        None => log::warn!("the kernel has no symbol table: backtraces will not name functions"),
    }
}

/// An address that prints as the demangled name of its function and the offset in it; as `?` where that is not known.
pub struct Named(pub u64);

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match KERNEL.get().and_then(|symbols| symbols.find(self.0)) {
            Some((name, offset)) => write!(f, "{:#}+{offset:#x}", rustc_demangle::demangle(name)),
            None => f.write_str("?"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An ELF file with nothing but a symbol table of two functions and one object.
    fn sample() -> Vec<u8> {
        let names = b"\0first\0_ZN3lib6secondE\0data\0";
        let mut elf = vec![0; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let names_at = elf.len() as u64;
        elf.extend_from_slice(names);
        let table_at = elf.len() as u64;
        for (name, kind, value, size) in [
            (0u32, 0u8, 0u64, 0u64),
            (24, 1, 0x1000, 0x1000),
            (1, 2, 0x1000, 0x10),
            (7, 2, 0x1010, 0x20),
        ] {
            elf.extend_from_slice(&name.to_le_bytes());
            elf.extend_from_slice(&[kind, 0, 1, 0]);
            elf.extend_from_slice(&value.to_le_bytes());
            elf.extend_from_slice(&size.to_le_bytes());
        }
        let table_len = elf.len() as u64 - table_at;
        let headers_at = elf.len() as u64;
        for (kind, at, len, link) in [
            (0u32, 0, 0, 0u32),
            (3, names_at, names.len() as u64, 0),
            (2, table_at, table_len, 1),
        ] {
            let mut header = [0; 64];
            header[4..8].copy_from_slice(&kind.to_le_bytes());
            header[24..32].copy_from_slice(&at.to_le_bytes());
            header[32..40].copy_from_slice(&len.to_le_bytes());
            header[40..44].copy_from_slice(&link.to_le_bytes());
            elf.extend_from_slice(&header);
        }
        elf[40..48].copy_from_slice(&headers_at.to_le_bytes());
        elf[58..60].copy_from_slice(&64u16.to_le_bytes());
        elf[60..62].copy_from_slice(&3u16.to_le_bytes());
        elf
    }

    #[test]
    fn addresses_are_named_by_the_function_that_holds_them() {
        let elf = sample();
        let symbols = Symbols::of(&elf).unwrap();
        assert_eq!(symbols.find(0x1000), Some(("first", 0)));
        assert_eq!(symbols.find(0x100f), Some(("first", 0xf)));
        assert_eq!(symbols.find(0x1011), Some(("_ZN3lib6secondE", 1)));
        assert_eq!(symbols.find(0x1030), None, "data is no function");
        assert_eq!(symbols.find(0xfff), None);
    }

    #[test]
    fn a_file_cut_short_gives_no_symbols() {
        let elf = sample();
        for len in 0..elf.len() {
            assert!(Symbols::of(&elf[..len]).is_none(), "{len}");
        }
    }

    proptest! {
        #[test]
        fn damage_never_panics(at in 0usize..360, value: u8, address: u64) {
            let mut elf = sample();
            let at = at % elf.len();
            elf[at] = value;
            if let Some(symbols) = Symbols::of(&elf) {
                symbols.find(address);
                symbols.find(0x1011);
            }
        }
    }
}

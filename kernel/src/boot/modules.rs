//! The module archive: an uncompressed tar that the loader put in memory.

use spin::Once;
use tar_no_std::{TarArchiveRef, TarFormatString};

/// The files the loader brought.
#[derive(Clone, Debug)]
pub struct Modules<'a> {
    archive: Option<TarArchiveRef<'a>>,
}

impl<'a> Modules<'a> {
    /// Reads an archive; one that is damaged counts as empty, with a warning.
    pub fn new(bytes: &'a [u8]) -> Self {
        let archive = TarArchiveRef::new(bytes).ok();
        if archive.is_none() && !bytes.is_empty() {
            log::warn!("the module archive is damaged: no modules");
        }
        Self { archive }
    }

    /// Each file's path in the archive and contents, in the archive's order.
    pub fn iter(&self) -> impl Iterator<Item = (Name, &'a [u8])> {
        self.archive
            .iter()
            .flat_map(TarArchiveRef::entries)
            .map(|entry| (Name(entry.filename()), entry.data()))
    }

    /// The contents of the file with this path.
    pub fn find(&self, path: &str) -> Option<&'a [u8]> {
        self.iter()
            .find(|(name, _)| name.as_str() == path)
            .map(|(_, data)| data)
    }

    /// The contents of the text file with this path; `None` where there is none, or it isn't UTF-8.
    pub fn text(&self, path: &str) -> Option<&'a str> {
        core::str::from_utf8(self.find(path)?).ok()
    }
}

/// A file's path in the archive.
#[derive(Clone, Debug)]
pub struct Name(TarFormatString<NAME_BYTES>);

/// Longest path in the archive, prefix included.
const NAME_BYTES: usize = 256;

impl Name {
    /// The path; empty where it isn't UTF-8.
    pub fn as_str(&self) -> &str {
        self.0.as_str().unwrap_or_default()
    }
}

static MODULES: Once<Modules<'static>> = Once::new();
static ARCHIVE: Once<&'static [u8]> = Once::new();

/// Keeps the archive in `bytes` as the one of this boot.
pub fn init(bytes: &'static [u8]) -> &'static Modules<'static> {
    ARCHIVE.call_once(|| bytes);
    MODULES.call_once(|| Modules::new(bytes))
}

/// The archive itself; empty before [`init`].
pub fn archive() -> &'static [u8] {
    ARCHIVE.get().copied().unwrap_or_default()
}

/// The modules of this boot; none before [`init`].
pub fn modules() -> &'static Modules<'static> {
    static NONE: Modules<'static> = Modules { archive: None };
    MODULES.get().unwrap_or(&NONE)
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod tests {
    use super::*;

    /// Whatever the bytes are: what is given as a file lies within them, and is found by its path, unless another has the same.
    pub fn gives_parts_of(bytes: &[u8]) {
        let modules = Modules::new(bytes);
        let within = bytes.as_ptr_range();
        for (name, data) in modules.iter() {
            let part = data.as_ptr_range();
            assert!(data.is_empty() || within.start <= part.start && part.end <= within.end);
            assert!(modules.find(name.as_str()).is_some());
            modules.text(name.as_str());
        }
    }

    /// One ustar entry, as in POSIX.1-2017 `pax`, section "ustar Interchange Format".
    fn entry(path: &str, data: &[u8]) -> Vec<u8> {
        let mut header = vec![0; 512];
        header[..path.len()].copy_from_slice(path.as_bytes());
        header[100..107].copy_from_slice(b"0000644");
        header[108..115].copy_from_slice(b"0000000");
        header[116..123].copy_from_slice(b"0000000");
        header[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
        header[136..147].copy_from_slice(b"00000000000");
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar\x0000");
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        header.extend_from_slice(data);
        header.resize(header.len().next_multiple_of(512), 0);
        header
    }

    /// Two files.
    pub fn archive() -> Vec<u8> {
        let mut bytes = entry("cmdline", b"log=debug");
        bytes.extend(entry("guests/hello", &[7; 513]));
        bytes.resize(bytes.len() + 1024, 0);
        bytes
    }

    #[test]
    fn files_are_found_by_path() {
        let bytes = archive();
        let modules = Modules::new(&bytes);
        assert_eq!(modules.text("cmdline"), Some("log=debug"));
        assert_eq!(modules.find("guests/hello"), Some(&[7; 513][..]));
        assert_eq!(modules.find("hello"), None);
        let names: Vec<_> = modules
            .iter()
            .map(|(name, _)| name.as_str().to_owned())
            .collect();
        assert_eq!(names, ["cmdline", "guests/hello"]);
    }

    #[test]
    fn a_damaged_archive_counts_as_empty() {
        let mut bytes = archive();
        bytes[0] ^= 1;
        assert_eq!(Modules::new(&bytes).iter().count(), 0);
        assert_eq!(Modules::new(&archive()[..700]).iter().count(), 0);
        assert_eq!(Modules::new(&[]).iter().count(), 0);
    }

    #[test]
    fn no_damage_gives_more_than_there_is() {
        let bytes = archive();
        for at in 0..bytes.len() {
            for value in [0, 0xff, bytes[at] ^ 1] {
                let mut bytes = bytes.clone();
                bytes[at] = value;
                gives_parts_of(&bytes);
            }
        }
        for length in 0..bytes.len() {
            gives_parts_of(&bytes[..length]);
        }
    }
}

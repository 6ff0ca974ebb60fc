//! The module archive: a plain uncompressed tar file in the ustar format of POSIX.1-1988.
//!
//! Owner, mode and times of all entries are constants, so that the archive depends on names and data alone.

use std::collections::HashSet;

use crate::ImageError;

/// Size of a tar header and unit of all lengths in an archive, bytes.
const BLOCK: usize = 512;

/// Length of the name field. A name that fills it has no terminating NUL.
const NAME_LIMIT: usize = 100;

/// The size field has eleven octal digits.
const SIZE_LIMIT: u64 = (1 << 33) - 1;

/// A tar archive under construction; entries stay in the order in which they are added.
#[derive(Debug, Default)]
pub struct ModuleArchive {
    bytes: Vec<u8>,
    names: HashSet<String>,
}

impl ModuleArchive {
    /// An archive without entries.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a regular file.
    ///
    /// # Errors
    /// [`ImageError::ModuleName`] unless `name` has 1 to 100 bytes without a NUL, [`ImageError::DuplicateModule`] if
    /// the name is taken, [`ImageError::TooLarge`] beyond 8 GiB - 1. The archive is unchanged then.
    pub fn add(&mut self, name: &str, data: &[u8]) -> Result<(), ImageError> {
        if name.is_empty() || name.len() > NAME_LIMIT || name.contains('\0') {
            return Err(ImageError::ModuleName(name.to_owned()));
        }
        let len = data.len() as u64;
        if len > SIZE_LIMIT {
            return Err(ImageError::TooLarge {
                name: name.to_owned(),
                len,
                limit: SIZE_LIMIT,
            });
        }
        if !self.names.insert(name.to_owned()) {
            return Err(ImageError::DuplicateModule(name.to_owned()));
        }
        self.bytes.extend_from_slice(&header(name, len));
        self.bytes.extend_from_slice(data);
        self.bytes
            .resize(self.bytes.len().next_multiple_of(BLOCK), 0);
        Ok(())
    }

    /// Ends the archive with the two zero blocks and returns it.
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 2 * BLOCK, 0);
        self.bytes
    }
}

/// The ustar header of a regular file. `name` and `len` are within their limits.
fn header(name: &str, len: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
    put(0, name.as_bytes());
    put(100, b"0000644\0"); // mode
    put(108, b"0000000\0"); // uid
    put(116, b"0000000\0"); // gid
    put(124, format!("{len:011o}\0").as_bytes());
    put(136, b"00000000000\0"); // mtime
    put(148, b"        "); // the checksum counts its own field as blanks
    put(156, b"0"); // a regular file
    put(257, b"ustar\x0000");
    put(329, b"0000000\0"); // device major
    put(337, b"0000000\0"); // device minor
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tar_no_std::TarArchiveRef;

    use super::*;

    fn read_back(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
        let archive = TarArchiveRef::new(bytes).expect("a valid archive");
        archive
            .entries()
            .map(|entry| {
                (
                    entry.filename().as_str().expect("UTF-8").to_owned(),
                    entry.data().to_vec(),
                )
            })
            .collect()
    }

    #[test]
    fn entries_come_back_in_order() {
        let mut archive = ModuleArchive::new();
        archive.add("cmdline", b"log=debug").unwrap();
        archive.add("guests/hello", &[7; 1000]).unwrap();
        archive.add("guests/empty", b"").unwrap();
        archive.add("guests/block", &[9; 512]).unwrap();
        let entries = read_back(&archive.finish());
        let expected = [
            ("cmdline", b"log=debug".to_vec()),
            ("guests/hello", vec![7; 1000]),
            ("guests/empty", vec![]),
            ("guests/block", vec![9; 512]),
        ];
        assert_eq!(entries.len(), expected.len());
        for (entry, (name, data)) in entries.iter().zip(expected) {
            assert_eq!(entry.0, name);
            assert_eq!(entry.1, data);
        }
    }

    #[test]
    fn header_fields_are_where_posix_puts_them() {
        let mut archive = ModuleArchive::new();
        archive.add("x", &[1; 0o1234]).unwrap();
        let bytes = archive.finish();
        assert_eq!(&bytes[100..108], b"0000644\0");
        assert_eq!(&bytes[124..136], b"00000001234\0");
        assert_eq!(&bytes[136..148], b"00000000000\0");
        assert_eq!(&bytes[257..265], b"ustar\x0000");
        assert_eq!(bytes[156], b'0');
        // One header, two blocks of data, two blocks that end the archive.
        assert_eq!(bytes.len(), 5 * BLOCK);
        assert!(bytes[3 * BLOCK..].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn a_name_may_have_100_bytes_and_not_more() {
        let mut archive = ModuleArchive::new();
        let longest = "n".repeat(100);
        archive.add(&longest, b"data").unwrap();
        for bad in ["n".repeat(101), String::new(), "a\0b".to_owned()] {
            assert!(
                matches!(archive.add(&bad, b""), Err(ImageError::ModuleName(name)) if name == bad)
            );
        }
        assert_eq!(read_back(&archive.finish()), [(longest, b"data".to_vec())]);
    }

    #[test]
    fn a_second_entry_of_the_same_name_is_refused() {
        let mut archive = ModuleArchive::new();
        archive.add("a", b"1").unwrap();
        assert!(
            matches!(archive.add("a", b"2"), Err(ImageError::DuplicateModule(name)) if name == "a")
        );
        archive.add("b", b"3").unwrap();
        let entries = read_back(&archive.finish());
        assert_eq!(
            entries,
            [
                ("a".to_owned(), b"1".to_vec()),
                ("b".to_owned(), b"3".to_vec())
            ]
        );
    }

    #[test]
    fn an_empty_archive_is_two_zero_blocks() {
        assert_eq!(ModuleArchive::new().finish(), vec![0; 2 * BLOCK]);
    }

    proptest! {
        #[test]
        fn any_files_come_back(files in proptest::collection::btree_map("[a-z/._-]{1,100}",
            proptest::collection::vec(any::<u8>(), 0..2000), 1..8)) {
            let mut archive = ModuleArchive::new();
            for (name, data) in &files {
                archive.add(name, data).unwrap();
            }
            prop_assert_eq!(read_back(&archive.finish()), files.into_iter().collect::<Vec<_>>());
        }
    }
}

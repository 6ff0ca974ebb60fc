//! Writes the disk image that boots Plinth, and the module archive inside it.
//!
//! The image is a GPT disk with one EFI system partition (FAT32). It boots from a disk, in an emulator, and from a USB
//! stick. The partition holds three files:
//!
//! | Path                     | What                                            |
//! |--------------------------|-------------------------------------------------|
//! | `\EFI\BOOT\BOOTX64.EFI`  | the UEFI loader, where firmware looks for it    |
//! | `\plinth\kernel.elf`     | the kernel                                      |
//! | `\plinth\modules.tar`    | a [`ModuleArchive`]: command line and guests    |
//!
//! The same contents always give the same bytes: this library must never let the clock, a random number, the name of
//! the output file or an earlier image flow into what it writes.

mod archive;
mod disk;
mod fat;

use std::io;
use std::path::PathBuf;

pub use archive::ModuleArchive;
pub use disk::{Contents, write_image};

/// Why an image or an archive could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The output file could not be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file that was being written.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The name of an archive entry is empty, longer than 100 bytes, or contains a NUL byte.
    #[error("{0:?} cannot be the name of a module: a name has 1 to 100 bytes, none of them NUL")]
    ModuleName(String),
    /// An archive entry of this name exists already.
    #[error("there are two modules named {0:?}")]
    DuplicateModule(String),
    /// A file is larger than its container can hold.
    #[error("{name} is too large: {len} bytes, at most {limit} are possible")]
    TooLarge {
        /// Which file.
        name: String,
        /// Its length in bytes.
        len: u64,
        /// The largest possible length in bytes.
        limit: u64,
    },
    /// The FAT file system could not be made.
    #[error("cannot make the FAT32 file system: {0}")]
    FileSystem(#[source] io::Error),
    /// The partition table could not be made.
    #[error("cannot make the partition table: {0}")]
    PartitionTable(String),
}

//! The volume from which the loader was started, and the files on it.

use alloc::boxed::Box;
use alloc::string::String;
use core::fmt;

use uefi::proto::media::file::{
    Directory, File, FileAttribute, FileInfo, FileMode, FileSystemInfo,
};
use uefi::{CStr16, Status, boot};

use crate::pages::{OutOfMemory, Pages};

extern crate alloc;

/// Why a file could not be read. The text continues the path.
pub enum ReadError {
    /// There is no such file.
    Missing,
    /// A folder has this name.
    NotAFile,
    /// The firmware reports an error.
    Failed(Status),
    /// The file ends before the length that its folder tells: bytes read, bytes told.
    Short(usize, u64),
    /// It does not fit into memory: length in bytes.
    Memory(u64),
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => write!(f, "is missing from the boot volume"),
            Self::NotAFile => write!(f, "is not a file"),
            Self::Failed(status) => write!(f, "cannot be read ({status})"),
            Self::Short(read, told) => {
                write!(f, "is damaged: it ends after {read} of {told} bytes")
            }
            Self::Memory(len) => write!(f, "does not fit into memory: it has {} MiB", len >> 20),
        }
    }
}

/// An open volume.
pub struct Volume {
    root: Directory,
    info: Option<Box<FileSystemInfo>>,
}

impl Volume {
    /// The volume that holds the loader.
    pub fn of_loader() -> Result<Self, Status> {
        let mut system =
            boot::get_image_file_system(boot::image_handle()).map_err(|error| error.status())?;
        let mut root = system.open_volume().map_err(|error| error.status())?;
        let info = root.get_boxed_info::<FileSystemInfo>().ok();
        Ok(Self { root, info })
    }

    /// Its name; empty if the firmware does not tell.
    pub fn label(&self) -> String {
        self.info
            .as_ref()
            .map(|info| String::from(info.volume_label()))
            .unwrap_or_default()
    }

    /// Its size in bytes; 0 if the firmware does not tell.
    pub fn size(&self) -> u64 {
        self.info.as_ref().map_or(0, |info| info.volume_size())
    }

    /// Reads a whole file into pages of its own.
    pub fn read(&mut self, path: &CStr16, pages: &mut Pages) -> Result<&'static [u8], ReadError> {
        let failed = |error: uefi::Error| match error.status() {
            Status::NOT_FOUND => ReadError::Missing,
            status => ReadError::Failed(status),
        };
        let handle = self
            .root
            .open(path, FileMode::Read, FileAttribute::empty())
            .map_err(failed)?;
        let mut file = handle.into_regular_file().ok_or(ReadError::NotAFile)?;
        let info = file
            .get_boxed_info::<FileInfo>()
            .map_err(|error| ReadError::Failed(error.status()))?;
        let told = info.file_size();
        let run = pages
            .take("a file", told)
            .map_err(|OutOfMemory(_)| ReadError::Memory(told))?;
        let bytes = &mut run.leak()[..told as usize];
        // The crate splits this into reads of 1 MiB, as some firmware fails on larger ones.
        let read = file
            .read(bytes)
            .map_err(|error| ReadError::Failed(error.status()))?;
        if read < bytes.len() {
            return Err(ReadError::Short(read, told));
        }
        Ok(bytes)
    }
}

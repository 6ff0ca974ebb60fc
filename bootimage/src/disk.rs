//! The disk around the file system: protective MBR, GPT and its backup, one EFI system partition.
//!
//! The `gpt` crate gives disks and partitions random GUIDs where it is not told otherwise. Here both are derived from
//! the contents: two different images can be attached to one machine, and the same contents give the same image.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Cursor, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use gpt::disk::LogicalBlockSize;
use gpt::mbr::ProtectiveMBR;
use gpt::partition::Partition;
use gpt::{GptConfig, partition_types};
use uuid::Uuid;

use crate::ImageError;
use crate::fat::{self, SECTOR};

/// First sector of the partition: 1 MiB, a multiple of every erase block and physical sector in use.
const FIRST_SECTOR: u64 = 2048;

/// Sectors behind the partition: 128 partition entries of 128 bytes, and the backup header.
const BACKUP_SECTORS: u64 = 33;

/// The size of a disk is a whole number of cylinders of 16 heads and 63 sectors: what computes the size of a disk from
/// its geometry finds the backup header in the last sector.
const CYLINDER: u64 = 16 * 63;

/// What an image holds.
#[derive(Clone, Copy, Debug)]
pub struct Contents<'a> {
    /// The UEFI loader, a PE32+ file.
    pub loader: &'a [u8],
    /// The kernel, an ELF64 file with its symbol table.
    pub kernel: &'a [u8],
    /// What [`ModuleArchive::finish`](crate::ModuleArchive::finish) returned.
    pub modules: &'a [u8],
}

/// Writes a bootable disk image to `path` and returns its size in bytes.
///
/// The file appears under its name when it is complete, replacing what was there; a reader never sees half an image.
/// Blocks of zeros are left out where the file system can store sparse files.
///
/// # Errors
/// [`ImageError::Write`] if the file cannot be written, [`ImageError::TooLarge`] if one of the contents has 4 GiB or
/// more. What was at `path` is unchanged then.
pub fn write_image(path: &Path, contents: &Contents<'_>) -> Result<u64, ImageError> {
    let image = build(contents)?;
    let temporary = temporary_name(path);
    let result = write_sparse(&temporary, &image).and_then(|()| fs::rename(&temporary, path));
    if let Err(source) = result {
        // The first error is the one to report; the temporary file may not even exist.
        let _ = fs::remove_file(&temporary);
        return Err(ImageError::Write {
            path: path.to_owned(),
            source,
        });
    }
    Ok(image.len() as u64)
}

/// Makes the image in memory.
fn build(contents: &Contents<'_>) -> Result<Vec<u8>, ImageError> {
    let files = [
        fat::File {
            folders: &["EFI", "BOOT"],
            name: "BOOTX64.EFI",
            data: contents.loader,
        },
        fat::File {
            folders: &["plinth"],
            name: "kernel.elf",
            data: contents.kernel,
        },
        fat::File {
            folders: &["plinth"],
            name: "modules.tar",
            data: contents.modules,
        },
    ];
    let geometry = fat::geometry(&files)?;
    let sectors = (FIRST_SECTOR + geometry.sectors + BACKUP_SECTORS).next_multiple_of(CYLINDER);
    let mut image = vec![0; (sectors * SECTOR) as usize];

    let identity = identity(contents);
    let volume = FIRST_SECTOR..FIRST_SECTOR + geometry.sectors;
    write_partition_table(&mut image, volume.start, volume.end - 1, identity)
        .map_err(|error| ImageError::PartitionTable(error.to_string()))?;
    let bytes = (volume.start * SECTOR) as usize..(volume.end * SECTOR) as usize;
    fat::make(
        &mut image[bytes],
        geometry.cluster,
        FIRST_SECTOR as u32,
        identity as u32,
        &files,
    )?;
    Ok(image)
}

fn write_partition_table(
    image: &mut [u8],
    first_lba: u64,
    last_lba: u64,
    identity: u128,
) -> Result<(), gpt::GptError> {
    let sectors = image.len() as u64 / SECTOR;
    let mut device = Cursor::new(image);
    // UEFI 5.2.3: the protective partition covers the disk without the MBR, or as much of it as the field can say.
    let protected = u32::try_from(sectors - 1).unwrap_or(u32::MAX);
    ProtectiveMBR::with_lb_size(protected)
        .overwrite_lba0(&mut device)
        .map_err(io::Error::other)?;

    let mut disk = GptConfig::new()
        .writable(true)
        .logical_block_size(LogicalBlockSize::Lb512)
        .create_from_device(device, Some(guid(identity)))?;
    let partition = Partition {
        part_type_guid: partition_types::EFI,
        part_guid: guid(identity ^ 1),
        first_lba,
        last_lba,
        flags: 0,
        name: "EFI system partition".to_owned(),
    };
    disk.update_partitions(BTreeMap::from([(1, partition)]))?;
    disk.write()?;
    Ok(())
}

/// A number that differs with the contents: FNV-1a with 128 bits over the three files and their lengths.
fn identity(contents: &Contents<'_>) -> u128 {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = (1 << 88) + 0x13b;
    let files = [contents.loader, contents.kernel, contents.modules];
    let lengths = files.map(|file| (file.len() as u64).to_le_bytes());
    let bytes = files
        .iter()
        .copied()
        .chain(lengths.iter().map(<[u8; 8]>::as_slice))
        .flatten();
    bytes.fold(OFFSET, |hash, &byte| {
        (hash ^ u128::from(byte)).wrapping_mul(PRIME)
    })
}

/// A GUID of version 8 (RFC 9562: made by the application's own rule) from a number.
fn guid(number: u128) -> Uuid {
    uuid::Builder::from_custom_bytes(number.to_be_bytes()).into_uuid()
}

/// A name beside `path` that no other writer in this or another process uses.
fn temporary_name(path: &Path) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(
        ".{}-{}.tmp",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    ));
    path.with_file_name(name)
}

fn write_sparse(path: &Path, bytes: &[u8]) -> io::Result<()> {
    const CHUNK: usize = 64 * 1024;
    let mut file = File::create(path)?;
    file.set_len(bytes.len() as u64)?;
    for (index, chunk) in bytes.chunks(CHUNK).enumerate() {
        if chunk.iter().any(|&byte| byte != 0) {
            file.seek(SeekFrom::Start((index * CHUNK) as u64))?;
            file.write_all(chunk)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;

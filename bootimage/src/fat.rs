//! The FAT32 file system of the EFI system partition.
//!
//! What the `fatfs` crate would take from its surroundings is fixed: times by a time provider, the volume id by the
//! caller. The crate's `chrono` feature is off. The file system is made in zeroed memory, so no old bytes survive in
//! what formatting leaves alone.

use std::io::{self, Cursor, Write};

use fatfs::{
    Date, DateTime, FatType, FileSystem, FormatVolumeOptions, FsOptions, Time, TimeProvider,
};

use crate::ImageError;

/// Bytes in a sector.
pub(crate) const SECTOR: u64 = 512;

/// FAT32 begins at 65,525 clusters; with fewer, readers take the file system for FAT16. Microsoft's specification
/// advises to keep 16 away from the border.
const MIN_CLUSTERS: u64 = 65_525 + 16;

/// Above this number of clusters the next larger cluster is taken: a table of a megabyte is long enough for firmware
/// that reads all of it.
const MAX_CLUSTERS: u64 = 1 << 18;

/// Clusters beyond those that the files fill: for directories, and so that the volume is not entirely full.
const SPARE_CLUSTERS: u64 = 256;

/// The largest file that FAT knows.
const FILE_LIMIT: u64 = u32::MAX as u64;

/// Sectors before the first allocation table, as `fatfs` formats.
const RESERVED_SECTORS: u64 = 8;

/// Offset of BPB_HiddSec in a boot sector.
const HIDDEN_SECTORS_AT: usize = 0x1c;

/// Sector of the boot sector's copy, as `fatfs` formats.
const BACKUP_BOOT_SECTOR: usize = 6;

/// A file to be stored: directories from the root, name, contents.
pub(crate) struct File<'a> {
    /// The directories that lead to it, outermost first.
    pub(crate) folders: &'a [&'a str],
    /// Its name in the last of them.
    pub(crate) name: &'a str,
    /// Its contents.
    pub(crate) data: &'a [u8],
}

/// Size and cluster size of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Size of the volume in sectors.
    pub(crate) sectors: u64,
    /// Size of a cluster in bytes.
    pub(crate) cluster: u32,
}

/// The smallest volume that is FAT32 and holds `files` with some room to spare.
///
/// # Errors
/// [`ImageError::TooLarge`] if a file has 4 GiB or more.
pub(crate) fn geometry(files: &[File<'_>]) -> Result<Geometry, ImageError> {
    for file in files {
        let len = file.data.len() as u64;
        if len > FILE_LIMIT {
            return Err(ImageError::TooLarge {
                name: file.name.to_owned(),
                len,
                limit: FILE_LIMIT,
            });
        }
    }
    let mut cluster = SECTOR;
    loop {
        let filled: u64 = files
            .iter()
            .map(|file| (file.data.len() as u64).div_ceil(cluster))
            .sum();
        let clusters = (filled + SPARE_CLUSTERS).max(MIN_CLUSTERS);
        if clusters <= MAX_CLUSTERS || cluster == 32 * 1024 {
            // Two tables of four bytes a cluster; the first two entries stand for no cluster.
            let table = ((clusters + 2) * 4).div_ceil(SECTOR);
            // The formatter may round its tables up by a sector or two; it must not take that from the clusters.
            let slack = 8 * (cluster / SECTOR);
            let sectors = RESERVED_SECTORS + 2 * table + clusters * (cluster / SECTOR) + slack;
            return Ok(Geometry {
                sectors,
                cluster: cluster as u32,
            });
        }
        cluster *= 2;
    }
}

/// Formats `volume`, which is zeroed memory of a whole number of sectors, and stores `files` in it.
///
/// `first_sector` is where the volume begins on its disk.
pub(crate) fn make(
    volume: &mut [u8],
    cluster: u32,
    first_sector: u32,
    volume_id: u32,
    files: &[File<'_>],
) -> Result<(), ImageError> {
    fill(volume, cluster, volume_id, files).map_err(ImageError::FileSystem)?;
    for sector in [0, BACKUP_BOOT_SECTOR] {
        let at = sector * SECTOR as usize + HIDDEN_SECTORS_AT;
        volume[at..at + 4].copy_from_slice(&first_sector.to_le_bytes());
    }
    Ok(())
}

fn fill(volume: &mut [u8], cluster: u32, volume_id: u32, files: &[File<'_>]) -> io::Result<()> {
    let options = FormatVolumeOptions::new()
        .fat_type(FatType::Fat32)
        .bytes_per_cluster(cluster)
        .volume_id(volume_id)
        .volume_label(*b"PLINTH     ");
    fatfs::format_volume(Cursor::new(&mut *volume), options)?;
    let system = FileSystem::new(
        Cursor::new(&mut *volume),
        FsOptions::new().time_provider(&NO_TIME),
    )?;
    for file in files {
        let mut folder = system.root_dir();
        for name in file.folders {
            folder = folder.create_dir(name)?; // opens the one that exists
        }
        let mut output = folder.create_file(file.name)?;
        output.write_all(file.data)?;
        output.flush()?;
    }
    system.unmount()
}

/// Gives every file the first moment that FAT can express.
#[derive(Debug)]
struct NoTime;

static NO_TIME: NoTime = NoTime;

impl TimeProvider for NoTime {
    fn get_current_date(&self) -> Date {
        Date {
            year: 1980,
            month: 1,
            day: 1,
        }
    }

    fn get_current_date_time(&self) -> DateTime {
        DateTime {
            date: self.get_current_date(),
            time: Time {
                hour: 0,
                min: 0,
                sec: 0,
                millis: 0,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(data: &[u8]) -> File<'_> {
        File {
            folders: &[],
            name: "file",
            data,
        }
    }

    #[test]
    fn a_small_volume_has_512_byte_clusters() {
        let geometry = geometry(&[file(&[1; 100])]).unwrap();
        assert_eq!(geometry.cluster, 512);
        assert!(geometry.sectors * SECTOR < 34 << 20, "{geometry:?}");
    }

    #[test]
    fn volumes_of_all_sizes_are_fat32_and_hold_their_file() {
        for len in [0, 1, 30 << 20, 40 << 20, 127 << 20, 129 << 20, 300 << 20] {
            let data = vec![0; len];
            let geometry = geometry(&[file(&data)]).unwrap();
            let mut volume = vec![0; (geometry.sectors * SECTOR) as usize];
            // An empty file: what counts is whether the room is there.
            make(&mut volume, geometry.cluster, 2048, 1, &[file(&[])]).unwrap();
            let system = FileSystem::new(Cursor::new(&mut volume[..]), FsOptions::new()).unwrap();
            assert_eq!(system.fat_type(), FatType::Fat32, "{len}");
            let stats = system.stats().unwrap();
            assert!(
                stats.total_clusters() as u64 >= MIN_CLUSTERS,
                "{len}: {geometry:?}"
            );
            let room = stats.free_clusters() as u64 * u64::from(geometry.cluster);
            assert!(
                room >= len as u64,
                "{len}: {geometry:?} has room for {room}"
            );
        }
    }

    #[test]
    fn boot_sectors_say_where_the_volume_begins() {
        let geometry = geometry(&[]).unwrap();
        let mut volume = vec![0; (geometry.sectors * SECTOR) as usize];
        make(&mut volume, geometry.cluster, 2048, 0x1234_5678, &[]).unwrap();
        assert_eq!(volume[0x1c..0x20], 2048u32.to_le_bytes());
        // The volume id and the signature, in the boot sector and its copy.
        assert_eq!(volume[0x43..0x47], 0x1234_5678u32.to_le_bytes());
        assert_eq!(volume[510..512], [0x55, 0xaa]);
        assert_eq!(volume[..512], volume[6 * 512..7 * 512]);
    }
}

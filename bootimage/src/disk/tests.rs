//! Tests of the whole image, read back through other code than wrote it.

use std::io::Read;

use fatfs::{FileSystem, FsOptions};
use gpt::header::Header;

use super::*;
use crate::ModuleArchive;

/// A folder that is removed again.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("plinth-bootimage-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|index| (index / 512) as u8 ^ (index as u8).wrapping_mul(seed))
        .collect()
}

/// CRC-32 of IEEE 802.3, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Reads the image as firmware would: GPT first, then FAT.
fn read_files(image: &[u8], paths: &[&str]) -> Vec<Vec<u8>> {
    let disk = GptConfig::new()
        .only_valid_headers(true)
        .open_from_device(Cursor::new(image.to_vec()))
        .unwrap();
    assert_eq!(disk.partitions().len(), 1);
    let partition = &disk.partitions()[&1];
    assert_eq!(partition.part_type_guid, partition_types::EFI);
    let range =
        (partition.first_lba * SECTOR) as usize..((partition.last_lba + 1) * SECTOR) as usize;
    let mut volume = image[range].to_vec();
    let system = FileSystem::new(Cursor::new(&mut volume[..]), FsOptions::new()).unwrap();
    assert_eq!(system.fat_type(), fatfs::FatType::Fat32);
    assert!(!system.read_status_flags().unwrap().dirty());
    let read = |path: &&str| {
        let mut bytes = Vec::new();
        system
            .root_dir()
            .open_file(path)
            .unwrap()
            .read_to_end(&mut bytes)
            .unwrap();
        bytes
    };
    paths.iter().map(read).collect()
}

const PATHS: [&str; 3] = [
    "EFI/BOOT/BOOTX64.EFI",
    "plinth/kernel.elf",
    "plinth/modules.tar",
];

#[test]
fn two_writes_give_the_same_bytes() {
    let folder = Folder::new("reproducible");
    let (loader, kernel) = (pattern(70_000, 3), pattern(900_001, 5));
    let contents = Contents {
        loader: &loader,
        kernel: &kernel,
        modules: &[],
    };
    let (first, second) = (folder.0.join("first.img"), folder.0.join("second.img"));
    let len = write_image(&first, &contents).unwrap();
    // FAT times count in steps of two seconds: a clock in the image would show.
    std::thread::sleep(std::time::Duration::from_millis(2100));
    write_image(&second, &contents).unwrap();
    let bytes = fs::read(&first).unwrap();
    assert_eq!(bytes.len() as u64, len);
    assert!(bytes == fs::read(&second).unwrap(), "the images differ");
}

#[test]
fn files_come_back() {
    let mut archive = ModuleArchive::new();
    archive.add("cmdline", b"log=info").unwrap();
    archive.add("guests/hello", &pattern(5000, 11)).unwrap();
    let (loader, kernel, modules) = (pattern(100_000, 3), pattern(2_000_001, 5), archive.finish());
    let image = build(&Contents {
        loader: &loader,
        kernel: &kernel,
        modules: &modules,
    })
    .unwrap();
    assert!(read_files(&image, &PATHS) == [loader, kernel, modules]);
    assert!(image.len() < 36 << 20, "{} bytes", image.len());
}

#[test]
fn empty_files_are_possible() {
    let image = build(&Contents {
        loader: b"MZ",
        kernel: b"ELF",
        modules: b"",
    })
    .unwrap();
    assert_eq!(
        read_files(&image, &PATHS),
        [b"MZ".to_vec(), b"ELF".to_vec(), vec![]]
    );
}

#[test]
fn large_modules_make_a_larger_image() {
    let modules = pattern(150 << 20, 7);
    let image = build(&Contents {
        loader: b"MZ",
        kernel: b"ELF",
        modules: &modules,
    })
    .unwrap();
    assert!(read_files(&image, &PATHS[2..]) == [modules]);
}

#[test]
fn partition_tables_have_valid_checksums() {
    let image = build(&Contents {
        loader: b"MZ",
        kernel: b"ELF",
        modules: b"",
    })
    .unwrap();
    let last = image.len() as u64 / SECTOR - 1;
    for (own, other) in [(1, last), (last, 1)] {
        let header = &image[(own * SECTOR) as usize..][..92];
        assert_eq!(&header[..8], b"EFI PART");
        assert_eq!(u32_at(header, 8), 0x0001_0000, "revision 1.0");
        assert_eq!(u32_at(header, 12), 92);
        let mut zeroed = header.to_vec();
        zeroed[16..20].fill(0);
        assert_eq!(u32_at(header, 16), crc32(&zeroed));
        assert_eq!((u64_at(header, 24), u64_at(header, 32)), (own, other));
        let (first_usable, last_usable) = (u64_at(header, 40), u64_at(header, 48));
        assert_eq!((first_usable, last_usable), (34, last - BACKUP_SECTORS));
        let table = u64_at(header, 72);
        assert_eq!(table, if own == 1 { 2 } else { last - 32 });
        let table = &image[(table * SECTOR) as usize..][..128 * 128];
        assert_eq!((u32_at(header, 80), u32_at(header, 84)), (128, 128));
        assert_eq!(u32_at(header, 88), crc32(table));
        // One entry: the type of an EFI system partition, aligned to 1 MiB, within what may be used.
        assert_eq!(table[..4], [0x28, 0x73, 0x2a, 0xc1]);
        assert_eq!(u64_at(table, 32), (1 << 20) / SECTOR);
        assert!(u64_at(table, 40) <= last_usable);
        assert!(table[128..].iter().all(|&byte| byte == 0));
    }
}

#[test]
fn the_protective_mbr_covers_the_disk() {
    let image = build(&Contents {
        loader: b"MZ",
        kernel: b"ELF",
        modules: b"",
    })
    .unwrap();
    let sectors = image.len() as u64 / SECTOR;
    let record = &image[446..462];
    assert_eq!(record[..5], [0, 0, 2, 0, 0xee]);
    assert_eq!(
        (u32_at(record, 8), u32_at(record, 12)),
        (1, (sectors - 1) as u32)
    );
    assert!(image[462..510].iter().all(|&byte| byte == 0));
    assert_eq!(image[510..512], [0x55, 0xaa]);
    assert_eq!(sectors % CYLINDER, 0);
}

#[test]
fn identifiers_follow_the_contents() {
    let headers = |contents: &Contents<'_>| -> (Header, Uuid) {
        let image = build(contents).unwrap();
        let disk = GptConfig::new()
            .open_from_device(Cursor::new(image))
            .unwrap();
        (disk.header().clone(), disk.partitions()[&1].part_guid)
    };
    let one = headers(&Contents {
        loader: b"MZ",
        kernel: b"ELF",
        modules: b"",
    });
    // The same bytes, cut in another place.
    let other = headers(&Contents {
        loader: b"MZE",
        kernel: b"LF",
        modules: b"",
    });
    assert_ne!(one.0.disk_guid, other.0.disk_guid);
    assert_ne!(one.1, other.1);
    assert_ne!(one.0.disk_guid, one.1);
}

#[test]
fn a_failed_write_leaves_nothing_behind() {
    let folder = Folder::new("failed");
    // A folder of that name is in the way of the last step, the renaming.
    let path = folder.0.join("disk.img");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("file"), b"").unwrap();
    let result = write_image(
        &path,
        &Contents {
            loader: b"MZ",
            kernel: b"ELF",
            modules: b"",
        },
    );
    assert!(matches!(result, Err(ImageError::Write { .. })));
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1);
}

#[cfg(unix)]
#[test]
fn zeros_take_no_room_on_disk() {
    use std::os::unix::fs::MetadataExt;
    let folder = Folder::new("sparse");
    let path = folder.0.join("disk.img");
    let len = write_image(
        &path,
        &Contents {
            loader: b"MZ",
            kernel: b"ELF",
            modules: b"",
        },
    )
    .unwrap();
    // A file system without sparse files would show the whole length; none in use on Linux is that old.
    assert!(fs::metadata(&path).unwrap().blocks() * 512 < len / 4);
}

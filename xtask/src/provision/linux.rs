//! Linux to run as a domain: Debian's kernels, unmodified, and the static busybox for their first process.
//!
//! The packages are fetched and never installed (see [`super::apt`]), and of each only the one file is kept that is needed: a
//! kernel's package is 70 MB, nearly all of it drivers. What is in the cache directory stays as it is, so a checkout boots the
//! same kernel from day to day; removing the directory `debian-12` there fetches today's.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::apt::{self, Apt, AptError};
use super::{Permission, Workshop, cache_directory};
use crate::guard::Child;
use crate::progress::Step;

/// The suite: Debian 12. Its kernels change with its point releases only.
const SUITE: &str = "bookworm";
/// The directory in the cache.
const DIRECTORY: &str = "debian-12";
/// The file that says which version was fetched.
const VERSION: &str = "version";

/// A package that brings a file for Linux as a domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Package {
    /// The kernel for virtual machines: it unpacks itself and boots faster than the other, and has fewer drivers.
    CloudKernel,
    /// The kernel for any computer.
    Kernel,
    /// The commands, in one static executable.
    Busybox,
}

impl Package {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::CloudKernel, Self::Kernel, Self::Busybox];

    /// What Debian calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CloudKernel => "linux-image-cloud-amd64",
            Self::Kernel => "linux-image-amd64",
            Self::Busybox => "busybox-static",
        }
    }

    /// What it is for.
    pub const fn purpose(self) -> &'static str {
        match self {
            Self::CloudKernel => "the machine linux",
            Self::Kernel => "the machine linux-debian",
            Self::Busybox => "the initramfs of both",
        }
    }

    /// How the path of the file in the package begins; a kernel's version follows.
    const fn path(self) -> &'static str {
        match self {
            Self::CloudKernel | Self::Kernel => "boot/vmlinuz-",
            Self::Busybox => "bin/busybox",
        }
    }

    /// What the cache calls the file.
    const fn file(self) -> &'static str {
        match self {
            Self::CloudKernel | Self::Kernel => "vmlinuz",
            Self::Busybox => "busybox",
        }
    }

    /// Where the cache has it.
    fn directory(self, cache: &Path) -> PathBuf {
        cache.join(DIRECTORY).join(self.name())
    }

    /// The file, if it is there. Its directory was moved to its place as a whole, so one that is there is complete.
    pub fn find(self) -> Option<PathBuf> {
        self.find_in(&cache_directory()?)
    }

    fn find_in(self, cache: &Path) -> Option<PathBuf> {
        Some(self.directory(cache).join(self.file())).filter(|file| file.is_file())
    }

    /// The version of what is there, such as `linux-image-6.1.0-50-amd64 6.1.176-1`.
    pub fn version(self) -> Option<String> {
        let text = fs::read_to_string(self.directory(&cache_directory()?).join(VERSION)).ok()?;
        Some(text.trim().to_owned())
    }
}

/// Why there is no Linux.
#[derive(Debug, thiserror::Error)]
pub enum LinuxError {
    /// There is no place to keep it.
    #[error("neither XDG_CACHE_HOME nor HOME names a directory\n  try: set HOME")]
    NoCache,
    /// It is missing and must not be fetched.
    #[error(
        "the cache lacks Debian's {0}, and --no-install forbids to fetch it\n  \
         try: without --no-install, or with a kernel of your own (--kernel, --initrd), or without Linux (--linux none)"
    )]
    Refused(String),
    /// A package cannot be had.
    #[error(
        "{0}\n  or: give a kernel of your own (--kernel, --initrd), or leave Linux out (--linux none)"
    )]
    Apt(#[from] AptError),
    /// The package of the newest kernel depends on no kernel.
    #[error(
        "the package {0} names no kernel\n  try: run this again with another mirror, or with --kernel FILE"
    )]
    NoKernel(&'static str),
    /// The file is not in the package.
    #[error("{0} holds no {1}\n  try: run this again, or give the file by --kernel or --initrd")]
    NotThere(PathBuf, &'static str),
    /// The package cannot be unpacked.
    #[error("cannot unpack {0}: {1}\n  try: look at the disk's free space, then run this again")]
    Unpack(PathBuf, io::Error),
    /// A file could not be written or read.
    #[error("{0}: {1}\n  try: look at the disk's free space and the directory's owner")]
    File(PathBuf, io::Error),
}

/// Attaches a path to an I/O error.
fn at(path: &Path) -> impl FnOnce(io::Error) -> LinuxError {
    let path = path.to_path_buf();
    move |error| LinuxError::File(path, error)
}

/// Fetches those of `packages` that the cache lacks.
pub fn provide(packages: &[Package], permission: Permission) -> Result<(), LinuxError> {
    let cache = cache_directory().ok_or(LinuxError::NoCache)?;
    if missing(packages, &cache).is_empty() {
        return Ok(());
    }
    if permission == Permission::Refused {
        let names: Vec<_> = missing(packages, &cache)
            .iter()
            .map(|package| package.name())
            .collect();
        return Err(LinuxError::Refused(names.join(", ")));
    }
    let workshop = Workshop::enter(&cache).map_err(at(&cache))?;
    // Another process may have fetched them while this one waited.
    let missing = missing(packages, &cache);
    if missing.is_empty() {
        return Ok(());
    }
    let bench = workshop.bench().map_err(at(&cache))?;
    let apt = Apt::open(bench.path(), SUITE)?;
    for package in missing {
        fetch(&apt, package, bench.path(), &cache)?;
    }
    Ok(())
}

fn missing(packages: &[Package], cache: &Path) -> Vec<Package> {
    packages
        .iter()
        .copied()
        .filter(|package| package.find_in(cache).is_none())
        .collect()
}

/// Fetches a package and puts its file into the cache.
fn fetch(apt: &Apt, package: Package, work: &Path, cache: &Path) -> Result<(), LinuxError> {
    let listed = apt.show(package.name())?;
    // The packages with a kernel's general name are empty, and depend on the newest.
    let actual = if package == Package::Busybox {
        package.name()
    } else {
        let depends = apt::field(&listed, "Depends").unwrap_or_default();
        kernel_among(depends).ok_or(LinuxError::NoKernel(package.name()))?
    };
    let version = apt::field(&listed, "Version").unwrap_or("of unknown version");
    let deb = apt.download(&format!("Debian's {actual}"), actual, work)?;

    let place = package.directory(cache);
    let made = work.join(package.name());
    fs::create_dir_all(&made).map_err(at(&made))?;
    let step = Step::start(format!(
        "unpacking {} into {}",
        package.file(),
        place.display()
    ));
    unpack(&deb, package, &made.join(package.file()))?;
    let note = made.join(VERSION);
    fs::write(&note, format!("{actual} {version}\n")).map_err(at(&note))?;
    // The package has served; the next one may need its space.
    let _ = fs::remove_file(&deb);
    if let Some(parent) = place.parent() {
        fs::create_dir_all(parent).map_err(at(parent))?;
    }
    // What stands here is a remnant: the file was not in it.
    let _ = fs::remove_dir_all(&place);
    fs::rename(&made, &place).map_err(at(&place))?;
    step.done("unpacked");
    Ok(())
}

/// The package of a kernel among dependencies such as `linux-image-6.1.0-50-amd64 (= 6.1.176-1), other`.
fn kernel_among(depends: &str) -> Option<&str> {
    depends
        .split([',', '|'])
        .filter_map(|dependency| dependency.split_whitespace().next())
        .find(|name| name.starts_with("linux-image-"))
}

/// Takes one file out of a package. The rest is not even unpacked: `dpkg-deb` is ended as soon as the file has come.
fn unpack(deb: &Path, package: Package, to: &Path) -> Result<(), LinuxError> {
    let failed = |error| LinuxError::Unpack(deb.to_path_buf(), error);
    let mut command = Command::new("dpkg-deb");
    command.arg("--fsys-tarfile").arg(deb);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        // It complains when it is ended early.
        .stderr(Stdio::null());
    let mut child = Child::start(&mut command).map_err(failed)?;
    let stdout = child.pipes().stdout.take();
    let found = match stdout {
        Some(stdout) => extract(stdout, package.path(), to).map_err(failed)?,
        None => false,
    };
    child.kill();
    if found {
        Ok(())
    } else {
        Err(LinuxError::NotThere(deb.to_path_buf(), package.path()))
    }
}

/// Writes the first regular file of a tar archive whose path begins with `path` to a file; whether there is one.
fn extract(archive: impl Read, path: &str, to: &Path) -> io::Result<bool> {
    for entry in tar::Archive::new(archive).entries()? {
        let mut entry = entry?;
        let name = entry.path_bytes().into_owned();
        let name = name.strip_prefix(b"./").unwrap_or(&name);
        if entry.header().entry_type().is_file() && name.starts_with(path.as_bytes()) {
            let size = entry.size();
            let copied = io::copy(&mut entry, &mut File::create(to)?)?;
            // An archive that breaks off reads as a short file.
            return if copied == size {
                Ok(true)
            } else {
                Err(io::ErrorKind::UnexpectedEof.into())
            };
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use plinth_bootimage::ModuleArchive;

    #[test]
    fn the_kernel_is_what_the_general_package_depends_on() {
        assert_eq!(
            kernel_among("linux-image-6.1.0-50-cloud-amd64 (= 6.1.176-1)"),
            Some("linux-image-6.1.0-50-cloud-amd64")
        );
        assert_eq!(
            kernel_among("kmod, linux-image-1-amd64 | linux-image-2-amd64"),
            Some("linux-image-1-amd64")
        );
        assert_eq!(kernel_among("linux-base (>= 4.3)"), None);
        assert_eq!(kernel_among(""), None);
    }

    #[test]
    fn one_file_is_taken_out_of_an_archive() {
        let directory = tempfile::tempdir().unwrap();
        let to = directory.path().join("out");
        let mut archive = ModuleArchive::new();
        archive.add("./boot/config-1", b"config").unwrap();
        archive.add("./boot/vmlinuz-1", b"kernel").unwrap();
        archive.add("./boot/vmlinuz-2", b"another").unwrap();
        let archive = archive.finish();
        assert!(extract(&archive[..], Package::Kernel.path(), &to).unwrap());
        assert_eq!(fs::read(&to).unwrap(), b"kernel");
        assert!(!extract(&archive[..], Package::Busybox.path(), &to).unwrap());
        // Cut in the middle of the kernel.
        let cut = &archive[..3 * 512 + 3];
        assert!(extract(cut, Package::Kernel.path(), &to).is_err());
    }

    #[test]
    fn what_is_in_the_cache_is_not_missing() {
        let cache = tempfile::tempdir().unwrap();
        assert_eq!(missing(&Package::ALL, cache.path()), Package::ALL);
        // A directory alone is a remnant.
        let place = Package::Kernel.directory(cache.path());
        fs::create_dir_all(&place).unwrap();
        assert_eq!(missing(&[Package::Kernel], cache.path()), [Package::Kernel]);
        fs::write(place.join("vmlinuz"), "").unwrap();
        assert_eq!(
            missing(&Package::ALL, cache.path()),
            [Package::CloudKernel, Package::Busybox]
        );
    }

    #[test]
    fn errors_tell_how_to_go_on_without() {
        for error in [
            LinuxError::Refused("busybox-static".into()),
            AptError::NoMirror.into(),
        ] {
            let text = error.to_string();
            assert!(
                text.contains("try: ") && text.contains("--linux none"),
                "{text}"
            );
        }
    }
}

//! Brings what is missing: compiler targets, emulator packages, and Linux to run as a domain.
//!
//! Everything is said before it is done and done once; it can be interrupted and run again. With
//! [`Permission::Refused`] nothing is changed, only told. No address of a server stands here: rustup and apt know theirs.

pub mod apt;
pub mod linux;
pub mod packages;
pub mod rust_src;
pub mod targets;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::guard::PrivateDirectory;

/// Whether anything may be installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permission {
    /// Yes.
    Granted,
    /// No (`--no-install`).
    Refused,
}

/// Where a program is, looked up on PATH.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    // Debian keeps some programs where an ordinary user's PATH does not look.
    let extra = ["/usr/sbin", "/usr/local/bin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(extra)
        .map(|directory| directory.join(name))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata()
        .is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

/// The user's cache directory for Plinth.
pub fn cache_directory() -> Option<PathBuf> {
    let absolute = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let base =
        absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))?;
    Some(base.join("plinth"))
}

/// The cache directory, in which no other process makes anything while this value lives.
#[derive(Debug)]
pub struct Workshop {
    cache: PathBuf,
    _lock: File,
}

impl Workshop {
    /// Makes the directory if need be, and waits until nobody else works there. What was missing before may be there after it.
    pub fn enter(cache: &Path) -> io::Result<Self> {
        fs::create_dir_all(cache)?;
        let lock = File::create(cache.join("lock"))?;
        lock.lock()?;
        Ok(Self {
            cache: cache.to_path_buf(),
            _lock: lock,
        })
    }

    /// A private directory in which something is made that is then moved to its place in the cache, complete or not at all.
    pub fn bench(&self) -> io::Result<PrivateDirectory> {
        PrivateDirectory::new(&self.cache.join("work"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_works_in_the_workshop_at_a_time() {
        let cache = tempfile::tempdir().unwrap();
        let place = cache.path().join("new");
        let workshop = Workshop::enter(&place).unwrap();
        let other = File::open(place.join("lock")).unwrap();
        assert!(other.try_lock().is_err(), "two at a time");
        let bench = workshop.bench().unwrap();
        assert!(bench.path().starts_with(&place) && bench.path().is_dir());
        drop(workshop);
        assert!(other.try_lock().is_ok(), "the lock outlives the workshop");
    }

    #[test]
    fn programs_are_found_by_name() {
        assert!(find_program("sh").is_some());
        assert!(find_program("no-such-program-anywhere").is_none());
    }
}

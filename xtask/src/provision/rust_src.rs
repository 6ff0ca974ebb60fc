//! Builds `core`, `alloc` and `compiler_builtins` for the bare-metal targets from Debian's package `rust-src` of exactly
//! the pinned version, for machines that rustup's servers do not serve.
//!
//! The package is fetched without installing it (see [`apt`]). The result goes into the user's cache directory, complete or not
//! at all.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Workshop;
use super::apt::{self, Apt, AptError};
use super::targets::libraries;
use crate::progress::{self, CommandError, Step};
use crate::workspace::cargo;

/// The suite whose `rust-src` follows Rust's releases.
const SUITE: &str = "trixie-backports";

/// Why the libraries could not be built from source.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// There is no place to keep them.
    #[error("neither XDG_CACHE_HOME nor HOME names a directory\n  try: set HOME")]
    NoCache,
    /// The package cannot be had.
    #[error("{0}\n  or: rustup target add, from a network that reaches rustup's servers")]
    Apt(#[from] AptError),
    /// The package holds no source.
    #[error(
        "Debian's rust-src {0} is not laid out as expected\n  try: rustup target add, from a network that reaches rustup's servers"
    )]
    NoSource(String),
    /// The build left no such file.
    #[error(
        "building {0} left no library of `{1}`\n  try: remove the directory `plinth` in your cache, run again"
    )]
    NoLibrary(String, &'static str),
    /// A command failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// A file could not be written or read.
    #[error("{0}: {1}\n  try: look at the disk's free space and the directory's owner")]
    File(PathBuf, io::Error),
}

/// Attaches a path to an I/O error.
fn at(path: &Path) -> impl FnOnce(io::Error) -> SourceError {
    let path = path.to_path_buf();
    move |error| SourceError::File(path, error)
}

/// Makes a sysroot for `targets` at `sysroot`, unless `complete` says that another process has made it meanwhile.
pub fn make_sysroot(
    sysroot: &Path,
    version: &str,
    targets: &[&str],
    complete: impl Fn(&Path) -> bool,
) -> Result<(), SourceError> {
    let cache = sysroot.parent().ok_or(SourceError::NoCache)?;
    let workshop = Workshop::enter(cache).map_err(at(cache))?;
    if complete(sysroot) {
        return Ok(());
    }
    let work = workshop.bench().map_err(at(cache))?;
    let source = fetch(work.path(), version, sysroot)?;
    let made = work.path().join("sysroot");
    for target in targets {
        build(work.path(), &source, target, &made)?;
    }
    // What stands here is a remnant: it was not complete.
    let _ = fs::remove_dir_all(sysroot);
    fs::rename(&made, sysroot).map_err(at(sysroot))
}

/// Downloads and unpacks the package; the path of its `library` directory's parent.
fn fetch(work: &Path, version: &str, sysroot: &Path) -> Result<PathBuf, SourceError> {
    let apt = Apt::open(work, SUITE)?;
    eprintln!(
        "the compiler's libraries are built from Debian's rust-src {version} into {}",
        sysroot.display()
    );
    let package = apt.download(
        &format!("rust-src {version}"),
        &format!("rust-src={version}*"),
        work,
    )?;
    let step = Step::start(format!("unpacking rust-src {version}"));
    let unpacked = work.join("src");
    progress::run(
        Command::new("dpkg-deb")
            .arg("-x")
            .arg(&package)
            .arg(&unpacked),
        &step,
        None,
    )?;
    step.done("unpacked");
    let sources = unpacked.join("usr/src");
    let source = apt::find_in(&sources, |name| name.starts_with("rustc-"))
        .ok_or_else(|| SourceError::NoSource(version.to_owned()))?;
    Ok(source)
}

/// Builds the three libraries for a target and puts them where a sysroot has them.
fn build(work: &Path, source: &Path, target: &str, sysroot: &Path) -> Result<(), SourceError> {
    let step = Step::start(format!("building core and alloc for {target}"));
    let directory = work.join("crate");
    let code = directory.join("src");
    fs::create_dir_all(&code).map_err(at(&code))?;
    let manifest =
        "[package]\nname = \"sysroot\"\nversion = \"0.0.0\"\nedition = \"2024\"\n[workspace]\n";
    fs::write(directory.join("Cargo.toml"), manifest).map_err(at(&directory))?;
    fs::write(code.join("lib.rs"), "#![no_std]\n").map_err(at(&code))?;
    let mut command = Command::new(cargo());
    command
        .current_dir(&directory)
        .args(["build", "--release", "--target", target]);
    command.args([
        "-Zbuild-std=core,alloc,compiler_builtins",
        "-Zbuild-std-features=compiler-builtins-mem",
    ]);
    // Flags and directories that are meant for the workspace.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.contains("RUSTFLAGS")
            || text.starts_with("CARGO_TARGET_")
            || text.starts_with("CARGO_BUILD_")
        {
            command.env_remove(&name);
        }
    }
    command
        .env("RUSTC_BOOTSTRAP", "1")
        .env("__CARGO_TESTS_ONLY_SRC_ROOT", source.join("library"));
    command.env("CARGO_TARGET_DIR", directory.join("target"));
    // Link-time optimisation of the workspace needs bitcode in them, and its backtraces walk frame pointers.
    command.env(
        "RUSTFLAGS",
        "-Cembed-bitcode=yes -Cforce-frame-pointers=yes",
    );
    progress::run(&mut command, &step, None)?;
    let built = directory.join("target").join(target).join("release/deps");
    let place = libraries(sysroot, target);
    fs::create_dir_all(&place).map_err(at(&place))?;
    for library in ["core", "alloc", "compiler_builtins"] {
        let prefix = format!("lib{library}-");
        let file = apt::find_in(&built, |name| {
            name.starts_with(&prefix) && name.ends_with(".rlib")
        })
        .ok_or_else(|| SourceError::NoLibrary(target.to_owned(), library))?;
        let name = file.file_name().unwrap_or_default();
        fs::copy(&file, place.join(name)).map_err(at(&place))?;
    }
    step.done("built");
    Ok(())
}

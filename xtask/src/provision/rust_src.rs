//! Builds `core`, `alloc` and `compiler_builtins` for the bare-metal targets from Debian's package `rust-src` of exactly
//! the pinned version, for machines that rustup's servers do not serve.
//!
//! The system's apt configuration is read (for its mirror) but never changed: a private one in a temporary directory
//! fetches the package. The result goes into the user's cache directory, complete or not at all.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::find_program;
use super::targets::libraries;
use crate::guard::PrivateDirectory;
use crate::progress::{self, CommandError, Step};
use crate::workspace::cargo;

/// The suite whose `rust-src` follows Rust's releases.
const SUITE: &str = "trixie-backports";
/// What Debian's archive is signed with.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Why the libraries could not be built from source.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// There is no place to keep them.
    #[error("neither XDG_CACHE_HOME nor HOME names a directory\n  try: set HOME")]
    NoCache,
    /// This is not a Debian system.
    #[error(
        "{0} is not there, and this way is for Debian and its kin\n  try: install Rust by rustup, with its targets"
    )]
    NotDebian(&'static str),
    /// apt names no mirror.
    #[error(
        "apt names no mirror\n  try: look at /etc/apt/sources.list and /etc/apt/sources.list.d"
    )]
    NoMirror,
    /// The suite has no package of the pinned version.
    #[error(
        "{SUITE} has no rust-src {0}\n  try: rustup target add, from a network that reaches rustup's servers"
    )]
    NoVersion(String),
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
    for program in ["apt-get", "dpkg-deb"] {
        if find_program(program).is_none() {
            return Err(SourceError::NotDebian(program));
        }
    }
    if !Path::new(KEYRING).is_file() {
        return Err(SourceError::NotDebian(KEYRING));
    }
    fs::create_dir_all(cache).map_err(at(cache))?;
    let lock_path = cache.join("lock");
    let lock = File::create(&lock_path).map_err(at(&lock_path))?;
    lock.lock().map_err(at(&lock_path))?;
    if complete(sysroot) {
        return Ok(());
    }
    let work = PrivateDirectory::new(&cache.join("work")).map_err(at(cache))?;
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
    let mirror = mirror(&asked(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(REPO_URI)",
    ]))?)
    .ok_or(SourceError::NoMirror)?;
    let apt = Apt::new(work, &mirror)?;
    let step = Step::start(format!("apt: list of {SUITE}"));
    progress::run(&mut apt.command("update"), &step, None)?;
    step.done("fetched");

    let wanted = format!("rust-src={version}*");
    let uris = asked(apt.command("download").args(["--print-uris", &wanted]))
        .map_err(|_| SourceError::NoVersion(version.to_owned()))?;
    let size = download_size(&uris).ok_or_else(|| SourceError::NoVersion(version.to_owned()))?;
    eprintln!(
        "the compiler's libraries are built from Debian's rust-src {version} into {}",
        sysroot.display()
    );
    let step = Step::start(format!(
        "apt: rust-src {version}, {} MB",
        size.div_ceil(1_000_000)
    ));
    progress::run(
        apt.command("download").arg(&wanted).current_dir(work),
        &step,
        None,
    )?;
    let package = find_in(work, |name| {
        name.starts_with("rust-src_") && name.ends_with(".deb")
    })
    .ok_or_else(|| SourceError::NoVersion(version.to_owned()))?;
    let unpacked = work.join("src");
    progress::run(
        Command::new("dpkg-deb")
            .arg("-x")
            .arg(&package)
            .arg(&unpacked),
        &step,
        None,
    )?;
    step.done("fetched and unpacked");
    let sources = unpacked.join("usr/src");
    let source = find_in(&sources, |name| name.starts_with("rustc-"))
        .ok_or_else(|| SourceError::NoVersion(version.to_owned()))?;
    Ok(source)
}

/// The output of a quick command.
fn asked(command: &mut Command) -> Result<String, CommandError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|source| CommandError::Start {
        program: program.clone(),
        source,
    })?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let line = progress::show(command);
        let output_text = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(CommandError::Failed {
            program,
            line,
            status: output.status,
            output: output_text,
        })
    }
}

/// The mirror among what `apt-get indextargets` prints: the first that is not for security updates alone.
fn mirror(text: &str) -> Option<String> {
    text.lines()
        .map(str::trim)
        .find(|uri| !uri.is_empty() && !uri.contains("security"))
        .map(str::to_owned)
}

/// The size in bytes from `apt-get --print-uris`: lines of `'URI' FILE SIZE HASH`.
fn download_size(text: &str) -> Option<u64> {
    text.lines()
        .filter(|line| line.starts_with('\''))
        .find_map(|line| line.split_whitespace().nth(2)?.parse().ok())
}

/// The entry of a directory whose name fits.
fn find_in(directory: &Path, fits: impl Fn(&str) -> bool) -> Option<PathBuf> {
    let entries = fs::read_dir(directory).ok()?.flatten();
    entries.map(|entry| entry.path()).find(|path| {
        path.file_name()
            .and_then(|name| name.to_str())
            .is_some_and(&fits)
    })
}

/// An apt configuration of our own.
struct Apt {
    options: Vec<String>,
}

impl Apt {
    fn new(work: &Path, mirror: &str) -> Result<Self, SourceError> {
        let base = work.join("apt");
        for directory in ["parts", "state/lists/partial", "cache/archives/partial"] {
            let path = base.join(directory);
            fs::create_dir_all(&path).map_err(at(&path))?;
        }
        let list = base.join("sources.list");
        let line = format!("deb [signed-by={KEYRING}] {mirror} {SUITE} main\n");
        fs::write(&list, line).map_err(at(&list))?;
        let place = |name: &str, path: &str| format!("{name}={}", base.join(path).display());
        let options = vec![
            place("Dir::Etc::SourceList", "sources.list"),
            place("Dir::Etc::SourceParts", "parts"),
            place("Dir::State::Lists", "state/lists"),
            place("Dir::Cache", "cache"),
            // The files live in a directory that the user `_apt` may not enter.
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Languages=none".to_owned(),
        ];
        Ok(Self { options })
    }

    /// An apt-get command under this configuration.
    fn command(&self, what: &str) -> Command {
        let mut command = Command::new("apt-get");
        for option in &self.options {
            command.args(["-o", option]);
        }
        command.arg(what);
        command
    }
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
        let file = find_in(&built, |name| {
            name.starts_with(&prefix) && name.ends_with(".rlib")
        })
        .ok_or_else(|| SourceError::NoLibrary(target.to_owned(), library))?;
        let name = file.file_name().unwrap_or_default();
        fs::copy(&file, place.join(name)).map_err(at(&place))?;
    }
    step.done("built");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_not_the_security_one() {
        let text = "http://mirror.example/debian-security/\n\nhttp://mirror.example/debian/\nhttp://other.example/\n";
        assert_eq!(
            mirror(text).as_deref(),
            Some("http://mirror.example/debian/")
        );
        assert_eq!(mirror("\n"), None);
    }

    #[test]
    fn the_size_stands_third() {
        let text = "Reading package lists...\n'http://m.example/r.deb' rust-src_1.95.0_all.deb 45097356 SHA256:12\n";
        assert_eq!(download_size(text), Some(45_097_356));
        assert_eq!(download_size("E: Version not found\n"), None);
    }
}

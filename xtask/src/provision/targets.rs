//! The bare-metal compiler targets: found in the toolchain, added by rustup, or built from Debian's `rust-src`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::rust_src::{self, SourceError};
use super::{Permission, cache_directory, find_program};
use crate::progress::{self, Step};
use crate::workspace::{WorkspaceError, cargo, pinned_version, source_root};

/// The kernel's and the guests' target.
pub const KERNEL: &str = "x86_64-unknown-none";
/// The loader's target.
pub const LOADER: &str = "x86_64-unknown-uefi";

/// How long rustup may take. Where its servers cannot be reached it must not hold everything up.
const RUSTUP_LIMIT: Duration = Duration::from_secs(90);

/// Why there is no toolchain that can build Plinth.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The workspace or the toolchain is not as it should be.
    #[error(transparent)]
    Workspace(#[from] WorkspaceError),
    /// `rustc` cannot be asked.
    #[error(
        "cannot ask rustc: {0}\n  try: install Rust with rustup, then run this in the workspace again"
    )]
    Rustc(String),
    /// Targets are missing and must not be installed.
    #[error(
        "the compiler lacks {0}, and --no-install forbids to install it\n  try: rustup target add {0}"
    )]
    Refused(String),
    /// Neither way worked.
    #[error(
        "the compiler lacks {missing}, and no way to get it worked\n  rustup: {rustup}\n  rust-src: {source}\n  \
         try: rustup target add {missing}"
    )]
    NoWay {
        /// The targets.
        missing: String,
        /// Why rustup failed.
        rustup: String,
        /// Why building from source failed.
        source: Box<SourceError>,
    },
    /// LLVM's programs are missing, and why they were not brought.
    #[error("the toolchain lacks {LLVM_TOOLS}: {0}\n  try: rustup component add {LLVM_TOOLS}")]
    LlvmTools(String),
}

/// rustup's component with LLVM's programs.
const LLVM_TOOLS: &str = "llvm-tools";

/// A compiler that can build for the bare-metal targets.
#[derive(Debug, Clone)]
pub struct Toolchain {
    sysroot: Option<PathBuf>,
}

impl Toolchain {
    /// A cargo command for the workspace, with the target's libraries at hand.
    pub fn cargo(&self, subcommand: &str) -> Command {
        let mut command = Command::new(cargo());
        command.arg(subcommand).current_dir(source_root());
        // It would replace the flags that .cargo/config.toml gives the targets.
        command
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS");
        if let Some(sysroot) = &self.sysroot {
            for target in [KERNEL, LOADER] {
                let name = flags_variable(target);
                let earlier = std::env::var(&name).unwrap_or_default();
                command.env(
                    name,
                    format!("{earlier} --sysroot {}", sysroot.display()).trim(),
                );
            }
        }
        command
    }

    /// In one phrase, where the targets come from.
    pub fn origin(&self) -> String {
        match &self.sysroot {
            None => "in the toolchain".into(),
            Some(sysroot) => format!("private, in {}", sysroot.display()),
        }
    }
}

/// The variable that gives cargo more compiler flags for a target; they are joined with those of `.cargo/config.toml`.
fn flags_variable(target: &str) -> String {
    format!(
        "CARGO_TARGET_{}_RUSTFLAGS",
        target.to_uppercase().replace('-', "_")
    )
}

/// What the compiler says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiler {
    /// The version, such as `1.95.0`.
    pub release: String,
    /// The commit it was built from; a private sysroot fits this commit only.
    pub commit: String,
    /// The target that it compiles for where none is named.
    pub host: String,
}

/// The usual target of the only system that is supported.
const LINUX: &str = "x86_64-unknown-linux-gnu";

impl Compiler {
    /// Asks `rustc`.
    pub fn ask() -> Result<Self, TargetError> {
        Self::parse(&rustc(&["-vV"])?)
            .ok_or_else(|| TargetError::Rustc("`rustc -vV` names no release".into()))
    }

    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
        };
        let commit = field("commit-hash").unwrap_or("unknown");
        Some(Self {
            release: field("release")?.to_owned(),
            commit: commit.to_owned(),
            host: field("host").unwrap_or(LINUX).to_owned(),
        })
    }

    /// The private sysroot's name for this compiler.
    fn sysroot_name(&self) -> String {
        format!(
            "sysroot-{}-{}",
            self.release,
            self.commit.get(..9).unwrap_or(&self.commit)
        )
    }
}

fn rustc(arguments: &[&str]) -> Result<String, TargetError> {
    let output = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .args(arguments)
        .current_dir(source_root())
        .output()
        .map_err(|error| TargetError::Rustc(error.to_string()))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(TargetError::Rustc(
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        ))
    }
}

/// Whether a directory of compiled libraries holds `core`.
fn has_core(libraries: &Path) -> bool {
    std::fs::read_dir(libraries)
        .into_iter()
        .flatten()
        .flatten()
        .any(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with("libcore-") && name.ends_with(".rlib")
        })
}

/// Where a sysroot keeps a target's libraries.
pub fn libraries(sysroot: &Path, target: &str) -> PathBuf {
    sysroot.join("lib/rustlib").join(target).join("lib")
}

/// The targets that the toolchain itself lacks.
fn missing() -> Result<Vec<&'static str>, TargetError> {
    let mut missing = Vec::new();
    for target in [KERNEL, LOADER] {
        // Whoever names a sysroot knows what it holds.
        if std::env::var(flags_variable(target)).is_ok_and(|flags| flags.contains("--sysroot")) {
            continue;
        }
        let directory = rustc(&["--print", "target-libdir", "--target", target])?;
        if !has_core(Path::new(directory.trim())) {
            missing.push(target);
        }
    }
    Ok(missing)
}

/// Finds a toolchain with all targets, without changing anything: the toolchain or the names of what is missing.
pub fn find() -> Result<Result<Toolchain, Vec<&'static str>>, TargetError> {
    let missing = missing()?;
    if missing.is_empty() {
        return Ok(Ok(Toolchain { sysroot: None }));
    }
    let compiler = Compiler::ask()?;
    let private = cache_directory().map(|cache| cache.join(compiler.sysroot_name()));
    match private.filter(|sysroot| {
        [KERNEL, LOADER]
            .iter()
            .all(|target| has_core(&libraries(sysroot, target)))
    }) {
        Some(sysroot) => Ok(Ok(Toolchain {
            sysroot: Some(sysroot),
        })),
        None => Ok(Err(missing)),
    }
}

/// Finds or makes a toolchain with all targets.
pub fn provide(permission: Permission) -> Result<Toolchain, TargetError> {
    let compiler = Compiler::ask()?;
    let pinned = pinned_version()?;
    if compiler.release != pinned {
        return Err(WorkspaceError::Version {
            found: compiler.release,
            pinned,
        }
        .into());
    }
    let missing = match find()? {
        Ok(toolchain) => return Ok(toolchain),
        Err(missing) => missing,
    };
    let names = missing.join(" ");
    if permission == Permission::Refused {
        return Err(TargetError::Refused(names));
    }
    let rustup = match add_by_rustup(&missing) {
        Ok(()) => return Ok(Toolchain { sysroot: None }),
        Err(why) => why,
    };
    eprintln!("rustup could not add {names}: {rustup}");
    let no_way = |source| TargetError::NoWay {
        missing: names.clone(),
        rustup: rustup.clone(),
        source: Box::new(source),
    };
    let cache = cache_directory().ok_or_else(|| no_way(SourceError::NoCache))?;
    let sysroot = cache.join(compiler.sysroot_name());
    rust_src::make_sysroot(&sysroot, &compiler.release, &[KERNEL, LOADER], |ready| {
        [KERNEL, LOADER]
            .iter()
            .all(|target| has_core(&libraries(ready, target)))
    })
    .map_err(no_way)?;
    Ok(Toolchain {
        sysroot: Some(sysroot),
    })
}

/// Lets rustup add the targets; the error says in one line why it could not.
fn add_by_rustup(missing: &[&str]) -> Result<(), String> {
    rustup(&[&["target", "add"], missing].concat())?;
    match self::missing() {
        Ok(missing) if missing.is_empty() => Ok(()),
        Ok(missing) => Err(format!("{} still missing afterwards", missing.join(" "))),
        Err(error) => Err(error.to_string()),
    }
}

/// Runs rustup; the error says in one line why it did nothing.
fn rustup(arguments: &[&str]) -> Result<(), String> {
    if find_program("rustup").is_none() {
        return Err("rustup is not installed".into());
    }
    let step = Step::start(format!("rustup {}", arguments.join(" ")));
    let mut command = Command::new("rustup");
    command
        .args(arguments)
        .current_dir(source_root())
        .env("RUSTUP_MAX_RETRIES", "0");
    progress::run(&mut command, &step, Some(RUSTUP_LIMIT))
        .map_err(|error| first_complaint(&error.to_string()))?;
    step.done("added");
    Ok(())
}

/// Where the programs of the LLVM are with which the compiler was built, such as `llvm-cov`: found in the toolchain, or added by
/// rustup. Others' need not read what this compiler writes.
pub fn llvm_tools(permission: Permission) -> Result<PathBuf, TargetError> {
    let libraries = rustc(&["--print", "target-libdir"])?;
    let directory = Path::new(libraries.trim()).with_file_name("bin");
    let is_there = || directory.join("llvm-cov").is_file();
    if !is_there() {
        if permission == Permission::Refused {
            let why = "--no-install forbids to install it";
            return Err(TargetError::LlvmTools(why.into()));
        }
        rustup(&["component", "add", LLVM_TOOLS]).map_err(TargetError::LlvmTools)?;
    }
    if is_there() {
        Ok(directory)
    } else {
        let why = format!("it is not in {}", directory.display());
        Err(TargetError::LlvmTools(why))
    }
}

/// The line of a longer text that says what went wrong.
fn first_complaint(text: &str) -> String {
    let complaint = text
        .lines()
        .map(|line| line.trim_start_matches([' ', '|']))
        .find(|line| line.starts_with("error"));
    complaint
        .or_else(|| text.lines().next())
        .unwrap_or_default()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compiler_tells_its_release_and_commit() {
        let text = "rustc 1.95.0 (59807616e 2026-04-14)\nbinary: rustc\ncommit-hash: 59807616e1fa2540\nhost: a-b-c\nrelease: 1.95.0\n";
        let compiler = Compiler::parse(text).unwrap();
        assert_eq!(compiler.host, "a-b-c");
        assert_eq!(compiler.sysroot_name(), "sysroot-1.95.0-59807616e");
        // A distribution's compiler may not know its commit.
        let compiler = Compiler::parse("commit-hash: unknown\nrelease: 1.95.0").unwrap();
        assert_eq!(compiler.sysroot_name(), "sysroot-1.95.0-unknown");
        assert_eq!(Compiler::parse("hello"), None);
    }

    #[test]
    fn a_target_is_there_when_core_is() {
        let directory = tempfile::tempdir().unwrap();
        assert!(!has_core(directory.path()) && !has_core(Path::new("/no/such/place")));
        std::fs::write(directory.path().join("liballoc-1.rlib"), "").unwrap();
        assert!(!has_core(directory.path()));
        std::fs::write(directory.path().join("libcore-1.rlib"), "").unwrap();
        assert!(has_core(directory.path()));
    }

    #[test]
    fn flags_go_to_the_target_s_variable() {
        assert_eq!(
            flags_variable(LOADER),
            "CARGO_TARGET_X86_64_UNKNOWN_UEFI_RUSTFLAGS"
        );
        let toolchain = Toolchain {
            sysroot: Some("/s".into()),
        };
        let command = toolchain.cargo("build");
        let flags = command
            .get_envs()
            .filter_map(|(_, value)| value?.to_str())
            .collect::<Vec<_>>();
        assert_eq!(flags.len(), 2);
        assert!(flags.iter().all(|flags| flags.ends_with("--sysroot /s")));
    }

    #[test]
    fn the_complaint_is_the_line_with_error() {
        assert_eq!(
            first_complaint("rustup failed\n  | info: x\n  | error: no network\n"),
            "error: no network"
        );
        assert_eq!(first_complaint("took too long\n try"), "took too long");
    }
}

//! What the workspace is: its directories, its packages and the toolchain it pins.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Why the workspace could not be understood.
#[derive(Debug, thiserror::Error)]
pub enum WorkspaceError {
    /// `cargo metadata` did not run.
    #[error(
        "`cargo metadata` failed: {0}\n  try: run it by hand in the workspace and mend what it complains about"
    )]
    Metadata(String),
    /// `cargo metadata` printed something without the field that is needed.
    #[error(
        "`cargo metadata` printed no `{0}`\n  try: install the Rust version that rust-toolchain.toml names"
    )]
    Field(&'static str),
    /// `rust-toolchain.toml` names no version.
    #[error("{0} pins no Rust version\n  try: write `channel = \"1.N.P\"` into it")]
    Pin(PathBuf),
    /// The compiler is not the pinned one.
    #[error(
        "this is Rust {found}, but rust-toolchain.toml pins {pinned}\n  try: rustup toolchain install {pinned}"
    )]
    Version {
        /// What `rustc` says.
        found: String,
        /// What the file says.
        pinned: String,
    },
}

/// A package of the workspace that has an executable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// The package's name.
    pub package: String,
    /// The executable's name.
    pub bin: String,
    /// The package's directory.
    pub directory: PathBuf,
}

/// A package of the workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// The files at which its library and its programs begin.
    pub roots: Vec<PathBuf>,
}

/// The workspace.
#[derive(Debug, Clone)]
pub struct Workspace {
    /// The top directory.
    pub root: PathBuf,
    /// Where cargo puts what it builds.
    pub target: PathBuf,
    /// The packages under `guests/` that are programs, sorted by name.
    pub guests: Vec<Program>,
    /// All packages, in cargo's order.
    pub packages: Vec<Package>,
    /// The directories under `guests/` that hold a guest in C, a `main.c` without a package. The directory's name is the guest's.
    pub c_guests: Vec<PathBuf>,
}

/// The source file of a guest in C.
pub const C_SOURCE: &str = "main.c";

impl Workspace {
    /// Asks cargo.
    pub fn load() -> Result<Self, WorkspaceError> {
        let output = Command::new(cargo())
            .args(["metadata", "--no-deps", "--format-version", "1"])
            .current_dir(source_root())
            .output()
            .map_err(|error| WorkspaceError::Metadata(error.to_string()))?;
        if !output.status.success() {
            return Err(WorkspaceError::Metadata(
                String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            ));
        }
        let mut workspace = Self::from_metadata(&output.stdout)?;
        workspace.c_guests = c_guests(&workspace.root.join("guests"));
        Ok(workspace)
    }

    fn from_metadata(json: &[u8]) -> Result<Self, WorkspaceError> {
        let json: Value = serde_json::from_slice(json)
            .map_err(|error| WorkspaceError::Metadata(error.to_string()))?;
        let path = |field: &'static str| {
            json[field]
                .as_str()
                .map(PathBuf::from)
                .ok_or(WorkspaceError::Field(field))
        };
        let root = path("workspace_root")?;
        let target = path("target_directory")?;
        let packages = json["packages"]
            .as_array()
            .ok_or(WorkspaceError::Field("packages"))?;
        let mut guests: Vec<_> = packages
            .iter()
            .filter_map(|package| guest(package, &root.join("guests")))
            .collect();
        guests.sort_by(|a, b| a.bin.cmp(&b.bin));
        let packages = packages.iter().filter_map(package).collect();
        Ok(Self {
            root,
            target,
            guests,
            packages,
            c_guests: Vec::new(),
        })
    }

    /// The names of all guests.
    pub fn guest_names(&self) -> impl Iterator<Item = &str> {
        let in_c = self.c_guests.iter().filter_map(|directory| name(directory));
        self.guests
            .iter()
            .map(|guest| guest.bin.as_str())
            .chain(in_c)
    }

    /// Where the private directories of running machines are.
    pub fn machines(&self) -> PathBuf {
        self.target.join("machines")
    }
}

/// A package, with the parts of it that are built for use.
fn package(package: &Value) -> Option<Package> {
    let is_used = |target: &&Value| {
        target["kind"]
            .as_array()
            .is_some_and(|kinds| kinds.iter().any(|kind| kind == "lib" || kind == "bin"))
    };
    let targets = package["targets"].as_array()?.iter().filter(is_used);
    Some(Package {
        name: package["name"].as_str()?.to_owned(),
        roots: targets
            .filter_map(|target| target["src_path"].as_str().map(PathBuf::from))
            .collect(),
    })
}

/// The program of a package, if its manifest is below `directory` and it has an executable.
fn guest(package: &Value, directory: &Path) -> Option<Program> {
    let manifest = Path::new(package["manifest_path"].as_str()?);
    if !manifest.starts_with(directory) {
        return None;
    }
    let is_bin = |target: &&Value| {
        target["kind"]
            .as_array()
            .is_some_and(|kinds| kinds.iter().any(|kind| kind == "bin"))
    };
    let bin = package["targets"].as_array()?.iter().find(is_bin)?;
    Some(Program {
        package: package["name"].as_str()?.to_owned(),
        bin: bin["name"].as_str()?.to_owned(),
        directory: manifest.parent()?.to_path_buf(),
    })
}

/// The guests in C below a directory.
fn c_guests(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.join(C_SOURCE).is_file() && name(path).is_some())
        .collect()
}

/// The last part of a path.
pub fn name(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}

/// The cargo that runs this program, so that both agree on the toolchain.
pub fn cargo() -> PathBuf {
    std::env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}

/// The workspace of this program: where cargo runs it, for a checkout may have moved since it was built.
pub fn source_root() -> PathBuf {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest
        .parent()
        .map_or_else(|| manifest.clone(), Path::to_path_buf)
}

/// The Rust version that `rust-toolchain.toml` pins.
pub fn pinned_version() -> Result<String, WorkspaceError> {
    let path = source_root().join("rust-toolchain.toml");
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    parse_pin(&text).ok_or(WorkspaceError::Pin(path))
}

/// The version behind `channel =`, if it is a full one such as `1.95.0`.
fn parse_pin(text: &str) -> Option<String> {
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("channel"))?;
    let version = line
        .trim_start()
        .strip_prefix('=')?
        .trim()
        .trim_matches('"');
    let full = version.split('.').count() == 3
        && version.split('.').all(|part| part.parse::<u32>().is_ok());
    full.then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pin_is_a_full_version() {
        assert_eq!(
            parse_pin("[toolchain]\nchannel = \"1.95.0\"\n").as_deref(),
            Some("1.95.0")
        );
        assert_eq!(parse_pin("  channel=\"1.2.3\"").as_deref(), Some("1.2.3"));
        assert_eq!(parse_pin("channel = \"stable\""), None);
        assert_eq!(parse_pin("channel = \"1.95\""), None);
        assert_eq!(parse_pin("components = []"), None);
        assert!(pinned_version().is_ok());
    }

    #[test]
    fn guests_are_the_programs_below_guests() {
        let json = br#"{"workspace_root": "/p", "target_directory": "/t", "packages": [
            {"name": "plinth-rt", "manifest_path": "/p/guests/rt/Cargo.toml", "targets": [{"kind": ["lib"], "name": "plinth_rt"}]},
            {"name": "g-two", "manifest_path": "/p/guests/two/Cargo.toml", "targets": [{"kind": ["test"], "name": "t"}, {"kind": ["bin"], "name": "two"}]},
            {"name": "g-one", "manifest_path": "/p/guests/one/Cargo.toml", "targets": [{"kind": ["bin"], "name": "one"}]},
            {"name": "xtask", "manifest_path": "/p/xtask/Cargo.toml", "targets": [
                {"kind": ["bin"], "name": "xtask", "src_path": "/p/xtask/src/main.rs"},
                {"kind": ["custom-build"], "name": "build-script-build", "src_path": "/p/xtask/build.rs"}]}]}"#;
        let workspace = Workspace::from_metadata(json).unwrap();
        let program = |package: &str, bin: &str| Program {
            package: package.into(),
            bin: bin.into(),
            directory: Path::new("/p/guests").join(bin),
        };
        assert_eq!(
            workspace.guests,
            [program("g-one", "one"), program("g-two", "two")]
        );
        assert_eq!(workspace.guest_names().collect::<Vec<_>>(), ["one", "two"]);
        let xtask = Package {
            name: "xtask".into(),
            roots: vec!["/p/xtask/src/main.rs".into()],
        };
        assert_eq!(workspace.packages.last(), Some(&xtask));
        assert_eq!(
            (workspace.root, workspace.target),
            ("/p".into(), "/t".into())
        );
    }

    #[test]
    fn guests_in_c_have_a_source_and_no_package() {
        let parent = tempfile::tempdir().unwrap();
        for guest in ["one", "two"] {
            std::fs::create_dir(parent.path().join(guest)).unwrap();
        }
        std::fs::write(parent.path().join("two").join(C_SOURCE), "").unwrap();
        assert_eq!(c_guests(parent.path()), [parent.path().join("two")]);
        assert!(c_guests(&parent.path().join("nowhere")).is_empty());
    }

    #[test]
    fn nonsense_from_cargo_is_an_error() {
        assert!(Workspace::from_metadata(b"{}").is_err());
        assert!(Workspace::from_metadata(b"no json").is_err());
    }
}

//! Debian packages without installing them: an apt configuration of our own, in a directory of our own.
//!
//! The system's apt is asked for its mirror, and its configuration is never changed; no root is needed. Apt checks what it
//! fetches: the lists by the archive's signature, the packages by the hashes in the lists.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::find_program;
use crate::progress::{self, CommandError, Step};

/// What Debian's archive is signed with.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// How long one download may take: 70 MB over a slow line.
const LIMIT: Duration = Duration::from_mins(30);

/// Why there is no package.
#[derive(Debug, thiserror::Error)]
pub enum AptError {
    /// This is not a Debian system.
    #[error(
        "{0} is not there, and this way is for Debian and its kin\n  try: a Debian system, or a container of it"
    )]
    NotDebian(&'static str),
    /// apt names no mirror.
    #[error(
        "apt names no mirror\n  try: look at /etc/apt/sources.list and /etc/apt/sources.list.d"
    )]
    NoMirror,
    /// The lists cannot be fetched.
    #[error(
        "apt cannot fetch the lists of Debian {suite}: {complaint}\n  \
         try: a network that reaches the mirror that `apt-get indextargets` names, then run this again"
    )]
    Lists {
        /// The suite.
        suite: String,
        /// What apt said.
        complaint: String,
    },
    /// A package is in the lists, and cannot be fetched.
    #[error(
        "apt cannot fetch {package}: {complaint}\n  try: look at the network, then run this again"
    )]
    Fetch {
        /// What apt was asked for.
        package: String,
        /// What it said.
        complaint: String,
    },
    /// There is no such package.
    #[error(
        "Debian {suite} has no package {package}\n  try: `apt-get update`, to see whether this mirror has that suite"
    )]
    NoPackage {
        /// The suite.
        suite: String,
        /// What apt was asked for.
        package: String,
    },
    /// A command failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// A file could not be written or read.
    #[error("{0}: {1}\n  try: look at the disk's free space and the directory's owner")]
    File(PathBuf, io::Error),
}

/// Attaches a path to an I/O error.
fn at(path: &Path) -> impl FnOnce(io::Error) -> AptError {
    let path = path.to_path_buf();
    move |error| AptError::File(path, error)
}

/// Whether packages can be fetched on this system at all.
pub fn possible() -> Result<(), AptError> {
    for program in ["apt-get", "apt-cache", "dpkg-deb"] {
        if find_program(program).is_none() {
            return Err(AptError::NotDebian(program));
        }
    }
    if Path::new(KEYRING).is_file() {
        Ok(())
    } else {
        Err(AptError::NotDebian(KEYRING))
    }
}

/// An apt configuration of our own, that knows one suite of Debian.
#[derive(Debug)]
pub struct Apt {
    suite: &'static str,
    options: Vec<String>,
}

impl Apt {
    /// Makes the configuration under `work` and fetches the suite's lists.
    pub fn open(work: &Path, suite: &'static str) -> Result<Self, AptError> {
        possible()?;
        let mut question = Command::new("apt-get");
        let targets = asked(question.args(["indextargets", "--format", "$(REPO_URI)"]))?;
        let mirror = mirror(&targets).ok_or(AptError::NoMirror)?;
        let apt = Self::new(work, suite, &mirror)?;
        let step = Step::start(format!("apt: list of Debian {suite}"));
        progress::run(&mut apt.command("apt-get", "update"), &step, Some(LIMIT)).map_err(
            |error| AptError::Lists {
                suite: suite.to_owned(),
                complaint: complaint(error),
            },
        )?;
        step.done("fetched");
        Ok(apt)
    }

    fn new(work: &Path, suite: &'static str, mirror: &str) -> Result<Self, AptError> {
        let base = work.join("apt");
        for directory in ["parts", "state/lists/partial", "cache/archives/partial"] {
            let path = base.join(directory);
            fs::create_dir_all(&path).map_err(at(&path))?;
        }
        let write = |name: &str, text: &str| {
            let path = base.join(name);
            fs::write(&path, text).map_err(at(&path))
        };
        let source = format!("deb [arch=amd64 signed-by={KEYRING}] {mirror} {suite} main\n");
        write("sources.list", &source)?;
        write("status", "")?;
        write("preferences", "")?;
        let place = |name: &str, path: &str| format!("{name}={}", base.join(path).display());
        let options = vec![
            place("Dir::Etc::SourceList", "sources.list"),
            place("Dir::Etc::SourceParts", "parts"),
            place("Dir::Etc::Preferences", "preferences"),
            place("Dir::Etc::PreferencesParts", "parts"),
            place("Dir::State::Lists", "state/lists"),
            // What is installed must not stand in for what can be fetched.
            place("Dir::State::Status", "status"),
            place("Dir::Cache", "cache"),
            // The files live in a directory that the user `_apt` may not enter.
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Languages=none".to_owned(),
            // Without this, an update that fetched nothing is a success.
            "APT::Update::Error-Mode=any".to_owned(),
            "Acquire::Retries=1".to_owned(),
            "Acquire::http::Timeout=30".to_owned(),
            "Acquire::https::Timeout=30".to_owned(),
        ];
        Ok(Self { suite, options })
    }

    /// A command of apt's under this configuration.
    fn command(&self, program: &str, what: &str) -> Command {
        let mut command = Command::new(program);
        command.env("LC_ALL", "C");
        for option in &self.options {
            command.args(["-o", option]);
        }
        command.arg(what);
        command
    }

    fn no_package(&self, package: &str) -> AptError {
        AptError::NoPackage {
            suite: self.suite.to_owned(),
            package: package.to_owned(),
        }
    }

    /// What the lists say of a package: lines of `Field: value`.
    pub fn show(&self, package: &str) -> Result<String, AptError> {
        let mut question = self.command("apt-cache", "show");
        asked(question.args(["--no-all-versions", package])).map_err(|_| self.no_package(package))
    }

    /// Downloads a package into the directory `to`; `what` is it for people, and `wanted` what `apt-get download` calls it. The
    /// path of the package.
    pub fn download(&self, what: &str, wanted: &str, to: &Path) -> Result<PathBuf, AptError> {
        let mut question = self.command("apt-get", "download");
        let uris =
            asked(question.args(["--print-uris", wanted])).map_err(|_| self.no_package(wanted))?;
        let size = download_size(&uris).ok_or_else(|| self.no_package(wanted))?;
        fs::create_dir_all(to).map_err(at(to))?;
        let step = Step::start(format!("apt: {what}, {} MB", size.div_ceil(1_000_000)));
        let mut download = self.command("apt-get", "download");
        progress::run(download.arg(wanted).current_dir(to), &step, Some(LIMIT)).map_err(
            |error| AptError::Fetch {
                package: wanted.to_owned(),
                complaint: complaint(error),
            },
        )?;
        // The file's name is the package's and what apt makes of the version.
        let name = wanted.split('=').next().unwrap_or(wanted);
        let prefix = format!("{name}_");
        let package = find_in(to, |file| {
            file.starts_with(&prefix) && file.ends_with(".deb")
        })
        .ok_or_else(|| self.no_package(wanted))?;
        step.done("fetched");
        Ok(package)
    }
}

/// What apt complains about, in one line; all of it where that is not to be found.
fn complaint(error: CommandError) -> String {
    let text = match &error {
        CommandError::Failed { output, .. } => output.as_str(),
        _ => return error.to_string(),
    };
    let plain = |line: &str| line.trim_start_matches([' ', '|']).trim_end().to_owned();
    let with = |mark: &str| {
        let mut lines = text.lines().map(plain);
        lines.find_map(|line| line.strip_prefix(mark).map(str::to_owned))
    };
    // A warning tells which address failed and why; an error often only that something did.
    with("W: ")
        .or_else(|| with("E: "))
        .unwrap_or_else(|| error.to_string())
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

/// The value of a field in what the lists say of a package.
pub fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
}

/// The entry of a directory whose name fits.
pub fn find_in(directory: &Path, fits: impl Fn(&str) -> bool) -> Option<PathBuf> {
    let entries = fs::read_dir(directory).ok()?.flatten();
    entries.map(|entry| entry.path()).find(|path| {
        path.file_name()
            .and_then(|name| name.to_str())
            .is_some_and(&fits)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

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

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "Package: linux\nPre-Depends: a\nDepends: b (= 1)\nVersion: 6.1\n";
        assert_eq!(field(text, "Depends"), Some("b (= 1)"));
        assert_eq!(field(text, "Version"), Some("6.1"));
        assert_eq!(field(text, "Vers"), None);
    }

    #[test]
    fn a_complaint_is_one_line() {
        let failed = |output: &str| {
            complaint(CommandError::Failed {
                program: "apt-get".into(),
                line: "apt-get update".into(),
                status: ExitStatus::from_raw(100 << 8),
                output: output.into(),
            })
        };
        let text = "  | Err:1 x\n  | W: Failed to fetch x  Could not resolve\n  | E: Some index files failed";
        assert_eq!(failed(text), "Failed to fetch x  Could not resolve");
        assert_eq!(failed("  | E: no space"), "no space");
        assert!(failed("killed").contains("killed"));
    }

    #[test]
    fn nothing_of_the_systems_is_written_or_counted() {
        let work = tempfile::tempdir().unwrap();
        let apt = Apt::new(work.path(), "bookworm", "http://mirror.example/debian/").unwrap();
        let source = fs::read_to_string(work.path().join("apt/sources.list")).unwrap();
        assert!(
            source.starts_with("deb [")
                && source.ends_with("] http://mirror.example/debian/ bookworm main\n"),
            "{source}"
        );
        // Every place that apt is given is below `work`.
        let base = work.path().display().to_string();
        for name in [
            "Dir::Etc::SourceList",
            "Dir::Etc::SourceParts",
            "Dir::State::Lists",
            "Dir::State::Status",
            "Dir::Cache",
        ] {
            assert!(
                apt.options
                    .iter()
                    .any(|option| option.starts_with(&format!("{name}={base}"))),
                "{name}"
            );
        }
    }
}

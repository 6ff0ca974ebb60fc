//! Says what this computer has, what is missing, and the exact command that brings it. Changes nothing.

use std::io::IsTerminal;
use std::process::ExitCode;

use crate::machine::choose::{Host, choose};
use crate::machine::{Choice, Kind};
use crate::provision::apt;
use crate::provision::linux::Package;
use crate::provision::packages::{self, Part};
use crate::provision::targets::{self, Compiler};
use crate::workspace::pinned_version;

/// A line of the table.
struct Row {
    what: &'static str,
    found: Result<String, String>,
    /// What to type when it is not found.
    advice: String,
}

/// `cargo xtask doctor`.
pub fn main() -> anyhow::Result<ExitCode> {
    let host = Host::look();
    let (auto, why) = choose(Choice::Auto, &host);
    let mut rows = rust();
    let rust_works = rows.iter().all(|row| row.found.is_ok());
    for part in [
        Part::Qemu,
        Part::QemuFirmware,
        Part::Bochs,
        Part::BochsFirmware,
        Part::BochsVideo,
        Part::Compiler,
    ] {
        let found = part
            .find()
            .map(|path| path.display().to_string())
            .ok_or_else(|| "missing".to_owned());
        rows.push(Row {
            what: part.name(),
            found,
            advice: packages::advice(&[part]),
        });
    }
    print!("{}", table(&rows));
    let possible = apt::possible().is_ok();
    for package in Package::ALL {
        let found = package.find().map(|path| {
            let version = package.version().unwrap_or_default();
            format!("{} ({version})", path.display())
        });
        print!("{}", linux_line(package, found, possible));
    }
    for (what, value) in facts(&host) {
        println!("       {what:<28}{value}");
    }
    println!();
    for kind in Kind::ALL {
        println!("{:<11}{}", kind.name(), verdict(kind, &host));
    }
    println!("auto means {auto}: {why}");
    let missing = packages::missing(auto);
    if rust_works && missing.is_empty() {
        println!("cargo xtask run will work");
        Ok(ExitCode::SUCCESS)
    } else {
        println!(
            "cargo xtask run lacks what is marked above; as root on Debian it brings that by itself"
        );
        Ok(ExitCode::FAILURE)
    }
}

/// The compiler and its targets.
fn rust() -> Vec<Row> {
    let pinned = pinned_version().unwrap_or_else(|_| "of rust-toolchain.toml".into());
    let compiler = match Compiler::ask() {
        Ok(compiler) if compiler.release == pinned => Ok(compiler.release),
        Ok(compiler) => Err(format!("{}, but {pinned} is pinned", compiler.release)),
        Err(error) => Err(error
            .to_string()
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned()),
    };
    let (found, advice) = match targets::find() {
        Ok(Ok(toolchain)) => (Ok(toolchain.origin()), String::new()),
        Ok(Err(missing)) => (
            Err("missing".into()),
            format!("rustup target add {}", missing.join(" ")),
        ),
        Err(_) => (
            Err("unknown".into()),
            "install the compiler first".to_owned(),
        ),
    };
    vec![
        Row {
            what: "Rust",
            found: compiler,
            advice: format!("rustup toolchain install {pinned}"),
        },
        Row {
            what: "bare-metal targets",
            found,
            advice,
        },
    ]
}

fn table(rows: &[Row]) -> String {
    let line = |row: &Row| match &row.found {
        Ok(found) => format!("ok     {:<28}{found}\n", row.what),
        Err(found) => format!(
            "LACKS  {:<28}{found}\n       {:<28}try: {}\n",
            row.what, "", row.advice
        ),
    };
    rows.iter().map(line).collect()
}

/// The line of a package that Linux as a domain needs. Without it everything else works, so it is not marked as lacking.
fn linux_line(package: Package, found: Option<String>, possible: bool) -> String {
    let (mark, state) = match (&found, possible) {
        (Some(found), _) => ("ok", found.as_str()),
        (None, true) => ("later", "fetched by the first command that wants it"),
        (None, false) => (
            "none",
            "cannot be fetched, for this is no Debian; --kernel and --initrd take your own",
        ),
    };
    format!(
        "{mark:<7}{:<28}for {}: {state}\n",
        package.name(),
        package.purpose()
    )
}

/// What cannot be installed.
fn facts(host: &Host) -> Vec<(&'static str, String)> {
    let flags = ["vmx", "svm"]
        .into_iter()
        .filter(|flag| host.has_flag(flag))
        .collect::<Vec<_>>()
        .join(" ");
    let nested =
        |value: &Option<String>| value.as_deref().map_or("no module", str::trim).to_owned();
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    vec![
        (
            "CPU virtualisation flags",
            if flags.is_empty() {
                "none".to_owned()
            } else {
                flags
            },
        ),
        ("kvm_intel nested", nested(&host.nested_intel)),
        ("kvm_amd nested", nested(&host.nested_amd)),
        (
            "/dev/kvm",
            if host.device {
                "can be opened"
            } else {
                "cannot be opened"
            }
            .to_owned(),
        ),
        (
            "terminal",
            if terminal {
                "yes"
            } else {
                "no: the console of a machine is read only"
            }
            .to_owned(),
        ),
    ]
}

/// Whether a kind of machine can start here.
fn verdict(kind: Kind, host: &Host) -> String {
    let missing: Vec<_> = packages::missing(kind)
        .iter()
        .map(|part| part.name())
        .collect();
    match (missing.is_empty(), kind, host.nested_kvm()) {
        (false, ..) => format!("lacks {}", missing.join(", ")),
        (true, Kind::QemuKvm, Err(why)) => format!("will not work: {why}"),
        _ => "ready".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_comes_with_its_command() {
        let rows = [
            Row {
                what: "Rust",
                found: Ok("1.2.3".into()),
                advice: "never shown".into(),
            },
            Row {
                what: "bochs",
                found: Err("missing".into()),
                advice: "apt-get install bochs".into(),
            },
        ];
        let table = table(&rows);
        assert!(table.contains("ok     Rust") && table.contains("1.2.3"));
        assert!(table.contains("LACKS  bochs") && table.contains("try: apt-get install bochs"));
        assert!(!table.contains("never shown"));
    }

    #[test]
    fn a_missing_linux_is_no_lack() {
        let line = |found: Option<&str>, possible| {
            linux_line(Package::Kernel, found.map(str::to_owned), possible)
        };
        let ok = line(Some("/cache/vmlinuz"), false);
        assert!(ok.starts_with("ok     linux-image-amd64 ") && ok.contains("/cache/vmlinuz"));
        assert!(ok.contains("for the machine linux-debian: "), "{ok}");
        assert!(line(None, true).starts_with("later  "));
        assert!(line(None, false).contains("--kernel"));
    }

    #[test]
    fn kvm_needs_more_than_qemu() {
        let kvm = verdict(Kind::QemuKvm, &Host::default());
        assert!(
            kvm.starts_with("lacks") || kvm.starts_with("will not work"),
            "{kvm}"
        );
    }
}

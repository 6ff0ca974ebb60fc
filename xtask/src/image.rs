//! Writes the bootable disk image: the loader, the kernel, and the archive of modules.
//!
//! In the archive are `cmdline`, the kernel's command line; `guests/NAME`, the guests' executables; `machines/NAME.toml` of
//! those that say what machine they want, which the control guest reads; `NAME/FILE`, what is in `guests/NAME/files`, such as
//! modules that the machine file names; and, where Linux is wanted, `linux/vmlinuz`, `linux/initrd` and the like.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use plinth_bootimage::{Contents, ImageError, ModuleArchive};

use crate::compile::{self, Build, BuildError, Guest};
use crate::linux;
use crate::provision::Permission;
use crate::workspace::{self, Workspace};

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The build lacks something.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// A guest that was asked for does not exist.
    #[error(
        "there is no guest {0}\n  try: look at the directories under guests/, or add one there"
    )]
    NoGuest(String),
    /// The command line has a line break, or another sign that would end it.
    #[error(
        "the kernel command line holds a control character\n  try: words separated by blanks: key or key=value"
    )]
    CommandLine,
    /// The image could not be written.
    #[error(
        "{0}\n  try: look at whether the directory is there, whose it is, and at the disk's free space"
    )]
    Image(#[from] ImageError),
}

/// `cargo xtask image`.
pub fn main(
    out: Option<PathBuf>,
    command_line: &str,
    linux: &linux::Options,
    permission: Permission,
) -> anyhow::Result<ExitCode> {
    let workspace = Workspace::load()?;
    check_guests(&workspace, command_line)?;
    let linux = linux::provide(&workspace, linux, command_line, permission)?;
    let build = compile::build(&workspace, permission)?;
    let out = out.unwrap_or_else(|| workspace.target.join("plinth.img"));
    let size = write(&out, &build, command_line, None, &linux)?;
    println!("{} ({size} bytes)", out.display());
    println!(
        "to boot a computer from it, find the USB stick's device with `lsblk`, then, as root:"
    );
    println!(
        "  dd if={} of=/dev/sdX bs=4M conv=fsync status=progress   # X: all data on that stick is lost",
        out.display()
    );
    println!("and start the computer from the stick by UEFI, with Secure Boot off");
    Ok(ExitCode::SUCCESS)
}

/// The guest of the first domain, unless the command line says `root=NAME`.
const ROOT: &str = "control";

/// The first domain's guest.
pub fn root(command_line: &str) -> &str {
    option(command_line, "root").unwrap_or(ROOT)
}

/// The value of `key=value` in a kernel command line; the last one counts.
pub fn option<'a>(command_line: &'a str, key: &str) -> Option<&'a str> {
    command_line
        .split_ascii_whitespace()
        .filter_map(|word| word.split_once('='))
        .rfind(|(found, _)| *found == key)
        .map(|(_, value)| value)
}

/// Whether the guests that a kernel command line names exist. What the machine would say after a minute is said at once.
pub fn check_guests(workspace: &Workspace, command_line: &str) -> Result<(), WriteError> {
    let guests = option(command_line, "guests").unwrap_or_default();
    let machines = guests
        .split(',')
        // Linux is brought for whoever names it. It cannot be the first domain.
        .filter(|name| !name.is_empty() && linux::Kind::named(name).is_none());
    for name in machines.chain(option(command_line, "root")) {
        if workspace.guest_names().all(|guest| guest != name) {
            return Err(WriteError::NoGuest(name.to_owned()));
        }
    }
    Ok(())
}

/// Writes an image with the first domain's guest and those named in `guests`, or all of them; its size in bytes. The machines
/// in `linux` are among those that `guests` can name.
pub fn write(
    path: &Path,
    build: &Build,
    command_line: &str,
    guests: Option<&[&str]>,
    linux: &[linux::Machine],
) -> Result<u64, WriteError> {
    if command_line.chars().any(char::is_control) {
        return Err(WriteError::CommandLine);
    }
    let failed = WriteError::Image;
    let mut archive = ModuleArchive::new();
    archive
        .add("cmdline", format!("{}\n", command_line.trim()).as_bytes())
        .map_err(failed)?;
    let root = root(command_line);
    let is_linux = |name: &str| linux.iter().any(|machine| machine.name == name);
    let others: Option<Vec<&str>> = guests.map(|names| {
        let others = names.iter().copied().filter(|name| !is_linux(name));
        others.collect()
    });
    for guest in select(&build.guests, root, others.as_deref())? {
        let Guest {
            name,
            elf,
            machine,
            files,
        } = guest;
        archive
            .add(&format!("guests/{name}"), &compile::read(elf)?)
            .map_err(failed)?;
        if let Some(machine) = machine {
            archive
                .add(&format!("machines/{name}.toml"), &compile::read(machine)?)
                .map_err(failed)?;
        }
        for file in files {
            let entry = workspace::name(file).unwrap_or_default();
            archive
                .add(&format!("{name}/{entry}"), &compile::read(file)?)
                .map_err(failed)?;
        }
    }
    let wanted = |name: &str| guests.is_none_or(|names| names.contains(&name));
    for machine in linux.iter().filter(|machine| wanted(machine.name)) {
        let name = machine.name;
        for (entry, data) in [
            (format!("{name}/vmlinuz"), machine.kernel.as_slice()),
            (format!("{name}/initrd"), &machine.initrd),
            (
                format!("machines/{name}.toml"),
                machine.description.as_bytes(),
            ),
        ] {
            archive.add(&entry, data).map_err(failed)?;
        }
    }
    let modules = archive.finish();
    let (loader, kernel) = (compile::read(&build.loader)?, compile::read(&build.kernel)?);
    let contents = Contents {
        loader: &loader,
        kernel: &kernel,
        modules: &modules,
    };
    plinth_bootimage::write_image(path, &contents).map_err(failed)
}

/// The guests that were asked for and `root`, in the build's order.
fn select<'a>(
    all: &'a [Guest],
    root: &str,
    wanted: Option<&[&str]>,
) -> Result<Vec<&'a Guest>, WriteError> {
    let named: Vec<&str> = wanted
        .unwrap_or_default()
        .iter()
        .copied()
        .chain([root])
        .collect();
    if let Some(unknown) = named
        .iter()
        .find(|name| all.iter().all(|guest| guest.name != **name))
    {
        return Err(WriteError::NoGuest((*unknown).to_owned()));
    }
    Ok(all
        .iter()
        .filter(|guest| wanted.is_none() || named.contains(&guest.name.as_str()))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(name: &str) -> Guest {
        Guest {
            name: name.into(),
            elf: Path::new("/").join(name),
            machine: None,
            files: vec![],
        }
    }

    #[test]
    fn the_last_option_counts() {
        assert_eq!(option("root=a log=x root=b", "root"), Some("b"));
        assert_eq!(option("root roots=a", "root"), None);
    }

    #[test]
    fn guests_on_the_command_line_must_exist() {
        let workspace = Workspace {
            root: "/".into(),
            target: "/".into(),
            guests: vec![],
            packages: vec![],
            c_guests: ["a", "b"]
                .map(|name| Path::new("/guests").join(name))
                .into(),
        };
        let check = |command_line: &str| match check_guests(&workspace, command_line) {
            Ok(()) => None,
            Err(WriteError::NoGuest(name)) => Some(name),
            Err(error) => panic!("{error}"),
        };
        assert_eq!(check("log=debug guests=a,,b root=b"), None);
        assert_eq!(check("guests=a,c"), Some("c".into()));
        assert_eq!(check("guests=a root=c"), Some("c".into()));
        assert_eq!(check("guests=linux,linux-debian"), None);
        assert_eq!(check("root=linux"), Some("linux".into()));
    }

    #[test]
    fn guests_are_selected_by_name() {
        let all = ["a", "b", "control"].map(guest);
        let names = |root: &str, wanted: Option<&[&str]>| {
            select(&all, root, wanted).map(|guests| {
                guests
                    .iter()
                    .map(|guest| guest.name.clone())
                    .collect::<Vec<_>>()
            })
        };
        assert_eq!(names(ROOT, None).unwrap(), ["a", "b", "control"]);
        assert_eq!(names(ROOT, Some(&["b"])).unwrap(), ["b", "control"]);
        assert_eq!(names("a", Some(&[])).unwrap(), ["a"]);
        for (root, wanted) in [(ROOT, Some(&["c"][..])), ("c", Some(&[])), ("c", None)] {
            assert!(
                matches!(names(root, wanted), Err(WriteError::NoGuest(name)) if name == "c"),
                "{root}, {wanted:?}"
            );
        }
    }

    #[test]
    fn an_image_holds_what_was_built() {
        let directory = tempfile::tempdir().unwrap();
        let place = |name: &str| directory.path().join(name);
        for name in ["loader", "kernel", "control", "hello", "machine", "module"] {
            std::fs::write(place(name), format!("this is {name}")).unwrap();
        }
        let guest = |name: &str, machine, files| Guest {
            name: name.into(),
            elf: place(name),
            machine,
            files,
        };
        let build = Build {
            loader: place("loader"),
            kernel: place("kernel"),
            guests: vec![
                guest("control", None, vec![]),
                guest("hello", Some(place("machine")), vec![place("module")]),
            ],
        };
        let image = place("image");
        assert!(matches!(
            write(&image, &build, "a\nb", None, &[]),
            Err(WriteError::CommandLine)
        ));
        let linux = [linux::Machine {
            name: "linux",
            description: "this is linux.toml".into(),
            kernel: b"this is vmlinuz".into(),
            initrd: b"this is initrd".into(),
        }];
        let written = |guests: Option<&[&str]>, linux: &[linux::Machine]| {
            let size = write(&image, &build, "log=debug", guests, linux).unwrap();
            let bytes = std::fs::read(&image).unwrap();
            assert_eq!(size, bytes.len() as u64);
            bytes
        };
        let has = |bytes: &[u8], text: &str| {
            bytes
                .windows(text.len())
                .any(|window| window == text.as_bytes())
        };
        let bytes = written(None, &linux);
        for text in [
            "this is loader",
            "this is kernel",
            "this is control",
            "this is hello",
            "this is machine",
            "log=debug\n",
            "guests/hello",
            "guests/control",
            "machines/hello.toml",
            "hello/module",
            "this is module",
            "linux/vmlinuz",
            "this is vmlinuz",
            "linux/initrd",
            "this is initrd",
            "machines/linux.toml",
            "this is linux.toml",
        ] {
            assert!(has(&bytes, text), "no {text}");
        }
        assert!(!has(&bytes, "machines/control.toml"));
        // Linux, too, is left out where it is not named.
        let bytes = written(Some(&["hello"]), &linux);
        assert!(has(&bytes, "guests/hello") && !has(&bytes, "vmlinuz"));
        let bytes = written(Some(&["linux"]), &linux);
        assert!(has(&bytes, "this is vmlinuz") && !has(&bytes, "guests/hello"));
        assert!(matches!(
            write(&image, &build, "", Some(&["linux"]), &[]),
            Err(WriteError::NoGuest(name)) if name == "linux"
        ));
    }
}

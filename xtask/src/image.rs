//! Writes the bootable disk image: the loader, the kernel, and the archive of the command line and the guests.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use plinth_bootimage::{Contents, ImageError, ModuleArchive};

use crate::compile::{self, Build, BuildError};
use crate::provision::Permission;
use crate::workspace::Workspace;

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
    permission: Permission,
) -> anyhow::Result<ExitCode> {
    let workspace = Workspace::load()?;
    let build = compile::build(&workspace, permission)?;
    let out = out.unwrap_or_else(|| workspace.target.join("plinth.img"));
    let size = write(&out, &build, command_line, None)?;
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

/// Whether the guests that a kernel command line names exist. What the kernel would say after a minute is said at once.
pub fn check_guests(workspace: &Workspace, command_line: &str) -> Result<(), WriteError> {
    let named = command_line
        .split_ascii_whitespace()
        .filter_map(|word| word.strip_prefix("guests="))
        .flat_map(|names| names.split(','))
        .filter(|name| !name.is_empty());
    for name in named {
        if !workspace.guests.iter().any(|guest| guest.bin == name) {
            return Err(WriteError::NoGuest(name.to_owned()));
        }
    }
    Ok(())
}

/// Writes an image with the guests named in `guests`, or all of them; its size in bytes.
pub fn write(
    path: &Path,
    build: &Build,
    command_line: &str,
    guests: Option<&[&str]>,
) -> Result<u64, WriteError> {
    if command_line.chars().any(char::is_control) {
        return Err(WriteError::CommandLine);
    }
    let failed = WriteError::Image;
    let mut archive = ModuleArchive::new();
    archive
        .add("cmdline", format!("{}\n", command_line.trim()).as_bytes())
        .map_err(failed)?;
    for (name, file) in select(&build.guests, guests)? {
        archive
            .add(&format!("guests/{name}"), &compile::read(file)?)
            .map_err(failed)?;
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

/// The guests that were asked for, in the build's order.
fn select<'a>(
    all: &'a [(String, PathBuf)],
    wanted: Option<&[&str]>,
) -> Result<Vec<&'a (String, PathBuf)>, WriteError> {
    let Some(wanted) = wanted else {
        return Ok(all.iter().collect());
    };
    if let Some(unknown) = wanted
        .iter()
        .find(|name| all.iter().all(|(guest, _)| guest != *name))
    {
        return Err(WriteError::NoGuest((*unknown).to_owned()));
    }
    Ok(all
        .iter()
        .filter(|(guest, _)| wanted.contains(&guest.as_str()))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_are_selected_by_name() {
        let all = [
            ("a".to_owned(), PathBuf::from("/a")),
            ("b".to_owned(), PathBuf::from("/b")),
        ];
        let names = |wanted: Option<&[&str]>| select(&all, wanted).map(|guests| guests.len());
        assert_eq!(names(None).unwrap(), 2);
        assert_eq!(names(Some(&["b"])).unwrap(), 1);
        assert_eq!(names(Some(&[])).unwrap(), 0);
        assert!(matches!(names(Some(&["c"])), Err(WriteError::NoGuest(_))));
    }

    #[test]
    fn an_image_holds_what_was_built() {
        let directory = tempfile::tempdir().unwrap();
        let place = |name: &str| directory.path().join(name);
        for name in ["loader", "kernel", "hello"] {
            std::fs::write(place(name), format!("this is {name}")).unwrap();
        }
        let build = Build {
            loader: place("loader"),
            kernel: place("kernel"),
            guests: vec![("hello".into(), place("hello"))],
        };
        let image = place("image");
        assert!(matches!(
            write(&image, &build, "a\nb", None),
            Err(WriteError::CommandLine)
        ));
        let size = write(&image, &build, "log=debug", None).unwrap();
        let bytes = std::fs::read(&image).unwrap();
        assert_eq!(size, bytes.len() as u64);
        for text in [
            "this is loader",
            "this is kernel",
            "this is hello",
            "log=debug\n",
            "guests/hello",
        ] {
            assert!(
                bytes
                    .windows(text.len())
                    .any(|window| window == text.as_bytes()),
                "no {text}"
            );
        }
    }
}

//! The initramfs for Linux as a domain: busybox, and a first program that makes the system ready.
//!
//! It is an archive in the format "newc" of cpio, as the kernel's documentation describes it
//! (`Documentation/driver-api/early-userspace/buffer-format.rst`), uncompressed. Owner, times and order are constants: the same
//! busybox and the same first program give the same bytes.

/// The length of an entry's header: the magic number and thirteen fields of eight hexadecimal digits.
const HEADER: usize = 110;
/// Headers and contents begin at multiples of this.
const ALIGNMENT: usize = 4;
/// The name of the last entry.
const TRAILER: &str = "TRAILER!!!";

/// The users that there are. Who has the console is root.
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n";
/// The groups that there are.
const GROUP: &str = "root:x:0:\n";
/// What busybox's init does: it runs the session, which ends the machine. Without this file it would offer shells on screens.
const INITTAB: &str = "::once:/init session\n::ctrlaltdel:/sbin/reboot\n";

/// What an entry is.
#[derive(Debug, Clone, Copy)]
enum Node<'a> {
    Directory,
    File(&'a [u8]),
    Link(&'a str),
    /// A character device: its major and minor number.
    Device(u32, u32),
}

impl Node<'_> {
    /// The type in the mode's upper bits (`S_IFMT`).
    const fn kind(self) -> u32 {
        match self {
            Self::Directory => 0o040_000,
            Self::File(_) => 0o100_000,
            Self::Link(_) => 0o120_000,
            Self::Device(..) => 0o020_000,
        }
    }

    /// A link's target is its contents.
    const fn contents(&self) -> &[u8] {
        match self {
            Self::File(bytes) => bytes,
            Self::Link(target) => target.as_bytes(),
            Self::Directory | Self::Device(..) => &[],
        }
    }
}

/// Makes an initramfs with this executable of busybox, and this first program, which is a shell script.
pub fn build(busybox: &[u8], init: &[u8]) -> Vec<u8> {
    let mut archive = Archive::default();
    // A directory comes before what is in it.
    for (name, mode) in [
        ("bin", 0o755),
        ("dev", 0o755),
        ("etc", 0o755),
        ("proc", 0o555),
        ("root", 0o700),
        ("sbin", 0o755),
        ("sys", 0o555),
        ("tmp", 0o1777),
        ("usr", 0o755),
        ("usr/bin", 0o755),
        ("usr/sbin", 0o755),
    ] {
        archive.add(name, mode, Node::Directory);
    }
    // The kernel opens the console before anything is mounted.
    archive.add("dev/console", 0o600, Node::Device(5, 1));
    archive.add("dev/null", 0o666, Node::Device(1, 3));
    archive.add("dev/ttyS0", 0o600, Node::Device(4, 64));
    archive.add("bin/busybox", 0o755, Node::File(busybox));
    // What is needed before busybox makes its links itself.
    archive.add("bin/sh", 0o777, Node::Link("busybox"));
    archive.add("sbin/init", 0o777, Node::Link("../bin/busybox"));
    archive.add("etc/passwd", 0o644, Node::File(PASSWD.as_bytes()));
    archive.add("etc/group", 0o644, Node::File(GROUP.as_bytes()));
    archive.add("etc/inittab", 0o644, Node::File(INITTAB.as_bytes()));
    archive.add("init", 0o755, Node::File(init));
    archive.finish()
}

/// An archive under construction.
#[derive(Debug, Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Appends an entry with the permissions `mode`.
    fn add(&mut self, name: &str, mode: u32, node: Node<'_>) {
        // Numbers of their own: entries of the same number could be taken for links of each other.
        self.entries += 1;
        self.entry(name, self.entries, node.kind() | mode, node);
    }

    /// Ends the archive.
    fn finish(mut self) -> Vec<u8> {
        self.entry(TRAILER, 0, 0, Node::Directory);
        self.bytes
    }

    fn entry(&mut self, name: &str, inode: u32, mode: u32, node: Node<'_>) {
        let contents = node.contents();
        let (major, minor) = match node {
            Node::Device(major, minor) => (major, minor),
            _ => (0, 0),
        };
        let header = [
            inode,
            mode,
            0, // uid
            0, // gid
            1, // number of links
            0, // time of the last change
            length(contents),
            0, // device that this file was on, major
            0, // and minor
            major,
            minor,
            length(name.as_bytes()) + 1,
            0, // checksum, which this format does not have
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in header {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        debug_assert_eq!(self.bytes.len() % ALIGNMENT, HEADER % ALIGNMENT);
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(contents);
        self.align();
    }

    fn align(&mut self) {
        let aligned = self.bytes.len().next_multiple_of(ALIGNMENT);
        self.bytes.resize(aligned, 0);
    }
}

/// A length as the format holds it. An initramfs of 4 GiB is beyond every domain's memory.
fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("a file of an initramfs has less than 4 GiB")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::io::Read;
    use std::process::Command;

    /// An entry as another implementation of the format reads it.
    #[derive(Debug, PartialEq, Eq)]
    struct Seen {
        mode: u32,
        device: (u32, u32),
        contents: Vec<u8>,
    }

    fn read(mut archive: &[u8]) -> BTreeMap<String, Seen> {
        let mut entries = BTreeMap::new();
        loop {
            let mut reader = cpio::newc::Reader::new(archive).unwrap();
            if reader.entry().is_trailer() {
                return entries;
            }
            let mut contents = Vec::new();
            reader.read_to_end(&mut contents).unwrap();
            let entry = reader.entry();
            let read = Seen {
                mode: entry.mode(),
                device: (entry.rdev_major(), entry.rdev_minor()),
                contents,
            };
            let name = entry.name().to_owned();
            // What the kernel unpacks must have its directory already.
            if let Some((parent, _)) = name.rsplit_once('/') {
                assert!(entries.contains_key(parent), "{name} before {parent}");
            }
            assert!(entries.insert(name, read).is_none());
            archive = reader.finish().unwrap();
        }
    }

    #[test]
    fn an_entry_is_laid_out_as_the_format_says() {
        let mut archive = Archive::default();
        archive.add("ab", 0o644, Node::File(b"12345"));
        let bytes = archive.finish();
        let field = |entry: usize, index: usize| {
            let start = entry + 6 + 8 * index;
            let text = std::str::from_utf8(&bytes[start..start + 8]).unwrap();
            u32::from_str_radix(text, 16).unwrap()
        };
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(field(0, 1), 0o100_644, "mode");
        assert_eq!(field(0, 4), 1, "links");
        assert_eq!(field(0, 6), 5, "size");
        assert_eq!(field(0, 11), 3, "length of the name with its end");
        assert_eq!(field(0, 12), 0, "checksum");
        // 110 + 3 bytes, padded to 116; 5 bytes, padded to 8.
        assert_eq!(&bytes[110..124], b"ab\0\0\0\x0012345\0\0\0");
        assert_eq!(&bytes[124..130], b"070701");
        assert_eq!(field(124, 11), 11);
        assert_eq!(&bytes[124 + 110..124 + 121], b"TRAILER!!!\0");
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn an_initramfs_has_what_linux_needs() {
        let archive = build(b"this is busybox", b"#!/bin/sh\n");
        assert_eq!(archive, build(b"this is busybox", b"#!/bin/sh\n"));
        let entries = read(&archive);
        let has = |name: &str, mode: u32, device: (u32, u32), contents: &[u8]| {
            let expected = Seen {
                mode,
                device,
                contents: contents.to_vec(),
            };
            assert_eq!(entries.get(name), Some(&expected), "{name}");
        };
        has("bin/busybox", 0o100_755, (0, 0), b"this is busybox");
        has("init", 0o100_755, (0, 0), b"#!/bin/sh\n");
        has("bin/sh", 0o120_777, (0, 0), b"busybox");
        has("sbin/init", 0o120_777, (0, 0), b"../bin/busybox");
        has("dev/console", 0o020_600, (5, 1), b"");
        has("dev/null", 0o020_666, (1, 3), b"");
        has("dev/ttyS0", 0o020_600, (4, 64), b"");
        has("tmp", 0o041_777, (0, 0), b"");
        for name in ["proc", "sys", "dev", "usr/bin", "usr/sbin", "etc/passwd"] {
            assert!(entries.contains_key(name), "{name}");
        }
    }

    /// What the first program makes of a kernel command line.
    fn commands_of(command_line: &str) -> Option<String> {
        let init = crate::workspace::source_root().join("guests/linux/init");
        let mut shell = Command::new("sh");
        shell.arg(init).args(["commands-of", command_line]);
        let output = shell.output().unwrap();
        assert!(output.stderr.is_empty(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        output.status.success().then_some(text)
    }

    #[test]
    fn the_first_program_finds_its_commands() {
        for (command_line, commands) in [
            ("console=ttyS0", None),
            ("my.plinth.run=ls", None),
            ("plinth.run=ls", Some("ls")),
            ("plinth.run=ls plinth.run=ps quiet", Some("ps")),
            ("a plinth.run=uname%20-a;ls b", Some("uname -a;ls")),
            ("plinth.run=\"uname -a; ls\" b", Some("uname -a; ls")),
            ("plinth.run=\"%22a%22 %2525\"", Some("\"a\" %25")),
            ("plinth.run=a%0a%4B%4b%0A", Some("a\nKK\n")),
            ("plinth.run=100%%20%4", Some("100% %4")),
            ("plinth.run=*%5c$HOME`x`", Some("*\\$HOME`x`")),
            ("plinth.run=", Some("")),
        ] {
            assert_eq!(
                commands_of(command_line).as_deref(),
                commands,
                "{command_line}"
            );
        }
    }
}

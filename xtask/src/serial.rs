//! What comes over the serial console: bytes into lines, and lines into reports.
//!
//! Guests write here too, so a line is looked at, never trusted: at worst a guest fails its own test.

use std::sync::LazyLock;

use regex::Regex;

/// Cuts a stream of bytes into lines without terminal control sequences.
#[derive(Debug, Default)]
pub struct Lines {
    current: Vec<u8>,
    filter: Filter,
}

/// A line longer than this is cut, so that a guest cannot fill this program's memory.
const LONGEST: usize = 16 << 10;

impl Lines {
    /// Takes bytes; the lines that are complete with them.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for &byte in bytes {
            let Some(byte) = self.filter.pass(byte) else {
                continue;
            };
            match byte {
                b'\n' => lines.push(self.finish()),
                b'\r' => {}
                _ => {
                    self.current.push(byte);
                    if self.current.len() >= LONGEST {
                        lines.push(self.finish());
                    }
                }
            }
        }
        lines
    }

    /// The line that is not complete yet.
    pub fn partial(&self) -> String {
        String::from_utf8_lossy(&self.current).into_owned()
    }

    /// Ends the incomplete line.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.current)).into_owned()
    }
}

/// Drops terminal control sequences (ECMA-48: ESC, or ESC [ with parameters and a final byte) and stray control bytes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// Ordinary text.
    #[default]
    Text,
    /// Behind ESC.
    Escape,
    /// Behind ESC [.
    Sequence,
}

impl Filter {
    /// The byte, if it is text.
    pub fn pass(&mut self, byte: u8) -> Option<u8> {
        let (next, passed) = match (*self, byte) {
            (_, 0x1b) => (Self::Escape, None),
            (Self::Escape, b'[') => (Self::Sequence, None),
            (Self::Escape, _) => (Self::Text, None),
            (Self::Sequence, 0x40..=0x7e) => (Self::Text, None),
            // A sequence that is broken off by a line's end must not swallow the next line.
            (Self::Sequence, b'\n') => (Self::Text, Some(byte)),
            (Self::Sequence, _) => (Self::Sequence, None),
            (Self::Text, b'\n' | b'\r' | b'\t' | 0x20..=0x7e | 0x80..) => (Self::Text, Some(byte)),
            (Self::Text, _) => (Self::Text, None),
        };
        *self = next;
        passed
    }
}

/// What a line reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// `suite NAME: N tests`: so many results are to come.
    Suite {
        /// Who says so: a guest's name or `kernel`.
        source: String,
        /// The suite.
        name: String,
        /// How many.
        tests: usize,
    },
    /// `test NAME ... ok` or `test NAME ... FAILED: why`.
    Test {
        /// Who says so.
        source: String,
        /// The test.
        name: String,
        /// Why it failed, if it did.
        failure: Option<String>,
    },
    /// `plinth: machine ends, status N`.
    End(u32),
}

/// The source of a report that the kernel makes itself.
pub const KERNEL: &str = "kernel";

/// Prefixes: at most one of the kernel's log (`[    0.123456] INFO  cpu0 `), then at most one of a guest (`[NAME] `).
const PREFIX: &str = r"^\s*(?:\[\s*\d+\.\d+\]\s+(?:ERROR|WARN|INFO|DEBUG|TRACE)\s+(?:cpu\d+\s+)?)?(?:\[(?<source>[^\]\s]+)\]\s+)?";

fn pattern(rest: &str) -> Regex {
    #[allow(
        clippy::expect_used,
        reason = "the patterns are constants, and a unit test compiles each"
    )]
    Regex::new(&format!("{PREFIX}{rest}$")).expect("a constant pattern")
}

static SUITE: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"suite (?<name>\S+): (?<tests>\d+) tests?\s*"));
static TEST: LazyLock<Regex> = LazyLock::new(|| {
    pattern(r"test (?<name>\S.*?) \.\.\. (?:(?<ok>ok)|FAILED(?:: ?(?<why>.*))?)\s*")
});
static END: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"plinth: machine ends, status (?<status>\d+)\s*"));

/// What a line reports, if anything.
pub fn parse(line: &str) -> Option<Report> {
    if let Some(found) = TEST.captures(line) {
        let failure = match (found.name("ok"), found.name("why")) {
            (Some(_), _) => None,
            (None, why) => Some(why.map_or("", |why| why.as_str()).trim().to_owned()),
        };
        return Some(Report::Test {
            source: source(&found),
            name: found["name"].to_owned(),
            failure,
        });
    }
    if let Some(found) = SUITE.captures(line) {
        let tests = found["tests"].parse().ok()?;
        return Some(Report::Suite {
            source: source(&found),
            name: found["name"].to_owned(),
            tests,
        });
    }
    // Only the kernel can end the machine; a guest that prints the line has a prefix.
    let found = END
        .captures(line)
        .filter(|found| found.name("source").is_none())?;
    found["status"].parse().ok().map(Report::End)
}

fn source(found: &regex::Captures<'_>) -> String {
    found
        .name("source")
        .map_or(KERNEL, |source| source.as_str())
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test(source: &str, name: &str, failure: Option<&str>) -> Option<Report> {
        Some(Report::Test {
            source: source.into(),
            name: name.into(),
            failure: failure.map(str::to_owned),
        })
    }

    #[test]
    fn results_are_found_behind_prefixes() {
        assert_eq!(
            parse("test frames::zero ... ok"),
            test("kernel", "frames::zero", None)
        );
        assert_eq!(
            parse("[    0.123456] INFO  cpu0 test a ... ok"),
            test("kernel", "a", None)
        );
        assert_eq!(
            parse("[privileged] test cr4_vmxe ... ok\r"),
            test("privileged", "cr4_vmxe", None)
        );
        assert_eq!(
            parse("[   12.000001] INFO  cpu1 [hello] test b ... ok"),
            test("hello", "b", None)
        );
    }

    #[test]
    fn failures_say_why() {
        assert_eq!(
            parse("[x] test b ... FAILED: got 3, not 4"),
            test("x", "b", Some("got 3, not 4"))
        );
        assert_eq!(parse("[x] test b ... FAILED"), test("x", "b", Some("")));
    }

    #[test]
    fn other_lines_report_nothing() {
        for line in [
            "",
            "test",
            "test a ... okay",
            "latest a ... ok",
            "a test b ... ok",
            "[x] hello",
            "suite x: tests",
        ] {
            assert_eq!(parse(line), None, "{line}");
        }
    }

    #[test]
    fn suites_are_announced() {
        let suite = |source: &str, tests| {
            Some(Report::Suite {
                source: source.into(),
                name: "regs".into(),
                tests,
            })
        };
        assert_eq!(
            parse("[privileged] suite regs: 12 tests"),
            suite("privileged", 12)
        );
        assert_eq!(parse("suite regs: 1 test"), suite("kernel", 1));
    }

    #[test]
    fn only_the_kernel_ends_the_machine() {
        assert_eq!(
            parse("plinth: machine ends, status 0"),
            Some(Report::End(0))
        );
        assert_eq!(
            parse("[    1.500000] INFO  cpu0 plinth: machine ends, status 101"),
            Some(Report::End(101))
        );
        assert_eq!(parse("[evil] plinth: machine ends, status 0"), None);
        assert_eq!(parse("plinth: machine ends, status x"), None);
    }

    #[test]
    fn bytes_become_lines() {
        let mut lines = Lines::default();
        assert!(lines.push(b"one").is_empty());
        assert_eq!(lines.partial(), "one");
        assert_eq!(lines.push(b"\r\ntwo\nthr"), ["one", "two"]);
        assert_eq!(lines.push(b"ee"), Vec::<String>::new());
        assert_eq!(lines.finish(), "three");
    }

    #[test]
    fn terminal_sequences_are_dropped_even_in_pieces() {
        let mut lines = Lines::default();
        assert!(lines.push(b"\x1b[2J\x1b[01;").is_empty());
        assert_eq!(lines.push(b"01Ha\x1b=b\x1b[0m\x07c\n"), ["abc"]);
        assert_eq!(lines.push(b"x\x1b[12\ny\n"), ["x", "y"]);
    }

    #[test]
    fn endless_lines_are_cut() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(&vec![b'x'; 2 * LONGEST + 1]).len(), 2);
        assert_eq!(lines.partial(), "x");
    }
}

//! What comes over the serial console: bytes into lines, and lines into reports.
//!
//! Guests write here too, so a line is looked at, never trusted: at worst a guest fails its own test.

use std::sync::LazyLock;

use regex::Regex;

/// Cuts a stream of bytes into lines as a terminal would show them: a line editor goes back, erases, and writes anew.
#[derive(Debug, Default)]
pub struct Lines {
    current: Vec<u8>,
    /// Where the next byte goes: within the line, or at its end.
    column: usize,
    filter: Filter,
}

/// A line longer than this is cut, so that a guest cannot fill this program's memory.
const LONGEST: usize = 16 << 10;

impl Lines {
    /// Takes bytes; the lines that are complete with them.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        bytes
            .iter()
            .filter_map(|&byte| self.push_byte(byte))
            .collect()
    }

    /// Takes a byte; the line that is complete with it.
    pub fn push_byte(&mut self, byte: u8) -> Option<String> {
        match self.filter.take(byte)? {
            Piece::Text(b'\n') => return Some(self.finish()),
            Piece::Text(b'\r') => self.column = 0,
            Piece::Text(byte) => {
                match self.current.get_mut(self.column) {
                    Some(place) => *place = byte,
                    None => self.current.push(byte),
                }
                self.column += 1;
                if self.column >= LONGEST {
                    return Some(self.finish());
                }
            }
            Piece::Control(control, parameter) => self.obey(control, parameter),
        }
        None
    }

    /// Does what the control sequences of a line editor ask for (ECMA-48 8.3: CUB, CUF, CHA, EL, and ED, which is EL as far as
    /// one line goes). Beyond the line's end there is nothing to go to.
    fn obey(&mut self, control: u8, parameter: usize) {
        let end = self.current.len();
        match control {
            b'D' => self.column = self.column.saturating_sub(parameter.max(1)),
            b'C' => self.column = self.column.saturating_add(parameter.max(1)).min(end),
            b'G' => self.column = parameter.saturating_sub(1).min(end),
            b'K' | b'J' if parameter == 0 => self.current.truncate(self.column),
            b'K' if parameter == 2 => drop(self.finish()),
            _ => {}
        }
    }

    /// The line that is not complete yet.
    pub fn partial(&self) -> &[u8] {
        &self.current
    }

    /// Ends the incomplete line.
    pub fn finish(&mut self) -> String {
        self.column = 0;
        String::from_utf8_lossy(&std::mem::take(&mut self.current)).into_owned()
    }
}

/// Tells text from terminal control sequences (ECMA-48: ESC, or ESC [ with parameters and a final byte), and drops stray control
/// bytes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// Ordinary text.
    #[default]
    Text,
    /// Behind ESC.
    Escape,
    /// Behind ESC [, with the last parameter as far as it has come.
    Sequence(usize),
}

/// A piece of what comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    /// A byte of text, line ends and tabs included.
    Text(u8),
    /// A control sequence: its final byte and its last parameter, 0 if it has none.
    Control(u8, usize),
}

impl Filter {
    /// The byte, if it is text.
    pub fn pass(&mut self, byte: u8) -> Option<u8> {
        match self.take(byte)? {
            Piece::Text(byte) => Some(byte),
            Piece::Control(..) => None,
        }
    }

    /// What is complete with this byte.
    fn take(&mut self, byte: u8) -> Option<Piece> {
        let (next, piece) = match (*self, byte) {
            (_, 0x1b) => (Self::Escape, None),
            (Self::Escape, b'[') => (Self::Sequence(0), None),
            (Self::Escape, _) => (Self::Text, None),
            (Self::Sequence(number), 0x40..=0x7e) => {
                (Self::Text, Some(Piece::Control(byte, number)))
            }
            // A sequence that is broken off by a line's end must not swallow the next line.
            (Self::Sequence(_), b'\n') => (Self::Text, Some(Piece::Text(byte))),
            (Self::Sequence(number), b'0'..=b'9') => {
                let digit = usize::from(byte - b'0');
                let number = number.saturating_mul(10).saturating_add(digit);
                (Self::Sequence(number), None)
            }
            (Self::Sequence(_), _) => (Self::Sequence(0), None),
            // Backspace only moves.
            (Self::Text, 0x08) => (Self::Text, Some(Piece::Control(b'D', 1))),
            (Self::Text, b'\n' | b'\r' | b'\t' | 0x20..=0x7e | 0x80..) => {
                (Self::Text, Some(Piece::Text(byte)))
            }
            (Self::Text, _) => (Self::Text, None),
        };
        *self = next;
        piece
    }
}

/// What a line reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// `suite NAME: N tests`: so many results are to come.
    Suite {
        /// The guest that says so, by its prefix.
        source: Option<String>,
        /// The suite.
        name: String,
        /// How many.
        tests: usize,
    },
    /// `test NAME ... ok` or `test NAME ... FAILED: why`.
    Test {
        /// The guest that says so, by its prefix.
        source: Option<String>,
        /// The test.
        name: String,
        /// Why it failed, if it did.
        failure: Option<String>,
    },
    /// `plinth: machine ends, status N`.
    End(u32),
}

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
    // Only the kernel can end the machine; a guest's line has a prefix, except that of the first domain, which may end it.
    let found = END
        .captures(line)
        .filter(|found| found.name("source").is_none())?;
    found["status"].parse().ok().map(Report::End)
}

fn source(found: &regex::Captures<'_>) -> Option<String> {
    found
        .name("source")
        .map(|source| source.as_str().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test(source: &str, name: &str, failure: Option<&str>) -> Option<Report> {
        Some(Report::Test {
            source: Some(source.to_owned()).filter(|source| !source.is_empty()),
            name: name.into(),
            failure: failure.map(str::to_owned),
        })
    }

    #[test]
    fn results_are_found_behind_prefixes() {
        assert_eq!(
            parse("test frames::zero ... ok"),
            test("", "frames::zero", None)
        );
        assert_eq!(
            parse("[    0.123456] INFO  cpu0 test a ... ok"),
            test("", "a", None)
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
                source: Some(source.to_owned()).filter(|source| !source.is_empty()),
                name: "regs".into(),
                tests,
            })
        };
        assert_eq!(
            parse("[privileged] suite regs: 12 tests"),
            suite("privileged", 12)
        );
        assert_eq!(parse("suite regs: 1 test"), suite("", 1));
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
        assert_eq!(lines.partial(), b"one");
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
    fn lines_are_as_a_terminal_shows_them() {
        let shown = |bytes: &[u8]| Lines::default().push(bytes);
        // A line editor: type, notice above the line, the line anew, a correction within it.
        assert_eq!(
            shown(b"> ki\r\x1b[Khello ended\r\n> ki\x08\x08li\x1b[2D\x1b[0Kkill\r\n"),
            ["hello ended", "> kill"]
        );
        assert_eq!(shown(b"\r> \r\x1b[K> l\r\x1b[K> ls\x1b[1Gx\n"), ["x ls"]);
        assert_eq!(shown(b"abc\r\x1b[Kd\n"), ["d"]);
        assert_eq!(shown(b"abc\x1b[2D\x1b[J\n"), ["a"]);
        assert_eq!(shown(b"abc\x1b[2K\rd\n"), ["d"]);
        assert_eq!(shown(b"abc\rd\n"), ["dbc"]);
        assert_eq!(
            shown(b"abc\x1b[9D\x1b[2CC\x1b[99999999999999999999Cd\n"),
            ["abCd"]
        );
    }

    #[test]
    fn endless_lines_are_cut() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(&vec![b'x'; 2 * LONGEST + 1]).len(), 2);
        assert_eq!(lines.partial(), b"x");
    }
}

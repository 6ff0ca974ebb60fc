//! Numbers in units for people, and aligned tables.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];

/// A number of bytes in the largest unit that leaves three digits to see: exact, or of at least ten with one decimal.
pub fn size(bytes: u64) -> String {
    let (mut unit, mut scale) = ("B", 1u64);
    for larger in UNITS.into_iter().skip(1) {
        let next = scale * 1024;
        if bytes / next < if bytes.is_multiple_of(next) { 1 } else { 10 } {
            break;
        }
        unit = larger;
        scale = next;
    }
    if bytes.is_multiple_of(scale) {
        return format!("{} {unit}", bytes / scale);
    }
    // Of the rest, which is less than `scale` (at most 2^40), ten times fits.
    format!("{}.{} {unit}", bytes / scale, bytes % scale * 10 / scale)
}

/// A number of 4 KiB frames, as bytes.
pub fn frames(count: u64) -> String {
    size(count.saturating_mul(4096))
}

/// A length of time in nanoseconds.
pub fn time(ns: u64) -> String {
    const SECOND: u64 = 1_000_000_000;
    let seconds = ns / SECOND;
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{} us", ns / 1_000),
        1_000_000..SECOND => format!("{} ms", ns / 1_000_000),
        _ => match seconds {
            0..60 => format!("{seconds}.{:03} s", ns % SECOND / 1_000_000),
            60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
            3600..86400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
            _ => format!("{} d {} h", seconds / 86400, seconds % 86400 / 3600),
        },
    }
}

/// A time stamp in the kernel log's manner: seconds and microseconds.
pub fn stamp(ns: u64) -> String {
    format!("{:>5}.{:06}", ns / 1_000_000_000, ns % 1_000_000_000 / 1000)
}

/// A part of a whole in percent, with one decimal; 0 of nothing.
pub fn percent(part: u64, whole: u64) -> String {
    let permille = u128::from(part) * 1000 / u128::from(whole.max(1));
    format!("{}.{}", permille / 10, permille % 10)
}

/// `1 domain`, `2 domains`.
pub fn counted(count: usize, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}

/// Names as a sentence lists them; `none` where there are none.
pub fn listed<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> String {
    let mut text = String::new();
    for name in names {
        if !text.is_empty() {
            text.push_str(", ");
        }
        text.push_str(name.as_ref());
    }
    if text.is_empty() {
        text.push_str("none");
    }
    text
}

/// Text cut to so many characters, with `~` where something is missing.
pub fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(width.saturating_sub(1)).collect();
    short.push('~');
    short
}

/// Words in columns, as many as fit a line of the screen.
pub fn columns<S: AsRef<str>>(words: &[S]) -> Vec<String> {
    const SCREEN: usize = 79;
    let longest = words.iter().map(|word| word.as_ref().len()).max();
    let width = longest.unwrap_or(0) + 2;
    words
        .chunks((SCREEN / width).max(1))
        .map(|row| {
            let mut line: String = row
                .iter()
                .map(|word| format!("{:<width$}", word.as_ref()))
                .collect();
            line.truncate(line.trim_end().len());
            line
        })
        .collect()
}

/// A table whose columns are as wide as their widest cell.
#[derive(Debug)]
pub struct Table {
    /// Whether each column is of numbers, which stand to the right.
    numbers: Vec<bool>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings. One that begins with `>` is that of a column of numbers.
    pub fn new(headings: &[&str]) -> Self {
        let numbers = headings
            .iter()
            .map(|heading| heading.starts_with('>'))
            .collect();
        let heading = headings
            .iter()
            .map(|heading| heading.trim_start_matches('>').to_owned())
            .collect();
        Self {
            numbers,
            rows: alloc::vec![heading],
        }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The lines, headings first, without line ends.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.numbers.len()).map(width).collect();
        self.rows.iter().map(move |row| {
            let mut line = String::new();
            for ((cell, &width), &number) in row.iter().zip(&widths).zip(&self.numbers) {
                if !line.is_empty() {
                    line.push_str("  ");
                }
                if number {
                    line += &format!("{cell:>width$}");
                } else {
                    line += &format!("{cell:<width$}");
                }
            }
            line.truncate(line.trim_end().len());
            line
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (4096, "4 KiB"),
            (1536, "1536 B"),
            (12_800, "12.5 KiB"),
            (4 << 20, "4 MiB"),
            ((4 << 20) + 4096, "4100 KiB"),
            ((64 << 20) + 4096, "64.0 MiB"),
            (3 << 29, "1536 MiB"),
            (5000 << 40, "5000 TiB"),
            (u64::MAX, "16777215.9 TiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(frames(512), "2 MiB");
    }

    #[test]
    fn times_have_units() {
        for (ns, text) in [
            (0, "0 ns"),
            (999, "999 ns"),
            (1_000, "1 us"),
            (24_900_000, "24 ms"),
            (1_234_567_890, "1.234 s"),
            (61_000_000_000, "1 min 1 s"),
            (3_600_000_000_000, "1 h 0 min"),
            (90_000_000_000_000, "1 d 1 h"),
        ] {
            assert_eq!(time(ns), text);
        }
        assert_eq!(stamp(12_000_345_678), "   12.000345");
    }

    #[test]
    fn percentages_are_exact_to_one_decimal() {
        assert_eq!(percent(1, 3), "33.3");
        assert_eq!(percent(5, 0), "500.0");
        assert_eq!(percent(u64::MAX, u64::MAX), "100.0");
    }

    #[test]
    fn lists_and_counts_are_sentences() {
        assert_eq!(counted(1, "domain"), "1 domain");
        assert_eq!(counted(0, "domain"), "0 domains");
        assert_eq!(listed(["a", "b"]), "a, b");
        assert_eq!(listed::<&str>([]), "none");
        assert_eq!(cut("privileged", 10), "privileged");
        assert_eq!(cut("privileged", 4), "pri~");
    }

    #[test]
    fn words_stand_in_columns() {
        let words: Vec<_> = (0..25).map(|number| format!("word-{number}")).collect();
        let lines = columns(&words);
        assert_eq!(lines.len(), 4);
        assert!(
            lines[0].starts_with("word-0   word-1   ") && lines.iter().all(|line| line.len() < 80)
        );
        assert_eq!(columns(&["x".repeat(100)]), ["x".repeat(100)]);
        assert!(columns::<&str>(&[]).is_empty());
    }

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&["NAME", ">MEMORY", "STATE"]);
        table.row(["a".into(), "4 MiB".into(), "running".into()]);
        table.row(["longer".into(), "512 MiB".into(), "ended".into()]);
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(
            lines,
            [
                "NAME     MEMORY  STATE",
                "a         4 MiB  running",
                "longer  512 MiB  ended"
            ]
        );
    }
}

//! The figures that were measured when somebody last looked and was content: `bench/MACHINE.json`, medians only. What costs more
//! than there fails.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::{Map, Value};

use super::figures::{Figure, growth, pretty};
use crate::machine::Kind;

/// A figure may differ from the baseline by so many %.
const TOLERANCE: u64 = 5;
/// Measured and told, but not compared. Writing CR4 was seen at 1,447 and at 15,323 ticks on QEMU with the same kernel: when the guest
/// was built with its operations in another order.
const NOT_COMPARED: [&str; 1] = ["mov_to_cr4"];

/// Medians by name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Baseline(BTreeMap<String, u64>);

/// A figure beside the one of the baseline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compared {
    /// The operation.
    pub name: String,
    /// The baseline's median, if it has the operation.
    pub was: Option<u64>,
    /// The median, if the operation was measured.
    pub is: Option<u64>,
}

impl Baseline {
    /// The file of a machine's baseline.
    pub fn path(root: &Path, kind: Kind) -> PathBuf {
        root.join("bench").join(format!("{kind}.json"))
    }

    /// What is to be the baseline from now on.
    pub fn new(figures: &[Figure]) -> Self {
        let compared = figures
            .iter()
            .filter(|figure| !NOT_COMPARED.contains(&figure.name.as_str()));
        Self(
            compared
                .map(|figure| (figure.name.clone(), figure.median))
                .collect(),
        )
    }

    /// Reads the file.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path).with_context(|| {
            format!(
                "there is no baseline {}\n  try: cargo xtask bench --save",
                path.display()
            )
        })?;
        Self::parse(&text).with_context(|| {
            format!(
                "{} is no baseline\n  try: cargo xtask bench --save",
                path.display()
            )
        })
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let json: Map<String, Value> = serde_json::from_str(text)?;
        let median = |(name, value): (String, Value)| {
            let median = value
                .as_u64()
                .with_context(|| format!("{name} is no whole number"))?;
            Ok((name, median))
        };
        json.into_iter()
            .map(median)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Writes the file, and its directory if need be.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        write(path, &self.to_json()?)
    }

    fn to_json(&self) -> anyhow::Result<String> {
        let medians = self.0.iter();
        let json: Map<_, _> = medians
            .map(|(name, median)| (name.clone(), Value::from(*median)))
            .collect();
        pretty(&Value::Object(json))
    }

    /// The operations that it has.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// The operations that are measured, each once: those that it has, without numbers of bytes, and those that are not compared.
    pub fn operations(&self) -> Vec<&str> {
        let names = self.names().chain(NOT_COMPARED);
        names
            .filter(|name| growth(name).is_none() && !name.contains("bytes"))
            .collect()
    }

    /// Compares what was measured: a line for each operation that is here or there, sorted by name.
    pub fn compare(&self, figures: &[Figure]) -> Vec<Compared> {
        let now = Self::new(figures).0;
        let names: BTreeSet<_> = self.0.keys().chain(now.keys()).collect();
        let compared = |name: &String| Compared {
            name: name.clone(),
            was: self.0.get(name).copied(),
            is: now.get(name).copied(),
        };
        names.into_iter().map(compared).collect()
    }
}

impl Compared {
    /// Why that is not as it should be: it costs more, or is not on both sides.
    pub fn failure(&self) -> Option<String> {
        match (self.was, self.is) {
            (Some(was), Some(is)) if exceeds(is, was) => Some(change(was, is)),
            (Some(was), None) => Some(format!("not measured any more, was {was}")),
            (None, Some(is)) => Some(format!("{is}, and not in the baseline")),
            _ => None,
        }
    }

    /// By how much it costs less, where that is worth a new baseline.
    pub fn gain(&self) -> Option<String> {
        match (self.was, self.is) {
            (Some(was), Some(is)) if exceeds(was, is) => Some(change(was, is)),
            _ => None,
        }
    }
}

/// Whether one is above the other by more than is tolerated.
fn exceeds(one: u64, other: u64) -> bool {
    u128::from(one) * 100 > u128::from(other) * u128::from(100 + TOLERANCE)
}

/// Such as `150, was 120: +25 %`.
fn change(was: u64, is: u64) -> String {
    let difference = i128::from(is) - i128::from(was);
    match i128::from(was) {
        0 => format!("{is}, was 0"),
        // A sign always; tenths, for the smallest that is told is just above 5 %.
        was => {
            let tenths = difference * 1000 / was;
            let sign = if tenths < 0 { '-' } else { '+' };
            let (whole, tenth) = (tenths.abs() / 10, tenths.abs() % 10);
            let tenth = match tenth {
                0 => String::new(),
                tenth => format!(".{tenth}"),
            };
            format!("{is}, was {was}: {sign}{whole}{tenth} %")
        }
    }
}

/// Tells what is worse; whether all is as it should be.
pub fn tell(out: &mut impl Write, compared: &[Compared], path: &Path) -> io::Result<bool> {
    let failures: Vec<_> = lines(compared, Compared::failure);
    let path = path.display();
    if !failures.is_empty() {
        writeln!(out, "worse than {path}, or not in both:")?;
        for (name, why) in &failures {
            writeln!(out, "  {name:<26} {why}")?;
        }
        writeln!(out, "  if it has to be: cargo xtask bench --save")?;
    }
    if failures.is_empty() {
        writeln!(
            out,
            "none of {} figures is more than {TOLERANCE} % above {path}",
            compared.len()
        )?;
    }
    Ok(failures.is_empty())
}

/// Tells what costs less, which the baseline should say; nothing where nothing does.
pub fn tell_gains(out: &mut impl Write, compared: &[Compared], path: &Path) -> io::Result<()> {
    let gains: Vec<_> = lines(compared, Compared::gain);
    if gains.is_empty() {
        return Ok(());
    }
    writeln!(out, "better than {}:", path.display())?;
    for (name, gain) in &gains {
        writeln!(out, "  {name:<26} {gain}")?;
    }
    writeln!(out, "  to keep it so: cargo xtask bench --save")
}

fn lines(compared: &[Compared], what: impl Fn(&Compared) -> Option<String>) -> Vec<(&str, String)> {
    compared
        .iter()
        .filter_map(|one| Some((one.name.as_str(), what(one)?)))
        .collect()
}

/// Writes a file, and its directory if need be.
pub fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn baseline(medians: &[(&str, u64)]) -> Baseline {
        let figures: Vec<_> = medians
            .iter()
            .map(|&(name, median)| Figure::exact(name, median))
            .collect();
        Baseline::new(&figures)
    }

    fn compared(was: &[(&str, u64)], is: &[(&str, u64)]) -> Vec<Compared> {
        let figures: Vec<_> = is
            .iter()
            .map(|&(name, median)| Figure::exact(name, median))
            .collect();
        baseline(was).compare(&figures)
    }

    #[test]
    fn a_baseline_is_read_as_it_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = Baseline::path(directory.path(), Kind::BochsVmx);
        assert!(path.ends_with("bench/bochs-vmx.json"));
        assert!(Baseline::read(&path).is_err());
        let saved = baseline(&[("b", 2), ("a", 1)]);
        saved.write(&path).unwrap();
        assert_eq!(Baseline::read(&path).unwrap(), saved);
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "{\n  \"a\": 1,\n  \"b\": 2\n}\n"
        );
        assert_eq!(saved.names().collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn what_is_no_baseline_is_refused() {
        for text in ["", "[]", r#"{"a": "1"}"#, r#"{"a": -1}"#, r#"{"a": 1.5}"#] {
            assert!(Baseline::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn growth_beyond_the_tolerance_fails() {
        let failure = |was, is| compared(&[("a", was)], &[("a", is)])[0].failure();
        assert_eq!(failure(120, 126), None);
        assert_eq!(failure(120, 100), None);
        assert_eq!(failure(120, 127), Some("127, was 120: +5.8 %".to_owned()));
        assert_eq!(failure(120, 150), Some("150, was 120: +25 %".to_owned()));
        assert_eq!(failure(0, 0), None);
        assert_eq!(failure(0, 1), Some("1, was 0".to_owned()));
        assert!(failure(1, u64::MAX).is_some());
    }

    #[test]
    fn what_is_missing_or_new_fails() {
        let both = compared(&[("a", 1), ("b", 2)], &[("b", 2), ("c", 3)]);
        let failures: Vec<_> = both.iter().map(Compared::failure).collect();
        assert_eq!(
            failures,
            [
                Some("not measured any more, was 1".to_owned()),
                None,
                Some("3, and not in the baseline".to_owned())
            ]
        );
    }

    #[test]
    fn what_is_not_compared_is_neither_missing_nor_new() {
        assert_eq!(compared(&[], &[("mov_to_cr4", 1)]), []);
        assert_eq!(baseline(&[("mov_to_cr4", 1)]), Baseline::default());
    }

    #[test]
    fn a_gain_is_told_with_a_hint() {
        let all = compared(&[("a", 120), ("b", 100)], &[("a", 90), ("b", 96)]);
        let mut out = Vec::new();
        tell_gains(&mut out, &all, Path::new("x.json")).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("90, was 120: -25 %"), "{text}");
        assert!(text.contains("--save") && !text.contains("  b "), "{text}");
        let mut out = Vec::new();
        tell_gains(&mut out, &all[1..], Path::new("x.json")).unwrap();
        assert!(out.is_empty());
        assert!(tell(&mut out, &all, Path::new("x.json")).unwrap());
    }

    #[test]
    fn what_grew_is_told() {
        let all = compared(&[("a", 120), ("b", 100)], &[("a", 150), ("b", 100)]);
        let mut out = Vec::new();
        assert!(!tell(&mut out, &all, Path::new("x.json")).unwrap());
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("150, was 120: +25 %"), "{text}");
        assert!(!text.contains("none of"), "{text}");
    }
}

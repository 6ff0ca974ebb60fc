//! What was measured: read from the guests' lines, printed as a table, written as JSON.

use std::io::Write;

use anyhow::Context;
use serde_json::{Map, Value, json};

/// How many other domains there were when a figure was measured is behind this, at the end of its name.
const AT: &str = "_at_";

/// What an operation costs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figure {
    /// The operation, as kvm-unit-tests' `vmexit` calls it where it has it.
    pub name: String,
    /// Of all runs.
    pub median: u64,
    /// Of all runs.
    pub least: u64,
    /// Of all runs.
    pub most: u64,
}

impl Figure {
    /// One that was counted, not measured again and again.
    pub fn exact(name: impl Into<String>, value: u64) -> Self {
        Self {
            name: name.into(),
            median: value,
            least: value,
            most: value,
        }
    }

    /// The figure in a line such as `bench cpuid: 170 (168 to 410)`, behind the guest's name where others speak, too.
    pub fn parse(line: &str) -> Option<Self> {
        let line = ["[bench] ", "[pcbench] "]
            .iter()
            .find_map(|speaker| line.strip_prefix(speaker))
            .unwrap_or(line);
        let (name, rest) = line.strip_prefix("bench ")?.split_once(": ")?;
        let (median, range) = rest.split_once(" (")?;
        let (least, most) = range.strip_suffix(')')?.split_once(" to ")?;
        Some(Self {
            name: name.to_owned(),
            median: median.parse().ok()?,
            least: least.parse().ok()?,
            most: most.parse().ok()?,
        })
    }

    /// The operation, and how many other domains there were, for one that was measured beside several numbers of them.
    pub fn growth(&self) -> Option<(&str, u32)> {
        growth(&self.name)
    }
}

/// As [`Figure::growth`], for a name alone.
pub fn growth(name: &str) -> Option<(&str, u32)> {
    let (operation, others) = name.rsplit_once(AT)?;
    Some((operation, others.parse().ok()?))
}

/// Prints the figures.
pub fn table(out: &mut impl Write, figures: &[Figure]) -> std::io::Result<()> {
    writeln!(out, "{:<26} {:>9}  least to most", "operation", "median")?;
    for Figure {
        name,
        median,
        least,
        most,
    } in figures
    {
        writeln!(out, "{name:<26} {median:>9}  {least} to {most}")?;
    }
    Ok(())
}

/// The figures of a machine as JSON, sorted by name: the same figures are the same bytes.
pub fn to_json(machine: &str, figures: &[Figure]) -> anyhow::Result<String> {
    let figures: Map<_, _> = figures
        .iter()
        .map(|figure| {
            let Figure {
                name,
                median,
                least,
                most,
            } = figure;
            let value = json!({ "median": median, "least": least, "most": most });
            (name.clone(), value)
        })
        .collect();
    pretty(&json!({ "machine": machine, "figures": figures }))
}

/// JSON as people read it, with a line's end.
pub fn pretty(value: &Value) -> anyhow::Result<String> {
    let text = serde_json::to_string_pretty(value).context("cannot write the figures as JSON")?;
    Ok(text + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_the_guests_lines() {
        for line in [
            "bench cpuid: 170 (168 to 410)",
            "[bench] bench cpuid: 170 (168 to 410)",
            "[pcbench] bench cpuid: 170 (168 to 410)",
        ] {
            assert_eq!(
                Figure::parse(line),
                Some(Figure {
                    name: "cpuid".to_owned(),
                    median: 170,
                    least: 168,
                    most: 410,
                })
            );
        }
        for other in [
            "[hello] bench cpuid: 170 (1 to 2)",
            "[bench] bench cpuid",
            "[bench] bench cpuid: many (1 to 2)",
            "[bench] bench cpuid: 170 (1 to)",
        ] {
            assert_eq!(Figure::parse(other), None, "{other}");
        }
    }

    #[test]
    fn a_name_tells_the_number_of_other_domains() {
        let growth = |name: &str| {
            let figure = Figure::exact(name, 1);
            figure
                .growth()
                .map(|(operation, others)| (operation.to_owned(), others))
        };
        assert_eq!(
            growth("world_switch_at_100"),
            Some(("world_switch".to_owned(), 100))
        );
        assert_eq!(growth("loop_of_1000"), None);
        assert_eq!(growth("look_at_this"), None);
    }

    #[test]
    fn json_does_not_depend_on_the_order_of_measuring() {
        let (a, b) = (Figure::exact("a", 1), Figure::exact("b", 2));
        let text = to_json("qemu-svm", &[b.clone(), a.clone()]).unwrap();
        assert_eq!(text, to_json("qemu-svm", &[a, b]).unwrap());
        let json: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["machine"], "qemu-svm");
        assert_eq!(
            json["figures"]["b"],
            json!({ "median": 2, "least": 2, "most": 2 })
        );
        assert!(text.ends_with("}\n"), "{text:?}");
    }

    #[test]
    fn the_table_has_a_line_for_each() {
        let mut out = Vec::new();
        table(&mut out, &[Figure::exact("cpuid", 170)]).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "operation                     median  least to most\n\
             cpuid                            170  170 to 170\n"
        );
    }
}

//! A picture of how costs grow with the number of domains, as SVG. Both axes are logarithmic.

use std::collections::BTreeMap;
use std::fmt::Display;

use anyhow::Context;
use plotters::prelude::*;

use super::figures::Figure;

/// The picture's size.
const SIZE: (u32, u32) = (900, 520);
const FONT: &str = "sans-serif";
const FONT_SIZE: u32 = 14;
/// Room on the right for the operations' names.
const NAMES: u32 = 150;
/// The least distance between two names.
const LINE: i32 = 17;

/// Medians by the number of other domains.
type Series<'a> = BTreeMap<&'a str, BTreeMap<u32, u64>>;

/// The picture; none where no operation was measured beside several numbers of domains.
pub fn svg(machine: &str, figures: &[Figure]) -> anyhow::Result<Option<String>> {
    let mut series = Series::new();
    for figure in figures {
        if let Some((operation, others)) = figure.growth() {
            // A logarithm has no zero.
            let medians = series.entry(operation).or_default();
            medians.insert(others.max(1), figure.median.max(1));
        }
    }
    let most = series.values().filter_map(|medians| medians.keys().max());
    let Some(most) = most.max().filter(|most| **most > 1) else {
        return Ok(None);
    };
    let mut text = String::new();
    draw(&mut text, machine, &series, *most)
        .map_err(anyhow::Error::msg)
        .context("cannot draw the figures")?;
    Ok(Some(text))
}

fn draw(text: &mut String, machine: &str, series: &Series<'_>, most: u32) -> Result<(), String> {
    fn told(error: impl Display) -> String {
        error.to_string()
    }
    let medians = || series.values().flat_map(BTreeMap::values).copied();
    // Whole powers of ten around all of them.
    let bottom = 10_u64.pow(medians().min().unwrap_or(1).ilog10());
    let top = 10_u64.saturating_pow(medians().max().unwrap_or(1).ilog10() + 1);
    let root = SVGBackend::with_string(text, SIZE).into_drawing_area();
    root.fill(&WHITE).map_err(told)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(
            format!("Costs by the number of other domains, {machine}"),
            (FONT, FONT_SIZE + 4),
        )
        .margin(12)
        .margin_right(NAMES)
        .x_label_area_size(44)
        .y_label_area_size(88)
        .build_cartesian_2d((1..most).log_scale(), (bottom..top).log_scale())
        .map_err(told)?;
    chart
        .configure_mesh()
        .x_desc("other domains, waiting")
        .y_desc("ticks of the TSC, median")
        .label_style((FONT, FONT_SIZE))
        .light_line_style(WHITE)
        .draw()
        .map_err(told)?;
    // Where each line ends, from top to bottom.
    let mut ends = Vec::new();
    for (index, (operation, medians)) in series.iter().enumerate() {
        let colour = Palette99::pick(index).to_rgba();
        let points = medians.iter().map(|(&others, &median)| (others, median));
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)).point_size(3))
            .map_err(told)?;
        if let Some((&others, &median)) = medians.last_key_value() {
            let (x, y) = chart.backend_coord(&(others, median));
            ends.push((y, x, *operation, colour));
        }
    }
    ends.sort_by_key(|&(y, ..)| y);
    let mut free = 0;
    for (y, x, operation, colour) in ends {
        let y = (y - LINE / 2).max(free);
        free = y + LINE;
        let style = (FONT, FONT_SIZE).into_font().color(&colour);
        root.draw(&Text::new(operation.to_owned(), (x + 10, y), style))
            .map_err(told)?;
    }
    root.present().map_err(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_operation_has_a_line_and_its_name() {
        let figures: Vec<_> = [1, 10, 100, 1000]
            .into_iter()
            .flat_map(|others| {
                [("vmcall", 120), ("create_destroy", 200_000)].map(|(operation, median)| {
                    Figure::exact(format!("{operation}_at_{others}"), median + others)
                })
            })
            .collect();
        let text = svg("qemu-svm", &figures).unwrap().unwrap();
        assert!(text.starts_with("<svg") && text.trim_end().ends_with("</svg>"));
        let has = |what: &str| text.lines().any(|line| line.trim() == what);
        assert!(has("vmcall") && has("create_destroy"), "{text}");
        assert!(has("1000") && has("1000000"), "{text}");
        let lines = text
            .lines()
            .filter(|line| line.starts_with("<polyline") && line.contains("stroke-width=\"2\""));
        assert_eq!(lines.count(), 2, "{text}");
        assert_eq!(text, svg("qemu-svm", &figures).unwrap().unwrap());
    }

    #[test]
    fn names_do_not_cover_each_other() {
        let figures = ["a", "b", "c"].map(|operation| {
            [1, 10].map(|others| Figure::exact(format!("{operation}_at_{others}"), 100))
        });
        let text = svg("qemu-svm", &figures.concat()).unwrap().unwrap();
        let heights: Vec<i32> = ["a", "b", "c"]
            .into_iter()
            .map(|name| {
                let (before, _) = text.split_once(&format!("\n{name}\n")).unwrap();
                let tag = before.rsplit_once("<text").unwrap().1;
                let rest = tag.split_once(" y=\"").unwrap().1;
                rest.split_once('"').unwrap().0.parse().unwrap()
            })
            .collect();
        assert!(
            heights.is_sorted_by(|one, next| next - one >= LINE),
            "{heights:?}"
        );
    }

    #[test]
    fn without_growth_there_is_no_picture() {
        let figures = [
            Figure::exact("cpuid", 170),
            Figure::exact("cpuid_at_1", 170),
        ];
        assert_eq!(svg("qemu-svm", &figures).unwrap(), None);
    }
}

//! A stacked bar chart, laid out here and drawn as inline SVG: no script, sharp on any screen.

use super::format;
use crate::usage::period::Group;
use crate::usage::queries::{Point, Series};
use time::OffsetDateTime;
use time::macros::format_description;

const WIDTH: u32 = 960;
const HEIGHT: u32 = 260;
const LEFT: u32 = 56;
const TOP: u32 = 12;
const BOTTOM: u32 = 26;
const GRID_LINES: i64 = 4;
/// Labels under the axis, at most.
const LABELS: usize = 8;

/// Coordinates are in the SVG's own units.
pub struct Chart {
    pub label: String,
    pub width: u32,
    pub height: u32,
    pub left: u32,
    pub top: u32,
    pub plot_height: u32,
    pub grid: Vec<GridLine>,
    pub columns: Vec<Column>,
}

pub struct GridLine {
    pub y: u32,
    pub label: String,
}

pub struct Column {
    /// The hour or day, and its numbers, shown on hover.
    pub title: String,
    pub label: Option<String>,
    pub middle: f64,
    pub slot_x: f64,
    pub slot_width: f64,
    pub x: f64,
    pub width: f64,
    pub bars: Vec<Bar>,
}

pub struct Bar {
    pub class: &'static str,
    pub y: f64,
    pub height: f64,
}

/// Prompt tokens below, completion tokens on top of them.
pub fn tokens(series: &Series) -> Chart {
    let tokens = |point: &Point| point.sums.prompt_tokens + point.sums.completion_tokens;
    let top_value = nice_ceiling(series.series.iter().map(tokens).max().unwrap_or(0));
    let plot_height = HEIGHT - TOP - BOTTOM;
    let y = |value: i64| f64::from(plot_height) * value as f64 / top_value as f64;
    let grid = (0..=GRID_LINES)
        .map(|i| {
            let value = top_value * i / GRID_LINES;
            GridLine { y: TOP + plot_height - y(value) as u32, label: format::short_count(value) }
        })
        .collect();
    let slot_width = f64::from(WIDTH - LEFT) / series.series.len().max(1) as f64;
    let width = (slot_width * 0.7).clamp(1.0, 34.0);
    let every = series.series.len().div_ceil(LABELS).max(1);
    let columns = series.series.iter().enumerate().map(|(i, point)| {
        let slot_x = f64::from(LEFT) + slot_width * i as f64;
        let base = f64::from(TOP + plot_height);
        let (prompt, completion) = (y(point.sums.prompt_tokens), y(point.sums.completion_tokens));
        Column {
            title: title(point, series.group),
            label: i.is_multiple_of(every).then(|| tick(point.start, series.group)),
            middle: slot_x + slot_width / 2.0,
            slot_x,
            slot_width,
            x: slot_x + (slot_width - width) / 2.0,
            width,
            bars: vec![
                Bar { class: "bar-1", y: base - prompt, height: prompt },
                Bar { class: "bar-2", y: base - prompt - completion, height: completion },
            ],
        }
    });
    Chart {
        label: format!(
            "{} prompt and {} completion tokens",
            format::count(series.totals.prompt_tokens),
            format::count(series.totals.completion_tokens)
        ),
        width: WIDTH,
        height: HEIGHT,
        left: LEFT,
        top: TOP,
        plot_height,
        grid,
        columns: columns.collect(),
    }
}

fn title(point: &Point, group: Group) -> String {
    let when = match group {
        Group::Hour => format::moment(point.start),
        Group::Day => tick(point.start, group),
    };
    format!(
        "{when}: {} prompt, {} completion tokens, {} requests",
        format::count(point.sums.prompt_tokens),
        format::count(point.sums.completion_tokens),
        format::count(point.sums.requests)
    )
}

fn tick(at: OffsetDateTime, group: Group) -> String {
    let formatted = match group {
        Group::Hour => at.format(format_description!("[hour]:00")),
        Group::Day => at.format(format_description!("[day padding:none] [month repr:short]")),
    };
    formatted.unwrap_or_default()
}

/// The smallest of 4, 8, 20, 40, 80, 200, ... that is at least `max`, so that the grid's labels are round.
fn nice_ceiling(max: i64) -> i64 {
    let mut power = 1i64;
    loop {
        for step in [4, 8, 20] {
            let value = step * power;
            if value >= max {
                return value;
            }
        }
        let Some(next) = power.checked_mul(10).filter(|p| *p < i64::MAX / 100) else {
            return max.max(1);
        };
        power = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::queries::Sums;
    use proptest::prelude::*;
    use time::macros::datetime;

    proptest! {
        #[test]
        fn every_bar_lies_inside_the_plot(values in prop::collection::vec((0i64..1 << 50, 0i64..1 << 50), 1..60)) {
            let from = datetime!(2026-11-01 0:00 UTC);
            let points: Vec<_> = values.iter().map(|(prompt_tokens, completion_tokens)| Point {
                start: from,
                sums: Sums { prompt_tokens: *prompt_tokens, completion_tokens: *completion_tokens, ..Sums::default() },
            }).collect();
            let series = Series { from, to: from, group: Group::Day, totals: Sums::default(), series: points };
            let chart = tokens(&series);
            for column in &chart.columns {
                prop_assert!(column.x >= f64::from(chart.left));
                prop_assert!(column.x + column.width <= f64::from(chart.width) + 1e-6);
                for bar in &column.bars {
                    prop_assert!(bar.height >= 0.0 && bar.y >= f64::from(chart.top) - 1e-6);
                    prop_assert!(bar.y + bar.height <= f64::from(chart.top + chart.plot_height) + 1e-6);
                }
            }
        }
    }

    #[test]
    fn the_scale_ends_on_a_round_number() {
        assert_eq!(nice_ceiling(0), 4);
        assert_eq!(nice_ceiling(5), 8);
        assert_eq!(nice_ceiling(190), 200);
        assert_eq!(nice_ceiling(201), 400);
        assert!(nice_ceiling(i64::MAX) > 0);
    }
}

//! Figures, as a table for people and as JSON for programs.

use serde_json::json;

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Microseconds a page: less is better.
    MicrosPerPage,
    /// 10^9 bytes a second: more is better.
    GigabytesPerSecond,
}

impl Unit {
    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::MicrosPerPage => "us/page",
            Self::GigabytesPerSecond => "GB/s",
        }
    }

    /// The figure of something that took `seconds` for `pages` pages.
    pub(crate) fn of(self, seconds: f64, pages: usize) -> f64 {
        match self {
            Self::MicrosPerPage => seconds * 1e6 / pages as f64,
            Self::GigabytesPerSecond => (pages * uhmm_core::addr::PAGE_SIZE) as f64 / 1e9 / seconds,
        }
    }
}

/// One measurement beside its floor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figure {
    /// The benchmark.
    pub name: &'static str,
    /// What `value` and `floor` count.
    pub unit: Unit,
    /// The median of ours.
    pub value: f64,
    /// The median of what the bare primitive does, measured in turns with ours.
    pub floor: f64,
    /// The distance between the quartiles of ours, as a share of `value`.
    pub spread: f64,
}

impl Figure {
    /// `value` over `floor`.
    pub fn ratio(&self) -> f64 {
        self.value / self.floor
    }

    /// One line of JSON, with its newline.
    pub fn json(&self) -> String {
        let round = |x: f64| (x * 1e4).round() / 1e4;
        let object = json!({
            "name": self.name,
            "unit": self.unit.name(),
            "value": round(self.value),
            "floor": round(self.floor),
            "ratio": round(self.ratio()),
            "spread": round(self.spread),
        });
        format!("{object}\n")
    }

    /// The head of the table of figures, with its newline.
    pub fn head() -> String {
        format!(
            "{:<26}{:>10} {:<8}{:>10}{:>10}{:>9}\n",
            "name", "value", "unit", "floor", "ratio", "spread"
        )
    }

    /// One row of the table under [`Figure::head`], with its newline.
    pub fn row(&self) -> String {
        format!(
            "{:<26}{:>10.3} {:<8}{:>10.3}{:>9.2}x{:>8.0}%\n",
            self.name,
            self.value,
            self.unit.name(),
            self.floor,
            self.ratio(),
            self.spread * 100.0
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIGURE: Figure = Figure {
        name: "bulk_to_device",
        unit: Unit::GigabytesPerSecond,
        value: 3.0,
        floor: 12.0,
        spread: 0.125,
    };

    #[test]
    fn json_is_one_object_a_line() {
        let line = FIGURE.json();
        assert!(line.ends_with("}\n") && line.lines().count() == 1);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            value,
            json!({
                "name": "bulk_to_device", "unit": "GB/s",
                "value": 3.0, "floor": 12.0, "ratio": 0.25, "spread": 0.125
            })
        );
    }

    #[test]
    fn rows_stand_under_the_head() {
        let (head, row) = (Figure::head(), FIGURE.row());
        assert_eq!(head.trim_end().len(), row.trim_end().len());
        assert!(row.contains("0.25x"), "{row}");
    }

    #[test]
    fn units_count_what_they_say() {
        assert_eq!(Unit::MicrosPerPage.of(0.5, 1_000_000), 0.5);
        assert_eq!(Unit::GigabytesPerSecond.of(4.096e-3, 1000), 1.0);
    }
}

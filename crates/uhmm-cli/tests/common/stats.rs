//! What `uhmm run --stats FILE` wrote.

use serde_json::Value;
use std::fmt;
use std::path::Path;

/// The keys that are always there.
const KEYS: &[&str] = &[
    "command",
    "exit_code",
    "wall_s",
    "ram_budget_bytes",
    "ram_peak_bytes",
    "first_touch_faults",
    "device_faults",
    "limbo_faults",
    "pages_to_device",
    "pages_to_system",
    "poisoned_pages",
    "devices",
    "processes",
];
const DEVICE_KEYS: &[&str] = &[
    "name",
    "kind",
    "pages",
    "pages_peak",
    "stored_bytes",
    "stored_bytes_peak",
];

/// The counters of a run.
pub struct Stats(Value);

impl Stats {
    /// Reads `path`, and panics unless every key is there.
    pub fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path)
            .unwrap_or_else(|why| panic!("no stats: {}: {why}", path.display()));
        let value: Value = serde_json::from_str(&text)
            .unwrap_or_else(|why| panic!("stats are not JSON: {why}: {text}"));
        for key in KEYS {
            assert!(value.get(key).is_some(), "stats lack `{key}`: {text}");
        }
        for device in value["devices"].as_array().expect("`devices` is a list") {
            for key in DEVICE_KEYS {
                assert!(device.get(key).is_some(), "a device lacks `{key}`: {text}");
            }
        }
        Self(value)
    }

    /// The whole number under `key`.
    pub fn count(&self, key: &str) -> u64 {
        self.0[key]
            .as_u64()
            .unwrap_or_else(|| panic!("`{key}` is no count: {self}"))
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.0)
    }
}

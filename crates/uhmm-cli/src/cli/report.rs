//! What is said when the program has ended: a short block for people, JSON for programs.

use super::launch;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::fmt::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;
use uhmm::size::Bytes;
use uhmm::spec::DeviceSpec;
use uhmm_core::addr::PAGE_SIZE;
use uhmm_core::stats::{Counter, DeviceStats};
use uhmm_linux::shared_stats::Total;

/// A program that has run.
#[derive(Debug)]
pub struct Outcome<'a> {
    /// The program's name and arguments, as given.
    pub command: &'a [OsString],
    /// How it ended.
    pub status: ExitStatus,
    /// How long it ran.
    pub wall: Duration,
    /// The budget of each process in bytes.
    pub ram: u64,
    /// The devices, in their order.
    pub devices: &'a [DeviceSpec],
    /// What its processes counted.
    pub total: Total,
}

impl Outcome<'_> {
    /// The program's own code, or 128 + the number of the signal that ended it.
    pub fn exit_code(&self) -> u8 {
        launch::exit_code(self.status)
    }

    /// The block for people, without a newline at its end.
    pub fn text(&self) -> String {
        let stats = &self.total.stats;
        let ended = match (self.status.code(), self.status.signal()) {
            (_, Some(signal)) => format!("ended by signal {signal}"),
            (code, None) => format!("ended with status {}", code.unwrap_or_default()),
        };
        let processes = match self.total.processes {
            0 => "no process was managed".to_owned(),
            1 => "1 process".to_owned(),
            n => format!("{} processes together", grouped(n)),
        };
        let mut text = format!(
            "{ended} after {:.2} s, {processes}",
            self.wall.as_secs_f64()
        );
        let mut line = |name: &str, what: String| {
            let _ = write!(text, "\n  {name:<9}{what}");
        };
        let bytes = |counter: &Counter| Bytes(counter.get());
        let count = |counter: &Counter| grouped(counter.get());
        line(
            "RAM",
            format!(
                "{} budget, {} peak",
                Bytes(self.budget()),
                bytes(&stats.ram_peak_bytes)
            ),
        );
        line(
            "faults",
            format!(
                "{} first touches, {} on device pages, {} on pages in limbo",
                count(&stats.first_touch_faults),
                count(&stats.device_faults),
                count(&stats.limbo_faults)
            ),
        );
        line(
            "pages",
            format!(
                "{} out, {} in",
                count(&stats.pages_to_device),
                count(&stats.pages_to_system)
            ),
        );
        for (name, _, device) in self.each_device() {
            let mut what = format!(
                "{} pages (peak {}), {} stored (peak {})",
                count(&device.pages),
                count(&device.pages_peak),
                bytes(&device.stored_bytes),
                bytes(&device.stored_bytes_peak)
            );
            if let Some(ratio) = ratio(device) {
                let _ = write!(what, ", ratio {ratio:.2}");
            }
            line(&name, what);
        }
        let lost = stats.poisoned_pages.get();
        if lost > 0 {
            line(
                "LOST",
                format!("{} pages, by a device that failed", grouped(lost)),
            );
        }
        for (n, what) in [
            (
                self.total.unmanaged,
                "gave up being managed, and ran on in plain memory",
            ),
            (
                self.total.uncounted,
                "found no place to count, and are in no number here",
            ),
        ] {
            if n > 0 {
                line("note", format!("{} of the processes {what}", grouped(n)));
            }
        }
        text
    }

    /// The same as JSON, with a newline at its end.
    pub fn json(&self) -> String {
        let stats = &self.total.stats;
        let devices: Vec<Value> = self
            .each_device()
            .map(|(name, kind, device)| {
                json!({
                    "name": name,
                    "kind": kind,
                    "pages": device.pages.get(),
                    "pages_peak": device.pages_peak.get(),
                    "stored_bytes": device.stored_bytes.get(),
                    "stored_bytes_peak": device.stored_bytes_peak.get(),
                })
            })
            .collect();
        let command: Vec<_> = self
            .command
            .iter()
            .map(|word| word.to_string_lossy())
            .collect();
        let object = json!({
            "command": command,
            "exit_code": self.exit_code(),
            "wall_s": self.wall.as_secs_f64(),
            "processes": self.total.processes,
            "ram_budget_bytes": self.budget(),
            "ram_peak_bytes": stats.ram_peak_bytes.get(),
            "first_touch_faults": stats.first_touch_faults.get(),
            "device_faults": stats.device_faults.get(),
            "limbo_faults": stats.limbo_faults.get(),
            "pages_to_device": stats.pages_to_device.get(),
            "pages_to_system": stats.pages_to_system.get(),
            "poisoned_pages": stats.poisoned_pages.get(),
            "devices": devices,
        });
        format!("{object:#}\n")
    }

    /// The budgets of all processes together; where none was managed, that of one.
    fn budget(&self) -> u64 {
        match self.total.stats.ram_budget_bytes.get() {
            0 => self.ram,
            sum => sum,
        }
    }

    /// The name, kind and counters of each device. A kind's second device is `KIND-2`.
    fn each_device(&self) -> impl Iterator<Item = (String, &'static str, &DeviceStats)> {
        self.devices
            .iter()
            .enumerate()
            .zip(&self.total.stats.devices)
            .map(|((i, spec), device)| {
                let kind = spec.kind().name;
                let before = self.devices[..i]
                    .iter()
                    .filter(|s| s.kind().name == kind)
                    .count();
                let name = match before {
                    0 => kind.to_owned(),
                    n => format!("{kind}-{}", n + 1),
                };
                (name, kind, device)
            })
    }
}

/// How many times smaller pages are on the device, at its fullest.
fn ratio(device: &DeviceStats) -> Option<f64> {
    let (pages, stored) = (device.pages_peak.get(), device.stored_bytes_peak.get());
    (stored > 0).then(|| (pages as f64 * PAGE_SIZE as f64) / stored as f64)
}

/// `n` with a comma after every third digit from the right.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome<'a>(raw: i32, command: &'a [OsString], devices: &'a [DeviceSpec]) -> Outcome<'a> {
        Outcome {
            command,
            status: ExitStatus::from_raw(raw),
            wall: Duration::from_millis(1500),
            ram: 64 << 20,
            devices,
            total: Total::default(),
        }
    }

    #[test]
    fn json_has_exactly_the_promised_keys() {
        let devices = DeviceSpec::parse_list("lz4:1G,mirror:1G,lz4:2G", 1 << 30).unwrap();
        let command = ["sort".into(), "-S1G".into()];
        let mut outcome = outcome(2 << 8, &command, &devices);
        outcome.total.processes = 1;
        outcome.total.stats.ram_budget_bytes.set(64 << 20);
        outcome.total.stats.devices[1].pages_peak.set(9);
        let value: Value = serde_json::from_str(&outcome.json()).unwrap();
        let keys: Vec<_> = value
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        let mut promised = [
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
        promised.sort_unstable();
        assert_eq!(keys, promised);
        assert_eq!(value["command"], json!(["sort", "-S1G"]));
        assert_eq!(value["exit_code"], 2);
        assert_eq!(value["wall_s"], 1.5);
        assert_eq!(value["ram_budget_bytes"], 64 << 20);
        assert_eq!(
            value["devices"][1],
            json!({
                "name": "mirror", "kind": "mirror", "pages": 0, "pages_peak": 9,
                "stored_bytes": 0, "stored_bytes_peak": 0
            })
        );
        assert_eq!(value["devices"][2]["name"], "lz4-2");
        assert_eq!(value["devices"][2]["kind"], "lz4");
    }

    #[test]
    fn the_block_says_what_happened() {
        let devices = DeviceSpec::parse_list("lz4:1G", 1 << 30).unwrap();
        let mut outcome = outcome(9, &[], &devices);
        outcome.total.processes = 2;
        outcome.total.uncounted = 1;
        outcome.total.stats.ram_budget_bytes.set(128 << 20);
        outcome.total.stats.device_faults.set(1_234_567);
        outcome.total.stats.devices[0].pages_peak.set(1024);
        outcome.total.stats.devices[0]
            .stored_bytes_peak
            .set(1 << 20);
        assert_eq!(
            outcome.text(),
            "ended by signal 9 after 1.50 s, 2 processes together\n  \
             RAM      128.0 MiB budget, 0 B peak\n  \
             faults   0 first touches, 1,234,567 on device pages, 0 on pages in limbo\n  \
             pages    0 out, 0 in\n  \
             lz4      0 pages (peak 1,024), 0 B stored (peak 1.0 MiB), ratio 4.00\n  \
             note     1 of the processes found no place to count, and are in no number here"
        );
    }
}

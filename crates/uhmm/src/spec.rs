//! Devices by name, as in `--device lz4:8G`: which kinds there are, and how one is built.

use crate::size::{self, SizeError};
use std::fmt;
use uhmm_core::addr::PAGE_SIZE;
use uhmm_core::device::Device;
use uhmm_core::stats::MAX_DEVICES;

/// A kind of device that can be named in a [`DeviceSpec`].
#[derive(Debug)]
pub struct DeviceKind {
    /// The name in a spec, and [`uhmm_core::device::DeviceInfo::kind`].
    pub name: &'static str,
    /// What it is, in a line.
    pub summary: &'static str,
    /// Its options, each with what it means.
    pub options: &'static [(&'static str, &'static str)],
    /// The size when the spec gives none, as [`size::parse`] reads it.
    pub default_size: &'static str,
    build: fn(u64) -> Box<dyn Device>,
}

/// Every kind of device. A new kind is one more row.
pub const KINDS: &[DeviceKind] = &[
    DeviceKind {
        name: "lz4",
        summary: "memory compressed with LZ4; pages that hold one value throughout take no space",
        options: &[("SIZE", "the most memory that the compressed pages may take")],
        default_size: "50%",
        build: |capacity| Box::new(uhmm_lz4::Lz4Device::new(capacity)),
    },
    DeviceKind {
        name: "mirror",
        summary: "plain memory that holds each page as it is; the floor that others compare with",
        options: &[("SIZE", "the most memory that the pages may take")],
        default_size: "50%",
        build: |capacity| Box::new(uhmm_mirror::MirrorDevice::new(capacity)),
    },
];

/// The most bytes that one device can have: its page numbers have 29 bits.
const MAX_CAPACITY: u64 = uhmm_core::entry::MAX_DEVICE_PAGES as u64 * PAGE_SIZE as u64;

/// A device to be built: its kind and its size.
///
/// Its text is `KIND:BYTES`, which [`DeviceSpec::parse`] reads back as the same spec.
#[derive(Clone, Copy, Debug)]
pub struct DeviceSpec {
    kind: &'static DeviceKind,
    capacity_bytes: u64,
}

impl DeviceSpec {
    /// Parses `KIND` or `KIND:SIZE`. `machine_memory`, in bytes, is what a percentage is of.
    ///
    /// # Errors
    ///
    /// An unknown kind, or a size that is none, or that no device can have. The message is one
    /// line.
    pub fn parse(text: &str, machine_memory: u64) -> Result<Self, SpecError> {
        let (name, size) = match text.split_once(':') {
            Some((name, size)) => (name, Some(size)),
            None => (text, None),
        };
        let kind = KINDS
            .iter()
            .find(|kind| kind.name == name)
            .ok_or_else(|| SpecError::UnknownKind(name.to_owned()))?;
        let capacity_bytes = size::parse(size.unwrap_or(kind.default_size), machine_memory)
            .map_err(|error| SpecError::Size {
                spec: text.to_owned(),
                error,
            })?;
        if !(PAGE_SIZE as u64..=MAX_CAPACITY).contains(&capacity_bytes) {
            return Err(SpecError::Capacity {
                spec: text.to_owned(),
            });
        }
        Ok(Self {
            kind,
            capacity_bytes,
        })
    }

    /// Parses several specs, with commas between them; [`join`] is its inverse.
    ///
    /// # Errors
    ///
    /// The first spec that is wrong, or too many of them.
    pub fn parse_list(text: &str, machine_memory: u64) -> Result<Vec<Self>, SpecError> {
        let specs: Vec<Self> = text
            .split(',')
            .map(|spec| Self::parse(spec, machine_memory))
            .collect::<Result<_, _>>()?;
        if specs.len() > MAX_DEVICES {
            return Err(SpecError::TooMany(specs.len()));
        }
        Ok(specs)
    }

    /// The kind of device.
    pub fn kind(&self) -> &'static DeviceKind {
        self.kind
    }

    /// The most bytes of memory that its pages may take.
    pub fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes
    }

    /// Builds the device.
    pub fn build(&self) -> Box<dyn Device> {
        (self.kind.build)(self.capacity_bytes)
    }
}

/// The specs in their order, with commas between them.
pub fn join(specs: &[DeviceSpec]) -> String {
    specs
        .iter()
        .map(DeviceSpec::to_string)
        .collect::<Vec<_>>()
        .join(",")
}

impl PartialEq for DeviceSpec {
    fn eq(&self, other: &Self) -> bool {
        (self.kind.name, self.capacity_bytes) == (other.kind.name, other.capacity_bytes)
    }
}

impl Eq for DeviceSpec {}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind.name, self.capacity_bytes)
    }
}

/// Why a text is not a device spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpecError {
    /// There is no kind of this name.
    UnknownKind(String),
    /// The size is none.
    Size {
        /// The whole spec.
        spec: String,
        /// What is wrong with its size.
        error: SizeError,
    },
    /// A device cannot be so small or so large.
    Capacity {
        /// The whole spec.
        spec: String,
    },
    /// More devices than a space can have.
    TooMany(usize),
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownKind(name) => {
                let kinds: Vec<_> = KINDS.iter().map(|kind| kind.name).collect();
                write!(
                    f,
                    "unknown device {name:?}: the kinds are {}",
                    kinds.join(" and ")
                )?;
                match nearest(name) {
                    Some(kind) => write!(f, "; did you mean {kind}?"),
                    None => Ok(()),
                }
            }
            Self::Size { spec, error } => write!(f, "device {spec:?}: {error}"),
            Self::Capacity { spec } => write!(
                f,
                "device {spec:?}: a device has {} bytes (one page) to {} TiB",
                PAGE_SIZE,
                MAX_CAPACITY.div_ceil(1 << 40)
            ),
            Self::TooMany(n) => write!(f, "{n} devices: at most {MAX_DEVICES} can be used at once"),
        }
    }
}

impl std::error::Error for SpecError {}

/// The kind that `name` is most likely meant to be, if it resembles one.
fn nearest(name: &str) -> Option<&'static str> {
    let name = name.to_lowercase();
    KINDS
        .iter()
        .map(|kind| (distance(&name, kind.name), kind.name))
        .filter(|(distance, kind)| *distance <= kind.len() / 2)
        .min()
        .map(|(_, kind)| kind)
}

/// How many characters must be added, dropped or changed to make `b` of `a`.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &cb) in b.iter().enumerate() {
            let changed = diagonal + usize::from(ca != cb);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: u64 = 24 << 30;

    fn message(text: &str) -> String {
        let line = DeviceSpec::parse_list(text, MEMORY)
            .unwrap_err()
            .to_string();
        assert_eq!(line.lines().count(), 1, "{line}");
        line
    }

    #[test]
    fn specs_are_read_and_written_back() {
        for (text, canonical) in [
            ("lz4", "lz4:12884901888"),
            ("mirror:1G", "mirror:1073741824"),
            ("lz4:12345678", "lz4:12345678"),
            ("lz4:25%", "lz4:6442450944"),
            (
                "lz4:8G,mirror:1M,lz4:1M",
                "lz4:8589934592,mirror:1048576,lz4:1048576",
            ),
        ] {
            let specs = DeviceSpec::parse_list(text, MEMORY).unwrap();
            assert_eq!(join(&specs), canonical);
            // On a machine with other memory the canonical text means the same.
            assert_eq!(DeviceSpec::parse_list(canonical, 1).unwrap(), specs);
        }
    }

    #[test]
    fn wrong_specs_get_one_line_that_helps() {
        assert!(message("lz5").ends_with("the kinds are lz4 and mirror; did you mean lz4?"));
        assert!(message("Mirror:1G").ends_with("did you mean mirror?"));
        assert!(message("gpu").ends_with("the kinds are lz4 and mirror"));
        assert!(message("").contains("unknown device \"\""));
        assert!(message("lz4,,mirror").contains("unknown device \"\""));
        assert!(message("lz4:").contains("\"lz4:\""));
        assert!(message("lz4:0").contains("zero"));
        assert!(message("mirror:1G:2").contains("not a size"));
        assert!(message("mirror:4095").contains("4096 bytes"));
        assert!(message("lz4:16T").contains("2 TiB"));
        assert!(message(&["lz4:1M"; MAX_DEVICES + 1].join(",")).starts_with("9 devices"));
    }

    #[test]
    fn every_kind_builds_by_its_own_name_and_its_default() {
        for kind in KINDS {
            let small = DeviceSpec::parse(&format!("{}:1M", kind.name), MEMORY).unwrap();
            assert_eq!(small.build().info().kind, kind.name);
            assert!(DeviceSpec::parse(kind.name, MEMORY).is_ok());
        }
    }
}

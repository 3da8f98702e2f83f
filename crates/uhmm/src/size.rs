//! Sizes as people write them: `64M`, `8GiB`, `50%`.

use std::fmt;

/// Parses a size into bytes: a whole number of bytes, with an optional `K`, `M`, `G` or `T`
/// (powers of 1024; `Ki` and `KiB` mean the same, in either case), or `N%` of `machine_memory`,
/// which is in bytes.
///
/// # Errors
///
/// When the text is no such size, or the size is zero or does not fit in 64 bits. The message
/// is one line, and names the text.
pub fn parse(text: &str, machine_memory: u64) -> Result<u64, SizeError> {
    let error = |reason| SizeError {
        text: text.to_owned(),
        reason,
    };
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err(error(Reason::Malformed));
    }
    // Only digits are left, so what fails to parse is too large.
    let number: u64 = number.parse().map_err(|_| error(Reason::TooLarge))?;
    let bytes = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => Some(number),
        "k" | "ki" | "kib" => number.checked_mul(1 << 10),
        "m" | "mi" | "mib" => number.checked_mul(1 << 20),
        "g" | "gi" | "gib" => number.checked_mul(1 << 30),
        "t" | "ti" | "tib" => number.checked_mul(1 << 40),
        "%" if number > 100 => return Err(error(Reason::Percentage)),
        // At most 100 %, so the result is no larger than the memory.
        "%" => Some((u128::from(machine_memory) * u128::from(number) / 100) as u64),
        _ => return Err(error(Reason::Malformed)),
    };
    match bytes {
        None => Err(error(Reason::TooLarge)),
        Some(0) => Err(error(Reason::Zero)),
        Some(bytes) => Ok(bytes),
    }
}

/// Why a text is not a size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SizeError {
    text: String,
    reason: Reason,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    Malformed,
    Zero,
    Percentage,
    TooLarge,
}

impl fmt::Display for SizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = &self.text;
        match self.reason {
            Reason::Malformed => write!(
                f,
                "{text:?} is not a size: write a whole number of bytes with K, M, G or T \
                 (such as 64M), or a percentage of the machine's memory (such as 50%)"
            ),
            Reason::Zero => write!(
                f,
                "the size {text:?} is zero: write a larger one, such as 64M"
            ),
            Reason::Percentage => write!(
                f,
                "the size {text:?} is more than the machine's memory: write 1% to 100%, or bytes \
                 (such as 64M)"
            ),
            Reason::TooLarge => {
                write!(
                    f,
                    "the size {text:?} is too large: it does not fit in 64 bits"
                )
            }
        }
    }
}

impl std::error::Error for SizeError {}

/// A number of bytes, shown for people in powers of 1024: `512 B`, `1.5 KiB`, `64.0 MiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < 1 << 10 {
            return write!(f, "{} B", self.0);
        }
        let mut value = self.0 as f64 / 1024.0;
        let mut units = ["KiB", "MiB", "GiB", "TiB", "PiB"].into_iter();
        let mut unit = units.next().unwrap_or_default();
        // What would be shown as 1024.0 is shown as 1.0 of the next unit.
        while value >= 1023.95
            && let Some(next) = units.next()
        {
            value /= 1024.0;
            unit = next;
        }
        write!(f, "{value:.1} {unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: u64 = 24 << 30;

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [
            ("1", 1),
            ("4096", 4096),
            ("512B", 512),
            ("64K", 64 << 10),
            ("64k", 64 << 10),
            ("64KiB", 64 << 10),
            ("64Mi", 64 << 20),
            ("8G", 8 << 30),
            ("16777215T", 16_777_215 << 40),
            ("50%", 12 << 30),
            ("100%", MEMORY),
            ("007M", 7 << 20),
        ] {
            assert_eq!(parse(text, MEMORY), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_size_is_refused_for_its_reason() {
        let malformed = [
            "", "M", "-1", "+1", "1.5G", "64 M", " 64M", "64Q", "64MB", "50%%", "٣",
        ];
        for (texts, reason) in [
            (&malformed[..], Reason::Malformed),
            (&["0", "0M", "0%", "000"], Reason::Zero),
            (&["101%", "18446744073709551615%"], Reason::Percentage),
            (
                &["18446744073709551616", "16777216T", "99999999999999999999M"],
                Reason::TooLarge,
            ),
        ] {
            for text in texts {
                let error = parse(text, MEMORY).unwrap_err();
                assert_eq!(
                    error,
                    SizeError {
                        text: text.to_string(),
                        reason
                    }
                );
                let line = error.to_string();
                assert!(line.contains(text) && line.lines().count() == 1, "{line}");
            }
        }
        // A percentage that comes to nothing is zero too.
        assert!(parse("1%", 99).is_err());
    }

    #[test]
    fn bytes_are_shown_for_people() {
        for (bytes, shown) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (64 << 20, "64.0 MiB"),
            (24 << 30, "24.0 GiB"),
            (u64::MAX, "16384.0 PiB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), shown);
        }
    }
}

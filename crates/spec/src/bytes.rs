//! Sizes as people write them: `512M`, `10G`, `4096`. Binary multiples, as docker and qemu-img read them.

use std::fmt;

use thiserror::Error;

/// A size that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("'{text}' is not a size")]
pub struct SizeError {
    text: String,
}

impl SizeError {
    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        "use a number of bytes, or a number with K, M, G or T (for example 512M)"
    }
}

/// Reads a size in bytes. `K`, `M`, `G`, `T` (also `Ki`, `KiB`, `KB`, any case) are powers of 1024; fractions are allowed.
///
/// # Errors
/// When it is anything else, negative, or over 2^63.
pub fn parse(text: &str) -> Result<u64, SizeError> {
    let error = || SizeError { text: text.to_owned() };
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "ki" | "kib" => 10,
        "m" | "mb" | "mi" | "mib" => 20,
        "g" | "gb" | "gi" | "gib" => 30,
        "t" | "tb" | "ti" | "tib" => 40,
        _ => return Err(error()),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(1 << shift).filter(|n| *n < 1 << 63).ok_or_else(error);
    }
    let value = number.parse::<f64>().map_err(|_| error())? * (1u64 << shift) as f64;
    if !(0.0..(1u64 << 63) as f64).contains(&value) {
        return Err(error());
    }
    Ok(value as u64)
}

/// A size for people: three digits and a unit of 1024.
#[derive(Debug, Clone, Copy)]
pub struct Human(pub u64);

impl fmt::Display for Human {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
        let mut value = self.0 as f64;
        let mut unit = 0;
        while value >= 1024.0 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        let digits = if unit == 0 || value >= 100.0 || value.fract() == 0.0 {
            0
        } else {
            1
        };
        f.pad(&format!("{value:.digits$} {}", UNITS[unit]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_docker_reads_them() {
        let cases = [
            ("1", 1),
            ("512M", 512 << 20),
            ("1.5g", 3 << 29),
            ("10GiB", 10 << 30),
            ("4k", 4096),
            ("7b", 7),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "M", "-1", "1X", "1 M", "99999999T", "1.2.3M", "NaN", "inf"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_short() {
        assert_eq!(Human(512 << 20).to_string(), "512 MiB");
        assert_eq!(Human(1_500).to_string(), "1.5 KiB");
        assert_eq!(Human(0).to_string(), "0 B");
    }
}

//! Sizes as people write them: `12GiB`, `12GB`, `800MiB`, or plain bytes.

const FORMS: &str = "write a whole number of bytes, or one with a unit such as 12GiB, 12GB or 800MiB";

/// Units of a thousand and of 1024; upper and lower case are the same.
const UNITS: [(&str, u64); 9] = [
    ("b", 1),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
];

/// Reads a size in bytes. A fraction, as in `1.5GiB`, is rounded down to a whole byte.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let text = text.trim();
    if text.strip_prefix('-').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit())) {
        return Err(format!("a size is never negative: {FORMS}"));
    }
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = unit.trim().to_ascii_lowercase();
    let scale = match unit.as_str() {
        "" => 1,
        unit => UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(|| FORMS.to_owned())?.1,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || (number.contains('.') && (fraction.is_empty() || scale == 1)) || fraction.contains('.') {
        return Err(FORMS.to_owned());
    }
    let too_large = || format!("more than {} bytes, the largest size there is", u64::MAX);
    let whole = whole.parse::<u64>().ok().and_then(|n| n.checked_mul(scale)).ok_or_else(too_large)?;
    whole.checked_add(part(fraction, scale)).ok_or_else(too_large)
}

/// Reads a rate in bytes per second, written as a size.
pub(crate) fn parse_rate(text: &str) -> Result<u64, String> {
    match parse(text)? {
        0 => Err("a rate is at least one byte per second, as in 25GB".to_owned()),
        rate => Ok(rate),
    }
}

/// `scale` × 0.`digits`, in whole bytes. Digits beyond the twelfth are less than a byte of any unit here.
fn part(digits: &str, scale: u64) -> u64 {
    let (numerator, denominator) =
        digits.bytes().take(15).fold((0u128, 1u128), |(n, d), digit| (n * 10 + u128::from(digit - b'0'), d * 10));
    u64::try_from(u128::from(scale) * numerator / denominator).unwrap_or(0)
}

/// Bytes for people, to a hundredth of the unit: `12.30 GiB`.
pub(crate) fn show(bytes: u64) -> String {
    for (unit, name) in [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] {
        if bytes >= unit {
            let hundredths = u128::from(bytes % unit) * 100 / u128::from(unit);
            return format!("{}.{hundredths:02} {name}", bytes / unit);
        }
    }
    format!("{bytes} B")
}

/// Bytes per second for people, in units of a thousand as links are sold: `25.0 GB/s`.
pub(crate) fn show_rate(rate: u64) -> String {
    for (unit, name) in [(1_000_000_000, "GB/s"), (1_000_000, "MB/s"), (1_000, "kB/s")] {
        if rate >= unit {
            return format!("{}.{} {name}", rate / unit, rate % unit / (unit / 10));
        }
    }
    format!("{rate} B/s")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("1234", 1234),
            ("12GiB", 12 << 30),
            ("12GB", 12_000_000_000),
            ("800MiB", 800 << 20),
            ("800 mib", 800 << 20),
            ("1.5GiB", 3 << 29),
            ("0.1kb", 100),
            ("1.0000000000000000000000000001GiB", 1 << 30),
            ("18446744073709551615", u64::MAX),
            ("7B", 7),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in
            ["", "GiB", "-1", "-1GiB", "12XB", "1.5", "1.GiB", ".5GiB", "1.2.3GiB", "1e9", "12GiBs", "0x10", "½GiB"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
        for text in ["18446744073709551616", "16777216TiB", "99999999999999999999999GiB", "18446744.99999999999TB"] {
            assert!(parse(text).unwrap_err().contains("largest"), "{text}");
        }
    }

    #[test]
    fn sizes_for_people() {
        for (bytes, text) in [(0, "0 B"), (1023, "1023 B"), (1 << 10, "1.00 KiB"), (3 << 29, "1.50 GiB")] {
            assert_eq!(show(bytes), text);
        }
        assert_eq!(show(u64::MAX), "17179869183.99 GiB");
    }

    #[test]
    fn rates() {
        assert_eq!((parse_rate("25GB"), parse_rate("1")), (Ok(25_000_000_000), Ok(1)));
        for text in ["0", "0GB", "0.0000001kB", "-1GB", "25GB/s", "fast"] {
            assert!(parse_rate(text).is_err(), "{text}");
        }
        for (rate, text) in [(1, "1 B/s"), (999_999, "999.9 kB/s"), (25_000_000_000, "25.0 GB/s")] {
            assert_eq!(show_rate(rate), text);
        }
    }
}

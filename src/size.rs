//! Sizes and percentages as people write them, and bytes as people read them.

/// A limit as the user wrote it: bytes, or a part of something that is not known yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// Bytes.
    Bytes(u64),
    /// Hundredths of a per cent, from 1 to 10 000.
    Share(u64),
}

/// Below this a bare number is surely a forgotten unit: memory moves in chunks of 2 MiB.
const SMALLEST: u64 = 2 << 20;

const FORMS: &str =
    "write a number with a unit, like 20G, 512M or 1.5GiB, or a percentage like 80%";

/// Parses `20G`, `512M`, `1.5GiB` (binary), `20GB` (decimal), `123456789` (bytes) or `80%`.
///
/// # Errors
/// One sentence that says what is wrong with the text and what to write instead.
pub fn parse(text: &str) -> Result<Amount, String> {
    let text = text.trim();
    if text.is_empty() {
        return Err(format!("the size is empty: {FORMS}"));
    }
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = (&text[..digits], text[digits..].trim());
    let Some((mantissa, decimals)) = decimal(number) else {
        return Err(format!("'{text}' is not a size: {FORMS}"));
    };
    let scaled = |factor: u64| {
        mantissa
            .checked_mul(u128::from(factor))
            .map(|n| n / 10u128.pow(decimals))
            .and_then(|n| u64::try_from(n).ok())
    };
    if unit == "%" {
        return match scaled(100) {
            Some(share @ 1..=10_000) => Ok(Amount::Share(share)),
            _ => Err(format!(
                "'{text}' is not a usable percentage: write one from 0.01% to 100%"
            )),
        };
    }
    let Some(factor) = factor(unit) else {
        return Err(format!("'{unit}' in '{text}' is not a unit: {FORMS}"));
    };
    match scaled(factor) {
        None => Err(format!(
            "'{text}' is more bytes than 64 bits can count: {FORMS}"
        )),
        Some(bytes) if unit.is_empty() && decimals > 0 => Err(format!(
            "'{text}' would be {bytes} bytes and a fraction: {FORMS}"
        )),
        Some(bytes @ 1..SMALLEST) => Err(format!(
            "'{text}' is {bytes} bytes, less than one 2 MiB chunk: {FORMS}"
        )),
        Some(bytes) => Ok(Amount::Bytes(bytes)),
    }
}

/// `1.5` as (15, 1): the digits and how many of them are decimals.
fn decimal(number: &str) -> Option<(u128, u32)> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || (number.contains('.') && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    // More digits than this cannot matter, and would overflow the arithmetic.
    if whole.len() > 20 || fraction.len() > 6 {
        return None;
    }
    let mantissa = format!("{whole}{fraction}").parse().ok()?;
    Some((mantissa, fraction.len() as u32))
}

fn factor(unit: &str) -> Option<u64> {
    Some(match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return None,
    })
}

/// Bytes as a person reads them: `0 B`, `512 B`, `7.0 MiB`, `1.5 GiB`.
pub fn human(bytes: u64) -> String {
    const UNITS: [(&str, u64); 5] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
        ("PiB", 1 << 50),
    ];
    // 1023.97 MiB would print as "1024.0 MiB": from there on the next unit says it better.
    let unit = UNITS
        .iter()
        .rev()
        .find(|(_, size)| bytes as f64 >= 0.99995 * *size as f64);
    match unit {
        Some((name, size)) => format!("{:.1} {name}", bytes as f64 / *size as f64),
        None => format!("{bytes} B"),
    }
}

/// Hundredths of a per cent as a person reads them: `80%`, `12.5%`.
pub fn share(hundredths: u64) -> String {
    let text = format!("{}.{:02}", hundredths / 100, hundredths % 100);
    format!("{}%", text.trim_end_matches('0').trim_end_matches('.'))
}

/// That part of a whole.
pub fn part_of(whole: u64, hundredths: u64) -> u64 {
    (u128::from(whole) * u128::from(hundredths) / 10_000) as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_text(text in "\\PC*", number in "[0-9.]{0,25}", unit in "[ a-zA-Z%]{0,4}") {
            for text in [&text, &format!("{number}{unit}"), &format!("{number}{text}")] {
                match parse(text) {
                    Ok(Amount::Bytes(bytes)) => prop_assert!(bytes == 0 || bytes >= SMALLEST),
                    Ok(Amount::Share(share)) => prop_assert!((1..=10_000).contains(&share)),
                    Err(problem) => prop_assert_eq!(problem.lines().count(), 1),
                }
            }
        }

        #[test]
        fn what_is_shown_can_be_written(bytes in SMALLEST..u64::MAX / 2) {
            prop_assert_eq!(parse(&bytes.to_string()), Ok(Amount::Bytes(bytes)));
            if let (text, true) = (human(bytes), bytes < 1 << 50) {
                let Ok(Amount::Bytes(again)) = parse(&text) else {
                    return Err(TestCaseError::fail(text));
                };
                // One decimal of four digits.
                prop_assert!(again.abs_diff(bytes) as f64 <= 0.051 * bytes as f64, "{text}");
            }
        }
    }

    #[test]
    fn binary_and_decimal_units() {
        for (text, bytes) in [
            ("20G", 20 << 30),
            ("20g", 20 << 30),
            ("512M", 512 << 20),
            ("1.5GiB", 3 << 29),
            ("1.5 GiB", 3 << 29),
            ("4096K", 4 << 20),
            ("1T", 1 << 40),
            ("1TiB", 1 << 40),
            ("20GB", 20_000_000_000),
            ("512MB", 512_000_000),
            ("1TB", 1_000_000_000_000),
            ("8000kb", 8_000_000),
            ("123456789", 123_456_789),
            ("0", 0),
            ("0.5G", 1 << 29),
            ("15.999999T", 17_592_184_944_904),
        ] {
            assert_eq!(parse(text), Ok(Amount::Bytes(bytes)), "{text}");
        }
    }

    #[test]
    fn percentages() {
        for (text, share) in [
            ("80%", 8000),
            ("100%", 10_000),
            ("12.5 %", 1250),
            ("0.01%", 1),
        ] {
            assert_eq!(parse(text), Ok(Amount::Share(share)), "{text}");
        }
        for text in ["0%", "0.001%", "100.01%", "101%", "-1%", "%"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn bad_sizes_say_what_and_what_instead() {
        for text in [
            "",
            " ",
            "G",
            "20X",
            "20GiBs",
            "1..5G",
            "1.5.5G",
            ".5G",
            "5.G",
            "-1G",
            "20 G G",
            "1e9",
            "20",
            "1.5",
            "99999999T",
            "999999999999999999999999",
            "1.00000000001G",
            "١G",
            "20GiB%",
        ] {
            let message = parse(text).expect_err(text);
            assert!(message.contains(text.trim()), "{message}");
            assert!(message.contains(": write "), "{message}");
            assert!(!message.contains('\n'));
        }
    }

    #[test]
    fn bytes_for_people() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (7 << 20, "7.0 MiB"),
            ((1 << 30) - 1, "1.0 GiB"),
            (3 << 29, "1.5 GiB"),
            (u64::MAX, "16384.0 PiB"),
        ] {
            assert_eq!(human(bytes), text);
        }
        assert_eq!(share(8000), "80%");
        assert_eq!(share(1250), "12.5%");
        assert_eq!(share(1), "0.01%");
        assert_eq!(part_of(u64::MAX, 10_000), u64::MAX);
    }
}

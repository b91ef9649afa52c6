//! How fast the memory modules could be, as the firmware tells it. Pure, but for reading the given files.
//!
//! What the modules are is public where udev has decoded it (systemd's `dmi_memory_id`), else only root may read it. Which of
//! them share a channel is nowhere but in the names of the slots; where these do not say, nothing is guessed.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// A module in its slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Module {
    slot: String,
    bank: String,
    /// Bits that it moves at once, without those that correct errors.
    width: u64,
    /// Millions of transfers per second, as it runs.
    speed: u64,
}

/// What all channels carry together.
#[derive(Clone, Debug, PartialEq)]
pub struct Maximum {
    /// Bytes per second.
    pub rate: f64,
    /// In words.
    pub text: String,
}

/// Asks udev, then the firmware's table.
///
/// # Errors
/// Why it is not known.
pub fn maximum() -> Result<Maximum, String> {
    look(
        Path::new("/run/udev/data/+dmi:id"),
        Path::new("/sys/firmware/dmi/tables/DMI"),
    )
}

fn look(udev: &Path, table: &Path) -> Result<Maximum, String> {
    let decoded = fs::read_to_string(udev).map(|text| of_udev(&text));
    if let Some(modules) = decoded.ok().filter(|modules| !modules.is_empty()) {
        return of(&modules);
    }
    match fs::read(table) {
        Ok(table) => of(&of_table(&table)),
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
            Err("only root can read what the firmware says of the modules".into())
        }
        Err(_) => Err("this machine has no table of memory modules".into()),
    }
}

fn of(modules: &[Module]) -> Result<Maximum, String> {
    if modules.is_empty() {
        return Err("the firmware names no memory modules".into());
    }
    let mut channels: BTreeMap<String, f64> = BTreeMap::new();
    let mut speeds: Vec<u64> = Vec::new();
    for module in modules {
        if module.speed == 0 || !(8..=256).contains(&module.width) {
            return Err(
                "the firmware does not say how fast the modules are (virtual machines do not)"
                    .into(),
            );
        }
        let channel = channel(&module.bank).or_else(|| channel(&module.slot));
        let Some(channel) = channel else {
            return Err("the firmware does not say which modules share a channel".into());
        };
        let rate = module.speed as f64 * 1e6 * module.width as f64 / 8.0;
        let known = channels.entry(channel).or_default();
        *known = known.max(rate);
        speeds.push(module.speed);
    }
    speeds.sort_unstable();
    speeds.dedup();
    let speeds: Vec<String> = speeds.iter().map(u64::to_string).collect();
    let rate = channels.values().sum::<f64>();
    let count = match channels.len() {
        1 => "one channel".to_string(),
        n => format!("{n} channels"),
    };
    let text = format!(
        "{count} at {} MT/s, {:.0} GB/s",
        speeds.join(" and "),
        rate / 1e9
    );
    Ok(Maximum { rate, text })
}

/// Of a slot's name all up to its channel, if it names one: `P0 CHANNEL A`, `CPU0_Channel3_DIMM0`, `P1-DIMMC2`.
fn channel(name: &str) -> Option<String> {
    let name = name.to_ascii_uppercase();
    let is_word = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    if let Some(at) = name.find("CHANNEL") {
        let skipped = |b: &&u8| matches!(b, b' ' | b'_' | b'-' | b':');
        let mut end = at + 7;
        end += bytes[end..].iter().take_while(skipped).count();
        let digits = bytes[end..]
            .iter()
            .take_while(|b| b.is_ascii_digit())
            .count();
        end += digits.max(usize::from(is_word(bytes.get(end))));
        let is_whole = !is_word(bytes.get(end)) || name[end..].starts_with("DIMM");
        return (end > at + 7 && is_whole).then(|| name[..end].to_string());
    }
    // The letter before the number of the slot.
    let at = name.rfind("DIMM")?;
    let rest = name[at + 4..].trim_start_matches(['_', ' ', '-']);
    let [letter @ b'A'..=b'Z', digits @ ..] = rest.as_bytes() else {
        return None;
    };
    let is_slot = (1..=2).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
    is_slot.then(|| format!("{}{}", &name[..at], char::from(*letter)))
}

/// Lines like `E:MEMORY_DEVICE_0_SPEED_MTS=4800`.
fn of_udev(text: &str) -> Vec<Module> {
    #[derive(Default)]
    struct Entry {
        module: Module,
        bytes: u64,
        rated: u64,
    }
    let mut entries: BTreeMap<u32, Entry> = BTreeMap::new();
    for line in text.lines() {
        let parts = line.strip_prefix("E:MEMORY_DEVICE_").and_then(|rest| {
            let (number, rest) = rest.split_once('_')?;
            let (field, value) = rest.split_once('=')?;
            Some((number.parse().ok()?, field, value))
        });
        let Some((number, field, value)) = parts else {
            continue;
        };
        let entry = entries.entry(number).or_default();
        let as_number = value.parse().unwrap_or(0);
        match field {
            "LOCATOR" => entry.module.slot = value.into(),
            "BANK_LOCATOR" => entry.module.bank = value.into(),
            "DATA_WIDTH" => entry.module.width = as_number,
            "SIZE" => entry.bytes = as_number,
            "SPEED_MTS" => entry.rated = as_number,
            "CONFIGURED_SPEED_MTS" => entry.module.speed = as_number,
            _ => {}
        }
    }
    entries
        .into_values()
        .filter(|entry| entry.bytes > 0)
        .map(|mut entry| {
            if entry.module.speed == 0 {
                entry.module.speed = entry.rated;
            }
            entry.module
        })
        .collect()
}

/// The table as SMBIOS has it (DMTF DSP0134): structures of a type, a length and strings; 17 is a memory device.
fn of_table(mut table: &[u8]) -> Vec<Module> {
    let mut modules = Vec::new();
    while let [kind, length, ..] = *table {
        let length = usize::from(length);
        if length < 4 || table.len() < length || kind == 127 {
            break;
        }
        let (fields, rest) = table.split_at(length);
        // The strings end with an empty one; where there are none, two zeros stand alone.
        let Some(end) = rest.windows(2).position(|pair| pair == [0, 0]) else {
            break;
        };
        let strings: Vec<&[u8]> = rest[..end].split(|b| *b == 0).collect();
        if kind == 17
            && let Some(module) = device(fields, &strings)
        {
            modules.push(module);
        }
        table = &rest[end + 2..];
    }
    modules
}

fn device(fields: &[u8], strings: &[&[u8]]) -> Option<Module> {
    let word = |at: usize| {
        let bytes = fields.get(at..at + 2)?.try_into().ok()?;
        Some(u16::from_le_bytes(bytes))
    };
    let string = |at: usize| {
        let number = usize::from(*fields.get(at)?);
        let found = strings.get(number.checked_sub(1)?)?;
        Some(String::from_utf8_lossy(found).trim().to_string())
    };
    // 0 and 0xffff: unknown.
    let known = |at: usize| word(at).filter(|w| !matches!(w, 0 | 0xffff));
    // An empty slot.
    if word(0x0c)? == 0 {
        return None;
    }
    Some(Module {
        slot: string(0x10).unwrap_or_default(),
        bank: string(0x11).unwrap_or_default(),
        width: known(0x0a).unwrap_or(0).into(),
        speed: known(0x20).or_else(|| known(0x15)).unwrap_or(0).into(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::probe::fuzz::damaged;

    fn module(slot: &str, bank: &str) -> Module {
        Module {
            slot: slot.into(),
            bank: bank.into(),
            width: 64,
            speed: 4800,
        }
    }

    #[test]
    fn names_of_slots() {
        for (name, expected) in [
            ("P0 CHANNEL A", Some("P0 CHANNEL A")),
            ("ChannelA-DIMM0", Some("CHANNELA")),
            ("Controller1-ChannelB-DIMM0", Some("CONTROLLER1-CHANNELB")),
            ("P0_Node1_Channel2_Dimm0", Some("P0_NODE1_CHANNEL2")),
            ("CPU1_CHANNEL10DIMM1", Some("CPU1_CHANNEL10")),
            ("DIMM_B2", Some("B")),
            ("P1-DIMMC1", Some("P1-C")),
            ("CPU2_DIMM_H1", Some("CPU2_H")),
            // Of these the number or letter is something else, or nothing.
            ("A1", None),
            ("PROC 1 DIMM 4", None),
            ("DIMM 0", None),
            ("BANK 0", None),
            ("DIMM_ABC1", None),
            ("Channel DIMM0", None),
            ("Channel", None),
            ("", None),
        ] {
            assert_eq!(channel(name).as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn channels_add_up_and_slots_of_one_do_not() {
        let modules = [
            module("DIMM 0", "P0 CHANNEL A"),
            module("DIMM 1", "P0 CHANNEL A"),
            module("DIMM 0", "P0 CHANNEL B"),
        ];
        let maximum = of(&modules).unwrap();
        assert_eq!(maximum.rate, 2.0 * 4800e6 * 8.0);
        assert_eq!(maximum.text, "2 channels at 4800 MT/s, 77 GB/s");
        assert!(
            of(&[module("DIMM 0", "BANK 0")])
                .unwrap_err()
                .contains("share a channel")
        );
        let silent = Module {
            speed: 0,
            ..module("DIMM 0", "P0 CHANNEL A")
        };
        assert!(of(&[silent]).unwrap_err().contains("how fast"));
    }

    const UDEV: &str = "N:x\nE:MEMORY_ARRAY_NUM_DEVICES=3\n\
        E:MEMORY_DEVICE_0_DATA_WIDTH=64\nE:MEMORY_DEVICE_0_SIZE=17179869184\nE:MEMORY_DEVICE_0_LOCATOR=DIMM_A1\n\
        E:MEMORY_DEVICE_0_BANK_LOCATOR=BANK 0\nE:MEMORY_DEVICE_0_SPEED_MTS=3600\n\
        E:MEMORY_DEVICE_0_CONFIGURED_SPEED_MTS=3200\nE:MEMORY_DEVICE_1_PRESENT=0\nE:MEMORY_DEVICE_1_LOCATOR=DIMM_A2\n\
        E:MEMORY_DEVICE_2_DATA_WIDTH=64\nE:MEMORY_DEVICE_2_SIZE=17179869184\nE:MEMORY_DEVICE_2_LOCATOR=DIMM_B1\n\
        E:MEMORY_DEVICE_2_SPEED_MTS=3200\nE:MEMORY_DEVICE_x=\nE:MEMORY_DEVICE_3\n";

    /// A type 17 structure.
    fn structure(size: u16, speed: u16, strings: &[&str]) -> Vec<u8> {
        let mut fields = vec![0u8; 0x22];
        (fields[0], fields[1]) = (17, 0x22);
        fields[0x0a..0x0c].copy_from_slice(&64u16.to_le_bytes());
        fields[0x0c..0x0e].copy_from_slice(&size.to_le_bytes());
        (fields[0x10], fields[0x11]) = (1, 2);
        fields[0x20..].copy_from_slice(&speed.to_le_bytes());
        for string in strings {
            fields.extend(string.bytes());
            fields.push(0);
        }
        fields.extend(if strings.is_empty() {
            &[0, 0][..]
        } else {
            &[0]
        });
        fields
    }

    #[test]
    fn what_udev_and_the_table_say() {
        let dir = tempfile::tempdir().unwrap();
        let (udev, table) = (dir.path().join("udev"), dir.path().join("table"));
        assert!(look(&udev, &table).unwrap_err().contains("no table"));
        let mut bytes = vec![0, 4, 0, 0, 0, 0];
        bytes.extend(structure(0x4000, 4800, &["DIMM 0", "P0 CHANNEL A"]));
        bytes.extend(structure(0, 4800, &["DIMM 1", "P0 CHANNEL A"]));
        bytes.extend(structure(0x4000, 4800, &["DIMM 0", "P0 CHANNEL B"]));
        bytes.extend([127, 4, 0, 0, 0, 0]);
        bytes.extend(structure(0x4000, 9600, &["after the end", "P0 CHANNEL C"]));
        fs::write(&table, &bytes).unwrap();
        let found = look(&udev, &table).unwrap();
        assert_eq!(found.text, "2 channels at 4800 MT/s, 77 GB/s");
        // Of the first only the configured speed counts, of the last the rated one is all there is.
        fs::write(&udev, UDEV).unwrap();
        let found = look(&udev, &table).unwrap();
        assert_eq!(found.text, "2 channels at 3200 MT/s, 51 GB/s");
        fs::write(&udev, "E:ID_MODEL=x\n").unwrap();
        assert!(look(&udev, &table).is_ok(), "udev knows nothing");
        fs::write(&table, structure(0x4000, 0, &["DIMM 0", "P0 CHANNEL A"])).unwrap();
        assert!(
            look(&udev, &table)
                .unwrap_err()
                .contains("virtual machines")
        );
    }

    proptest! {
        #[test]
        fn broken_tables(bytes in damaged(structure(0x4000, 4800, &["DIMM_A1", "BANK 0"]))) {
            if let Ok(maximum) = of(&of_table(&bytes)) {
                prop_assert!(maximum.rate > 0.0 && maximum.rate.is_finite());
            }
        }

        #[test]
        fn any_bytes(bytes in vec(any::<u8>(), 0..300), text in "\\PC*") {
            let _ = of(&of_table(&bytes));
            let _ = of(&of_udev(&format!("E:MEMORY_DEVICE_{text}")));
            prop_assert!(channel(&text).is_none_or(|c| c.len() <= text.to_ascii_uppercase().len()));
        }
    }

    #[test]
    fn cut_tables() {
        let whole = structure(0x4000, 4800, &["DIMM_A1", "BANK 0"]);
        for length in 0..whole.len() {
            assert_eq!(of_table(&whole[..length]), [], "{length}");
        }
        assert_eq!(of_table(&whole).len(), 1);
    }
}

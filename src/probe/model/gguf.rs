//! GGUF headers, as its specification has them (ggml's `docs/gguf.md`): versions 2 and 3, little-endian. Pure.

use std::io::Read;

use super::{Header, MOST_TENSORS, Tensor};

/// A key or name may be this long (the specification's limit).
const LONGEST_NAME: u64 = (1 << 16) - 1;
const MOST_ENTRIES: u64 = 1 << 20;
/// Arrays of arrays are allowed; nobody nests them deeper.
const DEEPEST: u32 = 8;

/// Types of values in metadata.
const STRING: u32 = 8;
const ARRAY: u32 = 9;

type Result<T> = std::result::Result<T, String>;

struct Cursor<'a> {
    reader: &'a mut dyn Read,
}

impl Cursor<'_> {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.reader
            .read_exact(&mut bytes)
            .map_err(|_| "the header ends too early, or is longer than any known".to_string())?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn skip(&mut self, bytes: u64) -> Result<()> {
        let skipped = std::io::copy(&mut (&mut *self.reader).take(bytes), &mut std::io::sink());
        match skipped {
            Ok(n) if n == bytes => Ok(()),
            _ => Err("the header ends too early, or is longer than any known".into()),
        }
    }

    fn name(&mut self) -> Result<String> {
        let length = self.u64()?;
        if length > LONGEST_NAME {
            return Err(format!("a name of {length} bytes cannot be"));
        }
        let mut bytes = vec![0; length as usize];
        self.reader
            .read_exact(&mut bytes)
            .map_err(|_| "the header ends within a name".to_string())?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// A value of this type: as a number if it is a whole one, as a string if it is one.
    fn value(&mut self, kind: u32, depth: u32) -> Result<Value> {
        Ok(match kind {
            0 | 7 => Value::Number(u64::from(self.bytes::<1>()?[0])),
            1 => Value::Number(self.bytes::<1>()?[0] as i8 as u64),
            2 => Value::Number(u64::from(u16::from_le_bytes(self.bytes()?))),
            3 => Value::Number(i16::from_le_bytes(self.bytes()?) as u64),
            4 => Value::Number(u64::from(self.u32()?)),
            5 => Value::Number(i32::from_le_bytes(self.bytes()?) as u64),
            10 | 11 => Value::Number(self.u64()?),
            6 => {
                self.skip(4)?;
                Value::Other
            }
            12 => {
                self.skip(8)?;
                Value::Other
            }
            STRING => {
                let length = self.u64()?;
                if length > LONGEST_NAME {
                    self.skip(length)?;
                    return Ok(Value::Other);
                }
                let mut bytes = vec![0; length as usize];
                self.reader
                    .read_exact(&mut bytes)
                    .map_err(|_| "the header ends within a text".to_string())?;
                Value::Text(String::from_utf8_lossy(&bytes).into_owned())
            }
            ARRAY => {
                self.array(depth)?;
                Value::Other
            }
            other => return Err(format!("a value of the unknown type {other}")),
        })
    }

    fn array(&mut self, depth: u32) -> Result<()> {
        if depth >= DEEPEST {
            return Err("arrays are nested too deeply".into());
        }
        let kind = self.u32()?;
        let count = self.u64()?;
        let size: u64 = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            STRING => {
                for _ in 0..count {
                    let length = self.u64()?;
                    self.skip(length)?;
                }
                return Ok(());
            }
            ARRAY => {
                // Each takes 12 bytes at least, so the header's end bounds this.
                for _ in 0..count {
                    self.array(depth + 1)?;
                }
                return Ok(());
            }
            other => return Err(format!("an array of the unknown type {other}")),
        };
        let bytes = count
            .checked_mul(size)
            .ok_or("an array of impossible length")?;
        self.skip(bytes)
    }
}

enum Value {
    Number(u64),
    Text(String),
    Other,
}

/// Numbers in a block and bytes of a block, of ggml's types.
fn block(kind: u32) -> Option<(u64, u64)> {
    Some(match kind {
        0 | 26 => (1, 4),      // F32, I32
        1 | 25 | 30 => (1, 2), // F16, I16, BF16
        24 => (1, 1),          // I8
        27 | 28 => (1, 8),     // I64, F64
        2 => (32, 18),         // Q4_0
        3 => (32, 20),         // Q4_1
        6 => (32, 22),         // Q5_0
        7 => (32, 24),         // Q5_1
        8 => (32, 34),         // Q8_0
        9 => (32, 36),         // Q8_1
        10 => (256, 84),       // Q2_K
        11 => (256, 110),      // Q3_K
        12 => (256, 144),      // Q4_K
        13 => (256, 176),      // Q5_K
        14 => (256, 210),      // Q6_K
        15 => (256, 292),      // Q8_K
        16 => (256, 66),       // IQ2_XXS
        17 => (256, 74),       // IQ2_XS
        18 => (256, 98),       // IQ3_XXS
        19 => (256, 50),       // IQ1_S
        20 => (32, 18),        // IQ4_NL
        21 => (256, 110),      // IQ3_S
        22 => (256, 82),       // IQ2_S
        23 => (256, 136),      // IQ4_XS
        29 => (256, 56),       // IQ1_M
        34 => (256, 54),       // TQ1_0
        35 => (256, 66),       // TQ2_0
        39 => (32, 17),        // MXFP4
        _ => return None,
    })
}

/// Reads what follows the magic.
///
/// # Errors
/// What is wrong with it.
pub(super) fn parse(reader: &mut dyn Read) -> Result<Header> {
    let mut cursor = Cursor { reader };
    let version = cursor.u32()?;
    if !(2..=3).contains(&version) {
        return Err(match version.swap_bytes() {
            2 | 3 => "a big-endian GGUF file is for other machines".into(),
            _ => format!("GGUF version {version} is not known (2 and 3 are)"),
        });
    }
    let tensors = cursor.u64()?;
    let entries = cursor.u64()?;
    if tensors > MOST_TENSORS || entries > MOST_ENTRIES {
        return Err(format!("{tensors} tensors and {entries} entries cannot be"));
    }
    let mut header = Header {
        format: "GGUF".into(),
        ..Header::default()
    };
    let (mut used, mut all) = (None, None);
    for _ in 0..entries {
        let key = cursor.name()?;
        let kind = cursor.u32()?;
        match cursor.value(kind, 0)? {
            Value::Text(text) if key == "general.architecture" => {
                let text: String = text.chars().filter(|c| !c.is_control()).take(40).collect();
                header.format = format!("GGUF, {text}");
            }
            Value::Number(n) if key.ends_with(".expert_count") => all = Some(n),
            Value::Number(n) if key.ends_with(".expert_used_count") => used = Some(n),
            _ => {}
        }
    }
    if let (Some(used), Some(all)) = (used, all)
        && (1..all).contains(&used)
    {
        header.experts = Some((used, all));
    }
    for _ in 0..tensors {
        header.tensors.push(tensor(&mut cursor)?);
    }
    Ok(header)
}

fn tensor(cursor: &mut Cursor) -> Result<Tensor> {
    let name = cursor.name()?;
    let dimensions = cursor.u32()?;
    if dimensions > 8 {
        return Err(format!("a tensor of {dimensions} dimensions cannot be"));
    }
    let mut parameters = 1u64;
    for _ in 0..dimensions {
        parameters = parameters
            .checked_mul(cursor.u64()?)
            .ok_or("a tensor of impossible size")?;
    }
    let kind = cursor.u32()?;
    let _offset = cursor.u64()?;
    let (numbers, size) = block(kind).ok_or(format!("a tensor of the unknown type {kind}"))?;
    let bytes = u128::from(parameters).div_ceil(u128::from(numbers)) * u128::from(size);
    let bytes = u64::try_from(bytes).map_err(|_| "a tensor of impossible size".to_string())?;
    Ok(Tensor {
        name,
        bytes,
        parameters,
        is_quantised: numbers > 1,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::probe::fuzz::{damaged, peak};

    fn text(out: &mut Vec<u8>, text: &str) {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    }

    /// A small model, magic and all.
    pub fn sample() -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend(3u64.to_le_bytes());
        out.extend(5u64.to_le_bytes());
        text(&mut out, "general.architecture");
        out.extend(STRING.to_le_bytes());
        text(&mut out, "llama");
        for (key, value) in [("llama.expert_count", 8u32), ("llama.expert_used_count", 2)] {
            text(&mut out, key);
            out.extend(4u32.to_le_bytes());
            out.extend(value.to_le_bytes());
        }
        text(&mut out, "tokenizer.ggml.tokens");
        out.extend(ARRAY.to_le_bytes());
        out.extend(STRING.to_le_bytes());
        out.extend(3u64.to_le_bytes());
        for token in ["<s>", "", "hello"] {
            text(&mut out, token);
        }
        text(&mut out, "tokenizer.ggml.scores");
        out.extend(ARRAY.to_le_bytes());
        out.extend(6u32.to_le_bytes());
        out.extend(3u64.to_le_bytes());
        out.extend([0; 12]);
        for (name, shape, kind) in [
            ("token_embd.weight", &[64u64, 100][..], 1u32),
            ("blk.0.ffn_up_exps.weight", &[256, 4, 8], 12),
            ("output.weight", &[64, 100], 2),
        ] {
            text(&mut out, name);
            out.extend((shape.len() as u32).to_le_bytes());
            shape.iter().for_each(|n| out.extend(n.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend(0u64.to_le_bytes());
        }
        out
    }

    #[test]
    fn a_small_model() {
        let header = super::super::parse(&mut &sample()[..]).unwrap();
        assert_eq!(header.format, "GGUF, llama");
        assert_eq!(header.experts, Some((2, 8)));
        let sizes: Vec<_> = header
            .tensors
            .iter()
            .map(|t| (t.bytes, t.is_quantised))
            .collect();
        assert_eq!(
            sizes,
            [
                (12_800, false),
                (8_192 / 256 * 144, true),
                (6_400 / 32 * 18, true)
            ]
        );
    }

    #[test]
    fn none_that_ends_early() {
        let sample = sample();
        for length in 0..sample.len() {
            assert!(
                super::super::parse(&mut &sample[..length]).is_err(),
                "{length}"
            );
        }
    }

    /// Keys and values, and tensors of one or two dimensions.
    fn random() -> impl Strategy<Value = (Vec<u8>, Vec<(u64, bool)>)> {
        let value = prop_oneof![
            any::<u32>().prop_map(|n| (4, n.to_le_bytes().to_vec())),
            any::<u64>().prop_map(|n| (10, n.to_le_bytes().to_vec())),
            any::<bool>().prop_map(|b| (7, vec![b.into()])),
            any::<f64>().prop_map(|x| (12, x.to_le_bytes().to_vec())),
            "[a-z]{0,30}".prop_map(|t| {
                let mut bytes = Vec::new();
                text(&mut bytes, &t);
                (STRING, bytes)
            }),
            vec(any::<u16>(), 0..9).prop_map(|list| {
                let mut bytes = 2u32.to_le_bytes().to_vec();
                bytes.extend((list.len() as u64).to_le_bytes());
                list.iter().for_each(|n| bytes.extend(n.to_le_bytes()));
                (ARRAY, bytes)
            }),
        ];
        // Plain numbers, or blocks of 32 in 18 bytes.
        let tensor = (1..1u64 << 20, 1..1u64 << 10, any::<bool>());
        (vec(value, 0..9), vec(tensor, 0..9)).prop_map(|(values, tensors)| {
            let mut out = b"GGUF\x03\0\0\0".to_vec();
            out.extend((tensors.len() as u64).to_le_bytes());
            out.extend((values.len() as u64).to_le_bytes());
            for (kind, bytes) in values {
                text(&mut out, "some.key");
                out.extend(u32::to_le_bytes(kind));
                out.extend(bytes);
            }
            let mut expected = Vec::new();
            for (rows, columns, is_quantised) in tensors {
                text(&mut out, "blk.0.some.weight");
                out.extend(2u32.to_le_bytes());
                out.extend(rows.to_le_bytes());
                out.extend(columns.to_le_bytes());
                out.extend(if is_quantised { 2u32 } else { 1 }.to_le_bytes());
                out.extend(0u64.to_le_bytes());
                let numbers = rows * columns;
                let bytes = if is_quantised {
                    numbers.div_ceil(32) * 18
                } else {
                    2 * numbers
                };
                expected.push((bytes, is_quantised));
            }
            (out, expected)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn what_is_written_is_read((bytes, expected) in random()) {
            let header = super::super::parse(&mut &bytes[..]).unwrap();
            let found: Vec<_> = header.tensors.iter().map(|t| (t.bytes, t.is_quantised)).collect();
            prop_assert_eq!(found, expected);
            prop_assert!(super::super::parse(&mut &bytes[..bytes.len() - 1]).is_err());
        }

        #[test]
        fn damaged_files_take_no_memory(bytes in damaged(sample())) {
            let (result, most) = peak(|| super::super::parse(&mut &bytes[..]));
            // The longest name that is possible, in the worst of encodings.
            prop_assert!(most < 512 << 10, "{most}");
            if let Ok(header) = result {
                let model = super::super::add(&[header]);
                prop_assert!(model.bytes_per_token <= model.bytes);
            }
        }

        #[test]
        fn any_bytes(bytes in vec(any::<u8>(), 0..300)) {
            let whole = [b"GGUF\x03\0\0\0", &bytes[..]].concat();
            let (_, most) = peak(|| super::super::parse(&mut &whole[..]));
            prop_assert!(most < 512 << 10, "{most}");
        }
    }

    #[test]
    fn claims_that_cannot_be() {
        let with = |at: usize, bytes: &[u8]| {
            let mut changed = sample();
            changed[at..at + bytes.len()].copy_from_slice(bytes);
            super::super::parse(&mut &changed[..]).unwrap_err()
        };
        assert!(with(4, &7u32.to_le_bytes()).contains("version 7"));
        assert!(with(4, &3u32.to_be_bytes()).contains("big-endian"));
        assert!(with(8, &u64::MAX.to_le_bytes()).contains("cannot be"));
        assert!(with(24, &u64::MAX.to_le_bytes()).contains("name of"));
        let mut deep = b"GGUF\x03\0\0\0".to_vec();
        deep.extend(0u64.to_le_bytes());
        deep.extend(1u64.to_le_bytes());
        text(&mut deep, "a");
        deep.extend(ARRAY.to_le_bytes());
        for _ in 0..100 {
            deep.extend(ARRAY.to_le_bytes());
            deep.extend(1u64.to_le_bytes());
        }
        let problem = super::super::parse(&mut &deep[..]).unwrap_err();
        assert!(problem.contains("nested"), "{problem}");
    }
}

//! Headers of safetensors files: eight bytes of length, then JSON. Pure.

use std::fmt;
use std::io::Read;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{Header, MOST_TENSORS, Tensor};

/// Longer headers are refused by the format's own library as well.
const LONGEST: u64 = 100_000_000;
/// More dimensions than any tensor has.
const MOST_DIMENSIONS: usize = 64;

/// Bits of a number of this type; 0 for one that is not known.
fn bits(kind: &str) -> u64 {
    match kind {
        "F64" | "I64" | "U64" | "C64" => 64,
        "F32" | "I32" | "U32" => 32,
        "F16" | "BF16" | "I16" | "U16" => 16,
        "F8_E4M3" | "F8_E5M2" | "F8_E8M0" | "I8" | "U8" | "BOOL" => 8,
        "F6_E2M3" | "F6_E3M2" => 6,
        "F4" => 4,
        _ => 0,
    }
}

/// Reads a header of which the first four bytes are known.
///
/// # Errors
/// What is wrong with it.
pub(super) fn parse(start: [u8; 4], reader: &mut dyn Read) -> Result<Header, String> {
    const OTHER: &str = "it is neither a GGUF nor a safetensors file";
    let mut rest = [0; 4];
    reader
        .read_exact(&mut rest)
        .map_err(|_| OTHER.to_string())?;
    let length = u64::from(u32::from_le_bytes(start)) | u64::from(u32::from_le_bytes(rest)) << 32;
    if !(2..=LONGEST).contains(&length) {
        return Err(OTHER.into());
    }
    let mut first = [0];
    if reader.read_exact(&mut first).is_err() || first != *b"{" {
        return Err(OTHER.into());
    }
    // Entry by entry: what is kept is less than what was read.
    let mut rest = reader.take(length - 1);
    let parsed = {
        let mut json = serde_json::Deserializer::from_reader(first.chain(&mut rest));
        Tensors::deserialize(&mut json).and_then(|tensors| json.end().map(|()| tensors))
    };
    match parsed {
        Ok(Tensors(tensors)) if rest.limit() == 0 => Ok(Header {
            format: "safetensors".into(),
            tensors,
            ..Header::default()
        }),
        _ if rest.limit() > 0 && matches!(rest.read(&mut [0]), Ok(0)) => {
            Err("the header ends too early".into())
        }
        Ok(_) => Err("its header is damaged".into()),
        Err(error) if error.is_data() => Err(format!("its header is damaged: {error}")),
        Err(error) => Err(format!("its header is damaged ({error})")),
    }
}

/// All of them.
struct Tensors(Vec<Tensor>);

impl<'de> Deserialize<'de> for Tensors {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Tensors, D::Error> {
        from.deserialize_map(Entries)
    }
}

struct Entries;

impl<'de> Visitor<'de> for Entries {
    type Value = Tensors;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("tensors by name")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Tensors, M::Error> {
        let mut tensors = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            if tensors.len() as u64 >= MOST_TENSORS {
                return Err(M::Error::custom("more tensors than any model has"));
            }
            let damaged = || {
                let name: String = name.chars().filter(|c| !c.is_control()).take(60).collect();
                M::Error::custom(format!("the entry of '{name}' is damaged"))
            };
            let entry = map.next_value::<Entry>().map_err(|_| damaged())?;
            tensors.push(entry.tensor(&name).ok_or_else(damaged)?);
        }
        Ok(Tensors(tensors))
    }
}

/// What is said of a tensor.
#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Shape,
    data_offsets: (u64, u64),
}

impl Entry {
    fn tensor(&self, name: &str) -> Option<Tensor> {
        let (from, to) = self.data_offsets;
        let bytes = to.checked_sub(from)?;
        let (Shape(parameters), bits) = (&self.shape, bits(&self.dtype));
        if bits > 0 && u128::from(*parameters) * u128::from(bits) != u128::from(bytes) * 8 {
            return None;
        }
        Some(Tensor {
            name: name.to_string(),
            bytes,
            parameters: *parameters,
            // Packed weights of GPTQ and AWQ are whole numbers; they are read as any other.
            is_quantised: false,
        })
    }
}

/// How many numbers there are: the product.
struct Shape(u64);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Shape, D::Error> {
        from.deserialize_seq(Dimensions)
    }
}

struct Dimensions;

impl<'de> Visitor<'de> for Dimensions {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a list of dimensions")
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut list: S) -> Result<Shape, S::Error> {
        let (mut product, mut count) = (1u64, 0);
        while let Some(dimension) = list.next_element::<u64>()? {
            count += 1;
            product = product
                .checked_mul(dimension)
                .filter(|_| count <= MOST_DIMENSIONS)
                .ok_or_else(|| S::Error::custom("a tensor of impossible size"))?;
        }
        Ok(Shape(product))
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::parse;
    use crate::probe::fuzz::{damaged, peak};

    fn file(json: &str) -> Vec<u8> {
        let mut out = (json.len() as u64).to_le_bytes().to_vec();
        out.extend(json.as_bytes());
        out
    }

    const SAMPLE: &str = r#"{"__metadata__":{"format":"pt"},
        "model.embed_tokens.weight":{"dtype":"BF16","shape":[100,64],"data_offsets":[0,12800]},
        "model.layers.0.mlp.up_proj.weight":{"dtype":"F8_E4M3","shape":[256,64],"data_offsets":[12800,29184]}}"#;

    #[test]
    fn a_small_model() {
        let header = parse(&mut &file(SAMPLE)[..]).unwrap();
        assert_eq!(header.format, "safetensors");
        let mut sizes: Vec<_> = header
            .tensors
            .iter()
            .map(|t| (t.bytes, t.parameters))
            .collect();
        sizes.sort_unstable();
        assert_eq!(sizes, [(12_800, 6_400), (16_384, 16_384)]);
    }

    #[test]
    fn damaged_headers() {
        let huge = u64::MAX.to_string();
        for (json, part) in [
            ("{}}", "damaged"),
            ("[1]", "neither"),
            (r#"{"a":1}"#, "'a' is damaged"),
            (
                r#"{"a":{"dtype":"F16","shape":[2],"data_offsets":[4,0]}}"#,
                "damaged",
            ),
            (
                r#"{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,5]}}"#,
                "damaged",
            ),
            (
                r#"{"a":{"dtype":"F16","shape":[-2],"data_offsets":[0,4]}}"#,
                "damaged",
            ),
            (&SAMPLE.replace("256", &huge), "damaged"),
            (&"[".repeat(10_000).replacen('[', "{\"a\":", 1), "damaged"),
        ] {
            let problem = parse(&mut &file(json)[..]).unwrap_err();
            assert!(problem.contains(part), "{json:.40}: {problem}");
        }
        let whole = file(SAMPLE);
        for length in 0..whole.len() {
            assert!(parse(&mut &whole[..length]).is_err(), "{length}");
        }
    }

    /// Entries of this many numbers, and what lies between the braces.
    fn header(sizes: &[u64]) -> String {
        let mut at = 0;
        let mut entry = |(n, size): (usize, &u64)| {
            let (from, to) = (at, at + 2 * size);
            at = to;
            format!(r#""t{n}":{{"dtype":"F16","shape":[{size}],"data_offsets":[{from},{to}]}}"#)
        };
        let entries: Vec<_> = sizes.iter().enumerate().map(&mut entry).collect();
        format!("{{{}}}", entries.join(","))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn what_is_written_is_read(sizes in vec(0..1u64 << 40, 0..20), spaces in 0..9usize) {
            let json = header(&sizes) + &" ".repeat(spaces);
            let read = parse(&mut &file(&json)[..]).unwrap();
            let found: Vec<u64> = read.tensors.iter().map(|t| t.parameters).collect();
            prop_assert_eq!(&found, &sizes);
            prop_assert!(read.tensors.iter().all(|t| t.bytes == 2 * t.parameters));
        }

        #[test]
        fn damaged_files_take_no_memory(bytes in damaged(file(SAMPLE))) {
            let (result, most) = peak(|| parse(&mut &bytes[..]));
            prop_assert!(most < 16 << 10, "{most}");
            if let Err(problem) = result {
                prop_assert!(problem.len() < 200, "{}", problem);
            }
        }

        #[test]
        fn any_bytes(length in any::<u64>(), bytes in vec(any::<u8>(), 0..200)) {
            let whole = [&length.to_le_bytes()[..], b"{", &bytes].concat();
            let (_, most) = peak(|| parse(&mut &whole[..]));
            prop_assert!(most < 16 << 10, "{}", most);
        }
    }

    #[test]
    fn much_text_is_not_much_memory() {
        for json in [
            format!(
                r#"{{"a":{{"dtype":"F16","shape":[{}1],"data_offsets":[0,2]}}}}"#,
                "1,".repeat(400_000)
            ),
            format!(r#"{{"__metadata__":{{"a":[{}1]}}}}"#, "1,".repeat(400_000)),
            format!(r#"{{"a":[{}"#, "[],".repeat(300_000)),
            header(&vec![0; 15_000]),
        ] {
            let bytes = file(&json);
            let (_, most) = peak(|| parse(&mut &bytes[..]));
            assert!(
                most < 3 * bytes.len(),
                "{json:.40}: {most} for {}",
                bytes.len()
            );
        }
    }
}

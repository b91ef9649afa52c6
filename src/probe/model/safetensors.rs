//! Headers of safetensors files: eight bytes of length, then JSON. Pure.

use std::io::Read;

use serde_json::Value;

use super::{Header, MOST_TENSORS, Tensor};

/// Longer headers are refused by the format's own library as well.
const LONGEST: u64 = 100_000_000;

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
    // Grows with what is there, not with what is claimed.
    let mut json = Vec::new();
    let read = reader.take(length).read_to_end(&mut json);
    if json.first() != Some(&b'{') {
        return Err(OTHER.into());
    }
    if read.is_err() || json.len() as u64 != length {
        return Err("the header ends too early".into());
    }
    let parsed: Value =
        serde_json::from_slice(&json).map_err(|e| format!("its header is damaged ({e})"))?;
    let entries = parsed.as_object().ok_or(OTHER)?;
    if entries.len() as u64 > MOST_TENSORS {
        return Err(format!("{} tensors cannot be", entries.len()));
    }
    let mut header = Header {
        format: "safetensors".into(),
        ..Header::default()
    };
    for (name, entry) in entries.iter().filter(|(name, _)| *name != "__metadata__") {
        header.tensors.push(tensor(name, entry)?);
    }
    Ok(header)
}

fn tensor(name: &str, entry: &Value) -> Result<Tensor, String> {
    let damaged = || {
        let name: String = name.chars().filter(|c| !c.is_control()).take(60).collect();
        format!("the entry of '{name}' is damaged")
    };
    let number = |value: &Value| value.as_u64();
    let offsets = entry["data_offsets"].as_array().ok_or_else(damaged)?;
    let [from, to] = &offsets[..] else {
        return Err(damaged());
    };
    let (from, to) = (
        number(from).ok_or_else(damaged)?,
        number(to).ok_or_else(damaged)?,
    );
    let bytes = to.checked_sub(from).ok_or_else(damaged)?;
    let shape = entry["shape"].as_array().ok_or_else(damaged)?;
    let parameters = shape
        .iter()
        .try_fold(1u64, |product, n| product.checked_mul(number(n)?))
        .ok_or_else(damaged)?;
    let bits = bits(entry["dtype"].as_str().ok_or_else(damaged)?);
    if bits > 0 && u128::from(parameters) * u128::from(bits) != u128::from(bytes) * 8 {
        return Err(damaged());
    }
    Ok(Tensor {
        name: name.to_string(),
        bytes,
        parameters,
        // Packed weights of GPTQ and AWQ are whole numbers; they are read as any other.
        is_quantised: false,
    })
}

#[cfg(test)]
mod tests {
    use super::super::parse;

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

    #[test]
    fn nothing_makes_it_panic() {
        let whole = file(SAMPLE);
        let mut state = 7u64;
        for _ in 0..50_000 {
            let mut bytes = whole.clone();
            for _ in 0..2 {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                let at = (state >> 33) as usize % bytes.len();
                bytes[at] = (state >> 25) as u8;
            }
            let _ = parse(&mut &bytes[..]);
        }
    }
}

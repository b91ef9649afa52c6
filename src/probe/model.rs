//! Model files: how many bytes of weights there are, and how many of them a token needs. Only headers are read.

mod gguf;
mod safetensors;

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// A header may be this long; the largest known are a tenth of it.
const LONGEST_HEADER: u64 = 256 << 20;
/// More tensors than any model has.
const MOST_TENSORS: u64 = 1 << 20;

/// What the headers say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Model {
    /// Bytes of all weights.
    pub bytes: u64,
    /// Numbers in them.
    pub parameters: u64,
    /// Bytes that are read for every token: without embedding rows, and of the experts only those that are used.
    pub bytes_per_token: u64,
    /// Numbers that are used for every token.
    pub parameters_per_token: u64,
    pub tensors: u64,
    /// Whether most of the bytes lie in quantised blocks.
    pub is_quantised: bool,
    /// The format, and what the file calls its architecture.
    pub format: String,
    /// How many files.
    pub files: usize,
}

impl Model {
    /// In a line.
    pub fn describe(&self) -> String {
        use crate::size::human;
        let files = match self.files {
            1 => String::new(),
            n => format!(" in {n} files"),
        };
        let kind = if self.is_quantised {
            "quantised"
        } else {
            "not quantised"
        };
        format!(
            "{}, {} tensors{files}: {} of weights ({kind}), {} read for each token",
            self.format,
            self.tensors,
            human(self.bytes),
            human(self.bytes_per_token)
        )
    }
}

/// One tensor of a header.
#[derive(Clone, Debug, PartialEq)]
struct Tensor {
    name: String,
    bytes: u64,
    parameters: u64,
    is_quantised: bool,
}

/// A parsed header.
#[derive(Clone, Debug, Default, PartialEq)]
struct Header {
    format: String,
    tensors: Vec<Tensor>,
    /// Experts that are used for a token, of how many.
    experts: Option<(u64, u64)>,
}

/// Reads the headers of a model; of one that is split over files, all of them.
///
/// # Errors
/// What is wrong with the file, in a sentence.
pub fn read(path: &Path) -> anyhow::Result<Model> {
    let mut headers = Vec::new();
    for file in parts(path)? {
        let shown = file.display();
        let open =
            File::open(&file).with_context(|| format!("--model: {shown} cannot be opened"))?;
        if open.metadata().is_ok_and(|m| m.is_dir()) {
            bail!("--model: {shown} is a directory: name a .gguf or .safetensors file");
        }
        let header = parse(&mut BufReader::new(open))
            .map_err(|problem| anyhow::anyhow!("--model: {shown}: {problem}"))?;
        headers.push(header);
    }
    Ok(add(&headers))
}

/// Reads a header, whatever it is.
fn parse(reader: &mut dyn Read) -> Result<Header, String> {
    let mut start = [0; 4];
    reader
        .read_exact(&mut start)
        .map_err(|_| "it is too short for a model".to_string())?;
    let mut rest = reader.take(LONGEST_HEADER);
    if start == *b"GGUF" {
        gguf::parse(&mut rest)
    } else {
        safetensors::parse(start, &mut rest)
    }
}

/// All files of a model that is split as `NAME-00001-of-00003.EXT`.
fn parts(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let Some((before, count, after)) = path.file_name().and_then(|name| split(name.to_str()?))
    else {
        return Ok(vec![path.to_path_buf()]);
    };
    (1..=count)
        .map(|n| {
            let part = path.with_file_name(format!("{before}-{n:05}-of-{count:05}.{after}"));
            if !part.exists() {
                bail!(
                    "--model: {} is missing: it is part of {}",
                    part.display(),
                    path.display()
                );
            }
            Ok(part)
        })
        .collect()
}

fn split(name: &str) -> Option<(String, u32, String)> {
    let (stem, extension) = name.rsplit_once('.')?;
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (before, number) = rest.rsplit_once('-')?;
    let digits = |text: &str| {
        (text.len() == 5)
            .then(|| text.parse::<u32>().ok())
            .flatten()
    };
    digits(number)?;
    let count = digits(count).filter(|n| (1..=9_999).contains(n))?;
    Some((before.to_string(), count, extension.to_string()))
}

fn add(headers: &[Header]) -> Model {
    let mut model = Model {
        files: headers.len(),
        format: headers
            .first()
            .map(|h| h.format.clone())
            .unwrap_or_default(),
        ..Model::default()
    };
    let mut quantised = 0u64;
    let experts = headers.iter().find_map(|h| h.experts);
    let all = || headers.iter().flat_map(|h| &h.tensors);
    let has_output = all().any(|t| is_output(&t.name));
    for tensor in all() {
        model.tensors += 1;
        model.bytes = model.bytes.saturating_add(tensor.bytes);
        model.parameters = model.parameters.saturating_add(tensor.parameters);
        if tensor.is_quantised {
            quantised = quantised.saturating_add(tensor.bytes);
        }
        let (used, of) = match experts {
            // One row of it is read, unless it serves as the output as well.
            _ if is_embedding(&tensor.name) && has_output => (0, 1),
            Some((used, of)) if is_expert(&tensor.name) => (used, of),
            _ => (1, 1),
        };
        let part = |n: u64| (u128::from(n) * u128::from(used) / u128::from(of)) as u64;
        model.bytes_per_token = model.bytes_per_token.saturating_add(part(tensor.bytes));
        model.parameters_per_token = model
            .parameters_per_token
            .saturating_add(part(tensor.parameters));
    }
    model.is_quantised = quantised > model.bytes / 2;
    model
}

fn is_embedding(name: &str) -> bool {
    name == "token_embd.weight"
        || name.ends_with("embed_tokens.weight")
        || name.ends_with("wte.weight")
}

fn is_output(name: &str) -> bool {
    name == "output.weight" || name.ends_with("lm_head.weight")
}

fn is_expert(name: &str) -> bool {
    name.contains("_exps.") || name.contains(".experts.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, bytes: u64) -> Tensor {
        Tensor {
            name: name.into(),
            bytes,
            parameters: bytes / 2,
            is_quantised: name.starts_with("blk"),
        }
    }

    #[test]
    fn what_a_token_reads() {
        let header = Header {
            format: "GGUF".into(),
            tensors: vec![
                tensor("token_embd.weight", 1_000),
                tensor("blk.0.attn_q.weight", 100),
                tensor("blk.0.ffn_up_exps.weight", 8_000),
                tensor("output.weight", 1_000),
            ],
            experts: Some((2, 8)),
        };
        let model = add(&[header.clone(), Header::default()]);
        assert_eq!((model.bytes, model.files, model.tensors), (10_100, 2, 4));
        assert_eq!(model.bytes_per_token, 100 + 2_000 + 1_000);
        assert_eq!(model.parameters_per_token, 1_550);
        assert!(model.is_quantised);
        let tied = Header {
            tensors: header.tensors[..2].to_vec(),
            experts: None,
            ..header
        };
        assert_eq!(
            add(&[tied]).bytes_per_token,
            1_100,
            "it is the output as well"
        );
    }

    #[test]
    fn files_of_one_model() {
        let name = split("llama-70b-00002-of-00003.gguf").unwrap();
        assert_eq!(name, ("llama-70b".into(), 3, "gguf".into()));
        for other in [
            "model.gguf",
            "a-1-of-3.gguf",
            "a-00001-of-00000.gguf",
            "-of-.x",
            "",
        ] {
            assert_eq!(split(other), None, "{other}");
        }
        let dir = tempfile::tempdir().unwrap();
        let of = |n: u32| dir.path().join(format!("m-{n:05}-of-00002.safetensors"));
        std::fs::write(of(1), "").unwrap();
        let error = parts(&of(1)).unwrap_err().to_string();
        assert!(
            error.contains("m-00002-of-00002.safetensors is missing"),
            "{error}"
        );
        std::fs::write(of(2), "").unwrap();
        assert_eq!(parts(&of(2)).unwrap(), [of(1), of(2)]);
    }

    #[test]
    fn nothing_that_is_no_model() {
        for bytes in [&b""[..], b"GG", b"ELF\x7f and so on", b"GGUF", &[0xff; 64]] {
            let problem = parse(&mut &bytes[..]).unwrap_err();
            assert!(!problem.is_empty() && problem.len() < 120, "{problem}");
        }
    }
}

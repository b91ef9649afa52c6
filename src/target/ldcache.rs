//! `/etc/ld.so.cache`: which library of a name is where, as ldconfig found them.

use std::path::{Path, PathBuf};

const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
const HEADER: usize = 48;
const ENTRY: usize = 24;

/// The cache's content.
#[derive(Default)]
pub struct Cache {
    entries: Vec<(Vec<u8>, PathBuf)>,
}

impl Cache {
    /// Reads it; an empty one when it is not there or not understood.
    pub fn read(path: &Path) -> Cache {
        let bytes = std::fs::read(path).unwrap_or_default();
        Cache::parse(&bytes).unwrap_or_default()
    }

    fn parse(bytes: &[u8]) -> Option<Cache> {
        // An older format may stand before it; names are found from here on.
        let bytes = &bytes[memchr::memmem::find(bytes, MAGIC)?..];
        let number = |at: usize| {
            let four = bytes.get(at..at.checked_add(4)?)?;
            Some(u32::from_le_bytes(four.try_into().ok()?) as usize)
        };
        let string = |at: usize| bytes.get(at..)?.split(|b| *b == 0).next();
        let count = number(MAGIC.len())?;
        let mut plain = Vec::new();
        let mut special = Vec::new();
        for index in 0..count {
            let at = HEADER.checked_add(index.checked_mul(ENTRY)?)?;
            let (Some(name), Some(path)) = (number(at + 4), number(at + 8)) else {
                break;
            };
            let (Some(name), Some(path)) = (string(name), string(path)) else {
                continue;
            };
            let path = PathBuf::from(String::from_utf8_lossy(path).into_owned());
            // Variants for certain processors come after the one for all: they need the same libraries.
            let is_special = number(at + 16)? != 0 || number(at + 20)? != 0;
            let list = if is_special { &mut special } else { &mut plain };
            list.push((name.to_vec(), path));
        }
        plain.append(&mut special);
        Some(Cache { entries: plain })
    }

    /// The files of this name, for whatever machine.
    pub fn find<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Path> {
        self.entries
            .iter()
            .filter(move |(known, _)| known == name.as_bytes())
            .map(|(_, path)| path.as_path())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(entries: &[(&str, &str, u64)]) -> Vec<u8> {
        let mut strings = Vec::new();
        let mut table = Vec::new();
        let base = HEADER + entries.len() * ENTRY;
        for (name, path, hwcap) in entries {
            table.extend(0x303u32.to_le_bytes());
            for text in [name, path] {
                table.extend(((base + strings.len()) as u32).to_le_bytes());
                strings.extend(text.as_bytes());
                strings.push(0);
            }
            table.extend(0u32.to_le_bytes());
            table.extend(hwcap.to_le_bytes());
        }
        let mut bytes = MAGIC.to_vec();
        bytes.extend((entries.len() as u32).to_le_bytes());
        bytes.extend((strings.len() as u32).to_le_bytes());
        bytes.resize(HEADER, 0);
        [bytes, table, strings].concat()
    }

    #[test]
    fn found_plain_ones_first() {
        let bytes = cache(&[
            ("liba.so.1", "/v3/liba.so.1", 1 << 62),
            ("liba.so.1", "/lib/liba.so.1", 0),
            ("libb.so", "/lib/libb.so", 0),
        ]);
        for before in [&b""[..], b"ld.so-1.7.0\0\0\0\0\0"] {
            let cache = Cache::parse(&[before, &bytes].concat()).unwrap();
            let found: Vec<_> = cache.find("liba.so.1").collect();
            assert_eq!(
                found,
                [Path::new("/lib/liba.so.1"), Path::new("/v3/liba.so.1")]
            );
            assert_eq!(cache.find("libc").count(), 0);
        }
    }

    #[test]
    fn nonsense_is_empty() {
        let bytes = cache(&[("liba.so.1", "/lib/liba.so.1", 0)]);
        for length in 0..bytes.len() {
            let _ = Cache::parse(&bytes[..length]);
        }
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] = 0xff;
            let _ = Cache::parse(&bytes);
        }
        assert!(Cache::parse(b"hello").is_none());
    }

    #[test]
    #[cfg(target_env = "gnu")]
    fn this_systems_own() {
        let path = Path::new("/etc/ld.so.cache");
        if path.exists() {
            assert!(Cache::read(path).find("libc.so.6").next().is_some());
        }
    }
}

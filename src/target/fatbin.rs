//! Which GPUs the kernels in a file are for: from the headers of nvcc's containers, hopping from one to the next.

use std::fs::File;

use super::dynamic::piece;

const MAGIC: u32 = 0xBA55_ED50;
const KIND_PTX: u16 = 1;
const KIND_MACHINE_CODE: u16 = 2;
/// Size of the container's own header, and as much of an entry's as is read.
const CONTAINER: u64 = 16;
const ENTRY: u64 = 32;
/// A library with more kernels than this has surely named all its architectures by then.
const MOST_HOPS: usize = 20_000;

/// Adds the architectures of the containers in this part of the file.
pub fn architectures(file: &File, start: u64, size: u64, found: &mut Vec<String>) {
    let Some(end) = start.checked_add(size) else {
        return;
    };
    let mut at = start;
    for _ in 0..MOST_HOPS {
        let Some(header) = room(at, CONTAINER, end).and_then(|()| piece(file, at, CONTAINER))
        else {
            return;
        };
        if number(&header, 0, 4) != u64::from(MAGIC) {
            // Containers are aligned; what is between them is padding.
            match at.checked_add(8) {
                Some(next) => at = next,
                None => return,
            }
            continue;
        }
        let first = at.saturating_add(number(&header, 6, 2).max(CONTAINER));
        let next = first.saturating_add(number(&header, 8, 8)).min(end);
        entries(file, first, next, found);
        at = next.next_multiple_of(8);
    }
}

fn entries(file: &File, mut at: u64, end: u64, found: &mut Vec<String>) {
    for _ in 0..MOST_HOPS {
        let Some(entry) = room(at, ENTRY, end).and_then(|()| piece(file, at, ENTRY)) else {
            return;
        };
        let architecture = number(&entry, 28, 4);
        let name = match number(&entry, 0, 2) as u16 {
            KIND_PTX => format!("compute_{architecture}"),
            KIND_MACHINE_CODE => format!("sm_{architecture}"),
            // Not an entry as we know them: what follows could be anything.
            _ => return,
        };
        if architecture < 1000 && !found.contains(&name) {
            found.push(name);
        }
        let size = number(&entry, 4, 4).saturating_add(number(&entry, 8, 8));
        if size < ENTRY {
            return;
        }
        at = at.saturating_add(size);
    }
}

fn room(at: u64, size: u64, end: u64) -> Option<()> {
    (at.checked_add(size)? <= end).then_some(())
}

/// A little-endian number inside these bytes.
fn number(bytes: &[u8], at: usize, size: usize) -> u64 {
    bytes[at..at + size]
        .iter()
        .rev()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Machine code first, each by number.
pub fn in_order(names: &mut [String]) {
    names.sort_by_key(|name| {
        let number = name.rsplit('_').next().and_then(|n| n.parse::<u32>().ok());
        (name.starts_with("compute"), number)
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn entry(kind: u16, architecture: u32, payload: usize) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..2].copy_from_slice(&kind.to_le_bytes());
        bytes[4..8].copy_from_slice(&64u32.to_le_bytes());
        bytes[8..16].copy_from_slice(&(payload as u64).to_le_bytes());
        bytes[28..32].copy_from_slice(&architecture.to_le_bytes());
        bytes.extend(vec![0xee; payload]);
        bytes
    }

    fn container(entries: &[Vec<u8>]) -> Vec<u8> {
        let entries = entries.concat();
        let mut bytes = MAGIC.to_le_bytes().to_vec();
        bytes.extend(1u16.to_le_bytes());
        bytes.extend(16u16.to_le_bytes());
        bytes.extend((entries.len() as u64).to_le_bytes());
        bytes.extend(entries);
        bytes
    }

    fn found_in(bytes: &[u8]) -> Vec<String> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let mut found = Vec::new();
        architectures(&file, 0, bytes.len() as u64, &mut found);
        in_order(&mut found);
        found
    }

    #[test]
    fn containers_one_after_another() {
        let mut bytes = container(&[entry(1, 90, 40), entry(2, 90, 8), entry(2, 80, 104)]);
        bytes.extend([0; 24]);
        bytes.extend(container(&[entry(2, 120, 16), entry(2, 80, 16)]));
        assert_eq!(found_in(&bytes), ["sm_80", "sm_90", "sm_120", "compute_90"]);
    }

    #[test]
    fn nonsense_ends() {
        assert!(found_in(b"").is_empty());
        assert!(found_in(&[0x50, 0xed, 0x55, 0xba].repeat(100)).is_empty());
        let whole = container(&[entry(1, 90, 40), entry(2, 90, 8)]);
        for length in 0..whole.len() {
            found_in(&whole[..length]);
        }
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] = 0xff;
            found_in(&bytes);
        }
    }
}

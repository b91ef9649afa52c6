//! `--spill`: what it may say, and whether the directory that it names will do.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use anyhow::{Context, bail};
use greenboost_wire::nvme::{LEAST, Nvme, Place, Refusal, Why, largest_file};

use crate::size::{self, Amount, human};

/// Where allocations go when VRAM is full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spill {
    /// To host RAM.
    Ram,
    /// To host RAM, and what has no place there to a disk.
    Nvme(Nvme),
    /// Nowhere.
    Off,
}

/// Whether the shim can spill to a disk. While it cannot, all that asks for it is refused.
const HAS_NVME: bool = false;

/// Parses `ram`, `off`, or `nvme:DIR[,limit=SIZE]`, before which `ram,` may stand: RAM is always between.
///
/// # Errors
/// One sentence that says what is wrong with the text and what to write instead.
pub fn parse(text: OsString) -> Result<Spill, String> {
    let bytes = text.as_bytes();
    let asked = bytes.strip_prefix(b"ram,").unwrap_or(bytes);
    if !HAS_NVME && (asked == b"nvme" || asked.starts_with(b"nvme:")) {
        return Err(format!(
            "'{}' is not possible yet, there is no NVMe tier in this version: use 'ram' or 'off'",
            text.display()
        ));
    }
    read(&text)
}

fn read(text: &OsStr) -> Result<Spill, String> {
    let shown = text.display();
    let bytes = text.as_bytes();
    match bytes.strip_prefix(b"ram,").unwrap_or(bytes) {
        _ if bytes == b"ram" => Ok(Spill::Ram),
        _ if bytes == b"off" => Ok(Spill::Off),
        nvme if nvme.starts_with(b"nvme:") => disk(&nvme[b"nvme:".len()..]).map(Spill::Nvme),
        b"nvme" => Err(NO_DIRECTORY.into()),
        _ if bytes.starts_with(b"off,") || bytes.ends_with(b",off") => {
            Err(format!("'{shown}' is a contradiction: 'off' stands alone"))
        }
        _ if HAS_NVME => Err(format!(
            "'{shown}' is not a place to spill to: use 'ram', 'nvme:DIR' or 'off'"
        )),
        _ => Err(format!(
            "'{shown}' is not a place to spill to: use 'ram' or 'off'"
        )),
    }
}

const NO_DIRECTORY: &str =
    "'nvme' needs a directory: write nvme:DIR, like nvme:/scratch or nvme:/scratch,limit=200G";

/// `DIR[,limit=SIZE]`; the directory's name may have commas of its own.
fn disk(text: &[u8]) -> Result<Nvme, String> {
    const LIMIT: &[u8] = b",limit=";
    let at = text.windows(LIMIT.len()).rposition(|part| part == LIMIT);
    let (dir, limit) = match at {
        Some(at) => (&text[..at], Some(&text[at + LIMIT.len()..])),
        None => (text, None),
    };
    if dir.is_empty() {
        return Err(NO_DIRECTORY.into());
    }
    let limit = limit.map(|limit| {
        let limit = String::from_utf8_lossy(limit);
        match size::parse(&limit)? {
            Amount::Bytes(bytes) if bytes >= LEAST => Ok(bytes),
            Amount::Bytes(_) => Err(format!(
                "limit={limit} is too small to spill to: write at least {}M",
                LEAST >> 20
            )),
            Amount::Share(_) => Err(format!(
                "limit={limit} is a percentage, and a size is needed: write a number with a unit, like 200G"
            )),
        }
    });
    Ok(Nvme {
        dir: OsString::from_vec(dir.to_vec()).into(),
        limit: limit.transpose()?,
    })
}

/// A directory that will do.
#[derive(Debug, PartialEq, Eq)]
pub struct Ready {
    /// For the shim; the name is absolute: the program's processes may be in other directories.
    pub nvme: Nvme,
    /// Bytes that may be spilled there, as far as one can tell now.
    pub bytes: u64,
    /// What the user should hear.
    pub note: Option<String>,
}

/// Looks whether the directory will do, before the program starts.
///
/// # Errors
/// Why it will not, in a sentence.
pub fn prepare(nvme: &Nvme) -> anyhow::Result<Ready> {
    let dir = std::path::absolute(&nvme.dir)
        .with_context(|| format!("--spill: '{}'", nvme.dir.display()))?;
    let place = match Place::look(&dir) {
        Ok(place) => place,
        Err(refusal) => bail!("--spill: {refusal}"),
    };
    let largest = largest_file();
    if largest < LEAST {
        let why = Why::FileSize(largest);
        bail!("--spill: {}", Refusal { dir, why });
    }
    let usable = place.room.usable().min(largest);
    let note = nvme.limit.filter(|limit| *limit > usable).map(|limit| {
        format!(
            "the limit of {} is more than the {} that may be filled in {}",
            human(limit),
            human(usable),
            dir.display()
        )
    });
    Ok(Ready {
        bytes: nvme.limit.unwrap_or(u64::MAX).min(usable),
        nvme: Nvme {
            dir,
            limit: nvme.limit,
        },
        note,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn nvme(dir: &str, limit: Option<u64>) -> Spill {
        Spill::Nvme(Nvme {
            dir: dir.into(),
            limit,
        })
    }

    #[test]
    fn places() {
        for (text, expected) in [
            ("ram", Spill::Ram),
            ("off", Spill::Off),
            ("nvme:/scratch", nvme("/scratch", None)),
            ("ram,nvme:/scratch", nvme("/scratch", None)),
            ("nvme:here", nvme("here", None)),
            ("nvme:/a,b:c,limit=20G", nvme("/a,b:c", Some(20 << 30))),
            (
                "nvme:/x,limit=1G,limit=64M",
                nvme("/x,limit=1G", Some(64 << 20)),
            ),
            ("ram,nvme:off,limit=1.5G", nvme("off", Some(3 << 29))),
        ] {
            assert_eq!(read(text.as_ref()), Ok(expected), "{text}");
        }
        let odd = OsString::from_vec(b"nvme:/\xff,limit=1G".to_vec());
        let Ok(Spill::Nvme(found)) = read(&odd) else {
            panic!("a name that is not text");
        };
        assert_eq!(found.dir.as_os_str().as_bytes(), b"/\xff");
    }

    #[test]
    fn what_it_may_not_say() {
        for (text, sentence) in [
            ("", "use 'ram' or 'off'"),
            ("disk", "'disk' is not a place to spill to"),
            ("ram,disk", "'ram,disk' is not a place"),
            ("ram,ram", "'ram,ram' is not a place"),
            ("nvme", "needs a directory: write nvme:DIR"),
            ("nvme:", "needs a directory"),
            ("ram,nvme:,limit=2G", "needs a directory"),
            ("nvme:/x,limit=", "the size is empty"),
            ("nvme:/x,limit=2X", "'X' in '2X' is not a unit"),
            (
                "nvme:/x,limit=32M",
                "too small to spill to: write at least 64M",
            ),
            ("nvme:/x,limit=50%", "limit=50% is a percentage"),
            ("off,ram", "'off' stands alone"),
            ("off,nvme:/x", "'off' stands alone"),
            ("ram,off", "'off' stands alone"),
        ] {
            let said = read(text.as_ref()).unwrap_err();
            assert!(said.contains(sentence), "{text}: {said}");
        }
    }

    #[test]
    fn a_disk_is_announced_but_not_there() {
        for text in ["nvme", "nvme:", "nvme:/scratch", "ram,nvme:/x,limit=2X"] {
            let said = parse(text.into()).unwrap_err();
            let expected = format!(
                "'{text}' is not possible yet, there is no NVMe tier in this version: use 'ram' or 'off'"
            );
            assert_eq!(said, expected);
        }
        assert_eq!(parse("ram".into()), Ok(Spill::Ram));
    }

    #[test]
    fn directories() {
        // Where the tests themselves lie is a disk; temporary files may be in RAM.
        let tests = std::env::current_exe().unwrap();
        let dir = tempfile::tempdir_in(tests.parent().unwrap()).unwrap();
        let of = |dir: &Path, limit| {
            prepare(&Nvme {
                dir: dir.into(),
                limit,
            })
        };
        let ready = of(dir.path(), Some(1 << 30)).unwrap();
        assert_eq!((ready.bytes, ready.note), (1 << 30, None));
        assert_eq!(ready.nvme.dir, dir.path());
        let ready = of(dir.path(), None).unwrap();
        assert!(ready.bytes > 1 << 30 && ready.note.is_none());
        let note = of(dir.path(), Some(1 << 60)).unwrap().note.unwrap();
        assert!(
            note.starts_with("the limit of 1024.0 PiB is more than"),
            "{note}"
        );
        // From wherever the program is.
        assert!(of(Path::new("."), None).unwrap().nvme.dir.is_absolute());

        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        for (dir, sentence) in [
            (dir.path().join("no"), "does not exist: make it first"),
            (file, "is not a directory: name one"),
        ] {
            let said = of(&dir, None).unwrap_err().to_string();
            assert!(
                said.starts_with("--spill: '/") && said.contains(sentence),
                "{said}"
            );
        }
        let shm = Path::new("/dev/shm");
        if greenboost_wire::filesystem::of(shm).is_ok_and(|(name, _)| name == "tmpfs") {
            let said = of(shm, None).unwrap_err().to_string();
            assert!(said.contains("is in host RAM (tmpfs)"), "{said}");
        }
    }
}
